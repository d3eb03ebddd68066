//! The brokers that are measured: the gateway as users run it, mosquitto, or one that runs already.
//!
//! Owns the processes: each run gets a new one with an empty data directory, ended when dropped. Everything is on this
//! machine's loopback; data directories are below the build directory, on a disk.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use harness::gateway::Gateway;
use harness::wait_for;
use tempfile::TempDir;

use crate::process::{self, Usage};

/// A folder on the disk of the build.
const SCRATCH: &str = env!("CARGO_TARGET_TMPDIR");

/// Which broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Gateway {
        commit_delay_ms: u64,
    },
    /// Either setting is faster somewhere: without delay each packet leaves at once, in a segment of its own.
    Mosquitto {
        tcp_nodelay: bool,
    },
    Running(SocketAddr),
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Kind::Gateway { .. } => f.write_str("gateway"),
            Kind::Mosquitto { .. } => f.write_str("mosquitto"),
            Kind::Running(addr) => addr.fmt(f),
        }
    }
}

/// A broker that serves.
pub(crate) struct Broker {
    pub(crate) addr: SocketAddr,
    process: Process,
    _dir: TempDir,
}

enum Process {
    Gateway(Gateway),
    Mosquitto(Ended),
    Running,
}

/// A child that does not outlive its owner.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn scratch() -> anyhow::Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("bench-").tempdir_in(SCRATCH)?)
}

/// Its version, if mosquitto is installed.
pub(crate) fn mosquitto_version() -> Option<String> {
    let output = Command::new("mosquitto").arg("-h").output().ok()?;
    String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned)
}

impl Broker {
    pub(crate) fn start(kind: Kind) -> anyhow::Result<Broker> {
        let dir = scratch()?;
        let (addr, process) = match kind {
            Kind::Gateway { commit_delay_ms } => {
                let program = env!("CARGO_BIN_EXE_millwright-under-test");
                let log = format!("[log]\ncommit_delay_ms = {commit_delay_ms}\n");
                let gateway = Gateway::start(program, dir.path(), &log)?;
                (gateway.mqtt, Process::Gateway(gateway))
            }
            Kind::Mosquitto { tcp_nodelay } => {
                let (addr, child) = start_mosquitto(dir.path(), tcp_nodelay)?;
                (addr, Process::Mosquitto(child))
            }
            Kind::Running(addr) => (addr, Process::Running),
        };
        Ok(Broker { addr, process, _dir: dir })
    }

    fn pid(&self) -> Option<u32> {
        match &self.process {
            Process::Gateway(gateway) => Some(gateway.pid()),
            Process::Mosquitto(child) => Some(child.0.id()),
            Process::Running => None,
        }
    }

    pub(crate) fn usage(&self) -> Option<Usage> {
        Usage::of(self.pid()?)
    }

    pub(crate) fn peak_rss_mib(&self) -> Option<f64> {
        Some(process::peak_rss_kib(self.pid()?)? as f64 / 1_024.0)
    }

    /// Commits of the gateway's log since its start.
    pub(crate) fn commits(&self) -> Option<u64> {
        let Process::Gateway(gateway) = &self.process else { return None };
        gateway.status().ok()?.pointer("/log/commits")?.as_u64()
    }
}

/// Everything in memory, nothing limited, nothing logged: mosquitto at its fastest that loses nothing.
fn mosquitto_config(port: u16, tcp_nodelay: bool) -> String {
    format!(
        "listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nset_tcp_nodelay {tcp_nodelay}\n\
         max_queued_messages 0\nmax_queued_bytes 0\nmax_inflight_messages 0\nmax_inflight_bytes 0\nmemory_limit 0\n\
         sys_interval 0\nlog_dest none\n"
    )
}

fn start_mosquitto(dir: &Path, tcp_nodelay: bool) -> anyhow::Result<(SocketAddr, Ended)> {
    // The port is free when mosquitto binds it, unless another process is quicker: then it ends, and the wait fails.
    let addr = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let config = dir.join("mosquitto.conf");
    std::fs::write(&config, mosquitto_config(addr.port(), tcp_nodelay))?;
    let child = Command::new("mosquitto")
        .arg("-c")
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("mosquitto does not start")?;
    let child = Ended(child);
    wait_for("mosquitto to serve", || TcpStream::connect(addr).ok())?;
    Ok((addr, child))
}
