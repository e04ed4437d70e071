//! Where the model lies: in mapped memory, or in a file on a device that is read in blocks.

pub mod block;
pub mod csd;
pub mod disk;
pub mod fat;
#[cfg(feature = "semihosting")]
pub mod host_file;
pub mod mapped;
#[cfg(test)]
mod ram;
pub mod sd_host;
pub mod sd_spi;
#[cfg(feature = "virtio")]
pub mod virtio;
pub mod watched;

use core::fmt;
use gptrickle_core::source::Source;

/// Finds the model, as often as it is asked to.
pub trait Storage {
    /// The model's bytes; borrows the buffers they are read into.
    type Source<'a>: Source
    where
        Self: 'a;

    /// Looks for the model.
    ///
    /// # Errors
    /// There is none, or the device failed: the variants of [`Error`]. The next call looks again.
    fn open(&mut self) -> Result<Self::Source<'_>, Error>;
}

/// No model: why, and who can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Error {
    /// No card or device answers.
    NoCard,
    /// The card or device answers, and fails, with its own code.
    Device(i32),
    /// The first partition holds no FAT file system.
    NoVolume,
    /// The file system's figures contradict each other or the card's size.
    BadVolume,
    /// There is no such file, or no model among the files.
    NoFile,
    /// The file's chain of clusters ends early, runs in a circle or leaves the file system; here.
    BadChain {
        /// The cluster that shows it.
        cluster: u32,
    },
    /// The file lies in more pieces than the reader keeps track of.
    Fragmented {
        /// How many it can keep.
        max: usize,
    },
    /// Nothing was put into the memory where the model belongs.
    NotLoaded,
    /// The memory where the model belongs is smaller than the model (both in bytes).
    BeyondMemory {
        /// The model's size.
        len: u64,
        /// The memory's.
        have: usize,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NoCard => write!(f, "no card: insert one with a model"),
            Error::Device(code) => write!(f, "the storage device failed (code {code}): reseat the card"),
            Error::NoVolume => write!(f, "no FAT file system on the card's first partition: format it as FAT32"),
            Error::BadVolume => write!(f, "the card's file system is damaged: format the card anew"),
            Error::BadChain { cluster } => {
                write!(f, "the card's file system is damaged at cluster {cluster}: check it and copy the model anew")
            }
            Error::NoFile => write!(f, "no model file: put a .gguf file into the root directory"),
            Error::Fragmented { max } => {
                write!(f, "the file lies in over {max} pieces: copy it to a freshly formatted card")
            }
            Error::NotLoaded => write!(f, "no model in memory: load one, and its length"),
            Error::BeyondMemory { len, have } => {
                write!(f, "the model has {len} bytes, the memory for it {have}: use a smaller model")
            }
        }
    }
}

impl core::error::Error for Error {}
