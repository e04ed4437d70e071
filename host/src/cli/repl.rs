//! `gptrickle repl`: prompts and commands, line by line, in the grammar that the boards' consoles speak.

mod lines;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use gptrickle_core::arena::Arena;
use gptrickle_core::console::{Command, HELP, Setting};
use gptrickle_core::generate::{Model, Options, Overflow, Plan, Session};
use gptrickle_core::ops::Engine;
use gptrickle_core::quant::trial::{self, Difference};
use gptrickle_core::quant::{Format, Kernel};
use gptrickle_core::source::{self, Resident, Source};
use gptrickle_core::tokenizer::Control;

use super::model::{self, EngineArgs, MemoryArgs, ModelArgs, Opened};
use super::plan::Regions;
use super::sampling::SamplingArgs;
use super::saved::SavedText;
use super::writing::{self, Run, Summary};
use super::{interrupt, is_broken_pipe, note};
use lines::Lines;

const EXAMPLES: &str = "Examples:
  gptrickle repl
  gptrickle repl -m distilgpt2.Q4_K_M.gguf --temperature 0.7
  printf ':max 20\\n:seed 7\\nOnce upon a time\\n:stats\\n' | gptrickle repl      a script

  > Once upon a time          what is typed is continued
  > :set temperature 0.7      a colon starts a command, as on a board's console; :help lists them
  > :save cat.session         keeps the last text; :load goes on with it, and so does generate --resume

Ctrl-C stops a text; it leaves on an empty line, and so does Ctrl-D.
Texts go to standard output, answers to standard error. A script with a line that failed ends with 1.";

/// Type prompts and commands: each prompt is continued at once
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// Most tokens for a prompt; :max changes it
    #[arg(short = 'n', long, value_name = "N", default_value_t = 200)]
    max_new_tokens: usize,

    #[command(flatten)]
    memory: MemoryArgs,

    #[command(flatten)]
    engine: EngineArgs,

    #[command(flatten)]
    sampling: SamplingArgs,

    /// Neither reads nor writes the file of lines that were typed, gptrickle/history among the user's data
    #[arg(long)]
    no_history: bool,
}

/// What the commands change.
#[derive(Debug, Clone, Copy)]
struct Settings {
    options: Options<'static>,
    /// Whether the context is that of whichever model is open.
    whole_context: bool,
    /// Tokens per prompt.
    max: usize,
    overflow: Overflow,
    hash: bool,
}

impl Settings {
    fn apply(&mut self, setting: Setting) {
        setting.apply(&mut self.options);
        self.whole_context &= !matches!(setting, Setting::Context(_));
    }

    /// The options for this model, if it can run with them.
    fn fit(&self, model: &Model) -> anyhow::Result<Options<'static>> {
        let mut options = self.options;
        let (n_ctx, state) = (model.header.config.n_ctx, &mut options.state);
        options.sampling.check()?;
        if self.whole_context {
            state.context = n_ctx;
        }
        if state.context > n_ctx {
            bail!("a context of {} cannot be had: use :set context with 1 to {n_ctx}", state.context);
        }
        state.batch = state.batch.min(state.context);
        Ok(options)
    }
}

/// Why lines are no longer answered with this session.
enum Next {
    /// Plan the memory again.
    Plan,
    /// So too, and go on with this text.
    Load(Box<SavedText>),
    /// The model has been opened again.
    Open(Box<Opened>),
    Quit,
}

/// Who answers, and what stays from session to session.
struct Repl<'r> {
    args: &'r Args,
    engine: Engine<'r>,
    settings: Settings,
    lines: Lines,
    /// What the last text took.
    last: Option<Summary>,
    failed: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    args.engine.run(|engine| run_on(engine, &args))
}

fn run_on(engine: Engine, args: &Args) -> anyhow::Result<ExitCode> {
    let mut opened = args.model.open()?;
    let options = Options {
        state: args.memory.options(&opened.model.header.config)?,
        sampling: args.sampling.params(),
        seed: args.sampling.seed(),
        ..Options::default()
    };
    let settings = Settings {
        options,
        whole_context: !args.memory.asks_for_context(),
        max: args.max_new_tokens,
        overflow: Overflow::Stop,
        hash: false,
    };
    let lines = Lines::open(args.no_history)?;
    if lines.is_terminal() {
        interrupt::listen_for_texts()?
    } else {
        interrupt::listen()?
    }
    let mut repl = Repl { args, engine, settings, lines, last: None, failed: false };
    let mut saved = None;
    loop {
        let options = repl.settings.fit(&opened.model)?;
        let mut memory = model::memory(Plan::new(&opened.model, &options).total())?;
        let mut arena = Arena::new(&mut memory);
        let mut session =
            Session::new(&opened.model, &options, &mut opened.src, &mut arena).with_context(|| opened.name.clone())?;
        session.set_engine(engine);
        opened.describe(&options, arena.used());
        let mut planned = Planned { opened: &mut opened, session, options };
        if let Some(saved) = saved.take() {
            let text = repl.resume(&mut planned, saved);
            repl.check(text)?;
        }
        match repl.answer(&mut planned)? {
            Next::Plan => {}
            Next::Load(text) => saved = Some(*text),
            Next::Open(again) => opened = *again,
            // Who reads a script's texts wants to know; who typed has seen it.
            Next::Quit if repl.failed && !repl.lines.is_terminal() => return Ok(ExitCode::FAILURE),
            Next::Quit => return Ok(ExitCode::SUCCESS),
        }
    }
}

/// A session, with the model it reads and what it was planned for.
struct Planned<'o, 'm> {
    opened: &'o mut Opened,
    session: Session<'m>,
    options: Options<'m>,
}

impl Planned<'_, '_> {
    /// Whether the session can run with `options`.
    fn covers(&self, options: &Options) -> bool {
        self.options.state == options.state && self.session.has_room(&options.sampling)
    }
}

impl Repl<'_> {
    /// Answers lines as far as one session does.
    fn answer(&mut self, planned: &mut Planned) -> anyhow::Result<Next> {
        while let Some(line) = self.lines.next()? {
            let next = line.and_then(|line| self.obey(planned, &line));
            if let Some(next) = self.check(next)?.flatten() {
                return Ok(next);
            }
        }
        Ok(Next::Quit)
    }

    /// Tells what failed, and goes on; unless nobody takes the texts.
    fn check<T>(&mut self, result: anyhow::Result<T>) -> anyhow::Result<Option<T>> {
        match result {
            Ok(done) => Ok(Some(done)),
            Err(error) if is_broken_pipe(&error) => Err(error),
            Err(error) => {
                self.failed = true;
                note(format_args!("error: {}{error:#}", self.lines.place()));
                Ok(None)
            }
        }
    }

    fn obey(&mut self, planned: &mut Planned, line: &str) -> anyhow::Result<Option<Next>> {
        // The error borrows from the line.
        match Command::parse(line).map_err(|error| anyhow!("{error}"))? {
            Command::Empty => {}
            Command::Prompt(prompt) => self.prompt(planned, prompt)?,
            Command::Set(setting) => {
                let mut new = self.settings;
                new.apply(setting);
                let options = new.fit(&planned.opened.model)?;
                if !planned.covers(&options) {
                    drop(model::memory(Plan::new(&planned.opened.model, &options).total())?);
                    self.settings = new;
                    return Ok(Some(Next::Plan));
                }
                self.settings = new;
            }
            Command::Seed(seed) => self.settings.options.seed = seed,
            Command::Max(n) => self.settings.max = n,
            Command::Overflow(overflow) => self.settings.overflow = overflow,
            Command::Hash(on) => self.settings.hash = on,
            Command::Echo(on) => self.lines.echo = on,
            Command::Stats => self.last.as_ref().context("there is no text yet: type a prompt")?.print(),
            Command::Plan => {
                let plan = Plan::new(&planned.opened.model, &planned.options);
                for (region, bytes) in Regions::new(&plan).named().chain([("together", plan.total())]) {
                    note(format_args!("{bytes:>12}  {region}"));
                }
            }
            Command::Save(path) => {
                if planned.session.tokens().len() == 0 {
                    bail!("there is no text to save: type a prompt, and :save before :set context, kv or batch");
                }
                let (fingerprint, output) = SavedText::create(Path::new(path), planned.opened)?;
                SavedText::write(&planned.session, fingerprint, output)?;
            }
            Command::Load(path) => {
                let saved = SavedText::open(Path::new(path), planned.opened)?;
                let batch = self.settings.options.state.batch;
                self.settings.options = saved.head.options(batch);
                self.settings.whole_context = false;
                return Ok(Some(Next::Load(Box::new(saved))));
            }
            Command::Open => {
                let again = self.args.model.open()?;
                self.settings.fit(&again.model)?;
                return Ok(Some(Next::Open(Box::new(again))));
            }
            Command::Checksum => checksum(planned.opened)?,
            Command::Check => check_kernels()?,
            Command::Help => HELP.iter().for_each(|(usage, meaning)| note(format_args!("{usage:<26} {meaning}"))),
            Command::Quit => return Ok(Some(Next::Quit)),
        }
        Ok(None)
    }

    /// Continues a prompt.
    fn prompt(&mut self, planned: &mut Planned, prompt: &str) -> anyhow::Result<()> {
        let Planned { opened, session, .. } = planned;
        session.restart(self.settings.options.sampling, self.settings.options.seed)?;
        session.set_overflow(self.settings.overflow)?;
        session.hash_logits(self.settings.hash);
        model::push_text(session, &mut opened.src, prompt.as_bytes(), Control::Ignore)?;
        self.write(planned, prompt)
    }

    /// Goes on with a saved text.
    fn resume(&mut self, planned: &mut Planned, mut saved: SavedText) -> anyhow::Result<()> {
        saved.restore(&mut planned.session)?;
        if self.settings.hash != planned.session.logits_hash().is_some() {
            planned.session.hash_logits(self.settings.hash);
        }
        self.write(planned, "")
    }

    /// Shows the text as it is made.
    fn write(&mut self, planned: &mut Planned, prompt: &str) -> anyhow::Result<()> {
        let Planned { opened, session, .. } = planned;
        session.limit(self.settings.max);
        let arena_bytes = Plan::new(&opened.model, &planned.options).total();
        let mut run = Run {
            src: &mut Resident::new(&mut opened.src, &mut []),
            name: &opened.name,
            stops: &[],
            max_time: None,
            full_text: None,
            json: false,
            bandwidth: self.args.model.bandwidth(),
            engine: self.engine,
            arena_bytes,
        };
        let summary = interrupt::during(|| {
            let prefill = run.read_prompt(session, prompt.as_bytes())?;
            writing::write(&mut run, session, prefill)
        })?;
        if let Some(hash) = &summary.logits_hash {
            note(format_args!("logits hash     {hash}"));
        }
        match summary.stop {
            Some("interrupted") => note("interrupted"),
            Some("context") => note(format_args!("the context of {} is full", planned.options.state.context)),
            _ => {}
        }
        self.last = Some(summary);
        Ok(())
    }
}

/// Reads the model once, and tells its checksum and how fast it came.
fn checksum(opened: &mut Opened) -> anyhow::Result<()> {
    let start = Instant::now();
    let crc = source::checksum(&mut opened.src)?;
    let (bytes, seconds) = (opened.src.len(), start.elapsed().as_secs_f64());
    note(format_args!("model: {bytes} bytes, CRC-32 {crc:08x}, at {:.3} MB/s", bytes as f64 / 1e6 / seconds));
    Ok(())
}

/// Compares this processor's kernels with the definition, format by format.
fn check_kernels() -> anyhow::Result<()> {
    for kernel in Kernel::available().filter(|&kernel| kernel != Kernel::GENERIC) {
        for format in Format::ALL.into_iter().filter(|format| !format.is_float()) {
            match trial::try_kernel(kernel, format) {
                Ok(n) => note(format_args!("{format:?} by {}: {n} products are the same", kernel.name())),
                Err(Difference { row, b, product, defined }) => {
                    bail!("{format:?} by {}: row {row} by {b} is {product:e}, not {defined:e}", kernel.name())
                }
            }
        }
    }
    Ok(())
}
