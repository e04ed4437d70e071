//! `gptrickle importance`: how large the inputs of each matrix are on a text.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use gptrickle_core::gpt2::Plan;
use gptrickle_core::ops::Engine;
use gptrickle_core::tokenizer::Control;

use super::model::{self, EngineArgs, MemoryArgs, ModelArgs};
use super::sequence::{self, Sequence};
use super::{advance, note, progress};
use crate::importance::Importance;
use crate::output::Output;

const EXAMPLES: &str = "Examples:
  gptrickle importance -m model.F32.gguf -f text.txt -o text.imatrix.gguf
  gptrickle quantize model.F32.gguf model.Q2_K.gguf Q2_K --importance text.imatrix.gguf

The text should be of the kind that the model is for; some 50,000 tokens are enough. llama.cpp reads the file, too.";

/// Gather how large the inputs of each matrix are on a text, for quantize --importance
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// File of the text; "-" reads it from standard input
    #[arg(short, long, value_name = "TEXT")]
    file: PathBuf,

    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    memory: MemoryArgs,

    #[command(flatten)]
    engine: EngineArgs,

    /// Takes <|endoftext|> and other control tokens in the text as tokens
    #[arg(long)]
    special: bool,

    /// File to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// Replaces the file if it is there
    #[arg(long)]
    force: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    args.engine.run(|engine| run_on(engine, &args))
}

fn run_on(engine: Engine, args: &Args) -> anyhow::Result<ExitCode> {
    let mut opened = args.model.open()?;
    let text = sequence::text_of(&args.file)?;
    let control = if args.special { Control::Recognise } else { Control::Ignore };
    let (tokens, _) = sequence::tokens(&mut opened, &text, control)?;
    ensure!(!tokens.is_empty(), "{} is empty: there is nothing to run", args.file.display());
    let output = Output::create(&args.output, args.force)?;

    let header = opened.model.header;
    let head = if header.tied { "token_embd.weight" } else { "output.weight" };
    let options = args.memory.options(&header.config)?;
    let mut memory = model::memory(Plan::new(&header.config, &options).total())?;
    let mut sequence = Sequence::new(engine, &mut opened, &options, &mut memory)?;
    let chunks = tokens.len().div_ceil(options.context) as u32;
    let mut importance = Importance::new(&args.file.display().to_string(), chunks, options.context as u32);
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
    let name = args.output.display();
    let written = importance.write(output).and_then(Output::finish);
    written.with_context(|| format!("cannot write {name}"))?;
    note(format_args!("{name}: inputs of {} matrices on {} tokens", importance.len(), tokens.len()));
    Ok(ExitCode::SUCCESS)
}
