//! The card's controller: esp-hal's driver, whose DMA writes whole lines of the cache into memory inside the chip.

use esp_hal::Blocking;
use esp_hal::delay::Delay;
use esp_hal::dma::aligned::{DmaAlignedMut, InternalMemory};
use esp_hal::sdmmc::{BlockingError, BusWidth, CommandFlags, Error, ResponseLen, Slot};
use gptrickle_firmware::storage::block::{BLOCK, CHECKSUM, CONTROLLER, GONE, TIMEOUT};
use gptrickle_firmware::storage::sd_host::{Answer, Command, Host, STOP};

const START_HZ: u32 = 400_000;
const FULL_HZ: u32 = 25_000_000;

/// The controller and the card in its slot.
pub(crate) struct Sdmmc {
    slot: Slot<'static, 0, Blocking>,
    /// For a block that goes where the DMA cannot write.
    block: &'static mut InternalMemory<[u8; BLOCK]>,
}

impl Sdmmc {
    /// The controller of a slot whose pins are set.
    pub(crate) fn new(slot: Slot<'static, 0, Blocking>, block: &'static mut InternalMemory<[u8; BLOCK]>) -> Self {
        Sdmmc { slot, block }
    }

    fn set_bus(&mut self, width: BusWidth, hz: u32) -> Result<(), i32> {
        self.slot.set_bus_low_level(width, hz).map_err(code)
    }

    fn blocks(&mut self, command: Command, buf: DmaAlignedMut<'_, [u8]>) -> Result<(), i32> {
        let count = (buf.len() / BLOCK) as u32;
        let sent = self.slot.read_blocks_blocking(command.index, command.argument, buf, BLOCK as u16, count);
        sent.map(drop).map_err(blocking_code)
    }
}

impl Host for Sdmmc {
    fn reset(&mut self) -> Result<(), i32> {
        self.set_bus(BusWidth::Bit1, START_HZ)?;
        self.slot.send_init_sequence().map_err(blocking_code)
    }

    fn speed_up(&mut self) -> Result<(), i32> {
        self.set_bus(BusWidth::Bit4, FULL_HZ)
    }

    fn command(&mut self, command: Command) -> Result<u128, i32> {
        let Command { index, argument, answer } = command;
        let (len, check) = match answer {
            Answer::None => (ResponseLen::None, false),
            Answer::Short | Answer::ShortBusy => (ResponseLen::Short, true),
            Answer::Bare => (ResponseLen::Short, false),
            Answer::Long => (ResponseLen::Long, true),
        };
        let stop_abort = index == STOP;
        let flags = CommandFlags { wait_complete: !stop_abort, stop_abort, busy: answer == Answer::ShortBusy };
        let words = self.slot.command_blocking(index, argument, len, check, flags).map_err(blocking_code)?;
        Ok(match answer {
            Answer::Long => words.into_iter().rev().map(u128::from).fold(0, |answer, word| answer << 32 | word),
            _ => words[0].into(),
        })
    }

    fn read(&mut self, command: Command, buf: &mut [u8]) -> Result<(), i32> {
        if let Ok(buf) = DmaAlignedMut::new(&mut *buf) {
            return self.blocks(command, buf);
        }
        if buf.len() != BLOCK {
            // Longer ones are the application's own, which are aligned.
            return Err(CONTROLLER);
        }
        let Command { index, argument, .. } = command;
        let block = self.block.get_mut().unsize();
        self.slot.read_blocks_blocking(index, argument, block, BLOCK as u16, 1).map_err(blocking_code)?;
        buf.copy_from_slice(&*self.block.get_mut());
        Ok(())
    }

    fn pause(&mut self, us: u32) {
        Delay::new().delay_micros(us);
    }
}

/// The code of a failure.
fn code(error: Error) -> i32 {
    match error {
        Error::Timeout | Error::ResponseTimeout | Error::DataTimeout => TIMEOUT,
        Error::ResponseCrc | Error::DataCrc | Error::StartBitError | Error::ResponseError => CHECKSUM,
        Error::NoCard => GONE,
        _ => CONTROLLER,
    }
}

fn blocking_code(error: BlockingError) -> i32 {
    match error {
        BlockingError::Op(error) => code(error),
        _ => CONTROLLER,
    }
}
