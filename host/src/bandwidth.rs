//! What this machine's memory gives one core: the ceiling under which every token is made.

use std::collections::TryReserveError;
use std::hint::black_box;
use std::time::Instant;

/// Sums that do not wait for each other, so that memory is the only thing waited for.
const SUMS: usize = 16;

/// A buffer much larger than the caches, to be read from one end to the other.
#[derive(Debug)]
pub struct Probe {
    words: Vec<u64>,
}

impl Probe {
    /// A buffer of `bytes`, each of its pages written once, so that none of them is shared.
    ///
    /// # Errors
    /// There is not so much memory.
    pub fn new(bytes: usize) -> Result<Probe, TryReserveError> {
        let len = bytes / size_of::<u64>();
        let mut words = Vec::new();
        words.try_reserve_exact(len)?;
        words.extend(0..len as u64);
        Ok(Probe { words })
    }

    /// How many bytes a pass reads.
    pub fn bytes(&self) -> usize {
        self.words.len() * size_of::<u64>()
    }

    /// Reads all of it in order, on this thread, and gives the bytes a second.
    pub fn read(&self) -> f64 {
        let start = Instant::now();
        black_box(sum(black_box(&self.words)));
        self.bytes() as f64 / start.elapsed().as_secs_f64()
    }
}

fn sum(words: &[u64]) -> u64 {
    let mut sums = [0u64; SUMS];
    let (chunks, rest) = words.as_chunks::<SUMS>();
    for chunk in chunks {
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().chain(rest).fold(0, |all, word| all.wrapping_add(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read() {
        let probe = Probe::new(8 * 1003).unwrap();
        assert_eq!(probe.bytes(), 8 * 1003);
        assert_eq!(sum(&probe.words), 1003 * 1002 / 2);
        assert!(probe.read() > 0.0);
    }
}
