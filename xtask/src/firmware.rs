//! Building firmware: cargo in `firmware/`, with the toolchain and the flags of a board.

use anyhow::{Result, bail};
use std::path::PathBuf;
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
    Ok(root().join("firmware/target").join(board.target).join("release").join(board.package()))
}
