//! Finds a merge by the text it makes, in three bytes a merge; the texts stay in the file.
//!
//! Merges lie in buckets by the first bits of a hash of the merged text, and in a bucket by rank:
//!
//! ```text
//! hash     │ bucket: 0..=26 bits │ check: 8 bits │ …
//! ends     bucket → where it ends in the two lists below, which is where the next one starts
//! checks   │ 3a │ 07 │ c4 │ …    8 more bits of the hash: 255 of 256 wrong merges differ here
//! ranks    │ 17 │ 90 │ 91 │ …    what to read in the file before believing it
//! ```
//!
//! Filled by a counting sort: [`Index::count`] each hash, [`Index::seal`], [`Index::place`] each hash again in the same
//! order. Then [`Index::ranks`] are the few merges that may have made a text.

use core::num::NonZeroU64;

use super::{Array, Error};
use crate::arena::{self, Arena, TooSmall};
use crate::gguf::{Cursor, Part, Span};
use crate::source::Source;

/// Merges per bucket, at least, on average; less than twice as many in fact.
const CROWD: u32 = 16;

/// Most merges in a bucket. Hashes of real merges leave it near 32; a file made to collide is refused, so that every
/// look-up is short.
const MAX_BUCKET: u32 = 128;

/// Whole numbers up to a limit known beforehand, in two bytes each where that is enough.
#[derive(Debug)]
pub(crate) enum Numbers<'a> {
    Short(&'a mut [u16]),
    Long(&'a mut [u32]),
}

impl<'a> Numbers<'a> {
    /// Bytes in the arena of `n` numbers up to `limit`.
    pub(crate) fn bytes(n: usize, limit: u32) -> usize {
        if limit <= u16::MAX.into() { arena::bytes_of::<u16>(n) } else { arena::bytes_of::<u32>(n) }
    }

    /// `n` zeros.
    pub(crate) fn take(arena: &mut Arena<'a>, n: usize, limit: u32) -> Result<Self, TooSmall> {
        Ok(if limit <= u16::MAX.into() { Numbers::Short(arena.take(n)?) } else { Numbers::Long(arena.take(n)?) })
    }

    /// Number `i`, or 0 past the last.
    pub(crate) fn get(&self, i: usize) -> u32 {
        match self {
            Numbers::Short(all) => all.get(i).copied().unwrap_or(0).into(),
            Numbers::Long(all) => all.get(i).copied().unwrap_or(0),
        }
    }

    /// Changes number `i`, if there is one.
    pub(crate) fn set(&mut self, i: usize, number: u32) {
        match self {
            Numbers::Short(all) => all.get_mut(i).map(|n| *n = number as u16),
            Numbers::Long(all) => all.get_mut(i).map(|n| *n = number),
        };
    }

    fn len(&self) -> usize {
        match self {
            Numbers::Short(all) => all.len(),
            Numbers::Long(all) => all.len(),
        }
    }
}

/// The hash of a text, fed byte by byte: FNV-1a in 64 bits, its bits mixed at the end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hash(u64);

impl Hash {
    pub(crate) fn new() -> Self {
        Hash(0xcbf2_9ce4_8422_2325)
    }

    pub(crate) fn of(bytes: &[u8]) -> u64 {
        let mut hash = Hash::new();
        bytes.iter().for_each(|&b| hash.push(b));
        hash.finish().get()
    }

    pub(crate) fn push(&mut self, byte: u8) {
        self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }

    /// Spreads the low bits, where FNV leaves the last byte, over all; never 0, so that an `Option` takes 8 bytes too.
    pub(crate) fn finish(self) -> NonZeroU64 {
        let h = (self.0 ^ self.0 >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        NonZeroU64::new(h ^ h >> 29).unwrap_or(NonZeroU64::MIN)
    }
}

/// Merges by the hash of the text they make.
#[derive(Debug)]
pub(crate) struct Index<'a> {
    bucket_bits: u32,
    ends: Numbers<'a>,    // (1 << bucket_bits)
    checks: &'a mut [u8], // (n_merges)
    ranks: Numbers<'a>,   // (n_merges)
}

impl<'a> Index<'a> {
    fn bucket_bits(n_merges: u32) -> u32 {
        (n_merges / CROWD).checked_ilog2().unwrap_or(0)
    }

    /// Bytes in the arena.
    pub(crate) fn bytes(n_merges: u32) -> usize {
        let n = n_merges as usize;
        Numbers::bytes(1 << Self::bucket_bits(n_merges), n_merges)
            .saturating_add(arena::bytes_of::<u8>(n))
            .saturating_add(Numbers::bytes(n, n_merges))
    }

    /// An index of no merges yet.
    pub(crate) fn take(arena: &mut Arena<'a>, n_merges: u32) -> Result<Self, TooSmall> {
        let bucket_bits = Self::bucket_bits(n_merges);
        Ok(Index {
            bucket_bits,
            ends: Numbers::take(arena, 1 << bucket_bits, n_merges)?,
            checks: arena.take(n_merges as usize)?,
            ranks: Numbers::take(arena, n_merges as usize, n_merges)?,
        })
    }

    fn slot(&self, hash: u64) -> (usize, u8) {
        let rotated = hash.rotate_left(self.bucket_bits);
        ((rotated & ((1 << self.bucket_bits) - 1)) as usize, (rotated >> 56) as u8)
    }

    /// First pass: makes room for a merge; `false` where its bucket is full.
    pub(crate) fn count(&mut self, hash: u64) -> bool {
        let (bucket, _) = self.slot(hash);
        let n = self.ends.get(bucket);
        self.ends.set(bucket, n + 1);
        n < MAX_BUCKET
    }

    /// Between the passes: turns the counts into the buckets' starts.
    pub(crate) fn seal(&mut self) {
        let mut start = 0;
        for bucket in 0..self.ends.len() {
            let n = self.ends.get(bucket);
            self.ends.set(bucket, start);
            start += n;
        }
    }

    /// Second pass: puts a merge behind those of its bucket, so that the bucket's start becomes its end.
    ///
    /// A source that lends other bytes in this pass leaves merges out; it cannot leave the lists.
    pub(crate) fn place(&mut self, hash: u64, rank: u32) {
        let (bucket, check) = self.slot(hash);
        let end = self.ends.get(bucket);
        if let Some(slot) = self.checks.get_mut(end as usize) {
            *slot = check;
            self.ranks.set(end as usize, rank);
            self.ends.set(bucket, end + 1);
        }
    }

    /// The ranks of the merges that may have made the text of this hash, lowest first.
    pub(crate) fn ranks(&self, hash: u64) -> impl Iterator<Item = u32> + '_ {
        let (bucket, check) = self.slot(hash);
        let start = if bucket == 0 { 0 } else { self.ends.get(bucket - 1) as usize };
        let end = self.ends.get(bucket) as usize;
        let checks = self.checks.get(start..end).unwrap_or(&[]);
        let found = checks.iter().enumerate().filter(move |&(_, &c)| c == check);
        found.map(move |(i, _)| self.ranks.get(start + i))
    }
}

/// Where every 64th string of an array lies, so that any one is found within one short chunk of the file.
#[derive(Debug)]
pub(crate) struct Places<'a> {
    span: Span,
    starts: &'a mut [u32], // (n / 64, rounded up), from the array's first byte
}

impl<'a> Places<'a> {
    const EVERY: u32 = 64;

    /// Bytes in the arena.
    pub(crate) fn bytes(array: &Array) -> usize {
        arena::bytes_of::<u32>(Self::n_starts(array))
    }

    fn n_starts(array: &Array) -> usize {
        array.n.div_ceil(Self::EVERY.into()) as usize
    }

    /// No places yet.
    pub(crate) fn take(arena: &mut Arena<'a>, array: &Array) -> Result<Self, TooSmall> {
        Ok(Places { span: array.span, starts: arena.take(Self::n_starts(array))? })
    }

    /// Says that string `i` lies at offset `at` of the file; the array is shorter than 4 GiB.
    pub(crate) fn note(&mut self, i: u32, at: u64) {
        if i.is_multiple_of(Self::EVERY)
            && let Some(start) = self.starts.get_mut((i / Self::EVERY) as usize)
        {
            *start = at.saturating_sub(self.span.at) as u32;
        }
    }

    /// Lends string `i`, which the array has.
    ///
    /// Reads the string and the up to 63 before it, about 1 kB in GPT-2's vocabulary.
    pub(crate) fn string<'s, S: Source>(&self, src: &'s mut S, i: u32) -> Result<&'s [u8], Error> {
        let block = (i / Self::EVERY) as usize;
        let offset = |block: usize| self.starts.get(block).map_or(self.span.len, |&at| at.into());
        let (start, end) = (self.span.at + offset(block), self.span.at + offset(block + 1));
        let mut cursor = Cursor::within(src, start, end);
        cursor.skip_strings(Part::Elements, (i % Self::EVERY).into())?;
        Ok(cursor.into_string(Part::Elements)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;
    use std::vec;
    use std::vec::Vec;

    fn index_of<'a>(texts: &[&[u8]], arena: &mut Arena<'a>) -> Index<'a> {
        let before = arena.used();
        let mut index = Index::take(arena, texts.len() as u32).unwrap();
        assert_eq!(arena.used() - before, Index::bytes(texts.len() as u32));
        assert!(texts.iter().all(|t| index.count(Hash::of(t))));
        index.seal();
        texts.iter().zip(0..).for_each(|(t, rank)| index.place(Hash::of(t), rank));
        index
    }

    #[test]
    fn every_text_is_found_and_few_others_are() {
        for n in [0, 1, 15, 32, 33, 5_000, 70_000] {
            let texts: Vec<_> = (0..n).map(|i| format!("text {i}").into_bytes()).collect();
            let mut memory = vec![0; 1 << 20];
            let index = index_of(&texts.iter().map(|t| &t[..]).collect::<Vec<_>>(), &mut Arena::new(&mut memory));
            let found = |text: &[u8]| index.ranks(Hash::of(text)).collect::<Vec<_>>();
            assert!(texts.iter().zip(0..).all(|(t, rank)| found(t).contains(&rank)));
            let strangers: usize = (0..1000).map(|i| found(format!("other {i}").as_bytes()).len()).sum();
            assert!(strangers < 200, "{strangers} wrong merges in 1000 look-ups among {n}");
        }
    }

    #[test]
    fn equal_texts_come_in_the_order_of_their_ranks() {
        let mut memory = vec![0; 4096];
        let index = index_of(&[b"aa", b"b", b"aa", b"aa"], &mut Arena::new(&mut memory));
        assert_eq!(index.ranks(Hash::of(b"aa")).collect::<Vec<_>>(), [0, 2, 3]);
    }

    #[test]
    fn a_crowded_bucket_is_noticed() {
        let mut memory = vec![0; 1 << 16];
        let mut index = Index::take(&mut Arena::new(&mut memory), 1000).unwrap();
        let room = (0..1000).take_while(|_| index.count(Hash::of(b"same"))).count();
        assert_eq!(room, MAX_BUCKET as usize);
    }
}
