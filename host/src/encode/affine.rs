//! The search for formats that are codes times a scale, less a minimum.
//!
//! For given codes `q` the line `d·q + c` with the smallest error is the weighted least squares fit; for a given line
//! the best codes are the nearest ones. So codes are made with lines around the one that just spans the weights, each
//! is fitted, rounded and fitted again, and the best line is kept.

use half::f16;

use super::feedback::Rounding;
use super::pack::{self, Affine};
use super::{SUPER, inverse, nearest, range, sums};

/// How far beyond the last code, and short of it, the largest weight may lie in a search, in tenths of a code.
const REACH: std::ops::RangeInclusive<i32> = -10..=14;

/// The line `d·q + c` through the weights with the smallest error, for codes `q` from 0 to `most`.
///
/// Where it is to be `at_most_zero`, so is `c`.
fn line(w: &[f32], matter: &[f32], most: f32, at_most_zero: bool) -> (f32, f32) {
    let (mut min, max) = range(w);
    if at_most_zero {
        min = min.min(0.0);
    }
    if max <= min {
        return (0.0, min);
    }
    let [n, x] = sums(w, matter, |w, matter| [matter, matter * w]);
    let mut best = (f32::INFINITY, ((max - min) / most, min));
    for reach in REACH {
        let mut line = ((max - min) / (most + reach as f32 / 10.0), min);
        for _ in 0..2 {
            let (d, c) = line;
            let inverse = inverse(d);
            let [q, qq, qx] = sums(w, matter, |w, matter| {
                let code = nearest((w - c) * inverse, 0.0, most);
                [matter * code, matter * code * code, matter * code * w]
            });
            let determinant = n * qq - q * q;
            if determinant <= 0.0 {
                break;
            }
            line = ((n * qx - q * x) / determinant, (qq * x - q * qx) / determinant);
            if at_most_zero && line.1 > 0.0 {
                line = (qx / qq, 0.0);
            }
            let error = error(w, matter, line, most);
            if error < best.0 {
                best = (error, line);
            }
        }
    }
    best.1
}

/// The error of the codes nearest to a line.
#[inline(always)]
fn error(w: &[f32], matter: &[f32], (d, c): (f32, f32), most: f32) -> f32 {
    let inverse = inverse(d);
    sums(w, matter, |w, matter| {
        let off = w - c - d * nearest((w - c) * inverse, 0.0, most);
        [matter * off * off]
    })[0]
}

fn put_codes(rounding: &mut Rounding, (d, c): (f32, f32), most: f32, codes: &mut [u8]) {
    let inverse = inverse(d);
    rounding.codes(codes, |w| {
        let code = nearest((w - c) * inverse, 0.0, most);
        (code as u8, d * code + c)
    });
}

/// A block with one line: its scale, its minimum and its codes.
fn block(w: &[f32], matter: &[f32], most: f32, rounding: &mut Rounding) -> (f16, f16, [u8; 32]) {
    let (d, c) = line(w, matter, most, false);
    let (d, c) = (f16::from_f32(d), f16::from_f32(c));
    let mut codes = [0; 32];
    put_codes(rounding, (d.to_f32(), c.to_f32()), most, &mut codes);
    (d, c, codes)
}

pub(super) fn q4_1(w: &[f32], matter: &[f32], rounding: &mut Rounding, out: &mut [u8]) {
    let (d, min, codes) = block(w, matter, 15.0, rounding);
    pack::q4_1(d, min, &codes, out);
}

pub(super) fn q5_1(w: &[f32], matter: &[f32], rounding: &mut Rounding, out: &mut [u8]) {
    let (d, min, codes) = block(w, matter, 31.0, rounding);
    pack::q5_1(d, min, &codes, out);
}

pub(super) fn q2_k(w: &[f32], matter: &[f32], rounding: &mut Rounding, out: &mut [u8]) {
    pack::q2_k(&super_block(w, matter, 16, 3.0, 15.0, rounding), out);
}

pub(super) fn q4_k(w: &[f32], matter: &[f32], rounding: &mut Rounding, out: &mut [u8]) {
    pack::q4_k(&super_block(w, matter, 32, 15.0, 63.0, rounding), out);
}

pub(super) fn q5_k(w: &[f32], matter: &[f32], rounding: &mut Rounding, out: &mut [u8]) {
    pack::q5_k(&super_block(w, matter, 32, 31.0, 63.0, rounding), out);
}

/// How often the scales and minimums of a super-block are looked at again.
const ROUNDS: usize = 4;

/// A super-block of groups of `len` weights, whose scales and minimums are codes up to `most_scale`.
///
/// Each group first gets the line it wants. Then, in turn, each tries the pairs of codes beside its own, with the
/// weights' codes that follow from them, and the two scales of all are fitted to what came out.
fn super_block(w: &[f32], matter: &[f32], len: usize, most: f32, most_scale: f32, rounding: &mut Rounding) -> Affine {
    let groups = || w.chunks_exact(len).zip(matter.chunks_exact(len));
    let mut wanted = [(0f32, 0f32); 16];
    wanted.iter_mut().zip(groups()).for_each(|(wanted, (w, matter))| *wanted = line(w, matter, most, true));
    let largest = |of: fn(&(f32, f32)) -> f32| wanted.iter().map(of).fold(0.0, f32::max);
    let mut d = f16::from_f32(largest(|line| line.0) / most_scale);
    let mut dmin = f16::from_f32(largest(|line| -line.1) / most_scale);
    let of = |x: f32, d: f16| nearest(x * inverse(d.to_f32()), 0.0, most_scale);
    let mut pairs = wanted.map(|(scale, c)| (of(scale, d), of(-c, dmin)));
    let mut best = (f32::INFINITY, d, dmin, pairs);
    for _ in 0..ROUNDS {
        let mut total = 0.0;
        let [mut aa, mut ab, mut bb, mut aw, mut bw] = [0.0; 5]; // a·d + b·dmin is to be w
        for (pair, (w, matter)) in pairs.iter_mut().zip(groups()) {
            let line = |(s, m): (f32, f32)| (d.to_f32() * s, -dmin.to_f32() * m);
            let mut found = (error(w, matter, line(*pair), most), *pair);
            for s in [pair.0 - 1.0, pair.0, pair.0 + 1.0] {
                for m in [pair.1 - 1.0, pair.1, pair.1 + 1.0] {
                    let inside = (0.0..=most_scale).contains(&s) && (0.0..=most_scale).contains(&m);
                    let error = if inside { error(w, matter, line((s, m)), most) } else { f32::INFINITY };
                    if error < found.0 {
                        found = (error, (s, m));
                    }
                }
            }
            *pair = found.1;
            total += found.0;
            let ((s, m), (scale, c)) = (*pair, line(*pair));
            let inverse = inverse(scale);
            let terms = sums(w, matter, |w, matter| {
                let (a, b) = (s * nearest((w - c) * inverse, 0.0, most), -m);
                [matter * a * a, matter * a * b, matter * b * b, matter * a * w, matter * b * w]
            });
            for (sum, term) in [&mut aa, &mut ab, &mut bb, &mut aw, &mut bw].into_iter().zip(terms) {
                *sum += term;
            }
        }
        if total < best.0 {
            best = (total, d, dmin, pairs);
        }
        let determinant = aa * bb - ab * ab;
        let fitted = if determinant > 1e-6 * aa * bb {
            ((aw * bb - bw * ab) / determinant, (bw * aa - aw * ab) / determinant)
        } else {
            (aw * inverse(aa), 0.0)
        };
        let fitted = (f16::from_f32(fitted.0.max(0.0)), f16::from_f32(fitted.1.max(0.0)));
        if fitted == (d, dmin) {
            break;
        }
        (d, dmin) = fitted;
    }
    let (_, d, dmin, pairs) = best;
    let mut codes = [0; SUPER];
    for (codes, (s, m)) in codes.chunks_exact_mut(len).zip(pairs) {
        put_codes(rounding, (d.to_f32() * s, -dmin.to_f32() * m), most, codes);
    }
    Affine { d, dmin, scales: pairs.map(|pair| pair.0 as u8), minimums: pairs.map(|pair| pair.1 as u8), codes }
}
