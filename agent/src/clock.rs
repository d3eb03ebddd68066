//! The only place in this crate that reads a clock; every step takes the time as an argument.

use std::time::{SystemTime, UNIX_EPOCH};

/// Microseconds of one second.
pub const SECOND_US: i64 = 1_000_000;

/// UTC in microseconds since 1970, for records. It may step when the clock is set; deadlines use `Instant`.
pub fn utc_us() -> i64 {
    // A clock before 1970 is a gateway without a battery that has not heard from NTP yet.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}
