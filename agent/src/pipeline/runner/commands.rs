//! What the pipeline is asked to do, by other parts and by operators.
//!
//! Owns the commands and the way of orders that arrive by MQTT. All are carried out between two batches.

use std::sync::Arc;

use millwright_broker::log::LogMessage;
use millwright_models::ModelName;
use tokio::sync::oneshot;

use super::Runner;
use super::checkpoint::Changes;
use crate::casebook::CasebookError;
use crate::casebook::action::{self, Order as Act};
use crate::ids::AssetId;
use crate::models::order::{self, ORDERS_MAX};
use crate::pipeline::engine::{InstallError, Installation};
use crate::pipeline::fleet::Installed;
use crate::pipeline::live::LiveBatch;
use crate::pipeline::tap::Tap;
use crate::state::versions::VersionRow;

/// What the pipeline is asked to do.
pub enum Command {
    /// Install a pushed model that is stored already, so that no sample waits for a disk: after a crash, what was folded since the
    /// last checkpoint is folded again, with this model. The answer comes when it is in use.
    Install {
        /// The model.
        model: Arc<Installed>,
        /// Which assets it scores now, or why not.
        reply: oneshot::Sender<Result<Installation, InstallError>>,
    },
    /// Take a pushed model back.
    RollBack {
        /// Its name.
        name: ModelName,
        /// SHA-256 of its file.
        sha256: String,
        /// The version that takes its place, if there is one.
        previous: Option<Arc<Installed>>,
        /// What to store in the same transaction.
        versions: Vec<VersionRow>,
        /// How many assets went back.
        reply: oneshot::Sender<usize>,
    },
    /// Ask which assets a model scores.
    Installation {
        /// SHA-256 of its file.
        sha256: String,
        /// The model, as it is in use, and its assets.
        reply: oneshot::Sender<(Option<Arc<Installed>>, Installation)>,
    },
    /// Show what is folded to a model that is watched.
    Tap(Tap),
    /// No longer.
    Untap(u64),
    /// The newest rows of an asset that are in memory.
    Rows {
        /// Which.
        asset: AssetId,
        /// How many at most.
        rows: usize,
        /// The rows; `None` if the asset is unknown.
        reply: oneshot::Sender<Option<LiveBatch>>,
    },
    /// Somebody does something about an alert or a machine.
    Act {
        /// Who, and what.
        order: Act,
        /// The answer comes when it is on disk.
        reply: oneshot::Sender<Result<(), CasebookError>>,
    },
}

impl Runner {
    /// Passes orders on, after a checkpoint: one that brings the gateway down must not be found again at the next start.
    pub(super) fn pass_orders(&mut self) {
        self.carry_out_acts();
        if self.orders.is_empty() {
            return;
        }
        self.checkpoint_until_stored(Changes::default());
        for order in std::mem::take(&mut self.orders) {
            if let Err(error) = self.parts.orders.try_send(order) {
                tracing::error!(%error, "an order could not be taken: give it again");
            }
        }
    }

    /// Keeps an operator's order until the batch is folded.
    pub(super) fn take_order(&mut self, message: &LogMessage) {
        if message.message.topic != self.parts.order_topic {
            return;
        }
        match action::parse(&message.message.payload) {
            None => {}
            Some(Ok(act)) => return self.take_act(act),
            Some(Err(error)) => {
                return tracing::warn!("an order on {} is refused: {error}", self.parts.order_topic.as_str());
            }
        }
        match order::parse(&message.message.payload) {
            Ok(order) if self.orders.len() < ORDERS_MAX => self.orders.push(order),
            Ok(order) => tracing::error!(model = order.model.as_str(), "too many orders at once: give it again"),
            Err(error) => tracing::warn!("an order on {} is refused: {error}", self.parts.order_topic.as_str()),
        }
    }

    pub(super) fn carry_out_commands(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            self.carry_out(command);
        }
    }

    pub(super) fn carry_out(&mut self, command: Command) {
        match command {
            // Nobody waits for an answer when the gateway is stopping.
            Command::Install { model, reply } => {
                let installed = self.parts.engine.install(&model);
                self.dirty |= installed.is_ok();
                let _ = reply.send(installed);
            }
            Command::RollBack { name, sha256, previous, versions, reply } => {
                let back = self.parts.engine.roll_back(&name, &sha256, previous);
                let withdrawn = vec![sha256];
                self.checkpoint_until_stored(Changes { withdrawn, versions, ..Changes::default() });
                let _ = reply.send(back);
            }
            Command::Installation { sha256, reply } => {
                let _ = reply.send((self.parts.engine.model(&sha256), self.parts.engine.installation(&sha256)));
            }
            Command::Tap(tap) => self.taps.add(tap),
            Command::Untap(id) => self.taps.remove(id),
            Command::Rows { asset, rows, reply } => {
                let _ = reply.send(self.parts.engine.asset(&asset).map(|asset| LiveBatch::newest(asset, rows)));
            }
            Command::Act { order, reply } => {
                let _ = reply.send(self.act(order));
            }
        }
    }
}
