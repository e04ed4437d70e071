//! Text in an embassy task while another one runs: `cargo run -p gptrickle-core --example embassy_task`.
//!
//! A pass is one call, which awaits nothing. So tasks that cannot wait for it have an executor of their own, which the
//! source polls before each chunk: none of them waits longer than one chunk's products take. (On a board an
//! `InterruptExecutor` does the same without a bound at all, where an interrupt can be spared.)

#![allow(unsafe_code)]

use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, Ordering};

use embassy_executor::raw::Executor;
use embassy_futures::yield_now;
use gptrickle_core::arena::Arena;
use gptrickle_core::generate::{Error as GenerateError, Model, Options, Session};
use gptrickle_core::gpt2;
use gptrickle_core::source::{Error, Source};
use gptrickle_core::tokenizer::Control;

static FLASH: &[u8] = include_bytes!("../../tests/vectors/micro/micro-Q4_0.gguf");
static TURNS: AtomicU32 = AtomicU32::new(0);

/// A source that lets other tasks run before it lends a chunk.
struct Yielding<S> {
    source: S,
    others: &'static Executor,
}

impl<S: Source> Source for Yielding<S> {
    fn len(&self) -> u64 {
        self.source.len()
    }

    /// The bound: how much is multiplied from one turn of the others to the next.
    fn max_chunk(&self) -> usize {
        self.source.max_chunk().min(4096)
    }

    fn chunk(&mut self, offset: u64, len: usize) -> Result<&[u8], Error> {
        // SAFETY: it is not polled from its own tasks, which know nothing of this source, nor from another thread.
        unsafe { self.others.poll() };
        self.source.chunk(offset, len)
    }
}

#[embassy_executor::task]
async fn blink() {
    loop {
        TURNS.fetch_add(1, Ordering::Relaxed);
        yield_now().await;
    }
}

fn main() -> Result<(), GenerateError> {
    let others: &Executor = Box::leak(Box::new(Executor::new(null_mut())));
    others.spawner().spawn(blink().expect("it is spawned once"));
    let mut flash = Yielding { source: FLASH, others };
    let model = Model::open(&mut flash)?;
    let state = gpt2::Options { context: 32, ..Default::default() };
    let options = Options { state, ..Default::default() };
    let mut memory = [0; 64 << 10];
    let mut session = Session::new(&model, &options, &mut flash, &mut Arena::new(&mut memory))?;
    session.push_text(&mut flash, b"Once", Control::Ignore)?;
    session.limit(12);
    let before = TURNS.load(Ordering::Relaxed);
    while session.next(&mut flash)?.is_some() {}
    let turns = TURNS.load(Ordering::Relaxed) - before;
    println!("12 tokens, and {turns} turns of the other task meanwhile");
    // 50 kB a token, in chunks of 4 at most.
    assert!(turns >= 12 * 12);
    Ok(())
}

/// Whom an executor tells that a task has woken: nobody, as the source polls it in any case.
#[unsafe(export_name = "__pender")]
fn pender(_: *mut ()) {}
