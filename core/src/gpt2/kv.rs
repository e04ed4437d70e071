//! The KV cache: keys and values of every position so far, in f32, f16, q8_0 or q4_0.

use core::ops::Range;

use half::f16;

use crate::arena::{Arena, TooSmall, bytes_of};
use crate::quant::{self, GROUP, HALF, half_to_f32};

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvFormat {
    /// 4 bytes a value: as computed.
    #[default]
    F32,
    /// 2 bytes a value: rounded to half precision.
    F16,
    /// 1.125 bytes a value: int8 codes, an f32 scale for every 32 values of a position's row.
    Q8_0,
    /// 0.5625 bytes a value: codes of 4 bits, an f16 scale for every 32 values of a position's row.
    ///
    /// Half of q8_0, and text that can be told from it: for what does not fit otherwise.
    Q4_0,
}

impl KvFormat {
    /// Its name, as it is typed.
    pub fn name(self) -> &'static str {
        match self {
            KvFormat::F32 => "f32",
            KvFormat::F16 => "f16",
            KvFormat::Q8_0 => "q8_0",
            KvFormat::Q4_0 => "q4_0",
        }
    }
}

/// Positions by which reading runs ahead of use: a head's part of each lies apart from the next one's.
const AHEAD: usize = 16;

/// A stretch of rows (positions of all layers, n_embd), stored as [`KvFormat`] says.
#[derive(Debug)]
enum Rows<'a> {
    F32(&'a mut [f32]),
    F16(&'a mut [u16]),
    Q8_0 {
        q: &'a mut [i8],
        d: &'a mut [f32],
    },
    /// Of each group's bytes, the low nibbles hold the first half, the high ones the second; a code less 8 times its
    /// scale is the value.
    Q4_0 {
        q: &'a mut [u8],
        d: &'a mut [u16],
    },
}

impl<'a> Rows<'a> {
    const fn bytes(format: KvFormat, n: usize) -> usize {
        match format {
            KvFormat::F32 => bytes_of::<f32>(n),
            KvFormat::F16 => bytes_of::<u16>(n),
            KvFormat::Q8_0 => bytes_of::<i8>(n).saturating_add(bytes_of::<f32>(n / GROUP)),
            KvFormat::Q4_0 => bytes_of::<u8>(n / 2).saturating_add(bytes_of::<u16>(n / GROUP)),
        }
    }

    fn take(format: KvFormat, n: usize, arena: &mut Arena<'a>) -> Result<Self, TooSmall> {
        Ok(match format {
            KvFormat::F32 => Rows::F32(arena.take_as_is(n)?),
            KvFormat::F16 => Rows::F16(arena.take_as_is(n)?),
            KvFormat::Q8_0 => Rows::Q8_0 { q: arena.take_as_is(n)?, d: arena.take_as_is(n / GROUP)? },
            KvFormat::Q4_0 => Rows::Q4_0 { q: arena.take_as_is(n / 2)?, d: arena.take_as_is(n / GROUP)? },
        })
    }

    /// Stores a row, which starts at value `at`.
    fn store(&mut self, at: usize, row: &[f32]) {
        match self {
            Rows::F32(values) => values[at..][..row.len()].copy_from_slice(row),
            Rows::F16(values) => {
                for (value, x) in values[at..].iter_mut().zip(row) {
                    *value = f16::from_f32(*x).to_bits();
                }
            }
            Rows::Q8_0 { q, d } => {
                for (i, x) in row.chunks_exact(GROUP).enumerate() {
                    let at = at + i * GROUP;
                    let d = &mut d[at / GROUP..][..1];
                    quant::quantize(x, &mut q[at..][..GROUP], d, &mut [0; GROUP / HALF]);
                }
            }
            Rows::Q4_0 { q, d } => {
                let groups = q[at / 2..].chunks_exact_mut(HALF).zip(&mut d[at / GROUP..]);
                for ((q, d), x) in groups.zip(row.chunks_exact(GROUP)) {
                    *d = quantize_nibbles(x, q);
                }
            }
        }
    }

    /// Copies a row to where another one starts; scales go with their groups, and rows are whole groups.
    fn copy(&mut self, from: Range<usize>, to: usize) {
        let groups = |at: &Range<usize>| at.start / GROUP..at.end / GROUP;
        match self {
            Rows::F32(values) => values.copy_within(from, to),
            Rows::F16(values) => values.copy_within(from, to),
            Rows::Q8_0 { q, d } => {
                d.copy_within(groups(&from), to / GROUP);
                q.copy_within(from, to);
            }
            Rows::Q4_0 { q, d } => {
                d.copy_within(groups(&from), to / GROUP);
                q.copy_within(from.start / 2..from.end / 2, to / 2);
            }
        }
    }

    fn format(&self) -> KvFormat {
        match self {
            Rows::F32(_) => KvFormat::F32,
            Rows::F16(_) => KvFormat::F16,
            Rows::Q8_0 { .. } => KvFormat::Q8_0,
            Rows::Q4_0 { .. } => KvFormat::Q4_0,
        }
    }

    /// Bytes that [`save`](Rows::save) hands on for a row of `n` values.
    fn row_bytes(&self, n: usize) -> usize {
        match self {
            Rows::F32(_) => n * size_of::<f32>(),
            Rows::F16(_) => n * size_of::<u16>(),
            Rows::Q8_0 { .. } => n + n / GROUP * size_of::<f32>(),
            Rows::Q4_0 { .. } => n / 2 + n / GROUP * size_of::<u16>(),
        }
    }

    /// Hands on a row as it is stored, little-endian.
    fn save<E>(&self, at: Range<usize>, sink: &mut impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        match self {
            Rows::F32(values) => values[at].iter().try_for_each(|value| sink(&value.to_le_bytes())),
            Rows::F16(values) => values[at].iter().try_for_each(|value| sink(&value.to_le_bytes())),
            Rows::Q8_0 { q, d } => {
                sink(bytemuck::cast_slice(&q[at.clone()]))?;
                d[at.start / GROUP..at.end / GROUP].iter().try_for_each(|d| sink(&d.to_le_bytes()))
            }
            Rows::Q4_0 { q, d } => {
                sink(&q[at.start / 2..at.end / 2])?;
                d[at.start / GROUP..at.end / GROUP].iter().try_for_each(|d| sink(&d.to_le_bytes()))
            }
        }
    }

    /// Takes back what [`save`](Rows::save) handed on.
    fn restore<E>(&mut self, at: Range<usize>, read: &mut impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<(), E> {
        match self {
            Rows::F32(values) => read_f32s(&mut values[at], read),
            Rows::F16(values) => read_u16s(&mut values[at], read),
            Rows::Q8_0 { q, d } => {
                read(bytemuck::cast_slice_mut(&mut q[at.clone()]))?;
                read_f32s(&mut d[at.start / GROUP..at.end / GROUP], read)
            }
            Rows::Q4_0 { q, d } => {
                read(&mut q[at.start / 2..at.end / 2])?;
                read_u16s(&mut d[at.start / GROUP..at.end / GROUP], read)
            }
        }
    }

    /// Asks for values that will be read soon.
    #[inline(always)]
    fn prefetch(&self, at: Range<usize>) {
        match self {
            Rows::F32(values) => quant::prefetch(values.get(at).unwrap_or(&[])),
            Rows::F16(values) => quant::prefetch(values.get(at).unwrap_or(&[])),
            Rows::Q8_0 { q, .. } => quant::prefetch(q.get(at).unwrap_or(&[])),
            Rows::Q4_0 { q, .. } => quant::prefetch(q.get(at.start / 2..at.end / 2).unwrap_or(&[])),
        }
    }

    /// Lends values as f32, through `buffer` where they are stored otherwise.
    #[inline(always)]
    fn values<'b>(&'b self, at: Range<usize>, buffer: &'b mut [f32]) -> &'b [f32] {
        let buffer = &mut buffer[..at.len()];
        match self {
            Rows::F32(values) => return &values[at],
            Rows::F16(values) => {
                for (x, &bits) in buffer.iter_mut().zip(&values[at]) {
                    *x = half_to_f32(bits);
                }
            }
            Rows::Q8_0 { q, d } => {
                // A head may begin amid a group.
                let whole = at.start.is_multiple_of(GROUP);
                let scales = &d[at.start / GROUP..];
                if whole {
                    for ((x, q), d) in buffer.chunks_mut(GROUP).zip(q[at].chunks(GROUP)).zip(scales) {
                        x.iter_mut().zip(q).for_each(|(x, &q)| *x = f32::from(q) * d);
                    }
                } else {
                    for (x, i) in buffer.iter_mut().zip(at) {
                        *x = f32::from(q[i]) * d[i / GROUP];
                    }
                }
            }
            Rows::Q4_0 { q, d } => {
                for (x, i) in buffer.iter_mut().zip(at) {
                    let byte = q[i / GROUP * HALF + i % HALF];
                    let code = (byte >> (i % GROUP / HALF * 4) & 15) as i8 - 8;
                    *x = f32::from(code) * half_to_f32(d[i / GROUP]);
                }
            }
        }
        buffer
    }
}

/// Codes of a group in 16 bytes, and the bits of their f16 scale: the value furthest from 0 becomes code 0, as in GGUF's
/// Q4_0. A NaN or an infinity makes the scale one, so that it cannot vanish.
fn quantize_nibbles(x: &[f32], q: &mut [u8]) -> u16 {
    let furthest = x.iter().fold(0.0f32, |furthest, &x| if x.abs() <= furthest.abs() { furthest } else { x });
    let furthest = if x.iter().all(|x| x.is_finite()) { furthest } else { f32::NAN };
    let d = furthest / -8.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    let (low, high) = x.split_at(HALF);
    // 8.5 and cutting off: the nearest code, of -8 to 7. A conversion saturates, and makes 0 of NaN.
    let code = |x: f32| ((x * inverse + 8.5) as u8).min(15);
    for ((q, &low), &high) in q.iter_mut().zip(low).zip(high) {
        *q = code(low) | code(high) << 4;
    }
    f16::from_f32(d).to_bits()
}

fn read_u16s<E>(values: &mut [u16], read: &mut impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<(), E> {
    values.iter_mut().try_for_each(|value| {
        let mut bytes = [0; size_of::<u16>()];
        read(&mut bytes)?;
        *value = u16::from_le_bytes(bytes);
        Ok(())
    })
}

fn read_f32s<E>(values: &mut [f32], read: &mut impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<(), E> {
    values.iter_mut().try_for_each(|value| {
        let mut bytes = [0; size_of::<f32>()];
        read(&mut bytes)?;
        *value = f32::from_le_bytes(bytes);
        Ok(())
    })
}

/// Which rows hold what, of the KV cache and of the tokens: the first sequence's rows are its positions, what others have
/// of their own lies behind its context.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    pub(super) context: usize,
    /// Most positions of its own that a sequence beside the first one has.
    pub(super) own: usize,
    /// Positions that all sequences share.
    pub(super) shared: usize,
}

impl Layout {
    /// The row of a sequence's position.
    pub fn row(&self, sequence: usize, position: usize) -> usize {
        match (sequence.checked_sub(1), position.checked_sub(self.shared)) {
            (Some(i), Some(own)) => self.context + i * self.own + own,
            _ => position,
        }
    }
}

/// Keys and values of every layer and position, in rows: see [`Layout`].
#[derive(Debug)]
pub(super) struct Kv<'a> {
    keys: Rows<'a>,   // (n_layer, n_rows, n_embd)
    values: Rows<'a>, // (n_layer, n_rows, n_embd)
    /// One head's key or value, decoded (head_dim).
    head: &'a mut [f32],
    n_rows: usize,
    n_embd: usize,
}

impl<'a> Kv<'a> {
    pub(super) const fn bytes(
        format: KvFormat,
        n_layer: usize,
        n_rows: usize,
        n_embd: usize,
        head_dim: usize,
    ) -> usize {
        let rows = Rows::bytes(format, n_layer.saturating_mul(n_rows).saturating_mul(n_embd));
        rows.saturating_mul(2).saturating_add(bytes_of::<f32>(head_dim))
    }

    pub(super) fn take(
        format: KvFormat,
        n_layer: usize,
        n_rows: usize,
        n_embd: usize,
        head_dim: usize,
        arena: &mut Arena<'a>,
    ) -> Result<Self, TooSmall> {
        let n = n_layer.saturating_mul(n_rows).saturating_mul(n_embd);
        Ok(Kv {
            keys: Rows::take(format, n, arena)?,
            values: Rows::take(format, n, arena)?,
            head: arena.take(head_dim)?,
            n_rows,
            n_embd,
        })
    }

    fn at(&self, layer: usize, row: usize) -> usize {
        (layer * self.n_rows + row) * self.n_embd
    }

    pub(super) fn format(&self) -> KvFormat {
        self.keys.format()
    }

    /// Bytes of one row's key or value in one layer, as [`save`](Kv::save) hands them on.
    pub(super) fn row_bytes(&self) -> usize {
        self.keys.row_bytes(self.n_embd)
    }

    /// Hands on the key and the value of a row as they are stored, little-endian.
    pub(super) fn save<E>(
        &self,
        layer: usize,
        row: usize,
        sink: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let at = self.at(layer, row);
        self.keys.save(at..at + self.n_embd, sink)?;
        self.values.save(at..at + self.n_embd, sink)
    }

    /// Takes back what [`save`](Kv::save) handed on.
    pub(super) fn restore<E>(
        &mut self,
        layer: usize,
        row: usize,
        read: &mut impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let at = self.at(layer, row);
        self.keys.restore(at..at + self.n_embd, read)?;
        self.values.restore(at..at + self.n_embd, read)
    }

    /// Copies the key and the value of a row to another one.
    pub(super) fn copy(&mut self, layer: usize, from: usize, to: usize) {
        let (from, to) = (self.at(layer, from), self.at(layer, to));
        self.keys.copy(from..from + self.n_embd, to);
        self.values.copy(from..from + self.n_embd, to);
    }

    /// Stores the key and the value (n_embd) of a row.
    pub(super) fn store(&mut self, layer: usize, row: usize, key: &[f32], value: &[f32]) {
        let at = self.at(layer, row);
        self.keys.store(at, key);
        self.values.store(at, value);
    }

    /// One head's key of a row.
    #[inline(always)]
    pub(super) fn key(&mut self, layer: usize, row: usize, head: &Range<usize>) -> &[f32] {
        let at = self.at(layer, row);
        let ahead = at + AHEAD * self.n_embd;
        self.keys.prefetch(ahead + head.start..ahead + head.end);
        self.keys.values(at + head.start..at + head.end, self.head)
    }

    /// One head's value of a row.
    #[inline(always)]
    pub(super) fn value(&mut self, layer: usize, row: usize, head: &Range<usize>) -> &[f32] {
        let at = self.at(layer, row);
        let ahead = at + AHEAD * self.n_embd;
        self.values.prefetch(ahead + head.start..ahead + head.end);
        self.values.values(at + head.start..at + head.end, self.head)
    }
}
