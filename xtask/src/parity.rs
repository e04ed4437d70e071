//! Boards against the host: the same model, prompt and seed must give the same text and the same bits in every logit.

use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::boards::{BOARDS, Board};
use crate::checks::Check;
use crate::console::Console;
use crate::firmware;
use crate::image;
use crate::process::{self, root, target_dir};
use crate::qemu::{self, Media};

/// How long a board may be silent: a slow card, and a whole prompt in one pass, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// What both are asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) prompt: &'static str,
    pub(crate) tokens: usize,
    pub(crate) seed: u64,
    pub(crate) temperature: f32,
    pub(crate) top_k: usize,
    pub(crate) top_p: f32,
    pub(crate) kv: &'static str,
}

/// A story from the demo model.
pub(crate) const STORY: Request =
    Request { prompt: "Once upon a time", tokens: 64, seed: 42, temperature: 0.8, top_k: 50, top_p: 0.95, kv: "f32" };
/// As much of it as 64 KiB of RAM hold: a context of 12.
const SHORT_STORY: Request = Request { prompt: "Once", tokens: 8, kv: "q8_0", ..STORY };
/// As much as the context of the smallest vectors holds.
const VECTOR: Request = Request { prompt: "Once upon", tokens: 16, seed: 7, ..STORY };
/// A few tokens of a model of full size, which is random: nobody reads them.
const FULL_SIZE: Request = Request { prompt: "Hello", ..STORY };

/// Checks for these boards and their firmware, the longest first.
///
/// # Errors
/// A model is not in the tree.
pub(crate) fn checks(boards: &[(&'static Board, PathBuf)], full_size: &[PathBuf]) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    let mut add = |board: &'static Board, elf: &Path, model: &Path, request: Request| {
        let name = format!("{}, {} tokens", model.file_name().unwrap_or_default().display(), request.tokens);
        let (elf, model) = (elf.to_owned(), model.to_owned());
        let run = move || equal(board, &elf, &model, &Media::prepare(board, Some(&model))?, request);
        checks.push(Check { board, name, run: Box::new(run) });
    };
    for (board, elf) in boards {
        let tokens = match board.name {
            "mps3-an547" => 4,
            "riscv64-virt" => 8,
            // Larger than its memory: read through semihosting.
            "mps2-an500" => 4,
            _ => continue,
        };
        for model in full_size {
            add(board, elf, model, Request { tokens, ..FULL_SIZE });
        }
    }
    for (board, elf) in boards {
        let request = if board.name == "lm3s6965evb" { SHORT_STORY } else { STORY };
        add(board, elf, &qemu::demo_model()?, request);
    }
    for (board, elf) in boards {
        let families: &[&str] = match board.name {
            // Every type on an Arm with Helium, on AArch64 and on a RISC-V.
            "mps3-an547" | "riscv64-virt" | "aarch64-virt" => &["micro", "tiny512", "tiny512-untied"],
            // Another processor for the firmware of raspi3b.
            "raspi4b" => &[],
            _ => &["micro"],
        };
        for family in families {
            for model in gguf_files(&root().join("tests/vectors").join(family))? {
                add(board, elf, &model, VECTOR);
            }
        }
    }
    for (board, elf) in boards {
        let (on, with) = (*board, elf.clone());
        checks.push(Check { board: on, name: "kernels".into(), run: Box::new(move || kernels(on, &with)) });
        let (board, elf, model) = (*board, elf.clone(), root().join("tests/vectors/micro/micro-Q4_0.gguf"));
        let name = format!("its image, {} tokens", VECTOR.tokens);
        checks.push(Check { board, name, run: Box::new(move || from_image(board, &elf, &model)) });
    }
    for (pi, boot) in BOARDS.iter().filter_map(|board| Some((board, board.boot()?))) {
        for (board, elf) in boards.iter().filter(|(board, _)| board.name == boot.twin) {
            let (board, elf, model) = (*board, elf.clone(), qemu::demo_model()?);
            let name = format!("{} and the card of {}, four cores", boot.image, pi.name);
            checks.push(Check { board, name, run: Box::new(move || booted(pi, board, &elf, &model)) });
        }
    }
    Ok(checks)
}

/// The board's kernels give the definition's bits, and it runs the one it was built for.
fn kernels(board: &Board, elf: &Path) -> Result<()> {
    let mut console =
        Console::new(board.name, qemu::start(&mut qemu::command(board, elf, &Media::None, None)?)?, PATIENCE)?;
    console.start()?;
    let reply = console.command(":check")?;
    ensure!(reply.error().is_none(), "{:?}", reply.lines);
    let kernel = reply.lines.iter().find_map(|line| line.strip_prefix("kernel: ")).context("no kernel")?;
    ensure!(kernel == board.kernel, "it runs {kernel}, not {}", board.kernel);
    let status = console.quit()?;
    ensure!(status.success(), "after :quit: {status}");
    Ok(())
}

/// Runs a request from what `cargo xtask image` makes of a model.
fn from_image(board: &Board, elf: &Path, model: &Path) -> Result<()> {
    let path = root().join(format!("target/xtask/image-{}-{}", board.name, std::process::id()));
    fs::create_dir_all(root().join("target/xtask"))?;
    let written = image::write(board, model, &path);
    let result = written.and_then(|()| equal(board, elf, model, &Media::Image(path.clone()), VECTOR));
    let _ = fs::remove_file(&path);
    result
}

/// Runs a request as a Raspberry Pi's boot loader starts the firmware: bare bytes, all cores, the real board's card.
fn booted(pi: &Board, board: &Board, elf: &Path, model: &Path) -> Result<()> {
    let folder = root().join("target/xtask");
    let file = |name: &str| folder.join(format!("{name}-{}-{}", board.name, std::process::id()));
    let (kernel, card) = (file("kernel8"), file("card"));
    process::write(&kernel, firmware::bare(elf)?)?;
    let result = image::write(pi, model, &card).and_then(|()| {
        let mut command = qemu::command(board, &kernel, &Media::Image(card.clone()), None)?;
        // One after the other: cores that wait in earnest slow down those that work, where there are fewer than four.
        command.args(["-accel", "tcg,thread=single"]);
        four_cores(board, &mut command)?;
        same(board, model, &mut command, Request { tokens: 8, ..STORY })
    });
    for file in [&kernel, &card] {
        let _ = fs::remove_file(file);
    }
    result
}

fn four_cores(board: &Board, command: &mut Command) -> Result<()> {
    let mut console = Console::new(board.name, qemu::start(command)?, PATIENCE)?;
    console.start()?;
    let reply = console.command(":check")?;
    ensure!(reply.lines.iter().any(|line| line == "cores: 4"), "not four cores: {:?}", reply.lines.last());
    console.quit()?;
    Ok(())
}

/// Runs one request on the host and on a board that has the model in `media`, and compares.
fn equal(board: &Board, elf: &Path, model: &Path, media: &Media, request: Request) -> Result<()> {
    same(board, model, &mut qemu::command(board, elf, media, None)?, request)
}

/// Runs one request on the host and on a board that the emulator's command line describes, and compares.
pub(crate) fn same(board: &Board, model: &Path, emulator: &mut Command, request: Request) -> Result<()> {
    let (host_text, host_hash) = on_host(model, request)?;
    let (board_text, board_hash) = on_board(board, emulator, request)?;
    // The host ends its output with a newline.
    let host_text = host_text.strip_suffix(b"\n").filter(|_| !board_text.ends_with(b"\n")).unwrap_or(&host_text);
    let same = host_text.iter().zip(&board_text).take_while(|(host, board)| host == board).count();
    ensure!(
        host_text == board_text,
        "texts differ after {same} bytes:\nhost  {:?}\nboard {:?}",
        String::from_utf8_lossy(host_text),
        String::from_utf8_lossy(&board_text)
    );
    ensure!(host_hash == board_hash, "same text, but logits differ: host {host_hash}, board {board_hash}");
    Ok(())
}

fn on_host(model: &Path, request: Request) -> Result<(Vec<u8>, String)> {
    let Request { prompt, tokens, seed, temperature, top_k, top_p, kv } = request;
    let mut host = Command::new(host());
    host.arg("generate").arg("-m").arg(model).args([prompt, "--logits-hash", "--kv", kv, "--max-new-tokens"]);
    host.args([tokens.to_string(), "--seed".into(), seed.to_string(), "--top-k".into(), top_k.to_string()]);
    host.args(["--temperature".into(), temperature.to_string(), "--top-p".into(), top_p.to_string()]);
    let output = host.output().with_context(|| process::line(&host))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {stderr}", process::line(&host));
    let hash = stderr.lines().find_map(|line| line.strip_prefix("logits hash")).map(str::trim);
    Ok((output.stdout, hash.with_context(|| format!("the host prints no hash: {stderr}"))?.to_owned()))
}

fn on_board(board: &Board, emulator: &mut Command, request: Request) -> Result<(Vec<u8>, String)> {
    let Request { prompt, tokens, seed, temperature, top_k, top_p, kv } = request;
    let mut console = Console::new(board.name, qemu::start(emulator)?, PATIENCE)?;
    if let Some(error) = console.start()?.error() {
        bail!("{error}");
    }
    console.command(&format!(":set kv {kv}"))?;
    console.command(&format!(":set temperature {temperature}"))?;
    console.command(&format!(":set top_k {top_k}"))?;
    console.command(&format!(":set top_p {top_p}"))?;
    console.command(&format!(":seed {seed}"))?;
    console.command(&format!(":max {tokens}"))?;
    console.command(":hash on")?;
    let reply = console.command(prompt)?;
    let hash = reply.lines.iter().find_map(|line| line.strip_prefix("logits hash: ")).map(str::to_owned);
    let status = console.quit()?;
    ensure!(status.success(), "after :quit: {status}");
    Ok((reply.text.context("no text")?, hash.with_context(|| format!("no hash: {:?}", reply.lines))?))
}

/// The host's binary, as the host tests have built it.
///
/// # Errors
/// It does not build.
pub(crate) fn build_host() -> Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    process::run(cargo.args(["build", "--locked", "--package", "gptrickle"]).current_dir(root()))
}

/// Where [`build_host`] leaves it.
pub(crate) fn host() -> PathBuf {
    target_dir().join("debug/gptrickle")
}

/// Models of DistilGPT2's shape with random weights; made once.
///
/// # Errors
/// They cannot be made.
pub(crate) fn full_size_models() -> Result<Vec<PathBuf>> {
    ["Q4_0", "Q2_K"].into_iter().map(full_size).collect()
}

fn full_size(kind: &str) -> Result<PathBuf> {
    let path = root().join(format!("target/xtask/distilgpt2-{kind}.gguf"));
    if !path.exists() {
        fs::create_dir_all(root().join("target/xtask"))?;
        let mut synth = Command::new(host());
        process::run(synth.args(["synth", "--shape", "distilgpt2", "--type", kind, "--output"]).arg(&path))?;
    }
    Ok(path)
}

fn gguf_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    files.sort();
    Ok(files)
}
