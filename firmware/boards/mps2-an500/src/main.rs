//! Arm MPS2 with the AN500 image: Cortex-M7; a model of up to 16 MiB in PSRAM, a larger one in a host's file.
//!
//! ```text
//! 0x0000_0000  SSRAM1    4 MiB   code
//! 0x2000_0000  SSRAM2+3  4 MiB   data, arena for a model in PSRAM, stack
//! 0x6000_0000  PSRAM    16 MiB   model │ … │ its length (u64, little-endian), in the last 8 bytes; or arena
//! ```
//!
//! A length of 0 means that there is no model in PSRAM: it is read through semihosting, and PSRAM is the arena.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::panic::PanicInfo;
use core::slice;

use cortex_m::Peripherals;
use cortex_m_rt::{ExceptionFrame, entry, exception};
use gptrickle_firmware::stack::Stack;
use gptrickle_firmware::storage::host_file::HostFile;
use gptrickle_firmware::storage::mapped::Mapped;
use gptrickle_firmware::systick::SysTick;
use gptrickle_firmware::uart::cmsdk::Cmsdk;
use gptrickle_firmware::{Board, panic_line, run};
use semihosting::process;
use static_cell::ConstStaticCell;

const CLOCK_HZ: u32 = 25_000_000;
const UART0: usize = 0x4000_4000;
const PSRAM: usize = 0x6000_0000;
const PSRAM_LEN: usize = 16 << 20;
/// Where the model's length stands.
const MODEL_LEN: usize = PSRAM + PSRAM_LEN - 8;

/// What a model in PSRAM gets: it leaves half a megabyte of SSRAM to the stack.
static ARENA: ConstStaticCell<[u8; 3584 << 10]> = ConstStaticCell::new([0; 3584 << 10]);

/// The longest chunk of a host's file: one whole row of the widest matrix of GPT-2 XL in F32, and more.
static BUFFER: ConstStaticCell<[u8; 64 << 10]> = ConstStaticCell::new([0; 64 << 10]);

struct Mps2An500 {
    uart: Cmsdk,
    clock: SysTick,
    stack: Stack,
}

impl Board for Mps2An500 {
    const NAME: &'static str = "mps2-an500";

    fn read(&mut self) -> Option<u8> {
        self.uart.read()
    }

    fn write(&mut self, bytes: &[u8]) {
        self.uart.write(bytes);
    }

    fn micros(&mut self) -> u64 {
        self.clock.micros()
    }

    fn stack_used(&self) -> usize {
        self.stack.used()
    }

    fn exit(&mut self, code: i32) -> ! {
        process::exit(code)
    }
}

#[entry]
fn main() -> ! {
    let stack = Stack::paint_cortex_m();
    let peripherals = Peripherals::take().expect("nobody else takes them");
    let board = Mps2An500 { uart: uart(), clock: SysTick::start(peripherals.SYST, CLOCK_HZ), stack };

    // SAFETY: PSRAM can be read from reset on, and the length is an aligned word of it.
    let len = unsafe { (MODEL_LEN as *const u64).read_volatile() };
    if len == 0 {
        let model = HostFile::new(BUFFER.take());
        // SAFETY: PSRAM is there, any bytes are bytes, and with no model in it nothing else uses it.
        let arena = unsafe { slice::from_raw_parts_mut(PSRAM as *mut u8, PSRAM_LEN) };
        run(board, model, arena)
    } else {
        // SAFETY: PSRAM can be read from reset on, and nothing writes it.
        let model = unsafe { Mapped::at(PSRAM as *const u8, PSRAM_LEN - 8, len) };
        run(board, model, ARENA.take())
    }
}

fn uart() -> Cmsdk {
    // SAFETY: UART0 of AN500 is there, and only this file uses it: `main`, and after it the panic handler.
    unsafe { Cmsdk::new(UART0, CLOCK_HZ, 115_200) }
}

#[exception]
unsafe fn HardFault(frame: &ExceptionFrame) -> ! {
    panic!("hard fault: {frame:?}")
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let mut uart = uart();
    panic_line(|bytes| uart.write(bytes), info);
    process::exit(101)
}
