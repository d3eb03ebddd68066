//! `millwright backup`: a gateway's data directory in one file, while it runs.
//!
//! Owns the words. See [`crate::backup`] for what is in the file and how it is made.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::bar::Bar;
use super::{Failure, output};
use crate::backup::make::{Made, make};
use crate::backup::manifest::Manifest;
use crate::clock;
use crate::config::{Config, files};

/// Arguments of `backup`.
#[derive(Debug, Args)]
pub(super) struct BackupArguments {
    /// The gateway's configuration: where its data are; it becomes part of the backup
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The file to write, a tar archive for its owner alone; one of this name is replaced when the new one is whole
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// Print one JSON object with what was written
    #[arg(long)]
    json: bool,
}

/// What `--json` tells.
#[derive(Serialize)]
struct Summary<'s> {
    file: &'s Path,
    bytes: u64,
    #[serde(flatten)]
    manifest: &'s Manifest,
    /// Files that the configuration names, which are not in the backup.
    not_in_it: Vec<&'s Path>,
}

/// Makes a backup.
///
/// # Errors
/// Wrong use: the configuration is wrong. Else what is read or written fails; there is no backup then.
pub(super) fn run(arguments: &BackupArguments) -> Result<ExitCode, Failure> {
    let config = Config::load(&arguments.config).map_err(Failure::wrong_use)?.config;
    let mut bar = Bar::new();
    let made = make(&config, &arguments.config, &arguments.to, &mut |done| {
        bar.draw(done);
    });
    bar.clear();
    let made = made?;
    let mut not_in_it: Vec<&Path> = files::named(&config).iter().map(|named| named.path).collect();
    not_in_it.sort();
    not_in_it.dedup();
    if arguments.json {
        let Made { bytes, manifest } = &made;
        output::print_json(&Summary { file: &arguments.to, bytes: *bytes, manifest, not_in_it })?;
    } else {
        output::print(&text(&made, &arguments.to, &not_in_it));
    }
    Ok(ExitCode::SUCCESS)
}

fn text(made: &Made, to: &Path, not_in_it: &[&Path]) -> String {
    let manifest = &made.manifest;
    let models = manifest.parts.iter().filter(|part| part.name.ends_with(".onnx")).count();
    let messages = manifest.head.saturating_sub(manifest.oldest);
    let mut text = format!(
        "{}: gateway {} as of {}: {messages} messages, {models} models, {} bytes; read back and compared\n",
        to.display(),
        manifest.gateway,
        clock::rfc3339(manifest.made_us),
        made.bytes
    );
    if !manifest.has("state.db") {
        text.push_str("note: there is no state.db: the gateway has folded nothing yet\n");
    }
    if !not_in_it.is_empty() {
        text.push_str("not in it, as the configuration only names them: keep copies elsewhere\n");
        not_in_it.iter().for_each(|path| text.push_str(&format!("  {}\n", path.display())));
    }
    text
}
