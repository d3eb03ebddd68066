//! From `state.db`, the model files and the log to a pipeline that goes on where it stopped.
//!
//! Owns the order of a start, and which models are kept. Never publishes. Reads back at most [`WARM_UP_MESSAGES`] messages of
//! the log.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use millwright_broker::log::{FetchLimit, Log, Offset, ReadError};
use millwright_models::runtime::LoadLimits;

use crate::config::SourceConfig;
use crate::ids::AssetId;
use crate::models::files;
use crate::pipeline::engine::{ASSETS_MAX, Engine, EngineSettings};
use crate::pipeline::fleet::{Installed, ModelKey, Origin};
use crate::pipeline::history::{History, RowReport};
use crate::pipeline::install;
use crate::source::{Reading, SourceMap};
use crate::state::{ModelRow, Saved, State, StateError};

/// Messages read back so that an alert soon after a start can show the signal before it: a second or two of work.
const WARM_UP_MESSAGES: u64 = 20_000;

/// Versions of a pushed model that are kept: the one in use and the one to go back to.
const KEPT_VERSIONS: usize = 2;

/// A fold as it was saved, and where it goes on.
pub struct Resumed {
    /// The fold.
    pub engine: Engine,
    /// The next offset to fold.
    pub position: Offset,
    /// Payload decoding, with what it remembered.
    pub sources: SourceMap,
}

/// Builds the engine from what was saved.
///
/// # Errors
/// The log cannot be read.
pub fn resume(
    settings: EngineSettings,
    saved: Saved,
    models_dir: &Path,
    limits: &LoadLimits,
    source_configs: &[SourceConfig],
    log: &Log,
) -> Result<Resumed, ReadError> {
    let known_log = saved.log_id == Some(log.id().0);
    let oldest = log.oldest();
    let position = if known_log { Offset(saved.cursor.max(1)) } else { oldest };
    // Events of an earlier state file may be in the log: numbers from its head on are new, as each event is a message.
    let next_event = if saved.log_id.is_none() { log.head().0 } else { saved.next_event };
    let mut engine = Engine::new(settings, next_event);
    let models = load_models(saved.models, models_dir, limits);
    for model in models.iter().filter(|model| model.origin == Origin::Pushed) {
        engine.restore_fleet(Arc::clone(model));
    }
    for row in saved.assets {
        let Ok(id) = AssetId::parse(&row.id) else { continue };
        let wanted = row.saved.model.as_ref();
        let loaded = |key: &ModelKey| models.iter().find(|model| model.sha256 == key.sha256).cloned();
        let model = wanted.and_then(loaded);
        let previous = row.previous.as_ref().and_then(loaded);
        if wanted.is_some() && model.is_none() {
            tracing::error!(asset = %id, "its model cannot be loaded: it learns its normal anew");
        }
        engine.restore_asset(id, (row.saved, row.more), (model, previous), row.rows);
    }
    if known_log {
        // What warming up makes the decoder remember is older than what was saved.
        warm_up(&mut engine, position, oldest, &mut SourceMap::new(source_configs), log)?;
    }
    let mut sources = SourceMap::new(source_configs);
    if known_log && let Some(Err(error)) = saved.sources.as_deref().map(|saved| sources.restore(saved)) {
        tracing::warn!("{error}");
    }
    Ok(Resumed { engine, position, sources })
}

/// Forgets the models that no asset uses or goes back to, and that are not the newest or the one before of a pushed name, so
/// that a gateway that is updated for years does not fill its disk. Returns those that are kept; the files of `shadows` stay too.
///
/// # Errors
/// The state file fails.
pub fn forget_unused_models(
    saved: &Saved,
    shadows: &[String],
    state: &State,
    models_dir: &Path,
) -> Result<Vec<ModelRow>, StateError> {
    let keys = saved.assets.iter().flat_map(|row| row.saved.model.iter().chain(&row.previous));
    let used: HashSet<&str> = keys.map(|key| key.sha256.as_str()).collect();
    let mut versions: HashMap<&str, usize> = HashMap::new();
    let (mut kept, mut forgotten) = (Vec::new(), Vec::new());
    // The newest come last; versions are counted from there.
    for row in saved.models.iter().rev() {
        let pushed = row.origin == Origin::Pushed;
        let newer = versions.entry(&row.name).or_default();
        *newer += usize::from(pushed);
        if used.contains(row.sha256.as_str()) || (pushed && *newer <= KEPT_VERSIONS) {
            kept.push(row.clone());
        } else {
            forgotten.push(row.sha256.clone());
        }
    }
    kept.reverse();
    state.forget_models(&forgotten)?;
    let files: Vec<&str> = kept.iter().map(|row| &row.sha256).chain(shadows).map(String::as_str).collect();
    if let Err(error) = files::remove_others(models_dir, &files) {
        tracing::warn!(%error, "unused model files could not be removed");
    }
    Ok(kept)
}

fn load_models(rows: Vec<ModelRow>, dir: &Path, limits: &LoadLimits) -> Vec<Arc<Installed>> {
    let load = |row: ModelRow| match files::load(dir, &row.sha256) {
        Err(error) => {
            tracing::error!(model = row.name, %error, "the model's file cannot be read");
            None
        }
        Ok(bytes) => match install::load(&bytes, row.origin, row.assets, limits) {
            Ok(model) if model.sha256 == row.sha256 => Some(Arc::new(model)),
            Ok(_) => {
                tracing::error!(model = row.name, "the model's file was changed on disk: it is not used");
                None
            }
            Err(error) => {
                tracing::error!(model = row.name, %error, "the model's file does not load");
                None
            }
        },
    };
    rows.into_iter().filter_map(load).collect()
}

/// Reads back what came before the cursor into the histories, for the evidence of alerts; scores nothing.
fn warm_up(
    engine: &mut Engine,
    position: Offset,
    oldest: Offset,
    sources: &mut SourceMap,
    log: &Log,
) -> Result<(), ReadError> {
    let mut reader = log.reader()?;
    let mut at = Offset(position.0.saturating_sub(WARM_UP_MESSAGES).max(oldest.0));
    let mut histories: HashMap<AssetId, History> = HashMap::new();
    let mut readings = Vec::new();
    while at < position {
        let fetched = reader.read(at, FetchLimit::default())?;
        for message in fetched.messages.iter().filter(|message| message.offset < position) {
            let Some(route) = sources.resolve(&message.message.topic) else { continue };
            readings.clear();
            // What is no telemetry was counted when it was folded.
            let _ = sources.decode(&route, &message.message.payload, message.received_us, &mut readings);
            readings.iter().for_each(|reading| push_rows(&mut histories, reading));
        }
        if fetched.next <= at {
            break;
        }
        at = fetched.next;
    }
    for (asset, history) in &histories {
        engine.prepend_history(asset, history);
    }
    Ok(())
}

fn push_rows(histories: &mut HashMap<AssetId, History>, reading: &Reading) {
    if histories.len() >= ASSETS_MAX && !histories.contains_key(&reading.asset) {
        return;
    }
    let history = histories.entry(reading.asset.clone()).or_default();
    let mut report = RowReport::default();
    let positions = history.positions(&reading.channels, &mut report);
    for (time_us, values) in reading.times_us.iter().zip(reading.values.chunks(reading.channels.len().max(1))) {
        let newer = history.newest(1).next().is_none_or(|row| row.time_us < *time_us);
        if newer {
            history.push(*time_us, &positions, values, &mut report);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Checkpoint;

    // Of a pushed model the newest two versions are kept, of models that no asset uses nothing; their files go with them, but
    // for a version in shadow.
    #[test]
    fn unused_models_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let models_dir = dir.path().join("models");
        let state = State::open(dir.path()).unwrap().state;
        let rows = [
            ("a1", Origin::Pushed, 1),
            ("a2", Origin::Pushed, 2),
            ("b1", Origin::Commissioned, 1),
            ("a3", Origin::Pushed, 3),
        ];
        for (sha256, origin, version) in rows {
            let name = sha256[..1].to_owned();
            let model = ModelRow { sha256: sha256.to_owned(), name, version, origin, assets: vec!["pump".to_owned()] };
            files::store(&models_dir, sha256, b"onnx").unwrap();
            state.commit(&Checkpoint { models: vec![model], ..Checkpoint::default() }).unwrap();
        }
        let kept = forget_unused_models(&state.load().unwrap(), &["a1".to_owned()], &state, &models_dir).unwrap();
        let names = |rows: &[ModelRow]| rows.iter().map(|row| row.sha256.clone()).collect::<Vec<_>>();
        assert_eq!(names(&kept), ["a2", "a3"]);
        assert_eq!(names(&state.load().unwrap().models), ["a2", "a3"]);
        assert!(files::load(&models_dir, "a2").is_ok());
        assert!(files::load(&models_dir, "a1").is_ok());
        assert!(files::load(&models_dir, "b1").is_err());
    }
}
