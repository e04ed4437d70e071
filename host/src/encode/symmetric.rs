//! The search for formats that are codes times a scale.
//!
//! For given codes `q` the scale with the smallest error is `Σ h·w·q / Σ h·q²`, and what it saves of `Σ h·w²` is
//! `(Σ h·w·q)² / Σ h·q²`; for a given scale the best codes are the nearest ones. So scales around the one that just
//! reaches the largest weight are tried, of both signs, as the codes reach one further below zero than above it, and
//! the best pair of codes and scale is kept.

use half::f16;

use super::feedback::Rounding;
use super::pack::{self, Symmetric};
use super::{SUPER, extreme, inverse, nearest, sums};

/// How far beyond the outermost code, and short of it, the largest weight may lie in a search, in tenths of a code.
const REACH: std::ops::RangeInclusive<i32> = -9..=20;

/// Codes from the least to the greatest.
type Codes = (f32, f32);

/// The scale with the smallest error.
fn scale(w: &[f32], matter: &[f32], (least, greatest): Codes) -> f32 {
    let most = extreme(w).abs();
    let mut best = (0.0, 0.0);
    for reach in REACH {
        let inverse = (reach as f32 / 10.0 - least) * inverse(most);
        for inverse in [inverse, -inverse] {
            let [product, square] = sums(w, matter, |w, matter| {
                let code = nearest(w * inverse, least, greatest);
                [matter * w * code, matter * code * code]
            });
            if product * product > best.0 * square {
                best = (product * product / square, product / square);
            }
        }
    }
    best.1
}

/// The scale of a block with one scale, and its codes, counted from the least.
fn block(w: &[f32], matter: &[f32], range: Codes, rounding: &mut Rounding) -> (f16, [u8; 32]) {
    let d = f16::from_f32(scale(w, matter, range));
    let mut codes = [0; 32];
    put_codes(rounding, d.to_f32(), range, &mut codes);
    (d, codes)
}

fn put_codes(rounding: &mut Rounding, d: f32, (least, greatest): Codes, codes: &mut [u8]) {
    let inverse = inverse(d);
    rounding.codes(codes, |w| {
        let code = nearest(w * inverse, least, greatest);
        ((code - least) as u8, d * code)
    });
}

pub(super) fn q4_0(w: &[f32], matter: &[f32], rounding: &mut Rounding, out: &mut [u8]) {
    let (d, codes) = block(w, matter, (-8.0, 7.0), rounding);
    pack::q4_0(d, &codes, out);
}

pub(super) fn q5_0(w: &[f32], matter: &[f32], rounding: &mut Rounding, out: &mut [u8]) {
    let (d, codes) = block(w, matter, (-16.0, 15.0), rounding);
    pack::q5_0(d, &codes, out);
}

pub(super) fn q8_0(w: &[f32], matter: &[f32], rounding: &mut Rounding, out: &mut [u8]) {
    let (d, codes) = block(w, matter, (-127.0, 127.0), rounding);
    pack::q8_0(d, &codes, out);
}

pub(super) fn q3_k(w: &[f32], matter: &[f32], rounding: &mut Rounding, out: &mut [u8]) {
    pack::q3_k(&super_block(w, matter, (-4.0, 3.0), -32.0, rounding), out);
}

pub(super) fn q6_k(w: &[f32], matter: &[f32], rounding: &mut Rounding, out: &mut [u8]) {
    pack::q6_k(&super_block(w, matter, (-32.0, 31.0), -128.0, rounding), out);
}

/// A super-block of groups of 16 weights.
fn super_block(w: &[f32], matter: &[f32], range: Codes, least_scale: f32, rounding: &mut Rounding) -> Symmetric {
    const LEN: usize = 16;
    let mut wanted = [0.0; 16];
    let groups = w.chunks_exact(LEN).zip(matter.chunks_exact(LEN));
    wanted.iter_mut().zip(groups).for_each(|(wanted, (w, matter))| *wanted = scale(w, matter, range));
    let (d, scales) = share(w, matter, LEN, &wanted, least_scale, |x| nearest(x, range.0, range.1));
    let mut codes = [0; SUPER];
    for (codes, s) in codes.chunks_exact_mut(LEN).zip(scales) {
        put_codes(rounding, d.to_f32() * f32::from(s), range, codes);
    }
    Symmetric { d, scales, codes }
}

/// How often the scales of a super-block are looked at again.
const ROUNDS: usize = 3;

/// One scale for a super-block, and whole numbers that make of it the scales that its groups of `len` weights want.
///
/// Those reach from `least_scale` to one short of its negative; `code` is the value of the code nearest to a number.
/// In turn each group tries the numbers beside its own, with the codes that follow from them, and the scale of all is
/// fitted to what came out.
pub(super) fn share(
    w: &[f32],
    matter: &[f32],
    len: usize,
    wanted: &[f32; 16],
    least_scale: f32,
    code: impl Fn(f32) -> f32,
) -> (f16, [i8; 16]) {
    let error = |w: &[f32], matter: &[f32], d: f32| {
        let inverse = inverse(d);
        sums(w, matter, |w, matter| {
            let off = w - d * code(w * inverse);
            [matter * off * off]
        })[0]
    };
    let mut d = f16::from_f32(extreme(wanted) / least_scale);
    let mut best = (f32::INFINITY, d, [0; 16]);
    let mut scales = wanted.map(|wanted| nearest(wanted * inverse(d.to_f32()), least_scale, -least_scale - 1.0));
    for _ in 0..ROUNDS {
        let (mut total, mut product, mut square) = (0.0, 0.0, 0.0);
        let groups = w.chunks_exact(len).zip(matter.chunks_exact(len));
        for (s, (w, matter)) in scales.iter_mut().zip(groups) {
            let around = [*s, *s - 1.0, *s + 1.0].into_iter().filter(|s| (least_scale..-least_scale).contains(s));
            let tried = around.map(|s| (error(w, matter, d.to_f32() * s), s));
            let (least, found) =
                tried.fold((f32::INFINITY, *s), |best, tried| if tried.0 < best.0 { tried } else { best });
            *s = found;
            total += least;
            let inverse = inverse(d.to_f32() * found);
            let [p, q] = sums(w, matter, |w, matter| {
                let value = found * code(w * inverse);
                [matter * w * value, matter * value * value]
            });
            product += p;
            square += q;
        }
        if total < best.0 {
            best = (total, d, scales.map(|s| s as i8));
        }
        let fitted = f16::from_f32(if square > 0.0 { product / square } else { 0.0 });
        if fitted == d {
            break;
        }
        d = fitted;
    }
    (best.1, best.2)
}
