//! onnxruntime, driven as a Python program over its standard input and output.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/models/peer.py");

/// The running program.
pub(crate) struct Peer {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    pub(crate) version: String,
}

/// One timing.
pub(crate) struct Timing {
    /// Of one run.
    pub(crate) ns: f64,
    pub(crate) scores: Vec<f32>,
}

impl Peer {
    /// Starts it.
    ///
    /// # Errors
    /// There is no such Python, or it has no onnxruntime.
    pub(crate) fn start(python: &str) -> anyhow::Result<Peer> {
        let mut child = Command::new(python)
            .args(["-B", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("`{python}` does not start"))?;
        let requests = child.stdin.take().context("a pipe was asked for")?;
        let answers = BufReader::new(child.stdout.take().context("a pipe was asked for")?);
        let mut peer = Peer { child, requests, answers, version: String::new() };
        let greeting = peer.answer().with_context(|| format!("`{python}` has no onnxruntime"))?;
        peer.version = greeting["version"].as_str().unwrap_or_default().to_owned();
        Ok(peer)
    }

    /// Times `model` with the windows in `input` for about `time`.
    pub(crate) fn measure(
        &mut self,
        model: &Path,
        input: &Path,
        batch: usize,
        time: Duration,
    ) -> anyhow::Result<Timing> {
        let seconds = time.as_secs_f64();
        writeln!(self.requests, "{}\t{}\t{batch}\t{seconds}", model.display(), input.display())?;
        self.requests.flush()?;
        let answer = self.answer().with_context(|| format!("onnxruntime and {}", model.display()))?;
        let ns = answer["ns"].as_f64().context("no time in the answer")?;
        let scores = answer["scores"].as_array().context("no scores in the answer")?;
        Ok(Timing { ns, scores: scores.iter().map(|v| v.as_f64().unwrap_or(f64::NAN) as f32).collect() })
    }

    fn answer(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            bail!("the Python program ended");
        }
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
