//! The SD host controller: any number of blocks in one command, carried by a DMA channel where it has one and they go to
//! whole lines of the cache, else word by word.

// Read "SD Host Controller Simplified Specification 3.00: 2 Register Set" first.

#![allow(unsafe_code)]

use core::hint;
use core::ops::Range;
use core::ptr::NonNull;

use gptrickle_firmware::storage::block::{BLOCK, CHECKSUM, CONTROLLER, TIMEOUT};
use gptrickle_firmware::storage::sd_host::{Answer, Command, Host, READ_MULTIPLE};

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
const TIMEOUTS: u32 = 1 << 16 | 1 << 20;
const DAMAGES: u32 = 0b111 << 17 | 0b11 << 21;

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

const START_HZ: u32 = 400_000;
const FULL_HZ: u32 = 25_000_000;
/// 74 ticks of the slow clock, and some.
const TICKS_US: u32 = 250;

/// Nothing the controller or a card does takes longer.
const PATIENCE_US: u64 = 500_000;

/// A controller, and the card in it.
pub(crate) struct Sdhci {
    base: usize,
    hz: u32,
    dma: Option<Dma>,
    /// The `&'static mut [u8]` that controller and DMA are busy with.
    started: Option<NonNull<[u8]>>,
}

/// The number under which the controller asks the DMA for a transfer.
const REQUEST: u32 = 11;

impl Sdhci {
    /// The controller whose registers start at `base`, whose own clock runs at `hz` at most.
    ///
    /// # Safety
    /// An SD host controller is at `base`, mapped as device memory, and nothing else uses it; with a DMA channel it is
    /// the one that asks under [`REQUEST`].
    pub(crate) unsafe fn new(base: usize, hz: u32, dma: Option<Dma>) -> Self {
        Sdhci { base, hz, dma, started: None }
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
                return Err(TIMEOUT);
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
            match self.get(INTERRUPT) {
                events if events & TIMEOUTS != 0 => return Err(TIMEOUT),
                events if events & DAMAGES != 0 => return Err(CHECKSUM),
                events if events & ANY_ERROR != 0 => return Err(CONTROLLER),
                events if events & event != 0 => {
                    self.set(INTERRUPT, event);
                    return Ok(());
                }
                _ if micros() - start > PATIENCE_US => return Err(TIMEOUT),
                _ => hint::spin_loop(),
            }
        }
    }

    /// The card's clock, as near below `hz` as the controller can.
    fn clock(&mut self, hz: u32) -> Result<(), i32> {
        let divisor = self.hz.div_ceil(2 * hz);
        self.set(CLOCK, DATA_TIMEOUT_LONGEST);
        let clock = DATA_TIMEOUT_LONGEST | (divisor & 0xff) << 8 | (divisor >> 8) << 6 | CLOCK_INTERNAL;
        self.set(CLOCK, clock);
        self.wait(CLOCK, CLOCK_STABLE, CLOCK_STABLE)?;
        self.set(CLOCK, clock | CLOCK_TO_CARD);
        Ok(())
    }

    fn send(&mut self, command: Command, data: u32) -> Result<(), i32> {
        let answer = match command.answer {
            Answer::None => 0,
            Answer::Long => ANSWER_136,
            Answer::Bare => ANSWER_48_BARE,
            Answer::Short => ANSWER_48,
            Answer::ShortBusy => ANSWER_48_BUSY,
        };
        self.wait(STATUS, STATUS_COMMAND_BUSY, 0)?;
        self.set(INTERRUPT, u32::MAX);
        self.set(ARGUMENT, command.argument);
        self.set(COMMAND, u32::from(command.index) << 24 | answer | data);
        self.wait_event(COMMAND_DONE)?;
        if command.answer == Answer::ShortBusy { self.wait_event(TRANSFER_DONE) } else { Ok(()) }
    }

    /// Sends the command that reads so many bytes.
    fn begin(&mut self, command: Command, bytes: usize) -> Result<(), i32> {
        self.wait(STATUS, STATUS_DATA_BUSY, 0)?;
        self.set(BLOCKS, ((bytes / BLOCK) as u32) << 16 | BLOCK as u32);
        self.send(command, WITH_DATA | TO_HOST | if command.index == READ_MULTIPLE { MANY } else { 0 })
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

    /// Waits until the DMA has taken all.
    fn taken(&mut self) -> Result<(), i32> {
        self.dma.as_mut().map_or(Ok(()), Dma::wait)?;
        self.wait_event(TRANSFER_DONE)
    }

    /// The DMA channel, if it can write there.
    fn dma_for(&mut self, buf: &[u8]) -> Option<&mut Dma> {
        self.dma.as_mut().filter(|_| buf.as_ptr().addr().is_multiple_of(CACHE_LINE))
    }

    /// After a failure: the controller forgets the command.
    fn recover(&mut self) {
        self.set(CLOCK, self.get(CLOCK) | RESET_COMMAND_AND_DATA);
        // If it does not, the next command says so.
        let _ = self.wait(CLOCK, RESET_COMMAND_AND_DATA, 0);
        self.set(INTERRUPT, u32::MAX);
    }
}

impl Host for Sdhci {
    const BACKGROUND: bool = true;

    fn reset(&mut self) -> Result<(), i32> {
        self.set(CLOCK, RESET_ALL);
        self.wait(CLOCK, RESET_ALL, 0)?;
        self.set(HOST, HOST_POWER_3V3);
        self.set(INTERRUPT_ENABLE, u32::MAX);
        self.set(INTERRUPT_SIGNAL, 0);
        self.clock(START_HZ)?;
        self.pause(TICKS_US);
        Ok(())
    }

    fn speed_up(&mut self) -> Result<(), i32> {
        self.set(HOST, self.get(HOST) | HOST_FOUR_BITS);
        self.clock(FULL_HZ)
    }

    fn command(&mut self, command: Command) -> Result<u128, i32> {
        self.send(command, 0).inspect_err(|_| self.recover())?;
        let word = |at| u128::from(self.get(RESPONSE + at));
        Ok(match command.answer {
            // The controller keeps the bits from 8 on: those below were a checksum.
            Answer::Long => [12, 8, 4, 0].into_iter().fold(0, |answer, at| answer << 32 | word(at)) << 8,
            _ => word(0),
        })
    }

    fn read(&mut self, command: Command, buf: &mut [u8]) -> Result<(), i32> {
        let data = self.base + DATA;
        let begun = self.begin(command, buf.len());
        let done = begun.and_then(|()| match self.dma_for(buf) {
            Some(dma) => {
                // SAFETY: nothing touches the buffer before `taken` returns.
                unsafe { dma.start(data, REQUEST, buf) };
                self.taken()
            }
            None => self.take(buf),
        });
        done.inspect_err(|_| self.recover())
    }

    fn start(&mut self, command: Command, buf: &'static mut [u8], at: Range<usize>) -> Result<(), &'static mut [u8]> {
        if self.started.is_some() || self.dma_for(&buf[at.clone()]).is_none() {
            return Err(buf);
        }
        if self.begin(command, at.len()).is_err() {
            self.recover();
            return Err(buf);
        }
        let data = self.base + DATA;
        if let Some(dma) = &mut self.dma {
            // SAFETY: `started` keeps the buffer until `finish` has waited.
            unsafe { dma.start(data, REQUEST, &mut buf[at]) };
        }
        self.started = Some(NonNull::from(buf));
        Ok(())
    }

    fn finish(&mut self) -> Option<(&'static mut [u8], Result<(), i32>)> {
        let mut buf = self.started.take()?;
        let result = self.taken().inspect_err(|_| self.recover());
        // SAFETY: the `&'static mut [u8]` that `start` was given, to which nothing writes any more.
        Some((unsafe { buf.as_mut() }, result))
    }

    fn pause(&mut self, us: u32) {
        let start = micros();
        while micros() - start < us.into() {
            hint::spin_loop();
        }
    }
}
