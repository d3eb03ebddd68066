//! The `millwright` program, built where cargo tells tests its path.

use std::process::ExitCode;

fn main() -> ExitCode {
    millwright::cli::main()
}
