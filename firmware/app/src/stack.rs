//! The most stack ever used, seen by painting it before use and looking for the paint afterwards.

#![allow(unsafe_code)]

use core::ptr;

const PAINT: u32 = 0x7374_6163; // "stac"

/// A painted stack, which grows downwards.
#[derive(Debug)]
pub struct Stack {
    bottom: *const u32,
    top: *const u32,
}

impl Stack {
    /// Paints the stack from its lowest word `bottom` up to just below where it is in use now.
    ///
    /// # Safety
    /// The words from `bottom` (included) to `top` (excluded) are this program's running stack, nothing else uses
    /// them, and `bottom` and `top` are multiples of 4.
    pub unsafe fn paint(bottom: *mut u32, top: *mut u32) -> Stack {
        let here = 0u32;
        // What is in use ends below this frame's variables: stay well clear of it.
        let end = (&raw const here).wrapping_sub(64);
        let mut word = bottom;
        while word.cast_const() < end {
            // SAFETY: the caller says that the stack is ours from `bottom` on, and nothing below `end` is in use.
            unsafe { ptr::write_volatile(word, PAINT) };
            word = word.wrapping_add(1);
        }
        Stack { bottom, top }
    }

    /// Paints the stack that `cortex-m-rt`'s linker script lays out: all RAM after the statics.
    #[cfg(target_arch = "arm")]
    pub fn paint_cortex_m() -> Stack {
        unsafe extern "C" {
            static mut _stack_end: u32;
            static mut _stack_start: u32;
        }
        // SAFETY: the linker script keeps all between its two symbols, which are aligned, for the stack alone.
        unsafe { Stack::paint(&raw mut _stack_end, &raw mut _stack_start) }
    }

    /// The most bytes that were in use since it was painted.
    ///
    /// # Panics
    /// All of it was, so it may have overflowed, and nothing in memory is to be trusted any more.
    pub fn used(&self) -> usize {
        let mut word = self.bottom;
        // SAFETY: `word` stays between `bottom` and `top`, which the caller of `paint` said is this stack.
        while word < self.top && unsafe { ptr::read_volatile(word) } == PAINT {
            word = word.wrapping_add(1);
        }
        assert!(word > self.bottom, "the stack overflowed");
        self.top as usize - word as usize
    }
}
