//! Where a model's bytes come from under an operating system: a mapped file, plain reads, or the binary itself.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use gptrickle_core::source::{Cause, Error, Source};
use memmap2::Mmap;

/// The demo model, built into the binary; `model/README.md` is its card.
pub static DEMO: &[u8] = include_bytes!("../model/stories-Q4_K_M.gguf");

/// A model file, opened one way or another.
#[derive(Debug)]
pub enum ModelFile {
    /// Built into the binary.
    BuiltIn(&'static [u8]),
    /// Mapped into memory.
    Mapped(Mmap),
    /// Read piece by piece into a fixed buffer.
    Reads(FileReads),
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
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OpenError::Io(path, error) => write!(f, "cannot open {}: {error}", path.display()),
            OpenError::Directory(path) => write!(f, "{} is a directory: name a .gguf file in it", path.display()),
            OpenError::NoFile(path) => write!(f, "{} is no file: copy it into one", path.display()),
            OpenError::Empty(path) => write!(f, "{} is empty: copy or download it again", path.display()),
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

    /// Opens a file for plain reads into a buffer of `buffer` bytes, or of the whole file if that is shorter.
    ///
    /// # Errors
    /// As [`map`](ModelFile::map).
    pub fn reads(path: &Path, buffer: usize) -> Result<ModelFile, OpenError> {
        let (file, len) = open(path)?;
        let buffer = usize::try_from(len).map_or(buffer, |len| buffer.min(len));
        Ok(ModelFile::Reads(FileReads { file, len, buffer: vec![0; buffer], held: 0..0 }))
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
            ModelFile::BuiltIn(bytes) => bytes.len(),
            ModelFile::Mapped(map) => map.len() as u64,
            ModelFile::Reads(reads) => reads.len,
        }
    }

    fn max_chunk(&self) -> usize {
        match self {
            ModelFile::BuiltIn(_) | ModelFile::Mapped(_) => usize::MAX,
            ModelFile::Reads(reads) => reads.buffer.len(),
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
}

/// A file and the one buffer that its chunks are read into.
#[derive(Debug)]
pub struct FileReads {
    file: File,
    len: u64,
    buffer: Vec<u8>,
    /// The stretch of the file at the buffer's start.
    held: Range<u64>,
}

impl FileReads {
    fn chunk(&mut self, offset: u64, len: usize) -> Result<&[u8], Error> {
        let fail = |cause| Error { offset, len, cause };
        if len > self.buffer.len() {
            return Err(fail(Cause::ChunkTooLong(self.buffer.len())));
        }
        let end = offset.checked_add(len as u64).filter(|&end| end <= self.len);
        let end = end.ok_or(fail(Cause::OutOfRange(self.len)))?;
        if offset < self.held.start || end > self.held.end {
            self.held = 0..0; // a failing read leaves anything behind
            let read = read_exact_at(&self.file, &mut self.buffer[..len], offset);
            read.map_err(|error| fail(Cause::Device(error.raw_os_error().unwrap_or(0))))?;
            self.held = offset..end;
        }
        Ok(&self.buffer[(offset - self.held.start) as usize..][..len])
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(not(unix))]
fn read_exact_at(mut file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(buffer)
}
