//! The bounds of the MQTT side, each with what it costs.

use std::time::Duration;

/// What clients may take. The defaults suit a gateway with 1 GiB of memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time. A quiet one costs about 13 KiB, with a subscription or without.
    pub connections_max: usize,
    /// Connections at a time from one network: an IPv4 address, or an IPv6 /64.
    pub connections_per_network_max: usize,
    /// TLS handshakes per second from one network, after a burst of twice as many; 0 is no limit. One costs some 0.5 ms of
    /// a core.
    pub tls_handshakes_per_s_max: u32,
    /// Connections at a time that have not been accepted yet: at most this many times
    /// [`crate::codec::CONNECT_BYTES_MAX`] of memory for strangers. When there are more, the next waits until one was
    /// accepted, or until the oldest has been silent for a second and is closed.
    pub connecting_max: usize,
    /// How long a client may take from the first byte of TCP to its CONNECT.
    pub connect_deadline: Duration,
    /// The largest packet in bytes, either direction, with its fixed header.
    pub packet_bytes_max: usize,
    /// The longest topic or filter, in bytes; at most [`crate::topic::TOPIC_BYTES_MAX`].
    pub topic_bytes_max: usize,
    /// The most levels of a topic or filter; at most [`crate::topic::TOPIC_LEVELS_MAX`].
    pub topic_levels_max: usize,
    /// Subscriptions of one client.
    pub subscriptions_max: usize,
    /// Subscriptions of all connected clients together; about 200 bytes each.
    pub subscriptions_total_max: usize,
    /// Publishes per second from one client, after a burst of twice as many; beyond, its socket is not read for a while. 0 is
    /// no limit.
    pub publishes_per_s_max: u32,
    /// QoS 1 and 2 messages on their way to one client, unless its receive maximum is smaller. An entry is 16 bytes.
    pub inflight_max: u16,
    /// QoS 1 and 2 messages on their way from one client; announced in MQTT 5.
    pub receive_max: u16,
    /// Topic aliases of one client, each direction; announced in MQTT 5.
    pub topic_aliases_max: u16,
    /// Bytes of one client's publishes that wait for the disk; beyond, its socket is not read.
    pub inbound_bytes_max: usize,
    /// Bytes waiting to be sent to one client; beyond, QoS 0 messages to it are skipped, others wait in the log, and its
    /// socket is not read.
    pub outbound_bytes_max: usize,
    /// Bytes that all connections together hold for their clients, either direction; beyond, those that hold most are held
    /// back until there is less.
    pub buffered_bytes_max: usize,
    /// The longest keep-alive that is granted, in seconds; 0 grants any, also none. MQTT 5 clients are told, 3.1.1 has no
    /// way to tell and keeps its wish.
    pub keep_alive_max_s: u16,
    /// The longest that a session outlives its connection, in seconds; `u32::MAX` is for ever. MQTT 5 clients are told.
    pub session_expiry_max_s: u32,
}

impl Limits {
    /// Whether a topic or filter is short and flat enough.
    pub(crate) fn fits_topic(&self, topic: &str) -> bool {
        topic.len() <= self.topic_bytes_max
            && topic.bytes().filter(|byte| *byte == b'/').count() < self.topic_levels_max
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections_max: 2_000,
            connections_per_network_max: 2_000,
            tls_handshakes_per_s_max: 50,
            connecting_max: 128,
            connect_deadline: Duration::from_secs(10),
            packet_bytes_max: 1024 * 1024,
            topic_bytes_max: crate::topic::TOPIC_BYTES_MAX,
            topic_levels_max: crate::topic::TOPIC_LEVELS_MAX,
            subscriptions_max: 1_000,
            subscriptions_total_max: 100_000,
            publishes_per_s_max: 100_000,
            inflight_max: 1_000,
            receive_max: 1_000,
            topic_aliases_max: 64,
            inbound_bytes_max: 2 * 1024 * 1024,
            outbound_bytes_max: 1024 * 1024,
            buffered_bytes_max: 128 * 1024 * 1024,
            // A dead machine is noticed within a minute and a half.
            keep_alive_max_s: 60,
            // Holidays, and the week after.
            session_expiry_max_s: 30 * 24 * 60 * 60,
        }
    }
}
