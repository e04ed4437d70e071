//! The boards that firmware is built for, one entry each: what they are, how they are built, and how they are emulated or
//! flashed.
//!
//! Everything that differs between boards outside `firmware/boards/<name>` is in this table.

use anyhow::{Context, Result, bail};
use std::path::PathBuf;

use crate::process::root;

/// One board.
#[derive(Clone, Debug)]
pub(crate) struct Board {
    /// Also its folder in `firmware/boards`, and with `gptrickle-` before it its package, unless several share one.
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
    /// What the linker may fill.
    pub(crate) room: Room,
    pub(crate) runs: Runs,
    /// The largest model that runs, and in what context.
    pub(crate) fits: &'static str,
}

/// The memory that an image is linked for, in bytes: `memory.x` as the sizes are measured against.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Room {
    /// Code, constants and first values of variables in one memory, variables and stack in another.
    Apart { flash: u64, ram: u64 },
    /// All of it in one RAM.
    Together(u64),
}

/// What carries the firmware out.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Runs {
    /// QEMU; every test run starts it.
    Emulated(Emulator),
    /// A board on a desk, through its debug port. `chip` is what probe-rs calls the processor.
    Flashed {
        chip: &'static str,
        /// Whether the chip has no flash: its firmware lies in RAM, and a reset loses it.
        in_ram: bool,
    },
    /// A board on a desk that boots from the card that holds the model.
    FromCard(Boot),
}

/// An emulator, and what of its command line does not depend on the model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Emulator {
    pub(crate) qemu: &'static str,
    pub(crate) machine: &'static [&'static str],
}

/// What a board looks for on its card, beside the model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Boot {
    /// The firmware's file.
    pub(crate) image: &'static str,
    /// What goes into `config.txt`.
    pub(crate) settings: &'static str,
    /// Files of the board's maker, which are not ours to give.
    pub(crate) add: &'static str,
    /// The emulated board that runs the same firmware.
    pub(crate) twin: &'static str,
}

/// How the model's bytes reach a board.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Storage {
    /// Memory that holds the file from this address on, and its length in the last eight bytes: the emulator or a flash
    /// tool puts both there before reset.
    Memory { address: u64, bytes: u64, larger: Larger },
    /// The root folder of a FAT32 partition on an SD card.
    SdCard,
    /// A virtio block device that holds the file from its first byte.
    Virtio,
}

impl Runs {
    fn describe(self) -> String {
        match self {
            Self::Emulated(Emulator { qemu, machine }) => format!("{qemu} {}", machine.join(" ")),
            Self::Flashed { chip, .. } => format!("on the desk: probe-rs, {chip}"),
            Self::FromCard(Boot { image, .. }) => format!("on the desk: {image} on its card"),
        }
    }
}

/// Where a model comes from that is larger than the memory for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Larger {
    /// It cannot be run.
    Nowhere,
    /// The firmware asks the host for the file by its name, its second semihosting argument.
    HostFile,
    /// As with [`Storage::SdCard`].
    Card,
}

impl Storage {
    fn describe(self) -> String {
        match self {
            Self::Memory { bytes, larger, .. } => {
                let larger = match larger {
                    Larger::Nowhere => "",
                    Larger::HostFile => ", else semihosting file",
                    Larger::Card => ", else SD card",
                };
                format!("memory, {} MiB{larger}", bytes >> 20)
            }
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
        storage: Storage::Memory { address: 0x6000_0000, bytes: 2 << 30, larger: Larger::Nowhere },
        target: "thumbv8m.main-none-eabihf",
        // Integer Helium. Not cortex-m55: with it floats go through Helium too, which flushes subnormals to other bits.
        rustflags: &["-Ctarget-cpu=cortex-m33", "-Ctarget-feature=+mve,+dsp,+lob"],
        kernel: "helium",
        room: Room::Apart { flash: 512 << 10, ram: 512 << 10 },
        runs: Runs::Emulated(Emulator { qemu: "qemu-system-arm", machine: &["-M", "mps3-an547"] }),
        fits: "DistilGPT2, context 1024",
    },
    Board {
        name: "mps2-an500",
        core: "Cortex-M7",
        ram: "8 + 16 MiB",
        storage: Storage::Memory { address: 0x6000_0000, bytes: 16 << 20, larger: Larger::HostFile },
        target: "thumbv7em-none-eabihf",
        rustflags: &[],
        kernel: "dsp",
        room: Room::Apart { flash: 4 << 20, ram: 4 << 20 },
        runs: Runs::Emulated(Emulator { qemu: "qemu-system-arm", machine: &["-M", "mps2-an500"] }),
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
        room: Room::Apart { flash: 256 << 10, ram: 64 << 10 },
        runs: Runs::Emulated(Emulator { qemu: "qemu-system-arm", machine: &["-M", "lm3s6965evb"] }),
        fits: "stories, context 12",
    },
    RASPI3B,
    Board {
        name: "raspi4b",
        core: "Cortex-A72",
        ram: "2 GiB",
        runs: Runs::Emulated(Emulator { qemu: "qemu-system-aarch64", machine: &["-M", "raspi4b"] }),
        ..RASPI3B
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
        room: Room::Together(2 << 20),
        runs: Runs::Emulated(Emulator {
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
        }),
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
        room: Room::Together(2 << 20),
        runs: Runs::Emulated(Emulator {
            qemu: "qemu-system-riscv64",
            machine: &["-M", "virt", "-bios", "none", "-m", "512M", "-global", "virtio-mmio.force-legacy=false"],
        }),
        fits: "DistilGPT2, context 1024",
    },
    Board {
        name: "stm32h747i-disco",
        core: "Cortex-M7",
        ram: "1 + 32 MiB",
        // Two chips side by side: what probe-rs' algorithm for this board writes.
        storage: Storage::Memory { address: 0x9000_0000, bytes: 128 << 20, larger: Larger::Card },
        target: "thumbv7em-none-eabihf",
        rustflags: &[],
        kernel: "dsp",
        room: Room::Apart { flash: 1 << 20, ram: 512 << 10 },
        runs: Runs::Flashed { chip: "STM32H747XIHx", in_ram: false },
        fits: "DistilGPT2, context 886 (planned)",
    },
    Board {
        name: "pico-plus-2",
        core: "2 x Cortex-M33",
        ram: "520 KiB + 8 MiB",
        // Behind the firmware's first MiB.
        storage: Storage::Memory { address: 0x1010_0000, bytes: 15 << 20, larger: Larger::Card },
        target: "thumbv8m.main-none-eabihf",
        // With the DSP extension, which the target's default leaves out.
        rustflags: &["-Ctarget-cpu=cortex-m33"],
        kernel: "dsp",
        room: Room::Apart { flash: 1 << 20, ram: 512 << 10 },
        runs: Runs::Flashed { chip: "RP235x", in_ram: false },
        fits: "DistilGPT2, context 203 (planned)",
    },
    Board {
        name: "stm32n6570-dk",
        core: "Cortex-M55",
        ram: "4.2 + 32 MiB",
        storage: Storage::Memory { address: 0x7000_0000, bytes: 128 << 20, larger: Larger::Nowhere },
        target: "thumbv8m.main-none-eabihf",
        // As with mps3-an547.
        rustflags: &["-Ctarget-cpu=cortex-m33", "-Ctarget-feature=+mve,+dsp,+lob"],
        kernel: "helium",
        room: Room::Apart { flash: 768 << 10, ram: 256 << 10 },
        runs: Runs::Flashed { chip: "STM32N657", in_ram: true },
        fits: "DistilGPT2, context 886 (planned)",
    },
    Board {
        name: "esp32-p4-function-ev",
        core: "RV32IMAFC",
        ram: "768 KiB + 32 MiB",
        storage: Storage::SdCard,
        target: "riscv32imafc-unknown-none-elf",
        rustflags: &[],
        kernel: "generic",
        // Code in flash, as the boot loader maps it.
        room: Room::Apart { flash: 16 << 20, ram: 768 << 10 },
        runs: Runs::Flashed { chip: "esp32p4", in_ram: false },
        fits: "DistilGPT2, context 886 (planned)",
    },
    Board {
        name: "rpi3",
        core: "4 x Cortex-A53",
        ram: "512 MiB or 1 GiB",
        runs: Runs::FromCard(Boot {
            image: "kernel8.img",
            settings: PI_SETTINGS,
            add: "bootcode.bin, start.elf, fixup.dat",
            twin: "raspi3b",
        }),
        ..RASPI3B
    },
    Board {
        name: "rpi4",
        core: "4 x Cortex-A72",
        ram: "1 to 8 GiB",
        runs: Runs::FromCard(Boot {
            image: "kernel8.img",
            settings: PI_SETTINGS,
            add: "start4.elf, fixup4.dat",
            twin: "raspi4b",
        }),
        ..RASPI3B
    },
];

/// The emulated Raspberry Pi 3, whose firmware all of them run.
const RASPI3B: Board = Board {
    name: "raspi3b",
    core: "Cortex-A53",
    ram: "1 GiB",
    storage: Storage::SdCard,
    target: "aarch64-unknown-none",
    // With MMU and caches on unaligned loads are fine; without them the kernels run at a sixth of their speed. Compiled for
    // Cortex-A53, which runs in order, they take 5 to 7 % fewer instructions; what it has, Pi 4's Cortex-A72 has too, but
    // for cryptography, which neither chip has.
    rustflags: &["-Ctarget-feature=-strict-align,-aes,-sha2", "-Ctarget-cpu=cortex-a53"],
    kernel: "neon",
    room: Room::Together(0x1b40_0000 - 0x8_0000),
    runs: Runs::Emulated(Emulator { qemu: "qemu-system-aarch64", machine: &["-M", "raspi3b"] }),
    fits: "DistilGPT2, context 1024",
};

/// `kernel8.img` is what a Raspberry Pi starts in 64 bits by default; said once more, as an old card's settings may differ.
const PI_SETTINGS: &str = "arm_64bit=1\nkernel=kernel8.img\n";

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

    /// Its emulator.
    ///
    /// # Errors
    /// There is none; the message says what to do instead.
    pub(crate) fn emulator(&self) -> Result<Emulator> {
        match self.runs {
            Runs::Emulated(emulator) => Ok(emulator),
            Runs::FromCard(Boot { twin, .. }) => {
                bail!("{} has no emulator, but {twin} runs the same firmware: --board {twin}", self.name)
            }
            Runs::Flashed { .. } => {
                bail!("{0} has no emulator: `cargo xtask flash --board {0}` takes the firmware to the board", self.name)
            }
        }
    }

    /// What it boots from, if it boots from its card.
    pub(crate) fn boot(&self) -> Option<Boot> {
        if let Runs::FromCard(boot) = self.runs { Some(boot) } else { None }
    }

    /// Whether it runs here, in an emulator, or can only be built.
    pub(crate) fn is_emulated(&self) -> bool {
        matches!(self.runs, Runs::Emulated(_))
    }

    /// Its firmware's folder in `firmware/boards`: all of the Raspberry Pis run the same.
    fn firmware(&self) -> &'static str {
        match self.name {
            "raspi3b" | "raspi4b" | "rpi3" | "rpi4" => "raspi",
            name => name,
        }
    }

    pub(crate) fn package(&self) -> String {
        format!("gptrickle-{}", self.firmware())
    }

    pub(crate) fn folder(&self) -> PathBuf {
        root().join("firmware/boards").join(self.firmware())
    }
}

/// The table for `cargo xtask boards`.
pub(crate) fn table() -> String {
    let head = ["board", "core", "RAM", "what fits", "model in", "target", "how run"].map(str::to_owned);
    let row = |board: &Board| {
        let run = board.runs.describe();
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
