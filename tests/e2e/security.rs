//! Security of the program as users run it: certificates made and replaced, and what never reaches a log.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use harness::client::{CONNACK, Client, Connect, connect_body, packet, publish_body};
use harness::gateway::{self, Gateway};
use harness::wait_for;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto};

use crate::PROGRAM;
use crate::delivery::hash_of;

const TLS: &str = "[broker.tls]\nlisten = \"127.0.0.1:0\"\ncertificate = \"tls/server.crt\"\nkey = \"tls/server.key\"\n\
                   client_ca = \"tls/ca.crt\"\nclient_certificate = \"optional\"\n";

fn cert(dir: &Path, arguments: &[&str]) -> Output {
    let folder = dir.join("tls").display().to_string();
    gateway::run(PROGRAM, &[&["cert"], arguments, &["--dir", &folder]].concat()).unwrap()
}

fn make(dir: &Path, arguments: &[&str]) {
    let output = cert(dir, arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn certificates(dir: &Path) {
    make(dir, &["ca"]);
    make(dir, &["server", "--host", "localhost", "--host", "127.0.0.1"]);
    make(dir, &["client", "press-7"]);
}

type Secure = StreamOwned<ClientConnection, TcpStream>;

/// A connection over TLS that trusts the folder's authority and shows a client's certificate, if one is named.
fn secure(dir: &Path, addr: SocketAddr, own: Option<&str>) -> Secure {
    let file = |name: &str| dir.join("tls").join(name);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(file("ca.crt")).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match own {
        None => config.with_no_client_auth(),
        Some(name) => {
            let chain = vec![CertificateDer::from_pem_file(file(&format!("{name}.crt"))).unwrap()];
            let key = PrivateKeyDer::from_pem_file(file(&format!("{name}.key"))).unwrap();
            config.with_client_auth_cert(chain, key).unwrap()
        }
    };
    let connection = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap();
    let socket = TcpStream::connect(addr).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    StreamOwned::new(connection, socket)
}

fn answer(stream: &mut Secure, bytes: &[u8]) -> [u8; 4] {
    stream.write_all(bytes).unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).unwrap();
    answer
}

// `millwright cert` makes what TLS and certificates of clients need; a client is known by its certificate's name and may do what
// the rules for it say.
#[test]
fn certificates_of_ones_own() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let rules = "[[broker.access]]\ncertificates = [\"press-7\"]\npublish = [\"mw/v1/telemetry/%u/#\"]\n";
    let gateway = Gateway::start(PROGRAM, dir.path(), &format!("{TLS}{rules}")).unwrap();
    let addr = gateway.over("tls").unwrap();
    let hello = packet(0x10, &connect_body(&Connect::new("c")));
    // Without a certificate and without a password: not authorised. [MQTT-3.2.2.3]
    let refused = answer(&mut secure(dir.path(), addr, None), &hello);
    assert!(refused[0] >> 4 == CONNACK && [4, 5].contains(&refused[3]), "{refused:?}");
    let mut press = secure(dir.path(), addr, Some("press-7"));
    assert_eq!(answer(&mut press, &hello), [CONNACK << 4, 2, 0, 0]);
    let publish = |topic: &str| packet(0x32, &publish_body(topic, Some(1), b"{}"));
    assert_eq!(answer(&mut press, &publish("mw/v1/telemetry/press-7/json")), [0x40, 2, 0, 1]);
    press.write_all(&publish("mw/v1/telemetry/press-8/json")).unwrap();
    assert_eq!(press.read(&mut [0]).unwrap_or(0), 0, "the connection ends");
}

// Nothing is overwritten, names that are no names are refused, and an authority comes first.
#[test]
fn certificates_are_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let told = |arguments: &[&str]| {
        let output = cert(dir.path(), arguments);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (status, text) = told(&["server", "--host", "gw-1.local"]);
    assert!(status == Some(1) && text.contains("`millwright cert ca` makes an authority first"), "{text}");
    certificates(dir.path());
    for arguments in [&["ca"][..], &["server", "--host", "gw-1.local"], &["client", "press-7"]] {
        let (status, text) = told(arguments);
        assert!(status == Some(1) && text.contains("there already"), "{text}");
    }
    for name in ["../press", "a/b", "", ".hidden", "a+b"] {
        assert_eq!(told(&["client", name]).0, Some(2), "{name}");
    }
    use std::os::unix::fs::PermissionsExt;
    for key in ["ca.key", "server.key", "press-7.key"] {
        let mode = std::fs::metadata(dir.path().join("tls").join(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
}

// What is wrong with certificates is told by `check-config` and at the start, with the file and the remedy.
#[test]
fn wrong_certificates_are_told() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let server_key = dir.path().join("tls/server.key");
    let sound = std::fs::read(&server_key).unwrap();
    let config = gateway::write_config(dir.path(), TLS).unwrap().display().to_string();
    let check = || gateway::run(PROGRAM, &["check-config", &config]).unwrap();
    assert!(check().status.success());
    let wrong = [
        ("is not the key of", std::fs::read(dir.path().join("tls/press-7.key")).unwrap()),
        ("no PKCS#8, SEC1 or PKCS#1 key", b"hello".to_vec()),
        (
            "it is encrypted",
            b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n".to_vec(),
        ),
    ];
    for (told, bytes) in wrong {
        std::fs::write(&server_key, bytes).unwrap();
        let output = check();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && text.contains(told) && text.contains("server.key"), "{text}");
        let output = gateway::run(PROGRAM, &["run", "--config", &config]).unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && text.contains(told), "{text}");
    }
    std::fs::remove_file(&server_key).unwrap();
    let text = String::from_utf8_lossy(&check().stderr).into_owned();
    assert!(text.contains("cannot be read"), "{text}");
    std::fs::write(&server_key, sound).unwrap();
    assert!(check().status.success());
}

// SIGHUP has new certificates serve at once; who is connected stays.
#[test]
fn certificates_are_renewed_while_running() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let gateway = Gateway::start(PROGRAM, dir.path(), TLS).unwrap();
    let addr = gateway.over("tls").unwrap();
    let hello = packet(0x10, &connect_body(&Connect::new("c")));
    let served = || {
        let mut stream = secure(dir.path(), addr, Some("press-7"));
        answer(&mut stream, &hello);
        (stream.conn.peer_certificates().unwrap()[0].to_vec(), stream)
    };
    let (before, _) = served();
    let mut stays = secure(dir.path(), addr, Some("press-7"));
    answer(&mut stays, &packet(0x10, &connect_body(&Connect::new("stays"))));
    for name in ["server.crt", "server.key"] {
        std::fs::remove_file(dir.path().join("tls").join(name)).unwrap();
    }
    make(dir.path(), &["server", "--host", "localhost"]);
    gateway.signal("HUP").unwrap();
    wait_for("the new certificate", || (served().0 != before).then_some(())).unwrap();
    assert!(gateway.log().contains("new certificates serve"), "{}", gateway.log());
    stays.write_all(&[0xC0, 0]).unwrap();
    let mut pong = [0; 2];
    stays.read_exact(&mut pong).unwrap();
    assert_eq!(pong, [0xD0, 0]);
}

// Whatever is logged, at whatever level: no password, right or wrong, no hash and no private key.
#[test]
fn no_secret_reaches_a_log() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let (password, wrong) = ("correct horse battery", "wrong staple");
    let hash = hash_of(password);
    let users = format!("{TLS}[[broker.user]]\nname = \"ann\"\npassword_hash = \"{hash}\"\n");
    let gateway = Gateway::start_logging(PROGRAM, dir.path(), &users, "trace").unwrap();
    for (password, accepted) in [(password, true), (wrong, false)] {
        let login = Some(("ann", password));
        let connected = Client::connect(gateway.mqtt, &Connect { login, ..Connect::new("c") });
        assert_eq!(connected.is_ok(), accepted);
        let bytes = packet(0x10, &connect_body(&Connect { login, ..Connect::new("s") }));
        answer(&mut secure(dir.path(), gateway.over("tls").unwrap(), None), &bytes);
    }
    // A CONNECT that breaks off in its password.
    let mut bytes = connect_body(&Connect { login: Some(("ann", password)), ..Connect::new("c") });
    bytes.truncate(bytes.len() - 3);
    Client::open(gateway.mqtt).unwrap().send(0x10, &bytes).unwrap();
    gateway.signal("HUP").unwrap();
    wait_for("the certificates", || gateway.log().contains("new certificates serve").then_some(())).unwrap();
    let key = std::fs::read_to_string(dir.path().join("tls/server.key")).unwrap();
    let key = key.lines().nth(1).unwrap();
    let log = gateway.log();
    assert!(log.contains("DEBUG") && log.contains("client refused"), "the log is not the whole log");
    let bytes = |text: &str| format!("{:?}", text.as_bytes()).trim_matches(['[', ']']).to_owned();
    for secret in [password, wrong, &hash, hash.rsplit('$').next().unwrap(), key, &bytes(password), &bytes(wrong)] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

// Who tries what he may not is counted, where an operator sees it.
#[test]
fn attempts_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let user = format!("[[broker.user]]\nname = \"ann\"\npassword_hash = \"{}\"\n", hash_of("correct horse battery"));
    let gateway = Gateway::start(PROGRAM, dir.path(), &format!("{TLS}{user}")).unwrap();
    let count = |name: &str| gateway.status().unwrap()["broker"][name].as_u64().unwrap();
    let names = ["handshakes_failed", "logins_wrong", "denied"];
    assert_eq!(names.map(count), [0, 0, 0]);
    let login = Some(("ann", "wrong staple"));
    assert!(Client::connect(gateway.mqtt, &Connect { login, ..Connect::new("c") }).is_err());
    // Plain MQTT on the port of TLS.
    assert!(Client::connect(gateway.over("tls").unwrap(), &Connect::new("c")).is_err());
    // A user for whom there is no rule.
    let login = Some(("ann", "correct horse battery"));
    let mut ann = Client::connect(gateway.mqtt, &Connect { login, ..Connect::new("c") }).unwrap();
    assert_eq!(ann.subscribe("#", 1).unwrap(), 0x80);
    wait_for("the counts", || (names.map(count) == [1, 1, 1]).then_some(())).unwrap();
}

// `millwright model push` and its like reach a broker over TLS: with the authority named, as a client with a certificate where
// one is wanted, and not at all where the certificate is another authority's.
#[test]
fn models_are_pushed_over_tls() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let rules = "[[broker.access]]\ncertificates = [\"press-7\"]\npublish = [\"mw/v1/gateway/+/command\"]\n\
                 subscribe = [\"mw/v1/model/#\"]\n";
    let gateway = Gateway::start(PROGRAM, dir.path(), &format!("{TLS}{rules}")).unwrap();
    let broker = gateway.over("tls").unwrap().to_string();
    let file = |name: &str| dir.path().join("tls").join(name).display().to_string();
    let order = |more: &[&str]| {
        let base = ["model", "promote", "pump-1", "--version", "1", "--gateway", "gw-1", "--wait", "1"];
        let output = gateway::run(PROGRAM, &[&base[..], &["--broker", &broker], more].concat()).unwrap();
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let (ca, certificate, key) = (file("ca.crt"), file("press-7.crt"), file("press-7.key"));
    let own = ["--tls-cert", &certificate, "--tls-key", &key];
    // There is no such version: the log of the gateway says that the order arrived.
    let told = order(&[&["--tls", "--ca", &ca], &own[..]].concat());
    assert!(told.contains("has not done it"), "{told}");
    wait_for("the order to arrive", || gateway.log().contains("there is no version 1 of `pump-1` here").then_some(()))
        .unwrap_or_else(|error| panic!("{error}\n{}", gateway.log()));
    for (more, reason) in [
        (vec!["--tls"], "does not answer"),
        (vec!["--tls", "--ca", &certificate], "does not answer"),
        (vec!["--tls", "--ca", "no-such-file"], "no-such-file cannot be read"),
        (vec!["--ca", &ca], "--tls"),
        (vec!["--tls", "--tls-cert", &certificate], "--tls-key"),
        (vec![], "does not answer"),
    ] {
        let told = order(&more);
        assert!(told.contains(reason), "{more:?}: {told}");
    }
}
