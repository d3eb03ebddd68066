//! `millwright doctor`: it finds what is wrong with a machine and says what to do; a machine that is fit is said to be.

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use harness::gateway::{Gateway, run, write_config};
use serde_json::Value;

use crate::PROGRAM;

/// What was found: check, verdict, text and remedy.
struct Examined {
    status: Option<i32>,
    findings: Vec<(String, String, String)>,
}

impl Examined {
    /// Whether a check ended so, with these words.
    fn has(&self, check: &str, verdict: &str, words: &str) -> bool {
        self.findings.iter().any(|(of, was, text)| of == check && was == verdict && text.contains(words))
    }

    fn failed(&self) -> Vec<&(String, String, String)> {
        self.findings.iter().filter(|(_, verdict, _)| verdict == "fail").collect()
    }
}

fn examine(config: &Path) -> Examined {
    let output = run(PROGRAM, &["doctor", "--config", config.to_str().unwrap(), "--json"]).unwrap();
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or("").to_owned();
    let findings = report["findings"].as_array().unwrap().iter();
    let findings: Vec<_> = findings
        .map(|finding| {
            let words = format!("{} → {}", text(finding, "text"), text(finding, "remedy"));
            assert!(
                (finding["verdict"] == "ok") == finding["remedy"].is_null(),
                "what is not fine says what to do: {finding}"
            );
            (text(finding, "check"), text(finding, "verdict"), words)
        })
        .collect();
    let worst_is_fail = findings.iter().any(|(_, verdict, _)| verdict == "fail");
    assert_eq!(output.status.code(), Some(i32::from(worst_is_fail)), "{findings:?}");
    Examined { status: output.status.code(), findings }
}

/// A configuration with TLS, its files made by the program.
fn with_tls(dir: &Path) -> PathBuf {
    let tls = dir.join("tls");
    let place = ["--dir", tls.to_str().unwrap()];
    for what in [&["cert", "ca"][..], &["cert", "server", "--host", "localhost"]] {
        let output = run(PROGRAM, &[what, &place].concat()).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let text = "[http]\nlisten = \"127.0.0.1:0\"\nhosts = [\"localhost\"]\n[http.tls]\ncertificate = \"tls/server.crt\"\n\
                key = \"tls/server.key\"\n[[http.user]]\nname = \"anna\"\nrole = \"viewer\"\npassword_hash = \
                \"$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHRzYWx0$hYCsbgLFHSzQTdTRUH0YQmyRK/YrLjLDsCTLC1dWjEE\"\n";
    let path = write_config(dir, text).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    path
}

fn make_data(dir: &Path) -> PathBuf {
    let data = dir.join("data");
    fs::create_dir(&data).unwrap();
    fs::set_permissions(&data, Permissions::from_mode(0o700)).unwrap();
    data
}

// On a fit machine nothing fails, every check has a line, and nothing is left behind; the same in words, one line each.
#[test]
fn a_fit_machine_passes() {
    let dir = tempfile::tempdir().unwrap();
    let config = with_tls(dir.path());
    let data = make_data(dir.path());
    let found = examine(&config);
    assert_eq!((found.status, found.failed().len()), (Some(0), 0), "{:?}", found.findings);
    for check in [
        "configuration",
        "gateway",
        "data directory",
        "file system",
        "disk speed",
        "space",
        "wear",
        "clock",
        "ports",
        "secrets",
        "certificates",
        "memory",
        "swap",
        "file descriptors",
    ] {
        assert!(found.findings.iter().any(|(of, ..)| of == check), "{check} is missing: {:?}", found.findings);
    }
    assert!(found.has("certificates", "ok", "is for localhost, and the key fits"), "{:?}", found.findings);
    assert_eq!(fs::read_dir(&data).unwrap().count(), 0);
    let output = run(PROGRAM, &["doctor", "--config", config.to_str().unwrap()]).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), found.findings.len(), "{text}");
    assert!(text.lines().all(|line| line.starts_with("ok    ") || line.starts_with("warn  ")), "{text}");
}

// Beside a running gateway its ports are its own, it is asked how it is, and it tells what it writes.
#[test]
fn a_running_gateway_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (mqtt, http) = (free(), free());
    let text = format!("[broker]\nlisten = \"{mqtt}\"\n[http]\nlisten = \"{http}\"\n");
    let gateway = Gateway::start(PROGRAM, dir.path(), &text).unwrap();
    let found = examine(&dir.path().join("gateway.toml"));
    assert_eq!(found.failed().len(), 0, "{:?}", found.findings);
    assert!(found.has("gateway", "ok", "one runs on"), "{:?}", found.findings);
    assert!(found.has("ports", "ok", &format!("[broker] listen {mqtt}")), "{:?}", found.findings);
    assert!(found.has("health", "ok", "/healthz says that all is well"), "{:?}", found.findings);
    assert_eq!(gateway.terminate().unwrap(), Some(0));
    let found = examine(&dir.path().join("gateway.toml"));
    assert!(found.has("gateway", "ok", "none runs on"), "{:?}", found.findings);
}

// One that speaks TLS is asked too, whoever made its certificate.
#[test]
fn a_running_gateway_is_asked_over_tls() {
    let dir = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(with_tls(dir.path())).unwrap();
    let http = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = text.replace("[http]\nlisten = \"127.0.0.1:0\"", &format!("[http]\nlisten = \"{http}\""));
    let gateway = Gateway::start(PROGRAM, dir.path(), &text).unwrap();
    let found = examine(&dir.path().join("gateway.toml"));
    let told = format!("https://{http}/healthz says that all is well");
    assert!(found.has("health", "ok", &told), "{:?}", found.findings);
    assert_eq!(gateway.terminate().unwrap(), Some(0));
}

// Each fault is found, with what to do, and fails the examination.
#[test]
fn each_fault_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let config = with_tls(dir.path());
    let data = make_data(dir.path());
    let key = dir.path().join("tls/server.key");
    let finds = |check: &str, verdict: &str, words: &str| {
        let found = examine(&config);
        assert!(found.has(check, verdict, words), "{check} {verdict} {words}: {:?}", found.findings);
    };
    // Everybody may read the key, and the hashes.
    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    finds("secrets", "fail", "chmod 600");
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(&config, Permissions::from_mode(0o644)).unwrap();
    finds("secrets", "warn", "password hashes");
    fs::set_permissions(&config, Permissions::from_mode(0o600)).unwrap();
    // Everybody may write the data.
    fs::set_permissions(&data, Permissions::from_mode(0o777)).unwrap();
    finds("data directory", "fail", "chmod 700");
    fs::set_permissions(&data, Permissions::from_mode(0o700)).unwrap();
    if !rustix::process::geteuid().is_root() {
        fs::set_permissions(&data, Permissions::from_mode(0o500)).unwrap();
        finds("data directory", "fail", "cannot be written by this user");
        fs::set_permissions(&data, Permissions::from_mode(0o700)).unwrap();
    }
    // A key of another certificate, and none at all.
    let other = tempfile::tempdir().unwrap();
    with_tls(other.path());
    let own = fs::read(&key).unwrap();
    fs::write(&key, fs::read(other.path().join("tls/server.key")).unwrap()).unwrap();
    finds("certificates", "fail", "is not the key of");
    fs::remove_file(&key).unwrap();
    finds("secrets", "fail", "correct the path");
    fs::write(&key, own).unwrap();
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    assert_eq!(examine(&config).failed().len(), 0, "all is well again");
    // A certificate for other names, and a port that is taken.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let text = fs::read_to_string(&config).unwrap();
    let address = taken.local_addr().unwrap();
    let text = text
        .replace("hosts = [\"localhost\"]", "hosts = [\"gw.plant.local\"]")
        .replace("[broker]\nlisten = \"127.0.0.1:0\"", &format!("[broker]\nlisten = \"{address}\""));
    fs::write(&config, text).unwrap();
    let found = examine(&config);
    assert!(found.has("certificates", "warn", "not for gw.plant.local"), "{:?}", found.findings);
    assert!(found.has("ports", "fail", "is taken by another program"), "{:?}", found.findings);
    // Data that are no folder.
    fs::remove_dir(&data).unwrap();
    fs::write(&data, "a file").unwrap();
    finds("data directory", "fail", "is no folder");
}

// Certificates that have expired or soon will are found: the gateway's, and whom an upstream trusts.
#[test]
fn certificates_that_end_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let config = with_tls(dir.path());
    let tls = dir.path().join("tls");
    let make = |name: &str, from_day: i64, days: i64| {
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().cast_signed();
        let day = |day: i64| {
            rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs((now_s + day * 86_400 + 3_600).cast_unsigned())
        };
        (params.not_before, params.not_after) = (day(from_day), day(from_day + days));
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        fs::write(tls.join(format!("{name}.crt")), certificate.pem()).unwrap();
        fs::write(tls.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    };
    let finds = |verdict: &str, words: &str| {
        let found = examine(&config);
        assert!(found.has("certificates", verdict, words), "{words}: {:?}", found.findings);
    };
    make("server", -30, 20);
    finds("fail", "has expired on");
    make("server", 10, 20);
    finds("fail", "have it made again");
    make("server", -10, 20);
    finds("warn", "expires in 10 days");
    make("server", -10, 100);
    finds("ok", "is valid for 90 days");
    let upstream = "[[upstream]]\nname = \"cloud\"\nkind = \"mqtt\"\naddress = \"127.0.0.1:1\"\ntls = true\n\
                    tls_ca = \"tls/none.crt\"\n";
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}{upstream}")).unwrap();
    finds("fail", "[[upstream]] cloud");
}

// A configuration with mistakes fails with each of them; none at all is wrong use.
#[test]
fn mistakes_fail_and_no_configuration_is_wrong_use() {
    let dir = tempfile::tempdir().unwrap();
    let path = write_config(dir.path(), "[log]\nquota_mb = 1\n").unwrap();
    let found = examine(&path);
    assert!(found.has("configuration", "fail", "quota_mb") && found.findings.len() == 1, "{:?}", found.findings);
    for arguments in [&["doctor"][..], &["doctor", "--config", "/no/such/file.toml"]] {
        assert_eq!(run(PROGRAM, arguments).unwrap().status.code(), Some(2), "{arguments:?}");
    }
}
