//! What a rehearsal came to, in words: for `model test` and for the dashboard.

use millwright_models::contract::Contract;
use serde::Serialize;

use super::Rehearsal;
use crate::clock::{self, SECOND_US};

/// The outcome with its words.
#[derive(Debug, Serialize)]
pub struct Told {
    /// One sentence.
    pub summary: String,
    /// What qualifies it.
    pub notes: Vec<String>,
    /// The figures.
    #[serde(flatten)]
    pub rehearsal: Rehearsal,
}

impl Told {
    /// Puts an outcome into words; `contract` is the model's.
    pub fn of(rehearsal: Rehearsal, contract: &Contract) -> Told {
        Told { summary: summary(&rehearsal), notes: notes(&rehearsal, contract), rehearsal }
    }
}

/// One sentence: how many alerts, on how many assets, in which time.
fn summary(told: &Rehearsal) -> String {
    let alerting = told.assets.iter().filter(|asset| asset.alerts_raised > 0).count();
    let mut sentence = format!(
        "{} v{} would have raised {} on {} of {} in the last {}",
        told.model,
        told.version,
        counted(told.alerts, "alert"),
        alerting,
        counted(told.assets.len() as u64, "asset"),
        counted(u64::from(told.days), "day"),
    );
    if let Some((first_us, last_us)) = told.span_us {
        let (from, to) = (clock::rfc3339(first_us), clock::rfc3339(last_us));
        sentence.push_str(&format!(" (telemetry that arrived from {from} to {to})"));
    }
    if told.stored_alerts > 0 {
        let models: Vec<&str> = told.stored_models.iter().map(String::as_str).collect();
        sentence.push_str(&format!("; the gateway raised {} there, with {}", told.stored_alerts, models.join(", ")));
    }
    sentence.push('.');
    sentence
}

/// What qualifies the answer.
fn notes(told: &Rehearsal, contract: &Contract) -> Vec<String> {
    let mut notes = Vec::new();
    let mut note = |text: String| notes.push(text);
    match told.log_begins_us {
        None => note("the log holds no messages".to_owned()),
        Some(begins_us) => {
            let back_us = clock::utc_us().saturating_sub(begins_us);
            if back_us < i64::from(told.days) * 24 * 3_600 * SECOND_US {
                let (begins, back) = (clock::rfc3339(begins_us), duration(back_us as f64 / SECOND_US as f64));
                note(format!("the log goes back only to {begins}, {back}: older messages were dropped or never came"));
            }
            if told.rows == 0 {
                let patterns = told.patterns.join(", ");
                note(format!(
                    "no telemetry of an asset that matches {patterns} is in that time; name others with --assets"
                ));
            }
        }
    }
    if let Some(reason) = Rehearsal::window_too_long(contract) {
        note(reason);
    }
    for asset in &told.assets {
        if let Some(channel) = &asset.missing_channel {
            note(format!("{} never sent `{channel}`, which the model needs: nothing of it is scored", asset.asset));
        }
    }
    let failed: u64 = told.assets.iter().map(|asset| asset.score_errors).sum();
    if failed > 0 {
        note(format!("{} could not be scored; RUST_LOG=warn tells why", counted(failed, "row")));
    }
    if told.decode_errors > 0 {
        let last = told.last_decode_error.as_deref().unwrap_or_default();
        note(format!("{} could not be decoded, the last: {last}", counted(told.decode_errors, "message")));
    }
    if told.lost_messages > 0 {
        note(format!("{} were dropped while they were read, or are damaged", counted(told.lost_messages, "message")));
    }
    if told.refused_readings > 0 {
        note(format!("{} of assets beyond the limit are left out", counted(told.refused_readings, "reading")));
    }
    notes
}

/// `3 rows`, `1 row`.
pub(crate) fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// A time as people say it.
pub(crate) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7_200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3_600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Durations read as people say them, and one is not many.
    #[test]
    fn numbers_read_as_people_say_them() {
        for (seconds, text) in
            [(0.0, "0 s"), (119.0, "119 s"), (120.0, "2 min"), (7_200.0, "2.0 h"), (200_000.0, "2.3 days")]
        {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!((counted(1, "alert"), counted(0, "alert")), ("1 alert".to_owned(), "0 alerts".to_owned()));
    }
}
