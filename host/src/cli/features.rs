//! `gptrickle features`: a text's hidden states.

use std::io::{self, BufWriter, Write};
use std::iter::zip;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::ValueEnum;
use gptrickle_core::gpt2::{Plan, Seen};
use gptrickle_core::ops::Engine;
use gptrickle_core::tokenizer::Token;
use serde::Serialize;

use super::model::{self, EngineArgs, MemoryArgs, ModelArgs, Opened};
use super::sequence::Sequence;
use super::text::{self, TextArgs, Word};
use super::{advance, interrupt, progress, result_file};
use crate::npy;

const EXAMPLES: &str = "Examples:
  gptrickle features \"Once upon a time\"                      a line a token, to look at
  gptrickle features \"Once upon a time\" -o out.npy           [tokens, width] for numpy.load
  gptrickle features -m gpt2.F16.gguf -f a.txt --layer all -o all.npy
  gptrickle features \"The cat sat\" --pool mean --json        one vector for the text

They are those that transformers' GPT2Model gives with output_hidden_states: layer 0 is the embeddings, layer N what the
N-th layer left, and the last one has gone through the final normalisation.";

/// Write a text's hidden states: a vector a token, after any layer
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    text: TextArgs,

    #[command(flatten)]
    model: ModelArgs,

    /// After which layer: 0 (the embeddings) to the number of layers, -1 and down from the last one, or "all"
    #[arg(long, value_name = "N", default_value = "-1", value_parser = layer, allow_hyphen_values = true)]
    layer: Choice,

    /// Makes one vector of the tokens': their mean, or that of the last token
    #[arg(long, value_enum)]
    pool: Option<Pool>,

    #[command(flatten)]
    memory: MemoryArgs,

    #[command(flatten)]
    engine: EngineArgs,

    /// Writes a NumPy file, float32 [tokens, width], with --layer all [layers + 1, tokens, width], without [tokens] if
    /// pooled; replaces one that is there
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Prints tokens and hidden states as one JSON object
    #[arg(long, conflicts_with = "output")]
    json: bool,
}

/// Which hidden states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    All,
    /// As a Python index.
    One(i64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Pool {
    Mean,
    Last,
}

fn layer(text: &str) -> Result<Choice, String> {
    match text.parse() {
        Ok(layer) => Ok(Choice::One(layer)),
        Err(_) if text == "all" => Ok(Choice::All),
        Err(_) => Err("it must be a number, or all".to_owned()),
    }
}

/// The hidden states that were asked for.
struct Hidden {
    layers: RangeInclusive<usize>,
    tokens: usize, // 1 if pooled
    n_embd: usize,
    values: Vec<f32>, // (layers, tokens, n_embd)
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    layers: Vec<usize>,
    pool: Option<Pool>,
    tokens: &'a [Word],
    hidden: Nested<'a>,
}

/// An array of one, two or three dimensions.
#[derive(Serialize)]
#[serde(untagged)]
enum Nested<'a> {
    One(&'a [f32]),
    Two(Vec<&'a [f32]>),
    Three(Vec<Vec<&'a [f32]>>),
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    args.engine.run(|engine| run_on(engine, &args))
}

fn run_on(engine: Engine, args: &Args) -> anyhow::Result<ExitCode> {
    let mut opened = args.model.open()?;
    let tokens = args.text.tokens(&mut opened)?;
    if let Some(path) = &args.output {
        return result_file::write(path, |out| {
            let hidden = args.hidden(engine, &mut opened, &tokens)?;
            npy::write_header(out, &args.shape(&hidden))
                .and_then(|()| npy::write_values(out, &hidden.values))
                .and_then(|()| out.flush())
                .with_context(|| format!("cannot write {}", path.display()))
        });
    }
    let hidden = args.hidden(engine, &mut opened, &tokens)?;
    let words = text::words(&mut opened, &tokens)?;
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        let layers = hidden.layers.clone().collect();
        let report = Report { layers, pool: args.pool, tokens: &words, hidden: args.nested(&hidden) };
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
    } else {
        table(&mut out, args, &hidden, &words)?;
    }
    Ok(out.flush().map(|()| ExitCode::SUCCESS)?)
}

impl Args {
    /// Runs the text.
    fn hidden(&self, engine: Engine, opened: &mut Opened, tokens: &[Token]) -> anyhow::Result<Hidden> {
        let config = opened.model.header.config;
        let last = config.n_layer;
        let layers = match self.layer {
            Choice::All => 0..=last,
            Choice::One(layer) => {
                let from_end = if layer < 0 { last as i64 + 1 } else { 0 };
                match usize::try_from(layer.saturating_add(from_end)) {
                    Ok(layer) if layer <= last => layer..=layer,
                    _ => bail!("--layer {layer} cannot be had: this model has 0 to {last}"),
                }
            }
        };
        let options = text::options(&self.memory, &config, tokens)?;
        let (n, n_embd) = (tokens.len(), config.n_embd);
        let mut memory = model::memory(Plan::new(&config, &options).total())?;
        let mut sequence = Sequence::new(engine, opened, &options, &mut memory)?;
        let mut values = model::floats(&[layers.clone().count(), n, n_embd])?;
        let (bar, mut done) = (progress(n, "computing hidden states"), 0);
        for batch in tokens.chunks(options.batch) {
            interrupt::check()?;
            let mut keep = |layer: usize, x: &[f32]| {
                if layers.contains(&layer) {
                    values[((layer - layers.start()) * n + done) * n_embd..][..x.len()].copy_from_slice(x);
                }
            };
            let end = sequence.watch(batch, |seen| match seen {
                Seen::Residual(layer, x) => keep(layer, x),
                Seen::Input(..) | Seen::Attention { .. } => {}
            })?;
            keep(last, end); // of the last layer, what the norm behind it leaves
            done += batch.len();
            advance(&bar, done);
        }
        bar.finish_and_clear();
        let hidden = Hidden { layers, tokens: n, n_embd, values };
        Ok(match self.pool {
            Some(pool) => hidden.pooled(pool),
            None => hidden,
        })
    }

    /// [layers, tokens, width], less what there is one of by request.
    fn shape(&self, hidden: &Hidden) -> Vec<usize> {
        let layers = (self.layer == Choice::All).then(|| hidden.layers.clone().count());
        let tokens = self.pool.is_none().then_some(hidden.tokens);
        [layers, tokens, Some(hidden.n_embd)].into_iter().flatten().collect()
    }

    /// The values in that shape.
    fn nested<'a>(&self, hidden: &'a Hidden) -> Nested<'a> {
        let rows = |values: &'a [f32]| values.chunks_exact(hidden.n_embd).collect();
        match self.shape(hidden)[..] {
            [_, tokens, n_embd] => Nested::Three(hidden.values.chunks_exact(tokens * n_embd).map(rows).collect()),
            [_, _] => Nested::Two(rows(&hidden.values)),
            _ => Nested::One(&hidden.values),
        }
    }
}

impl Hidden {
    /// One vector a layer.
    fn pooled(self, pool: Pool) -> Hidden {
        let Hidden { tokens, n_embd, .. } = self;
        let of_layer = |rows: &[f32]| -> Vec<f32> {
            let mean =
                |i: usize| rows.iter().skip(i).step_by(n_embd).map(|&x| f64::from(x)).sum::<f64>() / tokens as f64;
            match pool {
                Pool::Mean => (0..n_embd).map(|i| mean(i) as f32).collect(),
                Pool::Last => rows[(tokens - 1) * n_embd..].to_vec(),
            }
        };
        let values = self.values.chunks_exact(tokens * n_embd).flat_map(of_layer).collect();
        Hidden { tokens: 1, values, ..self }
    }
}

/// A line a vector: its length and its first values.
fn table(out: &mut impl Write, args: &Args, hidden: &Hidden, words: &[Word]) -> io::Result<()> {
    const SHOWN: usize = 6;
    let names: Vec<String> = match args.pool {
        Some(Pool::Mean) => vec![format!("{:>6}  mean of {} tokens", "", words.len())],
        Some(Pool::Last) => words.last().map(Word::named).into_iter().collect(),
        None => words.iter().map(Word::named).collect(),
    };
    writeln!(out, "layer {:>6}  {:<20} {:>9}  first of {} values", "token", "text", "length", hidden.n_embd)?;
    for (layer, values) in zip(hidden.layers.clone(), hidden.values.chunks_exact(hidden.tokens * hidden.n_embd)) {
        for (name, x) in zip(&names, values.chunks_exact(hidden.n_embd)) {
            let length = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            let first: String = x.iter().take(SHOWN).map(|x| format!("{x:>9.4}")).collect();
            writeln!(out, "{layer:>5} {name:<28} {length:>9.4} {first}")?;
        }
    }
    Ok(())
}
