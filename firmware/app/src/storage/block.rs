//! A card or disk that reads whole blocks, many in one command.

use core::ops::Range;

use super::Error;

/// Bytes in a block: what SD cards, virtio disks and FAT volumes count in.
pub const BLOCK: usize = 512;

/// The device did not answer, or not in time.
pub const TIMEOUT: i32 = -1;
/// What came was damaged on its way.
pub const CHECKSUM: i32 = -2;
/// The device answered that it will not.
pub const REFUSED: i32 = -3;
/// The controller or its DMA failed.
pub const CONTROLLER: i32 = -4;
/// Nothing answers any more: the card was taken out.
pub const GONE: i32 = -5;
/// Another card than before answers.
pub const CHANGED: i32 = -6;

/// A device that reads whole blocks of [`BLOCK`] bytes; where it fails, with one of the codes above or its own.
pub trait BlockDevice {
    /// Whether [`start`](Self::start) reads while the processor goes on.
    const BACKGROUND: bool = false;

    /// Brings the card or disk up, as often as it is asked to, and says what it is.
    ///
    /// # Errors
    /// No card answers → [`Error::NoCard`]; one answers and fails → [`Error::Device`].
    fn connect(&mut self) -> Result<Card, Error>;

    /// Reads the blocks from `lba` on into `buf`, one or more whole blocks, in one command.
    ///
    /// # Errors
    /// A code.
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

    /// Lets this time pass, in microseconds, where the device gets better with time.
    fn pause(&mut self, us: u32) {
        let _ = us;
    }
}

/// What a device says it is when it has come up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Card {
    /// How many blocks it has.
    pub blocks: u32,
    /// What tells it from other cards of its size; 0 where it does not say.
    pub id: u128,
}

/// A command that fails is sent this often before its failure is believed.
pub const TRIES: u32 = 4;

/// From the first failure to the second try; eight times as long before each one after it: 73 ms in all.
const BACK_OFF_US: u32 = 1_000;

/// A device whose failures are not believed at once: a command is sent again, and from the second failure on the device
/// is brought up anew before it is.
///
/// It never reads from another card than the one that was there at [`connect`](BlockDevice::connect): where the model
/// lay on that one means nothing on this.
#[derive(Debug)]
pub struct Persistent<D> {
    device: D,
    /// What `connect` found.
    card: Option<Card>,
    /// It has not answered since it failed, if it ever did: nothing says that it is still that card.
    lost: bool,
}

impl<D: BlockDevice> Persistent<D> {
    /// A device that nobody has talked to.
    pub fn new(device: D) -> Self {
        Persistent { device, card: None, lost: true }
    }

    /// The device itself.
    #[cfg(test)]
    pub(super) fn device(&mut self) -> &mut D {
        &mut self.device
    }

    fn read_once(&mut self, lba: u32, buf: &mut [u8]) -> Result<(), i32> {
        if self.lost {
            match self.device.connect() {
                Ok(card) if Some(card) == self.card => self.lost = false,
                Ok(_) => return Err(CHANGED),
                Err(Error::Device(code)) => return Err(code),
                Err(_) => return Err(GONE),
            }
        }
        self.device.read(lba, buf)
    }
}

impl<D: BlockDevice> BlockDevice for Persistent<D> {
    const BACKGROUND: bool = D::BACKGROUND;

    fn connect(&mut self) -> Result<Card, Error> {
        self.lost = true;
        let card = self.device.connect()?;
        self.card = Some(card);
        self.lost = false;
        Ok(card)
    }

    /// Up to [`TRIES`] times, the device's last failure or [`GONE`] or [`CHANGED`] at the end.
    fn read(&mut self, lba: u32, buf: &mut [u8]) -> Result<(), i32> {
        let mut pause = BACK_OFF_US;
        let mut result = self.read_once(lba, buf);
        for failures in 1..TRIES {
            if result.is_ok() {
                break;
            }
            self.device.pause(pause);
            pause *= 8;
            self.lost |= failures > 1;
            result = self.read_once(lba, buf);
        }
        self.lost |= result.is_err();
        result
    }

    fn start(&mut self, lba: u32, buf: &'static mut [u8], at: Range<usize>) -> Result<(), &'static mut [u8]> {
        if self.lost { Err(buf) } else { self.device.start(lba, buf, at) }
    }

    fn finish(&mut self) -> Option<(&'static mut [u8], Result<(), i32>)> {
        self.device.finish()
    }

    fn pause(&mut self, us: u32) {
        self.device.pause(us);
    }
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use super::super::ram::{CODE, Ram, pattern};
    use super::*;

    fn connected(bytes: &[u8]) -> Persistent<Ram<true>> {
        let mut disk = Persistent::new(Ram::new(bytes.to_vec()));
        assert_eq!(disk.connect(), Ok(Card { blocks: (bytes.len() / BLOCK) as u32, id: 1 }));
        disk
    }

    fn read(disk: &mut Persistent<Ram<true>>) -> Result<Vec<u8>, i32> {
        let mut buf = vec![0; 3 * BLOCK];
        disk.read(1, &mut buf).map(|()| buf)
    }

    #[test]
    fn tries_come_later_and_later_and_end() {
        let bytes = pattern(8 * BLOCK);
        let mut disk = connected(&bytes);
        disk.device().bad = (2, 2);
        assert_eq!(read(&mut disk), Ok(bytes[BLOCK..4 * BLOCK].to_vec()));
        assert_eq!(disk.device().pauses, [1_000, 8_000]);
        disk.device().bad = (2, u32::MAX);
        disk.device().sent.clear();
        assert_eq!(read(&mut disk), Err(CODE));
        assert_eq!(disk.device().sent, vec![1..4; TRIES as usize]);
        assert_eq!(disk.device().pauses[2..], [1_000, 8_000, 64_000]);
    }

    #[test]
    fn a_card_that_comes_back_is_read_again() {
        let bytes = pattern(8 * BLOCK);
        let mut disk = connected(&bytes);
        disk.device().swap(None);
        for _ in 0..2 {
            assert_eq!(read(&mut disk), Err(GONE));
        }
        assert!(disk.start(1, vec![0; BLOCK].leak(), 0..BLOCK).is_err(), "nothing is started on what is not there");
        disk.device().swap(Some(1));
        assert_eq!(read(&mut disk), Ok(bytes[BLOCK..4 * BLOCK].to_vec()));
    }

    #[test]
    fn another_card_is_not_read_until_it_was_connected_to() {
        let bytes = pattern(8 * BLOCK);
        let mut disk = connected(&bytes);
        disk.device().swap(Some(2));
        for _ in 0..3 {
            assert_eq!(read(&mut disk), Err(CHANGED));
        }
        assert_eq!(disk.connect().map(|card| card.id), Ok(2));
        assert_eq!(read(&mut disk), Ok(bytes[BLOCK..4 * BLOCK].to_vec()));
        disk.device().swap(Some(1));
        assert_eq!(read(&mut disk), Err(CHANGED));
    }
}
