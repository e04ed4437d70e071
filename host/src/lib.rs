//! gptrickle on the desk: the same core as on a board, fed from files.
//!
//! [`source`] holds where a model's bytes come from under an operating system, [`threads`] who multiplies them,
//! [`board`] what a plan needs to know of a board, [`npy`] writes arrays for NumPy, and [`cli`] the command line's verbs.
//! Files are made by [`synth`]: [`mix`] says which type each matrix has, [`encode`] makes its blocks, [`gguf_writer`]
//! puts them into a file and [`output`] that file in its place, whole or not at all. [`perplexity`] measures what a file is
//! worth. Everything else is [`gptrickle_core`].

pub mod board;
pub mod cli;
pub mod encode;
pub mod gguf_writer;
pub mod mix;
pub mod npy;
pub mod output;
pub mod perplexity;
pub mod source;
pub mod synth;
pub mod threads;
