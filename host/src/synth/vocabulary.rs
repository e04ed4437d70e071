//! A made-up vocabulary that is built like GPT-2's: the byte alphabet, one token for each merge, `<|endoftext|>`.
//!
//! Merges join letters, some behind a space, to words of up to 9; those made early are joined most. It depends on its
//! size alone, so models of different seeds read and write the same tokens. With GPT-2's 50,257 tokens the header is
//! about as large as the real one.

use std::collections::HashSet;

use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::{Rng, SeedableRng};

/// The one control token, which is last.
pub(super) const END: &str = "<|endoftext|>";
/// Tokens that every vocabulary has: 256 bytes and [`END`].
pub(super) const LEAST: usize = 257;
/// Letters of the longest word, its space included.
const LONGEST: usize = 9;
/// The space of the byte alphabet.
const SPACE: &str = "Ġ";

/// Tokens in order, and the merges that made all but the bytes and the last.
pub(super) struct Vocabulary {
    pub(super) tokens: Vec<String>,
    pub(super) merges: Vec<String>,
}

impl Vocabulary {
    /// A vocabulary of `len` tokens, at least [`LEAST`].
    pub(super) fn new(len: usize) -> Vocabulary {
        // GPT-2's order: the printable bytes of Latin-1 as themselves, then stand-ins for the other 68.
        let alphabet = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ').chain('\u{100}'..='\u{143}');
        let mut tokens: Vec<String> = alphabet.map(String::from).collect();
        let mut seen: HashSet<String> = tokens.iter().cloned().collect();
        let mut merges = Vec::new();
        // What a word may start with and what may follow: the most frequent letters of English first.
        let mut words = vec![SPACE.to_owned()];
        let mut parts: Vec<String> = "etaoinshrdlcumwfgypbvkjxqz".chars().map(String::from).collect();
        let mut rng = Pcg64Mcg::seed_from_u64(0);
        while tokens.len() + 1 < len {
            let random = rng.next_u64();
            let after_space = random & 1 == 0;
            let left = early(if after_space { &words } else { &parts }, (random >> 1) as u32);
            let right = early(&parts, (random >> 32) as u32);
            let token = format!("{left}{right}");
            if token.chars().count() > LONGEST || !seen.insert(token.clone()) {
                continue;
            }
            merges.push(format!("{left} {right}"));
            if after_space { &mut words } else { &mut parts }.push(token.clone());
            tokens.push(token);
        }
        tokens.push(END.to_owned());
        Vocabulary { tokens, merges }
    }
}

/// One of `strings`, the sooner the earlier it was made.
fn early(strings: &[String], random: u32) -> &str {
    let square = (u64::from(random) * u64::from(random)) >> 32;
    &strings[((square * strings.len() as u64) >> 32) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_merge_joins_two_earlier_tokens_to_the_next() {
        for len in [LEAST, 264, 5000] {
            let Vocabulary { tokens, merges } = Vocabulary::new(len);
            assert_eq!((tokens.len(), merges.len()), (len, len - LEAST));
            assert_eq!(tokens.iter().collect::<HashSet<_>>().len(), len, "no token twice");
            assert_eq!((&*tokens[0], &*tokens[188], &*tokens[255], &*tokens[len - 1]), ("!", "Ā", "Ń", END));
            for (i, merge) in merges.iter().enumerate() {
                let (left, right) = merge.split_once(' ').unwrap();
                let place = |token: &str| tokens.iter().position(|t| t == token).unwrap();
                assert!(place(left).max(place(right)) < 256 + i, "{merge}");
                assert_eq!(tokens[256 + i], format!("{left}{right}"));
            }
        }
    }
}
