//! A QoS 1 publisher that survives its gateway: many messages in flight, and what was not acknowledged is sent again.
//!
//! Owns the order of one topic's messages: message `n` has the same bytes whenever it is sent. It never skips one and
//! never calls one acknowledged before its PUBACK.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::PATIENCE;
use crate::client::{Client, Connect, PUBACK, publish_body};

/// Pause before the next attempt to connect, and of a publisher that may not go on.
const PAUSE: Duration = Duration::from_millis(5);

/// What a publisher and its test share.
#[derive(Debug)]
pub struct Progress {
    acknowledged: AtomicUsize,
    allowed: AtomicUsize,
    stopped: AtomicBool,
    gateway: Mutex<Option<SocketAddr>>,
}

impl Progress {
    /// Messages acknowledged so far: 0 to before this.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// Lets it send the messages before `until`.
    pub fn allow(&self, until: usize) {
        self.allowed.fetch_max(until, Ordering::SeqCst);
    }

    /// The messages before this may be sent.
    pub fn allowed(&self) -> usize {
        self.allowed.load(Ordering::SeqCst)
    }

    /// Where the gateway is now; `None` while there is none.
    pub fn set_gateway(&self, gateway: Option<SocketAddr>) {
        *self.gateway.lock().unwrap_or_else(PoisonError::into_inner) = gateway;
    }

    fn gateway(&self) -> Option<SocketAddr> {
        *self.gateway.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A publisher on a thread of its own; it ends when dropped.
#[derive(Debug)]
pub struct Publisher {
    /// How far it is.
    pub progress: Arc<Progress>,
    /// Where it publishes.
    pub topic: String,
    thread: Option<JoinHandle<()>>,
}

impl Publisher {
    /// Publishes `message(0)`, `message(1)` and so on to `topic`, with up to `in_flight` unacknowledged, as far as
    /// [`Progress::allow`] lets it.
    pub fn start(
        id: &str,
        topic: &str,
        in_flight: usize,
        message: impl Fn(usize) -> Vec<u8> + Send + 'static,
    ) -> Publisher {
        let progress = Arc::new(Progress {
            acknowledged: AtomicUsize::new(0),
            allowed: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            gateway: Mutex::new(None),
        });
        let (id, name, shared) = (id.to_owned(), topic.to_owned(), Arc::clone(&progress));
        let thread = std::thread::spawn(move || {
            while !shared.stopped.load(Ordering::SeqCst) {
                // A connection ends with its gateway; the next one sends again what was not acknowledged.
                if let Some(gateway) = shared.gateway()
                    && let Ok(mut client) = Client::connect(gateway, &Connect::new(&id))
                {
                    let _ = publish_over(&mut client, &shared, &name, in_flight, &message);
                }
                std::thread::sleep(PAUSE);
            }
        });
        Publisher { progress, topic: topic.to_owned(), thread: Some(thread) }
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.progress.stopped.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Publishes over one connection until it breaks or the publisher is stopped.
fn publish_over(
    client: &mut Client,
    progress: &Progress,
    topic: &str,
    in_flight: usize,
    message: &impl Fn(usize) -> Vec<u8>,
) -> std::io::Result<()> {
    client.set_patience(PATIENCE)?;
    let mut next = progress.acknowledged();
    let mut waiting: VecDeque<usize> = VecDeque::new();
    while !progress.stopped.load(Ordering::SeqCst) {
        let allowed = progress.allowed.load(Ordering::SeqCst);
        while waiting.len() < in_flight && next < allowed {
            client.send(0x32, &publish_body(topic, Some(packet_id(next)), &message(next)))?;
            waiting.push_back(next);
            next += 1;
        }
        let Some(&oldest) = waiting.front() else {
            std::thread::sleep(PAUSE);
            continue;
        };
        let answer = client.receive_type(PUBACK)?;
        // [MQTT-4.6.0-2] demands acknowledgements in the order of the publishes.
        assert_eq!(answer.body.get(..2), Some(packet_id(oldest).to_be_bytes().as_slice()), "acknowledged out of order");
        waiting.pop_front();
        progress.acknowledged.store(oldest + 1, Ordering::SeqCst);
    }
    Ok(())
}

/// 1 to 65,535, in order.
fn packet_id(message: usize) -> u16 {
    u16::try_from(message % 65_535).unwrap_or(u16::MAX - 1) + 1
}
