//! The courier of one upstream: connects, delivers what its lanes hold, and tries again.
//!
//! Owns the order: urgent messages before telemetry, health and status now and then; one delivery is under way while the next ones are
//! read on another thread.
//! What is confirmed moves the cursor at once; after an error the rest comes first on the next connection. A
//! message that the peer refuses for what it is would hold up all others for ever: after [`REFUSALS_MAX`] attempts it is
//! passed, counted and told; it stays in the log.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use millwright_broker::log::{Log, Offset, ReadError};
use tokio::sync::watch;

use super::Down;
use super::lane::Lane;
use super::latest::Latest;
use super::rate::Allowance;
use super::record::Record;
use super::retry::{Retry, chance};
use super::sink::{Confirmed, Sink, SinkError, connect};
use super::status::Tally;
use crate::clock;
use crate::config::UpstreamConfig;
use crate::config::upstream::Compression;
use crate::config::upstream::UpstreamKind;

/// Attempts for a message that the peer refuses.
const REFUSALS_MAX: u32 = 3;
/// The longest pause before consumers are listened for again.
const DEAF_MAX: Duration = Duration::from_secs(1);
/// How often health and status are looked at, and how long an idle courier waits at most.
const BEAT: Duration = Duration::from_secs(1);
/// How often progress is looked at during a delivery.
const LOOK: Duration = Duration::from_millis(200);
/// How often the log is looked through for urgent messages while telemetry waits.
const GLANCE: Duration = Duration::from_millis(20);
/// How long a stop waits for the delivery that is under way.
const STOP_MAX: Duration = Duration::from_secs(3);
/// Health and status messages of one delivery.
const LATEST_MAX: usize = 500;
/// Smaller payloads are not compressed: the frame of gzip alone takes 18 bytes, and there is little to find.
const GZIP_BYTES_MIN: usize = 128;

/// The courier.
pub(super) struct Courier {
    pub(super) config: UpstreamConfig,
    pub(super) log: Log,
    pub(super) down: Down,
    pub(super) urgent: Option<Lane>,
    pub(super) bulk: Option<Lane>,
    pub(super) latest: Option<Latest>,
    /// After a failure one message goes alone: a server that begins to take messages in the middle of a delivery would get its end
    /// before its beginning.
    pub(super) probes: bool,
    /// When the log could not be read: it is tried again a beat later.
    pub(super) unreadable: Option<Instant>,
    pub(super) tally: Arc<Tally>,
    pub(super) stop: watch::Receiver<bool>,
}

/// Where a delivery comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Urgent,
    Bulk,
    Latest,
}

/// Why a connection was given up.
enum Over {
    Stopped,
    Failed(SinkError),
}

impl Courier {
    /// Works until it is stopped.
    pub(super) async fn run(mut self) {
        let mut retry = Retry::new(self.retry_max());
        let mut refusals: (String, u32) = (String::new(), 0);
        let mut stop = self.stop.clone();
        loop {
            self.tally.connecting();
            let connected = tokio::select! {
                connected = tokio::time::timeout(self.config.timeout, connect(&self.config, &self.down)) => connected,
                never = self.watch_backlog() => match never {},
                _ = stop.wait_for(|stop| *stop) => return,
            };
            let over = match connected {
                Ok(Ok(sink)) => self.deliver_over(sink, &mut retry).await,
                Ok(Err(error)) => Over::Failed(error),
                Err(_) => {
                    let waited = self.config.timeout.as_secs();
                    Over::Failed(SinkError::Lost(format!("{} has not answered within {waited} s", self.config.address)))
                }
            };
            let error = match over {
                Over::Stopped => return,
                Over::Failed(error) => error,
            };
            self.probes = true;
            if let SinkError::Refused { id, .. } = &error {
                refusals = if refusals.0 == *id { (refusals.0, refusals.1 + 1) } else { (id.clone(), 1) };
                if refusals.1 >= REFUSALS_MAX {
                    self.pass_refused(&error);
                    continue;
                }
            }
            let pause = retry.pause(chance());
            self.tally.failed(&error, pause);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                never = self.watch_backlog() => match never {},
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// The longest pause. ZeroMQ's consumers come to the gateway: nobody is spared by not listening for them.
    fn retry_max(&self) -> Duration {
        match self.config.kind {
            UpstreamKind::Zeromq { .. } => self.config.retry_max.min(DEAF_MAX),
            _ => self.config.retry_max,
        }
    }

    /// Leaves out the first message of the lane that holds it.
    fn pass_refused(&mut self, error: &SinkError) {
        let SinkError::Refused { id, .. } = error else { return };
        for lane in [self.urgent.as_mut(), self.bulk.as_mut()].into_iter().flatten() {
            if lane.pass(id) {
                tracing::error!(upstream = self.config.name, "a message is left out: {error}; it stays in the log");
                self.tally.refused();
            }
        }
    }

    /// Uses one connection until it ends.
    async fn deliver_over(&mut self, mut sink: Box<dyn Sink>, retry: &mut Retry) -> Over {
        self.tally.connected();
        let mut allowance = Allowance::new(self.config.rate_max, Instant::now());
        let mut looked: Option<Instant> = None;
        loop {
            if *self.stop.borrow() {
                // A peer that does not answer must not hold up the stop.
                let _ = tokio::time::timeout(STOP_MAX, sink.close()).await;
                return Over::Stopped;
            }
            self.read_on();
            // What has arrived is taken in, without waiting for what has not: there may be an alert in it.
            tokio::select! {
                biased;
                () = self.arrived() => {}
                () = std::future::ready(()) => {}
            }
            self.note_backlog();
            let look = self.latest.is_some() && looked.is_none_or(|at| at.elapsed() >= BEAT);
            let (from, records) = match self.next_delivery(look, &mut allowance) {
                Some(next) => next,
                None => {
                    let is_reading = self.lanes().any(Lane::is_reading);
                    let pause = self.pause(allowance.wait());
                    tokio::select! {
                        () = self.arrived(), if is_reading => {}
                        () = wait(pause), if !is_reading => {}
                        error = sink.ended() => return Over::Failed(error),
                    }
                    continue;
                }
            };
            if from == From::Latest {
                looked = Some(Instant::now());
                if records.is_empty() {
                    continue;
                }
            }
            let sent = records.len();
            let (confirmed, result) = self.deliver(sink.as_mut(), from, records).await;
            if from == From::Bulk {
                allowance.sent(sent);
            }
            if confirmed > 0 {
                retry.worked();
                self.probes = false;
            }
            if let Err(error) = result {
                return Over::Failed(error);
            }
        }
    }

    fn lanes(&self) -> impl Iterator<Item = &Lane> {
        [self.urgent.as_ref(), self.bulk.as_ref()].into_iter().flatten()
    }

    /// Has both lanes read on where there is room.
    fn read_on(&mut self) {
        if self.unreadable.is_some_and(|at| at.elapsed() < BEAT) {
            return;
        }
        self.unreadable = None;
        let now_us = clock::utc_us();
        for lane in [self.urgent.as_mut(), self.bulk.as_mut()].into_iter().flatten() {
            lane.begin(&self.log, self.config.batch, now_us);
        }
    }

    /// Waits for what a lane reads. May be dropped and called again.
    async fn arrived(&mut self) {
        let result = tokio::select! {
            result = arrived(&mut self.urgent) => result,
            result = arrived(&mut self.bulk) => result,
        };
        if let Err(error) = result {
            tracing::error!(upstream = self.config.name, %error, "the log cannot be read");
            self.unreadable = Some(Instant::now());
        }
    }

    /// What goes next.
    fn next_delivery(&mut self, look: bool, allowance: &mut Allowance) -> Option<(From, Vec<Record>)> {
        let batch = self.config.batch;
        let messages = if self.probes { 1 } else { batch.messages };
        if let Some(lane) = self.urgent.as_mut().filter(|lane| lane.has_waiting()) {
            return Some((From::Urgent, lane.take(batch, messages)));
        }
        if let (true, Some(latest)) = (look, &self.latest) {
            return Some((From::Latest, latest.changed(&self.log, clock::utc_us(), LATEST_MAX)));
        }
        let lane = self.bulk.as_mut().filter(|lane| lane.has_waiting())?;
        if !lane.is_full(batch) && lane.oldest_us().is_some_and(|oldest| is_early(oldest, batch.delay)) {
            return None;
        }
        match allowance.may_send(messages, Instant::now()) {
            0 => None,
            messages => Some((From::Bulk, lane.take(batch, messages))),
        }
    }

    /// Delivers, and reads ahead meanwhile; returns how many were confirmed.
    async fn deliver(
        &mut self,
        sink: &mut dyn Sink,
        from: From,
        mut records: Vec<Record>,
    ) -> (usize, Result<(), SinkError>) {
        if from != From::Latest && self.packs() {
            records.iter_mut().for_each(pack);
        }
        let (confirmed, begun) = (Confirmed::default(), Instant::now());
        let result = self.deliver_watched(sink, from, &records, &confirmed).await;
        let count = if result.is_ok() { records.len() } else { confirmed.get().min(records.len()) };
        let bytes = records.iter().take(count).map(|record| record.payload.len() as u64).sum();
        self.tally.confirmed(count as u64, bytes, begun.elapsed());
        match from {
            From::Latest => {
                self.settle_latest(&records, count, result.as_ref().err());
            }
            From::Urgent => self.urgent.iter_mut().for_each(|lane| lane.put_back(std::mem::take(&mut records), count)),
            From::Bulk => self.bulk.iter_mut().for_each(|lane| lane.put_back(std::mem::take(&mut records), count)),
        }
        (count, result)
    }

    /// The peer has the first `count` of these; one that it refuses is not shown to it again before it changes.
    fn settle_latest(&mut self, records: &[Record], count: usize, error: Option<&SinkError>) {
        let Some(latest) = self.latest.as_mut() else { return };
        latest.confirm(records.get(..count).unwrap_or_default(), &self.log);
        if let Some(error @ SinkError::Refused { id, .. }) = error
            && let Some(index) = records.iter().position(|record| record.id == *id)
        {
            latest.confirm(records.get(index..=index).unwrap_or_default(), &self.log);
            tracing::error!(upstream = self.config.name, "a message is left out: {error}");
            self.tally.refused();
        }
    }

    /// Delivers until all is confirmed, an error, a time without progress, or the stop.
    async fn deliver_watched(
        &mut self,
        sink: &mut dyn Sink,
        from: From,
        records: &[Record],
        confirmed: &Confirmed,
    ) -> Result<(), SinkError> {
        let mut delivery = sink.deliver(records, confirmed);
        let (mut progress, mut moved) = (0, Instant::now());
        let mut stop_by: Option<Instant> = None;
        let mut look = tokio::time::interval(LOOK);
        // What the next deliveries take is read while this one is made and under way: reading begins on its thread first.
        self.read_on();
        tokio::task::yield_now().await;
        loop {
            tokio::select! {
                result = &mut delivery => return result,
                () = self.arrived() => {
                    self.read_on();
                    continue;
                }
                _ = look.tick() => {}
            }
            self.note_backlog();
            let lane = if from == From::Urgent { &self.urgent } else { &self.bulk };
            let count = confirmed.get();
            if count > progress {
                (progress, moved) = (count, Instant::now());
                if let (Some(lane), true) = (lane, from != From::Latest) {
                    lane.confirm(records, count);
                }
            }
            if moved.elapsed() >= self.config.timeout {
                let seconds = self.config.timeout.as_secs();
                return Err(SinkError::Lost(format!("nothing was confirmed for {seconds} s")));
            }
            if *self.stop.borrow() && *stop_by.get_or_insert_with(|| Instant::now() + STOP_MAX) <= Instant::now() {
                return Err(SinkError::Lost("the gateway stops".to_owned()));
            }
        }
    }

    /// What is waited for when there is nothing to deliver: the log to grow, the beat, the rate or the stop.
    fn pause(&self, longest: Duration) -> Pause {
        let has_waiting = self.bulk.as_ref().is_some_and(Lane::has_waiting);
        let longest = match (longest, has_waiting) {
            (Duration::ZERO, true) => self.config.batch.delay.clamp(Duration::from_millis(1), BEAT),
            (Duration::ZERO, false) => BEAT,
            (wait, _) => wait.min(BEAT),
        };
        let growth = match (self.unreadable, has_waiting) {
            // Trying at once what has just failed would take all of the time.
            (Some(_), _) => None,
            // Without a lane, as for health alone, there is nothing in the log to wait for.
            (None, false) => self.lanes().map(Lane::read_to).min().map(|read| (Duration::ZERO, read)),
            // An alert does not wait for the rate or for a full delivery; looking for one does not take all of the time.
            (None, true) => self.urgent.as_ref().map(|urgent| (GLANCE, urgent.read_to())),
        };
        Pause { head: self.log.watch_head(), stop: self.stop.clone(), growth, longest }
    }

    /// Keeps the backlog's figure true while there is no connection: that is when it grows.
    async fn watch_backlog(&self) -> Infallible {
        loop {
            self.note_backlog();
            tokio::time::sleep(BEAT).await;
        }
    }

    fn note_backlog(&self) {
        let head = self.log.head().0;
        let position = self.lanes().map(|lane| lane.confirmed().0).min().unwrap_or(head);
        self.tally.backlog(head, position, self.lanes().map(Lane::lost).sum());
    }

    /// Whether payloads are packed here; Kafka packs batches by itself.
    fn packs(&self) -> bool {
        self.config.compression == Compression::Gzip && !matches!(self.config.kind, UpstreamKind::Kafka(_))
    }
}

/// See [`Courier::pause`].
struct Pause {
    head: watch::Receiver<Offset>,
    stop: watch::Receiver<bool>,
    /// How long the log is not looked at, and what of it is known already.
    growth: Option<(Duration, Offset)>,
    longest: Duration,
}

async fn wait(pause: Pause) {
    let Pause { mut head, mut stop, growth, longest } = pause;
    let grown = async {
        let Some((rest, read)) = growth else { return std::future::pending().await };
        tokio::time::sleep(rest).await;
        // An error means that the log is closed, and then the stop is near.
        let _ = head.wait_for(|head| *head > read).await;
    };
    tokio::select! {
        () = grown => {}
        () = tokio::time::sleep(longest) => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
}

/// What a lane reads; for ever if there is no lane.
async fn arrived(lane: &mut Option<Lane>) -> Result<(), ReadError> {
    match lane {
        Some(lane) => lane.arrived().await,
        None => std::future::pending().await,
    }
}

/// Whether a delivery should wait for more.
fn is_early(oldest_us: i64, delay: Duration) -> bool {
    let waited_us = clock::utc_us().saturating_sub(oldest_us);
    // A clock that was set back must not hold a delivery for long.
    (0..i64::try_from(delay.as_micros()).unwrap_or(i64::MAX)).contains(&waited_us)
}

/// Packs a payload with gzip if that makes it smaller.
fn pack(record: &mut Record) {
    use std::io::Write as _;
    if record.gzipped || record.payload.len() < GZIP_BYTES_MIN {
        return;
    }
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let packed = encoder.write_all(&record.payload).and_then(|()| encoder.finish());
    if let Ok(packed) = packed
        && packed.len() < record.payload.len()
    {
        record.payload = Bytes::from(packed);
        record.gzipped = true;
    }
}
