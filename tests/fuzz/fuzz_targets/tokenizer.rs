//! See `gptrickle_tests::fuzzed`.

#![no_main]

use gptrickle_tests::fuzzed::target;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| (target("tokenizer").check)(input));
