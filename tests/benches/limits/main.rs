//! What the gateway takes of its machine, and whether that has an end: memory, connections, TLS handshakes, and the time of a start.
//!
//! `cargo bench -p millwright-tests --bench limits -- [--only NAME] [--messages 10000000] [--names 100000] [--connections 10000]
//! [--seconds 120] [--runs 3] [--program FILE] [--quick]`
//!
//! Each scenario gets a gateway of its own, the program as users run it. A figure that is missed is printed, never an error;
//! the exit status is 1 only if a scenario does not work. `docs/BENCHMARKS.md` says what each figure means.
#![allow(clippy::print_stdout, reason = "the tables are what this program is for")]

mod connections;
mod handshakes;
mod memory;
#[path = "../process.rs"]
#[allow(dead_code, reason = "each benchmark uses a part")]
mod process;
mod publisher;
#[path = "../table.rs"]
#[allow(dead_code, reason = "each benchmark uses a part")]
mod table;
mod whole;

use std::process::ExitCode;

use clap::Parser;
use harness::gateway::Gateway;
use tempfile::TempDir;

use table::Figure;

/// The program under test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_millwright-under-test");

/// A folder on the disk of the build.
const SCRATCH: &str = env!("CARGO_TARGET_TMPDIR");

#[derive(Parser)]
#[command(about = "Measures what the gateway's broker takes of its machine.")]
struct Options {
    /// Only scenarios whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Messages after which memory must not have grown.
    #[arg(long, default_value_t = 10_000_000)]
    messages: u64,
    /// Client identifiers, and topics, after which memory must not have grown.
    #[arg(long, default_value_t = 100_000)]
    names: u32,
    /// Connections at a time.
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// How long a plant sends to the whole gateway.
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// The program of the scenario `whole`, as it is packaged.
    #[arg(long, default_value = PROGRAM)]
    program: String,
    /// Runs with and without the flood of handshakes, which take turns; and starts.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Little of everything: shows that the benchmark works, its figures mean nothing.
    #[arg(long)]
    quick: bool,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    fn is_quick(&self) -> bool {
        self.quick || cfg!(debug_assertions)
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let mut options = Options::parse();
    if options.is_quick() {
        println!("Few of everything: the figures mean nothing.\n");
        options = Options { messages: 20_000, names: 2_000, connections: 200, seconds: 5, runs: 2, ..options };
    }
    raise_file_limit()?;
    println!("{}\nload average at the start: {}\n", process::machine(), process::load_average());
    let mut figures: Vec<Figure> = Vec::new();
    for (name, run) in SCENARIOS.iter().filter(|(name, _)| name.contains(&options.only)) {
        println!("{name} …");
        figures.extend(run(&options)?);
    }
    println!("\n{}", table::figures(&figures));
    println!("load average at the end: {}", process::load_average());
    Ok(ExitCode::SUCCESS)
}

type Run = fn(&Options) -> anyhow::Result<Vec<Figure>>;

const SCENARIOS: [(&str, Run); 4] = [
    ("memory", memory::run),
    ("connections", connections::run),
    ("handshakes", handshakes::run),
    ("whole", whole::run),
];

/// A gateway with these settings of `[broker]`, in a folder of its own.
struct Measured {
    gateway: Gateway,
    _dir: TempDir,
}

impl Measured {
    fn start(dir: TempDir, settings: &str) -> anyhow::Result<Measured> {
        let config = format!("[broker]\nlisten = \"127.0.0.1:0\"\nmax_connections_per_network = 100000\n{settings}");
        Ok(Measured { gateway: Gateway::start(PROGRAM, dir.path(), &config)?, _dir: dir })
    }

    /// Resident memory in MiB.
    fn rss_mib(&self) -> Option<f64> {
        process::rss_kib_of(self.gateway.pid()).map(|kib| kib as f64 / 1_024.0)
    }
}

fn scratch() -> std::io::Result<TempDir> {
    tempfile::Builder::new().prefix("limits-").tempdir_in(SCRATCH)
}

/// Ten thousand connections are ten thousand files, here too.
fn raise_file_limit() -> anyhow::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}
