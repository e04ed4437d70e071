//! The QSPI flash: two chips (MT25TL01G) side by side, each with every other byte, mapped into memory.

use embassy_stm32::gpio::{AfType, AnyPin, Flex, OutputType, Speed};
use embassy_stm32::mode::Blocking;
use embassy_stm32::peripherals::QUADSPI;
use embassy_stm32::qspi::enums::{AddressSize, DummyCycles, MemorySize, QspiWidth, SampleShifting};
use embassy_stm32::qspi::{Config, Qspi, TransferConfig};
use embassy_stm32::{Peri, pac};

/// 50 MHz of the bus's 200: two bytes each four ticks, 25 MB/s a chip.
const PRESCALER: u8 = 3;
/// What these pins do when they are the second chip's.
const AF9: u8 = 9;

const RESET_ENABLE: u8 = 0x66;
const RESET: u8 = 0x99;
/// Quad I/O, addresses of four bytes: ten ticks from the address to the first byte.
const READ: u8 = 0xec;

/// The controller's settings, for both chips as one of 128 MB.
pub(crate) fn config() -> Config {
    let mut config = Config::default();
    config.memory_size = MemorySize::_128MiB;
    config.address_size = AddressSize::_32bit;
    config.prescaler = PRESCALER;
    config.sample_shifting = SampleShifting::HalfCycle;
    config.dual_flash = true;
    config
}

/// Gives the second chip its data lines: embassy's own constructor for two chips also wants a second select line, whose
/// pin is the card's.
pub(crate) fn second_chip(pins: [Peri<'static, AnyPin>; 4]) {
    for pin in pins {
        let mut pin = Flex::new(pin);
        pin.set_as_af_unchecked(AF9, AfType::output(OutputType::PushPull, Speed::VeryHigh));
        // Dropped, it would be let go.
        core::mem::forget(pin);
    }
}

/// Maps the flash, in whatever state a flash tool has left it.
pub(crate) fn map(mut flash: Qspi<'static, QUADSPI, Blocking>) {
    for iwidth in [QspiWidth::QUAD, QspiWidth::SING] {
        for instruction in [RESET_ENABLE, RESET] {
            flash.blocking_command(TransferConfig { iwidth, instruction, ..TransferConfig::default() });
        }
        // A reset takes 40 ns, or longer if it interrupts something.
        cortex_m::asm::delay(crate::CLOCK_HZ / 1_000);
    }
    flash.enable_memory_map(&TransferConfig {
        iwidth: QspiWidth::SING,
        awidth: QspiWidth::QUAD,
        dwidth: QspiWidth::QUAD,
        instruction: READ,
        address: None,
        dummy: DummyCycles::_10,
    });
    debug_assert!(pac::QUADSPI.cr().read().dfm());
    // The controller stays as it is.
    core::mem::forget(flash);
}
