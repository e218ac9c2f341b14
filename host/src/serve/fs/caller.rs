//! Owners of files as the guest sees them, and files that the host's permissions keep from this
//! process.

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use rustix::process::{getegid, geteuid};

use super::host::Descriptors;

/// Whose the guest sees the files to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Owner {
    /// Root's, where they are the caller's: the caller's user and group are shown as 0
    Root,
    /// Whose they are on the host
    #[default]
    AsIs,
}

/// The process that serves the files.
pub(super) struct Caller {
    /// The user and the group that are shown as 0.
    shown_as_root: Option<(u32, u32)>,
    /// The first file that it could not open.
    denied: OnceLock<Denied>,
    denied_more: AtomicBool,
}

/// A file, and the permission that is missing.
struct Denied {
    path: Vec<u8>,
    error: Errno,
}

impl Caller {
    pub(super) fn new(owner: Owner) -> Self {
        let caller = (geteuid().as_raw(), getegid().as_raw());
        Self {
            shown_as_root: Some(caller).filter(|(user, _)| owner == Owner::Root && *user != 0),
            denied: OnceLock::new(),
            denied_more: AtomicBool::new(false),
        }
    }

    /// The user and the group of a file, as the guest sees them.
    pub(super) fn owner(&self, user: u32, group: u32) -> (u32, u32) {
        match self.shown_as_root {
            Some(caller) => (
                if user == caller.0 { 0 } else { user },
                if group == caller.1 { 0 } else { group },
            ),
            None => (user, group),
        }
    }

    /// Records a file or directory that could not be opened because of the host's permissions.
    pub(super) fn note(&self, files: &Descriptors, fd: BorrowedFd<'_>, error: Errno) {
        if !matches!(error, Errno::ACCESS | Errno::PERM) {
            return;
        }
        let Ok(path) = files.path(fd) else { return };
        let first = self.denied.get_or_init(|| Denied {
            path: path.clone(),
            error,
        });
        if first.path != path {
            self.denied_more.store(true, Ordering::Relaxed);
        }
    }

    /// The first file that could not be opened, and the missing permission.
    pub(super) fn denied(&self) -> Option<String> {
        let Denied { path, error } = self.denied.get()?;
        let more = match self.denied_more.load(Ordering::Relaxed) {
            true => ", and others as well",
            false => "",
        };
        Some(format!(
            "the guest could not read {}{more}: user {} of this machine may not ({error}); change the \
             permissions, or run this program as a user who may",
            OsStr::from_bytes(path).display(),
            geteuid().as_raw()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_callers_own_files_and_group_are_shown_as_roots() {
        let caller = |shown_as_root| Caller {
            shown_as_root,
            denied: OnceLock::new(),
            denied_more: AtomicBool::new(false),
        };
        let user = caller(Some((1000, 100)));
        assert_eq!(user.owner(1000, 100), (0, 0));
        assert_eq!(user.owner(1000, 1000), (0, 1000));
        assert_eq!(user.owner(100, 100), (100, 0));
        assert_eq!(caller(None).owner(1000, 100), (1000, 100));
    }
}
