//! Arm's PrimeCell UART, which many chips have. Read "PL011 TRM: programmer's model" first.

#![allow(unsafe_code)]

const DATA: usize = 0x00;
const FLAGS: usize = 0x18;
const BAUD_WHOLE: usize = 0x24;
const BAUD_64THS: usize = 0x28;
const LINE: usize = 0x2c;
const CONTROL: usize = 0x30;

const RX_EMPTY: u32 = 1 << 4;
const TX_FULL: u32 = 1 << 5;
/// Without the FIFOs: to switch them on empties them, and a script may have typed its first byte by then.
const EIGHT_BITS: u32 = 0b11 << 5;
const ENABLE_TX_RX: u32 = 1 << 9 | 1 << 8 | 1;

/// One such UART.
#[derive(Debug)]
pub struct Pl011 {
    base: usize,
}

impl Pl011 {
    /// The UART whose registers start at `base`, switched on.
    ///
    /// # Safety
    /// A PL011 is at `base`, with its clock on, and nothing else uses it while the returned value is in use.
    pub unsafe fn new(base: usize, clock_hz: u32, baud: u32) -> Self {
        let mut uart = Pl011 { base };
        uart.set(CONTROL, 0);
        let divisor_64ths = clock_hz.saturating_mul(4) / baud;
        uart.set(BAUD_WHOLE, divisor_64ths / 64);
        uart.set(BAUD_64THS, divisor_64ths % 64);
        uart.set(LINE, EIGHT_BITS);
        uart.set(CONTROL, ENABLE_TX_RX);
        uart
    }

    /// A byte, if one waits.
    pub fn read(&mut self) -> Option<u8> {
        (self.get(FLAGS) & RX_EMPTY == 0).then(|| self.get(DATA) as u8)
    }

    /// Waits until each byte is taken.
    pub fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            while self.get(FLAGS) & TX_FULL != 0 {}
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
