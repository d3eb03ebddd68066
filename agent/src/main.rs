//! The `millwright` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    millwright::cli::main()
}
