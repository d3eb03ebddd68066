//! The process is killed at random moments while sessions are at work: nothing acknowledged is lost, QoS 2 comes exactly
//! once, in order for each topic and client, and every session is there afterwards.
//!
//! 20 kills in the ordinary run. `MILLWRIGHT_CRASH_ROUNDS=200` asks for more; `MILLWRIGHT_CRASH_SEED` takes the printed seed
//! of another run, which repeats what was drawn, not what the scheduler made of it.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use harness::PATIENCE;
use harness::client::{Client, Delivery};
use harness::gateway::{Gateway, read_log_after};
use harness::session_client::{SessionClient, Step, Version};

use crate::PROGRAM;

/// Kills in the ordinary run.
const ROUNDS: usize = 20;
/// Messages that each publisher may send between two kills.
const PER_ROUND: usize = 200;
/// Unfinished messages of each publisher.
const IN_FLIGHT: usize = 16;
/// The latest kill after the first acknowledgement of a round, in milliseconds.
const KILL_AFTER_MS_MAX: u64 = 300;
/// The latest kill after the first client of a round is back, which then has its unfinished messages sent again.
const KILL_IN_REDELIVERY_US_MAX: u64 = 20_000;
/// The slow subscriber takes this many packets, then lets the publishers have as many acknowledgements.
const SLOW_STEPS: usize = 8;
/// Payload of a message.
const PAYLOAD_BYTES: usize = 120;
/// Pause between two looks at a condition.
const LOOK: Duration = Duration::from_millis(1);

/// Who publishes, with what version, at which QoS: a topic for each.
const PUBLISHERS: [(&str, Version, &[u8]); 4] = [
    ("one", Version::V311, &[1]),
    ("two", Version::V311, &[2]),
    ("both", Version::V311, &[1, 2]),
    ("both-5", Version::V5, &[1, 2]),
];

/// How a subscriber reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    Fast,
    Slow,
    /// Not there in every other round.
    Away,
}

/// Who subscribes to everything, at which QoS.
const SUBSCRIBERS: [(&str, Version, u8, Pace); 6] = [
    ("fast", Version::V311, 2, Pace::Fast),
    ("slow", Version::V311, 2, Pace::Slow),
    ("slow-5", Version::V5, 2, Pace::Slow),
    ("away", Version::V311, 2, Pace::Away),
    ("fast-5-at-1", Version::V5, 1, Pace::Fast),
    ("away-at-1", Version::V311, 1, Pace::Away),
];

/// What the slow MQTT 5 subscriber takes at once.
const SLOW_RECEIVE_MAX: u16 = 16;

fn topic(publisher: &str, qos: u8) -> String {
    format!("kills/{qos}/{publisher}")
}

fn payload(topic: &str, number: usize) -> Vec<u8> {
    let mut payload = format!("{number} of {topic} ").into_bytes();
    payload.resize(PAYLOAD_BYTES, (number % 251) as u8);
    payload
}

/// Which message this is; its bytes are those that were published.
fn number_of(topic: &str, bytes: &[u8]) -> usize {
    let digits: String = bytes.iter().take_while(|byte| byte.is_ascii_digit()).map(|byte| *byte as char).collect();
    let number = digits.parse().unwrap_or_else(|_| panic!("{topic}: not a message of this test: {bytes:?}"));
    assert_eq!(payload(topic, number), bytes, "{topic}: not the bytes that were published");
    number
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % end
    }
}

/// What all clients share.
#[derive(Debug, Default)]
struct World {
    /// Acknowledged publishes by QoS.
    acknowledged: [AtomicUsize; 3],
    /// Connections whose session was found.
    connections: AtomicUsize,
    /// Clients that have their subscription.
    subscribed: AtomicUsize,
    /// The slow ones are to catch up.
    hurry: AtomicBool,
    stopped: AtomicBool,
}

impl World {
    fn acknowledged(&self) -> usize {
        self.acknowledged.iter().map(|count| count.load(SeqCst)).sum()
    }
}

/// What a client shares with the test.
#[derive(Debug, Default)]
struct Line {
    gateway: Mutex<Option<SocketAddr>>,
    /// A publisher: messages it may send, has sent, and has not finished.
    allowed: AtomicUsize,
    sent: AtomicUsize,
    unfinished: AtomicUsize,
    /// A subscriber: messages it had twice, those it had, by topic, and QoS 2 messages not released.
    repeated: AtomicUsize,
    seen: Mutex<HashMap<String, usize>>,
    unreleased: AtomicUsize,
}

impl Line {
    /// Connects to the gateway, if there is one. While it does, the gateway is not killed: another process could get its port.
    fn open(&self) -> Option<(SocketAddr, Client)> {
        let gateway = self.gateway.lock().unwrap_or_else(PoisonError::into_inner);
        let addr = (*gateway)?;
        Some((addr, Client::open(addr).ok()?))
    }

    fn set_gateway(&self, gateway: Option<SocketAddr>) {
        *self.gateway.lock().unwrap_or_else(PoisonError::into_inner) = gateway;
    }

    fn is_at(&self, addr: SocketAddr) -> bool {
        *self.gateway.lock().unwrap_or_else(PoisonError::into_inner) == Some(addr)
    }

    /// Takes a message, which is the next one of its topic, or at QoS 1 one that came before.
    fn take(&self, client: &str, message: &Delivery, subscribed_qos: u8) {
        let topic_qos: u8 = message.topic.split('/').nth(1).and_then(|level| level.parse().ok()).unwrap();
        assert_eq!(message.qos, topic_qos.min(subscribed_qos), "{client}: {message:?}");
        let number = number_of(&message.topic, &message.payload);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let next = seen.entry(message.topic.clone()).or_default();
        assert!(number <= *next, "{client}: {} of {}: lost, {number} comes instead", *next, message.topic);
        if number == *next {
            *next += 1;
        } else {
            // At-least-once in either part makes it so.
            assert!(message.qos == 1, "{client}: {number} of {} comes a second time", message.topic);
            self.repeated.fetch_add(1, SeqCst);
        }
    }

    fn seen(&self, topic: &str) -> usize {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(topic).copied().unwrap_or_default()
    }
}

/// A client on a thread of its own.
struct Worker {
    name: String,
    line: Arc<Line>,
    thread: JoinHandle<()>,
}

impl Worker {
    fn start(
        client: SessionClient,
        world: &Arc<World>,
        mut work: impl FnMut(&mut SessionClient, &Line, &World, SocketAddr) -> std::io::Result<()> + Send + 'static,
    ) -> Worker {
        let (name, line, world) = (client.id().to_owned(), Arc::new(Line::default()), Arc::clone(world));
        let shared = Arc::clone(&line);
        let mut client = client;
        let thread = std::thread::spawn(move || {
            while !world.stopped.load(SeqCst) {
                if let Some((addr, connection)) = shared.open() {
                    let ended = client.connect(connection).and_then(|()| {
                        world.connections.fetch_add(1, SeqCst);
                        work(&mut client, &shared, &world, addr)
                    });
                    // A connection ends with its gateway only; the session goes on.
                    let is_expected = ended.is_ok() || !shared.is_at(addr);
                    assert!(is_expected, "{}: the connection is gone: {ended:?}", client.id());
                }
                std::thread::sleep(LOOK);
            }
        });
        Worker { name, line, thread }
    }

    fn publisher(name: &'static str, version: Version, qos: &'static [u8], world: &Arc<World>) -> Worker {
        Worker::start(
            SessionClient::new(&format!("publisher-{name}"), version),
            world,
            move |client, line, world, _| {
                while !world.stopped.load(SeqCst) {
                    let sent = line.sent.load(SeqCst);
                    line.unfinished.store(client.in_flight(), SeqCst);
                    if client.in_flight() < IN_FLIGHT && sent < line.allowed.load(SeqCst) {
                        let (qos, number) = (qos[sent % qos.len()], sent / qos.len());
                        let topic = topic(name, qos);
                        line.unfinished.store(client.in_flight() + 1, SeqCst);
                        line.sent.store(sent + 1, SeqCst);
                        client.publish(&topic, payload(&topic, number), qos)?;
                    } else if let Step::Acknowledged(qos) = client.step()? {
                        world.acknowledged[usize::from(qos)].fetch_add(1, SeqCst);
                    }
                }
                Ok(())
            },
        )
    }

    fn subscriber(name: &'static str, version: Version, qos: u8, pace: Pace, world: &Arc<World>) -> Worker {
        let mut client = SessionClient::new(&format!("subscriber-{name}"), version);
        if (version, pace) == (Version::V5, Pace::Slow) {
            client = client.with_receive_max(SLOW_RECEIVE_MAX);
        }
        let mut is_subscribed = false;
        Worker::start(client, world, move |client, line, world, addr| {
            if !is_subscribed {
                client.subscribe("kills/#", qos)?;
                is_subscribed = true;
                world.subscribed.fetch_add(1, SeqCst);
            }
            while !world.stopped.load(SeqCst) {
                let until = world.acknowledged() + SLOW_STEPS;
                for _ in 0..SLOW_STEPS {
                    if let Step::Message(message) = client.step()? {
                        line.take(client.id(), &message, qos);
                    }
                    line.unreleased.store(client.unreleased(), SeqCst);
                }
                let waits = || pace == Pace::Slow && world.acknowledged() < until && !world.hurry.load(SeqCst);
                while waits() && line.is_at(addr) {
                    std::thread::sleep(LOOK);
                }
            }
            Ok(())
        })
    }
}

/// All clients, and what they share.
struct Clients {
    world: Arc<World>,
    publishers: Vec<Worker>,
    subscribers: Vec<Worker>,
}

impl Clients {
    fn start() -> Clients {
        let world = Arc::new(World::default());
        let publishers = PUBLISHERS.map(|(name, version, qos)| Worker::publisher(name, version, qos, &world));
        let subscribers =
            SUBSCRIBERS.map(|(name, version, qos, pace)| Worker::subscriber(name, version, qos, pace, &world));
        Clients { publishers: publishers.into(), subscribers: subscribers.into(), world }
    }

    fn all(&self) -> impl Iterator<Item = &Worker> {
        self.publishers.iter().chain(&self.subscribers)
    }

    fn set_gateway(&self, gateway: Option<SocketAddr>, is_there: impl Fn(Pace) -> bool) {
        self.publishers.iter().for_each(|publisher| publisher.line.set_gateway(gateway));
        for (subscriber, (_, _, _, pace)) in self.subscribers.iter().zip(SUBSCRIBERS) {
            subscriber.line.set_gateway(gateway.filter(|_| is_there(pace)));
        }
    }

    fn allow(&self, more: usize) {
        for publisher in &self.publishers {
            publisher.line.allowed.store(publisher.line.sent.load(SeqCst) + more, SeqCst);
        }
    }

    /// Every topic, with the number of messages that were sent to it.
    fn topics(&self) -> Vec<(String, usize)> {
        let mut topics = Vec::new();
        for (publisher, (name, _, qos)) in self.publishers.iter().zip(PUBLISHERS) {
            let sent = publisher.line.sent.load(SeqCst);
            let of = |index: usize| (sent + qos.len() - 1 - index) / qos.len();
            topics.extend(qos.iter().enumerate().map(|(index, qos)| (topic(name, *qos), of(index))));
        }
        topics
    }

    fn delivered(&self) -> usize {
        let of =
            |worker: &Worker| worker.line.seen.lock().unwrap_or_else(PoisonError::into_inner).values().sum::<usize>();
        self.subscribers.iter().map(of).sum()
    }

    fn repeated(&self) -> usize {
        self.subscribers.iter().map(|subscriber| subscriber.line.repeated.load(SeqCst)).sum()
    }

    /// Waits for a condition; patience begins anew whenever something was acknowledged or delivered.
    fn wait_for(&self, what: &str, gateway: &Gateway, condition: impl Fn() -> bool) {
        let progress = || (self.world.acknowledged(), self.delivered(), self.repeated());
        let (mut last, mut deadline) = (progress(), Instant::now() + PATIENCE);
        while !condition() {
            if progress() != last {
                (last, deadline) = (progress(), Instant::now() + PATIENCE);
            }
            let dead = self.all().find(|worker| worker.thread.is_finished());
            if dead.is_some() || Instant::now() >= deadline {
                // What comes of the gateway's end is no failure of its own.
                self.set_gateway(None, |_| true);
            }
            if let Some(dead) = dead {
                panic!("{} has failed while waiting for {what}; its thread says why", dead.name);
            }
            if Instant::now() >= deadline {
                let lines: Vec<_> = self.all().map(|worker| (&worker.name, &worker.line)).collect();
                panic!("gave up waiting for {what}: {:?}\n{lines:#?}\n{}", self.topics(), gateway.log());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until everything that may be sent is finished and with every subscriber, whose handshakes are over.
    fn drain(&self, gateway: &Gateway) {
        self.wait_for("everything to be published", gateway, || {
            self.publishers.iter().all(|publisher| {
                let line = &publisher.line;
                line.sent.load(SeqCst) == line.allowed.load(SeqCst) && line.unfinished.load(SeqCst) == 0
            })
        });
        let topics = self.topics();
        self.wait_for("everything to be delivered", gateway, || {
            self.subscribers.iter().all(|subscriber| {
                let line = &subscriber.line;
                line.unreleased.load(SeqCst) == 0 && topics.iter().all(|(topic, sent)| line.seen(topic) == *sent)
            })
        });
    }

    fn stop(self) {
        self.world.stopped.store(true, SeqCst);
        for worker in self.publishers.into_iter().chain(self.subscribers) {
            worker.thread.join().unwrap_or_else(|_| panic!("{} has failed", worker.name));
        }
    }
}

/// When a round's gateway is killed.
#[derive(Debug)]
enum Moment {
    AfterAcknowledgement(Duration),
    /// Clients are back, and what they have not finished is sent again.
    InRedelivery(Duration),
    /// The CONNACK of a new session has come, and its SUBSCRIBE was sent; with or without the SUBACK.
    AfterConnect {
        subscribed: bool,
    },
}

impl Moment {
    fn draw(random: &mut Random) -> Moment {
        match random.below(10) {
            0..6 => Moment::AfterAcknowledgement(Duration::from_millis(1 + random.below(KILL_AFTER_MS_MAX))),
            6..8 => Moment::InRedelivery(Duration::from_micros(random.below(KILL_IN_REDELIVERY_US_MAX))),
            drawn => Moment::AfterConnect { subscribed: drawn == 8 },
        }
    }
}

/// A client whose gateway was killed just after its first CONNACK or SUBACK.
struct Newcomer {
    client: SessionClient,
    topic: String,
    subscribed: bool,
}

impl Newcomer {
    fn connect(gateway: &Gateway, round: usize, subscribed: bool) -> Newcomer {
        let version = [Version::V311, Version::V5][round % 2];
        let mut client = SessionClient::new(&format!("newcomer-{round}"), version);
        client.connect(Client::open(gateway.mqtt).unwrap()).unwrap();
        let topic = format!("newcomer/{round}");
        match subscribed {
            true => client.subscribe(&topic, 2).unwrap(),
            false => client.send_subscribe(&topic, 2).unwrap(),
        }
        Newcomer { client, topic, subscribed }
    }

    /// Its session is there, and the subscription, if that was granted.
    fn check(mut self, gateway: &Gateway) {
        self.client.connect(Client::open(gateway.mqtt).unwrap()).unwrap();
        if self.subscribed {
            self.client.publish(&self.topic, b"\0".to_vec(), 2).unwrap();
            assert_eq!(self.client.next_message().unwrap().topic, self.topic);
        }
    }
}

/// Waits for the moment of a round's kill.
fn wait_for_moment(
    moment: &Moment,
    round: usize,
    clients: &Clients,
    gateway: &Gateway,
    before: (usize, usize),
) -> Option<Newcomer> {
    let (acknowledged, connections) = before;
    match moment {
        Moment::AfterAcknowledgement(after) => {
            clients.wait_for("an acknowledgement", gateway, || clients.world.acknowledged() > acknowledged);
            std::thread::sleep(*after);
            None
        }
        Moment::InRedelivery(after) => {
            clients.wait_for("a connection", gateway, || clients.world.connections.load(SeqCst) > connections);
            std::thread::sleep(*after);
            None
        }
        Moment::AfterConnect { subscribed } => Some(Newcomer::connect(gateway, round, *subscribed)),
    }
}

/// The log has every QoS 2 message once, in order; at QoS 1 none is missing.
fn check_log(data_dir: &Path, topics: &[(String, usize)]) {
    let mut logged: HashMap<String, usize> = HashMap::new();
    for (_, topic, bytes) in read_log_after(data_dir, 0).unwrap() {
        if topic.starts_with("kills/") {
            let (number, next) = (number_of(&topic, &bytes), logged.entry(topic.clone()).or_default());
            let is_repeated = number < *next && topic.starts_with("kills/1/");
            assert!(number == *next || is_repeated, "{topic}: {number} is in the log where {next} should be");
            *next = (*next).max(number + 1);
        }
    }
    for (topic, sent) in topics {
        assert_eq!(logged.get(topic), Some(sent), "{topic}");
    }
}

/// Half of the rounds commit at once, half as the default is.
fn config(round: usize) -> &'static str {
    ["[log]\ncommit_delay_ms = 0\n", ""][round / 2 % 2]
}

// The gateway is killed 20 times at random moments while four publishers keep 16 messages each in flight at QoS 1 and 2, and
// six persistent subscribers, fast, slow and away, have them: after every kill every session is there, and at the end each
// subscriber has had everything, at QoS 2 exactly once and at QoS 1 at least once, in order for each topic and client.
#[test]
fn sessions_survive_kills_at_random_moments() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let rounds = number("MILLWRIGHT_CRASH_ROUNDS").map_or(ROUNDS, |rounds: u64| rounds as usize);
    let seed = number("MILLWRIGHT_CRASH_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    eprintln!("MILLWRIGHT_CRASH_SEED={seed}");
    let mut random = Random(seed);
    let dir = tempfile::tempdir().unwrap();
    let clients = Clients::start();
    let mut newcomer: Option<Newcomer> = None;
    for round in 0..rounds {
        let gateway = Gateway::start(PROGRAM, dir.path(), config(round)).unwrap();
        let before = (clients.world.acknowledged(), clients.world.connections.load(SeqCst));
        clients.set_gateway(Some(gateway.mqtt), |pace| pace != Pace::Away || round % 2 == 0);
        if let Some(newcomer) = newcomer.take() {
            newcomer.check(&gateway);
        }
        if round == 0 {
            // A subscription that was not acknowledged need not be there afterwards.
            let subscribed = || clients.world.subscribed.load(SeqCst) == SUBSCRIBERS.len();
            clients.wait_for("all to subscribe", &gateway, subscribed);
        }
        clients.allow(PER_ROUND);
        let moment = Moment::draw(&mut random);
        newcomer = wait_for_moment(&moment, round, &clients, &gateway, before);
        // Only then: nobody is to find another process at its port.
        clients.set_gateway(None, |_| true);
        gateway.kill().unwrap();
    }

    let gateway = Gateway::start(PROGRAM, dir.path(), "").unwrap();
    clients.set_gateway(Some(gateway.mqtt), |_| true);
    clients.world.hurry.store(true, SeqCst);
    clients.allow(0);
    clients.drain(&gateway);
    clients.set_gateway(None, |_| true);
    assert_eq!(gateway.terminate().unwrap(), Some(0));
    // Once more, after an orderly stop: what comes next is what is published next.
    let gateway = Gateway::start(PROGRAM, dir.path(), "").unwrap();
    clients.set_gateway(Some(gateway.mqtt), |_| true);
    clients.allow(IN_FLIGHT);
    clients.drain(&gateway);
    if let Some(newcomer) = newcomer {
        newcomer.check(&gateway);
    }
    clients.set_gateway(None, |_| true);
    assert_eq!(gateway.terminate().unwrap(), Some(0));
    let topics = clients.topics();
    check_log(&dir.path().join("data"), &topics);
    let [_, qos1, qos2] = &clients.world.acknowledged;
    eprintln!(
        "{rounds} kills, {} and {} messages acknowledged at QoS 1 and 2, {} delivered, {} repeated at QoS 1; 0 lost, 0 of QoS 2 twice",
        qos1.load(SeqCst),
        qos2.load(SeqCst),
        clients.delivered(),
        clients.repeated()
    );
    clients.stop();
}
