//! The memory protection unit: what of the address space beyond the chip is memory.
//!
//! By default the SDRAM's addresses are a device's (no cache, no unaligned access), and those of the QSPI flash are memory
//! that the processor may read ahead of need, which hangs until the flash is mapped.

#![allow(unsafe_code)]

use cortex_m::asm;
use cortex_m::peripheral::MPU;

// Bits of a region's attributes.
const NEVER_EXECUTED: u32 = 1 << 28;
const READ_WRITE: u32 = 0b011 << 24;
const READ_ONLY: u32 = 0b110 << 24;
const WRITE_BACK: u32 = 0b001 << 19 | 0b11 << 16;
const WRITE_THROUGH: u32 = 0b10 << 16;
const ON: u32 = 1;
/// What no region names is as it is by default.
const DEFAULT_ELSEWHERE: u32 = 1 << 2;

/// A region of 2ⁿ bytes; where two overlap, the later one counts.
struct Region {
    start: u32,
    log2_len: u32,
    attributes: u32,
}

const REGIONS: [Region; 3] = [
    // All of the QSPI's: nothing is there, and nobody reads ahead.
    Region { start: 0x9000_0000, log2_len: 28, attributes: NEVER_EXECUTED },
    Region { start: 0x9000_0000, log2_len: 27, attributes: NEVER_EXECUTED | READ_ONLY | WRITE_THROUGH },
    Region { start: 0xd000_0000, log2_len: 25, attributes: NEVER_EXECUTED | READ_WRITE | WRITE_BACK },
];

/// Says what is memory, once the SDRAM runs and the flash is mapped.
pub(crate) fn describe(mpu: &mut MPU) {
    set(mpu, &REGIONS);
}

/// Says that the QSPI's addresses are none yet.
pub(crate) fn hide_flash(mpu: &mut MPU) {
    set(mpu, &REGIONS[..1]);
}

fn set(mpu: &mut MPU, regions: &[Region]) {
    asm::dmb();
    for (number, Region { start, log2_len, attributes }) in (0..).zip(regions) {
        // SAFETY: no region changes what Rust's memory in the chip is; the SDRAM's and the flash's are used afterwards.
        unsafe {
            mpu.rnr.write(number);
            mpu.rbar.write(*start);
            mpu.rasr.write(attributes | (log2_len - 1) << 1 | ON);
        }
    }
    // SAFETY: likewise.
    unsafe { mpu.ctrl.write(DEFAULT_ELSEWHERE | ON) };
    asm::dsb();
    asm::isb();
}
