//! How large the inputs of each matrix are on a text: what a quantiser should look at besides the weights.
//!
//! The file is GGUF as llama.cpp's imatrix tool writes it, so that each reads the other's: for a matrix `NAME`, the sums
//! of its inputs' squares, `NAME.in_sum2` (columns), and how many there were, `NAME.counts` (1), both F32; and three
//! entries of metadata on the text. The head's inputs are kept, too, under the name of the matrix that it is.
//!
//! Where products are asked for, there are besides the sums of products of every two inputs of a run, which tell what
//! goes together: `NAME.in_products`, F32, as [`Feedback::new`](crate::encode::feedback::Feedback::new) takes them.
//! llama.cpp passes over those.

use std::collections::BTreeMap;
use std::io::{self, Write};

use anyhow::{Context, bail, ensure};
use gptrickle_core::gguf::{self, Value as Found};
use gptrickle_core::source::Source;

use crate::encode::feedback::{RUN, width};
use crate::gguf_writer::{Value, Writer};

const SUMS: &str = ".in_sum2";
const PRODUCTS: &str = ".in_products";
const COUNTS: &str = ".counts";
const DATASETS: &str = "imatrix.datasets";
const CHUNKS: &str = "imatrix.chunk_count";
const CHUNK_TOKENS: &str = "imatrix.chunk_size";

/// The inputs of every matrix, by the matrix's name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Importance {
    inputs: BTreeMap<String, Inputs>,
    /// What the text is called.
    pub dataset: String,
    /// Into how many chunks it was cut.
    pub chunks: u32,
    /// Tokens of a chunk.
    pub chunk_tokens: u32,
    /// Whether [`Importance::add`] sums products, too.
    pub with_products: bool,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Inputs {
    sums: Vec<f64>,     // of squares (columns)
    products: Vec<f32>, // sums (columns, width), or none
    count: u64,
}

impl Importance {
    /// Adds inputs of a matrix, rows of as many values as it has columns.
    ///
    /// # Panics
    /// It had another number of columns before, or these are no whole rows.
    pub fn add(&mut self, matrix: &str, columns: usize, inputs: &[f32]) {
        if !self.inputs.contains_key(matrix) {
            let products = if self.with_products { vec![0.0; columns * width(columns)] } else { Vec::new() };
            self.inputs.insert(matrix.into(), Inputs { sums: vec![0.0; columns], products, count: 0 });
        }
        let Some(known) = self.inputs.get_mut(matrix) else { return };
        assert!(known.sums.len() == columns && inputs.len().is_multiple_of(columns), "whole rows");
        for row in inputs.chunks_exact(columns) {
            known.sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x) * f64::from(x));
            known.count += 1;
        }
        // Sums of these rows first: of a whole text, an f32 would forget the last.
        for (j, sums) in known.products.chunks_exact_mut(width(columns)).enumerate() {
            let mut of_rows = [0.0; RUN];
            for row in inputs.chunks_exact(columns) {
                of_rows.iter_mut().zip(&row[j / RUN * RUN..=j]).for_each(|(sum, x)| *sum += row[j] * x);
            }
            sums.iter_mut().zip(&of_rows[..=j % RUN]).for_each(|(sum, of_rows)| *sum += of_rows);
        }
    }

    /// Nothing seen yet of a text of this name, which is cut into so many chunks of so many tokens.
    pub fn new(dataset: &str, chunks: u32, chunk_tokens: u32) -> Self {
        Importance { dataset: dataset.into(), chunks, chunk_tokens, ..Importance::default() }
    }

    /// The mean square of each input of a matrix, if there were any.
    pub fn of(&self, matrix: &str) -> Option<Vec<f32>> {
        let Inputs { sums, count, .. } = self.inputs.get(matrix).filter(|inputs| inputs.count > 0)?;
        Some(sums.iter().map(|sum| (sum / *count as f64) as f32).collect())
    }

    /// The sums of products of a matrix's inputs, if they are known: (columns, width), as feedback takes them.
    pub fn products(&self, matrix: &str) -> Option<&[f32]> {
        self.inputs.get(matrix).map(|inputs| &*inputs.products).filter(|products| !products.is_empty())
    }

    /// For how many matrices inputs were seen.
    pub fn len(&self) -> usize {
        self.inputs.len()
    }

    /// Whether there were none.
    pub fn is_empty(&self) -> bool {
        self.inputs.is_empty()
    }

    /// Writes the file.
    ///
    /// # Errors
    /// Whatever `out` says.
    pub fn write<W: Write>(&self, out: W) -> io::Result<W> {
        let mut header = Writer::new()
            .entry("general.type", "imatrix")
            .entry(DATASETS, Value::strings(&[&self.dataset]))
            .entry(CHUNKS, self.chunks)
            .entry(CHUNK_TOKENS, self.chunk_tokens);
        for (name, Inputs { sums, products, .. }) in &self.inputs {
            let n = sums.len() as u64;
            header = header.tensor(&format!("{name}{SUMS}"), &[n, 1], 0, 4 * n);
            header = header.tensor(&format!("{name}{COUNTS}"), &[1, 1], 0, 4);
            if !products.is_empty() {
                let bytes = 4 * products.len() as u64;
                header = header.tensor(&format!("{name}{PRODUCTS}"), &[width(sums.len()) as u64, n], 0, bytes);
            }
        }
        let mut data = header.start(out)?;
        for Inputs { sums, products, count } in self.inputs.values() {
            let sums: Vec<u8> = sums.iter().flat_map(|&sum| (sum as f32).to_le_bytes()).collect();
            data.write(&sums)?;
            data.write(&(*count as f32).to_le_bytes())?;
            if !products.is_empty() {
                data.write(&products.iter().flat_map(|sum| sum.to_le_bytes()).collect::<Vec<_>>())?;
            }
        }
        data.finish()
    }

    /// Reads a file.
    ///
    /// # Errors
    /// It is no such file, or damaged; the error says what is wrong.
    pub fn read<S: Source>(src: &mut S) -> anyhow::Result<Importance> {
        let mut found = Importance::default();
        let mut datasets = None;
        let file = gguf::open(src, |key, value| {
            match (key.as_str(), value) {
                (Some(CHUNKS), Found::U32(n)) => found.chunks = *n,
                (Some(CHUNK_TOKENS), Found::U32(n)) => found.chunk_tokens = *n,
                (Some(DATASETS), Found::Array(array)) => datasets = Some(*array),
                _ => {}
            }
            Ok::<(), gguf::Error>(())
        })
        .context("no importance: gptrickle importance makes it, or llama.cpp's imatrix tool, as GGUF")?;
        if let Some(array) = datasets
            && let Some(name) = gguf::Strings::new(src, &array).next()?
        {
            found.dataset = String::from_utf8_lossy(name).into_owned();
        }
        let mut tensors = Vec::new();
        let mut infos = file.tensors(src);
        while let Some(info) = infos.next()? {
            tensors.push(info);
        }
        for info in tensors {
            let full = info.name.to_string();
            if full.ends_with(".in_sum") {
                continue; // newer imatrix tools keep plain sums, too
            }
            let Some((name, suffix)) =
                [SUMS, COUNTS, PRODUCTS].into_iter().find_map(|suffix| Some((full.strip_suffix(suffix)?, suffix)))
            else {
                bail!("tensor {full} does not belong into a file of importances: is it a model?")
            };
            ensure!(info.kind.id == 0, "{full} is {}: it must be F32", info.kind.name);
            let mut values = vec![0.0f32; (info.span.len / 4) as usize];
            for (i, value) in values.iter_mut().enumerate() {
                let mut bytes = [0; 4];
                bytes.copy_from_slice(src.chunk(info.span.at + 4 * i as u64, 4)?);
                *value = f32::from_le_bytes(bytes);
            }
            ensure!(
                values.iter().all(|value| value.is_finite() && (*value >= 0.0 || suffix == PRODUCTS)),
                "{full} holds a value that is no sum of {}: gather it again",
                if suffix == PRODUCTS { "products" } else { "squares" }
            );
            let inputs = found.inputs.entry(name.into()).or_default();
            match suffix {
                SUMS => inputs.sums = values.into_iter().map(f64::from).collect(),
                PRODUCTS => inputs.products = values,
                _ => {
                    let n = values.len();
                    ensure!(n == 1, "{full} has {n} values: only models without experts are known");
                    inputs.count = values[0] as u64;
                }
            }
        }
        for (name, Inputs { sums, products, .. }) in &found.inputs {
            let (n, wanted) = (products.len(), sums.len() * width(sums.len()));
            ensure!(n == 0 || n == wanted, "{name}{PRODUCTS} has {n} values instead of {wanted}: gather it again");
        }
        found.with_products = found.inputs.values().any(|inputs| !inputs.products.is_empty());
        ensure!(!found.is_empty(), "there are no importances in it: gptrickle importance makes them");
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_come_back() {
        for with_products in [false, true] {
            let mut importance = Importance { with_products, ..Importance::new("a text", 3, 512) };
            importance.add("a.weight", 2, &[1.0, -2.0, 3.0, 0.0]);
            importance.add("b.weight", 1, &[0.5]);
            assert_eq!(importance.of("a.weight"), Some(vec![5.0, 2.0]));
            let products = [10.0, 0.0, -2.0, 4.0]; // up to the input itself
            assert_eq!(importance.products("a.weight"), with_products.then_some(&products[..]));
            let file = importance.write(Vec::new()).unwrap();
            assert_eq!(Importance::read(&mut &file[..]).unwrap(), importance);
            assert_eq!(importance.of("c.weight"), None);
        }
    }

    /// Written byte by byte, as llama.cpp's imatrix tool lays it out (`save_imatrix` in tools/imatrix/imatrix.cpp): one
    /// matrix with plain sums besides, which newer files have, and one without.
    #[test]
    fn what_llama_cpp_writes_is_read() {
        let tensors: [(&str, &[f32]); 5] = [
            ("blk.0.attn_qkv.weight.in_sum2", &[30.0, 8.0, 0.5]),
            ("blk.0.attn_qkv.weight.counts", &[4.0]),
            ("blk.0.attn_qkv.weight.in_sum", &[-10.0, 4.0, 1.0]),
            ("blk.0.ffn_up.weight.in_sum2", &[3.0, 0.0, 1e6]),
            ("blk.0.ffn_up.weight.counts", &[1000.0]),
        ];
        const U32: u32 = 4;
        const STRING: u32 = 8;
        const ARRAY: u32 = 9;
        let string = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
        let entry = |key: &str, kind: u32, value: &[u8]| [&string(key), &kind.to_le_bytes()[..], value].concat();
        let datasets = [&STRING.to_le_bytes()[..], &2u64.to_le_bytes(), &string("a.txt"), &string("b.txt")].concat();
        let mut file = [
            &b"GGUF"[..],
            &3u32.to_le_bytes(), // version
            &(tensors.len() as u64).to_le_bytes(),
            &4u64.to_le_bytes(), // entries
            &entry("general.type", STRING, &string("imatrix")),
            &entry("imatrix.datasets", ARRAY, &datasets),
            &entry("imatrix.chunk_count", U32, &2u32.to_le_bytes()),
            &entry("imatrix.chunk_size", U32, &512u32.to_le_bytes()),
        ]
        .concat();
        for (i, (name, values)) in tensors.iter().enumerate() {
            let shape = [values.len() as u64, 1];
            file.extend(string(name));
            file.extend((shape.len() as u32).to_le_bytes());
            file.extend(shape.iter().flat_map(|n| n.to_le_bytes()));
            file.extend(0u32.to_le_bytes()); // F32
            file.extend((32 * i as u64).to_le_bytes());
        }
        for (_, values) in tensors {
            file.resize(file.len().next_multiple_of(32), 0);
            file.extend(values.iter().flat_map(|x| x.to_le_bytes()));
        }
        file.resize(file.len().next_multiple_of(32), 0);

        let found = Importance::read(&mut &file[..]).unwrap();
        assert_eq!((found.len(), &*found.dataset, found.chunks, found.chunk_tokens), (2, "a.txt", 2, 512));
        assert_eq!(found.of("blk.0.attn_qkv.weight"), Some(vec![7.5, 2.0, 0.125]));
        assert_eq!(found.of("blk.0.ffn_up.weight"), Some(vec![0.003, 0.0, 1000.0]));
        assert_eq!(found.products("blk.0.attn_qkv.weight"), None);
    }

    #[test]
    fn other_files_are_named() {
        let said = |file: &[u8]| format!("{:#}", Importance::read(&mut &*file).unwrap_err());
        assert!(said(b"xyz").starts_with("no importance: "));
        assert!(said(crate::source::DEMO).contains("is it a model?"));
        let file = Writer::new().tensor("a.in_sum2", &[1, 1], 0, 4).start(Vec::new()).unwrap();
        let mut file = file;
        file.write(&f32::NAN.to_le_bytes()).unwrap();
        assert!(said(&file.finish().unwrap()).contains("no sum of squares"));
    }
}
