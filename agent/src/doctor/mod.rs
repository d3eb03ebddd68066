//! `millwright doctor`: whether a machine is fit for its gateway, and what to do where it is not.
//!
//! Owns the order of the checks and what one says: a verdict, what was found, and a remedy. Changes nothing but for a file of
//! [`disk`] that it writes and removes in the data directory. Every check ends by itself, within seconds. What the system does not tell is
//! said to be unknown, and is no fault.

mod certificates;
mod clock;
mod disk;
mod files;
mod memory;
mod ports;
mod wear;

use std::path::{Path, PathBuf};

use millwright_broker::log::DirLock;
use serde::Serialize;

use crate::config::{Config, ConfigError};

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// The gateway works; somebody should act.
    Warn,
    /// The gateway does not start, or does not keep what it promises.
    Fail,
}

impl Verdict {
    /// As it is printed.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "fail",
        }
    }
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: `disk speed`.
    pub check: &'static str,
    /// How it ended.
    pub verdict: Verdict,
    /// What was found.
    pub text: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, text: impl Into<String>) -> Finding {
        Finding { check, verdict: Verdict::Ok, text: text.into(), remedy: None }
    }

    fn warn(check: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { check, verdict: Verdict::Warn, text: text.into(), remedy: Some(remedy.into()) }
    }

    fn fail(check: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { check, verdict: Verdict::Fail, text: text.into(), remedy: Some(remedy.into()) }
    }
}

/// What the checks look at.
struct Patient<'p> {
    config: &'p Config,
    config_path: &'p Path,
    /// Whether a gateway runs on the data directory, if that can be told.
    runs: Option<bool>,
}

impl Patient<'_> {
    fn data_dir(&self) -> &Path {
        &self.config.gateway.data_dir
    }

    /// The data directory, or the folder in which it would be made.
    fn data_place(&self) -> PathBuf {
        let mut place = self.data_dir();
        while !place.exists() {
            place = match place.parent() {
                Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
                Some(parent) => parent,
                None => Path::new("/"),
            };
        }
        place.to_owned()
    }
}

/// Looks at something and shows what it finds.
type Check = fn(&Patient<'_>, &mut dyn FnMut(Finding));

/// Checks the machine of the gateway with the configuration `config_path`; each finding is shown as soon as it is there.
///
/// # Errors
/// The configuration cannot be read at all.
pub fn examine(config_path: &Path, show: &mut dyn FnMut(Finding)) -> Result<(), ConfigError> {
    let loaded = match Config::load(config_path) {
        Ok(loaded) => loaded,
        Err(ConfigError::Mistakes(found)) => {
            for mistake in &found.mistakes {
                show(Finding::fail(
                    "configuration",
                    mistake.line_for(&found.file),
                    "correct it; the other checks need it",
                ));
            }
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    show(Finding::ok("configuration", format!("{} is fine", config_path.display())));
    for warning in &loaded.warnings {
        let text = warning.line_for(&config_path.display().to_string());
        show(Finding::warn("configuration", text, "see docs/CONFIGURATION.md"));
    }
    let config = &loaded.config;
    let patient = Patient { config, config_path, runs: DirLock::is_held(&config.gateway.data_dir) };
    show(gateway(&patient));
    let checks: [Check; 7] =
        [disk::check, wear::check, clock::check, ports::check, files::check, certificates::check, memory::check];
    checks.iter().for_each(|check| check(&patient, show));
    Ok(())
}

fn gateway(patient: &Patient<'_>) -> Finding {
    const CHECK: &str = "gateway";
    let dir = patient.data_dir().display();
    match patient.runs {
        Some(true) => Finding::ok(CHECK, format!("one runs on {dir}")),
        Some(false) => Finding::ok(CHECK, format!("none runs on {dir}")),
        None => Finding::warn(
            CHECK,
            format!("whether one runs on {dir} cannot be told: the lock in it cannot be read"),
            "run this as the gateway's user, or as root",
        ),
    }
}

/// Bytes as people read them.
fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, word)) => format!("{:.1} {word}", bytes as f64 / *unit as f64),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examined(text: &str) -> (tempfile::TempDir, Vec<Finding>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.toml");
        std::fs::write(&path, text).unwrap();
        let mut found = Vec::new();
        examine(&path, &mut |finding| found.push(finding)).unwrap();
        (folder, found)
    }

    // A configuration with mistakes fails with each of them and nothing else; one that is not there cannot be examined.
    #[test]
    fn mistakes_are_findings() {
        let (_folder, found) = examined("[gateway]\nid = \"a/b\"\n[log]\nquota_mb = 1\n");
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.iter().all(|finding| finding.verdict == Verdict::Fail && finding.check == "configuration"));
        assert!(examine(Path::new("/no/such.toml"), &mut |_| {}).is_err());
    }

    // An examination of a place where no gateway has run yet makes no data directory and leaves nothing behind.
    #[test]
    fn an_examination_leaves_nothing_behind() {
        let listen = "[broker]\nlisten = \"127.0.0.1:0\"\n[http]\nlisten = \"127.0.0.1:0\"\n";
        let (folder, found) = examined(&format!("[gateway]\nid = \"gw\"\n{listen}"));
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["gateway.toml"], "{found:?}");
        for check in ["configuration", "gateway", "data directory", "disk speed", "space", "clock", "ports", "memory"] {
            assert!(found.iter().any(|finding| finding.check == check), "{check} is missing in {found:?}");
        }
    }
}
