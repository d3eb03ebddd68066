//! A log is read by another process while its gateway writes it.

use super::*;

/// Appends messages `from` to before `to`, each received at its own microsecond.
async fn fill(log: &Log, from: u64, to: u64) {
    for first in (from..to).step_by(100) {
        let row = |n: u64| Append { received_us: n as i64, ..append("a/b", vec![0; 1_000]) };
        log.append((first..to.min(first + 100)).map(row).collect()).await.unwrap();
    }
}

// Beside a gateway that writes, a stored log reads exactly what is committed, sees more when asked again, and holds no lock:
// appends and a second reader go on.
#[tokio::test]
async fn a_stored_log_is_read_while_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(config(dir.path()));
    let mut stored = StoredLog::open(dir.path()).unwrap();
    assert_eq!(stored.span().unwrap(), StoredSpan { oldest: Offset(1), head: Offset(1) });
    fill(&log, 1, 701).await;
    let span = stored.span().unwrap();
    assert_eq!((span.oldest, span.head), (Offset(1), Offset(701)));
    fill(&log, 701, 801).await;
    let (mut at, mut received) = (span.oldest, Vec::new());
    while at < span.head {
        let fetched = stored.read(at, span.head, FetchLimit::default()).unwrap();
        assert_eq!(fetched.lost, None);
        received.extend(fetched.messages.iter().map(|message| message.received_us));
        at = fetched.next;
    }
    assert_eq!(received, (1..701).collect::<Vec<i64>>());
    assert_eq!(StoredLog::open(dir.path()).unwrap().span().unwrap().head, Offset(801));
    log.close();
    // Without a gateway it reads as well.
    assert_eq!(StoredLog::open(dir.path()).unwrap().span().unwrap().head, Offset(801));
}

// Reading since a time begins in the partition before it, so that nothing received from then on is missed; a time before the
// log begins with its oldest message, one after it with its newest partition.
#[tokio::test]
async fn reading_since_a_time_begins_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(small(dir.path(), WhenFull::DropOldest));
    fill(&log, 1, 3_001).await;
    let mut stored = StoredLog::open(dir.path()).unwrap();
    assert!(log.stats().partitions > 3, "{}", log.stats().partitions);
    assert_eq!(stored.begin_since(0).unwrap(), Offset(1));
    for since in [500, 1_000, 2_000, 3_000] {
        let begin = stored.begin_since(since as i64).unwrap();
        assert!(begin.0 < since && since - begin.0 < 600, "{since} begins at {begin}");
    }
    let newest = stored.begin_since(i64::MAX).unwrap();
    assert!(newest < Offset(3_001) && newest > Offset(2_000), "{newest}");
    // What retention drops between two reads is a gap.
    fill(&log, 3_001, 20_001).await;
    let fetched = stored.read(Offset(1), Offset(20_001), FetchLimit::default()).unwrap();
    let lost = fetched.lost.unwrap();
    assert_eq!((lost.from, lost.to, lost.kind), (Offset(1), stored.span().unwrap().oldest, GapKind::Dropped));
}

// A folder without a log and a database of another program are refused with the path.
#[tokio::test]
async fn what_is_no_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let error = StoredLog::open(dir.path()).unwrap_err();
    assert!(matches!(error, ReadError::Missing { .. }) && error.to_string().contains("log.db"), "{error}");
    peek(dir.path()).execute_batch("CREATE TABLE a(b)").unwrap();
    let error = StoredLog::open(dir.path()).unwrap_err();
    assert!(matches!(error, ReadError::NotALog { .. }), "{error}");
}
