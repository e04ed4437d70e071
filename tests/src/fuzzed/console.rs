//! Lines that somebody types: any text is a command or a message, and a setting that is taken is one that can be used.

use gptrickle_core::console::Command;
use gptrickle_core::generate::Options;

use super::{Target, assert_sayable};

pub(super) const TARGET: Target = Target {
    name: "console",
    about: "the line parser of the REPL and of boards",
    check,
    seeds,
    words: &[
        ":set ",
        "temperature ",
        "top_k ",
        "top_p ",
        "min_p ",
        "typical_p ",
        "epsilon_cutoff ",
        "eta_cutoff ",
        "context ",
        "repetition_penalty ",
        "no_repeat_ngram_size ",
        "min_length ",
        "min_new_tokens ",
        "kv ",
        "q8_0",
        "batch ",
        ":seed ",
        ":max ",
        ":overflow slide:",
        ":save ",
        ":load ",
        ":hash ",
        ":echo ",
        "on",
        "off",
        ":stats",
        ":plan",
        ":open",
        ":check",
        ":help",
        ":quit",
        "inf",
        "nan",
        "1e39",
        "-0",
        "18446744073709551616",
    ],
};

fn check(line: &[u8]) {
    let line = String::from_utf8_lossy(line);
    match Command::parse(&line) {
        Ok(Command::Empty) => assert_eq!(line, ""),
        Ok(Command::Prompt(text)) => assert!(!line.starts_with(':') || line.strip_prefix(':') == Some(text)),
        Ok(Command::Set(setting)) => {
            let mut options = Options::default();
            setting.apply(&mut options);
            let checked = options.sampling.check();
            assert!(checked.is_ok(), "{line:?} is taken, and then refused: {checked:?}");
        }
        Ok(_) => assert!(line.starts_with(':')),
        Err(error) => assert_sayable(&error),
    }
    assert_eq!(Command::parse(&format!("::{line}")), Ok(Command::Prompt(&format!(":{line}"))), "two colons: a prompt");
}

fn seeds() -> Vec<Vec<u8>> {
    let lines =
        ["", "Once upon a time", "::)", ":set top_p 0.5", ":set kv q4_0", ":seed 42", ":save a b", ": max  7 ", ":?"];
    lines.map(|line| line.as_bytes().to_vec()).into()
}
