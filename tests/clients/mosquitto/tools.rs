//! The command-line tools as processes: what they are told, and what they print.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, bail, ensure};
use harness::wait_for;

use crate::kind::Turn;

/// How a message is printed: a mark, then its fields; topics and texts of the scenarios hold no `|`.
const FORMAT_V311: &str = "=|%q|%r|%t|%x";
const FORMAT_V5: &str = "=|%q|%r|%t|%x|%C|%D|%E|%P|%R|%S";

/// A message that mosquitto_sub printed.
#[derive(Debug, Clone, Default)]
pub(super) struct Message {
    pub(super) topic: String,
    pub(super) payload: Vec<u8>,
    pub(super) qos: u8,
    pub(super) retain: bool,
    pub(super) content_type: String,
    pub(super) correlation_data: String,
    pub(super) expiry_s: Option<u32>,
    /// As printed: `name:value name:value`.
    pub(super) user_properties: String,
    pub(super) response_topic: String,
    pub(super) identifier: Option<u32>,
}

impl Message {
    fn parse(line: &str) -> Option<Message> {
        let mut fields = line.strip_prefix("=|")?.split('|');
        let mut field = || fields.next().unwrap_or_default().to_owned();
        let (qos, retain, topic, payload) = (field().parse().ok()?, field() == "1", field(), unhex(&field())?);
        let (content_type, correlation_data, expiry) = (field(), field(), field());
        Some(Message {
            topic,
            payload,
            qos,
            retain,
            content_type,
            correlation_data,
            expiry_s: expiry.parse().ok(),
            user_properties: field(),
            response_topic: field(),
            identifier: field().parse().ok(),
        })
    }

    /// The payload as text.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

/// A tool with the options that all share. Into a pipe the tools print by the block: stdbuf makes that by the line.
pub(super) fn tool(turn: &Turn, name: &str) -> Command {
    let mut command = Command::new("stdbuf");
    command.args(["-oL", name]).args(["-h", &turn.papers.host, "-p", &turn.broker.port().to_string()]);
    command.args(["-V", if turn.is_v5() { "mqttv5" } else { "mqttv311" }]);
    if let Some(authority) = &turn.papers.authority {
        command.arg("--cafile").arg(authority);
    }
    if let Some((certificate, key)) = &turn.papers.certificate {
        command.arg("--cert").arg(certificate).arg("--key").arg(key);
    }
    if let Some((user, password)) = turn.papers.login {
        command.args(["-u", user, "-P", password]);
    }
    command
}

/// What a tool says of its version.
pub(super) fn version(tool: &str) -> Option<String> {
    // `--help` ends with a status of its own.
    let output = Command::new(tool).arg("--help").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().find(|line| line.contains("version") || line.starts_with("Usage")).map(str::to_owned)
}

/// A running mosquitto_sub; it is killed when dropped.
#[derive(Debug)]
pub(super) struct Sub<'a> {
    turn: &'a Turn,
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    /// Lines that were looked at for messages.
    read: usize,
    /// The codes of the SUBACK.
    pub(super) codes: Vec<u8>,
}

impl Drop for Sub<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl<'a> Sub<'a> {
    /// Subscribes to filters below the prefix at `qos`, and waits for the SUBACK.
    pub(super) fn new(turn: &'a Turn, name: &str, qos: u8, filters: &[&str], more: &[&str]) -> anyhow::Result<Sub<'a>> {
        let filters: Vec<String> = filters.iter().map(|rest| turn.topic(rest)).collect();
        Sub::raw(turn, name, qos, &filters, more)
    }

    /// The same with filters as they stand; without a name, without an identifier.
    pub(super) fn raw(
        turn: &'a Turn,
        name: &str,
        qos: u8,
        filters: &[String],
        more: &[&str],
    ) -> anyhow::Result<Sub<'a>> {
        let mut command = tool(turn, "mosquitto_sub");
        command.args(["-d", "-q", &qos.to_string(), "-F", if turn.is_v5() { FORMAT_V5 } else { FORMAT_V311 }]);
        if !name.is_empty() {
            command.args(["-i", &turn.client_id(name)]);
        }
        for filter in filters {
            command.args(["-t", filter]);
        }
        command.args(more).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        collect(child.stdout.take().context("stdout is piped")?, &lines);
        collect(child.stderr.take().context("stderr is piped")?, &lines);
        let mut sub = Sub { turn, child, lines, read: 0, codes: Vec::new() };
        let line = sub.line_with("Subscribed (mid:")?;
        let codes = line.rsplit("): ").next().unwrap_or_default();
        sub.codes = codes.split(", ").map(str::parse).collect::<Result<_, _>>().context(line.clone())?;
        Ok(sub)
    }

    /// Makes a session that is kept, and leaves.
    pub(super) fn keep(turn: &Turn, name: &str, qos: u8, filters: &[&str]) -> anyhow::Result<()> {
        let mut more = kept(turn);
        more.push("-E");
        let mut sub = Sub::new(turn, name, qos, filters, &more)?;
        wait_for("mosquitto_sub to leave", || sub.child.try_wait().ok().flatten())?;
        Ok(())
    }

    fn text(&self) -> String {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }

    /// The `count`th line that contains `text`, once it is printed.
    pub(super) fn line_of(&self, text: &str, count: usize) -> anyhow::Result<String> {
        let found = wait_for(&format!("mosquitto_sub to print `{text}`"), || {
            let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            lines.iter().filter(|line| line.contains(text)).nth(count - 1).cloned()
        });
        found.with_context(|| brief(&self.text()))
    }

    pub(super) fn line_with(&self, text: &str) -> anyhow::Result<String> {
        self.line_of(text, 1)
    }

    /// The messages printed so far, taken or not.
    pub(super) fn printed(&self) -> usize {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().filter(|line| line.starts_with("=|")).count()
    }

    /// The next message.
    pub(super) fn next(&mut self) -> anyhow::Result<Message> {
        let read = &mut self.read;
        let found = wait_for("a message", || {
            let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            let ahead = lines.iter().skip(*read).position(|line| line.starts_with("=|"))?;
            *read += ahead + 1;
            lines.get(*read - 1).cloned()
        });
        let line = found.with_context(|| brief(&self.text()))?;
        Message::parse(&line).with_context(|| brief(&line))
    }

    /// The next message, which must be this one.
    pub(super) fn expect(&mut self, rest: &str, payload: impl AsRef<[u8]>, qos: u8) -> anyhow::Result<Message> {
        let message = self.next()?;
        let topic = self.turn.topic(rest);
        ensure!(
            (message.topic.as_str(), &message.payload[..], message.qos) == (topic.as_str(), payload.as_ref(), qos),
            "expected {topic} at QoS {qos} with {:?}, got {} at QoS {} with {:?}",
            brief(&String::from_utf8_lossy(payload.as_ref())),
            message.topic,
            message.qos,
            brief(&message.text())
        );
        Ok(message)
    }

    /// The messages before the next one on this topic: nothing else is on its way once it is here.
    pub(super) fn until(&mut self, rest: &str) -> anyhow::Result<Vec<Message>> {
        let (end, mut before) = (self.turn.topic(rest), Vec::new());
        loop {
            let message = self.next()?;
            if message.topic == end {
                return Ok(before);
            }
            before.push(message);
        }
    }
}

/// The options of a session that is kept for longer than any run.
pub(super) fn kept(turn: &Turn) -> Vec<&'static str> {
    if turn.is_v5() { vec!["-c", "-x", "3600"] } else { vec!["-c"] }
}

fn collect(stream: impl Read + Send + 'static, lines: &Arc<Mutex<Vec<String>>>) {
    let lines = Arc::clone(lines);
    std::thread::spawn(move || {
        // Split by the byte: a property that is printed need not be text.
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
    });
}

/// The end of a long text.
fn brief(text: &str) -> String {
    let skipped = text.chars().count().saturating_sub(2_000);
    text.chars().skip(skipped).collect()
}

/// Publishes below the prefix; the tool ends when the message is acknowledged.
pub(super) fn publish(
    turn: &Turn,
    rest: &str,
    payload: impl AsRef<[u8]>,
    qos: u8,
    more: &[&str],
) -> anyhow::Result<()> {
    publish_to(turn, &turn.topic(rest), payload, qos, more)
}

/// The same to a topic as it stands.
pub(super) fn publish_to(
    turn: &Turn,
    topic: &str,
    payload: impl AsRef<[u8]>,
    qos: u8,
    more: &[&str],
) -> anyhow::Result<()> {
    let payload = payload.as_ref();
    // `-n` is the empty message, `-s` reads one message from stdin.
    let source = if payload.is_empty() { "-n" } else { "-s" };
    run_pub(turn, topic, payload, qos, &[&[source], more].concat())
}

/// Publishes each line as a message of its own, over one connection.
pub(super) fn publish_lines(turn: &Turn, rest: &str, lines: &[String], qos: u8) -> anyhow::Result<()> {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    run_pub(turn, &turn.topic(rest), text.as_bytes(), qos, &["-l"])
}

fn run_pub(turn: &Turn, topic: &str, stdin: &[u8], qos: u8, more: &[&str]) -> anyhow::Result<()> {
    let (status, stderr) = end_of_pub(turn, topic, stdin, qos, more)?;
    if !status.success() || !stderr.is_empty() {
        bail!("mosquitto_pub to {topic}: {status} {stderr}");
    }
    Ok(())
}

/// How mosquitto_pub ends, and what it says on stderr.
pub(super) fn end_of_pub(
    turn: &Turn,
    topic: &str,
    stdin: &[u8],
    qos: u8,
    more: &[&str],
) -> anyhow::Result<(ExitStatus, String)> {
    let mut command = tool(turn, "mosquitto_pub");
    command.args(["-t", topic, "-q", &qos.to_string()]).args(more);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    // One that is refused may have ended before it read.
    let _ = child.stdin.take().context("stdin is piped")?.write_all(stdin);
    let ended = wait_for("mosquitto_pub to end", || child.try_wait().ok().flatten());
    if ended.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let mut stderr = String::new();
    child.stderr.take().context("stderr is piped")?.read_to_string(&mut stderr)?;
    Ok((ended.with_context(|| stderr.clone())?, stderr))
}
