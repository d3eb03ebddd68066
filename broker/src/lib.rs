//! The embedded MQTT broker: sessions, the durable log, retained messages and live fan-out.
//!
//! A client's publish at QoS 1 or 2 is acknowledged when the commit that holds it is on disk ([`log`]). Subscribers at
//! QoS 1 and 2 are readers of that log; QoS 0 deliveries are fanned out live, in memory. [`codec`] reads and writes the protocol; the session between is a state machine without
//! socket, clock or database.

mod admission;
pub mod auth;
mod clock;
pub mod codec;
mod connection;
#[cfg(fuzzing)]
pub mod fuzzing;
mod keeper;
mod limits;
mod live;
pub mod log;
mod memory;
pub mod message;
pub mod pulse;
mod rate;
mod registry;
pub mod retained;
mod server;
mod session;
mod shares;
mod stats;
mod sys;
pub mod topic;
mod transport;

pub use auth::{
    AccessPattern, AccessPatternError, AccessRule, AccessRules, AllowAll, Attempts, Authorize, Identity, Network,
    Passwords, UserError, Users, Verdict, hash_password,
};
pub use limits::Limits;
pub use rate::Allowance;
pub use server::{Addresses, BindError, Broker, BrokerConfig, Publisher, TlsListen, WebSocketListen};
pub use stats::BrokerStats;
pub use transport::tls::{ClientCertificates, Tls, TlsError, TlsFiles, TlsState};
pub use transport::websocket::WebSocketRules;
