//! What `cargo xtask test` needs beyond a Rust for this machine, and how Debian and Ubuntu get it.
//!
//! The plan is a list of shell lines: run as root or through sudo, else printed for a person to run. Package mirrors are
//! never spelled out: the machine's own apt sources say where its packages come from.

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::boards::{BOARDS, Board, Emulator, Runs};
use crate::process;
use crate::toolchain::Places;

/// Older emulators lack boards or devices that the firmware drives.
const OLDEST_QEMU: u32 = 8;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// What this machine lacks to build and emulate `boards`.
#[derive(Debug, Default, PartialEq)]
struct Missing {
    emulators: Vec<&'static str>,
    targets: Vec<&'static str>,
}

impl Missing {
    fn here(boards: &[Board]) -> Self {
        let mut missing = Self::default();
        let places = Places::here();
        for board in boards {
            if let Runs::Emulated(Emulator { qemu, .. }) = board.runs
                && !missing.emulators.contains(&qemu)
                && qemu_version(qemu).is_none_or(|version| version < OLDEST_QEMU)
            {
                missing.emulators.push(qemu);
            }
            if !missing.targets.contains(&board.target) && places.resolve(board.target).is_err() {
                missing.targets.push(board.target);
            }
        }
        missing
    }

    fn nothing(&self) -> bool {
        self.emulators.is_empty() && self.targets.is_empty()
    }
}

/// Installs what is missing, or prints the commands that would; asks rustup again where it failed before.
///
/// # Errors
/// Something is still missing afterwards.
pub(crate) fn setup() -> Result<()> {
    Places::here().forget_failures();
    install()
}

/// Installs what is missing, or prints the commands that would.
///
/// # Errors
/// Something is still missing afterwards.
pub(crate) fn install() -> Result<()> {
    let missing = Missing::here(BOARDS);
    if missing.nothing() {
        eprintln!("xtask: nothing to set up");
        return Ok(());
    }
    eprintln!("xtask: missing {}", [missing.emulators.join(" "), missing.targets.join(" ")].join(" ").trim());
    let lines = Machine::here()?.plan(&missing)?;
    let Some(prefix) = root_prefix() else {
        let rustup = match &missing.targets[..] {
            [] => String::new(),
            targets => format!("\nWith a network, rustup does for Rust: rustup target add {}", targets.join(" ")),
        };
        bail!("run these as root, then this again:\n{}{rustup}", lines.join("\n"));
    };
    for line in &lines {
        eprintln!("xtask: {line}");
        let mut shell = Command::new(prefix.first().unwrap_or(&"sh"));
        shell.args(prefix.iter().skip(1)).args(prefix.first().map(|_| "sh")).args(["-ec", line]);
        // Standard output is for what a verb was asked for; apt's chatter goes beside it.
        process::run(shell.stdin(Stdio::null()).stdout(std::io::stderr()))?;
    }
    let left = Missing::here(BOARDS);
    if !left.nothing() {
        bail!("still missing after set-up: {left:?}");
    }
    Ok(())
}

/// How to run a command as root: as we are, through a sudo that asks nothing, or not at all.
fn root_prefix() -> Option<Vec<&'static str>> {
    let silent = |command: &mut Command| {
        command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok().filter(|output| output.status.success())
    };
    if silent(Command::new("id").arg("-u")).is_some_and(|id| id.stdout.trim_ascii() == b"0") {
        return Some(vec![]);
    }
    silent(Command::new("sudo").args(["-n", "true"])).map(|_| vec!["sudo", "-n"])
}

/// Major version of an emulator, if it is there.
fn qemu_version(program: &str) -> Option<u32> {
    let text = process::output(Command::new(program).arg("--version")).ok()?;
    text.split_once("version ")?.1.split('.').next()?.parse().ok()
}

/// The parts of a Debian-like machine that the plan depends on.
#[derive(Debug)]
struct Machine {
    debian: bool,
    codename: String,
    sources: Vec<AptSource>,
}

/// One `deb` entry of apt's sources, in either notation.
#[derive(Clone, Debug, PartialEq)]
struct AptSource {
    uri: String,
    suites: Vec<String>,
    signed_by: Option<String>,
}

impl Machine {
    fn here() -> Result<Self> {
        let release = fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
        if !Path::new("/usr/bin/apt-get").exists() {
            bail!(
                "only Debian and Ubuntu are set up by this command. Install QEMU {OLDEST_QEMU} or newer (arm, aarch64, \
                 riscv64) and run `rustup target add {}`",
                targets(BOARDS).join(" ")
            );
        }
        let mut sources = Vec::new();
        let parts = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path());
        for path in parts.chain(["/etc/apt/sources.list".into()]) {
            let text = fs::read_to_string(&path).unwrap_or_default();
            match path.extension().and_then(|e| e.to_str()) {
                Some("sources") => sources.extend(stanzas(&text)),
                Some("list") => sources.extend(text.lines().filter_map(one_line)),
                _ => {}
            }
        }
        Ok(Self::from(&release, sources))
    }

    fn from(os_release: &str, sources: Vec<AptSource>) -> Self {
        let value = |key: &str| {
            let line = os_release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.unwrap_or_default().trim_matches('"').to_owned()
        };
        Self { debian: value("ID") == "debian", codename: value("VERSION_CODENAME"), sources }
    }

    /// Shell lines that install what is missing, in order.
    fn plan(&self, missing: &Missing) -> Result<Vec<String>> {
        let bookworm = self.debian && self.codename == "bookworm";
        let mut lines = Vec::new();
        if bookworm && !missing.emulators.is_empty() {
            lines.extend(self.add_suite("bookworm-backports", |mirror| mirror.to_owned())?);
        }
        if bookworm && !missing.targets.is_empty() {
            lines.extend(self.add_suite("bookworm-security", |mirror| format!("{mirror}-security"))?);
        }
        let install = "DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
                       -o DPkg::Lock::Timeout=300";
        lines.push("apt-get update -q -o DPkg::Lock::Timeout=300".into());
        if !missing.emulators.is_empty() {
            // bookworm's own QEMU is 7.2. With -t, parts of QEMU that are there already move along.
            let from = if bookworm { "-t bookworm-backports " } else { "" };
            let riscv = if self.debian { "qemu-system-riscv" } else { "qemu-system-misc" };
            lines.push(format!("{install} {from}qemu-system-arm {riscv}"));
        }
        if !missing.targets.is_empty() {
            if !self.debian {
                bail!(
                    "this Ubuntu needs a network that rustup can use: `rustup target add {}`",
                    missing.targets.join(" ")
                );
            }
            lines.push(format!("{install} rustc-web cargo-web rust-web-src rust-web-clippy rust-web-llvm"));
            // rust-lld points into an lld package that nothing depends on.
            let llvm = r"/usr/bin/rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p'";
            lines.push(format!(r#"{install} "lld-$({llvm})""#));
        }
        Ok(lines)
    }

    /// The line that adds a suite beside the machine's main one, unless it is there.
    fn add_suite(&self, suite: &str, uri: impl Fn(&str) -> String) -> Result<Option<String>> {
        let has = |name: &str| self.sources.iter().find(|source| source.suites.iter().any(|s| s == name));
        if has(suite).is_some() {
            return Ok(None);
        }
        let main = has(&self.codename)
            .with_context(|| format!("apt's sources name no mirror for {}: add {suite} by hand", self.codename))?;
        let signed_by = main.signed_by.as_deref().unwrap_or(KEYRING);
        let uri = uri(main.uri.trim_end_matches('/'));
        Ok(Some(format!(
            "printf '%s\\n' 'Types: deb' 'URIs: {uri}' 'Suites: {suite}' 'Components: main' 'Signed-By: {signed_by}' \
             > /etc/apt/sources.list.d/{suite}.sources"
        )))
    }
}

/// Every target once, in the table's order.
pub(crate) fn targets(boards: &[Board]) -> Vec<&'static str> {
    let mut targets = Vec::new();
    for board in boards {
        if !targets.contains(&board.target) {
            targets.push(board.target);
        }
    }
    targets
}

/// The entries of a file in deb822 notation: stanzas of `Field: value` lines.
fn stanzas(text: &str) -> Vec<AptSource> {
    let without_comments: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let stanzas = without_comments.split(|line| line.trim().is_empty());
    stanzas
        .filter_map(|stanza| {
            let field = |name: &str| {
                stanza.iter().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned()))
            };
            let enabled = field("Enabled").is_none_or(|value| value != "no");
            let deb = field("Types")?.split_whitespace().any(|kind| kind == "deb");
            (enabled && deb).then_some(())?;
            Some(AptSource {
                uri: field("URIs")?.split_whitespace().next()?.to_owned(),
                suites: field("Suites")?.split_whitespace().map(str::to_owned).collect(),
                signed_by: field("Signed-By").filter(|path| path.starts_with('/')),
            })
        })
        .collect()
}

/// An entry in the old notation: `deb [options] uri suite component…`.
fn one_line(line: &str) -> Option<AptSource> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    Some(AptSource {
        uri: words.next()?.to_owned(),
        suites: vec![words.next()?.to_owned()],
        signed_by: options.split_whitespace().find_map(|option| option.strip_prefix("signed-by=")).map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOKWORM: &str = "ID=debian\nVERSION_CODENAME=bookworm\n";

    fn all() -> Missing {
        Missing { emulators: vec!["qemu-system-arm"], targets: vec!["thumbv7em-none-eabihf"] }
    }

    #[test]
    fn a_bare_bookworm_gets_both_suites_from_its_own_mirror() {
        let sources =
            vec![one_line("deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian/ bookworm main").unwrap()];
        let plan = Machine::from(BOOKWORM, sources).plan(&all()).unwrap();
        assert!(plan[0].contains("'URIs: http://mirror.example/debian'"), "{}", plan[0]);
        assert!(plan[0].contains("'Signed-By: /k.gpg'"), "{}", plan[0]);
        assert!(plan[1].contains("'URIs: http://mirror.example/debian-security'"), "{}", plan[1]);
        assert!(plan[2].starts_with("apt-get update"));
        assert!(plan[3].ends_with("-t bookworm-backports qemu-system-arm qemu-system-riscv"), "{}", plan[3]);
        assert_eq!(plan.len(), 6);
    }

    #[test]
    fn suites_that_are_there_are_left_alone() {
        let text = "Types: deb\n# a snapshot\nURIs: http://m/debian\nSuites: bookworm bookworm-updates bookworm-backports\n\
                    \n\nTypes: deb deb-src\nURIs: http://m/s\nSuites: bookworm-security\nSigned-By: /k.gpg\n";
        let sources = stanzas(text);
        assert_eq!(sources.len(), 2);
        assert_eq!(sources[1].signed_by.as_deref(), Some("/k.gpg"));
        let plan = Machine::from(BOOKWORM, sources).plan(&all()).unwrap();
        assert!(plan[0].starts_with("apt-get update"), "{plan:?}");
    }

    #[test]
    fn newer_debian_has_its_own_qemu() {
        let machine = Machine::from("ID=debian\nVERSION_CODENAME=trixie\n", vec![]);
        let plan = machine.plan(&Missing { targets: vec![], ..all() }).unwrap();
        assert_eq!(plan.len(), 2);
        assert!(plan[1].ends_with(" qemu-system-arm qemu-system-riscv"), "{}", plan[1]);
    }

    #[test]
    fn no_mirror_is_an_error_that_names_the_suite() {
        let message = Machine::from(BOOKWORM, vec![]).plan(&all()).unwrap_err().to_string();
        assert!(message.contains("bookworm-backports"), "{message}");
    }

    #[test]
    fn disabled_and_source_only_entries_do_not_count() {
        assert_eq!(stanzas("Types: deb\nEnabled: no\nURIs: u\nSuites: s\n"), []);
        assert_eq!(stanzas("Types: deb-src\nURIs: u\nSuites: s\n"), []);
        assert_eq!(one_line("# deb http://u s main"), None);
        assert_eq!(one_line("deb-src http://u s main"), None);
    }
}
