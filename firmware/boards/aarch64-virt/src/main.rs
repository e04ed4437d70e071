//! QEMU's Arm machine: AArch64, the model on a virtio disk, the arena in as much RAM as `-m` gives.
//!
//! ```text
//! 0x0900_0000  PL011 UART      console
//! 0x0a00_0000  virtio × 32     the disk is one of them: a card image with a FAT volume, or the bare GGUF file
//! 0x4000_0000  RAM             device tree │ 0x4020_0000: image, stack (2 MiB) │ heap: buffers, arena
//! ```
//!
//! The clock is the processor's own; the emulator ends by semihosting. Target `aarch64-unknown-none` with
//! `-C target-feature=-strict-align`: with MMU and caches on, unaligned loads are fine, and without them the kernels
//! run at a sixth of their speed.
//!
//! ```text
//! qemu-system-aarch64 -machine virt -cpu cortex-a76 -m 512M -nographic -nic none -semihosting \
//!     -drive file=IMAGE,if=none,format=raw,readonly=on,id=card -device virtio-blk-device,drive=card \
//!     -kernel gptrickle-aarch64-virt
//! ```

#![no_std]
#![no_main]
#![allow(unsafe_code)]

extern crate alloc;

use alloc::vec;
use core::arch::asm;
use core::panic::PanicInfo;

use aarch64_rt::{ExceptionHandlers, InitialPagetable, RegisterStateRef, entry, exception_handlers, initial_pagetable};
use embedded_alloc::LlffHeap as Heap;
use gptrickle_firmware::stack::Stack;
use gptrickle_firmware::storage::disk::Disk;
use gptrickle_firmware::storage::virtio::{VirtioDisk, Windows};
use gptrickle_firmware::uart::pl011::Pl011;
use gptrickle_firmware::{Board, device_tree, panic_line, run};
use semihosting::process;

const UART: usize = 0x0900_0000;
const UART_CLOCK_HZ: u32 = 24_000_000;
const VIRTIO: Windows = Windows { base: 0x0a00_0000, stride: 0x200, count: 32 };
const RAM: usize = 0x4000_0000;
/// Where the linker's part of the RAM ends: see memory.x.
const IMAGE_END: usize = 0x4040_0000;
/// How much RAM there is when no device tree says.
const RAM_AT_LEAST: usize = 128 << 20;
/// What the page table maps of it.
const RAM_AT_MOST: usize = 1 << 30;
/// As much as GPT-2 XL needs for half its context in f16; more would only take longer to clear.
const MAX_ARENA: usize = 256 << 20;
/// Each of the two buffers that the disk reads into.
const BUFFER: usize = 256 << 10;
/// What the heap keeps for itself, generously.
const HEAP_OVERHEAD: usize = 1 << 10;

// Blocks of 1 GiB: registers, then RAM. Bit 10: accessed; 9:8: inner shareable; 4:2: the default attributes' index;
// 54, 53: never executed.
const DEVICE: usize = 1 << 54 | 1 << 53 | 1 << 10 | 0b01;
const MEMORY: usize = 1 << 10 | 0b11 << 8 | 1 << 2 | 0b01;

initial_pagetable!({
    let mut table = [0; 512];
    table[0] = DEVICE;
    table[1] = RAM | MEMORY;
    InitialPagetable(table)
});

#[global_allocator]
static HEAP: Heap = Heap::empty();

struct Aarch64Virt {
    uart: Pl011,
    stack: Stack,
}

impl Board for Aarch64Virt {
    const NAME: &'static str = "aarch64-virt";

    fn read(&mut self) -> Option<u8> {
        self.uart.read()
    }

    fn write(&mut self, bytes: &[u8]) {
        self.uart.write(bytes);
    }

    fn micros(&mut self) -> u64 {
        let (ticks, hz): (u64, u64);
        // SAFETY: these registers can be read at any time.
        unsafe {
            asm!("mrs {}, cntvct_el0", "mrs {}, cntfrq_el0", out(reg) ticks, out(reg) hz, options(nomem, nostack))
        };
        ticks / hz * 1_000_000 + ticks % hz * 1_000_000 / hz
    }

    fn stack_used(&self) -> usize {
        self.stack.used()
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
    // SAFETY: between these two of aarch64-rt's symbols lies the stack, and this core is the only one.
    let stack = unsafe { Stack::paint(&raw mut boot_stack_begin, &raw mut boot_stack_end) };
    let board = Aarch64Virt { uart: uart(), stack };

    let heap = RAM + ram_size() - IMAGE_END;
    // SAFETY: this is RAM that nothing else uses.
    unsafe { HEAP.init(IMAGE_END, heap) };
    // SAFETY: nothing else uses virtio, and the machine has one address space and coherent caches.
    let disk = unsafe { VirtioDisk::new(VIRTIO) };
    let disk = Disk::new(disk, [(); 2].map(|()| vec![0; BUFFER].leak()));
    let arena = vec![0; MAX_ARENA.min(HEAP.free() - HEAP_OVERHEAD)].leak();

    run(board, disk, arena)
}

fn ram_size() -> usize {
    // SAFETY: the machine puts its device tree at the start of the RAM, where nothing else is.
    let tree = unsafe { device_tree::at(RAM) };
    let size = tree.and_then(|tree| device_tree::ram_size(tree, RAM as u64));
    size.map_or(RAM_AT_LEAST, |size| size as usize).min(RAM_AT_MOST)
}

fn uart() -> Pl011 {
    // SAFETY: the UART is there, and only this file uses it: `main`, and after it the panic handler.
    unsafe { Pl011::new(UART, UART_CLOCK_HZ, 115_200) }
}

struct Exceptions;

exception_handlers!(Exceptions);

impl ExceptionHandlers for Exceptions {
    extern "C" fn sync_current(state: RegisterStateRef<'_>) {
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
