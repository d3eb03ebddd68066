//! The keeper of sessions whose clients are away: publishes wills when they are due, ends sessions that are over.
//!
//! One task. It takes the client's place in the registry while it works, so that a client that connects in that moment
//! waits for it, and leaves alone whoever is connected. Never keeps a list of its own: the log's book of sessions knows
//! what is due, also after a restart.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::clock;
use crate::log::sessions::{SessionId, SessionUpdate, StoredSession};
use crate::log::{Append, AppendError, Due};
use crate::message::{Message, QoS};
use crate::server::Hub;
use crate::stats::count;

/// What is worked on before the book is looked at again.
const DUE_MAX: usize = 100;

/// The shortest pause between two looks: many clients may leave in one moment.
const PAUSE: Duration = Duration::from_millis(20);

/// The longest pause; the wall clock, by which sessions end, may be set meanwhile.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Works until `stop`.
pub(crate) async fn run(hub: Arc<Hub>, mut stop: watch::Receiver<bool>) {
    let sessions = hub.log.sessions();
    loop {
        let now_us = clock::now_us();
        let (due, next_us) = sessions.due(now_us, DUE_MAX);
        let pause = match (due.is_empty(), next_us) {
            (false, _) => PAUSE,
            (true, None) => PAUSE_MAX,
            (true, Some(next_us)) => micros(next_us.saturating_sub(now_us)).clamp(PAUSE, PAUSE_MAX),
        };
        for due in due {
            if let Err(error) = settle(&hub, &due).await {
                tracing::warn!(%error, ?due, "a session that is over is tried again");
            }
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(pause) => {}
            () = async { tokio::time::sleep(PAUSE).await; sessions.changed().await } => {}
        }
    }
}

fn micros(us: i64) -> Duration {
    Duration::from_micros(u64::try_from(us).unwrap_or(0))
}

async fn settle(hub: &Hub, due: &Due) -> Result<(), AppendError> {
    let (Due::Will(client_id) | Due::Expired(client_id)) = due;
    // A client that has the place looks after its session itself.
    let Some(_place) = hub.registry.take_free(client_id, hub.next_number()) else { return Ok(()) };
    let now_us = clock::now_us();
    let Some((id, is_over)) = hub.log.sessions().find(client_id, now_us) else { return Ok(()) };
    let stored = match hub.log.load_session(id).await {
        Ok(stored) => stored,
        Err(error) => {
            tracing::error!(%error, client = %client_id, "a stored session cannot be read; it is ended");
            None
        }
    };
    if is_over {
        count(&hub.counters.sessions_expired, 1);
        return end_session(hub, id, stored).await;
    }
    let will = stored.and_then(|stored| stored.will).filter(|will| will.due_us.is_some_and(|due_us| due_us <= now_us));
    match will {
        Some(will) => {
            let done = SessionUpdate { will: Some(None), ..SessionUpdate::of(id) };
            publish_will(hub, will.message, Some(done)).await
        }
        None => Ok(()),
    }
}

/// Ends a stored session for good: its will goes out, if one waits, and its rows go, in one commit. [MQTT-3.1.3-9]
pub(crate) async fn end_session(hub: &Hub, id: SessionId, stored: Option<StoredSession>) -> Result<(), AppendError> {
    let end = SessionUpdate::end(id);
    let StoredSession { subscriptions, will, .. } = match stored {
        Some(stored) => stored,
        None => return hub.log.store_session(end).await,
    };
    match will.filter(|will| will.due_us.is_some()) {
        Some(will) => publish_will(hub, will.message, Some(end)).await?,
        None => hub.log.store_session(end).await?,
    }
    for subscription in subscriptions.iter().filter(|it| it.filter.share_group().is_some()) {
        hub.left(&subscription.filter, true);
    }
    Ok(())
}

/// Publishes a will; what its session has to store is in the same commit.
pub(crate) async fn publish_will(hub: &Hub, will: Message, session: Option<SessionUpdate>) -> Result<(), AppendError> {
    count(&hub.counters.wills, 1);
    let log = will.qos > QoS::AtMostOnce;
    if log || will.retain {
        let append = Append { message: will.clone(), log, received_us: clock::now_us() };
        if let Err(error) = hub.log.append_with(vec![append], session.clone().map(Box::new)).await {
            tracing::warn!(topic = %will.topic, %error, "a will was not published");
            return match session {
                Some(session) => hub.log.store_session(session).await,
                None => Err(error),
            };
        }
    } else if let Some(session) = session {
        hub.log.store_session(session).await?;
    }
    hub.publish_live(vec![will]);
    Ok(())
}
