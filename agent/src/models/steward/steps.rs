//! The steps of a version: shadow, trial, active, and back.
//!
//! Owns what is asked of the pipeline and the workers at each step, and what orders do. What scores is stored before it scores, so
//! that no sample waits for a disk; what is taken back is stored with the pipeline's cursor.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::{COMPARED_TRIALS_MAX, PREDECESSORS_MAX, Steward, UpdateState, Watched};
use crate::clock;
use crate::models::files;
use crate::models::judge::{self, Figures, Verdict};
use crate::models::order::{Order, OrderRefusal, Wish};
use crate::models::watch::Watch;
use crate::models::worker::process::Worker;
use crate::pipeline::engine::Installation;
use crate::pipeline::fleet::{Installed, Origin};
use crate::pipeline::install;
use crate::pipeline::runner::Command;
use crate::state::ModelRow;
use crate::state::versions::{VersionRow, VersionState};

impl Steward {
    /// Goes on with what was under way before this start, and tells where everything stands.
    pub(super) async fn resume(&mut self) {
        self.reload().await;
        for row in self.versions.clone() {
            match row.state {
                VersionState::Shadow => self.resume_shadow(row).await,
                VersionState::Trial => {
                    let (_, installation) = self.installation(&row.sha256).await;
                    self.begin_trial(&row, &installation).await;
                    self.tell_row(&row).await;
                }
                _ => {}
            }
        }
        // What was decided just before the last end may not have been told.
        let newest: HashMap<String, VersionRow> =
            self.versions.iter().map(|row| (row.name.clone(), row.clone())).collect();
        for row in newest.into_values() {
            self.tell_row(&row).await;
        }
        self.show().await;
    }

    pub(super) async fn resume_shadow(&mut self, row: VersionRow) {
        let (dir, sha256) = (self.parts.models_dir.clone(), row.sha256.clone());
        let file = tokio::task::spawn_blocking(move || files::load(&dir, &sha256)).await;
        let state = match file {
            Ok(Ok(file)) => match self.try_out(&row, file).await {
                Ok(worker) => self.begin_shadow(row.clone(), worker).await,
                Err(reason) => self.refuse(row.clone(), reason).await,
            },
            _ => self.refuse(row.clone(), "its file is no longer there: publish it again".to_owned()).await,
        };
        self.tell(&row.name, Some(row.version), Some(&row.sha256), &state).await;
    }

    pub(super) async fn refuse(&mut self, row: VersionRow, reason: String) -> UpdateState {
        self.watched.remove(&row.name);
        self.store(vec![row.turned(VersionState::Rejected, Some(reason.clone()))]).await;
        // It never scored, and is collected again should it be published again.
        let (dir, sha256) = (self.parts.models_dir.clone(), row.sha256);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || files::remove(&dir, &sha256)).await {
            tracing::warn!(%error, "the file of a refused model could not be removed");
        }
        UpdateState::Rejected { reason }
    }

    /// Lets a version score from now on.
    pub(super) async fn promote(&mut self, row: VersionRow, reason: Option<String>) -> UpdateState {
        self.watched.remove(&row.name);
        let model = match self.load(&row).await {
            Ok(model) => model,
            Err(reason) => return self.refuse(row, reason).await,
        };
        let trial = self.parts.bounds.trial_us > 0;
        let turned = row.turned(if trial { VersionState::Trial } else { VersionState::Active }, reason);
        let before: Vec<VersionRow> = self
            .versions
            .iter()
            .filter(|other| other.name == row.name && other.sha256 != row.sha256 && other.state.scores())
            .cloned()
            .collect();
        let took_over = format!("version {} took over", row.version);
        let mut versions: Vec<VersionRow> =
            before.iter().map(|other| other.turned(VersionState::Retired, Some(took_over.clone()))).collect();
        let shadows = self.versions.iter().filter(|other| other.name == row.name && other.sha256 != row.sha256);
        versions.extend(
            shadows
                .filter(|other| other.state == VersionState::Shadow)
                .map(|other| other.turned(VersionState::Rejected, Some(took_over.clone()))),
        );
        versions.push(turned.clone());
        if let Err(error) = self.store_pushed(ModelRow::of(&model), versions).await {
            return UpdateState::Rejected { reason: format!("it cannot be stored: {error}") };
        }
        let (reply, answer) = oneshot::channel();
        let stopping = || UpdateState::Rejected { reason: "the gateway is stopping".to_owned() };
        if self.parts.commands.send(Command::Install { model, reply }).await.is_err() {
            return stopping();
        }
        match answer.await {
            Ok(Ok(installation)) => {
                self.reload().await;
                if trial {
                    self.begin_trial(&turned, &installation).await;
                }
                UpdateState::Active { assets: installation.assets, trial }
            }
            Ok(Err(error)) => {
                // What scored before still does.
                let back = before.iter().map(|other| other.turned(other.state, Some("goes on".to_owned()))).collect();
                self.store(back).await;
                self.forget(row.sha256.clone()).await;
                self.refuse(row, error.to_string()).await
            }
            Err(_) => stopping(),
        }
    }

    /// Watches what the models before a version say while it is on trial.
    pub(super) async fn begin_trial(&mut self, row: &VersionRow, installation: &Installation) {
        let (model, _) = self.installation(&row.sha256).await;
        let before = model.as_ref().map_or((0, 0), |model| (model.tally.scored(), model.tally.failed()));
        let compared = self.watched.values().filter(|watched| watched.model.is_some() && watched.watch.is_some());
        let installation =
            if compared.count() < COMPARED_TRIALS_MAX { installation.clone() } else { Installation::default() };
        let watch = match self.watch_predecessors(&installation).await {
            Ok(watch) => watch,
            Err(reason) => {
                tracing::warn!(model = row.name, reason, "the models before it cannot be asked during the trial");
                None
            }
        };
        let watched = Watched { sha256: row.sha256.clone(), began_us: clock::utc_us(), watch, model, before };
        self.watched.insert(row.name.clone(), watched);
    }

    pub(super) async fn watch_predecessors(&mut self, installation: &Installation) -> Result<Option<Watch>, String> {
        let mut assets: HashMap<&str, Vec<String>> = HashMap::new();
        for (asset, sha256) in &installation.previous {
            if assets.len() < PREDECESSORS_MAX || assets.contains_key(sha256.as_str()) {
                assets.entry(sha256).or_default().push(asset.clone());
            }
        }
        if assets.is_empty() {
            return Ok(None);
        }
        let mut worker = Worker::start(&self.parts.program, self.parts.begin.clone()).await?;
        let mut patterns = Vec::new();
        for (sha256, assets) in assets {
            let (dir, sha256) = (self.parts.models_dir.clone(), sha256.to_owned());
            let file = tokio::task::spawn_blocking(move || files::load(&dir, &sha256)).await;
            let file = file.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
            worker.load(file, assets.clone()).await?;
            patterns.extend(assets);
        }
        let id = self.tap_id();
        Watch::begin(id, worker, patterns, self.parts.commands.clone()).await.map(Some)
    }

    /// Takes a version back: the one before it scores again, or each asset's own model.
    pub(super) async fn roll_back(&mut self, row: &VersionRow, reason: String) -> UpdateState {
        self.watched.remove(&row.name);
        let before = self.before(row);
        let previous = match &before {
            Some(before) => self.load(before).await.ok(),
            None => None,
        };
        let mut versions = Vec::new();
        if let (Some(before), Some(_)) = (&before, &previous) {
            let why = format!("version {} was taken back", row.version);
            versions.push(before.turned(VersionState::Active, Some(why)));
        }
        // Last: the newest step of a model is what is told of it.
        versions.push(row.turned(VersionState::RolledBack, Some(reason.clone())));
        let (reply, answer) = oneshot::channel();
        // A name that was stored is a name.
        let Ok(name) = millwright_models::ModelName::parse(&row.name) else {
            return UpdateState::Rejected { reason: "its name is none".to_owned() };
        };
        let command = Command::RollBack { name, sha256: row.sha256.clone(), previous, versions, reply };
        if self.parts.commands.send(command).await.is_ok()
            && let Ok(assets) = answer.await
        {
            tracing::warn!(model = row.name, version = row.version, assets, reason, "a model was taken back");
        }
        self.reload().await;
        UpdateState::RolledBack { reason }
    }

    /// The version that scored before this one.
    pub(super) fn before(&self, row: &VersionRow) -> Option<VersionRow> {
        let same = self.versions.iter().filter(|other| other.name == row.name && other.sha256 != row.sha256);
        same.filter(|other| other.state == VersionState::Retired).max_by_key(|other| other.since_us).cloned()
    }

    /// Loads a model of the gateway's own folder, off the scoring path.
    pub(super) async fn load(&self, row: &VersionRow) -> Result<Arc<Installed>, String> {
        let (dir, limits, row) = (self.parts.models_dir.clone(), self.parts.limits, row.clone());
        let work = move || {
            let file = files::load(&dir, &row.sha256).map_err(|error| format!("its file cannot be read: {error}"))?;
            install::load(&file, Origin::Pushed, row.assets, &limits).map_err(|error| error.to_string())
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?.map(Arc::new)
    }

    pub(super) async fn judge_all(&mut self) {
        if self.watched.is_empty() {
            return;
        }
        let now_us = clock::utc_us();
        for row in self.versions.clone() {
            let Some(watched) = self.watched.get(&row.name).filter(|watched| watched.sha256 == row.sha256) else {
                continue;
            };
            // A clock that was set back begins the span anew; none ends early.
            let elapsed_us = now_us.saturating_sub(watched.began_us).max(0);
            let seen = watched.watch.as_ref().map(Watch::seen).unwrap_or_default();
            let state = match row.state {
                VersionState::Shadow => {
                    let verdict = match seen.ended {
                        Some(reason) => Verdict::Failed(reason),
                        None => judge::judge_shadow(elapsed_us, &seen.comparison, &self.parts.bounds),
                    };
                    match verdict {
                        Verdict::NotYet => continue,
                        Verdict::Passed => self.promote(row.clone(), Some(passed(&seen.comparison.figures()))).await,
                        Verdict::Failed(reason) => self.refuse(row.clone(), reason).await,
                    }
                }
                VersionState::Trial => {
                    let tally = watched.model.as_ref().map_or((0, 0), |model| {
                        let (scored, failed) = watched.before;
                        (model.tally.scored().saturating_sub(scored), model.tally.failed().saturating_sub(failed))
                    });
                    match judge::judge_trial(elapsed_us, tally, Some(&seen.comparison), &self.parts.bounds) {
                        Verdict::NotYet => continue,
                        Verdict::Passed => self.confirm(&row).await,
                        Verdict::Failed(reason) => self.roll_back(&row, reason).await,
                    }
                }
                _ => continue,
            };
            self.tell(&row.name, Some(row.version), Some(&row.sha256), &state).await;
        }
        self.show().await;
    }

    /// A trial ends well.
    pub(super) async fn confirm(&mut self, row: &VersionRow) -> UpdateState {
        self.watched.remove(&row.name);
        self.store(vec![row.turned(VersionState::Active, Some("its trial ended well".to_owned()))]).await;
        let (_, installation) = self.installation(&row.sha256).await;
        UpdateState::Active { assets: installation.assets, trial: false }
    }

    pub(super) async fn obey(&mut self, mut order: Order) {
        let outcome = self.carry_out(&order).await;
        if let Err(refusal) = &outcome {
            tracing::warn!(model = order.model.as_str(), "an order is refused: {refusal}");
        }
        order.answer(outcome);
    }

    async fn carry_out(&mut self, order: &Order) -> Result<(), OrderRefusal> {
        let by = order.authorise(&self.parts.trusted)?;
        let (model, version) = (order.model.to_string(), order.version);
        // A file that was refused may have had the same number.
        let named = self.versions.iter().filter(|row| row.name == model && row.version == version);
        let row = named.max_by_key(|row| row.state != VersionState::Rejected).cloned();
        let row = row.ok_or_else(|| OrderRefusal::Unknown { model: model.clone(), version })?;
        let reason = order.reason.as_deref().map_or_else(String::new, |reason| format!(": {reason}"));
        let state = match order.wish {
            Wish::Promote if matches!(row.state, VersionState::Shadow | VersionState::RolledBack) => {
                self.promote(row, Some(format!("promoted by hand{by}{reason}"))).await
            }
            Wish::Rollback if row.state.scores() => {
                let (_, installation) = self.installation(&row.sha256).await;
                if self.before(&row).is_none() && installation.previous.is_empty() {
                    return Err(OrderRefusal::NothingBefore { model, version });
                }
                self.roll_back(&row, format!("taken back by hand{by}{reason}")).await
            }
            Wish::Rollback if row.state == VersionState::Shadow => {
                self.refuse(row, format!("refused by hand{by}{reason}")).await
            }
            wish => return Err(OrderRefusal::State { wish, model, version, state: row.state }),
        };
        self.tell_as(&model, version, &state).await;
        self.show().await;
        Ok(())
    }

    pub(super) async fn installation(&self, sha256: &str) -> (Option<Arc<Installed>>, Installation) {
        let (reply, answer) = oneshot::channel();
        let command = Command::Installation { sha256: sha256.to_owned(), reply };
        if self.parts.commands.send(command).await.is_err() {
            return (None, Installation::default());
        }
        answer.await.unwrap_or_default()
    }
}

fn passed(figures: &Figures) -> String {
    format!(
        "passed its shadow: {} rows, {:.1} % of {} compared rows in alarm (the active model: {:.1} %), agreement {:.1} %, {} ms a window at most",
        figures.scored,
        100.0 * figures.alarm_rate,
        figures.compared,
        100.0 * figures.active_alarm_rate,
        100.0 * figures.agreement,
        figures.latency_p99_ms
    )
}
