//! From queued batches to one group commit: limits, topic numbers, offsets.
//!
//! A batch is admitted whole or refused whole. What is admitted will be committed, however long the disk or a full
//! log makes it wait, so nothing here is ever undone. Owned by the writer's thread.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::error::AppendError;
use super::limits::row_page_fraction;
use super::sessions::SessionUpdate;
use super::store::Batch;
use super::topics::Topics;
use super::{LogMessage, Offset};
use crate::message::Message;
use crate::retained::{RetainedMessage, retained_bytes};
use crate::topic::TopicName;

/// A message on its way to the writer. Allocated by the publisher, so that the writer need not.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) message: Arc<LogMessage>,
    pub(crate) log: bool,
}

/// A batch on its way to the writer.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) entries: Vec<Entry>,
    /// Payloads and properties with their overhead: what it holds of the queue.
    pub(crate) bytes: usize,
    /// What its session has to store in the same commit.
    pub(crate) session: Option<Box<SessionUpdate>>,
    /// Nobody waits for telemetry at QoS 0.
    pub(crate) reply: Option<oneshot::Sender<Result<Offset, AppendError>>>,
    pub(crate) queued_at: Instant,
}

/// Changes of a session on their way to the writer.
#[derive(Debug)]
pub(crate) struct SessionJob {
    pub(crate) update: SessionUpdate,
    pub(crate) reply: oneshot::Sender<Result<(), AppendError>>,
    pub(crate) queued_at: Instant,
}

/// Someone to tell after the commit.
#[derive(Debug)]
pub(crate) struct Ack {
    pub(crate) reply: Option<oneshot::Sender<Result<Offset, AppendError>>>,
    pub(crate) first: Offset,
    pub(crate) queued_at: Instant,
}

/// Changes of sessions that came without messages: they need not wait while there is no room for messages.
#[derive(Debug, Default)]
pub(crate) struct SessionGroup {
    pub(crate) updates: Vec<SessionUpdate>,
    pub(crate) replies: Vec<oneshot::Sender<Result<(), AppendError>>>,
}

impl SessionGroup {
    pub(crate) fn add(&mut self, job: SessionJob) {
        self.updates.push(job.update);
        self.replies.push(job.reply);
    }

    /// Tells everyone.
    pub(crate) fn answer(self, answer: &Result<(), AppendError>) {
        for reply in self.replies {
            // The session may have gone.
            let _ = reply.send(answer.clone());
        }
    }
}

/// One group commit in the making.
#[derive(Debug, Default)]
pub(crate) struct Group {
    pub(crate) batch: Batch,
    pub(crate) acks: Vec<Ack>,
    /// Changes of sessions that came without messages.
    pub(crate) sessions: SessionGroup,
    /// What it holds of the queue's bytes.
    pub(crate) queue_bytes: usize,
    /// Payload and property bytes that are logged.
    pub(crate) payload_bytes: u64,
    /// A commit that was reported as failed turned out to be on disk.
    pub(crate) is_stored: bool,
    page_fractions: u64,
}

impl Group {
    /// Pages that writing it may take at most.
    pub(crate) fn pages(&self) -> u64 {
        // A few more for the interior of the tree, and for the root of a new partition.
        let pages = self.page_fractions.div_ceil(256);
        pages + pages / 64 + 8
    }

    /// Counts what a session has to store; its rows are in up to five tables.
    fn count_session(&mut self, update: &SessionUpdate) {
        self.page_fractions += row_page_fraction(update.bytes()) + 64;
    }

    /// Adds changes of a session that came without messages.
    pub(crate) fn add_session(&mut self, job: SessionJob) {
        self.count_session(&job.update);
        self.sessions.add(job);
    }

    /// Whether it holds nothing to write.
    pub(crate) fn is_empty(&self) -> bool {
        let Batch { messages, retained, sessions, .. } = &self.batch;
        messages.is_empty() && retained.is_empty() && sessions.is_empty() && self.sessions.updates.is_empty()
    }
}

/// The sizes of all stored retained messages, as of everything admitted.
#[derive(Debug, Default)]
pub(crate) struct RetainedBook {
    bytes_by_topic: HashMap<TopicName, usize>,
    bytes: usize,
    count_max: usize,
    bytes_max: usize,
}

impl RetainedBook {
    /// An empty book with its bounds.
    pub(crate) fn new(count_max: usize, bytes_max: usize) -> RetainedBook {
        RetainedBook { count_max, bytes_max, ..RetainedBook::default() }
    }

    /// Notes a message's size, or that there is none; gives what was there.
    pub(crate) fn set(&mut self, topic: &TopicName, bytes: Option<usize>) -> Option<usize> {
        let before = match bytes {
            Some(bytes) => self.bytes_by_topic.insert(topic.clone(), bytes),
            None => self.bytes_by_topic.remove(topic),
        };
        self.bytes = self.bytes.saturating_sub(before.unwrap_or(0)).saturating_add(bytes.unwrap_or(0));
        before
    }

    /// Notes the messages that ask to be retained, or none of them if one does not fit.
    fn admit<'m>(&mut self, messages: impl Iterator<Item = &'m Message>) -> bool {
        let mut undo = Vec::new();
        for message in messages.filter(|message| message.retain) {
            let bytes = (!message.payload.is_empty()).then(|| retained_bytes(message));
            undo.push((message.topic.clone(), self.set(&message.topic, bytes)));
            let full = self.bytes_by_topic.len() > self.count_max || self.bytes > self.bytes_max;
            if full && bytes.is_some() {
                for (topic, before) in undo.iter().rev() {
                    self.set(topic, *before);
                }
                return false;
            }
        }
        true
    }
}

/// Gives offsets and topic numbers, and keeps the limits.
#[derive(Debug)]
pub(crate) struct Admission {
    /// The offset that the next admitted message gets.
    pub(crate) next: u64,
    pub(crate) book: RetainedBook,
    pub(crate) topics_max: usize,
    pub(crate) topic_bytes_max: usize,
}

impl Admission {
    /// Adds a batch to the group, or gives it back with the reason.
    pub(crate) fn admit(
        &mut self,
        mut job: Job,
        topics: &mut Topics,
        group: &mut Group,
    ) -> Result<(), (Job, AppendError)> {
        let used_before = self.next + job.entries.len() as u64;
        let unknown = number_topics(&mut job.entries, topics, used_before);
        if !unknown.is_empty() {
            let new: HashSet<&TopicName> = unknown
                .iter()
                .filter_map(|index| job.entries.get(*index))
                .map(|entry| &entry.message.message.topic)
                .collect();
            let bytes = new.iter().map(|topic| topic.as_str().len()).sum();
            if !topics.has_room(new.len(), bytes) {
                let error = AppendError::TopicLimit { topics_max: self.topics_max, bytes_max: self.topic_bytes_max };
                return Err((job, error));
            }
        }
        if !self.book.admit(job.entries.iter().map(|entry| &entry.message.message)) {
            let error = AppendError::RetainedLimit { count_max: self.book.count_max, bytes_max: self.book.bytes_max };
            return Err((job, error));
        }
        for index in unknown {
            let Some(entry) = job.entries.get_mut(index) else { continue };
            let message = Arc::make_mut(&mut entry.message);
            let topic = &message.message.topic;
            message.topic_id = match topics.lookup(topic, used_before) {
                Some(id) => id,
                None => {
                    let id = topics.intern(topic, used_before);
                    group.page_fractions += row_page_fraction(topic.as_str().len());
                    group.batch.topics.push((id, topic.clone()));
                    id
                }
            };
        }
        self.take(job, group);
        Ok(())
    }

    /// Gives the offsets and moves the messages into the group.
    fn take(&mut self, job: Job, group: &mut Group) {
        let first = Offset(self.next);
        group.batch.messages.reserve(job.entries.len());
        for mut entry in job.entries {
            let bytes = entry.message.message.payload.len() + entry.message.message.properties.len();
            if entry.log {
                // The publisher gave its only reference, so nothing is copied here.
                Arc::make_mut(&mut entry.message).offset = Offset(self.next);
                self.next += 1;
                group.payload_bytes += bytes as u64;
                group.page_fractions += row_page_fraction(bytes);
            }
            let message = &entry.message.message;
            if message.retain {
                let offset = entry.log.then_some(entry.message.offset);
                let retained = (!message.payload.is_empty())
                    .then(|| Arc::new(RetainedMessage::stored(message, entry.message.received_us, offset)));
                group.batch.retained.push((message.topic.clone(), retained));
                // The row and its topic's entry in the index.
                group.page_fractions += row_page_fraction(bytes + 2 * message.topic.as_str().len()) + 16;
            }
            if entry.log {
                group.batch.messages.push(entry.message);
            }
        }
        if let Some(update) = job.session {
            group.count_session(&update);
            group.batch.sessions.push(*update);
        }
        group.queue_bytes += job.bytes;
        group.acks.push(Ack { reply: job.reply, first, queued_at: job.queued_at });
    }
}

/// Sets the numbers of known topics; gives the indices of messages to unknown ones.
fn number_topics(entries: &mut [Entry], topics: &mut Topics, used_before: u64) -> Vec<usize> {
    let mut unknown = Vec::new();
    let mut last: Option<(TopicName, u32)> = None;
    for (index, entry) in entries.iter_mut().enumerate().filter(|(_, entry)| entry.log) {
        let topic = &entry.message.message.topic;
        let id = match &last {
            // A batch often is a run of messages to one topic.
            Some((same, id)) if same == topic => Some(*id),
            _ => topics.lookup(topic, used_before),
        };
        let Some(id) = id else {
            unknown.push(index);
            continue;
        };
        if last.as_ref().is_none_or(|(same, _)| same != topic) {
            last = Some((topic.clone(), id));
        }
        Arc::make_mut(&mut entry.message).topic_id = id;
    }
    unknown
}
