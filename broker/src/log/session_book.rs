//! Which sessions are stored, in memory: for retention, for expiry, and for a client that connects.
//!
//! Changed by the log's writer after the commit that holds the change, so it never knows more than the file. A connected
//! session moves its position by itself, with a [`SessionCursor`]. Limits: `Limits::sessions_max` sessions,
//! `Budget::session_bytes_max` bytes of filters.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Offset;
use super::sessions::{Found, Listed, Presence, SessionId, SessionUpdate};
use crate::topic::TopicFilter;

#[derive(Debug)]
struct Entry {
    id: SessionId,
    presence: Presence,
    will_due_us: Option<i64>,
    position: Arc<AtomicU64>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct State {
    by_client: HashMap<Arc<str>, Entry>,
    clients: HashMap<SessionId, Arc<str>>,
}

/// What is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Due {
    /// A will is to be published.
    Will(Arc<str>),
    /// A session is over.
    Expired(Arc<str>),
}

/// The stored sessions.
#[derive(Debug)]
pub(crate) struct SessionBook {
    state: Mutex<State>,
    next_id: AtomicU32,
    /// Bytes of filters.
    bytes: AtomicUsize,
    /// Shared subscriptions of the sessions found, until they are taken.
    shared: Mutex<Vec<(TopicFilter, Offset)>>,
    sessions_max: usize,
    bytes_max: usize,
    /// Something may be due earlier than before.
    changed: Notify,
}

/// Where a connected session stands; retention keeps what is behind it if it can.
#[derive(Debug, Clone)]
pub(crate) struct SessionCursor(Arc<AtomicU64>);

impl SessionCursor {
    /// Everything before `position` is done with.
    pub(crate) fn advance(&self, position: Offset) {
        self.0.store(position.0, Ordering::Relaxed);
    }
}

impl SessionBook {
    /// The sessions found in the file.
    pub(crate) fn new(found: Found, sessions_max: usize, bytes_max: usize) -> SessionBook {
        let Found { sessions, shared, next_id } = found;
        let mut state = State::default();
        let mut total = 0;
        for listed in sessions {
            let client_id: Arc<str> = Arc::from(listed.client_id);
            total += listed.bytes;
            state.clients.insert(listed.id, Arc::clone(&client_id));
            let Listed { id, presence, will_due_us, position, bytes, .. } = listed;
            let position = Arc::new(AtomicU64::new(position));
            state.by_client.insert(client_id, Entry { id, presence, will_due_us, position, bytes });
        }
        SessionBook {
            state: Mutex::new(state),
            next_id: AtomicU32::new(next_id),
            bytes: AtomicUsize::new(total),
            shared: Mutex::new(shared),
            sessions_max,
            bytes_max,
            changed: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every statement leaves the book consistent enough to go on, so a panic while it was held changes nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session of a client, and whether it is over.
    pub(crate) fn find(&self, client_id: &str, now_us: i64) -> Option<(SessionId, bool)> {
        let state = self.lock();
        let entry = state.by_client.get(client_id)?;
        Some((entry.id, entry.presence.expires_us().is_some_and(|expires_us| expires_us <= now_us)))
    }

    /// The shared subscriptions of the sessions that were found at the start, with their positions; once.
    pub(crate) fn take_shared(&self) -> Vec<(TopicFilter, Offset)> {
        std::mem::take(&mut *self.shared.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A number for a new session.
    pub(crate) fn next_id(&self) -> SessionId {
        SessionId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// Whether one more session fits.
    pub(crate) fn has_room(&self) -> bool {
        self.lock().by_client.len() < self.sessions_max
    }

    /// Whether another filter fits.
    pub(crate) fn has_room_for_filters(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) < self.bytes_max
    }

    /// The position of a session, to move it.
    pub(crate) fn cursor(&self, id: SessionId) -> Option<SessionCursor> {
        let state = self.lock();
        let entry = state.by_client.get(state.clients.get(&id)?)?;
        Some(SessionCursor(Arc::clone(&entry.position)))
    }

    /// Takes what a commit wrote.
    pub(crate) fn apply(&self, update: &SessionUpdate) {
        let mut state = self.lock();
        if let Some(ended) = update.ends {
            let bytes = state.end(ended);
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        let State { by_client, clients } = &mut *state;
        if let Some(begin) = &update.begin {
            let client_id: Arc<str> = Arc::from(&*begin.client_id);
            clients.insert(update.id, Arc::clone(&client_id));
            let presence = Presence { expiry_s: 0, ended_us: None };
            let position = Arc::new(AtomicU64::new(1));
            by_client.insert(client_id, Entry { id: update.id, presence, will_due_us: None, position, bytes: 0 });
        }
        let Some(entry) = clients.get(&update.id).and_then(|client_id| by_client.get_mut(client_id)) else { return };
        if let Some(progress) = update.progress {
            entry.position.store(progress.position.0, Ordering::Relaxed);
        }
        if let Some(will) = &update.will {
            entry.will_due_us = will.as_ref().and_then(|will| will.due_us);
        }
        let grown = isize::try_from(update.filter_bytes).unwrap_or(0);
        let before = entry.bytes;
        entry.bytes = before.saturating_add_signed(grown);
        self.bytes.fetch_add(entry.bytes.wrapping_sub(before), Ordering::Relaxed);
        if let Some(presence) = update.presence {
            entry.presence = presence;
            if presence.ended_us.is_some() {
                drop(state);
                self.changed.notify_one();
            }
        }
    }

    /// Resolves when something may be due earlier than it was.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// What is due at `now_us`, at most `count_max`, and when to look again.
    pub(crate) fn due(&self, now_us: i64, count_max: usize) -> (Vec<Due>, Option<i64>) {
        let (mut due, mut next) = (Vec::new(), None);
        for (client_id, entry) in &self.lock().by_client {
            let expires = entry.presence.expires_us().map(|at_us| (at_us, Due::Expired as fn(Arc<str>) -> Due));
            let will = entry.will_due_us.map(|at_us| (at_us, Due::Will as fn(Arc<str>) -> Due));
            // The end of a session publishes its will too.
            let Some((at_us, what)) = [expires, will].into_iter().flatten().min_by_key(|(at_us, _)| *at_us) else {
                continue;
            };
            if at_us <= now_us && due.len() < count_max {
                due.push(what(Arc::clone(client_id)));
            } else {
                next = Some(next.map_or(at_us, |next: i64| next.min(at_us)));
            }
        }
        (due, next)
    }

    /// The sessions that still need a message before `end`: the oldest position, and their clients.
    pub(crate) fn needing(&self, end: u64) -> Option<(u64, Vec<Arc<str>>)> {
        let state = self.lock();
        let behind = state.by_client.iter().map(|(client, entry)| (entry.position.load(Ordering::Relaxed), client));
        let behind: Vec<(u64, &Arc<str>)> = behind.filter(|(position, _)| *position < end).collect();
        let oldest = behind.iter().map(|(position, _)| *position).min()?;
        let mut clients: Vec<Arc<str>> = behind.into_iter().map(|(_, client)| Arc::clone(client)).collect();
        clients.sort_unstable();
        Some((oldest, clients))
    }

    /// Stored sessions, and those without a connection.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let state = self.lock();
        let away = state.by_client.values().filter(|entry| entry.presence.ended_us.is_some()).count();
        (state.by_client.len(), away)
    }
}

impl State {
    /// Gives the bytes that its filters had.
    fn end(&mut self, id: SessionId) -> usize {
        let Some(client_id) = self.clients.remove(&id) else { return 0 };
        // The client may have begun another one.
        if self.by_client.get(&client_id).is_some_and(|entry| entry.id == id) {
            return self.by_client.remove(&client_id).map_or(0, |gone| gone.bytes);
        }
        0
    }
}
