//! Which type each matrix of a GPT-2 file has, by the name of the whole file's type.
//!
//! Read `llama_tensor_get_type` in llama.cpp's `llama-quant.cpp` first: the rules are its rules for architecture
//! `gpt2` without an importance matrix, `tests/synth.rs` holds them against files that it made. Norms, biases and the
//! position embedding are F32 in every file.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use gptrickle_core::quant::Format;

/// What a GGUF file is called after: the type of most matrices, and the mix of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "verbatim")]
#[expect(missing_docs, reason = "the names say it all")]
#[allow(non_camel_case_types, reason = "the names people know")]
pub enum FileType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q2_K_S,
    Q3_K_S,
    #[value(alias = "Q3_K")]
    Q3_K_M,
    Q3_K_L,
    Q4_K_S,
    #[value(alias = "Q4_K")]
    Q4_K_M,
    Q5_K_S,
    #[value(alias = "Q5_K")]
    Q5_K_M,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
}

/// A mix for boards: the fewest bytes a token at a given quality, in files that llama.cpp loads all the same.
///
/// Stock mixes give a third to a half of the bytes of a small model to the head, in Q6_K; here it has the rate of the
/// rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// Q3_K, and Q2_K where it hurts least: about 3.2 bits a weight.
    Device2,
    /// IQ4_XS all over, 4.25 bits a weight: about a percent above Q4_K_M's perplexity, less with the inputs' products.
    Device4,
}

/// What a file can be quantised to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    /// What llama.cpp calls by the same name.
    Stock(FileType),
    /// A mix for boards.
    Device(Device),
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mix::Stock(file_type) => write!(f, "{file_type:?}"),
            Mix::Device(Device::Device2) => f.write_str("device2"),
            Mix::Device(Device::Device4) => f.write_str("device4"),
        }
    }
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(name: &str) -> Result<Mix, String> {
        if let Ok(file_type) = <FileType as ValueEnum>::from_str(name, true) {
            return Ok(Mix::Stock(file_type));
        }
        match name.to_ascii_lowercase().as_str() {
            "device2" => Ok(Mix::Device(Device::Device2)),
            "device4" => Ok(Mix::Device(Device::Device4)),
            _ => {
                let names: Vec<String> = FileType::value_variants().iter().map(|kind| format!("{kind:?}")).collect();
                Err(format!("it must be {}, device2 or device4", names.join(", ")))
            }
        }
    }
}

impl Mix {
    /// Its number in `general.file_type`; a mix for boards has that of the stock mix which is most like it.
    pub fn id(self) -> u32 {
        match self {
            Mix::Stock(file_type) => file_type.id(),
            Mix::Device(Device::Device2) => FileType::Q2_K.id(),
            Mix::Device(Device::Device4) => FileType::IQ4_XS.id(),
        }
    }

    /// The type of `matrix`, as [`FileType::format`] tells it.
    pub fn format(self, matrix: Matrix, cols: usize, n_layer: usize, tied: bool) -> Format {
        let wanted = match self {
            Mix::Stock(file_type) => return file_type.format(matrix, cols, n_layer, tied),
            // The head is most of a small model: one step up from the least.
            Mix::Device(Device::Device2) => match matrix {
                Matrix::FfnUp(_) => Format::Q2_K,
                Matrix::TokenEmbd if !tied => Format::Q2_K,
                _ => Format::Q3_K,
            },
            Mix::Device(Device::Device4) => Format::IQ4_XS,
        };
        if cols.is_multiple_of(wanted.block().0) { wanted } else { fallback(wanted) }
    }
}

/// A matrix of the model; those of a layer with its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Matrix {
    /// `token_embd.weight`
    TokenEmbd,
    /// `output.weight`
    Output,
    /// `blk.N.attn_qkv.weight`
    AttnQkv(usize),
    /// `blk.N.attn_output.weight`
    AttnOutput(usize),
    /// `blk.N.ffn_up.weight`
    FfnUp(usize),
    /// `blk.N.ffn_down.weight`
    FfnDown(usize),
}

impl Matrix {
    /// The matrix that a tensor of this name is.
    pub fn from_name(name: &str) -> Option<Matrix> {
        match name {
            "token_embd.weight" => return Some(Matrix::TokenEmbd),
            "output.weight" => return Some(Matrix::Output),
            _ => {}
        }
        let (layer, name) = name.strip_prefix("blk.")?.split_once('.')?;
        let layer = layer.parse().ok()?;
        match name {
            "attn_qkv.weight" => Some(Matrix::AttnQkv(layer)),
            "attn_output.weight" => Some(Matrix::AttnOutput(layer)),
            "ffn_up.weight" => Some(Matrix::FfnUp(layer)),
            "ffn_down.weight" => Some(Matrix::FfnDown(layer)),
            _ => None,
        }
    }
}

impl FileType {
    /// Its number in `general.file_type`.
    pub fn id(self) -> u32 {
        match self {
            FileType::F32 => 0,
            FileType::F16 => 1,
            FileType::Q4_0 => 2,
            FileType::Q4_1 => 3,
            FileType::Q8_0 => 7,
            FileType::Q5_0 => 8,
            FileType::Q5_1 => 9,
            FileType::Q2_K => 10,
            FileType::Q3_K_S => 11,
            FileType::Q3_K_M => 12,
            FileType::Q3_K_L => 13,
            FileType::Q4_K_S => 14,
            FileType::Q4_K_M => 15,
            FileType::Q5_K_S => 16,
            FileType::Q5_K_M => 17,
            FileType::Q6_K => 18,
            FileType::Q2_K_S => 21,
            FileType::IQ4_NL => 25,
            FileType::IQ4_XS => 30,
            FileType::BF16 => 32,
        }
    }

    /// The type of most matrices.
    pub fn base(self) -> Format {
        match self {
            FileType::F32 => Format::F32,
            FileType::F16 => Format::F16,
            FileType::BF16 => Format::BF16,
            FileType::Q4_0 => Format::Q4_0,
            FileType::Q4_1 => Format::Q4_1,
            FileType::Q5_0 => Format::Q5_0,
            FileType::Q5_1 => Format::Q5_1,
            FileType::Q8_0 => Format::Q8_0,
            FileType::Q2_K | FileType::Q2_K_S => Format::Q2_K,
            FileType::Q3_K_S | FileType::Q3_K_M | FileType::Q3_K_L => Format::Q3_K,
            FileType::Q4_K_S | FileType::Q4_K_M => Format::Q4_K,
            FileType::Q5_K_S | FileType::Q5_K_M => Format::Q5_K,
            FileType::Q6_K => Format::Q6_K,
            FileType::IQ4_NL => Format::IQ4_NL,
            FileType::IQ4_XS => Format::IQ4_XS,
        }
    }

    /// The type of `matrix`, whose rows have `cols` weights, in a model of `n_layer` layers.
    ///
    /// With a `tied` head the token embedding is the head, and has the type that `output.weight` would have.
    pub fn format(self, matrix: Matrix, cols: usize, n_layer: usize, tied: bool) -> Format {
        use FileType::*;
        let base = self.base();
        if base.is_float() {
            return base;
        }
        let wanted = match matrix {
            Matrix::Output => head(base, cols),
            Matrix::TokenEmbd if tied => head(base, cols),
            Matrix::TokenEmbd | Matrix::FfnUp(_) => base,
            Matrix::AttnQkv(i) => match self {
                Q2_K => Format::Q3_K,
                Q3_K_M if i < 2 => Format::Q5_K,
                Q3_K_M => Format::Q4_K,
                Q3_K_L => Format::Q5_K,
                Q4_K_S if i < 4 => Format::Q5_K,
                Q4_K_M | Q5_K_M if deserves_more_bits(i, n_layer) => Format::Q6_K,
                _ => base,
            },
            Matrix::AttnOutput(_) => match self {
                Q2_K => Format::Q3_K,
                Q3_K_M => Format::Q4_K,
                Q3_K_L => Format::Q5_K,
                _ => base,
            },
            Matrix::FfnDown(i) => match self {
                Q2_K => Format::Q3_K,
                Q2_K_S if i < n_layer / 8 => Format::Q4_K,
                Q3_K_M if i < n_layer / 16 => Format::Q5_K,
                Q3_K_M => Format::Q4_K,
                Q3_K_L => Format::Q5_K,
                Q4_K_M | Q5_K_M if deserves_more_bits(i, n_layer) => Format::Q6_K,
                Q4_K_S | IQ4_NL | IQ4_XS if i < n_layer / 8 => Format::Q5_K,
                _ => base,
            },
        };
        if cols.is_multiple_of(wanted.block().0) { wanted } else { fallback(wanted) }
    }
}

/// The head's type.
fn head(base: Format, cols: usize) -> Format {
    if base == Format::Q8_0 || !cols.is_multiple_of(base.block().0) { Format::Q8_0 } else { Format::Q6_K }
}

/// The first and the last eighth of the layers, and each third between them.
fn deserves_more_bits(layer: usize, n_layer: usize) -> bool {
    let eighth = n_layer / 8;
    layer < eighth || layer >= 7 * n_layer / 8 || (layer - eighth) % 3 == 2
}

/// What rows get that are no whole number of super-blocks: the next larger type with blocks of 32.
fn fallback(format: Format) -> Format {
    match format {
        Format::Q2_K | Format::Q3_K => Format::Q4_0,
        Format::Q4_K => Format::Q5_0,
        Format::Q5_K => Format::Q5_1,
        Format::Q6_K => Format::Q8_0,
        Format::IQ4_XS => Format::IQ4_NL,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The types of layers 0 and 1 of llama-quantize's tiny512 files: attn_qkv, attn_output, ffn_up, ffn_down.
    #[test]
    fn the_mixes_are_those_of_llama_quantize() {
        use FileType as T;
        use Format::*;
        let tiny512 = [
            (T::IQ4_NL, [IQ4_NL, IQ4_NL, IQ4_NL, IQ4_NL], [IQ4_NL, IQ4_NL, IQ4_NL, IQ4_NL]),
            (T::IQ4_XS, [IQ4_XS, IQ4_XS, IQ4_XS, IQ4_XS], [IQ4_XS, IQ4_XS, IQ4_XS, IQ4_XS]),
            (T::Q2_K, [Q3_K, Q3_K, Q2_K, Q3_K], [Q3_K, Q3_K, Q2_K, Q3_K]),
            (T::Q2_K_S, [Q2_K, Q2_K, Q2_K, Q2_K], [Q2_K, Q2_K, Q2_K, Q2_K]),
            (T::Q3_K_S, [Q3_K, Q3_K, Q3_K, Q3_K], [Q3_K, Q3_K, Q3_K, Q3_K]),
            (T::Q3_K_M, [Q5_K, Q4_K, Q3_K, Q4_K], [Q5_K, Q4_K, Q3_K, Q4_K]),
            (T::Q3_K_L, [Q5_K, Q5_K, Q3_K, Q5_K], [Q5_K, Q5_K, Q3_K, Q5_K]),
            (T::Q4_0, [Q4_0, Q4_0, Q4_0, Q4_0], [Q4_0, Q4_0, Q4_0, Q4_0]),
            (T::Q4_1, [Q4_1, Q4_1, Q4_1, Q4_1], [Q4_1, Q4_1, Q4_1, Q4_1]),
            (T::Q4_K_S, [Q5_K, Q4_K, Q4_K, Q4_K], [Q5_K, Q4_K, Q4_K, Q4_K]),
            (T::Q4_K_M, [Q4_K, Q4_K, Q4_K, Q4_K], [Q6_K, Q4_K, Q4_K, Q6_K]),
            (T::Q5_0, [Q5_0, Q5_0, Q5_0, Q5_0], [Q5_0, Q5_0, Q5_0, Q5_0]),
            (T::Q5_1, [Q5_1, Q5_1, Q5_1, Q5_1], [Q5_1, Q5_1, Q5_1, Q5_1]),
            (T::Q5_K_S, [Q5_K, Q5_K, Q5_K, Q5_K], [Q5_K, Q5_K, Q5_K, Q5_K]),
            (T::Q5_K_M, [Q5_K, Q5_K, Q5_K, Q5_K], [Q6_K, Q5_K, Q5_K, Q6_K]),
            (T::Q6_K, [Q6_K, Q6_K, Q6_K, Q6_K], [Q6_K, Q6_K, Q6_K, Q6_K]),
            (T::Q8_0, [Q8_0, Q8_0, Q8_0, Q8_0], [Q8_0, Q8_0, Q8_0, Q8_0]),
            (T::F16, [F16, F16, F16, F16], [F16, F16, F16, F16]),
        ];
        for (kind, first, second) in tiny512 {
            for (i, expected) in [first, second].into_iter().enumerate() {
                let matrices = [Matrix::AttnQkv(i), Matrix::AttnOutput(i), Matrix::FfnUp(i), Matrix::FfnDown(i)];
                assert_eq!(matrices.map(|matrix| kind.format(matrix, 256, 2, true)), expected, "{kind:?} layer {i}");
            }
        }
        for kind in FileType::value_variants().iter().filter(|kind| !kind.base().is_float()) {
            let head = if *kind == T::Q8_0 { Q8_0 } else { Q6_K };
            assert_eq!(kind.format(Matrix::TokenEmbd, 256, 2, true), head);
            assert_eq!(kind.format(Matrix::Output, 256, 2, false), head);
            assert_eq!(kind.format(Matrix::TokenEmbd, 256, 2, false), kind.base());
        }
    }

    /// The figure that boards pay by, at the shape of DistilGPT2: a token reads every layer, the last norm and the head.
    #[test]
    fn device4_reads_three_quarters_of_q4_k_m_at_most() {
        let (n_layer, n_embd, n_vocab) = (6, 768, 50257);
        let bytes_per_token = |mix: Mix, tied| {
            let bytes = |matrix, rows: usize, cols| rows * mix.format(matrix, cols, n_layer, tied).row_bytes(cols);
            let layer = |i| {
                bytes(Matrix::AttnQkv(i), 3 * n_embd, n_embd)
                    + bytes(Matrix::AttnOutput(i), n_embd, n_embd)
                    + bytes(Matrix::FfnUp(i), 4 * n_embd, n_embd)
                    + bytes(Matrix::FfnDown(i), n_embd, 4 * n_embd)
                    + 4 * 13 * n_embd // norms and biases
            };
            let head = if tied { Matrix::TokenEmbd } else { Matrix::Output };
            (0..n_layer).map(layer).sum::<usize>() + 4 * 2 * n_embd + bytes(head, n_vocab, n_embd)
        };
        let stock = bytes_per_token(Mix::Stock(FileType::Q4_K_M), false);
        let ours = bytes_per_token(Mix::Device(Device::Device4), true);
        println!("device4 {ours} bytes a token, Q4_K_M {stock}, {:.4} of it", ours as f64 / stock as f64);
        assert!(4 * ours <= 3 * stock, "{ours} bytes, Q4_K_M reads {stock}");
    }

    /// By hand from llama.cpp's rules, for shapes that no vector has.
    #[test]
    fn deeper_and_wider_models() {
        let more: Vec<usize> = (0..6).filter(|&i| deserves_more_bits(i, 6)).collect();
        assert_eq!(more, [2, 5], "DistilGPT2");
        let more: Vec<usize> = (0..12).filter(|&i| deserves_more_bits(i, 12)).collect();
        assert_eq!(more, [0, 3, 6, 9, 10, 11], "GPT-2");
        assert_eq!(FileType::IQ4_XS.format(Matrix::FfnDown(0), 3072, 12, true), Format::Q5_K);
        assert_eq!(FileType::Q2_K_S.format(Matrix::FfnDown(0), 3072, 12, true), Format::Q4_K);
        // GPT-2 XL: rows of 1600 fall back, rows of 6400 do not.
        let xl = |kind: FileType, matrix, cols| kind.format(matrix, cols, 48, true);
        assert_eq!(xl(FileType::Q4_K_M, Matrix::AttnQkv(0), 1600), Format::Q8_0);
        assert_eq!(xl(FileType::Q4_K_M, Matrix::AttnQkv(7), 1600), Format::Q5_0);
        assert_eq!(xl(FileType::Q4_K_M, Matrix::FfnDown(0), 6400), Format::Q6_K);
        assert_eq!(xl(FileType::Q2_K, Matrix::FfnUp(0), 1600), Format::Q4_0);
        assert_eq!(xl(FileType::Q3_K_M, Matrix::FfnDown(2), 6400), Format::Q5_K);
        assert_eq!(xl(FileType::Q4_0, Matrix::TokenEmbd, 1600), Format::Q8_0);
    }

    #[test]
    fn names_are_those_people_use() {
        let named = |name: &str| <FileType as ValueEnum>::from_str(name, true).unwrap();
        assert_eq!(named("Q4_K_M"), FileType::Q4_K_M);
        assert_eq!(named("q4_k"), FileType::Q4_K_M);
        assert_eq!([named("Q3_K"), named("Q5_K")], [FileType::Q3_K_M, FileType::Q5_K_M]);
        for kind in FileType::value_variants() {
            assert_eq!(named(&format!("{kind:?}")), *kind);
        }
    }
}
