//! `millwright passwd`: the hash of a password, for `[[broker.user]]`.
//!
//! Owns how the password is asked for: twice and without echo on a terminal, one line from stdin otherwise. Never
//! keeps, logs or prints the password; what is computed from it is the caller's function. A password has
//! [`PASSWORD_BYTES_MIN`] to [`PASSWORD_BYTES_MAX`] bytes.

use std::fmt::Display;
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::process::ExitCode;

use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers, read};
use ratatui::crossterm::terminal::{disable_raw_mode, enable_raw_mode};

/// The shortest password, in bytes; a shorter one is guessed before the hash matters.
pub(super) const PASSWORD_BYTES_MIN: usize = 8;
/// The longest password, in bytes.
pub(super) const PASSWORD_BYTES_MAX: usize = 256;

/// Why there is no hash.
#[derive(Debug, thiserror::Error)]
enum PasswdError {
    #[error("the password cannot be read: {0}")]
    Input(#[from] io::Error),
    #[error("the two passwords differ; try again")]
    Differ,
    #[error("the password has {bytes} bytes; {PASSWORD_BYTES_MIN} to {PASSWORD_BYTES_MAX} are allowed")]
    Length { bytes: usize },
    #[error("the password contains a control character; try again without")]
    Control,
    #[error("the password is not UTF-8 text; try again with another")]
    NotText,
    #[error("nothing was entered")]
    Cancelled,
    #[error("the password cannot be hashed: {0}")]
    Hash(String),
}

/// Asks for a password and prints what `hash` makes of it; the exit status is 0, or 1 with the reason on stderr.
pub(super) fn run<E: Display>(hash: impl FnOnce(&str) -> Result<String, E>) -> ExitCode {
    let outcome = if io::stdin().is_terminal() { ask() } else { from_input(&mut io::stdin().lock()) };
    match outcome.and_then(|password| print(&password, hash, &mut io::stdout().lock())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without a terminal there may be nobody to tell either; the exit status says it.
            let _ = writeln!(io::stderr(), "passwd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print<E: Display>(
    password: &str,
    hash: impl FnOnce(&str) -> Result<String, E>,
    out: &mut dyn Write,
) -> Result<(), PasswdError> {
    check(password)?;
    let hash = hash(password).map_err(|error| PasswdError::Hash(error.to_string()))?;
    Ok(writeln!(out, "{hash}")?)
}

fn check(password: &str) -> Result<(), PasswdError> {
    let bytes = password.len();
    if !(PASSWORD_BYTES_MIN..=PASSWORD_BYTES_MAX).contains(&bytes) {
        return Err(PasswdError::Length { bytes });
    }
    if password.chars().any(char::is_control) {
        return Err(PasswdError::Control);
    }
    Ok(())
}

/// The first line of `input`.
fn from_input(input: &mut dyn BufRead) -> Result<String, PasswdError> {
    let mut line = Vec::new();
    // One byte more than allowed, and a line end, so that what is too long is seen to be.
    input.take(PASSWORD_BYTES_MAX as u64 + 3).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Err(PasswdError::Cancelled);
    }
    let line = String::from_utf8(line).map_err(|_| PasswdError::NotText)?;
    let line = line.strip_suffix('\n').unwrap_or(&line);
    Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
}

/// Asks twice on the terminal; the prompts go to stderr, so that stdout holds the hash alone.
fn ask() -> Result<String, PasswdError> {
    let first = ask_once("Password: ")?;
    check(&first)?;
    if ask_once("Again: ")? != first {
        return Err(PasswdError::Differ);
    }
    Ok(first)
}

fn ask_once(prompt: &str) -> Result<String, PasswdError> {
    let mut err = io::stderr();
    write!(err, "{prompt}")?;
    err.flush()?;
    let password = {
        let _raw = RawMode::enable()?;
        type_in()
    };
    writeln!(err)?;
    password
}

/// The terminal without echo, until it is dropped.
struct RawMode;

impl RawMode {
    fn enable() -> io::Result<RawMode> {
        enable_raw_mode()?;
        Ok(RawMode)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Nothing more can be done for a terminal that does not answer.
        let _ = disable_raw_mode();
    }
}

fn type_in() -> Result<String, PasswdError> {
    let mut password = String::new();
    loop {
        let Event::Key(KeyEvent { code, modifiers, kind, .. }) = read()? else { continue };
        if kind == KeyEventKind::Release {
            continue;
        }
        match code {
            KeyCode::Enter => return Ok(password),
            KeyCode::Esc => return Err(PasswdError::Cancelled),
            KeyCode::Char('c' | 'd') if modifiers.contains(KeyModifiers::CONTROL) => {
                return Err(PasswdError::Cancelled);
            }
            KeyCode::Char('u') if modifiers.contains(KeyModifiers::CONTROL) => password.clear(),
            KeyCode::Backspace => {
                password.pop();
            }
            KeyCode::Char(character) if password.len() <= PASSWORD_BYTES_MAX => password.push(character),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashed(input: &[u8]) -> Result<String, String> {
        let mut out = Vec::new();
        let mut input = input;
        let hash = |password: &str| Ok::<_, String>(format!("<{password}>"));
        from_input(&mut input).and_then(|password| print(&password, hash, &mut out)).map_err(|e| e.to_string())?;
        Ok(String::from_utf8(out).unwrap())
    }

    // One line of input becomes one line of hash, whatever ends the line.
    #[test]
    fn a_line_becomes_a_hash() {
        for input in ["correct horse\n", "correct horse\r\n", "correct horse", "correct horse\nmore\n"] {
            assert_eq!(hashed(input.as_bytes()).unwrap(), "<correct horse>\n", "{input:?}");
        }
    }

    // The shortest and the longest password are accepted, their neighbours are not.
    #[test]
    fn lengths_are_bounded() {
        let with = |bytes: usize| hashed("x".repeat(bytes).as_bytes());
        assert!(with(PASSWORD_BYTES_MIN).is_ok());
        assert!(with(PASSWORD_BYTES_MAX).is_ok());
        let refused = "the password has 7 bytes; 8 to 256 are allowed";
        assert_eq!(with(PASSWORD_BYTES_MIN - 1).unwrap_err(), refused);
        assert!(with(PASSWORD_BYTES_MAX + 1).is_err());
        assert!(with(PASSWORD_BYTES_MAX + 100).is_err());
    }

    // Nothing, binary input and control characters are refused with their reason.
    #[test]
    fn malformed_input_is_refused() {
        assert_eq!(hashed(b"").unwrap_err(), "nothing was entered");
        assert!(hashed(b"12345678\xff\n").unwrap_err().contains("not UTF-8"));
        assert!(hashed(b"1234\t5678\n").unwrap_err().contains("control character"));
    }

    // What goes wrong in hashing is told.
    #[test]
    fn a_failed_hash_is_told() {
        let error = print("correct horse", |_| Err::<String, _>("no memory"), &mut Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), "the password cannot be hashed: no memory");
    }
}
