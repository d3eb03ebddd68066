//! What feeds a session with messages to deliver: the log and live fan-out.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::codec::Reason;
use crate::live::{Batch, Live, Reader, ReaderKey};
use crate::log::{FetchLimit, Fetched, Log, Offset, ReadError};
use crate::memory::MemoryShare;
use crate::message::QoS;
use crate::server::Hub;
use crate::session::{Moment, Session};
use crate::stats::{Counters, count};
use crate::topic::TopicFilter;

/// Messages and bytes that are read from the log at a time and held until they are delivered.
const FETCH: FetchLimit = FetchLimit { rows: 500, bytes: 256 * 1024 };

/// Live messages are not taken while so many bytes wait to be sent: a client that reads gets them out soon, and its
/// publishers are held back meanwhile rather than messages skipped.
const OUTPUT_AHEAD_BYTES: usize = 64 * 1024;

/// But no longer than this: a client that has not got them out by then is slow. Until it has, its messages are taken, and
/// skipped when its output is full, so that it holds nobody back.
const OUTPUT_AHEAD_MAX: Duration = Duration::from_millis(50);

type Fetching = Pin<Box<dyn Future<Output = (Wanted, Result<Fetched, ReadError>)> + Send>>;

/// What is read from the log.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wanted {
    /// Messages from here on.
    From(Offset),
    /// This one, which another member of a group gave back.
    Returned(Offset),
}

/// Something for the session.
pub(super) enum Fed {
    Fetched(Wanted, Result<Fetched, ReadError>),
    Live(Vec<Arc<Batch>>),
}

#[derive(Default)]
pub(super) struct Feed {
    fetching: Option<Fetching>,
    /// From the first subscription on.
    reader: Option<Reader>,
    /// Since when there is more output than [`OUTPUT_AHEAD_BYTES`].
    ahead_since: Option<Instant>,
}

impl Feed {
    /// The QoS of a subscription of the session changed; `None` if it ended. What is published from now on comes.
    pub(super) fn watch(&mut self, live: &Live, filter: &TopicFilter, qos: Option<QoS>) {
        self.reader.get_or_insert_with(|| live.reader()).set(filter, qos);
    }

    /// The name under which live messages find this connection.
    pub(super) fn key(&mut self, live: &Live) -> ReaderKey {
        self.reader.get_or_insert_with(|| live.reader()).key()
    }

    /// Begins to read the log if the session wants more and there is more.
    pub(super) fn fetch(&mut self, log: &Log, session: &mut Session, memory: &MemoryShare, moment: Moment) {
        if self.fetching.is_some() || memory.is_held_back() {
            return;
        }
        let (wanted, from, limit) = if let Some(offset) = session.wants_returned() {
            (Wanted::Returned(offset), offset, FetchLimit { rows: 1, ..FETCH })
        } else if let Some(from) = session.wants_log().filter(|from| *from < moment.head) {
            (Wanted::From(from), from, FetchLimit { bytes: memory.fetch_bytes(FETCH.bytes), ..FETCH })
        } else {
            return;
        };
        let log = log.clone();
        self.fetching = Some(Box::pin(async move { (wanted, log.fetch(from, limit).await) }));
    }

    /// Whether the session has read everything that the log has.
    pub(super) fn waits_for_head(&self, session: &Session) -> bool {
        self.fetching.is_none() && session.wants_log().is_some()
    }

    /// Whether live messages are taken, with so many bytes to be sent.
    pub(super) fn takes_live(&mut self, output_bytes: usize, now: Instant) -> bool {
        if self.reader.is_none() || output_bytes < OUTPUT_AHEAD_BYTES {
            self.ahead_since = None;
            return true;
        }
        now >= *self.ahead_since.get_or_insert(now) + OUTPUT_AHEAD_MAX
    }

    /// When live messages are taken again at the latest.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        self.ahead_since.map(|since| since + OUTPUT_AHEAD_MAX).filter(|deadline| now < *deadline)
    }

    /// What comes next from the log, or live if that is taken. May be dropped and called again at any time.
    pub(super) async fn next(&mut self, takes_live: bool) -> Fed {
        tokio::select! {
            (wanted, fetched) = fetched(&mut self.fetching) => {
                self.fetching = None;
                Fed::Fetched(wanted, fetched)
            }
            batches = next_of(&mut self.reader), if takes_live => Fed::Live(batches),
        }
    }

    /// Hands over what came.
    pub(super) fn deliver(
        &mut self,
        fed: Fed,
        session: &mut Session,
        hub: &Hub,
        (moment, is_held_back): (Moment, bool),
    ) {
        match fed {
            Fed::Fetched(Wanted::From(from), Ok(fetched)) => {
                if let Some(gap) = fetched.lost {
                    let lost = gap.to.0.saturating_sub(gap.from.0);
                    count(&hub.counters.lost, lost);
                    let client = &session.identity().client_id;
                    tracing::warn!(%client, lost, "messages were dropped before the subscriber read them");
                    session.lost(gap, moment);
                }
                session.offer(from, fetched.messages, fetched.next, moment);
            }
            Fed::Fetched(Wanted::Returned(offset), Ok(fetched)) => {
                session.offer_returned(offset, fetched.messages.first().map(|logged| &**logged), moment);
            }
            Fed::Fetched(_, Err(error)) => {
                tracing::error!(%error, "the log cannot be read for a subscriber");
                session.shut(Reason::UnspecifiedError);
            }
            Fed::Live(batches) if is_held_back => self.skip_live(&batches, hub),
            Fed::Live(batches) => self.deliver_live(&batches, session, moment),
        }
    }

    fn deliver_live(&self, batches: &[Arc<Batch>], session: &mut Session, moment: Moment) {
        let Some(wants) = self.reader.as_ref().map(Reader::wants) else { return };
        for batch in batches {
            for message in batch.wanted(wants) {
                match batch.filter() {
                    None => session.deliver_live(message, moment),
                    Some(filter) => session.deliver_live_for(filter, message, moment),
                }
            }
        }
    }

    /// QoS 0 messages are not kept for a client that holds too much already.
    fn skip_live(&self, batches: &[Arc<Batch>], hub: &Hub) {
        let Some(wants) = self.reader.as_ref().map(Reader::wants) else { return };
        let skipped: usize = batches.iter().map(|batch| batch.wanted(wants).count()).sum();
        count(&hub.counters.skipped, skipped as u64);
    }

    pub(super) fn count(&self, session: &mut Session, counters: &Counters) {
        let counts = session.take_counts();
        count(&counters.delivered, counts.delivered);
        count(&counters.skipped, counts.skipped);
        count(&counters.too_large, counts.too_large);
        count(&counters.expired, counts.expired);
        count(&counters.lost, counts.lost);
    }

    /// Takes the session's filters from live fan-out.
    pub(super) fn close(&mut self) {
        self.reader = None;
    }
}

async fn fetched(fetching: &mut Option<Fetching>) -> (Wanted, Result<Fetched, ReadError>) {
    match fetching {
        Some(fetching) => fetching.await,
        None => std::future::pending().await,
    }
}

async fn next_of(reader: &mut Option<Reader>) -> Vec<Arc<Batch>> {
    match reader {
        Some(reader) => reader.next().await,
        None => std::future::pending().await,
    }
}
