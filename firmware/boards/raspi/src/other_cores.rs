//! The three other cores, which share the rows of a product.

#![allow(unsafe_code)]

use core::arch::asm;
use core::cell::UnsafeCell;

use gptrickle_firmware::cores::Cores;

use crate::dma::write_back;
use crate::micros;

/// How many there are.
const HELPERS: usize = 3;

/// The stack of each.
pub(crate) const STACK: usize = 64 << 10;

/// Where the boot loader's core `n` looks for the address to go on at: 8 · n bytes from here.
const SPIN_TABLE: usize = 0xd8;

/// They come in microseconds, or not at all.
const PATIENCE_US: u64 = 10_000;

/// All four.
pub(crate) static CORES: Cores<HELPERS> = Cores::new();

#[repr(align(16))]
pub(crate) struct Stacks(#[expect(dead_code, reason = "boot.s alone uses it")] UnsafeCell<[[u8; STACK]; HELPERS]>);

// SAFETY: boot.s gives each core its own.
unsafe impl Sync for Stacks {}

pub(crate) static STACKS: Stacks = Stacks(UnsafeCell::new([[0; STACK]; HELPERS]));

/// Calls them. The boot loader of a Raspberry Pi has them wait, and QEMU for a `kernel8.img`; for an ELF file it does not.
pub(crate) fn call() {
    unsafe extern "C" {
        fn boot_helper();
    }
    for core in 1..=HELPERS {
        let entry = (SPIN_TABLE + 8 * core) as *mut u64;
        // SAFETY: these words are the boot loader's, and kept for this.
        unsafe { entry.write_volatile(boot_helper as *const () as u64) };
        // Their caches are still off.
        write_back(entry.cast(), 8);
    }
    // SAFETY: it wakes who waits for an event.
    unsafe { asm!("sev", options(nomem, nostack)) };
    let start = micros();
    while CORES.helpers() < HELPERS && micros() - start < PATIENCE_US {
        core::hint::spin_loop();
    }
}

/// Where boot.s hands over a core, 1 to 3.
pub(crate) extern "C" fn serve(core: usize) -> ! {
    aarch64_rt::set_exception_vector();
    // SAFETY: as in `main`.
    unsafe { asm!("msr fpcr, xzr", options(nomem, nostack)) };
    CORES.serve(core - 1)
}
