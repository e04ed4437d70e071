//! Block formats against ggml's own decoder, and products against exact ones in f64.
//!
//! The judge of products is [`parts`]: every weight's value straight from the published layouts, in f64, where all of
//! it is exact. It shares no code with the kernels, and is itself held to ggml's values.

use gptrickle_core::gguf::TensorType;
use gptrickle_core::quant::{self, Activation, Format, GROUP, HALF};
use gptrickle_tests::{scales, vectors};
use proptest::prelude::*;

/// Half the distance from 1 to the next f32: the most that one operation rounds off, relative to its result.
const UNIT: f64 = 1.0 / (1 << 24) as f64;
/// Rows in the recorded files, and how long they are.
const ROWS: usize = 16;
const COLS: usize = 768;

fn read(file: &str) -> Vec<u8> {
    let path = vectors().join("blocks").join(file);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn read_f32(file: &str) -> Vec<f32> {
    read(file).as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

fn read_f64(file: &str) -> Vec<f64> {
    read(file).as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect()
}

/// What ggml says of its types, in the index of the recorded files.
fn index() -> serde_json::Map<String, serde_json::Value> {
    let index: serde_json::Value = serde_json::from_slice(&read("index.json")).unwrap();
    assert_eq!((index["rows"].as_u64(), index["n"].as_u64()), (Some(ROWS as u64), Some(COLS as u64)));
    index["types"].as_object().unwrap().clone()
}

/// The recorded formats with their names in file names: all but F32.
fn recorded() -> Vec<(Format, String)> {
    let found: Vec<_> = index()
        .into_iter()
        .map(|(name, ggml)| {
            let id = ggml["id"].as_u64().unwrap() as u32;
            (Format::from_id(id).unwrap_or_else(|| panic!("{name}, id {id}, has no format")), name)
        })
        .collect();
    assert_eq!(found.len(), Format::ALL.len() - 1);
    found
}

/// The half-precision number at `at`.
fn half(block: &[u8], at: usize) -> f64 {
    let bits = u16::from_le_bytes([block[at], block[at + 1]]);
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    let magnitude = match exponent {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1024.0 + fraction) * 2f64.powi(exponent - 25),
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}

/// Weight `i` of a block: what its code is worth, and what its group's minimum adds.
fn parts(format: Format, b: &[u8], i: usize) -> [f64; 2] {
    const TABLE: [i32; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
    // 32 weights in 16 bytes from `at` on: low nibbles, then high ones.
    let nibble = |at: usize| i32::from(b[at + i % 32 % 16] >> (i % 32 / 16 * 4) & 15);
    // 64 weights in 32 bytes from `at` on: low nibbles, then high ones.
    let wide_nibble = |at: usize| i32::from(b[at + i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15);
    // 128 weights in 32 bytes from `at` on: bits 0-1, then 2-3, ...
    let pair = |at: usize| i32::from(b[at + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3);
    // Bit i of four bytes.
    let fifth = |at: usize| i32::from(b[at + i / 8] >> (i % 8) & 1) << 4;
    // The 6-bit scale and minimum of group g in twelve bytes.
    let six_bits = |at: usize| {
        let s = |j: usize| i32::from(b[at + j]);
        match i / 32 {
            g @ 0..4 => (s(g) & 63, s(g + 4) & 63),
            g => ((s(g + 4) & 15) | (s(g - 4) >> 6 << 4), (s(g + 4) >> 4) | (s(g) >> 6 << 4)),
        }
    };
    let scaled = |d: f64, scale: i32, code: i32| d * f64::from(scale * code);
    match format {
        Format::F32 => [f32::from_le_bytes([b[0], b[1], b[2], b[3]]).into(), 0.0],
        Format::F16 => [half(b, 0), 0.0],
        Format::BF16 => [f32::from_le_bytes([0, 0, b[0], b[1]]).into(), 0.0],
        Format::Q4_0 => [scaled(half(b, 0), 1, nibble(2) - 8), 0.0],
        Format::Q4_1 => [scaled(half(b, 0), 1, nibble(4)), half(b, 2)],
        Format::Q5_0 => [scaled(half(b, 0), 1, (nibble(6) | fifth(2)) - 16), 0.0],
        Format::Q5_1 => [scaled(half(b, 0), 1, nibble(8) | fifth(4)), half(b, 2)],
        Format::Q8_0 => [scaled(half(b, 0), 1, i32::from(b[2 + i] as i8)), 0.0],
        Format::IQ4_NL => [scaled(half(b, 0), 1, TABLE[nibble(2) as usize]), 0.0],
        Format::Q2_K => {
            let s = i32::from(b[i / 16]);
            [scaled(half(b, 80), s & 15, pair(16)), -scaled(half(b, 82), s >> 4, 1)]
        }
        Format::Q3_K => {
            let (group, s) = (i / 16, |j: usize| i32::from(b[96 + j]));
            let low = if group < 8 { s(group) & 15 } else { s(group - 8) >> 4 };
            let high = s(8 + group % 4) >> (group / 4 * 2) & 3;
            let third = if b[i % 32] >> (i / 32) & 1 == 0 { 4 } else { 0 };
            [scaled(half(b, 108), (low | high << 4) - 32, pair(32) - third), 0.0]
        }
        Format::Q4_K => {
            let (s, m) = six_bits(4);
            [scaled(half(b, 0), s, wide_nibble(16)), -scaled(half(b, 2), m, 1)]
        }
        Format::Q5_K => {
            let (s, m) = six_bits(4);
            let fifth = i32::from(b[16 + i % 32] >> (i / 32) & 1) << 4;
            [scaled(half(b, 0), s, wide_nibble(48) | fifth), -scaled(half(b, 2), m, 1)]
        }
        Format::Q6_K => {
            let (half_block, quarter, l) = (i / 128, i % 128 / 32, i % 32);
            let low = b[half_block * 64 + quarter % 2 * 32 + l] >> (quarter / 2 * 4) & 15;
            let high = b[128 + half_block * 32 + l] >> (quarter * 2) & 3;
            [scaled(half(b, 208), i32::from(b[192 + i / 16] as i8), i32::from(low | high << 4) - 32), 0.0]
        }
        Format::IQ4_XS => {
            let group = i / 32;
            let low = i32::from(b[4 + group / 2] >> (group % 2 * 4) & 15);
            let high = i32::from(u16::from_le_bytes([b[2], b[3]]) >> (group * 2) & 3);
            [scaled(half(b, 0), (low | high << 4) - 32, TABLE[nibble(8 + group * 16) as usize]), 0.0]
        }
        _ => panic!("{format:?} has no judge"),
    }
}

/// Every weight of a row, as [`parts`] has it.
fn row_parts(format: Format, row: &[u8]) -> Vec<[f64; 2]> {
    let (len, bytes) = format.block();
    row.chunks_exact(bytes).flat_map(|block| (0..len).map(move |i| parts(format, block, i))).collect()
}

/// A row's activations, quantised.
struct Quantised {
    x: Vec<f32>,
    q: Vec<i8>,
    d: Vec<f32>,
    sums: Vec<i16>,
}

impl Quantised {
    fn new(x: &[f32]) -> Self {
        let (n, x) = (x.len(), x.to_vec());
        // Not zero, so that an element left out shows.
        let (mut q, mut d, mut sums) = (vec![99; n], vec![99.0; n / GROUP], vec![99; n / HALF]);
        quant::quantize(&x, &mut q, &mut d, &mut sums);
        Quantised { x, q, d, sums }
    }

    fn dot(&self, format: Format, row: &[u8]) -> f32 {
        let activation = match format.is_float() {
            true => Activation { x: &self.x, q: &[], d: &[], sums: &[] },
            false => Activation { x: &[], q: &self.q, d: &self.d, sums: &self.sums },
        };
        quant::dot(format, row, &activation)
    }

    /// Activation `i` as it is multiplied with weights of this format: exact.
    fn value(&self, format: Format, i: usize) -> f64 {
        if format.is_float() { self.x[i].into() } else { f64::from(self.q[i]) * f64::from(self.d[i / GROUP]) }
    }

    /// The exact product with a row, and how far f32 rounding may take a kernel from it.
    ///
    /// Integer formats: a group's sums are exact; each of its two terms is multiplied twice, they are subtracted, and
    /// the result passes through its lane's additions (one for each 8 groups) and the three of `sum_lanes`. Float
    /// formats: one multiplication, an addition for each 16 elements, four of `sum_lanes`.
    fn exact(&self, format: Format, row: &[u8]) -> (f64, f64) {
        let weights = row_parts(format, row);
        let n = weights.len();
        assert_eq!(n, self.x.len());
        let (group, roundings) = match format.is_float() {
            true => (1, 1 + n.div_ceil(16) + 4),
            false => (GROUP, 3 + (n / GROUP).div_ceil(8) + 3),
        };
        let (mut product, mut magnitude) = (0.0, 0.0);
        for (g, weights) in weights.chunks(group).enumerate() {
            let mut terms = [0.0; 2];
            for (i, parts) in weights.iter().enumerate() {
                let x = self.value(format, g * group + i);
                terms = [terms[0] + parts[0] * x, terms[1] + parts[1] * x];
            }
            product += terms[0] + terms[1];
            magnitude += terms[0].abs() + terms[1].abs();
        }
        let gamma = roundings as f64 * UNIT;
        // Products too small for a normal f32 are rounded to multiples of its smallest step instead.
        (product, gamma / (1.0 - gamma) * magnitude + n as f64 * f64::from(f32::from_bits(1)))
    }
}

#[test]
fn formats_are_what_ggml_and_the_gguf_reader_say() {
    for format in Format::ALL {
        let (len, bytes) = format.block();
        let kind = TensorType::from_id(format.id()).unwrap_or_else(|| panic!("{format:?} is no tensor type"));
        let found = (kind.id, kind.name.to_owned(), kind.block_len as usize, kind.block_bytes as usize);
        assert_eq!(found, (format.id(), format!("{format:?}"), len, bytes));
        assert_eq!(Format::from_id(format.id()), Some(format));
        assert_eq!(format.row_bytes(3 * len), 3 * bytes);
    }
    assert_eq!((Format::F32.id(), Format::F32.block()), (0, (1, 4)));
    for (name, ggml) in index() {
        let [id, len, bytes] = ["id", "block_elems", "block_bytes"].map(|key| ggml[key].as_u64().unwrap() as usize);
        let format = Format::from_id(id as u32).unwrap();
        assert!(format!("{format:?}").eq_ignore_ascii_case(&name), "{format:?} is ggml's {name}");
        assert_eq!(format.block(), (len, bytes), "{name}");
    }
    // Types that exist and are not multiplied: Q8_1, Q8_K, I32, F64; and ids that never were.
    assert!([9, 15, 26, 28, 4, 31, 43, u32::MAX].into_iter().all(|id| Format::from_id(id).is_none()));
}

/// Bit for bit, every type: the order of the float operations is ggml's, and its values were made without contracting
/// Q4_K's and Q5_K's `d * q - m`. The judge, [`parts`], is held to the same values: within half a unit in the last
/// place of each term and of their sum.
#[test]
fn dequantised_values_are_ggmls() {
    for (format, name) in recorded() {
        let blocks = read(&format!("{name}.blocks"));
        let ggml = read_f32(&format!("{name}.deq.f32"));
        assert_eq!((blocks.len(), ggml.len()), (ROWS * format.row_bytes(COLS), ROWS * COLS), "{name}");
        let mut ours = vec![f32::NAN; ggml.len()];
        quant::dequantize(format, &blocks, &mut ours);
        for (i, (ours, ggml)) in ours.iter().zip(&ggml).enumerate() {
            let (row, col) = (i / COLS, i % COLS);
            assert_eq!(ours.to_bits(), ggml.to_bits(), "{name} row {row} column {col}: {ours} is not {ggml}");
        }
        for (i, (parts, ggml)) in row_parts(format, &blocks).iter().zip(&ggml).enumerate() {
            let off = (parts[0] + parts[1] - f64::from(*ggml)).abs();
            let bound = 3.0 * UNIT * (parts[0].abs() + parts[1].abs());
            assert!(off <= bound, "{name} row {} column {}: the judge is {off:e} off {ggml}", i / COLS, i % COLS);
        }
    }
}

/// ggml's exact products are those with its own activations. Floats: not rounded, so the same. Q8_0 and Q8_1: the same
/// codes, scales in f16, each off by `2^-11 / √3` of itself at most, on average. Q8_K: another scale for 256 values; two
/// roundings of a value to steps of `d` and `e` differ by `√((d² + e²) / 12)` on average. Six times that is allowed.
#[test]
fn products_of_recorded_rows_are_exact_and_near_ggmls() {
    let act = read_f32("act.f32");
    let x = Quantised::new(&act);
    let index = index();
    println!("{:8} {:>22} {:>22}", "type", "rounding, of its bound", "from ggml, of its bound");
    for (format, name) in recorded() {
        let group = if index[&name]["act"] == "q8_K" { 256 } else { GROUP };
        let theirs: Vec<f64> =
            act.chunks(group).map(|x| x.iter().fold(0.0, |max, x| f64::from(x.abs()).max(max)) / 127.0).collect();
        let blocks = read(&format!("{name}.blocks"));
        let ggml = read_f64(&format!("{name}.dot.f64"));
        let mut worst = [0.0f64; 2];
        for (r, (row, ggml)) in blocks.chunks_exact(format.row_bytes(COLS)).zip(ggml).enumerate() {
            let (exact, bound) = x.exact(format, row);
            let ours = f64::from(x.dot(format, row));
            assert!((ours - exact).abs() <= bound, "{name} row {r}: {ours} is not {exact}, within {bound:e}");

            let mut variance = 0.0;
            for (g, parts) in row_parts(format, row).chunks(GROUP).enumerate() {
                let (d, e) = (f64::from(x.d[g]), theirs[g * GROUP / group]);
                let w = |i: usize| parts[i][0] + parts[i][1];
                let squares: f64 = (0..GROUP).map(|i| w(i) * w(i)).sum();
                let products: f64 = (0..GROUP).map(|i| w(i) * f64::from(act[g * GROUP + i])).sum();
                variance += match group {
                    GROUP => (products / 2048.0).powi(2) / 3.0,
                    _ => squares * (d * d + e * e) / 12.0,
                };
            }
            let near = if format.is_float() { bound } else { 6.0 * variance.sqrt() };
            assert!((ours - ggml).abs() <= near, "{name} row {r}: {ours} is not near ggml's {ggml}, within {near:e}");
            worst = [worst[0].max((ours - exact).abs() / bound), worst[1].max((ours - ggml).abs() / near)];
        }
        println!("{name:8} {:22.3} {:22.3}", worst[0], worst[1]);
    }
}

#[test]
fn halfway_between_two_codes_the_even_one_is_taken() {
    // The largest magnitude is 127, so the scale is 1.
    let mut x = [0.0; GROUP];
    x[..12].copy_from_slice(&[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 125.5, 126.5, -126.5, -125.5, 0.500_000_06]);
    let quantised = Quantised::new(&x);
    assert_eq!(quantised.d, [1.0]);
    assert_eq!(quantised.q[..12], [127, 0, 2, 2, 0, -2, -2, 126, 126, -126, -126, 1]);
}

#[test]
fn activations_at_the_ends_of_the_range_are_zero_huge_or_not_a_number() {
    for zero in [0.0, -0.0, 1e-31, -9.9e-31, f32::MIN_POSITIVE, f32::from_bits(1)] {
        let quantised = Quantised::new(&[zero; GROUP]);
        assert_eq!(
            (&quantised.q[..], &quantised.d[..], &quantised.sums[..]),
            (&[0; GROUP][..], &[0.0][..], &[0, 0][..])
        );
    }
    for huge in [f32::MAX, f32::MIN, 1.1e-30, -1.1e-30] {
        let quantised = Quantised::new(&[huge; GROUP]);
        let code = if huge > 0.0 { 127 } else { -127 };
        assert_eq!(
            (quantised.q[0], quantised.d[0], quantised.sums[0]),
            (code, huge.abs() / 127.0, i16::from(code) * 16)
        );
    }
    for bad in [f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001), f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 15, 31] {
            let mut x = [1.0; 3 * GROUP];
            x[GROUP + at] = bad;
            let quantised = Quantised::new(&x);
            assert_eq!(
                (quantised.d[0], quantised.d[2]),
                (1.0 / 127.0, 1.0 / 127.0),
                "the other groups are not touched"
            );
            assert_eq!((quantised.d[1].is_nan(), quantised.d[1].is_finite()), (bad.is_nan(), false), "{bad} at {at}");
            for format in Format::ALL.into_iter().filter(|format| format.block().0 <= GROUP) {
                let row = vec![0x11; format.row_bytes(x.len())];
                assert!(!quantised.dot(format, &row).is_finite(), "{format:?} loses {bad} at {at}");
            }
        }
    }
}

/// A row of 32 to 800 weights with these bytes, and scales that are finite: exponents below 2^-4.
fn row(format: Format, n: usize, bytes: &[u8]) -> (usize, Vec<u8>) {
    let cols = if format.block().0 == 256 { n.div_ceil(8) * 256 } else { n * GROUP };
    let mut row: Vec<u8> = bytes.iter().copied().cycle().take(format.row_bytes(cols)).collect();
    for block in row.chunks_exact_mut(format.block().1) {
        match format {
            Format::F32 => block[3] &= 0xbf,
            Format::BF16 => block[1] &= 0xbf,
            _ => scales(format).iter().for_each(|&at| block[at + 1] &= 0xaf),
        }
    }
    (cols, row)
}

fn format() -> impl Strategy<Value = Format> {
    prop::sample::select(&Format::ALL[..])
}

/// Bytes that kernels get wrong: all bits, sign bits, all but sign bits, none; or any.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        1 => prop::sample::select(&[0xffu8, 0x80, 0x7f, 0x00, 0x88, 0x0f, 0xf0][..]).prop_map(|byte| vec![byte]),
        4 => prop::collection::vec(any::<u8>(), 257..1000),
    ]
}

/// Activations of one magnitude, or of many, or all on the codes' edges.
fn activations() -> impl Strategy<Value = Vec<f32>> {
    let edges = prop::sample::select(&[-127.0f32, 127.0, 0.0, 126.5, -0.5, 63.5][..]);
    prop_oneof![
        prop::collection::vec(-3.0f32..3.0, 800),
        prop::collection::vec(edges, 800),
        prop::collection::vec((-1.0f32..1.0, -20..20).prop_map(|(m, e)| m * 2f32.powi(e)), 800),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn activations_keep_half_a_step(x in activations(), exponent in -80..80i32) {
        let x: Vec<f32> = x[..GROUP * 2].iter().map(|x| x * 2f32.powi(exponent)).collect();
        let quantised = Quantised::new(&x);
        for (g, x) in x.chunks(GROUP).enumerate() {
            let (q, d) = (&quantised.q[g * GROUP..][..GROUP], quantised.d[g]);
            let max = x.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
            prop_assert_eq!(d, if max < 1e-30 { 0.0 } else { max / 127.0 });
            for (x, q) in x.iter().zip(q) {
                // Half a step, and four roundings of numbers up to 127 steps: of d, its inverse and both products.
                let off = (f64::from(*q) * f64::from(d) - f64::from(*x)).abs();
                prop_assert!(off <= f64::from(d) * (0.5 + 127.0 * 4.0 * UNIT) || d == 0.0, "{} is {} of {}", x, q, d);
                prop_assert!(d == 0.0 || x.abs() < max || q.unsigned_abs() == 127, "the largest has the last code");
            }
            for (half, q) in q.chunks(HALF).enumerate() {
                let sum: i32 = q.iter().map(|&q| i32::from(q)).sum();
                prop_assert_eq!(i32::from(quantised.sums[g * 2 + half]), sum);
            }
        }
    }

    #[test]
    fn products_of_any_rows_are_exact(format in format(), n in 1..25usize, bytes in bytes(), x in activations()) {
        let (cols, row) = row(format, n, &bytes);
        let x = Quantised::new(&x[..cols]);
        let (exact, bound) = x.exact(format, &row);
        let ours = x.dot(format, &row);
        prop_assert!((f64::from(ours) - exact).abs() <= bound, "{:?}: {} is not {}, within {}", format, ours, exact, bound);
    }

    #[test]
    fn activations_are_rounded_half_to_even(x in activations(), halves in any::<bool>()) {
        let mut x = x;
        if halves {
            // Codes that lie in the middle of two.
            x.iter_mut().for_each(|x| *x = (*x * 63.0).clamp(-63.0, 63.0).trunc() + 0.5);
            x.iter_mut().step_by(GROUP).for_each(|x| *x = 127.0);
        }
        let ours = Quantised::new(&x);
        for (x, (q, sums)) in x.chunks(GROUP).zip(ours.q.chunks(GROUP).zip(ours.sums.chunks(GROUP / HALF))) {
            let max = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
            let inverse = if max < 1e-30 { 0.0 } else { 127.0 / max };
            let codes: Vec<i8> = x.iter().map(|x| (x * inverse).round_ties_even() as i8).collect();
            prop_assert_eq!(q, &codes[..]);
            let exact: Vec<i16> = codes.chunks(HALF).map(|half| half.iter().map(|&q| i16::from(q)).sum()).collect();
            prop_assert_eq!(sums, &exact[..]);
        }
    }

    #[test]
    fn dequantised_values_of_any_rows_are_exact(format in format(), n in 1..25usize, bytes in bytes()) {
        let (cols, row) = row(format, n, &bytes);
        let mut ours = vec![f32::NAN; cols];
        quant::dequantize(format, &row, &mut ours);
        for (ours, parts) in ours.iter().zip(row_parts(format, &row)) {
            let off = (f64::from(*ours) - parts[0] - parts[1]).abs();
            prop_assert!(off <= 3.0 * UNIT * (parts[0].abs() + parts[1].abs()), "{:?}: {} is not {:?}", format, ours, parts);
        }
    }

    /// A damaged scale can be multiplied with zero, and must not vanish there.
    #[test]
    fn a_scale_that_is_not_finite_shows(
        format in format().prop_filter("has f16 scales", |format| !scales(*format).is_empty()),
        n in 1..25usize,
        bytes in bytes(),
        x in activations(),
        bad in prop::sample::select(&[0x7c00u16, 0xfc00, 0x7e00, 0xfe00, 0x7c01][..]),
        at in any::<prop::sample::Index>(),
        which in any::<prop::sample::Index>(),
    ) {
        let (cols, mut row) = row(format, n, &bytes);
        let block_bytes = format.block().1;
        let start = at.index(row.len() / block_bytes) * block_bytes + scales(format)[which.index(scales(format).len())];
        row[start..start + 2].copy_from_slice(&bad.to_le_bytes());
        let x = Quantised::new(&x[..cols]);
        let ours = x.dot(format, &row);
        prop_assert!(!ours.is_finite(), "{:?}: {}", format, ours);
        let mut values = vec![0.0; cols];
        quant::dequantize(format, &row, &mut values);
        prop_assert!(values.iter().any(|value| !value.is_finite()));
    }
}

/// Every f16 as the scale of a weight that is 1, denormal ones, infinities and NaNs among them.
#[test]
fn every_scale_is_the_f16_it_was() {
    for bits in 0..=u16::MAX {
        let mut block = [1; 34];
        block[..2].copy_from_slice(&bits.to_le_bytes());
        let mut weights = [0.0; 32];
        quant::dequantize(Format::Q8_0, &block, &mut weights);
        // Exact: f32 has room for all f16.
        let exact = half(&block, 0) as f32;
        let same = if exact.is_nan() { weights[31].is_nan() } else { weights[31].to_bits() == exact.to_bits() };
        assert!(same, "{bits:#06x}: {} instead of {exact}", weights[31]);
    }
}
