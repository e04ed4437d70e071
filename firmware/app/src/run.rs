//! The application: open the model, plan the memory, answer lines.

use core::convert::Infallible;
use core::fmt;

use gptrickle_core::arena::Arena;
use gptrickle_core::checked::{Checked, Table, crc32};
use gptrickle_core::console::{Command, HELP, Setting};
use gptrickle_core::generate::{Error, Model, Options, Overflow, Plan, Session, StopReason};
use gptrickle_core::gpt2::{self, KvFormat};
use gptrickle_core::ops::Engine;
use gptrickle_core::quant::trial::{self, Difference};
use gptrickle_core::quant::{Format, Kernel};
use gptrickle_core::sampler::Params;
use gptrickle_core::source::{self, Counting, Source};
use gptrickle_core::tokenizer::{Control, MAX_TOKEN, TextStream};

use crate::Board;
use crate::console::Console;
use crate::log;
use crate::storage::Storage;

/// The longest line, where there is plenty of memory; else a 64th of it.
const MAX_LINE: usize = 4096;

/// Positions of a prompt per pass, where the memory has room for them beside the model's whole context; else 1.
const ROOMY_BATCH: usize = 16;

/// What the commands change.
#[derive(Debug, Clone, Copy)]
struct Settings {
    /// Sampling, seed and KV format; context and batch only where they were asked for.
    options: Options<'static>,
    context_asked: bool,
    batch_asked: bool,
    /// Tokens per prompt.
    max: usize,
    overflow: Overflow,
    hash: bool,
}

impl Default for Settings {
    fn default() -> Self {
        let state = gpt2::Options { context: 0, batch: 1, kv: KvFormat::F32, ..Default::default() };
        Settings {
            options: Options { state, sampling: Params::default(), seed: 42, ..Options::default() },
            context_asked: false,
            batch_asked: false,
            max: 64,
            overflow: Overflow::Stop,
            hash: false,
        }
    }
}

impl Settings {
    fn apply(&mut self, setting: Setting) {
        setting.apply(&mut self.options);
        match setting {
            Setting::Context(_) => self.context_asked = true,
            Setting::Batch(_) => self.batch_asked = true,
            _ => {}
        }
    }

    /// The options for a model in `have` bytes: the largest context that fits, where none was asked for.
    fn fit(&self, model: &Model, have: usize) -> Result<Options<'static>, Unfit> {
        let mut options = self.options;
        let n_ctx = model.header.config.n_ctx;
        options.sampling.check().map_err(|error| Unfit::Never(error.into()))?;
        if !self.batch_asked {
            let state = gpt2::Options { context: n_ctx, batch: ROOMY_BATCH, ..options.state };
            let roomy = Plan::new(model, &Options { state, ..options }).total() <= have;
            options.state.batch = if roomy { ROOMY_BATCH } else { 1 };
        }
        let largest = Plan::largest_context(model, &options, have);
        if !self.context_asked {
            options.state.context = largest.unwrap_or(1);
        }
        let asked = options.state.context;
        if asked > n_ctx {
            return Err(Unfit::Never(gpt2::Error::Context { asked, n_ctx }.into()));
        }
        let needed = Plan::new(model, &options).total();
        if needed > have { Err(Unfit::TooBig { needed, have, largest }) } else { Ok(options) }
    }
}

/// A model does not run with these settings.
#[derive(Debug)]
enum Unfit {
    /// Whatever the memory.
    Never(Error),
    /// The memory is too small (in bytes); a context of this size would fit, if any does.
    TooBig { needed: usize, have: usize, largest: Option<usize> },
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unfit::Never(error) => error.fmt(f),
            Unfit::TooBig { needed, have, largest: Some(largest) } => {
                write!(f, "needs {needed} bytes of memory and has {have}; :set context {largest} would fit")
            }
            Unfit::TooBig { needed, have, largest: None } => write!(
                f,
                "needs {needed} bytes of memory and has {have}; no context fits, try :set kv q8_0, :set batch 1 or \
                 a smaller model"
            ),
        }
    }
}

/// A text on its way to the console.
struct Text<'c, B> {
    console: &'c mut Console<B>,
    /// How long it is so far.
    bytes: usize,
}

impl<B: Board> Text<'_, B> {
    fn show(&mut self, part: &str) -> Result<(), Infallible> {
        self.console.write(part.as_bytes());
        self.bytes += part.len();
        Ok(())
    }
}

/// What the last prompt took.
#[derive(Debug, Clone, Copy, Default)]
struct Stats {
    prompt_tokens: usize,
    tokens: usize,
    prompt_us: u64,
    tokens_us: u64,
    bytes_read: u64,
    /// Bytes a second when the model was read and nothing was multiplied, if it was.
    alone: Option<u64>,
}

/// A model that runs, and what it was planned with.
struct Running<'m> {
    session: Session<'m>,
    options: Options<'static>,
}

/// Why lines are no longer answered.
enum Next {
    /// Look for the model again.
    Open,
    /// Plan the memory again.
    Plan,
    Quit,
}

/// Answers lines until it is told to quit; the model's state and the line live in `memory`.
pub fn run<B: Board, S: Storage>(board: B, mut storage: S, memory: &mut [u8]) -> ! {
    let mut console = Console::new(board);
    let mut settings = Settings::default();
    let mut stats = Stats::default();
    let (line, memory) = memory.split_at_mut((memory.len() / 64).min(MAX_LINE));
    console.say(format_args!("gptrickle {} on {}", env!("CARGO_PKG_VERSION"), B::NAME));
    log::info!("{=usize} bytes of memory", memory.len());
    loop {
        let mut arena = Arena::new(memory);
        let mut source = find(&mut console, &mut storage, &mut arena);
        let memory = arena.into_rest();
        let model = source.as_mut().and_then(|source| open(&mut console, source));
        loop {
            let mut opened = source.as_mut().zip(model.as_ref());
            let mut arena = Arena::new(memory);
            let have = arena.len();
            let mut running = match &mut opened {
                Some((source, model)) => plan(&mut console, *source, model, &mut arena, &settings),
                None => None,
            };
            match answer(&mut console, opened, running.as_mut(), line, have, &mut settings, &mut stats) {
                Next::Plan => {}
                Next::Open => break,
                Next::Quit => console.board.exit(0),
            }
        }
    }
}

// The steps are functions that are not inlined, so that the variables of one leave the stack before those of the next
// arrive: on a board with 64 KiB of RAM each kilobyte counts.

/// The model's bytes, compared with the file's checksums if it has some, then counted.
type Bytes<'a, S> = Counting<Checked<S, &'a mut [u32]>>;

/// Looks for the model, and keeps its checksums, if it has some, in memory.
#[inline(never)]
fn find<'s, 'a, B: Board, S: Storage>(
    console: &mut Console<B>,
    storage: &'s mut S,
    arena: &mut Arena<'a>,
) -> Option<Bytes<'a, S::Source<'s>>> {
    let source = storage.open().map_err(|error| console.error(error)).ok()?;
    checked(source, arena).map_err(|error| console.error(error)).ok()
}

fn checked<'a, S: Source>(mut source: S, arena: &mut Arena<'a>) -> Result<Bytes<'a, S>, Error> {
    let table = Table::find(&mut source)?;
    let words = table.map(|table| table.words(arena)).transpose()?.unwrap_or_default();
    Ok(Counting::new(Checked::new(source, table, words, crc32)?))
}

/// Opens the model and says what it is.
#[inline(never)]
fn open<B: Board, S: Source>(console: &mut Console<B>, source: &mut S) -> Option<Model> {
    let model = Model::open(source).map_err(|error| console.error(error)).ok()?;
    let config = &model.header.config;
    console.say(format_args!(
        "model: {} layers, {} heads, {} wide, {} tokens, context {}; {} bytes, {} read per token",
        config.n_layer,
        config.n_head,
        config.n_embd,
        config.n_vocab,
        config.n_ctx,
        source.len(),
        model.header.bytes_per_token(),
    ));
    log::info!("model of {=u64} bytes", source.len());
    Some(model)
}

/// Answers lines under one plan, as far as the model could be opened and fits into the `have` bytes of memory.
#[inline(never)]
fn answer<B: Board, S: Source>(
    console: &mut Console<B>,
    opened: Option<(&mut Counting<S>, &Model)>,
    mut running: Option<&mut Running<'_>>,
    line: &mut [u8],
    have: usize,
    settings: &mut Settings,
    stats: &mut Stats,
) -> Next {
    let (mut source, model) = opened.unzip();
    loop {
        // Panics rather than go on with memory that the stack has overwritten.
        let _ = console.board.stack_used();
        let line = match console.line(line) {
            Ok(line) => line,
            Err(error) => {
                console.error(error);
                continue;
            }
        };
        let command = match Command::parse(line) {
            Ok(command) => command,
            Err(error) => {
                console.error(error);
                continue;
            }
        };
        match command {
            Command::Empty => {}
            Command::Prompt(prompt) => match source.as_mut().zip(running.as_mut()) {
                None => console.error("no model is ready; see :open, :set and :help"),
                Some((source, running)) => match generate(console, &mut running.session, source, settings, prompt) {
                    Ok(done) => *stats = Stats { alone: stats.alone, ..done },
                    Err(error) => console.error(error),
                },
            },
            Command::Set(setting) => {
                let mut new = *settings;
                new.apply(setting);
                match model.map(|model| (model, new.fit(model, have))) {
                    None => *settings = new,
                    Some((_, Err(error))) => console.error(error),
                    Some((_, Ok(options))) => {
                        *settings = new;
                        if running.as_ref().is_none_or(|running| !covers(running, &options)) {
                            return Next::Plan;
                        }
                    }
                }
            }
            Command::Seed(seed) => settings.options.seed = seed,
            Command::Max(n) => settings.max = n,
            Command::Overflow(overflow) => settings.overflow = overflow,
            Command::Hash(on) => settings.hash = on,
            Command::Echo(on) => console.echo = on,
            Command::Stats => tell_stats(console, stats),
            Command::Plan => match model.zip(running.as_ref()) {
                None => console.say(format_args!("no plan; {have} bytes of memory")),
                Some((model, running)) => tell_plan(console, model, &running.options, have),
            },
            Command::Save(_) | Command::Load(_) => {
                console.error("a board keeps no texts; on a PC, gptrickle repl does");
            }
            Command::Checksum => match source.as_mut() {
                None => console.error("no model is there; see :open"),
                Some(source) => match checksum(console, source) {
                    Ok(rate) => stats.alone = rate,
                    Err(error) => console.error(error),
                },
            },
            Command::Check => check(console),
            Command::Help => {
                for (usage, meaning) in HELP {
                    console.say(format_args!("{usage:<26} {meaning}"));
                }
            }
            Command::Open => return Next::Open,
            Command::Quit => return Next::Quit,
        }
    }
}

/// Plans the memory, cuts a session from it and says how it went.
#[inline(never)]
fn plan<'m, B: Board, S: Source>(
    console: &mut Console<B>,
    source: &mut S,
    model: &Model,
    arena: &mut Arena<'m>,
    settings: &Settings,
) -> Option<Running<'m>> {
    let have = arena.len();
    let options = settings.fit(model, have).map_err(|error| console.error(error)).ok()?;
    let mut session = Session::new(model, &options, source, arena).map_err(|error| console.error(error)).ok()?;
    session.set_engine(Engine { team: console.board.team(), ..Engine::default() });
    let gpt2::Options { context, batch, kv, .. } = options.state;
    log::info!("context {=usize}, batch {=usize}", context, batch);
    console.say(format_args!(
        "memory: {} of {have} bytes for context {context}, batch {batch}, kv {}",
        arena.used(),
        kv.name()
    ));
    Some(Running { session, options })
}

/// Continues `prompt`, writing the text as it is made, then how long it is.
#[inline(never)]
fn generate<B: Board, S: Source>(
    console: &mut Console<B>,
    session: &mut Session<'_>,
    source: &mut Counting<S>,
    settings: &Settings,
    prompt: &str,
) -> Result<Stats, Error> {
    let (started, read_before) = (console.board.micros(), source.bytes());
    session.restart(settings.options.sampling, settings.options.seed)?;
    session.set_overflow(settings.overflow)?;
    session.hash_logits(settings.hash);
    let prompt_tokens = session.push_text(source, prompt.as_bytes(), Control::Ignore)?;
    session.limit(settings.max);
    while session.pass(source)? > 0 {
        if console.interrupted() {
            session.stop(StopReason::Interrupted);
            break;
        }
    }
    let prompted = console.board.micros();

    let mut stream = TextStream::new(&[])?;
    let mut text = Text { console, bytes: 0 };
    let mut bytes = [0; MAX_TOKEN];
    let mut tokens = 0;
    let ended = loop {
        if text.console.interrupted() {
            session.stop(StopReason::Interrupted);
        }
        let token = match session.next(source) {
            Ok(Some(token)) => token,
            ended => break ended,
        };
        tokens += 1;
        token_made();
        match session.tokenizer().decode(source, token, Control::Ignore, &mut bytes) {
            Ok(len) => {
                let Ok(_) = stream.push(&bytes[..len], |part| text.show(part));
            }
            Err(error) => break Err(error.into()),
        }
    };
    // Whatever ended it, what was made is the text.
    let Ok(_) = stream.finish(|part| text.show(part));
    let Text { bytes, .. } = text;
    let reason = session.stop_reason().map_or("error", StopReason::name);
    console.write(b"\n");
    console.say(format_args!("text: {bytes} bytes, {tokens} tokens, {reason}"));
    ended?;
    if let Some(hash) = session.logits_hash() {
        console.say(format_args!("logits hash: {hash}"));
    }
    let stats = Stats {
        prompt_tokens,
        tokens,
        prompt_us: prompted - started,
        tokens_us: console.board.micros() - prompted,
        bytes_read: source.bytes() - read_before,
        alone: None,
    };
    log::info!("prompt of {=usize} tokens in {=u64} us", prompt_tokens, stats.prompt_us);
    log::info!("{=usize} tokens in {=u64} us", tokens, stats.tokens_us);
    Ok(stats)
}

/// Where `cargo xtask bench --board` tells one token's instructions from the next one's, by this function's address.
#[inline(never)]
fn token_made() {
    core::hint::black_box(());
}

/// Reads the model once, tells its checksum and how fast it came, and returns the latter in bytes a second.
#[inline(never)]
fn checksum<B: Board, S: Source>(console: &mut Console<B>, source: &mut S) -> Result<Option<u64>, source::Error> {
    let started = console.board.micros();
    let crc = source::checksum(source)?;
    let rate = per_second(source.len(), console.board.micros() - started);
    let shown = Thousandths(rate.unwrap_or(0) / 1000);
    console.say(format_args!("model: {} bytes, CRC-32 {crc:08x}, at {shown} MB/s", source.len()));
    Ok(rate)
}

/// A rate, if any time passed.
fn per_second(n: u64, us: u64) -> Option<u64> {
    n.saturating_mul(1_000_000).checked_div(us)
}

/// A number in thousandths, shown with three digits.
struct Thousandths(u64);

impl fmt::Display for Thousandths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}

/// Compares this processor's kernels with the definition, format by format: integer ones, as floats have no other way.
#[inline(never)]
fn check<B: Board>(console: &mut Console<B>) {
    for kernel in Kernel::available().filter(|&kernel| kernel != Kernel::GENERIC) {
        for format in Format::ALL.into_iter().filter(|format| !format.is_float()) {
            match trial::try_kernel(kernel, format) {
                Ok(n) => console.say(format_args!("{format:?} by {}: {n} products are the same", kernel.name())),
                Err(Difference { row, b, product, defined }) => console.error(format_args!(
                    "{format:?} by {}: row {row} by {b} is {product:e}, not {defined:e}",
                    kernel.name()
                )),
            }
        }
    }
    console.say(format_args!("kernel: {}", Kernel::best().name()));
    console.say(format_args!("cores: {}", console.board.team().parts()));
}

/// Whether a session can run with `options`.
fn covers(running: &Running, options: &Options) -> bool {
    running.options.state == options.state && running.session.has_room(&options.sampling)
}

fn tell_stats<B: Board>(console: &mut Console<B>, stats: &Stats) {
    let Stats { prompt_tokens, tokens, prompt_us, tokens_us, bytes_read, alone } = *stats;
    let speed = |tokens: usize, us: u64| Thousandths(per_second(tokens as u64 * 1000, us).unwrap_or(0));
    console.say(format_args!(
        "prompt: {prompt_tokens} tokens in {prompt_us} us, {} tokens/s",
        speed(prompt_tokens, prompt_us)
    ));
    console.say(format_args!("made: {tokens} tokens in {tokens_us} us, {} tokens/s", speed(tokens, tokens_us)));
    let rate = per_second(bytes_read, prompt_us + tokens_us).unwrap_or(0);
    let shown = Thousandths(rate / 1000);
    match alone.filter(|&alone| alone > 0) {
        Some(alone) => console.say(format_args!(
            "model: {bytes_read} bytes read, {shown} MB/s, {} % of what :checksum saw",
            rate * 100 / alone
        )),
        None => {
            console.say(format_args!("model: {bytes_read} bytes read, {shown} MB/s; :checksum tells what storage can"))
        }
    }
    let stack = console.board.stack_used();
    console.say(format_args!("stack: {stack} bytes used at most"));
}

fn tell_plan<B: Board>(console: &mut Console<B>, model: &Model, options: &Options, have: usize) {
    let gpt2::Options { context, batch, kv, .. } = options.state;
    let plan = Plan::new(model, options);
    console.say(format_args!("context {context} of {}, batch {batch}, kv {}", model.header.config.n_ctx, kv.name()));
    for (region, bytes) in [
        ("directory of weights", plan.model.weights),
        ("keys and values", plan.model.kv),
        ("activations", plan.model.activations),
        ("tokenizer's index", plan.tokenizer),
        ("sampler", plan.sampler),
        ("text as tokens", plan.tokens),
        ("together", plan.total()),
        ("memory", have),
    ] {
        console.say(format_args!("{region:<20} {bytes:>10} bytes"));
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::ToOwned;
    use std::path::Path;
    use std::string::String;
    use std::vec;
    use std::vec::Vec;

    use super::*;
    use crate::console::scripted::Scripted;
    use crate::storage::Error as StorageError;

    /// A model's bytes, or nothing; each `:open` gets the next.
    struct Cards(Vec<Result<Vec<u8>, StorageError>>);

    impl Storage for Cards {
        type Source<'a> = &'static [u8];

        fn open(&mut self) -> Result<&'static [u8], StorageError> {
            self.0.remove(0).map(|bytes| &*bytes.leak())
        }
    }

    fn micro() -> Vec<u8> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors/micro/micro-Q4_0.gguf");
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// What a board with these cards and this much memory writes when this is typed, and `:quit`.
    fn written(cards: Vec<Result<Vec<u8>, StorageError>>, memory: usize, typed: &str) -> String {
        let typed = std::format!("{typed}\n:quit\n");
        let board = Scripted::new(typed.as_bytes());
        let mut memory = vec![0; memory];
        let code = Scripted::exit_code(|| run(board.clone(), Cards(cards), &mut memory));
        assert_eq!(code, 0);
        board.written()
    }

    fn with_micro(memory: usize, typed: &str) -> String {
        written(vec![Ok(micro())], memory, typed)
    }

    /// The text of the only prompt: as many bytes as the line after it says.
    fn text(written: &str) -> &str {
        let (before, after) = written.split_once("\n# text: ").expect("a text");
        let bytes: usize = after.split(' ').next().unwrap().parse().unwrap();
        &before[before.len() - bytes..]
    }

    #[test]
    fn the_same_seed_makes_the_same_text_and_hash_in_any_memory() {
        let typed = ":hash on\n:seed 7\n:max 12\nOne day";
        let roomy = with_micro(1 << 20, typed);
        assert!(!text(&roomy).is_empty());
        let hash = |written: &str| written.split_once("logits hash: ").unwrap().1[..16].to_owned();
        let tight = with_micro(36 << 10, typed);
        assert!(roomy.contains("batch 16") && tight.contains("batch 1,"), "{roomy}{tight}");
        assert_eq!((text(&roomy), hash(&roomy)), (text(&tight), hash(&tight)));
        assert_ne!(text(&roomy), text(&with_micro(1 << 20, ":seed 8\n:max 12\nOne day")));
    }

    #[test]
    fn a_context_that_does_not_fit_is_refused_with_one_that_does() {
        let out = with_micro(14 << 10, ":set context 32\nA\n:set kv q8_0\n:set context 33\n:set context 0");
        let (_, advice) = out.split_once(":set context ").expect("advice");
        let fits: usize = advice.split(' ').next().unwrap().parse().unwrap();
        assert!((1..32).contains(&fits));
        assert!(out.contains("# text: "), "the old plan still runs: {out}");
        assert!(out.contains(", batch 1, kv q8_0"), "{out}");
        assert!(out.contains("error: a context of 33 is asked for, the model has 1..=32 positions"), "{out}");
        assert!(out.contains("error: context needs a whole number from 1 on"), "{out}");
        let out = with_micro(14 << 10, &std::format!(":set context {fits}\nA\n:set context {}", fits + 1));
        assert!(out.contains(&std::format!("for context {fits}, ")), "{out}");
        assert_eq!(out.matches("would fit").count(), 1, "{out}");
    }

    #[test]
    fn a_model_too_big_for_any_context_leaves_the_console_alive() {
        let out = with_micro(4 << 10, "A\n:plan\n:help");
        assert!(out.contains("no context fits"), "{out}");
        assert!(out.contains("error: no model is ready"), "{out}");
        assert!(out.contains("# no plan; "), "{out}");
    }

    #[test]
    fn cards_that_are_missing_wrong_or_cut_are_named_and_a_good_one_then_works() {
        let mut cut = micro();
        cut.truncate(50_000);
        let cards = vec![Err(StorageError::NoCard), Ok(b"not a model, but long enough".to_vec()), Ok(cut), Ok(micro())];
        let out = written(cards, 1 << 20, ":stats\n:open\n:set seed 1\n:open\nA\n:open\n:max 3\nA");
        for line in [
            "# error: no card",
            "# error: not a GGUF file",
            "# error: tensor blk.0.ffn_up.weight ends 57632 bytes into the tensors, the whole file has 50000: it is truncated",
            "# error: no model is ready",
            "# text: ",
        ] {
            assert!(out.contains(line), "{line} is not in {out}");
        }
    }

    #[test]
    fn a_prompt_longer_than_the_context_is_an_error_and_the_next_is_not() {
        let out = with_micro(1 << 20, &std::format!(":max 2\n{}\nshort", "long ".repeat(40)));
        assert!(out.contains("positions are left"), "{out}");
        assert_eq!(out.matches("# text: ").count(), 1);
    }

    #[test]
    fn a_board_keeps_no_texts_and_says_who_does() {
        let out = with_micro(1 << 20, ":save a\n:load a\n:max 2\nA");
        assert_eq!(out.matches("error: a board keeps no texts; on a PC, gptrickle repl does").count(), 2, "{out}");
        assert!(out.contains("# text: "), "{out}");
    }

    #[test]
    fn a_checksum_is_of_the_whole_file_and_then_speed_has_a_measure() {
        // gzip -c tests/vectors/micro/micro-Q4_0.gguf | tail -c8 | xxd -e
        let out = with_micro(1 << 20, ":checksum\n:max 2\nA\n:stats");
        let line = std::format!("# model: {} bytes, CRC-32 40193871, at ", micro().len());
        assert!(out.contains(&line), "{out}");
        let out = written(vec![Err(StorageError::NoCard)], 1 << 20, ":checksum");
        assert!(out.contains("error: no model is there; see :open"), "{out}");
    }

    #[test]
    fn ctrl_c_stops_a_text() {
        let out = with_micro(1 << 20, "A\n\x03");
        assert!(out.contains("0 tokens, interrupted"), "{out}");
    }
}
