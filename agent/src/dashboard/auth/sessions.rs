//! Who has signed in, and for how long.
//!
//! Owns the sessions, in memory: a restart signs everybody out. Kept by the hash of their token, so that nothing in memory
//! signs anybody in. At most [`SESSIONS_MAX`]; the one that was not used for longest makes room. Never reads a clock.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Principal;
use super::token::{Key, Token};

/// Sessions at a time: 64 users with 16 browsers each; about 400 bytes each.
const SESSIONS_MAX: usize = 1_024;

/// The sessions.
pub(super) struct Sessions {
    idle: Duration,
    whole: Duration,
    held: Mutex<HashMap<Key, Held>>,
}

struct Held {
    principal: Principal,
    csrf: Token,
    since: Instant,
    used: Instant,
    /// Dropped with the session, which ends what waits for it.
    alive: watch::Sender<()>,
}

/// A session that holds now.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(super) key: Key,
    pub(super) principal: Principal,
    /// What an unsafe request has to repeat.
    pub(super) csrf: Token,
    /// How much longer it holds if nothing happens.
    pub(super) left: Duration,
    /// Fails when it has ended.
    pub(super) alive: watch::Receiver<()>,
}

impl Sessions {
    pub(super) fn new(idle: Duration, whole: Duration) -> Sessions {
        Sessions { idle, whole, held: Mutex::default() }
    }

    /// How long a session holds at most.
    pub(super) fn whole(&self) -> Duration {
        self.whole
    }

    /// Begins a session; gives its token.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub(super) fn begin(&self, principal: Principal, now: Instant) -> Result<(Token, Session), getrandom::Error> {
        let (token, csrf) = (Token::new()?, Token::new()?);
        let key = token.key();
        let new = Held { principal, csrf, since: now, used: now, alive: watch::Sender::new(()) };
        let session = self.seen(key, &new, now);
        let mut held = self.lock();
        if held.len() >= SESSIONS_MAX {
            held.retain(|_, held| self.left(held, now).is_some());
        }
        if held.len() >= SESSIONS_MAX
            && let Some(oldest) = held.iter().min_by_key(|(_, held)| held.used).map(|(key, _)| *key)
        {
            held.remove(&oldest);
        }
        held.insert(key, new);
        Ok((token, session))
    }

    /// The session of a token that somebody sent; it is used by that.
    pub(super) fn find(&self, token: &[u8], now: Instant) -> Option<Session> {
        self.keep(Key::of(token), now)
    }

    /// Notes that a session is in use; `None` if it has ended.
    pub(super) fn keep(&self, key: Key, now: Instant) -> Option<Session> {
        let mut held = self.lock();
        let one = held.get_mut(&key)?;
        if self.left(one, now).is_none() {
            held.remove(&key);
            return None;
        }
        one.used = now;
        Some(self.seen(key, one, now))
    }

    /// Ends a session.
    pub(super) fn end(&self, key: Key) {
        self.lock().remove(&key);
    }

    /// How much longer it holds; `None` if it has ended.
    fn left(&self, held: &Held, now: Instant) -> Option<Duration> {
        let idle = self.idle.checked_sub(now.saturating_duration_since(held.used))?;
        let whole = self.whole.checked_sub(now.saturating_duration_since(held.since))?;
        Some(idle.min(whole)).filter(|left| !left.is_zero())
    }

    fn seen(&self, key: Key, held: &Held, now: Instant) -> Session {
        Session {
            key,
            principal: held.principal.clone(),
            csrf: held.csrf.clone(),
            left: self.left(held, now).unwrap_or_default(),
            alive: held.alive.subscribe(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Role;
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);
    const MOMENT: Duration = Duration::from_millis(1);

    fn ada() -> Principal {
        Principal { name: "ada".to_owned(), role: Role::Viewer }
    }

    // A session that is used holds on until its end; one that is not ends when it was idle for long enough, not before.
    #[test]
    fn sessions_end() {
        let sessions = Sessions::new(HOUR, 3 * HOUR);
        let start = Instant::now();
        let (token, first) = sessions.begin(ada(), start).unwrap();
        let at = |time| sessions.find(token.as_str().as_bytes(), time);
        assert_eq!(first.left, HOUR);
        assert!(at(start + HOUR - MOMENT).is_some());
        assert!(at(start + 2 * HOUR - 2 * MOMENT).is_some());
        assert_eq!(at(start + 3 * HOUR - 10 * MOMENT).unwrap().left, 10 * MOMENT);
        assert!(at(start + 3 * HOUR).is_none());
        let (token, idle) = sessions.begin(ada(), start).unwrap();
        assert!(idle.alive.has_changed().is_ok());
        assert!(sessions.find(token.as_str().as_bytes(), start + HOUR).is_none());
        // What waits for its end is told.
        assert!(idle.alive.has_changed().is_err());
    }

    // Signing out ends one session and no other; a token that was never given opens nothing.
    #[test]
    fn sessions_are_apart() {
        let sessions = Sessions::new(HOUR, HOUR);
        let now = Instant::now();
        let (one, session) = sessions.begin(ada(), now).unwrap();
        let (other, _) = sessions.begin(ada(), now).unwrap();
        sessions.end(session.key);
        assert!(sessions.find(one.as_str().as_bytes(), now).is_none());
        assert!(sessions.find(other.as_str().as_bytes(), now).is_some());
        assert!(sessions.find(b"", now).is_none());
    }

    // There are never more than so many: the one that was not used for longest makes room.
    #[test]
    fn sessions_are_bounded() {
        let sessions = Sessions::new(HOUR, HOUR);
        let start = Instant::now();
        let tokens: Vec<Token> = (0..SESSIONS_MAX).map(|_| sessions.begin(ada(), start).unwrap().0).collect();
        let find = |n: usize, now| sessions.find(tokens[n].as_str().as_bytes(), now);
        let later = start + MOMENT;
        for n in 1..SESSIONS_MAX {
            assert!(find(n, later).is_some());
        }
        sessions.begin(ada(), later).unwrap();
        assert_eq!(sessions.lock().len(), SESSIONS_MAX);
        assert!(find(0, later).is_none());
    }
}
