//! `gptrickle logits`: what the model makes of every position of a text.

use std::error::Error;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use gptrickle_core::arena::{ALIGN, Arena};
use gptrickle_core::gpt2::{self, Plan, State, Weights};
use gptrickle_core::ops::Engine;
use gptrickle_core::tokenizer::{Control, Token, Tokenizer};
use serde::Serialize;

use super::model::{self, EngineArgs, MemoryArgs, ModelArgs, Opened};
use super::tokenize::{parse_ids, quoted};
use super::{advance, note, progress, text_or_stdin};
use crate::npy;
use crate::output::Output;

const EXAMPLES: &str = "Examples:
  gptrickle logits \"Once upon a\"                  the ten likeliest next tokens
  gptrickle logits --tokens 550,503 -o out.npy    two rows for numpy.load";

/// Show the likeliest next tokens, or write the logits of every position
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Text to run; "-" reads it from standard input
    #[arg(value_name = "TEXT", required_unless_present = "tokens")]
    text: Option<String>,

    /// Token ids to run instead of a text
    #[arg(long, value_name = "IDS", conflicts_with = "text")]
    tokens: Option<String>,

    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    memory: MemoryArgs,

    #[command(flatten)]
    engine: EngineArgs,

    /// Writes every position's logits as a NumPy file, float32 [tokens, vocabulary]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Takes <|endoftext|> and other control tokens in the text as tokens
    #[arg(long)]
    special: bool,

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
    let mut memory = vec![0; Tokenizer::bytes(&opened.model.vocabulary) + ALIGN];
    let tokenizer = Tokenizer::load(&opened.model.vocabulary, &mut opened.src, &mut Arena::new(&mut memory))
        .with_context(|| opened.name.clone())?;
    let tokens = args.tokens(&mut opened, &tokenizer)?;
    if tokens.is_empty() {
        bail!("the text is empty: there is no position to compute");
    }
    match &args.output {
        Some(path) => save(path, engine, args, &mut opened, &tokens),
        None => {
            let last = every_position(engine, args, &mut opened, &tokens, |_| Ok(()))?;
            table(args, &mut opened, &tokenizer, &last)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Writes the logits of every position to a file.
fn save(path: &Path, engine: Engine, args: &Args, opened: &mut Opened, tokens: &[Token]) -> anyhow::Result<ExitCode> {
    let context = || format!("cannot write {}", path.display());
    let positions = tokens.len();
    let n_vocab = opened.model.header.config.n_vocab;
    let mut write = |out: &mut dyn Write| {
        npy::write_header(out, positions, n_vocab).with_context(context)?;
        every_position(engine, args, opened, tokens, |logits| npy::write_values(out, logits).with_context(context))?;
        out.flush().with_context(context)
    };
    // A file appears under its name only when it is whole; anything else, such as a device, is written to as it is.
    if fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        write(&mut BufWriter::new(File::create(path).with_context(context)?))?;
        return Ok(ExitCode::SUCCESS);
    }
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::SeqCst)).context("cannot listen for Ctrl-C")?;
    let mut output = Output::create(path, true)?;
    match write(&mut output) {
        Err(error) if error.is::<Interrupted>() => {
            note(format_args!("interrupted: {} was not written", path.display()));
            Ok(ExitCode::from(130))
        }
        written => {
            written?;
            output.finish().with_context(context)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Set by Ctrl-C.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Ctrl-C came before the last position.
#[derive(Debug)]
struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl Error for Interrupted {}

/// Shows the logits of each position in turn, and returns those of the last.
fn every_position(
    engine: Engine,
    args: &Args,
    opened: &mut Opened,
    tokens: &[Token],
    mut show: impl FnMut(&[f32]) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<f32>> {
    let header = &opened.model.header;
    let mut options = args.memory.options(&header.config)?;
    if tokens.len() > options.context {
        return Err(gpt2::Error::Full { tokens: tokens.len(), left: options.context }.into());
    }
    options.context = tokens.len();
    options.batch = options.batch.min(tokens.len());
    let mut memory = model::memory(Plan::new(&header.config, &options).total())?;
    let mut arena = Arena::new(&mut memory);
    let weights = Weights::load(header, &opened.model.file, &mut opened.src, &mut arena)?;
    let mut state = State::new(&header.config, &options, &mut arena)?;
    state.set_engine(engine);
    let n_vocab = header.config.n_vocab;
    let mut logits = vec![0.0; options.batch * n_vocab];
    let bar = progress(tokens.len(), "computing logits");
    let mut n = 0;
    for tokens in tokens.chunks(options.batch) {
        if INTERRUPTED.load(Ordering::SeqCst) {
            return Err(Interrupted.into());
        }
        gpt2::forward(&mut opened.src, &weights, &mut state, tokens.iter().map(|token| token.0), true)?;
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
            quoted: quoted(&bytes[..len]),
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
    for Row { token, quoted, logit, probability, .. } in rows {
        writeln!(out, "{token:>6}  {logit:>9.4}  {:>10.2}%  {quoted}", probability * 100.0)?;
    }
    Ok(())
}

impl Args {
    fn tokens(&self, opened: &mut Opened, tokenizer: &Tokenizer) -> anyhow::Result<Vec<Token>> {
        if let Some(ids) = &self.tokens {
            return parse_ids(ids);
        }
        let text = text_or_stdin(self.text.as_deref().unwrap_or_default())?;
        let control = if self.special { Control::Recognise } else { Control::Ignore };
        // What `generate` would run.
        let prefix = tokenizer.vocabulary().prefix();
        Ok(prefix.into_iter().chain(model::encode(tokenizer, &mut opened.src, &text, control)?).collect())
    }
}
