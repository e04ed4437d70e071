//! A result on its way into a file, which Ctrl-C leaves as it was.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;

use super::interrupt::{self, Interrupted};
use super::note;
use crate::output::Output;

/// Has `write` write a file, in place of the one that is there.
///
/// It appears under its name when it is whole, also if Ctrl-C comes: then `write` should return [`Interrupted`], as
/// [`interrupt::check`] does. Anything that is no file, such as a device, is written to as it is.
pub(super) fn write(path: &Path, write: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>) -> anyhow::Result<ExitCode> {
    let context = || format!("cannot write {}", path.display());
    if fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        let mut out = BufWriter::new(File::create(path).with_context(context)?);
        write(&mut out)?;
        out.flush().with_context(context)?;
        return Ok(ExitCode::SUCCESS);
    }
    interrupt::listen_for_texts()?;
    let mut output = Output::create(path, true)?;
    match write(&mut output) {
        Err(error) if error.is::<Interrupted>() => {
            note(format_args!("interrupted: {} was not written", path.display()));
            Ok(ExitCode::from(130))
        }
        written => {
            written?;
            output.finish().with_context(context)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
