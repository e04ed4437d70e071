//! Models with random weights, at any size: what it takes to measure speed and memory without a download.
//!
//! A file has the shapes, the mix of types ([`crate::mix`]), the order and the metadata of one that llama.cpp's
//! converter and quantizer made. Weights are drawn about normally distributed and then encoded ([`crate::encode`]), so
//! that block scales are like real ones, and the same seed is the same model in every type: a separate head holds the
//! weights of the token embedding, as in real files. They are scaled for a signal that is sane at any depth: the
//! layers add about 8 (RMS) to the residual stream, which the last norm divides out; attention scores have a
//! deviation near 1, logits one of 4.

mod vocabulary;

use std::fmt;
use std::io::{self, Write};
use std::str::FromStr;

use anyhow::{Context, bail, ensure};
use gptrickle_core::gpt2::MAX_LAYERS;
use gptrickle_core::quant::Format;
use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::{Rng, SeedableRng};

use crate::encode::encode;
use crate::gguf_writer::{Value, Writer};
use crate::mix::{FileType, Matrix};
use vocabulary::Vocabulary;

/// Shapes with a name.
pub const SHAPES: [(&str, [usize; 5]); 5] = [
    ("distilgpt2", [6, 12, 768, 1024, 50257]),
    ("gpt2", [12, 12, 768, 1024, 50257]),
    ("gpt2-medium", [24, 16, 1024, 1024, 50257]),
    ("gpt2-large", [36, 20, 1280, 1024, 50257]),
    ("gpt2-xl", [48, 25, 1600, 1024, 50257]),
];

/// Most values of a row, positions or tokens.
const MOST: usize = 1 << 20;
/// What layers add to the residual stream, RMS.
const RESIDUAL: f32 = 8.0;
/// Standard deviation of logits.
const LOGITS: f32 = 4.0;

/// The shape of a model, within what can be run: read from a name or from `L,H,D,CTX,V`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Blocks of the transformer.
    pub n_layer: usize,
    /// Attention heads; they divide the width.
    pub n_head: usize,
    /// Width of the residual stream, whole groups of 32.
    pub n_embd: usize,
    /// Positions.
    pub n_ctx: usize,
    /// Tokens.
    pub n_vocab: usize,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = [self.n_layer, self.n_head, self.n_embd, self.n_ctx, self.n_vocab];
        match SHAPES.iter().find(|(_, known)| *known == numbers) {
            Some((name, _)) => f.write_str(name),
            None => f.write_str(&numbers.map(|number| number.to_string()).join(",")),
        }
    }
}

impl FromStr for Shape {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Shape> {
        let known = SHAPES.iter().find(|(name, _)| *name == text).map(|(_, numbers)| *numbers);
        let [n_layer, n_head, n_embd, n_ctx, n_vocab] = match known {
            Some(numbers) => numbers,
            None => {
                let numbers: Result<Vec<usize>, _> = text.split(',').map(|number| number.trim().parse()).collect();
                let numbers = numbers.ok().and_then(|numbers| <[usize; 5]>::try_from(numbers).ok());
                let names = SHAPES.map(|(name, _)| name).join(", ");
                numbers.with_context(|| format!("give {names} or five numbers L,H,D,CTX,V"))?
            }
        };
        let least = vocabulary::LEAST;
        ensure!((1..=MAX_LAYERS as usize).contains(&n_layer), "L, the layers, must be 1 to {MAX_LAYERS}");
        if n_embd == 0 || n_embd > MOST / 4 || !n_embd.is_multiple_of(32) {
            bail!("D, the width, must be a multiple of 32 up to {}", MOST / 4);
        }
        ensure!(n_head > 0 && n_embd.is_multiple_of(n_head), "H, the heads, must divide D, the width");
        ensure!((1..=MOST).contains(&n_ctx), "CTX, the positions, must be 1 to {MOST}");
        ensure!((least..=MOST).contains(&n_vocab), "V, the tokens, must be {least} to {MOST}");
        Ok(Shape { n_layer, n_head, n_embd, n_ctx, n_vocab })
    }
}

/// A model to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// Its shape.
    pub shape: Shape,
    /// Its types.
    pub file_type: FileType,
    /// Whether the token embedding is the head, as in files of today's converter.
    pub tied: bool,
    /// What its weights are drawn from.
    pub seed: u64,
}

/// A tensor to be drawn.
struct Tensor {
    name: String,
    cols: usize,
    rows: Option<usize>, // none: one dimension
    format: Format,
    mean: f32,
    deviation: f32,
    stream: u64,
}

impl Tensor {
    fn row_bytes(&self) -> usize {
        self.format.row_bytes(self.cols)
    }

    fn bytes(&self) -> u64 {
        self.row_bytes() as u64 * self.rows.unwrap_or(1) as u64
    }
}

impl Model {
    /// Bytes of all tensors, without what goes between them.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors().iter().map(Tensor::bytes).sum()
    }

    /// Writes the file in one go, holding a row and the vocabulary in memory; tells `advance` the bytes of each row.
    ///
    /// # Errors
    /// Whatever `out` or `advance` says.
    pub fn write<W: Write>(&self, out: W, mut advance: impl FnMut(u64) -> io::Result<()>) -> io::Result<W> {
        let tensors = self.tensors();
        let mut header = self.metadata();
        for tensor in &tensors {
            let dims: Vec<u64> = [tensor.cols].into_iter().chain(tensor.rows).map(|dim| dim as u64).collect();
            header = header.tensor(&tensor.name, &dims, tensor.format.id(), tensor.bytes());
        }
        let mut data = header.start(out)?;
        let (mut weights, mut row) = (Vec::new(), Vec::new());
        for tensor in &tensors {
            weights.resize(tensor.cols, 0.0);
            row.resize(tensor.row_bytes(), 0);
            // An odd factor keeps the streams of a seed apart, the generator's seeding mixes what is left in common.
            let stream = tensor.stream.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut rng = Pcg64Mcg::seed_from_u64(self.seed.wrapping_add(stream));
            for _ in 0..tensor.rows.unwrap_or(1) {
                draw(&mut rng, tensor.mean, tensor.deviation, &mut weights);
                encode(tensor.format, &weights, &mut row);
                data.write(&row)?;
                advance(row.len() as u64)?;
            }
        }
        data.finish()
    }

    /// The header without its tensors: the keys of today's converter.
    fn metadata(&self) -> Writer {
        let Shape { n_layer, n_head, n_embd, n_ctx, n_vocab } = self.shape;
        let Vocabulary { tokens, merges } = Vocabulary::new(n_vocab);
        let mut types = vec![1; n_vocab]; // normal
        types[n_vocab - 1] = 3; // control
        let end = n_vocab as u32 - 1;
        Writer::new()
            .entry("general.architecture", "gpt2")
            .entry("general.type", "model")
            .entry("general.name", &*format!("Synthetic {}", self.shape))
            .entry("general.size_label", &*size_label(self.weights()))
            .entry("gpt2.block_count", n_layer as u32)
            .entry("gpt2.context_length", n_ctx as u32)
            .entry("gpt2.embedding_length", n_embd as u32)
            .entry("gpt2.feed_forward_length", 4 * n_embd as u32)
            .entry("gpt2.attention.head_count", n_head as u32)
            .entry("gpt2.attention.layer_norm_epsilon", 1e-5f32)
            .entry("tokenizer.ggml.model", "gpt2")
            .entry("tokenizer.ggml.pre", "gpt-2")
            .entry("tokenizer.ggml.tokens", Value::strings(&tokens))
            .entry("tokenizer.ggml.token_type", Value::i32s(&types))
            .entry("tokenizer.ggml.merges", Value::strings(&merges))
            .entry("tokenizer.ggml.bos_token_id", end)
            .entry("tokenizer.ggml.eos_token_id", end)
            .entry("general.quantization_version", 2u32)
            .entry("general.file_type", self.file_type.id())
    }

    /// How many weights there are; a head that is a copy does not count.
    fn weights(&self) -> u64 {
        let counted = self.tensors().into_iter().filter(|tensor| tensor.name != OUTPUT);
        counted.map(|tensor| (tensor.cols * tensor.rows.unwrap_or(1)) as u64).sum()
    }

    /// All tensors, in llama-quantize's order: those of no layer, then layer by layer, by name.
    fn tensors(&self) -> Vec<Tensor> {
        let Shape { n_layer, n_embd, n_ctx, n_vocab, .. } = self.shape;
        let n_ff = 4 * n_embd;
        let deviation = |fan_in: usize| 1.0 / (fan_in as f32).sqrt();
        let residual = |fan_in: usize| RESIDUAL / ((fan_in * n_layer) as f32).sqrt();
        let mut stream = 0;
        let mut tensor = |name: &str, cols, rows, format, mean, deviation| {
            stream += 1;
            Tensor { name: name.to_owned(), cols, rows, format, mean, deviation, stream }
        };
        let embedding = LOGITS * deviation(n_embd);
        let matrix = |matrix, cols| self.file_type.format(matrix, cols, n_layer, self.tied);
        let format = matrix(Matrix::TokenEmbd, n_embd);
        let token_embd = tensor("token_embd.weight", n_embd, Some(n_vocab), format, 0.0, embedding);

        let mut tensors = Vec::new();
        if !self.tied {
            let format = matrix(Matrix::Output, n_embd);
            tensors.push(Tensor { name: OUTPUT.into(), format, ..token_embd });
        }
        tensors.push(tensor("output_norm.bias", n_embd, None, Format::F32, 0.0, 0.02));
        tensors.push(tensor("output_norm.weight", n_embd, None, Format::F32, 1.0, 0.1));
        tensors.push(tensor("position_embd.weight", n_embd, Some(n_ctx), Format::F32, 0.0, embedding));
        tensors.push(token_embd);
        for i in 0..n_layer {
            let mut in_layer = |name: &str, cols, rows, format, mean, deviation| {
                tensors.push(tensor(&format!("blk.{i}.{name}"), cols, rows, format, mean, deviation));
            };
            let qkv = matrix(Matrix::AttnQkv(i), n_embd);
            let out = matrix(Matrix::AttnOutput(i), n_embd);
            let (down, up) = (matrix(Matrix::FfnDown(i), n_ff), matrix(Matrix::FfnUp(i), n_embd));
            in_layer("attn_norm.bias", n_embd, None, Format::F32, 0.0, 0.02);
            in_layer("attn_norm.weight", n_embd, None, Format::F32, 1.0, 0.1);
            in_layer("attn_output.bias", n_embd, None, Format::F32, 0.0, 0.02);
            in_layer("attn_output.weight", n_embd, Some(n_embd), out, 0.0, residual(n_embd));
            in_layer("attn_qkv.bias", 3 * n_embd, None, Format::F32, 0.0, 0.02);
            in_layer("attn_qkv.weight", n_embd, Some(3 * n_embd), qkv, 0.0, deviation(n_embd));
            in_layer("ffn_down.bias", n_embd, None, Format::F32, 0.0, 0.02);
            in_layer("ffn_down.weight", n_ff, Some(n_embd), down, 0.0, residual(n_ff));
            in_layer("ffn_norm.bias", n_embd, None, Format::F32, 0.0, 0.02);
            in_layer("ffn_norm.weight", n_embd, None, Format::F32, 1.0, 0.1);
            in_layer("ffn_up.bias", n_ff, None, Format::F32, 0.0, 0.02);
            in_layer("ffn_up.weight", n_embd, Some(n_ff), up, 0.0, deviation(n_embd));
        }
        tensors
    }
}

const OUTPUT: &str = "output.weight";

/// Draws about normally distributed weights, up to 3.45 deviations from the mean: sums of four random bytes.
fn draw(rng: &mut Pcg64Mcg, mean: f32, deviation: f32, weights: &mut [f32]) {
    const MEAN: i32 = 4 * 255 / 2;
    const DEVIATION: f32 = 147.800_54; // sqrt(4 * (256 * 256 - 1) / 12)
    const EVEN_BYTES: u64 = 0x00ff_00ff_00ff_00ff;
    let unit = deviation / DEVIATION;
    for pair in weights.chunks_mut(2) {
        let random = rng.next_u64();
        let twos = (random & EVEN_BYTES) + (random >> 8 & EVEN_BYTES);
        let fours = twos + (twos >> 16);
        for (weight, sum) in pair.iter_mut().zip([fours & 0xffff, fours >> 32 & 0xffff]) {
            *weight = mean + (sum as i32 - MEAN) as f32 * unit;
        }
    }
}

/// A number of weights as converters write it: 82M, 1.6B.
pub(crate) fn size_label(weights: u64) -> String {
    let (unit, letter) = match weights {
        0..1_000_000 => (1e3, 'K'),
        1_000_000..1_000_000_000 => (1e6, 'M'),
        _ => (1e9, 'B'),
    };
    let n = weights as f64 / unit;
    if n < 10.0 { format!("{n:.1}{letter}") } else { format!("{n:.0}{letter}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gptrickle_core::quant::dequantize;

    fn model(shape: &str, file_type: FileType, tied: bool, seed: u64) -> Model {
        Model { shape: shape.parse().unwrap(), file_type, tied, seed }
    }

    fn file(model: &Model) -> Vec<u8> {
        model.write(Vec::new(), |_| Ok(())).unwrap()
    }

    #[test]
    fn every_format_has_the_deviation_that_was_asked_for() {
        let mut weights = vec![0.0; 256 * 256];
        draw(&mut Pcg64Mcg::seed_from_u64(1), 0.0, 0.02, &mut weights);
        for format in Format::ALL {
            let mut blocks = vec![0; format.row_bytes(weights.len())];
            encode(format, &weights, &mut blocks);
            let mut values = vec![0.0; weights.len()];
            dequantize(format, &blocks, &mut values);
            let n = values.len() as f64;
            let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
            let moment = |power| values.iter().map(|&v| (f64::from(v) / 0.02).powi(power)).sum::<f64>() / n;
            let (deviation, kurtosis) = (moment(2).sqrt(), moment(4) / moment(2).powi(2));
            assert!(values.iter().all(|v| v.is_finite()), "{format:?}");
            assert!(mean.abs() < 0.0005, "{format:?}: mean {mean}");
            assert!((0.93..1.08).contains(&deviation), "{format:?}: {deviation} of the deviation");
            assert!((2.2..3.3).contains(&kurtosis), "{format:?}: kurtosis {kurtosis}, 3 is a normal distribution's");
        }
    }

    #[test]
    fn the_seed_makes_the_file() {
        let first = file(&model("1,2,64,16,300", FileType::Q4_K_M, true, 7));
        assert_eq!(first, file(&model("1,2,64,16,300", FileType::Q4_K_M, true, 7)));
        let other = file(&model("1,2,64,16,300", FileType::Q4_K_M, true, 8));
        assert_eq!(first.len(), other.len());
        let differing = first.iter().zip(&other).filter(|(a, b)| a != b).count();
        assert!(differing > first.len() / 2, "{differing} of {} bytes", first.len());
    }

    /// The same bytes on every machine: these hashes (FNV-1a) were taken on x86-64 Linux.
    #[test]
    fn the_bytes_are_those_of_other_machines() {
        let hash = [FileType::F32, FileType::Q2_K, FileType::Q5_K_M, FileType::IQ4_XS].map(|file_type| {
            let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
            file(&model("1,4,256,8,300", file_type, false, 42)).iter().fold(0xcbf2_9ce4_8422_2325, fnv)
        });
        let expected = [0x5d986eb77ba74b86, 0xc47e648649f42ca2, 0xa3b0145348f51330, 0x16cc70df19b0410c];
        assert_eq!(hash, expected, "{hash:#x?}");
    }

    #[test]
    fn distilgpt2_has_the_bytes_its_shapes_say() {
        let f32s = |n: u64| 4 * n;
        let q4_0 = |n: u64| n / 32 * 18;
        let (d, v, ff) = (768, 50257, 3072);
        let layer = q4_0(3 * d * d + d * d + 2 * d * ff) + f32s(3 * d + d + ff + d + 4 * d);
        let rest = f32s(1024 * d + 2 * d);
        let head = v * d / 256 * 210; // Q6_K
        assert_eq!(model("distilgpt2", FileType::Q4_0, true, 1).tensor_bytes(), 6 * layer + rest + head);
        let untied = model("distilgpt2", FileType::Q4_0, false, 1);
        assert_eq!(untied.tensor_bytes(), 6 * layer + rest + head + q4_0(v * d));
        assert_eq!(untied.weights(), 81_912_576, "as Hugging Face counts them");
        assert_eq!(size_label(untied.weights()), "82M");
    }

    #[test]
    fn shapes_are_read_and_checked() {
        assert_eq!("2, 4,128,64,300".parse::<Shape>().unwrap().to_string(), "2,4,128,64,300");
        assert_eq!("gpt2-xl".parse::<Shape>().unwrap().to_string(), "gpt2-xl");
        for (text, why) in [
            ("gpt3", "give distilgpt2, gpt2, gpt2-medium, gpt2-large, gpt2-xl or five numbers L,H,D,CTX,V"),
            ("1,2,64,16", "give distilgpt2, gpt2, gpt2-medium, gpt2-large, gpt2-xl or five numbers L,H,D,CTX,V"),
            ("0,2,64,16,300", "L, the layers, must be 1 to 128"),
            ("1,0,64,16,300", "H, the heads, must divide D, the width"),
            ("1,3,64,16,300", "H, the heads, must divide D, the width"),
            ("1,2,48,16,300", "D, the width, must be a multiple of 32 up to 262144"),
            ("1,2,64,0,300", "CTX, the positions, must be 1 to 1048576"),
            ("1,2,64,16,256", "V, the tokens, must be 257 to 1048576"),
        ] {
            assert_eq!(text.parse::<Shape>().unwrap_err().to_string(), why);
        }
    }
}
