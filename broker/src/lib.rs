//! The embedded MQTT broker: sessions, the durable log, retained messages and live fan-out.

pub mod message;
pub mod topic;
