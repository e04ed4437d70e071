//! Reads the NumPy files of the reference vectors: little-endian f32, two dimensions, C order.

use std::fs;
use std::path::Path;

/// A matrix of logits or hidden states.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// Rows, columns.
    pub shape: (usize, usize),
    /// The values (rows, columns).
    pub data: Vec<f32>,
}

/// Reads a `.npy` file.
///
/// # Panics
/// It cannot be read, or holds anything but a two-dimensional `<f4` array in C order.
pub fn read(path: &Path) -> Matrix {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    parse(&bytes).unwrap_or_else(|| panic!("{}: not a two-dimensional little-endian f32 array", path.display()))
}

/// Parses the bytes of a `.npy` file, or says `None` to anything but a two-dimensional `<f4` array in C order.
///
/// Source: NumPy's format description, versions 1 to 3.
pub fn parse(bytes: &[u8]) -> Option<Matrix> {
    let rest = bytes.strip_prefix(b"\x93NUMPY")?;
    let (header, data) = match rest {
        [1, _, a, b, rest @ ..] => rest.split_at_checked(u16::from_le_bytes([*a, *b]).into())?,
        [2 | 3, _, a, b, c, d, rest @ ..] => rest.split_at_checked(u32::from_le_bytes([*a, *b, *c, *d]) as usize)?,
        _ => return None,
    };
    let header = std::str::from_utf8(header).ok()?;
    if !header.contains("'descr': '<f4'") || !header.contains("'fortran_order': False") {
        return None;
    }
    let shape = header.split_once("'shape': (")?.1.split_once(')')?.0;
    let (rows, columns) = shape.split_once(',')?;
    let shape: (usize, usize) = (rows.trim().parse().ok()?, columns.trim().trim_end_matches(',').parse().ok()?);
    let data: Vec<f32> = data.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
    (data.len() == shape.0 * shape.1).then_some(Matrix { shape, data })
}
