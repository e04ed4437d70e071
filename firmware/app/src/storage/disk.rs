//! A model's file on a block device: whole blocks into one of two buffers, many in one command.
//!
//! A chunk seldom begins and ends on a block's edge. The blocks that cover it are read into a buffer and the middle is
//! lent; a block it shares with the chunk before is copied from there, not read again:
//!
//! ```text
//!  file      ──┬─────┬─────┬─────┬─────┬─────┬─────┬─────┬──   blocks of 512 bytes
//!  chunks         ├──── one ────┼──── next ────┤
//!  buffer a    ├─────────────────┤
//!  buffer b                ├╌╌╌╌╌┼─────────────────┤
//!                           copied      read
//! ```
//!
//! A hint names a stretch that fills a buffer, for one command, and may hold many chunks. On a device that reads in the
//! background it starts the read into the buffer that is not in use. On any other it is kept until a chunk of it is asked
//! for: the read would take as long now as then, and be lost if the hint is wrong.

use core::mem;
use core::ops::Range;

use gptrickle_core::source::{self, Cause, Reach, Source};

use super::block::{BLOCK, BlockDevice, Card, Persistent};
use super::fat::{self, File};
use super::{Error, Storage};

/// A block device with a model on it, and the two buffers its blocks are read into.
pub struct Disk<D> {
    device: Persistent<D>,
    slots: [Slot; 2],
    capacity: u32, // blocks a buffer holds
    lent: usize,   // the slot last lent from
    started: Option<Started>,
    hinted: Option<Range<u32>>, // blocks of the file to read once a chunk of them is asked for
    reads: Reads,
}

/// A buffer, and the blocks of the file that it holds from its start on.
struct Slot {
    buf: &'static mut [u8], // (capacity * BLOCK); empty while the device has it
    held: Range<u32>,       // blocks of the file
    hinted: bool,           // read after a hint, and not yet lent from
}

/// A read under way: its slot will hold the blocks `kept`, and those after it up to `end`; and once it has ended, those up
/// to `wanted`, which lie elsewhere on the device.
struct Started {
    slot: usize,
    kept: Range<u32>,
    end: u32,
    wanted: u32,
}

/// What was read from a device; a command sent again after a failure counts once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reads {
    /// Commands.
    pub commands: u64,
    /// Blocks of [`BLOCK`] bytes.
    pub blocks: u64,
}

impl<D: BlockDevice> Disk<D> {
    /// A disk that reads through two buffers: the longest chunk it can lend is 511 bytes shorter than a buffer.
    ///
    /// # Panics
    /// A buffer is shorter than two blocks.
    pub fn new(device: D, buffers: [&'static mut [u8]; 2]) -> Self {
        let capacity = buffers[0].len().min(buffers[1].len()) / BLOCK;
        assert!(capacity >= 2, "a buffer holds at least two blocks");
        let slots = buffers.map(|buf| Slot { buf: &mut buf[..capacity * BLOCK], held: 0..0, hinted: false });
        Disk {
            device: Persistent::new(device),
            slots,
            capacity: capacity as u32,
            lent: 0,
            started: None,
            hinted: None,
            reads: Reads::default(),
        }
    }

    /// What was read so far, but for the search for the file.
    pub fn reads(&self) -> Reads {
        self.reads
    }

    /// What it reads from.
    #[cfg(test)]
    pub(super) fn device(&mut self) -> &mut D {
        self.device.device()
    }

    /// The slot that holds all of `want`.
    fn holding(&self, want: &Range<u32>) -> Option<usize> {
        self.slots.iter().position(|slot| covers(&slot.held, want))
    }

    /// The slot to read into next: not one that waits to be asked for, else not the one in use.
    fn spare(&self) -> usize {
        match self.slots.each_ref().map(|slot| slot.hinted) {
            [true, false] => 1,
            [false, true] => 0,
            _ => 1 - self.lent,
        }
    }

    /// Waits for a read under way. One that failed leaves its blocks out; asking for them reads them anew. Says what of
    /// the hint is still missing: in which slot, and up to where.
    fn settle(&mut self) -> Option<(usize, u32)> {
        let Started { slot: index, kept, end, wanted } = self.started.take()?;
        let (buf, result) = self.device.finish().expect("it was started");
        let slot = &mut self.slots[index];
        slot.buf = buf;
        slot.held = kept;
        if result.is_ok() {
            self.reads.commands += 1;
            self.reads.blocks += u64::from(end - slot.held.end);
            slot.held.end = end;
        }
        (result.is_ok() && end < wanted).then_some((index, wanted))
    }

    /// Waits until all of a hint is there: what is read out of order is asked for in either of its pieces, and would be
    /// read again if the next hint took its place.
    fn complete(&mut self, file: &File) {
        while let Some((slot, wanted)) = self.settle() {
            self.go_on(file, slot, wanted);
        }
    }

    /// Readies the spare slot for the blocks from `start` on; those that either slot holds already are copied.
    fn turn(&mut self, start: u32) -> usize {
        let spare = self.spare();
        let [a, b] = &mut self.slots;
        let (to, other) = if spare == 0 { (a, b) } else { (b, a) };
        let bytes = |held: &Range<u32>| (start - held.start) as usize * BLOCK..held.len() * BLOCK;
        to.held = if to.held.contains(&start) {
            to.buf.copy_within(bytes(&to.held), 0);
            start..to.held.end
        } else if other.held.contains(&start) {
            let from = bytes(&other.held);
            to.buf[..from.len()].copy_from_slice(&other.buf[from]);
            start..other.held.end
        } else {
            start..start
        };
        to.hinted = false;
        spare
    }

    /// Reads what is missing of `want`, a buffer's worth at most, and says into which slot.
    fn fetch(&mut self, file: &File, want: &Range<u32>) -> Result<usize, i32> {
        let begun = self.slots.iter().position(|slot| slot.held.contains(&want.start));
        let slot = match begun {
            // Its buffer has room for the rest.
            Some(slot) if want.end - self.slots[slot].held.start <= self.capacity => slot,
            _ => self.turn(want.start),
        };
        let Slot { buf, held, .. } = &mut self.slots[slot];
        while held.end < want.end {
            let (lba, blocks) = locate(file, held.end..want.end);
            let at = held.len() * BLOCK;
            self.device.read(lba, &mut buf[at..at + blocks as usize * BLOCK])?;
            held.end += blocks;
            self.reads.commands += 1;
            self.reads.blocks += u64::from(blocks);
        }
        Ok(slot)
    }

    /// Reads what is missing of `want`, with the rest of the stretch hinted at if it lies in it.
    fn fetch_hinted(&mut self, file: &File, want: &Range<u32>) -> Result<usize, i32> {
        let whole = self.hinted.take().filter(|hinted| covers(hinted, want));
        match whole.map(|hinted| self.fetch(file, &hinted)) {
            Some(Ok(slot)) => Ok(slot),
            _ => self.fetch(file, want),
        }
    }

    /// Starts to read what is missing of `want`.
    fn start(&mut self, file: &File, want: &Range<u32>) {
        let index = self.turn(want.start);
        if self.slots[index].held.end < want.end {
            self.go_on(file, index, want.end);
        }
    }

    /// Starts to read what follows in a slot, up to `wanted` or to where the file's next extent begins.
    fn go_on(&mut self, file: &File, index: usize, wanted: u32) {
        let slot = &mut self.slots[index];
        let (lba, blocks) = locate(file, slot.held.end..wanted);
        let at = slot.held.len() * BLOCK;
        match self.device.start(lba, mem::take(&mut slot.buf), at..at + blocks as usize * BLOCK) {
            Ok(()) => {
                let kept = mem::replace(&mut slot.held, 0..0);
                slot.hinted = true;
                self.started = Some(Started { slot: index, end: kept.end + blocks, wanted, kept });
            }
            Err(buf) => slot.buf = buf,
        }
    }
}

fn covers(held: &Range<u32>, want: &Range<u32>) -> bool {
    held.start <= want.start && want.end <= held.end
}

/// Where on the device the first of these blocks of the file lies, and how many of them follow it there.
fn locate(file: &File, blocks: Range<u32>) -> (u32, u32) {
    let mut skip = blocks.start;
    for extent in file.extents() {
        if skip < extent.blocks {
            return (extent.lba + skip, (extent.blocks - skip).min(blocks.len() as u32));
        }
        skip -= extent.blocks;
    }
    unreachable!("a file's extents cover its length");
}

impl<D: BlockDevice> Storage for Disk<D> {
    type Source<'a>
        = FileSource<'a, D>
    where
        D: 'a;

    fn open(&mut self) -> Result<FileSource<'_, D>, Error> {
        self.settle();
        self.hinted = None;
        for slot in &mut self.slots {
            slot.held = 0..0;
            slot.hinted = false;
        }
        let Card { blocks, .. } = self.device.connect()?;
        let file = fat::find(&mut self.device, blocks)?;
        Ok(FileSource { disk: self, file })
    }
}

/// The model's file on a [`Disk`].
pub struct FileSource<'a, D> {
    disk: &'a mut Disk<D>,
    file: File,
}

impl<D: BlockDevice> FileSource<'_, D> {
    /// What was read so far, but for the search for the file.
    pub fn reads(&self) -> Reads {
        self.disk.reads()
    }

    /// What it is read from.
    #[cfg(test)]
    pub(super) fn device(&mut self) -> &mut D {
        self.disk.device()
    }

    /// The blocks that cover a chunk, if it can be lent.
    fn blocks(&self, offset: u64, len: usize) -> Result<Range<u32>, Cause> {
        let end = offset.checked_add(len as u64).filter(|&end| end <= self.file.len());
        let end = end.ok_or(Cause::OutOfRange(self.file.len()))?;
        if len > self.max_chunk() {
            return Err(Cause::ChunkTooLong(self.max_chunk()));
        }
        // A device has fewer than 2³² blocks.
        Ok((offset / BLOCK as u64) as u32..end.div_ceil(BLOCK as u64) as u32)
    }
}

impl<D: BlockDevice> Source for FileSource<'_, D> {
    fn len(&self) -> u64 {
        self.file.len()
    }

    fn max_chunk(&self) -> usize {
        self.disk.capacity as usize * BLOCK - (BLOCK - 1)
    }

    fn chunk(&mut self, offset: u64, len: usize) -> Result<&[u8], source::Error> {
        let fail = |cause| source::Error { offset, len, cause };
        let want = self.blocks(offset, len).map_err(fail)?;
        if len == 0 {
            return Ok(&[]);
        }
        let disk = &mut *self.disk;
        if disk.holding(&want).is_none() {
            disk.complete(&self.file);
        }
        let slot = match disk.holding(&want) {
            Some(slot) => slot,
            None => disk.fetch_hinted(&self.file, &want).map_err(|code| fail(Cause::Device(code)))?,
        };
        disk.lent = slot;
        let slot = &mut disk.slots[slot];
        slot.hinted = false;
        let at = (offset - u64::from(slot.held.start) * BLOCK as u64) as usize;
        Ok(&slot.buf[at..at + len])
    }

    fn reach(&self, offset: u64, len: usize) -> Reach {
        let (disk, len) = (&*self.disk, len.min(self.max_chunk()));
        let within = |held: &Range<u32>| {
            let bytes = |block: u32| u64::from(block) * BLOCK as u64;
            let end = bytes(held.end).min(self.file.len());
            (bytes(held.start)..end).contains(&offset).then(|| (end - offset).min(len as u64) as usize)
        };
        let here = within(&disk.slots[disk.lent].held);
        let started = disk.started.as_ref().map(|started| started.kept.start..started.wanted);
        let other = Some(&disk.slots[1 - disk.lent].held);
        let ahead = other.into_iter().chain(&started).chain(&disk.hinted).filter_map(within).max();
        match (here, ahead) {
            // A block that both share holds the beginning of what is ahead.
            (_, Some(n)) if here < ahead => Reach::Ahead(n),
            (Some(n), _) => Reach::Here(n),
            _ => Reach::Away(len),
        }
    }

    fn prefetch(&mut self, offset: u64, len: usize) {
        let Ok(want) = self.blocks(offset, len) else { return };
        let disk = &mut *self.disk;
        if len == 0 || disk.holding(&want).is_some() {
            return;
        }
        if !D::BACKGROUND {
            disk.hinted = disk.hinted.take().or(Some(want));
            return;
        }
        if let Some(started) = &disk.started {
            if covers(&(started.kept.start..started.wanted), &want) {
                return;
            }
            disk.complete(&self.file);
        }
        if disk.holding(&want).is_none() {
            disk.start(&self.file, &want);
        }
    }
}

#[cfg(test)]
mod tests {
    use fatfs::FatType::Fat16;
    use gptrickle_core::ops::{self, Engine, Matrix, ROWS, Scratch};
    use gptrickle_core::quant::Format;
    use std::vec;
    use std::vec::Vec;

    use super::super::block::TRIES;
    use super::super::ram::{CODE, Ram, buffers, pattern, put, put_in_turn, volume};
    use super::*;

    /// A disk with buffers of 8 blocks and a model in one or more pieces, a cluster of another file after each.
    fn disk<const BACKGROUND: bool>(data: &[u8], pieces: usize) -> Disk<Ram<BACKGROUND>> {
        let mut bytes = volume(Fat16);
        put(&mut bytes, &[("model.gguf", data), ("other", &vec![7; (pieces - 1) * BLOCK])]);
        Disk::new(Ram::new(bytes), buffers(8))
    }

    fn chunks(len: usize, step: usize) -> impl Iterator<Item = (u64, usize)> {
        (0..len).step_by(step).map(move |at| (at as u64, step.min(len - at)))
    }

    #[test]
    fn lends_the_files_bytes_wherever_they_lie() {
        let data = pattern(40 * BLOCK + 77);
        for pieces in [1, 5, 30] {
            let mut disk = disk::<false>(&data, pieces);
            let mut source = disk.open().unwrap();
            assert_eq!((source.len(), source.max_chunk()), (data.len() as u64, 8 * BLOCK - 511));
            for step in [1, 77, 512, 700, 3585] {
                for (at, len) in chunks(data.len(), step) {
                    assert_eq!(source.chunk(at, len), Ok(&data[at as usize..at as usize + len]));
                }
            }
            for at in (0..data.len() - 3000).rev().step_by(613) {
                assert_eq!(source.chunk(at as u64, 3000), Ok(&data[at..at + 3000]));
            }
        }
    }

    #[test]
    fn one_pass_reads_each_block_once() {
        let data = pattern(60 * BLOCK);
        for step in [100, 700, 1111, 3585] {
            let mut disk = disk::<false>(&data, 1);
            let mut source = disk.open().unwrap();
            for (at, len) in chunks(data.len(), step) {
                source.chunk(at, len).unwrap();
            }
            assert_eq!(source.reads().blocks, 60);
        }
        // Chunks of 7 blocks and a bit: a command for each chunk.
        let mut disk = disk::<false>(&data, 1);
        let mut source = disk.open().unwrap();
        chunks(data.len(), 3585).for_each(|(at, len)| assert!(source.chunk(at, len).is_ok()));
        assert_eq!(source.reads(), Reads { commands: 9, blocks: 60 });
    }

    #[test]
    fn what_a_buffer_holds_costs_no_read() {
        let data = pattern(30 * BLOCK);
        let mut disk = disk::<false>(&data, 1);
        let mut source = disk.open().unwrap();
        source.chunk(1000, 3000).unwrap();
        let before = source.reads();
        for (at, len) in [(1000, 3000), (3999, 1), (1000, 0), (512, 3584), (20, 0)] {
            assert_eq!(source.chunk(at, len), Ok(&data[at as usize..at as usize + len]));
        }
        assert_eq!(source.reads(), before);
    }

    #[test]
    fn refuses_what_it_cannot_lend() {
        let mut disk = disk::<true>(&pattern(10_000), 1);
        let mut source = disk.open().unwrap();
        let max = source.max_chunk();
        for (offset, len, cause) in [
            (9_999, 2, Cause::OutOfRange(10_000)),
            (u64::MAX, 2, Cause::OutOfRange(10_000)),
            (10_001, 0, Cause::OutOfRange(10_000)),
            (0, max + 1, Cause::ChunkTooLong(max)),
        ] {
            source.prefetch(offset, len);
            assert_eq!(source.chunk(offset, len), Err(source::Error { offset, len, cause }));
        }
        assert_eq!(source.reads(), Reads::default());
    }

    /// Asks for each chunk, hinting the next one before or while the chunk is in use, or wrongly.
    fn hinted<const BACKGROUND: bool>(data: &[u8], pieces: usize, step: usize, how: usize) -> (Reads, Vec<Range<u32>>) {
        let mut disk = disk::<BACKGROUND>(data, pieces);
        let mut source = disk.open().unwrap();
        let all: Vec<_> = chunks(data.len(), step).collect();
        for (i, &(at, len)) in all.iter().enumerate() {
            let (next, next_len) = all[if how == 2 { (i * 7) % all.len() } else { (i + 1) % all.len() }];
            if how == 0 {
                source.prefetch(next, next_len);
            }
            assert_eq!(source.chunk(at, len), Ok(&data[at as usize..at as usize + len]));
            if how != 0 {
                source.prefetch(next, next_len);
                assert_eq!(source.chunk(at, len), Ok(&data[at as usize..at as usize + len]));
            }
        }
        disk.settle();
        (disk.reads(), disk.device().sent.clone())
    }

    #[test]
    fn hints_change_no_byte() {
        let data = pattern(40 * BLOCK + 5);
        for pieces in [1, 3, 20] {
            for step in [77, 512, 1500, 3585] {
                for how in 0..3 {
                    hinted::<true>(&data, pieces, step, how);
                    hinted::<false>(&data, pieces, step, how);
                }
            }
        }
    }

    #[test]
    fn a_good_hint_costs_no_read_twice() {
        let data = pattern(64 * BLOCK);
        for how in 0..2 {
            let (reads, _) = hinted::<true>(&data, 1, 3000, how);
            // The whole file once, its first chunk again after the last, and the block that the first two chunks share
            // when the second is asked for first.
            assert!(reads.blocks <= 64 + 6 + 1, "{reads:?}");
        }
    }

    /// Multiplies three matrices that fill a file, as a pass does, and says what was read.
    fn multiplied<const BACKGROUND: bool>(data: &[u8], pieces: usize, cols: usize) -> Reads {
        passed(disk::<BACKGROUND>(data, pieces), data, cols)
    }

    fn passed<const BACKGROUND: bool>(mut disk: Disk<Ram<BACKGROUND>>, data: &[u8], cols: usize) -> Reads {
        let rows = data.len() / (cols * 4);
        let matrix = |from: usize, to: usize| {
            let at = (from * cols * 4) as u64;
            Matrix { format: Format::F32, at, rows: to - from, cols }
        };
        let order = [matrix(0, rows / 3), matrix(rows / 3, rows / 2), matrix(rows / 2, rows)];
        let x = vec![1.0; cols];
        let (mut q, mut d, mut sums) = (vec![0; cols], vec![0.0; cols], vec![0; cols]);
        let mut products = |src: &mut dyn Source| {
            let mut buffer = [0.0; ROWS];
            let mut scratch =
                Scratch { engine: Engine::default(), q: &mut q, d: &mut d, sums: &mut sums, products: &mut buffer };
            let mut bits = Vec::new();
            for (i, w) in order.iter().enumerate() {
                let mut y = vec![0.0; w.rows];
                let next = order[i + 1..].iter().copied().map(Some);
                ops::matmul(&mut &mut *src, w, next, &x, &mut y, &mut scratch).unwrap();
                bits.extend(y.into_iter().map(f32::to_bits));
            }
            bits
        };
        let mut source = disk.open().unwrap();
        assert_eq!(products(&mut source), products(&mut &data[..]));
        disk.settle();
        disk.reads()
    }

    #[test]
    fn one_command_runs_on_across_matrices() {
        for cols in [32, 96, 256] {
            let row = cols * 4;
            // Finite numbers, all different.
            let values = (0..60 * BLOCK as u32 / 4 / cols as u32 * cols as u32).map(|i| (i as f32).to_le_bytes());
            let data: Vec<u8> = values.flatten().collect();
            let blocks = data.len().div_ceil(BLOCK) as u64;
            let buffer = (8 * BLOCK - 511) / row * row;
            let commands = data.len().div_ceil(buffer) as u64;
            for reads in [multiplied::<false>(&data, 1, cols), multiplied::<true>(&data, 1, cols)] {
                assert_eq!(reads, Reads { commands, blocks }, "rows of {row}");
            }
            for reads in [multiplied::<false>(&data, 9, cols), multiplied::<true>(&data, 9, cols)] {
                assert_eq!(reads.blocks, blocks, "rows of {row}, in pieces");
            }
        }
    }

    #[test]
    fn pieces_cost_commands_and_no_block_twice() {
        let row = 96 * 4;
        let data: Vec<u8> = (0..200 * BLOCK as u32 / 4).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let data = &data[..data.len() / row * row];
        let blocks = data.len().div_ceil(BLOCK) as u64;
        for clusters in [7, 11, 16, 40] {
            let mut bytes = volume(Fat16);
            put_in_turn(&mut bytes, &[("model.gguf", data), ("other", &vec![7; data.len()])], clusters);
            // Buffers that hold less than a piece, a bit more, and several.
            for buffer in [4, 8, 13, 25, 60] {
                let disk = Disk::new(Ram::<true>::new(bytes.clone()), buffers(buffer));
                assert_eq!(passed(disk, data, 96).blocks, blocks, "{clusters} a piece, {buffer} a buffer, hints");
                let disk = Disk::new(Ram::<false>::new(bytes.clone()), buffers(buffer));
                assert_eq!(passed(disk, data, 96).blocks, blocks, "{clusters} a piece, {buffer} a buffer");
            }
        }
    }

    #[test]
    fn a_stretch_read_out_of_order_is_read_once_wherever_it_lies() {
        let data = pattern(64 * BLOCK);
        let mut bytes = volume(Fat16);
        // Pieces end in the middle of stretches of 7 blocks.
        put_in_turn(&mut bytes, &[("model.gguf", &data), ("other", &data)], 5);
        let mut disk = Disk::new(Ram::<true>::new(bytes), buffers(8));
        let mut source = disk.open().unwrap();
        let stretch = |i: usize| (i * 7 * BLOCK, 7 * BLOCK);
        let hint = |source: &mut FileSource<'_, _>, i| source.prefetch(stretch(i).0 as u64, stretch(i).1);
        hint(&mut source, 0);
        for i in 0..9 {
            hint(&mut source, i + 1);
            for at in (0..7).rev().map(|block| stretch(i).0 + block * BLOCK) {
                assert_eq!(source.chunk(at as u64, BLOCK), Ok(&data[at..at + BLOCK]));
            }
        }
        disk.settle();
        assert_eq!(disk.reads().blocks, 9 * 7);
    }

    #[test]
    fn a_failing_read_is_tried_again_and_then_told() {
        let data = pattern(20 * BLOCK);
        let fail = |times, hint: bool| {
            let mut disk = disk::<true>(&data, 1);
            let first = disk.open().unwrap().file.extents()[0].lba;
            disk.device().bad = (first + 10, times);
            let mut source = disk.open().unwrap();
            source.chunk(0, 3000).unwrap();
            if hint {
                source.prefetch(4096, 3000);
            }
            let result = source.chunk(4096, 3000).map(|chunk| assert_eq!(chunk, &data[4096..7096]));
            // It goes on with other blocks, and with these when they can be read again.
            assert_eq!(source.chunk(0, 3000), Ok(&data[..3000]));
            source.device().bad.1 = 0;
            assert_eq!(source.chunk(4096, 3000), Ok(&data[4096..7096]));
            result
        };
        let told = Err(source::Error { offset: 4096, len: 3000, cause: Cause::Device(CODE) });
        assert_eq!(fail(TRIES - 1, false), Ok(()));
        assert_eq!(fail(TRIES, false), told);
        assert_eq!(fail(TRIES, true), Ok(()));
        assert_eq!(fail(TRIES + 1, true), told);
    }

    #[test]
    fn opens_again_after_a_read_was_left_under_way() {
        let data = pattern(20 * BLOCK);
        let mut disk = disk::<true>(&data, 1);
        for _ in 0..3 {
            let mut source = disk.open().unwrap();
            assert_eq!(source.chunk(100, 50), Ok(&data[100..150]));
            source.prefetch(5000, 2000);
        }
    }
}
