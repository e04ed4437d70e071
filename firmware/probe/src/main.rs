//! What a program for a board needs of the core, and nothing else: a model in mapped flash, a prompt, text.
//!
//! `cargo xtask size --core` links it and looks at what the linker kept. There is no console, no device and no message:
//! an error is `None`, a panic an endless loop.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::panic::PanicInfo;

use gptrickle_core::arena::Arena;
use gptrickle_core::generate::{Model, Options, Session};
use gptrickle_core::gpt2;
use gptrickle_core::sampler::Params;
use gptrickle_core::tokenizer::Control;

/// Makes text until `show` says that it is enough. What is an argument here is not known to the compiler.
///
/// Where the link starts.
// SAFETY: no other function has this name.
#[unsafe(no_mangle)]
pub fn probe(
    mut flash: &[u8],
    memory: &mut [u8],
    prompt: &[u8],
    state: gpt2::Options,
    sampling: Params,
    seed: u64,
    show: fn(&[u8]) -> bool,
) -> Option<()> {
    let src = &mut flash;
    let model = Model::open(src).ok()?;
    let options = Options { state, sampling, seed, ..Options::default() };
    let mut session = Session::new(&model, &options, src, &mut Arena::new(memory)).ok()?;
    session.push_text(src, prompt, Control::Ignore).ok()?;
    let mut bytes = [0; 256];
    while let Some(token) = session.next(src).ok()? {
        let len = session.tokenizer().decode(src, token, Control::Ignore, &mut bytes).ok()?;
        if show(&bytes[..len]) {
            break;
        }
    }
    Some(())
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    loop {}
}
