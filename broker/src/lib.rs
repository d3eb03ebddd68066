//! The embedded MQTT broker: sessions, the durable log, retained messages and live fan-out.

pub mod log;
pub mod message;
pub mod retained;
pub mod topic;
