//! `model test`: what a model would have done with the telemetry that a gateway has stored.
//!
//! Owns the arguments and the words; [`crate::rehearsal`] does the work. Reads the log beside the running gateway.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use millwright_broker::log::{ReadError, StoredLog};
use millwright_models::contract::Contract;
use millwright_models::manifest::{CHUNK_BYTES_MAX, Manifest};
use millwright_models::runtime::LoadLimits;

use super::super::{Failure, output};
use super::read;
use crate::clock;
use crate::config::Config;
use crate::pipeline::fleet::{Installed, Origin};
use crate::pipeline::install;
use crate::rehearsal::words::{Told, duration};
use crate::rehearsal::{self, AssetRehearsal, Rehearsal, RehearsedAlert};

/// Alerts shown in the table; `--json` lists more.
const ALERTS_SHOWN: usize = 50;

/// Arguments of `model test`.
#[derive(Debug, Args)]
pub(super) struct TestArguments {
    /// The ONNX file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The gateway's configuration: where its log is, how topics are decoded, when an alert is raised
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// How many days to go back, as far as the log does
    #[arg(long, value_name = "DAYS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
    /// The assets it is for; `*` stands for any text, may be given several times. Default: the asset called like the model
    #[arg(long = "assets", visible_alias = "asset", value_name = "PATTERN")]
    assets: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the model over the log and tells what it would have done; status 0 whatever that is.
///
/// # Errors
/// Wrong use: no such file or configuration, not a model, no log. Else the log cannot be read.
pub(super) fn run(arguments: &TestArguments) -> Result<ExitCode, Failure> {
    let config = Config::load(&arguments.config).map_err(Failure::wrong_use)?.config;
    let model = Arc::new(load(arguments, &config)?);
    let unreadable = |error: ReadError| match error {
        ReadError::Missing { .. } | ReadError::NotALog { .. } => Failure::wrong_use(error),
        error => Failure::from(error),
    };
    let mut log = StoredLog::open(&config.gateway.data_dir).map_err(unreadable)?;
    let span = rehearsal::Span { days: arguments.days, until_us: clock::utc_us() };
    let rehearsal = rehearsal::run(&mut log, &config, &model, span, &|| false).map_err(unreadable)?;
    let told = Told::of(rehearsal, model.model.contract());
    if arguments.json {
        output::print_json(&told)?;
    } else {
        output::print(&text(&told.rehearsal, &told.summary, &told.notes));
    }
    Ok(ExitCode::SUCCESS)
}

/// Loads the model as the gateway would, for the assets that a manifest would name.
fn load(arguments: &TestArguments, config: &Config) -> Result<Installed, Failure> {
    let bytes = read(&arguments.file)?;
    let named = || arguments.file.display().to_string();
    let contract = Contract::read(&bytes).with_context(named).map_err(Failure::wrong_use)?;
    let manifest = Manifest::describe(contract.name.clone(), contract.version, &bytes, CHUNK_BYTES_MAX, None)
        .and_then(|manifest| manifest.for_assets(arguments.assets.clone()))
        .map_err(Failure::wrong_use)?;
    let limits = LoadLimits {
        file_bytes_max: usize::try_from(config.models.size_bytes_max).unwrap_or(usize::MAX),
        memory_bytes_max: config.models.memory_bytes_max.min(LoadLimits::default().memory_bytes_max),
        ..LoadLimits::default()
    };
    install::load(&bytes, Origin::Pushed, manifest.assets().to_vec(), &limits)
        .with_context(named)
        .map_err(Failure::wrong_use)
}

fn text(told: &Rehearsal, summary: &str, notes: &[String]) -> String {
    let mut text = String::new();
    if !told.assets.is_empty() {
        let heading = ["asset", "rows", "scored", "failed", "peak score", "alerts", "raised by the gateway"];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        rows.extend(told.assets.iter().map(asset_cells));
        text.push_str(&output::table(&rows));
        text.push('\n');
    }
    let alerts: Vec<(&str, &RehearsedAlert)> =
        told.assets.iter().flat_map(|asset| asset.alerts.iter().map(|alert| (asset.asset.as_str(), alert))).collect();
    if !alerts.is_empty() {
        let heading = ["asset", "raised", "up for", "severity", "peak score", "top channels"];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        rows.extend(alerts.iter().take(ALERTS_SHOWN).map(|(asset, alert)| alert_cells(asset, alert)));
        text.push_str(&output::table(&rows));
        let more = told.alerts.saturating_sub(alerts.len().min(ALERTS_SHOWN) as u64);
        if more > 0 {
            text.push_str(&format!("and {more} more\n"));
        }
        text.push('\n');
    }
    text.push_str(summary);
    text.push('\n');
    for note in notes {
        text.push_str(&format!("note: {note}\n"));
    }
    let fold = told.fold_us_per_row.map(|us| format!("; {us:.0} µs a row in the pipeline's fold")).unwrap_or_default();
    text.push_str(&format!("one inference took {:.0} µs{fold}\n", told.inference_us));
    text
}

fn asset_cells(asset: &AssetRehearsal) -> Vec<String> {
    vec![
        asset.asset.clone(),
        asset.rows.to_string(),
        asset.scored.to_string(),
        asset.score_errors.to_string(),
        asset.peak_score.map_or("-".to_owned(), |peak| format!("{peak:.2}")),
        asset.alerts_raised.to_string(),
        asset.stored_alerts.to_string(),
    ]
}

fn alert_cells(asset: &str, alert: &RehearsedAlert) -> Vec<String> {
    vec![
        asset.to_owned(),
        alert.raised.clone(),
        alert.duration_s.map_or("still up".to_owned(), duration),
        format!("{:?}", alert.severity).to_lowercase(),
        format!("{:.2}", alert.peak_score),
        alert.channels.join(", "),
    ]
}
