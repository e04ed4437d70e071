//! Token bytes in, whole characters out, up to a stop string.
//!
//! A token may end within a character, so up to 3 bytes wait for the rest of theirs; bytes that can no longer become a
//! character go out as U+FFFD, as `String::from_utf8_lossy` does it. A character that may be the start of a stop string
//! waits until it is certain:
//!
//! ```text
//! bytes ──▶ │ partial: ≤ 4 bytes │ ──char──▶ │ held: the longest end of the text that a stop string starts with │ ──▶ out
//! ```

use super::Error;

/// Longest stop string, in bytes.
pub const MAX_STOP: usize = 64;

/// Whether a text goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// It goes on.
    Continue,
    /// A stop string was found: it and all that follows is dropped.
    Stopped {
        /// Its place in the list.
        index: usize,
    },
}

/// Makes text of token bytes, and ends it before the first stop string; takes about 100 bytes.
///
/// ```
/// use gptrickle_core::tokenizer::{Flow, TextStream};
/// let mut text = String::new();
/// let mut show = |part: &str| Ok::<(), std::fmt::Error>(text.push_str(part));
/// let mut stream = TextStream::new(&["\n\n"]).unwrap();
/// assert_eq!(stream.push(b"caf\xc3", &mut show)?, Flow::Continue);
/// assert_eq!(stream.push(b"\xa9\n", &mut show)?, Flow::Continue);
/// assert_eq!(stream.push(b"\nNext", &mut show)?, Flow::Stopped { index: 0 });
/// assert_eq!(text, "café");
/// # Ok::<(), std::fmt::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct TextStream<'s> {
    stops: &'s [&'s str],
    partial: Bytes<4>,             // the start of a character
    held: Bytes<{ MAX_STOP + 3 }>, // UTF-8, an end of the text that a stop string starts with
    flow: Flow,
}

/// Up to `N` bytes, which come at the end and go at the front.
#[derive(Debug, Clone)]
struct Bytes<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Bytes<N> {
    const EMPTY: Self = Bytes { bytes: [0; N], len: 0 };

    fn get(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// Adds bytes, as many as there is room for.
    fn push(&mut self, bytes: &[u8]) {
        let room = self.bytes.get_mut(self.len..).unwrap_or_default();
        room.iter_mut().zip(bytes).for_each(|(room, &byte)| *room = byte);
        self.len += bytes.len().min(room.len());
    }

    fn drop_front(&mut self, n: usize) {
        self.bytes.rotate_left(n.min(N));
        self.len = self.len.saturating_sub(n);
    }
}

impl<'s> TextStream<'s> {
    /// Starts a text that ends before the first of `stops`, if one comes.
    ///
    /// # Errors
    /// A stop string is empty or over [`MAX_STOP`] bytes long → [`Error::StopLength`].
    pub fn new(stops: &'s [&'s str]) -> Result<Self, Error> {
        match stops.iter().position(|stop| !(1..=MAX_STOP).contains(&stop.len())) {
            Some(index) => Err(Error::StopLength { index, len: stops[index].len() }),
            None => Ok(TextStream { stops, partial: Bytes::EMPTY, held: Bytes::EMPTY, flow: Flow::Continue }),
        }
    }

    /// Takes the bytes of a token, shows what is certain, and says whether the text goes on.
    ///
    /// Where two stop strings end with the same character, the longer one counts. After a stop nothing is shown.
    ///
    /// # Errors
    /// Whatever `show` returns; what it was given then is lost.
    pub fn push<E>(&mut self, bytes: &[u8], mut show: impl FnMut(&str) -> Result<(), E>) -> Result<Flow, E> {
        for &byte in bytes {
            self.partial.push(&[byte]);
            self.characters(false, &mut show)?;
        }
        Ok(self.flow)
    }

    /// Ends the text: shows what was held back, with U+FFFD for a character that never became whole.
    ///
    /// # Errors
    /// Whatever `show` returns.
    pub fn finish<E>(mut self, mut show: impl FnMut(&str) -> Result<(), E>) -> Result<Flow, E> {
        self.characters(true, &mut show)?;
        if self.flow == Flow::Continue {
            self.release(self.held.len, &mut show)?;
        }
        Ok(self.flow)
    }

    /// Passes on the characters in `partial`; at the end also one that is not whole.
    fn characters<E>(&mut self, end: bool, show: &mut impl FnMut(&str) -> Result<(), E>) -> Result<(), E> {
        while let partial @ [_, ..] = self.partial.get() {
            let bad = core::str::from_utf8(partial).err().and_then(|error| error.error_len());
            let (c, used) = match (partial.utf8_chunks().next().and_then(|chunk| chunk.valid().chars().next()), bad) {
                (Some(c), _) => (c, c.len_utf8()),
                (None, Some(len)) => (char::REPLACEMENT_CHARACTER, len),
                (None, None) if end => (char::REPLACEMENT_CHARACTER, partial.len()),
                (None, None) => break,
            };
            self.partial.drop_front(used);
            self.character(c, show)?;
        }
        Ok(())
    }

    fn character<E>(&mut self, c: char, show: &mut impl FnMut(&str) -> Result<(), E>) -> Result<(), E> {
        if self.flow != Flow::Continue {
            return Ok(());
        }
        // There is room: what is held is shorter than a stop string.
        self.held.push(c.encode_utf8(&mut [0; 4]).as_bytes());
        let held = self.held.get();
        let found = self.stops.iter().enumerate().filter(|(_, stop)| held.ends_with(stop.as_bytes()));
        if let Some((index, stop)) = found.max_by_key(|(_, stop)| stop.len()) {
            self.flow = Flow::Stopped { index };
            return self.release(held.len() - stop.len(), show);
        }
        let may_stop = |end: &[u8]| self.stops.iter().any(|stop| stop.as_bytes().starts_with(end));
        let certain = (0..held.len()).find(|&start| held.get(start..).is_some_and(may_stop)).unwrap_or(held.len());
        self.release(certain, show)
    }

    /// Shows the first `n` bytes held.
    fn release<E>(&mut self, n: usize, show: &mut impl FnMut(&str) -> Result<(), E>) -> Result<(), E> {
        // Whole characters went in, and a stop string starts with one, so this is UTF-8.
        let text = self.held.get().get(..n).and_then(|held| core::str::from_utf8(held).ok());
        let shown = text.filter(|text| !text.is_empty()).map_or(Ok(()), show);
        self.held.drop_front(n);
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::convert::Infallible;
    use proptest::prelude::*;
    use std::string::String;
    use std::vec;
    use std::vec::Vec;

    /// What is shown for each push, and at the end.
    fn shown(stops: &[&str], pushes: &[&[u8]]) -> (Vec<String>, Flow) {
        let mut stream = TextStream::new(stops).unwrap();
        let mut parts = Vec::new();
        for bytes in pushes {
            let mut part = String::new();
            let Ok(_) = stream.push(bytes, |text| {
                part.push_str(text);
                Ok::<_, Infallible>(())
            });
            parts.push(part);
        }
        let mut part = String::new();
        let Ok(flow) = stream.finish(|text| {
            part.push_str(text);
            Ok::<_, Infallible>(())
        });
        parts.push(part);
        (parts, flow)
    }

    #[test]
    fn a_character_waits_for_its_last_byte() {
        // 😀 as GPT-2 has it: two tokens, f0 9f 98 and 80.
        let (parts, _) = shown(&[], &[b"a\xf0\x9f\x98", b"\x80b", b"\xe2\x82"]);
        assert_eq!(parts, ["a", "😀b", "", "\u{fffd}"]);
    }

    #[test]
    fn what_may_be_a_stop_string_waits() {
        let (parts, flow) = shown(&["\nQ:", "END"], &[b"no\n", b"Q", b"x E", b"N", b"\n", b"Q: dropped", b"too"]);
        assert_eq!(parts, ["no", "", "\nQx ", "", "EN", "", "", ""]);
        assert_eq!(flow, Flow::Stopped { index: 0 });
        assert_eq!(shown(&["stop"], &[b"sto"]).0, ["", "sto"]);
        assert_eq!(shown(&["aab"], &[b"aaab"]).0, ["a", ""]);
        assert_eq!(shown(&["b", "ab"], &[b"xab"]), (vec!["x".into(), "".into()], Flow::Stopped { index: 1 }));
        assert_eq!(shown(&["é"], &[b"caf\xc3", b"\xa9!"]).0, ["caf", "", ""]);
    }

    #[test]
    fn stop_strings_have_a_length() {
        let long = "x".repeat(MAX_STOP + 1);
        assert_eq!(TextStream::new(&["a", &long]).err(), Some(Error::StopLength { index: 1, len: MAX_STOP + 1 }));
        assert_eq!(TextStream::new(&[""]).err(), Some(Error::StopLength { index: 0, len: 0 }));
        let four_bytes = "😀".repeat(MAX_STOP / 4);
        assert_eq!(shown(&[&four_bytes], &[four_bytes.as_bytes()]).0, ["", ""]);
        let but_one = "😀".repeat(MAX_STOP / 4 - 1) + "😁";
        assert_eq!(shown(&[&four_bytes], &[but_one.as_bytes()]).0, [&but_one, ""]);
    }

    #[test]
    fn a_show_that_fails_may_be_tried_again() {
        let mut stream = TextStream::new(&["ab"]).unwrap();
        for bytes in [&b"\xf0\x9fA"[..], b"\xf0", b"\x9f", b"\x98", b"A", b"\xf0", b"a", b"b"] {
            let _ = stream.push(bytes, |_| Err(()));
        }
        assert_eq!(stream.push(b"c", |_| Err(())), Ok(Flow::Stopped { index: 0 }));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn bytes_become_text_as_the_standard_library_has_it(
            pushes in prop::collection::vec(prop_oneof![
                prop::collection::vec(any::<u8>(), 0..6),
                any::<char>().prop_map(|c| String::from(c).into_bytes()),
                prop::collection::vec(prop::sample::select(vec![0xf0u8, 0x9f, 0x98, 0x80, 0xe2, 0xed, 0xc3, b'a']), 0..6),
            ], 0..20)
        ) {
            let parts = shown(&[], &pushes.iter().map(|p| &p[..]).collect::<Vec<_>>()).0;
            let whole = pushes.concat();
            prop_assert_eq!(parts.concat(), String::from_utf8_lossy(&whole));
        }

        #[test]
        fn the_text_ends_before_the_stop_string_that_is_whole_first(
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            text in "[abcé]{0,40}",
            cut in 1usize..5,
        ) {
            let stops: Vec<&str> = stops.iter().map(|s| &s[..]).collect();
            let (parts, flow) = shown(&stops, &text.as_bytes().chunks(cut).collect::<Vec<_>>());
            let ends = text.char_indices().map(|(i, c)| &text[..i + c.len_utf8()]);
            let stopped = ends.flat_map(|t| stops.iter().filter(move |s| t.ends_with(**s)).map(move |s| t.len() - s.len()).min()).next();
            prop_assert_eq!(parts.concat(), &text[..stopped.unwrap_or(text.len())]);
            prop_assert_eq!(flow == Flow::Continue, stopped.is_none());
        }
    }
}
