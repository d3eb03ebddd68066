//! The addresses that the configuration listens on: free, or the running gateway's own, which is then asked how it is.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::rustls::crypto::ring;
use ureq::tls::{TlsConfig, TlsProvider};

use super::{Finding, Patient};
use crate::config::Config;
use crate::config::upstream::UpstreamKind;

const CHECK: &str = "ports";
const HEALTH: &str = "health";
/// How long the gateway may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

pub(super) fn check(patient: &Patient<'_>, show: &mut dyn FnMut(Finding)) {
    let mut free = Vec::new();
    for (place, address) in addresses(patient.config) {
        match bind(&place, address, patient.runs) {
            Ok(()) => free.push(format!("{place} {address}")),
            Err(finding) => show(finding),
        }
    }
    if !free.is_empty() {
        let what = if patient.runs == Some(true) { "held by a gateway, or chosen by the system" } else { "free" };
        show(Finding::ok(CHECK, format!("{what}: {}", free.join(", "))));
    }
    if patient.runs == Some(true) {
        show(health(patient.config));
    }
}

/// All listeners, with where the configuration names them.
fn addresses(config: &Config) -> Vec<(String, SocketAddr)> {
    let broker = &config.broker;
    let mut found = vec![("[broker] listen".to_owned(), Some(broker.listen))];
    let tls = broker.tls.as_ref().and_then(|tls| tls.listen);
    found.push(("[broker.tls] listen".to_owned(), tls));
    if let Some(websocket) = &broker.websocket {
        found.push(("[broker.websocket] listen".to_owned(), websocket.listen));
        found.push(("[broker.websocket] tls_listen".to_owned(), websocket.tls_listen));
    }
    found.push(("[http] listen".to_owned(), Some(config.http.listen)));
    for upstream in &config.upstreams {
        if let UpstreamKind::Zeromq { ack_address } = &upstream.kind {
            for (key, address) in [("address", &upstream.address), ("ack_address", ack_address)] {
                found.push((format!("[[upstream]] {}: {key}", upstream.name), address.parse().ok()));
            }
        }
    }
    found.into_iter().filter_map(|(place, address)| Some((place, address?))).collect()
}

/// Whether a listener is as it should be.
fn bind(place: &str, address: SocketAddr, runs: Option<bool>) -> Result<(), Finding> {
    // The system chooses one.
    if address.port() == 0 {
        return Ok(());
    }
    let fail = |text: String, remedy: &str| Err(Finding::fail(CHECK, format!("{place} {address} {text}"), remedy));
    match (TcpListener::bind(address), runs) {
        (Ok(_), Some(true)) => {
            let remedy = "start the gateway anew if the configuration was changed; else its log says what is wrong";
            Err(Finding::warn(CHECK, format!("{place} {address} is free although a gateway runs"), remedy))
        }
        (Ok(_), _) => Ok(()),
        (Err(error), Some(true)) if error.kind() == io::ErrorKind::AddrInUse => Ok(()),
        (Err(error), _) if error.kind() == io::ErrorKind::AddrInUse => {
            fail("is taken by another program".to_owned(), "end it (`ss -ltnp` shows which), or choose another port")
        }
        (Err(error), _) if error.kind() == io::ErrorKind::AddrNotAvailable => {
            fail("is no address of this machine".to_owned(), "give one of `ip address`, or 0.0.0.0 for all")
        }
        (Err(error), _) if error.kind() == io::ErrorKind::PermissionDenied => fail(
            "may not be used by this user".to_owned(),
            "choose a port from 1024 on, or give the gateway CAP_NET_BIND_SERVICE",
        ),
        (Err(error), _) => fail(error.to_string(), "choose another address"),
    }
}

/// Asks the gateway that runs, by its own port on this machine.
fn health(config: &Config) -> Finding {
    let listen = config.http.listen;
    if listen.port() == 0 {
        return Finding::ok(HEALTH, "not asked: its port was chosen by the system; `millwright status` does");
    }
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let scheme = if config.http.tls.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{}/healthz", SocketAddr::new(ip, listen.port()));
    match asking().get(&url).call() {
        Ok(answer) if answer.status().as_u16() == 200 => Finding::ok(HEALTH, format!("{url} says that all is well")),
        Ok(answer) => Finding::fail(
            HEALTH,
            format!("{url} answers {}", answer.status().as_u16()),
            "`millwright status` says what is wrong",
        ),
        Err(error) => Finding::fail(HEALTH, format!("{url} does not answer: {error}"), "look at the gateway's log"),
    }
}

/// Does not ask who answers: it is this machine, which may not have the authority's certificate, and nothing secret is sent.
/// What the gateway serves with is looked at as files.
fn asking() -> ureq::Agent {
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .disable_verification(true)
        .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()));
    let settings =
        ureq::Agent::config_builder().timeout_global(Some(ANSWER)).http_status_as_error(false).tls_config(tls.build());
    ureq::Agent::new_with_config(settings.build())
}
