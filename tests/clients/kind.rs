//! What a kind of client is to these tests.

use std::net::SocketAddr;

use crate::refusals::REFUSALS;
use crate::scenarios::{Scenario, Step, Version};
use crate::way::{Papers, Way};

/// One step of a scenario, to be played against a broker.
#[derive(Debug, Clone)]
pub(crate) struct Turn {
    pub(crate) scenario: &'static Scenario,
    pub(crate) version: Version,
    pub(crate) step: Step,
    pub(crate) broker: SocketAddr,
    /// What the client brings along.
    pub(crate) papers: Papers,
    /// Topics and client identifiers begin with it.
    pub(crate) prefix: String,
    /// The subscriptions that the broker allows one client.
    pub(crate) subscriptions_max: usize,
}

impl Turn {
    /// A topic or filter of this run.
    pub(crate) fn topic(&self, rest: &str) -> String {
        format!("{}/{rest}", self.prefix)
    }

    /// A client identifier of this run.
    pub(crate) fn client_id(&self, name: &str) -> String {
        self.topic(name).replace('/', "-")
    }

    /// Whether the client is not to be let in, or not to have what it asks for.
    pub(crate) fn is_refusal(&self) -> bool {
        REFUSALS.iter().any(|refusal| refusal.name == self.scenario.name)
    }

    /// Whether MQTT 5 is spoken.
    pub(crate) fn is_v5(&self) -> bool {
        self.version == Version::V5
    }
}

/// Why a kind of client is not there, and how to get it.
#[derive(Debug, Clone)]
pub(crate) struct Missing {
    pub(crate) reason: String,
    pub(crate) remedy: &'static str,
}

/// A kind of client.
pub(crate) trait Kind: Sync {
    /// Its name in the names of tests.
    fn name(&self) -> &'static str;

    /// What there is, with its version.
    ///
    /// # Errors
    /// The client is not installed.
    fn find(&self) -> Result<String, Missing>;

    /// The ways that it is played over.
    fn ways(&self) -> &'static [Way];

    /// Why this client cannot play a scenario.
    fn cannot(&self, scenario: &str, version: Version) -> Option<&'static str>;

    /// Plays one step.
    ///
    /// # Errors
    /// The broker did not do what the scenario expects.
    fn play(&self, turn: &Turn) -> anyhow::Result<()>;
}
