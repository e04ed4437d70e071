//! The transformer over a batch of positions, and the head over what it left.

use core::ops::Range;

use crate::ops::{self, Matrix, ROWS, Scratch};
use crate::quant::{Kernel, dot_f32};
use crate::source::Source;

use super::error::Error;
use super::kv::Kv;
use super::state::State;
use super::weights::{ATTN_OUTPUT, ATTN_QKV, FFN_DOWN, FFN_UP, Linear, Norm, OUTPUT, Role, Weights};

/// Runs `tokens` (1..=B of them) through the transformer, as the positions that follow those in the KV cache.
///
/// Reads every layer's weights once, and one row of each embedding a token. The residual stream stays in `state` for
/// [`logits`], which should follow if `head` says so: that is what the source is told to read ahead.
///
/// # Errors
/// A token outside the vocabulary → [`Error::Token`]; more tokens than positions are left, or than fit a batch →
/// [`Error::Full`]; the source failed → [`Error::Source`], and the positions in the KV cache are as they were.
pub fn forward<S: Source>(
    src: &mut S,
    weights: &Weights,
    state: &mut State,
    tokens: impl ExactSizeIterator<Item = u32>,
    head: bool,
) -> Result<(), Error> {
    forward_watched(src, weights, state, tokens, head, |_, _| ())
}

/// [`forward`], which shows what each matrix is multiplied with: `watch(matrix, x)`, x as (tokens, columns).
///
/// # Errors
/// As [`forward`].
pub fn forward_watched<S: Source>(
    src: &mut S,
    weights: &Weights,
    state: &mut State,
    tokens: impl ExactSizeIterator<Item = u32>,
    head: bool,
    mut watch: impl FnMut(Role, &[f32]),
) -> Result<(), Error> {
    let (config, kernel) = (state.config, state.scratch.engine.kernel);
    let (n, n_embd) = (tokens.len(), config.n_embd);
    let left = state.batch.min(state.context - state.len);
    if n > left {
        return Err(Error::Full { tokens: n, left });
    }
    let x = &mut state.x[..n * n_embd];
    let h = &mut state.h[..n * n_embd];

    // Embed: a row for what the token is, a row for where it stands.
    for (i, (id, x)) in tokens.zip(x.chunks_exact_mut(n_embd)).enumerate() {
        if id as usize >= config.n_vocab {
            return Err(Error::Token { id, n_vocab: config.n_vocab });
        }
        ops::row(src, &weights.token_embd(), id as usize, x)?;
        ops::row(src, &weights.position_embd(), state.len + i, &mut h[..n_embd])?;
        add(x, &h[..n_embd]);
    }

    for l in 0..config.n_layer {
        let layer = weights.layer(l);
        let next = match l + 1 {
            next if next < config.n_layer => weights.layer(next).attn_norm,
            _ if head => weights.output_norm(),
            _ => weights.layer(0).attn_norm,
        };

        h.copy_from_slice(x);
        norm(src, kernel, &layer.attn_norm, &layer.attn_qkv.weight, config.epsilon, h)?;
        watch(Role::of_layer(l, ATTN_QKV), h);
        let qkv = &mut state.wide[..n * 3 * n_embd];
        linear(src, &layer.attn_qkv, &layer.attn_output.weight, h, qkv, &mut state.scratch)?;
        for (i, (qkv, h)) in qkv.chunks_exact(3 * n_embd).zip(h.chunks_exact_mut(n_embd)).enumerate() {
            let position = state.len + i;
            let (q, kv) = qkv.split_at(n_embd);
            let (k, v) = kv.split_at(n_embd);
            let scores = &mut state.scores[..=position];
            kernel.run(|| {
                state.kv.store(l, position, k, v);
                attend(&mut state.kv, l, config.head_dim(), q, scores, h);
            });
        }
        watch(Role::of_layer(l, ATTN_OUTPUT), h);
        let projected = &mut state.wide[..n * n_embd];
        linear(src, &layer.attn_output, &layer.ffn_norm.weight, h, projected, &mut state.scratch)?;
        add(x, projected);

        h.copy_from_slice(x);
        norm(src, kernel, &layer.ffn_norm, &layer.ffn_up.weight, config.epsilon, h)?;
        watch(Role::of_layer(l, FFN_UP), h);
        let hidden = &mut state.wide[..n * config.n_ff];
        linear(src, &layer.ffn_up, &layer.ffn_down.weight, h, hidden, &mut state.scratch)?;
        kernel.run(|| ops::gelu(hidden));
        watch(Role::of_layer(l, FFN_DOWN), hidden);
        linear(src, &layer.ffn_down, &next.weight, hidden, h, &mut state.scratch)?;
        add(x, h);
    }
    state.len += n;
    Ok(())
}

/// Computes the logits of some positions of the last [`forward`] pass, reading the head once.
///
/// They come as `sink(i, first token, logits)`, in pieces, tokens in order for each position `last.start + i`; so no
/// buffer as large as the vocabulary is needed.
///
/// # Errors
/// The source failed → [`Error::Source`].
///
/// # Panics
/// The range ends past the batch.
pub fn logits<S: Source>(
    src: &mut S,
    weights: &Weights,
    state: &mut State,
    last: Range<usize>,
    sink: impl FnMut(usize, usize, &[f32]),
) -> Result<(), Error> {
    logits_watched(src, weights, state, last, sink, |_, _| ())
}

/// [`logits`], which shows what the head is multiplied with, as [`forward_watched`] does.
///
/// # Errors
/// As [`logits`].
///
/// # Panics
/// As [`logits`].
pub fn logits_watched<S: Source>(
    src: &mut S,
    weights: &Weights,
    state: &mut State,
    last: Range<usize>,
    mut sink: impl FnMut(usize, usize, &[f32]),
    mut watch: impl FnMut(Role, &[f32]),
) -> Result<(), Error> {
    let n_embd = state.config.n_embd;
    let x = &state.x[last.start * n_embd..last.end * n_embd];
    let h = &mut state.h[..x.len()];
    h.copy_from_slice(x);
    let head = weights.output();
    norm(src, state.scratch.engine.kernel, &weights.output_norm(), &head, state.config.epsilon, h)?;
    watch(OUTPUT, h);
    // The next pass starts with a token that is not known yet, then with the first layer.
    let next = weights.layer(0).attn_norm.weight;
    let n = last.len();
    ops::multiply(src, &head, Some(&next), h, &mut state.scratch, |first, products| {
        if n == 1 {
            return sink(0, first, products);
        }
        let mut column = [0.0; ROWS];
        for (i, products) in products.chunks(ROWS * n).enumerate() {
            let column = &mut column[..products.len() / n];
            for b in 0..n {
                column.iter_mut().zip(products.iter().skip(b).step_by(n)).for_each(|(y, &product)| *y = product);
                sink(b, first + i * ROWS, column);
            }
        }
    })?;
    Ok(())
}

/// LayerNorm of each row of `x`; `next` is the tensor that is read after it.
fn norm<S: Source>(
    src: &mut S,
    kernel: Kernel,
    norm: &Norm,
    next: &Matrix,
    epsilon: f32,
    x: &mut [f32],
) -> Result<(), Error> {
    Ok(ops::layer_norm(src, kernel, &norm.weight, &norm.bias, Some(next), epsilon, x)?)
}

/// `y = w · x + b` for each row; `next` is the tensor that is read after it.
fn linear<S: Source>(
    src: &mut S,
    layer: &Linear,
    next: &Matrix,
    x: &[f32],
    y: &mut [f32],
    scratch: &mut Scratch,
) -> Result<(), Error> {
    ops::matmul(src, &layer.weight, Some(&layer.bias), x, y, scratch)?;
    Ok(ops::add_bias(src, &layer.bias, Some(next), y)?)
}

/// Causal attention of one position to all up to itself: `out = softmax(q · kᵀ / √head_dim) · v`, head by head.
#[inline(always)]
fn attend(kv: &mut Kv, layer: usize, head_dim: usize, q: &[f32], scores: &mut [f32], out: &mut [f32]) {
    let scale = 1.0 / libm::sqrtf(head_dim as f32);
    let heads = q.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim));
    for (i, (q, out)) in heads.enumerate() {
        let head = i * head_dim..(i + 1) * head_dim;
        for (position, score) in scores.iter_mut().enumerate() {
            *score = dot_f32(q, kv.key(layer, position, &head)) * scale;
        }
        ops::softmax(scores);
        out.fill(0.0);
        for (position, &weight) in scores.iter().enumerate() {
            for (out, v) in out.iter_mut().zip(kv.value(layer, position, &head)) {
                *out += weight * v;
            }
        }
    }
}

fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}
