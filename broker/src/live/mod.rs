//! Live fan-out of QoS 0 deliveries, on rumqttd's router.
//!
//! # What the router sees
//!
//! Numbered channels, nothing a client chose. A subscribed filter has one of [`SLOTS`] slots; a slot has two channels,
//! `v/<slot>` for messages published at QoS 0 and `d/<slot>` for durable ones wanted at QoS 0. Which slots want a topic
//! is decided here, once per topic ([`slots`]), and a publisher's messages for a channel go to the router as one batch
//! ([`batch`]). When more filters are subscribed than there are slots, filters share a slot: the session matches every
//! message itself, so a shared slot costs time, never a wrong delivery.
//!
//! That way the router can be neither crashed nor filled from the network: topics, client identifiers, wildcards, `$`,
//! `$share`, wills, retained messages, persistence and takeovers never reach it. Link names are taken from a pool and
//! used again, because the router remembers every name it ever saw; channels are used again, because it never forgets a
//! filter. A link is closed only by its owner, and says "ready" only when it was paused: the router panics otherwise.
//!
//! # What may be lost
//!
//! Everything here is QoS 0. A batch is dropped when the router is behind by [`BACKLOG_PACKETS_MAX`] packets or
//! [`BACKLOG_BYTES_MAX`] bytes; a subscriber that is slower than [`SEGMENTS`] segments skips ahead. Both are counted:
//! batches carry the number of messages that their channel had before. A publisher that is
//! faster than the subscribers' tasks is slowed down for a moment first ([`pace`]).
//!
//! # When the router dies
//!
//! [`watch`] sends a heartbeat through it. If it stops, the router is replaced, and the generation moves: every
//! connection opens a new link and subscribes its channels again.

mod batch;
mod link;
mod pace;
mod router;
mod slots;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;

use crate::message::{Message, QoS};
use crate::session::{SLOTS, Slot};
use crate::topic::TopicFilter;

pub(crate) use batch::Batch;
pub(crate) use link::{Link, LinkEvent};
use pace::Pace;
use router::{LinkNames, Publisher, Router};
use slots::Slots;

/// Packets that may wait for the router; each is a batch of up to [`batch::BATCH_BYTES_MAX`] bytes.
const BACKLOG_PACKETS_MAX: usize = 4_096;

/// Bytes that may wait for the router.
const BACKLOG_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Size of a segment of a channel, and how many a channel has. The channel keeps one full and one growing segment:
/// 128 channels × 512 KiB = 64 MiB if every one of them is flooded, and one message more in each.
const SEGMENT_BYTES: usize = 256 * 1024;
const SEGMENTS: usize = 2;

/// How often the router is asked whether it lives, and how long it may take to answer.
const HEARTBEAT: Duration = Duration::from_millis(500);
const STALLED_AFTER: Duration = Duration::from_secs(3);

/// Which of a slot's two channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    /// Messages published at QoS 0.
    Volatile,
    /// Messages published at QoS 1 or 2, for subscriptions at QoS 0.
    Durable,
}

impl Space {
    fn of(published: QoS) -> Space {
        if published == QoS::AtMostOnce { Space::Volatile } else { Space::Durable }
    }

    fn index(self) -> usize {
        match self {
            Space::Volatile => 0,
            Space::Durable => 1,
        }
    }
}

/// A set of channels: a bit for each slot, by [`Space`].
pub(crate) type Channels = [u64; 2];

/// The name of a channel.
fn channel_name(space: Space, slot: Slot) -> String {
    match space {
        Space::Volatile => format!("v/{slot}"),
        Space::Durable => format!("d/{slot}"),
    }
}

fn parse_channel(name: &[u8]) -> Option<(Space, Slot)> {
    let (space, slot) = std::str::from_utf8(name).ok()?.split_once('/')?;
    let space = match space {
        "v" => Space::Volatile,
        "d" => Space::Durable,
        _ => return None,
    };
    slot.parse().ok().filter(|slot| usize::from(*slot) < SLOTS).map(|slot| (space, slot))
}

/// Live fan-out; a handle, clones share it.
#[derive(Clone)]
pub(crate) struct Live {
    shared: Arc<Shared>,
}

struct Shared {
    inner: Mutex<Inner>,
    /// Whether anybody wants messages, by space, so that publishing to nobody costs one load.
    wanted: [AtomicBool; 2],
    generation: watch::Sender<u64>,
    pace: Arc<Pace>,
    names: LinkNames,
    links_max: usize,
    dropped: AtomicU64,
    rebuilt: AtomicU64,
}

struct Inner {
    slots: Slots,
    router: Option<Router>,
    publisher: Option<Publisher>,
    /// Messages ever published to each channel.
    published: [[u64; SLOTS]; 2],
}

impl Live {
    /// Starts the router. `links_max` is the number of connections that may have subscriptions at a time.
    pub(crate) async fn start(links_max: usize) -> Live {
        let shared = Shared {
            inner: Mutex::new(Inner {
                slots: Slots::default(),
                router: None,
                publisher: None,
                published: [[0; SLOTS]; 2],
            }),
            wanted: [AtomicBool::new(false), AtomicBool::new(false)],
            generation: watch::Sender::new(0),
            pace: Arc::default(),
            names: LinkNames::default(),
            links_max,
            dropped: AtomicU64::new(0),
            rebuilt: AtomicU64::new(0),
        };
        let live = Live { shared: Arc::new(shared) };
        live.rebuild().await;
        live
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes messages in order. Gives the channels whose subscribers cannot keep up: a publisher should pause with
    /// [`Live::caught_up`].
    pub(crate) fn publish(&self, messages: &[Message]) -> Channels {
        if !messages.iter().any(|message| self.wants(message.qos)) {
            return [0; 2];
        }
        let channels = self.channels_of(messages);
        // Payloads are copied without the lock.
        let mut touched = [0; 2];
        let mut building = batch::Builder::default();
        let mut batches = Vec::new();
        for (message, mut slots) in messages.iter().zip(channels) {
            let space = Space::of(message.qos);
            touched[space.index()] |= slots;
            while slots != 0 {
                let slot = slots.trailing_zeros() as Slot;
                slots &= slots - 1;
                batches.extend(building.add(space, slot, message));
            }
        }
        batches.extend(building.finish());
        if batches.is_empty() {
            return [0; 2];
        }
        let mut inner = self.lock();
        for batch in batches {
            self.send(&mut inner, batch);
        }
        if let Some(publisher) = inner.publisher.as_mut() {
            publisher.flush();
        }
        drop(inner);
        self.shared.pace.behind(touched)
    }

    /// Waits until the subscribers of these channels have caught up, or the deadline.
    pub(crate) async fn caught_up(&self, channels: Channels, deadline: Instant) {
        self.shared.pace.caught_up(channels, deadline).await;
    }

    /// The slots that want each message, in its space.
    fn channels_of(&self, messages: &[Message]) -> Vec<u64> {
        let mut inner = self.lock();
        let slots = |message: &Message| inner.slots.wanting(&message.topic)[Space::of(message.qos).index()];
        messages.iter().map(slots).collect()
    }

    fn send(&self, inner: &mut Inner, batch: batch::Building) {
        let (space, slot, count) = (batch.space, batch.slot, batch.count);
        let Some(published) = inner.published[space.index()].get_mut(usize::from(slot)) else { return };
        let before = *published;
        *published += count;
        let has_room = inner.publisher.as_mut().is_some_and(Publisher::has_room);
        if let Some(publisher) = inner.publisher.as_mut().filter(|_| has_room) {
            let bytes_before = self.shared.pace.published(space, slot, batch.len());
            publisher.push(channel_name(space, slot), batch.finish(before, bytes_before));
        } else {
            self.shared.dropped.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Whether anybody wants messages of this QoS live.
    pub(crate) fn wants(&self, qos: QoS) -> bool {
        self.shared.wanted.get(Space::of(qos).index()).is_some_and(|wanted| wanted.load(Ordering::Relaxed))
    }

    /// The QoS with which somebody subscribes to `filter` changes from `before` to `after`; `None` is no subscription.
    /// Gives the slot of the filter if it has one afterwards.
    pub(crate) fn watch_filter(&self, filter: &TopicFilter, before: Option<QoS>, after: Option<QoS>) -> Option<Slot> {
        let mut inner = self.lock();
        let slot = inner.slots.change(filter, before, after);
        for (wanted, any) in self.shared.wanted.iter().zip(inner.slots.any()) {
            wanted.store(any, Ordering::Relaxed);
        }
        slot
    }

    /// Moves when the router was replaced.
    pub(crate) fn generation(&self) -> watch::Receiver<u64> {
        self.shared.generation.subscribe()
    }

    /// Messages that the router was too slow for.
    pub(crate) fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// How often the router was replaced.
    pub(crate) fn rebuilt(&self) -> u64 {
        self.shared.rebuilt.load(Ordering::Relaxed)
    }

    /// Replaces the router and moves the generation. Without a router nothing is delivered live, and it is tried again
    /// with the next heartbeat.
    async fn rebuild(&self) {
        let router = Router::spawn(self.shared.links_max);
        let publisher = match router.connect(&self.shared.names).await {
            Ok((tx, rx, name)) => Some(Publisher::new(tx, rx, name)),
            Err(error) => {
                tracing::error!(%error, "live fan-out did not start; it is tried again");
                None
            }
        };
        {
            let mut inner = self.lock();
            inner.publisher = publisher;
            inner.router = Some(router);
        }
        self.shared.generation.send_modify(|generation| *generation += 1);
    }

    /// Messages ever published to a channel.
    fn published(&self, space: Space, slot: Slot) -> u64 {
        self.lock().published[space.index()].get(usize::from(slot)).copied().unwrap_or_default()
    }

    fn router(&self) -> Option<Router> {
        self.lock().router.clone()
    }

    /// Crashes the router's thread in the way that a stock rumqttd can be crashed from the network.
    pub(crate) fn crash_router(&self) {
        if let Some(publisher) = self.lock().publisher.as_mut() {
            publisher.push("\u{e9}".to_owned(), Bytes::new());
            publisher.flush();
        }
    }
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("generation", &*self.shared.generation.borrow()).finish_non_exhaustive()
    }
}

/// Watches the router until `stop` resolves; replaces it when it died or stalled.
pub(crate) async fn watch(live: Live, stop: impl Future<Output = ()>) {
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => return,
            () = one_life(&live) => {}
        }
        tracing::error!("live fan-out stopped; it is started again");
        live.shared.rebuilt.fetch_add(1, Ordering::Relaxed);
        live.rebuild().await;
    }
}

/// Returns when the router is dead or stalled.
async fn one_life(live: &Live) {
    let Ok(mut link) = Link::open(live).await else {
        return tokio::time::sleep(HEARTBEAT).await;
    };
    if link.subscribe_heartbeat().is_err() {
        return;
    }
    let mut tick = tokio::time::interval(HEARTBEAT);
    let mut last = Instant::now();
    loop {
        tokio::select! {
            event = link.next() => match event {
                LinkEvent::Lost => return,
                _ => last = Instant::now(),
            },
            _ = tick.tick() => {
                if last.elapsed() > STALLED_AFTER {
                    return;
                }
                if let Some(publisher) = live.lock().publisher.as_mut() {
                    publisher.push(router::HEARTBEAT_CHANNEL.to_owned(), Bytes::new());
                    publisher.flush();
                }
            }
        }
    }
}
