// Plays one scenario with MQTT.js against a broker; prints one line of JSON and exits with 1 if it fails.
//
// The scenarios are listed, with what each claims, in ../scenarios.rs. A scenario of several steps is one process a step, so
// that the broker can be killed in between.
"use strict";

const { readFileSync } = require("node:fs");
const path = require("node:path");
const { parseArgs } = require("node:util");
const { REFUSALS } = require("./refusals.js");
const { LONG_S, PATIENCE_MS, Failed, Target, check, equal, sleep } = require("./peer.js");
const { PAPERS } = require("./way.js");

const MESSAGES = 100;

const numbers = () => Array.from({ length: MESSAGES }, (_, number) => `${number}`);

async function qos(t) {
  const watchers = await Promise.all([0, 1, 2].map((granted) => t.peer(`sub-${granted}`)));
  for (const [granted, watcher] of watchers.entries()) {
    equal(await watcher.subscribe(`${granted}/+`, granted), granted, "granted QoS");
  }
  const publisher = await t.peer("pub");
  for (const [granted, watcher] of watchers.entries()) {
    for (const published of [0, 1, 2]) {
      const payload = `from ${published} to ${granted}`;
      await publisher.publish(`${granted}/${published}`, payload, published);
      await watcher.expect(`${granted}/${published}`, payload, Math.min(published, granted), false);
    }
  }
}

async function payloads(t) {
  const [watcher, publisher] = [await t.peer("sub"), await t.peer("pub")];
  await watcher.subscribe("#", 2);
  const all = {
    empty: "",
    bytes: Buffer.from(Array.from({ length: 256 }, (_, byte) => byte)),
    "grüße/温度/µ": "wärmer",
    large: Buffer.alloc(200_000, "large"),
  };
  for (const [rest, payload] of Object.entries(all)) {
    for (const quality of [0, 1, 2]) {
      await publisher.publish(rest, payload, quality);
      await watcher.expect(rest, payload, quality);
    }
  }
}

async function order(t, properties) {
  const [watcher, publisher] = [await t.peer("sub", { properties }), await t.peer("pub")];
  await watcher.subscribe("+", 2);
  for (const quality of [1, 2]) {
    await publisher.publishAll(`${quality}`, numbers(), quality);
    for (const text of numbers()) await watcher.expect(`${quality}`, text, quality);
  }
}

/** What a new subscriber gets of `kept/+`. */
async function retainedNow(t, publisher) {
  const late = await t.peer("late");
  await late.subscribe("kept/+", 2);
  await publisher.publish("kept/end", "", 2);
  const found = (await late.until("kept/end")).map((m) => [m.topic, m.payload.toString(), m.qos, m.retain]);
  return found.sort();
}

async function retained(t) {
  const [live, publisher] = [await t.peer("live"), await t.peer("pub")];
  await live.subscribe("#", 1);
  for (const quality of [0, 1, 2]) {
    for (const payload of ["old", "new"]) {
      await publisher.publish(`kept/${quality}`, payload, quality, { retain: true });
      await live.expect(`kept/${quality}`, payload, Math.min(quality, 1), false);
    }
  }
  for (const payload of ["short", ""]) await publisher.publish("kept/gone", payload, 1, { retain: true });
  const expected = [0, 1, 2].map((quality) => [t.topic(`kept/${quality}`), "new", quality, true]);
  equal(await retainedNow(t, publisher), expected, "retained");
}

async function retainedRestart(t, step) {
  const publisher = await t.peer("pub");
  if (step === "before") {
    for (const quality of [1, 2]) await publisher.publish(`kept/${quality}`, "still here", quality, { retain: true });
    for (const payload of ["short", ""]) await publisher.publish("kept/gone", payload, 1, { retain: true });
  } else {
    const expected = [1, 2].map((quality) => [t.topic(`kept/${quality}`), "still here", quality, true]);
    equal(await retainedNow(t, publisher), expected, "retained");
  }
}

async function will(t) {
  const watcher = await t.peer("watcher");
  await watcher.subscribe("gone/+", 2);
  await (await t.peer("polite", { will: { topic: "gone/polite", payload: "never" } })).leave();
  for (const quality of [0, 1, 2]) {
    const mortal = await t.peer("mortal", { will: { topic: `gone/${quality}`, payload: "lost", qos: quality } });
    await mortal.vanish();
    await watcher.expect(`gone/${quality}`, "lost", quality, false);
  }
}

async function wildcards(t) {
  const topics = ["a", "a/b", "a/b/c", "a/x/c", "a/b/c/d", "b/b", "/b", "A/b", "a/b/"];
  const expected = {
    "a/+/c": ["a/b/c", "a/x/c"],
    "a/#": ["a", "a/b", "a/b/c", "a/x/c", "a/b/c/d", "a/b/"],
    "+/b": ["a/b", "b/b", "/b", "A/b"],
    "#": topics,
    "a/b": ["a/b"],
  };
  const [publisher, watchers] = [await t.peer("pub"), []];
  for (const filter of Object.keys(expected)) {
    const watcher = await t.peer(`sub-${watchers.length}`);
    await watcher.subscribe(filter, 1);
    await watcher.subscribe("end/end/end", 1);
    watchers.push([filter, watcher]);
  }
  for (const topic of [...topics, "end/end/end"]) await publisher.publish(topic, topic);
  for (const [filter, watcher] of watchers) {
    const got = (await watcher.until("end/end/end")).map((message) => message.topic);
    equal(got.sort(), expected[filter].map((topic) => t.topic(topic)).sort(), `topics of ${filter}`);
  }
}

async function unsubscribe(t) {
  const [watcher, publisher] = [await t.peer("sub"), await t.peer("pub")];
  for (const rest of ["left", "kept", "end"]) await watcher.subscribe(rest, 1);
  const reasons = [await watcher.unsubscribe("left"), await watcher.unsubscribe("never")];
  if (t.isV5) equal(reasons, [[0], [0x11]], "codes of UNSUBACK");
  for (const rest of ["left", "kept", "end"]) await publisher.publish(rest, rest);
  equal((await watcher.until("end")).map((message) => message.topic), [t.topic("kept")], "topics after UNSUBSCRIBE");
}

async function takeover(t) {
  const watcher = await t.peer("watcher");
  await watcher.subscribe("gone", 1);
  const first = await t.peer("twin", { will: { topic: "gone", payload: "lost" } });
  const second = await t.peer("twin");
  const reason = await first.waitUntilDisconnected();
  if (t.isV5) equal(reason, 0x8e, "reason of the disconnect");
  await watcher.expect("gone", "lost");
  await second.subscribe("still", 1);
  await second.publish("still", "here");
  await second.expect("still", "here");
}

async function keepAlive(t) {
  const [watcher, publisher] = [await t.peer("sub", { keepAliveS: 4 }), await t.peer("pub")];
  await watcher.subscribe("x", 1);
  // Longer than the 6 s of silence that the broker grants: only the client's pings keep it.
  await sleep(7_000);
  check(!watcher.isClosed, "disconnected although the client pings");
  await publisher.publish("x", "here");
  await watcher.expect("x", "here");
}

async function refused(t) {
  const watcher = await t.peer("sub");
  for (let number = 0; number < t.subscriptionsMax; number += 1) {
    equal(await watcher.subscribe(`n/${number}`, 1), 1, `code of subscription ${number}`);
  }
  equal(await watcher.subscribe("one/more", 1), t.isV5 ? 0x97 : 0x80, "code beyond the limit");
  equal(await watcher.subscribe("n/0", 0), 0, "code of a known filter");
  await watcher.unsubscribe("n/0");
  equal(await watcher.subscribe("one/more", 1), 1, "code after one was given back");
  await watcher.publish("one/more", "here");
  await watcher.expect("one/more", "here");
}

async function session(t, step) {
  const sleeper = await t.peer("sleeper", { keep: true });
  if (step === "before") {
    check(!sleeper.sessionPresent, "session present at the first visit");
    for (const quality of [0, 1, 2]) await sleeper.subscribe(`q${quality}/+`, quality);
    await sleeper.leave();
    const publisher = await t.peer("pub");
    for (let number = 0; number < MESSAGES; number += 1) {
      const quality = 1 + (number % 2);
      await publisher.publish(`q${quality}/x`, `${number}`, quality);
    }
    return;
  }
  check(sleeper.sessionPresent, "no session present at the return");
  const got = [];
  while (got.length < MESSAGES) got.push(await sleeper.next());
  // Order is promised for a topic at one QoS. [MQTT-4.6.0-6]
  for (const quality of [1, 2]) {
    const missed = got.filter((m) => m.topic === t.topic(`q${quality}/x`) && m.qos === quality);
    const expected = numbers().filter((number) => 1 + (number % 2) === quality);
    equal(missed.map((m) => m.payload.toString()), expected, `what was missed at QoS ${quality}`);
  }
  const publisher = await t.peer("pub");
  for (const quality of [0, 1, 2]) {
    await publisher.publish(`q${quality}/y`, "live", quality);
    await sleeper.expect(`q${quality}/y`, "live", quality);
  }
}

async function sessionClean(t) {
  const first = await t.peer("sleeper", { keep: true });
  await first.subscribe("old", 1);
  await first.leave();
  const publisher = await t.peer("pub");
  await publisher.publish("old", "missed");
  const second = await t.peer("sleeper");
  check(!second.sessionPresent, "session present after a clean start");
  await second.subscribe("end", 1);
  await publisher.publish("old", "missed");
  await publisher.publish("end", "");
  equal((await second.until("end")).map((m) => m.topic), [], "messages of the discarded session");
  await second.leave();
  const third = await t.peer("sleeper", { keep: true });
  check(!third.sessionPresent, "session present although the last one was clean");
}

async function redelivery(t) {
  const [absent, publisher] = [await t.peer("sleeper", { keep: true, neverAck: true }), await t.peer("pub")];
  await absent.subscribe("x", 1);
  await publisher.publish("x", "0");
  await absent.expect("x", "0", 1);
  await absent.vanish();
  const back = await t.peer("sleeper", { keep: true });
  check(back.sessionPresent, "no session present at the return");
  check((await back.expect("x", "0", 1)).dup, "sent again without the DUP flag");
}

async function sysTopics(t) {
  const [watcher, everything] = [await t.peer("sub"), await t.peer("all")];
  await watcher.subscribeRaw("$SYS/#", 0);
  await everything.subscribeRaw("#", 0);
  equal((await watcher.next()).topic.split("/")[0], "$SYS", "first level");
  await everything.publish("end", "");
  const topics = (await everything.until("end")).map((message) => message.topic);
  check(!topics.some((topic) => topic.startsWith("$")), "`#` gets $-topics");
}

const PUBLISH_PROPERTIES = {
  userProperties: { unit: ["mm/s", "µm"], a: "" },
  contentType: "application/json",
  responseTopic: "answers/1",
  correlationData: Buffer.from(Array.from({ length: 256 }, (_, byte) => byte)),
  payloadFormatIndicator: true,
};

function sameProperties({ properties = {} }) {
  for (const [name, expected] of Object.entries(PUBLISH_PROPERTIES)) {
    // The client gives user properties as an object without a prototype.
    const got = name === "userProperties" ? { ...properties[name] } : properties[name];
    equal(got, expected, name);
  }
}

async function properties(t) {
  const [watcher, publisher] = [await t.peer("sub"), await t.peer("pub")];
  await watcher.subscribe("#", 2);
  for (const quality of [0, 1, 2]) {
    await publisher.publish(`live/${quality}`, "7.1", quality, PUBLISH_PROPERTIES);
    sameProperties(await watcher.expect(`live/${quality}`, "7.1", quality));
  }
  await publisher.publish("kept", "7.2", 1, { retain: true, ...PUBLISH_PROPERTIES });
  const late = await t.peer("late");
  await late.subscribe("kept", 1);
  sameProperties(await late.expect("kept", "7.2", 1, true));
}

async function requestResponse(t) {
  const [asker, answerer] = [await t.peer("asker"), await t.peer("answerer")];
  await answerer.subscribe("questions", 1);
  await asker.subscribe("answers", 1);
  const correlationData = Buffer.from([0, 1]);
  await asker.publish("questions", "6 x 7", 1, { responseTopic: t.topic("answers"), correlationData });
  const question = (await answerer.expect("questions", "6 x 7")).properties;
  const back = { raw: true, correlationData: question.correlationData };
  await answerer.publish(question.responseTopic, "42", 1, back);
  equal((await asker.expect("answers", "42")).properties.correlationData, correlationData, "correlation data");
}

async function messageExpiry(t) {
  const [watcher, publisher] = [await t.peer("sub"), await t.peer("pub")];
  await watcher.subscribe("live", 1);
  await publisher.publish("live", "x", 1, { messageExpiryInterval: 600 });
  const leftS = (await watcher.expect("live", "x")).properties?.messageExpiryInterval;
  check(leftS > 0 && leftS <= 600, "message expiry interval:", leftS);
  await publisher.publish("kept", "long", 1, { retain: true, messageExpiryInterval: 600 });
  await publisher.publish("kept/short", "short", 1, { retain: true, messageExpiryInterval: 1 });
  const deadline = Date.now() + PATIENCE_MS;
  for (let topics = []; topics.length !== 1; ) {
    check(Date.now() < deadline, "still there:", topics);
    const late = await t.peer("late");
    await late.subscribe("kept/#", 1);
    await publisher.publish("kept/end", "");
    topics = (await late.until("kept/end")).map((message) => message.topic);
    check(topics.includes(t.topic("kept")), "expired too early:", topics);
    await late.leave();
  }
}

async function topicAlias(t) {
  const [watcher, publisher] = [await t.peer("sub", { properties: { topicAliasMaximum: 5 } }), await t.peer("pub")];
  check(publisher.granted.topicAliasMaximum >= 2, "the broker grants no aliases");
  await watcher.subscribe("#", 2);
  for (const round of ["first", "second"]) {
    for (const alias of [1, 2]) {
      await publisher.publish(`${round}/${alias}`, "with its topic", alias, { topicAlias: alias });
      await watcher.expect(`${round}/${alias}`, "with its topic", alias);
    }
    for (const alias of [1, 2, 1, 2]) {
      await publisher.publish("", "by its alias", alias, { raw: true, topicAlias: alias });
      await watcher.expect(`${round}/${alias}`, "by its alias", alias);
    }
  }
}

async function subscriptionIdentifier(t) {
  const [watcher, publisher] = [await t.peer("sub"), await t.peer("pub")];
  await watcher.subscribe("a/+", 1, { identifier: 7 });
  await watcher.subscribe("#", 1, { identifier: 268_435_455 });
  await watcher.subscribe("plain", 1);
  await watcher.subscribe("end", 1, { identifier: 9 });
  for (const rest of ["a/b", "c", "end"]) await publisher.publish(rest, "x");
  const found = {};
  for (const { topic, properties } of await watcher.until("end")) {
    // One identifier comes as a number, several as a list.
    found[topic] = [...(found[topic] ?? []), ...[properties?.subscriptionIdentifier ?? []].flat()].sort();
  }
  const expected = { [t.topic("a/b")]: [268_435_455, 7], [t.topic("c")]: [268_435_455] };
  equal(found, expected, "subscription identifiers");
}

async function noLocal(t) {
  const [both, other] = [await t.peer("both"), await t.peer("other")];
  await both.subscribe("x", 1, { nl: true });
  for (const quality of [0, 1, 2]) {
    await both.publish("x", "own", quality);
    await other.publish("x", "other's", quality);
    await both.expect("x", "other's", Math.min(quality, 1));
  }
}

async function retainAsPublished(t) {
  const [watcher, plain, publisher] = [await t.peer("sub"), await t.peer("plain"), await t.peer("pub")];
  await watcher.subscribe("+", 1, { rap: true });
  await plain.subscribe("+", 1);
  for (const retain of [true, false]) {
    await publisher.publish(`${retain}`, "x", 1, { retain });
    await watcher.expect(`${retain}`, "x", 1, retain);
    await plain.expect(`${retain}`, "x", 1, false);
  }
}

async function retainHandling(t) {
  const [publisher, watcher] = [await t.peer("pub"), await t.peer("sub")];
  await publisher.publish("kept", "x", 1, { retain: true });
  await watcher.subscribe("end", 1);
  const given = async (rh) => {
    await watcher.subscribe("kept", 1, { rh });
    await publisher.publish("end", "");
    return (await watcher.until("end")).length;
  };
  // 0: always, 1: only if the subscription is new, 2: never. [MQTT-3.3.1-9] to [MQTT-3.3.1-11]
  equal([await given(2), await given(0), await given(0), await given(1)], [0, 1, 1, 0], "retained messages given");
  await watcher.unsubscribe("kept");
  equal(await given(1), 1, "retained messages given to a new subscription");
}

async function shared(t) {
  const members = [await t.peer("one"), await t.peer("two")];
  const [publisher, beside] = [await t.peer("pub"), await t.peer("beside")];
  await beside.subscribe("work/+", 1);
  for (const member of members) {
    equal(await member.subscribeRaw(`$share/group/${t.topic("work/+")}`, 1), 1, "code of the shared subscription");
    await member.subscribe("end", 1);
  }
  for (const text of numbers()) await publisher.publish("work/x", text);
  for (const text of numbers()) await beside.expect("work/x", text);
  // Each member takes what it is given; when all is there, nothing may follow but the end.
  const deadline = Date.now() + PATIENCE_MS;
  while (members[0].messages.length + members[1].messages.length < MESSAGES && Date.now() < deadline) await sleep(10);
  await publisher.publish("end", "");
  const taken = [];
  for (const member of members) taken.push((await member.until("end")).map((m) => Number(m.payload)));
  equal(taken.flat().sort((a, b) => a - b), numbers().map(Number), "what the group gets");
  check(taken.every((part) => part.length > 0), "one member got all", MESSAGES, "messages");
}

async function serverKeepAlive(t) {
  const watcher = await t.peer("sub", { keepAliveS: 65_000 });
  const grantedS = watcher.granted.serverKeepAlive ?? 65_000;
  check(grantedS > 0 && grantedS <= 65_000, "server keep alive:", grantedS);
  return { server_keep_alive_s: watcher.granted.serverKeepAlive ?? null };
}

async function assignedId(t) {
  const peers = [await t.peer(null), await t.peer(null)];
  const ids = peers.map((peer) => peer.granted.assignedClientIdentifier);
  check(ids[0] && ids[1] && ids[0] !== ids[1], "assigned client identifiers:", ids);
  await peers[0].subscribe("x", 1);
  await peers[1].publish("x", "here");
  await peers[0].expect("x", "here");
}

async function packetSizeMax(t) {
  const [watcher, publisher] = [await t.peer("sub", { properties: { maximumPacketSize: 1_000 } }), await t.peer("pub")];
  await watcher.subscribe("+", 1);
  for (const quality of [0, 1]) {
    await publisher.publish("large", Buffer.alloc(2_000), quality);
    await publisher.publish("small", "x", quality);
    await watcher.expect("small", "x", quality);
  }
}

async function sessionExpiry(t) {
  await (await t.peer("short", { keep: true, expiryS: 1 })).leave();
  await (await t.peer("long", { keep: true })).leave();
  await (await t.peer("changed", { keep: true })).leave({ properties: { sessionExpiryInterval: 0 } });
  const changed = await t.peer("changed", { keep: true });
  check(!changed.sessionPresent, "a session that was ended in DISCONNECT is kept");
  // Each return begins the interval anew, so the absence grows until it is longer than the interval.
  let isPresent = true;
  for (const absenceS of [2, 4, 8, 16]) {
    await sleep(absenceS * 1_000);
    const back = await t.peer("short", { keep: true, expiryS: 1 });
    isPresent = back.sessionPresent;
    await back.leave();
    if (!isPresent) break;
  }
  check(!isPresent, "a session that expires after 1 s is there after 16 s");
  check((await t.peer("long", { keep: true })).sessionPresent, `a session that expires after ${LONG_S} s is gone`);
}

async function willDelay(t) {
  const watcher = await t.peer("watcher");
  await watcher.subscribe("gone/+", 1);
  const given = { contentType: "text/plain", userProperties: { a: "b" } };
  const late = { topic: "gone/late", payload: "lost", properties: { willDelayInterval: 1, ...given } };
  await (await t.peer("late", { keep: true, will: late })).vanish();
  const { contentType, userProperties } = (await watcher.expect("gone/late", "lost", 1)).properties;
  equal({ contentType, userProperties: { ...userProperties } }, given, "properties of the will");
  // Who comes back in time leaves no will. [MQTT-3.1.3-9]
  const back = { topic: "gone/back", payload: "lost", properties: { willDelayInterval: 600 } };
  await (await t.peer("back", { keep: true, will: back })).vanish();
  await (await t.peer("back", { keep: true })).publish("gone/end", "");
  equal((await watcher.until("gone/end")).map((message) => message.topic), [], "wills of those who came back");
}

async function willDelaySessionEnd(t) {
  const watcher = await t.peer("watcher");
  await watcher.subscribe("gone", 1);
  const will = { topic: "gone", payload: "lost", properties: { willDelayInterval: 600 } };
  await (await t.peer("ended", { will })).vanish();
  await watcher.expect("gone", "lost", 1);
}

async function disconnectWithWill(t) {
  const watcher = await t.peer("watcher");
  await watcher.subscribe("gone", 1);
  await (await t.peer("mortal", { will: { topic: "gone", payload: "as wished" } })).leave({ reasonCode: 0x04 });
  await watcher.expect("gone", "as wished", 1);
}

const SCENARIOS = {
  qos,
  payloads,
  order,
  retained,
  "retained-restart": retainedRestart,
  will,
  wildcards,
  unsubscribe,
  takeover,
  "keep-alive": keepAlive,
  refused,
  session,
  "session-restart": session,
  "session-clean": sessionClean,
  redelivery,
  "sys-topics": sysTopics,
  properties,
  "request-response": requestResponse,
  "message-expiry": messageExpiry,
  "topic-alias": topicAlias,
  "subscription-identifier": subscriptionIdentifier,
  "no-local": noLocal,
  "retain-as-published": retainAsPublished,
  "retain-handling": retainHandling,
  shared,
  "server-keep-alive": serverKeepAlive,
  "assigned-id": assignedId,
  "receive-maximum": (t) => order(t, { receiveMaximum: 1 }),
  "packet-size-max": packetSizeMax,
  "session-expiry": sessionExpiry,
  "will-delay": willDelay,
  "will-delay-session-end": willDelaySessionEnd,
  "disconnect-with-will": disconnectWithWill,
  ...REFUSALS,
};

const OPTIONS = {
  host: { type: "string", default: "127.0.0.1" },
  port: { type: "string" },
  version: { type: "string" },
  // "before" or "after", of a scenario of two steps.
  step: { type: "string" },
  // Topics and client identifiers begin with it.
  prefix: { type: "string" },
  // The broker's limit for one client.
  "subscriptions-max": { type: "string", default: "1000" },
  ...PAPERS,
  // Only tells the version of MQTT.js.
  "client-version": { type: "boolean", default: false },
};

/** The version of MQTT.js, which its exports do not tell. */
function clientVersion() {
  const found = path.join(path.dirname(require.resolve("mqtt")), "..", "package.json");
  return JSON.parse(readFileSync(found, "utf8")).version;
}

async function main() {
  const { values, positionals } = parseArgs({ options: OPTIONS, allowPositionals: true });
  if (values["client-version"]) return void process.stdout.write(`${clientVersion()}\n`);
  const [name] = positionals;
  const { host, version, prefix, step } = values;
  check(SCENARIOS[name] && values.port && prefix && ["3.1.1", "5"].includes(version), "wrong arguments", process.argv);
  const port = Number(values.port);
  const subscriptionsMax = Number(values["subscriptions-max"]);
  const target = new Target({ host, port, version, prefix, subscriptionsMax, papers: values });
  const result = { client: `MQTT.js ${clientVersion()}`, scenario: name, version };
  try {
    Object.assign(result, { ok: true }, await SCENARIOS[name](target, step));
  } catch (error) {
    Object.assign(result, { ok: false, error: `${error}` });
  }
  // Clients that still stand are cut off by the end of the process.
  process.stdout.write(`${JSON.stringify(result)}\n`, () => process.exit(result.ok ? 0 : 1));
}

main().catch((error) => {
  process.stderr.write(`${error instanceof Failed ? error.message : error.stack}\n`);
  process.exit(1);
});
