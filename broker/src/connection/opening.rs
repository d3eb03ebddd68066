//! From CONNECT to CONNACK: authenticate, take the client identifier, find or begin the session.

use std::borrow::Cow;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::{Connection, stopped};
use crate::auth::{Credentials, Identity, Login};
use crate::clock;
use crate::codec::{Connect, Reason};
use crate::keeper;
use crate::log::sessions::{SessionUpdate, StoredSession};
use crate::server::STORED_NUMBER;
use crate::session::Acceptance;
use crate::stats::count;

/// How long a takeover waits for the connection it replaces; that one needs [`super::FINISH_MAX`] at most.
const TAKEOVER_MAX: Duration = Duration::from_secs(10);

/// How long a session may take to be read and stored before its client is told to come back later.
const OPEN_MAX: Duration = Duration::from_secs(10);

/// How long a client waits for the will of its earlier connection.
const WILL_MAX: Duration = Duration::from_secs(1);

impl Connection {
    /// Decides about CONNECT and answers it.
    pub(super) async fn connect(&mut self, connect: &Connect) {
        match self.admit(connect).await {
            Ok(acceptance) => {
                self.stranger = None;
                let moment = self.moment();
                self.session.accept(acceptance, moment);
                tracing::debug!(peer = %self.peer, client = %self.session.identity().client_id, "client connected");
            }
            Err(reason) => self.session.refuse(reason),
        }
    }

    async fn admit(&mut self, connect: &Connect) -> Result<Acceptance, Reason> {
        let username = self.authenticate(connect).await?;
        let client_id = match connect.client_id.as_str() {
            "" => assigned_client_id().ok_or(Reason::ServerUnavailable)?.into(),
            wish => wish.into(),
        };
        if !self.session.identify(Identity { client_id, username, certificate: self.certificate.clone() }) {
            return Err(Reason::NotAuthorized);
        }
        let number = self.hub.next_number();
        self.take_place(number).await?;
        let opened = timeout(OPEN_MAX, self.open_session(connect.clean_start, number)).await;
        opened.unwrap_or(Err(Reason::ServerUnavailable))
    }

    /// Gives the user name that the client goes by from now on.
    async fn authenticate(&mut self, connect: &Connect) -> Result<Option<Box<str>>, Reason> {
        let username = connect.username.as_ref().map(|name| name.as_str());
        let login = self.hub.authenticator.login(Credentials {
            network: self.peer.ip().into(),
            certificate: self.certificate.as_deref(),
            username,
            password: connect.password.as_deref(),
        });
        let reason = match login.await {
            Login::Accepted => return Ok(username.map(Into::into)),
            Login::ByCertificate => return Ok(None),
            Login::Wrong => Reason::BadUserNameOrPassword,
            Login::TooMany => Reason::ConnectionRateExceeded,
        };
        count(&self.hub.counters.logins_wrong, 1);
        tracing::info!(peer = %self.peer, username, %reason, "client refused");
        Err(reason)
    }

    /// To whom the client's sessions belong. Where nobody has to log in, user names mean nothing.
    fn owner(&self) -> Option<String> {
        let identity = self.session.identity();
        if self.hub.authenticator.is_open() { None } else { identity.owner().map(Cow::into_owned) }
    }

    /// Takes the client identifier, and waits until the connection that had it is gone.
    async fn take_place(&mut self, number: u32) -> Result<(), Reason> {
        let client_id = &self.session.identity().client_id;
        let Some((place, predecessor)) = self.hub.registry.take(client_id, number, self.owner().as_deref()) else {
            return Err(self.belongs_to_another());
        };
        let close = place.close.clone();
        self.place = Some(place);
        let Some(predecessor) = predecessor else { return Ok(()) };
        count(&self.hub.counters.takeovers, 1);
        tokio::select! {
            waited = timeout(TAKEOVER_MAX, predecessor.gone()) => waited.map_err(|_| Reason::ServerBusy),
            () = replaced(close) => Err(Reason::SessionTakenOver),
            () = stopped(&mut self.stop) => Err(Reason::ServerShuttingDown),
        }
    }

    /// Finds the session that the client left, or begins one; stored before the client is told.
    async fn open_session(&mut self, clean_start: bool, number: u32) -> Result<Acceptance, Reason> {
        let log = self.hub.log.clone();
        let failed = |error: &dyn std::fmt::Display| {
            tracing::warn!(%error, "a session cannot be opened");
            Reason::ServerUnavailable
        };
        let mut stored = self.stored_session(clean_start).await?;
        let lost = stored.as_mut().map_or(0, |stored| skip_lost(stored, log.oldest().0));
        if lost > 0 {
            count(&self.hub.counters.lost, lost);
            let client = &self.session.identity().client_id;
            tracing::warn!(%client, lost, "messages were dropped while the session was away");
        }
        if self.session.granted_expiry_s() == 0 {
            // It goes on, and ends with this connection.
            if let Some(stored) = &stored {
                let ended = log.store_session(SessionUpdate::end(stored.id)).await;
                ended.map_err(|error| failed(&error))?;
            }
            return Ok(Acceptance { number, id: None, stored, lost });
        }
        if stored.is_none() && !log.sessions().has_room() {
            tracing::warn!("as many sessions are stored as the limit allows; a client that wants another is refused");
            return Err(Reason::QuotaExceeded);
        }
        let id = stored.as_ref().map_or_else(|| log.sessions().next_id(), |stored| stored.id);
        let moment = self.moment();
        let update = self.session.first_update(id, stored.as_ref(), moment);
        log.store_session(update).await.map_err(|error| failed(&error))?;
        self.cursor = log.sessions().cursor(id);
        // The number tells its messages from those of others over restarts, for no-local.
        Ok(Acceptance { number: STORED_NUMBER | id.0, id: Some(id), stored, lost })
    }

    /// What an earlier connection left, if this one goes on with it; else that is ended.
    async fn stored_session(&mut self, clean_start: bool) -> Result<Option<StoredSession>, Reason> {
        let identity = self.session.identity();
        let Some((id, is_over)) = self.hub.log.sessions().find(&identity.client_id, clock::now_us()) else {
            return Ok(None);
        };
        let stored = self.hub.log.load_session(id).await.map_err(|error| {
            tracing::error!(%error, "a stored session cannot be read");
            Reason::ServerUnavailable
        })?;
        // Another user must not have the first one's messages, nor end its session while it may come back.
        let is_own = |stored: &StoredSession| stored.username.as_deref() == identity.owner().as_deref();
        let is_protected = |stored: &StoredSession| {
            !is_over && stored.username.as_ref().is_some_and(|owner| self.hub.authenticator.protects(owner))
        };
        if stored.as_ref().is_some_and(|stored| !is_own(stored) && is_protected(stored)) {
            return Err(self.belongs_to_another());
        }
        let goes_on = |stored: &StoredSession| !clean_start && !is_over && is_own(stored);
        if stored.as_ref().is_some_and(goes_on) {
            self.publish_due_will(stored.as_ref()).await;
            return Ok(stored);
        }
        keeper::end_session(&self.hub, id, stored).await.map_err(|_| Reason::ServerUnavailable)?;
        Ok(None)
    }

    fn belongs_to_another(&self) -> Reason {
        let identity = self.session.identity();
        tracing::info!(
            peer = %self.peer, client = %identity.client_id, name = identity.name(),
            "client refused: another user has a session with this client identifier"
        );
        Reason::NotAuthorized
    }

    /// A will that was due before the client came back goes out; its row is replaced by the new connection's. While the
    /// log is full it stays in the log's queue.
    async fn publish_due_will(&mut self, stored: Option<&StoredSession>) {
        let will = stored.and_then(|stored| stored.will.as_ref());
        let due = will.filter(|will| will.due_us.is_some_and(|due_us| due_us <= clock::now_us()));
        if let Some(will) = due {
            // In both cases of a failure there is nothing more to be done.
            let _ = timeout(WILL_MAX, keeper::publish_will(&self.hub, will.message.clone(), None)).await;
        }
    }
}

/// Moves a session behind what retention dropped; gives how many messages that were.
fn skip_lost(stored: &mut StoredSession, oldest: u64) -> u64 {
    let lost = oldest.saturating_sub(stored.read_from.0);
    stored.read_from.0 = stored.read_from.0.max(oldest);
    lost
}

/// Resolves when yet another client takes the identifier.
async fn replaced(mut close: watch::Receiver<Option<Reason>>) {
    // An error means that the entry is gone, which only a newer one does.
    let _ = close.wait_for(Option::is_some).await;
}

/// An identifier for a client that brought none; `None` if the system has no random numbers.
fn assigned_client_id() -> Option<String> {
    let mut random = [0_u8; 12];
    getrandom::fill(&mut random).ok()?;
    Some(random.iter().fold(String::from("mw-"), |id, byte| id + &format!("{byte:02x}")))
}
