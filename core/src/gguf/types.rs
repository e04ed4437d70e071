//! Tensor types: every id that GGUF files use, so that a type we do not multiply is still named and measured.

/// How a tensor's values are stored, as its id in the file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorType {
    /// The id in the file.
    pub id: u32,
    /// The name people know, `Q4_K` for example.
    pub name: &'static str,
    /// Values per block: a power of two.
    pub block_len: u32,
    /// Bytes per block.
    pub block_bytes: u32,
}

/// (id, name, values per block, bytes per block), from ggml's `ggml_type` and its type traits.
const TYPES: [(u32, &str, u32, u32); 32] = [
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
];

impl TensorType {
    /// The type with this id, if GGUF has one.
    pub fn from_id(id: u32) -> Option<TensorType> {
        let &(id, name, block_len, block_bytes) = TYPES.iter().find(|t| t.0 == id)?;
        Some(TensorType { id, name, block_len, block_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_length_is_a_power_of_two() {
        assert!(TYPES.iter().all(|&(_, _, block_len, _)| block_len.is_power_of_two()));
    }
}
