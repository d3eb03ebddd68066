//! `millwright restore`: a backup in the place of a gateway's data.
//!
//! Owns the words, and who takes the backup: this command if no gateway runs on the data directory, else the gateway at its next start.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use millwright_broker::log::{DirLock, OpenError};
use serde::Serialize;

use super::bar::Bar;
use super::{Failure, output};
use crate::backup::manifest::Manifest;
use crate::backup::stage::{Laid, lay_out};
use crate::backup::swap::{STAGED, Taken, take};
use crate::backup::{BackupError, stage};
use crate::clock;
use crate::config::Config;

/// Arguments of `restore`.
#[derive(Debug, Args)]
pub(super) struct RestoreArguments {
    /// The gateway's configuration: where its data are
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The backup, as `millwright backup` wrote it
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// Take the backup of a gateway with another id
    #[arg(long)]
    force: bool,
    /// Print one JSON object with what was done
    #[arg(long)]
    json: bool,
}

/// What `--json` tells.
#[derive(Serialize)]
struct Summary<'s> {
    /// `taken`, or `waiting` for the start of the gateway.
    state: &'static str,
    data_dir: &'s Path,
    /// Where the data are that were there before.
    kept: Option<&'s Path>,
    other_config: bool,
    #[serde(flatten)]
    manifest: &'s Manifest,
}

/// Restores.
///
/// # Errors
/// Wrong use: the configuration is wrong, the backup is of another gateway or of a newer version. Else the backup is damaged, or
/// something cannot be written; the data are as they were then.
pub(super) fn run(arguments: &RestoreArguments) -> Result<ExitCode, Failure> {
    let config = Config::load(&arguments.config).map_err(Failure::wrong_use)?.config;
    let dir = &config.gateway.data_dir;
    let mut bar = Bar::new();
    let laid = lay_out(&config, &arguments.config, &arguments.from, arguments.force, &mut |done| {
        bar.draw(done);
    });
    bar.clear();
    let laid = laid.map_err(failure)?;
    let taken = match DirLock::take(dir) {
        Ok(lock) => {
            stage::own_lock(dir)?;
            take(dir, &lock)?
        }
        Err(OpenError::InUse { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    if arguments.json {
        let kept = taken.as_ref().and_then(|taken| taken.aside.as_deref());
        let state = if taken.is_some() { "taken" } else { "waiting" };
        let other_config = laid.other_config;
        output::print_json(&Summary { state, data_dir: dir, kept, other_config, manifest: &laid.manifest })?;
    } else {
        output::print(&text(&laid, taken.as_ref(), dir, arguments));
    }
    Ok(ExitCode::SUCCESS)
}

fn failure(error: BackupError) -> Failure {
    match error {
        BackupError::OtherGateway { .. } | BackupError::Newer { .. } | BackupError::Waiting { .. } => {
            Failure::wrong_use(error)
        }
        error => error.into(),
    }
}

fn text(laid: &Laid, taken: Option<&Taken>, dir: &Path, arguments: &RestoreArguments) -> String {
    let manifest = &laid.manifest;
    let mut text = format!(
        "the backup of gateway {} as of {} is whole: {} messages\n",
        manifest.gateway,
        clock::rfc3339(manifest.made_us),
        manifest.head.saturating_sub(manifest.oldest)
    );
    match taken {
        None => text.push_str(&format!(
            "a gateway is running on {}: the backup waits in {} and is taken when the gateway starts anew. Until then everything goes on \
             as before; if you change your mind, remove that folder while it still runs\n",
            dir.display(),
            dir.join(STAGED).display()
        )),
        Some(Taken { aside, .. }) => {
            text.push_str(&format!("it is in place in {}: start the gateway\n", dir.display()));
            if let Some(aside) = aside {
                text.push_str(&format!(
                    "the data before it are kept in {}; remove them when you need them no more\n",
                    aside.display()
                ));
            }
        }
    }
    let is_root = rustix::process::geteuid().is_root();
    if is_root && std::fs::metadata(dir).is_ok_and(|found| found.uid() == 0) {
        let dir = dir.display();
        text.push_str(&format!(
            "note: all of it belongs to root; `chown -R USER {dir}` if the gateway runs as another user\n"
        ));
    }
    if laid.other_config {
        text.push_str(&format!(
            "note: the configuration in the backup is another than {}; `tar -xOf {} gateway.toml` shows it\n",
            arguments.config.display(),
            arguments.from.display()
        ));
    }
    text
}
