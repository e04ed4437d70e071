//! A card or disk that reads whole blocks, many in one command.

use core::ops::Range;

use super::Error;

/// Bytes in a block: what SD cards, virtio disks and FAT volumes count in.
pub const BLOCK: usize = 512;

/// A command that fails is sent this often before its failure is believed.
pub const TRIES: usize = 3;

/// A device that reads whole blocks of [`BLOCK`] bytes; where it fails, with its own code.
pub trait BlockDevice {
    /// Whether [`start`](Self::start) reads while the processor goes on.
    const BACKGROUND: bool = false;

    /// Brings the card or disk up, as often as it is asked to, and says how many blocks it has.
    ///
    /// # Errors
    /// No card answers → [`Error::NoCard`]; one answers and fails → [`Error::Device`].
    fn connect(&mut self) -> Result<u32, Error>;

    /// Reads the blocks from `lba` on into `buf`, one or more whole blocks, in one command.
    ///
    /// # Errors
    /// The device's own code.
    fn read(&mut self, lba: u32, buf: &mut [u8]) -> Result<(), i32>;

    /// Starts to read the blocks from `lba` on into `buf[at]`, and keeps `buf` until [`finish`](Self::finish).
    ///
    /// # Errors
    /// The device cannot take the command: `buf` comes back, and nothing was started.
    fn start(&mut self, lba: u32, buf: &'static mut [u8], at: Range<usize>) -> Result<(), &'static mut [u8]> {
        let _ = (lba, at);
        Err(buf)
    }

    /// Waits for what was started, and gives the buffer back; `None` if nothing was.
    fn finish(&mut self) -> Option<(&'static mut [u8], Result<(), i32>)> {
        None
    }
}

/// Reads like [`BlockDevice::read`], up to [`TRIES`] times.
pub(super) fn read<D: BlockDevice>(device: &mut D, lba: u32, buf: &mut [u8]) -> Result<(), i32> {
    let mut result = device.read(lba, buf);
    for _ in 1..TRIES {
        if result.is_ok() {
            break;
        }
        result = device.read(lba, buf);
    }
    result
}
