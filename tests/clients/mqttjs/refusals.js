// Scenarios in which a client is not let in, or may not have what it asks for; ../refusals.rs says what each is about.
"use strict";

const { Failed, check, equal } = require("./peer.js");

const NOT_AUTHORIZED = 0x87;

/** Why the client is not connected. */
async function refusal(t) {
  try {
    await t.peer("x");
  } catch (error) {
    return error;
  }
  throw new Failed("a client that is to be kept out is connected");
}

/** The client itself turns away from a broker that it does not know. */
async function untrusted(t, ...codes) {
  const { code, message } = await refusal(t);
  check(codes.includes(code), "expected", codes, "got", code, message);
}

/** The connection ends before there is a CONNACK: with TLS 1.3, when the client takes the handshake for done. */
async function shutOut(t) {
  const { code, message } = await refusal(t);
  const ended = ["ECONNRESET", "EPIPE"].includes(code) || /alert|before the CONNACK/.test(message);
  check(ended && !/within/.test(message), "expected the end of the connection, got", code, message);
}

async function refusedLogin(t) {
  equal((await refusal(t)).code, t.isV5 ? 0x86 : 4, "code of the CONNACK");
}

/** The request for a WebSocket is answered with a status of HTTP. */
async function refusedRequest(t, status) {
  const { message } = await refusal(t);
  const answered = t.papers.refusal ?? message;
  check(answered.endsWith(`: ${status}`), "expected the status", status, "got", answered);
}

async function outsideRules(t) {
  const watcher = await t.peer("sub");
  let publisher = await t.peer("pub");
  for (const filter of ["elsewhere/x", "#", "+/+"]) {
    equal(await watcher.subscribeRaw(filter, 1), t.isV5 ? NOT_AUTHORIZED : 0x80, `code of ${filter}`);
  }
  equal(await watcher.subscribe("own", 1), 1, "code of a filter inside the rules");
  const refused = (qos) => publisher.publish("elsewhere/x", "never", qos, { raw: true }).catch((error) => error);
  if (t.isV5) {
    for (const qos of [1, 2]) equal((await refused(qos))?.code, NOT_AUTHORIZED, `code at QoS ${qos}`);
  } else {
    refused(1);
    // MQTT 3.1.1 has no code for it, and an acknowledgement would mean that it is on disk.
    await publisher.waitUntilDisconnected();
    publisher = await t.peer("pub");
  }
  await publisher.publish("own", "granted");
  await watcher.expect("own", "granted", 1);
}

const REFUSALS = {
  "wrong-authority": (t) => untrusted(t, "UNABLE_TO_VERIFY_LEAF_SIGNATURE", "CERT_SIGNATURE_FAILURE"),
  "wrong-host": (t) => untrusted(t, "ERR_TLS_CERT_ALTNAME_INVALID"),
  "no-certificate": shutOut,
  "other-certificate": shutOut,
  "wrong-password": refusedLogin,
  "no-login": refusedLogin,
  "outside-rules": outsideRules,
  "other-origin": (t) => refusedRequest(t, 403),
  "wrong-path": (t) => refusedRequest(t, 404),
  "no-subprotocol": (t) => refusedRequest(t, 400),
};

module.exports = { REFUSALS };
