//! How much RAM a machine has, from the device tree that its boot code leaves in memory.
//!
//! ```text
//! header (big-endian words): magic, total size, offset of the structure, offset of the strings, …
//! structure: BEGIN_NODE name… { PROPERTY len, name's offset, value… } { node … } END_NODE … END   (4-byte steps)
//! ```

// Read "Devicetree Specification: flattened devicetree (DTB) format" first.

#![allow(unsafe_code)]

use core::slice;

const MAGIC: u32 = 0xd00d_feed;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const NOP: u32 = 4;
const HEADER: usize = 40;

/// The device tree at `address`, if one is there.
///
/// # Safety
/// `address` is readable memory, and if it starts with a device tree's magic, so are as many bytes as that tree says
/// it has. Nothing writes there while the result is in use.
pub unsafe fn at<'a>(address: usize) -> Option<&'a [u8]> {
    if address == 0 || !address.is_multiple_of(4) {
        return None;
    }
    // SAFETY: the caller says so.
    let header = unsafe { slice::from_raw_parts(address as *const u8, HEADER) };
    if word(header, 0)? != MAGIC {
        return None;
    }
    // SAFETY: the caller says so, now that there is a tree.
    Some(unsafe { slice::from_raw_parts(address as *const u8, word(header, 4)? as usize) })
}

/// Bytes in the RAM that starts at `base`, if the tree says so in addresses and sizes of 64 bits.
pub fn ram_size(tree: &[u8], base: u64) -> Option<u64> {
    let (mut at, strings) = (word(tree, 8)? as usize, word(tree, 12)? as usize);
    let mut depth = 0;
    let mut memory = false;
    loop {
        let token = word(tree, at)?;
        at += 4;
        match token {
            BEGIN_NODE => {
                let name = tree.get(at..)?;
                let name = &name[..name.iter().position(|&byte| byte == 0)?];
                at += (name.len() + 1).next_multiple_of(4);
                depth += 1;
                memory = depth == 2 && name.starts_with(b"memory@");
            }
            END_NODE => {
                depth -= 1;
                memory = false;
            }
            PROPERTY => {
                let (len, name) = (word(tree, at)? as usize, word(tree, at + 4)? as usize);
                let value = tree.get(at + 8..)?.get(..len)?;
                at += 8 + len.next_multiple_of(4);
                if memory && tree.get(strings..)?.get(name..)?.starts_with(b"reg\0") {
                    let double = |at| Some(u64::from(word(value, at)?) << 32 | u64::from(word(value, at + 4)?));
                    let mut regions = (0..len / 16).map(|i| (double(16 * i), double(16 * i + 8)));
                    if let Some((_, size)) = regions.find(|&(start, _)| start == Some(base)) {
                        return size;
                    }
                }
            }
            NOP => {}
            _ => return None,
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    /// A root with a property, a node to step over, and RAM of 512 MiB at 0x8000_0000.
    fn tree() -> Vec<u8> {
        let words = [
            MAGIC,
            0,
            40,
            152,
            0,
            0,
            0,
            0,
            0,
            0,
            BEGIN_NODE,
            0,
            PROPERTY,
            3,
            0,
            0x6100_0000,
            BEGIN_NODE,
            0x6370_7573,
            0,
            END_NODE,
            NOP,
            BEGIN_NODE,
            0x6d65_6d6f,
            0x7279_4038,
            0,
            PROPERTY,
            16,
            6,
            0,
            0x8000_0000,
            0,
            0x2000_0000,
            END_NODE,
            END_NODE,
            9,
            0,
            0,
            0,
        ];
        let mut bytes: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_be_bytes()).collect();
        bytes.extend(b"model\0reg\0");
        bytes
    }

    #[test]
    fn finds_the_ram_that_starts_at_an_address() {
        assert_eq!(ram_size(&tree(), 0x8000_0000), Some(512 << 20));
        assert_eq!(ram_size(&tree(), 0x4000_0000), None);
    }

    #[test]
    fn a_tree_cut_short_or_damaged_ends() {
        let tree = tree();
        for len in 0..tree.len() {
            ram_size(&tree[..len], 0x8000_0000);
        }
        for at in 0..tree.len() {
            for value in [0, 1, 2, 3, 4, 9, 0x7f, 0xff] {
                let mut tree = tree.clone();
                tree[at] = value;
                ram_size(&tree, 0x8000_0000);
            }
        }
    }
}
