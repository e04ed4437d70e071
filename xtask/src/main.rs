//! Everything about this repository that is more than one cargo command.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::todo))]

mod bench;
mod boards;
mod card;
mod card_reads;
mod checks;
mod console;
mod faults;
mod firmware;
mod flash;
mod fuzz;
mod image;
mod instructions;
mod log;
mod panics;
mod parity;
mod peer;
mod plan;
mod process;
mod qemu;
mod setup;
mod size;
mod soak;
mod test;
mod toolchain;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "Examples:
  cargo xtask test               every check there is; sets up what it needs first
  cargo xtask test --host-only   without bare-metal Rust and without QEMU
  cargo xtask test --board mps3-an547                            one board's firmware and nothing else
  cargo xtask boards             what firmware can be built for
  cargo xtask qemu --board mps3-an547 --prompt \"Once upon a time\" -n 40 --seed 42
  cargo xtask qemu --board raspi3b --model distilgpt2.Q4_K_M.gguf    a console; :help lists its commands
  cargo xtask image --board raspi3b --model distilgpt2.Q4_K_M.gguf -o sd.img         a card for it
  cargo xtask plan --model distilgpt2.Q4_K_M.gguf                for every board
  cargo xtask flash --board stm32h747i-disco --model distilgpt2.Q4_K_M.gguf --dry-run    its steps; without, they are done
  cargo xtask size --core --family legacy    what the core takes for Q4_0 to Q8_0, without a board
  cargo xtask fuzz               what hostile input is turned loose on
  cargo xtask fuzz model --time 20m    one of these, for so long
  cargo xtask soak               100,000 tokens, interrupted at random, and 2,000 on an emulated board
  cargo xtask bench --against llama-cpp --type Q4_0              the same file, run by run in turn
  cargo xtask bench --board mps2-an500 --type Q4_0 --hot 5       instructions for a multiply-accumulate";

#[derive(Subcommand)]
enum Verb {
    /// Run every check and say what ran, what was skipped and how long it took
    Test {
        /// Leave out firmware and emulators
        #[arg(long)]
        host_only: bool,
        /// Only the firmware of this board; can be repeated
        #[arg(long, conflicts_with = "host_only")]
        board: Vec<String>,
    },
    /// Install what Debian or Ubuntu lacks to build and emulate firmware, or print the commands
    Setup,
    /// Run a board in the emulator, for one prompt or as a console
    Qemu(qemu::Options),
    /// Write a card, a disk or a memory image with a model, for a board or its emulator
    Image(image::Options),
    /// Take firmware and model to a board on the desk, verify them, and be its console
    Flash(flash::Options),
    /// What a model takes on each board, and how fast it can be there
    Plan(plan::Options),
    /// Build firmware for every board and write what it takes to firmware/SIZES.md, or look at the core alone
    Size(size::Options),
    /// Measure speed: alone, beside llama.cpp on the same files, or in a board's instructions
    Bench(bench::Options),
    /// Turn hostile input loose on a part of the runtime, and say how much was run
    Fuzz(fuzz::Options),
    /// Make texts far longer than a context, on the host and on a board, and compare tokens and memory
    Soak(soak::Options),
    /// Look for places in a board's firmware that can panic: none may be in the core
    Panics(panics::Options),
    /// List the boards: core, memory, how the model reaches them, what fits
    Boards,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().verb {
        Verb::Test { host_only, board } => test::test(host_only, &board),
        Verb::Setup => setup::setup().map(|()| ExitCode::SUCCESS),
        Verb::Qemu(options) => qemu::qemu(&options),
        Verb::Image(options) => image::image(&options).map(|()| ExitCode::SUCCESS),
        Verb::Flash(options) => flash::flash(&options),
        Verb::Plan(options) => plan::plan(&options).map(|()| ExitCode::SUCCESS),
        Verb::Size(options) => size::size(&options).map(|()| ExitCode::SUCCESS),
        Verb::Bench(options) => bench::bench(&options).map(|()| ExitCode::SUCCESS),
        Verb::Fuzz(options) => fuzz::fuzz(&options).map(|()| ExitCode::SUCCESS),
        Verb::Soak(options) => soak::soak(&options).map(|()| ExitCode::SUCCESS),
        Verb::Panics(options) => panics::panics(&options).map(|()| ExitCode::SUCCESS),
        Verb::Boards => {
            print!("{}", boards::table());
            Ok(ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
