//! An SD card on an SPI bus. Read "SD Physical Layer Simplified Specification: SPI mode" first.
//!
//! ```text
//! command:  0x40 | index ┆ argument, big-endian, 4 bytes ┆ CRC7 and a one      then 0xff until R1, its top bit clear
//! data:     0xff … ┆ 0xfe ┆ 512 bytes ┆ CRC16, big-endian                      once a block
//! ```

use super::block::{BLOCK, BlockDevice};
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

/// The card did not answer a command, or not in time with data.
const TIMEOUT: i32 = -1;
/// A block came with the wrong checksum.
const CHECKSUM: i32 = -2;

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

    /// From power-up to blocks of 512 bytes; returns how many the card has.
    fn start(&mut self) -> Result<u32, i32> {
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
            return Ok(u32::MAX);
        }
        let mut csd = [0; 16];
        self.data(&mut csd)?;
        Ok(csd::blocks(u128::from_be_bytes(csd)))
    }

    fn address(&self, lba: u32) -> u32 {
        if self.by_block { lba } else { lba.saturating_mul(BLOCK as u32) }
    }
}

const GO_IDLE: u8 = 0;
const SEND_IF_COND: u8 = 8;
const SEND_CSD: u8 = 9;
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
    fn connect(&mut self) -> Result<u32, Error> {
        self.bus.set_hz(START_HZ);
        self.bus.select(false);
        // 74 clocks at least before the first command.
        self.bus.send(&[BLANK; 10]);
        let idle = (0..10).any(|_| self.selected(|card| card.command(GO_IDLE, 0, &mut [])) == Ok(IDLE));
        if !idle {
            return Err(Error::NoCard);
        }
        let blocks = self.selected(Self::start).map_err(Error::Device)?;
        self.bus.set_hz(FULL_HZ);
        Ok(blocks)
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
    use super::*;

    #[test]
    fn checksums_from_the_specification() {
        // CMD0, CMD17 with argument 0, and the response to it; a block of 512 bytes 0xff.
        assert_eq!(crc7(&[0x40, 0, 0, 0, 0]), 0b100_1010);
        assert_eq!(crc7(&[0x51, 0, 0, 0, 0]), 0b010_1010);
        assert_eq!(crc7(&[0x11, 0, 0, 0x09, 0]), 0b011_0011);
        assert_eq!(crc16(&[0xff; 512]), 0x7fa1);
    }
}
