//! Memory and file descriptors: enough for what the configuration allows.

use std::fs;

use rustix::process::{Resource, getrlimit};

use super::{Finding, Patient, size};
use crate::descriptors;

const MEMORY: &str = "memory";
const SWAP: &str = "swap";
const FILES: &str = "file descriptors";

/// What the gateway takes with nobody connected, and with a thousand who are: docs/BENCHMARKS.md, which promises 25 and 60 MiB.
const IDLE_BYTES: u64 = 25 << 20;
const CLIENT_BYTES: u64 = 36 << 10;
/// Below it the defaults do not fit: they are made for 1 GiB.
const TOTAL_WARN: u64 = 480 << 20;

pub(super) fn check(patient: &Patient<'_>, show: &mut dyn FnMut(Finding)) {
    let Ok(told) = fs::read_to_string("/proc/meminfo") else {
        show(Finding::ok(MEMORY, "not told by this system"));
        return files(patient, show);
    };
    let container = fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    let limits = &patient.config.broker.limits;
    // A worker that tries a model has its own limit beside the gateway's.
    let clients = (limits.connections_max as u64).min(1_000).saturating_mul(CLIENT_BYTES);
    let needed = IDLE_BYTES + clients + limits.buffered_bytes_max as u64 + patient.config.models.memory_bytes_max;
    show(judge(&told, container, needed, patient.runs == Some(true)));
    show(swap(&told));
    files(patient, show);
}

fn judge(told: &str, container: Option<u64>, needed: u64, runs: bool) -> Finding {
    let total = kib(told, "MemTotal:").unwrap_or(0).min(container.unwrap_or(u64::MAX));
    let available = kib(told, "MemAvailable:").unwrap_or(0).min(total);
    let text = format!(
        "{} of {} available; with all that the configuration allows the gateway takes {}",
        size(available),
        size(total),
        size(needed)
    );
    let remedy = "end other programs, or lower `max_buffered_mb` in [broker] and `memory_mb` in [models]";
    // One that runs has taken its part already.
    if total < IDLE_BYTES.saturating_mul(2) || (!runs && available < IDLE_BYTES) {
        return Finding::fail(MEMORY, text, remedy);
    }
    if total < TOTAL_WARN || (!runs && available < needed) {
        return Finding::warn(MEMORY, text, remedy);
    }
    Finding::ok(MEMORY, text)
}

/// Swap on flash wears it, and makes the gateway wait; that nothing is swapped is what matters.
fn swap(told: &str) -> Finding {
    let (total, free) = (kib(told, "SwapTotal:").unwrap_or(0), kib(told, "SwapFree:").unwrap_or(0));
    let used = total.saturating_sub(free);
    match (total, used) {
        (0, _) => Finding::ok(SWAP, "none"),
        (total, used) if used > total / 2 => Finding::warn(
            SWAP,
            format!("{} of {} used", size(used), size(total)),
            "there is too little memory: end other programs; swap on flash wears it",
        ),
        (total, used) => Finding::ok(SWAP, format!("{} of {} used", size(used), size(total))),
    }
}

fn files(patient: &Patient<'_>, show: &mut dyn FnMut(Finding)) {
    let needed = descriptors::needed(patient.config.broker.limits.connections_max) as u64;
    // The gateway raises its soft limit itself. `None` is no limit.
    let Some(max) = getrlimit(Resource::Nofile).maximum else {
        return show(Finding::ok(FILES, "no limit"));
    };
    let text = format!("{max} for this user; the configuration wants {needed}");
    show(match max >= needed {
        true => Finding::ok(FILES, text),
        false => Finding::warn(
            FILES,
            text,
            "raise the limit (LimitNOFILE= in the systemd unit, `ulimit -n`), or lower `max_connections` in [broker]",
        ),
    });
}

fn kib(told: &str, name: &str) -> Option<u64> {
    let line = told.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1_024)
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    // Memory is judged by the smaller of machine and container, at its limits; a gateway that runs has its part already.
    #[test]
    fn memory_is_judged() {
        let told = |total_mib: u64, available_mib: u64| {
            format!("MemTotal: {} kB\nMemAvailable: {} kB\n", total_mib << 10, available_mib << 10)
        };
        let verdict = |told: &str, container, runs| judge(told, container, 200 << 20, runs).verdict;
        assert_eq!(verdict(&told(1_024, 200), None, false), Verdict::Ok);
        assert_eq!(verdict(&told(1_024, 199), None, false), Verdict::Warn);
        assert_eq!(verdict(&told(1_024, 199), None, true), Verdict::Ok);
        assert_eq!(verdict(&told(1_024, 24), None, false), Verdict::Fail);
        assert_eq!(verdict(&told(479, 300), None, false), Verdict::Warn);
        assert_eq!(verdict(&told(1_024, 800), Some(40 << 20), true), Verdict::Fail);
    }

    // Half of the swap may be used.
    #[test]
    fn swap_is_judged() {
        assert_eq!(swap("").verdict, Verdict::Ok);
        assert_eq!(swap("SwapTotal: 100 kB\nSwapFree: 50 kB\n").verdict, Verdict::Ok);
        assert_eq!(swap("SwapTotal: 100 kB\nSwapFree: 49 kB\n").verdict, Verdict::Warn);
    }
}
