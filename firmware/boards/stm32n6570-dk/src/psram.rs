//! The PSRAM, an APS256XXN, mapped into memory on sixteen lines, at both edges of the clock.

// Read "APS256XXN data sheet: 8 Interface Description, 9 Registers" first.

use embassy_stm32::mode::Blocking;
use embassy_stm32::peripherals::XSPI1;
use embassy_stm32::xspi::{AddressSize, ChipSelectHighTime, Config, DummyCycles, MemorySize, MemoryType};
use embassy_stm32::xspi::{TransferConfig, Xspi, XspiError, XspiWidth};

/// 100 MHz of the 200: 400 MB/s.
const PRESCALER: u8 = 1;
/// A row has 2 KiB: log2 of what a command stays within.
const ROW: u8 = 14;

const READ: u32 = 0x00;
const WRITE: u32 = 0x80;
const WRITE_REGISTER: u32 = 0xc0;

/// Pairs of registers from this address on: latency of reads (6, fixed) and drive, latency of writes (7), sixteen lines
/// and bursts of 2 KiB across rows.
const REGISTERS: [(u32, [u8; 2]); 3] = [(0, [0x30, 0x8d]), (4, [0x20, 0xf0]), (8, [0x4b, 0x08])];

/// The controller's settings.
pub(crate) fn config() -> Config {
    Config {
        memory_type: MemoryType::APMemory16Bits,
        device_size: MemorySize::_32MiB,
        chip_select_high_time: ChipSelectHighTime::_5Cycle,
        clock_prescaler: PRESCALER,
        chip_select_boundary: ROW,
        ..Config::default()
    }
}

/// Sets the PSRAM up, and maps it.
pub(crate) fn map(mut psram: Xspi<'static, XSPI1, Blocking>) -> Result<(), XspiError> {
    for (address, values) in REGISTERS {
        let write = TransferConfig { dwidth: XspiWidth::OCTO, ..command(WRITE_REGISTER) };
        psram.blocking_write(&values, TransferConfig { address: Some(address), ..write })?;
    }
    let data = |code| TransferConfig { dwidth: XspiWidth::HEXA, dummy: DummyCycles::_6, dqse: true, ..command(code) };
    psram.enable_memory_mapped_mode(data(READ), data(WRITE))?;
    // The controller stays as it is.
    core::mem::forget(psram);
    Ok(())
}

fn command(code: u32) -> TransferConfig {
    TransferConfig {
        iwidth: XspiWidth::OCTO,
        instruction: Some(code),
        adwidth: XspiWidth::OCTO,
        adsize: AddressSize::_32bit,
        addtr: true,
        ddtr: true,
        ..TransferConfig::default()
    }
}

/// Whether memory keeps what is written to it, byte by byte: embassy's example for this board (2026) found single bytes
/// damaged with the caches off, where with them whole lines are written.
pub(crate) fn keeps(memory: &mut [u8], flush: &mut impl FnMut()) -> bool {
    let value = |i: usize| (i as u32).wrapping_mul(0x9e37_79b9).to_be_bytes()[0];
    for step in [1, 3, 8, 61] {
        memory.fill(0);
        flush();
        for i in (0..memory.len()).step_by(step) {
            memory[i] = value(i);
        }
        flush();
        let kept = |(i, &byte): (usize, &u8)| byte == if i % step == 0 { value(i) } else { 0 };
        if !memory.iter().enumerate().all(kept) {
            return false;
        }
    }
    true
}
