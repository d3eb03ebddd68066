//! From scores to alarms: when an episode begins, when it is recovering, when it is over.
//!
//! Owns the state machine and its four constants. Never knows the model, the clock or the asset: one step per scored window.
//! It is saved with the alarm and picked up after a restart, so its state is all there is.
//!
//! ```text
//! Ok          score > 1                        → Alarm, peak = score
//! Alarm       peak = max(peak, score);  score < 0.6 → Ok;  score < 0.6·peak → Recovering, low = score
//! Recovering  low = min(low, score);    score < 0.6 → Ok;  score > 1 and score > 2·low → Alarm, peak = score
//! ```
//!
//! A machine that was badly off and comes a good part of the way back is recovering, not in alarm: its score is still above the threshold
//! because a trailing mean and warm parts take time. It alarms again only if it turns around for the worse.

use serde::{Deserialize, Serialize};

/// An episode begins above this score: models are scaled so.
pub const ALARM_ABOVE: f32 = 1.0;
/// An episode ends below this score. The gap to [`ALARM_ABOVE`] keeps a score that hovers at the threshold from flapping.
pub const OK_BELOW: f32 = 0.6;
/// An alarm that has fallen below this share of its peak is recovering. Detection changes little between 0.4 and 0.6; the upper end
/// ends an alarm sooner when a machine recovers, and so gives the fewest false alarms.
pub const RECOVERING_BELOW_PEAK_SHARE: f32 = 0.6;
/// A recovery that has risen above this multiple of its lowest score is an alarm again.
pub const ALARM_ABOVE_LOW_MULTIPLE: f32 = 2.0;

/// What the operator is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nothing to see.
    Ok,
    /// Off normal, and not getting better.
    Alarm,
    /// Off normal, and well below the worst of this episode.
    Recovering,
}

/// The state machine of one asset and model. It serialises in every format, also in those that do not describe themselves.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Episode {
    /// No episode.
    #[default]
    Ok,
    /// In alarm.
    Alarm {
        /// Highest score since the alarm was raised.
        peak: f32,
    },
    /// Recovering.
    Recovering {
        /// Lowest score since the recovery began.
        low: f32,
    },
}

impl Episode {
    /// Takes the score of the next window (1.0 is the threshold) and says where that leads. A score that is not finite changes
    /// nothing: the runtime reports it, the episode doesn't guess.
    pub fn step(&mut self, score: f32) -> State {
        if score.is_finite() {
            *self = self.next(score);
        }
        self.state()
    }

    fn next(self, score: f32) -> Episode {
        match self {
            Episode::Ok if score > ALARM_ABOVE => Episode::Alarm { peak: score },
            Episode::Ok => Episode::Ok,
            Episode::Alarm { .. } | Episode::Recovering { .. } if score < OK_BELOW => Episode::Ok,
            Episode::Alarm { peak } => {
                let peak = peak.max(score);
                if score < RECOVERING_BELOW_PEAK_SHARE * peak {
                    Episode::Recovering { low: score }
                } else {
                    Episode::Alarm { peak }
                }
            }
            Episode::Recovering { low } => {
                let low = low.min(score);
                if score > ALARM_ABOVE && score > ALARM_ABOVE_LOW_MULTIPLE * low {
                    Episode::Alarm { peak: score }
                } else {
                    Episode::Recovering { low }
                }
            }
        }
    }

    /// Where the episode stands.
    pub fn state(&self) -> State {
        match self {
            Episode::Ok => State::Ok,
            Episode::Alarm { .. } => State::Alarm,
            Episode::Recovering { .. } => State::Recovering,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Runs `scores` from the start and compares the state after each.
    fn check(scores: &[f32], states: &[State]) {
        let mut episode = Episode::default();
        let got: Vec<State> = scores.iter().map(|&score| episode.step(score)).collect();
        assert_eq!(got, states, "for {scores:?}");
    }

    use State::{Alarm, Ok, Recovering};

    #[test]
    fn boundaries_are_where_they_are_written() {
        // Exactly at a boundary nothing changes; just past it, it does.
        check(&[1.0, 1.000_001], &[Ok, Alarm]);
        check(&[1.1, 0.6, 0.599_99], &[Alarm, Recovering, Ok]);
        check(&[5.0, 3.000_1, 2.999_9], &[Alarm, Alarm, Recovering]);
        check(&[4.0, 1.5, 0.75, 1.5, 1.500_1], &[Alarm, Recovering, Recovering, Recovering, Alarm]);
        check(&[4.0, 1.5, 0.6, 0.599_99], &[Alarm, Recovering, Recovering, Ok]);
    }

    #[test]
    fn a_fall_to_normal_beats_a_recovery() {
        // From a high peak straight below 0.6 the episode is over; it does not pass through recovering.
        check(&[10.0, 0.5], &[Alarm, Ok]);
    }

    #[test]
    fn a_new_peak_moves_the_recovery_level() {
        // The peak is the highest score of the episode, including the present one.
        check(&[2.0, 6.0, 3.7, 3.5], &[Alarm, Alarm, Alarm, Recovering]);
    }

    #[test]
    fn survives_being_saved() {
        // Every state reads back from its JSON, which names the state.
        for episode in [Episode::Ok, Episode::Alarm { peak: 3.25 }, Episode::Recovering { low: 0.75 }] {
            let text = serde_json::to_string(&episode).unwrap();
            assert_eq!(serde_json::from_str::<Episode>(&text).unwrap(), episode);
        }
        assert_eq!(serde_json::to_string(&Episode::Alarm { peak: 3.25 }).unwrap(), r#"{"alarm":{"peak":3.25}}"#);
    }

    proptest! {
        #[test]
        fn holds_whatever_the_scores(scores in proptest::collection::vec(prop_oneof![0.0_f32..3.0, 0.0_f32..100.0, Just(f32::NAN), Just(f32::INFINITY)], 0..200)) {
            // Below 0.6 the state is always Ok, an episode begins only above 1, and a score that is no number changes nothing.
            let mut episode = Episode::default();
            for score in scores {
                let before = episode;
                let state = episode.step(score);
                if !score.is_finite() {
                    prop_assert_eq!(episode, before);
                } else if score < OK_BELOW {
                    prop_assert_eq!(state, State::Ok);
                } else if score <= ALARM_ABOVE {
                    prop_assert!(state != State::Alarm || before.state() == State::Alarm);
                } else {
                    prop_assert!(state != State::Ok);
                }
                if let Episode::Alarm { peak } = episode {
                    prop_assert!(!score.is_finite() || score <= peak);
                }
            }
        }

        #[test]
        fn saving_between_any_two_steps_changes_nothing(scores in proptest::collection::vec(0.0_f32..5.0, 1..100)) {
            // An episode that is written and read back after every step takes the same path.
            let (mut kept, mut saved) = (Episode::default(), Episode::default());
            for score in scores {
                saved = serde_json::from_str(&serde_json::to_string(&saved).unwrap()).unwrap();
                prop_assert_eq!(kept.step(score), saved.step(score));
            }
        }
    }
}
