//! `millwright run`: the gateway until it is told to stop.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{Failure, runtime};
use crate::config::Config;
use crate::gateway::Gateway;

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
    runtime()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let gateway = Gateway::start(&loaded.config).await?;
        tracing::info!(mqtt = %gateway.mqtt_addr(), http = %gateway.http_addr(), "serving");
        tokio::select! {
            _ = terminate.recv() => tracing::info!("stopping: SIGTERM"),
            _ = interrupt.recv() => tracing::info!("stopping: SIGINT"),
        }
        gateway.stop().await;
        tracing::info!("stopped");
        Ok(ExitCode::SUCCESS)
    })
}
