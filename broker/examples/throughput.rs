//! How many messages a second the broker takes and delivers, over loopback TCP with plain sockets.
//!
//! `cargo run --release -p millwright-broker --example throughput -- [--publishers 10] [--in-flight 100] [--subscribers 1]
//! [--qos 1] [--subscribe-qos 1] [--bytes 128] [--seconds 5] [--delay-ms 0] [--rate 0] [--connect HOST:PORT] [--serve HOST:PORT]`
//!
//! Everything runs in one process unless `--connect` names a broker; with `--serve` there is only the broker, until its
//! standard input ends. Publishers keep `in-flight` messages unacknowledged
//! at QoS 1, and write as fast as the socket takes at QoS 0. Each has its own topic. With `--rate` all publishers together
//! send so many messages a second, one at a time, and the time from publishing to PUBACK and to the subscriber is printed.
#![allow(clippy::print_stdout)]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::{Bytes, BytesMut};
use millwright_broker::codec::{
    Ack, Connect, Decoder, Packet, PacketId, Publish, Reason, RetainHandling, Subscribe, SubscribeFilter,
    SubscribeOptions, Text, Version, encode,
};
use millwright_broker::log::{Log, LogConfig};
use millwright_broker::message::QoS;
use millwright_broker::topic::TopicName;
use millwright_broker::{Broker, BrokerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

struct Options(HashMap<String, String>);

impl Options {
    fn read() -> anyhow::Result<Options> {
        let mut options = HashMap::new();
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let name = name.strip_prefix("--").context("options begin with --")?.to_owned();
            options.insert(name, arguments.next().context("an option has no value")?);
        }
        Ok(Options(options))
    }

    fn number(&self, name: &str, default: u64) -> anyhow::Result<u64> {
        self.0.get(name).map_or(Ok(default), |value| value.parse().with_context(|| format!("--{name}")))
    }
}

#[derive(Default)]
struct Counts {
    stop: AtomicBool,
    published: AtomicU64,
    delivered: AtomicU64,
    /// Microseconds; filled with `--rate` only.
    acknowledged_us: Mutex<Vec<u64>>,
    delivered_us: Mutex<Vec<u64>>,
}

/// The middle and the 99th percentile.
fn percentiles(latencies: &Mutex<Vec<u64>>) -> String {
    let mut latencies = latencies.lock().unwrap_or_else(PoisonError::into_inner);
    latencies.sort_unstable();
    let at = |share: usize| latencies.get((latencies.len() * share / 100).min(latencies.len().saturating_sub(1)));
    match (at(50), at(99)) {
        (Some(p50), Some(p99)) => format!("p50 {p50} us, p99 {p99} us"),
        _ => "-".to_owned(),
    }
}

fn elapsed_us(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Publishes at a steady pace and takes the time.
async fn paced(mut client: Client, mut publish: Publish, plan: Plan, counts: Arc<Counts>) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(plan.interval);
    let mut acknowledged_us = Vec::new();
    while !counts.stop.load(Ordering::Relaxed) {
        tick.tick().await;
        let sent_us = elapsed_us(plan.start);
        let mut payload = vec![0x55; plan.bytes.max(8)];
        if let Some(stamp) = payload.first_chunk_mut::<8>() {
            *stamp = sent_us.to_be_bytes();
        }
        publish.payload = Bytes::from(payload);
        publish.packet_id = (plan.qos == QoS::AtLeastOnce).then_some(PacketId::MIN);
        client.put(&Packet::Publish(publish.clone()));
        client.flush().await?;
        if plan.qos == QoS::AtLeastOnce {
            client.recv().await?;
            acknowledged_us.push(elapsed_us(plan.start) - sent_us);
        }
        counts.published.fetch_add(1, Ordering::Relaxed);
    }
    counts.acknowledged_us.lock().unwrap_or_else(PoisonError::into_inner).extend(acknowledged_us);
    Ok(())
}

struct Client {
    stream: TcpStream,
    decoder: Decoder,
    input: BytesMut,
    output: BytesMut,
}

impl Client {
    async fn connect(addr: SocketAddr, id: &str) -> anyhow::Result<Client> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        let decoder = Decoder::client(Version::V311, 1 << 28);
        let mut client = Client { stream, decoder, input: BytesMut::new(), output: BytesMut::new() };
        client.put(&Packet::Connect(Box::new(Connect {
            version: Version::V311,
            clean_start: true,
            keep_alive_s: 0,
            client_id: Text::from(id),
            will: None,
            username: None,
            password: None,
            properties: Vec::new(),
        })));
        client.flush().await?;
        match client.recv().await? {
            Packet::ConnAck(ack) if ack.reason == Reason::Success => Ok(client),
            other => bail!("{other:?} instead of CONNACK"),
        }
    }

    fn put(&mut self, packet: &Packet) {
        encode(packet, Version::V311, &mut self.output);
    }

    async fn flush(&mut self) -> anyhow::Result<()> {
        Ok(self.stream.write_all_buf(&mut self.output).await?)
    }

    fn ready(&mut self) -> anyhow::Result<Option<Packet>> {
        Ok(self.decoder.decode(&mut self.input)?)
    }

    async fn read(&mut self) -> anyhow::Result<()> {
        self.input.reserve(64 * 1024);
        if self.stream.read_buf(&mut self.input).await? == 0 {
            bail!("the broker closed the connection");
        }
        Ok(())
    }

    async fn recv(&mut self) -> anyhow::Result<Packet> {
        loop {
            if let Some(packet) = self.ready()? {
                return Ok(packet);
            }
            self.read().await?;
        }
    }
}

async fn publisher(addr: SocketAddr, number: u64, plan: Plan, counts: Arc<Counts>) -> anyhow::Result<()> {
    let mut client = Client::connect(addr, &format!("publisher-{number}")).await?;
    let mut publish = Publish {
        dup: false,
        qos: plan.qos,
        retain: false,
        topic: Some(TopicName::parse(&format!("bench/{number}"))?),
        packet_id: None,
        topic_alias: None,
        subscription_identifiers: Vec::new(),
        properties: Bytes::new(),
        payload: Bytes::from(vec![0x55; plan.bytes]),
    };
    if !plan.interval.is_zero() {
        return paced(client, publish, plan, counts).await;
    }
    let mut next_id = 0_u16;
    let mut in_flight = 0;
    while !counts.stop.load(Ordering::Relaxed) {
        let room = plan.in_flight - in_flight;
        for _ in 0..room {
            if plan.qos == QoS::AtLeastOnce {
                next_id = next_id.checked_add(1).unwrap_or(1);
                publish.packet_id = PacketId::new(next_id);
            }
            client.put(&Packet::Publish(publish.clone()));
        }
        client.flush().await?;
        if plan.qos == QoS::AtMostOnce {
            counts.published.fetch_add(room, Ordering::Relaxed);
            continue;
        }
        in_flight += room;
        client.read().await?;
        while let Some(packet) = client.ready()? {
            if !matches!(packet, Packet::PubAck(_)) {
                bail!("{packet:?} instead of PUBACK");
            }
            in_flight -= 1;
            counts.published.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

async fn subscriber(mut client: Client, plan: Plan, counts: Arc<Counts>) -> anyhow::Result<()> {
    loop {
        client.read().await?;
        let mut delivered = 0;
        let now_us = elapsed_us(plan.start);
        while let Some(packet) = client.ready()? {
            let Packet::Publish(publish) = packet else { bail!("{packet:?} instead of PUBLISH") };
            delivered += 1;
            if let Some(stamp) = publish.payload.first_chunk::<8>().filter(|_| !plan.interval.is_zero()) {
                let mut delivered_us = counts.delivered_us.lock().unwrap_or_else(PoisonError::into_inner);
                delivered_us.push(now_us.saturating_sub(u64::from_be_bytes(*stamp)));
            }
            if let Some(id) = publish.packet_id {
                client.put(&Packet::PubAck(Ack::new(id, Reason::Success)));
            }
        }
        counts.delivered.fetch_add(delivered, Ordering::Relaxed);
        client.flush().await?;
    }
}

#[derive(Clone, Copy)]
struct Plan {
    qos: QoS,
    bytes: usize,
    in_flight: u64,
    /// Between two messages of a publisher; zero for as many as possible.
    interval: Duration,
    start: Instant,
}

fn qos(number: u64) -> QoS {
    if number == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::read()?;
    let (publishers, subscribers) = (options.number("publishers", 10)?, options.number("subscribers", 1)?);
    let rate = options.number("rate", 0)?;
    let plan = Plan {
        start: Instant::now(),
        interval: Duration::from_nanos((publishers * 1_000_000_000).checked_div(rate).unwrap_or_default()),
        qos: qos(options.number("qos", 1)?),
        bytes: usize::try_from(options.number("bytes", 128)?)?,
        in_flight: options.number("in-flight", 100)?.max(1),
    };
    let seconds = options.number("seconds", 5)?;

    let dir = std::env::current_dir()?.join(format!("throughput-{}", std::process::id()));
    let commit_delay = Duration::from_millis(options.number("delay-ms", 0)?);
    let gateway = match options.0.get("connect") {
        Some(_) => None,
        None => {
            let log = Log::open(LogConfig { commit_delay, ..LogConfig::new(&dir) })?.log;
            let listen = options.0.get("serve").map_or(Ok(([127, 0, 0, 1], 0).into()), |addr| addr.parse())?;
            let config = BrokerConfig { listen, ..BrokerConfig::default() };
            Some((Broker::bind(config, log.clone()).await?, log))
        }
    };
    let addr = match (&gateway, options.0.get("connect")) {
        (Some((broker, _)), _) => broker.local_addr(),
        (None, Some(addr)) => addr.parse()?,
        (None, None) => bail!("no broker"),
    };

    if options.0.contains_key("serve") {
        tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await??;
        return finish(gateway, &dir).await;
    }
    let counts = Arc::new(Counts::default());
    let mut tasks = Vec::new();
    for number in 0..subscribers {
        let mut client = Client::connect(addr, &format!("subscriber-{number}")).await?;
        let options = SubscribeOptions {
            qos: qos(options.number("subscribe-qos", 1)?),
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::Never,
        };
        let filters = vec![SubscribeFilter { filter: Text::from("bench/#"), options }];
        client.put(&Packet::Subscribe(Subscribe { packet_id: PacketId::MIN, properties: Vec::new(), filters }));
        client.flush().await?;
        client.recv().await?;
        tasks.push(tokio::spawn(subscriber(client, plan, Arc::clone(&counts))));
    }
    let mut publishing = Vec::new();
    let start = Instant::now();
    for number in 0..publishers {
        publishing.push(tokio::spawn(publisher(addr, number, plan, Arc::clone(&counts))));
    }
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    counts.stop.store(true, Ordering::Relaxed);
    let elapsed = start.elapsed().as_secs_f64();
    let (published, at_stop) = (counts.published.load(Ordering::Relaxed), counts.delivered.load(Ordering::Relaxed));
    for task in publishing {
        task.await??;
    }
    // What is under way still comes.
    let mut before = u64::MAX;
    while before != counts.delivered.load(Ordering::Relaxed) {
        before = counts.delivered.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(2_000)).await;
    }
    let (all, delivered) = (counts.published.load(Ordering::Relaxed), counts.delivered.load(Ordering::Relaxed));
    println!(
        "{publishers} publishers x {} in flight, {subscribers} subscribers, {} bytes: published {:.0}/s, delivered {:.0}/s, \
         in the end {delivered} of {}; peak RSS {} MiB",
        plan.in_flight,
        plan.bytes,
        published as f64 / elapsed,
        at_stop as f64 / elapsed,
        all * subscribers,
        peak_rss_mib(),
    );
    if rate > 0 {
        let (acknowledged, delivered) = (percentiles(&counts.acknowledged_us), percentiles(&counts.delivered_us));
        println!("to PUBACK: {acknowledged}; to the subscriber: {delivered}");
    }
    for task in tasks {
        task.abort();
    }
    finish(gateway, &dir).await
}

async fn finish(gateway: Option<(Broker, Log)>, dir: &std::path::Path) -> anyhow::Result<()> {
    let Some((broker, log)) = gateway else { return Ok(()) };
    println!("{:?}; peak RSS {} MiB", broker.stats(), peak_rss_mib());
    broker.shutdown().await;
    log.close();
    Ok(std::fs::remove_dir_all(dir)?)
}

fn peak_rss_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or_default() / 1024
}
