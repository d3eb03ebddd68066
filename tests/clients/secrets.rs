//! Certificates and a password's hash, made once a run by the program itself, as an operator makes them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, ensure};
use harness::gateway;
use tempfile::TempDir;

use crate::broker::PROGRAM;

/// Who logs in, and with what.
pub(crate) const USER: &str = "player";
pub(crate) const PASSWORD: &str = "correct horse";

/// The name in the client's certificate.
pub(crate) const CLIENT: &str = "press-7";

/// What gateway and clients need to know each other.
#[derive(Debug)]
pub(crate) struct Secrets {
    _owner: TempDir,
    /// An authority, the gateway's certificate for 127.0.0.1, and a client's.
    pub(crate) dir: PathBuf,
    /// Another authority that has given the same name to somebody else.
    pub(crate) others: PathBuf,
    pub(crate) password_hash: String,
}

impl Secrets {
    /// Those of this run.
    ///
    /// # Errors
    /// The program does not make them.
    pub(crate) fn get() -> anyhow::Result<&'static Secrets> {
        static MADE: OnceLock<Result<Secrets, String>> = OnceLock::new();
        let made = MADE.get_or_init(|| Secrets::make().map_err(|error| format!("{error:#}")));
        made.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
    }

    fn make() -> anyhow::Result<Secrets> {
        let owner = tempfile::tempdir()?;
        let (dir, others) = (owner.path().join("tls"), owner.path().join("others"));
        for dir in [&dir, &others] {
            cert(dir, &["ca"])?;
            cert(dir, &["client", CLIENT])?;
        }
        // `localhost` leads to it too, but is not its name.
        cert(&dir, &["server", "--host", "127.0.0.1"])?;
        Ok(Secrets { dir, others, password_hash: hash()?, _owner: owner })
    }

    /// A file of the folder that gateway and clients agree on.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

fn cert(dir: &Path, what: &[&str]) -> anyhow::Result<()> {
    let dir = dir.to_str().context("the folder's name is text")?;
    let output = gateway::run(PROGRAM, &[&["cert"], what, &["--dir", dir]].concat())?;
    ensure!(output.status.success(), "cert {what:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn hash() -> anyhow::Result<String> {
    let mut command = Command::new(PROGRAM);
    let mut child = command.arg("passwd").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    writeln!(child.stdin.take().context("stdin is piped")?, "{PASSWORD}")?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "passwd: {}", output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
