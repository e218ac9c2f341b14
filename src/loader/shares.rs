//! The machine's shares: finds the devices, chooses among them and mounts them.

use super::{
    Board, Failed,
    arena::Arena,
    console::Text,
    time_line::{Stage, TimeLine},
};
use crate::{
    DeviceError, Error,
    boot::{
        memory::PlacementError,
        options::{MAX_TAGS, Options},
    },
    fs::{Dir, File, ReadDir, Share},
    session::{self, DeviceConfig, Tag},
    transport::{Address, DeviceList, MAX_DEVICES},
};
use core::{cell::Cell, fmt, ops::Deref};
use heapless::Vec;

/// A share as the boot flow mounts it.
pub(super) type BoardShare<B> =
    Share<<B as Board>::Transport, <B as Board>::Clock, <B as Board>::Hal>;

/// A file of a share.
pub(super) type BoardFile<'s, B> =
    File<'s, <B as Board>::Transport, <B as Board>::Clock, <B as Board>::Hal>;

/// A directory of a share.
pub(super) type BoardDir<'s, B> =
    Dir<'s, <B as Board>::Transport, <B as Board>::Clock, <B as Board>::Hal>;

/// The entries of a directory.
pub(super) type BoardReadDir<'s, B> =
    ReadDir<'s, <B as Board>::Transport, <B as Board>::Clock, <B as Board>::Hal>;

/// A virtio-fs device of the machine.
pub(super) struct Found {
    pub address: Address,
    /// Its configuration, or the reason why it cannot be used.
    pub state: Result<DeviceConfig, Problem>,
}

/// Why a device cannot be used.
pub(super) enum Problem {
    Transport(crate::transport::TransportError),
    Device(DeviceError),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport(error) => error.fmt(f),
            Self::Device(error) => error.fmt(f),
        }
    }
}

/// Most shares mounted at once: the DMA pool is large enough for as many.
pub(super) const MAX_SHARES: usize = MAX_TAGS;

/// The machine's shares.
pub(super) struct Shares<B: Board> {
    pub found: Vec<Found, MAX_DEVICES>,
    /// The mounted shares, in the order in which their entries are tried. A path without a tag refers to the
    /// first one.
    pub mounted: Vec<Mount<B>, MAX_SHARES>,
    /// Whether a device has not confirmed its reset: it may still write to memory.
    unconfirmed: bool,
}

/// Reads a file through `buffer` and calls `each` with consecutive pieces. Returns the size in bytes.
pub(super) fn for_each_piece<B: Board>(
    file: &BoardFile<'_, B>,
    buffer: &mut [u8],
    mut each: impl FnMut(&[u8]),
) -> Result<u64, Error> {
    let mut offset = 0;
    loop {
        let size = file.read_at(offset, buffer)?;
        each(&buffer[..size]);
        offset += size as u64;
        if size < buffer.len() {
            return Ok(offset);
        }
    }
}

impl<B: Board> Shares<B> {
    /// An empty list in memory of `arena`, since it is too large for the stack.
    #[inline(never)] // It is on the stack only during this call.
    pub fn new<'m>(arena: &mut Arena<'m>) -> Result<&'m mut Self, PlacementError>
    where
        B: 'm,
    {
        let shares = Self {
            found: Vec::new(),
            mounted: Vec::new(),
            unconfirmed: false,
        };
        arena.keep("list of shares", shares)
    }

    /// Finds the devices and mounts those that `options` select: by tag, in the order of the options, or all,
    /// in the order found. Errors are reported.
    #[inline(never)] // Keeps large stack frames from adding up; so do the others in this file.
    pub fn mount(&mut self, board: &mut B, options: &Options<'_>, time_line: &TimeLine<B::Clock>) {
        let mut transports = self.take_devices(board.find_devices());
        time_line.reach(Stage::Devices);
        let mut session = session::Options::default().with_deadline(options.deadline);
        if let Some(bytes) = options.chunk_size {
            session = session.with_chunk_size(bytes);
        }
        if let Some(depth) = options.depth {
            session = session.with_depth(depth as usize);
        }
        for index in self.choose(options) {
            if self.mounted.is_full() {
                log::warn!(
                    "only {MAX_SHARES} shares are mounted at once; choose them with bootshare.tag="
                );
                break;
            }
            let transport = transports.get_mut(index).and_then(Option::take);
            let Found { address, state } = &self.found[index];
            let address = *address;
            if let Ok(config) = state {
                log::debug!("mounting {}: {address}", config.tag);
            }
            if let Some(transport) = transport
                && let Err(error) = self.mount_one(address, transport, board.clock(), session)
            {
                log::error!("{address}: {error}");
                self.note(error);
            }
        }
        let named = self.mounted.len() > 1;
        for mount in &mut self.mounted {
            mount.named = named;
            mount.prepared = options.prepared;
        }
        time_line.reach(Stage::Mounted);
    }

    #[inline(never)]
    fn mount_one(
        &mut self,
        address: Address,
        transport: B::Transport,
        clock: B::Clock,
        options: session::Options,
    ) -> Result<(), Error> {
        let share = Share::mount_with(transport, clock, options)?;
        let (major, minor) = share.protocol();
        let (tag, kind) = (share.tag(), address.transport_name());
        log::info!("mounted {tag} (virtio-{kind}, FUSE {major}.{minor})");
        // Not full: the caller has checked it.
        _ = self.mounted.push(Mount {
            share,
            named: false,
            prepared: false,
            resumes: Cell::new(Mount::<B>::RESUMES),
        });
        Ok(())
    }

    /// Fills `found`, and returns the transports of the devices at the same positions.
    fn take_devices(
        &mut self,
        devices: DeviceList<B::Transport>,
    ) -> Vec<Option<B::Transport>, MAX_DEVICES> {
        let mut transports = Vec::new();
        for device in devices {
            let (state, transport) = match device.transport {
                Ok(transport) => match DeviceConfig::read(&transport) {
                    Ok(config) => (Ok(config), Some(transport)),
                    Err(error) => (Err(Problem::Device(error)), None),
                },
                Err(error) => (Err(Problem::Transport(error)), None),
            };
            // Both lists have the capacity of `DeviceList`.
            _ = self.found.push(Found {
                address: device.address,
                state,
            });
            _ = transports.push(transport);
        }
        transports
    }

    /// The devices to mount, as indices into `found`.
    fn choose(&self, options: &Options<'_>) -> Vec<usize, MAX_DEVICES> {
        if options.tags.is_empty() {
            self.report_unusable();
            let usable = (0..self.found.len()).filter(|&i| self.found[i].state.is_ok());
            return usable.collect();
        }
        let mut wanted = Vec::new();
        for tag in &options.tags {
            let named = |found: &Found| {
                let config = found.state.as_ref();
                config.is_ok_and(|config| config.tag.as_bytes() == *tag)
            };
            match self.found.iter().position(named) {
                // If a tag is given twice, the transport is taken only once.
                Some(index) => _ = wanted.push(index),
                None => log::error!(
                    "bootshare.tag={}: no share has this tag; {}",
                    tag.escape_ascii(),
                    Available(&self.found)
                ),
            }
        }
        wanted
    }

    /// Reports devices that cannot be used, or that there is none.
    fn report_unusable(&self) {
        for found in &self.found {
            if let Err(problem) = &found.state {
                log::error!("{}: {problem}", found.address);
            }
        }
        if self.found.is_empty() {
            log::error!(
                "no virtio-fs device was found; give the machine a share: \
                 -device vhost-user-fs-pci or vhost-user-fs-device, with a tag and a virtiofsd"
            );
        }
    }

    /// Unmounts all shares and resets their devices, so that the payload can use them.
    #[inline(never)]
    pub fn unmount(&mut self) -> Result<(), Failed> {
        let mut outcome = Ok(());
        while let Some(mount) = self.mounted.pop() {
            let tag = mount.tag();
            match mount.share.unmount() {
                // The loss of the share was reported before.
                Ok(()) | Err(Error::Disconnected) => {}
                Err(error) => {
                    log::error!("share {tag}: {error}");
                    self.note(error);
                    outcome = Err(Failed);
                }
            }
        }
        outcome
    }

    fn note(&mut self, error: Error) {
        self.unconfirmed |= matches!(error, Error::Device(DeviceError::ResetNotConfirmed));
    }

    /// Whether all devices have confirmed the reset after their use, so that none of them writes to memory.
    pub fn are_reset(&self) -> bool {
        self.mounted.is_empty() && !self.unconfirmed
    }

    /// The share and the path that `word` refers to: `TAG:PATH`, or a path in the first share.
    pub fn locate<'w>(&self, word: &'w [u8]) -> Option<(&Mount<B>, &'w [u8])> {
        let (index, path) = self.locate_index(word);
        Some((self.mounted.get(index)?, path))
    }

    /// Like [`Shares::locate`], but returns the index of the share.
    pub fn locate_index<'w>(&self, word: &'w [u8]) -> (usize, &'w [u8]) {
        let named = self.mounted.iter().enumerate().find_map(|(index, mount)| {
            let path = word.strip_prefix(mount.tag().as_bytes())?;
            Some((index, path.strip_prefix(b":")?))
        });
        match named {
            Some((index, b"")) => (index, b"/"),
            Some(found) => found,
            None => (0, word),
        }
    }
}

/// A mounted share.
pub(super) struct Mount<B: Board> {
    share: BoardShare<B>,
    /// Whether its paths are shown with its tag, because there are other shares.
    named: bool,
    /// Whether its host is asked for decompressed kernels.
    pub prepared: bool,
    /// How often it may still be resumed after a loss; 0 after an attempt that failed.
    resumes: Cell<u32>,
}

impl<B: Board> Mount<B> {
    /// Most attempts to resume a share during one boot.
    const RESUMES: u32 = 3;

    /// Decides whether to repeat an operation that failed with `error`. Succeeds if the share was lost and could
    /// be resumed; otherwise returns `error`.
    pub fn again<E>(&self, error: E) -> Result<(), E> {
        let Some(left) = self.resumes.get().checked_sub(1) else {
            return Err(error);
        };
        if self.is_connected() {
            return Err(error);
        }
        self.resumes.set(left);
        let tag = self.tag();
        match self.resume() {
            Ok(()) => {
                log::info!("share {tag}: resumed");
                Ok(())
            }
            Err(why) => {
                self.resumes.set(0);
                log::error!("share {tag}: {why}");
                Err(error)
            }
        }
    }

    /// Whether the share is connected or could be resumed. This also resets the number of attempts, for
    /// another boot.
    pub fn renew(&self) -> bool {
        self.resumes.set(Self::RESUMES);
        self.is_connected() || self.again(()).is_ok()
    }

    /// The prefix of its paths in messages.
    pub fn prefix(&self) -> Prefix {
        Prefix(self.named.then(|| self.tag()))
    }

    /// Displays `path`, with the tag if there are several shares, in the form of [`Shares::locate`].
    pub fn shown<'p>(&self, path: &'p [u8]) -> Shown<'p> {
        Shown(self.prefix(), path)
    }
}

impl<B: Board> Deref for Mount<B> {
    type Target = BoardShare<B>;

    fn deref(&self) -> &BoardShare<B> {
        &self.share
    }
}

/// Displays `TAG:`, or nothing if there is only one share.
pub(super) struct Prefix(Option<Tag>);

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |tag| write!(f, "{tag}:"))
    }
}

/// Displays a path with the prefix of its share.
pub(super) struct Shown<'p>(Prefix, &'p [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.0, Text(self.1))
    }
}

/// Displays the available tags, for an error message.
struct Available<'a>(&'a [Found]);

impl fmt::Display for Available<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut tags = self.0.iter().filter_map(|found| found.state.as_ref().ok());
        let Some(first) = tags.next() else {
            return f.write_str("there is no share at all");
        };
        write!(f, "there is {}", first.tag)?;
        tags.try_for_each(|config| write!(f, ", {}", config.tag))
    }
}
