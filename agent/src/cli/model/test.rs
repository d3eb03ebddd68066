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
use serde::Serialize;

use super::super::{Failure, output};
use super::read;
use crate::clock::{self, SECOND_US};
use crate::config::Config;
use crate::pipeline::fleet::{Installed, Origin};
use crate::pipeline::install;
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

/// The outcome with its words.
#[derive(Serialize)]
struct Told<'t> {
    summary: &'t str,
    notes: &'t [String],
    #[serde(flatten)]
    rehearsal: &'t Rehearsal,
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
    let rehearsal = rehearsal::run(&mut log, &config, &model, arguments.days, clock::utc_us()).map_err(unreadable)?;
    let summary = summary(&rehearsal);
    let notes = notes(&rehearsal, model.model.contract());
    if arguments.json {
        output::print_json(&Told { summary: &summary, notes: &notes, rehearsal: &rehearsal })?;
    } else {
        output::print(&text(&rehearsal, &summary, &notes));
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

/// One sentence: how many alerts, on how many assets, in which time.
fn summary(told: &Rehearsal) -> String {
    let alerting = told.assets.iter().filter(|asset| asset.alerts_raised > 0).count();
    let mut sentence = format!(
        "{} v{} would have raised {} on {} of {} in the last {}",
        told.model,
        told.version,
        counted(told.alerts, "alert"),
        alerting,
        counted(told.assets.len() as u64, "asset"),
        counted(u64::from(told.days), "day"),
    );
    if let Some((first_us, last_us)) = told.span_us {
        let (from, to) = (clock::rfc3339(first_us), clock::rfc3339(last_us));
        sentence.push_str(&format!(" (telemetry that arrived from {from} to {to})"));
    }
    if told.stored_alerts > 0 {
        let models: Vec<&str> = told.stored_models.iter().map(String::as_str).collect();
        sentence.push_str(&format!("; the gateway raised {} there, with {}", told.stored_alerts, models.join(", ")));
    }
    sentence.push('.');
    sentence
}

/// What qualifies the answer.
fn notes(told: &Rehearsal, contract: &Contract) -> Vec<String> {
    let mut notes = Vec::new();
    let mut note = |text: String| notes.push(text);
    match told.log_begins_us {
        None => note("the log holds no messages".to_owned()),
        Some(begins_us) => {
            let back_us = clock::utc_us().saturating_sub(begins_us);
            if back_us < i64::from(told.days) * 24 * 3_600 * SECOND_US {
                let (begins, back) = (clock::rfc3339(begins_us), duration(back_us as f64 / SECOND_US as f64));
                note(format!("the log goes back only to {begins}, {back}: older messages were dropped or never came"));
            }
            if told.rows == 0 {
                let patterns = told.patterns.join(", ");
                note(format!(
                    "no telemetry of an asset that matches {patterns} is in that time; name others with --assets"
                ));
            }
        }
    }
    if let Some(reason) = Rehearsal::window_too_long(contract) {
        note(reason);
    }
    for asset in &told.assets {
        if let Some(channel) = &asset.missing_channel {
            note(format!("{} never sent `{channel}`, which the model needs: nothing of it is scored", asset.asset));
        }
    }
    let failed: u64 = told.assets.iter().map(|asset| asset.score_errors).sum();
    if failed > 0 {
        note(format!("{} could not be scored; RUST_LOG=warn tells why", counted(failed, "row")));
    }
    if told.decode_errors > 0 {
        let last = told.last_decode_error.as_deref().unwrap_or_default();
        note(format!("{} could not be decoded, the last: {last}", counted(told.decode_errors, "message")));
    }
    if told.lost_messages > 0 {
        note(format!("{} were dropped while they were read, or are damaged", counted(told.lost_messages, "message")));
    }
    if told.refused_readings > 0 {
        note(format!("{} of assets beyond the limit are left out", counted(told.refused_readings, "reading")));
    }
    notes
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

fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7_200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3_600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Durations read as people say them, and one is not many.
    #[test]
    fn numbers_read_as_people_say_them() {
        for (seconds, text) in
            [(0.0, "0 s"), (119.0, "119 s"), (120.0, "2 min"), (7_200.0, "2.0 h"), (200_000.0, "2.3 days")]
        {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!((counted(1, "alert"), counted(0, "alert")), ("1 alert".to_owned(), "0 alerts".to_owned()));
    }
}
