//! Parts of slices where the lengths were checked when the model was opened.
//!
//! A range that does not fit would be a mistake in this crate: a debug build, and so every test, panics and says where.
//! In a release build the part is empty instead, so that firmware has no path that panics: `cargo xtask panics` looks.

use core::ops::Range;
use core::slice::SliceIndex;

/// The part of `all` at `range`.
#[inline(always)]
#[cfg_attr(debug_assertions, track_caller)]
pub(crate) fn part<T, R: SliceIndex<[T], Output = [T]>>(all: &[T], range: R) -> &[T] {
    let part = all.get(range);
    debug_assert!(part.is_some(), "a range beyond {} values", all.len());
    part.unwrap_or_default()
}

/// The part of `all` at `range`, to be changed.
#[inline(always)]
#[cfg_attr(debug_assertions, track_caller)]
pub(crate) fn part_mut<T, R: SliceIndex<[T], Output = [T]>>(all: &mut [T], range: R) -> &mut [T] {
    let len = all.len();
    let part = all.get_mut(range);
    debug_assert!(part.is_some(), "a range beyond {len} values");
    part.unwrap_or_default()
}

/// Number `i` of `all`.
#[inline(always)]
#[cfg_attr(debug_assertions, track_caller)]
pub(crate) fn item<T: Copy + Default>(all: &[T], i: usize) -> T {
    debug_assert!(i < all.len(), "number {i} of {}", all.len());
    all.get(i).copied().unwrap_or_default()
}

/// Makes `value` number `i` of `all`.
#[inline(always)]
#[cfg_attr(debug_assertions, track_caller)]
pub(crate) fn put<T>(all: &mut [T], i: usize, value: T) {
    debug_assert!(i < all.len(), "number {i} of {}", all.len());
    if let Some(old) = all.get_mut(i) {
        *old = value;
    }
}

/// Copies the values of `from` to where `to` is the first.
#[inline(always)]
#[cfg_attr(debug_assertions, track_caller)]
pub(crate) fn copy<T: Copy>(all: &mut [T], from: Range<usize>, to: usize) {
    let fits = from.start <= from.end && from.end <= all.len() && to <= all.len() - from.len();
    debug_assert!(fits, "{from:?} to {to} of {}", all.len());
    if fits {
        all.copy_within(from, to);
    }
}

/// Both parts of `all`: what is before `middle`, and the rest.
#[inline(always)]
#[cfg_attr(debug_assertions, track_caller)]
pub(crate) fn split_mut<T>(all: &mut [T], middle: usize) -> (&mut [T], &mut [T]) {
    debug_assert!(middle <= all.len(), "{middle} is beyond {} values", all.len());
    all.split_at_mut(middle.min(all.len()))
}
