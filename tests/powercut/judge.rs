//! What a power cut may never do: opens what one left, and compares it with the ledger of the moment of the cut.
//!
//! Never looks into the files itself; it sees what any user of the log sees.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use millwright_broker::log::{FetchLimit, Log, LogConfig, Offset, Opened, WhenFull, verify};
use millwright_broker::topic::TopicFilter;

use crate::disk::{Fates, Overwrite, Rng};
use crate::life::{Batch, Cut, Ledger, PATIENCE, Shape};

/// What became of one cut.
#[derive(Default)]
pub(crate) struct Verdict {
    pub(crate) fates: Fates,
    pub(crate) in_checkpoint: bool,
    pub(crate) is_open: bool,
    /// Rows that were acknowledged and not dropped by retention, and how many of them are not there any more.
    pub(crate) acknowledged: u64,
    pub(crate) lost: u64,
    /// What is not as it must be, in words.
    pub(crate) complaints: Vec<String>,
}

impl Verdict {
    pub(crate) fn is_good(&self) -> bool {
        self.is_open && self.lost == 0 && self.complaints.is_empty()
    }
}

/// Topic → serial number and offset of its retained message.
type RetainedRows = BTreeMap<String, (u64, Option<u64>)>;

/// Cuts the power, opens the log again and looks. Leaves the files in `dir`.
pub(crate) fn judge(cut: &Cut, shape: &Shape, overwrite: Overwrite, seed: u64, dir: &Path) -> Verdict {
    let acknowledged = acknowledged_head(cut).saturating_sub(cut.ledger.oldest.0);
    let in_checkpoint = cut.files.is_in_checkpoint();
    let mut verdict = Verdict { in_checkpoint, acknowledged, lost: acknowledged, ..Verdict::default() };
    match cut.files.build_after_cut(dir, overwrite, &mut Rng::new(seed)) {
        Ok(fates) => verdict.fates = fates,
        Err(error) => verdict.complaints.push(format!("the cut's directory cannot be built: {error}")),
    }
    let config = LogConfig { commit_delay: Duration::ZERO, ..shape.config(dir) };
    match Log::open(config) {
        Err(error) => verdict.complaints.push(format!("the log does not open: {error}")),
        Ok(Opened { set_aside: Some(aside), .. }) => {
            verdict.complaints.push(format!("the database was set aside as {}", aside.display()));
        }
        Ok(Opened { log, .. }) => {
            verdict.is_open = true;
            check_rows(&log, cut, shape, &mut verdict);
            if let Err(complaint) = batches_found(shape, &log, &cut.ledger) {
                verdict.complaints.push(complaint);
            }
            check_bounds(&log, cut, shape, &mut verdict);
            check_cursors(&log, cut, &mut verdict);
            check_that_it_works(log, shape, dir, &mut verdict);
        }
    }
    verdict
}

/// Every message before it was promised to someone: its publisher was answered, or readers were shown it.
fn acknowledged_head(cut: &Cut) -> u64 {
    cut.ledger.head_behind(cut.ledger.acknowledged).max(cut.head.unwrap_or(1))
}

/// Reads every row and compares it with what was appended.
fn check_rows(log: &Log, cut: &Cut, shape: &Shape, verdict: &mut Verdict) {
    // Where it begins is checked elsewhere; what retention cannot have dropped is lost.
    let (from, to) = cut.ledger.oldest;
    let promised = log.oldest().0.clamp(from, to)..acknowledged_head(cut);
    let (mut at, mut found, mut strange) = (log.oldest(), 0, 0_u64);
    let mut reader = match log.reader() {
        Ok(reader) => reader,
        Err(error) => return verdict.complaints.push(format!("no reader: {error}")),
    };
    while at < log.head() {
        let fetched = match reader.read(at, FetchLimit::default()) {
            Ok(fetched) => fetched,
            Err(error) => return verdict.complaints.push(format!("offset {at} cannot be read: {error}")),
        };
        if let Some(gap) = fetched.lost {
            verdict.complaints.push(format!("a hole from {} to {}", gap.from, gap.to));
        }
        for (message, offset) in fetched.messages.iter().zip(at.0..) {
            let serial = cut.ledger.serial_at(offset);
            let row = serial.map(|serial| shape.row(serial, true));
            let same = row.is_some_and(|row| {
                (message.offset, message.received_us) == (Offset(offset), row.received_us)
                    && message.message == row.message
            });
            strange += u64::from(!same);
            found += u64::from(same && promised.contains(&offset));
        }
        at = fetched.next;
    }
    verdict.lost = (promised.end.saturating_sub(promised.start)).saturating_sub(found);
    if strange > 0 {
        verdict.complaints.push(format!("{strange} rows are not what was appended at their offsets"));
    }
}

/// How many of the ledger's batches the log has: at least the acknowledged ones, and none in part, neither its rows nor its
/// retained changes.
pub(crate) fn batches_found(shape: &Shape, log: &Log, ledger: &Ledger) -> Result<usize, String> {
    let head = log.head().0;
    let all = TopicFilter::parse("#").expect("a filter");
    let retained: RetainedRows = log
        .retained()
        .matching(&all)
        .iter()
        .map(|row| (row.message.topic.as_str().to_owned(), (row.stored_us as u64, row.offset.map(|offset| offset.0))))
        .collect();
    let mut expected = RetainedRows::new();
    for (index, batch) in ledger.batches.iter().enumerate() {
        if index >= ledger.acknowledged && ledger.head_behind(index) == head && expected == retained {
            return Ok(index);
        }
        apply(shape, batch, &mut expected);
    }
    if ledger.head_behind(ledger.batches.len()) == head && expected == retained {
        return Ok(ledger.batches.len());
    }
    let (acked, submitted) = (ledger.head_behind(ledger.acknowledged), ledger.head_behind(ledger.batches.len()));
    Err(format!(
        "head {head} and the retained messages are not those after any number of batches: acknowledged to {acked}, \
         submitted to {submitted}"
    ))
}

fn apply(shape: &Shape, batch: &Batch, retained: &mut RetainedRows) {
    for index in 0..batch.rows {
        let serial = batch.first_serial + index;
        let row = shape.row(serial, batch.logged).message;
        let topic = row.topic.as_str().to_owned();
        match (row.retain, row.payload.is_empty()) {
            (false, _) => None,
            (true, true) => retained.remove(&topic),
            (true, false) => retained.insert(topic, (serial, batch.logged.then_some(batch.first_offset + index))),
        };
    }
}

/// Where the log begins.
fn check_bounds(log: &Log, cut: &Cut, shape: &Shape, verdict: &mut Verdict) {
    let (oldest, (from, to)) = (log.oldest().0, cut.ledger.oldest);
    if !(from..=to).contains(&oldest) {
        verdict.complaints.push(format!("the oldest message is {oldest}, retention had dropped to {from} or {to}"));
    }
    let stats = log.stats();
    let behind = stats.cursors.iter().map(|cursor| oldest.saturating_sub(cursor.position.0)).max().unwrap_or(0);
    match shape.when_full {
        WhenFull::Refuse if behind > 0 => {
            verdict.complaints.push(format!("a cursor stands {behind} before the oldest"))
        }
        WhenFull::DropOldest if stats.lost_rows < behind => {
            verdict.complaints.push(format!("{behind} messages were dropped and {} counted", stats.lost_rows));
        }
        _ => {}
    }
}

fn check_cursors(log: &Log, cut: &Cut, verdict: &mut Verdict) {
    let found: BTreeMap<String, u64> = log.stats().cursors.into_iter().map(|c| (c.name, c.position.0)).collect();
    for (name, position) in &found {
        let said = cut.ledger.cursors.get(name);
        if said.is_none_or(|said| *position > said.at_most) {
            let said = said.map(|said| said.at_most);
            verdict.complaints.push(format!("cursor {name} is at {position}, it was said to be at {said:?}"));
        }
    }
    for (name, said) in &cut.ledger.cursors {
        if said.at_least.is_some_and(|stored| found.get(name).is_none_or(|position| *position < stored)) {
            let (found, stored) = (found.get(name), said.at_least);
            verdict.complaints.push(format!("cursor {name} is at {found:?}, {stored:?} was on disk"));
        }
    }
}

/// It takes one more row, closes, and is sound.
fn check_that_it_works(log: Log, shape: &Shape, dir: &Path, verdict: &mut Verdict) {
    let mut row = shape.row(1, true);
    row.message.retain = false;
    let head = log.head();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime without I/O");
    // Under `Refuse` a full log may wait for its cursors.
    let cursors: Vec<String> = log.stats().cursors.into_iter().map(|cursor| cursor.name).collect();
    cursors.iter().filter_map(|name| log.cursor(name).ok()).for_each(|cursor| cursor.advance(head));
    match runtime.block_on(async { tokio::time::timeout(PATIENCE, log.append(vec![row])).await }) {
        Ok(Ok(first)) if first == head => {}
        Err(_) => verdict.complaints.push(format!("an append is held: {:?}", log.stats().full)),
        answer => verdict.complaints.push(format!("an append at {head} was answered {answer:?}")),
    }
    log.close();
    match verify(dir) {
        Ok(report) if report.is_sound() && report.head.0 == head.0 + 1 => {}
        Ok(report) => verdict.complaints.push(format!("verify: head {}, {:?}", report.head, report.findings)),
        Err(error) => verdict.complaints.push(format!("verify fails: {error}")),
    }
}
