"""Scenarios in which a client is not let in, or may not have what it asks for; ../refusals.rs says what each is about."""

import ssl

from peer import Failed, Peer, check, equal

NOT_AUTHORIZED = 0x87
# paho gives MQTT 3.1.1's codes of CONNACK as those of MQTT 5.
BAD_USER_NAME_OR_PASSWORD = 0x86


def untrusted(t, reason):
    """The client itself turns away from a broker that it does not know."""
    try:
        t.peer("x")
    except ssl.SSLCertVerificationError as error:
        check(reason in str(error), f"expected `{reason}`, got `{error}`")
        return
    raise Failed("connected to a broker that the client has no reason to trust")


def shut_out(t):
    """The connection ends before there is a CONNACK: with TLS 1.3, when the client takes the handshake for done."""
    equal(Peer(t, "x").knock(), None, "CONNACK of a client without a certificate that counts")


def refused_login(t):
    equal(Peer(t, "x").knock(), BAD_USER_NAME_OR_PASSWORD, "code of the CONNACK")


def outside_rules(t):
    watcher, publisher = t.peer("sub"), t.peer("pub")
    for filter_ in ("elsewhere/x", "#", "+/+"):
        equal(watcher.subscribe_raw(filter_, 1), NOT_AUTHORIZED if t.is_v5 else 0x80, f"code of {filter_}")
    equal(watcher.subscribe("own", 1), 1, "code of a filter inside the rules")
    if t.is_v5:
        # At QoS 2 paho goes on after a PUBREC that refuses, and reports the PUBCOMP.
        equal(publisher.publish_code("elsewhere/x", "never", 1), NOT_AUTHORIZED, "code of the PUBACK")
    else:
        # MQTT 3.1.1 has no code for it, and an acknowledgement would mean that it is on disk.
        publisher.client.publish("elsewhere/x", "never", 1)
        publisher.wait_until_disconnected()
        publisher = t.peer("pub")
    publisher.publish("own", "granted")
    watcher.expect("own", "granted", 1)


REFUSALS = {
    "wrong-authority": lambda t: untrusted(t, "certificate verify failed"),
    "wrong-host": lambda t: untrusted(t, "Hostname mismatch"),
    "no-certificate": shut_out,
    "other-certificate": shut_out,
    "wrong-password": refused_login,
    "no-login": refused_login,
    "outside-rules": outside_rules,
}
