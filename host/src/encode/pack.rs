//! Codes and scales into the bytes of a block.

use half::f16;

use super::SUPER;

/// A super-block of groups that each have a scale and a minimum.
pub(super) struct Affine {
    pub(super) d: f16,
    pub(super) dmin: f16,
    pub(super) scales: [u8; 16],   // (groups), the rest zero
    pub(super) minimums: [u8; 16], // (groups), the rest zero
    pub(super) codes: [u8; SUPER],
}

/// A super-block of groups that each have a scale with a sign.
pub(super) struct Symmetric {
    pub(super) d: f16,
    pub(super) scales: [i8; 16], // (groups), the rest zero
    pub(super) codes: [u8; SUPER],
}

/// Q4_0, and IQ4_NL, whose codes stand for something else.
pub(super) fn q4_0(d: f16, codes: &[u8; 32], out: &mut [u8]) {
    out[0..2].copy_from_slice(&d.to_le_bytes());
    put_nibbles(&mut out[2..], codes);
}

pub(super) fn q4_1(d: f16, min: f16, codes: &[u8; 32], out: &mut [u8]) {
    out[0..2].copy_from_slice(&d.to_le_bytes());
    out[2..4].copy_from_slice(&min.to_le_bytes());
    put_nibbles(&mut out[4..], codes);
}

pub(super) fn q5_0(d: f16, codes: &[u8; 32], out: &mut [u8]) {
    out[0..2].copy_from_slice(&d.to_le_bytes());
    put_fives(&mut out[2..], codes);
}

pub(super) fn q5_1(d: f16, min: f16, codes: &[u8; 32], out: &mut [u8]) {
    out[0..2].copy_from_slice(&d.to_le_bytes());
    out[2..4].copy_from_slice(&min.to_le_bytes());
    put_fives(&mut out[4..], codes);
}

/// Code 127 is zero.
pub(super) fn q8_0(d: f16, codes: &[u8; 32], out: &mut [u8]) {
    out[0..2].copy_from_slice(&d.to_le_bytes());
    out[2..].iter_mut().zip(codes).for_each(|(out, code)| *out = code.wrapping_sub(127));
}

pub(super) fn q2_k(block: &Affine, out: &mut [u8]) {
    for ((out, scale), minimum) in out[0..16].iter_mut().zip(block.scales).zip(block.minimums) {
        *out = scale | minimum << 4;
    }
    put_pairs(&mut out[16..80], &block.codes);
    out[80..82].copy_from_slice(&block.d.to_le_bytes());
    out[82..84].copy_from_slice(&block.dmin.to_le_bytes());
}

pub(super) fn q3_k(block: &Symmetric, out: &mut [u8]) {
    let (hmask, rest) = out.split_at_mut(32);
    hmask.fill(0);
    for (k, codes) in block.codes.chunks_exact(32).enumerate() {
        hmask.iter_mut().zip(codes).for_each(|(out, code)| *out |= code >> 2 << k);
    }
    put_pairs(&mut rest[0..64], &block.codes.map(|code| code & 3));
    let packed = &mut rest[64..76];
    packed.fill(0);
    for (j, s) in block.scales.into_iter().enumerate() {
        let s = (s + 32) as u8;
        packed[j % 8] |= (s & 15) << (4 * (j / 8));
        packed[8 + j % 4] |= s >> 4 << (2 * (j / 4));
    }
    rest[76..78].copy_from_slice(&block.d.to_le_bytes());
}

pub(super) fn q4_k(block: &Affine, out: &mut [u8]) {
    put_k_scales(&mut out[0..16], block);
    put_nibble_pairs(&mut out[16..], &block.codes);
}

pub(super) fn q5_k(block: &Affine, out: &mut [u8]) {
    put_k_scales(&mut out[0..16], block);
    out[16..48].fill(0);
    for (g, codes) in block.codes.chunks_exact(32).enumerate() {
        out[16..48].iter_mut().zip(codes).for_each(|(out, code)| *out |= code >> 4 << g);
    }
    put_nibble_pairs(&mut out[48..], &block.codes);
}

pub(super) fn q6_k(block: &Symmetric, out: &mut [u8]) {
    let (low, rest) = out.split_at_mut(128);
    let (high, rest) = rest.split_at_mut(64);
    let halves = block.codes.chunks_exact(128).zip(low.chunks_exact_mut(64)).zip(high.chunks_exact_mut(32));
    for ((q, low), high) in halves {
        for l in 0..32 {
            let [a, b, c, d] = [q[l], q[l + 32], q[l + 64], q[l + 96]];
            low[l] = a & 15 | c << 4;
            low[l + 32] = b & 15 | d << 4;
            high[l] = a >> 4 | b >> 4 << 2 | c >> 4 << 4 | d >> 4 << 6;
        }
    }
    rest[0..16].iter_mut().zip(block.scales).for_each(|(out, s)| *out = s as u8);
    rest[16..18].copy_from_slice(&block.d.to_le_bytes());
}

pub(super) fn iq4_xs(block: &Symmetric, out: &mut [u8]) {
    out[0..2].copy_from_slice(&block.d.to_le_bytes());
    let (scales, qs) = out[2..].split_at_mut(6);
    scales.fill(0);
    let (high, low) = scales.split_at_mut(2);
    let groups = block.codes.as_chunks::<32>().0.iter().zip(qs.chunks_exact_mut(16)).zip(block.scales);
    for (g, ((codes, qs), s)) in groups.enumerate() {
        let six = (s + 32) as u8;
        low[g / 2] |= (six & 15) << (4 * (g % 2));
        high[g / 4] |= six >> 4 << (2 * (g % 4));
        put_nibbles(qs, codes);
    }
}

/// 32 codes of 4 bits: code `i` low in byte `i`, code `i + 16` above it.
fn put_nibbles(out: &mut [u8], codes: &[u8; 32]) {
    let (low, high) = codes.split_at(16);
    for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
        *out = low & 15 | high << 4;
    }
}

/// 32 codes of 5 bits: their fifth bits, then their nibbles.
fn put_fives(out: &mut [u8], codes: &[u8; 32]) {
    let fifth = codes.iter().rev().fold(0u32, |bits, code| bits << 1 | u32::from(code >> 4));
    out[0..4].copy_from_slice(&fifth.to_le_bytes());
    put_nibbles(&mut out[4..], codes);
}

/// 256 codes of 2 bits: 32 bytes hold 4 times 32.
fn put_pairs(out: &mut [u8], codes: &[u8; SUPER]) {
    for (out, q) in out.chunks_exact_mut(32).zip(codes.chunks_exact(128)) {
        for (l, out) in out.iter_mut().enumerate() {
            *out = q[l] | q[l + 32] << 2 | q[l + 64] << 4 | q[l + 96] << 6;
        }
    }
}

/// The low 4 bits of 256 codes: 32 bytes hold 2 times 32.
fn put_nibble_pairs(out: &mut [u8], codes: &[u8; SUPER]) {
    for (out, q) in out.chunks_exact_mut(32).zip(codes.chunks_exact(64)) {
        for (l, out) in out.iter_mut().enumerate() {
            *out = q[l] & 15 | q[l + 32] << 4;
        }
    }
}

/// The 16 bytes that Q4_K and Q5_K start with.
fn put_k_scales(out: &mut [u8], affine: &Affine) {
    out[0..2].copy_from_slice(&affine.d.to_le_bytes());
    out[2..4].copy_from_slice(&affine.dmin.to_le_bytes());
    let packed = &mut out[4..16];
    packed.fill(0);
    for g in 0..4 {
        let (s, m) = (affine.scales[g + 4], affine.minimums[g + 4]);
        packed[g] = affine.scales[g] | s >> 4 << 6;
        packed[g + 4] = affine.minimums[g] | m >> 4 << 6;
        packed[g + 8] = s & 15 | m << 4;
    }
}
