//! QoS 1 and 2 messages that the client has not finished, and their packet identifiers.
//!
//! Owns the window: how many may be under way, in which order they were sent, which identifiers are taken. An entry is a
//! place in the log, not the message: what has to be sent again is read again. Never sends anything.

use std::collections::VecDeque;

use crate::codec::PacketId;
use crate::log::Offset;
use crate::log::sessions::{SessionUpdate, Stage, StoredOutgoing};
use crate::shares::GroupId;

/// A message under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct InFlight {
    pub(super) packet_id: PacketId,
    pub(super) stage: Stage,
    pub(super) offset: Offset,
    /// It was sent because it was retained.
    pub(super) retained: bool,
    /// The group that it was given to the client in.
    group: Option<GroupId>,
    sequence: u64,
    /// Sent over this connection: it counts against the client's receive maximum. [MQTT-4.9]
    sent: bool,
    /// The store has it as it is.
    is_stored: bool,
    /// The store has a row of it.
    has_row: bool,
}

/// Where a message that is sent comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) offset: Offset,
    /// Sent because it was retained.
    pub(super) retained: bool,
    /// Given to the client as a member of this group.
    pub(super) group: Option<GroupId>,
}

/// All messages under way, in the order of sending.
#[derive(Debug)]
pub(super) struct Outgoing {
    list: VecDeque<InFlight>,
    ids: PacketIds,
    last_id: u16,
    next_sequence: u64,
    /// How many may be under way, and how many are.
    window: usize,
    open: usize,
    /// Entries that are there because they were retained; their offsets are not in order.
    retained: usize,
    /// Some entry is not stored as it is.
    is_changed: bool,
    /// Finished, but the store still has a row of them.
    gone: Vec<PacketId>,
}

impl Outgoing {
    pub(super) fn new(window: usize) -> Outgoing {
        Outgoing {
            list: VecDeque::new(),
            ids: PacketIds::default(),
            last_id: 0,
            next_sequence: 0,
            window,
            open: 0,
            retained: 0,
            is_changed: false,
            gone: Vec::new(),
        }
    }

    pub(super) fn limit_window(&mut self, max: u16) {
        self.window = self.window.min(usize::from(max));
    }

    /// Whether one more may be sent.
    pub(super) fn has_room(&self) -> bool {
        self.open < self.window
    }

    /// Takes what an earlier connection left; gives the identifiers in the order of sending.
    pub(super) fn resume(&mut self, stored: &[StoredOutgoing]) -> VecDeque<PacketId> {
        for outgoing in stored {
            let StoredOutgoing { packet_id, sequence, offset, stage, retained } = *outgoing;
            self.ids.insert(packet_id.get());
            self.last_id = packet_id.get();
            self.next_sequence = self.next_sequence.max(sequence + 1);
            self.retained += usize::from(retained);
            let (group, sent, is_stored, has_row) = (None, false, true, true);
            self.list.push_back(InFlight {
                packet_id,
                stage,
                offset,
                retained,
                group,
                sequence,
                sent,
                is_stored,
                has_row,
            });
        }
        self.list.iter().map(|in_flight| in_flight.packet_id).collect()
    }

    /// A new message under way. There is a free identifier: the window is smaller than their number.
    pub(super) fn add(&mut self, stage: Stage, place: Place) -> Option<PacketId> {
        let Place { offset, retained, group } = place;
        let packet_id = self.allocate()?;
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.open += 1;
        self.retained += usize::from(retained);
        self.is_changed = true;
        let (sent, is_stored, has_row) = (true, false, false);
        self.list.push_back(InFlight { packet_id, stage, offset, retained, group, sequence, sent, is_stored, has_row });
        Some(packet_id)
    }

    fn allocate(&mut self) -> Option<PacketId> {
        for _ in 0..=u16::MAX {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if self.ids.insert(self.last_id) {
                return PacketId::new(self.last_id);
            }
        }
        None
    }

    fn index(&self, packet_id: PacketId) -> Option<usize> {
        // Clients acknowledge in order: it is the first.
        self.list.iter().position(|in_flight| in_flight.packet_id == packet_id)
    }

    pub(super) fn get(&self, packet_id: PacketId) -> Option<InFlight> {
        self.list.get(self.index(packet_id)?).copied()
    }

    /// The message is sent again over this connection; `counts` against the window if it is a PUBLISH.
    pub(super) fn sent_again(&mut self, packet_id: PacketId, counts: bool) {
        let Some(in_flight) = self.index(packet_id).and_then(|index| self.list.get_mut(index)) else { return };
        if counts && !in_flight.sent {
            in_flight.sent = true;
            self.open += 1;
        }
    }

    /// PUBREC came: PUBCOMP is what it waits for.
    pub(super) fn received(&mut self, packet_id: PacketId) {
        if let Some(in_flight) = self.index(packet_id).and_then(|index| self.list.get_mut(index))
            && in_flight.stage != Stage::Completed
        {
            in_flight.stage = Stage::Completed;
            in_flight.is_stored = false;
            self.is_changed = true;
        }
    }

    /// The message is finished; its identifier is free.
    pub(super) fn finish(&mut self, packet_id: PacketId) {
        let Some(gone) = self.index(packet_id).and_then(|index| self.list.remove(index)) else { return };
        self.ids.remove(packet_id.get());
        self.open -= usize::from(gone.sent);
        self.retained -= usize::from(gone.retained);
        if gone.has_row {
            self.gone.push(packet_id);
        }
    }

    /// The oldest message of the log that is still needed, if one is.
    pub(super) fn oldest(&self) -> Option<Offset> {
        let needed = |in_flight: &&InFlight| in_flight.stage != Stage::Completed;
        if self.retained == 0 {
            // In the order of the log.
            return self.list.iter().find(needed).map(|in_flight| in_flight.offset);
        }
        self.list.iter().filter(needed).map(|in_flight| in_flight.offset).min()
    }

    /// QoS 1 messages of a group that the client has not acknowledged: others may have them. [MQTT-4.8.2-5] forbids that
    /// at QoS 2.
    pub(super) fn unfinished_of(&self, group: GroupId) -> Vec<Offset> {
        let open = |in_flight: &&InFlight| in_flight.group == Some(group) && in_flight.stage == Stage::Acknowledged;
        self.list.iter().filter(open).map(|in_flight| in_flight.offset).collect()
    }

    /// Whether the store is behind.
    pub(super) fn is_changed(&self) -> bool {
        self.is_changed || !self.gone.is_empty()
    }

    /// Puts what the store has to be told into `update`; it counts as stored from here on.
    pub(super) fn changes(&mut self, update: &mut SessionUpdate) {
        update.finished.append(&mut self.gone);
        if !std::mem::take(&mut self.is_changed) {
            return;
        }
        for in_flight in self.list.iter_mut().filter(|in_flight| !in_flight.is_stored) {
            in_flight.is_stored = true;
            in_flight.has_row = true;
            let InFlight { packet_id, sequence, offset, stage, retained, .. } = *in_flight;
            update.outgoing.push(StoredOutgoing { packet_id, sequence, offset, stage, retained });
        }
    }
}

/// The identifiers in use, a bit each: 8 KiB, from the first QoS 1 delivery on.
#[derive(Debug, Default)]
struct PacketIds(Vec<u64>);

impl PacketIds {
    /// False if it was there.
    fn insert(&mut self, id: u16) -> bool {
        if self.0.is_empty() {
            self.0.resize(1 << 10, 0);
        }
        let Some(word) = self.0.get_mut(usize::from(id >> 6)) else { return false };
        let bit = 1 << (id & 63);
        let free = *word & bit == 0;
        *word |= bit;
        free
    }

    fn remove(&mut self, id: u16) {
        if let Some(word) = self.0.get_mut(usize::from(id >> 6)) {
            *word &= !(1 << (id & 63));
        }
    }
}
