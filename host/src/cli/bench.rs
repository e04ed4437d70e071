//! `gptrickle bench`: how fast a prompt is read and a text made, and what share of the memory's bandwidth that is.

use std::fmt;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::ops::Range;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytesize::ByteSize;
use gptrickle_core::arena::Arena;
use gptrickle_core::generate::{Options, Plan, Session};
use gptrickle_core::gpt2::{Config, Head};
use gptrickle_core::ops::Engine;
use gptrickle_core::sampler::Params;
use gptrickle_core::tokenizer::Token;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::model::{self, EngineArgs, MemoryArgs, ModelArgs, head, ram_bytes};
use crate::bandwidth::Probe;
use crate::model::Bytes;

const EXAMPLES: &str = "Examples:
  gptrickle bench -m distilgpt2.Q4_K_M.gguf
  gptrickle bench -m gpt2.Q8_0.gguf --prompt 512 --decode 16 --repeat 9 --json
  gptrickle bench -m gpt2.Q4_0.gguf --source throttled:23MB/s --decode 4 --repeat 1 --probe 0

The prompt is the same made-up tokens each time, and no token ends the text. Weights are those that were read, so a
token is measured by what its passes read. Nothing is asserted: a busy machine gives other figures, and the spread
between least and most tells.";

/// Measure prefill and decode, against the bandwidth of this machine's memory
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    memory: MemoryArgs,

    #[command(flatten)]
    engine: EngineArgs,

    /// Which rows of the head are read: exact, or two-stage:K as in `generate`
    #[arg(long, value_name = "HOW", default_value = "exact", value_parser = head)]
    head: Head,

    /// Tokens of the prompt, read in batches; the head is computed for the last one
    #[arg(long, value_name = "N", default_value = "128", value_parser = clap::value_parser!(u32).range(1..))]
    prompt: u32,

    /// Tokens that are made after the prompt's own, one a pass
    #[arg(long, value_name = "N", default_value = "64", value_parser = clap::value_parser!(u32).range(1..))]
    decode: u32,

    /// How often both are measured
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,

    /// Size of the buffer that the memory's bandwidth is measured with, much more than the caches hold; 0 leaves it out
    #[arg(long, value_name = "BYTES", default_value = "256MiB", value_parser = ram_bytes)]
    probe: usize,

    /// Prints one JSON object
    #[arg(long)]
    json: bool,
}

/// All that is shown.
#[derive(Serialize)]
struct Report {
    model: String,
    kernel: &'static str,
    threads: usize,
    context: usize,
    batch: usize,
    kv: &'static str,
    repeat: usize,
    arena_bytes: usize,
    /// From the start of the verb to the first token after a prompt of one: the header, the vocabulary's index, one
    /// pass and the head. What came before, the operating system's part, only a clock outside can tell.
    first_token_s: f64,
    prefill: Phase,
    decode: Phase,
    /// The most memory in use until here, mapped weights included, before the probe's buffer.
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_rss_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<Memory>,
}

/// One kind of work, all repeats together; rates are those of the median.
#[derive(Serialize)]
struct Phase {
    tokens: usize,
    seconds: Spread,
    tokens_per_s: f64,
    /// Bytes of the file that were read.
    bytes: u64,
    bytes_per_s: f64,
    /// Multiply-accumulates: matrices and attention.
    macs: u64,
    macs_per_s: f64,
}

#[derive(Serialize, Clone, Copy)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

/// What one core reads from memory, in order.
#[derive(Serialize)]
struct Memory {
    probe_bytes: usize,
    bytes_per_s: Spread,
    /// Of its median, that decode reads weights with.
    decode_share: f64,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    args.engine.run(|engine| run_on(engine, &args))
}

fn run_on(engine: Engine, args: &Args) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let (prompt, decode, repeat) = (args.prompt as usize, args.decode as usize, args.repeat as usize);
    let mut opened = args.model.open()?;
    let config = opened.model.header.config;
    let state = args.memory.options(&config)?;
    // The prompt's own token is there, too.
    if prompt + 1 + decode > state.context {
        let (name, context) = (&opened.name, state.context);
        bail!("{name}: {prompt} + 1 + {decode} tokens do not fit into a context of {context}: use a smaller --prompt");
    }
    let options = Options { state, sampling: Params::greedy(), head: args.head, ..Options::default() };
    let mut memory = model::memory(Plan::new(&opened.model, &options).total())?;
    let mut arena = Arena::new(&mut memory);
    let session = Session::new(&opened.model, &options, &mut opened.src, &mut arena);
    let mut session = session.with_context(|| opened.name.clone())?;
    session.set_engine(engine);
    let mut bench = Bench { src: &mut opened.src, name: &opened.name, session, n_vocab: config.n_vocab };
    bench.prompt(1)?;
    bench.next()?;
    let first_token_s = start.elapsed().as_secs_f64();

    let bar = steps(repeat * (1 + decode));
    let (mut prefills, mut decodes) = (Vec::new(), Vec::new());
    for _ in 0..repeat {
        bench.prompt(prompt)?;
        prefills.push(bench.measure(1, &bar)?);
        decodes.push(bench.measure(decode, &bar)?);
    }
    bar.finish_and_clear();

    let peak_rss_bytes = peak_rss();
    let prefill = Phase::new(prompt, &prefills, macs(&config, 0..prompt, 1));
    let decode = Phase::new(decode, &decodes, macs(&config, prompt..prompt + decode, decode));
    let arena_bytes = arena.used();
    drop(memory);
    let memory = Memory::measure(args.probe, repeat, decode.bytes_per_s)?;
    let report = Report {
        model: opened.name,
        kernel: engine.kernel.name(),
        threads: engine.team.parts(),
        context: state.context,
        batch: state.batch,
        kv: state.kv.name(),
        repeat,
        arena_bytes,
        first_token_s,
        prefill,
        decode,
        peak_rss_bytes,
        memory,
    };
    let out = if args.json { serde_json::to_string(&report)? + "\n" } else { report.to_string() };
    io::stdout().write_all(out.as_bytes()).context("cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}

/// A session whose text never ends.
struct Bench<'a> {
    src: &'a mut Bytes,
    name: &'a str,
    session: Session<'a>,
    n_vocab: usize,
}

/// What some work took and read.
struct Took {
    time: Duration,
    bytes: u64,
}

impl Bench<'_> {
    /// Starts a text with `n` tokens.
    fn prompt(&mut self, n: usize) -> anyhow::Result<()> {
        self.session.restart(Params::greedy(), 0)?;
        let tokens: Vec<Token> = (0..n).map(|i| self.token(i)).collect();
        self.session.push(&tokens).with_context(|| self.name.to_owned())
    }

    /// Any token, spread over the vocabulary.
    fn token(&self, i: usize) -> Token {
        Token(((7 + 31 * i) % self.n_vocab) as u32)
    }

    /// Runs what is pending, in batches, and makes the likeliest token; another one takes the place of an end.
    fn next(&mut self) -> anyhow::Result<()> {
        if self.session.next(self.src).with_context(|| self.name.to_owned())?.is_none() {
            let token = self.token(self.session.tokens().len());
            self.session.push(&[token])?;
        }
        Ok(())
    }

    /// Makes `n` tokens.
    fn measure(&mut self, n: usize, bar: &ProgressBar) -> anyhow::Result<Took> {
        let (start, before) = (Instant::now(), self.src.bytes());
        for _ in 0..n {
            self.next()?;
            bar.inc(1);
        }
        Ok(Took { time: start.elapsed(), bytes: self.src.bytes() - before })
    }
}

/// A bar over `len` passes on standard error, drawn twice a second at most: what is measured must not wait for it.
fn steps(len: usize) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("measuring {wide_bar} {pos}/{len}, {eta} left");
    let bar = ProgressBar::with_draw_target(Some(len as u64), ProgressDrawTarget::stderr_with_hz(2));
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Multiply-accumulates of the blocks at these positions, and of `heads` heads.
fn macs(config: &Config, positions: Range<usize>, heads: usize) -> u64 {
    let [layers, width, ff, vocab] = [config.n_layer, config.n_embd, config.n_ff, config.n_vocab].map(|n| n as u64);
    let matrices = width * (3 * width + width + 2 * ff);
    // Every position meets itself and those before it twice: scores, then the sum of values.
    let attention = |position: usize| 2 * width * (position as u64 + 1);
    positions.map(|position| layers * (matrices + attention(position))).sum::<u64>() + heads as u64 * width * vocab
}

/// The most memory that this process had in use, where the operating system tells.
fn peak_rss() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"))?;
    Some(kib.parse::<u64>().ok()? << 10)
}

impl Spread {
    /// Of at least one figure.
    fn of(figures: impl Iterator<Item = f64>) -> Spread {
        let mut figures: Vec<f64> = figures.collect();
        figures.sort_by(f64::total_cmp);
        let last = figures.len() - 1;
        let median = (figures[last / 2] + figures[last.div_ceil(2)]) / 2.0;
        Spread { median, min: figures[0], max: figures[last] }
    }
}

impl Phase {
    fn new(tokens: usize, took: &[Took], macs: u64) -> Phase {
        let seconds = Spread::of(took.iter().map(|took| took.time.as_secs_f64()));
        let bytes = took[0].bytes;
        let per_s = |n: f64| n / seconds.median;
        Phase {
            tokens,
            seconds,
            tokens_per_s: per_s(tokens as f64),
            bytes,
            bytes_per_s: per_s(bytes as f64),
            macs,
            macs_per_s: per_s(macs as f64),
        }
    }
}

impl Memory {
    /// Nothing, for a buffer of no bytes.
    fn measure(bytes: usize, repeat: usize, decode_bytes_per_s: f64) -> anyhow::Result<Option<Memory>> {
        if bytes == 0 {
            return Ok(None);
        }
        let probe = Probe::new(bytes)
            .with_context(|| format!("{} of memory are needed: use a smaller --probe", ByteSize::b(bytes as u64)))?;
        let bytes_per_s = Spread::of((0..repeat).map(|_| probe.read()));
        let decode_share = decode_bytes_per_s / bytes_per_s.median;
        Ok(Some(Memory { probe_bytes: probe.bytes(), bytes_per_s, decode_share }))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Report { model, kernel, threads, context, batch, kv, repeat, .. } = self;
        writeln!(
            f,
            "{model}: context {context}, batch {batch}, kv {kv}, kernel {kernel}, {threads} threads; medians of {repeat}\n"
        )?;
        writeln!(
            f,
            "  {:<8} {:>6} {:>10} {:>10} {:>10} {:>10} {:>9} {:>9}",
            "", "tokens", "tokens/s", "ms", "least", "most", "GB/s", "GMAC/s"
        )?;
        for (name, phase) in [("prefill", &self.prefill), ("decode", &self.decode)] {
            let [median, min, max] = [phase.seconds.median, phase.seconds.min, phase.seconds.max].map(|s| s * 1e3);
            writeln!(
                f,
                "  {name:<8} {:>6} {:>10.2} {median:>10.2} {min:>10.2} {max:>10.2} {:>9.3} {:>9.3}",
                phase.tokens,
                phase.tokens_per_s,
                phase.bytes_per_s / 1e9,
                phase.macs_per_s / 1e9
            )?;
        }
        writeln!(f, "\n  first token after {:.2} ms, header and vocabulary included", self.first_token_s * 1e3)?;
        if let Some(bytes) = self.peak_rss_bytes {
            writeln!(f, "  peak RSS {}, arena {}", ByteSize::b(bytes), ByteSize::b(self.arena_bytes as u64))?;
        }
        if let Some(Memory { probe_bytes, bytes_per_s, decode_share }) = &self.memory {
            let [median, min, max] = [bytes_per_s.median, bytes_per_s.min, bytes_per_s.max].map(|rate| rate / 1e9);
            writeln!(
                f,
                "  memory gives one core {median:.2} GB/s ({min:.2} to {max:.2}, {} read in order): decode uses {:.1} %",
                ByteSize::b(*probe_bytes as u64),
                decode_share * 100.0
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distilgpt2_has_81_million_macs_a_token() {
        let config =
            Config { n_layer: 6, n_ctx: 1024, n_embd: 768, n_head: 12, n_ff: 3072, n_vocab: 50257, epsilon: 1e-5 };
        assert_eq!(macs(&config, 0..0, 1), 768 * 50257);
        assert_eq!(macs(&config, 0..1, 1), 6 * (12 * 768 * 768 + 2 * 768) + 768 * 50257);
        assert_eq!(macs(&config, 9..11, 0), 6 * (24 * 768 * 768 + 2 * 768 * 21));
    }

    #[test]
    fn a_spread_has_the_median_between_its_ends() {
        let spread = |figures: &[f64]| Spread::of(figures.iter().copied());
        let Spread { median, min, max } = spread(&[3.0, 1.0, 2.0, 10.0]);
        assert_eq!([median, min, max], [2.5, 1.0, 10.0]);
        assert_eq!(spread(&[3.0, 1.0, 2.0]).median, 2.0);
    }
}
