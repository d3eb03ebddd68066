//! What can be wrong with bytes that claim to be MQTT.

use super::reason::Reason;

/// Bytes that are not MQTT: what is wrong, the clause it breaks and the reason code that MQTT 5 has for it.
///
/// The peer is always the one who erred. Clauses are those of MQTT 5 where both versions share the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} [{clause}]")]
pub struct DecodeError {
    /// What was found.
    pub what: &'static str,
    /// The clause of the standard, for example `MQTT-3.1.2-3`.
    pub clause: &'static str,
    /// How MQTT 5 reports it.
    pub reason: Reason,
}

impl DecodeError {
    /// The bytes do not follow the format. [MQTT-4.13.1]
    pub(crate) const fn malformed(clause: &'static str, what: &'static str) -> DecodeError {
        DecodeError { what, clause, reason: Reason::MalformedPacket }
    }

    /// The format is right, what it says is not allowed. [MQTT-4.13.1]
    pub(crate) const fn protocol(clause: &'static str, what: &'static str) -> DecodeError {
        DecodeError { what, clause, reason: Reason::ProtocolError }
    }

    /// Wrong, with a reason code of its own.
    pub(crate) const fn with(reason: Reason, clause: &'static str, what: &'static str) -> DecodeError {
        DecodeError { what, clause, reason }
    }
}
