//! Weights in safetensors files: which tensor lies where, and its values as f32, as many at a time as are asked for.
//!
//! Read "safetensors: Format" first. Values are read with plain reads, not through a map of the file: what is held in
//! memory is what was asked for, however large the file, and a file that is cut short meanwhile is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail, ensure};
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Folder;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// The longest header that is believed, in bytes; the safetensors crate has the same limit.
const MAX_HEADER: u64 = 100_000_000;
/// In old checkpoints every name starts with it.
const PREFIX: &str = "transformer.";

/// A tensor in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its name in the file.
    pub name: String,
    /// Its dimensions, the slowest first.
    pub shape: Vec<usize>,
    dtype: Dtype,
    shard: usize,
    at: u64, // of its first byte, in the shard
}

/// An open safetensors file.
#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: File,
}

/// All tensors of a checkpoint, in one file or in several.
#[derive(Debug)]
pub struct Weights {
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Stored>, // by name without PREFIX
}

/// How the index of a checkpoint in several files looks.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    pub(super) fn open(folder: Folder) -> anyhow::Result<Weights> {
        let mut weights = Weights { shards: Vec::new(), tensors: BTreeMap::new() };
        if folder.has(SINGLE) {
            weights.add(&folder.path(SINGLE))?;
            return Ok(weights);
        }
        let Some(Index { weight_map }) = folder.json(INDEX)? else {
            let shown = folder.0.display();
            if folder.has("pytorch_model.bin") {
                bail!(
                    "{shown} holds its weights as pytorch_model.bin: save it as safetensors, as save_pretrained does"
                );
            }
            bail!("{shown} has neither {SINGLE} nor {INDEX}: where are the weights?");
        };
        let files: BTreeSet<&str> = weight_map.values().map(String::as_str).collect();
        for &file in &files {
            let plain = Path::new(file).file_name().is_some_and(|name| name == file);
            ensure!(plain, "{}: \"{file}\" is no name of a file beside it", folder.path(INDEX).display());
            weights.add(&folder.path(file))?;
        }
        for (name, file) in &weight_map {
            let shard = files.iter().position(|other| other == file);
            let found = weights.tensors.get(bare(name)).filter(|stored| Some(stored.shard) == shard);
            ensure!(
                found.is_some_and(|stored| stored.name == *name),
                "{} has no tensor {name}, though {INDEX} says so: copy the checkpoint again",
                folder.path(file).display()
            );
        }
        Ok(weights)
    }

    /// Reads the header of a file, and notes its tensors.
    fn add(&mut self, path: &Path) -> anyhow::Result<()> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let shard = self.shards.len();
        let tensors = tensors(&file, shard).with_context(|| path.display().to_string())?;
        self.shards.push(Shard { path: path.into(), file });
        for stored in tensors {
            let name = bare(&stored.name).to_owned();
            if let Some(twice) = self.tensors.insert(name, stored) {
                bail!("{}: tensor {} stands in the checkpoint twice", path.display(), twice.name);
            }
        }
        Ok(())
    }

    /// The tensor of this name, which may have "transformer." in front of it in the file.
    pub fn get(&self, name: &str) -> Option<&Stored> {
        self.tensors.get(name)
    }

    /// All names, without "transformer.".
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Checks that this tensor has values that can be converted: F32, F16 or BF16.
    ///
    /// # Errors
    /// It has others.
    pub fn check_type(&self, stored: &Stored) -> anyhow::Result<()> {
        let Stored { name, dtype, shard, .. } = stored;
        ensure!(
            matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16),
            "{}: tensor {name} has type {dtype}, only F32, F16 and BF16 can be converted: save the model as one of these",
            self.shards[*shard].path.display()
        );
        Ok(())
    }

    /// Fills `out` with the values from number `first` on, bit for bit what the file has.
    ///
    /// # Errors
    /// They cannot be read, or one of them is no finite number; the message says which.
    ///
    /// # Panics
    /// The tensor has fewer, or [`check_type`](Self::check_type) refuses it.
    pub fn read(&self, stored: &Stored, first: usize, out: &mut [f32]) -> anyhow::Result<()> {
        let Stored { name, shape, dtype, shard, at } = stored;
        assert!(first + out.len() <= shape.iter().product(), "no more values than the tensor has");
        let Shard { path, file } = &self.shards[*shard];
        let width = dtype.bitsize() / 8;
        let mut bytes = vec![0; out.len() * width];
        let mut file = file;
        let read = file.seek(SeekFrom::Start(at + (first * width) as u64)).and_then(|_| file.read_exact(&mut bytes));
        // As text: an error that is one of input must not look like one of output.
        read.map_err(|error| anyhow!("cannot read {}: {error}", path.display()))?;
        match dtype {
            Dtype::F32 => decode(&bytes, out, f32::from_le_bytes),
            Dtype::F16 => decode(&bytes, out, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Dtype::BF16 => decode(&bytes, out, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            other => panic!("checked before: {other}"),
        }
        if let Some(i) = out.iter().position(|value| !value.is_finite()) {
            let place = place(first + i, shape);
            bail!(
                "{}: tensor {name} has {} at {place:?}: its training failed or the file is damaged",
                path.display(),
                out[i]
            );
        }
        Ok(())
    }
}

/// A name as checkpoints of the bare model have it.
fn bare(name: &str) -> &str {
    name.strip_prefix(PREFIX).unwrap_or(name)
}

fn decode<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
        *out = value(*bytes);
    }
}

/// The indices of a value, the slowest first.
fn place(i: usize, shape: &[usize]) -> Vec<usize> {
    let below = |dim: usize| shape[dim + 1..].iter().product::<usize>();
    (0..shape.len()).map(|dim| i / below(dim) % shape[dim]).collect()
}

/// The tensors that a file's header tells of; the file is exactly as long as they make it.
fn tensors(mut file: &File, shard: usize) -> anyhow::Result<Vec<Stored>> {
    let len = file.metadata()?.len();
    let mut header_len = [0; 8];
    ensure!(len >= 8, "it has {len} bytes and no header: it is truncated, copy it again");
    file.read_exact(&mut header_len)?;
    let header_len = u64::from_le_bytes(header_len);
    ensure!(header_len <= MAX_HEADER, "its header claims {header_len} bytes: it is damaged or no safetensors file");
    ensure!(header_len <= len - 8, "it ends within its header: it is truncated, copy it again");
    let mut header = vec![0; usize::try_from(header_len)?];
    file.read_exact(&mut header)?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| damaged(&header, error))?;
    let (needed, have) = (8 + header_len + metadata.data_len() as u64, len);
    ensure!(have >= needed, "its tensors end at {needed}, the file at {have}: it is truncated, copy it again");
    ensure!(have == needed, "its tensors end at {needed}, the file at {have}: it is damaged, copy it again");
    let tensors = metadata.tensors().into_iter().map(|(name, info)| Stored {
        name,
        shape: info.shape.clone(),
        dtype: info.dtype,
        shard,
        at: 8 + header_len + info.data_offsets.0 as u64,
    });
    Ok(tensors.collect())
}

/// What is wrong with a header; of a type that nobody knows, which tensor has it.
fn damaged(header: &[u8], error: serde_json::Error) -> anyhow::Error {
    let tensors: Map<String, Value> = serde_json::from_slice(header).unwrap_or_default();
    let unknown = tensors.iter().find_map(|(name, info)| {
        let dtype = info.get("dtype")?.as_str()?;
        Dtype::deserialize(Value::from(dtype)).is_err().then_some((name, dtype))
    });
    match unknown {
        Some((name, dtype)) => anyhow!(
            "tensor {name} has type {dtype}, only F32, F16 and BF16 can be converted: save the model as one of these"
        ),
        None => anyhow!("its header is damaged, copy it again: {error}"),
    }
}
