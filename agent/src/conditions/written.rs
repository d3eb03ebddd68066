//! Counts what was written to the device today and keeps it in `state.db`.
//!
//! Owns the way from the two counters to [`Wear`] and from there to the file. Nothing waits for a storing but the end: while the file is
//! locked or the disk is full, the gateway is judged all the same. One storing is under way at a time.

use std::sync::Arc;

use tokio::task::{JoinHandle, spawn_blocking};

use super::wear::Wear;
use crate::state::{State, WrittenOn};

/// What was written today.
pub(super) struct Written {
    wear: Wear,
    state: Arc<State>,
    /// Whether the system counts for this process: the counters do not continue each other, so one is used for the whole run.
    by_system: Option<bool>,
    storing: Option<JoinHandle<Option<WrittenOn>>>,
}

impl Written {
    /// Goes on from what was stored.
    pub(super) async fn resume(state: &Arc<State>) -> Written {
        let read = Arc::clone(state);
        let stored = match spawn_blocking(move || read.written()).await {
            Ok(Ok(stored)) => stored,
            failed => {
                tracing::warn!(
                    ?failed,
                    "what was written today cannot be read from state.db: it is counted from now on"
                );
                None
            }
        };
        Written { wear: Wear::resume(stored), state: Arc::clone(state), by_system: None, storing: None }
    }

    /// Bytes written today; stores them when it is time to.
    pub(super) fn count(&mut self, now_us: i64, by_system: Option<u64>, by_log: u64) -> u64 {
        let counter = if *self.by_system.get_or_insert(by_system.is_some()) { by_system } else { Some(by_log) };
        let today = self.wear.count(now_us, counter);
        if self.storing.is_none()
            && let Some(due) = self.wear.due(now_us)
        {
            self.storing = Some(self.store(due));
        }
        today
    }

    /// Notes a storing that has ended; what could not be stored is stored with the next minute.
    pub(super) async fn note(&mut self) {
        if self.storing.as_ref().is_some_and(JoinHandle::is_finished) {
            self.wait().await;
        }
    }

    /// Stores what is not stored yet.
    pub(super) async fn stop(mut self) {
        self.wait().await;
        if let Some(last) = self.wear.last() {
            self.storing = Some(self.store(last));
            self.wait().await;
        }
    }

    async fn wait(&mut self) {
        let Some(storing) = self.storing.take() else { return };
        if let Ok(Some(stored)) = storing.await {
            self.wear.stored(stored);
        }
    }

    fn store(&self, written: WrittenOn) -> JoinHandle<Option<WrittenOn>> {
        let state = Arc::clone(&self.state);
        spawn_blocking(move || match state.store_written(written) {
            Ok(()) => Some(written),
            Err(error) => {
                // That the disk is full is a condition of its own.
                tracing::debug!(%error, "what was written today could not be stored");
                None
            }
        })
    }
}
