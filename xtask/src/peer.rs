//! llama.cpp, built from source into a Python environment of its own and driven through its C API.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bench::{CONTEXT, DECODE, PROMPT, Run};
use crate::process::{self, root};

const DRIVER: &str = include_str!("peer.py");

/// How it is compiled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Build {
    /// For this machine's processor, with all its hand-written kernels.
    Native,
    /// Its portable C alone, for any processor of the kind.
    Portable,
}

impl Build {
    fn folder(self) -> &'static str {
        match self {
            Self::Native => "peer-native",
            Self::Portable => "peer-portable",
        }
    }

    fn cmake_arguments(self) -> String {
        let off = match self {
            Self::Native => return "-DGGML_NATIVE=ON".into(),
            Self::Portable => [
                "NATIVE",
                "AVX",
                "AVX2",
                "AVX_VNNI",
                "AVX512",
                "AVX512_VBMI",
                "AVX512_VNNI",
                "AVX512_BF16",
                "AMX_TILE",
                "AMX_INT8",
                "AMX_BF16",
                "FMA",
                "F16C",
                "BMI2",
                "SSE42",
                "LLAMAFILE",
                "CPU_REPACK",
            ],
        };
        off.map(|name| format!("-DGGML_{name}=OFF")).join(" ")
    }
}

/// A Python that can import it.
pub(crate) struct Peer {
    python: PathBuf,
}

impl Peer {
    /// The environment that was named, or one in `target/bench`, made and built on the first call: some ten minutes.
    ///
    /// # Errors
    /// There is no Python, no compiler, or no way to get the source.
    pub(crate) fn find(venv: Option<&Path>, build: Build) -> Result<Self> {
        let folder = venv.map_or_else(|| root().join("target/bench").join(build.folder()), Path::to_owned);
        let peer = Self { python: folder.join("bin/python") };
        let there = peer.has_library();
        if venv.is_some() {
            ensure!(there, "{} has no llama-cpp-python and numpy", folder.display());
        } else if !there {
            eprintln!("xtask: building llama.cpp into {}, some ten minutes", folder.display());
            let python = process::run(Command::new("python3").args(["-m", "venv"]).arg(&folder));
            python.context("Python 3 with venv is needed, such as Debian's python3-venv")?;
            let mut pip = Command::new(&peer.python);
            pip.args(["-m", "pip", "install", "--no-cache-dir", "--no-binary", "llama-cpp-python"]);
            pip.args(["llama-cpp-python", "numpy"]).env("CMAKE_ARGS", build.cmake_arguments());
            process::run(pip.stdout(std::io::stderr()))
                .context("a C++ compiler and a way to get packages are needed")?;
        }
        Ok(peer)
    }

    fn has_library(&self) -> bool {
        let mut import = Command::new(&self.python);
        import.args(["-c", "import llama_cpp, numpy"]).output().is_ok_and(|output| output.status.success())
    }

    fn report(&self, model: &Path, threads: usize, prompt: usize, decode: usize) -> Result<Value> {
        let mut python = Command::new(&self.python);
        python.args(["-c", DRIVER]).arg(model);
        python.args([threads, CONTEXT, prompt, decode].map(|n| n.to_string()));
        serde_json::from_str(&process::output(&mut python)?).context("llama.cpp's driver prints no JSON")
    }

    /// Its version, and the instructions it was built for.
    ///
    /// # Errors
    /// It does not run.
    pub(crate) fn describe(&self, model: &Path) -> Result<String> {
        let report = self.report(model, 1, 1, 1)?;
        let text = |name: &str| report[name].as_str().unwrap_or_default().trim_end_matches([' ', '|']).to_owned();
        Ok(format!("llama-cpp-python {}: {}", text("version"), text("system")))
    }

    /// One process that measures everything.
    ///
    /// # Errors
    /// It does not run, or not this model.
    pub(crate) fn run(&self, model: &Path, threads: usize) -> Result<Run> {
        let report = self.report(model, threads, PROMPT, DECODE)?;
        Ok(Run {
            decode: DECODE as f64 / number(&report, "/decode_s")?,
            prefill: PROMPT as f64 / number(&report, "/prefill_s")?,
            start: number(&report, "/start_s")?,
            rss: number(&report, "/peak_rss_bytes")? - number(&report, "/rss_before_bytes")?,
        })
    }
}

/// A figure of a report.
///
/// # Errors
/// It is not there.
pub(crate) fn number(report: &Value, pointer: &str) -> Result<f64> {
    report.pointer(pointer).and_then(Value::as_f64).with_context(|| format!("{pointer} is not in {report}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_portable_build_turns_every_extension_off() {
        let arguments = Build::Portable.cmake_arguments();
        assert!(arguments.contains("-DGGML_NATIVE=OFF ") && arguments.contains("-DGGML_AVX512=OFF "), "{arguments}");
        assert!(!arguments.contains("=ON"), "{arguments}");
    }

    #[test]
    fn a_missing_figure_is_named() {
        let report = serde_json::json!({ "a": { "b": 2 } });
        assert_eq!(number(&report, "/a/b").unwrap(), 2.0);
        assert_eq!(number(&report, "/a/c").unwrap_err().to_string(), r#"/a/c is not in {"a":{"b":2}}"#);
    }
}
