//! Text from a model in mapped flash: `cargo run -p gptrickle-core --example mapped_flash`.

use gptrickle_core::arena::Arena;
use gptrickle_core::generate::{Error, Model, Options, Session};
use gptrickle_core::gpt2;
use gptrickle_core::tokenizer::Control;

/// On a board `slice::from_raw_parts(0x9000_0000 as *const u8, len)`, once the controller maps the flash: a slice is a
/// source, and its bytes are used where they lie.
static FLASH: &[u8] = include_bytes!("../../tests/vectors/micro/micro-Q4_0.gguf");

fn main() -> Result<(), Error> {
    let mut flash = FLASH;
    let model = Model::open(&mut flash)?;
    let state = gpt2::Options { context: 32, ..Default::default() };
    let options = Options { state, ..Default::default() };
    let mut memory = [0; 64 << 10];
    let mut session = Session::new(&model, &options, &mut flash, &mut Arena::new(&mut memory))?;
    session.push_text(&mut flash, b"Once", Control::Ignore)?;
    session.limit(12);
    let mut bytes = [0; 256];
    while let Some(token) = session.next(&mut flash)? {
        let len = session.tokenizer().decode(&mut flash, token, Control::Ignore, &mut bytes)?;
        print!("{}", bytes[..len].escape_ascii());
    }
    println!();
    Ok(())
}
