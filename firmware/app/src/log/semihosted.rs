//! Frames to the debugger's or the emulator's console, a byte a semihosting call.
//!
//! `SYS_WRITEC`, not a file named `:tt` as in the `defmt-semihosting` crate: QEMU sends the former to the place that
//! `-semihosting-config chardev=…` names, and the latter always to its own standard output, into the text.

#![allow(unsafe_code)]

use core::cell::UnsafeCell;

use critical_section::RestoreState;
use defmt::{Encoder, Logger, global_logger};
use semihosting::sys::arm_compat::sys_writec;

/// What a frame in the making takes; `open` from [`Logger::acquire`] to [`Logger::release`].
struct Frame {
    encoder: Encoder,
    open: bool,
    restore: RestoreState,
}

struct Shared(UnsafeCell<Frame>);

// SAFETY: its content is only reached within the critical section that `acquire` enters and `release` leaves.
unsafe impl Sync for Shared {}

static FRAME: Shared =
    Shared(UnsafeCell::new(Frame { encoder: Encoder::new(), open: false, restore: RestoreState::invalid() }));

#[global_logger]
struct Semihosted;

// SAFETY: a critical section lasts from `acquire` to `release`, so frames do not mix; a log line within a log line
// would open it twice, and panics.
unsafe impl Logger for Semihosted {
    fn acquire() {
        // SAFETY: `release` leaves it again, with the same state.
        let restore = unsafe { critical_section::acquire() };
        // SAFETY: this is within the critical section, and the reference ends with this function.
        let frame = unsafe { &mut *FRAME.0.get() };
        assert!(!frame.open, "a log line within a log line");
        (frame.open, frame.restore) = (true, restore);
        frame.encoder.start_frame(send);
    }

    unsafe fn flush() {}

    unsafe fn release() {
        // SAFETY: the caller has acquired it, so this is within the critical section, until its last line.
        let frame = unsafe { &mut *FRAME.0.get() };
        frame.encoder.end_frame(send);
        frame.open = false;
        // SAFETY: this is the state that `acquire` got.
        unsafe { critical_section::release(frame.restore) };
    }

    unsafe fn write(bytes: &[u8]) {
        // SAFETY: the caller has acquired it, so this is within the critical section.
        let frame = unsafe { &mut *FRAME.0.get() };
        frame.encoder.write(bytes, send);
    }
}

fn send(bytes: &[u8]) {
    bytes.iter().for_each(|&byte| sys_writec(byte));
}
