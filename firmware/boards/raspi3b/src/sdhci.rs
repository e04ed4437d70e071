//! The SD card, through the BCM2837's SD host controller: any number of blocks in one command, carried by a DMA channel
//! where they go to whole lines of the cache, else word by word.

// Read "SD Host Controller Simplified Specification 3.00: 2 Register Set" and "Physical Layer Simplified Specification
// 3.01: 4.2 Card Identification Mode" first.

#![allow(unsafe_code)]

use core::hint;
use core::ops::Range;
use core::ptr::NonNull;

use gptrickle_firmware::storage::block::{BLOCK, BlockDevice};
use gptrickle_firmware::storage::{Error, csd};

use crate::dma::{CACHE_LINE, Dma};
use crate::micros;

// Registers, each of 32 bits.
const BLOCKS: usize = 0x04; // count << 16 | bytes in a block
const ARGUMENT: usize = 0x08;
const COMMAND: usize = 0x0c;
const RESPONSE: usize = 0x10; // four of them
const DATA: usize = 0x20;
const STATUS: usize = 0x24;
const HOST: usize = 0x28;
const CLOCK: usize = 0x2c;
const INTERRUPT: usize = 0x30;
const INTERRUPT_ENABLE: usize = 0x34;
const INTERRUPT_SIGNAL: usize = 0x38;

const STATUS_COMMAND_BUSY: u32 = 1 << 0;
const STATUS_DATA_BUSY: u32 = 1 << 1;

const HOST_FOUR_BITS: u32 = 1 << 1;
const HOST_POWER_3V3: u32 = 0b1111 << 8;

const CLOCK_INTERNAL: u32 = 1 << 0;
const CLOCK_STABLE: u32 = 1 << 1;
const CLOCK_TO_CARD: u32 = 1 << 2;
const DATA_TIMEOUT_LONGEST: u32 = 0b1110 << 16;
const RESET_ALL: u32 = 1 << 24;
const RESET_COMMAND_AND_DATA: u32 = 0b11 << 25;

const COMMAND_DONE: u32 = 1 << 0;
const TRANSFER_DONE: u32 = 1 << 1;
const READ_READY: u32 = 1 << 5;
const ANY_ERROR: u32 = 0xffff << 16 | 1 << 15;

// A command's register: its number << 24, what answers, and how data move.
const ANSWER_136: u32 = 0b01 << 16 | CHECK_CRC;
const ANSWER_48: u32 = 0b10 << 16 | CHECK_CRC | CHECK_INDEX;
const ANSWER_48_BARE: u32 = 0b10 << 16; // OCR: no checksum
const ANSWER_48_BUSY: u32 = 0b11 << 16 | CHECK_CRC | CHECK_INDEX;
const CHECK_CRC: u32 = 1 << 19;
const CHECK_INDEX: u32 = 1 << 20;
const WITH_DATA: u32 = 1 << 21;
const TO_HOST: u32 = 1 << 4;
const MANY: u32 = 1 << 5 | 1 << 2 | 1 << 1; // blocks, counted, CMD12 after the last

// The controller's clock is at most 250 MHz; the card's is that by twice the divisor.
const DIVISOR_400_KHZ: u32 = 313;
const DIVISOR_25_MHZ: u32 = 5;

/// Nothing the controller or a card does takes longer.
const PATIENCE_US: u64 = 500_000;
/// How long a card may take to wake up.
const WAKE_US: u64 = 1_000_000;

/// The code of a failure that the controller does not see; else it is the controller's error bits.
const LATE: i32 = -1;

/// A controller, and the card in it.
pub(crate) struct Sdhci {
    base: usize,
    rca: u32,            // the card's address << 16
    counts_blocks: bool, // else bytes: cards up to 2 GB
    dma: Dma,
    /// The `&'static mut [u8]` that controller and DMA are busy with.
    started: Option<NonNull<[u8]>>,
}

/// The number under which the controller asks the DMA for a transfer.
const REQUEST: u32 = 11;

impl Sdhci {
    /// The controller whose registers start at `base`.
    ///
    /// # Safety
    /// An SD host controller is at `base`, mapped as device memory, and nothing else uses it.
    pub(crate) unsafe fn new(base: usize, dma: Dma) -> Self {
        Sdhci { base, rca: 0, counts_blocks: false, dma, started: None }
    }

    fn get(&self, register: usize) -> u32 {
        // SAFETY: the caller of `new` said that a controller is there, and `register` is one of its registers.
        unsafe { ((self.base + register) as *const u32).read_volatile() }
    }

    fn set(&mut self, register: usize, value: u32) {
        // SAFETY: as in `get`; the controller's own DMA stays off, so that no register points into memory.
        unsafe { ((self.base + register) as *mut u32).write_volatile(value) }
    }

    #[inline(never)] // so that `cargo xtask bench --board` can leave waits out of its count
    fn wait(&self, register: usize, mask: u32, value: u32) -> Result<(), i32> {
        let start = micros();
        while self.get(register) & mask != value {
            if micros() - start > PATIENCE_US {
                return Err(LATE);
            }
            hint::spin_loop();
        }
        Ok(())
    }

    /// Waits for an event, and clears it.
    #[inline(never)] // likewise
    fn wait_event(&mut self, event: u32) -> Result<(), i32> {
        let start = micros();
        loop {
            let events = self.get(INTERRUPT);
            if events & ANY_ERROR != 0 {
                return Err((events >> 15) as i32);
            }
            if events & event != 0 {
                self.set(INTERRUPT, event);
                return Ok(());
            }
            if micros() - start > PATIENCE_US {
                return Err(LATE);
            }
        }
    }

    fn clock(&mut self, divisor: u32) -> Result<(), i32> {
        self.set(CLOCK, DATA_TIMEOUT_LONGEST);
        let clock = DATA_TIMEOUT_LONGEST | (divisor & 0xff) << 8 | (divisor >> 8) << 6 | CLOCK_INTERNAL;
        self.set(CLOCK, clock);
        self.wait(CLOCK, CLOCK_STABLE, CLOCK_STABLE)?;
        self.set(CLOCK, clock | CLOCK_TO_CARD);
        Ok(())
    }

    /// Sends a command, and returns the first word of its answer.
    fn command(&mut self, number: u32, how: u32, argument: u32) -> Result<u32, i32> {
        self.wait(STATUS, STATUS_COMMAND_BUSY | STATUS_DATA_BUSY, 0)?;
        self.set(INTERRUPT, u32::MAX);
        self.set(ARGUMENT, argument);
        self.set(COMMAND, number << 24 | how);
        self.wait_event(COMMAND_DONE)?;
        Ok(self.get(RESPONSE))
    }

    /// Sends a command of the application class.
    fn app_command(&mut self, number: u32, how: u32, argument: u32) -> Result<u32, i32> {
        self.command(55, ANSWER_48, self.rca)?;
        self.command(number, how, argument)
    }

    /// After a failure: the controller forgets the command.
    fn recover(&mut self) {
        self.set(CLOCK, self.get(CLOCK) | RESET_COMMAND_AND_DATA);
        // If it does not, the next command says so.
        let _ = self.wait(CLOCK, RESET_COMMAND_AND_DATA, 0);
        self.set(INTERRUPT, u32::MAX);
    }

    /// Brings up controller and card as far as the card's first answer.
    fn wake(&mut self) -> Result<(), i32> {
        self.rca = 0;
        self.set(CLOCK, RESET_ALL);
        self.wait(CLOCK, RESET_ALL, 0)?;
        self.set(HOST, HOST_POWER_3V3);
        self.set(INTERRUPT_ENABLE, u32::MAX);
        self.set(INTERRUPT_SIGNAL, 0);
        self.clock(DIVISOR_400_KHZ)?;

        self.command(0, 0, 0)?;
        // A card of version 2 repeats this; an older one is silent.
        let version_2 = self.command(8, ANSWER_48, 0x1aa).is_ok_and(|answer| answer & 0xfff == 0x1aa);
        if !version_2 {
            self.recover();
        }
        let start = micros();
        loop {
            let ocr = self.app_command(41, ANSWER_48_BARE, 0x00ff_8000 | u32::from(version_2) << 30)?;
            if ocr >> 31 != 0 {
                self.counts_blocks = ocr & 1 << 30 != 0;
                return Ok(());
            }
            if micros() - start > WAKE_US {
                return Err(LATE);
            }
        }
    }

    /// Selects the card that woke up, and returns how many blocks it has.
    fn select(&mut self) -> Result<u32, i32> {
        self.command(2, ANSWER_136, 0)?;
        self.rca = self.command(3, ANSWER_48, 0)? & 0xffff_0000;
        self.command(9, ANSWER_136, self.rca)?;
        // The controller keeps the bits from 8 on: those below were a checksum.
        let csd = [12, 8, 4, 0].iter().fold(0, |csd, at| csd << 32 | u128::from(self.get(RESPONSE + at))) << 8;
        self.clock(DIVISOR_25_MHZ)?;
        self.command(7, ANSWER_48_BUSY, self.rca)?;
        self.command(16, ANSWER_48, BLOCK as u32)?;
        self.app_command(6, ANSWER_48, 0b10)?;
        self.set(HOST, self.get(HOST) | HOST_FOUR_BITS);
        Ok(csd::blocks(csd))
    }

    /// Sends the command to read so many blocks.
    fn begin(&mut self, lba: u32, bytes: usize) -> Result<(), i32> {
        let count = (bytes / BLOCK) as u32;
        self.set(BLOCKS, count << 16 | BLOCK as u32);
        let at = if self.counts_blocks { lba } else { lba.saturating_mul(BLOCK as u32) };
        match count {
            1 => self.command(17, ANSWER_48 | WITH_DATA | TO_HOST, at)?,
            _ => self.command(18, ANSWER_48 | WITH_DATA | TO_HOST | MANY, at)?,
        };
        Ok(())
    }

    /// Takes what the card sends, word by word.
    fn take(&mut self, buf: &mut [u8]) -> Result<(), i32> {
        for block in buf.chunks_exact_mut(BLOCK) {
            self.wait_event(READ_READY)?;
            for word in block.chunks_exact_mut(4) {
                word.copy_from_slice(&self.get(DATA).to_le_bytes());
            }
        }
        self.wait_event(TRANSFER_DONE)
    }

    /// Lets the DMA take what the card sends.
    ///
    /// # Safety
    /// As [`Dma::start`].
    unsafe fn let_take(&mut self, buf: *mut [u8]) {
        // SAFETY: the caller says so.
        unsafe { self.dma.start(self.base + DATA, REQUEST, buf) };
    }

    /// Waits until the DMA has taken all.
    fn taken(&mut self) -> Result<(), i32> {
        self.dma.wait()?;
        self.wait_event(TRANSFER_DONE)
    }
}

/// Whether the DMA can write there.
fn is_lines(buf: &[u8]) -> bool {
    buf.as_ptr().addr().is_multiple_of(CACHE_LINE)
}

impl BlockDevice for Sdhci {
    const BACKGROUND: bool = true;

    fn connect(&mut self) -> Result<u32, Error> {
        self.wake().map_err(|_| Error::NoCard)?;
        self.select().map_err(Error::Device)
    }

    fn read(&mut self, lba: u32, buf: &mut [u8]) -> Result<(), i32> {
        let begun = self.begin(lba, buf.len());
        let done = begun.and_then(|()| match is_lines(buf) {
            true => {
                // SAFETY: nothing touches the buffer before `taken` returns.
                unsafe { self.let_take(buf) };
                self.taken()
            }
            false => self.take(buf),
        });
        done.inspect_err(|_| self.recover())
    }

    fn start(&mut self, lba: u32, buf: &'static mut [u8], at: Range<usize>) -> Result<(), &'static mut [u8]> {
        if self.started.is_some() || !is_lines(&buf[at.clone()]) {
            return Err(buf);
        }
        if self.begin(lba, at.len()).is_err() {
            self.recover();
            return Err(buf);
        }
        // SAFETY: `started` keeps the buffer until `finish` has waited.
        unsafe { self.let_take(&mut buf[at]) };
        self.started = Some(NonNull::from(buf));
        Ok(())
    }

    fn finish(&mut self) -> Option<(&'static mut [u8], Result<(), i32>)> {
        let mut buf = self.started.take()?;
        let result = self.taken().inspect_err(|_| self.recover());
        // SAFETY: the `&'static mut [u8]` that `start` was given, to which nothing writes any more.
        Some((unsafe { buf.as_mut() }, result))
    }
}
