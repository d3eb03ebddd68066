//! The bytes that the broker holds for its clients, all together, against a budget.
//!
//! Each connection tells its share once per turn of its loop. While the total is over the budget, connections that hold more
//! than a fair share are not read, get no more from the log, and miss QoS 0 messages; the others go on. So the total stays
//! below the budget plus a share and one packet for each connection. A packet that has begun is always read to its end:
//! else the halves of packets could hold each other up for ever. Owns the counts; never looks into a session.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::limits::Limits;

/// What a connection may hold whatever the others do, unless there are too many for the budget.
const SHARE_BYTES_MAX: usize = 64 * 1024;
/// And at least this much, so that it goes on at all.
const SHARE_BYTES_MIN: usize = 4 * 1024;

/// How long a connection that is held back waits before it looks again.
pub(crate) const MEMORY_PAUSE: Duration = Duration::from_millis(100);

/// The total of all connections.
#[derive(Debug)]
pub(crate) struct Memory {
    total: AtomicUsize,
    held_back: AtomicUsize,
    bytes_max: usize,
    share_bytes: usize,
}

impl Memory {
    pub(crate) fn new(limits: &Limits) -> Memory {
        let share = limits.buffered_bytes_max / limits.connections_max.max(1);
        Memory {
            total: AtomicUsize::new(0),
            held_back: AtomicUsize::new(0),
            bytes_max: limits.buffered_bytes_max,
            share_bytes: share.clamp(SHARE_BYTES_MIN, SHARE_BYTES_MAX),
        }
    }

    /// Bytes held now, and the budget.
    pub(crate) fn figures(&self) -> (u64, u64) {
        (self.total.load(Ordering::Relaxed) as u64, self.bytes_max as u64)
    }

    /// Connections that are held back now.
    pub(crate) fn held_back(&self) -> u64 {
        self.held_back.load(Ordering::Relaxed) as u64
    }

    fn is_over(&self) -> bool {
        self.total.load(Ordering::Relaxed) > self.bytes_max
    }
}

/// What one connection holds; given back when dropped.
#[derive(Debug)]
pub(crate) struct MemoryShare {
    memory: Arc<Memory>,
    bytes: usize,
    held_back: bool,
}

impl MemoryShare {
    pub(crate) fn new(memory: &Arc<Memory>) -> MemoryShare {
        MemoryShare { memory: Arc::clone(memory), bytes: 0, held_back: false }
    }

    /// The connection holds `bytes` now, of which `queued` go away without anything being read from it. Gives whether it
    /// has to wait.
    pub(crate) fn set(&mut self, bytes: usize, queued: usize) -> bool {
        // Added before it is taken off, so that the total never goes below nothing.
        self.memory.total.fetch_add(bytes, Ordering::Relaxed);
        self.memory.total.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = bytes;
        let held_back = queued > self.memory.share_bytes && self.memory.is_over();
        if held_back != self.held_back {
            match held_back {
                true => self.memory.held_back.fetch_add(1, Ordering::Relaxed),
                false => self.memory.held_back.fetch_sub(1, Ordering::Relaxed),
            };
            self.held_back = held_back;
        }
        held_back
    }

    /// Whether it waits, by the last [`MemoryShare::set`].
    pub(crate) fn is_held_back(&self) -> bool {
        self.held_back
    }

    /// How much may be read from the log at a time, at most `bytes_max`.
    pub(crate) fn fetch_bytes(&self, bytes_max: usize) -> usize {
        if self.memory.is_over() { bytes_max.min(self.memory.share_bytes) } else { bytes_max }
    }
}

impl Drop for MemoryShare {
    fn drop(&mut self) {
        self.set(0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(connections_max: usize) -> Arc<Memory> {
        let buffered_bytes_max = 1024 * 1024;
        Arc::new(Memory::new(&Limits { connections_max, buffered_bytes_max, ..Limits::default() }))
    }

    // Over the budget the large one waits and the small one does not; when another gives back, the large one goes on.
    #[test]
    fn who_holds_most_waits() {
        let memory = memory(10);
        let (mut large, mut small) = (MemoryShare::new(&memory), MemoryShare::new(&memory));
        let mut other = MemoryShare::new(&memory);
        assert!(!large.set(900_000, 900_000) && !small.set(10_000, 10_000));
        other.set(200_000, 0);
        assert!(large.set(900_000, 900_000));
        assert!(!small.set(10_000, 10_000));
        assert_eq!((memory.held_back(), small.fetch_bytes(1 << 20)), (1, SHARE_BYTES_MAX));
        drop(other);
        assert!(!large.set(900_000, 900_000));
        drop((large, small));
        assert_eq!((memory.figures().0, memory.held_back()), (0, 0));
    }

    // Many connections share what there is, and none has so little that it stands still.
    #[test]
    fn a_share_fits_the_budget() {
        assert_eq!(memory(64).share_bytes, 16 * 1024);
        assert_eq!(memory(100_000).share_bytes, SHARE_BYTES_MIN);
    }
}
