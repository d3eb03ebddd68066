//! Which connections may stay: places in total and per network, handshakes per network, strangers.
//!
//! A stranger is a connection whose client has not been accepted. Owns the counts; never reads from a socket. Networks are
//! remembered while they have a connection, and [`NETWORKS_MAX`] more while their handshakes count.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::auth::Network;
use crate::limits::Limits;
use crate::rate::Allowance;
use crate::stats::{Counters, count};

/// How long a connection may be silent while others wait for its place.
const SILENT_MAX: Duration = Duration::from_secs(1);

/// How long an evicted connection may take to go.
const EVICTION_MAX: Duration = Duration::from_secs(2);

/// Networks that are remembered besides those that are connected; about 64 bytes each.
const NETWORKS_MAX: usize = 4_096;

/// Decides about connections as they come.
pub(crate) struct Admission {
    places: Arc<Semaphore>,
    networks: Arc<Mutex<HashMap<Network, Guests>>>,
    per_network_max: usize,
    networks_max: usize,
    handshakes_per_s: u32,
    strangers: Strangers,
}

/// What a network has.
#[derive(Debug)]
struct Guests {
    connections: usize,
    handshakes: Allowance,
}

/// A connection's place; given back when dropped.
#[derive(Debug)]
pub(crate) struct Entry {
    _place: OwnedSemaphorePermit,
    network: Network,
    networks: Arc<Mutex<HashMap<Network, Guests>>>,
}

impl Admission {
    pub(crate) fn new(limits: &Limits) -> Admission {
        Admission {
            places: Arc::new(Semaphore::new(limits.connections_max)),
            networks: Arc::default(),
            per_network_max: limits.connections_per_network_max,
            networks_max: NETWORKS_MAX.saturating_add(limits.connections_max),
            handshakes_per_s: limits.tls_handshakes_per_s_max,
            strangers: Strangers::new(limits.connecting_max),
        }
    }

    /// A place for a connection from `address`; `None` if there is none, or if a TLS handshake (`shakes`) would be one more
    /// than the network may ask for.
    pub(crate) fn enter(&self, address: IpAddr, shakes: bool, now: Instant) -> Option<Entry> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let network = Network::from(address);
        let mut networks = self.networks.lock().unwrap_or_else(PoisonError::into_inner);
        if networks.len() >= self.networks_max {
            networks.retain(|_, guests| guests.connections > 0 || !guests.handshakes.is_full(now));
        }
        if networks.len() >= self.networks_max {
            networks.retain(|_, guests| guests.connections > 0);
        }
        let guests = networks
            .entry(network)
            .or_insert_with(|| Guests { connections: 0, handshakes: Allowance::new(self.handshakes_per_s, now) });
        if guests.connections >= self.per_network_max || (shakes && !guests.handshakes.take(now)) {
            return None;
        }
        guests.connections += 1;
        drop(networks);
        Some(Entry { _place: place, network, networks: Arc::clone(&self.networks) })
    }

    /// Waits for room for a stranger; makes some if the oldest had its time.
    pub(crate) async fn make_room(&mut self, counters: &Counters) -> Stranger {
        self.strangers.admit(counters).await
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut networks = self.networks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(guests) = networks.get_mut(&self.network) {
            guests.connections -= 1;
        }
    }
}

/// A connection that has not been accepted.
#[derive(Debug)]
pub(crate) struct Stranger {
    _permit: OwnedSemaphorePermit,
    /// Resolves when its place is needed by others.
    pub(crate) evicted: oneshot::Receiver<()>,
}

/// The connections that have not been accepted, oldest first. Silent ones must not keep others out.
struct Strangers {
    places: Arc<Semaphore>,
    evict: VecDeque<(Instant, oneshot::Sender<()>)>,
}

impl Strangers {
    fn new(places: usize) -> Strangers {
        Strangers { places: Arc::new(Semaphore::new(places)), evict: VecDeque::new() }
    }

    /// Waits for a place; makes one if the oldest had its time.
    async fn admit(&mut self, counters: &Counters) -> Stranger {
        self.evict.retain(|(_, evict)| !evict.is_closed());
        // One at a time: an evicted connection takes a moment to go.
        let mut next = Instant::now();
        let permit = loop {
            let oldest_until = self.evict.front().map(|(since, _)| next.max(*since + SILENT_MAX));
            tokio::select! {
                biased;
                Ok(permit) = Arc::clone(&self.places).acquire_owned() => break permit,
                () = until(oldest_until) => {
                    next = Instant::now() + EVICTION_MAX;
                    if let Some((_, evict)) = self.evict.pop_front()
                        && evict.send(()).is_ok()
                    {
                        count(&counters.turned_away, 1);
                    }
                }
            }
        };
        let (evict, evicted) = oneshot::channel();
        self.evict.push_back((Instant::now(), evict));
        Stranger { _permit: permit, evicted }
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn admission(limits: Limits) -> Admission {
        Admission::new(&limits)
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    // A network has as many places as the limit says, the next one none until one leaves; others are not touched.
    #[test]
    fn a_network_does_not_take_all_places() {
        let admission = admission(Limits { connections_per_network_max: 2, connections_max: 4, ..Limits::default() });
        let now = Instant::now();
        let first = admission.enter(address("192.0.2.1"), false, now).unwrap();
        let _second = admission.enter(address("192.0.2.1"), false, now).unwrap();
        assert!(admission.enter(address("192.0.2.1"), false, now).is_none());
        let _other = admission.enter(address("192.0.2.2"), false, now).unwrap();
        drop(first);
        let _third = admission.enter(address("192.0.2.1"), false, now).unwrap();
        let _fourth = admission.enter(address("192.0.2.3"), false, now).unwrap();
        assert!(admission.enter(address("192.0.2.4"), false, now).is_none());
    }

    // A network that shakes hands faster than allowed is turned away at TLS listeners alone, and not for longer than it does.
    #[test]
    fn a_network_shakes_hands_at_its_rate() {
        let admission = admission(Limits { tls_handshakes_per_s_max: 5, ..Limits::default() });
        let now = Instant::now();
        let shake = |at| admission.enter(address("192.0.2.1"), true, at).is_some();
        let flood = (0..100).filter(|_| shake(now)).count();
        assert!((5..=20).contains(&flood), "{flood}");
        assert!(admission.enter(address("192.0.2.1"), false, now).is_some());
        assert!(admission.enter(address("192.0.2.2"), true, now).is_some());
        assert!(!shake(now + Duration::from_millis(100)));
        assert!(shake(now + Duration::from_millis(210)));
    }

    // Networks that came once are not remembered for ever.
    #[test]
    fn networks_are_forgotten() {
        let admission = admission(Limits::default());
        let now = Instant::now();
        for host in 0..20_000_u32 {
            drop(admission.enter(IpAddr::from((0x0a00_0000 + host).to_be_bytes()), false, now));
        }
        assert!(admission.networks.lock().unwrap().len() <= admission.networks_max);
    }
}
