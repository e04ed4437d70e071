//! Bytes to lines and back: a line editor, an output that knows its prefix, and Ctrl-C.

use core::fmt;
use core::str::Utf8Error;

use heapless::Deque;

use crate::Board;

/// Ctrl-C, which stops a text or forgets a line.
pub const INTERRUPT: u8 = 0x03;
const BACKSPACE: u8 = 0x08;
const DELETE: u8 = 0x7f;
/// Ctrl-U, which forgets a line.
const KILL: u8 = 0x15;

/// A line that cannot be used; the console is ready for the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineError {
    /// It is longer than the line buffer, which is given in bytes.
    TooLong(usize),
    /// It is not UTF-8.
    NotUtf8(Utf8Error),
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LineError::TooLong(max) => write!(f, "the line is longer than {max} bytes"),
            LineError::NotUtf8(error) => write!(f, "the line is no UTF-8: {error}"),
        }
    }
}

impl core::error::Error for LineError {}

/// A board's console.
#[derive(Debug)]
pub struct Console<B> {
    /// The board, for its clock and the like.
    pub board: B,
    /// Whether a person types, who wants to see it; newlines then go out as CR LF, as a terminal wants them.
    pub echo: bool,
    /// Typed while text was made, and not yet read.
    ahead: Deque<u8, 64>,
    /// The line before ended with CR: a LF that follows belongs to it.
    after_cr: bool,
}

impl<B: Board> Console<B> {
    /// A console that does not echo.
    pub fn new(board: B) -> Self {
        Console { board, echo: false, ahead: Deque::new(), after_cr: false }
    }

    /// Writes bytes as they are, but for newlines to a person's terminal.
    pub fn write(&mut self, bytes: &[u8]) {
        if !self.echo {
            return self.board.write(bytes);
        }
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            match line.strip_suffix(b"\n") {
                Some(line) => {
                    self.board.write(line);
                    self.board.write(b"\r\n");
                }
                None => self.board.write(line),
            }
        }
    }

    /// Writes `# `, the text and a newline.
    pub fn say(&mut self, text: impl fmt::Display) {
        // Nothing here fails but a `Display` that lies.
        let _ = fmt::write(self, format_args!("# {text}\n"));
    }

    /// Writes `# error: `, what is wrong and a newline.
    pub fn error(&mut self, error: impl fmt::Display) {
        self.say(format_args!("error: {error}"));
    }

    /// Whether Ctrl-C was typed; keeps other bytes for the next line, as far as there is room.
    pub fn interrupted(&mut self) -> bool {
        while !self.ahead.is_full() {
            match self.board.read() {
                Some(INTERRUPT) => {
                    self.ahead.clear();
                    return true;
                }
                Some(byte) => drop(self.ahead.push_back(byte)),
                None => break,
            }
        }
        false
    }

    /// Writes `> ` and waits for a line, which CR, LF or both end.
    ///
    /// Backspace takes back a character, Ctrl-U and Ctrl-C the line.
    ///
    /// # Errors
    /// The line does not fit into `buffer` → [`LineError::TooLong`]; it is no UTF-8 → [`LineError::NotUtf8`].
    pub fn line<'l>(&mut self, buffer: &'l mut [u8]) -> Result<&'l str, LineError> {
        self.write(b"> ");
        let mut len = 0;
        loop {
            let Some(byte) = self.ahead.pop_front().or_else(|| self.board.read()) else {
                core::hint::spin_loop();
                continue;
            };
            let after_cr = core::mem::replace(&mut self.after_cr, byte == b'\r');
            match byte {
                b'\n' if after_cr => {}
                b'\n' | b'\r' => break,
                BACKSPACE | DELETE => {
                    let character = buffer[..len.min(buffer.len())].iter().rposition(|byte| byte & 0xc0 != 0x80);
                    if let Some(start) = character {
                        len = start;
                        self.type_back(b"\x08 \x08");
                    }
                }
                KILL | INTERRUPT => {
                    len = 0;
                    self.type_back(b"\n> ");
                }
                _ => {
                    if let Some(slot) = buffer.get_mut(len) {
                        *slot = byte;
                    }
                    len = len.saturating_add(1);
                    self.type_back(&[byte]);
                }
            }
        }
        self.type_back(b"\n");
        let max = buffer.len();
        let line = buffer.get(..len).ok_or(LineError::TooLong(max))?;
        core::str::from_utf8(line).map_err(LineError::NotUtf8)
    }

    fn type_back(&mut self, bytes: &[u8]) {
        if self.echo {
            self.write(bytes);
        }
    }
}

impl<B: Board> fmt::Write for Console<B> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write(text.as_bytes());
        Ok(())
    }
}

/// A board without hardware, for tests: input that was typed beforehand, output that is kept.
#[cfg(test)]
pub(crate) mod scripted {
    use std::collections::VecDeque;
    use std::panic;
    use std::rc::Rc;
    use std::string::String;
    use std::vec::Vec;
    use std::{cell::RefCell, sync::Once};

    use super::*;

    /// What it has typed and written; clones share it.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct Scripted {
        input: Rc<RefCell<VecDeque<u8>>>,
        output: Rc<RefCell<Vec<u8>>>,
    }

    /// What [`Scripted`] panics with to leave [`crate::run()`].
    struct Exit(i32);

    impl Scripted {
        pub(crate) fn new(input: &[u8]) -> Self {
            Scripted { input: Rc::new(RefCell::new(input.iter().copied().collect())), output: Rc::default() }
        }

        pub(crate) fn written(&self) -> String {
            String::from_utf8(self.output.borrow().clone()).unwrap()
        }

        /// Runs `app` until it exits, and returns the exit code.
        pub(crate) fn exit_code(app: impl FnOnce() -> std::convert::Infallible) -> i32 {
            static QUIET: Once = Once::new();
            QUIET.call_once(|| {
                let hook = panic::take_hook();
                panic::set_hook(std::boxed::Box::new(move |info| {
                    if !info.payload().is::<Exit>() {
                        hook(info);
                    }
                }));
            });
            match panic::catch_unwind(panic::AssertUnwindSafe(app)) {
                Ok(never) => match never {},
                Err(payload) => match payload.downcast::<Exit>() {
                    Ok(exit) => exit.0,
                    Err(other) => panic::resume_unwind(other),
                },
            }
        }
    }

    impl Board for Scripted {
        const NAME: &'static str = "scripted";

        fn read(&mut self) -> Option<u8> {
            self.input.borrow_mut().pop_front()
        }

        fn write(&mut self, bytes: &[u8]) {
            self.output.borrow_mut().extend_from_slice(bytes);
        }

        fn micros(&mut self) -> u64 {
            0
        }

        fn stack_used(&self) -> usize {
            0
        }

        fn exit(&mut self, code: i32) -> ! {
            panic::panic_any(Exit(code))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::string::String;
    use std::vec::Vec;

    use super::scripted::Scripted;
    use super::*;

    /// The lines that come of what is typed, and what was written meanwhile.
    fn lines(typed: &[u8], n: usize, echo: bool) -> (Vec<Result<String, LineError>>, String) {
        let board = Scripted::new(typed);
        let mut console = Console::new(board.clone());
        console.echo = echo;
        let mut buffer = [0; 8];
        let lines = (0..n).map(|_| console.line(&mut buffer).map(Into::into)).collect();
        (lines, board.written())
    }

    fn texts(typed: &[u8], n: usize) -> Vec<String> {
        lines(typed, n, false).0.into_iter().map(Result::unwrap).collect()
    }

    #[test]
    fn any_line_end_ends_one_line() {
        assert_eq!(texts(b"a\nb\rc\r\nd\n\ne\r\r", 7), ["a", "b", "c", "d", "", "e", ""]);
    }

    #[test]
    fn editing_takes_back_whole_characters_and_lines() {
        assert_eq!(texts("ax\x08é\x7fb\n".as_bytes(), 1), ["ab"]);
        assert_eq!(texts(b"\x08a\n", 1), ["a"]);
        assert_eq!(texts(b"abc\x15d\n", 1), ["d"]);
        assert_eq!(texts(b"abc\x03d\n", 1), ["d"]);
    }

    #[test]
    fn a_line_that_is_too_long_or_no_text_is_an_error_and_the_next_one_is_not() {
        let (lines, _) = lines(b"12345678\n123456789\n\xff\nok\n", 4, false);
        assert_eq!(lines[0].as_deref(), Ok("12345678"));
        assert_eq!(lines[1], Err(LineError::TooLong(8)));
        assert!(matches!(lines[2], Err(LineError::NotUtf8(_))));
        assert_eq!(lines[3].as_deref(), Ok("ok"));
    }

    #[test]
    fn only_an_echoing_console_shows_what_is_typed() {
        assert_eq!(lines(b"ab\x08c\n", 1, false).1, "> ");
        assert_eq!(lines(b"ab\x08c\n", 1, true).1, "> ab\x08 \x08c\r\n");
    }

    #[test]
    fn an_interrupt_is_seen_and_what_was_typed_ahead_is_kept_or_dropped() {
        let mut console = Console::new(Scripted::new(b"next\n"));
        assert!(!console.interrupted());
        assert_eq!(console.line(&mut [0; 8]), Ok("next"));
        let mut console = Console::new(Scripted::new(b"old\x03new\n"));
        assert!(console.interrupted());
        assert_eq!(console.line(&mut [0; 8]), Ok("new"));
    }
}
