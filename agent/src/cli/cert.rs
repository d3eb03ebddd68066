//! `millwright cert`: a certificate authority of one's own, and certificates for the gateway and its clients.
//!
//! For plants without an authority, and for trying things out. Owns the files it writes: never overwrites one, and private
//! keys are readable by their owner alone. Keys are ECDSA P-256. Reads no configuration.

use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use time::OffsetDateTime;

use super::{Failure, output};
use crate::clock;

const DAY_S: u64 = 24 * 60 * 60;

/// Certificates begin to be valid a day ago: the clock of a gateway without a battery may be behind.
const BACKDATED_S: u64 = DAY_S;

/// The longest name in a certificate, in bytes; X.509 allows 64 characters.
const NAME_BYTES_MAX: usize = 64;

const CA_CERTIFICATE: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const CA_LIST: &str = "ca.crl";

/// Which serial numbers are revoked, as text; the list is made of it.
const REVOKED: &str = "revoked.txt";

/// After so many days a list of revoked certificates is to be made anew; the gateway takes an old one too.
const LIST_DAYS: u64 = 365;

/// Arguments of `cert`.
#[derive(Debug, Args)]
pub(super) struct CertArguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make a certificate authority: ca.crt and ca.key
    Ca {
        #[command(flatten)]
        place: Place,
        /// What it is called
        #[arg(long, default_value = "Millwright CA")]
        name: String,
        /// How long it is valid
        #[arg(long, default_value_t = 3_650, value_parser = clap::value_parser!(u64).range(1..=36_500))]
        days: u64,
    },
    /// Make the gateway's certificate: server.crt and server.key
    Server {
        #[command(flatten)]
        place: Place,
        /// A name or address by which clients reach the gateway; may be given several times
        #[arg(long = "host", value_name = "NAME", required = true)]
        hosts: Vec<String>,
        /// How long it is valid
        #[arg(long, default_value_t = 825, value_parser = clap::value_parser!(u64).range(1..=36_500))]
        days: u64,
    },
    /// Make a client's certificate: NAME.crt and NAME.key
    Client {
        #[command(flatten)]
        place: Place,
        /// Who the client is; access rules name it in `certificates`
        #[arg(value_name = "NAME")]
        name: String,
        /// How long it is valid
        #[arg(long, default_value_t = 825, value_parser = clap::value_parser!(u64).range(1..=36_500))]
        days: u64,
    },
    /// Revoke a client's certificate: makes ca.crl anew, with all that were revoked
    Revoke {
        #[command(flatten)]
        place: Place,
        /// The client
        #[arg(value_name = "NAME")]
        name: String,
    },
}

#[derive(Debug, Args)]
struct Place {
    /// The folder of the files; it is made if it is not there
    #[arg(long, value_name = "DIR", default_value = "tls")]
    dir: PathBuf,
}

/// Makes what was asked for and says where it is.
///
/// # Errors
/// A name that cannot be in a certificate, a file that exists already, or no authority in the folder.
pub(super) fn run(arguments: &CertArguments) -> Result<ExitCode, Failure> {
    let told = match &arguments.what {
        What::Ca { place, name, days } => {
            check_name(name).map_err(Failure::wrong_use)?;
            make_ca(&place.dir, name, *days)?
        }
        What::Server { place, hosts, days } => {
            for host in hosts {
                check_name(host).map_err(Failure::wrong_use)?;
            }
            make_server(&place.dir, hosts, *days)?
        }
        What::Client { place, name, days } => {
            check_name(name).map_err(Failure::wrong_use)?;
            make_client(&place.dir, name, *days)?
        }
        What::Revoke { place, name } => {
            check_name(name).map_err(Failure::wrong_use)?;
            revoke(&place.dir, name)?
        }
    };
    output::print(&told);
    Ok(ExitCode::SUCCESS)
}

/// A name is a file's name too.
fn check_name(name: &str) -> anyhow::Result<()> {
    anyhow::ensure!(!name.is_empty(), "the name is empty");
    anyhow::ensure!(name.len() <= NAME_BYTES_MAX, "`{name}` has {} bytes, at most {NAME_BYTES_MAX} fit", name.len());
    let odd = name.chars().find(|c| c.is_control() || "/\\+#*\"".contains(*c));
    anyhow::ensure!(
        odd.is_none() && !name.starts_with(['.', '-']),
        "`{name}` cannot be a name: use letters, digits, - and ."
    );
    Ok(())
}

fn make_ca(dir: &Path, name: &str, days: u64) -> anyhow::Result<String> {
    let mut params = params(name, days);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
    let (certificate, key) = write_pair(dir, CA_CERTIFICATE, CA_KEY, &certificate.pem(), &key)?;
    Ok(format!(
        "the authority's certificate, for every client: {}\nits private key, to be kept away from the gateway: {}\n",
        certificate.display(),
        key.display()
    ))
}

fn make_server(dir: &Path, hosts: &[String], days: u64) -> anyhow::Result<String> {
    let name = hosts.first().map_or("", String::as_str);
    let mut params = params(name, days);
    params.subject_alt_names = CertificateParams::new(hosts)?.subject_alt_names;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let (certificate, key) = make_signed(dir, "server", params)?;
    let listen = match hosts.iter().any(|host| host.parse::<IpAddr>().is_ok_and(|ip| !ip.is_loopback())) {
        true => "0.0.0.0:8883",
        false => "127.0.0.1:8883",
    };
    Ok(format!(
        "the gateway's certificate: {certificate}\nits private key: {key}\nIn gateway.toml:\n\n[broker.tls]\nlisten = \"{listen}\"\ncertificate = \"{certificate}\"\nkey = \"{key}\"\n",
        certificate = certificate.display(),
        key = key.display()
    ))
}

fn make_client(dir: &Path, name: &str, days: u64) -> anyhow::Result<String> {
    let mut params = params(name, days);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let (certificate, key) = make_signed(dir, name, params)?;
    Ok(format!(
        "the client's certificate: {}\nits private key: {}\nIn gateway.toml:\n\n[broker.tls]\nclient_ca = \"{}\"\nclient_certificate = \"optional\"\n\n[[broker.access]]\ncertificates = [\"{name}\"]\npublish = [\"mw/v1/telemetry/%u/#\"]\n",
        certificate.display(),
        key.display(),
        dir.join(CA_CERTIFICATE).display()
    ))
}

fn now_s() -> u64 {
    u64::try_from(clock::utc_us() / clock::SECOND_US).unwrap_or(0)
}

fn at(s: u64) -> OffsetDateTime {
    date_time_ymd(1970, 1, 1) + Duration::from_secs(s)
}

fn params(name: &str, days: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = at(now_s().saturating_sub(BACKDATED_S));
    params.not_after = at(now_s().saturating_add(days.saturating_mul(DAY_S)));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params
}

/// Notes the certificate's serial number, and has the authority sign the list of all that were noted.
fn revoke(dir: &Path, name: &str) -> anyhow::Result<String> {
    let certificate = dir.join(format!("{name}.crt"));
    let pem = std::fs::read(&certificate).with_context(|| format!("cannot read {}", certificate.display()))?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem)
        .with_context(|| format!("{} is no certificate", certificate.display()))?;
    let parsed = pem.parse_x509().with_context(|| format!("{} is no certificate", certificate.display()))?;
    let serial: String = parsed.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect();
    let issuer = authority(dir)?;
    let noted = dir.join(REVOKED);
    let mut lines = std::fs::read_to_string(&noted).unwrap_or_default();
    if !lines.lines().any(|line| line.split(' ').next() == Some(&serial)) {
        lines.push_str(&format!("{serial} {} {name}\n", now_s()));
    }
    let revoked: anyhow::Result<Vec<RevokedCertParams>> = lines.lines().map(revoked).collect();
    let list = CertificateRevocationListParams {
        this_update: at(now_s().saturating_sub(BACKDATED_S)),
        next_update: at(now_s().saturating_add(LIST_DAYS * DAY_S)),
        crl_number: SerialNumber::from(now_s()),
        issuing_distribution_point: None,
        revoked_certs: revoked.with_context(|| format!("{} is damaged", noted.display()))?,
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&issuer)?.pem()?;
    std::fs::write(&noted, lines).with_context(|| format!("cannot write {}", noted.display()))?;
    let path = dir.join(CA_LIST);
    std::fs::write(&path, list).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(format!(
        "revoked: {name}\nIn gateway.toml, if it is not there yet:\n\n[broker.tls]\nclient_crl = \"{}\"\n",
        path.display()
    ))
}

/// A line of [`REVOKED`]: serial number in hexadecimal, seconds since 1970, the client's name.
fn revoked(line: &str) -> anyhow::Result<RevokedCertParams> {
    let mut fields = line.splitn(3, ' ');
    let (serial, time) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
    let digits: Vec<char> = serial.chars().collect();
    let bytes: Result<Vec<u8>, _> =
        digits.chunks(2).map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16)).collect();
    let revocation_time = at(time.parse()?);
    let serial_number = SerialNumber::from_slice(&bytes?);
    Ok(RevokedCertParams { serial_number, revocation_time, reason_code: None, invalidity_date: None })
}

/// The folder's authority.
fn authority(dir: &Path) -> anyhow::Result<Issuer<'static, KeyPair>> {
    let read = |name: &str| {
        let path = dir.join(name);
        std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}; `millwright cert ca` makes an authority first", path.display()))
    };
    let (ca, ca_key) = (read(CA_CERTIFICATE)?, read(CA_KEY)?);
    let ca_key = KeyPair::from_pem(&ca_key).with_context(|| format!("{CA_KEY} is no private key"))?;
    Issuer::from_ca_cert_pem(&ca, ca_key).with_context(|| format!("{CA_CERTIFICATE} is no certificate"))
}

/// Has the folder's authority sign.
fn make_signed(dir: &Path, file: &str, params: CertificateParams) -> anyhow::Result<(PathBuf, PathBuf)> {
    let issuer = authority(dir)?;
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;
    write_pair(dir, &format!("{file}.crt"), &format!("{file}.key"), &certificate.pem(), &key)
}

fn write_pair(
    dir: &Path,
    certificate: &str,
    key: &str,
    pem: &str,
    pair: &KeyPair,
) -> anyhow::Result<(PathBuf, PathBuf)> {
    let (certificate, key) = (dir.join(certificate), dir.join(key));
    anyhow::ensure!(!certificate.exists(), "{} is there already; move it away first", certificate.display());
    write_new(&key, 0o600, &pair.serialize_pem())?;
    write_new(&certificate, 0o644, pem)?;
    Ok((certificate, key))
}

fn write_new(path: &Path, mode: u32, text: &str) -> anyhow::Result<()> {
    let shown = path.display();
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(mode).open(path);
    let mut file = file.with_context(|| format!("cannot make {shown}; move away what is there"))?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {shown}"))?;
    Ok(file.sync_all()?)
}
