//! The kinds of upstreams: one file for each protocol, behind its feature.

#[cfg(feature = "upstream-amqp")]
pub(super) mod amqp;
#[cfg(feature = "upstream-kafka")]
pub(super) mod kafka;
#[cfg(feature = "upstream-kafka-idempotent")]
pub(super) mod kafka_idempotent;
#[cfg(feature = "upstream-mqtt")]
pub(super) mod mqtt;
#[cfg(feature = "upstream-kafka")]
mod murmur2;
#[cfg(feature = "upstream-nats")]
pub(super) mod nats;
#[cfg(any(feature = "upstream-mqtt", feature = "upstream-kafka", feature = "upstream-zeromq"))]
mod progress;
#[cfg(feature = "upstream-amqp")]
mod socket;
#[cfg(feature = "upstream-zeromq")]
pub(super) mod zeromq;
