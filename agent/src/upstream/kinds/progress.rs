//! Confirmations that come in any order.

use std::sync::{Mutex, PoisonError};

/// Which messages of a delivery are confirmed.
pub(super) struct Progress(Mutex<State>);

struct State {
    done: Vec<bool>,
    prefix: usize,
}

impl Progress {
    /// None of so many.
    pub(super) fn new(records: usize) -> Progress {
        Progress(Mutex::new(State { done: vec![false; records], prefix: 0 }))
    }

    /// These are; returns how many are, from the first on without a hole.
    pub(super) fn done(&self, indices: impl IntoIterator<Item = usize>) -> usize {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for index in indices {
            if let Some(flag) = state.done.get_mut(index) {
                *flag = true;
            }
        }
        while state.done.get(state.prefix) == Some(&true) {
            state.prefix += 1;
        }
        state.prefix
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // What is confirmed out of order counts when the hole before it is filled.
    #[test]
    fn the_prefix_has_no_hole() {
        let progress = Progress::new(4);
        assert_eq!(progress.done([1, 3]), 0);
        assert_eq!(progress.done([0]), 2);
        assert_eq!(progress.done([2, 9]), 4);
    }
}
