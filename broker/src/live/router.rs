//! One incarnation of rumqttd's router, and the link that publishes to it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rumqttd::local::{LinkBuilder, LinkRx, LinkTx};
use rumqttd::protocol::{Packet, Publish};
use rumqttd::{RouterConfig, Strategy};
use tokio::sync::oneshot;

use super::{BACKLOG_BYTES_MAX, BACKLOG_PACKETS_MAX, SEGMENT_BYTES, SEGMENTS};

/// The channel of the heartbeat.
pub(super) const HEARTBEAT_CHANNEL: &str = "heartbeat";

/// A filter that nobody has: unsubscribing from it makes the router look at a link's buffer and does nothing else.
pub(super) const NOTHING: &str = "nothing";

/// Batches that the router moves to a link in one go.
const READ_PACKETS: u64 = 64;

/// Links beyond the connections': the publisher, the watchdog, and those that are being closed.
const LINKS_SPARE: usize = 64;

/// The router's queue of events has 1,000 places; from here on it counts as full, so that a send never blocks.
const EVENTS_FULL: usize = 900;

/// How long the router may take to register a link.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Why there is no link.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("the router is not running")]
    NoRouter,
    #[error("the router refused a link: {0}")]
    Refused(String),
    #[error("the router did not answer within {CONNECT_TIMEOUT:?}")]
    Timeout,
    #[error("no thread for a link: {0}")]
    Thread(String),
}

type Connect = dyn Fn(&str) -> Result<(LinkTx, LinkRx), LinkError> + Send + Sync;

/// A running router. Its thread ends only by a panic: rumqttd has no other way out, so an abandoned router keeps its
/// thread, asleep, until the process ends.
#[derive(Clone)]
pub(super) struct Router {
    connect: Arc<Connect>,
    events: Arc<dyn Fn() -> usize + Send + Sync>,
}

impl Router {
    pub(super) fn spawn(links_max: usize) -> Router {
        let config = RouterConfig {
            max_connections: links_max.saturating_add(LINKS_SPARE),
            max_outgoing_packet_count: READ_PACKETS,
            max_segment_size: SEGMENT_BYTES,
            max_segment_count: SEGMENTS,
            custom_segment: None,
            initialized_filters: None,
            shared_subscriptions_strategy: Strategy::RoundRobin,
        };
        // The type of its events has no public name, hence the closures.
        let sender = rumqttd::Router::new(0, config).spawn();
        let events = sender.clone();
        let connect = move |name: &str| {
            let built = LinkBuilder::new(name, sender.clone()).clean_session(true).build();
            built.map(|(tx, rx, _)| (tx, rx)).map_err(|error| LinkError::Refused(error.to_string()))
        };
        Router { connect: Arc::new(connect), events: Arc::new(move || events.len()) }
    }

    /// Whether a blocking send to the router might block.
    pub(super) fn is_full(&self) -> bool {
        (self.events)() >= EVENTS_FULL
    }

    /// Registers a link. rumqttd waits for the router's answer in a blocking call, and a stalled router never answers,
    /// so it waits on a thread of its own, which nothing joins.
    pub(super) async fn connect(&self, names: &LinkNames) -> Result<(LinkTx, LinkRx, LinkName), LinkError> {
        let name = names.take();
        let (reply, answer) = oneshot::channel();
        let connect = Arc::clone(&self.connect);
        let text = name.text();
        let waits = move || drop(reply.send(connect(&text)));
        std::thread::Builder::new()
            .name("live-link".to_owned())
            .stack_size(256 * 1024)
            .spawn(waits)
            .map_err(|error| LinkError::Thread(error.to_string()))?;
        match tokio::time::timeout(CONNECT_TIMEOUT, answer).await {
            Ok(Ok(Ok((tx, rx)))) => Ok((tx, rx, name)),
            Ok(Ok(Err(error))) => Err(error),
            Ok(Err(_)) => Err(LinkError::NoRouter),
            Err(_) => {
                // The link may yet be made under this name.
                name.lose();
                Err(LinkError::Timeout)
            }
        }
    }
}

/// Names of links. The router keeps a record of every name it ever saw, so names are used again.
#[derive(Debug, Clone, Default)]
pub(super) struct LinkNames(Arc<Mutex<FreeNames>>);

#[derive(Debug, Default)]
struct FreeNames {
    free: Vec<u64>,
    made: u64,
}

impl LinkNames {
    fn take(&self) -> LinkName {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = names.free.pop().unwrap_or_else(|| {
            names.made += 1;
            names.made
        });
        LinkName { number: Some(number), names: self.clone() }
    }
}

/// The name of a link; free again when dropped, which must be after the link's end was announced to the router.
#[derive(Debug)]
pub(super) struct LinkName {
    number: Option<u64>,
    names: LinkNames,
}

impl LinkName {
    fn text(&self) -> String {
        format!("link{}", self.number.unwrap_or_default())
    }

    /// Never uses the name again.
    pub(super) fn lose(mut self) {
        self.number = None;
    }
}

impl Drop for LinkName {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.names.0.lock().unwrap_or_else(PoisonError::into_inner).free.push(number);
        }
    }
}

/// The link through which everything is published.
pub(super) struct Publisher {
    tx: LinkTx,
    /// Kept so that the router's side stays connected; nothing comes through it.
    _rx: LinkRx,
    _name: LinkName,
    queued_bytes: usize,
    unannounced: bool,
}

impl Publisher {
    pub(super) fn new(tx: LinkTx, rx: LinkRx, name: LinkName) -> Publisher {
        Publisher { tx, _rx: rx, _name: name, queued_bytes: 0, unannounced: false }
    }

    /// Whether the router is not too far behind.
    pub(super) fn has_room(&mut self) -> bool {
        let queue = self.tx.buffer();
        if queue.is_empty() {
            self.queued_bytes = 0;
        }
        queue.len() < BACKLOG_PACKETS_MAX && self.queued_bytes < BACKLOG_BYTES_MAX
    }

    /// Puts a packet where the router will find it.
    pub(super) fn push(&mut self, channel: String, payload: Bytes) {
        self.queued_bytes += payload.len() + channel.len();
        self.tx.buffer().push_back(Packet::Publish(Publish::new(Bytes::from(channel), payload, false), None));
        self.unannounced = true;
    }

    /// Tells the router to look. While its queue of events is full it is told with the next packet, at the latest with
    /// the next heartbeat.
    pub(super) fn flush(&mut self) {
        if self.unannounced && self.tx.try_unsubscribe(NOTHING).is_ok() {
            self.unannounced = false;
        }
    }
}
