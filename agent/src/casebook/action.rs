//! What a person may do about an alert or a machine, and how it is told.
//!
//! Owns the form of these orders on `mw/v1/gateway/<gateway>/command`, their bounds, and the events on `mw/v1/event/<asset>` that tell of
//! them. Who may publish to the command topic may give them: unlike orders about models they need no signature, so where it
//! matters who may, access rules must say. The name in `by` is then what the message claims, and kept with `(MQTT)`
//! behind it.
//!
//! ```json
//! {"command": "acknowledge", "alert": 12, "by": "anna", "comment": "on my way"}
//! {"command": "comment", "alert": 12, "by": "anna", "text": "bearing is warm"}
//! {"command": "feedback", "alert": 12, "by": "anna", "verdict": "true", "comment": "bearing replaced"}
//! {"command": "silence", "asset": "pump-1", "by": "anna", "until_us": 1780000000000000, "reason": "overhaul"}
//! {"command": "unsilence", "asset": "pump-1", "by": "anna"}
//! {"command": "commission", "asset": "pump-1", "by": "anna"}
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{CasebookError, Verdict};
use crate::clock::SECOND_US;
use crate::ids::AssetId;

/// Longest text of a comment or a reason, in characters; what is longer is cut.
pub const TEXT_CHARS_MAX: usize = 1_000;
/// Longest name of a person, in characters.
pub const NAME_CHARS_MAX: usize = 64;
/// Longest subject of an audit row, in characters.
pub const SUBJECT_CHARS_MAX: usize = 160;
/// Longest silence, in days: what is silenced for longer is forgotten.
pub const SILENCE_DAYS_MAX: i64 = 366;
/// Largest order by MQTT, in bytes: a text of four-byte characters, twice.
const ORDER_BYTES_MAX: usize = 8_192;

/// Who does something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct By(String);

impl By {
    /// A user who has signed in, or whoever sits at the gateway.
    pub fn user(name: &str) -> By {
        By(shortened(name, NAME_CHARS_MAX))
    }

    /// Whoever a message says it is from.
    fn message(name: Option<&str>) -> By {
        match name.map(|name| shortened(name, NAME_CHARS_MAX)).filter(|name| !name.is_empty()) {
            Some(name) => By(format!("{name} (MQTT)")),
            None => By("MQTT".to_owned()),
        }
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase")]
pub enum Action {
    /// Somebody has seen an alert.
    Acknowledge {
        /// Its number.
        alert: u64,
        /// In words.
        #[serde(default)]
        comment: Option<String>,
    },
    /// Somebody says something about an alert.
    Comment {
        /// Its number.
        alert: u64,
        /// What.
        text: String,
    },
    /// Somebody judges an alert.
    Feedback {
        /// Its number.
        alert: u64,
        /// The judgement.
        verdict: Verdict,
        /// In words.
        #[serde(default)]
        comment: Option<String>,
    },
    /// A machine's alerts are to stay quiet.
    Silence {
        /// The machine.
        asset: AssetId,
        /// Until when, gateway time, UTC microseconds.
        until_us: i64,
        /// Why.
        #[serde(default)]
        reason: Option<String>,
    },
    /// They are no longer.
    Unsilence {
        /// The machine.
        asset: AssetId,
    },
    /// A machine's normal is to be learned anew.
    Commission {
        /// The machine.
        asset: AssetId,
    },
}

/// Who wants what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Who.
    pub by: By,
    /// What.
    pub action: Action,
}

#[derive(Deserialize)]
struct Envelope {
    command: String,
    #[serde(default)]
    by: Option<String>,
}

/// Reads an order from a message; `None` if its command is none of these, and so somebody else's.
///
/// # Errors
/// What is wrong with it.
pub fn parse(document: &[u8]) -> Option<Result<Order, String>> {
    if document.len() > ORDER_BYTES_MAX {
        return None;
    }
    let envelope: Envelope = serde_json::from_slice(document).ok()?;
    let known = ["acknowledge", "comment", "feedback", "silence", "unsilence", "commission"];
    if !known.contains(&envelope.command.as_str()) {
        return None;
    }
    let by = By::message(envelope.by.as_deref());
    let action = serde_json::from_slice::<Action>(document).map_err(|error| error.to_string());
    Some(action.map(|action| Order { by, action: action.cleaned() }))
}

/// Without control characters but line breaks, at most `chars_max` long.
pub fn shortened(text: &str, chars_max: usize) -> String {
    text.trim().chars().filter(|c| !c.is_control() || *c == '\n').take(chars_max).collect()
}

fn clean(text: Option<String>) -> Option<String> {
    text.map(|text| shortened(&text, TEXT_CHARS_MAX)).filter(|text| !text.is_empty())
}

impl Action {
    /// With its texts cut and cleaned.
    pub fn cleaned(self) -> Action {
        match self {
            Action::Acknowledge { alert, comment } => Action::Acknowledge { alert, comment: clean(comment) },
            Action::Comment { alert, text } => Action::Comment { alert, text: shortened(&text, TEXT_CHARS_MAX) },
            Action::Feedback { alert, verdict, comment } => {
                Action::Feedback { alert, verdict, comment: clean(comment) }
            }
            Action::Silence { asset, until_us, reason } => Action::Silence { asset, until_us, reason: clean(reason) },
            other => other,
        }
    }

    /// Its word, in events and in the audit trail.
    pub fn word(&self) -> &'static str {
        match self {
            Action::Acknowledge { .. } => "acknowledge",
            Action::Comment { .. } => "comment",
            Action::Feedback { .. } => "feedback",
            Action::Silence { .. } => "silence",
            Action::Unsilence { .. } => "unsilence",
            Action::Commission { .. } => "commission",
        }
    }

    /// The alert it is about.
    pub fn alert(&self) -> Option<u64> {
        match self {
            Action::Acknowledge { alert, .. } | Action::Comment { alert, .. } | Action::Feedback { alert, .. } => {
                Some(*alert)
            }
            _ => None,
        }
    }

    /// What was said with it.
    pub fn text(&self) -> Option<&str> {
        match self {
            Action::Acknowledge { comment, .. } | Action::Feedback { comment, .. } => comment.as_deref(),
            Action::Comment { text, .. } => Some(text),
            Action::Silence { reason, .. } => reason.as_deref(),
            Action::Unsilence { .. } | Action::Commission { .. } => None,
        }
    }

    /// The judgement.
    pub fn verdict(&self) -> Option<Verdict> {
        match self {
            Action::Feedback { verdict, .. } => Some(*verdict),
            _ => None,
        }
    }

    /// Checks the end of a silence.
    ///
    /// # Errors
    /// It has passed, or is further away than [`SILENCE_DAYS_MAX`].
    pub fn check(&self, now_us: i64) -> Result<(), CasebookError> {
        let Action::Silence { until_us, .. } = self else { return Ok(()) };
        let longest_us = SILENCE_DAYS_MAX * 24 * 3_600 * SECOND_US;
        let fine = *until_us > now_us && until_us.saturating_sub(now_us) <= longest_us;
        if fine { Ok(()) } else { Err(CasebookError::SilenceEnd) }
    }
}

/// What somebody did, on `mw/v1/event/<asset>`; numbered with the events of alerts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ActionEvent<'a> {
    /// Unique for this gateway: `<gateway>/<number>`.
    pub id: &'a str,
    /// The id of the event that raised the alert; null for silences.
    pub alert: Option<&'a str>,
    /// `acknowledge`, `comment`, `feedback`, `silence` or `unsilence`.
    pub event: &'static str,
    /// Which gateway.
    pub gateway: &'a str,
    /// Which machine.
    pub asset: &'a str,
    /// Who.
    pub by: &'a str,
    /// Gateway time, UTC microseconds.
    pub time_us: i64,
    /// What was said.
    pub text: Option<&'a str>,
    /// With feedback.
    pub verdict: Option<Verdict>,
    /// With a silence.
    pub until_us: Option<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<Result<Order, String>> {
        parse(text.as_bytes())
    }

    // An order by MQTT is read with the name it claims marked as such; texts are cut and lose their control characters.
    #[test]
    fn orders_are_read() {
        let order = read(r#"{"command":"acknowledge","alert":12,"by":"anna","comment":" on my\u0007 way "}"#);
        let order = order.unwrap().unwrap();
        assert_eq!(order.by.to_string(), "anna (MQTT)");
        assert_eq!(order.action, Action::Acknowledge { alert: 12, comment: Some("on my way".to_owned()) });
        let long = format!(r#"{{"command":"comment","alert":1,"text":"{}"}}"#, "ü".repeat(TEXT_CHARS_MAX + 1));
        let order = read(&long).unwrap().unwrap();
        assert_eq!(order.action.text().unwrap().chars().count(), TEXT_CHARS_MAX);
        assert_eq!(order.by.to_string(), "MQTT");
    }

    // An order about a model is somebody else's; one that is ours and wrong says what is wrong.
    #[test]
    fn other_orders_are_left_alone() {
        assert_eq!(read(r#"{"command":"rollback","model":"pump","version":1}"#), None);
        assert_eq!(read("[]"), None);
        assert!(read(r#"{"command":"feedback","alert":1,"verdict":"maybe"}"#).unwrap().is_err());
        assert!(read(r#"{"command":"silence","asset":"a/b","until_us":1}"#).unwrap().is_err());
    }

    // A silence ends in the future: not now, but the microsecond after; and not a day later than the longest.
    #[test]
    fn the_end_of_a_silence_is_bounded() {
        let silence = |until_us| Action::Silence { asset: AssetId::parse("pump").unwrap(), until_us, reason: None };
        let longest_us = SILENCE_DAYS_MAX * 24 * 3_600 * SECOND_US;
        for (until_us, fine) in [(0, false), (1, true), (longest_us, true), (longest_us + 1, false)] {
            assert_eq!(silence(until_us).check(0).is_ok(), fine, "{until_us}");
        }
    }
}
