//! The memory protection unit: what of the address space beyond the chip is memory.
//!
//! By default flash is memory that the processor may read ahead of need, which hangs until it is mapped; and what is
//! written to the PSRAM goes there byte by byte, which it may not take: a cache that writes whole lines is between.

#![allow(unsafe_code)]

use cortex_m::asm;
use cortex_m::peripheral::MPU;

// Indices of attributes in MAIR0, and these.
const DEVICE: u32 = 0;
const WRITE_THROUGH: u32 = 1;
const WRITE_BACK: u32 = 2;
const ATTRIBUTES: u32 = 0xff << 16 | 0xaa << 8;

const NEVER_EXECUTED: u32 = 1;
const READ_ONLY: u32 = 0b10 << 1;
const ON: u32 = 1;
/// What no region names is as it is by default.
const DEFAULT_ELSEWHERE: u32 = 1 << 2;

/// From here to there, the last line of 32 bytes included.
struct Region {
    first: u32,
    last: u32,
    access: u32,
    attributes: u32,
}

const FLASH: Region = Region { first: 0x7000_0000, last: 0x77ff_ffe0, access: READ_ONLY, attributes: WRITE_THROUGH };
const PSRAM: Region = Region { first: 0x9000_0000, last: 0x91ff_ffe0, access: 0, attributes: WRITE_BACK };

/// Says what is memory, once the PSRAM runs and the flash is mapped.
pub(crate) fn describe(mpu: &mut MPU) {
    set(mpu, &[FLASH, PSRAM]);
}

/// Says that nothing is there yet.
pub(crate) fn hide(mpu: &mut MPU) {
    set(mpu, &[Region { attributes: DEVICE, ..FLASH }, Region { attributes: DEVICE, ..PSRAM }]);
}

fn set(mpu: &mut MPU, regions: &[Region]) {
    asm::dmb();
    // SAFETY: no region changes what Rust's memory in the chip is; the others are used afterwards.
    unsafe {
        mpu.ctrl.write(0);
        mpu.mair[0].write(ATTRIBUTES);
        for (number, Region { first, last, access, attributes }) in (0..).zip(regions) {
            mpu.rnr.write(number);
            mpu.rbar.write(first | access | NEVER_EXECUTED);
            mpu.rlar.write(last | attributes << 1 | ON);
        }
        mpu.ctrl.write(DEFAULT_ELSEWHERE | ON);
    }
    asm::dsb();
    asm::isb();
}
