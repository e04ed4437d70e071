//! A conversation with a board over its console.
//!
//! What the firmware promises: `> ` at the start of a line when it awaits the next; its own lines start with `# `; after
//! a text come a newline and `# text: N bytes …`, so that a text with any bytes in it can be cut out exactly.

use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, ExitStatus};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

const READY: &[u8] = b"> ";
const END_OF_TEXT: &[u8] = b"\n# text: ";
/// What a board may take to leave after `:quit`.
const FAREWELL: Duration = Duration::from_secs(20);

/// A running board. Dropped, it is killed.
pub(crate) struct Console {
    name: String,
    child: Child,
    stdin: ChildStdin,
    bytes: Receiver<Vec<u8>>,
    /// What came since the last line was sent.
    reply: Vec<u8>,
    /// How long it may be silent.
    patience: Duration,
}

/// What a prompt gave.
#[derive(Debug, PartialEq)]
pub(crate) struct Reply {
    /// `None`: the board refused, and its lines say why.
    pub(crate) text: Option<Vec<u8>>,
    /// The board's own lines, without `# `.
    pub(crate) lines: Vec<String>,
}

impl Reply {
    /// The first line that says what went wrong.
    pub(crate) fn error(&self) -> Option<&str> {
        self.lines.iter().find_map(|line| line.strip_prefix("error: "))
    }
}

impl Console {
    /// Takes over a board that was started with its console on pipes.
    pub(crate) fn new(name: &str, mut child: Child, patience: Duration) -> Result<Self> {
        let stdin = child.stdin.take().context("the board has no input")?;
        let stdout = child.stdout.take().context("the board has no output")?;
        Ok(Self { name: name.to_owned(), child, stdin, bytes: read(stdout), reply: Vec::new(), patience })
    }

    /// Waits until the board awaits its first line, and returns what it said until then.
    ///
    /// # Errors
    /// It is silent for too long, or ends.
    pub(crate) fn start(&mut self) -> Result<Reply> {
        self.until_ready(&mut |_| Ok(()))
    }

    /// Sends a command or a prompt. The text goes to `sink` as it comes.
    ///
    /// # Errors
    /// The board is silent for too long, or ends; the sink fails.
    pub(crate) fn send(&mut self, line: &str, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<Reply> {
        self.reply.clear();
        let sent = self.stdin.write_all(format!("{line}\n").as_bytes()).and_then(|()| self.stdin.flush());
        sent.with_context(|| format!("{} takes no input", self.name))?;
        self.until_ready(sink)
    }

    /// Sends a command that must be obeyed.
    ///
    /// # Errors
    /// The board refuses, is silent for too long, or ends.
    pub(crate) fn command(&mut self, line: &str) -> Result<Reply> {
        let reply = self.send(line, &mut |_| Ok(()))?;
        match reply.error() {
            Some(error) => bail!("{}: {line}: {error}", self.name),
            None => Ok(reply),
        }
    }

    /// Tells the board to leave, and returns the code it left with.
    ///
    /// # Errors
    /// It does not leave.
    pub(crate) fn quit(mut self) -> Result<ExitStatus> {
        let _ = self.stdin.write_all(b":quit\n").and_then(|()| self.stdin.flush());
        let end = Instant::now() + FAREWELL;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("{} does not leave after :quit{}", self.name, self.last_lines())
    }

    fn until_ready(&mut self, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<Reply> {
        let mut shown = 0;
        loop {
            if let Some(reply) = parse(&self.reply) {
                let text = reply.text.as_deref().unwrap_or_default();
                sink(&text[shown.min(text.len())..])?;
                return Ok(reply);
            }
            let sure = sure_text(&self.reply).max(shown);
            sink(&self.reply[shown..sure])?;
            shown = sure;
            match self.bytes.recv_timeout(self.patience) {
                Ok(bytes) => self.reply.extend(bytes),
                Err(RecvTimeoutError::Timeout) => {
                    bail!("{}: nothing for {} s{}", self.name, self.patience.as_secs(), self.last_lines())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait()?;
                    bail!("{} ended: {status}{}", self.name, self.last_lines())
                }
            }
        }
    }

    fn last_lines(&self) -> String {
        let text = String::from_utf8_lossy(&self.reply);
        let lines: Vec<_> = text.lines().collect();
        match &lines[lines.len().saturating_sub(5)..] {
            [] => ", and nothing before".into(),
            last => format!("; its last lines:\n{}", last.join("\n")),
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(mut stdout: ChildStdout) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = stdout.read(&mut buffer) {
            if sender.send(buffer[..n].to_vec()).is_err() {
                break;
            }
        }
    });
    receiver
}

/// The whole reply, once the board awaits the next line.
fn parse(reply: &[u8]) -> Option<Reply> {
    let head = reply.strip_suffix(READY)?;
    if head.last().is_some_and(|&byte| byte != b'\n') {
        return None;
    }
    let (text, lines) = match find_text(head) {
        Some(len) => (Some(head[..len].to_vec()), &head[len..]),
        None => (None, head),
    };
    let mut own = Vec::new();
    for line in lines.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        // Anything else: the text has a line that starts with `> `, and goes on.
        own.push(String::from_utf8_lossy(line.strip_prefix(b"# ")?).into_owned());
    }
    Some(Reply { text, lines: own })
}

/// The length of the text: the line after it must say the same.
fn find_text(reply: &[u8]) -> Option<usize> {
    let says = |at: usize| {
        let rest = reply[at..].strip_prefix(END_OF_TEXT)?;
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        std::str::from_utf8(&rest[..digits]).ok()?.parse::<usize>().ok()
    };
    (0..reply.len()).find(|&at| says(at) == Some(at))
}

/// How many bytes at the start are text for sure, whatever comes.
fn sure_text(reply: &[u8]) -> usize {
    if reply.starts_with(b"#") || reply.starts_with(b">") {
        return 0;
    }
    let could_end = |at: usize| reply[at..].starts_with(END_OF_TEXT) || END_OF_TEXT.starts_with(&reply[at..]);
    (0..reply.len()).find(|&at| could_end(at)).unwrap_or(reply.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// A shell that plays a board.
    fn board(script: &str, patience: Duration) -> Console {
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        Console::new("a board", shell.spawn().unwrap(), patience).unwrap()
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn text_is_cut_out_exactly_and_streams() {
        let mut console = board(
            r"printf '# gptrickle on a shell\n> '; read set; printf '# error: no\n> '; read prompt
            printf 'a story\n> he said'; sleep 0.1; printf '\n# text: 3 bytes\n'; sleep 0.1; printf '\n# text: 34 bytes, end\n# hash: 12ab\n> '
            read quit; exit 7",
            LONG,
        );
        assert_eq!(console.start().unwrap().lines, ["gptrickle on a shell"]);
        assert_eq!(console.command(":set x 1").unwrap_err().to_string(), "a board: :set x 1: no");
        let mut streamed = Vec::new();
        let mut pieces = 0;
        let reply = console
            .send("Once", &mut |bytes| {
                streamed.extend_from_slice(bytes);
                pieces += usize::from(!bytes.is_empty());
                Ok(())
            })
            .unwrap();
        let text = b"a story\n> he said\n# text: 3 bytes\n";
        assert_eq!(text.len(), 34);
        assert_eq!(reply.text.as_deref(), Some(&text[..]));
        assert_eq!(streamed, text);
        assert!(pieces > 1, "{pieces}");
        assert_eq!(reply.lines[1], "hash: 12ab");
        assert_eq!(console.quit().unwrap().code(), Some(7));
    }

    #[test]
    fn a_silent_board_is_killed_and_named() {
        let mut console = board("printf '# one\\n# two\\n'; sleep 60", Duration::from_millis(200));
        let message = console.start().unwrap_err().to_string();
        assert_eq!(message, "a board: nothing for 0 s; its last lines:\n# one\n# two");
    }

    #[test]
    fn a_board_that_ends_says_how() {
        let mut console = board("printf '# panic at x\\n'; exit 101", LONG);
        let message = console.start().unwrap_err().to_string();
        assert_eq!(message, "a board ended: exit status: 101; its last lines:\n# panic at x");
    }

    #[test]
    fn an_empty_text_and_a_refusal_differ() {
        assert_eq!(parse(b"\n# text: 0 bytes\n> ").unwrap().text, Some(vec![]));
        let refused = parse(b"# error: the prompt is longer than the context\n> ").unwrap();
        assert_eq!((refused.text.clone(), refused.error()), (None, Some("the prompt is longer than the context")));
        assert_eq!(parse(b"> ").unwrap(), Reply { text: None, lines: vec![] });
        assert_eq!(parse(b"once\n> "), None);
        assert_eq!(parse(b"a > "), None);
    }
}
