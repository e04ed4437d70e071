//! The file of a saved text, which goes on in another process.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use gptrickle_core::generate::{Fingerprint, Saved, Session};

use super::model::Opened;
use crate::output;

/// The file of a saved text.
pub(super) struct SavedText {
    file: BufReader<File>,
    path: PathBuf,
    pub(super) head: Saved,
}

impl SavedText {
    /// Opens a file and checks all that it says before the text.
    pub(super) fn open(path: &Path, opened: &mut Opened) -> anyhow::Result<SavedText> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut file = BufReader::new(file);
        let fingerprint = opened.model.fingerprint(&mut opened.src).with_context(|| opened.name.clone())?;
        let head = Saved::open(fingerprint, &mut |bytes| file.read(bytes));
        let head = head.with_context(|| path.display().to_string())?;
        Ok(SavedText { file, path: path.into(), head })
    }

    /// Puts the text into the session, and checks that the file has nothing more.
    pub(super) fn restore(&mut self, session: &mut Session) -> anyhow::Result<()> {
        let name = || self.path.display().to_string();
        session.restore(&self.head, &mut |bytes| self.file.read(bytes)).with_context(name)?;
        let behind = self.file.read(&mut [0]).with_context(name)?;
        anyhow::ensure!(behind == 0, "{}: there is more in it than a saved text", name());
        Ok(())
    }

    /// Starts a file for a text of this model.
    pub(super) fn create(path: &Path, opened: &mut Opened) -> anyhow::Result<(Fingerprint, output::Output)> {
        let fingerprint = opened.model.fingerprint(&mut opened.src).with_context(|| opened.name.clone())?;
        Ok((fingerprint, output::Output::create(path, true)?))
    }

    /// Writes the text and puts the file in its place.
    pub(super) fn write(session: &Session, fingerprint: Fingerprint, mut output: output::Output) -> anyhow::Result<()> {
        let saved = session.save(fingerprint, &mut |bytes| output.write_all(bytes));
        saved.and_then(|()| output.finish()).context("cannot save the text")
    }
}
