//! `millwright status`: what a running gateway does.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::http::Http;
use super::{FAILED, Failure, output};
use crate::config::Config;

/// Arguments of `status`.
#[derive(Debug, Args)]
pub(super) struct StatusArguments {
    /// The configuration of the gateway to ask, for its [http] address
    #[arg(long, value_name = "FILE", conflicts_with = "address")]
    config: Option<PathBuf>,
    #[command(flatten)]
    http: Http,
    /// Print the status as one JSON object
    #[arg(long)]
    json: bool,
}

/// Asks and prints. The exit status is 1 when the gateway is in trouble or does not answer.
///
/// # Errors
/// The gateway cannot be asked.
pub(super) fn run(arguments: StatusArguments) -> Result<ExitCode, Failure> {
    let mut http = arguments.http;
    if let Some(path) = &arguments.config {
        let configured = Config::load(path).map_err(Failure::wrong_use)?.config.http;
        let scheme = if configured.tls.is_some() { "https" } else { "http" };
        http.address = format!("{scheme}://{}", configured.listen);
    }
    let status = http.get("/api/v1/status", &[])?;
    if arguments.json {
        output::print_json(&status)?;
    } else {
        output::print(&text(&status));
    }
    let well = status.get("trouble").is_none_or(Value::is_null);
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn text(status: &Value) -> String {
    let word = |pointer: &str| match status.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => "-".to_owned(),
        Some(value) => value.to_string(),
    };
    let rate = |pointer: &str| {
        status.pointer(pointer).and_then(Value::as_f64).map_or("-".to_owned(), |rate| format!("{rate:.1}"))
    };
    let mut text = format!(
        "{} {} up {} s\ntrouble    {}\ninference  λ {} msg/s, μ {} msg/s, backlog {}, drained in {} s\n\n",
        word("/gateway"),
        word("/version"),
        word("/uptime_s"),
        word("/trouble"),
        rate("/pipeline/queue/arrivals_per_s"),
        rate("/pipeline/queue/service_per_s"),
        word("/pipeline/queue/backlog"),
        rate("/pipeline/queue/drain_s"),
    );
    for up in status.get("upstreams").and_then(Value::as_array).into_iter().flatten() {
        let word = |key: &str| {
            up.get(key).map_or("-".to_owned(), |value| value.as_str().map_or(value.to_string(), str::to_owned))
        };
        text.push_str(&format!(
            "upstream   {} ({}): {}, {} behind\n",
            word("name"),
            word("kind"),
            word("link"),
            word("backlog")
        ));
        if let Some(error) = up.get("error").and_then(Value::as_str) {
            text.push_str(&format!("           {error}\n"));
        }
    }
    for up in status.get("conditions").and_then(Value::as_array).into_iter().flatten() {
        let word = |key: &str| up.get(key).and_then(Value::as_str).unwrap_or("-");
        let (severity, code) = (word("severity"), word("code"));
        text.push_str(&format!("{severity} {code}: {}\n  {}\n", word("text"), word("remedy")));
    }
    let heading = ["asset", "state", "health", "score", "model", "samples", "scored", "alert"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    let assets = status.pointer("/pipeline/assets").and_then(Value::as_array);
    rows.extend(assets.into_iter().flatten().map(asset_row));
    text.push_str(&output::table(&rows));
    text
}

fn asset_row(asset: &Value) -> Vec<String> {
    let word = |key: &str| asset.get(key).and_then(Value::as_str).unwrap_or("-").to_owned();
    let number = |key: &str, digits: usize| {
        asset.get(key).and_then(Value::as_f64).map_or("-".to_owned(), |value| format!("{value:.digits$}"))
    };
    let model = match (asset.pointer("/model/name").and_then(Value::as_str), asset.pointer("/model/version")) {
        (Some(name), Some(version)) => format!("{name} v{version}"),
        _ => asset
            .pointer("/learning/0")
            .zip(asset.pointer("/learning/1"))
            .map_or("-".to_owned(), |(have, need)| format!("learning {have} of {need}")),
    };
    vec![
        word("asset"),
        word("state"),
        number("health", 0),
        number("score", 2),
        model,
        number("samples", 0),
        number("scored", 0),
        word("alert"),
    ]
}
