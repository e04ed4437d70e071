//! The `gptrickle` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    gptrickle::cli::run()
}
