//! Device logic and simulated machines.
//!
//! [`device`] is what runs on a sensor node: it puts samples into frames and keeps them until the broker has them. It
//! needs neither `std` nor an allocator. The rest needs the feature `std` (on by default): `machine` simulates pumps,
//! fans, gearboxes and compressors, `fault` damages them, `plant` lays out a small factory, and `client` publishes a
//! machine's samples over MQTT as a device would.
#![cfg_attr(not(feature = "std"), no_std)]

#[cfg(feature = "std")]
pub mod client;
pub mod device;
#[cfg(feature = "std")]
pub mod fault;
#[cfg(feature = "std")]
pub mod machine;
#[cfg(feature = "std")]
pub mod plant;
