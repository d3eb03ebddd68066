//! What people do about alerts and machines: checked, numbered as events are, and stored.
//!
//! Owns what an act changes and how it is told. An act is stored with a checkpoint: those that came by MQTT with the cursor behind
//! them, so that each is carried out once. Refuses what names no alert or no machine, and what is too much.

use super::Runner;
use super::checkpoint::{Changes, Outgoing, alert_state};
use crate::alarm::message::{Acknowledged, AlertEvent};
use crate::casebook::action::{Action, ActionEvent, Order};
use crate::casebook::{AuditEntry, CasebookError, NOTES_MAX, Note, NoteKind, Notes, Silence};
use crate::clock;
use crate::ids::AssetId;
use crate::state::{AlertRow, Deed, SilenceChange};

/// Acts by MQTT that may wait for the end of a batch: a batch has no more messages.
const ACTS_MAX: usize = 512;

/// Who does something, and when.
struct Done<'a> {
    by: &'a str,
    now_us: i64,
    action: &'a Action,
}

impl Runner {
    /// Keeps an act that came by MQTT until the batch is folded.
    pub(super) fn take_act(&mut self, act: Order) {
        if self.acts.len() < ACTS_MAX {
            self.acts.push(act);
        } else {
            tracing::error!(by = %act.by, "too many orders at once: give it again");
        }
    }

    /// Carries out what came by MQTT, in one checkpoint with the cursor behind it.
    pub(super) fn carry_out_acts(&mut self) {
        if self.acts.is_empty() {
            return;
        }
        let mut changes = Changes::default();
        for order in std::mem::take(&mut self.acts) {
            if let Err(error) = self.decide(&order, &mut changes) {
                tracing::warn!(by = %order.by, "an order on {} is refused: {error}", self.parts.order_topic.as_str());
            }
        }
        self.checkpoint_until_stored(changes);
    }

    /// Carries out one act.
    pub(super) fn act(&mut self, order: Order) -> Result<(), CasebookError> {
        let mut changes = Changes::default();
        self.decide(&order, &mut changes)?;
        // What changes nothing needs no disk.
        let stored = changes.deeds.is_empty() || self.checkpoint_until_stored(changes);
        if stored { Ok(()) } else { Err(CasebookError::Stopping) }
    }

    fn decide(&mut self, order: &Order, changes: &mut Changes) -> Result<(), CasebookError> {
        let _disk = self.parts.pulse.on_disk();
        let (by, now_us) = (order.by.to_string(), clock::utc_us());
        let done = Done { by: &by, now_us, action: &order.action };
        match &order.action {
            Action::Acknowledge { alert, .. } | Action::Comment { alert, .. } | Action::Feedback { alert, .. } => {
                let row = self.parts.state.alert_row(*alert)?.ok_or(CasebookError::UnknownAlert(*alert))?;
                self.note(&done, row, changes)
            }
            Action::Silence { asset, until_us, reason } => {
                order.action.check(now_us)?;
                self.known(asset)?;
                let (asset_name, reason) = (asset.to_string(), reason.clone());
                let silence =
                    Silence { asset: asset_name, until_us: *until_us, reason, by: by.clone(), since_us: now_us };
                self.silence(&done, asset, Some(silence), changes)
            }
            Action::Unsilence { asset } => {
                self.known(asset)?;
                match self.board.silence(asset, now_us) {
                    Some(_) => self.silence(&done, asset, None, changes),
                    None => Ok(()),
                }
            }
            Action::Commission { asset } => {
                self.parts.engine.commission(asset)?;
                let audit = done.audit(asset.as_str());
                changes.deeds.push(Deed { asset: asset.to_string(), audit, note: None, silence: None });
                Ok(())
            }
        }
    }

    fn known(&self, asset: &AssetId) -> Result<(), CasebookError> {
        let known = self.parts.engine.asset(asset).is_some();
        if known { Ok(()) } else { Err(CasebookError::UnknownAsset(asset.to_string())) }
    }

    /// A note about an alert.
    fn note(&mut self, done: &Done<'_>, row: AlertRow, changes: &mut Changes) -> Result<(), CasebookError> {
        let alert = row.summary;
        let kind = match done.action {
            Action::Acknowledge { .. } => NoteKind::Acknowledge,
            Action::Feedback { .. } => NoteKind::Feedback,
            _ => NoteKind::Comment,
        };
        let text = done.action.text().filter(|text| !text.is_empty());
        let again = kind == NoteKind::Acknowledge && alert.acknowledged.is_some() && text.is_none();
        if again || (kind == NoteKind::Comment && text.is_none()) {
            return Ok(());
        }
        // Acts of one batch are counted with those that are stored.
        let waiting = changes.deeds.iter().filter(|deed| deed.note.as_ref().is_some_and(|(n, _)| *n == alert.number));
        if matches!(alert.notes, Notes::Count(notes) if notes + waiting.count() as u64 >= NOTES_MAX as u64) {
            return Err(CasebookError::TooManyNotes(alert.number));
        }
        let (text, verdict) = (text.map(str::to_owned), done.action.verdict());
        let note = Note { at_us: done.now_us, by: done.by.to_owned(), kind, text, verdict };
        changes.messages.extend(self.event_of(done, &alert.asset, Some(&alert.id)));
        let asset = AssetId::parse(&alert.asset).ok();
        let up = asset.as_ref().and_then(|asset| self.board.alert(asset)).is_some_and(|up| up.number == alert.number);
        if let (true, NoteKind::Acknowledge, Some(asset)) = (up, kind, &asset) {
            self.board.acknowledge(asset, Acknowledged { by: done.by.to_owned(), at_us: done.now_us });
            changes.messages.extend(row.event.and_then(|event| self.retained(&event, done.now_us)));
        }
        let audit = done.audit(&alert.id);
        changes.deeds.push(Deed { asset: alert.asset, audit, note: Some((alert.number, note)), silence: None });
        Ok(())
    }

    /// A silence begins or ends.
    fn silence(
        &mut self,
        done: &Done<'_>,
        asset: &AssetId,
        silence: Option<Silence>,
        changes: &mut Changes,
    ) -> Result<(), CasebookError> {
        let up = match self.board.alert(asset) {
            Some(alert) => self.parts.state.alert_row(alert.number)?,
            None => None,
        };
        self.parts.engine.silence(asset, silence.as_ref().map(|silence| silence.until_us));
        self.board.set_silence(asset, silence.clone());
        changes.messages.extend(self.event_of(done, asset.as_str(), None));
        changes.messages.extend(up.and_then(|row| self.retained(&row.event?, done.now_us)));
        let change = silence.map_or_else(|| SilenceChange::End(asset.to_string()), SilenceChange::Begin);
        let audit = done.audit(asset.as_str());
        changes.deeds.push(Deed { asset: asset.to_string(), audit, note: None, silence: Some(change) });
        Ok(())
    }

    /// The event that tells of it.
    fn event_of(&mut self, done: &Done<'_>, asset: &str, alert: Option<&str>) -> Option<Outgoing> {
        let id = self.parts.engine.take_event_id();
        let gateway = self.parts.engine.gateway().to_string();
        let until_us = match done.action {
            Action::Silence { until_us, .. } => Some(*until_us),
            _ => None,
        };
        let event = ActionEvent {
            id: &id,
            alert,
            event: done.action.word(),
            gateway: &gateway,
            asset,
            by: done.by,
            time_us: done.now_us,
            text: done.action.text(),
            verdict: done.action.verdict(),
            until_us,
        };
        Some((format!("mw/v1/event/{asset}"), serde_json::to_vec(&event).ok()?, false))
    }

    /// The asset's current alert, as it is to be retained now.
    fn retained(&self, event: &AlertEvent, now_us: i64) -> Option<Outgoing> {
        let payload = serde_json::to_vec(&alert_state(event, &self.board, now_us)).ok()?;
        Some((format!("mw/v1/alert/{}", event.asset), payload, true))
    }
}

impl Done<'_> {
    fn audit(&self, subject: &str) -> AuditEntry {
        AuditEntry {
            number: 0,
            at_us: self.now_us,
            by: self.by.to_owned(),
            action: self.action.word().to_owned(),
            subject: subject.to_owned(),
            text: self.action.text().map(str::to_owned),
        }
    }
}
