//! How well a model predicts a text, and how far it is from a better-precision file of the same model.
//!
//! [`windows`] cuts the text as transformers' documentation does for models of fixed length: windows of the model's
//! context, each a stride behind the one before, of which only the tokens count that no window before has scored. So
//! every token but the first is predicted once, most of them with at least `context - stride` tokens before them.
//! [`Score`] adds up what the predictions cost, [`Distance`] compares them with those of a reference, as llama.cpp's
//! perplexity tool does. Logits come as f32, all sums are f64.

use std::iter;
use std::ops::Range;

/// A stretch of the text that is run from an empty context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Its tokens, as positions in the text.
    pub tokens: Range<usize>,
    /// Those of them that are scored: the ones that are new, but for the text's first, which nothing predicts.
    pub scored: Range<usize>,
}

/// The windows over `n` tokens, each up to `context` long and `stride` behind the one before.
///
/// Where the stride is the whole context, nothing predicts a window's first token, so it is not scored.
///
/// # Panics
/// `stride` is 0 or above `context`.
pub fn windows(n: usize, context: usize, stride: usize) -> impl Iterator<Item = Window> {
    assert!((1..=context).contains(&stride), "a stride from 1 to the context");
    let mut next = Some((0, 0)); // where the window begins, and the first token that is not scored yet
    iter::from_fn(move || {
        let (begin, unscored) = next.take()?;
        let end = n.min(begin + context);
        next = (end < n).then_some((begin + stride, end));
        let first = unscored.max(begin + 1).min(end);
        Some(Window { tokens: begin..end, scored: first..end })
    })
}

/// What predictions cost: the sum of their negative log-likelihoods, in nats.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Score {
    /// Tokens scored.
    pub tokens: u64,
    sum: f64,
    squares: f64,
}

impl Score {
    /// Adds a token that was predicted with this log-probability.
    pub fn add(&mut self, log_probability: f64) {
        self.tokens += 1;
        self.sum -= log_probability;
        self.squares += log_probability * log_probability;
    }

    /// The mean negative log-likelihood, in nats.
    pub fn mean(&self) -> f64 {
        self.sum / self.tokens as f64
    }

    /// `exp` of the mean.
    pub fn perplexity(&self) -> f64 {
        self.mean().exp()
    }

    /// The standard error of the perplexity, tokens taken as independent.
    pub fn error(&self) -> f64 {
        let n = self.tokens as f64;
        let variance = (self.squares / n - self.mean() * self.mean()).max(0.0);
        self.perplexity() * (variance / (n - 1.0).max(1.0)).sqrt()
    }

    /// The sum in bits.
    pub fn bits(&self) -> f64 {
        self.sum / std::f64::consts::LN_2
    }
}

/// A prediction: the logits of a position, and what it takes to make probabilities of them.
#[derive(Debug, Clone, Copy)]
pub struct Prediction<'a> {
    logits: &'a [f32],
    shift: f64, // logit - shift is a log-probability
}

impl<'a> Prediction<'a> {
    /// Reads the logits twice.
    pub fn new(logits: &'a [f32]) -> Self {
        let most = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - most).exp()).sum();
        Prediction { logits, shift: most + sum.ln() }
    }

    /// The log-probability of a token.
    ///
    /// # Panics
    /// There are fewer logits.
    pub fn log_probability(&self, token: usize) -> f64 {
        f64::from(self.logits[token]) - self.shift
    }

    /// The likeliest token; of several, the first.
    pub fn best(&self) -> usize {
        (0..self.logits.len()).fold(0, |best, i| if self.logits[i] > self.logits[best] { i } else { best })
    }

    /// The Kullback-Leibler divergence of `self` from `reference`: `Σ p_ref · (ln p_ref - ln p)`, in nats.
    pub fn divergence(&self, reference: &Prediction) -> f64 {
        let terms = reference.logits.iter().zip(self.logits).map(|(&of_reference, &own)| {
            let log = f64::from(of_reference) - reference.shift;
            log.exp() * (log - (f64::from(own) - self.shift))
        });
        terms.sum::<f64>().max(0.0) // rounding may leave a little less than nothing
    }
}

/// How far predictions are from those of a reference, token by token.
#[derive(Debug, Clone, Default)]
pub struct Distance {
    divergences: Vec<f64>, // Kullback-Leibler, nats
    shifts: Vec<f64>,      // the right token's probability, less the reference's
    agreed: usize,
}

impl Distance {
    /// Adds a position of which `token` is the right one.
    pub fn add(&mut self, own: &Prediction, reference: &Prediction, token: usize) {
        self.divergences.push(own.divergence(reference));
        self.shifts.push(own.log_probability(token).exp() - reference.log_probability(token).exp());
        self.agreed += usize::from(own.best() == reference.best());
    }

    /// The mean Kullback-Leibler divergence and its standard error, in nats.
    pub fn divergence(&self) -> (f64, f64) {
        mean(&self.divergences)
    }

    /// The share of positions where both think the same token likeliest.
    pub fn agreement(&self) -> f64 {
        self.agreed as f64 / self.divergences.len() as f64
    }

    /// The mean change of the right token's probability, and the root of its mean square.
    pub fn shift(&self) -> (f64, f64) {
        let squares: f64 = self.shifts.iter().map(|shift| shift * shift).sum();
        (mean(&self.shifts).0, (squares / self.shifts.len() as f64).sqrt())
    }

    /// The divergences below which these shares of the positions are.
    pub fn divergence_quantiles<const N: usize>(&self, shares: [f64; N]) -> [f64; N] {
        quantiles(&self.divergences, shares)
    }

    /// The changes of the right token's probability below which these shares of the positions are.
    pub fn shift_quantiles<const N: usize>(&self, shares: [f64; N]) -> [f64; N] {
        quantiles(&self.shifts, shares)
    }
}

/// The mean of values, and its standard error.
fn mean(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / n / (n - 1.0).max(1.0)).sqrt())
}

/// The values at these shares of the sorted list, between two neighbours in proportion.
fn quantiles<const N: usize>(values: &[f64], shares: [f64; N]) -> [f64; N] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    shares.map(|share| {
        let at = share * (sorted.len().max(1) - 1) as f64;
        let (low, part) = (at.floor() as usize, at.fract());
        let value = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
        if part == 0.0 { value(low) } else { value(low) * (1.0 - part) + value(low + 1) * part }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_but_the_first_is_scored_once() {
        for (n, context, stride) in [(1, 4, 2), (2, 4, 2), (4, 4, 2), (5, 4, 1), (17, 8, 4), (17, 8, 3), (16, 8, 4)] {
            let mut scored = vec![0; n];
            let mut last = 0;
            for Window { tokens, scored: these } in windows(n, context, stride) {
                assert!(tokens.len() <= context && these.end == tokens.end, "{tokens:?}");
                assert!(these.is_empty() || these.start > tokens.start, "something predicts {these:?}");
                these.for_each(|i| scored[i] += 1);
                last = tokens.end;
            }
            assert_eq!(last, n);
            assert!(scored[0] == 0 && scored[1..].iter().all(|&times| times == 1), "{scored:?}");
        }
    }

    #[test]
    fn windows_side_by_side_leave_their_first_tokens() {
        let all: Vec<_> = windows(10, 4, 4).map(|window| (window.tokens, window.scored)).collect();
        assert_eq!(all, [(0..4, 1..4), (4..8, 5..8), (8..10, 9..10)]);
        let all: Vec<_> = windows(7, 4, 2).map(|window| (window.tokens, window.scored)).collect();
        assert_eq!(all, [(0..4, 1..4), (2..6, 4..6), (4..7, 6..7)]);
    }

    #[test]
    fn scores_and_distances_by_hand() {
        let logits = [0.0, 0.0, f32::ln(2.0)];
        let prediction = Prediction::new(&logits);
        assert!((prediction.log_probability(2).exp() - 0.5).abs() < 1e-7);
        assert_eq!(prediction.best(), 2);
        let mut score = Score::default();
        score.add(0.5f64.ln());
        score.add(0.125f64.ln());
        assert!((score.perplexity() - 4.0).abs() < 1e-12);
        assert!((score.bits() - 4.0).abs() < 1e-12);

        let even = Prediction::new(&[1.0; 3]);
        let by_hand = (1.0f64 / 3.0 / 0.25).ln() * 2.0 / 3.0 + (1.0f64 / 1.5).ln() / 3.0;
        assert!((prediction.divergence(&even) - by_hand).abs() < 1e-7, "{}", prediction.divergence(&even));
        let mut distance = Distance::default();
        distance.add(&prediction, &even, 2);
        distance.add(&even, &even, 1);
        assert!((distance.divergence().0 - by_hand / 2.0).abs() < 1e-7);
        assert_eq!(distance.agreement(), 0.5);
        assert!((distance.shift().0 - (0.5 - 1.0 / 3.0) / 2.0).abs() < 1e-7);
        assert!((distance.divergence_quantiles([1.0])[0] - by_hand).abs() < 1e-7);
    }

    #[test]
    fn quantiles_lie_between_neighbours() {
        assert_eq!(quantiles(&[3.0, 1.0, 2.0], [0.0, 0.25, 0.5, 1.0]), [1.0, 1.5, 2.0, 3.0]);
    }
}
