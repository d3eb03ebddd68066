//! The casebook: what became of every alert, what people said about it, and what they did.
//!
//! Owns the shape of a case (an alert's episode with its evidence and notes), of silences and of the audit trail, and the way
//! there for HTTP: [`Casebook`] reads beside the pipeline and lets the pipeline write, which alone numbers events. Never decides whether there
//! is an alert. Calls block: use a thread that may. Bounds: [`ALERTS_KEPT_MAX`] alerts, [`NOTES_MAX`] notes of each,
//! [`action::TEXT_CHARS_MAX`] characters of a text, [`AUDIT_KEPT_MAX`] audit rows, one silence for each asset.

pub mod action;
pub mod similar;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::alarm::Severity;
use crate::alarm::deviation::Deviation;
use crate::alarm::evidence::Evidence;
use crate::alarm::message::{Acknowledged, ModelRef};
use crate::clock;
use crate::pipeline::asset::CommissionRefused;
use crate::pipeline::runner::Command;
use crate::state::{State, StateError};
use action::{Action, By, Order};

/// Alerts kept; beyond it the oldest that is closed is dropped. With 5 KB of evidence each, 50 MB.
pub const ALERTS_KEPT_MAX: usize = 10_000;
/// Notes of people kept for an alert; further ones are refused.
pub const NOTES_MAX: usize = 150;
/// Notes of the gateway kept for an alert; the oldest update is dropped beyond it.
pub const UPDATES_MAX: usize = 40;
/// Audit rows kept: years of daily work.
pub const AUDIT_KEPT_MAX: usize = 20_000;
/// Rows of a page.
pub const PAGE_MAX: usize = 200;
/// Similar alerts that are shown.
pub const SIMILAR_MAX: usize = 5;

/// What a person thinks of an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The machine was not well.
    True,
    /// It was.
    False,
    /// Somebody worked on it.
    KnownWork,
}

impl Verdict {
    const ALL: [(Verdict, &'static str); 3] =
        [(Verdict::True, "true"), (Verdict::False, "false"), (Verdict::KnownWork, "known-work")];

    /// How it is written.
    pub fn as_str(self) -> &'static str {
        Verdict::ALL.iter().find(|(verdict, _)| *verdict == self).map_or("", |(_, text)| text)
    }

    /// The reverse of [`Verdict::as_str`].
    pub fn parse(text: &str) -> Option<Verdict> {
        Verdict::ALL.iter().find(|(_, known)| *known == text).map(|(verdict, _)| *verdict)
    }
}

/// An alert in a list. Times of the machine (onset, raised, cleared) are device times, all in UTC microseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AlertSummary {
    /// What people call it by: the number of the event that raised it.
    pub number: u64,
    /// The id of that event, `<gateway>/<number>`.
    pub id: String,
    /// Which machine.
    pub asset: String,
    /// How serious.
    pub severity: Severity,
    /// The state of its episode; `ok` once it is cleared.
    pub state: millwright_models::State,
    /// When the alert was raised.
    pub raised_us: i64,
    /// When it was cleared.
    pub cleared_us: Option<i64>,
    /// When the episode began.
    pub onset_us: i64,
    /// The highest score that was told.
    pub peak_score: f32,
    /// One sentence.
    pub message: String,
    /// Who has seen it.
    pub acknowledged: Option<Acknowledged>,
    /// The last verdict.
    pub verdict: Option<Verdict>,
    /// How many notes of people there are; with one alert alone, all notes.
    pub notes: Notes,
    /// Whether the machine was silenced when it was raised.
    pub silenced: bool,
    /// The channel that left its band first; else the one that adds most to the score.
    pub first_channel: Option<String>,
}

/// One alert with all that is known of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Case {
    /// As in the list.
    #[serde(flatten)]
    pub summary: AlertSummary,
    /// The model that scored it.
    pub model: ModelRef,
    /// What was seen, by the last event before it was cleared.
    pub evidence: Evidence,
    /// Which channel left its expected band first.
    pub first_to_deviate: Vec<Deviation>,
    /// Past alerts that looked alike, the most alike first.
    pub similar: Vec<AlertSummary>,
}

/// The notes of an alert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Notes {
    /// How many people wrote.
    Count(u64),
    /// All, of the gateway too, oldest first.
    List(Vec<Note>),
}

/// What a note tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NoteKind {
    /// The gateway raised the alert.
    Raise,
    /// The gateway told more.
    Update,
    /// The gateway cleared it.
    Clear,
    /// Somebody has seen it.
    Acknowledge,
    /// Somebody said something.
    Comment,
    /// Somebody judged it.
    Feedback,
}

impl NoteKind {
    const ALL: [(NoteKind, &'static str); 6] = [
        (NoteKind::Raise, "raise"),
        (NoteKind::Update, "update"),
        (NoteKind::Clear, "clear"),
        (NoteKind::Acknowledge, "acknowledge"),
        (NoteKind::Comment, "comment"),
        (NoteKind::Feedback, "feedback"),
    ];

    /// How it is written.
    pub fn as_str(self) -> &'static str {
        NoteKind::ALL.iter().find(|(kind, _)| *kind == self).map_or("", |(_, text)| text)
    }

    /// The reverse of [`NoteKind::as_str`].
    pub fn parse(text: &str) -> Option<NoteKind> {
        NoteKind::ALL.iter().find(|(_, known)| *known == text).map(|(kind, _)| *kind)
    }
}

/// One line of an alert's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Note {
    /// Gateway time, UTC microseconds.
    pub at_us: i64,
    /// Who; the gateway's name for its own.
    pub by: String,
    /// What.
    pub kind: NoteKind,
    /// In words.
    pub text: Option<String>,
    /// With feedback.
    pub verdict: Option<Verdict>,
}

/// Alerts of a machine are to stay quiet for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Silence {
    /// Which machine.
    pub asset: String,
    /// Until when, gateway time, UTC microseconds.
    pub until_us: i64,
    /// Why.
    pub reason: Option<String>,
    /// Who wanted it.
    pub by: String,
    /// Since when.
    pub since_us: i64,
}

/// What somebody did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditEntry {
    /// Its place; pages go on below it.
    pub number: i64,
    /// Gateway time, UTC microseconds.
    pub at_us: i64,
    /// Who.
    pub by: String,
    /// What: `acknowledge`, `silence`, `promote`, …
    pub action: String,
    /// On what: an asset, an alert's id, a model and version.
    pub subject: String,
    /// In words.
    pub text: Option<String>,
}

/// Some rows, and where to go on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Page<T> {
    /// The rows.
    pub items: Vec<T>,
    /// The cursor of the next page, if there is one.
    pub next: Option<i64>,
}

/// Which alerts to list, the newest first.
#[derive(Debug, Clone, Default)]
pub struct AlertQuery {
    /// Only of this machine.
    pub asset: Option<String>,
    /// Only those that are up (`true`) or over (`false`).
    pub open: Option<bool>,
    /// Only those that were raised at this device time or later, UTC microseconds.
    pub raised_from_us: Option<i64>,
    /// Only those that were raised before.
    pub raised_before_us: Option<i64>,
    /// The cursor: only numbers below it.
    pub before: Option<i64>,
    /// Rows, at most [`PAGE_MAX`].
    pub limit: usize,
}

/// Why something cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum CasebookError {
    /// There is no such alert.
    #[error(
        "alert {0} is not in the casebook: check the number; of alerts that are over the newest {ALERTS_KEPT_MAX} are kept"
    )]
    UnknownAlert(u64),
    /// There is no such machine.
    #[error("asset `{0}` is unknown: nothing has come from it yet; check the name")]
    UnknownAsset(String),
    /// It already has so many.
    #[error("alert {0} has {NOTES_MAX} notes, and that is the limit: write it down elsewhere")]
    TooManyNotes(u64),
    /// The end of a silence has passed, or is too far away.
    #[error("a silence must end in the future and within {} days: choose another end", action::SILENCE_DAYS_MAX)]
    SilenceEnd,
    /// See [`CommissionRefused`].
    #[error(transparent)]
    Commission(#[from] CommissionRefused),
    /// The gateway is stopping.
    #[error("the gateway is stopping: try again when it is back")]
    Stopping,
    /// The state file fails.
    #[error(transparent)]
    State(#[from] StateError),
}

/// The casebook as HTTP sees it.
#[derive(Clone)]
pub struct Casebook {
    state: Arc<State>,
    commands: mpsc::Sender<Command>,
}

impl Casebook {
    /// Reads from `state`, and has the pipeline write.
    pub fn new(state: Arc<State>, commands: mpsc::Sender<Command>) -> Casebook {
        Casebook { state, commands }
    }

    /// A page of alerts, the newest first.
    ///
    /// # Errors
    /// The state file fails.
    pub fn alerts(&self, query: &AlertQuery) -> Result<Page<AlertSummary>, CasebookError> {
        Ok(self.state.alerts(query)?)
    }

    /// One alert in short; `None` if it is unknown.
    ///
    /// # Errors
    /// The state file fails.
    pub fn alert(&self, number: u64) -> Result<Option<AlertSummary>, CasebookError> {
        Ok(self.state.alert(number)?)
    }

    /// One alert with evidence, notes and similar ones.
    ///
    /// # Errors
    /// It is unknown, or the state file fails.
    pub fn case(&self, number: u64) -> Result<Case, CasebookError> {
        self.state.case(number)?.ok_or(CasebookError::UnknownAlert(number))
    }

    /// Alerts that were raised since a time, by machine.
    ///
    /// # Errors
    /// The state file fails.
    pub fn raised_since(&self, since_us: i64) -> Result<HashMap<String, u32>, CasebookError> {
        Ok(self.state.raised_since(since_us)?)
    }

    /// The silences that have not ended.
    ///
    /// # Errors
    /// The state file fails.
    pub fn silences(&self) -> Result<Vec<Silence>, CasebookError> {
        Ok(self.state.silences(clock::utc_us())?)
    }

    /// A page of what people did, the newest first.
    ///
    /// # Errors
    /// The state file fails.
    pub fn audit(&self, before: Option<i64>, limit: usize) -> Result<Page<AuditEntry>, CasebookError> {
        Ok(self.state.actions(before, limit)?)
    }

    /// Stores that somebody did something that is carried out elsewhere.
    ///
    /// # Errors
    /// The state file fails.
    pub fn note_action(&self, by: &By, action: &str, subject: &str, text: Option<&str>) -> Result<(), CasebookError> {
        let text = text.map(|text| action::shortened(text, action::TEXT_CHARS_MAX));
        let subject = action::shortened(subject, action::SUBJECT_CHARS_MAX);
        let at_us = clock::utc_us();
        let entry = AuditEntry { number: 0, at_us, by: by.to_string(), action: action.to_owned(), subject, text };
        Ok(self.state.note_action(&entry)?)
    }

    /// Acknowledges, comments, judges, silences, or begins a commissioning. When it returns it is on disk, and told on `mw/v1/event/…`.
    ///
    /// # Errors
    /// Why it cannot be done.
    pub fn act(&self, by: By, action: Action) -> Result<(), CasebookError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Act { order: Order { by, action }, reply };
        self.commands.blocking_send(command).map_err(|_| CasebookError::Stopping)?;
        answer.blocking_recv().map_err(|_| CasebookError::Stopping)?
    }
}
