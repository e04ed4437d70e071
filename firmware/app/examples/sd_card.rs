//! Text from a model on an SD card: `cargo xtask image --board raspi3b --model FILE -o sd.img`, then in `firmware/`
//! `cargo run --example sd_card -- sd.img "Once upon a time"`.

use std::fs::File;
use std::os::unix::fs::FileExt;

use gptrickle_core::arena::Arena;
use gptrickle_core::generate::{Model, Options, Session};
use gptrickle_core::gpt2;
use gptrickle_core::tokenizer::Control;
use gptrickle_firmware::storage::block::{BLOCK, BlockDevice, CONTROLLER, Card};
use gptrickle_firmware::storage::disk::Disk;
use gptrickle_firmware::storage::{Error, Storage};

/// A card's image. On a board `SdSpi::new(bus)` or `SdHost::new(controller)` stands here, with the board's own bus or
/// controller, and all that follows is the same.
struct Image(File);

impl BlockDevice for Image {
    fn connect(&mut self) -> Result<Card, Error> {
        let len = self.0.metadata().map_err(|_| Error::NoCard)?.len();
        Ok(Card { blocks: (len / BLOCK as u64) as u32, id: 0 })
    }

    fn read(&mut self, lba: u32, buf: &mut [u8]) -> Result<(), i32> {
        self.0.read_exact_at(buf, u64::from(lba) * BLOCK as u64).map_err(|_| CONTROLLER)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(path), Some(prompt)) = (args.next(), args.next()) else {
        return Err("usage: sd_card IMAGE PROMPT".into());
    };
    // Two buffers, a command of up to 64 KiB each: one is read into while the other is in use.
    let mut disk = Disk::new(Image(File::open(path)?), [(); 2].map(|()| vec![0; 64 << 10].leak()));
    let mut card = disk.open()?;
    let model = Model::open(&mut card)?;
    let state = gpt2::Options { context: 128.min(model.header.config.n_ctx), ..Default::default() };
    let options = Options { state, ..Default::default() };
    let mut memory = vec![0; 16 << 20];
    let mut session = Session::new(&model, &options, &mut card, &mut Arena::new(&mut memory))?;
    session.push_text(&mut card, prompt.as_bytes(), Control::Ignore)?;
    session.limit(40);
    let mut bytes = [0; 256];
    while let Some(token) = session.next(&mut card)? {
        let len = session.tokenizer().decode(&mut card, token, Control::Ignore, &mut bytes)?;
        print!("{}", String::from_utf8_lossy(&bytes[..len]));
    }
    println!("\n[{:?}]", card.reads());
    Ok(())
}
