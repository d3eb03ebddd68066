//! The ways from a client to the gateway, and what a client brings along on each.
//!
//! Owns the configuration of a gateway that serves a way. Over TLS, WebSocket and both, a client logs in with a password; with
//! a certificate of its own it needs none. In every case an access rule lets it have the topics of its scenario alone.

use std::path::{Path, PathBuf};

use crate::secrets::{CLIENT, PASSWORD, Secrets, USER};

/// What is spoken below MQTT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// TCP, to a gateway that lets everybody in.
    Tcp,
    Tls,
    /// TLS, and the client has to show a certificate.
    MutualTls,
    WebSocket,
    WebSocketTls,
}

impl Way {
    /// The part of a test's name and the scripts' word; plain TCP goes without.
    pub(crate) fn slug(self) -> &'static str {
        match self {
            Way::Tcp => "tcp",
            Way::Tls => "tls",
            Way::MutualTls => "mutual-tls",
            Way::WebSocket => "ws",
            Way::WebSocketTls => "wss",
        }
    }

    /// What the gateway calls it in its log; nothing for the listener that is always there.
    pub(crate) fn layers(self) -> Option<&'static str> {
        match self {
            Way::Tcp => None,
            Way::Tls | Way::MutualTls => Some("tls"),
            Way::WebSocket => Some("ws"),
            Way::WebSocketTls => Some("wss"),
        }
    }

    fn is_encrypted(self) -> bool {
        matches!(self, Way::Tls | Way::MutualTls | Way::WebSocketTls)
    }

    /// The sections of a gateway that serves it and allows nothing but `topics`.
    pub(crate) fn configuration(self, secrets: &Secrets, topics: &str) -> String {
        if self == Way::Tcp {
            return String::new();
        }
        let who = if self == Way::MutualTls {
            format!("certificates = [\"{CLIENT}\"]")
        } else {
            format!("users = [\"{USER}\"]")
        };
        let mut text = format!("[[broker.access]]\n{who}\npublish = [\"{topics}\"]\nsubscribe = [\"{topics}\"]\n");
        if self != Way::MutualTls {
            text.push_str(&format!(
                "[[broker.user]]\nname = \"{USER}\"\npassword_hash = \"{}\"\n",
                secrets.password_hash
            ));
        }
        if self.is_encrypted() {
            let file = |name: &str| secrets.file(name).display().to_string();
            text.push_str(&format!(
                "[broker.tls]\ncertificate = \"{}\"\nkey = \"{}\"\n",
                file("server.crt"),
                file("server.key")
            ));
            if self != Way::WebSocketTls {
                text.push_str("listen = \"127.0.0.1:0\"\n");
            }
            if self == Way::MutualTls {
                text.push_str(&format!("client_certificate = \"required\"\nclient_ca = \"{}\"\n", file("ca.crt")));
            }
        }
        match self {
            Way::WebSocket => text.push_str("[broker.websocket]\nlisten = \"127.0.0.1:0\"\n"),
            Way::WebSocketTls => text.push_str("[broker.websocket]\ntls_listen = \"127.0.0.1:0\"\n"),
            _ => {}
        }
        text
    }
}

/// What a client brings along, and how it asks for the gateway.
#[derive(Debug, Clone)]
pub(crate) struct Papers {
    pub(crate) way: Way,
    /// The name by which it knows the gateway.
    pub(crate) host: String,
    /// The authority that it trusts.
    pub(crate) authority: Option<PathBuf>,
    /// Its certificate and key.
    pub(crate) certificate: Option<(PathBuf, PathBuf)>,
    pub(crate) login: Option<(&'static str, &'static str)>,
    /// The page that a browser says it shows.
    pub(crate) origin: Option<&'static str>,
    /// The path of the WebSocket.
    pub(crate) path: &'static str,
    /// Whether the WebSocket's subprotocol is named.
    pub(crate) subprotocol: bool,
}

impl Papers {
    /// All that a welcome client has.
    pub(crate) fn of(way: Way, host: String, secrets: Option<&Secrets>) -> Papers {
        let secrets = secrets.filter(|_| way != Way::Tcp);
        let authority = secrets.filter(|_| way.is_encrypted()).map(|secrets| secrets.file("ca.crt"));
        let certificate = secrets.filter(|_| way == Way::MutualTls).map(|secrets| pair(&secrets.dir));
        let login = secrets.filter(|_| way != Way::MutualTls).map(|_| (USER, PASSWORD));
        Papers { way, host, authority, certificate, login, origin: None, path: "/mqtt", subprotocol: true }
    }
}

/// The client's certificate and key in a folder of `millwright cert`.
pub(crate) fn pair(dir: &Path) -> (PathBuf, PathBuf) {
    (dir.join(format!("{CLIENT}.crt")), dir.join(format!("{CLIENT}.key")))
}
