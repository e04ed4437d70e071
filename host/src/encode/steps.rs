//! The search for formats whose codes stand for uneven steps, denser around zero.

use half::f16;

use super::feedback::Rounding;
use super::pack::{self, Symmetric};
use super::{SUPER, extreme, inverse, symmetric};

/// What a nibble of IQ4_NL and IQ4_XS stands for.
pub(super) const STEPS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The nibble whose step is nearest to all numbers from `at / 2 - 128` to the next half: where two steps are as near, a
/// half begins.
const NEAREST: [u8; 512] = {
    let mut nearest = [0; 512];
    let mut at = 0;
    while at < 512 {
        let middle = 2 * at as i32 + 1 - 512; // of the half, in quarters
        let mut nibble = 1;
        while nibble < 16 {
            let best = nearest[at] as usize;
            if (middle - 4 * STEPS[nibble] as i32).abs() < (middle - 4 * STEPS[best] as i32).abs() {
                nearest[at] = nibble as u8;
            }
            nibble += 1;
        }
        at += 1;
    }
    nearest
};

/// The step nearest to `x`, and its nibble.
#[inline(always)]
fn step(x: f32) -> (f32, u8) {
    let nibble = NEAREST[(2.0 * x + 256.0).clamp(0.0, 511.0) as usize];
    (f32::from(STEPS[usize::from(nibble)]), nibble)
}

/// How far beyond the outermost step, and short of it, the largest weight may lie in a search: steps there are 23 wide.
const REACH: std::ops::RangeInclusive<i32> = -14..=26;

/// The scale with the smallest error.
fn scale(w: &[f32], matter: &[f32]) -> f32 {
    let most = extreme(w).abs();
    let mut best = (0.0, 0.0);
    for reach in REACH.step_by(2) {
        let inverse = (127 + reach) as f32 * inverse(most);
        for inverse in [inverse, -inverse] {
            let (mut product, mut square) = (0.0, 0.0);
            for (w, matter) in w.iter().zip(matter) {
                let (step, _) = step(w * inverse);
                product += matter * w * step;
                square += matter * step * step;
            }
            if product * product > best.0 * square {
                best = (product * product / square, product / square);
            }
        }
    }
    best.1
}

pub(super) fn iq4_nl(w: &[f32], matter: &[f32], rounding: &mut Rounding, out: &mut [u8]) {
    let d = f16::from_f32(scale(w, matter));
    let mut codes = [0; 32];
    put_codes(rounding, d.to_f32(), &mut codes);
    pack::q4_0(d, &codes, out);
}

pub(super) fn iq4_xs(w: &[f32], matter: &[f32], rounding: &mut Rounding, out: &mut [u8]) {
    let mut wanted = [0.0; 16];
    let groups = w.chunks_exact(32).zip(matter.chunks_exact(32));
    wanted.iter_mut().zip(groups).for_each(|(wanted, (w, matter))| *wanted = scale(w, matter));
    let (d, scales) = symmetric::share(w, matter, 32, &wanted, -32.0, |x| step(x).0);
    let mut codes = [0; SUPER];
    for (codes, s) in codes.chunks_exact_mut(32).zip(scales) {
        put_codes(rounding, d.to_f32() * f32::from(s), codes);
    }
    pack::iq4_xs(&Symmetric { d, scales, codes }, out);
}

/// The nibbles whose steps times `d` are nearest.
pub(super) fn put_codes(rounding: &mut Rounding, d: f32, codes: &mut [u8]) {
    let inverse = inverse(d);
    rounding.codes(codes, |w| {
        let (step, nibble) = step(w * inverse);
        (nibble, d * step)
    });
}
