//! Slabs of 256 weights of each format, taken apart with AVX2: codes as bytes, and what they are multiplied with.
//!
//! The pictures of the layouts are in each format's own file.

use core::arch::x86_64::*;

use crate::quant::GROUP;
use crate::quant::iq4_nl::STEPS;

/// Which integer scales a format has, besides its f16 ones.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scales {
    /// None.
    No,
    /// One for each group of 32.
    Group,
    /// One for each 16.
    Half,
}

/// What the codes of a slab are multiplied with.
///
/// Group `g` is worth `(int(g) · d[g] + min(g) · m[g]) · x.d[g]`, where `int` is the sum of codes times activations,
/// each with its integer scale, and `min` the sum of activations, each with its integer minimum.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    /// i32x8, one a group, or i16x16, one a half group; not looked at for formats without.
    pub(super) scales: __m256i,
    /// One a group.
    pub(super) d: __m256,
    /// i16x16, one a half group; not looked at for formats without minima.
    pub(super) minima: __m256i,
    /// One a group, negative where a minimum is subtracted.
    pub(super) m: __m256,
}

/// A format's slab, taken apart.
pub(super) trait Unpack {
    /// Bytes of a slab.
    const BYTES: usize;
    /// Whether codes are i8 as they are; otherwise they come as u8.
    const SIGNED: bool = false;
    /// How much a u8 code is above the weight that it stands for.
    const BIAS: i16 = 0;
    /// Which integer scales there are.
    const SCALES: Scales = Scales::No;
    /// Whether there are minima.
    const MINIMA: bool = false;

    /// The codes, a group in each.
    ///
    /// # Safety
    /// The processor runs AVX2 and F16C.
    unsafe fn codes(slab: &[u8]) -> [__m256i; 8];

    /// What they are multiplied with.
    ///
    /// # Safety
    /// As [`codes`](Unpack::codes).
    unsafe fn factors(slab: &[u8]) -> Factors;
}

/// The same bytes, whose number the compiler knows: it need not check what is read of them.
#[inline(always)]
pub(super) fn whole<const N: usize>(slab: &[u8]) -> &[u8; N] {
    // Slabs are whole.
    slab.first_chunk().unwrap_or(&[0; N])
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load_16(bytes: &[u8], at: usize) -> __m128i {
    let bytes = &bytes[at..][..16];
    // SAFETY: the slice is 16 bytes long, and any alignment will do.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load_32(bytes: &[u8], at: usize) -> __m256i {
    let bytes = &bytes[at..][..32];
    // SAFETY: the slice is 32 bytes long, and any alignment will do.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline(always)]
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

#[inline(always)]
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u16_at(bytes, at) as u32 | (u16_at(bytes, at + 2) as u32) << 16
}

/// The f16 at `at`, eight times as f32.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn half(slab: &[u8], at: usize) -> __m256 {
    _mm256_cvtph_ps(_mm_set1_epi16(u16_at(slab, at) as i16))
}

/// The f16 at `at` of each of eight blocks, as f32.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn halves<const BLOCK: usize>(slab: &[u8], at: usize) -> __m256 {
    let blocks = &slab[..8 * BLOCK];
    let [a, b, c, d, e, f, g, h] = each!(g in 0, 1, 2, 3, 4, 5, 6, 7 => u16_at(blocks, g * BLOCK + at) as i16);
    _mm256_cvtph_ps(_mm_setr_epi16(a, b, c, d, e, f, g, h))
}

/// 16 bytes hold a group's nibbles: low ones first.
#[inline]
#[target_feature(enable = "avx2")]
fn nibbles(qs: __m128i) -> __m256i {
    _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(qs, 4), qs), _mm256_set1_epi8(15))
}

/// 16 where the bit of a group's weight is set.
#[inline]
#[target_feature(enable = "avx2")]
fn fifth_bits(bits: u32) -> __m256i {
    // Byte i gets the byte its bit is in, then the bit itself.
    let byte = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
    let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201u64 as i64);
    let bits = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), byte), bit);
    _mm256_and_si256(_mm256_cmpeq_epi8(bits, bit), _mm256_set1_epi8(16))
}

/// Bit `n` of each byte, times `worth`.
#[inline]
#[target_feature(enable = "avx2")]
fn bit(bytes: __m256i, n: usize, worth: i8) -> __m256i {
    let bit = _mm256_set1_epi8((1u8 << n) as i8);
    _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit), _mm256_set1_epi8(worth))
}

/// Bytes shifted to the right by `n`, of which `mask` stays.
#[inline]
#[target_feature(enable = "avx2")]
fn bits(bytes: __m256i, n: usize, mask: i8) -> __m256i {
    _mm256_and_si256(_mm256_srl_epi16(bytes, _mm_cvtsi32_si128(n as i32)), _mm256_set1_epi8(mask))
}

/// Factors of a format that has an f16 scale a group, and nothing else.
#[inline]
#[target_feature(enable = "avx2")]
fn only(d: __m256) -> Factors {
    Factors { scales: _mm256_setzero_si256(), d, minima: _mm256_setzero_si256(), m: _mm256_setzero_ps() }
}

#[inline]
#[target_feature(enable = "avx2")]
fn negative(v: __m256) -> __m256 {
    _mm256_xor_ps(v, _mm256_set1_ps(-0.0))
}

/// A block of 32 in turn: `codes` of its bytes, with constants of its format.
macro_rules! blocks {
    ($block:expr, $slab:ident, |$bytes:ident| $codes:expr) => {{
        let mut codes = [_mm256_setzero_si256(); 8];
        for (code, $bytes) in codes.iter_mut().zip($slab.as_chunks::<$block>().0) {
            *code = $codes;
        }
        codes
    }};
}

/// A group of a super-block in turn.
macro_rules! groups {
    (|$g:ident| $codes:expr) => {{
        let mut codes = [_mm256_setzero_si256(); 8];
        for ($g, code) in codes.iter_mut().enumerate() {
            *code = $codes;
        }
        codes
    }};
}

/// A format's type: its constants, and two expressions over the bytes of a slab.
macro_rules! format {
    (
        $format:ident
        $(const $name:ident: $type:ty = $value:expr;)*
        codes($codes_of:ident) => $codes:expr;
        factors($factors_of:ident) => $factors:expr;
    ) => {
        #[allow(non_camel_case_types, reason = "the names people know")]
        pub(super) struct $format;

        impl Unpack for $format {
            $(const $name: $type = $value;)*

            #[inline]
            #[target_feature(enable = "avx2,f16c")]
            unsafe fn codes(slab: &[u8]) -> [__m256i; 8] {
                let $codes_of = whole::<{ Self::BYTES }>(slab);
                $codes
            }

            #[inline]
            #[target_feature(enable = "avx2,f16c")]
            unsafe fn factors(slab: &[u8]) -> Factors {
                let $factors_of = whole::<{ Self::BYTES }>(slab);
                $factors
            }
        }
    };
}

format! { Q4_0
    const BYTES: usize = 8 * 18;
    const BIAS: i16 = 8;
    codes(slab) => blocks!(18, slab, |block| nibbles(load_16(block, 2)));
    factors(slab) => only(halves::<18>(slab, 0));
}

format! { Q4_1
    const BYTES: usize = 8 * 20;
    const MINIMA: bool = true;
    codes(slab) => blocks!(20, slab, |block| nibbles(load_16(block, 4)));
    factors(slab) => {
        let d = halves::<20>(slab, 0);
        Factors { minima: _mm256_set1_epi16(1), m: halves::<20>(slab, 2), ..only(d) }
    };
}

format! { Q5_0
    const BYTES: usize = 8 * 22;
    const BIAS: i16 = 16;
    codes(slab) => blocks!(22, slab, |block| _mm256_or_si256(nibbles(load_16(block, 6)), fifth_bits(u32_at(block, 2))));
    factors(slab) => only(halves::<22>(slab, 0));
}

format! { Q5_1
    const BYTES: usize = 8 * 24;
    const MINIMA: bool = true;
    codes(slab) => blocks!(24, slab, |block| _mm256_or_si256(nibbles(load_16(block, 8)), fifth_bits(u32_at(block, 4))));
    factors(slab) => {
        let d = halves::<24>(slab, 0);
        Factors { minima: _mm256_set1_epi16(1), m: halves::<24>(slab, 2), ..only(d) }
    };
}

format! { Q8_0
    const BYTES: usize = 8 * 34;
    const SIGNED: bool = true;
    codes(slab) => blocks!(34, slab, |block| load_32(block, 2));
    factors(slab) => only(halves::<34>(slab, 0));
}

/// What nibbles stand for in IQ4_NL and IQ4_XS.
#[inline]
#[target_feature(enable = "avx2")]
fn steps(nibbles: __m256i) -> __m256i {
    let table = u128::from_le_bytes(STEPS.map(|step| step as u8));
    let (low, high) = (table as i64, (table >> 64) as i64);
    _mm256_shuffle_epi8(_mm256_setr_epi64x(low, high, low, high), nibbles)
}

format! { Iq4_Nl
    const BYTES: usize = 8 * 18;
    const SIGNED: bool = true;
    codes(slab) => blocks!(18, slab, |block| steps(nibbles(load_16(block, 2))));
    factors(slab) => only(halves::<18>(slab, 0));
}

format! { Iq4_Xs
    const BYTES: usize = 136;
    const SIGNED: bool = true;
    const SCALES: Scales = Scales::Group;
    codes(slab) => groups!(|g| steps(nibbles(load_16(slab, 8 + g * 16))));
    factors(slab) => {
        let (high, low) = (_mm256_set1_epi32(u16_at(slab, 2).into()), _mm256_set1_epi32(u32_at(slab, 4) as i32));
        let low = _mm256_srlv_epi32(low, _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
        let high = _mm256_srlv_epi32(high, _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14));
        let high = _mm256_slli_epi32(_mm256_and_si256(high, _mm256_set1_epi32(3)), 4);
        let scales = _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi32(15)), high);
        Factors { scales: _mm256_sub_epi32(scales, _mm256_set1_epi32(32)), ..only(half(slab, 0)) }
    };
}

format! { Q2_K
    const BYTES: usize = 84;
    const SCALES: Scales = Scales::Half;
    const MINIMA: bool = true;
    codes(slab) => groups!(|g| bits(load_32(slab, 16 + g / 4 * GROUP), 2 * (g % 4), 3));
    factors(slab) => {
        let both = _mm256_cvtepu8_epi16(load_16(slab, 0));
        let scales = _mm256_and_si256(both, _mm256_set1_epi16(15));
        Factors { scales, d: half(slab, 80), minima: _mm256_srli_epi16(both, 4), m: negative(half(slab, 82)) }
    };
}

format! { Q3_K
    const BYTES: usize = 110;
    const BIAS: i16 = 4;
    const SCALES: Scales = Scales::Half;
    codes(slab) => {
        let high = load_32(slab, 0);
        groups!(|g| _mm256_or_si256(bits(load_32(slab, 32 + g / 4 * GROUP), 2 * (g % 4), 3), bit(high, g, 4)))
    };
    factors(slab) => {
        let low = u64::from(u32_at(slab, 96)) | u64::from(u32_at(slab, 100)) << 32;
        let low = _mm_set_epi64x((low >> 4) as i64, low as i64);
        let high = _mm_srlv_epi32(_mm_set1_epi32(u32_at(slab, 104) as i32), _mm_setr_epi32(0, 2, 4, 6));
        let high = _mm_slli_epi16(_mm_and_si128(high, _mm_set1_epi8(3)), 4);
        let scales = _mm_sub_epi8(_mm_or_si128(_mm_and_si128(low, _mm_set1_epi8(15)), high), _mm_set1_epi8(32));
        Factors { scales: _mm256_cvtepi8_epi16(scales), ..only(half(slab, 108)) }
    };
}

/// Factors of Q4_K and Q5_K.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn scales_and_minima(slab: &[u8]) -> Factors {
    // A byte for each of four groups at a time.
    let [a, b, c] = each!(at in 4, 8, 12 => u32_at(slab, at));
    let (low, top) = (0x0f0f_0f0f, 0x0303_0303);
    let scales = u64::from(a & 0x3f3f_3f3f) | u64::from(c & low | (a >> 6 & top) << 4) << 32;
    let minima = u64::from(b & 0x3f3f_3f3f) | u64::from(c >> 4 & low | (b >> 6 & top) << 4) << 32;
    let minima = _mm_cvtsi64_si128(minima as i64);
    Factors {
        scales: _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(scales as i64)),
        d: half(slab, 0),
        minima: _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(minima, minima)),
        m: negative(half(slab, 2)),
    }
}

format! { Q4_K
    const BYTES: usize = 144;
    const SCALES: Scales = Scales::Group;
    const MINIMA: bool = true;
    codes(slab) => groups!(|g| bits(load_32(slab, 16 + g / 2 * GROUP), 4 * (g % 2), 15));
    factors(slab) => scales_and_minima(slab);
}

format! { Q5_K
    const BYTES: usize = 176;
    const SCALES: Scales = Scales::Group;
    const MINIMA: bool = true;
    codes(slab) => {
        let high = load_32(slab, 16);
        groups!(|g| _mm256_or_si256(bits(load_32(slab, 48 + g / 2 * GROUP), 4 * (g % 2), 15), bit(high, g, 16)))
    };
    factors(slab) => scales_and_minima(slab);
}

format! { Q6_K
    const BYTES: usize = 210;
    const BIAS: i16 = 32;
    const SCALES: Scales = Scales::Half;
    codes(slab) => {
        groups!(|g| {
            let (half, g) = (g / 4, g % 4);
            let low = bits(load_32(slab, half * 64 + g % 2 * GROUP), 4 * (g / 2), 15);
            let high = bits(load_32(slab, 128 + half * GROUP), 2 * g, 3);
            _mm256_or_si256(low, _mm256_slli_epi16(high, 4))
        })
    };
    factors(slab) => Factors { scales: _mm256_cvtepi8_epi16(load_16(slab, 192)), ..only(half(slab, 208)) };
}
