//! Each promise about security, and somebody who tries to break it over a real socket. Whatever they try, the gateway goes on
//! serving others.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;

mod access;
mod certificates;
mod limits;
mod login;
mod malformed;
mod pki;
mod websocket;
