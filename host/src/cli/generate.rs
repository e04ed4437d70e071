//! `gptrickle generate`: a prompt in, text out, token by token.

use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::Context;
use bytesize::ByteSize;
use gptrickle_core::arena::{ALIGN, Arena};
use gptrickle_core::generate::{Options, Plan, Session, StopReason};
use gptrickle_core::sampler::Params;
use gptrickle_core::tokenizer::{Control, Flow, TextStream, Token};
use serde::Serialize;

use super::model::{MemoryArgs, ModelArgs, Opened};
use super::{advance, progress};

const EXAMPLES: &str = "Examples:
  gptrickle generate \"Once upon a time\"
  gptrickle generate \"The cat\" --temperature 0 -n 20              the likeliest tokens
  gptrickle generate -m gpt2.Q4_0.gguf --prompt-file story.txt --stop \"THE END\" --stats
  echo -n \"Hello\" | gptrickle generate - --json                   one object a line

The same model, prompt, options and seed give the same text, on every machine and board.";

/// Write text: continues a prompt, token by token
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Text to continue; "-" reads it from standard input
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

    /// Divides the logits: below 1 is bolder in what is likely, above 1 in what is not; 0 takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = Params::default().temperature)]
    temperature: f32,

    /// Chooses among the K likeliest tokens; 0 among all
    #[arg(long, value_name = "K", default_value_t = Params::default().top_k)]
    top_k: usize,

    /// Chooses among the fewest tokens whose probabilities reach P
    #[arg(long, value_name = "P", default_value_t = Params::default().top_p)]
    top_p: f32,

    /// Chooses among tokens at least P times as probable as the likeliest
    #[arg(long, value_name = "P", default_value_t = Params::default().min_p)]
    min_p: f32,

    /// Makes tokens of the window less likely; 1 is off
    #[arg(long, value_name = "X", default_value_t = Params::default().repetition_penalty)]
    repetition_penalty: f32,

    /// How many of the last tokens the penalty looks at
    #[arg(long, value_name = "N", default_value_t = Params::default().repetition_window)]
    repetition_window: usize,

    /// Where the random numbers start
    #[arg(long, value_name = "S", default_value_t = 42)]
    seed: u64,

    /// Ends the text before this string; may be given several times
    #[arg(long, value_name = "STR")]
    stop: Vec<String>,

    /// Takes <|endoftext|> and other control tokens in the prompt as tokens, not as text
    #[arg(long)]
    special: bool,

    /// Prints speed, bytes read and memory to standard error at the end
    #[arg(long)]
    stats: bool,

    /// Prints a hash over all logits at the end: equal hashes, equal bits
    #[arg(long)]
    logits_hash: bool,

    /// Prints one JSON object a line: each token, and at last the figures
    #[arg(long)]
    json: bool,
}

/// A token, as `--json` prints it.
#[derive(Serialize)]
struct TokenLine<'a> {
    token: u32,
    text: &'a str,
}

/// The last line of `--json`; `--stats` prints the same figures.
#[derive(Serialize)]
struct Summary {
    stop: &'static str,
    prompt_tokens: usize,
    new_tokens: usize,
    prefill_tokens_per_s: f64,
    decode_tokens_per_s: f64,
    bytes_per_token: u64,
    arena_bytes: usize,
    kernel: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    logits_hash: Option<String>,
}

/// Set by Ctrl-C.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let prompt = args.prompt()?;
    let mut opened = args.model.open()?;
    let options = args.options(&opened);
    let name = opened.name.clone();
    let plan = Plan::new(&opened.model, &options);
    let total = plan.total();
    let mut memory = Vec::new();
    memory.try_reserve_exact(total.saturating_add(ALIGN)).with_context(|| {
        format!("{} of memory are needed: use a smaller --context, --batch or --kv", ByteSize::b(total as u64))
    })?;
    memory.resize(total + ALIGN, 0);
    let mut arena = Arena::new(&mut memory);
    let mut session = Session::new(&opened.model, &options, &mut opened.src, &mut arena).context(name.clone())?;
    session.limit(args.max_new_tokens);
    session.hash_logits(args.logits_hash);
    describe(&opened, &options, arena.used());

    ctrlc::set_handler(|| {
        // The first ends the text where it is, the second the process.
        if INTERRUPTED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    })
    .context("cannot listen for Ctrl-C")?;

    let control = if args.special { Control::Recognise } else { Control::Ignore };
    let prompt_tokens = session.push_text(&mut opened.src, &prompt, control).context(name.clone())?;
    if io::stdout().is_terminal() && io::stderr().is_terminal() && !args.json {
        eprint!("\x1b[1m{}\x1b[0m", String::from_utf8_lossy(&prompt));
    }
    let summary = write(&args, &mut opened, &mut session, prompt_tokens, arena.used()).context(name)?;
    if args.json {
        println(&serde_json::to_string(&summary)?)?;
    }
    if args.stats {
        summary.print();
    }
    if let Some(hash) = summary.logits_hash.filter(|_| !args.json) {
        eprintln!("logits hash {hash}");
    }
    let interrupted = session.stop_reason() == Some(StopReason::Interrupted);
    Ok(if interrupted { ExitCode::from(130) } else { ExitCode::SUCCESS })
}

/// Runs the prompt, then shows token after token until the text ends.
fn write(
    args: &Args,
    opened: &mut Opened,
    session: &mut Session,
    prompt_tokens: usize,
    arena_bytes: usize,
) -> anyhow::Result<Summary> {
    let src = &mut opened.src;
    let start = Instant::now();
    let bar = progress(prompt_tokens, "reading the prompt");
    // The last pass is left to `next`, which computes the first token's logits from it.
    loop {
        let left = session.pass(src)?;
        advance(&bar, prompt_tokens - left);
        if left == 0 || stop_if_interrupted(session) {
            break;
        }
    }
    bar.finish_and_clear();
    let prefill = start.elapsed();

    let stops: Vec<&str> = args.stop.iter().map(String::as_str).collect();
    let mut stream = TextStream::new(&stops)?;
    let mut bytes = vec![0; session.tokenizer().vocabulary().max_token_bytes()];
    let mut ends_line = false;
    let mut new_tokens = 0usize;
    // The first token comes from the prompt's own pass: what a token costs is told by those after it.
    let mut decode_start = Instant::now();
    let (mut passes, mut bytes_read) = (0, 0);
    while !stop_if_interrupted(session) {
        let before = src.bytes();
        let token = session.next(src)?;
        let read = src.bytes() - before;
        if new_tokens > 0 && read > 0 {
            (passes, bytes_read) = (passes + 1, bytes_read + read);
        }
        let Some(token) = token else { break };
        new_tokens += 1;
        if new_tokens == 1 {
            decode_start = Instant::now();
        }
        let len = session.tokenizer().decode(src, token, Control::Ignore, &mut bytes)?;
        let mut text = String::new();
        let flow = stream.push(&bytes[..len], |part| {
            text.push_str(part);
            Ok::<(), io::Error>(())
        })?;
        show(args, Some(token), &text, &mut ends_line)?;
        if let Flow::Stopped { .. } = flow {
            session.stop(StopReason::StopString);
            break;
        }
    }
    let decode = decode_start.elapsed();
    let mut rest = String::new();
    stream.finish(|part| {
        rest.push_str(part);
        Ok::<(), io::Error>(())
    })?;
    show(args, None, &rest, &mut ends_line)?;
    if !args.json && !ends_line {
        println("")?;
    }
    let per_s = |n: usize, seconds: f64| if n > 0 && seconds > 0.0 { n as f64 / seconds } else { 0.0 };
    Ok(Summary {
        stop: session.stop_reason().map_or("", StopReason::name),
        prompt_tokens,
        new_tokens,
        prefill_tokens_per_s: per_s(prompt_tokens, prefill.as_secs_f64()),
        decode_tokens_per_s: per_s(new_tokens.saturating_sub(1), decode.as_secs_f64()),
        bytes_per_token: bytes_read.checked_div(passes).unwrap_or(0),
        arena_bytes,
        kernel: "generic",
        logits_hash: session.logits_hash().map(|hash| hash.to_string()),
    })
}

/// Puts a token's text out at once, as it is or as a JSON line.
fn show(args: &Args, token: Option<Token>, text: &str, ends_line: &mut bool) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match token {
        Some(Token(token)) if args.json => writeln!(out, "{}", serde_json::to_string(&TokenLine { token, text })?)?,
        _ if args.json => {}
        _ => out.write_all(text.as_bytes())?,
    }
    if !text.is_empty() {
        *ends_line = text.ends_with('\n');
    }
    Ok(out.flush()?)
}

fn println(line: &str) -> io::Result<()> {
    writeln!(io::stdout(), "{line}")
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
    eprintln!(
        "{}: GPT-2, {} layers, {} heads, {} wide, {} tokens; context {} of {}, {} of memory",
        opened.name,
        config.n_layer,
        config.n_head,
        config.n_embd,
        config.n_vocab,
        options.state.context,
        config.n_ctx,
        ByteSize::b(arena_bytes as u64),
    );
}

impl Args {
    fn prompt(&self) -> anyhow::Result<Vec<u8>> {
        match (&self.prompt, &self.prompt_file) {
            (Some(dash), _) if dash == "-" => {
                let mut prompt = Vec::new();
                io::stdin().read_to_end(&mut prompt).context("cannot read the prompt from standard input")?;
                Ok(prompt)
            }
            (Some(prompt), _) => Ok(prompt.clone().into_bytes()),
            (None, Some(path)) => fs::read(path).with_context(|| format!("cannot read {}", path.display())),
            (None, None) => Ok(Vec::new()),
        }
    }

    fn options(&self, opened: &Opened) -> Options {
        Options {
            state: self.memory.options(&opened.model.header.config),
            sampling: Params {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                min_p: self.min_p,
                repetition_penalty: self.repetition_penalty,
                repetition_window: self.repetition_window,
            },
            seed: self.seed,
        }
    }
}

impl Summary {
    fn print(&self) {
        eprintln!("stop            {}", self.stop);
        eprintln!("prompt          {} tokens, {:.1} tokens/s", self.prompt_tokens, self.prefill_tokens_per_s);
        eprintln!("new             {} tokens, {:.1} tokens/s", self.new_tokens, self.decode_tokens_per_s);
        eprintln!("read per token  {} bytes", self.bytes_per_token);
        eprintln!("arena           {} bytes", self.arena_bytes);
        eprintln!("kernel          {}", self.kernel);
    }
}
