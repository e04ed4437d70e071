//! Guesses from the text itself: what followed its last tokens when they last stood there.
//!
//! Source: Saxena, Prompt Lookup Decoding, 2023; as `prompt_lookup_num_tokens` in Hugging Face's `generate`.

/// How many of the last tokens are looked up, the longer first: a longer match is right more often.
const LENGTHS: [usize; 2] = [3, 2];

/// Writes up to `most` guesses behind the first `n` of `tokens`, which are the text, and says how many: as far as there
/// is room.
///
/// Compares at most `5 n` tokens.
pub(super) fn guess(tokens: &mut [u32], n: usize, most: usize) -> usize {
    if most == 0 {
        return 0;
    }
    for len in LENGTHS.into_iter().filter(|&len| len < n) {
        let last = tokens.get(n - len..n);
        if let Some(at) = (0..n - len).rev().find(|&at| tokens.get(at..at + len) == last) {
            // They may run into the guesses before them: what has repeated goes on repeating.
            for i in 0..most {
                let guess = tokens.get(at + len + i).copied();
                let (Some(room), Some(guess)) = (tokens.get_mut(n + i), guess) else { return i };
                *room = guess;
            }
            return most;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::guess;

    #[test]
    fn the_longest_match_is_taken_and_of_these_the_latest() {
        let cases: [(&[u32], &[u32]); 7] = [
            (&[], &[]),
            (&[1, 2], &[]),
            (&[1, 2, 3, 4], &[]),
            (&[1, 2, 7, 8, 1, 2], &[7, 8, 1]),
            (&[1, 2, 7, 1, 2, 8, 1, 2], &[8, 1, 2]),
            (&[0, 1, 2, 7, 1, 2, 8, 0, 1, 2], &[7, 1, 2]),
            (&[5, 5, 5], &[5, 5, 5]),
        ];
        for (text, guesses) in cases {
            let mut tokens = [9; 16];
            tokens[..text.len()].copy_from_slice(text);
            let n = guess(&mut tokens, text.len(), 3);
            assert_eq!(&tokens[text.len()..][..n], guesses, "{text:?}");
            assert_eq!(guess(&mut tokens, text.len(), 0), 0);
        }
    }
}
