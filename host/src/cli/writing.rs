//! A text on its way from the session to standard output, token by token, and the figures of how it was made.

pub(super) mod beams;
pub(super) mod sequences;

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::Context;
use gptrickle_core::generate::{Session, StopReason};
use gptrickle_core::ops::Engine;
use gptrickle_core::source::Resident;
use gptrickle_core::tokenizer::{Flow, TextStream, Token};
use serde::Serialize;

use super::{advance, interrupt, note, progress};
use crate::model::Bytes;
pub(super) use crate::model::{certain, held_back};

/// A token, as `--json` prints it.
#[derive(Serialize)]
struct TokenLine {
    /// Of which text, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence: Option<usize>,
    token: u32,
    text: String,
}

/// The last line of `--json`; `--stats` prints the same figures.
#[derive(Serialize)]
pub(super) struct Summary {
    /// The prompt, where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt: Option<String>,
    /// Why the text ended; of several, each says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stop: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) sequences: Vec<sequences::Summary>,
    #[serde(skip)]
    pub(super) interrupted: bool,
    pub(super) prompt_tokens: usize,
    pub(super) new_tokens: usize,
    /// Passes of the weights after those of the prompt, whose last one makes the first token.
    pub(super) passes: u64,
    #[serde(skip)]
    pub(super) tokens_per_pass: f64,
    pub(super) prefill_tokens_per_s: f64,
    pub(super) decode_tokens_per_s: f64,
    pub(super) bytes_per_token: u64,
    /// Bytes read for a token and the wall time it took.
    pub(super) source_bytes_per_s: f64,
    /// Of the bandwidth of a throttled source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) source_share: Option<f64>,
    pub(super) arena_bytes: usize,
    /// Weights kept in memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) resident_bytes: Option<usize>,
    pub(super) kernel: &'static str,
    pub(super) threads: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) logits_hash: Option<String>,
}

/// What a run reads, and what it was asked for.
pub(super) struct Run<'r, 's> {
    pub(super) src: &'r mut Resident<'s, &'s mut Bytes>,
    pub(super) name: &'r str,
    /// Each ends the text before it.
    pub(super) stops: &'r [String],
    /// How long the tokens may take; the first of each text is made whatever it takes.
    pub(super) max_time: Option<Duration>,
    /// The prompt, where it is to stand before each text.
    pub(super) full_text: Option<Cow<'r, str>>,
    /// JSON lines instead of plain text.
    pub(super) json: bool,
    /// Bytes a second that the source is slowed down to.
    pub(super) bandwidth: Option<u64>,
    pub(super) engine: Engine<'r>,
    pub(super) arena_bytes: usize,
}

/// What a prompt was and took.
pub(super) struct Prefill {
    prompt_tokens: usize,
    tokens_per_s: f64,
}

impl Run<'_, '_> {
    /// Runs the prompt, and shows it on a terminal.
    pub(super) fn read_prompt(&mut self, session: &mut Session, prompt: &[u8]) -> anyhow::Result<Prefill> {
        let start = Instant::now();
        let pending = session.pending();
        let bar = progress(pending, "reading the prompt");
        let mut left = pending;
        while left > 0 && !interrupt::stops(session) {
            left = session.pass(self.src).with_context(|| self.name.to_owned())?;
            advance(&bar, pending - left);
        }
        bar.finish_and_clear();
        let took = start.elapsed();
        if io::stdout().is_terminal() && io::stderr().is_terminal() && !self.json && self.full_text.is_none() {
            let [bold, plain] = if no_color() { ["", ""] } else { ["\x1b[1m", "\x1b[0m"] };
            let _ = write!(io::stderr(), "{bold}{}{plain}", String::from_utf8_lossy(prompt));
        }
        Ok(Prefill { prompt_tokens: session.tokens().len(), tokens_per_s: per_s(pending - left, took) })
    }

    /// Whether so much time has passed since `start` that no further token is to be made.
    fn is_over(&self, start: Instant) -> bool {
        self.max_time.is_some_and(|most| start.elapsed() >= most)
    }

    /// Figures of `tokens` that were made after those that the prompt's own passes gave, and of the bytes they took.
    pub(super) fn summary(
        &self,
        prefill: &Prefill,
        tokens: usize,
        bytes_read: u64,
        took: Duration,
        passes: u64,
    ) -> Summary {
        let source_bytes_per_s = if took.is_zero() { 0.0 } else { bytes_read as f64 / took.as_secs_f64() };
        Summary {
            prompt: self.full_text.as_deref().map(str::to_owned),
            stop: None,
            sequences: Vec::new(),
            interrupted: false,
            prompt_tokens: prefill.prompt_tokens,
            new_tokens: 0,
            passes,
            tokens_per_pass: tokens as f64 / passes.max(1) as f64,
            prefill_tokens_per_s: prefill.tokens_per_s,
            decode_tokens_per_s: per_s(tokens, took),
            bytes_per_token: bytes_read.checked_div(tokens as u64).unwrap_or(0),
            source_bytes_per_s,
            source_share: self.bandwidth.map(|bandwidth| source_bytes_per_s / bandwidth as f64),
            arena_bytes: self.arena_bytes,
            resident_bytes: (self.src.kept() > 0).then(|| self.src.kept()),
            kernel: self.engine.kernel.name(),
            threads: self.engine.team.parts(),
            logits_hash: None,
        }
    }
}

fn per_s(n: usize, took: Duration) -> f64 {
    if n > 0 && !took.is_zero() { n as f64 / took.as_secs_f64() } else { 0.0 }
}

/// Shows token after token until the text ends.
pub(super) fn write(run: &mut Run, session: &mut Session, prefill: Prefill) -> anyhow::Result<Summary> {
    let stops: Vec<&str> = run.stops.iter().map(String::as_str).collect();
    let mut stream = TextStream::new(&stops)?;
    let mut output = Output::new(run.json);
    output.prompt(run.full_text.as_deref())?;
    let mut new_tokens = 0usize;
    let start = Instant::now();
    // The first token comes from the prompt's own pass: what a token costs is told by those after it.
    let mut decode_start = Instant::now();
    let (mut steps, mut bytes_read, passes) = (0usize, 0, session.passes());
    while !interrupt::stops(session) {
        if new_tokens > 0 && run.is_over(start) {
            session.stop(StopReason::MaxTime);
            break;
        }
        let before = run.src.inner().bytes();
        let token = session.next(run.src).with_context(|| run.name.to_owned())?;
        let read = run.src.inner().bytes() - before;
        if new_tokens > 0 && (read > 0 || token.is_some()) {
            (steps, bytes_read) = (steps + 1, bytes_read + read);
        }
        let Some(token) = token else { break };
        new_tokens += 1;
        if new_tokens == 1 {
            decode_start = Instant::now();
        }
        let (text, flow) = certain(session.tokenizer(), run.src, token, &mut stream)?;
        output.token(token, text, held_back(stream.clone()).is_empty())?;
        if let Flow::Stopped { .. } = flow {
            session.stop(StopReason::StopString);
            break;
        }
    }
    let decode = decode_start.elapsed();
    output.finish(&held_back(stream))?;
    let passes = session.passes() - passes;
    let stop = session.stop_reason();
    Ok(Summary {
        stop: Some(stop.map_or("", StopReason::name)),
        interrupted: stop == Some(StopReason::Interrupted),
        new_tokens,
        tokens_per_pass: new_tokens.saturating_sub(1) as f64 / passes.max(1) as f64,
        logits_hash: session.logits_hash().map(|hash| hash.to_string()),
        ..run.summary(&prefill, steps, bytes_read, decode, passes)
    })
}

/// Where the text goes, as it is or as JSON lines, at once.
pub(super) struct Output {
    json: bool,
    /// Of which text the tokens are, where there are several.
    sequence: Option<usize>,
    /// Plain text that is not to be shown yet.
    later: Option<String>,
    /// A token of which some text is held back: its line waits, as that text is its own if the text ends here.
    waiting: Option<TokenLine>,
    ends_line: bool,
}

impl Output {
    /// Standard output, of one text.
    pub(super) fn new(json: bool) -> Output {
        Output { json, sequence: None, later: None, waiting: None, ends_line: false }
    }

    /// Shows the prompt, as a part of a plain text.
    pub(super) fn prompt(&mut self, prompt: Option<&str>) -> anyhow::Result<()> {
        if self.json { Ok(()) } else { self.text(prompt.unwrap_or_default()) }
    }

    /// Shows a token and the text that is certain with it; `whole` says that none is held back.
    pub(super) fn token(&mut self, Token(token): Token, text: String, whole: bool) -> anyhow::Result<()> {
        if !self.json {
            return self.text(&text);
        }
        self.line()?;
        self.waiting = Some(TokenLine { sequence: self.sequence, token, text });
        if whole { self.line() } else { Ok(()) }
    }

    /// Shows the text that was held back at the end.
    pub(super) fn finish(&mut self, rest: &str) -> anyhow::Result<()> {
        if let Some(waiting) = &mut self.waiting {
            waiting.text.push_str(rest);
            return self.line();
        }
        self.text(rest)?;
        if self.json || self.ends_line { Ok(()) } else { self.text("\n") }
    }

    fn line(&mut self) -> anyhow::Result<()> {
        match self.waiting.take() {
            Some(line) => print(&(serde_json::to_string(&line)? + "\n")),
            None => Ok(()),
        }
    }

    fn text(&mut self, text: &str) -> anyhow::Result<()> {
        if !text.is_empty() {
            self.ends_line = text.ends_with('\n');
        }
        match &mut self.later {
            Some(later) => later.push_str(text),
            None => print(text)?,
        }
        Ok(())
    }
}

/// Writes to standard output, and waits for nothing.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot write to standard output")
}

/// Whether <https://no-color.org> asks for plain text.
pub(super) fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

impl Summary {
    /// Writes the figures to standard error.
    pub(super) fn print(&self) {
        if let Some(stop) = self.stop {
            note(format_args!("stop            {stop}"));
        }
        for text in &self.sequences {
            let (i, of) = (text.sequence + 1, text.told_by());
            note(format_args!("text {i:<10} {}, {} tokens{of}", text.stop, text.new_tokens));
        }
        note(format_args!("prompt          {} tokens, {:.1} tokens/s", self.prompt_tokens, self.prefill_tokens_per_s));
        note(format_args!("new             {} tokens, {:.1} tokens/s", self.new_tokens, self.decode_tokens_per_s));
        note(format_args!("passes          {} after the prompt, {:.2} tokens each", self.passes, self.tokens_per_pass));
        note(format_args!("read per token  {} bytes", self.bytes_per_token));
        let share = self.source_share.map(|share| format!(", {:.1} % of its bandwidth", share * 100.0));
        let share = share.unwrap_or_default();
        note(format_args!("source          {:.2} MB/s{share}", self.source_bytes_per_s / 1e6));
        note(format_args!("arena           {} bytes", self.arena_bytes));
        if let Some(bytes) = self.resident_bytes {
            note(format_args!("weights kept    {bytes} bytes"));
        }
        note(format_args!("kernel          {}, {} threads", self.kernel, self.threads));
    }
}
