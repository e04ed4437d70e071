//! GPT-2: tokens in, logits out, the weights streamed once per pass.
//!
//! [`Header`] is what the file's header says, checked; [`Weights`] where each tensor lies; [`State`] the buffers of a
//! sequence; [`forward`] the transformer over a batch of B positions of a sequence, [`forward_each`] over one each of
//! several, and [`logits`] the head over what it left, or [`draft_logits`] and [`rescore`] in two stages.
//! [`forward_watched`] shows hidden states and attention ([`Seen`]) on the way.
//! Source: Radford et al., Language Models are Unsupervised Multitask Learners, 2019; OpenAI's `gpt-2/src/model.py`.

mod attention;
mod config;
mod error;
mod forward;
mod kv;
mod state;
mod weights;

pub use config::{Config, MAX_LAYERS, Metadata};
pub use error::Error;
pub use forward::{
    Seen, draft_logits, forward, forward_each, forward_watched, last_norm, logits, logits_watched, rescore,
};
pub use kv::{KvFormat, Layout};
pub use state::{Options, Plan, State};
pub use weights::{Head, Header, Layer, Linear, Norm, Role, Weights};
