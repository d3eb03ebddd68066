//! What the clients connect to: a gateway of the run's own, or for checking the scenarios themselves another broker.

use std::net::SocketAddr;

use anyhow::Context;
use harness::gateway::Gateway;
use tempfile::TempDir;

use crate::way::Way;

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_millwright-under-test");

/// Names another broker (`address:port`) that the scenarios are played against; crashes are left out then.
pub(crate) const FOREIGN: &str = "MILLWRIGHT_CLIENTS_BROKER";

/// The other broker, if one is named.
pub(crate) fn foreign() -> anyhow::Result<Option<SocketAddr>> {
    let named = std::env::var(FOREIGN).ok();
    named.map(|addr| addr.parse().with_context(|| format!("{FOREIGN} is not an address: {addr}"))).transpose()
}

/// A broker for one scenario.
pub(crate) enum Broker {
    Own { gateway: Gateway, dir: TempDir, way: Way, extra: String },
    Foreign(SocketAddr),
}

impl Broker {
    /// One that serves `way`, with the sections `extra`.
    pub(crate) fn start(way: Way, extra: String) -> anyhow::Result<Broker> {
        if let Some(addr) = foreign()? {
            return Ok(Broker::Foreign(addr));
        }
        let dir = tempfile::tempdir()?;
        Ok(Broker::Own { gateway: Gateway::start(PROGRAM, dir.path(), &extra)?, dir, way, extra })
    }

    /// Where the clients of its way connect.
    pub(crate) fn addr(&self) -> anyhow::Result<SocketAddr> {
        match self {
            Broker::Own { gateway, way, .. } => match way.layers() {
                None => Ok(gateway.mqtt),
                Some(layers) => gateway.over(layers).context("the gateway does not serve the way"),
            },
            Broker::Foreign(addr) => Ok(*addr),
        }
    }

    /// Kills it with SIGKILL and starts another on what it left.
    pub(crate) fn crash(self) -> anyhow::Result<Broker> {
        match self {
            Broker::Own { gateway, dir, way, extra } => {
                gateway.kill()?;
                let gateway = Gateway::start(PROGRAM, dir.path(), &extra)?;
                Ok(Broker::Own { gateway, dir, way, extra })
            }
            Broker::Foreign(_) => anyhow::bail!("only the gateway is killed"),
        }
    }

    /// Whether it has lived through the scenario.
    pub(crate) fn check_sound(&mut self) -> anyhow::Result<()> {
        if let Broker::Own { gateway, .. } = self {
            anyhow::ensure!(gateway.is_running(), "the gateway has ended");
            anyhow::ensure!(!gateway.log().contains("panicked"), "a task of the gateway has panicked");
        }
        Ok(())
    }

    /// What it logged.
    pub(crate) fn log(&self) -> String {
        match self {
            Broker::Own { gateway, .. } => gateway.log(),
            Broker::Foreign(addr) => format!("(the log of {addr} is not ours)"),
        }
    }
}
