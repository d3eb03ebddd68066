//! The dashboard in a real browser: headless Chromium, driven by playwright-core, against the real program.
//!
//! Each scenario of `scenarios.js` is played against a gateway of its own; where it needs something done to the gateway or to its
//! machines it asks this side ([`stage::Stage::act`]). Without Node, the packages or Chromium the run says so and fails nothing, unless
//! `MILLWRIGHT_REQUIRE_BROWSER=1` says that all have to be there, as in `.ci/run`. `MILLWRIGHT_BROWSER_FAILED=FOLDER` keeps a picture of
//! what the pages showed when a scenario failed.

mod script;
mod stage;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::script::Browser;
use crate::stage::Stage;

/// What is played, and what it claims.
const SCENARIOS: [(&str, &str); 15] = [
    ("signs_in", "a wrong password is refused, the right one lets in, and signing out ends it"),
    ("a_fault_appears_live", "a fault appears while the page is open, leads to its evidence and takes feedback"),
    ("a_chart_is_looked_into", "the live chart moves, and dragging over it shows the stored history"),
    ("a_model_is_promoted", "a pushed model is promoted with a reason"),
    ("a_model_is_uploaded", "a model is uploaded and tested over the past; what is no model is refused"),
    ("a_model_is_rolled_back", "a model that scores is rolled back with a reason"),
    (SIGNED, "a manifest that a trusted key signed lets a model in, another's does not and says why"),
    ("a_machine_is_learned_anew", "learning begins anew, and its progress is seen"),
    ("a_viewer_changes_nothing", "a viewer is offered nothing and refused everything"),
    ("the_connection_comes_back", "the page outlives a restart of the gateway"),
    ("fits_phone_and_wall", "nothing is wider than a phone, and a wall is read from afar"),
    ("a_script_is_only_text", "a script in a machine's name is text"),
    ("is_accessible", "no view has a serious fault that axe-core knows of, and all work by keyboard"),
    ("redraws_smoothly", "ten thousand points are drawn again within a frame or two"),
    ("is_light", "the page weighs at most 300 KB with 200 machines"),
];

/// The scenario of a gateway that trusts keys.
const SIGNED: &str = "a_signed_model_is_uploaded";

/// Browsers at a time: each is several processes and takes 200 MB.
const BROWSERS_MAX: usize = 2;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(arguments.test_threads.unwrap_or(BROWSERS_MAX).min(BROWSERS_MAX));
    let trials = match Browser::find() {
        Ok(browser) => SCENARIOS.iter().map(|(name, claim)| trial(browser.clone(), name, claim)).collect(),
        Err(reason) => vec![missing(reason, arguments.list)],
    };
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trial(browser: Browser, name: &'static str, claim: &'static str) -> Trial {
    Trial::test(name, move || play(&browser, name).map_err(|error| Failed::from(format!("claim: {claim}\n{error:#}"))))
}

/// The one test that says why no other is run.
fn missing(reason: String, list: bool) -> Trial {
    let remedy = "`.ci/run` installs what is missing; by hand: install Chromium, and npm ci in a copy of tests/browser, then \
                  MILLWRIGHT_BROWSER_MODULES=COPY/node_modules";
    let required = std::env::var("MILLWRIGHT_REQUIRE_BROWSER").is_ok_and(|value| value == "1");
    if !list && !required {
        eprintln!("not run: {} tests of the dashboard in a browser: {reason}\n         {remedy}", SCENARIOS.len());
    }
    Trial::ignorable_test("browser", move || {
        if required { Err(Failed::from(format!("{reason}; {remedy}"))) } else { Ok(Completion::ignored_with(reason)) }
    })
}

fn play(browser: &Browser, name: &str) -> anyhow::Result<()> {
    let mut stage = Stage::set(name == SIGNED)?;
    let given = stage.given();
    let figures = browser.play(name, given, |wish| stage.act(wish)).map_err(|error| error.context(stage.log()))?;
    stage.check_sound()?;
    if !figures.is_null() {
        eprintln!("{name}: {figures}");
    }
    Ok(())
}
