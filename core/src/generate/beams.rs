//! Beam search: the continuations of a prompt that are likeliest as a whole, a token of each beam from every pass.
//!
//! As in transformers' `generate` (version 5), step by step:
//!
//! ```text
//! score every continuation of every beam: the beam's score + ln p(token), after the processors
//! take the best `max(2, ends + 1) * num_beams` of all
//! of the best num_beams of them, those that end go to the finished texts, with score / length ^ length_penalty
//! of those that do not end, the best num_beams are the beams of the next step
//! stop when there are num_beams finished texts that no beam can improve upon, or no beam may grow
//! ```
//!
//! Beams share the prompt's keys and values; each has its own behind them, in a slot. A beam whose parent goes on in its
//! own slot costs nothing, another copies its parent's positions into a slot whose beam is gone.

use super::sequences::Branches;
use super::{Error, Model, Options, Plan, Session, StopReason, score};
use crate::arena::{Arena, bytes_of};
use crate::gpt2;
use crate::sampler::{Candidates, Params, Sink, id, logit};
use crate::source::Source;
use crate::tokenizer::{Token, Tokenizer};

/// When a search ends that has as many finished texts as beams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EarlyStopping {
    /// `False`: once the best beam, ended here, would be no better than the worst of them.
    #[default]
    Estimate,
    /// `True`: at once.
    Yes,
    /// `"never"`: once no beam can become better than the worst of them.
    Never,
}

/// How beams are compared; there are as many as [`gpt2::Options::sequences`] tells, and none if that is below two.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BeamOptions {
    /// Exponent of a text's length, by which its score is divided: above 0 for longer texts, below for shorter ones.
    pub length_penalty: f32,
    /// When to stop.
    pub early_stopping: EarlyStopping,
}

impl Default for BeamOptions {
    /// A length penalty of 1, and a stop by estimate, as in transformers.
    fn default() -> Self {
        BeamOptions { length_penalty: 1.0, early_stopping: EarlyStopping::default() }
    }
}

impl BeamOptions {
    /// Arena bytes of a search by a session with these options.
    pub fn bytes(model: &Model, options: &Options) -> usize {
        let (n_vocab, context) = (model.header.config.n_vocab, options.state.context);
        let ends = model.vocabulary.ends().into_iter().flatten().count();
        let n_beams = Branches::count(&options.state);
        let most = most_continuations(&options.sampling, ends, n_beams);
        let own = options.state.own.min(context);
        let n_logits = options.head.candidates(n_vocab);
        let limit = limit(&options.sampling, most, context, n_logits);
        [
            Candidates::bytes(&options.sampling, limit, context, n_beams),
            bytes_of::<f32>(n_beams).saturating_mul(3),
            bytes_of::<f64>(n_beams),
            bytes_of::<u32>(n_beams).saturating_mul(5),
            bytes_of::<f32>(most),
            bytes_of::<u32>(most).saturating_mul(3),
            bytes_of::<u32>(n_beams.saturating_add(1).saturating_mul(own)),
        ]
        .into_iter()
        .fold(0, usize::saturating_add)
    }

    /// The largest context, up to the model's own, whose session and search fit into `have` bytes; `None` if not even 1
    /// does.
    pub fn largest_context(model: &Model, options: &Options, have: usize) -> Option<usize> {
        Plan::largest(model, options, |options| {
            Plan::new(model, options).total().saturating_add(BeamOptions::bytes(model, options)) <= have
        })
    }
}

/// Continuations that a step looks at: enough that as many do not end as there are beams.
fn most_continuations(sampling: &Params, file_ends: usize, n_beams: usize) -> usize {
    let ends = if sampling.eos_token_id.is_empty() { file_ends } else { sampling.eos_token_id.len() };
    (ends + 1).max(2).saturating_mul(n_beams)
}

/// Logits to keep of each beam, so that its best continuations are among them after the penalty: one above 1 moves
/// only tokens of the window, and those down; one below 1 may move any of them to the top.
fn limit(sampling: &Params, most: usize, context: usize, n_logits: usize) -> usize {
    let penalty = sampling.repetition_penalty;
    let limit = if penalty < 1.0 { n_logits } else { most.saturating_add(sampling.window(context)) };
    limit.min(n_logits)
}

/// A search: see [`Session::beams`].
#[derive(Debug)]
pub struct Beams<'s, 'a, 'b> {
    session: &'s mut Session<'a>,
    options: BeamOptions,
    logits: Logits<'b>,
    /// Tokens of each beam; the first ones are the prompt, which is the session's text.
    text_len: usize,
    limit: usize,
    /// Beams that go on: one, before the first token.
    n_running: usize,
    scores: &'b mut [f32], // of the running beams, the best first: sums of ln p (beams)
    slots: &'b mut [u32],  // where each has its tokens, keys and values (beams)
    next_slots: &'b mut [u32],
    continuations: Continuations<'b>,
    n_finished: usize,
    finished_scores: &'b mut [f32], // divided by the length's power, the best first (beams)
    finished_rows: &'b mut [u32],   // which row of `finished` (beams)
    finished_lens: &'b mut [u32],   // tokens in it (beams)
    finished_stops: &'b mut [u32],  // index in StopReason::ALL (beams)
    finished: &'b mut [u32],        // tokens after the prompt; the last row is free (beams + 1, own)
    own: usize,
    done: bool,
}

/// The logits of each beam: the largest, and what their probabilities are relative to.
#[derive(Debug)]
struct Logits<'b> {
    candidates: Candidates<'b>,
    most: &'b mut [f32], // the largest so far (beams)
    sums: &'b mut [f64], // of e^(logit - most) so far (beams)
}

impl Sink for Logits<'_> {
    fn push_after(&mut self, n: usize, choice: usize, first: u32, logits: &[f32]) {
        self.candidates.push_after(n, choice, first, logits);
        let (most, sum) = (&mut self.most[choice], &mut self.sums[choice]);
        if n == 0 {
            (*most, *sum) = (f32::NEG_INFINITY, 0.0);
        }
        let largest = logits.iter().copied().fold(*most, f32::max);
        if largest > *most {
            *sum *= f64::from(crate::exp::exp(*most - largest));
            *most = largest;
        }
        *sum += logits.iter().map(|&logit| f64::from(crate::exp::exp(logit - largest))).sum::<f64>();
    }

    fn refuse(&mut self, choice: usize, token: Token) {
        self.candidates.refuse(choice, token);
    }
}

/// The best continuations of all beams, the best first.
#[derive(Debug)]
struct Continuations<'b> {
    n: usize,
    scores: &'b mut [f32],
    beams: &'b mut [u32],
    tokens: &'b mut [u32],
    stops: &'b mut [u32], // index in StopReason::ALL, NONE if it goes on
}

const NONE: u32 = u32::MAX;

impl Continuations<'_> {
    /// Adds one, if it is among the best; after those that score as much.
    fn offer(&mut self, score: f32, beam: u32, token: u32) {
        let mut i = self.n;
        if i == self.scores.len() {
            if self.scores.last().is_none_or(|&worst| score <= worst) {
                return;
            }
            i -= 1;
        } else {
            self.n += 1;
        }
        while i > 0 && self.scores[i - 1] < score {
            self.scores[i] = self.scores[i - 1];
            self.beams[i] = self.beams[i - 1];
            self.tokens[i] = self.tokens[i - 1];
            i -= 1;
        }
        (self.scores[i], self.beams[i], self.tokens[i]) = (score, beam, token);
    }
}

impl<'a> Session<'a> {
    /// Searches for the best continuations of the text, with as many beams as [`gpt2::Options::sequences`] tells and the
    /// session's processors; what draws plays no part. Cuts [`BeamOptions::bytes`] from `arena`.
    ///
    /// Texts have as many tokens as [`limit`](Session::limit) allows, and at most [`gpt2::Options::own`]. Once this is
    /// dropped, the session's text is the prompt again. With a head in two stages, a token's probability is that among the
    /// candidates.
    ///
    /// # Errors
    /// The text is empty and the vocabulary has no token to start from → [`Error::EmptyPrompt`]; too little memory →
    /// [`Error::Arena`].
    pub fn beams<'s, 'b>(&'s mut self, options: &BeamOptions, arena: &mut Arena<'b>) -> Result<Beams<'s, 'a, 'b>, Error>
    where
        'a: 'b,
    {
        self.begin()?;
        self.forget_guesses();
        self.state.share(self.n_tokens);
        let n_beams = self.branches.stops.len();
        let sampling = self.sampler.params();
        let file_ends = self.sampler.candidates().file_ends();
        let most = most_continuations(&sampling, file_ends.into_iter().flatten().count(), n_beams);
        let (context, own) = (self.tokens.len(), self.state.own());
        let limit_logits = limit(&sampling, most, context, self.head.candidates(self.n_vocab));
        let mut candidates = Candidates::new(sampling, limit_logits, context, n_beams, arena)?;
        candidates.set_file_ends(file_ends);
        candidates.defer_penalty();
        let room = context - self.n_tokens;
        Ok(Beams {
            options: *options,
            logits: Logits { candidates, most: arena.take(n_beams)?, sums: arena.take(n_beams)? },
            text_len: self.n_tokens,
            limit: self.left.min(own).min(room),
            n_running: 1.min(n_beams),
            scores: arena.take(n_beams)?,
            slots: arena.take(n_beams)?,
            next_slots: arena.take(n_beams)?,
            continuations: Continuations {
                n: 0,
                scores: arena.take(most)?,
                beams: arena.take(most)?,
                tokens: arena.take(most)?,
                stops: arena.take(most)?,
            },
            n_finished: 0,
            finished_scores: arena.take(n_beams)?,
            finished_rows: arena.take(n_beams)?,
            finished_lens: arena.take(n_beams)?,
            finished_stops: arena.take(n_beams)?,
            finished: arena.take((n_beams + 1).saturating_mul(own))?,
            own,
            done: self.left.min(own).min(room) == 0 || n_beams == 0,
            session: self,
        })
    }
}

impl Beams<'_, '_, '_> {
    /// Lengthens all beams by a token, and says whether the search goes on.
    ///
    /// `stops` looks at the tokens after the prompt of a continuation and says whether they end it for a reason of the
    /// caller's, as a stop string does; it may read from the source.
    ///
    /// Costs one pass of the weights, and none the first time, after those of the prompt; and the copies of the positions
    /// of beams whose parent has another child.
    ///
    /// # Errors
    /// The source failed → [`Error::Source`], and it may be called again; a logit is not finite, or all tokens are barred →
    /// [`Error::Sampler`]. What `stops` says.
    pub fn step<S: Source>(
        &mut self,
        src: &mut S,
        mut stops: impl FnMut(&Tokenizer, &mut S, &[u32]) -> Result<bool, Error>,
    ) -> Result<bool, Error> {
        if self.done {
            return Ok(false);
        }
        self.run(src)?;
        self.continue_all()?;
        let made = self.text_len - self.session.n_tokens;
        for i in 0..self.continuations.n {
            let stop = self.ends(i, made, src, &mut stops)?;
            let index = StopReason::ALL.iter().position(|&reason| Some(reason) == stop);
            self.continuations.stops[i] = index.map_or(NONE, |index| index as u32);
        }
        // Only as many as there are beams may finish; the others stand by to go on.
        for i in 0..self.continuations.n.min(self.slots.len()) {
            if self.continuations.stops[i] != NONE {
                let Continuations { scores, beams, tokens, stops, .. } = &self.continuations;
                let (score, slot, token, stop) = (scores[i], self.slots[beams[i] as usize], tokens[i], stops[i]);
                self.finish(score, slot, made, Some(token), stop);
            }
        }
        self.select();
        self.done = self.n_running == 0 || self.is_decided(made + 1);
        Ok(!self.done)
    }

    /// Runs what is left of the prompt, or the last token of each beam, and takes the logits that follow.
    fn run<S: Source>(&mut self, src: &mut S) -> Result<(), Error> {
        while self.session.pending() > 0 {
            self.session.run(src, 0)?;
        }
        let Session { weights, state, branches, tokens, n_tokens, made, passes, last, shortlist, .. } =
            &mut *self.session;
        let slots = &self.slots[..self.n_running];
        let layout = state.layout();
        let token = |slot: u32, position| {
            let row = layout.row(slot as usize, position);
            row.checked_sub(tokens.len()).map_or_else(|| tokens[row], |row| branches.tokens[row])
        };
        let mut positions = 0..self.n_running;
        if self.text_len == *n_tokens {
            positions = *last..*last + 1;
        } else if self.text_len > state.len() {
            let tokens = slots.iter().map(|&slot| token(slot, self.text_len - 1));
            gpt2::forward_each(src, weights, state, slots, tokens, true)?;
            *passes += 1;
        }
        let made = made.saturating_add(self.text_len - *n_tokens);
        for (beam, &slot) in slots.iter().enumerate() {
            self.logits.candidates.begin_choice(beam, made, self.text_len, |position| token(slot, position));
        }
        score(src, weights, state, shortlist.as_mut(), positions, &mut self.logits)
    }

    /// Finds the best continuations of all beams.
    fn continue_all(&mut self) -> Result<(), Error> {
        self.continuations.n = 0;
        for beam in 0..self.n_running {
            let Logits { candidates, most, sums } = &mut self.logits;
            let (most, log_sum) = (most[beam], libm::log(sums[beam]) as f32);
            let n = candidates.sorted(beam)?.len();
            for i in 0..n {
                let candidate = candidates.kept(beam)[i];
                let (token, mut log_p) = (id(candidate), logit(candidate) - most - log_sum);
                if candidates.is_recent(beam, token) {
                    log_p = candidates.params().penalised(log_p);
                }
                self.continuations.offer(self.scores[beam] + log_p, beam as u32, token);
            }
        }
        Ok(())
    }

    /// Why a continuation, after which a beam has `made + 1` tokens, does not go on, if it does not.
    fn ends<S: Source>(
        &mut self,
        i: usize,
        made: usize,
        src: &mut S,
        stops: &mut impl FnMut(&Tokenizer, &mut S, &[u32]) -> Result<bool, Error>,
    ) -> Result<Option<StopReason>, Error> {
        let (slot, token) = (self.slots[self.continuations.beams[i] as usize], self.continuations.tokens[i]);
        if self.logits.candidates.is_end(Token(token)) {
            return Ok(Some(StopReason::EndOfText));
        }
        let row = self.free_row();
        self.write(row, slot, made, Some(token));
        let made = made + 1;
        if stops(&self.session.tokenizer, src, &self.finished[row * self.own..][..made])? {
            return Ok(Some(StopReason::StopString));
        }
        let full = self.session.n_tokens + made == self.session.tokens.len();
        Ok((made == self.limit).then_some(if full && made < self.session.left.min(self.own) {
            StopReason::Context
        } else {
            StopReason::MaxTokens
        }))
    }

    /// The row of finished texts that none has.
    fn free_row(&self) -> usize {
        let taken = |row: usize| self.finished_rows[..self.n_finished].iter().any(|&other| other as usize == row);
        (0..=self.n_finished).find(|&row| !taken(row)).unwrap_or(0)
    }

    /// Writes what a slot has made, and perhaps one token more, into a row of finished texts.
    fn write(&mut self, row: usize, slot: u32, made: usize, token: Option<u32>) {
        let Session { state, branches, tokens, n_tokens, .. } = &*self.session;
        let layout = state.layout();
        let text = &mut self.finished[row * self.own..][..self.own];
        for (to, position) in text.iter_mut().zip(*n_tokens..*n_tokens + made) {
            let row = layout.row(slot as usize, position);
            *to = row.checked_sub(tokens.len()).map_or_else(|| tokens[row], |row| branches.tokens[row]);
        }
        if let (Some(to), Some(token)) = (text.get_mut(made), token) {
            *to = token;
        }
    }

    /// Puts a text among the finished ones, if it is good enough: after those that score as much.
    fn finish(&mut self, sum: f32, slot: u32, made: usize, token: Option<u32>, stop: u32) {
        let len = made + usize::from(token.is_some());
        let score = sum / self.power(len);
        let n_beams = self.slots.len();
        let place = self.finished_scores[..self.n_finished].iter().take_while(|&&other| other >= score).count();
        if place == n_beams {
            return;
        }
        let row = self.free_row();
        self.write(row, slot, made, token);
        self.n_finished = (self.n_finished + 1).min(n_beams);
        // The end of a text is none of its tokens.
        let is_end = StopReason::ALL.get(stop as usize) == Some(&StopReason::EndOfText);
        let len = (len - usize::from(is_end && token.is_some())) as u32;
        let last = self.n_finished - 1;
        for list in [&mut *self.finished_rows, self.finished_lens, self.finished_stops] {
            list.copy_within(place..last, place + 1);
        }
        self.finished_scores.copy_within(place..last, place + 1);
        self.finished_scores[place] = score;
        (self.finished_rows[place], self.finished_lens[place], self.finished_stops[place]) = (row as u32, len, stop);
    }

    /// What a text's score is divided by.
    fn power(&self, len: usize) -> f32 {
        libm::pow(len as f64, f64::from(self.options.length_penalty)) as f32
    }

    /// Makes the best continuations that do not end the beams of the next step.
    fn select(&mut self) {
        let n_beams = self.slots.len();
        let Session { state, branches, tokens, n_tokens, .. } = &mut *self.session;
        let Continuations { n, beams, tokens: new, scores, stops } = &mut self.continuations;
        // Those that go on come first, the best of them in front.
        let mut kept = 0;
        for i in 0..*n {
            if stops[i] == NONE && kept < n_beams {
                (beams[kept], new[kept], scores[kept]) = (beams[i], new[i], scores[i]);
                kept += 1;
            }
        }
        // The first child of a beam stays in its slot.
        let is_first = |i: usize| !beams[..i].contains(&beams[i]);
        for i in (0..kept).filter(|&i| is_first(i)) {
            self.next_slots[i] = self.slots[beams[i] as usize];
        }
        let layout = state.layout();
        let mut free = (0..n_beams as u32).filter(|slot| {
            let beam = self.slots[..self.n_running].iter().position(|other| other == slot);
            beam.is_none_or(|beam| !beams[..kept].contains(&(beam as u32)))
        });
        for i in (0..kept).filter(|&i| !is_first(i)) {
            // There are as many slots as beams, so that one is free.
            let (Some(to), from) = (free.next(), self.slots[beams[i] as usize]) else { continue };
            state.copy_own(from as usize, to as usize);
            for position in *n_tokens..self.text_len {
                let token = at(tokens, branches.tokens, layout.row(from as usize, position)).map_or(0, |token| *token);
                if let Some(place) = at(tokens, branches.tokens, layout.row(to as usize, position)) {
                    *place = token;
                }
            }
            self.next_slots[i] = to;
        }
        for (&slot, &token) in self.next_slots[..kept].iter().zip(new.iter()) {
            if let Some(place) = at(tokens, branches.tokens, layout.row(slot as usize, self.text_len)) {
                *place = token;
            }
        }
        self.scores[..kept].copy_from_slice(&scores[..kept]);
        self.slots[..kept].copy_from_slice(&self.next_slots[..kept]);
        self.n_running = kept;
        self.text_len += 1;
    }

    /// Whether the finished texts can stay as they are, now that beams have `made` tokens.
    fn is_decided(&self, made: usize) -> bool {
        if self.n_finished < self.slots.len() {
            return false;
        }
        let worst = self.finished_scores[self.n_finished - 1];
        let longest = self.options.early_stopping == EarlyStopping::Never && self.options.length_penalty > 0.0;
        let best = self.scores[0] / self.power(if longest { self.limit } else { made });
        self.options.early_stopping == EarlyStopping::Yes || best <= worst
    }

    /// Ends the search here: the beams become finished texts, for a reason of the caller's.
    pub fn stop(&mut self, reason: StopReason) {
        let made = self.text_len - self.session.n_tokens;
        let stop = StopReason::ALL.iter().position(|&known| known == reason).unwrap_or(0);
        if !self.done && made > 0 {
            for beam in 0..self.n_running {
                self.finish(self.scores[beam], self.slots[beam], made, None, stop as u32);
            }
        }
        self.done = true;
    }

    /// How many finished texts there are: as many as beams, once the search has ended.
    pub fn len(&self) -> usize {
        self.n_finished
    }

    /// Whether no text is finished.
    pub fn is_empty(&self) -> bool {
        self.n_finished == 0
    }

    /// How many tokens each running beam has made.
    pub fn made(&self) -> usize {
        self.text_len - self.session.n_tokens
    }

    /// Most tokens that a beam may make.
    pub fn most(&self) -> usize {
        self.limit
    }

    /// The tokens of a finished text after the prompt, the best text first.
    pub fn tokens(&self, text: usize) -> impl ExactSizeIterator<Item = Token> {
        let place = (text < self.n_finished).then(|| (self.finished_rows[text] as usize, self.finished_lens[text]));
        let tokens = place.map_or(&[][..], |(row, len)| &self.finished[row * self.own..][..len as usize]);
        tokens.iter().copied().map(Token)
    }

    /// The sum of its `ln p`, divided by its length to the power of the length penalty: transformers' `sequences_scores`.
    pub fn score(&self, text: usize) -> Option<f32> {
        self.finished_scores[..self.n_finished].get(text).copied()
    }

    /// Why a finished text ended.
    pub fn stop_reason(&self, text: usize) -> Option<StopReason> {
        let stop = self.finished_stops[..self.n_finished].get(text)?;
        StopReason::ALL.get(*stop as usize).copied()
    }

    /// What turns tokens into bytes.
    pub fn tokenizer(&self) -> &Tokenizer<'_> {
        self.session.tokenizer()
    }

    /// How many passes of the weights the session has made.
    pub fn passes(&self) -> u64 {
        self.session.passes()
    }
}

/// The token in a row: those behind the first sequence's context belong to the others.
fn at<'t>(tokens: &'t mut [u32], others: &'t mut [u32], row: usize) -> Option<&'t mut u32> {
    match row.checked_sub(tokens.len()) {
        None => tokens.get_mut(row),
        Some(row) => others.get_mut(row),
    }
}

impl Drop for Beams<'_, '_, '_> {
    /// The last position of the prompt is run again, should the session go on: its activations are gone.
    fn drop(&mut self) {
        let Session { state, n_tokens, .. } = &mut *self.session;
        state.truncate(n_tokens.saturating_sub(1));
    }
}
