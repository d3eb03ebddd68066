//! The band in which a healthy machine's values are expected, and which sensor left it first.
//!
//! Owns the width of the band: the model's learned mean ± [`BAND_SPREADS`] standard deviations of the values it was learned
//! from; models that do not know their spread have none. Looks at the rows in memory only, at most
//! [`crate::pipeline::history::HISTORY_ROWS`] of them or a model's window: an excursion that is older begins with the oldest.

use millwright_models::contract::Channel;
use serde::{Deserialize, Serialize};

use crate::pipeline::history::History;

/// Half the band, in standard deviations: of 370 values of a healthy machine one is outside.
const BAND_SPREADS: f32 = 3.0;
/// Consecutive rows inside the band that end an excursion, looking back; a shorter return is noise.
const RETURN_ROWS: usize = 5;

/// Where a channel's values are expected.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Expected {
    /// The lower end of the band, where the model knows the spread.
    pub low: Option<f32>,
    /// The value of a healthy machine.
    pub mean: f32,
    /// The upper end.
    pub high: Option<f32>,
}

impl Expected {
    /// What a model expects of a channel, if it says.
    pub fn of(channel: &Channel) -> Option<Expected> {
        let mean = channel.normal?;
        let half = channel.spread.map(|spread| BAND_SPREADS * spread);
        Some(Expected { low: half.map(|half| mean - half), mean, high: half.map(|half| mean + half) })
    }

    /// Whether a value is outside; false where the ends are not known.
    fn excludes(&self, value: f32) -> bool {
        self.low.is_some_and(|low| value < low) || self.high.is_some_and(|high| value > high)
    }
}

/// A channel left its expected band and had not come back when the alert was raised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deviation {
    /// The channel.
    pub channel: String,
    /// Device time of the first row outside, UTC microseconds.
    pub at_us: i64,
}

/// The channels that are outside their band at `until_us`, the one that left it first at the front.
pub fn first_to_deviate<'c>(
    channels: impl Iterator<Item = &'c Channel>,
    history: &History,
    until_us: i64,
) -> Vec<Deviation> {
    let deviation = |channel: &Channel| {
        let at_us = outside_since_us(&Expected::of(channel)?, history, &channel.name, until_us)?;
        Some(Deviation { channel: channel.name.clone(), at_us })
    };
    let mut found: Vec<Deviation> = channels.filter_map(deviation).collect();
    // A stable sort: of those that left with the same row, the one that adds most to the score is first.
    found.sort_by_key(|deviation| deviation.at_us);
    found
}

/// Looks back from the newest row to the first of the excursion that it belongs to.
fn outside_since_us(expected: &Expected, history: &History, channel: &str, until_us: i64) -> Option<i64> {
    let column = history.index_of(channel)?;
    let rows: Vec<_> = history.newest(usize::MAX).filter(|row| row.time_us <= until_us).collect();
    let (mut since_us, mut inside) = (None, 0);
    for row in rows.iter().rev() {
        match row.values.get(column) {
            Some(value) if expected.excludes(*value) => (since_us, inside) = (Some(row.time_us), 0),
            _ => inside += 1,
        }
        if inside >= RETURN_ROWS {
            break;
        }
    }
    since_us
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ChannelName;
    use crate::pipeline::history::RowReport;

    fn history(rows: &[[f32; 2]]) -> History {
        let mut history = History::default();
        let names = ["flow", "pressure"].map(|name| ChannelName::parse(name).unwrap());
        for (row, values) in rows.iter().enumerate() {
            let mut report = RowReport::default();
            let positions = history.positions(&names, &mut report);
            history.push(row as i64, &positions, values, &mut report);
        }
        history
    }

    fn channel(name: &str, spread: Option<f32>) -> Channel {
        Channel { name: name.to_owned(), unit: None, normal: Some(0.0), spread }
    }

    // The channel that left its band first is first; a return shorter than RETURN_ROWS does not end an excursion.
    #[test]
    fn the_first_to_leave_is_first() {
        let mut rows = vec![[0.0, 0.0]; 20];
        rows.extend([[0.0, 9.0]; 3]);
        rows.extend([[0.0, 0.0]; 4]);
        rows.extend([[9.0, 9.0]; 3]);
        let history = history(&rows);
        let channels = [channel("flow", Some(1.0)), channel("pressure", Some(1.0))];
        let found = first_to_deviate(channels.iter(), &history, i64::MAX);
        let expected = [("pressure", 20), ("flow", 27)];
        assert_eq!(found.iter().map(|d| (d.channel.as_str(), d.at_us)).collect::<Vec<_>>(), expected);
    }

    // Exactly RETURN_ROWS inside end an excursion, and a channel whose spread nobody knows is not told.
    #[test]
    fn an_excursion_that_is_over_is_not_told() {
        let mut rows = vec![[9.0, 9.0]; 3];
        rows.extend([[0.0, 9.0]; RETURN_ROWS]);
        let channels = [channel("flow", Some(1.0)), channel("pressure", None)];
        assert_eq!(first_to_deviate(channels.iter(), &history(&rows), i64::MAX), []);
    }
}
