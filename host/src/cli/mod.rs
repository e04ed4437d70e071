//! The command line: one file a verb.
//!
//! Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 it could not be done,
//! 2 the command line is wrong, 130 interrupted.

mod attention;
mod bench;
mod convert;
mod decoding;
mod features;
mod generate;
mod head_agreement;
mod importance;
mod inspect;
mod interrupt;
mod logits;
mod model;
mod output;
mod perplexity;
mod plan;
mod quantize;
mod repl;
mod result_file;
mod sampling;
mod saved;
mod sequence;
mod suggest;
mod synth;
mod text;
mod tokenize;
mod verify;
mod writing;

use std::fmt::{self, Display};
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

/// Text from a stock GPT-2 GGUF file, with the engine that runs on boards without an operating system.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "Examples:
  gptrickle generate \"Once upon a time\"
  gptrickle generate -m distilgpt2.Q4_K_M.gguf \"The quick brown fox\" -n 40
  gptrickle suggest \"The cat sat on\"
  gptrickle repl
  gptrickle tokenize \"Hello world\"
  gptrickle logits -m model.gguf --tokens 1,2,3 -o logits.npy
  gptrickle features \"Once upon a time\" -o features.npy
  gptrickle attention \"Once upon a time\" -o attention.html
  gptrickle inspect -m model.gguf
  gptrickle head-agreement -m untied.gguf -f story.txt
  gptrickle verify model.gguf
  gptrickle plan -m model.gguf --ram 8MiB --bandwidth 23MB/s
  gptrickle convert my-gpt2 --type Q4_K_M -o my-gpt2.gguf
  gptrickle quantize model.F16.gguf model.Q4_K_M.gguf Q4_K_M
  gptrickle perplexity -m model.gguf -f text.txt
  gptrickle synth --shape distilgpt2 --type Q4_K_M -o synth.gguf
  gptrickle bench -m synth.gguf

Without -m, the built-in demo model is used: it writes short, simple stories.";

#[derive(Debug, Subcommand)]
enum Verb {
    Generate(Box<generate::Args>),
    Suggest(suggest::Args),
    Repl(repl::Args),
    Tokenize(tokenize::Args),
    Logits(logits::Args),
    Features(features::Args),
    Attention(attention::Args),
    HeadAgreement(head_agreement::Args),
    Importance(importance::Args),
    Inspect(inspect::Args),
    Verify(verify::Args),
    Plan(plan::Args),
    Convert(convert::Args),
    Perplexity(perplexity::Args),
    Quantize(quantize::Args),
    Synth(synth::Args),
    Bench(bench::Args),
}

/// Runs the command line and says how the process ends.
pub fn run() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Generate(args) => generate::run(*args),
        Verb::Suggest(args) => suggest::run(args),
        Verb::Repl(args) => repl::run(args),
        Verb::Tokenize(args) => tokenize::run(args),
        Verb::Logits(args) => logits::run(args),
        Verb::Features(args) => features::run(args),
        Verb::Attention(args) => attention::run(args),
        Verb::HeadAgreement(args) => head_agreement::run(args),
        Verb::Importance(args) => importance::run(args),
        Verb::Inspect(args) => inspect::run(args),
        Verb::Verify(args) => verify::run(args),
        Verb::Plan(args) => plan::run(args),
        Verb::Convert(args) => convert::run(args),
        Verb::Perplexity(args) => perplexity::run(args),
        Verb::Quantize(args) => quantize::run(args),
        Verb::Synth(args) => synth::run(args),
        Verb::Bench(args) => bench::run(args),
    };
    match result {
        Ok(code) => code,
        // Whoever read our output has seen enough: `gptrickle … | head`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            note(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
    io.is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

/// Writes a line to standard error; where nobody takes it, nothing is lost.
fn note(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// A text of the command line: "-" stands for all of standard input.
fn text_or_stdin(text: &str) -> anyhow::Result<Vec<u8>> {
    if text != "-" {
        return Ok(text.into());
    }
    let mut bytes = Vec::new();
    io::stdin().read_to_end(&mut bytes).context("cannot read standard input")?;
    Ok(bytes)
}

/// A bar over `len` tokens on standard error; it shows only on a terminal, and only once a second has passed.
fn progress(len: usize, what: &'static str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} tokens, {rate}, {eta} left");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    let style = style.with_key("rate", |state: &ProgressState, out: &mut dyn fmt::Write| {
        let _ = write!(out, "{:.1} tokens/s", state.per_sec());
    });
    let bar = ProgressBar::with_draw_target(Some(len as u64), ProgressDrawTarget::stderr());
    bar.with_style(style).with_message(what)
}

/// Moves the bar to `done`, once it is worth showing.
fn advance(bar: &ProgressBar, done: usize) {
    if bar.elapsed() > Duration::from_secs(1) {
        bar.set_position(done as u64);
    }
}

/// A bar over `len` bytes on standard error, like [`progress`].
fn byte_progress(len: u64, what: &'static str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(
        "{msg} {wide_bar} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left",
    );
    let bar = ProgressBar::with_draw_target(Some(len), ProgressDrawTarget::stderr());
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())).with_message(what)
}
