//! Checkpoints: what the fold derived and how far it read, stored together.
//!
//! Owns when one is due and what goes into it. A state file that fails is tried again until the gateway stops.

use std::time::Instant;

use super::{CHECKPOINT, RETRY, Runner};
use crate::alarm::message::{AlertEvent, AlertState, EventKind};
use crate::clock;
use crate::ids::AssetId;
use crate::models::files;
use crate::pipeline::board::Board;
use crate::pipeline::engine::Output;
use crate::pipeline::live::AlertNews;
use crate::state::versions::VersionRow;
use crate::state::{Checkpoint, Deed, ModelRow, StateError};

/// Buckets for charts of the past that make a checkpoint due: about 110 bytes each with 8 channels.
const RECORDED_MAX: usize = 16_384;

impl Runner {
    pub(super) fn checkpoint_if_due(&mut self, last: bool) {
        let recorded = self.parts.engine.recorded_count() >= RECORDED_MAX;
        let much = recorded || self.folded_bytes >= self.checkpoint_bytes;
        let due = self.dirty && (last || much || self.checkpointed.elapsed() >= CHECKPOINT);
        if due || self.parts.engine.has_outputs() {
            self.checkpoint_until_stored(Changes::default());
        }
    }

    /// Writes a checkpoint; a state file that fails is tried again until the gateway stops: going on without it would
    /// lose alerts. Returns whether it is stored.
    pub(super) fn checkpoint_until_stored(&mut self, changes: Changes) -> bool {
        let _disk = self.parts.pulse.on_disk();
        let mut checkpoint = self.gather_checkpoint(changes);
        let committed = loop {
            self.parts.pulse.beat();
            match self.parts.state.commit(&checkpoint) {
                Ok(committed) => break committed,
                Err(error @ StateError::Encode { .. }) => {
                    tracing::error!(%error, "the checkpoint is stored without it");
                    checkpoint.assets.clear();
                    checkpoint.recorded.clear();
                }
                Err(error) => tracing::error!(%error, "the checkpoint cannot be stored yet"),
            }
            if *self.stop.borrow() {
                return false;
            }
            self.pause(RETRY);
        };
        if let Some(number) = committed.journal {
            self.parts.historian.take(number, std::mem::take(&mut checkpoint.recorded));
        }
        self.parts.cursor.advance(self.parts.position);
        self.checkpointed = Instant::now();
        self.folded_bytes = 0;
        self.dirty = false;
        if !checkpoint.outbox.is_empty() {
            self.parts.outbox.notify_one();
        }
        self.tell(&checkpoint);
        if !checkpoint.models.is_empty() {
            // The rows that they were learned from are free.
            self.spare.expect();
        }
        drop(checkpoint);
        self.spare.give_back_if_due();
        true
    }

    /// Tells those who look what happened to alerts, now that it is stored.
    fn tell(&self, checkpoint: &Checkpoint) {
        for event in &checkpoint.events {
            self.live.feed().tell(AlertNews { number: number_of(&event.alert), asset: event.asset.clone() });
        }
        for deed in &checkpoint.deeds {
            if let Some((number, _)) = &deed.note {
                self.live.feed().tell(AlertNews { number: *number, asset: deed.asset.clone() });
            }
        }
    }

    fn gather_checkpoint(&mut self, changes: Changes) -> Checkpoint {
        let Changes { withdrawn, versions, deeds, messages } = changes;
        let (mut models, mut outbox, mut events) = (Vec::new(), Vec::new(), Vec::new());
        let now_us = clock::utc_us();
        for output in self.parts.engine.take_outputs() {
            match output {
                Output::Event(event) => {
                    outbox.extend(messages_of(&event, &self.board, now_us));
                    self.board.note_event(&event);
                    events.push(*event);
                }
                Output::Commissioned { model, onnx } => {
                    let stored = files::store(&self.parts.models_dir, &model.sha256, &onnx);
                    if let Err(error) = stored {
                        tracing::error!(%error, asset = ?model, "a learned model could not be stored: it is learned again after a restart");
                    }
                    models.push(ModelRow::of(&model));
                }
            }
        }
        outbox.extend(messages);
        Checkpoint {
            log_id: self.parts.log.id().0,
            cursor: self.parts.position.0,
            next_event: self.parts.engine.next_event(),
            sources: self.parts.sources.save(),
            assets: self.parts.engine.take_changed(),
            models,
            withdrawn,
            versions,
            outbox,
            events,
            deeds,
            recorded: self.parts.historian.admit(self.parts.engine.take_recorded()),
        }
    }
}
/// A message to publish: topic, payload, retain.
pub(super) type Outgoing = (String, Vec<u8>, bool);

/// What a command changes besides what was folded.
#[derive(Default)]
pub(super) struct Changes {
    pub(super) withdrawn: Vec<String>,
    pub(super) versions: Vec<VersionRow>,
    pub(super) deeds: Vec<Deed>,
    pub(super) messages: Vec<Outgoing>,
}

/// The number in an event's id.
fn number_of(id: &str) -> u64 {
    id.rsplit('/').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// The current alert of an asset, as it is retained.
pub(super) fn alert_state<'a>(event: &'a AlertEvent, board: &Board, now_us: i64) -> AlertState<'a> {
    let asset = AssetId::parse(&event.asset).ok();
    let alert = asset.as_ref().and_then(|asset| board.alert(asset)).filter(|alert| alert.id == event.alert);
    let silence = asset.as_ref().and_then(|asset| board.silence(asset, now_us));
    AlertState {
        active: event.event != EventKind::Clear,
        acknowledged: alert.and_then(|alert| alert.acknowledged.clone()),
        silenced_until_us: silence.map(|silence| silence.until_us),
        event,
    }
}

/// The messages of an event: the event itself, and the asset's current alert.
fn messages_of(event: &AlertEvent, board: &Board, now_us: i64) -> Vec<Outgoing> {
    let encoded = serde_json::to_vec(event).and_then(|bytes| {
        let current = serde_json::to_vec(&alert_state(event, board, now_us))?;
        Ok((bytes, current))
    });
    match encoded {
        Ok((bytes, current)) => vec![
            (format!("mw/v1/event/{}", event.asset), bytes, false),
            (format!("mw/v1/alert/{}", event.asset), current, true),
        ],
        Err(error) => {
            tracing::error!(%error, event = event.id, "an event cannot be encoded");
            Vec::new()
        }
    }
}
