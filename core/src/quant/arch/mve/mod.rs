//! Cortex-M55, M85 and others with Helium (MVE): VMLAV multiplies 16 pairs of bytes and sums them up.
//!
//! Codes are brought into bytes, 16 at a time, and multiplied with the activations as they are. What is left to do once a
//! group is in f32. Helium's floats flush subnormals to zero, so only what cannot be one goes through them: sums, which are
//! integers, and their products with an f16, which are at least 2^-24, or zero. The product with the activations' scale,
//! and the addition, are scalar. The compiler does not know of Helium's floats: it would use them everywhere. For a core
//! whose Helium has none, build with `+dsp` alone.
//!
//! ```text
//! for each row of weights, each activation row:
//!     for each group:
//!         for each half of it:
//!             c = 16 codes: nibbles by AND and shift; bits from two places by a shift that inserts (VSLI, VSRI)
//!             sum += Σ c · q              VMLAVA, exact
//!         lanes[group % LANES] += sum · scales, as the format's `dot` has it
//! ```
//!
//! Offsets in blocks are those of the picture in each format's file.
#![allow(unsafe_code)]

mod iq;
mod k;
mod legacy;

use crate::part::{part_mut, put};

use super::super::{Activation, Batch, Format, GROUP, LANES, SUPER, generic, sum_lanes};

/// Rows that meet one activation row after the other: few enough to stay in a cache.
const TILE: usize = 8;

/// Multiplies a tile's rows with an activation row.
type Multiply = fn(&Tile, &mut [f32]);

/// A few rows of weights, and an activation row.
struct Tile<'a> {
    rows: &'a [u8],
    row_bytes: usize,
    x: Activation<'a>,
    /// From a product to the next row's.
    step: usize,
}

/// [`super::Kernel::multiply`].
pub(super) fn multiply(format: Format, rows: &[u8], x: &Batch, products: &mut [f32]) {
    let multiply: Multiply = match format {
        Format::Q8_0 => legacy::q8_0,
        Format::Q4_0 => legacy::q4_0,
        Format::Q4_1 => legacy::q4_1,
        Format::Q5_0 => legacy::q5_0,
        Format::Q5_1 => legacy::q5_1,
        Format::Q2_K => k::q2_k,
        Format::Q3_K => k::q3_k,
        Format::Q4_K => k::q4_k,
        Format::Q5_K => k::q5_k,
        Format::Q6_K => k::q6_k,
        Format::IQ4_NL => iq::iq4_nl,
        Format::IQ4_XS => iq::iq4_xs,
        Format::F32 | Format::F16 | Format::BF16 => return generic(format, rows, x, products),
    };
    if !rows.as_ptr().addr().is_multiple_of(2) {
        // A load that gathers scales wants them at even addresses, as files have them.
        return generic(format, rows, x, products);
    }
    let (row_bytes, batch) = (format.row_bytes(x.cols).max(1), x.len().max(1));
    let tile = if batch == 1 { products.len() } else { TILE };
    for (rows, products) in rows.chunks((tile * row_bytes).max(1)).zip(products.chunks_mut((tile * batch).max(1))) {
        for b in 0..batch {
            multiply(&Tile { rows, row_bytes, x: x.row(b), step: batch }, part_mut(products, b..));
        }
    }
}

/// A group of activations.
struct Group<'a> {
    q: &'a [i8; GROUP],
    d: f32,
    sum: i32,
}

/// The groups of an activation row, in order.
fn groups<'a>(x: &Activation<'a>) -> impl Iterator<Item = Group<'a>> {
    let sums = x.sums.as_chunks().0.iter().map(|&[a, b]| i32::from(a) + i32::from(b));
    x.q.as_chunks().0.iter().zip(x.d).zip(sums).map(|((q, &d), sum)| Group { q, d, sum })
}

impl Tile<'_> {
    /// How many times LANES groups, of BYTES bytes together, a row has, and activations for.
    fn eights<const BYTES: usize>(&self) -> usize {
        let x = &self.x;
        (self.row_bytes / BYTES).min(x.q.len() / SUPER).min(x.d.len() / LANES).min(x.sums.len() / (2 * LANES))
    }

    /// Calls `f` with each row and the activations: it returns their product.
    #[inline(always)]
    fn for_rows(&self, products: &mut [f32], mut f: impl FnMut(&[u8], &Activation) -> f32) {
        for (row, products) in self.rows.chunks_exact(self.row_bytes.max(1)).zip(products.chunks_mut(self.step.max(1)))
        {
            put(products, 0, f(row, &self.x));
        }
    }

    /// Calls `f` with each block of BYTES bytes, its group of activations, and its lane.
    #[inline(always)]
    fn for_blocks<const BYTES: usize>(&self, products: &mut [f32], f: impl Fn(&[u8; BYTES], &Group, &mut f32)) {
        self.for_rows(products, |row, x| {
            let mut lanes = [0.0; LANES];
            for (g, (block, x)) in row.as_chunks().0.iter().zip(groups(x)).enumerate() {
                f(block, &x, &mut lanes[g % LANES]);
            }
            sum_lanes(lanes)
        });
    }
}

/// Assembly that reads memory, with up to four sums in R0, R2, R4 and R8 (VMLAV wants even registers) and Q0 to Q4 at
/// its disposal; the compiler keeps scales in the others.
macro_rules! helium {
    ([$($line:expr),* $(,)?], $($operand:tt)*) => {{
        let [s0, s1, s2, s3]: [i32; 4];
        // SAFETY: `arm_mve` says that there are these instructions, and the function around says what they read.
        unsafe {
            asm!(
                $($line,)*
                $($operand)*
                out("r0") s0, out("r2") s1, out("r4") s2, out("r8") s3,
                out("q0") _, out("q1") _, out("q2") _, out("q3") _, out("q4") _,
                options(pure, readonly, nostack),
            )
        }
        [s0, s1, s2, s3]
    }};
}

/// Assembly that multiplies `$n` times LANES groups of a row with activations, once or more often what comes after
/// `$first`, and returns the sum of the lanes. These lie in Q6 and Q7 till then; their memory, at R5, may hold other things.
/// R1 starts at the row, R3 at the codes of its activations and R11 at their scales; LR counts. Sums have R0, R2, R4 and R8:
/// VMLAV wants even registers.
macro_rules! row {
    ($n:expr, [$($first:expr),*], [$($line:expr),* $(,)?], $row:expr, $x:expr, $lanes:expr, $($operand:tt)*) => {
        match $n {
            0 => {
                $lanes.fill(0.0);
                0.0
            }
            n => {
                let sum;
                // SAFETY: `arm_mve` says that there are these instructions. They read `n` times LANES groups of weights, at
                // an even address, and of activations, which are as many, and write the lanes.
                unsafe {
                    asm!(
                        ".arch_extension mve.fp",
                        "vmov.i32 q6, #0", "vmov.i32 q7, #0",
                        $($first,)*
                        "2:",
                        $($line,)*
                        "le lr, 2b",
                        "vstm r5, {{s24-s31}}",
                        // As `sum_lanes` has it.
                        "vadd.f32 s24, s24, s28", "vadd.f32 s25, s25, s29", "vadd.f32 s26, s26, s30", "vadd.f32 s27, s27, s31",
                        "vadd.f32 s24, s24, s26", "vadd.f32 s25, s25, s27", "vadd.f32 s24, s24, s25",
                        "vmov r0, s24",
                        inout("r1") $row.as_ptr() => _, inout("r3") $x.q.as_ptr() => _, in("r5") $lanes.as_mut_ptr(),
                        inout("r11") $x.d.as_ptr() => _, inout("lr") n => _,
                        $($operand)*
                        out("r0") sum, out("r2") _, out("r4") _, out("r8") _,
                        out("q0") _, out("q1") _, out("q2") _, out("q3") _, out("q4") _, out("q5") _, out("q6") _, out("q7") _,
                        options(nostack),
                    );
                }
                f32::from_bits(sum)
            }
        }
    };
}

/// Four numbers in Q4 times four of the activations' scales are added to four lanes.
///
/// VMLA rounds the product before it adds it.
#[rustfmt::skip]
macro_rules! add_to_lanes {
    ($lane0:literal, $lane1:literal, $lane2:literal, $lane3:literal) => {
        concat!(
            "vldmia r11!, {{s0-s3}}\n",
            "vmla.f32 ", $lane0, ", s16, s0\nvmla.f32 ", $lane1, ", s17, s1\n",
            "vmla.f32 ", $lane2, ", s18, s2\nvmla.f32 ", $lane3, ", s19, s3",
        )
    };
}

/// Sums in R0, R2, R4 and R8 to Q4 or Q5.
macro_rules! keep_four {
    (4) => {
        "vmov s16, s17, r0, r2\nvmov s18, s19, r4, r8"
    };
    (5) => {
        "vmov s20, s21, r0, r2\nvmov s22, s23, r4, r8"
    };
}

use {add_to_lanes, helium, keep_four, row};
