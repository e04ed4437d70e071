//! A model's file in another type.
//!
//! [`Plan`] says which tensor gets which type and where it goes, [`Plan::write`] encodes the matrices row by row on all
//! threads of the pool it runs in. Norms, biases and the position embedding stay as they are, and so does the metadata,
//! but for what tells of types. A mix for boards ([`Device`](crate::mix::Device)) lays the file out for them besides:
//!
//! ```text
//! header, with a table of checksums │ position_embd │ blk.0 … in the order of a pass │ output_norm │ token_embd
//! ```
//!
//! Every tensor starts on a sector of [`SECTOR`] bytes, the head comes last, so that a token is one sweep over the file,
//! and it is stored once: an `output.weight` that is a copy of the token embedding is left out.

use std::io::{self, Seek, SeekFrom, Write};

use anyhow::{Context, bail, ensure};
use gptrickle_core::generate::Model;
use gptrickle_core::gguf;
use gptrickle_core::quant::{Format, dequantize};
use rayon::prelude::*;

use crate::checksums::{self, Checksums};
use crate::encode::feedback::Feedback;
use crate::encode::fit;
use crate::gguf_writer::{ARRAY, STRING, Value, Writer};
use crate::importance::Importance;
use crate::mix::{Matrix, Mix};

/// What tensors of a file for boards are aligned to: a card reads no less at a time.
pub const SECTOR: u32 = 512;

/// Weights that are encoded between two writes.
const AT_ONCE: usize = 1 << 21;

/// A name with `*` for any characters, and the type of the matrices that have such a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    /// The name.
    pub pattern: String,
    /// The type.
    pub format: Format,
}

impl Override {
    /// Whether a name is such a name.
    pub fn matches(&self, name: &str) -> bool {
        let mut parts = self.pattern.split('*');
        let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        for part in parts {
            match rest.find(part) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        rest.ends_with(last)
    }
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Options<'a> {
    /// The types.
    pub mix: Mix,
    /// Exceptions; of several that match, the last one counts.
    pub overrides: &'a [Override],
    /// How large the inputs of each matrix are, and what the file with them is called.
    pub importance: Option<(&'a Importance, &'a str)>,
    /// Whether matrices that are quantised already may be quantised again.
    pub requantize: bool,
}

/// A tensor on its way.
#[derive(Debug, Clone)]
struct Job<'a> {
    name: String,
    dims: Vec<u64>,
    at: usize,    // in the input
    bytes: usize, // there
    from: Format,
    to: Format,
    importance: Option<Vec<f32>>, // (columns)
    products: Option<&'a [f32]>,  // of its inputs
}

impl Job<'_> {
    fn out_bytes(&self) -> u64 {
        let rows: u64 = self.dims[1..].iter().product();
        rows * self.to.row_bytes(self.dims[0] as usize) as u64
    }
}

/// A file to be written.
#[derive(Debug)]
pub struct Plan<'a> {
    input: &'a [u8],
    header: Writer,
    jobs: Vec<Job<'a>>,
    checksums: bool,
    alignment: u64,
    /// Matrices whose inputs' importance is not known, though that of others is.
    pub without_importance: usize,
}

impl<'a> Plan<'a> {
    /// Reads the header of `input`, a model's file.
    ///
    /// # Errors
    /// It is no GPT-2 model, or what is asked for cannot be had; the error names the tensor.
    pub fn new(input: &'a [u8], options: &Options<'a>) -> anyhow::Result<Plan<'a>> {
        let mut src = input;
        let model = Model::open(&mut src)?;
        let mut tensors = Vec::new();
        let mut infos = model.file.tensors(&mut src);
        while let Some(info) = infos.next()? {
            tensors.push(info);
        }
        let data = |info: &gguf::Tensor| &input[info.span.at as usize..][..info.span.len as usize];
        let named = |name: &str| tensors.iter().find(|info| info.name.as_str() == Some(name));
        let for_boards = matches!(options.mix, Mix::Device(_));
        // Older converters store the token embedding twice.
        let copy = named("output.weight")
            .zip(named("token_embd.weight"))
            .is_some_and(|(head, embedding)| head.kind.id == embedding.kind.id && data(head) == data(embedding));
        let tied = model.header.tied || (for_boards && copy);
        let config = model.header.config;

        let mut jobs = Vec::new();
        let mut used = vec![false; options.overrides.len()];
        let (mut known, mut unknown) = (0, 0);
        for info in &tensors {
            let name = info.name.to_string();
            if tied && name == "output.weight" {
                continue;
            }
            let from = Format::from_id(info.kind.id).with_context(|| format!("{name} has an unknown type"))?;
            let matrix = Matrix::from_name(&name);
            let n_dims = if matrix.is_some() || name == "position_embd.weight" { 2 } else { 1 };
            let cols = info.dims[0] as usize;
            let mut job = Job {
                dims: info.dims[..n_dims].to_vec(),
                at: info.span.at as usize,
                bytes: info.span.len as usize,
                from,
                to: from,
                importance: None,
                products: None,
                name,
            };
            if let Some(matrix) = matrix {
                job.to = options.mix.format(matrix, cols, config.n_layer, tied);
                for (used, exception) in used.iter_mut().zip(options.overrides) {
                    if exception.matches(&job.name) {
                        (*used, job.to) = (true, exception.format);
                    }
                }
                let len = job.to.block().0;
                ensure!(
                    cols.is_multiple_of(len),
                    "{} cannot be {:?}: its rows have {cols} weights, no multiple of {len}",
                    job.name,
                    job.to
                );
                if !job.from.is_float() && !job.to.is_float() && job.from != job.to && !options.requantize {
                    bail!(
                        "{} is {:?} already, and quantising it again loses more: start from an F32 or F16 file, or \
                         say --allow-requantize",
                        job.name,
                        job.from
                    );
                }
                if let Some((importance, _)) = options.importance {
                    // The head's inputs are kept under the name of what is the head.
                    let is_head = tied && job.name == "token_embd.weight" && importance.of(&job.name).is_none();
                    let name = if is_head { "output.weight" } else { &job.name };
                    job.importance = importance.of(name);
                    job.products = importance.products(name).filter(|_| job.importance.is_some());
                    if let Some(found) = job.importance.as_ref().filter(|found| found.len() != cols) {
                        bail!(
                            "{} has {cols} columns, the importance {}: it is of another model",
                            job.name,
                            found.len()
                        );
                    }
                    *(if job.importance.is_some() { &mut known } else { &mut unknown }) += 1;
                }
            }
            jobs.push(job);
        }
        if let Some(i) = used.iter().position(|used| !used) {
            bail!("no matrix is called {}: gptrickle inspect lists them", options.overrides[i].pattern);
        }
        if let Some((_, file)) = options.importance.filter(|_| known == 0) {
            bail!("{file} knows none of this model's matrices: gather it with this model");
        }
        if for_boards {
            jobs.sort_by_key(|job| place(&job.name, tied));
        }
        let alignment = if for_boards { SECTOR.into() } else { model.file.alignment };
        let mut header = Writer::new();
        if alignment != 32 {
            header = header.alignment(alignment as u32);
        }
        for (key, value) in entries(input, model.file.n_entries)? {
            let stale = key.starts_with("quantize.imatrix.") || [checksums::CHUNK, checksums::TABLE].contains(&&*key);
            if key != "general.alignment" && !stale {
                header = header.entry(&key, value);
            }
        }
        header = header.replace("general.quantization_version", 2u32).replace("general.file_type", options.mix.id());
        if let Some((importance, file)) = options.importance {
            header = header
                .entry("quantize.imatrix.file", file)
                .entry("quantize.imatrix.dataset", &*importance.dataset)
                .entry("quantize.imatrix.entries_count", importance.len() as u32)
                .entry("quantize.imatrix.chunks_count", importance.chunks);
        }
        for job in &jobs {
            header = header.tensor(&job.name, &job.dims, job.to.id(), job.out_bytes());
        }
        Ok(Plan { input, header, jobs, checksums: for_boards, alignment, without_importance: unknown })
    }

    /// Bytes of all tensors, without what goes between them.
    pub fn tensor_bytes(&self) -> u64 {
        self.jobs.iter().map(Job::out_bytes).sum()
    }

    /// Weights of all tensors.
    pub fn weights(&self) -> u64 {
        self.jobs.iter().map(|job| job.dims.iter().product::<u64>()).sum()
    }

    /// Writes the file, in the threads of the pool that this runs in; tells `advance` the bytes done since last time.
    ///
    /// # Errors
    /// A weight is no number, or beyond what the type can hold; whatever `out` or `advance` says.
    pub fn write<W: Write + Seek>(&self, out: W, mut advance: impl FnMut(u64) -> io::Result<()>) -> anyhow::Result<W> {
        let mut data = self.with_table(self.blank_table()?).start(Hashed { out, checksums: Checksums::default() })?;
        let mut buffer = Vec::new();
        for job in &self.jobs {
            let bytes = &self.input[job.at..][..job.bytes];
            if job.from == job.to {
                for bytes in bytes.chunks(4 * AT_ONCE) {
                    data.write(bytes)?;
                    advance(bytes.len() as u64)?;
                }
                continue;
            }
            let cols = job.dims[0] as usize;
            let (from_row, to_row) = (job.from.row_bytes(cols), job.to.row_bytes(cols));
            let rows = (AT_ONCE / cols).max(1);
            let feedback = match job.products.filter(|_| !job.to.is_float()) {
                Some(products) => Some(Feedback::new(products, cols).with_context(|| {
                    format!("the products of {}'s inputs are those of no text: gather them again", job.name)
                })?),
                None => None,
            };
            for (i, bytes) in bytes.chunks(rows * from_row).enumerate() {
                buffer.resize(bytes.len() / from_row * to_row, 0);
                let pairs = buffer.par_chunks_mut(to_row).zip(bytes.par_chunks(from_row)).enumerate();
                pairs.try_for_each_init(
                    || vec![0.0; cols],
                    |weights, (row, (out, bytes))| {
                        dequantize(job.from, bytes, weights);
                        check(weights, job.to).with_context(|| format!("{}, row {}", job.name, i * rows + row))?;
                        fit(job.to, weights, job.importance.as_deref(), feedback.as_ref(), out);
                        anyhow::Ok(())
                    },
                )?;
                data.write(&buffer)?;
                advance(buffer.len() as u64)?;
            }
        }
        let Hashed { mut out, checksums, .. } = data.finish()?;
        if self.checksums {
            out.seek(SeekFrom::Start(0))?;
            out = self.with_table(checksums.finish()).start(out)?.into_inner();
        }
        Ok(out)
    }

    /// The header, with these checksums in front if it has any.
    fn with_table(&self, table: Value) -> Writer {
        let header = self.header.clone();
        if !self.checksums {
            return header;
        }
        header.first(checksums::TABLE, table).first(checksums::CHUNK, checksums::CHUNK_BYTES)
    }

    /// A table of zeros, as long as the file's, which it is a part of.
    fn blank_table(&self) -> io::Result<Value> {
        let mut blank = Checksums::blank(0);
        loop {
            let header = self.with_table(blank.clone()).start(io::sink())?.bytes();
            let pad = |at: u64| at.next_multiple_of(self.alignment);
            let end = self.jobs.iter().fold(header, |at, job| pad(at) + job.out_bytes());
            let longer = Checksums::blank(pad(end));
            if longer == blank {
                return Ok(blank);
            }
            blank = longer;
        }
    }
}

/// Checks that weights can be encoded.
fn check(weights: &[f32], format: Format) -> anyhow::Result<()> {
    const MOST: f32 = 65504.0; // of f16, which scales are
    for (i, weight) in weights.iter().enumerate() {
        ensure!(weight.is_finite(), "weight {i} is {weight}: the model is damaged");
        let small = weight.abs() <= MOST || matches!(format, Format::F32 | Format::BF16);
        ensure!(small, "weight {i} is {weight}, beyond what {format:?} can hold: give it BF16 with --tensor");
    }
    Ok(())
}

/// Where a tensor stands in a file for boards: in the order in which a pass reads them.
fn place(name: &str, tied: bool) -> (usize, usize, String) {
    const LAYER: [&str; 6] = ["attn_norm.", "attn_qkv.", "attn_output.", "ffn_norm.", "ffn_up.", "ffn_down."];
    let (layer, within) = match name.strip_prefix("blk.").and_then(|name| name.split_once('.')) {
        Some((layer, within)) => (layer.parse().unwrap_or(0) + 1, within),
        None if name == "position_embd.weight" || (name == "token_embd.weight" && !tied) => (0, name),
        None if name.starts_with("output_norm.") => (usize::MAX - 1, name),
        None => (usize::MAX, name),
    };
    let part = LAYER.iter().position(|part| within.starts_with(part)).unwrap_or(LAYER.len());
    // The weight before the bias.
    (layer, 2 * part + usize::from(within.ends_with(".bias")), within.to_owned())
}

/// Writes on, and takes checksums.
struct Hashed<W> {
    out: W,
    checksums: Checksums,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.checksums.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The metadata of a file whose header was checked, in order.
fn entries(file: &[u8], n: u64) -> anyhow::Result<Vec<(String, Value)>> {
    let mut rest = &file[24..];
    let mut entries = Vec::new();
    for _ in 0..n {
        let key = take_string(&mut rest);
        let key = std::str::from_utf8(&key[8..]).context("a metadata key is no text")?.to_owned();
        let kind = number(take(&mut rest, 4)) as u32;
        let start = rest;
        let element = if kind == ARRAY { number(take(&mut rest, 4)) as u32 } else { kind };
        let count = if kind == ARRAY { number(take(&mut rest, 8)) } else { 1 };
        for _ in 0..count {
            match element {
                STRING => _ = take_string(&mut rest),
                _ => _ = take(&mut rest, ELEMENT_BYTES[element as usize]),
            }
        }
        entries.push((key, Value::raw(kind, &start[..start.len() - rest.len()])));
    }
    Ok(entries)
}

/// Bytes of a value by its type's id; strings and arrays tell theirs.
const ELEMENT_BYTES: [usize; 13] = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8];

fn take<'a>(rest: &mut &'a [u8], n: usize) -> &'a [u8] {
    let (taken, left) = rest.split_at(n);
    *rest = left;
    taken
}

/// A string with its length in front.
fn take_string<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let len = number(&rest[..8]) as usize;
    take(rest, 8 + len)
}

/// A whole number of up to eight bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}
