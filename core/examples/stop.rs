//! An interrupt that stops a text: `cargo run -p gptrickle-core --example stop`.

use std::sync::atomic::{AtomicBool, Ordering};

use gptrickle_core::arena::Arena;
use gptrickle_core::generate::{Error, Model, Options, Session, StopReason};
use gptrickle_core::gpt2;
use gptrickle_core::tokenizer::Control;

static FLASH: &[u8] = include_bytes!("../../tests/vectors/micro/micro-Q4_0.gguf");
static STOP: AtomicBool = AtomicBool::new(false);

/// What a button's or a UART's interrupt calls.
fn interrupt() {
    STOP.store(true, Ordering::Relaxed);
}

fn main() -> Result<(), Error> {
    let mut flash = FLASH;
    let model = Model::open(&mut flash)?;
    let state = gpt2::Options { context: 32, ..Default::default() };
    let options = Options { state, ..Default::default() };
    let mut memory = [0; 64 << 10];
    let mut session = Session::new(&model, &options, &mut flash, &mut Arena::new(&mut memory))?;
    session.push_text(&mut flash, b"Once", Control::Ignore)?;
    let mut made = 0;
    while session.next(&mut flash)?.is_some() {
        made += 1;
        if made == 5 {
            interrupt(); // here; on a board it comes when it comes, and the token under way is the last
        }
        if STOP.load(Ordering::Relaxed) {
            session.stop(StopReason::Interrupted);
        }
    }
    println!("{made} tokens, {}", session.stop_reason().map_or("", StopReason::name));
    assert_eq!(made, 5);
    Ok(())
}
