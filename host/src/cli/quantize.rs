//! `gptrickle quantize`: a model's file in another type.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::Context;
use bytesize::ByteSize;
use gptrickle_core::quant::Format;
use gptrickle_core::source::Source;

use super::model::ThreadsArgs;
use super::{advance, byte_progress, note};
use crate::importance::Importance;
use crate::mix::Mix;
use crate::output::Output;
use crate::quantize::{Options, Override, Plan};
use crate::source::ModelFile;

const EXAMPLES: &str = "Examples:
  gptrickle quantize model.F16.gguf model.Q4_K_M.gguf Q4_K_M
  gptrickle quantize model.F16.gguf model.Q2_K.gguf Q2_K --importance text.imatrix.gguf
  gptrickle quantize model.F16.gguf model.gguf Q4_0 --tensor 'blk.*.ffn_down.weight=Q6_K'
  gptrickle quantize model.F16.gguf card.gguf device4    for boards: fewest bytes a token, laid out for a card

Types: F32, F16, BF16, Q2_K, Q2_K_S, Q3_K_S, Q3_K_M, Q3_K_L, Q4_0, Q4_1, Q4_K_S, Q4_K_M, Q5_0, Q5_1, Q5_K_S, Q5_K_M,
Q6_K, Q8_0, IQ4_NL, IQ4_XS with llama.cpp's mixes; device2 and device4 are for boards, and llama.cpp loads them, too.";

/// Write a model's file in another type
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// GGUF file to read: F32, F16 or BF16
    #[arg(value_name = "IN.gguf")]
    input: PathBuf,

    /// File to write
    #[arg(value_name = "OUT.gguf")]
    output: PathBuf,

    /// Type of the file
    #[arg(value_name = "TYPE")]
    mix: Mix,

    /// Gives matrices of such a name another type; "*" stands for any characters, and the last match counts
    #[arg(long = "tensor", value_name = "PATTERN=TYPE", value_parser = exception)]
    tensors: Vec<Override>,

    /// File of what matters, from gptrickle importance or llama.cpp's imatrix tool
    #[arg(long, value_name = "FILE")]
    importance: Option<PathBuf>,

    /// Quantises what is quantised already, which loses more
    #[arg(long)]
    allow_requantize: bool,

    /// Replaces the file if it is there
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    threads: ThreadsArgs,
}

fn exception(text: &str) -> Result<Override, String> {
    let (pattern, name) = text.split_once('=').ok_or("it must be such as blk.*.ffn_down.weight=Q6_K")?;
    let format = Format::ALL.into_iter().find(|format| format!("{format:?}").eq_ignore_ascii_case(name));
    let format = format.ok_or_else(|| {
        let names = Format::ALL.map(|format| format!("{format:?}"));
        format!("a matrix can be {}", names.join(", "))
    })?;
    Ok(Override { pattern: pattern.into(), format })
}

/// Set by Ctrl-C.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let in_name = args.input.display();
    let mut file = ModelFile::map(&args.input)?;
    let len = usize::try_from(file.len()).context("more bytes than this machine can address")?;
    let input = file.chunk(0, len)?;
    let importance = match &args.importance {
        Some(path) => Some((read_importance(path)?, path.display().to_string())),
        None => None,
    };
    let options = Options {
        mix: args.mix,
        overrides: &args.tensors,
        importance: importance.as_ref().map(|(importance, name)| (importance, &**name)),
        requantize: args.allow_requantize,
    };
    let plan = Plan::new(input, &options).with_context(|| in_name.to_string())?;
    let output = Output::create(&args.output, args.force)?;
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::SeqCst)).context("cannot listen for Ctrl-C")?;
    if plan.without_importance > 0 {
        note(format_args!("{} matrices are not among those whose importance is known", plan.without_importance));
    }

    let bar = byte_progress(plan.tensor_bytes(), "quantising");
    let pool =
        rayon::ThreadPoolBuilder::new().num_threads(args.threads.count()).build().context("cannot start --threads")?;
    let mut done = 0u64;
    let written = pool.install(|| {
        plan.write(output, |bytes| {
            done += bytes;
            advance(&bar, done as usize);
            if INTERRUPTED.load(Ordering::SeqCst) { Err(ErrorKind::Interrupted.into()) } else { Ok(()) }
        })
    });
    bar.finish_and_clear();
    let name = args.output.display();
    if let Err(error) = written.and_then(|output| Ok(output.finish()?)) {
        return match error.downcast_ref::<io::Error>() {
            Some(io) if io.kind() == ErrorKind::Interrupted => {
                note(format_args!("interrupted: {name} was not written"));
                Ok(ExitCode::from(130))
            }
            Some(_) => Err(error.context(format!("cannot write {name}"))),
            None => Err(error.context(in_name.to_string())),
        };
    }
    note(format_args!(
        "{name}: {}, {} of weights, {:.3} bits each, in {:.1} s",
        args.mix,
        ByteSize::b(plan.tensor_bytes()),
        8.0 * plan.tensor_bytes() as f64 / plan.weights() as f64,
        start.elapsed().as_secs_f64()
    ));
    Ok(ExitCode::SUCCESS)
}

fn read_importance(path: &Path) -> anyhow::Result<Importance> {
    Importance::read(&mut ModelFile::map(path)?).with_context(|| path.display().to_string())
}
