//! How fast a backlog goes upstream, against a bare loop of the same client library, and what forwarding costs ingest.
//!
//! `cargo bench -p millwright-tests --bench upstream -- [--only NAME] [--messages 1000000] [--seconds 10] [--runs 3] [--quick]`
//!
//! Needs the servers of `tests/upstream`; what is not there is named and left out. Servers run with the lowest priority: they would be
//! on another machine. A figure that is missed is printed, never an error.
#![allow(clippy::print_stdout, reason = "the tables are what this program is for")]

mod bare;
mod drain;
mod ingest;
#[path = "../../upstream/kafka.rs"]
#[allow(dead_code, reason = "tests use the rest")]
mod kafka;
#[path = "../../upstream/kind.rs"]
#[allow(dead_code, reason = "tests use the rest")]
mod kind;
#[path = "../process.rs"]
#[allow(dead_code, reason = "each benchmark uses a part")]
mod machine;
#[path = "../../upstream/process.rs"]
#[allow(dead_code, reason = "tests use the rest")]
mod process;
#[path = "../limits/publisher.rs"]
mod publisher;
#[path = "../../upstream/rabbit.rs"]
#[allow(dead_code, reason = "tests use the rest")]
mod rabbit;
/// What the tests' modules ask for under this name.
mod stage {
    pub(crate) use crate::PROGRAM;
}
#[path = "../../upstream/secrets.rs"]
#[allow(dead_code, reason = "tests use the rest")]
mod secrets;
#[path = "../table.rs"]
#[allow(dead_code, reason = "each benchmark uses a part")]
mod table;
#[path = "../../upstream/terminator.rs"]
#[allow(dead_code, reason = "tests use it")]
mod terminator;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use tempfile::TempDir;

use kind::{Kind, Server, Want};
use table::Figure;

/// The program under test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_millwright-under-test");

/// A folder on the disk of the build.
const SCRATCH: &str = env!("CARGO_TARGET_TMPDIR");

/// What an ordinary message has.
const PAYLOAD_BYTES: usize = 256;

#[derive(Parser)]
#[command(about = "Measures how fast the gateway forwards, and what that costs.")]
struct Options {
    /// Only scenarios whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Messages of a backlog.
    #[arg(long, default_value_t = 1_000_000)]
    messages: usize,
    /// How long each run of ingest takes.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Runs of ingest with and without forwarding; they take turns.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Little of everything: shows that the benchmark works, its figures mean nothing.
    #[arg(long)]
    quick: bool,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let mut options = Options::parse();
    if options.quick || cfg!(debug_assertions) {
        println!("Few of everything: the figures mean nothing.\n");
        options = Options { messages: 5_000, seconds: 1, runs: 1, ..options };
    }
    println!("{}\nload average at the start: {}\n", machine::machine(), machine::load_average());
    let mut figures: Vec<Figure> = Vec::new();
    for (name, kind, run) in SCENARIOS.iter().filter(|(name, ..)| name.contains(&options.only)) {
        match kind.find() {
            Ok(()) => {
                println!("{name} …");
                figures.extend(run(*kind, &options)?);
            }
            Err(missing) => println!("{name} is left out: {}\n  {}", missing.reason, missing.remedy),
        }
    }
    secrets::Secrets::forget();
    println!("\n{}", table::figures(&figures));
    println!("load average at the end: {}", machine::load_average());
    Ok(ExitCode::SUCCESS)
}

type Run = fn(&dyn Kind, &Options) -> anyhow::Result<Vec<Figure>>;

const SCENARIOS: [(&str, &dyn Kind, Run); 4] = [
    ("drain RabbitMQ (quorum queue)", &rabbit::QUORUM, drain::run),
    ("drain Kafka (mock cluster)", &kafka::MOCK, drain::run),
    ("drain Kafka (tansu)", &kafka::TANSU, drain::run),
    ("ingest beside RabbitMQ (quorum queue)", &rabbit::QUORUM, ingest::run),
];

/// A server with the lowest priority. Linux gives a child the priority of the thread that starts it.
fn start_server(kind: &dyn Kind, dir: &Path) -> anyhow::Result<Box<dyn Server>> {
    std::thread::scope(|scope| {
        let starting = scope.spawn(|| {
            // Without it the figures are only worse.
            let _ = rustix::process::nice(19);
            kind.start(dir, Want { alone: true, ..Want::default() })
        });
        starting.join().map_err(|_| anyhow::anyhow!("the server's thread panicked"))?
    })
}

fn scratch() -> std::io::Result<TempDir> {
    tempfile::Builder::new().prefix("upstream-").tempdir_in(SCRATCH)
}

/// The sections of a gateway that forwards everything, or nothing.
fn config(server: Option<&dyn Server>, dir: &Path) -> anyhow::Result<String> {
    let log = "[log]\nquota_mb = 4096\n";
    let Some(server) = server else { return Ok(log.to_owned()) };
    let keys = server.upstream(dir)?;
    Ok(format!(
        "{log}[[upstream]]\nname = \"bench\"\naddress = \"{}\"\nsend = [\"alerts\", \"other\"]\n{keys}",
        server.address()
    ))
}
