//! A file system that fills: run on one that is small.
//!
//! `mount -t tmpfs -o size=12m tmpfs /mnt/small && LOG_SMALL_DISK=/mnt/small cargo test --test log_disk -- --ignored`
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use millwright_broker::log::{Append, FetchLimit, FullReason, Log, LogConfig, Offset, WhenFull, verify};
use millwright_broker::message::{Message, QoS};
use millwright_broker::topic::TopicName;

fn rows() -> Vec<Append> {
    let topic = TopicName::parse("a").unwrap();
    let payload = Bytes::from(vec![7; 2_000]);
    let message = Message { topic, payload, properties: Bytes::new(), qos: QoS::AtLeastOnce, retain: false, origin: 0 };
    (0..10).map(|_| Append { message: message.clone(), log: true, received_us: 1 }).collect()
}

/// Publishes until the disk is full and the log says so, frees space, and sees publishers go on.
async fn fill_and_free(dir: PathBuf, when_full: WhenFull) {
    let disk = dir.clone();
    let dir = dir.join("log");
    let _ = fs::remove_dir_all(&dir);
    // A third of the disk belongs to someone else.
    let ballast = disk.join("ballast");
    fs::write(&ballast, vec![1; 4 << 20]).unwrap();
    let config = LogConfig { when_full, commit_delay: Duration::ZERO, ..LogConfig::new(&dir) };
    let log = Log::open(config.clone()).unwrap().log;
    let publisher = tokio::spawn({
        let log = log.clone();
        async move {
            loop {
                log.append(rows()).await.unwrap();
            }
        }
    });
    let start = Instant::now();
    while !matches!(log.stats().full, Some(FullReason::DiskFull { .. } | FullReason::Failed { .. })) {
        assert!(start.elapsed() < Duration::from_secs(60), "{:?} {}", log.stats().full, log.head());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let held_at = log.head();
    assert!(!publisher.is_finished());
    fs::remove_file(ballast).unwrap();
    let start = Instant::now();
    while log.head() <= held_at {
        assert!(start.elapsed() < Duration::from_secs(60), "{:?} {}", log.stats().full, log.head());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The disk fills again; what was acknowledged must be there.
    publisher.abort();
    let _ = publisher.await;
    let head = log.head();
    let mut reader = log.reader().unwrap();
    let mut at = Offset(1);
    while at < head {
        let fetched = reader.read(at, FetchLimit::default()).unwrap();
        assert_eq!(fetched.lost, None);
        at = fetched.next;
    }
    log.close();
    drop((log, reader));
    let report = verify(&dir).unwrap();
    assert!(report.is_sound() && report.head >= head, "{report:?}");
    let opened = Log::open(config).unwrap();
    assert_eq!(opened.set_aside, None);
    drop(opened);
    fs::remove_dir_all(dir).unwrap();
}

// On a file system without space, appends wait and the reason is given; when space returns, they go on by themselves, and
// everything acknowledged is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs LOG_SMALL_DISK, a directory on a file system of about 12 MB"]
async fn a_full_file_system_recovers() {
    let dir = PathBuf::from(std::env::var_os("LOG_SMALL_DISK").unwrap());
    fill_and_free(dir.clone(), WhenFull::Refuse).await;
    fill_and_free(dir, WhenFull::DropOldest).await;
}
