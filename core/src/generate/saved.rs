//! A session as bytes: saved before a reset, restored after it, the text goes on as if nothing had happened.
//!
//! Everything is little-endian. The head comes first, with its own checksum, so that all that can be refused by what
//! it says is refused before the session is touched; then the body, and the checksum of the body.
//!
//! ```text
//! byte 0       8         12    16      24        ...      176      184
//!      ┌───────┬─────────┬─────┬───────┬─────────┬────────┬────────┐
//!      │ magic │ version │ kv  │ model │ context │ ...    │ CRC-64 │     head: see the ranges below
//!      └───────┴─────────┴─────┴───────┴─────────┴────────┴────────┘
//!      ┌─────────────────┬─────────────────────────────────┬────────┐
//!      │ tokens: n × u32 │ positions × layers × (key, val) │ CRC-64 │    body
//!      └─────────────────┴─────────────────────────────────┴────────┘
//! ```
//!
//! Keys and values stand as the cache stores them, position by position, and only those of positions in use. The last
//! token's are left out: a pass computes them again, with the logits that follow from it.

use core::fmt;
use core::ops::Range;

use crc::{CRC_64_XZ, Crc, Digest};

use super::{Error, LogitsHash, Model, Options, Overflow, Session, StopReason};
use crate::arena::TooSmall;
use crate::gpt2::{self, KvFormat};
#[cfg(feature = "torch")]
use crate::sampler::Sampler;
use crate::sampler::{Generator, Params};
use crate::source::{self, Source};

const MAGIC_BYTES: [u8; 8] = *b"gptrickl";
/// The version that is written, and the only one that is read.
pub const SAVED_VERSION: u32 = 2;

const MAGIC: Range<usize> = 0..8;
const VERSION: Range<usize> = 8..12;
const KV: Range<usize> = 12..16; // index in KV_FORMATS
const MODEL: Range<usize> = 16..24; // fingerprint
const CONTEXT: Range<usize> = 24..32; // positions of the KV cache
const TOKENS: Range<usize> = 32..40; // how many
const POSITIONS: Range<usize> = 40..48; // of which keys and values are saved
const LEFT: Range<usize> = 48..56; // tokens that may still be made, NONE if any number
const KEEP: Range<usize> = 56..64; // tokens that a slide keeps, NONE if there is none
const SEED: Range<usize> = 64..72;
const DRAWS: Range<usize> = 72..80;
const HASH: Range<usize> = 80..88;
const FLAGS: Range<usize> = 88..92;
const TEMPERATURE: Range<usize> = 92..96;
const TOP_P: Range<usize> = 96..100;
const MIN_P: Range<usize> = 100..104;
const REPETITION_PENALTY: Range<usize> = 104..108;
const GENERATOR: Range<usize> = 108..112; // index in GENERATORS
const TOP_K: Range<usize> = 112..120;
const REPETITION_WINDOW: Range<usize> = 120..128; // NONE if it is the whole text
const TYPICAL_P: Range<usize> = 128..132;
const EPSILON_CUTOFF: Range<usize> = 132..136;
const ETA_CUTOFF: Range<usize> = 136..140;
const ZERO: Range<usize> = 140..144;
const NO_REPEAT_NGRAM_SIZE: Range<usize> = 144..152;
const MIN_LENGTH: Range<usize> = 152..160;
const MIN_NEW_TOKENS: Range<usize> = 160..168;
const MADE: Range<usize> = 168..176; // tokens since the last one that was given
const HEAD_CRC: Range<usize> = 176..184;
const HEAD_BYTES: usize = 184;
const CRC_BYTES: usize = 8;

/// Places in the weights that a fingerprint looks at, and how many bytes at each.
const SAMPLES: u64 = 256;
const SAMPLE_BYTES: u64 = 64;

const NONE: u64 = u64::MAX;
/// A hash over all logits is running.
const HASHED: u32 = 1;
/// The model ended the text.
const ENDED: u32 = 2;
const KV_FORMATS: [KvFormat; 4] = [KvFormat::F32, KvFormat::F16, KvFormat::Q8_0, KvFormat::Q4_0];
const GENERATORS: &[Generator] = &[
    Generator::Pcg,
    #[cfg(feature = "torch")]
    Generator::Torch,
];

/// The checksum of `.xz` files; a table of 2 KiB.
static CRC: Crc<u64> = Crc::<u64>::new(&CRC_64_XZ);

/// Which model a session belongs to; see [`Model::fingerprint`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(u64);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Model {
    /// What tells this model from others: a checksum of where the weights end, of the whole header (shape, vocabulary,
    /// names, formats and places of all tensors), and of 64 bytes at each of 256 places spread over the weights.
    ///
    /// Reads the header once, about 1.5 MB for GPT-2's vocabulary, and 16 KiB of weights: another training changes all
    /// of them. Files that differ in a few other weights alone have the same fingerprint.
    ///
    /// # Errors
    /// The source failed → [`Error::Source`].
    pub fn fingerprint<S: Source>(&self, src: &mut S) -> Result<Fingerprint, Error> {
        fn take<S: Source>(src: &mut S, digest: &mut Digest<'_, u64>, span: Range<u64>) -> Result<(), source::Error> {
            let mut at = span.start;
            while at < span.end {
                let len = (span.end - at).min(src.max_chunk().clamp(1, 1 << 15) as u64);
                digest.update(src.chunk(at, len as usize)?);
                at += len;
            }
            Ok(())
        }
        let mut digest = CRC.digest();
        digest.update(&self.file.end.to_le_bytes());
        take(src, &mut digest, 0..self.file.data_at)?;
        let data = self.file.data_at..self.file.end;
        for i in 0..SAMPLES {
            let at = data.start + (data.end - data.start) / SAMPLES * i;
            take(src, &mut digest, at..data.end.min(at + SAMPLE_BYTES))?;
        }
        src.settle()?;
        Ok(Fingerprint(digest.finalize()))
    }
}

/// The head of a saved session, checked: its counts fit its context, its controls are in range.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Saved {
    kv: KvFormat,
    context: usize,
    n_tokens: usize,
    made: usize,
    positions: usize,
    left: usize,
    overflow: Overflow,
    sampling: Params<'static>,
    seed: u64,
    draws: u64,
    ended: bool,
    hash: Option<LogitsHash>,
}

impl Saved {
    /// Reads and checks the head of a session that was saved with the model at hand.
    ///
    /// `read` fills a part of what it is given and says how much, 0 at the end; it starts where
    /// [`save`](Session::save)'s sink started, and goes on in [`Session::restore`].
    ///
    /// # Errors
    /// The reader failed → [`RestoreError::Read`]; the bytes end early → [`RestoreError::Truncated`]; they are no saved
    /// session → [`RestoreError::Magic`], or one of another version → [`RestoreError::Version`]; they are damaged →
    /// [`RestoreError::Checksum`]; the session is another model's → [`RestoreError::Model`]; the checksum is right and
    /// a number cannot be → [`RestoreError::Invalid`].
    pub fn open<E>(
        model: Fingerprint,
        read: &mut impl FnMut(&mut [u8]) -> Result<usize, E>,
    ) -> Result<Saved, RestoreError<E>> {
        let mut head = [0; HEAD_BYTES];
        // The magic alone tells what a short file is not.
        fill(read, &mut head[MAGIC])?;
        if head[MAGIC] != MAGIC_BYTES {
            return Err(RestoreError::Magic);
        }
        fill(read, &mut head[MAGIC.end..])?;
        let u32_at = |at: Range<usize>| head[at].first_chunk().map_or(0, |&bytes| u32::from_le_bytes(bytes));
        let u64_at = |at: Range<usize>| head[at].first_chunk().map_or(0, |&bytes| u64::from_le_bytes(bytes));
        let f32_at = |at| f32::from_bits(u32_at(at));
        // Another version may have its checksum elsewhere.
        if u32_at(VERSION) != SAVED_VERSION {
            return Err(RestoreError::Version { found: u32_at(VERSION) });
        }
        if u64_at(HEAD_CRC) != CRC.checksum(&head[..HEAD_CRC.start]) {
            return Err(RestoreError::Checksum);
        }
        let saved = Fingerprint(u64_at(MODEL));
        if saved != model {
            return Err(RestoreError::Model { saved, here: model });
        }
        let size = |at| usize::try_from(u64_at(at)).map_err(|_| RestoreError::Invalid);
        let optional = |at: Range<usize>| if u64_at(at.clone()) == NONE { Ok(None) } else { size(at).map(Some) };
        let flags = u32_at(FLAGS);
        let saved = Saved {
            kv: *KV_FORMATS.get(u32_at(KV) as usize).ok_or(RestoreError::Invalid)?,
            context: size(CONTEXT)?,
            n_tokens: size(TOKENS)?,
            made: size(MADE)?,
            positions: size(POSITIONS)?,
            left: optional(LEFT)?.unwrap_or(usize::MAX),
            overflow: optional(KEEP)?.map_or(Overflow::Stop, |keep| Overflow::Slide { keep }),
            sampling: Params {
                temperature: f32_at(TEMPERATURE),
                top_k: size(TOP_K)?,
                top_p: f32_at(TOP_P),
                min_p: f32_at(MIN_P),
                repetition_penalty: f32_at(REPETITION_PENALTY),
                repetition_window: optional(REPETITION_WINDOW)?.unwrap_or(usize::MAX),
                typical_p: f32_at(TYPICAL_P),
                epsilon_cutoff: f32_at(EPSILON_CUTOFF),
                eta_cutoff: f32_at(ETA_CUTOFF),
                no_repeat_ngram_size: size(NO_REPEAT_NGRAM_SIZE)?,
                min_length: size(MIN_LENGTH)?,
                min_new_tokens: size(MIN_NEW_TOKENS)?,
                generator: *GENERATORS.get(u32_at(GENERATOR) as usize).ok_or(RestoreError::Invalid)?,
                ..Params::default()
            },
            seed: u64_at(SEED),
            draws: u64_at(DRAWS),
            ended: flags & ENDED != 0,
            hash: (flags & HASHED != 0).then_some(LogitsHash(u64_at(HASH))),
        };
        let slides = match saved.overflow {
            Overflow::Stop => true,
            Overflow::Slide { keep } => keep.saturating_add(2) <= saved.context,
        };
        // The last token's logits come from a pass that is still to be made.
        let counts = saved.n_tokens <= saved.context && saved.positions <= saved.n_tokens.saturating_sub(1);
        if !counts || !slides || saved.sampling.check().is_err() || flags > (HASHED | ENDED) || u32_at(ZERO) != 0 {
            return Err(RestoreError::Invalid);
        }
        Ok(saved)
    }

    /// The options of a session that can take it in; batch and lookup are free to choose, and so are bad words and what
    /// ends a text, which are not saved.
    pub fn options(&self, batch: usize) -> Options<'static> {
        let state = gpt2::Options { context: self.context, batch, kv: self.kv, ..Default::default() };
        Options { state, sampling: self.sampling, seed: self.seed, ..Options::default() }
    }
}

impl Session<'_> {
    /// The bytes that [`save`](Session::save) will hand on.
    pub fn saved_bytes(&self) -> usize {
        let rows = self.saved_positions() * self.state.position_bytes();
        HEAD_BYTES + self.n_tokens * size_of::<u32>() + rows + CRC_BYTES
    }

    /// The last token's keys and values are left out: its logits are needed again, and come from the same pass.
    fn saved_positions(&self) -> usize {
        self.state.len().min(self.n_tokens.saturating_sub(1))
    }

    /// Hands on text, keys and values, generator, controls and limits as bytes: [`Saved`] tells how they are read.
    ///
    /// `model` is [`Model::fingerprint`]; pieces have at most 256 bytes, and only positions in use are among them. A
    /// stop string that was met and an interruption are not kept, the text can go on after them; nor are bad words and
    /// other ends of a text than the file's, which are to be given again: see [`Session::restore`].
    ///
    /// # Errors
    /// The sink's own; the session is as it was.
    pub fn save<E>(&self, model: Fingerprint, sink: &mut impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let params = self.sampler.params();
        let generator = GENERATORS.iter().position(|&generator| generator == params.generator).unwrap_or(0);
        let hash = self.hash.unwrap_or_default().0;
        let kv = KV_FORMATS.iter().position(|&format| format == self.state.kv_format()).unwrap_or(0);
        let mut flags = if self.hash.is_some() { HASHED } else { 0 };
        if self.stop == Some(StopReason::EndOfText) {
            flags |= ENDED;
        }
        let keep = match self.overflow {
            Overflow::Stop => NONE,
            Overflow::Slide { keep } => keep as u64,
        };
        let mut head = [0; HEAD_BYTES];
        head[MAGIC].copy_from_slice(&MAGIC_BYTES);
        for (at, value) in [
            (VERSION, SAVED_VERSION),
            (KV, kv as u32),
            (FLAGS, flags),
            (TEMPERATURE, params.temperature.to_bits()),
            (TOP_P, params.top_p.to_bits()),
            (MIN_P, params.min_p.to_bits()),
            (REPETITION_PENALTY, params.repetition_penalty.to_bits()),
            (GENERATOR, generator as u32),
            (TYPICAL_P, params.typical_p.to_bits()),
            (EPSILON_CUTOFF, params.epsilon_cutoff.to_bits()),
            (ETA_CUTOFF, params.eta_cutoff.to_bits()),
        ] {
            head[at].copy_from_slice(&value.to_le_bytes());
        }
        for (at, value) in [
            (MODEL, model.0),
            (CONTEXT, self.tokens.len() as u64),
            (TOKENS, self.n_tokens as u64),
            (POSITIONS, self.saved_positions() as u64),
            (LEFT, if self.left == usize::MAX { NONE } else { self.left as u64 }),
            (KEEP, keep),
            (SEED, self.sampler.seed()),
            (DRAWS, self.sampler.draws()),
            (HASH, hash),
            (TOP_K, params.top_k as u64),
            (
                REPETITION_WINDOW,
                if params.repetition_window == usize::MAX { NONE } else { params.repetition_window as u64 },
            ),
            (NO_REPEAT_NGRAM_SIZE, params.no_repeat_ngram_size as u64),
            (MIN_LENGTH, params.min_length as u64),
            (MIN_NEW_TOKENS, params.min_new_tokens as u64),
            (MADE, self.made as u64),
        ] {
            head[at].copy_from_slice(&value.to_le_bytes());
        }
        let crc = CRC.checksum(&head[..HEAD_CRC.start]);
        head[HEAD_CRC].copy_from_slice(&crc.to_le_bytes());
        sink(&head)?;

        let mut out = Pieces { sink, digest: CRC.digest(), piece: [0; PIECE], n: 0 };
        for token in &self.tokens[..self.n_tokens] {
            out.put(&token.to_le_bytes())?;
        }
        self.state.save(self.saved_positions(), &mut |bytes| out.put(bytes))?;
        out.finish()
    }

    /// Goes on where a session was saved: with its text, keys and values, generator, controls and limits.
    ///
    /// `read` stands behind the head, where [`Saved::open`] left it, and bytes behind the session are not read. The
    /// session must be of the model whose fingerprint was given there.
    /// [`Params::bad_words_ids`] and [`Params::eos_token_id`] are not saved: the session keeps its own.
    ///
    /// # Errors
    /// The context differs → [`RestoreError::Context`], or the format of keys and values → [`RestoreError::Kv`]; it drew
    /// more random numbers than can be drawn again → [`RestoreError::Draws`]; the controls need more memory than was planned
    /// → [`RestoreError::Memory`]; after these the session is as it was.
    /// The reader failed → [`RestoreError::Read`]; the bytes end early → [`RestoreError::Truncated`]; they are damaged
    /// → [`RestoreError::Checksum`]; a token is not in the vocabulary → [`RestoreError::Invalid`]; after these it is
    /// empty, as after a [`restart`](Session::restart) with the controls and the seed it had.
    pub fn restore<E>(
        &mut self,
        saved: &Saved,
        read: &mut impl FnMut(&mut [u8]) -> Result<usize, E>,
    ) -> Result<(), RestoreError<E>> {
        let (context, kv) = (self.tokens.len(), self.state.kv_format());
        if saved.context != context {
            return Err(RestoreError::Context { saved: saved.context, here: context });
        }
        if saved.kv != kv {
            return Err(RestoreError::Kv { saved: saved.kv, here: kv });
        }
        #[cfg(feature = "torch")]
        if !Sampler::reaches(&saved.sampling, saved.draws, self.n_vocab) {
            return Err(RestoreError::Draws { draws: saved.draws });
        }
        let had = (self.sampler.params(), self.sampler.seed());
        let n_logits = match super::check_top_k(&saved.sampling, self.head, self.n_vocab) {
            Ok(()) => self.head.candidates(self.n_vocab),
            Err(_) => self.n_vocab, // more candidates than there is room for
        };
        let sampling =
            Params { bad_words_ids: had.0.bad_words_ids, eos_token_id: had.0.eos_token_id, ..saved.sampling };
        self.sampler.set(sampling, saved.seed, n_logits, context)?;
        if let Err(error) = self.restore_body(saved, read) {
            // It held these before, so there is room for them.
            let _ = self.restart(had.0, had.1);
            return Err(error);
        }
        self.sampler.skip_draws(saved.draws);
        (self.n_tokens, self.made) = (saved.n_tokens, saved.made);
        self.ready = 0..0;
        (self.left, self.overflow, self.hash) = (saved.left, saved.overflow, saved.hash);
        self.stop = saved.ended.then_some(StopReason::EndOfText);
        Ok(())
    }

    fn restore_body<E>(
        &mut self,
        saved: &Saved,
        read: &mut impl FnMut(&mut [u8]) -> Result<usize, E>,
    ) -> Result<(), RestoreError<E>> {
        let mut digest = CRC.digest();
        let mut take = |bytes: &mut [u8]| -> Result<(), RestoreError<E>> {
            fill(read, bytes)?;
            digest.update(bytes);
            Ok(())
        };
        for token in &mut self.tokens[..saved.n_tokens] {
            let mut bytes = [0; size_of::<u32>()];
            take(&mut bytes)?;
            *token = u32::from_le_bytes(bytes);
        }
        self.state.restore(saved.positions, &mut take)?;
        let mut crc = [0; CRC_BYTES];
        fill(read, &mut crc)?;
        if digest.finalize() != u64::from_le_bytes(crc) {
            return Err(RestoreError::Checksum);
        }
        if self.tokens[..saved.n_tokens].iter().any(|&token| token as usize >= self.n_vocab) {
            return Err(RestoreError::Invalid);
        }
        Ok(())
    }
}

/// Reads until `bytes` is full.
fn fill<E>(read: &mut impl FnMut(&mut [u8]) -> Result<usize, E>, mut bytes: &mut [u8]) -> Result<(), RestoreError<E>> {
    while !bytes.is_empty() {
        match read(bytes).map_err(RestoreError::Read)? {
            0 => return Err(RestoreError::Truncated),
            n => bytes = core::mem::take(&mut bytes).get_mut(n..).unwrap_or_default(),
        }
    }
    Ok(())
}

/// The longest piece of a body that a sink is given.
const PIECE: usize = 256;

/// Gathers what is written into pieces, and their checksum.
struct Pieces<'a, F> {
    sink: &'a mut F,
    digest: Digest<'static, u64>,
    piece: [u8; PIECE],
    n: usize,
}

impl<F> Pieces<'_, F> {
    fn put<E>(&mut self, mut bytes: &[u8]) -> Result<(), E>
    where
        F: FnMut(&[u8]) -> Result<(), E>,
    {
        while !bytes.is_empty() {
            let n = bytes.len().min(PIECE - self.n);
            self.piece[self.n..self.n + n].copy_from_slice(&bytes[..n]);
            (self.n, bytes) = (self.n + n, &bytes[n..]);
            if self.n == PIECE {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush<E>(&mut self) -> Result<(), E>
    where
        F: FnMut(&[u8]) -> Result<(), E>,
    {
        let piece = &self.piece[..self.n];
        self.n = 0;
        self.digest.update(piece);
        (self.sink)(piece)
    }

    fn finish<E>(mut self) -> Result<(), E>
    where
        F: FnMut(&[u8]) -> Result<(), E>,
    {
        if self.n > 0 {
            self.flush()?;
        }
        (self.sink)(&self.digest.finalize().to_le_bytes())
    }
}

/// A saved session is refused: what is wrong with it, and who can act.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum RestoreError<E> {
    /// The reader failed, for its own reason.
    Read(E),
    /// The bytes end early: the save was not finished, or not all of it was kept.
    Truncated,
    /// The bytes are no saved session.
    Magic,
    /// The session was saved by another version of this program.
    Version {
        /// The version it has; [`SAVED_VERSION`] is read.
        found: u32,
    },
    /// The bytes are not those that were saved.
    Checksum,
    /// The checksum is right, but not what it covers: no session writes such a number.
    Invalid,
    /// The session was saved with another model.
    Model {
        /// That model.
        saved: Fingerprint,
        /// The one at hand.
        here: Fingerprint,
    },
    /// The session was saved with another context.
    Context {
        /// Its positions.
        saved: usize,
        /// Positions here.
        here: usize,
    },
    /// The session was saved with another format of keys and values.
    Kv {
        /// That format.
        saved: KvFormat,
        /// The one here.
        here: KvFormat,
    },
    /// PyTorch's generator drew for so many tokens that to draw again would take minutes, or the number is made up.
    Draws {
        /// Tokens it drew for.
        draws: u64,
    },
    /// Its controls need more memory than was planned here: plan with [`Saved::options`].
    Memory(TooSmall),
}

impl<E> From<TooSmall> for RestoreError<E> {
    fn from(error: TooSmall) -> Self {
        RestoreError::Memory(error)
    }
}

impl<E: fmt::Display> fmt::Display for RestoreError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RestoreError::Read(error) => write!(f, "cannot read the saved session: {error}"),
            RestoreError::Truncated => f.write_str("the saved session ends early: it was not saved or kept whole"),
            RestoreError::Magic => f.write_str("this is no saved session"),
            RestoreError::Version { found } => write!(
                f,
                "the session was saved in version {found}, this program reads {SAVED_VERSION}: use the program that \
                 saved it"
            ),
            RestoreError::Checksum => f.write_str("the saved session is damaged: its checksum is wrong"),
            RestoreError::Invalid => f.write_str("the saved session holds numbers that no session has"),
            RestoreError::Model { saved, here } => write!(
                f,
                "the session was saved with another model (fingerprint {saved}, this one has {here}): use that model"
            ),
            RestoreError::Context { saved, here } => {
                write!(f, "the session was saved with a context of {saved}, not {here}: use that context")
            }
            RestoreError::Kv { saved, here } => write!(
                f,
                "the session was saved with keys and values in {}, not {}: use that format",
                saved.name(),
                here.name()
            ),
            RestoreError::Draws { draws } => write!(
                f,
                "the session drew {draws} tokens with PyTorch's generator, too many to draw again: start a new text, or \
                 use the other generator"
            ),
            RestoreError::Memory(error) => error.fmt(f),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> core::error::Error for RestoreError<E> {}
