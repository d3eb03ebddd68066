//! TLS: who is let in by which certificate, and certificates that change.

use std::time::Duration;

use millwright_broker::codec::{Connect, Reason, Version};
use millwright_broker::message::QoS;
use millwright_broker::{
    AccessPattern, AccessRule, AccessRules, BrokerConfig, ClientCertificates, TlsFiles, TlsListen, Users,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::rustls::version;

use crate::common::{Client, Gateway, connect};
use crate::pki::{Authority, TlsClient, Valid, login};

fn tls(files: TlsFiles) -> impl FnOnce(&mut BrokerConfig) {
    |config| config.tls = Some(TlsListen { listen: Some(([127, 0, 0, 1], 0).into()), files })
}

async fn start(files: TlsFiles) -> Gateway {
    Gateway::with(tls(files)).await
}

fn secure(gateway: &Gateway) -> std::net::SocketAddr {
    gateway.broker.addresses().tls.unwrap()
}

// Both versions of MQTT are served over TLS 1.2 and 1.3; messages of several records arrive whole, in both directions.
#[tokio::test(flavor = "multi_thread")]
async fn messages_travel_over_tls() {
    let authority = Authority::new();
    let gateway = start(authority.server(ClientCertificates::Off)).await;
    for tls_version in [&version::TLS12, &version::TLS13] {
        let over = TlsClient::with(&authority, None, &[tls_version]);
        for mqtt in [Version::V311, Version::V5] {
            let mut client = over.open(secure(&gateway), mqtt).await;
            assert_eq!(client.introduce(connect(mqtt, "c")).await.reason, Reason::Success);
            client.subscribe("t/#", QoS::AtLeastOnce).await;
            client.acknowledges = false;
            let large: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
            let mut plain = Client::connect(gateway.addr(), Version::V5, "plain").await;
            for payload in [&b"small"[..], &large] {
                assert_eq!(plain.publish("t/x", QoS::AtLeastOnce, payload).await, Reason::Success);
                assert_eq!(&*client.message().await.payload, payload);
            }
            plain.subscribe("u", QoS::AtMostOnce).await;
            client.publish("u", QoS::AtLeastOnce, &large).await;
            assert_eq!(&*plain.message().await.payload, &*large);
        }
    }
    gateway.assert_serves().await;
}

// Where a certificate is required, only a valid one of the trusted authority leads to an answer; the one that does needs no
// password.
#[tokio::test(flavor = "multi_thread")]
async fn only_trusted_certificates_are_answered() {
    let authority = Authority::new();
    let stranger = Authority::new();
    let revoked = authority.issue_with("revoked", Valid::Now, 77);
    let mut files = authority.server(ClientCertificates::Required);
    files.client_crl = Some(authority.revoke(77));
    let gateway = Gateway::with(|config| {
        tls(files)(config);
        config.users = Some(Users::new());
    })
    .await;
    let good = authority.issue("press-7", Valid::Now);
    for (what, own, answered) in [
        ("none", None, false),
        ("of another authority", Some(stranger.issue("press-7", Valid::Now)), false),
        ("expired", Some(authority.issue("press-7", Valid::Past)), false),
        ("not yet valid", Some(authority.issue("press-7", Valid::Future)), false),
        ("revoked", Some(revoked), false),
        ("named by its DNS name alone", Some(authority.issue("", Valid::Now)), true),
        ("good", Some(good.clone()), true),
    ] {
        for tls_version in [&version::TLS12, &version::TLS13] {
            let client = TlsClient::with(&authority, own.as_ref(), &[tls_version]);
            assert_eq!(client.is_answered(secure(&gateway)).await, answered, "{what}");
        }
        gateway.until("others are served", |gateway| gateway.broker.stats().connections == 0).await;
    }
    assert_eq!(gateway.broker.stats().handshakes_failed, 10);
    let mut client = TlsClient::new(&authority, Some(&good)).open(secure(&gateway), Version::V5).await;
    assert_eq!(client.introduce(connect(Version::V5, "c")).await.reason, Reason::Success);
    // A client that does not trust the gateway's authority says no itself.
    assert!(TlsClient::new(&stranger, Some(&good)).shake(secure(&gateway)).await.is_err());
    client.assert_quiet().await;
}

// A certificate gives the rights of its name among certificates, never those of a user who is called the same; a user name
// beside it has to be proved by its password.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_no_password() {
    let authority = Authority::new();
    let files = authority.server(ClientCertificates::Optional);
    let rule =
        |publish: &str| AccessRule { publish: vec![AccessPattern::parse(publish).unwrap()], ..AccessRule::default() };
    let rules = [
        AccessRule { certificates: vec!["ann".into()], ..rule("devices/%u") },
        AccessRule { users: vec!["ann".into()], ..rule("people/%u") },
    ];
    let gateway = Gateway::with(|config| {
        tls(files)(config);
        let mut users = Users::new();
        users.insert("ann", &millwright_broker::hash_password(b"correct horse").unwrap()).unwrap();
        config.users = Some(users);
        config.authorize = std::sync::Arc::new(AccessRules::new(&rules, []));
    })
    .await;
    let with = TlsClient::new(&authority, Some(&authority.issue("ann", Valid::Now)));
    let without = TlsClient::new(&authority, None);
    let named = |password: Option<&str>| Connect {
        password: password.map(|password| password.as_bytes().to_vec().into()),
        ..login(Version::V5, "c", "ann", "")
    };
    let cases = [
        (&with, connect(Version::V5, "c"), Some((true, false))),
        (&with, named(None), Some((true, false))),
        (&with, named(Some("wrong")), None),
        (&with, named(Some("correct horse")), Some((true, true))),
        (&with, login(Version::V5, "c", "bob", "x"), None),
        (&without, connect(Version::V5, "c"), None),
        (&without, named(None), None),
        (&without, named(Some("correct horse")), Some((false, true))),
    ];
    for (number, (over, wish, rights)) in cases.into_iter().enumerate() {
        let mut client = over.open(secure(&gateway), Version::V5).await;
        // Each its own client identifier: it belongs to whoever had it.
        let wish = Connect { client_id: format!("c-{number}").as_str().into(), ..wish };
        let reason = client.introduce(wish).await.reason;
        let Some((device, person)) = rights else {
            assert_eq!(reason, Reason::BadUserNameOrPassword, "case {number}");
            continue;
        };
        assert_eq!(reason, Reason::Success, "case {number}");
        let expected = |may: bool| if may { Reason::Success } else { Reason::NotAuthorized };
        assert_eq!(client.publish("devices/ann", QoS::AtLeastOnce, b"").await, expected(device), "case {number}");
        assert_eq!(client.publish("people/ann", QoS::AtLeastOnce, b"").await, expected(person), "case {number}");
    }
}

// New files serve without a restart when they are sound; what is not sound changes nothing and is told; who is connected
// stays connected.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_replaced_while_serving() {
    let authority = Authority::new();
    let gateway = start(authority.server(ClientCertificates::Off)).await;
    let over = TlsClient::new(&authority, None);
    let mut client = over.open(secure(&gateway), Version::V5).await;
    client.introduce(connect(Version::V5, "c")).await;
    let served = async || {
        let stream = over.shake(secure(&gateway)).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let first = served().await;
    let refused = |gateway: &Gateway| gateway.broker.tls_state().unwrap().refused;
    let other_key = authority.issue("localhost", Valid::Now).key;
    let good = authority.issue("localhost", Valid::Now);
    for (what, certificate, key) in [
        ("no certificate", "nothing", good.key.as_str()),
        ("half a certificate", &good.certificate[..200], &good.key),
        ("no key", &good.certificate, ""),
        ("another key", &good.certificate, &other_key),
        ("expired", &authority.issue("localhost", Valid::Past).certificate, &good.key),
    ] {
        authority.file("server.crt", certificate);
        authority.file("server.key", key);
        gateway.broker.reload_certificates();
        assert!(refused(&gateway).is_some_and(|told| !told.contains("PRIVATE")), "{what}");
        assert_eq!(served().await, first, "{what}");
    }
    let expired = authority.issue("localhost", Valid::Past);
    authority.install(&expired);
    gateway.broker.reload_certificates();
    assert!(refused(&gateway).unwrap().contains("is valid from"));
    // From here on by itself: the files are watched.
    authority.install(&good);
    gateway.until("the new certificate is taken", |gateway| refused(gateway).is_none()).await;
    assert_ne!(served().await, first);
    client.assert_quiet().await;
}

// A client that stalls in its handshake, or speaks something else, is closed at the deadline or at once, and holds nobody up.
#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_stall_or_are_none() {
    let authority = Authority::new();
    let files = authority.server(ClientCertificates::Off);
    let gateway = Gateway::with(|config| {
        tls(files)(config);
        config.limits.connect_deadline = Duration::from_millis(500);
    })
    .await;
    let record_of_a_hello = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3];
    let mut stalled = Vec::new();
    for bytes in [&[][..], &record_of_a_hello[..1], &record_of_a_hello] {
        let mut stream = TcpStream::connect(secure(&gateway)).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stalled.push(stream);
    }
    for bytes in [&b"\x10\x0f\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x02hi"[..], b"GET / HTTP/1.1\r\n\r\n", &[0xFF; 64]] {
        let mut stream = TcpStream::connect(secure(&gateway)).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        // A reset says the same as an end.
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.is_empty() || answer[0] == 0x15, "{answer:?} is no TLS alert");
    }
    // After the handshake too: the deadline is one for everything before CONNECT.
    let mut silent = TlsClient::new(&authority, None).open(secure(&gateway), Version::V5).await;
    gateway.assert_serves().await;
    assert_eq!(silent.closed().await, None);
    for mut stream in stalled {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    gateway.until("all are gone", |gateway| gateway.broker.stats().connections == 0).await;
    assert!(gateway.broker.stats().handshakes_failed >= 6);
    // A hello on the listener without TLS is no MQTT.
    let mut stream = TcpStream::connect(gateway.addr()).await.unwrap();
    stream.write_all(&record_of_a_hello).await.unwrap();
    assert_eq!(stream.read_to_end(&mut Vec::new()).await.unwrap_or(0), 0);
    gateway.assert_serves().await;
}

// Handshakes beyond a network's rate are turned away before they cost anything.
#[tokio::test(flavor = "multi_thread")]
async fn handshake_floods_are_turned_away() {
    let authority = Authority::new();
    let files = authority.server(ClientCertificates::Off);
    let gateway = Gateway::with(|config| {
        tls(files)(config);
        config.limits.tls_handshakes_per_s_max = 1;
    })
    .await;
    let over = TlsClient::new(&authority, None);
    let mut shaken = 0;
    for _ in 0..50 {
        shaken += usize::from(over.shake(secure(&gateway)).await.is_ok());
    }
    assert!((2..50).contains(&shaken), "{shaken}");
    assert!(gateway.broker.stats().turned_away > 0);
    gateway.assert_serves().await;
}
