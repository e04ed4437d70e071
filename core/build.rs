//! What rustc does not do by itself: it says which of Arm's extensions a build is for, and packs the tokenizer's table of
//! characters.
//!
//! The former are `cfg(arm_dsp)` and `cfg(arm_mve)`. rustc 1.95 shows neither extension to `cfg(target_feature)`, so this reads what cargo was asked for: the target,
//! and the flags for it, wherever they stand (RUSTFLAGS, a config file). No flag, no extension: what is not known to be
//! there is not used.

use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

use unicode_general_category::{GeneralCategory as C, get_general_category};

/// Processors of `thumbv8m.main` that LLVM gives the DSP extension by default.
const WITH_DSP: [&str; 6] = ["cortex-m33", "cortex-m35p", "cortex-m52", "cortex-m55", "cortex-m85", "star-mc1"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let out = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    fs::write(Path::new(&out).join("classes.rs"), classes()).expect("OUT_DIR can be written");
    arm();
}

/// Runs that are read at most to find a character's.
const STRIDE: usize = 32;

/// The classes of all characters from U+0080 on, as `tokenizer/split.rs` includes them.
///
/// A run of characters of one class is a number, `length << 2 | class`, seven bits a byte, the lowest first, the top bit
/// set in all but its last. `STARTS` has where every STRIDE-th run starts: its first character, and its first byte.
fn classes() -> String {
    let mut runs: Vec<(u32, u32, u32)> = Vec::new(); // first, length, class
    for code in 0x80..=u32::from(char::MAX) {
        let class = char::from_u32(code).map_or(3, class); // surrogates never occur
        match runs.last_mut() {
            Some((_, len, last)) if *last == class => *len += 1,
            _ => runs.push((code, 1, class)),
        }
    }
    let (mut bytes, mut starts) = (Vec::new(), Vec::new());
    for (i, &(first, len, class)) in runs.iter().enumerate() {
        if i % STRIDE == 0 {
            starts.push((first, bytes.len()));
        }
        let mut number = len << 2 | class;
        while number >= 0x80 {
            bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        bytes.push(number as u8);
    }
    let mut text = String::new();
    writeln!(text, "static STARTS: [(u32, u16); {}] = {starts:?};", starts.len()).expect("memory does not end");
    writeln!(text, "static RUNS: [u8; {}] = {bytes:?};", bytes.len()).expect("memory does not end");
    text
}

/// In the order of `tokenizer/split.rs`: letter, number, white space, other.
fn class(c: char) -> u32 {
    match get_general_category(c) {
        C::UppercaseLetter | C::LowercaseLetter | C::TitlecaseLetter | C::ModifierLetter | C::OtherLetter => 0,
        C::DecimalNumber | C::LetterNumber | C::OtherNumber => 1,
        _ if c.is_whitespace() => 2,
        _ => 3,
    }
}

/// `cfg(arm_dsp)` and `cfg(arm_mve)`.
fn arm() {
    println!("cargo::rustc-check-cfg=cfg(arm_dsp, arm_mve)");
    let target = env::var("TARGET").unwrap_or_default();
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let features: Vec<_> = values(&flags, "target-feature").iter().flat_map(|value| value.split(',')).collect();
    let has = |feature: &str, default: bool| {
        // As in rustc, the last word counts.
        let last = features.iter().rfind(|word| word.get(1..) == Some(feature));
        last.map_or(default, |word| word.starts_with('+'))
    };
    if env::var_os("CARGO_FEATURE_DSP").is_none() {
        return;
    }
    let dsp = match target.split('-').next() {
        // Armv7E-M is Armv7-M with DSP.
        Some("thumbv7em") => true,
        Some("thumbv8m.main") => {
            has("dsp", values(&flags, "target-cpu").last().is_some_and(|cpu| WITH_DSP.contains(cpu)))
        }
        _ => return,
    };
    if dsp {
        println!("cargo::rustc-cfg=arm_dsp");
    }
    // With `mve.fp`, floats would go through Helium, too, which flushes subnormals: other bits than elsewhere.
    if dsp && has("mve", false) {
        println!("cargo::rustc-cfg=arm_mve");
    }
}

/// What codegen option `name` is set to: `-Cname=value` and `-C name=value`, in their order.
fn values<'f>(flags: &'f str, name: &str) -> Vec<&'f str> {
    let options = flags.split('\x1f').map(|flag| flag.strip_prefix("-C").unwrap_or(flag).trim_start());
    options.filter_map(|option| option.strip_prefix(name)?.strip_prefix('=')).collect()
}
