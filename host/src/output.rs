//! What the tool writes for its user. A file is written under a temporary name in the same directory
//! and then renamed: nobody sees a partial file, and a link is replaced, never followed. Devices and
//! pipes are written to directly. Printing a message ends at a time limit, and soon after a signal.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use rustix::event::PollFlags;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tempfile::NamedTempFile;

use crate::explain::Explain;
use crate::fd::{ready, write_all};
use crate::interrupt;

/// The remedy for an output that cannot be written.
const WRITABLE: &str = "name a place with room that can be written to";

/// Creates a directory for output files.
///
/// # Errors
/// It cannot be created.
pub fn directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).explain(
        format_args!("cannot make the directory {}", path.display()),
        WRITABLE,
    )
}

/// A file that is written at the end of a run. That it can be written is known from the start.
pub struct Planned {
    path: PathBuf,
    /// The device or the pipe at this path.
    direct: Option<File>,
    is_ours: fn(&[u8]) -> bool,
}

impl Planned {
    /// The output `path`. An existing file is replaced only if it is empty, or if `is_ours` says by
    /// its first bytes that it is an earlier output.
    ///
    /// # Errors
    /// It cannot be written, or another file has this name.
    pub fn new(path: &Path, is_ours: fn(&[u8]) -> bool) -> Result<Self> {
        let direct = direct(path)?;
        if direct.is_none() {
            check(path, EARLIER, is_ours)?;
            drop(beside(path)?);
        }
        Ok(Self {
            path: path.to_owned(),
            direct,
            is_ours,
        })
    }

    /// Writes `bytes`. For a pipe's reader it waits for at most `limit`, and not long after a signal.
    ///
    /// # Errors
    /// It cannot be written, or another file has got its name meanwhile.
    pub fn write(self, bytes: &[u8], limit: Option<Duration>) -> Result<()> {
        match self.direct {
            Some(file) => write_within(file.as_fd(), bytes, limit)
                .explain(failure(&self.path), "name a place that takes all of it"),
            None => {
                let (path, bytes) = (self.path.clone(), bytes.to_vec());
                let replaced = answer_of(limit, move || {
                    check(&path, EARLIER, self.is_ours)?;
                    replace(&path, &bytes)
                });
                replaced.unwrap_or_else(|| {
                    Err(anyhow!("it does not answer")).explain(
                        failure(&self.path),
                        "name a place on a file system that answers",
                    )
                })
            }
        }
    }
}

/// What an existing output is to be.
const EARLIER: &str = "from an earlier run";

/// The beginning of an error about the output `path`.
fn failure(path: &Path) -> String {
    format!("cannot write {}", path.display())
}

/// Opens what must not be replaced by a file: a device, a pipe, or a link in or into /proc, to what
/// this process has open (/dev/stdout, /dev/fd/N). `None` for all else.
///
/// # Errors
/// It cannot be opened for writing.
pub(crate) fn direct(path: &Path) -> Result<Option<File>> {
    let target = fs::read_link(path);
    let dir = path.parent().and_then(|dir| fs::canonicalize(dir).ok());
    let is_open = target.as_ref().is_ok_and(|target| {
        let mut places = dir.iter().chain([target]);
        places.any(|place| place.starts_with("/proc"))
    });
    match fs::metadata(path) {
        Ok(found) if is_open || !found.is_file() && !found.is_dir() => {}
        // Without /proc, or if it is not open, the link in /dev must stay, too.
        Err(error) if is_open => return Err(error).explain(failure(path), WRITABLE),
        _ => return Ok(None),
    }
    let mut options = File::options();
    if let Some(stream) = own_stream(path) {
        let copy = stream.try_clone_to_owned();
        return copy
            .map(|copy| Some(copy.into()))
            .explain(failure(path), WRITABLE);
    }
    // Opening a pipe would wait for a reader.
    // Opening a terminal would make it the one of a process that has none.
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32;
    match options.append(true).custom_flags(flags).open(path) {
        Ok(file) => {
            rustix::io::ioctl_fionbio(&file, false)?;
            Ok(Some(file))
        }
        Err(error) if error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => {
            Err(anyhow!("nobody reads it")).explain(failure(path), "start its reader first")
        }
        Err(error) => Err(error).explain(failure(path), WRITABLE),
    }
}

/// The standard stream that `path` names, as /dev/stdout does. A file opened anew would have an offset
/// of its own, and overwrite what others write to the stream.
fn own_stream(path: &Path) -> Option<BorrowedFd<'static>> {
    let own = fs::canonicalize("/proc/self/fd").ok()?;
    let target = fs::read_link(path).ok();
    let mut places = [Some(path), target.as_deref()].into_iter().flatten();
    let is_own = |place: &&Path| {
        let dir = place.parent().and_then(|dir| fs::canonicalize(dir).ok());
        dir.is_some_and(|dir| dir == own)
    };
    match places.find(is_own)?.file_name()?.to_str()? {
        "1" => Some(rustix::stdio::stdout()),
        "2" => Some(rustix::stdio::stderr()),
        _ => None,
    }
}

/// Whether the file at `path` may be replaced: it does not exist, is empty, or `is_ours` says so by
/// its first bytes. The error says that it is not `what`.
///
/// # Errors
/// It may not.
pub(crate) fn check(path: &Path, what: &str, is_ours: impl Fn(&[u8]) -> bool) -> Result<()> {
    check_by(rustix::process::geteuid().as_raw(), path, what, is_ours)
}

/// The same for the user with this number.
fn check_by(user: u32, path: &Path, what: &str, is_ours: impl Fn(&[u8]) -> bool) -> Result<()> {
    ensure!(
        !path.as_os_str().as_bytes().ends_with(b"/"),
        "{}: it is a directory: name a file",
        failure(path)
    );
    let Ok(found) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    ensure!(
        found.is_file() || found.is_symlink(),
        "{}: it is {}: name a file",
        failure(path),
        if found.is_dir() {
            "a directory"
        } else {
            "no file"
        }
    );
    let dir = fs::metadata(dir_of(path)).explain(failure(path), WRITABLE)?;
    let owners = [found.uid(), dir.uid()];
    ensure!(
        may_replace(dir.mode(), owners, user),
        "{}: it belongs to another user, in a directory with the sticky bit: choose another name",
        failure(path)
    );
    if found.is_file() {
        let mut head = Vec::new();
        let read = File::open(path).and_then(|file| file.take(HEAD).read_to_end(&mut head));
        read.explain(failure(path), REMOVE)?;
        ensure!(
            head.is_empty() || is_ours(&head),
            "{}: the file exists and is not {what}: {REMOVE}",
            failure(path)
        );
    }
    Ok(())
}

/// Whether `user` may replace a file in a directory of this mode. With the sticky bit, only the owners
/// of the file and of the directory may, and root (rename(2)).
fn may_replace(dir: u32, owners: [u32; 2], user: u32) -> bool {
    dir & Mode::SVTX.bits() == 0 || user == 0 || owners.contains(&user)
}

/// The directory of a file.
fn dir_of(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// How much of an existing file is looked at.
const HEAD: u64 = 64 << 10;

/// The remedy for an output whose name is taken.
const REMOVE: &str = "choose another name, or remove it";

/// An empty temporary file in the directory of `path`. It is deleted unless [`put`] renames it.
///
/// # Errors
/// The directory cannot be written to.
pub(crate) fn beside(path: &Path) -> Result<NamedTempFile> {
    let file = tempfile::Builder::new()
        .prefix(".bootshare-")
        // The usual mode of a new file; the umask applies.
        .permissions(fs::Permissions::from_mode(0o666))
        .tempfile_in(dir_of(path));
    file.map_err(|error| nameless(&error))
        .explain(failure(path), WRITABLE)
}

/// Writes to a file of [`beside`].
///
/// # Errors
/// The disk is full.
pub(crate) fn write(file: &mut NamedTempFile, path: &Path, bytes: &[u8]) -> Result<()> {
    // The errors of `NamedTempFile` have the temporary file's name, which says nothing to the user.
    file.as_file_mut()
        .write_all(bytes)
        .explain(failure(path), WRITABLE)
}

/// The error without the temporary file's name.
fn nameless(error: &io::Error) -> io::Error {
    let text = error.to_string();
    let code = text.split("(os error ").nth(1).and_then(|rest| {
        let (code, _) = rest.split_once(')')?;
        code.parse().ok()
    });
    code.map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

/// Renames the file to its final name and replaces what had that name.
///
/// # Errors
/// The file system refuses it, for example because the name is a directory's.
pub(crate) fn put(file: NamedTempFile, path: &Path) -> Result<File> {
    let put = file.persist(path).map_err(|error| error.error);
    put.explain(failure(path), WRITABLE)
}

/// Replaces the file at `path` by one with these bytes.
///
/// # Errors
/// It cannot be written.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = beside(path)?;
    // A file that only its owner may read stays such a file.
    if let Ok(found) = fs::symlink_metadata(path)
        && found.is_file()
    {
        let mode = fs::Permissions::from_mode(found.permissions().mode() & 0o777);
        file.as_file()
            .set_permissions(mode)
            .explain(failure(path), WRITABLE)?;
    }
    write(&mut file, path, bytes)?;
    match file.persist(path) {
        // A file that is mounted there, in a container for example, cannot be replaced.
        Err(error) if error.error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {
            fs::write(path, bytes).explain(failure(path), WRITABLE)
        }
        put => put
            .map(drop)
            .map_err(|error| error.error)
            .explain(failure(path), WRITABLE),
    }
}

/// Writes files. An existing file is replaced if it begins as the new one does, as an earlier version
/// of it; the error for another file says that it is not `what`. Before the first file is written, all
/// are checked.
///
/// # Errors
/// A file cannot be written, or another file has its name.
pub fn update(files: &[(PathBuf, impl AsRef<[u8]>)], what: &str) -> Result<()> {
    for (path, bytes) in files {
        let bytes = bytes.as_ref();
        check(path, what, |head| {
            head.starts_with(&bytes[..SAME.min(bytes.len())])
        })?;
    }
    for (path, bytes) in files {
        replace(path, bytes.as_ref())?;
    }
    Ok(())
}

/// How many first bytes the versions of a file have in common: an ELF identification, the branch at
/// the start of an arm64 image, the first macro of a manual page.
const SAME: usize = 8;

/// Prints to standard error. It gives up after `limit`, and soon after a signal, because standard
/// error may be a pipe that nobody reads.
pub fn say(text: &[u8], limit: Option<Duration>) {
    // If standard error is closed, there is nowhere to report it.
    let _ = write_within(rustix::stdio::stderr(), text, limit);
}

/// Writes `text`. It gives up after `limit`, and soon after a signal.
fn write_within(to: BorrowedFd<'_>, text: &[u8], limit: Option<Duration>) -> io::Result<()> {
    let mut end = limit.and_then(|limit| Instant::now().checked_add(limit));
    let mut interrupt = interrupt::registered();
    let mut rest = text;
    while !rest.is_empty() {
        let mut fds = vec![(to, PollFlags::OUT)];
        fds.extend(interrupt.map(|fd| (fd, PollFlags::IN)));
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        // poll(2) fails if not even two files may be open.
        let ready = ready(&fds, left).unwrap_or_else(|_| vec![true]);
        if ready.get(1) == Some(&true) {
            interrupt = None;
            let soon = Instant::now() + SOON;
            end = Some(end.map_or(soon, |end| end.min(soon)));
        } else if ready[0] {
            // A pipe that is ready has space for this much (pipe(7)), so the write does not wait.
            match rustix::io::write(to, &rest[..rest.len().min(PIPE_BUF)]) {
                Ok(count) => rest = &rest[count..],
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        } else if left == Some(Duration::ZERO) {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("{} bytes were not read in time", rest.len()),
            ));
        }
    }
    Ok(())
}

/// What `work` returns, which may wait for a file system without end. `None` if it takes longer than `limit`, or
/// long after a signal, or if no thread can be started for it. It needs no descriptor.
pub fn answer_of<T: Send + 'static>(
    limit: Option<Duration>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (answer, answered) = mpsc::channel();
    let work = move || answer.send(work());
    // If it fails, the channel is closed.
    let _ = thread::Builder::new().spawn(work);
    let mut end = limit.and_then(|limit| Instant::now().checked_add(limit));
    let mut is_over = false;
    loop {
        match answered.recv_timeout(LOOK_EVERY) {
            Ok(answer) => return Some(answer),
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if !is_over && interrupt::has_come() {
            is_over = true;
            let soon = Instant::now() + SOON;
            end = Some(end.map_or(soon, |end| end.min(soon)));
        }
        if end.is_some_and(|end| end <= Instant::now()) {
            return None;
        }
    }
}

/// How often a wait for another thread looks for a signal.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Standard output without a buffer. It also waits for its reader if another process that shares the
/// descriptor has set O_NONBLOCK.
pub struct Stdout;

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write_all(rustix::stdio::stdout(), bytes, drop).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How long a message may take after a limit or a signal: long enough for a reader.
pub const SOON: Duration = Duration::from_millis(500);

/// How much a pipe takes in one piece.
const PIPE_BUF: usize = 4096;

/// A message on one line, whatever names it contains.
pub fn one_line(what: impl Display) -> String {
    what.to_string().replace('\n', "\\n")
}

/// Prints a message of a thread that has other work than to wait for a reader.
pub(crate) fn note(what: impl Display) {
    let text = format!("bootshare-host: {}\n", one_line(what));
    say(text.as_bytes(), Some(Duration::from_secs(1)));
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_link_is_replaced_and_its_target_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "theirs").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        replace(&link, b"ours").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"theirs");
        assert!(!fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&link).unwrap(), b"ours");
    }

    #[test]
    fn only_an_earlier_output_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let plan = || Planned::new(&path, |head| head.starts_with(b"ours"));
        for (old, is_replaced) in [("", true), ("ours, old", true), ("theirs", false)] {
            fs::write(&path, old).unwrap();
            let planned = plan();
            assert_eq!(planned.is_ok(), is_replaced, "{old}");
            assert_eq!(fs::read_to_string(&path).unwrap(), old);
            match planned {
                Ok(planned) => {
                    planned.write(b"ours, new", None).unwrap();
                    assert_eq!(fs::read(&path).unwrap(), b"ours, new");
                }
                Err(error) => {
                    let error = error.to_string();
                    assert!(
                        error.ends_with("choose another name, or remove it"),
                        "{error}"
                    );
                }
            }
        }
        fs::remove_file(&path).unwrap();
        let planned = plan().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        // Somebody else made a file of this name meanwhile.
        fs::write(&path, "theirs").unwrap();
        assert!(planned.write(b"ours", None).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"theirs");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(plan().err().unwrap().to_string().contains("is a directory"));
    }

    #[test]
    fn an_earlier_output_is_known_whatever_its_length_and_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "x".repeat(10_000)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let planned = Planned::new(&path, |head| head.len() == 10_000).unwrap();
        planned.write(&[b'y'; 10_000], None).unwrap();
        assert_eq!(fs::read(&path).unwrap(), [b'y'; 10_000]);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn the_sticky_bit_protects_the_files_of_others() {
        let (plain, sticky) = (0o40777, 0o41777);
        for (dir, owners, may) in [
            (plain, [7, 8], true),
            (sticky, [7, 8], false),
            (sticky, [9, 8], true),
            (sticky, [7, 9], true),
        ] {
            assert_eq!(may_replace(dir, owners, 9), may, "{dir:o} {owners:?}");
            assert!(may_replace(dir, owners, 0));
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "").unwrap();
        let other = rustix::process::geteuid().as_raw() + 1;
        for (mode, is_refused) in [(0o777, false), (0o1777, true)] {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
            let checked = check_by(other, &path, EARLIER, |_| true);
            assert_eq!(checked.is_err(), is_refused, "{checked:?}");
        }
    }

    #[test]
    fn what_is_no_file_is_written_to_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, mode).unwrap();
        let plan = |path: &Path| Planned::new(path, |_| false);
        // It does not wait for a reader.
        let error = plan(&pipe).err().unwrap().to_string();
        assert!(
            error.contains("nobody reads it: start its reader"),
            "{error}"
        );
        let mut reader = File::options().read(true).write(true).open(&pipe).unwrap();
        plan(&pipe).unwrap().write(b"text", None).unwrap();
        let mut found = [0; 4];
        reader.read_exact(&mut found).unwrap();
        assert_eq!(&found, b"text");
        // It does not wait without end for its reader either.
        let much = vec![b'x'; 1 << 20];
        let limit = Some(Duration::from_millis(100));
        let failed = plan(&pipe).unwrap().write(&much, limit).unwrap_err();
        let failed = failed.to_string();
        assert!(failed.contains("bytes were not read in time"), "{failed}");
        // Also through a link.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        plan(&link).unwrap().write(b"text", None).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        // /dev/stdout is such a link, also if it leads to a file.
        let file = File::create(dir.path().join("file")).unwrap();
        let open = format!("/proc/self/fd/{}", file.as_raw_fd());
        plan(open.as_ref()).unwrap().write(b"text", None).unwrap();
        assert_eq!(fs::read(dir.path().join("file")).unwrap(), b"text");
    }

    #[test]
    fn a_link_to_what_is_not_open_is_an_error_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("stdout");
        for target in ["/proc/self/fd/9999", "/proc/nosuch/fd/1"] {
            std::os::unix::fs::symlink(target, &link).unwrap();
            assert!(Planned::new(&link, |_| true).is_err());
            assert_eq!(fs::read_link(&link).unwrap(), Path::new(target));
            fs::remove_file(&link).unwrap();
        }
    }

    #[test]
    fn a_failed_write_leaves_no_file_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("directory");
        fs::create_dir(&path).unwrap();
        let error = replace(&path, b"ours").unwrap_err().to_string();
        assert!(error.contains("directory"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
