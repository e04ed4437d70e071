//! `gptrickle synth`: a model with random weights, to measure with.

use std::io::ErrorKind;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::Context;
use bytesize::ByteSize;

use super::output::OutputArgs;
use super::{advance, byte_progress};
use crate::mix::FileType;
use crate::output::Output;
use crate::synth::{Model, Shape};

const EXAMPLES: &str = "Examples:
  gptrickle synth --shape distilgpt2 --type Q4_K_M -o synth.gguf
  gptrickle synth --shape gpt2-xl --type Q2_K --tied --seed 7 -o xl.gguf
  gptrickle synth --shape 2,4,256,128,512 --type F16 -o small.gguf    2 layers, 4 heads, 256 wide, context 128,
                                                                      512 tokens
The same options give the same bytes on every machine. The text of such a model has no meaning.";

/// Make a model with random weights, at any size and of any type
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// distilgpt2, gpt2, gpt2-medium, gpt2-large, gpt2-xl, or layers, heads, width, context and tokens
    #[arg(long, value_name = "NAME|L,H,D,CTX,V")]
    shape: Shape,

    /// Type of most matrices; the others get the types that llama.cpp gives them
    #[arg(long = "type", value_name = "TYPE", value_enum, ignore_case = true)]
    file_type: FileType,

    /// Takes the token embedding as the head, as today's converter does
    #[arg(long)]
    tied: bool,

    /// Stores the head as a matrix of its own, as older converters do; the default
    #[arg(long, conflicts_with = "tied")]
    untied: bool,

    /// Where the random weights start
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,

    #[command(flatten)]
    output: OutputArgs,
}

/// Set by Ctrl-C.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let model = Model { shape: args.shape, file_type: args.file_type, tied: args.tied, seed: args.seed };
    let start = Instant::now();
    let output = args.output.create()?;
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::SeqCst)).context("cannot listen for Ctrl-C")?;

    let bar = byte_progress(model.tensor_bytes(), "drawing weights");
    let mut done = 0u64;
    let written = model.write(output, |bytes| {
        done += bytes;
        advance(&bar, done as usize);
        if INTERRUPTED.load(Ordering::SeqCst) { Err(ErrorKind::Interrupted.into()) } else { Ok(()) }
    });
    bar.finish_and_clear();
    let name = args.output.path.display();
    match written.and_then(Output::finish) {
        Err(error) if error.kind() == ErrorKind::Interrupted => {
            eprintln!("interrupted: {name} was not written");
            return Ok(ExitCode::from(130));
        }
        written => written.with_context(|| format!("cannot write {name}"))?,
    }
    let head = if args.tied { "tied" } else { "separate" };
    eprintln!(
        "{name}: {:?}, {head} head, {} of weights in {:.1} s",
        args.file_type,
        ByteSize::b(done),
        start.elapsed().as_secs_f64()
    );
    Ok(ExitCode::SUCCESS)
}
