//! GPT-2 in a trickle of memory: text from a stock GGUF file, without an operating system, a heap, or the weights in
//! RAM.
//!
//! # The story of one token
//! The model stays where it is: in mapped flash, in a file, on a card. A [`source`] lends its bytes a chunk at a time.
//! [`gguf::open`] reads the header once and checks every count, type and range in it; nothing below checks again.
//! Where a file carries checksums, [`checked`] compares what storage gives with them, whenever it is read.
//! How much memory a run takes is plain arithmetic on what the header says ([`generate::Plan`]), and all of it is cut
//! from one stretch that the caller gives ([`arena`]).
//!
//! The [`tokenizer`] turns the prompt into tokens. Its strings stay in the file, a small index in RAM. The tokens go
//! through [`gpt2::forward`] in batches: each reads every layer's weights once, in the same order, and
//! [`ops::multiply`] multiplies each row, as it streams by, with the activations of all positions of the batch. A row
//! is blocks of 2 to 8 bits ([`quant`]), activations are int8 for the moment of the product, and keys and values of
//! every position are kept for those that follow.
//!
//! At the last position the head streams its rows, one per token of the vocabulary, straight into the [`sampler`],
//! which keeps no more logits than its controls need and draws one token. Where a file has a smaller copy of the head, that
//! may choose which rows of the head are read ([`gpt2::Head`]). Its bytes are decoded, and it becomes the
//! next position: one more pass of the weights, for the next token. [`generate::Session`] is this loop. Where the text
//! repeats itself, tokens can be guessed and checked together, in the same pass; and several texts can go on from one
//! prompt ([`generate::Session::sequences`]), a token of each from every pass, or be searched for the likeliest one
//! ([`generate::Session::beams`]).
//!
//! A person or a script asks for all this in lines ([`console`]), the same ones on the desk and on a board.
//!
//! # What holds everywhere
//! * The same file, prompt, options and seed give the same text on every target, bit for bit: integer products are
//!   exact, the few f32 steps happen in one fixed order, nothing is contracted to fused multiply-adds, and [`exp`] is
//!   our own. Kernels, threads and the size of buffers change speed, and no bit.
//! * Any file, any truncation, any flipped byte gives a typed error or text, in bounded time: never a panic. With
//!   checksums in the file ([`checked`]) a flipped bit gives the error, and nothing is made of it.
//! * Nothing here allocates, knows a board, or names another crate's type in its public API.
//! * [`quant`] has never heard of files, [`gguf`] never of GPT-2, [`gpt2`] never of text.
//!
//! # Example
//! ```no_run
//! use gptrickle_core::arena::Arena;
//! use gptrickle_core::generate::{Model, Options, Session};
//! use gptrickle_core::gpt2::{self, KvFormat};
//! use gptrickle_core::sampler::Params;
//! use gptrickle_core::tokenizer::Control;
//! # let flash: &[u8] = &[];
//! # let memory: &mut [u8] = &mut [];
//!
//! let mut src = flash;
//! let model = Model::open(&mut src)?;
//! let options = Options {
//!     state: gpt2::Options { context: 128, batch: 8, kv: KvFormat::Q8_0, ..Default::default() },
//!     sampling: Params::default(),
//!     seed: 42,
//!     ..Options::default()
//! };
//! let mut session = Session::new(&model, &options, &mut src, &mut Arena::new(memory))?;
//! session.push_text(&mut src, b"Once upon a time", Control::Ignore)?;
//! let mut bytes = [0; 256];
//! while let Some(token) = session.next(&mut src)? {
//!     let len = session.tokenizer().decode(&mut src, token, Control::Ignore, &mut bytes)?;
//!     // show(&bytes[..len])
//! }
//! # Ok::<(), gptrickle_core::generate::Error>(())
//! ```

#![no_std]
// A panic on a board is a reset: what can fail returns an error. Tests are to panic.
#![cfg_attr(
    not(test),
    deny(clippy::panic, clippy::unwrap_used, clippy::expect_used, clippy::unreachable, clippy::todo)
)]

#[cfg(test)]
extern crate std;

// From storage up to text: a module uses only those listed before it.
pub mod source;

mod part;
mod sort;

pub mod arena;

pub mod quant;

pub mod gguf;

pub mod checked;

pub mod exp;

pub mod ops;

pub mod gpt2;

pub mod tokenizer;

pub mod sampler;

pub mod generate;

pub mod console;
