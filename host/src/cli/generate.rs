//! `gptrickle generate`: a prompt in, text out, token by token.

mod sequences;

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, BufReader, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytesize::ByteSize;
use gptrickle_core::arena::Arena;
use gptrickle_core::generate::{Fingerprint, Options, Overflow, Plan, Saved, Session, StopReason};
use gptrickle_core::gpt2::{self, Head};
use gptrickle_core::ops::Engine;
use gptrickle_core::sampler::Params;
use gptrickle_core::source::{Counting, Resident};
use gptrickle_core::tokenizer::{Control, Flow, MAX_STOP, TextStream, Token};
use serde::Serialize;

use super::model::{self, EngineArgs, MemoryArgs, ModelArgs, Opened, ram_bytes};
use super::{advance, note, progress, text_or_stdin};
use crate::output;
use crate::source::ModelFile;

const EXAMPLES: &str = "Examples:
  gptrickle generate \"Once upon a time\"
  gptrickle generate \"The cat\" --temperature 0 -n 20     the likeliest tokens
  gptrickle generate \"The cat\" --num-return-sequences 3     three texts, in the passes of one
  gptrickle generate \"The cat\" -n 2000 --overflow slide:8    a text longer than the context
  gptrickle generate -m gpt2.Q4_0.gguf --prompt-file a.txt --stop END --stats
  gptrickle generate \"The cat\" -n 50 --save cat.session
  gptrickle generate -n 50 --resume cat.session            the next 50 tokens
  echo -n \"Hello\" | gptrickle generate - --json          one object a line

The same model, prompt, options and seed give the same text everywhere.";

/// Write text: continues a prompt, token by token
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Text to continue; "-" reads it from standard input, none lets the model begin
    #[arg(value_name = "PROMPT", conflicts_with = "prompt_file")]
    prompt: Option<String>,

    /// Read the prompt from a file, as it is
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,

    #[command(flatten)]
    model: ModelArgs,

    /// Most tokens to make
    #[arg(short = 'n', long, value_name = "N", default_value_t = 200)]
    max_new_tokens: usize,

    #[command(flatten)]
    memory: MemoryArgs,

    #[command(flatten)]
    engine: EngineArgs,

    /// When the context is full: stop, or slide:KEEP, which keeps the first KEEP tokens and the newest half of the others
    #[arg(long, value_name = "HOW", value_parser = overflow)]
    overflow: Option<Overflow>,

    /// Writes N texts that go on from the prompt, with the seeds S, S + 1 and so on: each pass of the weights serves a
    /// token of every one, and each is the text of a run with its own seed
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    #[arg(conflicts_with_all = ["lookup", "overflow", "save", "resume"])]
    num_return_sequences: u8,

    /// Guesses up to N tokens from earlier text and checks them in one pass: the same text, in fewer passes, which pays
    /// where storage is slower than arithmetic; 0 is off
    #[arg(long, value_name = "N", default_value_t = 0)]
    lookup: u8,

    /// The head: "exact" reads all of it for a token; "two-stage:K" reads the smaller token embedding of an untied file
    /// instead, and of the head the rows of the K tokens that it finds likeliest, which alone can be chosen; K is 128
    /// if left out
    #[arg(long, value_name = "HOW", default_value = "exact", value_parser = model::head)]
    head: Head,

    /// Divides the logits: below 1 is bolder in what is likely, above 1 in what is not; 0 takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = Params::default().temperature, allow_negative_numbers = true)]
    #[arg(value_parser = control(|params, x| params.temperature = x))]
    temperature: f32,

    /// Chooses among the K likeliest tokens; 0 among all
    #[arg(long, value_name = "K", default_value_t = Params::default().top_k)]
    top_k: usize,

    /// Chooses among the fewest tokens whose probabilities reach P
    #[arg(long, value_name = "P", default_value_t = Params::default().top_p, allow_negative_numbers = true)]
    #[arg(value_parser = control(|params, x| params.top_p = x))]
    top_p: f32,

    /// Chooses among tokens at least P times as probable as the likeliest
    #[arg(long, value_name = "P", default_value_t = Params::default().min_p, allow_negative_numbers = true)]
    #[arg(value_parser = control(|params, x| params.min_p = x))]
    min_p: f32,

    /// Makes tokens of the window less likely; 1 is off
    #[arg(long, value_name = "X", default_value_t = Params::default().repetition_penalty, allow_negative_numbers = true)]
    #[arg(value_parser = control(|params, x| params.repetition_penalty = x))]
    repetition_penalty: f32,

    /// How many of the last tokens the penalty looks at
    #[arg(long, value_name = "N", default_value_t = Params::default().repetition_window)]
    repetition_window: usize,

    /// Where the random numbers start
    #[arg(long, value_name = "S", default_value_t = 42)]
    seed: u64,

    /// Saves the text so far at the end, or when it is interrupted, with all it takes to go on; replaces the file
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,

    /// Goes on with a saved text and its options, with the same model; a prompt is added to it
    #[arg(long, value_name = "FILE", conflicts_with_all = SAVED)]
    resume: Option<PathBuf>,

    /// Ends the text before this string; may be given several times
    #[arg(long, value_name = "STR", value_parser = stop_string)]
    stop: Vec<String>,

    /// Takes <|endoftext|> and other control tokens in the prompt as tokens, not as text
    #[arg(long)]
    special: bool,

    /// Prints speed, bytes read and memory to standard error at the end
    #[arg(long)]
    stats: bool,

    /// Memory to keep weights in beside the arena: what is kept, head first, is not read again for each token
    #[arg(long, value_name = "BYTES", default_value = "0", value_parser = ram_bytes)]
    ram: usize,

    /// Prints a hash over all logits at the end: equal hashes, equal bits
    #[arg(long)]
    logits_hash: bool,

    /// Prints one JSON object a line: each token, and at last the figures
    #[arg(long)]
    json: bool,
}

/// What a saved text brings along.
const SAVED: [&str; 9] =
    ["context", "kv", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "repetition_window", "seed"];

/// Reads a control of the sampler and checks it against the core's range.
fn control(set: fn(&mut Params, f32)) -> impl Fn(&str) -> Result<f32, String> + Clone {
    move |text| {
        let value = text.parse().map_err(|_| "it must be a number".to_owned())?;
        let mut params = Params::default();
        set(&mut params, value);
        params.check().map(|()| value).map_err(|error| error.to_string())
    }
}

fn overflow(text: &str) -> Result<Overflow, String> {
    let keep = text.strip_prefix("slide:").and_then(|keep| keep.parse().ok());
    match (text, keep) {
        ("stop", _) => Ok(Overflow::Stop),
        (_, Some(keep)) => Ok(Overflow::Slide { keep }),
        _ => Err("it must be stop, or slide:KEEP with a number of tokens to keep".to_owned()),
    }
}

fn stop_string(text: &str) -> Result<String, String> {
    match TextStream::new(&[text]) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(format!("it has {} bytes, and must have 1 to {MAX_STOP}", text.len())),
    }
}

/// A token, as `--json` prints it.
#[derive(Serialize)]
struct TokenLine {
    /// Of which text, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence: Option<usize>,
    token: u32,
    text: String,
}

/// The last line of `--json`; `--stats` prints the same figures.
#[derive(Serialize)]
struct Summary {
    /// Why the text ended; of several, each says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    stop: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sequences: Vec<sequences::Summary>,
    #[serde(skip)]
    interrupted: bool,
    prompt_tokens: usize,
    new_tokens: usize,
    /// Passes of the weights after those of the prompt, whose last one makes the first token.
    passes: u64,
    #[serde(skip)]
    tokens_per_pass: f64,
    prefill_tokens_per_s: f64,
    decode_tokens_per_s: f64,
    bytes_per_token: u64,
    /// Bytes read for a token and the wall time it took.
    source_bytes_per_s: f64,
    /// Of the bandwidth of a throttled source.
    #[serde(skip_serializing_if = "Option::is_none")]
    source_share: Option<f64>,
    arena_bytes: usize,
    /// Weights kept in memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    resident_bytes: Option<usize>,
    kernel: &'static str,
    threads: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    logits_hash: Option<String>,
}

/// Set by Ctrl-C.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    args.engine.run(|engine| run_on(engine, &args))
}

fn run_on(engine: Engine, args: &Args) -> anyhow::Result<ExitCode> {
    let prompt = args.prompt()?;
    let mut opened = args.model.open()?;
    let mut saved = args.resume.as_deref().map(|path| SavedText::open(path, &mut opened)).transpose()?;
    let options = args.options(&opened, saved.as_ref().map(|saved| &saved.head))?;
    let mut memory = model::memory(Plan::new(&opened.model, &options).total())?;
    let mut arena = Arena::new(&mut memory);
    let mut session =
        Session::new(&opened.model, &options, &mut opened.src, &mut arena).with_context(|| opened.name.clone())?;
    session.set_engine(engine);
    if let Some(saved) = &mut saved {
        saved.restore(&mut session)?;
    }
    if let Some(overflow) = args.overflow {
        session.set_overflow(overflow)?;
    }
    session.limit(args.max_new_tokens);
    if args.logits_hash != session.logits_hash().is_some() {
        session.hash_logits(args.logits_hash);
    }
    // Before the text is made: it is a pity to find out afterwards.
    let save = args.save.as_deref().map(|path| SavedText::create(path, &mut opened)).transpose()?;

    ctrlc::set_handler(|| {
        // The first ends the text where it is, the second the process.
        if INTERRUPTED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    })
    .context("cannot listen for Ctrl-C")?;

    let control = if args.special { Control::Recognise } else { Control::Ignore };
    let prefix = session.tokenizer().vocabulary().prefix().filter(|_| session.tokens().len() == 0);
    let mut tokens: Vec<Token> = prefix.into_iter().collect();
    tokens.extend(model::encode(session.tokenizer(), &mut opened.src, &prompt, control)?);
    if !tokens.is_empty() {
        session.push(&tokens)?;
    }
    describe(&opened, &options, arena.used());
    let most = opened.model.header.block_bytes + opened.model.header.head_bytes;
    let mut resident = vec![0; usize::try_from(most).map_or(args.ram, |most| most.min(args.ram))];
    let mut src = Resident::new(&mut opened.src, &mut resident);
    session.keep(&mut src).with_context(|| opened.name.clone())?;
    let mut run = Run { args, src: &mut src, name: &opened.name, engine, arena_bytes: arena.used() };
    let result = run.read_prompt(&mut session, &prompt).and_then(|prefill| match args.num_return_sequences {
        1 => write(&mut run, &mut session, prefill),
        _ => sequences::write(&mut run, &mut session, prefill),
    });
    if let Some((fingerprint, output)) = save {
        SavedText::write(&session, fingerprint, output)?; // also what was made before something failed
    }
    let summary = result?;
    if args.json {
        print(&(serde_json::to_string(&summary)? + "\n"))?;
    }
    if args.stats {
        summary.print();
    }
    if let Some(hash) = summary.logits_hash.as_ref().filter(|_| !args.json) {
        note(format_args!("logits hash     {hash}"));
    }
    for text in summary.sequences.iter().filter(|_| !args.json) {
        if let Some(hash) = &text.logits_hash {
            note(format_args!("logits hash     {hash}, of {}", text.sequence + 1));
        }
    }
    Ok(if summary.interrupted { ExitCode::from(130) } else { ExitCode::SUCCESS })
}

/// What a run reads, and what it was asked for.
struct Run<'r, 's> {
    args: &'r Args,
    src: &'r mut Resident<'s, &'s mut Counting<ModelFile>>,
    name: &'r str,
    engine: Engine<'r>,
    arena_bytes: usize,
}

/// What a prompt was and took.
struct Prefill {
    prompt_tokens: usize,
    tokens_per_s: f64,
}

impl Run<'_, '_> {
    /// Runs the prompt, and shows it on a terminal.
    fn read_prompt(&mut self, session: &mut Session, prompt: &[u8]) -> anyhow::Result<Prefill> {
        let start = Instant::now();
        let pending = session.pending();
        let bar = progress(pending, "reading the prompt");
        let mut left = pending;
        while left > 0 && !stop_if_interrupted(session) {
            left = session.pass(self.src).with_context(|| self.name.to_owned())?;
            advance(&bar, pending - left);
        }
        bar.finish_and_clear();
        let took = start.elapsed();
        if io::stdout().is_terminal() && io::stderr().is_terminal() && !self.args.json {
            let [bold, plain] = if no_color() { ["", ""] } else { ["\x1b[1m", "\x1b[0m"] };
            let _ = write!(io::stderr(), "{bold}{}{plain}", String::from_utf8_lossy(prompt));
        }
        Ok(Prefill { prompt_tokens: session.tokens().len(), tokens_per_s: per_s(pending - left, took) })
    }

    /// Figures of `tokens` that were made after those that the prompt's own passes gave, and of the bytes they took.
    fn summary(&self, prefill: &Prefill, tokens: usize, bytes_read: u64, took: Duration, passes: u64) -> Summary {
        let source_bytes_per_s = if took.is_zero() { 0.0 } else { bytes_read as f64 / took.as_secs_f64() };
        Summary {
            stop: None,
            sequences: Vec::new(),
            interrupted: false,
            prompt_tokens: prefill.prompt_tokens,
            new_tokens: 0,
            passes,
            tokens_per_pass: tokens as f64 / passes.max(1) as f64,
            prefill_tokens_per_s: prefill.tokens_per_s,
            decode_tokens_per_s: per_s(tokens, took),
            bytes_per_token: bytes_read.checked_div(tokens as u64).unwrap_or(0),
            source_bytes_per_s,
            source_share: self.args.model.bandwidth().map(|bandwidth| source_bytes_per_s / bandwidth as f64),
            arena_bytes: self.arena_bytes,
            resident_bytes: (self.src.kept() > 0).then(|| self.src.kept()),
            kernel: self.engine.kernel.name(),
            threads: self.engine.team.parts(),
            logits_hash: None,
        }
    }
}

fn per_s(n: usize, took: Duration) -> f64 {
    if n > 0 && !took.is_zero() { n as f64 / took.as_secs_f64() } else { 0.0 }
}

/// Shows token after token until the text ends.
fn write(run: &mut Run, session: &mut Session, prefill: Prefill) -> anyhow::Result<Summary> {
    let stops: Vec<&str> = run.args.stop.iter().map(String::as_str).collect();
    let mut stream = TextStream::new(&stops)?;
    let mut bytes = vec![0; session.tokenizer().vocabulary().max_token_bytes()];
    let mut output = Output::new(run.args.json);
    let mut new_tokens = 0usize;
    // The first token comes from the prompt's own pass: what a token costs is told by those after it.
    let mut decode_start = Instant::now();
    let (mut steps, mut bytes_read, passes) = (0usize, 0, session.passes());
    while !stop_if_interrupted(session) {
        let before = run.src.inner().bytes();
        let token = session.next(run.src).with_context(|| run.name.to_owned())?;
        let read = run.src.inner().bytes() - before;
        if new_tokens > 0 && (read > 0 || token.is_some()) {
            (steps, bytes_read) = (steps + 1, bytes_read + read);
        }
        let Some(token) = token else { break };
        new_tokens += 1;
        if new_tokens == 1 {
            decode_start = Instant::now();
        }
        let len = session.tokenizer().decode(run.src, token, Control::Ignore, &mut bytes)?;
        let mut text = String::new();
        let Ok(flow) = stream.push(&bytes[..len], |part| {
            text.push_str(part);
            Ok::<(), Infallible>(())
        });
        output.token(token, text, held_back(stream.clone()).is_empty())?;
        if let Flow::Stopped { .. } = flow {
            session.stop(StopReason::StopString);
            break;
        }
    }
    let decode = decode_start.elapsed();
    output.finish(&held_back(stream))?;
    let passes = session.passes() - passes;
    let stop = session.stop_reason();
    Ok(Summary {
        stop: Some(stop.map_or("", StopReason::name)),
        interrupted: stop == Some(StopReason::Interrupted),
        new_tokens,
        tokens_per_pass: new_tokens.saturating_sub(1) as f64 / passes.max(1) as f64,
        logits_hash: session.logits_hash().map(|hash| hash.to_string()),
        ..run.summary(&prefill, steps, bytes_read, decode, passes)
    })
}

/// What is shown if the text ends here.
fn held_back(stream: TextStream) -> String {
    let mut text = String::new();
    let Ok(_) = stream.finish(|part| {
        text.push_str(part);
        Ok::<(), Infallible>(())
    });
    text
}

/// Where the text goes, as it is or as JSON lines, at once.
struct Output {
    json: bool,
    /// Of which text the tokens are, where there are several.
    sequence: Option<usize>,
    /// Plain text that is not to be shown yet.
    later: Option<String>,
    /// A token of which some text is held back: its line waits, as that text is its own if the text ends here.
    waiting: Option<TokenLine>,
    ends_line: bool,
}

impl Output {
    fn new(json: bool) -> Output {
        Output { json, sequence: None, later: None, waiting: None, ends_line: false }
    }

    /// Shows a token and the text that is certain with it; `whole` says that none is held back.
    fn token(&mut self, Token(token): Token, text: String, whole: bool) -> anyhow::Result<()> {
        if !self.json {
            return self.text(&text);
        }
        self.line()?;
        self.waiting = Some(TokenLine { sequence: self.sequence, token, text });
        if whole { self.line() } else { Ok(()) }
    }

    /// Shows the text that was held back at the end.
    fn finish(&mut self, rest: &str) -> anyhow::Result<()> {
        if let Some(waiting) = &mut self.waiting {
            waiting.text.push_str(rest);
            return self.line();
        }
        self.text(rest)?;
        if self.json || self.ends_line { Ok(()) } else { self.text("\n") }
    }

    fn line(&mut self) -> anyhow::Result<()> {
        match self.waiting.take() {
            Some(line) => print(&(serde_json::to_string(&line)? + "\n")),
            None => Ok(()),
        }
    }

    fn text(&mut self, text: &str) -> anyhow::Result<()> {
        if !text.is_empty() {
            self.ends_line = text.ends_with('\n');
        }
        match &mut self.later {
            Some(later) => later.push_str(text),
            None => print(text)?,
        }
        Ok(())
    }
}

/// Writes to standard output, and waits for nothing.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot write to standard output")
}

/// Whether <https://no-color.org> asks for plain text.
fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

fn stop_if_interrupted(session: &mut Session) -> bool {
    let interrupted = INTERRUPTED.load(Ordering::SeqCst);
    if interrupted {
        session.stop(StopReason::Interrupted);
    }
    interrupted
}

fn describe(opened: &Opened, options: &Options, arena_bytes: usize) {
    let config = &opened.model.header.config;
    note(format_args!(
        "{}: GPT-2, {} layers, {} heads, {} wide, {} tokens; context {} of {}, {} of memory",
        opened.name,
        config.n_layer,
        config.n_head,
        config.n_embd,
        config.n_vocab,
        options.state.context,
        config.n_ctx,
        ByteSize::b(arena_bytes as u64),
    ));
}

/// The file of a saved text.
struct SavedText {
    file: BufReader<File>,
    path: PathBuf,
    head: Saved,
}

impl SavedText {
    /// Opens a file and checks all that it says before the text.
    fn open(path: &Path, opened: &mut Opened) -> anyhow::Result<SavedText> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut file = BufReader::new(file);
        let fingerprint = opened.model.fingerprint(&mut opened.src).with_context(|| opened.name.clone())?;
        let head = Saved::open(fingerprint, &mut |bytes| file.read(bytes));
        let head = head.with_context(|| path.display().to_string())?;
        Ok(SavedText { file, path: path.into(), head })
    }

    fn restore(&mut self, session: &mut Session) -> anyhow::Result<()> {
        let name = || self.path.display().to_string();
        session.restore(&self.head, &mut |bytes| self.file.read(bytes)).with_context(name)?;
        let behind = self.file.read(&mut [0]).with_context(name)?;
        anyhow::ensure!(behind == 0, "{}: there is more in it than a saved text", name());
        Ok(())
    }

    /// Starts a file for a text of this model.
    fn create(path: &Path, opened: &mut Opened) -> anyhow::Result<(Fingerprint, output::Output)> {
        let fingerprint = opened.model.fingerprint(&mut opened.src).with_context(|| opened.name.clone())?;
        Ok((fingerprint, output::Output::create(path, true)?))
    }

    fn write(session: &Session, fingerprint: Fingerprint, mut output: output::Output) -> anyhow::Result<()> {
        let saved = session.save(fingerprint, &mut |bytes| output.write_all(bytes));
        saved.and_then(|()| output.finish()).context("cannot save the text")
    }
}

impl Args {
    fn prompt(&self) -> anyhow::Result<Vec<u8>> {
        match (&self.prompt, &self.prompt_file) {
            (Some(text), _) => text_or_stdin(text),
            (None, Some(path)) => fs::read(path).with_context(|| format!("cannot read {}", path.display())),
            (None, None) => Ok(Vec::new()),
        }
    }

    fn options(&self, opened: &Opened, saved: Option<&Saved>) -> anyhow::Result<Options> {
        if let Some(saved) = saved {
            let batch = self.memory.batch().min(saved.options(1).state.context);
            return Ok(Options { lookup: self.lookup.into(), head: self.head, ..saved.options(batch) });
        }
        Ok(Options {
            state: gpt2::Options {
                sequences: self.num_return_sequences.into(),
                own: self.max_new_tokens,
                ..self.memory.options(&opened.model.header.config)?
            },
            sampling: Params {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                min_p: self.min_p,
                repetition_penalty: self.repetition_penalty,
                repetition_window: self.repetition_window,
            },
            seed: self.seed,
            lookup: self.lookup.into(),
            head: self.head,
        })
    }
}

impl Summary {
    fn print(&self) {
        if let Some(stop) = self.stop {
            note(format_args!("stop            {stop}"));
        }
        for text in &self.sequences {
            note(format_args!(
                "text {:<10} {}, {} tokens, seed {}",
                text.sequence + 1,
                text.stop,
                text.new_tokens,
                text.seed
            ));
        }
        note(format_args!("prompt          {} tokens, {:.1} tokens/s", self.prompt_tokens, self.prefill_tokens_per_s));
        note(format_args!("new             {} tokens, {:.1} tokens/s", self.new_tokens, self.decode_tokens_per_s));
        note(format_args!("passes          {} after the prompt, {:.2} tokens each", self.passes, self.tokens_per_pass));
        note(format_args!("read per token  {} bytes", self.bytes_per_token));
        let share = self.source_share.map(|share| format!(", {:.1} % of its bandwidth", share * 100.0));
        let share = share.unwrap_or_default();
        note(format_args!("source          {:.2} MB/s{share}", self.source_bytes_per_s / 1e6));
        note(format_args!("arena           {} bytes", self.arena_bytes));
        if let Some(bytes) = self.resident_bytes {
            note(format_args!("weights kept    {bytes} bytes"));
        }
        note(format_args!("kernel          {}, {} threads", self.kernel, self.threads));
    }
}
