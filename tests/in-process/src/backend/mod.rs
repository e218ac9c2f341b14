//! Who answers the requests.

#[cfg(feature = "servers")]
mod address_space;
#[cfg(feature = "servers")]
mod embedded;
#[cfg(feature = "servers")]
mod fuse_backend;
#[cfg(feature = "servers")]
mod one_chain;
mod scripted;
#[cfg(feature = "servers")]
mod virtiofsd;

#[cfg(feature = "servers")]
pub use embedded::Embedded;
#[cfg(feature = "servers")]
pub use fuse_backend::FuseBackend;
pub use scripted::{Reply, Scripted};
#[cfg(feature = "servers")]
pub use virtiofsd::Virtiofsd;

use crate::{chain::Chain, wire::Request};
use std::{fs, io, path::Path};

/// When an answer is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum When {
    /// At once.
    #[default]
    Now,
    /// That many ticks later.
    After(u64),
    /// Not before the device is reset, and not after that either.
    Never,
}

/// What the device does with a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What it writes when it gives the chain back, where the server did not write before.
    pub bytes: Option<Vec<u8>>,
    /// The length reported.
    pub used: u32,
    /// The chain named, where it is not the right one.
    pub id: Option<u32>,
    /// How often it is given back.
    pub times: u32,
    /// How far the used index moves on, with nothing behind it.
    pub jump: u16,
    /// When.
    pub when: When,
    /// Why a real server would have ended.
    pub fault: Option<String>,
}

impl Answer {
    /// An honest one.
    #[must_use]
    pub fn used(used: u32) -> Self {
        Self {
            bytes: None,
            used,
            id: None,
            times: 1,
            jump: 0,
            when: When::Now,
            fault: None,
        }
    }

    /// One that does not come.
    #[must_use]
    pub fn never(mut self) -> Self {
        self.when = When::Never;
        self
    }

    /// The server would have ended its process.
    #[must_use]
    pub fn died(why: impl std::fmt::Debug) -> Self {
        let mut answer = Self::used(0).never();
        answer.fault = Some(format!("the server ends: {why:?}"));
        answer
    }
}

/// A server.
pub trait Backend: Send + Sync {
    /// Answers the request in `chain`, of which `request` is a copy: writes the reply there and
    /// says what to report.
    fn answer(&self, chain: &Chain, request: &Request) -> Answer;
}

impl<B: Backend + ?Sized> Backend for std::sync::Arc<B> {
    fn answer(&self, chain: &Chain, request: &Request) -> Answer {
        (**self).answer(chain, request)
    }
}

/// Serves as a user without rights to anything of others'.
///
/// Tests run as root often enough, whom no permission stops. `setfsuid(2)` takes root's rights to
/// files away from one thread only, which is why it is done here around each request. For anybody
/// else it does nothing, and nothing is needed.
#[derive(Debug)]
pub struct AsNobody<B>(pub B);

const NOBODY: u32 = 65_534;

impl<B: Backend> Backend for AsNobody<B> {
    fn answer(&self, chain: &Chain, request: &Request) -> Answer {
        // SAFETY: it changes nothing but this thread's rights.
        let user = unsafe { libc::setfsuid(NOBODY) };
        let answer = self.0.answer(chain, request);
        // SAFETY: as above.
        unsafe { libc::setfsuid(user as u32) };
        answer
    }
}

/// How many open files of this process are at or below `path`: what servers in this process hold
/// of a share, `O_PATH` descriptors of nodes among them.
///
/// # Errors
///
/// If `/proc` can't be read.
pub fn open_files_below(path: &Path) -> io::Result<usize> {
    let path = path.canonicalize()?;
    let links = fs::read_dir("/proc/self/fd")?;
    let targets = links.filter_map(|link| fs::read_link(link.ok()?.path()).ok());
    Ok(targets.filter(|target| target.starts_with(&path)).count())
}
