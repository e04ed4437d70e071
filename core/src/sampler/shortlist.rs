//! The largest logits of each choice, kept while they stream by.

use core::iter;
use core::ops::Range;

use crate::arena::{Arena, TooSmall, bytes_of};
use crate::sort::{sift_down, sort};
use crate::tokenizer::Token;

/// Logits that are looked at together, to see whether any has to be kept: few enough to be worth it, and whole vectors.
const CHUNK: usize = 16;

/// A logit as an integer that sorts as it does.
fn ordered(logit: f32) -> u32 {
    let bits = logit.to_bits();
    // Negative floats sort backwards as integers: flip them all; positive ones go above them.
    bits ^ ((bits as i32 >> 31) as u32 | 1 << 31)
}

/// [`ordered`], with everything that is not finite above all that is.
fn key(logit: f32) -> u32 {
    ordered(logit).wrapping_sub(!f32::MIN.to_bits())
}

/// A token and its logit in one number that sorts by logit, and among equals the lower id above the higher.
fn candidate(logit: f32, id: u32) -> u64 {
    u64::from(ordered(logit)) << 32 | u64::from(!id)
}

pub(crate) fn id(candidate: u64) -> u32 {
    !(candidate as u32)
}

pub(crate) fn logit(candidate: u64) -> f32 {
    let ordered = (candidate >> 32) as u32;
    f32::from_bits(if ordered >> 31 == 1 { ordered ^ 1 << 31 } else { !ordered })
}

/// The tokens with the largest logits, so many for each choice.
#[derive(Debug)]
pub struct Shortlist<'a> {
    /// Choices that can be made at once.
    choices: usize,
    /// How many candidates are kept for each choice.
    limit: usize,
    /// Candidates: see [`candidate`]; a heap with the worst on top while logits arrive (choices, limit).
    kept: &'a mut [u64],
    /// Logits each choice was given.
    n_pushed: usize,
    /// The first choice with a logit that is not finite, and whose logit it is.
    not_finite: Option<(usize, Token)>,
}

impl<'a> Shortlist<'a> {
    /// Arena bytes for so many tokens of each of so many choices.
    pub const fn bytes(limit: usize, choices: usize) -> usize {
        bytes_of::<u64>(limit.saturating_mul(choices))
    }

    /// Cuts what [`bytes`](Shortlist::bytes) tells from `arena`.
    ///
    /// # Errors
    /// Too little memory → [`TooSmall`].
    pub fn new(limit: usize, choices: usize, arena: &mut Arena<'a>) -> Result<Self, TooSmall> {
        let kept = arena.take(limit.saturating_mul(choices))?;
        Ok(Shortlist { choices, limit, kept, n_pushed: 0, not_finite: None })
    }

    pub(super) fn choices(&self) -> usize {
        self.choices
    }

    pub(super) fn bytes_cut(&self) -> usize {
        bytes_of::<u64>(self.kept.len())
    }

    pub(super) fn has_room(&self, limit: usize) -> bool {
        limit.saturating_mul(self.choices) <= self.kept.len()
    }

    /// Keeps so many from the next [`begin`](Shortlist::begin) on; there must be room.
    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
        self.begin();
    }

    /// Forgets all choices.
    pub fn begin(&mut self) {
        (self.n_pushed, self.not_finite) = (0, None);
    }

    /// Takes a choice's logits of the tokens from id `first` on, of which it has `n` of lower ids already, and keeps
    /// the largest; none of a choice beyond those that were planned.
    pub fn push(&mut self, n: usize, choice: usize, first: u32, logits: &[f32]) {
        self.n_pushed = n;
        let (chunks, rest) = logits.as_chunks::<CHUNK>();
        for (i, chunk) in chunks.iter().enumerate() {
            // Most chunks have nothing to keep once there is enough of better ones.
            let best = chunk.iter().fold(0, |best, &logit| best.max(key(logit)));
            let is_full = self.n_pushed >= self.limit;
            let worst = self.kept.get(choice * self.limit).map_or(0, |&worst| key(logit(worst).max(f32::MIN)));
            if is_full && best < worst {
                self.n_pushed += CHUNK;
            } else {
                self.push_each(choice, first + (i * CHUNK) as u32, chunk, |logit| logit);
            }
        }
        self.push_each(choice, first + (chunks.len() * CHUNK) as u32, rest, |logit| logit);
    }

    /// As [`push`](Shortlist::push) of one token, which sorts below all that are not barred.
    pub(super) fn bar(&mut self, n: usize, choice: usize, token: u32, logit: f32) {
        self.n_pushed = n;
        self.push_each(choice, token, &[logit], |_| f32::NEG_INFINITY);
    }

    /// Takes one logit after the other, as what `adjust` makes of it.
    fn push_each(&mut self, choice: usize, first: u32, logits: &[f32], adjust: impl Fn(f32) -> f32) {
        let limit = self.limit;
        let kept = self.kept.get_mut(choice * limit..(choice + 1) * limit).unwrap_or_default();
        let mut n_kept = limit.min(self.n_pushed);
        self.n_pushed += logits.len();
        for (id, &logit) in (first..).zip(logits) {
            if !logit.is_finite() && self.not_finite.is_none_or(|(earlier, _)| choice < earlier) {
                self.not_finite = Some((choice, Token(id)));
            }
            let candidate = candidate(adjust(logit), id);
            if let Some(room) = kept.get_mut(n_kept) {
                *room = candidate;
                n_kept += 1;
                if n_kept == limit {
                    // The worst on top, so that one comparison turns most later logits away.
                    (0..limit / 2).rev().for_each(|i| sift_down(kept, i, worst_on_top));
                }
            } else if let Some(worst) = kept.first_mut().filter(|worst| candidate > **worst) {
                *worst = candidate;
                sift_down(kept, 0, worst_on_top);
            }
        }
    }

    /// Notes that a choice cannot be made, unless that is so of an earlier one.
    pub(super) fn refuse(&mut self, choice: usize, token: Token) {
        if self.not_finite.is_none_or(|(earlier, _)| choice < earlier) {
            self.not_finite = Some((choice, token));
        }
    }

    /// The first choice that was given a logit that is not finite, and whose logit it is.
    pub fn not_finite(&self) -> Option<(usize, Token)> {
        self.not_finite
    }

    /// Where the tokens of a choice are kept, of which there are fewer until as many were pushed.
    fn places(&self, choice: usize) -> Range<usize> {
        choice * self.limit..choice * self.limit + self.limit.min(self.n_pushed)
    }

    /// What is kept for a choice, in any order.
    pub(super) fn kept(&mut self, choice: usize) -> &mut [u64] {
        let places = self.places(choice);
        self.kept.get_mut(places).unwrap_or_default()
    }

    /// What is kept for a choice, in the order in which it was left.
    pub(super) fn peek(&self, choice: usize) -> &[u64] {
        self.kept.get(self.places(choice)).unwrap_or_default()
    }

    /// Sorts the tokens of each of the first `choices` by id: before [`ids`](Shortlist::ids) and
    /// [`rank`](Shortlist::rank).
    pub fn sort(&mut self, choices: usize) {
        (0..choices).for_each(|choice| sort(self.kept(choice), |a, b| id(a) < id(b)));
    }

    /// What is kept for a choice, and how many of them have an id below `token`.
    fn below(&self, choice: usize, token: u32) -> (&[u64], usize) {
        let kept = self.peek(choice);
        (kept, kept.partition_point(|&candidate| id(candidate) < token))
    }

    /// The ids of all tokens that any of the first `choices` has kept, ascending, each once.
    pub fn ids(&self, choices: usize) -> impl Iterator<Item = u32> + Clone {
        let mut least = 0;
        iter::from_fn(move || {
            let next = |choice| {
                let (kept, below) = self.below(choice, least);
                kept.get(below).map(|&candidate| id(candidate))
            };
            let found = (0..choices).filter_map(next).min()?;
            least = found + 1;
            Some(found)
        })
    }

    /// How many tokens of lower ids a choice has kept, if it has kept this one.
    pub fn rank(&self, choice: usize, token: u32) -> Option<usize> {
        let (kept, below) = self.below(choice, token);
        kept.get(below).filter(|&&candidate| id(candidate) == token).map(|_| below)
    }
}

/// The order of a heap with the worst candidate on top.
fn worst_on_top(a: u64, b: u64) -> bool {
    a > b
}
