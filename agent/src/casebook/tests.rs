//! The casebook on its real file.

use std::path::Path;

use super::*;
use crate::alarm::evidence::{Sensor, Signal};
use crate::alarm::message::{AlertEvent, EventKind};
use crate::state::{Checkpoint, Deed, SilenceChange};

fn open(dir: &Path) -> State {
    State::open(dir).unwrap().state
}

fn sensor(channel: &str, contribution: f32) -> Sensor {
    Sensor { channel: channel.to_owned(), unit: None, contribution, observed: 1.0, expected: Some(0.0) }
}

/// The event `number` of the alert that `raised` raised.
fn event(asset: &str, raised: u64, number: u64, kind: EventKind, channel: &str) -> AlertEvent {
    AlertEvent {
        id: format!("gw/{number}"),
        alert: format!("gw/{raised}"),
        event: kind,
        gateway: "gw".to_owned(),
        asset: asset.to_owned(),
        severity: Severity::Warning,
        state: if kind == EventKind::Clear { millwright_models::State::Ok } else { millwright_models::State::Alarm },
        time_us: number as i64,
        onset_us: raised as i64 - 1,
        raised_us: raised as i64,
        score: 2.0,
        peak_score: number as f32,
        threshold: 1.0,
        model: ModelRef { name: "pump".to_owned(), version: 1, sha256: "a".repeat(64), commissioned: true },
        message: format!("{asset} {kind:?}"),
        silenced: false,
        evidence: Evidence {
            finding: None,
            sensors: vec![sensor(channel, 0.8), sensor("speed", 0.2)],
            signal: Vec::new(),
            first_to_deviate: vec![Deviation { channel: channel.to_owned(), at_us: 5 }],
        },
    }
}

fn store(state: &State, events: Vec<AlertEvent>) {
    state.commit(&Checkpoint { events, ..Checkpoint::default() }).unwrap();
}

fn deed(note: Option<(u64, Note)>, silence: Option<SilenceChange>) -> Deed {
    let (by, action, subject) = ("anna".to_owned(), "comment".to_owned(), "gw/1".to_owned());
    let audit = AuditEntry { number: 0, at_us: 1, by, action, subject, text: None };
    Deed { asset: "pump-1".to_owned(), audit, note, silence }
}

fn note(kind: NoteKind, text: &str, verdict: Option<Verdict>) -> Note {
    Note { at_us: 7, by: "anna".to_owned(), kind, text: Some(text.to_owned()), verdict }
}

fn list(state: &State, query: AlertQuery) -> Vec<u64> {
    state.alerts(&query).unwrap().items.iter().map(|alert| alert.number).collect()
}

// An alert is one case from raise to clear: what was told before the clear stays its message and evidence, and its notes are
// in the order in which they came, after reopening too.
#[test]
fn an_alert_is_one_case() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    store(&state, vec![event("pump-1", 1, 1, EventKind::Raise, "flow")]);
    let notes = [
        note(NoteKind::Acknowledge, "coming", None),
        note(NoteKind::Feedback, "bearing", Some(Verdict::True)),
        note(NoteKind::Acknowledge, "again", None),
    ];
    let deeds = notes.iter().map(|note| deed(Some((1, note.clone())), None)).collect();
    state.commit(&Checkpoint { deeds, ..Checkpoint::default() }).unwrap();
    store(&state, vec![event("pump-1", 1, 5, EventKind::Update, "pressure")]);
    store(&state, vec![event("pump-1", 1, 9, EventKind::Clear, "speed")]);
    drop(state);

    let case = open(dir.path()).case(1).unwrap().unwrap();
    let alert = &case.summary;
    assert_eq!((alert.id.as_str(), alert.cleared_us, alert.peak_score), ("gw/1", Some(9), 9.0));
    assert_eq!(alert.message, "pump-1 Update");
    assert_eq!(alert.acknowledged, Some(Acknowledged { by: "anna".to_owned(), at_us: 7 }));
    assert_eq!((alert.verdict, alert.first_channel.as_deref()), (Some(Verdict::True), Some("flow")));
    assert_eq!(case.evidence.sensors[0].channel, "pressure");
    assert_eq!(case.first_to_deviate[0].channel, "flow");
    let Notes::List(notes) = &alert.notes else { panic!("a case lists its notes") };
    let kinds: Vec<NoteKind> = notes.iter().map(|note| note.kind).collect();
    use NoteKind::{Acknowledge, Clear, Feedback, Raise, Update};
    assert_eq!(kinds, [Raise, Acknowledge, Feedback, Acknowledge, Update, Clear]);
}

// A case shows the signal around its onset however long the alert goes on, though later events no longer have it.
#[test]
fn a_case_keeps_the_signal_of_its_onset() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    let mut signals = [(2, 1), (2, 3), (0, 9)].map(|(before, after)| Signal {
        channel: "flow".to_owned(),
        times_us: (0..before + after).collect(),
        before: vec![Some(1.0); before as usize],
        after: vec![Some(2.0); after as usize],
    });
    for (number, kind) in [(1, EventKind::Raise), (2, EventKind::Update), (3, EventKind::Update)] {
        let mut event = event("pump-1", 1, number, kind, if number == 3 { "pressure" } else { "flow" });
        signals.rotate_left(usize::from(number > 1));
        event.evidence.signal = vec![signals[0].clone()];
        store(&state, vec![event]);
    }
    let evidence = state.case(1).unwrap().unwrap().evidence;
    assert_eq!((evidence.signal[0].before.len(), evidence.signal[0].after.len()), (2, 3));
    assert_eq!(evidence.sensors[0].channel, "pressure");
}

// Lists are filtered by machine and state and cut into pages that miss nothing and repeat nothing.
#[test]
fn lists_are_filtered_and_paged() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    for number in 1..=7 {
        let asset = if number % 2 == 0 { "even" } else { "odd" };
        store(&state, vec![event(asset, number, number, EventKind::Raise, "flow")]);
    }
    store(&state, vec![event("odd", 3, 20, EventKind::Clear, "flow")]);
    let all = |limit| AlertQuery { limit, ..AlertQuery::default() };
    assert_eq!(list(&state, all(50)), [7, 6, 5, 4, 3, 2, 1]);
    assert_eq!(list(&state, AlertQuery { asset: Some("even".to_owned()), ..all(50) }), [6, 4, 2]);
    assert_eq!(list(&state, AlertQuery { open: Some(false), ..all(50) }), [3]);
    assert_eq!(list(&state, AlertQuery { open: Some(true), asset: Some("odd".to_owned()), ..all(50) }), [7, 5, 1]);
    let (mut before, mut seen) = (None, Vec::new());
    loop {
        let page = state.alerts(&AlertQuery { before, ..all(3) }).unwrap();
        seen.extend(page.items.iter().map(|alert| alert.number));
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    assert_eq!(seen, [7, 6, 5, 4, 3, 2, 1]);
    assert_eq!(state.raised_since(3).unwrap()["odd"], 3);
    assert_eq!(state.open_alerts().unwrap().len(), 6);
}

// Similar alerts are those whose channels had like shares, of the same machine or model, the most alike first.
#[test]
fn similar_alerts_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    store(&state, vec![event("pump-1", 1, 1, EventKind::Raise, "flow")]);
    store(&state, vec![event("pump-1", 2, 2, EventKind::Raise, "temperature")]);
    store(&state, vec![event("pump-2", 3, 3, EventKind::Raise, "flow")]);
    let mut other = event("fan", 4, 4, EventKind::Raise, "flow");
    other.model.name = "fan".to_owned();
    store(&state, vec![other]);
    store(&state, vec![event("pump-1", 5, 5, EventKind::Raise, "flow")]);
    let similar: Vec<u64> = state.case(5).unwrap().unwrap().similar.iter().map(|alert| alert.number).collect();
    assert_eq!(similar, [3, 1]);
}

// At the limit the oldest alert that is over goes, with its notes and evidence; one that is up stays however old it is.
#[test]
fn the_oldest_closed_alert_goes() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    let raised = |number| event("pump-1", number, number, EventKind::Raise, "flow");
    let mut events = vec![raised(1)];
    for number in 2..=ALERTS_KEPT_MAX as u64 {
        events.push(raised(number));
        events.push(event("pump-1", number, number + 1, EventKind::Clear, "flow"));
    }
    store(&state, events);
    assert!(state.alert(2).unwrap().is_some());
    store(&state, vec![raised(20_000)]);
    assert!(state.alert(1).unwrap().is_some());
    assert!(state.alert(2).unwrap().is_none() && state.case(2).unwrap().is_none());
    assert!(state.alert(3).unwrap().is_some());
}

// Of the gateway's own notes the newest updates are kept, and raise and people's notes with them.
#[test]
fn updates_of_a_long_alert_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    store(&state, vec![event("pump-1", 1, 1, EventKind::Raise, "flow")]);
    let said = deed(Some((1, note(NoteKind::Comment, "noisy", None))), None);
    state.commit(&Checkpoint { deeds: vec![said], ..Checkpoint::default() }).unwrap();
    let updates = (2..100).map(|number| event("pump-1", 1, number, EventKind::Update, "flow"));
    store(&state, updates.collect());
    let Notes::List(notes) = state.case(1).unwrap().unwrap().summary.notes else { panic!("a case lists its notes") };
    assert_eq!(notes.len(), UPDATES_MAX + 2);
    assert_eq!((notes[0].kind, notes[1].kind), (NoteKind::Raise, NoteKind::Comment));
}

// A silence is there until it ends or is taken away; the audit trail has what was done, newest first, and pages.
#[test]
fn silences_end_and_deeds_are_audited() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    let silence = |until_us| Silence {
        asset: "pump-1".to_owned(),
        until_us,
        reason: Some("overhaul".to_owned()),
        by: "anna".to_owned(),
        since_us: 10,
    };
    let begin = |until_us| deed(None, Some(SilenceChange::Begin(silence(until_us))));
    state.commit(&Checkpoint { deeds: vec![begin(100), begin(200)], ..Checkpoint::default() }).unwrap();
    assert_eq!(state.silences(199).unwrap(), [silence(200)]);
    assert_eq!(state.silences(200).unwrap(), []);
    let end = deed(None, Some(SilenceChange::End("pump-1".to_owned())));
    state.commit(&Checkpoint { deeds: vec![end], ..Checkpoint::default() }).unwrap();
    assert_eq!(state.silences(0).unwrap(), []);
    let first = state.actions(None, 2).unwrap();
    assert_eq!(first.items.iter().map(|entry| entry.number).collect::<Vec<_>>(), [3, 2]);
    assert_eq!(state.actions(first.next, 2).unwrap().items.len(), 1);
}

// A state file from before there was a casebook goes on: its assets are kept, and an alert that was up then becomes a case with
// the next that is told of it.
#[test]
fn a_file_of_the_second_schema_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).back_to_schema_2();
    let state = open(dir.path());
    assert_eq!(state.load().unwrap().assets.len(), 1);
    store(&state, vec![event("pump-1", 1, 40, EventKind::Update, "flow")]);
    let alert = state.alert(1).unwrap().unwrap();
    assert_eq!((alert.raised_us, alert.cleared_us), (1, None));
}
