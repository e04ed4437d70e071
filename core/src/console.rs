//! The lines a person or a script types: a prompt, or a command that starts with a colon.
//!
//! One grammar for the boards' consoles and for the host's. A line that does not start with a colon is a prompt, taken
//! as it is; `::` starts a prompt whose first character is a colon. [`HELP`] lists the commands.

use core::fmt;

use crate::generate::{Options, Overflow};
use crate::gpt2::KvFormat;

/// What a line asks for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Command<'a> {
    /// Nothing: an empty line.
    Empty,
    /// Continue this text.
    Prompt(&'a str),
    /// Change how text is made.
    Set(Setting),
    /// Start the random numbers of each prompt from this.
    Seed(u64),
    /// Make at most this many tokens per prompt.
    Max(usize),
    /// What happens when the context is full.
    Overflow(Overflow),
    /// Print, or stop printing, the running hash over all logits after each text.
    Hash(bool),
    /// Print, or stop printing, what is typed.
    Echo(bool),
    /// Print what the last prompt took.
    Stats,
    /// Print where the memory goes.
    Plan,
    /// Keep the last text in a file, with all it takes to go on; where there are files.
    Save(&'a str),
    /// Go on with a text that was kept in a file, and with its settings; where there are files.
    Load(&'a str),
    /// Look for the model again.
    Open,
    /// Read the whole model, and print its checksum and how fast it came.
    Checksum,
    /// Compare this processor's kernels with the definition.
    Check,
    /// Print [`HELP`].
    Help,
    /// Leave.
    Quit,
}

/// A setting and its new value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Setting {
    /// Divides the logits; 0 takes the likeliest token.
    Temperature(f32),
    /// Keeps this many of the likeliest tokens; 0 keeps all.
    TopK(usize),
    /// Keeps the likeliest tokens up to this share of the probability.
    TopP(f32),
    /// Keeps the tokens with at least this share of the likeliest one's probability.
    MinP(f32),
    /// Keeps the tokens of nearly average information up to this share of the probability; 1 keeps all.
    TypicalP(f32),
    /// Keeps the tokens of this probability at least; 0 keeps all.
    EpsilonCutoff(f32),
    /// Keeps the tokens of a probability at least that depends on the entropy; 0 keeps all.
    EtaCutoff(f32),
    /// Divides the logits of tokens seen before; 1 leaves them alone.
    RepetitionPenalty(f32),
    /// Makes no sequence of so many tokens twice; 0 is off.
    NoRepeatNgramSize(usize),
    /// Tokens of a text, prompt and all, before which it does not end.
    MinLength(usize),
    /// New tokens before which a text does not end.
    MinNewTokens(usize),
    /// Positions that the KV cache holds.
    Context(usize),
    /// How the KV cache stores its values.
    Kv(KvFormat),
    /// Positions of a prompt that one pass of the weights serves.
    Batch(usize),
}

/// Every command as it is typed, with what it does; both in ASCII.
pub const HELP: &[(&str, &str)] = &[
    ("TEXT", "continue TEXT (:: starts one that begins with a colon); Ctrl-C stops"),
    (":set temperature X", "divide the logits by X; 0 takes the likeliest token"),
    (":set top_k N", "keep the N likeliest tokens; 0 keeps all"),
    (":set top_p X", "keep the likeliest tokens up to probability X"),
    (":set min_p X", "keep tokens with X times the likeliest one's probability"),
    (":set typical_p X", "keep tokens of average information up to probability X"),
    (":set epsilon_cutoff X", "keep tokens of probability X; 0 keeps all"),
    (":set eta_cutoff X", "the same, less where many are likely; 0 keeps all"),
    (":set repetition_penalty X", "divide the logits of tokens seen before by X"),
    (":set no_repeat_ngram_size N", "make no N tokens in a row twice; 0 is off"),
    (":set min_length N", "end no text before it has N tokens"),
    (":set min_new_tokens N", "end no text before it has N new tokens"),
    (":set context N", "keep N positions"),
    (":set kv f32|f16|q8_0|q4_0", "how keys and values are kept"),
    (":set batch N", "prompt positions per pass of the weights"),
    (":seed N", "seed of the random numbers"),
    (":max N", "tokens per prompt"),
    (":overflow stop|slide:N", "a full context ends a text, or forgets all but N and the newest"),
    (":stats", "what the last prompt took"),
    (":plan", "where the memory goes"),
    (":save FILE", "keep the last text in FILE; not on a board"),
    (":load FILE", "go on with a text and settings from FILE; not on a board"),
    (":hash on|off", "hash over all logits after each text"),
    (":echo on|off", "print what is typed"),
    (":open", "look for the model again"),
    (":checksum", "read the whole model: its CRC-32, and how fast it came"),
    (":check", "compare each kernel with the definition"),
    (":help", "this list"),
    (":quit", "leave"),
];

const COMMANDS: &str =
    ":set, :seed, :max, :overflow, :stats, :plan, :save, :load, :hash, :echo, :open, :checksum, :check, :help, :quit";
const SETTINGS: &str = "temperature, top_k, top_p, min_p, typical_p, epsilon_cutoff, eta_cutoff, repetition_penalty, \
    no_repeat_ngram_size, min_length, min_new_tokens, context, kv, batch";

/// A line that starts with a colon and is no command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParseError<'a> {
    /// No command has this name.
    Command(&'a str),
    /// No setting has this name.
    Setting(&'a str),
    /// A command or setting got a value it cannot take.
    Value {
        /// Which one.
        of: &'static str,
        /// What it can take.
        wants: &'static str,
        /// What stood there, perhaps nothing.
        found: &'a str,
    },
}

impl fmt::Display for ParseError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            ParseError::Command(name) => write!(f, "no command :{}; there are {COMMANDS}", name.escape_debug()),
            ParseError::Setting("") => write!(f, ":set needs one of {SETTINGS}, and a value"),
            ParseError::Setting(name) => write!(f, "no setting {}; there are {SETTINGS}", name.escape_debug()),
            ParseError::Value { of, wants, found: "" } => write!(f, "{of} needs {wants}"),
            ParseError::Value { of, wants, found } => write!(f, "{of} needs {wants}, not {}", found.escape_debug()),
        }
    }
}

impl core::error::Error for ParseError<'_> {}

impl<'a> Command<'a> {
    /// Reads one line, without its end.
    ///
    /// ```
    /// use gptrickle_core::console::{Command, Setting};
    /// assert_eq!(Command::parse("Once upon"), Ok(Command::Prompt("Once upon")));
    /// assert_eq!(Command::parse(":set top_k 50"), Ok(Command::Set(Setting::TopK(50))));
    /// ```
    ///
    /// # Errors
    /// It starts with one colon and is no command → [`ParseError::Command`], [`ParseError::Setting`] for an unknown
    /// setting, [`ParseError::Value`] for a value that is missing, malformed, out of range or not wanted.
    pub fn parse(line: &'a str) -> Result<Self, ParseError<'a>> {
        let Some(rest) = line.strip_prefix(':') else {
            return Ok(if line.is_empty() { Command::Empty } else { Command::Prompt(line) });
        };
        if rest.starts_with(':') {
            return Ok(Command::Prompt(rest));
        }
        let (name, value) = split(rest);
        match name {
            "set" => Setting::parse(value).map(Command::Set),
            "seed" => number(":seed", "a whole number", value, |_| true).map(Command::Seed),
            "max" => number(":max", "a whole number", value, |_| true).map(Command::Max),
            "overflow" => overflow(value).map(Command::Overflow),
            "save" => file(":save", value).map(Command::Save),
            "load" => file(":load", value).map(Command::Load),
            "hash" => switch(":hash", value).map(Command::Hash),
            "echo" => switch(":echo", value).map(Command::Echo),
            "stats" => alone(":stats", value, Command::Stats),
            "plan" => alone(":plan", value, Command::Plan),
            "open" => alone(":open", value, Command::Open),
            "checksum" => alone(":checksum", value, Command::Checksum),
            "check" => alone(":check", value, Command::Check),
            "help" => alone(":help", value, Command::Help),
            "quit" => alone(":quit", value, Command::Quit),
            _ => Err(ParseError::Command(name)),
        }
    }
}

impl Setting {
    /// Puts the new value into its place; whether the model and the memory can bear it is not asked here.
    pub fn apply(self, options: &mut Options) {
        match self {
            Setting::Temperature(x) => options.sampling.temperature = x,
            Setting::TopK(n) => options.sampling.top_k = n,
            Setting::TopP(x) => options.sampling.top_p = x,
            Setting::MinP(x) => options.sampling.min_p = x,
            Setting::TypicalP(x) => options.sampling.typical_p = x,
            Setting::EpsilonCutoff(x) => options.sampling.epsilon_cutoff = x,
            Setting::EtaCutoff(x) => options.sampling.eta_cutoff = x,
            Setting::RepetitionPenalty(x) => options.sampling.repetition_penalty = x,
            Setting::NoRepeatNgramSize(n) => options.sampling.no_repeat_ngram_size = n,
            Setting::MinLength(n) => options.sampling.min_length = n,
            Setting::MinNewTokens(n) => options.sampling.min_new_tokens = n,
            Setting::Context(n) => options.state.context = n,
            Setting::Kv(format) => options.state.kv = format,
            Setting::Batch(n) => options.state.batch = n,
        }
    }

    fn parse(line: &str) -> Result<Self, ParseError<'_>> {
        const COUNT: &str = "a whole number from 1 on";
        const WHOLE: &str = "a whole number";
        const SHARE: &str = "a number from 0 to 1";
        const PART: &str = "a number over 0, up to 1";
        let share = |x: &f32| (0.0..=1.0).contains(x);
        let part = |x: &f32| (f32::MIN_POSITIVE..=1.0).contains(x);
        let factor = |x: &f32| (f32::MIN_POSITIVE..=1e6).contains(x);
        let (name, value) = split(line);
        match name {
            "temperature" => number("temperature", "a number from 0 to 1000000", value, |x| (0.0..=1e6).contains(x))
                .map(Setting::Temperature),
            "top_k" => number("top_k", WHOLE, value, |_| true).map(Setting::TopK),
            "top_p" => number("top_p", PART, value, part).map(Setting::TopP),
            "min_p" => number("min_p", SHARE, value, share).map(Setting::MinP),
            "typical_p" => number("typical_p", PART, value, part).map(Setting::TypicalP),
            "epsilon_cutoff" => number("epsilon_cutoff", SHARE, value, share).map(Setting::EpsilonCutoff),
            "eta_cutoff" => number("eta_cutoff", SHARE, value, share).map(Setting::EtaCutoff),
            "no_repeat_ngram_size" => {
                number("no_repeat_ngram_size", WHOLE, value, |_| true).map(Setting::NoRepeatNgramSize)
            }
            "min_length" => number("min_length", WHOLE, value, |_| true).map(Setting::MinLength),
            "min_new_tokens" => number("min_new_tokens", WHOLE, value, |_| true).map(Setting::MinNewTokens),
            "repetition_penalty" => number("repetition_penalty", "a number over 0, up to 1000000", value, factor)
                .map(Setting::RepetitionPenalty),
            "context" => number("context", COUNT, value, |&n| n > 0).map(Setting::Context),
            "kv" => match value {
                "f32" => Ok(Setting::Kv(KvFormat::F32)),
                "f16" => Ok(Setting::Kv(KvFormat::F16)),
                "q8_0" => Ok(Setting::Kv(KvFormat::Q8_0)),
                "q4_0" => Ok(Setting::Kv(KvFormat::Q4_0)),
                found => Err(ParseError::Value { of: "kv", wants: "f32, f16, q8_0 or q4_0", found }),
            },
            "batch" => number("batch", COUNT, value, |&n| n > 0).map(Setting::Batch),
            _ => Err(ParseError::Setting(name)),
        }
    }
}

/// The first word, and the rest without the spaces around it.
fn split(line: &str) -> (&str, &str) {
    let line = line.trim();
    match line.split_once(char::is_whitespace) {
        Some((word, rest)) => (word, rest.trim_start()),
        None => (line, ""),
    }
}

fn number<'a, T: core::str::FromStr>(
    of: &'static str,
    wants: &'static str,
    found: &'a str,
    fits: impl Fn(&T) -> bool,
) -> Result<T, ParseError<'a>> {
    found.parse().ok().filter(fits).ok_or(ParseError::Value { of, wants, found })
}

fn overflow(found: &str) -> Result<Overflow, ParseError<'_>> {
    let keep = found.strip_prefix("slide:").and_then(|keep| keep.parse().ok());
    match (found, keep) {
        ("stop", _) => Ok(Overflow::Stop),
        (_, Some(keep)) => Ok(Overflow::Slide { keep }),
        _ => Err(ParseError::Value { of: ":overflow", wants: "stop, or slide:N to keep the first N tokens", found }),
    }
}

fn file<'a>(of: &'static str, found: &'a str) -> Result<&'a str, ParseError<'a>> {
    if found.is_empty() { Err(ParseError::Value { of, wants: "the name of a file", found }) } else { Ok(found) }
}

fn switch<'a>(of: &'static str, found: &'a str) -> Result<bool, ParseError<'a>> {
    match found {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(ParseError::Value { of, wants: "on or off", found }),
    }
}

fn alone<'a>(of: &'static str, found: &'a str, command: Command<'a>) -> Result<Command<'a>, ParseError<'a>> {
    if found.is_empty() { Ok(command) } else { Err(ParseError::Value { of, wants: "no value", found }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn a_line_without_a_colon_is_a_prompt_as_it_is() {
        assert_eq!(Command::parse("  Once upon "), Ok(Command::Prompt("  Once upon ")));
        assert_eq!(Command::parse("::) she said"), Ok(Command::Prompt(":) she said")));
        assert_eq!(Command::parse(""), Ok(Command::Empty));
    }

    #[test]
    fn commands() {
        let cases = [
            (":seed 42", Command::Seed(42)),
            (": max  64 ", Command::Max(64)),
            (":overflow stop", Command::Overflow(Overflow::Stop)),
            (":overflow slide:8", Command::Overflow(Overflow::Slide { keep: 8 })),
            (":hash on", Command::Hash(true)),
            (":echo off", Command::Echo(false)),
            (":stats", Command::Stats),
            (":plan ", Command::Plan),
            (":save a text.session ", Command::Save("a text.session")),
            (":load /tmp/a", Command::Load("/tmp/a")),
            (":open", Command::Open),
            (":checksum", Command::Checksum),
            (":check", Command::Check),
            (":help", Command::Help),
            (":quit", Command::Quit),
            (":set temperature 0.8", Command::Set(Setting::Temperature(0.8))),
            (":set top_k 50", Command::Set(Setting::TopK(50))),
            (":set top_p 0.95", Command::Set(Setting::TopP(0.95))),
            (":set min_p 0", Command::Set(Setting::MinP(0.0))),
            (":set typical_p 0.9", Command::Set(Setting::TypicalP(0.9))),
            (":set epsilon_cutoff 3e-4", Command::Set(Setting::EpsilonCutoff(3e-4))),
            (":set eta_cutoff 6e-4", Command::Set(Setting::EtaCutoff(6e-4))),
            (":set no_repeat_ngram_size 3", Command::Set(Setting::NoRepeatNgramSize(3))),
            (":set min_length 20", Command::Set(Setting::MinLength(20))),
            (":set min_new_tokens 10", Command::Set(Setting::MinNewTokens(10))),
            (":set repetition_penalty 1.3", Command::Set(Setting::RepetitionPenalty(1.3))),
            (":set context 256", Command::Set(Setting::Context(256))),
            (":set kv q8_0", Command::Set(Setting::Kv(KvFormat::Q8_0))),
            (":set batch 8", Command::Set(Setting::Batch(8))),
        ];
        for (line, command) in cases {
            assert_eq!(Command::parse(line), Ok(command), "{line}");
        }
    }

    #[test]
    fn what_is_no_command_says_what_exists() {
        let cases = [
            (":sed 1", "no command :sed; there are :set, :seed, "),
            (":", "no command :; there are :set"),
            (":set", ":set needs one of temperature, top_k"),
            (":set heat 1", "no setting heat; there are temperature, top_k"),
            (":set top_p 0", "top_p needs a number over 0, up to 1, not 0"),
            (":set min_p 1.5", "min_p needs a number from 0 to 1, not 1.5"),
            (":set temperature nan", "temperature needs a number from 0 to 1000000, not nan"),
            (":set temperature 1e7", "temperature needs a number from 0 to 1000000, not 1e7"),
            (":set context 0", "context needs a whole number from 1 on, not 0"),
            (":set kv q5_0", "kv needs f32, f16, q8_0 or q4_0, not q5_0"),
            (":seed", ":seed needs a whole number"),
            (":max -1", ":max needs a whole number, not -1"),
            (":overflow slide", ":overflow needs stop, or slide:N to keep the first N tokens, not slide"),
            (":save", ":save needs the name of a file"),
            (":load  ", ":load needs the name of a file"),
            (":hash maybe", ":hash needs on or off, not maybe"),
            (":quit now", ":quit needs no value, not now"),
        ];
        for (line, text) in cases {
            let error = Command::parse(line).unwrap_err().to_string();
            assert!(error.starts_with(text), "{line}: {error}");
        }
    }

    #[test]
    fn help_and_errors_name_the_same_commands() {
        for (usage, _) in &HELP[1..] {
            let mut words = usage.split(' ');
            let name = words.next().unwrap();
            assert!(COMMANDS.split(", ").any(|n| n == name), "{name}");
            if name == ":set" {
                let setting = words.next().unwrap();
                assert!(SETTINGS.split(", ").any(|n| n == setting), "{setting}");
            }
        }
    }
}
