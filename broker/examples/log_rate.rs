//! How fast the log commits, against a raw file on the same disk in the same run.
//!
//! `log_rate [DIR] [SECONDS] [PUBLISHERSxROWS …]`: for 1, 10, 100 and 1,000 rows in flight, prints rows/s of a
//! preallocated file written with `pwrite` and `fdatasync` once a group, then of the log (each row a batch of its own
//! with its own publisher, and the same rows in batches), with latencies, rows a commit, bytes sent to the device for
//! each payload byte, and how fast the log opens and reads. With `PUBLISHERSxROWS`, only those.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use millwright_broker::log::{Append, FetchLimit, Log, LogConfig};
use millwright_broker::message::{Message, QoS};
use millwright_broker::topic::TopicName;

/// A row as the design measured them.
const PAYLOAD_BYTES: usize = 288;

/// The raw file's size: enough not to be cached away.
const RAW_BYTES: u64 = 64 * 1_024 * 1_024;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let seconds = arguments.next().map_or(3.0, |seconds| seconds.parse().unwrap());
    let time = Duration::from_secs_f64(seconds);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    print(
        "publishers  rows each  raw rows/s  log rows/s  ratio  p50 µs  p99 µs  commit p50  rows/commit  amp(est)  amp(os)  writer µs/row  open ms  read rows/s",
    );
    let mut cases: Vec<(usize, usize)> = arguments
        .map(|case| {
            let (publishers, rows) = case.split_once('x').unwrap();
            (publishers.parse().unwrap(), rows.parse().unwrap())
        })
        .collect();
    if cases.is_empty() {
        cases = vec![(1, 1), (10, 1), (100, 1), (1_000, 1), (1, 10), (1, 100), (10, 100), (4, 1_000)];
    }
    for (publishers, rows) in cases {
        let raw = raw_rate(&dir, publishers * rows, time);
        runtime.block_on(log_rate(&dir, publishers, rows, raw, time));
    }
}

fn print(line: &str) {
    writeln!(std::io::stdout().lock(), "{line}").unwrap();
}

/// Groups of rows into a preallocated file, one `fdatasync` each.
fn raw_rate(dir: &Path, group: usize, time: Duration) -> f64 {
    let path = dir.join("raw.bin");
    let file = File::create(&path).unwrap();
    let zeros = vec![0; 1 << 20];
    for block in 0..RAW_BYTES >> 20 {
        file.write_all_at(&zeros, block << 20).unwrap();
    }
    file.sync_all().unwrap();
    let rows = vec![7; group * PAYLOAD_BYTES];
    let (start, mut at, mut count) = (Instant::now(), 0, 0);
    while start.elapsed() < time {
        if at + rows.len() as u64 > RAW_BYTES {
            at = 0;
        }
        file.write_all_at(&rows, at).unwrap();
        file.sync_data().unwrap();
        at += rows.len() as u64;
        count += group;
    }
    let rate = count as f64 / start.elapsed().as_secs_f64();
    std::fs::remove_file(path).unwrap();
    rate
}

async fn log_rate(dir: &Path, publishers: usize, rows: usize, raw: f64, time: Duration) {
    let dir = dir.join("log_rate.tmp");
    let _ = std::fs::remove_dir_all(&dir);
    let log = Log::open(LogConfig { commit_delay: Duration::ZERO, ..LogConfig::new(&dir) }).unwrap().log;
    let stop = Arc::new(AtomicBool::new(false));
    let count = Arc::new(AtomicU64::new(0));
    let written = bytes_written();
    let start = Instant::now();
    let tasks: Vec<_> = (0..publishers)
        .map(|publisher| tokio::spawn(publish(log.clone(), publisher, rows, Arc::clone(&stop), Arc::clone(&count))))
        .collect();
    tokio::time::sleep(time).await;
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    let rate = count.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64();
    let stats = log.stats();
    let writer_us = writer_cpu_us() / stats.rows as f64;
    log.close();
    drop(log);
    let (open_ms, read_rate) = read_back(&dir);
    let device = (bytes_written() - written) as f64 / stats.payload_bytes as f64;
    print(&format!(
        "{publishers:>10}  {rows:>9}  {raw:>10.0}  {rate:>10.0}  {:>5.2}  {:>6}  {:>6}  {:>10}  {:>11.1}  {:>8.1}  {device:>7.1}  {writer_us:>13.2}  {open_ms:>7.0}  {read_rate:>11.0}",
        rate / raw,
        stats.ack_latency_p50_us,
        stats.ack_latency_p99_us,
        stats.commit_latency_p50_us,
        stats.rows as f64 / stats.commits as f64,
        stats.write_amplification(),
    ));
    std::fs::remove_dir_all(dir).unwrap();
}

/// Opens the log again and reads all of it from disk.
fn read_back(dir: &Path) -> (f64, f64) {
    let start = Instant::now();
    let log = Log::open(LogConfig::new(dir)).unwrap().log;
    let open_ms = start.elapsed().as_secs_f64() * 1_000.0;
    let (mut reader, mut at, mut rows) = (log.reader().unwrap(), log.oldest(), 0);
    let start = Instant::now();
    while at < log.head() {
        let fetched = reader.read(at, FetchLimit::default()).unwrap();
        rows += fetched.messages.len();
        at = fetched.next;
    }
    (open_ms, rows as f64 / start.elapsed().as_secs_f64())
}

async fn publish(log: Log, publisher: usize, rows: usize, stop: Arc<AtomicBool>, count: Arc<AtomicU64>) {
    let topic = TopicName::parse(&format!("mw/v1/telemetry/machine-{publisher}")).unwrap();
    let payload = Bytes::from(vec![publisher as u8; PAYLOAD_BYTES]);
    let message = Message { topic, payload, properties: Bytes::new(), qos: QoS::AtLeastOnce, retain: false, origin: 1 };
    while !stop.load(Ordering::Relaxed) {
        let batch = (0..rows).map(|_| Append { message: message.clone(), log: true, received_us: 1 }).collect();
        log.append(batch).await.unwrap();
        count.fetch_add(rows as u64, Ordering::Relaxed);
    }
}

/// Processor time of the log's writer thread; 0 where the system does not say.
fn writer_cpu_us() -> f64 {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return 0.0 };
    let is_writer =
        |path: &PathBuf| std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "log-writer");
    let schedstat = tasks.flatten().map(|task| task.path()).find(is_writer).map(|path| path.join("schedstat"));
    let text = schedstat.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    let ns: f64 = text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0.0);
    ns / 1_000.0
}

/// Bytes that this process sent to block devices; 0 where the system does not say.
fn bytes_written() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
}
