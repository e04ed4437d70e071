//! Rows cut into slabs of 256 weights: eight groups, one for each lane of the accumulators.
//!
//! A slab is a super-block of the K formats, or eight blocks of the others. A row of those may end with a part of a
//! slab; zeros fill it up. A group of zeros adds `0 · 0 · 0` to its lane, which changes no bit of it: a lane starts as
//! +0, so it never is -0.

use crate::quant::{Activation, Batch, GROUP, HALF, LANES};

/// Weights in a slab.
pub(super) const SLAB: usize = 256;
/// Bytes of the longest slab, that of Q8_0.
const MOST_BYTES: usize = 272;
const _: () = assert!(SLAB == LANES * GROUP);

/// A slab of activations.
#[derive(Clone, Copy)]
pub(super) struct Slab<'a> {
    /// Codes.
    pub(super) q: &'a [i8; SLAB],
    /// The scale of each group.
    pub(super) d: &'a [f32; LANES],
    /// The sum of each half group's codes.
    pub(super) sums: &'a [i16; SLAB / HALF],
}

/// What a row has after its last whole slab, and zeros.
#[derive(Clone, Copy)]
pub(super) struct Rest {
    q: [i8; SLAB],
    d: [f32; LANES],
    sums: [i16; SLAB / HALF],
}

impl Rest {
    pub(super) const ZERO: Rest = Rest { q: [0; SLAB], d: [0.0; LANES], sums: [0; SLAB / HALF] };
}

/// An activation row in slabs.
pub(super) struct Slabs<'a> {
    q: &'a [[i8; SLAB]],
    d: &'a [[f32; LANES]],
    sums: &'a [[i16; SLAB / HALF]],
    rest: &'a Rest,
}

impl<'a> Slabs<'a> {
    /// Those of `x`, the last one in `rest` if it is not whole.
    fn new(x: &Activation<'a>, rest: &'a mut Rest) -> Self {
        let (q, rest_q) = x.q.as_chunks();
        let (d, rest_d) = x.d.as_chunks();
        let (sums, rest_sums) = x.sums.as_chunks();
        if !rest_q.is_empty() {
            *rest = Rest { q: filled_up(rest_q), d: filled_up(rest_d), sums: filled_up(rest_sums) };
        }
        Slabs { q, d, sums, rest }
    }

    /// Slab `i`.
    #[inline(always)]
    pub(super) fn get(&self, i: usize) -> Slab<'a> {
        match (self.q.get(i), self.d.get(i), self.sums.get(i)) {
            (Some(q), Some(d), Some(sums)) => Slab { q, d, sums },
            _ => Slab { q: &self.rest.q, d: &self.rest.d, sums: &self.rest.sums },
        }
    }
}

/// The `n` activation rows from `first` on; places after them have the last one.
pub(super) fn columns<'a, const MOST: usize>(
    x: &Batch<'a>,
    first: usize,
    n: usize,
    rests: &'a mut [Rest; MOST],
) -> [Slabs<'a>; MOST] {
    let mut c = first;
    rests.each_mut().map(|rest| {
        let row = x.row(c);
        c = (c + 1).min(first + n - 1);
        Slabs::new(&row, rest)
    })
}

/// The values, and zeros after them.
fn filled_up<T: Copy + Default, const N: usize>(values: &[T]) -> [T; N] {
    let mut all = [T::default(); N];
    all.iter_mut().zip(values).for_each(|(all, &value)| *all = value);
    all
}

/// The last slab of a row of weights, which is only a part of one.
pub(super) struct LastSlab([u8; MOST_BYTES]);

impl LastSlab {
    pub(super) fn new(part: &[u8]) -> Self {
        LastSlab(filled_up(part))
    }

    /// As if it were whole.
    pub(super) fn bytes(&self, n: usize) -> &[u8] {
        &self.0[..n]
    }
}
