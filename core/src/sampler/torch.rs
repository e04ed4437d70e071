//! PyTorch's generator on a CPU, and how its `multinomial` draws: so seeds give the text that transformers gives.
//!
//! `torch.manual_seed` starts MT19937. For one sample, `multinomial` fills a row as long as the vocabulary with
//! `q = -ln(1 - u)`, in order, and takes the largest `p / q`: tokens of no probability use up their numbers, too. A `u`
//! is the low 53 bits of two words, the first one on top.

use super::shortlist::id;
use crate::arena::{Arena, TooSmall, bytes_of};
use crate::sort::sort;
use crate::tokenizer::Token;

/// Most numbers that may be drawn again to reach a place in the stream, about a second on the desk: those of 5,341
/// tokens of GPT-2.
pub(super) const MOST_SKIPPED: u64 = 1 << 28;

/// Words of state.
const N: usize = 624;
const M: usize = 397;

/// The generator, where it is wanted; without memory otherwise.
#[derive(Debug)]
pub(super) struct Mt19937<'a> {
    state: &'a mut [u32], // (N), or none
    next: usize,
}

impl<'a> Mt19937<'a> {
    pub(super) fn bytes(wanted: bool) -> usize {
        if wanted { bytes_of::<u32>(N) } else { 0 }
    }

    pub(super) fn new(wanted: bool, arena: &mut Arena<'a>) -> Result<Self, TooSmall> {
        Ok(Mt19937 { state: arena.take(if wanted { N } else { 0 })?, next: N })
    }

    pub(super) fn bytes_cut(&self) -> usize {
        bytes_of::<u32>(self.state.len())
    }

    /// As `torch.manual_seed`, which takes the low 32 bits.
    pub(super) fn seed(&mut self, seed: u64) {
        let mut last = seed as u32;
        for (i, word) in (0..).zip(self.state.iter_mut()) {
            if i > 0 {
                last = (last ^ last >> 30).wrapping_mul(1_812_433_253).wrapping_add(i);
            }
            *word = last;
        }
        self.next = N;
    }

    /// Makes the words of the next block.
    fn twist(state: &mut [u32; N]) {
        for i in 0..N {
            let y = state[i] & 0x8000_0000 | state[(i + 1) % N] & 0x7fff_ffff;
            state[i] = state[(i + M) % N] ^ y >> 1 ^ if y & 1 == 1 { 0x9908_b0df } else { 0 };
        }
    }

    fn word(&mut self) -> u32 {
        let Some(state) = self.state.first_chunk_mut::<N>() else { return 0 };
        if self.next >= N {
            Self::twist(state);
            self.next = 0;
        }
        let mut y = state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= y << 7 & 0x9d2c_5680;
        y ^= y << 15 & 0xefc6_0000;
        y ^ y >> 18
    }

    /// Skips as many exponential numbers; whole blocks of words are made and not looked at.
    pub(super) fn skip(&mut self, n: u64) {
        let Some(state) = self.state.first_chunk_mut::<N>() else { return };
        let words = (self.next as u64).saturating_add(n.saturating_mul(2));
        // A block that is used up is left only when a word of the next one is wanted.
        let blocks = words.saturating_sub(1) / N as u64;
        (0..blocks).for_each(|_| Self::twist(state));
        self.next = (words - blocks * N as u64) as usize;
    }

    /// A number with the density `e^-q`.
    pub(super) fn exponential(&mut self) -> f32 {
        let (high, low) = (u64::from(self.word()), u64::from(self.word()));
        let u = ((high << 32 | low) & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64;
        -libm::log1p(-u) as f32
    }

    /// Draws one of the candidates as `torch.multinomial` does from a row of `n_vocab` probabilities, 0 of all others.
    pub(super) fn multinomial(
        &mut self,
        candidates: &mut [u64],
        probability: impl Fn(u64) -> f32,
        n_vocab: usize,
    ) -> Token {
        sort(candidates, |a, b| id(a) < id(b));
        let (mut drawn, mut most) = (0, f32::NEG_INFINITY);
        let mut token = Token(candidates.first().map_or(0, |&candidate| id(candidate)));
        for &candidate in &*candidates {
            let place = u64::from(id(candidate));
            self.skip(place - drawn);
            let quotient = probability(candidate) / self.exponential();
            drawn = place + 1;
            if quotient > most {
                (most, token) = (quotient, Token(id(candidate)));
            }
        }
        self.skip((n_vocab as u64).saturating_sub(drawn));
        token
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_torch() {
        // torch.manual_seed(seed); torch.empty(1000).exponential_(1)[[0, 1, 2, 999]], torch 2.15.0
        let mut memory = [0; 4 * N + 64];
        for (seed, expected) in [
            (42, [0.059914015, 0.064976126, 0.13191678, 0.54442686]),
            (0, [3.5083263, 1.2303847, 0.6150441, 1.5374136]),
            ((1 << 40) + 7, [0.32764393, 0.31978348, 1.9811754, 1.1617149]),
        ] {
            let mut generator = Mt19937::new(true, &mut Arena::new(&mut memory)).unwrap();
            generator.seed(seed);
            let first = [(); 3].map(|()| generator.exponential());
            generator.skip(996);
            assert_eq!([first[0], first[1], first[2], generator.exponential()], expected, "seed {seed}");
        }
    }

    #[test]
    fn skipping_is_drawing_unseen() {
        let mut memories = [[0; 4 * N + 64]; 2];
        let [mut skips, mut draws] =
            memories.each_mut().map(|memory| Mt19937::new(true, &mut Arena::new(memory)).unwrap());
        skips.seed(7);
        draws.seed(7);
        for n in [0, 1, 311, 0, 312, 313, 1, 624, 623, 1000, 5, 0, 312 * 7] {
            skips.skip(n);
            (0..n).for_each(|_| _ = draws.exponential());
            assert_eq!((skips.word(), skips.word()), (draws.word(), draws.word()), "{n}");
        }
    }
}
