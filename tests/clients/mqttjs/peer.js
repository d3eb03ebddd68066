// A face on MQTT.js that awaits: connect, subscribe, publish, the next message.
//
// Owns the waiting. Never judges what a broker does: that is for the scenarios in run.js. Every wait ends after PATIENCE_MS.
"use strict";

const { isDeepStrictEqual, inspect } = require("node:util");
const mqtt = require("mqtt");

const { dress } = require("./way.js");

// A busy machine may be slow, a broken broker never answers.
const PATIENCE_MS = 60_000;
// How long a session that expires should be kept: longer than any run.
const LONG_S = 3600;

class Failed extends Error {}

/** Fails with `words` unless `holds`. */
function check(holds, ...words) {
  if (!holds) throw new Failed(words.map((word) => (typeof word === "string" ? word : inspect(word))).join(" "));
}

function equal(got, expected, what) {
  check(isDeepStrictEqual(got, expected), `${what}: expected`, expected, "got", got);
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** What `promise` gives, or a failure that says `what` did not come. */
function patiently(promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Failed(`no ${what} within ${PATIENCE_MS / 1000} s`)), PATIENCE_MS);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** Where the broker is, and the names that keep this run apart from others. */
class Target {
  constructor({ host, port, version, prefix, subscriptionsMax, papers }) {
    Object.assign(this, { host, port, prefix, subscriptionsMax, papers, isV5: version === "5" });
  }

  topic(rest) {
    return `${this.prefix}/${rest}`;
  }

  peer(name, options = {}) {
    return new Peer(this, name, options).connected;
  }
}

/** One client. Messages are kept in the order in which they came. */
class Peer {
  /** `keep`: go on with the session of this name, and have it kept after the connection. */
  constructor(target, name, { keep = false, expiryS = LONG_S, will, keepAliveS = 60, neverAck = false, properties = {} }) {
    this.target = target;
    this.messages = [];
    this.aliases = {};
    this.waiting = [];
    const options = {
      host: target.host,
      port: target.port,
      protocolVersion: target.isV5 ? 5 : 4,
      clientId: name === null ? "" : `${target.prefix}/${name}`.replaceAll("/", "-"),
      clean: !keep,
      keepalive: keepAliveS,
      reschedulePings: false,
      reconnectPeriod: 0,
      connectTimeout: PATIENCE_MS,
      ...dress(target.papers),
    };
    if (will) options.will = { qos: 1, ...will, topic: target.topic(will.topic) };
    if (target.isV5) options.properties = keep ? { sessionExpiryInterval: expiryS, ...properties } : properties;
    this.client = mqtt.connect(options);
    // Without the call of its callback a message is never acknowledged, and the next ones are not read.
    if (neverAck) this.client.handleMessage = () => {};
    this.client.on("message", (topic, payload, packet) => this.#arrived({ ...packet, topic, payload }));
    this.client.on("disconnect", (packet) => (this.disconnectReason = packet.reasonCode));
    this.closed = new Promise((resolve) => this.client.on("close", () => resolve((this.isClosed = true))));
    const connack = new Promise((resolve, reject) => {
      this.client.on("connect", resolve);
      this.client.on("error", reject);
      this.closed.then(() => reject(new Failed("closed before the CONNACK")));
    });
    this.connected = patiently(connack, "CONNACK").then((packet) => {
      this.sessionPresent = packet.sessionPresent;
      this.granted = packet.properties ?? {};
      return this;
    });
  }

  #arrived(message) {
    // MQTT.js 5.16 resolves the broker's aliases at QoS 0 and 1 only. [MQTT-3.3.2.3.4]
    const alias = message.properties?.topicAlias;
    if (alias && message.topic === "") message.topic = this.aliases[alias];
    else if (alias) this.aliases[alias] = message.topic;
    const waiting = this.waiting.shift();
    if (waiting) waiting(message);
    else this.messages.push(message);
  }

  /** Subscribes to one filter below the prefix; gives the code of the SUBACK. */
  subscribe(rest, qos = 0, options = {}) {
    return this.subscribeRaw(this.target.topic(rest), qos, options);
  }

  subscribeRaw(filter, qos = 0, { identifier, ...options } = {}) {
    const properties = identifier ? { subscriptionIdentifier: identifier } : undefined;
    const granted = new Promise((resolve, reject) => {
      const wish = { [filter]: { qos, nl: false, rap: false, rh: 0, ...options }, resubscribe: true };
      // A refusal comes as an error that carries the SUBACK.
      this.client.subscribe(wish, { properties }, (error, _granted, packet) => {
        const suback = error ? error.packet : packet;
        if (suback) resolve(suback.granted[0]);
        else reject(error);
      });
    });
    return patiently(granted, "SUBACK");
  }

  /** Gives the codes of the UNSUBACK. */
  unsubscribe(rest) {
    const answer = new Promise((resolve, reject) => {
      this.client.unsubscribe(this.target.topic(rest), {}, (error, packet) => (error ? reject(error) : resolve(packet)));
    });
    return patiently(answer, "UNSUBACK").then((packet) => packet?.granted);
  }

  /** Publishes and waits for the acknowledgement. */
  publish(rest, payload, qos = 1, { retain = false, raw = false, ...properties } = {}) {
    const topic = raw ? rest : this.target.topic(rest);
    const options = this.target.isV5 ? { qos, retain, properties } : { qos, retain };
    return patiently(this.client.publishAsync(topic, payload, options), "acknowledgement");
  }

  /** Publishes all of them before it waits for the acknowledgements. */
  publishAll(rest, payloads, qos) {
    return Promise.all(payloads.map((payload) => this.publish(rest, payload, qos)));
  }

  next() {
    if (this.messages.length > 0) return Promise.resolve(this.messages.shift());
    return patiently(new Promise((resolve) => this.waiting.push(resolve)), "message");
  }

  /** The next message, which must be this one. */
  async expect(rest, payload, qos, retain) {
    const message = await this.next();
    equal([message.topic, message.payload], [this.target.topic(rest), Buffer.from(payload)], "message");
    if (qos !== undefined) equal(message.qos, qos, `QoS of ${rest}`);
    if (retain !== undefined) equal(message.retain, retain, `retain of ${rest}`);
    return message;
  }

  /** The messages before the next one on this topic: nothing else is on its way once it is here. */
  async until(rest) {
    const before = [];
    for (;;) {
      const message = await this.next();
      if (message.topic === this.target.topic(rest)) return before;
      before.push(message);
    }
  }

  async waitUntilDisconnected() {
    await patiently(this.closed, "end of the connection");
    return this.disconnectReason;
  }

  /** Says DISCONNECT and waits until the connection is closed. */
  async leave(options = {}) {
    await patiently(this.client.endAsync(false, options), "end of the connection");
    await this.waitUntilDisconnected();
  }

  /** Closes the connection without DISCONNECT, as when the process is killed. */
  async vanish() {
    this.client.stream.destroy();
    await this.waitUntilDisconnected();
  }
}

module.exports = { LONG_S, PATIENCE_MS, Failed, Target, check, equal, sleep };
