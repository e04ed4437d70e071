//! `cargo xtask test`: every check, in order, and an account of what ran.

use anyhow::{Context, Result, ensure};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::boards::{BOARDS, Board};
use crate::card_reads;
use crate::checks;
use crate::faults;
use crate::firmware;
use crate::panics::Places as Panics;
use crate::parity;
use crate::process::{self, root};
use crate::setup;
use crate::toolchain::{Library, Places};

/// The target that proves `gptrickle-core` needs neither an operating system nor an allocator.
const BARE_METAL: &str = "thumbv7em-none-eabihf";

/// Runs every check; `host_only` leaves out what needs a board, and names of boards leave out everything else. Fails if
/// any check did.
///
/// # Errors
/// A name is no board's, or the account cannot be printed.
pub(crate) fn test(host_only: bool, only: &[String]) -> Result<ExitCode> {
    let boards = match only {
        [] => BOARDS.iter().collect(),
        names => names.iter().map(|name| Board::named(name)).collect::<Result<Vec<_>>>()?,
    };
    let mut report = Report::new();
    if !host_only {
        report.step("set-up", set_up);
    }
    if only.is_empty() {
        host(&mut report, host_only);
    }
    if host_only {
        report.skip("firmware", "--host-only: NO FIRMWARE WAS BUILT OR RUN");
    } else {
        firmware(&mut report, &boards);
    }
    report.close()
}

/// What needs no board.
fn host(report: &mut Report, host_only: bool) {
    report.step("format", || component(root(), "fmt", &["--all", "--check"]));
    report.step("fuzz targets' format", || component(&root().join("tests/fuzz"), "fmt", &["--check"]));
    report.step("file sizes", file_sizes);
    report.step("dependencies", dependencies);
    report.step("clippy", || {
        component(root(), "clippy", &["--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])
    });
    report.step("instruction counter", instruction_counter);
    report.step("documentation", || {
        let doc = ["--workspace", "--no-deps", "--locked"];
        one(process::run(cargo("doc").args(doc).env("RUSTDOCFLAGS", "-D warnings")))
    });
    report.step("host tests", || counted(cargo("test").args(["--workspace", "--locked", "--no-fail-fast"])));
    report.step("core on bare metal", || bare_metal(host_only));
}

/// Firmware: checked, built, and run in the emulators.
fn firmware(report: &mut Report, boards: &[&'static Board]) {
    let folder = root().join("firmware");
    report.step("firmware format", || component(&folder, "fmt", &["--all", "--check"]));
    report.step("firmware host tests", || {
        counted(cargo("test").args(["--locked", "--no-fail-fast"]).current_dir(&folder))
    });
    let mut built = Vec::new();
    for &board in boards {
        report.step(&format!("{} firmware", board.name), || {
            let elf = firmware::build(board, &[])?;
            // A real board's firmware has to link here; what it does is seen on the board.
            if board.is_emulated() {
                built.push((board, elf));
            }
            Ok(Outcome::passed(1))
        });
        report.step(&format!("{} clippy", board.name), || firmware_clippy(board));
    }
    report.step("panicking paths", || panicking_paths(&built));
    report.step("host binary", || one(parity::build_host()));
    let mut full_size = Vec::new();
    report.step("models of full size", || {
        full_size = parity::full_size_models()?;
        Ok(Outcome::passed(full_size.len()))
    });
    report.step("boards and host", || {
        let mut checks = parity::checks(&built, &full_size)?;
        checks.extend(card_reads::checks(&built)?);
        checks.extend(faults::checks(&built));
        let outcomes = checks::run(checks);
        for (board, _) in &built {
            let of_board = || outcomes.iter().filter(|outcome| outcome.board == board.name);
            let passed = of_board().filter(|outcome| outcome.passed).count();
            let took: Duration = of_board().map(|outcome| outcome.took).sum();
            eprintln!("{:12} {passed} of {} passed, {:.1} s", board.name, of_board().count(), took.as_secs_f64());
        }
        let passed = outcomes.iter().filter(|outcome| outcome.passed).count();
        Ok(Outcome::Ran(Tally { passed, failed: outcomes.len() - passed, skipped: 0 }))
    });
}

fn cargo(verb: &str) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.arg(verb).current_dir(root());
    cargo
}

fn set_up() -> Result<Outcome> {
    setup::install()?;
    Ok(Outcome::passed(1))
}

/// A cargo verb that is a toolchain component of its own, so that it may not be there.
fn component(folder: &Path, verb: &str, arguments: &[&str]) -> Result<Outcome> {
    if cargo(verb).arg("--version").output().is_ok_and(|output| output.status.success()) {
        one(process::run(cargo(verb).args(arguments).current_dir(folder)))
    } else {
        Ok(Outcome::Skipped(format!("this toolchain has no cargo {verb}: rustup component add it")))
    }
}

/// Runs cargo's tests and counts them.
fn counted(command: &mut Command) -> Result<Outcome> {
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| process::line(command))?;
    let stdout = child.stdout.take().context("cargo test has no output")?;
    let mut tally = Tally::default();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line?;
        std::io::stdout().write_all(&[&line[..], b"\n"].concat())?;
        tally += Tally::of(&String::from_utf8_lossy(&line)).unwrap_or_default();
    }
    if !child.wait()?.success() {
        // A test that does not compile is in no count.
        tally.failed = tally.failed.max(1);
    }
    Ok(Outcome::Ran(tally))
}

/// No file is over a megabyte but models and vectors.
fn file_sizes() -> Result<Outcome> {
    let Ok(files) = process::output(Command::new("git").args(["ls-files", "-z"]).current_dir(root())) else {
        return Ok(Outcome::Skipped("git does not list the files".into()));
    };
    for file in files.split_terminator('\0').filter(|file| !file.ends_with(".gguf") && !file.contains("/vectors/")) {
        // A file that was deleted and not yet committed is no concern here.
        let bytes = std::fs::metadata(root().join(file)).map_or(0, |metadata| metadata.len());
        ensure!(bytes <= 1 << 20, "{file} has {bytes} bytes");
    }
    Ok(Outcome::passed(1))
}

/// Licences, sources and bans, workspace by workspace, as `.cargo/deny.toml` has them.
fn dependencies() -> Result<Outcome> {
    if !cargo("deny").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return Ok(Outcome::Skipped("no cargo deny: cargo install --locked cargo-deny".into()));
    }
    let workspaces = ["Cargo.toml", "firmware/Cargo.toml", "tests/fuzz/Cargo.toml", "xtask/counter/Cargo.toml"];
    for manifest in workspaces {
        let deny = ["--config", ".cargo/deny.toml", "--manifest-path", manifest];
        process::run(cargo("deny").args(deny).args(["check", "bans", "licenses", "sources"]))?;
    }
    Ok(Outcome::passed(workspaces.len()))
}

/// The plugin for QEMU, which is no member of the workspace.
fn instruction_counter() -> Result<Outcome> {
    let folder = root().join("xtask/counter");
    component(&folder, "fmt", &["--check"])?;
    let target = root().join("target/counter");
    let target = target.to_str().context("the path of this repository is not UTF-8")?;
    component(&folder, "clippy", &["--locked", "--target-dir", target, "--", "-D", "warnings"])
}

fn bare_metal(host_only: bool) -> Result<Outcome> {
    let toolchain = match Places::here().resolve(BARE_METAL) {
        Ok(toolchain) => toolchain,
        Err(why) if host_only => return Ok(Outcome::Skipped(why.to_string())),
        Err(why) => return Err(why),
    };
    eprintln!("xtask: {}", toolchain.describe());
    let mut cargo = toolchain.cargo("build", BARE_METAL, Library::Core, &[]);
    one(process::run(cargo.current_dir(root()).args(["--release", "--package", "gptrickle-core"])))
}

/// No path through the core of any firmware leads to a panic.
fn panicking_paths(built: &[(&Board, PathBuf)]) -> Result<Outcome> {
    built.iter().try_for_each(|(board, elf)| Panics::of(elf)?.none_in_core().context(board.name))?;
    Ok(Outcome::passed(built.len()))
}

fn firmware_clippy(board: &Board) -> Result<Outcome> {
    let toolchain = Places::here().resolve(board.target)?;
    if !toolchain.has_clippy() {
        return Ok(Outcome::Skipped(format!("{} has no clippy", toolchain.describe())));
    }
    one(process::run(firmware::cargo("clippy", board, &toolchain).args(["--", "-D", "warnings"])))
}

/// A step that counts as one check.
fn one(result: Result<()>) -> Result<Outcome> {
    result.map(|()| Outcome::passed(1))
}

/// How many checks went which way.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Tally {
    /// Reads the line with which a test program ends; `None` for any other.
    fn of(line: &str) -> Option<Self> {
        let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
        let count = |name: &str| {
            counts.split(';').find_map(|part| part.trim().strip_suffix(name)?.trim().parse::<usize>().ok())
        };
        Some(Self { passed: count("passed")?, failed: count("failed")?, skipped: count("ignored")? })
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

/// What came of a step.
enum Outcome {
    Ran(Tally),
    Skipped(String),
}

impl Outcome {
    fn passed(count: usize) -> Self {
        Self::Ran(Tally { passed: count, ..Tally::default() })
    }
}

/// The steps so far.
struct Report {
    start: Instant,
    lines: Vec<(String, Duration, String)>,
    tally: Tally,
}

impl Report {
    fn new() -> Self {
        Self { start: Instant::now(), lines: Vec::new(), tally: Tally::default() }
    }

    /// Announces a step, runs it and notes how it went. A failure does not stop the steps after it.
    fn step(&mut self, name: &str, run: impl FnOnce() -> Result<Outcome>) {
        eprintln!("\n== {name}");
        let start = Instant::now();
        let (tally, note) = match run() {
            Ok(Outcome::Ran(tally)) => {
                (tally, if tally.failed > 0 { format!("FAILED: {tally}") } else { tally.to_string() })
            }
            Ok(Outcome::Skipped(why)) => (Tally { skipped: 1, ..Tally::default() }, format!("SKIPPED: {why}")),
            Err(error) => (Tally { failed: 1, ..Tally::default() }, format!("FAILED: {error:#}")),
        };
        let took = start.elapsed();
        eprintln!("== {name}: {note} ({:.1} s)", took.as_secs_f64());
        self.tally += tally;
        self.lines.push((name.to_owned(), took, note));
    }

    fn skip(&mut self, name: &str, why: &str) {
        self.step(name, || Ok(Outcome::Skipped(why.to_owned())));
    }

    /// Prints the account, the counts in its last line; a failure if anything failed.
    fn close(self) -> Result<ExitCode> {
        let mut text = String::new();
        let width = self.lines.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
        for (name, took, note) in &self.lines {
            let first = note.lines().next().unwrap_or_default();
            writeln!(text, "{name:width$} {:7.1} s  {first}", took.as_secs_f64())?;
        }
        writeln!(text, "{:width$} {:7.1} s", "all", self.start.elapsed().as_secs_f64())?;
        print!("\n{text}{}\n", self.tally);
        std::io::stdout().flush()?;
        Ok(if self.tally.failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_come_from_the_last_line_of_each_test_program() {
        let line = "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s";
        assert_eq!(Tally::of(line), Some(Tally { passed: 12, failed: 0, skipped: 1 }));
        let line = "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(Tally::of(line), Some(Tally { passed: 3, failed: 2, skipped: 0 }));
        assert_eq!(Tally::of("test result::parse ... ok"), None);
    }

    #[test]
    fn one_failure_fails_the_run_and_a_skipped_step_does_not() {
        let mut report = Report::new();
        report.step("good", || Ok(Outcome::passed(2)));
        report.skip("absent", "no card");
        assert_eq!(report.tally.to_string(), "2 passed, 0 failed, 1 skipped");
        report.step("bad", || anyhow::bail!("no"));
        assert_eq!(report.tally.to_string(), "2 passed, 1 failed, 1 skipped");
        assert_eq!(report.close().unwrap(), ExitCode::FAILURE);
    }
}
