//! Publishes what the pipeline decided, once.
//!
//! Owns the way from `state.db`'s outbox to the log. A message is taken out of the outbox after its commit in the
//! log; when the process died in between, [`reconcile`] finds it there at the next start. Never decides what to say.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millwright_broker::Publisher;
use millwright_broker::log::{FetchLimit, Log, Offset, ReadError};
use millwright_broker::message::{Message, QoS};
use millwright_broker::topic::TopicName;
use tokio::sync::{Notify, watch};

use crate::state::{OutboxRow, State, StateError};

/// How long to wait before trying again when the log or the state file fails.
const RETRY: Duration = Duration::from_secs(1);
/// Longest time a stop waits for the last alerts to reach the log.
const LAST_ALERTS: Duration = Duration::from_secs(5);

/// Why the outbox could not be compared with the log.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The log.
    #[error(transparent)]
    Log(#[from] ReadError),
    /// The state file.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Removes from the outbox what the log already holds. Returns how many there were.
///
/// # Errors
/// The log or the state file cannot be read.
pub fn reconcile(state: &State, log: &Log) -> Result<usize, ReconcileError> {
    let mut published = 0;
    loop {
        let waiting = state.outbox()?;
        let found = find_published(&waiting, log)?;
        for number in &found {
            state.published(*number)?;
        }
        published += found.len();
        // Published in order: once a row was not found, none behind it was published either.
        if found.len() < waiting.len() || waiting.is_empty() {
            return Ok(published);
        }
    }
}

fn find_published(waiting: &[OutboxRow], log: &Log) -> Result<Vec<i64>, ReadError> {
    let Some(oldest) = waiting.iter().map(|row| row.after_offset).min() else { return Ok(Vec::new()) };
    let mut reader = log.reader()?;
    let mut position = Offset(oldest.max(1));
    let mut found = Vec::new();
    while position < log.head() {
        let fetched = reader.read(position, FetchLimit::default())?;
        for message in &fetched.messages {
            let same = |row: &&OutboxRow| {
                row.topic == message.message.topic.as_str() && row.payload == message.message.payload
            };
            found.extend(waiting.iter().find(same).map(|row| row.number));
        }
        position = fetched.next;
    }
    Ok(found)
}

/// Publishes until `stop` says so, and then what is waiting at that moment, for at most [`LAST_ALERTS`]; what is left stays
/// in the outbox.
///
/// It is the only one that publishes from the outbox, and it is never interrupted between a message's commit in the log and
/// its removal from the outbox to publish again: that would publish the message twice.
pub async fn run(state: Arc<State>, publisher: Publisher, wake: Arc<Notify>, stop: watch::Receiver<bool>) {
    let mut stopped = stop.clone();
    let too_long = async {
        // An error means that the owner is gone, which is a reason to stop too.
        let _ = stopped.wait_for(|stop| *stop).await;
        tokio::time::sleep(LAST_ALERTS).await;
    };
    tokio::select! {
        () = publish_until(&state, &publisher, &wake, stop) => {}
        () = too_long => tracing::warn!("the last alerts stay in the outbox and are published at the next start"),
    }
}

async fn publish_until(state: &Arc<State>, publisher: &Publisher, wake: &Notify, mut stop: watch::Receiver<bool>) {
    loop {
        // Read before publishing: what was put into the outbox before the stop is published after it.
        let stopping = *stop.borrow();
        let published = publish_waiting(state, publisher).await;
        if let Err(error) = &published {
            tracing::error!(%error, "an alert could not be published yet");
        }
        if stopping && published.is_ok() {
            return;
        }
        tokio::select! {
            () = wake.notified(), if published.is_ok() => {}
            () = tokio::time::sleep(RETRY), if published.is_err() => {}
            _ = stop.wait_for(|stop| *stop), if !stopping => {}
        }
    }
}

/// Publishes everything that waits, in order.
async fn publish_waiting(state: &Arc<State>, publisher: &Publisher) -> anyhow::Result<()> {
    loop {
        let rows = on_disk(state, State::outbox).await?;
        if rows.is_empty() {
            return Ok(());
        }
        for row in rows {
            let number = row.number;
            publisher.publish(message_of(row)?).await?;
            on_disk(state, move |state| state.published(number)).await?;
        }
    }
}

fn message_of(row: OutboxRow) -> anyhow::Result<Message> {
    Ok(Message {
        topic: TopicName::parse(&row.topic)?,
        payload: Bytes::from(row.payload),
        properties: Bytes::new(),
        qos: QoS::AtLeastOnce,
        retain: row.retain,
        origin: 0,
    })
}

async fn on_disk<T: Send + 'static>(
    state: &Arc<State>,
    work: impl FnOnce(&State) -> Result<T, StateError> + Send + 'static,
) -> anyhow::Result<T> {
    let state = Arc::clone(state);
    Ok(tokio::task::spawn_blocking(move || work(&state)).await??)
}
