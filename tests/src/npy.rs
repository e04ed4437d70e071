//! Reads the NumPy files of the reference vectors: little-endian f32, C order.

use std::fs;
use std::path::Path;

/// An array of logits, hidden states or attention weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// The length of each dimension.
    pub shape: Vec<usize>,
    /// The values, the last dimension's side by side.
    pub data: Vec<f32>,
}

/// Reads a `.npy` file.
///
/// # Panics
/// It cannot be read, or holds anything but a `<f4` array in C order.
pub fn read(path: &Path) -> Array {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    parse(&bytes).unwrap_or_else(|| panic!("{}: not a little-endian f32 array", path.display()))
}

/// Parses the bytes of a `.npy` file, or says `None` to anything but a `<f4` array in C order.
///
/// Source: NumPy's format description, versions 1 to 3.
pub fn parse(bytes: &[u8]) -> Option<Array> {
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
    let lengths = shape.split(',').map(str::trim).filter(|length| !length.is_empty());
    let shape: Vec<usize> = lengths.map(|length| length.parse().ok()).collect::<Option<_>>()?;
    let data: Vec<f32> = data.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
    (data.len() == shape.iter().product::<usize>()).then_some(Array { shape, data })
}
