//! What became of each version of a pushed model, and the audit trail of it.
//!
//! Owns the tables `model_version` (where each version stands) and `model_audit` (every step it took, the newest
//! [`AUDIT_ROWS_MAX`]), and the rule for a gateway that did not end well. A step and its audit row are stored in one
//! transaction; a step that changes what scores is part of the pipeline's checkpoint. Keeps [`VERSIONS_MAX`] versions of a model.

use rusqlite::{Connection, OptionalExtension, Transaction, params};
use serde::Serialize;

use super::{State, StateError, forget_model, meta, set_meta};
use crate::clock;
use crate::pipeline::asset::SavedAsset;
use crate::pipeline::fleet::ModelKey;

/// Steps that are kept: some years of weekly updates of a hundred models.
pub const AUDIT_ROWS_MAX: i64 = 20_000;
/// Versions of a model that are kept.
const VERSIONS_MAX: i64 = 16;

/// Refused versions of all models that are kept: names are chosen by whoever publishes.
const REJECTED_MAX: i64 = 1_000;

/// Set while the gateway runs: found at a start, the last one did not end well.
pub(super) const RUNNING: &str = "running";

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS model_version (name TEXT NOT NULL, sha256 TEXT NOT NULL, version INTEGER NOT NULL,
    assets TEXT NOT NULL, state TEXT NOT NULL, reason TEXT, since_us INTEGER NOT NULL, signed_by TEXT,
    PRIMARY KEY (name, sha256)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS model_audit (number INTEGER PRIMARY KEY AUTOINCREMENT, time_us INTEGER NOT NULL, name TEXT NOT NULL,
    version INTEGER NOT NULL, sha256 TEXT NOT NULL, state TEXT NOT NULL, reason TEXT);
";

/// The models of a database from before there were versions: the newest of a name is in use.
const ADOPT: &str = "
INSERT OR IGNORE INTO model_version (name, sha256, version, assets, state, reason, since_us)
    SELECT name, sha256, version, assets,
        CASE WHEN installed_us = (SELECT max(installed_us) FROM model AS other WHERE other.name = model.name AND other.origin = 'pushed')
             THEN 'active' ELSE 'retired' END, NULL, installed_us
    FROM model WHERE origin = 'pushed';
";

/// Where a version stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum VersionState {
    /// It is shown the live stream beside the active model and decides nothing.
    Shadow,
    /// It scores, on probation.
    Trial,
    /// It scores.
    Active,
    /// A later version scores; it is kept to go back to.
    Retired,
    /// It was refused and never scored.
    Rejected,
    /// It scored and was taken back.
    RolledBack,
}

impl VersionState {
    const ALL: [(VersionState, &'static str); 6] = [
        (VersionState::Shadow, "shadow"),
        (VersionState::Trial, "trial"),
        (VersionState::Active, "active"),
        (VersionState::Retired, "retired"),
        (VersionState::Rejected, "rejected"),
        (VersionState::RolledBack, "rolled-back"),
    ];

    /// How it is written.
    pub fn as_str(self) -> &'static str {
        VersionState::ALL.iter().find(|(state, _)| *state == self).map_or("", |(_, text)| text)
    }

    fn parse(text: &str) -> Option<VersionState> {
        VersionState::ALL.iter().find(|(_, known)| *known == text).map(|(state, _)| *state)
    }

    /// Whether its file is needed although nothing scores with it: to go on with it, or to promote it by hand.
    pub fn keeps_file(self) -> bool {
        matches!(self, VersionState::Shadow | VersionState::RolledBack)
    }

    /// Whether it scores.
    pub fn scores(self) -> bool {
        matches!(self, VersionState::Trial | VersionState::Active)
    }
}

/// One version of a pushed model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VersionRow {
    /// The model's name.
    pub name: String,
    /// SHA-256 of the file, lower-case hex.
    pub sha256: String,
    /// Its version.
    pub version: u64,
    /// Patterns of the assets it is for.
    pub assets: Vec<String>,
    /// Where it stands.
    pub state: VersionState,
    /// Why, in words.
    pub reason: Option<String>,
    /// Since when, UTC microseconds.
    pub since_us: i64,
    /// The key that vouches for it.
    pub signed_by: Option<String>,
}

impl VersionRow {
    /// The same version in another state from now on.
    pub fn turned(&self, state: VersionState, reason: Option<String>) -> VersionRow {
        VersionRow { state, reason, since_us: clock::utc_us(), ..self.clone() }
    }
}

/// One step of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditRow {
    /// Its number; later steps have higher ones.
    pub number: i64,
    /// When, UTC microseconds.
    pub time_us: i64,
    /// The model's name.
    pub model: String,
    /// Its version.
    pub version: u64,
    /// SHA-256 of the file.
    pub sha256: String,
    /// Where it stood from then on.
    pub state: String,
    /// Why, in words.
    pub reason: Option<String>,
}

impl State {
    /// All versions, oldest first.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn versions(&self) -> Result<Vec<VersionRow>, StateError> {
        load(&self.lock())
    }

    /// Stores steps that change nothing that scores.
    ///
    /// # Errors
    /// SQLite fails; none is stored then.
    pub fn store_versions(&self, rows: &[VersionRow]) -> Result<(), StateError> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        for row in rows {
            store(&transaction, row)?;
        }
        Ok(transaction.commit()?)
    }

    /// The newest steps, newest first.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn audit(&self, rows_max: usize) -> Result<Vec<AuditRow>, StateError> {
        let connection = self.lock();
        let mut statement = connection.prepare_cached(
            "SELECT number, time_us, name, version, sha256, state, reason FROM model_audit ORDER BY number DESC LIMIT ?1",
        )?;
        let rows = statement.query_map([i64::try_from(rows_max).unwrap_or(i64::MAX)], |row| {
            Ok(AuditRow {
                number: row.get(0)?,
                time_us: row.get(1)?,
                model: row.get(2)?,
                version: row.get::<_, i64>(3)?.cast_unsigned(),
                sha256: row.get(4)?,
                state: row.get(5)?,
                reason: row.get(6)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Notes that the gateway runs. If the last one did not end well, each version that was on trial is taken back first, and
    /// returned: whatever ended the gateway, the model is the one thing that is new.
    ///
    /// # Errors
    /// SQLite fails; nothing is changed then.
    pub fn begin_run(&self) -> Result<Vec<VersionRow>, StateError> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        let running: Option<i64> = meta(&transaction, RUNNING)?;
        let mut taken_back = Vec::new();
        if running.unwrap_or(0) != 0 {
            for row in load(&transaction)?.into_iter().filter(|row| row.state == VersionState::Trial) {
                taken_back.push(take_back(&transaction, &row)?);
            }
        }
        set_meta(&transaction, RUNNING, 1_i64)?;
        transaction.commit()?;
        Ok(taken_back)
    }

    /// Notes that the gateway ended as it should.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn end_run(&self) -> Result<(), StateError> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        set_meta(&transaction, RUNNING, 0_i64)?;
        Ok(transaction.commit()?)
    }
}

/// Makes the tables; `found` is the version of the database before.
pub(super) fn create(connection: &Connection, found: i64) -> Result<(), rusqlite::Error> {
    connection.execute_batch(SCHEMA)?;
    if found == 1 {
        connection.execute_batch(ADOPT)?;
    }
    Ok(())
}

fn load(connection: &Connection) -> Result<Vec<VersionRow>, StateError> {
    let mut statement = connection.prepare(
        "SELECT name, sha256, version, assets, state, reason, since_us, signed_by FROM model_version ORDER BY since_us, version",
    )?;
    let rows = statement.query_map([], |row| {
        let state: String = row.get(4)?;
        let assets: String = row.get(3)?;
        Ok(VersionRow {
            name: row.get(0)?,
            sha256: row.get(1)?,
            version: row.get::<_, i64>(2)?.cast_unsigned(),
            assets: assets.split('\n').map(str::to_owned).collect(),
            // A state that only a newer program knows is none that scores.
            state: VersionState::parse(&state).unwrap_or(VersionState::Retired),
            reason: row.get(5)?,
            since_us: row.get(6)?,
            signed_by: row.get(7)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Stores where a version stands, and the step in the audit trail.
pub(super) fn store(transaction: &Transaction<'_>, row: &VersionRow) -> Result<(), rusqlite::Error> {
    let version = row.version.cast_signed();
    transaction
        .prepare_cached(
            "INSERT INTO model_version (name, sha256, version, assets, state, reason, since_us, signed_by)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
             ON CONFLICT (name, sha256) DO UPDATE SET version = ?3, assets = ?4, state = ?5, reason = ?6, since_us = ?7, signed_by = ?8",
        )?
        .execute(params![
            row.name,
            row.sha256,
            version,
            row.assets.join("\n"),
            row.state.as_str(),
            row.reason,
            row.since_us,
            row.signed_by
        ])?;
    transaction
        .prepare_cached(
            "INSERT INTO model_audit (time_us, name, version, sha256, state, reason) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![row.since_us, row.name, version, row.sha256, row.state.as_str(), row.reason])?;
    transaction
        .prepare_cached("DELETE FROM model_audit WHERE number <= (SELECT max(number) FROM model_audit) - ?1")?
        .execute([AUDIT_ROWS_MAX])?;
    transaction
        .prepare_cached(
            "DELETE FROM model_version WHERE name = ?1 AND state IN ('retired', 'rejected', 'rolled-back') AND sha256 NOT IN
             (SELECT sha256 FROM model_version WHERE name = ?1 ORDER BY since_us DESC LIMIT ?2)",
        )?
        .execute(params![row.name, VERSIONS_MAX])?;
    transaction
        .prepare_cached(
            "DELETE FROM model_version WHERE state = 'rejected' AND since_us <
             (SELECT since_us FROM model_version WHERE state = 'rejected' ORDER BY since_us DESC LIMIT 1 OFFSET ?1)",
        )?
        .execute([REJECTED_MAX])?;
    Ok(())
}

/// Takes a version back on disk: its assets get the model they had, and the version before it scores again.
fn take_back(transaction: &Transaction<'_>, row: &VersionRow) -> Result<VersionRow, StateError> {
    let assets: Vec<(String, Vec<u8>, Option<String>)> = {
        let mut statement = transaction.prepare(
            "SELECT id, saved, predecessor.sha256 FROM asset LEFT JOIN predecessor ON predecessor.asset = asset.id",
        )?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        rows.collect::<Result<_, _>>()?
    };
    let retired: Option<String> = transaction
        .query_row(
            "SELECT sha256 FROM model_version WHERE name = ?1 AND state = 'retired' ORDER BY since_us DESC LIMIT 1",
            [&row.name],
            |row| row.get(0),
        )
        .optional()?;
    for (id, saved, previous) in assets {
        // An asset that cannot be read learns anew, as at every start.
        let Ok(mut saved) = postcard::from_bytes::<SavedAsset>(&saved) else { continue };
        if saved.model.as_ref().is_none_or(|model| model.sha256 != row.sha256) {
            continue;
        }
        saved.model = previous.or_else(|| retired.clone()).map(|sha256| ModelKey { sha256 });
        let saved = postcard::to_stdvec(&saved).map_err(|error| StateError::Encode { what: "an asset", error })?;
        transaction.prepare_cached("UPDATE asset SET saved = ?2 WHERE id = ?1")?.execute(params![id, saved])?;
        transaction.prepare_cached("DELETE FROM predecessor WHERE asset = ?1")?.execute([&id])?;
    }
    forget_model(transaction, &row.sha256)?;
    if let Some(sha256) = retired {
        let back = load(transaction)?.into_iter().find(|other| other.name == row.name && other.sha256 == sha256);
        if let Some(back) = back {
            let reason = format!("version {} was taken back", row.version);
            store(transaction, &back.turned(VersionState::Active, Some(reason)))?;
        }
    }
    // Last: the newest step of a model is what is told of it.
    let reason = "the gateway ended without being stopped while the model was on trial: publish a new version, or promote this one again";
    let turned = row.turned(VersionState::RolledBack, Some(reason.to_owned()));
    store(transaction, &turned)?;
    Ok(turned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(version: u64, state: VersionState) -> VersionRow {
        VersionRow {
            name: "pump".to_owned(),
            sha256: format!("{version:064x}"),
            version,
            assets: vec!["pump-*".to_owned(), "fan".to_owned()],
            state,
            reason: None,
            since_us: clock::utc_us(),
            signed_by: None,
        }
    }

    // A gateway that ends well keeps a version on trial; one that does not comes back with the version before, and every step is
    // in the audit trail.
    #[test]
    fn a_crash_takes_a_trial_back() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap().state;
        assert_eq!(state.begin_run().unwrap(), []);
        state.store_versions(&[row(1, VersionState::Active)]).unwrap();
        state.store_versions(&[row(1, VersionState::Retired), row(2, VersionState::Trial)]).unwrap();
        state.end_run().unwrap();
        drop(state);

        let state = State::open(dir.path()).unwrap().state;
        assert_eq!(state.begin_run().unwrap(), [], "it ended well");
        drop(state);

        let state = State::open(dir.path()).unwrap().state;
        let taken_back = state.begin_run().unwrap();
        assert_eq!(taken_back.iter().map(|row| row.version).collect::<Vec<_>>(), [2]);
        let states: Vec<_> = state.versions().unwrap().into_iter().map(|row| (row.version, row.state)).collect();
        assert!(
            states.contains(&(1, VersionState::Active)) && states.contains(&(2, VersionState::RolledBack)),
            "{states:?}"
        );
        let steps: Vec<_> = state.audit(10).unwrap().into_iter().rev().map(|row| (row.version, row.state)).collect();
        let steps: Vec<(u64, &str)> = steps.iter().map(|(version, state)| (*version, state.as_str())).collect();
        assert_eq!(steps, [(1, "active"), (1, "retired"), (2, "trial"), (1, "active"), (2, "rolled-back")]);
        assert_eq!(state.begin_run().unwrap(), [], "it is taken back once");
    }

    // A database from before there were versions: of each pushed model the newest scores, the one before can be gone back to, and what
    // the gateway learned itself is none of them.
    #[test]
    fn models_of_the_first_schema_become_versions() {
        let dir = tempfile::tempdir().unwrap();
        let opened = State::open(dir.path()).unwrap();
        {
            let connection = opened.state.lock();
            connection
                .execute_batch("DROP TABLE model_version; DROP TABLE model_audit; DROP TABLE predecessor;")
                .unwrap();
            for (sha256, version, origin, installed_us) in
                [("a", 1, "pushed", 10), ("b", 2, "pushed", 20), ("c", 1, "commissioned", 30)]
            {
                let insert = "INSERT INTO model (sha256, name, version, origin, assets, installed_us) VALUES (?1, 'pump', ?2, ?3, 'pump-*', ?4)";
                connection.execute(insert, params![sha256, version, origin, installed_us]).unwrap();
            }
            connection.pragma_update(None, "user_version", 1).unwrap();
        }
        drop(opened);
        let state = State::open(dir.path()).unwrap().state;
        let versions: Vec<_> = state.versions().unwrap().into_iter().map(|row| (row.sha256, row.state)).collect();
        assert_eq!(versions, [("a".to_owned(), VersionState::Retired), ("b".to_owned(), VersionState::Active)]);
        assert_eq!(state.load().unwrap().models.len(), 3);
    }

    // Of versions that are over, the newest are kept; one that scores is kept however old it is.
    #[test]
    fn old_versions_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap().state;
        state.store_versions(&[row(1, VersionState::Active)]).unwrap();
        for version in 2..60 {
            state.store_versions(&[row(version, VersionState::Rejected)]).unwrap();
        }
        let kept = state.versions().unwrap();
        assert!(kept.len() as i64 <= VERSIONS_MAX + 1, "{}", kept.len());
        assert!(kept.iter().any(|row| row.version == 1 && row.state == VersionState::Active));
        assert!(kept.iter().any(|row| row.version == 59));
    }
}
