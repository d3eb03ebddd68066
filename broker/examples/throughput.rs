//! How many messages a second the broker takes and delivers, over loopback TCP with plain sockets.
//!
//! `cargo run --release -p millwright-broker --example throughput -- [--publishers 10] [--in-flight 100] [--subscribers 1]
//! [--qos 1] [--subscribe-qos 1] [--bytes 128] [--seconds 5] [--delay-ms 0] [--connect HOST:PORT]`
//!
//! Everything runs in one process unless `--connect` names a broker. Publishers keep `in-flight` messages unacknowledged
//! at QoS 1, and write as fast as the socket takes at QoS 0. Each has its own topic. Prints one line.
#![allow(clippy::print_stdout)]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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

async fn subscriber(mut client: Client, counts: Arc<Counts>) -> anyhow::Result<()> {
    loop {
        client.read().await?;
        let mut delivered = 0;
        while let Some(packet) = client.ready()? {
            let Packet::Publish(publish) = packet else { bail!("{packet:?} instead of PUBLISH") };
            delivered += 1;
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
}

fn qos(number: u64) -> QoS {
    if number == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::read()?;
    let plan = Plan {
        qos: qos(options.number("qos", 1)?),
        bytes: usize::try_from(options.number("bytes", 128)?)?,
        in_flight: options.number("in-flight", 100)?.max(1),
    };
    let (publishers, subscribers) = (options.number("publishers", 10)?, options.number("subscribers", 1)?);
    let seconds = options.number("seconds", 5)?;

    let dir = std::env::current_dir()?.join(format!("throughput-{}", std::process::id()));
    let commit_delay = Duration::from_millis(options.number("delay-ms", 0)?);
    let gateway = match options.0.get("connect") {
        Some(_) => None,
        None => {
            let log = Log::open(LogConfig { commit_delay, ..LogConfig::new(&dir) })?.log;
            let config = BrokerConfig { listen: ([127, 0, 0, 1], 0).into(), ..BrokerConfig::default() };
            Some((Broker::bind(config, log.clone()).await?, log))
        }
    };
    let addr = match (&gateway, options.0.get("connect")) {
        (Some((broker, _)), _) => broker.local_addr(),
        (None, Some(addr)) => addr.parse()?,
        (None, None) => bail!("no broker"),
    };

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
        tasks.push(tokio::spawn(subscriber(client, Arc::clone(&counts))));
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
    if let Some((broker, log)) = gateway {
        println!("{:?}", broker.stats());
        for task in tasks {
            task.abort();
        }
        broker.shutdown().await;
        log.close();
        std::fs::remove_dir_all(&dir)?;
    }
    Ok(())
}

fn peak_rss_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or_default() / 1024
}
