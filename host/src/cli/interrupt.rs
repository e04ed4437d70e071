//! Ctrl-C ends a text where it is.

use std::error::Error;
use std::fmt;
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

/// Takes Ctrl-C from here on: it ends texts and computations, and never the process.
pub(super) fn listen_for_texts() -> anyhow::Result<()> {
    ctrlc::set_handler(|| PRESSED.store(true, Ordering::SeqCst)).context("cannot listen for Ctrl-C")
}

/// Makes a text that Ctrl-C ends, whatever was pressed before.
pub(super) fn during<R>(text: impl FnOnce() -> R) -> R {
    PRESSED.store(false, Ordering::SeqCst);
    text()
}

/// Waits where there is no text to end: the first Ctrl-C after [`listen`] ends the process.
pub(super) fn leaves<R>(wait: impl FnOnce() -> R) -> R {
    PRESSED.store(true, Ordering::SeqCst);
    wait()
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

/// Ctrl-C came before the end.
#[derive(Debug)]
pub(super) struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl Error for Interrupted {}

/// Ends a computation if it was pressed.
pub(super) fn check() -> Result<(), Interrupted> {
    if pressed() { Err(Interrupted) } else { Ok(()) }
}
