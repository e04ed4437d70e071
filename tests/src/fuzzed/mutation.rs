//! Changes to a GGUF file that know where its fields are: a count, a type, a name, a whole entry, and nothing else.
//!
//! A change at random nearly always hits weights, or breaks the first thing that is checked. Here lengths, counts and
//! offsets stay in step where a string or an entry changes its size, so that what is wrong is found as late as can be.

use std::ops::Range;

use crate::gguf_writer::{ARRAY, STRING};

/// Strings that are read, and so change more than a name.
const WORDS: [&str; 12] = [
    "general.alignment",
    "gpt2.context_length",
    "gpt2.embedding_length",
    "gpt2.attention.head_count",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.add_bos_token",
    "output.weight",
    "blk.0.attn_qkv.weight",
    "gpt2",
    "a b",
    "<|endoftext|>",
];
const NUMBERS: [u64; 14] =
    [0, 1, 2, 31, 32, 64, 255, 1 << 16, (1 << 31) - 1, 1 << 32, u64::MAX / 2, u64::MAX / 18 + 1, 1 << 63, u64::MAX];
/// Where counts of tensors and entries stand.
const N_TENSORS: usize = 8;
const N_ENTRIES: usize = 16;
const HEADER: usize = 24;

/// What stands in a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    /// A number of 4 or 8 bytes.
    Number(Range<usize>),
    /// The id of a type.
    Id(usize),
    /// A string: its length, and its bytes.
    String(Range<usize>),
    /// A whole entry: a key and its value.
    Entry(Range<usize>),
}

/// The fields of a header, and where it ends if it is whole.
pub fn fields(file: &[u8]) -> (Vec<Field>, Option<usize>) {
    let mut walk = Walk { file, at: HEADER, fields: vec![] };
    let count = |at: usize| file.get(at..at + 8).map_or(0, number);
    for at in [N_TENSORS, N_ENTRIES] {
        if file.len() >= HEADER {
            walk.fields.push(Field::Number(at..at + 8));
        }
    }
    let whole = (0..count(N_ENTRIES)).try_for_each(|_| walk.entry()).is_some()
        && (0..count(N_TENSORS)).try_for_each(|_| walk.info()).is_some();
    (walk.fields, whole.then_some(walk.at))
}

/// Changes one field of `file`, chosen by `seed`; the file has at most `most` bytes afterwards.
pub fn mutate(file: &[u8], most: usize, seed: u32) -> Vec<u8> {
    let (fields, end) = fields(file);
    let mut random = Random(seed.into());
    let Some(field) = random.pick(&fields) else { return file.to_vec() };
    let changed = match field {
        Field::Number(at) => put(file, at.clone(), other_number(file, at, &mut random)),
        Field::Id(at) => put(file, *at..at + 4, random.below(48) as u64),
        Field::String(at) => {
            let names: Vec<&[u8]> = fields.iter().filter_map(|field| text(file, field)).collect();
            let text = if random.below(2) == 0 {
                WORDS[random.below(WORDS.len())].as_bytes()
            } else {
                random.pick(&names).copied().unwrap_or_default()
            };
            replace(file, end, at.clone(), &[&(text.len() as u64).to_le_bytes(), text].concat())
        }
        Field::Entry(at) => {
            let twice = random.below(2) == 0;
            let count = number(&file[N_ENTRIES..HEADER]);
            let count = if twice { count.wrapping_add(1) } else { count.wrapping_sub(1) };
            let entry = &file[at.clone()];
            let file = put(file, N_ENTRIES..HEADER, count);
            replace(&file, end, at.clone(), if twice { [entry, entry].concat() } else { vec![] }.as_slice())
        }
    };
    if changed.len() > most { file.to_vec() } else { changed }
}

/// A number near the one that stands there, or one that is a limit somewhere.
fn other_number(file: &[u8], at: &Range<usize>, random: &mut Random) -> u64 {
    let n = number(&file[at.clone()]);
    match random.below(8) {
        0 => n.wrapping_add(1),
        1 => n.wrapping_sub(1),
        2 => n.wrapping_mul(2),
        3 => n / 2,
        4 => n ^ 1 << random.below(64),
        5 => n.wrapping_add(32),
        _ => NUMBERS[random.below(NUMBERS.len())],
    }
}

fn put(file: &[u8], at: Range<usize>, value: u64) -> Vec<u8> {
    let mut file = file.to_vec();
    let len = at.len();
    file[at].copy_from_slice(&value.to_le_bytes()[..len]);
    file
}

/// Replaces a part of the header, and moves the tensors to where they are looked for then.
fn replace(file: &[u8], end: Option<usize>, at: Range<usize>, by: &[u8]) -> Vec<u8> {
    let Some(end) = end else { return [&file[..at.start], by, &file[at.end..]].concat() };
    let mut changed = [&file[..at.start], by, &file[at.end..end]].concat();
    changed.resize(changed.len().next_multiple_of(32), 0);
    changed.extend_from_slice(file.get(end.next_multiple_of(32)..).unwrap_or_default());
    changed
}

fn text<'f>(file: &'f [u8], field: &Field) -> Option<&'f [u8]> {
    let Field::String(at) = field else { return None };
    file.get(at.start + 8..at.end)
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |n, &byte| n << 8 | u64::from(byte))
}

struct Walk<'f> {
    file: &'f [u8],
    at: usize,
    fields: Vec<Field>,
}

impl Walk<'_> {
    /// Steps over so many bytes that the file has.
    fn step(&mut self, len: u64) -> Option<Range<usize>> {
        let end = self.at.checked_add(usize::try_from(len).ok()?).filter(|&end| end <= self.file.len())?;
        Some(std::mem::replace(&mut self.at, end)..end)
    }

    fn number(&mut self, len: u64) -> Option<u64> {
        let at = self.step(len)?;
        self.fields.push(Field::Number(at.clone()));
        Some(number(&self.file[at]))
    }

    fn id(&mut self) -> Option<u32> {
        let at = self.step(4)?;
        self.fields.push(Field::Id(at.start));
        Some(number(&self.file[at]) as u32)
    }

    fn string(&mut self) -> Option<()> {
        let length = self.step(8)?;
        let text = self.step(number(&self.file[length.clone()]))?;
        self.fields.push(Field::Number(length.clone()));
        self.fields.push(Field::String(length.start..text.end));
        Some(())
    }

    fn entry(&mut self) -> Option<()> {
        let start = self.at;
        self.string()?;
        let kind = self.id()?;
        self.value(kind, true)?;
        self.fields.push(Field::Entry(start..self.at));
        Some(())
    }

    fn value(&mut self, kind: u32, nests: bool) -> Option<()> {
        match kind {
            STRING => self.string(),
            ARRAY if nests => {
                let kind = self.id()?;
                let n = self.number(8)?;
                (0..n).try_for_each(|_| self.value(kind, false))
            }
            0 | 1 | 7 => self.step(1).map(drop),
            2 | 3 => self.step(2).map(drop),
            4..=6 => self.number(4).map(drop),
            10..=12 => self.number(8).map(drop),
            _ => None,
        }
    }

    fn info(&mut self) -> Option<()> {
        self.string()?;
        let n_dims = self.number(4)?;
        (0..n_dims).try_for_each(|_| self.number(8).map(drop))?;
        self.id()?;
        self.number(8).map(drop)
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) % n as u64) as usize
    }

    fn pick<'t, T>(&mut self, from: &'t [T]) -> Option<&'t T> {
        if from.is_empty() { None } else { from.get(self.below(from.len())) }
    }
}
