//! `cargo xtask soak`: a text far longer than its context, made in one go, by the definition's kernel, with
//! interruptions, and on a board; the same tokens each time, and memory that does not grow.

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

use crate::boards::Board;
use crate::console::Console;
use crate::firmware;
use crate::parity::{self, PATIENCE};
use crate::process::{self, root, target_dir};
use crate::qemu::{self, Media};

const PROMPT: &str = "Once upon a time";
const SEED: u64 = 42;
/// Tokens at the start of the text that no slide forgets.
const KEEP: usize = 8;
/// How often memory is looked at, in tokens.
const LOOK: usize = 500;
/// Memory that may come and go: pages of the binary, buffers of the C library.
const SLACK_KIB: u64 = 256;

#[derive(Args)]
pub(crate) struct Options {
    /// Tokens to make on the host; 0 leaves it out
    #[arg(long, default_value_t = 100_000)]
    tokens: usize,
    /// How often the host is interrupted, at random
    #[arg(long, default_value_t = 20)]
    interruptions: usize,
    /// The board that makes a text, too
    #[arg(long, default_value = "mps2-an500")]
    board: String,
    /// Tokens to make on the board; 0 leaves it out
    #[arg(long, default_value_t = 2000)]
    board_tokens: usize,
    /// The GGUF file; the demo model if not given
    #[arg(long, short)]
    model: Option<PathBuf>,
}

/// A text, or a part of one.
#[derive(Debug, Default)]
struct Made {
    tokens: Vec<u32>,
    text: String,
    logits_hash: String,
    arena_bytes: u64,
    /// Resident memory of the process, in KiB, every [`LOOK`] tokens.
    resident_kib: Vec<u64>,
}

/// Runs all of it and prints what came of each.
///
/// # Errors
/// Two texts differ, memory grows, something cannot be run.
pub(crate) fn soak(options: &Options) -> Result<()> {
    parity::build_host()?;
    let model = match &options.model {
        Some(model) => model.canonicalize().with_context(|| model.display().to_string())?,
        None => qemu::demo_model()?,
    };
    if options.tokens > 0 {
        on_host(&model, options.tokens, options.interruptions)?;
    }
    if options.board_tokens > 0 {
        on_board(Board::named(&options.board)?, &model, options.board_tokens)?;
    }
    Ok(())
}

/// Makes the same text in one go, with interruptions, and by the definition, which takes longest.
fn on_host(model: &Path, tokens: usize, interruptions: usize) -> Result<()> {
    let request = Request { tokens, ..Request::of(model) };
    let start = Instant::now();
    let whole = host(&request, None)?;
    ensure!(whole.tokens.len() == tokens, "{} of {tokens} tokens: the text ended early", whole.tokens.len());
    flat(&whole.resident_kib)?;
    report("host, best kernel", &whole, start);

    let start = Instant::now();
    let (resumed, times) = interrupted(&request, interruptions)?;
    same(&whole, &resumed).context("interrupted and resumed")?;
    report(&format!("host, interrupted {times} times"), &resumed, start);

    let start = Instant::now();
    let defined = host(&Request { kernel: Some("generic"), ..request }, None)?;
    same(&whole, &defined).context("the definition's kernel")?;
    report("host, generic kernel", &defined, start);
    Ok(())
}

fn report(name: &str, made: &Made, start: Instant) {
    let took = start.elapsed().as_secs_f64();
    println!(
        "{name}: {} tokens, stream {:016x}, logits {}, {took:.0} s",
        made.tokens.len(),
        made.stream(),
        made.logits_hash
    );
    if let (Some(first), Some(most)) = (made.resident_kib.first(), made.resident_kib.iter().max()) {
        println!("    resident {first} KiB after {LOOK} tokens, {most} at most; arena {} bytes", made.arena_bytes);
    }
}

impl Made {
    /// FNV-1a over the tokens' ids.
    fn stream(&self) -> u64 {
        let bytes = self.tokens.iter().flat_map(|token| token.to_le_bytes());
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }
}

fn same(expected: &Made, found: &Made) -> Result<()> {
    let place = expected.tokens.iter().zip(&found.tokens).take_while(|(a, b)| a == b).count();
    ensure!(expected.tokens == found.tokens, "other tokens from number {place} on, of {}", expected.tokens.len());
    ensure!(
        expected.logits_hash == found.logits_hash,
        "the same tokens, but other logits: {} and {}",
        expected.logits_hash,
        found.logits_hash
    );
    Ok(())
}

/// Memory does not grow once everything was used: all that comes later is as much as after the first tenth.
fn flat(resident_kib: &[u64]) -> Result<()> {
    let (early, late) = resident_kib.split_at(resident_kib.len() / 10 + 1);
    if let (Some(early), Some(late)) = (early.iter().max(), late.iter().max()) {
        ensure!(*late <= early + SLACK_KIB, "memory grows: {early} KiB in the first tenth, {late} later");
    }
    Ok(())
}

/// What the host is asked for.
#[derive(Clone, Default)]
struct Request {
    model: PathBuf,
    tokens: usize,
    kernel: Option<&'static str>,
    context: Option<usize>,
    resume: Option<PathBuf>,
    save: Option<PathBuf>,
}

impl Request {
    fn of(model: &Path) -> Self {
        Self { model: model.into(), ..Self::default() }
    }

    fn command(&self) -> Command {
        let mut host = Command::new(target_dir().join("debug/gptrickle"));
        let tokens = self.tokens.to_string();
        host.args(["generate", "--json", "--logits-hash", "--max-new-tokens", &tokens, "-m"]).arg(&self.model);
        match &self.resume {
            Some(path) => host.arg("--resume").arg(path),
            None => host.args([PROMPT, "--temperature", "1", "--top-k", "50", "--min-new-tokens", &tokens]).args([
                "--seed".into(),
                SEED.to_string(),
                "--overflow".into(),
                format!("slide:{KEEP}"),
            ]),
        };
        for (flag, value) in
            [("--kernel", self.kernel.map(str::to_owned)), ("--context", self.context.map(|n| n.to_string()))]
        {
            host.args(value.map(|value| [flag.to_owned(), value]).into_iter().flatten());
        }
        if let Some(path) = &self.save {
            host.arg("--save").arg(path);
        }
        host.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        host
    }
}

/// Makes a text, or as much of it as comes before the interruption after so many tokens.
fn host(request: &Request, interrupt_at: Option<usize>) -> Result<Made> {
    let mut command = request.command();
    let mut child = command.spawn().with_context(|| process::line(&command))?;
    let stdout = child.stdout.take().context("the host has no output")?;
    let made = read(&child, stdout, interrupt_at);
    let mut said = String::new();
    child.stderr.take().context("the host has no messages")?.read_to_string(&mut said)?;
    let status = child.wait()?;
    let interrupted = interrupt_at.is_some() && status.code() == Some(130);
    ensure!(status.success() || interrupted, "{}: {status}\n{said}", process::line(&command));
    made
}

/// Takes a text from the host's lines.
fn read(child: &Child, stdout: ChildStdout, interrupt_at: Option<usize>) -> Result<Made> {
    let mut made = Made::default();
    for line in BufReader::new(stdout).lines() {
        let line: Value = serde_json::from_str(&line?)?;
        if let Some(token) = line["token"].as_u64() {
            made.tokens.push(u32::try_from(token)?);
            made.text += line["text"].as_str().unwrap_or_default();
            if made.tokens.len().is_multiple_of(LOOK) {
                made.resident_kib.push(resident_kib(child.id())?);
            }
            if interrupt_at == Some(made.tokens.len()) {
                process::run(Command::new("kill").args(["-INT", &child.id().to_string()]))?;
            }
        } else {
            made.logits_hash = line["logits_hash"].as_str().context("no hash")?.to_owned();
            made.arena_bytes = line["arena_bytes"].as_u64().context("no size of the arena")?;
        }
    }
    Ok(made)
}

/// Resident memory of a process, in KiB.
fn resident_kib(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("memory is looked up in Linux's /proc")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).context("/proc tells no memory")
}

/// Makes a text that is interrupted at random, saved, and gone on with in a new process each time.
fn interrupted(request: &Request, interruptions: usize) -> Result<(Made, usize)> {
    let tokens = request.tokens;
    let folder = root().join("target/xtask");
    fs::create_dir_all(&folder)?;
    let saved = [0, 1].map(|i| folder.join(format!("soak-{}-{i}.session", std::process::id())));
    let mut all = Made::default();
    let mut random = std::process::id();
    let mut resume = None;
    let mut times = 0;
    while all.tokens.len() < tokens {
        let left = tokens - all.tokens.len();
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let step = tokens / (interruptions + 1) * 2;
        let at = 1 + (random >> 8) as usize % step.max(1);
        let save = saved[times % 2].clone();
        let part = Request { tokens: left, resume: resume.take(), save: Some(save.clone()), ..request.clone() };
        let part = host(&part, (at < left).then_some(at))?;
        ensure!(!part.tokens.is_empty(), "nothing was made after {} tokens", all.tokens.len());
        all.tokens.extend(&part.tokens);
        all = Made { tokens: std::mem::take(&mut all.tokens), ..part };
        (resume, times) = (Some(save), times + 1);
    }
    saved.iter().for_each(|path| _ = fs::remove_file(path));
    Ok((Made { resident_kib: Vec::new(), ..all }, times - 1))
}

/// Makes the same text on a board and on the host, and looks at the board's memory on the way.
fn on_board(board: &Board, model: &Path, tokens: usize) -> Result<()> {
    const CONTEXT: usize = 128;
    let start = Instant::now();
    let elf = firmware::build(board, &[])?;
    let expected = host(&Request { tokens, context: Some(CONTEXT), ..Request::of(model) }, None)?;
    let media = Media::prepare(board, Some(model))?;
    let mut console = Console::new(board.name, qemu::start(&mut qemu::command(board, &elf, &media, None)?)?, PATIENCE)?;
    if let Some(error) = console.start()?.error() {
        bail!("{}: {error}", board.name);
    }
    for command in [
        format!(":set context {CONTEXT}"),
        ":set temperature 1".into(),
        ":set top_k 50".into(),
        format!(":set min_new_tokens {tokens}"),
        format!(":seed {SEED}"),
        format!(":overflow slide:{KEEP}"),
        ":hash on".into(),
    ] {
        console.command(&command)?;
    }
    // Past the first slide all that is ever used has been used.
    let (early, _) = text(&mut console, 2 * CONTEXT)?;
    let (late, reply) = text(&mut console, tokens)?;
    let status = console.quit()?;
    ensure!(status.success(), "after :quit: {status}");
    let text = String::from_utf8_lossy(reply.text.as_deref().unwrap_or_default()).into_owned();
    ensure!(text == expected.text, "{} writes another text than the host", board.name);
    let hash = reply.lines.iter().find_map(|line| line.strip_prefix("logits hash: ")).context("no hash")?;
    ensure!(hash == expected.logits_hash, "the same text, but logits {hash} and {}", expected.logits_hash);
    ensure!(early == late, "memory grows: after {} tokens {early}, later {late}", 2 * CONTEXT);
    report(&format!("{}, as the host", board.name), &expected, start);
    println!("    {late}");
    Ok(())
}

/// Makes a text, and says what memory the board has used by then: its arena's bytes are planned, its stack is painted.
fn text(console: &mut Console, tokens: usize) -> Result<(String, crate::console::Reply)> {
    console.command(&format!(":max {tokens}"))?;
    let reply = console.command(PROMPT)?;
    let lines = [console.command(":stats")?.lines, console.command(":plan")?.lines].concat();
    let of_memory = lines.iter().filter(|line| line.starts_with("stack: ") || line.contains("together"));
    Ok((of_memory.cloned().collect::<Vec<_>>().join("; "), reply))
}
