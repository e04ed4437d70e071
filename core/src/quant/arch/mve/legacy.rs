//! Blocks of 32 weights: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1.

use core::arch::asm;

use super::super::super::{Activation, GROUP, HALF, LANES, sum_lanes};
use super::super::arm_dsp::{bytes, half, word};
use super::{Group, Tile, add_to_lanes, groups, helium, keep_four, row};

pub(super) fn q8_0(tile: &Tile, products: &mut [f32]) {
    let n = tile.eights::<{ 34 * LANES }>();
    dot_rows::<34>(
        n,
        tile,
        products,
        |row, x, lanes| dot_row_of_bytes(n, row, x, lanes),
        |block, x| dot_bytes(bytes(block, 2), x.q),
    );
}

pub(super) fn q4_0(tile: &Tile, products: &mut [f32]) {
    let n = tile.eights::<{ 18 * LANES }>().min(SUMS / LANES);
    let mut sums = [0; SUMS];
    for (to, x) in sums[..n * LANES].iter_mut().zip(groups(&tile.x)) {
        *to = x.sum;
    }
    dot_rows::<18>(
        n,
        tile,
        products,
        |row, x, lanes| dot_row_of_nibbles(n, row, x, &sums, lanes),
        |block, x| dot_nibbles(bytes(block, 2), x.q) - 8 * x.sum,
    );
}

/// The products of rows of blocks of BYTES bytes: `eights` multiplies the first `n` times LANES blocks and leaves their sum
/// in the lanes, too, `one` each block after them.
#[inline(always)]
fn dot_rows<const BYTES: usize>(
    n: usize,
    tile: &Tile,
    products: &mut [f32],
    eights: impl Fn(&[u8], &Activation, &mut [f32; LANES]) -> f32,
    one: impl Fn(&[u8; BYTES], &Group) -> i32,
) {
    let mut lanes = [0.0; LANES];
    let is_all = tile.row_bytes == n * LANES * BYTES;
    tile.for_rows(products, |row, x| {
        let product = eights(row, x, &mut lanes);
        if is_all {
            return product;
        }
        for (g, (block, x)) in row.as_chunks().0.iter().zip(groups(x)).enumerate().skip(n * LANES) {
            lanes[g % LANES] += one(block, &x) as f32 * half(block, 0) * x.d;
        }
        sum_lanes(lanes)
    });
}

pub(super) fn q4_1(tile: &Tile, products: &mut [f32]) {
    tile.for_blocks::<20>(products, |block, x, lane| {
        let scaled = dot_nibbles(bytes(block, 4), x.q) as f32 * half(block, 0);
        *lane += (scaled + x.sum as f32 * half(block, 2)) * x.d;
    });
}

pub(super) fn q5_0(tile: &Tile, products: &mut [f32]) {
    tile.for_blocks::<22>(products, |block, x, lane| {
        let sum = dot_fives(word(block, 2), bytes(block, 6), x.q) - 16 * x.sum;
        *lane += sum as f32 * half(block, 0) * x.d;
    });
}

pub(super) fn q5_1(tile: &Tile, products: &mut [f32]) {
    tile.for_blocks::<24>(products, |block, x, lane| {
        let scaled = dot_fives(word(block, 4), bytes(block, 8), x.q) as f32 * half(block, 0);
        *lane += (scaled + x.sum as f32 * half(block, 2)) * x.d;
    });
}

/// 32 codes of 8 bits. Reads `c` and `q`.
#[inline(always)]
fn dot_bytes(c: &[u8; GROUP], q: &[i8; GROUP]) -> i32 {
    helium!(
        [
            "vldrb.u8 q0, [{c}]",
            "vldrb.u8 q1, [{q}]",
            "vldrb.u8 q2, [{c}, #16]",
            "vmlav.s8 r0, q0, q1",
            "vldrb.u8 q3, [{q}, #16]",
            "vmlava.s8 r0, q2, q3",
        ],
        c = in(reg) c.as_ptr(), q = in(reg) q.as_ptr(),
    )[0]
}

/// 16 bytes whose low nibbles are a group's first half, and whose high ones its second. Reads `c` and `q`.
#[inline(always)]
fn dot_nibbles(c: &[u8; HALF], q: &[i8; GROUP]) -> i32 {
    helium!(
        [
            "vldrb.u8 q0, [{c}]",
            "vmov.i8 q4, #0x0f",
            "vldrb.u8 q1, [{q}]",
            "vand q2, q0, q4",
            "vshr.u8 q0, q0, #4",
            "vmlav.s8 r0, q2, q1",
            "vldrb.u8 q1, [{q}, #16]",
            "vmlava.s8 r0, q0, q1",
        ],
        c = in(reg) c.as_ptr(), q = in(reg) q.as_ptr(),
    )[0]
}

/// 16 bytes of nibbles, whose fifth bits are those of `high` in the order of the weights: as a predicate, each says
/// whether its byte gets 16 more. Reads `c` and `q`.
#[inline(always)]
fn dot_fives(high: u32, c: &[u8; HALF], q: &[i8; GROUP]) -> i32 {
    helium!(
        [
            "vldrb.u8 q0, [{c}]",
            "vmov.i8 q4, #0x0f",
            "vmov.i8 q3, #0x10",
            "vand q2, q0, q4",
            "vshr.u8 q0, q0, #4",
            "vmsr p0, {high}",
            "vpst",
            "vaddt.i8 q2, q2, q3",
            "lsr {high}, {high}, #16",
            "vmsr p0, {high}",
            "vpst",
            "vaddt.i8 q0, q0, q3",
            "vldrb.u8 q1, [{q}]",
            "vmlav.s8 r0, q2, q1",
            "vldrb.u8 q1, [{q}, #16]",
            "vmlava.s8 r0, q0, q1",
        ],
        c = in(reg) c.as_ptr(), q = in(reg) q.as_ptr(), high = inout(reg) high => _,
    )[0]
}

/// Groups whose sums are at hand; blocks after them are multiplied one by one. 1 KiB of the stack.
const SUMS: usize = 256;

/// Where four blocks of Q8_0 begin.
static BYTES_APART: [u32; 4] = [0, 34, 68, 102];
/// Where four blocks of Q4_0 begin.
static NIBBLES_APART: [u32; 4] = [0, 18, 36, 54];

/// The sums in Q4 times the scales of four blocks, as far from R1 as Q5 says.
macro_rules! scale_blocks {
    () => {
        "vldrh.u32 q0, [r1, q5]\nvcvtb.f32.f16 q0, q0\nvcvt.f32.s32 q4, q4\nvmul.f32 q4, q4, q0"
    };
}

/// The product of a row's first `n` times LANES blocks of Q8_0.
#[inline(always)]
fn dot_row_of_bytes(n: usize, row: &[u8], x: &Activation, lanes: &mut [f32; LANES]) -> f32 {
    #[rustfmt::skip]
    macro_rules! dot {
        ($sum:literal, $block:literal) => {
            concat!(
                "vldrb.u8 q0, [r1, #34*", $block, "+2]\nvldrb.u8 q1, [r3], #16\nvmlav.s8 ", $sum, ", q0, q1\n",
                "vldrb.u8 q0, [r1, #34*", $block, "+18]\nvldrb.u8 q1, [r3], #16\nvmlava.s8 ", $sum, ", q0, q1\n",
            )
        };
    }
    macro_rules! four_blocks {
        () => {
            concat!(dot!("r0", 0), dot!("r2", 1), dot!("r4", 2), dot!("r8", 3), keep_four!(4), "\n", scale_blocks!())
        };
    }
    row!(
        n, ["vldrw.u32 q5, [{offsets}]"],
        [
            four_blocks!(), add_to_lanes!("s24", "s25", "s26", "s27"), "add r1, r1, #136",
            four_blocks!(), add_to_lanes!("s28", "s29", "s30", "s31"), "add r1, r1, #136",
        ],
        row, x, lanes, offsets = in(reg) BYTES_APART.as_ptr(),
    )
}

/// The product of a row's first `n` times LANES blocks of Q4_0; `sums` are those of the activations' codes: as a nibble
/// stands for c - 8, eight times as much is too much.
#[inline(always)]
fn dot_row_of_nibbles(n: usize, row: &[u8], x: &Activation, sums: &[i32; SUMS], lanes: &mut [f32; LANES]) -> f32 {
    #[rustfmt::skip]
    macro_rules! dot {
        ($sum:literal, $block:literal) => {
            concat!(
                "vldrb.u8 q0, [r1, #18*", $block, "+2]\n",
                "vldrb.u8 q2, [r3], #16\nvand q1, q0, q3\nvmlav.s8 ", $sum, ", q1, q2\n",
                "vldrb.u8 q2, [r3], #16\nvshr.u8 q0, q0, #4\nvmlava.s8 ", $sum, ", q0, q2\n",
            )
        };
    }
    #[rustfmt::skip]
    macro_rules! four_blocks {
        () => {
            concat!(
                dot!("r0", 0), dot!("r2", 1), dot!("r4", 2), dot!("r8", 3), keep_four!(4), "\n",
                "vldrw.u32 q0, [r9], #16\nvmla.s32 q4, q0, r12\n", scale_blocks!(),
            )
        };
    }
    row!(
        n, ["vmov.i8 q3, #0x0f", "vldrw.u32 q5, [{offsets}]"],
        [
            four_blocks!(), add_to_lanes!("s24", "s25", "s26", "s27"), "add r1, r1, #72",
            four_blocks!(), add_to_lanes!("s28", "s29", "s30", "s31"), "add r1, r1, #72",
        ],
        row, x, lanes, offsets = in(reg) NIBBLES_APART.as_ptr(), inout("r9") sums.as_ptr() => _, in("r12") -8,
    )
}
