//! Prepared kernels. Each appears as an entry below the kernel's own file, and is found only by a
//! lookup of its name.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use anyhow::Result;
use fuse_backend_rs::api::filesystem::ZeroCopyWriter;
use rustix::io::Errno;

use super::host::{self, Key};
use crate::lock::lock;
use crate::output;
use crate::prepare::{self, Image, Part, Prepare};
use crate::version::Version;

/// The bit that marks a prepared kernel's node ID.
const MARK: u64 = 1 << 63;

/// The prepared kernels of one share. The last one is kept until DESTROY, also if the guest
/// reconnects: preparing it again would choose another address.
pub(super) struct Kernels {
    how: Prepare,
    made: Mutex<Option<Made>>,
}

/// The result of the last preparation.
struct Made {
    /// The file, which gets another node when the guest reconnects.
    of: (Key, Version, Part),
    /// `None` if the file could not be prepared, which was reported.
    kernel: Option<Kernel>,
}

/// A prepared kernel, and the node of the file that it was made from.
#[derive(Clone)]
pub(super) struct Kernel {
    pub(super) below: u64,
    pub(super) image: Arc<Image>,
    /// When it was made. Another preparation of the same file has another content.
    pub(super) time: SystemTime,
}

impl Kernels {
    pub(super) fn new(how: Prepare) -> Self {
        Self {
            how,
            made: Mutex::default(),
        }
    }

    /// Whether this is the node ID of a prepared kernel.
    pub(super) const fn has(id: u64) -> bool {
        id & MARK != 0
    }

    /// The node ID of the file that a prepared kernel was made from; other node IDs stay as they are.
    pub(super) const fn file(id: u64) -> u64 {
        id & !MARK
    }

    /// The node ID and the prepared kernel of a part of the file `node`; prepares it if necessary.
    pub(super) fn find(
        &self,
        node: u64,
        file: BorrowedFd<'_>,
        name: &str,
        part: Part,
    ) -> Result<(u64, Kernel), Errno> {
        // One at a time: preparing takes as much memory as the kernel.
        let mut made = lock(&self.made);
        let stat = host::stat(file)?;
        let of = (Key::of(&stat), Version::of(&stat), part);
        let last = made.take_if(|made| made.of == of);
        let kernel = match last {
            Some(made) => made.kernel.map(|kernel| Kernel {
                below: node,
                ..kernel
            }),
            None => match self.make(file, part) {
                Ok(image) => Some(Kernel {
                    below: node,
                    image: Arc::new(image),
                    time: SystemTime::now(),
                }),
                Err(error) => {
                    output::note(format_args!(
                        "warning: the kernel {name} is not prepared: {error:#}; the guest unpacks \
                         it itself"
                    ));
                    None
                }
            },
        };
        *made = Some(Made {
            of,
            kernel: kernel.clone(),
        });
        Ok((MARK | node, kernel.ok_or(Errno::NOENT)?))
    }

    fn make(&self, file: BorrowedFd<'_>, part: Part) -> Result<Image> {
        let file = File::from(file.try_clone_to_owned()?);
        Image::open(&file, part, &self.how, &mut prepare::random)
    }

    /// The prepared kernel with this node ID.
    pub(super) fn get(&self, id: u64) -> Result<Kernel, Errno> {
        let made = lock(&self.made);
        let kernel = made.as_ref().and_then(|made| made.kernel.as_ref());
        let kernel = kernel.filter(|kernel| MARK | kernel.below == id);
        kernel.cloned().ok_or(Errno::STALE)
    }

    /// Drops the kept kernel.
    pub(super) fn forget(&self) {
        *lock(&self.made) = None;
    }
}

impl Kernel {
    /// Writes up to `size` bytes from `offset` on.
    pub(super) fn read(
        &self,
        writer: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
    ) -> io::Result<usize> {
        let size = writer.available_bytes().min(size as usize);
        let mut write = |bytes: &[u8]| writer.write_all(bytes);
        self.image.read(offset, size, &mut write)
    }
}
