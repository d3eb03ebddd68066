//! Memory that is free, given back to the system.
//!
//! The C library keeps what was freed between allocations that are still in use. After a plant is learned that is most of the
//! rows that it was learned from.

use std::time::{Duration, Instant};

/// How long it is waited at least between two times: the whole heap is walked, some milliseconds.
const PAUSE: Duration = Duration::from_secs(10);

/// Gives memory back, now and then, while there is reason to think that much is free.
#[derive(Debug, Default)]
pub struct Spare {
    expected: bool,
    given: Option<Instant>,
}

impl Spare {
    /// Much was freed just now.
    pub fn expect(&mut self) {
        self.expected = true;
    }

    /// Gives back what is free, if much is expected to be and the last time is a while ago.
    pub fn give_back_if_due(&mut self) {
        if self.expected && self.given.is_none_or(|given| given.elapsed() >= PAUSE) {
            give_back();
            *self = Spare { expected: false, given: Some(Instant::now()) };
        }
    }
}

#[cfg(target_env = "gnu")]
#[allow(
    unsafe_code,
    reason = "the C library's own function has no safe form; it takes a number, and frees nothing that is in use"
)]
fn give_back() {
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn give_back() {}
