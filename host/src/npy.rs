//! Writes arrays of f32 as NumPy's `.npy` files.

use std::io::{self, Write};

/// Writes the header of a C-order array of little-endian f32 of this shape; the values follow it.
///
/// Source: NumPy's format description, version 1.0: the header ends on a multiple of 64 bytes.
///
/// # Errors
/// `out` fails.
pub fn write_header(out: &mut (impl Write + ?Sized), shape: &[usize]) -> io::Result<()> {
    let lengths: Vec<String> = shape.iter().map(usize::to_string).collect();
    let comma = if shape.len() == 1 { "," } else { "" }; // a tuple of one, in Python
    let shape = format!("({}{comma})", lengths.join(", "));
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
    let prefix = 10;
    while (prefix + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    out.write_all(b"\x93NUMPY\x01\x00")?;
    out.write_all(&(header.len() as u16).to_le_bytes())?;
    out.write_all(header.as_bytes())
}

/// Writes values as little-endian f32.
///
/// # Errors
/// `out` fails.
pub fn write_values(out: &mut (impl Write + ?Sized), values: &[f32]) -> io::Result<()> {
    values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_what_numpy_writes() {
        let mut out = Vec::new();
        write_header(&mut out, &[2, 3]).unwrap();
        write_values(&mut out, &[1.0]).unwrap();
        // numpy.save(f, numpy.zeros((2, 3), "<f4"))
        let header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";
        assert_eq!(&out[..8], b"\x93NUMPY\x01\x00");
        assert_eq!(out[8..10], [118, 0]);
        assert_eq!(&out[10..10 + header.len()], header);
        assert_eq!(out[10 + header.len()..127].iter().filter(|&&b| b != b' ').count(), 0);
        assert_eq!(out[127..], [b'\n', 0, 0, 0x80, 0x3f]);

        for (shape, shown) in
            [(&[5][..], "'shape': (5,), }"), (&[4, 3, 2], "'shape': (4, 3, 2), }"), (&[], "'shape': (), }")]
        {
            let mut out = Vec::new();
            write_header(&mut out, shape).unwrap();
            assert!(String::from_utf8_lossy(&out).contains(shown) && out.len() == 128);
        }
    }
}
