//! Byte-level BPE straight from the GGUF file: text to tokens and back, with the strings left in the file.
//!
//! From the outside in: [`VocabularyBuilder`] gathers what the header says and [`Vocabulary`] is what survived the
//! checks. A [`Tokenizer`] keeps an index of it in RAM: 161,424 bytes for GPT-2's 50,257 tokens and 50,000 merges,
//! whose strings take 1.6 MB in the file. A text becomes tokens in three steps:
//!
//! ```text
//! "Hello  world"  ──split──▶  "Hello" " " " world"  ──merge──▶  H e l l o → He l l o → … → Hello  ──▶  15496
//! ```
//!
//! `split` cuts the text where GPT-2's expression does, `bpe` merges within a piece, and `index` finds the rank of a
//! pair: a few bits of a hash say which merges it may be, the file has the last word. Each byte of a text goes through
//! GPT-2's byte `alphabet` as itself, valid UTF-8 or not, so [`Tokenizer::decode`] gives back exactly what
//! [`Tokenizer::encode`] was given. On the way out, [`TextStream`] makes whole characters of token bytes and looks for
//! stop strings.
//!
//! What a file may not do, and what it may:
//! * Two tokens with the same text: texts are encoded to the first, or where the tokens stand in the order of the merges,
//!   to the one of the merge that made the text; the other still decodes.
//! * Two merges of the same pair: the first counts. Two merges that make one text: both count.
//! * Tokens in any order; where each merge's result does not follow the one before, two or four bytes a merge are
//!   kept to say where it is. A merge whose result is no normal token is an error.
//! * Normal tokens are written in the byte alphabet, anything else in one is an error. Control and user-defined
//!   tokens are plain text. Unknown, unused and byte tokens are never made, and decode to nothing.
//! * Where special tokens overlap in a text, the one that starts first counts, and the longest of those, as Hugging
//!   Face's tokenizers have it (llama.cpp cuts the longest out first, wherever it starts).
//! * A byte that no token stands for is an error when a text has it, not before.

mod alphabet;
mod bpe;
mod error;
mod index;
mod split;
mod text;
mod vocabulary;

use core::cmp::Reverse;
use core::fmt;
use core::num::NonZeroU64;

use crate::arena::{self, Arena, TooSmall};
use crate::gguf::{Array, Strings};
use crate::part::put;
use crate::sort::sort;
use crate::source::Source;
use bpe::Symbol;
pub use error::{Error, TextCause};
use index::{Hash, Index, Numbers, Places};
pub use text::{Flow, MAX_STOP, TextStream};
use vocabulary::{BATCH, Kind, merged, normal};
pub use vocabulary::{MAX_SPECIAL, MAX_TOKEN, Vocabulary, VocabularyBuilder};

/// A token's id: its place in the vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Token(pub u32);

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What to do with control tokens, such as `<|endoftext|>`.
///
/// User-defined tokens are recognised and written out either way, as their makers meant them to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Their names in a text are ordinary bytes, and they decode to nothing: for text that somebody else wrote.
    Ignore,
    /// Their names in a text become the tokens, which decode to their names.
    Recognise,
}

/// No token: the vocabulary has none for a byte, or the result of a merge was not found yet.
const NONE: u32 = u32::MAX;

/// Where the token that a merge makes is found.
#[derive(Debug)]
enum Results<'a> {
    /// In the order of the merges, from this one on.
    From(u32),
    /// In a list of one more than the token for each merge, 0 where there is none.
    Listed(Numbers<'a>), // (n_merges)
}

/// A control or user-defined token, to be found in texts: id, flags and length, low half of its text's hash.
type Special = [u32; 3];

/// In a [`Special`]'s second word, above the length: it is a control token.
const CONTROL: u32 = 1 << 31;

/// An index of a [`Vocabulary`], in the caller's memory: what it takes to encode and decode.
#[derive(Debug)]
pub struct Tokenizer<'a> {
    vocabulary: Vocabulary,
    byte_tokens: &'a [u32], // (256), NONE for a byte without token
    token_places: Places<'a>,
    special: &'a [Special], // (n_special), longest text first
    hidden: &'a [u32],      // (n_hidden), ascending
    merge_places: Places<'a>,
    index: Index<'a>,
    results: Results<'a>,
    longest_merge: usize, // bytes of the longest text that a merge makes
}

impl<'a> Tokenizer<'a> {
    /// Bytes of the arena that [`load`](Self::load) takes: 161,424 for GPT-2's vocabulary, 13 kB for one of 4,096.
    pub fn bytes(vocabulary: &Vocabulary) -> usize {
        let results = match vocabulary.base {
            Some(_) => 0,
            None => Numbers::bytes(vocabulary.n_merges() as usize, vocabulary.len()),
        };
        [
            arena::bytes_of::<u32>(256),
            Places::bytes(&vocabulary.tokens),
            arena::bytes_of::<Special>(vocabulary.n_special as usize),
            arena::bytes_of::<u32>(vocabulary.n_hidden as usize),
            Places::bytes(&vocabulary.merges),
            Index::bytes(vocabulary.n_merges()),
            results,
        ]
        .into_iter()
        .fold(0, usize::saturating_add)
    }

    /// Builds the index: reads the tokens once and the merges twice (2.7 MB in GPT-2's vocabulary), front to back.
    ///
    /// Where the tokens do not stand in the order of the merges, the tokens are read once more and each is looked up.
    ///
    /// # Errors
    /// The arena is too small → [`Error::Memory`]; a merge cannot be read → [`Error::MergeText`]; it makes no token
    /// → [`Error::NoResult`]; too many merges make one text → [`Error::Crowded`]; the device failed →
    /// [`Error::Gguf`].
    pub fn load<S: Source>(vocabulary: &Vocabulary, src: &mut S, arena: &mut Arena<'a>) -> Result<Self, Error> {
        let needed = arena.used().saturating_add(Self::bytes(vocabulary));
        if needed > arena.len() {
            return Err(TooSmall { needed, have: arena.len() }.into());
        }
        let n_merges = vocabulary.n_merges();
        let byte_tokens = arena.take(256)?;
        let mut token_places = Places::take(arena, &vocabulary.tokens)?;
        let special = arena.take(vocabulary.n_special as usize)?;
        let hidden = arena.take(vocabulary.n_hidden as usize)?;
        read_tokens(vocabulary, src, byte_tokens, &mut token_places, special, hidden)?;

        let mut merge_places = Places::take(arena, &vocabulary.merges)?;
        let mut index = Index::take(arena, n_merges)?;
        let mut longest_merge = 0;
        each_merge(&vocabulary.merges, src, |rank, at, hash, len| {
            merge_places.note(rank, at);
            longest_merge = longest_merge.max(len);
            if index.count(hash.get()) { Ok(()) } else { Err(Error::Crowded { rank }) }
        })?;
        index.seal();
        each_merge(&vocabulary.merges, src, |rank, _, hash, _| {
            index.place(hash.get(), rank);
            Ok(())
        })?;
        let results = match vocabulary.base {
            Some(base) => Results::From(base),
            None => {
                let mut list = Numbers::take(arena, n_merges as usize, vocabulary.len())?;
                find_results(vocabulary, src, &merge_places, &index, &mut list)?;
                Results::Listed(list)
            }
        };
        src.settle()?;
        let vocabulary = *vocabulary;
        Ok(Tokenizer {
            vocabulary,
            byte_tokens,
            token_places,
            special,
            hidden,
            merge_places,
            index,
            results,
            longest_merge,
        })
    }

    /// What the index was built from.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// Words of scratch that are enough for any text of `text_len` bytes: 4 a byte.
    ///
    /// Only the longest piece counts, so 4 words for each byte of the longest word are enough where it is known.
    pub const fn scratch_len(text_len: usize) -> usize {
        text_len.saturating_mul(bpe::WORDS)
    }

    /// Writes the tokens of `text` into `out` and says how many they are; adds none in front or behind.
    ///
    /// Takes `O(n log n)` steps for `n` bytes, whatever they are, and looks up at most 3 pairs a byte; each look-up of a
    /// merge that exists reads about 1 kB of the file, others mostly none.
    ///
    /// # Errors
    /// A byte has no token → [`Error::NoToken`]; a piece is too long for `scratch` → [`Error::Scratch`]; `out` is too
    /// short → [`Error::TooManyTokens`] with the number it needs; the device failed → [`Error::Gguf`].
    pub fn encode<S: Source>(
        &self,
        src: &mut S,
        text: &[u8],
        control: Control,
        scratch: &mut [u32],
        out: &mut [Token],
    ) -> Result<usize, Error> {
        let have = out.len();
        let mut needed = 0;
        self.encode_each(src, text, control, scratch, |token| {
            if let Some(slot) = out.get_mut(needed) {
                *slot = token;
            }
            needed += 1;
        })?;
        if needed > have { Err(Error::TooManyTokens { needed, have }) } else { Ok(needed) }
    }

    /// Shows the tokens of `text` one by one, as [`encode`](Self::encode) finds them.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), but for the length of `out`; tokens may have been shown by then.
    pub fn encode_each<S: Source>(
        &self,
        src: &mut S,
        text: &[u8],
        control: Control,
        scratch: &mut [u32],
        mut push: impl FnMut(Token),
    ) -> Result<(), Error> {
        let mut rest = text;
        loop {
            let special = self.find_special(src, rest, control)?;
            let at = special.map_or(rest.len(), |(at, ..)| at);
            let (plain, tail) = rest.split_at_checked(at).unwrap_or((rest, &[]));
            for piece in split::pieces(plain) {
                self.encode_piece(src, piece, scratch, &mut push)?;
            }
            let Some((_, len, token)) = special else { break };
            push(token);
            rest = tail.get(len..).unwrap_or_default();
        }
        Ok(src.settle()?)
    }

    fn encode_piece<S: Source>(
        &self,
        src: &mut S,
        piece: &[u8],
        scratch: &mut [u32],
        push: &mut impl FnMut(Token),
    ) -> Result<(), Error> {
        let needed = if piece.len() < NONE as usize { Self::scratch_len(piece.len()) } else { usize::MAX };
        if needed > scratch.len() {
            return Err(Error::Scratch { needed, have: scratch.len() });
        }
        let rank_of = |both: &[u8], left| self.rank(src, both, left);
        bpe::merge(piece, scratch, rank_of, |symbol| {
            let token = match symbol {
                Symbol::Byte(byte) => match self.byte_tokens.get(usize::from(byte)) {
                    Some(&token) if token != NONE => token,
                    _ => return Err(Error::NoToken { byte }),
                },
                Symbol::Merged(rank) => match &self.results {
                    Results::From(base) => base + rank,
                    Results::Listed(list) => list.get(rank as usize).saturating_sub(1),
                },
            };
            push(Token(token));
            Ok(())
        })
    }

    /// The rank of the merge of `both[..left]` and `both[left..]`.
    fn rank<S: Source>(&self, src: &mut S, both: &[u8], left: usize) -> Result<Option<u32>, Error> {
        if both.len() > self.longest_merge {
            return Ok(None);
        }
        let Some((left, right)) = both.split_at_checked(left) else { return Ok(None) };
        for rank in self.index.ranks(Hash::of(both)) {
            let text = self.merge_places.string(src, rank)?;
            let text = alphabet::strip(text, left).and_then(|text| text.strip_prefix(b" "));
            if text.and_then(|text| alphabet::strip(text, right)) == Some(&[]) {
                return Ok(Some(rank));
            }
        }
        Ok(None)
    }

    /// The first place of `text` that spells a special token, the longest one there: where, how long, which.
    ///
    /// A place takes no more steps than the longest special token has bytes, and one for each special token.
    fn find_special<S: Source>(
        &self,
        src: &mut S,
        text: &[u8],
        control: Control,
    ) -> Result<Option<(usize, usize, Token)>, Error> {
        let wanted = |special: &&Special| control == Control::Recognise || special[1] & CONTROL == 0;
        if !self.special.iter().any(|special| wanted(&special)) {
            return Ok(None);
        }
        for at in 0..text.len() {
            // Shortest first, so that each text's hash goes on from the one before.
            let (mut hash, mut hashed, mut found) = (Hash::new(), 0, None);
            for &[id, flags, expected] in self.special.iter().rev().filter(wanted) {
                let len = (flags & !CONTROL) as usize;
                let Some(here) = text.get(at..at.saturating_add(len)) else { break };
                here.iter().skip(hashed).for_each(|&byte| hash.push(byte));
                hashed = len;
                if len > 0 && hash.finish().get() as u32 == expected && self.token_places.string(src, id)? == here {
                    found = Some((at, len, Token(id)));
                }
            }
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Writes the bytes of `token` to the start of `out` and says how many they are.
    ///
    /// They may be a part of a character: [`TextStream`] joins them. Reads about 1 kB of the file.
    ///
    /// # Errors
    /// The vocabulary has no such token → [`Error::UnknownToken`]; `out` is too short, as none of
    /// [`Vocabulary::max_token_bytes`] is → [`Error::OutTooSmall`]; the device failed → [`Error::Gguf`].
    pub fn decode<S: Source>(
        &self,
        src: &mut S,
        token: Token,
        control: Control,
        out: &mut [u8],
    ) -> Result<usize, Error> {
        if token.0 >= self.vocabulary.len() {
            return Err(Error::UnknownToken { token, n_tokens: self.vocabulary.len() });
        }
        let special = self.special.iter().find(|special| special[0] == token.0);
        let is_control = special.is_some_and(|special| special[1] & CONTROL != 0);
        if is_control && control == Control::Ignore || self.hidden.binary_search(&token.0).is_ok() {
            return Ok(0);
        }
        let text = self.token_places.string(src, token.0)?;
        let have = out.len();
        if special.is_some() {
            out.get_mut(..text.len()).ok_or(Error::OutTooSmall { have })?.copy_from_slice(text);
            let len = text.len();
            src.settle()?;
            return Ok(len);
        }
        let mut len = 0;
        for byte in alphabet::bytes(text) {
            let byte = byte.ok_or(Error::TokenText { token, cause: TextCause::Outside })?;
            *out.get_mut(len).ok_or(Error::OutTooSmall { have })? = byte;
            len += 1;
        }
        src.settle()?;
        Ok(len)
    }
}

/// Shows each merge: its rank, where its text lies, the hash and the length of the bytes it makes.
fn each_merge<S: Source>(
    merges: &Array,
    src: &mut S,
    mut show: impl FnMut(u32, u64, NonZeroU64, usize) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut strings = Strings::new(src, merges);
    for rank in 0..merges.n as u32 {
        let at = strings.at();
        let Some(text) = strings.next()? else { break };
        let (hash, len) = merged(rank, text)?;
        show(rank, at, hash, len)?;
    }
    Ok(())
}

/// Reads the tokens once, and notes all that is kept of them.
fn read_tokens<S: Source>(
    vocabulary: &Vocabulary,
    src: &mut S,
    byte_tokens: &mut [u32],
    places: &mut Places<'_>,
    special: &mut [Special],
    hidden: &mut [u32],
) -> Result<(), Error> {
    byte_tokens.fill(NONE);
    let mut special_slots = special.iter_mut();
    let mut hidden_slots = hidden.iter_mut();
    let mut at = vocabulary.tokens.span.at;
    for start in (0..vocabulary.len()).step_by(BATCH) {
        at = vocabulary.batch(src, start, at, &mut |token, kind, at, text| {
            places.note(token.0, at);
            match kind {
                Kind::Normal => {
                    let mut bytes = alphabet::bytes(text);
                    if let (Some(Some(byte)), None) = (bytes.next(), bytes.next())
                        && let Some(slot) = byte_tokens.get_mut(usize::from(byte)).filter(|slot| **slot == NONE)
                    {
                        *slot = token.0;
                    }
                }
                Kind::Control | Kind::UserDefined => {
                    let flag = if kind == Kind::Control { CONTROL } else { 0 };
                    if let Some(slot) = special_slots.next() {
                        *slot = [token.0, text.len() as u32 | flag, Hash::of(text) as u32];
                    }
                }
                Kind::Hidden => {
                    if let Some(slot) = hidden_slots.next() {
                        *slot = token.0;
                    }
                }
            }
            Ok(())
        })?;
    }
    let key = |[id, flags, _]: [u32; 3]| (Reverse(flags & !CONTROL), id);
    sort(special, |a, b| key(a) < key(b));
    Ok(())
}

/// Looks each token up among the texts that merges make; every merge must end up with a token.
///
/// All merges that make a token's text share its hash, so they are the ones the index gives for it. It gives a wrong one
/// for every eighth token or so; a file made to have more than one for each is refused, as each is read.
fn find_results<S: Source>(
    vocabulary: &Vocabulary,
    src: &mut S,
    places: &Places<'_>,
    index: &Index<'_>,
    list: &mut Numbers<'_>,
) -> Result<(), Error> {
    let mut at = vocabulary.tokens.span.at;
    let mut wrong = 0;
    for start in (0..vocabulary.len()).step_by(BATCH) {
        let mut hashes = [None; BATCH];
        at = vocabulary.batch(src, start, at, &mut |token, kind, _, text| {
            if kind == Kind::Normal {
                put(&mut hashes, (token.0 - start) as usize, Some(normal(token, text)?.0));
            }
            Ok(())
        })?;
        for (token, &hash) in (start..).zip(&hashes) {
            let Some(hash) = hash else { continue };
            for rank in index.ranks(hash.get()) {
                if list.get(rank as usize) > 0 {
                    continue;
                }
                if merged(rank, places.string(src, rank)?)?.0 == hash {
                    list.set(rank as usize, token + 1);
                } else {
                    wrong += 1;
                }
                if wrong > vocabulary.len() {
                    return Err(Error::Crowded { rank });
                }
            }
        }
    }
    match (0..vocabulary.n_merges()).find(|&rank| list.get(rank as usize) == 0) {
        Some(rank) => Err(Error::NoResult { rank }),
        None => Ok(()),
    }
}
