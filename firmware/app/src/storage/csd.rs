//! An SD card's own description.

// Read "SD Physical Layer Simplified Specification 3.01: 5.3 CSD Register" first.

/// A card's size in blocks of 512 bytes, from its CSD register.
pub fn blocks(csd: u128) -> u32 {
    let bits = |high: u32, low: u32| (csd >> low) as u32 & (u32::MAX >> (31 - (high - low)));
    if bits(127, 126) == 0 {
        let log2_unit = bits(49, 47) + 2 + bits(83, 80);
        ((u64::from(bits(73, 62)) + 1) << log2_unit >> 9) as u32
    } else {
        (bits(69, 48) + 1).saturating_mul(1024)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_both_kinds_of_card() {
        // 8 GB: C_SIZE = 0x1d59.
        assert_eq!(blocks(1 << 126 | 0x1d59 << 48), (0x1d59 + 1) * 1024);
        // 1 GB: READ_BL_LEN 10, C_SIZE 3931, C_SIZE_MULT 7.
        assert_eq!(blocks(10 << 80 | 3931 << 62 | 7 << 47), 3932 * 512 * 2);
        // Whatever a card says.
        assert_eq!(blocks(u128::MAX), u32::MAX);
        assert_eq!(blocks(u128::MAX >> 2), 1 << 27);
    }
}
