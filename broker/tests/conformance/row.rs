//! What a row of the table is.

use std::future::Future;
use std::pin::Pin;

use anyhow::Result;
use millwright_broker::codec::Version;

use crate::scene::Stage;

/// One MUST and how it is checked, once for each version that has it.
pub struct Row {
    /// Its number in 3.1.1, `-` if that version does not have it; a section (`4.8.2`) for a rule without a number.
    pub v311: &'static str,
    /// Its number in MQTT 5.
    pub v5: &'static str,
    /// What it asks for, in our words.
    pub must: &'static str,
    pub check: Check,
}

/// What a check by function comes to.
pub type Outcome = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

pub enum Check {
    /// A script, on the server that most rows share.
    Say(&'static str),
    /// A script, on a server of its own.
    Alone(&'static str),
    /// A function, which may start servers of its own.
    Run(fn(Stage) -> Outcome),
}

impl Row {
    pub fn number(&self, version: Version) -> Option<&'static str> {
        let number = if version == Version::V5 { self.v5 } else { self.v311 };
        (number != "-").then_some(number)
    }
}

/// `number in 3.1.1, number in 5.0, "the MUST" => say | alone | run …;`
macro_rules! rows {
    ($($old:literal $new:literal $must:literal => $kind:ident $check:tt;)*) => {
        pub const ROWS: &[$crate::row::Row] = &[$(
            $crate::row::Row { v311: $old, v5: $new, must: $must, check: $crate::row::check!($kind $check) },
        )*];
    };
}

macro_rules! check {
    (say $script:literal) => {
        $crate::row::Check::Say($script)
    };
    (alone $script:literal) => {
        $crate::row::Check::Alone($script)
    };
    (run $function:ident) => {
        $crate::row::Check::Run(|stage| Box::pin($function(stage)))
    };
}

pub(crate) use {check, rows};
