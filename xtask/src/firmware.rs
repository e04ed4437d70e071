//! Building firmware: cargo in `firmware/`, with the toolchain and the flags of a board.

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSegment};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::boards::Board;
use crate::process::{self, root};
use crate::toolchain::{Library, Places, Toolchain};

/// `cargo verb --release` for one board's package. Profiles and `.cargo/config.toml` count from the current folder.
pub(crate) fn cargo(verb: &str, board: &Board, toolchain: &Toolchain) -> Command {
    let mut cargo = toolchain.cargo(verb, board.target, Library::CoreAlloc, board.rustflags);
    cargo.current_dir(root().join("firmware")).args(["--release", "--package", &board.package()]);
    cargo
}

/// The firmware as a boot loader copies it to memory, which knows nothing of ELF: what lies there, from the first byte.
///
/// # Errors
/// It is no ELF file.
pub(crate) fn bare(elf: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(elf).with_context(|| elf.display().to_string())?;
    let file = object::File::parse(&*bytes).with_context(|| elf.display().to_string())?;
    let mut image = Vec::new();
    let mut start = None;
    for segment in file.segments() {
        let data = segment.data()?;
        if !data.is_empty() {
            // A linker writes segments in the order of their addresses.
            let at = segment.address() - *start.get_or_insert(segment.address());
            image.resize(usize::try_from(at)?, 0);
            image.extend(data);
        }
    }
    Ok(image)
}

/// Builds one board's firmware and says where it is.
///
/// # Errors
/// No toolchain builds for the board, or the build fails.
pub(crate) fn build(board: &Board, features: &[&str]) -> Result<PathBuf> {
    if !board.folder().is_dir() {
        bail!("{} is not in the tree", board.folder().display());
    }
    let toolchain = Places::here().resolve(board.target)?;
    let mut cargo = cargo("build", board, &toolchain);
    if !features.is_empty() {
        cargo.args(["--features", &features.join(",")]);
        if std::env::var_os("DEFMT_LOG").is_none() {
            // Without it, defmt leaves out all but errors.
            cargo.env("DEFMT_LOG", "debug");
        }
    }
    process::run(&mut cargo)?;
    Ok(path(board))
}

/// Where a board's firmware lies once it is built.
pub(crate) fn path(board: &Board) -> PathBuf {
    root().join("firmware/target").join(board.target).join("release").join(board.package())
}
