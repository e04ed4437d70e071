//! Pimoroni's Pico Plus 2: RP2350B, two Cortex-M33 at 150 MHz; the model in flash, or else on a microSD card; the arena in
//! PSRAM.
//!
//! ```text
//! 0x1000_0000  flash    1 MiB   code
//! 0x1010_0000  flash   15 MiB   model │ … │ its length (u64, little-endian), in the last 8 bytes
//! 0x1100_0000  PSRAM    8 MiB   arena
//! 0x2000_0000  SRAM   512 KiB   data, what the card is read into, the cores' stacks
//! ```
//!
//! The console is UART0, on GP0 (out) and GP1 (in): 115200 baud, 8 bits, no parity. Log lines go through RTT. A card is
//! wired to SPI1: GP8 from the card, GP9 its select line, GP10 clock, GP11 to the card.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::panic::PanicInfo;
use core::slice;

use cortex_m::peripheral::SCB;
use cortex_m_rt::{ExceptionFrame, entry, exception};
use defmt_rtt as _;
use embassy_rp::gpio::{Level, Output};
use embassy_rp::multicore::{self, spawn_core1};
use embassy_rp::pac::WATCHDOG;
use embassy_rp::peripherals::{PIN_0, PIN_1, SPI1, UART0};
use embassy_rp::psram::{self, Psram};
use embassy_rp::qmi_cs1::QmiCs1;
use embassy_rp::spi::{self, Spi};
use embassy_rp::uart::{self, Blocking, Uart};
use embassy_rp::watchdog::Watchdog;
use embassy_rp::{Peri, Peripherals};
use embassy_time::{Duration, Instant};
use embedded_hal_nb::serial::Read;
use gptrickle_firmware::cores::Cores;
use gptrickle_firmware::stack::Stack;
use gptrickle_firmware::storage::disk::Disk;
use gptrickle_firmware::storage::mapped::Mapped;
use gptrickle_firmware::storage::sd_spi::{Bus, SdSpi};
use gptrickle_firmware::storage::watched::Watched;
use gptrickle_firmware::{Board, Team, panic_line, run};
use static_cell::ConstStaticCell;

const MODEL: usize = 0x1010_0000;
const MODEL_ROOM: usize = 15 << 20;
/// Where the model's length stands.
const MODEL_LEN: usize = MODEL + MODEL_ROOM - 8;
/// Longer than any chunk of a model takes to multiply, and as long as the watchdog can wait.
const WATCHDOG_US: u32 = 16_000_000;

/// What the card is read into.
static BUFFERS: ConstStaticCell<[[u8; 32 << 10]; 2]> = ConstStaticCell::new([[0; 32 << 10]; 2]);

/// The second core's.
static STACK: ConstStaticCell<multicore::Stack<{ 32 << 10 }>> = ConstStaticCell::new(multicore::Stack::new());

/// The application's core, and the one that takes rows from it.
static CORES: Cores<1> = Cores::new();

struct PicoPlus2 {
    uart: Uart<'static, Blocking>,
    stack: Stack,
}

impl Board for PicoPlus2 {
    const NAME: &'static str = "pico-plus-2";

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
        Instant::now().as_micros()
    }

    fn stack_used(&self) -> usize {
        self.stack.used()
    }

    fn team(&self) -> &'static dyn Team {
        &CORES
    }

    fn exit(&mut self, _code: i32) -> ! {
        // The last line is still on its way.
        let _ = self.uart.blocking_flush();
        SCB::sys_reset()
    }
}

/// SPI1, and the card's select line.
struct CardBus {
    spi: Spi<'static, SPI1, spi::Blocking>,
    select: Output<'static>,
}

impl Bus for CardBus {
    fn select(&mut self, on: bool) {
        self.select.set_level(if on { Level::Low } else { Level::High });
    }

    fn set_hz(&mut self, hz: u32) {
        self.spi.set_frequency(hz);
    }

    fn send(&mut self, bytes: &[u8]) {
        // The bus has no way to fail: what the card says is looked at by the caller.
        let _ = self.spi.blocking_write(bytes);
    }

    fn receive(&mut self, bytes: &mut [u8]) {
        bytes.fill(0xff);
        let _ = self.spi.blocking_transfer_in_place(bytes);
    }
}

#[entry]
fn main() -> ! {
    let stack = Stack::paint_cortex_m();
    let p = embassy_rp::init(Default::default());
    let board = PicoPlus2 { uart: uart(p.UART0, p.PIN_0, p.PIN_1), stack };
    defmt::info!("clocks run");

    let psram = Psram::new(QmiCs1::new(p.QMI_CS1, p.PIN_47), psram::Config::aps6404l());
    let psram = psram.expect("the PSRAM on GPIO 47 answers");
    defmt::info!("PSRAM of {=usize} bytes runs", psram.size());
    spawn_core1(p.CORE1, STACK.take(), || CORES.serve(0));

    let mut watchdog = Watchdog::new(p.WATCHDOG);
    watchdog.pause_on_debug(true); // halted by a debugger, it is not dead
    watchdog.start(Duration::from_micros(WATCHDOG_US.into()));

    // A static slice, and no heap: the one allocation there would be is all of the PSRAM, for good.
    // SAFETY: the PSRAM runs and is memory, any bytes are bytes, and nothing else uses it.
    let arena = unsafe { slice::from_raw_parts_mut(psram.base_address(), psram.size()) };
    // SAFETY: the flash is mapped from reset on, and the length is an aligned word of it.
    let len = unsafe { (MODEL_LEN as *const u64).read_volatile() };
    if matches!(len, 0 | u64::MAX) {
        let spi = Spi::new_blocking(p.SPI1, p.PIN_10, p.PIN_11, p.PIN_8, spi::Config::default());
        let card = SdSpi::new(CardBus { spi, select: Output::new(p.PIN_9, Level::High) });
        let disk = Disk::new(card, BUFFERS.take().each_mut().map(|buffer| buffer.as_mut_slice()));
        run(board, Watched::new(disk, feed), arena)
    } else {
        // SAFETY: the flash is mapped, and nothing writes it.
        let model = unsafe { Mapped::at(MODEL as *const u8, MODEL_ROOM - 8, len) };
        run(board, Watched::new(model, feed), arena)
    }
}

fn uart(uart: Peri<'static, UART0>, tx: Peri<'static, PIN_0>, rx: Peri<'static, PIN_1>) -> Uart<'static, Blocking> {
    Uart::new_blocking(uart, tx, rx, uart::Config::default())
}

/// Tells the watchdog that the application is alive.
fn feed() {
    WATCHDOG.load().write(|w| w.set_load(WATCHDOG_US));
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
    let mut uart = uart(p.UART0, p.PIN_0, p.PIN_1);
    panic_line(|bytes| _ = uart.blocking_write(bytes), info);
    loop {
        cortex_m::asm::nop();
    }
}
