//! Which connection has which client identifier, and takeovers. [MQTT-3.1.4-3]
//!
//! Owns the table. A newcomer replaces the entry, tells the connection that had it to go, and waits until it is gone,
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
    close: watch::Sender<Option<Reason>>,
    /// Closed when the connection is gone.
    alive: watch::Receiver<()>,
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
    /// Takes the client identifier for connection `number`; the connection that has it is told to go.
    pub(crate) fn take(self: &Arc<Self>, client_id: &str, number: u32) -> (Place, Option<Predecessor>) {
        let (close, closed) = watch::channel(None);
        let (alive_sender, alive) = watch::channel(());
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let before = clients.insert(client_id.into(), Entry { number, close, alive });
        drop(clients);
        let predecessor = before.map(|entry| {
            entry.close.send_replace(Some(Reason::SessionTakenOver));
            Predecessor { alive: entry.alive }
        });
        let registry = Arc::clone(self);
        (Place { registry, client_id: client_id.into(), number, close: closed, _alive: alive_sender }, predecessor)
    }

    /// Takes the client identifier if no connection has it.
    pub(crate) fn take_free(self: &Arc<Self>, client_id: &str, number: u32) -> Option<Place> {
        let (close, closed) = watch::channel(None);
        let (alive_sender, alive) = watch::channel(());
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.contains_key(client_id) {
            return None;
        }
        clients.insert(client_id.into(), Entry { number, close, alive });
        drop(clients);
        Some(Place {
            registry: Arc::clone(self),
            client_id: client_id.into(),
            number,
            close: closed,
            _alive: alive_sender,
        })
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
