//! A file that appears under its name only when it is whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Seek, SeekFrom, Write};
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

impl Seek for Output {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_file(&self.part); // whoever drops it has an error to tell already
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_there_whole_or_not_at_all() {
        let folder = std::env::temp_dir().join(format!("gptrickle-output-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("a.gguf");
        let refused = |force| Output::create(&path, force).unwrap_err().to_string();
        let files = || fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();

        let mut unfinished = Output::create(&path, false).unwrap();
        unfinished.write_all(b"half").unwrap();
        assert!(refused(false).contains("a.gguf.part is there"));
        drop(unfinished);
        assert!(files().is_empty(), "{:?}", files());

        let mut finished = Output::create(&path, false).unwrap();
        finished.write_all(b"whole").unwrap();
        finished.finish().unwrap();
        assert_eq!(files(), ["a.gguf"]);
        assert!(refused(false).ends_with("a.gguf is there already: --force replaces it"));
        drop(Output::create(&path, true).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"whole", "what was there stays until its successor is whole");
        Output::create(&path, true).unwrap().finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");

        let directory = Output::create(&folder, true).unwrap_err().to_string();
        assert!(directory.ends_with("is no regular file: name another"), "{directory}");
        fs::remove_dir_all(&folder).unwrap();
    }
}
