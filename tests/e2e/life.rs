//! The life of a pushed model: signed, tried, in shadow, on trial, active; and every way in which it ends badly.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::client::{Client, Connect};
use harness::gateway::{Gateway, run};
use harness::machine::Recording;
use harness::publisher::Publisher;
use harness::{crash_rounds, wait_for};
use millwright_firmware_sim::machine::MachineKind;
use millwright_models::onnx::{AttributeProto, NodeProto, TensorProto};
use millwright_models::{Manifest, ModelName, Params, Subject, commission::commission_subject};
use prost::Message as _;
use serde_json::Value;

use crate::PROGRAM;

const COMMISSIONING: &str = "[commissioning]\nsamples = 400\nextend = false\n";
/// Short spans; latency is not what these tests are about, and the machine may be busy.
const MODELS: &str = "[models]\nrows_min = 100\nlatency_ms_max = 60000\n";

fn config(models: &str) -> String {
    format!("{COMMISSIONING}{MODELS}{models}")
}

/// A gateway that scores a machine with the normal it has learned, and the machine's telemetry, about 300 rows a second.
struct Plant {
    dir: tempfile::TempDir,
    gateway: Option<Gateway>,
    machine: Recording,
    publisher: Arc<Publisher>,
    flowing: Arc<AtomicBool>,
    flow: Option<std::thread::JoinHandle<()>>,
    config: String,
}

impl Plant {
    fn start(config: &str) -> Plant {
        Plant::with_rows(config, 60_000)
    }

    fn with_rows(config: &str, rows: usize) -> Plant {
        let dir = tempfile::tempdir().unwrap();
        let gateway = Gateway::start(PROGRAM, dir.path(), config).unwrap();
        let machine = Recording::of("pump-1", MachineKind::Pump, 11, rows, None);
        let recording = machine.clone();
        let publisher = Publisher::start("plc", &machine.topic(), 64, move |row| recording.frame(row));
        publisher.progress.set_gateway(Some(gateway.mqtt));
        let (publisher, flowing) = (Arc::new(publisher), Arc::new(AtomicBool::new(true)));
        let (feeding, still) = (Arc::clone(&publisher), Arc::clone(&flowing));
        let flow = std::thread::spawn(move || {
            let mut until = 0;
            while still.load(Ordering::SeqCst) && until + 3 < rows {
                // Never far ahead of what is acknowledged, so that the rows last.
                if feeding.progress.acknowledged() + 200 > until {
                    until += 3;
                    feeding.progress.allow(until);
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let config = config.to_owned();
        let plant = Plant { dir, gateway: Some(gateway), machine, publisher, flowing, flow: Some(flow), config };
        plant.wait_for_version(1);
        plant
    }

    fn gateway(&self) -> &Gateway {
        self.gateway.as_ref().expect("it runs")
    }

    /// Kills the gateway and starts it again on the same data.
    fn kill(&mut self) {
        self.publisher.progress.set_gateway(None);
        self.gateway.take().expect("it runs").kill().unwrap();
        self.restart();
    }

    fn restart(&mut self) {
        let gateway = Gateway::start(PROGRAM, self.dir.path(), &self.config).unwrap();
        self.publisher.progress.set_gateway(Some(gateway.mqtt));
        self.gateway = Some(gateway);
    }

    fn version(&self) -> Option<u64> {
        self.gateway().asset("pump-1").ok()??.pointer("/model/version")?.as_u64()
    }

    fn wait_for_version(&self, wanted: u64) {
        wait_for("the model to score", || (self.version()? == wanted).then_some(()))
            .unwrap_or_else(|error| panic!("{error}: {:?}, not {wanted}\n{}", self.version(), self.gateway().log()));
    }

    /// Every sample that is folded from now on is scored.
    fn scores_on(&self, what: &str) {
        let counters = || {
            let counters = self.gateway().asset("pump-1").ok()??["counters"].clone();
            Some((counters["samples"].as_u64()?, counters["scored"].as_u64()?))
        };
        let (samples, _) = wait_for("counters", counters).unwrap();
        let (samples, scored) =
            wait_for("rows to be scored", || counters().filter(|now| now.0 > samples + 50)).expect(what);
        assert_eq!(samples - scored, 400, "{what}: a sample was not scored");
    }

    /// A model of the machine's normal; `scale` other than 1 makes it one of a machine that runs elsewhere, which alarms at once.
    fn model(&self, version: u64, scale: f32) -> Vec<u8> {
        let channels = self.machine.channel_names();
        let subject = Subject::new("pump-1", version, &channels);
        let rows: Vec<f32> = self.machine.matrix(600).iter().map(|value| value * scale).collect();
        commission_subject(&subject, &rows, &Params::default()).unwrap().onnx
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn push(&self, file: &Path, more: &[&str]) -> Output {
        self.model_command(&[&["push", file.to_str().unwrap()], more].concat())
    }

    fn model_command(&self, arguments: &[&str]) -> Output {
        let broker = self.gateway().mqtt.to_string();
        run(PROGRAM, &[&["model"], arguments, &["--broker", &broker]].concat()).unwrap()
    }

    fn order(&self, wish: &str, version: &str, more: &[&str]) -> Output {
        let arguments = [&[wish, "pump-1", "--gateway", "gw-1", "--version", version], more].concat();
        self.model_command(&arguments)
    }

    /// The retained state of the model.
    fn state(&self) -> Value {
        let mut late = Client::connect(self.gateway().mqtt, &Connect::new("late")).unwrap();
        late.subscribe("mw/v1/model/+/state/+", 1).unwrap();
        serde_json::from_slice(&late.next_on("mw/v1/model/pump-1/state/gw-1").unwrap().payload).unwrap()
    }

    fn wait_for_state(&self, state: &str, reason: &str) -> Value {
        let told = || Some(self.state()).filter(|told| told["state"] == state);
        let told = wait_for("the model's state", told)
            .unwrap_or_else(|error| panic!("{error}: {}, not {state}\n{}", self.state(), self.gateway().log()));
        assert!(told["reason"].as_str().unwrap_or_default().contains(reason), "{told} does not say {reason}");
        told
    }

    /// Version and state of each step, oldest first.
    fn audit(&self) -> Vec<(u64, String)> {
        let http = self.gateway().http.to_string();
        let steps = run(PROGRAM, &["model", "list", "--json", "--http", &http]).unwrap();
        let answer: Value = serde_json::from_slice(&steps.stdout).unwrap();
        let step = |row: &Value| Some((row["version"].as_u64()?, row["state"].as_str()?.to_owned()));
        let mut steps: Vec<_> = answer["audit"].as_array().unwrap().iter().filter_map(step).collect();
        steps.reverse();
        steps
    }

    fn wait_for_audit(&self, wanted: &[(u64, &str)]) {
        let same = || {
            let steps = self.audit();
            let steps: Vec<(u64, &str)> = steps.iter().map(|(version, state)| (*version, state.as_str())).collect();
            (steps == wanted).then_some(())
        };
        wait_for("the audit trail", same).unwrap_or_else(|error| panic!("{error}: {:?}, not {wanted:?}", self.audit()));
    }
}

impl Drop for Plant {
    fn drop(&mut self) {
        self.flowing.store(false, Ordering::SeqCst);
        if let Some(flow) = self.flow.take() {
            let _ = flow.join();
        }
    }
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

// A good version goes from shadow to trial to active by itself, is retired by the next, and every sample is scored
// meanwhile, by the old model until the new one takes over.
#[test]
fn a_good_version_is_promoted_by_itself() {
    let plant = Plant::start(&config("shadow_s = 2\ntrial_s = 2\n"));
    let pushed = plant.push(&plant.file("good.onnx", &plant.model(5, 1.0)), &[]);
    assert!(pushed.status.success() && told(&pushed).contains("in shadow until"), "{}", told(&pushed));
    assert_eq!(plant.version(), Some(1), "it does not score before it is promoted");
    plant.wait_for_version(5);
    plant.scores_on("promoted");
    plant.wait_for_audit(&[(5, "shadow"), (5, "trial"), (5, "active")]);
    assert_eq!(plant.wait_for_state("active", "")["trial"], false);
    assert!(plant.push(&plant.file("next.onnx", &plant.model(6, 1.0)), &[]).status.success());
    plant.wait_for_version(6);
    plant.wait_for_audit(&[
        (5, "shadow"),
        (5, "trial"),
        (5, "active"),
        (6, "shadow"),
        (5, "retired"),
        (6, "trial"),
        (6, "active"),
    ]);
    plant.scores_on("replaced");
}

// A version that comes while the one before it is on trial waits for the end of the trial, and `model push` says so.
#[test]
fn a_version_waits_for_the_trial_before_it() {
    let plant = Plant::start(&config("shadow_s = 1\ntrial_s = 5\n"));
    assert!(plant.push(&plant.file("five.onnx", &plant.model(5, 1.0)), &[]).status.success());
    plant.wait_for_version(5);
    let pushed = plant.push(&plant.file("six.onnx", &plant.model(6, 1.0)), &[]);
    assert!(pushed.status.success() && told(&pushed).contains("waits"), "{}", told(&pushed));
    plant.wait_for_version(6);
    let steps = plant.audit();
    let of = |wanted: (u64, &str)| steps.iter().position(|(version, state)| (*version, state.as_str()) == wanted);
    assert!(of((5, "active")).unwrap() < of((6, "shadow")).unwrap(), "{steps:?}");
    plant.scores_on("after waiting");
}

// Of two versions that come one after the other the second takes the first one's place in shadow.
#[test]
fn a_newer_version_takes_the_place_of_a_shadow() {
    let plant = Plant::start(&config("shadow_s = 600\n"));
    assert!(plant.push(&plant.file("five.onnx", &plant.model(5, 1.0)), &[]).status.success());
    assert!(plant.push(&plant.file("six.onnx", &plant.model(6, 1.0)), &[]).status.success());
    plant.wait_for_audit(&[(5, "shadow"), (5, "rejected"), (6, "shadow")]);
    assert!(plant.order("promote", "6", &[]).status.success());
    plant.wait_for_version(6);
}

// A version that alarms where the active one does not is refused in shadow, with the figures; the active one scores on.
#[test]
fn a_noisy_version_is_refused_in_shadow() {
    let plant = Plant::start(&config("shadow_s = 1\n"));
    assert!(plant.push(&plant.file("noisy.onnx", &plant.model(5, 1.5)), &[]).status.success());
    plant.wait_for_state("rejected", "in alarm for");
    plant.wait_for_audit(&[(5, "shadow"), (5, "rejected")]);
    assert_eq!(plant.version(), Some(1));
    plant.scores_on("refused");
}

// The same version without a shadow scores on trial, and is taken back by itself: the learned model scores again.
#[test]
fn a_noisy_version_on_trial_is_taken_back() {
    let plant = Plant::start(&config("shadow_s = 0\n"));
    let pushed = plant.push(&plant.file("noisy.onnx", &plant.model(5, 1.5)), &[]);
    assert!(told(&pushed).contains("on trial"), "{}", told(&pushed));
    plant.wait_for_state("rolled-back", "in alarm for");
    plant.wait_for_version(1);
    plant.wait_for_audit(&[(5, "trial"), (5, "rolled-back")]);
    plant.scores_on("taken back");
}

// A gateway that is killed while a version is on trial comes back with the model before it; an operator can promote the version again, and
// take it back.
#[test]
fn a_crash_on_trial_comes_back_with_the_old_model() {
    let mut plant = Plant::start(&config("shadow_s = 0\n"));
    assert!(plant.push(&plant.file("good.onnx", &plant.model(5, 1.0)), &[]).status.success());
    plant.wait_for_version(5);
    plant.kill();
    plant.wait_for_version(1);
    plant.wait_for_state("rolled-back", "ended without being stopped");
    plant.scores_on("after the crash");
    let promoted = plant.order("promote", "5", &["--reason", "the power failed"]);
    assert!(promoted.status.success() && told(&promoted).contains("on trial"), "{}", told(&promoted));
    plant.wait_for_version(5);
    let back = plant.order("rollback", "5", &["--reason", "no longer wanted"]);
    assert!(back.status.success() && told(&back).contains("no longer wanted"), "{}", told(&back));
    plant.wait_for_version(1);
    plant.scores_on("taken back by hand");
    plant.wait_for_audit(&[(5, "trial"), (5, "rolled-back"), (5, "trial"), (5, "rolled-back")]);
}

/// The model's graph with one node more, whose output takes the place of the score.
fn with_nodes(model: &[u8], change: impl FnOnce(&mut millwright_models::onnx::GraphProto)) -> Vec<u8> {
    let mut file = millwright_models::onnx::ModelProto::decode(model).unwrap();
    let graph = file.graph.as_mut().unwrap();
    for node in &mut graph.node {
        node.output.iter_mut().filter(|name| *name == "score").for_each(|name| *name = "inner".to_owned());
        node.input.iter_mut().filter(|name| *name == "score").for_each(|name| *name = "inner".to_owned());
    }
    change(graph);
    // The golden vectors are of the model as it was.
    file.metadata_props.retain(|entry| entry.key != "millwright.golden");
    file.encode_to_vec()
}

fn node(op_type: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        op_type: op_type.to_owned(),
        input: inputs.iter().map(|name| (*name).to_owned()).collect(),
        output: vec![output.to_owned()],
        attribute,
        ..NodeProto::default()
    }
}

fn integers(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: vec![values.len() as i64],
        data_type: 7,
        int64_data: values.to_vec(),
        ..TensorProto::default()
    }
}

/// A tensor of `side`² elements, whose number no constant names: it comes out of a product.
fn bomb(model: &[u8], side: i64) -> Vec<u8> {
    with_nodes(model, |graph| {
        graph.initializer.extend([integers("a", &[side]), integers("b", &[side])]);
        let axes = AttributeProto { name: "keepdims".to_owned(), i: Some(0), r#type: 2, ..AttributeProto::default() };
        graph.node.extend([
            node("Mul", &["a", "b"], "shape", vec![]),
            node("ConstantOfShape", &["shape"], "huge", vec![]),
            node("ReduceMax", &["huge"], "nothing", vec![axes]),
            node("Add", &["inner", "nothing"], "score", vec![]),
        ]);
    })
}

/// The score's logarithm below one: no number on rows that are more normal than those it is tried with.
fn not_a_number(model: &[u8], offset: f32) -> Vec<u8> {
    with_nodes(model, |graph| {
        graph.initializer.push(TensorProto {
            name: "offset".to_owned(),
            dims: vec![1],
            data_type: 1,
            float_data: vec![offset],
            ..TensorProto::default()
        });
        graph.node.extend([
            node("Sub", &["inner", "offset"], "shifted", vec![]),
            node("Sqrt", &["shifted"], "score", vec![]),
        ]);
    })
}

// A model that takes memory without end, one that does not come to an end, one that gives no numbers and one that is slower than its budget are refused with the
// reason; the gateway and its model go on.
#[test]
fn model_bombs_are_refused() {
    let plant = Plant::start(&config("shadow_s = 1\nmemory_mb = 128\nload_s = 5\n"));
    for side in [20_000, 100_000] {
        let file = plant.file("bomb.onnx", &bomb(&plant.model(5, 1.0), side));
        let pushed = plant.push(&file, &["--wait", "50"]);
        eprintln!("{side}²: {}", told(&pushed));
        assert_eq!(pushed.status.code(), Some(1), "{}", told(&pushed));
        assert!(told(&pushed).contains("rejected, ") && told(&pushed).contains("allocate"), "{}", told(&pushed));
        plant.scores_on("a bomb");
    }
    let pushed = plant.push(&plant.file("nan.onnx", &not_a_number(&plant.model(6, 1.0), 1e6)), &[]);
    eprintln!("no numbers: {}", told(&pushed));
    assert!(told(&pushed).contains("rejected"), "{}", told(&pushed));
    plant.scores_on("no numbers at all");
    assert_eq!(plant.version(), Some(1));

    let plant = Plant::start(&format!("{COMMISSIONING}[models]\nlatency_ms_max = 0.01\n"));
    // A window of ten minutes instead of 20 seconds.
    let channels = plant.machine.channel_names();
    let params = Params { window: 600, ..Params::default() };
    let slow = commission_subject(&Subject::new("pump-1", 5, &channels), &plant.machine.matrix(6_000), &params);
    let slow = slow.unwrap().onnx;
    let pushed = plant.push(&plant.file("slow.onnx", &slow), &["--wait", "50"]);
    eprintln!("slow: {}", told(&pushed));
    assert!(told(&pushed).contains("rejected"), "{}", told(&pushed));
    plant.scores_on("a slow model");
}

// With trusted keys, a model that is not signed, signed by another key or changed after it was signed is refused; so is the order of a
// stranger, and an old version whose signed manifest is published again. A signed rollback goes back, once.
#[test]
fn only_trusted_keys_move_models() {
    let keys = tempfile::tempdir().unwrap();
    let key = |name: &str| {
        let path = keys.path().join(name).to_str().unwrap().to_owned();
        let made = run(PROGRAM, &["model", "keygen", &path]).unwrap();
        (path, told(&made).lines().next().unwrap().to_owned())
    };
    let ((ours, public), (theirs, _)) = (key("ours"), key("theirs"));
    let plant = Plant::start(&config(&format!("shadow_s = 0\ntrial_s = 0\ntrusted_keys = [\"{public}\"]\n")));
    let (five, six) = (plant.file("five.onnx", &plant.model(5, 1.0)), plant.file("six.onnx", &plant.model(6, 1.0)));
    for (more, reason) in [(vec![], "not signed"), (vec!["--key", &theirs], "not among `trusted_keys`")] {
        let pushed = plant.push(&five, &more);
        assert!(told(&pushed).contains("rejected") && told(&pushed).contains(reason), "{}", told(&pushed));
    }
    assert_eq!(plant.version(), Some(1));
    assert!(plant.push(&five, &["--key", &ours]).status.success());
    plant.wait_for_version(5);
    assert!(plant.push(&six, &["--key", &ours]).status.success());
    plant.wait_for_version(6);
    let replayed = plant.push(&five, &["--key", &ours]);
    assert!(!replayed.status.success(), "{}", told(&replayed));
    assert_eq!(plant.version(), Some(6));
    // The order of a stranger is passed over.
    assert!(!plant.order("rollback", "6", &["--wait", "2"]).status.success());
    assert!(!plant.order("rollback", "6", &["--wait", "2", "--key", &theirs]).status.success());
    assert_eq!(plant.version(), Some(6));

    let package = keys.path().join("package");
    let out = package.to_str().unwrap();
    let packed =
        run(PROGRAM, &["model", "pack", five.to_str().unwrap(), "--out", out, "--rollback-from", "6", "--key", &ours])
            .unwrap();
    assert!(packed.status.success(), "{}", told(&packed));
    let packed = package.join("pump-1-5.onnx");
    let verified = run(PROGRAM, &["model", "verify", packed.to_str().unwrap(), "--key", &public]).unwrap();
    assert!(verified.status.success() && told(&verified).contains("is whole and signed"), "{}", told(&verified));
    let back = plant.push(&packed, &[]);
    assert!(back.status.success(), "{}", told(&back));
    plant.wait_for_version(5);
    plant.scores_on("rolled back");
    let manifest = package.join("pump-1-5.manifest.json");
    let changed = std::fs::read_to_string(&manifest).unwrap().replace("\"rollback_from\":6", "\"rollback_from\":7");
    std::fs::write(&manifest, changed).unwrap();
    let pushed = plant.push(&packed, &[]);
    assert!(told(&pushed).contains("changed after it was signed"), "{}", told(&pushed));
}

// A push that is cut off halfway, with the gateway killed on top, goes on where it stopped: what had arrived is not sent again, and the
// version scores once the rest has come.
#[test]
fn a_push_goes_on_after_a_cut() {
    let mut plant = Plant::start(&config("shadow_s = 0\ntrial_s = 0\n"));
    let file = plant.model(5, 1.0);
    let name = ModelName::parse("pump-1").unwrap();
    let manifest = Manifest::describe(name, 5, &file, 200, None).unwrap();
    let chunks: Vec<&[u8]> = manifest.split(&file).collect();
    let half = chunks.len() / 2;
    assert!(half > 1, "{} chunks", chunks.len());
    let send = |plant: &Plant, range: std::ops::Range<usize>| {
        let mut fleet = Client::connect(plant.gateway().mqtt, &Connect::new("fleet")).unwrap();
        for n in range {
            fleet.publish(&manifest.chunk_topic(n), chunks[n], true).unwrap();
        }
        fleet
    };
    send(&plant, 0..half).publish(&manifest.topic(), &manifest.to_json(), true).unwrap();
    let staged = plant.wait_for_state("staged", "");
    assert_eq!((&staged["chunks"], &staged["of"]), (&half.into(), &chunks.len().into()), "{staged}");
    plant.kill();
    plant.wait_for_version(1);
    send(&plant, half..chunks.len());
    plant.wait_for_version(5);
    plant.scores_on("after the cut");
}

// Whenever the gateway is killed while models come and go, it comes back with a model that scores.
#[test]
fn kills_during_updates_leave_a_running_model() {
    let rounds = crash_rounds(6);
    let mut plant = Plant::with_rows(&config("shadow_s = 1\ntrial_s = 1\n"), 20_000 + 5_000 * rounds);
    let mut versions = std::collections::BTreeMap::new();
    for round in 0..rounds {
        let version = 10 + round as u64;
        let file = plant.file("next.onnx", &plant.model(version, if round % 3 == 2 { 1.5 } else { 1.0 }));
        let broker = plant.gateway().mqtt.to_string();
        let pushing = std::thread::spawn(move || {
            // The gateway is killed under it: no answer is an answer here.
            let _ = run(PROGRAM, &["model", "push", file.to_str().unwrap(), "--broker", &broker, "--wait", "1"]);
        });
        // Anywhere between the first chunk and the end of a trial: a different moment each round.
        std::thread::sleep(Duration::from_millis((round as u64 * 1_379) % 6_000));
        plant.kill();
        pushing.join().unwrap();
        plant.scores_on(&format!("killed in round {round}"));
        *versions.entry(plant.version().unwrap_or(0)).or_insert(0) += 1;
    }
    eprintln!("{rounds} kills; versions that scored after them: {versions:?}");
    assert!(!versions.contains_key(&0), "{versions:?}");
}
