//! `millwright doctor`: one line for each check of the machine, and what to do.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::{FAILED, Failure, output};
use crate::doctor::{Finding, Verdict, examine};

/// The widest name of a check.
const NAME_WIDTH: usize = 16;

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub(super) struct DoctorArguments {
    /// The gateway's configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    verdict: Verdict,
    findings: Vec<Finding>,
}

/// Examines and prints; the exit status is 1 if a check fails.
///
/// # Errors
/// The configuration cannot be read.
pub(super) fn run(arguments: &DoctorArguments) -> Result<ExitCode, Failure> {
    let mut findings = Vec::new();
    examine(&arguments.config, &mut |finding| {
        if !arguments.json {
            output::print(&line(&finding));
        }
        findings.push(finding);
    })
    .map_err(Failure::wrong_use)?;
    let verdict = findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Ok);
    if arguments.json {
        output::print_json(&Report { verdict, findings })?;
    }
    Ok(if verdict == Verdict::Fail { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
}

fn line(finding: &Finding) -> String {
    let Finding { check, verdict, text, remedy } = finding;
    let remedy = remedy.as_ref().map(|remedy| format!(" → {remedy}")).unwrap_or_default();
    format!("{:4}  {check:NAME_WIDTH$}  {text}{remedy}\n", verdict.word())
}
