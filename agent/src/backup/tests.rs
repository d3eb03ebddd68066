//! Backups of data directories made by the gateway's own parts.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use millwright_broker::log::{Append, DirLock, Log, LogConfig, Offset};
use millwright_broker::message::{Message, QoS};
use millwright_broker::topic::TopicName;

use super::make::make;
use super::stage::lay_out;
use super::swap::{STAGED, is_waiting, take, take_stepwise};
use super::{BackupError, archive};
use crate::config::Config;
use crate::state::{Checkpoint, State, copy};

/// A gateway that does not run: its configuration and its data.
struct Place {
    folder: tempfile::TempDir,
    config: Config,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.toml");
        fs::write(&path, "[gateway]\nid = \"gw-1\"\n").unwrap();
        let config = Config::load(&path).unwrap().config;
        Place { folder, config }
    }

    fn config_path(&self) -> PathBuf {
        self.folder.path().join("gateway.toml")
    }

    fn data(&self) -> &Path {
        &self.config.gateway.data_dir
    }

    fn to(&self) -> PathBuf {
        self.folder.path().join("backup.tar")
    }

    /// Appends messages, and a checkpoint behind them.
    fn live(&self, messages: u64) -> Offset {
        let log = Log::open(LogConfig::new(self.data())).unwrap().log;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for _ in 0..messages {
            let message = Message {
                topic: TopicName::parse("a/b").unwrap(),
                payload: b"payload".as_slice().into(),
                properties: Vec::new().into(),
                qos: QoS::AtLeastOnce,
                retain: false,
                origin: 0,
            };
            runtime.block_on(log.append(vec![Append { message, log: true, received_us: 1 }])).unwrap();
        }
        let state = State::open(self.data()).unwrap().state;
        let checkpoint =
            Checkpoint { log_id: log.id().0, cursor: log.head().0, next_event: log.head().0, ..Checkpoint::default() };
        state.commit(&checkpoint).unwrap();
        let head = log.head();
        log.close();
        head
    }

    fn backup(&self) -> Result<super::make::Made, BackupError> {
        make(&self.config, &self.config_path(), &self.to(), &mut |_| {})
    }

    fn lay_out(&self, from: &Path) -> Result<super::stage::Laid, BackupError> {
        lay_out(&self.config, &self.config_path(), from, false, &mut |_| {})
    }

    /// The log's head and what the state knows.
    fn found(&self) -> (u64, copy::StateFacts) {
        let log = Log::open(LogConfig::new(self.data())).unwrap().log;
        let facts = copy::facts(self.data()).unwrap();
        assert_eq!(facts.log_id, Some(log.id().0), "the state is of this log");
        let head = log.head().0;
        log.close();
        (head, facts)
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

// A crash before any move of the swap leaves the data or, after the next attempt, the whole backup; nothing that was there is lost, whichever
// move it was.
#[test]
fn a_swap_may_end_at_any_move() {
    let place = Place::new();
    place.live(10);
    place.backup().unwrap();
    for stop_at in 0.. {
        let place_now = Place::new();
        fs::copy(place.to(), place_now.to()).unwrap();
        place_now.live(3);
        fs::create_dir_all(place_now.data().join("models")).unwrap();
        fs::write(place_now.data().join("models/old.onnx"), "old").unwrap();
        fs::write(place_now.data().join("history.db"), "old").unwrap();
        place_now.lay_out(&place_now.to()).unwrap();
        let lock = DirLock::take(place_now.data()).unwrap();
        let mut moves = 0;
        let stopped = take_stepwise(place_now.data(), &lock, &mut || {
            moves += 1;
            if moves > stop_at { Err(io::Error::other("the power is cut")) } else { Ok(()) }
        });
        let ended = stopped.is_ok();
        if !ended {
            assert!(is_waiting(place_now.data()), "move {stop_at}");
            take(place_now.data(), &lock).unwrap();
        }
        drop(lock);
        assert!(!is_waiting(place_now.data()));
        let kept = names(place_now.data()).into_iter().find(|name| name.starts_with("before-restore-")).unwrap();
        let kept = place_now.data().join(kept);
        assert_eq!(fs::read_to_string(kept.join("models/old.onnx")).unwrap(), "old", "move {stop_at}");
        assert_eq!(fs::read_to_string(kept.join("history.db")).unwrap(), "old");
        assert!(!place_now.data().join("history.db").exists(), "the backup has none");
        assert_eq!(Log::open(LogConfig::new(&kept)).unwrap().log.head(), Offset(4), "move {stop_at}");
        let (head, facts) = place_now.found();
        assert_eq!((head, facts.cursor, facts.next_event), (11, 11, 1_000_000), "move {stop_at}");
        if ended {
            assert!(stop_at > 8, "{stop_at} moves");
            return;
        }
    }
}

// While a backup waits and no gateway runs, none is made: what is in place may be half of each.
#[test]
fn no_backup_is_made_of_half_a_swap() {
    let place = Place::new();
    place.live(2);
    place.backup().unwrap();
    place.lay_out(&place.to()).unwrap();
    let lock = DirLock::take(place.data()).unwrap();
    let mut moves = 0;
    let cut = take_stepwise(place.data(), &lock, &mut || {
        moves += 1;
        if moves > 3 { Err(io::Error::other("the power is cut")) } else { Ok(()) }
    });
    assert!(cut.is_err());
    drop(lock);
    assert!(matches!(place.backup(), Err(BackupError::Waiting { .. })));
    take(place.data(), &DirLock::take(place.data()).unwrap()).unwrap();
    place.backup().unwrap();
}

// A backup takes the place of data that nothing can read any more, which are kept as well.
#[test]
fn damaged_data_are_replaced_and_kept() {
    let place = Place::new();
    place.live(4);
    place.backup().unwrap();
    for name in ["log.db", "state.db"] {
        fs::write(place.data().join(name), "rubbish").unwrap();
    }
    place.lay_out(&place.to()).unwrap();
    let taken = take(place.data(), &DirLock::take(place.data()).unwrap()).unwrap().unwrap();
    let kept = taken.aside.unwrap();
    assert_eq!(fs::read_to_string(kept.join("state.db")).unwrap(), "rubbish");
    assert_eq!(place.found().0, 5);
}

// A gateway that goes on while a backup waits for its start gives numbers to events; they are not given again.
#[test]
fn events_are_numbered_behind_the_last() {
    let place = Place::new();
    place.live(2);
    place.backup().unwrap();
    place.lay_out(&place.to()).unwrap();
    let state = State::open(place.data()).unwrap().state;
    state.commit(&Checkpoint { next_event: 2_500_000, ..Checkpoint::default() }).unwrap();
    drop(state);
    take(place.data(), &DirLock::take(place.data()).unwrap()).unwrap().unwrap();
    assert_eq!(copy::facts(place.data()).unwrap().next_event, 3_000_000);
}

// A backup in which any byte differs, or that is cut anywhere, is refused; the data are as they were.
#[test]
fn a_damaged_backup_is_refused() {
    let place = Place::new();
    place.live(5);
    let made = place.backup().unwrap();
    let good = fs::read(place.to()).unwrap();
    assert_eq!(made.bytes, good.len() as u64);
    let damaged = place.folder.path().join("damaged.tar");
    let mut tried = 0;
    let step = good.len() / 150;
    for at in (0..good.len()).step_by(step) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        fs::write(&damaged, &bytes).unwrap();
        let flipped = place.lay_out(&damaged);
        // What tar fills up with is nobody's.
        let is_padding = good[at] == 0 && flipped.is_ok();
        if is_padding {
            fs::remove_dir_all(place.data().join(STAGED)).unwrap();
        } else {
            assert!(flipped.is_err(), "byte {at}");
            tried += 1;
        }
        fs::write(&damaged, &good[..at]).unwrap();
        match place.lay_out(&damaged) {
            Err(error) => assert!(matches!(error, BackupError::Damaged { .. }), "cut at {at}: {error}"),
            // The zeros at tar's end.
            Ok(_) => {
                assert!(good[at..].iter().all(|byte| *byte == 0), "cut at {at}");
                fs::remove_dir_all(place.data().join(STAGED)).unwrap();
            }
        }
        assert!(!is_waiting(place.data()) && !place.data().join("restore.part").exists());
    }
    assert!(tried > 50, "{tried}");
    assert_eq!(place.found().0, 6);
}

// An archive that leads out of the folder, or holds anything but parts of a backup, is refused by name.
#[test]
fn other_archives_are_refused() {
    let place = Place::new();
    let path = place.folder.path().join("other.tar");
    for (name, kind) in [
        ("../log.db", tar::EntryType::Regular),
        ("passwd", tar::EntryType::Regular),
        ("log.db", tar::EntryType::Symlink),
    ] {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_cksum();
        tar.append(&header, io::empty()).unwrap();
        fs::write(&path, tar.into_inner().unwrap()).unwrap();
        let error = place.lay_out(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("`{name}` is no part of a backup")), "{error}");
    }
    fs::write(&path, "no archive at all").unwrap();
    assert!(matches!(archive::ArchiveReader::open(&path), Err(BackupError::Damaged { .. })));
}

// Tables that only a later version can read, and a backup of a later form, are refused with the version to install.
#[test]
fn newer_backups_are_refused() {
    let place = Place::new();
    place.live(2);
    let made = place.backup().unwrap();
    let newer = place.folder.path().join("newer.tar");
    for (name, version_at) in [("log.db", 60), ("state.db", 60)] {
        let mut archive = archive::ArchiveReader::open(&place.to()).unwrap();
        let mut writer = archive::ArchiveWriter::create(&newer, 0).unwrap();
        for part in &made.manifest.parts {
            let mut content = Vec::new();
            archive.read_part(part, &mut content, &mut |_| {}).unwrap();
            if part.name == name {
                // Where SQLite keeps `user_version`.
                content[version_at..version_at + 4].copy_from_slice(&99_u32.to_be_bytes());
            }
            writer.add_bytes(&part.name, &content).unwrap();
        }
        writer.finish(made.manifest.clone()).unwrap();
        let error = place.lay_out(&newer).unwrap_err();
        assert!(matches!(error, BackupError::Newer { found: 99, .. }), "{name}: {error}");
        assert!(!place.data().join("restore.part").exists());
    }
    let writer = archive::ArchiveWriter::create(&newer, 0).unwrap();
    writer.finish(super::manifest::Manifest { format: 2, ..made.manifest }).unwrap();
    assert!(matches!(place.lay_out(&newer), Err(BackupError::Newer { found: 2, known: 1, .. })));
}
