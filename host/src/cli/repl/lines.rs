//! Lines that are typed at a terminal, with history and editing, or read from a script.

use std::fs;
use std::io::{self, BufRead, IsTerminal};
use std::path::PathBuf;

use anyhow::Context;
use rustyline::config::Behavior;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{
    Cmd, ConditionalEventHandler, Config, Editor, Event, EventContext, EventHandler, KeyEvent, Movement, RepeatCount,
};

use crate::cli::{interrupt, note};

const PROMPT: &str = "> ";

/// Lines of history that are kept.
const HISTORY: usize = 1000;

/// Where lines come from.
pub(super) struct Lines {
    from: From,
    /// Whether each line of a script is shown; a terminal shows what is typed by itself.
    pub(super) echo: bool,
}

enum From {
    Terminal {
        editor: Box<Editor<(), FileHistory>>,
        /// The file of the history, if there is to be one.
        history: Option<PathBuf>,
    },
    /// A pipe or a file, of which so many lines were read.
    Script(usize),
}

impl Lines {
    /// Standard input's lines.
    pub(super) fn open(no_history: bool) -> anyhow::Result<Lines> {
        if !io::stdin().is_terminal() {
            return Ok(Lines { from: From::Script(0), echo: false });
        }
        // Where texts go to a file, what is typed is not to land there, too.
        let behavior = if io::stdout().is_terminal() { Behavior::Stdio } else { Behavior::PreferTerm };
        let config = Config::builder().behavior(behavior).max_history_size(HISTORY)?.auto_add_history(true).build();
        let mut editor = Editor::with_config(config).context("cannot edit lines on this terminal")?;
        editor.bind_sequence(KeyEvent::ctrl('C'), EventHandler::Conditional(Box::new(Discard)));
        let mut history = None;
        if !no_history && let Some(data) = dirs::data_local_dir() {
            let folder = data.join("gptrickle");
            let path = folder.join("history");
            // None is there the first time; what cannot be written is told with the first line.
            let _ = fs::create_dir_all(&folder);
            let _ = editor.load_history(&path);
            history = Some(path);
        }
        Ok(Lines { from: From::Terminal { editor: Box::new(editor), history }, echo: false })
    }

    /// Whether somebody types them.
    pub(super) fn is_terminal(&self) -> bool {
        matches!(self.from, From::Terminal { .. })
    }

    /// What an error about the last line starts with.
    pub(super) fn place(&self) -> String {
        match self.from {
            From::Terminal { .. } => String::new(),
            From::Script(n) => format!("line {n}: "),
        }
    }

    /// The next line, without its end, or why it is none; `None` when there are no more.
    ///
    /// # Errors
    /// Nothing can be read.
    pub(super) fn next(&mut self) -> anyhow::Result<Option<anyhow::Result<String>>> {
        match &mut self.from {
            From::Terminal { editor, history } => {
                let line = match editor.readline(PROMPT) {
                    Ok(line) => line,
                    Err(ReadlineError::Eof | ReadlineError::Interrupted) => return Ok(None),
                    Err(error) => return Err(error).context("cannot read from the terminal"),
                };
                if let Some(path) = history
                    && let Err(error) = editor.append_history(path)
                {
                    note(format_args!("no history is kept: {}: {error}; --no-history wants none", path.display()));
                    *history = None;
                }
                Ok(Some(Ok(line)))
            }
            From::Script(n) => {
                let mut line = Vec::new();
                let read = interrupt::leaves(|| io::stdin().lock().read_until(b'\n', &mut line));
                if read.context("cannot read standard input")? == 0 {
                    return Ok(None);
                }
                *n += 1;
                line.pop_if(|end| *end == b'\n');
                line.pop_if(|end| *end == b'\r');
                if self.echo {
                    note(format_args!("{PROMPT}{}", String::from_utf8_lossy(&line)));
                }
                Ok(Some(String::from_utf8(line).context("it is not UTF-8: save the script in that encoding")))
            }
        }
    }
}

/// Ctrl-C throws away what is typed; on an empty line it does what it always does.
struct Discard;

impl ConditionalEventHandler for Discard {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, context: &EventContext) -> Option<Cmd> {
        (!context.line().is_empty()).then_some(Cmd::Kill(Movement::WholeBuffer))
    }
}
