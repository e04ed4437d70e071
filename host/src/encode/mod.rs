//! f32 weights to blocks.
//!
//! Each format's picture is in its file in `gptrickle_core::quant`. There are two ways: [`encode`] takes the scale that
//! just reaches a block's largest weight, which is fast; [`fit`] looks for the scales and codes with the smallest
//! squared error, weighted by how much each weight matters. `pack` puts what either found into bytes; `symmetric`,
//! `affine` and `steps` search, one family of formats each: codes times a scale, codes times a scale less a minimum,
//! codes that stand for uneven steps. Where `feedback` knows which inputs go together, a weight also makes up for the
//! errors of those before it.
//!
//! Only additions, multiplications, divisions, square roots and comparisons of f32 are used, in one fixed order, so the
//! blocks are the same on every machine.

mod affine;
pub mod feedback;
mod pack;
mod plain;
mod steps;
mod symmetric;

use gptrickle_core::quant::Format;

use feedback::{Feedback, Rounding};

/// Weights in a super-block of the K formats.
const SUPER: usize = 256;
/// Partial sums of the searches, so that they can be taken several at a time.
const LANES: usize = 8;

/// Encodes finite weights that fill whole blocks, each block by the simplest rule: the scale that just reaches its
/// largest weight.
///
/// # Panics
/// `out` is not as long as `weights` make it, or `format` is newer than this function.
pub fn encode(format: Format, weights: &[f32], out: &mut [u8]) {
    let (len, bytes) = format.block();
    assert_eq!(weights.len() / len * bytes, out.len(), "whole blocks");
    for (weights, out) in weights.chunks_exact(len).zip(out.chunks_exact_mut(bytes)) {
        plain::encode(format, weights, out);
    }
}

/// Encodes finite weights that fill whole blocks, with the smallest squared error that a search finds.
///
/// `importance` tells for each weight how large its input is, as the mean of its squares; without it all inputs count
/// the same. Large weights count more than small ones either way. With `feedback` the weights are one row of a matrix, and
/// each is rounded so that it makes up for the errors of those before it; it does nothing for floats.
///
/// # Panics
/// As [`encode`], `importance` is not as long as `weights`, or `feedback` is for rows of another length.
pub fn fit(format: Format, weights: &[f32], importance: Option<&[f32]>, feedback: Option<&Feedback>, out: &mut [u8]) {
    let (len, bytes) = format.block();
    assert_eq!(weights.len() / len * bytes, out.len(), "whole blocks");
    assert!(importance.is_none_or(|importance| importance.len() == weights.len()), "as many as weights");
    let (mut block, mut matter) = ([0.0; SUPER], [0.0; SUPER]);
    let rounding = &mut Rounding::new(weights, feedback);
    for (i, out) in out.chunks_exact_mut(bytes).enumerate() {
        let (block, matter) = (&mut block[..len], &mut matter[..len]);
        rounding.next(block);
        weigh(block, importance.map(|importance| &importance[i * len..][..len]), matter);
        match format {
            Format::Q4_0 => symmetric::q4_0(block, matter, rounding, out),
            Format::Q5_0 => symmetric::q5_0(block, matter, rounding, out),
            Format::Q8_0 => symmetric::q8_0(block, matter, rounding, out),
            Format::Q3_K => symmetric::q3_k(block, matter, rounding, out),
            Format::Q6_K => symmetric::q6_k(block, matter, rounding, out),
            Format::Q4_1 => affine::q4_1(block, matter, rounding, out),
            Format::Q5_1 => affine::q5_1(block, matter, rounding, out),
            Format::Q2_K => affine::q2_k(block, matter, rounding, out),
            Format::Q4_K => affine::q4_k(block, matter, rounding, out),
            Format::Q5_K => affine::q5_k(block, matter, rounding, out),
            Format::IQ4_NL => steps::iq4_nl(block, matter, rounding, out),
            Format::IQ4_XS => steps::iq4_xs(block, matter, rounding, out),
            _ => plain::encode(format, &weights[i * len..][..len], out),
        }
    }
}

/// How much an error of each weight matters: by its input's importance, and a little by its own size.
///
/// The power was found by trial on the demo model, between none, with which large weights suffer, and that of llama.cpp,
/// which is twice as high.
fn weigh(w: &[f32], importance: Option<&[f32]>, matter: &mut [f32]) {
    let n = w.len() as f32;
    let square = w.iter().map(|w| w * w).sum::<f32>() / n;
    for (matter, w) in matter.iter_mut().zip(w) {
        *matter = (square + w * w).sqrt().sqrt();
    }
    let mean = importance.map_or(0.0, |importance| importance.iter().sum::<f32>() / n);
    if let Some(importance) = importance.filter(|_| mean > 0.0 && mean.is_finite()) {
        // An input that was never seen still matters a little.
        matter.iter_mut().zip(importance).for_each(|(matter, of_input)| *matter *= of_input / mean + 1e-3);
    }
    if square == 0.0 {
        matter.fill(1.0);
    }
}

/// The weight of the largest magnitude, with its sign.
fn extreme(w: &[f32]) -> f32 {
    w.iter().fold(0.0, |most: f32, &w| if w.abs() > most.abs() { w } else { most })
}

/// The least and the largest weight.
fn range(w: &[f32]) -> (f32, f32) {
    w.iter().fold((w[0], w[0]), |(min, max), &w| (min.min(w), max.max(w)))
}

/// `1 / d`, or 0 for blocks that are all zero.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The whole number nearest to `x` from `least` to `most`, which are below 2^22; of two, the even one.
#[inline(always)]
fn nearest(x: f32, least: f32, most: f32) -> f32 {
    // Above 2^23 an f32 has no fraction bits, so the addition itself rounds.
    const SHIFT: f32 = 12_582_912.0; // 1.5 * 2^23
    (x.max(least).min(most) + SHIFT) - SHIFT
}

/// The sums of N terms of each weight: `term(weight, how much it matters)`, for whole lanes of weights.
#[inline(always)]
fn sums<const N: usize>(w: &[f32], matter: &[f32], term: impl Fn(f32, f32) -> [f32; N]) -> [f32; N] {
    let mut lanes = [[0.0; LANES]; N];
    for (w, matter) in w.as_chunks::<LANES>().0.iter().zip(matter.as_chunks::<LANES>().0) {
        for i in 0..LANES {
            let terms = term(w[i], matter[i]);
            (0..N).for_each(|n| lanes[n][i] += terms[n]);
        }
    }
    lanes.map(|lanes| lanes.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use gptrickle_core::quant::dequantize;
    use half::f16;

    fn decoded(format: Format, weights: &[f32]) -> Vec<f32> {
        let mut blocks = vec![0xaa; format.row_bytes(weights.len())];
        encode(format, weights, &mut blocks);
        let mut values = vec![0.0; weights.len()];
        dequantize(format, &blocks, &mut values);
        values
    }

    /// The largest error over the largest weight of uneven blocks, beside half a step of the coarsest group.
    #[test]
    fn weights_come_back_within_half_a_step() {
        let weights: Vec<f32> = (0..1024u32)
            .map(|i| (i.wrapping_mul(2654435761) >> 8) as f32 / 8388608.0 - 1.0)
            .enumerate()
            .map(|(i, w)| w * [0.02, 0.5, 0.11, 0.3][i / 256])
            .collect();
        let bounds = [
            (Format::F32, 0.0),
            (Format::F16, 0.0005),
            (Format::BF16, 0.004),
            (Format::Q4_0, 1.0 / 8.0), // the far end lacks a code
            (Format::Q4_1, 1.02 / 15.0),
            (Format::Q5_0, 1.0 / 16.0),
            (Format::Q5_1, 1.02 / 31.0),
            (Format::Q8_0, 0.57 / 127.0),
            (Format::Q2_K, 1.2 / 3.0),
            (Format::Q3_K, 1.1 / 4.0),
            (Format::Q4_K, 1.2 / 15.0),
            (Format::Q5_K, 1.3 / 31.0),
            (Format::Q6_K, 1.1 / 32.0),
            (Format::IQ4_NL, 14.1 / 127.0),
            (Format::IQ4_XS, 17.0 / 127.0),
        ];
        assert_eq!(bounds.map(|(format, _)| format), Format::ALL);
        for (format, bound) in bounds {
            let values = decoded(format, &weights);
            for (w, v) in weights.chunks(256).zip(values.chunks(256)) {
                let worst = w.iter().zip(v).map(|(w, v)| (w - v).abs()).fold(0.0, f32::max);
                assert!(worst <= bound * extreme(w).abs(), "{format:?}: {worst} of {}", extreme(w));
            }
        }
    }

    #[test]
    fn zeros_and_signs() {
        for format in Format::ALL {
            assert!(decoded(format, &[0.0; 256]).iter().all(|&v| v == 0.0), "{format:?}");
            let ones = decoded(format, &[1.0; 256]);
            assert!(ones.iter().all(|v| (v - 1.0).abs() < 0.02), "{format:?}: {}", ones[0]);
            let ones = decoded(format, &[-1.0; 256]);
            assert!(ones.iter().all(|v| (v + 1.0).abs() < 0.02), "{format:?}: {}", ones[0]);
        }
    }

    const QUANTISED: [Format; 12] = [
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q8_0,
        Format::Q2_K,
        Format::Q3_K,
        Format::Q4_K,
        Format::Q5_K,
        Format::Q6_K,
        Format::IQ4_NL,
        Format::IQ4_XS,
    ];

    /// Sums of random numbers, about normally distributed, or some of them much larger.
    fn drawn(seed: u32, n: usize, tail: f32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(747796405).wrapping_add(2891336453);
        let mut next = || {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            (state >> 8) as f32 / 16777216.0 - 0.5
        };
        let mut weight = || (0..4).map(|_| next()).sum::<f32>();
        (0..n).map(|_| weight()).map(|w| w * (1.0 + tail * w * w * w.abs())).collect()
    }

    /// What `fit` makes smaller: the squared error, by how much each weight matters.
    fn weighted_error(format: Format, weights: &[f32], importance: Option<&[f32]>, blocks: &[u8]) -> f64 {
        let (len, _) = format.block();
        let mut values = vec![0.0; weights.len()];
        dequantize(format, blocks, &mut values);
        let mut matter = vec![0.0; len];
        let mut sum = 0.0;
        for (i, (w, v)) in weights.chunks(len).zip(values.chunks(len)).enumerate() {
            weigh(w, importance.map(|importance| &importance[i * len..][..len]), &mut matter);
            let errors = w.iter().zip(v).zip(&matter).map(|((w, v), matter)| f64::from(matter * (w - v) * (w - v)));
            sum += errors.sum::<f64>();
        }
        sum
    }

    #[test]
    fn a_search_never_does_worse_than_the_simple_rule() {
        for format in QUANTISED {
            let (len, bytes) = format.block();
            let (mut of_fit, mut of_rule) = (0.0, 0.0);
            for seed in 0..200 {
                let mut weights = drawn(seed, len, [0.0, 3.0, 30.0][seed as usize % 3]);
                weights.iter_mut().for_each(|w| *w += [0.0, 0.0, 0.4, -3.0][seed as usize % 4]);
                let importance = drawn(seed + 1000, len, 3.0).iter().map(|x| x * x).collect::<Vec<_>>();
                let importance = (seed % 2 == 1).then_some(&importance[..]);
                let (mut fitted, mut simple) = (vec![0xaa; bytes], vec![0xaa; bytes]);
                fit(format, &weights, importance, None, &mut fitted);
                encode(format, &weights, &mut simple);
                let error = |blocks: &[u8]| weighted_error(format, &weights, importance, blocks);
                // Half an ulp of the f16 scale may be against the search.
                assert!(error(&fitted) <= 1.01 * error(&simple), "{format:?}, seed {seed}");
                of_fit += error(&fitted);
                of_rule += error(&simple);
            }
            println!("{format:?}: {:.3} of the simple rule's error", of_fit / of_rule);
            let most = if matches!(format, Format::Q8_0) { 1.0 } else { 0.9 };
            assert!(of_fit < most * of_rule, "{format:?}: {of_fit}, by the simple rule {of_rule}");
        }
    }

    /// For one scale, all that an f16 can hold are tried.
    #[test]
    fn a_block_of_one_scale_is_near_the_best_there_is() {
        for (format, reach) in [(Format::Q4_0, 8.0f32), (Format::Q5_0, 16.0), (Format::IQ4_NL, 127.0)] {
            let (_, bytes) = format.block();
            let (mut found, mut best) = (0.0, 0.0);
            for seed in 0..12 {
                let weights = drawn(seed, 32, 3.0);
                let mut block = vec![0; bytes];
                fit(format, &weights, None, None, &mut block);
                found += weighted_error(format, &weights, None, &block);
                let around = f16::from_f32(extreme(&weights).abs() / reach).to_bits();
                let scales = (around - 300..around + 200).flat_map(|bits| [bits, bits | 0x8000]).map(f16::from_bits);
                let errors = scales.map(|d| {
                    // The codes that this scale wants.
                    let d_value = d.to_f32();
                    if format == Format::IQ4_NL {
                        let mut codes = [0; 32];
                        steps::put_codes(&mut Rounding::new(&weights, None), d_value, &mut codes);
                        pack::q4_0(d, &codes, &mut block);
                    } else {
                        let codes =
                            std::array::from_fn(|i| (nearest(weights[i] / d_value, -reach, reach - 1.0) + reach) as u8);
                        let pack = if format == Format::Q4_0 { pack::q4_0 } else { pack::q5_0 };
                        pack(d, &codes, &mut block);
                    }
                    weighted_error(format, &weights, None, &block)
                });
                best += errors.fold(f64::INFINITY, f64::min);
            }
            assert!(found <= 1.02 * best, "{format:?}: {found}, at best {best}");
        }
    }

    #[test]
    fn what_matters_comes_back_closer() {
        for format in QUANTISED {
            let weights = drawn(7, 256, 1.0);
            let importance: Vec<f32> = (0..256).map(|i| if i % 4 == 0 { 100.0 } else { 0.0 }).collect();
            let error = |importance| {
                let mut blocks = vec![0; format.row_bytes(256)];
                fit(format, &weights, importance, None, &mut blocks);
                let mut values = vec![0.0; 256];
                dequantize(format, &blocks, &mut values);
                weights.iter().zip(values).step_by(4).map(|(w, v)| f64::from((w - v) * (w - v))).sum::<f64>()
            };
            let (with, without) = (error(Some(&importance[..])), error(None));
            assert!(with < without, "{format:?}: {with}, without importance {without}");
        }
    }

    #[test]
    fn odd_blocks_are_encoded_too() {
        let mut spike = [0.0; 256];
        spike[100] = -1.0;
        let odd =
            [[0.0; 256], [1.0; 256], [-1.0; 256], spike, [65504.0; 256], [-65504.0; 256], [1e-7; 256], [1e-30; 256]];
        for format in QUANTISED {
            for weights in &odd {
                for importance in [None, Some(&[0.0; 256][..]), Some(&spike.map(f32::abs)[..])] {
                    let mut blocks = vec![0xaa; format.row_bytes(256)];
                    fit(format, weights, importance, None, &mut blocks);
                    let mut values = vec![0.0; 256];
                    dequantize(format, &blocks, &mut values);
                    let most = extreme(weights).abs();
                    for (w, v) in weights.iter().zip(&values) {
                        assert!((w - v).abs() <= 0.02 * most + 1e-6, "{format:?}: {v} for {w}");
                    }
                }
            }
        }
    }
}
