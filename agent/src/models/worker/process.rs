//! The gateway's side of a worker: starts it, asks it, and ends it.
//!
//! Owns the child process and the deadlines of its answers. A worker that does not answer in time is killed; so is one that is no longer
//! wanted. Why it ended is told in words that its model's author can act on.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::protocol::{self, Answer, Begin, Loaded, Request};
use crate::models::judge::Comparison;
use crate::pipeline::tap::Feed;

/// Longest time for one batch of the log.
const FEED_DEADLINE: Duration = Duration::from_secs(20);
/// Longest time to learn how a process ended.
const END: Duration = Duration::from_secs(2);

/// A running worker; it is killed when dropped.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
    memory_bytes_max: u64,
    load_deadline: Duration,
}

impl Worker {
    /// Starts `program worker`.
    ///
    /// # Errors
    /// The system gives no process.
    pub async fn start(program: &Path, begin: Begin) -> Result<Worker, String> {
        let failed = |error: std::io::Error| format!("no process could be started to try it: {error}");
        let mut command = Command::new(program);
        // Nothing of the gateway's environment is its business, and a backtrace would not fit its memory.
        command.env_clear();
        command.arg("worker").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().map_err(failed)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("no process could be started to try it: it has no pipes".to_owned());
        };
        let (memory_bytes_max, load_deadline) = (begin.memory_bytes_max, Duration::from_secs(begin.load_s_max));
        let mut worker = Worker { child, input, output, memory_bytes_max, load_deadline };
        worker.send(&Request::Begin(begin)).await.map_err(failed)?;
        Ok(worker)
    }

    /// Has a model loaded and tried.
    ///
    /// # Errors
    /// It was refused, or brought the worker down; in words.
    pub async fn load(&mut self, file: Vec<u8>, assets: Vec<String>) -> Result<Loaded, String> {
        match self.ask(&Request::Load { file, assets }, self.load_deadline, "loading it and trying it").await? {
            Answer::Loaded(loaded) => Ok(loaded),
            Answer::Refused(reason) => Err(reason),
            Answer::Seen(_) => Err("its process answered out of turn".to_owned()),
        }
    }

    /// Shows the models what was folded; returns what they have done since the beginning.
    ///
    /// # Errors
    /// A model brought the worker down; in words.
    pub async fn feed(&mut self, feed: Feed) -> Result<Comparison, String> {
        match self.ask(&Request::Feed(feed), FEED_DEADLINE, "scoring").await? {
            Answer::Seen(seen) => Ok(*seen),
            _ => Err("its process answered out of turn".to_owned()),
        }
    }

    async fn ask(&mut self, request: &Request, deadline: Duration, doing: &str) -> Result<Answer, String> {
        let exchange = async {
            self.send(request).await?;
            let mut prefix = [0; 4];
            self.output.read_exact(&mut prefix).await?;
            let mut bytes = vec![0; protocol::length(prefix)?];
            self.output.read_exact(&mut bytes).await?;
            protocol::decode(&bytes)
        };
        match tokio::time::timeout(deadline, exchange).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(self.how_it_ended(doing).await),
            Err(_) => {
                let _ = self.child.start_kill();
                Err(format!(
                    "{doing} did not come to an end within {} s: make the model smaller, or look for a loop in it",
                    deadline.as_secs()
                ))
            }
        }
    }

    async fn send(&mut self, request: &Request) -> std::io::Result<()> {
        self.input.write_all(&protocol::encode(request)?).await?;
        self.input.flush().await
    }

    async fn how_it_ended(&mut self, doing: &str) -> String {
        let ended = tokio::time::timeout(END, self.child.wait()).await;
        let how = match ended {
            Ok(Ok(status)) => words(status),
            _ => "it closed its pipe".to_owned(),
        };
        format!(
            "{doing} ended its process ({how}): it needs more than {} MiB of memory, or crashes the engine; make the model smaller, or export it anew",
            self.memory_bytes_max >> 20
        )
    }
}

fn words(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match status.signal() {
        Some(signal) => format!("signal {signal}"),
        None => format!("status {}", status.code().unwrap_or(-1)),
    }
}
