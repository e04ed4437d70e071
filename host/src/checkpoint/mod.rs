//! Checkpoints of transformers: the folder that `save_pretrained` of a `GPT2LMHeadModel` and its tokenizer writes.
//!
//! ```text
//! config.json                      the model's shape                                        Config
//! model.safetensors                its weights, or model.safetensors.index.json and shards  Weights
//! tokenizer.json                   its vocabulary, or vocab.json and merges.txt             Vocabulary
//! tokenizer_config.json, special_tokens_map.json, added_tokens.json: what is special of it
//! ```
//!
//! What they say is checked here, each for itself; [`convert`](crate::convert) checks that they fit together. An error
//! names the file, says what is wrong with it and what to do.

mod config;
mod vocabulary;
mod weights;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use config::Config;
pub use vocabulary::{Kind, SPECIAL, Special, Vocabulary};
pub use weights::{Stored, Weights};

/// A checkpoint whose files could all be read.
#[derive(Debug)]
pub struct Checkpoint {
    /// What its folder is called.
    pub name: String,
    /// The model's shape.
    pub config: Config,
    /// Its weights, of which only the headers were read.
    pub weights: Weights,
    /// Its tokens and merges.
    pub vocabulary: Vocabulary,
}

impl Checkpoint {
    /// Opens the checkpoint in this folder; reads everything but the weights' values.
    ///
    /// # Errors
    /// A file is missing, damaged, or tells of another model or vocabulary than GPT-2's.
    pub fn open(path: &Path) -> anyhow::Result<Checkpoint> {
        let found = fs::metadata(path).with_context(|| format!("cannot open {}", path.display()))?;
        if !found.is_dir() {
            bail!("{} is no folder: name the one that holds config.json and model.safetensors", path.display());
        }
        let folder = Folder(path);
        let config = Config::open(folder)?;
        let weights = Weights::open(folder)?;
        let vocabulary = Vocabulary::open(folder)?;
        let whole = path.canonicalize().unwrap_or_else(|_| path.into());
        let name = whole.file_name().map_or_else(|| "GPT-2".to_owned(), |name| name.to_string_lossy().into_owned());
        Ok(Checkpoint { name, config, weights, vocabulary })
    }
}

/// The checkpoint's folder.
#[derive(Debug, Clone, Copy)]
struct Folder<'p>(&'p Path);

impl Folder<'_> {
    fn path(self, file: &str) -> PathBuf {
        self.0.join(file)
    }

    /// Whether it has this file.
    fn has(self, file: &str) -> bool {
        self.path(file).exists()
    }

    /// A text file that it may lack.
    fn text(self, file: &str) -> anyhow::Result<Option<String>> {
        match fs::read_to_string(self.path(file)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", self.path(file).display())),
        }
    }

    /// A JSON file that it may lack.
    fn json<T: DeserializeOwned>(self, file: &str) -> anyhow::Result<Option<T>> {
        let Some(text) = self.text(file)? else { return Ok(None) };
        let read = serde_json::from_str(&text);
        read.map(Some).with_context(|| format!("{} is damaged, copy it again", self.path(file).display()))
    }
}

/// The number of a token: `50256`, or the first of `[50256, 50257]`.
fn token_id(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.get(0)?.as_u64())
}
