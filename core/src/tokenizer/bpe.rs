//! Merges the bytes of one piece: always the pair of lowest rank, the leftmost of equals, until no pair has a rank.
//!
//! A symbol is a run of the piece's bytes; at first each byte is one. Four words per byte hold everything, at the
//! places where the symbol `i..j` starts and ends:
//!
//! ```text
//!            i           i + 1                  j - 1         j
//! next     │ j         │ rank that made it    │ (free)      │ where the symbol after the next one starts
//! start    │           │                      │ i           │
//! rank     │ of the pair of this symbol and the next one    │
//! tree     │ node k: which of the places below it has the lowest rank
//! ```
//!
//! `tree` is a tournament: node 1 names the next pair to merge, and a merge replays three paths to it. So a piece of
//! `n` bytes takes `O(n log n)` steps, whatever it holds, and at most `3 n` look-ups of a rank.

/// Words of scratch for each byte of a piece.
pub(crate) const WORDS: usize = 4;

/// No rank: the pair does not merge.
const NONE: u32 = u32::MAX;

/// What a piece is merged into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Symbol {
    /// A byte that was not merged.
    Byte(u8),
    /// The result of the merge of this rank.
    Merged(u32),
}

/// A word for each byte of the piece.
struct Words<'s>(&'s mut [u32]);

impl Words<'_> {
    /// The word of a place; beyond the piece nothing starts and nothing merges.
    fn get(&self, i: usize) -> u32 {
        self.0.get(i).copied().unwrap_or(NONE)
    }

    /// Changes the word of a place in the piece.
    fn set(&mut self, i: usize, word: u32) {
        self.0.get_mut(i).into_iter().for_each(|old| *old = word);
    }
}

/// The four arrays.
struct Symbols<'s> {
    next: Words<'s>,
    start: Words<'s>,
    rank: Words<'s>,
    tree: Words<'s>,
}

impl Symbols<'_> {
    /// The place with the lowest rank below node `k`; from the piece's length on, nodes are the places themselves.
    fn winner(&self, k: usize) -> usize {
        k.checked_sub(self.rank.0.len()).unwrap_or_else(|| self.tree.get(k) as usize)
    }

    /// The place and the rank of the next pair to merge.
    fn best(&self) -> Option<(usize, u32)> {
        let i = self.winner(1);
        Some((i, self.rank.get(i))).filter(|&(_, rank)| rank != NONE)
    }

    fn play(&mut self, k: usize) {
        let (a, b) = (self.winner(2 * k), self.winner(2 * k + 1));
        self.tree.set(k, if (self.rank.get(a), a) < (self.rank.get(b), b) { a } else { b } as u32);
    }

    fn set_rank(&mut self, i: usize, rank: Option<u32>) {
        self.rank.set(i, rank.unwrap_or(NONE));
        let mut k = (i + self.rank.0.len()) / 2;
        while k > 0 {
            self.play(k);
            k /= 2;
        }
    }
}

/// Merges `piece` and shows its symbols from left to right.
///
/// `scratch` holds at least [`WORDS`] words per byte, and the piece is shorter than 4 GiB: the caller has checked, and of
/// a longer piece nothing is merged. `rank_of(both, left)` says the rank of the pair `both[..left]`, `both[left..]`; ranks
/// are below `u32::MAX`.
pub(crate) fn merge<E>(
    piece: &[u8],
    scratch: &mut [u32],
    mut rank_of: impl FnMut(&[u8], usize) -> Result<Option<u32>, E>,
    mut show: impl FnMut(Symbol) -> Result<(), E>,
) -> Result<(), E> {
    let n = piece.len();
    let mut words = scratch.chunks_exact_mut(n.max(1));
    let mut words = || Words(words.next().unwrap_or_default());
    let mut s = Symbols { next: words(), start: words(), rank: words(), tree: words() };
    let mut rank_of = |start: usize, left, end| piece.get(start..end).map_or(Ok(None), |both| rank_of(both, left));
    for i in 0..n {
        s.next.set(i, i as u32 + 1);
        s.start.set(i, i as u32);
        s.rank.set(i, rank_of(i, 1, i + 2)?.unwrap_or(NONE));
    }
    for k in (1..n).rev() {
        s.play(k);
    }
    while let Some((i, rank)) = s.best() {
        // A pair with a rank has a right side.
        let j = s.next.get(i) as usize;
        let end = s.next.get(j) as usize;
        s.next.set(i, end as u32);
        s.next.set(i + 1, rank);
        s.start.set(end - 1, i as u32);
        s.set_rank(j, None);
        let after = rank_of(i, end - i, s.next.get(end) as usize)?;
        s.set_rank(i, after);
        if i > 0 {
            let before = s.start.get(i - 1) as usize;
            let rank = rank_of(before, i - before, end)?;
            s.set_rank(before, rank);
        }
    }
    let mut i = 0;
    while let Some(&byte) = piece.get(i) {
        let end = s.next.get(i) as usize;
        show(if end == i + 1 { Symbol::Byte(byte) } else { Symbol::Merged(s.next.get(i + 1)) })?;
        i = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::convert::Infallible;
    use proptest::prelude::*;
    use std::collections::HashMap;
    use std::vec;
    use std::vec::Vec;

    type Rules = HashMap<(Vec<u8>, Vec<u8>), u32>;

    fn merged(piece: &[u8], rules: &Rules) -> Vec<Symbol> {
        let mut symbols = Vec::new();
        let rank_of =
            |both: &[u8], left| Ok::<_, Infallible>(rules.get(&(both[..left].into(), both[left..].into())).copied());
        let Ok(()) = merge(piece, &mut vec![7; WORDS * piece.len()], rank_of, |s| {
            symbols.push(s);
            Ok(())
        });
        symbols
    }

    /// The definition, word for word: look at every pair, merge the best, begin again.
    fn naive(piece: &[u8], rules: &Rules) -> Vec<Symbol> {
        let mut symbols: Vec<(Vec<u8>, Symbol)> = piece.iter().map(|&b| (vec![b], Symbol::Byte(b))).collect();
        let rank = |pair: &[(Vec<u8>, Symbol)]| rules.get(&(pair[0].0.clone(), pair[1].0.clone())).copied();
        while let Some((rank, i)) = symbols.windows(2).enumerate().filter_map(|(i, p)| Some((rank(p)?, i))).min() {
            let right = symbols.remove(i + 1).0;
            symbols[i].0.extend(right);
            symbols[i].1 = Symbol::Merged(rank);
        }
        symbols.into_iter().map(|s| s.1).collect()
    }

    fn rules(pairs: &[(&str, &str)]) -> Rules {
        pairs.iter().zip(0..).map(|((a, b), rank)| ((a.as_bytes().into(), b.as_bytes().into()), rank)).collect()
    }

    #[test]
    fn lowest_rank_first_leftmost_of_equals() {
        let rules = rules(&[("h", "e"), ("a", "a"), ("t", "he"), ("aa", "a")]);
        assert_eq!(merged(b"the", &rules), [Symbol::Merged(2)]);
        assert_eq!(merged(b"aaaaa", &rules), [Symbol::Merged(1), Symbol::Merged(3)]);
        assert_eq!(merged(b"x", &rules), [Symbol::Byte(b'x')]);
        assert_eq!(merged(b"", &rules), []);
    }

    #[test]
    fn a_mebibyte_of_one_letter_ends() {
        let mut pairs = Rules::new();
        for i in 0..7 {
            pairs.insert((vec![b'a'; 1 << i], vec![b'a'; 1 << i]), i);
        }
        assert_eq!(merged(&vec![b'a'; 1 << 20], &pairs), vec![Symbol::Merged(6); (1 << 20) / 128]);
    }

    /// Rules over three letters whose sides are letters or results of other rules, in any order of rank.
    fn random_rules() -> impl Strategy<Value = Rules> {
        prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..24).prop_flat_map(
            |picks| {
                let mut texts: Vec<Vec<u8>> = vec![b"a".into(), b"b".into(), b"c".into()];
                let mut pairs = Vec::new();
                for (left, right) in picks {
                    let (left, right) = (left.get(&texts).clone(), right.get(&texts).clone());
                    if left.len() + right.len() <= 8 {
                        texts.push([&left[..], &right].concat());
                        pairs.push((left, right));
                    }
                }
                pairs.sort();
                pairs.dedup();
                Just(pairs).prop_shuffle().prop_map(|pairs| pairs.into_iter().zip(0..).collect())
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn merges_as_the_definition_does(rules in random_rules(), piece in prop::collection::vec(b'a'..=b'd', 0..40)) {
            prop_assert_eq!(merged(&piece, &rules), naive(&piece, &rules));
        }
    }
}
