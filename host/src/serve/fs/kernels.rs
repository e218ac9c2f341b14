//! Prepared kernels, as files below the files that they are made of: nobody finds one who does not ask
//! for its name.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result};
use fuse_backend_rs::api::filesystem::ZeroCopyWriter;
use rustix::io::Errno;

use super::host;
use super::nodes::Version;
use crate::prepare::{self, Image, Part, Prepare};
use crate::serve::lock;

/// What their numbers have and those of other nodes have not.
const MARK: u64 = 1 << 63;

/// Those of one share. One is kept, until the guest has said farewell: also when the guest comes back
/// after it was lost, since its address is another one each time it is made.
pub(super) struct Kernels {
    how: Prepare,
    made: Mutex<Option<Made>>,
}

/// What was made of a file when it was looked at last.
struct Made {
    of: (u64, Version, Part),
    /// Or nothing, as was said.
    kernel: Option<Kernel>,
}

/// A prepared kernel, and which file it is below.
#[derive(Clone)]
pub(super) struct Kernel {
    pub(super) below: u64,
    pub(super) image: Arc<Image>,
}

impl Kernels {
    pub(super) fn new(how: Prepare) -> Self {
        Self {
            how,
            made: Mutex::default(),
        }
    }

    /// Whether a node is a prepared kernel.
    pub(super) const fn has(id: u64) -> bool {
        id & MARK != 0
    }

    /// The kernel in this part of the file that a node is, prepared now unless it was; its number.
    pub(super) fn find(
        &self,
        node: u64,
        file: BorrowedFd<'_>,
        name: &str,
        part: Part,
    ) -> Result<(u64, Kernel), Errno> {
        // One at a time: it may take the memory of a kernel.
        let mut made = lock(&self.made);
        let of = (node, Version::of(&host::stat(file)?), part);
        let last = made.take_if(|made| made.of == of);
        let kernel = match last {
            Some(made) => made.kernel,
            None => match self.make(file, part) {
                Ok(image) => Some(Kernel {
                    below: node,
                    image: Arc::new(image),
                }),
                Err(error) => {
                    eprintln!(
                        "bootshare-host: warning: the kernel {name} is not prepared: {error:#}; the \
                         guest unpacks it itself"
                    );
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
        let bytes = prepare::read(&file, part).context("cannot read it")?;
        Image::new(&bytes, &self.how, &mut prepare::random)
    }

    /// The one with this number.
    pub(super) fn get(&self, id: u64) -> Result<Kernel, Errno> {
        let made = lock(&self.made);
        let kernel = made.as_ref().and_then(|made| made.kernel.as_ref());
        let kernel = kernel.filter(|kernel| MARK | kernel.below == id);
        kernel.cloned().ok_or(Errno::STALE)
    }

    /// The guest needs none any more.
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
