//! What the end-to-end tests share: gateways as processes, a small MQTT client of its own, and waiting for conditions.
//!
//! The client is written for these tests and shares no code with the broker, so that one cannot hide the other's mistakes.

pub mod client;
pub mod gateway;
pub mod http;
pub mod machine;
pub mod publisher;
pub mod session_client;

use std::time::{Duration, Instant};

/// Longest wait for a condition; a busy machine may be slow, a broken product never gets there.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How many kills a crash test does: `MILLWRIGHT_CRASH_ROUNDS` asks for another number than the ordinary run's.
pub fn crash_rounds(ordinary: usize) -> usize {
    std::env::var("MILLWRIGHT_CRASH_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(ordinary)
}

/// How many times slower than a machine this one is: `MILLWRIGHT_SLOW` says so of an emulator.
fn slowness() -> u32 {
    std::env::var("MILLWRIGHT_SLOW").ok().and_then(|times| times.parse().ok()).unwrap_or(1)
}

/// Waits until `condition` gives a value.
///
/// # Errors
/// It does not within [`PATIENCE`], more on a slow machine; the error says what was waited for.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let deadline = Instant::now() + PATIENCE * slowness();
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        anyhow::ensure!(Instant::now() < deadline, "gave up waiting for: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
