//! docs/SECURITY.md, walked through: its blocks of commands and configuration in their order, with the real program.
//!
//! Of what the document says only the ports are changed, since others may have them. mosquitto's tools and openssl are left
//! out where they are not installed, unless `MILLWRIGHT_REQUIRE_CLIENTS=1` says that they have to be there.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use harness::gateway::{Gateway, write_config};
use harness::wait_for;
use tempfile::TempDir;

use crate::PROGRAM;

const DOCUMENT: &str = include_str!("../../docs/SECURITY.md");

/// A fenced block: what its fence says, and its lines.
fn blocks() -> Vec<(&'static str, &'static str)> {
    let mut parts = DOCUMENT.split("\n```").skip(1);
    let mut blocks = Vec::new();
    // Every second part is the text behind a block.
    while let Some(block) = parts.next() {
        blocks.push(block.split_once('\n').unwrap_or_else(|| panic!("a block ends at once: {block}")));
        parts.next();
    }
    blocks
}

/// A reader of the document: its folder, and the gateway once it runs.
struct Walk {
    dir: TempDir,
    config: String,
    gateway: Option<Gateway>,
}

impl Walk {
    fn begin() -> Walk {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(PROGRAM, dir.path().join("millwright")).unwrap();
        Walk { dir, config: String::new(), gateway: None }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Takes the configuration, with the hash that was made and ports that the system chooses.
    fn configure(&mut self, text: &str) {
        let hash = fs::read_to_string(self.path().join("ann.hash")).unwrap();
        let mut config = text.replace("HASH", hash.trim());
        for port in [":1883\"", ":8883\"", ":8884\""] {
            assert!(config.contains(port), "no {port} in {config}");
            config = config.replace(port, ":0\"");
        }
        write_config(self.path(), &config).unwrap();
        self.config = config;
    }

    fn start(&mut self) {
        self.gateway = None;
        let gateway = Gateway::start(PROGRAM, self.path(), &self.config).unwrap();
        fs::write(self.path().join("gateway.pid"), gateway.pid().to_string()).unwrap();
        self.gateway = Some(gateway);
    }

    /// Runs one line of a block.
    fn line(&self, line: &str) -> Output {
        let tls = self.gateway.as_ref().and_then(|gateway| gateway.listener("tls"));
        let line = tls.map_or_else(|| line.to_owned(), |tls| line.replace("8883", &tls.port().to_string()));
        let path = format!("{}:{}", self.path().display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("sh");
        command.args(["-c", &line]).current_dir(self.path()).env("PATH", path).stdin(Stdio::null());
        command.output().unwrap()
    }

    /// A line that has to succeed; what it printed.
    fn succeeds(&self, line: &str) -> String {
        let output = self.line(line);
        let (told, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{line}\n{told}{said}\n{}", self.log());
        told.into_owned()
    }

    /// A line that has to be refused, and to say so.
    fn fails(&self, line: &str) {
        let output = self.line(line);
        let (told, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(!output.status.success() || said.contains("denied"), "{line}\n{told}{said}\n{}", self.log());
        assert!(!said.is_empty() && !said.contains("Timed out"), "{line}\n{said}\n{}", self.log());
    }

    fn log(&self) -> String {
        self.gateway.as_ref().map(Gateway::log).unwrap_or_default()
    }
}

/// Whether the tool of a line is there.
fn has_tool(line: &str) -> bool {
    let tool = line.split_whitespace().next().unwrap();
    if !tool.starts_with("mosquitto_") && tool != "openssl" {
        return true;
    }
    let found = Command::new("sh").args(["-c", &format!("command -v {tool}")]).output().unwrap().status.success();
    let required = std::env::var("MILLWRIGHT_REQUIRE_CLIENTS").is_ok_and(|value| value == "1");
    assert!(found || !required, "there is no `{tool}`; `.ci/run` installs it");
    found
}

// Every command of docs/SECURITY.md works as it is written there, in its order; those that it says fail do so. What was
// renewed serves without a restart, and the client whose certificate was revoked is kept out while another gets in.
#[test]
fn the_security_document_works() {
    let mut walk = Walk::begin();
    let mut commands = 0;
    for (kind, text) in blocks() {
        match kind {
            "toml" => walk.configure(text),
            "sh" | "sh fails" => {
                for line in text.lines().filter(|line| has_tool(line)) {
                    commands += 1;
                    match kind {
                        _ if line.starts_with("millwright run ") => walk.start(),
                        "sh" => drop(walk.succeeds(line)),
                        _ => walk.fails(line),
                    }
                }
            }
            other => panic!("nobody tests blocks of `{other}`"),
        }
    }
    assert!(commands >= 12, "only {commands} commands were found");
    wait_for("the renewed certificate", || walk.log().contains("new certificates serve from now on").then_some(()))
        .unwrap();
    // Nor does the log tell what is secret.
    for secret in ["correct horse", "wrong horse", "$argon2", "PRIVATE KEY"] {
        assert!(!walk.log().contains(secret), "the log holds `{secret}`:\n{}", walk.log());
    }
    if !has_tool("openssl ca") || !has_tool("mosquitto_pub") {
        return;
    }
    let (line, list) = ("client_certificate = \"optional\"", "client_crl = \"tls/revoked.crl\"");
    walk.config = walk.config.replace(line, &format!("{line}\n{list}"));
    walk.start();
    let publish = |press: &str| {
        format!(
            "mosquitto_pub --cafile tls/ca.crt --cert tls/{press}.crt --key tls/{press}.key -h 127.0.0.1 -p 8883 -q 1 \
             -t mw/v1/telemetry/{press}/json -m 1"
        )
    };
    walk.succeeds(&publish("press-7"));
    walk.fails(&publish("press-8"));
}
