//! GPT-2 in a trickle of memory.

#![no_std]

#[cfg(test)]
extern crate std;

pub mod arena;
pub mod console;
pub mod generate;
pub mod gguf;
pub mod gpt2;
pub mod ops;
pub mod quant;
pub mod sampler;
pub mod source;
pub mod tokenizer;
