//! What the fuzz targets assert, apart from the session, which asserts its own.
//!
//! A failed assertion is what a fuzzer looks for, so these panic on purpose.

pub mod codec;
pub mod memory;
pub mod topic;
