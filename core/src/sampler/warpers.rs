//! Which candidates may be drawn: Hugging Face's warpers, in their order, over candidates sorted by logit.
//!
//! Each leaves a stretch of them: all but `typical_p` cut off unlikely ones, and that one keeps those whose
//! information is nearest to the entropy, which stand side by side.

use core::ops::Range;

use super::Params;
use super::shortlist::logit;
use crate::exp::exp;

/// How logits become weights: probabilities, but for a common factor.
#[derive(Clone, Copy)]
pub(super) struct Scale {
    best: f32,
    temperature: f32,
}

impl Scale {
    /// The logarithm of a candidate's weight: 0 of the best one.
    fn log(&self, candidate: u64) -> f32 {
        (logit(candidate) - self.best) / self.temperature
    }

    /// A candidate's probability relative to that of the best one.
    pub(super) fn weight(&self, candidate: u64) -> f32 {
        exp(self.log(candidate))
    }
}

/// Candidates, the likeliest first, and their weights.
#[derive(Clone, Copy)]
pub(super) struct Weights<'k> {
    kept: &'k [u64],
    pub(super) scale: Scale,
}

impl<'k> Weights<'k> {
    pub(super) fn new(kept: &'k [u64], temperature: f32) -> Self {
        Weights { kept, scale: Scale { best: kept.first().map_or(0.0, |&best| logit(best)), temperature } }
    }

    fn of(&self, range: Range<usize>) -> &[u64] {
        self.kept.get(range).unwrap_or_default()
    }

    /// The sum over some of them.
    #[inline(never)]
    pub(super) fn total(&self, range: Range<usize>) -> f32 {
        self.of(range).iter().map(|&c| self.scale.weight(c)).sum()
    }

    /// `-Σ p ln p` over some of them alone, in nats.
    fn entropy(&self, range: Range<usize>) -> f32 {
        let total = self.total(range.clone());
        let logs: f32 = self.of(range).iter().map(|&c| self.scale.weight(c) * self.scale.log(c)).sum();
        libm::logf(total) - logs / total
    }

    /// The candidates that `params` leave to be drawn from, one at least.
    pub(super) fn left(&self, params: &Params) -> Range<usize> {
        let Params { top_p, min_p, typical_p, epsilon_cutoff, eta_cutoff, .. } = *params;
        let mut n = self.kept.len();
        if top_p < 1.0 {
            let total = self.total(0..n);
            let mut sum = 0.0;
            let reached = |&&candidate: &&u64| {
                let before = sum;
                sum += self.scale.weight(candidate);
                before < top_p * total
            };
            n = self.kept.iter().take_while(reached).count();
        }
        if min_p > 0.0 {
            n = self.of(0..n).iter().take_while(|&&c| self.scale.weight(c) >= min_p).count();
        }
        let mut left = 0..n.max(1);
        if typical_p < 1.0 {
            left = self.typical(left, typical_p);
        }
        if 0.0 < epsilon_cutoff && epsilon_cutoff < 1.0 {
            left = self.at_least(left, epsilon_cutoff);
        }
        if 0.0 < eta_cutoff && eta_cutoff < 1.0 {
            let eta = libm::sqrtf(eta_cutoff) * exp(-self.entropy(left.clone()));
            left = self.at_least(left, eta.min(eta_cutoff));
        }
        left
    }

    /// Of `range`, those whose information is nearest to the entropy, up to a sum of probabilities.
    fn typical(&self, range: Range<usize>, mass: f32) -> Range<usize> {
        let (total, entropy) = (self.total(range.clone()), self.entropy(range.clone()));
        let log_total = libm::logf(total);
        let log = |i: usize| self.kept.get(i).map_or(f32::NEG_INFINITY, |&c| self.scale.log(c));
        let distance = |i: usize| (log_total - log(i) - entropy).abs();
        // Information grows along the list: the nearest ones lie around where it passes the entropy.
        let middle = self.of(range.clone()).partition_point(|&c| log_total - self.scale.log(c) < entropy);
        let mut near = range.start + middle..range.start + middle;
        let (mut sum, mut furthest) = (0.0, None);
        loop {
            let below = (near.start > range.start).then(|| near.start - 1);
            let above = (near.end < range.end).then_some(near.end);
            let next = match (below, above) {
                (Some(below), Some(above)) if distance(above) < distance(below) => above,
                (Some(below), _) => below,
                (None, Some(above)) => above,
                (None, None) => return near,
            };
            // Those that are as far as the last one stay with it.
            if furthest.is_some_and(|furthest| distance(next) > furthest) {
                return near;
            }
            near = near.start.min(next)..near.end.max(next + 1);
            sum += exp(log(next)) / total;
            if sum >= mass && furthest.is_none() {
                furthest = Some(distance(next));
            }
        }
    }

    /// Of `range`, those of this probability at least, and the best one.
    fn at_least(&self, range: Range<usize>, probability: f32) -> Range<usize> {
        let total = self.total(range.clone());
        let n = self.of(range.clone()).iter().take_while(|&&c| self.scale.weight(c) / total >= probability).count();
        range.start..range.start + n.max(1)
    }
}
