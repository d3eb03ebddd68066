//! The client on real sockets, against a broker whose every step the test decides.
#![allow(clippy::unwrap_used, clippy::panic)]

mod peer;

use std::future::pending;
use std::time::Duration;

use millwright_firmware_sim::client::{Credentials, DeviceConfig, DeviceError, run_device};
use millwright_firmware_sim::device::IN_FLIGHT_MAX;
use millwright_firmware_sim::machine::{Machine, MachineKind};
use millwright_wire::Frame;
use peer::Peer;
use rumqttc::mqttbytes::v4::{Packet, Publish};
use tokio::sync::oneshot;

/// Faster than any wall clock: every sample is due at once.
const AT_ONCE: f64 = 1e9;

fn config(peer: &Peer, samples: u64) -> DeviceConfig {
    DeviceConfig {
        speed: AT_ONCE,
        samples_per_frame: 10,
        samples_max: Some(samples),
        start_us: 1_700_000_000_000_000,
        drain: Duration::from_secs(60),
        ..DeviceConfig::new("127.0.0.1", peer.port(), "pump-1", Machine::new(MachineKind::Pump, 1))
    }
}

fn sequence(publish: &Publish) -> u64 {
    Frame::decode(&publish.payload).unwrap().sequence()
}

// Every sample arrives once, in order, with the values of the machine at `k · interval` and the device time of it,
// whatever the wall clock did; the device says goodbye when all of them are acknowledged.
#[tokio::test]
async fn samples_arrive_with_their_machine_time() {
    let peer = Peer::bind().await;
    let credentials = Credentials { username: "line-3".to_owned(), password: "secret".to_owned() };
    let config = DeviceConfig {
        credentials: Some(credentials),
        boot_id: 99,
        sample_interval: Duration::from_millis(500),
        ..config(&peer, 55)
    };
    let device = tokio::spawn(run_device(config, pending()));
    let mut session = peer.accept().await;
    let login = session.connect().login.clone().unwrap();
    assert_eq!((login.username.as_str(), login.password.as_str()), ("line-3", "secret"));
    assert!(session.connect().clean_session);
    let mut machine = Machine::new(MachineKind::Pump, 1);
    let names: Vec<&str> = machine.channels().iter().map(|channel| channel.name).collect();
    let mut k = 0;
    for expected in 0..6 {
        let publish = session.publication().await;
        assert_eq!(publish.topic, "mw/v1/telemetry/pump-1");
        let frame = Frame::decode(&publish.payload).unwrap();
        assert_eq!((frame.asset(), frame.boot_id(), frame.sequence()), ("pump-1", 99, expected));
        assert_eq!(frame.channels(), names);
        for (index, row) in frame.samples().rows().enumerate() {
            assert_eq!(frame.sample_us(index), Some(1_700_000_000_000_000 + k * 500_000));
            assert_eq!(row.collect::<Vec<f32>>()[..], machine.sample(k as f64 * 0.5));
            k += 1;
        }
        session.acknowledge(&publish).await;
    }
    assert_eq!(k, 55);
    assert!(matches!(session.packet().await, Some(Packet::Disconnect)));
    let report = device.await.unwrap().unwrap();
    assert_eq!((report.counters.sampled, report.counters.published), (55, 6));
    assert_eq!((report.counters.acknowledged, report.counters.dropped), (6, 0));
    assert_eq!((report.connections, report.unacknowledged), (1, 0));
}

// What was published but not acknowledged when the connection broke comes again on the next, in order and with the
// same bytes; a broker that hangs up at once is tried again.
#[tokio::test]
async fn broken_connection_loses_nothing() {
    let peer = Peer::bind().await;
    let device = tokio::spawn(run_device(config(&peer, 200), pending()));
    peer.hang_up().await;
    let mut session = peer.accept().await;
    let mut before = Vec::new();
    for _ in 0..IN_FLIGHT_MAX {
        before.push(session.publication().await);
    }
    for publish in &before[..3] {
        session.acknowledge(publish).await;
    }
    // Each acknowledgement lets another frame go, so that the device has read all three.
    for expected in 16..19 {
        assert_eq!(sequence(&session.publication().await), expected);
    }
    drop(session);
    peer.hang_up().await;
    let mut session = peer.accept().await;
    for expected in 3..20 {
        let publish = session.publication().await;
        assert_eq!(sequence(&publish), expected);
        if let Some(before) = before.get(expected as usize) {
            assert_eq!(publish.payload, before.payload);
        }
        session.acknowledge(&publish).await;
    }
    assert!(matches!(session.packet().await, Some(Packet::Disconnect)));
    let report = device.await.unwrap().unwrap();
    assert_eq!((report.counters.framed, report.counters.acknowledged, report.counters.dropped), (20, 20, 0));
    assert_eq!((report.counters.published, report.counters.resent), (36, 16));
    assert_eq!((report.connections, report.unacknowledged), (2, 0));
}

// Acknowledgements out of order are taken as they come.
#[tokio::test]
async fn acknowledgements_may_come_out_of_order() {
    let peer = Peer::bind().await;
    let device = tokio::spawn(run_device(config(&peer, 1_000), pending()));
    let mut session = peer.accept().await;
    let mut received = 0;
    while received < 100 {
        let mut window = Vec::new();
        while window.len() < IN_FLIGHT_MAX && received < 100 {
            let publish = session.publication().await;
            assert_eq!(sequence(&publish), received);
            window.push(publish);
            received += 1;
        }
        for publish in window.iter().rev() {
            session.acknowledge(publish).await;
        }
    }
    let report = device.await.unwrap().unwrap();
    assert_eq!((report.counters.published, report.counters.acknowledged), (100, 100));
}

// A device that is told to stop sends the frame it was filling and waits for its acknowledgement.
#[tokio::test]
async fn shutdown_drains_the_buffer() {
    let peer = Peer::bind().await;
    let (stop, stopped) = oneshot::channel::<()>();
    // One sample per second, and a frame of ten: without the shutdown nothing would come for ten seconds.
    let config = DeviceConfig { speed: 1.0, samples_max: None, ..config(&peer, 0) };
    let device = tokio::spawn(run_device(config, async {
        let _ = stopped.await;
    }));
    let mut session = peer.accept().await;
    stop.send(()).unwrap();
    let publish = session.publication().await;
    session.acknowledge(&publish).await;
    assert!(matches!(session.packet().await, Some(Packet::Disconnect)));
    let report = device.await.unwrap().unwrap();
    assert_eq!((report.counters.sampled, report.counters.acknowledged, report.unacknowledged), (1, 1, 0));
}

// A broker that never answers holds a shutdown up no longer than the deadline, and what it did not take is reported.
#[tokio::test]
async fn shutdown_has_a_deadline() {
    let peer = Peer::bind().await;
    let config = DeviceConfig { drain: Duration::from_millis(50), ..config(&peer, 20) };
    let report = run_device(config, pending()).await.unwrap();
    assert_eq!((report.connections, report.unacknowledged), (0, 2));
    assert_eq!(report.counters.published, 0);
}

// A configuration that cannot work is refused before anything is sent.
#[tokio::test]
async fn impossible_configurations_are_refused() {
    let peer = Peer::bind().await;
    let good = config(&peer, 1);
    let refused = async |config: DeviceConfig| run_device(config, pending()).await.unwrap_err();
    for interval in [Duration::ZERO, Duration::from_nanos(1_500), Duration::from_secs(4_295)] {
        let error = refused(DeviceConfig { sample_interval: interval, ..good.clone() }).await;
        assert_eq!(error, DeviceError::Interval(interval));
    }
    for speed in [0.0, -1.0, f64::INFINITY] {
        assert_eq!(refused(DeviceConfig { speed, ..good.clone() }).await, DeviceError::Speed(speed));
    }
    let asset = "line/1".to_owned();
    assert!(matches!(refused(DeviceConfig { asset, ..good.clone() }).await, DeviceError::Frame(_)));
    for samples_per_frame in [0, 33] {
        let error = refused(DeviceConfig { samples_per_frame, ..good.clone() }).await;
        assert!(matches!(error, DeviceError::Frame(_)), "{error}");
    }
}
