//! A gateway as a process of its own, with its configuration, its folder and its log output.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use anyhow::Context;
use serde_json::Value;

use crate::client::{Client, Connect};
use crate::wait_for;

/// A running gateway; it is killed when dropped.
#[derive(Debug)]
pub struct Gateway {
    child: Child,
    dir: PathBuf,
    /// Where MQTT clients connect.
    pub mqtt: SocketAddr,
    /// Where HTTP clients connect.
    pub http: SocketAddr,
    log: Arc<Mutex<String>>,
}

impl Gateway {
    /// Starts `program run` on `dir` with a configuration of `extra` sections added to ports chosen by the system, and
    /// waits until it serves.
    ///
    /// # Errors
    /// It does not come up; the error holds its log.
    pub fn start(program: &str, dir: &Path, extra: &str) -> anyhow::Result<Gateway> {
        Gateway::start_logging(program, dir, extra, "info,tract=off")
    }

    /// The same with a filter for its log, as in `RUST_LOG`.
    ///
    /// # Errors
    /// It does not come up; the error holds its log.
    pub fn start_logging(program: &str, dir: &Path, extra: &str, filter: &str) -> anyhow::Result<Gateway> {
        Gateway::start_in(program, dir, extra, &[("RUST_LOG", filter)])
    }

    /// The same with variables of its environment.
    ///
    /// # Errors
    /// It does not come up; the error holds its log.
    pub fn start_in(program: &str, dir: &Path, extra: &str, environment: &[(&str, &str)]) -> anyhow::Result<Gateway> {
        let config = write_config(dir, extra)?;
        let mut child = Command::new(program)
            .arg("run")
            .arg("--config")
            .arg(&config)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let log = Arc::new(Mutex::new(String::new()));
        let stderr = child.stderr.take().context("the child's stderr is piped")?;
        let kept = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if let Ok(mut kept) = kept.lock() {
                    kept.push_str(&line);
                    kept.push('\n');
                }
            }
        });
        let served = wait_for("the gateway to serve", || {
            let text = log.lock().map(|text| text.clone()).unwrap_or_default();
            let line = text.lines().find(|line| line.contains("serving mqtt="))?.to_owned();
            Some((address(&line, "mqtt=")?, address(&line, "http=")?))
        });
        match served {
            Ok((mqtt, http)) => Ok(Gateway { child, dir: dir.to_owned(), mqtt, http, log }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                let text = log.lock().map(|text| text.clone()).unwrap_or_default();
                Err(error.context(text))
            }
        }
    }

    /// Kills it as a power cut would: SIGKILL, no word of warning.
    ///
    /// # Errors
    /// The process cannot be killed.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to stop with SIGTERM and waits; returns its exit status.
    ///
    /// # Errors
    /// It does not stop.
    pub fn terminate(mut self) -> anyhow::Result<Option<i32>> {
        self.signal("TERM")?;
        let status = wait_for("the gateway to stop", || self.child.try_wait().ok().flatten())?;
        Ok(status.code())
    }

    /// Whether the process runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Where it says it serves MQTT over these layers: `tls`, `ws` or `wss`.
    pub fn over(&self, layers: &str) -> Option<SocketAddr> {
        let log = self.log();
        let line =
            log.lines().find(|line| line.contains("serving MQTT") && line.contains(&format!("layers=\"{layers}\"")))?;
        address(line, "address=")
    }

    /// Sends it a signal by name.
    ///
    /// # Errors
    /// There is no such process.
    pub fn signal(&self, name: &str) -> anyhow::Result<()> {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status()?;
        anyhow::ensure!(sent.success(), "the signal could not be sent");
        Ok(())
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().map(|text| text.clone()).unwrap_or_default()
    }

    /// Its data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// GET on its HTTP address: status and body.
    ///
    /// # Errors
    /// It does not answer.
    pub fn get(&self, path: &str) -> anyhow::Result<(u16, String)> {
        let config = ureq::Agent::config_builder().http_status_as_error(false).build();
        let agent = ureq::Agent::new_with_config(config);
        let mut answer = agent.get(format!("http://{}{path}", self.http)).call()?;
        Ok((answer.status().as_u16(), answer.body_mut().read_to_string()?))
    }

    /// Whether it serves: it runs, no task of it has panicked, `/healthz` is 200, and a message goes from one new client to
    /// another at QoS 0 and at QoS 1.
    ///
    /// # Errors
    /// What does not work.
    pub fn check_serves(&mut self) -> anyhow::Result<()> {
        anyhow::ensure!(self.is_running(), "the process has ended:\n{}", self.log());
        anyhow::ensure!(!self.log().contains("panicked"), "a task has panicked:\n{}", self.log());
        let (status, body) = self.get("/healthz")?;
        anyhow::ensure!(status == 200, "/healthz: {status} {body}");
        for qos in [0, 1] {
            let topic = format!("check/{qos}");
            let mut subscriber = Client::connect(self.mqtt, &Connect::new("check-subscriber"))?;
            anyhow::ensure!(subscriber.subscribe(&topic, qos)? == qos, "the subscription is refused");
            let mut publisher = Client::connect(self.mqtt, &Connect::new("check-publisher"))?;
            publisher.publish(&topic, b"here", false)?;
            let delivery = subscriber.next_delivery()?;
            anyhow::ensure!(delivery.topic == topic && delivery.payload == b"here", "{delivery:?}");
        }
        Ok(())
    }

    /// Its status.
    ///
    /// # Errors
    /// It does not answer.
    pub fn status(&self) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.get("/api/v1/status")?.1)?)
    }

    /// One asset's part of the status, if it is known.
    ///
    /// # Errors
    /// The gateway does not answer.
    pub fn asset(&self, name: &str) -> anyhow::Result<Option<Value>> {
        let status = self.status()?;
        let assets = status.pointer("/pipeline/assets").and_then(Value::as_array);
        Ok(assets.and_then(|assets| assets.iter().find(|asset| asset["asset"] == name)).cloned())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes `gateway.toml` into `dir`; ports are chosen by the system.
///
/// # Errors
/// The folder is not writable.
pub fn write_config(dir: &Path, extra: &str) -> anyhow::Result<PathBuf> {
    let path = dir.join("gateway.toml");
    let has = |section: &str| extra.lines().any(|line| line.trim() == section);
    let mut text = String::new();
    if !has("[gateway]") {
        text.push_str("[gateway]\nid = \"gw-1\"\ndata_dir = \"data\"\n");
    }
    for section in ["[broker]", "[http]"] {
        if !has(section) {
            text.push_str(&format!("{section}\nlisten = \"127.0.0.1:0\"\n"));
        }
    }
    text.push_str(extra);
    std::fs::write(&path, text)?;
    Ok(path)
}

/// Runs the program to its end.
///
/// # Errors
/// It cannot be started, or it does not end; it is killed then.
pub fn run(program: &str, arguments: &[&str]) -> anyhow::Result<Output> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // Both are read while it runs: a full pipe would hold it up.
    let stdout = child.stdout.take().context("the child's stdout is piped")?;
    let stderr = child.stderr.take().context("the child's stderr is piped")?;
    let stdout = std::thread::spawn(move || bytes_of(stdout));
    let stderr = std::thread::spawn(move || bytes_of(stderr));
    let ended = wait_for(&format!("`{}` to end", arguments.join(" ")), || child.try_wait().ok().flatten());
    if ended.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let (stdout, stderr) = (stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default());
    let status = ended.with_context(|| String::from_utf8_lossy(&stderr).into_owned())?;
    Ok(Output { status, stdout, stderr })
}

fn bytes_of(mut stream: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    bytes
}

/// Reads the messages of a log file behind an offset with plain SQLite: offset, topic, payload.
///
/// # Errors
/// The file cannot be read.
pub fn read_log_after(data_dir: &Path, offset: i64) -> anyhow::Result<Vec<(i64, String, Vec<u8>)>> {
    use rusqlite::{Connection, OpenFlags};
    let path = data_dir.join("log.db");
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let tables: Vec<String> = connection
        .prepare("SELECT name FROM sqlite_master WHERE type = 'table' AND name GLOB 'message_[0-9]*' ORDER BY name")?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let mut rows = Vec::new();
    for table in tables {
        let mut statement = connection.prepare(&format!(
            "SELECT m.offset, t.name, m.payload FROM {table} m JOIN topic t ON t.id = m.topic WHERE m.offset > ?1 \
             ORDER BY m.offset"
        ))?;
        let found = statement.query_map([offset], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        for row in found {
            rows.push(row?);
        }
    }
    Ok(rows)
}

fn address(line: &str, key: &str) -> Option<SocketAddr> {
    line.split(key).nth(1)?.split_whitespace().next()?.parse().ok()
}
