//! The emulator's own disk: a virtio block device, which reads into memory while the processor goes on.

#![allow(unsafe_code)]

use core::cell::UnsafeCell;
use core::hint;
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use virtio_drivers::device::blk::{BlkReq, BlkResp, VirtIOBlk};
use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};
use virtio_drivers::transport::{DeviceType, Transport};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

use super::Error;
use super::block::{BlockDevice, CONTROLLER, Card, TIMEOUT};

/// Where a machine keeps its virtio devices: so many windows of registers, one after the other.
#[derive(Debug, Clone, Copy)]
pub struct Windows {
    /// Address of the first one.
    pub base: usize,
    /// Bytes from one to the next.
    pub stride: usize,
    /// How many there are.
    pub count: usize,
}

/// The first disk among a machine's virtio devices.
pub struct VirtioDisk {
    windows: Windows,
    disk: Option<VirtIOBlk<Identity, MmioTransport<'static>>>,
    messages: Option<NonNull<Messages>>,
    started: Option<Started>,
}

/// The read that the disk is busy with.
struct Started {
    token: u16,
    buf: NonNull<[u8]>, // a `&'static mut [u8]` that the disk writes to
    at: Range<usize>,
}

/// What goes with a read in the background, in memory that does not move while the disk is busy.
struct Messages {
    request: BlkReq,
    response: BlkResp,
}

impl VirtioDisk {
    /// A disk still to be looked for.
    ///
    /// # Safety
    /// Each of the windows is mapped as device memory, nothing else uses them, and memory has the same address for the
    /// processor and for the devices, with nothing to be done to a cache between.
    pub unsafe fn new(windows: Windows) -> Self {
        VirtioDisk { windows, disk: None, messages: None, started: None }
    }

    fn find(&self) -> Result<VirtIOBlk<Identity, MmioTransport<'static>>, Error> {
        let Windows { base, stride, count } = self.windows;
        let disk =
            (0..count).filter_map(|i| NonNull::new((base + i * stride) as *mut VirtIOHeader)).find_map(|header| {
                // SAFETY: the caller of `new` said that the windows are there and ours.
                let transport = unsafe { MmioTransport::new(header, stride) }.ok()?;
                (transport.device_type() == DeviceType::Block).then_some(transport)
            });
        VirtIOBlk::new(disk.ok_or(Error::NoCard)?).map_err(|error| Error::Device(code(error)))
    }
}

impl BlockDevice for VirtioDisk {
    const BACKGROUND: bool = true;

    fn connect(&mut self) -> Result<Card, Error> {
        let disk = match self.disk.take() {
            Some(disk) => disk,
            None => self.find()?,
        };
        if self.messages.is_none() {
            let messages = pages(1).ok_or(Error::Device(CONTROLLER))?.cast::<Messages>();
            // SAFETY: a page is large enough, aligned, and ours.
            unsafe { messages.write(Messages { request: BlkReq::default(), response: BlkResp::default() }) };
            self.messages = Some(messages);
        }
        let blocks = disk.capacity();
        self.disk = Some(disk);
        // Nobody takes the emulator's disk out.
        Ok(Card { blocks: blocks.try_into().unwrap_or(u32::MAX), id: 0 })
    }

    fn read(&mut self, lba: u32, buf: &mut [u8]) -> Result<(), i32> {
        let disk = self.disk.as_mut().ok_or(TIMEOUT)?;
        disk.read_blocks(lba as usize, buf).map_err(code)
    }

    fn start(&mut self, lba: u32, buf: &'static mut [u8], at: Range<usize>) -> Result<(), &'static mut [u8]> {
        let (Some(disk), Some(mut messages), None) = (&mut self.disk, self.messages, &self.started) else {
            return Err(buf);
        };
        // SAFETY: no read is under way, so that nothing else uses the messages, which `connect` wrote.
        let Messages { request, response } = unsafe { messages.as_mut() };
        // SAFETY: until `finish`, nothing reads the messages, and `started` keeps the buffer.
        match unsafe { disk.read_blocks_nb(lba as usize, request, &mut buf[at.clone()], response) } {
            Ok(token) => {
                self.started = Some(Started { token, buf: NonNull::from(buf), at });
                Ok(())
            }
            Err(_) => Err(buf),
        }
    }

    fn finish(&mut self) -> Option<(&'static mut [u8], Result<(), i32>)> {
        let (disk, mut messages) = (self.disk.as_mut()?, self.messages?);
        let Started { token, mut buf, at } = self.started.take()?;
        wait(disk, token);
        // SAFETY: the disk is done with the buffer, the `&'static mut [u8]` that `start` was given.
        let buf = unsafe { buf.as_mut() };
        // SAFETY: the disk is done with the messages too.
        let Messages { request, response } = unsafe { messages.as_mut() };
        // SAFETY: this is what `start` handed to the disk.
        let result = unsafe { disk.complete_read_blocks(token, request, &mut buf[at], response) };
        Some((buf, result.map_err(code)))
    }
}

/// Not inlined, so that `cargo xtask bench --board` can leave it out of its count.
#[inline(never)]
fn wait(disk: &mut VirtIOBlk<Identity, MmioTransport<'static>>, token: u16) {
    while disk.peek_used() != Some(token) {
        hint::spin_loop();
    }
}

/// The status that a virtio disk answers with; [`CONTROLLER`] for trouble on this side.
fn code(error: virtio_drivers::Error) -> i32 {
    match error {
        virtio_drivers::Error::IoError => 1,
        virtio_drivers::Error::Unsupported => 2,
        virtio_drivers::Error::NotReady => 3,
        _ => CONTROLLER,
    }
}

/// Memory for the driver: the queue that it shares with the disk, and the messages. One disk needs three pages.
const PAGES: usize = 4;

#[repr(C, align(4096))]
struct Pool(UnsafeCell<[u8; PAGES * PAGE_SIZE]>);

// SAFETY: `pages` hands each page out once, and nothing else touches them.
unsafe impl Sync for Pool {}

static POOL: Pool = Pool(UnsafeCell::new([0; PAGES * PAGE_SIZE]));
static TAKEN: AtomicUsize = AtomicUsize::new(0); // pages

/// Zeroed pages that nobody else has, for good.
fn pages(count: usize) -> Option<NonNull<u8>> {
    let take = |first| (first + count <= PAGES).then_some(first + count);
    let first = TAKEN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
    NonNull::new(POOL.0.get().cast::<u8>().wrapping_add(first * PAGE_SIZE))
}

/// Memory as a virtio device of the emulator sees it: just as the processor does.
struct Identity;

// SAFETY: `pages` gives aligned zeroed memory, each piece once; whoever made a `VirtioDisk` said that devices see memory
// under the processor's addresses.
unsafe impl Hal for Identity {
    fn dma_alloc(count: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // The driver takes address 0 for the failure that it is.
        pages(count).map_or((0, NonNull::dangling()), |page| (page.as_ptr() as PhysAddr, page))
    }

    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, _: usize) -> NonNull<u8> {
        NonNull::new(address as *mut u8).expect("no device is at address 0")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.as_ptr().cast::<u8>() as PhysAddr
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}
