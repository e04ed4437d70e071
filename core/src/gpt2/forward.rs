//! The transformer over a batch of positions, and the head over what it left.

use core::iter::empty;
use core::ops::Range;

use crate::ops::{self, Matrix, ROWS, Scratch};
use crate::part::{part, part_mut, split_mut};
use crate::quant::Kernel;
use crate::source::Source;

use super::attention::{self, Attend, Weigh};
use super::config::Config;
use super::error::Error;
use super::state::State;
use super::weights::{ATTN_OUTPUT, ATTN_QKV, FFN_DOWN, FFN_UP, Linear, Norm, OUTPUT, Role, Weights};

/// Runs `tokens` (1..=B of them) through the transformer, as the positions that follow those in the KV cache.
///
/// Reads every layer's weights once, and one row of each embedding a token. The residual stream stays in `state` for
/// [`logits`], which should follow if `head` says so: that is what the source is told to read ahead.
///
/// # Errors
/// A token outside the vocabulary → [`Error::Token`]; more tokens than positions are left, or than fit a batch →
/// [`Error::Full`]; the source failed → [`Error::Source`], [`Error::Damaged`], and the positions in the KV cache are as
/// they were.
pub fn forward<S: Source>(
    src: &mut S,
    weights: &Weights,
    state: &mut State,
    tokens: impl ExactSizeIterator<Item = u32>,
    head: bool,
) -> Result<(), Error> {
    follow::<S, false>(src, weights, state, tokens, head, |_| ())
}

/// What a pass shows to who watches it, in the order in which it comes about.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Seen<'a> {
    /// The residual stream after so many layers, (tokens, n_embd): 0 are the embeddings.
    Residual(usize, &'a [f32]),
    /// What a matrix is multiplied with, (tokens, columns).
    Input(Role, &'a [f32]),
    /// How much a head of a layer attends, from the last of these positions, to each of them: shares of 1.
    Attention {
        /// Of `n_layer`.
        layer: usize,
        /// Of `n_head`.
        head: usize,
        /// From position 0 on.
        weights: &'a [f32],
    },
}

/// [`forward`], which shows what it sees on the way; who does not watch pays nothing.
///
/// # Errors
/// As [`forward`].
pub fn forward_watched<S: Source>(
    src: &mut S,
    weights: &Weights,
    state: &mut State,
    tokens: impl ExactSizeIterator<Item = u32>,
    head: bool,
    watch: impl FnMut(Seen),
) -> Result<(), Error> {
    follow::<S, true>(src, weights, state, tokens, head, watch)
}

/// [`forward`], which `watch` sees if it is WATCHED.
fn follow<S: Source, const WATCHED: bool>(
    src: &mut S,
    weights: &Weights,
    state: &mut State,
    tokens: impl ExactSizeIterator<Item = u32>,
    head: bool,
    watch: impl FnMut(Seen),
) -> Result<(), Error> {
    let (n, start) = (tokens.len(), state.len);
    let left = state.batch.min(state.context - start);
    if n > left {
        return Err(Error::Full { tokens: n, left });
    }
    pass::<S, WATCHED>(src, weights, state, tokens, |i| (0, start + i), head, watch)
        .map_err(|error| weights.blame(error))?;
    state.len += n;
    Ok(())
}

/// Runs one token each of `sequences` through the transformer, all as the position that follows those of each.
///
/// Costs what [`forward`] does for as many tokens, and gives each the bits that it would give a single sequence: a
/// position attends to those that are shared ([`State::share`]), and to its sequence's own.
///
/// # Errors
/// As [`forward`]; a sequence beyond those that [`State`] has room for → [`Error::Full`].
pub fn forward_each<S: Source>(
    src: &mut S,
    weights: &Weights,
    state: &mut State,
    sequences: &[u32],
    tokens: impl ExactSizeIterator<Item = u32>,
    head: bool,
) -> Result<(), Error> {
    let (n, position) = (tokens.len().max(sequences.len()), state.len);
    let known = sequences.iter().all(|&sequence| (sequence as usize) < state.sequences);
    let alone = sequences.iter().all(|&sequence| sequence == 0);
    let end = if alone { state.context } else { state.context.min(state.layout.shared + state.layout.own) };
    let left = if known && position < end { state.batch.min(sequences.len()) } else { 0 };
    if n > left {
        return Err(Error::Full { tokens: n, left });
    }
    let place = |i| (sequences.get(i).map_or(0, |&sequence| sequence as usize), position);
    pass::<S, false>(src, weights, state, tokens, place, head, |_| ()).map_err(|error| weights.blame(error))?;
    state.len += 1;
    Ok(())
}

/// A pass of the weights over tokens, of which `place` tells the sequence and the position.
fn pass<S: Source, const WATCHED: bool>(
    src: &mut S,
    weights: &Weights,
    state: &mut State,
    tokens: impl ExactSizeIterator<Item = u32>,
    place: impl Fn(usize) -> (usize, usize) + Sync,
    head: bool,
    mut watch: impl FnMut(Seen),
) -> Result<(), Error> {
    let (config, layout, kernel) = (state.config, state.layout, state.scratch.engine.kernel);
    let (n, n_embd) = (tokens.len(), config.n_embd);
    let x = part_mut(state.x, ..n * n_embd);
    let h = part_mut(state.h, ..n * n_embd);

    // Embed: a row for what the token is, a row for where it stands.
    for (i, (id, x)) in tokens.zip(x.chunks_exact_mut(n_embd.max(1))).enumerate() {
        if id as usize >= config.n_vocab {
            return Err(Error::Token { id, n_vocab: config.n_vocab });
        }
        ops::row(src, &weights.token_embd(), id as usize, x)?;
        let h = part_mut(h, ..n_embd);
        ops::row(src, &weights.position_embd(), place(i).1, h)?;
        ops::add(x, h);
    }
    watch(Seen::Residual(0, x));

    // What the pass still reads; each step takes its own tensors off the front.
    let mut next = weights.pass(head);
    for l in 0..config.n_layer {
        let layer = weights.layer(l);

        copy(h, x);
        norm(src, kernel, &layer.attn_norm, &mut next, config.epsilon, h)?;
        watch(Seen::Input(Role::of_layer(l, ATTN_QKV), h));
        let (qkv, free) = split_mut(state.wide, n * 3 * n_embd);
        linear(src, &layer.attn_qkv, &mut next, h, qkv, &mut state.scratch)?;
        for (i, qkv) in qkv.chunks_exact((3 * n_embd).max(1)).enumerate() {
            let (sequence, position) = place(i);
            let (key, value) = (part(qkv, n_embd..2 * n_embd), part(qkv, 2 * n_embd..));
            state.kv.store(kernel, l, layout.row(sequence, position), key, value);
        }
        let (kv, place, qkv) = (&state.kv, &place, &*qkv);
        if WATCHED {
            for (i, head) in (0..n).flat_map(|i| (0..config.n_head).map(move |head| (i, head))) {
                let (sequence, position) = place(i);
                let q = part(qkv, i * 3 * n_embd..);
                let weights = part_mut(state.scores, ..=position);
                kernel.run_lanes(Weigh { kv, layout, layer: l, sequence, position, head, q, weights });
                watch(Seen::Attention { layer: l, head, weights });
            }
        }
        let (scores, parts) = match free.len() / attention::scores(n, state.context).max(1) {
            0 => (&mut *state.scores, 1),
            parts => (free, parts),
        };
        let (positions, heads) = (0..n, 0..config.n_head);
        Attend { kv, layout, layer: l, place, positions, heads, qkv, scores, out: h }
            .share(&state.scratch.engine, parts);
        watch(Seen::Input(Role::of_layer(l, ATTN_OUTPUT), h));
        let projected = part_mut(state.wide, ..n * n_embd);
        linear(src, &layer.attn_output, &mut next, h, projected, &mut state.scratch)?;
        ops::add(x, projected);

        copy(h, x);
        norm(src, kernel, &layer.ffn_norm, &mut next, config.epsilon, h)?;
        watch(Seen::Input(Role::of_layer(l, FFN_UP), h));
        let hidden = part_mut(state.wide, ..n * config.n_ff);
        linear(src, &layer.ffn_up, &mut next, h, hidden, &mut state.scratch)?;
        ops::gelu(kernel, hidden);
        watch(Seen::Input(Role::of_layer(l, FFN_DOWN), hidden));
        linear(src, &layer.ffn_down, &mut next, hidden, h, &mut state.scratch)?;
        ops::add(x, h);
        watch(Seen::Residual(l + 1, x));
    }
    Ok(src.settle()?)
}

/// Computes the logits of some positions of the last [`forward`] pass, reading the head once.
///
/// They come as `sink(i, first token, logits)`, in pieces, tokens in order for each position `last.start + i`; so no
/// buffer as large as the vocabulary is needed.
///
/// # Errors
/// The source failed → [`Error::Source`], [`Error::Damaged`].
///
/// # Panics
/// In a debug build, if the range ends past the batch.
pub fn logits<S: Source>(
    src: &mut S,
    weights: &Weights,
    state: &mut State,
    last: Range<usize>,
    sink: impl FnMut(usize, usize, &[f32]),
) -> Result<(), Error> {
    logits_watched(src, weights, state, last, sink, |_| ())
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
    sink: impl FnMut(usize, usize, &[f32]),
    mut watch: impl FnMut(Seen),
) -> Result<(), Error> {
    let n = last.len();
    watch(Seen::Input(OUTPUT, last_norm(src, weights, state, last)?));
    head(src, state, n, &weights.output(), weights.next_pass(), sink).map_err(|error| weights.blame(error))
}

/// As [`logits`], with the token embedding as the head: in an untied file a draft of the logits, of which [`rescore`]
/// computes the promising ones.
///
/// # Errors
/// The source failed.
///
/// # Panics
/// In a debug build, if the range ends past the batch.
pub fn draft_logits<S: Source>(
    src: &mut S,
    weights: &Weights,
    state: &mut State,
    last: Range<usize>,
    sink: impl FnMut(usize, usize, &[f32]),
) -> Result<(), Error> {
    // Which rows come next depends on all of these.
    let n = last.len();
    last_norm(src, weights, state, last)?;
    head(src, state, n, &weights.token_embd(), empty(), sink).map_err(|error| weights.blame(error))
}

/// Computes some tokens' logits for the positions of the last [`draft_logits`], bit for bit those of [`logits`].
///
/// Reads the head's rows of `tokens`, one by one in their order, and nothing else; they come as
/// `sink(i, token, logit)`, for each position `i`.
///
/// # Errors
/// A token outside the vocabulary → [`Error::Token`]; the source failed.
///
/// # Panics
/// In a debug build, if there are more positions than fit a batch.
pub fn rescore<S: Source>(
    src: &mut S,
    weights: &Weights,
    state: &mut State,
    positions: usize,
    tokens: impl Iterator<Item = u32> + Clone,
    mut sink: impl FnMut(usize, u32, f32),
) -> Result<(), Error> {
    let Config { n_embd, n_vocab, .. } = state.config;
    let head = weights.output();
    let row = |id: u32| Matrix { at: head.at + u64::from(id) * head.row_bytes() as u64, rows: 1, ..head };
    let h = part(state.h, ..positions * n_embd);
    let mut tokens = tokens;
    while let Some(id) = tokens.next() {
        if id as usize >= n_vocab {
            return Err(Error::Token { id, n_vocab });
        }
        let next = tokens.clone().filter(|&id| (id as usize) < n_vocab).map(|id| Some(row(id)));
        ops::multiply(src, &row(id), next.chain(weights.next_pass()), h, &mut state.scratch, |_, logits| {
            logits.iter().enumerate().for_each(|(i, &logit)| sink(i, id, logit));
        })
        .map_err(|error| weights.blame(error.into()))?;
    }
    src.settle().map_err(|error| weights.blame(error.into()))
}

/// The residual stream of some positions of the last [`forward`] pass, normalised, (positions, n_embd): what the head is
/// multiplied with, and the last of the hidden states.
///
/// # Errors
/// The source failed → [`Error::Source`].
///
/// # Panics
/// In a debug build, if the range ends past the batch.
pub fn last_norm<'s, S: Source>(
    src: &mut S,
    weights: &Weights,
    state: &'s mut State,
    last: Range<usize>,
) -> Result<&'s [f32], Error> {
    let n_embd = state.config.n_embd;
    let x = part(state.x, last.start * n_embd..last.end * n_embd);
    let h = part_mut(state.h, ..x.len());
    copy(h, x);
    norm(src, state.scratch.engine.kernel, &weights.output_norm(), &mut weights.head_pass(), state.config.epsilon, h)?;
    Ok(h)
}

/// Multiplies `n` positions that [`last_norm`] left with a head; `next` is what is read after it, as far as that is
/// known.
fn head<S: Source>(
    src: &mut S,
    state: &mut State,
    n: usize,
    head: &Matrix,
    next: impl Iterator<Item = Option<Matrix>> + Clone,
    mut sink: impl FnMut(usize, usize, &[f32]),
) -> Result<(), Error> {
    let h = part(state.h, ..n * state.config.n_embd);
    ops::multiply(src, head, next, h, &mut state.scratch, |first, products| {
        by_position(n, first, products, &mut sink)
    })?;
    Ok(src.settle()?)
}

/// Shows products (rows, n) of the rows from `first` on as `sink(position, first row, logits)`.
fn by_position(n: usize, first: usize, products: &[f32], sink: &mut dyn FnMut(usize, usize, &[f32])) {
    if n == 1 {
        return sink(0, first, products);
    }
    let mut column = [0.0; ROWS];
    for (i, products) in products.chunks((ROWS * n).max(1)).enumerate() {
        let column = part_mut(&mut column, ..products.len() / n.max(1));
        for b in 0..n {
            column.iter_mut().zip(products.iter().skip(b).step_by(n.max(1))).for_each(|(y, &product)| *y = product);
            sink(b, first + i * ROWS, column);
        }
    }
}

/// LayerNorm of each row of `x`, as [`ops::layer_norm`].
fn norm<S: Source>(
    src: &mut S,
    kernel: Kernel,
    norm: &Norm,
    next: &mut (impl Iterator<Item = Option<Matrix>> + Clone),
    epsilon: f32,
    x: &mut [f32],
) -> Result<(), Error> {
    Ok(ops::layer_norm(src, kernel, &norm.weight, &norm.bias, next, epsilon, x)?)
}

/// `y = w · x + b` for each row; takes both tensors off `next`, what is read from here on.
fn linear<S: Source>(
    src: &mut S,
    layer: &Linear,
    next: &mut (impl Iterator<Item = Option<Matrix>> + Clone),
    x: &[f32],
    y: &mut [f32],
    scratch: &mut Scratch,
) -> Result<(), Error> {
    next.next();
    ops::matmul(src, &layer.weight, next.clone(), x, y, scratch)?;
    next.next();
    Ok(ops::add_bias(src, &layer.bias, next.clone(), y)?)
}

fn copy(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x = *y);
}
