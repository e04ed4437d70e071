//! A channel of the BCM2837's DMA controller, which carries what the card sends into memory.

// Read "BCM2835 ARM Peripherals: 4 DMA Controller" first.

#![allow(unsafe_code)]

use core::arch::asm;
use core::hint;

use gptrickle_firmware::storage::block::{CONTROLLER, TIMEOUT};

use crate::micros;

/// Bytes that share a line of the cache: memory that the controller writes to starts and ends on a multiple of it.
pub(crate) const CACHE_LINE: usize = 64;

const STATUS: usize = 0x00;
const CONTROL_BLOCK: usize = 0x04;
const ENABLE: usize = 0xff0; // of all channels

const ACTIVE: u32 = 1 << 0;
const END: u32 = 1 << 1;
const ERROR: u32 = 1 << 8;
const WAIT_FOR_WRITES: u32 = 1 << 28;
const RESET: u32 = 1 << 31;

const WAIT_FOR_ANSWER: u32 = 1 << 3;
const TO_NEXT: u32 = 1 << 4;
const FROM_ON_REQUEST: u32 = 1 << 10;
const REQUEST: u32 = 16; // shift

/// What the controller calls memory, past its own cache.
const MEMORY: u32 = 0xc000_0000;
/// What it calls the registers at 0x3f00_0000.
const REGISTERS: u32 = 0x7e00_0000;

/// No transfer takes longer.
const PATIENCE_US: u64 = 500_000;

/// What a channel is told, read by it from memory.
#[repr(C, align(64))]
pub(crate) struct Control {
    how: u32,
    from: u32,
    to: u32,
    bytes: u32,
    stride: u32,
    next: u32,
    _reserved: [u32; 2],
}

impl Control {
    pub(crate) const fn new() -> Self {
        Control { how: 0, from: 0, to: 0, bytes: 0, stride: 0, next: 0, _reserved: [0; 2] }
    }
}

/// One channel.
pub(crate) struct Dma {
    channel: usize,
    control: &'static mut Control,
    to: *mut [u8], // where the last transfer went
}

impl Dma {
    /// Channel `number` of the controller whose registers start at `base`.
    ///
    /// # Safety
    /// The controller is there, mapped as device memory, and nothing else uses the channel, one of 0 to 6.
    pub(crate) unsafe fn new(base: usize, number: usize, control: &'static mut Control) -> Self {
        let mut dma = Dma { channel: base + number * 0x100, control, to: &mut [] };
        // SAFETY: the caller says that the controller is there; other channels stay as they are.
        unsafe {
            let enable = (base + ENABLE) as *mut u32;
            enable.write_volatile(enable.read_volatile() | 1 << number);
        }
        dma.set(STATUS, RESET);
        dma
    }

    fn get(&self, register: usize) -> u32 {
        // SAFETY: the caller of `new` said that the channel is there, and `register` is one of its registers.
        unsafe { ((self.channel + register) as *const u32).read_volatile() }
    }

    fn set(&mut self, register: usize, value: u32) {
        // SAFETY: as in `get`; the channel writes only where `start` was told to.
        unsafe { ((self.channel + register) as *mut u32).write_volatile(value) }
    }

    /// Starts to fill memory with what is read from one register, a word whenever `request` asks for it.
    ///
    /// # Safety
    /// Until [`wait`](Self::wait) returns, nothing else uses the memory, which is made of whole cache lines.
    pub(crate) unsafe fn start(&mut self, register: usize, request: u32, to: *mut [u8]) {
        *self.control = Control {
            how: request << REQUEST | FROM_ON_REQUEST | TO_NEXT | WAIT_FOR_ANSWER,
            from: REGISTERS | register as u32 & 0x00ff_ffff,
            to: MEMORY | to.cast::<u8>() as u32,
            bytes: to.len() as u32,
            ..Control::new()
        };
        let control: *mut Control = self.control;
        write_back(control.cast(), size_of::<Control>());
        // No line of it may be written back over what the controller puts there.
        write_back(to.cast(), to.len());
        self.to = to;
        self.set(CONTROL_BLOCK, MEMORY | control as u32);
        self.set(STATUS, WAIT_FOR_WRITES | END | ACTIVE);
    }

    /// Waits until the memory that `start` was given is filled.
    #[inline(never)] // as in sdhci.rs
    pub(crate) fn wait(&mut self) -> Result<(), i32> {
        let start = micros();
        let result = loop {
            match self.get(STATUS) {
                status if status & ERROR != 0 => break Err(CONTROLLER),
                status if status & ACTIVE == 0 => break Ok(()),
                _ if micros() - start > PATIENCE_US => break Err(TIMEOUT),
                _ => hint::spin_loop(),
            }
        };
        if result.is_err() {
            self.set(STATUS, RESET);
        }
        forget(self.to.cast(), self.to.len());
        result
    }
}

/// What is done to each of a memory's cache lines: eight in a turn, as many as a block of a card fills.
macro_rules! for_lines {
    ($instruction:literal, $start:expr, $len:expr) => {
        let (mut line, lines) = ($start, $len.div_ceil(CACHE_LINE));
        for _ in 0..lines / 8 {
            asm!(".rept 8", concat!($instruction, ", {0}"), "add {0}, {0}, {1}", ".endr",
                 inout(reg) line, const CACHE_LINE, options(nostack));
        }
        for _ in 0..lines % 8 {
            asm!(concat!($instruction, ", {0}"), "add {0}, {0}, {1}", inout(reg) line, const CACHE_LINE, options(nostack));
        }
        asm!("dsb sy", options(nostack));
        let _ = line;
    };
}

/// Writes the cache's lines of this memory back, and drops them.
pub(crate) fn write_back(start: *const u8, len: usize) {
    // SAFETY: this changes no value that the processor sees.
    unsafe {
        for_lines!("dc civac", start, len);
    }
}

/// Drops the cache's lines of this memory, which may have been fetched before the controller wrote there.
fn forget(start: *const u8, len: usize) {
    // SAFETY: whoever started the transfer said that the memory is made of whole lines, and `start` wrote them back:
    // nothing is lost but what the controller has replaced.
    unsafe {
        for_lines!("dc ivac", start, len);
    }
}
