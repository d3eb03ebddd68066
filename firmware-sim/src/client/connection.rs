//! One MQTT connection of a device, from CONNECT to its end.
//!
//! Owns the client library's event loop and the packet identifiers. A connection is used once: after an error it is
//! thrown away with everything the library meant to send again, because [`crate::device`] sends it again itself.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use rumqttc::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, NetworkOptions, Outgoing, Packet, QoS};
use tokio::sync::mpsc;

use super::DeviceConfig;
use crate::device::IN_FLIGHT_MAX;

/// Seconds between signs of life: a broker that is gone without a word is noticed within twice this time.
const KEEP_ALIVE_S: u64 = 10;

/// The most seconds that connecting may take.
const CONNECT_S_MAX: u64 = 5;

/// Requests that wait for the event loop: a window of frames and the DISCONNECT.
const REQUESTS_MAX: usize = IN_FLIGHT_MAX + 1;

/// Events that wait for the driver; the event loop waits when there are more.
const EVENTS_MAX: usize = 2 * IN_FLIGHT_MAX;

/// Packet identifiers go up to this and begin again: four windows, so that one is free again when its turn comes even
/// when acknowledgements arrive out of order.
const PACKET_IDS: u16 = 4 * IN_FLIGHT_MAX as u16;

/// What happened on a connection.
#[derive(Debug)]
pub(crate) enum Happened {
    /// The broker accepted the connection.
    Connected,
    /// The broker has the frame with this sequence number.
    Acknowledged(u64),
    /// Our DISCONNECT is on its way.
    Disconnecting,
    /// The connection is over.
    Ended(String),
}

pub(crate) struct Connection {
    client: AsyncClient,
    /// Drives the event loop and forwards what it says; never finishes before the event channel is closed.
    event_loop: Pin<Box<dyn Future<Output = ()> + Send>>,
    events: mpsc::Receiver<Result<Event, ConnectionError>>,
    /// Frames given to the client that have no packet identifier yet, in order.
    unsent: VecDeque<u64>,
    /// Sequence numbers by packet identifier; at most [`IN_FLIGHT_MAX`].
    sent: HashMap<u16, u64>,
}

impl Connection {
    /// Begins to connect; drive it with [`Connection::next`].
    pub(crate) fn open(config: &DeviceConfig) -> Connection {
        let client_id = format!("device-{}", config.asset);
        let mut options = MqttOptions::new(client_id, config.broker_host.as_str(), config.broker_port);
        options.set_keep_alive(Duration::from_secs(KEEP_ALIVE_S)).set_inflight(PACKET_IDS).set_clean_session(true);
        if let Some(credentials) = &config.credentials {
            options.set_credentials(credentials.username.as_str(), credentials.password.as_str());
        }
        let (client, mut event_loop) = AsyncClient::new(options, REQUESTS_MAX);
        let mut network = NetworkOptions::new();
        network.set_connection_timeout(CONNECT_S_MAX).set_tcp_nodelay(true);
        event_loop.set_network_options(network);
        let (events_tx, events) = mpsc::channel(EVENTS_MAX);
        Connection {
            client,
            event_loop: Box::pin(forward(event_loop, events_tx)),
            events,
            unsent: VecDeque::new(),
            sent: HashMap::new(),
        }
    }

    /// Gives a frame to the client; `false` when it takes no more, which only a broken connection does.
    pub(crate) fn publish(&mut self, topic: &str, sequence: u64, payload: &[u8]) -> bool {
        self.unsent.push_back(sequence);
        self.client.try_publish(topic, QoS::AtLeastOnce, false, payload).is_ok()
    }

    /// Says goodbye to the broker after what was published.
    pub(crate) fn disconnect(&self) -> bool {
        self.client.try_disconnect().is_ok()
    }

    /// Waits for the next thing to happen. Nothing is lost when this future is dropped.
    pub(crate) async fn next(&mut self) -> Happened {
        loop {
            let event = tokio::select! {
                biased;
                event = self.events.recv() => event,
                () = &mut self.event_loop => None,
            };
            let happened = match event {
                None => Some(Happened::Ended("the event loop stopped".to_owned())),
                Some(Err(error)) => Some(Happened::Ended(error.to_string())),
                Some(Ok(event)) => self.understand(&event),
            };
            if let Some(happened) = happened {
                return happened;
            }
        }
    }

    fn understand(&mut self, event: &Event) -> Option<Happened> {
        match event {
            Event::Incoming(Packet::ConnAck(_)) => Some(Happened::Connected),
            // The client numbers publications in the order it was given them.
            Event::Outgoing(Outgoing::Publish(packet_id)) => {
                self.sent.insert(*packet_id, self.unsent.pop_front()?);
                None
            }
            Event::Incoming(Packet::PubAck(acknowledgement)) => {
                self.sent.remove(&acknowledgement.pkid).map(Happened::Acknowledged)
            }
            Event::Outgoing(Outgoing::Disconnect) => Some(Happened::Disconnecting),
            _ => None,
        }
    }
}

/// Runs the event loop until its first error, which ends the connection.
async fn forward(mut event_loop: EventLoop, events: mpsc::Sender<Result<Event, ConnectionError>>) {
    loop {
        let event = event_loop.poll().await;
        let failed = event.is_err();
        if events.send(event).await.is_err() || failed {
            break;
        }
    }
    // The driver reads what is still in the channel and drops this future then.
    std::future::pending().await
}
