//! What is judged how, and when it is cleared.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use millwright_broker::log::{CursorStats, Log, LogConfig, Offset};

use super::*;

const SECOND_US: i64 = 1_000_000;

/// A gateway that is well.
fn well() -> Measurements {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(LogConfig::new(dir.path())).unwrap().log;
    let stats = log.stats();
    log.close();
    Measurements {
        log: LogStats {
            head: Offset(1_001),
            oldest: Offset(1),
            bytes: 10_000_000,
            bytes_max: 10_000_000,
            cursors: vec![CursorStats { name: "inference".to_owned(), position: Offset(1_001), backlog_rows: 0 }],
            healthy: true,
            full: None,
            ..stats
        },
        drops_oldest: false,
        disk: Some(Share { used: 50, max: 100 << 20 }),
        files: Some(Share { used: 50, max: 1_000 }),
        memory: Some(Share { used: 1, max: 100 }),
        buffered: Share { used: 1, max: 100 },
        tls: None,
        history: HistoryStatus::default(),
        upstreams: Vec::new(),
    }
}

fn behind(rows: u64) -> Measurements {
    let mut m = well();
    m.log.cursors[0].position = Offset(1_001 - rows);
    m.log.cursors[0].backlog_rows = rows;
    m
}

fn codes(conditions: &[Condition]) -> Vec<(&'static str, Severity)> {
    conditions.iter().map(|up| (up.code, up.severity)).collect()
}

// A log whose quota is used by messages that everybody has passed is well; one that a cursor holds is filling, says how
// full, how fast and whose it is, goes critical when it holds publishers back, and is cleared below the lower threshold.
#[test]
fn a_log_fills_and_recovers() {
    let mut judge = Judge::default();
    assert_eq!(judge.judge(0, &well()), []);
    assert_eq!(judge.judge(SECOND_US, &behind(600)), []);
    let up = judge.judge(2 * SECOND_US, &behind(750)).to_vec();
    assert_eq!(codes(&up), [("log-filling", Severity::Warning)]);
    let text = &up[0].text;
    assert!(text.contains("75 %") && text.contains("`inference`") && text.contains("750 messages"), "{text}");
    assert!(text.contains("full in") && text.contains("held back"), "{text}");
    let mut full = behind(1_000);
    full.log.full = Some(FullReason::Cursor {
        cursor: "inference".to_owned(),
        position: Offset(1),
        bytes: 10_000_000,
        bytes_max: 10_000_000,
    });
    assert_eq!(codes(judge.judge(10 * SECOND_US, &full)), [("log-full", Severity::Critical)]);
    let up = judge.judge(11 * SECOND_US, &behind(650)).to_vec();
    assert_eq!(codes(&up), [], "below the upper threshold it is not raised again");
    judge.judge(12 * SECOND_US, &behind(710));
    let up = judge.judge(20 * SECOND_US, &behind(650)).to_vec();
    assert_eq!((up[0].code, up[0].since_us), ("log-filling", 12 * SECOND_US), "above the lower one it stays");
    assert_eq!(judge.judge(21 * SECOND_US, &behind(500)), []);
}

// Disk, file descriptors, memory and certificate: a warning first, critical where clients suffer, nothing when it is well.
#[test]
fn each_resource_is_told() {
    let judged = |change: &dyn Fn(&mut Measurements)| {
        let mut m = well();
        change(&mut m);
        codes(Judge::default().judge(0, &m))
    };
    let mib = |used: u64, max: u64| Some(Share { used: used << 20, max: max << 20 });
    assert_eq!(judged(&|m| m.disk = mib(95, 100)), [("disk-filling", Severity::Warning)]);
    assert_eq!(judged(&|m| m.disk = mib(100, 100)), [("disk-full", Severity::Critical)]);
    assert_eq!(judged(&|m| m.disk = mib(95 << 10, 100 << 10)), [], "5 GiB are enough");
    assert_eq!(
        judged(&|m| m.log.full = Some(FullReason::DiskFull { error: String::new() })),
        [("disk-full", Severity::Critical)]
    );
    let files = |used| Some(Share { used, max: 1_000 });
    assert_eq!(judged(&|m| m.files = files(850)), [("file-descriptors", Severity::Warning)]);
    assert_eq!(judged(&|m| m.files = files(1_000)), [("file-descriptors", Severity::Critical)]);
    assert_eq!(judged(&|m| m.memory = mib(85, 100)), [("memory", Severity::Warning)]);
    assert_eq!(judged(&|m| m.memory = mib(96, 100)), [("memory", Severity::Critical)]);
    assert_eq!(judged(&|m| m.buffered.used = 101), [("memory", Severity::Warning)]);
    let tls = |days: i64, refused: Option<&str>| {
        Some(TlsState { not_after_s: days * 86_400, refused: refused.map(str::to_owned) })
    };
    assert_eq!(judged(&|m| m.tls = tls(20, None)), [("certificate", Severity::Warning)]);
    assert_eq!(judged(&|m| m.tls = tls(90, Some("no key"))), [("certificate", Severity::Warning)]);
    assert_eq!(judged(&|m| m.tls = tls(90, None)), []);
}
