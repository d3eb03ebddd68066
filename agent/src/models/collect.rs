//! Puts a model file together from the chunks that are retained now.
//!
//! Owns nothing but the look: what has arrived is in the log and is never asked for again, so that a restart, a kill or a
//! lost connection changes nothing.

use millwright_broker::log::Log;
use millwright_broker::topic::TopicName;
use millwright_models::manifest::{Assembler, Manifest};

/// What is there of a file.
pub(super) enum Collected {
    /// Some chunks are missing.
    Missing {
        /// Chunks that have arrived.
        chunks: usize,
        /// Chunks in all.
        of: usize,
    },
    /// A chunk is wrong, or the whole is.
    Bad(String),
    /// The file.
    File(Vec<u8>),
}

/// Looks for the chunks of `manifest`.
pub(super) fn collect(log: &Log, manifest: &Manifest) -> Collected {
    let mut assembler = Assembler::new(manifest.clone());
    for n in 0..manifest.chunk_count() {
        let Ok(topic) = TopicName::parse(&manifest.chunk_topic(n)) else { continue };
        let Some(chunk) = log.retained().get(&topic) else { continue };
        if let Err(error) = assembler.accept(n, &chunk.message.payload) {
            return Collected::Bad(error.to_string());
        }
    }
    let of = manifest.chunk_count();
    let missing = assembler.missing().count();
    if missing > 0 {
        return Collected::Missing { chunks: of - missing, of };
    }
    match assembler.finish() {
        Ok(file) => Collected::File(file),
        Err(error) => Collected::Bad(error.to_string()),
    }
}
