//! What the steward stores and tells: the state topic, and what HTTP shows.

use std::sync::Arc;

use bytes::Bytes;
use millwright_broker::message::{Message, QoS};
use millwright_broker::topic::TopicName;

use super::{AUDIT_SHOWN, ModelsView, StateMessage, Steward, TELL, UpdateState, VersionView};
use crate::state::ModelRow;
use crate::state::versions::{VersionRow, VersionState};

impl Steward {
    pub(super) async fn store_pushed(&self, model: ModelRow, rows: Vec<VersionRow>) -> Result<(), String> {
        let state = Arc::clone(&self.parts.state);
        let stored = tokio::task::spawn_blocking(move || state.store_pushed(&model, &rows)).await;
        stored.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }

    pub(super) async fn forget(&self, sha256: String) {
        let state = Arc::clone(&self.parts.state);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || state.forget_models(&[sha256])).await {
            tracing::error!(%error, "a model that was refused is still stored: it is forgotten at a later start");
        }
    }

    pub(super) async fn store(&mut self, rows: Vec<VersionRow>) {
        let state = Arc::clone(&self.parts.state);
        let stored = tokio::task::spawn_blocking(move || state.store_versions(&rows)).await;
        if let Ok(Err(error)) = stored {
            tracing::error!(%error, "what became of a model could not be stored");
        }
        self.reload().await;
    }

    pub(super) async fn reload(&mut self) {
        let state = Arc::clone(&self.parts.state);
        match tokio::task::spawn_blocking(move || state.versions()).await {
            Ok(Ok(versions)) => self.versions = versions,
            Ok(Err(error)) => tracing::error!(%error, "the models' versions cannot be read"),
            Err(error) => tracing::error!(%error, "the models' versions cannot be read"),
        }
    }

    /// Renews what HTTP shows.
    pub(super) async fn show(&mut self) {
        let state = Arc::clone(&self.parts.state);
        let audit = tokio::task::spawn_blocking(move || state.audit(AUDIT_SHOWN)).await;
        let seen = |row: &VersionRow| {
            let watched = self.watched.get(&row.name).filter(|watched| watched.sha256 == row.sha256)?;
            let watch = watched.watch.as_ref()?;
            Some((watch.seen().comparison.figures(), watch.missed_readings()))
        };
        let models = self.versions.iter().map(|row| {
            let (figures, missed_readings) = seen(row).unzip();
            VersionView { version: row.clone(), figures, missed_readings }
        });
        let audit = audit.ok().and_then(Result::ok).unwrap_or_default();
        self.parts.view.send_replace(Arc::new(ModelsView { models: models.collect(), audit }));
    }

    pub(super) async fn state_of(&self, row: &VersionRow) -> UpdateState {
        let reason = || row.reason.clone().unwrap_or_default();
        match row.state {
            VersionState::Shadow => {
                let began_us = self.watched.get(&row.name).map_or(row.since_us, |watched| watched.began_us);
                UpdateState::Shadow { until_us: began_us.saturating_add(self.parts.bounds.shadow_us) }
            }
            VersionState::Trial | VersionState::Active => {
                let (_, installation) = self.installation(&row.sha256).await;
                UpdateState::Active { assets: installation.assets, trial: row.state == VersionState::Trial }
            }
            VersionState::Rejected => UpdateState::Rejected { reason: reason() },
            VersionState::RolledBack => UpdateState::RolledBack { reason: reason() },
            VersionState::Retired => UpdateState::Rejected {
                reason: format!(
                    "{}: give it a higher version",
                    row.reason.as_deref().unwrap_or("a later version scores")
                ),
            },
        }
    }

    pub(super) async fn tell_row(&mut self, row: &VersionRow) {
        let state = self.state_of(row).await;
        self.tell_as(&row.name, row.version, &state).await;
    }

    pub(super) async fn tell_as(&mut self, name: &str, version: u64, state: &UpdateState) {
        let row = self.versions.iter().find(|row| row.name == name && row.version == version);
        let sha256 = row.map(|row| row.sha256.clone());
        self.tell(name, Some(version), sha256.as_deref(), state).await;
    }

    /// Tells where an update stands, unless that is retained already.
    pub(super) async fn tell(&mut self, model: &str, version: Option<u64>, sha256: Option<&str>, state: &UpdateState) {
        let message = StateMessage { model, version, sha256, gateway: self.parts.gateway.as_str(), state };
        let topic = TopicName::parse(&format!("mw/v1/model/{model}/state/{}", self.parts.gateway));
        let (Ok(topic), Ok(payload)) = (topic, serde_json::to_vec(&message)) else { return };
        // A push waits for an answer to itself: only what a start repeats is left out.
        let retained = self.parts.log.retained().get(&topic);
        let repeated = !self.settled && retained.is_some_and(|retained| retained.message.payload == payload);
        if repeated {
            return;
        }
        tracing::info!(model, version, ?state, "model update");
        let message = Message {
            topic,
            payload: Bytes::from(payload),
            properties: Bytes::new(),
            qos: QoS::AtLeastOnce,
            retain: true,
            origin: 0,
        };
        match tokio::time::timeout(TELL, self.parts.publisher.publish(message)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::error!(model, %error, "the outcome of a model update could not be published"),
            Err(_) => tracing::error!(
                model,
                "the outcome of a model update waits for the log: it is told after the next start"
            ),
        }
    }
}
