//! Ctrl-C ends a text where it is.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use gptrickle_core::generate::{Session, StopReason};

static PRESSED: AtomicBool = AtomicBool::new(false);

/// Takes Ctrl-C from here on: the first ends the text where it is, the second the process.
pub(super) fn listen() -> anyhow::Result<()> {
    let handler = || {
        if PRESSED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    };
    ctrlc::set_handler(handler).context("cannot listen for Ctrl-C")
}

/// Whether it was pressed.
pub(super) fn pressed() -> bool {
    PRESSED.load(Ordering::SeqCst)
}

/// Ends the text if it was pressed, and says so.
pub(super) fn stops(session: &mut Session) -> bool {
    if pressed() {
        session.stop(StopReason::Interrupted);
    }
    pressed()
}
