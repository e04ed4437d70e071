//! The candidates of each choice: logits pass Hugging Face's processors while they stream by, and the largest stay.

use super::shortlist::{Shortlist, logit};
use super::{Error, Params};
use crate::arena::{Arena, TooSmall, bytes_of};
use crate::sort::sort;
use crate::tokenizer::Token;

/// Takes logits as the head streams them.
pub trait Sink {
    /// Takes a choice's logits of the tokens from id `first` on, of which it has `n` of lower ids already: those that
    /// are left out cannot be chosen.
    fn push_after(&mut self, n: usize, choice: usize, first: u32, logits: &[f32]);

    /// Makes a choice one of [`Error::NotFinite`], for a logit that was seen elsewhere.
    fn refuse(&mut self, choice: usize, token: Token);
}

/// What is kept for each choice: the tokens with the largest logits, after the processors.
#[derive(Debug)]
pub struct Candidates<'a> {
    params: Params<'a>,
    /// Whether the penalty is left to whoever takes the candidates.
    defers_penalty: bool,
    /// What ends a text by the file, where [`Params::eos_token_id`] says nothing.
    file_ends: [Option<Token>; 2],
    best: Shortlist<'a>,
    /// Tokens that the penalty looks at.
    recent: Marks<'a>,
    /// Tokens that cannot be chosen.
    barred: Marks<'a>,
}

impl<'a> Candidates<'a> {
    /// Arena bytes for so many candidates of each of so many choices.
    pub fn bytes(params: &Params, limit: usize, context: usize, choices: usize) -> usize {
        Shortlist::bytes(limit, choices)
            .saturating_add(Marks::bytes(params.window(context), choices))
            .saturating_add(Marks::bytes(params.most_barred(context), choices))
    }

    /// Cuts what [`bytes`](Candidates::bytes) tells from `arena`.
    ///
    /// # Errors
    /// Too little memory → [`TooSmall`].
    pub fn new(
        params: Params<'a>,
        limit: usize,
        context: usize,
        choices: usize,
        arena: &mut Arena<'a>,
    ) -> Result<Self, TooSmall> {
        Ok(Candidates {
            params,
            defers_penalty: false,
            file_ends: [None; 2],
            best: Shortlist::new(limit, choices, arena)?,
            recent: Marks::new(params.window(context), choices, arena)?,
            barred: Marks::new(params.most_barred(context), choices, arena)?,
        })
    }

    /// Whether there is room for what these controls need.
    pub(super) fn has_room(&self, params: &Params, limit: usize, context: usize) -> bool {
        let (window, most_barred) = (params.window(context), params.most_barred(context));
        self.best.has_room(limit) && self.recent.has_room(window) && self.barred.has_room(most_barred)
    }

    /// Changes the controls, and forgets all choices; there must be room.
    pub(super) fn set(&mut self, params: Params<'a>, limit: usize, context: usize) {
        self.best.set_limit(limit);
        (self.recent.each, self.barred.each) = (params.window(context), params.most_barred(context));
        self.params = params;
    }

    pub(super) fn bytes_cut(&self) -> usize {
        self.best.bytes_cut() + self.recent.bytes_cut() + self.barred.bytes_cut()
    }

    pub(super) fn choices(&self) -> usize {
        self.best.choices()
    }

    /// The controls.
    pub fn params(&self) -> &Params<'a> {
        &self.params
    }

    /// Keeps logits as they come, and leaves the penalty to the caller: [`is_recent`](Candidates::is_recent).
    pub fn defer_penalty(&mut self) {
        self.defers_penalty = true;
    }

    /// Says what ends a text where [`Params::eos_token_id`] does not.
    pub fn set_file_ends(&mut self, ends: [Option<Token>; 2]) {
        self.file_ends = ends;
    }

    /// What ends a text by the file.
    pub fn file_ends(&self) -> [Option<Token>; 2] {
        self.file_ends
    }

    /// The tokens that end a text.
    pub fn ends(&self) -> impl Iterator<Item = Token> {
        let from_file = self.params.eos_token_id.is_empty().then_some(self.file_ends.into_iter().flatten());
        self.params.eos_token_id.iter().copied().chain(from_file.into_iter().flatten())
    }

    /// Whether a token ends a text.
    pub fn is_end(&self, token: Token) -> bool {
        self.ends().any(|end| end == token)
    }

    /// Starts one choice, choice 0 first: after a text of `len` tokens, `token(0)` to `token(len - 1)`, of which the last
    /// `made` were not given but made.
    ///
    /// # Panics
    /// `choice` is not among those that were planned.
    pub fn begin_choice(&mut self, choice: usize, made: usize, len: usize, token: impl Fn(usize) -> u32) {
        if choice == 0 {
            self.best.begin();
        }
        let Candidates { params, file_ends, recent, barred, .. } = self;
        recent.set(choice, (0..len).rev().map(&token));
        if barred.each == 0 {
            return;
        }
        let ends = |id| match params.eos_token_id {
            [] => file_ends.contains(&Some(Token(id))),
            ends => ends.contains(&Token(id)),
        };
        // Whether the text has these tokens, from position `at` on.
        let stands = |at: usize, wanted: &dyn Fn(usize) -> u32, n: usize| (0..n).all(|i| token(at + i) == wanted(i));

        // What would end an n-gram that the text has already.
        let n = params.no_repeat_ngram_size;
        let n_grams = if n == 0 { 0 } else { (len + 1).saturating_sub(n) };
        let last = |i| token(len + 1 - n + i);
        let repeated = (0..n_grams).filter(|&at| stands(at, &last, n - 1)).map(|at| token(at + n - 1));
        // The last token of a word whose others end the text; no word bars the end of a text.
        let words = params.bad_words_ids.iter().filter_map(|word| {
            let (last, before) = word.split_last()?;
            let at = len.checked_sub(before.len())?;
            let barred = stands(at, &|i| before[i].0, before.len()) && !(before.is_empty() && ends(last.0));
            barred.then_some(last.0)
        });
        let too_short = len < params.min_length || made < params.min_new_tokens;
        let from_file = file_ends.iter().flatten().filter(|_| params.eos_token_id.is_empty());
        let ends = params.eos_token_id.iter().chain(from_file).filter(|_| too_short).map(|end| end.0);
        barred.set(choice, repeated.chain(words).chain(ends));
    }

    /// Whether the penalty looks at a token.
    pub fn is_recent(&self, choice: usize, token: u32) -> bool {
        self.recent.of(choice).binary_search(&token).is_ok()
    }

    /// The first choice that was given a logit that is not finite, and whose logit it is.
    pub fn not_finite(&self) -> Option<(usize, Token)> {
        self.best.not_finite()
    }

    /// What is left for a choice, the largest logit first and the lower id among equals: at most as many as there is room
    /// for, and none that is barred.
    ///
    /// # Errors
    /// A logit was NaN or infinite, or there were none → [`Error::NotFinite`]; all are barred → [`Error::NothingLeft`].
    pub(crate) fn sorted(&mut self, choice: usize) -> Result<&mut [u64], Error> {
        if let Some((_, token)) = self.best.not_finite().filter(|&(bad, _)| bad == choice) {
            return Err(Error::NotFinite { token });
        }
        let kept = self.best.kept(choice);
        if kept.is_empty() {
            return Err(Error::NotFinite { token: Token(0) });
        }
        sort(kept, |a, b| a > b);
        let n = kept.partition_point(|&candidate| logit(candidate) > f32::NEG_INFINITY);
        kept.get_mut(..n).filter(|kept| !kept.is_empty()).ok_or(Error::NothingLeft)
    }

    /// What is kept for a choice, barred ones too, in the order that [`sorted`](Candidates::sorted) left.
    pub(crate) fn kept(&self, choice: usize) -> &[u64] {
        self.best.peek(choice)
    }
}

impl Sink for Candidates<'_> {
    fn push_after(&mut self, n: usize, choice: usize, first: u32, logits: &[f32]) {
        let Candidates { params, defers_penalty, best, recent, barred, .. } = self;
        let (mut recent, mut barred) = (Walk::from(recent.of(choice), first), Walk::from(barred.of(choice), first));
        // Between marked tokens logits go as they are, many at a time.
        let mut done = 0;
        while let Some(token) = recent.next().into_iter().chain(barred.next()).min() {
            let at = (token - first) as usize;
            let Some(&logit) = logits.get(at) else { break };
            best.push(n + done, choice, first + done as u32, logits.get(done..at).unwrap_or_default());
            let is_recent = recent.meets(token) && !*defers_penalty;
            match barred.meets(token) {
                true => best.bar(n + at, choice, token, logit),
                false if is_recent => best.push(n + at, choice, token, &[params.penalised(logit)]),
                false => best.push(n + at, choice, token, &[logit]),
            }
            done = at + 1;
        }
        best.push(n + done, choice, first + done as u32, logits.get(done..).unwrap_or_default());
    }

    fn refuse(&mut self, choice: usize, token: Token) {
        self.best.refuse(choice, token);
    }
}

/// No token has this id.
const NO_TOKEN: u32 = u32::MAX;

/// Some tokens for each choice, ascending, [`NO_TOKEN`] where there are fewer.
#[derive(Debug)]
struct Marks<'a> {
    choices: usize,
    each: usize,
    ids: &'a mut [u32], // (choices, each)
}

impl<'a> Marks<'a> {
    fn bytes(each: usize, choices: usize) -> usize {
        bytes_of::<u32>(each.saturating_mul(choices))
    }

    fn new(each: usize, choices: usize, arena: &mut Arena<'a>) -> Result<Self, TooSmall> {
        Ok(Marks { choices, each, ids: arena.take(each.saturating_mul(choices))? })
    }

    fn bytes_cut(&self) -> usize {
        bytes_of::<u32>(self.ids.len())
    }

    fn has_room(&self, each: usize) -> bool {
        each.saturating_mul(self.choices) <= self.ids.len()
    }

    /// Those of a choice.
    fn of(&self, choice: usize) -> &[u32] {
        self.ids.get(choice * self.each..(choice + 1) * self.each).unwrap_or_default()
    }

    /// Makes these tokens, as many as there is room for, those of a choice.
    fn set(&mut self, choice: usize, tokens: impl Iterator<Item = u32>) {
        let ids = self.ids.get_mut(choice * self.each..(choice + 1) * self.each).unwrap_or_default();
        ids.fill(NO_TOKEN);
        ids.iter_mut().zip(tokens).for_each(|(id, token)| *id = token);
        sort(ids, |a, b| a < b);
    }
}

/// A walk through ascending ids.
struct Walk<'a>(&'a [u32]);

impl<'a> Walk<'a> {
    /// From the first one that is not below `id` on.
    fn from(ids: &'a [u32], id: u32) -> Self {
        Walk(ids.get(ids.partition_point(|&other| other < id)..).unwrap_or_default())
    }

    /// The id that comes next.
    fn next(&self) -> Option<u32> {
        self.0.first().copied()
    }

    /// Whether the walk meets `id`; no id may be asked for after a higher one.
    fn meets(&mut self, id: u32) -> bool {
        let met = self.0.first() == Some(&id);
        while let Some((_, rest)) = self.0.split_first().filter(|(first, _)| **first == id) {
            self.0 = rest;
        }
        met
    }
}
