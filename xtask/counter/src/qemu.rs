//! The part of QEMU's plugin interface that counting takes, as `qemu-plugin.h` of QEMU 9.0 declares it.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr;

/// The oldest interface that has what is declared below.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, unreachable_pub, reason = "QEMU looks for this name")]
pub static qemu_plugin_version: c_int = 2;

/// Names this plugin in every call.
pub(crate) type Id = u64;

/// A counter of each virtual processor, `qemu_plugin_u64`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Counter {
    score: *mut c_void,
    offset: usize,
}

// SAFETY: QEMU's scoreboards are made to be shared by the threads of all virtual processors.
unsafe impl Send for Counter {}

/// A stretch of instructions that run one after the other; QEMU's, for the time of a callback.
#[derive(Clone, Copy)]
pub(crate) struct Block(*mut c_void);

/// An instruction of a [`Block`].
#[derive(Clone, Copy)]
pub(crate) struct Instruction(*mut c_void);

const ADD: c_uint = 0; // QEMU_PLUGIN_INLINE_ADD_U64
const NO_REGISTERS: c_uint = 0; // QEMU_PLUGIN_CB_NO_REGS

type Translated = extern "C" fn(Id, *mut c_void);
type Executed = extern "C" fn(c_uint, *mut c_void);
type Exiting = extern "C" fn(Id, *mut c_void);

unsafe extern "C" {
    fn qemu_plugin_scoreboard_new(size: usize) -> *mut c_void;
    fn qemu_plugin_u64_sum(counter: Counter) -> u64;
    fn qemu_plugin_register_vcpu_tb_trans_cb(id: Id, callback: Translated);
    fn qemu_plugin_register_atexit_cb(id: Id, callback: Exiting, data: *mut c_void);
    fn qemu_plugin_tb_n_insns(block: *const c_void) -> usize;
    fn qemu_plugin_tb_get_insn(block: *const c_void, i: usize) -> *mut c_void;
    fn qemu_plugin_insn_symbol(instruction: *const c_void) -> *const c_char;
    fn qemu_plugin_insn_vaddr(instruction: *const c_void) -> u64;
    fn qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(block: *mut c_void, op: c_uint, counter: Counter, n: u64);
    fn qemu_plugin_register_vcpu_insn_exec_cb(insn: *mut c_void, call: Executed, flags: c_uint, data: *mut c_void);
}

impl Counter {
    /// A counter that stands at zero.
    pub(crate) fn new() -> Counter {
        // SAFETY: QEMU is there, as it has called `qemu_plugin_install`; one u64 a processor lies at offset 0.
        Counter { score: unsafe { qemu_plugin_scoreboard_new(size_of::<u64>()) }, offset: 0 }
    }

    /// Of all processors together.
    pub(crate) fn sum(self) -> u64 {
        // SAFETY: `new` is the only way to get one.
        unsafe { qemu_plugin_u64_sum(self) }
    }
}

impl Block {
    /// How many instructions it has, one at least.
    pub(crate) fn len(self) -> usize {
        // SAFETY: QEMU lends the block for the callback that got it.
        unsafe { qemu_plugin_tb_n_insns(self.0) }
    }

    /// One of its instructions, below `len`.
    pub(crate) fn instruction(self, i: usize) -> Instruction {
        // SAFETY: as in `len`.
        Instruction(unsafe { qemu_plugin_tb_get_insn(self.0, i) })
    }

    /// Adds `n` to the counter each time that the block runs.
    pub(crate) fn counts(self, counter: Counter, n: usize) {
        // SAFETY: as in `len`; the counter lives as long as QEMU.
        unsafe { qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(self.0, ADD, counter, n as u64) };
    }
}

impl Instruction {
    /// Where it lies.
    pub(crate) fn address(self) -> u64 {
        // SAFETY: QEMU lends the instruction with its block.
        unsafe { qemu_plugin_insn_vaddr(self.0) }
    }

    /// The function it belongs to, if the ELF file says.
    pub(crate) fn symbol(self) -> Option<String> {
        // SAFETY: as in `address`.
        let name = unsafe { qemu_plugin_insn_symbol(self.0) };
        // SAFETY: QEMU's strings end with a zero.
        (!name.is_null()).then(|| unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
    }

    /// Calls back each time before it runs.
    pub(crate) fn calls(self, callback: Executed) {
        // SAFETY: as in `address`; the callback is a function of this library, which stays loaded.
        unsafe { qemu_plugin_register_vcpu_insn_exec_cb(self.0, callback, NO_REGISTERS, ptr::null_mut()) };
    }
}

/// Calls back for every block that is translated, and once at the end.
pub(crate) fn register(id: Id, translated: Translated, exiting: Exiting) {
    // SAFETY: both are functions of this library, which stays loaded.
    unsafe {
        qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
        qemu_plugin_register_atexit_cb(id, exiting, ptr::null_mut());
    }
}

/// The block that QEMU passes to a `Translated` callback.
pub(crate) fn block(pointer: *mut c_void) -> Block {
    Block(pointer)
}

/// The plugin's arguments, as they stand behind its name on QEMU's command line.
///
/// # Safety
/// `argv` points to `argc` strings that end with a zero.
pub(crate) unsafe fn arguments(argc: c_int, argv: *const *const c_char) -> Vec<String> {
    let argument = |i| {
        // SAFETY: there are as many, says the caller.
        unsafe { CStr::from_ptr(*argv.add(i)) }.to_string_lossy().into_owned()
    };
    (0..usize::try_from(argc).unwrap_or(0)).map(argument).collect()
}
