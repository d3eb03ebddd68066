//! What `gateway.toml` may say, and what is told when it says something else.

use std::path::Path;

use super::*;
use crate::config::template::NameTemplate;

const HASH: &str = "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHQx$Zm9vYmFyYmF6cXV1eA";

fn parse(text: &str) -> Result<Loaded, Mistakes> {
    Config::parse(text, "gateway.toml", Path::new("/etc/millwright"))
}

/// `text` below a sound `[gateway]` of two lines has exactly these mistakes.
fn check(text: &str, expected: &[&str]) {
    let text = format!("[gateway]\nid = \"gw-1\"\n{text}");
    let told = match parse(&text) {
        Ok(_) => String::new(),
        Err(mistakes) => mistakes.to_string(),
    };
    let told: Vec<&str> = told.lines().map(|line| line.strip_prefix("gateway.toml:").unwrap()).collect();
    assert_eq!(told, expected, "\n{text}");
}

/// `text` below a sound `[gateway]` has no mistake, and exactly these warnings.
fn warns(text: &str, expected: &[&str]) {
    let loaded = parse(&format!("[gateway]\nid = \"gw-1\"\n{text}")).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    let told: Vec<String> = loaded.warnings.iter().map(|warning| warning.line_for("f")).collect();
    assert_eq!(told, expected, "\n{text}");
}

// An identity is all that a configuration needs; everything else has a safe default.
#[test]
fn an_identity_is_enough() {
    let config = parse("[gateway]\nid = \"gw-1\"\n").unwrap().config;
    let mut expected = Config::with_defaults(GatewayId::parse("gw-1").unwrap(), PathBuf::from("/etc/millwright/data"));
    assert_eq!(config, expected);
    assert!(config.broker.listen.ip().is_loopback() && config.http.listen.ip().is_loopback());
    assert!(config.broker.users.is_empty() && !config.broker.allow_anonymous_on_network);
    assert_eq!(config.log.when_full, WhenFull::Refuse);
    expected.log.quota_bytes += 1;
    assert_ne!(config, expected, "the comparison sees a difference");
}

// The example of the documentation means what it says.
#[test]
fn every_section_is_read() {
    let text = format!(
        r#"
        [gateway]
        id = "gw-1"
        data_dir = "/var/lib/millwright"
        [broker]
        listen = "127.0.0.1:1883"
        max_publishes_per_s = 500
        [broker.tls]
        listen = "0.0.0.0:8883"
        certificate = "/etc/millwright/server.crt"
        key = "server.key"
        client_ca = "ca.crt"
        client_certificate = "optional"
        min_version = "1.3"
        [broker.websocket]
        tls_listen = "0.0.0.0:9002"
        origins = ["https://plant.example"]
        [[broker.user]]
        name = "plc"
        password_hash = "{HASH}"
        groups = ["plcs"]
        [[broker.access]]
        groups = ["plcs"]
        certificates = ["*"]
        publish = ["mw/v1/telemetry/%u/#"]
        [log]
        quota_mb = 2_048
        when_full = "drop-oldest"
        commit_delay_ms = 0
        [http]
        listen = "[::1]:80"
        [alarm]
        critical_score = 4
        [[source]]
        filter = "plant/+/json"
        asset = "{{1}}"
        format = "json"
        time_unit = "ms"
        [[source]]
        filter = "hall/+/+"
        asset = "hall-{{1}}"
        format = "number"
        channel = "{{2}}"
        [[source]]
        filter = "press/csv"
        asset = "press"
        format = "csv"
        columns = ["ts", "force", "_"]
        separator = ";"
        [[source]]
        filter = "spBv1.0/#"
        asset = "{{node}}.{{device}}"
        format = "sparkplug"
        "#
    );
    let Loaded { config, warnings } = parse(&text).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(config.gateway.data_dir, Path::new("/var/lib/millwright"));
    assert_eq!(config.broker.users[0].password_hash.as_str(), HASH);
    assert!(!format!("{config:?}").contains("argon2"), "hashes stay out of logs");
    let tls = config.broker.tls.unwrap();
    assert_eq!(tls.files.certificate, Path::new("/etc/millwright/server.crt"));
    assert_eq!(tls.files.key, Path::new("/etc/millwright/server.key"));
    assert_eq!((tls.files.clients, tls.files.tls13_only), (ClientCertificates::Optional, true));
    let websocket = config.broker.websocket.unwrap();
    assert_eq!((websocket.rules.path.as_str(), websocket.listen), ("/mqtt", None));
    assert_eq!(config.broker.access[0].publish[0].as_str(), "mw/v1/telemetry/%u/#");
    assert_eq!((config.broker.limits.publishes_per_s_max, config.broker.limits.connections_max), (500, 1_000));
    assert_eq!(config.log.quota_bytes, 2_048 * 1024 * 1024);
    assert_eq!(config.log.when_full, WhenFull::DropOldest);
    assert_eq!(config.log.commit_delay, Duration::ZERO);
    assert_eq!(config.alarm.critical_score, 4.0);
    let formats: Vec<&str> = config.sources.iter().map(|source| source.format.word()).collect();
    assert_eq!(formats, ["json", "number", "csv", "sparkplug"]);
    assert!(matches!(&config.sources[0].format, Format::Json(json) if json.time_unit == TimeUnit::Millis));
    assert!(matches!(&config.sources[2].format, Format::Csv(csv) if csv.separator == b';'
        && csv.columns[0] == CsvColumn::Time && csv.columns[2] == CsvColumn::Skip));
    assert_eq!(config.sources[1].asset, NameTemplate::parse("hall-{1}").unwrap());
}

// What is missing is asked for, with an example.
#[test]
fn what_is_missing_is_asked_for() {
    let told = |text: &str| parse(text).unwrap_err().to_string();
    let expected = "[gateway] id: is missing; give the gateway a name, for example id = \"gw-1\"";
    assert_eq!(told(""), format!("gateway.toml:1:1: {expected}"));
    assert_eq!(told("\n[gateway]\ndata_dir = \"d\"\n"), format!("gateway.toml:2:1: {expected}"));
    check(
        "[[source]]\n",
        &[
            "3:1: [[source]] filter: is missing; write for example filter = \"plant/+/json\"",
            "3:1: [[source]] asset: is missing; write a name, or {1} for the level that the first + of the filter matched",
            "3:1: [[source]] format: is missing; choose one of frame, json, number, csv, sparkplug",
        ],
    );
    check(
        "[[broker.user]]\nname = \"a\"\n",
        &["3:1: [[broker.user]] password_hash: is missing; `millwright passwd` makes one from a password"],
    );
}

// Keys and sections that nobody knows are refused, with the one that was probably meant.
#[test]
fn unknown_names_are_refused() {
    check(
        "[broker]\nlisen = \"127.0.0.1:1\"\nquota_mb = 5\ncolour = 1\n[brokr]\nx = 1\n[[sources]]\n[zzz]\n",
        &[
            "4:1: [broker] lisen: unknown key; did you mean `listen`?",
            "5:1: [broker] quota_mb: unknown key; it belongs to [log] or [history]",
            "6:1: [broker] colour: unknown key; remove it; known here: listen, allow_anonymous_on_network, \
             sys_interval_s, max_inflight, max_connections, max_connections_per_network, max_connecting, \
             connect_timeout_ms, max_packet_bytes, max_topic_bytes, max_topic_levels, max_subscriptions, \
             max_subscriptions_total, max_publishes_per_s, max_keep_alive_s, max_session_expiry_s, max_buffered_mb, \
             max_sessions, user, access, tls, websocket",
            "7:2: [brokr]: unknown section; did you mean `broker`?",
            "9:3: [[sources]]: unknown section; did you mean `source`?",
            "10:2: [zzz]: unknown section; remove it; known here: gateway, broker, log, history, http, pipeline, commissioning, \
             alarm, models, source, upstream",
        ],
    );
    let told = parse("id = \"gw-1\"\n[gateway]\nid = \"gw-1\"\n").unwrap_err().to_string();
    assert_eq!(told, "gateway.toml:1:1: id: unknown key; it belongs to [gateway]");
}

// A value of another type is told apart by what was expected and what was found.
#[test]
fn wrong_types_are_told() {
    check("broker = 5\n", &["3:1: [gateway] broker: unknown key; remove it; known here: id, data_dir"]);
    check(
        "[broker]\nmax_connections = \"10\"\nlisten = 1883\nallow_anonymous_on_network = \"yes\"\n[log]\nquota_mb = 1.5\n\
         when_full = true\n[alarm]\ncritical_score = \"high\"\n[http]\nlisten = [\"a\"]\n",
        &[
            "4:19: [broker] max_connections: expected a whole number, found the string \"10\"; write for example \
             max_connections = 1000",
            "5:10: [broker] listen: expected a string, found the number 1883; write for example listen = \
             \"127.0.0.1:1883\"",
            "6:30: [broker] allow_anonymous_on_network: expected true or false, found the string \"yes\"; write for \
             example allow_anonymous_on_network = false",
            "8:12: [log] quota_mb: expected a whole number, found the number 1.5; write for example quota_mb = 1024",
            "9:13: [log] when_full: expected a string, found true; write for example when_full = \"refuse\"",
            "11:18: [alarm] critical_score: expected a number, found the string \"high\"; write for example \
             critical_score = 3.0",
            "13:10: [http] listen: expected a string, found a list; write for example listen = \"127.0.0.1:8080\"",
        ],
    );
    let told = |text: &str| parse(text).unwrap_err().to_string();
    assert!(told("gateway = 5\n").contains("gateway.toml:1:11: [gateway]: expected a section, found the number 5"));
    check(
        "[source]\nfilter = \"a\"\n",
        &["3:1: [[source]]: expected a list of sections, found a section; write [[source]], with two brackets, above \
           each entry"],
    );
}

// Ranges are told with both bounds, and the bounds themselves are accepted.
#[test]
fn ranges_are_checked() {
    check(
        "[log]\nquota_mb = 15\ncommit_delay_ms = 1001\n[alarm]\nmin_samples = -1\ncritical_score = 0.5\n",
        &[
            "4:12: [log] quota_mb: 15 is out of range: 16 to 16777216 is allowed; the default is 1024",
            "5:19: [log] commit_delay_ms: 1001 is out of range: 0 to 1000 is allowed; the default is 10",
            "7:15: [alarm] min_samples: -1 is out of range: 1 to 100000 is allowed; the default is 5",
            "8:18: [alarm] critical_score: 0.5 is out of range: 1.0 to 1000000.0 is allowed; the default is 3.0",
        ],
    );
    check("[log]\nquota_mb = 16\ncommit_delay_ms = 1000\n", &[]);
    check(
        "[log]\nquota_mb = 99999999999999999999999999999999999999999999\n",
        &["4:12: [log] quota_mb: 99999999999999999999999999999999999999999999 is out of range: 16 to 16777216 is \
           allowed; the default is 1024"],
    );
}

// An address that does not parse gets the remedy for its fault.
#[test]
fn addresses_get_their_remedy() {
    for (written, remedy) in [
        ("localhost:1884", "write \"127.0.0.1:1884\""),
        ("192.168.0.1", "add a port: \"192.168.0.1:1883\""),
        ("*:1884", "write \"0.0.0.0:1884\" for all interfaces, \"127.0.0.1:1884\" for this machine alone"),
        ("", "write an IP address and a port, for example \"127.0.0.1:1883\""),
        ("broker:70000", "write an IP address and a port, for example \"127.0.0.1:1883\""),
    ] {
        check(
            &format!("[broker]\nlisten = \"{written}\"\n"),
            &[&format!("4:10: [broker] listen: \"{written}\" is not an address with a port; {remedy}")],
        );
    }
}

// Listening on the network takes a user or the plain word that everybody may come in.
#[test]
fn the_network_is_not_let_in_by_accident() {
    let refused = "4:10: [broker] listen: 0.0.0.0:1883 can be reached from the network, and no [[broker.user]] has a \
                   password; add a user (`millwright passwd` makes the password_hash), listen on 127.0.0.1, or write \
                   allow_anonymous_on_network = true to let everybody in";
    check("[broker]\nlisten = \"0.0.0.0:1883\"\n", &[refused]);
    warns("[broker]\nlisten = \"0.0.0.0:1883\"\nallow_anonymous_on_network = true\n", &[]);
    let user = format!("[[broker.user]]\nname = \"plc\"\npassword_hash = \"{HASH}\"\n");
    let user = format!("{user}[[broker.access]]\nusers = [\"plc\"]\npublish = [\"#\"]\n");
    warns(
        &format!("[broker]\nlisten = \"0.0.0.0:1883\"\n{user}"),
        &["f:4:10: [broker] listen: passwords cross the network as they are, on 0.0.0.0:1883; let clients use \
           [broker.tls], and listen on 127.0.0.1 here"],
    );
    warns(
        &format!("[broker.websocket]\nlisten = \"0.0.0.0:9001\"\n{user}"),
        &["f:4:10: [broker.websocket] listen: passwords cross the network as they are, on 0.0.0.0:9001; let clients \
           use tls_listen, and listen on 127.0.0.1 here"],
    );
    warns(
        &format!("[broker]\nallow_anonymous_on_network = true\n{user}"),
        &["f:4:30: [broker] allow_anonymous_on_network: has no effect: there are users, so every client must log in; \
           remove it"],
    );
}

// HTTP on the network takes a user, and TLS or the plain word that a proxy speaks it.
#[test]
fn nobody_comes_in_by_http_without_signing_in() {
    let user = format!("[[http.user]]\nname = \"ada\"\npassword_hash = \"{HASH}\"\nrole = \"viewer\"\n");
    let tls = "[http.tls]\ncertificate = \"a.crt\"\nkey = \"a.key\"\n";
    let open = "4:10: [http] listen: [::]:80 can be reached from the network, and nobody has to sign in; add a \
                [[http.user]] (`millwright passwd` makes the password_hash), or listen on 127.0.0.1";
    let plain = "4:10: [http] listen: passwords would cross the network as they are, on [::]:80; name a certificate in \
                 [http.tls] (`millwright cert` makes one), or write allow_plain = true if nobody comes here but a proxy \
                 that speaks TLS";
    let listen = "[http]\nlisten = \"[::]:80\"\n";
    check(listen, &[open, plain]);
    check(&format!("{listen}{user}"), &[plain]);
    check(&format!("{listen}{tls}"), &[open]);
    check(&format!("{listen}{tls}{user}"), &[]);
    warns(&format!("{listen}allow_plain = true\n{user}"), &[]);
    check(
        &format!("{listen}allow_network = true\n{tls}{user}"),
        &[
            "5:17: [http] allow_network: nobody may come in from the network without signing in any more; remove it; add \
           a [[http.user]] and [http.tls], as docs/SECURITY.md shows",
        ],
    );
    warns(
        "[http]\nallow_plain = true\n",
        &["f:4:15: [http] allow_plain: has no effect: only this machine reaches the listener; remove it"],
    );
    check(
        "[http]\nhosts = [\"gw-1.plant.local\"]\n",
        &["4:9: [http] hosts: a proxy would let everybody in by these names: nobody has to sign in; add a \
           [[http.user]], or remove the names"],
    );
    let wrong = |host: &str| format!("[http]\nhosts = [\"{host}\"]\n{user}");
    check(&wrong("GW-1.plant.local"), &[]);
    for (host, what) in
        [("10.0.0.7", "is an address"), ("gw:8080", "is no name of a host"), ("", "is no name of a host")]
    {
        let told = format!(
            "4:9: [http] hosts: \"{host}\" {what}; write the name alone, as in \"gw-1.plant.local\"; addresses need no \
             entry"
        );
        check(&wrong(host), &[&told]);
    }
}

// A user of HTTP has a name, a hash and a role; nobody is there twice, and nobody is called what everybody is.
#[test]
fn http_users_are_checked() {
    let user =
        |name: &str| format!("[[http.user]]\nname = \"{name}\"\npassword_hash = \"{HASH}\"\nrole = \"engineer\"\n");
    check(&(user("ada") + &user("bob")), &[]);
    check(
        &(user("ada") + &user("ada")),
        &["8:8: [[http.user]] name: \"ada\" is already the name of the [[http.user]] number 1; remove one of the two"],
    );
    check(&user("a:b"), &["4:8: [[http.user]] name: \"a:b\" contains a colon; write the name to sign in with"]);
    check(
        &user("local"),
        &[
            "4:8: [[http.user]] name: \"local\" is what everybody is called where nobody signs in; write the name to sign \
           in with",
        ],
    );
    check(
        &user("ada").replace("engineer", "boss"),
        &["6:8: [[http.user]] role: \"boss\" is not known; choose one of viewer, engineer, admin"],
    );
}

// Origins that no browser sends are told: they would let nobody in.
#[test]
fn origins_are_written_as_browsers_do() {
    let with = |origin: &str| format!("[broker.websocket]\nlisten = \"127.0.0.1:9001\"\norigins = [\"{origin}\"]\n");
    for sound in ["*", "https://plant.example", "http://192.0.2.7:8080", "http://[2001:db8::1]"] {
        check(&with(sound), &[]);
    }
    let form = "is no origin: that is a scheme and a host, and a port if it is not the usual one";
    for (wrong, what) in [
        ("plant.example", "is no origin: it has no scheme"),
        ("https://plant.example/", form),
        ("https://plant.example/hmi", form),
        ("https://*.plant.example", form),
        ("https://", form),
        ("https://plant.example:443", "has the usual port, which browsers leave out"),
        ("http://plant.example:80", "has the usual port, which browsers leave out"),
    ] {
        let told = format!(
            "5:11: [broker.websocket] origins: \"{wrong}\" {what}; write it as browsers do: https://plant.example, or \
             https://plant.example:8443"
        );
        check(&with(wrong), &[&told]);
    }
}

// Listeners that need each other's keys, and rules for nobody, are told with their remedy.
#[test]
fn security_is_checked_together() {
    check(
        "[broker.tls]\nlisten = \"127.0.0.1:8883\"\nclient_certificate = \"required\"\n",
        &[
            "3:1: [broker.tls] certificate: is missing; `millwright cert` makes a certificate and its key",
            "3:1: [broker.tls] key: is missing; `millwright cert` makes a certificate and its key",
            "5:22: [broker.tls] client_certificate: needs client_ca: the authorities whose certificates are trusted; name \
             their file in client_ca",
        ],
    );
    check(
        "[broker.websocket]\ntls_listen = \"0.0.0.0:9002\"\n",
        &[
            "4:14: [broker.websocket] tls_listen: needs a certificate; name its files in [broker.tls]",
            "4:14: [broker.websocket] tls_listen: 0.0.0.0:9002 can be reached from the network, and no [[broker.user]] has \
             a password; add a user (`millwright passwd` makes the password_hash), listen on 127.0.0.1, or write \
             allow_anonymous_on_network = true to let everybody in",
        ],
    );
    let user = format!("[[broker.user]]\nname = \"plc\"\npassword_hash = \"{HASH}\"\n");
    check(
        &format!(
            "{user}[[broker.access]]\npublish = [\"a\"]\n[[broker.access]]\nusers = [\"nobody\"]\ngroups = [\"g\"]\n\
             subscribe = [\"a/#/b\"]\n"
        ),
        &[
            "6:1: [[broker.access]]: is for nobody; name users, groups or certificates, or write anonymous = true",
            "9:9: [[broker.access]] users: \"nobody\" is not the name of a [[broker.user]]; add the user, or correct the \
             name",
            "10:10: [[broker.access]] groups: no [[broker.user]] is in the group \"g\"; give a user this group in its \
             `groups`, or correct the name",
            "11:13: [[broker.access]] subscribe: \"a/#/b\" is not a pattern: in `a/#/b`, `#` must be the whole last level; \
             write a topic filter; %u is the user's name, %c the client identifier",
        ],
    );
    warns(
        &user,
        &[
            "f:3:1: [broker] user: \"plc\" may neither publish nor subscribe: no rule is for it; add a [[broker.access]] \
           with its name or a group of it",
        ],
    );
}

// A password hash that is none is refused without repeating it: it may be the password.
#[test]
fn hashes_are_checked_and_not_repeated() {
    let user = |hash: &str| format!("[[broker.user]]\nname = \"a\"\npassword_hash = \"{hash}\"\n");
    for bad in ["secret", "", "$argon2id$v=19$m=1,t=1$c29tZXNhbHQx$Zm9vYmFyYmF6cXV1eA", "$2b$12$abcdefghijk"] {
        check(
            &user(bad),
            &["5:17: [[broker.user]] password_hash: is not a password hash in PHC form \
               ($argon2id$v=19$m=…,t=…,p=…$salt$hash); `millwright passwd` makes one from a password"],
        );
    }
    let twice = format!("{}{}", user(HASH), user(HASH));
    check(
        &twice,
        &[
            "7:8: [[broker.user]] name: \"a\" is already the name of the [[broker.user]] number 1; remove one of the two",
        ],
    );
}

// Keys that only make sense together are checked together.
#[test]
fn relations_are_checked() {
    check(
        "[http]\nlisten = \"127.0.0.1:1883\"\n",
        &["4:10: [http] listen: port 1883 is also that of [broker] listen; choose another port for one of the two"],
    );
    check(
        "[broker]\nlisten = \"127.0.0.1:8080\"\n",
        &["4:10: [broker] listen: port 8080 is also that of [http] listen; choose another port for one of the two"],
    );
    check("[broker]\nlisten = \"127.0.0.1:0\"\n[http]\nlisten = \"127.0.0.1:0\"\n", &[]);
    check(
        "[broker]\nmax_packet_bytes = 16777216\n[log]\nquota_mb = 1023\n",
        &[
            "6:12: [log] quota_mb: 1023 MB hold fewer than 64 packets of [broker] max_packet_bytes = 16777216; make it at \
           least 1024, or max_packet_bytes smaller",
        ],
    );
    check("[broker]\nmax_packet_bytes = 16777216\n[log]\nquota_mb = 1024\n", &[]);
    check(
        "[commissioning]\nsamples = 79\n",
        &["4:11: [commissioning] samples: 79 samples are fewer than four windows of 20: nothing can be learned from \
           them; make it at least 80"],
    );
    check("[commissioning]\nsamples = 80\n", &[]);
}

// A source must name its asset with what its filter gives, and only use the keys of its format.
#[test]
fn sources_are_checked() {
    let source = |rest: &str| format!("[[source]]\n{rest}\n");
    check(
        &source("filter = \"a/#/b\"\nasset = \"{1\"\nformat = \"jsn\""),
        &[
            "4:10: [[source]] filter: in `a/#/b`, `#` must be the whole last level; write for example filter = \
             \"plant/+/json\"",
            "5:9: [[source]] asset: a `{` or `}` in \"{1\" has no partner; write a name, or {1} for the level that the \
             first + of the filter matched",
            "6:10: [[source]] format: \"jsn\" is not known; did you mean \"json\"?",
        ],
    );
    check(
        &source("filter = \"a/+/#\"\nasset = \"{2}\"\nformat = \"json\"\nchannel = \"x\""),
        &[
            "5:9: [[source]] asset: \"{2}\" names capture {2}, but `a/+/#` has 1 `+`; put a + in the filter for each \
             level to capture (# captures nothing)",
            "7:11: [[source]] channel: means nothing with format = \"json\"; remove it; it belongs to format = \
             \"number\"",
        ],
    );
    check(
        &source("filter = \"a/+\"\nasset = \"{device}\"\nformat = \"json\""),
        &[
            "5:9: [[source]] asset: \"{device}\" names a part of a Sparkplug topic, but format = \"json\"; write {1}, {2} \
           and so on for the levels that the wildcards matched",
        ],
    );
    check(
        &source("filter = \"a/+\"\nasset = \"{1}\"\nformat = \"number\"\njoin_ms = 5000\nhold_ms = 4999"),
        &[
            "3:1: [[source]] channel: is missing: a plain number does not say what it measures; write for example \
             channel = \"{2}\" for the level that the second + of the filter matched",
            "8:11: [[source]] hold_ms: 4999 is less than join_ms (5000): values would be missing before their row is \
             complete; make it several times join_ms",
        ],
    );
    check(
        &source(
            "filter = \"a\"\nasset = \"a\"\nformat = \"csv\"\ncolumns = [\"ts\", \"x\", \"x\", \"a/b\"]\nseparator = \"ab\"",
        ),
        &[
            "7:11: [[source]] columns: \"x\" appears twice; give each column its own name, or \"_\" to skip it",
            "7:11: [[source]] columns: `a/b` is not a channel name: it contains `/`, which has a meaning in topics; \
             choose another name",
            "8:13: [[source]] separator: \"ab\" cannot separate cells; write one character: \",\", \";\" or \"\\t\"",
        ],
    );
    check(
        &source("filter = \"a\"\nasset = \"a\"\nformat = \"csv\"\ncolumns = [\"ts\", 5]"),
        &["7:18: [[source]] columns: expected a string in the list, found the number 5; write for example columns = \
           [\"ts\", \"temperature\", \"_\", \"pressure\"]"],
    );
    for (filter, fault) in [
        ("mw/v1/telemetry/+", "topics below `mw/` are the gateway's own and need no source"),
        ("$SYS/#", "topics that begin with `$` are the broker's own"),
        ("$share/g/a", "a source reads every message: it cannot share a subscription"),
    ] {
        check(
            &source(&format!("filter = \"{filter}\"\nasset = \"a\"\nformat = \"frame\"")),
            &[&format!("4:10: [[source]] filter: {fault}; write for example filter = \"plant/+/json\"")],
        );
    }
}

// Sources that take topics from each other are told.
#[test]
fn overlapping_sources_are_told() {
    let source = |filter: &str| format!("[[source]]\nfilter = \"{filter}\"\nasset = \"a-{{1}}\"\nformat = \"json\"\n");
    warns(
        &format!("{}{}{}", source("a/+/x"), source("+/b/x"), source("c/+")),
        &[
            "f:8:10: [[source]] filter: shares topics with `a/+/x` of the [[source]] number 1, which takes them; put the \
           source that should take them first",
        ],
    );
    warns(
        &format!("{}{}", source("a/+/#"), source("a/+/x")),
        &["f:8:10: [[source]] filter: never used: `a/+/#` of the [[source]] number 1 already takes every such topic; \
           put the narrower source first"],
    );
    check(
        &format!("{}{}", source("a/+"), source("a/+")),
        &["8:10: [[source]] filter: `a/+` is already the filter of the [[source]] number 1; remove one of the two"],
    );
    warns(
        "[[source]]\nfilter = \"a/+\"\nasset = \"pump\"\nformat = \"json\"\n",
        &[
            "f:5:9: [[source]] asset: every topic that `a/+` matches becomes the one asset \"pump\"; write {1} for the level \
           that the first + matched, if these are several machines",
        ],
    );
}

// Text that is not TOML is told with its place, and mistakes elsewhere are told in the same run.
#[test]
fn syntax_errors_are_told_with_the_rest() {
    let told = |text: &str| parse(text).unwrap_err().mistakes;
    let mistakes = told("[gateway]\nid = gw-1\n[log]\nquota_mb = 1\n");
    let places: Vec<(usize, &str)> = mistakes.iter().map(|m| (m.line, m.place.as_str())).collect();
    assert_eq!(places, [(2, ""), (4, "[log] quota_mb")], "{mistakes:?}");
    assert!(mistakes[0].what.starts_with("not TOML: "), "{mistakes:?}");
    let mistakes = told("[gateway]\nid = \"a\"\nid = \"b\"\n");
    assert_eq!((mistakes[0].line, mistakes.len()), (3, 1), "{mistakes:?}");
    assert!(mistakes[0].what.contains("duplicate key"), "{mistakes:?}");
    let mistakes = told("[gateway\nid = \"a\"\n");
    assert_eq!(mistakes[0].line, 1, "{mistakes:?}");
}

// Too many entries are refused, and columns count characters rather than bytes.
#[test]
fn limits_and_columns() {
    let many = "[[source]]\nfilter = \"a\"\nasset = \"a\"\nformat = \"frame\"\n".repeat(SOURCES_MAX + 1);
    let mistakes = parse(&format!("[gateway]\nid = \"gw\"\n{many}")).unwrap_err().mistakes;
    assert!(mistakes.iter().any(|m| m.what == "there are 257 entries, at most 256 are allowed"));
    let told = parse("gateway = { data_dir = \"ööö\", id = \"a/b\" }").unwrap_err().to_string();
    assert!(told.starts_with("gateway.toml:1:36: [gateway] id: `a/b`"), "{told}");
}

// A file is read with its folder, and one that is too large is not read at all.
#[test]
fn files_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.toml");
    std::fs::write(&path, "[gateway]\nid = \"gw\"\n").unwrap();
    assert_eq!(Config::load(&path).unwrap().config.gateway.data_dir, folder.path().join("data"));
    std::fs::write(&path, "#".repeat(usize::try_from(CONFIG_BYTES_MAX).unwrap() + 1)).unwrap();
    assert!(matches!(Config::load(&path), Err(ConfigError::TooLarge { .. })));
    assert!(matches!(Config::load(folder.path()), Err(ConfigError::Unreadable { .. })));
}

// docs/CONFIGURATION.md lists exactly the keys that the code knows, with their defaults and what is allowed.
#[test]
fn the_documentation_lists_every_key() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/CONFIGURATION.md");
    let text = std::fs::read_to_string(path).unwrap();
    let mut section = String::new();
    let mut documented = Vec::new();
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## `") {
            section = heading.trim_end_matches('`').to_owned();
        } else if let Some(row) = line.strip_prefix("| `") {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            assert!(cells.len() == 5 && cells[3].len() > 5, "a key needs a meaning: {line}");
            let plain = |cell: &str| cell.replace('`', "");
            documented.push(format!("{section} {} | {} | {}", plain(cells[0]), plain(cells[1]), plain(cells[2])));
        }
    }
    let known: Vec<String> =
        keys().iter().map(|key| format!("{} {} | {} | {}", key.section, key.key, key.default, key.allowed)).collect();
    for key in &known {
        assert!(documented.contains(key), "not documented: {key}");
    }
    for key in &documented {
        assert!(known.contains(key), "documented, but not in the code: {key}");
    }
    assert_eq!(documented.len(), known.len());
}

proptest::proptest! {
    // No text panics, and what is refused has at least one mistake.
    #[test]
    fn any_text_is_read(text in "(\\[|\\]|=|\"|\n|[a-z_]{1,8}|[0-9.-]{1,4}|\\PC|gateway|source|broker|listen|id| ){0,60}") {
        if let Err(mistakes) = parse(&text) {
            proptest::prop_assert!(!mistakes.mistakes.is_empty());
            proptest::prop_assert!(mistakes.mistakes.iter().all(|m| m.line >= 1 && m.column >= 1));
        }
    }
}
