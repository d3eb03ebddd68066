//! The embedded MQTT broker: sessions, the durable log, retained messages and live fan-out.

pub mod codec;
pub mod message;
pub mod topic;
