//! ST's STM32H747I-DISCO: Cortex-M7 at 400 MHz; the model in QSPI flash, or else on the microSD card; the arena in SDRAM.
//!
//! ```text
//! 0x0800_0000  flash        1 MiB   code (bank 2 is the Cortex-M4's, which stays idle)
//! 0x2400_0000  AXI SRAM   512 KiB   data, what the card is read into, stack
//! 0x3800_0000  SRAM4       64 KiB   what embassy keeps for the other processor
//! 0x9000_0000  QSPI flash 128 MiB   model │ … │ its length (u64, little-endian), in the last 8 bytes
//! 0xd000_0000  SDRAM       32 MiB   arena
//! ```
//!
//! The console is USART1, which ST-LINK shows as a serial port: 115200 baud, 8 bits, no parity. Log lines go through RTT.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

mod flash;
mod mpu;
mod sdmmc;

use core::mem::MaybeUninit;
use core::panic::PanicInfo;
use core::slice;

use cortex_m::peripheral::SCB;
use cortex_m_rt::{ExceptionFrame, entry, exception};
use defmt_rtt as _;
use embassy_stm32::mode::Blocking;
use embassy_stm32::pac::{DBGMCU, IWDG1};
use embassy_stm32::peripherals::{PA9, PA10, SDMMC1, USART1};
use embassy_stm32::qspi::Qspi;
use embassy_stm32::sdmmc::Sdmmc as Pins;
use embassy_stm32::time::Hertz;
use embassy_stm32::usart::{self, Uart};
use embassy_stm32::wdg::IndependentWatchdog;
use embassy_stm32::{Config, Peri, Peripherals, SharedData, bind_interrupts, fmc::Fmc, rcc, sdmmc as embassy_sdmmc};
use embedded_hal::delay::DelayNs;
use embedded_hal_nb::serial::Read;
use gptrickle_firmware::stack::Stack;
use gptrickle_firmware::storage::disk::Disk;
use gptrickle_firmware::storage::mapped::Mapped;
use gptrickle_firmware::storage::sd_host::SdHost;
use gptrickle_firmware::storage::watched::Watched;
use gptrickle_firmware::systick::SysTick;
use gptrickle_firmware::{Board, panic_line, run};
use static_cell::ConstStaticCell;
use stm32_fmc::devices::is42s32800g_6::Is42s32800g;

use sdmmc::Sdmmc;

/// The processor's.
const CLOCK_HZ: u32 = 400_000_000;
const FLASH: usize = 0x9000_0000;
const FLASH_LEN: usize = 128 << 20;
/// Where the model's length stands.
const MODEL_LEN: usize = FLASH + FLASH_LEN - 8;
const SDRAM_LEN: usize = 32 << 20;
/// Longer than any chunk of a model takes to multiply.
const WATCHDOG_US: u32 = 20_000_000;

/// What the card is read into, and in whole lines of the cache.
static BUFFERS: ConstStaticCell<[Buffer; 2]> = ConstStaticCell::new([const { Buffer([0; 64 << 10]) }; 2]);

#[repr(align(32))]
struct Buffer([u8; 64 << 10]);

const _: () = assert!(align_of::<Buffer>() == sdmmc::CACHE_LINE);

#[unsafe(link_section = ".sram4")]
static SHARED: MaybeUninit<SharedData> = MaybeUninit::uninit();

bind_interrupts!(struct Interrupts {
    SDMMC1 => embassy_sdmmc::InterruptHandler<SDMMC1>;
});

struct Stm32H747iDisco {
    uart: Uart<'static, Blocking>,
    clock: SysTick,
    stack: Stack,
}

impl Board for Stm32H747iDisco {
    const NAME: &'static str = "stm32h747i-disco";

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
    mpu::hide_flash(&mut core.MPU);
    let p = embassy_stm32::init_primary(clocks(), &SHARED);
    let uart = uart(p.USART1, p.PA10, p.PA9);
    let clock = SysTick::start(core.SYST, CLOCK_HZ);
    let board = Stm32H747iDisco { uart, clock, stack };
    defmt::info!("clocks run");

    #[rustfmt::skip]
    let mut sdram = Fmc::sdram_a12bits_d32bits_4banks_bank2(p.FMC,
        p.PF0, p.PF1, p.PF2, p.PF3, p.PF4, p.PF5, p.PF12, p.PF13, p.PF14, p.PF15, p.PG0, p.PG1, // addresses
        p.PG4, p.PG5, // banks
        p.PD14, p.PD15, p.PD0, p.PD1, p.PE7, p.PE8, p.PE9, p.PE10, p.PE11, p.PE12, p.PE13, p.PE14, p.PE15, p.PD8, p.PD9,
        p.PD10, p.PH8, p.PH9, p.PH10, p.PH11, p.PH12, p.PH13, p.PH14, p.PH15, p.PI0, p.PI1, p.PI2, p.PI3, p.PI6, p.PI7,
        p.PI9, p.PI10, // data
        p.PE0, p.PE1, p.PI4, p.PI5, // which bytes
        p.PH7, p.PG8, p.PG15, p.PH6, p.PF11, p.PH5, // clock and commands
        Is42s32800g {});
    let arena = sdram.init(&mut Delay).cast::<u8>();
    defmt::info!("SDRAM runs");

    flash::second_chip([p.PH2.into(), p.PH3.into(), p.PG9.into(), p.PG14.into()]);
    let config = flash::config();
    flash::map(Qspi::new_blocking_bank1(p.QUADSPI, p.PD11, p.PF9, p.PF7, p.PF6, p.PF10, p.PG6, config));
    mpu::describe(&mut core.MPU);
    core.SCB.enable_icache();
    core.SCB.enable_dcache(&mut core.CPUID);
    defmt::info!("flash is mapped");

    DBGMCU.apb4fzr1().modify(|w| w.set_iwdg1(true)); // halted by a debugger, it is not dead
    IndependentWatchdog::new(p.IWDG1, WATCHDOG_US).unleash();

    // A static slice, and no heap: the one allocation there would be is all of the SDRAM, for good.
    // SAFETY: the SDRAM runs and is memory, any bytes are bytes, and nothing else uses it.
    let arena = unsafe { slice::from_raw_parts_mut(arena, SDRAM_LEN) };
    // SAFETY: the flash is mapped, and the length is an aligned word of it.
    let len = unsafe { (MODEL_LEN as *const u64).read_volatile() };
    if matches!(len, 0 | u64::MAX) {
        // embassy sets pins and clock; commands and DMA are ours, as its reads end before they return.
        core::mem::forget(Pins::new_4bit(
            p.SDMMC1,
            Interrupts,
            p.PC12,
            p.PD2,
            p.PC8,
            p.PC9,
            p.PC10,
            p.PC11,
            embassy_sdmmc::Config::default(),
        ));
        let hz = rcc::frequency::<SDMMC1>().0;
        // SAFETY: see above.
        let card = SdHost::new(unsafe { Sdmmc::new(hz) });
        let disk = Disk::new(card, BUFFERS.take().each_mut().map(|buffer| buffer.0.as_mut_slice()));
        run(board, Watched::new(disk, feed), arena)
    } else {
        // SAFETY: the flash is mapped, and nothing writes it.
        let model = unsafe { Mapped::at(FLASH as *const u8, FLASH_LEN - 8, len) };
        run(board, Watched::new(model, feed), arena)
    }
}

/// 400 MHz from the 25 MHz crystal, and 200 for buses, SDRAM, flash and card. The board feeds its processor from the
/// chip's own converter: any other setting of the supply locks it up until the next power-up.
fn clocks() -> Config {
    use rcc::{AHBPrescaler, APBPrescaler, Hse, HseMode, Pll, PllDiv, PllMul, PllPreDiv, PllSource};
    let mut config = Config::default();
    config.rcc.supply_config = rcc::SupplyConfig::DirectSMPS;
    config.rcc.voltage_scale = rcc::VoltageScale::Scale1;
    config.rcc.hse = Some(Hse { freq: Hertz(25_000_000), mode: HseMode::Oscillator });
    config.rcc.pll1 = Some(Pll {
        source: PllSource::HSE,
        prediv: PllPreDiv::DIV5,
        mul: PllMul::MUL160,
        divp: Some(PllDiv::DIV2),
        divq: Some(PllDiv::DIV4), // the card's controller
        divr: None,
    });
    config.rcc.sys = rcc::Sysclk::PLL1_P;
    config.rcc.ahb_pre = AHBPrescaler::DIV2;
    config.rcc.apb1_pre = APBPrescaler::DIV2;
    config.rcc.apb2_pre = APBPrescaler::DIV2;
    config.rcc.apb3_pre = APBPrescaler::DIV2;
    config.rcc.apb4_pre = APBPrescaler::DIV2;
    config
}

fn uart(usart: Peri<'static, USART1>, rx: Peri<'static, PA10>, tx: Peri<'static, PA9>) -> Uart<'static, Blocking> {
    Uart::new_blocking(usart, rx, tx, usart::Config::default()).expect("115200 baud can be had")
}

/// Tells the watchdog that the application is alive.
fn feed() {
    IWDG1.kr().write(|w| w.set_key(embassy_stm32::pac::iwdg::vals::Key::RESET));
}

/// The SDRAM's pauses.
struct Delay;

impl DelayNs for Delay {
    fn delay_ns(&mut self, ns: u32) {
        cortex_m::asm::delay(ns.div_ceil(1_000) * (CLOCK_HZ / 1_000_000));
    }
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
    let mut uart = uart(p.USART1, p.PA10, p.PA9);
    panic_line(|bytes| _ = uart.blocking_write(bytes), info);
    loop {
        cortex_m::asm::nop();
    }
}
