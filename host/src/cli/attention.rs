//! `gptrickle attention`: who attends to whom, in every layer and head.

mod page;

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use gptrickle_core::gpt2::{Plan, Seen};
use gptrickle_core::ops::Engine;
use gptrickle_core::tokenizer::Token;
use serde::Serialize;

use super::model::{self, EngineArgs, MemoryArgs, ModelArgs, Opened};
use super::sequence::Sequence;
use super::text::{self, TextArgs, Word};
use super::{advance, interrupt, note, progress, result_file};
use crate::npy;

const EXAMPLES: &str = "Examples:
  gptrickle attention \"The cat sat, because it was tired\" -o cat.html     to look at in a browser
  gptrickle attention -m gpt2.F16.gguf -f a.txt -o a.npy                 [layers, heads, tokens, tokens]
  gptrickle attention \"The cat sat\" --json

The page needs nothing but itself: no network, no other files. Row i of a head tells how much token i attends to each
token up to itself, in shares of 1, as transformers' GPT2Model gives it with output_attentions.";

/// Show who attends to whom, in every layer and head: a page to look at, or a NumPy file
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

    /// File to write: a page if it ends in .html, float32 [layers, heads, tokens, tokens] if in .npy; replaces one that
    /// is there
    #[arg(short, long, value_name = "FILE", value_parser = output, required_unless_present = "json")]
    output: Option<Target>,

    /// Prints tokens and weights as one JSON object
    #[arg(long, conflicts_with = "output")]
    json: bool,
}

/// A file, and what is to be in it.
#[derive(Debug, Clone)]
struct Target {
    path: PathBuf,
    page: bool,
}

fn output(text: &str) -> Result<Target, String> {
    let path = PathBuf::from(text);
    let is = |extension: &str| path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension));
    match (is("html") || is("htm"), is("npy")) {
        (page @ true, _) | (page, true) => Ok(Target { path, page }),
        _ => Err("its name must end in .html, for a page, or in .npy".to_owned()),
    }
}

/// Every weight of a text.
struct Attention {
    n_layer: usize,
    n_head: usize,
    tokens: usize,
    weights: Vec<f32>, // (n_layer, n_head, tokens, tokens)
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    tokens: &'a [Word],
    /// By layer, head, and token that attends.
    attention: Vec<Vec<Vec<&'a [f32]>>>,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    args.engine.run(|engine| run_on(engine, &args))
}

fn run_on(engine: Engine, args: &Args) -> anyhow::Result<ExitCode> {
    let mut opened = args.model.open()?;
    let tokens = args.text.tokens(&mut opened)?;
    let words = text::words(&mut opened, &tokens)?;
    let Some(Target { path, page }) = &args.output else {
        let attention = args.attention(engine, &mut opened, &tokens)?;
        let report = Report { tokens: &words, attention: attention.nested() };
        let mut out = BufWriter::new(io::stdout().lock());
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
        return Ok(out.flush().map(|()| ExitCode::SUCCESS)?);
    };
    if *page {
        page::check_size(&opened.model.header.config, tokens.len())?;
    }
    // Without folders, as a page may be shown to others.
    let name = Path::new(&opened.name).file_name().map_or(opened.name.clone(), |name| name.display().to_string());
    let code = result_file::write(path, |out| {
        let attention = args.attention(engine, &mut opened, &tokens)?;
        let written = if *page { page::write(out, &name, &words, &attention) } else { attention.write_npy(out) };
        written.and_then(|()| out.flush()).with_context(|| format!("cannot write {}", path.display()))
    })?;
    if *page && code == ExitCode::SUCCESS {
        note(format_args!("{}: open it in a browser", path.display()));
    }
    Ok(code)
}

impl Args {
    /// Runs the text.
    fn attention(&self, engine: Engine, opened: &mut Opened, tokens: &[Token]) -> anyhow::Result<Attention> {
        let config = opened.model.header.config;
        let options = text::options(&self.memory, &config, tokens)?;
        let mut memory = model::memory(Plan::new(&config, &options).total())?;
        let mut sequence = Sequence::new(engine, opened, &options, &mut memory)?;
        let (n_layer, n_head, n) = (config.n_layer, config.n_head, tokens.len());
        let mut all = model::floats(&[n_layer, n_head, n, n])?;
        let (bar, mut done) = (progress(n, "computing attention"), 0);
        for batch in tokens.chunks(options.batch) {
            interrupt::check()?;
            sequence.watch(batch, |seen| match seen {
                Seen::Attention { layer, head, weights } => {
                    let row = (layer * n_head + head) * n + weights.len() - 1;
                    all[row * n..][..weights.len()].copy_from_slice(weights);
                }
                Seen::Input(..) | Seen::Residual(..) => {}
            })?;
            done += batch.len();
            advance(&bar, done);
        }
        bar.finish_and_clear();
        Ok(Attention { n_layer, n_head, tokens: n, weights: all })
    }
}

impl Attention {
    /// What each token attends to up to itself: rows of 1, 2, 3 … weights, head by head, layer by layer.
    fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.weights.chunks_exact(self.tokens).enumerate().map(|(i, row)| &row[..=i % self.tokens])
    }

    fn nested(&self) -> Vec<Vec<Vec<&[f32]>>> {
        let head = self.tokens * self.tokens;
        let layers = self
            .weights
            .chunks_exact(self.n_head * head)
            .map(|layer| layer.chunks_exact(head).map(|head| head.chunks_exact(self.tokens).collect()).collect());
        layers.collect()
    }

    fn write_npy(&self, out: &mut dyn Write) -> io::Result<()> {
        npy::write_header(out, &[self.n_layer, self.n_head, self.tokens, self.tokens])?;
        npy::write_values(out, &self.weights)
    }
}
