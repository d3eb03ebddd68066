//! Appending, acknowledging, grouping, reading, reopening, limits.

use super::*;

// What was appended is read back the same, from memory and from disk, before and after a restart.
#[tokio::test]
async fn messages_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(config(dir.path()));
    assert_eq!((log.head(), log.oldest()), (Offset(1), Offset(1)));
    let mut first = append("a/b", "one");
    first.message.properties = Bytes::from_static(b"\x01\x01");
    first.message.qos = QoS::ExactlyOnce;
    first.message.origin = u32::MAX;
    let batch = vec![first, append("a/c", ""), append("a/b", vec![0; 100_000])];
    assert_eq!(log.append(batch.clone()).await, Ok(Offset(1)));
    assert_eq!(log.append(vec![append("ä", "four")]).await, Ok(Offset(4)));
    let fetched = log.fetch(Offset(1), FetchLimit::default()).await.unwrap();
    assert_eq!((fetched.messages.len(), fetched.next, fetched.lost), (4, Offset(5), None));
    for (appended, read) in batch.iter().zip(&fetched.messages) {
        assert_eq!((&appended.message, appended.received_us), (&read.message, read.received_us));
    }
    assert_eq!(fetched.messages[0].topic_id, fetched.messages[2].topic_id);
    assert_ne!(fetched.messages[0].topic_id, fetched.messages[1].topic_id);
    let in_memory: Vec<LogMessage> = fetched.messages.iter().map(|message| (**message).clone()).collect();
    assert_eq!(read_disk(&log, 1), (in_memory.clone(), vec![]));
    let id = log.id();
    log.close();
    drop(log);
    let log = open(config(dir.path()));
    assert_eq!((log.id(), log.head()), (id, Offset(5)));
    let fetched = log.fetch(Offset(1), FetchLimit::default()).await.unwrap();
    assert_eq!(fetched.messages.iter().map(|message| (**message).clone()).collect::<Vec<_>>(), in_memory);
    assert_eq!(log.append(vec![append("a/b", "five")]).await, Ok(Offset(5)));
    let newest = log.reader().unwrap().read(Offset(5), FetchLimit::default()).unwrap();
    assert_eq!(newest.messages[0].topic_id, in_memory[0].topic_id, "topic numbers are stable");
}

// The file is what the documentation says, readable by any SQLite while the log is open.
#[tokio::test]
async fn the_file_is_readable_by_others() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(config(dir.path()));
    let mut appended = retain("plant/a", "x");
    appended.message.origin = 3;
    log.append(vec![appended]).await.unwrap();
    let other = peek(dir.path());
    let row: (i64, i64, String, i64, Option<Vec<u8>>, Vec<u8>) = other
        .query_row(
            "SELECT offset, received_us, name, flags, properties, payload FROM message_000001 JOIN topic ON topic=id",
            [],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?)),
        )
        .unwrap();
    assert_eq!(row, (1, 1_000, "plant/a".to_owned(), 1 | 4 | 3 << 8, None, b"x".to_vec()));
    let setting = |sql: &str| other.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
    assert_eq!(setting("PRAGMA journal_mode"), "wal");
    for (pragma, expected) in
        [("application_id", 0x4d57_4c47), ("user_version", 2), ("page_size", 4_096), ("auto_vacuum", 0)]
    {
        let value: i64 = other.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get(0)).unwrap();
        assert_eq!(value, expected, "{pragma}");
    }
}

// An append resolves only after its commit: while another program holds the write lock nobody is told anything, and
// everybody is once it lets go.
#[tokio::test]
async fn acknowledged_after_the_commit() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(config(dir.path()));
    log.append(vec![append("a", "1")]).await.unwrap();
    let other = peek(dir.path());
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let waiting = tokio::spawn({
        let log = log.clone();
        async move { log.append(vec![append("a", "2")]).await }
    });
    until("the writer reports that it is held", || !log.stats().healthy).await;
    assert!(matches!(log.stats().full, Some(FullReason::Failed { .. })));
    assert!(!waiting.is_finished());
    assert_eq!(log.head(), Offset(2));
    other.execute_batch("COMMIT").unwrap();
    assert_eq!(waiting.await.unwrap(), Ok(Offset(2)));
    assert_eq!(log.stats().full, None);
    let count: i64 = other.query_row("SELECT count(*) FROM message_000001", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 2);
}

// Appends that wait together are committed together, each with its own offset.
#[tokio::test]
async fn appends_are_grouped() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(LogConfig { commit_delay: Duration::from_millis(200), ..config(dir.path()) });
    let tasks: Vec<_> = (0..100)
        .map(|number: u32| {
            let log = log.clone();
            tokio::spawn(async move { (number, log.append(vec![append("a", number.to_string())]).await.unwrap()) })
        })
        .collect();
    let mut offsets = Vec::new();
    for task in tasks {
        let (number, offset) = task.await.unwrap();
        let fetched = log.fetch(offset, FetchLimit { rows: 1, bytes: 1 }).await.unwrap();
        assert_eq!(fetched.messages[0].message.payload, number.to_string());
        offsets.push(offset.0);
    }
    offsets.sort_unstable();
    assert_eq!(offsets, (1..=100).collect::<Vec<u64>>());
    let stats = log.stats();
    assert_eq!((stats.rows, stats.batches), (100, 100));
    assert!(stats.commits <= 3, "{} commits", stats.commits);
}

// A full group does not wait for the delay.
#[tokio::test]
async fn a_full_group_is_committed_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { group_rows_max: 50, ..Limits::default() };
    let log = open(LogConfig { commit_delay: PATIENCE * 2, limits, ..config(dir.path()) });
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let log = log.clone();
            tokio::spawn(async move { log.append(vec![append("a", "x")]).await.unwrap() })
        })
        .collect();
    let all = async {
        for task in tasks {
            task.await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("the delay was waited for");
    assert_eq!(log.stats().commits, 1);
    log.close();
}

// Partitions are closed by rows and by bytes, and reading crosses them without a hole.
#[tokio::test]
async fn partitions_roll() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { partition_rows_max: 10, partition_bytes_max: 5_000, ..Limits::default() };
    let log = open(LogConfig { limits: limits.clone(), ..small(dir.path(), WhenFull::Refuse) });
    // One commit that needs three partitions, two of them full of rows, then rows that fill one by bytes.
    log.append((0..25).map(|n| append("a", n.to_string())).collect()).await.unwrap();
    log.append((0..3).map(|_| append("a", vec![1; 3_000])).collect()).await.unwrap();
    log.append(vec![append("a", "z")]).await.unwrap();
    let firsts: Vec<i64> = {
        let other = peek(dir.path());
        let mut select = other.prepare("SELECT first_offset FROM partition ORDER BY 1").unwrap();
        let rows = select.query_map([], |row| row.get(0)).unwrap();
        rows.map(Result::unwrap).collect()
    };
    assert_eq!(firsts, vec![1, 11, 21, 28], "21..=25 small and 26, 27 large fill the third");
    let (messages, gaps) = read_disk(&log, 1);
    assert_eq!((messages.len(), gaps.len()), (29, 0));
    assert!(messages.iter().zip(1..).all(|(message, offset)| message.offset == Offset(offset)));
    log.close();
    let log = open(LogConfig { limits, ..small(dir.path(), WhenFull::Refuse) });
    assert_eq!(log.append(vec![append("a", "y")]).await, Ok(Offset(30)));
    assert_eq!((read_disk(&log, 1).0.len(), log.stats().partitions), (30, 4), "the newest goes on after a restart");
    assert!(verify(dir.path()).unwrap().is_sound());
}

// A reader that is too far ahead is told so; at the head there is nothing.
#[tokio::test]
async fn positions_of_another_log_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(config(dir.path()));
    log.append(vec![append("a", "1")]).await.unwrap();
    assert_eq!(log.fetch(Offset(2), FetchLimit::default()).await.unwrap().messages.len(), 0);
    let error = log.fetch(Offset(3), FetchLimit::default()).await.unwrap_err();
    assert!(matches!(error, ReadError::Ahead { from: Offset(3), head: Offset(2) }));
    assert_eq!(log.fetch(Offset(0), FetchLimit::default()).await.unwrap().messages.len(), 1);
}

// A session that falls out of the tail reads the same messages from disk.
#[tokio::test]
async fn fetch_falls_back_to_disk() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { tail_rows_max: 10, ..Limits::default() };
    let log = open(LogConfig { limits, ..config(dir.path()) });
    for n in 0..30 {
        log.append(vec![append("a", n.to_string())]).await.unwrap();
    }
    assert_eq!(log.stats().tail_rows, 10);
    let (mut at, mut seen) = (Offset(1), Vec::new());
    while at < log.head() {
        let fetched = log.fetch(at, FetchLimit { rows: 7, bytes: 1 << 20 }).await.unwrap();
        assert!(fetched.messages.len() <= 7);
        seen.extend(
            fetched.messages.iter().map(|message| String::from_utf8_lossy(&message.message.payload).into_owned()),
        );
        at = fetched.next;
    }
    assert_eq!(seen, (0..30).map(|n| n.to_string()).collect::<Vec<_>>());
}

// Reads from disk keep their limits of rows and of bytes, and always give one message.
#[tokio::test]
async fn disk_reads_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(config(dir.path()));
    log.append((0..600).map(|_| append("a", vec![0; 840])).collect()).await.unwrap();
    let mut disk = reader::DiskReader::open(&log.inner.shared.path).unwrap();
    let mut count = |rows, bytes| disk.read(1, 601, FetchLimit { rows, bytes }).unwrap().messages.len();
    assert_eq!(count(usize::MAX, usize::MAX), FETCH_ROWS_MAX);
    assert_eq!(count(3, usize::MAX), 3);
    assert_eq!(count(100, 5_000), 5);
    assert_eq!(count(100, 4_999), 4);
    assert_eq!(count(0, 0), 1);
}

// What a consumer does not want is passed without being copied, in steps that end; what it wants comes, and a hole is still one.
#[tokio::test]
async fn unwanted_topics_are_passed() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(config(dir.path()));
    let batch = |topic: &'static str, count| (0..count).map(|_| append(topic, "1")).collect();
    for (topic, count) in [("a", 5_000), ("b", 2), ("a", 1_000)] {
        log.append(batch(topic, count)).await.unwrap();
    }
    let mut disk = reader::DiskReader::open(&log.inner.shared.path).unwrap();
    let mut wanted = |_: u32, topic: &TopicName| topic.as_str() == "b";
    let mut read = |from| disk.read_chosen(from, 6_003, FetchLimit::default(), Some(&mut wanted)).unwrap();
    let passed = read(1);
    assert_eq!((passed.messages.len(), passed.next), (0, Offset(1 + PASSED_ROWS_MAX as u64)));
    let found = read(passed.next.0);
    let offsets: Vec<u64> = found.messages.iter().map(|message| message.offset.0).collect();
    assert_eq!((offsets, found.next), (vec![5_001, 5_002], Offset(6_003)));
    let limit = FetchLimit { rows: 1, ..FetchLimit::default() };
    let visited = log.visit(move |log| log.read(Offset(5_002), limit, None)).await.unwrap();
    assert_eq!((visited.messages.len(), visited.next), (1, Offset(5_003)));
    let other = Connection::open(&log.inner.shared.path).unwrap();
    let number = other.query_row("SELECT number FROM partition", [], |row| row.get(0)).unwrap();
    other.execute(&format!("DELETE FROM {} WHERE offset=100", schema::partition_table(number)), []).unwrap();
    let before = disk.read_chosen(1, 6_003, limit, Some(&mut wanted)).unwrap();
    assert_eq!((before.messages.len(), before.next, before.lost), (0, Offset(100), None));
    let hole = disk.read_chosen(100, 6_003, limit, Some(&mut wanted)).unwrap();
    assert_eq!(hole.lost, Some(Gap { from: Offset(100), to: Offset(101), kind: GapKind::Unreadable }));
}

// A second gateway on one data directory is refused while the first runs, and let in after it closed.
#[tokio::test]
async fn one_gateway_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(config(dir.path()));
    assert!(matches!(Log::open(config(dir.path())), Err(OpenError::InUse { .. })));
    log.append(vec![append("a", "1")]).await.unwrap();
    log.close();
    log.close();
    assert_eq!(log.append(vec![append("a", "2")]).await, Err(AppendError::Closed));
    assert!(matches!(
        log.try_append(vec![append("a", "2")]),
        Err(QueueFull { reason: NotQueued::Refused(AppendError::Closed), .. })
    ));
    assert_eq!(open(config(dir.path())).head(), Offset(2));
}

// Closing commits what is queued, even when its delay is not over.
#[tokio::test]
async fn closing_commits_what_is_queued() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(LogConfig { commit_delay: PATIENCE * 2, ..config(dir.path()) });
    let waiting = tokio::spawn({
        let log = log.clone();
        async move { log.append(vec![append("a", "1")]).await }
    });
    log.try_append(vec![append("a", "2")]).unwrap();
    until("both are queued", || log.stats().queue_rows == 2 || log.stats().queue_bytes > 300).await;
    let closing = log.clone();
    tokio::task::spawn_blocking(move || closing.close()).await.unwrap();
    assert!(waiting.await.unwrap().is_ok());
    drop(log);
    assert_eq!(open(config(dir.path())).head(), Offset(3));
}

// Limits refuse the whole batch with the limit's name, at exactly the limit, and nothing of it is in the log.
#[tokio::test]
async fn limits_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { message_bytes_max: 1_000, topics_max: 3, ..Limits::default() };
    let log = open(LogConfig { limits, ..config(dir.path()) });
    assert_eq!(
        log.append(vec![append("a", "x"), append("a", vec![0; 1_001])]).await,
        Err(AppendError::MessageTooLarge { bytes: 1_001, bytes_max: 1_000 })
    );
    let many: Vec<Append> = (0..=BATCH_ROWS_MAX).map(|_| append("a", "")).collect();
    assert!(matches!(log.append(many).await, Err(AppendError::BatchTooLarge { .. })));
    assert_eq!(log.append(vec![append("a", vec![0; 1_000]), append("b", ""), append("b", "")]).await, Ok(Offset(1)));
    assert!(matches!(
        log.append(vec![append("c", ""), append("a", ""), append("d", "")]).await,
        Err(AppendError::TopicLimit { topics_max: 3, .. })
    ));
    assert_eq!(log.append(vec![append("d", "")]).await, Ok(Offset(4)), "the refused batch took no place");
    assert_eq!(log.stats().refused, 1);
    assert_eq!(read_disk(&log, 1).0.len(), 4);
}

// Telemetry that does not fit into the queue comes back at once and is counted.
#[tokio::test]
async fn a_full_queue_gives_telemetry_back() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { queue_batches_max: 2, ..Limits::default() };
    let log = open(LogConfig { limits, ..config(dir.path()) });
    log.append(vec![append("a", "0")]).await.unwrap();
    let other = peek(dir.path());
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut queued = 0;
    let back = loop {
        match log.try_append(vec![append("a", "telemetry")]) {
            Ok(()) => queued += 1,
            Err(back) => break back,
        }
        assert!(queued < 100, "the queue has no end");
    };
    assert_eq!((back.batch.len(), &back.reason), (1, &NotQueued::Busy));
    assert_eq!(log.stats().not_queued, 1);
    other.execute_batch("COMMIT").unwrap();
    until("the queued ones are committed", || log.head() == Offset(2 + queued)).await;
    log.try_append(back.batch).unwrap();
    until("there is room again", || log.head() == Offset(3 + queued)).await;
}

// A cursor survives a restart where its consumer left it, moves only forward, and never beyond the head.
#[tokio::test]
async fn cursors_survive() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(config(dir.path()));
    log.append((0..10).map(|_| append("a", "x")).collect()).await.unwrap();
    let (kept, gone) = (log.cursor("kept").unwrap(), log.cursor("gone").unwrap());
    assert_eq!(kept.position(), Offset(1), "a new cursor needs everything");
    kept.advance(Offset(5));
    kept.advance(Offset(3));
    assert_eq!(log.cursor("kept").unwrap().position(), Offset(5), "handles share their position");
    kept.advance(Offset(99));
    assert_eq!(kept.position(), Offset(11), "never ahead");
    gone.advance(Offset(2));
    log.flush().await.unwrap();
    gone.forget();
    log.cursor("late").unwrap().advance(Offset(4));
    log.close();
    let log = open(config(dir.path()));
    let cursors: Vec<_> = log.stats().cursors.iter().map(|c| (c.name.clone(), c.position.0, c.backlog_rows)).collect();
    assert_eq!(cursors, vec![("kept".to_owned(), 11, 0), ("late".to_owned(), 4, 7)]);
    assert!(matches!(log.cursor(""), Err(CursorError::Name { bytes: 0, .. })));
    assert!(matches!(log.cursor(&"n".repeat(CURSOR_NAME_BYTES_MAX + 1)), Err(CursorError::Name { .. })));
}

// Cursors reach the file without an append and without being asked.
#[tokio::test]
async fn cursors_are_persisted_lazily() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { cursors_max: 1, ..Limits::default() };
    let log = open(LogConfig { limits, ..config(dir.path()) });
    log.append(vec![append("a", "x")]).await.unwrap();
    let cursor = log.cursor("c").unwrap();
    cursor.advance(Offset(2));
    assert_eq!(log.cursor("d").unwrap_err(), CursorError::TooMany { cursors_max: 1 });
    let other = peek(dir.path());
    until("it is in the file", || {
        other.query_row("SELECT position FROM cursor WHERE name='c'", [], |row| row.get(0)) == Ok(2)
    })
    .await;
    cursor.forget();
    until("it is gone", || other.query_row("SELECT count(*) FROM cursor", [], |row| row.get(0)) == Ok(0)).await;
    assert!(log.cursor("d").is_ok());
}

// Waiting for the head ends with a message, in a thread and in a task.
#[tokio::test]
async fn consumers_are_woken() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(config(dir.path()));
    let mut watch = log.watch_head();
    let mut reader = log.reader().unwrap();
    let thread = std::thread::spawn(move || {
        let head = reader.wait(Offset(1), PATIENCE);
        (head, reader.read(Offset(1), FetchLimit::default()).unwrap().messages.len())
    });
    log.append(vec![append("a", "x")]).await.unwrap();
    tokio::time::timeout(PATIENCE, watch.wait_for(|head| *head == Offset(2))).await.unwrap().unwrap();
    assert_eq!(thread.join().unwrap(), (Offset(2), 1));
    assert_eq!(log.reader().unwrap().wait(Offset(2), Duration::from_millis(1)), Offset(2));
}
