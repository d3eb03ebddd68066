//! What subscribers get: live telemetry, retained messages, wills; and who may connect.

use std::io::{ErrorKind, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::client::{CONNACK, Client, Connect, connect_body, publish_body};
use harness::gateway::Gateway;
use harness::machine::Recording;
use harness::publisher::Publisher;
use harness::wait_for;
use millwright_firmware_sim::fault::Fault;
use millwright_firmware_sim::machine::MachineKind;
use serde_json::Value;

use crate::PROGRAM;

const SHORT: &str = "[commissioning]\nsamples = 400\nextend = false\n";

fn client(gateway: &Gateway, id: &str) -> Client {
    Client::connect(gateway.mqtt, &Connect::new(id)).unwrap()
}

/// Sends a machine's rows and waits until they are folded.
fn feed(gateway: &Gateway, machine: &Recording) {
    let recording = machine.clone();
    let publisher = Publisher::start("plc", &machine.topic(), 64, move |row| recording.frame(row));
    publisher.progress.allow(machine.rows.len());
    publisher.progress.set_gateway(Some(gateway.mqtt));
    wait_for("the machine to be folded", || {
        let asset = gateway.asset(&machine.asset).ok()??;
        (asset["counters"]["samples"] == machine.rows.len()).then_some(())
    })
    .unwrap();
}

// Subscribers at QoS 0 and QoS 1 get live telemetry, whatever QoS it was published at; at QoS 1 all of it, in order.
#[test]
fn live_telemetry() {
    let dir = tempfile::tempdir().unwrap();
    let mut gateway = Gateway::start(PROGRAM, dir.path(), "").unwrap();
    let machine = Recording::of("fan-1", MachineKind::Fan, 1, 200, None);
    let mut once = client(&gateway, "qos-1");
    assert_eq!(once.subscribe("mw/v1/telemetry/+", 1).unwrap(), 1);
    let mut live = client(&gateway, "qos-0");
    assert_eq!(live.subscribe("mw/v1/telemetry/#", 0).unwrap(), 0);
    let mut publisher = client(&gateway, "p");
    for (row, frame) in machine.frames().enumerate() {
        publisher.publish(&machine.topic(), &frame, false).unwrap();
        // One that reads along is not slow: it misses nothing either.
        let delivery = live.next_delivery().unwrap();
        assert_eq!((delivery.qos, delivery.retain, delivery.payload == frame), (0, false, true), "row {row}");
    }
    for frame in machine.frames() {
        let delivery = once.next_delivery().unwrap();
        assert_eq!((delivery.topic, delivery.qos, delivery.payload), (machine.topic(), 1, frame));
    }
    // Telemetry at QoS 0 is logged and scored too.
    let other = Recording::of("fan-2", MachineKind::Fan, 2, 100, None);
    for frame in other.frames() {
        publisher.send(0x30, &publish_body(&other.topic(), None, &frame)).unwrap();
        assert_eq!(once.next_delivery().unwrap().payload, frame);
    }
    wait_for("QoS 0 telemetry to be folded", || {
        (gateway.asset("fan-2").ok()??["counters"]["samples"] == other.rows.len()).then_some(())
    })
    .unwrap();
    gateway.check_serves().unwrap();
}

// A QoS 1 subscriber that reads nothing while 30,000 messages are published and acknowledged gets every one of them
// afterwards, in order and once; one at QoS 0 may miss some, in order still.
#[test]
fn a_slow_subscriber_gets_everything() {
    const MESSAGES: usize = 30_000;
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(PROGRAM, dir.path(), "").unwrap();
    let mut slow = client(&gateway, "slow");
    slow.subscribe("flood", 1).unwrap();
    let mut careless = client(&gateway, "careless");
    careless.subscribe("flood", 0).unwrap();
    let number = |message: usize| {
        let mut bytes = vec![0; 600];
        bytes[..8].copy_from_slice(&(message as u64).to_be_bytes());
        bytes
    };
    let publisher = Publisher::start("p", "flood", 200, number);
    publisher.progress.allow(MESSAGES);
    publisher.progress.set_gateway(Some(gateway.mqtt));
    wait_for("the messages to be acknowledged", || (publisher.progress.acknowledged() == MESSAGES).then_some(()))
        .unwrap();
    for message in 0..MESSAGES {
        let delivery = slow.next_delivery().unwrap();
        assert!(
            delivery.payload == number(message) && delivery.qos == 1,
            "message {message}: {:?}",
            &delivery.payload[..8]
        );
    }
    // The end may be skipped too while the subscriber is behind: it is said until it is heard.
    careless.set_patience(Duration::from_millis(200)).unwrap();
    let mut end = client(&gateway, "q");
    let mut next = 0;
    while next <= MESSAGES {
        let delivery = match careless.next_delivery() {
            Ok(delivery) => delivery,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                end.publish("flood", &number(MESSAGES), false).unwrap();
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        let found = usize::try_from(u64::from_be_bytes(delivery.payload[..8].try_into().unwrap())).unwrap();
        assert!(found >= next, "{found} after {next}");
        next = found + 1;
    }
}

// Who subscribes late gets the retained alert, with its evidence, and the retained health of the machine; the alert is still
// there after the gateway was killed.
#[test]
fn alert_and_health_for_a_late_subscriber() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(PROGRAM, dir.path(), SHORT).unwrap();
    let machine = Recording::of("pump-1", MachineKind::Pump, 7, 800, Some((Fault::BearingWear, 500, 100.0)));
    let mut crew = client(&gateway, "crew");
    crew.subscribe("mw/v1/event/+", 1).unwrap();
    feed(&gateway, &machine);
    let raise: Value = serde_json::from_slice(&crew.next_delivery().unwrap().payload).unwrap();
    assert_eq!((&raise["event"], &raise["asset"]), (&"raise".into(), &"pump-1".into()), "{raise}");
    let told = raise["time_us"].as_i64().unwrap();
    assert!(
        (machine.time_us(500)..machine.time_us(800)).contains(&told),
        "raised at row {}",
        (told - machine.time_us(0)) / 1_000_000
    );

    let health = wait_for("health to say alarm", || {
        let mut late = client(&gateway, "late");
        late.subscribe("mw/v1/health/pump-1", 0).unwrap();
        let health: Value = serde_json::from_slice(&late.next_delivery().unwrap().payload).unwrap();
        (health["state"] == "alarm").then_some(health)
    })
    .unwrap();
    assert!(health["score"].as_f64().unwrap() > 1.0 && health["health"].as_f64().unwrap() < 50.0, "{health}");
    let alert = |gateway: &Gateway| -> Value {
        let mut late = client(gateway, "late");
        late.subscribe("mw/v1/alert/+", 1).unwrap();
        let delivery = late.next_delivery().unwrap();
        assert!(delivery.retain && delivery.topic == "mw/v1/alert/pump-1");
        serde_json::from_slice(&delivery.payload).unwrap()
    };
    let before = alert(&gateway);
    assert_eq!((&before["active"], &before["alert"]), (&true.into(), &raise["id"]), "{before}");
    assert!(before["message"].as_str().unwrap().contains("pump-1"), "{before}");
    let evidence = before["evidence"].to_string();
    assert!(
        Fault::BearingWear.expected_channels(MachineKind::Pump).iter().any(|name| evidence.contains(name)),
        "{evidence}"
    );

    gateway.kill().unwrap();
    let gateway = Gateway::start(PROGRAM, dir.path(), SHORT).unwrap();
    assert_eq!(alert(&gateway), before);
}

// Retained messages are what they were after SIGKILL: the last acknowledged value of each topic, and a deleted one is gone.
#[test]
fn retained_messages_survive_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(PROGRAM, dir.path(), "").unwrap();
    let mut publisher = client(&gateway, "p");
    for topic in ["set/a", "set/b", "set/c"] {
        publisher.publish(topic, b"old", true).unwrap();
    }
    publisher.publish("set/b", b"new", true).unwrap();
    publisher.publish("set/c", b"", true).unwrap();
    publisher.publish("set/d", b"not retained", false).unwrap();
    gateway.kill().unwrap();
    let gateway = Gateway::start(PROGRAM, dir.path(), "").unwrap();
    let mut late = client(&gateway, "late");
    late.subscribe("set/+", 1).unwrap();
    // Retained messages come before what is published after the subscription.
    client(&gateway, "p").publish("set/end", b"", false).unwrap();
    let mut found = Vec::new();
    loop {
        let delivery = late.next_delivery().unwrap();
        if delivery.topic == "set/end" {
            break;
        }
        assert!(delivery.retain);
        found.push((delivery.topic, delivery.payload));
    }
    found.sort();
    assert_eq!(found, [("set/a".to_owned(), b"old".to_vec()), ("set/b".to_owned(), b"new".to_vec())]);
}

// A client that vanishes without DISCONNECT leaves its will, one that says goodbye does not.
#[test]
fn wills() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(PROGRAM, dir.path(), "").unwrap();
    let mut watcher = client(&gateway, "watcher");
    watcher.subscribe("gone/+", 1).unwrap();
    let mortal = |id: &'static str, qos| {
        let topic: &'static str = if id == "polite" { "gone/polite" } else { "gone/killed" };
        let options = Connect { will: Some((topic, b"lost", qos)), ..Connect::new(id) };
        Client::connect(gateway.mqtt, &options).unwrap()
    };
    let mut polite = mortal("polite", 1);
    polite.send(0xE0, &[]).unwrap();
    assert!(polite.is_closed_by_peer());
    for qos in [0, 1] {
        drop(mortal("killed", qos));
        let delivery = watcher.next_delivery().unwrap();
        assert_eq!(
            (delivery.topic.as_str(), delivery.payload.as_slice(), delivery.qos),
            ("gone/killed", &b"lost"[..], qos)
        );
    }
    // Silence beyond one and a half keep-alives is death as well. [MQTT-3.1.2-22]
    let options = Connect { keep_alive_s: 1, will: Some(("gone/silent", b"lost", 1)), ..Connect::new("silent") };
    let mut silent = Client::connect(gateway.mqtt, &options).unwrap();
    assert_eq!(watcher.next_delivery().unwrap().topic, "gone/silent");
    assert!(silent.is_closed_by_peer());
}

/// The hash that `millwright passwd` makes.
pub(crate) fn hash_of(password: &str) -> String {
    let mut child = Command::new(PROGRAM)
        .arg("passwd")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(format!("{password}\n").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

// With users in the configuration, only the right name and password get in; `millwright passwd` makes the hash, and the
// password appears in no log.
#[test]
fn username_and_password() {
    let dir = tempfile::tempdir().unwrap();
    let password = "correct horse battery";
    let users = format!("[[broker.user]]\nname = \"line-1\"\npassword_hash = \"{}\"\n", hash_of(password));
    let gateway = Gateway::start(PROGRAM, dir.path(), &users).unwrap();
    let answer = |login: Option<(&'static str, &str)>| {
        let mut client = Client::open(gateway.mqtt).unwrap();
        client.set_patience(Duration::from_secs(30)).unwrap();
        client.send(0x10, &connect_body(&Connect { login, ..Connect::new("c") })).unwrap();
        let answer = client.receive().unwrap();
        assert_eq!(answer.first >> 4, CONNACK);
        answer.body[1]
    };
    assert_eq!(answer(Some(("line-1", password))), 0);
    // 4: bad user name or password, 5: not authorised. [MQTT-3.2.2.3]
    for login in
        [None, Some(("line-1", "wrong")), Some(("line-1", "")), Some(("line-2", password)), Some(("", password))]
    {
        assert!([4, 5].contains(&answer(login)), "{login:?}");
    }
    assert_eq!(answer(Some(("line-1", password))), 0);
    assert!(!gateway.log().contains(password));
}
