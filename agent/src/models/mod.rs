//! The life of a pushed model, from retained messages to the model that scores.
//!
//! ```text
//! manifest, chunks ─▶ [collect] ─▶ [admission] ─▶ worker: loads, tries ─▶ shadow ─▶ trial ─▶ active
//!                      staged        rejected         rejected            rejected   rolled back   retired
//! ```
//!
//! [`collect`] puts the file together from what is retained, [`admission`] decides whether a manifest may become a model, a [`worker`] (a
//! process of its own, so that a bad model hurts nobody) loads and tries it and runs it beside the active one, [`judge`] compares the two,
//! and [`steward`] moves it along and tells what became of it. What scores changes only in the pipeline, between two batches, in the
//! transaction that stores it. Operators promote and roll back by [`order`].

pub mod admission;
pub mod collect;
pub mod files;
pub mod judge;
pub mod order;
pub mod steward;
pub mod watch;
pub mod worker;
