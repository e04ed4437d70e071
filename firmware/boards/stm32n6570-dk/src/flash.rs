//! The octo flash, a MX66UW1G45G, mapped into memory on eight lines.

// Read "MX66UW1G45G data sheet: 9 Command Set, 10 Configuration Register 2" first.

use embassy_stm32::mode::Blocking;
use embassy_stm32::peripherals::XSPI2;
use embassy_stm32::xspi::{AddressSize, ChipSelectHighTime, Config, DummyCycles, MemorySize, MemoryType};
use embassy_stm32::xspi::{TransferConfig, Xspi, XspiError, XspiWidth};

/// 50 MHz of the bus's 100: 50 MB/s on eight lines.
const PRESCALER: u8 = 1;

// On one line a command has eight bits, on eight lines it comes with its complement.
const RESET_ENABLE: u32 = 0x66;
const RESET: u32 = 0x99;
const WRITE_ENABLE: u32 = 0x06;
const WRITE_CONFIGURATION_2: u32 = 0x72;
const READ: u32 = 0x0c;
const READ_OCTO: u32 = 0xec13;

/// The register of configuration 2 that says how many lines there are, and its value for eight, at single rate.
const LINES: u32 = 0;
const EIGHT_LINES: u8 = 0b01;

/// How many of the flash's first bytes are read both ways.
const COMPARED: usize = 16;

type Flash = Xspi<'static, XSPI2, Blocking>;

/// The controller's settings.
pub(crate) fn config() -> Config {
    Config {
        memory_type: MemoryType::Macronix,
        device_size: MemorySize::_128MiB,
        chip_select_high_time: ChipSelectHighTime::_2Cycle,
        clock_prescaler: PRESCALER,
        sample_shifting: true,
        ..Config::default()
    }
}

/// Maps the flash, in whatever state a flash tool has left it; returns its first bytes as they were read on one line.
pub(crate) fn map(mut flash: Flash) -> Result<[u8; COMPARED], XspiError> {
    for command in [RESET_ENABLE, RESET] {
        flash.blocking_command(&octo(command << 8 | !command & 0xff))?;
    }
    for command in [RESET_ENABLE, RESET] {
        flash.blocking_command(&single(command))?;
    }
    // A reset takes up to 100 ms, if it interrupts something.
    cortex_m::asm::delay(crate::CLOCK_HZ / 10);
    let mut first = [0; COMPARED];
    let address = XspiWidth::SING;
    let read = TransferConfig { adwidth: address, dwidth: XspiWidth::SING, dummy: DummyCycles::_8, ..single(READ) };
    flash.blocking_read(&mut first, TransferConfig { address: Some(0), ..read })?;
    flash.blocking_command(&single(WRITE_ENABLE))?;
    let write = TransferConfig { adwidth: address, dwidth: XspiWidth::SING, ..single(WRITE_CONFIGURATION_2) };
    flash.blocking_write(&[EIGHT_LINES], TransferConfig { address: Some(LINES), ..write })?;
    let width = XspiWidth::OCTO;
    let read = TransferConfig { adwidth: width, dwidth: width, dummy: DummyCycles::_20, ..octo(READ_OCTO) };
    // Nobody writes.
    flash.enable_memory_mapped_mode(read, read)?;
    // The controller stays as it is.
    core::mem::forget(flash);
    Ok(first)
}

fn single(command: u32) -> TransferConfig {
    TransferConfig {
        iwidth: XspiWidth::SING,
        instruction: Some(command),
        adsize: AddressSize::_32bit,
        ..TransferConfig::default()
    }
}

fn octo(command: u32) -> TransferConfig {
    TransferConfig { iwidth: XspiWidth::OCTO, isize: AddressSize::_16bit, ..single(command) }
}
