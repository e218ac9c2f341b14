//! A virtiofsd as the shares' server: QEMU's C one or the Rust one. Our own is in `serve`.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::explain::Explain;
use crate::process::{Invocation, Process, output_of};
use crate::qemu::Share;

/// The two families of virtiofsd, which take different options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The C program that came with QEMU until 7.2.
    C,
    /// The Rust program that replaced it.
    Rust,
}

/// A server program that was found and asked what it is.
#[derive(Clone, Debug)]
pub struct Virtiofsd {
    /// The program.
    pub path: PathBuf,
    /// Its family.
    pub kind: Kind,
}

/// What the server listens on.
pub(crate) enum Endpoint<'a> {
    /// A socket path that the server makes.
    Path(&'a Path),
    /// A listening socket that it inherits.
    Fd(i32),
}

impl Virtiofsd {
    /// The program at `path`. Its help text shows which family it belongs to.
    ///
    /// # Errors
    /// It cannot be run, or is not a virtiofsd.
    pub fn ask(path: &Path) -> Result<Self> {
        let (_, help) = output_of(Command::new(path).arg("--help")).explain(
            format_args!("cannot run the server {} with --help", path.display()),
            "name a virtiofsd, or leave out --server",
        )?;
        let kind = if help.contains("--shared-dir") {
            Kind::Rust
        } else if help.contains("-o source=") {
            Kind::C
        } else {
            bail!(
                "{} is no virtiofsd, its --help names neither --shared-dir nor -o source=: name one, or \
                 leave out --server",
                path.display()
            );
        };
        Ok(Self {
            path: path.to_owned(),
            kind,
        })
    }

    /// The command that serves `share`.
    pub(crate) fn invocation(
        &self,
        share: &Share,
        endpoint: &Endpoint<'_>,
        thread_pool_size: Option<u32>,
    ) -> Result<Invocation> {
        let [dir] = &share.dirs[..] else {
            bail!(
                "{} has several directories, which {} cannot lay over each other: leave out --server",
                share,
                self.path.display()
            );
        };
        // The C server changes its working directory before it looks for the share.
        let dir = std::path::absolute(dir).context("cannot find the working directory")?;
        let root = rustix::process::geteuid().is_root();
        let mut invocation = Invocation::new(&self.path);
        match endpoint {
            Endpoint::Path(path) => {
                let mut option = std::ffi::OsString::from("--socket-path=");
                option.push(path);
                invocation.arg(option);
            }
            Endpoint::Fd(fd) => drop(invocation.arg(format!("--fd={fd}"))),
        }
        match self.kind {
            Kind::C => {
                let mut source = std::ffi::OsString::from("source=");
                source.push(escape_option(&dir));
                invocation.option("-o", source);
                invocation
                    .option("-o", "cache=auto")
                    .option("-o", "sandbox=chroot");
            }
            Kind::Rust => {
                invocation.option("--shared-dir", dir).arg("--cache=auto");
                invocation.arg(if root {
                    "--sandbox=chroot"
                } else {
                    "--sandbox=none"
                });
            }
        }
        if let Some(size) = thread_pool_size {
            invocation.arg(format!("--thread-pool-size={size}"));
        }
        if self.kind == Kind::C && !root {
            return Ok(in_user_namespace(invocation));
        }
        Ok(invocation)
    }

    /// Starts serving `share` on `listener`.
    ///
    /// The server inherits a socket that is already listening: QEMU can connect at once, and the
    /// server leaves no socket file.
    pub(crate) fn start(
        &self,
        share: &Share,
        listener: UnixListener,
        thread_pool_size: Option<u32>,
    ) -> Result<Process> {
        let endpoint = Endpoint::Fd(listener.as_fd().as_raw_fd());
        let mut command = self
            .invocation(share, &endpoint, thread_pool_size)?
            .command();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        Process::spawn(&mut command, Some(listener.as_fd()))
    }
}

/// The C server always sets up a sandbox. An ordinary user's server therefore gets a user
/// namespace, in which it may call chroot(2).
fn in_user_namespace(invocation: Invocation) -> Invocation {
    let mut wrapped = Invocation::new("unshare");
    wrapped
        .arg("--user")
        .arg("--map-root-user")
        .arg("--")
        .arg(invocation.program);
    wrapped.args.extend(invocation.args);
    wrapped
}

/// A comma ends an `-o` option of the C server unless a backslash is before it.
fn escape_option(path: &Path) -> std::ffi::OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut out = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        if matches!(byte, b',' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    std::ffi::OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_directories_are_refused_by_name() {
        let server = Virtiofsd {
            path: "/usr/libexec/virtiofsd".into(),
            kind: Kind::Rust,
        };
        let mut share = Share::new("t", "/one");
        let endpoint = Endpoint::Fd(3);
        server.invocation(&share, &endpoint, None).unwrap();
        share.dirs.push("/two".into());
        let error = server.invocation(&share, &endpoint, None).unwrap_err();
        let error = error.to_string();
        for part in ["t (/one, /two)", "/usr/libexec/virtiofsd", "--server"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
