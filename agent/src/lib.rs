//! The parts of the Millwright gateway.

/// What the command line does.
pub mod cli {
    pub mod check_config;
    pub mod passwd;
}
pub mod config;
pub mod ids;
pub mod source;
pub mod table;
