//! Whether a part that runs for ever still does its work, as it can be seen from outside.
//!
//! Owns a count of steps and a mark for "waits for the disk". The part beats at each step, also while it is idle, at least
//! every [`BEAT`]; who looks compares two counts. Reads no clock and judges nothing: how long without a beat is too long is
//! the looker's to say, and a disk that is slow is not a part that hangs.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// The longest an idle part goes without a beat.
pub const BEAT: Duration = Duration::from_secs(1);

/// The pulse of one part. A handle: clones share it.
#[derive(Debug, Clone, Default)]
pub struct Pulse {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    beats: AtomicU64,
    /// Calls under way that wait for the disk, one within the other.
    on_disk: AtomicU32,
}

/// What a look at a pulse shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Steps so far; it wraps.
    pub beats: u64,
    /// Whether the part waits for the disk now.
    pub on_disk: bool,
}

/// The part waits for the disk until this is dropped.
#[derive(Debug)]
pub struct OnDisk {
    pulse: Pulse,
}

impl Pulse {
    /// A step was made.
    pub fn beat(&self) {
        // Nothing else is read through it, so no order is needed.
        self.inner.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// From here on the part waits for the disk.
    #[must_use = "it is over when this is dropped"]
    pub fn on_disk(&self) -> OnDisk {
        self.beat();
        self.inner.on_disk.fetch_add(1, Ordering::Relaxed);
        OnDisk { pulse: self.clone() }
    }

    /// Beats while `work` waits for others, which may take for ever: that the task is polled is what it shows then.
    pub async fn while_waiting<F: Future>(&self, work: F) -> F::Output {
        let mut work = pin!(work);
        loop {
            self.beat();
            if let Ok(done) = tokio::time::timeout(BEAT, work.as_mut()).await {
                return done;
            }
        }
    }

    /// How it stands.
    pub fn look(&self) -> Look {
        let Inner { beats, on_disk } = &*self.inner;
        Look { beats: beats.load(Ordering::Relaxed), on_disk: on_disk.load(Ordering::Relaxed) > 0 }
    }
}

impl Drop for OnDisk {
    fn drop(&mut self) {
        self.pulse.inner.on_disk.fetch_sub(1, Ordering::Relaxed);
        self.pulse.beat();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A wait for the disk shows while it lasts, also within another, and each end of one is a step.
    #[test]
    fn waits_for_the_disk_show() {
        let pulse = Pulse::default();
        let before = pulse.look();
        assert!(!before.on_disk);
        let outer = pulse.on_disk();
        drop(pulse.on_disk());
        assert!(pulse.look().on_disk);
        drop(outer);
        let after = pulse.look();
        assert!(!after.on_disk && after.beats > before.beats);
    }

    // What waits for others for long beats meanwhile, and gives their answer.
    #[tokio::test]
    async fn waiting_beats() {
        let pulse = Pulse::default();
        let (answer, answered) = tokio::sync::oneshot::channel();
        let seen = pulse.clone();
        let waiting = tokio::spawn(async move { pulse.while_waiting(answered).await });
        while seen.look().beats < 3 {
            tokio::time::sleep(BEAT / 20).await;
        }
        assert!(!waiting.is_finished() && answer.send(7).is_ok());
        assert!(matches!(waiting.await, Ok(Ok(7))));
    }
}
