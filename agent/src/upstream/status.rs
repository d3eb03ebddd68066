//! How an upstream does.
//!
//! Owns the figures that the courier keeps and others read: connection, backlog, rates, the last error.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::sink::SinkError;
use crate::clock;
use crate::config::UpstreamConfig;
use crate::pipeline::queue::{QueueFigures, QueueMeter};

/// Whether there is a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Link {
    /// It is being made.
    #[default]
    Connecting,
    /// There is one.
    Connected,
    /// There is none; it is tried again after a pause.
    Waiting,
}

/// The figures of one upstream.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UpstreamStatus {
    /// Its name.
    pub name: String,
    /// Its protocol.
    pub kind: &'static str,
    /// Where it is.
    pub address: String,
    /// Whether there is a connection.
    pub link: Link,
    /// Since when, or without one, microseconds since 1970 UTC.
    pub since_us: i64,
    /// Messages of the log that it has not confirmed or passed yet, arrival and service rates, and the time until they are gone.
    #[serde(flatten)]
    pub queue: QueueFigures,
    /// Messages confirmed since the start.
    pub confirmed: u64,
    /// Their payload bytes, as sent.
    pub confirmed_bytes: u64,
    /// Connections that failed or ended since the start.
    pub failures: u64,
    /// Messages left out since the start because the peer refuses them for what they are.
    pub refused: u64,
    /// Messages that retention dropped before they could be sent, since the start.
    pub lost: u64,
    /// What went wrong last; null while all is well.
    pub error: Option<String>,
}

/// Keeps the figures.
#[derive(Debug)]
pub struct Tally {
    begun: Instant,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    status: UpstreamStatus,
    meter: QueueMeter,
    /// An outage is told once.
    told: Option<String>,
    /// The error in view is one that somebody has to mend.
    needs_setup: bool,
}

impl Tally {
    /// Nothing yet.
    pub fn new(config: &UpstreamConfig) -> Tally {
        let status = UpstreamStatus {
            name: config.name.clone(),
            kind: config.kind.word(),
            address: config.address.clone(),
            link: Link::Connecting,
            since_us: clock::utc_us(),
            queue: QueueFigures::default(),
            confirmed: 0,
            confirmed_bytes: 0,
            failures: 0,
            refused: 0,
            lost: 0,
            error: None,
        };
        Tally {
            begun: Instant::now(),
            kept: Mutex::new(Kept { status, meter: QueueMeter::default(), told: None, needs_setup: false }),
        }
    }

    /// The figures now.
    pub fn status(&self) -> UpstreamStatus {
        self.lock().status.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn connecting(&self) {
        let mut kept = self.lock();
        if kept.status.link == Link::Connected {
            kept.status.link = Link::Connecting;
            kept.status.since_us = clock::utc_us();
        }
    }

    pub(super) fn connected(&self) {
        let mut kept = self.lock();
        kept.status.link = Link::Connected;
        kept.status.since_us = clock::utc_us();
        // After a failure it is told when something is confirmed: a server that lets us in may take nothing.
        if kept.told.is_none() {
            tracing::info!(upstream = kept.status.name, "connected to {}", kept.status.address);
        }
    }

    pub(super) fn failed(&self, error: &SinkError, pause: Duration) {
        let mut kept = self.lock();
        if kept.status.link != Link::Waiting {
            // Without a connection since the last one ended, not since the last attempt.
            if kept.status.link == Link::Connected || kept.status.failures == 0 {
                kept.status.since_us = clock::utc_us();
            }
            kept.status.link = Link::Waiting;
        }
        kept.status.failures = kept.status.failures.saturating_add(1);
        let text = error.to_string();
        if kept.told.as_ref() != Some(&text) {
            tracing::warn!(upstream = kept.status.name, ?pause, "cannot deliver: {text}; it is tried again");
            kept.told = Some(text.clone());
        }
        // What somebody has to change stays in view until something is confirmed: what follows from it says less.
        let is_setup = matches!(error, SinkError::Setup { .. });
        if is_setup || !kept.needs_setup {
            kept.needs_setup = is_setup;
            kept.status.error = Some(text);
        }
    }

    pub(super) fn confirmed(&self, count: u64, bytes: u64, took: Duration) {
        if count == 0 {
            return;
        }
        let mut kept = self.lock();
        kept.status.confirmed = kept.status.confirmed.saturating_add(count);
        kept.status.confirmed_bytes = kept.status.confirmed_bytes.saturating_add(bytes);
        kept.status.error = None;
        kept.needs_setup = false;
        if kept.told.take().is_some() {
            tracing::info!(upstream = kept.status.name, "messages are confirmed again");
        }
        kept.meter.note_service(count, took.as_secs_f64());
    }

    pub(super) fn refused(&self) {
        let mut kept = self.lock();
        kept.status.refused = kept.status.refused.saturating_add(1);
    }

    pub(super) fn backlog(&self, head: u64, position: u64, lost: u64) {
        let at_s = self.begun.elapsed().as_secs_f64();
        let mut kept = self.lock();
        kept.status.queue = kept.meter.measure(at_s, head, position);
        kept.status.lost = lost;
    }
}
