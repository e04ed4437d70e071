//! Arm's CMSDK APB UART, which the MPS boards have. Read "Cortex-M System Design Kit TRM: APB UART" first.

#![allow(unsafe_code)]

const DATA: usize = 0x00;
const STATE: usize = 0x04;
const CTRL: usize = 0x08;
const BAUDDIV: usize = 0x10;

const TX_FULL: u32 = 1 << 0;
const RX_FULL: u32 = 1 << 1;
const ENABLE_TX_RX: u32 = 0b11;

/// One such UART.
#[derive(Debug)]
pub struct Cmsdk {
    base: usize,
}

impl Cmsdk {
    /// The UART whose registers start at `base`, switched on.
    ///
    /// # Safety
    /// A CMSDK UART is at `base`, and nothing else uses it while the returned value is in use.
    pub unsafe fn new(base: usize, clock_hz: u32, baud: u32) -> Self {
        let mut uart = Cmsdk { base };
        uart.set(BAUDDIV, (clock_hz / baud).max(16));
        uart.set(CTRL, ENABLE_TX_RX);
        uart
    }

    /// A byte, if one waits.
    pub fn read(&mut self) -> Option<u8> {
        (self.get(STATE) & RX_FULL != 0).then(|| self.get(DATA) as u8)
    }

    /// Waits until each byte is taken.
    pub fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            while self.get(STATE) & TX_FULL != 0 {}
            self.set(DATA, byte.into());
        }
    }

    fn get(&self, register: usize) -> u32 {
        // SAFETY: the caller of `new` said that a UART is there, and `register` is one of its registers.
        unsafe { ((self.base + register) as *const u32).read_volatile() }
    }

    fn set(&mut self, register: usize, value: u32) {
        // SAFETY: as in `get`; a UART's registers hold no memory of ours.
        unsafe { ((self.base + register) as *mut u32).write_volatile(value) }
    }
}
