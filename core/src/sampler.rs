//! Logits in, a token out: greedy, or drawn, after every control of Hugging Face's `GenerationConfig`.
//!
//! Logits arrive in pieces, as the head streams its rows, and only what the controls need is kept: the best one for
//! greedy, `top_k` of them for top-k, all of them only where neither bounds the choice. Several choices, each after one more
//! token of a guess, can be kept from one reading of the head, and are then made in order. The controls have the names,
//! the meaning and the order of transformers: while logits stream by, the processors (repetition penalty, n-grams, bad
//! words, minimal lengths); over what is kept, the warpers (temperature, top-k, top-p, min-p, typical, epsilon, eta).

mod candidates;
mod shortlist;
#[cfg(feature = "torch")]
mod torch;
mod warpers;

use core::fmt;

use rand_pcg::Pcg32;
use rand_pcg::rand_core::{Rng, SeedableRng};

pub use candidates::{Candidates, Sink};
pub use shortlist::Shortlist;
pub(crate) use shortlist::{id, logit};

use crate::arena::{Arena, TooSmall};
use crate::tokenizer::Token;
use warpers::Weights;

/// What draws random numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Generator {
    /// PCG32: 16 bytes of state, a number for each token, any place of its stream at once.
    #[default]
    Pcg,
    /// As PyTorch on a CPU: MT19937 and `torch.multinomial`. From the same seed, a model in F32 or F16 gives the text that
    /// transformers gives, for one sequence and for several.
    ///
    /// 2.5 kB of state, two numbers for each token of the vocabulary. A place in its stream is reached by drawing all
    /// numbers before it.
    #[cfg(feature = "torch")]
    Torch,
}

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Params<'a> {
    /// Divides the logits; 0 is greedy, transformers' `do_sample=False`: the token with the largest logit, the lowest id
    /// among equals.
    pub temperature: f32,
    /// Keeps the `top_k` largest logits; 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this probable relative to the most probable; 0 keeps all.
    pub min_p: f32,
    /// Keeps the tokens whose information is nearest to the entropy, until their probabilities reach this sum; 1 keeps all.
    pub typical_p: f32,
    /// Keeps tokens at least this probable, and the most probable one; 0 and 1 keep all.
    pub epsilon_cutoff: f32,
    /// Keeps tokens at least as probable as the lesser of this and `sqrt(this) * e^-entropy`, and the most probable one; 0
    /// and 1 keep all.
    pub eta_cutoff: f32,
    /// Makes tokens of the window less likely: positive logits are divided by it, negative ones multiplied; 1 is off.
    pub repetition_penalty: f32,
    /// How many of the last tokens the penalty looks at; `usize::MAX` is the whole text, as in transformers.
    pub repetition_window: usize,
    /// Bars tokens that would end a sequence of so many tokens which the text has already; 0 is off.
    pub no_repeat_ngram_size: usize,
    /// Bars the last token of each of these where the others end the text; a token that ends a text is not barred.
    pub bad_words_ids: &'a [&'a [Token]],
    /// What ends a text, instead of what the file says; where it is empty, that does.
    pub eos_token_id: &'a [Token],
    /// Bars the end of a text of fewer tokens, those of the prompt and of a window that slides among them.
    pub min_length: usize,
    /// Bars the end before so many tokens were made after the prompt.
    pub min_new_tokens: usize,
    /// What draws.
    pub generator: Generator,
}

impl Default for Params<'_> {
    /// Temperature 0.8 over the best 50 tokens.
    fn default() -> Self {
        Params {
            temperature: 0.8,
            top_k: 50,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            epsilon_cutoff: 0.0,
            eta_cutoff: 0.0,
            repetition_penalty: 1.0,
            repetition_window: usize::MAX,
            no_repeat_ngram_size: 0,
            bad_words_ids: &[],
            eos_token_id: &[],
            min_length: 0,
            min_new_tokens: 0,
            generator: Generator::Pcg,
        }
    }
}

impl Params<'_> {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Params { temperature: 0.0, ..Params::default() }
    }

    /// Checks every control against its range.
    ///
    /// # Errors
    /// A control outside its range → [`Error::Control`].
    pub fn check(&self) -> Result<(), Error> {
        let controls = [
            ("temperature", self.temperature, 0.0, 1e6),
            ("top_p", self.top_p, f32::MIN_POSITIVE, 1.0),
            ("min_p", self.min_p, 0.0, 1.0),
            ("typical_p", self.typical_p, f32::MIN_POSITIVE, 1.0),
            ("epsilon_cutoff", self.epsilon_cutoff, 0.0, 1.0),
            ("eta_cutoff", self.eta_cutoff, 0.0, 1.0),
            ("repetition_penalty", self.repetition_penalty, f32::MIN_POSITIVE, 1e6),
        ];
        match controls.into_iter().find(|(_, value, least, most)| !(least..=most).contains(&value)) {
            Some((name, value, least, most)) => Err(Error::Control { name, value, least, most }),
            None => Ok(()),
        }
    }

    /// The tokens that the controls name.
    pub fn tokens(&self) -> impl Iterator<Item = Token> {
        self.bad_words_ids.iter().copied().flatten().chain(self.eos_token_id).copied()
    }

    /// How many logits are kept of a vocabulary of `n_vocab`.
    fn kept(&self, n_vocab: usize) -> usize {
        match (self.temperature, self.top_k) {
            (0.0, _) => 1,
            (_, 0) => n_vocab,
            (_, k) => k.min(n_vocab),
        }
    }

    /// How many of a context's last tokens are remembered for the penalty.
    pub(crate) fn window(&self, context: usize) -> usize {
        if self.repetition_penalty == 1.0 { 0 } else { self.repetition_window.min(context) }
    }

    /// Most tokens that can be barred at once.
    fn most_barred(&self, context: usize) -> usize {
        let repeated = if self.no_repeat_ngram_size == 0 { 0 } else { context };
        let ends = if self.min_length.max(self.min_new_tokens) == 0 { 0 } else { self.eos_token_id.len().max(2) };
        repeated.saturating_add(self.bad_words_ids.len()).saturating_add(ends)
    }

    /// A finite logit stays finite, whatever the penalty.
    pub(crate) fn penalised(&self, logit: f32) -> f32 {
        let penalty = self.repetition_penalty;
        let penalised = if logit > 0.0 { logit / penalty } else { logit * penalty };
        if logit.is_finite() { penalised.clamp(f32::MIN, f32::MAX) } else { logit }
    }

    /// Arena bytes of a sampler with these controls, for so many choices at once.
    pub fn bytes(&self, n_vocab: usize, context: usize, choices: usize) -> usize {
        let candidates = Candidates::bytes(self, self.kept(n_vocab), context, choices);
        #[cfg(feature = "torch")]
        let candidates = candidates.saturating_add(torch::Mt19937::bytes(self.generator == Generator::Torch));
        candidates
    }
}

/// No token can be chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// A logit is NaN or infinite: the weights are damaged.
    NotFinite {
        /// Whose logit it is.
        token: Token,
    },
    /// A control is outside its range.
    Control {
        /// Its name.
        name: &'static str,
        /// What it is.
        value: f32,
        /// The least it may be.
        least: f32,
        /// The most it may be.
        most: f32,
    },
    /// No token may be chosen: all that were kept are barred, by n-grams, bad words or a minimal length.
    NothingLeft,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotFinite { token } => {
                write!(f, "the logit of token {token} is not finite: the file's weights are damaged")
            }
            Error::NothingLeft => {
                f.write_str("every token is barred: use fewer bad words, a larger no_repeat_ngram_size or top_k")
            }
            Error::Control { name, value, least, most } => {
                if *least == f32::MIN_POSITIVE {
                    write!(f, "{name} is {value}, it must be above 0 and at most {most}")
                } else {
                    write!(f, "{name} is {value}, it must be {least} to {most}")
                }
            }
        }
    }
}

impl core::error::Error for Error {}

/// Draws tokens; the same seed and the same logits give the same tokens on every target.
#[derive(Debug)]
pub struct Sampler<'a> {
    candidates: Candidates<'a>,
    seed: u64,
    rng: Pcg32,
    #[cfg(feature = "torch")]
    torch: torch::Mt19937<'a>,
    /// Choices drawn since the seed.
    draws: u64,
    n_vocab: usize,
}

impl<'a> Sampler<'a> {
    /// Cuts what `params` need for `choices` at once from `arena`: the bytes that [`Params::bytes`] tells.
    ///
    /// # Errors
    /// Too little memory → [`TooSmall`].
    pub fn new(
        params: Params<'a>,
        seed: u64,
        n_vocab: usize,
        context: usize,
        choices: usize,
        arena: &mut Arena<'a>,
    ) -> Result<Self, TooSmall> {
        let mut sampler = Sampler {
            candidates: Candidates::new(params, params.kept(n_vocab), context, choices, arena)?,
            seed,
            rng: Pcg32::seed_from_u64(seed),
            #[cfg(feature = "torch")]
            torch: torch::Mt19937::new(params.generator == Generator::Torch, arena)?,
            draws: 0,
            n_vocab,
        };
        sampler.start(seed);
        Ok(sampler)
    }

    /// Whether there is room for what these controls need.
    pub fn has_room(&self, params: &Params, n_vocab: usize, context: usize) -> bool {
        #[cfg(feature = "torch")]
        if params.generator == Generator::Torch && self.torch.bytes_cut() == 0 {
            return false;
        }
        self.candidates.has_room(params, params.kept(n_vocab), context)
    }

    /// Changes the controls and starts the generator anew.
    ///
    /// # Errors
    /// They need more memory than was cut, or other parts of it → [`TooSmall`], and the old ones stay.
    pub fn set(&mut self, params: Params<'a>, seed: u64, n_vocab: usize, context: usize) -> Result<(), TooSmall> {
        if !self.has_room(&params, n_vocab, context) {
            let needed = params.bytes(n_vocab, context, self.candidates.choices());
            return Err(TooSmall { needed, have: self.candidates.bytes_cut() });
        }
        self.candidates.set(params, params.kept(n_vocab), context);
        self.n_vocab = n_vocab;
        self.start(seed);
        Ok(())
    }

    /// The controls.
    pub fn params(&self) -> Params<'a> {
        *self.candidates.params()
    }

    /// Where the random numbers started.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// How many choices were drawn since the seed: none if greedy.
    pub fn draws(&self) -> u64 {
        self.draws
    }

    fn start(&mut self, seed: u64) {
        (self.seed, self.rng, self.draws) = (seed, Pcg32::seed_from_u64(seed), 0);
        #[cfg(feature = "torch")]
        self.torch.seed(seed);
    }

    /// Puts the generator where it is after so many choices from a seed, in a time that hardly depends on how many; see
    /// [`Generator`] for the one that takes time.
    pub fn seek(&mut self, seed: u64, draws: u64) {
        // What draws on from where it is need not start again.
        if self.params().generator == Generator::Pcg || seed != self.seed || draws < self.draws {
            self.start(seed);
        }
        self.skip_draws(draws - self.draws);
    }

    /// Whether the place after so many choices is reached in seconds, by the generator that `params` ask for.
    #[cfg(feature = "torch")]
    pub(crate) fn reaches(params: &Params, draws: u64, n_vocab: usize) -> bool {
        params.generator == Generator::Pcg || draws.saturating_mul(n_vocab as u64) <= torch::MOST_SKIPPED
    }

    /// Skips the random numbers of `n` choices.
    pub fn skip_draws(&mut self, n: u64) {
        match self.params().generator {
            Generator::Pcg => self.rng.advance(n),
            #[cfg(feature = "torch")]
            Generator::Torch => self.torch.skip(n.saturating_mul(self.n_vocab as u64)),
        }
        self.draws = self.draws.wrapping_add(n);
    }

    /// What is kept of the logits of each choice.
    pub fn candidates(&mut self) -> &mut Candidates<'a> {
        &mut self.candidates
    }

    /// Whether a token ends a text.
    pub fn is_end(&self, token: Token) -> bool {
        self.candidates.is_end(token)
    }

    /// Starts choices after the first `n` tokens of `history`, after the first `n + 1`, and so on to all of it; of the
    /// first `n`, the last `made` were not given but made.
    ///
    /// The processors of each look at its own part of the text.
    ///
    /// Nothing is noted for more choices than were planned.
    pub fn begin(&mut self, history: &[u32], n: usize, made: usize) {
        for (choice, end) in (n..=history.len()).enumerate() {
            self.begin_choice(choice, made + choice, end, |i| history.get(i).copied().unwrap_or(u32::MAX));
        }
    }

    /// Starts one choice: [`Candidates::begin_choice`].
    ///
    /// # Panics
    /// `choice` is not among those that were planned.
    pub fn begin_choice(&mut self, choice: usize, made: usize, len: usize, token: impl Fn(usize) -> u32) {
        self.candidates.begin_choice(choice, made, len, token);
    }

    /// Takes a choice's logits of the tokens from id `first` on: from 0 to the last, in pieces that join.
    pub fn push(&mut self, choice: usize, first: u32, logits: &[f32]) {
        self.push_after(first as usize, choice, first, logits);
    }

    /// Chooses a token from the logits that a choice was given since [`begin`](Sampler::begin).
    ///
    /// Choices are made in order, and each draws once: those after it may as well be left.
    ///
    /// # Errors
    /// One of them is NaN or infinite, or there were none → [`Error::NotFinite`]; none may be chosen →
    /// [`Error::NothingLeft`].
    pub fn pick(&mut self, choice: usize) -> Result<Token, Error> {
        let params = self.params();
        let kept = self.candidates.sorted(choice)?;
        if params.temperature == 0.0 {
            return Ok(Token(id(kept[0])));
        }
        let weights = Weights::new(kept, params.temperature);
        let left = weights.left(&params);
        let (scale, total) = (weights.scale, weights.total(left.clone()));
        let kept = kept.get_mut(left).unwrap_or_default();
        self.draws = self.draws.wrapping_add(1);
        #[cfg(feature = "torch")]
        if params.generator == Generator::Torch {
            return Ok(self.torch.multinomial(kept, |candidate| scale.weight(candidate) / total, self.n_vocab));
        }
        // 24 random bits are all the fraction bits an f32 in 0..1 has.
        let mut rest = (self.rng.next_u32() >> 8) as f32 / 16_777_216.0 * total;
        let reached = |&&candidate: &&u64| {
            rest -= scale.weight(candidate);
            rest < 0.0
        };
        let drawn = kept.iter().find(reached).or(kept.last()).ok_or(Error::NothingLeft)?;
        Ok(Token(id(*drawn)))
    }

    /// The probabilities from which [`pick`](Sampler::pick) draws, as `show(token, probability)`, the likeliest first; of
    /// greedy ones, the one token.
    ///
    /// # Errors
    /// As [`pick`](Sampler::pick).
    pub fn probabilities(&mut self, choice: usize, mut show: impl FnMut(Token, f32)) -> Result<(), Error> {
        let params = self.params();
        let kept = self.candidates.sorted(choice)?;
        if params.temperature == 0.0 {
            show(Token(id(kept[0])), 1.0);
            return Ok(());
        }
        let weights = Weights::new(kept, params.temperature);
        let left = weights.left(&params);
        let total = weights.total(left.clone());
        kept[left].iter().for_each(|&c| show(Token(id(c)), weights.scale.weight(c) / total));
        Ok(())
    }
}

impl Sink for Sampler<'_> {
    fn push_after(&mut self, n: usize, choice: usize, first: u32, logits: &[f32]) {
        self.candidates.push_after(n, choice, first, logits);
    }

    fn refuse(&mut self, choice: usize, token: Token) {
        self.candidates.refuse(choice, token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    const N: usize = 1000;

    fn logits(seed: u64) -> Vec<f32> {
        let mut rng = Pcg32::seed_from_u64(seed);
        (0..N).map(|_| (rng.next_u32() % 2000) as f32 / 100.0 - 10.0).collect()
    }

    /// Draws `n` tokens from the same logits, pushed in pieces of 7.
    fn draw(params: Params, seed: u64, logits: &[f32], history: &[u32], n: usize) -> Vec<u32> {
        let mut memory = vec![0; params.bytes(N, history.len(), 1) + 16];
        let mut arena = Arena::new(&mut memory);
        let mut sampler = Sampler::new(params, seed, N, history.len(), 1, &mut arena).unwrap();
        assert_eq!(arena.used(), params.bytes(N, history.len(), 1));
        let draw = |_| {
            sampler.begin(history, history.len(), 0);
            for (i, piece) in logits.chunks(7).enumerate() {
                sampler.push(0, i as u32 * 7, piece);
            }
            sampler.pick(0).unwrap().0
        };
        (0..n).map(draw).collect()
    }

    /// The probabilities that Hugging Face's warpers leave, in f64, straight from their definitions.
    fn oracle(params: &Params, logits: &[f32], history: &[u32]) -> Vec<f64> {
        let mut x: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
        for (id, x) in x.iter_mut().enumerate() {
            let start = history.len().saturating_sub(params.repetition_window);
            if history[start..].contains(&(id as u32)) {
                let penalty = f64::from(params.repetition_penalty);
                *x = if *x > 0.0 { *x / penalty } else { *x * penalty };
            }
        }
        let mut order: Vec<usize> = (0..x.len()).collect();
        order.sort_by(|&a, &b| x[b].total_cmp(&x[a]).then(a.cmp(&b)));
        if params.top_k > 0 {
            order.truncate(params.top_k);
        }
        let probabilities = |order: &[usize]| -> Vec<f64> {
            let e: Vec<f64> =
                order.iter().map(|&i| ((x[i] - x[order[0]]) / f64::from(params.temperature)).exp()).collect();
            e.iter().map(|v| v / e.iter().sum::<f64>()).collect()
        };
        let mut sum = 0.0;
        let reached = |p: &&f64| {
            let before = sum;
            sum += **p;
            before < f64::from(params.top_p)
        };
        let n = probabilities(&order).iter().take_while(reached).count();
        order.truncate(n);
        let p = probabilities(&order);
        order.truncate(p.iter().take_while(|&&v| v >= f64::from(params.min_p) * p[0]).count());
        let mut out = vec![0.0; x.len()];
        for (&i, p) in order.iter().zip(probabilities(&order)) {
            out[i] = p;
        }
        out
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let mut logits = logits(1);
        (logits[700], logits[300]) = (50.0, 50.0);
        assert_eq!(draw(Params::greedy(), 1, &logits, &[], 1), [300]);
    }

    #[test]
    fn draws_follow_the_definitions() {
        let history: Vec<u32> = (0..200).map(|i| i * 3 % 90).collect();
        let base = Params { top_k: 0, ..Params::default() };
        for params in [
            base,
            Params { top_k: 20, ..base },
            Params { top_p: 0.7, ..base },
            Params { min_p: 0.2, ..base },
            Params { top_k: 40, top_p: 0.9, min_p: 0.05, temperature: 1.5, repetition_penalty: 1.3, ..base },
            Params { repetition_penalty: 2.0, repetition_window: 20, ..base },
        ] {
            let logits = logits(7);
            let expected = oracle(&params, &logits, &history);
            const DRAWS: usize = 20_000;
            let mut count = vec![0.0; N];
            for id in draw(params, 3, &logits, &history, DRAWS) {
                count[id as usize] += 1.0;
            }
            for (id, (count, p)) in count.iter().zip(&expected).enumerate() {
                assert!(*p > 0.0 || *count == 0.0, "{params:?}: token {id} is out of bounds and was drawn");
                let sigma = (DRAWS as f64 * p * (1.0 - p)).sqrt();
                let off = (count - DRAWS as f64 * p).abs();
                assert!(off <= 5.0 * sigma + 3.0, "{params:?}: token {id} drawn {count} times, p = {p}");
            }
        }
    }

    #[test]
    fn the_same_seed_draws_the_same() {
        let params = Params { top_k: 0, ..Params::default() };
        let logits = logits(5);
        assert_eq!(draw(params, 42, &logits, &[], 100), draw(params, 42, &logits, &[], 100));
        assert_ne!(draw(params, 42, &logits, &[], 100), draw(params, 43, &logits, &[], 100));
    }

    #[test]
    fn the_size_of_the_pieces_changes_nothing() {
        let params = Params { top_k: 5, repetition_penalty: 3.0, ..Params::default() };
        let history = [3, 700, 3, 41, 999];
        let mut memory = vec![0; params.bytes(N, history.len(), 1) + 16];
        let mut sampler = Sampler::new(params, 1, N, history.len(), 1, &mut Arena::new(&mut memory)).unwrap();
        for seed in 0..50 {
            let mut logits = logits(seed);
            // Of what was said: the best, which the penalty lowers, and one that it would make infinite.
            (logits[700], logits[41]) = (20.0, -3e38);
            let mut pick = |logits: &[f32], size| {
                sampler.seek(seed, 0);
                sampler.begin(&history, history.len(), 0);
                for (i, piece) in logits.chunks(size).enumerate() {
                    sampler.push(0, (i * size) as u32, piece);
                }
                sampler.pick(0)
            };
            let one_by_one = pick(&logits, 1).unwrap();
            for size in [2, 16, 17, 64, N] {
                assert_eq!(pick(&logits, size).unwrap(), one_by_one, "seed {seed}, pieces of {size}");
            }
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let at = 200 + seed as usize;
                logits[at] = bad;
                assert_eq!(pick(&logits, N), Err(Error::NotFinite { token: Token(at as u32) }), "{bad}");
            }
        }
    }

    #[test]
    fn a_logit_that_is_not_finite_is_an_error() {
        let mut memory = [0; 4096];
        let params = Params { top_k: 5, ..Params::default() };
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut sampler = Sampler::new(params, 1, N, 4, 2, &mut Arena::new(&mut memory)).unwrap();
            sampler.begin(&[7], 0, 0);
            sampler.push(1, 0, &[1.0, bad, 2.0]);
            sampler.push(0, 0, &[1.0, 3.0, 2.0]);
            // A choice that follows from a guess may never be made: only then is it an error.
            assert!(sampler.pick(0).is_ok());
            assert_eq!(sampler.pick(1), Err(Error::NotFinite { token: Token(1) }));
        }
    }

    #[test]
    fn choices_kept_together_are_those_made_one_by_one() {
        let history: Vec<u32> = (0..40).map(|i| i * 7 % 31).collect();
        for params in [
            Params { repetition_penalty: 1.5, repetition_window: 8, ..Params::default() },
            Params { top_k: 0, repetition_penalty: 1.2, ..Params::default() },
            Params::greedy(),
        ] {
            let sampler = |memory| Sampler::new(params, 9, N, 40, 4, &mut Arena::new(memory)).unwrap();
            let mut memories = [(); 2].map(|()| vec![0xff; params.bytes(N, 40, 4) + 16]);
            let [memory, other] = &mut memories;
            let (mut together, mut single) = (sampler(memory), sampler(other));
            for n in [0, 1, 5, 37] {
                together.begin(&history[..n + 3], n, 0);
                for first in (0..N).step_by(50) {
                    (0..4).for_each(|i| together.push(i, first as u32, &logits(i as u64)[first..first + 50]));
                }
                for i in 0..4 {
                    single.begin(&history[..n + i], n + i, 0);
                    single.push(0, 0, &logits(i as u64));
                    assert_eq!(together.pick(i), single.pick(0), "{params:?}: choice {i} after {n}");
                }
            }
        }
    }

    #[test]
    fn controls_outside_their_range_are_named() {
        for (params, name) in [
            (Params { temperature: -1.0, ..Params::default() }, "temperature"),
            (Params { temperature: f32::NAN, ..Params::default() }, "temperature"),
            (Params { top_p: 0.0, ..Params::default() }, "top_p"),
            (Params { min_p: 1.5, ..Params::default() }, "min_p"),
            (Params { repetition_penalty: 0.0, ..Params::default() }, "repetition_penalty"),
        ] {
            assert!(matches!(params.check(), Err(Error::Control { name: n, .. }) if n == name));
        }
        assert_eq!(Params::default().check(), Ok(()));
    }
}
