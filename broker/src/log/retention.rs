//! What makes room: which partition may go, and when appends must wait.
//!
//! History is kept as long as the quota allows. When the next commit might not fit, the oldest partition is dropped
//! if every cursor has passed it. If one has not, [`WhenFull`] decides: appends wait until it has, or the partition is
//! dropped and the loss is written into the `gap` table in the same commit. Runs in the writer's thread, between commits.

use std::sync::atomic::Ordering;

use super::WhenFull;
use super::error::{FullReason, StoreError};
use super::limits::{FRAME_BYTES, PAGE_BYTES};
use super::store::DropPlan;
use super::writer::Writer;

/// Why a commit has to wait.
#[derive(Debug)]
pub(crate) enum Obstacle {
    /// Until space is made.
    Full(FullReason),
    /// Until the store works.
    Store(StoreError),
}

impl From<StoreError> for Obstacle {
    fn from(error: StoreError) -> Obstacle {
        Obstacle::Store(error)
    }
}

impl Writer {
    /// Drops partitions until so many pages are free, if that is allowed.
    pub(crate) fn make_room(&mut self, pages: u64) -> Result<(), Obstacle> {
        self.check_wal()?;
        while self.store.usage.pages_used.saturating_add(pages) > self.store.budget.pages_usable {
            self.drop_oldest()?;
        }
        Ok(())
    }

    /// Drops the oldest partition if the cursors or the policy allow it.
    pub(crate) fn drop_oldest(&mut self) -> Result<(), Obstacle> {
        let (bytes, bytes_max) = (self.store.usage.pages_used * PAGE_BYTES, self.store.budget.bytes_usable());
        let head = self.shared.head();
        let Some(oldest) = self.store.partitions.oldest() else {
            return Err(Obstacle::Full(FullReason::NothingToDrop { bytes, bytes_max }));
        };
        let (first, end) = (oldest.first, self.store.partitions.oldest_end(head));
        let lost = match (self.shared.cursors.needing(end), self.shared.config.when_full) {
            (None, _) => None,
            (Some((_, position, names)), WhenFull::DropOldest) => Some((position.max(first), names)),
            (Some((cursor, position, _)), WhenFull::Refuse) => {
                let position = super::Offset(position);
                return Err(Obstacle::Full(FullReason::Cursor { cursor, position, bytes, bytes_max }));
            }
        };
        // The positions go into the same commit: after a crash no cursor may stand before what was dropped for it.
        let changes = self.shared.cursors.changes();
        match self.store.drop_oldest(&DropPlan { lost, end, head }, &changes) {
            Ok((rows, bytes)) => {
                self.shared.cursors.persisted(&changes);
                self.shared.oldest.store(end, Ordering::Release);
                let counters = &self.shared.counters;
                counters.lost_rows.fetch_add(rows, Ordering::Relaxed);
                counters.lost_bytes.fetch_add(bytes, Ordering::Relaxed);
                counters.partitions_dropped.fetch_add(1, Ordering::Relaxed);
                self.publish_usage();
                Ok(())
            }
            Err(error) => {
                self.shared.cursors.persist_failed(changes);
                Err(error.into())
            }
        }
    }

    /// Keeps the write-ahead log within its share of the quota: a reader in another program that keeps a transaction
    /// open would let it grow without end.
    fn check_wal(&mut self) -> Result<(), Obstacle> {
        let wal_bytes_max = self.store.budget.wal_bytes_max;
        // A group takes up to a quarter of the share.
        if self.store.is_copied || self.store.usage.wal_frames * FRAME_BYTES < wal_bytes_max / 2 {
            return Ok(());
        }
        match self.store.checkpoint_all() {
            Ok(()) | Err(StoreError::Busy(_)) => {}
            Err(error) => return Err(error.into()),
        }
        let wal_bytes = self.store.usage.wal_frames * FRAME_BYTES;
        if !self.store.is_copied && wal_bytes >= wal_bytes_max / 2 {
            return Err(Obstacle::Full(FullReason::WalHeld { wal_bytes, wal_bytes_max }));
        }
        Ok(())
    }
}
