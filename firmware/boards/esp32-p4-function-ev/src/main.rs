//! Espressif's ESP32-P4-Function-EV-Board: RISC-V at 360 MHz; the model on the microSD card, the arena in PSRAM.
//!
//! ```text
//! 0x4000_0000  flash 16 MiB   code, as the boot loader maps it
//! 0x4800_0000  PSRAM 32 MiB   arena
//! 0x4ff0_0000  SRAM 768 KiB   data, what the card is read into, stack
//! ```
//!
//! The console is UART0, which the board shows as a serial port on its USB-UART connector: 115200 baud, 8 bits, no parity.
//! Log lines go through RTT.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

mod sdmmc;

use core::panic::PanicInfo;
use core::slice;

use defmt_rtt as _;
use esp_hal::dma::aligned::InternalMemory;
use esp_hal::peripherals::{PMU, Peripherals, TIMG0};
use esp_hal::psram::{Psram, PsramConfig};
use esp_hal::sdmmc::{Config as SdConfig, SdHostController, SlotConfig};
use esp_hal::time::{Duration, Instant};
use esp_hal::timer::timg::{MwdtStage, Wdt};
use esp_hal::uart::{self, Uart};
use esp_hal::{Blocking, Config, clock::CpuClock, delay::Delay, system};
use gptrickle_firmware::stack::Stack;
use gptrickle_firmware::storage::block::BLOCK;
use gptrickle_firmware::storage::disk::Disk;
use gptrickle_firmware::storage::sd_host::SdHost;
use gptrickle_firmware::storage::watched::Watched;
use gptrickle_firmware::{Board, panic_line, run};
use static_cell::{ConstStaticCell, StaticCell};

use sdmmc::Sdmmc;

/// Longer than any chunk of a model takes to multiply.
const WATCHDOG: Duration = Duration::from_secs(20);
/// The supply of the card's pins takes a moment.
const POWER_UP_US: u32 = 1_000;

/// What the card is read into, in whole lines of the cache.
static BUFFERS: ConstStaticCell<[Buffer; 2]> = ConstStaticCell::new([const { Buffer([0; 64 << 10]) }; 2]);
static BLOCK_BUFFER: StaticCell<InternalMemory<[u8; BLOCK]>> = StaticCell::new();
static CONTROLLER: StaticCell<SdHostController<'static>> = StaticCell::new();

#[repr(align(64))]
struct Buffer([u8; 64 << 10]);

esp_bootloader_esp_idf::esp_app_desc!();

struct Esp32P4FunctionEv {
    uart: Uart<'static, Blocking>,
    stack: Stack,
}

impl Board for Esp32P4FunctionEv {
    const NAME: &'static str = "esp32-p4-function-ev";

    fn read(&mut self) -> Option<u8> {
        feed();
        let mut byte = [0];
        // A byte that came damaged is none.
        (self.uart.read_buffered(&mut byte) == Ok(1)).then_some(byte[0])
    }

    fn write(&mut self, bytes: &[u8]) {
        write(&mut self.uart, bytes);
    }

    fn micros(&mut self) -> u64 {
        Instant::now().duration_since_epoch().as_micros()
    }

    fn stack_used(&self) -> usize {
        self.stack.used()
    }

    fn exit(&mut self, _code: i32) -> ! {
        // The last line is still on its way.
        let _ = self.uart.flush();
        system::software_reset()
    }
}

#[esp_hal::main]
fn main() -> ! {
    unsafe extern "C" {
        static mut _stack_end: u32;
        static mut _stack_start: u32;
    }
    // SAFETY: between these two of esp-hal's symbols lies the stack, and no interrupt or core uses another part of it.
    let stack = unsafe { Stack::paint(&raw mut _stack_end, &raw mut _stack_start) };
    let p = esp_hal::init(Config::default().with_cpu_clock(CpuClock::max()));
    let board = Esp32P4FunctionEv { uart: uart(), stack };

    let (start, len) = Psram::new(p.PSRAM, PsramConfig::default()).raw_parts();
    defmt::info!("{} bytes of PSRAM", len);
    // SAFETY: the PSRAM is mapped, and nothing else uses it; without one there are no bytes.
    let arena = if len == 0 { &mut [][..] } else { unsafe { slice::from_raw_parts_mut(start, len) } };

    power_card();
    let controller = SdHostController::new(p.SDHOST, SdConfig::default()).expect("these are valid settings");
    let slot = CONTROLLER.init(controller).slot(SlotConfig::default()).expect("nobody else takes it");
    let slot = slot.with_clk(p.GPIO43).with_cmd(p.GPIO44).with_data0(p.GPIO39).with_data1(p.GPIO40);
    let slot = slot.with_data2(p.GPIO41).with_data3(p.GPIO42);
    let card = SdHost::new(Sdmmc::new(slot, BLOCK_BUFFER.init(InternalMemory::new([0; BLOCK]))));
    let disk = Disk::new(card, BUFFERS.take().each_mut().map(|buffer| buffer.0.as_mut_slice()));

    let mut watchdog = Wdt::<TIMG0<'static>>::new();
    watchdog.enable();
    watchdog.set_timeout(MwdtStage::Stage0, WATCHDOG);

    run(board, Watched::new(disk, feed), arena)
}

/// Lets the chip's fourth regulator, which feeds the card's pins, pass on its own 3.3 V.
fn power_card() {
    PMU::regs().ext_ldo_p1_0p2a().modify(|_, w| {
        w._0p2a_force_tieh_sel_1().set_bit();
        w._0p2a_tieh_1().set_bit();
        w._0p2a_xpd_1().set_bit()
    });
    Delay::new().delay_micros(POWER_UP_US);
}

fn uart() -> Uart<'static, Blocking> {
    // SAFETY: only this function takes UART0 and its pins: for `main`, and after it for the panic handler.
    let p = unsafe { Peripherals::steal() };
    let uart = Uart::new(p.UART0, uart::Config::default()).expect("115200 baud can be had");
    uart.with_tx(p.GPIO37).with_rx(p.GPIO38)
}

/// Writes all of it: the UART takes what its FIFO has room for.
fn write(uart: &mut Uart<'static, Blocking>, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        // It has no way to fail.
        let written = uart.write(bytes).unwrap_or(bytes.len());
        bytes = &bytes[written..];
    }
}

/// Tells the watchdog that the application is alive.
fn feed() {
    Wdt::<TIMG0<'static>>::new().feed();
}

/// The console hears of it; the watchdog then starts the board anew.
#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    defmt::error!("panic: {}", defmt::Display2Format(info));
    let mut uart = uart();
    panic_line(|bytes| write(&mut uart, bytes), info);
    loop {
        core::hint::spin_loop();
    }
}
