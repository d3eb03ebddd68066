//! Watches a gateway as any MQTT client would: health and events, over a real connection.

use std::net::SocketAddr;
use std::time::Duration;

use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::alarm::message::{AlertEvent, Health};

/// Messages waiting for the view; when it is slower, the connection waits.
const OBSERVED_MAX: usize = 256;
/// Requests waiting for the connection: two subscriptions.
const REQUESTS_MAX: usize = 10;
/// An event with its signals is a few kilobytes.
const PACKET_BYTES_MAX: usize = 1 << 20;
/// Pause before connecting again.
const RECONNECT: Duration = Duration::from_millis(500);

/// Something the gateway said.
#[derive(Debug)]
pub enum Observed {
    /// The health of an asset.
    Health(Box<Health>),
    /// An event of an alert.
    Event(Box<AlertEvent>),
}

/// A connected observer; it disconnects when dropped.
pub struct Observer {
    /// What was said, in order.
    pub messages: mpsc::Receiver<Observed>,
    task: JoinHandle<()>,
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Observer {
    /// Connects and subscribes; returns when the broker has granted the subscriptions, so that nothing later is missed.
    ///
    /// # Errors
    /// The broker does not answer within 10 s.
    pub async fn connect(broker: SocketAddr) -> anyhow::Result<Observer> {
        let mut options = MqttOptions::new("millwright-observer", broker.ip().to_string(), broker.port());
        options.set_max_packet_size(PACKET_BYTES_MAX, PACKET_BYTES_MAX);
        let (client, mut connection) = AsyncClient::new(options, REQUESTS_MAX);
        client.subscribe("mw/v1/health/+", QoS::AtMostOnce).await?;
        client.subscribe("mw/v1/event/+", QoS::AtLeastOnce).await?;
        let granted = async {
            let mut waiting = 2;
            while waiting > 0 {
                if let Event::Incoming(Packet::SubAck(_)) = connection.poll().await? {
                    waiting -= 1;
                }
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(Duration::from_secs(10), granted).await??;
        let (sender, messages) = mpsc::channel(OBSERVED_MAX);
        let task = tokio::spawn(async move {
            // The client is kept: without it the connection ends.
            let _client = client;
            loop {
                match connection.poll().await {
                    Ok(Event::Incoming(Packet::Publish(publish))) => {
                        let Some(observed) = parse(&publish.topic, &publish.payload) else { continue };
                        if sender.send(observed).await.is_err() {
                            return;
                        }
                    }
                    Ok(_) => {}
                    Err(_) => tokio::time::sleep(RECONNECT).await,
                }
            }
        });
        Ok(Observer { messages, task })
    }
}

fn parse(topic: &str, payload: &[u8]) -> Option<Observed> {
    if topic.starts_with("mw/v1/health/") {
        return serde_json::from_slice(payload).ok().map(|health| Observed::Health(Box::new(health)));
    }
    serde_json::from_slice(payload).ok().map(|event| Observed::Event(Box::new(event)))
}
