//! gptrickle on a board: what is the same on every one of them.
//!
//! A board brings a [`Board`] (console, clock, exit), a [`storage::Storage`] (where the model lies) and memory, and
//! calls [`run()`]. It owns everything from there on: opens the model, prints what it is and where the memory goes, and
//! answers lines ([`gptrickle_core::console`]) until it is told to quit.
//!
//! What a script sees: `> ` at the start of a line when the next line is awaited; lines from the application start with
//! `# `; after a prompt comes the text, as it is made, then a newline and a line that says how many bytes it had:
//!
//! ```text
//! # gptrickle 0.1.0 on mps3-an547
//! > Once upon a time
//! , there was a trickle.
//! # text: 22 bytes
//! > :quit
//! ```

#![no_std]

#[cfg(test)]
extern crate std;

mod log;

pub mod console;
pub mod cores;
#[cfg(any(test, target_pointer_width = "64"))]
pub mod device_tree;
#[cfg(all(target_arch = "aarch64", target_os = "none"))]
mod one_core;
pub mod run;
pub mod stack;
pub mod storage;
#[cfg(target_arch = "arm")]
pub mod systick;
pub mod uart;

use core::fmt::{self, Write};
use core::panic::PanicInfo;

pub use gptrickle_core::arena::ALIGN;
use gptrickle_core::ops::Alone;
pub use gptrickle_core::ops::Team;
pub use run::run;

/// What a board is, beside its storage and its memory.
pub trait Board {
    /// Its name, as `cargo xtask boards` lists it.
    const NAME: &'static str;

    /// A byte from the console, if one waits.
    fn read(&mut self) -> Option<u8>;

    /// Writes to the console; returns when the last byte has been taken.
    fn write(&mut self, bytes: &[u8]);

    /// Microseconds since some moment before the first call.
    fn micros(&mut self) -> u64;

    /// The most stack that was ever in use, in bytes; panics if it overflowed: see [`stack`].
    fn stack_used(&self) -> usize;

    /// Who shares the work: the one core that runs the application, where a board has no other to lend.
    fn team(&self) -> &'static dyn Team {
        &Alone
    }

    /// Ends the emulation, or resets the board.
    fn exit(&mut self, code: i32) -> !;
}

/// Prints a panic as one more line from the application, by what writes to the console; the board then exits.
pub fn panic_line(write: impl FnMut(&[u8]), info: &PanicInfo<'_>) {
    let mut out = AsBytes(write);
    // Nothing here fails but a `Display` that lies.
    let _ = match info.location() {
        Some(at) => writeln!(out, "\n# panic at {}:{}: {}", at.file(), at.line(), info.message()),
        None => writeln!(out, "\n# panic: {}", info.message()),
    };
}

/// Text, for what takes bytes.
struct AsBytes<W>(W);

impl<W: FnMut(&[u8])> Write for AsBytes<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0(text.as_bytes());
        Ok(())
    }
}
