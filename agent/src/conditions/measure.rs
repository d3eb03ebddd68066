//! Measures what the system gives the gateway: disk, file descriptors, memory.
//!
//! Only reads. What the system does not tell is `None`, and then not judged.

use std::fs;
use std::path::Path;

use rustix::process::{Resource, getrlimit};

use super::Share;
use super::wear::EARLIEST_US;

/// Where Linux lists this process's open files.
const OPEN_FILES: &str = "/proc/self/fd";
/// Where Linux tells this process's memory, in pages.
const MEMORY_PAGES: &str = "/proc/self/statm";
/// Where Linux tells what this process had the device do.
const INPUT_OUTPUT: &str = "/proc/self/io";
/// Where a container's limit of memory is told; `max` is none.
const CGROUP_MEMORY: &str = "/sys/fs/cgroup/memory.max";

/// Made by the system's time service once it has set the clock by a server.
const CLOCK_SYNCHRONISED: &str = "/run/systemd/timesync/synchronized";

/// Whether the system's clock can be trusted; `None` where no service tells.
pub fn clock_trusted(now_us: i64) -> Option<bool> {
    if now_us < EARLIEST_US {
        return Some(false);
    }
    Path::new(CLOCK_SYNCHRONISED).exists().then_some(true)
}

/// The file system that holds `dir`.
pub fn disk(dir: &Path) -> Option<Share> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    let (max, free) = (stat.f_blocks.saturating_mul(stat.f_frsize), stat.f_bavail.saturating_mul(stat.f_frsize));
    // Blocks kept for the superuser are of no use to the gateway.
    Some(Share { used: max.saturating_sub(free), max })
}

/// Open file descriptors against the limit.
pub fn files() -> Option<Share> {
    let max = getrlimit(Resource::Nofile).current?;
    match fs::read_dir(OPEN_FILES) {
        // The listing itself has one open.
        Ok(entries) => Some(Share { used: (entries.count() as u64).saturating_sub(1), max }),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) => {
            Some(Share { used: max, max })
        }
        Err(_) => None,
    }
}

/// Memory in RAM, against the container's limit or the machine's memory.
pub fn memory() -> Option<Share> {
    let pages: u64 = fs::read_to_string(MEMORY_PAGES).ok()?.split_whitespace().nth(1)?.parse().ok()?;
    let used = pages.saturating_mul(rustix::param::page_size() as u64);
    Some(Share { used, max: memory_max()? })
}

/// Bytes that this process, and its children that have ended, sent to the device since the start.
pub fn written_bytes() -> Option<u64> {
    let counters = fs::read_to_string(INPUT_OUTPUT).ok()?;
    counters.lines().find_map(|line| line.strip_prefix("write_bytes:"))?.trim().parse().ok()
}

fn memory_max() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok()?;
    let total_kib: u64 =
        machine.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.split_whitespace().next()?.parse().ok()?;
    let machine = total_kib.saturating_mul(1024);
    let container = fs::read_to_string(CGROUP_MEMORY).ok().and_then(|text| text.trim().parse().ok());
    Some(container.map_or(machine, |container: u64| container.min(machine)))
}
