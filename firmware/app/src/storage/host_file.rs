//! A file of the machine that debugs or emulates the board, read through semihosting.
//!
//! Its path is the second word of the semihosting command line, so it holds no space.

use core::ffi::CStr;
use core::ops::Range;

use gptrickle_core::source::{self, Cause, Source};
use semihosting::experimental::env;
use semihosting::fs::File;
use semihosting::io::{self, Read, Seek, SeekFrom};

use super::{Error, Storage};

/// The longest command line, in bytes.
const COMMAND_LINE: usize = 512;

/// The file named on the command line, and the buffer it is read into.
#[derive(Debug)]
pub struct HostFile<'b> {
    buffer: &'b mut [u8],
}

impl<'b> HostFile<'b> {
    /// Reads into `buffer`, which is the longest chunk it lends.
    pub fn new(buffer: &'b mut [u8]) -> Self {
        HostFile { buffer }
    }
}

impl Storage for HostFile<'_> {
    type Source<'a>
        = FileSource<'a>
    where
        Self: 'a;

    fn open(&mut self) -> Result<FileSource<'_>, Error> {
        let args = env::args::<COMMAND_LINE>().map_err(|_| Error::NotLoaded)?;
        let Some(Ok(path)) = (&args).nth(1) else { return Err(Error::NotLoaded) };
        let mut terminated = [0; COMMAND_LINE + 1];
        terminated[..path.len()].copy_from_slice(path.as_bytes());
        let path = CStr::from_bytes_until_nul(&terminated).map_err(|_| Error::NoFile)?;
        let file = File::open(path).map_err(|_| Error::NoFile)?;
        let len = file.metadata().map_err(|error| Error::Device(code(&error)))?.len();
        Ok(FileSource { file, len, buffer: self.buffer, held: 0..0 })
    }
}

/// An open file.
#[derive(Debug)]
pub struct FileSource<'b> {
    file: File,
    len: u64,
    buffer: &'b mut [u8],
    held: Range<u64>, // of the file, in the buffer from its start on
}

impl Source for FileSource<'_> {
    fn len(&self) -> u64 {
        self.len
    }

    fn max_chunk(&self) -> usize {
        self.buffer.len()
    }

    fn chunk(&mut self, offset: u64, len: usize) -> Result<&[u8], source::Error> {
        let fail = |cause| source::Error { offset, len, cause };
        let end = offset.checked_add(len as u64).filter(|&end| end <= self.len);
        let end = end.ok_or(fail(Cause::OutOfRange(self.len)))?;
        if len > self.buffer.len() {
            return Err(fail(Cause::ChunkTooLong(self.buffer.len())));
        }
        if offset < self.held.start || end > self.held.end {
            self.held = 0..0;
            let read =
                self.file.seek(SeekFrom::Start(offset)).and_then(|_| self.file.read_exact(&mut self.buffer[..len]));
            read.map_err(|error| fail(Cause::Device(code(&error))))?;
            self.held = offset..end;
        }
        let start = (offset - self.held.start) as usize;
        Ok(&self.buffer[start..start + len])
    }
}

fn code(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(-1)
}
