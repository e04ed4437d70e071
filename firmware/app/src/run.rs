//! The application: open the model, answer lines.

use core::fmt;

use gptrickle_core::console::{Command, HELP, Kv, Setting};
use gptrickle_core::source::{self, Source};

use crate::Board;
use crate::console::Console;
use crate::log;
use crate::storage::Storage;

/// The longest line, where there is plenty of memory; else a 64th of it.
const MAX_LINE: usize = 4096;

/// What the commands change.
#[derive(Debug, Clone, Copy)]
struct Settings {
    context: Option<usize>,
    kv: Kv,
    batch: usize,
    seed: u64,
    max: usize,
    hash: bool,
}

/// What the last prompt took.
#[derive(Debug, Clone, Copy, Default)]
struct Stats {
    bytes_read: u64,
    took_us: u64,
}

/// Why lines are no longer answered.
enum Next {
    Open,
    Plan,
    Quit,
}

/// Answers lines until it is told to quit; the model and all that is made of it live in `memory`.
pub fn run<B: Board, S: Storage>(board: B, mut storage: S, memory: &mut [u8]) -> ! {
    let mut console = Console::new(board);
    let mut settings = Settings { context: None, kv: Kv::F32, batch: 1, seed: 0, max: 64, hash: false };
    let (line, memory) = memory.split_at_mut((memory.len() / 64).min(MAX_LINE));
    console.say(format_args!("gptrickle {} on {}", env!("CARGO_PKG_VERSION"), B::NAME));
    log::info!("start: arena {=usize} bytes", memory.len());
    loop {
        let mut source = match storage.open() {
            Ok(source) => Some(source),
            Err(error) => {
                console.say(format_args!("error: {error}; then :open"));
                None
            }
        };
        loop {
            match answer(&mut console, source.as_mut(), line, memory, &mut settings) {
                Next::Plan => {}
                Next::Open => break,
                Next::Quit => console.board.exit(0),
            }
        }
    }
}

/// Answers lines with one model under one plan.
fn answer<B: Board, S: Source>(
    console: &mut Console<B>,
    mut source: Option<&mut S>,
    line: &mut [u8],
    memory: &mut [u8],
    settings: &mut Settings,
) -> Next {
    let mut stats = Stats::default();
    if let Some(source) = &source {
        console.say(format_args!("model: {} bytes", source.len()));
    }
    loop {
        let line = match console.line(line) {
            Ok(line) => line,
            Err(error) => {
                console.say(format_args!("error: {error}"));
                continue;
            }
        };
        match Command::parse(line) {
            Ok(Command::Empty) => {}
            Ok(Command::Prompt(_)) => match &mut source {
                None => console.say("error: no model; then :open"),
                Some(source) => match checksum(console, source) {
                    Ok(done) => stats = done,
                    Err(error) => console.say(format_args!("error: {error}")),
                },
            },
            Ok(Command::Set(setting)) => match setting {
                Setting::Context(n) => {
                    settings.context = Some(n);
                    return Next::Plan;
                }
                Setting::Kv(kv) => {
                    settings.kv = kv;
                    return Next::Plan;
                }
                Setting::Batch(n) => {
                    settings.batch = n;
                    return Next::Plan;
                }
                _ => {}
            },
            Ok(Command::Seed(n)) => settings.seed = n,
            Ok(Command::Max(n)) => settings.max = n,
            Ok(Command::Hash(on)) => settings.hash = on,
            Ok(Command::Echo(on)) => console.echo = on,
            Ok(Command::Stats) => {
                let stack = console.board.stack_used();
                console.say(format_args!(
                    "{} bytes read in {} us, {} kB/s",
                    stats.bytes_read,
                    stats.took_us,
                    (stats.bytes_read * 1000).checked_div(stats.took_us).unwrap_or(0),
                ));
                console.say(format_args!("stack: at most {stack} bytes used"));
            }
            Ok(Command::Plan) => console.say(format_args!("arena: {} bytes", memory.len())),
            Ok(Command::Help) => {
                for (usage, meaning) in HELP {
                    console.say(format_args!("{usage:<29} {meaning}"));
                }
            }
            Ok(Command::Open) => return Next::Open,
            Ok(Command::Quit) => return Next::Quit,
            Err(error) => console.say(format_args!("error: {error}")),
        }
    }
}

/// FNV-1a over the whole model: a stand-in until there is an engine.
fn checksum<B: Board, S: Source>(console: &mut Console<B>, source: &mut S) -> Result<Stats, source::Error> {
    let started = console.board.micros();
    let step = source.max_chunk().min(1 << 16);
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut offset = 0;
    while offset < source.len() && !console.interrupted() {
        let len = step.min((source.len() - offset) as usize);
        for &byte in source.chunk(offset, len)? {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        offset += len as u64;
        source.prefetch(offset, step.min((source.len() - offset) as usize));
    }
    let text = fmt::from_fn(|f| write!(f, "fnv1a {hash:016x} over {offset} bytes"));
    let _ = fmt::write(console, format_args!("{text}\n"));
    Ok(Stats { bytes_read: offset, took_us: console.board.micros() - started })
}
