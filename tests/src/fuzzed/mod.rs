//! What is fuzzed: each target takes any bytes, and panics where a promise is broken.
//!
//! `cargo xtask fuzz` runs them in libFuzzer, through the programs in `tests/fuzz`; `tests/fuzzed.rs` runs every seed, and
//! every input that once broke a promise, as ordinary tests. Seeds are made here, none is a file.

mod checkpoint;
mod console;
mod gguf;
mod model;
pub mod mutation;
mod session;
pub mod tiny;
mod tokenizer;

use std::fmt::Display;

/// What takes any bytes.
pub struct Target {
    /// Its name, also of the program that fuzzes it.
    pub name: &'static str,
    /// What it is, in a few words.
    pub about: &'static str,
    /// Takes any bytes; panics where a promise is broken.
    pub check: fn(&[u8]),
    /// Inputs to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Words that a change at random would hardly find.
    pub words: &'static [&'static str],
}

/// All of them.
pub const TARGETS: [Target; 6] =
    [gguf::TARGET, model::TARGET, tokenizer::TARGET, session::TARGET, checkpoint::TARGET, console::TARGET];

/// The target of this name.
///
/// # Panics
/// There is none.
pub fn target(name: &str) -> &'static Target {
    const ALL: &[Target] = &TARGETS;
    ALL.iter().find(|target| target.name == name).unwrap_or_else(|| panic!("nothing fuzzed is called {name}"))
}

/// Asserts that an error is one line that a terminal shows as it is.
///
/// # Panics
/// It is not.
pub fn assert_sayable(error: &impl Display) {
    let text = error.to_string();
    assert!(!text.is_empty() && !text.chars().any(char::is_control), "{text:?}");
}
