//! `cargo xtask plan`: what a model takes on each board and how fast it can be there, in one table.
//!
//! Memory and bytes are `gptrickle plan`'s. Speed has two bounds: what the storage gives, and what the processor does at
//! one instruction a cycle, by the instructions for a product that `cargo xtask bench --board` has counted.

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::boards::{BOARDS, Board};
use crate::parity;
use crate::process;

/// What to plan, for what.
#[derive(Args)]
pub(crate) struct Options {
    /// The board; all of them if left out
    #[arg(long, short)]
    board: Option<String>,
    /// The GGUF file
    #[arg(long, short)]
    model: PathBuf,
}

/// A real board's processor, from its datasheet.
struct Processor {
    board: &'static str,
    mhz: u32,
    cores: u32,
    instructions: Instructions,
}

/// Instructions for a multiply-accumulate by tensor type, counted in the emulator for a whole token (README, "On boards").
type Instructions = &'static [(&'static str, f64)];

const DSP: Instructions =
    &[("Q8_0", 1.87), ("Q4_0", 1.83), ("Q2_K", 2.19), ("Q3_K", 2.64), ("Q4_K", 2.06), ("Q5_K", 2.73), ("Q6_K", 2.52)];

const HELIUM: Instructions =
    &[("Q8_0", 0.36), ("Q4_0", 0.41), ("Q2_K", 0.55), ("Q3_K", 0.74), ("Q4_K", 0.55), ("Q5_K", 0.72), ("Q6_K", 0.60)];

const PROCESSORS: &[Processor] = &[
    Processor { board: "stm32h747i-disco", mhz: 400, cores: 1, instructions: DSP },
    Processor { board: "pico-plus-2", mhz: 150, cores: 2, instructions: DSP },
    Processor { board: "stm32n6570-dk", mhz: 800, cores: 1, instructions: HELIUM },
];

/// Prints the table; for one board the whole plan before it.
///
/// # Errors
/// The file is no model, or does not fit on the board that was named.
pub(crate) fn plan(options: &Options) -> Result<()> {
    parity::build_host()?;
    let model = options.model.as_path();
    let boards: Vec<&Board> = match &options.board {
        Some(name) => vec![Board::named(name)?],
        None => BOARDS.iter().collect(),
    };
    if options.board.is_some() {
        fits(boards[0], model)?;
        println!();
    }
    let products = products(&inspect(model)?)?;
    println!("{}", HEAD);
    for board in boards {
        println!("{}", row(board, &json(board, model)?, &products));
    }
    Ok(())
}

/// Prints `gptrickle plan` for a board.
///
/// # Errors
/// The model does not fit there: the message has the numbers.
pub(crate) fn fits(board: &Board, model: &Path) -> Result<()> {
    process::run(&mut command(board, model)).with_context(|| format!("{} does not fit", model.display()))
}

/// What plans for a board, by the name that the host knows it by.
pub(crate) fn command(board: &Board, model: &Path) -> Command {
    let mut plan = Command::new(parity::host());
    plan.args(["plan", "--board", board.name, "--model"]).arg(model);
    plan
}

const HEAD: &str = "| board | RAM needed, of | context | model in RAM | read per token | storage allows | processor allows |\n\
    |---|---|---:|---|---:|---|---|";

/// The plan as JSON, or the line that says why there is none.
fn json(board: &Board, model: &Path) -> Result<Result<Value, String>> {
    let output = command(board, model).arg("--json").output().context("cannot start gptrickle")?;
    match serde_json::from_slice(&output.stdout) {
        Ok(plan) => Ok(Ok(plan)),
        Err(_) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let line = said.lines().next().unwrap_or_default().trim_start_matches("error: ");
            Ok(Err(line.trim_start_matches(&format!("{}: ", model.display())).to_owned()))
        }
    }
}

fn inspect(model: &Path) -> Result<Value> {
    let text = process::output(Command::new(parity::host()).args(["inspect", "--json", "--model"]).arg(model))?;
    let report: Value = serde_json::from_str(&text)?;
    if let Some(error) = report["error"].as_str() {
        bail!("{}: {error}", model.display());
    }
    Ok(report)
}

/// How many products of each tensor type a token takes: every matrix, the head too, but no rows of embeddings.
fn products(report: &Value) -> Result<Vec<(String, f64)>> {
    let tensors = report["tensors"].as_array().context("no tensors")?;
    let tied = report["run"]["tied"].as_bool().context("no word on the head")?;
    let mut products: Vec<(String, f64)> = Vec::new();
    for tensor in tensors {
        let (name, kind) = (tensor["name"].as_str().unwrap_or_default(), tensor["type"].as_str().unwrap_or_default());
        let shape: Vec<f64> = tensor["shape"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
        let multiplied = name != "position_embd.weight" && (tied || name != "token_embd.weight");
        if let ([columns, rows], true) = (&shape[..], multiplied) {
            match products.iter_mut().find(|(found, _)| found == kind) {
                Some((_, n)) => *n += columns * rows,
                None => products.push((kind.to_owned(), columns * rows)),
            }
        }
    }
    ensure!(!products.is_empty(), "no matrices");
    Ok(products)
}

impl Processor {
    /// Tokens a second at one instruction a cycle; `None` if a type was not counted.
    fn tokens_per_s(&self, products: &[(String, f64)]) -> Option<f64> {
        let per = |kind: &str| self.instructions.iter().find(|(name, _)| *name == kind).map(|(_, n)| n);
        let instructions: f64 = products.iter().map(|(kind, n)| Some(n * per(kind)?)).sum::<Option<f64>>()?;
        Some(f64::from(self.mhz) * 1e6 * f64::from(self.cores) / instructions)
    }
}

/// A board's row.
fn row(board: &Board, plan: &Result<Value, String>, products: &[(String, f64)]) -> String {
    let name = board.name;
    let plan = match plan {
        Ok(plan) => plan,
        Err(why) => return format!("| {name} | {why} | | | | | |"),
    };
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let (total, ram) = (number(&plan["total_bytes"]), number(&plan["limit"]["ram_bytes"]));
    let fits = if plan["limit"]["fits"] == true { "" } else { ", does not fit" };
    let (context, kv) = (number(&plan["context"]), plan["kv"].as_str().unwrap_or_default());
    let resident = match (number(&plan["buffers"]), number(&plan["buffer_bytes"])) {
        (0, _) => "none, it is mapped".to_owned(),
        (n, bytes) => format!("{n} x {bytes} bytes of it"),
    };
    let storage = match plan["storage"]["tokens_per_s"].as_f64() {
        Some(rate) => format!("{rate:.3} tokens/s, {}", kind(plan["storage"]["basis"].as_str().unwrap_or_default())),
        None => "not known".to_owned(),
    };
    let processor = PROCESSORS.iter().find(|processor| processor.board == name);
    let processor = match processor.and_then(|processor| Some((processor, processor.tokens_per_s(products)?))) {
        Some((Processor { mhz, cores, .. }, rate)) => {
            format!("{rate:.3} tokens/s of {cores} x {mhz} MHz, *computed* from *emulated*")
        }
        None => "not known".to_owned(),
    };
    let per_token = number(&plan["bytes_per_token"]);
    format!(
        "| {name} | {total} of {ram}, *computed*{fits} | {context}, {kv} | {resident} | {per_token}, *computed* | {storage} \
         | {processor} |"
    )
}

/// Where a bandwidth is from: the host's table says it in words.
fn kind(basis: &str) -> &'static str {
    if basis.contains("emulator") { "*emulated*" } else { "*computed*" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tensor(name: &str, kind: &str, shape: &[u64]) -> Value {
        json!({ "name": name, "type": kind, "shape": shape })
    }

    #[test]
    fn products_are_those_of_matrices_the_head_once() {
        let tensors = [
            tensor("token_embd.weight", "Q6_K", &[4, 100]),
            tensor("position_embd.weight", "F32", &[4, 8]),
            tensor("blk.0.attn_qkv.weight", "Q4_0", &[4, 12]),
            tensor("blk.0.attn_qkv.bias", "F32", &[12]),
        ];
        let found = products(&json!({ "tensors": tensors, "run": { "tied": true } })).unwrap();
        assert_eq!(found, [("Q6_K".to_owned(), 400.0), ("Q4_0".to_owned(), 48.0)]);
        let untied = [&tensors[..], &[tensor("output.weight", "Q8_0", &[4, 100])]].concat();
        let found = products(&json!({ "tensors": untied, "run": { "tied": false } })).unwrap();
        assert_eq!(found, [("Q4_0".to_owned(), 48.0), ("Q8_0".to_owned(), 400.0)]);
    }

    #[test]
    fn a_processor_is_as_fast_as_its_cores_and_as_what_was_counted() {
        let processor = Processor { board: "x", mhz: 100, cores: 2, instructions: &[("Q4_0", 2.0), ("Q6_K", 4.0)] };
        let products = |kind: &str| vec![("Q4_0".to_owned(), 1e6), (kind.to_owned(), 2e6)];
        assert_eq!(processor.tokens_per_s(&products("Q6_K")), Some(20.0));
        assert_eq!(processor.tokens_per_s(&products("F16")), None);
    }

    #[test]
    fn every_number_says_where_it_is_from() {
        let plan = json!({
            "context": 64, "kv": "f32", "total_bytes": 10, "limit": { "ram_bytes": 20, "fits": true }, "buffers": 2,
            "buffer_bytes": 4, "bytes_per_token": 1000, "storage": { "tokens_per_s": 2.5, "basis": "a bus's, not measured" }
        });
        let board = Board::named("stm32h747i-disco").unwrap();
        let row = row(board, &Ok(plan), &[("Q4_0".to_owned(), 1e8)]);
        assert!(row.contains(
            "10 of 20, *computed* | 64, f32 | 2 x 4 bytes of it | 1000, *computed* | 2.500 tokens/s, *computed*"
        ));
        assert!(row.contains("of 1 x 400 MHz, *computed* from *emulated*"), "{row}");
        assert_eq!(kind("measured in the emulator"), "*emulated*");
    }

    #[test]
    fn every_processor_is_of_a_board_in_the_table() {
        for Processor { board, .. } in PROCESSORS {
            assert!(Board::named(board).is_ok_and(|board| !board.is_emulated()), "{board}");
        }
    }
}
