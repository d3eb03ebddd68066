//! Who may come in by HTTP: signing in, roles, forged requests, foreign names, TLS, and connections that do nothing.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use harness::gateway::{self, Gateway};
use harness::http::Http;
use harness::wait_for;
use serde_json::{Value, json};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto};

use crate::PROGRAM;
use crate::delivery::hash_of;

const PASSWORD: &str = "nine red tractors";
const SESSION: &str = "/api/v1/session";
const PROMOTE: &str = "/api/v1/models/pump/1/promote";

/// `[[http.user]]` of each role: `vera` the viewer, `enno` the engineer.
fn users() -> String {
    let hash = hash_of(PASSWORD);
    let user = |name: &str, role: &str| {
        format!("[[http.user]]\nname = \"{name}\"\npassword_hash = \"{hash}\"\nrole = \"{role}\"\n")
    };
    user("vera", "viewer") + &user("enno", "engineer")
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    /// A header by its name in lower case.
    fn header(&self, name: &str) -> Option<&str> {
        let pairs = self.head.lines().filter_map(|line| line.split_once(": "));
        pairs.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    /// Status and code of an error.
    fn error(&self) -> (u16, String) {
        (self.status, self.json()["error"]["code"].as_str().unwrap_or_default().to_owned())
    }

    /// The cookie as a browser sends it back.
    fn cookie(&self) -> String {
        self.header("set-cookie").unwrap().split(';').next().unwrap().to_owned()
    }
}

/// A request as it is written, with every header as the test wants it.
#[derive(Clone)]
struct Request {
    line: String,
    headers: Vec<(&'static str, String)>,
    body: String,
}

impl Request {
    fn new(method: &str, path: &str) -> Request {
        Request { line: format!("{method} {path} HTTP/1.1"), headers: Vec::new(), body: String::new() }
    }

    fn get(path: &str) -> Request {
        Request::new("GET", path)
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Request {
        self.headers.push((name, value.into()));
        self
    }

    fn json(mut self, body: &Value) -> Request {
        self.body = body.to_string();
        self.with("Content-Type", "application/json")
    }

    fn text(&self) -> String {
        let mut text = format!("{}\r\nConnection: close\r\nContent-Length: {}\r\n", self.line, self.body.len());
        if !self.headers.iter().any(|(name, _)| *name == "Host") {
            text.push_str("Host: 127.0.0.1\r\n");
        }
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        format!("{text}\r\n{}", self.body)
    }

    fn send(&self, mut stream: impl Read + Write) -> Answer {
        stream.write_all(self.text().as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head: head.to_owned(), body: body.to_owned() }
    }

    fn to(&self, gateway: &Gateway) -> Answer {
        self.send(connect(gateway.http))
    }
}

fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(harness::PATIENCE)).unwrap();
    stream
}

/// What a page has that was signed in: its cookie and its token.
#[derive(Clone)]
struct Page {
    cookie: String,
    csrf: String,
}

impl Page {
    fn token(gateway: &Gateway) -> String {
        Request::get(SESSION).to(gateway).json()["csrf"].as_str().unwrap().to_owned()
    }

    fn attempt(gateway: &Gateway, user: &str, password: &str) -> Answer {
        let body = json!({"user": user, "password": password});
        Request::new("POST", SESSION).with("X-CSRF-Token", Page::token(gateway)).json(&body).to(gateway)
    }

    fn sign_in(gateway: &Gateway, user: &str) -> Page {
        let answer = Page::attempt(gateway, user, PASSWORD);
        assert_eq!(answer.status, 200, "{}", answer.body);
        Page { cookie: answer.cookie(), csrf: answer.json()["csrf"].as_str().unwrap().to_owned() }
    }

    fn asks(&self, method: &str, path: &str) -> Request {
        Request::new(method, path).with("Cookie", self.cookie.clone()).with("X-CSRF-Token", self.csrf.clone())
    }
}

// Where there are users nobody sees anything without signing in. A session is a cookie that no script reads and no other page
// sends; it opens what its role may, and ends with signing out.
#[test]
fn a_session_opens_what_its_role_may() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(PROGRAM, dir.path(), &users()).unwrap();
    for path in ["/api/v1/status", "/api/v1/models", "/metrics"] {
        assert_eq!(Request::get(path).to(&gateway).error(), (401, "not-signed-in".to_owned()), "{path}");
    }
    assert_eq!(Request::get("/healthz").to(&gateway).status, 200);
    let before = Request::get(SESSION).to(&gateway).json();
    assert!(before["sign_in_required"] == true && before["user"].is_null() && before["expires_us"].is_null());

    let answer = Page::attempt(&gateway, "vera", PASSWORD);
    let cookie = answer.header("set-cookie").unwrap();
    for attribute in ["Path=/", "HttpOnly", "SameSite=Strict", "Max-Age=604800"] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    assert!(!cookie.contains("Secure"), "there is no TLS: {cookie}");
    assert_eq!(answer.json()["user"], json!({"name": "vera", "role": "viewer"}));
    assert!(answer.json()["expires_us"].as_i64().is_some());

    let vera = Page { cookie: answer.cookie(), csrf: answer.json()["csrf"].as_str().unwrap().to_owned() };
    assert_ne!(vera.csrf, before["csrf"].as_str().unwrap());
    assert_eq!(vera.asks("GET", "/api/v1/status").to(&gateway).status, 200);
    // A viewer cannot promote; an engineer can ask for it, though there is no such model.
    let promote = json!({"reason": "it is better"});
    let refused = vera.asks("POST", PROMOTE).json(&promote).to(&gateway);
    assert_eq!(refused.error(), (403, "not-allowed".to_owned()), "{}", refused.body);
    let enno = Page::sign_in(&gateway, "enno");
    let asked = enno.asks("POST", PROMOTE).json(&promote).to(&gateway);
    assert!(![401, 403].contains(&asked.status), "{} {}", asked.status, asked.body);

    let out = vera.asks("DELETE", SESSION).to(&gateway);
    assert!(out.status == 204 && out.header("set-cookie").unwrap().contains("Max-Age=0"), "{}", out.head);
    assert_eq!(vera.asks("GET", "/api/v1/status").to(&gateway).status, 401);
    assert_eq!(enno.asks("GET", "/api/v1/status").to(&gateway).status, 200, "others stay");
}

// A session that is not used ends when the configuration says.
#[test]
fn a_session_ends_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let config = format!("[http]\nlisten = \"127.0.0.1:0\"\nsession_idle_s = 1\n{}", users());
    let gateway = Gateway::start(PROGRAM, dir.path(), &config).unwrap();
    let vera = Page::sign_in(&gateway, "vera");
    wait_for("the session to end", || {
        // Asking would keep it in use.
        std::thread::sleep(Duration::from_millis(1_100));
        (vera.asks("GET", "/api/v1/status").to(&gateway).status == 401).then_some(())
    })
    .unwrap();
    // Who has no session any more is told so, not that the token is wrong.
    assert_eq!(vera.asks("POST", PROMOTE).to(&gateway).error(), (401, "not-signed-in".to_owned()));
}

// Wrong passwords are refused alike for users that are and users that are not; after some the next are not looked at, and the
// gateway says for how long. Who has signed in notices nothing. Neither passwords nor what may be one get into the log.
#[test]
fn passwords_cannot_be_guessed() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start_logging(PROGRAM, dir.path(), &users(), "trace,tract=off").unwrap();
    let vera = Page::sign_in(&gateway, "vera");
    let wrong = Page::attempt(&gateway, "vera", "a wrong guess");
    let unknown = Page::attempt(&gateway, "s3cret-in-the-wrong-field", PASSWORD);
    assert_eq!(wrong.error(), (401, "wrong-login".to_owned()));
    assert_eq!((wrong.body, unknown.status), (unknown.body, 401));
    let answer = wait_for("the back-off", || {
        let answer = Page::attempt(&gateway, "vera", "a wrong guess");
        (answer.status != 401).then_some(answer)
    })
    .unwrap();
    assert_eq!(answer.error(), (429, "too-many-attempts".to_owned()));
    assert!(answer.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(Page::attempt(&gateway, "enno", PASSWORD).status, 429, "the right one is not looked at either");
    assert_eq!(vera.asks("GET", "/api/v1/status").to(&gateway).status, 200);
    let log = gateway.log();
    for secret in [PASSWORD, "a wrong guess", "s3cret-in-the-wrong-field", &vera.cookie[11..], &vera.csrf, "$argon2id$"]
    {
        assert!(!log.contains(secret), "the log holds {secret:?}");
    }
    assert!(log.contains("a wrong password over HTTP"), "{log}");
}

// A request that changes something is refused without the session's own token, from another page, and as a form; so is every
// request by a name that is not the gateway's.
#[test]
fn forged_requests_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = format!("[http]\nlisten = \"127.0.0.1:0\"\nhosts = [\"gw-1.plant.example\"]\n{}", users());
    let gateway = Gateway::start(PROGRAM, dir.path(), &config).unwrap();
    let enno = Page::sign_in(&gateway, "enno");
    let sent = |request: Request| request.to(&gateway).error();
    let body = json!({"reason": "forged"});
    let signed = || Request::new("POST", PROMOTE).with("Cookie", enno.cookie.clone());
    let genuine = || signed().with("X-CSRF-Token", enno.csrf.clone());
    assert_eq!(sent(signed().json(&body)), (403, "csrf".to_owned()));
    // The token of visitors, and that of another session.
    for other in [Page::token(&gateway), Page::sign_in(&gateway, "enno").csrf, String::new()] {
        assert_eq!(sent(signed().with("X-CSRF-Token", other).json(&body)), (403, "csrf".to_owned()));
    }
    for origin in ["https://evil.example", "null", "http://127.0.0.1:1"] {
        assert_eq!(sent(genuine().with("Origin", origin).json(&body)), (403, "foreign-origin".to_owned()), "{origin}");
    }
    for site in ["cross-site", "same-site"] {
        assert_eq!(sent(genuine().with("Sec-Fetch-Site", site).json(&body)), (403, "foreign-origin".to_owned()));
    }
    let form = genuine().with("Content-Type", "application/x-www-form-urlencoded");
    assert_eq!(sent(form), (415, "wrong-content-type".to_owned()));
    let own = genuine().with("Origin", "http://127.0.0.1").with("Sec-Fetch-Site", "same-origin").json(&body);
    assert!(![401, 403, 415].contains(&own.to(&gateway).status));

    for host in ["evil.example", "evil.example:8080", "gw-1.plant.example.evil"] {
        for path in ["/api/v1/session", "/healthz", "/"] {
            assert_eq!(sent(Request::get(path).with("Host", host)), (421, "wrong-host".to_owned()), "{host} {path}");
        }
    }
    for host in ["localhost", "127.0.0.1:8080", "[::1]", "GW-1.plant.example:443"] {
        assert_eq!(Request::get(SESSION).with("Host", host).to(&gateway).status, 200, "{host}");
    }
    // Another page cannot even look.
    assert_eq!(sent(Request::get(SESSION).with("Sec-Fetch-Site", "cross-site")), (403, "foreign-origin".to_owned()));
}

// Without users, on this machine alone, everybody is `local`; what changes something takes the token all the same, so that no
// page of another site can do it.
#[test]
fn loopback_without_users_is_open_but_not_to_pages() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(PROGRAM, dir.path(), "").unwrap();
    let session = Request::get(SESSION).to(&gateway).json();
    assert_eq!(session["sign_in_required"], false);
    assert_eq!(session["user"], json!({"name": "local", "role": "admin"}));
    assert_eq!(Request::get("/metrics").to(&gateway).status, 200);
    let body = json!({"reason": "forged"});
    assert_eq!(Request::new("POST", PROMOTE).json(&body).to(&gateway).error(), (403, "csrf".to_owned()));
    let token = session["csrf"].as_str().unwrap();
    let asked = Request::new("POST", PROMOTE).with("X-CSRF-Token", token).json(&body).to(&gateway);
    assert!(![401, 403].contains(&asked.status), "{} {}", asked.status, asked.body);
    assert_eq!(Page::attempt(&gateway, "vera", PASSWORD).error(), (409, "not-required".to_owned()));
}

// A body that is too long, is no JSON, or has what nobody asked for is refused in the API's shape.
#[test]
fn bodies_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(PROGRAM, dir.path(), &users()).unwrap();
    let token = Page::token(&gateway);
    let post = |body: String| {
        let request = Request::new("POST", SESSION).with("X-CSRF-Token", token.clone());
        Request { body, ..request.with("Content-Type", "application/json") }.to(&gateway).error()
    };
    assert_eq!(post("x".repeat(64 * 1024 + 1)), (413, "too-large".to_owned()));
    assert_eq!(post("x".repeat(64 * 1024)), (400, "bad-request".to_owned()));
    assert_eq!(post("{\"user\": \"vera\"}".to_owned()), (400, "bad-request".to_owned()));
    let patch = Request::new("PATCH", SESSION).with("X-CSRF-Token", token.clone()).to(&gateway);
    assert_eq!(patch.error(), (405, "wrong-method".to_owned()));
    assert_eq!(Request::get("/api/v1/nothing").to(&gateway).error(), (404, "not-found".to_owned()));
}

// An address, or headers, of much more than 64 KiB are not read: the answer says so, and the gateway goes on. What is just short
// enough is answered in the API's shape.
#[test]
fn addresses_and_headers_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(PROGRAM, dir.path(), &users()).unwrap();
    let export = |bytes: usize| format!("/api/v1/export?from={}", "x".repeat(bytes));
    let headers = Request::get(SESSION).with("Accept", "x".repeat(200_000));
    for (request, refusal) in [(Request::get(&export(65_530)), "414"), (headers, "431")] {
        assert_eq!(wait_for("an answer that is not lost", || refused(&request, gateway.http)).unwrap(), refusal);
    }
    // vera:nine red tractors
    let long = Request::get(&export(64_000)).with("Authorization", "Basic dmVyYTpuaW5lIHJlZCB0cmFjdG9ycw==");
    assert_eq!(long.to(&gateway).error(), (400, "bad-query".to_owned()));
}

/// The status of an answer. `None` if the gateway had hung up, with some of the request not read, before the answer was read: the
/// system drops it then.
fn refused(request: &Request, addr: SocketAddr) -> Option<String> {
    let mut stream = connect(addr);
    let _ = stream.write_all(request.text().as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).ok()?.split(' ').nth(1).map(str::to_owned)
}

// Programs read with HTTP Basic, and change nothing by it: a browser would repeat it for any page.
#[test]
fn programs_read_with_basic() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(PROGRAM, dir.path(), &users()).unwrap();
    // vera:nine red tractors, vera:guess
    let right = "Basic dmVyYTpuaW5lIHJlZCB0cmFjdG9ycw==";
    let wrong = "Basic dmVyYTpndWVzcw==";
    let figures = Request::get("/metrics").with("Authorization", right).to(&gateway);
    assert!(figures.status == 200 && figures.body.contains("millwright_"), "{}", figures.head);
    let asked = Request::get("/metrics").to(&gateway);
    assert!(asked.status == 401 && asked.header("www-authenticate").unwrap().starts_with("Basic "), "{}", asked.head);
    let refused = Request::get("/metrics").with("Authorization", wrong).to(&gateway);
    assert_eq!(refused.error(), (401, "wrong-login".to_owned()));
    // A page's own requests never have a browser ask in a window of its own.
    let quiet = Request::get("/api/v1/status").to(&gateway);
    assert!(!quiet.header("www-authenticate").unwrap().starts_with("Basic"), "{}", quiet.head);
    let token = Page::token(&gateway);
    let change = Request::new("POST", PROMOTE).with("Authorization", right).with("X-CSRF-Token", token);
    assert_eq!(change.to(&gateway).error(), (401, "not-signed-in".to_owned()));

    let status = |password: &str| {
        let http = gateway.http.to_string();
        let arguments = ["status", "--json", "--http", &http, "--user", "vera"];
        Command::new(PROGRAM).args(arguments).env("MILLWRIGHT_PASSWORD", password).output().unwrap()
    };
    assert!(status(PASSWORD).status.success());
    let refused = status("guess");
    assert_eq!(refused.status.code(), Some(1));
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("answers 401") && text.contains("--user"), "{text}");
}

// Every answer tells the browser what to refuse, pages and errors too.
#[test]
fn every_answer_has_its_headers() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(PROGRAM, dir.path(), &users()).unwrap();
    for path in ["/", "/healthz", "/metrics", "/api/v1/status", SESSION, "/nothing"] {
        let answer = Request::get(path).to(&gateway);
        let has = |name: &str, text: &str| {
            let value = answer.header(name).unwrap_or_default();
            assert!(value.contains(text), "{path}: {name}: {value}");
        };
        has("content-security-policy", "default-src 'none'; script-src 'self'; style-src 'self'");
        has("content-security-policy", "frame-ancestors 'none'");
        has("x-content-type-options", "nosniff");
        has("referrer-policy", "no-referrer");
        has("cross-origin-opener-policy", "same-origin");
        has("cross-origin-resource-policy", "same-origin");
        has("permissions-policy", "camera=()");
        assert!(answer.header("strict-transport-security").is_none(), "{path}: there is no TLS");
    }
    assert_eq!(Request::get(SESSION).to(&gateway).header("cache-control"), Some("no-store"));
}

fn make_certificates(dir: &Path, folder: &str, hosts: &[&str]) {
    let folder = dir.join(folder).display().to_string();
    let server: Vec<&str> = hosts.iter().flat_map(|host| ["--host", host]).collect();
    for arguments in [&["ca"][..], &[&["server"], server.as_slice()].concat()] {
        let output = gateway::run(PROGRAM, &[&["cert"], arguments, &["--dir", &folder]].concat()).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A connection over TLS that trusts one authority.
fn secure(ca: &Path, addr: SocketAddr) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), connect(addr))
}

const TLS: &str = "[http.tls]\ncertificate = \"tls/server.crt\"\nkey = \"tls/server.key\"\n";

// Over TLS cookies never leave it, and browsers are told to stay. Who trusts another authority does not connect, who speaks
// no TLS gets nothing, and a new certificate serves as soon as it is told of.
#[test]
fn over_tls() {
    let dir = tempfile::tempdir().unwrap();
    make_certificates(dir.path(), "tls", &["localhost", "127.0.0.1"]);
    make_certificates(dir.path(), "other", &["localhost", "127.0.0.1"]);
    let gateway = Gateway::start(PROGRAM, dir.path(), &format!("{TLS}{}", users())).unwrap();
    let (ours, theirs) = (dir.path().join("tls/ca.crt"), dir.path().join("other/ca.crt"));
    let send = |request: Request| request.send(secure(&ours, gateway.http));
    let session = send(Request::get(SESSION));
    assert!(session.header("strict-transport-security").is_some(), "{}", session.head);
    let token = session.json()["csrf"].as_str().unwrap().to_owned();
    let body = json!({"user": "vera", "password": PASSWORD});
    let signed = send(Request::new("POST", SESSION).with("X-CSRF-Token", token).json(&body));
    assert!(signed.header("set-cookie").unwrap().ends_with("; Secure"), "{}", signed.head);
    assert_eq!(send(Request::get("/api/v1/status").with("Cookie", signed.cookie())).status, 200);

    let text = |ca: &Path| {
        let mut stream = secure(ca, gateway.http);
        stream.flush().and_then(|()| stream.write_all(b"GET /healthz HTTP/1.1\r\n")).map_err(|error| error.to_string())
    };
    assert!(text(&ours).is_ok());
    let refused = text(&theirs).unwrap_err();
    assert!(refused.contains("invalid peer certificate"), "{refused}");
    let mut plain = connect(gateway.http);
    plain.write_all(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");

    let http = format!("https://{}", gateway.http);
    let status = |ca: &Path| {
        let arguments = ["status", "--http", &http, "--user", "vera", "--cafile", &ca.display().to_string()];
        Command::new(PROGRAM).args(arguments).env("MILLWRIGHT_PASSWORD", PASSWORD).output().unwrap()
    };
    let output = status(&ours);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(status(&theirs).status.code(), Some(1));

    for file in ["server.crt", "server.key"] {
        std::fs::copy(dir.path().join("other").join(file), dir.path().join("tls").join(file)).unwrap();
    }
    gateway.signal("HUP").unwrap();
    wait_for("the new certificate", || text(&theirs).is_ok().then_some(())).unwrap();
}

// What would let strangers in from the network, or send passwords over it as they are, is a mistake that is told before
// anything starts; so are files that cannot serve.
#[test]
fn the_network_takes_users_and_tls() {
    let dir = tempfile::tempdir().unwrap();
    let check = |text: &str| {
        let config = gateway::write_config(dir.path(), text).unwrap().display().to_string();
        let output = gateway::run(PROGRAM, &["check-config", &config]).unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let listen = "[http]\nlisten = \"0.0.0.0:8443\"\n";
    let (status, text) = check(listen);
    assert!(
        status == Some(2) && text.contains("nobody has to sign in") && text.contains("millwright passwd"),
        "{text}"
    );
    let users = users();
    let (status, text) = check(&format!("{listen}{users}"));
    assert!(status == Some(2) && text.contains("passwords would cross the network") && text.contains("[http.tls]"));
    let (status, text) = check(&format!("{listen}{TLS}{users}"));
    assert!(status == Some(2) && text.contains("server.crt cannot be read"), "{text}");
    make_certificates(dir.path(), "tls", &["localhost"]);
    assert_eq!(check(&format!("{listen}{TLS}{users}")), (Some(0), String::new()));
    assert_eq!(check(&format!("{listen}allow_plain = true\n{users}")), (Some(0), String::new()));
    let (status, text) = check(&format!("{listen}allow_network = true\n{TLS}{users}"));
    assert!(status == Some(2) && text.contains("[http] allow_network") && text.contains("docs/SECURITY.md"), "{text}");
}

/// How many connections of these the gateway still holds open.
fn open(connections: &mut [TcpStream]) -> usize {
    let is_open = |stream: &mut TcpStream| {
        stream.set_nonblocking(true).unwrap();
        match stream.read(&mut [0]) {
            Ok(bytes) => bytes > 0,
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        }
    };
    connections.iter_mut().filter_map(|stream| is_open(stream).then_some(())).count()
}

// Clients that say nothing, or stop in the middle, take no place from those who ask, not even when they hold all of them: what
// is asked is answered sooner than a silent client would be cut off.
#[test]
fn silent_clients_keep_nobody_out() {
    let dir = tempfile::tempdir().unwrap();
    let config = "[http]\nlisten = \"127.0.0.1:0\"\nmax_connections_per_network = 256\n";
    let gateway = Gateway::start(PROGRAM, dir.path(), config).unwrap();
    let mut silent = Vec::new();
    for n in 0..264 {
        let mut stream = connect(gateway.http);
        let part: &[u8] = if n % 2 == 0 { b"" } else { b"GET /healthz HTTP/1.1\r\nHost: 12" };
        // Those that came first may be gone already.
        let _ = stream.write_all(part);
        silent.push(stream);
    }
    let begin = Instant::now();
    for _ in 0..5 {
        assert_eq!(Request::get("/healthz").to(&gateway).status, 200);
    }
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(9), "silent clients held others up for {took:?}");
    // And left to themselves they are all cut off.
    wait_for("silent clients to be cut off", || (open(&mut silent) == 0).then_some(())).unwrap();
}

// Who watches keeps the place, however many do and whatever else comes; a hundred fit. Signing out ends what that session watches.
#[test]
fn a_hundred_watch_undisturbed() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(PROGRAM, dir.path(), &users()).unwrap();
    let (vera, enno) = (Page::sign_in(&gateway, "vera"), Page::sign_in(&gateway, "enno"));
    let watch = |page: &Page| Http::new(gateway.http).with("Cookie", &page.cookie).events("/api/v1/live").unwrap();
    let mut watching: Vec<_> = (0..100).map(|_| watch(&vera)).collect();
    let mut other = watch(&enno);
    let silent: Vec<TcpStream> = (0..110).map(|_| connect(gateway.http)).collect();
    for _ in 0..5 {
        assert_eq!(vera.asks("GET", "/api/v1/status").to(&gateway).status, 200);
    }
    drop(silent);
    for watcher in &mut watching {
        watcher.next_event().unwrap();
    }
    assert_eq!(vera.asks("DELETE", SESSION).to(&gateway).status, 204);
    for mut watcher in watching {
        while watcher.next_event().is_ok() {}
    }
    other.next_event().unwrap();
    assert_eq!(enno.asks("GET", "/api/v1/status").to(&gateway).status, 200);
}

// One network has so many connections and no more; its silent ones make room for its own.
#[test]
fn a_network_has_its_share() {
    let dir = tempfile::tempdir().unwrap();
    let config = "[http]\nlisten = \"127.0.0.1:0\"\nmax_connections_per_network = 8\n";
    let gateway = Gateway::start(PROGRAM, dir.path(), config).unwrap();
    let mut many: Vec<TcpStream> = (0..40).map(|_| connect(gateway.http)).collect();
    wait_for("the rest to be turned away", || (open(&mut many) <= 8).then_some(())).unwrap();
    wait_for("a place among its own", || {
        let mut stream = connect(gateway.http);
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.starts_with("HTTP/1.1 200").then_some(())
    })
    .unwrap();
}
