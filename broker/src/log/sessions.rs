//! Stored sessions: what a client that went away finds again.
//!
//! Owns the rows of `session`, `subscription`, `outgoing`, `incoming` and `will`: how they are written (in the writer's
//! commits, as a [`SessionUpdate`]) and how one session is read back. A session is a row and its read position: the messages
//! it has not had are in the log, wherever it left off. Never decides what a session means; see the broker's `session`.
//! [`super::session_book`] keeps in memory which sessions there are.

use std::num::NonZeroU16;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row};

use super::{Offset, schema};
use crate::message::{Message, QoS};
use crate::topic::{TopicFilter, TopicName};

/// The number of a stored session; never used twice in one log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SessionId(pub(crate) u32);

/// A subscription as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredSubscription {
    pub(crate) filter: TopicFilter,
    pub(crate) qos: QoS,
    pub(crate) no_local: bool,
    pub(crate) retain_as_published: bool,
    pub(crate) identifier: Option<u32>,
    /// Messages of the log before this one are not for it.
    pub(crate) since: Offset,
}

/// What an outgoing message waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stage {
    /// PUBACK.
    Acknowledged = 0,
    /// PUBREC.
    Received = 1,
    /// PUBCOMP.
    Completed = 2,
}

/// A QoS 1 or 2 message that was sent, or is about to be, and is not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StoredOutgoing {
    pub(crate) packet_id: NonZeroU16,
    /// The order of sending, counted in the session.
    pub(crate) sequence: u64,
    /// Where the log has the message.
    pub(crate) offset: Offset,
    pub(crate) stage: Stage,
    /// It was sent because it was retained.
    pub(crate) retained: bool,
}

/// The will of a session, which outlives its connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredWill {
    pub(crate) message: Message,
    /// How long after the connection's end it is due, in seconds.
    pub(crate) delay_s: u32,
    /// When it is due, in microseconds since 1970 UTC; `None` while the client is connected.
    pub(crate) due_us: Option<i64>,
}

/// A session as the file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredSession {
    pub(crate) id: SessionId,
    /// Whom the client authenticated as; only the same may go on with the session.
    pub(crate) username: Option<Box<str>>,
    /// The first message of the log that it has not read.
    pub(crate) read_from: Offset,
    pub(crate) subscriptions: Vec<StoredSubscription>,
    /// In the order of sending.
    pub(crate) outgoing: Vec<StoredOutgoing>,
    /// QoS 2 identifiers between PUBLISH and PUBREL.
    pub(crate) incoming: Vec<NonZeroU16>,
    pub(crate) will: Option<StoredWill>,
}

impl StoredSession {
    /// The oldest message that it still needs.
    pub(crate) fn position(&self) -> Offset {
        let unfinished = self.outgoing.iter().filter(|outgoing| outgoing.stage != Stage::Completed);
        unfinished.map(|outgoing| outgoing.offset).min().map_or(self.read_from, |oldest| oldest.min(self.read_from))
    }
}

/// A new session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewSession {
    pub(crate) client_id: Box<str>,
    pub(crate) username: Option<Box<str>>,
}

/// Whether the client is connected, and what happens when it is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Presence {
    /// How long the session outlives its connection, in seconds.
    pub(crate) expiry_s: u32,
    /// When the connection ended, in microseconds since 1970 UTC; `None` while there is one.
    pub(crate) ended_us: Option<i64>,
}

impl Presence {
    /// When the session is over; `None` while the client is connected, or if it never is.
    pub(crate) fn expires_us(self) -> Option<i64> {
        (self.expiry_s != u32::MAX).then_some(self.ended_us?.saturating_add(i64::from(self.expiry_s) * 1_000_000))
    }
}

/// How far a session has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) read_from: Offset,
    /// The oldest message that it still needs.
    pub(crate) position: Offset,
}

/// Changes of one session, written in one commit. Writing them twice is writing them once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SessionUpdate {
    pub(crate) id: SessionId,
    /// Another session that ends with this commit, before anything else.
    pub(crate) ends: Option<SessionId>,
    pub(crate) begin: Option<NewSession>,
    pub(crate) presence: Option<Presence>,
    pub(crate) progress: Option<Progress>,
    /// A new will, or none any more.
    pub(crate) will: Option<Option<StoredWill>>,
    /// Filters as written.
    pub(crate) unsubscribed: Vec<Box<str>>,
    pub(crate) subscribed: Vec<StoredSubscription>,
    /// By how much the filters grew, for the book: a filter that is subscribed again is no new one.
    pub(crate) filter_bytes: i64,
    pub(crate) finished: Vec<NonZeroU16>,
    pub(crate) outgoing: Vec<StoredOutgoing>,
    pub(crate) released: Vec<NonZeroU16>,
    pub(crate) received: Vec<NonZeroU16>,
}

impl SessionUpdate {
    /// No changes yet.
    pub(crate) fn of(id: SessionId) -> SessionUpdate {
        SessionUpdate {
            id,
            ends: None,
            begin: None,
            presence: None,
            progress: None,
            will: None,
            unsubscribed: Vec::new(),
            subscribed: Vec::new(),
            filter_bytes: 0,
            finished: Vec::new(),
            outgoing: Vec::new(),
            released: Vec::new(),
            received: Vec::new(),
        }
    }

    /// The end of a session: all its rows go.
    pub(crate) fn end(id: SessionId) -> SessionUpdate {
        SessionUpdate { ends: Some(id), ..SessionUpdate::of(id) }
    }

    /// Bytes that the rows take at most, for the estimate of pages.
    pub(crate) fn bytes(&self) -> usize {
        let filters: usize =
            self.subscribed.iter().map(|subscription| subscription.filter.as_written().len() + 40).sum();
        let will = self.will.iter().flatten().map(|will| {
            let message = &will.message;
            message.topic.as_str().len() + message.payload.len() + message.properties.len() + 60
        });
        let begin = self.begin.as_ref().map_or(0, |begin| 2 * begin.client_id.len() + 100);
        filters + will.sum::<usize>() + begin + 24 * (self.outgoing.len() + self.received.len()) + 100
    }
}

/// Writes an update; in a transaction of the caller.
pub(crate) fn write(connection: &Connection, update: &SessionUpdate) -> rusqlite::Result<()> {
    if let Some(ended) = update.ends {
        for table in ["subscription", "outgoing", "incoming", "will"] {
            connection.prepare_cached(&format!("DELETE FROM {table} WHERE session=?1"))?.execute([ended.0])?;
        }
        connection.prepare_cached("DELETE FROM session WHERE id=?1")?.execute([ended.0])?;
        if ended == update.id {
            // Without this a number would be given again when the newest session ends.
            return schema::set_meta_number(connection, "session_ended", u64::from(ended.0));
        }
    }
    let id = update.id.0;
    if let Some(begin) = &update.begin {
        connection.prepare_cached("INSERT OR REPLACE INTO session VALUES(?1,?2,?3,0,NULL,1,1)")?.execute((
            id,
            &*begin.client_id,
            begin.username.as_deref(),
        ))?;
    }
    if let Some(Presence { expiry_s, ended_us }) = update.presence {
        let sql = "UPDATE session SET expiry_s=?2, ended_us=?3 WHERE id=?1";
        connection.prepare_cached(sql)?.execute((id, expiry_s, ended_us))?;
    }
    if let Some(Progress { read_from, position }) = update.progress {
        let (read_from, position) = (schema::signed(read_from.0), schema::signed(position.0));
        let sql = "UPDATE session SET read_from=?2, position=?3 WHERE id=?1";
        connection.prepare_cached(sql)?.execute((id, read_from, position))?;
    }
    match &update.will {
        None => {}
        Some(None) => drop(connection.prepare_cached("DELETE FROM will WHERE session=?1")?.execute([id])?),
        Some(Some(will)) => write_will(connection, id, will)?,
    }
    for filter in &update.unsubscribed {
        let sql = "DELETE FROM subscription WHERE session=?1 AND filter=?2";
        connection.prepare_cached(sql)?.execute((id, &**filter))?;
    }
    for subscription in &update.subscribed {
        let sql = "INSERT OR REPLACE INTO subscription VALUES(?1,?2,?3,?4,?5)";
        let filter = subscription.filter.as_written();
        let since = schema::signed(subscription.since.0);
        let row = (id, filter, options_of(subscription), subscription.identifier, since);
        connection.prepare_cached(sql)?.execute(row)?;
    }
    delete_ids(connection, "outgoing", id, &update.finished)?;
    for outgoing in &update.outgoing {
        let sql = "INSERT OR REPLACE INTO outgoing VALUES(?1,?2,?3,?4,?5)";
        let flags = outgoing.stage as u8 | u8::from(outgoing.retained) << 2;
        let (sequence, offset) = (schema::signed(outgoing.sequence), schema::signed(outgoing.offset.0));
        connection.prepare_cached(sql)?.execute((id, outgoing.packet_id.get(), sequence, offset, flags))?;
    }
    delete_ids(connection, "incoming", id, &update.released)?;
    for packet_id in &update.received {
        let sql = "INSERT OR REPLACE INTO incoming VALUES(?1,?2)";
        connection.prepare_cached(sql)?.execute((id, packet_id.get()))?;
    }
    Ok(())
}

fn delete_ids(connection: &Connection, table: &str, session: u32, ids: &[NonZeroU16]) -> rusqlite::Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    let mut delete = connection.prepare_cached(&format!("DELETE FROM {table} WHERE session=?1 AND packet_id=?2"))?;
    for packet_id in ids {
        delete.execute((session, packet_id.get()))?;
    }
    Ok(())
}

fn write_will(connection: &Connection, session: u32, will: &StoredWill) -> rusqlite::Result<()> {
    let message = &will.message;
    let properties = (!message.properties.is_empty()).then_some(&*message.properties);
    connection.prepare_cached("INSERT OR REPLACE INTO will VALUES(?1,?2,?3,?4,?5,?6,?7)")?.execute((
        session,
        will.delay_s,
        will.due_us,
        message.topic.as_str(),
        schema::flags_of(message),
        properties,
        &*message.payload,
    ))?;
    Ok(())
}

/// QoS in bits 0–1, no-local in bit 2, retain-as-published in bit 3: as in SUBSCRIBE of MQTT 5.
fn options_of(subscription: &StoredSubscription) -> u8 {
    subscription.qos as u8 | u8::from(subscription.no_local) << 2 | u8::from(subscription.retain_as_published) << 3
}

/// A session that the file has, for the book.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) id: SessionId,
    pub(crate) client_id: String,
    pub(crate) presence: Presence,
    pub(crate) position: u64,
    pub(crate) will_due_us: Option<i64>,
    /// Bytes of its subscriptions.
    pub(crate) bytes: usize,
}

/// Whoever was connected when the last process ended is not any more: sessions end, and wills are due, from `now_us` on.
pub(crate) fn end_connections(connection: &Connection, now_us: i64) -> rusqlite::Result<()> {
    connection.execute_batch("BEGIN IMMEDIATE")?;
    connection.execute(
        "UPDATE will SET due_us=?1+1000000*min(delay_s, (SELECT expiry_s FROM session WHERE id=session)) \
         WHERE session IN (SELECT id FROM session WHERE ended_us IS NULL)",
        [now_us],
    )?;
    connection.execute("UPDATE session SET ended_us=?1 WHERE ended_us IS NULL", [now_us])?;
    connection.execute_batch("COMMIT")
}

/// What the file has of sessions.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) sessions: Vec<Listed>,
    /// Their shared subscriptions, with the positions.
    pub(crate) shared: Vec<(TopicFilter, Offset)>,
    /// The first number that none has had.
    pub(crate) next_id: u32,
}

/// Lists all sessions.
pub(crate) fn list(connection: &Connection) -> rusqlite::Result<Found> {
    let mut next = schema::meta_number(connection, "session_ended")?;
    let mut select = connection.prepare(
        "SELECT id, client_id, expiry_s, ended_us, position, (SELECT due_us FROM will WHERE session=id), \
            (SELECT coalesce(sum(octet_length(filter)),0) FROM subscription WHERE session=id) FROM session",
    )?;
    let mut rows = select.query([])?;
    let mut sessions = Vec::new();
    while let Some(row) = rows.next()? {
        let listed = Listed {
            id: SessionId(row.get(0)?),
            client_id: row.get(1)?,
            presence: Presence { expiry_s: row.get(2)?, ended_us: row.get(3)? },
            position: schema::unsigned(row.get(4)?),
            will_due_us: row.get(5)?,
            bytes: usize::try_from(schema::unsigned(row.get(6)?)).unwrap_or(usize::MAX),
        };
        next = next.max(u64::from(listed.id.0));
        sessions.push(listed);
    }
    let mut select = connection.prepare("SELECT filter, since FROM subscription WHERE filter GLOB '$share/*'")?;
    let mut rows = select.query([])?;
    let mut shared = Vec::new();
    while let Some(row) = rows.next()? {
        let filter: String = row.get(0)?;
        if let Ok(filter) = TopicFilter::parse(&filter) {
            shared.push((filter, Offset(schema::unsigned(row.get(1)?))));
        }
    }
    Ok(Found { sessions, shared, next_id: u32::try_from(next + 1).unwrap_or(u32::MAX) })
}

/// Reads one session; rows that the writer cannot have written are left out.
pub(crate) fn load(connection: &Connection, id: SessionId) -> rusqlite::Result<Option<StoredSession>> {
    let head = "SELECT username, read_from FROM session WHERE id=?1";
    let columns = |row: &Row<'_>| Ok((row.get::<_, Option<String>>(0)?, schema::unsigned(row.get(1)?)));
    let Some((username, read_from)) = connection.prepare_cached(head)?.query_row([id.0], columns).optional()? else {
        return Ok(None);
    };
    Ok(Some(StoredSession {
        id,
        username: username.map(Into::into),
        read_from: Offset(read_from),
        subscriptions: load_subscriptions(connection, id)?,
        outgoing: load_outgoing(connection, id)?,
        incoming: load_incoming(connection, id)?,
        will: load_will(connection, id)?,
    }))
}

fn load_subscriptions(connection: &Connection, id: SessionId) -> rusqlite::Result<Vec<StoredSubscription>> {
    let sql = "SELECT filter, options, identifier, since FROM subscription WHERE session=?1";
    let mut select = connection.prepare_cached(sql)?;
    let mut rows = select.query([id.0])?;
    let mut subscriptions = Vec::new();
    while let Some(row) = rows.next()? {
        let filter: String = row.get(0)?;
        let options: u8 = row.get(1)?;
        let (Ok(filter), Some(qos)) = (TopicFilter::parse(&filter), QoS::from_bits(options & 3)) else { continue };
        subscriptions.push(StoredSubscription {
            filter,
            qos,
            no_local: options & 4 != 0,
            retain_as_published: options & 8 != 0,
            identifier: row.get(2)?,
            since: Offset(schema::unsigned(row.get(3)?)),
        });
    }
    Ok(subscriptions)
}

fn load_outgoing(connection: &Connection, id: SessionId) -> rusqlite::Result<Vec<StoredOutgoing>> {
    let sql = "SELECT packet_id, sequence, offset, flags FROM outgoing WHERE session=?1 ORDER BY sequence";
    let mut select = connection.prepare_cached(sql)?;
    let mut rows = select.query([id.0])?;
    let mut outgoing = Vec::new();
    while let Some(row) = rows.next()? {
        let flags: u8 = row.get(3)?;
        let stage = match flags & 3 {
            0 => Stage::Acknowledged,
            1 => Stage::Received,
            _ => Stage::Completed,
        };
        let Some(packet_id) = NonZeroU16::new(row.get(0)?) else { continue };
        let sequence = schema::unsigned(row.get(1)?);
        let offset = Offset(schema::unsigned(row.get(2)?));
        outgoing.push(StoredOutgoing { packet_id, sequence, offset, stage, retained: flags & 4 != 0 });
    }
    Ok(outgoing)
}

fn load_incoming(connection: &Connection, id: SessionId) -> rusqlite::Result<Vec<NonZeroU16>> {
    let mut select = connection.prepare_cached("SELECT packet_id FROM incoming WHERE session=?1")?;
    let rows = select.query_map([id.0], |row| row.get::<_, u16>(0))?;
    rows.filter_map(|id| id.map(NonZeroU16::new).transpose()).collect()
}

fn load_will(connection: &Connection, id: SessionId) -> rusqlite::Result<Option<StoredWill>> {
    let sql = "SELECT delay_s, due_us, topic, flags, properties, payload FROM will WHERE session=?1";
    let will = connection.prepare_cached(sql)?.query_row([id.0], |row| {
        let topic: String = row.get(2)?;
        let (properties, payload): (Bytes, Bytes) = (schema::blob(row, 4)?, schema::blob(row, 5)?);
        let flags = row.get(3)?;
        let topic = TopicName::parse(&topic).ok();
        let message = topic.and_then(|topic| schema::message_of(topic, flags, properties, payload));
        Ok(message.map(|message| (message, row.get(0), row.get(1))))
    });
    let Some((message, delay_s, due_us)) = will.optional()?.flatten() else { return Ok(None) };
    Ok(Some(StoredWill { message, delay_s: delay_s?, due_us: due_us? }))
}
