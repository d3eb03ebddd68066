//! What a scenario is played on: a gateway with users, a machine that reports, and what a scenario wishes to happen to them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use harness::client::{Client, Connect};
use harness::gateway::{self, Gateway};
use harness::machine::Recording;
use harness::publisher::Publisher;
use harness::wait_for;
use millwright_firmware_sim::fault::Fault;
use millwright_firmware_sim::machine::MachineKind;
use millwright_models::{Params, Subject, commission::commission_subject};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The program under test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_millwright-under-test");
/// A machine is learned from so many rows.
const LEARNED_ROWS: usize = 400;
/// The bearing of the machine begins to fail in this row; until a scenario wishes it, the machine does not get there.
const FAULT_ROW: usize = 2_000;
/// Rows of the machine's life, minutes longer than a scenario.
const ROWS: usize = 9_000;
/// Everybody's password; whose it is does not matter here.
const PASSWORD: &str = "correct horse battery";
/// An asset's name that would be a script if it were taken for HTML.
const HOSTILE: &str = "<img src=x onerror=pwned=1>";
/// The model of a scenario stays in shadow until somebody promotes it.
const CONFIG: &str = "[commissioning]\nsamples = 400\nextend = false\n[models]\nrows_min = 100\nlatency_ms_max = 60000\nshadow_s = 3600\n";

/// A key that a gateway trusts, and one that it does not.
const OURS: &str = "ours";
const THEIRS: &str = "theirs";

/// A gateway and a machine; both end when dropped.
pub(crate) struct Stage {
    dir: TempDir,
    gateway: Option<Gateway>,
    url: String,
    /// The sections of its configuration, besides where it listens.
    config: String,
    machine: Recording,
    publisher: Arc<Publisher>,
    faulty: Arc<AtomicBool>,
    playing: Arc<AtomicBool>,
    pace: Option<JoinHandle<()>>,
    log: String,
}

impl Stage {
    /// Starts a gateway with a machine that it has learned; `trusting` makes it let in only models that are signed.
    ///
    /// # Errors
    /// It does not start, or does not learn.
    pub(crate) fn set(trusting: bool) -> anyhow::Result<Stage> {
        let dir = tempfile::tempdir()?;
        let trusted =
            if trusting { format!("trusted_keys = [\"{}\"]\n", make_keys(dir.path())?) } else { String::new() };
        let config = format!("{CONFIG}{trusted}{}", users()?);
        let gateway = Gateway::start(PROGRAM, dir.path(), &config)?;
        let url = format!("http://{}", gateway.http);
        let fault = Some((Fault::BearingWear, FAULT_ROW, 60.0));
        let machine = Recording::of("pump-1", MachineKind::Pump, 31, ROWS, fault);
        let recording = machine.clone();
        let publisher = Arc::new(Publisher::start("plc", &machine.topic(), 64, move |row| recording.frame(row)));
        publisher.progress.set_gateway(Some(gateway.mqtt));
        let (faulty, playing) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
        let pace = pace(Arc::clone(&publisher), Arc::clone(&faulty), Arc::clone(&playing));
        wait_for("the machine to be learned", || {
            (publisher.progress.acknowledged() > LEARNED_ROWS + 50).then_some(())
        })?;
        Ok(Stage {
            dir,
            gateway: Some(gateway),
            url,
            config,
            machine,
            publisher,
            faulty,
            playing,
            pace: Some(pace),
            log: String::new(),
        })
    }

    /// What a scenario is told.
    pub(crate) fn given(&self) -> Value {
        let package = |key: &str| {
            let file = |name: &str| self.dir.path().join(key).join(name);
            json!({ "model": file("pump-1-5.onnx"), "manifest": file("pump-1-5.manifest.json") })
        };
        let login = |user: &str| json!({ "user": user, "password": PASSWORD });
        json!({
            "url": self.url,
            "hostile": HOSTILE,
            "model": self.model_file(),
            "packages": { OURS: package(OURS), THEIRS: package(THEIRS) },
            "logins": { "viewer": login("vera"), "engineer": login("emil"), "admin": login("ada") },
        })
    }

    /// Does what a scenario wishes.
    ///
    /// # Errors
    /// It cannot be done, or there is no such wish.
    pub(crate) fn act(&mut self, wish: &str) -> anyhow::Result<()> {
        match wish {
            "begin the fault" => {
                self.faulty.store(true, Ordering::SeqCst);
                Ok(())
            }
            "make a model" => self.make_model(),
            "push a model" => self.push(),
            "sign a model" => [OURS, THEIRS].iter().try_for_each(|key| self.sign(key)),
            "stop the gateway" => self.stop(),
            "start the gateway" => self.start(),
            "let a machine with a hostile name report" => self.report(&[HOSTILE.to_owned()]),
            "let 200 machines report" => {
                self.report(&(1..200).map(|number| format!("asset-{number:03}")).collect::<Vec<_>>())
            }
            _ => bail!("nobody knows how"),
        }
    }

    /// What the gateway logged.
    pub(crate) fn log(&self) -> String {
        let now = self.gateway.as_ref().map(Gateway::log).unwrap_or_default();
        format!("the gateway's log:\n{}{now}", self.log)
    }

    /// Whether the gateway has lived through the scenario.
    ///
    /// # Errors
    /// It has not.
    pub(crate) fn check_sound(&mut self) -> anyhow::Result<()> {
        let gateway = self.gateway.as_mut().context("the gateway was stopped")?;
        ensure!(gateway.is_running(), "the gateway has ended");
        ensure!(!self.log().contains("panicked"), "a task of the gateway has panicked");
        Ok(())
    }

    fn gateway(&self) -> anyhow::Result<&Gateway> {
        self.gateway.as_ref().context("the gateway was stopped")
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        let gateway = self.gateway.take().context("the gateway was stopped")?;
        self.publisher.progress.set_gateway(None);
        self.log.push_str(&gateway.log());
        gateway.terminate()?;
        Ok(())
    }

    /// Starts it again where browsers know it.
    fn start(&mut self) -> anyhow::Result<()> {
        let listen = self.url.trim_start_matches("http://");
        let config = format!("[http]\nlisten = \"{listen}\"\n{}", self.config);
        let gateway = Gateway::start(PROGRAM, self.dir.path(), &config)?;
        self.publisher.progress.set_gateway(Some(gateway.mqtt));
        self.gateway = Some(gateway);
        Ok(())
    }

    fn model_file(&self) -> PathBuf {
        self.dir.path().join("model.onnx")
    }

    /// Another model of the machine's normal, as somebody far away would make it.
    fn make_model(&self) -> anyhow::Result<()> {
        let channels = self.machine.channel_names();
        let subject = Subject::new("pump-1", 5, &channels);
        let model = commission_subject(&subject, &self.machine.matrix(600), &Params::default())?;
        std::fs::write(self.model_file(), model.onnx)?;
        Ok(())
    }

    fn push(&self) -> anyhow::Result<()> {
        self.make_model()?;
        let file = self.model_file();
        let file = file.to_str().context("the folder's name is text")?;
        let broker = self.gateway()?.mqtt.to_string();
        let output = gateway::run(PROGRAM, &["model", "push", file, "--broker", &broker])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Packs a model with a manifest that a key signs, into a folder with the key's name.
    fn sign(&self, key: &str) -> anyhow::Result<()> {
        self.make_model()?;
        let path = |path: PathBuf| path.to_str().map(str::to_owned).context("the folder's name is text");
        let (model, out) = (path(self.model_file())?, path(self.dir.path().join(key))?);
        let key = path(key_file(self.dir.path(), key))?;
        let output = gateway::run(PROGRAM, &["model", "pack", &model, "--out", &out, "--key", &key])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// One message of each of these.
    fn report(&self, assets: &[String]) -> anyhow::Result<()> {
        let mut client = Client::connect(self.gateway()?.mqtt, &Connect::new("others"))?;
        for asset in assets {
            let topic = format!("mw/v1/telemetry/{asset}/json");
            client.publish(&topic, br#"{"seq": 1, "values": {"flow": 32.1, "pressure": 0.38}}"#, false)?;
        }
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.playing.store(false, Ordering::SeqCst);
        if let Some(pace) = self.pace.take() {
            let _ = pace.join();
        }
    }
}

/// Lets the machine go on: fast until it is learned and until its fault begins, otherwise some rows a second.
fn pace(publisher: Arc<Publisher>, faulty: Arc<AtomicBool>, playing: Arc<AtomicBool>) -> JoinHandle<()> {
    let until = AtomicUsize::new(0);
    std::thread::spawn(move || {
        while playing.load(Ordering::SeqCst) {
            let row = until.load(Ordering::SeqCst);
            let hurried = row < LEARNED_ROWS + 60 || (faulty.load(Ordering::SeqCst) && row < FAULT_ROW + 20);
            let last = if faulty.load(Ordering::SeqCst) { ROWS } else { FAULT_ROW - 100 };
            // Never far ahead of what is acknowledged, so that the rows last.
            if row < last && publisher.progress.acknowledged() + 200 > row {
                publisher.progress.allow(row + 1);
                until.store(row + 1, Ordering::SeqCst);
            }
            std::thread::sleep(Duration::from_millis(if hurried { 1 } else { 100 }));
        }
    })
}

fn key_file(dir: &Path, key: &str) -> PathBuf {
    dir.join(format!("{key}.key"))
}

/// Makes the key that the gateway trusts, whose public half is returned, and a stranger's.
fn make_keys(dir: &Path) -> anyhow::Result<String> {
    let make = |key: &str| {
        let file = key_file(dir, key);
        let file = file.to_str().context("the folder's name is text")?;
        let output = gateway::run(PROGRAM, &["model", "keygen", file])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let public = String::from_utf8(output.stdout)?.lines().next().map(str::to_owned);
        public.context("the public key is printed")
    };
    make(THEIRS)?;
    make(OURS)
}

/// One user of each role, as the configuration has them.
fn users() -> anyhow::Result<String> {
    static HASH: OnceLock<Result<String, String>> = OnceLock::new();
    let hash = HASH.get_or_init(|| hash().map_err(|error| format!("{error:#}")));
    let hash = hash.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
    let user = |(name, role): &(&str, &str)| {
        format!("[[http.user]]\nname = \"{name}\"\npassword_hash = \"{hash}\"\nrole = \"{role}\"\n")
    };
    Ok([("vera", "viewer"), ("emil", "engineer"), ("ada", "admin")].iter().map(user).collect())
}

fn hash() -> anyhow::Result<String> {
    let mut child = Command::new(PROGRAM).arg("passwd").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    writeln!(child.stdin.take().context("stdin is piped")?, "{PASSWORD}")?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "passwd: {}", output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
