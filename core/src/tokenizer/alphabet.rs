//! GPT-2's byte alphabet: every byte has a printable character, so that a vocabulary is a plain text file.
//!
//! Read `bytes_to_unicode` in OpenAI's `encoder.py` first. The 188 bytes that print in Latin-1 stand for themselves,
//! the other 68 take the characters from U+0100 on, in order: a space is `Ġ` (U+0120), a newline `Ċ` (U+010A).
//!
//! ```text
//! byte       00..20    21..7e    7f..a0    a1..ac    ad    ae..ff
//! character  100..120  21..7e    121..142  a1..ac    143   ae..ff
//! UTF-8      2 bytes   1 byte    2 bytes   2 bytes   2     2 bytes
//! ```

/// The character that stands for `byte`.
pub(crate) const fn character(byte: u8) -> char {
    let code = match byte {
        0x00..=0x20 => 0x100 + byte as u32,
        0x7f..=0xa0 => 0x121 + (byte as u32 - 0x7f),
        0xad => 0x143,
        _ => byte as u32,
    };
    match char::from_u32(code) {
        Some(c) => c,
        None => char::REPLACEMENT_CHARACTER, // not reached: every code above is a character
    }
}

/// The byte that `c` stands for, if it belongs to the alphabet.
pub(crate) const fn byte(c: char) -> Option<u8> {
    let code = c as u32;
    Some(match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => code as u8,
        0x100..=0x120 => (code - 0x100) as u8,
        0x121..=0x142 => (code - 0x121) as u8 + 0x7f,
        0x143 => 0xad,
        _ => return None,
    })
}

/// The bytes that `text`, written in the alphabet, stands for; `None` for what is outside it, and then no more.
pub(crate) fn bytes(text: &[u8]) -> impl Iterator<Item = Option<u8>> + '_ {
    let mut rest = Some(text);
    core::iter::from_fn(move || {
        let (code, tail) = match *rest? {
            [] => return None,
            // Most of any text.
            [a @ 0x21..=0x7e, ref tail @ ..] => {
                rest = Some(tail);
                return Some(Some(a));
            }
            [a @ ..0x80, ref tail @ ..] => (u32::from(a), tail),
            [a @ 0xc2..=0xc5, b @ 0x80..=0xbf, ref tail @ ..] => (u32::from(a & 0x1f) << 6 | u32::from(b & 0x3f), tail),
            _ => (0, &[][..]),
        };
        let found = char::from_u32(code).and_then(byte);
        rest = found.map(|_| tail);
        Some(found)
    })
}

/// What follows the spelling of `bytes` at the start of `text`; `None` if it starts otherwise.
pub(crate) fn strip<'t>(mut text: &'t [u8], bytes: &[u8]) -> Option<&'t [u8]> {
    for &byte in bytes {
        let mut utf8 = [0; 4];
        text = text.strip_prefix(character(byte).encode_utf8(&mut utf8).as_bytes())?;
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::string::String;
    use std::vec::Vec;

    #[test]
    fn every_byte_has_its_own_character_and_back() {
        let characters: BTreeSet<char> = (0..=255).map(character).collect();
        assert_eq!(characters.len(), 256);
        assert!((0..=255).all(|b| byte(character(b)) == Some(b)));
        assert_eq!(('\0'..='\u{ffff}').filter(|&c| byte(c).is_some()).count(), 256);
    }

    #[test]
    fn known_letters() {
        // ' ' and '\n' as every merges.txt shows them, and the first and last of each range.
        let known =
            [(b' ', 'Ġ'), (b'\n', 'Ċ'), (0, 'Ā'), (0x7f, 'ġ'), (0xa0, 'ł'), (0xad, 'Ń'), (b'!', '!'), (255, 'ÿ')];
        for (b, c) in known {
            assert_eq!(character(b), c);
        }
    }

    #[test]
    fn a_spelling_reads_back() {
        let all: Vec<u8> = (0..=255).collect();
        let text: String = all.iter().map(|&b| character(b)).collect();
        assert_eq!(bytes(text.as_bytes()).collect::<Option<Vec<u8>>>(), Some(all.clone()));
        assert_eq!(strip(text.as_bytes(), &all), Some(&[][..]));
        assert_eq!(strip("Ġthe w".as_bytes(), b" the"), Some(&b" w"[..]));
        assert_eq!(strip("Ġthe".as_bytes(), b" a"), None);
        assert_eq!(strip("Ġt".as_bytes(), b" the"), None);
    }

    #[test]
    fn what_is_outside_the_alphabet_ends_the_reading() {
        for text in ["a b", "a\u{ad}b", "a\u{144}b", "a\u{3b1}", "a😀", "a\0"] {
            assert_eq!(bytes(text.as_bytes()).collect::<Vec<_>>(), [Some(b'a'), None], "{text:?}");
        }
        for bad in [&[b'a', 0xc4][..], &[b'a', 0x80], &[b'a', 0xc1, 0x81], &[b'a', 0xc4, 0x20], &[b'a', 0xff]] {
            assert_eq!(bytes(bad).collect::<Vec<_>>(), [Some(b'a'), None], "{bad:x?}");
        }
    }
}
