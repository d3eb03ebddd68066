//! What the broker counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Figures of a running broker; counts are since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BrokerStats {
    /// Bytes held in memory for clients now, and [`crate::Limits::buffered_bytes_max`].
    pub buffered_bytes: u64,
    /// See `buffered_bytes`.
    pub buffered_bytes_max: u64,
    /// Connections held back now because of it.
    pub held_back: u64,
    /// Times that no connection could be accepted, for want of file descriptors mostly.
    pub accepts_failed: u64,
    /// Connections now, those without CONNECT included.
    pub connections: u64,
    /// Clients that are served now.
    pub clients: u64,
    /// Connections accepted from the network.
    pub accepted: u64,
    /// Connections closed because of [`crate::Limits::connections_max`], [`crate::Limits::connections_per_network_max`] or
    /// [`crate::Limits::tls_handshakes_per_s_max`], or silent ones because of [`crate::Limits::connecting_max`].
    pub turned_away: u64,
    /// TLS or WebSocket handshakes that failed.
    pub handshakes_failed: u64,
    /// Logins with a wrong user name or password.
    pub logins_wrong: u64,
    /// Publishes and subscriptions that access rules do not allow.
    pub denied: u64,
    /// CONNECTs refused, wrong passwords among them.
    pub refused: u64,
    /// Connections that ended because the client broke the protocol.
    pub protocol_errors: u64,
    /// Connections that ended because nothing came for one and a half keep-alives.
    pub keep_alive_timeouts: u64,
    /// Clients that another with the same identifier replaced.
    pub takeovers: u64,
    /// Publishes received at QoS 0.
    pub received_volatile: u64,
    /// Publishes received that were committed: QoS 1 and 2, and retained ones at QoS 0.
    pub received_durable: u64,
    /// Publishes sent.
    pub delivered: u64,
    /// QoS 0 deliveries skipped because the subscriber's client did not take them.
    pub skipped: u64,
    /// QoS 0 deliveries dropped because the subscriber's task did not come to them in time.
    pub fan_out_dropped: u64,
    /// Deliveries not made because the client takes no packets of that size.
    pub too_large: u64,
    /// Deliveries not made because the message had expired.
    pub expired: u64,
    /// Messages that retention dropped before a subscriber had read them.
    pub lost: u64,
    /// Telemetry at QoS 0 that was not logged because the log's queue was full.
    pub telemetry_not_logged: u64,
    /// Wills published.
    pub wills: u64,
    /// Stored sessions that ended because their client stayed away too long.
    pub sessions_expired: u64,
}

macro_rules! counters {
    ($($name:ident),* $(,)?) => {
        /// The counts behind [`BrokerStats`].
        #[derive(Debug, Default)]
        pub(crate) struct Counters { $(pub(crate) $name: AtomicU64,)* }

        impl Counters {
            pub(crate) fn read(&self) -> BrokerStats {
                BrokerStats { $($name: self.$name.load(Ordering::Relaxed),)* ..BrokerStats::default() }
            }
        }
    };
}

counters!(
    connections,
    accepts_failed,
    accepted,
    turned_away,
    handshakes_failed,
    logins_wrong,
    denied,
    refused,
    protocol_errors,
    keep_alive_timeouts,
    takeovers,
    received_volatile,
    received_durable,
    delivered,
    skipped,
    too_large,
    expired,
    lost,
    telemetry_not_logged,
    wills,
    sessions_expired,
);

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, by: u64) {
    if by > 0 {
        counter.fetch_add(by, Ordering::Relaxed);
    }
}
