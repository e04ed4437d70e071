//! The clock that every Cortex-M has: 24 bits that count down, and an exception that counts how often they ran out.

use core::sync::atomic::{AtomicU32, Ordering};

use cortex_m::peripheral::syst::SystClkSource;
use cortex_m::peripheral::{SCB, SYST};
use cortex_m_rt::exception;

const PERIOD: u32 = 1 << 24;

static WRAPS: AtomicU32 = AtomicU32::new(0);

/// A running clock.
#[derive(Debug)]
pub struct SysTick {
    hz: u32,
}

impl SysTick {
    /// Starts it on the processor's clock of `hz`.
    pub fn start(mut syst: SYST, hz: u32) -> Self {
        syst.set_clock_source(SystClkSource::Core);
        syst.set_reload(PERIOD - 1);
        syst.clear_current();
        syst.enable_counter();
        syst.enable_interrupt();
        SysTick { hz }
    }

    /// Microseconds since it was started.
    pub fn micros(&self) -> u64 {
        let (wraps, left) = loop {
            let before = WRAPS.load(Ordering::Relaxed);
            let left = SYST::get_current();
            let wrapped = SCB::is_pendst_pending();
            if before == WRAPS.load(Ordering::Relaxed) {
                // It ran out, and the exception is still to come: was that before or after `left` was read?
                break (before + u32::from(wrapped && left > PERIOD / 2), left);
            }
        };
        let ticks = u64::from(wraps) * u64::from(PERIOD) + u64::from(PERIOD - 1 - left);
        ticks * 1_000_000 / u64::from(self.hz)
    }
}

#[exception]
fn SysTick() {
    WRAPS.fetch_add(1, Ordering::Relaxed);
}
