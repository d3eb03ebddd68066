//! What mosquitto_pub and mosquitto_sub say when they are not let in, or may not do what they ask for.

use anyhow::{bail, ensure};

use super::tools::{Sub, end_of_pub, publish};
use crate::kind::Turn;

/// The tool ends with a status that is not 0, and says why.
pub(super) fn kept_out(t: &Turn, refusal: &str) -> anyhow::Result<()> {
    let (status, said) = end_of_pub(t, &t.topic("x"), b"never", 1, &["-m", "never"])?;
    // With TLS 1.3 the gateway judges a client's certificate when the client takes the handshake for done.
    let expected: &[&str] = match refusal {
        "wrong-authority" => &["certificate verify failed", "tls error"],
        "wrong-host" => &["host name verification failed", "certificate verify failed", "tls error"],
        "no-certificate" | "other-certificate" => &["connection was lost", "protocol error", "tls error", "alert"],
        "wrong-password" | "no-login" => &["bad user name or password"],
        other => bail!("no such refusal: {other}"),
    };
    ensure!(!status.success(), "mosquitto_pub ended with {status}: {said}");
    let lower = said.to_lowercase();
    ensure!(expected.iter().any(|reason| lower.contains(reason)), "{status}: {said}");
    Ok(())
}

/// A filter outside the rules is refused in the SUBACK, a publish outside them by its code or the end of the connection.
pub(super) fn outside_rules(t: &Turn) -> anyhow::Result<()> {
    let elsewhere = "elsewhere/x".to_owned();
    let mut watcher = Sub::raw(t, "sub", 1, &[elsewhere.clone(), t.topic("own"), "#".to_owned()], &[])?;
    let refused = if t.is_v5() { 0x87 } else { 0x80 };
    ensure!(watcher.codes == [refused, 1, refused], "codes: {:?}", watcher.codes);
    let (_, said) = end_of_pub(t, &elsewhere, b"", 1, &["-m", "never"])?;
    // MQTT 3.1.1 has no code for it, and an acknowledgement would mean that it is on disk.
    let expected = if t.is_v5() { "Not authorized" } else { "connection was lost" };
    ensure!(said.contains(expected), "{said}");
    publish(t, "own", "granted", 1, &[])?;
    watcher.expect("own", "granted", 1)?;
    Ok(())
}
