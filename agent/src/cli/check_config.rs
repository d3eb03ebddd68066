//! `millwright check-config FILE`: every mistake of a configuration at once.
//!
//! Owns the two ways of telling them: lines on stderr for people, one JSON object on stdout for programs. Never
//! starts anything.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use millwright_broker::TlsError;
use serde::Serialize;

use crate::config::{Config, ConfigError, Format, Loaded, Mistake};

/// The exit status of a wrong configuration.
const MISTAKEN: u8 = 2;

/// What `--json` prints.
#[derive(Serialize)]
struct Outcome<'o> {
    file: String,
    ok: bool,
    mistakes: &'o [Mistake],
    warnings: &'o [Mistake],
    /// Set if the file, or one that it names, could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Checks `path` and tells the outcome; the exit status is 0 without mistakes, else 2.
pub(super) fn run(path: &Path, json: bool) -> ExitCode {
    match check(path, json, &mut io::stdout().lock(), &mut io::stderr().lock()) {
        Ok(status) => ExitCode::from(status),
        // Nobody reads on: a closed pipe is not the configuration's mistake, but nothing was told.
        Err(_) => ExitCode::FAILURE,
    }
}

fn check(path: &Path, json: bool, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<u8> {
    let file = path.display().to_string();
    let (mistakes, warnings, error, summary) = match Config::load(path) {
        Ok(Loaded { config, warnings }) => match check_certificates(&config) {
            Err(error) => (Vec::new(), warnings, Some(error.to_string()), None),
            Ok(()) => (Vec::new(), warnings, None, Some(summary(&file, &config))),
        },
        Err(ConfigError::Mistakes(found)) => (found.mistakes, found.warnings, None, None),
        Err(error) => (Vec::new(), Vec::new(), Some(error.to_string()), None),
    };
    let status = if summary.is_some() { 0 } else { MISTAKEN };
    for mistake in &mistakes {
        writeln!(err, "{}", mistake.line_for(&file))?;
    }
    for warning in &warnings {
        writeln!(err, "warning: {}", warning.line_for(&file))?;
    }
    if let Some(error) = &error {
        writeln!(err, "{error}")?;
    }
    if json {
        let outcome = Outcome { file, ok: status == 0, mistakes: &mistakes, warnings: &warnings, error };
        serde_json::to_writer(&mut *out, &outcome)?;
        writeln!(out)?;
    } else if let Some(summary) = summary {
        writeln!(out, "{summary}")?;
    }
    Ok(status)
}

/// Whether the files of all TLS listeners could serve now.
fn check_certificates(config: &Config) -> Result<(), TlsError> {
    let mqtt = config.broker.tls.as_ref().map(|tls| &tls.files);
    mqtt.into_iter().chain(&config.http.tls).try_for_each(|files| files.check().map(|_| ()))
}

/// What the configuration amounts to, in one line.
fn summary(file: &str, config: &Config) -> String {
    let formats: Vec<&str> = config.sources.iter().map(|source| Format::word(&source.format)).collect();
    let sources = if formats.is_empty() { "none".to_owned() } else { formats.join(", ") };
    format!(
        "{file}: fine: gateway {}, MQTT on {}, {} users, HTTP on {}, data in {}, sources: {sources}",
        config.gateway.id,
        config.broker.listen,
        config.broker.users.len(),
        config.http.listen,
        config.gateway.data_dir.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str, json: bool) -> (u8, String, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.toml");
        std::fs::write(&path, text).unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let status = check(&path, json, &mut out, &mut err).unwrap();
        let plain =
            |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().replace(&format!("{}/", folder.path().display()), "");
        (status, plain(out), plain(err))
    }

    // A sound file is summed up in one line, and the exit status is 0.
    #[test]
    fn a_sound_file_is_summed_up() {
        let (status, out, err) = checked("[gateway]\nid = \"gw-1\"\n", false);
        assert_eq!(
            out,
            "gateway.toml: fine: gateway gw-1, MQTT on 127.0.0.1:1883, 0 users, HTTP on 127.0.0.1:8080, data in data, \
             sources: none\n"
        );
        assert_eq!((status, err.as_str()), (0, ""));
    }

    // Mistakes go to stderr, one line each, and the exit status is 2.
    #[test]
    fn mistakes_are_told_at_once() {
        let (status, out, err) = checked("[gateway]\nid = \"a/b\"\n[log]\nquota_mb = 1\n", false);
        assert_eq!((status, out.as_str()), (2, ""));
        assert_eq!(err.lines().count(), 2, "{err}");
        assert!(err.starts_with("gateway.toml:2:6: [gateway] id: `a/b` is not a gateway name"), "{err}");
    }

    // With --json, stdout is one JSON object that holds the same.
    #[test]
    fn json_holds_the_same() {
        let (status, out, _) = checked("[gateway]\nid = \"gw\"\n[log]\nquota_mb = 1\n", true);
        let outcome: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(status, 2);
        assert_eq!(outcome["ok"], false);
        assert_eq!(outcome["mistakes"][0]["line"], 4);
        assert_eq!(outcome["mistakes"][0]["place"], "[log] quota_mb");
        let (status, out, _) = checked("[gateway]\nid = \"gw\"\n", true);
        assert_eq!(status, 0);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&out).unwrap()["ok"], true);
    }

    // A file that is not there is named, with the same exit status.
    #[test]
    fn a_missing_file_is_named() {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let status = check(Path::new("/nowhere/gateway.toml"), false, &mut out, &mut err).unwrap();
        assert_eq!(status, 2);
        let err = String::from_utf8(err).unwrap();
        assert!(err.starts_with("/nowhere/gateway.toml: cannot be read: "), "{err}");
    }
}
