//! Lookup of names in several layers, by the rules of overlayfs.
//!
//! As in overlayfs (Documentation/filesystems/overlayfs.rst), directories of the same name merge;
//! anything else hides the entries of that name in lower layers. A whiteout (a character device
//! 0/0, or an empty file with the attribute `overlay.whiteout`) hides them too and is itself
//! invisible. A directory whose attribute `overlay.opaque` is `y` hides the lower layers'
//! directories. The attributes are read with the prefixes `trusted.` and `user.`; `opaque` also
//! with `user.fuseoverlayfs.`.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::{FileType, Statx};
use rustix::io::Errno;

use super::Share;
use super::descriptors::{self, Held};
use super::host::{self, Descriptors};
use super::nodes::{Entry, Found, Node};

const WHITEOUT: [&CStr; 2] = [c"trusted.overlay.whiteout", c"user.overlay.whiteout"];
const OPAQUE: [&CStr; 3] = [
    c"trusted.overlay.opaque",
    c"user.overlay.opaque",
    c"user.fuseoverlayfs.opaque",
];

/// Whether an extended attribute belongs to the overlay and is hidden from the guest.
pub(super) fn is_mark(name: &[u8]) -> bool {
    [
        &b"trusted.overlay."[..],
        b"user.overlay.",
        b"user.fuseoverlayfs.",
    ]
    .iter()
    .any(|prefix| name.starts_with(prefix))
}

impl Share {
    pub(super) fn has_several(&self) -> bool {
        self.roots.len() > 1
    }

    /// Finds `name` in a directory by the rules of the layers.
    pub(super) fn find(&self, parent: &Arc<Node>, name: &CStr) -> Result<Entry, Errno> {
        if matches!(name.to_bytes(), b"" | b"." | b"..") || name.to_bytes().contains(&b'/') {
            return Err(Errno::INVAL);
        }
        if !parent.is_dir() {
            return Err(Errno::NOTDIR);
        }
        let mut entry = Entry {
            parts: Vec::new(),
            submount: false,
            hidden: false,
        };
        if parent.hidden {
            return Err(Errno::NOENT);
        }
        for (index, part) in parent.parts.iter().enumerate() {
            let dir = self.held(parent, index)?;
            descriptors::reserve()?;
            let fd = match host::open_name(dir.as_fd(), name) {
                Ok(fd) => fd,
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                Err(error) => {
                    self.caller.note(&self.descriptors, dir.as_fd(), error);
                    return Err(error);
                }
            };
            let found = Found {
                layer: part.layer,
                stat: host::stat(fd.as_fd())?,
                fd,
            };
            let mounted = found.key().is_mounted_over(&part.key);
            let hidden = mounted && host::is_pseudo(found.fd.as_fd())?;
            let whiteout = self.is_whiteout(found.fd.as_fd(), &found.stat);
            if whiteout || (!entry.parts.is_empty() && (hidden || !found.is_dir())) {
                break;
            }
            let ends = hidden || !found.is_dir() || self.is_opaque(found.fd.as_fd());
            if entry.parts.is_empty() {
                entry.submount = mounted && !hidden && found.is_dir();
                entry.hidden = hidden;
            }
            entry.parts.push(found);
            if ends {
                break;
            }
        }
        if entry.parts.is_empty() {
            return Err(Errno::NOENT);
        }
        Ok(entry)
    }

    fn is_whiteout(&self, fd: BorrowedFd<'_>, stat: &Statx) -> bool {
        self.has_several()
            && match host::kind(stat) {
                FileType::CharacterDevice => (stat.stx_rdev_major, stat.stx_rdev_minor) == (0, 0),
                FileType::RegularFile if stat.stx_size == 0 => first_of(fd, &WHITEOUT).is_some(),
                _ => false,
            }
    }

    fn is_opaque(&self, fd: BorrowedFd<'_>) -> bool {
        self.has_several() && first_of(fd, &OPAQUE).is_some_and(|value| value == b"y")
    }

    /// Whether an entry of one layer's directory is a whiteout.
    pub(super) fn hides(&self, dir: &Held, name: &CStr, kind: FileType) -> bool {
        let may = matches!(
            kind,
            FileType::CharacterDevice | FileType::RegularFile | FileType::Unknown
        );
        self.has_several()
            && may
            && descriptors::reserve().is_ok()
            && host::open_name(dir.as_fd(), name).is_ok_and(|fd| {
                host::stat(fd.as_fd()).is_ok_and(|stat| self.is_whiteout(fd.as_fd(), &stat))
            })
    }
}

/// The value of the first of these attributes that exists. A file that this process may not read
/// counts as having none.
fn first_of(fd: BorrowedFd<'_>, names: &[&CStr]) -> Option<Vec<u8>> {
    let mut values = names.iter().map(|name| Descriptors::attribute(fd, name));
    values.find_map(Result::ok)
}
