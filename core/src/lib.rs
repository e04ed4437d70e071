//! GPT-2 in a trickle of memory.

#![no_std]

#[cfg(test)]
extern crate std;

pub mod arena;
pub mod console;
pub mod gguf;
pub mod source;
