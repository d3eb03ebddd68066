//! Work that takes longer than a request: tests of models over the log.
//!
//! Owns the table of jobs: one runs at a time, the newest [`JOBS_MAX`] are kept with their results, in memory. A job ends early when the
//! gateway stops; nothing is stored.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Json;
use axum::extract::State;
use millwright_broker::log::StoredLog;
use millwright_models::runtime::LoadLimits;
use serde::{Serialize, Serializer};

use super::super::Site;
use super::super::error::ApiError;
use super::ask::{Named, conflict, missing};
use crate::clock;
use crate::config::Config;
use crate::models::files;
use crate::pipeline::fleet::Origin;
use crate::pipeline::install;
use crate::rehearsal::words::Told;
use crate::rehearsal::{self, Span};
use crate::state::versions::VersionRow;

/// Jobs that are remembered; a result is at most some 400 KB (its list of alerts is bounded).
const JOBS_MAX: usize = 16;

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum JobState {
    Running,
    Done,
    Failed,
}

/// A job as it is told.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Job {
    job: u64,
    state: JobState,
    /// What is tested, and by whom.
    model: String,
    version: u64,
    days: u32,
    by: String,
    began_us: i64,
    ended_us: Option<i64>,
    /// Once it is done.
    #[serde(serialize_with = "shared")]
    result: Option<Arc<Told>>,
    /// Why it failed.
    error: Option<String>,
}

fn shared<S: Serializer>(told: &Option<Arc<Told>>, serializer: S) -> Result<S::Ok, S::Error> {
    told.as_deref().serialize(serializer)
}

/// The number of a new job.
#[derive(Debug, Serialize)]
pub(super) struct Started {
    pub(super) job: u64,
}

/// What tests are done with.
pub struct Workshop {
    /// As the pipeline is configured.
    pub config: Arc<Config>,
    /// Folder of model files.
    pub models_dir: PathBuf,
    /// What a model may be.
    pub limits: LoadLimits,
}

/// The table of jobs.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    table: Arc<Mutex<VecDeque<Job>>>,
    cancelled: Arc<AtomicBool>,
}

impl Jobs {
    /// Ends what runs, and begins nothing more.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Begins a test of a version that is kept as a file.
    ///
    /// # Errors
    /// Another one runs.
    pub(super) fn start(
        &self,
        workshop: &Arc<Workshop>,
        version: VersionRow,
        days: u32,
        by: String,
    ) -> Result<Started, ApiError> {
        let mut table = lock(&self.table);
        if let Some(running) = table.iter().find(|job| job.state == JobState::Running) {
            let text = format!("job {} is running, and one runs at a time", running.job);
            return Err(conflict("job-running", text, "wait until it is done"));
        }
        let number = table.back().map_or(1, |last| last.job.saturating_add(1));
        if table.len() >= JOBS_MAX {
            table.pop_front();
        }
        table.push_back(Job {
            job: number,
            state: JobState::Running,
            model: version.name.clone(),
            version: version.version,
            days,
            by,
            began_us: clock::utc_us(),
            ended_us: None,
            result: None,
            error: None,
        });
        drop(table);
        let (workshop, table, cancelled) = (Arc::clone(workshop), Arc::clone(&self.table), Arc::clone(&self.cancelled));
        // The runtime waits for this thread at the end, and `cancel` has it come to one.
        tokio::task::spawn_blocking(move || {
            let outcome = workshop.test(&version, days, &|| cancelled.load(Ordering::Relaxed));
            if let Some(job) = lock(&table).iter_mut().find(|job| job.job == number) {
                job.ended_us = Some(clock::utc_us());
                (job.state, job.result, job.error) = match outcome {
                    Ok(told) => (JobState::Done, Some(Arc::new(told)), None),
                    Err(error) => (JobState::Failed, None, Some(error)),
                };
            }
        });
        Ok(Started { job: number })
    }

    fn find(&self, number: u64) -> Option<Job> {
        lock(&self.table).iter().find(|job| job.job == number).cloned()
    }
}

fn lock(table: &Mutex<VecDeque<Job>>) -> MutexGuard<'_, VecDeque<Job>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Workshop {
    fn test(&self, version: &VersionRow, days: u32, stop: &dyn Fn() -> bool) -> Result<Told, String> {
        let file = files::load(&self.models_dir, &version.sha256)
            .map_err(|_| "its file is no longer kept: upload it again".to_owned())?;
        let model = install::load(&file, Origin::Pushed, version.assets.clone(), &self.limits);
        let model = Arc::new(model.map_err(|error| error.to_string())?);
        let mut log = StoredLog::open(&self.config.gateway.data_dir).map_err(|error| error.to_string())?;
        let span = Span { days, until_us: clock::utc_us() };
        let told = rehearsal::run(&mut log, &self.config, &model, span, stop).map_err(|error| error.to_string())?;
        if stop() {
            return Err("the gateway is stopping".to_owned());
        }
        Ok(Told::of(told, model.model.contract()))
    }
}

pub(super) async fn one(State(site): State<Arc<Site>>, Named(number): Named<u64>) -> Result<Json<Job>, ApiError> {
    let job = site.api.jobs.find(number).ok_or_else(|| {
        let text = format!("there is no job {number}: the newest {JOBS_MAX} since the start are kept");
        missing("no-such-job", text, "begin it again")
    });
    job.map(Json)
}
