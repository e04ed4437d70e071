//! What the header says of the vocabulary, checked; the strings stay in the file.

use core::num::NonZeroU64;

use super::index::Hash;
use super::{Error, TextCause, Token, alphabet};
use crate::gguf::{Array, ElementType, Name, Span, Strings, Value, Words};
use crate::part::put;
use crate::source::Source;

/// The longest token and the longest text that a merge makes, in bytes; GPT-2's longest has 128.
pub const MAX_TOKEN: usize = 1024;

/// Most control and user-defined tokens, all of which a text is searched for.
pub const MAX_SPECIAL: usize = 1024;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";
const EOT: &str = "tokenizer.ggml.eot_token_id";
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const KEYS: [&str; 9] = [MODEL, PRE, TOKENS, TYPES, MERGES, BOS, EOS, EOT, ADD_BOS];

/// Tokens read at a time, before the source is asked for something that lies elsewhere: in GPT-2's vocabulary most
/// batches fit the header's window of 4 KiB. Their hashes take 8 bytes of stack each.
pub(crate) const BATCH: usize = 240;

/// What is done with a token of a batch: its kind, its offset and its text in the file are known.
type Show<'a> = dyn FnMut(Token, Kind, u64, &[u8]) -> Result<(), Error> + 'a;

/// What a token's type says of its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Bytes, written in the alphabet.
    Normal,
    /// A mark such as `<|endoftext|>`: plain text that is no part of what was written.
    Control,
    /// Plain text that is always one token.
    UserDefined,
    /// Unknown, unused or a byte of another kind of vocabulary: never made and never written out.
    Hidden,
}

/// Gathers what the header says of the vocabulary while [`gguf::open`](crate::gguf::open) shows its entries.
///
/// ```no_run
/// use gptrickle_core::{gguf, tokenizer::{self, VocabularyBuilder}};
/// # let file: Vec<u8> = Vec::new();
/// let mut src = &file[..];
/// let mut builder = VocabularyBuilder::new();
/// gguf::open(&mut src, |key, value| builder.note(key, value))?;
/// let vocabulary = builder.finish(&mut src)?;
/// # Ok::<(), tokenizer::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct VocabularyBuilder {
    values: [Option<Value>; KEYS.len()], // one for each of KEYS
}

impl VocabularyBuilder {
    /// Has seen no entry yet.
    pub fn new() -> Self {
        VocabularyBuilder::default()
    }

    /// Remembers an entry if it is about the vocabulary.
    ///
    /// # Errors
    /// The key was seen before → [`gguf::Error::DuplicateKey`](crate::gguf::Error::DuplicateKey).
    pub fn note(&mut self, key: &Name, value: &Value) -> Result<(), Error> {
        let known = KEYS.iter().position(|k| key.is(k));
        match known {
            Some(i) if self.values[i].replace(*value).is_some() => {
                Err(crate::gguf::Error::DuplicateKey { key: *key }.into())
            }
            _ => Ok(()),
        }
    }

    /// The entry of this key, as `read` has it; `None` if the file lacks it.
    fn get<T>(&self, key: &'static str, read: impl Fn(Value) -> Option<T>) -> Result<Option<T>, Error> {
        let value = KEYS.iter().zip(&self.values).find(|&(&k, _)| k == key).and_then(|(_, &value)| value);
        value.map(|value| read(value).ok_or(Error::WrongType { key, value })).transpose()
    }

    fn name<S: Source>(&self, key: &'static str, src: &mut S) -> Result<Option<Name>, Error> {
        let span = self.get(key, |value| match value {
            Value::String(span) => Some(span),
            _ => None,
        })?;
        Ok(span.map(|span: Span| span.name(src)).transpose()?)
    }

    fn strings(&self, key: &'static str) -> Result<Array, Error> {
        let array = self.get(key, |value| match value {
            Value::Array(array) if array.element.id == ElementType::STRING => Some(array),
            _ => None,
        })?;
        let array = array.ok_or(Error::Missing { key })?;
        if array.span.len > u32::MAX.into() {
            return Err(Error::ArrayTooLong { key, bytes: array.span.len });
        }
        Ok(array)
    }

    fn token(&self, key: &'static str, n_tokens: u32) -> Result<Option<Token>, Error> {
        let id = self.get(key, |value| value.as_u64())?;
        let token = |id| u32::try_from(id).ok().filter(|&id| id < n_tokens).map(Token);
        id.map(|id| token(id).ok_or(Error::SpecialId { key, id, n_tokens })).transpose()
    }

    /// Checks what was gathered, and reads tokens, types and merges once (1.9 MB in GPT-2's vocabulary).
    ///
    /// Keeps the hashes of a batch of tokens on the stack, 2 kB.
    ///
    /// # Errors
    /// The file lacks the model, tokens or merges, or the id of a token it wants in front of texts →
    /// [`Error::Missing`]; a value of another type → [`Error::WrongType`]; another kind of vocabulary →
    /// [`Error::Model`]; another way of splitting → [`Error::Pre`]; arrays that do not fit →
    /// [`Error::ArrayTooLong`], [`Error::TypesLength`]; an id that is no token's → [`Error::SpecialId`]; a token
    /// that cannot be read → [`Error::TokenType`], [`Error::TokenText`], [`Error::TooManySpecial`]; a merge that
    /// cannot be read → [`Error::MergeText`] (for some, only when the tokenizer is loaded); the device failed →
    /// [`Error::Gguf`].
    pub fn finish<S: Source>(self, src: &mut S) -> Result<Vocabulary, Error> {
        let model = self.name(MODEL, src)?.ok_or(Error::Missing { key: MODEL })?;
        if !model.is("gpt2") {
            return Err(Error::Model { found: model });
        }
        // Files older than this key are split as GPT-2 does. llama.cpp's "default" splits digits and punctuation
        // otherwise, and so does every other name.
        match self.name(PRE, src)? {
            Some(found) if !found.is("gpt-2") => return Err(Error::Pre { found }),
            _ => {}
        }
        let tokens = self.strings(TOKENS)?;
        let merges = self.strings(MERGES)?;
        let types = self.get(TYPES, |value| match value {
            Value::Array(array) if matches!(array.element.id, ElementType::I32 | ElementType::U32) => Some(array),
            _ => None,
        })?;
        if let Some(types) = types.filter(|types| types.n != tokens.n) {
            return Err(Error::TypesLength { types: types.n, tokens: tokens.n });
        }
        let n_tokens = tokens.n as u32; // each takes 8 of its array's bytes, which are under 4 GiB
        let add_bos = self.get(ADD_BOS, |value| match value {
            Value::Bool(add) => Some(add),
            _ => None,
        })?;
        let mut vocabulary = Vocabulary {
            tokens,
            merges,
            types,
            bos: self.token(BOS, n_tokens)?,
            eos: self.token(EOS, n_tokens)?,
            eot: self.token(EOT, n_tokens)?,
            add_bos: add_bos.unwrap_or(false),
            n_special: 0,
            n_hidden: 0,
            max_token_bytes: 0,
            base: None,
        };
        if vocabulary.add_bos && vocabulary.bos.is_none() {
            return Err(Error::Missing { key: BOS });
        }
        vocabulary.survey(src)?;
        Ok(vocabulary)
    }
}

/// A byte-level BPE vocabulary whose arrays agree with each other, and whose tokens can all be read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Vocabulary {
    pub(crate) tokens: Array,
    pub(crate) merges: Array,
    types: Option<Array>,
    bos: Option<Token>,
    eos: Option<Token>,
    eot: Option<Token>,
    add_bos: bool,
    /// Control and user-defined tokens.
    pub(crate) n_special: u32,
    pub(crate) n_hidden: u32,
    max_token_bytes: usize,
    /// Where every merge's result stands in the order of the merges: the first one's token.
    pub(crate) base: Option<u32>,
}

impl Vocabulary {
    /// Tokens.
    #[expect(clippy::len_without_is_empty, reason = "no use has been found for a vocabulary of none")]
    pub fn len(&self) -> u32 {
        self.tokens.n as u32
    }

    /// Merges.
    pub fn n_merges(&self) -> u32 {
        self.merges.n as u32
    }

    /// Bytes that the longest token decodes to.
    pub fn max_token_bytes(&self) -> usize {
        self.max_token_bytes
    }

    /// The token that marks the beginning of a text, if the file names one.
    pub fn bos(&self) -> Option<Token> {
        self.bos
    }

    /// The token that marks the end of a text, if the file names one.
    pub fn eos(&self) -> Option<Token> {
        self.eos
    }

    /// The token to put in front of every text, if the file asks for one; GPT-2's does not.
    pub fn prefix(&self) -> Option<Token> {
        self.bos.filter(|_| self.add_bos)
    }

    /// The tokens that end a text by the file: its end of text and its end of turn.
    pub fn ends(&self) -> [Option<Token>; 2] {
        [self.eos, self.eot]
    }

    /// Shows up to [`BATCH`] tokens from `first` on, of which the first lies at offset `at`: each one's kind, its
    /// offset and its text in the file. Returns the offset of the one after.
    pub(crate) fn batch<S: Source>(&self, src: &mut S, first: u32, at: u64, show: &mut Show<'_>) -> Result<u64, Error> {
        let mut kinds = [Kind::Normal; BATCH];
        if let Some(types) = &self.types {
            let mut words = Words::from(src, types, first.into(), BATCH as u64);
            for (id, kind) in (first..).zip(&mut kinds) {
                *kind = match words.next()? {
                    Some(1) => Kind::Normal,
                    Some(3) => Kind::Control,
                    Some(4) => Kind::UserDefined,
                    Some(2 | 5 | 6) => Kind::Hidden,
                    Some(found) => return Err(Error::TokenType { token: Token(id), found }),
                    None => break,
                };
            }
        } else {
            for (id, kind) in (first..).zip(&mut kinds) {
                if [self.bos, self.eos, self.eot].contains(&Some(Token(id))) {
                    *kind = Kind::Control;
                }
            }
        }
        let mut strings = Strings::from(src, &self.tokens, at);
        for (id, kind) in (first..self.len()).zip(kinds) {
            let at = strings.at();
            match strings.next()? {
                Some(text) => show(Token(id), kind, at, text)?,
                None => break,
            }
        }
        Ok(strings.at())
    }

    /// Reads everything once: counts, the longest token, and whether the results stand in the order of the merges.
    fn survey<S: Source>(&mut self, src: &mut S) -> Result<(), Error> {
        let first = Strings::new(src, &self.merges).next()?.map(|text| merged(0, text)).transpose()?;
        let mut merges_at = self.merges.span.at;
        let mut rank = 0;
        let mut regular = true;
        let mut base = None;
        let mut at = self.tokens.span.at;
        for start in (0..self.len()).step_by(BATCH) {
            let mut hashes = [None; BATCH];
            let (mut n_special, mut n_hidden, mut longest) = (0, 0, 0);
            at = self.batch(src, start, at, &mut |token, kind, _, text| {
                let len = match kind {
                    Kind::Normal => {
                        let (hash, len) = normal(token, text)?;
                        put(&mut hashes, (token.0 - start) as usize, Some(hash));
                        len
                    }
                    Kind::Control | Kind::UserDefined => {
                        n_special += 1;
                        text.len()
                    }
                    Kind::Hidden => {
                        n_hidden += 1;
                        0
                    }
                };
                if len > MAX_TOKEN {
                    return Err(Error::TokenText { token, cause: TextCause::TooLong });
                }
                longest = longest.max(len);
                Ok(())
            })?;
            self.n_special += n_special;
            self.n_hidden += n_hidden;
            self.max_token_bytes = self.max_token_bytes.max(longest);

            let mut hashes = &hashes[..];
            if base.is_none() {
                let found = hashes.iter().position(|hash| hash.is_some() && *hash == first.map(|(hash, _)| hash));
                base = found.map(|i| start + i as u32);
                hashes = &hashes[found.unwrap_or(BATCH)..];
            }
            let mut merges = Strings::from(src, &self.merges, merges_at);
            for &hash in hashes {
                if !regular {
                    break;
                }
                let Some(text) = merges.next()? else { break };
                regular = hash == Some(merged(rank, text)?.0);
                rank += 1;
            }
            merges_at = merges.at();
        }
        if self.n_special as usize > MAX_SPECIAL {
            return Err(Error::TooManySpecial { found: self.n_special });
        }
        self.base = base.filter(|_| regular && rank == self.n_merges());
        Ok(())
    }
}

/// The hash and the length of a normal token's bytes.
pub(crate) fn normal(token: Token, text: &[u8]) -> Result<(NonZeroU64, usize), Error> {
    let mut hash = Hash::new();
    let mut len = 0;
    for byte in alphabet::bytes(text) {
        hash.push(byte.ok_or(Error::TokenText { token, cause: TextCause::Outside })?);
        len += 1;
    }
    Ok((hash.finish(), len))
}

/// The hash and the length of the bytes that a merge makes of its two sides.
pub(crate) fn merged(rank: u32, text: &[u8]) -> Result<(NonZeroU64, usize), Error> {
    let wrong = |cause| Error::MergeText { rank, cause };
    let mut sides = text.split(|&b| b == b' ');
    let (Some(left @ [_, ..]), Some(right @ [_, ..]), None) = (sides.next(), sides.next(), sides.next()) else {
        return Err(wrong(TextCause::NotAPair));
    };
    let mut hash = Hash::new();
    let mut len = 0;
    for side in [left, right] {
        for byte in alphabet::bytes(side) {
            hash.push(byte.ok_or(wrong(TextCause::Outside))?);
            len += 1;
        }
    }
    if len > MAX_TOKEN { Err(wrong(TextCause::TooLong)) } else { Ok((hash.finish(), len)) }
}
