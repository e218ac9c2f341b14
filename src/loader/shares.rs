//! The machine's shares: which there are, which are wanted, and mounting them.

use super::{Board, Failed};
use crate::{
    boot::options::{MAX_TAGS, Options},
    fs::{File, Share},
    session::{self, DeviceConfig},
    transport::{Address, DeviceList, FsTransport, MAX_DEVICES},
};
use heapless::Vec;

/// A share as the boot flow mounts it.
pub(super) type BoardShare<B> = Share<FsTransport, <B as Board>::Clock, <B as Board>::Hal>;

/// A file of it.
pub(super) type BoardFile<'s, B> = File<'s, FsTransport, <B as Board>::Clock, <B as Board>::Hal>;

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

impl core::fmt::Display for Problem {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Transport(error) => error.fmt(f),
            Self::Device(error) => error.fmt(f),
        }
    }
}

pub(super) struct Shares<B: Board> {
    pub found: Vec<Found, MAX_DEVICES>,
    /// Those not mounted yet, each where its entry in `found` is.
    transports: Vec<Option<FsTransport>, MAX_DEVICES>,
    /// What is still to be mounted, last first, as indices.
    wanted: Vec<usize, MAX_WANTED>,
    options: session::Options,
    clock: B::Clock,
}

const MAX_WANTED: usize = if MAX_TAGS > MAX_DEVICES {
    MAX_TAGS
} else {
    MAX_DEVICES
};

impl<B: Board> Shares<B> {
    /// Looks for devices and chooses those that `options` want: the tags named, in that order, or
    /// all, in the order found. What can't be had is reported.
    pub fn find(board: &mut B, options: &Options<'_>) -> Self {
        let mut shares = Self {
            found: Vec::new(),
            transports: Vec::new(),
            wanted: Vec::new(),
            options: session::Options::default().with_deadline(options.deadline),
            clock: board.clock(),
        };
        shares.take_devices(board.find_devices());
        shares.choose(options);
        shares
    }

    fn take_devices(&mut self, devices: DeviceList) {
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
            _ = self.transports.push(transport);
        }
    }

    fn choose(&mut self, options: &Options<'_>) {
        if options.tags.is_empty() {
            let usable = (0..self.found.len()).filter(|&i| self.transports[i].is_some());
            self.wanted = usable.collect();
        }
        for tag in &options.tags {
            let named = |found: &Found| {
                let config = found.state.as_ref();
                config.is_ok_and(|config| config.tag.as_bytes() == *tag)
            };
            match self.found.iter().position(named) {
                Some(index) => _ = self.wanted.push(index),
                None => log::error!(
                    "bootshare.tag={}: no share has this tag; {}",
                    tag.escape_ascii(),
                    Available(&self.found)
                ),
            }
        }
        self.wanted.reverse();
        if options.tags.is_empty() {
            self.report_unusable();
        }
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

    /// Mounts the next share that is wanted; `None` when there is none left.
    pub fn mount_next(&mut self) -> Option<Result<BoardShare<B>, Failed>> {
        let index = self.wanted.pop()?;
        let found = &self.found[index];
        let transport = self.transports[index].take()?;
        let kind = found.address.transport_name();
        if let Ok(config) = &found.state {
            log::debug!("mounting {}: {}", config.tag, found.address);
        }
        Some(
            match Share::mount_with(transport, self.clock, self.options) {
                Ok(share) => {
                    let (major, minor) = share.protocol();
                    let tag = share.tag();
                    log::info!("mounted {tag} (virtio-{kind}, FUSE {major}.{minor})");
                    Ok(share)
                }
                Err(error) => {
                    log::error!("{}: {error}", found.address);
                    Err(Failed)
                }
            },
        )
    }
}

/// The tags that there are, for an error line.
struct Available<'a>(&'a [Found]);

impl core::fmt::Display for Available<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let mut tags = self.0.iter().filter_map(|found| found.state.as_ref().ok());
        let Some(first) = tags.next() else {
            return f.write_str("there is no share at all");
        };
        write!(f, "there is {}", first.tag)?;
        tags.try_for_each(|config| write!(f, ", {}", config.tag))
    }
}
