//! How fast the log commits, against a plain file on the same disk.
//!
//! The log is driven through its public API in this process, without a broker. The plain file is preallocated and takes
//! the same rows with `pwrite`, and one `fdatasync` for as many as the log put into a commit: the most that the disk gives
//! to anything that acknowledges after a sync.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use millwright_broker::log::{Append, Log, LogConfig};
use millwright_broker::message::{Message, QoS};
use millwright_broker::topic::TopicName;

use crate::process;

/// What a record of a plain file would hold besides the payload: offset, time, topic, flags, lengths.
const RECORD_HEADER_BYTES: usize = 32;

/// The plain file's size; it is written over and over.
const FILE_BYTES: u64 = 64 * 1_024 * 1_024;

/// Who appends: so many at a time, each a batch of so many rows after the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) publishers: usize,
    pub(crate) batch_rows: usize,
    pub(crate) payload_bytes: usize,
}

/// What the log did.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) rows_per_s: f64,
    pub(crate) commits_per_s: f64,
    pub(crate) rows_per_commit: f64,
    /// From append to acknowledgement.
    pub(crate) ack_p50_us: u64,
    /// Of all threads of this process, appending ones included.
    pub(crate) cpu_us_per_row: f64,
    /// Bytes sent to the device for each payload byte.
    pub(crate) write_amplification: f64,
}

/// Appends to a new log below `dir` for `time`.
pub(crate) fn log(dir: &Path, plan: Plan, time: Duration) -> anyhow::Result<Outcome> {
    let config = LogConfig { commit_delay: Duration::ZERO, ..LogConfig::new(dir.join("log")) };
    let log = Log::open(config)?.log;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let usage = process::Usage::of(std::process::id());
    let (rows, elapsed) = runtime.block_on(append_for(&log, plan, time))?;
    let cost = usage.and_then(|before| Some(process::Usage::of(std::process::id())?.since(&before)));
    let stats = log.stats();
    log.close();
    let cost = cost.unwrap_or_default();
    Ok(Outcome {
        rows_per_s: rows as f64 / elapsed.as_secs_f64(),
        commits_per_s: stats.commits as f64 / elapsed.as_secs_f64(),
        rows_per_commit: stats.rows as f64 / stats.commits as f64,
        ack_p50_us: stats.ack_latency_p50_us,
        cpu_us_per_row: cost.cpu_ns as f64 / 1e3 / rows as f64,
        write_amplification: cost.written_bytes as f64 / stats.payload_bytes as f64,
    })
}

async fn append_for(log: &Log, plan: Plan, time: Duration) -> anyhow::Result<(u64, Duration)> {
    let (stop, rows) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let start = Instant::now();
    let mut tasks = Vec::new();
    for publisher in 0..plan.publishers {
        let batch = batch(publisher, plan)?;
        let (log, stop, rows) = (log.clone(), Arc::clone(&stop), Arc::clone(&rows));
        tasks.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                log.append(batch.clone()).await?;
                rows.fetch_add(batch.len() as u64, Ordering::Relaxed);
            }
            anyhow::Ok(())
        }));
    }
    tokio::time::sleep(time).await;
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await??;
    }
    Ok((rows.load(Ordering::Relaxed), start.elapsed()))
}

fn batch(publisher: usize, plan: Plan) -> anyhow::Result<Vec<Append>> {
    let message = Message {
        topic: TopicName::parse(&format!("bench/machine-{publisher:03}"))?,
        payload: Bytes::from(vec![publisher as u8; plan.payload_bytes]),
        properties: Bytes::new(),
        qos: QoS::AtLeastOnce,
        retain: false,
        origin: 1,
    };
    Ok(vec![Append { message, log: true, received_us: 1 }; plan.batch_rows])
}

/// What the disk takes to sync one page of a file, in milliseconds: the median of a hundred.
pub(crate) fn sync_ms(dir: &Path) -> anyhow::Result<f64> {
    let file = File::create(dir.join("page"))?;
    let page = vec![7; 4_096];
    let mut times_ms = Vec::new();
    for _ in 0..100 {
        let start = Instant::now();
        file.write_all_at(&page, 0)?;
        file.sync_data()?;
        times_ms.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times_ms.sort_by(f64::total_cmp);
    Ok(times_ms[50])
}

/// Rows a second of a plain file below `dir`, synced after every `group_rows`.
pub(crate) fn plain_file(dir: &Path, plan: Plan, group_rows: usize, time: Duration) -> anyhow::Result<f64> {
    let file = File::create(dir.join("plain"))?;
    let zeros = vec![0; 1 << 20];
    for block in 0..FILE_BYTES >> 20 {
        file.write_all_at(&zeros, block << 20)?;
    }
    file.sync_all()?;
    let group = vec![7; group_rows * (plan.payload_bytes + RECORD_HEADER_BYTES)];
    let (start, mut at, mut rows) = (Instant::now(), 0, 0);
    while start.elapsed() < time {
        if at + group.len() as u64 > FILE_BYTES {
            at = 0;
        }
        file.write_all_at(&group, at)?;
        file.sync_data()?;
        at += group.len() as u64;
        rows += group_rows;
    }
    Ok(rows as f64 / start.elapsed().as_secs_f64())
}
