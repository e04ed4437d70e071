//! `cargo xtask flash`: firmware and model to a board on the desk, step by step, and then its console.

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use crate::boards::{Board, Boot, Larger, Runs, Storage};
use crate::console::Console;
use crate::firmware;
use crate::image;
use crate::parity;
use crate::plan;
use crate::process::{self, root};
use crate::qemu;
use crate::toolchain::Places;

/// What to flash, where.
#[derive(Args)]
pub(crate) struct Options {
    /// The board; `cargo xtask boards` lists them
    #[arg(long, short)]
    board: String,
    /// The GGUF file
    #[arg(long, short)]
    model: PathBuf,
    /// The serial port of the board's console; the only /dev/ttyACM there is, if left out
    #[arg(long)]
    port: Option<PathBuf>,
    /// Print each step and its commands, and do none
    #[arg(long)]
    dry_run: bool,
}

const PROBE_RS: &str = "probe-rs";
/// Reading a whole model takes a while on a slow card.
const PATIENCE: Duration = Duration::from_secs(600);

/// Where the model goes.
#[derive(Debug, PartialEq)]
enum Place {
    /// Into memory that probe-rs writes.
    Flash,
    /// Onto a card that a person writes and inserts.
    Card,
}

/// All there is to know before the first step.
struct Job<'a> {
    board: &'static Board,
    chip: &'static str,
    /// Whether the firmware lies in RAM.
    in_ram: bool,
    model: &'a Path,
    place: Place,
    image: PathBuf,
    elf: PathBuf,
}

/// Plans, builds, writes, verifies, and then is the board's console.
///
/// # Errors
/// The model does not fit, something does not build, probe-rs or the probe is missing, or what the board reads is not
/// the file.
pub(crate) fn flash(options: &Options) -> Result<ExitCode> {
    let board = Board::named(&options.board)?;
    let len = fs::metadata(&options.model).with_context(|| options.model.display().to_string())?.len();
    let (chip, in_ram) = match board.runs {
        Runs::Flashed { chip, in_ram } => (chip, in_ram),
        Runs::Emulated(_) => bail!("{0} is emulated: cargo xtask qemu --board {0}", board.name),
        Runs::FromCard(boot) => return card_alone(board, boot, options),
    };
    let place = place(board, len)?;
    let kind = if place == Place::Flash { "elf" } else { "img" };
    let image = root().join(format!("target/xtask/{}-model.{kind}", board.name));
    let job = Job { board, chip, in_ram, model: &options.model, place, image, elf: firmware::path(board) };
    if options.dry_run {
        print!("{}", job.steps(options.port.as_deref())?);
        return Ok(ExitCode::SUCCESS);
    }
    job.run(options.port.as_deref())
}

/// Where a model of so many bytes goes.
fn place(board: &Board, len: u64) -> Result<Place> {
    match board.storage {
        Storage::Memory { bytes, .. } if len <= bytes - 8 => Ok(Place::Flash),
        Storage::Memory { larger: Larger::Card, .. } | Storage::SdCard => Ok(Place::Card),
        Storage::Memory { bytes, .. } => {
            bail!("the model has {len} bytes, the flash of {} holds {}", board.name, bytes - 8)
        }
        Storage::Virtio => bail!("{} has no storage of its own", board.name),
    }
}

/// A board that boots from its card has nothing to be flashed.
fn card_alone(board: &'static Board, Boot { add, .. }: Boot, options: &Options) -> Result<ExitCode> {
    let image = root().join(format!("target/xtask/{}-card.img", board.name));
    println!("1. plan\n   {}", process::line(&plan::command(board, &options.model)));
    println!("2. write the card's image, firmware and model\n   {}", image_line(board, &options.model, &image));
    println!("3. write it to a card, which erases what is on it\n   {}", dd(&image));
    println!("4. add the files of the board's maker to its partition: {add}");
    println!("5. insert it, connect a serial adapter, switch the board on");
    if !options.dry_run {
        parity::build_host()?;
        plan::fits(board, &options.model)?;
        fs::create_dir_all(root().join("target/xtask"))?;
        image::write(board, &options.model, &image)?;
        println!("done: 1 and 2; the rest is for your hands");
    }
    Ok(ExitCode::SUCCESS)
}

fn image_line(board: &Board, model: &Path, image: &Path) -> String {
    let mut line = Command::new("cargo");
    line.args(["xtask", "image", "--board", board.name, "--model"]).arg(model).arg("--output").arg(image);
    process::line(&line)
}

fn dd(image: &Path) -> String {
    format!("sudo dd if={} of=/dev/YOUR-CARD bs=4M conv=fsync", image.display())
}

impl Job<'_> {
    /// `probe-rs verb --chip … file`
    fn probe(&self, verb: &str, file: Option<&Path>) -> Command {
        let mut probe = Command::new(PROBE_RS);
        probe.args([verb, "--chip", self.chip, "--non-interactive"]).args(file);
        probe
    }

    /// Starts the board: with what is in its flash, or with what probe-rs brings, and then stays attached to.
    fn start(&self) -> Command {
        if self.in_ram { self.probe("run", Some(&self.elf)) } else { self.probe("reset", None) }
    }

    /// The board runs, as long as what is returned is kept.
    fn started(&self) -> Result<Attached> {
        let mut start = self.start();
        if !self.in_ram {
            announced(&mut start)?;
            return Ok(Attached(None));
        }
        eprintln!("xtask: {}", process::line(&start));
        let quiet = start.stdin(Stdio::null()).stdout(Stdio::null());
        Ok(Attached(Some(quiet.spawn().context("cannot start probe-rs")?)))
    }

    /// What has the board look for the card, where it looks into its flash first.
    fn no_model(&self) -> Option<PathBuf> {
        let name = format!("{}-no-model.elf", self.board.name);
        matches!(self.board.storage, Storage::Memory { .. }).then(|| self.image.with_file_name(name))
    }

    /// Every step in words, and the commands for it.
    fn steps(&self, port: Option<&Path>) -> Result<String> {
        let toolchain = Places::here().resolve(self.board.target)?;
        let build = process::line(&firmware::cargo("build", self.board, &toolchain));
        let build = match self.board.rustflags {
            [] => build,
            flags => format!("RUSTFLAGS='{}' {build}", flags.join(" ")),
        };
        let port = port.unwrap_or(Path::new("/dev/ttyACM0"));
        let mut steps = vec![
            ("plan; a model that does not fit is refused", vec![process::line(&plan::command(self.board, self.model))]),
            ("build the firmware, in firmware/", vec![build]),
            ("write the model's image", vec![image_line(self.board, self.model, &self.image)]),
            ("look for a probe", vec![process::line(Command::new(PROBE_RS).arg("list"))]),
        ];
        match self.place {
            Place::Flash => steps.push((
                "write the model to the board's flash",
                vec![process::line(&self.probe("download", Some(&self.image)))],
            )),
            Place::Card => {
                steps.push(("write the card, which erases what is on it, and insert it", vec![dd(&self.image)]));
                if let Some(none) = self.no_model() {
                    let download = process::line(&self.probe("download", Some(&none)));
                    steps.push(("tell the board's flash that it holds no model", vec![download]));
                }
            }
        }
        if !self.in_ram {
            steps.push(("write the firmware", vec![process::line(&self.probe("download", Some(&self.elf)))]));
        }
        steps.extend([
            (
                "open the console, start the board, compare the checksum of what it reads with the file's",
                vec![
                    process::line(&serial(port)),
                    process::line(&self.start()),
                    format!(":checksum, which has to tell {:08x}", checksum(self.model)?),
                    ":check, which has to find every kernel exact".to_owned(),
                ],
            ),
            (
                "be the console; the log is seen in another terminal with",
                vec![process::line(&self.probe("attach", Some(&self.elf)))],
            ),
        ]);
        let mut text = String::new();
        for (n, (words, commands)) in (1..).zip(&steps) {
            writeln!(text, "{n}. {words}")?;
            commands.iter().try_for_each(|command| writeln!(text, "   {command}"))?;
        }
        Ok(text)
    }

    fn run(&self, port: Option<&Path>) -> Result<ExitCode> {
        parity::build_host()?;
        plan::fits(self.board, self.model)?;
        let elf = firmware::build(self.board, &[])?;
        fs::create_dir_all(root().join("target/xtask"))?;
        image::write(self.board, self.model, &self.image)?;
        probe_is_there()?;
        let port = port.map_or_else(only_port, |port| Ok(port.to_owned()))?;
        match self.place {
            Place::Flash => announced(&mut self.probe("download", Some(&self.image)))?,
            Place::Card => {
                eprintln!("xtask: write the card and insert it, then press Enter:\n  {}", dd(&self.image));
                std::io::stdin().read_line(&mut String::new())?;
                if let Some(none) = self.no_model() {
                    image::no_model(self.board, &none)?;
                    announced(&mut self.probe("download", Some(&none)))?;
                }
            }
        }
        if !self.in_ram {
            announced(&mut self.probe("download", Some(&elf)))?;
        }
        self.verify(open(&port)?)?;
        eprintln!("xtask: the log: {}", process::line(&self.probe("attach", Some(&elf))));
        // The console starts with a new greeting.
        let child = open(&port)?;
        let _attached = self.started()?;
        let status = qemu::talk(child, &[":echo on".to_owned()])?;
        Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)))
    }

    /// The board reads the file that was sent, and multiplies as the definition does.
    fn verify(&self, child: Child) -> Result<()> {
        let mut console = Console::new(self.board.name, child, PATIENCE)?;
        let _attached = self.started()?;
        let greeting = console.start()?;
        if let Some(error) = greeting.error() {
            bail!("{}: {error}", self.board.name);
        }
        let told = console.command(":checksum")?.lines;
        same(&told, checksum(self.model)?)?;
        let kernel = console.command(":check")?.lines;
        let wanted = format!("kernel: {}", self.board.kernel);
        ensure!(kernel.contains(&wanted), "the board does not say {wanted}: {kernel:?}");
        eprintln!("xtask: verified: {}", told.join("; "));
        Ok(())
    }
}

/// probe-rs, while a board runs what it brought; let go of at the end.
struct Attached(Option<Child>);

impl Drop for Attached {
    fn drop(&mut self) {
        if let Some(probe) = &mut self.0 {
            // It may have ended by itself.
            let _ = probe.kill();
            let _ = probe.wait();
        }
    }
}

/// The board's words on its checksum against the file's.
fn same(told: &[String], crc: u32) -> Result<()> {
    let found = told.iter().find_map(|line| line.split_once("CRC-32 ")?.1.get(..8));
    let found = found.with_context(|| format!("the board tells no checksum: {told:?}"))?;
    ensure!(
        found == format!("{crc:08x}"),
        "the board reads a model with CRC-32 {found}, the file's is {crc:08x}: flash it again; if that does not help, see \
         firmware/BRINGUP.md"
    );
    Ok(())
}

/// The CRC-32 of a file, as in zip.
fn checksum(path: &Path) -> Result<u32> {
    let mut hasher = crc32fast::Hasher::new();
    let mut file = fs::File::open(path).with_context(|| path.display().to_string())?;
    let mut bytes = vec![0; 1 << 20];
    loop {
        match std::io::Read::read(&mut file, &mut bytes)? {
            0 => return Ok(hasher.finalize()),
            n => hasher.update(&bytes[..n]),
        }
    }
}

fn announced(command: &mut Command) -> Result<()> {
    eprintln!("xtask: {}", process::line(command));
    process::run(command)
}

/// probe-rs is installed and sees a probe.
fn probe_is_there() -> Result<()> {
    let list = Command::new(PROBE_RS).arg("list").output();
    probes(list.ok().map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).as_deref())
}

/// What to do about this answer of `probe-rs list`; `None`: it does not start.
fn probes(list: Option<&str>) -> Result<()> {
    match list {
        None => bail!(
            "probe-rs is not installed: `cargo install --locked probe-rs-tools` (on Debian and Ubuntu first `apt-get \
             install libudev-dev pkg-config`), or see https://probe.rs"
        ),
        Some(list) if list.contains("No debug probes") => bail!(
            "no debug probe is connected, or this user may not use it: plug in the board's ST-LINK port or a debug probe; \
             on Linux its udev rule is missing if `lsusb` shows it (https://probe.rs/docs/getting-started/probe-setup)"
        ),
        Some(_) => Ok(()),
    }
}

/// The port, where there is no choice.
fn only_port() -> Result<PathBuf> {
    let ports = fs::read_dir("/dev")?.flatten().map(|entry| entry.path());
    let ports: Vec<_> = ports.filter(|path| path.to_string_lossy().starts_with("/dev/ttyACM")).collect();
    match &ports[..] {
        [port] => Ok(port.clone()),
        [] => bail!("no serial port /dev/ttyACM… is there: connect the board's console, or name it with --port"),
        _ => bail!("which serial port is the board's console? Name one with --port: {ports:?}"),
    }
}

/// A program whose standard input and output are the port's: 115200 baud, nothing changed on the way.
fn serial(port: &Path) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "stty -F \"$1\" 115200 raw -echo && { cat \"$1\" & exec cat >\"$1\"; }", "sh"]).arg(port);
    shell
}

fn open(port: &Path) -> Result<Child> {
    ensure!(port.exists(), "there is no {}: connect the board's console", port.display());
    let mut command = serial(port);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start sh")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(board: &str, model: &'static Path, place: Place) -> Job<'static> {
        let board = Board::named(board).unwrap();
        let Runs::Flashed { chip, in_ram } = board.runs else { panic!("{} is not flashed", board.name) };
        Job { board, chip, in_ram, model, place, image: "m.elf".into(), elf: "fw".into() }
    }

    #[test]
    fn a_model_goes_to_flash_while_it_fits_then_to_a_card() {
        let disco = Board::named("stm32h747i-disco").unwrap();
        assert_eq!(place(disco, (128 << 20) - 8).unwrap(), Place::Flash);
        assert_eq!(place(disco, (128 << 20) - 7).unwrap(), Place::Card);
        let fixed =
            Board { storage: Storage::Memory { address: 0, bytes: 1 << 20, larger: Larger::Nowhere }, ..disco.clone() };
        let error = place(&fixed, 1 << 20).unwrap_err().to_string();
        assert_eq!(error, "the model has 1048576 bytes, the flash of stm32h747i-disco holds 1048568");
    }

    #[test]
    fn model_and_firmware_are_written_to_the_boards_own_chip() {
        let job = job("pico-plus-2", Path::new("m.gguf"), Place::Flash);
        let line = process::line(&job.probe("download", Some(&job.image)));
        assert_eq!(line, "probe-rs download --chip RP235x --non-interactive m.elf");
        assert_eq!(process::line(&job.probe("reset", None)), "probe-rs reset --chip RP235x --non-interactive");
    }

    #[test]
    fn firmware_in_ram_is_brought_at_every_start() {
        let job = job("stm32n6570-dk", Path::new("m.gguf"), Place::Flash);
        assert_eq!(process::line(&job.start()), "probe-rs run --chip STM32N657 --non-interactive fw");
    }

    #[test]
    fn an_older_model_in_flash_does_not_hide_a_card() {
        let job = job("pico-plus-2", Path::new("m.gguf"), Place::Card);
        assert_eq!(job.no_model(), Some("pico-plus-2-no-model.elf".into()));
        let card = Board { storage: Storage::SdCard, ..job.board.clone() };
        assert_eq!(Job { board: Box::leak(Box::new(card)), ..job }.no_model(), None);
    }

    #[test]
    fn a_wrong_or_missing_checksum_is_told() {
        let told = |line: &str| same(&[line.to_owned()], 0x1234_abcd).map_err(|error| error.to_string());
        assert_eq!(told("model: 9 bytes, CRC-32 1234abcd, at 1.000 MB/s"), Ok(()));
        assert!(told("model: 9 bytes, CRC-32 0000abcd, at 1.000 MB/s").unwrap_err().contains("the file's is 1234abcd"));
        assert!(told("no model").unwrap_err().starts_with("the board tells no checksum"));
    }

    #[test]
    fn what_is_missing_is_said_in_words_that_help() {
        assert!(probes(None).unwrap_err().to_string().contains("cargo install --locked probe-rs-tools"));
        assert!(probes(Some("No debug probes were found.\n")).unwrap_err().to_string().contains("udev rule"));
        assert!(probes(Some("[0]: STLink V3 -- 0483:374e:0041 (ST-LINK)\n")).is_ok());
    }

    #[test]
    fn a_port_passes_bytes_both_ways_as_they_are() {
        let line = process::line(&serial(Path::new("/dev/tty A")));
        assert!(line.ends_with("sh '/dev/tty A'") && line.contains("115200 raw -echo"), "{line}");
    }
}
