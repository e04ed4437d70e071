//! Plain reads into fixed buffers: one, or two and a thread that reads ahead.
//!
//! A hint names a stretch of the file that fills a buffer, and may hold many chunks; one read brings it whole. With two
//! buffers, a hint hands the one that was multiplied last to the thread, and a chunk takes one back. As a hint comes
//! before the first chunk of the stretch in front of it, the thread always has the next read in its queue and never waits
//! for more than what is multiplied:
//!
//! ```text
//!  caller    … prefetch(b), chunks of a │ multiplies a │ prefetch(c), chunks of b │ multiplies b │ prefetch(d) …
//!  thread    … ────── reads a ──────────┼──────── reads b ─────────┼─────────── reads c ─────────┼── reads d …
//! ```
//!
//! With one, the hint is kept until a chunk of its stretch is asked for.
//! A stretch that cannot be read is forgotten: its chunk is read anew when it is asked for, and fails there if it fails
//! again.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use gptrickle_core::source::{Cause, Error, Reach, Source};

/// What can be read at any offset, from any thread.
#[expect(clippy::len_without_is_empty, reason = "an empty model file is no special case")]
pub trait ReadAt: Debug + Send + Sync {
    /// Bytes there are.
    fn len(&self) -> u64;

    /// Fills `bytes` with what lies at `offset`.
    ///
    /// # Errors
    /// Not all of it could be read.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;

    /// As [`read_at`](ReadAt::read_at), for a read that has been waiting in a queue since `asked`.
    ///
    /// # Errors
    /// As [`read_at`](ReadAt::read_at).
    fn read_queued(&self, bytes: &mut [u8], offset: u64, _asked: Instant) -> io::Result<()> {
        self.read_at(bytes, offset)
    }
}

impl ReadAt for &'static [u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..));
        let from = rest.and_then(|rest| rest.get(..bytes.len())).ok_or(io::ErrorKind::UnexpectedEof)?;
        bytes.copy_from_slice(from);
        Ok(())
    }
}

/// A file of the operating system, and how long it was when it was opened.
#[derive(Debug)]
pub(super) struct SystemFile {
    pub(super) file: File,
    pub(super) len: u64,
}

impl ReadAt for SystemFile {
    fn len(&self) -> u64 {
        self.len
    }

    #[cfg(unix)]
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, bytes, offset)
    }

    #[cfg(windows)]
    fn read_at(&self, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            let n = std::os::windows::fs::FileExt::seek_read(&self.file, bytes, offset)?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            bytes = &mut bytes[n..];
            offset += n as u64;
        }
        Ok(())
    }
}

/// A source that reads a stretch of the file into a fixed buffer, and may read the next one meanwhile.
#[derive(Debug)]
pub struct Reads {
    device: Arc<dyn ReadAt>,
    max_chunk: usize,
    /// The buffers that are not with the thread, the one lent last at the end.
    here: Vec<Buffer>,
    ahead: Option<Ahead>,
    /// Without a thread: what to read when a chunk of it is asked for.
    hinted: Option<Range<u64>>,
}

/// A buffer, and the stretch of the file at its start.
#[derive(Debug)]
struct Buffer {
    bytes: Vec<u8>,
    held: Range<u64>,
}

/// A buffer to fill, what with, and since when.
type Job = (Buffer, Range<u64>, Instant);

/// The thread that reads ahead, and what was handed to it.
#[derive(Debug)]
struct Ahead {
    /// Buffers to fill; none once the thread shall end.
    jobs: Option<Sender<Job>>,
    filled: Receiver<Buffer>,
    /// What they will hold, in the order in which they come back.
    promised: VecDeque<Range<u64>>,
    thread: Option<JoinHandle<()>>,
}

impl Reads {
    /// Reads a chunk when it is asked for, into one buffer of `buffer` bytes, or of the whole file if that is shorter.
    pub fn plain(device: impl ReadAt + 'static, buffer: usize) -> Reads {
        Reads::new(Arc::new(device), buffer, 1)
    }

    /// Reads ahead what is hinted at, into two buffers as long as that of [`plain`](Reads::plain).
    ///
    /// # Errors
    /// The operating system has no thread to give.
    pub fn ahead(device: impl ReadAt + 'static, buffer: usize) -> io::Result<Reads> {
        let mut reads = Reads::new(Arc::new(device), buffer, 2);
        reads.ahead = Some(Ahead::start(reads.device.clone())?);
        Ok(reads)
    }

    fn new(device: Arc<dyn ReadAt>, buffer: usize, buffers: usize) -> Reads {
        let max_chunk = usize::try_from(device.len()).map_or(buffer, |len| buffer.min(len));
        let here = (0..buffers).map(|_| Buffer { bytes: vec![0; max_chunk], held: 0..0 }).collect();
        Reads { device, max_chunk, here, ahead: None, hinted: None }
    }

    /// The stretch that a chunk is, if it can be lent.
    fn range(&self, offset: u64, len: usize) -> Result<Range<u64>, Cause> {
        if len > self.max_chunk {
            return Err(Cause::ChunkTooLong(self.max_chunk));
        }
        let end = offset.checked_add(len as u64).filter(|&end| end <= self.device.len());
        end.map(|end| offset..end).ok_or(Cause::OutOfRange(self.device.len()))
    }

    /// The place of the buffer that holds `want`, which may first have to come back from the thread.
    fn find(&mut self, want: &Range<u64>) -> Option<usize> {
        loop {
            let found = self.here.iter().position(|buffer| covers(&buffer.held, want));
            let ahead = match &mut self.ahead {
                Some(ahead) if found.is_none() && ahead.promises(want) => ahead,
                _ => return found,
            };
            self.here.push(ahead.take_back());
        }
    }

    /// The stretches that hints have named, and no chunk was asked of yet.
    fn promised(&self) -> impl Iterator<Item = &Range<u64>> {
        self.ahead.iter().flat_map(|ahead| &ahead.promised).chain(&self.hinted)
    }

    /// Reads `want` here and now, with the rest of the stretch hinted at if it lies in it.
    fn read_hinted(&mut self, want: Range<u64>) -> io::Result<()> {
        let whole = self.hinted.take().filter(|hinted| covers(hinted, &want));
        if let Some(hinted) = whole
            && self.read(hinted).is_ok()
        {
            return Ok(());
        }
        self.read(want)
    }

    /// Reads `want` here and now, into the last buffer.
    fn read(&mut self, want: Range<u64>) -> io::Result<()> {
        let mut buffer = match (self.here.pop(), &mut self.ahead) {
            (Some(buffer), _) => buffer,
            // Both were promised to hints that did not come true so far: the older one is given up.
            (None, Some(ahead)) => ahead.take_back(),
            (None, None) => unreachable!("without a thread, the only buffer is here"),
        };
        let read = buffer.read(&*self.device, want, Instant::now());
        self.here.push(buffer);
        read
    }
}

fn covers(held: &Range<u64>, want: &Range<u64>) -> bool {
    held.start <= want.start && want.end <= held.end
}

impl Source for Reads {
    fn len(&self) -> u64 {
        self.device.len()
    }

    fn max_chunk(&self) -> usize {
        self.max_chunk
    }

    fn chunk(&mut self, offset: u64, len: usize) -> Result<&[u8], Error> {
        let fail = |cause| Error { offset, len, cause };
        let want = self.range(offset, len).map_err(fail)?;
        if len == 0 {
            return Ok(&[]);
        }
        match self.find(&want) {
            Some(i) => self.here[i..].rotate_left(1),
            None => self.read_hinted(want).map_err(|error| fail(Cause::Device(error.raw_os_error().unwrap_or(0))))?,
        }
        let Buffer { bytes, held } = &self.here[self.here.len() - 1];
        Ok(&bytes[(offset - held.start) as usize..][..len])
    }

    fn reach(&self, offset: u64, len: usize) -> Reach {
        // None is longer than a buffer.
        let within = |held: &Range<u64>| held.contains(&offset).then(|| len.min((held.end - offset) as usize));
        if let Some(n) = self.here.last().and_then(|lent| within(&lent.held)) {
            return Reach::Here(n);
        }
        let mut ahead = self.here.iter().map(|buffer| &buffer.held).chain(self.promised());
        ahead.find_map(within).map_or(Reach::Away(len.min(self.max_chunk)), Reach::Ahead)
    }

    fn prefetch(&mut self, offset: u64, len: usize) {
        let Ok(want) = self.range(offset, len) else { return };
        if self.here.iter().map(|buffer| &buffer.held).chain(self.promised()).any(|held| covers(held, &want)) {
            return;
        }
        match &mut self.ahead {
            // The one lent from last, which this hint says is done with.
            Some(ahead) => _ = self.here.pop().map(|buffer| ahead.hand_over(buffer, want)),
            None => self.hinted = self.hinted.take().or(Some(want)),
        }
    }
}

impl Buffer {
    /// Reads a stretch to its start; if that fails, it holds nothing.
    fn read(&mut self, device: &dyn ReadAt, want: Range<u64>, asked: Instant) -> io::Result<()> {
        self.held = 0..0;
        device.read_queued(&mut self.bytes[..(want.end - want.start) as usize], want.start, asked)?;
        self.held = want;
        Ok(())
    }
}

impl Ahead {
    fn start(device: Arc<dyn ReadAt>) -> io::Result<Ahead> {
        let (jobs, to_fill) = channel::<Job>();
        let (done, filled) = channel();
        let fill = move || {
            for (mut buffer, want, asked) in to_fill {
                let _ = buffer.read(&*device, want, asked); // it holds nothing then, and that is told when it is asked for
                if done.send(buffer).is_err() {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("read ahead".to_owned()).spawn(fill)?;
        Ok(Ahead { jobs: Some(jobs), filled, promised: VecDeque::new(), thread: Some(thread) })
    }

    /// Whether a buffer with the thread will hold `want`.
    fn promises(&self, want: &Range<u64>) -> bool {
        self.promised.iter().any(|promised| covers(promised, want))
    }

    fn hand_over(&mut self, buffer: Buffer, want: Range<u64>) {
        self.promised.push_back(want.clone());
        let jobs = self.jobs.as_ref().expect("they end with this");
        jobs.send((buffer, want, Instant::now())).expect("the thread ends with this");
    }

    /// Waits for the buffer that was handed over first.
    fn take_back(&mut self) -> Buffer {
        self.promised.pop_front();
        self.filled.recv().expect("the thread ends with this, and has a buffer")
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.jobs = None; // ends the thread's loop
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic of its own has been told
        }
    }
}
