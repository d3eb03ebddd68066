//! Checks a whole log, page by page and row by row.
//!
//! Only reads, one table at a time, so that it may run beside a gateway without holding the write-ahead log back for
//! longer than one partition takes. Never repairs.

use std::path::Path;

use rusqlite::Connection;

use super::error::ReadError;
use super::open::is_whole;
use super::{Offset, schema};

/// Findings that are listed; more are only counted.
const FINDINGS_MAX: usize = 100;

/// What [`super::verify`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyReport {
    /// The oldest message on disk.
    pub oldest: Offset,
    /// The offset behind the newest.
    pub head: Offset,
    /// Messages that were read.
    pub rows: u64,
    /// Their payload and property bytes.
    pub bytes: u64,
    /// Partition tables.
    pub partitions: u64,
    /// What is wrong, the first hundred, in words.
    pub findings: Vec<String>,
    /// How many things are wrong.
    pub findings_count: u64,
}

impl VerifyReport {
    fn find(&mut self, finding: String) {
        self.findings_count += 1;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }

    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.findings_count == 0
    }
}

/// Checks every page and every row of the log in a data directory: the structure of the tables, offsets without holes, and
/// that each message's topic is known. A gateway may be running on it.
///
/// # Errors
/// What SQLite says if the file cannot be read at all; damage inside it is in the report.
pub fn verify(dir: &Path) -> Result<VerifyReport, ReadError> {
    let connection = schema::open_reader(&dir.join(schema::FILE_NAME))?;
    let mut report = VerifyReport {
        oldest: Offset(1),
        head: Offset(1),
        rows: 0,
        bytes: 0,
        partitions: 0,
        findings: Vec::new(),
        findings_count: 0,
    };
    for table in schema::small_tables(&connection)? {
        check_table(&connection, &table, &mut report);
    }
    let mut partitions = Vec::new();
    {
        let mut select = connection.prepare("SELECT number, first_offset FROM partition ORDER BY first_offset")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            partitions.push((row.get::<_, u32>(0)?, schema::unsigned(row.get(1)?)));
        }
    }
    find_abandoned(&connection, &mut report)?;
    report.oldest = Offset(partitions.first().map_or(1, |(_, first)| *first));
    report.head = report.oldest;
    let mut readable = true;
    for (number, first) in partitions {
        report.partitions += 1;
        // How far a damaged partition went is not known.
        if readable && report.head.0 != first {
            report.find(format!("messages {} to {} are missing", report.head.0, first.saturating_sub(1)));
        }
        report.head = Offset(first);
        readable = check_partition(&connection, number, first, &mut report);
    }
    Ok(report)
}

/// Partition tables that retention could not drop because they are damaged.
fn find_abandoned(connection: &Connection, report: &mut VerifyReport) -> Result<(), ReadError> {
    let mut select = connection.prepare(
        "SELECT name FROM sqlite_schema WHERE type='table' AND name GLOB 'message_[0-9]*' \
         AND name NOT IN (SELECT format('message_%06d', number) FROM partition)",
    )?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        report.find(format!("table {} is damaged and was abandoned", row.get::<_, String>(0)?));
    }
    Ok(())
}

fn check_table(connection: &Connection, table: &str, report: &mut VerifyReport) -> bool {
    match is_whole(connection, &format!("PRAGMA integrity_check('{table}')")) {
        Ok(true) => return true,
        Ok(false) => report.find(format!("table {table} is damaged")),
        Err(error) => report.find(format!("table {table} cannot be read: {error}")),
    }
    false
}

/// Gives whether the partition could be read.
fn check_partition(connection: &Connection, number: u32, first: u64, report: &mut VerifyReport) -> bool {
    let table = schema::partition_table(number);
    if !check_table(connection, &table, report) {
        return false;
    }
    let sql = format!(
        "SELECT count(*), coalesce(min(offset),0), coalesce(max(offset),0), \
            coalesce(sum(octet_length(payload)+coalesce(octet_length(properties),0)),0), \
            coalesce(sum(topic NOT IN (SELECT id FROM topic)),0) FROM {table}"
    );
    let columns = |row: &rusqlite::Row<'_>| {
        let number = |column: usize| row.get::<_, i64>(column).map(schema::unsigned);
        Ok((number(0)?, number(1)?, number(2)?, number(3)?, number(4)?))
    };
    match connection.query_row(&sql, [], columns) {
        Err(error) => {
            report.find(format!("table {table} cannot be read: {error}"));
            return false;
        }
        Ok((0, ..)) => {}
        Ok((rows, min, max, bytes, unknown)) => {
            if min != first || max - min + 1 != rows {
                report.find(format!("table {table} has {rows} messages from {min} to {max}, it begins at {first}"));
            }
            if unknown > 0 {
                report.find(format!("table {table} has {unknown} messages of unknown topics"));
            }
            report.rows += rows;
            report.bytes += bytes;
            report.head = Offset(max + 1);
        }
    }
    true
}
