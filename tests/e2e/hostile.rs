//! What hostile or broken clients can do to the gateway: end their own connection, nothing else.

use std::time::{Duration, Instant};

use harness::client::{Client, Connect, PUBLISH, connect_body, packet, publish_body};
use harness::gateway::Gateway;
use harness::machine::Recording;
use harness::wait_for;
use millwright_firmware_sim::machine::MachineKind;
use serde_json::{Value, json};

use crate::PROGRAM;

/// A CONNECT of MQTT 5 as client `five` that asks for a new session.
const CONNECT_V5: &[u8] = b"\x10\x11\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x04five";

fn gateway(dir: &tempfile::TempDir) -> Gateway {
    Gateway::start(PROGRAM, dir.path(), "").unwrap()
}

fn client(gateway: &Gateway, id: &str) -> Client {
    Client::connect(gateway.mqtt, &Connect::new(id)).unwrap()
}

// A PUBLISH to a topic that begins with a non-ASCII character reaches a matching subscriber at both qualities of service,
// and the gateway serves on.
#[test]
fn non_ascii_topic() {
    let dir = tempfile::tempdir().unwrap();
    let mut gateway = gateway(&dir);
    let mut publisher = client(&gateway, "p");
    for (qos, filter) in [(0, "#"), (1, "#"), (0, "é+"), (1, "é/#"), (0, "+/b")] {
        let mut subscriber = client(&gateway, &format!("s-{qos}-{filter}"));
        let granted = subscriber.subscribe(filter, qos).unwrap_or(0x80);
        for topic in ["é/b", "€", "日本/語", "\u{1F3ED}/b"] {
            publisher.send(0x30, &publish_body(topic, None, b"at most once")).unwrap();
            publisher.publish(topic, b"at least once", false).unwrap();
        }
        // `é+` is no filter: it is refused, and that is all.
        if granted == 0x80 {
            continue;
        }
        assert_eq!(subscriber.next_on("é/b").unwrap().qos, 0, "{filter} at {qos}");
        assert_eq!(subscriber.next_on("é/b").unwrap().qos, qos, "{filter} at {qos}");
    }
    gateway.check_serves().unwrap();
}

// Connecting twice with a client id that contains characters of topics replaces the first connection, and the gateway
// serves on.
#[test]
fn strange_client_identifier_twice() {
    let dir = tempfile::tempdir().unwrap();
    let mut gateway = gateway(&dir);
    for id in ["a+b$c#d/e", "+", "#", "/", "$share/g/t", "$SYS"] {
        let mut first = client(&gateway, id);
        first.subscribe("#", 1).unwrap();
        first.subscribe("x/+", 0).unwrap();
        let mut second = client(&gateway, id);
        assert!(first.is_closed_by_peer(), "{id}: the first connection is still there");
        second.subscribe("#", 1).unwrap();
        second.publish("x/y", id.as_bytes(), false).unwrap();
        assert_eq!(second.next_on("x/y").unwrap().payload, id.as_bytes());
    }
    gateway.check_serves().unwrap();
}

// A session that is not clean, with a shared subscription and a message that it never acknowledged, may disconnect and come
// back, and the gateway serves on.
#[test]
fn shared_subscription_with_an_unacknowledged_message() {
    let dir = tempfile::tempdir().unwrap();
    let mut gateway = gateway(&dir);
    let mut publisher = client(&gateway, "p");
    for round in 0..3 {
        let options = Connect { clean: false, ..Connect::new("keeper") };
        let mut keeper = Client::connect(gateway.mqtt, &options).unwrap();
        let shared = keeper.subscribe("$share/group/jobs", 1).unwrap();
        keeper.subscribe("jobs", 1).unwrap();
        publisher.publish("jobs", b"work", false).unwrap();
        // Read, and not acknowledged.
        let delivered = keeper.receive().unwrap();
        assert_eq!(delivered.first >> 4, PUBLISH, "round {round}, $share answered with {shared:#x}");
        if round % 2 == 0 {
            keeper.send(0xE0, &[]).unwrap();
        }
        drop(keeper);
        publisher.publish("jobs", b"more work", false).unwrap();
    }
    gateway.check_serves().unwrap();
}

// A subscriber that does not read, is taken over by another connection with its id and is then drained harms nobody: a
// reader of the same messages gets every one of them meanwhile.
#[test]
fn slow_subscriber_taken_over_and_drained() {
    let dir = tempfile::tempdir().unwrap();
    let mut gateway = gateway(&dir);
    for qos in [0, 1] {
        let mut slow = Client::connect(gateway.mqtt, &Connect { clean: false, ..Connect::new("slow") }).unwrap();
        slow.subscribe("flood/#", qos).unwrap();
        let mut reader = client(&gateway, "reader");
        reader.subscribe("flood/last", 1).unwrap();
        let mut publisher = client(&gateway, "p");
        let payload = [7; 4_000];
        // About 12 MB: more than the sockets and the gateway hold for one client.
        for message in 0..3_000_u16 {
            match message % 100 {
                0 => publisher.publish("flood/a", &payload, false).unwrap(),
                _ => publisher
                    .send(0x30 | qos << 1, &publish_body("flood/a", (qos > 0).then_some(message + 2), &payload))
                    .unwrap(),
            }
        }
        publisher.publish("flood/last", b"end", false).unwrap();
        assert_eq!(reader.next_delivery().unwrap().payload, b"end");
        let mut new = Client::connect(gateway.mqtt, &Connect { clean: false, ..Connect::new("slow") }).unwrap();
        new.subscribe("flood/#", qos).unwrap();
        assert!(slow.is_closed_by_peer(), "the connection that was taken over is still there");
        publisher.publish("flood/last", b"after", false).unwrap();
        while new.next_delivery().unwrap().payload != b"after" {}
        gateway.check_serves().unwrap();
    }
}

// A client that sends what only a server sends, packets cut short, packets out of place or noise is disconnected, in place
// of its CONNECT and after it, and the gateway serves on.
#[test]
fn packets_that_no_client_may_send() {
    let dir = tempfile::tempdir().unwrap();
    let mut gateway = gateway(&dir);
    let noise: Vec<u8> = (0..500_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let bad: Vec<Vec<u8>> = vec![
        packet(0x20, &[0, 0]),                         // CONNACK
        packet(0xB0, &[0, 1]),                         // UNSUBACK
        packet(0xB0, &[]),                             // UNSUBACK without an id
        packet(0x90, &[0, 1, 0]),                      // SUBACK
        packet(0xD0, &[]),                             // PINGRESP
        packet(0x00, &[]),                             // reserved
        packet(0x32, &[0, 3, b'a', b'/', b'b', 0, 0]), // packet id 0
        packet(0x36, &[0, 1, b'a', 0, 1]),             // QoS 3
        packet(0x30, &[0, 3, b'a', b'/', b'+']),       // a wildcard in a topic
        packet(0x30, &[0, 2, 0xC3, 0x28]),             // not UTF-8
        packet(0x30, &[0xFF, 0xFF, b'a']),             // a topic longer than its packet
        packet(0x82, &[0, 1]),                         // no filter
        packet(0x82, &[0, 1, 0, 1, b'a', 9]),          // QoS 9
        packet(0x80, &[0, 1, 0, 1, b'a', 0]),          // wrong flags
        vec![0x30, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F],      // a length of five bytes
        vec![0x30, 0xFF, 0xFF, 0xFF, 0x7F, 0, 1],      // 256 MB announced
        noise,
    ];
    for bytes in &bad {
        let mut stranger = Client::open(gateway.mqtt).unwrap();
        stranger.send_bytes(bytes).unwrap();
        assert!(stranger.is_closed_by_peer(), "in place of CONNECT: {bytes:02x?}");
        let mut known = client(&gateway, "c");
        known.send_bytes(bytes).unwrap();
        assert!(known.is_closed_by_peer(), "after CONNECT: {bytes:02x?}");
        let mut five = Client::open(gateway.mqtt).unwrap();
        five.send_bytes(CONNECT_V5).unwrap();
        assert_eq!(five.receive().unwrap().first, 0x20);
        five.send_bytes(bytes).unwrap();
        assert!(five.is_closed_by_peer(), "after CONNECT of MQTT 5: {bytes:02x?}");
    }
    // A second CONNECT.
    let mut twice = client(&gateway, "c");
    twice.send(0x10, &connect_body(&Connect::new("c"))).unwrap();
    assert!(twice.is_closed_by_peer());
    gateway.check_serves().unwrap();
}

// A client that stops in the middle of its CONNECT is closed at the deadline, and others are served while it hangs.
#[test]
fn half_a_connect() {
    let dir = tempfile::tempdir().unwrap();
    let config = "[broker]\nlisten = \"127.0.0.1:0\"\nconnect_timeout_ms = 1500\n";
    let mut gateway = Gateway::start(PROGRAM, dir.path(), config).unwrap();
    let whole = packet(0x10, &connect_body(&Connect::new("half")));
    let begun = Instant::now();
    let mut halves: Vec<Client> = (0..whole.len())
        .map(|bytes| {
            let mut half = Client::open(gateway.mqtt).unwrap();
            half.send_bytes(&whole[..bytes]).unwrap();
            half
        })
        .collect();
    gateway.check_serves().unwrap();
    for half in &mut halves {
        assert!(half.is_closed_by_peer());
    }
    assert!(begun.elapsed() >= Duration::from_millis(1_500), "closed before the deadline");
    gateway.check_serves().unwrap();
}

// Telemetry that is no telemetry (noise, broken frames, JSON of every wrong shape) is counted, and a machine that sends
// properly beside it is learned from as if nothing were.
#[test]
fn hostile_telemetry() {
    let dir = tempfile::tempdir().unwrap();
    let mut gateway = gateway(&dir);
    let machine = Recording::of("pump-1", MachineKind::Pump, 3, 60, None);
    let frame = machine.frame(0);
    let mut bad: Vec<(String, Vec<u8>)> = Vec::new();
    for length in 0..frame.len() {
        bad.push((machine.topic(), frame[..length].to_vec()));
    }
    for at in 0..frame.len().min(40) {
        let mut changed = frame.clone();
        changed[at] = 0xFF;
        bad.push(("mw/v1/telemetry/stranger".to_owned(), changed));
    }
    let deep = "[".repeat(20_000);
    let wide =
        format!("{{\"values\":{{{}}}}}", (0..2_000).map(|n| format!("\"c{n}\":1")).collect::<Vec<_>>().join(","));
    for json in [
        "",
        "{",
        "null",
        "7",
        "[]",
        "[[]]",
        "{}",
        "{\"values\":{}}",
        "{\"ts\":1e400,\"values\":{\"a\":1}}",
        "{\"ts\":-9223372036854775808,\"seq\":18446744073709551615,\"values\":{\"a\":1e39}}",
        "{\"values\":{\"\":1}}",
        "{\"ts\":\"yesterday\",\"values\":{\"a\":1}}",
        "{\"values\":[1,2]}",
        "\u{FEFF}{}",
        &deep,
        &wide,
    ] {
        bad.push(("mw/v1/telemetry/stranger/json".to_owned(), json.as_bytes().to_vec()));
    }
    bad.push(("mw/v1/telemetry/stranger/json".to_owned(), vec![0xFF; 1_000]));
    bad.push(("mw/v1/telemetry//json".to_owned(), b"{\"values\":{\"a\":1}}".to_vec()));
    let mut publisher = client(&gateway, "p");
    for (n, (topic, payload)) in bad.iter().enumerate() {
        publisher.publish(topic, payload, false).unwrap();
        if n < machine.rows.len() {
            publisher.publish(&machine.topic(), &machine.frame(n), false).unwrap();
        }
    }
    wait_for("the machine to be folded", || {
        let asset = gateway.asset("pump-1").ok()??;
        (asset["counters"]["samples"] == machine.rows.len()).then_some(())
    })
    .unwrap();
    let status = gateway.status().unwrap();
    let errors = status.pointer("/pipeline/decode_errors").and_then(Value::as_u64).unwrap();
    assert!(errors >= frame.len() as u64, "{errors} errors are counted");
    gateway.check_serves().unwrap();
}

// A model manifest that is none is refused with its reason on the state topic, and the gateway serves on.
#[test]
fn hostile_manifests() {
    let dir = tempfile::tempdir().unwrap();
    let mut gateway = gateway(&dir);
    let digest = "0".repeat(64);
    let sound = json!({"name": "m", "version": 1, "sha256": digest, "size": 10, "chunk_size": 10, "chunks": [digest]});
    let with = |key: &str, value: Value| {
        let mut manifest = sound.clone();
        manifest[key] = value;
        manifest.to_string().into_bytes()
    };
    let bad: Vec<Vec<u8>> = vec![
        b"no json".to_vec(),
        vec![0xFF; 70_000],
        with("version", json!(0)),
        with("version", json!(-1)),
        with("name", json!("another")),
        with("name", json!("../../etc/passwd")),
        with("sha256", json!("zz")),
        with("size", json!(u64::MAX)),
        with("chunk_size", json!(0)),
        with("chunks", json!([])),
        with("chunks", json!(vec![digest.clone(); 1_000])),
        with("assets", json!(["*".repeat(200)])),
    ];
    let mut observer = client(&gateway, "o");
    observer.subscribe("mw/v1/model/+/state/+", 1).unwrap();
    let mut publisher = client(&gateway, "p");
    for manifest in &bad {
        publisher.publish("mw/v1/model/m/manifest", manifest, true).unwrap();
        let state = observer.next_delivery().unwrap();
        assert_eq!(state.topic, "mw/v1/model/m/state/gw-1");
        let state: Value = serde_json::from_slice(&state.payload).unwrap();
        assert_eq!(state["state"], "rejected", "{}", String::from_utf8_lossy(manifest));
        assert!(state["reason"].as_str().is_some_and(|reason| reason.len() > 10), "{state}");
        // Taken back, so that the same reason is told again for the next one.
        publisher.publish("mw/v1/model/m/manifest", b"", true).unwrap();
    }
    gateway.check_serves().unwrap();
}
