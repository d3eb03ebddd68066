//! The gateway's own condition: what is running out, how much, since when, and what to do about it.
//!
//! Owns the judgement: measurements and the time go in, a list of conditions comes out. Reads no clock, file or socket;
//! [`measure`] does that, and [`watch`] tells what changed. Each condition has one threshold to be raised and a lower one to
//! be cleared, so that it does not flap.

pub mod disk_use;
pub mod measure;
pub mod watch;
pub mod wear;
mod written;

use millwright_broker::TlsState;
use millwright_broker::log::{FullReason, LogStats};
use serde::Serialize;

use crate::historian::HistoryStatus;
use crate::upstream::status::{Link, UpstreamStatus};

/// Share of the log's quota held by messages that somebody still needs: raised, and cleared.
const LOG_FILLING: Band = Band { raise: 0.7, clear: 0.6 };
/// Used share of the file system.
const DISK_FILLING: Band = Band { raise: 0.9, clear: 0.88 };
/// On a large file system it is enough that so many bytes are free.
const DISK_FREE_ENOUGH: u64 = 2 << 30;
/// Nothing works with fewer free bytes than these: `state.db` cannot be written either.
const DISK_FULL_BYTES: u64 = 256 << 10;
/// Used share of the memory that the gateway may have.
const MEMORY_WARNING: Band = Band { raise: 0.8, clear: 0.75 };
/// See [`MEMORY_WARNING`].
const MEMORY_CRITICAL: Band = Band { raise: 0.95, clear: 0.9 };
/// Used share of the file descriptors.
const FILES_WARNING: Band = Band { raise: 0.8, clear: 0.7 };
/// See [`FILES_WARNING`].
const FILES_CRITICAL: Band = Band { raise: 0.97, clear: 0.9 };
/// A certificate that ends sooner is told of.
const CERTIFICATE_S_MIN: i64 = 30 * 24 * 60 * 60;
/// Time constant of the averaged growth of the log, seconds.
const GROWTH_AVERAGE_S: f64 = 10.0;
/// An upstream without a connection for longer is told of: a server that is restarted is not.
const UPSTREAM_AWAY_US: i64 = 60_000_000;
/// A condition that was just raised stays for so long at least, so that whoever looks now and then sees it.
const RAISED_MIN_US: i64 = 3_000_000;

/// Raised at or above one value, cleared below another.
#[derive(Debug, Clone, Copy)]
struct Band {
    raise: f64,
    clear: f64,
}

impl Band {
    fn holds(self, value: f64, was_up: bool) -> bool {
        value >= if was_up { self.clear } else { self.raise }
    }
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// All works; somebody should act before it does not.
    Warning,
    /// Clients are held back or not served.
    Critical,
}

impl Severity {
    /// As it is written.
    pub fn word(self) -> &'static str {
        match self {
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Condition {
    /// Which, for programs: a condition that goes from warning to critical keeps its family (`log-filling`, `log-full`).
    pub code: &'static str,
    /// How bad.
    pub severity: Severity,
    /// Since when, microseconds since 1970 UTC.
    pub since_us: i64,
    /// What, and how much.
    pub text: String,
    /// What to do.
    pub remedy: String,
}

/// What is judged.
#[derive(Debug, Clone)]
pub struct Measurements {
    /// The log.
    pub log: LogStats,
    /// Whether the log drops what is still needed rather than wait.
    pub drops_oldest: bool,
    /// The file system of the data directory; `None` if it cannot be asked.
    pub disk: Option<Share>,
    /// File descriptors; `None` if they cannot be counted.
    pub files: Option<Share>,
    /// Memory in RAM against what the gateway may have; `None` if it is not known.
    pub memory: Option<Share>,
    /// Bytes that the broker holds for clients, against its budget.
    pub buffered: Share,
    /// Certificates of the TLS listeners.
    pub tls: Option<TlsState>,
    /// The history for charts of the past.
    pub history: HistoryStatus,
    /// Where messages are forwarded to.
    pub upstreams: Vec<UpstreamStatus>,
}

/// So much of so much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share {
    /// In use.
    pub used: u64,
    /// All there is.
    pub max: u64,
}

impl Share {
    fn ratio(self) -> f64 {
        if self.max == 0 { 0.0 } else { self.used as f64 / self.max as f64 }
    }
}

/// Judges one measurement after another.
#[derive(Debug, Default)]
pub struct Judge {
    conditions: Vec<Condition>,
    growth: Growth,
}

/// What a rule found: severity, code, text, remedy.
type Finding = (Severity, &'static str, String, String);

impl Judge {
    /// The conditions at a time that never goes back.
    pub fn judge(&mut self, now_us: i64, m: &Measurements) -> &[Condition] {
        let held = held(&m.log);
        self.growth.measure(now_us, held.used);
        let mut found: Vec<Finding> = Vec::new();
        found.extend(self.log(m, held));
        found.extend(self.disk(m));
        found.extend(self.memory(m));
        found.extend(self.files(m));
        found.extend(certificate(m.tls.as_ref(), now_us));
        found.extend(history(&m.history));
        found.extend(upstream(&m.upstreams, now_us));
        self.take(now_us, found);
        &self.conditions
    }

    fn is_up(&self, code: &str, severity: Severity) -> bool {
        self.conditions.iter().any(|up| up.code == code && up.severity == severity)
    }

    fn log(&self, m: &Measurements, held: Share) -> Option<Finding> {
        match &m.log.full {
            Some(FullReason::DiskFull { .. }) => return None,
            Some(reason @ FullReason::Cursor { cursor, .. }) => {
                let remedy = remedy_of(cursor);
                return Some((Severity::Critical, "log-full", reason.to_string(), remedy));
            }
            Some(reason @ (FullReason::NothingToDrop { .. } | FullReason::WalHeld { .. })) => {
                let remedy = "publishers go on by themselves when there is room".to_owned();
                return Some((Severity::Critical, "log-full", reason.to_string(), remedy));
            }
            Some(reason @ FullReason::Failed { .. }) => {
                let remedy = "check the disk and its file system".to_owned();
                return Some((Severity::Critical, "log-failed", reason.to_string(), remedy));
            }
            None if !m.log.healthy => {
                let text = "the log cannot be written".to_owned();
                return Some((Severity::Critical, "log-failed", text, "check the disk".to_owned()));
            }
            None => {}
        }
        if !LOG_FILLING.holds(held.ratio(), self.is_up("log-filling", Severity::Warning)) {
            return None;
        }
        let slowest = m.log.cursors.iter().min_by_key(|cursor| cursor.position)?;
        let left = held.max.saturating_sub(held.used);
        let when = match self.growth.per_s {
            rate if rate >= 1.0 => {
                format!("at {} a second it is full in {:.0} s", bytes(rate as u64), left as f64 / rate)
            }
            _ => "it does not grow now".to_owned(),
        };
        let then = if m.drops_oldest { "what it needs will be dropped" } else { "publishers will be held back" };
        let text = format!(
            "{:.0} % of the log ({} of {}) is held by cursor `{}`, {} messages behind; {when}, and then {then}",
            held.ratio() * 100.0,
            bytes(held.used),
            bytes(held.max),
            slowest.name,
            slowest.backlog_rows,
        );
        Some((Severity::Warning, "log-filling", text, remedy_of(&slowest.name)))
    }

    fn disk(&self, m: &Measurements) -> Option<Finding> {
        let remedy = "free space on the file system of the data directory, or make log.quota_mb smaller".to_owned();
        if let Some(reason @ FullReason::DiskFull { .. }) = &m.log.full {
            return Some((Severity::Critical, "disk-full", format!("publishers are held back: {reason}"), remedy));
        }
        let disk = m.disk?;
        let free = disk.max.saturating_sub(disk.used);
        if free < DISK_FULL_BYTES {
            let text = format!("the file system of the data directory is full: {} are free", bytes(free));
            return Some((Severity::Critical, "disk-full", text, remedy));
        }
        let is_up = self.is_up("disk-filling", Severity::Warning);
        (free < DISK_FREE_ENOUGH && DISK_FILLING.holds(disk.ratio(), is_up)).then(|| {
            let text = format!(
                "the file system of the data directory is {:.0} % full: {} of {} are free; without space publishers are \
                 held back",
                disk.ratio() * 100.0,
                bytes(free),
                bytes(disk.max)
            );
            (Severity::Warning, "disk-filling", text, remedy)
        })
    }

    fn memory(&self, m: &Measurements) -> Option<Finding> {
        if let Some(memory) = m.memory {
            let text = || format!("the gateway has {} of {} of memory", bytes(memory.used), bytes(memory.max));
            let remedy = || "lower max_buffered_mb or max_connections in [broker], or give it more memory".to_owned();
            if MEMORY_CRITICAL.holds(memory.ratio(), self.is_up("memory", Severity::Critical)) {
                return Some((Severity::Critical, "memory", text(), remedy()));
            }
            if MEMORY_WARNING.holds(memory.ratio(), self.is_up("memory", Severity::Warning)) {
                return Some((Severity::Warning, "memory", text(), remedy()));
            }
        }
        let buffered = m.buffered;
        (buffered.max > 0 && buffered.used > buffered.max).then(|| {
            let text = format!(
                "{} wait in memory for clients or the disk, the budget is {}: those that hold most are held back",
                bytes(buffered.used),
                bytes(buffered.max)
            );
            let remedy = "find the subscribers that read slowly, or raise max_buffered_mb in [broker]";
            (Severity::Warning, "memory", text, remedy.to_owned())
        })
    }

    fn files(&self, m: &Measurements) -> Option<Finding> {
        let files = m.files?;
        let severity = if FILES_CRITICAL.holds(files.ratio(), self.is_up("file-descriptors", Severity::Critical)) {
            Severity::Critical
        } else if FILES_WARNING.holds(files.ratio(), self.is_up("file-descriptors", Severity::Warning)) {
            Severity::Warning
        } else {
            return None;
        };
        let text =
            format!("{} of {} file descriptors are open; without one no client can connect", files.used, files.max);
        let remedy =
            "raise the limit (`ulimit -n`, LimitNOFILE= in the systemd unit), or lower max_connections in [broker]";
        Some((severity, "file-descriptors", text, remedy.to_owned()))
    }

    /// Keeps the time of what was up already, and what was raised a moment ago.
    fn take(&mut self, now_us: i64, found: Vec<Finding>) {
        let before = std::mem::take(&mut self.conditions);
        for (severity, code, text, remedy) in found {
            let was = before.iter().find(|up| up.code == code && up.severity == severity);
            let since_us = was.map_or(now_us, |up| up.since_us);
            self.conditions.push(Condition { code, severity, since_us, text, remedy });
        }
        for gone in before {
            let is_new = now_us.saturating_sub(gone.since_us) < RAISED_MIN_US;
            if gone.severity == Severity::Warning && is_new && !self.conditions.iter().any(|up| up.code == gone.code) {
                self.conditions.push(gone);
            }
        }
        self.conditions.sort_by(|a, b| b.severity.cmp(&a.severity).then(a.code.cmp(b.code)));
    }
}

/// What retention cannot drop: the log's bytes from the slowest cursor's position on.
fn held(log: &LogStats) -> Share {
    let rows = log.head.0.saturating_sub(log.oldest.0);
    let needed = log.cursors.iter().map(|cursor| cursor.backlog_rows).max().unwrap_or(0).min(rows);
    let used = if rows == 0 { 0.0 } else { log.bytes as f64 * needed as f64 / rows as f64 };
    Share { used: used as u64, max: log.bytes_max }
}

fn remedy_of(cursor: &str) -> String {
    if let Some(upstream) = cursor.strip_prefix("upstream/") {
        let name = upstream.trim_end_matches("/urgent");
        format!("bring the upstream `{name}` back, remove it from the configuration, or raise log.quota_mb")
    } else if cursor == "inference" {
        "find what keeps the pipeline (`millwright status`: μ, a lock on state.db), or raise log.quota_mb".to_owned()
    } else {
        format!("bring the client of `{cursor}` back or end its session, or raise log.quota_mb")
    }
}

fn history(status: &HistoryStatus) -> Option<Finding> {
    let trouble = status.trouble.as_ref()?;
    let skipped = match status.skipped_buckets {
        0 => "what is new waits".to_owned(),
        skipped => format!("{skipped} steps of 10 s were left out"),
    };
    let text = format!("charts of the past get nothing new: {trouble}; {skipped}; scoring goes on");
    let remedy = "free space on the file system of the data directory, or make history.quota_mb smaller".to_owned();
    Some((Severity::Warning, "history", text, remedy))
}

fn upstream(upstreams: &[UpstreamStatus], now_us: i64) -> Option<Finding> {
    let is_away =
        |it: &&UpstreamStatus| it.link != Link::Connected && now_us.saturating_sub(it.since_us) >= UPSTREAM_AWAY_US;
    let away: Vec<String> = upstreams
        .iter()
        .filter(is_away)
        .map(|it| {
            let minutes = now_us.saturating_sub(it.since_us) / 60_000_000;
            let error = it.error.as_deref().unwrap_or("it does not answer");
            format!(
                "`{}` has had no connection for {minutes} min, {} messages wait ({error})",
                it.name, it.queue.backlog
            )
        })
        .collect();
    let refused: Vec<String> = upstreams
        .iter()
        .filter(|it| it.refused > 0)
        .map(|it| format!("`{}` has refused {} messages, which were left out", it.name, it.refused))
        .collect();
    if away.is_empty() && refused.is_empty() {
        return None;
    }
    let text = format!("upstream {}", [away, refused].concat().join("; "));
    let remedy =
        "check the network and the server, and what the log output says about them; nothing that waits is lost";
    Some((Severity::Warning, "upstream", text, remedy.to_owned()))
}

fn certificate(tls: Option<&TlsState>, now_us: i64) -> Option<Finding> {
    let tls = tls?;
    let remedy = "put the new files in place, and send SIGHUP to have them read now".to_owned();
    if let Some(refused) = &tls.refused {
        let text = format!("the new certificate files were not taken, the old ones serve: {refused}");
        return Some((Severity::Warning, "certificate", text, remedy));
    }
    let left_s = tls.not_after_s.saturating_sub(now_us / 1_000_000);
    (left_s < CERTIFICATE_S_MIN).then(|| {
        let text = match left_s {
            ..=0 => "the certificate of the TLS listeners has ended: clients refuse it".to_owned(),
            _ => format!("the certificate of the TLS listeners ends in {} days", left_s / 86_400),
        };
        (Severity::Warning, "certificate", text, remedy)
    })
}

/// How fast the held part of the log grows.
#[derive(Debug, Default)]
struct Growth {
    last: Option<(i64, u64)>,
    per_s: f64,
}

impl Growth {
    fn measure(&mut self, now_us: i64, used: u64) {
        if let Some((at_us, before)) = self.last {
            let step_s = now_us.saturating_sub(at_us) as f64 / 1e6;
            if step_s <= 0.0 {
                return;
            }
            let weight = 1.0 - (-step_s / GROWTH_AVERAGE_S).exp();
            self.per_s += weight * ((used as f64 - before as f64) / step_s - self.per_s);
        }
        self.last = Some((now_us, used));
    }
}

/// Bytes as a person reads them.
fn bytes(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.into_iter().find(|(_, size)| bytes >= *size) {
        Some((unit, size)) => format!("{:.1} {unit}", bytes as f64 / size as f64),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests;
