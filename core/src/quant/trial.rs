//! Rows and activations that kernels are tried on: random ones, and those at the edges.
//!
//! The same on the desk and on a board. A kernel is right when its products have the definition's bits, or are NaN where
//! the definition's are: a NaN's sign and payload differ between processors, that it is one does not.

use super::{Batch, Format, GROUP, HALF, Kernel, dot, multiply, quantize};
use crate::part::{part, part_mut, put};

/// A generator of random numbers. Source: Steele, Lea and Flood, SplitMix64, 2014.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn next_bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

/// What a row's bytes are made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bytes {
    /// Anything at all: also scales that are infinite, NaN, denormal.
    Any,
    /// All codes and scales the same byte.
    All(u8),
    /// All codes the same byte, and scales of 1.
    Codes(u8),
    /// Random blocks whose every second one has all bytes zero, so zero scales.
    Gaps,
}

impl Bytes {
    /// Fills whole blocks.
    pub fn fill(self, random: &mut Random, format: Format, blocks: &mut [u8]) {
        if let Bytes::All(byte) | Bytes::Codes(byte) = self {
            blocks.fill(byte);
        } else {
            blocks.iter_mut().for_each(|byte| *byte = random.next_bits() as u8);
        }
        for (i, block) in blocks.chunks_mut(format.block().1).enumerate() {
            match self {
                Bytes::Codes(_) => {
                    let [low, high] = 0x3c00u16.to_le_bytes();
                    scales(format).iter().for_each(|&at| {
                        put(block, at, low);
                        put(block, at + 1, high);
                    });
                }
                Bytes::Gaps if i % 2 == 0 => block.fill(0),
                _ => {}
            }
        }
    }
}

/// Where a block's f16 scales and minima stand; an f16 weight is one.
pub fn scales(format: Format) -> &'static [usize] {
    match format {
        Format::F32 | Format::BF16 => &[],
        Format::F16 | Format::Q4_0 | Format::Q5_0 | Format::Q8_0 | Format::IQ4_NL | Format::IQ4_XS => &[0],
        Format::Q4_1 | Format::Q5_1 | Format::Q4_K | Format::Q5_K => &[0, 2],
        Format::Q2_K => &[80, 82],
        Format::Q3_K => &[108],
        Format::Q6_K => &[208],
    }
}

/// What activations are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Values {
    /// Between -4 and 4.
    Usual,
    /// All at the ends of the codes, signs at random.
    Ends,
    /// Some groups zero, one NaN, one infinite, some beyond the reach of f32 products.
    Wild,
}

impl Values {
    /// Fills whole groups.
    pub fn fill(self, random: &mut Random, x: &mut [f32]) {
        for (g, x) in x.chunks_mut(GROUP).enumerate() {
            x.iter_mut().for_each(|x| *x = (random.next_bits() >> 40) as f32 / (1 << 21) as f32 - 4.0);
            match (self, g % 11) {
                (Values::Ends, _) => x.iter_mut().for_each(|x| *x = 3f32.copysign(*x)),
                (Values::Wild, 3) => x.fill(0.0),
                (Values::Wild, 5) => put(x, 7, f32::NAN),
                (Values::Wild, 6) => put(x, 31, f32::NEG_INFINITY),
                (Values::Wild, 8) => x.iter_mut().for_each(|x| *x *= 1e37),
                (Values::Wild, 9) => x.iter_mut().for_each(|x| *x *= 1e-30),
                _ => {}
            }
        }
    }
}

/// A product that is not the definition's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    /// Which row of weights.
    pub row: usize,
    /// Which row of activations.
    pub b: usize,
    /// What the kernel says.
    pub product: f32,
    /// What it should be.
    pub defined: f32,
}

/// Multiplies `rows` with `x` into `products` and looks for the first one that differs from the definition's.
///
/// # Panics
/// As [`multiply`].
pub fn difference(kernel: Kernel, format: Format, rows: &[u8], x: &Batch, products: &mut [f32]) -> Option<Difference> {
    // Not zero, so that a product left out shows.
    products.fill(-1e30);
    multiply(kernel, format, rows, x, products);
    let row_bytes = format.row_bytes(x.cols);
    products.iter().enumerate().find_map(|(i, &product)| {
        let batch = x.len().max(1);
        let (row, b) = (i / batch, i % batch);
        let defined = dot(format, part(rows, row * row_bytes..(row + 1) * row_bytes), &x.row(b));
        let same = defined.to_bits() == product.to_bits() || (defined.is_nan() && product.is_nan());
        (!same).then_some(Difference { row, b, product, defined })
    })
}

/// Tries `kernel` on rows and batches of few sizes, and says how many products were the same as the definition's.
///
/// Takes 16 KiB of the stack. Of an integer format only, as f32 rows would take yet more.
///
/// # Panics
/// The format holds floats.
///
/// # Errors
/// One differs.
pub fn try_kernel(kernel: Kernel, format: Format) -> Result<usize, Difference> {
    const ROWS: usize = 3;
    const BATCH: usize = 5;
    /// Two super-blocks, and blocks of 32 that fill no multiple of eight groups.
    const COLS: usize = 512;
    let (mut rows, mut values) = ([0; ROWS * COLS * 5 / 4], [0.0; BATCH * COLS]);
    let (mut q, mut d, mut sums) = ([0; BATCH * COLS], [0.0; BATCH * COLS / GROUP], [0; BATCH * COLS / HALF]);
    let mut random = Random(1);
    let mut compared = 0;
    for bytes in [Bytes::Any, Bytes::Gaps, Bytes::All(0xff), Bytes::Codes(0x80), Bytes::Codes(0xff)] {
        for kind in [Values::Usual, Values::Ends, Values::Wild] {
            for batch in 1..=BATCH {
                let len = format.block().0.max(GROUP);
                let cols = if len == GROUP { COLS - batch * GROUP } else { COLS };
                let rows = part_mut(&mut rows, ..ROWS * format.row_bytes(cols));
                bytes.fill(&mut random, format, rows);
                let x = part_mut(&mut values, ..batch * cols);
                kind.fill(&mut random, x);
                let n = x.len();
                let (q, d, sums) =
                    (part_mut(&mut q, ..n), part_mut(&mut d, ..n / GROUP), part_mut(&mut sums, ..n / HALF));
                quantize(x, q, d, sums);
                let x = Batch { cols, x, q, d, sums };
                let mut products = [0.0; ROWS * BATCH];
                let products = part_mut(&mut products, ..ROWS * batch);
                match difference(kernel, format, rows, &x, products) {
                    Some(difference) => return Err(difference),
                    None => compared += products.len(),
                }
            }
        }
    }
    Ok(compared)
}
