//! The boards that firmware is built for, one entry each: what they are, how they are built and how they are emulated.
//!
//! Everything that differs between boards outside `firmware/boards/<name>` is in this table.

use anyhow::{Context, Result};
use std::path::PathBuf;

use crate::process::root;

/// One board.
#[derive(Clone, Debug)]
pub(crate) struct Board {
    /// Also its folder in `firmware/boards`, and with `gptrickle-` before it its package.
    pub(crate) name: &'static str,
    pub(crate) core: &'static str,
    pub(crate) ram: &'static str,
    /// How the model reaches the board.
    pub(crate) storage: Storage,
    pub(crate) target: &'static str,
    /// What the target's defaults do not give, with the reason beside each use.
    pub(crate) rustflags: &'static [&'static str],
    /// What multiplies: the fastest kernel that the target and these flags stand for.
    pub(crate) kernel: &'static str,
    /// The emulator, and what of its command line does not depend on the model.
    pub(crate) qemu: &'static str,
    pub(crate) machine: &'static [&'static str],
    /// The largest model that runs, and in what context.
    pub(crate) fits: &'static str,
}

/// How the model's bytes reach a board.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Storage {
    /// The emulator puts the file into memory at this address before reset, as a debugger does with a flash; its length
    /// goes into the last eight bytes.
    Memory { address: u64, bytes: u64 },
    /// Likewise while it fits. If not, the firmware asks the host for the file by its name, its second semihosting
    /// argument.
    MemoryElseFile { address: u64, bytes: u64 },
    /// The root folder of a FAT32 partition on an SD card.
    SdCard,
    /// A virtio block device that holds the file from its first byte.
    Virtio,
}

impl Storage {
    fn describe(self) -> String {
        match self {
            Self::Memory { bytes, .. } => format!("memory, {} MiB", bytes >> 20),
            Self::MemoryElseFile { bytes, .. } => format!("memory up to {} MiB, else semihosting file", bytes >> 20),
            Self::SdCard => "SD card, FAT32".into(),
            Self::Virtio => "virtio block device".into(),
        }
    }
}

/// All boards, the fastest to emulate first.
pub(crate) const BOARDS: &[Board] = &[
    Board {
        name: "mps3-an547",
        core: "Cortex-M55",
        ram: "2 GiB",
        storage: Storage::Memory { address: 0x6000_0000, bytes: 2 << 30 },
        target: "thumbv8m.main-none-eabihf",
        // Integer Helium. Not cortex-m55: with it floats go through Helium too, which flushes subnormals to other bits.
        rustflags: &["-Ctarget-cpu=cortex-m33", "-Ctarget-feature=+mve,+dsp,+lob"],
        kernel: "helium",
        qemu: "qemu-system-arm",
        machine: &["-M", "mps3-an547"],
        fits: "DistilGPT2, context 1024",
    },
    Board {
        name: "mps2-an500",
        core: "Cortex-M7",
        ram: "8 + 16 MiB",
        storage: Storage::MemoryElseFile { address: 0x6000_0000, bytes: 16 << 20 },
        target: "thumbv7em-none-eabihf",
        rustflags: &[],
        kernel: "dsp",
        qemu: "qemu-system-arm",
        machine: &["-M", "mps2-an500"],
        fits: "DistilGPT2, context 449",
    },
    Board {
        name: "lm3s6965evb",
        core: "Cortex-M3",
        ram: "64 KiB",
        storage: Storage::SdCard,
        target: "thumbv7m-none-eabi",
        // Its flash holds 256 KiB; at level 3 the code takes 340.
        rustflags: &["-Copt-level=s"],
        kernel: "generic",
        qemu: "qemu-system-arm",
        machine: &["-M", "lm3s6965evb"],
        fits: "stories, context 12",
    },
    Board {
        name: "raspi3b",
        core: "Cortex-A53",
        ram: "1 GiB",
        storage: Storage::SdCard,
        target: "aarch64-unknown-none",
        // With MMU and caches on unaligned loads are fine; without them the kernels run at a sixth of their speed.
        rustflags: &["-Ctarget-feature=-strict-align"],
        kernel: "neon",
        qemu: "qemu-system-aarch64",
        machine: &["-M", "raspi3b"],
        fits: "DistilGPT2, context 1024",
    },
    Board {
        name: "aarch64-virt",
        core: "Cortex-A76",
        ram: "512 MiB",
        storage: Storage::Virtio,
        target: "aarch64-unknown-none",
        // With MMU and caches on unaligned loads are fine; without them the kernels run at a sixth of their speed.
        rustflags: &["-Ctarget-feature=-strict-align"],
        kernel: "neon-dot",
        qemu: "qemu-system-aarch64",
        machine: &[
            "-M",
            "virt",
            "-cpu",
            "cortex-a76",
            "-nic",
            "none",
            "-m",
            "512M",
            "-global",
            "virtio-mmio.force-legacy=false",
        ],
        fits: "DistilGPT2, context 1024",
    },
    Board {
        name: "riscv64-virt",
        core: "RV64GC",
        ram: "512 MiB",
        storage: Storage::Virtio,
        target: "riscv64gc-unknown-none-elf",
        rustflags: &[],
        kernel: "generic",
        qemu: "qemu-system-riscv64",
        machine: &["-M", "virt", "-bios", "none", "-m", "512M", "-global", "virtio-mmio.force-legacy=false"],
        fits: "DistilGPT2, context 1024",
    },
];

impl Board {
    /// The board of that name.
    ///
    /// # Errors
    /// There is none; the message lists those there are.
    pub(crate) fn named(name: &str) -> Result<&'static Self> {
        BOARDS.iter().find(|board| board.name == name).with_context(|| {
            let names: Vec<_> = BOARDS.iter().map(|board| board.name).collect();
            format!("no board is called {name}; there are {}", names.join(", "))
        })
    }

    pub(crate) fn package(&self) -> String {
        format!("gptrickle-{}", self.name)
    }

    pub(crate) fn folder(&self) -> PathBuf {
        root().join("firmware/boards").join(self.name)
    }
}

/// The table for `cargo xtask boards`.
pub(crate) fn table() -> String {
    let head = ["board", "core", "RAM", "what fits", "model in", "target", "how run"].map(str::to_owned);
    let row = |board: &Board| {
        let run = format!("{} {}", board.qemu, board.machine.join(" "));
        let storage = board.storage.describe();
        [board.name, board.core, board.ram, board.fits, &storage, board.target, &run].map(str::to_owned)
    };
    let rows: Vec<_> = std::iter::once(head).chain(BOARDS.iter().map(row)).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
            line += &format!("{cell:width$}  ");
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_every_board_once() {
        for board in BOARDS {
            assert_eq!(table().lines().filter(|line| line.split(' ').next() == Some(board.name)).count(), 1);
        }
    }
}
