//! What makes room: which partition may go, and when appends must wait.
//!
//! History is kept as long as the quota allows. When the next commit might not fit, the oldest partition is dropped
//! if every cursor has passed it. If one has not, [`WhenFull`] decides: appends wait until it has, or the partition is
//! dropped and the loss is written into the `gap` table in the same commit. Runs in the writer's thread, between commits.

use std::sync::atomic::Ordering;

use super::WhenFull;
use super::error::{FullReason, StoreError};
use super::limits::{CURSOR_NAME_BYTES_MAX, FRAME_BYTES, PAGE_BYTES};
use super::store::DropPlan;
use super::writer::Writer;

/// What the gap ledger writes before the client identifier of a session.
const SESSION: &str = "session ";

/// Names for the ledger, cut at [`CURSOR_NAME_BYTES_MAX`] bytes.
fn join(names: &[String]) -> String {
    let mut joined = String::new();
    for (index, name) in names.iter().enumerate() {
        if index > 0 && joined.len() + name.len() > CURSOR_NAME_BYTES_MAX {
            joined.push_str(&format!(" and {} more", names.len() - index));
            break;
        }
        joined.push_str(if index > 0 { ", " } else { "" });
        joined.push_str(name);
    }
    joined
}

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
        let cursors = self.shared.cursors.needing(end);
        if let (Some((cursor, position, _)), WhenFull::Refuse) = (&cursors, self.shared.config.when_full) {
            let (cursor, position) = (cursor.clone(), super::Offset(*position));
            return Err(Obstacle::Full(FullReason::Cursor { cursor, position, bytes, bytes_max }));
        }
        let lost = self.losers(cursors.map(|(_, position, names)| (position, names)), first, end);
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

    /// Who loses messages if everything before `end` goes: the first message lost, and their names. Sessions never hold
    /// publishers back: a client that stays away for good must not stop a plant. They are told what they lost.
    fn losers(&self, cursors: Option<(u64, String)>, first: u64, end: u64) -> Option<(u64, String)> {
        let sessions = self.shared.sessions.needing(end);
        let from = cursors.iter().map(|(position, _)| *position).chain(sessions.iter().map(|(position, _)| *position));
        let from = from.min()?.max(first);
        let mut names: Vec<String> = cursors.into_iter().map(|(_, names)| names).collect();
        names.extend(sessions.into_iter().flat_map(|(_, clients)| clients).map(|client| format!("{SESSION}{client}")));
        Some((from, join(&names)))
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
