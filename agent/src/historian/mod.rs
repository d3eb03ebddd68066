//! What a chart of the past shows.

pub mod recorder;
