//! `millwright run`: the gateway until it is told to stop. SIGHUP has it read its certificates again. A service manager that
//! started it is kept informed.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{Failure, runtime};
use crate::config::Config;
use crate::descriptors;
use crate::gateway::Gateway;
use crate::supervisor::Supervisor;

/// Arguments of `run`.
#[derive(Debug, Args)]
pub(super) struct RunArguments {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Runs the gateway: logs, configuration, build, wait, drain.
///
/// # Errors
/// The configuration is wrong, or the gateway cannot start.
pub(super) fn run(arguments: &RunArguments) -> Result<ExitCode, Failure> {
    let loaded = Config::load(&arguments.config).map_err(Failure::wrong_use)?;
    for warning in &loaded.warnings {
        tracing::warn!("{}", warning.line_for(&arguments.config.display().to_string()));
    }
    descriptors::raise();
    runtime()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let gateway = Gateway::start(&loaded.config).await?;
        tell_addresses(&gateway);
        let mut supervisor = Supervisor::new(gateway.pulses());
        supervisor.ready();
        loop {
            tokio::select! {
                _ = terminate.recv() => {
                    tracing::info!("stopping: SIGTERM");
                    break;
                }
                _ = interrupt.recv() => {
                    tracing::info!("stopping: SIGINT");
                    break;
                }
                _ = hangup.recv() => {
                    supervisor.reloading();
                    gateway.reload_certificates();
                    supervisor.ready();
                }
                () = supervisor.due() => supervisor.look(gateway.degraded()),
            }
        }
        supervisor.stopping();
        gateway.stop().await;
        tracing::info!("stopped");
        Ok(ExitCode::SUCCESS)
    })
}

fn tell_addresses(gateway: &Gateway) {
    let addresses = gateway.mqtt_addresses();
    let others = [("tls", addresses.tls), ("ws", addresses.websocket), ("wss", addresses.websocket_tls)];
    for (layers, address) in others {
        if let Some(address) = address {
            tracing::info!(%address, layers, "serving MQTT");
        }
    }
    tracing::info!(mqtt = %addresses.tcp, http = %gateway.http_addr(), "serving");
}
