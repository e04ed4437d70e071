//! `gptrickle logits`: what the model makes of every position of a text.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use gptrickle_core::gpt2::Plan;
use gptrickle_core::ops::Engine;
use gptrickle_core::tokenizer::{Control, Token};
use serde::Serialize;

use super::model::{self, EngineArgs, MemoryArgs, ModelArgs, Opened};
use super::sequence::Sequence;
use super::text::{self, TextArgs};
use super::tokenize::quoted;
use super::{advance, interrupt, progress, result_file};
use crate::npy;

const EXAMPLES: &str = "Examples:
  gptrickle logits \"Once upon a\"                  the ten likeliest next tokens
  gptrickle logits --tokens 550,503 -o out.npy    two rows for numpy.load";

/// Show the likeliest next tokens, or write the logits of every position
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    text: TextArgs,

    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    memory: MemoryArgs,

    #[command(flatten)]
    engine: EngineArgs,

    /// Writes every position's logits as a NumPy file, float32 [tokens, vocabulary]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Prints the likeliest tokens as JSON
    #[arg(long, conflicts_with = "output")]
    json: bool,
}

/// A candidate for the next token.
#[derive(Serialize)]
struct Row {
    token: u32,
    text: String,
    #[serde(skip)]
    quoted: String,
    logit: f32,
    probability: f64,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    args.engine.run(|engine| run_on(engine, &args))
}

fn run_on(engine: Engine, args: &Args) -> anyhow::Result<ExitCode> {
    let mut opened = args.model.open()?;
    let tokens = args.text.tokens(&mut opened)?;
    match &args.output {
        Some(path) => save(path, engine, args, &mut opened, &tokens),
        None => {
            let last = every_position(engine, args, &mut opened, &tokens, |_| Ok(()))?;
            table(args, &mut opened, &last)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Writes the logits of every position to a file.
fn save(path: &Path, engine: Engine, args: &Args, opened: &mut Opened, tokens: &[Token]) -> anyhow::Result<ExitCode> {
    let context = || format!("cannot write {}", path.display());
    let shape = [tokens.len(), opened.model.header.config.n_vocab];
    result_file::write(path, |out| {
        npy::write_header(out, &shape).with_context(context)?;
        every_position(engine, args, opened, tokens, |logits| npy::write_values(out, logits).with_context(context))?;
        out.flush().with_context(context)
    })
}

/// Shows the logits of each batch of positions in turn, and returns those of the last position.
fn every_position(
    engine: Engine,
    args: &Args,
    opened: &mut Opened,
    tokens: &[Token],
    mut show: impl FnMut(&[f32]) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<f32>> {
    let config = opened.model.header.config;
    let options = text::options(&args.memory, &config, tokens)?;
    let mut memory = model::memory(Plan::new(&config, &options).total())?;
    let mut sequence = Sequence::new(engine, opened, &options, &mut memory)?;
    let (bar, mut done) = (progress(tokens.len(), "computing logits"), 0);
    let mut last = Vec::new();
    for batch in tokens.chunks(options.batch) {
        interrupt::check()?;
        let logits = sequence.logits(batch, 0..batch.len())?;
        show(logits)?;
        done += batch.len();
        if done == tokens.len() {
            last = logits[(batch.len() - 1) * config.n_vocab..].to_vec();
        }
        advance(&bar, done);
    }
    bar.finish_and_clear();
    Ok(last)
}

fn table(args: &Args, opened: &mut Opened, logits: &[f32]) -> anyhow::Result<()> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let best = order.first().map_or(0.0, |&i| f64::from(logits[i]));
    let total: f64 = logits.iter().map(|&x| (f64::from(x) - best).exp()).sum();
    let likeliest: Vec<Token> = order.iter().take(10).map(|&i| Token(i as u32)).collect();
    let rows = text::with_tokenizer(opened, |tokenizer, opened| {
        let mut bytes = vec![0; opened.model.vocabulary.max_token_bytes()];
        let row = |&token: &Token| {
            let len = tokenizer.decode(&mut opened.src, token, Control::Recognise, &mut bytes)?;
            let logit = logits[token.0 as usize];
            Ok(Row {
                token: token.0,
                text: String::from_utf8_lossy(&bytes[..len]).into_owned(),
                quoted: quoted(&bytes[..len]),
                logit,
                probability: (f64::from(logit) - best).exp() / total,
            })
        };
        likeliest.iter().map(row).collect::<anyhow::Result<Vec<_>>>()
    })?;
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&rows)?)?;
        return Ok(());
    }
    writeln!(out, "{:>6}  {:>9}  {:>11}  text", "token", "logit", "probability")?;
    for Row { token, quoted, logit, probability, .. } in rows {
        writeln!(out, "{token:>6}  {logit:>9.4}  {:>10.2}%  {quoted}", probability * 100.0)?;
    }
    Ok(())
}
