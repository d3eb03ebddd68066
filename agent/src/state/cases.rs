//! The casebook's tables.
//!
//! Owns `alert` (an episode in short), `alert_event` (its evidence: the last event before the clear), `alert_note`, `silence` and `action`
//! (the audit trail of people), and their bounds. Events of the pipeline and what people did are stored in the transaction of a checkpoint;
//! reading is done on a connection of its own. Types and meaning are the casebook's.

use std::borrow::Cow;
use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{State, StateError};
use crate::alarm::Severity;
use crate::alarm::message::{Acknowledged, AlertEvent, EventKind};
use crate::casebook::similar::{SIMILAR_MIN, Shares, likeness};
use crate::casebook::{
    ALERTS_KEPT_MAX, AUDIT_KEPT_MAX, AlertQuery, AlertSummary, AuditEntry, Case, Note, NoteKind, Notes, PAGE_MAX, Page,
    SIMILAR_MAX, Silence, UPDATES_MAX, Verdict,
};

/// Past alerts that are compared with one: a few milliseconds.
const COMPARED_MAX: usize = 2_000;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS alert (number INTEGER PRIMARY KEY, id TEXT NOT NULL, asset TEXT NOT NULL, severity TEXT NOT NULL,
    state TEXT NOT NULL, onset_us INTEGER NOT NULL, raised_us INTEGER NOT NULL, cleared_us INTEGER, peak_score REAL NOT NULL,
    message TEXT NOT NULL, silenced INTEGER NOT NULL, model TEXT NOT NULL, first TEXT NOT NULL, shares TEXT NOT NULL,
    acknowledged TEXT, verdict TEXT, notes INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS alert_asset ON alert (asset, number);
CREATE INDEX IF NOT EXISTS alert_raised ON alert (raised_us, asset);
CREATE INDEX IF NOT EXISTS alert_open ON alert (number) WHERE cleared_us IS NULL;
CREATE TABLE IF NOT EXISTS alert_event (number INTEGER PRIMARY KEY, event BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS alert_note (number INTEGER PRIMARY KEY, alert INTEGER NOT NULL, at_us INTEGER NOT NULL, who TEXT NOT NULL,
    kind TEXT NOT NULL, text TEXT, verdict TEXT);
CREATE INDEX IF NOT EXISTS alert_note_alert ON alert_note (alert, number);
CREATE TABLE IF NOT EXISTS silence (asset TEXT PRIMARY KEY, until_us INTEGER NOT NULL, reason TEXT, who TEXT NOT NULL,
    since_us INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS action (number INTEGER PRIMARY KEY AUTOINCREMENT, at_us INTEGER NOT NULL, who TEXT NOT NULL,
    action TEXT NOT NULL, subject TEXT NOT NULL, text TEXT);
";

pub(super) const SUMMARY: &str = "number, id, asset, severity, state, raised_us, cleared_us, onset_us, peak_score, message, acknowledged, verdict, \
                       notes, silenced, first, shares";

/// What a person did, as it is stored with a checkpoint.
#[derive(Debug, Clone)]
pub struct Deed {
    /// The machine.
    pub asset: String,
    /// For the audit trail.
    pub audit: AuditEntry,
    /// The alert it is about, and the note.
    pub note: Option<(u64, Note)>,
    /// A silence that begins or ends.
    pub silence: Option<SilenceChange>,
}

/// A silence that begins or ends.
#[derive(Debug, Clone)]
pub enum SilenceChange {
    /// Set, or set anew.
    Begin(Silence),
    /// Taken away from an asset.
    End(String),
}

/// What the pipeline must know of an alert to act on it.
#[derive(Debug, Clone)]
pub struct AlertRow {
    /// In short.
    pub summary: AlertSummary,
    /// The last event that told of it.
    pub event: Option<AlertEvent>,
}

pub(super) fn create(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.execute_batch(SCHEMA)
}

fn json(value: &impl Serialize) -> String {
    // Names and numbers always serialise.
    serde_json::to_string(value).unwrap_or_default()
}

fn word(value: &impl Serialize) -> String {
    json(value).trim_matches('"').to_owned()
}

fn of_word<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_str(&format!("\"{text}\"")).ok()
}

/// The number in an id `<gateway>/<number>`.
fn number_of(id: &str) -> Option<i64> {
    id.rsplit('/').next()?.parse().ok()
}

/// Stores what happened to an alert.
pub(super) fn store_event(transaction: &Transaction<'_>, event: &AlertEvent, now_us: i64) -> Result<(), StateError> {
    let Some(number) = number_of(&event.alert) else { return Ok(()) };
    let cleared = event.event == EventKind::Clear;
    let (first, shares) = (json(&event.evidence.first_to_deviate), json(&shares(event)));
    // What is told when it is over says that all is well again: what was wrong is kept as it was told before.
    let conflict = if cleared {
        "UPDATE SET severity = ?4, state = ?5, cleared_us = ?8, peak_score = ?9"
    } else {
        "UPDATE SET severity = ?4, state = ?5, cleared_us = NULL, peak_score = ?9, message = ?10, model = ?12, shares = ?14"
    };
    transaction
        .prepare_cached(&format!(
            "INSERT INTO alert (number, id, asset, severity, state, onset_us, raised_us, cleared_us, peak_score, message, silenced,
                 model, first, shares) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)
             ON CONFLICT (number) DO {conflict}"
        ))?
        .execute(params![
            number,
            event.alert,
            event.asset,
            word(&event.severity),
            word(&event.state),
            event.onset_us,
            event.raised_us,
            cleared.then_some(event.time_us),
            f64::from(event.peak_score),
            event.message,
            event.silenced,
            json(&event.model),
            first,
            shares
        ])?;
    let keep = if cleared { "INSERT OR IGNORE" } else { "INSERT OR REPLACE" };
    let kept = with_onset(transaction, number, event)?;
    transaction
        .prepare_cached(&format!("{keep} INTO alert_event (number, event) VALUES (?1, ?2)"))?
        .execute(params![number, serde_json::to_vec(&*kept).unwrap_or_default()])?;
    let kind = match event.event {
        EventKind::Raise => NoteKind::Raise,
        EventKind::Update => NoteKind::Update,
        EventKind::Clear => NoteKind::Clear,
    };
    let text = Some(event.message.clone());
    store_note(transaction, number, &Note { at_us: now_us, by: event.gateway.clone(), kind, text, verdict: None })?;
    drop_old_updates(transaction, number)?;
    if event.event == EventKind::Raise {
        drop_old_alerts(transaction)?;
    }
    Ok(())
}

/// The event with the signal that shows the onset: the rows before it leave the memory while an alert goes on, and what is told
/// later begins after it.
fn with_onset<'e>(
    transaction: &Transaction<'_>,
    number: i64,
    event: &'e AlertEvent,
) -> Result<Cow<'e, AlertEvent>, StateError> {
    let stored: Option<Vec<u8>> = transaction
        .prepare_cached("SELECT event FROM alert_event WHERE number = ?1")?
        .query_row([number], |row| row.get(0))
        .optional()?;
    let stored = stored.and_then(|bytes| serde_json::from_slice::<AlertEvent>(&bytes).ok());
    let rows_before = |event: &AlertEvent| event.evidence.signal.iter().map(|signal| signal.before.len()).max();
    Ok(match stored {
        Some(stored) if rows_before(&stored) > rows_before(event) => {
            let mut kept = event.clone();
            kept.evidence.signal = stored.evidence.signal;
            Cow::Owned(kept)
        }
        _ => Cow::Borrowed(event),
    })
}

fn shares(event: &AlertEvent) -> Shares {
    event.evidence.sensors.iter().map(|sensor| (sensor.channel.clone(), sensor.contribution)).collect()
}

fn store_note(transaction: &Transaction<'_>, alert: i64, note: &Note) -> Result<(), rusqlite::Error> {
    transaction
        .prepare_cached(
            "INSERT INTO alert_note (alert, at_us, who, kind, text, verdict) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            alert,
            note.at_us,
            note.by,
            note.kind.as_str(),
            note.text,
            note.verdict.map(|verdict| verdict.as_str())
        ])?;
    Ok(())
}

fn drop_old_updates(transaction: &Transaction<'_>, alert: i64) -> Result<(), rusqlite::Error> {
    transaction
        .prepare_cached(
            "DELETE FROM alert_note WHERE number IN (SELECT number FROM alert_note WHERE alert = ?1 AND kind = 'update'
             ORDER BY number DESC LIMIT -1 OFFSET ?2)",
        )?
        .execute(params![alert, UPDATES_MAX as i64])?;
    Ok(())
}

fn drop_old_alerts(transaction: &Transaction<'_>) -> Result<(), rusqlite::Error> {
    let kept: i64 = transaction.prepare_cached("SELECT count(*) FROM alert")?.query_row([], |row| row.get(0))?;
    let beyond = kept - ALERTS_KEPT_MAX as i64;
    if beyond <= 0 {
        return Ok(());
    }
    let mut oldest =
        transaction.prepare_cached("SELECT number FROM alert WHERE cleared_us IS NOT NULL ORDER BY number LIMIT ?1")?;
    let numbers: Vec<i64> = oldest.query_map([beyond], |row| row.get(0))?.collect::<Result<_, _>>()?;
    for number in numbers {
        for table in ["alert WHERE number", "alert_event WHERE number", "alert_note WHERE alert"] {
            transaction.prepare_cached(&format!("DELETE FROM {table} = ?1"))?.execute([number])?;
        }
    }
    Ok(())
}

/// Stores what a person did.
pub(super) fn store_deed(transaction: &Transaction<'_>, deed: &Deed) -> Result<(), StateError> {
    store_action(transaction, &deed.audit)?;
    if let Some((alert, note)) = &deed.note {
        let number = alert.cast_signed();
        store_note(transaction, number, note)?;
        let mut count = transaction.prepare_cached("UPDATE alert SET notes = notes + 1 WHERE number = ?1")?;
        count.execute([number])?;
        if note.kind == NoteKind::Acknowledge {
            let acknowledged = json(&Acknowledged { by: note.by.clone(), at_us: note.at_us });
            transaction
                .prepare_cached("UPDATE alert SET acknowledged = coalesce(acknowledged, ?2) WHERE number = ?1")?
                .execute(params![number, acknowledged])?;
        }
        if let Some(verdict) = note.verdict {
            transaction
                .prepare_cached("UPDATE alert SET verdict = ?2 WHERE number = ?1")?
                .execute(params![number, verdict.as_str()])?;
        }
    }
    match &deed.silence {
        None => {}
        Some(SilenceChange::Begin(silence)) => {
            // Those that are over go with the next that begins: there is one for each asset at most.
            transaction.prepare_cached("DELETE FROM silence WHERE until_us <= ?1")?.execute([silence.since_us])?;
            transaction
                .prepare_cached(
                    "INSERT OR REPLACE INTO silence (asset, until_us, reason, who, since_us) VALUES (?1, ?2, ?3, ?4, ?5)",
                )?
                .execute(params![silence.asset, silence.until_us, silence.reason, silence.by, silence.since_us])?;
        }
        Some(SilenceChange::End(asset)) => {
            transaction.prepare_cached("DELETE FROM silence WHERE asset = ?1")?.execute([asset])?;
        }
    }
    Ok(())
}

fn store_action(transaction: &Transaction<'_>, entry: &AuditEntry) -> Result<(), rusqlite::Error> {
    transaction
        .prepare_cached("INSERT INTO action (at_us, who, action, subject, text) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![entry.at_us, entry.by, entry.action, entry.subject, entry.text])?;
    transaction
        .prepare_cached("DELETE FROM action WHERE number <= ?1")?
        .execute([transaction.last_insert_rowid() - AUDIT_KEPT_MAX as i64])?;
    Ok(())
}

/// A summary and the shares to compare it by.
pub(super) fn summary(row: &Row<'_>) -> Result<(AlertSummary, Shares), rusqlite::Error> {
    let text = |index: usize| row.get::<_, String>(index);
    let shares: Shares = serde_json::from_str(&text(15)?).unwrap_or_default();
    let first: Vec<crate::alarm::deviation::Deviation> = serde_json::from_str(&text(14)?).unwrap_or_default();
    let first = first.into_iter().next().map(|deviation| deviation.channel);
    let acknowledged = row.get::<_, Option<String>>(10)?.and_then(|text| serde_json::from_str(&text).ok());
    let cleared_us: Option<i64> = row.get(6)?;
    let summary = AlertSummary {
        number: row.get::<_, i64>(0)?.cast_unsigned(),
        id: text(1)?,
        asset: text(2)?,
        severity: of_word(&text(3)?).unwrap_or(Severity::Warning),
        state: of_word(&text(4)?).unwrap_or(millwright_models::State::Ok),
        raised_us: row.get(5)?,
        cleared_us,
        onset_us: row.get(7)?,
        peak_score: row.get::<_, f64>(8)? as f32,
        message: text(9)?,
        acknowledged,
        verdict: row.get::<_, Option<String>>(11)?.and_then(|text| Verdict::parse(&text)),
        notes: Notes::Count(row.get::<_, i64>(12)?.cast_unsigned()),
        silenced: row.get(13)?,
        first_channel: first.or_else(|| shares.first().map(|(channel, _)| channel.clone())),
    };
    Ok((summary, shares))
}

fn find(connection: &Connection, number: i64) -> Result<Option<(AlertSummary, Shares)>, rusqlite::Error> {
    let sql = format!("SELECT {SUMMARY} FROM alert WHERE number = ?1");
    connection.prepare_cached(&sql)?.query_row([number], summary).optional()
}

fn event_of(connection: &Connection, number: i64) -> Result<Option<AlertEvent>, rusqlite::Error> {
    let mut statement = connection.prepare_cached("SELECT event FROM alert_event WHERE number = ?1")?;
    let event: Option<Vec<u8>> = statement.query_row([number], |row| row.get(0)).optional()?;
    Ok(event.and_then(|event| serde_json::from_slice(&event).ok()))
}

fn notes_of(connection: &Connection, number: i64) -> Result<Vec<Note>, rusqlite::Error> {
    let sql = "SELECT at_us, who, kind, text, verdict FROM alert_note WHERE alert = ?1 ORDER BY number";
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map([number], |row| {
        let (kind, verdict): (String, Option<String>) = (row.get(2)?, row.get(4)?);
        Ok(Note {
            at_us: row.get(0)?,
            by: row.get(1)?,
            kind: NoteKind::parse(&kind).unwrap_or(NoteKind::Comment),
            text: row.get(3)?,
            verdict: verdict.and_then(|verdict| Verdict::parse(&verdict)),
        })
    })?;
    rows.collect()
}

/// Past alerts of the same asset or the same model that look like this one.
fn similar(
    connection: &Connection,
    this: &AlertSummary,
    shares: &Shares,
    model: &str,
) -> Result<Vec<AlertSummary>, rusqlite::Error> {
    let sql = format!(
        "SELECT {SUMMARY} FROM alert WHERE number <> ?1 AND (asset = ?2 OR json_extract(model, '$.name') = ?3)
         ORDER BY number DESC LIMIT ?4"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let rows =
        statement.query_map(params![this.number.cast_signed(), this.asset, model, COMPARED_MAX as i64], summary)?;
    let mut alike = Vec::new();
    for row in rows {
        let (other, theirs) = row?;
        let likeness = likeness(shares, &theirs);
        if likeness >= SIMILAR_MIN {
            alike.push((likeness, other));
        }
    }
    // A stable sort: of those equally alike the newest is first.
    alike.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    Ok(alike.into_iter().take(SIMILAR_MAX).map(|(_, alert)| alert).collect())
}

/// Cuts a list of one row too many into a page.
fn page<T>(mut items: Vec<T>, limit: usize, cursor: impl Fn(&T) -> i64) -> Page<T> {
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(cursor);
    Page { items, next }
}

impl State {
    /// A page of alerts, the newest first.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn alerts(&self, query: &AlertQuery) -> Result<Page<AlertSummary>, StateError> {
        let connection = self.reader();
        let limit = query.limit.clamp(1, PAGE_MAX);
        let sql = format!(
            "SELECT {SUMMARY} FROM alert WHERE number < ?1 AND (?2 IS NULL OR asset = ?2)
                 AND (?3 IS NULL OR (cleared_us IS NULL) = ?3)
                 AND (?4 IS NULL OR raised_us >= ?4) AND (?5 IS NULL OR raised_us < ?5)
             ORDER BY number DESC LIMIT ?6"
        );
        let mut statement = connection.prepare_cached(&sql)?;
        let rows = statement.query_map(
            params![
                query.before.unwrap_or(i64::MAX),
                query.asset,
                query.open,
                query.raised_from_us,
                query.raised_before_us,
                limit as i64 + 1
            ],
            |row| Ok(summary(row)?.0),
        )?;
        Ok(page(rows.collect::<Result<_, _>>()?, limit, |alert| alert.number.cast_signed()))
    }

    /// One alert in short.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn alert(&self, number: u64) -> Result<Option<AlertSummary>, StateError> {
        Ok(find(&self.reader(), number.cast_signed())?.map(|(alert, _)| alert))
    }

    /// One alert with evidence, notes and similar ones.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn case(&self, number: u64) -> Result<Option<Case>, StateError> {
        let connection = self.reader();
        let number = number.cast_signed();
        let Some((mut alert, shares)) = find(&connection, number)? else { return Ok(None) };
        let Some(event) = event_of(&connection, number)? else { return Ok(None) };
        let similar = similar(&connection, &alert, &shares, &event.model.name)?;
        let mut statement = connection.prepare_cached("SELECT first FROM alert WHERE number = ?1")?;
        let first: String = statement.query_row([number], |row| row.get(0))?;
        alert.notes = Notes::List(notes_of(&connection, number)?);
        let first_to_deviate = serde_json::from_str(&first).unwrap_or_default();
        Ok(Some(Case { summary: alert, model: event.model, evidence: event.evidence, first_to_deviate, similar }))
    }

    /// What the pipeline must know of an alert to act on it.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn alert_row(&self, number: u64) -> Result<Option<AlertRow>, StateError> {
        let connection = self.lock();
        let Some((summary, _)) = find(&connection, number.cast_signed())? else { return Ok(None) };
        Ok(Some(AlertRow { summary, event: event_of(&connection, number.cast_signed())? }))
    }

    /// Alerts that are up, in short: at most one for each asset.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn open_alerts(&self) -> Result<Vec<AlertSummary>, StateError> {
        let connection = self.lock();
        let sql = format!("SELECT {SUMMARY} FROM alert WHERE cleared_us IS NULL ORDER BY number");
        let mut statement = connection.prepare(&sql)?;
        let rows = statement.query_map([], |row| Ok(summary(row)?.0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Alerts raised since a device time, by asset.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn raised_since(&self, since_us: i64) -> Result<HashMap<String, u32>, StateError> {
        let connection = self.reader();
        let sql = "SELECT asset, count(*) FROM alert WHERE raised_us >= ?1 GROUP BY asset";
        let mut statement = connection.prepare_cached(sql)?;
        let rows = statement.query_map([since_us], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Silences that have not ended at `now_us`.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn silences(&self, now_us: i64) -> Result<Vec<Silence>, StateError> {
        let connection = self.reader();
        let sql = "SELECT asset, until_us, reason, who, since_us FROM silence WHERE until_us > ?1 ORDER BY asset";
        let mut statement = connection.prepare_cached(sql)?;
        let rows = statement.query_map([now_us], |row| {
            Ok(Silence {
                asset: row.get(0)?,
                until_us: row.get(1)?,
                reason: row.get(2)?,
                by: row.get(3)?,
                since_us: row.get(4)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// A page of what people did, the newest first.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn actions(&self, before: Option<i64>, limit: usize) -> Result<Page<AuditEntry>, StateError> {
        let connection = self.reader();
        let limit = limit.clamp(1, PAGE_MAX);
        let sql = "SELECT number, at_us, who, action, subject, text FROM action WHERE number < ?1 ORDER BY number DESC LIMIT ?2";
        let mut statement = connection.prepare_cached(sql)?;
        let rows = statement.query_map(params![before.unwrap_or(i64::MAX), limit as i64 + 1], |row| {
            Ok(AuditEntry {
                number: row.get(0)?,
                at_us: row.get(1)?,
                by: row.get(2)?,
                action: row.get(3)?,
                subject: row.get(4)?,
                text: row.get(5)?,
            })
        })?;
        Ok(page(rows.collect::<Result<_, _>>()?, limit, |entry| entry.number))
    }

    /// Stores that somebody did something that is carried out elsewhere.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn note_action(&self, entry: &AuditEntry) -> Result<(), StateError> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        store_action(&transaction, entry)?;
        Ok(transaction.commit()?)
    }
}
