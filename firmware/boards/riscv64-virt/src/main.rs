//! QEMU's RISC-V machine: RV64GC, the model on a virtio disk, the arena in as much RAM as `-m` gives.
//!
//! ```text
//! 0x0010_0000  test device     ends the emulation
//! 0x0200_0000  CLINT           clock: mtime, 10 MHz
//! 0x1000_0000  16550 UART      console
//! 0x1000_1000  virtio × 8      the disk is one of them: a card image with a FAT volume, or the bare GGUF file
//! 0x8000_0000  RAM             image, stack (2 MiB) │ heap: buffers, arena │ device tree
//! ```
//!
//! ```text
//! qemu-system-riscv64 -machine virt -bios none -m 512M -nographic \
//!     -drive file=IMAGE,if=none,format=raw,readonly=on,id=card -device virtio-blk-device,drive=card \
//!     -kernel gptrickle-riscv64-virt
//! ```

#![no_std]
#![no_main]
#![allow(unsafe_code)]

extern crate alloc;

use alloc::vec;
use core::panic::PanicInfo;

use embedded_alloc::LlffHeap as Heap;
use gptrickle_firmware::stack::Stack;
use gptrickle_firmware::storage::disk::Disk;
use gptrickle_firmware::storage::virtio::{VirtioDisk, Windows};
use gptrickle_firmware::uart::ns16550::Ns16550;
use gptrickle_firmware::{Board, device_tree, panic_line, run};
use riscv::register::{mcause, mepc, mtval};
use riscv_rt::{TrapFrame, entry};

const TEST: usize = 0x0010_0000;
const MTIME: usize = 0x0200_bff8;
const UART: usize = 0x1000_0000;
const VIRTIO: Windows = Windows { base: 0x1000_1000, stride: 0x1000, count: 8 };
const RAM: usize = 0x8000_0000;
/// What the linker fills: see memory.x.
const IMAGE: usize = 2 << 20;
/// Where RAM ends when no device tree says.
const RAM_AT_LEAST: usize = 128 << 20;
/// As much as GPT-2 XL needs for half its context in f16; more would only take longer to clear.
const MAX_ARENA: usize = 256 << 20;
/// Each of the two buffers that the disk reads into.
const BUFFER: usize = 256 << 10;
/// What the heap keeps for itself, generously.
const HEAP_OVERHEAD: usize = 1 << 10;

#[global_allocator]
static HEAP: Heap = Heap::empty();

struct Riscv64Virt {
    uart: Ns16550,
    stack: Stack,
}

impl Board for Riscv64Virt {
    const NAME: &'static str = "riscv64-virt";

    fn read(&mut self) -> Option<u8> {
        self.uart.read()
    }

    fn write(&mut self, bytes: &[u8]) {
        self.uart.write(bytes);
    }

    fn micros(&mut self) -> u64 {
        // SAFETY: the CLINT's clock is there to be read.
        unsafe { (MTIME as *const u64).read_volatile() / 10 }
    }

    fn stack_used(&self) -> usize {
        self.stack.used()
    }

    fn exit(&mut self, code: i32) -> ! {
        exit(code)
    }
}

/// Where riscv-rt hands over.
#[entry]
fn main(_hart: usize, device_tree: usize) -> ! {
    unsafe extern "C" {
        static mut __estack: u32;
        static mut __sstack: u32;
    }
    // SAFETY: between these two of riscv-rt's symbols lies the stack, and this hart is the only one.
    let stack = unsafe { Stack::paint(&raw mut __estack, &raw mut __sstack) };
    let board = Riscv64Virt { uart: uart(), stack };

    let heap = ram_end(device_tree) - (RAM + IMAGE);
    // SAFETY: this is RAM that nothing else uses, now that the device tree has been read.
    unsafe { HEAP.init(RAM + IMAGE, heap) };
    // SAFETY: nothing else uses virtio, and the machine has one address space and coherent caches.
    let disk = unsafe { VirtioDisk::new(VIRTIO) };
    let disk = Disk::new(disk, [(); 2].map(|()| vec![0; BUFFER].leak()));
    let arena = vec![0; MAX_ARENA.min(HEAP.free() - HEAP_OVERHEAD)].leak();

    run(board, disk, arena)
}

/// Where the RAM ends.
fn ram_end(device_tree: usize) -> usize {
    // SAFETY: the machine's boot code hands over its device tree's address, and nothing has written there yet.
    let tree = unsafe { device_tree::at(device_tree) };
    let size = tree.and_then(|tree| device_tree::ram_size(tree, RAM as u64));
    RAM + size.map_or(RAM_AT_LEAST, |size| size as usize)
}

fn uart() -> Ns16550 {
    // SAFETY: the UART is there, and only this file uses it: `main`, and after it the panic handler.
    unsafe { Ns16550::new(UART) }
}

/// Ends the emulator with this code.
fn exit(code: i32) -> ! {
    let value = if code == 0 { 0x5555 } else { (code as u32) << 16 | 0x3333 };
    loop {
        // SAFETY: the test device takes a word.
        unsafe { (TEST as *mut u32).write_volatile(value) };
    }
}

#[unsafe(export_name = "ExceptionHandler")]
fn exception(_: &TrapFrame) -> ! {
    panic!("exception {} at {:#x}, value {:#x}", mcause::read().bits(), mepc::read(), mtval::read())
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let mut uart = uart();
    panic_line(|bytes| uart.write(bytes), info);
    exit(101)
}
