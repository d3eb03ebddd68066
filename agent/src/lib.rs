//! The gateway: configuration, pipeline, alarms, model updates, HTTP and the command line.
//!
//! The path of a reading through this crate: [`pipeline::runner`] reads it from the log, [`source`] decodes it,
//! [`pipeline::engine`] folds it into its asset and scores it, [`alarm`] decides, [`state`] stores the decision with the
//! cursor, [`outbox`] publishes it.

pub mod alarm;
pub mod backup;
pub mod casebook;
pub mod cli;
pub mod clock;
pub mod conditions;
pub mod config;
pub mod dashboard;
pub mod demo;
pub mod descriptors;
pub mod doctor;
pub mod export;
pub mod gateway;
pub mod historian;
pub mod ids;
pub mod memory;
pub mod metrics;
pub mod models;
pub mod observe;
pub mod outbox;
pub mod pipeline;
pub mod rehearsal;
pub mod resume;
pub mod source;
pub mod state;
pub mod status;
pub mod supervisor;
pub mod table;
pub mod temporary;
pub mod upstream;
