//! The simplest rule for every format: the scale that just reaches the largest weight of a block.

use gptrickle_core::quant::Format;
use half::{bf16, f16};

use super::pack::{self, Affine, Symmetric};
use super::{SUPER, extreme, inverse, range, steps};

/// The nibble whose step is nearest to `q`, at `q + 128`.
const NEAREST_STEP: [u8; 256] = {
    let mut nearest = [0; 256];
    let mut at = 0;
    while at < 256 {
        let q = at as i32 - 128;
        let mut nibble = 1;
        while nibble < 16 {
            let best = nearest[at] as usize;
            if (q - steps::STEPS[nibble] as i32).abs() < (q - steps::STEPS[best] as i32).abs() {
                nearest[at] = nibble as u8;
            }
            nibble += 1;
        }
        at += 1;
    }
    nearest
};

/// Encodes one block.
pub(super) fn encode(format: Format, w: &[f32], out: &mut [u8]) {
    match format {
        Format::F32 => out.copy_from_slice(&w[0].to_le_bytes()),
        Format::F16 => out.copy_from_slice(&f16::from_f32(w[0]).to_le_bytes()),
        Format::BF16 => out.copy_from_slice(&bf16::from_f32(w[0]).to_le_bytes()),
        Format::Q4_0 => {
            let d = extreme(w) / -8.0;
            pack::q4_0(f16::from_f32(d), &codes::<32>(w, inverse(d), 8.0, 15.0), out);
        }
        Format::Q4_1 => {
            let (d, min) = line(w, 15.0);
            let codes = codes::<32>(w, inverse(d), -min * inverse(d), 15.0);
            pack::q4_1(f16::from_f32(d), f16::from_f32(min), &codes, out);
        }
        Format::Q5_0 => {
            let d = extreme(w) / -16.0;
            pack::q5_0(f16::from_f32(d), &codes::<32>(w, inverse(d), 16.0, 31.0), out);
        }
        Format::Q5_1 => {
            let (d, min) = line(w, 31.0);
            let codes = codes::<32>(w, inverse(d), -min * inverse(d), 31.0);
            pack::q5_1(f16::from_f32(d), f16::from_f32(min), &codes, out);
        }
        Format::Q8_0 => {
            let d = extreme(w).abs() / 127.0;
            pack::q8_0(f16::from_f32(d), &codes::<32>(w, inverse(d), 127.0, 254.0), out);
        }
        Format::Q2_K => pack::q2_k(&affine(w, 16, 3.0, 15.0), out),
        Format::Q3_K => pack::q3_k(&symmetric(w, 16, -4.0, -32.0), out),
        Format::Q4_K => pack::q4_k(&affine(w, 32, 15.0, 63.0), out),
        Format::Q5_K => pack::q5_k(&affine(w, 32, 31.0, 63.0), out),
        Format::Q6_K => pack::q6_k(&symmetric(w, 16, -32.0, -128.0), out),
        Format::IQ4_NL => {
            let d = extreme(w) / -127.0;
            pack::q4_0(f16::from_f32(d), &steps_of(w, d), out); // the same layout
        }
        Format::IQ4_XS => {
            let (d, scales) = scales(w, 32, -127.0, -32.0);
            let mut codes = [0; SUPER];
            for ((codes, w), s) in codes.chunks_exact_mut(32).zip(w.chunks_exact(32)).zip(scales) {
                codes.copy_from_slice(&steps_of(w, d.to_f32() * f32::from(s)));
            }
            pack::iq4_xs(&Symmetric { d, scales, codes }, out);
        }
        _ => panic!("a format newer than this encoder: {format:?}"),
    }
}

/// The step and the least value of codes up to `most`.
fn line(w: &[f32], most: f32) -> (f32, f32) {
    let (min, max) = range(w);
    ((max - min) / most, min)
}

/// Codes from `least` on for groups of `len` weights, whose scales are codes from `least_scale` on.
fn symmetric(w: &[f32], len: usize, least: f32, least_scale: f32) -> Symmetric {
    let (d, scales) = scales(w, len, least, least_scale);
    let mut all = [0; SUPER];
    for ((all, w), s) in all.chunks_exact_mut(len).zip(w.chunks_exact(len)).zip(scales) {
        let codes = codes::<16>(w, inverse(d.to_f32() * f32::from(s)), -least, -2.0 * least - 1.0);
        all.copy_from_slice(&codes);
    }
    Symmetric { d, scales, codes: all }
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
fn steps_of(w: &[f32], d: f32) -> [u8; 32] {
    codes::<32>(w, inverse(d), 128.0, 255.0).map(|code| NEAREST_STEP[usize::from(code)])
}
