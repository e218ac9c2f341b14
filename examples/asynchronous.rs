//! Reads a file by the traits of `embedded-io-async`, with any executor.
//!
//! ```sh
//! cargo run --example asynchronous
//! ```
//!
//! The session is polled. A waiting task leaves its waker, and the device's interrupt wakes it. The device
//! is in this process's memory, as in the example `polled`.

use bootshare::{
    Error, Options,
    fuse::{Lookup, NodeId, Open, Operation, Read},
    hal::{Hal, PAGE_SIZE},
    session::{Session, Ticket},
    transport::Transport,
};
use bootshare_test_device::{Device, Opcode, TestHal, Tree, VirtualClock};
use embedded_io_async::{ErrorType, Read as AsyncRead};
use futures::{executor::LocalPool, task::LocalSpawnExt};
use std::{
    cell::RefCell,
    future::poll_fn,
    ptr::NonNull,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

/// A session on which several tasks wait.
struct Driver<T: Transport, H: Hal>(RefCell<(Session<T, H>, Vec<Waker>)>);

impl<T: Transport, H: Hal> Driver<T, H> {
    async fn start(transport: T) -> Result<Rc<Self>, Error> {
        let mut session = Session::start(transport, Options::default())?;
        session.set_interrupts(true);
        let driver = Rc::new(Self(RefCell::new((session, Vec::new()))));
        let is_over =
            |session: &mut Session<T, H>| Ok((!session.is_changing()).then_some(session.failure()));
        let failure = driver.until(is_over).await?;
        let is_connected = driver.0.borrow().0.is_connected();
        is_connected.then_some(driver).ok_or(failure)
    }

    /// Called after an interrupt and at each tick of a timer: wakes all waiting tasks, which look again.
    fn wake(&self, now: Duration) {
        let (session, wakers) = &mut *self.0.borrow_mut();
        session.acknowledge();
        session.tick(now);
        wakers.drain(..).for_each(Waker::wake);
    }

    /// Waits until `look` returns a value.
    async fn until<R>(
        &self,
        mut look: impl FnMut(&mut Session<T, H>) -> Result<Option<R>, Error>,
    ) -> Result<R, Error> {
        poll_fn(|context: &mut Context<'_>| {
            let (session, wakers) = &mut *self.0.borrow_mut();
            loop {
                let found = look(session).transpose();
                session.kick();
                match found {
                    Some(found) => return Poll::Ready(found),
                    // The completion may have come between the look and here.
                    None if session.poll() => {}
                    None => break,
                }
            }
            wakers.push(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Waits for the reply to `operation`. If the task is dropped meanwhile, the reply is dropped, too.
    async fn call<O: Operation>(&self, operation: &O) -> Result<O::Reply, Error> {
        let mut pending = Pending {
            driver: self,
            ticket: None,
        };
        self.until(|session| match pending.ticket {
            None => {
                pending.ticket = session.submit(session.epoch(), operation)?;
                Ok(None)
            }
            Some(ticket) => session.take(operation, ticket),
        })
        .await
    }

    async fn open(self: &Rc<Self>, name: &[u8]) -> Result<AsyncFile<T, H>, Error> {
        let (parent, is_dir) = (NodeId::ROOT, false);
        let entry = self.call(&Lookup { parent, name }).await?;
        let node = entry.ok_or(Error::NotFound)?.node;
        let handle = self.call(&Open { node, is_dir }).await?;
        let (driver, page) = (Rc::clone(self), Box::leak(Box::new([0; PAGE_SIZE])).into());
        let next = Read {
            node,
            handle,
            offset: 0,
            size: 0,
            is_dir,
        };
        Ok(AsyncFile {
            driver,
            next,
            page,
            ticket: None,
        })
    }
}

/// A request whose reply a task waits for.
struct Pending<'d, T: Transport, H: Hal> {
    driver: &'d Driver<T, H>,
    ticket: Option<Ticket>,
}

impl<T: Transport, H: Hal> Drop for Pending<'_, T, H> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.driver.0.borrow_mut().0.abandon(ticket);
        }
    }
}

/// An open file. It is not closed here; the example `polled` shows that.
///
/// A task may be leaked (`mem::forget`) while the device writes for it, and a borrow would end then. So the
/// device gets a page that the file owns, and not the buffer of [`AsyncRead::read`].
struct AsyncFile<T: Transport, H: Hal> {
    driver: Rc<Driver<T, H>>,
    /// The offset of the next read.
    next: Read,
    page: NonNull<[u8; PAGE_SIZE]>,
    ticket: Option<Ticket>,
}

impl<T: Transport, H: Hal> ErrorType for AsyncFile<T, H> {
    type Error = Error;
}

impl<T: Transport, H: Hal> AsyncRead for AsyncFile<T, H> {
    async fn read(&mut self, buf: &mut [u8]) -> Result<usize, Error> {
        let Self {
            driver,
            next,
            page,
            ticket,
        } = self;
        let size = buf.len().min(PAGE_SIZE);
        if size == 0 {
            return Ok(0);
        }
        let memory = NonNull::slice_from_raw_parts(page.cast(), size);
        let come = driver.until(|session| match *ticket {
            None => {
                // SAFETY: the page lives as long as the session has the ticket: see `drop`. Nothing
                // else accesses it meanwhile.
                *ticket = unsafe { session.submit_read(session.epoch(), *next, memory) }?;
                Ok(None)
            }
            // An earlier call may have left this request, with another size.
            Some(asked) => {
                let answer = session.take(next, asked);
                *ticket = session.has(asked).then_some(asked);
                answer
            }
        });
        let come = come.await?.min(size);
        // SAFETY: the reply is here, so the device no longer writes to the page.
        let page = unsafe { page.as_ref() };
        buf[..come].copy_from_slice(&page[..come]);
        next.offset += come as u64;
        Ok(come)
    }
}

impl<T: Transport, H: Hal> Drop for AsyncFile<T, H> {
    fn drop(&mut self) {
        let has = |ticket| self.driver.0.borrow().0.has(ticket);
        if !self.ticket.is_some_and(has) {
            // SAFETY: `open` has leaked the page, and the device has no request with it.
            drop(unsafe { Box::from_raw(self.page.as_ptr()) });
        }
    }
}

async fn read_all<T: Transport, H: Hal>(
    driver: Rc<Driver<T, H>>,
    name: &str,
) -> Result<Vec<u8>, Error> {
    let mut file = driver.open(name.as_bytes()).await?;
    let (mut content, mut buf) = (Vec::new(), [0; 1000]);
    loop {
        match file.read(&mut buf).await? {
            0 => return Ok(content),
            come => content.extend_from_slice(&buf[..come]),
        }
    }
}

fn main() {
    let text = |word: &str| word.repeat(5000);
    let tree = Tree::new()
        .file("one", text("one "))
        .file("two", text("two "));
    // The host takes 3 ms for each READ.
    let device = Device::with_script(tree, |request, good| match request.opcode() {
        Opcode::Read => good.after(Duration::from_millis(3)),
        _ => good,
    });
    let mut pool = LocalPool::new();
    let driver = pool.run_until(Driver::<_, TestHal>::start(device.transport()));
    let driver = driver.expect("the device is set up");
    // Two tasks whose requests are in flight at the same time.
    let tasks = ["one", "two", "missing"].map(|name| {
        let task = pool
            .spawner()
            .spawn_local_with_handle(read_all(Rc::clone(&driver), name));
        task.expect("the pool runs")
    });
    let mut now = Duration::ZERO;
    // Each task gets its own reference to the session.
    while Rc::strong_count(&driver) > 1 {
        pool.run_until_stalled();
        // All tasks wait: here a kernel halts its processor until the next interrupt.
        device.tick();
        now += VirtualClock::TICK;
        driver.wake(now);
    }
    let [one, two, missing] = tasks.map(|task| pool.run_until(task));
    assert!(one == Ok(text("one ").into()) && two == Ok(text("two ").into()));
    assert_eq!(missing, Err(Error::NotFound));
    println!("two files of {} bytes in {now:?}", text("one ").len());
}

#[test]
fn files_come_through() {
    main();
}
