//! An SD card on an SPI bus. Read "SD Physical Layer Simplified Specification: SPI mode" first.
//!
//! ```text
//! command:  0x40 | index ┆ argument, big-endian, 4 bytes ┆ CRC7 and a one      then 0xff until R1, its top bit clear
//! data:     0xff … ┆ 0xfe ┆ 512 bytes ┆ CRC16, big-endian                      once a block
//! ```

use super::block::{BLOCK, BlockDevice, CHECKSUM, Card, TIMEOUT};
use super::{Error, csd};

/// The SPI bus of a card, which it has for itself: mode 0, 8 bits, most significant bit first.
pub trait Bus {
    /// Pulls the card's select line low, or lets it go.
    fn select(&mut self, on: bool);

    /// Clocks the bus at this rate or the next lower one that it can do.
    fn set_hz(&mut self, hz: u32);

    /// Sends bytes and forgets what comes back.
    fn send(&mut self, bytes: &[u8]);

    /// Sends ones, and keeps what comes back.
    fn receive(&mut self, bytes: &mut [u8]);
}

const START_HZ: u32 = 400_000;
/// What every card can do in SPI mode.
const FULL_HZ: u32 = 25_000_000;

// A card may take 100 ms for a block and 1 s to start, which is as many bits as the bus's rate says.
const BYTES_PER_BLOCK_WAIT: u32 = FULL_HZ / 8 / 10;
const START_TRIES: u32 = START_HZ / 8 / 20;

const IDLE: u8 = 0x01;
const ILLEGAL: u8 = 0x04;
const START_BLOCK: u8 = 0xfe;
const BLANK: u8 = 0xff;

/// A card, in any state.
#[derive(Debug)]
pub struct SdSpi<B> {
    bus: B,
    /// It counts blocks, not bytes: SDHC and SDXC.
    by_block: bool,
}

impl<B: Bus> SdSpi<B> {
    /// A card that nobody has talked to.
    pub fn new(bus: B) -> Self {
        SdSpi { bus, by_block: false }
    }

    /// Sends a command and returns its R1, and what follows it; the card stays selected.
    fn command(&mut self, index: u8, argument: u32, extra: &mut [u8]) -> Result<u8, i32> {
        let mut frame = [BLANK, 0x40 | index, 0, 0, 0, 0, 0];
        frame[2..6].copy_from_slice(&argument.to_be_bytes());
        frame[6] = crc7(&frame[1..6]) << 1 | 1;
        self.bus.send(&frame);
        if index == STOP {
            self.byte(); // stuffing
        }
        for _ in 0..16 {
            let r1 = self.byte();
            if r1 & 0x80 == 0 {
                self.bus.receive(extra);
                return Ok(r1);
            }
        }
        Err(TIMEOUT)
    }

    /// A command that must answer without an error bit; whether the card is idle is not asked.
    fn expect(&mut self, index: u8, argument: u32, extra: &mut [u8]) -> Result<(), i32> {
        match self.command(index, argument, extra)? & !IDLE {
            0 => Ok(()),
            r1 => Err(r1.into()),
        }
    }

    fn byte(&mut self) -> u8 {
        let mut byte = [BLANK];
        self.bus.receive(&mut byte);
        byte[0]
    }

    /// Receives one block of data of any length.
    fn data(&mut self, buf: &mut [u8]) -> Result<(), i32> {
        let mut tries = BYTES_PER_BLOCK_WAIT;
        loop {
            match self.byte() {
                START_BLOCK => break,
                BLANK if tries > 0 => tries -= 1,
                BLANK => return Err(TIMEOUT),
                token => return Err(token.into()),
            }
        }
        self.bus.receive(buf);
        let mut crc = [0; 2];
        self.bus.receive(&mut crc);
        if crc16(buf) == u16::from_be_bytes(crc) { Ok(()) } else { Err(CHECKSUM) }
    }

    /// Does something with the card selected, and lets it go.
    fn selected<T>(&mut self, what: impl FnOnce(&mut Self) -> Result<T, i32>) -> Result<T, i32> {
        self.bus.select(true);
        let result = what(self);
        self.bus.select(false);
        // The card lets go of the line with the next clock.
        self.byte();
        result
    }

    /// From power-up to blocks of 512 bytes; returns what the card is.
    fn start(&mut self) -> Result<Card, i32> {
        let mut reply = [0; 4];
        let version_2 = match self.command(SEND_IF_COND, VOLTAGE_AND_PATTERN, &mut reply)? {
            r1 if r1 & ILLEGAL != 0 => false,
            _ if u32::from_be_bytes(reply) & 0xfff == VOLTAGE_AND_PATTERN => true,
            _ => return Err(TIMEOUT),
        };
        let high_capacity = if version_2 { 1 << 30 } else { 0 };
        let mut tries = START_TRIES;
        loop {
            self.command(APP, 0, &mut [])?;
            match self.command(APP_SEND_OP_COND, high_capacity, &mut [])? {
                0 => break,
                IDLE if tries > 0 => tries -= 1,
                IDLE => return Err(TIMEOUT),
                r1 => return Err(r1.into()),
            }
        }
        if version_2 {
            self.expect(READ_OCR, 0, &mut reply)?;
        }
        self.by_block = version_2 && reply[0] & 0x40 != 0;
        if !self.by_block {
            self.expect(SET_BLOCKLEN, BLOCK as u32, &mut [])?;
        }
        if self.command(SEND_CSD, 0, &mut [])? & ILLEGAL != 0 {
            // QEMU's card refuses to tell its size (10.0), and says so once more to the next command, so that is one that
            // does not matter. The file system on the card has a figure of its own.
            self.command(CRC_ON_OFF, 0, &mut [])?;
            return Ok(Card { blocks: u32::MAX, id: 0 });
        }
        let mut register = [0; 16];
        self.data(&mut register)?;
        let blocks = csd::blocks(u128::from_be_bytes(register));
        self.expect(SEND_CID, 0, &mut [])?;
        self.data(&mut register)?;
        Ok(Card { blocks, id: u128::from_be_bytes(register) >> 8 })
    }

    fn address(&self, lba: u32) -> u32 {
        if self.by_block { lba } else { lba.saturating_mul(BLOCK as u32) }
    }
}

const GO_IDLE: u8 = 0;
const SEND_IF_COND: u8 = 8;
const SEND_CSD: u8 = 9;
const SEND_CID: u8 = 10;
const STOP: u8 = 12;
const SET_BLOCKLEN: u8 = 16;
const READ_SINGLE: u8 = 17;
const READ_MULTIPLE: u8 = 18;
const APP_SEND_OP_COND: u8 = 41;
const APP: u8 = 55;
const READ_OCR: u8 = 58;
const CRC_ON_OFF: u8 = 59;

/// 2.7 to 3.6 V, and bits that must come back.
const VOLTAGE_AND_PATTERN: u32 = 0x1aa;

impl<B: Bus> BlockDevice for SdSpi<B> {
    fn connect(&mut self) -> Result<Card, Error> {
        self.bus.set_hz(START_HZ);
        self.bus.select(false);
        // 74 clocks at least before the first command.
        self.bus.send(&[BLANK; 10]);
        let idle = (0..10).any(|_| self.selected(|card| card.command(GO_IDLE, 0, &mut [])) == Ok(IDLE));
        if !idle {
            return Err(Error::NoCard);
        }
        let card = self.selected(Self::start).map_err(Error::Device)?;
        self.bus.set_hz(FULL_HZ);
        Ok(card)
    }

    fn read(&mut self, lba: u32, buf: &mut [u8]) -> Result<(), i32> {
        let address = self.address(lba);
        self.selected(|card| {
            if buf.len() == BLOCK {
                card.expect(READ_SINGLE, address, &mut [])?;
                return card.data(buf);
            }
            card.expect(READ_MULTIPLE, address, &mut [])?;
            let result = buf.chunks_exact_mut(BLOCK).try_for_each(|block| card.data(block));
            // The answer is not looked at: cards differ, and a failure shows in the next command.
            let _ = card.command(STOP, 0, &mut []);
            let mut tries = BYTES_PER_BLOCK_WAIT;
            while card.byte() != BLANK && tries > 0 {
                tries -= 1;
            }
            result
        })
    }

    fn pause(&mut self, us: u32) {
        // Nobody listens while the card is not selected: the clock is all that is wanted of it.
        let mut bits = u64::from(us) * u64::from(FULL_HZ / 1_000_000);
        while bits > 0 {
            self.bus.send(&[BLANK; 32]);
            bits = bits.saturating_sub(32 * 8);
        }
    }
}

/// The checksum of a command: x⁷ + x³ + 1.
fn crc7(bytes: &[u8]) -> u8 {
    let mut crc = 0u8; // in the upper seven bits
    for &byte in bytes {
        crc ^= byte;
        for _ in 0..8 {
            crc = if crc & 0x80 != 0 { crc << 1 ^ 0x09 << 1 } else { crc << 1 };
        }
    }
    crc >> 1
}

/// The checksum of a block: x¹⁶ + x¹² + x⁵ + 1.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc: u16, &byte| {
        let mut x = crc >> 8 ^ u16::from(byte);
        x ^= x >> 4;
        crc << 8 ^ x << 12 ^ x << 5 ^ x
    })
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::vec;
    use std::vec::Vec;

    use super::super::block::{CHANGED, GONE, Persistent};
    use super::super::ram::pattern;
    use super::*;

    #[test]
    fn checksums_from_the_specification() {
        // CMD0, CMD17 with argument 0, and the response to it; a block of 512 bytes 0xff.
        assert_eq!(crc7(&[0x40, 0, 0, 0, 0]), 0b100_1010);
        assert_eq!(crc7(&[0x51, 0, 0, 0, 0]), 0b010_1010);
        assert_eq!(crc7(&[0x11, 0, 0, 0x09, 0]), 0b011_0011);
        assert_eq!(crc16(&[0xff; 512]), 0x7fa1);
    }

    /// A bus with a card on it, byte by byte.
    struct Wire {
        bytes: Vec<u8>,
        card: Option<u8>, // its number
        version_2: bool,
        by_block: bool,
        /// In SPI mode, and then awake.
        up: bool,
        awake: bool,
        app: bool,
        sleepy: usize,
        selected: bool,
        frame: Vec<u8>,
        replies: VecDeque<u8>,
        /// The next block of a READ_MULTIPLE.
        sending: Option<usize>,
        /// So many blocks still to be sent come damaged.
        damaged: usize,
        /// So many commands still to come are not heard.
        deaf: usize,
        clocked: u64, // bytes while not selected
    }

    impl Wire {
        fn new(blocks: usize) -> Self {
            Wire {
                bytes: pattern(blocks * BLOCK),
                card: Some(1),
                version_2: true,
                by_block: true,
                up: false,
                awake: false,
                app: false,
                sleepy: 2,
                selected: false,
                frame: Vec::new(),
                replies: VecDeque::new(),
                sending: None,
                damaged: 0,
                deaf: 0,
                clocked: 0,
            }
        }

        fn swap(&mut self, card: Option<u8>) {
            (self.card, self.up, self.awake, self.sending, self.sleepy) = (card, false, false, None, 2);
            self.replies.clear();
        }

        fn data(&mut self, bytes: &[u8]) {
            let crc = crc16(bytes) ^ if self.damaged > 0 { 1 } else { 0 };
            self.damaged = self.damaged.saturating_sub(1);
            self.replies.extend([BLANK, START_BLOCK]);
            self.replies.extend(bytes);
            self.replies.extend(crc.to_be_bytes());
        }

        fn block(&mut self, n: usize) {
            match self.bytes.get(n * BLOCK..(n + 1) * BLOCK).map(<[u8]>::to_vec) {
                Some(block) => self.data(&block),
                None => self.replies.extend([BLANK, 0b1000]), // out of range
            }
        }

        fn command(&mut self, frame: &[u8]) {
            assert_eq!(frame[5], crc7(&frame[..5]) << 1 | 1);
            let (index, argument) = (frame[0] & 0x3f, u32::from_be_bytes(frame[1..5].try_into().unwrap()));
            if self.card.is_none() || self.deaf > 0 {
                self.deaf = self.deaf.saturating_sub(1);
                return;
            }
            if index == GO_IDLE {
                (self.up, self.awake, self.sending) = (true, false, None);
            }
            if !self.up {
                return;
            }
            self.replies.clear();
            let app = core::mem::replace(&mut self.app, index == APP);
            let r1 = if self.awake { 0 } else { IDLE };
            let n = argument as usize / if self.by_block { 1 } else { BLOCK };
            let capacity = if self.by_block { 0xc0 } else { 0x80 };
            self.replies.push_back(BLANK);
            match index {
                GO_IDLE | APP | SET_BLOCKLEN => self.replies.push_back(r1),
                SEND_IF_COND if self.version_2 => self.replies.extend([r1, 0, 0, 1, 0xaa]),
                APP_SEND_OP_COND if app && self.sleepy > 0 => {
                    self.sleepy -= 1;
                    self.replies.push_back(IDLE);
                }
                APP_SEND_OP_COND if app => {
                    self.awake = true;
                    self.replies.push_back(0);
                }
                READ_OCR => self.replies.extend([r1, capacity, 0xff, 0x80, 0]),
                SEND_CSD if self.awake => {
                    self.replies.push_back(0);
                    let units = (self.bytes.len() / BLOCK / 1024) as u128 - 1;
                    self.data(&(1 << 126 | units << 48).to_be_bytes());
                }
                SEND_CID if self.awake => {
                    self.replies.push_back(0);
                    self.data(&[self.card.unwrap_or(0); 16]);
                }
                READ_SINGLE if self.awake => {
                    self.replies.push_back(0);
                    self.block(n);
                }
                READ_MULTIPLE if self.awake => {
                    self.replies.push_back(0);
                    self.sending = Some(n);
                }
                STOP => {
                    self.sending = None;
                    self.replies.extend([r1, 0, 0]); // and busy
                }
                _ => self.replies.push_back(r1 | ILLEGAL),
            }
        }
    }

    impl Bus for Wire {
        fn select(&mut self, on: bool) {
            self.selected = on;
            self.frame.clear();
        }

        fn set_hz(&mut self, hz: u32) {
            assert!(hz <= if self.awake { FULL_HZ } else { START_HZ } || self.card.is_none() || !self.up);
        }

        fn send(&mut self, bytes: &[u8]) {
            for &byte in bytes {
                if !self.selected {
                    self.clocked += 1;
                } else if !self.frame.is_empty() || byte & 0xc0 == 0x40 {
                    self.frame.push(byte);
                }
                if self.frame.len() == 6 {
                    let frame = core::mem::take(&mut self.frame);
                    self.command(&frame);
                }
            }
        }

        fn receive(&mut self, bytes: &mut [u8]) {
            for byte in bytes {
                if self.replies.is_empty()
                    && let Some(n) = self.sending
                    && self.selected
                {
                    self.block(n);
                    self.sending = Some(n + 1);
                }
                *byte = if self.selected { self.replies.pop_front().unwrap_or(BLANK) } else { BLANK };
            }
        }
    }

    fn read(card: &mut impl BlockDevice, lba: u32, blocks: usize) -> Result<Vec<u8>, i32> {
        let mut buf = vec![0; blocks * BLOCK];
        card.read(lba, &mut buf).map(|()| buf)
    }

    #[test]
    fn every_kind_of_card_comes_up_and_lends_its_blocks() {
        for (version_2, by_block) in [(true, true), (true, false), (false, false)] {
            let mut wire = Wire::new(2048);
            (wire.version_2, wire.by_block) = (version_2, by_block);
            let mut card = SdSpi::new(wire);
            let id = u128::from_be_bytes([1; 16]) >> 8;
            assert_eq!(card.connect(), Ok(Card { blocks: 2048, id }));
            for (lba, blocks) in [(0, 1), (7, 1), (7, 2), (2000, 48)] {
                let at = lba as usize * BLOCK;
                assert_eq!(read(&mut card, lba, blocks), Ok(card.bus.bytes[at..at + blocks * BLOCK].to_vec()));
            }
            assert!(read(&mut card, 2040, 9).is_err());
            assert!(read(&mut card, 2048, 1).is_err());
            assert_eq!(read(&mut card, 9, 1), Ok(card.bus.bytes[9 * BLOCK..10 * BLOCK].to_vec()));
        }
    }

    #[test]
    fn a_damaged_block_fails_the_command_and_leaves_the_card_ready() {
        let mut card = SdSpi::new(Wire::new(1024));
        card.connect().unwrap();
        for blocks in [1, 4] {
            card.bus.damaged = 1;
            assert_eq!(read(&mut card, 3, blocks), Err(CHECKSUM));
            assert_eq!(read(&mut card, 3, blocks), Ok(card.bus.bytes[3 * BLOCK..(3 + blocks) * BLOCK].to_vec()));
        }
        card.bus.deaf = 1;
        assert_eq!(read(&mut card, 3, 4), Err(TIMEOUT));
        assert_eq!(read(&mut card, 3, 1), Ok(card.bus.bytes[3 * BLOCK..4 * BLOCK].to_vec()));
    }

    #[test]
    fn a_card_taken_out_is_told_and_brought_up_again_when_it_is_back() {
        let mut card = Persistent::new(SdSpi::new(Wire::new(1024)));
        assert!(card.connect().is_ok());
        let content = |card: &mut Persistent<SdSpi<Wire>>| card.device().bus.bytes[..2 * BLOCK].to_vec();
        for (number, result) in [(None, Err(GONE)), (Some(2), Err(CHANGED)), (Some(1), Ok(content(&mut card)))] {
            card.device().bus.swap(number);
            assert_eq!(read(&mut card, 0, 2), result);
        }
        card.device().bus.swap(None);
        assert_eq!(card.connect(), Err(Error::NoCard));
    }

    #[test]
    fn a_pause_is_as_many_clocks() {
        let mut card = SdSpi::new(Wire::new(1024));
        card.pause(1_000);
        assert!((3125..3125 + 32).contains(&card.bus.clocked), "{}", card.bus.clocked);
    }
}
