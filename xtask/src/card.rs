//! SD card images as a person would make the card: one FAT32 partition, a model in its root folder.

use anyhow::{Context, Result, ensure};
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Emulated cards have a power of two of bytes. Smaller ones hold no FAT32.
const SMALLEST: u64 = 64 << 20;
/// Where the partition starts.
const START: u64 = 1 << 20;
const BLOCK: u64 = 512;
/// FAT32 with logical block addresses.
const FAT32_LBA: u8 = 0x0c;

/// Room for what a person puts beside the model, such as the files that a Raspberry Pi boots from.
const SPARE: u64 = 16 << 20;

/// What a card holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Contents<'a> {
    /// On the card it is `model.gguf`.
    pub(crate) model: &'a Path,
    /// In how many pieces it lies there.
    pub(crate) pieces: u64,
    /// Files beside it: name, bytes.
    pub(crate) beside: &'a [(&'a str, &'a [u8])],
    /// The card has so many bytes at least.
    pub(crate) size: u64,
}

impl<'a> Contents<'a> {
    /// A model in one piece and nothing else, on a card as small as can be.
    pub(crate) fn only(model: &'a Path) -> Self {
        Self { model, pieces: 1, beside: &[], size: SMALLEST }
    }
}

/// Writes a card image. What its files do not fill stays a hole.
///
/// # Errors
/// The model is larger than FAT32 allows a file to be, or a file cannot be read or written.
pub(crate) fn write(image: &Path, contents: &Contents) -> Result<()> {
    let model = contents.model;
    let mut model_file = File::open(model).with_context(|| model.display().to_string())?;
    let len = model_file.metadata()?.len();
    ensure!(len < 1 << 32, "{} is too large for a FAT32 file", model.display());
    let size = (len + len / 64 + 2 * START + SPARE).max(contents.size).next_power_of_two();
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(image);
    let mut file = file.with_context(|| image.display().to_string())?;
    file.set_len(size)?;
    file.write_all(&partition_table(size))?;

    let mut partition = Partition { image: file, len: size - START, at: 0 };
    // 2^17 clusters are FAT32 at every size.
    let cluster = u32::try_from(size >> 17)?.clamp(512, 32 << 10);
    let options = FormatVolumeOptions::new().fat_type(FatType::Fat32).bytes_per_cluster(cluster);
    format_volume(&mut partition, options.volume_label(*b"GPTRICKLE  "))?;
    partition.seek(SeekFrom::Start(0))?;
    let volume = FileSystem::new(partition, FsOptions::new())?;
    let root = volume.root_dir();
    for (name, bytes) in contents.beside {
        root.create_file(name)?.write_all(bytes)?;
    }
    let mut on_card = root.create_file("model.gguf")?;
    // A cluster of another file after each piece but the last.
    let mut between = (contents.pieces > 1).then(|| root.create_file("between")).transpose()?;
    let piece = len.div_ceil(contents.pieces).next_multiple_of(cluster.into());
    while io::copy(&mut Read::by_ref(&mut model_file).take(piece), &mut on_card)? == piece {
        if let Some(between) = &mut between {
            between.write_all(&vec![0; cluster as usize])?;
        }
    }
    on_card.flush()?;
    drop((on_card, between, root));
    volume.unmount()?;
    Ok(())
}

/// Block 0: one partition, which fills the card.
fn partition_table(size: u64) -> [u8; BLOCK as usize] {
    let mut block = [0; BLOCK as usize];
    let entry = &mut block[446..462];
    entry[1..4].fill(0xff); // no cylinders, heads or sectors
    entry[4] = FAT32_LBA;
    entry[5..8].fill(0xff);
    let blocks = |bytes: u64| u32::try_from(bytes / BLOCK).unwrap_or(u32::MAX).to_le_bytes();
    entry[8..12].copy_from_slice(&blocks(START));
    entry[12..16].copy_from_slice(&blocks(size - START));
    block[510..].copy_from_slice(&[0x55, 0xaa]);
    block
}

/// The part of an image behind the partition table, as a file of its own.
struct Partition {
    image: File,
    len: u64,
    at: u64,
}

impl Read for Partition {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.image.seek(SeekFrom::Start(START + self.at))?;
        let n = self.image.read(buffer)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Write for Partition {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.image.seek(SeekFrom::Start(START + self.at))?;
        let n = self.image.write(bytes)?;
        self.at += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.image.flush()
    }
}

impl Seek for Partition {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::fs;

    #[test]
    fn a_card_can_be_large_and_its_model_in_pieces() {
        let dir = std::env::temp_dir().join(format!("gptrickle-xtask-pieces-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (image, model) = (dir.join("card.img"), dir.join("some model.gguf"));
        // No two blocks are the same.
        let bytes: Vec<u8> = (0..250_000u32).flat_map(u32::to_le_bytes).collect();
        fs::write(&model, &bytes).unwrap();
        let beside = [("kernel8.img", &b"boot me"[..])];
        write(&image, &Contents { pieces: 7, beside: &beside, size: 128 << 20, ..Contents::only(&model) }).unwrap();

        let card = fs::read(&image).unwrap();
        let at: HashMap<_, _> = card.chunks(512).zip(0..).collect();
        let lies: Vec<i32> = bytes.chunks_exact(512).map(|block| at[block]).collect();
        assert_eq!(lies.windows(2).filter(|pair| pair[0] + 1 != pair[1]).count() + 1, 7);

        let file = File::open(&image).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 128 << 20);
        let volume =
            FileSystem::new(Partition { image: file, len: (128 << 20) - START, at: 0 }, FsOptions::new()).unwrap();
        let mut on_card = volume.root_dir().open_file("model.gguf").unwrap();
        let mut read = Vec::new();
        on_card.read_to_end(&mut read).unwrap();
        assert_eq!(read, bytes);
        read.clear();
        volume.root_dir().open_file("kernel8.img").unwrap().read_to_end(&mut read).unwrap();
        assert_eq!(read, b"boot me");
        drop(on_card);
        drop(volume);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn the_model_lies_on_the_card_in_one_piece() {
        let dir = std::env::temp_dir().join(format!("gptrickle-xtask-card-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (image, model) = (dir.join("card.img"), dir.join("some model.gguf"));
        let bytes: Vec<u8> = (0..1_000_001u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        fs::write(&model, &bytes).unwrap();
        write(&image, &Contents::only(&model)).unwrap();

        let mut file = File::open(&image).unwrap();
        assert_eq!(file.metadata().unwrap().len(), SMALLEST);
        let mut whole = Vec::new();
        file.read_to_end(&mut whole).unwrap();
        assert_eq!(whole[450], FAT32_LBA);
        let starts: Vec<_> = whole.chunks(512).enumerate().filter(|(_, block)| *block == &bytes[..512]).collect();
        let start = starts[0].0 * 512;
        assert_eq!(&whole[start..start + bytes.len()], bytes);

        let partition = Partition { image: file, len: SMALLEST - START, at: 0 };
        let volume = FileSystem::new(partition, FsOptions::new()).unwrap();
        assert_eq!(volume.fat_type(), FatType::Fat32);
        let mut read = Vec::new();
        volume.root_dir().open_file("model.gguf").unwrap().read_to_end(&mut read).unwrap();
        assert_eq!(read, bytes);
        fs::remove_dir_all(&dir).unwrap();
    }
}
