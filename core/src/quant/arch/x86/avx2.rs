//! AVX2: a row at a time for few activation rows.
//!
//! # The idea
//! `vpmaddubsw` multiplies 32 unsigned bytes by signed ones and adds two neighbours, saturating at 16 bits; codes of
//! at most 128 times activations of at most 127 stay below that. `vpmaddwd` adds two of those, and brings in the
//! scales of formats that have one for 16 weights. A tree of shuffles and additions turns the eight groups' vectors
//! into eight sums in order: the definition's lanes.
//!
//! Codes are unsigned, above the weight by a format's bias, which the sums of activations correct. Signed codes, of
//! Q8_0 and IQ4, multiply by magnitude, and activations take their signs.

use core::arch::x86_64::*;

use super::many::{WIDE, Wide};
use super::prefetch_ahead;
use super::slab::{LastSlab, Rest, Slab, Slabs, columns};
use super::unpack::*;
use crate::quant::{Batch, sum_lanes};

/// Pairs of products, added: i16x16.
#[inline]
#[target_feature(enable = "avx2")]
fn pairs(codes: __m256i, q: __m256i, signed: bool) -> __m256i {
    match signed {
        true => _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(q, codes)),
        false => _mm256_maddubs_epi16(codes, q),
    }
}

/// A slab of a row.
struct Weights {
    codes: [__m256i; 8],
    factors: Factors,
    /// Scales of half groups: the first halves' in the lower 16 bytes, the second ones' in the upper.
    split: __m256i,
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn weights<U: Unpack>(slab: &[u8]) -> Weights {
    // SAFETY: this function has the features that these need.
    let (codes, factors) = unsafe { (U::codes(slab), U::factors(slab)) };
    let halves = _mm256_setr_epi8(
        0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15,
    );
    let split = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_shuffle_epi8(factors.scales, halves));
    Weights { codes, factors, split }
}

/// The sum of each of eight vectors, in order.
#[inline]
#[target_feature(enable = "avx2")]
fn sums(v: [__m256i; 8]) -> __m256i {
    let [a, b] = each!(i in 0, 4 => {
        _mm256_hadd_epi32(_mm256_hadd_epi32(v[i], v[i + 1]), _mm256_hadd_epi32(v[i + 2], v[i + 3]))
    });
    _mm256_add_epi32(_mm256_permute2x128_si256::<0x20>(a, b), _mm256_permute2x128_si256::<0x31>(a, b))
}

/// What a slab of a row adds to its lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn products<U: Unpack>(w: &Weights, x: Slab) -> __m256 {
    let ones = _mm256_set1_epi16(1);
    let mut groups = [_mm256_setzero_si256(); 8];
    for (g, group) in groups.iter_mut().enumerate() {
        let pairs = pairs(w.codes[g], load_32(bytemuck::cast_slice(x.q), g * 32), U::SIGNED);
        let scales = match U::SCALES {
            Scales::Half => _mm256_shuffle_epi8(w.split, _mm256_set1_epi16(0x0100 + 0x0202 * g as i16)),
            _ => ones,
        };
        *group = _mm256_madd_epi16(pairs, scales);
    }
    let mut ints = sums(groups);
    let x_sums = load_32(bytemuck::cast_slice(x.sums), 0);
    if U::BIAS > 0 {
        let bias = _mm256_set1_epi16(U::BIAS);
        let biases = if U::SCALES == Scales::Half { _mm256_mullo_epi16(w.factors.scales, bias) } else { bias };
        ints = _mm256_sub_epi32(ints, _mm256_madd_epi16(x_sums, biases));
    }
    if U::SCALES == Scales::Group {
        ints = _mm256_mullo_epi32(ints, w.factors.scales);
    }
    let mut value = _mm256_mul_ps(_mm256_cvtepi32_ps(ints), w.factors.d);
    if U::MINIMA {
        let minima = _mm256_cvtepi32_ps(_mm256_madd_epi16(x_sums, w.factors.minima));
        value = _mm256_add_ps(value, _mm256_mul_ps(minima, w.factors.m));
    }
    _mm256_mul_ps(value, _mm256_castsi256_ps(load_32(bytemuck::cast_slice(x.d), 0)))
}

/// The products of rows with up to `MOST` activation rows, the `n` from `first` on.
#[target_feature(enable = "avx,avx2,bmi1,bmi2,f16c")]
pub(super) fn few<U: Unpack, const MOST: usize>(
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
    for (row, products) in rows.chunks_exact(row_bytes).zip(products.chunks_exact_mut(x.len())) {
        let mut sums = [_mm256_setzero_ps(); MOST];
        for i in 0..whole {
            let slab = &row[i * U::BYTES..][..U::BYTES];
            prefetch_ahead(&slab[0], U::BYTES);
            add_slab::<U, MOST>(slab, columns, i, &mut sums);
        }
        if rest > 0 {
            let last = LastSlab::new(&row[whole * U::BYTES..]);
            add_slab::<U, MOST>(last.bytes(U::BYTES), columns, whole, &mut sums);
        }
        for (product, sums) in products[first..][..n].iter_mut().zip(sums) {
            let mut lanes = [0.0; 8];
            // SAFETY: 8 floats have room in 8 floats.
            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sums) };
            *product = sum_lanes(lanes);
        }
    }
}

/// Adds a slab of a row.
#[inline]
#[target_feature(enable = "avx,avx2,bmi1,bmi2,f16c")]
fn add_slab<U: Unpack, const MOST: usize>(slab: &[u8], columns: &[Slabs], i: usize, sums: &mut [__m256; MOST]) {
    let w = weights::<U>(slab);
    for (sum, column) in sums.iter_mut().zip(columns) {
        *sum = _mm256_add_ps(*sum, products::<U>(&w, column.get(i)));
    }
}

/// Methods with this file's instructions.
macro_rules! wide {
    ($(fn $name:ident $args:tt $(-> $result:ty)? $body:block)*) => {$(
        #[inline]
        #[target_feature(enable = "avx,avx2,bmi1,bmi2,f16c")]
        unsafe fn $name $args $(-> $result)? $body
    )*};
}

/// 16 numbers in two vectors.
pub(super) struct Avx2;

type Ints = [__m256i; 2];
type Floats = [__m256; 2];

impl Wide for Avx2 {
    type Ints = Ints;
    type Floats = Floats;
    const SIGNED_BIAS: i16 = 0;

    wide! {
        fn ints(v: &[i32; WIDE]) -> Ints {
            let bytes = bytemuck::cast_slice(v);
            [load_32(bytes, 0), load_32(bytes, 32)]
        }
        fn all(v: i32) -> Ints { [_mm256_set1_epi32(v); 2] }
        fn add([a, b]: Ints, [c, d]: Ints) -> Ints { [_mm256_add_epi32(a, c), _mm256_add_epi32(b, d)] }
        fn sub([a, b]: Ints, [c, d]: Ints) -> Ints { [_mm256_sub_epi32(a, c), _mm256_sub_epi32(b, d)] }
        fn mul([a, b]: Ints, [c, d]: Ints) -> Ints { [_mm256_mullo_epi32(a, c), _mm256_mullo_epi32(b, d)] }
        fn mul_pairs([a, b]: Ints, [c, d]: Ints) -> Ints { [_mm256_madd_epi16(a, c), _mm256_madd_epi16(b, d)] }
        fn add_fours([a, b]: Ints, codes: [u8; 4], [c, d]: Ints, signed: bool) -> Ints {
            let codes = _mm256_set1_epi32(i32::from_le_bytes(codes));
            let ones = _mm256_set1_epi16(1);
            [
                _mm256_add_epi32(a, _mm256_madd_epi16(pairs(codes, c, signed), ones)),
                _mm256_add_epi32(b, _mm256_madd_epi16(pairs(codes, d, signed), ones)),
            ]
        }
        fn to_floats([a, b]: Ints) -> Floats { [_mm256_cvtepi32_ps(a), _mm256_cvtepi32_ps(b)] }
        fn floats(v: &[f32; WIDE]) -> Floats {
            let bytes = bytemuck::cast_slice(v);
            [_mm256_castsi256_ps(load_32(bytes, 0)), _mm256_castsi256_ps(load_32(bytes, 32))]
        }
        fn all_floats(v: f32) -> Floats { [_mm256_set1_ps(v); 2] }
        fn store([a, b]: Floats, to: &mut [f32; WIDE]) {
            // SAFETY: 16 floats have room in 16 floats, 8 from the start and 8 from the middle.
            unsafe {
                _mm256_storeu_ps(to.as_mut_ptr(), a);
                _mm256_storeu_ps(to[8..].as_mut_ptr(), b);
            }
        }
        fn add_floats([a, b]: Floats, [c, d]: Floats) -> Floats { [_mm256_add_ps(a, c), _mm256_add_ps(b, d)] }
        fn mul_floats([a, b]: Floats, [c, d]: Floats) -> Floats { [_mm256_mul_ps(a, c), _mm256_mul_ps(b, d)] }
        fn values(v: Floats) -> [f32; WIDE] {
            let mut values = [0.0; WIDE];
            // SAFETY: this function has those instructions.
            unsafe { Self::store(v, &mut values) };
            values
        }
        fn halves(v: &[u16; WIDE]) -> Floats {
            // SAFETY: as above.
            unsafe { Self::f16s(bytemuck::cast_ref(v)) }
        }
        fn sum_four(v: [Floats; 4]) -> [f32; 4] {
            let [a, b, c, d] = each!(v in v[0], v[1], v[2], v[3] => _mm256_add_ps(v[0], v[1]));
            // 16 bytes each: a and b, c and d.
            let [ab, cd] = each!(v in (a, b), (c, d) => {
                _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(v.0, v.1), _mm256_permute2f128_ps::<0x31>(v.0, v.1))
            });
            // Two numbers each: a and c, b and d.
            let pairs = _mm256_add_ps(_mm256_shuffle_ps::<0b01_00_01_00>(ab, cd), _mm256_shuffle_ps::<0b11_10_11_10>(ab, cd));
            let sums = _mm256_add_ps(pairs, _mm256_shuffle_ps::<0b11_11_01_01>(pairs, pairs));
            let mut out = [0.0; 8];
            // SAFETY: 8 floats have room in 8 floats.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sums) };
            [out[0], out[4], out[2], out[6]]
        }
        fn to_halves(v: Floats) -> [u16; WIDE] {
            let [a, b] = each!(v in v[0], v[1] => _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v));
            let mut out = [0; WIDE];
            // SAFETY: 16 numbers of 16 bits are 32 bytes.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_set_m128i(b, a)) };
            out
        }
        fn codes(v: &[i8; WIDE]) -> Floats {
            let all = load_16(bytemuck::cast_slice(v), 0);
            each!(v in all, _mm_unpackhi_epi64(all, all) => _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v)))
        }
        fn f32s(v: &[u8; 64]) -> Floats {
            [_mm256_castsi256_ps(load_32(v, 0)), _mm256_castsi256_ps(load_32(v, 32))]
        }
        fn f16s(v: &[u8; 32]) -> Floats { [_mm256_cvtph_ps(load_16(v, 0)), _mm256_cvtph_ps(load_16(v, 16))] }
        fn bf16s(v: &[u8; 32]) -> Floats {
            each!(at in 0, 16 => {
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(load_16(v, at))))
            })
        }
    }
}
