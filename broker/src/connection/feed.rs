//! What feeds a session with messages to deliver: the log and live fan-out.

use std::collections::HashMap;
use std::pin::Pin;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::codec::{Reason, TopicCache};
use crate::live::{Batch, Channels, Link, LinkEvent, Live};
use crate::log::{FetchLimit, Fetched, Log, ReadError};
use crate::message::QoS;
use crate::server::Hub;
use crate::session::{self, Moment, Session, Slot};
use crate::stats::{Counters, count};
use crate::topic::TopicFilter;

/// Messages and bytes that are read from the log at a time and held until they are delivered.
const FETCH: FetchLimit = FetchLimit { rows: 500, bytes: 256 * 1024 };

/// Batches of live messages that are handled before anything else gets its turn.
const LIVE_BATCHES_MAX: usize = 16;

/// How long a SUBACK waits for live fan-out, which may be restarting.
const LIVE_READY_MAX: Duration = Duration::from_secs(2);

type Fetching = Pin<Box<dyn Future<Output = Result<Fetched, ReadError>> + Send>>;
type Opening = Pin<Box<dyn Future<Output = Option<Box<Link>>> + Send>>;

enum LinkState {
    /// No subscriptions yet.
    None,
    Opening(Opening),
    Open(Box<Link>),
    /// Until the next generation.
    Lost,
}

/// Something for the session.
pub(super) enum Fed {
    Fetched(What, Result<Fetched, ReadError>),
    Live(LinkEvent),
    /// The link opened, or was lost, or the router was replaced.
    Link,
}

pub(super) struct Feed {
    fetching: Option<Fetching>,
    link: LinkState,
    generation: watch::Receiver<u64>,
    filters: HashMap<TopicFilter, (QoS, Slot)>,
    changed: bool,
    /// Since when a SUBACK waits.
    waiting_since: Option<Instant>,
    topics: TopicCache,
}

impl Feed {
    pub(super) fn new(live: &Live) -> Feed {
        Feed {
            fetching: None,
            link: LinkState::None,
            generation: live.generation(),
            filters: HashMap::new(),
            changed: false,
            waiting_since: None,
            topics: TopicCache::default(),
        }
    }

    /// A subscription of the session changed; gives the slot of its filter.
    pub(super) fn watch(
        &mut self,
        live: &Live,
        filter: &TopicFilter,
        before: Option<QoS>,
        after: Option<QoS>,
    ) -> Option<Slot> {
        let slot = live.watch_filter(filter, before, after);
        self.changed = true;
        match (after, slot) {
            (Some(qos), Some(slot)) => {
                self.filters.insert(filter.clone(), (qos, slot));
                Some(slot)
            }
            _ => {
                self.filters.remove(filter);
                None
            }
        }
    }

    fn channels(&self) -> Channels {
        self.filters.values().fold([0; 2], |[volatile, durable], (qos, slot)| {
            let bit = 1_u64 << slot;
            [volatile | bit, if *qos == QoS::AtMostOnce { durable | bit } else { durable }]
        })
    }

    /// Subscribes the link to what the session's subscriptions need by now.
    pub(super) fn apply(&mut self, live: &Live) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let channels = self.channels();
        match &mut self.link {
            LinkState::None if !self.filters.is_empty() => self.link = LinkState::Opening(open(live)),
            LinkState::Open(link) => link.set_channels(live, channels),
            _ => {}
        }
    }

    /// Whether live fan-out delivers to all filters, or has had its time.
    pub(super) fn is_ready(&mut self, now: Instant) -> bool {
        let ready = match &self.link {
            LinkState::None => true,
            LinkState::Open(link) => link.is_ready(),
            LinkState::Opening(_) | LinkState::Lost => false,
        };
        let since = *self.waiting_since.get_or_insert(now);
        let ready = ready || now >= since + LIVE_READY_MAX;
        if ready {
            self.waiting_since = None;
        }
        ready
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.waiting_since.map(|since| since + LIVE_READY_MAX)
    }

    /// Begins to read the log if the session wants more and there is more.
    pub(super) fn fetch(&mut self, log: &Log, session: &Session, moment: Moment) {
        if self.fetching.is_some() {
            return;
        }
        if let Some(from) = session.wants_log().filter(|from| *from < moment.head) {
            let log = log.clone();
            self.fetching = Some(Box::pin(async move { log.fetch(from, FETCH).await }));
        }
    }

    /// Whether the session has read everything that the log has.
    pub(super) fn waits_for_head(&self, session: &Session) -> bool {
        self.fetching.is_none() && session.wants_log().is_some()
    }

    /// What comes next from the log or the link. May be dropped and called again at any time.
    pub(super) async fn next(&mut self, live: &Live) -> Fed {
        tokio::select! {
            fetched = fetched(&mut self.fetching) => {
                self.fetching = None;
                Fed::Fetched(fetched)
            }
            event = next_of(&mut self.link) => match event {
                FromLink::Event(LinkEvent::Lost) => {
                    self.link = LinkState::Lost;
                    Fed::Link
                }
                FromLink::Event(event) => Fed::Live(event),
                FromLink::Opened(Some(mut link)) => {
                    link.set_channels(live, self.channels());
                    self.link = LinkState::Open(link);
                    Fed::Link
                }
                FromLink::Opened(None) => {
                    self.link = LinkState::Lost;
                    Fed::Link
                }
            },
            _ = self.generation.changed() => {
                if !matches!(self.link, LinkState::None) {
                    self.link = LinkState::Opening(open(live));
                }
                Fed::Link
            }
        }
    }

    /// Hands over what came.
    pub(super) fn deliver(&mut self, fed: Fed, session: &mut Session, hub: &Hub, moment: Moment) {
        match fed {
            Fed::Fetched(Ok(fetched)) => {
                if let Some(gap) = fetched.lost {
                    let lost = gap.to.0.saturating_sub(gap.from.0);
                    count(&hub.counters.lost, lost);
                    let client = &session.identity().client_id;
                    tracing::warn!(%client, lost, "messages were dropped before the subscriber read them");
                    session.lost(gap, moment);
                }
                session.offer(fetched.messages, fetched.next, moment);
            }
            Fed::Fetched(Err(error)) => {
                tracing::error!(%error, "the log cannot be read for a subscriber");
                session.shut(Reason::UnspecifiedError);
            }
            Fed::Live(event) => self.deliver_live(event, session, moment),
            Fed::Link => {}
        }
    }

    fn deliver_live(&mut self, event: LinkEvent, session: &mut Session, moment: Moment) {
        let mut next = Some(event);
        for turn in 1..=LIVE_BATCHES_MAX {
            let Some(event) = next.take() else { return };
            // It may be that a SUBACK can be sent now: before the messages that follow.
            let last = turn == LIVE_BATCHES_MAX || matches!(event, LinkEvent::Nothing);
            self.deliver_event(event, session, moment);
            next = match &mut self.link {
                LinkState::Open(link) if !last => link.try_next(),
                _ => return,
            };
        }
    }

    fn deliver_event(&mut self, event: LinkEvent, session: &mut Session, moment: Moment) {
        match event {
            LinkEvent::Batch(slot, batch, lost) => {
                session.count_skipped(lost);
                self.deliver_batch(slot, batch, session, moment);
            }
            LinkEvent::Nothing => {}
            LinkEvent::Lost => self.link = LinkState::Lost,
        }
    }

    fn deliver_batch(&mut self, slot: Slot, mut batch: Batch, session: &mut Session, moment: Moment) {
        while let Some(message) = batch.next(&mut self.topics) {
            session.deliver_live(&session::Live { message, slot }, moment);
        }
    }

    pub(super) fn count(&self, session: &mut Session, counters: &Counters) {
        let counts = session.take_counts();
        count(&counters.delivered, counts.delivered);
        count(&counters.skipped, counts.skipped);
        count(&counters.too_large, counts.too_large);
        count(&counters.expired, counts.expired);
        count(&counters.lost, counts.lost);
    }

    /// Takes the session's filters and its link from live fan-out.
    pub(super) async fn close(&mut self, live: &Live) {
        for (filter, (qos, _)) in self.filters.drain() {
            live.watch_filter(&filter, Some(qos), None);
        }
        let link = match std::mem::replace(&mut self.link, LinkState::None) {
            LinkState::Open(link) => Some(link),
            LinkState::Opening(opening) => opening.await,
            LinkState::None | LinkState::Lost => None,
        };
        if let Some(link) = link {
            link.close().await;
        }
    }
}

fn open(live: &Live) -> Opening {
    let live = live.clone();
    Box::pin(async move {
        Link::open(&live).await.inspect_err(|error| tracing::warn!(%error, "no live fan-out for a client")).ok()
    })
}

async fn fetched(fetching: &mut Option<Fetching>) -> Result<Fetched, ReadError> {
    match fetching {
        Some(fetching) => fetching.await,
        None => std::future::pending().await,
    }
}

enum FromLink {
    Event(LinkEvent),
    Opened(Option<Box<Link>>),
}

async fn next_of(link: &mut LinkState) -> FromLink {
    match link {
        LinkState::Open(link) => FromLink::Event(link.next().await),
        LinkState::Opening(opening) => FromLink::Opened(opening.await),
        LinkState::None | LinkState::Lost => std::future::pending().await,
    }
}
