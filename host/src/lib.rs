//! gptrickle on the desk: the same core as on a board, fed from files.
//!
//! [`source`] holds where a model's bytes come from under an operating system, [`npy`] writes arrays for NumPy,
//! [`gguf_writer`] models, and [`cli`] holds the command line's verbs. Everything else is [`gptrickle_core`].

pub mod cli;
pub mod gguf_writer;
pub mod npy;
pub mod source;
