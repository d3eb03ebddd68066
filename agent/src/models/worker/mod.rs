//! The worker: a process of its own in which a model is loaded, tried and watched.
//!
//! A model is somebody else's program. In a process of its own it can take memory without end, never come to an end or
//! crash, and the gateway goes on: the worker's memory is limited by the system, its answers have deadlines, and it ends with the
//! gateway. [`protocol`] is what the two say to each other over its standard input and output, [`process`] the gateway's side,
//! [`serve`] the worker's (`millwright worker`).

pub mod process;
pub mod protocol;
pub mod serve;
