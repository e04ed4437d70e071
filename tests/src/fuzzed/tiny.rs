//! The smallest models that have every part: some kilobytes, so that a change of any byte is one that matters.

use gptrickle::encode::encode;
use gptrickle::gguf_writer::Value;
use gptrickle_core::quant::Format;

use crate::gguf_writer::Writer;

/// Width of the residual stream.
pub const N_EMBD: usize = 32;
/// Positions.
pub const N_CTX: usize = 12;
/// The vocabulary: bytes, what the merges make of them, and the end of a text.
const TOKENS: [&str; 10] = ["a", "b", "c", "Ġ", "Ċ", "ab", "Ġa", "Ġab", "abc", END];
const MERGES: [&str; 4] = ["a b", "Ġ a", "Ġ ab", "ab c"];
const END: &str = "<|endoftext|>";

/// A model of one layer whose matrices are in `format`, or in Q8_0 where their rows are shorter than its blocks, with the
/// token embedding as its head or with a head of its own.
pub fn model(format: Format, tied: bool) -> Vec<u8> {
    let (block, _) = format.block();
    let n_ff = block.max(2 * N_EMBD);
    let writer = shape(n_ff);
    let mut seed = 1;
    let mut add = |writer: Writer, name: &str, dims: &[usize], format: Format| {
        let weights: Vec<f32> = (0..dims.iter().product()).map(|_| weight(&mut seed)).collect();
        let mut blocks = vec![0; format.row_bytes(weights.len())];
        encode(format, &weights, &mut blocks);
        writer.tensor(name, &dims.iter().map(|&dim| dim as u64).collect::<Vec<_>>(), format.id(), blocks)
    };
    let matrix = |cols: usize| if cols.is_multiple_of(block) { format } else { Format::Q8_0 };
    let mut tensors = vec![
        ("token_embd.weight", vec![N_EMBD, TOKENS.len()], matrix(N_EMBD)),
        ("position_embd.weight", vec![N_EMBD, N_CTX], Format::F32),
        ("blk.0.attn_norm.weight", vec![N_EMBD], Format::F32),
        ("blk.0.attn_norm.bias", vec![N_EMBD], Format::F32),
        ("blk.0.attn_qkv.weight", vec![N_EMBD, 3 * N_EMBD], matrix(N_EMBD)),
        ("blk.0.attn_qkv.bias", vec![3 * N_EMBD], Format::F32),
        ("blk.0.attn_output.weight", vec![N_EMBD, N_EMBD], matrix(N_EMBD)),
        ("blk.0.attn_output.bias", vec![N_EMBD], Format::F32),
        ("blk.0.ffn_norm.weight", vec![N_EMBD], Format::F32),
        ("blk.0.ffn_norm.bias", vec![N_EMBD], Format::F32),
        ("blk.0.ffn_up.weight", vec![N_EMBD, n_ff], matrix(N_EMBD)),
        ("blk.0.ffn_up.bias", vec![n_ff], Format::F32),
        ("blk.0.ffn_down.weight", vec![n_ff, N_EMBD], matrix(n_ff)),
        ("blk.0.ffn_down.bias", vec![N_EMBD], Format::F32),
        ("output_norm.weight", vec![N_EMBD], Format::F32),
        ("output_norm.bias", vec![N_EMBD], Format::F32),
    ];
    if !tied {
        tensors.push(("output.weight", vec![N_EMBD, TOKENS.len()], Format::F16));
    }
    tensors.into_iter().fold(writer, |writer, (name, dims, format)| add(writer, name, &dims, format)).finish()
}

/// The header but for the tensors.
fn shape(n_ff: usize) -> Writer {
    let mut kinds = [1; TOKENS.len()];
    kinds[TOKENS.len() - 1] = 3; // control
    let end = TOKENS.len() as u32 - 1;
    Writer::new()
        .entry("general.architecture", "gpt2")
        .entry("gpt2.block_count", 1u32)
        .entry("gpt2.context_length", N_CTX as u32)
        .entry("gpt2.embedding_length", N_EMBD as u32)
        .entry("gpt2.feed_forward_length", n_ff as u32)
        .entry("gpt2.attention.head_count", 2u32)
        .entry("gpt2.attention.layer_norm_epsilon", 1e-5f32)
        .entry("tokenizer.ggml.model", "gpt2")
        .entry("tokenizer.ggml.pre", "gpt-2")
        .entry("tokenizer.ggml.tokens", Value::strings(&TOKENS))
        .entry("tokenizer.ggml.token_type", Value::i32s(&kinds))
        .entry("tokenizer.ggml.merges", Value::strings(&MERGES))
        .entry("tokenizer.ggml.bos_token_id", end)
        .entry("tokenizer.ggml.eos_token_id", end)
}

/// A weight between -0.5 and 0.5 (a linear congruential generator's).
fn weight(seed: &mut u32) -> f32 {
    *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    (*seed >> 8) as f32 / (1 << 24) as f32 - 0.5
}
