//! Clients that are scripts: one process plays one step and prints one line of JSON.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::kind::Turn;
use crate::scenarios::Step;
use crate::way::Papers;

/// Longest life of a script: it gives up each wait after 60 s, and few scenarios have several that are long.
const SCRIPT_PATIENCE: Duration = Duration::from_secs(240);

/// Runs `command` with the arguments of `turn` to its end.
pub(crate) fn play(mut command: Command, turn: &Turn) -> anyhow::Result<()> {
    command
        .arg(turn.scenario.name)
        .args(["--host", &turn.papers.host])
        .args(["--port", &turn.broker.port().to_string()])
        .args(["--version", &turn.version.to_string()])
        .args(["--prefix", &turn.prefix])
        .args(["--subscriptions-max", &turn.subscriptions_max.to_string()]);
    show(&mut command, &turn.papers);
    match turn.step {
        Step::Whole => {}
        Step::Before => drop(command.args(["--step", "before"])),
        Step::After => drop(command.args(["--step", "after"])),
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stderr = child.stderr.take().context("the script's stderr is piped")?;
    let stderr = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = stderr.read_to_string(&mut text);
        text
    });
    let deadline = Instant::now() + SCRIPT_PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            bail!("the script did not end within {SCRIPT_PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    // One short line fits into the pipe.
    let mut stdout = String::new();
    child.stdout.take().context("the script's stdout is piped")?.read_to_string(&mut stdout)?;
    let stderr = stderr.join().unwrap_or_default();
    let result: Value = serde_json::from_str(&stdout).with_context(|| format!("{status}: {stdout}{stderr}"))?;
    ensure!(
        status.success() && result["ok"] == true,
        "{}: {}{stderr}",
        text(&result, "client"),
        text(&result, "error")
    );
    Ok(())
}

/// The options that say what the client brings along.
fn show(command: &mut Command, papers: &Papers) {
    command.args(["--way", papers.way.slug(), "--path", papers.path]);
    if let Some(authority) = &papers.authority {
        command.arg("--authority").arg(authority);
    }
    if let Some((certificate, key)) = &papers.certificate {
        command.arg("--certificate").arg(certificate).arg("--key").arg(key);
    }
    if let Some((user, password)) = papers.login {
        command.args(["--user", user, "--password", password]);
    }
    if let Some(origin) = papers.origin {
        command.args(["--origin", origin]);
    }
    if !papers.subprotocol {
        command.arg("--no-subprotocol");
    }
}

fn text<'a>(result: &'a Value, key: &str) -> &'a str {
    result[key].as_str().unwrap_or("?")
}

/// The first line of what a command prints, if it is there and succeeds.
pub(crate) fn first_line(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).lines().next()?.to_owned())
}
