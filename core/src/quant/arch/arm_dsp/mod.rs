//! Cortex-M4, M7, M33 and others with the DSP extension: SMLAD, two products of 16 bits added to a sum of 32.
//!
//! The work is to bring weights and activations into pairs of 16 bits. An activation row is spread once for many rows
//! of weights: out of the bytes q0 q1 q2 q3 of a word come the pairs (q0, q2) and (q1, q3). These are the pairs into
//! which a word of weights falls when every second byte of it is masked away:
//!
//! ```text
//! for each TILE rows of weights:
//!     for each activation row:
//!         for each 256 columns:                              all LANES lanes, one group each
//!             x = activations, spread into pairs
//!             for each row of the tile:
//!                 for each group of weights:
//!                     for each word w of its codes:          for nibbles; other formats likewise
//!                         sum += (w      & 0x000f000f) · (q0, q2)     low nibbles of bytes 0 and 2
//!                         sum += (w >> 8 & 0x000f000f) · (q1, q3)     … of bytes 1 and 3
//!                         sum += (w >> 4 …) and (w >> 12 …)           the high ones
//!                     lanes[row][group] += sum · scales, as the format's `dot` has it
//! ```
//!
//! A shift costs nothing inside an AND, so a nibble costs half an instruction. Codes stay unsigned, what the format
//! subtracts from each is subtracted from the sum: Σ (c - 8) · q = Σ c · q - 8 · Σ q. Where a code's bits come from two
//! places, its bytes are put together first, four at a time, and then only half of them have to be taken apart: see
//! [`Order::Quads`]. Offsets in blocks are those of the picture in each format's file.
#![allow(unsafe_code)]

mod iq;
mod k;
mod legacy;

use core::arch::asm;

use crate::part::{part, part_mut, put};

use super::super::{Activation, Batch, Format, GROUP, HALF, LANES, generic, sum_lanes};

/// Rows that share spread activations: spreading costs a MAC 1.5 instructions, so 0.02 of a row's. Their lanes take 2 KiB
/// of the stack.
const TILE: usize = 64;

/// Pairs in a group.
const PAIRS: usize = GROUP / 2;

/// Activations of LANES groups as the multiplications want them; past the last group anything.
#[repr(C)]
struct Spread {
    /// Each group's pairs (LANES, PAIRS), in the format's order.
    pairs: [[u32; PAIRS]; LANES],
    /// Their scales.
    d: [f32; LANES],
    /// The sums of each half's codes.
    half_sums: [[i16; 2]; LANES],
    /// Both halves' together, times what the format adds to every code.
    sums: [i32; LANES],
    /// Half 0's, then half 1's, likewise, and as 256 times as large as the products of [`Order::Quads`] are.
    starts: [[i32; LANES]; 2],
}

/// Which two activations make a pair.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    /// (0, 2), (1, 3), (4, 6), (5, 7), …
    EverySecond,
    /// (0, 16), (1, 17), …: both nibbles of a byte.
    Halves,
    /// For four codes c0 to c3 of a word as they lie there: as two numbers of 16 bits, they are c0 + 256 · c1 and
    /// c2 + 256 · c3. So
    ///
    /// ```text
    /// 256 · (c0 · q0 + c1 · q1) = (c0 + 256 · c1) · q1 + c0 · (256 · q0 - q1)
    /// ```
    ///
    /// and only c0 and c2 have to be taken out: pairs (256 · q0 - q1, 256 · q2 - q3), (q1, q3), …, and those of four
    /// groups, which are taken from the same words of a block in this order, in turn.
    Quads([usize; 4]),
}

impl Spread {
    const EMPTY: Spread = Spread {
        pairs: [[0; PAIRS]; LANES],
        d: [0.0; LANES],
        half_sums: [[0; 2]; LANES],
        sums: [0; LANES],
        starts: [[0; LANES]; 2],
    };

    /// Takes up to LANES groups of a row.
    #[inline(never)]
    fn fill(&mut self, order: Order, bias: i32, x: &Activation, first: usize) {
        let (q, sums) = (part(x.q.as_chunks().0, first..), part(x.sums.as_chunks().0, first..));
        for (i, (&d, &sums)) in part(x.d, first..).iter().zip(sums).take(LANES).enumerate() {
            let [a, b] = sums.map(|sum| i32::from(sum) * bias);
            (self.d[i], self.half_sums[i], self.sums[i]) = (d, sums, a + b);
            (self.starts[0][i], self.starts[1][i]) = (256 * a, 256 * b);
        }
        match order {
            Order::EverySecond => q.iter().zip(&mut self.pairs).for_each(|(q, pairs)| spread(q, pairs)),
            Order::Halves => q.iter().zip(&mut self.pairs).for_each(|(q, pairs)| spread_halves(q, pairs)),
            Order::Quads(order) => {
                let quads = self.pairs.as_flattened_mut().as_chunks_mut().0;
                for (q, pairs) in q.as_chunks::<4>().0.iter().zip(quads) {
                    q.iter().zip(order).for_each(|(q, k)| spread_quad(q, k, pairs));
                }
            }
        }
    }
}

/// What is the same for all rows of a tile.
struct Tile<'a> {
    /// The rows, from the next groups' blocks on.
    rows: &'a [u8],
    /// From one row to the next.
    row_bytes: usize,
    /// How much of each row is to be multiplied now.
    len: usize,
    /// With what.
    x: &'a Spread,
}

impl Tile<'_> {
    /// Calls `f` with what is to be multiplied of each row, and with the row's lanes.
    #[inline(always)]
    fn for_rows(&self, lanes: &mut [[f32; LANES]], f: impl Fn(&[u8], &mut [f32; LANES])) {
        for (row, lanes) in self.rows.chunks(self.row_bytes.max(1)).zip(lanes) {
            f(part(row, ..self.len), lanes);
        }
    }

    /// Calls `f` with each block of BYTES bytes, its group's number, and its lane.
    #[inline(always)]
    fn for_blocks<const BYTES: usize>(&self, lanes: &mut [[f32; LANES]], f: impl Fn(usize, &[u8; BYTES], &mut f32)) {
        self.for_rows(lanes, |row, lanes| {
            for (g, (block, lane)) in row.as_chunks().0.iter().zip(lanes).enumerate() {
                f(g, block, lane);
            }
        });
    }

    /// Calls `two` with what is to be multiplied of two rows at a time, and `one` with each block of a row left over.
    #[inline(always)]
    fn for_two_rows<const BYTES: usize>(
        &self,
        lanes: &mut [[f32; LANES]],
        two: AddTwo,
        one: impl Fn(usize, &[u8; BYTES], &mut f32),
    ) {
        let (pairs, rest) = lanes.as_chunks_mut::<2>();
        let (row_bytes, len) = (self.row_bytes, self.len);
        for (rows, lanes) in self.rows.chunks((2 * row_bytes).max(1)).zip(pairs.iter_mut()) {
            let Some((row, other)) = rows.split_at_checked(row_bytes) else { return };
            let (Some(row), Some(other)) = (row.get(..len), other.get(..len)) else { return };
            two(row, other, self.x, lanes);
        }
        if !rest.is_empty() {
            let rows = part(self.rows, 2 * pairs.len() * row_bytes..);
            Tile { rows, ..*self }.for_blocks(rest, one);
        }
    }
}

/// Adds the products of two rows' first LANES groups, or fewer, to their lanes.
type AddTwo = fn(&[u8], &[u8], &Spread, &mut [[f32; LANES]; 2]);

/// Adds the products of each row's next LANES groups, or fewer, to the row's lanes.
type Add = fn(&Tile, &mut [[f32; LANES]]);

/// [`super::Kernel::multiply`].
pub(super) fn multiply(format: Format, rows: &[u8], x: &Batch, products: &mut [f32]) {
    use Order::{EverySecond, Halves, Quads};
    const IN_ORDER: Order = Quads([0, 1, 2, 3]);
    // A bias of 1 is for the sums that meet minima.
    let (order, bias, add): (Order, i32, Add) = match format {
        Format::Q8_0 => (EverySecond, 0, legacy::q8_0),
        Format::Q4_0 => (EverySecond, -8, legacy::q4_0),
        Format::Q4_1 => (EverySecond, 1, legacy::q4_1),
        Format::Q5_0 => (EverySecond, -16, legacy::q5_0),
        Format::Q5_1 => (EverySecond, 1, legacy::q5_1),
        Format::Q2_K => (IN_ORDER, 1, k::q2_k),
        Format::Q3_K => (IN_ORDER, -4, k::q3_k),
        Format::Q4_K => (IN_ORDER, 1, k::q4_k),
        Format::Q5_K => (IN_ORDER, 1, k::q5_k),
        Format::Q6_K => (Quads([0, 2, 1, 3]), -32, k::q6_k),
        Format::IQ4_NL => (Halves, 0, iq::iq4_nl),
        Format::IQ4_XS => (Halves, 0, iq::iq4_xs),
        Format::F32 | Format::F16 | Format::BF16 => return generic(format, rows, x, products),
    };
    let (row_bytes, batch) = (format.row_bytes(x.cols).max(1), x.len().max(1));
    let groups = x.cols / GROUP;
    let mut spread = Spread::EMPTY;
    let mut lanes = [[0.0; LANES]; TILE];
    for (rows, products) in rows.chunks((TILE * row_bytes).max(1)).zip(products.chunks_mut((TILE * batch).max(1))) {
        let lanes = part_mut(&mut lanes, ..rows.len() / row_bytes);
        for b in 0..batch {
            lanes.fill([0.0; LANES]);
            for first in (0..groups).step_by(LANES) {
                spread.fill(order, bias, &x.row(b), first);
                let rows = part(rows, format.row_bytes(first * GROUP)..);
                let len = format.row_bytes((groups - first).min(LANES) * GROUP);
                add(&Tile { rows, row_bytes, len, x: &spread }, lanes);
            }
            for (lanes, products) in lanes.iter().zip(products.chunks_exact_mut(batch)) {
                put(products, b, sum_lanes(*lanes));
            }
        }
    }
}

/// N bytes of a block.
#[inline(always)]
pub(super) fn bytes<const N: usize>(block: &[u8], at: usize) -> &[u8; N] {
    part(block, at..).first_chunk().unwrap_or(const { &[0; N] })
}

#[inline(always)]
pub(super) fn word(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes(block, at))
}

/// The f16 at `at`, as f32: exact.
#[inline(always)]
pub(super) fn half(block: &[u8], at: usize) -> f32 {
    let bits = u16::from_le_bytes(*bytes(block, at));
    #[cfg(target_abi = "eabihf")]
    {
        let value;
        // SAFETY: every FPU that `eabihf` stands for on these processors has these instructions; no memory is touched.
        unsafe {
            asm!(
                "vmov s0, {bits}", "vcvtb.f32.f16 s0, s0", "vmov {value}, s0",
                bits = in(reg) u32::from(bits), value = lateout(reg) value, out("s0") _, options(pure, nomem, nostack),
            );
        }
        f32::from_bits(value)
    }
    #[cfg(not(target_abi = "eabihf"))]
    half::f16::from_bits(bits).to_f32()
}

/// A group's codes as pairs, every second one.
#[inline(always)]
fn spread(q: &[i8; GROUP], pairs: &mut [u32; PAIRS]) {
    macro_rules! two_words {
        () => {
            concat!(
                "ldr r2, [{q}], #4\n",
                "ldr r4, [{q}], #4\n",
                "sxtb16 r3, r2, ror #8\n",
                "sxtb16 r2, r2\n",
                "sxtb16 r5, r4, ror #8\n",
                "sxtb16 r4, r4\n",
                "stm {pairs}!, {{r2, r3, r4, r5}}",
            )
        };
    }
    // SAFETY: reads the 32 bytes of `q`, aligned or not as LDR may, and writes the 64 of `pairs`, words as STM needs.
    unsafe {
        asm!(
            two_words!(), two_words!(), two_words!(), two_words!(),
            q = inout(reg) q.as_ptr() => _, pairs = inout(reg) pairs.as_mut_ptr() => _,
            out("r2") _, out("r3") _, out("r4") _, out("r5") _,
            options(nostack),
        );
    }
}

/// A group's codes as pairs of [`Order::Halves`].
fn spread_halves(q: &[i8; GROUP], pairs: &mut [u32; PAIRS]) {
    for (j, pair) in pairs.iter_mut().enumerate() {
        *pair = u32::from(q[j] as u16) | u32::from(q[j + HALF] as u16) << 16;
    }
}

/// A group's codes as pairs of [`Order::Quads`], the `k`th in turn of four groups.
#[inline(always)]
fn spread_quad(q: &[i8; GROUP], k: usize, pairs: &mut [u32; 4 * PAIRS]) {
    #[rustfmt::skip]
    macro_rules! word {
        () => {
            concat!(
                "ldr {even}, [{q}], #4\n",
                "sxtb16 {odd}, {even}, ror #8\n",
                "and {even}, {mask}, {even}, lsl #8\n",
                "ssub16 {even}, {even}, {odd}\n",
                "str {odd}, [{pairs}, #4]\n",
                "str {even}, [{pairs}], #32",
            )
        };
    }
    // SAFETY: reads the 32 bytes of `q`, aligned or not as LDR may, and writes two words of each eight of `pairs` from
    // the `2 * k`th on.
    unsafe {
        asm!(
            word!(), word!(), word!(), word!(), word!(), word!(), word!(), word!(),
            q = inout(reg) q.as_ptr() => _, pairs = inout(reg) pairs[2 * (k % 4)..].as_mut_ptr() => _,
            mask = in(reg) 0xff00_ff00u32, even = out(reg) _, odd = out(reg) _,
            options(nostack),
        );
    }
}
