//! Damaged, foreign and newer databases.

use std::fs;
use std::io::{Seek, SeekFrom, Write};

use super::*;

/// A closed log of 3,000 messages in partitions of 500.
async fn written(dir: &Path) -> LogId {
    let log = open(partitioned(dir));
    for _ in 0..30 {
        log.append((0..100).map(|n| append("a", vec![n; 200])).collect()).await.unwrap();
    }
    log.append(vec![retain("r", "kept")]).await.unwrap();
    log.close();
    log.id()
}

fn partitioned(dir: &Path) -> LogConfig {
    LogConfig { limits: Limits { partition_rows_max: 500, ..Limits::default() }, ..config(dir) }
}

/// Overwrites bytes of the database.
fn scribble(dir: &Path, at: u64, bytes: usize) {
    let mut file = fs::OpenOptions::new().write(true).open(dir.join("log.db")).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    // A pattern that is no valid page: its first byte is no page type.
    file.write_all(&(0..bytes).map(|n| (n * 7 + 0x5b) as u8).collect::<Vec<u8>>()).unwrap();
}

/// Checks that a log opens anew, with the damaged file kept as it was.
async fn is_set_aside(dir: &Path, old: LogId) {
    let damaged = fs::read(dir.join("log.db")).unwrap();
    let opened = Log::open(partitioned(dir)).unwrap();
    let aside = opened.set_aside.expect("set aside");
    let name = aside.file_name().unwrap().to_str().unwrap().to_owned();
    assert!(name.starts_with("log.db.corrupt-2") && name.ends_with('Z'), "{name}");
    assert_eq!(fs::read(&aside).unwrap(), damaged, "the damaged file was changed");
    assert_ne!(opened.log.id(), old);
    assert_eq!((opened.log.head(), opened.log.retained().len()), (Offset(1), 0));
    assert_eq!(opened.log.append(vec![append("a", "x")]).await, Ok(Offset(1)));
    opened.log.close();
    assert_eq!(open(partitioned(dir)).head(), Offset(2));
}

// A database whose header is garbage is set aside, untouched, and a new log begun.
#[tokio::test]
async fn a_garbage_header_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let old = written(dir.path()).await;
    scribble(dir.path(), 0, 100);
    is_set_aside(dir.path(), old).await;
}

// A database cut short is set aside.
#[tokio::test]
async fn a_truncated_file_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let old = written(dir.path()).await;
    let path = dir.path().join("log.db");
    let bytes = fs::metadata(&path).unwrap().len();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(bytes / 2 + 100).unwrap();
    is_set_aside(dir.path(), old).await;
}

// A database with garbage in the middle is set aside.
#[tokio::test]
async fn garbage_in_the_middle_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let old = written(dir.path()).await;
    let middle = fs::metadata(dir.path().join("log.db")).unwrap().len() / 2 / PAGE_BYTES * PAGE_BYTES;
    scribble(dir.path(), middle, 4_096);
    is_set_aside(dir.path(), old).await;
}

// A file that is no database at all is set aside.
#[tokio::test]
async fn a_file_of_something_else_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("log.db"), "not a database, but someone's notes\n".repeat(300)).unwrap();
    is_set_aside(dir.path(), LogId([0; 16])).await;
}

// An orphaned write-ahead log, which SQLite would delete, is kept; twice in a second gets two names.
#[tokio::test]
async fn an_orphaned_write_ahead_log_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut names = Vec::new();
    for content in ["first", "second"] {
        for file in ["log.db", "log.db-shm"] {
            let _ = fs::remove_file(dir.path().join(file));
        }
        fs::write(dir.path().join("log.db-wal"), content).unwrap();
        let opened = Log::open(config(dir.path())).unwrap();
        let mut wal = opened.set_aside.unwrap().into_os_string();
        wal.push("-wal");
        assert_eq!(fs::read_to_string(&wal).unwrap(), content);
        names.push(wal);
    }
    assert_ne!(names[0], names[1]);
}

// The companions of a damaged database are set aside with it.
#[tokio::test]
async fn companions_are_set_aside_too() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path()).await;
    scribble(dir.path(), 0, 100);
    fs::write(dir.path().join("log.db-wal"), "frames").unwrap();
    let mut wal = Log::open(config(dir.path())).unwrap().set_aside.unwrap().into_os_string();
    wal.push("-wal");
    assert_eq!(fs::read_to_string(wal).unwrap(), "frames");
}

// A newer version's log is refused and left as it is.
#[tokio::test]
async fn a_newer_schema_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let old = written(dir.path()).await;
    peek(dir.path()).execute_batch("PRAGMA user_version=3").unwrap();
    assert!(matches!(Log::open(config(dir.path())), Err(OpenError::NewerSchema { found: 3, known: 2, .. })));
    peek(dir.path()).execute_batch("PRAGMA user_version=2").unwrap();
    assert_eq!(open(config(dir.path())).id(), old);
}

// A log of the first version, which had no sessions, is brought up to date with everything it holds.
#[tokio::test]
async fn an_older_schema_is_upgraded() {
    let dir = tempfile::tempdir().unwrap();
    let old = written(dir.path()).await;
    let tables =
        "DROP TABLE session; DROP TABLE subscription; DROP TABLE outgoing; DROP TABLE incoming; DROP TABLE will;";
    peek(dir.path()).execute_batch(&format!("{tables} PRAGMA user_version=1")).unwrap();
    assert!(verify(dir.path()).unwrap().is_sound());
    let log = open(config(dir.path()));
    assert_eq!(log.id(), old);
    let rows = read_disk(&log, 1).0.len() as u64;
    assert_eq!(rows, log.head().0 - 1);
    let begin = sessions::NewSession { client_id: "c".into(), username: None };
    let id = log.sessions().next_id();
    log.store_session(SessionUpdate { begin: Some(begin), ..SessionUpdate::of(id) }).await.unwrap();
    log.close();
    let log = open(config(dir.path()));
    assert_eq!(log.sessions().find("c", 0), Some((id, false)));
    assert_eq!(log.sessions().next_id(), sessions::SessionId(id.0 + 1));
}

// Another program's database is refused and left as it is.
#[test]
fn another_programs_database_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    peek(dir.path()).execute_batch("CREATE TABLE recipe(name TEXT); INSERT INTO recipe VALUES('bread')").unwrap();
    let before = fs::read(dir.path().join("log.db")).unwrap();
    assert!(matches!(Log::open(config(dir.path())), Err(OpenError::NotALog { .. })));
    assert_eq!(fs::read(dir.path().join("log.db")).unwrap(), before);
}

// A database that another program has locked is reported, not set aside.
#[tokio::test]
async fn a_locked_database_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path()).await;
    let other = peek(dir.path());
    other.execute_batch("PRAGMA locking_mode=EXCLUSIVE; BEGIN EXCLUSIVE; DELETE FROM cursor;").unwrap();
    assert!(matches!(Log::open(config(dir.path())), Err(OpenError::Locked { .. })));
}

// A data directory that cannot be made is named.
#[test]
fn an_impossible_directory_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let error = Log::open(config(&dir.path().join("file/data"))).unwrap_err();
    assert!(matches!(error, OpenError::CreateDir { .. }), "{error}");
    assert!(error.to_string().contains("file/data"), "{error}");
}

// Damage that a reader meets is a gap: what is readable around it is read, publishers go on, and the check says where.
#[tokio::test]
async fn damage_found_later_is_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path()).await;
    let log = open(partitioned(dir.path()));
    // A leaf in the middle of the third partition, of which 19 rows or so are in a page.
    let page: u64 = peek(dir.path())
        .query_row(
            "SELECT pageno FROM dbstat WHERE name='message_000003' AND pagetype='leaf' LIMIT 1 OFFSET 10",
            [],
            |row| row.get::<_, i64>(0),
        )
        .unwrap() as u64;
    scribble(dir.path(), (page - 1) * PAGE_BYTES, 4_096);
    let (messages, gaps) = read_disk(&log, 1);
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    let gap = gaps[0];
    assert_eq!(gap.kind, GapKind::Unreadable);
    assert!(gap.from.0 > 1_100 && gap.to.0 < 1_300 && gap.to.0 - gap.from.0 < 30, "{gap:?}");
    assert_eq!(messages.len() as u64 + (gap.to.0 - gap.from.0), 3_001);
    assert!(messages.iter().all(|message| message.offset < gap.from || message.offset >= gap.to));
    assert_eq!(log.append(vec![append("a", "x")]).await, Ok(Offset(3_002)));
    let report = verify(dir.path()).unwrap();
    assert_eq!(report.findings_count, 1, "{report:?}");
    assert!(report.findings[0].contains("message_000003"), "{report:?}");
}

// When the newest partition cannot be extended, the log goes on in a new one.
#[tokio::test]
async fn a_damaged_newest_partition_is_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path()).await;
    let log = open(partitioned(dir.path()));
    let root: u64 = peek(dir.path())
        .query_row("SELECT rootpage FROM sqlite_schema WHERE name='message_000007'", [], |row| row.get::<_, i64>(0))
        .unwrap() as u64;
    // The writer has the page in memory; another program's commit makes it read the file again.
    peek(dir.path()).execute_batch("INSERT INTO meta VALUES('touched', 1)").unwrap();
    peek(dir.path()).execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    scribble(dir.path(), (root - 1) * PAGE_BYTES, 4_096);
    let offset = log.append(vec![append("a", "x")]).await.unwrap();
    assert_eq!(offset, Offset(3_002));
    let (messages, gaps) = read_disk(&log, 3_001);
    assert_eq!((messages.len(), gaps[0].from, gaps[0].to), (1, Offset(3_001), Offset(3_002)));
    assert_eq!(log.stats().full, None);
}

// A table that is listed but missing is damage.
#[tokio::test]
async fn a_missing_table_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let old = written(dir.path()).await;
    peek(dir.path()).execute_batch("DROP TABLE retained; PRAGMA wal_checkpoint(TRUNCATE);").unwrap();
    is_set_aside(dir.path(), old).await;
}

// A damaged partition does not stop retention: it is taken off the list, its loss is counted, and the log goes on.
#[tokio::test]
async fn a_damaged_partition_is_dropped_too() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(small(dir.path(), WhenFull::DropOldest));
    let cursor = log.cursor("c").unwrap();
    let rows = || (0..8).map(|_| append("a", vec![7; 4_000])).collect();
    while log.stats().partitions < 4 {
        log.append(rows()).await.unwrap();
    }
    log.close();
    drop((log, cursor));
    // After opening, which would find it.
    let log = open(small(dir.path(), WhenFull::DropOldest));
    let root: i64 = peek(dir.path())
        .query_row("SELECT rootpage FROM sqlite_schema WHERE name='message_000002'", [], |row| row.get(0))
        .unwrap();
    scribble(dir.path(), (root as u64 - 1) * PAGE_BYTES, 4_096);
    while log.stats().partitions_dropped < 5 {
        let appended = tokio::time::timeout(PATIENCE, log.append(rows())).await;
        appended.unwrap_or_else(|_| panic!("held: {:?}", log.stats().full)).unwrap();
    }
    let stats = log.stats();
    assert_eq!((stats.lost_rows, stats.full), (log.oldest().0 - 1, None));
    let left: i64 = peek(dir.path())
        .query_row("SELECT count(*) FROM sqlite_schema WHERE name='message_000002'", [], |row| row.get(0))
        .unwrap();
    assert_eq!(left, 1, "what cannot be given back is left in the file");
    let report = verify(dir.path()).unwrap();
    assert_eq!(report.findings, vec!["table message_000002 is damaged and was abandoned".to_owned()]);
}
