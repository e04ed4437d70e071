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
//! places, its bytes are put together first, four at a time, and then fall into pairs by UXTB16. Offsets in blocks are
//! those of the picture in each format's file.
#![allow(unsafe_code)]

use core::arch::asm;
use core::mem::offset_of;

use super::super::{Activation, Batch, Format, GROUP, HALF, LANES, generic, iq4_nl, sum_lanes};

/// Rows that share spread activations: spreading costs a MAC 1.5 instructions, so 0.02 of a row's. Their lanes take 2 KiB
/// of the stack.
const TILE: usize = 64;

/// Pairs in a group.
const PAIRS: usize = GROUP / 2;

/// Activations of LANES groups as the multiplications want them.
#[repr(C)]
struct Spread {
    /// Each group's pairs (LANES, PAIRS); past the last group anything, here and below.
    pairs: [[u32; PAIRS]; LANES],
    /// Their scales.
    d: [f32; LANES],
    /// The sums of each half's codes, times what the format adds to every code.
    halves: [[i32; 2]; LANES],
    /// Both halves' together.
    sums: [i32; LANES],
}

/// Which two activations make a pair.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    /// (0, 2), (1, 3), (4, 6), (5, 7), …
    EverySecond,
    /// (0, 16), (1, 17), …: both nibbles of a byte.
    Halves,
}

impl Spread {
    const EMPTY: Spread =
        Spread { pairs: [[0; PAIRS]; LANES], d: [0.0; LANES], halves: [[0; 2]; LANES], sums: [0; LANES] };

    /// Takes up to LANES groups of a row.
    #[inline(never)]
    fn fill(&mut self, order: Order, bias: i32, x: &Activation, first: usize) {
        for (i, x) in x.groups().skip(first).take(LANES).enumerate() {
            self.d[i] = x.d;
            self.halves[i] = x.sums.map(|sum| sum * bias);
            self.sums[i] = self.halves[i][0] + self.halves[i][1];
            match order {
                Order::EverySecond => spread(x.q, &mut self.pairs[i]),
                Order::Halves => {
                    for (j, pair) in self.pairs[i].iter_mut().enumerate() {
                        *pair = u32::from(x.q[j] as u16) | u32::from(x.q[j + HALF] as u16) << 16;
                    }
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
        for (row, lanes) in self.rows.chunks(self.row_bytes).zip(lanes) {
            f(&row[..self.len], lanes);
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
        for (i, lanes) in pairs.iter_mut().enumerate() {
            let rows = &self.rows[2 * i * row_bytes..];
            two(&rows[..len], &rows[row_bytes..][..len], self.x, lanes);
        }
        if !rest.is_empty() {
            let rows = &self.rows[2 * pairs.len() * row_bytes..];
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
    use Order::{EverySecond, Halves};
    // A bias of 1 is for the sums that meet minima.
    let (order, bias, add): (Order, i32, Add) = match format {
        Format::Q8_0 => (EverySecond, 0, q8_0),
        Format::Q4_0 => (EverySecond, -8, q4_0),
        Format::Q4_1 => (EverySecond, 1, q4_1),
        Format::Q5_0 => (EverySecond, -16, q5_0),
        Format::Q5_1 => (EverySecond, 1, q5_1),
        Format::Q2_K => (EverySecond, 1, q2_k),
        Format::Q3_K => (EverySecond, -4, q3_k),
        Format::Q4_K => (EverySecond, 1, q4_k),
        Format::Q5_K => (EverySecond, 1, q5_k),
        Format::Q6_K => (EverySecond, -32, q6_k),
        Format::IQ4_NL => (Halves, 0, iq4_nl),
        Format::IQ4_XS => (Halves, 0, iq4_xs),
        Format::F32 | Format::F16 | Format::BF16 => return generic(format, rows, x, products),
    };
    let row_bytes = format.row_bytes(x.cols);
    let groups = x.cols / GROUP;
    let mut spread = Spread::EMPTY;
    let mut lanes = [[0.0; LANES]; TILE];
    for (rows, products) in rows.chunks(TILE * row_bytes).zip(products.chunks_mut(TILE * x.len())) {
        let lanes = &mut lanes[..rows.len() / row_bytes];
        for b in 0..x.len() {
            lanes.fill([0.0; LANES]);
            for first in (0..groups).step_by(LANES) {
                spread.fill(order, bias, &x.row(b), first);
                let rows = &rows[format.row_bytes(first * GROUP)..];
                let len = format.row_bytes((groups - first).min(LANES) * GROUP);
                add(&Tile { rows, row_bytes, len, x: &spread }, lanes);
            }
            for (lanes, products) in lanes.iter().zip(products.chunks_exact_mut(x.len())) {
                products[b] = sum_lanes(*lanes);
            }
        }
    }
}

fn q8_0(tile: &Tile, lanes: &mut [[f32; LANES]]) {
    tile.for_two_rows::<34>(lanes, add_two_rows_of_bytes, |g, block, lane| {
        add_scaled(dot_bytes(part(block, 2), &tile.x.pairs[g]), block, &tile.x.d[g], lane);
    });
}

fn q4_0(tile: &Tile, lanes: &mut [[f32; LANES]]) {
    tile.for_two_rows::<18>(lanes, add_two_rows_of_nibbles, |g, block, lane| {
        add_scaled(dot_nibbles(tile.x.sums[g], part(block, 2), &tile.x.pairs[g]), block, &tile.x.d[g], lane);
    });
}

fn q4_1(tile: &Tile, lanes: &mut [[f32; LANES]]) {
    let x = tile.x;
    tile.for_blocks::<20>(lanes, |g, block, lane| {
        let scaled = dot_nibbles(0, part(block, 4), &x.pairs[g]) as f32 * half(block, 0);
        *lane += (scaled + x.sums[g] as f32 * half(block, 2)) * x.d[g];
    });
}

fn q5_0(tile: &Tile, lanes: &mut [[f32; LANES]]) {
    tile.for_blocks::<22>(lanes, |g, block, lane| {
        let sum = dot_fives(tile.x.sums[g], part(block, 2), part(block, 6), &tile.x.pairs[g]);
        add_scaled(sum, block, &tile.x.d[g], lane);
    });
}

fn q5_1(tile: &Tile, lanes: &mut [[f32; LANES]]) {
    let x = tile.x;
    tile.for_blocks::<24>(lanes, |g, block, lane| {
        let scaled = dot_fives(0, part(block, 4), part(block, 8), &x.pairs[g]) as f32 * half(block, 0);
        *lane += (scaled + x.sums[g] as f32 * half(block, 2)) * x.d[g];
    });
}

fn iq4_nl(tile: &Tile, lanes: &mut [[f32; LANES]]) {
    tile.for_blocks::<18>(lanes, |g, block, lane| {
        add_scaled(dot_steps(part(block, 2), &tile.x.pairs[g]), block, &tile.x.d[g], lane);
    });
}

fn iq4_xs(tile: &Tile, lanes: &mut [[f32; LANES]]) {
    let x = tile.x;
    tile.for_rows(lanes, |row, lanes| {
        let block: &[u8; 136] = part(row, 0);
        let d = half(block, 0);
        let (high, low) = (u32::from(block[2]) | u32::from(block[3]) << 8, word(block, 4));
        for (g, lane) in lanes.iter_mut().enumerate() {
            let s = (low >> (4 * g) & 15 | (high >> (2 * g) & 3) << 4) as i32 - 32;
            *lane += (dot_steps(part(block, 8 + 16 * g), &x.pairs[g]) * s) as f32 * d * x.d[g];
        }
    });
}

fn q2_k(tile: &Tile, lanes: &mut [[f32; LANES]]) {
    let x = tile.x;
    tile.for_rows(lanes, |row, lanes| {
        let block: &[u8; 84] = part(row, 0);
        let (d, dmin) = (half(block, 80), half(block, 82));
        for (j, lanes) in lanes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let a = dot_twos::<0>(part(block, 16 + 32 * j), four(x, j));
            let b = dot_twos::<1>(part(block, 32 + 32 * j), four(x, j));
            for (k, lane) in lanes.iter_mut().enumerate() {
                let g = 4 * j + k;
                let [s0, s1] = [i32::from(block[2 * g]), i32::from(block[2 * g + 1])];
                let scaled = a[k] * (s0 & 15) + b[k] * (s1 & 15);
                let minimum = x.halves[g][0] * (s0 >> 4) + x.halves[g][1] * (s1 >> 4);
                *lane += (scaled as f32 * d - minimum as f32 * dmin) * x.d[g];
            }
        }
    });
}

fn q3_k(tile: &Tile, lanes: &mut [[f32; LANES]]) {
    let x = tile.x;
    tile.for_rows(lanes, |row, lanes| {
        let block: &[u8; 110] = part(row, 0);
        let d = half(block, 108);
        let scales = q3_k_scales(part(block, 96));
        add_four::<0>(dot_threes::<0>(block, &scales, x), d, x, lanes);
        add_four::<1>(dot_threes::<1>(block, &scales, x), d, x, lanes);
    });
}

/// The 16 scales, -32..=31, four at a time.
#[inline(always)]
pub(super) fn q3_k_scales(bytes: &[u8; 12]) -> [i8; 16] {
    let (low, high) = ([word(bytes, 0), word(bytes, 4)], word(bytes, 8));
    let mut scales = [0; 16];
    for (i, four) in scales.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let s = low[i % 2] >> (4 * (i / 2)) & 0x0f0f_0f0f | (high >> (2 * i) & 0x0303_0303) << 4;
        // No byte borrows from the next, as each has its top bit set for the moment.
        *four = ((s | 0x8080_8080) - 0x2020_2020 ^ 0x8080_8080).to_le_bytes().map(|s| s as i8);
    }
    scales
}

/// Scales and minima of Q4_K and Q5_K, four at a time.
#[inline(always)]
pub(super) fn q4_k_scales(bytes: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let [a, b, c] = [word(bytes, 0), word(bytes, 4), word(bytes, 8)];
    let eight = |low: u32, high: u32| (u64::from(high) << 32 | u64::from(low)).to_le_bytes();
    let scales = eight(a & 0x3f3f_3f3f, c & 0x0f0f_0f0f | a >> 2 & 0x3030_3030);
    let minima = eight(b & 0x3f3f_3f3f, c >> 4 & 0x0f0f_0f0f | b >> 2 & 0x3030_3030);
    (scales, minima)
}

fn q4_k(tile: &Tile, lanes: &mut [[f32; LANES]]) {
    let x = tile.x;
    tile.for_rows(lanes, |row, lanes| {
        let block: &[u8; 144] = part(row, 0);
        let (d, dmin) = (half(block, 0), half(block, 2));
        let (s, m) = q4_k_scales(part(block, 4));
        for (j, lanes) in lanes.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let sums = dot_two_nibbles(part(block, 16 + 32 * j), two(x, j));
            for (k, lane) in lanes.iter_mut().enumerate() {
                let g = 2 * j + k;
                let (scaled, minimum) = (sums[k] * i32::from(s[g]), x.sums[g] * i32::from(m[g]));
                *lane += (scaled as f32 * d - minimum as f32 * dmin) * x.d[g];
            }
        }
    });
}

fn q5_k(tile: &Tile, lanes: &mut [[f32; LANES]]) {
    let x = tile.x;
    tile.for_rows(lanes, |row, lanes| {
        let block: &[u8; 176] = part(row, 0);
        let (d, dmin) = (half(block, 0), half(block, 2));
        let (s, m) = q4_k_scales(part(block, 4));
        let mut add = |j: usize, sums: [i32; 2]| {
            for k in 0..2 {
                let g = 2 * j + k;
                let (scaled, minimum) = (sums[k] * i32::from(s[g]), x.sums[g] * i32::from(m[g]));
                lanes[g] += (scaled as f32 * d - minimum as f32 * dmin) * x.d[g];
            }
        };
        add(0, dot_two_fives::<0>(block, two(x, 0)));
        add(1, dot_two_fives::<1>(block, two(x, 1)));
        add(2, dot_two_fives::<2>(block, two(x, 2)));
        add(3, dot_two_fives::<3>(block, two(x, 3)));
    });
}

fn q6_k(tile: &Tile, lanes: &mut [[f32; LANES]]) {
    let x = tile.x;
    tile.for_rows(lanes, |row, lanes| {
        let block: &[u8; 210] = part(row, 0);
        let d = half(block, 208);
        add_four::<0>(dot_sixes::<0>(block, x), d, x, lanes);
        add_four::<1>(dot_sixes::<1>(block, x), d, x, lanes);
    });
}

/// `lane += sum · d · x.d` for groups 4J..4J + 4.
#[inline(always)]
fn add_four<const J: usize>(sums: [i32; 4], d: f32, x: &Spread, lanes: &mut [f32; LANES]) {
    for (k, sum) in sums.into_iter().enumerate() {
        lanes[4 * J + k] += sum as f32 * d * x.d[4 * J + k];
    }
}

/// N bytes of a block.
#[inline(always)]
pub(super) fn part<const N: usize>(block: &[u8], at: usize) -> &[u8; N] {
    match block[at..].first_chunk() {
        Some(part) => part,
        None => unreachable!("blocks are as long as their format says"),
    }
}

#[inline(always)]
pub(super) fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*part(bytes, at))
}

/// The `j`th two groups' pairs.
#[inline(always)]
fn two(x: &Spread, j: usize) -> &[[u32; PAIRS]; 2] {
    &x.pairs.as_chunks().0[j]
}

/// The `j`th four groups' pairs.
#[inline(always)]
fn four(x: &Spread, j: usize) -> &[[u32; PAIRS]; 4] {
    &x.pairs.as_chunks().0[j]
}

/// `lane += sum · scale · d`, where the scale is the f16 a block starts with.
#[inline(always)]
#[cfg(target_abi = "eabihf")]
fn add_scaled<const BYTES: usize>(sum: i32, block: &[u8; BYTES], d: &f32, lane: &mut f32) {
    // SAFETY: every FPU that `eabihf` stands for on these processors has these instructions. They read the block's first
    // two bytes, aligned or not as LDRH may, and the f32 `d`, and write the f32 `lane`. VMLA rounds the product.
    unsafe {
        asm!(
            "ldrh {scale}, [{block}]",
            "vmov s0, {sum}",
            "vmov s1, {scale}",
            "vcvt.f32.s32 s0, s0",
            "vcvtb.f32.f16 s1, s1",
            "vldr s2, [{d}]",
            "vmul.f32 s0, s0, s1",
            "vldr s1, [{lane}]",
            "vmla.f32 s1, s0, s2",
            "vstr s1, [{lane}]",
            scale = out(reg) _, block = in(reg) block.as_ptr(), sum = in(reg) sum, d = in(reg) d, lane = in(reg) lane,
            out("s0") _, out("s1") _, out("s2") _,
            options(nostack),
        );
    }
}

/// The same without an FPU.
#[inline(always)]
#[cfg(not(target_abi = "eabihf"))]
fn add_scaled<const BYTES: usize>(sum: i32, block: &[u8; BYTES], d: &f32, lane: &mut f32) {
    *lane += sum as f32 * half(block, 0) * d;
}

/// The f16 at `at`, as f32: exact.
#[inline(always)]
pub(super) fn half(block: &[u8], at: usize) -> f32 {
    let bits = u16::from_le_bytes(*part(block, at));
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

/// 32 codes of 8 bits: two SXTB16 and two SMLAD for each word.
#[inline(always)]
fn dot_bytes(q: &[u8; GROUP], x: &[u32; PAIRS]) -> i32 {
    macro_rules! eight {
        ($at:literal) => {
            concat!(
                "ldm {x}!, {{r2, r3, r4, r5}}\n",
                "ldr {w}, [{q}, #",
                $at,
                "]\n",
                "sxtb16 {t}, {w}\n",
                "sxtb16 {w}, {w}, ror #8\n",
                "smlad {sum}, {t}, r2, {sum}\n",
                "ldr {t}, [{q}, #",
                $at,
                "+4]\n",
                "smlad {sum}, {w}, r3, {sum}\n",
                "sxtb16 {w}, {t}\n",
                "sxtb16 {t}, {t}, ror #8\n",
                "smlad {sum}, {w}, r4, {sum}\n",
                "smlad {sum}, {t}, r5, {sum}",
            )
        };
    }
    let mut sum = 0;
    // SAFETY: reads the 32 bytes of `q`, aligned or not as LDR may, and the 64 of `x`, which are words as LDM needs.
    unsafe {
        asm!(
            eight!(0), eight!(8), eight!(16), eight!(24),
            q = in(reg) q.as_ptr(), x = inout(reg) x.as_ptr() => _, sum = inout(reg) sum, w = out(reg) _, t = out(reg) _,
            out("r2") _, out("r3") _, out("r4") _, out("r5") _,
            options(pure, readonly, nostack),
        );
    }
    sum
}

/// Two rows' sums in R8 and R9, times the scales of their blocks at R0 and R1 and of the activations at R11, are added to
/// the lanes at R12, the second row's being 32 bytes after the first's. All pointers move on, blocks being `$bytes` long.
///
/// VMLA rounds the product before it adds it.
#[cfg(target_abi = "eabihf")]
macro_rules! add_two_scaled {
    ($bytes:literal) => {
        concat!(
            "vmov s0, s1, r8, r9\n",
            "ldrh r6, [r0], #",
            $bytes,
            "\n",
            "ldrh r7, [r1], #",
            $bytes,
            "\n",
            "vcvt.f32.s32 s0, s0\n",
            "vcvt.f32.s32 s1, s1\n",
            "vmov s2, s3, r6, r7\n",
            "vcvtb.f32.f16 s2, s2\n",
            "vcvtb.f32.f16 s3, s3\n",
            "vldmia r11!, {{s4}}\n",
            "vmul.f32 s0, s0, s2\n",
            "vmul.f32 s1, s1, s3\n",
            "vldr s2, [r12]\n",
            "vldr s3, [r12, #32]\n",
            "vmla.f32 s2, s0, s4\n",
            "vmla.f32 s3, s1, s4\n",
            "vstr s3, [r12, #32]\n",
            "vstmia r12!, {{s2}}",
        )
    };
}

/// Adds the products of two rows' blocks of Q8_0 to their lanes. Both share the loads of activations.
///
/// R6 and R7, which are no operands' to have, are borrowed.
#[cfg(target_abi = "eabihf")]
fn add_two_rows_of_bytes(row: &[u8], other: &[u8], x: &Spread, lanes: &mut [[f32; LANES]; 2]) {
    let n = (row.len() / 34).min(LANES);
    assert!(n > 0 && row.len() == other.len());
    /// Two words of codes of the block at `$row`.
    macro_rules! two_words {
        ($row:literal, $sum:literal, $at:literal) => {
            concat!(
                "ldr r6, [",
                $row,
                ", #2+",
                $at,
                "]\n",
                "sxtb16 r7, r6\n",
                "sxtb16 r6, r6, ror #8\n",
                "smlad ",
                $sum,
                ", r7, r2, ",
                $sum,
                "\n",
                "ldr r7, [",
                $row,
                ", #6+",
                $at,
                "]\n",
                "smlad ",
                $sum,
                ", r6, r3, ",
                $sum,
                "\n",
                "sxtb16 r6, r7\n",
                "sxtb16 r7, r7, ror #8\n",
                "smlad ",
                $sum,
                ", r6, r4, ",
                $sum,
                "\n",
                "smlad ",
                $sum,
                ", r7, r5, ",
                $sum,
                "\n",
            )
        };
    }
    macro_rules! eight {
        ($at:literal) => {
            concat!("ldm r10!, {{r2, r3, r4, r5}}\n", two_words!("r0", "r8", $at), two_words!("r1", "r9", $at))
        };
    }
    // SAFETY: reads `n` blocks of both rows, aligned or not as LDR and LDRH may, and `n` groups' pairs and scales; reads
    // and writes `n` lanes of each row, the second's 32 bytes after the first's. `n` is at most LANES, and both rows are
    // as long. R6 and R7 are as before when it ends.
    unsafe {
        asm!(
            "push {{r6, r7}}",
            "2:",
            "mov r8, #0",
            "mov r9, #0",
            eight!(0), eight!(8), eight!(16), eight!(24), add_two_scaled!(34),
            "subs lr, lr, #1",
            "bne 2b",
            "pop {{r6, r7}}",
            inout("r0") row.as_ptr() => _, inout("r1") other.as_ptr() => _, inout("r10") x.pairs.as_ptr() => _,
            inout("r11") x.d.as_ptr() => _, inout("r12") lanes.as_mut_ptr() => _, inout("lr") n => _,
            out("r2") _, out("r3") _, out("r4") _, out("r5") _, out("r8") _, out("r9") _,
            out("s0") _, out("s1") _, out("s2") _, out("s3") _, out("s4") _,
        );
    }
}

/// Adds the products of two rows' blocks of Q4_0 to their lanes, as [`add_two_rows_of_bytes`] does.
#[cfg(target_abi = "eabihf")]
fn add_two_rows_of_nibbles(row: &[u8], other: &[u8], x: &Spread, lanes: &mut [[f32; LANES]; 2]) {
    let n = (row.len() / 18).min(LANES);
    assert!(n > 0 && row.len() == other.len());
    /// Pairs of word R6 of a row and of word R7 of the other, shifted by each `$shift`, with those in R2 and in R3.
    macro_rules! both_rows {
        ($shift0:literal, $shift1:literal) => {
            concat!(
                "and r4, r5, r6",
                $shift0,
                "\n",
                "smlad r8, r4, r2, r8\n",
                "and r4, r5, r6",
                $shift1,
                "\n",
                "smlad r8, r4, r3, r8\n",
                "and r4, r5, r7",
                $shift0,
                "\n",
                "smlad r9, r4, r2, r9\n",
                "and r4, r5, r7",
                $shift1,
                "\n",
                "smlad r9, r4, r3, r9\n",
            )
        };
    }
    macro_rules! word {
        ($w:literal) => {
            concat!(
                "ldr r6, [r0, #2+4*",
                $w,
                "]\n",
                "ldr r7, [r1, #2+4*",
                $w,
                "]\n",
                "ldrd r2, r3, [r10, #8*",
                $w,
                "]\n",
                both_rows!("", ", lsr #8"),
                "ldrd r2, r3, [r10, #32+8*",
                $w,
                "]\n",
                both_rows!(", lsr #4", ", lsr #12"),
            )
        };
    }
    // SAFETY: as there; what the sums start with is in `x`, too, `sums` bytes after a group's scale.
    unsafe {
        asm!(
            "push {{r6, r7}}",
            "2:",
            "ldr r8, [r11, #{sums}]",
            "mov r9, r8",
            word!(0), word!(1), word!(2), word!(3), add_two_scaled!(18),
            "add r10, r10, #64",
            "subs lr, lr, #1",
            "bne 2b",
            "pop {{r6, r7}}",
            sums = const offset_of!(Spread, sums) - offset_of!(Spread, d),
            inout("r0") row.as_ptr() => _, inout("r1") other.as_ptr() => _,
            inout("r10") (x as *const Spread).cast::<u8>() => _,
            inout("r11") (x as *const Spread).cast::<u8>().add(offset_of!(Spread, d)) => _,
            inout("r12") lanes.as_mut_ptr() => _, inout("lr") n => _, in("r5") 0x000f_000f,
            out("r2") _, out("r3") _, out("r4") _, out("r8") _, out("r9") _,
            out("s0") _, out("s1") _, out("s2") _, out("s3") _, out("s4") _,
        );
    }
}

/// The same without an FPU.
#[cfg(not(target_abi = "eabihf"))]
fn add_two_rows_of_bytes(row: &[u8], other: &[u8], x: &Spread, lanes: &mut [[f32; LANES]; 2]) {
    for (row, lanes) in [row, other].into_iter().zip(lanes) {
        for (g, (block, lane)) in row.as_chunks::<34>().0.iter().zip(lanes).enumerate() {
            add_scaled(dot_bytes(part(block, 2), &x.pairs[g]), block, &x.d[g], lane);
        }
    }
}

/// The same without an FPU.
#[cfg(not(target_abi = "eabihf"))]
fn add_two_rows_of_nibbles(row: &[u8], other: &[u8], x: &Spread, lanes: &mut [[f32; LANES]; 2]) {
    for (row, lanes) in [row, other].into_iter().zip(lanes) {
        for (g, (block, lane)) in row.as_chunks::<18>().0.iter().zip(lanes).enumerate() {
            add_scaled(dot_nibbles(x.sums[g], part(block, 2), &x.pairs[g]), block, &x.d[g], lane);
        }
    }
}

/// The four pairs of nibbles in word `$w` of `q`: the low ones' products to `$low`, the high ones' to `$high`.
macro_rules! nibble_word {
    ($w:literal, $low:literal, $high:literal) => {
        concat!(
            "ldr {w}, [{q}, #4*",
            $w,
            "]\n",
            "ldrd {a}, {b}, [{x}, #8*",
            $w,
            "]\n",
            "and {t}, {m}, {w}\n",
            "smlad {",
            $low,
            "}, {t}, {a}, {",
            $low,
            "}\n",
            "and {t}, {m}, {w}, lsr #8\n",
            "smlad {",
            $low,
            "}, {t}, {b}, {",
            $low,
            "}\n",
            "ldrd {a}, {b}, [{x_high}, #8*",
            $w,
            "]\n",
            "and {t}, {m}, {w}, lsr #4\n",
            "smlad {",
            $high,
            "}, {t}, {a}, {",
            $high,
            "}\n",
            "and {t}, {m}, {w}, lsr #12\n",
            "smlad {",
            $high,
            "}, {t}, {b}, {",
            $high,
            "}",
        )
    };
}

/// 16 bytes whose low nibbles are a group's first half, and whose high ones its second.
#[inline(always)]
fn dot_nibbles(start: i32, q: &[u8; HALF], x: &[u32; PAIRS]) -> i32 {
    let mut sum = start;
    // SAFETY: reads the 16 bytes of `q`, aligned or not as LDR may, and the 64 of `x`, which are words as LDRD needs.
    unsafe {
        asm!(
            nibble_word!(0, "sum", "sum"), nibble_word!(1, "sum", "sum"), nibble_word!(2, "sum", "sum"), nibble_word!(3, "sum", "sum"),
            q = in(reg) q.as_ptr(), x = in(reg) x.as_ptr(), x_high = in(reg) x[PAIRS / 2..].as_ptr(),
            m = in(reg) 0x000f_000f, sum = inout(reg) sum,
            w = out(reg) _, t = out(reg) _, a = out(reg) _, b = out(reg) _,
            options(pure, readonly, nostack),
        );
    }
    sum
}

/// 32 bytes whose low nibbles are one group, and whose high ones the next.
#[inline(always)]
fn dot_two_nibbles(q: &[u8; GROUP], x: &[[u32; PAIRS]; 2]) -> [i32; 2] {
    let (mut low, mut high) = (0, 0);
    // SAFETY: reads the 32 bytes of `q`, aligned or not as LDR may, and the 128 of `x`, which are words as LDRD needs.
    unsafe {
        asm!(
            nibble_word!(0, "low", "high"), nibble_word!(1, "low", "high"), nibble_word!(2, "low", "high"), nibble_word!(3, "low", "high"),
            nibble_word!(4, "low", "high"), nibble_word!(5, "low", "high"), nibble_word!(6, "low", "high"), nibble_word!(7, "low", "high"),
            q = in(reg) q.as_ptr(), x = in(reg) x[0].as_ptr(), x_high = in(reg) x[1].as_ptr(),
            m = in(reg) 0x000f_000f, low = inout(reg) low, high = inout(reg) high,
            w = out(reg) _, t = out(reg) _, a = out(reg) _, b = out(reg) _,
            options(pure, readonly, nostack),
        );
    }
    [low, high]
}

/// 16 bytes that hold four pairs of bits each: half H of four groups.
#[inline(always)]
fn dot_twos<const H: usize>(q: &[u8; HALF], x: &[[u32; PAIRS]; 4]) -> [i32; 4] {
    /// Bits `$shift` and up of word `$w` are of group `$k`.
    macro_rules! pairs {
        ($w:literal, $k:literal, $shift:literal, $sum:literal) => {
            concat!(
                "ldrd {a}, {b}, [{x}, #64*",
                $k,
                "+8*",
                $w,
                "]\n",
                "and {t}, {m}, {w}, lsr #",
                $shift,
                "\n",
                "smlad {",
                $sum,
                "}, {t}, {a}, {",
                $sum,
                "}\n",
                "and {t}, {m}, {w}, lsr #8+",
                $shift,
                "\n",
                "smlad {",
                $sum,
                "}, {t}, {b}, {",
                $sum,
                "}",
            )
        };
    }
    macro_rules! word {
        ($w:literal) => {
            concat!(
                "ldr {w}, [{q}, #4*",
                $w,
                "]\n",
                // A shift by 0 would be one by 32.
                "ldrd {a}, {b}, [{x}, #8*",
                $w,
                "]\n",
                "and {t}, {m}, {w}\n",
                "smlad {s0}, {t}, {a}, {s0}\n",
                "and {t}, {m}, {w}, lsr #8\n",
                "smlad {s0}, {t}, {b}, {s0}\n",
                pairs!($w, 1, 2, "s1"),
                "\n",
                pairs!($w, 2, 4, "s2"),
                "\n",
                pairs!($w, 3, 6, "s3"),
            )
        };
    }
    let (mut s0, mut s1, mut s2, mut s3) = (0, 0, 0, 0);
    // SAFETY: reads the 16 bytes of `q`, aligned or not as LDR may, and half of each 64 of `x`, words as LDRD needs.
    unsafe {
        asm!(
            word!(0), word!(1), word!(2), word!(3),
            q = in(reg) q.as_ptr(), x = in(reg) x[0][H * PAIRS / 2..].as_ptr(), m = in(reg) 0x0003_0003,
            s0 = inout(reg) s0, s1 = inout(reg) s1, s2 = inout(reg) s2, s3 = inout(reg) s3,
            w = out(reg) _, t = out(reg) _, a = out(reg) _, b = out(reg) _,
            options(pure, readonly, nostack),
        );
    }
    [s0, s1, s2, s3]
}

/// Four codes of 8 bits in R10, of which R11 has a part still missing: their products with the pairs `$x` bytes after R1
/// to `$sum`. R12 and LR are overwritten.
macro_rules! join {
    ($x:expr, $sum:literal) => {
        concat!(
            "orr r10, r10, r11\n",
            "ldrd r12, lr, [r1, #",
            $x,
            "]\n",
            "uxtb16 r11, r10\n",
            "uxtb16 r10, r10, ror #8\n",
            "smlad ",
            $sum,
            ", r11, r12, ",
            $sum,
            "\n",
            "smlad ",
            $sum,
            ", r10, lr, ",
            $sum,
        )
    };
}

/// What four groups' sums in R4, R5, R8 and R9 start with: the products of half `$h`'s activations and the bias.
macro_rules! start {
    ($h:literal) => {
        concat!(
            "ldr r4, [r1, #{halves}+4*",
            $h,
            "]\n",
            "ldr r5, [r1, #{halves}+4*",
            $h,
            "+8]\n",
            "ldr r8, [r1, #{halves}+4*",
            $h,
            "+16]\n",
            "ldr r9, [r1, #{halves}+4*",
            $h,
            "+24]",
        )
    };
}

/// The sums times their half's scales, which lie `$at` after `$scales` for half 0, and its products pushed.
macro_rules! scale_first {
    ($scales:literal, $at:literal) => {
        concat!(
            "ldrsb r6, [",
            $scales,
            ", #",
            $at,
            "]\n",
            "ldrsb r7, [",
            $scales,
            ", #",
            $at,
            "+2]\n",
            "ldrsb r11, [",
            $scales,
            ", #",
            $at,
            "+4]\n",
            "ldrsb r12, [",
            $scales,
            ", #",
            $at,
            "+6]\n",
            "mul r4, r4, r6\n",
            "mul r5, r5, r7\n",
            "mul r8, r8, r11\n",
            "mul r9, r9, r12\n",
            "push {{r4, r5, r8, r9}}",
        )
    };
}

/// The sums times the scales of half 1, and what half 0 pushed added. `$scales` is not R10 or above.
macro_rules! scale_second {
    ($scales:literal, $at:literal) => {
        concat!(
            "pop {{r10, r11, r12, lr}}\n",
            "ldrsb r6, [",
            $scales,
            ", #",
            $at,
            "+1]\n",
            "mla r4, r4, r6, r10\n",
            "ldrsb r6, [",
            $scales,
            ", #",
            $at,
            "+3]\n",
            "mla r5, r5, r6, r11\n",
            "ldrsb r6, [",
            $scales,
            ", #",
            $at,
            "+5]\n",
            "mla r8, r8, r6, r12\n",
            "ldrsb r6, [",
            $scales,
            ", #",
            $at,
            "+7]\n",
            "mla r9, r9, r6, lr",
        )
    };
}

/// Groups 4J..4J + 4 of a Q3_K block, each half times its scale: codes 0..=7.
///
/// R6 and R7, which are no operands' to have, are borrowed.
#[inline(always)]
fn dot_threes<const J: usize>(block: &[u8; 110], scales: &[i8; 16], x: &Spread) -> [i32; 4] {
    /// `$k` shifts group k's third bits to place 2.
    macro_rules! word {
        ($h:literal, $w:literal, $k0:literal, $k1:literal, $k2:literal, $k3:literal) => {
            concat!(
                "ldr r6, [r0, #{low}+16*",
                $h,
                "+4*",
                $w,
                "]\n",
                "ldr r7, [r0, #16*",
                $h,
                "+4*",
                $w,
                "]\n",
                "and r10, r2, r6\n",
                "and r11, r3, r7",
                $k0,
                "\n",
                join!(concat!("{pairs}+32*", $h, "+8*", $w), "r4"),
                "\n",
                "and r10, r2, r6, lsr #2\n",
                "and r11, r3, r7",
                $k1,
                "\n",
                join!(concat!("{pairs}+64+32*", $h, "+8*", $w), "r5"),
                "\n",
                "and r10, r2, r6, lsr #4\n",
                "and r11, r3, r7",
                $k2,
                "\n",
                join!(concat!("{pairs}+128+32*", $h, "+8*", $w), "r8"),
                "\n",
                "and r10, r2, r6, lsr #6\n",
                "and r11, r3, r7",
                $k3,
                "\n",
                join!(concat!("{pairs}+192+32*", $h, "+8*", $w), "r9"),
            )
        };
    }
    let [s0, s1, s2, s3];
    macro_rules! words {
        ($($k:literal),*) => {
            // SAFETY: reads 32 bytes each of the block's `hmask` and `qs`, aligned or not as LDR may, eight of `scales`, and
            // four groups' pairs and halves of `x`, words as LDRD needs; the stack, R6 and R7 are as before when it ends.
            unsafe {
                asm!(
                    "push {{r6, r7, r12}}",
                    start!(0),
                    word!(0, 0, $($k),*), word!(0, 1, $($k),*), word!(0, 2, $($k),*), word!(0, 3, $($k),*),
                    "ldr r10, [sp, #8]",
                    scale_first!("r10", 0),
                    start!(1),
                    word!(1, 0, $($k),*), word!(1, 1, $($k),*), word!(1, 2, $($k),*), word!(1, 3, $($k),*),
                    "ldr r7, [sp, #24]",
                    scale_second!("r7", 0),
                    "pop {{r6, r7, r12}}",
                    low = const 32 + 32 * J, pairs = const 256 * J,
                    halves = const offset_of!(Spread, halves) + 32 * J,
                    in("r0") block.as_ptr(), in("r1") x, in("r2") 0x0303_0303, in("r3") 0x0404_0404,
                    out("r4") s0, out("r5") s1, out("r8") s2, out("r9") s3,
                    out("r10") _, out("r11") _, inout("r12") scales[8 * J..].as_ptr() => _, out("lr") _,
                    options(pure, readonly),
                )
            }
        };
    }
    if J == 0 {
        words!(", lsl #2", ", lsl #1", "", ", lsr #1");
    } else {
        words!(", lsr #2", ", lsr #3", ", lsr #4", ", lsr #5");
    }
    [s0, s1, s2, s3]
}

/// Groups 2K and 2K + 1 of a Q5_K block: codes 0..=31.
#[inline(always)]
fn dot_two_fives<const K: usize>(block: &[u8; 176], x: &[[u32; PAIRS]; 2]) -> [i32; 2] {
    macro_rules! word {
        ($w:literal, $low:literal, $high:literal) => {
            concat!(
                "ldr r9, [r0, #16+4*",
                $w,
                "]\n",
                "ldr r8, [r0, #{low}+4*",
                $w,
                "]\n",
                "and r10, r2, r8\n",
                "and r11, r3, r9",
                $low,
                "\n",
                join!(concat!("8*", $w), "r4"),
                "\n",
                "and r10, r2, r8, lsr #4\n",
                "and r11, r3, r9",
                $high,
                "\n",
                join!(concat!("64+8*", $w), "r5"),
            )
        };
    }
    let (mut s0, mut s1) = (0, 0);
    macro_rules! words {
        ($($k:literal),*) => {
            // SAFETY: reads 32 bytes each of the block's `qh` and `qs`, aligned or not as LDR may, and the 128 of `x`, words as
            // LDRD needs.
            unsafe {
                asm!(
                    word!(0, $($k),*), word!(1, $($k),*), word!(2, $($k),*), word!(3, $($k),*),
                    word!(4, $($k),*), word!(5, $($k),*), word!(6, $($k),*), word!(7, $($k),*),
                    low = const 48 + 32 * K, in("r0") block.as_ptr(), in("r1") x.as_ptr(),
                    in("r2") 0x0f0f_0f0f, in("r3") 0x1010_1010, inout("r4") s0, inout("r5") s1,
                    out("r8") _, out("r9") _, out("r10") _, out("r11") _, out("r12") _, out("lr") _,
                    options(pure, readonly, nostack),
                )
            }
        };
    }
    match K {
        0 => words!(", lsl #4", ", lsl #3"),
        1 => words!(", lsl #2", ", lsl #1"),
        2 => words!("", ", lsr #1"),
        _ => words!(", lsr #2", ", lsr #3"),
    }
    [s0, s1]
}

/// Groups 4J..4J + 4 of a Q6_K block, each half times its scale: codes 0..=63.
#[inline(always)]
fn dot_sixes<const J: usize>(block: &[u8; 210], x: &Spread) -> [i32; 4] {
    /// Nibbles of `$at` in `ql` are groups `$s0` and `$s1`, whose fifth and sixth bits are shifted into place.
    macro_rules! nibbles {
        ($at:expr, $x0:expr, $s0:literal, $k0:literal, $x1:expr, $s1:literal, $k1:literal) => {
            concat!(
                "ldr r6, [r0, #",
                $at,
                "]\n",
                "and r10, r2, r6\n",
                "and r11, r3, r7",
                $k0,
                "\n",
                join!($x0, $s0),
                "\n",
                "and r10, r2, r6, lsr #4\n",
                "and r11, r3, r7",
                $k1,
                "\n",
                join!($x1, $s1),
            )
        };
    }
    macro_rules! word {
        ($h:literal, $w:literal) => {
            concat!(
                "ldr r7, [r0, #{high}+16*",
                $h,
                "+4*",
                $w,
                "]\n",
                nibbles!(
                    concat!("16*", $h, "+4*", $w),
                    concat!("{pairs}+32*", $h, "+8*", $w),
                    "r4",
                    ", lsl #4",
                    concat!("{pairs}+128+32*", $h, "+8*", $w),
                    "r8",
                    ""
                ),
                "\n",
                nibbles!(
                    concat!("32+16*", $h, "+4*", $w),
                    concat!("{pairs}+64+32*", $h, "+8*", $w),
                    "r5",
                    ", lsl #2",
                    concat!("{pairs}+192+32*", $h, "+8*", $w),
                    "r9",
                    ", lsr #2"
                ),
            )
        };
    }
    let [s0, s1, s2, s3];
    // SAFETY: reads 64 bytes of the block's `ql` and 32 of its `qh`, aligned or not as LDR may, eight scales, and four
    // groups' pairs and halves of `x`, words as LDRD needs; the stack, R6 and R7 are as before when it ends.
    unsafe {
        asm!(
            "push {{r6, r7}}",
            start!(0), word!(0, 0), word!(0, 1), word!(0, 2), word!(0, 3), scale_first!("r0", "{scales}"),
            start!(1), word!(1, 0), word!(1, 1), word!(1, 2), word!(1, 3), scale_second!("r0", "{scales}"),
            "pop {{r6, r7}}",
            high = const 128 - 32 * J, scales = const 192 - 56 * J, pairs = const 256 * J,
            halves = const offset_of!(Spread, halves) + 32 * J,
            in("r0") block[64 * J..].as_ptr(), in("r1") x, in("r2") 0x0f0f_0f0f, in("r3") 0x3030_3030,
            out("r4") s0, out("r5") s1, out("r8") s2, out("r9") s3,
            out("r10") _, out("r11") _, out("r12") _, out("lr") _,
            options(pure, readonly),
        );
    }
    [s0, s1, s2, s3]
}

/// 16 bytes of nibbles, whose fifth bits are those of `high` in the order of the weights.
#[inline(always)]
fn dot_fives(start: i32, high: &[u8; 4], q: &[u8; HALF], x: &[u32; PAIRS]) -> i32 {
    /// Four bits times SPREAD are one at place 4 of each byte.
    macro_rules! word {
        ($w:literal) => {
            concat!(
                "ldr r8, [r0, #4*",
                $w,
                "]\n",
                "ubfx r11, r2, #4*",
                $w,
                ", #4\n",
                "mul r11, r11, r3\n",
                "and r10, r8, #0x0f0f0f0f\n",
                "and r11, r11, #0x10101010\n",
                join!(concat!("8*", $w), "r4"),
                "\n",
                "ubfx r11, r2, #16+4*",
                $w,
                ", #4\n",
                "mul r11, r11, r3\n",
                "lsr r8, r8, #4\n",
                "and r10, r8, #0x0f0f0f0f\n",
                "and r11, r11, #0x10101010\n",
                join!(concat!("32+8*", $w), "r4"),
            )
        };
    }
    const SPREAD: u32 = 1 << 4 | 1 << 11 | 1 << 18 | 1 << 25;
    let mut sum = start;
    // SAFETY: reads the 16 bytes of `q`, aligned or not as LDR may, and the 64 of `x`, which are words as LDRD needs.
    unsafe {
        asm!(
            word!(0), word!(1), word!(2), word!(3),
            in("r0") q.as_ptr(), in("r1") x.as_ptr(), in("r2") u32::from_le_bytes(*high), in("r3") SPREAD,
            inout("r4") sum, out("r8") _, out("r10") _, out("r11") _, out("r12") _, out("lr") _,
            options(pure, readonly, nostack),
        );
    }
    sum
}

/// What both nibbles of a byte stand for in the IQ4 formats, as a pair. 1 KiB of flash.
static STEP_PAIRS: [u32; 256] = {
    let mut pairs = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (low, high) = (iq4_nl::STEPS[byte & 15], iq4_nl::STEPS[byte >> 4]);
        pairs[byte] = low as u16 as u32 | (high as u16 as u32) << 16;
        byte += 1;
    }
    pairs
};

/// 16 bytes of nibbles that index [`iq4_nl::STEPS`]; pairs of activations in [`Order::Halves`].
#[inline(always)]
fn dot_steps(q: &[u8; HALF], x: &[u32; PAIRS]) -> i32 {
    macro_rules! word {
        ($w:literal) => {
            concat!(
                "ldm {x}!, {{r2, r3, r4, r5}}\n",
                "ldr {w}, [{q}, #4*",
                $w,
                "]\n",
                "uxtb {t}, {w}\n",
                "ldr {t}, [{steps}, {t}, lsl #2]\n",
                "smlad {sum}, {t}, r2, {sum}\n",
                "ubfx {t}, {w}, #8, #8\n",
                "ldr {t}, [{steps}, {t}, lsl #2]\n",
                "smlad {sum}, {t}, r3, {sum}\n",
                "ubfx {t}, {w}, #16, #8\n",
                "ldr {t}, [{steps}, {t}, lsl #2]\n",
                "smlad {sum}, {t}, r4, {sum}\n",
                "lsr {t}, {w}, #24\n",
                "ldr {t}, [{steps}, {t}, lsl #2]\n",
                "smlad {sum}, {t}, r5, {sum}",
            )
        };
    }
    let mut sum = 0;
    // SAFETY: reads the 16 bytes of `q`, aligned or not as LDR may, the 64 of `x`, which are words as LDM needs, and
    // words of a table that has one for each byte there is.
    unsafe {
        asm!(
            word!(0), word!(1), word!(2), word!(3),
            q = in(reg) q.as_ptr(), x = inout(reg) x.as_ptr() => _, steps = in(reg) STEP_PAIRS.as_ptr(),
            sum = inout(reg) sum, w = out(reg) _, t = out(reg) _,
            out("r2") _, out("r3") _, out("r4") _, out("r5") _,
            options(pure, readonly, nostack),
        );
    }
    sum
}
