//! Loggers that use the share, for example to write to a file in it or to read their log level from it.

use crate::rig::{check, in_chunks, spoiling};
use bootshare::{Error, Options};
use bootshare_test_device::{Opcode, Reply, TestShare, raw::dirent};
use std::{
    cell::RefCell,
    rc::Rc,
    sync::{Arc, OnceLock},
};

type Hook = Rc<dyn Fn(&str)>;

thread_local! {
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

/// Calls `hook` for each log line of this thread, except for lines logged inside of the hook.
pub fn on_log(hook: impl Fn(&str) + 'static) {
    _ = log::set_logger(&Logger);
    log::set_max_level(log::LevelFilter::Trace);
    HOOK.set(Some(Rc::new(hook)));
}

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let Some(hook) = HOOK.take() else {
            return;
        };
        hook(&record.args().to_string());
        HOOK.set(Some(hook));
    }

    fn flush(&self) {}
}

/// Records each log line, after using the share in every way. Returns the recorded lines.
fn using(share: &Arc<OnceLock<TestShare>>) -> Rc<RefCell<Vec<String>>> {
    let lines = Rc::<RefCell<Vec<_>>>::default();
    let (written, share) = (Rc::clone(&lines), Arc::clone(share));
    on_log(move |line| {
        if let Some(share) = share.get() {
            let is_over = Err(Error::Disconnected);
            assert_eq!(share.metadata("file").map(drop), is_over, "{line}");
            assert_eq!(share.open("file").map(drop), is_over);
            assert_eq!(share.statistics().map(drop), is_over);
            _ = (format!("{share:?}"), share.tag(), share.protocol());
            assert!(!share.is_connected());
        }
        written.borrow_mut().push(line.to_owned());
    });
    lines
}

/// The log lines after `act` failed on a share whose device never answers requests with this opcode.
fn said(
    opcode: Opcode,
    act: impl Fn(&TestShare) -> Result<(), Error>,
) -> (Result<(), Error>, Vec<String>) {
    let device = spoiling(opcode, |_, good| good.never());
    let share = Arc::new(OnceLock::new());
    share.set(device.mount(in_chunks()).unwrap()).unwrap();
    let lines = using(&share);
    let result = act(share.get().unwrap());
    on_log(|_| {});
    share.get().unwrap().resume().unwrap();
    drop(share);
    check(&device);
    (result, lines.take())
}

const TIMED_OUT: Error = Error::TimedOut { after_ms: 10_000 };

#[test]
fn a_failure_is_logged_once_with_the_share_unlocked() {
    for (opcode, act) in [
        (
            Opcode::StatFs,
            (|share| share.statistics().map(drop)) as fn(&TestShare) -> _,
        ),
        (Opcode::ReadDir, |share| {
            share.read_dir("/")?.next().transpose().map(drop)
        }),
        (Opcode::Read, |share| {
            share.open("large")?.read_at(0, &mut [0; 5000]).map(drop)
        }),
    ] {
        let (result, lines) = said(opcode, act);
        assert_eq!(result, Err(TIMED_OUT));
        let why = format!("share test: {TIMED_OUT}; resetting the device");
        assert_eq!(
            lines.iter().filter(|line| **line == why).count(),
            1,
            "{lines:?}"
        );
    }
}

#[test]
fn an_unsent_request_is_logged_with_the_share_unlocked() {
    // Unanswered RELEASEs use all the slots that such requests may use.
    let (result, lines) = said(Opcode::Release, |share| {
        (0..40).try_for_each(|_| share.open("file").map(drop))
    });
    assert_eq!(result, Err(Error::Disconnected));
    assert!(
        lines.iter().any(|line| line.contains("was not sent")),
        "{lines:?}"
    );
}

#[test]
fn an_omitted_name_is_logged_with_the_share_unlocked() {
    let device = spoiling(Opcode::ReadDir, |request, _| match request.offset() {
        0 => Reply::ok(request, &dirent(7, 1, 8, &[b'n'; 300])),
        _ => Reply::ok(request, &[]),
    });
    let share = device.mount(Options::default()).unwrap();
    let lines = Rc::<RefCell<Vec<_>>>::default();
    let written = Rc::clone(&lines);
    let share = Rc::new(share);
    let other = Rc::clone(&share);
    on_log(move |line| {
        assert_eq!(
            other.read_dir("/").unwrap().count(),
            0,
            "another listing meanwhile"
        );
        written.borrow_mut().push(line.to_owned());
    });
    assert_eq!(share.read_dir("/").unwrap().count(), 0);
    on_log(|_| {});
    let [line] = &lines.take()[..] else {
        panic!("one line");
    };
    assert!(
        line.starts_with("a name of 300 bytes is left out"),
        "{line}"
    );
    drop(share);
    check(&device);
}
