//! Descriptors: which of them have something for us, and what that is.

use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// Waits until one of `fds` can be read, or whatever its flags say, for `limit` at the most; tells
/// which can. A signal may end the wait early: then none can.
pub(crate) fn ready(
    fds: &[(BorrowedFd<'_>, PollFlags)],
    limit: Option<Duration>,
) -> io::Result<Vec<bool>> {
    let limit = limit.map(|limit| Timespec::try_from(limit).unwrap_or(FOR_EVER));
    let mut polled: Vec<_> = fds
        .iter()
        .map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
        .collect();
    match poll(&mut polled, limit.as_ref()) {
        Ok(_) => Ok(polled.iter().map(|fd| !fd.revents().is_empty()).collect()),
        Err(Errno::INTR) => Ok(vec![false; fds.len()]),
        Err(error) => Err(error.into()),
    }
}

const FOR_EVER: Timespec = Timespec {
    tv_sec: i64::MAX,
    tv_nsec: 0,
};

/// Waits until one of two descriptors can be read; tells which can.
pub(crate) fn either(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> io::Result<(bool, bool)> {
    loop {
        let ready = ready(&[(one, PollFlags::IN), (other, PollFlags::IN)], None)?;
        if ready.contains(&true) {
            return Ok((ready[0], ready[1]));
        }
    }
}

/// Reads what is there, at most 64 KiB; `None` at the end.
pub(crate) fn read_some(from: &mut dyn Read) -> io::Result<Option<Vec<u8>>> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(None),
            Ok(count) => {
                buffer.truncate(count);
                return Ok(Some(buffer));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The other end of a socket was killed with bytes of ours unread.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}
