//! Node and Chromium, and the conversation with a scenario: it prints a line for each wish and reads a line when it is done.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/browser/run.js");
/// Where Chromium is looked for; `MILLWRIGHT_CHROMIUM` names another place.
const CHROMIUM: [&str; 2] = ["/usr/bin/chromium", "/usr/bin/chromium-browser"];
/// Longest life of a scenario: it gives up each wait after 60 s.
const PATIENCE: Duration = Duration::from_secs(400);

/// What scenarios are played with.
#[derive(Debug, Clone)]
pub(crate) struct Browser {
    chromium: PathBuf,
}

impl Browser {
    /// Looks for it.
    ///
    /// # Errors
    /// What is missing.
    pub(crate) fn find() -> Result<Browser, String> {
        let named = std::env::var_os("MILLWRIGHT_CHROMIUM").map(PathBuf::from);
        let places = named.into_iter().chain(CHROMIUM.map(PathBuf::from));
        let chromium = places.into_iter().find(|place| place.is_file()).ok_or("there is no Chromium")?;
        let output = node().args([SCRIPT, "--version"]).stdin(Stdio::null()).output();
        let output = output.map_err(|_| "there is no `node`")?;
        if output.status.success() {
            Ok(Browser { chromium })
        } else {
            Err("`node` finds no playwright-core and axe-core".to_owned())
        }
    }

    /// Plays a scenario to its end; `act` carries out what it wishes. Returns what it measured.
    ///
    /// # Errors
    /// The page did not do what the scenario expects.
    pub(crate) fn play(
        &self,
        name: &str,
        mut given: Value,
        mut act: impl FnMut(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<Value> {
        given["chromium"] = json!(self.chromium);
        given["failed"] = json!(std::env::var("MILLWRIGHT_BROWSER_FAILED").ok());
        let mut child = node()
            .args([SCRIPT, name, &given.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let result = converse(&mut child, &mut act);
        // A scenario that has ended is no longer there to be killed.
        let _ = child.kill();
        let _ = child.wait();
        result
    }
}

/// Node, with the folder of modules that it is to search, if one is named; beside the script it looks by itself.
fn node() -> Command {
    let mut command = Command::new("node");
    if let Some(modules) = std::env::var_os("MILLWRIGHT_BROWSER_MODULES") {
        command.env("NODE_PATH", modules);
    }
    command
}

fn converse(child: &mut Child, act: &mut impl FnMut(&str) -> anyhow::Result<()>) -> anyhow::Result<Value> {
    let mut stdin = child.stdin.take().context("the script's stdin is piped")?;
    let stdout = child.stdout.take().context("the script's stdout is piped")?;
    let mut stderr = child.stderr.take().context("the script's stderr is piped")?;
    let (line_in, lines) = mpsc::sync_channel(16);
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if line_in.send(line).is_err() {
                break;
            }
        }
    });
    let stderr = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = stderr.read_to_string(&mut text);
        text
    });
    let deadline = Instant::now() + PATIENCE;
    loop {
        let line = match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => line,
            Err(mpsc::RecvTimeoutError::Timeout) => bail!("the script did not end within {PATIENCE:?}"),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                bail!("the script ended without a word: {}", stderr.join().unwrap_or_default())
            }
        };
        let told: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        let Some(wish) = told["ask"].as_str() else {
            ensure!(told["ok"] == true, "{}", told["error"].as_str().unwrap_or(&line));
            return Ok(told["figures"].clone());
        };
        let answer = match act(wish) {
            Ok(()) => json!({}),
            Err(error) => json!({ "error": format!("{wish}: {error:#}") }),
        };
        writeln!(stdin, "{answer}")?;
    }
}
