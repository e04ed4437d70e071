//! `gptrickle verify`: reads all of a file and says whether it is whole and sane.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use gptrickle_core::source::Source;
use serde::Serialize;

use super::{advance, byte_progress};
use crate::source::ModelFile;
use crate::verify::{Outcome, Report, verify};

const EXAMPLES: &str = "Examples:
  gptrickle verify model.gguf && gptrickle generate -m model.gguf \"Once\"
  gptrickle verify model.gguf --json | jq '.tensors[] | select(.max > 10)'

Exit code 0: nothing is wrong; 1: something is, or the file cannot be read.";

/// Read all of a GGUF file and check it: structure, shapes, vocabulary, every weight, checksums
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// File to check
    file: PathBuf,

    /// Prints one JSON object, with the range of every tensor's values
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Named<'r> {
    file: String,
    #[serde(flatten)]
    report: &'r Report,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut src = ModelFile::map(&args.file)?;
    let name = args.file.display().to_string();
    let bar = byte_progress(src.len(), "verifying");
    let mut done = 0;
    let report = verify(&mut src, |bytes| {
        done += bytes;
        advance(&bar, done as usize);
    });
    bar.finish_and_clear();
    let report = report.with_context(|| format!("cannot read {name}"))?;
    let mut out = io::stdout().lock();
    let written = if args.json {
        let text = serde_json::to_string_pretty(&Named { file: name, report: &report })?;
        writeln!(out, "{text}")
    } else {
        print(&report, &mut out)
    };
    written.and_then(|()| out.flush()).context("cannot write to standard output")?;
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(report: &Report, out: &mut impl Write) -> io::Result<()> {
    for check in &report.checks {
        let result = match check.result {
            Outcome::Ok => "ok",
            Outcome::Failed => "FAILED",
            Outcome::Skipped => "-",
        };
        writeln!(out, "{}", format!("{:<11} {result:<7} {}", check.name, check.found).trim_end())?;
        for problem in &check.problems {
            writeln!(out, "  {problem}")?;
        }
        for remark in &check.remarks {
            writeln!(out, "  note: {remark}")?;
        }
    }
    Ok(())
}
