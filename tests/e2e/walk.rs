//! `docs/SECURITY.md`, walked from top to bottom: its configuration is used, its commands are run.

use std::path::Path;
use std::process::{Command, Stdio};

use harness::gateway::Gateway;

use crate::PROGRAM;

/// A fenced block of the document.
struct Block<'d> {
    language: &'d str,
    text: &'d str,
}

fn blocks(document: &str) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    let mut rest = document;
    while let Some((_, after)) = rest.split_once("```") {
        let (language, after) = after.split_once('\n').unwrap();
        let (text, after) = after.split_once("```").unwrap();
        blocks.push(Block { language, text });
        rest = after;
    }
    blocks
}

/// The configuration so far, with a block's keys added to the sections that are there.
fn merge(config: &str, block: &str) -> String {
    let mut config = config.to_owned();
    for section in block.split("\n\n") {
        let (head, keys) = section.trim().split_once('\n').unwrap();
        let place = (!head.starts_with("[[")).then(|| config.find(&format!("{head}\n"))).flatten();
        match place {
            Some(at) => config.insert_str(at + head.len() + 1, &format!("{keys}\n")),
            None => config.push_str(&format!("\n{head}\n{keys}\n")),
        }
    }
    config
}

fn is_there(tool: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {tool}")]).stdout(Stdio::null()).status();
    found.is_ok_and(|status| status.success())
}

/// What commands have printed and the document leaves out.
#[derive(Default)]
struct Printed {
    password_hash: String,
    model_key: String,
}

/// What is written into `gateway.toml`: any port, and what was printed before.
fn on_any_port(config: &str, printed: &Printed) -> String {
    let any = ["127.0.0.1:1883", "0.0.0.0:8883", "0.0.0.0:9002", "0.0.0.0:8443"];
    let config = any.iter().fold(config.to_owned(), |text, listen| text.replace(listen, "127.0.0.1:0"));
    config.replace("$argon2id$…", &printed.password_hash).replace("ed25519:…", &printed.model_key)
}

/// A command, and a line of what it is to print, if the document shows one.
fn commands(text: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    let lines: Vec<&str> = text.lines().collect();
    let shown = |at: usize| lines.get(at + 1).filter(|next| !next.starts_with("$ ")).copied();
    let found: Vec<_> =
        lines.iter().enumerate().filter_map(|(at, line)| Some((line.strip_prefix("$ ")?, shown(at)))).collect();
    found.into_iter()
}

/// Runs a command of the document in `dir`; gives what it printed.
fn run(dir: &Path, (command, shown): (&str, Option<&str>), gateway: Option<&Gateway>) -> String {
    let refused = command.ends_with("# refused");
    let port = gateway.and_then(|gateway| gateway.over("tls")).map_or(8883, |addr| addr.port());
    let http = gateway.map_or(8443, |gateway| gateway.http.port());
    let line = command.replace("gw-1.local", "localhost");
    let line = line.replace("8883", &port.to_string()).replace("8443", &http.to_string());
    let path = format!("{}:{}", dir.join("bin").display(), std::env::var("PATH").unwrap_or_default());
    let output = Command::new("sh").args(["-c", &line]).current_dir(dir).env("PATH", path).output().unwrap();
    let told = format!(
        "{line}\n{}{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
        gateway.map(Gateway::log).unwrap_or_default()
    );
    assert_eq!(output.status.success(), !refused, "{told}");
    assert!(shown.is_none_or(|shown| told.contains(shown)), "{told}");
    String::from_utf8(output.stdout).unwrap()
}

// Every command of docs/SECURITY.md does what the text says: it succeeds, or is refused where it says so.
#[test]
fn the_security_walk() {
    let document = include_str!("../../docs/SECURITY.md");
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("bin")).unwrap();
    std::os::unix::fs::symlink(PROGRAM, dir.path().join("bin/millwright")).unwrap();
    let has_mosquitto = is_there("mosquitto_pub");
    assert!(
        has_mosquitto || std::env::var("MILLWRIGHT_REQUIRE_CLIENTS").is_err(),
        "mosquitto_pub is not installed; `.ci/run` installs it"
    );
    let (mut config, mut printed, mut gateway) = (String::new(), Printed::default(), None);
    let mut count = 0;
    for Block { language, text } in blocks(document) {
        if language == "toml" {
            config = merge(&config, text);
            std::fs::write(dir.path().join("gateway.toml"), on_any_port(&config, &printed)).unwrap();
            continue;
        }
        for (command, shown) in commands(text) {
            count += 1;
            if command.starts_with("millwright run") {
                // The one before ends first: they share a folder.
                drop(gateway.take());
                let config = on_any_port(&config, &printed);
                gateway = Some(Gateway::start(PROGRAM, dir.path(), &config).unwrap());
            } else if command.starts_with("mosquitto") && !has_mosquitto {
                eprintln!("not run, mosquitto is not installed: {command}");
            } else {
                let command = command.replace("/tmp", ".");
                let text = run(dir.path(), (&command, shown), gateway.as_ref());
                if command.contains("passwd") {
                    printed.password_hash = text.trim().to_owned();
                } else if command.contains("keygen") {
                    printed.model_key = text.lines().next().unwrap().to_owned();
                }
            }
        }
    }
    assert!(count > 15, "the document has {count} commands");
}

// The limits that docs/SECURITY.md lists have the defaults that docs/CONFIGURATION.md, which is held to the code, gives them.
#[test]
fn the_limits_are_those_of_the_configuration() {
    let rows = |document: &'static str| {
        document.lines().filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split(" | ");
            let name = cells.next()?.strip_suffix('`')?;
            Some((name, cells.next()?))
        })
    };
    let configuration: Vec<_> = rows(include_str!("../../docs/CONFIGURATION.md")).collect();
    let limits: Vec<_> = rows(include_str!("../../docs/SECURITY.md")).filter(|(name, _)| name.contains('_')).collect();
    assert!(limits.len() > 10, "{limits:?}");
    for limit in limits {
        assert!(configuration.contains(&limit), "{limit:?} is not what docs/CONFIGURATION.md says");
    }
}
