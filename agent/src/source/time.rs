//! Times as devices write them.
//!
//! Owns the reading of epoch numbers and of dates, into UTC microseconds since 1970. A date without an offset is UTC,
//! since a gateway cannot know the zone of a device. Never reads a clock.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::config::TimeUnit;

/// 2000-01-01 UTC: device clocks before it were never set.
const PLAUSIBLE_FROM_US: i64 = 946_684_800_000_000;
/// 2100-01-01 UTC.
const PLAUSIBLE_TO_US: i64 = 4_102_444_800_000_000;

/// Whether a device's clock can have been right.
pub fn is_plausible(time_us: i64) -> bool {
    (PLAUSIBLE_FROM_US..PLAUSIBLE_TO_US).contains(&time_us)
}

/// A whole number in `unit`, as microseconds; `None` if it is out of range.
pub fn from_integer(value: i128, unit: TimeUnit) -> Option<i64> {
    let time_us = match unit.for_magnitude(value.unsigned_abs() as f64) {
        TimeUnit::Seconds => value.checked_mul(1_000_000)?,
        TimeUnit::Millis => value.checked_mul(1_000)?,
        TimeUnit::Micros => value,
        _ => value.div_euclid(1_000),
    };
    i64::try_from(time_us).ok()
}

/// A number in `unit`, as microseconds; `None` if it is not finite or out of range. Seconds keep six decimals.
pub fn from_float(value: f64, unit: TimeUnit) -> Option<i64> {
    let time_us = match unit.for_magnitude(value.abs()) {
        TimeUnit::Seconds => value * 1e6,
        TimeUnit::Millis => value * 1e3,
        TimeUnit::Micros => value,
        _ => value / 1e3,
    };
    // 2^63 as f64: a cast would saturate, and a saturated time is a wrong one.
    (time_us.abs() < 9.2e18).then_some(time_us.round() as i64)
}

/// A date (RFC 3339, or `2020-03-09 10:14:33.250` in UTC) or a number as text, as microseconds.
pub fn from_text(text: &str, unit: TimeUnit) -> Option<i64> {
    // The longest date that any device writes; what is longer is not worth parsing.
    const BYTES_MAX: usize = 64;
    let text = text.trim();
    if text.is_empty() || text.len() > BYTES_MAX {
        return None;
    }
    if let Ok(number) = text.parse::<i64>() {
        return from_integer(i128::from(number), unit);
    }
    if let Ok(number) = text.parse::<f64>() {
        return from_float(number, unit);
    }
    if let Ok(timestamp) = text.parse::<Timestamp>() {
        return Some(timestamp.as_microsecond());
    }
    let civil: DateTime = text.parse().ok()?;
    Some(civil.to_zoned(TimeZone::UTC).ok()?.timestamp().as_microsecond())
}

impl TimeUnit {
    /// The unit itself, or for [`TimeUnit::Auto`] the one that puts a time of this magnitude between the years 1973 and
    /// 5138: seconds have at most 11 digits, milliseconds 14, microseconds 17.
    fn for_magnitude(self, magnitude: f64) -> TimeUnit {
        match self {
            TimeUnit::Auto if magnitude < 1e11 => TimeUnit::Seconds,
            TimeUnit::Auto if magnitude < 1e14 => TimeUnit::Millis,
            TimeUnit::Auto if magnitude < 1e17 => TimeUnit::Micros,
            TimeUnit::Auto => TimeUnit::Nanos,
            unit => unit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // 2020-03-09 10:14:33.25 UTC
    const TIME_US: i64 = 1_583_748_873_250_000;

    // The same moment is recognised in every unit and every way of writing it.
    #[test]
    fn one_moment_in_every_form() {
        for text in [
            "1583748873.25",
            "1583748873250",
            "1583748873250000",
            "1583748873250000000",
            "2020-03-09 10:14:33.25",
            "2020-03-09T10:14:33.250Z",
            "2020-03-09T11:14:33.250+01:00",
            "2020-03-09 10:14:33.250Z",
            " 2020-03-09T10:14:33.25 ",
        ] {
            assert_eq!(from_text(text, TimeUnit::Auto), Some(TIME_US), "{text}");
        }
        assert_eq!(from_integer(1_583_748_873_250, TimeUnit::Auto), Some(TIME_US));
        assert_eq!(from_float(1_583_748_873.25, TimeUnit::Auto), Some(TIME_US));
    }

    // A fixed unit is taken at its word, however small the number is.
    #[test]
    fn a_fixed_unit_is_taken_at_its_word() {
        for (unit, expected) in [
            (TimeUnit::Seconds, 5_000_000_000),
            (TimeUnit::Millis, 5_000_000),
            (TimeUnit::Micros, 5_000),
            (TimeUnit::Nanos, 5),
        ] {
            assert_eq!(from_integer(5_000, unit), Some(expected), "{unit:?}");
            assert_eq!(from_float(5_000.0, unit), Some(expected), "{unit:?}");
        }
        assert_eq!(from_integer(-1, TimeUnit::Nanos), Some(-1), "before 1970 rounds down as after it");
    }

    // What is no time gives none, and the extremes do not overflow.
    #[test]
    fn nonsense_is_no_time() {
        for text in ["", "yesterday", "NaN", "inf", "2020-13-01 00:00:00", "12:00", &"9".repeat(65)] {
            assert_eq!(from_text(text, TimeUnit::Auto), None, "{text}");
        }
        assert_eq!(from_integer(i128::MAX, TimeUnit::Seconds), None);
        assert_eq!(from_float(1e300, TimeUnit::Seconds), None);
        assert!(is_plausible(TIME_US));
        assert!(!is_plausible(PLAUSIBLE_FROM_US - 1) && is_plausible(PLAUSIBLE_FROM_US));
        assert!(!is_plausible(PLAUSIBLE_TO_US) && is_plausible(PLAUSIBLE_TO_US - 1));
    }

    proptest! {
        // No text and no number panics.
        #[test]
        fn anything_may_be_tried(text in ".{0,70}", float in any::<f64>(), integer in any::<i128>()) {
            let _ = from_text(&text, TimeUnit::Auto);
            let _ = from_float(float, TimeUnit::Seconds);
            let _ = from_integer(integer, TimeUnit::Auto);
        }
    }
}
