//! Boards that memory and speed are planned for.

/// A board, as far as a plan needs to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Board {
    /// What it is called, as in `firmware/boards` where it has firmware.
    pub name: &'static str,
    /// The largest file this entry is for, in bytes.
    pub largest_file: u64,
    /// Memory for arena and buffers, in bytes.
    pub ram: usize,
    /// How many buffers the model is read into; none where it is mapped.
    pub buffers: usize,
    /// Bytes of each of them.
    pub buffer: usize,
    /// Bytes of a block, where storage is read in whole ones; 0 where it gives any bytes.
    pub block: usize,
    /// Bytes a second that the model's storage gives, where that is known.
    pub bandwidth: Option<u64>,
    /// What the storage is, and where its bandwidth is known from.
    pub storage: &'static str,
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const BLOCK: usize = 512; // of SD cards and virtio disks
const ANY: u64 = u64::MAX;

/// Memory is what the firmware takes, and the datasheet's where there is none yet. Bandwidths say whose they are: an
/// emulator's tells what to expect of the emulator, not of the board.
pub const BOARDS: [Board; 16] = [
    Board {
        name: "mps3-an547",
        largest_file: 1792 << 20, // the arena takes the rest of 2 GiB of DDR
        ram: 256 * MIB,
        buffers: 0,
        buffer: 0,
        block: 0,
        bandwidth: None,
        storage: "DDR, mapped",
    },
    Board {
        name: "mps2-an500",
        largest_file: (16 << 20) - 8,
        ram: 3584 * KIB,
        buffers: 0,
        buffer: 0,
        block: 0,
        bandwidth: None,
        storage: "PSRAM, mapped",
    },
    Board {
        name: "mps2-an500",
        largest_file: ANY,
        ram: 16 * MIB + 64 * KIB, // PSRAM, and the buffer in SSRAM
        buffers: 1,
        buffer: 64 * KIB,
        block: 0,
        bandwidth: Some(1_300_000_000),
        storage: "a host's file by semihosting, measured in the emulator",
    },
    RASPI,
    Board {
        name: "riscv64-virt",
        largest_file: ANY,
        ram: 256 * MIB + 512 * KIB,
        buffers: 2,
        buffer: 256 * KIB,
        block: BLOCK,
        bandwidth: Some(600_000_000),
        storage: "virtio disk, measured in the emulator (given -m 512M)",
    },
    Board {
        name: "aarch64-virt",
        largest_file: ANY,
        ram: 256 * MIB + 512 * KIB,
        buffers: 2,
        buffer: 256 * KIB,
        block: BLOCK,
        bandwidth: Some(600_000_000),
        storage: "virtio disk, measured in the emulator (given -m 512M)",
    },
    Board {
        name: "lm3s6965evb",
        largest_file: ANY,
        ram: 54 * KIB,
        buffers: 2,
        buffer: 2 * KIB,
        block: BLOCK,
        bandwidth: Some(960_000),
        storage: "SD card on SPI, measured in the emulator",
    },
    Board {
        name: "stm32h747i-disco",
        largest_file: (128 << 20) - 8,
        ram: 32 * MIB,
        buffers: 0,
        buffer: 0,
        block: 0,
        bandwidth: Some(50_000_000),
        storage: "two QSPI flashes, mapped: what four bits of each at 50 MHz make, not measured",
    },
    Board {
        name: "stm32h747i-disco",
        largest_file: ANY,
        ram: 32 * MIB + 128 * KIB, // SDRAM, and the buffers in SRAM
        buffers: 2,
        buffer: 64 * KIB,
        block: BLOCK,
        bandwidth: Some(12_500_000),
        storage: "SD card: what 4 bits at 25 MHz make, not measured",
    },
    Board {
        name: "stm32n6570-dk",
        largest_file: (128 << 20) - 8,
        ram: 32 * MIB,
        buffers: 0,
        buffer: 0,
        block: 0,
        bandwidth: Some(50_000_000),
        storage: "octo flash, mapped: what 8 bits at 50 MHz make, not measured",
    },
    Board {
        name: "pico-plus-2",
        largest_file: (15 << 20) - 8, // the firmware has the first MiB
        ram: 8 * MIB,
        buffers: 0,
        buffer: 0,
        block: 0,
        bandwidth: None,
        storage: "QSPI flash, mapped; its bandwidth was not measured",
    },
    Board {
        name: "pico-plus-2",
        largest_file: ANY,
        ram: 8 * MIB + 64 * KIB, // PSRAM, and the buffers in SRAM
        buffers: 2,
        buffer: 32 * KIB,
        block: BLOCK,
        bandwidth: Some(3_000_000),
        storage: "SD card on SPI; about 3 MB/s are assumed, not measured",
    },
    Board {
        name: "esp32-p4-function-ev",
        largest_file: ANY,
        ram: 32 * MIB + 128 * KIB, // PSRAM, and the buffers in SRAM
        buffers: 2,
        buffer: 64 * KIB,
        block: BLOCK,
        bandwidth: Some(12_500_000),
        storage: "SD card: what 4 bits at 25 MHz make, not measured",
    },
    Board { name: "raspi4b", ..RASPI },
    Board { name: "rpi3", bandwidth: Some(12_500_000), storage: CARD_OF_A_PI, ..RASPI },
    Board { name: "rpi4", bandwidth: Some(12_500_000), storage: CARD_OF_A_PI, ..RASPI },
];

/// The emulated Raspberry Pi 3, whose firmware all of them run.
const RASPI: Board = Board {
    name: "raspi3b",
    largest_file: ANY,
    ram: 256 * MIB + 512 * KIB,
    buffers: 2,
    buffer: 256 * KIB,
    block: BLOCK,
    bandwidth: Some(2_500_000),
    storage: "SD card by SDHCI, measured in the emulator, which has no DMA there",
};

const CARD_OF_A_PI: &str = "SD card: what 4 bits at 25 MHz make, not measured";

impl Board {
    /// The entry for a board and a file of so many bytes.
    ///
    /// # Errors
    /// No board is called that, or none of that name holds such a file; in one line.
    pub fn find(name: &str, file_bytes: u64) -> Result<Board, String> {
        let mut called: Vec<_> = BOARDS.iter().filter(|board| board.name == name).collect();
        called.retain(|board| board.largest_file >= file_bytes);
        match (called.first(), BOARDS.iter().rfind(|board| board.name == name)) {
            (Some(board), _) => Ok(**board),
            (None, Some(board)) => {
                Err(format!("{name} holds files of up to {} bytes, this one has {file_bytes}", board.largest_file))
            }
            (None, None) => Err(format!("there is no board {name}")),
        }
    }

    /// The longest chunk that a buffer of so many bytes lends: a block's worth less a byte is lost where whole ones are
    /// read, as a chunk seldom begins and ends on a block's edge.
    pub fn lends(&self, buffer: usize) -> usize {
        match self.block {
            0 => buffer,
            block => (buffer / block * block).saturating_sub(block - 1),
        }
    }

    /// The least buffer that lends a row of so many bytes.
    pub fn buffer_for(&self, row: usize) -> usize {
        match self.block {
            0 => row,
            block => (row + block - 1).next_multiple_of(block),
        }
    }
}
