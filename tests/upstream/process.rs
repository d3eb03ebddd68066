//! A server as a process of its own, which never outlives the test.
//!
//! A shell stands between: it has a pipe from the test, and when that ends, however the test ended, it kills the whole group of
//! processes.

use std::ffi::OsStr;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use harness::wait_for;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::kind::Missing;

/// `$0` gets the process's number, `"$@"` is the command.
const GUARD: &str = r#"
exec 3<&0
"$@" </dev/null 3<&- &
server=$!
echo "$server" >"$0"
{ cat <&3 >/dev/null; kill -KILL 0; } &
wait "$server"
"#;

/// A running server.
#[derive(Debug)]
pub(crate) struct Process {
    shell: Child,
    pid_file: PathBuf,
    log: PathBuf,
}

impl Process {
    /// Starts a program; what it prints goes to `<name>.log` in `dir`.
    pub(crate) fn start<'a>(
        dir: &Path,
        name: &str,
        command: &[&OsStr],
        environment: impl IntoIterator<Item = (&'a str, String)>,
    ) -> anyhow::Result<Process> {
        let (pid_file, log) = (dir.join(format!("{name}.pid")), dir.join(format!("{name}.log")));
        let _ = std::fs::remove_file(&pid_file);
        let output = File::options().create(true).append(true).open(&log)?;
        let shell = Command::new("sh")
            .args(["-c", GUARD])
            .arg(&pid_file)
            .args(command)
            .envs(environment)
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()
            .with_context(|| format!("{name} cannot be started"))?;
        Ok(Process { shell, pid_file, log })
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.shell.try_wait(), Ok(None))
    }

    /// Ends it without a word of warning, and everything that it has started.
    pub(crate) fn kill(&mut self) {
        if let Some(group) = group(&self.shell) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }

    /// Sends a signal to the program itself.
    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = std::fs::read_to_string(&self.pid_file)?;
        let pid = pid.trim().parse().ok().and_then(Pid::from_raw).context("the shell has written no process number")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Asks it to end, and waits.
    pub(crate) fn terminate(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::TERM)?;
        wait_for("the server to end", || (!self.is_running()).then_some(()))?;
        self.kill();
        Ok(())
    }

    /// The end of what it has printed.
    pub(crate) fn log(&self) -> String {
        let text = String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines.get(lines.len().saturating_sub(40)..).unwrap_or_default().join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn group(shell: &Child) -> Option<Pid> {
    Pid::from_raw(i32::try_from(shell.id()).ok()?)
}

/// An address of this machine that nobody listens on now.
pub(crate) fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// The path of a program, as a shell finds it; Debian keeps servers where users do not look.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// A Python with `module`, which `package` has.
///
/// # Errors
/// There is none.
pub(crate) fn python(module: &str, package: &str) -> Result<PathBuf, Missing> {
    let asked = std::env::var_os("MILLWRIGHT_UPSTREAM_PYTHON").map(PathBuf::from);
    let python = asked.or_else(|| program("python3"));
    let has_it = |python: &PathBuf| {
        let output = Command::new(python).args(["-c", &format!("import {module}")]).output();
        output.is_ok_and(|output| output.status.success())
    };
    python.filter(has_it).ok_or_else(|| Missing {
        reason: format!("no Python has the package {package}"),
        remedy: "python3 -m venv DIR && DIR/bin/pip install -r tests/upstream/requirements.txt, then \
                 MILLWRIGHT_UPSTREAM_PYTHON=DIR/bin/python3"
            .to_owned(),
    })
}
