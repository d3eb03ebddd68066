//! A log is copied beside its writer, and the copy goes on as a log.

use super::*;

async fn fill(log: &Log, from: u64, to: u64) {
    for first in (from..to).step_by(100) {
        let row = |n: u64| Append { received_us: n as i64, ..append(&format!("a/{}", n % 7), vec![1; 1_000]) };
        log.append((first..to.min(first + 100)).map(row).collect()).await.unwrap();
    }
}

fn copy_into(log_dir: &Path, dir: &Path, mut between: impl FnMut()) -> CopiedLog {
    let mut copy = LogCopy::begin(log_dir, &dir.join("log.db")).unwrap();
    between();
    while copy.step().unwrap() {}
    assert!(copy.done() <= 1.0);
    copy.finish().unwrap()
}

fn times(messages: &[LogMessage]) -> Vec<i64> {
    messages.iter().map(|message| message.received_us).collect()
}

// A copy made while the log is written holds exactly what was acknowledged when it began, with retained messages and cursors, passes
// every check, and goes on: at the same head, under another id, while its messages keep theirs.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_goes_on_where_it_was_made() {
    let (dir, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = open(small(dir.path(), WhenFull::Refuse));
    log.append(vec![retain("kept", "value")]).await.unwrap();
    fill(&log, 2, 2_001).await;
    log.cursor("consumer").unwrap().advance(Offset(1_500));
    log.flush().await.unwrap();
    let runtime = tokio::runtime::Handle::current();
    let copied = copy_into(dir.path(), to.path(), || {
        tokio::task::block_in_place(|| runtime.block_on(fill(&log, 2_001, 2_501)));
    });
    assert_eq!((copied.oldest, copied.head, copied.rows), (Offset(1), Offset(2_001), 2_000));
    let report = verify(to.path()).unwrap();
    assert!(report.is_sound() && report.rows == 2_000, "{report:?}");
    let (before, after) = continue_copy(to.path()).unwrap();
    assert_eq!((before, copied.id), (log.id(), log.id()));
    let restored = open(small(to.path(), WhenFull::Refuse));
    assert_eq!((restored.id(), restored.head()), (after, Offset(2_001)));
    assert_ne!(restored.id(), log.id());
    assert_eq!(restored.lineage().at(Offset(2_000)), log.id());
    assert_eq!(restored.lineage().at(Offset(2_001)), after);
    let (messages, gaps) = read_disk(&restored, 1);
    assert_eq!((messages, gaps), (read_disk(&log, 1).0[..2_000].to_vec(), vec![]));
    assert_eq!(restored.retained().len(), 1);
    assert_eq!(restored.stats().cursors[0].position, Offset(1_500));
    assert_eq!(restored.append(vec![append("a/1", "next")]).await.unwrap(), Offset(2_001));
    // A copy of the copy keeps all three apart.
    restored.close();
    let third = tempfile::tempdir().unwrap();
    copy_into(to.path(), third.path(), || {});
    continue_copy(third.path()).unwrap();
    let third = open(config(third.path()));
    let ids = [1, 2_001, 2_002].map(|offset| third.lineage().at(Offset(offset)));
    assert_eq!(ids, [log.id(), after, third.id()]);
}

// What retention drops while it is copied is missing at the old end only, and a cursor that had passed it loses nothing.
#[tokio::test(flavor = "multi_thread")]
async fn retention_shortens_a_copy_without_holes() {
    let (dir, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = open(small(dir.path(), WhenFull::DropOldest));
    let cursor = log.cursor("consumer").unwrap();
    fill(&log, 1, 5_001).await;
    cursor.advance(Offset(2));
    log.flush().await.unwrap();
    let runtime = tokio::runtime::Handle::current();
    let copied = copy_into(dir.path(), to.path(), || {
        cursor.advance(Offset(5_001));
        tokio::task::block_in_place(|| runtime.block_on(fill(&log, 5_001, 9_001)));
    });
    let oldest_now = StoredLog::open(dir.path()).unwrap().span().unwrap().oldest;
    assert!(oldest_now > Offset(1) && copied.oldest == oldest_now, "{copied:?}, the log begins at {oldest_now}");
    let report = verify(to.path()).unwrap();
    assert!(report.is_sound() && report.oldest == copied.oldest && report.head == Offset(5_001), "{report:?}");
    let restored = open(small(to.path(), WhenFull::DropOldest));
    let (messages, gaps) = read_disk(&restored, copied.oldest.0);
    assert_eq!((times(&messages), gaps), ((copied.oldest.0 as i64..5_001).collect(), vec![]));
    assert_eq!(restored.stats().cursors[0].position, copied.oldest);
}

// An empty log, one whose messages are all dropped and one of a gateway that was killed are copied; no log, another program's
// database and a newer one are refused with the path.
#[tokio::test]
async fn every_log_is_copied_and_nothing_else() {
    let (dir, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let error = LogCopy::begin(dir.path(), &to.path().join("none.db")).unwrap_err();
    assert!(matches!(error, CopyError::Missing { .. }) && error.to_string().contains("log.db"), "{error}");
    open(config(dir.path())).close();
    let copied = copy_into(dir.path(), to.path(), || {});
    assert_eq!((copied.oldest, copied.head, copied.rows), (Offset(1), Offset(1), 0));
    assert_eq!(open(config(to.path())).head(), Offset(1));
    peek(dir.path()).execute_batch("PRAGMA user_version=99").unwrap();
    let error = LogCopy::begin(dir.path(), &to.path().join("newer.db")).unwrap_err();
    assert!(matches!(error, CopyError::NotALog { found: 99, .. }), "{error}");
    let other = tempfile::tempdir().unwrap();
    peek(other.path()).execute_batch("CREATE TABLE a(b)").unwrap();
    assert!(LogCopy::begin(other.path(), &to.path().join("other.db")).is_err());
}

// A directory that is locked is in use for every gateway, until the lock is dropped.
#[tokio::test]
async fn a_locked_directory_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(DirLock::is_held(dir.path()), Some(false));
    let lock = DirLock::take(dir.path()).unwrap();
    assert_eq!(DirLock::is_held(dir.path()), Some(true));
    assert!(matches!(Log::open(config(dir.path())), Err(OpenError::InUse { .. })));
    drop(lock);
    assert_eq!(DirLock::is_held(dir.path()), Some(false));
    let log = open(config(dir.path()));
    assert!(matches!(DirLock::take(dir.path()), Err(OpenError::InUse { .. })));
    log.close();
}
