//! Splits text into the pieces within which GPT-2 merges: words with the space before them, numbers, punctuation.
//!
//! GPT-2's expression, alternatives tried in this order at each place:
//!
//! ```text
//! 's|'t|'re|'ve|'m|'ll|'d  |   ?\p{L}+  |   ?\p{N}+  |   ?[^\s\p{L}\p{N}]+  |  \s+(?!\S)  |  \s+
//! ```
//!
//! It needs no engine: a [`Class`] per character and five cases do the same. The look-ahead says that a run of white
//! space leaves its last character to the word that follows. `\p{L}` and `\p{N}` are those of Unicode 16, `\s` is
//! `White_Space`, and the optional space is U+0020 only. A byte that is no part of valid UTF-8 is punctuation of its
//! own, so every byte of a text is in exactly one piece. Source: OpenAI's `encoder.py`.

// STARTS and RUNS: the class of every character past ASCII, packed by build.rs.
include!(concat!(env!("OUT_DIR"), "/classes.rs"));

/// What the expression knows of a character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// `\p{L}`
    Letter,
    /// `\p{N}`
    Number,
    /// `\s`
    Space,
    /// `[^\s\p{L}\p{N}]`, marks, unassigned characters and stray bytes included.
    Other,
}

impl Class {
    fn of(c: char) -> Class {
        match c {
            'a'..='z' | 'A'..='Z' => Class::Letter,
            '0'..='9' => Class::Number,
            ' ' | '\t'..='\r' => Class::Space,
            '\0'..='\x7f' => Class::Other,
            _ => Class::packed(c.into()),
        }
    }

    /// The class of a character past ASCII: a few run lengths are added up to find it.
    fn packed(code: u32) -> Class {
        let start = STARTS.partition_point(|&(first, _)| first <= code).saturating_sub(1);
        let (mut end, at) = STARTS[start]; // one past the last character of the run before
        let (mut number, mut shift) = (0, 0);
        for byte in &RUNS[at.into()..] {
            number |= u32::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                end += number >> 2;
                if code < end {
                    break;
                }
                (number, shift) = (0, 0);
            }
        }
        [Class::Letter, Class::Number, Class::Space, Class::Other][number as usize & 3]
    }
}

/// The class and the bytes of the character that `text` starts with; `None` at the end.
fn first(text: &[u8]) -> Option<(Class, usize)> {
    let (len, least, code) = match *text {
        [] => return None,
        [a @ ..0x80, ..] => return Some((Class::of(a.into()), 1)),
        [a @ 0xc2..=0xdf, b @ 0x80..=0xbf, ..] => (2, 0x80, bits(&[a & 0x1f, b])),
        [a @ 0xe0..=0xef, b @ 0x80..=0xbf, c @ 0x80..=0xbf, ..] => (3, 0x800, bits(&[a & 0xf, b, c])),
        [a @ 0xf0..=0xf4, b @ 0x80..=0xbf, c @ 0x80..=0xbf, d @ 0x80..=0xbf, ..] => {
            (4, 0x1_0000, bits(&[a & 7, b, c, d]))
        }
        _ => (1, u32::MAX, 0),
    };
    // None of a stray byte, of a code that fewer bytes would say, and of a surrogate.
    let c = char::from_u32(code).filter(|_| code >= least);
    Some(c.map_or((Class::Other, 1), |c| (Class::of(c), len)))
}

/// The bits of a character: six of each byte.
fn bits(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |bits, byte| bits << 6 | u32::from(byte & 0x3f))
}

/// Bytes of the longest run of `class` that `text` starts with.
fn run(text: &[u8], class: Class) -> usize {
    let mut rest = text;
    while let Some((found, len)) = first(rest)
        && found == class
    {
        rest = rest.get(len..).unwrap_or_default();
    }
    text.len() - rest.len()
}

/// Bytes of the first piece of `text`: none if it is empty.
fn piece(text: &[u8]) -> usize {
    match text {
        [b'\'', b's' | b't' | b'm' | b'd', ..] => return 2,
        [b'\'', b'r' | b'v', b'e', ..] | [b'\'', b'l', b'l', ..] => return 3,
        _ => {}
    }
    let word = text.strip_prefix(b" ").unwrap_or(text);
    match first(word) {
        Some((class, _)) if class != Class::Space => return text.len() - word.len() + run(word, class),
        _ => {}
    }
    let (mut rest, mut last) = (text, 0); // where the run's last character starts
    while let Some((Class::Space, len)) = first(rest) {
        last = text.len() - rest.len();
        rest = rest.get(len..).unwrap_or_default();
    }
    if !rest.is_empty() && last > 0 { last } else { text.len() - rest.len() }
}

/// The pieces of a text, in order; joined they are the text.
pub(crate) fn pieces(mut text: &[u8]) -> impl Iterator<Item = &[u8]> {
    core::iter::from_fn(move || {
        let head;
        (head, text) = text.split_at_checked(piece(text))?;
        (!head.is_empty()).then_some(head)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fancy_regex::Regex;
    use proptest::prelude::*;
    use std::string::String;
    use std::vec::Vec;

    const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

    fn split(text: &str) -> Vec<&str> {
        pieces(text.as_bytes()).map(|p| core::str::from_utf8(p).unwrap()).collect()
    }

    #[test]
    fn words_take_the_space_before_them() {
        assert_eq!(split("Hello, I'm a language model"), ["Hello", ",", " I", "'m", " a", " language", " model"]);
        assert_eq!(split("  a \n\n b"), [" ", " a", " \n\n", " b"]);
        assert_eq!(split("x²Ⅷ 12a\u{301}'S"), ["x", "²Ⅷ", " 12", "a", "\u{301}'", "S"]);
        assert_eq!(split("end \t "), ["end", " \t "]);
        assert_eq!(split("a\u{a0}b\u{3000}\u{3000}c"), ["a", "\u{a0}", "b", "\u{3000}", "\u{3000}", "c"]);
    }

    #[test]
    fn stray_bytes_are_punctuation() {
        let text = b"a\xff\xc3 \xe2\x82x\xed\xa0\x80\xf4\x90\x80\x80 \xc0\x80";
        let split: Vec<&[u8]> = pieces(text).collect();
        assert_eq!(split, [&b"a"[..], b"\xff\xc3", b" \xe2\x82", b"x", b"\xed\xa0\x80\xf4\x90\x80\x80", b" \xc0\x80"]);
    }

    #[test]
    fn every_character_has_the_class_the_expression_gives_it() {
        let [letter, number, space] = [r"^\p{L}$", r"^\p{N}$", r"^\s$"].map(|e| Regex::new(e).unwrap());
        for c in '\0'..=char::MAX {
            let mut utf8 = [0; 4];
            let text = c.encode_utf8(&mut utf8);
            let expected = if letter.is_match(text).unwrap() {
                Class::Letter
            } else if number.is_match(text).unwrap() {
                Class::Number
            } else if space.is_match(text).unwrap() {
                Class::Space
            } else {
                Class::Other
            };
            assert_eq!(first(text.as_bytes()), Some((expected, text.len())), "{c:?}");
        }
    }

    /// Characters that meet each other in the alternatives, and any other.
    fn text() -> impl Strategy<Value = String> {
        let near = prop::sample::select(Vec::from_iter(
            "'''strevmlldSTREVMLLD   \t\n\r\u{a0}\u{2003}\u{85}12²Ⅷé文ǅ\u{301}!-_\u{1f468}\u{200d}".chars(),
        ));
        prop::collection::vec(prop_oneof![8 => near, 1 => any::<char>()], 0..40).prop_map(String::from_iter)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn splits_as_the_expression_does(text in text()) {
            let expected: Vec<&str> = Regex::new(GPT2).unwrap().find_iter(&text).map(|m| m.unwrap().as_str()).collect();
            prop_assert_eq!(split(&text), expected);
        }

        #[test]
        fn pieces_join_to_the_text(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let pieces: Vec<&[u8]> = pieces(&text).collect();
            prop_assert!(pieces.iter().all(|p| !p.is_empty()));
            prop_assert_eq!(pieces.concat(), text);
        }
    }
}
