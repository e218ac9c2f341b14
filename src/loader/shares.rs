//! The machine's shares: which there are, which are wanted, and mounting them.

use super::{
    Board, Failed,
    arena::Arena,
    console::Text,
    time_line::{Stage, TimeLine},
};
use crate::{
    Error,
    boot::{
        device_tree::Matching,
        memory::{PlacementError, Range},
        options::{MAX_TAGS, Options},
        uki::{Scan, UkiError},
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

/// A file of it.
pub(super) type BoardFile<'s, B> =
    File<'s, <B as Board>::Transport, <B as Board>::Clock, <B as Board>::Hal>;

/// A directory of it.
pub(super) type BoardDir<'s, B> =
    Dir<'s, <B as Board>::Transport, <B as Board>::Clock, <B as Board>::Hal>;

/// The entries of one.
pub(super) type BoardReadDir<'s, B> =
    ReadDir<'s, <B as Board>::Transport, <B as Board>::Clock, <B as Board>::Hal>;

/// What is known about a device, mounted or not.
pub(super) struct Found {
    pub address: Address,
    /// Its configuration, or why it can't be used.
    pub state: Result<DeviceConfig, Problem>,
}

/// Why a device can't be used.
pub(super) enum Problem {
    Transport(crate::transport::TransportError),
    Device(crate::DeviceError),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport(error) => error.fmt(f),
            Self::Device(error) => error.fmt(f),
        }
    }
}

/// The most shares that are mounted at once: as many as the DMA pool has room for.
pub(super) const MAX_SHARES: usize = MAX_TAGS;

/// The machine's shares.
pub(super) struct Shares<B: Board> {
    pub found: Vec<Found, MAX_DEVICES>,
    /// In the order in which their entries are tried. The first one is meant where a path names
    /// none.
    pub mounted: Vec<Mount<B>, MAX_SHARES>,
}

/// The sections of the unified `image` that is in `file`, of whose first bytes `size` are in `memory`. More of
/// their table is read there. A device tree for this `machine`, if it has a name, is chosen.
#[inline(never)] // So that the large frames of the boot flow do not add up.
pub(super) fn image_sections<B: Board>(
    file: &BoardFile<'_, B>,
    image: Range,
    profile: u32,
    machine: Option<&[u8]>,
    memory: &mut [u8],
    size: usize,
) -> Result<Result<Scan, UkiError>, Error> {
    let mut failed = None;
    let is_ours = &mut |tree| {
        let (Some(machine), None) = (machine, failed) else {
            return false;
        };
        let is_ours = is_tree_for::<B>(file, tree, machine);
        is_ours.unwrap_or_else(|error| {
            failed = Some(error);
            false
        })
    };
    let mut scan = match Scan::new(&memory[..size], image, profile, is_ours) {
        Ok(scan) => scan,
        Err(error) => return Ok(Err(error)),
    };
    while let Some(offset) = scan.next_offset() {
        let size = file.read_at(offset, memory)?;
        if let Err(error) = scan.take(&memory[..size], is_ours) {
            return Ok(Err(error));
        }
    }
    match failed {
        Some(error) => Err(error),
        None => Ok(Ok(scan)),
    }
}

/// Whether the device tree in this part of a file is for that machine.
fn is_tree_for<B: Board>(
    file: &BoardFile<'_, B>,
    tree: Range,
    machine: &[u8],
) -> Result<bool, Error> {
    let mut matching = Matching::new(machine, tree.size());
    let mut piece = [0; Matching::PIECE_BYTES];
    loop {
        let offset = matching.next_offset();
        let size = tree.size().saturating_sub(offset).min(piece.len() as u64);
        let piece = &mut piece[..size as usize];
        let size = file.read_at(tree.start.saturating_add(offset), piece)?;
        if let Some(answer) = matching.take(&piece[..size]) {
            return Ok(answer);
        }
    }
}

impl<B: Board> Shares<B> {
    /// None yet, in memory of `arena`: they are too large for the stack.
    #[inline(never)] // So that they are there for a moment only.
    pub fn new<'m>(arena: &mut Arena<'m>) -> Result<&'m mut Self, PlacementError>
    where
        B: 'm,
    {
        let shares = Self {
            found: Vec::new(),
            mounted: Vec::new(),
        };
        arena.keep("list of shares", shares)
    }

    /// Looks for devices and mounts those that `options` want: the tags named, in that order, or
    /// all, in the order found. What can't be had is reported.
    #[inline(never)] // So that the large frames of the boot flow do not add up.
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
            }
        }
        let named = self.mounted.len() > 1;
        for mount in &mut self.mounted {
            mount.named = named;
            mount.prepared = options.prepared;
        }
        time_line.reach(Stage::Mounted);
    }

    #[inline(never)] // As above.
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
        // There is room, as was checked.
        _ = self.mounted.push(Mount {
            share,
            named: false,
            prepared: false,
            resumes: Cell::new(Mount::<B>::RESUMES),
        });
        Ok(())
    }

    /// Notes what is known about the devices. Gives the ways to them, each where it is in `found`.
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
            // Both lists are as long as `DeviceList`.
            _ = self.found.push(Found {
                address: device.address,
                state,
            });
            _ = transports.push(transport);
        }
        transports
    }

    /// What is wanted, as indices of `found`.
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
                // One that is named twice is mounted once.
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

    /// Says why there is no share, or why one is passed over.
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

    /// Says goodbye to every host and resets every device, so that the payload finds them as they
    /// were.
    #[inline(never)] // As above.
    pub fn unmount(&mut self) -> Result<(), Failed> {
        let mut outcome = Ok(());
        while let Some(mount) = self.mounted.pop() {
            let tag = mount.tag();
            match mount.share.unmount() {
                // An error line has told of the share that was lost.
                Ok(()) | Err(Error::Disconnected) => {}
                Err(error) => {
                    log::error!("share {tag}: {error}");
                    outcome = Err(Failed);
                }
            }
        }
        outcome
    }

    /// Which share `word` is about, and the path there: `TAG:PATH`, or a path on the first share.
    pub fn locate<'w>(&self, word: &'w [u8]) -> Option<(&Mount<B>, &'w [u8])> {
        let (index, path) = self.locate_index(word);
        Some((self.mounted.get(index)?, path))
    }

    /// As [`Shares::locate`], with the share's place.
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
    /// There are others: its paths are shown with its tag.
    named: bool,
    /// Its host has unpacked kernels.
    pub prepared: bool,
    /// How often it is still resumed after a loss. A host that does not come back is asked once.
    resumes: Cell<u32>,
}

impl<B: Board> Mount<B> {
    /// Losses in one boot after which a host is given up.
    const RESUMES: u32 = 3;

    /// After `error`: succeeds if what failed is worth another try, because it was the share that
    /// was lost and it could be resumed.
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

    /// Whether it can be used, or can again. Another boot may lose it as often as the one before.
    pub fn renew(&self) -> bool {
        self.resumes.set(Self::RESUMES);
        self.is_connected() || self.again(()).is_ok()
    }

    /// What its paths are shown behind.
    pub fn prefix(&self) -> Prefix {
        Prefix(self.named.then(|| self.tag()))
    }

    /// `path` with the share's name where there are several, as [`Shares::locate`] takes it.
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

/// `TAG:`, or nothing while there is one share.
pub(super) struct Prefix(Option<Tag>);

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |tag| write!(f, "{tag}:"))
    }
}

/// A path, and which share it is of.
pub(super) struct Shown<'p>(Prefix, &'p [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.0, Text(self.1))
    }
}

/// The tags that there are, for an error line.
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
