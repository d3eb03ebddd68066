//! The quota, the full disk, and what is lost or kept.

use super::*;

/// Appends 8 rows of 4 KB; a small log's partition takes about 60 such rows.
fn rows() -> Vec<Append> {
    (0..8).map(|_| append("a", vec![7; 4_000])).collect()
}

async fn limit_pages(log: &Log, pages_max: u64) {
    let (done, finished) = oneshot::channel();
    log.inner.control.send(Control::LimitPages(pages_max, done)).await.unwrap();
    finished.await.unwrap();
}

// Without cursors, retention keeps as much history as the quota allows, in whole partitions, and loses nothing that
// anyone asked to keep.
#[tokio::test]
async fn history_is_kept_within_the_quota() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(small(dir.path(), WhenFull::Refuse));
    while log.stats().partitions_dropped < 3 {
        log.append(rows()).await.unwrap();
        let stats = log.stats();
        assert!(stats.bytes <= stats.bytes_max, "{} of {}", stats.bytes, stats.bytes_max);
    }
    let stats = log.stats();
    assert!(stats.bytes * 10 > stats.bytes_max * 8, "only {} of {} is used", stats.bytes, stats.bytes_max);
    assert_eq!((stats.lost_rows, &stats.full), (0, &None));
    let on_disk: u64 =
        ["log.db", "log.db-wal"].iter().map(|name| std::fs::metadata(dir.path().join(name)).unwrap().len()).sum();
    assert!(on_disk <= QUOTA_BYTES_MIN, "{on_disk} bytes on disk");
    let (messages, gaps) = read_disk(&log, 1);
    assert_eq!(gaps, vec![Gap { from: Offset(1), to: log.oldest(), kind: GapKind::Dropped }]);
    assert_eq!(messages.len() as u64, log.head().0 - log.oldest().0);
    assert!(verify(dir.path()).unwrap().is_sound());
}

// Under `refuse`, a log that is full because a consumer lags makes publishers wait, names the consumer, and goes on by
// itself when the consumer advances; everything acknowledged is there.
#[tokio::test]
async fn refuse_waits_for_the_consumer() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(small(dir.path(), WhenFull::Refuse));
    let cursor = log.cursor("slow").unwrap();
    let publisher = tokio::spawn({
        let log = log.clone();
        async move {
            let mut acknowledged = 0;
            while acknowledged < 2_400 {
                log.append(rows()).await.unwrap();
                acknowledged += 8;
            }
            acknowledged
        }
    });
    until("the log is full", || log.stats().full.is_some()).await;
    let stats = log.stats();
    match stats.full.as_ref().unwrap() {
        FullReason::Cursor { cursor, position, bytes, bytes_max } => {
            assert_eq!((cursor.as_str(), *position), ("slow", Offset(1)));
            assert!(*bytes <= *bytes_max && *bytes_max == stats.bytes_max);
        }
        other => panic!("{other}"),
    }
    assert!(stats.healthy, "a full log is healthy");
    assert!(!publisher.is_finished());
    assert_eq!(log.oldest(), Offset(1), "nothing was dropped");
    let mut reader = log.reader().unwrap();
    let mut seen = 0;
    while cursor.position().0 < 2_401 {
        let fetched = reader.read(cursor.position(), FetchLimit::default()).unwrap();
        assert_eq!(fetched.lost, None);
        for message in &fetched.messages {
            seen += 1;
            assert_eq!(message.offset, Offset(seen));
        }
        cursor.advance(fetched.next);
        if fetched.messages.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    assert_eq!(publisher.await.unwrap(), 2_400);
    let stats = log.stats();
    assert_eq!((seen, stats.rows, stats.lost_rows, stats.full), (2_400, 2_400, 0, None));
}

// Closing a full log ends, refuses what was never committed, and keeps what was.
#[tokio::test]
async fn a_full_log_can_be_closed() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(small(dir.path(), WhenFull::Refuse));
    let cursor = log.cursor("slow").unwrap();
    let publisher = tokio::spawn({
        let log = log.clone();
        async move {
            let mut acknowledged = 0;
            while log.append(rows()).await.is_ok() {
                acknowledged += 8;
            }
            acknowledged
        }
    });
    until("the log is full", || log.stats().full.is_some()).await;
    cursor.advance(Offset(2));
    let closing = log.clone();
    tokio::task::spawn_blocking(move || closing.close()).await.unwrap();
    let acknowledged = publisher.await.unwrap();
    drop((log, cursor));
    let log = open(small(dir.path(), WhenFull::Refuse));
    assert_eq!(log.head(), Offset(acknowledged + 1));
    assert_eq!(log.stats().cursors[0].position, Offset(2));
}

// A forgotten consumer holds nothing back.
#[tokio::test]
async fn forgetting_a_consumer_frees_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(small(dir.path(), WhenFull::Refuse));
    let cursor = log.cursor("gone").unwrap();
    let publisher = tokio::spawn({
        let log = log.clone();
        async move {
            for _ in 0..300 {
                log.append(rows()).await.unwrap();
            }
        }
    });
    until("the log is full", || log.stats().full.is_some()).await;
    cursor.forget();
    publisher.await.unwrap();
    assert_eq!(log.stats().lost_rows, 0);
}

// Under `drop-oldest`, publishers never wait; what a consumer lost is in the ledger, in the figures and in what it reads,
// and the three agree.
#[tokio::test]
async fn drop_oldest_counts_what_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(small(dir.path(), WhenFull::DropOldest));
    log.append(rows()).await.unwrap();
    let (slow, idle) = (log.cursor("slow").unwrap(), log.cursor("idle").unwrap());
    slow.advance(Offset(5));
    while log.stats().partitions_dropped < 5 {
        log.append(rows()).await.unwrap();
    }
    idle.forget();
    while log.stats().partitions_dropped < 8 {
        log.append(rows()).await.unwrap();
    }
    let stats = log.stats();
    let fetched = log.fetch(slow.position(), FetchLimit::default()).await.unwrap();
    let gap = fetched.lost.unwrap();
    assert_eq!((gap.from, gap.to, gap.kind), (Offset(5), log.oldest(), GapKind::Dropped));
    assert_eq!((fetched.next, fetched.messages.len()), (gap.to, 0));
    let ledger: Vec<(u64, u64, u64, u64, String)> = {
        let other = peek(dir.path());
        let mut select =
            other.prepare("SELECT from_offset, to_offset, rows, bytes, cursors FROM gap ORDER BY id").unwrap();
        let columns = |row: &rusqlite::Row<'_>| {
            let number = |column| row.get::<_, i64>(column).map(|number| number as u64);
            Ok((number(0)?, number(1)?, number(2)?, number(3)?, row.get(4)?))
        };
        let rows = select.query_map([], columns).unwrap();
        rows.map(Result::unwrap).collect()
    };
    // `idle` stood at 1, so it lost the first four rows as well.
    let (first, second) = (&ledger[0], &ledger[1]);
    assert_eq!(ledger.len(), 2, "{ledger:?}");
    assert_eq!((first.0, first.4.as_str(), second.4.as_str()), (1, "idle, slow", "slow"));
    assert_eq!((first.1, second.1), (second.0, log.oldest().0));
    assert!(ledger.iter().all(|(from, to, rows, bytes, _)| to - from == *rows && *bytes == rows * 4_000));
    assert_eq!(stats.lost_rows, first.2 + second.2);
    assert_eq!(stats.lost_bytes, stats.lost_rows * 4_000);
    log.close();
    drop((log, slow));
    let stats = open(small(dir.path(), WhenFull::DropOldest)).stats();
    assert_eq!(stats.lost_rows, first.2 + second.2, "the loss is remembered");
}

// Offsets go on after every partition was dropped and the log was opened again.
#[tokio::test]
async fn offsets_survive_dropping_everything() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(config(dir.path()));
    log.append(vec![append("a", "x"), append("a", "y")]).await.unwrap();
    log.close();
    drop(log);
    {
        let parts = super::super::open::open(config(dir.path())).map_err(|error| error.to_string());
        let mut store = parts.unwrap().store;
        store.drop_oldest(&store::DropPlan { lost: None, end: 3, head: 3 }, &[]).unwrap();
        assert_eq!(store.partitions.len(), 0);
    }
    let log = open(config(dir.path()));
    assert_eq!((log.head(), log.oldest()), (Offset(3), Offset(3)));
    let fetched = log.fetch(Offset(1), FetchLimit::default()).await.unwrap();
    assert_eq!(fetched.lost, Some(Gap { from: Offset(1), to: Offset(3), kind: GapKind::Dropped }));
    assert_eq!(log.append(vec![append("a", "z")]).await, Ok(Offset(3)));
    let table: String = peek(dir.path())
        .query_row("SELECT name FROM sqlite_schema WHERE name LIKE 'message%'", [], |row| row.get(0))
        .unwrap();
    assert_eq!(table, "message_000002", "a number is not used twice");
}

// When SQLite finds no space, appends wait, the reason is given, cursors may still move, and when space returns
// everything queued is committed once.
#[tokio::test]
async fn a_full_disk_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(config(dir.path()));
    log.append(rows()).await.unwrap();
    let cursor = log.cursor("c").unwrap();
    limit_pages(&log, 1).await; // As small as the file is now.
    let publishers: Vec<_> = (0..20)
        .map(|_| {
            let log = log.clone();
            tokio::spawn(async move { log.append(rows()).await.unwrap().0 })
        })
        .collect();
    until("the log is held", || matches!(log.stats().full, Some(FullReason::DiskFull { .. }))).await;
    cursor.advance(Offset(3));
    assert!(publishers.iter().all(|publisher| !publisher.is_finished()));
    assert_eq!(log.head(), Offset(9));
    limit_pages(&log, 100_000).await;
    let mut firsts = Vec::new();
    for publisher in publishers {
        firsts.push(publisher.await.unwrap());
    }
    firsts.sort_unstable();
    assert_eq!(firsts, (0..20).map(|n| 9 + 8 * n).collect::<Vec<u64>>());
    assert_eq!((read_disk(&log, 1).0.len(), log.stats().full), (168, None));
    log.close();
    assert!(verify(dir.path()).unwrap().is_sound());
}

// A transaction that another program keeps open holds the write-ahead log; appends wait before it outgrows its share,
// say why, and go on when the transaction ends.
#[tokio::test]
async fn a_held_write_ahead_log_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(small(dir.path(), WhenFull::DropOldest));
    log.append(rows()).await.unwrap();
    let other = peek(dir.path());
    other.execute_batch("BEGIN; SELECT count(*) FROM topic;").unwrap();
    let publisher = tokio::spawn({
        let log = log.clone();
        async move {
            for _ in 0..400 {
                log.append(rows()).await.unwrap();
            }
        }
    });
    until("the log is held", || matches!(log.stats().full, Some(FullReason::WalHeld { .. }))).await;
    let wal = std::fs::metadata(dir.path().join("log.db-wal")).unwrap().len();
    assert!(wal < 8 * 1_024 * 1_024, "{wal} bytes");
    other.execute_batch("COMMIT").unwrap();
    publisher.await.unwrap();
    assert_eq!(log.stats().full, None);
}

// Topics that only dropped messages mentioned make room for new ones.
#[tokio::test]
async fn unused_topics_are_pruned() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { topics_max: 8, ..Limits::default() };
    let log = open(LogConfig { limits, ..small(dir.path(), WhenFull::Refuse) });
    for n in 0..7 {
        log.append(vec![append(&format!("old/{n}"), "x")]).await.unwrap();
    }
    while log.stats().partitions_dropped < 1 {
        log.append(rows()).await.unwrap();
    }
    assert_eq!(log.stats().topics, 1);
    assert!(log.append(vec![append("old/1", "x")]).await.is_ok());
    let newest = log.fetch(Offset(log.head().0 - 1), FetchLimit::default()).await.unwrap();
    assert_eq!(newest.messages[0].topic_id, 9, "a number is not given twice");
    assert!(verify(dir.path()).unwrap().is_sound());
}

// After a restart topics have their numbers, and are pruned once nothing from before it is on disk any more.
#[tokio::test]
async fn topics_outlive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { topics_max: 12, ..Limits::default() };
    let config = || LogConfig { limits: limits.clone(), ..small(dir.path(), WhenFull::Refuse) };
    let log = open(config());
    for n in 0..7 {
        log.append(vec![append(&format!("old/{n}"), "x")]).await.unwrap();
    }
    log.close();
    let log = open(config());
    log.append(vec![append("old/3", "x")]).await.unwrap();
    let again = log.fetch(Offset(8), FetchLimit::default()).await.unwrap();
    assert_eq!((again.messages[0].topic_id, log.stats().topics), (4, 7));
    while log.stats().partitions_dropped < 1 {
        log.append(rows()).await.unwrap();
    }
    assert_eq!(log.stats().topics, 1, "the first partition had all that was before");
    log.close();
    let log = open(config());
    until("the topic is found", || log.stats().topics == 1).await;
    log.append(vec![append("old/3", "x")]).await.unwrap();
    let newest = log.fetch(Offset(log.head().0 - 1), FetchLimit::default()).await.unwrap();
    assert_eq!(newest.messages[0].topic_id, 9, "a number is not given twice, not after a restart either");
    log.close();
    assert!(verify(dir.path()).unwrap().is_sound());
}

// A quota that leaves no room to work is refused with the smallest that does.
#[test]
fn a_tiny_quota_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = Log::open(LogConfig { quota_bytes: QUOTA_BYTES_MIN - 1, ..config(dir.path()) });
    assert!(matches!(refused, Err(OpenError::QuotaTooSmall { quota_bytes_min: QUOTA_BYTES_MIN, .. })));
}

// A commit that the disk reports as failed but that is in the file is found there, acknowledged, and not written twice.
#[tokio::test]
async fn a_misreported_commit_is_recognised() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { partition_rows_max: 3, ..Limits::default() };
    let log = open(LogConfig { limits, ..config(dir.path()) });
    log.append(vec![append("a", "1")]).await.unwrap();
    let (done, finished) = oneshot::channel();
    log.inner.control.send(Control::Misreport(1, done)).await.unwrap();
    finished.await.unwrap();
    // It needs a new topic and a new partition, which are in the file too.
    let batch = (2..6).map(|n| append("b", n.to_string())).collect();
    assert_eq!(log.append(batch).await, Ok(Offset(2)));
    assert_eq!(log.append(vec![append("b", "6")]).await, Ok(Offset(6)));
    let payloads: Vec<Bytes> = read_disk(&log, 1).0.into_iter().map(|message| message.message.payload).collect();
    assert_eq!(payloads, ["1", "2", "3", "4", "5", "6"]);
    assert_eq!((log.stats().full, log.stats().partitions), (None, 2));
    log.close();
    assert!(verify(dir.path()).unwrap().is_sound());
}
