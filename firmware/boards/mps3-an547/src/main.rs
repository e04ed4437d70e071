//! Arm MPS3 with the AN547 image: Cortex-M55, model and arena in 2 GiB of DDR.
//!
//! ```text
//! 0x0000_0000  ITCM  512 KiB  code
//! 0x2000_0000  DTCM  512 KiB  data, stack
//! 0x6000_0000  DDR   2 GiB    model │ arena │ … │ model's length (u64, little-endian), in the last 8 bytes
//! ```
//!
//! Whoever loads the model also writes its length, so that the board knows where the arena starts.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

extern crate alloc;

use alloc::vec;
use core::panic::PanicInfo;

use cortex_m::Peripherals;
use cortex_m_rt::{ExceptionFrame, entry, exception};
use embedded_alloc::LlffHeap as Heap;
use gptrickle_firmware::stack::Stack;
use gptrickle_firmware::storage::mapped::Mapped;
use gptrickle_firmware::systick::SysTick;
use gptrickle_firmware::uart::cmsdk::Cmsdk;
use gptrickle_firmware::{ALIGN, Board, panic_line, run};
use semihosting::process;

const CLOCK_HZ: u32 = 32_000_000;
const UART0: usize = 0x5930_3000;
const DDR: usize = 0x6000_0000;
const DDR_LEN: usize = 2 << 30;
/// Where the model's length stands.
const MODEL_LEN: usize = DDR + DDR_LEN - 8;
/// As much as GPT-2 XL needs for half its context in f16; more would only take longer to clear.
const MAX_ARENA: usize = 256 << 20;
/// What the heap keeps for itself, generously.
const HEAP_OVERHEAD: usize = 1 << 10;

#[global_allocator]
static HEAP: Heap = Heap::empty();

struct Mps3An547 {
    uart: Cmsdk,
    clock: SysTick,
    stack: Stack,
}

impl Board for Mps3An547 {
    const NAME: &'static str = "mps3-an547";

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
    let board = Mps3An547 { uart: uart(), clock: SysTick::start(peripherals.SYST, CLOCK_HZ), stack };

    // SAFETY: DDR can be read from reset on, the length is an aligned word of it, and what `arena` takes starts after
    // the model.
    let model = unsafe { Mapped::at(DDR as *const u8, MODEL_LEN - DDR, (MODEL_LEN as *const u64).read_volatile()) };
    let arena = arena(DDR + model.bytes());

    run(board, model, arena)
}

/// What the model, which ends at `start`, leaves of the DDR, up to [`MAX_ARENA`].
fn arena(start: usize) -> &'static mut [u8] {
    let start = start.next_multiple_of(ALIGN);
    let size = (MODEL_LEN - start).min(MAX_ARENA);
    if size < HEAP_OVERHEAD {
        return &mut [];
    }
    // SAFETY: this is DDR that nothing else uses, and this function is called once.
    unsafe { HEAP.init(start, size) };
    vec![0; size - HEAP_OVERHEAD].leak()
}

fn uart() -> Cmsdk {
    // SAFETY: UART0 of AN547 is there, and only this file uses it: `main`, and after it the panic handler.
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
