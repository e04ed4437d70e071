//! ST's STM32N6570-DK: Cortex-M55 with Helium at 800 MHz; the model in octo flash, the arena in PSRAM.
//!
//! ```text
//! 0x3406_4000  AXI SRAM 1  624 KiB  arena, if the PSRAM does not keep what is written
//! 0x3410_0000  AXI SRAM 2    1 MiB  code, data, stack
//! 0x7000_0000  octo flash  128 MiB  model │ … │ its length (u64, little-endian), in the last 8 bytes
//! 0x9000_0000  PSRAM        32 MiB  arena
//! ```
//!
//! The chip has no flash inside: with the boot switches at "development" it waits for the probe, which puts the firmware
//! into RAM after each power-up. The console is USART1, which ST-LINK shows as a serial port: 115200 baud, 8 bits, no
//! parity. Log lines go through RTT.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

mod flash;
mod mpu;
mod psram;

use core::panic::PanicInfo;
use core::slice;

use cortex_m::peripheral::SCB;
use cortex_m_rt::{ExceptionFrame, entry, exception};
use defmt_rtt as _;
use embassy_stm32::mode::Blocking;
use embassy_stm32::pac::{IWDG, RCC};
use embassy_stm32::peripherals::{PE5, PE6, USART1};
use embassy_stm32::usart::{self, Uart};
use embassy_stm32::wdg::IndependentWatchdog;
use embassy_stm32::xspi::Xspi;
use embassy_stm32::{Config, Peri, Peripherals, rcc};
use embedded_hal_nb::serial::Read;
use gptrickle_firmware::stack::Stack;
use gptrickle_firmware::storage::mapped::Mapped;
use gptrickle_firmware::storage::watched::Watched;
use gptrickle_firmware::systick::SysTick;
use gptrickle_firmware::{Board, panic_line, run};

/// The processor's.
const CLOCK_HZ: u32 = 800_000_000;
const FLASH: usize = 0x7000_0000;
const FLASH_LEN: usize = 128 << 20;
/// Where the model's length stands.
const MODEL_LEN: usize = FLASH + FLASH_LEN - 8;
const PSRAM: usize = 0x9000_0000;
const PSRAM_LEN: usize = 32 << 20;
const SRAM: usize = 0x3406_4000;
const SRAM_LEN: usize = 624 << 10;
/// How much of the PSRAM is tried out.
const TRIED: usize = 64 << 10;
/// Longer than any chunk of a model takes to multiply.
const WATCHDOG_US: u32 = 20_000_000;

struct Stm32N6570Dk {
    uart: Uart<'static, Blocking>,
    clock: SysTick,
    stack: Stack,
}

impl Board for Stm32N6570Dk {
    const NAME: &'static str = "stm32n6570-dk";

    fn read(&mut self) -> Option<u8> {
        feed();
        // A byte that came damaged is none.
        self.uart.read().ok()
    }

    fn write(&mut self, bytes: &[u8]) {
        // It has no way to fail.
        let _ = self.uart.blocking_write(bytes);
    }

    fn micros(&mut self) -> u64 {
        self.clock.micros()
    }

    fn stack_used(&self) -> usize {
        self.stack.used()
    }

    fn exit(&mut self, _code: i32) -> ! {
        // The last line is still on its way.
        let _ = self.uart.blocking_flush();
        SCB::sys_reset()
    }
}

#[entry]
fn main() -> ! {
    let stack = Stack::paint_cortex_m();
    let mut core = cortex_m::Peripherals::take().expect("nobody else takes them");
    mpu::hide(&mut core.MPU);
    let p = embassy_stm32::init(clocks());
    // SAFETY: nothing here has to be kept from interrupts; the boot ROM has masked them.
    unsafe { cortex_m::interrupt::enable() };
    let uart = uart(p.USART1, p.PE6, p.PE5);
    let board = Stm32N6570Dk { uart, clock: SysTick::start(core.SYST, CLOCK_HZ), stack };
    defmt::info!("clocks run");

    #[rustfmt::skip]
    let psram = Xspi::new_blocking_xspi_hexa_dqs_dual(p.XSPI1,
        p.PO4, // clock
        p.PP0, p.PP1, p.PP2, p.PP3, p.PP4, p.PP5, p.PP6, p.PP7, p.PP8, p.PP9, p.PP10, p.PP11, p.PP12, p.PP13, p.PP14,
        p.PP15, // data
        p.PO0, p.PO2, p.PO3, // select, strobes
        psram::config());
    psram::map(psram).expect("the PSRAM's settings are valid");
    #[rustfmt::skip]
    let flash = Xspi::new_blocking_xspi(p.XSPI2,
        p.PN6, // clock
        p.PN2, p.PN3, p.PN4, p.PN5, p.PN8, p.PN9, p.PN10, p.PN11, // data
        p.PN1, // select
        flash::config());
    let first = flash::map(flash).expect("the flash's settings are valid");
    mpu::describe(&mut core.MPU);
    core.SCB.enable_icache();
    core.SCB.enable_dcache(&mut core.CPUID);
    // SAFETY: the flash is mapped.
    let mapped = unsafe { slice::from_raw_parts(FLASH as *const u8, first.len()) };
    assert!(mapped == first, "the flash is {mapped:x?} on eight lines, {first:x?} on one");
    defmt::info!("flash is mapped");
    let arena = arena(&mut || core.SCB.clean_invalidate_dcache(&mut core.CPUID));

    IndependentWatchdog::new(p.IWDG, WATCHDOG_US).unleash();
    // SAFETY: the flash is mapped, nothing writes it, and the length is an aligned word of it.
    let model = unsafe { Mapped::at(FLASH as *const u8, FLASH_LEN - 8, (MODEL_LEN as *const u64).read_volatile()) };

    run(board, Watched::new(model, feed), arena)
}

/// The PSRAM if it keeps what is written, else what the chip has of its own.
fn arena(flush: &mut impl FnMut()) -> &'static mut [u8] {
    // SAFETY: the PSRAM is mapped, and nothing else uses it.
    let psram = unsafe { slice::from_raw_parts_mut(PSRAM as *mut u8, PSRAM_LEN) };
    if psram::keeps(&mut psram[..TRIED], flush) {
        defmt::info!("PSRAM runs");
        return psram;
    }
    defmt::error!("the PSRAM does not keep what is written to it: {} KiB inside the chip instead", SRAM_LEN >> 10);
    RCC.memensr().write(|w| w.set_axisram1ens(true));
    // SAFETY: this RAM is on, the linker knows nothing of it, and nothing else uses it.
    unsafe { slice::from_raw_parts_mut(SRAM as *mut u8, SRAM_LEN) }
}

/// 800 MHz from the chip's own 64, and 200 for buses and PSRAM. The board feeds its processor from a converter beside the
/// chip: with any other setting of the supply it waits for a voltage that does not come.
fn clocks() -> Config {
    use rcc::{CpuClk, IcConfig, Icint, Icsel, Pll, Plldivm, Pllpdiv, Pllsel, SupplyConfig, SysClk, XspiClkSrc};
    let mut config = Config::default();
    config.rcc.supply_config = SupplyConfig::External;
    config.rcc.pll1 = Some(Pll::Oscillator {
        source: Pllsel::HSI,
        divm: Plldivm::DIV4,
        fractional: 0,
        divn: 50,
        divp1: Pllpdiv::DIV1,
        divp2: Pllpdiv::DIV1,
    });
    let of_pll1 = |divider| Some(IcConfig { source: Icsel::PLL1, divider });
    config.rcc.ic1 = of_pll1(Icint::DIV1);
    config.rcc.cpu = CpuClk::Ic1;
    config.rcc.ic2 = of_pll1(Icint::DIV4);
    config.rcc.ic6 = of_pll1(Icint::DIV4);
    config.rcc.ic11 = of_pll1(Icint::DIV4);
    config.rcc.sys = SysClk::Ic2;
    config.rcc.ic3 = of_pll1(Icint::DIV4);
    config.rcc.ic4 = of_pll1(Icint::DIV8);
    config.rcc.mux.xspi1sel = XspiClkSrc::IC3;
    config.rcc.mux.xspi2sel = XspiClkSrc::IC4;
    // The pins of PSRAM and flash.
    config.rcc.vddio2_1v8 = true;
    config.rcc.vddio3_1v8 = true;
    config
}

fn uart(usart: Peri<'static, USART1>, rx: Peri<'static, PE6>, tx: Peri<'static, PE5>) -> Uart<'static, Blocking> {
    Uart::new_blocking(usart, rx, tx, usart::Config::default()).expect("115200 baud can be had")
}

/// Tells the watchdog that the application is alive.
fn feed() {
    IWDG.kr().write(|w| w.set_key(embassy_stm32::pac::iwdg::vals::Key::RESET));
}

#[exception]
unsafe fn HardFault(frame: &ExceptionFrame) -> ! {
    panic!("hard fault: {frame:?}")
}

/// The console hears of it, so this is not panic-probe's; the watchdog then starts the board anew.
#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    cortex_m::interrupt::disable();
    defmt::error!("panic: {}", defmt::Display2Format(info));
    // SAFETY: nobody else comes to use it any more.
    let p = unsafe { Peripherals::steal() };
    let mut uart = uart(p.USART1, p.PE6, p.PE5);
    panic_line(|bytes| _ = uart.blocking_write(bytes), info);
    loop {
        cortex_m::asm::nop();
    }
}
