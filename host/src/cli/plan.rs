//! `gptrickle plan`: the memory that a run takes, and the speed that storage allows.

use std::fmt;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use clap::builder::PossibleValuesParser;
use gptrickle_core::arena::{ALIGN, Arena};
use gptrickle_core::generate::{BeamOptions, Model, Options, Plan};
use gptrickle_core::gpt2::{self, Head, Header, Weights};
use gptrickle_core::sampler::Params;
use gptrickle_core::source::Source;
use serde::Serialize;

use super::model::{HeadArgs, MemoryArgs, ModelArgs, buffer_bytes, head_name, ram_bytes};
use crate::board::{BOARDS, Board};
use crate::source::throttled::bandwidth;

const EXAMPLES: &str = "Examples:
  gptrickle plan -m distilgpt2.Q4_0.gguf --context 128 --batch 1 --kv q8_0
  gptrickle plan -m gpt2.Q4_K_M.gguf --ram 8MiB --bandwidth 23MB/s    the largest context that fits
  gptrickle plan -m gpt2.Q4_K_M.gguf --board esp32-p4-function-ev --json

It reads the file's header alone, by the function that boards call before they read a weight.";

/// Plan memory, bytes read and speed before a run
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// GGUF file of a GPT-2 model; the built-in demo model if left out
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,

    #[command(flatten)]
    memory: MemoryArgs,

    /// Texts that go on from one prompt in the same passes
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    num_return_sequences: u8,

    /// Beams of a search, however many of its texts are shown
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    #[arg(conflicts_with = "num_return_sequences")]
    num_beams: u8,

    /// Most tokens that each of several texts or beams makes: each but the first takes as many positions beside the context
    #[arg(short = 'n', long, value_name = "N", default_value_t = 200)]
    max_new_tokens: usize,

    #[command(flatten)]
    head: HeadArgs,

    /// Size of each source buffer, 0 where the model is mapped; the board's, or 64KiB
    #[arg(long, value_name = "BYTES", value_parser = plan_buffer)]
    buffer: Option<usize>,

    /// Memory for arena and source buffers together; without --context, the largest that fits is planned, in batches
    /// of 1 if none fits otherwise
    #[arg(long, value_name = "BYTES", value_parser = ram_bytes)]
    ram: Option<usize>,

    /// What the storage gives, such as 23MB/s
    #[arg(long, value_name = "RATE", value_parser = bandwidth)]
    bandwidth: Option<u64>,

    /// Takes buffers, memory and bandwidth from a board; options replace them
    #[arg(long, value_name = "NAME", value_parser = board_names())]
    board: Option<String>,

    /// Tokens of the prompt that passes are told for; 32, or as many as the context has
    #[arg(long, value_name = "N")]
    prompt_tokens: Option<usize>,

    /// Prints one JSON object
    #[arg(long)]
    json: bool,
}

fn plan_buffer(size: &str) -> Result<usize, String> {
    if size == "0" { Ok(0) } else { buffer_bytes(size) }
}

fn board_names() -> PossibleValuesParser {
    let mut names: Vec<_> = BOARDS.iter().map(|board| board.name).collect();
    names.dedup();
    names.into()
}

/// All that is shown.
#[derive(Serialize)]
struct Report {
    #[serde(skip)]
    name: String,
    context: usize,
    n_ctx: usize,
    batch: usize,
    kv: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sequences: Option<Sequences>,
    regions: Regions,
    arena_bytes: usize,
    buffers: usize,
    buffer_bytes: usize,
    total_bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<Limit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resident: Option<Resident>,
    head: String,
    bytes_per_token: u64,
    block_bytes: u64,
    head_bytes: u64,
    embedding_bytes: u64,
    prompt: Prompt,
    #[serde(skip_serializing_if = "Option::is_none")]
    storage: Option<Storage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    board: Option<&'static str>,
}

/// Several texts or beams in the same passes.
#[derive(Serialize)]
struct Sequences {
    count: usize,
    #[serde(skip)]
    noun: &'static str,
    /// Positions in the KV cache: a whole context, and those that sequences beside the first one have of their own.
    kv_positions: usize,
    /// What a pass reads at most that makes a token of each.
    bytes_per_pass: u64,
}

/// The arena, in bytes.
#[derive(Serialize)]
pub(super) struct Regions {
    directory: usize,
    kv: usize,
    activations: usize,
    tokenizer: usize,
    sampler: usize,
    tokens: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    beams: Option<usize>,
}

/// Memory that was told, and what fits into it.
#[derive(Serialize)]
struct Limit {
    ram_bytes: usize,
    fits: bool,
    largest_context: Option<usize>,
}

/// What memory that is left over can keep of the weights, and what a token reads then.
#[derive(Serialize)]
struct Resident {
    /// To be given to `generate --ram`.
    ram_bytes: usize,
    /// Of them in use.
    resident_bytes: usize,
    tensors: Vec<Kept>,
    bytes_per_token: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_per_s: Option<f64>,
}

/// A tensor's first rows, kept in memory.
#[derive(Serialize)]
struct Kept {
    tensor: String,
    rows: usize,
    of: usize,
}

/// What a prompt and the token after it cost.
#[derive(Serialize)]
struct Prompt {
    tokens: usize,
    block_passes: usize,
    head_passes: usize,
    bytes: u64,
}

/// What storage allows, were there nothing else to wait for.
#[derive(Serialize)]
struct Storage {
    bytes_per_s: u64,
    tokens_per_s: f64,
    prompt_s: f64,
    /// Where the bandwidth is known from.
    basis: &'static str,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut opened = ModelArgs::mapped(args.model.clone()).open()?;
    let (model, file_bytes) = (&opened.model, opened.src.len());
    let board = args.board.as_deref().map(|name| Board::find(name, file_bytes)).transpose();
    let board = board.map_err(|error| anyhow!(error))?;
    let buffer = args.buffer.unwrap_or(board.map_or(64 << 10, |board| board.buffer));
    let buffers = board.map(|board| board.buffers).filter(|&n| n > 0).unwrap_or(2);
    let buffers = if buffer > 0 { buffers } else { 0 }; // a model that is mapped is lent in place
    let row = model.header.longest_row;
    let lends = board.map_or(buffer, |board| board.lends(buffer));
    if buffers > 0 && lends < row {
        let needed = board.map_or(row, |board| board.buffer_for(row));
        bail!(
            "{}: the longest row has {row} bytes, a buffer of {buffer} lends {lends}: use --buffer {needed} or more",
            opened.name
        );
    }
    let ram = args.ram.or(board.map(|board| board.ram));
    let buffers_bytes = buffer.saturating_mul(buffers);

    let config = &model.header.config;
    let searches = args.num_beams > 1;
    let count = usize::from(if searches { args.num_beams } else { args.num_return_sequences });
    let mut state = args.memory.options(config)?;
    (state.sequences, state.own) = (count, args.max_new_tokens);
    let header = &model.header;
    let head_bytes = header.head_reads(args.head.how).with_context(|| opened.name.clone())?;
    let options = |state| Options { state, sampling: Params::default(), head: args.head.how, ..Options::default() };
    let largest_context = if searches { BeamOptions::largest_context } else { Plan::largest_context };
    let fit = |state| ram.map(|ram| largest_context(model, &options(state), ram.saturating_sub(buffers_bytes)));
    let mut largest = fit(state);
    if !args.memory.asks_for_context() {
        if largest == Some(None) {
            state.batch = 1;
            largest = fit(state);
        }
        state.context = largest.map_or(state.context, |largest| largest.unwrap_or(1));
        state.batch = state.batch.min(state.context);
    }
    let plan = Plan::new(model, &options(state));
    let beams = searches.then(|| BeamOptions::bytes(model, &options(state)));
    let arena_bytes = plan.total().saturating_add(beams.unwrap_or(0));
    let total_bytes = arena_bytes.saturating_add(buffers_bytes);
    let limit = ram.zip(largest).map(|(ram_bytes, largest_context)| Limit {
        ram_bytes,
        fits: total_bytes <= ram_bytes,
        largest_context,
    });

    let tokens = args.prompt_tokens.unwrap_or(32.min(state.context));
    if tokens == 0 || tokens > state.context {
        bail!("--prompt-tokens {tokens} cannot be had: the context has 1 to {} positions", state.context);
    }
    let batch = state.batch.max(count); // a pass has room for a token of each sequence
    let saved = header.head_bytes - head_bytes;
    let bytes = header.bytes_per_prompt(tokens, batch) - saved;
    let prompt = Prompt { tokens, block_passes: tokens.div_ceil(batch), head_passes: 1, bytes };
    let bytes_per_token = header.bytes_per_token() - saved;
    // Each sequence has candidates of its own.
    let rows = if args.head.how == Head::Exact { 0 } else { head_bytes - header.token_embd_bytes };
    let bytes_per_pass = bytes_per_token + (count as u64 - 1) * (header.embedding_bytes + rows);
    // A search makes one text.
    let tokens_per_pass = if searches { 1 } else { count };
    let rate = args.bandwidth.or(board.and_then(|board| board.bandwidth));
    let storage = rate.map(|bytes_per_s| Storage {
        bytes_per_s,
        tokens_per_s: bytes_per_s as f64 / bytes_per_pass as f64 * tokens_per_pass as f64,
        prompt_s: bytes as f64 / bytes_per_s as f64,
        basis: if args.bandwidth.is_some() { "as told" } else { board.map_or("", |board| board.storage) },
    });
    // A board's firmware keeps no weights, and where they are mapped they are there already.
    let spare = ram.filter(|_| board.is_none() && buffers > 0).map_or(0, |ram| ram.saturating_sub(total_bytes));
    let resident = if spare > 0 { Some(Resident::new(model, &mut opened.src, spare, rate)?) } else { None };
    let report = Report {
        name: opened.name.clone(),
        context: state.context,
        n_ctx: config.n_ctx,
        batch,
        kv: state.kv.name(),
        sequences: (count > 1).then(|| Sequences {
            count,
            noun: if searches { "beams" } else { "texts" },
            kv_positions: state.rows(),
            bytes_per_pass,
        }),
        regions: Regions { beams, ..Regions::new(&plan) },
        arena_bytes,
        buffers,
        buffer_bytes: buffer,
        total_bytes,
        limit,
        resident,
        head: head_name(args.head.how),
        bytes_per_token,
        block_bytes: header.block_bytes,
        head_bytes,
        embedding_bytes: header.embedding_bytes,
        prompt,
        storage,
        board: board.map(|board| board.storage),
    };
    report.show(args.json)?;
    match &report.limit {
        Some(limit) if !limit.fits => Err(anyhow!(limit.advice(&report, state))),
        _ => Ok(ExitCode::SUCCESS),
    }
}

impl Regions {
    /// Those of a session.
    pub(super) fn new(plan: &Plan) -> Regions {
        let gpt2::Plan { weights, kv, activations } = plan.model;
        let Plan { tokenizer, sampler, tokens, .. } = *plan;
        Regions { directory: weights, kv, activations, tokenizer, sampler, tokens, beams: None }
    }

    /// Each with its name, in the order in which they are cut.
    pub(super) fn named(&self) -> impl Iterator<Item = (&'static str, usize)> {
        [
            ("directory of weights", self.directory),
            ("keys and values", self.kv),
            ("activations", self.activations),
            ("tokenizer's index", self.tokenizer),
            ("sampler", self.sampler),
            ("text as tokens", self.tokens),
        ]
        .into_iter()
        .chain(self.beams.map(|bytes| ("beams", bytes)))
    }
}

impl Resident {
    /// What `generate --ram` keeps in so many bytes beside arena and buffers.
    fn new(model: &Model, src: &mut impl Source, ram_bytes: usize, rate: Option<u64>) -> anyhow::Result<Resident> {
        let Header { block_bytes, head_bytes, config, .. } = &model.header;
        let mut memory = vec![0; Weights::bytes(config.n_layer) + ALIGN];
        let weights = Weights::load(&model.header, &model.file, src, &mut Arena::new(&mut memory))?;
        let (mut tensors, mut saved) = (Vec::new(), 0);
        let most = usize::try_from(block_bytes + head_bytes).unwrap_or(usize::MAX);
        let layout = weights.plan_to_keep(ram_bytes.min(most), |role, rows, of, bytes| {
            tensors.push(Kept { tensor: role.to_string(), rows, of });
            saved += bytes as u64;
        });
        let bytes_per_token = model.header.bytes_per_token() - saved;
        let tokens_per_s = rate.map(|rate| rate as f64 / bytes_per_token as f64);
        Ok(Resident { ram_bytes, resident_bytes: layout.kept(), tensors, bytes_per_token, tokens_per_s })
    }

    /// The tensors in a few words: those that are kept in part by name.
    fn tensors(&self) -> String {
        let (whole, part): (Vec<&Kept>, Vec<&Kept>) = self.tensors.iter().partition(|kept| kept.rows == kept.of);
        let mut words: Vec<String> =
            part.iter().map(|Kept { tensor, rows, of }| format!("{rows} of {of} rows of {tensor}")).collect();
        if let Some(first) = whole.first() {
            let others = if whole.len() > 1 { format!(" and {} more tensors", whole.len() - 1) } else { String::new() };
            words.insert(0, format!("{}{others}", first.tensor));
        }
        if words.is_empty() { "nothing, a row is longer".to_owned() } else { words.join(", ") }
    }
}

impl Limit {
    /// What would fit.
    fn advice(&self, report: &Report, state: gpt2::Options) -> String {
        let needs = format!("{} bytes are needed, {} are there", report.total_bytes, self.ram_bytes);
        match self.largest_context {
            Some(largest) => format!("{needs}: --context {largest} fits"),
            None if state.batch > 1 => format!("{needs}, and no context fits: try --batch 1 or --kv q4_0"),
            None => format!("{needs}, and no context fits: try --kv q4_0, a smaller --buffer or a smaller model"),
        }
    }
}

impl Report {
    fn show(&self, json: bool) -> anyhow::Result<()> {
        let mut out = BufWriter::new(io::stdout().lock());
        if json {
            writeln!(out, "{}", serde_json::to_string(self)?)?
        } else {
            write!(out, "{self}")?
        }
        Ok(out.flush()?)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Report { name, context, n_ctx, batch, kv, .. } = self;
        write!(f, "{name}: context {context} of {n_ctx}, batch {batch}, kv {kv}")?;
        if let Some(Sequences { count, noun, kv_positions, .. }) = self.sequences {
            write!(f, ", {count} {noun} with {kv_positions} positions")?;
        }
        writeln!(f, "\n\nMemory in bytes")?;
        for (region, bytes) in self.regions.named() {
            writeln!(f, "  {bytes:>12}  {region}")?;
        }
        writeln!(f, "  {:>12}  arena, all of these", self.arena_bytes)?;
        match self.buffers {
            0 => writeln!(f, "  {:>12}  source buffers: the model is mapped", 0)?,
            n => writeln!(
                f,
                "  {:>12}  source buffers, {n} of {}",
                self.total_bytes - self.arena_bytes,
                self.buffer_bytes
            )?,
        }
        writeln!(f, "  {:>12}  together", self.total_bytes)?;
        if let Some(Limit { ram_bytes, fits, largest_context }) = &self.limit {
            let fits = if *fits { "fits" } else { "does not fit" };
            let largest =
                largest_context.map_or("no context does".to_owned(), |n| format!("the largest context is {n}"));
            writeln!(f, "  {ram_bytes:>12}  there: it {fits}, {largest}")?;
        }
        if let Some(resident) = &self.resident {
            let Resident { ram_bytes, resident_bytes, .. } = resident;
            writeln!(f, "  {ram_bytes:>12}  left over, for `generate --ram`")?;
            writeln!(f, "  {resident_bytes:>12}  of that keep weights: {}", resident.tensors())?;
        }
        writeln!(f, "\nRead in bytes")?;
        writeln!(
            f,
            "  {:>12}  a token: {} blocks and last norm, {} head{}, {} rows of both embeddings",
            self.bytes_per_token,
            self.block_bytes,
            self.head_bytes,
            if self.head == "exact" { String::new() } else { format!(" ({})", self.head) },
            self.embedding_bytes
        )?;
        if let Some(resident) = &self.resident {
            writeln!(f, "  {:>12}  a token, with the weights that are kept", resident.bytes_per_token)?;
        }
        if let Some(Sequences { count, noun, bytes_per_pass, .. }) = self.sequences {
            writeln!(f, "  {bytes_per_pass:>12}  a token of each of {count} {noun}")?;
        }
        let Prompt { tokens, block_passes, bytes, .. } = self.prompt;
        writeln!(f, "  {bytes:>12}  a prompt of {tokens} tokens: {block_passes} × the blocks, 1 × the head")?;
        let kept = self.resident.as_ref().and_then(|resident| resident.tokens_per_s);
        let kept = kept.map_or(String::new(), |per_s| format!(", {per_s:.3} with the weights that are kept"));
        match (&self.storage, self.board) {
            (Some(Storage { bytes_per_s, tokens_per_s, prompt_s, basis }), _) => writeln!(
                f,
                "\nStorage of {:.2} MB/s allows {tokens_per_s:.3} tokens/s{kept}, after {prompt_s:.2} s of prompt\n  ({basis})",
                *bytes_per_s as f64 / 1e6
            ),
            (None, Some(storage)) => writeln!(f, "\nStorage: {storage}"),
            (None, None) => Ok(()),
        }
    }
}
