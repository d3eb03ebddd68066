//! How many messages a second go through a broker: publishers that keep it busy, subscribers that check every message.
//!
//! Two threads, one for all publishers and one for all subscribers, because the machine is shared with the broker: what
//! the generator takes, the broker lacks. Packets are built once and renumbered, many go into one write, acknowledgements
//! are counted by their bytes. Subscribers read at most once a millisecond, so that a broker does not pay for waking them.
//! Each subscriber knows which number comes next from each publisher: what is missing, twice or out of order is counted.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::packet::{self, Block, PUBACK, PUBACK_BYTES};
use crate::peers::Broker;
use crate::process::{self, Cost};

/// QoS 0 publishers write so much at a time, and then let the next one write.
const BLOCK_BYTES: usize = 16 * 1_024;

/// A publisher whose window has room writes again when this share of it is free: a packet a write would measure the
/// generator's system calls.
const REFILL_SHARE: usize = 4;

/// Publishers that have no room rest this long: a broker that acknowledges one by one would wake the generator for each.
const ACK_PAUSE: Duration = Duration::from_micros(50);

/// Subscribers rest this long between two reads.
const READ_PAUSE: Duration = Duration::from_millis(1);
const READ_BYTES: usize = 256 * 1_024;

/// No more acknowledgements, or no more acknowledged messages, for so long: lost. A broker's disk may be slow.
const PATIENCE: Duration = Duration::from_secs(20);
/// No more QoS 0 messages for so long: the rest was dropped.
const QUIET: Duration = Duration::from_millis(1_000);

/// How long the loops wait for an event before they look at the clock.
const TICK: Duration = Duration::from_millis(10);

/// What is published, by how many, to how many.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) publishers: u32,
    pub(crate) subscribers: u32,
    pub(crate) qos: u8,
    pub(crate) payload_bytes: usize,
    /// QoS 1 messages without acknowledgement, for each publisher.
    pub(crate) in_flight: usize,
}

/// When publishers stop.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    pub(crate) time: Duration,
    /// Of each publisher, give or take a block.
    pub(crate) messages: u64,
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) delivered: u64,
    /// Deliveries that did not come: of acknowledged messages at QoS 1, of written ones at QoS 0.
    pub(crate) missing: u64,
    /// Deliveries that came twice or out of order.
    pub(crate) repeated: u64,
    /// From the first publish to the last delivery.
    pub(crate) elapsed: Duration,
    pub(crate) generator_cpu_ns: u64,
    pub(crate) broker: Option<Cost>,
    pub(crate) commits: Option<u64>,
}

/// Publishes, and waits until everything was delivered or nothing comes any more.
pub(crate) fn run(broker: &Broker, plan: Plan, limit: Limit) -> anyhow::Result<Outcome> {
    let mut subscribers = Subscribers::connect(broker.addr, plan)?;
    let mut publishers = Publishers::connect(broker.addr, plan)?;
    let (usage, commits) = (broker.usage(), broker.commits());
    let due = AtomicU64::new(u64::MAX);
    let start = Instant::now();
    let (published, received) = std::thread::scope(|scope| {
        let receiving = scope.spawn(|| with_cpu(|| subscribers.run(&due)));
        let published = with_cpu(|| publishers.run(start + limit.time, limit.messages));
        // Whatever happened, the subscribers must come to an end.
        let sent: u64 = publishers.all.iter().map(|publisher| publisher.sent).sum();
        due.store(sent * u64::from(plan.subscribers), Ordering::Release);
        (published, receiving.join())
    });
    let (_, publishing_ns) = published?;
    let (last, receiving_ns) = received.map_err(|_| anyhow::anyhow!("the subscribers' thread panicked"))??;
    let broker_cost = usage.and_then(|before| Some(broker.usage()?.since(&before)));
    let sent: u64 = publishers.all.iter().map(|publisher| publisher.sent).sum();
    let delivered = subscribers.all.iter().map(|subscriber| subscriber.delivered).sum();
    Ok(Outcome {
        delivered,
        missing: (sent * u64::from(plan.subscribers)).saturating_sub(delivered),
        repeated: subscribers.all.iter().map(|subscriber| subscriber.repeated).sum(),
        elapsed: last.unwrap_or(start).saturating_duration_since(start),
        generator_cpu_ns: publishing_ns + receiving_ns,
        broker: broker_cost,
        commits: commits.and_then(|before| Some(broker.commits()? - before)),
    })
}

/// What `work` gives, and the processor time of its thread.
fn with_cpu<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, u64)> {
    let before = process::thread_cpu_ns();
    let result = work()?;
    Ok((result, process::thread_cpu_ns() - before))
}

fn registered(poll: &Poll, stream: std::net::TcpStream, token: usize) -> anyhow::Result<TcpStream> {
    stream.set_nonblocking(true)?;
    let mut stream = TcpStream::from_std(stream);
    poll.registry().register(&mut stream, Token(token), Interest::READABLE | Interest::WRITABLE)?;
    Ok(stream)
}

/// Writes what the socket takes; true if that was everything.
fn write_some(stream: &mut TcpStream, bytes: &[u8], written: &mut usize) -> anyhow::Result<bool> {
    while *written < bytes.len() {
        match stream.write(&bytes[*written..]) {
            Ok(0) => bail!("the broker takes nothing"),
            Ok(count) => *written += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// Reads what is there, once; 0 if nothing is. A read that does not fill the buffer has emptied the socket (epoll(7)).
fn read_some(stream: &mut TcpStream, buffer: &mut [u8]) -> anyhow::Result<usize> {
    match stream.read(buffer) {
        Ok(0) => bail!("the broker closed the connection"),
        Ok(count) => Ok(count),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        Err(error) => Err(error.into()),
    }
}

struct Publishers {
    poll: Poll,
    all: Vec<Publisher>,
}

struct Publisher {
    stream: TcpStream,
    block: Block,
    /// Packets of the block that are being written, and how many of their bytes the socket has.
    packets: usize,
    written: usize,
    writable: bool,
    /// QoS 1: messages that may be unacknowledged.
    window: Option<u64>,
    sent: u64,
    ack_bytes: usize,
}

impl Publishers {
    fn connect(addr: SocketAddr, plan: Plan) -> anyhow::Result<Publishers> {
        let poll = Poll::new()?;
        let mut all = Vec::new();
        for number in 0..plan.publishers {
            let stream = packet::connect(addr, &format!("bench-publisher-{number}"))?;
            let packets = if plan.qos == 0 { BLOCK_BYTES.div_ceil(plan.payload_bytes) } else { plan.in_flight };
            all.push(Publisher {
                stream: registered(&poll, stream, all.len())?,
                block: Block::new(number, plan.qos, plan.payload_bytes, packets),
                packets: 0,
                written: 0,
                writable: true,
                window: (plan.qos > 0).then_some(plan.in_flight as u64),
                sent: 0,
                ack_bytes: 0,
            });
        }
        Ok(Publishers { poll, all })
    }

    /// Publishes until the deadline, or so many messages each, and waits for what is not acknowledged yet.
    fn run(&mut self, deadline: Instant, messages_max: u64) -> anyhow::Result<()> {
        let mut events = Events::with_capacity(1_024);
        let mut buffer = vec![0; READ_BYTES];
        let mut progress_at = Instant::now();
        loop {
            let in_time = Instant::now() < deadline;
            let (mut wrote, mut more, mut done) = (false, false, true);
            for publisher in &mut self.all {
                let sends = in_time && publisher.sent < messages_max;
                wrote |= publisher.write(sends)?;
                more |= sends && publisher.writable && publisher.window.is_none();
                done &= !sends && publisher.is_done();
            }
            if done {
                return Ok(());
            }
            if !wrote && !more {
                std::thread::sleep(ACK_PAUSE);
            }
            self.poll.poll(&mut events, Some(if more { Duration::ZERO } else { TICK }))?;
            let mut moved = wrote;
            for event in &events {
                let publisher = self.all.get_mut(event.token().0).context("an event of no publisher")?;
                publisher.writable |= event.is_writable();
                if event.is_readable() {
                    moved |= publisher.read_acks(&mut buffer)?;
                }
            }
            if moved {
                progress_at = Instant::now();
            }
            ensure!(progress_at.elapsed() < PATIENCE, "the broker takes and acknowledges nothing for {PATIENCE:?}");
        }
    }
}

impl Publisher {
    fn acknowledged(&self) -> u64 {
        (self.ack_bytes / PUBACK_BYTES) as u64
    }

    fn is_done(&self) -> bool {
        let written = self.written == self.block.bytes(self.packets).len();
        written && (self.window.is_none() || self.acknowledged() == self.sent)
    }

    /// How many packets may be written now.
    fn room(&self) -> usize {
        let Some(window) = self.window else { return self.block.packets() };
        let room = (window - (self.sent - self.acknowledged())) as usize;
        if room * REFILL_SHARE >= window as usize { room } else { 0 }
    }

    /// Goes on with the block, or begins the next one; true if the socket took something.
    fn write(&mut self, sends: bool) -> anyhow::Result<bool> {
        if !self.writable {
            return Ok(false);
        }
        if self.written == self.block.bytes(self.packets).len() {
            let room = self.room();
            if !sends || room == 0 {
                return Ok(false);
            }
            for packet in 0..room {
                self.block.number(packet, self.sent + packet as u64, 0);
            }
            self.sent += room as u64;
            (self.packets, self.written) = (room, 0);
        }
        let before = self.written;
        self.writable = write_some(&mut self.stream, self.block.bytes(self.packets), &mut self.written)?;
        Ok(self.written > before)
    }

    fn read_acks(&mut self, buffer: &mut [u8]) -> anyhow::Result<bool> {
        let mut moved = false;
        loop {
            let count = read_some(&mut self.stream, buffer)?;
            let first = (PUBACK_BYTES - self.ack_bytes % PUBACK_BYTES) % PUBACK_BYTES;
            for ack in buffer[..count].get(first..).unwrap_or_default().chunks(PUBACK_BYTES) {
                ensure!(PUBACK.starts_with(&ack[..ack.len().min(2)]), "{ack:?} instead of a PUBACK");
            }
            self.ack_bytes += count;
            moved |= count > 0;
            if count < buffer.len() {
                ensure!(self.window.is_none() || self.acknowledged() <= self.sent, "more PUBACKs than messages");
                return Ok(moved);
            }
        }
    }
}

struct Subscribers {
    poll: Poll,
    all: Vec<Subscriber>,
    patience: Duration,
}

struct Subscriber {
    stream: TcpStream,
    /// The number that comes next from each publisher.
    next: Vec<u64>,
    delivered: u64,
    repeated: u64,
    /// The beginning of a packet whose end has not come yet.
    rest: Vec<u8>,
    acks: Vec<u8>,
    acks_written: usize,
}

impl Subscribers {
    fn connect(addr: SocketAddr, plan: Plan) -> anyhow::Result<Subscribers> {
        let poll = Poll::new()?;
        let mut all = Vec::new();
        for number in 0..plan.subscribers {
            let stream = packet::subscribe(addr, &format!("bench-subscriber-{number}"), plan.qos)?;
            all.push(Subscriber {
                stream: registered(&poll, stream, all.len())?,
                next: vec![0; plan.publishers as usize],
                delivered: 0,
                repeated: 0,
                rest: Vec::new(),
                acks: Vec::new(),
                acks_written: 0,
            });
        }
        Ok(Subscribers { poll, all, patience: if plan.qos == 0 { QUIET } else { PATIENCE } })
    }

    /// Receives until everything that is due has come, or nothing comes any more; gives the time of the last message.
    fn run(&mut self, due: &AtomicU64) -> anyhow::Result<Option<Instant>> {
        let mut events = Events::with_capacity(1_024);
        let mut buffer = vec![0; READ_BYTES];
        let (mut delivered, mut last, mut idle_since) = (0, None, Instant::now());
        loop {
            self.poll.poll(&mut events, Some(TICK))?;
            let before = delivered;
            for event in &events {
                let subscriber = self.all.get_mut(event.token().0).context("an event of no subscriber")?;
                if event.is_readable() {
                    delivered += subscriber.read(&mut buffer)?;
                }
                subscriber.write_acks()?;
            }
            let now = Instant::now();
            let due = due.load(Ordering::Acquire);
            if delivered > before {
                last = Some(now);
            }
            // Patience begins when publishing has ended.
            if delivered > before || due == u64::MAX {
                idle_since = now;
            }
            if delivered >= due || now - idle_since > self.patience {
                return Ok(last);
            }
            std::thread::sleep(READ_PAUSE);
        }
    }
}

impl Subscriber {
    /// Reads everything that is there; gives the number of messages.
    fn read(&mut self, buffer: &mut [u8]) -> anyhow::Result<u64> {
        let before = self.delivered;
        loop {
            let begun = self.rest.len();
            buffer[..begun].copy_from_slice(&self.rest);
            self.rest.clear();
            let count = read_some(&mut self.stream, &mut buffer[begun..])?;
            let mut left = &buffer[..begun + count];
            while let Some((first, body, end)) = packet::first(left)? {
                let delivery = packet::delivery(first, body)?;
                self.take(&delivery)?;
                left = &left[end..];
            }
            self.rest.extend_from_slice(left);
            if begun + count < buffer.len() {
                return Ok(self.delivered - before);
            }
        }
    }

    fn take(&mut self, delivery: &packet::Delivery) -> anyhow::Result<()> {
        let next = self.next.get_mut(delivery.publisher as usize).context("a message of no publisher")?;
        if delivery.number >= *next {
            *next = delivery.number + 1;
            self.delivered += 1;
        } else {
            self.repeated += 1;
        }
        if let Some(id) = delivery.packet_id {
            self.acks.extend_from_slice(&PUBACK);
            self.acks.extend_from_slice(&id);
        }
        Ok(())
    }

    fn write_acks(&mut self) -> anyhow::Result<()> {
        if write_some(&mut self.stream, &self.acks, &mut self.acks_written)? {
            self.acks.clear();
            self.acks_written = 0;
        }
        Ok(())
    }
}
