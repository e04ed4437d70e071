//! The KV cache: keys and values of every position so far, in f32, f16 or q8_0.

use core::ops::Range;

use half::f16;

use crate::arena::{Arena, TooSmall, bytes_of};
use crate::quant::{self, GROUP, HALF};

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
}

impl KvFormat {
    /// Its name, as it is typed.
    pub fn name(self) -> &'static str {
        match self {
            KvFormat::F32 => "f32",
            KvFormat::F16 => "f16",
            KvFormat::Q8_0 => "q8_0",
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
    Q8_0 { q: &'a mut [i8], d: &'a mut [f32] },
}

impl<'a> Rows<'a> {
    const fn bytes(format: KvFormat, n: usize) -> usize {
        match format {
            KvFormat::F32 => bytes_of::<f32>(n),
            KvFormat::F16 => bytes_of::<u16>(n),
            KvFormat::Q8_0 => bytes_of::<i8>(n).saturating_add(bytes_of::<f32>(n / GROUP)),
        }
    }

    fn take(format: KvFormat, n: usize, arena: &mut Arena<'a>) -> Result<Self, TooSmall> {
        Ok(match format {
            KvFormat::F32 => Rows::F32(arena.take_as_is(n)?),
            KvFormat::F16 => Rows::F16(arena.take_as_is(n)?),
            KvFormat::Q8_0 => Rows::Q8_0 { q: arena.take_as_is(n)?, d: arena.take_as_is(n / GROUP)? },
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
        }
    }

    fn format(&self) -> KvFormat {
        match self {
            Rows::F32(_) => KvFormat::F32,
            Rows::F16(_) => KvFormat::F16,
            Rows::Q8_0 { .. } => KvFormat::Q8_0,
        }
    }

    /// Bytes that [`save`](Rows::save) hands on for a row of `n` values.
    fn row_bytes(&self, n: usize) -> usize {
        match self {
            Rows::F32(_) => n * size_of::<f32>(),
            Rows::F16(_) => n * size_of::<u16>(),
            Rows::Q8_0 { .. } => n + n / GROUP * size_of::<f32>(),
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
        }
    }

    /// Takes back what [`save`](Rows::save) handed on.
    fn restore<E>(&mut self, at: Range<usize>, read: &mut impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<(), E> {
        match self {
            Rows::F32(values) => read_f32s(&mut values[at], read),
            Rows::F16(values) => values[at].iter_mut().try_for_each(|value| {
                let mut bytes = [0; size_of::<u16>()];
                read(&mut bytes)?;
                *value = u16::from_le_bytes(bytes);
                Ok(())
            }),
            Rows::Q8_0 { q, d } => {
                read(bytemuck::cast_slice_mut(&mut q[at.clone()]))?;
                read_f32s(&mut d[at.start / GROUP..at.end / GROUP], read)
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
                    *x = f16::from_bits(bits).to_f32();
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
        }
        buffer
    }
}

fn read_f32s<E>(values: &mut [f32], read: &mut impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<(), E> {
    values.iter_mut().try_for_each(|value| {
        let mut bytes = [0; size_of::<f32>()];
        read(&mut bytes)?;
        *value = f32::from_le_bytes(bytes);
        Ok(())
    })
}

/// Keys and values of every layer and position.
#[derive(Debug)]
pub(super) struct Kv<'a> {
    keys: Rows<'a>,   // (n_layer, context, n_embd)
    values: Rows<'a>, // (n_layer, context, n_embd)
    /// One head's key or value, decoded (head_dim).
    head: &'a mut [f32],
    context: usize,
    n_embd: usize,
}

impl<'a> Kv<'a> {
    pub(super) const fn bytes(
        format: KvFormat,
        n_layer: usize,
        context: usize,
        n_embd: usize,
        head_dim: usize,
    ) -> usize {
        let rows = Rows::bytes(format, n_layer.saturating_mul(context).saturating_mul(n_embd));
        rows.saturating_mul(2).saturating_add(bytes_of::<f32>(head_dim))
    }

    pub(super) fn take(
        format: KvFormat,
        n_layer: usize,
        context: usize,
        n_embd: usize,
        head_dim: usize,
        arena: &mut Arena<'a>,
    ) -> Result<Self, TooSmall> {
        let n = n_layer.saturating_mul(context).saturating_mul(n_embd);
        Ok(Kv {
            keys: Rows::take(format, n, arena)?,
            values: Rows::take(format, n, arena)?,
            head: arena.take(head_dim)?,
            context,
            n_embd,
        })
    }

    fn at(&self, layer: usize, position: usize) -> usize {
        (layer * self.context + position) * self.n_embd
    }

    pub(super) fn format(&self) -> KvFormat {
        self.keys.format()
    }

    /// Bytes of a position's key or value in one layer, as [`save`](Kv::save) hands them on.
    pub(super) fn row_bytes(&self) -> usize {
        self.keys.row_bytes(self.n_embd)
    }

    /// Hands on the key and the value of a position as they are stored, little-endian.
    pub(super) fn save<E>(
        &self,
        layer: usize,
        position: usize,
        sink: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let at = self.at(layer, position);
        self.keys.save(at..at + self.n_embd, sink)?;
        self.values.save(at..at + self.n_embd, sink)
    }

    /// Takes back what [`save`](Kv::save) handed on.
    pub(super) fn restore<E>(
        &mut self,
        layer: usize,
        position: usize,
        read: &mut impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let at = self.at(layer, position);
        self.keys.restore(at..at + self.n_embd, read)?;
        self.values.restore(at..at + self.n_embd, read)
    }

    /// Stores the key and the value (n_embd) of a position.
    pub(super) fn store(&mut self, layer: usize, position: usize, key: &[f32], value: &[f32]) {
        let at = self.at(layer, position);
        self.keys.store(at, key);
        self.values.store(at, value);
    }

    /// One head's key at a position.
    #[inline(always)]
    pub(super) fn key(&mut self, layer: usize, position: usize, head: &Range<usize>) -> &[f32] {
        let at = self.at(layer, position);
        let ahead = at + AHEAD * self.n_embd;
        self.keys.prefetch(ahead + head.start..ahead + head.end);
        self.keys.values(at + head.start..at + head.end, self.head)
    }

    /// One head's value at a position.
    #[inline(always)]
    pub(super) fn value(&mut self, layer: usize, position: usize, head: &Range<usize>) -> &[f32] {
        let at = self.at(layer, position);
        let ahead = at + AHEAD * self.n_embd;
        self.values.prefetch(ahead + head.start..ahead + head.end);
        self.values.values(at + head.start..at + head.end, self.head)
    }
}
