//! The KV cache: keys and values of every position so far, in f32, f16, q8_0 or q4_0.

use core::ops::Range;
use core::slice;

use half::f16;

use super::config::Config;
use crate::arena::{Arena, TooSmall, bytes_of};
use crate::part::{self, item, part, part_mut};
use crate::quant::{self, FLOAT_LANES, GROUP, HALF, Kernel, Lanes, LanesTask, half_to_f32};

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

/// A stretch of rows (positions of all layers, n_embd), stored as [`KvFormat`] says.
#[derive(Debug)]
pub(super) enum Rows<'a> {
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

    /// Stores a row (n_embd), which starts at value `at`.
    fn store(&mut self, kernel: Kernel, at: usize, row: &[f32]) {
        match self {
            Rows::F32(values) => part_mut(values, at..).iter_mut().zip(row).for_each(|(value, &x)| *value = x),
            Rows::F16(halves) => kernel.run_lanes(StoreHalves { halves: part_mut(halves, at..), row }),
            Rows::Q8_0 { q, d } => {
                let (q, d) = (part_mut(q, at..).as_chunks_mut::<GROUP>().0, part_mut(d, at / GROUP..));
                for ((x, q), d) in row.as_chunks::<GROUP>().0.iter().zip(q).zip(d) {
                    kernel.quantize(x, q, slice::from_mut(d), &mut [0; GROUP / HALF]);
                }
            }
            Rows::Q4_0 { q, d } => {
                let (q, d) = (part_mut(q, at / 2..).as_chunks_mut::<HALF>().0, part_mut(d, at / GROUP..));
                for ((x, q), d) in row.as_chunks::<GROUP>().0.iter().zip(q).zip(d) {
                    *d = quantize_nibbles(x, q);
                }
            }
        }
    }

    /// Copies a row to where another one starts; scales go with their groups, and rows are whole groups.
    fn copy(&mut self, from: Range<usize>, to: usize) {
        let groups = |at: &Range<usize>| at.start / GROUP..at.end / GROUP;
        match self {
            Rows::F32(values) => part::copy(values, from, to),
            Rows::F16(values) => part::copy(values, from, to),
            Rows::Q8_0 { q, d } => {
                part::copy(d, groups(&from), to / GROUP);
                part::copy(q, from, to);
            }
            Rows::Q4_0 { q, d } => {
                part::copy(d, groups(&from), to / GROUP);
                part::copy(q, from.start / 2..from.end / 2, to / 2);
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
            Rows::F32(values) => part(values, at).iter().try_for_each(|value| sink(&value.to_le_bytes())),
            Rows::F16(values) => part(values, at).iter().try_for_each(|value| sink(&value.to_le_bytes())),
            Rows::Q8_0 { q, d } => {
                sink(bytemuck::cast_slice(part(q, at.clone())))?;
                part(d, at.start / GROUP..at.end / GROUP).iter().try_for_each(|d| sink(&d.to_le_bytes()))
            }
            Rows::Q4_0 { q, d } => {
                sink(part(q, at.start / 2..at.end / 2))?;
                part(d, at.start / GROUP..at.end / GROUP).iter().try_for_each(|d| sink(&d.to_le_bytes()))
            }
        }
    }

    /// Takes back what [`save`](Rows::save) handed on.
    fn restore<E>(&mut self, at: Range<usize>, read: &mut impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<(), E> {
        match self {
            Rows::F32(values) => read_f32s(part_mut(values, at), read),
            Rows::F16(values) => read_u16s(part_mut(values, at), read),
            Rows::Q8_0 { q, d } => {
                read(bytemuck::cast_slice_mut(part_mut(q, at.clone())))?;
                read_f32s(part_mut(d, at.start / GROUP..at.end / GROUP), read)
            }
            Rows::Q4_0 { q, d } => {
                read(part_mut(q, at.start / 2..at.end / 2))?;
                read_u16s(part_mut(d, at.start / GROUP..at.end / GROUP), read)
            }
        }
    }
}

/// Values, as they are stored.
pub(super) trait Stored: Copy {
    /// So many values as f32, at most as many as there are lanes, and zeros behind them.
    fn piece<L: Lanes>(self, lanes: L, at: usize, len: usize) -> L::Floats;

    /// Asks for values that will be read soon.
    fn prefetch(self, at: Range<usize>);
}

impl Stored for &[f32] {
    #[inline(always)]
    fn piece<L: Lanes>(self, lanes: L, at: usize, len: usize) -> L::Floats {
        match part(self, at..).first_chunk() {
            Some(values) if len >= FLOAT_LANES => lanes.load(values),
            _ => lanes.load(&filled_up(part(self, at..at + len))),
        }
    }

    #[inline(always)]
    fn prefetch(self, at: Range<usize>) {
        quant::prefetch(self.get(at).unwrap_or(&[]));
    }
}

impl Stored for &Rows<'_> {
    #[inline(always)]
    fn piece<L: Lanes>(self, lanes: L, at: usize, len: usize) -> L::Floats {
        match self {
            Rows::F32(values) if len >= FLOAT_LANES => {
                lanes.load(part(values, at..).first_chunk().unwrap_or(&[0.0; FLOAT_LANES]))
            }
            Rows::F16(values) if len >= FLOAT_LANES => {
                lanes.load_halves(part(values, at..).first_chunk().unwrap_or(&[0; FLOAT_LANES]))
            }
            Rows::Q8_0 { q, d } if len >= FLOAT_LANES && at.is_multiple_of(FLOAT_LANES) => {
                let codes = part(q, at..).first_chunk().unwrap_or(&[0; FLOAT_LANES]);
                lanes.mul(lanes.load_codes(codes), lanes.all(item(d, at / GROUP)))
            }
            _ => lanes.load(&one_by_one(self, at, len)),
        }
    }

    #[inline(always)]
    fn prefetch(self, at: Range<usize>) {
        match self {
            Rows::F32(values) => values.prefetch(at),
            Rows::F16(values) => quant::prefetch(values.get(at).unwrap_or(&[])),
            Rows::Q8_0 { q, .. } => quant::prefetch(q.get(at).unwrap_or(&[])),
            Rows::Q4_0 { q, .. } => quant::prefetch(q.get(at.start / 2..at.end / 2).unwrap_or(&[])),
        }
    }
}

/// [`Stored::piece`] where a head begins amid a group, or ends amid the lanes.
#[inline(never)]
fn one_by_one(rows: &Rows, at: usize, len: usize) -> [f32; FLOAT_LANES] {
    let mut values = [0.0; FLOAT_LANES];
    for (value, i) in values.iter_mut().zip(at..at + len) {
        *value = match rows {
            Rows::F32(values) => item(values, i),
            Rows::F16(values) => half_to_f32(item(values, i)),
            Rows::Q8_0 { q, d } => f32::from(item(q, i)) * item(d, i / GROUP),
            Rows::Q4_0 { q, d } => {
                let byte = item(q, i / GROUP * HALF + i % HALF);
                let code = (byte >> (i % GROUP / HALF * 4) & 15) as i8 - 8;
                f32::from(code) * half_to_f32(item(d, i / GROUP))
            }
        };
    }
    values
}

/// The values, and zeros after them: they change no sum.
#[cold]
pub(super) fn filled_up(values: &[f32]) -> [f32; FLOAT_LANES] {
    let mut all = [0.0; FLOAT_LANES];
    all.iter_mut().zip(values).for_each(|(all, &value)| *all = value);
    all
}

/// Stores values as f16.
struct StoreHalves<'a> {
    halves: &'a mut [u16],
    row: &'a [f32], // whole groups
}

impl LanesTask for StoreHalves<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        for (halves, x) in self.halves.as_chunks_mut().0.iter_mut().zip(self.row.as_chunks().0) {
            *halves = lanes.to_halves(lanes.load(x));
        }
    }
}

/// Codes of a group in 16 bytes, and the bits of their f16 scale: the value furthest from 0 becomes code 0, as in GGUF's
/// Q4_0. A NaN or an infinity makes the scale one, so that it cannot vanish.
fn quantize_nibbles(x: &[f32; GROUP], q: &mut [u8; HALF]) -> u16 {
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
    /// The rows of a sequence's first `n` positions, in order: those that all share, then its own.
    pub(super) fn rows(&self, sequence: usize, n: usize) -> [Range<usize>; 2] {
        if sequence == 0 {
            return [0..n, 0..0];
        }
        let own = self.row(sequence, self.shared);
        [0..n.min(self.shared), own..own + n.saturating_sub(self.shared)]
    }

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
    rows: Rows<'a>, // (keys and values, n_layer, n_rows, n_embd)
    n_layer: usize,
    n_rows: usize,
    pub(super) n_embd: usize,
    pub(super) head_dim: usize,
}

impl<'a> Kv<'a> {
    /// Values of all keys and values.
    fn len(config: &Config, n_rows: usize) -> usize {
        config.n_layer.saturating_mul(n_rows).saturating_mul(config.n_embd).saturating_mul(2)
    }

    pub(super) fn bytes(format: KvFormat, config: &Config, n_rows: usize) -> usize {
        Rows::bytes(format, Kv::len(config, n_rows))
    }

    pub(super) fn take(
        format: KvFormat,
        config: &Config,
        n_rows: usize,
        arena: &mut Arena<'a>,
    ) -> Result<Self, TooSmall> {
        let rows = Rows::take(format, Kv::len(config, n_rows), arena)?;
        Ok(Kv { rows, n_layer: config.n_layer, n_rows, n_embd: config.n_embd, head_dim: config.head_dim() })
    }

    /// Where a head's part of a row's key begins.
    #[inline(always)]
    pub(super) fn key(&self, layer: usize, row: usize, head: usize) -> usize {
        (layer * self.n_rows + row) * self.n_embd + head * self.head_dim
    }

    /// Where a head's part of a row's value begins.
    #[inline(always)]
    pub(super) fn value(&self, layer: usize, row: usize, head: usize) -> usize {
        self.key(self.n_layer + layer, row, head)
    }

    /// How keys and values are stored.
    pub(super) fn rows(&self) -> &Rows<'a> {
        &self.rows
    }

    pub(super) fn format(&self) -> KvFormat {
        self.rows.format()
    }

    /// Bytes of one row's key or value in one layer, as [`save`](Kv::save) hands them on.
    pub(super) fn row_bytes(&self) -> usize {
        self.rows.row_bytes(self.n_embd)
    }

    /// Hands on the key and the value of a row as they are stored, little-endian.
    pub(super) fn save<E>(
        &self,
        layer: usize,
        row: usize,
        sink: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        for at in [self.key(layer, row, 0), self.value(layer, row, 0)] {
            self.rows.save(at..at + self.n_embd, sink)?;
        }
        Ok(())
    }

    /// Takes back what [`save`](Kv::save) handed on.
    pub(super) fn restore<E>(
        &mut self,
        layer: usize,
        row: usize,
        read: &mut impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        for at in [self.key(layer, row, 0), self.value(layer, row, 0)] {
            self.rows.restore(at..at + self.n_embd, read)?;
        }
        Ok(())
    }

    /// Copies the key and the value of a row to another one.
    pub(super) fn copy(&mut self, layer: usize, from: usize, to: usize) {
        for (from, to) in
            [(self.key(layer, from, 0), self.key(layer, to, 0)), (self.value(layer, from, 0), self.value(layer, to, 0))]
        {
            self.rows.copy(from..from + self.n_embd, to);
        }
    }

    /// Stores the key and the value (n_embd) of a row.
    pub(super) fn store(&mut self, kernel: Kernel, layer: usize, row: usize, key: &[f32], value: &[f32]) {
        let (key_at, value_at) = (self.key(layer, row, 0), self.value(layer, row, 0));
        self.rows.store(kernel, key_at, key);
        self.rows.store(kernel, value_at, value);
    }
}
