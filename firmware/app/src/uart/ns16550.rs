//! The PC's UART, which the RISC-V machines have. Read "PC16550D: registers" first.

#![allow(unsafe_code)]

const DATA: usize = 0;
const FIFO_CONTROL: usize = 2;
const LINE_CONTROL: usize = 3;
const LINE_STATUS: usize = 5;

const FIFO_ON_AND_CLEARED: u8 = 0b111;
const EIGHT_BITS: u8 = 0b11;
const RX_READY: u8 = 1 << 0;
const TX_EMPTY: u8 = 1 << 5;

/// One such UART, its registers a byte apart.
#[derive(Debug)]
pub struct Ns16550 {
    base: usize,
}

impl Ns16550 {
    /// The UART whose registers start at `base`, switched on, at the speed it was left with.
    ///
    /// # Safety
    /// A 16550 is at `base`, and nothing else uses it while the returned value is in use.
    pub unsafe fn new(base: usize) -> Self {
        let mut uart = Ns16550 { base };
        uart.set(LINE_CONTROL, EIGHT_BITS);
        uart.set(FIFO_CONTROL, FIFO_ON_AND_CLEARED);
        uart
    }

    /// A byte, if one waits.
    pub fn read(&mut self) -> Option<u8> {
        (self.get(LINE_STATUS) & RX_READY != 0).then(|| self.get(DATA))
    }

    /// Waits until each byte is taken.
    pub fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            while self.get(LINE_STATUS) & TX_EMPTY == 0 {}
            self.set(DATA, byte);
        }
    }

    fn get(&self, register: usize) -> u8 {
        // SAFETY: the caller of `new` said that a UART is there, and `register` is one of its registers.
        unsafe { ((self.base + register) as *const u8).read_volatile() }
    }

    fn set(&mut self, register: usize, value: u8) {
        // SAFETY: as in `get`; a UART's registers hold no memory of ours.
        unsafe { ((self.base + register) as *mut u8).write_volatile(value) }
    }
}
