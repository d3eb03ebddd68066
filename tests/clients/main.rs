//! Clients of others against the real program: mosquitto_pub and mosquitto_sub, paho-mqtt, MQTT.js and rumqttc.
//!
//! Every kind plays the same scenarios ([`scenarios`]) in both versions of MQTT, as far as it can; what it cannot is listed
//! as ignored, with the reason. Over TLS, mutual TLS, WebSocket and both, those that speak it play what shows that the way carries
//! everything, and what keeps them out ([`refusals`]). A kind that is not installed is named at the start, with the way to get it, and does not
//! fail the run, unless `MILLWRIGHT_REQUIRE_CLIENTS=1` says that all have to be there, as in `.ci/run`.

mod broker;
mod kind;
mod mosquitto;
mod mqttjs;
mod paho;
mod refusals;
mod rumqttc;
mod scenarios;
mod script;
mod secrets;
mod way;

use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::broker::Broker;
use crate::kind::{Kind, Missing, Turn};
use crate::refusals::REFUSALS;
use crate::scenarios::{Course, SCENARIOS, Scenario, Version};
use crate::secrets::Secrets;
use crate::way::{Papers, Way};

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
            .map(|(name, scenario, version, way)| {
                Trial::ignorable_test(name, move || play(kind, scenario, version, way))
            })
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

fn scenarios_of(kind: &dyn Kind) -> Vec<(String, &'static Scenario, Version, Way)> {
    let mut found = Vec::new();
    for version in Version::ALL {
        for scenario in SCENARIOS.iter().chain(REFUSALS).filter(|scenario| scenario.since <= version) {
            for way in kind.ways().iter().filter(|way| scenario.ways.contains(way)) {
                let over = if *way == Way::Tcp { String::new() } else { format!("{}::", way.slug()) };
                let name = format!("{}::{over}{}::{}", kind.name(), version.slug(), scenario.name);
                found.push((name, scenario, version, *way));
            }
        }
    }
    found
}

/// Plays a scenario against a broker of its own.
fn play(kind: &dyn Kind, scenario: &'static Scenario, version: Version, way: Way) -> Result<Completion, Failed> {
    if let Some(reason) = kind.cannot(scenario.name, version) {
        return Ok(Completion::ignored_with(reason));
    }
    if let Some(reason) = beyond_foreign(scenario, way)? {
        return Ok(Completion::ignored_with(reason));
    }
    let secrets = if way == Way::Tcp { None } else { Some(Secrets::get()?) };
    let topics = format!("{}/#", scenario.name);
    let mut broker =
        Broker::start(way, secrets.map(|secrets| way.configuration(secrets, &topics)).unwrap_or_default())?;
    let prefix = unique_prefix(scenario);
    for (index, step) in scenario.course.steps().iter().enumerate() {
        if index > 0 && scenario.course == Course::Crash {
            broker = broker.crash()?;
        }
        let addr = broker.addr()?;
        let mut papers = Papers::of(way, addr.ip().to_string(), secrets);
        if let Some(secrets) = secrets {
            refusals::spoil(&mut papers, scenario.name, secrets);
        }
        let turn = Turn {
            scenario,
            version,
            step: *step,
            broker: addr,
            papers,
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
fn beyond_foreign(scenario: &Scenario, way: Way) -> anyhow::Result<Option<&'static str>> {
    Ok(match (broker::foreign()?, scenario.course, scenario.name) {
        (Some(_), ..) if way != Way::Tcp => Some("the certificates are the gateway's"),
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
