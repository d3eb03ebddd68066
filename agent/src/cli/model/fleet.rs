//! `model list`, `promote` and `rollback`: what a gateway does with its models, and orders about them.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use millwright_models::ModelName;
use serde_json::Value;

use super::super::http::Http;
use super::super::{FAILED, Failure, output, runtime};
use super::push::{Broker, word};
use super::secret_key;
use crate::clock;
use crate::ids::GatewayId;
use crate::models::order::{self, Wish};

/// Versions of a page.
const PAGE: &str = "200";

/// Arguments of `model list`.
#[derive(Debug, Args)]
pub(super) struct ListArguments {
    #[command(flatten)]
    http: Http,
    /// Show every step that was taken, newest first
    #[arg(long)]
    audit: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Arguments of `model promote` and `model rollback`.
#[derive(Debug, Args)]
pub(super) struct OrderArguments {
    /// The model
    #[arg(value_name = "MODEL")]
    model: String,
    /// The version to promote, or the one to go back from
    #[arg(long, value_name = "VERSION")]
    version: u64,
    /// The gateway's name
    #[arg(long, value_name = "NAME")]
    gateway: String,
    /// Why, for the audit trail
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Sign the order with this private key; needed where the gateway trusts only some keys
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    #[command(flatten)]
    broker: Broker,
    /// How long to wait for the gateway's answer, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    wait: u64,
    /// Print the answer as one JSON object
    #[arg(long)]
    json: bool,
}

/// Asks a gateway what became of its models.
pub(super) fn list(arguments: &ListArguments) -> Result<ExitCode, Failure> {
    let mut answer = page(&arguments.http, None)?;
    // The gateway keeps so few versions that this ends soon.
    while let Some(cursor) = answer.get("next").and_then(Value::as_str).map(str::to_owned) {
        let next = page(&arguments.http, Some(&cursor))?;
        append(&mut answer, &next);
    }
    if arguments.json {
        output::print_json(&answer)?;
        return Ok(ExitCode::SUCCESS);
    }
    let (rows, name) = if arguments.audit { ("audit", "model") } else { ("items", "name") };
    let rows = answer.get(rows).and_then(Value::as_array).cloned().unwrap_or_default();
    let time = if arguments.audit { "time_us" } else { "since_us" };
    let lines: Vec<String> = rows.iter().map(|row| line(row, name, time)).collect();
    let none = "no model was pushed to this gateway\n".to_owned();
    output::print(&if lines.is_empty() { none } else { lines.concat() });
    Ok(ExitCode::SUCCESS)
}

/// A page of the versions, and the newest steps of all.
fn page(http: &Http, cursor: Option<&str>) -> anyhow::Result<Value> {
    let query: Vec<(&str, &str)> =
        [("limit", PAGE)].into_iter().chain(cursor.map(|cursor| ("cursor", cursor))).collect();
    http.get("/api/v1/models", &query)
}

/// Puts a page behind those before it.
fn append(answer: &mut Value, page: &Value) {
    let more = page.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
    if let Some(items) = answer.get_mut("items").and_then(Value::as_array_mut) {
        items.extend(more);
    }
    if let Some(next) = answer.get_mut("next") {
        *next = page.get("next").cloned().unwrap_or_default();
    }
}

fn line(row: &Value, name: &str, time: &str) -> String {
    let time = row.get(time).and_then(Value::as_i64).map_or_else(String::new, clock::rfc3339);
    let version = row.get("version").and_then(Value::as_u64).unwrap_or(0);
    let reason = row.get("reason").and_then(Value::as_str).map_or_else(String::new, |reason| format!("  {reason}"));
    format!("{time}  {:<24} v{version:<6} {:<12}{reason}\n", word(row, name), word(row, "state"))
}

/// Gives an order and waits for what the gateway tells.
pub(super) fn order(wish: Wish, arguments: &OrderArguments) -> Result<ExitCode, Failure> {
    let model = ModelName::parse(&arguments.model).map_err(Failure::wrong_use)?;
    let gateway = GatewayId::parse(&arguments.gateway).map_err(Failure::wrong_use)?;
    let mut document = order::write(wish, model.clone(), arguments.version, arguments.reason.clone());
    if let Some(key) = &arguments.key {
        document = secret_key(key)?.sign(&document)?;
    }
    let state = format!("mw/v1/model/{model}/state/{gateway}");
    let messages = vec![(format!("mw/v1/gateway/{gateway}/command"), false, document)];
    let version = arguments.version;
    let about = move |answer: &Value| answer.get("version").and_then(Value::as_u64) == Some(version);
    let wait = Duration::from_secs(arguments.wait);
    let answer = runtime()?.block_on(arguments.broker.publish(&state, messages, &about, wait))?;
    let Some(answer) = answer else {
        return Err(anyhow::anyhow!(
            "the gateway has not done it within {} s: its log says why; `millwright model list` shows what it has",
            arguments.wait
        )
        .into());
    };
    if arguments.json {
        output::print_json(&answer)?;
    } else {
        output::print(&format!("{model} v{version} on {gateway}: {}\n", super::push::told(&answer)));
    }
    let wanted = match wish {
        Wish::Promote => "active",
        Wish::Rollback => "rolled-back",
    };
    let done = word(&answer, "state") == wanted || (wish == Wish::Rollback && word(&answer, "state") == "rejected");
    Ok(if done { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}
