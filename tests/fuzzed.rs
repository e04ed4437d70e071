//! What is fuzzed, as ordinary tests: every seed, changes of seeds, and every input that once broke a promise.

use std::fs;
use std::path::Path;

use gptrickle_core::generate::Model;
use gptrickle_core::quant::Format;
use gptrickle_tests::fuzzed::mutation::{Field, fields, mutate};
use gptrickle_tests::fuzzed::{TARGETS, target, tiny};

#[test]
fn every_seed_keeps_the_promises() {
    for target in TARGETS {
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty(), "{}", target.name);
        for seed in seeds {
            (target.check)(&seed);
        }
    }
}

/// Files in `fuzz/regressions/TARGET`, named after what they broke.
#[test]
fn what_once_broke_a_promise_does_so_no_more() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/regressions");
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let target = target(entry.file_name().to_str().unwrap());
        for input in fs::read_dir(entry.path()).unwrap().flatten() {
            println!("{}", input.path().display());
            (target.check)(&fs::read(input.path()).unwrap());
        }
    }
}

#[test]
fn tiny_models_are_sound() {
    for format in Format::ALL {
        for tied in [true, false] {
            let file = tiny::model(format, tied);
            assert!(file.len() < 50_000, "{format:?}: {} bytes", file.len());
            Model::open(&mut &file[..]).unwrap();
        }
    }
}

#[test]
fn changes_know_every_field() {
    let file = tiny::model(Format::Q4_0, true);
    let (fields, end) = fields(&file);
    let header_len = gptrickle_tests::anatomy::Anatomy::header_len(&file);
    assert_eq!(end.unwrap().next_multiple_of(32), header_len);
    let count = |kind: fn(&Field) -> bool| fields.iter().filter(|field| kind(field)).count();
    assert_eq!(count(|field| matches!(field, Field::Entry(_))), 14);
    assert_eq!(
        count(|field| matches!(field, Field::String(_))),
        14 + 3 + 10 + 4 + 16,
        "keys, values, tokens, merges, names"
    );
    assert_eq!(count(|field| matches!(field, Field::Id(_))), 14 + 3 + 16, "of values, elements and tensors");
}

/// Few changes leave a file that opens, and those that change a size keep all else in its place.
#[test]
fn changes_are_survived() {
    let target = target("model");
    for seed in (target.seeds)() {
        let mut opened = 0;
        for change in 0..60 {
            let changed = mutate(&seed, 1 << 16, change);
            opened += u32::from(Model::open(&mut &changed[..]).is_ok());
            (target.check)(&changed);
        }
        assert!((1..60).contains(&opened), "{opened} of 60 open");
    }
}
