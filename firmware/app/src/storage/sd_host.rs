//! An SD card behind a host controller, on one or four data lines: what is the same for every such controller.
//!
//! ```text
//! idle ── 0, 8, 55 + 41 … ──► ready ── 2 ──► ident ── 3 ──► standby ── 9, 7 ──► transfer ◄── 17 or 18, 12 ──► data
//! ```

// Read "SD Physical Layer Simplified Specification 3.01: 4.2 Card Identification Mode, 4.3 Data Transfer Mode" first.

use core::ops::Range;

use super::block::{BLOCK, BlockDevice, Card, REFUSED, TIMEOUT};
use super::{Error, csd};

/// What a card sends after a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Nothing.
    None,
    /// 32 bits, under a checksum: R1, R6, R7.
    Short,
    /// Likewise, and the card may be busy afterwards: R1b.
    ShortBusy,
    /// 32 bits without a checksum: R3.
    Bare,
    /// 128 bits, the last eight of them a checksum or zero: R2.
    Long,
}

/// What goes to a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Command {
    /// Its number.
    pub index: u8,
    /// Its argument.
    pub argument: u32,
    /// What comes back.
    pub answer: Answer,
}

/// A controller, with a slot of its own.
///
/// Failures come with one of the codes in [`block`](super::block), and leave the controller ready for the next command.
pub trait Host {
    /// Whether [`start`](Self::start) reads while the processor goes on.
    const BACKGROUND: bool = false;

    /// Resets the controller: one data line, the card's clock at 400 kHz or less, and so many of its ticks that a card
    /// is awake, 74.
    ///
    /// # Errors
    /// The controller does not come up.
    fn reset(&mut self) -> Result<(), i32>;

    /// Four data lines from now on, and the card's clock at 25 MHz or the next lower rate.
    ///
    /// # Errors
    /// The controller does not do it.
    fn speed_up(&mut self) -> Result<(), i32>;

    /// Sends a command that moves no data, and returns the answer in the lowest bits.
    ///
    /// # Errors
    /// No answer, or a damaged one.
    fn command(&mut self, command: Command) -> Result<u128, i32>;

    /// Sends a command that lets the card send blocks, fills `buf`, and then sends [`STOP`] if it was [`READ_MULTIPLE`].
    ///
    /// # Errors
    /// No answer, no data, or damaged ones; whether the card still sends is not known.
    fn read(&mut self, command: Command, buf: &mut [u8]) -> Result<(), i32>;

    /// Starts what [`read`](Self::read) does, into `buf[at]`, and keeps `buf` until [`finish`](Self::finish).
    ///
    /// # Errors
    /// Not this way, or not now: `buf` comes back, and nothing was started.
    fn start(&mut self, command: Command, buf: &'static mut [u8], at: Range<usize>) -> Result<(), &'static mut [u8]> {
        let _ = (command, at);
        Err(buf)
    }

    /// Waits for what was started, and gives the buffer back; `None` if nothing was.
    fn finish(&mut self) -> Option<(&'static mut [u8], Result<(), i32>)> {
        None
    }

    /// Lets this time pass, in microseconds, or a little more.
    fn pause(&mut self, us: u32);
}

const GO_IDLE: u8 = 0;
const ALL_SEND_CID: u8 = 2;
const SEND_ADDRESS: u8 = 3;
const APP_SET_BUS_WIDTH: u8 = 6;
const SELECT: u8 = 7;
const SEND_IF_COND: u8 = 8;
const SEND_CSD: u8 = 9;
/// Ends what [`READ_MULTIPLE`] began.
pub const STOP: u8 = 12;
const SET_BLOCKLEN: u8 = 16;
/// Lets the card send one block.
pub const READ_SINGLE: u8 = 17;
/// Lets the card send blocks until it is told to stop.
pub const READ_MULTIPLE: u8 = 18;
const APP_SEND_OP_COND: u8 = 41;
const APP: u8 = 55;

/// 2.7 to 3.6 V, and bits that must come back.
const VOLTAGE_AND_PATTERN: u32 = 0x1aa;
/// All voltages up to 3.6 V.
const VOLTAGES: u32 = 0x00ff_8000;
const HIGH_CAPACITY: u32 = 1 << 30;
const AWAKE: u32 = 1 << 31;
const FOUR_LINES: u32 = 0b10;
/// Bits of a card's status that say that it does not do what it was told: out of range, wrong address or length, error.
const REFUSALS: u32 = 0b111 << 29 | 1 << 26 | 0b11 << 19;

/// A card may take a second to wake up; it is asked this often.
const WAKE_TRIES: usize = 200;
const WAKE_PAUSE_US: u32 = 5_000;

/// A controller and the card in its slot, in any state.
#[derive(Debug)]
pub struct SdHost<H> {
    host: H,
    address: u32,   // the card's, << 16
    by_block: bool, // it counts blocks, not bytes: SDHC and SDXC
}

impl<H: Host> SdHost<H> {
    /// A slot whose card nobody has talked to.
    pub fn new(host: H) -> Self {
        SdHost { host, address: 0, by_block: false }
    }

    fn command(&mut self, index: u8, argument: u32, answer: Answer) -> Result<u128, i32> {
        self.host.command(Command { index, argument, answer })
    }

    /// A command that answers with the card's status, which must show no refusal.
    fn told(&mut self, index: u8, argument: u32, answer: Answer) -> Result<(), i32> {
        match self.command(index, argument, answer)? as u32 & REFUSALS {
            0 => Ok(()),
            _ => Err(REFUSED),
        }
    }

    /// A command of the application class.
    fn app_command(&mut self, index: u8, argument: u32, answer: Answer) -> Result<u128, i32> {
        self.command(APP, self.address, Answer::Short)?;
        self.command(index, argument, answer)
    }

    /// From power-up to the card's first sign of life.
    fn wake(&mut self) -> Result<(), i32> {
        self.address = 0;
        self.host.reset()?;
        self.command(GO_IDLE, 0, Answer::None)?;
        // A card of version 2 repeats this; an older one is silent.
        let echo = self.command(SEND_IF_COND, VOLTAGE_AND_PATTERN, Answer::Short);
        let version_2 = echo.is_ok_and(|echo| echo as u32 & 0xfff == VOLTAGE_AND_PATTERN);
        let wanted = VOLTAGES | if version_2 { HIGH_CAPACITY } else { 0 };
        for _ in 0..WAKE_TRIES {
            let conditions = self.app_command(APP_SEND_OP_COND, wanted, Answer::Bare)? as u32;
            if conditions & AWAKE != 0 {
                self.by_block = conditions & HIGH_CAPACITY != 0;
                return Ok(());
            }
            self.host.pause(WAKE_PAUSE_US);
        }
        Err(TIMEOUT)
    }

    /// Selects the card that woke up, and says what it is.
    fn select(&mut self) -> Result<Card, i32> {
        let id = self.command(ALL_SEND_CID, 0, Answer::Long)?;
        self.address = self.command(SEND_ADDRESS, 0, Answer::Short)? as u32 & 0xffff_0000;
        let csd = self.command(SEND_CSD, self.address, Answer::Long)?;
        self.told(SELECT, self.address, Answer::ShortBusy)?;
        self.told(SET_BLOCKLEN, BLOCK as u32, Answer::Short)?;
        self.app_command(APP_SET_BUS_WIDTH, FOUR_LINES, Answer::Short)?;
        self.host.speed_up()?;
        Ok(Card { blocks: csd::blocks(csd), id: id >> 8 })
    }

    /// The command that reads so many bytes.
    fn reading(&self, lba: u32, bytes: usize) -> Command {
        let index = if bytes == BLOCK { READ_SINGLE } else { READ_MULTIPLE };
        let argument = if self.by_block { lba } else { lba.saturating_mul(BLOCK as u32) };
        Command { index, argument, answer: Answer::Short }
    }

    /// After a read that failed: the card sends no more. One that was not sending refuses, which is as good.
    fn stop(&mut self) {
        let _ = self.command(STOP, 0, Answer::ShortBusy);
    }
}

impl<H: Host> BlockDevice for SdHost<H> {
    const BACKGROUND: bool = H::BACKGROUND;

    fn connect(&mut self) -> Result<Card, Error> {
        self.wake().map_err(|_| Error::NoCard)?;
        self.select().map_err(Error::Device)
    }

    fn read(&mut self, lba: u32, buf: &mut [u8]) -> Result<(), i32> {
        let command = self.reading(lba, buf.len());
        self.host.read(command, buf).inspect_err(|_| self.stop())
    }

    fn start(&mut self, lba: u32, buf: &'static mut [u8], at: Range<usize>) -> Result<(), &'static mut [u8]> {
        let command = self.reading(lba, at.len());
        self.host.start(command, buf, at)
    }

    fn finish(&mut self) -> Option<(&'static mut [u8], Result<(), i32>)> {
        let (buf, result) = self.host.finish()?;
        Some((buf, result.inspect_err(|_| self.stop())))
    }

    fn pause(&mut self, us: u32) {
        self.host.pause(us);
    }
}

#[cfg(test)]
mod tests {
    use fatfs::FatType::Fat16;
    use gptrickle_core::source::{Cause, Source};
    use std::vec::Vec;

    use super::super::Storage;
    use super::super::block::{CHANGED, CHECKSUM, GONE};
    use super::super::disk::Disk;
    use super::super::ram::{buffers, pattern, put, volume};
    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum State {
        Idle,
        Ready,
        Identified,
        Standby,
        Transfer,
        Sending,
    }

    /// A slot with a card in it that obeys the specification's state machine: what it must not be asked it does not
    /// answer.
    struct Slot<const BACKGROUND: bool> {
        bytes: Vec<u8>,
        /// The card's number and address; `None` is an empty slot.
        card: Option<u128>,
        version_2: bool,
        by_block: bool,
        state: State,
        /// The next command is of the application class.
        app: bool,
        /// So often it is asked before it is awake.
        sleepy: usize,
        four_lines: [bool; 2], // the card, the host
        sent: Vec<u8>,
        /// The command of this number, counted from 0, fails with this code.
        fails: Option<(usize, i32)>,
        started: Option<(Command, &'static mut [u8], Range<usize>)>,
        paused_us: u64,
    }

    const CSD_2: u128 = 1 << 126;

    impl<const BACKGROUND: bool> Slot<BACKGROUND> {
        fn new(bytes: Vec<u8>) -> Self {
            Slot {
                bytes,
                card: Some(7),
                version_2: true,
                by_block: true,
                state: State::Transfer,
                app: false,
                sleepy: 3,
                four_lines: [true; 2],
                sent: Vec::new(),
                fails: None,
                started: None,
                paused_us: 0,
            }
        }

        fn address(&self) -> u32 {
            self.card.map_or(0, |card| (card as u32) << 16)
        }

        /// The card's side of a command.
        fn answer(&mut self, command: Command) -> Result<u128, i32> {
            use State::*;
            let Command { index, argument, answer } = command;
            // Commands that have no second meaning keep their first.
            let app = core::mem::take(&mut self.app) && matches!(index, APP_SEND_OP_COND | APP_SET_BUS_WIDTH);
            if self.card.is_none() {
                return Err(TIMEOUT);
            }
            let (state, form, reply) = match (app, index, self.state) {
                (false, GO_IDLE, _) => {
                    self.four_lines[0] = false;
                    (Idle, Answer::None, 0)
                }
                (false, SEND_IF_COND, Idle) if self.version_2 => (Idle, Answer::Short, argument.into()),
                (false, APP, state) if state == Idle || argument == self.address() => {
                    self.app = true;
                    (state, Answer::Short, 0)
                }
                (true, APP_SEND_OP_COND, Idle) if self.sleepy > 0 => {
                    self.sleepy -= 1;
                    (Idle, Answer::Bare, VOLTAGES.into())
                }
                // A large card does not wake up for a host that cannot count blocks.
                (true, APP_SEND_OP_COND, Idle) if self.by_block && argument & HIGH_CAPACITY == 0 => {
                    (Idle, Answer::Bare, VOLTAGES.into())
                }
                (true, APP_SEND_OP_COND, Idle) => {
                    let capacity = if self.by_block { HIGH_CAPACITY } else { 0 };
                    (Ready, Answer::Bare, (AWAKE | capacity | VOLTAGES).into())
                }
                (false, ALL_SEND_CID, Ready) => (Identified, Answer::Long, self.card.unwrap_or(0) << 8),
                (false, SEND_ADDRESS, Identified) => (Standby, Answer::Short, (self.address() | 0x500).into()),
                (false, SEND_CSD, Standby) if argument == self.address() => {
                    let units = (self.bytes.len() / BLOCK).div_ceil(1024) as u128 - 1;
                    (Standby, Answer::Long, CSD_2 | units << 48)
                }
                (false, SELECT, Standby) if argument == self.address() => (Transfer, Answer::ShortBusy, 0),
                (false, SET_BLOCKLEN, Transfer) if argument == 512 => (Transfer, Answer::Short, 0),
                (true, APP_SET_BUS_WIDTH, Transfer) if argument == FOUR_LINES => {
                    self.four_lines[0] = true;
                    (Transfer, Answer::Short, 0)
                }
                (false, READ_SINGLE, Transfer) => (Transfer, Answer::Short, 0),
                (false, READ_MULTIPLE, Transfer) => (Sending, Answer::Short, 0),
                (false, STOP, Sending) => (Transfer, Answer::ShortBusy, 0),
                _ => return Err(TIMEOUT),
            };
            assert_eq!(answer, form, "command {index}");
            self.state = state;
            Ok(reply)
        }

        fn takes(&mut self, command: Command) -> Result<u128, i32> {
            let n = self.sent.len();
            self.sent.push(command.index);
            let answer = self.answer(command)?;
            match self.fails {
                // The card has heard it; the host has not heard the card.
                Some((at, code)) if at == n => Err(code),
                _ => Ok(answer),
            }
        }

        fn transfer(&mut self, command: Command, buf: &mut [u8]) -> Result<(), i32> {
            buf.fill(0xee);
            let n = self.sent.len();
            let answer = self.takes(command)?;
            assert_eq!(answer as u32 & REFUSALS, 0);
            let at = command.argument as usize * if self.by_block { BLOCK } else { 1 };
            let Some(bytes) = self.bytes.get(at..at + buf.len()) else { return Err(TIMEOUT) };
            if self.four_lines[0] != self.four_lines[1] {
                return Err(CHECKSUM);
            }
            buf.copy_from_slice(bytes);
            if self.fails.is_some_and(|(at, _)| at == n + 1) {
                // The last block is damaged; nobody has stopped the card.
                buf[bytes.len() - 1] ^= 1;
                self.sent.push(0xff);
                return Err(CHECKSUM);
            }
            if command.index == READ_MULTIPLE {
                self.takes(Command { index: STOP, argument: 0, answer: Answer::ShortBusy })?;
            }
            Ok(())
        }

        /// Takes the card out and puts one in, or none.
        fn swap(&mut self, card: Option<u128>) {
            self.card = card;
            self.state = State::Idle;
            self.four_lines[0] = false;
            self.sleepy = 3;
        }
    }

    impl<const BACKGROUND: bool> Host for Slot<BACKGROUND> {
        const BACKGROUND: bool = BACKGROUND;

        fn reset(&mut self) -> Result<(), i32> {
            self.four_lines[1] = false;
            Ok(())
        }

        fn speed_up(&mut self) -> Result<(), i32> {
            assert!(self.state == State::Transfer);
            self.four_lines[1] = true;
            Ok(())
        }

        fn command(&mut self, command: Command) -> Result<u128, i32> {
            assert!(self.started.is_none());
            self.takes(command)
        }

        fn read(&mut self, command: Command, buf: &mut [u8]) -> Result<(), i32> {
            assert!(self.started.is_none());
            self.transfer(command, buf)
        }

        fn start(
            &mut self,
            command: Command,
            buf: &'static mut [u8],
            at: Range<usize>,
        ) -> Result<(), &'static mut [u8]> {
            assert!(BACKGROUND && self.started.is_none());
            self.started = Some((command, buf, at));
            Ok(())
        }

        fn finish(&mut self) -> Option<(&'static mut [u8], Result<(), i32>)> {
            let (command, buf, at) = self.started.take()?;
            let result = self.transfer(command, &mut buf[at]);
            Some((buf, result))
        }

        fn pause(&mut self, us: u32) {
            self.paused_us += u64::from(us);
        }
    }

    fn slot<const BACKGROUND: bool>(data: &[u8]) -> Slot<BACKGROUND> {
        let mut bytes = volume(Fat16);
        put(&mut bytes, &[("model.gguf", data), ("other", &[7; 4 * BLOCK])]);
        Slot::new(bytes)
    }

    #[test]
    fn every_kind_of_card_comes_up_from_any_state() {
        use State::*;
        for (version_2, by_block) in [(true, true), (true, false), (false, false)] {
            for state in [Idle, Ready, Identified, Standby, Transfer, Sending] {
                let mut slot = Slot::<false>::new(pattern(4096 * BLOCK));
                (slot.version_2, slot.by_block, slot.state) = (version_2, by_block, state);
                let mut card = SdHost::new(slot);
                assert_eq!(card.connect(), Ok(Card { blocks: 4096, id: 7 }));
                for blocks in [1, 5] {
                    let mut buf = std::vec![0; blocks * BLOCK];
                    card.read(9, &mut buf).unwrap();
                    assert_eq!(buf, card.host.bytes[9 * BLOCK..(9 + blocks) * BLOCK]);
                }
            }
        }
    }

    #[test]
    fn the_commands_are_those_of_the_specification() {
        let mut card = SdHost::new(Slot::<false>::new(pattern(1024 * BLOCK)));
        card.host.sleepy = 1;
        card.connect().unwrap();
        assert_eq!(card.host.sent, [0, 8, 55, 41, 55, 41, 2, 3, 9, 7, 16, 55, 6]);
        card.host.sent.clear();
        card.read(0, &mut [0; BLOCK]).unwrap();
        card.read(0, &mut [0; 2 * BLOCK]).unwrap();
        assert_eq!(card.host.sent, [17, 18, 12]);
    }

    #[test]
    fn a_card_that_never_wakes_is_given_a_second() {
        let mut card = SdHost::new(Slot::<false>::new(pattern(BLOCK)));
        card.host.sleepy = usize::MAX;
        assert_eq!(card.connect(), Err(Error::NoCard));
        assert_eq!(card.host.paused_us, 1_000_000);
    }

    /// Opens the model and reads it twice, in chunks and with hints, while one command fails; what comes is the model.
    fn with_failure<const BACKGROUND: bool>(data: &[u8], fails: Option<(usize, i32)>) -> (usize, Result<(), Error>) {
        let mut slot = slot::<BACKGROUND>(data);
        slot.fails = fails;
        let mut disk = Disk::new(SdHost::new(slot), buffers(6));
        let first = disk.open().err();
        let mut source = match (first, disk.open()) {
            (None, Ok(source)) => source,
            (Some(error), Ok(_)) | (None, Err(error)) => return (0, Err(error)),
            (Some(_), Err(error)) => panic!("one failure disturbs two: {error}"),
        };
        for _ in 0..2 {
            for at in (0..data.len()).step_by(2500) {
                let len = 2500.min(data.len() - at);
                assert_eq!(source.chunk(at as u64, len), Ok(&data[at..at + len]), "{fails:?}");
                source.prefetch((at + len) as u64 % data.len() as u64, len);
            }
        }
        (disk.device().host.sent.len(), Ok(()))
    }

    #[test]
    fn whichever_command_fails_the_bytes_are_the_files() {
        let data = pattern(30 * BLOCK + 5);
        for background in [false, true] {
            let run = |fails| match background {
                true => with_failure::<true>(&data, fails),
                false => with_failure::<false>(&data, fails),
            };
            let (commands, result) = run(None);
            assert!(commands > 60 && result.is_ok());
            for code in [TIMEOUT, CHECKSUM] {
                let failed = (0..commands).filter(|&n| run(Some((n, code))).1.is_err()).count();
                // Opening is not tried again by itself: twice the commands before the first block.
                assert!(failed <= 2 * 17, "{failed} of {commands}");
            }
        }
    }

    #[test]
    fn a_card_taken_out_is_told_and_read_on_when_it_is_back() {
        let data = pattern(40 * BLOCK);
        let mut disk = Disk::new(SdHost::new(slot::<true>(&data)), buffers(6));
        let mut source = disk.open().unwrap();
        assert_eq!(source.chunk(0, 2000), Ok(&data[..2000]));
        source.prefetch(2000, 2000);
        let swap = |source: &mut super::super::disk::FileSource<'_, SdHost<Slot<true>>>, card| {
            source.device().host.swap(card);
            source.chunk(2000, 2000).map(|chunk| assert_eq!(chunk, &data[2000..4000])).map_err(|error| error.cause)
        };
        assert_eq!(swap(&mut source, None), Err(Cause::Device(GONE)));
        assert_eq!(swap(&mut source, Some(8)), Err(Cause::Device(CHANGED)));
        assert_eq!(swap(&mut source, None), Err(Cause::Device(GONE)));
        assert_eq!(swap(&mut source, Some(7)), Ok(()));
    }
}
