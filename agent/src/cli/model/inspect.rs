//! `model inspect`: what a model file says of itself, and how the engine runs it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use millwright_models::contract::{Contract, InputKind};
use millwright_models::runtime::{Explanation, LoadLimits, Model};
use serde_json::json;

use super::super::{FAILED, Failure, output};
use super::read;

/// Arguments of `model inspect`.
#[derive(Debug, Args)]
pub(super) struct InspectArguments {
    /// The ONNX file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Prints the contract, and whether the model runs; status 1 when it does not.
pub(super) fn run(arguments: &InspectArguments) -> Result<ExitCode, Failure> {
    let bytes = read(&arguments.file)?;
    let contract = Contract::read(&bytes).map_err(Failure::wrong_use)?;
    let loaded = Model::load(&bytes, &LoadLimits::default());
    let runs = loaded.is_ok();
    let refused = loaded.as_ref().err().map(ToString::to_string);
    let metadata: serde_json::Map<_, _> =
        contract.to_metadata().into_iter().map(|(key, value)| (key, value.into())).collect();
    if arguments.json {
        output::print_json(&json!({
            "name": contract.name.to_string(), "version": contract.version, "sha256": millwright_models::Digest::of(&bytes).to_string(),
            "bytes": bytes.len(), "metadata": metadata, "runs": runs, "reason": refused,
            "any_batch": loaded.as_ref().ok().map(Model::any_batch),
            "explanation": loaded.as_ref().ok().map(|model| explanation(model.explanation())),
        }))?;
    } else {
        output::print(&text(&contract, bytes.len(), &loaded.map_err(|error| error.to_string())));
    }
    Ok(if runs { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn text(contract: &Contract, bytes: usize, loaded: &Result<Model, String>) -> String {
    let channels: Vec<String> = contract
        .channels
        .iter()
        .map(|channel| match &channel.unit {
            Some(unit) => format!("{} [{unit}]", channel.name),
            None => channel.name.clone(),
        })
        .collect();
    let input = match &contract.input {
        InputKind::Window => "window".to_owned(),
        InputKind::Features(features) => {
            format!("features {}", features.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
        }
    };
    let interval = contract.interval_ms.map_or_else(String::new, |ms| format!(" every {ms} ms"));
    let runs = match loaded {
        Ok(model) => {
            let batch = if model.any_batch() { "any batch" } else { "window by window" };
            format!("yes, {batch}; {}", explanation(model.explanation()))
        }
        Err(reason) => format!("no: {reason}"),
    };
    let trained = contract.provenance.trained_from.as_deref().unwrap_or("not said");
    format!(
        "{} v{}, {bytes} bytes\nchannels  {}\nwindow    {} samples{interval}\ninput     {input}\noutput    {}\ntrained   {trained}\ngolden    {} windows\nruns      {runs}\n",
        contract.name,
        contract.version,
        channels.join(", "),
        contract.samples,
        contract.output,
        contract.golden.len(),
    )
}

fn explanation(explanation: Explanation) -> &'static str {
    match explanation {
        Explanation::Graph => "contributions from the graph",
        Explanation::Residual => "contributions from the residuals",
        Explanation::Occlusion => "contributions by occlusion",
        Explanation::None => "no contributions: the metadata names no normals",
    }
}
