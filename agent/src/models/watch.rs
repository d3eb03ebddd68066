//! A model that is watched: a worker that is shown what the pipeline folds.
//!
//! Owns the task between a tap and a worker. What the worker says is seen through a `watch`; when the worker ends, why is kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::judge::Comparison;
use super::worker::process::Worker;
use crate::pipeline::runner::Command;
use crate::pipeline::tap::{self, TapReader};

/// What is known of a watched model.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// What it did.
    pub comparison: Comparison,
    /// Why its worker ended, if it did.
    pub ended: Option<String>,
}

/// A watched model; watching ends when it is dropped.
#[derive(Debug)]
pub struct Watch {
    id: u64,
    missed: Arc<AtomicU64>,
    seen: watch::Receiver<Seen>,
    commands: mpsc::Sender<Command>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Begins to show `worker` what is folded for the assets that match `patterns`.
    ///
    /// # Errors
    /// The gateway is stopping.
    pub async fn begin(
        id: u64,
        worker: Worker,
        patterns: Vec<String>,
        commands: mpsc::Sender<Command>,
    ) -> Result<Watch, String> {
        let (tap, reader) = tap::tap(id, patterns);
        commands.send(Command::Tap(tap)).await.map_err(|_| "the gateway is stopping".to_owned())?;
        let (told, seen) = watch::channel(Seen::default());
        let missed = Arc::clone(&reader.missed);
        let task = tokio::spawn(show(worker, reader, told));
        Ok(Watch { id, missed, seen, commands, task })
    }

    /// Readings that it was not shown, because it was slower than the stream.
    pub fn missed_readings(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    /// What is known of it now.
    pub fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // A full queue is no harm: a tap whose reader is gone is removed with the next batch.
        let _ = self.commands.try_send(Command::Untap(self.id));
        self.task.abort();
    }
}

async fn show(mut worker: Worker, mut reader: TapReader, told: watch::Sender<Seen>) {
    while let Some(feed) = reader.feeds.recv().await {
        match worker.feed(feed).await {
            Ok(comparison) => told.send_modify(|seen| seen.comparison = comparison),
            Err(reason) => {
                told.send_modify(|seen| seen.ended = Some(reason));
                return;
            }
        }
    }
}
