//! Under a service manager: what the gateway tells it, over a real datagram socket.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use harness::client::{Client, Connect};
use harness::gateway::Gateway;
use harness::wait_for;
use rusqlite::Connection;

use crate::PROGRAM;

/// The service manager's end.
struct Manager {
    socket: UnixDatagram,
    path: String,
}

impl Manager {
    fn new(dir: &Path) -> Manager {
        let path = dir.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        Manager { socket, path: path.to_str().unwrap().to_owned() }
    }

    fn start(&self, dir: &Path, watchdog: Option<Duration>) -> Gateway {
        let watchdog_us = watchdog.map(|time| time.as_micros().to_string());
        let mut environment = vec![("RUST_LOG", "info,tract=off"), ("NOTIFY_SOCKET", &*self.path)];
        environment.extend(watchdog_us.as_deref().map(|us| ("WATCHDOG_USEC", us)));
        Gateway::start_in(PROGRAM, dir, "", &environment).unwrap()
    }

    /// What comes next.
    fn next(&self) -> String {
        wait_for("the gateway to tell its manager", || self.poll()).unwrap()
    }

    fn poll(&self) -> Option<String> {
        let mut bytes = [0; 4_096];
        match self.socket.recv(&mut bytes) {
            Ok(length) => Some(std::str::from_utf8(&bytes[..length]).unwrap().to_owned()),
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// The next message with this line.
    fn until(&self, line: &str) -> String {
        wait_for(line, || self.poll().filter(|news| news.lines().any(|told| told == line))).unwrap()
    }
}

// The first that a manager hears is that clients are served, and they are; then how the gateway is; while SIGHUP has it
// read certificates, that too, with the time that the manager compares; and at SIGTERM that it stops, before it has.
#[test]
fn a_service_manager_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path());
    let mut gateway = manager.start(dir.path(), None);
    assert_eq!(manager.next(), "READY=1\n");
    TcpStream::connect(gateway.mqtt).unwrap();
    assert_eq!(manager.next(), "STATUS=serving\n");
    gateway.check_serves().unwrap();
    gateway.signal("HUP").unwrap();
    let reloading = manager.until("RELOADING=1");
    let time = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).unwrap();
    assert!(time.parse::<u64>().unwrap() > 0, "{reloading}");
    manager.until("READY=1");
    gateway.signal("TERM").unwrap();
    manager.until("STOPPING=1");
    assert_eq!(gateway.terminate().unwrap(), Some(0));
}

// The watchdog of an idle gateway is fed well within its time, again and again.
#[test]
fn an_idle_gateway_feeds_the_watchdog() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path());
    let watchdog = Duration::from_secs(6);
    let _gateway = manager.start(dir.path(), Some(watchdog));
    manager.until("READY=1");
    for _ in 0..4 {
        let since = Instant::now();
        manager.until("WATCHDOG=1");
        assert!(since.elapsed() < watchdog, "{:?}", since.elapsed());
    }
}

// A disk that does not take a checkpoint for longer than the watchdog's time is no hang: the watchdog is fed all the time, the
// status names the disk, and the gateway is never restarted for it.
#[test]
fn a_slow_disk_does_not_starve_the_watchdog() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path());
    let watchdog = Duration::from_secs(4);
    let mut gateway = manager.start(dir.path(), Some(watchdog));
    manager.until("WATCHDOG=1");
    // Another program holds the file, so a write waits as it would for a card that stalls: 5 s each time.
    let other = Connection::open(gateway.data_dir().join("state.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut publisher = Client::connect(gateway.mqtt, &Connect::new("pump-1")).unwrap();
    publisher.publish("mw/v1/telemetry/pump-1/json", br#"{"values":{"flow":1.0}}"#, false).unwrap();
    let (mut fed, mut told) = (Instant::now(), false);
    wait_for("a checkpoint that failed twice, and its status", || {
        let news = manager.poll().unwrap_or_default();
        if news.contains("WATCHDOG=1") {
            fed = Instant::now();
        }
        assert!(fed.elapsed() < watchdog, "the watchdog was not fed for {:?}", fed.elapsed());
        told |= news.contains("waits for the disk");
        (told && gateway.log().matches("the checkpoint cannot be stored yet").count() >= 2).then_some(())
    })
    .unwrap();
    other.execute_batch("ROLLBACK").unwrap();
    manager.until("STATUS=serving");
    gateway.check_serves().unwrap();
}
