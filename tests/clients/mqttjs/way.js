// How MQTT.js gets to the broker: over TCP, TLS, WebSocket or both, with a password, a certificate or neither.
//
// Owns the options that this takes. The papers are named on the command line by the test that plays.
"use strict";

const { readFileSync } = require("node:fs");

const PROTOCOLS = { tcp: "mqtt", tls: "mqtts", "mutual-tls": "mqtts", ws: "ws", wss: "wss" };

/** Options of the command line. */
const PAPERS = {
  way: { type: "string", default: "tcp" },
  // The certificate that is trusted; the client's own, and its key.
  authority: { type: "string" },
  certificate: { type: "string" },
  key: { type: "string" },
  user: { type: "string" },
  password: { type: "string" },
  // Of a WebSocket: its path, the page that asks for it, and whether MQTT goes unnamed.
  path: { type: "string" },
  origin: { type: "string" },
  "no-subprotocol": { type: "boolean", default: false },
};

const contents = (file) => file && readFileSync(file);

/** Options of MQTT.js for what the command line names. */
function dress(papers) {
  const { way, authority, certificate, key, user, password, path, origin } = papers;
  const options = { protocol: PROTOCOLS[way] };
  if (user) Object.assign(options, { username: user, password });
  if (authority) Object.assign(options, { ca: contents(authority), cert: contents(certificate), key: contents(key) });
  if (way !== "ws" && way !== "wss") return options;
  Object.assign(options, { path, wsOptions: { origin } });
  if (papers["no-subprotocol"] || origin || path !== "/mqtt") options.createWebsocket = listeningTo(papers);
  return options;
}

/** Opens a WebSocket and notes in the papers why it was refused: MQTT.js keeps that to itself. */
function listeningTo(papers) {
  const WebSocket = require("ws");
  return (url, protocols, { wsOptions }) => {
    const socket = new WebSocket(url, papers["no-subprotocol"] ? [] : protocols, wsOptions);
    return socket.on("error", (error) => (papers.refusal = error.message));
  };
}

module.exports = { PAPERS, dress };
