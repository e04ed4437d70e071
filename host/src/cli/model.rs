//! The options that say which model to open, and how to run it.

use std::path::PathBuf;

use anyhow::{Context, bail};
use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use gptrickle_core::generate::Model;
use gptrickle_core::gpt2::{Config, KvFormat, Options};
use gptrickle_core::source::Counting;

use crate::source::{DEMO, ModelFile};

/// Which model, and how its bytes are read.
#[derive(Debug, Args)]
pub(super) struct ModelArgs {
    /// GGUF file of a GPT-2 model; the built-in demo model if left out
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,

    /// How the file is read: mapped into memory, or piece by piece into a fixed buffer
    #[arg(long, value_enum, default_value_t = SourceKind::Mmap)]
    source: SourceKind,

    /// Size of the buffer of --source file, at least the longest row of any tensor
    #[arg(long, value_name = "BYTES", default_value = "64KiB")]
    buffer: ByteSize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SourceKind {
    Mmap,
    File,
}

/// A model that was opened and checked.
pub(super) struct Opened {
    /// Its bytes, counted.
    pub(super) src: Counting<ModelFile>,
    /// What its header says.
    pub(super) model: Model,
    /// What people call it.
    pub(super) name: String,
}

impl ModelArgs {
    /// Opens the model and checks its header.
    pub(super) fn open(&self) -> anyhow::Result<Opened> {
        let mut src = Counting::new(self.file()?);
        let name = self.name();
        let model = Model::open(&mut src).with_context(|| name.clone())?;
        Ok(Opened { src, model, name })
    }

    /// What people call the model, and what an error about it starts with.
    pub(super) fn name(&self) -> String {
        match &self.model {
            Some(path) => path.display().to_string(),
            None => "the built-in model".to_owned(),
        }
    }

    /// Opens the file, whatever is in it.
    pub(super) fn file(&self) -> anyhow::Result<ModelFile> {
        Ok(match (&self.model, self.source) {
            (None, SourceKind::Mmap) => ModelFile::BuiltIn(DEMO),
            (None, SourceKind::File) => bail!("--source file reads a file: name one with -m FILE"),
            (Some(path), SourceKind::Mmap) => ModelFile::map(path)?,
            (Some(path), SourceKind::File) => {
                ModelFile::reads(path, usize::try_from(self.buffer.as_u64()).context("--buffer is too large")?)?
            }
        })
    }
}

/// How much memory a run takes.
#[derive(Debug, Args)]
pub(super) struct MemoryArgs {
    /// Positions of the KV cache, prompt and new tokens together; all the model has if left out
    #[arg(long, value_name = "N")]
    context: Option<usize>,

    /// Most tokens that share one pass of the weights
    #[arg(long, value_name = "B", default_value = "32", value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,

    /// How keys and values are stored
    #[arg(long, value_enum, default_value_t = Kv::F32)]
    kv: Kv,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kv {
    F32,
    F16,
    #[value(name = "q8_0")]
    Q8_0,
}

impl MemoryArgs {
    /// The core's options for a model of this shape.
    pub(super) fn options(&self, config: &Config) -> Options {
        let kv = match self.kv {
            Kv::F32 => KvFormat::F32,
            Kv::F16 => KvFormat::F16,
            Kv::Q8_0 => KvFormat::Q8_0,
        };
        Options { context: self.context.unwrap_or(config.n_ctx), batch: self.batch.into(), kv }
    }
}
