//! One scenario's stage: a server, the proxy in front of it, and the gateway that forwards to it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use harness::gateway::{Gateway, read_log_after};
use harness::publisher::Publisher;
use serde_json::Value;
use tempfile::TempDir;

use crate::kind::{Kind, Message, Server, Want};
use crate::proxy::Proxy;

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_millwright-under-test");
/// What the gateway logs: its own words, not those of its clients' libraries.
const LOG: &str =
    "warn,millwright=info,tract=off,lapin=off,rskafka=off,async_nats=off,zeromq=off,rumqttc=off,rdkafka=off";
/// Messages that may wait for the server while a scenario waits for something to happen.
const WAITING_MAX: u64 = 5_000;
/// The longest wait for messages to arrive: a stopped server takes long to start on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// Pause between two looks at what a server has.
pub(crate) const PAUSE: Duration = Duration::from_millis(50);
/// Messages that a publisher has unacknowledged.
const IN_FLIGHT: usize = 200;

/// A time for messages that bring none: 2024.
const NO_TIME_US: i64 = 1_704_067_200_000_000;

/// The stage.
pub(crate) struct Stage {
    pub(crate) server: Box<dyn Server>,
    pub(crate) proxy: Proxy,
    pub(crate) dir: TempDir,
    gateway: Option<Gateway>,
    extra: String,
    publishers: Vec<Publisher>,
}

/// How often a server has received a message, and in which place it came first.
type Arrivals = HashMap<String, (usize, Message)>;

impl Stage {
    /// A server of `kind`, and a gateway that forwards everything to it, with further keys of its `[[upstream]]`.
    pub(crate) fn set(kind: &dyn Kind, want: Want, keys: &str) -> anyhow::Result<Stage> {
        Stage::set_sending(kind, want, &["telemetry", "alerts", "events", "other"], keys)
    }

    /// As [`Stage::set`], with what is forwarded.
    pub(crate) fn set_sending(kind: &dyn Kind, want: Want, send: &[&str], keys: &str) -> anyhow::Result<Stage> {
        let dir = tempfile::tempdir()?;
        let mut server = kind.start(dir.path(), want)?;
        let proxy = Proxy::start()?;
        proxy.lead_to(server.address(), server.names_itself());
        let address = server.come_through(proxy.address())?;
        let extra = format!(
            "[[upstream]]\nname = \"plant\"\naddress = \"{address}\"\nsend = {send:?}\nretry_max_s = 1\n{}\n{keys}\n",
            server.upstream(dir.path())?
        );
        let mut stage = Stage { server, proxy, dir, gateway: None, extra, publishers: Vec::new() };
        stage.start_gateway()?;
        Ok(stage)
    }

    /// Starts the gateway, or starts it again.
    pub(crate) fn start_gateway(&mut self) -> anyhow::Result<()> {
        let gateway = Gateway::start_logging(PROGRAM, self.dir.path(), &self.extra, LOG)?;
        for publisher in &self.publishers {
            publisher.progress.set_gateway(Some(gateway.mqtt));
        }
        self.gateway = Some(gateway);
        Ok(())
    }

    /// Kills the gateway as a power cut would.
    pub(crate) fn kill_gateway(&mut self) -> anyhow::Result<()> {
        for publisher in &self.publishers {
            publisher.progress.set_gateway(None);
        }
        self.gateway.take().context("the gateway runs")?.kill()
    }

    pub(crate) fn gateway(&self) -> anyhow::Result<&Gateway> {
        self.gateway.as_ref().context("the gateway runs")
    }

    /// Stops the server.
    pub(crate) fn stop_server(&mut self, at_once: bool) -> anyhow::Result<()> {
        self.server.stop(at_once)?;
        self.proxy.close();
        Ok(())
    }

    /// Starts the server again.
    pub(crate) fn start_server(&mut self) -> anyhow::Result<()> {
        self.server.start_again()?;
        self.proxy.lead_to(self.server.address(), self.server.names_itself());
        Ok(())
    }

    /// Begins to publish to `topic` at QoS 1; returns its number.
    pub(crate) fn publish(&mut self, topic: &str, count: usize) -> anyhow::Result<usize> {
        let name = topic.to_owned();
        let id = format!("publisher-{}", self.publishers.len());
        let publisher = Publisher::start(&id, topic, IN_FLIGHT, move |number| payload(&name, number));
        publisher.progress.allow(count);
        publisher.progress.set_gateway(Some(self.gateway()?.mqtt));
        self.publishers.push(publisher);
        Ok(self.publishers.len() - 1)
    }

    /// Lets all publishers publish so many messages more.
    pub(crate) fn allow_more(&self, count: usize) {
        for publisher in &self.publishers {
            publisher.progress.allow(publisher.progress.allowed() + count);
        }
    }

    /// Lets messages flow on: publishers may publish more unless many wait for the server already.
    pub(crate) fn feed(&self, count: usize) -> anyhow::Result<()> {
        let are_done =
            self.publishers.iter().all(|publisher| publisher.progress.acknowledged() >= publisher.progress.allowed());
        if are_done && self.status()?["backlog"].as_u64() < Some(WAITING_MAX) {
            self.allow_more(count);
        }
        Ok(())
    }

    /// Messages that the gateway has acknowledged.
    pub(crate) fn acknowledged(&self) -> usize {
        self.publishers.iter().map(|publisher| publisher.progress.acknowledged()).sum()
    }

    /// Waits until all that was allowed is acknowledged by the gateway.
    pub(crate) fn wait_published(&self) -> anyhow::Result<()> {
        self.wait("all messages to be acknowledged by the gateway", |stage| {
            let done = |publisher: &Publisher| publisher.progress.acknowledged() >= publisher.progress.allowed();
            Ok(stage.publishers.iter().all(done).then_some(()))
        })
    }

    /// Waits until `condition` gives a value; the error tells how the upstream does and what the gateway has logged.
    pub(crate) fn wait<T>(
        &self,
        what: &str,
        mut condition: impl FnMut(&Stage) -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(value) = condition(self)? {
                return Ok(value);
            }
            if Instant::now() >= deadline {
                bail!("gave up waiting for: {what}\n{}", self.story());
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// What the status says of the upstream.
    pub(crate) fn status(&self) -> anyhow::Result<Value> {
        let status = self.gateway()?.status()?;
        status.pointer("/upstreams/0").cloned().context("the status has an upstream")
    }

    /// What helps to understand a failure.
    pub(crate) fn story(&self) -> String {
        let Some(gateway) = &self.gateway else { return "the gateway does not run".to_owned() };
        let status = self.status().map_or_else(|error| error.to_string(), |status| status.to_string());
        let log = gateway.log();
        let lines: Vec<&str> = log.lines().collect();
        let end = lines.get(lines.len().saturating_sub(60)..).unwrap_or_default().join("\n");
        format!("status: {status}\nthe gateway's log:\n{end}\nthe server's log:\n{}", self.server.log())
    }

    /// Waits until the server has everything that the log has, checks it, and returns it in the order of first arrival. Every
    /// message has the bytes and the topic of the log; one that came twice has the same identifier; the messages
    /// of each topic came in the order of the log.
    pub(crate) fn check_arrived(&mut self) -> anyhow::Result<Arrived> {
        self.wait_published()?;
        let log: Vec<(i64, String, Vec<u8>)> = read_log_after(&self.gateway()?.data_dir(), 0)?
            .into_iter()
            .filter(|(_, topic, _)| !topic.starts_with("mw/v1/gateway") && !topic.starts_with("mw/v1/model"))
            .collect();
        let deadline = Instant::now() + PATIENCE;
        let arrived = loop {
            let messages = self.server.received()?;
            let arrived = Arrived::of(&with_headers(messages, &log)?)?;
            if arrived.first.len() >= log.len() {
                break arrived;
            }
            if Instant::now() >= deadline {
                bail!("{} of {} messages arrived\n{}", arrived.first.len(), log.len(), self.story());
            }
            std::thread::sleep(PAUSE);
        };
        arrived.check(&log)?;
        self.wait("nothing to be left to deliver", |stage| Ok((stage.status()?["backlog"] == 0).then_some(())))?;
        Ok(arrived)
    }

    /// How many file descriptors and threads the gateway has.
    pub(crate) fn held(&self) -> anyhow::Result<(usize, usize)> {
        let folder = format!("/proc/{}", self.gateway()?.pid());
        let count = |name: &str| anyhow::Ok(std::fs::read_dir(format!("{folder}/{name}"))?.count());
        Ok((count("fd")?, count("task")?))
    }
}

/// What a server received.
#[derive(Debug)]
pub(crate) struct Arrived {
    /// The messages in the order in which they came first.
    pub(crate) first: Vec<Message>,
    /// How many came again.
    pub(crate) repeated: usize,
}

impl Arrived {
    fn of(messages: &[Message]) -> anyhow::Result<Arrived> {
        let mut arrivals = Arrivals::new();
        let mut order = Vec::new();
        for message in messages {
            match arrivals.get_mut(&message.id) {
                None => {
                    order.push(message.id.clone());
                    arrivals.insert(message.id.clone(), (1, message.clone()));
                }
                Some((count, known)) => {
                    ensure!(known == message, "{} came twice and is not the same", message.id);
                    *count += 1;
                }
            }
        }
        let first = order.iter().filter_map(|id| arrivals.get(id).map(|(_, message)| message.clone())).collect();
        Ok(Arrived { first, repeated: messages.len() - order.len() })
    }

    fn check(&self, log: &[(i64, String, Vec<u8>)]) -> anyhow::Result<()> {
        let mut last: HashMap<&str, i64> = HashMap::new();
        let mut by_offset: HashMap<i64, &Message> = HashMap::new();
        for message in &self.first {
            let offset = offset(&message.id)?;
            ensure!(by_offset.insert(offset, message).is_none(), "two identifiers name the offset {offset}");
            let before = last.insert(&message.topic, offset);
            ensure!(
                before.is_none_or(|before| before < offset),
                "on {} the message {offset} came after {before:?}",
                message.topic
            );
        }
        for (offset, topic, payload) in log {
            let message = by_offset.get(offset).with_context(|| format!("the message {offset} on {topic} is lost"))?;
            ensure!(message.topic == *topic, "the message {offset} on {topic} came as one on {}", message.topic);
            ensure!(message.payload == *payload, "the message {offset} on {topic} has other bytes");
        }
        ensure!(log.len() == self.first.len(), "{} messages arrived, {} were logged", self.first.len(), log.len());
        Ok(())
    }
}

/// Gives messages that came over a protocol without headers those that the gateway would have given them: no two messages of a
/// topic have the same bytes.
fn with_headers<'a>(messages: &'a [Message], log: &[(i64, String, Vec<u8>)]) -> anyhow::Result<Cow<'a, [Message]>> {
    if messages.iter().all(|message| !message.id.is_empty()) {
        return Ok(Cow::Borrowed(messages));
    }
    let offsets: HashMap<(&str, &[u8]), i64> =
        log.iter().map(|(offset, topic, payload)| ((topic.as_str(), payload.as_slice()), *offset)).collect();
    let name = |message: &Message| {
        let offset = offsets.get(&(message.topic.as_str(), message.payload.as_slice()));
        let offset = offset.with_context(|| format!("a message on {} is none of the log", message.topic))?;
        let content = match message.topic.split('/').collect::<Vec<_>>().as_slice() {
            ["mw", "v1", content @ ("telemetry" | "alert"), ..] => content,
            _ => "other",
        };
        let (id, received_us) = (format!("gw-1/00000000/{offset}"), NO_TIME_US.to_string());
        anyhow::Ok(Message { id, content: content.to_owned(), received_us, ..message.clone() })
    };
    messages.iter().map(name).collect::<Result<Vec<_>, _>>().map(Cow::Owned)
}

/// The offset in an identifier `<gateway>/<log>/<offset>`.
fn offset(id: &str) -> anyhow::Result<i64> {
    let parts: Vec<&str> = id.split('/').collect();
    match parts.as_slice() {
        ["gw-1", log, offset] if log.len() == 8 => Ok(offset.parse()?),
        _ => bail!("\"{id}\" is not an identifier"),
    }
}

/// The bytes of a message: of very different lengths, some of them no text, all distinct.
fn payload(topic: &str, number: usize) -> Vec<u8> {
    let length = match number % 50 {
        0 => 20_000,
        1..10 => 1_000,
        _ => 100,
    };
    let mut bytes = format!("{topic} {number} ").into_bytes();
    bytes.extend((bytes.len()..length).map(|at| (at * 31 + number) as u8));
    bytes
}

/// A generator of numbers that a failed run can be repeated with: splitmix64.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// Of the seed in `MILLWRIGHT_SEED`, or another one in each run; it is part of every failure.
    pub(crate) fn new() -> Random {
        let asked = std::env::var("MILLWRIGHT_SEED").ok().and_then(|seed| seed.parse().ok());
        let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64);
        Random(asked.unwrap_or(now))
    }

    /// What the numbers follow from.
    pub(crate) fn seed(&self) -> u64 {
        self.0
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % end.max(1)
    }
}

/// Whether the long form of the scenarios is asked for.
pub(crate) fn is_long() -> bool {
    std::env::var("MILLWRIGHT_LONG").is_ok_and(|value| value == "1")
}
