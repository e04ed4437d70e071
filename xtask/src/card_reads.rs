//! What a board reads from its card for a token, as the emulator's card counts it: commands and bytes, of a model in one
//! piece and of one in many.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};

use crate::boards::Board;
use crate::card::{self, Contents};
use crate::checks::Check;
use crate::parity::{self, Request, STORY};
use crate::process::root;
use crate::qemu::{self, Media};

/// A card as one buys it, so far as an emulator on a small disk can have one: FAT32 in clusters of several blocks.
const CARD: u64 = 128 << 20;
/// The firmware keeps track of 32.
const PIECES: u64 = 24;
/// Texts of two lengths, so that their difference is tokens alone.
const TOKENS: [usize; 2] = [2, 6];

/// A check for the board whose card is behind a host controller, if it is among these.
///
/// # Errors
/// There is no demo model.
pub(crate) fn checks(boards: &[(&'static Board, PathBuf)]) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    for (board, elf) in boards.iter().filter(|(board, _)| board.name == "raspi3b") {
        let (board, elf, model) = (*board, elf.clone(), qemu::demo_model()?);
        let name = format!("a card of {} MiB, the model in 1 and in {PIECES} pieces", CARD >> 20);
        checks.push(Check { board, name, run: Box::new(move || pieces_cost_commands_alone(board, &elf, &model)) });
    }
    Ok(checks)
}

/// Reads of the card.
#[derive(Clone, Copy, Debug)]
struct Reads {
    commands: u64,
    blocks: u64,
}

impl Reads {
    /// Counts them in the emulator's trace.
    fn of(trace: &str) -> Self {
        let count = |word: &str| trace.lines().filter(|line| line.contains(word)).count() as u64;
        Self { commands: count("CMD17") + count("CMD18"), blocks: count("sdcard_read_block") }
    }
}

/// The same bits and the same blocks, wherever the model lies: its pieces cost a command each.
fn pieces_cost_commands_alone(board: &Board, elf: &Path, model: &Path) -> Result<()> {
    let whole = per_text(board, elf, model, 1)?;
    let pieces = per_text(board, elf, model, PIECES)?;
    let tokens = (TOKENS[1] - TOKENS[0]) as u64;
    let per_token = |of: fn(Reads) -> u64, [short, long]: [Reads; 2]| (of(long) - of(short)) as f64 / tokens as f64;
    for (name, reads) in [("1 piece", whole), (&*format!("{PIECES} pieces"), pieces)] {
        let (commands, blocks) = (per_token(|r| r.commands, reads), per_token(|r| r.blocks, reads));
        eprintln!("{:12} {name}: {commands:.1} commands and {:.0} bytes a token", board.name, blocks * 512.0);
    }
    let [(commands, blocks), (more_commands, more_blocks)] =
        [whole, pieces].map(|reads| (per_token(|r| r.commands, reads), per_token(|r| r.blocks, reads)));
    ensure!(blocks == more_blocks, "{blocks} blocks a token in one piece, {more_blocks} in {PIECES}");
    let most = commands + PIECES as f64;
    ensure!(more_commands <= most, "{commands} commands a token in one piece, {more_commands} in {PIECES}");
    Ok(())
}

/// What is read for a text of each length, which has to be the host's.
fn per_text(board: &Board, elf: &Path, model: &Path, pieces: u64) -> Result<[Reads; 2]> {
    let file = |name: &str| root().join(format!("target/xtask/{name}-{}-{pieces}-{}", board.name, std::process::id()));
    let (image, trace) = (file("card"), file("trace"));
    fs::create_dir_all(root().join("target/xtask"))?;
    let reads = card::write(&image, &Contents { pieces, size: CARD, ..Contents::only(model) }).and_then(|()| {
        let mut reads = TOKENS.map(|_| Reads { commands: 0, blocks: 0 });
        for (tokens, reads) in TOKENS.into_iter().zip(&mut reads) {
            let mut command = qemu::command(board, elf, &Media::Image(image.clone()), None)?;
            command.args(["-trace", "sdcard_normal_command", "-trace", "sdcard_read_block", "-D"]).arg(&trace);
            parity::same(board, model, &mut command, Request { tokens, ..STORY })?;
            *reads = Reads::of(&fs::read_to_string(&trace).with_context(|| trace.display().to_string())?);
        }
        Ok(reads)
    });
    for file in [&image, &trace] {
        let _ = fs::remove_file(file);
    }
    reads
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_blocks_are_counted_as_the_emulator_writes_them() {
        let trace = "sdcard_normal_command SD        GO_IDLE_STATE/ CMD00 arg 0x00000000 (state idle)\n\
                     sdcard_normal_command SD    READ_SINGLE_BLOCK/ CMD17 arg 0x00000000 (state transfer)\n\
                     sdcard_read_block addr 0x0 size 0x200\n\
                     sdcard_normal_command SD  READ_MULTIPLE_BLOCK/ CMD18 arg 0x00100000 (state transfer)\n\
                     sdcard_read_block addr 0x100000 size 0x200\n\
                     sdcard_read_block addr 0x100200 size 0x200\n\
                     sdcard_normal_command SD    STOP_TRANSMISSION/ CMD12 arg 0x00000000 (state sendingdata)\n";
        let Reads { commands, blocks } = Reads::of(trace);
        assert_eq!((commands, blocks), (2, 3));
    }
}
