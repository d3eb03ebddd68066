//! Compresses what the program carries for browsers, the dashboard's pages and the API's description, into `OUT_DIR`: a quarter of
//! the size, in the program and on the way. `dashboard/packed.rs` serves it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;

const CARRIED: [(&str, &str); 2] = [("src/dashboard/web", "web"), ("../docs/openapi.json", "openapi.json")];

fn main() -> io::Result<()> {
    let out = std::env::var_os("OUT_DIR").map(PathBuf::from).ok_or_else(|| io::Error::other("cargo sets OUT_DIR"))?;
    for (from, to) in CARRIED {
        println!("cargo::rerun-if-changed={from}");
        pack(Path::new(from), &out.join(to))?;
    }
    Ok(())
}

/// A file to `TO.gz`; a folder to a folder of such.
fn pack(from: &Path, to: &Path) -> io::Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            pack(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    let mut name = to.as_os_str().to_owned();
    name.push(".gz");
    let mut encoder = GzEncoder::new(File::create(name)?, Compression::best());
    io::copy(&mut File::open(from)?, &mut encoder)?;
    encoder.finish()?;
    Ok(())
}
