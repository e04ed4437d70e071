//! gptrickle on the desk: the same core as on a board, fed from files.
//!
//! ```
//! # fn main() -> anyhow::Result<()> {
//! let mut model = gptrickle::Model::demo()?; // or Model::open("distilgpt2.Q4_K_M.gguf")?
//! let story = model.generate("Once upon a time").max_new_tokens(60).seed(42).text()?;
//! println!("Once upon a time{story}");
//! # Ok(())
//! # }
//! ```
//!
//! [`model`] holds that front door, and `examples/generate.rs` shows a text as it comes about.
//! [`source`] holds where a model's bytes come from under an operating system, [`threads`] who multiplies them,
//! [`board`] what a plan needs to know of a board, [`npy`] writes arrays for NumPy, [`bandwidth`] tells what memory gives
//! one core, and [`cli`] the command line's verbs.
//! Files are made by [`synth`] and [`quantize`], and by [`convert`] from a [`checkpoint`] of transformers: [`mix`] says
//! which type each matrix has, [`importance`] what matters in it, [`encode`] makes its blocks, [`gguf_writer`] puts them
//! into a file, with [`checksums`] if it is for a board, and [`output`] that file in its place, whole or not at all.
//! [`verify`] reads all of a file and says what is wrong with it, [`perplexity`] what it is worth. Everything else is
//! [`gptrickle_core`].

// What cannot be says so in an `expect`; what can is an error.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::todo))]

pub mod bandwidth;
pub mod board;
pub mod checkpoint;
pub mod checksums;
pub mod cli;
pub mod convert;
pub mod encode;
pub mod gguf_writer;
pub mod importance;
pub mod mix;
pub mod model;
pub mod npy;
pub mod output;
pub mod perplexity;
pub mod quantize;
pub mod source;
pub mod synth;
pub mod threads;
pub mod verify;

pub use gptrickle_core::generate::StopReason;
pub use gptrickle_core::sampler::Params;
pub use model::{Generation, Model};
