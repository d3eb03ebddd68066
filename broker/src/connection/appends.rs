//! Batches of one connection on their way to the disk, answered in order.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use crate::codec::{PacketId, Reason};
use crate::log::sessions::{SessionId, SessionUpdate};
use crate::log::{Append, AppendError, Offset};
use crate::message::{Message, QoS};
use crate::server::Hub;
use crate::session::Durable;

/// Batches of one connection that may wait for a commit. While one is committed the next fill up; more than a few only
/// take memory.
pub(super) const APPENDS_MAX: usize = 8;

/// Messages of one batch: what a full read buffer of small messages holds.
pub(super) const BATCH_ROWS_MAX: usize = 1_000;

/// Bytes of one batch, unless a single message is larger.
pub(super) const BATCH_BYTES_MAX: usize = 512 * 1024;

type Appending = Pin<Box<dyn Future<Output = Result<Offset, AppendError>> + Send>>;

struct Pending {
    rows: usize,
    /// For live fan-out after the commit.
    live: Vec<Message>,
    appending: Appending,
    result: Option<Result<Offset, AppendError>>,
}

/// What became of the oldest batch.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) rows: usize,
    pub(super) live: Vec<Message>,
    pub(super) result: Result<Offset, AppendError>,
}

#[derive(Default)]
pub(super) struct Appends {
    pending: VecDeque<Pending>,
}

impl Appends {
    pub(super) fn has_room(&self) -> bool {
        self.pending.len() < APPENDS_MAX
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Queues a batch.
    pub(super) fn push(&mut self, hub: &Hub, batch: Vec<Durable>, session: Option<SessionId>, received_us: i64) {
        let rows = batch.len();
        let received: Vec<PacketId> = batch.iter().filter_map(|durable| durable.receipt).collect();
        let update = session.filter(|_| !received.is_empty());
        let update = update.map(|id| Box::new(SessionUpdate { received, ..SessionUpdate::of(id) }));
        let live = batch.iter().map(|durable| &durable.message).filter(|message| hub.live.wants(message.qos));
        let live = live.cloned().collect();
        let batch: Vec<Append> =
            batch.into_iter().map(|durable| append(durable.message, durable.log, received_us)).collect();
        let log = hub.log.clone();
        let mut pending = Pending {
            rows,
            live,
            appending: Box::pin(async move { log.append_with(batch, update).await }),
            result: None,
        };
        // A future does nothing until it is polled: this puts the batch into the log's queue, before any later one.
        pending.poll(&mut Context::from_waker(Waker::noop()));
        self.pending.push_back(pending);
    }

    /// What became of the oldest batch, when it is known. May be dropped and called again at any time.
    pub(super) async fn next(&mut self) -> Outcome {
        poll_fn(|cx| {
            for pending in &mut self.pending {
                pending.poll(cx);
            }
            match self.pending.front_mut().and_then(|pending| pending.result.take()) {
                Some(result) => match self.pending.pop_front() {
                    Some(Pending { rows, live, .. }) => Poll::Ready(Outcome { rows, live, result }),
                    None => Poll::Pending,
                },
                None => Poll::Pending,
            }
        })
        .await
    }
}

impl Pending {
    fn poll(&mut self, cx: &mut Context<'_>) {
        if self.result.is_none()
            && let Poll::Ready(result) = self.appending.as_mut().poll(cx)
        {
            self.result = Some(result);
        }
    }
}

/// A message as the log takes it.
pub(super) fn append(message: Message, log: bool, received_us: i64) -> Append {
    Append { log: log || message.qos > QoS::AtMostOnce, message, received_us }
}

/// How a refusal is told to an MQTT 5 client.
pub(super) fn reason(error: &AppendError) -> Reason {
    match error {
        AppendError::Closed => Reason::ServerShuttingDown,
        AppendError::MessageTooLarge { .. } | AppendError::BatchTooLarge { .. } => Reason::ImplementationSpecific,
        AppendError::TopicLimit { .. } | AppendError::RetainedLimit { .. } => Reason::QuotaExceeded,
    }
}
