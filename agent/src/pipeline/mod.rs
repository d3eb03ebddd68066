//! From the log to alerts.
//!
//! `runner` (a thread of its own) reads the log from the cursor, `source` turns messages into readings, `engine`
//! folds them: `stream` drops what was sent before, `history` aligns rows, `learning` makes a model for a machine that
//! has none, `fleet` says which model an asset gets, `tap` shows what is folded to models that are watched. Alerts, assets and cursor go to `state.db` in one transaction.

pub mod asset;
pub mod board;
pub mod devices;
pub mod engine;
pub mod fleet;
pub mod health;
pub mod history;
pub mod install;
pub mod learning;
pub mod live;
pub mod queue;
pub mod rows;
pub mod runner;
pub mod stream;
pub mod tap;
#[cfg(test)]
mod tests;
pub mod view;
