//! One caller-given stretch of memory, cut into named buffers.
//!
//! Everything that outlives a call (weights directory, KV cache, activations, tokenizer index) is cut from one
//! `&mut [u8]`, in a fixed order, so the sum known beforehand ([`crate::generate::Plan`]) is the sum used.

use core::fmt;
use core::mem::size_of;

/// Every buffer starts on a multiple of this many bytes, and so should the arena itself.
pub const ALIGN: usize = 16;

/// The arena is too small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooSmall {
    /// Bytes needed, for an arena that starts on a multiple of [`ALIGN`].
    pub needed: usize,
    /// Bytes the caller gave, less what it takes to reach a multiple of [`ALIGN`].
    pub have: usize,
}

impl fmt::Display for TooSmall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "needs {} bytes of memory and has {}: use a smaller context, batch or KV format",
            self.needed, self.have
        )
    }
}

impl core::error::Error for TooSmall {}

/// The bytes that `n` values of `T` take in an arena: a multiple of [`ALIGN`], or `usize::MAX` when it overflows.
pub(crate) const fn bytes_of<T>(n: usize) -> usize {
    match n.saturating_mul(size_of::<T>()).checked_next_multiple_of(ALIGN) {
        Some(bytes) => bytes,
        None => usize::MAX,
    }
}

/// What is left of the caller's memory.
#[derive(Debug)]
pub struct Arena<'a> {
    rest: &'a mut [u8],
    len: usize,
}

impl<'a> Arena<'a> {
    /// Takes over `memory`, from its first multiple of [`ALIGN`] on.
    pub fn new(memory: &'a mut [u8]) -> Self {
        let skip = memory.as_ptr().align_offset(ALIGN).min(memory.len());
        let rest = memory.get_mut(skip..).unwrap_or_default();
        let len = rest.len();
        Arena { rest, len }
    }

    /// Bytes it started with.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it started with nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes cut off so far, padding included.
    pub fn used(&self) -> usize {
        self.len - self.rest.len()
    }

    /// Cuts off `n` values of `T`, all zero.
    ///
    /// # Errors
    /// Fewer bytes are left → [`TooSmall`], with what this buffer and those before it need.
    pub(crate) fn take<T: bytemuck::Pod>(&mut self, n: usize) -> Result<&'a mut [T], TooSmall> {
        let taken = self.take_as_is(n)?;
        taken.fill(T::zeroed());
        Ok(taken)
    }

    /// Cuts off `n` values of `T` as the caller's memory has them, for what is written before it is read.
    ///
    /// Touches none of it: an operating system need not even supply what is never used.
    ///
    /// # Errors
    /// As [`take`](Arena::take).
    pub(crate) fn take_as_is<T: bytemuck::Pod>(&mut self, n: usize) -> Result<&'a mut [T], TooSmall> {
        let bytes = bytes_of::<T>(n);
        let too_small = TooSmall { needed: self.used().saturating_add(bytes), have: self.len };
        let rest = core::mem::take(&mut self.rest);
        if bytes > rest.len() {
            self.rest = rest;
            return Err(too_small);
        }
        let (taken, rest) = rest.split_at_mut(bytes);
        self.rest = rest;
        // A multiple of ALIGN is aligned for every type cut here, and `n * size_of::<T>()` bytes fill `n` values.
        let taken = taken.get_mut(..n * size_of::<T>()).and_then(|taken| bytemuck::try_cast_slice_mut(taken).ok());
        taken.ok_or(too_small)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zeroed_and_counted() {
        let mut memory = [0xffu8; 256];
        let mut arena = Arena::new(&mut memory[1..]);
        let bytes = arena.take::<u8>(3).unwrap();
        let words = arena.take::<u64>(2).unwrap();
        let threes = arena.take::<[u32; 3]>(2).unwrap();
        assert_eq!((bytes, words, threes), (&mut [0u8; 3][..], &mut [0u64; 2][..], &mut [[0u32; 3]; 2][..]));
        assert_eq!(arena.used(), bytes_of::<u8>(3) + bytes_of::<u64>(2) + bytes_of::<[u32; 3]>(2));
    }

    #[test]
    fn too_small_says_both_numbers_and_keeps_the_rest() {
        let mut memory = [0u8; 48 + ALIGN];
        let mut arena = Arena::new(&mut memory);
        let have = arena.len();
        arena.take::<u8>(16).unwrap();
        assert_eq!(arena.take::<f32>(100).unwrap_err(), TooSmall { needed: 416, have });
        assert_eq!(arena.take::<u64>(usize::MAX).unwrap_err(), TooSmall { needed: usize::MAX, have });
        assert!(arena.take::<u8>(32).is_ok());
    }
}
