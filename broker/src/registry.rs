//! Which connection has which client identifier, and takeovers. [MQTT-3.1.4-3]
//!
//! Owns the table. A newcomer of the same owner replaces the entry, tells the connection that had it to go, and waits until it is gone,
//! its will included; so the two never overlap and what the old one published comes first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::codec::Reason;

#[derive(Debug, Default)]
pub(crate) struct Registry {
    clients: Mutex<HashMap<Box<str>, Entry>>,
}

#[derive(Debug)]
struct Entry {
    number: u32,
    holder: Holder,
    close: watch::Sender<Option<Reason>>,
    /// Closed when the connection is gone.
    alive: watch::Receiver<()>,
}

/// Who has a client identifier.
#[derive(Debug, PartialEq, Eq)]
enum Holder {
    /// A connection of this owner; [`crate::Identity::owner`].
    Client(Option<Box<str>>),
    /// The keeper of sessions, for a moment: whoever wants the identifier waits.
    Keeper,
}

/// A connection's place in the table; gives it up when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    registry: Arc<Registry>,
    client_id: Box<str>,
    number: u32,
    /// Changes when the connection must go, and why.
    pub(crate) close: watch::Receiver<Option<Reason>>,
    _alive: watch::Sender<()>,
}

/// The connection that had the client identifier before.
#[derive(Debug)]
pub(crate) struct Predecessor {
    alive: watch::Receiver<()>,
}

impl Predecessor {
    /// Resolves when it is gone.
    pub(crate) async fn gone(mut self) {
        // Nothing is ever sent: the only change is that the sender is dropped.
        while self.alive.changed().await.is_ok() {}
    }
}

impl Registry {
    /// Takes the client identifier for connection `number` of `owner`; the connection that has it is told to go. `None` if
    /// that connection is another owner's.
    pub(crate) fn take(
        self: &Arc<Self>,
        client_id: &str,
        number: u32,
        owner: Option<&str>,
    ) -> Option<(Place, Option<Predecessor>)> {
        let holder = Holder::Client(owner.map(Into::into));
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.get(client_id).is_some_and(|entry| entry.holder != Holder::Keeper && entry.holder != holder) {
            return None;
        }
        let (place, entry) = self.place(client_id, number, holder);
        let before = clients.insert(client_id.into(), entry);
        drop(clients);
        let predecessor = before.map(|entry| {
            entry.close.send_replace(Some(Reason::SessionTakenOver));
            Predecessor { alive: entry.alive }
        });
        Some((place, predecessor))
    }

    /// Takes the client identifier for the keeper if no connection has it.
    pub(crate) fn take_free(self: &Arc<Self>, client_id: &str, number: u32) -> Option<Place> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.contains_key(client_id) {
            return None;
        }
        let (place, entry) = self.place(client_id, number, Holder::Keeper);
        clients.insert(client_id.into(), entry);
        drop(clients);
        Some(place)
    }

    fn place(self: &Arc<Self>, client_id: &str, number: u32, holder: Holder) -> (Place, Entry) {
        let (close, closed) = watch::channel(None);
        let (alive_sender, alive) = watch::channel(());
        let place = Place {
            registry: Arc::clone(self),
            client_id: client_id.into(),
            number,
            close: closed,
            _alive: alive_sender,
        };
        (place, Entry { number, holder, close, alive })
    }

    /// Clients that have an identifier.
    pub(crate) fn len(&self) -> usize {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut clients = self.registry.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.get(&self.client_id).is_some_and(|entry| entry.number == self.number) {
            clients.remove(&self.client_id);
        }
    }
}
