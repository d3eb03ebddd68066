//! Alerts, and what people said of them, from the casebook.
//!
//! Owns the columns of both tables. A span is that in which an alert was raised, for feedback too, so that the two tables of a span belong
//! together. Bound: one read of the casebook, which keeps [`crate::casebook::ALERTS_KEPT_MAX`] alerts.

use serde::Serialize;
use serde_json::Value;

use super::table::{Cell, Column, Kind, TableWriter};
use super::{ExportError, Place, Request, Tell, Told, What, listed};
use crate::casebook::Notes;
use crate::ids::AssetId;
use crate::state::stored::{StoredAlert, StoredFeedback, StoredState};

/// Where alerts are.
pub(super) struct Cases {
    /// `None` where no gateway has run yet.
    state: Option<StoredState>,
}

pub(super) fn plan(place: Place<'_>, request: &Request) -> Result<(Vec<Column>, Cases), ExportError> {
    if !place.data_dir.join("state.db").is_file() {
        let text = format!(
            "there is no state.db in {}: has the gateway run with this data directory?",
            place.data_dir.display()
        );
        return Err(ExportError::Nothing(text));
    }
    let columns = if request.what == What::Alerts { alert_columns() } else { feedback_columns() };
    Ok((columns, Cases { state: StoredState::open(place.data_dir)? }))
}

fn alert_columns() -> Vec<Column> {
    let required = Column::required;
    let optional = |name: &str, kind| Column::optional(name, kind);
    vec![
        required("asset", Kind::Text),
        required("alert", Kind::Number),
        required("id", Kind::Text),
        required("onset", Kind::Time),
        required("raised", Kind::Time),
        optional("cleared", Kind::Time),
        required("severity", Kind::Text),
        required("state", Kind::Text),
        required("peak_score", Kind::Float),
        optional("first_channel", Kind::Text),
        optional("model", Kind::Text),
        optional("model_version", Kind::Number),
        optional("verdict", Kind::Text),
        optional("acknowledged", Kind::Time),
        optional("acknowledged_by", Kind::Text),
        required("notes", Kind::Number),
        required("silenced", Kind::Flag),
        required("message", Kind::Text),
    ]
}

fn feedback_columns() -> Vec<Column> {
    let required = Column::required;
    let optional = |name: &str, kind| Column::optional(name, kind);
    vec![
        required("asset", Kind::Text),
        required("alert", Kind::Number),
        required("onset", Kind::Time),
        required("raised", Kind::Time),
        optional("cleared", Kind::Time),
        optional("verdict", Kind::Text),
        required("given", Kind::Time),
        required("by", Kind::Text),
        optional("comment", Kind::Text),
    ]
}

/// How the API writes a word of an enum.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => word,
        _ => String::new(),
    }
}

impl Cases {
    pub(super) fn write(
        self,
        request: &Request,
        writer: &mut dyn TableWriter,
        told: &mut Told,
        tell: Tell<'_>,
    ) -> Result<(), ExportError> {
        let Some(state) = self.state else { return Ok(()) };
        let span = request.span_us();
        let mut assets = std::collections::BTreeSet::new();
        let mut after = 0;
        loop {
            if !tell(0.5) {
                return Err(ExportError::Ended);
            }
            let read = match request.what {
                What::Feedback => {
                    let rows = state.feedback(after, span)?;
                    let last = rows.last().map(|row| row.number);
                    for row in rows.iter().filter(|row| wanted(request, &row.asset)) {
                        write_feedback(writer, row)?;
                        told.note_row(row.raised_us);
                        assets.insert(row.asset.clone());
                    }
                    last
                }
                _ => {
                    let rows = state.alerts(after, span)?;
                    let last = rows.last().map(|row| row.summary.number.cast_signed());
                    for row in rows.iter().filter(|row| wanted(request, &row.summary.asset)) {
                        write_alert(writer, row)?;
                        told.note_row(row.summary.raised_us);
                        assets.insert(row.summary.asset.clone());
                    }
                    last
                }
            };
            match read {
                Some(last) => after = last,
                None => break,
            }
        }
        told.assets = assets.len() as u64;
        if told.rows == 0 {
            let of = listed_assets(request);
            let what = if request.what == What::Alerts { "alerts" } else { "verdicts" };
            told.notes.push(format!("there are no {what}{of}{}: the table has no rows", request.span_in_words()));
        }
        Ok(())
    }
}

fn listed_assets(request: &Request) -> String {
    match request.assets.is_empty() {
        true => String::new(),
        false => format!(" of {}", listed(request.assets.iter().map(AssetId::as_str))),
    }
}

fn wanted(request: &Request, asset: &str) -> bool {
    request.assets.is_empty() || request.assets.iter().any(|wanted| wanted.as_str() == asset)
}

fn write_alert(writer: &mut dyn TableWriter, row: &StoredAlert) -> std::io::Result<()> {
    let StoredAlert { summary, model } = row;
    let (severity, state) = (word(&summary.severity), word(&summary.state));
    let acknowledged = summary.acknowledged.as_ref();
    let notes = match &summary.notes {
        Notes::Count(count) => i64::try_from(*count).unwrap_or(i64::MAX),
        Notes::List(list) => list.len() as i64,
    };
    writer.row(&[
        Cell::Text(&summary.asset),
        Cell::Number(summary.number.cast_signed()),
        Cell::Text(&summary.id),
        Cell::Time(summary.onset_us),
        Cell::Time(summary.raised_us),
        Cell::time(summary.cleared_us),
        Cell::Text(&severity),
        Cell::Text(&state),
        Cell::Float(summary.peak_score),
        Cell::text(summary.first_channel.as_deref()),
        Cell::text(model.as_ref().map(|model| model.name.as_str())),
        model.as_ref().map_or(Cell::Empty, |model| Cell::Number(model.version.cast_signed())),
        Cell::text(summary.verdict.map(|verdict| verdict.as_str())),
        Cell::time(acknowledged.map(|acknowledged| acknowledged.at_us)),
        Cell::text(acknowledged.map(|acknowledged| acknowledged.by.as_str())),
        Cell::Number(notes),
        Cell::Flag(summary.silenced),
        Cell::Text(&summary.message),
    ])
}

fn write_feedback(writer: &mut dyn TableWriter, row: &StoredFeedback) -> std::io::Result<()> {
    writer.row(&[
        Cell::Text(&row.asset),
        Cell::Number(row.alert),
        Cell::Time(row.onset_us),
        Cell::Time(row.raised_us),
        Cell::time(row.cleared_us),
        Cell::text(row.verdict.map(|verdict| verdict.as_str())),
        Cell::Time(row.at_us),
        Cell::Text(&row.by),
        Cell::text(row.text.as_deref()),
    ])
}
