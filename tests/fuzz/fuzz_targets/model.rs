//! See `gptrickle_tests::fuzzed`.

#![no_main]

use gptrickle_tests::fuzzed::{mutation, target};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

fuzz_target!(|file: &[u8]| (target("model").check)(file));

// Half of the changes are of a field, the others libFuzzer's own.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    if seed % 2 == 0 {
        return fuzzer_mutate(data, size, max_size);
    }
    let changed = mutation::mutate(&data[..size], max_size, seed / 2);
    data[..changed.len()].copy_from_slice(&changed);
    changed.len()
});
