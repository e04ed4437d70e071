//! What the tests share: reference vectors, files to damage, sources that fail, and a model run from any of them.

pub mod anatomy;
pub mod buffered;
pub mod card;
pub mod faulty;
pub mod fuzzed;
pub mod gguf_writer;
pub mod micro;
pub mod npy;
pub mod recording;

use std::fs;
use std::path::{Path, PathBuf};

use gptrickle_core::arena::{ALIGN, Arena};
use gptrickle_core::gguf;
use gptrickle_core::gpt2::{self, Header, KvFormat, Metadata, Options, Plan, State, Weights};
use gptrickle_core::ops::Engine;
use gptrickle_core::source::Source;

/// The folder of reference vectors; `GPTRICKLE_VECTORS` names another, such as the whole set this one is part of.
pub fn vectors() -> PathBuf {
    match std::env::var_os("GPTRICKLE_VECTORS") {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors"),
    }
}

/// The folders of reference models.
pub const MODELS: [&str; 3] = ["micro", "tiny512", "tiny512-untied"];

/// The files of a folder with their types: `micro-Q4_0.gguf` has type `Q4_0`.
pub fn files(model: &str) -> Vec<(String, Vec<u8>)> {
    let folder = vectors().join(model);
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            let kind = path.file_stem()?.to_str()?.strip_prefix(model)?.strip_prefix('-')?.to_owned();
            (path.extension()? == "gguf").then(|| (kind, fs::read(&path).unwrap()))
        })
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no models in {}", folder.display());
    files
}

/// The token ids in a reference file, separated by white space.
pub fn token_ids(path: &Path) -> Vec<u32> {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.split_whitespace().map(|id| id.parse().unwrap()).collect()
}

/// Logits of every position of `tokens`, `batch` positions a pass: (tokens, n_vocab).
pub fn logits<S: Source>(src: &mut S, tokens: &[u32], batch: usize, kv: KvFormat) -> Result<Vec<f32>, gpt2::Error> {
    logits_by(Engine::default(), src, tokens, batch, kv)
}

/// [`logits`], multiplied by `engine`.
pub fn logits_by<S: Source>(
    engine: Engine,
    src: &mut S,
    tokens: &[u32],
    batch: usize,
    kv: KvFormat,
) -> Result<Vec<f32>, gpt2::Error> {
    let mut metadata = Metadata::default();
    let file = gguf::open(src, |key, value| metadata.note(key, value))?;
    let header = Header::read(&file, &metadata, src)?;
    let options = Options { context: tokens.len(), batch, kv, ..Options::default() };
    let plan = Plan::new(&header.config, &options);
    let mut memory = vec![0; plan.total() + ALIGN];
    let mut arena = Arena::new(&mut memory);
    let weights = Weights::load(&header, &file, src, &mut arena)?;
    let mut state = State::new(&header.config, &options, &mut arena)?;
    state.set_engine(engine);
    assert_eq!(arena.used(), plan.total(), "the plan is what is used");

    let n_vocab = header.config.n_vocab;
    let mut logits = vec![0.0; tokens.len() * n_vocab];
    for (i, tokens) in tokens.chunks(batch).enumerate() {
        gpt2::forward(src, &weights, &mut state, tokens.iter().copied(), true)?;
        gpt2::logits(src, &weights, &mut state, 0..tokens.len(), |b, first, values| {
            logits[(i * batch + b) * n_vocab + first..][..values.len()].copy_from_slice(values);
        })?;
    }
    Ok(logits)
}

pub use gptrickle_core::quant::trial::scales;
