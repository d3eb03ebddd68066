//! Files that hold secrets: nobody else may read them, and the gateway can.
//!
//! Never reads what they hold. Run by the superuser, it asks for whoever owns the data directory.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::Access;

use super::{Finding, Patient};
use crate::config::files;

const CHECK: &str = "secrets";
const CONFIG: &str = "secrets";

const GROUP_READS: u32 = 0o040;
const OTHERS: u32 = 0o007;

pub(super) fn check(patient: &Patient<'_>, show: &mut dyn FnMut(Finding)) {
    let user = gateway_user(patient);
    let mut sound = 0;
    for file in files::named(patient.config).into_iter().filter(|file| file.kind.is_secret()) {
        match secret(&file.place, file.path, user) {
            None => sound += 1,
            Some(finding) => show(finding),
        }
    }
    if sound > 0 {
        show(Finding::ok(CHECK, format!("{sound} files are readable by their owner alone")));
    }
    show(config_file(patient));
}

/// User and group of the gateway, if it is not who runs this.
fn gateway_user(patient: &Patient<'_>) -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    fs::metadata(patient.data_dir()).ok().map(|found| (found.uid(), found.gid())).filter(|(uid, _)| *uid != 0)
}

fn secret(place: &str, path: &Path, user: Option<(u32, u32)>) -> Option<Finding> {
    let shown = path.display();
    let found = match fs::metadata(path) {
        Ok(found) => found,
        Err(error) => {
            let text = format!("{place}: {shown}: {error}");
            return Some(Finding::fail(CHECK, text, "put the file there, or correct the path"));
        }
    };
    let mode = found.mode();
    let open = |who: &str| format!("{place}: {who} on this machine may use {shown} (mode {:o})", mode & 0o777);
    if mode & OTHERS != 0 {
        return Some(Finding::fail(CHECK, open("everybody"), format!("chmod 600 {shown}; then take a new secret")));
    }
    let is_readable = match user {
        None => rustix::fs::access(path, Access::READ_OK).is_ok(),
        Some((uid, gid)) => may_read(&found, uid, gid),
    };
    if !is_readable {
        let text = format!("{place}: the gateway's user cannot read {shown}");
        return Some(Finding::fail(
            CHECK,
            text,
            "chown it to that user; if this is not that user, run this as that user",
        ));
    }
    if mode & GROUP_READS != 0 {
        return Some(Finding::warn(CHECK, open("its group"), format!("chmod 600 {shown}, unless that is meant")));
    }
    None
}

fn may_read(found: &Metadata, uid: u32, gid: u32) -> bool {
    let bit = match (found.uid() == uid, found.gid() == gid) {
        (true, _) => 0o400,
        (false, true) => 0o040,
        (false, false) => 0o004,
    };
    found.mode() & bit != 0
}

/// The configuration holds hashes of passwords, which can be tried out by whoever has them.
fn config_file(patient: &Patient<'_>) -> Finding {
    let shown = patient.config_path.display();
    let hashes = patient.config.broker.users.len() + patient.config.http.users.len();
    let mode = fs::metadata(patient.config_path).map_or(0, |found| found.mode());
    if hashes > 0 && mode & OTHERS != 0 {
        let text = format!("everybody on this machine may read the {hashes} password hashes in {shown}");
        return Finding::warn(CONFIG, text, format!("chmod 640 {shown}, with the gateway's group"));
    }
    Finding::ok(CONFIG, format!("{shown} holds {hashes} password hashes"))
}
