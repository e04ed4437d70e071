//! Prompt in, text out: the only module that sees all the others.
//!
//! [`Model::open`] checks the whole header, [`Plan`] tells how much memory a [`Session`] takes, and the session turns a
//! prompt into tokens, one [`Session::next`] at a time. [`Session::sequences`] makes several texts of it in the same
//! passes, [`Session::beams`] searches for the likeliest ones. [`Session::save`] and [`Session::restore`] carry it over a reset.

mod beams;
mod lookup;
mod saved;
mod sequences;

use core::fmt;
use core::ops::Range;

pub use beams::{BeamOptions, Beams, EarlyStopping};
pub use saved::{Fingerprint, RestoreError, SAVED_VERSION, Saved};
use sequences::Branches;
pub use sequences::Sequences;

use crate::arena::{Arena, TooSmall, bytes_of};
use crate::gguf;
use crate::gpt2::{self, Head, Header, State, Weights};
use crate::ops::Engine;
use crate::sampler::{self, Params, Sampler, Shortlist, Sink};
use crate::source::{self, Resident, Source};
use crate::tokenizer::{self, Control, Token, Tokenizer, Vocabulary, VocabularyBuilder};

/// A file that was opened and checked: shape, tensors and vocabulary fit together.
#[derive(Debug, Clone, Copy)]
pub struct Model {
    /// Where metadata and tensors lie.
    pub file: gguf::File,
    /// The model's shape, and what a pass reads.
    pub header: Header,
    /// Where the tokens' strings lie.
    pub vocabulary: Vocabulary,
}

impl Model {
    /// Opens a stock GGUF file of a GPT-2 model; reads the header, and no weights.
    ///
    /// # Errors
    /// The file cannot be read → [`Error::Source`]; it is damaged → [`Error::Gguf`]; it holds no GPT-2 model that can
    /// be run → [`Error::Model`]; its vocabulary cannot be used → [`Error::Tokenizer`].
    pub fn open<S: Source>(src: &mut S) -> Result<Model, Error> {
        let mut shape = gpt2::Metadata::default();
        let mut words = VocabularyBuilder::new();
        let file = gguf::open(src, |key, value| {
            shape.note(key, value)?;
            Ok::<(), Error>(words.note(key, value)?)
        })?;
        let header = Header::read(&file, &shape, src)?;
        let vocabulary = words.finish(src)?;
        let (tokens, rows) = (vocabulary.len() as usize, header.config.n_vocab);
        if tokens != rows {
            return Err(Error::VocabularySize { tokens, rows });
        }
        src.settle()?;
        Ok(Model { file, header, vocabulary })
    }
}

/// What the caller chooses; all but the context has a default.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Options<'a> {
    /// Context, batch, KV format, and how many sequences go on from one prompt.
    pub state: gpt2::Options,
    /// How tokens are chosen.
    pub sampling: Params<'a>,
    /// Where the random numbers start.
    pub seed: u64,
    /// Most tokens that are guessed from earlier text, to be checked in the same pass as the one before them; 0 is off.
    ///
    /// The text is the same, token by token; where it repeats itself, one pass of the weights makes several. A guess
    /// costs a position's memory and arithmetic in the pass, right or wrong, and candidates of its own in the sampler:
    /// it pays where storage is slower than arithmetic.
    pub lookup: usize,
    /// Which rows of the head are read for a choice.
    ///
    /// With two stages, `top_k` may be no more than the candidates, and 0 means all of them.
    pub head: Head,
}

impl Options<'_> {
    /// Checks the controls, the tokens they name, and that `top_k` tokens are left to choose from.
    fn check(&self, n_vocab: usize) -> Result<(), Error> {
        check_sampling(&self.sampling, self.head, n_vocab)
    }

    /// Candidates of the first stage of two, for each choice.
    fn shortlist(&self, n_vocab: usize) -> Option<usize> {
        (self.head != Head::Exact).then(|| self.head.candidates(n_vocab))
    }

    /// Choices that one pass may serve: the next token, and one after each guess, or that of each sequence.
    fn choices(&self) -> usize {
        (1 + self.lookup.min(self.state.context.saturating_sub(1))).max(self.state.sequences)
    }

    /// Those of the model: all choices fit a batch.
    fn of_model(&self) -> gpt2::Options {
        gpt2::Options { batch: self.state.batch.max(self.choices()), ..self.state }
    }
}

/// Checks the controls, and that the vocabulary has the tokens they name.
fn check_sampling(sampling: &Params, head: Head, n_vocab: usize) -> Result<(), Error> {
    sampling.check()?;
    if let Some(token) = sampling.tokens().find(|token| token.0 as usize >= n_vocab) {
        return Err(gpt2::Error::Token { id: token.0, n_vocab }.into());
    }
    check_top_k(sampling, head, n_vocab)
}

/// Two stages leave some candidates: so many of them can be chosen from, and no more.
fn check_top_k(sampling: &Params, head: Head, n_vocab: usize) -> Result<(), Error> {
    let (top_k, candidates) = (sampling.top_k.min(n_vocab), head.candidates(n_vocab));
    if sampling.temperature > 0.0 && top_k > candidates {
        return Err(Error::TopK { top_k, candidates });
    }
    Ok(())
}

/// Arena bytes by region: plain arithmetic, known before the first weight is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Directory, KV cache and activations.
    pub model: gpt2::Plan,
    /// The tokenizer's index.
    pub tokenizer: usize,
    /// Candidates, recent tokens and a hash, for each choice that a pass may serve; what is known of each sequence.
    pub sampler: usize,
    /// The text so far, as tokens, and those that further sequences have of their own.
    pub tokens: usize,
}

impl Plan {
    /// The bytes that [`Session::new`] will cut from an arena.
    pub fn new(model: &Model, options: &Options) -> Plan {
        let (config, context) = (&model.header.config, options.state.context);
        Plan {
            model: gpt2::Plan::new(config, &options.of_model()),
            tokenizer: Tokenizer::bytes(&model.vocabulary),
            sampler: options
                .sampling
                .bytes(options.head.candidates(config.n_vocab), context, options.choices())
                .saturating_add(
                    options
                        .shortlist(config.n_vocab)
                        .map_or(0, |candidates| Shortlist::bytes(candidates, options.choices())),
                )
                .saturating_add(bytes_of::<u64>(options.choices()))
                .saturating_add(Branches::bytes(&options.state)),
            tokens: bytes_of::<u32>(context).saturating_add(bytes_of::<u32>(options.state.own_rows())),
        }
    }

    /// The largest context, up to the model's own, whose session fits into `have` bytes; `None` if not even 1 does.
    pub fn largest_context(model: &Model, options: &Options, have: usize) -> Option<usize> {
        Plan::largest(model, options, |options| Plan::new(model, options).total() <= have)
    }

    /// The largest context that fits, where `fits` asks for memory that grows with the context, or stays.
    fn largest(model: &Model, options: &Options, fits: impl Fn(&Options) -> bool) -> Option<usize> {
        let fits = |context| fits(&Options { state: gpt2::Options { context, ..options.state }, ..*options });
        let (mut most, mut too_large) = (0, model.header.config.n_ctx + 1);
        while too_large - most > 1 {
            let middle = most + (too_large - most) / 2;
            if fits(middle) { most = middle } else { too_large = middle }
        }
        (most > 0).then_some(most)
    }

    /// All regions together; `usize::MAX` when that overflows.
    pub fn total(&self) -> usize {
        [self.tokenizer, self.sampler, self.tokens].into_iter().fold(self.model.total(), usize::saturating_add)
    }
}

/// Why a session gave no further token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The model ended the text.
    EndOfText,
    /// As many tokens were made as were asked for.
    MaxTokens,
    /// The context is full.
    Context,
    /// A stop string was met.
    StopString,
    /// The user stopped it.
    Interrupted,
    /// The time it was given is over.
    MaxTime,
}

impl StopReason {
    const ALL: [StopReason; 6] = [
        StopReason::EndOfText,
        StopReason::MaxTokens,
        StopReason::Context,
        StopReason::StopString,
        StopReason::Interrupted,
        StopReason::MaxTime,
    ];

    /// A short name for people and scripts.
    pub fn name(self) -> &'static str {
        match self {
            StopReason::EndOfText => "end_of_text",
            StopReason::MaxTokens => "max_tokens",
            StopReason::Context => "context",
            StopReason::StopString => "stop_string",
            StopReason::Interrupted => "interrupted",
            StopReason::MaxTime => "max_time",
        }
    }
}

/// What happens when the context is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overflow {
    /// The text ends, with [`StopReason::Context`].
    #[default]
    Stop,
    /// The text goes on with its first `keep` tokens and the newest half of the others: the middle is forgotten.
    ///
    /// GPT-2 learned an embedding for each position, so keys and values cannot move with their tokens: the newest half
    /// is read again like a prompt, in batches, once every `(context - keep) / 2` tokens or so.
    Slide {
        /// Tokens at the start that are never forgotten.
        keep: usize,
    },
}

/// A hash over all logits that tokens were chosen from: equal hashes, equal bits.
///
/// FNV-1a over the 32-bit patterns of the logits of each choice, then over those hashes, a word at a time: so the
/// choices that follow from guesses can be hashed before it is known which of them count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogitsHash(u64);

impl Default for LogitsHash {
    fn default() -> Self {
        LogitsHash(0xcbf2_9ce4_8422_2325)
    }
}

impl LogitsHash {
    fn update(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x0100_0000_01b3);
    }
}

impl fmt::Display for LogitsHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A text in the making: its tokens, their keys and values, and what chooses the next one.
#[derive(Debug)]
pub struct Session<'a> {
    weights: Weights<'a>,
    state: State<'a>,
    tokenizer: Tokenizer<'a>,
    sampler: Sampler<'a>,
    head: Head,
    /// The first of two stages.
    shortlist: Option<Shortlist<'a>>,
    tokens: &'a mut [u32], // the text so far (context)
    n_tokens: usize,
    /// Tokens made since the last one was given.
    made: usize,
    /// Of several sequences, what those beside the first one have made, and which go on.
    branches: Branches<'a>,
    /// A hash over the logits of each choice (choices).
    hashes: &'a mut [u64],
    n_vocab: usize,
    /// The last token's place in the batch of the last pass; those of guesses are behind it.
    last: usize,
    /// Choices whose candidates the sampler holds: the next token's, and those after each guess, while they are right.
    ///
    /// The guesses stand behind the text in `tokens`, and have positions in `state`.
    ready: Range<usize>,
    lookup: usize,
    passes: u64,
    overflow: Overflow,
    /// How many tokens may still be made.
    left: usize,
    stop: Option<StopReason>,
    hash: Option<LogitsHash>,
}

impl<'a> Session<'a> {
    /// Cuts all buffers from `arena` and builds the tokenizer's index: the bytes that [`Plan`] tells.
    ///
    /// Reads the header's tensor list and vocabulary, and no weights.
    ///
    /// # Errors
    /// The arena is too small → [`Error::Arena`], with what the whole plan needs; a control or the context is out of
    /// range → [`Error::Sampler`], [`Error::Model`]; the file has no second head, or two stages leave too few candidates →
    /// [`Error::Model`], [`Error::TopK`]; the source cannot lend a whole row of every tensor → [`Error::Source`].
    pub fn new<S: Source>(
        model: &Model,
        options: &Options<'a>,
        src: &mut S,
        arena: &mut Arena<'a>,
    ) -> Result<Self, Error> {
        let config = &model.header.config;
        options.check(config.n_vocab)?;
        model.header.head_reads(options.head)?;
        let (needed, have) = (Plan::new(model, options).total(), arena.len() - arena.used());
        let context = options.state.context;
        if context == 0 || context > config.n_ctx {
            return Err(gpt2::Error::Context { asked: context, n_ctx: config.n_ctx }.into());
        }
        if needed > have {
            return Err(TooSmall { needed, have }.into());
        }
        let (len, max) = (model.header.longest_row, src.max_chunk());
        if len > max {
            let cause = source::Cause::ChunkTooLong(max);
            return Err(source::Error { offset: model.file.data_at, len, cause }.into());
        }
        Ok(Session {
            weights: {
                let mut weights = Weights::load(&model.header, &model.file, src, arena)?;
                weights.set_head(options.head);
                weights
            },
            state: State::new(config, &options.of_model(), arena)?,
            tokenizer: Tokenizer::load(&model.vocabulary, src, arena)?,
            sampler: {
                let Options { sampling, seed, .. } = *options;
                let n_logits = options.head.candidates(config.n_vocab);
                let mut sampler = Sampler::new(sampling, seed, n_logits, context, options.choices(), arena)?;
                sampler.candidates().set_file_ends(model.vocabulary.ends());
                sampler
            },
            head: options.head,
            shortlist: match options.shortlist(config.n_vocab) {
                Some(candidates) => Some(Shortlist::new(candidates, options.choices(), arena)?),
                None => None,
            },
            hashes: arena.take(options.choices())?,
            tokens: arena.take(context)?,
            n_tokens: 0,
            made: 0,
            branches: Branches::new(&options.state, arena)?,
            n_vocab: config.n_vocab,
            last: 0,
            ready: 0..0,
            lookup: options.lookup,
            passes: 0,
            overflow: Overflow::Stop,
            left: usize::MAX,
            stop: None,
            hash: None,
        })
    }

    /// Whether these controls fit into what was planned: whether [`restart`](Session::restart) can take them.
    pub fn has_room(&self, sampling: &Params) -> bool {
        self.sampler.has_room(sampling, self.head.candidates(self.n_vocab), self.tokens.len())
    }

    /// Forgets the text and starts another one, with these controls.
    ///
    /// # Errors
    /// A control is out of range → [`Error::Sampler`], [`Error::TopK`]; the controls need more memory than was planned →
    /// [`Error::Arena`]. Either way the old text and controls stay.
    pub fn restart(&mut self, sampling: Params<'a>, seed: u64) -> Result<(), Error> {
        check_sampling(&sampling, self.head, self.n_vocab)?;
        self.sampler.set(sampling, seed, self.head.candidates(self.n_vocab), self.tokens.len())?;
        self.state.truncate(0);
        self.ready = 0..0;
        (self.n_tokens, self.made, self.left, self.stop) = (0, 0, usize::MAX, None);
        self.hash = self.hash.map(|_| LogitsHash::default());
        Ok(())
    }

    /// Adds tokens to the text.
    ///
    /// # Errors
    /// More than the context has left, or one outside the vocabulary → [`Error::Model`]; then none is added.
    pub fn push(&mut self, tokens: &[Token]) -> Result<(), Error> {
        let room = self.tokens.get_mut(self.n_tokens..).unwrap_or_default();
        if tokens.len() > room.len() {
            return Err(gpt2::Error::Full { tokens: tokens.len(), left: room.len() }.into());
        }
        if let Some(token) = tokens.iter().find(|token| token.0 as usize >= self.n_vocab) {
            return Err(gpt2::Error::Token { id: token.0, n_vocab: self.n_vocab }.into());
        }
        room.iter_mut().zip(tokens).for_each(|(room, token)| *room = token.0);
        self.forget_guesses();
        self.n_tokens += tokens.len();
        (self.made, self.stop) = (0, None);
        Ok(())
    }

    /// Adds text, and says how many tokens it made, counting the one that the file wants in front of every text.
    ///
    /// # Errors
    /// It makes more tokens than the context has left → [`Error::Model`]; it cannot be encoded, or has a word too long
    /// for the buffers → [`Error::Tokenizer`]; then none is added.
    pub fn push_text<S: Source>(&mut self, src: &mut S, text: &[u8], control: Control) -> Result<usize, Error> {
        self.forget_guesses();
        let room = self.tokens.get_mut(self.n_tokens..).unwrap_or_default();
        let mut n = 0;
        let mut add = |token: Token| {
            if let Some(slot) = room.get_mut(n) {
                *slot = token.0;
            }
            n += 1;
        };
        if let Some(prefix) = self.tokenizer.vocabulary().prefix().filter(|_| self.n_tokens == 0) {
            add(prefix);
        }
        self.tokenizer.encode_each(src, text, control, self.state.scratch(), add)?;
        if n > room.len() {
            return Err(gpt2::Error::Full { tokens: n, left: room.len() }.into());
        }
        self.n_tokens += n;
        (self.made, self.stop) = (0, None);
        Ok(n)
    }

    /// Keeps in memory what saves most bytes a token, as much as `src` has room for, and says how many that is:
    /// see [`Weights::keep`].
    ///
    /// # Errors
    /// The source failed → [`Error::Source`].
    pub fn keep<S: Source>(&self, src: &mut Resident<S>) -> Result<u64, Error> {
        Ok(self.weights.keep(src)?)
    }

    /// Says who multiplies from here on: the same bits, sooner or later. Before, the best kernel does, alone.
    pub fn set_engine(&mut self, engine: Engine<'a>) {
        self.state.set_engine(engine);
    }

    /// Who multiplies.
    pub fn engine(&self) -> Engine<'a> {
        self.state.engine()
    }

    /// Asks for at most `n` further tokens, also of a text that has as many as were asked for before.
    pub fn limit(&mut self, n: usize) {
        self.left = n;
        self.stop = self.stop.filter(|&reason| reason != StopReason::MaxTokens);
    }

    /// Says what happens when the context is full; a prompt must fit into what is left of it all the same.
    ///
    /// # Errors
    /// Keeping so many tokens leaves no room for an old one that goes and a new one that stays →
    /// [`Error::NoRoomToSlide`], and nothing changes.
    pub fn set_overflow(&mut self, overflow: Overflow) -> Result<(), Error> {
        let context = self.tokens.len();
        if let Overflow::Slide { keep } = overflow
            && keep.saturating_add(2) > context
        {
            return Err(Error::NoRoomToSlide { keep, context });
        }
        self.overflow = overflow;
        self.stop = self.stop.filter(|&reason| reason != StopReason::Context);
        Ok(())
    }

    /// Forgets the middle of a full context: what stays are the first `keep` tokens, with their keys and values, and
    /// the newest half of the others.
    fn slide(&mut self, keep: usize) {
        let others = self.tokens.get_mut(keep..self.n_tokens).unwrap_or_default();
        let newest = others.len() / 2;
        let (forgotten, kept) = others.split_at_mut(others.len() - newest);
        forgotten.iter_mut().zip(kept).for_each(|(forgotten, kept)| *forgotten = *kept);
        self.n_tokens = keep + newest;
        self.ready = 0..0;
        self.state.truncate(keep);
    }

    /// How many tokens were added that no pass has run yet.
    pub fn pending(&self) -> usize {
        self.n_tokens.saturating_sub(self.state.len())
    }

    /// How many passes of the weights were made.
    pub fn passes(&self) -> u64 {
        self.passes
    }

    /// Runs one batch of the tokens that were added since, and says how many are left.
    ///
    /// # Errors
    /// The source failed → [`Error::Source`]; the same batch can be run again.
    pub fn pass<S: Source>(&mut self, src: &mut S) -> Result<usize, Error> {
        if self.pending() > 0 {
            self.run(src, 0)?;
        }
        Ok(self.pending())
    }

    /// Runs one batch of what is pending, with up to `ahead` guesses behind it.
    fn run<S: Source>(&mut self, src: &mut S, ahead: usize) -> Result<(), Error> {
        let done = self.state.len();
        let end = (self.n_tokens + ahead).min(done + self.state.batch());
        let tokens = self.tokens.get(done..end).unwrap_or_default().iter().copied();
        gpt2::forward(src, &self.weights, &mut self.state, tokens, end >= self.n_tokens)?;
        self.passes += 1;
        self.last = self.n_tokens.min(end) - 1 - done;
        Ok(())
    }

    /// Runs what is pending and guesses behind it, and hands the logits after the text and after each guess to the
    /// sampler, from one reading of the head.
    fn look_ahead<S: Source>(&mut self, src: &mut S) -> Result<(), Error> {
        if self.pending() > 0 {
            let room = self.tokens.len() - self.n_tokens - 1;
            let most = self.lookup.min(room).min(self.left - 1);
            let ahead = lookup::guess(self.tokens, self.n_tokens, most);
            while self.pending() > 0 {
                self.run(src, ahead)?;
            }
        }
        // As many as had room in the batch, or were run before the head failed.
        let ahead = self.state.len() - self.n_tokens;
        let history = self.tokens.get(..self.n_tokens + ahead).unwrap_or_default();
        self.sampler.begin(history, self.n_tokens, self.made);
        self.score(src, self.last..self.last + 1 + ahead)?;
        self.ready = 0..1 + ahead;
        Ok(())
    }

    /// Hands the logits of some positions of the last pass to the sampler, each to a choice of its own.
    fn score<S: Source>(&mut self, src: &mut S, positions: Range<usize>) -> Result<(), Error> {
        let hashes = self.hash.is_some().then_some(&mut *self.hashes);
        let Session { weights, state, sampler, shortlist, .. } = self;
        score(src, weights, state, shortlist.as_mut(), positions, &mut Hashed { sink: sampler, hashes })
    }

    /// Begins an empty text with the token that begins every text.
    fn begin(&mut self) -> Result<(), Error> {
        if self.n_tokens == 0 {
            let vocabulary = self.tokenizer.vocabulary();
            let start = vocabulary.bos().or(vocabulary.eos()).ok_or(Error::EmptyPrompt)?;
            self.push(&[start])?;
        }
        Ok(())
    }

    /// Takes back the positions of guesses, and the choices that follow from them.
    fn forget_guesses(&mut self) {
        self.ready = 0..0;
        self.state.truncate(self.n_tokens);
    }

    /// Makes the next token and adds it to the text; `None` when the text has ended, for the reason that
    /// [`stop_reason`](Session::stop_reason) tells.
    ///
    /// Runs what is left of the prompt first, and after a slide ([`Overflow`]) what stays of the text. An empty text
    /// starts from the token that begins every text. A token costs one pass of all weights, which [`Header::bytes_per_token`] tells, or none if it was guessed
    /// ([`Options::lookup`]).
    ///
    /// # Errors
    /// The source failed → [`Error::Source`]; a logit is not finite → [`Error::Sampler`]; the text is empty and the
    /// vocabulary has no token to start from → [`Error::EmptyPrompt`].
    pub fn next<S: Source>(&mut self, src: &mut S) -> Result<Option<Token>, Error> {
        self.begin()?;
        let full = self.n_tokens == self.tokens.len();
        if self.left == 0 {
            self.stop.get_or_insert(StopReason::MaxTokens);
        } else if full && self.overflow == Overflow::Stop {
            self.stop.get_or_insert(StopReason::Context);
        }
        if self.stop.is_some() {
            return Ok(None);
        }
        if let Overflow::Slide { keep } = self.overflow
            && full
        {
            self.slide(keep);
        }
        if self.ready.is_empty() {
            self.look_ahead(src)?;
        }
        let choice = self.ready.start;
        let token = self.sampler.pick(choice)?;
        self.ready.start += 1;
        if let (Some(hash), Some(&of_choice)) = (&mut self.hash, self.hashes.get(choice)) {
            hash.update(of_choice);
        }
        if self.sampler.is_end(token) {
            self.forget_guesses();
            self.stop = Some(StopReason::EndOfText);
            return Ok(None);
        }
        if self.tokens.get(self.n_tokens).filter(|_| !self.ready.is_empty()) == Some(&token.0) {
            self.last += 1; // guessed right: its position is there, and so is the next choice
        } else {
            self.forget_guesses();
            self.tokens.get_mut(self.n_tokens).into_iter().for_each(|next| *next = token.0);
        }
        self.n_tokens += 1;
        self.made = self.made.saturating_add(1);
        self.left -= 1;
        Ok(Some(token))
    }

    /// Ends the text for a reason of the caller's.
    pub fn stop(&mut self, reason: StopReason) {
        self.stop = Some(reason);
    }

    /// Why [`next`](Session::next) gave no token.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.stop
    }

    /// The text so far, less what slides forgot.
    pub fn tokens(&self) -> impl ExactSizeIterator<Item = Token> {
        self.tokens.get(..self.n_tokens).unwrap_or_default().iter().copied().map(Token)
    }

    /// How many random numbers were drawn since the generator was started from its seed: one a token, none if greedy.
    pub fn draws(&self) -> u64 {
        self.sampler.draws()
    }

    /// Skips random numbers: a text, its seed and its draws are all it takes to go on with it elsewhere.
    pub fn skip_draws(&mut self, n: u64) {
        self.sampler.skip_draws(n);
    }

    /// What turns tokens into bytes.
    pub fn tokenizer(&self) -> &Tokenizer<'a> {
        &self.tokenizer
    }

    /// Starts or ends a hash over all logits from here on.
    pub fn hash_logits(&mut self, on: bool) {
        self.hash = on.then(LogitsHash::default);
    }

    /// The hash over all logits since it was started, if it was.
    pub fn logits_hash(&self) -> Option<LogitsHash> {
        self.hash
    }
}

/// Hands the logits of some positions of the last pass to a sink, each to a choice of its own, from one reading of the
/// head, or of the draft and the rows it leaves.
fn score<S: Source>(
    src: &mut S,
    weights: &Weights,
    state: &mut State,
    shortlist: Option<&mut Shortlist>,
    positions: Range<usize>,
    sink: &mut impl Sink,
) -> Result<(), Error> {
    let Some(shortlist) = shortlist else {
        return Ok(gpt2::logits(src, weights, state, positions, |choice, first, logits| {
            sink.push_after(first, choice, first as u32, logits);
        })?);
    };
    let choices = positions.len();
    shortlist.begin();
    gpt2::draft_logits(src, weights, state, positions, |choice, first, logits| {
        shortlist.push(first, choice, first as u32, logits);
    })?;
    if let Some((choice, token)) = shortlist.not_finite() {
        sink.refuse(choice, token);
    }
    shortlist.sort(choices);
    gpt2::rescore(src, weights, state, choices, shortlist.ids(choices), |choice, id, logit| {
        if let Some(n) = shortlist.rank(choice, id) {
            sink.push_after(n, choice, id, &[logit]);
        }
    })?;
    Ok(())
}

/// A sampler whose logits are hashed on their way, if they are to be.
struct Hashed<'s, 'a> {
    sink: &'s mut Sampler<'a>,
    hashes: Option<&'s mut [u64]>, // (choices)
}

impl Sink for Hashed<'_, '_> {
    fn push_after(&mut self, n: usize, choice: usize, first: u32, logits: &[f32]) {
        self.sink.push_after(n, choice, first, logits);
        if let Some(of_choice) = self.hashes.as_mut().and_then(|hashes| hashes.get_mut(choice)) {
            let mut hash = LogitsHash(if n == 0 { LogitsHash::default().0 } else { *of_choice });
            logits.iter().for_each(|logit| hash.update(u64::from(logit.to_bits())));
            *of_choice = hash.0;
        }
    }

    fn refuse(&mut self, choice: usize, token: Token) {
        self.sink.refuse(choice, token);
    }
}

/// No text can be made: what failed, and who can act.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// The card, flash or file failed: retry, reseat it, or give it a larger buffer.
    Source(source::Error),
    /// The file is not a GGUF file that can be read: pick another model, or copy it again.
    Gguf(gguf::Error),
    /// The file holds no GPT-2 model that can be run, or more is asked than it can do.
    Model(gpt2::Error),
    /// The vocabulary cannot be used, or the text cannot be encoded.
    Tokenizer(tokenizer::Error),
    /// No token can be chosen.
    Sampler(sampler::Error),
    /// The caller's memory is too small.
    Arena(TooSmall),
    /// The vocabulary has not as many tokens as the embedding has rows.
    VocabularySize {
        /// Tokens in the metadata.
        tokens: usize,
        /// Rows of the token embedding.
        rows: usize,
    },
    /// More tokens are to be chosen from than the head's first stage leaves.
    TopK {
        /// Tokens to choose from.
        top_k: usize,
        /// Tokens that are left.
        candidates: usize,
    },
    /// The prompt is empty, and the vocabulary has no token that begins a text.
    EmptyPrompt,
    /// So many tokens are to be kept that a full context has no room for new ones.
    NoRoomToSlide {
        /// Tokens to keep.
        keep: usize,
        /// Positions there are.
        context: usize,
    },
}

impl From<source::Error> for Error {
    fn from(error: source::Error) -> Self {
        Error::Source(error)
    }
}

impl From<gguf::Error> for Error {
    fn from(error: gguf::Error) -> Self {
        match error {
            gguf::Error::Source(error) => Error::Source(error),
            error => Error::Gguf(error),
        }
    }
}

impl From<gpt2::Error> for Error {
    fn from(error: gpt2::Error) -> Self {
        match error {
            gpt2::Error::Source(error) => Error::Source(error),
            gpt2::Error::Gguf(error) => error.into(),
            gpt2::Error::Arena(error) => Error::Arena(error),
            error => Error::Model(error),
        }
    }
}

impl From<tokenizer::Error> for Error {
    fn from(error: tokenizer::Error) -> Self {
        match error {
            tokenizer::Error::Gguf(error) => error.into(),
            tokenizer::Error::Memory(error) => Error::Arena(error),
            error => Error::Tokenizer(error),
        }
    }
}

impl From<sampler::Error> for Error {
    fn from(error: sampler::Error) -> Self {
        Error::Sampler(error)
    }
}

impl From<TooSmall> for Error {
    fn from(error: TooSmall) -> Self {
        Error::Arena(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Source(error) => error.fmt(f),
            Error::Gguf(error) => error.fmt(f),
            Error::Model(error) => error.fmt(f),
            Error::Tokenizer(error) => error.fmt(f),
            Error::Sampler(error) => error.fmt(f),
            Error::Arena(error) => error.fmt(f),
            Error::VocabularySize { tokens, rows } => {
                write!(
                    f,
                    "the vocabulary has {tokens} tokens, the token embedding {rows} rows: convert the model again"
                )
            }
            Error::NoRoomToSlide { keep, context } => write!(
                f,
                "{keep} tokens are to be kept of a context of {context}, which leaves no room for new ones: keep at \
                 most {}, or use a larger context",
                context.saturating_sub(2)
            ),
            Error::TopK { top_k, candidates } => write!(
                f,
                "top_k is {top_k}, and the first stage of the head leaves {candidates} candidates: use a top_k of at \
                 most {candidates}, 0 for all of them, or more candidates"
            ),
            Error::EmptyPrompt => f.write_str("the prompt is empty and the vocabulary has no token to start from"),
        }
    }
}

impl core::error::Error for Error {}
