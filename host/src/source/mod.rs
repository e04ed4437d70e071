//! Where a model's bytes come from under an operating system: a mapped file, reads, or the binary itself.
//!
//! Reads go into fixed buffers ([`reads`]), at the speed of the disk or of the card that it imitates ([`throttled`]).

pub mod reads;
pub mod throttled;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use gptrickle_core::source::{Cause, Error, Reach, Source};
use memmap2::Mmap;
use reads::{ReadAt, Reads, SystemFile};
use throttled::{Throttle, Throttled};

/// The demo model, built into the binary; `model/README.md` is its card.
pub static DEMO: &[u8] = include_bytes!("../../model/stories-Q4_K_M.gguf");

/// A model file, opened one way or another.
#[derive(Debug)]
pub enum ModelFile {
    /// Built into the binary.
    BuiltIn(&'static [u8]),
    /// Mapped into memory.
    Mapped(Mmap),
    /// Read piece by piece into fixed buffers.
    Reads(Reads),
}

/// Why a model file cannot be opened.
#[derive(Debug)]
pub enum OpenError {
    /// The operating system says no.
    Io(PathBuf, io::Error),
    /// It is a directory.
    Directory(PathBuf),
    /// It is a pipe or a device.
    NoFile(PathBuf),
    /// It has no bytes.
    Empty(PathBuf),
    /// The operating system has no thread to read ahead.
    Thread(io::Error),
}

/// How a file is read into buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffering {
    /// Bytes of a buffer; none is longer than the file.
    pub buffer: usize,
    /// Whether a thread reads ahead, into a second buffer.
    pub prefetch: bool,
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OpenError::Io(path, error) => write!(f, "cannot open {}: {error}", path.display()),
            OpenError::Directory(path) => write!(f, "{} is a directory: name a .gguf file in it", path.display()),
            OpenError::NoFile(path) => write!(f, "{} is no file: copy it into one", path.display()),
            OpenError::Empty(path) => write!(f, "{} is empty: copy or download it again", path.display()),
            OpenError::Thread(error) => write!(f, "cannot start a thread that reads ahead: {error}"),
        }
    }
}

impl std::error::Error for OpenError {}

impl ModelFile {
    /// Maps a file into memory: chunks are lent in place, and pages come and go as the system sees fit.
    ///
    /// # Errors
    /// It cannot be opened, is no file, or is empty → the variants of [`OpenError`].
    pub fn map(path: &Path) -> Result<ModelFile, OpenError> {
        let (file, _) = open(path)?;
        // SAFETY: the file is not written by this process. If another one truncates it meanwhile, the system ends
        // this process with a signal; if it rewrites it, the bytes are other numbers, which is no undefined value of
        // any type that they are read as.
        #[expect(unsafe_code, reason = "mapping a file is unsafe, as others may change it; see above")]
        let map = unsafe { Mmap::map(&file) };
        map.map(ModelFile::Mapped).map_err(|error| OpenError::Io(path.into(), error))
    }

    /// Opens a file for reads.
    ///
    /// # Errors
    /// As [`map`](ModelFile::map).
    pub fn reads(path: &Path, buffering: Buffering) -> Result<ModelFile, OpenError> {
        let (file, len) = open(path)?;
        ModelFile::buffered(SystemFile { file, len }, buffering)
    }

    /// Opens a file, or what is built in, for reads that take as long as those from a card.
    ///
    /// # Errors
    /// As [`map`](ModelFile::map).
    pub fn throttled(path: Option<&Path>, throttle: Throttle, buffering: Buffering) -> Result<ModelFile, OpenError> {
        match path {
            None => ModelFile::buffered(Throttled::new(DEMO, throttle), buffering),
            Some(path) => {
                let (file, len) = open(path)?;
                ModelFile::buffered(Throttled::new(SystemFile { file, len }, throttle), buffering)
            }
        }
    }

    fn buffered(device: impl ReadAt + 'static, Buffering { buffer, prefetch }: Buffering) -> Result<Self, OpenError> {
        let reads = if prefetch { Reads::ahead(device, buffer) } else { Ok(Reads::plain(device, buffer)) };
        reads.map(ModelFile::Reads).map_err(OpenError::Thread)
    }
}

fn open(path: &Path) -> Result<(File, u64), OpenError> {
    let io = |error| OpenError::Io(path.into(), error);
    // Before it is opened, as opening a pipe waits for who writes to it.
    let metadata = std::fs::metadata(path).map_err(io)?;
    match (metadata.is_dir(), metadata.is_file(), metadata.len()) {
        (true, ..) => Err(OpenError::Directory(path.into())),
        (_, false, _) => Err(OpenError::NoFile(path.into())),
        (.., 0) => Err(OpenError::Empty(path.into())),
        (.., len) => Ok((File::open(path).map_err(io)?, len)),
    }
}

impl Source for ModelFile {
    fn len(&self) -> u64 {
        match self {
            ModelFile::BuiltIn(bytes) => <[u8]>::len(bytes) as u64,
            ModelFile::Mapped(map) => map.len() as u64,
            ModelFile::Reads(reads) => reads.len(),
        }
    }

    fn max_chunk(&self) -> usize {
        match self {
            ModelFile::BuiltIn(_) | ModelFile::Mapped(_) => usize::MAX,
            ModelFile::Reads(reads) => reads.max_chunk(),
        }
    }

    fn reach(&self, offset: u64, len: usize) -> Reach {
        match self {
            ModelFile::BuiltIn(_) | ModelFile::Mapped(_) => Reach::Here(len),
            ModelFile::Reads(reads) => reads.reach(offset, len),
        }
    }

    fn chunk(&mut self, offset: u64, len: usize) -> Result<&[u8], Error> {
        let bytes: &[u8] = match self {
            ModelFile::BuiltIn(bytes) => bytes,
            ModelFile::Mapped(map) => map,
            ModelFile::Reads(reads) => return reads.chunk(offset, len),
        };
        let range = usize::try_from(offset).ok().and_then(|start| Some(start..start.checked_add(len)?));
        let end = bytes.len() as u64;
        range.and_then(|range| bytes.get(range)).ok_or(Error { offset, len, cause: Cause::OutOfRange(end) })
    }

    fn prefetch(&mut self, offset: u64, len: usize) {
        if let ModelFile::Reads(reads) = self {
            reads.prefetch(offset, len);
        }
    }
}
