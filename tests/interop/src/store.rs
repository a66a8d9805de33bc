//! Mailboxes in memory: PROTOCOL 9.
use crate::wire::{Identifier, Message};
use std::collections::{HashMap, VecDeque};

#[derive(Default)]
pub struct Store {
    last_uid: u64,
    boxes: HashMap<Identifier, VecDeque<Message>>,
    /// The durable store of that system removes any acknowledged message, the one in memory only
    /// the oldest.
    ack_any: bool,
}

impl Store {
    pub fn new(ack_any: bool) -> Self {
        Store { ack_any, ..Store::default() }
    }

    pub fn put(&mut self, from: Identifier, dest: Identifier, msg: String) {
        self.last_uid += 1;
        let message = Message { uid: self.last_uid, from, msg };
        self.boxes.entry(dest).or_default().push_back(message);
    }

    pub fn oldest(&self, dest: &Identifier) -> Option<Message> {
        self.boxes.get(dest)?.front().cloned()
    }

    pub fn ack(&mut self, dest: &Identifier, uid: u64) -> bool {
        let Some(queue) = self.boxes.get_mut(dest) else { return false };
        match queue.iter().position(|m| m.uid == uid) {
            Some(at) if at == 0 || self.ack_any => queue.remove(at).is_some(),
            _ => false,
        }
    }

    pub fn depth(&self, from: &Identifier, dest: &Identifier) -> usize {
        self.boxes.get(dest).map_or(0, |q| q.iter().filter(|m| m.from == *from).count())
    }
}
