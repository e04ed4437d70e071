//! A disk in memory, for the tests: it counts, it fails on demand, and it can read in the background.

use core::ops::Range;
use std::boxed::Box;
use std::io::{Cursor, Write};
use std::vec;
use std::vec::Vec;

use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions, format_volume};

use super::Error;
use super::block::{BLOCK, BlockDevice, Card};

/// The code of a failure.
pub(super) const CODE: i32 = -5;

pub(super) struct Ram<const BACKGROUND: bool> {
    pub(super) bytes: Vec<u8>,
    /// Each command sent: its first block, and how many.
    pub(super) sent: Vec<Range<u32>>,
    /// A command for this block fails, so often.
    pub(super) bad: (u32, u32),
    /// What is in the slot: `None` is no card.
    id: Option<u128>,
    /// The card there has been brought up.
    up: bool,
    /// Microseconds it was left alone for, each time.
    pub(super) pauses: Vec<u32>,
    started: Option<(u32, &'static mut [u8], Range<usize>)>,
}

impl<const BACKGROUND: bool> Ram<BACKGROUND> {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        assert_eq!(bytes.len() % BLOCK, 0);
        Ram { bytes, sent: Vec::new(), bad: (0, 0), id: Some(1), up: true, pauses: Vec::new(), started: None }
    }

    /// Takes the card out, or puts one in: that of this number.
    pub(super) fn swap(&mut self, id: Option<u128>) {
        self.id = id;
        self.up = false;
    }

    pub(super) fn blocks(&self) -> u32 {
        (self.bytes.len() / BLOCK) as u32
    }
}

impl<const BACKGROUND: bool> BlockDevice for Ram<BACKGROUND> {
    const BACKGROUND: bool = BACKGROUND;

    fn connect(&mut self) -> Result<Card, Error> {
        let id = self.id.ok_or(Error::NoCard)?;
        self.up = true;
        Ok(Card { blocks: self.blocks(), id })
    }

    fn read(&mut self, lba: u32, buf: &mut [u8]) -> Result<(), i32> {
        assert!(!buf.is_empty() && buf.len().is_multiple_of(BLOCK));
        assert!(self.started.is_none(), "one command at a time");
        let end = lba + (buf.len() / BLOCK) as u32;
        self.sent.push(lba..end);
        if !self.up {
            return Err(CODE);
        }
        if (lba..end).contains(&self.bad.0) && self.bad.1 > 0 {
            self.bad.1 -= 1;
            buf.fill(0xee);
            return Err(CODE);
        }
        let at = lba as usize * BLOCK;
        buf.copy_from_slice(self.bytes.get(at..at + buf.len()).ok_or(CODE)?);
        Ok(())
    }

    fn start(&mut self, lba: u32, buf: &'static mut [u8], at: Range<usize>) -> Result<(), &'static mut [u8]> {
        if !BACKGROUND {
            return Err(buf);
        }
        assert!(self.started.is_none(), "one command at a time");
        self.started = Some((lba, buf, at));
        Ok(())
    }

    fn finish(&mut self) -> Option<(&'static mut [u8], Result<(), i32>)> {
        let (lba, buf, at) = self.started.take()?;
        let result = self.read(lba, &mut buf[at]);
        Some((buf, result))
    }

    fn pause(&mut self, us: u32) {
        self.pauses.push(us);
    }
}

/// Buffers of so many blocks each.
pub(super) fn buffers(blocks: usize) -> [&'static mut [u8]; 2] {
    [(); 2].map(|()| &mut *Box::leak(vec![0; blocks * BLOCK].into_boxed_slice()))
}

/// Bytes that differ from block to block and within each.
pub(super) fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 24) as u8 ^ (i >> 9) as u8).collect()
}

/// An empty FAT volume of one block a cluster.
pub(super) fn volume(fat: FatType) -> Vec<u8> {
    let mut bytes = vec![0; if fat == FatType::Fat32 { 35 << 20 } else { 4 << 20 }];
    let options = FormatVolumeOptions::new().fat_type(fat).bytes_per_cluster(BLOCK as u32);
    format_volume(Cursor::new(&mut bytes), options).unwrap();
    bytes
}

/// Puts files onto a volume, all at once and a cluster each in turn: more than one file lie in pieces.
pub(super) fn put(volume: &mut Vec<u8>, files: &[(&str, &[u8])]) {
    put_in_turn(volume, files, 1);
}

/// Likewise, so many clusters each in turn.
pub(super) fn put_in_turn(volume: &mut Vec<u8>, files: &[(&str, &[u8])], clusters: usize) {
    let fs = FileSystem::new(Cursor::new(volume), FsOptions::new()).unwrap();
    let root = fs.root_dir();
    let mut open: Vec<_> =
        files.iter().map(|(name, data)| (root.create_file(name).unwrap(), data.chunks(clusters * BLOCK))).collect();
    let mut wrote = true;
    while wrote {
        wrote = false;
        for (file, chunks) in &mut open {
            if let Some(chunk) = chunks.next() {
                file.write_all(chunk).unwrap();
                wrote = true;
            }
        }
    }
}
