//! `cargo xtask bench --board`: how many instructions a board takes for a token and for a multiply-accumulate.
//!
//! Seconds in an emulator say nothing about a board, instructions do: a plugin (`xtask/counter`) counts those between
//! one made token and the next, the head included. What a board spends waiting for a device is left out.

use anyhow::{Context, Result, bail, ensure};
use object::{Object, ObjectSymbol};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::bench::{pure, synthetic};
use crate::boards::Board;
use crate::console::Console;
use crate::firmware;
use crate::process::{self, root};
use crate::qemu::{self, Media};

/// The firmware's function that runs once a token.
const MARK: &str = "gptrickle_firmware::run::token_made";
/// Functions of this name wait for a device.
const WAITS: [&str; 2] = ["::wait", "::wait_event"];
/// How long a board may be silent: a prompt of one token on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// Types of the models that are measured where none is named: one of each kernel that people use.
const TYPES: [&str; 6] = ["Q8_0", "Q4_0", "Q4_K_S", "Q5_K_S", "Q6_K", "Q2_K"];

/// What to count.
pub(crate) struct Request<'a> {
    pub(crate) board: &'a str,
    pub(crate) kinds: &'a [String],
    /// As `gptrickle synth` takes it; the board's own if left out.
    pub(crate) shape: Option<&'a str>,
    /// Whether the head has the same type as all other matrices.
    pub(crate) pure: bool,
    /// How many functions to list by their share.
    pub(crate) hot: usize,
    /// Tokens after the first one.
    pub(crate) tokens: usize,
    /// The host's command line.
    pub(crate) program: &'a Path,
}

/// Counts and prints, one line a type.
///
/// # Errors
/// The firmware, the plugin or a model cannot be made, or the board does not run it.
pub(crate) fn count(request: &Request) -> Result<()> {
    let board = Board::named(request.board)?;
    board.emulator()?;
    // What 64 KiB of RAM hold; the ratio of head and attention is another one.
    let small = if board.name == "lm3s6965evb" { "2,4,256,64,512" } else { "distilgpt2" };
    let shape = request.shape.unwrap_or(small);
    let macs = Shape::read(shape)?;
    let elf = firmware::build(board, &[])?;
    let plugin = build_plugin()?;
    let kinds: Vec<&str> = match request.kinds {
        [] => TYPES.to_vec(),
        kinds => kinds.iter().map(String::as_str).collect(),
    };
    let build = [&[board.target], board.rustflags].concat().join(" ");
    println!(
        "{} ({}, {build}), {shape} with a tied head{}, {} tokens after the first",
        board.name,
        board.core,
        if request.pure { ", every matrix of the type" } else { "" },
        request.tokens
    );
    println!(
        "{:<8} {:>14} {:>14} {:>10} {:>8} {:>8}",
        "type", "instr/token", "MAC/token", "instr/MAC", "least", "most"
    );
    for kind in kinds {
        let model = if request.pure { pure } else { synthetic };
        let path = model(request.program, shape, kind)?;
        let run = run(board, &elf, &plugin, &path, request)?;
        let tokens = run.tokens(&macs);
        ensure!(!tokens.is_empty(), "{kind}: the text ended after its first token");
        let sum = |f: fn(&Token) -> u64| tokens.iter().map(f).sum::<u64>() as f64 / tokens.len() as f64;
        let (instructions, macs) = (sum(|token| token.instructions), sum(|token| token.macs));
        let ratios = || tokens.iter().map(|token| token.instructions as f64 / token.macs as f64);
        let (least, most) = (ratios().fold(f64::INFINITY, f64::min), ratios().fold(0.0, f64::max));
        println!("{kind:<8} {instructions:>14.0} {macs:>14.0} {:>10.3} {least:>8.3} {most:>8.3}", instructions / macs);
        for (count, name) in &run.hot {
            println!("  {:5.1} %  {name}", *count as f64 / (instructions * tokens.len() as f64) * 100.0);
        }
    }
    Ok(())
}

/// What a model's size tells of its arithmetic.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Shape {
    layers: u64,
    width: u64,
    vocabulary: u64,
}

impl Shape {
    /// A name or five figures, as for `gptrickle synth`.
    fn read(text: &str) -> Result<Self> {
        let (layers, width) = match text {
            "distilgpt2" => (6, 768),
            "gpt2" => (12, 768),
            "gpt2-medium" => (24, 1024),
            "gpt2-large" => (36, 1280),
            "gpt2-xl" => (48, 1600),
            _ => {
                let figures: Option<Vec<u64>> = text.split(',').map(|figure| figure.parse().ok()).collect();
                let Some(&[layers, _, width, _, vocabulary]) = figures.as_deref() else {
                    bail!("--shape {text}: a name such as distilgpt2, or layers, heads, width, context and tokens");
                };
                return Ok(Self { layers, width, vocabulary });
            }
        };
        Ok(Self { layers, width, vocabulary: 50257 })
    }

    /// Multiply-accumulates of one token at this position: matrices, head, and attention to itself and all before.
    fn macs(self, position: u64) -> u64 {
        let Self { layers, width, vocabulary } = self;
        layers * (12 * width * width + 2 * width * (position + 1)) + width * vocabulary
    }
}

/// What one run of a board gave.
#[derive(Debug, PartialEq)]
struct Run {
    prompt_tokens: u64,
    /// Instructions until each token was made.
    marks: Vec<u64>,
    /// Instructions between the first mark and the last, and whose they are.
    hot: Vec<(u64, String)>,
}

/// One token after the first.
struct Token {
    instructions: u64,
    macs: u64,
}

impl Run {
    fn read(report: &str, prompt_tokens: u64) -> Result<Self> {
        let mut run = Self { prompt_tokens, marks: Vec::new(), hot: Vec::new() };
        for line in report.lines() {
            let mut words = line.splitn(3, ' ');
            let (word, count) = (words.next(), words.next().and_then(|count| count.parse().ok()));
            match (word, count, words.next()) {
                (Some("mark"), Some(count), None) => run.marks.push(count),
                (Some("hot"), Some(count), Some(name)) => run.hot.push((count, demangled(name))),
                _ => bail!("the plugin wrote {line:?}"),
            }
        }
        Ok(run)
    }

    fn tokens(&self, shape: &Shape) -> Vec<Token> {
        let deltas = self.marks.windows(2).map(|pair| pair[1] - pair[0]);
        // The first token made is run at the position after the prompt's.
        let positions = self.prompt_tokens..;
        deltas.zip(positions).map(|(instructions, at)| Token { instructions, macs: shape.macs(at) }).collect()
    }
}

/// Runs the model on the board, greedily, after a prompt of one letter.
fn run(board: &Board, elf: &Path, plugin: &Path, model: &Path, request: &Request) -> Result<Run> {
    let folder = root().join("target/bench");
    let out = folder.join(format!("{}-{}.count", board.name, std::process::id()));
    let media = Media::prepare(board, Some(model))?;
    let mut qemu = qemu::command(board, elf, &media, None)?;
    qemu.arg("-plugin").arg(plugin_argument(plugin, &out, elf, request.hot)?);
    let mut console = Console::new(board.name, qemu::start(&mut qemu)?, PATIENCE)?;
    if let Some(error) = console.start()?.error() {
        bail!("{}: {error}: a smaller --shape may do", board.name);
    }
    console.command(&format!(":set context {}", 1 + request.tokens + 1))?;
    console.command(":set temperature 0")?;
    console.command(&format!(":max {}", request.tokens + 1))?;
    console.command("a")?;
    let stats = console.command(":stats")?.lines;
    let prompt_tokens = stats.iter().find_map(|line| line.strip_prefix("prompt: ")?.split(' ').next()?.parse().ok());
    let status = console.quit()?;
    ensure!(status.success(), "after :quit: {status}");
    let report = fs::read_to_string(&out).with_context(|| out.display().to_string())?;
    fs::remove_file(&out)?;
    Run::read(&report, prompt_tokens.with_context(|| format!("{} tells no tokens: {stats:?}", board.name))?)
}

/// The plugin with its arguments, as QEMU takes them.
fn plugin_argument(plugin: &Path, out: &Path, elf: &Path, hot: usize) -> Result<String> {
    let bytes = fs::read(elf).with_context(|| elf.display().to_string())?;
    let file = object::File::parse(&*bytes).with_context(|| elf.display().to_string())?;
    // Thumb code is called at odd addresses, and lies at even ones.
    let functions: Vec<_> =
        file.symbols().map(|symbol| (demangled(symbol.name().unwrap_or_default()), symbol)).collect();
    let mark = functions.iter().find(|(name, _)| name == MARK).map(|(_, symbol)| symbol.address() & !1);
    let mark = mark.with_context(|| format!("{} has no function {MARK}", elf.display()))?;
    let waits = functions.iter().filter(|(name, _)| WAITS.iter().any(|wait| name.ends_with(wait)));
    let skip = waits.map(|(_, symbol)| {
        let start = symbol.address() & !1;
        format!(",skip={start:#x}-{:#x}", start + symbol.size())
    });
    let skip: String = skip.collect();
    Ok(format!("{},out={},mark={mark:#x}{skip},hot={hot}", qemu::value(plugin)?, qemu::value(out)?))
}

/// A symbol by its Rust name, without the hash.
fn demangled(symbol: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(symbol))
}

/// Builds `xtask/counter`, which is no member of any workspace: it can only be linked into QEMU.
fn build_plugin() -> Result<PathBuf> {
    let target = root().join("target/counter");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--release", "--locked", "--quiet", "--target-dir"]).arg(&target);
    process::run(cargo.current_dir(root().join("xtask/counter")))?;
    Ok(target.join("release/libgptrickle_counter.so"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distilgpt2_has_81_million_macs() {
        let shape = Shape::read("distilgpt2").unwrap();
        assert_eq!(shape.macs(0), 6 * (12 * 768 * 768 + 2 * 768) + 768 * 50257);
        assert_eq!(Shape::read("2,4,256,64,512").unwrap(), Shape { layers: 2, width: 256, vocabulary: 512 });
        assert!(Shape::read("2,4,256,64").is_err());
    }

    #[test]
    fn a_token_is_what_lies_between_two_marks() {
        let run =
            Run::read("mark 1000\nmark 1500\nmark 2100\nhot 700 _ZN3ops8multiply17h0123456789abcdefE\n", 1).unwrap();
        assert_eq!(run.hot, [(700, "ops::multiply".to_owned())]);
        let tokens = run.tokens(&Shape { layers: 1, width: 10, vocabulary: 5 });
        let figures: Vec<_> = tokens.iter().map(|token| (token.instructions, token.macs)).collect();
        assert_eq!(figures, [(500, 1200 + 40 + 50), (600, 1200 + 60 + 50)]);
        assert!(Run::read("mark x", 1).is_err());
    }
}
