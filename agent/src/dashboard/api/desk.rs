//! Reads that block: SQLite and the log, on threads of their own and few at a time.
//!
//! Owns the bound: [`READS_MAX`] at a time, [`WAITING_MAX`] wait, and who comes then is told to come again. So many dashboards cannot
//! take the disk and the processor away from the pipeline.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::http::StatusCode;
use tokio::sync::Semaphore;

use super::super::error::ApiError;
use super::ask::failed;

/// Reads at a time: the four cores of a small gateway are never all taken for long, a read takes milliseconds.
const READS_MAX: usize = 4;
/// Requests that wait for their turn: eight rounds of short reads, well below a second.
const WAITING_MAX: usize = 32;
/// When to come again, seconds.
const RETRY_S: u64 = 1;

/// Where blocking reads are done.
#[derive(Debug)]
pub(crate) struct Desk {
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
}

impl Default for Desk {
    fn default() -> Desk {
        Desk { places: Arc::new(Semaphore::new(READS_MAX)), waiting: AtomicUsize::new(0) }
    }
}

/// Counts one who waits, for as long as it does, also when its connection ends meanwhile.
struct Waiting<'d>(&'d AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Desk {
    /// Does `work` on a thread that may block.
    ///
    /// # Errors
    /// 503 `busy` when too many wait.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(&self.waiting);
        if before >= WAITING_MAX {
            return Err(busy("more requests wait for the disk than the gateway lets wait"));
        }
        // The semaphore is never closed.
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|error| failed("waiting", &error))?;
        drop(waiting);
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(place);
            done
        });
        done.await.map_err(|error| failed("a read", &error))
    }
}

/// Too much at once.
pub(super) fn busy(message: &str) -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message, "try again in a moment").retry_after_s(RETRY_S)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    // While all places are taken, as many as may wait do; one more is turned away at once, and all others are served.
    #[tokio::test]
    async fn who_waits_is_bounded() {
        let desk = Arc::new(Desk::default());
        let (let_go, held) = mpsc::channel::<()>();
        let held = Arc::new(std::sync::Mutex::new(held));
        let mut reads = Vec::new();
        for _ in 0..READS_MAX + WAITING_MAX {
            let (desk, held) = (Arc::clone(&desk), Arc::clone(&held));
            reads.push(tokio::spawn(async move {
                desk.read(move || held.lock().is_ok_and(|held| held.recv().is_ok())).await.is_ok()
            }));
        }
        while desk.waiting.load(Ordering::Relaxed) < WAITING_MAX || desk.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert!(desk.read(|| ()).await.is_err());
        for _ in 0..READS_MAX + WAITING_MAX {
            let_go.send(()).unwrap();
        }
        for read in reads {
            assert!(read.await.unwrap());
        }
        assert!(desk.read(|| ()).await.is_ok());
    }
}
