//! See `gptrickle_tests::fuzzed`.

#![no_main]

use std::ops::{Range, RangeInclusive};

use gptrickle_tests::fuzzed::target;
use libfuzzer_sys::{Corpus, fuzz_target};

/// Where a session says how many tokens PyTorch's generator drew.
const DRAWS: Range<usize> = 72..80;
/// As many are accepted, and drawing them again takes up to a second: here, under sanitizers, up to half a minute.
const LONG: RangeInclusive<u64> = 1 << 12..=1 << 25;

fuzz_target!(|input: &[u8]| -> Corpus {
    let draws = input.get(DRAWS).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
    if draws.is_some_and(|draws| LONG.contains(&draws)) {
        return Corpus::Reject;
    }
    (target("session").check)(input);
    Corpus::Keep
});
