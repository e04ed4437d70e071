//! A file that appears under its name only when it is whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// Bytes gathered before they are written.
const BUFFER: usize = 1 << 20;

/// A file in the making: written as `FILE.part`, renamed by [`finish`](Self::finish), removed if that is not reached.
#[derive(Debug)]
pub struct Output {
    file: BufWriter<File>,
    path: PathBuf,
    part: PathBuf,
    finished: bool,
}

impl Output {
    /// Starts a file; with `force`, in place of the one that is there.
    ///
    /// # Errors
    /// It is there already, is no regular file, another run is writing it, or the operating system says no.
    pub fn create(path: &Path, force: bool) -> anyhow::Result<Output> {
        let shown = path.display();
        match fs::metadata(path) {
            Ok(found) if !found.is_file() => bail!("{shown} is no regular file: name another"),
            Ok(_) if !force => bail!("{shown} is there already: --force replaces it"),
            _ => {}
        }
        let part = path.with_added_extension("part");
        let created = OpenOptions::new().write(true).create(true).create_new(!force).truncate(force).open(&part);
        let file = match created {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                bail!("{} is there: another run is writing it or was killed; --force replaces it", part.display());
            }
            created => created.with_context(|| format!("cannot write {}", part.display()))?,
        };
        Ok(Output { file: BufWriter::with_capacity(BUFFER, file), path: path.into(), part, finished: false })
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// The operating system says no.
    pub fn finish(mut self) -> io::Result<()> {
        self.file.flush()?;
        fs::rename(&self.part, &self.path)?;
        self.finished = true;
        Ok(())
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_file(&self.part); // whoever drops it has an error to tell already
        }
    }
}
