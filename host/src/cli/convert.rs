//! `gptrickle convert`: a checkpoint of transformers becomes a GGUF file.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, bail};
use bytesize::ByteSize;

use super::output::OutputArgs;
use super::{advance, byte_progress, note};
use crate::checkpoint::Checkpoint;
use crate::convert::Model;
use crate::mix::FileType;
use crate::output::Output;

const EXAMPLES: &str = "Examples:
  gptrickle convert my-gpt2 -o my-gpt2.gguf                         F16
  gptrickle convert my-gpt2 --type Q4_K_M -o my-gpt2-Q4_K_M.gguf    for a board
  gptrickle convert my-gpt2 --type F32 -o my-gpt2-F32.gguf          every value as it is

DIR is what save_pretrained of a GPT2LMHeadModel and of its tokenizer wrote, or a clone of a model's
repository: config.json, model.safetensors (or its index and shards; F32, F16 or BF16) and
tokenizer.json (or vocab.json and merges.txt).";

/// Make a GGUF file of a GPT-2 checkpoint of transformers
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Folder of the checkpoint
    #[arg(value_name = "DIR")]
    checkpoint: PathBuf,

    /// Type of most matrices; the others get the types that llama.cpp gives them
    #[arg(long = "type", value_name = "TYPE", value_enum, ignore_case = true, default_value = "F16")]
    file_type: FileType,

    #[command(flatten)]
    output: OutputArgs,
}

/// Set by Ctrl-C.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let output = args.output.create()?;
    let checkpoint = Checkpoint::open(&args.checkpoint)?;
    let model = Model::new(checkpoint, args.file_type).with_context(|| args.checkpoint.display().to_string())?;
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::SeqCst)).context("cannot listen for Ctrl-C")?;
    for line in model.notes() {
        note(format_args!("note: {line}"));
    }

    let name = args.output.path.display();
    let cannot_write = || format!("cannot write {name}");
    let bar = byte_progress(model.tensor_bytes(), "converting");
    let mut done = 0u64;
    let mut data = model.header().start(output).with_context(cannot_write)?;
    let encoded = model.encode(|blocks| {
        data.write(blocks).with_context(cannot_write)?;
        done += blocks.len() as u64;
        advance(&bar, done as usize);
        if INTERRUPTED.load(Ordering::SeqCst) { bail!("interrupted") } else { Ok(()) }
    });
    bar.finish_and_clear();
    if INTERRUPTED.load(Ordering::SeqCst) {
        eprintln!("interrupted: {name} was not written");
        return Ok(ExitCode::from(130));
    }
    encoded?;
    data.finish().and_then(Output::finish).with_context(cannot_write)?;
    eprintln!(
        "{name}: {:?}, {} of weights in {:.1} s",
        args.file_type,
        ByteSize::b(done),
        start.elapsed().as_secs_f64()
    );
    Ok(ExitCode::SUCCESS)
}
