//! The message as sessions, the log and live fan-out hand it to each other.

use bytes::Bytes;

use crate::topic::TopicName;

/// Delivery guarantee of MQTT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum QoS {
    /// At most once; never acknowledged.
    AtMostOnce = 0,
    /// At least once; acknowledged when it is on disk.
    AtLeastOnce = 1,
    /// Exactly once.
    ExactlyOnce = 2,
}

impl QoS {
    /// The QoS of two bits on the wire or in a file; 3 is none.
    pub fn from_bits(bits: u8) -> Option<QoS> {
        match bits {
            0 => Some(QoS::AtMostOnce),
            1 => Some(QoS::AtLeastOnce),
            2 => Some(QoS::ExactlyOnce),
            _ => None,
        }
    }
}

/// An application message. The payload is never interpreted by the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where it was published.
    pub topic: TopicName,
    /// The bytes as they came.
    pub payload: Bytes,
    /// MQTT 5 properties that travel with the message, in wire encoding without the length prefix and without
    /// topic alias and subscription identifiers; empty for MQTT 3.1.1.
    pub properties: Bytes,
    /// As published.
    pub qos: QoS,
    /// Whether the publisher asked to retain it.
    pub retain: bool,
    /// Number of the session that published it, 0 for the gateway itself; "no local" compares it.
    pub origin: u32,
}
