//! The log lines of a board: `defmt` frames that the emulator writes to a socket, printed to standard error.
//!
//! The decoder brings many crates with it, so it is a feature, and [`with_decoder`] builds xtask with it on demand.

use anyhow::{Context, Result};
use std::fs;
use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::JoinHandle;

use crate::process::root;

/// Whether this xtask can decode.
pub(crate) const DECODES: bool = cfg!(feature = "defmt");

/// Runs the same command line in an xtask that can decode.
///
/// # Errors
/// Only an error returns: cargo does not start.
pub(crate) fn with_decoder() -> Result<std::convert::Infallible> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["run", "--quiet", "--locked", "--package", "xtask", "--features", "defmt", "--manifest-path"]);
    cargo.arg(root().join("Cargo.toml")).arg("--").args(std::env::args_os().skip(1));
    Err(cargo.exec()).context("cannot start cargo")
}

/// A socket for the emulator, and a thread that decodes what comes.
pub(crate) struct Listener {
    path: PathBuf,
    thread: JoinHandle<Result<()>>,
}

impl Listener {
    /// Opens the socket; `elf` holds the texts that the frames refer to.
    ///
    /// # Errors
    /// There is no place for a socket.
    pub(crate) fn new(elf: &Path) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("gptrickle-{}.log", std::process::id()));
        let _ = fs::remove_file(&path);
        let socket = UnixListener::bind(&path).with_context(|| path.display().to_string())?;
        let elf = fs::read(elf).with_context(|| elf.display().to_string())?;
        let thread = std::thread::spawn(move || decode(&elf, socket.accept()?.0));
        Ok(Self { path, thread })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the last line; the emulator has ended.
    ///
    /// # Errors
    /// The firmware has no log, or sent what is none.
    pub(crate) fn finish(self) -> Result<()> {
        // If the emulator never came, the thread still waits for it.
        drop(UnixStream::connect(&self.path));
        let _ = fs::remove_file(&self.path);
        self.thread.join().map_err(|_| anyhow::anyhow!("the decoder panicked"))?
    }
}

#[cfg(feature = "defmt")]
fn decode(elf: &[u8], mut stream: impl Read) -> Result<()> {
    use defmt_decoder::{DecodeError, Table};
    let table = Table::parse(elf)?.context("the firmware holds no log lines")?;
    let mut decoder = table.new_stream_decoder();
    let mut bytes = [0; 1024];
    while let n @ 1.. = stream.read(&mut bytes)? {
        decoder.received(&bytes[..n]);
        loop {
            match decoder.decode() {
                Ok(frame) => eprintln!("{}", frame.display(false)),
                Err(DecodeError::UnexpectedEof) => break,
                Err(DecodeError::Malformed) if table.encoding().can_recover() => {}
                Err(DecodeError::Malformed) => anyhow::bail!("a malformed log frame"),
            }
        }
    }
    Ok(())
}

#[cfg(not(feature = "defmt"))]
fn decode(_elf: &[u8], _stream: impl Read) -> Result<()> {
    anyhow::bail!("this xtask was built without a decoder")
}
