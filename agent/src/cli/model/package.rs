//! `model keygen`, `pack`, `sign`, `verify`: packages and the keys that vouch for them.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use millwright_models::manifest::{CHUNK_BYTES_MAX, Manifest};
use millwright_models::runtime::{LoadLimits, Model};
use millwright_models::signature::{self, SecretKey};

use super::super::{FAILED, Failure, output};
use super::{manifest_of, public_key, read, secret_key};
use crate::clock;
use crate::pipeline::install;

/// Arguments of `model keygen`.
#[derive(Debug, Args)]
pub(super) struct KeygenArguments {
    /// Where the private key goes; it must not exist, and only its owner can read it
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Arguments of `model pack`.
#[derive(Debug, Args)]
pub(super) struct PackArguments {
    /// The ONNX file; its name and version are in its metadata
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The assets it is for; `*` stands for any text, may be given several times. Default: the asset called like the model
    #[arg(long = "assets", visible_alias = "asset", value_name = "PATTERN")]
    assets: Vec<String>,
    /// Where the package goes
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// Bytes of a chunk on the way to the gateway
    #[arg(long, value_name = "BYTES", default_value_t = CHUNK_BYTES_MAX)]
    chunk_size: usize,
    /// Makes it a rollback: the higher version that is active and that it goes back from
    #[arg(long, value_name = "VERSION")]
    rollback_from: Option<u64>,
    /// Sign it with this private key
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

/// Arguments of `model sign`.
#[derive(Debug, Args)]
pub(super) struct SignArguments {
    /// The manifest, which is changed in place; or the model file beside it
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The private key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
}

/// Arguments of `model verify`.
#[derive(Debug, Args)]
pub(super) struct VerifyArguments {
    /// The manifest, or the model file beside it
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// A trusted public key, as text or a file that holds it; may be given several times
    #[arg(long = "key", value_name = "KEY", required = true)]
    keys: Vec<String>,
}

/// Makes a key pair.
pub(super) fn keygen(arguments: &KeygenArguments) -> Result<ExitCode, Failure> {
    let mut seed = [0_u8; 32];
    getrandom::fill(&mut seed).map_err(|error| anyhow::anyhow!("the system gives no random numbers: {error}"))?;
    let key = SecretKey::from_seed(&seed);
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(&arguments.file);
    let shown = arguments.file.display();
    let mut file = file.with_context(|| format!("cannot make {shown}")).map_err(Failure::wrong_use)?;
    file.write_all(key.to_pem()?.as_bytes()).with_context(|| format!("cannot write {shown}"))?;
    file.sync_all()?;
    let public = key.public();
    output::print(&format!(
        "{public}\n\nThe private key {} is in {shown}: keep it away from the gateways.\nOn each gateway:\n\n[models]\ntrusted_keys = [\"{public}\"]\n",
        public.id()
    ));
    Ok(ExitCode::SUCCESS)
}

/// Loads the model as a gateway would, and writes the package.
pub(super) fn pack(arguments: &PackArguments) -> Result<ExitCode, Failure> {
    let bytes = read(&arguments.file)?;
    let model = Model::load(&bytes, &LoadLimits::default())
        .with_context(|| format!("{} cannot run on a gateway", arguments.file.display()))?;
    let contract = model.contract();
    install::check_window(contract)
        .map_err(|reason| anyhow::anyhow!("{} cannot run on a gateway: {reason}", arguments.file.display()))?;
    let created = Some(clock::rfc3339(clock::utc_us()));
    let mut manifest =
        Manifest::describe(contract.name.clone(), contract.version, &bytes, arguments.chunk_size, created)
            .and_then(|manifest| manifest.for_assets(arguments.assets.clone()))
            .map_err(Failure::wrong_use)?;
    if let Some(from) = arguments.rollback_from {
        manifest = manifest.rolling_back(from).map_err(Failure::wrong_use)?;
    }
    let mut json = manifest.to_json();
    if let Some(key) = &arguments.key {
        json = secret_key(key)?.sign(&json)?;
    }
    let out = &arguments.out;
    std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let model_path = out.join(format!("{}-{}.onnx", manifest.name(), manifest.version()));
    // A model packed where it lies is left as it is.
    write(&model_path, &bytes)?;
    write(&manifest_of(&model_path), &json)?;
    output::print(&format!(
        "{} v{}, {} bytes, for {}: {}, {}{}\n",
        manifest.name(),
        manifest.version(),
        manifest.size(),
        manifest.assets().join(", "),
        model_path.display(),
        manifest_of(&model_path).display(),
        if arguments.key.is_some() { ", signed" } else { "" }
    ));
    Ok(ExitCode::SUCCESS)
}

/// Signs a manifest in place.
pub(super) fn sign(arguments: &SignArguments) -> Result<ExitCode, Failure> {
    let key = secret_key(&arguments.key)?;
    let path = manifest_path(&arguments.file);
    let json = read(&path)?;
    let manifest = Manifest::parse(&json).with_context(|| path.display().to_string()).map_err(Failure::wrong_use)?;
    write(&path, &key.sign(&json)?)?;
    let (name, version) = (manifest.name(), manifest.version());
    output::print(&format!("{name} v{version} signed with {}\n", key.public().id()));
    Ok(ExitCode::SUCCESS)
}

/// Checks a package; status 1 when it is not what a trusted key vouches for.
pub(super) fn verify(arguments: &VerifyArguments) -> Result<ExitCode, Failure> {
    let keys = arguments.keys.iter().map(|key| public_key(key)).collect::<Result<Vec<_>, _>>()?;
    let path = manifest_path(&arguments.file);
    let json = read(&path)?;
    let manifest = Manifest::parse(&json).with_context(|| path.display().to_string())?;
    let key = signature::verify(&json, &keys).with_context(|| path.display().to_string())?;
    let (name, version) = (manifest.name(), manifest.version());
    let model = model_beside(&path);
    let Ok(bytes) = std::fs::read(&model) else {
        output::print(&format!(
            "{name} v{version} is signed with {}; {} is not there to check\n",
            key.id(),
            model.display()
        ));
        return Ok(ExitCode::from(FAILED));
    };
    let found = millwright_models::Digest::of(&bytes);
    if found != *manifest.sha256() {
        let expected = manifest.sha256();
        let shown = model.display();
        return Err(
            anyhow::anyhow!("{shown} has SHA-256 {found}, and its manifest says {expected}: pack it again").into()
        );
    }
    output::print(&format!("{name} v{version} is whole and signed with {}\n", key.id()));
    Ok(ExitCode::SUCCESS)
}

/// The manifest that is meant when the model file beside it is given.
fn manifest_path(given: &Path) -> PathBuf {
    if given.extension().is_some_and(|extension| extension == "onnx") { manifest_of(given) } else { given.to_owned() }
}

/// The model file beside a manifest.
fn model_beside(manifest: &Path) -> PathBuf {
    let text = manifest.to_string_lossy();
    PathBuf::from(text.strip_suffix(".manifest.json").map_or_else(|| text.to_string(), |stem| format!("{stem}.onnx")))
}

/// Complete or not there: whoever reads the file meanwhile finds the old one.
fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let partial = path.with_extension("partial");
    std::fs::write(&partial, bytes).with_context(|| format!("cannot write {}", partial.display()))?;
    std::fs::rename(&partial, path).with_context(|| format!("cannot write {}", path.display()))
}
