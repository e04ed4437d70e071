//! gptrickle on the desk: the same core as on a board, fed from files.
//!
//! [`source`] holds where a model's bytes come from under an operating system, [`npy`] writes arrays for NumPy, and
//! [`cli`] the command line's verbs. Models are written by [`gguf_writer`]; [`mix`] says which type each matrix has and
//! [`encode`] makes its blocks. Everything else is [`gptrickle_core`].

pub mod cli;
pub mod encode;
pub mod gguf_writer;
pub mod mix;
pub mod npy;
pub mod source;
