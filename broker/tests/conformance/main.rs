//! The conformance table: every MUST of MQTT 3.1.1 and MQTT 5.0 that a server can break, checked over TCP.
//!
//! ```text
//! cargo test -p millwright-broker --test conformance -- --nocapture
//! CONFORMANCE=3.8.4 cargo test -p millwright-broker --test conformance every_row -- --nocapture
//! CONFORMANCE_AT=127.0.0.1:1883 cargo test -p millwright-broker --test conformance every_row -- --nocapture
//! ```
//!
//! The first runs all rows and prints how many were checked; the second, those whose number contains `3.8.4`; the third
//! plays rows to another server, for doubts about a row (what that server may decide otherwise fails there, of course). A
//! row that fails is reported with its number, what it asks for, the step that failed and all that went over the wire.
//!
//! [`table`] has the rows, by section. A row is the statement's number in 3.1.1, its number in 5.0 (`-` where a version does
//! not have it), what it asks for in our words, and the check, which runs once for each version:
//!
//! ```text
//! "3.8.4-1" "3.8.4-1" "SUBSCRIBE is answered with SUBACK"
//!     => say r#"connect; > 82{0001 <> "@" 00}; < 90{0001 <> 00}"#;
//! ```
//!
//! `say` plays a script on the server that most rows share, `alone` on one of its own, `run` calls a function. [`scene`]
//! explains the steps, [`wire`] how packets are written. To add a row, add it to the file of its section; use topics and
//! client identifiers that begin with `@`, the row's own name; wait for what must come, and show that something does not
//! come by something that comes later: a message to the same subscriber at the same QoS, or PINGRESP.
//!
//! [`exempt`] lists the statements that no row checks, each with its reason; [`statements`], the numbers of all. A test holds
//! that each number is in exactly one of the two tables.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

#[path = "../common/mod.rs"]
mod common;
mod exempt;
mod peer;
mod row;
mod scene;
mod server;
mod statements;
mod table;
mod wire;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use millwright_broker::codec::Version;
use row::{Check, Row};
use scene::Stage;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

const VERSIONS: [(Version, &str); 2] = [(Version::V311, "3.1.1"), (Version::V5, "5.0")];

/// Rows that run at a time: enough that those that wait for time do so together.
const AT_A_TIME: usize = 64;

// Every numbered statement of both standards is either checked by a row or has a reason why not, and no number is made up.
#[test]
fn every_statement_is_in_exactly_one_table() {
    for (version, name) in VERSIONS {
        let all = statements::all(version);
        assert_eq!(all.len(), if version == Version::V5 { 251 } else { 141 }, "statements of {name}");
        let all: BTreeSet<&str> = all.iter().map(String::as_str).collect();
        // A rule of a section without a number has no dash.
        let checked = table::all().filter_map(|row| row.number(version)).filter(|number| number.contains('-'));
        let checked: BTreeSet<&str> = checked.collect();
        let exempt: BTreeSet<&str> = exempt::all(version).map(|(number, _)| number).collect();
        assert_eq!(exempt.len(), exempt::all(version).count(), "a number of {name} is exempt twice");
        let both: Vec<_> = checked.intersection(&exempt).collect();
        assert!(both.is_empty(), "{name}: checked and exempt: {both:?}");
        let covered: BTreeSet<&str> = checked.union(&exempt).copied().collect();
        let missing: Vec<_> = all.difference(&covered).collect();
        let unknown: Vec<_> = covered.difference(&all).collect();
        assert!(missing.is_empty() && unknown.is_empty(), "{name}: missing {missing:?}, unknown {unknown:?}");
    }
}

// Every row holds, in each version that has it.
#[tokio::test(flavor = "multi_thread")]
async fn every_row_holds() {
    let wanted = std::env::var("CONFORMANCE").unwrap_or_default();
    let elsewhere: Option<SocketAddr> = std::env::var("CONFORMANCE_AT").ok().map(|addr| addr.parse().unwrap());
    let gateway = server::start().await;
    let addr = elsewhere.unwrap_or(gateway.addr());
    let places = Arc::new(Semaphore::new(AT_A_TIME));
    let mut running = JoinSet::new();
    let mut counts = [0_usize; 2];
    for (index, row) in table::all().enumerate() {
        for (column, (version, name)) in VERSIONS.into_iter().enumerate() {
            let Some(number) = row.number(version).filter(|number| number.contains(&wanted)) else { continue };
            if elsewhere.is_some() && matches!(row.check, Check::Alone(_)) {
                continue;
            }
            counts[column] += 1;
            let places = Arc::clone(&places);
            running.spawn(async move {
                let _place = places.acquire_owned().await;
                let own_name = format!("row{index}v{}", &name[..1]);
                (index, format!("MQTT-{number} ({name}): {}", row.must), check(row, version, own_name, addr).await)
            });
        }
    }
    let mut failures = Vec::new();
    for (index, title, report) in running.join_all().await {
        failures.extend(report.map(|report| (index, format!("{title}\n{report}"))));
    }
    gateway.stop().await;
    failures.sort();
    for (_, failure) in &failures {
        println!("{failure}");
    }
    for (column, (version, name)) in VERSIONS.into_iter().enumerate() {
        let numbers = table::all().filter_map(|row| row.number(version)).filter(|number| number.contains('-'));
        let (statements, exempt) = (numbers.collect::<BTreeSet<&str>>().len(), exempt::all(version).count());
        println!(
            "MQTT {name}: {} rows checked; they are for {statements} statements, {exempt} are exempt",
            counts[column]
        );
    }
    let titles: Vec<&str> = failures.iter().filter_map(|(_, failure)| failure.lines().next()).collect();
    assert!(failures.is_empty(), "{} rows fail:\n{}", failures.len(), titles.join("\n"));
}

/// Checks a row; gives the report if it fails.
async fn check(row: &'static Row, version: Version, name: String, addr: SocketAddr) -> Option<String> {
    let stage = Stage { addr, version, name, transcript: peer::Transcript::default() };
    let played = match &row.check {
        Check::Say(script) => stage.play(script).await,
        Check::Run(function) => {
            // A panic is a failure of its row alone.
            match tokio::spawn(function(stage.clone())).await {
                Ok(result) => result,
                Err(error) => Err(anyhow::anyhow!("{error}")),
            }
        }
        Check::Alone(script) => {
            let gateway = server::start().await;
            let played = stage.on(gateway.addr()).play(script).await;
            gateway.stop().await;
            played
        }
    };
    let error = played.err()?;
    let said: Vec<String> = stage.transcript.lines().iter().map(|line| format!("        {line}")).collect();
    Some(format!("    {error:#}\n{}\n", said.join("\n")))
}
