"""Plays one scenario with paho-mqtt against a broker; prints one line of JSON and exits with 1 if it fails.

The scenarios are listed, with what each claims, in ../scenarios.rs. A scenario of several steps is one process a step, so
that the broker can be killed in between.
"""

import argparse
import json
import sys
import time
from importlib.metadata import version

from peer import LONG_S, Failed, Target, check, equal
from refusals import REFUSALS
from way import add_options

MESSAGES = 100


def qos(t):
    watchers = [t.peer(f"sub-{granted}") for granted in (0, 1, 2)]
    for granted, watcher in enumerate(watchers):
        equal(watcher.subscribe(f"{granted}/+", granted), granted, "granted QoS")
    publisher = t.peer("pub")
    for granted, watcher in enumerate(watchers):
        for published in (0, 1, 2):
            rest = f"{granted}/{published}"
            publisher.publish(rest, f"from {published} to {granted}", published)
            watcher.expect(rest, f"from {published} to {granted}", min(published, granted), False)


def payloads(t):
    watcher, publisher = t.peer("sub"), t.peer("pub")
    watcher.subscribe("#", 2)
    large = bytes(range(250)) * 800
    for rest, payload in (("empty", b""), ("bytes", bytes(range(256))), ("grüße/温度/µ", "wärmer"), ("large", large)):
        for quality in (0, 1, 2):
            publisher.publish(rest, payload, quality)
            watcher.expect(rest, payload, quality)


def order(t, **connect_properties):
    watcher, publisher = t.peer("sub", **connect_properties), t.peer("pub")
    watcher.subscribe("+", 2)
    for quality in (1, 2):
        texts = [str(number) for number in range(MESSAGES)]
        publisher.publish_all(f"{quality}", texts, quality)
        for text in texts:
            watcher.expect(f"{quality}", text, quality)


def retained(t):
    live, publisher = t.peer("live"), t.peer("pub")
    live.subscribe("#", 1)
    for quality in (0, 1, 2):
        publisher.publish(f"kept/{quality}", "old", quality, retain=True)
        publisher.publish(f"kept/{quality}", "new", quality, retain=True)
        for payload in ("old", "new"):
            live.expect(f"kept/{quality}", payload, min(quality, 1), False)
    publisher.publish("kept/gone", "short", 1, retain=True)
    publisher.publish("kept/gone", "", 1, retain=True)
    late = t.peer("late")
    late.subscribe("kept/+", 2)
    publisher.publish("kept/end", "", 2)
    found = sorted((m.topic, bytes(m.payload), m.qos, bool(m.retain)) for m in late.until("kept/end"))
    equal(found, [(t.topic(f"kept/{quality}"), b"new", quality, True) for quality in (0, 1, 2)], "retained")


def retained_restart(t, step):
    if step == "before":
        publisher = t.peer("pub")
        for quality in (1, 2):
            publisher.publish(f"kept/{quality}", "still here", quality, retain=True)
        publisher.publish("kept/gone", "short", 1, retain=True)
        publisher.publish("kept/gone", "", 1, retain=True)
    else:
        late, publisher = t.peer("late"), t.peer("pub")
        late.subscribe("kept/+", 2)
        publisher.publish("kept/end", "", 2)
        found = sorted((m.topic, bytes(m.payload), m.qos, bool(m.retain)) for m in late.until("kept/end"))
        equal(found, [(t.topic(f"kept/{quality}"), b"still here", quality, True) for quality in (1, 2)], "retained")


def will(t):
    watcher = t.peer("watcher")
    watcher.subscribe("gone/+", 2)
    t.peer("polite", will=("gone/polite", "never", 1)).leave()
    for quality in (0, 1, 2):
        t.peer("mortal", will=(f"gone/{quality}", "lost", quality)).vanish()
        watcher.expect(f"gone/{quality}", "lost", quality, False)


def wildcards(t):
    filters = {"one": "a/+/c", "rest": "a/#", "first": "+/b", "all": "#", "exact": "a/b"}
    topics = ["a", "a/b", "a/b/c", "a/x/c", "a/b/c/d", "b/b", "/b", "A/b", "a/b/"]
    expected = {
        "one": ["a/b/c", "a/x/c"],
        "rest": ["a", "a/b", "a/b/c", "a/x/c", "a/b/c/d", "a/b/"],
        "first": ["a/b", "b/b", "/b", "A/b"],
        "all": topics,
        "exact": ["a/b"],
    }
    publisher = t.peer("pub")
    watchers = {name: t.peer(name) for name in filters}
    for name, watcher in watchers.items():
        watcher.subscribe(filters[name], 1)
        watcher.subscribe("end/end/end", 1)
    for topic in topics + ["end/end/end"]:
        publisher.publish(topic, topic)
    for name, watcher in watchers.items():
        got = [message.topic for message in watcher.until("end/end/end")]
        equal(sorted(got), sorted(t.topic(topic) for topic in expected[name]), f"topics of {filters[name]}")


def unsubscribe(t):
    watcher, publisher = t.peer("sub"), t.peer("pub")
    for rest in ("left", "kept", "end"):
        watcher.subscribe(rest, 1)
    reasons = watcher.unsubscribe("left")
    unknown = watcher.unsubscribe("never")
    if t.is_v5:
        equal((reasons, unknown), ([0], [0x11]), "codes of UNSUBACK")
    for rest in ("left", "kept", "end"):
        publisher.publish(rest, rest)
    equal([message.topic for message in watcher.until("end")], [t.topic("kept")], "topics after UNSUBSCRIBE")


def takeover(t):
    watcher = t.peer("watcher")
    watcher.subscribe("gone", 1)
    first = t.peer("twin", will=("gone", "lost", 1))
    second = t.peer("twin")
    reason = first.wait_until_disconnected()
    if t.is_v5:
        equal(reason, 0x8E, "reason of the disconnect")
    watcher.expect("gone", "lost")
    second.subscribe("still", 1)
    second.publish("still", "here")
    second.expect("still", "here")


def keep_alive(t):
    watcher, publisher = t.peer("sub", keep_alive_s=4), t.peer("pub")
    watcher.subscribe("x", 1)
    # Longer than the 6 s of silence that the broker grants: only the client's pings keep it.
    time.sleep(7)
    check(not watcher.disconnected.is_set(), "disconnected although the client pings")
    publisher.publish("x", "here")
    watcher.expect("x", "here")


def refused(t):
    watcher = t.peer("sub")
    for number in range(t.subscriptions_max):
        equal(watcher.subscribe(f"n/{number}", 1), 1, f"code of subscription {number}")
    equal(watcher.subscribe("one/more", 1), 0x97 if t.is_v5 else 0x80, "code beyond the limit")
    equal(watcher.subscribe("n/0", 0), 0, "code of a known filter")
    watcher.unsubscribe("n/0")
    equal(watcher.subscribe("one/more", 1), 1, "code after one was given back")
    watcher.publish("one/more", "here")
    watcher.expect("one/more", "here")


def session(t, step):
    if step == "before":
        sleeper = t.peer("sleeper", keep=True)
        check(not sleeper.session_present, "session present at the first visit")
        for quality in (0, 1, 2):
            sleeper.subscribe(f"q{quality}/+", quality)
        sleeper.leave()
        publisher = t.peer("pub")
        for number in range(MESSAGES):
            publisher.publish(f"q{1 + number % 2}/x", f"{number}", 1 + number % 2)
    else:
        sleeper = t.peer("sleeper", keep=True)
        check(sleeper.session_present, "no session present at the return")
        # Order is promised for a topic at one QoS. [MQTT-4.6.0-6]
        got = [sleeper.next() for _ in range(MESSAGES)]
        for quality in (1, 2):
            numbers = [int(m.payload) for m in got if m.topic == t.topic(f"q{quality}/x") and m.qos == quality]
            equal(numbers, list(range(quality - 1, MESSAGES, 2)), f"what was missed at QoS {quality}")
        publisher = t.peer("pub")
        for quality in (0, 1, 2):
            publisher.publish(f"q{quality}/y", "live", quality)
            sleeper.expect(f"q{quality}/y", "live", quality)


def session_clean(t):
    first = t.peer("sleeper", keep=True)
    first.subscribe("old", 1)
    first.leave()
    publisher = t.peer("pub")
    publisher.publish("old", "missed")
    second = t.peer("sleeper")
    check(not second.session_present, "session present after a clean start")
    second.subscribe("end", 1)
    publisher.publish("old", "missed")
    publisher.publish("end", "")
    equal([m.topic for m in second.until("end")], [], "messages of the discarded session")
    second.leave()
    third = t.peer("sleeper", keep=True)
    check(not third.session_present, "session present although the last one was clean")


def redelivery(t):
    absent, publisher = t.peer("sleeper", keep=True, manual_ack=True), t.peer("pub")
    absent.subscribe("x", 1)
    for number in range(3):
        publisher.publish("x", f"{number}")
        absent.expect("x", f"{number}", 1)
    absent.vanish()
    back = t.peer("sleeper", keep=True)
    check(back.session_present, "no session present at the return")
    for number in range(3):
        check(back.expect("x", f"{number}", 1).dup, "sent again without the DUP flag")


def sys_topics(t):
    watcher, everything = t.peer("sub"), t.peer("all")
    watcher.subscribe_raw("$SYS/#", 0)
    everything.subscribe_raw("#", 0)
    equal(watcher.next().topic.split("/")[0], "$SYS", "first level")
    everything.publish("end", "")
    topics = [message.topic for message in everything.until("end")]
    check(not any(topic.startswith("$") for topic in topics), "`#` gets $-topics")


PUBLISH_PROPERTIES = {
    "UserProperty": [("unit", "mm/s"), ("unit", "µm"), ("a", "")],
    "ContentType": "application/json",
    "ResponseTopic": "answers/1",
    "CorrelationData": bytes(range(256)),
    "PayloadFormatIndicator": 1,
}


def same_properties(message):
    for name, expected in PUBLISH_PROPERTIES.items():
        equal(getattr(message.properties, name, None), expected, name)


def properties_(t):
    watcher, publisher = t.peer("sub"), t.peer("pub")
    watcher.subscribe("#", 2)
    for quality in (0, 1, 2):
        publisher.publish(f"live/{quality}", "7.1", quality, **PUBLISH_PROPERTIES)
        same_properties(watcher.expect(f"live/{quality}", "7.1", quality))
    publisher.publish("kept", "7.2", 1, retain=True, **PUBLISH_PROPERTIES)
    late = t.peer("late")
    late.subscribe("kept", 1)
    same_properties(late.expect("kept", "7.2", 1, True))


def request_response(t):
    asker, answerer = t.peer("asker"), t.peer("answerer")
    answerer.subscribe("questions", 1)
    asker.subscribe("answers", 1)
    asker.publish("questions", "6 x 7", ResponseTopic=t.topic("answers"), CorrelationData=b"\x00\x01")
    question = answerer.expect("questions", "6 x 7").properties
    answerer.publish(question.ResponseTopic, "42", raw=True, CorrelationData=question.CorrelationData)
    equal(asker.expect("answers", "42").properties.CorrelationData, b"\x00\x01", "correlation data")


def message_expiry(t):
    watcher, publisher = t.peer("sub"), t.peer("pub")
    watcher.subscribe("live", 1)
    publisher.publish("live", "x", MessageExpiryInterval=600)
    left_s = watcher.expect("live", "x").properties.MessageExpiryInterval
    check(0 < left_s <= 600, "message expiry interval:", left_s)
    publisher.publish("kept", "long", retain=True, MessageExpiryInterval=600)
    publisher.publish("kept/short", "short", retain=True, MessageExpiryInterval=1)
    topics, deadline = None, time.monotonic() + 60
    while topics != [t.topic("kept")]:
        check(time.monotonic() < deadline, "still there:", topics)
        late = t.peer("late")
        late.subscribe("kept/#", 1)
        publisher.publish("kept/end", "")
        topics = [message.topic for message in late.until("kept/end")]
        check(t.topic("kept") in topics, "expired too early:", topics)


def topic_alias(t):
    watcher, publisher = t.peer("sub", TopicAliasMaximum=5), t.peer("pub")
    check(publisher.granted.get("TopicAliasMaximum", 0) >= 2, "the broker grants no aliases")
    watcher.subscribe("#", 2)
    for round_ in ("first", "second"):
        for alias in (1, 2):
            publisher.publish(f"{round_}/{alias}", "with its topic", alias, TopicAlias=alias)
            watcher.expect(f"{round_}/{alias}", "with its topic", alias)
        for alias in (1, 2, 1, 2):
            publisher.publish("", "by its alias", alias, raw=True, TopicAlias=alias)
            watcher.expect(f"{round_}/{alias}", "by its alias", alias)


def subscription_identifier(t):
    watcher, publisher = t.peer("sub"), t.peer("pub")
    watcher.subscribe("a/+", 1, identifier=7)
    watcher.subscribe("#", 1, identifier=268435455)
    watcher.subscribe("plain", 1)
    watcher.subscribe("end", 1, identifier=9)
    publisher.publish("a/b", "x")
    publisher.publish("c", "x")
    publisher.publish("end", "x")
    found = {}
    for message in watcher.until("end"):
        found.setdefault(message.topic, set()).update(getattr(message.properties, "SubscriptionIdentifier", []))
    equal(found, {t.topic("a/b"): {7, 268435455}, t.topic("c"): {268435455}}, "subscription identifiers")


def no_local(t):
    both, other = t.peer("both"), t.peer("other")
    both.subscribe("x", 1, noLocal=True)
    for quality in (0, 1, 2):
        both.publish("x", "own", quality)
        other.publish("x", "other's", quality)
        both.expect("x", "other's", min(quality, 1))


def retain_as_published(t):
    watcher, plain, publisher = t.peer("sub"), t.peer("plain"), t.peer("pub")
    watcher.subscribe("+", 1, retainAsPublished=True)
    plain.subscribe("+", 1)
    for retain in (True, False):
        publisher.publish(f"{retain}", "x", 1, retain=retain)
        watcher.expect(f"{retain}", "x", 1, retain)
        plain.expect(f"{retain}", "x", 1, False)


def retain_handling(t):
    publisher, watcher = t.peer("pub"), t.peer("sub")
    publisher.publish("kept", "x", 1, retain=True)
    watcher.subscribe("end", 1)

    def given(handling):
        watcher.subscribe("kept", 1, retainHandling=handling)
        publisher.publish("end", "")
        return len(watcher.until("end"))

    # 0: always, 1: only if the subscription is new, 2: never. [MQTT-3.3.1-9] to [MQTT-3.3.1-11]
    equal([given(2), given(0), given(0), given(1)], [0, 1, 1, 0], "retained messages given")
    watcher.unsubscribe("kept")
    equal(given(1), 1, "retained messages given to a new subscription")


def shared(t):
    members, publisher, beside = [t.peer("one"), t.peer("two")], t.peer("pub"), t.peer("beside")
    beside.subscribe("work/+", 1)
    for member in members:
        code = member.subscribe_raw(f"$share/group/{t.topic('work/+')}", 1)
        equal(code, 1, "code of the shared subscription")
        member.subscribe("end", 1)
    texts = [str(number) for number in range(MESSAGES)]
    for text in texts:
        publisher.publish("work/x", text, 1)
    equal([bytes(beside.next().payload).decode() for _ in texts], texts, "what a subscriber beside the group gets")
    # Each member takes what it is given; when all is there, nothing may follow but the end.
    total = lambda: sum(member.messages.qsize() for member in members)
    deadline = time.monotonic() + 60
    while total() < MESSAGES and time.monotonic() < deadline:
        time.sleep(0.01)
    publisher.publish("end", "")
    taken = [[bytes(m.payload).decode() for m in member.until("end")] for member in members]
    equal(sorted(taken[0] + taken[1], key=int), texts, "what the group gets")
    check(taken[0] and taken[1], "one member got all", len(texts), "messages")


def server_keep_alive(t):
    watcher = t.peer("sub", keep_alive_s=65_000)
    granted_s = watcher.granted.get("ServerKeepAlive", 65_000)
    check(0 < granted_s <= 65_000, "server keep alive:", granted_s)
    return {"server_keep_alive_s": watcher.granted.get("ServerKeepAlive")}


def assigned_id(t):
    peers = [t.peer(None), t.peer(None)]
    ids = [peer.granted.get("AssignedClientIdentifier") for peer in peers]
    check(all(ids) and ids[0] != ids[1], "assigned client identifiers:", ids)
    peers[0].subscribe("x", 1)
    peers[1].publish("x", "here")
    peers[0].expect("x", "here")


def packet_size_max(t):
    watcher, publisher = t.peer("sub", MaximumPacketSize=1_000), t.peer("pub")
    watcher.subscribe("+", 1)
    for quality in (0, 1):
        publisher.publish("large", bytes(2_000), quality)
        publisher.publish("small", "x", quality)
        watcher.expect("small", "x", quality)


def session_expiry(t):
    t.peer("short", keep=True, expiry_s=1).leave()
    t.peer("long", keep=True).leave()
    t.peer("changed", keep=True).leave(SessionExpiryInterval=0)
    check(not t.peer("changed", keep=True).session_present, "a session that was ended in DISCONNECT is kept")
    # Each return begins the interval anew, so the absence grows until it is longer than the interval.
    for absence_s in (2, 4, 8, 16):
        time.sleep(absence_s)
        back = t.peer("short", keep=True, expiry_s=1)
        if not back.session_present:
            break
        back.leave()
    else:
        raise Failed("a session that expires after 1 s is there after 16 s")
    check(t.peer("long", keep=True).session_present, f"a session that expires after {LONG_S} s is gone")


def will_delay(t):
    watcher = t.peer("watcher")
    watcher.subscribe("gone/+", 1)
    values = {"WillDelayInterval": 1, "ContentType": "text/plain", "UserProperty": [("a", "b")]}
    t.peer("late", keep=True, will=("gone/late", "lost", 1), will_properties=values).vanish()
    message = watcher.expect("gone/late", "lost", 1)
    equal((message.properties.ContentType, message.properties.UserProperty), ("text/plain", [("a", "b")]), "properties")
    # Who comes back in time leaves no will. [MQTT-3.1.3-9]
    values = {"WillDelayInterval": 600}
    t.peer("back", keep=True, will=("gone/back", "lost", 1), will_properties=values).vanish()
    t.peer("back", keep=True).publish("gone/end", "")
    equal([message.topic for message in watcher.until("gone/end")], [], "wills of those who came back")


def will_delay_session_end(t):
    watcher = t.peer("watcher")
    watcher.subscribe("gone", 1)
    t.peer("ended", will=("gone", "lost", 1), will_properties={"WillDelayInterval": 600}).vanish()
    watcher.expect("gone", "lost", 1)


def disconnect_with_will(t):
    watcher = t.peer("watcher")
    watcher.subscribe("gone", 1)
    t.peer("mortal", will=("gone", "as wished", 1)).leave(reason=0x04)
    watcher.expect("gone", "as wished", 1)


SCENARIOS = {
    "qos": qos,
    "payloads": payloads,
    "order": order,
    "retained": retained,
    "retained-restart": retained_restart,
    "will": will,
    "wildcards": wildcards,
    "unsubscribe": unsubscribe,
    "takeover": takeover,
    "keep-alive": keep_alive,
    "refused": refused,
    "session": session,
    "session-restart": session,
    "session-clean": session_clean,
    "redelivery": redelivery,
    "sys-topics": sys_topics,
    "properties": properties_,
    "request-response": request_response,
    "message-expiry": message_expiry,
    "topic-alias": topic_alias,
    "subscription-identifier": subscription_identifier,
    "no-local": no_local,
    "retain-as-published": retain_as_published,
    "retain-handling": retain_handling,
    "shared": shared,
    "server-keep-alive": server_keep_alive,
    "assigned-id": assigned_id,
    "receive-maximum": lambda t: order(t, ReceiveMaximum=1),
    "packet-size-max": packet_size_max,
    "session-expiry": session_expiry,
    "will-delay": will_delay,
    "will-delay-session-end": will_delay_session_end,
    "disconnect-with-will": disconnect_with_will,
    **REFUSALS,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--version", choices=("3.1.1", "5"), required=True)
    parser.add_argument("--step", choices=("before", "after"), help="of a scenario of two steps")
    parser.add_argument("--prefix", required=True, help="topics and client identifiers begin with it")
    parser.add_argument("--subscriptions-max", type=int, default=1_000, help="the broker's limit for one client")
    add_options(parser)
    wish = parser.parse_args()
    target = Target(wish)
    steps = (wish.step,) if wish.step else ()
    result = {"client": f"paho-mqtt {version('paho-mqtt')}", "scenario": wish.scenario, "version": wish.version}
    try:
        details = SCENARIOS[wish.scenario](target, *steps)
        result.update(ok=True, **(details or {}))
    except Exception as error:  # What paho raises is a failure of the scenario as well.
        result.update(ok=False, error=f"{type(error).__name__}: {error}")
    print(json.dumps(result), flush=True)
    sys.exit(0 if result["ok"] else 1)


if __name__ == "__main__":
    main()
