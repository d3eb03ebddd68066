//! End-to-end tests: the real program as a process, real sockets, the real SQLite. One module a subject.

mod commands;
mod crash;
mod delivery;
mod hostile;
mod mistakes;
mod quota;
mod update;

/// The program under test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_millwright-under-test");
