//! A connection's link to the router.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rumqttd::Notification;
use rumqttd::local::{LinkRx, LinkTx};
use rumqttd::protocol::{
    Disconnect, DisconnectReasonCode, Filter, Packet, QoS, RetainForwardRule, Subscribe, Unsubscribe,
};

use super::batch::Batch;
use super::pace::Positions;
use super::router::{HEARTBEAT_CHANNEL, LinkError, LinkName, NOTHING, Router};
use super::{Channels, Live, SLOTS, Space, channel_name, parse_channel};
use crate::session::Slot;

/// How long to wait before the router's full queue is tried again.
const RETRY: Duration = Duration::from_millis(1);

/// Tries before the router counts as stalled: 3 s.
const RETRIES_MAX: usize = 3_000;

/// Something came through a link.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// Messages of a slot, and how many were lost before them.
    Batch(Slot, Batch, u64),
    /// Something that concerns only the link.
    Nothing,
    /// The router is gone; wait for the next generation.
    Lost,
}

/// A link: one per connection with subscriptions.
pub(crate) struct Link {
    tx: Option<LinkTx>,
    rx: LinkRx,
    name: Option<LinkName>,
    router: Router,
    subscribed: Channels,
    /// SUBSCRIBEs that the router has not answered.
    unanswered: usize,
    unannounced: bool,
    /// The router paused the link until it says that it is ready.
    paused: bool,
    /// The number of the next message of each channel.
    expected: [[u64; SLOTS]; 2],
    positions: Positions,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("subscribed", &self.subscribed).finish_non_exhaustive()
    }
}

impl Link {
    /// Connects to the router of the present generation.
    pub(crate) async fn open(live: &Live) -> Result<Box<Link>, LinkError> {
        let router = live.router().ok_or(LinkError::NoRouter)?;
        let (tx, rx, name) = router.connect(&live.shared.names).await?;
        Ok(Box::new(Link {
            tx: Some(tx),
            rx,
            name: Some(name),
            router,
            subscribed: [0; 2],
            unanswered: 0,
            unannounced: false,
            paused: false,
            expected: [[0; SLOTS]; 2],
            positions: Positions::new(Arc::clone(&live.shared.pace)),
        }))
    }

    /// Subscribes to these channels and to no others; [`Link::is_ready`] tells when the router has done it. What is
    /// published from now on and does not come counts as lost.
    pub(crate) fn set_channels(&mut self, live: &Live, wanted: Channels) {
        let mut more = Vec::new();
        let mut less = Vec::new();
        for space in [Space::Volatile, Space::Durable] {
            let (wanted, subscribed) = (wanted[space.index()], self.subscribed[space.index()]);
            for slot in (0..SLOTS).filter(|slot| (wanted ^ subscribed) >> slot & 1 == 1) {
                let name = channel_name(space, slot as Slot);
                if wanted >> slot & 1 == 1 {
                    more.push(name);
                    self.expected[space.index()][slot] = live.published(space, slot as Slot);
                    self.positions.begin(space, slot as Slot);
                } else {
                    less.push(name);
                    self.positions.end(space, slot as Slot);
                }
            }
        }
        self.subscribed = wanted;
        if !more.is_empty() {
            self.subscribe(more);
        }
        if !less.is_empty() {
            self.push(Packet::Unsubscribe(Unsubscribe { pkid: 0, filters: less }, None));
        }
    }

    pub(super) fn subscribe_heartbeat(&mut self) -> Result<(), LinkError> {
        self.subscribe(vec![HEARTBEAT_CHANNEL.to_owned()]);
        if self.unannounced { Err(LinkError::Timeout) } else { Ok(()) }
    }

    fn subscribe(&mut self, channels: Vec<String>) {
        let filter = |path| Filter {
            path,
            qos: QoS::AtMostOnce,
            nolocal: false,
            preserve_retain: false,
            retain_forward_rule: RetainForwardRule::Never,
        };
        let filters = channels.into_iter().map(filter).collect();
        self.unanswered += 1;
        self.push(Packet::Subscribe(Subscribe { pkid: 0, filters }, None));
    }

    fn push(&mut self, packet: Packet) {
        if let Some(tx) = &mut self.tx {
            tx.buffer().push_back(packet);
            self.unannounced = tx.try_unsubscribe(NOTHING).is_err();
        }
    }

    /// Whether the router delivers from all channels that were set.
    pub(crate) fn is_ready(&self) -> bool {
        self.unanswered == 0
    }

    /// What comes next. May be dropped and called again at any time.
    pub(crate) async fn next(&mut self) -> LinkEvent {
        if self.unannounced || self.paused {
            self.catch_up().await;
        }
        match self.rx.next().await {
            Ok(Some(notification)) => self.take(notification),
            Ok(None) => LinkEvent::Nothing,
            Err(_) => LinkEvent::Lost,
        }
    }

    /// What is there already; never waits.
    pub(crate) fn try_next(&mut self) -> Option<LinkEvent> {
        if self.paused || self.unannounced {
            return None;
        }
        // Nothing is registered with this waker: whoever finds nothing here awaits `next`.
        let next = pin!(self.rx.next()).poll(&mut Context::from_waker(Waker::noop()));
        match next {
            Poll::Ready(Ok(Some(notification))) => Some(self.take(notification)),
            Poll::Ready(Err(_)) => Some(LinkEvent::Lost),
            Poll::Ready(Ok(None)) | Poll::Pending => None,
        }
    }

    fn take(&mut self, notification: Notification) -> LinkEvent {
        match notification {
            Notification::Forward(forward) => {
                let channel = parse_channel(&forward.publish.topic);
                let (Some((space, slot)), Some(batch)) = (channel, Batch::new(forward.publish.payload)) else {
                    return LinkEvent::Nothing;
                };
                let expected = &mut self.expected[space.index()][usize::from(slot)];
                let lost = batch.before().saturating_sub(*expected);
                *expected = batch.before() + batch.count();
                self.positions.advance(space, slot, batch.bytes_after());
                LinkEvent::Batch(slot, batch, lost)
            }
            Notification::DeviceAck(ack) => {
                if matches!(Packet::from(ack), Packet::SubAck(..)) {
                    self.unanswered = self.unanswered.saturating_sub(1);
                }
                LinkEvent::Nothing
            }
            Notification::Unschedule => {
                self.paused = true;
                LinkEvent::Nothing
            }
            Notification::Disconnect(..) => LinkEvent::Lost,
            _ => LinkEvent::Nothing,
        }
    }

    /// Tells the router what it could not be told before, when its queue has room. The sends block only if the queue
    /// fills up in between.
    async fn catch_up(&mut self) {
        while self.router.is_full() {
            tokio::time::sleep(RETRY).await;
        }
        if self.unannounced
            && let Some(tx) = &mut self.tx
        {
            self.unannounced = tx.try_unsubscribe(NOTHING).is_err();
        }
        if self.paused {
            self.paused = false;
            // An error means that the router is gone, which `next` notices.
            let _ = self.rx.ready();
        }
    }

    /// Takes the link from the router; only then its name may be used again.
    pub(crate) async fn close(mut self: Box<Self>) {
        let Some(mut tx) = self.tx.take() else { return };
        let name = self.name.take();
        let reason_code = DisconnectReasonCode::NormalDisconnection;
        tx.buffer().push_back(Packet::Disconnect(Disconnect { reason_code }, None));
        for _ in 0..RETRIES_MAX {
            if !self.router.is_full() && tx.try_unsubscribe(NOTHING).is_ok() {
                return;
            }
            tokio::time::sleep(RETRY).await;
        }
        // A router that took so long is about to be replaced.
        if let Some(name) = name {
            name.lose();
        }
    }
}

impl Drop for Link {
    // A link that was not closed, because its task was dropped: the router is told if it listens.
    fn drop(&mut self) {
        let Some(mut tx) = self.tx.take() else { return };
        let reason_code = DisconnectReasonCode::NormalDisconnection;
        tx.buffer().push_back(Packet::Disconnect(Disconnect { reason_code }, None));
        let told = tx.try_unsubscribe(NOTHING).is_ok();
        if let Some(name) = self.name.take().filter(|_| !told) {
            name.lose();
        }
    }
}
