//! The options that say which model to open, and how to run it.

use std::path::PathBuf;
use std::thread;

use anyhow::{Context, bail};
use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use gptrickle_core::generate;
use gptrickle_core::gpt2::{Config, Head, KvFormat, Options};
use gptrickle_core::ops::Engine;
use gptrickle_core::quant::Kernel;
use gptrickle_core::source::Source;

use super::note;
pub(super) use crate::model::{Model as Opened, encode, memory, push_text};
use crate::source::throttled::Throttle;
use crate::source::{Buffering, DEMO, ModelFile};
use crate::threads::Threads;

/// Which model, and how its bytes are read.
#[derive(Debug, Args)]
pub(super) struct ModelArgs {
    /// GGUF file of a GPT-2 model; the built-in demo model if left out
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,

    /// How the file is read: "mmap" maps it into memory; "file" reads it piece by piece into two buffers, one filled by
    /// a thread while the other is multiplied; "throttled:23MB/s,latency=200us,chunk=32KiB" does so as slowly as a card
    /// of this bandwidth, which takes LATENCY for every command and has at most CHUNK bytes in one (a longer read is
    /// several commands). With ",no-prefetch" behind them, the last two read into one buffer when it is needed
    #[arg(long, value_name = "KIND", default_value = "mmap", value_parser = SourceKind::parse)]
    #[arg(requires_ifs([("file", "model"), ("file,no-prefetch", "model")]))]
    source: SourceKind,

    /// Size of each buffer of --source file or throttled, at least the longest row of any tensor
    #[arg(long, value_name = "BYTES", default_value = "64KiB", value_parser = buffer_bytes)]
    buffer: usize,
}

/// Reads a size such as 64KiB; a name or a number of the header must fit, whatever the model.
pub(super) fn buffer_bytes(size: &str) -> Result<usize, String> {
    const LEAST: usize = 64;
    let bytes = ram_bytes(size)?;
    if bytes < LEAST { Err(format!("it must be at least {LEAST}")) } else { Ok(bytes) }
}

/// Reads a size such as 8MiB.
pub(super) fn ram_bytes(size: &str) -> Result<usize, String> {
    let size: ByteSize = size.parse().map_err(|_| "it must be a size such as 65536 or 64KiB".to_owned())?;
    usize::try_from(size.as_u64()).map_err(|_| "it is more than this machine can address".to_owned())
}

/// Candidates of a head in two stages, where none are told: of a draft in Q2_K, the demo model's 50 likeliest tokens are
/// nearly always among them; see README.md.
const CANDIDATES: usize = 128;

/// Reads a head such as two-stage:16.
pub(super) fn head(text: &str) -> Result<Head, String> {
    let candidates = text.strip_prefix("two-stage:").and_then(|n| n.parse().ok()).filter(|&n| n > 0);
    match (text, candidates) {
        ("exact", _) => Ok(Head::Exact),
        ("two-stage", _) => Ok(Head::TwoStage { candidates: CANDIDATES }),
        (_, Some(candidates)) => Ok(Head::TwoStage { candidates }),
        _ => Err("it must be exact, two-stage, or two-stage:K with a number of tokens".to_owned()),
    }
}

/// Which rows of the head are read.
#[derive(Debug, Args)]
pub(super) struct HeadArgs {
    /// The head: "exact" reads all of it for a token; "two-stage:K" reads the smaller token embedding of an untied file
    /// instead, and of the head the rows of the K tokens that it finds likeliest, which alone can be chosen; K is 128
    /// if left out
    #[arg(long = "head", value_name = "HOW", default_value = "exact", value_parser = head)]
    pub(super) how: Head,
}

/// A head as it is typed.
pub(super) fn head_name(head: Head) -> String {
    match head {
        Head::Exact => "exact".to_owned(),
        Head::TwoStage { candidates } => format!("two-stage:{candidates}"),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SourceKind {
    Mmap,
    File { prefetch: bool },
    Throttled { throttle: Throttle, prefetch: bool },
}

impl SourceKind {
    fn parse(text: &str) -> Result<SourceKind, String> {
        let (kind, prefetch) = match text.strip_suffix(",no-prefetch") {
            Some(kind) => (kind, false),
            None => (text, true),
        };
        match (kind, kind.strip_prefix("throttled:")) {
            ("mmap", _) if prefetch => Ok(SourceKind::Mmap),
            ("file", _) => Ok(SourceKind::File { prefetch }),
            (_, Some(figures)) => Ok(SourceKind::Throttled { throttle: figures.parse()?, prefetch }),
            _ => Err("it must be mmap, file, or such as throttled:23MB/s,latency=200us; ,no-prefetch may follow the \
                 last two"
                .to_owned()),
        }
    }
}

impl Opened {
    /// Says which model it is, and the memory that a session takes.
    pub(super) fn describe(&self, options: &generate::Options, arena_bytes: usize) {
        let config = &self.model.header.config;
        note(format_args!(
            "{}: GPT-2, {} layers, {} heads, {} wide, {} tokens; context {} of {}, {} of memory",
            self.name,
            config.n_layer,
            config.n_head,
            config.n_embd,
            config.n_vocab,
            options.state.context,
            config.n_ctx,
            ByteSize::b(arena_bytes as u64),
        ));
    }
}

impl ModelArgs {
    /// A model that is mapped into memory.
    pub(super) fn mapped(model: Option<PathBuf>) -> ModelArgs {
        ModelArgs { model, source: SourceKind::Mmap, buffer: 0 }
    }

    /// Opens the model and checks its header.
    pub(super) fn open(&self) -> anyhow::Result<Opened> {
        let opened = Opened::new(self.file()?, self.name())?;
        let (name, needed, have) = (&opened.name, opened.model.header.longest_row, opened.src.max_chunk());
        if needed > have {
            bail!("{name}: the longest row has {needed} bytes, the buffer {have}: use --buffer {needed} or more");
        }
        Ok(opened)
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
            (path, SourceKind::Throttled { throttle, prefetch }) => {
                ModelFile::throttled(path.as_deref(), throttle, Buffering { buffer: self.buffer, prefetch })?
            }
            (None, _) => ModelFile::BuiltIn(DEMO),
            (Some(path), SourceKind::Mmap) => ModelFile::map(path)?,
            (Some(path), SourceKind::File { prefetch }) => {
                ModelFile::reads(path, Buffering { buffer: self.buffer, prefetch })?
            }
        })
    }

    /// The bytes a second that the source is slowed down to, if it is.
    pub(super) fn bandwidth(&self) -> Option<u64> {
        match self.source {
            SourceKind::Throttled { throttle, .. } => Some(throttle.bytes_per_s),
            _ => None,
        }
    }
}

/// Who multiplies: for speed, the bits are the same.
#[derive(Debug, Args)]
pub(super) struct EngineArgs {
    /// Instructions to multiply with: "auto" takes the best this processor has, "generic" those that every one has
    #[arg(long, value_name = "NAME", default_value = "auto", value_parser = kernel)]
    kernel: Kernel,

    #[command(flatten)]
    threads: ThreadsArgs,
}

fn kernel(name: &str) -> Result<Kernel, String> {
    if name == "auto" {
        return Ok(Kernel::best());
    }
    Kernel::available().find(|kernel| kernel.name() == name).ok_or_else(|| {
        let names: Vec<&str> = Kernel::available().map(Kernel::name).collect();
        format!("this processor has: auto, {}", names.join(", "))
    })
}

impl EngineArgs {
    /// Runs `f` with all threads at hand.
    pub(super) fn run<R: Send>(&self, f: impl FnOnce(Engine) -> anyhow::Result<R> + Send) -> anyhow::Result<R> {
        let kernel = self.kernel;
        Threads::run(self.threads.count(), |team| f(Engine { kernel, team })).context("cannot start --threads")?
    }
}

/// Who shares the work.
#[derive(Debug, Args)]
pub(super) struct ThreadsArgs {
    /// Threads that share the work; as many as there are cores if left out
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u8).range(1..))]
    threads: Option<u8>,
}

impl ThreadsArgs {
    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.threads.map_or_else(|| thread::available_parallelism().map_or(1, usize::from), usize::from)
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
    #[value(name = "q4_0")]
    Q4_0,
}

impl MemoryArgs {
    /// Most tokens that share one pass.
    pub(super) fn batch(&self) -> usize {
        usize::from(self.batch)
    }

    /// Whether the context is not left to the model or the memory.
    pub(super) fn asks_for_context(&self) -> bool {
        self.context.is_some()
    }

    /// The core's options for a model of this shape.
    ///
    /// No pass has more positions than the context, so a batch beyond it costs no memory.
    pub(super) fn options(&self, config: &Config) -> anyhow::Result<Options> {
        let kv = match self.kv {
            Kv::F32 => KvFormat::F32,
            Kv::F16 => KvFormat::F16,
            Kv::Q8_0 => KvFormat::Q8_0,
            Kv::Q4_0 => KvFormat::Q4_0,
        };
        let context = self.context.unwrap_or(config.n_ctx);
        if context == 0 || context > config.n_ctx {
            bail!("--context {context} cannot be had: this model has 1 to {} positions", config.n_ctx);
        }
        Ok(Options { context, batch: usize::from(self.batch).min(context), kv, ..Options::default() })
    }
}

/// Zeroes for a result of this shape.
pub(super) fn floats(shape: &[usize]) -> anyhow::Result<Vec<f32>> {
    let len = shape.iter().fold(1, |len: usize, &n| len.saturating_mul(n));
    Vec::<f32>::new().try_reserve_exact(len).with_context(|| {
        format!("{} of memory are needed: use a shorter text", ByteSize::b((len as u64).saturating_mul(4)))
    })?;
    Ok(vec![0.0; len])
}
