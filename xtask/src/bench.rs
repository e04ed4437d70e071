//! `cargo xtask bench`: how fast the desk is, alone or beside llama.cpp, and how many instructions a board takes.

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::instructions::{self, Request};
use crate::peer::{self, Build, Peer};
use crate::process::{self, root};

/// Tokens of the prompt, and tokens that are made after it.
pub(crate) const PROMPT: usize = 128;
pub(crate) const DECODE: usize = 64;
/// Positions: what the two take, and the first token's.
pub(crate) const CONTEXT: usize = 256;

/// Types of the models that are made where none is named.
const TYPES: [&str; 4] = ["Q2_K", "Q4_0", "Q4_K_M", "Q8_0"];

/// What to measure.
#[derive(Args)]
pub(crate) struct Options {
    /// A GGUF file; can be repeated. Without it, DistilGPT2 with random weights and a tied head is made
    #[arg(long, short, conflicts_with = "kind")]
    model: Vec<PathBuf>,
    /// Type of the models that are made; can be repeated. Q2_K, Q4_0, Q4_K_M and Q8_0 if left out, and six with --board
    #[arg(long = "type", value_name = "TYPE")]
    kind: Vec<String>,
    /// Measure another program on the same files, run by run in turn
    #[arg(long)]
    against: Option<Other>,
    /// Build the other program without SIMD code: what the compiler makes of its portable C
    #[arg(long, requires = "against")]
    portable: bool,
    /// A Python environment that has the other program, built as you like; else one is made in target/bench
    #[arg(long, value_name = "DIR", requires = "against", conflicts_with = "portable")]
    venv: Option<PathBuf>,
    /// Count the instructions of a token on this board, in the emulator
    #[arg(long, value_name = "NAME", conflicts_with_all = ["model", "against"])]
    board: Option<String>,
    /// With --board: shape of the models that are made, as for `gptrickle synth`; DistilGPT2's where the board holds it
    #[arg(long, value_name = "SHAPE", requires = "board")]
    shape: Option<String>,
    /// With --board: every matrix has the type, the head too, as llama-quantize --pure makes files
    #[arg(long, requires = "board")]
    pure: bool,
    /// With --board: how many functions to list by their share of the instructions
    #[arg(long, value_name = "N", requires = "board", default_value_t = 0)]
    hot: usize,
    /// With --board: tokens to count, after the first
    #[arg(long, value_name = "N", requires = "board", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..))]
    tokens: u8,
    /// Threads of both
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads: usize,
    /// Runs of each
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..))]
    repeat: u8,
    /// Options that both `gptrickle bench` and `gptrickle generate` get, such as --kv f16
    #[arg(last = true)]
    ours: Vec<String>,
}

/// What can be measured beside gptrickle.
#[derive(Clone, Copy, ValueEnum)]
enum Other {
    LlamaCpp,
}

/// Measures and prints.
///
/// # Errors
/// A build or a run fails.
pub(crate) fn bench(options: &Options) -> Result<()> {
    let ours = Ours::build(options)?;
    if let Some(board) = &options.board {
        let &Options { kind: ref kinds, hot, pure, .. } = options;
        let (shape, tokens) = (options.shape.as_deref(), options.tokens.into());
        return instructions::count(&Request { board, kinds, shape, pure, hot, tokens, program: &ours.program });
    }
    let models = models(&ours, options)?;
    match options.against {
        None => models.iter().try_for_each(|model| ours.show(model, options.repeat)),
        Some(Other::LlamaCpp) => {
            let build = if options.portable { Build::Portable } else { Build::Native };
            against(&ours, &Peer::find(options.venv.as_deref(), build)?, &models, options)
        }
    }
}

/// The command line under measurement.
struct Ours {
    program: PathBuf,
    /// What `bench` and `generate` get beside the model.
    arguments: Vec<String>,
}

impl Ours {
    fn build(options: &Options) -> Result<Self> {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        process::run(cargo.args(["build", "--release", "--locked", "--package", "gptrickle"]).current_dir(root()))?;
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
        let program = target.join("release/gptrickle");
        let mut arguments = options.ours.clone();
        if process::output(Command::new(&program).args(["bench", "--help"]))?.contains("--threads") {
            arguments.extend(["--threads".into(), options.threads.to_string()]);
        } else {
            ensure!(options.threads == 1, "gptrickle has no --threads: only --threads 1 can be measured");
        }
        Ok(Self { program, arguments })
    }

    fn command(&self, verb: &str, model: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(verb).arg("-m").arg(model).args(&self.arguments);
        command
    }

    /// The table that a person sees.
    fn show(&self, model: &Path, repeat: u8) -> Result<()> {
        process::run(self.command("bench", model).args(["--repeat", &repeat.to_string()]))?;
        println!();
        Ok(())
    }

    /// One process that measures prefill and decode, then one that makes a token.
    fn run(&self, model: &Path) -> Result<Run> {
        let sizes = [("--prompt", PROMPT), ("--decode", DECODE), ("--context", CONTEXT)];
        let mut bench = self.command("bench", model);
        bench.args(sizes.iter().flat_map(|(name, n)| [(*name).to_owned(), n.to_string()]));
        let report = process::output(bench.args(["--repeat", "1", "--probe", "0", "--json"]))?;
        let report: Value = serde_json::from_str(&report).with_context(|| process::line(&bench))?;
        let number = |pointer| peer::number(&report, pointer);
        Ok(Run {
            decode: DECODE as f64 / number("/decode/seconds/median")?,
            prefill: PROMPT as f64 / number("/prefill/seconds/median")?,
            start: self.start(model)?,
            rss: number("/peak_rss_bytes")?,
        })
    }

    /// Seconds from before the process is there until it is gone, with one token made after one.
    fn start(&self, model: &Path) -> Result<f64> {
        let mut generate = self.command("generate", model);
        generate.args(["a", "-n", "1", "--temperature", "0", "--context", &CONTEXT.to_string()]);
        let start = Instant::now();
        let status = generate.stdout(Stdio::null()).stderr(Stdio::null()).status();
        let took = start.elapsed().as_secs_f64();
        ensure!(status.with_context(|| process::line(&generate))?.success(), "{} fails", process::line(&generate));
        Ok(took)
    }

    /// Bytes a second that memory gives one core.
    fn memory(&self, model: &Path) -> Result<f64> {
        let mut bench = self.command("bench", model);
        let report = process::output(bench.args(["--prompt", "1", "--decode", "1", "--json"]))?;
        peer::number(&serde_json::from_str(&report)?, "/memory/bytes_per_s/median")
    }
}

/// The figures of one run, of either program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// Tokens a second.
    pub(crate) decode: f64,
    /// Tokens a second.
    pub(crate) prefill: f64,
    /// Seconds from the start to a first token.
    pub(crate) start: f64,
    /// Most bytes in memory, mapped weights included.
    pub(crate) rss: f64,
}

impl Run {
    /// In the table's order and units.
    fn columns(&self) -> [f64; 4] {
        [self.decode, self.prefill, self.start * 1e3, self.rss / 1e6]
    }
}

/// Runs both in turn and prints medians.
fn against(ours: &Ours, peer: &Peer, models: &[PathBuf], options: &Options) -> Result<()> {
    println!("gptrickle / llama.cpp, {}", peer.describe(&models[0])?);
    println!(
        "threads {}, context {CONTEXT}; prompt {PROMPT}, decode {DECODE} tokens; medians of {} runs in turn; one core \
         reads {:.1} GB/s from memory\n",
        options.threads,
        options.repeat,
        ours.memory(&models[0])? / 1e9
    );
    let heads = ["decode tokens/s", "prefill tokens/s", "start to token ms", "peak MB"];
    println!("{:<16}{}", "", heads.map(|head| format!(" | {head:^30}")).concat());
    println!("{:<16}{}", "model", format!(" | {:>10} {:>11} {:>7}", "ours", "theirs", "ratio").repeat(heads.len()));
    for model in models {
        let name = model.file_stem().unwrap_or_default().display().to_string();
        let (mut us, mut them) = (Vec::new(), Vec::new());
        for round in 1..=options.repeat {
            let (our, their) = (ours.run(model)?, peer.run(model, options.threads)?);
            eprintln!(
                "{name}, run {round} of {}: decode {:.1} and {:.1} tokens/s",
                options.repeat, our.decode, their.decode
            );
            us.push(our);
            them.push(their);
        }
        let medians = |runs: &[Run]| -> [f64; 4] {
            std::array::from_fn(|column| median(runs.iter().map(|run| run.columns()[column]).collect()))
        };
        let columns = std::iter::zip(medians(&us), medians(&them));
        let columns = columns.map(|(us, them)| format!(" | {us:>10.1} {them:>11.1} {:>7.3}", us / them));
        println!("{:<16}{}", name.trim_start_matches("distilgpt2-"), columns.collect::<String>());
    }
    println!(
        "\nRatios are ours / theirs. Start: the whole process of ours, from outside; theirs from the library's set-up \
         inside a\nPython that has imported it already. Memory: mapped weights included; theirs without what Python had \
         before."
    );
    Ok(())
}

/// The middle figure of at least one.
fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    let last = figures.len() - 1;
    f64::midpoint(figures[last / 2], figures[last.div_ceil(2)])
}

/// Those that were named, or one of each type, made once.
fn models(ours: &Ours, options: &Options) -> Result<Vec<PathBuf>> {
    if !options.model.is_empty() {
        return Ok(options.model.clone());
    }
    let kinds: Vec<&str> = match &options.kind[..] {
        [] => TYPES.to_vec(),
        kinds => kinds.iter().map(String::as_str).collect(),
    };
    kinds.into_iter().map(|kind| synthetic(&ours.program, "distilgpt2", kind)).collect()
}

/// A model of this shape and type with random weights and a tied head; made once.
///
/// # Errors
/// It cannot be made.
pub(crate) fn synthetic(program: &Path, shape: &str, kind: &str) -> Result<PathBuf> {
    let folder = root().join("target/bench");
    let path = folder.join(format!("{}-{kind}.gguf", shape.replace(',', "-")));
    if !path.exists() {
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let mut synth = Command::new(program);
        synth.args(["synth", "--shape", shape, "--type", kind, "--tied", "--output"]);
        process::run(synth.arg(&path))?;
    }
    Ok(path)
}

/// The same with all matrices of one type, the head too.
///
/// # Errors
/// It cannot be made.
pub(crate) fn pure(program: &Path, shape: &str, kind: &str) -> Result<PathBuf> {
    // The sizes of a mix differ in what they do to some matrices.
    let of_all = kind.strip_suffix("_S").or(kind.strip_suffix("_M")).or(kind.strip_suffix("_L")).unwrap_or(kind);
    let path = root().join("target/bench").join(format!("{}-{kind}-pure.gguf", shape.replace(',', "-")));
    if !path.exists() {
        let mut quantize = Command::new(program);
        quantize.arg("quantize").arg(synthetic(program, shape, "F16")?).arg(&path).arg(kind);
        process::run(quantize.args(["--tensor", &format!("*.weight={of_all}")]))?;
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median(vec![9.0, 1.0, 3.0]), 3.0);
    }
}
