//! The system calls that Bootshare needs and a container may refuse: they are younger than many a
//! seccomp filter, which then answers EPERM or ENOSYS.

use std::os::fd::OwnedFd;

use anyhow::{Result, bail};
use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, ResolveFlags, memfd_create, openat2};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use rustix::system::uname;

/// A required system call.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Its name.
    pub name: &'static str,
    /// The first version of Linux that has it.
    since: (u32, u32),
    /// Calls it with harmless arguments.
    attempt: fn() -> Result<OwnedFd, Errno>,
}

/// Confines a guest to the directory that is served.
pub(crate) const OPENAT2: Call = Call {
    name: "openat2",
    since: (5, 6),
    attempt: || {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        openat2(CWD, ".", flags, Mode::empty(), ResolveFlags::BENEATH)
    },
};

/// Waits for the end of a child.
pub(crate) const PIDFD_OPEN: Call = Call {
    name: "pidfd_open",
    since: (5, 3),
    attempt: || pidfd_open(getpid(), PidfdFlags::empty()),
};

/// Creates guest memory and the file of the embedded firmware.
const MEMFD_CREATE: Call = Call {
    name: "memfd_create",
    since: (3, 17),
    attempt: || memfd_create("bootshare", MemfdFlags::CLOEXEC),
};

/// All required system calls of a boot.
pub const CALLS: [Call; 3] = [OPENAT2, PIDFD_OPEN, MEMFD_CREATE];

impl Call {
    /// # Errors
    /// The system refuses the call whatever its arguments are.
    pub fn check(&self) -> Result<()> {
        let error = match (self.attempt)() {
            Err(Errno::PERM) => "EPERM",
            Err(Errno::NOSYS) => "ENOSYS",
            _ => return Ok(()),
        };
        let name = self.name;
        let (major, minor) = self.since;
        let uname = uname();
        let release = uname.release().to_string_lossy();
        if error == "ENOSYS" && version(&release).is_some_and(|version| version < self.since) {
            bail!("this is Linux {release}, and {name}(2) needs Linux {major}.{minor} or newer");
        }
        bail!(
            "{name}(2) is refused with {error}, as by a container's seccomp filter that does not know \
             it: start the container with --security-opt seccomp=unconfined (Docker, Podman) \
             or --system-call-filter={name} (systemd-nspawn), or update the container runtime"
        )
    }
}

/// Major and minor of a kernel's release such as "6.1.0-44-amd64".
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernels_release_has_a_version() {
        assert_eq!(version("6.1.0-44-amd64"), Some((6, 1)));
        assert_eq!(version("5.10-rc1"), Some((5, 10)));
        assert_eq!(version("4.18.0"), Some((4, 18)));
        assert_eq!(version("Linux"), None);
    }

    #[test]
    fn an_unknown_system_call_is_reported_with_the_reason() {
        let call = |since, attempt| Call {
            name: "new_call",
            since,
            attempt,
        };
        let old = call((999, 0), || Err(Errno::NOSYS)).check().unwrap_err();
        assert!(
            old.to_string()
                .ends_with("new_call(2) needs Linux 999.0 or newer"),
            "{old}"
        );
        for attempt in [|| Err(Errno::NOSYS), || Err(Errno::PERM)] {
            let filtered = call((3, 0), attempt).check().unwrap_err();
            assert!(filtered.to_string().contains("seccomp"), "{filtered}");
        }
        // An error about the arguments is not a refusal of the call.
        call((3, 0), || Err(Errno::MFILE)).check().unwrap();
    }
}
