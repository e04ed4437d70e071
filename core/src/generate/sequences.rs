//! Several texts from one prompt, a token of each from every pass of the weights.
//!
//! As `num_return_sequences` in Hugging Face's `generate`. Keys and values of the prompt are there once; each sequence
//! has those of its own tokens beside them. All that go on have made as many tokens, so that one position and one number
//! of draws stand for all.

use core::ops::Range;

use super::{Error, LogitsHash, Session, StopReason};
use crate::arena::{Arena, TooSmall, bytes_of};
use crate::gpt2;
use crate::sampler::Generator;
use crate::source::Source;
use crate::tokenizer::{Token, Tokenizer};

/// What a session keeps of its sequences; nothing where there is one.
#[derive(Debug)]
pub(super) struct Branches<'a> {
    pub(super) tokens: &'a mut [u32], // of those beside the first one, what each has made (sequences - 1, own)
    active: &'a mut [u32],            // those that go on, the first ones of (sequences)
    hashes: &'a mut [u64],            // over the logits of all choices of each (sequences)
    pub(super) stops: &'a mut [u8],   // index in StopReason::ALL of why each ended, NONE if it goes on (sequences)
}

const NONE: u8 = u8::MAX;

impl<'a> Branches<'a> {
    /// Sequences to know something of.
    pub(super) fn count(options: &gpt2::Options) -> usize {
        if options.sequences > 1 { options.sequences } else { 0 }
    }

    /// Arena bytes, less those of the tokens.
    pub(super) fn bytes(options: &gpt2::Options) -> usize {
        let n = Branches::count(options);
        bytes_of::<u32>(n).saturating_add(bytes_of::<u64>(n)).saturating_add(bytes_of::<u8>(n))
    }

    pub(super) fn new(options: &gpt2::Options, arena: &mut Arena<'a>) -> Result<Self, TooSmall> {
        let n = Branches::count(options);
        Ok(Branches {
            tokens: arena.take(options.own_rows())?,
            active: arena.take(n)?,
            hashes: arena.take(n)?,
            stops: arena.take(n)?,
        })
    }
}

/// Sequences that go on from the same text: see [`Session::sequences`].
#[derive(Debug)]
pub struct Sequences<'s, 'a> {
    session: &'s mut Session<'a>,
    /// Tokens of each that goes on; the first ones are the prompt, which is the session's text.
    len: usize,
    n_active: usize,
    /// Of those that go on, which are still to choose from the last pass's logits.
    ready: Range<usize>,
    /// Most tokens that each may make.
    limit: usize,
    seed: u64,
    draws: u64,
}

impl<'a> Session<'a> {
    /// Goes on from the text with as many sequences as [`gpt2::Options::sequences`] tells, side by side.
    ///
    /// Sequence `i` is, token by token and bit by bit, what this session would make from the seed that is `i` higher; with
    /// PyTorch's generator, all are what transformers makes of one seed.
    /// Each makes as many tokens as [`limit`](Session::limit) allows, and at most [`gpt2::Options::own`]; none guesses or
    /// slides. Once this is dropped, the session's text is the prompt again.
    ///
    /// There are none if the session was planned for fewer than two.
    ///
    /// # Errors
    /// The text is empty and the vocabulary has no token to start from → [`Error::EmptyPrompt`].
    pub fn sequences(&mut self) -> Result<Sequences<'_, 'a>, Error> {
        self.begin()?;
        self.forget_guesses();
        self.state.share(self.n_tokens);
        let Branches { active, hashes, stops, .. } = &mut self.branches;
        active.iter_mut().zip(0..).for_each(|(active, i)| *active = i);
        hashes.fill(self.hash.unwrap_or_default().0);
        stops.fill(NONE);
        Ok(Sequences {
            len: self.n_tokens,
            n_active: active.len(),
            ready: 0..0,
            limit: self.left.min(self.state.own()),
            seed: self.sampler.seed(),
            draws: self.sampler.draws(),
            session: self,
        })
    }
}

impl Sequences<'_, '_> {
    /// How many there are, with those that have ended.
    pub fn len(&self) -> usize {
        self.session.branches.stops.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The seed from which a sequence alone makes the same text. `None` with PyTorch's generator, which is one for all.
    pub fn seed(&self, sequence: usize) -> Option<u64> {
        match self.session.sampler.params().generator {
            Generator::Pcg => Some(self.seed.wrapping_add(sequence as u64)),
            #[cfg(feature = "torch")]
            Generator::Torch => None,
        }
    }

    /// Makes the next token, and says of which sequence: they take turns, in order. `None` when all have ended.
    ///
    /// The first token of each comes from the last pass of the prompt; from there on one pass of the weights serves
    /// a token of every sequence that goes on, and reads [`Header::bytes_per_token`](gpt2::Header::bytes_per_token), and
    /// a row of both embeddings more for each sequence but one; with a head in two stages, the candidates of all.
    ///
    /// # Errors
    /// The source failed → [`Error::Source`], and it may be called again; a logit is not finite → [`Error::Sampler`].
    pub fn next<S: Source>(&mut self, src: &mut S) -> Result<Option<(usize, Token)>, Error> {
        loop {
            while !self.ready.is_empty() {
                let turn = self.ready.start;
                let sequence = self.session.branches.active[turn] as usize;
                let token = match self.stop_reason(sequence) {
                    None => self.choose(sequence, if self.is_first() { 0 } else { turn })?,
                    Some(_) => None,
                };
                self.ready.start += 1;
                if self.ready.is_empty() {
                    self.len += 1;
                }
                if let Some(token) = token {
                    return Ok(Some((sequence, token)));
                }
            }
            self.retire();
            if self.n_active == 0 {
                return Ok(None);
            }
            self.run(src)?;
        }
    }

    /// Whether the last pass was the prompt's, which serves all sequences with one choice.
    fn is_first(&self) -> bool {
        self.session.state.len() <= self.session.n_tokens
    }

    /// Draws a sequence's token; `None` if the model ended its text.
    fn choose(&mut self, sequence: usize, choice: usize) -> Result<Option<Token>, Error> {
        let (seed, made) = (self.seed(sequence), self.len - self.session.n_tokens);
        let Session { sampler, branches, tokens, hashes, state, .. } = &mut *self.session;
        let made = made as u64;
        let (seed, draws) = match seed {
            Some(seed) => (seed, made),
            // One generator for all: a row of draws for each in turn, also for those that have ended.
            None => (self.seed, made.wrapping_mul(branches.stops.len() as u64).wrapping_add(sequence as u64)),
        };
        sampler.seek(seed, self.draws.wrapping_add(draws));
        let token = sampler.pick(choice)?;
        let mut hash = LogitsHash(branches.hashes[sequence]);
        hash.update(hashes[choice]);
        branches.hashes[sequence] = hash.0;
        if sampler.is_end(token) {
            self.stop(sequence, StopReason::EndOfText);
            return Ok(None);
        }
        let row = state.layout().row(sequence, self.len);
        match row.checked_sub(tokens.len()) {
            None => tokens[row] = token.0,
            Some(row) => branches.tokens[row] = token.0,
        }
        Ok(Some(token))
    }

    /// Lets those go that have ended, or may make no further token.
    fn retire(&mut self) {
        let made = self.len - self.session.n_tokens;
        let reason = match () {
            () if made >= self.limit => Some(StopReason::MaxTokens),
            () if self.len >= self.session.tokens.len() => Some(StopReason::Context),
            () => None,
        };
        if let Some(reason) = reason {
            (0..self.len()).for_each(|sequence| self.stop(sequence, reason));
        }
        // After a pass whose head failed, its rows still belong to those that took part.
        if !self.is_first() && self.len == self.session.state.len() {
            return;
        }
        let Branches { active, stops, .. } = &mut self.session.branches;
        let mut n = 0;
        for i in 0..self.n_active {
            if stops[active[i] as usize] == NONE {
                active[n] = active[i];
                n += 1;
            }
        }
        self.n_active = n;
    }

    /// Runs what is left of the prompt, or the last token of each sequence, and hands on the logits that follow.
    fn run<S: Source>(&mut self, src: &mut S) -> Result<(), Error> {
        while self.session.pending() > 0 {
            self.session.run(src, 0)?;
        }
        let Session { weights, state, sampler, branches, tokens, n_tokens, made, passes, last, .. } =
            &mut *self.session;
        let layout = state.layout();
        let token = |sequence: u32, position| {
            let row = layout.row(sequence as usize, position);
            row.checked_sub(tokens.len()).map_or_else(|| tokens[row], |row| branches.tokens[row])
        };
        let active = &branches.active[..self.n_active];
        let positions = if self.len == *n_tokens {
            sampler.begin(&tokens[..self.len], self.len, *made);
            *last..*last + 1
        } else {
            if self.len > state.len() {
                let tokens = active.iter().map(|&sequence| token(sequence, self.len - 1));
                gpt2::forward_each(src, weights, state, active, tokens, true)?;
                *passes += 1;
            }
            for (choice, &sequence) in active.iter().enumerate() {
                let made = made.saturating_add(self.len - *n_tokens);
                sampler.begin_choice(choice, made, self.len, |position| token(sequence, position));
            }
            0..self.n_active
        };
        self.session.score(src, positions)?;
        self.ready = 0..self.n_active;
        Ok(())
    }

    /// Ends a sequence for a reason of the caller's, if it has not ended yet.
    pub fn stop(&mut self, sequence: usize, reason: StopReason) {
        let stop = self.session.branches.stops.get_mut(sequence).filter(|stop| **stop == NONE);
        if let (Some(stop), Some(i)) = (stop, StopReason::ALL.iter().position(|&known| known == reason)) {
            *stop = i as u8;
        }
    }

    /// Why a sequence ended, if it has.
    pub fn stop_reason(&self, sequence: usize) -> Option<StopReason> {
        let stop = self.session.branches.stops.get(sequence)?;
        StopReason::ALL.get(usize::from(*stop)).copied()
    }

    /// What turns tokens into bytes.
    pub fn tokenizer(&self) -> &Tokenizer<'_> {
        self.session.tokenizer()
    }

    /// How many passes of the weights the session has made.
    pub fn passes(&self) -> u64 {
        self.session.passes()
    }

    /// The hash over all logits of a sequence, with those before it, if the session hashes them.
    pub fn logits_hash(&self, sequence: usize) -> Option<LogitsHash> {
        self.session.hash?;
        self.session.branches.hashes.get(sequence).map(|&hash| LogitsHash(hash))
    }
}

impl Drop for Sequences<'_, '_> {
    /// The last position of the prompt is run again, should the session go on: its activations are gone.
    fn drop(&mut self) {
        let Session { state, n_tokens, sampler, .. } = &mut *self.session;
        state.truncate(n_tokens.saturating_sub(1));
        sampler.seek(self.seed, self.draws);
    }
}
