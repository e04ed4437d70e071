//! Raspberry Pi 3, Zero 2 W and 4, without an operating system: four Cortex-A53 or A72, the model on the SD card, the arena
//! in RAM.
//!
//! ```text
//! 0x0000_0000  RAM             0x0008_0000: image, stack, buffers, arena │ … │ 436 MiB, on the smallest of them
//! 0x3f00_3000  system timer    clock, 1 MHz
//! 0x3f00_7000  DMA             carries the card's blocks
//! 0x3f20_0000  GPIO            which pins are the console's and the card's
//! 0x3f20_1000  PL011 UART      console, on the header's pins 8 and 10
//! 0x3f30_0000  SDHCI           the card
//! 0x3f34_0000  SDHCI           the card of a Raspberry Pi 4
//! ```
//!
//! On a Raspberry Pi 4 the registers lie 0xbf00_0000 higher; the page table shows them here.
//!
//! The emulator ends by semihosting; a board stands still. Target `aarch64-unknown-none` with `-C target-cpu=cortex-a53`
//! and `-C target-feature=-strict-align`: with MMU and caches on, unaligned loads are fine, and without them the kernels
//! run at a sixth of their speed. The emulator takes a card whose size is a power of 2.
//!
//! ```text
//! qemu-system-aarch64 -machine raspi3b -display none -serial stdio -monitor none -semihosting \
//!     -drive file=IMAGE,if=sd,format=raw -kernel gptrickle-raspi
//! ```

#![no_std]
#![no_main]
#![allow(unsafe_code)]

mod dma;
mod other_cores;
mod sdhci;

use core::arch::{asm, global_asm};
use core::ops::RangeInclusive;
use core::panic::PanicInfo;

use aarch64_rt::{DEFAULT_MAIR, DEFAULT_SCTLR, DEFAULT_TCR, ExceptionHandlers, InitialPagetable, RegisterStateRef};
use aarch64_rt::{entry, exception_handlers, initial_pagetable};
use gptrickle_firmware::stack::Stack;
use gptrickle_firmware::storage::block::BlockDevice;
use gptrickle_firmware::storage::disk::Disk;
use gptrickle_firmware::storage::sd_host::SdHost;
use gptrickle_firmware::uart::pl011::Pl011;
use gptrickle_firmware::{Board, Team, panic_line, run};
use semihosting::process;
use static_cell::ConstStaticCell;

use dma::{Control, Dma};
use sdhci::Sdhci;

const TIMER_LOW: usize = 0x3f00_3004;
const TIMER_HIGH: usize = 0x3f00_3008;
const DMA: usize = 0x3f00_7000;
/// One that the firmware leaves free.
const DMA_CHANNEL: usize = 5;
const GPIO: usize = 0x3f20_0000;
const UART: usize = 0x3f20_1000;
const UART_CLOCK_HZ: u32 = 48_000_000;
const SDHCI: usize = 0x3f30_0000;
/// At most.
const SDHCI_HZ: u32 = 250_000_000;
const SDHCI_PI_4: usize = 0x3f34_0000;
const SDHCI_PI_4_HZ: u32 = 100_000_000;

/// As much as GPT-2 XL needs for half its context in f16; more would only take longer to clear.
static ARENA: ConstStaticCell<[u8; 256 << 20]> = ConstStaticCell::new([0; 256 << 20]);
/// What the card is read into, and what the DMA is told.
static BUFFERS: ConstStaticCell<[Buffer; 2]> = ConstStaticCell::new([const { Buffer([0; 256 << 10]) }; 2]);
static CONTROL: ConstStaticCell<Control> = ConstStaticCell::new(Control::new());

/// Whole lines of the cache.
#[repr(align(64))]
struct Buffer([u8; 256 << 10]);

// Blocks of 2 MiB, RAM and then registers. Bit 10: accessed; 9:8: inner shareable; 4:2: the default attributes' index;
// 54, 53: never executed.
const BLOCK: usize = 2 << 20;
const REGISTERS: usize = 0x3f00_0000;
const DEVICE: usize = 1 << 54 | 1 << 53 | 1 << 10 | 0b01;
const MEMORY: usize = 1 << 10 | 0b11 << 8 | 1 << 2 | 0b01;
/// With addresses of 30 bits the one table is of level 2, whose blocks are small enough to tell RAM from registers.
const TCR: u64 = DEFAULT_TCR & !0x3f | (64 - 30);

initial_pagetable!(
    {
        let mut table = [0; 512];
        let mut i = 0;
        while i < table.len() {
            table[i] = (i * BLOCK) | if i * BLOCK < REGISTERS { MEMORY } else { DEVICE };
            i += 1;
        }
        InitialPagetable(table)
    },
    DEFAULT_MAIR,
    DEFAULT_SCTLR,
    TCR
);

global_asm!(
    include_str!("boot.s"),
    table = sym INITIAL_PAGETABLE,
    registers = const REGISTERS,
    moved = const 0xfe00_0000u32 - REGISTERS as u32,
    stacks = sym other_cores::STACKS,
    stack = const other_cores::STACK,
    serve = sym other_cores::serve,
);

struct Raspi {
    uart: Pl011,
    stack: Stack,
}

impl Board for Raspi {
    const NAME: &'static str = "raspi";

    fn read(&mut self) -> Option<u8> {
        self.uart.read()
    }

    fn write(&mut self, bytes: &[u8]) {
        self.uart.write(bytes);
    }

    fn micros(&mut self) -> u64 {
        micros()
    }

    fn stack_used(&self) -> usize {
        self.stack.used()
    }

    fn team(&self) -> &'static dyn Team {
        &other_cores::CORES
    }

    fn exit(&mut self, code: i32) -> ! {
        process::exit(code)
    }
}

entry!(main);

fn main(_: u64, _: u64, _: u64, _: u64) -> ! {
    unsafe extern "C" {
        static mut boot_stack_begin: u32;
        static mut boot_stack_end: u32;
    }
    // Round to nearest, keep subnormals: the bits are the same on every board.
    // SAFETY: that is what Rust expects of the float unit.
    unsafe { asm!("msr fpcr, xzr", options(nomem, nostack)) };
    // SAFETY: between these two of aarch64-rt's symbols lies the stack, and the other cores sleep.
    let stack = unsafe { Stack::paint(&raw mut boot_stack_begin, &raw mut boot_stack_end) };
    // Function 0.
    pins(14..=15, 0b100);
    let board = Raspi { uart: uart(), stack };
    other_cores::call();
    let disk = Disk::new(card(), BUFFERS.take().each_mut().map(|buf| buf.0.as_mut_slice()));

    run(board, disk, ARENA.take())
}

/// The card's controller: a Raspberry Pi 4 has one of its own for it, with its own pins, without a way to the DMA. The one
/// of a 3 is there too, and QEMU has the card in it.
fn card() -> SdHost<Sdhci> {
    if is_pi_4() {
        // SAFETY: the controller is there, and nothing else uses it.
        let mut card = SdHost::new(unsafe { Sdhci::new(SDHCI_PI_4, SDHCI_PI_4_HZ, None) });
        if card.connect().is_ok() {
            return card;
        }
    }
    // Function 3.
    pins(48..=53, 0b111);
    // SAFETY: the controllers are there, and nothing else uses them.
    SdHost::new(unsafe { Sdhci::new(SDHCI, SDHCI_HZ, Some(Dma::new(DMA, DMA_CHANNEL, CONTROL.take()))) })
}

/// Whether the cores are those of a Raspberry Pi 4.
fn is_pi_4() -> bool {
    const CORTEX_A72: u64 = 0xd08;
    let midr: u64;
    // SAFETY: this register can be read at any time.
    unsafe { asm!("mrs {}, midr_el1", out(reg) midr, options(nomem, nostack)) };
    midr >> 4 & 0xfff == CORTEX_A72
}

/// Gives pins a function.
fn pins(pins: RangeInclusive<usize>, function: u32) {
    for pin in pins {
        let (register, shift) = ((GPIO + pin / 10 * 4) as *mut u32, pin % 10 * 3);
        // SAFETY: the GPIO's function registers, ten pins each; nothing else uses them.
        unsafe { register.write_volatile(register.read_volatile() & !(0b111 << shift) | function << shift) };
    }
}

/// Microseconds since the machine was switched on.
fn micros() -> u64 {
    // SAFETY: the timer can be read at any time.
    let read = |register: usize| u64::from(unsafe { (register as *const u32).read_volatile() });
    loop {
        let high = read(TIMER_HIGH);
        let low = read(TIMER_LOW);
        if high == read(TIMER_HIGH) {
            return high << 32 | low;
        }
    }
}

fn uart() -> Pl011 {
    // SAFETY: the UART is there, and only this file uses it: `main`, and after it the panic handler.
    unsafe { Pl011::new(UART, UART_CLOCK_HZ, 115_200) }
}

/// What the emulator takes for a call, and a board does not know: `hlt #0xf000`.
const SEMIHOSTING_CALL: u32 = 0xd45e_0000;

/// On a board nobody hears that the program has ended.
fn halt() -> ! {
    uart().write(b"# halted: switch it off and on to start anew\n");
    loop {
        // SAFETY: it waits, with interrupts masked.
        unsafe { asm!("wfi", options(nomem, nostack)) };
    }
}

struct Exceptions;

exception_handlers!(Exceptions);

impl ExceptionHandlers for Exceptions {
    extern "C" fn sync_current(state: RegisterStateRef<'_>) {
        // SAFETY: the instruction that did not go well has been read before.
        if unsafe { (state.elr as *const u32).read() } == SEMIHOSTING_CALL {
            halt();
        }
        let (syndrome, address): (u64, u64);
        // SAFETY: these registers can be read at any time.
        unsafe {
            asm!("mrs {}, esr_el1", "mrs {}, far_el1", out(reg) syndrome, out(reg) address, options(nomem, nostack))
        };
        panic!("exception {syndrome:#x} at {:#x}, address {address:#x}", state.elr)
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let mut uart = uart();
    panic_line(|bytes| uart.write(bytes), info);
    process::exit(101)
}
