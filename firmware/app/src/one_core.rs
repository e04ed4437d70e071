//! The lock that heap and log ask for, on a processor of which one core runs, without interrupts: none.

#![allow(unsafe_code)]

use critical_section::{Impl, RawRestoreState, set_impl};

struct OneCore;

set_impl!(OneCore);

// SAFETY: nothing runs beside the one core's one thread: the boards let no interrupt through, and start no other core.
unsafe impl Impl for OneCore {
    unsafe fn acquire() -> RawRestoreState {}

    unsafe fn release(_: RawRestoreState) {}
}
