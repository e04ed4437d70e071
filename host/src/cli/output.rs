//! The options that say which file to write.

use std::path::PathBuf;

use crate::output::Output;

/// Which file, and whether in place of another.
#[derive(Debug, clap::Args)]
pub(super) struct OutputArgs {
    /// File to write
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    pub(super) path: PathBuf,

    /// Replaces the file if it is there
    #[arg(long)]
    force: bool,
}

impl OutputArgs {
    /// Starts the file; see [`Output::create`].
    pub(super) fn create(&self) -> anyhow::Result<Output> {
        Output::create(&self.path, self.force)
    }
}
