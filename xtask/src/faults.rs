//! What goes wrong around a board: each time one clear line, and the console goes on.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};

use crate::boards::{Board, Storage};
use crate::checks::Check;
use crate::console::{Console, Reply};
use crate::parity::PATIENCE;
use crate::process::{self, root};
use crate::qemu::{self, Media};

/// Makes something go wrong on a board with this firmware, and looks what it says.
type Fault = fn(&Board, &Path) -> Result<()>;

/// Checks for these boards and their firmware.
pub(crate) fn checks(boards: &[(&'static Board, PathBuf)]) -> Vec<Check> {
    let faults: [(&str, Fault); 5] = [
        ("no model", no_model),
        ("a file that is no model", no_gguf),
        ("a truncated model", truncated),
        ("a context that does not fit", too_big),
        ("a prompt longer than the context", long_prompt),
    ];
    let mut checks = Vec::new();
    for (board, elf) in boards {
        for (name, fault) in faults {
            let (board, elf) = (*board, elf.clone());
            checks.push(Check { board, name: name.into(), run: Box::new(move || fault(board, &elf)) });
        }
    }
    checks
}

/// A model that runs on every board.
fn small_model() -> PathBuf {
    root().join("tests/vectors/micro/micro-Q4_0.gguf")
}

fn boot(board: &Board, elf: &Path, model: Option<&Path>) -> Result<(Console, Reply)> {
    let media = Media::prepare(board, model)?;
    let mut console = Console::new(board.name, qemu::start(&mut qemu::command(board, elf, &media, None)?)?, PATIENCE)?;
    let greeting = console.start()?;
    Ok((console, greeting))
}

/// Something was wrong, and these words say what.
fn says(reply: &Reply, words: &[&str]) -> Result<()> {
    let error = reply.error().with_context(|| format!("no error, but {:?}", reply.lines))?;
    let missing: Vec<_> = words.iter().filter(|word| !error.contains(*word)).collect();
    ensure!(missing.is_empty(), "the error says nothing of {missing:?}: {error}");
    Ok(())
}

/// The console answers, and the board leaves when told to.
fn alive(mut console: Console) -> Result<()> {
    let help = console.command(":help")?;
    ensure!(help.lines.iter().any(|line| line.starts_with(":quit")), ":help prints {:?}", help.lines);
    let status = console.quit()?;
    ensure!(status.success(), "after :quit: {status}");
    Ok(())
}

fn no_model(board: &Board, elf: &Path) -> Result<()> {
    let (mut console, greeting) = boot(board, elf, None)?;
    says(&greeting, &[])?;
    says(&console.send("Once", &mut |_| Ok(()))?, &["no model"])?;
    alive(console)
}

fn no_gguf(board: &Board, elf: &Path) -> Result<()> {
    let (console, greeting) = boot(board, elf, Some(&root().join("LICENSE-APACHE")))?;
    // A disk that starts with something else than a model is taken for one with a file system.
    says(&greeting, if board.storage == Storage::Virtio { &["file system"] } else { &["GGUF"] })?;
    alive(console)
}

fn truncated(board: &Board, elf: &Path) -> Result<()> {
    let whole = fs::read(small_model())?;
    let path = root().join(format!("target/xtask/truncated-{}-{}.gguf", board.name, std::process::id()));
    process::write(&path, &whole[..whole.len() / 2])?;
    let booted = boot(board, elf, Some(&path));
    fs::remove_file(&path)?;
    let (console, greeting) = booted?;
    says(&greeting, &[])?;
    alive(console)
}

fn too_big(board: &Board, elf: &Path) -> Result<()> {
    let (mut console, _) = boot(board, elf, Some(&small_model()))?;
    says(&console.send(":set context 1000000", &mut |_| Ok(()))?, &["1000000"])?;
    // What was planned before still stands.
    console.command(":max 1")?;
    console.command("O")?;
    alive(console)
}

fn long_prompt(board: &Board, elf: &Path) -> Result<()> {
    let (mut console, _) = boot(board, elf, Some(&small_model()))?;
    console.command(":set context 8")?;
    says(&console.send("There was once a prompt of more than eight tokens", &mut |_| Ok(()))?, &["8"])?;
    console.command(":max 1")?;
    console.command("O")?;
    alive(console)
}
