//! Reads a file in a kernel that must not wait: the session is polled from a loop that also does other
//! work.
//!
//! ```sh
//! cargo run --example polled
//! ```
//!
//! The device is in this process's memory: see `bootshare_test_device`. Its ticks stand for the kernel's
//! other work, and for the time that this takes.

use bootshare::{
    Error, Options,
    fuse::{Forget, GetAttr, Lookup, NodeId, Open, Operation, Read, Release},
    hal::Hal,
    session::{Priority, Session, Ticket},
    transport::Transport,
};
use bootshare_test_device::{Device, Opcode, TestHal, Tree, VirtualClock};
use std::{ptr::NonNull, time::Duration};

const PAGE: usize = 4096;

/// The state of a driver in a kernel: the session, and access to the rest of the kernel.
struct Driver<T: Transport, H: Hal, F: FnMut()> {
    session: Session<T, H>,
    now: Duration,
    /// The kernel's other work between two polls.
    other_work: F,
}

impl<T: Transport, H: Hal, F: FnMut()> Driver<T, H, F> {
    fn start(transport: T, other_work: F) -> Result<Self, Error> {
        let session = Session::start(transport, Options::default())?;
        let mut driver = Self {
            session,
            now: Duration::ZERO,
            other_work,
        };
        while driver.session.is_changing() {
            driver.turn();
        }
        if driver.session.is_connected() {
            Ok(driver)
        } else {
            Err(driver.session.failure())
        }
    }

    /// One turn of the kernel's loop. With interrupts, call [`Session::poll`] after an interrupt.
    fn turn(&mut self) {
        // One notification for all requests that were submitted since the last turn.
        self.session.kick();
        while self.session.poll() {}
        // Gives the host up if it was silent for longer than the deadline.
        self.session.tick(self.now);
        (self.other_work)();
        self.now += VirtualClock::TICK;
    }

    /// Submits a request and takes turns until its reply has come, like a task that sleeps until then.
    fn call<O: Operation>(&mut self, operation: &O) -> Result<O::Reply, Error> {
        let epoch = self.session.epoch();
        let ticket = loop {
            match self.session.submit(epoch, operation)? {
                Some(ticket) => break ticket,
                // All slots are in use.
                None => self.turn(),
            }
        };
        loop {
            self.turn();
            if let Some(reply) = self.session.take(operation, ticket)? {
                return Ok(reply);
            }
        }
    }

    /// Reads a file page by page, with as many pages in flight as the session accepts.
    fn read(&mut self, name: &[u8]) -> Result<Vec<u8>, Error> {
        let parent = NodeId::ROOT;
        let entry = self.call(&Lookup { parent, name })?;
        let node = entry.ok_or(Error::NotFound)?.node;
        let (size, is_dir) = (self.call(&GetAttr { node })?.size as usize, false);
        let handle = self.call(&Open { node, is_dir })?;
        let epoch = self.session.epoch();
        let mut read = Read {
            node,
            handle,
            offset: 0,
            size: 0,
            is_dir,
        };
        // If this fails while requests are in flight, the memory stays leaked: the device may write to it
        // until its reset.
        let memory = NonNull::from(Box::leak(vec![0_u8; size].into_boxed_slice()));
        let mut under_way: Vec<Ticket> = Vec::new();
        while read.offset < size as u64 || !under_way.is_empty() {
            while read.offset < size as u64 {
                let start = read.offset as usize;
                // SAFETY: the offset is inside the memory.
                let page = unsafe { memory.cast::<u8>().add(start) };
                let page = NonNull::slice_from_raw_parts(page, PAGE.min(size - start));
                // SAFETY: nothing accesses the page before all is read, and it is not freed before.
                let Some(ticket) = (unsafe { self.session.submit_read(epoch, read, page) })? else {
                    break;
                };
                // If the memory is scattered, less may be read than was requested.
                read.offset += ticket.lent() as u64;
                under_way.push(ticket);
            }
            self.turn();
            for ticket in std::mem::take(&mut under_way) {
                match self.session.take(&read, ticket)? {
                    None => under_way.push(ticket),
                    Some(come) if come < ticket.lent() => return Err(Error::UnexpectedEof),
                    Some(_) => {}
                }
            }
        }
        let (release, forget) = (
            Release {
                node,
                handle,
                is_dir,
            },
            Forget { node, nlookup: 1 },
        );
        // Nothing waits for these two. If all slots are in use, a kernel tries again later.
        self.session.post(epoch, &release, Priority::Normal)?;
        self.session.post(epoch, &forget, Priority::High)?;
        self.session.kick();
        // SAFETY: this memory was leaked above, and all requests with it are complete.
        Ok(unsafe { Box::from_raw(memory.as_ptr()) }.into_vec())
    }
}

fn main() {
    let lines = 0..10_000;
    let text: String = lines.map(|line| format!("line {line}\n")).collect();
    let tree = Tree::new().file("text", text.as_str());
    // The host takes 3 ms for each READ.
    let device = Device::with_script(tree, |request, good| match request.opcode() {
        Opcode::Read => good.after(Duration::from_millis(3)),
        _ => good,
    });
    let mut turns = 0;
    let transport = device.transport();
    let driver = Driver::<_, TestHal, _>::start(transport, || {
        turns += 1;
        device.tick();
    });
    let mut driver = driver.expect("the device is set up");
    let missing = driver.read(b"missing");
    assert_eq!(missing, Err(Error::NotFound));
    let content = driver.read(b"text").expect("it is read");
    assert!(content == text.as_bytes());
    drop(driver);
    println!(
        "{} bytes; other work was done {turns} times meanwhile",
        content.len()
    );
}

#[test]
fn a_file_comes_through() {
    main();
}
