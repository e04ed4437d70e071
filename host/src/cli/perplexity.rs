//! `gptrickle perplexity`: how well a model predicts a text, and how far it is from a better file.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{bail, ensure};
use gptrickle_core::gpt2::Plan;
use gptrickle_core::ops::Engine;
use gptrickle_core::tokenizer::{Control, Token};
use serde::Serialize;
use serde_json::json;

use super::model::{self, EngineArgs, MemoryArgs, ModelArgs, Opened};
use super::sequence::{self, Sequence};
use super::text::SpecialArgs;
use super::{advance, progress};
use crate::perplexity::{Distance, Prediction, Score, Window, windows};

const EXAMPLES: &str = "Examples:
  gptrickle perplexity -m distilgpt2.Q4_K_M.gguf -f wiki.test.raw
  gptrickle perplexity -m model.Q2_K.gguf -f text.txt --compare model.F16.gguf

The text is cut into windows of the context, each a stride behind the one before; a token counts in the first window
that has it, so it has at least context - stride tokens before it. A smaller stride gives a better and slower figure;
where it is the context, windows do not overlap.";

/// Measure how well a model predicts a text: perplexity, bits per byte, distance to a better-precision file
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// File of the text; "-" reads it from standard input
    #[arg(short, long, value_name = "TEXT")]
    file: PathBuf,

    #[command(flatten)]
    model: ModelArgs,

    /// Tokens from one window to the next; half the context if left out
    #[arg(long, value_name = "S")]
    stride: Option<usize>,

    /// File of the same model in a better precision: shows how far the predictions are from its
    #[arg(long, value_name = "REF.gguf")]
    compare: Option<PathBuf>,

    #[command(flatten)]
    memory: MemoryArgs,

    #[command(flatten)]
    engine: EngineArgs,

    #[command(flatten)]
    special: SpecialArgs,

    /// Prints one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    args.engine.run(|engine| run_on(engine, &args))
}

fn run_on(engine: Engine, args: &Args) -> anyhow::Result<ExitCode> {
    let mut opened = args.model.open()?;
    let mut reference = match &args.compare {
        Some(path) => Some(ModelArgs::mapped(Some(path.clone())).open()?),
        None => None,
    };
    let text = sequence::text_of(&args.file)?;
    let control = args.special.control();
    let (tokens, lengths) = sequence::tokens(&mut opened, &text, control)?;
    if let Some(reference) = &mut reference {
        check_same(&mut opened, reference, &text, control, &tokens)?;
    }
    let config = opened.model.header.config;
    let n_vocab = config.n_vocab;
    let options = args.memory.options(&config)?;
    let stride = args.stride.unwrap_or(options.context.div_ceil(2));
    ensure!(
        (1..=options.context).contains(&stride),
        "--stride {stride} cannot be had: it must be 1 to the context, {}",
        options.context
    );
    ensure!(tokens.len() > 1, "{} has {} tokens: nothing to predict", args.file.display(), tokens.len());

    let mut memory = model::memory(Plan::new(&config, &options).total())?;
    let mut own = Sequence::new(engine, &mut opened, &options, &mut memory)?;
    let mut other_memory;
    let mut other = match &mut reference {
        Some(reference) => {
            other_memory = model::memory(Plan::new(&reference.model.header.config, &options).total())?;
            Some(Sequence::new(engine, reference, &options, &mut other_memory)?)
        }
        None => None,
    };
    let (mut score, mut reference_score, mut distance) = (Score::default(), Score::default(), Distance::default());
    let mut bytes = 0;
    let total: usize = windows(tokens.len(), options.context, stride).map(|window| window.tokens.len()).sum();
    let (bar, mut done) = (progress(total, "perplexity"), 0);
    for window in windows(tokens.len(), options.context, stride) {
        own.restart();
        other.iter_mut().for_each(Sequence::restart);
        let Window { tokens: all, scored } = window;
        for start in all.clone().step_by(options.batch) {
            let batch = start..all.end.min(start + options.batch);
            // Position i predicts token i + 1; the last one of a window predicts nothing that is known to it.
            let predicting = batch.start.max(scored.start - 1)..batch.end.min(scored.end - 1);
            let predicting = predicting.start..predicting.end.max(predicting.start);
            let range = predicting.start - batch.start..predicting.end - batch.start;
            let rows = own.logits(&tokens[batch.clone()], range.clone())?;
            let other_rows = match &mut other {
                Some(other) => Some(other.logits(&tokens[batch.clone()], range)?),
                None => None,
            };
            for (i, position) in predicting.enumerate() {
                let token = tokens[position + 1].0 as usize;
                let prediction = Prediction::new(&rows[i * n_vocab..][..n_vocab]);
                score.add(prediction.log_probability(token));
                bytes += lengths[position + 1] as u64;
                if let Some(rows) = other_rows {
                    let better = Prediction::new(&rows[i * n_vocab..][..n_vocab]);
                    reference_score.add(better.log_probability(token));
                    distance.add(&prediction, &better, token);
                }
            }
            done += batch.len();
            if score.tokens > 0 {
                bar.set_message(format!("perplexity {:.4}", score.perplexity()));
            }
            advance(&bar, done);
        }
    }
    bar.finish_and_clear();
    if score.perplexity().is_nan() {
        bail!("{}: its logits are no numbers: the file is damaged, or its weights are no numbers", args.model.name());
    }
    let report = Report {
        perplexity: score.perplexity(),
        error: score.error(),
        tokens: tokens.len(),
        scored: score.tokens,
        bytes,
        bits_per_byte: score.bits() / bytes as f64,
        context: options.context,
        stride,
        compare: args.compare.as_ref().map(|_| Comparison::new(&score, &reference_score, &distance)),
    };
    report.print(args.json)?;
    Ok(ExitCode::SUCCESS)
}

/// Checks that the reference has the same tokens, so that its predictions are of the same things.
fn check_same(
    opened: &mut Opened,
    reference: &mut Opened,
    text: &[u8],
    control: Control,
    tokens: &[Token],
) -> anyhow::Result<()> {
    let (own, other) = (opened.model.header.config, reference.model.header.config);
    ensure!(
        own.n_vocab == other.n_vocab,
        "{} has {} tokens, {} has {}: compare files of one model",
        opened.name,
        own.n_vocab,
        reference.name,
        other.n_vocab
    );
    ensure!(
        own.n_ctx <= other.n_ctx,
        "{} has {} positions, {} only {}: compare files of one model",
        opened.name,
        own.n_ctx,
        reference.name,
        other.n_ctx
    );
    ensure!(
        sequence::tokens(reference, text, control)?.0 == tokens,
        "{} and {} cut the text into other tokens: compare files of one model",
        opened.name,
        reference.name
    );
    Ok(())
}

/// What is shown.
#[derive(Serialize)]
struct Report {
    perplexity: f64,
    /// Its standard error.
    error: f64,
    /// Tokens of the text.
    tokens: usize,
    /// Tokens that were predicted.
    scored: u64,
    /// Bytes of those.
    bytes: u64,
    bits_per_byte: f64,
    context: usize,
    stride: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    compare: Option<Comparison>,
}

/// How far the predictions are from the reference's.
#[derive(Serialize)]
struct Comparison {
    reference_perplexity: f64,
    ratio: f64,
    divergence: f64,
    divergence_error: f64,
    divergence_quantiles: serde_json::Value,
    same_best: f64,
    shift: f64,
    shift_rms: f64,
    shift_quantiles: serde_json::Value,
    #[serde(skip)]
    rows: Vec<(String, f64)>,
}

impl Comparison {
    fn new(score: &Score, reference: &Score, distance: &Distance) -> Comparison {
        const NAMES: [&str; 9] = ["min", "1%", "5%", "10%", "median", "90%", "95%", "99%", "max"];
        const SHARES: [f64; 9] = [0.0, 0.01, 0.05, 0.1, 0.5, 0.9, 0.95, 0.99, 1.0];
        let (divergence, divergence_error) = distance.divergence();
        let (shift, shift_rms) = distance.shift();
        let divergences = distance.divergence_quantiles(SHARES);
        let shifts = distance.shift_quantiles(SHARES);
        let object = |values: [f64; 9]| NAMES.iter().zip(values).map(|(name, value)| (*name, json!(value))).collect();
        let divergence_rows =
            NAMES[4..].iter().zip(&divergences[4..]).map(|(name, &value)| (format!("KL {name}"), value));
        let shift_rows = NAMES.iter().zip(shifts).map(|(name, value)| (format!("p {name}"), value));
        Comparison {
            reference_perplexity: reference.perplexity(),
            ratio: score.perplexity() / reference.perplexity(),
            divergence,
            divergence_error,
            divergence_quantiles: object(divergences),
            same_best: distance.agreement(),
            shift,
            shift_rms,
            shift_quantiles: object(shifts),
            rows: divergence_rows.chain(shift_rows).collect(),
        }
    }
}

impl Report {
    fn print(&self, json: bool) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        if json {
            return Ok(writeln!(out, "{}", serde_json::to_string(self)?)?);
        }
        writeln!(out, "perplexity     {:.4} +/- {:.4}", self.perplexity, self.error)?;
        writeln!(out, "bits per byte  {:.4}", self.bits_per_byte)?;
        writeln!(out, "tokens         {}, {} scored, {} bytes", self.tokens, self.scored, self.bytes)?;
        writeln!(out, "windows        {} tokens, stride {}", self.context, self.stride)?;
        if let Some(compare) = &self.compare {
            writeln!(out, "reference      {:.4}, ratio {:.5}", compare.reference_perplexity, compare.ratio)?;
            writeln!(out, "KL divergence  {:.6} +/- {:.6}", compare.divergence, compare.divergence_error)?;
            writeln!(out, "same best      {:.3}%", 100.0 * compare.same_best)?;
            writeln!(out, "change of p    {:.3}% mean, {:.3}% RMS", 100.0 * compare.shift, 100.0 * compare.shift_rms)?;
            for (name, value) in &compare.rows {
                match name.strip_prefix("p ") {
                    Some(name) => writeln!(out, "{:<14} {:.3}%", format!("change {name}"), 100.0 * value)?,
                    None => writeln!(out, "{name:<14} {value:.6}")?,
                }
            }
        }
        Ok(())
    }
}
