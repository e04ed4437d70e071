//! The card's controller, SDMMC1: commands, and blocks by its own DMA or word by word.

// Read "RM0399: Secure digital input/output MultiMediaCard interface" first.

#![allow(unsafe_code)]

use core::ops::Range;
use core::ptr::NonNull;

use cortex_m::{Peripherals, asm};
use embassy_stm32::pac::SDMMC1;
use embassy_stm32::pac::sdmmc::regs::{Icr, Star};
use gptrickle_firmware::storage::block::{CHECKSUM, CONTROLLER, TIMEOUT};
use gptrickle_firmware::storage::sd_host::{Answer, Command, Host, READ_MULTIPLE, STOP};

use crate::CLOCK_HZ;

/// Lines of the data cache: what the DMA fills begins and ends with one.
pub(crate) const CACHE_LINE: usize = 32;

const START_HZ: u32 = 400_000;
const FULL_HZ: u32 = 25_000_000;
/// What a card may take for a block, or to be no longer busy.
const PATIENCE_US: u32 = 500_000;

const POWER_ON: u8 = 0b11;
const FOUR_LINES: u8 = 0b01;
/// log₂ of a block's bytes.
const BLOCK_SIZE: u8 = 9;
const EVERY_FLAG: Icr = Icr(0x1fe0_0fff);

/// The controller, its clock on and its pins set.
pub(crate) struct Sdmmc {
    /// Of the controller's own clock.
    hz: u32,
    /// The `&'static mut [u8]` that the DMA is busy with, which part of it, and the command.
    started: Option<(NonNull<[u8]>, Range<usize>, u8)>,
}

impl Sdmmc {
    /// The controller on a clock of `hz`.
    ///
    /// # Safety
    /// Its clock is on, its pins are set, and nothing else uses it.
    pub(crate) unsafe fn new(hz: u32) -> Self {
        Sdmmc { hz, started: None }
    }

    fn set_hz(&mut self, hz: u32) {
        let divisor = self.hz.div_ceil(2 * hz);
        SDMMC1.clkcr().modify(|w| w.set_clkdiv(divisor as u16));
        SDMMC1.dtimer().write(|w| w.set_datatime(hz / 1000 * (PATIENCE_US / 1000)));
    }

    /// Sends a command, and returns its answer; `with_data`: blocks follow it.
    fn send(&mut self, Command { index, argument, answer }: Command, with_data: bool) -> Result<u128, i32> {
        SDMMC1.icr().write_value(EVERY_FLAG);
        SDMMC1.argr().write(|w| w.set_cmdarg(argument));
        SDMMC1.cmdr().write(|w| {
            w.set_cmdindex(index);
            w.set_waitresp(match answer {
                Answer::None => 0b00,
                Answer::Short | Answer::ShortBusy => 0b01,
                Answer::Bare => 0b10,
                Answer::Long => 0b11,
            });
            w.set_cmdtrans(with_data);
            w.set_cmdstop(index == STOP);
            w.set_cpsmen(true);
        });
        // One of these comes: the controller counts the time itself.
        loop {
            let status = SDMMC1.star().read();
            match answer {
                _ if status.ctimeout() => return Err(TIMEOUT),
                _ if status.ccrcfail() => return Err(CHECKSUM),
                Answer::None if status.cmdsent() => return Ok(0),
                _ if status.cmdrend() => break,
                _ => {}
            }
        }
        let word = |n| u128::from(SDMMC1.respr(n).read().cardstatus());
        match answer {
            Answer::Long => Ok((0..4).fold(0, |words, n| words << 32 | word(n))),
            Answer::ShortBusy => self.while_busy().map(|()| word(0)),
            _ => Ok(word(0)),
        }
    }

    fn while_busy(&mut self) -> Result<(), i32> {
        for _ in 0..PATIENCE_US {
            if !SDMMC1.star().read().busyd0() {
                return Ok(());
            }
            self.pause(1);
        }
        Err(TIMEOUT)
    }

    /// Lets so many bytes come, to this address by DMA if there is one.
    fn begin(&mut self, command: Command, bytes: usize, to: Option<u32>) -> Result<(), i32> {
        SDMMC1.dctrl().write(|w| w.set_fiforst(true));
        SDMMC1.dlenr().write(|w| w.set_datalength(bytes as u32));
        SDMMC1.dctrl().write(|w| {
            w.set_dtdir(true); // from the card
            w.set_dblocksize(BLOCK_SIZE);
        });
        SDMMC1.idmabase0r().write(|w| w.set_idmabase0(to.unwrap_or(0)));
        SDMMC1.idmactrlr().write(|w| w.set_idmaen(to.is_some()));
        self.send(command, true).map(drop)
    }

    /// Waits until all has come.
    #[inline(never)] // so that `cargo xtask bench --board` can leave waits out of its count
    fn arrived(&mut self) -> Result<(), i32> {
        loop {
            let status = SDMMC1.star().read();
            failure(status)?;
            if status.dataend() {
                return Ok(());
            }
        }
    }

    /// Ends a transfer, whatever came of it; a card that sends on is stopped.
    fn end(&mut self, index: u8, result: Result<(), i32>) -> Result<(), i32> {
        let stopped = match index {
            READ_MULTIPLE => {
                self.send(Command { index: STOP, argument: 0, answer: Answer::ShortBusy }, false).map(drop)
            }
            _ => Ok(()),
        };
        SDMMC1.idmactrlr().write(|w| w.set_idmaen(false));
        SDMMC1.dctrl().write(|w| w.set_fiforst(true));
        SDMMC1.icr().write_value(EVERY_FLAG);
        result.and(stopped)
    }

    /// Takes what comes, word by word: the controller stops the card's clock while nobody does.
    fn take(&mut self, buf: &mut [u8]) -> Result<(), i32> {
        for word in buf.chunks_exact_mut(4) {
            loop {
                let status = SDMMC1.star().read();
                failure(status)?;
                if !status.rxfifoe() {
                    break;
                }
            }
            word.copy_from_slice(&SDMMC1.fifor().read().fifodata().to_le_bytes());
        }
        self.arrived()
    }
}

fn failure(status: Star) -> Result<(), i32> {
    match () {
        () if status.dcrcfail() => Err(CHECKSUM),
        () if status.dtimeout() => Err(TIMEOUT),
        () if status.rxoverr() || status.idmate() => Err(CONTROLLER),
        () => Ok(()),
    }
}

/// Forgets what the cache holds of a buffer that the DMA fills.
///
/// # Safety
/// It begins and ends with a line of the cache, and nothing in it is still to be written to memory.
unsafe fn forget(buf: &mut [u8]) {
    // SAFETY: the cache's registers belong to nobody; the caller says the rest.
    unsafe { Peripherals::steal().SCB.invalidate_dcache_by_slice(buf) };
}

impl Host for Sdmmc {
    const BACKGROUND: bool = true;

    fn reset(&mut self) -> Result<(), i32> {
        SDMMC1.maskr().write(|_| {});
        SDMMC1.power().write(|w| w.set_pwrctrl(0));
        self.pause(1_000);
        SDMMC1.clkcr().write(|w| w.set_hwfc_en(true));
        self.set_hz(START_HZ);
        SDMMC1.power().write(|w| w.set_pwrctrl(POWER_ON));
        // Far more than 74 ticks of the card's clock.
        self.pause(1_000);
        Ok(())
    }

    fn speed_up(&mut self) -> Result<(), i32> {
        self.set_hz(FULL_HZ);
        SDMMC1.clkcr().modify(|w| w.set_widbus(FOUR_LINES));
        Ok(())
    }

    fn command(&mut self, command: Command) -> Result<u128, i32> {
        self.send(command, false)
    }

    fn read(&mut self, command: Command, buf: &mut [u8]) -> Result<(), i32> {
        let result = self.begin(command, buf.len(), None).and_then(|()| self.take(buf));
        self.end(command.index, result)
    }

    fn start(&mut self, command: Command, buf: &'static mut [u8], at: Range<usize>) -> Result<(), &'static mut [u8]> {
        let part = &mut buf[at.clone()];
        if self.started.is_some() || !part.as_ptr().addr().is_multiple_of(CACHE_LINE) {
            return Err(buf);
        }
        // SAFETY: blocks from a line's start on are whole lines; what was written to them is of no use any more.
        unsafe { forget(part) };
        if let Err(code) = self.begin(command, part.len(), Some(part.as_ptr().addr() as u32)) {
            // It is read in the foreground instead, and fails there once more if it has to.
            let _ = self.end(command.index, Err(code));
            return Err(buf);
        }
        self.started = Some((NonNull::from(buf), at, command.index));
        Ok(())
    }

    fn finish(&mut self) -> Option<(&'static mut [u8], Result<(), i32>)> {
        let (mut buf, at, index) = self.started.take()?;
        let result = self.arrived();
        let result = self.end(index, result);
        // SAFETY: the `&'static mut [u8]` that `start` was given, to which nothing writes any more.
        let buf = unsafe { buf.as_mut() };
        // What the processor read ahead while the DMA wrote.
        // SAFETY: as in `start`; nobody has written to it since.
        unsafe { forget(&mut buf[at]) };
        Some((buf, result))
    }

    fn pause(&mut self, us: u32) {
        asm::delay(us * (CLOCK_HZ / 1_000_000));
    }
}
