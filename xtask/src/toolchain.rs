//! Which rustc builds for bare metal on this machine.
//!
//! Machines differ: most have rustup and a network, some have rustup and no way out, some have only Debian's packages.
//! The first of these that works wins:
//!
//! 1. `GPTRICKLE_FIRMWARE_RUSTC`, the override;
//! 2. the active rustc, when its `core` for the target is installed;
//! 3. the active rustc, once `rustup target add` has fetched that;
//! 4. the active rustc with `rust-src`: cargo builds `core` itself (build-std);
//! 5. `/usr/bin/rustc` with Debian's `rust-web-src`: likewise.

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::process::{self, root};

/// The environment variable that names the rustc to use for bare-metal targets.
pub(crate) const OVERRIDE: &str = "GPTRICKLE_FIRMWARE_RUSTC";

/// Older compilers are passed over: the workspace's `rust-version`.
const OLDEST: (u32, u32) = (1, 95);

/// Where a network is closed, rustup may wait for minutes.
const RUSTUP_PATIENCE: Duration = Duration::from_secs(60);

/// A rustc and the cargo to drive it with, for one target.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Toolchain {
    rustc: PathBuf,
    cargo: PathBuf,
    origin: Origin,
    build_std: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Origin {
    Override,
    Active,
    System,
}

/// How much of the standard library a build asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Library {
    /// `core` alone: proves that a crate needs no allocator.
    Core,
    /// `core` and `alloc`, for firmware.
    CoreAlloc,
}

/// Where to look. [`Places::here`] is this machine; tests make up others.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    over: Option<PathBuf>,
    active: PathBuf,
    active_cargo: PathBuf,
    rustup: PathBuf,
    system: PathBuf,
    /// Left behind when `rustup target add` failed, so that only the first build on a closed network waits for it.
    rustup_failed: PathBuf,
}

impl Places {
    pub(crate) fn here() -> Self {
        let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        Self {
            over: variable(OVERRIDE),
            active: variable("RUSTC").unwrap_or_else(|| "rustc".into()),
            active_cargo: variable("CARGO").unwrap_or_else(|| "cargo".into()),
            rustup: "rustup".into(),
            system: "/usr/bin/rustc".into(),
            rustup_failed: root().join("target/xtask/rustup-target-add-failed"),
        }
    }

    /// Lets the next [`resolve`](Self::resolve) ask rustup again.
    pub(crate) fn forget_failures(&self) {
        let _ = fs::remove_file(&self.rustup_failed);
    }

    /// The toolchain that builds for `target`.
    ///
    /// # Errors
    /// None does: the message names the two ways to get one.
    pub(crate) fn resolve(&self, target: &str) -> Result<Toolchain> {
        let found = |rustc: &Path, origin, build_std| Toolchain {
            rustc: rustc.to_owned(),
            cargo: self.cargo_for(rustc, origin),
            origin,
            build_std,
        };
        if let Some(rustc) = &self.over {
            let probe = Probe::ask(rustc).with_context(|| format!("{OVERRIDE}={}", rustc.display()))?;
            if probe.has_core(target) || probe.has_source() {
                return Ok(found(rustc, Origin::Override, !probe.has_core(target)));
            }
            bail!("{OVERRIDE}={} has neither core for {target} nor rust-src", rustc.display());
        }
        let active = Probe::ask(&self.active).ok().filter(Probe::is_recent);
        if let Some(active) = &active {
            if active.has_core(target) || (active.is_rustups() && self.rustup_adds(target) && active.has_core(target)) {
                return Ok(found(&self.active, Origin::Active, false));
            }
            if active.has_source() {
                return Ok(found(&self.active, Origin::Active, true));
            }
        }
        if let Some(system) = Probe::ask(&self.system).ok().filter(Probe::is_recent)
            && (system.has_core(target) || system.has_source())
            && has_linker(&self.system)
        {
            return Ok(found(&self.system, Origin::System, !system.has_core(target)));
        }
        bail!(
            "no Rust here builds for {target}. Either run `rustup target add {target}`, \
             or on Debian and Ubuntu `cargo xtask setup` (as root or with sudo)"
        )
    }

    /// A system rustc has its cargo beside it; a rustup rustc is driven by the cargo that runs us.
    fn cargo_for(&self, rustc: &Path, origin: Origin) -> PathBuf {
        let beside = rustc.with_file_name("cargo");
        if origin != Origin::Active && beside.is_file() { beside } else { self.active_cargo.clone() }
    }

    fn rustup_adds(&self, target: &str) -> bool {
        if self.rustup_failed.exists() {
            return false;
        }
        eprintln!("xtask: rustup target add {target}");
        let mut add = Command::new(&self.rustup);
        add.args(["target", "add", target]).env("RUSTUP_MAX_RETRIES", "0").stdin(Stdio::null());
        let added = process::within(&mut add, RUSTUP_PATIENCE).is_ok_and(|status| status.success());
        if !added {
            eprintln!("xtask: rustup cannot add {target}, looking for another toolchain");
            let _ = process::write(&self.rustup_failed, format!("{target}\n"));
        }
        added
    }
}

/// What one rustc says of itself.
struct Probe {
    sysroot: PathBuf,
    version: (u32, u32),
}

impl Probe {
    fn ask(rustc: &Path) -> Result<Self> {
        let sysroot = process::output(Command::new(rustc).args(["--print", "sysroot"]))?;
        let version = process::output(Command::new(rustc).arg("-vV"))?;
        Ok(Self {
            sysroot: sysroot.trim().into(),
            version: release(&version).context("rustc -vV has no release line")?,
        })
    }

    fn is_recent(&self) -> bool {
        self.version >= OLDEST
    }

    fn has_core(&self, target: &str) -> bool {
        let lib = self.sysroot.join("lib/rustlib").join(target).join("lib");
        fs::read_dir(lib)
            .is_ok_and(|dir| dir.flatten().any(|file| file.file_name().to_string_lossy().starts_with("libcore-")))
    }

    fn has_source(&self) -> bool {
        self.sysroot.join("lib/rustlib/src/rust/library/Cargo.lock").is_file()
    }

    /// rustup's toolchains carry its manifest; a distribution's do not.
    fn is_rustups(&self) -> bool {
        self.sysroot.join("lib/rustlib/multirust-channel-manifest.toml").is_file()
    }
}

/// Debian's rust-lld is a link into a package of its own, which may not be there.
fn has_linker(system: &Path) -> bool {
    system.with_file_name("rust-lld").exists()
}

/// Major and minor of the `release: 1.95.0` line.
fn release(verbose_version: &str) -> Option<(u32, u32)> {
    let release = verbose_version.lines().find_map(|line| line.strip_prefix("release: "))?;
    let mut parts = release.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

impl Toolchain {
    /// One line for people: which rustc, and where its `core` comes from.
    pub(crate) fn describe(&self) -> String {
        let origin = match self.origin {
            Origin::Override => OVERRIDE,
            Origin::Active => "active",
            Origin::System => "system",
        };
        let core = if self.build_std { "builds core itself" } else { "precompiled core" };
        format!("{} ({origin}, {core})", self.rustc.display())
    }

    /// `rustc 1.95.0`
    pub(crate) fn version(&self) -> Result<String> {
        let version = process::output(Command::new(&self.rustc).arg("-V"))?;
        Ok(version.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
    }

    /// `cargo verb … --target target` for this toolchain, with `rustflags` and nothing else of the caller's settings.
    pub(crate) fn cargo(&self, verb: &str, target: &str, library: Library, rustflags: &[&str]) -> Command {
        let mut cargo = Command::new(&self.cargo);
        if verb == "clippy" && self.origin != Origin::Active {
            // cargo would take the first cargo-clippy it finds, which is rustup's.
            cargo = Command::new(self.beside("cargo-clippy"));
            cargo.env("CARGO", &self.cargo);
        }
        for name in ["RUSTFLAGS", "CARGO_BUILD_TARGET", "CARGO_TARGET_DIR", "RUSTC_WRAPPER"] {
            cargo.env_remove(name);
        }
        if self.origin != Origin::Active {
            // The cargo that runs us points both at the active toolchain.
            cargo.env_remove("RUSTUP_TOOLCHAIN").env_remove("LD_LIBRARY_PATH");
        }
        cargo.env("RUSTC", &self.rustc).env("CARGO_ENCODED_RUSTFLAGS", rustflags.join("\x1f"));
        cargo.args([verb, "--locked", "--target", target]);
        if self.build_std {
            // Stable compilers take -Z only so. On the command line only: a config file would force it on everyone.
            cargo.env("RUSTC_BOOTSTRAP", "1");
            cargo.arg(match library {
                Library::Core => "-Zbuild-std=core",
                Library::CoreAlloc => "-Zbuild-std=core,alloc",
            });
        }
        cargo
    }

    fn beside(&self, program: &str) -> PathBuf {
        self.rustc.with_file_name(program)
    }

    /// Whether `cargo clippy` works with this toolchain: its driver must be the same version as its rustc.
    pub(crate) fn has_clippy(&self) -> bool {
        let driver = match self.origin {
            Origin::Active => "clippy-driver".into(),
            Origin::Override | Origin::System => self.beside("clippy-driver"),
        };
        Command::new(driver).arg("-V").output().is_ok_and(|output| output.status.success())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const TARGET: &str = "thumbv7em-none-eabihf";

    /// A folder of made-up toolchains, gone with the test.
    struct Fake(PathBuf);

    impl Fake {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("gptrickle-xtask-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }

        fn script(&self, name: &str, body: &str) -> PathBuf {
            let path = self.0.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path
        }

        fn rustc(&self, name: &str, release: &str, files: &[&str]) -> PathBuf {
            let sysroot = self.0.join(name);
            for file in files {
                let path = sysroot.join("lib/rustlib").join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "").unwrap();
            }
            self.script(&format!("{name}/bin/rust-lld"), "");
            let answer =
                format!("case $1 in -vV) echo release: {release};; --print) echo {};; esac", sysroot.display());
            self.script(&format!("{name}/bin/rustc"), &answer)
        }

        /// A machine with these two compilers and a rustup that fails after noting that it was asked.
        fn places(&self, active: PathBuf, system: PathBuf) -> Places {
            let asked = self.0.join("asked");
            Places {
                over: None,
                active,
                active_cargo: "cargo".into(),
                rustup: self.script("rustup", &format!("echo \"$@\" >> {}; exit 1", asked.display())),
                system,
                rustup_failed: self.0.join("failed"),
            }
        }

        fn asked(&self) -> String {
            fs::read_to_string(self.0.join("asked")).unwrap_or_default()
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const CORE: &str = "thumbv7em-none-eabihf/lib/libcore-0123.rlib";
    const SOURCE: &str = "src/rust/library/Cargo.lock";
    const RUSTUPS: &str = "multirust-channel-manifest.toml";

    #[test]
    fn precompiled_core_of_the_active_toolchain_comes_first() {
        let fake = Fake::new("precompiled");
        let places = fake.places(
            fake.rustc("active", "1.95.0", &[CORE, SOURCE, RUSTUPS]),
            fake.rustc("system", "1.96.0", &[CORE, SOURCE]),
        );
        let toolchain = places.resolve(TARGET).unwrap();
        assert_eq!((toolchain.origin, toolchain.build_std), (Origin::Active, false));
        assert_eq!(fake.asked(), "");
    }

    #[test]
    fn rustup_is_asked_once_then_debian_serves() {
        let fake = Fake::new("closed-network");
        let places =
            fake.places(fake.rustc("active", "1.95.0", &[RUSTUPS]), fake.rustc("system", "1.96.0-nightly", &[SOURCE]));
        for _ in 0..2 {
            let toolchain = places.resolve(TARGET).unwrap();
            assert_eq!((toolchain.origin, toolchain.build_std), (Origin::System, true));
        }
        assert_eq!(fake.asked(), format!("target add {TARGET}\n"));
        places.forget_failures();
        places.resolve(TARGET).unwrap();
        assert_eq!(fake.asked().lines().count(), 2);
    }

    #[test]
    fn rustup_that_adds_the_target_is_enough() {
        let fake = Fake::new("open-network");
        let mut places =
            fake.places(fake.rustc("active", "1.95.0", &[RUSTUPS]), fake.rustc("system", "1.96.0", &[SOURCE]));
        let core = fake.0.join("active/lib/rustlib").join(CORE);
        places.rustup = fake
            .script("rustup-open", &format!("mkdir -p {}; touch {}", core.parent().unwrap().display(), core.display()));
        let toolchain = places.resolve(TARGET).unwrap();
        assert_eq!((toolchain.origin, toolchain.build_std), (Origin::Active, false));
    }

    #[test]
    fn source_of_the_active_toolchain_beats_debian() {
        let fake = Fake::new("rust-src");
        let places =
            fake.places(fake.rustc("active", "1.97.0", &[SOURCE, RUSTUPS]), fake.rustc("system", "1.96.0", &[CORE]));
        let toolchain = places.resolve(TARGET).unwrap();
        assert_eq!((toolchain.origin, toolchain.build_std), (Origin::Active, true));
    }

    #[test]
    fn override_beats_all_and_never_falls_back() {
        let fake = Fake::new("override");
        let mut places = fake.places(fake.rustc("active", "1.95.0", &[CORE]), fake.rustc("system", "1.96.0", &[CORE]));
        places.over = Some(fake.rustc("mine", "1.90.0", &[SOURCE]));
        let toolchain = places.resolve(TARGET).unwrap();
        assert_eq!((toolchain.origin, toolchain.build_std), (Origin::Override, true));
        places.over = Some(fake.rustc("bare", "1.95.0", &[]));
        let message = places.resolve(TARGET).unwrap_err().to_string();
        assert!(message.contains(OVERRIDE) && message.contains(TARGET), "{message}");
    }

    #[test]
    fn old_compilers_do_not_count_and_the_error_names_both_ways_out() {
        let fake = Fake::new("old");
        let places = fake.places(fake.rustc("active", "1.63.0", &[CORE]), fake.rustc("system", "1.85.0", &[SOURCE]));
        let message = places.resolve(TARGET).unwrap_err().to_string();
        assert!(message.contains("rustup target add") && message.contains("cargo xtask setup"), "{message}");
    }

    #[test]
    fn a_debian_without_its_linker_does_not_count() {
        let fake = Fake::new("linker");
        let places = fake.places(fake.rustc("active", "1.95.0", &[]), fake.rustc("system", "1.96.0", &[SOURCE]));
        assert!(places.resolve(TARGET).is_ok());
        fs::remove_file(fake.0.join("system/bin/rust-lld")).unwrap();
        std::os::unix::fs::symlink("lld-99", fake.0.join("system/bin/rust-lld")).unwrap();
        assert!(places.resolve(TARGET).is_err());
    }

    #[test]
    fn std_is_built_only_where_it_must_be() {
        let arguments = |build_std| {
            let toolchain =
                Toolchain { rustc: "rustc".into(), cargo: "cargo".into(), origin: Origin::Active, build_std };
            let cargo = toolchain.cargo("build", TARGET, Library::Core, &["-Ctarget-cpu=cortex-m7"]);
            let flags = cargo.get_envs().find(|(name, _)| *name == "CARGO_ENCODED_RUSTFLAGS").unwrap().1;
            assert_eq!(flags.unwrap(), "-Ctarget-cpu=cortex-m7");
            cargo.get_args().map(|a| a.to_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(arguments(false), format!("build --locked --target {TARGET}"));
        assert_eq!(arguments(true), format!("build --locked --target {TARGET} -Zbuild-std=core"));
    }
}
