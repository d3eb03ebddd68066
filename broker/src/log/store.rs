//! The writing connection: every transaction that changes `log.db`.
//!
//! Owned by the writer's thread. A call either commits all it was asked for or leaves the file and the lists in
//! memory as they were. Never decides what to drop or when to wait; see `retention`.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{CachedStatement, Connection, OptionalExtension};

use super::LogMessage;
use super::cursor::CursorChange;
use super::error::StoreError;
use super::limits::{Budget, CHECKPOINT_FRAMES, CHECKPOINT_RESTART_FRAMES, FRAME_BYTES, GAP_ROWS_MAX, PAGE_BYTES};
use super::partition::{Partition, Partitions};
use super::schema;
use super::sessions::{self, SessionUpdate};
use super::topics::{Topics, Unused};
use crate::clock;
use crate::retained::RetainedMessage;
use crate::topic::TopicName;

/// What a row takes in its partition besides payload and properties: offset, time, topic, flags and headers.
pub(crate) const ROW_OVERHEAD_BYTES: u64 = 24;

/// How long a checkpoint waits for readers to end their transactions.
const CHECKPOINT_BUSY_TIMEOUT: Duration = Duration::from_millis(20);

/// A change of the retained store: the message, or nothing to delete it.
pub(crate) type RetainedChange = (TopicName, Option<Arc<RetainedMessage>>);

/// What one group commit writes.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// In offset order, without holes.
    pub(crate) messages: Vec<Arc<LogMessage>>,
    /// Topics that the messages mention for the first time.
    pub(crate) topics: Vec<(u32, TopicName)>,
    /// In order.
    pub(crate) retained: Vec<RetainedChange>,
    /// What sessions store together with these messages, in order.
    pub(crate) sessions: Vec<SessionUpdate>,
}

/// A partition to drop, and what that loses.
#[derive(Debug)]
pub(crate) struct DropPlan {
    /// The names of the cursors that lose messages, and the first message lost.
    pub(crate) lost: Option<(u64, String)>,
    /// The offset behind the partition.
    pub(crate) end: u64,
    /// The next offset of the log.
    pub(crate) head: u64,
}

/// How the space is used.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// Pages in use, without the free list.
    pub(crate) pages_used: u64,
    /// Pages of the file.
    pub(crate) pages: u64,
    /// Frames in the write-ahead log.
    pub(crate) wal_frames: u64,
    /// Bytes sent to the device since the log was opened: frames, and pages copied by checkpoints (estimated).
    pub(crate) device_bytes: u64,
}

/// The writing connection with the lists that describe the file.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) connection: Connection,
    pub(crate) path: PathBuf,
    pub(crate) budget: Budget,
    pub(crate) partition_rows_max: u64,
    pub(crate) partitions: Partitions,
    pub(crate) topics: Topics,
    pub(crate) usage: Usage,
    /// Bytes appended since the last checkpoint, which it will copy.
    uncopied_bytes: u64,
    /// Frames at which to checkpoint next.
    checkpoint_at: u64,
    /// Whether the write-ahead log holds nothing that the database does not: it starts over with the next commit.
    pub(crate) is_copied: bool,
    /// Commits to report as failed.
    #[cfg(test)]
    pub(crate) misreports: u32,
}

impl Store {
    /// Takes an opened and checked database and reads its lists.
    pub(crate) fn load(
        connection: Connection,
        path: PathBuf,
        budget: Budget,
        limits: &super::Limits,
    ) -> Result<(Store, u64), rusqlite::Error> {
        let (partitions, head) = load_partitions(&connection)?;
        let topics = load_topics(&connection, head, limits.topics_max, budget.topic_bytes_max)?;
        let mut store = Store {
            connection,
            path,
            budget,
            partition_rows_max: limits.partition_rows_max.max(1),
            partitions,
            topics,
            usage: Usage::default(),
            uncopied_bytes: 0,
            checkpoint_at: CHECKPOINT_FRAMES,
            is_copied: false,
            #[cfg(test)]
            misreports: 0,
        };
        store.measure()?;
        Ok((store, head))
    }

    /// Opens the connection anew after input or output failed, and reads the partitions again. Gives the next
    /// offset: a commit that was reported as failed may have reached the file after all.
    pub(crate) fn reopen(&mut self) -> Result<u64, StoreError> {
        let connection = schema::open_writer(&self.path, &self.budget)?;
        let (partitions, head) = load_partitions(&connection)?;
        self.connection = connection;
        self.partitions = partitions;
        self.measure()?;
        Ok(head)
    }

    /// Commits a batch, changes of other sessions and of cursors; on return all is on disk.
    pub(crate) fn write(
        &mut self,
        batch: &Batch,
        sessions: &[SessionUpdate],
        cursors: &[CursorChange],
    ) -> Result<(), StoreError> {
        let mark = self.partitions.mark();
        let written = self.begin().and_then(|()| self.write_in_transaction(batch, sessions, cursors));
        let result = written.and_then(|()| self.commit());
        #[cfg(test)]
        let result = self.misreport(result);
        match result {
            Ok(()) => {
                self.uncopied_bytes += batch.messages.iter().map(|message| row_bytes(message)).sum::<u64>();
                self.remeasure();
                Ok(())
            }
            Err(error) => {
                self.rollback();
                self.partitions.rewind(&mark);
                Err(error.into())
            }
        }
    }

    /// Reports a commit that succeeded as failed, as a disk may.
    #[cfg(test)]
    fn misreport(&mut self, result: rusqlite::Result<()>) -> rusqlite::Result<()> {
        if result.is_ok() && self.misreports > 0 {
            self.misreports -= 1;
            return Err(rusqlite::Error::InvalidQuery);
        }
        result
    }

    fn write_in_transaction(
        &mut self,
        batch: &Batch,
        sessions: &[SessionUpdate],
        cursors: &[CursorChange],
    ) -> rusqlite::Result<()> {
        for (id, name) in &batch.topics {
            let mut insert = self.connection.prepare_cached("INSERT OR REPLACE INTO topic VALUES(?1, ?2)")?;
            insert.execute((id, name.as_str()))?;
        }
        let mut rest = batch.messages.as_slice();
        while let Some(first) = rest.first() {
            let count = self.write_run(first.offset.0, rest)?;
            rest = rest.get(count..).unwrap_or_default();
        }
        for change in &batch.retained {
            write_retained(&self.connection, change)?;
        }
        for update in batch.sessions.iter().chain(sessions) {
            sessions::write(&self.connection, update)?;
        }
        write_cursors(&self.connection, cursors)
    }

    /// Inserts messages until the partition is full; gives how many.
    fn write_run(&mut self, first: u64, messages: &[Arc<LogMessage>]) -> rusqlite::Result<usize> {
        let (rows_max, bytes_max) = (self.partition_rows_max, self.budget.partition_bytes_max);
        if self.partitions.writable(first, rows_max, bytes_max).is_none() {
            let partition = self.partitions.begin(first);
            create_partition(&self.connection, partition)?;
        }
        let Some(partition) = self.partitions.writable(first, rows_max, bytes_max) else { return Ok(0) };
        let sql = Arc::clone(&partition.insert_sql);
        let mut insert = self.connection.prepare_cached(&sql)?;
        let room = usize::try_from(rows_max.saturating_sub(first - partition.first)).unwrap_or(usize::MAX);
        let mut count = 0;
        for message in messages.iter().take(room) {
            insert_message(&mut insert, message)?;
            count += 1;
            partition.bytes += row_bytes(message);
            if partition.bytes >= bytes_max {
                break;
            }
        }
        Ok(count)
    }

    /// Persists what the cursors said.
    pub(crate) fn write_cursors(&mut self, cursors: &[CursorChange]) -> Result<(), StoreError> {
        self.write(&Batch::default(), &[], cursors)
    }

    /// Persists changes of sessions.
    pub(crate) fn write_sessions(&mut self, updates: &[SessionUpdate]) -> Result<(), StoreError> {
        self.write(&Batch::default(), updates, &[])
    }

    /// Drops the oldest partition, with the cursors' positions, the gap it leaves and the topics nobody mentions
    /// any more in the same commit. Gives the rows and bytes that were lost to cursors.
    pub(crate) fn drop_oldest(&mut self, plan: &DropPlan, cursors: &[CursorChange]) -> Result<(u64, u64), StoreError> {
        let Some(oldest) = self.partitions.oldest().cloned() else { return Ok((0, 0)) };
        let pruned = self.topics.unused(plan.end);
        // Before the transaction: SQLite lets none write that has met damage. A damaged partition cannot be summed, but it
        // can be dropped and its rows be counted.
        let lost = plan.lost.as_ref().map(|(from, _)| {
            (plan.end.saturating_sub(*from), lost_bytes(&self.connection, oldest.number, *from).unwrap_or(0))
        });
        let attempt = |store: &Store, abandon| {
            let drop = || store.drop_in_transaction(&oldest, plan, cursors, &pruned, lost, abandon);
            let dropped = store.begin().and_then(|()| drop());
            dropped.and_then(|name_bytes| store.commit().map(|()| name_bytes)).map_err(|error| {
                store.rollback();
                StoreError::from(error)
            })
        };
        // The pages of a damaged table cannot be given back; it is taken off the list and left in the file.
        let result = match attempt(self, false) {
            Err(StoreError::Corrupt(_)) => attempt(self, true),
            other => other,
        };
        match result {
            Ok(name_bytes) => {
                self.partitions.remove_oldest();
                self.topics.forget(&pruned, name_bytes);
                self.remeasure();
                Ok(lost.unwrap_or_default())
            }
            Err(error) => Err(error),
        }
    }

    /// Gives the bytes of the names of the topics that it deleted.
    fn drop_in_transaction(
        &self,
        oldest: &Partition,
        plan: &DropPlan,
        cursors: &[CursorChange],
        pruned: &[Unused],
        lost: Option<(u64, u64)>,
        abandon: bool,
    ) -> rusqlite::Result<usize> {
        let connection = &self.connection;
        if let Some(((from, names), (rows, bytes))) = plan.lost.as_ref().zip(lost) {
            record_gap(connection, (*from, plan.end), rows, bytes, names)?;
        }
        if !abandon {
            connection.execute_batch(&format!("DROP TABLE {}", schema::partition_table(oldest.number)))?;
        }
        connection
            .prepare_cached("DELETE FROM partition WHERE first_offset=?1")?
            .execute([schema::signed(oldest.first)])?;
        // Without these, dropping the last partition would let offsets and numbers begin again.
        schema::set_meta_number(connection, "next_offset", plan.head)?;
        schema::set_meta_number(connection, "next_partition", u64::from(self.partitions.next_number()))?;
        let mut name_bytes = 0;
        if !pruned.is_empty() {
            name_bytes = delete_topics(connection, pruned)?;
            schema::set_meta_number(connection, "next_topic", u64::from(self.topics.next_id()))?;
        }
        write_cursors(connection, cursors)?;
        Ok(name_bytes)
    }

    /// Reads how much is used. Both numbers are in the first page's header, which is in memory.
    pub(crate) fn measure(&mut self) -> rusqlite::Result<()> {
        let number = |sql: &str| -> rusqlite::Result<u64> {
            self.connection.prepare_cached(sql)?.query_row([], |row| row.get(0)).map(schema::unsigned)
        };
        let pages = number("PRAGMA page_count")?;
        let free = number("PRAGMA freelist_count")?;
        let (_, frames, _) = self.checkpoint_pragma("PRAGMA wal_checkpoint(NOOP)")?;
        let began_anew = frames < self.usage.wal_frames;
        let written = if began_anew { frames } else { frames - self.usage.wal_frames };
        if began_anew {
            self.checkpoint_at = CHECKPOINT_FRAMES;
        }
        self.is_copied &= written == 0;
        self.usage.wal_frames = frames;
        // Frames are not aligned to pages, so a commit writes the page again that the last one ended in.
        self.usage.device_bytes += written * FRAME_BYTES + if written > 0 { PAGE_BYTES } else { 0 };
        self.usage.pages = pages;
        self.usage.pages_used = pages.saturating_sub(free);
        Ok(())
    }

    /// Measures after a commit. The commit stands whatever this says; the next one measures again.
    fn remeasure(&mut self) {
        let _ = self.measure();
    }

    /// Copies the write-ahead log into the database once it has grown by [`CHECKPOINT_FRAMES`]. Called after the commit
    /// was acknowledged, so that no publisher waits for it.
    pub(crate) fn checkpoint_if_due(&mut self) -> Result<(), StoreError> {
        if self.usage.wal_frames < self.checkpoint_at {
            return Ok(());
        }
        // As long as there always is some reader, the write-ahead log does not start over by itself.
        let restart = self.usage.wal_frames >= CHECKPOINT_RESTART_FRAMES;
        let mode = if restart { "PRAGMA wal_checkpoint(RESTART)" } else { "PRAGMA wal_checkpoint(PASSIVE)" };
        // If a reader keeps it from starting over, the next checkpoint has to be worth its two more fsyncs.
        self.checkpoint_at = self.usage.wal_frames + CHECKPOINT_FRAMES;
        self.checkpoint(mode)
    }

    /// Checkpoints and empties the write-ahead log, as far as readers let it.
    pub(crate) fn checkpoint_all(&mut self) -> Result<(), StoreError> {
        self.checkpoint("PRAGMA wal_checkpoint(TRUNCATE)")
    }

    fn checkpoint(&mut self, sql: &str) -> Result<(), StoreError> {
        // Our own readers are done in a few milliseconds; other programs' are not waited for.
        self.connection.busy_timeout(CHECKPOINT_BUSY_TIMEOUT)?;
        let result = self.checkpoint_pragma(sql);
        self.connection.busy_timeout(schema::BUSY_TIMEOUT)?;
        let (busy, frames, copied) = result?;
        self.measure()?;
        if copied >= frames && !busy {
            // A page is copied once however many frames it has: the appended rows' pages, and a few that every
            // commit changes.
            let pages = self.uncopied_bytes / (PAGE_BYTES - 100) + 16;
            self.usage.device_bytes += pages.min(copied) * PAGE_BYTES;
            self.uncopied_bytes = 0;
            self.is_copied = true;
        }
        Ok(())
    }

    /// Whether a reader kept it from completing, frames in the log, frames copied.
    fn checkpoint_pragma(&self, sql: &str) -> rusqlite::Result<(bool, u64, u64)> {
        self.connection.prepare_cached(sql)?.query_row([], |row| {
            Ok((row.get::<_, i64>(0)? != 0, schema::unsigned(row.get(1)?), schema::unsigned(row.get(2)?)))
        })
    }

    fn begin(&self) -> rusqlite::Result<()> {
        self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute([]).map(drop)
    }

    fn commit(&self) -> rusqlite::Result<()> {
        self.connection.prepare_cached("COMMIT")?.execute([]).map(drop)
    }

    /// Ends a failed transaction, if SQLite has not ended it itself.
    fn rollback(&self) {
        if !self.connection.is_autocommit() {
            // A failing rollback leaves the transaction open; the next `BEGIN` then fails and the writer reopens.
            let _ = self.connection.execute_batch("ROLLBACK");
        }
    }
}

fn row_bytes(message: &LogMessage) -> u64 {
    (message.message.payload.len() + message.message.properties.len()) as u64 + ROW_OVERHEAD_BYTES
}

fn insert_message(insert: &mut CachedStatement<'_>, logged: &LogMessage) -> rusqlite::Result<()> {
    let message = &logged.message;
    insert.raw_bind_parameter(1, schema::signed(logged.offset.0))?;
    insert.raw_bind_parameter(2, logged.received_us)?;
    insert.raw_bind_parameter(3, logged.topic_id)?;
    insert.raw_bind_parameter(4, schema::flags_of(message))?;
    let properties = (!message.properties.is_empty()).then_some(&*message.properties);
    insert.raw_bind_parameter(5, properties)?;
    insert.raw_bind_parameter(6, &*message.payload)?;
    insert.raw_execute()?;
    Ok(())
}

fn create_partition(connection: &Connection, partition: &Partition) -> rusqlite::Result<()> {
    connection.execute_batch(&schema::create_partition_sql(partition.number))?;
    connection
        .prepare_cached("INSERT INTO partition(first_offset, number) VALUES(?1, ?2)")?
        .execute((schema::signed(partition.first), partition.number))?;
    Ok(())
}

fn write_retained(connection: &Connection, (topic, message): &RetainedChange) -> rusqlite::Result<()> {
    let Some(retained) = message else {
        connection.prepare_cached("DELETE FROM retained WHERE topic=?1")?.execute([topic.as_str()])?;
        return Ok(());
    };
    let mut upsert = connection.prepare_cached(
        "INSERT INTO retained(topic, stored_us, offset, flags, properties, payload) VALUES(?1,?2,?3,?4,?5,?6) \
         ON CONFLICT(topic) DO UPDATE SET stored_us=?2, offset=?3, flags=?4, properties=?5, payload=?6",
    )?;
    let properties = (!retained.message.properties.is_empty()).then_some(&*retained.message.properties);
    let offset = retained.offset.map(|offset| schema::signed(offset.0));
    let flags = schema::flags_of(&retained.message);
    upsert.execute((topic.as_str(), retained.stored_us, offset, flags, properties, &*retained.message.payload))?;
    Ok(())
}

fn write_cursors(connection: &Connection, cursors: &[CursorChange]) -> rusqlite::Result<()> {
    for change in cursors {
        match change.position {
            Some(position) => connection
                .prepare_cached("INSERT OR REPLACE INTO cursor VALUES(?1, ?2)")?
                .execute((&*change.name, schema::signed(position)))?,
            None => connection.prepare_cached("DELETE FROM cursor WHERE name=?1")?.execute([&*change.name])?,
        };
    }
    Ok(())
}

fn lost_bytes(connection: &Connection, number: u32, from: u64) -> rusqlite::Result<u64> {
    let sql = format!(
        "SELECT coalesce(sum(octet_length(payload)+coalesce(octet_length(properties),0)),0) FROM {} WHERE offset>=?1",
        schema::partition_table(number)
    );
    connection.query_row(&sql, [schema::signed(from)], |row| row.get(0)).map(schema::unsigned)
}

/// Deletes topics; gives the bytes of their names.
fn delete_topics(connection: &Connection, topics: &[Unused]) -> rusqlite::Result<usize> {
    let mut delete = connection.prepare_cached("DELETE FROM topic WHERE id=?1 RETURNING octet_length(name)")?;
    let mut bytes = 0;
    for topic in topics {
        let deleted: Option<i64> = delete.query_row([topic.id], |row| row.get(0)).optional()?;
        bytes += usize::try_from(deleted.unwrap_or(0)).unwrap_or(0);
    }
    Ok(bytes)
}

/// Writes the loss of `from..to` into the ledger. A loss that continues the last one of the same cursors extends it.
fn record_gap(
    connection: &Connection,
    (from, to): (u64, u64),
    rows: u64,
    bytes: u64,
    names: &str,
) -> rusqlite::Result<()> {
    let (from, to) = (schema::signed(from), schema::signed(to));
    let (rows, bytes) = (schema::signed(rows), schema::signed(bytes));
    let extended = connection
        .prepare_cached(
            "UPDATE gap SET to_offset=?2, rows=rows+?3, bytes=bytes+?4, at_us=?5 \
             WHERE id=(SELECT max(id) FROM gap) AND to_offset=?1 AND cursors=?6",
        )?
        .execute((from, to, rows, bytes, clock::now_us(), names))?;
    if extended > 0 {
        return Ok(());
    }
    connection
        .prepare_cached(
            "INSERT INTO gap(from_offset, to_offset, rows, bytes, at_us, cursors) VALUES(?1,?2,?3,?4,?5,?6)",
        )?
        .execute((from, to, rows, bytes, clock::now_us(), names))?;
    let count: i64 = connection.query_row("SELECT count(*) FROM gap", [], |row| row.get(0))?;
    if schema::unsigned(count) > GAP_ROWS_MAX {
        merge_oldest_gaps(connection)?;
    }
    Ok(())
}

fn merge_oldest_gaps(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(
        "UPDATE gap SET from_offset=(SELECT from_offset FROM gap ORDER BY id LIMIT 1), \
            rows=rows+(SELECT rows FROM gap ORDER BY id LIMIT 1), \
            bytes=bytes+(SELECT bytes FROM gap ORDER BY id LIMIT 1) \
         WHERE id=(SELECT id FROM gap ORDER BY id LIMIT 1 OFFSET 1); \
         DELETE FROM gap WHERE id=(SELECT min(id) FROM gap);",
    )
}

/// The partitions of the file and the next offset.
fn load_partitions(connection: &Connection) -> rusqlite::Result<(Partitions, u64)> {
    let mut list = VecDeque::new();
    let mut statement = connection.prepare("SELECT number, first_offset FROM partition ORDER BY first_offset")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        list.push_back(Partition::new(row.get(0)?, schema::unsigned(row.get(1)?)));
    }
    drop(rows);
    let mut head = schema::meta_number(connection, "next_offset")?.max(1);
    if let Some(newest) = list.back_mut() {
        let table = schema::partition_table(newest.number);
        let last: Option<i64> =
            connection.query_row(&format!("SELECT max(offset) FROM {table}"), [], |row| row.get(0))?;
        head = head.max(newest.first).max(last.map_or(0, |last| schema::unsigned(last) + 1));
        let rows = head - newest.first;
        newest.bytes = lost_bytes(connection, newest.number, newest.first)? + rows * ROW_OVERHEAD_BYTES;
    }
    let newest = list.back().map_or(0, |newest| newest.number);
    let kept = u32::try_from(schema::meta_number(connection, "next_partition")?).unwrap_or(u32::MAX);
    Ok((Partitions::new(list, kept.max(newest.saturating_add(1))), head))
}

fn load_topics(connection: &Connection, head: u64, count_max: usize, bytes_max: usize) -> rusqlite::Result<Topics> {
    let next = u32::try_from(schema::meta_number(connection, "next_topic")?).unwrap_or(u32::MAX);
    let mut topics = Topics::new(count_max, bytes_max, next);
    let mut statement = connection.prepare("SELECT id, name FROM topic")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let name = row.get_ref(1)?.as_str().ok().and_then(|name| TopicName::parse(name).ok());
        // A number whose name is damaged is kept out of use by `next_id`; its messages read as a gap.
        match name {
            Some(name) => topics.load(row.get(0)?, &name, head),
            None => topics.skip(row.get(0)?),
        }
    }
    Ok(topics)
}
