//! End-to-end tests: the real program as a process, real sockets, the real SQLite. One module a subject.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod api;
mod backup;
mod commands;
mod crash;
mod delivery;
mod doctor;
mod door;
mod export;
mod full;
mod history;
mod hostile;
mod life;
mod mistakes;
mod quota;
mod rehearsal;
mod security;
mod service;
mod sessions;
mod update;
mod upgrade;
mod walk;

/// The program under test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_millwright-under-test");
