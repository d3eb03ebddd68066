//! What a process costs, as Linux counts it: processor time, context switches, memory, bytes sent to the disk.
//!
//! Where the system does not say, there is no figure.

use std::collections::BTreeMap;
use std::fs;

/// The unit of times in `/proc/PID/stat` on every Linux that user space sees.
const TICK_NS: u64 = 10_000_000;

/// A process at one moment.
pub(crate) struct Usage {
    /// By thread: nanoseconds of processor time, context switches.
    threads: BTreeMap<u32, (u64, u64)>,
    /// Of all threads, also those that ended, but in ticks.
    ticks: u64,
    written_bytes: u64,
}

/// What it cost between two moments.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    pub(crate) cpu_ns: u64,
    pub(crate) switches: u64,
    pub(crate) written_bytes: u64,
}

impl Usage {
    pub(crate) fn of(pid: u32) -> Option<Usage> {
        let mut threads = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
            let thread = entry.file_name().to_str()?.parse().ok()?;
            // A thread may end meanwhile.
            if let Some(figures) = thread_figures(&entry.path().display().to_string()) {
                threads.insert(thread, figures);
            }
        }
        let written_bytes = field(&format!("/proc/{pid}/io"), "write_bytes:").unwrap_or(0);
        Some(Usage { threads, ticks: ticks(pid)?, written_bytes })
    }

    pub(crate) fn since(&self, before: &Usage) -> Cost {
        let (mut cpu_ns, mut switches) = (0, 0);
        for (thread, (ns, count)) in &self.threads {
            let (ns_before, count_before) = before.threads.get(thread).copied().unwrap_or_default();
            cpu_ns += ns.saturating_sub(ns_before);
            switches += count.saturating_sub(count_before);
        }
        // A thread that ended took its exact figures along.
        if before.threads.keys().any(|thread| !self.threads.contains_key(thread)) {
            cpu_ns = (self.ticks - before.ticks) * TICK_NS;
        }
        Cost { cpu_ns, switches, written_bytes: self.written_bytes.saturating_sub(before.written_bytes) }
    }
}

/// The most memory that a process ever had resident.
pub(crate) fn peak_rss_kib(pid: u32) -> Option<u64> {
    field(&format!("/proc/{pid}/status"), "VmHWM:")
}

/// The memory that a process has resident.
#[allow(dead_code, reason = "what only the benchmark of limits measures")]
pub(crate) fn rss_kib_of(pid: u32) -> Option<u64> {
    field(&format!("/proc/{pid}/status"), "VmRSS:")
}

/// The memory that this process has resident.
#[allow(dead_code, reason = "what only the models' benchmark measures")]
pub(crate) fn rss_kib() -> Option<u64> {
    field("/proc/self/status", "VmRSS:")
}

/// Processor time of the calling thread in nanoseconds; 0 where the system does not say.
pub(crate) fn thread_cpu_ns() -> u64 {
    schedstat("/proc/thread-self").unwrap_or(0)
}

/// The machine's name for its processor, how many it has, and its kernel.
pub(crate) fn machine() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{} × {}, kernel {}", cores, model.unwrap_or("processor"), kernel.trim())
}

/// How many processes want to run, on average over the last minute.
pub(crate) fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

fn thread_figures(folder: &str) -> Option<(u64, u64)> {
    let status = format!("{folder}/status");
    let switches = field(&status, "voluntary_ctxt_switches:")? + field(&status, "nonvoluntary_ctxt_switches:")?;
    Some((schedstat(folder)?, switches))
}

fn schedstat(folder: &str) -> Option<u64> {
    fs::read_to_string(format!("{folder}/schedstat")).ok()?.split(' ').next()?.parse().ok()
}

/// User and system time.
fn ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name is in parentheses and may hold blanks; the times are fields 14 and 15.
    let mut fields = stat.rsplit(") ").next()?.split(' ').skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

fn field(path: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}
