//! `cargo xtask fuzz`: hostile input in libFuzzer, and an account of what was run.
//!
//! What is fuzzed lives in `tests/src/fuzzed`, the programs around it in `tests/fuzz`. Corpora grow in `target/fuzz`, from
//! one run to the next.

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::process::{self, root};

/// Memory that one input may take, the fuzzer's own included, in MiB.
const MEMORY_MIB: u32 = 1024;
/// Seconds that one input may take: a longer one is a broken promise, and none that is shorter is reported.
const PATIENCE: u32 = 60;
/// The longest input, in bytes.
const LONGEST: u32 = 1 << 16;

#[derive(Args)]
pub(crate) struct Options {
    /// What to fuzz; without any, the targets are listed
    targets: Vec<String>,
    /// All of them, one after the other
    #[arg(long, conflicts_with = "targets")]
    all: bool,
    /// How long each target runs, such as 90s, 10m or 1h
    #[arg(long, default_value = "10m", value_parser = duration)]
    time: Duration,
    /// Check that every target still compiles, and run none
    #[arg(long, conflicts_with_all = ["targets", "all"])]
    check: bool,
}

/// What libFuzzer says of itself.
#[derive(Debug, Clone, Default, PartialEq)]
struct Account {
    executions: u64,
    edges: u64,
    corpus: u64,
    crash: Option<String>,
}

/// Fuzzes one target, several, or all; or lists them.
///
/// # Errors
/// Something is missing, or an input broke a promise: the message says what to do.
pub(crate) fn fuzz(options: &Options) -> Result<()> {
    if options.check {
        return check();
    }
    let list = process::output(seeds().stderr(Stdio::inherit()))?;
    let known: Vec<&str> = list.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let targets = if options.all { known.clone() } else { options.targets.iter().map(String::as_str).collect() };
    if let Some(unknown) = targets.iter().find(|target| !known.contains(target)) {
        bail!("nothing fuzzed is called {unknown}; there are {}", known.join(", "));
    }
    if targets.is_empty() {
        print!("{list}");
        return Ok(());
    }
    tools()?;
    let folder = root().join("target/fuzz/seeds");
    process::run(seeds().arg(&folder))?;
    let mut crashes = Vec::new();
    for target in targets {
        // Beforehand, as compiling is no fuzzing.
        process::run(cargo_fuzz("build").arg("--target-dir").arg(build_folder()).arg(target))?;
        let start = Instant::now();
        let account = run(target, options.time)?;
        println!("{}", account.line(target, start.elapsed()));
        crashes.extend(account.crash.map(|input| format!("{target}: {input}")));
    }
    ensure!(
        crashes.is_empty(),
        "a promise was broken by\n{}\nCopy it to tests/fuzz/regressions/TARGET, where `cargo test -p gptrickle-tests \
         --test fuzzed` runs it, and mend the code",
        crashes.join("\n")
    );
    Ok(())
}

/// Compiles every target's program, for nothing but the compiler's word.
fn check() -> Result<()> {
    tools()?;
    process::run(cargo_fuzz("check").arg("--target-dir").arg(build_folder()))
}

/// The program that lists the targets, or writes their seeds.
fn seeds() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["run", "--quiet", "--locked", "--package", "gptrickle-tests", "--example", "seeds", "--"]);
    cargo.current_dir(root());
    cargo
}

fn build_folder() -> PathBuf {
    root().join("target/fuzz/build")
}

fn cargo_fuzz(verb: &str) -> Command {
    let mut cargo = Command::new("cargo");
    // Ours would stand in the way of rustup's choice.
    cargo.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO").env_remove("RUSTC");
    cargo.args(["+nightly", "fuzz", verb, "--fuzz-dir", "tests/fuzz"]).current_dir(root());
    cargo
}

/// Says what is missing, if anything is.
fn tools() -> Result<()> {
    let works = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
    ensure!(
        works(Command::new("rustc").arg("+nightly").arg("--version").env_remove("RUSTUP_TOOLCHAIN")),
        "fuzzing needs a nightly compiler from rustup: rustup toolchain install nightly --profile minimal"
    );
    ensure!(
        works(Command::new("cargo").args(["fuzz", "--version"])),
        "fuzzing needs cargo-fuzz: cargo install --locked cargo-fuzz"
    );
    ensure!(
        works(Command::new("c++").arg("--version")) || std::env::var_os("CXX").is_some(),
        "libFuzzer is written in C++ and compiled here: install a compiler, on Debian and Ubuntu apt-get install g++"
    );
    Ok(())
}

/// Runs one target to its end, or to its first crash.
fn run(target: &str, time: Duration) -> Result<Account> {
    let folder = root().join("target/fuzz");
    let corpus = folder.join("corpus").join(target);
    std::fs::create_dir_all(&corpus).with_context(|| corpus.display().to_string())?;
    let mut fuzz = cargo_fuzz("run");
    fuzz.arg("--target-dir").arg(build_folder()).arg(target).arg(corpus).arg(folder.join("seeds").join(target)).args([
        "--",
        &format!("-max_total_time={}", time.as_secs()),
        &format!("-dict={}", folder.join("seeds").join(target).with_extension("dict").display()),
        &format!("-rss_limit_mb={MEMORY_MIB}"),
        &format!("-timeout={PATIENCE}"),
        &format!("-report_slow_units={PATIENCE}"),
        &format!("-max_len={LONGEST}"),
        "-print_final_stats=1",
    ]);
    eprintln!("xtask: {}", process::line(&fuzz));
    let mut child = fuzz.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().context("cargo fuzz does not start")?;
    let stderr = child.stderr.take().context("cargo fuzz has no output")?;
    let mut account = Account::default();
    for line in BufReader::new(stderr).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        eprintln!("{line}");
        account.note(&line);
    }
    let status = child.wait()?;
    ensure!(status.success() || account.crash.is_some(), "{}: {status}", process::line(&fuzz));
    ensure!(account.executions > 0, "{target} ran nothing");
    Ok(account)
}

impl Account {
    /// Takes what a line of libFuzzer's tells.
    fn note(&mut self, line: &str) {
        let after = |word: &str| {
            let rest = line.split_once(word)?.1.trim_start();
            rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        if line.starts_with('#') {
            self.edges = after(" cov: ").unwrap_or(self.edges);
            self.corpus = after(" corp: ").unwrap_or(self.corpus);
            self.executions = after("#").unwrap_or(self.executions);
        }
        self.executions = after("stat::number_of_executed_units:").unwrap_or(self.executions);
        if let Some((_, path)) = line.split_once("Test unit written to ") {
            self.crash = Some(path.trim().to_owned());
        }
    }

    fn line(&self, target: &str, took: Duration) -> String {
        let Self { executions, edges, corpus, crash } = self;
        let end = crash.as_ref().map_or("no crash".to_owned(), |input| format!("CRASH: {input}"));
        let minutes = took.as_secs_f64() / 60.0;
        format!(
            "{target:12} {executions:>12} executions {minutes:>6.1} minutes {edges:>6} edges {corpus:>6} inputs  {end}"
        )
    }
}

/// Reads `90s`, `10m` or `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let seconds = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => 0,
    };
    let whole = number.parse::<u64>().ok().and_then(|n| n.checked_mul(seconds)).filter(|&seconds| seconds > 0);
    whole.map(Duration::from_secs).ok_or_else(|| "give a time such as 90s, 10m or 1h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        for text in ["", "m", "0s", "-1s", "10 m", "10d", "99999999999999999999s", "9999999999999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_account_is_what_libfuzzer_says() {
        let mut account = Account::default();
        for line in [
            "INFO: Seed: 3",
            "#7\tINITED cov: 712 ft: 1503 corp: 5/21Kb exec/s: 0 rss: 61Mb",
            "#65536\tpulse  cov: 1801 ft: 6001 corp: 301/900Kb lim: 4096 exec/s: 21845 rss: 99Mb",
            "#70001\tDONE   cov: 1810 ft: 6020 corp: 310/910Kb lim: 4096 exec/s: 20000 rss: 99Mb",
            "stat::number_of_executed_units: 70001",
        ] {
            account.note(line);
        }
        assert_eq!(account, Account { executions: 70001, edges: 1810, corpus: 310, crash: None });
        account.note("artifact_prefix='/a/'; Test unit written to /a/crash-12");
        assert_eq!(account.crash.as_deref(), Some("/a/crash-12"));
    }
}
