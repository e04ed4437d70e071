//! CRC-32 of a file, chunk by chunk, in its own metadata: a card that lost a bit is found out.
//!
//! [`gptrickle_core::checked`] has the format, and compares. Here the table is made, of a file whose table is zeros.

pub use gptrickle_core::checked::{CHUNK, TABLE};

use crate::gguf_writer::Value;

/// Bytes of a chunk in files written here: 32 sectors of a card. A jump reads as much more, and the table, 0.02 % of the
/// file, is kept in memory.
pub const CHUNK_BYTES: u32 = 1 << 14;

/// [`gptrickle_core::checked::crc32`] with this machine's instructions.
pub fn crc32(before: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(before);
    hasher.update(bytes);
    hasher.finalize()
}

/// Checksums in the making.
#[derive(Debug, Default)]
pub struct Checksums {
    done: Vec<u32>,
    hasher: crc32fast::Hasher,
    hashed: usize, // bytes of the chunk at hand
}

impl Checksums {
    /// Takes the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let n = bytes.len().min(CHUNK_BYTES as usize - self.hashed);
            self.hasher.update(&bytes[..n]);
            self.hashed += n;
            if self.hashed == CHUNK_BYTES as usize {
                self.seal();
            }
            bytes = &bytes[n..];
        }
    }

    fn seal(&mut self) {
        self.done.push(std::mem::take(&mut self.hasher).finalize());
        self.hashed = 0;
    }

    /// The table of all bytes there were.
    pub fn finish(mut self) -> Value {
        if self.hashed > 0 {
            self.seal();
        }
        Value::array(4, self.done.len() as u64, self.done.iter().flat_map(|crc| crc.to_le_bytes()))
    }

    /// A table of the same length as that of so many bytes, of zeros.
    pub fn blank(bytes: u64) -> Value {
        let n = bytes.div_ceil(CHUNK_BYTES.into());
        Value::array(4, n, std::iter::repeat_n(0, 4 * n as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_have_the_checksums_that_zip_gives_them() {
        let mut bytes = vec![0; CHUNK_BYTES as usize];
        bytes.extend(b"123456789");
        let mut checksums = Checksums::default();
        bytes.chunks(1000).for_each(|bytes| checksums.update(bytes));
        let table = checksums.finish().bytes;
        assert_eq!(table.len(), Checksums::blank(bytes.len() as u64).bytes.len());
        assert_eq!(table[16..], 0xcbf4_3926u32.to_le_bytes(), "the check value of CRC-32/ISO-HDLC");
    }
}
