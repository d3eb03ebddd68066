//! MQTT.js, the JavaScript client: plays `mqttjs/run.js` with Node.

use std::process::Command;

use crate::kind::{Kind, Missing, Turn};
use crate::scenarios::Version;
use crate::script;
use crate::way::Way;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/mqttjs/run.js");
const REMEDY: &str = "`.ci/run` installs it; by hand: npm ci in a copy of tests/clients/mqttjs, then \
                      MILLWRIGHT_NODE_MODULES=COPY/node_modules";

pub(crate) struct MqttJs;

/// Node, with the folder of modules that it is to search, if one is named; beside the script it looks by itself.
fn node() -> Command {
    let mut command = Command::new("node");
    if let Some(modules) = std::env::var_os("MILLWRIGHT_NODE_MODULES") {
        command.env("NODE_PATH", modules);
    }
    command
}

impl Kind for MqttJs {
    fn name(&self) -> &'static str {
        "mqttjs"
    }

    fn find(&self) -> Result<String, Missing> {
        let missing = |reason: &str| Missing { reason: reason.to_owned(), remedy: REMEDY };
        script::first_line(node().arg("--version")).ok_or_else(|| missing("there is no `node`"))?;
        let version = script::first_line(node().args([SCRIPT, "--client-version"]))
            .ok_or_else(|| missing("`node` finds no MQTT.js"))?;
        Ok(format!("MQTT.js {version}"))
    }

    fn ways(&self) -> &'static [Way] {
        &[Way::Tcp, Way::Tls, Way::MutualTls, Way::WebSocket, Way::WebSocketTls]
    }

    fn cannot(&self, _scenario: &str, _version: Version) -> Option<&'static str> {
        None
    }

    fn play(&self, turn: &Turn) -> anyhow::Result<()> {
        let mut command = node();
        command.arg(SCRIPT);
        script::play(command, turn)
    }
}
