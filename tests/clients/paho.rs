//! paho-mqtt, the Python client: plays `paho/run.py`.

use std::process::Command;

use crate::kind::{Kind, Missing, Turn};
use crate::scenarios::Version;
use crate::script;
use crate::way::Way;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/paho/run.py");
const REMEDY: &str = "`.ci/run` installs it; by hand: python3 -m venv DIR && DIR/bin/pip install -r \
                      tests/clients/paho/requirements.txt, then MILLWRIGHT_PYTHON=DIR/bin/python3";

pub(crate) struct Paho;

/// The Python to use.
fn python() -> String {
    std::env::var("MILLWRIGHT_PYTHON").unwrap_or_else(|_| "python3".to_owned())
}

impl Kind for Paho {
    fn name(&self) -> &'static str {
        "paho"
    }

    fn find(&self) -> Result<String, Missing> {
        let missing = |reason| Missing { reason, remedy: REMEDY };
        let ask = "from importlib.metadata import version; print(version('paho-mqtt'))";
        let version = script::first_line(Command::new(python()).args(["-c", ask]))
            .ok_or_else(|| missing(format!("`{}` has no paho-mqtt", python())))?;
        if !version.starts_with("2.") {
            return Err(missing(format!("`{}` has paho-mqtt {version}, the tests are for 2.x", python())));
        }
        Ok(format!("paho-mqtt {version}"))
    }

    fn ways(&self) -> &'static [Way] {
        &[Way::Tcp, Way::Tls, Way::MutualTls]
    }

    fn cannot(&self, _scenario: &str, _version: Version) -> Option<&'static str> {
        None
    }

    fn play(&self, turn: &Turn) -> anyhow::Result<()> {
        let mut command = Command::new(python());
        // No compiled files beside the sources.
        command.arg("-B").arg(SCRIPT);
        script::play(command, turn)
    }
}
