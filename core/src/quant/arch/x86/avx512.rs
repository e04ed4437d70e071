//! AVX-512 with VNNI: four rows at a time for few activation rows.
//!
//! # The idea
//! `vpdpbusd` multiplies 64 bytes and adds four neighbours. What comes of a group must end up in one 32-bit number, in
//! order, and that should cost few instructions. So a slab's 16 half groups are arranged as four vectors of four:
//!
//! ```text
//! lane (16 bytes)    0       1       2       3
//! codes[0]          0 low   2 low   4 low   6 low      first halves of even groups
//! codes[1]          0 high  2 high  4 high  6 high     second halves of even groups
//! codes[2]          1 low   3 low   5 low   7 low      first halves of odd groups
//! codes[3]          1 high  3 high  5 high  7 high     second halves of odd groups
//! ```
//!
//! Most formats come out of memory nearly so; activations are arranged once for four rows. Then products of codes 0
//! and 1 go to the same numbers, those of 2 and 3 as well, and seven shuffles and additions give the 8 groups of two
//! rows, with lane `l` holding `[row 0 group 2l, row 0 group 2l + 1, row 1 group 2l, row 1 group 2l + 1]`. From there
//! on two rows share each instruction. Formats with a scale for 16 weights go through half groups in order instead.
//!
//! Codes are unsigned, above the weight by a format's bias; sums start at `-bias · Σ activations`, so that it cancels.

use core::arch::x86_64::*;

use super::many::{WIDE, Wide};
use super::prefetch_ahead;
use super::slab::{LastSlab, Rest, Slab, Slabs, columns};
use super::unpack::*;
use crate::quant::iq4_nl::STEPS;
use crate::quant::{Batch, sum_lanes};

/// Rows at a time.
const ROWS: usize = 4;
/// How much the u8 code of a signed format is above its weight.
const SIGNED_BIAS: i16 = 128;

/// A format's codes as the picture has them.
pub(super) trait Arrange: Unpack {
    /// Unsigned codes, signed ones raised by 128.
    ///
    /// # Safety
    /// The processor runs AVX-512 F, BW, VL and VBMI.
    unsafe fn arrange(slab: &[u8]) -> [__m512i; 4];

    /// How much codes are above the weights that they stand for.
    const RAISED: i16 = if Self::SIGNED { SIGNED_BIAS } else { Self::BIAS };
}

/// A slab of two rows.
struct Pair {
    codes: [[__m512i; 4]; 2],
    /// Per row and half group (16 each), or of both rows and all groups.
    scales: [__m512i; 2],
    /// The others: of both rows and all groups.
    d: __m512,
    minima: __m512i,
    m: __m512,
}

/// A slab of an activation row.
#[derive(Clone, Copy)]
struct Arranged {
    q: [__m512i; 4],
    /// Where sums start.
    start: [__m512i; 4],
    /// Twice each: as two rows want it.
    d: __m512,
    sums: __m512i,
}

/// 64 bits of one row, 64 bits of the other, and so on.
#[inline]
#[target_feature(enable = "avx512f")]
fn zip(a: __m256i, b: __m256i) -> __m512i {
    let order = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
    _mm512_permutex2var_epi64(_mm512_castsi256_si512(a), order, _mm512_castsi256_si512(b))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn zip_ps(a: __m256, b: __m256) -> __m512 {
    _mm512_castsi512_ps(zip(_mm256_castps_si256(a), _mm256_castps_si256(b)))
}

/// Takes a slab of two rows apart.
#[inline]
#[target_feature(enable = "avx,avx2,bmi1,bmi2,f16c,avx512f,avx512dq,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
fn weights<U: Arrange>(slabs: [&[u8]; 2]) -> Pair {
    let mut codes = [[_mm512_setzero_si512(); 4]; 2];
    for (codes, slab) in codes.iter_mut().zip(slabs) {
        // SAFETY: this function has the features that this needs.
        *codes = unsafe { U::arrange(slab) };
    }
    // SAFETY: as above.
    let [a, b] = unsafe { each!(r in 0, 1 => U::factors(slabs[r])) };
    let scales = match U::SCALES {
        Scales::Half => [_mm512_cvtepi16_epi32(a.scales), _mm512_cvtepi16_epi32(b.scales)],
        _ => [zip(a.scales, b.scales); 2],
    };
    Pair { codes, scales, d: zip_ps(a.d, b.d), minima: zip(a.minima, b.minima), m: zip_ps(a.m, b.m) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2")]
fn arranged<U: Arrange>(x: Slab) -> Arranged {
    let bytes: &[u8; 256] = bytemuck::cast_ref(x.q);
    let [a, b, c, d] = each!(at in 0, 64, 128, 192 => load_64(bytes, at));
    // Lanes are half groups 0-3, 4-7, 8-11, 12-15.
    let (ab_low, ab_high) = (_mm512_shuffle_i64x2::<0b01_00_01_00>(a, b), _mm512_shuffle_i64x2::<0b11_10_11_10>(a, b));
    let (cd_low, cd_high) = (_mm512_shuffle_i64x2::<0b01_00_01_00>(c, d), _mm512_shuffle_i64x2::<0b11_10_11_10>(c, d));
    let q = [
        _mm512_shuffle_i64x2::<0b10_00_10_00>(ab_low, cd_low),
        _mm512_shuffle_i64x2::<0b11_01_11_01>(ab_low, cd_low),
        _mm512_shuffle_i64x2::<0b10_00_10_00>(ab_high, cd_high),
        _mm512_shuffle_i64x2::<0b11_01_11_01>(ab_high, cd_high),
    ];
    let zero = _mm512_setzero_si512();
    let mut start = [zero; 4];
    if U::RAISED > 0 {
        for (start, q) in start.iter_mut().zip(q) {
            *start = _mm512_sub_epi32(zero, _mm512_dpbusd_epi32(zero, _mm512_set1_epi8(U::RAISED as i8), q));
        }
    }
    let d = load_32(bytemuck::cast_slice(x.d), 0);
    let sums = load_32(bytemuck::cast_slice(x.sums), 0);
    Arranged { q, start, d: _mm512_castsi512_ps(zip(d, d)), sums: zip(sums, sums) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_64(bytes: &[u8], at: usize) -> __m512i {
    let bytes = &bytes[at..][..64];
    // SAFETY: the slice is 64 bytes long, and any alignment will do.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

/// The sums of 32-bit neighbours: lane `[a0 + a2, b0 + b2, a1 + a3, b1 + b3]`.
#[inline]
#[target_feature(enable = "avx512f")]
fn fold(a: __m512i, b: __m512i) -> __m512i {
    _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b))
}

/// What is left to add after [`fold`]: lane `[a, b, c, d]`.
#[inline]
#[target_feature(enable = "avx512f")]
fn fold_twice(ab: __m512i, cd: __m512i) -> __m512i {
    _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd))
}

/// What a slab of two rows adds to their accumulators.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn products<U: Arrange>(w: &Pair, x: &Arranged) -> __m512 {
    let (start, q) = (&x.start, &x.q);
    let ints = if U::SCALES == Scales::Half {
        let halves = each!(r in 0, 1 => {
            let [a, b, c, d] = each!(i in 0, 1, 2, 3 => _mm512_dpbusd_epi32(start[i], w.codes[r][i], q[i]));
            // Half groups in order.
            let halves = fold_twice(fold(a, b), fold(c, d));
            _mm512_castsi512_ps(_mm512_mullo_epi32(halves, w.scales[r]))
        });
        let even = _mm512_shuffle_ps::<0b10_00_10_00>(halves[0], halves[1]);
        let odd = _mm512_shuffle_ps::<0b11_01_11_01>(halves[0], halves[1]);
        _mm512_add_epi32(_mm512_castps_si512(even), _mm512_castps_si512(odd))
    } else {
        let (even, odd) = (_mm512_add_epi32(start[0], start[1]), _mm512_add_epi32(start[2], start[3]));
        let [a, b] = each!(codes in w.codes[0], w.codes[1] => {
            let even = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(even, codes[0], q[0]), codes[1], q[1]);
            let odd = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(odd, codes[2], q[2]), codes[3], q[3]);
            fold(even, odd)
        });
        let groups = fold_twice(a, b);
        if U::SCALES == Scales::Group { _mm512_mullo_epi32(groups, w.scales[0]) } else { groups }
    };
    let mut value = _mm512_mul_ps(_mm512_cvtepi32_ps(ints), w.d);
    if U::MINIMA {
        let minima = _mm512_cvtepi32_ps(_mm512_madd_epi16(x.sums, w.minima));
        value = _mm512_add_ps(value, _mm512_mul_ps(minima, w.m));
    }
    _mm512_mul_ps(value, x.d)
}

/// The products of rows with up to `MOST` activation rows, the `n` from `first` on.
#[target_feature(enable = "avx,avx2,bmi1,bmi2,f16c,avx512f,avx512dq,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
pub(super) fn few<U: Arrange, const MOST: usize>(
    rows: &[u8],
    row_bytes: usize,
    x: &Batch,
    first: usize,
    n: usize,
    products: &mut [f32],
) {
    let mut rests = [Rest::ZERO; MOST];
    let columns = columns(x, first, n, &mut rests);
    let columns = &columns[..n];
    let (whole, rest) = (row_bytes / U::BYTES, row_bytes % U::BYTES);
    for (rows, products) in rows.chunks(ROWS * row_bytes).zip(products.chunks_mut(ROWS * x.len())) {
        let last = rows.len() / row_bytes - 1;
        // Fewer than four: the last one again.
        let rows = each!(r in 0, 1, 2, 3 => &rows[last.min(r) * row_bytes..][..row_bytes]);
        let mut sums = [[_mm512_setzero_ps(); MOST]; ROWS / 2];
        for i in 0..whole {
            let slabs = each!(r in 0, 1, 2, 3 => &rows[r][i * U::BYTES..][..U::BYTES]);
            for slab in slabs {
                prefetch_ahead(&slab[0], U::BYTES);
            }
            add_slab::<U, MOST>(slabs, columns, i, &mut sums);
        }
        if rest > 0 {
            let last = each!(r in 0, 1, 2, 3 => LastSlab::new(&rows[r][whole * U::BYTES..]));
            add_slab::<U, MOST>(each!(r in 0, 1, 2, 3 => last[r].bytes(U::BYTES)), columns, whole, &mut sums);
        }
        for (r, products) in products.chunks_exact_mut(x.len()).enumerate() {
            for (product, sums) in products[first..][..n].iter_mut().zip(sums[r / 2]) {
                *product = sum_row(sums, r % 2);
            }
        }
    }
}

/// Adds a slab of four rows.
#[inline]
#[target_feature(enable = "avx,avx2,bmi1,bmi2,f16c,avx512f,avx512dq,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
fn add_slab<U: Arrange, const MOST: usize>(
    slabs: [&[u8]; ROWS],
    columns: &[Slabs],
    i: usize,
    sums: &mut [[__m512; MOST]; ROWS / 2],
) {
    // A single one stays in registers; of several, each is arranged anew for the other two rows.
    let first = arranged::<U>(columns[0].get(i));
    for (pair, sums) in sums.iter_mut().enumerate() {
        let w = weights::<U>([slabs[2 * pair], slabs[2 * pair + 1]]);
        for (sum, column) in sums.iter_mut().zip(columns) {
            let x = if MOST == 1 { first } else { arranged::<U>(column.get(i)) };
            *sum = _mm512_add_ps(*sum, products::<U>(&w, &x));
        }
    }
}

/// The lanes of one of both rows, added.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn sum_row(sums: __m512, row: usize) -> f32 {
    let pairs = _mm512_castps_pd(sums);
    let mine = _mm512_permutexvar_pd(
        _mm512_add_epi64(_mm512_setr_epi64(0, 2, 4, 6, 0, 2, 4, 6), _mm512_set1_epi64(row as i64)),
        pairs,
    );
    let mut lanes = [0.0; 8];
    // SAFETY: 8 floats have room in 8 floats.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), _mm256_castpd_ps(_mm512_castpd512_pd256(mine))) };
    sum_lanes(lanes)
}

/// The 16 bytes from `at` on of every second one of eight blocks.
#[inline]
#[target_feature(enable = "avx512f,avx2")]
fn gather<const BLOCK: usize>(slab: &[u8], at: usize) -> __m512i {
    let [a, b, c, d] = each!(i in 0, 1, 2, 3 => load_16(slab, i * 2 * BLOCK + at));
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(_mm256_set_m128i(b, a)), _mm256_set_m128i(d, c))
}

/// Nibbles of even groups and of odd ones: low ones, high ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn nibbles([even, odd]: [__m512i; 2]) -> [__m512i; 4] {
    let low = _mm512_set1_epi8(15);
    each!(v in even, _mm512_srli_epi16::<4>(even), odd, _mm512_srli_epi16::<4>(odd) => _mm512_and_si512(v, low))
}

/// The 16 bytes from `at` on of each block, of even blocks and of odd ones.
#[inline]
#[target_feature(enable = "avx512f,avx2")]
fn of_blocks<const BLOCK: usize>(slab: &[u8], at: usize) -> [__m512i; 2] {
    each!(odd in 0, 1 => gather::<BLOCK>(slab, odd * BLOCK + at))
}

/// Sets bit 4 of codes whose bit is set in their block's u32 at `at`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx2")]
fn with_fifth<const BLOCK: usize>(slab: &[u8], at: usize, codes: [__m512i; 4]) -> [__m512i; 4] {
    let bit = _mm512_set1_epi64(0x8040_2010_0804_0201u64 as i64);
    let mut codes = codes;
    for (i, code) in codes.iter_mut().enumerate() {
        let [a, b, c, d] = each!(lane in 0, 1, 2, 3 => u32_at(slab, (2 * lane + i / 2) * BLOCK + at) as i32);
        let bits = _mm512_castsi128_si512(_mm_setr_epi32(a, b, c, d));
        // Lane l gets byte 4l + 2 (i % 2) eight times, then the next one.
        let lanes = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3), bits);
        let (low, high) =
            (0x0101_0101_0101_0101 * (2 * (i as i64 % 2)), 0x0101_0101_0101_0101 * (2 * (i as i64 % 2) + 1));
        let bytes = _mm512_shuffle_epi8(lanes, _mm512_setr_epi64(low, high, low, high, low, high, low, high));
        *code = or_where(*code, bytes, bit, 16);
    }
    codes
}

/// Adds `worth` to codes where `bytes` has any of `bits`; their own bits there are clear.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn or_where(codes: __m512i, bytes: __m512i, bits: __m512i, worth: i8) -> __m512i {
    _mm512_mask_add_epi8(codes, _mm512_test_epi8_mask(bytes, bits), codes, _mm512_set1_epi8(worth))
}

/// Bit `g` of 32 bytes belongs to group `g`: where it is set, `worth` is added to its codes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx2")]
fn with_bit(bytes: &[u8], at: usize, worth: i8, codes: [__m512i; 4]) -> [__m512i; 4] {
    let halves = [_mm512_broadcast_i32x4(load_16(bytes, at)), _mm512_broadcast_i32x4(load_16(bytes, at + 16))];
    let [even, odd] = each!(odd in 0, 1 => lanes(each!(l in 0, 1, 2, 3 => 0x0101_0101_0101_0101 << (2 * l + odd))));
    [
        or_where(codes[0], halves[0], even, worth),
        or_where(codes[1], halves[1], even, worth),
        or_where(codes[2], halves[0], odd, worth),
        or_where(codes[3], halves[1], odd, worth),
    ]
}

/// 64 bits for each lane, twice.
#[inline]
#[target_feature(enable = "avx512f")]
fn lanes([a, b, c, d]: [i64; 4]) -> __m512i {
    _mm512_setr_epi64(a, a, b, b, c, c, d, d)
}

/// The pairs of bits of 64 bytes, as Q2_K has them.
#[inline]
#[target_feature(enable = "avx512f")]
fn pairs(qs: __m512i) -> [__m512i; 4] {
    let first = _mm512_shuffle_i64x2::<0b10_10_00_00>(qs, qs);
    let second = _mm512_shuffle_i64x2::<0b11_11_01_01>(qs, qs);
    let (even, odd) = (lanes([0, 4, 0, 4]), lanes([2, 6, 2, 6]));
    each!(v in (first, even), (second, even), (first, odd), (second, odd) => {
        _mm512_and_si512(_mm512_srlv_epi64(v.0, v.1), _mm512_set1_epi8(3))
    })
}

/// The nibbles of Q4_K and Q5_K: of 32 bytes, low ones are a group's, high ones the next one's.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn wide_nibbles(slab: &[u8], at: usize) -> [__m512i; 4] {
    let (a, b) = (load_64(slab, at), load_64(slab, at + 64));
    let firsts = _mm512_shuffle_i64x2::<0b10_00_10_00>(a, b);
    let seconds = _mm512_shuffle_i64x2::<0b11_01_11_01>(a, b);
    let [even_firsts, odd_firsts, even_seconds, odd_seconds] = nibbles([firsts, seconds]);
    [even_firsts, even_seconds, odd_firsts, odd_seconds]
}

/// What nibbles stand for in IQ4_NL and IQ4_XS, raised by 128.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn steps(nibbles: [__m512i; 4]) -> [__m512i; 4] {
    let table = u128::from_le_bytes(bytemuck::cast(STEPS)) ^ 0x80808080_80808080_80808080_80808080;
    let table = _mm512_broadcast_i32x4(_mm_set_epi64x((table >> 64) as i64, table as i64));
    each!(v in nibbles[0], nibbles[1], nibbles[2], nibbles[3] => _mm512_shuffle_epi8(table, v))
}

/// Methods with this file's instructions.
macro_rules! wide {
    ($(fn $name:ident $args:tt $(-> $result:ty)? $body:block)*) => {$(
        #[inline]
        #[target_feature(enable = "avx,avx2,bmi1,bmi2,f16c,avx512f,avx512dq,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
        unsafe fn $name $args $(-> $result)? $body
    )*};
}

/// 16 numbers in a vector.
pub(super) struct Avx512;

impl Wide for Avx512 {
    type Ints = __m512i;
    type Floats = __m512;
    const SIGNED_BIAS: i16 = SIGNED_BIAS;

    wide! {
        fn ints(v: &[i32; WIDE]) -> __m512i {
            // SAFETY: 16 numbers are 64 bytes.
            unsafe { _mm512_loadu_si512(v.as_ptr().cast()) }
        }
        fn all(v: i32) -> __m512i { _mm512_set1_epi32(v) }
        fn add(a: __m512i, b: __m512i) -> __m512i { _mm512_add_epi32(a, b) }
        fn sub(a: __m512i, b: __m512i) -> __m512i { _mm512_sub_epi32(a, b) }
        fn mul(a: __m512i, b: __m512i) -> __m512i { _mm512_mullo_epi32(a, b) }
        fn mul_pairs(a: __m512i, b: __m512i) -> __m512i { _mm512_madd_epi16(a, b) }
        fn add_fours(sum: __m512i, codes: [u8; 4], q: __m512i, _signed: bool) -> __m512i {
            _mm512_dpbusd_epi32(sum, _mm512_set1_epi32(i32::from_le_bytes(codes)), q)
        }
        fn to_floats(v: __m512i) -> __m512 { _mm512_cvtepi32_ps(v) }
        fn floats(v: &[f32; WIDE]) -> __m512 {
            // SAFETY: 16 numbers are 64 bytes.
            unsafe { _mm512_loadu_ps(v.as_ptr()) }
        }
        fn all_floats(v: f32) -> __m512 { _mm512_set1_ps(v) }
        fn store(v: __m512, to: &mut [f32; WIDE]) {
            // SAFETY: 16 numbers are 64 bytes.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
        }
        fn add_floats(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
        fn mul_floats(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        fn values(v: __m512) -> [f32; WIDE] {
            let mut values = [0.0; WIDE];
            // SAFETY: this function has those instructions.
            unsafe { Self::store(v, &mut values) };
            values
        }
        fn halves(v: &[u16; WIDE]) -> __m512 {
            // SAFETY: as above.
            unsafe { Self::f16s(bytemuck::cast_ref(v)) }
        }
        fn sum_four([a, b, c, d]: [__m512; 4]) -> [f32; 4] {
            // 32 bytes each: a and b, c and d.
            let [ab, cd] = each!(v in (a, b), (c, d) => _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b01_00_01_00>(v.0, v.1),
                _mm512_shuffle_f32x4::<0b11_10_11_10>(v.0, v.1),
            ));
            // 16 bytes each.
            let fours = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd),
                _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd),
            );
            let pairs = _mm512_add_ps(fours, _mm512_permute_ps::<0b11_10_11_10>(fours));
            let sums = _mm512_add_ps(pairs, _mm512_permute_ps::<0b01_01_01_01>(pairs));
            let mut out = [0.0; 16];
            // SAFETY: 16 floats have room in 16 floats.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sums) };
            [out[0], out[4], out[8], out[12]]
        }
        fn to_halves(v: __m512) -> [u16; WIDE] {
            let mut out = [0; WIDE];
            // SAFETY: 16 numbers of 16 bits are 32 bytes.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) };
            out
        }
        fn codes(v: &[i8; WIDE]) -> __m512 {
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_16(bytemuck::cast_slice(v), 0)))
        }
        fn f32s(v: &[u8; 64]) -> __m512 {
            _mm512_castsi512_ps(load_64(v, 0))
        }
        fn f16s(v: &[u8; 32]) -> __m512 { _mm512_cvtph_ps(load_32(v, 0)) }
        fn bf16s(v: &[u8; 32]) -> __m512 {
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(load_32(v, 0))))
        }
    }
}

/// `arrange` for each format.
macro_rules! arrange {
    ($($format:ident => |$slab:ident| $codes:expr;)*) => {$(
        impl Arrange for $format {
            #[inline]
            #[target_feature(enable = "avx,avx2,bmi1,bmi2,f16c,avx512f,avx512dq,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
            unsafe fn arrange(slab: &[u8]) -> [__m512i; 4] {
                let $slab = whole::<{ Self::BYTES }>(slab);
                $codes
            }
        }
    )*};
}

arrange! {
    Q4_0 => |slab| nibbles(of_blocks::<18>(slab, 2));
    Q4_1 => |slab| nibbles(of_blocks::<20>(slab, 4));
    Q5_0 => |slab| with_fifth::<22>(slab, 2, nibbles(of_blocks::<22>(slab, 6)));
    Q5_1 => |slab| with_fifth::<24>(slab, 4, nibbles(of_blocks::<24>(slab, 8)));
    Iq4_Nl => |slab| steps(nibbles(of_blocks::<18>(slab, 2)));
    Iq4_Xs => |slab| {
        let (a, b) = (load_64(slab, 8), load_64(slab, 72));
        let (even, odd) = (_mm512_shuffle_i64x2::<0b10_00_10_00>(a, b), _mm512_shuffle_i64x2::<0b11_01_11_01>(a, b));
        steps(nibbles([even, odd]))
    };
    Q8_0 => |slab| {
        let [a, b, c, d] = each!(g in 0, 4, 1, 5 => {
            let (first, second) = (load_32(slab, g * 34 + 2), load_32(slab, (g + 2) * 34 + 2));
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second)
        });
        let codes = [
            _mm512_shuffle_i64x2::<0b10_00_10_00>(a, b),
            _mm512_shuffle_i64x2::<0b11_01_11_01>(a, b),
            _mm512_shuffle_i64x2::<0b10_00_10_00>(c, d),
            _mm512_shuffle_i64x2::<0b11_01_11_01>(c, d),
        ];
        each!(i in 0, 1, 2, 3 => _mm512_xor_si512(codes[i], _mm512_set1_epi8(SIGNED_BIAS as i8)))
    };
    Q2_K => |slab| pairs(load_64(slab, 16));
    Q3_K => |slab| with_bit(slab, 0, 4, pairs(load_64(slab, 32)));
    Q4_K => |slab| wide_nibbles(slab, 16);
    Q5_K => |slab| with_bit(slab, 16, 16, wide_nibbles(slab, 48));
    Q6_K => |slab| {
        let (a, b, high) = (load_64(slab, 0), load_64(slab, 64), load_64(slab, 128));
        // Lanes stand for low and high nibbles: groups 0 and 2 (or 1 and 3), then those of the other half.
        let low = [
            _mm512_shuffle_i64x2::<0b00_00_00_00>(a, b),
            _mm512_shuffle_i64x2::<0b01_01_01_01>(a, b),
            _mm512_shuffle_i64x2::<0b10_10_10_10>(a, b),
            _mm512_shuffle_i64x2::<0b11_11_11_11>(a, b),
        ];
        let first = _mm512_shuffle_i64x2::<0b10_10_00_00>(high, high);
        let second = _mm512_shuffle_i64x2::<0b11_11_01_01>(high, high);
        // Rotated so that a group's two bits are bits 4 and 5.
        let (even, odd) = (lanes([4, 0, 4, 0]), lanes([2, 62, 2, 62]));
        let high = [(first, even), (second, even), (first, odd), (second, odd)];
        each!(i in 0, 1, 2, 3 => {
            let low = _mm512_and_si512(_mm512_srlv_epi64(low[i], lanes([0, 4, 0, 4])), _mm512_set1_epi8(15));
            let high = _mm512_and_si512(_mm512_rolv_epi64(high[i].0, high[i].1), _mm512_set1_epi8(0x30));
            _mm512_or_si512(low, high)
        })
    };
}
