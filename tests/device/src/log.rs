//! The record of a device: the requests, the rules that they broke, and what the client still holds.

use crate::request::{Opcode, REPLY_HEADER, Request};
use std::collections::{BTreeMap, HashMap, HashSet};

/// What the client holds on the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// The LOOKUPs without a FORGET, over all nodes.
    pub lookups: u64,
    /// The files and directories that are open.
    pub handles: usize,
}

/// The record.
#[derive(Debug, Default)]
pub struct Log {
    /// All requests, oldest first.
    pub requests: Vec<Request>,
    /// Requests or accesses that could harm a server or violate virtio.
    pub faults: Vec<String>,
    /// Nodes and handles that the client used without having them. If the server lies about them, this may happen.
    pub misuse: Vec<String>,
    /// The balance at each DESTROY.
    pub at_destroy: Vec<Balance>,
    nodes: HashMap<u64, u64>,
    handles: HashSet<u64>,
    in_flight: HashSet<u64>,
    alive: bool,
}

impl Log {
    /// The number of requests by opcode.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<Opcode, usize> {
        let mut counts = BTreeMap::new();
        for request in &self.requests {
            *counts.entry(request.opcode).or_default() += 1;
        }
        counts
    }

    /// All faults and misuse: empty for a correct client of a correct server.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        [&self.faults[..], &self.misuse].concat()
    }

    /// What the client holds now.
    #[must_use]
    pub fn balance(&self) -> Balance {
        Balance {
            lookups: self.nodes.values().sum(),
            handles: self.handles.len(),
        }
    }

    pub(crate) fn reset(&mut self) {
        self.nodes.clear();
        self.handles.clear();
        self.in_flight.clear();
        self.alive = false;
    }

    pub(crate) fn broken(&mut self, what: impl Into<String>) {
        note(&mut self.faults, what.into());
    }

    fn misused(&mut self, what: &str, request: &Request) {
        note(&mut self.misuse, format!("{what}: {request:?}"));
    }

    /// Records a request.
    pub(crate) fn asked(&mut self, request: &Request) {
        for fault in request.faults() {
            self.broken(fault);
        }
        if !self.in_flight.insert(request.unique) {
            self.broken(format!("unique {} is in flight", request.unique));
        }
        if request.opcode == Opcode::Init {
            self.nodes.clear();
            self.handles.clear();
            self.alive = true;
        } else if !self.alive {
            self.broken(format!("no INIT before {request:?}"));
        }
        // A FORGET in the hiprio queue may overtake an earlier RELEASE. Servers find the file by its handle, as
        // they have to for Linux.
        let closes = matches!(request.opcode, Opcode::Release | Opcode::ReleaseDir);
        if request.node != 1 && !closes && !self.nodes.contains_key(&request.node) {
            self.misused("no such node", request);
        }
        match request.opcode {
            Opcode::Forget => {
                let left = self.nodes.get(&request.node).copied().unwrap_or(0);
                match left.checked_sub(request.u64_at(0)) {
                    Some(0) => _ = self.nodes.remove(&request.node),
                    Some(left) => _ = self.nodes.insert(request.node, left),
                    None => self.misused("forgotten too often", request),
                }
            }
            Opcode::Read | Opcode::ReadDir if !self.handles.contains(&request.handle()) => {
                self.misused("no such handle", request);
            }
            Opcode::Release | Opcode::ReleaseDir if !self.handles.remove(&request.handle()) => {
                self.misused("closed twice", request);
            }
            Opcode::Destroy => {
                let balance = self.balance();
                self.at_destroy.push(balance);
                self.nodes.clear();
                self.handles.clear();
                self.alive = false;
            }
            _ => {}
        }
        self.requests.push(request.clone());
    }

    /// Records a reply.
    pub(crate) fn answered(&mut self, request: &Request, reply: &[u8], used: u32) {
        self.in_flight.remove(&request.unique);
        let good = used as usize > REPLY_HEADER && reply.get(4..8) == Some(&[0; 4]);
        let Some(body) = reply.get(REPLY_HEADER..REPLY_HEADER + 8).filter(|_| good) else {
            return;
        };
        let number = u64::from_le_bytes(body.try_into().unwrap());
        match request.opcode {
            Opcode::Lookup if number != 0 => *self.nodes.entry(number).or_default() += 1,
            Opcode::Open | Opcode::OpenDir => _ = self.handles.insert(number),
            _ => {}
        }
    }
}

fn note(notes: &mut Vec<String>, what: String) {
    // The first notes are enough; an endless loop must not fill memory.
    if notes.len() < 100 {
        notes.push(what);
    }
}
