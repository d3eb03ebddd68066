//! Clients of others against the real program: mosquitto_pub and mosquitto_sub, paho-mqtt, MQTT.js and rumqttc.
//!
//! Every kind plays the same scenarios ([`scenarios`]) in both versions of MQTT, as far as it can; what it cannot is listed
//! as ignored, with the reason. A kind that is not installed is named at the start, with the way to get it, and does not
//! fail the run, unless `MILLWRIGHT_REQUIRE_CLIENTS=1` says that all have to be there, as in `.ci/run`.

mod broker;
mod kind;
mod mosquitto;
mod mqttjs;
mod paho;
mod rumqttc;
mod scenarios;
mod script;

use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::broker::Broker;
use crate::kind::{Kind, Missing, Turn};
use crate::scenarios::{Course, SCENARIOS, Scenario, Version};

/// All kinds of clients.
static KINDS: [&dyn Kind; 4] = [&mosquitto::Mosquitto, &paho::Paho, &mqttjs::MqttJs, &rumqttc::Rumqttc];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = KINDS.iter().flat_map(|kind| trials_of(*kind, &arguments)).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// All scenarios of a kind; or, if it is not installed, the one test that says so.
fn trials_of(kind: &'static dyn Kind, arguments: &Arguments) -> Vec<Trial> {
    let found = kind.find();
    let trials = scenarios_of(kind).into_iter();
    let Err(Missing { reason, remedy }) = found else {
        return trials
            .map(|(name, scenario, version)| Trial::ignorable_test(name, move || play(kind, scenario, version)))
            .collect();
    };
    let required = std::env::var("MILLWRIGHT_REQUIRE_CLIENTS").is_ok_and(|value| value == "1");
    if !arguments.list && !required {
        eprintln!("not run: {} tests of {}: {reason}\n         {remedy}", trials.count(), kind.name());
    }
    let missing = move || {
        if required { Err(Failed::from(format!("{reason}; {remedy}"))) } else { Ok(Completion::ignored_with(&reason)) }
    };
    vec![Trial::ignorable_test(kind.name(), missing)]
}

fn scenarios_of(kind: &dyn Kind) -> Vec<(String, &'static Scenario, Version)> {
    let mut found = Vec::new();
    for version in Version::ALL {
        for scenario in SCENARIOS.iter().filter(|scenario| scenario.since <= version) {
            found.push((format!("{}::{}::{}", kind.name(), version.slug(), scenario.name), scenario, version));
        }
    }
    found
}

/// Plays a scenario against a broker of its own.
fn play(kind: &dyn Kind, scenario: &'static Scenario, version: Version) -> Result<Completion, Failed> {
    if let Some(reason) = kind.cannot(scenario.name, version) {
        return Ok(Completion::ignored_with(reason));
    }
    if let Some(reason) = beyond_foreign(scenario)? {
        return Ok(Completion::ignored_with(reason));
    }
    let mut broker = Broker::start()?;
    let prefix = unique_prefix(scenario);
    for (index, step) in scenario.course.steps().iter().enumerate() {
        if index > 0 && scenario.course == Course::Crash {
            broker = broker.crash()?;
        }
        let turn = Turn {
            scenario,
            version,
            step: *step,
            broker: broker.addr(),
            prefix: prefix.clone(),
            subscriptions_max: millwright_broker::Limits::default().subscriptions_max,
        };
        kind.play(&turn).and_then(|()| broker.check_sound()).map_err(|error| {
            format!("claim: {}\n{step:?}: {error:#}\nthe gateway's log:\n{}", scenario.claim, broker.log())
        })?;
    }
    Ok(Completion::Completed)
}

/// Why another broker than ours is not asked to play this.
fn beyond_foreign(scenario: &Scenario) -> anyhow::Result<Option<&'static str>> {
    Ok(match (broker::foreign()?, scenario.course, scenario.name) {
        (Some(_), Course::Crash, _) => Some("only the gateway is killed"),
        (Some(_), _, "refused") => Some("the limit is the gateway's"),
        _ => None,
    })
}

/// Topics that no other run has, also on a broker that remembers former runs.
fn unique_prefix(scenario: &Scenario) -> String {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    format!("{}/{}-{}", scenario.name, std::process::id(), RUNS.fetch_add(1, Ordering::Relaxed))
}
