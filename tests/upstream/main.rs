//! Engines of others against the real program: each kind of `[[upstream]]` with a real server behind a network that fails.
//!
//! Every kind plays the same scenarios ([`scenarios`]), as far as it can; what it cannot is listed as ignored, with the reason. A
//! server that is not installed is named at the start, with the way to get it, and does not fail the run, unless
//! `MILLWRIGHT_REQUIRE_UPSTREAM=1` says that all have to be there, as in `.ci/run`. `MILLWRIGHT_LONG=1` plays 50 cuts
//! and ten stops where the ordinary run plays a few; `MILLWRIGHT_SEED` repeats the cuts of a run that failed.

mod choices;
mod down;
mod kafka;
mod kind;
mod mosquitto;
mod nats;
mod process;
mod proxy;
mod rabbit;
mod rabbit_mqtt;
mod scenarios;
mod secrets;
mod stage;
mod terminator;
mod zeromq;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::choices::CHOICES;
use crate::kind::{Kind, Missing};
use crate::scenarios::{SCENARIOS, Scenario};

/// All kinds of upstreams.
static KINDS: [&dyn Kind; 11] = [
    &rabbit::QUORUM,
    &rabbit::STREAM,
    &rabbit::CLASSIC,
    &kafka::MOCK,
    &kafka::TANSU,
    &kafka::IDEMPOTENT,
    &mosquitto::V5,
    &mosquitto::V311,
    &rabbit_mqtt::RabbitMqtt,
    &nats::Nats,
    &zeromq::Zeromq,
];

/// Scenarios at a time, if nothing else is asked for: they wait more than they compute.
const THREADS: usize = 4;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    let trials = KINDS.iter().flat_map(|kind| trials_of(*kind, &arguments)).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    secrets::Secrets::forget();
    conclusion.exit_code()
}

/// All scenarios of a kind; or, if it has no server, the one test that says so.
fn trials_of(kind: &'static dyn Kind, arguments: &Arguments) -> Vec<Trial> {
    let name = |scenario: &Scenario| format!("{}::{}", kind.name(), scenario.name);
    let Err(Missing { reason, remedy }) = kind.find() else {
        let trial = |scenario: &'static Scenario| Trial::ignorable_test(name(scenario), move || play(kind, scenario));
        let down = kind.brings_down().then(|| {
            let play =
                move || down::play(kind).map_err(|error| Failed::from(format!("claim: {}\n{error:#}", down::CLAIM)));
            Trial::test(format!("{}::down", kind.name()), play)
        });
        return SCENARIOS.iter().chain(&CHOICES).map(trial).chain(down).collect();
    };
    let asked = std::env::var("MILLWRIGHT_REQUIRE_UPSTREAM").is_ok_and(|value| value == "1");
    let required = asked && !kind.is_optional();
    if !arguments.list && !required {
        let count = SCENARIOS.iter().chain(&CHOICES).filter(|scenario| kind.cannot(scenario.name).is_none()).count();
        eprintln!("not run: {count} tests of {}: {reason}\n         {remedy}", kind.name());
    }
    let missing = move || {
        if required { Err(Failed::from(format!("{reason}; {remedy}"))) } else { Ok(Completion::ignored_with(&reason)) }
    };
    vec![Trial::ignorable_test(kind.name(), missing)]
}

fn play(kind: &dyn Kind, scenario: &Scenario) -> Result<Completion, Failed> {
    if let Some(reason) = kind.cannot(scenario.name) {
        return Ok(Completion::ignored_with(reason));
    }
    if scenario.name == "refused" && kind.size_max().is_none() {
        return Ok(Completion::ignored_with("its server takes all that a gateway takes"));
    }
    (scenario.play)(kind).map_err(|error| format!("claim: {}\n{error:#}", scenario.claim))?;
    Ok(Completion::Completed)
}
