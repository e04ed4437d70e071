//! Finds the model on a card, as the few runs of blocks it lies in.
//!
//! A model is read thousands of times and never written, so all that is wanted of a file system is where the file
//! lies; after that a card is read in long multi-block commands. This is the read-only corner of FAT16 and FAT32 that
//! answers the question: partition table, boot sector, root directory, one walk of the file's chain. The general
//! FAT crates read one block a command, walk the chain again for every step back, and stop with a panic or never on a
//! damaged volume; here a card is no more trusted than the model on it.
//!
//! ```text
//!  block 0      volume start            + reserved        + fats · fat_blocks    + root_blocks (FAT16)
//!  ┌───────────┬───────────────────────┬─────────────────┬──────────────────────┬─────────────────────────────┐
//!  │ partition │ boot sector: the      │ FAT, mostly     │ root directory: 32   │ clusters 2, 3, … : files,   │
//!  │ table     │ figures of the volume │ twice: the next │ bytes a file         │ and FAT32's root directory  │
//!  │ (or none) │                       │ cluster of each │ (FAT16 only)         │                             │
//!  └───────────┴───────────────────────┴─────────────────┴──────────────────────┴─────────────────────────────┘
//! ```

// Read "Microsoft FAT specification, 2005": sections 3 (boot sector), 4 (FAT) and 6 (directory).

use core::ops::{ControlFlow, Range};

use super::Error;
use super::block::{BLOCK, BlockDevice};

/// The most runs of blocks a model's file may lie in.
pub const MAX_EXTENTS: usize = 32;

/// A run of consecutive blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Extent {
    /// First block on the device.
    pub lba: u32,
    /// Blocks in the run.
    pub blocks: u32,
}

/// Where a file lies: its extents cover its length and lie on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct File {
    len: u64,
    extents: [Extent; MAX_EXTENTS], // the first `count` are used
    count: usize,
}

impl File {
    fn new(len: u64) -> Self {
        File { len, extents: [Extent::default(); MAX_EXTENTS], count: 0 }
    }

    /// Bytes in the file.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the file has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The runs of blocks the file lies in, in order.
    pub fn extents(&self) -> &[Extent] {
        &self.extents[..self.count]
    }
}

/// Finds the first visible `*.gguf` in the root directory of the first FAT volume on a device of so many blocks,
/// reading one block of the FAT for 128 or 256 clusters of the file. A device that begins with a GGUF file instead of
/// a file system is that file, as long as the device.
///
/// # Errors
/// Whatever is wrong with a volume ends in an [`Error`], after a bounded number of reads.
pub fn find<D: BlockDevice>(device: &mut D, blocks: u32) -> Result<File, Error> {
    let mut first = [0; BLOCK];
    if blocks == 0 {
        return Err(Error::NoVolume);
    }
    read(device, 0, &mut first)?;
    if first.starts_with(b"GGUF") {
        let mut file = File::new(u64::from(blocks) * BLOCK as u64);
        file.extents[0] = Extent { lba: 0, blocks };
        file.count = 1;
        return Ok(file);
    }
    let volume = Volume::open(device, blocks, &first)?;
    let entry = volume.find_model(device)?;
    volume.walk(device, entry)
}

/// A FAT volume whose regions lie on the device one after the other, with a FAT entry for each of its clusters.
struct Volume {
    fat_lba: u32,        // first block of the first FAT
    wide: bool,          // FAT32: entries of 4 bytes, of which 28 bits count; else FAT16: entries of 2 bytes
    data_lba: u32,       // first block of cluster 2
    cluster_blocks: u32, // 1, 2, 4, … 128
    clusters: u32,       // they are numbered 2..clusters + 2
    root: Root,
}

/// Where the root directory lies.
enum Root {
    Blocks(Extent),
    Chain(u32), // its first cluster
}

/// What the directory says of a file: claims, until the walk.
#[derive(Clone, Copy)]
struct Entry {
    cluster: u32,
    len: u32, // bytes
}

/// The one block of the FAT that was read last: entries of neighbouring clusters cost one read.
struct FatBlock {
    lba: Option<u32>,
    bytes: [u8; BLOCK],
}

// Partition types that hold FAT16 or FAT32.
const FAT_PARTITIONS: [u8; 5] = [0x04, 0x06, 0x0b, 0x0c, 0x0e];

// Fewer clusters than this, and the volume's entries are FAT12's. (FAT32 is told by its zero 16-bit FAT size, as
// Linux tells it: mkfs makes FAT32 volumes smaller than the specification's 65,525 clusters when asked to.)
const FAT12_CLUSTERS: u32 = 4085;

// A directory has at most 65,536 entries of 32 bytes.
const DIRECTORY_BLOCKS: u32 = 4096;

impl Volume {
    /// Opens the volume that `first`, the device's block 0, is or names.
    fn open<D: BlockDevice>(device: &mut D, blocks: u32, first: &[u8; BLOCK]) -> Result<Self, Error> {
        if is_boot_sector(first) {
            return Self::check(first, 0, blocks);
        }
        if le16(first, 510) != 0xaa55 {
            return Err(Error::NoVolume);
        }
        let partition = first[446..510].chunks_exact(16).find(|p| FAT_PARTITIONS.contains(&p[4]));
        let start = le32(partition.ok_or(Error::NoVolume)?, 8);
        if start == 0 || start >= blocks {
            return Err(Error::BadVolume);
        }
        let mut boot = [0; BLOCK];
        read(device, start, &mut boot)?;
        if is_boot_sector(&boot) { Self::check(&boot, start, blocks) } else { Err(Error::BadVolume) }
    }

    /// Compares the boot sector's figures with each other and with the device.
    fn check(boot: &[u8; BLOCK], start: u32, blocks: u32) -> Result<Self, Error> {
        let either = |short: u16, long: u32| if short != 0 { u32::from(short) } else { long };
        let cluster_blocks = u32::from(boot[13]);
        let reserved = u32::from(le16(boot, 14));
        let fats = u32::from(boot[16]);
        let root_blocks = u32::from(le16(boot, 17)).div_ceil((BLOCK / ENTRY) as u32);
        let total = either(le16(boot, 19), le32(boot, 32));
        let wide = le16(boot, 22) == 0;
        let fat_blocks = either(le16(boot, 22), le32(boot, 36));

        let figures = || {
            let data = fats.checked_mul(fat_blocks)?.checked_add(reserved + root_blocks)?;
            let clusters = total.checked_sub(data)? / cluster_blocks;
            let entry = if wide { 4 } else { 2 };
            let room = u64::from(fat_blocks) * BLOCK as u64 / entry;
            let end = start.checked_add(total)?;
            (end <= blocks && room >= u64::from(clusters) + 2).then_some((data, clusters))
        };
        let (data, clusters) = figures().ok_or(Error::BadVolume)?;
        if !wide && clusters < FAT12_CLUSTERS {
            return Err(Error::NoVolume);
        }
        let root = match wide {
            true => Root::Chain(le32(boot, 44)),
            false => Root::Blocks(Extent { lba: start + data - root_blocks, blocks: root_blocks }),
        };
        Ok(Volume { fat_lba: start + reserved, wide, data_lba: start + data, cluster_blocks, clusters, root })
    }

    /// The blocks of a cluster.
    fn cluster(&self, cluster: u32) -> Result<Extent, Error> {
        let index = cluster.checked_sub(2).filter(|&i| i < self.clusters).ok_or(Error::BadChain { cluster })?;
        Ok(Extent { lba: self.data_lba + index * self.cluster_blocks, blocks: self.cluster_blocks })
    }

    /// The cluster after this one, which lies on the volume; `None` after the last.
    fn next<D: BlockDevice>(&self, device: &mut D, fat: &mut FatBlock, cluster: u32) -> Result<Option<u32>, Error> {
        let per_block = (BLOCK / if self.wide { 4 } else { 2 }) as u32;
        let (lba, i) = (self.fat_lba + cluster / per_block, (cluster % per_block) as usize);
        if fat.lba != Some(lba) {
            fat.lba = None;
            read(device, lba, &mut fat.bytes)?;
            fat.lba = Some(lba);
        }
        let (next, end) = match self.wide {
            true => (le32(&fat.bytes, 4 * i) & 0x0fff_ffff, 0x0fff_fff8),
            false => (u32::from(le16(&fat.bytes, 2 * i)), 0xfff8),
        };
        Ok((next < end).then_some(next))
    }

    fn find_model<D: BlockDevice>(&self, device: &mut D) -> Result<Entry, Error> {
        let mut cluster = match self.root {
            Root::Blocks(extent) => return self.scan(device, extent)?.break_value().flatten().ok_or(Error::NoFile),
            Root::Chain(cluster) => cluster,
        };
        let mut fat = FatBlock { lba: None, bytes: [0; BLOCK] };
        for _ in 0..DIRECTORY_BLOCKS / self.cluster_blocks {
            if let ControlFlow::Break(found) = self.scan(device, self.cluster(cluster)?)? {
                return found.ok_or(Error::NoFile);
            }
            cluster = self.next(device, &mut fat, cluster)?.ok_or(Error::NoFile)?;
        }
        Err(Error::BadChain { cluster })
    }

    /// Looks through one piece of the root directory: breaks with the model, or with nothing at the directory's end.
    fn scan<D: BlockDevice>(&self, device: &mut D, piece: Extent) -> Result<ControlFlow<Option<Entry>>, Error> {
        let mut block = [0; BLOCK];
        for lba in piece.lba..piece.lba + piece.blocks {
            read(device, lba, &mut block)?;
            for entry in block.chunks_exact(ENTRY) {
                if entry[0] == 0 {
                    return Ok(ControlFlow::Break(None));
                }
                if entry[0] != DELETED && entry[ATTRIBUTES] & NOT_A_MODEL == 0 && entry[EXTENSION] == *b"GGU" {
                    // FAT16 keeps other things in the upper half.
                    let upper = if self.wide { u32::from(le16(entry, CLUSTER_HIGH)) << 16 } else { 0 };
                    let cluster = upper | u32::from(le16(entry, CLUSTER_LOW));
                    return Ok(ControlFlow::Break(Some(Entry { cluster, len: le32(entry, LEN) })));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Walks the file's chain as far as its length needs, and joins neighbouring clusters.
    fn walk<D: BlockDevice>(&self, device: &mut D, entry: Entry) -> Result<File, Error> {
        let mut fat = FatBlock { lba: None, bytes: [0; BLOCK] };
        let mut file = File::new(u64::from(entry.len));
        let mut blocks = entry.len.div_ceil(BLOCK as u32);
        let mut cluster = entry.cluster;
        while blocks > 0 {
            let piece = self.cluster(cluster)?;
            // A cluster met before: the chain runs in a circle. This also bounds the walk.
            if file.extents().iter().any(|e| (e.lba..e.lba + e.blocks).contains(&piece.lba)) {
                return Err(Error::BadChain { cluster });
            }
            let used = piece.blocks.min(blocks);
            blocks -= used;
            match file.extents[..file.count].last_mut() {
                Some(last) if last.lba + last.blocks == piece.lba => last.blocks += used,
                _ => {
                    *file.extents.get_mut(file.count).ok_or(Error::Fragmented { max: MAX_EXTENTS })? =
                        Extent { blocks: used, ..piece };
                    file.count += 1;
                }
            }
            if blocks > 0 {
                cluster = self.next(device, &mut fat, cluster)?.ok_or(Error::BadChain { cluster })?;
            }
        }
        Ok(file)
    }
}

// A directory entry:
// byte 0        8             11           12   20          22    26          28       32
//      ┌────────┬─────────────┬────────────┬────┬───────────┬─────┬───────────┬────────┐
//      │ name   │ extension,  │ attributes │ …  │ cluster,  │ …   │ cluster,  │ length │
//      │        │ GGU of each │            │    │ high half │     │ low half  │        │
//      │        │ *.gguf      │            │    │           │     │           │        │
//      └────────┴─────────────┴────────────┴────┴───────────┴─────┴───────────┴────────┘
const ENTRY: usize = 32;
const EXTENSION: Range<usize> = 8..11;
const ATTRIBUTES: usize = 11;
const CLUSTER_HIGH: usize = 20;
const CLUSTER_LOW: usize = 26;
const LEN: usize = 28;
const DELETED: u8 = 0xe5;
// Hidden (macOS's `._` companions), system, volume label or directory; a piece of a long name has the label's bit too.
const NOT_A_MODEL: u8 = 0x02 | 0x04 | 0x08 | 0x10;

/// Whether this block claims to be a FAT volume's first: enough to tell it from a partition table.
fn is_boot_sector(block: &[u8; BLOCK]) -> bool {
    le16(block, 510) == 0xaa55
        && matches!(block[0], 0xeb | 0xe9)
        && usize::from(le16(block, 11)) == BLOCK
        && block[13].is_power_of_two()
        && le16(block, 14) != 0
        && matches!(block[16], 1 | 2)
        && block[21] >= 0xf0
}

fn read<D: BlockDevice>(device: &mut D, lba: u32, buf: &mut [u8; BLOCK]) -> Result<(), Error> {
    device.read(lba, buf).map_err(Error::Device)
}

fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use fatfs::FatType::{self, Fat16, Fat32};
    use std::vec;
    use std::vec::Vec;

    use super::super::block::{Persistent, TRIES};
    use super::super::ram::{CODE, Ram, pattern, put, volume};
    use super::*;

    const NAME: &str = "Stories, 15 M (Q4_K_M).gguf";

    fn find_in(bytes: Vec<u8>) -> (Result<File, Error>, Ram<false>) {
        let mut ram = Ram::new(bytes);
        let blocks = ram.blocks();
        (find(&mut ram, blocks), ram)
    }

    fn model(fat: FatType, data: &[u8]) -> Vec<u8> {
        let mut bytes = volume(fat);
        put(&mut bytes, &[("read me.txt", b"not this"), (NAME, data)]);
        bytes
    }

    fn content(file: &File, bytes: &[u8]) -> Vec<u8> {
        let run = |e: &Extent| &bytes[e.lba as usize * BLOCK..(e.lba + e.blocks) as usize * BLOCK];
        let mut all: Vec<u8> = file.extents().iter().flat_map(run).copied().collect();
        all.truncate(file.len() as usize);
        all
    }

    /// Where the FAT keeps the number of the cluster after this one.
    fn next_at(bytes: &[u8], fat: FatType, cluster: u32) -> usize {
        usize::from(le16(bytes, 14)) * BLOCK + cluster as usize * if fat == Fat32 { 4 } else { 2 }
    }

    /// The cluster that is a block of the device.
    fn cluster_at(bytes: &[u8], lba: u32) -> u32 {
        let first: &[u8; BLOCK] = bytes[..BLOCK].try_into().unwrap();
        lba - Volume::check(first, 0, (bytes.len() / BLOCK) as u32).unwrap().data_lba + 2
    }

    #[test]
    fn a_file_in_one_piece_is_one_extent() {
        let data = pattern(100_000);
        for fat in [Fat16, Fat32] {
            let (file, ram) = find_in(model(fat, &data));
            let file = file.unwrap();
            assert_eq!((file.len(), file.extents().len(), file.extents()[0].blocks), (100_000, 1, 196));
            assert_eq!(content(&file, &ram.bytes), data);
            assert!(ram.sent.len() < 8, "{:?}", ram.sent);
        }
    }

    #[test]
    fn a_partition_is_found_by_its_table() {
        let data = pattern(5_000);
        for (fat, kind) in [(Fat16, 0x06), (Fat32, 0x0c)] {
            let mut bytes = vec![0; 64 * BLOCK];
            bytes[446 + 16 + 4] = kind;
            bytes[446 + 16 + 8] = 64;
            bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
            bytes.extend(model(fat, &data));
            let (file, ram) = find_in(bytes);
            assert_eq!(content(&file.unwrap(), &ram.bytes), data);
        }
    }

    #[test]
    fn a_file_in_pieces_is_joined() {
        let data = pattern(12 * BLOCK + 1);
        for fat in [Fat16, Fat32] {
            let mut bytes = volume(fat);
            put(&mut bytes, &[("other.bin", &[1; 20 * BLOCK]), (NAME, &data)]);
            let (file, ram) = find_in(bytes);
            let file = file.unwrap();
            assert_eq!(file.extents().len(), 13);
            assert_eq!(content(&file, &ram.bytes), data);
        }
    }

    #[test]
    fn too_many_pieces_are_refused() {
        let mut bytes = volume(Fat32);
        put(&mut bytes, &[("a", &[1; 50 * BLOCK]), (NAME, &[2; 50 * BLOCK])]);
        assert_eq!(find_in(bytes).0, Err(Error::Fragmented { max: MAX_EXTENTS }));
    }

    #[test]
    fn a_bare_model_is_as_long_as_its_device() {
        let mut bytes = pattern(10 * BLOCK);
        bytes[..4].copy_from_slice(b"GGUF");
        let (file, ram) = find_in(bytes);
        assert_eq!(content(&file.unwrap(), &ram.bytes), ram.bytes);
    }

    #[test]
    fn a_device_without_a_volume_or_a_model_is_refused() {
        for bytes in [vec![], vec![0; BLOCK], pattern(4 * BLOCK), vec![0xff; 4 * BLOCK]] {
            assert_eq!(find_in(bytes).0, Err(Error::NoVolume));
        }
        for fat in [Fat16, Fat32] {
            assert_eq!(find_in(volume(fat)).0, Err(Error::NoFile));
            let mut bytes = volume(fat);
            let names: Vec<_> = (0..100).map(|i| std::format!("a rather long name, number {i}.gg")).collect();
            let files: Vec<_> = names.iter().map(|name| (name.as_str(), &b"x"[..])).collect();
            put(&mut bytes, &files);
            assert_eq!(find_in(bytes).0, Err(Error::NoFile));
        }
        let (file, _) = find_in(model(Fat16, b""));
        assert!(file.unwrap().is_empty());
    }

    #[test]
    fn a_partition_off_the_device_is_refused() {
        let mut bytes = vec![0; 64 * BLOCK];
        bytes[446 + 4] = 0x0c;
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        for start in [0u32, 64, u32::MAX, 5] {
            bytes[446 + 8..446 + 12].copy_from_slice(&start.to_le_bytes());
            assert_eq!(find_in(bytes.clone()).0, Err(Error::BadVolume));
        }
    }

    #[test]
    fn a_volume_cut_short_is_refused() {
        for fat in [Fat16, Fat32] {
            let mut bytes = model(fat, &pattern(BLOCK));
            bytes.truncate(bytes.len() / 2);
            assert_eq!(find_in(bytes).0, Err(Error::BadVolume));
        }
    }

    #[test]
    fn a_damaged_chain_is_refused() {
        let data = pattern(9 * BLOCK);
        for fat in [Fat16, Fat32] {
            let bytes = model(fat, &data);
            let first = cluster_at(&bytes, find_in(bytes.clone()).0.unwrap().extents()[0].lba);
            let at = next_at(&bytes, fat, first + 4);
            let width = next_at(&bytes, fat, first + 5) - at;
            let bad = |cluster| Err(Error::BadChain { cluster });
            for (next, error) in [
                (0u32, bad(0)),                                                                                    // free
                (1, bad(1)),                   // never a file's
                (first, bad(first)),           // a circle
                (first + 4, bad(first + 4)),   // a smaller one
                (0x0fff_ffff, bad(first + 4)), // the end, too early
                (0x0fff_fff7 & (u32::MAX >> (32 - 8 * width)), bad(0x0fff_fff7 & (u32::MAX >> (32 - 8 * width)))), // a bad block
            ] {
                let mut bytes = bytes.clone();
                bytes[at..at + width].copy_from_slice(&next.to_le_bytes()[..width]);
                assert_eq!(find_in(bytes).0, error, "{fat:?} {next:#x}");
            }
        }
    }

    #[test]
    fn a_file_longer_or_shorter_than_its_chain() {
        for fat in [Fat16, Fat32] {
            let bytes = model(fat, &pattern(9 * BLOCK));
            let name =
                bytes.windows(11).position(|name| name.starts_with(b"STORIE") && name.ends_with(b"GGU")).unwrap();
            let with_len = |len: u32| {
                let mut bytes = bytes.clone();
                bytes[name + LEN..name + ENTRY].copy_from_slice(&len.to_le_bytes());
                find_in(bytes).0
            };
            assert_eq!(with_len(1000).unwrap().extents()[0].blocks, 2);
            for len in [9 * BLOCK as u32 + 1, u32::MAX] {
                assert!(matches!(with_len(len), Err(Error::BadChain { .. })));
            }
        }
    }

    #[test]
    fn a_root_directory_in_a_circle_is_refused() {
        let mut bytes = volume(Fat32);
        let root = le32(&bytes, 44);
        let (dir, at) = (find_root(&bytes), next_at(&bytes, Fat32, root));
        bytes[dir..dir + BLOCK].fill(DELETED);
        bytes[at..at + 4].copy_from_slice(&root.to_le_bytes());
        let (result, ram) = find_in(bytes);
        assert_eq!(result, Err(Error::BadChain { cluster: root }));
        assert!(ram.sent.len() <= 2 + DIRECTORY_BLOCKS as usize);
    }

    fn find_root(bytes: &[u8]) -> usize {
        let first: &[u8; BLOCK] = bytes[..BLOCK].try_into().unwrap();
        let volume = Volume::check(first, 0, (bytes.len() / BLOCK) as u32).unwrap();
        volume.cluster(le32(bytes, 44)).unwrap().lba as usize * BLOCK
    }

    #[test]
    fn a_failing_block_is_tried_again_and_then_told() {
        let bytes = model(Fat16, &pattern(BLOCK));
        for (times, result) in [(TRIES - 1, Ok(())), (TRIES, Err(Error::Device(CODE)))] {
            let mut ram = Ram::<false>::new(bytes.clone());
            ram.bad = (0, times);
            let mut ram = Persistent::new(ram);
            let blocks = ram.connect().unwrap().blocks;
            assert_eq!(find(&mut ram, blocks).map(|_| ()), result);
        }
    }

    #[test]
    fn damaged_bytes_end_in_a_file_on_the_device_or_an_error() {
        let mut random = 1u64;
        let mut random = |below: usize| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) as usize % below
        };
        for fat in [Fat16, Fat32] {
            let whole = model(fat, &pattern(20 * BLOCK));
            let first = find_in(whole.clone()).0.unwrap().extents()[0].lba as usize;
            let fats = usize::from(le16(&whole, 14)) * BLOCK;
            let dir = if fat == Fat32 { find_root(&whole) } else { first * BLOCK - 512 * ENTRY - BLOCK };
            let mut ram = Ram::<false>::new(whole);
            let blocks = ram.blocks();
            for _ in 0..4000 {
                let mut before = vec![];
                for _ in 0..1 + random(3) {
                    let at = [random(64), fats + random(128), dir + random(160)][random(3)];
                    before.push((at, ram.bytes[at]));
                    ram.bytes[at] = [0, 1, 0xff, random(256) as u8][random(4)];
                }
                ram.sent.clear();
                if let Ok(file) = find(&mut ram, blocks) {
                    let covered: u64 = file.extents().iter().map(|e| u64::from(e.blocks)).sum();
                    assert_eq!(covered, file.len().div_ceil(BLOCK as u64));
                    assert!(file.extents().iter().all(|e| e.lba.checked_add(e.blocks).unwrap() <= blocks));
                }
                assert!(ram.sent.len() < 2 * DIRECTORY_BLOCKS as usize, "{}", ram.sent.len());
                for (at, byte) in before.into_iter().rev() {
                    ram.bytes[at] = byte;
                }
            }
        }
    }
}
