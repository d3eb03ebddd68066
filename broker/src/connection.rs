//! The async shell around one [`Session`]: socket, clock, log and live fan-out.
//!
//! One task per connection, which never blocks and never waits for its client alone: it reads, writes, awaits commits,
//! the log, live fan-out and the clock together. It stops reading when the session says so. All packets of a read go to
//! the log as one batch, and up to [`appends::APPENDS_MAX`] batches are on their way at a time, answered in order.

mod appends;
mod feed;
mod io;
mod opening;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Sleep, sleep_until, timeout};

use crate::admission::Stranger;
use crate::clock;
use crate::codec::{Decoder, Reason};
use crate::keeper;
use crate::log::{AppendError, Offset, SessionCursor};
use crate::memory::{MEMORY_PAUSE, MemoryShare};
use crate::message::Message;
use crate::rate::Allowance;
use crate::registry::Place;
use crate::server::Hub;
use crate::session::{Ended, Event, Moment, Session};
use crate::stats::count;
use crate::topic::TopicFilter;
use crate::transport::{self, Layers, Opened};
use appends::Appends;
use feed::Feed;
use io::Io;

/// How long the output may stand still before the client counts as gone: it reads nothing.
const WRITE_STALL_MAX: Duration = Duration::from_secs(60);

/// How long the end of a connection waits for its publishes and its will to be on disk.
const FINISH_MAX: Duration = Duration::from_secs(2);

/// How long the last bytes may take to leave, and how long the client may take to close its end.
const FLUSH_MAX: Duration = Duration::from_secs(1);
const LINGER_MAX: Duration = Duration::from_millis(200);

/// The longest pause of a publisher whose QoS 0 messages live fan-out cannot keep up with, after each read.
const PACE_PAUSE_MAX: Duration = Duration::from_millis(20);

/// Pause of a publisher whose telemetry the log cannot keep up with.
const LOG_PAUSE: Duration = Duration::from_millis(1);

/// A connection as it was accepted.
pub(crate) struct Newcomer {
    pub(crate) stream: TcpStream,
    pub(crate) layers: Layers,
    pub(crate) peer: SocketAddr,
    pub(crate) accepted_at: Instant,
    pub(crate) stranger: Stranger,
}

/// Serves one connection to its end.
pub(crate) async fn serve(hub: Arc<Hub>, newcomer: Newcomer, mut stop: watch::Receiver<bool>) {
    count(&hub.counters.connections, 1);
    let Newcomer { stream, layers, peer, accepted_at, stranger } = newcomer;
    let mut stranger = Some(stranger);
    let deadline = accepted_at + hub.limits.connect_deadline;
    let handshake =
        tokio::time::timeout_at(deadline.into(), transport::open(stream, &layers, hub.limits.packet_bytes_max));
    let opened = tokio::select! {
        opened = handshake => opened.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())),
        () = evicted(&mut stranger) => Err(std::io::ErrorKind::TimedOut.into()),
        () = stopped(&mut stop) => Err(std::io::ErrorKind::ConnectionAborted.into()),
    };
    match opened {
        Ok(opened) => {
            let mut connection = Connection::new(&hub, opened, (peer, accepted_at), stranger, stop);
            connection.run().await;
            connection.finish().await;
        }
        Err(error) => {
            count(&hub.counters.handshakes_failed, 1);
            tracing::debug!(%peer, %error, "a connection ended in its handshake");
        }
    }
    hub.counters.connections.fetch_sub(1, Ordering::Relaxed);
}

struct Connection {
    hub: Arc<Hub>,
    peer: SocketAddr,
    /// The name in its certificate.
    certificate: Option<Box<str>>,
    io: Io,
    session: Session,
    decoder: Decoder,
    input: BytesMut,
    appends: Appends,
    feed: Feed,
    head: watch::Receiver<Offset>,
    /// Members of its groups gave messages back.
    returned: watch::Receiver<u64>,
    /// Until the client is accepted.
    stranger: Option<Stranger>,
    /// From then on.
    place: Option<Place>,
    stop: watch::Receiver<bool>,
    will: Option<Message>,
    /// An update of the stored session on its way to the disk.
    storing: Option<Storing>,
    cursor: Option<SessionCursor>,
    closed: bool,
    /// How often the client may publish, and how many publishes were charged.
    publishes: (Allowance, u64),
    /// What it holds of the broker's memory.
    memory: MemoryShare,
    /// Subscriptions counted in the hub.
    subscriptions: usize,
    pause: Option<Pause>,
    timer: Pin<Box<Sleep>>,
    timer_at: Option<Instant>,
}

/// A publisher is not read for a moment, because others cannot keep up with its QoS 0 messages.
struct Pause {
    /// Until the subscribers' tasks have caught up.
    for_room: bool,
    /// But no longer.
    until: Instant,
}

type Storing = Pin<Box<dyn Future<Output = Result<(), AppendError>> + Send>>;

/// What woke the connection up.
enum Wake {
    Io(std::io::Result<io::Progress>),
    Appended(appends::Outcome),
    Fed(feed::Fed),
    Stored(Result<(), AppendError>),
    /// The head of the log moved, or a deadline passed.
    Look,
    Close(Reason),
}

impl Connection {
    fn new(
        hub: &Arc<Hub>,
        opened: Opened,
        (peer, accepted_at): (SocketAddr, Instant),
        stranger: Option<Stranger>,
        stop: watch::Receiver<bool>,
    ) -> Connection {
        let now = Instant::now();
        Connection {
            peer,
            certificate: opened.certificate,
            io: Io::new(opened.stream),
            session: Session::new(Arc::clone(&hub.limits), Arc::clone(&hub.authorize), accepted_at),
            decoder: Decoder::server(hub.limits.packet_bytes_max),
            input: BytesMut::new(),
            appends: Appends::default(),
            feed: Feed::default(),
            head: hub.log.watch_head(),
            returned: hub.shares.watch_returned(),
            stranger,
            place: None,
            stop,
            will: None,
            storing: None,
            cursor: None,
            closed: false,
            publishes: (Allowance::new(hub.limits.publishes_per_s_max, now), 0),
            memory: MemoryShare::new(&hub.memory),
            subscriptions: 0,
            pause: None,
            timer: Box::pin(sleep_until(now.into())),
            timer_at: None,
            hub: Arc::clone(hub),
        }
    }

    fn moment(&mut self) -> Moment {
        let log = &self.hub.log;
        Moment {
            at: Instant::now(),
            utc_us: clock::now_us(),
            head: log.head(),
            filters_fit: log.sessions().has_room_for_filters(),
            subscriptions_fit: self.hub.subscriptions.load(Ordering::Relaxed) < self.hub.limits.subscriptions_total_max,
        }
    }

    async fn run(&mut self) {
        while !self.closed {
            let moment = self.moment();
            self.session.handle_timeout(moment.at);
            self.decode(moment);
            self.session.pump(moment);
            self.account();
            self.handle_events().await;
            self.append(moment);
            self.store(moment);
            self.session.update_groups();
            self.hold_to_memory(moment);
            self.feed.fetch(&self.hub.log, &mut self.session, &self.memory, moment);
            self.feed.count(&mut self.session, &self.hub.counters);
            if self.closed {
                return;
            }
            tokio::task::coop::consume_budget().await;
            let wake = self.wait().await;
            self.on_wake(wake);
        }
    }

    /// Hands the packets that are there to the session.
    fn decode(&mut self, moment: Moment) {
        while self.pause.is_none() {
            while self.session.wants_packets() {
                match self.decoder.decode(&mut self.input) {
                    Ok(Some(packet)) => self.session.handle(packet, moment),
                    Ok(None) => break,
                    Err(error) => self.session.malformed(error, self.decoder.version()),
                }
            }
            let volatile = self.session.take_volatile();
            let is_done = volatile.is_empty();
            if !is_done {
                self.publish_volatile(volatile, moment);
            }
            self.hold_to_rate(moment);
            if is_done {
                return;
            }
        }
    }

    /// A client that publishes faster than it may is not read for as long as it was too fast.
    fn hold_to_rate(&mut self, moment: Moment) {
        let (allowance, charged) = &mut self.publishes;
        let publishes = self.session.publishes();
        if let Some(wait) = allowance.spend(publishes - *charged, moment.at) {
            self.pause = Some(Pause { for_room: false, until: moment.at + wait });
        }
        *charged = publishes;
    }

    /// A client that holds much while the broker holds too much is not read until it, or the broker, holds less.
    fn hold_to_memory(&mut self, moment: Moment) {
        let (queued, tail_bytes) = self.session.held_bytes();
        let is_held_back = self.memory.set(queued + tail_bytes + self.input.len(), queued);
        if is_held_back && self.pause.is_none() {
            self.pause = Some(Pause { for_room: false, until: moment.at + MEMORY_PAUSE });
        }
    }

    /// Tells the others how many subscriptions there are, and the operator what was denied.
    fn account(&mut self) {
        let subscriptions = self.session.subscription_count();
        if subscriptions != self.subscriptions {
            let hub = &self.hub.subscriptions;
            hub.fetch_add(subscriptions, Ordering::Relaxed);
            hub.fetch_sub(self.subscriptions, Ordering::Relaxed);
            self.subscriptions = subscriptions;
        }
        let (denied, first) = self.session.take_denied();
        count(&self.hub.counters.denied, denied);
        if let Some(topic) = first {
            let identity = self.session.identity();
            tracing::info!(
                peer = %self.peer, client = %identity.client_id, name = identity.name(), %topic,
                "not allowed by any access rule; more of this connection is only counted"
            );
        }
    }

    fn publish_volatile(&mut self, volatile: Vec<Message>, moment: Moment) {
        count(&self.hub.counters.received_volatile, volatile.len() as u64);
        let logged = self.log_telemetry(&volatile, moment);
        if self.hub.publish_live(volatile) {
            self.pause = Some(Pause { for_room: true, until: moment.at + PACE_PAUSE_MAX });
        } else if !logged {
            self.pause = Some(Pause { for_room: false, until: moment.at + LOG_PAUSE });
        }
    }

    /// Logs the QoS 0 messages that are telemetry; false if some were not.
    fn log_telemetry(&self, volatile: &[Message], moment: Moment) -> bool {
        let telemetry: Vec<_> = volatile
            .iter()
            .filter(|message| self.is_telemetry(message))
            .map(|message| appends::append(message.clone(), true, moment.utc_us))
            .collect();
        match self.hub.log.try_append(telemetry) {
            Ok(()) => true,
            Err(full) => {
                count(&self.hub.counters.telemetry_not_logged, full.batch.len() as u64);
                false
            }
        }
    }

    fn is_telemetry(&self, message: &Message) -> bool {
        self.hub.telemetry.iter().any(|filter| filter.matches(&message.topic))
    }

    fn append(&mut self, moment: Moment) {
        while self.appends.has_room() {
            let mut batch = self.session.take_durable(appends::BATCH_ROWS_MAX, appends::BATCH_BYTES_MAX);
            if batch.is_empty() {
                return;
            }
            // Telemetry that is retained at QoS 0 is logged like any other.
            for durable in batch.iter_mut().filter(|durable| !durable.log) {
                durable.log = self.is_telemetry(&durable.message);
            }
            self.appends.push(&self.hub, batch, self.session.stored_id(), moment.utc_us);
        }
    }

    /// Stores what the session has to store, one update at a time.
    fn store(&mut self, moment: Moment) {
        if let Some(cursor) = &self.cursor {
            cursor.advance(self.session.progress(moment).position);
        }
        if self.storing.is_none()
            && let Some(update) = self.session.take_update(moment)
        {
            let log = self.hub.log.clone();
            self.storing = Some(Box::pin(async move { log.store_session(update).await }));
        }
    }

    async fn handle_events(&mut self) {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Connect(connect) => self.connect(&connect).await,
                Event::Join { filter, counts, is_new } => self.join(&filter, counts, is_new),
                Event::Left { filter, counted } => self.hub.left(&filter, counted),
                Event::Watch { filter, qos } => self.feed.watch(&self.hub.live, &filter, qos),
                Event::FetchRetained(filter) => {
                    self.retained_is_current().await;
                    let messages = self.hub.log.retained().matching(&filter);
                    let moment = self.moment();
                    self.session.retained(filter, messages, moment);
                }
                Event::Will(will) => self.will = Some(will),
                Event::Close => self.closed = true,
            }
        }
    }

    fn join(&mut self, filter: &TopicFilter, counts: bool, is_new: bool) {
        let moment = self.moment();
        let key = self.feed.key(&self.hub.live);
        let (member, start) = self.hub.shares.join(filter, (self.session.number(), key), moment.head);
        if counts && is_new {
            self.hub.shares.count_stored(filter, moment.head, true);
        }
        self.session.joined(member, start, counts, moment);
    }

    /// The log moves its head, then the retained messages, then announces the head. A subscription that begins at the
    /// head must find every retained message before it: waits the moment that this takes.
    async fn retained_is_current(&mut self) {
        let head = self.hub.log.head();
        // An error means that the log is closed; what is there is what there is.
        let _ = self.head.wait_for(|announced| *announced >= head).await;
    }

    /// Waits for anything that the session should know of.
    async fn wait(&mut self) -> Wake {
        let now = Instant::now();
        let reads = self.session.wants_packets() && self.pause.is_none();
        self.session.hold_keep_alive(!reads, now);
        let takes_live = self.feed.takes_live(self.session.output().len(), now);
        self.arm_timer(now);
        let waits_for_head = self.feed.waits_for_head(&self.session);
        let is_sharing = self.session.is_sharing();
        let place = self.place.as_mut();
        tokio::select! {
            progress = self.io.progress(&mut self.input, self.session.output(), reads) => Wake::Io(progress),
            outcome = self.appends.next(), if !self.appends.is_empty() => Wake::Appended(outcome),
            fed = self.feed.next(takes_live) => Wake::Fed(fed),
            stored = stored(&mut self.storing), if self.storing.is_some() => {
                self.storing = None;
                Wake::Stored(stored)
            }
            () = pause(&self.hub, &self.pause), if self.pause.is_some() => {
                self.pause = None;
                Wake::Look
            }
            _ = self.head.changed(), if waits_for_head => Wake::Look,
            _ = self.returned.changed(), if is_sharing => Wake::Look,
            () = &mut self.timer, if self.timer_at.is_some() => {
                self.timer_at = None;
                Wake::Look
            }
            () = evicted(&mut self.stranger) => Wake::Close(Reason::ServerBusy),
            reason = told_to_close(place) => Wake::Close(reason),
            () = stopped(&mut self.stop) => Wake::Close(Reason::ServerShuttingDown),
        }
    }

    /// The timer only ever moves when a deadline is nearer than before; a later one is found when it fires.
    fn arm_timer(&mut self, now: Instant) {
        let deadlines = [
            self.session.poll_timeout(),
            self.feed.deadline(now),
            self.io.stalled_since().map(|since| since + WRITE_STALL_MAX),
        ];
        let Some(deadline) = deadlines.into_iter().flatten().min() else { return };
        if self.timer_at.is_none_or(|at| deadline < at) {
            self.timer.as_mut().reset(deadline.into());
            self.timer_at = Some(deadline);
        }
    }

    fn on_wake(&mut self, wake: Wake) {
        match wake {
            Wake::Io(Ok(io::Progress::Closed)) | Wake::Io(Err(_)) => self.session.disconnected(),
            Wake::Io(Ok(io::Progress::Moved)) => {}
            Wake::Appended(outcome) => self.on_appended(outcome),
            Wake::Fed(fed) => {
                let moment = self.moment();
                self.feed.deliver(fed, &mut self.session, &self.hub, (moment, self.memory.is_held_back()));
            }
            Wake::Stored(Ok(())) => {
                let moment = self.moment();
                self.session.stored(moment);
            }
            Wake::Stored(Err(_)) => self.session.shut(Reason::ServerShuttingDown),
            Wake::Look => {
                let stalled = self.io.stalled_since().is_some_and(|since| since.elapsed() >= WRITE_STALL_MAX);
                if stalled {
                    self.session.disconnected();
                }
            }
            Wake::Close(reason) => self.session.shut(reason),
        }
    }

    fn on_appended(&mut self, outcome: appends::Outcome) {
        match outcome.result {
            Ok(_) => {
                count(&self.hub.counters.received_durable, outcome.rows as u64);
                self.session.committed(outcome.rows, Reason::Success);
                self.hub.live.publish(outcome.live);
            }
            Err(error) => {
                let reason = appends::reason(&error);
                tracing::warn!(client = %self.session.identity().client_id, %error, "publishes refused");
                self.session.committed(outcome.rows, reason);
                if reason == Reason::ServerShuttingDown {
                    self.session.shut(reason);
                }
            }
        }
    }

    /// Ends what the session began: publishes to disk, the will, the client's place, the last bytes.
    async fn finish(mut self) {
        self.feed.close();
        // While the log is full publishes wait; the session and the will need not wait for them for ever.
        let settled = timeout(FINISH_MAX, self.settle()).await.is_ok();
        if !timeout(FINISH_MAX, self.store_end()).await.is_ok_and(|()| settled) {
            tracing::warn!(client = %self.session.identity().client_id, "publishes or the end of a closed connection were not on disk in time");
        }
        self.count_end();
        self.hub.subscriptions.fetch_sub(self.subscriptions, Ordering::Relaxed);
        // A client that comes back may do so now.
        self.place = None;
        self.stranger = None;
        if self.session.ended() != Some(&Ended::Network) {
            self.io.close(self.session.output(), FLUSH_MAX, LINGER_MAX).await;
        }
    }

    async fn settle(&mut self) {
        loop {
            let moment = self.moment();
            self.append(moment);
            if self.appends.is_empty() {
                break;
            }
            let outcome = self.appends.next().await;
            self.on_appended(outcome);
        }
    }

    /// Stores what becomes of the session, and publishes the will if the session ends here.
    async fn store_end(&mut self) {
        if let Some(storing) = self.storing.take() {
            // If it failed the log is closed, and what follows fails too.
            let _ = storing.await;
        }
        let moment = self.moment();
        if let Some(update) = self.session.last_update(moment)
            && let Err(error) = self.hub.log.store_session(update).await
        {
            tracing::warn!(client = %self.session.identity().client_id, %error, "the end of a session was not stored");
        }
        if let Some(will) = self.will.take()
            && let Err(error) = keeper::publish_will(&self.hub, will, None).await
        {
            tracing::warn!(client = %self.session.identity().client_id, %error, "a will was not published");
        }
    }

    fn count_end(&mut self) {
        self.feed.count(&mut self.session, &self.hub.counters);
        let client = &self.session.identity().client_id;
        let Some(ended) = self.session.ended() else { return };
        match ended {
            Ended::Malformed(_) | Ended::Protocol { .. } => {
                count(&self.hub.counters.protocol_errors, 1);
                tracing::info!(peer = %self.peer, %client, reason = %ended, "connection closed");
            }
            Ended::KeepAlive => count(&self.hub.counters.keep_alive_timeouts, 1),
            Ended::Refused(_) => count(&self.hub.counters.refused, 1),
            _ => {}
        }
        tracing::debug!(peer = %self.peer, %client, reason = %ended, "connection ended");
    }
}

async fn stored(storing: &mut Option<Storing>) -> Result<(), AppendError> {
    match storing {
        Some(storing) => storing.await,
        None => std::future::pending().await,
    }
}

async fn pause(hub: &Hub, pause: &Option<Pause>) {
    match pause {
        Some(Pause { for_room: true, until }) => hub.live.room(*until).await,
        Some(Pause { for_room: false, until }) => sleep_until((*until).into()).await,
        None => {}
    }
}

/// Resolves when a connection that was not accepted has to make room.
async fn evicted(stranger: &mut Option<Stranger>) {
    let Some(stranger) = stranger else { return std::future::pending().await };
    if (&mut stranger.evicted).await.is_err() {
        // Nobody can evict it any more.
        std::future::pending().await
    }
}

/// Resolves when another client takes this one's identifier.
async fn told_to_close(place: Option<&mut Place>) -> Reason {
    let Some(place) = place else { return std::future::pending().await };
    let told = place.close.wait_for(Option::is_some).await.map(|reason| *reason);
    match told {
        Ok(reason) => reason.unwrap_or(Reason::AdministrativeAction),
        // The entry is replaced only after the reason was sent.
        Err(_) => std::future::pending().await,
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the broker was dropped.
    let _ = stop.wait_for(|stop| *stop).await;
}
