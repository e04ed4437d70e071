//! `cargo xtask image`: a model as a board takes it, in one file: a card, a disk, or what goes into its memory.
//!
//! ```text
//! SD card        partition table │ FAT32: model.gguf, in one piece; for a board that boots from it, its firmware too
//! virtio disk    the model, filled up to whole blocks
//! memory         ELF: the model at the memory's start, its length (u64) in the memory's last eight bytes
//! ```
//!
//! ELF, as debuggers, flash tools and QEMU all load it, and as the image of a memory of 2 GiB with a small model has to
//! have a hole.

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::boards::{Board, Boot, Larger, Storage};
use crate::card::{self, Contents};
use crate::firmware;

const BLOCK: u64 = 512;
/// Bytes of an ELF file's header, which the table of segments follows.
const ELF_HEADER: u16 = 52;
/// Where the model starts in an ELF file: behind the headers.
const ELF_DATA: u32 = 4096;

/// What to put where.
#[derive(Args)]
pub(crate) struct Options {
    /// The board; `cargo xtask boards` lists them
    #[arg(long, short)]
    board: String,
    /// The GGUF file
    #[arg(long, short)]
    model: PathBuf,
    /// File to write
    #[arg(long, short)]
    output: PathBuf,
    /// Replaces the file if it is there
    #[arg(long)]
    force: bool,
}

/// Writes the image, and says what to do with it.
///
/// # Errors
/// The file is there already, the model is none or does not fit, or a file cannot be read or written.
pub(crate) fn image(options: &Options) -> Result<()> {
    let Options { output, force, .. } = options;
    let board = Board::named(&options.board)?;
    let shown = output.display();
    if let Ok(found) = fs::metadata(output) {
        ensure!(found.is_file(), "{shown} is no regular file: name another");
        ensure!(force, "{shown} is there already: --force replaces it");
    }
    let part = output.with_added_extension("part");
    let written = write(board, &options.model, &part).and_then(|()| Ok(fs::rename(&part, output)?));
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written.with_context(|| format!("cannot make {shown}"))?;
    println!("{}", advice(board, output));
    Ok(())
}

/// What to do with an image of this board.
fn advice(board: &Board, image: &Path) -> String {
    let (image, name) = (image.display(), board.name);
    let hardware = match board.storage {
        Storage::SdCard => {
            format!("\non a card: dd if={image} of=/dev/… bs=4M conv=fsync, which erases what is on the card")
        }
        Storage::Memory { address, .. } => {
            format!("\nfor a debugger or a flash tool it is an ELF file with the model at {address:#x}")
        }
        Storage::Virtio => String::new(),
    };
    let (beside, name) = match board.boot() {
        Some(Boot { add, twin, .. }) => {
            (format!("\nadd to its partition, from github.com/raspberrypi/firmware, folder boot: {add}"), twin)
        }
        None => (String::new(), name),
    };
    format!(
        "{image}: {}{hardware}{beside}\nin the emulator: cargo xtask qemu --board {name} --image {image}",
        kind(board.storage)
    )
}

fn kind(storage: Storage) -> &'static str {
    match storage {
        Storage::SdCard => "an SD card with the model in a FAT32 partition",
        Storage::Virtio => "a disk that is the model",
        Storage::Memory { .. } => "the memory's contents",
    }
}

/// Writes the image of a model for a board.
///
/// # Errors
/// The file is no model, does not fit, or cannot be read; the image cannot be written.
pub(crate) fn write(board: &Board, model: &Path, image: &Path) -> Result<()> {
    let shown = model.display();
    let mut file = File::open(model).with_context(|| format!("cannot open {shown}"))?;
    let mut magic = Vec::new();
    Read::by_ref(&mut file).take(4).read_to_end(&mut magic).with_context(|| format!("cannot read {shown}"))?;
    ensure!(magic == *b"GGUF", "{shown} is no GGUF file");
    match board.storage {
        Storage::SdCard => card(board, model, image),
        Storage::Virtio => disk(&mut file, magic, image),
        Storage::Memory { address, bytes, larger } => {
            let len = file.metadata()?.len();
            if len > bytes - 8 && larger == Larger::Card {
                return card(board, model, image);
            }
            ensure!(len <= bytes - 8, "{shown} has {len} bytes, the memory of {} {bytes}", board.name);
            let end = u32::try_from(address + bytes - 8).context("beyond 32 bits")?;
            memory(&mut file, magic, image, [u32::try_from(address)?, end], u32::try_from(len)?)
        }
    }
}

fn card(board: &Board, model: &Path, image: &Path) -> Result<()> {
    let Some(Boot { image: name, settings, .. }) = board.boot() else {
        return card::write(image, &Contents::only(model));
    };
    let firmware = firmware::bare(&firmware::build(board, &[])?)?;
    let beside = [(name, &firmware[..]), ("config.txt", settings.as_bytes())];
    card::write(image, &Contents { beside: &beside, ..Contents::only(model) })
}

fn disk(model: &mut File, magic: Vec<u8>, image: &Path) -> Result<()> {
    let mut out = File::create(image)?;
    out.write_all(&magic)?;
    let len = magic.len() as u64 + io::copy(model, &mut out)?;
    out.set_len(len.next_multiple_of(BLOCK))?;
    Ok(())
}

/// Writes the image that has a board look for its model elsewhere: a length of 0 where its flash would have a model's.
///
/// # Errors
/// The board has no such flash, or the file cannot be written.
pub(crate) fn no_model(board: &Board, image: &Path) -> Result<()> {
    let Storage::Memory { address, bytes, .. } = board.storage else { bail!("{} has no flash for models", board.name) };
    let addresses = [u32::try_from(address)?, u32::try_from(address + bytes - 8)?];
    memory(&mut io::empty(), Vec::new(), image, addresses, 0)
}

/// An ELF file that puts a model of `len` bytes at the first address and its length at the second.
fn memory(model: &mut impl Read, magic: Vec<u8>, image: &Path, addresses: [u32; 2], len: u32) -> Result<()> {
    let mut start = elf_header();
    // The length in front of the model, so that no offset depends on it.
    start.extend(elf_segment(addresses[0], ELF_DATA, len));
    start.extend(elf_segment(addresses[1], ELF_DATA - 8, 8));
    start.resize(ELF_DATA as usize - 8, 0);
    start.extend(u64::from(len).to_le_bytes());
    start.extend(magic);
    let mut out = File::create(image)?;
    out.write_all(&start)?;
    io::copy(model, &mut out)?;
    Ok(())
}

/// The header of an ELF file for Arm, 32 bits, of two segments and nothing else.
///
/// ```text
/// byte 0        16     18        20        24      28      32      36      40            42   44   46
///      ┌────────┬──────┬─────────┬─────────┬───────┬───────┬───────┬───────┬─────────────┬────┬────┬──────────┐
///      │ ident  │ type │ machine │ version │ entry │ phoff │ shoff │ flags │ header size │ 32 │ 2  │ 3 zeros  │
///      └────────┴──────┴─────────┴─────────┴───────┴───────┴───────┴───────┴─────────────┴────┴────┴──────────┘
/// ```
fn elf_header() -> Vec<u8> {
    const EXECUTABLE: u16 = 2;
    const ARM: u16 = 40;
    const ARM_ABI_5: u32 = 0x0500_0000;
    let mut header = b"\x7fELF\x01\x01\x01".to_vec(); // 32 bits, little-endian, version 1
    header.resize(16, 0);
    header.extend([EXECUTABLE, ARM].iter().flat_map(|half| half.to_le_bytes()));
    header.extend([1, 0, ELF_HEADER.into(), 0, ARM_ABI_5].iter().flat_map(|word: &u32| word.to_le_bytes()));
    header.extend([ELF_HEADER, 32, 2, 0, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    header
}

/// An entry of the table of segments: `len` bytes from `offset` on are loaded at `address`, to be read.
fn elf_segment(address: u32, offset: u32, len: u32) -> impl Iterator<Item = u8> {
    const LOAD: u32 = 1;
    const READ: u32 = 4;
    [LOAD, offset, address, address, len, len, READ, 8].into_iter().flat_map(u32::to_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::{Object, ObjectSegment};

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("gptrickle-xtask-image-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Folder(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn options(board: &str, folder: &Folder, force: bool) -> Options {
        let (model, output) = (folder.0.join("m.gguf"), folder.0.join("x.img"));
        Options { board: board.into(), model, output, force }
    }

    #[test]
    fn a_memory_has_the_model_in_front_and_its_length_behind() {
        let folder = Folder::new("memory");
        let model = [&b"GGUF"[..], &[7; 1001]].concat();
        let options = options("mps3-an547", &folder, false);
        fs::write(&options.model, &model).unwrap();
        image(&options).unwrap();
        let image = fs::read(&options.output).unwrap();
        let elf = object::File::parse(&*image).unwrap();
        let segments: Vec<_> = elf.segments().map(|segment| (segment.address(), segment.data().unwrap())).collect();
        assert_eq!(segments, [(0x6000_0000, &model[..]), (0xdfff_fff8, &1005u64.to_le_bytes()[..])]);
    }

    #[test]
    fn a_flash_can_be_told_that_it_has_no_model() {
        let folder = Folder::new("no-model");
        let path = folder.0.join("x.elf");
        no_model(Board::named("stm32h747i-disco").unwrap(), &path).unwrap();
        let image = fs::read(&path).unwrap();
        let elf = object::File::parse(&*image).unwrap();
        let segments: Vec<_> = elf.segments().map(|segment| (segment.address(), segment.data().unwrap())).collect();
        assert_eq!(segments, [(0x9000_0000, &[][..]), (0x97ff_fff8, &[0; 8][..])]);
    }

    #[test]
    fn a_disk_is_the_model_in_whole_blocks() {
        let folder = Folder::new("disk");
        let model = [&b"GGUF"[..], &[7; 600]].concat();
        let options = options("riscv64-virt", &folder, true);
        fs::write(&options.model, &model).unwrap();
        fs::write(&options.output, "old").unwrap();
        image(&options).unwrap();
        let image = fs::read(&options.output).unwrap();
        assert_eq!((image.len(), &image[..604]), (1024, &model[..]));
    }

    #[test]
    fn what_cannot_be_is_said_and_leaves_no_file() {
        let folder = Folder::new("refused");
        let refused = |board: &str, model: &[u8], words: &str| {
            let options = options(board, &folder, false);
            fs::write(&options.model, model).unwrap();
            let error = format!("{:#}", image(&options).unwrap_err());
            assert!(error.contains(words), "{error}");
            assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1);
        };
        refused("mps4", b"GGUF", "no board is called mps4");
        refused("raspi3b", b"ZIP", "m.gguf is no GGUF file");
        let large = [&b"GGUF"[..], &vec![0; 16 << 20]].concat();
        refused("mps2-an500", &large, "m.gguf has 16777220 bytes, the memory of mps2-an500 16777216");
        let options = options("raspi3b", &folder, false);
        fs::write(&options.output, "old").unwrap();
        assert!(image(&options).unwrap_err().to_string().ends_with("x.img is there already: --force replaces it"));
        assert_eq!(fs::read(&options.output).unwrap(), b"old");
    }
}
