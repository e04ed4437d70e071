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
