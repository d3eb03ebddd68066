//! Which log a message was first written to.
//!
//! A log that was restored from a copy goes on under a [`LogId`] of its own, because the log that was copied has given the offsets
//! behind the copy to other messages. Owns the list of the ids before: a message keeps the id under which it was written, however
//! often the log is restored. Limit: [`EARLIER_MAX`] restores whose messages are still in the log; of older ones the list forgets
//! the first.

use rusqlite::{Connection, OptionalExtension};

use super::{LogId, Offset, schema};

/// Ids before the current one: a restore a week for a year, with messages of each left.
const EARLIER_MAX: usize = 64;

/// The key in `meta`: entries of [`ENTRY_BYTES`], oldest first.
const KEY: &str = "log_ids_before";

/// An id and, big-endian, the offset behind its last message.
const ENTRY_BYTES: usize = 24;

/// The ids of a log: the current one, and those of the logs that it continues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineage {
    current: LogId,
    /// Each with the offset behind its last message, oldest first.
    earlier: Vec<(LogId, Offset)>,
}

impl Lineage {
    /// Of a log that continues no other.
    pub fn of(current: LogId) -> Lineage {
        Lineage { current, earlier: Vec::new() }
    }

    /// The log's own id.
    pub fn current(&self) -> LogId {
        self.current
    }

    /// The logs that this one continues, each with the offset behind its last message, oldest first.
    pub fn earlier(&self) -> impl Iterator<Item = (LogId, Offset)> {
        self.earlier.iter().copied()
    }

    /// The log that gave a message its offset.
    pub fn at(&self, offset: Offset) -> LogId {
        self.earlier.iter().find(|(_, end)| offset < *end).map_or(self.current, |(id, _)| *id)
    }

    /// The same messages under another id from `head` on; ids with no message at or behind `oldest` are forgotten.
    pub(crate) fn continued(mut self, id: LogId, oldest: Offset, head: Offset) -> Lineage {
        self.earlier.push((self.current, head));
        self.earlier.retain(|(_, end)| *end > oldest);
        let surplus = self.earlier.len().saturating_sub(EARLIER_MAX);
        self.earlier.drain(..surplus);
        Lineage { current: id, earlier: self.earlier }
    }

    /// As it is stored; `None` if the file has no id.
    pub(crate) fn load(connection: &Connection) -> rusqlite::Result<Option<Lineage>> {
        let value = |key: &str| -> rusqlite::Result<Option<Vec<u8>>> {
            connection.query_row("SELECT value FROM meta WHERE key=?1", [key], |row| row.get(0)).optional()
        };
        let Some(current) = value("log_id")?.and_then(|id| id.try_into().ok()).map(LogId) else { return Ok(None) };
        let stored = value(KEY)?.unwrap_or_default();
        let entry = |bytes: &[u8]| {
            let (id, end) = bytes.split_at_checked(16)?;
            Some((LogId(id.try_into().ok()?), Offset(u64::from_be_bytes(end.try_into().ok()?))))
        };
        let earlier = stored.chunks(ENTRY_BYTES).filter_map(entry).take(EARLIER_MAX).collect();
        Ok(Some(Lineage { current, earlier }))
    }

    /// Stores it, in whatever transaction is open.
    pub(crate) fn store(&self, connection: &Connection) -> rusqlite::Result<()> {
        let entry = |(id, end): &(LogId, Offset)| [id.0.as_slice(), &schema::signed(end.0).to_be_bytes()].concat();
        let earlier: Vec<u8> = self.earlier.iter().flat_map(entry).collect();
        connection.execute("INSERT OR REPLACE INTO meta VALUES('log_id', ?1)", [self.current.0.as_slice()])?;
        connection.execute("INSERT OR REPLACE INTO meta VALUES(?1, ?2)", (KEY, earlier))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(byte: u8) -> LogId {
        LogId([byte; 16])
    }

    // A message keeps the id under which it was written, through two restores; what the log no longer holds is forgotten.
    #[test]
    fn a_message_keeps_its_log() {
        let once = Lineage::of(id(1)).continued(id(2), Offset(1), Offset(10));
        let twice = once.clone().continued(id(3), Offset(5), Offset(20));
        let ids = |lineage: &Lineage| [9, 10, 19, 20].map(|offset| lineage.at(Offset(offset)).0[0]);
        assert_eq!((ids(&once), ids(&twice)), ([1, 2, 2, 2], [1, 2, 2, 3]));
        assert_eq!(ids(&once.continued(id(3), Offset(10), Offset(20))), [2, 2, 2, 3]);
    }

    // However often a log is restored, the list is bounded, and what is stored comes back.
    #[test]
    fn the_list_is_bounded_and_comes_back() {
        let connection = Connection::open_in_memory().unwrap();
        schema::create(&connection, &[0; 16]).unwrap();
        assert_eq!(Lineage::load(&connection).unwrap(), Some(Lineage::of(id(0))));
        let mut lineage = Lineage::of(id(0));
        for restore in 1..100_u8 {
            lineage = lineage.continued(id(restore), Offset(1), Offset(u64::from(restore) * 10));
        }
        lineage.store(&connection).unwrap();
        assert_eq!(lineage.earlier.len(), EARLIER_MAX);
        assert_eq!(Lineage::load(&connection).unwrap(), Some(lineage));
    }
}
