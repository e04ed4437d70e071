//! `gptrickle logits`: what the model makes of every position of a text.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use gptrickle_core::arena::{ALIGN, Arena};
use gptrickle_core::gpt2::{self, Plan, State, Weights};
use gptrickle_core::tokenizer::{Control, Token, Tokenizer};
use serde::Serialize;

use super::model::{MemoryArgs, ModelArgs, Opened};
use super::tokenize::parse_ids;
use super::{advance, progress};
use crate::npy;

const EXAMPLES: &str = "Examples:
  gptrickle logits \"Once upon a\"                             the ten likeliest next tokens
  gptrickle logits -m model.gguf --tokens 1,2,3 -o out.npy   numpy.load(\"out.npy\").shape == (3, n_vocab)";

/// Show the likeliest next tokens, or write the logits of every position
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Text to run
    #[arg(value_name = "TEXT", required_unless_present = "tokens")]
    text: Option<String>,

    /// Token ids to run instead of a text
    #[arg(long, value_name = "IDS", conflicts_with = "text")]
    tokens: Option<String>,

    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    memory: MemoryArgs,

    /// Writes every position's logits as a NumPy file, float32 [tokens, vocabulary]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Takes <|endoftext|> and other control tokens in the text as tokens
    #[arg(long)]
    special: bool,

    /// Prints the likeliest tokens as JSON
    #[arg(long)]
    json: bool,
}

/// A candidate for the next token.
#[derive(Serialize)]
struct Row {
    token: u32,
    text: String,
    logit: f32,
    probability: f64,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut opened = args.model.open()?;
    let name = opened.name.clone();
    let mut memory = vec![0; Tokenizer::bytes(&opened.model.vocabulary) + ALIGN];
    let tokenizer = Tokenizer::load(&opened.model.vocabulary, &mut opened.src, &mut Arena::new(&mut memory))
        .with_context(|| name.clone())?;
    let tokens = args.tokens(&mut opened, &tokenizer)?;
    if tokens.is_empty() {
        bail!("the text is empty: there is no position to compute");
    }
    let last = match &args.output {
        None => every_position(&args, &mut opened, &tokens, |_| Ok(())).with_context(|| name)?,
        Some(path) => {
            let context = || format!("cannot write {}", path.display());
            // A file appears under its name only when it is whole.
            let part = path.with_added_extension("part");
            let mut out = BufWriter::new(File::create(&part).with_context(context)?);
            let written = npy::write_header(&mut out, tokens.len(), opened.model.header.config.n_vocab)
                .with_context(context)
                .and_then(|()| {
                    every_position(&args, &mut opened, &tokens, |logits| {
                        npy::write_values(&mut out, logits).with_context(context)
                    })
                })
                .and_then(|last| {
                    out.flush().with_context(context)?;
                    std::fs::rename(&part, path).with_context(context)?;
                    Ok(last)
                });
            if written.is_err() {
                let _ = std::fs::remove_file(&part); // the first error is the one to tell
            }
            written?
        }
    };
    if args.output.is_none() {
        table(&args, &mut opened, &tokenizer, &last)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows the logits of each position in turn, and returns those of the last.
fn every_position(
    args: &Args,
    opened: &mut Opened,
    tokens: &[u32],
    mut show: impl FnMut(&[f32]) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<f32>> {
    let header = &opened.model.header;
    let mut options = args.memory.options(&header.config);
    options.context = options.context.min(tokens.len().max(1));
    if tokens.len() > options.context {
        return Err(gpt2::Error::Full { tokens: tokens.len(), left: options.context }.into());
    }
    let mut memory = vec![0; Plan::new(&header.config, &options).total() + ALIGN];
    let mut arena = Arena::new(&mut memory);
    let weights = Weights::load(header, &opened.model.file, &mut opened.src, &mut arena)?;
    let mut state = State::new(&header.config, &options, &mut arena)?;
    let n_vocab = header.config.n_vocab;
    let mut logits = vec![0.0; options.batch.min(tokens.len()) * n_vocab];
    let bar = progress(tokens.len(), "computing logits");
    let mut n = 0;
    for tokens in tokens.chunks(options.batch) {
        gpt2::forward(&mut opened.src, &weights, &mut state, tokens.iter().copied())?;
        gpt2::logits(&mut opened.src, &weights, &mut state, 0..tokens.len(), |i, first, values| {
            logits[i * n_vocab + first..][..values.len()].copy_from_slice(values);
        })?;
        n = tokens.len();
        logits[..n * n_vocab].chunks_exact(n_vocab).try_for_each(&mut show)?;
        advance(&bar, state.len());
    }
    bar.finish_and_clear();
    Ok(logits[(n - 1) * n_vocab..n * n_vocab].to_vec())
}

fn table(args: &Args, opened: &mut Opened, tokenizer: &Tokenizer, logits: &[f32]) -> anyhow::Result<()> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let best = order.first().map_or(0.0, |&i| f64::from(logits[i]));
    let total: f64 = logits.iter().map(|&x| (f64::from(x) - best).exp()).sum();
    let mut bytes = vec![0; opened.model.vocabulary.max_token_bytes()];
    let mut rows = Vec::new();
    for &i in order.iter().take(10) {
        let len = tokenizer.decode(&mut opened.src, Token(i as u32), Control::Recognise, &mut bytes)?;
        rows.push(Row {
            token: i as u32,
            text: String::from_utf8_lossy(&bytes[..len]).into_owned(),
            logit: logits[i],
            probability: (f64::from(logits[i]) - best).exp() / total,
        });
    }
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&rows)?)?;
        return Ok(());
    }
    writeln!(out, "{:>6}  {:>9}  {:>11}  text", "token", "logit", "probability")?;
    for Row { token, text, logit, probability } in rows {
        writeln!(out, "{token:>6}  {logit:>9.4}  {:>10.2}%  {text:?}", probability * 100.0)?;
    }
    Ok(())
}

impl Args {
    fn tokens(&self, opened: &mut Opened, tokenizer: &Tokenizer) -> anyhow::Result<Vec<u32>> {
        if let Some(ids) = &self.tokens {
            return parse_ids(ids);
        }
        let text = self.text.as_deref().unwrap_or("").as_bytes();
        let control = if self.special { Control::Recognise } else { Control::Ignore };
        let mut scratch = vec![0; Tokenizer::scratch_len(text.len())];
        let mut ids = Vec::new();
        tokenizer.encode_each(&mut opened.src, text, control, &mut scratch, |token| ids.push(token.0))?;
        Ok(ids)
    }
}
