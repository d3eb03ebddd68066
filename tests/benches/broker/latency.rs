//! How long a message takes at a modest, even rate: to its PUBACK, and to the subscriber.
//!
//! One thread publishes: the publishers take turns, evenly spaced, so that no two messages are sent at the same instant
//! and none waits for the one before. One thread receives acknowledgements and messages. A message carries the time right
//! before it was written; a reading thread that wakes up late, or a machine that is busy, is part of what is measured.

use std::io::{ErrorKind, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::packet::{self, Block, PUBACK, PUBACK_BYTES};
use crate::peers::Broker;
use crate::process::{self, Cost};

/// What is sent in this time from the start is not measured, or in the first quarter if that is less: caches are cold.
const WARM_UP: Duration = Duration::from_millis(300);

/// Sending times of a publisher that are remembered; more messages are never without acknowledgement here.
const SENT_MAX: usize = 8_192;

/// Nothing comes any more for so long: lost.
const PATIENCE: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(10);
const READ_BYTES: usize = 64 * 1_024;

/// What is published.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) publishers: u32,
    /// Of all publishers together.
    pub(crate) messages_per_s: u32,
    pub(crate) qos: u8,
    pub(crate) payload_bytes: usize,
}

/// A distribution of times.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Latency {
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) sent: u64,
    pub(crate) missing: u64,
    /// From the first publish to the last delivery.
    pub(crate) elapsed: Duration,
    /// From writing a message to its PUBACK; none at QoS 0.
    pub(crate) acknowledged: Option<Latency>,
    /// From writing a message to its arrival.
    pub(crate) delivered: Option<Latency>,
    pub(crate) generator_cpu_ns: u64,
    pub(crate) broker: Option<Cost>,
    pub(crate) commits: Option<u64>,
}

/// Publishes for `time` and waits until everything has come, or nothing comes any more.
pub(crate) fn run(broker: &Broker, plan: Plan, time: Duration) -> anyhow::Result<Outcome> {
    let mut subscriber = nonblocking(packet::subscribe(broker.addr, "bench-subscriber", plan.qos)?)?;
    let connect = |number| nonblocking(packet::connect(broker.addr, &format!("bench-publisher-{number}"))?);
    let mut streams = (0..plan.publishers).map(connect).collect::<anyhow::Result<Vec<_>>>()?;
    let poll = Poll::new()?;
    for (token, stream) in streams.iter_mut().chain([&mut subscriber]).enumerate() {
        poll.registry().register(stream, Token(token), Interest::READABLE)?;
    }
    let start = Instant::now();
    let shared = Shared {
        start,
        sent_ns: streams.iter().map(|_| (0..SENT_MAX).map(|_| AtomicU64::new(0)).collect()).collect(),
        total: AtomicU64::new(u64::MAX),
    };
    let warm_up = WARM_UP.min(time / 4);
    let mut receiver = Receiver::new(poll, &streams, &subscriber, plan.qos);
    let (usage, commits) = (broker.usage(), broker.commits());
    let (sent, received) = std::thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            let before = process::thread_cpu_ns();
            receiver.run(&shared).map(|()| process::thread_cpu_ns() - before)
        });
        let before = process::thread_cpu_ns();
        let sent = publish(&streams, plan, time, &shared);
        // Whatever happened, the receiver must come to an end.
        shared.total.store(*sent.as_ref().unwrap_or(&0), Ordering::Release);
        (sent.map(|sent| (sent, process::thread_cpu_ns() - before)), receiving.join())
    });
    let (sent, sending_ns) = sent?;
    let receiving_ns = received.map_err(|_| anyhow::anyhow!("the receiver's thread panicked"))??;
    Ok(Outcome {
        sent,
        missing: sent.saturating_sub(receiver.delivered.len() as u64),
        elapsed: receiver.last.unwrap_or(start) - start,
        acknowledged: latency(&receiver.acknowledged, warm_up),
        delivered: latency(&receiver.delivered, warm_up),
        generator_cpu_ns: sending_ns + receiving_ns,
        broker: usage.and_then(|before| Some(broker.usage()?.since(&before))),
        commits: commits.and_then(|before| Some(broker.commits()? - before)),
    })
}

fn nonblocking(stream: std::net::TcpStream) -> anyhow::Result<TcpStream> {
    stream.set_nonblocking(true)?;
    Ok(TcpStream::from_std(stream))
}

/// What sending and receiving threads share.
struct Shared {
    start: Instant,
    /// When the messages of each publisher were sent, by number modulo [`SENT_MAX`].
    sent_ns: Vec<Vec<AtomicU64>>,
    /// How many messages were sent in all; [`u64::MAX`] until that is known.
    total: AtomicU64,
}

impl Shared {
    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }
}

/// Publishes at an even pace; gives the number of messages.
fn publish(streams: &[TcpStream], plan: Plan, time: Duration, shared: &Shared) -> anyhow::Result<u64> {
    let block = |number| Block::new(number, plan.qos, plan.payload_bytes, 1);
    let mut blocks: Vec<Block> = (0..plan.publishers).map(block).collect();
    let interval = Duration::from_secs(1) / plan.messages_per_s;
    let messages = (time.as_secs_f64() * f64::from(plan.messages_per_s)) as u64;
    let begin = Instant::now();
    for message in 0..messages {
        let due = begin + interval.saturating_mul(message as u32);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let (number, turn) = (message / streams.len() as u64, message as usize % streams.len());
        let (Some(mut stream), Some(block)) = (streams.get(turn), blocks.get_mut(turn)) else { continue };
        let now_ns = shared.now_ns();
        if let Some(sent_ns) = shared.sent_ns.get(turn).and_then(|sent| sent.get(number as usize % SENT_MAX)) {
            sent_ns.store(now_ns, Ordering::Release);
        }
        block.number(0, number, now_ns);
        // The socket does not block, for the receiver's sake; at this rate it is full only if the broker stands still.
        let mut left = block.bytes(1);
        while !left.is_empty() {
            match stream.write(left) {
                Ok(count) => left = &left[count..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_micros(100)),
                Err(error) => return Err(error.into()),
            }
            ensure!(due.elapsed() < PATIENCE, "the broker takes nothing for {PATIENCE:?}");
        }
    }
    Ok(messages)
}

/// Reads what the broker sends to publishers and to the subscriber.
struct Receiver<'a> {
    poll: Poll,
    /// The publishers' connections, then the subscriber's.
    streams: Vec<Incoming<'a>>,
    qos: u8,
    acknowledged: Vec<Times>,
    delivered: Vec<Times>,
    last: Option<Instant>,
}

/// Since the start.
struct Times {
    sent_ns: u64,
    arrived_ns: u64,
}

struct Incoming<'a> {
    stream: &'a TcpStream,
    /// The beginning of a packet whose end has not come yet.
    rest: Vec<u8>,
    /// Acknowledgements so far; they come in the order of the messages. [MQTT-4.6.0-2]
    acknowledged: u64,
}

impl<'a> Receiver<'a> {
    fn new(poll: Poll, publishers: &'a [TcpStream], subscriber: &'a TcpStream, qos: u8) -> Receiver<'a> {
        let incoming = |stream| Incoming { stream, rest: Vec::new(), acknowledged: 0 };
        Receiver {
            poll,
            streams: publishers.iter().chain([subscriber]).map(incoming).collect(),
            qos,
            acknowledged: Vec::new(),
            delivered: Vec::new(),
            last: None,
        }
    }

    fn run(&mut self, shared: &Shared) -> anyhow::Result<()> {
        let mut events = Events::with_capacity(64);
        let mut buffer = vec![0; READ_BYTES];
        let mut idle_since = Instant::now();
        loop {
            self.poll.poll(&mut events, Some(TICK))?;
            for event in &events {
                self.read(event.token().0, &mut buffer, shared)?;
            }
            let total = shared.total.load(Ordering::Acquire);
            if !events.is_empty() || total == u64::MAX {
                idle_since = Instant::now();
            }
            let all_acknowledged = self.qos == 0 || self.acknowledged.len() as u64 >= total;
            if (self.delivered.len() as u64 >= total && all_acknowledged) || idle_since.elapsed() > PATIENCE {
                return Ok(());
            }
        }
    }

    /// Reads everything that is there for one connection.
    fn read(&mut self, index: usize, buffer: &mut [u8], shared: &Shared) -> anyhow::Result<()> {
        loop {
            let incoming = self.streams.get_mut(index).context("an event of no connection")?;
            let begun = incoming.rest.len();
            buffer[..begun].copy_from_slice(&incoming.rest);
            let count = match incoming.stream.read(&mut buffer[begun..]) {
                Ok(0) => bail!("the broker closed the connection"),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            incoming.rest.clear();
            let now = Instant::now();
            let bytes = &buffer[..begun + count];
            let left = match shared.sent_ns.get(index) {
                Some(sent_ns) => self.take_acks(index, bytes, sent_ns, (now - shared.start).as_nanos() as u64)?,
                None => {
                    self.last = Some(now);
                    self.take_messages(index, bytes, (now - shared.start).as_nanos() as u64)?
                }
            };
            self.streams[index].rest.extend_from_slice(left);
            if begun + count < buffer.len() {
                return Ok(());
            }
        }
    }

    /// Takes a publisher's acknowledgements; gives what is left.
    fn take_acks<'b>(
        &mut self,
        index: usize,
        mut bytes: &'b [u8],
        sent_ns: &[AtomicU64],
        now_ns: u64,
    ) -> anyhow::Result<&'b [u8]> {
        let incoming = &mut self.streams[index];
        while let Some((first, body, end)) = packet::first(bytes)? {
            ensure!(first == PUBACK[0] && body.len() + 2 == PUBACK_BYTES, "{first:#04x} instead of a PUBACK");
            let expected = packet::packet_id(incoming.acknowledged).to_be_bytes();
            ensure!(body == expected, "PUBACK {body:?} instead of {expected:?}");
            let sent_ns = sent_ns[incoming.acknowledged as usize % SENT_MAX].load(Ordering::Acquire);
            self.acknowledged.push(Times { sent_ns, arrived_ns: now_ns });
            incoming.acknowledged += 1;
            bytes = &bytes[end..];
        }
        Ok(bytes)
    }

    /// Takes the subscriber's messages and acknowledges them; gives what is left.
    fn take_messages<'b>(&mut self, index: usize, mut bytes: &'b [u8], now_ns: u64) -> anyhow::Result<&'b [u8]> {
        let mut acks = Vec::new();
        while let Some((first, body, end)) = packet::first(bytes)? {
            let delivery = packet::delivery(first, body)?;
            if let Some(id) = delivery.packet_id {
                acks.extend_from_slice(&[PUBACK[0], PUBACK[1], id[0], id[1]]);
            }
            self.delivered.push(Times { sent_ns: delivery.sent_ns, arrived_ns: now_ns });
            bytes = &bytes[end..];
        }
        // A few packets fit into a socket whose peer reads.
        let mut stream = self.streams[index].stream;
        stream.write_all(&acks)?;
        Ok(bytes)
    }
}

fn latency(times: &[Times], warm_up: Duration) -> Option<Latency> {
    let measured = times.iter().filter(|times| u128::from(times.sent_ns) >= warm_up.as_nanos());
    let mut latencies_ns: Vec<u64> = measured.map(|times| times.arrived_ns.saturating_sub(times.sent_ns)).collect();
    latencies_ns.sort_unstable();
    let last = latencies_ns.len().checked_sub(1)?;
    let at_ms = |percent: usize| latencies_ns[last * percent / 100] as f64 / 1e6;
    Some(Latency { p50_ms: at_ms(50), p99_ms: at_ms(99) })
}
