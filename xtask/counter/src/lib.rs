//! Counts the instructions that an emulated board executes, as a plugin of QEMU.
//!
//! ```text
//! -plugin libgptrickle_counter.so,out=FILE,mark=0x1234[,skip=0x2000-0x2040][,hot=N]
//! ```
//! Each time the instruction at `mark` is about to run, `mark COUNT` goes to the file: all instructions so far, less
//! those of functions within `skip`, where a board waits for a device and the count says how busy the desk is. At the
//! end `hot COUNT NAME` follows for the N functions that took most between the first mark and the last.

mod qemu;

use std::collections::HashMap;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use qemu::{Counter, Id};

static STATE: Mutex<Option<State>> = Mutex::new(None);

/// What is counted, and where it goes.
struct State {
    out: File,
    mark: u64,
    skip: Vec<Range<u64>>,
    hot: usize,
    all: Counter,
    functions: HashMap<String, Function>,
    marks: usize,
}

/// Instructions of one function.
struct Function {
    counter: Counter,
    at_first_mark: u64,
    at_last_mark: u64,
}

impl State {
    /// # Errors
    /// An argument is missing or wrong, or the file cannot be made; the text says which.
    fn new(arguments: &[String]) -> Result<State, String> {
        let (mut out, mut mark, mut skip, mut hot) = (None, None, Vec::new(), 0);
        for argument in arguments {
            let wrong = || format!("{argument}: not understood");
            match argument.split_once('=').ok_or_else(wrong)? {
                ("out", path) => out = Some(File::create(path).map_err(|error| format!("{path}: {error}"))?),
                ("mark", address) => mark = Some(number(address).ok_or_else(wrong)?),
                ("skip", range) => {
                    let (start, end) = range.split_once('-').ok_or_else(wrong)?;
                    skip.push(number(start).ok_or_else(wrong)?..number(end).ok_or_else(wrong)?);
                }
                ("hot", n) => hot = n.parse().map_err(|_| wrong())?,
                _ => return Err(wrong()),
            }
        }
        let (out, mark) = (out.ok_or("out= is missing")?, mark.ok_or("mark= is missing")?);
        Ok(State { out, mark, skip, hot, all: Counter::new(), functions: HashMap::new(), marks: 0 })
    }

    fn translated(&mut self, block: qemu::Block) {
        let (first, len) = (block.instruction(0), block.len());
        if self.skip.iter().any(|skip| skip.contains(&first.address())) {
            return;
        }
        block.counts(self.all, len);
        if self.hot > 0 {
            let name = first.symbol().unwrap_or_else(|| "?".into());
            let new = || Function { counter: Counter::new(), at_first_mark: 0, at_last_mark: 0 };
            block.counts(self.functions.entry(name).or_insert_with(new).counter, len);
        }
        for instruction in (0..len).map(|i| block.instruction(i)).filter(|at| at.address() == self.mark) {
            instruction.calls(marked);
        }
    }

    fn marked(&mut self) {
        let _ = writeln!(self.out, "mark {}", self.all.sum());
        for function in self.functions.values_mut() {
            function.at_last_mark = function.counter.sum();
            if self.marks == 0 {
                function.at_first_mark = function.at_last_mark;
            }
        }
        self.marks += 1;
    }

    fn finish(&mut self) {
        let count = |function: &Function| function.at_last_mark - function.at_first_mark;
        let mut functions: Vec<_> = self.functions.iter().map(|(name, function)| (count(function), name)).collect();
        functions.sort_by(|a, b| b.cmp(a));
        for (count, name) in functions.into_iter().take(self.hot) {
            let _ = writeln!(self.out, "hot {count} {name}");
        }
        let _ = self.out.flush();
    }
}

/// Reads `0x1f`.
fn number(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

fn state() -> MutexGuard<'static, Option<State>> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

extern "C" fn translated(_: Id, block: *mut c_void) {
    if let Some(state) = state().as_mut() {
        state.translated(qemu::block(block));
    }
}

extern "C" fn marked(_: c_uint, _: *mut c_void) {
    if let Some(state) = state().as_mut() {
        state.marked();
    }
}

extern "C" fn exiting(_: Id, _: *mut c_void) {
    if let Some(state) = state().as_mut() {
        state.finish();
    }
}

/// QEMU's way in: reads the arguments and asks for callbacks; not 0 when an argument is wrong.
///
/// # Safety
/// QEMU calls it, once, with `argc` strings in `argv`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: u64,
    _: *const c_void,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    // SAFETY: as many strings, says the caller.
    let arguments = unsafe { qemu::arguments(argc, argv) };
    match State::new(&arguments) {
        Ok(new) => {
            *state() = Some(new);
            qemu::register(id, translated, exiting);
            0
        }
        Err(error) => {
            eprintln!("counter: {error}");
            1
        }
    }
}
