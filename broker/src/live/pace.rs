//! How far the subscribers of a channel are behind its publishers.
//!
//! A publisher that is faster than the tasks of the subscribers would only make them skip: it is asked to wait while they
//! are more than [`BEHIND_BYTES_MAX`] behind on average, a moment at most. A subscriber whose client is slow is not
//! behind in this sense: its task goes on taking messages and skips them.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use tokio::sync::Notify;

use super::{Channels, SEGMENT_BYTES, SLOTS, Space};
use crate::session::Slot;

/// As much as a channel certainly keeps.
const BEHIND_BYTES_MAX: u64 = SEGMENT_BYTES as u64;

/// Positions are bytes ever published to the channel.
#[derive(Debug, Default)]
struct Channel {
    published: AtomicU64,
    subscribers: AtomicU64,
    /// The sum of the subscribers' positions; wraps.
    positions: AtomicU64,
}

impl Channel {
    fn is_behind(&self) -> bool {
        let subscribers = self.subscribers.load(Ordering::Relaxed);
        let sum = self.published.load(Ordering::Relaxed).wrapping_mul(subscribers);
        let behind = sum.wrapping_sub(self.positions.load(Ordering::Relaxed));
        // The three are not read at one instant: a difference that is negative is none.
        behind < 1 << 63 && behind > subscribers.saturating_mul(BEHIND_BYTES_MAX)
    }
}

/// The paces of all channels.
#[derive(Debug)]
pub(super) struct Pace {
    channels: [[Channel; SLOTS]; 2],
    waiting: AtomicUsize,
    progress: Notify,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            channels: std::array::from_fn(|_| std::array::from_fn(|_| Channel::default())),
            waiting: AtomicUsize::new(0),
            progress: Notify::new(),
        }
    }
}

impl Pace {
    fn channel(&self, space: Space, slot: Slot) -> Option<&Channel> {
        self.channels[space.index()].get(usize::from(slot))
    }

    /// Bytes are about to be published; gives how many were before.
    pub(super) fn published(&self, space: Space, slot: Slot, bytes: usize) -> u64 {
        self.channel(space, slot).map_or(0, |channel| channel.published.fetch_add(bytes as u64, Ordering::Relaxed))
    }

    /// Which of these channels' subscribers are too far behind.
    pub(super) fn behind(&self, channels: Channels) -> Channels {
        let mut behind = [0; 2];
        for space in [Space::Volatile, Space::Durable] {
            let mut slots = channels[space.index()];
            while slots != 0 {
                let slot = slots.trailing_zeros();
                slots &= slots - 1;
                let is_behind = self.channel(space, slot as Slot).is_some_and(Channel::is_behind);
                behind[space.index()] |= u64::from(is_behind) << slot;
            }
        }
        behind
    }

    /// Waits until none of these channels' subscribers are too far behind, or the deadline.
    pub(super) async fn caught_up(&self, channels: Channels, deadline: Instant) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let waiting = Waiting(&self.waiting);
        let caught_up = async {
            loop {
                let progress = self.progress.notified();
                if self.behind(channels) == [0; 2] {
                    return;
                }
                progress.await;
            }
        };
        // The deadline is as good.
        let _ = tokio::time::timeout_at(deadline.into(), caught_up).await;
        drop(waiting);
    }
}

/// Counts a waiting publisher, also if it gives up.
struct Waiting<'w>(&'w AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A subscriber's position in the channels that it has.
#[derive(Debug)]
pub(super) struct Positions {
    pace: std::sync::Arc<Pace>,
    positions: [[Option<u64>; SLOTS]; 2],
}

impl Positions {
    pub(super) fn new(pace: std::sync::Arc<Pace>) -> Positions {
        Positions { pace, positions: [[None; SLOTS]; 2] }
    }

    /// The subscriber has the channel from now on.
    pub(super) fn begin(&mut self, space: Space, slot: Slot) {
        self.end(space, slot);
        let Some(channel) = self.pace.channel(space, slot) else { return };
        let position = channel.published.load(Ordering::Relaxed);
        channel.positions.fetch_add(position, Ordering::Relaxed);
        channel.subscribers.fetch_add(1, Ordering::Relaxed);
        self.positions[space.index()][usize::from(slot)] = Some(position);
    }

    /// The subscriber took everything before `to`.
    pub(super) fn advance(&mut self, space: Space, slot: Slot, to: u64) {
        let Some(Some(position)) = self.positions[space.index()].get_mut(usize::from(slot)) else { return };
        let by = to.saturating_sub(*position);
        *position += by;
        if let Some(channel) = self.pace.channel(space, slot) {
            channel.positions.fetch_add(by, Ordering::Relaxed);
        }
        if self.pace.waiting.load(Ordering::SeqCst) > 0 {
            self.pace.progress.notify_waiters();
        }
    }

    /// The subscriber gives up the channel.
    pub(super) fn end(&mut self, space: Space, slot: Slot) {
        let position = self.positions[space.index()].get_mut(usize::from(slot)).and_then(Option::take);
        if let Some((position, channel)) = position.zip(self.pace.channel(space, slot)) {
            channel.subscribers.fetch_sub(1, Ordering::Relaxed);
            channel.positions.fetch_sub(position, Ordering::Relaxed);
        }
    }
}

impl Drop for Positions {
    fn drop(&mut self) {
        for space in [Space::Volatile, Space::Durable] {
            for slot in 0..SLOTS {
                self.end(space, slot as Slot);
            }
        }
        self.pace.progress.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    // Subscribers are behind when they are on average, by more than the bound; one that leaves does not count.
    #[test]
    fn behind_on_average() {
        let pace = Arc::new(Pace::default());
        let (space, slot, channels) = (Space::Volatile, 3, [1 << 3, 0]);
        pace.published(space, slot, 1 << 30);
        assert_eq!(pace.behind(channels), [0; 2], "nobody is behind");
        let mut fast = Positions::new(Arc::clone(&pace));
        let mut slow = Positions::new(Arc::clone(&pace));
        fast.begin(space, slot);
        slow.begin(space, slot);
        let start = 1 << 30;
        pace.published(space, slot, 2 * SEGMENT_BYTES);
        fast.advance(space, slot, start + 2 * BEHIND_BYTES_MAX);
        assert_eq!(pace.behind(channels), [0; 2], "exactly at the bound");
        pace.published(space, slot, 1);
        assert_eq!(pace.behind(channels), channels);
        drop(slow);
        assert_eq!(pace.behind(channels), [0; 2]);
    }

    // A publisher that waits is woken by progress, and by nothing at its deadline.
    #[tokio::test]
    async fn waiting() {
        let pace = Arc::new(Pace::default());
        let (space, slot, channels) = (Space::Durable, 0, [0, 1]);
        let mut positions = Positions::new(Arc::clone(&pace));
        positions.begin(space, slot);
        pace.published(space, slot, 2 * SEGMENT_BYTES);
        pace.caught_up(channels, Instant::now() + Duration::from_millis(5)).await;
        assert_eq!(pace.behind(channels), channels);
        let waits = pace.caught_up(channels, Instant::now() + Duration::from_secs(60));
        let advances = async {
            tokio::task::yield_now().await;
            positions.advance(space, slot, 2 * BEHIND_BYTES_MAX);
        };
        tokio::join!(waits, advances);
        assert_eq!(pace.waiting.load(Ordering::SeqCst), 0);
    }
}
