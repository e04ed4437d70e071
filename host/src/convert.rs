//! Checkpoints to GGUF files: the names, shapes, keys and order that llama.cpp and core expect.
//!
//! transformers stores the matrices of a layer as they stand in `x · W` (`Conv1D`), GGUF as they stand in `W · x`: one
//! row for each output. So those of the layers are transposed, embeddings and head are not. Tensors lie in the order in
//! which a pass reads them.
//!
//! ```text
//! wte.weight            token_embd.weight              h.N.ln_1      blk.N.attn_norm
//! wpe.weight            position_embd.weight           h.N.attn.c_attn   blk.N.attn_qkv     transposed
//! ln_f                  output_norm                    h.N.attn.c_proj   blk.N.attn_output  transposed
//! lm_head.weight        output.weight                  h.N.ln_2      blk.N.ffn_norm
//!                                                      h.N.mlp.c_fc      blk.N.ffn_up       transposed
//! h.N.attn.bias, h.N.attn.masked_bias: left out        h.N.mlp.c_proj    blk.N.ffn_down     transposed
//! ```
//!
//! Nothing but the weights' values is left to go wrong once a [`Model`] is there: its header has been opened as core opens
//! it. In memory are the vocabulary, a matrix of a layer as f32, and [`BATCH`] values of it.

use std::collections::BTreeSet;
use std::ops::Range;

use anyhow::{Context, bail, ensure};
use gptrickle_core::arena::{ALIGN, Arena};
use gptrickle_core::generate;
use gptrickle_core::quant::{Format, GROUP};
use gptrickle_core::source::{Cause, Error, Source};
use gptrickle_core::tokenizer::Tokenizer;
use half::{bf16, f16};
use rayon::prelude::*;

use crate::checkpoint::{Checkpoint, Config, SPECIAL, Stored, Vocabulary, Weights};
use crate::encode::encode;
use crate::gguf_writer::{Value, Writer};
use crate::mix::{FileType, Matrix};
use crate::synth::size_label;

/// Values that are encoded at a time, a row at least.
pub const BATCH: usize = 1 << 20;
/// Rows that a thread transposes or encodes at a time.
const ROWS: usize = 16;

/// A checkpoint that becomes a file of this type.
#[derive(Debug)]
pub struct Model {
    weights: Weights,
    tensors: Vec<Tensor>,
    header: Writer,
    notes: Vec<String>,
}

/// A tensor to be converted.
#[derive(Debug)]
struct Tensor {
    name: String,
    stored: Stored,
    rows: Option<usize>, // none: one dimension
    cols: usize,
    transposed: bool,
    format: Format,
}

impl Tensor {
    fn bytes(&self) -> u64 {
        self.format.row_bytes(self.cols) as u64 * self.rows.unwrap_or(1) as u64
    }
}

/// A layer's parts: names in the checkpoint and in the file, and what the matrix is, if it is none of a norm.
type Part = (&'static str, &'static str, Option<fn(usize) -> Matrix>);

/// A layer's parts in the order in which a pass reads them.
const LAYER: [Part; 6] = [
    ("ln_1", "attn_norm", None),
    ("attn.c_attn", "attn_qkv", Some(Matrix::AttnQkv)),
    ("attn.c_proj", "attn_output", Some(Matrix::AttnOutput)),
    ("ln_2", "ffn_norm", None),
    ("mlp.c_fc", "ffn_up", Some(Matrix::FfnUp)),
    ("mlp.c_proj", "ffn_down", Some(Matrix::FfnDown)),
];

const EMBEDDING: &str = "wte.weight";
const HEAD: &str = "lm_head.weight";

/// Takes tensors from a checkpoint, and remembers which.
struct Picker<'c> {
    weights: &'c Weights,
    config: &'c Config,
    file_type: FileType,
    tied: bool,
    taken: BTreeSet<String>,
    tensors: Vec<Tensor>,
}

impl Picker<'_> {
    /// Takes a vector of `len` values.
    fn vector(&mut self, from: &str, name: String, len: usize) -> anyhow::Result<()> {
        let stored = self.stored(from, &[len])?;
        self.tensors.push(Tensor { name, stored, rows: None, cols: len, transposed: false, format: Format::F32 });
        Ok(())
    }

    /// Takes a matrix of `rows` outputs; `matrix` is none for the position embedding, which is never encoded.
    fn matrix(
        &mut self,
        from: &str,
        name: String,
        (rows, cols): (usize, usize),
        transposed: bool,
        matrix: Option<Matrix>,
    ) -> anyhow::Result<()> {
        let shape = if transposed { [cols, rows] } else { [rows, cols] };
        let stored = self.stored(from, &shape)?;
        let format =
            matrix.map_or(Format::F32, |matrix| self.file_type.format(matrix, cols, self.config.n_layer, self.tied));
        self.tensors.push(Tensor { name, stored, rows: Some(rows), cols, transposed, format });
        Ok(())
    }

    fn stored(&mut self, name: &str, shape: &[usize]) -> anyhow::Result<Stored> {
        let stored = self
            .weights
            .get(name)
            .with_context(|| format!("the checkpoint has no tensor {name}: it is incomplete, or no GPT2LMHeadModel"))?;
        if stored.shape != shape {
            bail!("tensor {} has shape {:?}, config.json makes it {shape:?}", stored.name, stored.shape);
        }
        self.weights.check_type(stored)?;
        self.taken.insert(name.to_owned());
        Ok(stored.clone())
    }

    /// All tensors of the model.
    fn all(&mut self) -> anyhow::Result<()> {
        let &Config { n_layer, n_embd, n_ff, n_ctx, n_vocab, .. } = self.config;
        self.matrix(EMBEDDING, "token_embd.weight".into(), (n_vocab, n_embd), false, Some(Matrix::TokenEmbd))?;
        self.matrix("wpe.weight", "position_embd.weight".into(), (n_ctx, n_embd), false, None)?;
        for layer in 0..n_layer {
            for (from, name, matrix) in LAYER {
                let (rows, cols) = match name {
                    "attn_qkv" => (3 * n_embd, n_embd),
                    "ffn_up" => (n_ff, n_embd),
                    "ffn_down" => (n_embd, n_ff),
                    _ => (n_embd, n_embd),
                };
                let (from, name) = (format!("h.{layer}.{from}"), format!("blk.{layer}.{name}"));
                let (weight, bias) = (format!("{from}.weight"), format!("{from}.bias"));
                match matrix {
                    None => self.vector(&weight, format!("{name}.weight"), n_embd)?,
                    Some(matrix) => {
                        self.matrix(&weight, format!("{name}.weight"), (rows, cols), true, Some(matrix(layer)))?;
                    }
                }
                self.vector(&bias, format!("{name}.bias"), rows)?;
            }
        }
        self.vector("ln_f.weight", "output_norm.weight".into(), n_embd)?;
        self.vector("ln_f.bias", "output_norm.bias".into(), n_embd)?;
        if !self.tied {
            self.matrix(HEAD, "output.weight".into(), (n_vocab, n_embd), false, Some(Matrix::Output))?;
        }
        Ok(())
    }

    /// Refuses a checkpoint that has tensors which the file would lack.
    fn nothing_left(&self) -> anyhow::Result<()> {
        let left = self.weights.names().find(|&name| {
            let buffer = name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias");
            !(buffer || name == HEAD || self.taken.contains(name))
        });
        match left {
            Some(name) => bail!("the checkpoint has a tensor {name}, which no GPT2LMHeadModel of this shape has"),
            None => Ok(()),
        }
    }
}

impl Model {
    /// Checks that a checkpoint's files fit together and make a file that can be run.
    ///
    /// # Errors
    /// A tensor is missing, has another shape than `config.json` tells, or values that cannot be converted; the
    /// vocabulary has more tokens than the embedding; the file could not be run.
    pub fn new(checkpoint: Checkpoint, file_type: FileType) -> anyhow::Result<Model> {
        let Checkpoint { name, config, weights, mut vocabulary } = checkpoint;
        let mut notes = Vec::new();
        if !config.n_embd.is_multiple_of(GROUP) || !config.n_ff.is_multiple_of(GROUP) {
            bail!(
                "config.json tells of rows of {} and {}: only multiples of {GROUP} can be run",
                config.n_embd,
                config.n_ff
            );
        }
        let tied = tied(&weights, &config, &mut notes)?;
        let (taken, tensors) = (BTreeSet::new(), Vec::new());
        let mut picker = Picker { weights: &weights, config: &config, file_type, tied, taken, tensors };
        picker.all()?;
        picker.nothing_left()?;
        let tensors = picker.tensors;

        let (tokens, rows) = (vocabulary.tokens.len(), config.n_vocab);
        ensure!(
            tokens <= rows,
            "the tokenizer has {tokens} tokens, the embedding only {rows} rows: which one is right?"
        );
        vocabulary.pad(rows);
        if vocabulary.adds_space {
            notes.push(
                "the tokenizer puts a space in front of every text, which a GGUF file cannot say: write it".into(),
            );
        }
        let n_weights = tensors.iter().map(|tensor| (tensor.cols * tensor.rows.unwrap_or(1)) as u64).sum();
        let mut header = metadata(&name, &config, &vocabulary, n_weights, file_type, &mut notes);
        for tensor in &tensors {
            let dims: Vec<u64> = [tensor.cols].into_iter().chain(tensor.rows).map(|dim| dim as u64).collect();
            header = header.tensor(&tensor.name, &dims, tensor.format.id(), tensor.bytes());
        }
        runs(&header, tensors.iter().map(Tensor::bytes).sum()).context("the file could not be run")?;
        Ok(Model { weights, tensors, header, notes })
    }

    /// What a person should know of the conversion.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The file's header, tensors and all.
    pub fn header(&self) -> Writer {
        self.header.clone()
    }

    /// Bytes of all tensors, without what goes between them.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.iter().map(Tensor::bytes).sum()
    }

    /// Hands all tensors' blocks to `sink`, in the header's order, some rows at a time.
    ///
    /// # Errors
    /// Values cannot be read, are no finite numbers or too large for their type; whatever `sink` says.
    pub fn encode(&self, mut sink: impl FnMut(&[u8]) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let mut whole = Vec::new();
        let (mut weights, mut blocks) = (Vec::new(), Vec::new());
        for tensor in &self.tensors {
            let &Tensor { cols, transposed, format, .. } = tensor;
            let rows = tensor.rows.unwrap_or(1);
            if transposed {
                whole.resize(rows * cols, 0.0);
                self.weights.read(&tensor.stored, 0, &mut whole)?;
            }
            let row_bytes = format.row_bytes(cols);
            let step = (BATCH / cols).max(1);
            for first in (0..rows).step_by(step) {
                let batch = first..rows.min(first + step);
                weights.resize(batch.len() * cols, 0.0);
                if transposed {
                    transpose(&whole, rows, batch, cols, &mut weights);
                } else {
                    self.weights.read(&tensor.stored, first * cols, &mut weights)?;
                }
                check_range(&tensor.stored.name, format, &weights)?;
                blocks.resize(weights.len() / cols * row_bytes, 0);
                let rows = blocks.par_chunks_mut(ROWS * row_bytes).zip(weights.par_chunks(ROWS * cols));
                rows.for_each(|(blocks, weights)| encode(format, weights, blocks));
                sink(&blocks)?;
            }
        }
        Ok(())
    }
}

/// Whether the token embedding is the head: there is no other, or it is a copy.
fn tied(weights: &Weights, config: &Config, notes: &mut Vec<String>) -> anyhow::Result<bool> {
    let Some(head) = weights.get(HEAD) else { return Ok(config.tied) };
    let Some(embedding) = weights.get(EMBEDDING).filter(|embedding| embedding.shape == head.shape) else {
        return Ok(false);
    };
    weights.check_type(head)?;
    weights.check_type(embedding)?;
    let len = head.shape.iter().product::<usize>();
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for first in (0..len).step_by(BATCH) {
        let n = BATCH.min(len - first);
        a.resize(n, 0.0);
        b.resize(n, 0.0);
        weights.read(head, first, &mut a)?;
        weights.read(embedding, first, &mut b)?;
        if a.iter().zip(&b).any(|(a, b)| a.to_bits() != b.to_bits()) {
            if config.tied {
                notes.push(format!("config.json ties the head to the embedding, but {HEAD} is another: it is kept"));
            }
            return Ok(false);
        }
    }
    Ok(true)
}

/// Rows of a matrix whose columns lie one after the other, `rows` values each.
fn transpose(whole: &[f32], rows: usize, batch: Range<usize>, cols: usize, out: &mut [f32]) {
    out.par_chunks_mut(ROWS * cols).enumerate().for_each(|(i, out)| {
        let first = batch.start + i * ROWS;
        for (col, column) in whole.chunks_exact(rows).enumerate() {
            for (out, value) in out[col..].iter_mut().step_by(cols).zip(&column[first..]) {
                *out = *value;
            }
        }
    });
}

/// Refuses values that would become infinite, as a scale or on their own.
fn check_range(name: &str, format: Format, weights: &[f32]) -> anyhow::Result<()> {
    let most = match format {
        Format::F32 => return Ok(()),
        Format::BF16 => bf16::MAX.to_f32(),
        _ => f16::MAX.to_f32(),
    };
    match weights.iter().find(|weight| weight.abs() > most) {
        Some(weight) => bail!("tensor {name} has the value {weight}, beyond {format:?}: use --type F32 or BF16"),
        None => Ok(()),
    }
}

/// The header without its tensors: the keys of today's converter.
fn metadata(
    name: &str,
    config: &Config,
    vocabulary: &Vocabulary,
    n_weights: u64,
    file_type: FileType,
    notes: &mut Vec<String>,
) -> Writer {
    let kinds: Vec<i32> = vocabulary.kinds.iter().map(|&kind| kind as i32).collect();
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX); // core refuses that
    let mut header = Writer::new()
        .entry("general.architecture", "gpt2")
        .entry("general.type", "model")
        .entry("general.name", name)
        .entry("general.size_label", &*size_label(n_weights))
        .entry("gpt2.block_count", number(config.n_layer))
        .entry("gpt2.context_length", number(config.n_ctx))
        .entry("gpt2.embedding_length", number(config.n_embd))
        .entry("gpt2.feed_forward_length", number(config.n_ff))
        .entry("gpt2.attention.head_count", number(config.n_head))
        .entry("gpt2.attention.layer_norm_epsilon", config.epsilon)
        .entry("general.file_type", file_type.id())
        .entry("general.quantization_version", 2u32)
        .entry("tokenizer.ggml.model", "gpt2")
        .entry("tokenizer.ggml.pre", "gpt-2")
        .entry("tokenizer.ggml.tokens", Value::strings(&vocabulary.tokens))
        .entry("tokenizer.ggml.token_type", Value::i32s(&kinds))
        .entry("tokenizer.ggml.merges", Value::strings(&vocabulary.merges));
    for (short, long) in SPECIAL {
        let named = vocabulary.special.iter().find(|(name, _)| *name == short).map(|&(_, id)| id);
        let Some(id) = named.or_else(|| config.token(short)) else { continue };
        match u32::try_from(id).ok().filter(|&id| (id as usize) < vocabulary.tokens.len()) {
            Some(id) => header = header.entry(&format!("tokenizer.ggml.{long}_token_id"), id),
            None => notes.push(format!("{short}_token_id is {id} in config.json, which is no token: it is left out")),
        }
    }
    for (key, add) in [("add_bos_token", vocabulary.add_bos), ("add_eos_token", vocabulary.add_eos)] {
        if let Some(add) = add {
            header = header.entry(&format!("tokenizer.ggml.{key}"), add);
        }
    }
    if let Some(template) = &vocabulary.chat_template {
        header = header.entry("tokenizer.chat_template", &**template);
    }
    header
}

/// Opens a file that has this header and so many bytes of tensors, and loads its tokenizer.
fn runs(header: &Writer, tensor_bytes: u64) -> anyhow::Result<()> {
    let bytes = header.clone().start(Vec::new())?.into_inner();
    let len = bytes.len() as u64 + tensor_bytes + header.most_padding();
    let mut promised = Promised { bytes, len };
    let model = generate::Model::open(&mut promised)?;
    let mut memory = vec![0; Tokenizer::bytes(&model.vocabulary) + ALIGN];
    Tokenizer::load(&model.vocabulary, &mut promised, &mut Arena::new(&mut memory))?;
    Ok(())
}

/// A file of which only the header is there yet.
struct Promised {
    bytes: Vec<u8>,
    len: u64,
}

impl Source for Promised {
    fn len(&self) -> u64 {
        self.len
    }

    fn max_chunk(&self) -> usize {
        usize::MAX
    }

    fn chunk(&mut self, offset: u64, len: usize) -> Result<&[u8], Error> {
        let wrong = Error { offset, len, cause: Cause::OutOfRange(self.len) };
        let end = offset.checked_add(len as u64).filter(|&end| end <= self.len).ok_or(wrong)?;
        // A window over the header's end may reach into the weights.
        if end > self.bytes.len() as u64 {
            self.bytes.resize(end as usize, 0);
        }
        Ok(&self.bytes[offset as usize..end as usize])
    }
}
