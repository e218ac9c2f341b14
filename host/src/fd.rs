//! Waiting for file descriptors, and reading and writing them.

use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// How much is read or written at a time.
pub(crate) const AT_A_TIME: usize = 64 << 10;

/// poll(2) with a time limit: returns one `bool` for each descriptor, `true` if it is ready for
/// what its flags ask. A signal may end the wait early; then all are `false`.
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

/// Waits until a descriptor is readable; returns `false` if it is not by `deadline`.
pub(crate) fn readable_by(fd: BorrowedFd<'_>, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match ready(&[(fd, PollFlags::IN)], Some(left))?[0] {
            false if !left.is_zero() => {}
            ready => return Ok(ready),
        }
    }
}

/// Waits until at least one of two descriptors is readable, and returns which of them are.
pub(crate) fn either(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> io::Result<(bool, bool)> {
    loop {
        let ready = ready(&[(one, PollFlags::IN), (other, PollFlags::IN)], None)?;
        if ready.contains(&true) {
            return Ok((ready[0], ready[1]));
        }
    }
}

/// Writes all of `bytes`, also if another process that shares the descriptor has set O_NONBLOCK.
/// Calls `written` with the size of each partial write.
pub(crate) fn write_all(
    to: BorrowedFd<'_>,
    mut bytes: &[u8],
    mut written: impl FnMut(usize),
) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(to, &bytes[..bytes.len().min(AT_A_TIME)]) {
            Ok(count) => {
                bytes = &bytes[count..];
                written(count);
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => drop(ready(&[(to, PollFlags::OUT)], None)?),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Calls `read` until the stream has no more data at the moment. It does not wait for the end of
/// the stream, which may never come while another process holds the other end.
pub(crate) fn read_rest<S, E: From<io::Error>>(
    stream: &mut S,
    fd: impl Fn(&S) -> Option<BorrowedFd<'_>>,
    read: impl Fn(&mut S) -> Result<usize, E>,
) -> Result<(), E> {
    let count = |stream: &S| fd(stream).map_or(Ok(0), rustix::io::ioctl_fionread);
    let mut left = count(stream).map_err(io::Error::from)?;
    while left > 0 && count(stream).map_err(io::Error::from)? > 0 {
        left = left.saturating_sub(read(stream)? as u64);
    }
    Ok(())
}

/// Reads the available data, at most 64 KiB; `None` at the end of the stream.
pub(crate) fn read_some(from: &mut dyn Read) -> io::Result<Option<Vec<u8>>> {
    let mut buffer = vec![0; AT_A_TIME];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(None),
            Ok(count) => {
                buffer.truncate(count);
                return Ok(Some(buffer));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The process at the other end of the socket was killed before it read all of our data.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_socket_whose_other_end_was_killed_has_ended() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        ours.write_all(b"unread").unwrap();
        theirs.write_all(b"last words").unwrap();
        // unix(7): the error is reported before the data that was sent earlier.
        drop(theirs);
        while let Some(bytes) = read_some(&mut ours).unwrap() {
            assert_eq!(bytes, b"last words");
        }
    }

    #[test]
    fn an_interrupted_read_is_repeated_and_another_error_is_passed_on() {
        struct Answers(Vec<io::Result<&'static [u8]>>);
        impl Read for Answers {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.0.remove(0)?.read(buffer)
            }
        }
        let error = |kind: io::ErrorKind| Err(io::Error::from(kind));
        let mut answers = Answers(vec![
            error(io::ErrorKind::Interrupted),
            Ok(b"text"),
            error(io::ErrorKind::PermissionDenied),
            error(io::ErrorKind::ConnectionReset),
            Ok(b""),
        ]);
        assert_eq!(read_some(&mut answers).unwrap().unwrap(), b"text");
        let denied = read_some(&mut answers).unwrap_err();
        assert_eq!(denied.kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(read_some(&mut answers).unwrap(), None);
        assert_eq!(read_some(&mut answers).unwrap(), None);
    }

    #[test]
    fn what_arrives_while_the_rest_is_read_is_not_waited_for() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        (&theirs).write_all(b"rest").unwrap();
        let reads = std::cell::Cell::new(0);
        read_rest(
            &mut ours,
            |stream| Some(std::os::fd::AsFd::as_fd(stream)),
            |stream| {
                reads.set(reads.get() + 1);
                assert_eq!(reads.get(), 1);
                let count = stream.read(&mut [0; 16])?;
                // The other process goes on writing.
                (&theirs).write_all(b"more")?;
                Ok::<_, io::Error>(count)
            },
        )
        .unwrap();
        assert_eq!(reads.get(), 1);
    }
}
