//! f32 weights to blocks, each block by the simplest rule: the scale that just reaches its largest weight.
//!
//! Each format's picture is in its file in `gptrickle_core::quant`. Only additions, multiplications, divisions and
//! comparisons of f32 are used, in one fixed order, so the blocks are the same on every machine.

use gptrickle_core::quant::Format;
use half::{bf16, f16};

/// What a nibble of IQ4_NL and IQ4_XS stands for.
const STEPS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The nibble whose step is nearest to `q`, at `q + 128`.
const NEAREST_STEP: [u8; 256] = {
    let mut nearest = [0; 256];
    let mut at = 0;
    while at < 256 {
        let q = at as i32 - 128;
        let mut nibble = 1;
        while nibble < 16 {
            let best = nearest[at] as usize;
            if (q - STEPS[nibble] as i32).abs() < (q - STEPS[best] as i32).abs() {
                nearest[at] = nibble as u8;
            }
            nibble += 1;
        }
        at += 1;
    }
    nearest
};

/// Weights in a super-block of the K formats.
const SUPER: usize = 256;

/// Encodes finite weights that fill whole blocks.
///
/// # Panics
/// `out` is not as long as `weights` make it, or `format` is newer than this function.
pub fn encode(format: Format, weights: &[f32], out: &mut [u8]) {
    let encode_block: fn(&[f32], &mut [u8]) = match format {
        Format::F32 => |w, out| out.copy_from_slice(&w[0].to_le_bytes()),
        Format::F16 => |w, out| out.copy_from_slice(&f16::from_f32(w[0]).to_le_bytes()),
        Format::BF16 => |w, out| out.copy_from_slice(&bf16::from_f32(w[0]).to_le_bytes()),
        Format::Q4_0 => q4_0,
        Format::Q4_1 => q4_1,
        Format::Q5_0 => q5_0,
        Format::Q5_1 => q5_1,
        Format::Q8_0 => q8_0,
        Format::Q2_K => q2_k,
        Format::Q3_K => q3_k,
        Format::Q4_K => q4_k,
        Format::Q5_K => q5_k,
        Format::Q6_K => q6_k,
        Format::IQ4_NL => iq4_nl,
        Format::IQ4_XS => iq4_xs,
        _ => panic!("a format newer than this encoder: {format:?}"),
    };
    let (len, bytes) = format.block();
    assert_eq!(weights.len() / len * bytes, out.len(), "whole blocks");
    for (weights, out) in weights.chunks_exact(len).zip(out.chunks_exact_mut(bytes)) {
        encode_block(weights, out);
    }
}

fn q4_0(w: &[f32], out: &mut [u8]) {
    let d = extreme(w) / -8.0;
    put_f16(&mut out[0..2], d);
    put_nibbles(&mut out[2..], &codes::<32>(w, inverse(d), 8.0, 15.0));
}

fn q4_1(w: &[f32], out: &mut [u8]) {
    let (min, max) = range(w);
    let d = (max - min) / 15.0;
    put_f16(&mut out[0..2], d);
    put_f16(&mut out[2..4], min);
    put_nibbles(&mut out[4..], &codes::<32>(w, inverse(d), -min * inverse(d), 15.0));
}

fn q5_0(w: &[f32], out: &mut [u8]) {
    let d = extreme(w) / -16.0;
    put_f16(&mut out[0..2], d);
    put_fives(&mut out[2..], &codes::<32>(w, inverse(d), 16.0, 31.0));
}

fn q5_1(w: &[f32], out: &mut [u8]) {
    let (min, max) = range(w);
    let d = (max - min) / 31.0;
    put_f16(&mut out[0..2], d);
    put_f16(&mut out[2..4], min);
    put_fives(&mut out[4..], &codes::<32>(w, inverse(d), -min * inverse(d), 31.0));
}

fn q8_0(w: &[f32], out: &mut [u8]) {
    let d = extreme(w).abs() / 127.0;
    put_f16(&mut out[0..2], d);
    for (out, code) in out[2..].iter_mut().zip(codes::<32>(w, inverse(d), 127.0, 254.0)) {
        *out = code.wrapping_sub(127);
    }
}

fn iq4_nl(w: &[f32], out: &mut [u8]) {
    let d = extreme(w) / -127.0;
    put_f16(&mut out[0..2], d);
    put_nibbles(&mut out[2..], &steps(w, d));
}

fn q2_k(w: &[f32], out: &mut [u8]) {
    let Affine { d, dmin, scales, minimums, codes } = affine(w, 16, 3.0, 15.0);
    for ((out, scale), minimum) in out[0..16].iter_mut().zip(scales).zip(minimums) {
        *out = scale | minimum << 4;
    }
    put_pairs(&mut out[16..80], &codes);
    out[80..82].copy_from_slice(&d.to_le_bytes());
    out[82..84].copy_from_slice(&dmin.to_le_bytes());
}

fn q3_k(w: &[f32], out: &mut [u8]) {
    let (d, scales) = scales(w, 16, -4.0, -32.0);
    let mut all = [0; SUPER];
    for ((all, w), s) in all.chunks_exact_mut(16).zip(w.chunks_exact(16)).zip(scales) {
        all.copy_from_slice(&codes::<16>(w, inverse(d.to_f32() * f32::from(s)), 4.0, 7.0));
    }
    let (hmask, rest) = out.split_at_mut(32);
    hmask.fill(0);
    for (k, codes) in all.chunks_exact(32).enumerate() {
        hmask.iter_mut().zip(codes).for_each(|(out, code)| *out |= code >> 2 << k);
    }
    put_pairs(&mut rest[0..64], &all.map(|code| code & 3));
    let packed = &mut rest[64..76];
    packed.fill(0);
    for (j, s) in scales.into_iter().enumerate() {
        let s = (s + 32) as u8;
        packed[j % 8] |= (s & 15) << (4 * (j / 8));
        packed[8 + j % 4] |= s >> 4 << (2 * (j / 4));
    }
    rest[76..78].copy_from_slice(&d.to_le_bytes());
}

fn q4_k(w: &[f32], out: &mut [u8]) {
    let affine = affine(w, 32, 15.0, 63.0);
    put_k_scales(&mut out[0..16], &affine);
    put_nibble_pairs(&mut out[16..], &affine.codes);
}

fn q5_k(w: &[f32], out: &mut [u8]) {
    let affine = affine(w, 32, 31.0, 63.0);
    put_k_scales(&mut out[0..16], &affine);
    out[16..48].fill(0);
    for (g, codes) in affine.codes.chunks_exact(32).enumerate() {
        out[16..48].iter_mut().zip(codes).for_each(|(out, code)| *out |= code >> 4 << g);
    }
    put_nibble_pairs(&mut out[48..], &affine.codes);
}

fn q6_k(w: &[f32], out: &mut [u8]) {
    let (d, scales) = scales(w, 16, -32.0, -128.0);
    let mut all = [0; SUPER];
    for ((all, w), s) in all.chunks_exact_mut(16).zip(w.chunks_exact(16)).zip(scales) {
        all.copy_from_slice(&codes::<16>(w, inverse(d.to_f32() * f32::from(s)), 32.0, 63.0));
    }
    let (low, rest) = out.split_at_mut(128);
    let (high, rest) = rest.split_at_mut(64);
    let halves = all.chunks_exact(128).zip(low.chunks_exact_mut(64)).zip(high.chunks_exact_mut(32));
    for ((q, low), high) in halves {
        for l in 0..32 {
            let [a, b, c, d] = [q[l], q[l + 32], q[l + 64], q[l + 96]];
            low[l] = a & 15 | c << 4;
            low[l + 32] = b & 15 | d << 4;
            high[l] = a >> 4 | b >> 4 << 2 | c >> 4 << 4 | d >> 4 << 6;
        }
    }
    rest[0..16].iter_mut().zip(scales).for_each(|(out, s)| *out = s as u8);
    rest[16..18].copy_from_slice(&d.to_le_bytes());
}

fn iq4_xs(w: &[f32], out: &mut [u8]) {
    let (d, scales) = scales(w, 32, -127.0, -32.0);
    out[0..2].copy_from_slice(&d.to_le_bytes());
    let (scales_out, qs) = out[2..].split_at_mut(6);
    scales_out.fill(0);
    let (high, low) = scales_out.split_at_mut(2);
    let groups = w.chunks_exact(32).zip(qs.chunks_exact_mut(16)).zip(scales);
    for (g, ((w, qs), s)) in groups.enumerate() {
        let six = (s + 32) as u8;
        low[g / 2] |= (six & 15) << (4 * (g % 2));
        high[g / 4] |= six >> 4 << (2 * (g % 4));
        put_nibbles(qs, &steps(w, d.to_f32() * f32::from(s)));
    }
}

/// A super-block of groups that each have a scale and a minimum.
struct Affine {
    d: f16,
    dmin: f16,
    scales: [u8; 16],   // (groups), the rest zero
    minimums: [u8; 16], // (groups), the rest zero
    codes: [u8; SUPER],
}

/// Finds codes up to `most` for groups of `len` weights, whose scales and minimums are codes up to `most_scale`.
fn affine(w: &[f32], len: usize, most: f32, most_scale: f32) -> Affine {
    let (mut spans, mut depths) = ([0f32; 16], [0f32; 16]);
    for ((span, depth), w) in spans.iter_mut().zip(&mut depths).zip(w.chunks_exact(len)) {
        let (min, max) = range(w);
        let min = min.min(0.0); // a minimum is subtracted, so it cannot be above zero
        (*span, *depth) = ((max - min) / most, -min);
    }
    let d = f16::from_f32(range(&spans).1 / most_scale);
    let dmin = f16::from_f32(range(&depths).1 / most_scale);
    let scales = codes::<16>(&spans, inverse(d.to_f32()), 0.0, most_scale);
    let minimums = codes::<16>(&depths, inverse(dmin.to_f32()), 0.0, most_scale);
    let mut all = [0; SUPER];
    let groups = all.chunks_exact_mut(len).zip(w.chunks_exact(len)).zip(scales.iter().zip(&minimums));
    for ((all, w), (&s, &m)) in groups {
        let inverse = inverse(d.to_f32() * f32::from(s));
        let shift = dmin.to_f32() * f32::from(m) * inverse;
        all.iter_mut().zip(w).for_each(|(code, w)| *code = nearest(w * inverse + shift, most));
    }
    Affine { d, dmin, scales, minimums, codes: all }
}

/// The scale of a super-block and those of its groups of `len` weights, whose codes and scales start at `least_code`
/// and `least_scale` and end one short of their negatives.
fn scales(w: &[f32], len: usize, least_code: f32, least_scale: f32) -> (f16, [i8; 16]) {
    let mut wanted = [0f32; 16];
    for (wanted, w) in wanted.iter_mut().zip(w.chunks_exact(len)) {
        *wanted = extreme(w) / least_code;
    }
    let d = f16::from_f32(extreme(&wanted) / least_scale);
    let codes = codes::<16>(&wanted, inverse(d.to_f32()), -least_scale, -2.0 * least_scale - 1.0);
    (d, codes.map(|code| (f32::from(code) + least_scale) as i8))
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

/// `w * inverse + shift` as codes, 0 up to `most`.
fn codes<const N: usize>(w: &[f32], inverse: f32, shift: f32, most: f32) -> [u8; N] {
    let mut codes = [0; N];
    codes.iter_mut().zip(w).for_each(|(code, w)| *code = nearest(w * inverse + shift, most));
    codes
}

/// The whole number nearest to `x`, from 0 to `most`, which is below 256.
fn nearest(x: f32, most: f32) -> u8 {
    ((x + 0.5).max(0.0).min(most)) as u8
}

/// The nibbles whose steps are nearest to `w / d`.
fn steps(w: &[f32], d: f32) -> [u8; 32] {
    codes::<32>(w, inverse(d), 128.0, 255.0).map(|code| NEAREST_STEP[usize::from(code)])
}

fn put_f16(out: &mut [u8], x: f32) {
    out.copy_from_slice(&f16::from_f32(x).to_le_bytes());
}

/// 32 codes of 4 bits: code `i` low in byte `i`, code `i + 16` above it.
fn put_nibbles(out: &mut [u8], codes: &[u8; 32]) {
    let (low, high) = codes.split_at(16);
    for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
        *out = low & 15 | high << 4;
    }
}

/// 32 codes of 5 bits: their fifth bits, then their nibbles.
fn put_fives(out: &mut [u8], codes: &[u8; 32]) {
    let fifth = codes.iter().rev().fold(0u32, |bits, code| bits << 1 | u32::from(code >> 4));
    out[0..4].copy_from_slice(&fifth.to_le_bytes());
    put_nibbles(&mut out[4..], codes);
}

/// 256 codes of 2 bits: 32 bytes hold 4 times 32.
fn put_pairs(out: &mut [u8], codes: &[u8; SUPER]) {
    for (out, q) in out.chunks_exact_mut(32).zip(codes.chunks_exact(128)) {
        for (l, out) in out.iter_mut().enumerate() {
            *out = q[l] | q[l + 32] << 2 | q[l + 64] << 4 | q[l + 96] << 6;
        }
    }
}

/// The low 4 bits of 256 codes: 32 bytes hold 2 times 32.
fn put_nibble_pairs(out: &mut [u8], codes: &[u8; SUPER]) {
    for (out, q) in out.chunks_exact_mut(32).zip(codes.chunks_exact(64)) {
        for (l, out) in out.iter_mut().enumerate() {
            *out = q[l] & 15 | q[l + 32] << 4;
        }
    }
}

/// The 16 bytes that Q4_K and Q5_K start with.
fn put_k_scales(out: &mut [u8], affine: &Affine) {
    out[0..2].copy_from_slice(&affine.d.to_le_bytes());
    out[2..4].copy_from_slice(&affine.dmin.to_le_bytes());
    let packed = &mut out[4..16];
    packed.fill(0);
    for g in 0..4 {
        let (s, m) = (affine.scales[g + 4], affine.minimums[g + 4]);
        packed[g] = affine.scales[g] | s >> 4 << 6;
        packed[g + 4] = affine.minimums[g] | m >> 4 << 6;
        packed[g + 8] = s & 15 | m << 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gptrickle_core::quant::dequantize;

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
}
