//! The only place in this crate that reads a clock; every step takes the time as an argument.

use std::time::{SystemTime, UNIX_EPOCH};

/// Microseconds of one second.
pub const SECOND_US: i64 = 1_000_000;

/// UTC in microseconds since 1970, for records. It may step when the clock is set; deadlines use `Instant`.
pub fn utc_us() -> i64 {
    // A clock before 1970 is a gateway without a battery that has not heard from NTP yet.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// A record's time as text, to the second: `2025-01-31T12:00:00Z`. A time no calendar holds is shown as its number.
pub fn rfc3339(time_us: i64) -> String {
    let whole_seconds = time_us.div_euclid(SECOND_US);
    jiff::Timestamp::from_second(whole_seconds).map_or_else(|_| format!("{time_us} µs"), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    // Times read as people write them; one beyond the calendar does not fail.
    #[test]
    fn times_read_as_text() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_583_748_873_500_000), "2020-03-09T10:14:33Z");
        assert!(rfc3339(i64::MAX).ends_with("µs"));
    }
}
