//! CRC-32 of a file's tensors, chunk by chunk, in its own metadata: a card that lost a bit is found out.
//!
//! [`CHUNK`] says how many bytes a chunk has, [`TABLE`] has a checksum (CRC-32 as in zip and PNG) for each chunk from the
//! first tensor's first byte to the last tensor's last, what lies between tensors included; the last chunk is as long as
//! it is.

use crate::gguf_writer::Value;

/// The metadata key of a chunk's bytes, a `u32`.
pub const CHUNK: &str = "gptrickle.crc32.chunk_bytes";
/// The metadata key of the checksums, an array of `u32`.
pub const TABLE: &str = "gptrickle.crc32.table";
/// Bytes of a chunk in files written here: 128 sectors of a card.
pub const CHUNK_BYTES: u32 = 1 << 16;

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
