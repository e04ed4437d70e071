//! The lanes of a float product, side by side.

use half::f16;

use crate::quant::{FLOAT_LANES, half_to_f32, sum_lanes};

/// What computes with [`FLOAT_LANES`] floats at once.
///
/// Holding one means that this processor runs its instructions. Each function gives the bits of the arrays of f32 that stand for them everywhere.
pub trait Lanes: Copy {
    /// So many floats.
    type Floats: Copy;
    /// Whether registers hold a dozen of them.
    const ROOMY: bool;

    /// These floats.
    fn load(self, values: &[f32; FLOAT_LANES]) -> Self::Floats;

    /// The f16 of these bits.
    #[inline(always)]
    fn load_halves(self, halves: &[u16; FLOAT_LANES]) -> Self::Floats {
        let mut values = [0.0; FLOAT_LANES];
        values.iter_mut().zip(halves).for_each(|(value, &bits)| *value = half_to_f32(bits));
        self.load(&values)
    }

    /// These numbers.
    #[inline(always)]
    fn load_codes(self, codes: &[i8; FLOAT_LANES]) -> Self::Floats {
        self.load(&codes.map(f32::from))
    }

    /// The bits of the nearest f16, even among two.
    #[inline(always)]
    fn to_halves(self, v: Self::Floats) -> [u16; FLOAT_LANES] {
        self.values(v).map(|x| f16::from_f32(x).to_bits())
    }

    /// The same one in each lane.
    fn all(self, value: f32) -> Self::Floats;

    /// `a · b` in each lane.
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;

    /// `a + b` in each lane.
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;

    /// Lane by lane.
    fn values(self, v: Self::Floats) -> [f32; FLOAT_LANES];

    /// The lanes of each added up, as [`sum_lanes`] does it.
    #[inline(always)]
    fn sum_four(self, [a, b, c, d]: [Self::Floats; 4]) -> [f32; 4] {
        [self.sum(a), self.sum(b), self.sum(c), self.sum(d)]
    }

    /// The lanes added up.
    #[inline(always)]
    fn sum(self, v: Self::Floats) -> f32 {
        sum_lanes(self.values(v))
    }
}

/// What [`Kernel::run_lanes`](super::Kernel::run_lanes) runs, compiled for each kind of lanes.
pub trait LanesTask {
    /// What it returns.
    type Output;

    /// Does it.
    fn run<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// Lanes for every processor, in what registers the compiler finds for them.
#[derive(Clone, Copy)]
pub(super) struct Portable;

impl Lanes for Portable {
    type Floats = [f32; FLOAT_LANES];
    const ROOMY: bool = false;

    #[inline(always)]
    fn load(self, values: &[f32; FLOAT_LANES]) -> Self::Floats {
        *values
    }

    #[inline(always)]
    fn all(self, value: f32) -> Self::Floats {
        [value; FLOAT_LANES]
    }

    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        let mut product = a;
        product.iter_mut().zip(b).for_each(|(product, b)| *product *= b);
        product
    }

    #[inline(always)]
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        let mut sum = a;
        sum.iter_mut().zip(b).for_each(|(sum, b)| *sum += b);
        sum
    }

    #[inline(always)]
    fn values(self, v: Self::Floats) -> [f32; FLOAT_LANES] {
        v
    }
}
