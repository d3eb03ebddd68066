//! Statistics of the broker as retained messages below `$SYS/broker/`.
//!
//! The names are those that other brokers use, so that existing dashboards show them. Published at QoS 0 and retained in
//! memory, never logged. Wildcards at the front of a filter do not match them. [MQTT-4.7.2-1]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;

use crate::message::{Message, QoS};
use crate::server::Hub;
use crate::topic::TopicName;

/// Publishes every `interval` until `stop`; never if that is zero.
pub(crate) async fn run(hub: Arc<Hub>, interval: Duration, mut stop: watch::Receiver<bool>) {
    if interval.is_zero() {
        return;
    }
    let started = Instant::now();
    publish(&hub, "version", concat!("millwright ", env!("CARGO_PKG_VERSION")));
    loop {
        publish(&hub, "uptime", &format!("{} seconds", started.elapsed().as_secs()));
        for (name, value) in figures(&hub) {
            publish(&hub, name, &value.to_string());
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(interval) => {}
        }
    }
}

fn figures(hub: &Hub) -> [(&'static str, u64); 17] {
    let (stats, log) = (hub.stats(), hub.log.stats());
    [
        ("clients/connected", stats.clients),
        ("clients/disconnected", log.sessions_away),
        ("clients/total", stats.clients + log.sessions_away),
        ("clients/expired", stats.sessions_expired),
        ("connections/count", stats.connections),
        ("publish/messages/received", stats.received_volatile + stats.received_durable),
        ("publish/messages/sent", stats.delivered),
        ("publish/messages/dropped", stats.skipped + stats.fan_out_dropped),
        ("publish/messages/lost", stats.lost),
        ("publish/messages/expired", stats.expired),
        ("retained messages/count", log.retained),
        ("sessions/count", log.sessions),
        ("wills/count", stats.wills),
        ("log/messages", log.head.0.saturating_sub(log.oldest.0)),
        ("log/bytes", log.bytes),
        ("log/commits", log.commits),
        ("log/commit/p99_us", log.commit_latency_p99_us),
    ]
}

fn publish(hub: &Hub, name: &str, value: &str) {
    let Ok(topic) = TopicName::parse(&format!("$SYS/broker/{name}")) else { return };
    let (payload, properties) = (Bytes::copy_from_slice(value.as_bytes()), Bytes::new());
    hub.publish_volatile(Message { topic, payload, properties, qos: QoS::AtMostOnce, retain: true, origin: 0 });
}
