//! `cargo xtask qemu`: a board in the emulator, with a model, for a prompt or for a person.

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use crate::boards::{Board, Emulator, Larger, Storage};
use crate::card::{self, Contents};
use crate::console::Console;
use crate::firmware;
use crate::log;
use crate::process::{self, root};

/// What to run, on what.
#[derive(Args)]
pub(crate) struct Options {
    /// The board; `cargo xtask boards` lists them
    #[arg(long, short)]
    board: String,
    /// The GGUF file; the demo model if not given
    #[arg(long, short)]
    model: Option<PathBuf>,
    /// A card, disk or memory that `cargo xtask image` wrote for this board
    #[arg(long, conflicts_with = "model")]
    image: Option<PathBuf>,
    /// Run without a model, as with an empty card slot
    #[arg(long, conflicts_with_all = ["model", "image"])]
    no_model: bool,
    /// Continue this text and leave; without it, lines come from standard input
    #[arg(long, short)]
    prompt: Option<String>,
    /// The most tokens to make
    #[arg(short = 'n', long = "max-new-tokens")]
    max: Option<usize>,
    /// Seed of the random numbers
    #[arg(long)]
    seed: Option<u64>,
    /// Divides the logits; 0 takes the likeliest token
    #[arg(long)]
    temperature: Option<f32>,
    /// Positions that the KV cache holds
    #[arg(long)]
    context: Option<usize>,
    /// Any other setting of the console, such as "top_k 50"; can be repeated
    #[arg(long, value_name = "NAME VALUE")]
    set: Vec<String>,
    /// Print the hash over all logits
    #[arg(long)]
    hash: bool,
    /// Build with log lines and decode them
    #[arg(long)]
    defmt: bool,
    /// Seconds that the board may be silent
    #[arg(long, default_value_t = 600)]
    timeout: u64,
}

impl Options {
    /// The console commands that come before the prompt.
    fn commands(&self) -> Vec<String> {
        let context = self.context.map(|n| format!(":set context {n}"));
        let temperature = self.temperature.map(|x| format!(":set temperature {x}"));
        let set = self.set.iter().map(|setting| format!(":set {setting}"));
        let seed = self.seed.map(|n| format!(":seed {n}"));
        let max = self.max.map(|n| format!(":max {n}"));
        let hash = self.hash.then(|| ":hash on".to_owned());
        context.into_iter().chain(temperature).chain(set).chain(seed).chain(max).chain(hash).collect()
    }
}

/// Builds, runs, and returns the firmware's own exit code. Text goes to standard output, all else to standard error.
///
/// # Errors
/// The build fails, the emulator is not there, the board is silent for too long or refuses a setting or the prompt.
pub(crate) fn qemu(options: &Options) -> Result<ExitCode> {
    if options.defmt && !log::DECODES {
        match log::with_decoder()? {}
    }
    let board = Board::named(&options.board)?;
    board.emulator()?;
    let elf = firmware::build(board, if options.defmt { &["defmt"] } else { &[] })?;
    let media = match (&options.image, &options.model) {
        (Some(image), _) => Media::Image(image.canonicalize().with_context(|| image.display().to_string())?),
        _ if options.no_model => Media::None,
        (None, Some(model)) => Media::prepare(board, Some(model))?,
        (None, None) => Media::prepare(board, Some(&demo_model()?))?,
    };
    let listener = if options.defmt { Some(log::Listener::new(&elf)?) } else { None };
    let mut command = command(board, &elf, &media, listener.as_ref().map(|listener| listener.path()))?;
    eprintln!("xtask: {}", process::line(&command));
    let status = match &options.prompt {
        Some(prompt) => start(&mut command).and_then(|child| answer(board, child, options, prompt)),
        None => start(command.process_group(0)).and_then(|child| talk(child, &options.commands())),
    };
    if let Some(listener) = listener {
        listener.finish()?;
    }
    // An emulator that was killed has no code.
    Ok(ExitCode::from(u8::try_from(status?.code().unwrap_or(1)).unwrap_or(1)))
}

/// One prompt from the command line.
fn answer(board: &Board, child: Child, options: &Options, prompt: &str) -> Result<ExitStatus> {
    ensure!(!prompt.contains(['\n', '\r']), "a prompt is one line");
    let mut console = Console::new(board.name, child, Duration::from_secs(options.timeout))?;
    let say = |lines: &[String]| lines.iter().for_each(|line| eprintln!("# {line}"));
    say(&console.start()?.lines);
    for command in options.commands() {
        say(&console.command(&command)?.lines);
    }
    // A prompt that begins with a colon is no command.
    let escape = if prompt.starts_with(':') { ":" } else { "" };
    let reply = console.send(&format!("{escape}{prompt}"), &mut |bytes| {
        let mut stdout = io::stdout();
        Ok(stdout.write_all(bytes).and_then(|()| stdout.flush())?)
    })?;
    if reply.text.is_some() {
        println!();
    }
    say(&reply.lines);
    if let Some(error) = reply.error() {
        bail!("{}: {error}", board.name);
    }
    console.quit()
}

/// Standard input to the board, the board to standard output, Ctrl-C to the board as a byte.
///
/// # Errors
/// A pipe breaks.
pub(crate) fn talk(mut child: Child, commands: &[String]) -> Result<ExitStatus> {
    let stdin = Arc::new(Mutex::new(child.stdin.take().context("the board has no input")?));
    let mut stdout = child.stdout.take().context("the board has no output")?;
    let child = Arc::new(Mutex::new(child));
    pass_interrupts(Arc::clone(&stdin), Arc::clone(&child))?;

    let commands: String = commands.iter().map(|command| format!("{command}\n")).collect();
    let (ready, wait) = mpsc::channel();
    std::thread::spawn(move || {
        // What comes while a board still sets up its console is lost.
        if wait.recv().is_ok() {
            let _ = pass_lines(&stdin, commands.as_bytes());
        }
    });
    let mut ready = Some(ready);
    let mut last = b'\n';
    let mut bytes = [0; 4096];
    while let Ok(n @ 1..) = stdout.read(&mut bytes) {
        let mut terminal = io::stdout();
        terminal.write_all(&bytes[..n]).and_then(|()| terminal.flush())?;
        for &byte in &bytes[..n] {
            if last == b'\n'
                && byte == b'>'
                && let Some(ready) = ready.take()
            {
                let _ = ready.send(());
            }
            last = byte;
        }
    }
    let status = child.lock().map_err(|_| anyhow::anyhow!("a thread panicked"))?.wait()?;
    Ok(status)
}

/// Ctrl-C stops the board's text; twice within a second, the board.
fn pass_interrupts(stdin: Arc<Mutex<ChildStdin>>, child: Arc<Mutex<Child>>) -> Result<()> {
    let last = Mutex::new(None::<Instant>);
    ctrlc::set_handler(move || {
        let before = last.lock().ok().and_then(|mut last| last.replace(Instant::now()));
        if before.is_some_and(|before| before.elapsed() < Duration::from_secs(1)) {
            let _ = child.lock().map(|mut child| child.kill());
        } else if let Ok(mut stdin) = stdin.lock() {
            let _ = stdin.write_all(&[0x03]).and_then(|()| stdin.flush());
        }
    })?;
    Ok(())
}

/// Sends `first`, then standard input; the board leaves at its end.
fn pass_lines(board: &Mutex<ChildStdin>, first: &[u8]) -> io::Result<()> {
    let send = |bytes: &[u8]| match board.lock() {
        Ok(mut board) => board.write_all(bytes).and_then(|()| board.flush()),
        Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
    };
    send(first)?;
    let mut bytes = [0; 1024];
    loop {
        match io::stdin().read(&mut bytes)? {
            0 => return send(b"\n:quit\n"),
            n => send(&bytes[..n])?,
        }
    }
}

/// The model that is built into the host's binary.
///
/// # Errors
/// It is not in the tree.
pub(crate) fn demo_model() -> Result<PathBuf> {
    let folder = root().join("host/model");
    let files = fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
    files
        .filter(|path| path.extension().is_some_and(|extension| extension == "gguf"))
        .min()
        .with_context(|| format!("{} holds no .gguf file: name one with --model", folder.display()))
}

/// The most stack that a board uses: from its start, over every control, to the end of a short text.
///
/// # Errors
/// It does not run, or does not say.
pub(crate) fn stack_used(board: &Board, elf: &Path) -> Result<u64> {
    let media = Media::prepare(board, Some(&demo_model()?))?;
    let child = start(&mut command(board, elf, &media, None)?)?;
    let mut console = Console::new(board.name, child, Duration::from_secs(300))?;
    console.start()?;
    // Every control, and a prompt that fills or exceeds the context: a board refuses what it has no room for, and that
    // takes stack, too.
    let controls = [
        ":set kv q8_0",
        ":set temperature 0.9",
        ":set top_k 40",
        ":set top_p 0.9",
        ":set min_p 0.01",
        ":set typical_p 0.95",
        ":set epsilon_cutoff 0.0001",
        ":set eta_cutoff 0.0001",
        ":set repetition_penalty 1.1",
        ":set no_repeat_ngram_size 3",
        ":set min_new_tokens 2",
        ":hash on",
        ":max 8",
        ":check",
        ":plan",
        ":open",
    ];
    let long = "Once upon a time, there were 1,234 \u{e9}l\u{e9}phants... ".repeat(12);
    for line in controls.into_iter().chain([&*long]) {
        console.send(line, &mut |_| Ok(()))?;
    }
    console.command("Once")?;
    let stats = console.command(":stats")?.lines;
    let used = stats.iter().find_map(|line| line.strip_prefix("stack: ")?.split(' ').next()?.parse().ok());
    used.with_context(|| format!("{} does not say how much stack it used: {stats:?}", board.name))
}

/// What is plugged into the board.
#[derive(Debug)]
pub(crate) enum Media {
    None,
    /// The model's file itself, and its length.
    File(PathBuf, u64),
    /// A card that was made for this run, and goes with it.
    Card(PathBuf),
    /// What [`image`](crate::image) has made for this board.
    Image(PathBuf),
}

impl Media {
    /// Makes the card, where the board has a slot for one.
    ///
    /// # Errors
    /// The model cannot be read, or the card not written.
    pub(crate) fn prepare(board: &Board, model: Option<&Path>) -> Result<Self> {
        let Some(model) = model else {
            return Ok(Self::None);
        };
        let model = model.canonicalize().with_context(|| model.display().to_string())?;
        let len = fs::metadata(&model)?.len();
        match board.storage {
            Storage::SdCard => {
                let folder = root().join("target/xtask");
                fs::create_dir_all(&folder)?;
                // Other runs may be under way.
                static CARDS: AtomicUsize = AtomicUsize::new(0);
                let n = CARDS.fetch_add(1, Ordering::Relaxed);
                let image = Self::Card(folder.join(format!("{}-{}-{n}.img", board.name, std::process::id())));
                if let Self::Card(path) = &image {
                    card::write(path, &Contents::only(&model))?;
                }
                Ok(image)
            }
            _ => Ok(Self::File(model, len)),
        }
    }
}

impl Drop for Media {
    fn drop(&mut self) {
        if let Self::Card(path) = self {
            let _ = fs::remove_file(path);
        }
    }
}

/// The emulator's command line, console on standard input and output. `log` is the socket that takes log frames.
///
/// # Errors
/// The board has no emulator, the model does not fit where it belongs, or a path is not UTF-8.
pub(crate) fn command(board: &Board, elf: &Path, media: &Media, log: Option<&Path>) -> Result<Command> {
    let Emulator { qemu, machine } = board.emulator()?;
    let mut qemu = Command::new(qemu);
    qemu.args(machine).args(["-display", "none", "-monitor", "none"]);
    qemu.args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]);
    let mut semihosting = String::from("enable=on,target=native");
    if let Some(log) = log {
        qemu.arg("-chardev").arg(format!("socket,id=log,path={}", value(log)?));
        semihosting += ",chardev=log";
    }
    match (board.storage, media) {
        (_, Media::None) => {}
        (Storage::Memory { address, bytes, .. }, Media::File(model, len)) if *len <= bytes - 8 => {
            qemu.arg("-device").arg(format!("loader,file={},addr={address:#x},force-raw=on", value(model)?));
            // The firmware finds the length in the last eight bytes.
            qemu.arg("-device").arg(format!("loader,addr={:#x},data={len:#x},data-len=8", address + bytes - 8));
        }
        (Storage::Memory { larger: Larger::HostFile, .. }, Media::File(model, _)) => {
            semihosting += &format!(",arg={},arg={}", board.package(), value(model)?);
        }
        (Storage::Memory { .. }, Media::Image(image)) => {
            qemu.arg("-device").arg(format!("loader,file={}", value(image)?));
        }
        (Storage::Virtio, Media::File(model, _) | Media::Image(model)) => {
            qemu.arg("-drive").arg(format!("if=none,id=model,format=raw,readonly=on,file={}", value(model)?));
            qemu.args(["-device", "virtio-blk-device,drive=model"]);
        }
        (_, Media::Card(image) | Media::Image(image)) => {
            qemu.arg("-drive").arg(format!("if=sd,format=raw,file={}", value(image)?));
        }
        (Storage::Memory { bytes, .. }, Media::File(model, len)) => {
            bail!("{} has {len} bytes, the memory of {} {bytes}", model.display(), board.name)
        }
        (Storage::SdCard, Media::File(model, _)) => bail!("{} is no card image", model.display()),
    }
    qemu.args(["-semihosting-config", &semihosting]).arg("-kernel").arg(elf);
    Ok(qemu)
}

/// A path inside an option: QEMU doubles commas.
///
/// # Errors
/// It is not UTF-8.
pub(crate) fn value(path: &Path) -> Result<String> {
    Ok(path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?.replace(',', ",,"))
}

/// Starts the emulator with its console on pipes.
///
/// # Errors
/// It is not installed.
pub(crate) fn start(command: &mut Command) -> Result<Child> {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    child.with_context(|| format!("cannot start {}: `cargo xtask setup`", command.get_program().display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boards::BOARDS;

    fn arguments(name: &str, media: &Media) -> String {
        let command = command(Board::named(name).unwrap(), Path::new("fw.elf"), media, None).unwrap();
        process::line(&command)
    }

    #[test]
    fn each_storage_gets_the_model_its_own_way() {
        let file = Media::File("/models/a,b.gguf".into(), 0x1234);
        let line = arguments("mps3-an547", &file);
        assert!(line.contains("loader,file=/models/a,,b.gguf,addr=0x60000000,force-raw=on"), "{line}");
        assert!(line.contains("loader,addr=0xdffffff8,data=0x1234,data-len=8"), "{line}");
        let line = arguments("riscv64-virt", &file);
        assert!(line.contains("readonly=on,file=/models/a,,b.gguf -device virtio-blk-device,drive=model"), "{line}");
        let card = Media::Card("/cards/x.img".into());
        assert!(arguments("raspi3b", &card).contains("-drive if=sd,format=raw,file=/cards/x.img"));
        let image = Media::Image("/x.img".into());
        assert!(arguments("lm3s6965evb", &image).contains("-drive if=sd,format=raw,file=/x.img"));
        assert!(arguments("mps2-an500", &image).contains("-device loader,file=/x.img "));
        assert!(arguments("aarch64-virt", &image).contains(",file=/x.img -device virtio-blk-device,drive=model"));
    }

    #[test]
    fn an_empty_slot_has_no_drive() {
        for board in BOARDS.iter().filter(|board| board.is_emulated()) {
            let line = arguments(board.name, &Media::None);
            assert!(!line.contains("-drive") && !line.contains("loader") && line.ends_with("-kernel fw.elf"), "{line}");
        }
    }

    #[test]
    fn a_model_larger_than_the_memory_is_read_from_its_file_or_refused() {
        let line = arguments("mps2-an500", &Media::File("/m.gguf".into(), 1 << 24));
        assert!(line.contains(",arg=gptrickle-mps2-an500,arg=/m.gguf") && !line.contains("loader"), "{line}");
        let large = Media::File("/m.gguf".into(), 1 << 31);
        let error = command(Board::named("mps3-an547").unwrap(), Path::new("fw.elf"), &large, None).unwrap_err();
        assert_eq!(error.to_string(), "/m.gguf has 2147483648 bytes, the memory of mps3-an547 2147483648");
    }
}
