//! Cursors: how far each consumer has come, for retention.
//!
//! Owns the registered positions. A position moves forward only, is never beyond the head, and reaches the file
//! lazily: with a commit that comes anyway, or after [`FLUSH_INTERVAL`] with one of its own. After a crash a cursor may
//! be behind what its consumer said, never ahead. Limits: `Limits::cursors_max` cursors with names of at most
//! [`CURSOR_NAME_BYTES_MAX`] bytes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::error::CursorError;
use super::limits::CURSOR_NAME_BYTES_MAX;
use super::shared::Shared;
use super::{CursorStats, Offset};

/// How long a position may be newer in memory than in the file.
pub(crate) const FLUSH_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct State {
    name: Arc<str>,
    position: AtomicU64,
    /// What the file has; 0 before the first time.
    persisted: AtomicU64,
}

/// What the file must be told about a cursor: its position, or that it is gone.
#[derive(Debug, Clone)]
pub(crate) struct CursorChange {
    pub(crate) name: Arc<str>,
    pub(crate) position: Option<u64>,
}

#[derive(Debug, Default)]
struct Registry {
    by_name: HashMap<Arc<str>, Arc<State>>,
    /// In the file but forgotten.
    forgotten: Vec<Arc<str>>,
}

/// All registered cursors.
#[derive(Debug, Default)]
pub(crate) struct Cursors {
    registry: Mutex<Registry>,
    dirty: AtomicBool,
}

impl Cursors {
    /// The cursors found in the file. None is let beyond the head.
    pub(crate) fn new(found: Vec<(String, u64)>, head: u64) -> Cursors {
        let cursors = Cursors::default();
        let mut registry = cursors.lock();
        for (name, position) in found {
            let name: Arc<str> = Arc::from(name);
            let position = position.min(head);
            let state = State { name: Arc::clone(&name), position: position.into(), persisted: position.into() };
            registry.by_name.insert(name, Arc::new(state));
        }
        drop(registry);
        cursors
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        // The registry is consistent after every statement, so a panic elsewhere while it was held changes nothing.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds a cursor, or registers it at `oldest`.
    fn register(&self, name: &str, oldest: u64, cursors_max: usize) -> Result<Arc<State>, CursorError> {
        if name.is_empty() || name.len() > CURSOR_NAME_BYTES_MAX {
            return Err(CursorError::Name { bytes: name.len(), bytes_max: CURSOR_NAME_BYTES_MAX });
        }
        let mut registry = self.lock();
        if let Some(state) = registry.by_name.get(name) {
            return Ok(Arc::clone(state));
        }
        if registry.by_name.len() >= cursors_max {
            return Err(CursorError::TooMany { cursors_max });
        }
        let name: Arc<str> = Arc::from(name);
        let was_stored = registry.forgotten.iter().position(|forgotten| *forgotten == name);
        if let Some(index) = was_stored {
            registry.forgotten.swap_remove(index);
        }
        let state = Arc::new(State { name: Arc::clone(&name), position: oldest.into(), persisted: AtomicU64::new(0) });
        registry.by_name.insert(name, Arc::clone(&state));
        self.dirty.store(true, Ordering::Release);
        Ok(state)
    }

    fn forget(&self, state: &Arc<State>) {
        let mut registry = self.lock();
        let registered = registry.by_name.get(&state.name).is_some_and(|other| Arc::ptr_eq(other, state));
        if registered {
            registry.by_name.remove(&state.name);
            registry.forgotten.push(Arc::clone(&state.name));
            self.dirty.store(true, Ordering::Release);
        }
    }

    /// Whether the file is behind.
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::Acquire)
    }

    /// What the file must be told. If that fails, the changes go to [`Cursors::persist_failed`].
    pub(crate) fn changes(&self) -> Vec<CursorChange> {
        if !self.dirty.swap(false, Ordering::AcqRel) {
            return Vec::new();
        }
        let mut registry = self.lock();
        let forgotten = std::mem::take(&mut registry.forgotten);
        let gone = forgotten.into_iter().map(|name| CursorChange { name, position: None });
        let moved = registry.by_name.values().filter_map(|state| {
            let position = state.position.load(Ordering::Acquire);
            (position != state.persisted.load(Ordering::Acquire))
                .then(|| CursorChange { name: Arc::clone(&state.name), position: Some(position) })
        });
        gone.chain(moved).collect()
    }

    /// The file has these changes now.
    pub(crate) fn persisted(&self, changes: &[CursorChange]) {
        let registry = self.lock();
        for change in changes {
            if let (Some(position), Some(state)) = (change.position, registry.by_name.get(&change.name)) {
                state.persisted.store(position, Ordering::Release);
            }
        }
    }

    /// The file does not have these changes; they are due again.
    pub(crate) fn persist_failed(&self, changes: Vec<CursorChange>) {
        let mut registry = self.lock();
        for change in changes {
            if change.position.is_none() && !registry.by_name.contains_key(&change.name) {
                registry.forgotten.push(change.name);
            }
        }
        self.dirty.store(true, Ordering::Release);
    }

    /// The cursors that still need a message before `end`: the one furthest behind with its position, and all their
    /// names, cut at [`CURSOR_NAME_BYTES_MAX`] bytes.
    pub(crate) fn needing(&self, end: u64) -> Option<(String, u64, String)> {
        let registry = self.lock();
        let mut behind: Vec<(u64, &str)> = registry
            .by_name
            .values()
            .map(|state| (state.position.load(Ordering::SeqCst), &*state.name))
            .filter(|(position, _)| *position < end)
            .collect();
        behind.sort_unstable();
        let (position, name) = behind.first()?;
        let mut names = String::new();
        for (index, (_, name)) in behind.iter().enumerate() {
            if names.len() + name.len() > CURSOR_NAME_BYTES_MAX {
                names.push_str(&format!(" and {} more", behind.len() - index));
                break;
            }
            names.push_str(if index > 0 { ", " } else { "" });
            names.push_str(name);
        }
        Some(((*name).to_owned(), *position, names))
    }

    /// Every cursor with its backlog.
    pub(crate) fn stats(&self, head: u64) -> Vec<CursorStats> {
        let registry = self.lock();
        let mut stats: Vec<CursorStats> = registry
            .by_name
            .values()
            .map(|state| {
                let position = state.position.load(Ordering::Acquire);
                CursorStats {
                    name: state.name.to_string(),
                    position: Offset(position),
                    backlog_rows: head.saturating_sub(position),
                }
            })
            .collect();
        stats.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        stats
    }
}

/// A consumer's registered position: the first message it still needs. Retention keeps that message and all after
/// it. Handles of the same name share one position.
#[derive(Debug, Clone)]
pub struct Cursor {
    shared: Arc<Shared>,
    state: Arc<State>,
}

impl Cursor {
    pub(crate) fn register(shared: &Arc<Shared>, name: &str) -> Result<Cursor, CursorError> {
        let oldest = shared.oldest.load(Ordering::Acquire);
        let state = shared.cursors.register(name, oldest, shared.config.limits.cursors_max)?;
        Ok(Cursor { shared: Arc::clone(shared), state })
    }

    /// The name it was registered with.
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// The first message that the consumer still needs.
    pub fn position(&self) -> Offset {
        Offset(self.state.position.load(Ordering::Acquire))
    }

    /// Says that every message before `next` is done with. Cheap: no input or output. Going back, or beyond the
    /// head, is not possible: the position stays, or becomes the head.
    pub fn advance(&self, next: Offset) {
        let next = next.0.min(self.shared.head());
        let before = self.state.position.fetch_max(next, Ordering::SeqCst);
        if before < next {
            self.shared.cursors.dirty.store(true, Ordering::Release);
            self.shared.wake_if_held();
        }
    }

    /// Removes the registration: nothing is kept for this consumer any more. Other handles of the same name go on
    /// reading their position but hold nothing back.
    pub fn forget(self) {
        self.shared.cursors.forget(&self.state);
        self.shared.wake_if_held();
    }
}
