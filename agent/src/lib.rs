//! The parts of the Millwright gateway.

pub mod config;
pub mod ids;
pub mod source;
pub mod table;
