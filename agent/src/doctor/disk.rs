//! The data directory and what lies below it: who owns it, the kind of file system, its speed, and room for the quotas.
//!
//! Owns the thresholds of speed, each with its reason. Writes [`WRITE_BYTES`] into a file of its own, which it removes.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::Access;

use super::{Finding, Patient, size};
use crate::conditions::measure;

const DIRECTORY: &str = "data directory";
const FILE_SYSTEM: &str = "file system";
const SPEED: &str = "disk speed";
const SPACE: &str = "space";

/// Appends that are synced, and their size: a commit of a few messages.
const SYNCS: usize = 50;
const SYNC_BYTES: usize = 4_096;
/// A commit waits for one sync. A device with one message in flight sends at most one for each: 20 a second with 50 ms, less than
/// the 50 machines at 1 Hz each that a small plant has behind one controller.
const SYNC_WARN: Duration = Duration::from_millis(50);
/// With syncs this slow, devices run into their own timeouts.
const SYNC_FAIL: Duration = Duration::from_millis(1_000);
/// One in a hundred may take longer; with more, the queue before the log fills now and then.
const SLOWEST_WARN: Duration = Duration::from_millis(250);

/// Bytes of the long write: more than the cache of an SD card's controller.
const WRITE_BYTES: u64 = 32 << 20;
const WRITE_BLOCK_BYTES: usize = 1 << 20;
/// Bytes a second. Each byte of telemetry is written about three times (write-ahead log, checkpoint, state): 1,000 messages of 300 bytes
/// a second are about 1 MB/s, and half of the disk's time should be left.
const WRITE_WARN: f64 = 4e6;
const WRITE_FAIL: f64 = 1e6;
/// What must be left after the long write.
const WRITE_ROOM_BYTES: u64 = 64 << 20;

/// Beyond the quotas: models, and what databases take while they are tidied.
const SPACE_MORE_BYTES: u64 = 256 << 20;

/// Where nothing outlives the power.
const VOLATILE: [(u64, &str); 2] = [(0x0102_1994, "tmpfs"), (0x8584_58f6, "ramfs")];
/// Where locks and syncs are what the other side makes of them.
const REMOTE: [(u64, &str); 6] = [
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB 2"),
    (0x0102_1997, "9P"),
    (0x6573_5546, "FUSE"),
];
/// Where there are neither owners nor a journal.
const SIMPLE: [(u64, &str); 2] = [(0x4d44, "FAT"), (0x2011_bab0, "exFAT")];
const SOUND: [(u64, &str); 7] = [
    (0xef53, "ext4"),
    (0x5846_5342, "XFS"),
    (0x9123_683e, "Btrfs"),
    (0xf2f5_2010, "F2FS"),
    (0x2405_1905, "UBIFS"),
    (0x794c_7630, "overlay"),
    (0x2fc1_2fc1, "ZFS"),
];

pub(super) fn check(patient: &Patient<'_>, show: &mut dyn FnMut(Finding)) {
    let place = patient.data_place();
    let is_there = place == patient.data_dir();
    let writable = directory(patient.data_dir(), &place, is_there);
    let may_write = writable.verdict != super::Verdict::Fail;
    show(writable);
    show(file_system(&place));
    if may_write {
        show(speed(&place));
    }
    show(space(patient, &place));
}

fn directory(dir: &Path, place: &Path, is_there: bool) -> Finding {
    let shown = place.display();
    let found = match fs::metadata(place) {
        Ok(found) if found.is_dir() => found,
        Ok(_) => return Finding::fail(DIRECTORY, format!("{shown} is no folder"), "move it away, or set `data_dir`"),
        Err(error) => {
            return Finding::fail(DIRECTORY, format!("{shown}: {error}"), "give this user access, or set `data_dir`");
        }
    };
    if let Err(error) = rustix::fs::access(place, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) {
        let remedy = "chown it to the gateway's user; if this is not that user, run this as that user";
        return Finding::fail(DIRECTORY, format!("{shown} cannot be written by this user: {error}"), remedy);
    }
    if !is_there {
        return Finding::ok(DIRECTORY, format!("{} is not there yet and can be made in {shown}", dir.display()));
    }
    const OTHERS_WRITE: u32 = 0o002;
    const OTHERS_READ: u32 = 0o004;
    let mode = found.mode();
    if mode & OTHERS_WRITE != 0 {
        let text = format!("everybody on this machine may write {shown} (mode {:o})", mode & 0o777);
        return Finding::fail(DIRECTORY, text, format!("chmod 700 {shown}"));
    }
    if mode & OTHERS_READ != 0 {
        let text = format!("everybody on this machine may look into {shown} (mode {:o})", mode & 0o777);
        return Finding::warn(DIRECTORY, text, format!("chmod 700 {shown}"));
    }
    Finding::ok(DIRECTORY, format!("{shown} (user {}, mode {:o})", found.uid(), mode & 0o777))
}

fn file_system(place: &Path) -> Finding {
    let kind = match rustix::fs::statfs(place) {
        // What the kernel keeps as a signed or shorter number is a magic number of 32 bits.
        Ok(found) => (found.f_type as u64) & 0xffff_ffff,
        Err(error) => return Finding::warn(FILE_SYSTEM, format!("cannot be told: {error}"), "look at it with `df -T`"),
    };
    let name = |table: &[(u64, &'static str)]| table.iter().find(|(magic, _)| *magic == kind).map(|(_, name)| *name);
    let local = "put `data_dir` on a local disk";
    if let Some(name) = name(&VOLATILE) {
        return Finding::warn(FILE_SYSTEM, format!("{name}: everything is gone when the power is"), local);
    }
    if let Some(name) = name(&REMOTE) {
        return Finding::warn(FILE_SYSTEM, format!("{name}: its locks and syncs are not to be relied on"), local);
    }
    if let Some(name) = name(&SIMPLE) {
        let text = format!("{name}: it has neither owners of files nor a journal");
        return Finding::warn(FILE_SYSTEM, text, "put `data_dir` on ext4 or the like");
    }
    match name(&SOUND) {
        Some(name) => Finding::ok(FILE_SYSTEM, name),
        None => Finding::ok(FILE_SYSTEM, format!("number {kind:x}, which is not known here")),
    }
}

/// A file that is removed when it is dropped.
struct Scratch {
    file: File,
    path: PathBuf,
}

impl Scratch {
    fn create(place: &Path) -> io::Result<Scratch> {
        let path = place.join(format!(".millwright-doctor-{}", std::process::id()));
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Scratch { file, path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(file = %self.path.display(), %error, "a file of this examination could not be removed");
        }
    }
}

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Speed {
    /// Half of the syncs took no longer.
    median: Duration,
    /// The slowest of fifty, which stands for one in a hundred.
    slowest: Duration,
    /// Bytes a second of a long write; `None` if there is no room for one.
    write: Option<f64>,
}

fn speed(place: &Path) -> Finding {
    let measured = Scratch::create(place).and_then(|mut scratch| {
        let (median, slowest) = measure_syncs(&mut scratch.file)?;
        let room = measure::disk(place).is_some_and(|disk| disk.max - disk.used >= WRITE_BYTES + WRITE_ROOM_BYTES);
        let write = if room { Some(measure_write(&mut scratch.file)?) } else { None };
        Ok(Speed { median, slowest, write })
    });
    match measured {
        Ok(speed) => judge(speed),
        Err(error) => Finding::fail(SPEED, format!("{} cannot be written: {error}", place.display()), "check the disk"),
    }
}

fn measure_syncs(file: &mut File) -> io::Result<(Duration, Duration)> {
    let block = [0x5a; SYNC_BYTES];
    let mut took = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        let began = Instant::now();
        file.write_all(&block)?;
        file.sync_data()?;
        took.push(began.elapsed());
    }
    took.sort();
    let at = |index: usize| took.get(index).copied().unwrap_or_default();
    Ok((at(SYNCS / 2), at(SYNCS - 1)))
}

fn measure_write(file: &mut File) -> io::Result<f64> {
    // Not all the same, for disks that pack.
    let block: Vec<u8> = (0..WRITE_BLOCK_BYTES).map(|at| (at.wrapping_mul(at) >> 7) as u8).collect();
    let began = Instant::now();
    for _ in 0..WRITE_BYTES / WRITE_BLOCK_BYTES as u64 {
        file.write_all(&block)?;
    }
    file.sync_data()?;
    Ok(WRITE_BYTES as f64 / began.elapsed().as_secs_f64().max(1e-6))
}

fn judge(speed: Speed) -> Finding {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let mut text = format!("sync p50 {:.1} ms, p99 {:.1} ms", ms(speed.median), ms(speed.slowest));
    match speed.write {
        Some(write) => text.push_str(&format!(", writes {:.0} MB/s", write / 1e6)),
        None => text.push_str("; no room to measure long writes"),
    }
    let write = speed.write.unwrap_or(f64::INFINITY);
    let better = "use a disk made for writing (industrial eMMC or SD card, SSD)";
    if speed.median >= SYNC_FAIL || write < WRITE_FAIL {
        return Finding::fail(SPEED, text, format!("every acknowledgement waits for this disk: {better}"));
    }
    if speed.median >= SYNC_WARN || speed.slowest >= SLOWEST_WARN || write < WRITE_WARN {
        return Finding::warn(
            SPEED,
            text,
            format!("devices wait for it: {better}, or raise `commit_delay_ms` in [log]"),
        );
    }
    Finding::ok(SPEED, text)
}

/// Whether the quotas can be used up before the disk is.
fn space(patient: &Patient<'_>, place: &Path) -> Finding {
    let Some(disk) = measure::disk(place) else {
        return Finding::warn(SPACE, "cannot be told", "look at it with `df`");
    };
    let free = disk.max.saturating_sub(disk.used);
    let config = patient.config;
    let used = |name: &str| fs::metadata(patient.data_dir().join(name)).map_or(0, |found| found.len());
    let growth = |quota: u64, names: &[&str]| quota.saturating_sub(names.iter().map(|name| used(name)).sum());
    let history_quota = config.history.quota_bytes.saturating_add(config.history.quota_bytes / 10);
    let wanted = growth(config.log.quota_bytes, &["log.db", "log.db-wal"])
        .saturating_add(growth(history_quota, &["history.db"]))
        .saturating_add(SPACE_MORE_BYTES);
    let text = format!("{} free of {}; the gateway may still take {}", size(free), size(disk.max), size(wanted));
    if free >= wanted {
        return Finding::ok(SPACE, text);
    }
    let remedy = "make room, or lower `quota_mb` in [log] and [history]: a full disk holds all clients up";
    if free < SPACE_MORE_BYTES { Finding::fail(SPACE, text, remedy) } else { Finding::warn(SPACE, text, remedy) }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    // Speeds are judged at their limits: just as good as wanted is fine.
    #[test]
    fn speeds_are_judged_at_their_limits() {
        let ms = Duration::from_millis;
        let speed = |median: u64, slowest: u64, write: f64| {
            judge(Speed { median: ms(median), slowest: ms(slowest), write: Some(write) }).verdict
        };
        assert_eq!(speed(49, 249, 4e6), Verdict::Ok);
        assert_eq!(speed(50, 60, 4e6), Verdict::Warn);
        assert_eq!(speed(1, 250, 4e6), Verdict::Warn);
        assert_eq!(speed(1, 1, 3.9e6), Verdict::Warn);
        assert_eq!(speed(999, 999, 1e6), Verdict::Warn);
        assert_eq!(speed(1_000, 1_000, 4e6), Verdict::Fail);
        assert_eq!(speed(1, 1, 0.9e6), Verdict::Fail);
        assert_eq!(judge(Speed { median: ms(1), slowest: ms(1), write: None }).verdict, Verdict::Ok);
    }
}
