//! Errors of weights that those after them make up for.
//!
//! Inputs go up and down together, so an error of one weight can be undone in part by the others of its row. With `C`
//! the sums of products of every two inputs over a text, and `C = R·Rᵀ` where `R` has nothing below its diagonal, the
//! squared error of a row's product over that text is
//!
//! ```text
//! e·C·eᵀ = |e·R|²        e = weights - what they are rounded to        (e·R)[k] = Σ e[j]·R[j][k] for j up to k
//! ```
//!
//! So weights are rounded from the first to the last, each to what is nearest to `w[k] + Σ e[j]·R[j][k] / R[k][k]` for
//! `j < k`, which makes entry `k` as small as codes allow (GPTQ, Frantar et al. 2022, in the form of Babai's nearest
//! plane).

use rayon::prelude::*;

use super::LANES;

/// Inputs whose products with each other are looked at: those of a row are cut into runs of so many.
pub const RUN: usize = 1024;

/// How much each input goes up and down on its own besides, as a part of the mean square: what holds for the text only
/// is not relied on, and the sums of few tokens, which have no inverse, can be used. Of 0.01, 0.1, 0.3 and 1 the best with
/// the demo model's own text, by little but for the first; with ten times the text 0.3 was slightly better.
const ALONE: f64 = 0.1;

/// What part of each weight's error goes to the weights after it.
#[derive(Debug, Clone)]
pub struct Feedback {
    columns: usize,
    parts: Vec<f32>, // (columns, width): of row j, R[j][k] / R[k][k] for the k of its run
}

impl Feedback {
    /// Finds the parts for a matrix of so many columns; takes `columns * RUN² / 3` steps, on all threads of the pool.
    ///
    /// `products` has, for each input, the sums of its products with the inputs of its run up to itself,
    /// (columns, [`width`]`(columns)`); the rest of a row is not looked at. Sums or means, they do the same. None if no
    /// input has such products as that.
    ///
    /// # Panics
    /// `products` has another length.
    pub fn new(products: &[f32], columns: usize) -> Option<Feedback> {
        let width = width(columns);
        assert_eq!(products.len(), columns * width, "a row for each column");
        let mut parts = Vec::with_capacity(products.len());
        for products in products.chunks(RUN * width) {
            parts.extend(of_run(products, width)?);
        }
        Some(Feedback { columns, parts })
    }
}

/// Inputs of a run in a matrix of so many columns.
pub fn width(columns: usize) -> usize {
    columns.min(RUN)
}

/// The parts of a run from its products, rows of `width` both.
fn of_run(products: &[f32], width: usize) -> Option<Vec<f32>> {
    let n = products.len() / width;
    let mean = (0..n).map(|i| f64::from(products[i * width + i])).sum::<f64>() / n as f64;
    let mut root = vec![0.0; n * n];
    // Column k of R from those after it, with the diagonal last.
    for k in (0..n).rev() {
        let (above, row) = root.split_at_mut(k * n);
        let after = &row[k + 1..n];
        let product = |j: usize| f64::from(products[k * width + j]);
        let square = product(k) + ALONE * mean - dot(after, after);
        if square.is_nan() || square <= 0.0 {
            return None;
        }
        let diagonal = square.sqrt();
        above.par_chunks_exact_mut(n).enumerate().with_min_len(64).for_each(|(j, row)| {
            row[k] = (product(j) - dot(&row[k + 1..], after)) / diagonal;
        });
        row[k] = diagonal;
    }
    let mut parts = vec![0.0; n * width];
    for (j, parts) in parts.chunks_exact_mut(width).enumerate() {
        for k in j + 1..n {
            parts[k] = (root[j * n + k] / root[k * n + k]) as f32;
        }
    }
    Some(parts)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut lanes = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        (0..LANES).for_each(|i| lanes[i] += a[i] * b[i]);
    }
    lanes.iter().sum::<f64>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f64>()
}

/// A row that is rounded from the first weight to the last.
pub(super) struct Rounding<'a> {
    weights: &'a [f32],
    feedback: Option<&'a Feedback>,
    targets: Vec<f32>, // what the weights are rounded from, if there is feedback
    done: usize,
}

impl<'a> Rounding<'a> {
    /// # Panics
    /// The feedback is for rows of another length.
    pub(super) fn new(weights: &'a [f32], feedback: Option<&'a Feedback>) -> Rounding<'a> {
        assert!(feedback.is_none_or(|feedback| feedback.columns == weights.len()), "a whole row");
        let targets = if feedback.is_some() { weights.to_vec() } else { Vec::new() };
        Rounding { weights, feedback, targets, done: 0 }
    }

    /// The next weights as they are to be rounded, unless some of them change what the others should be.
    pub(super) fn next(&self, out: &mut [f32]) {
        let from = if self.feedback.is_some() { &self.targets } else { self.weights };
        out.copy_from_slice(&from[self.done..][..out.len()]);
    }

    /// Rounds the next weights, one for each code; `nearest` tells the code nearest to a weight, and its value.
    #[inline(always)]
    pub(super) fn codes(&mut self, codes: &mut [u8], nearest: impl Fn(f32) -> (u8, f32)) {
        let Some(feedback) = self.feedback else {
            codes.iter_mut().zip(&self.weights[self.done..]).for_each(|(code, &w)| *code = nearest(w).0);
            self.done += codes.len();
            return;
        };
        let width = width(feedback.columns);
        for code in codes {
            let (at, value);
            (at, self.done) = (self.done, self.done + 1);
            (*code, value) = nearest(self.targets[at]);
            let error = self.weights[at] - value;
            let parts = &feedback.parts[at * width..][at % RUN + 1..width];
            self.targets[at + 1..].iter_mut().zip(parts).for_each(|(target, part)| *target += error * part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of inputs that are sums of a few common ones, and a bit of their own.
    fn inputs(n: usize, rows: usize) -> Vec<Vec<f32>> {
        let mut state = 7u32;
        let mut next = || {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            (state >> 8) as f32 / 16777216.0 - 0.5
        };
        let shares: Vec<[f32; 3]> = (0..n).map(|_| [next(), next(), next()]).collect();
        let mut row = || {
            let common = [next(), next(), next()];
            let of = |share: &[f32; 3]| share.iter().zip(common).map(|(a, b)| a * b).sum::<f32>();
            shares.iter().map(|share| of(share) + 0.1 * next()).collect()
        };
        (0..rows).map(|_| row()).collect()
    }

    fn products(inputs: &[Vec<f32>]) -> Vec<f32> {
        let n = inputs[0].len();
        let width = width(n);
        let mut products = vec![0.0; n * width];
        for x in inputs {
            for j in 0..n {
                let start = j / RUN * RUN;
                (start..=j).for_each(|i| products[j * width + i - start] += x[j] * x[i]);
            }
        }
        products
    }

    /// The squared error of the products with inputs that the feedback has not seen, with and without it.
    #[test]
    fn products_come_out_closer() {
        for n in [96, RUN + 96] {
            let seen = inputs(n, 1200);
            let (seen, fresh) = seen.split_at(1000);
            let feedback = Feedback::new(&products(seen), n).unwrap();
            let weights: Vec<f32> = (0..n as u32).map(|i| (i.wrapping_mul(2654435761) >> 16) as f32 / 6553.6).collect();
            let error = |feedback: Option<&Feedback>| {
                let mut rounding = Rounding::new(&weights, feedback);
                let mut codes = vec![0; n];
                rounding.codes(&mut codes, |w| (w.round() as u8, w.round()));
                let off = |x: &Vec<f32>| {
                    x.iter().zip(&weights).zip(&codes).map(|((x, w), &code)| x * (w - f32::from(code))).sum::<f32>()
                };
                fresh.iter().map(|x| off(x) * off(x)).sum::<f32>()
            };
            let (with, without) = (error(Some(&feedback)), error(None));
            println!("{n}: {with}, {without} without");
            assert!(with < 0.3 * without, "{n}: {with}, {without} without");
        }
    }

    /// R·Rᵀ is what it was made from, with the part of each input that it has alone.
    #[test]
    fn the_root_is_one() {
        let n = 20;
        let products = products(&inputs(n, 100));
        let parts = Feedback::new(&products, n).unwrap().parts;
        let mean = (0..n).map(|i| products[i * n + i]).sum::<f32>() / n as f32;
        let c = |i: usize, j: usize| products[i.max(j) * n + i.min(j)] + if i == j { ALONE as f32 * mean } else { 0.0 };
        // With S = R / its diagonal and D that diagonal's squares, C = S·D·Sᵀ; D from the last column on.
        let s = |i: usize, j: usize| if i == j { 1.0 } else { parts[i * n + j] };
        let mut d = vec![0.0; n];
        for k in (0..n).rev() {
            d[k] = c(k, k) - (k + 1..n).map(|m| s(k, m) * s(k, m) * d[m]).sum::<f32>();
            for j in 0..k {
                let found = (k..n).map(|m| s(j, m) * s(k, m) * d[m]).sum::<f32>();
                assert!((found - c(j, k)).abs() < 1e-4 * mean, "{j} {k}: {found}, not {}", c(j, k));
            }
        }
    }

    #[test]
    fn what_is_no_products_has_no_feedback() {
        assert!(Feedback::new(&[0.0; 4], 2).is_none());
        assert!(Feedback::new(&[1.0, 0.0, 9.0, 1.0], 2).is_none(), "no inputs are so much alike");
        assert!(Feedback::new(&[f32::NAN; 4], 2).is_none());
    }
}
