//! The command line.
//!
//! Owns the arguments and the exit status: 0 fine, 1 failed, 2 wrong use or configuration. Answers go to stdout, logs
//! and errors to stderr. Never does the work itself.

mod backup;
mod bar;
mod cert;
mod check_config;
mod demo;
mod doctor;
mod evaluate;
mod export;
mod http;
mod model;
pub(crate) mod output;
mod passwd;
mod replay;
mod restore;
mod run;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Something went wrong while doing what was asked.
pub(crate) const FAILED: u8 = 1;
/// What was asked cannot be done: wrong arguments or configuration.
pub(crate) const WRONG_USE: u8 = 2;

/// Predictive-maintenance gateway: MQTT in, on disk, scored, alert out.
#[derive(Debug, Parser)]
#[command(name = "millwright", version, about, max_term_width = 120)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show everything at work on simulated machines, in one process and without configuration
    Demo(demo::DemoArguments),
    /// Run the gateway
    Run(run::RunArguments),
    /// Check a configuration file and report every mistake at once
    CheckConfig {
        /// The configuration file
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Check a machine and its configuration: one line for each check, and what to do
    Doctor(doctor::DoctorArguments),
    /// Show what a running gateway does
    Status(status::StatusArguments),
    /// Feed CSV files through a real connection to a gateway started for the purpose
    Replay(replay::ReplayArguments),
    /// Score labelled CSV files with the pipeline's own code: F1, false alarms, missed alarms
    Evaluate(evaluate::EvaluateArguments),
    /// Write what a gateway has recorded to a file for other programs: readings, alerts, feedback
    Export(export::ExportArguments),
    /// Copy a gateway's data into one file, while it runs
    Backup(backup::BackupArguments),
    /// Put a backup in the place of a gateway's data
    Restore(restore::RestoreArguments),
    /// Work with models
    Model(model::ModelArguments),
    /// Load and watch models for a gateway, which starts it; not for use by hand
    #[command(hide = true)]
    Worker,
    /// Make a password hash for the configuration
    Passwd,
    /// Make certificates: an authority, the gateway's, a client's
    Cert(cert::CertArguments),
}

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    crate::memory::bound_heaps();
    // Wrong use ends here with status 2 and the usage on stderr.
    let arguments = Arguments::parse();
    use Command::{Backup, Demo, Doctor, Export, Model, Replay, Restore};
    let quiet =
        matches!(&arguments.command, Demo(_) | Replay(_) | Export(_) | Model(_) | Backup(_) | Restore(_) | Doctor(_));
    start_logs(if quiet { "error" } else { "info" });
    let result = match arguments.command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Run(arguments) => run::run(&arguments),
        Command::CheckConfig { file, json } => Ok(check_config::run(&file, json)),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Status(arguments) => status::run(arguments),
        Command::Replay(arguments) => replay::run(&arguments),
        Command::Evaluate(arguments) => evaluate::run(&arguments),
        Command::Export(arguments) => export::run(arguments),
        Command::Backup(arguments) => backup::run(&arguments),
        Command::Restore(arguments) => restore::run(&arguments),
        Command::Model(arguments) => model::run(&arguments),
        Command::Worker => crate::models::worker::serve::serve(std::io::stdin().lock(), std::io::stdout().lock())
            .map(|()| ExitCode::SUCCESS)
            .map_err(Failure::from),
        Command::Cert(arguments) => cert::run(&arguments),
        Command::Passwd => Ok(passwd::run(|password| millwright_broker::hash_password(password.as_bytes()))),
    };
    result.unwrap_or_else(|failure| {
        eprintln!("millwright: {failure}");
        ExitCode::from(failure.status)
    })
}

/// Libraries whose own words are left out: the model engine's, and those of the clients of upstreams, which call each attempt of
/// an outage an error of their own; the courier tells it once.
const QUIET: &str = "tract=off,lapin=off,rskafka=off,rdkafka=off,librdkafka=off,async_nats=off,zeromq=off";

/// `RUST_LOG`, levels of the whole and of parts as in `info,millwright::pipeline=debug`, overrides the default level.
fn start_logs(level: &str) {
    let asked =
        std::env::var("RUST_LOG").ok().filter(|levels| !levels.is_empty()).map(|levels| levels.parse::<Targets>());
    let (asked, wrong) = match asked.transpose() {
        Ok(asked) => (asked, None),
        Err(error) => (None, Some(error)),
    };
    let levels = asked.or_else(|| format!("{level},{QUIET}").parse().ok()).unwrap_or_default();
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colours);
    tracing_subscriber::registry().with(levels).with(lines).init();
    if let Some(error) = wrong {
        tracing::warn!(
            "RUST_LOG is not understood, and left aside: {error}; it takes levels as in `info,millwright::pipeline=debug`"
        );
    }
}

/// Why a command ends with another status than 0.
#[derive(Debug)]
pub(crate) struct Failure {
    /// [`FAILED`] or [`WRONG_USE`].
    pub(crate) status: u8,
    error: anyhow::Error,
}

impl Failure {
    /// Wrong arguments or configuration.
    pub(crate) fn wrong_use(error: impl Into<anyhow::Error>) -> Failure {
        Failure { status: WRONG_USE, error: error.into() }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut told = self.error.to_string();
        for cause in self.error.chain().skip(1).map(ToString::to_string) {
            // Many messages hold their cause already.
            if !told.contains(&cause) {
                told = format!("{told}: {cause}");
            }
        }
        f.write_str(&told)
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure { status: FAILED, error: error.into() }
    }
}

/// The runtime of commands that talk to the network.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}
