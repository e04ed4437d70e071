//! `gptrickle importance`: how large the inputs of each matrix are on a text.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use gptrickle_core::arena::Arena;
use gptrickle_core::gpt2::Plan;
use gptrickle_core::ops::Engine;
use gptrickle_core::sampler::{Params, Sampler};
use gptrickle_core::tokenizer::Token;

use super::model::{self, EngineArgs, MemoryArgs, ModelArgs};
use super::output::OutputArgs;
use super::sequence::{self, Sequence};
use super::text::SpecialArgs;
use super::{advance, note, progress};
use crate::importance::Importance;
use crate::output::Output;

const EXAMPLES: &str = "Examples:
  gptrickle importance -m model.F32.gguf -f text.txt -o text.imatrix.gguf
  gptrickle quantize model.F32.gguf model.Q2_K.gguf Q2_K --importance text.imatrix.gguf
  gptrickle importance -m model.F32.gguf --products -o own.imatrix.gguf    on what the model itself writes

The text should be of the kind that the model is for; some 50,000 tokens are enough. llama.cpp reads the file, too.";

/// How many tokens the model writes where there is no text.
const OWN: usize = 8192;

/// Gather how large the inputs of each matrix are on a text, for quantize --importance
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// File of the text; "-" reads it from standard input, and without it the model writes some 8,000 tokens itself
    #[arg(short, long, value_name = "TEXT")]
    file: Option<PathBuf>,

    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    memory: MemoryArgs,

    #[command(flatten)]
    engine: EngineArgs,

    #[command(flatten)]
    special: SpecialArgs,

    /// Keeps what goes together, too: quantize then rounds each weight so that it makes up for those before it. The
    /// file takes up to 4 KiB a column of each matrix
    #[arg(long)]
    products: bool,

    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    args.engine.run(|engine| run_on(engine, &args))
}

fn run_on(engine: Engine, args: &Args) -> anyhow::Result<ExitCode> {
    let mut opened = args.model.open()?;
    let given = match &args.file {
        Some(file) => {
            let text = sequence::text_of(file)?;
            let (tokens, _) = sequence::tokens(&mut opened, &text, args.special.control())?;
            ensure!(!tokens.is_empty(), "{} is empty: there is nothing to run", file.display());
            Some((tokens, file.display().to_string()))
        }
        None => None,
    };
    let output = args.output.create()?;

    let vocabulary = &opened.model.vocabulary;
    let start = vocabulary.bos().or(vocabulary.eos());
    let header = opened.model.header;
    let head = if header.tied { "token_embd.weight" } else { "output.weight" };
    let options = args.memory.options(&header.config)?;
    let mut memory = model::memory(Plan::new(&header.config, &options).total())?;
    let mut sequence = Sequence::new(engine, &mut opened, &options, &mut memory)?;
    let (tokens, dataset) = match given {
        Some(given) => given,
        None => {
            let start = start.context("the model has no token that texts begin with: give it one with --file")?;
            (written(&mut sequence, start, options.context, header.config.n_vocab)?, "the model's own text".into())
        }
    };
    let chunks = tokens.len().div_ceil(options.context) as u32;
    let mut importance = Importance::new(&dataset, chunks, options.context as u32);
    importance.with_products = args.products;
    let (bar, mut done) = (progress(tokens.len(), "gathering"), 0);
    for window in tokens.chunks(options.context) {
        sequence.restart();
        for batch in window.chunks(options.batch) {
            sequence.inputs(batch, |matrix, x| {
                let name = matrix.to_string();
                let name = if name == "output.weight" { head } else { &name };
                importance.add(name, x.len() / batch.len(), x);
            })?;
            done += batch.len();
            advance(&bar, done);
        }
    }
    bar.finish_and_clear();
    let name = args.output.path.display();
    let written = importance.write(output).and_then(Output::finish);
    written.with_context(|| format!("cannot write {name}"))?;
    note(format_args!("{name}: inputs of {} matrices on {} tokens", importance.len(), tokens.len()));
    Ok(ExitCode::SUCCESS)
}

/// What the model writes, drawn by its probabilities as they are: texts as long as the context, [`OWN`] tokens together.
fn written(sequence: &mut Sequence, start: Token, context: usize, n_vocab: usize) -> anyhow::Result<Vec<Token>> {
    let params = Params { temperature: 1.0, top_k: 0, ..Params::default() };
    let mut memory = model::memory(params.bytes(n_vocab, 0, 1))?;
    let mut sampler = Sampler::new(params, 42, n_vocab, 0, 1, &mut Arena::new(&mut memory))?;
    let bar = progress(OWN, "writing");
    let mut tokens = Vec::with_capacity(OWN);
    while tokens.len() < OWN {
        let token = if tokens.len().is_multiple_of(context) {
            sequence.restart();
            start
        } else {
            sampler.begin_choice(0, 0, 0, |_| 0);
            sampler.push(0, 0, sequence.logits(&tokens[tokens.len() - 1..], 0..1)?);
            sampler.pick(0)?
        };
        tokens.push(token);
        advance(&bar, tokens.len());
    }
    bar.finish_and_clear();
    Ok(tokens)
}
