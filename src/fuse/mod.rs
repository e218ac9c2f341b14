//! The FUSE wire protocol (version 7, `linux/fuse.h`): requests encoded, replies decoded and
//! checked.
//!
//! Floor 2. No I/O, no `unsafe`, and nothing of the transport: an [`Operation`] says what its
//! request looks like and what a reply to it may look like. Each operation has its own file; the
//! requests for directories are in the same file as those for regular files. The structures are
//! `fuse-abi`'s, read and written through `zerocopy`; numbers are in the machine's own byte order, which
//! virtio fixes to little endian.
#![forbid(unsafe_code)]

mod attr;
mod destroy;
mod forget;
mod getattr;
mod init;
mod lookup;
mod open;
mod read;
mod readdir;
mod readlink;
mod release;
mod statfs;

pub use attr::{Attr, FileType};
pub use destroy::Destroy;
pub use forget::Forget;
pub use getattr::GetAttr;
pub use init::{Init, Negotiated};
pub use lookup::{Entry, Lookup};
pub use open::Open;
pub use read::Read;
pub use readdir::{Dirent, Dirents};
pub use readlink::ReadLink;
pub use release::Release;
pub use statfs::{StatFs, Statistics};

use core::{fmt, num::NonZeroU64};
pub use fuse_abi::linux::fuse_opcode;
use fuse_abi::linux::{FUSE_ROOT_ID, fuse_in_header, fuse_out_header};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Longest name of a directory entry, in bytes (`NAME_MAX`).
pub const NAME_MAX: usize = 255;
/// Longest name that a READDIR reply may contain, in bytes (`FUSE_NAME_MAX`). Some file systems have
/// names longer than [`NAME_MAX`]; these are listed but cannot be looked up.
pub const LISTED_NAME_MAX: usize = 1024;
/// Longest target of a symbolic link, in bytes (`PATH_MAX` less its NUL).
pub const TARGET_MAX: usize = 4095;
/// Largest offset into a file (the maximum of `loff_t`). Some servers exit on a READ beyond it.
pub const OFFSET_MAX: u64 = i64::MAX as u64;

/// The size of the header of each request, in bytes.
pub const REQUEST_HEADER: usize = size_of::<fuse_in_header>();
/// The size of the header of each reply, in bytes.
pub const REPLY_HEADER: usize = size_of::<fuse_out_header>();

/// The server's number of a file or directory, valid while the client has a lookup count of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeId(NonZeroU64);

impl NodeId {
    /// The root of the share (`FUSE_ROOT_ID`).
    pub const ROOT: Self = match NonZeroU64::new(FUSE_ROOT_ID) {
        Some(id) => Self(id),
        None => unreachable!(),
    };

    /// A node ID from a reply; 0 means no node.
    fn new(id: u64) -> Option<Self> {
        NonZeroU64::new(id).map(Self)
    }

    fn get(self) -> u64 {
        self.0.get()
    }
}

/// The server's number of an open file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle(u64);

/// The client's number of a request, which the reply repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Unique(u64);

impl Unique {
    /// The first request's number. As in Linux, requests have even numbers; odd numbers are for
    /// FUSE_INTERRUPT.
    pub const FIRST: Self = Self(2);

    /// The number after this one. After 2^63 requests the numbers start again.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(match self.0.wrapping_add(2) {
            0 => 2,
            next => next,
        })
    }
}

/// A positive Linux error number, as servers on a Linux host send it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(u16);

impl Errno {
    /// The greatest error number (`MAX_ERRNO`).
    const MAX: i32 = 4095;

    /// The number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

macro_rules! errnos {
    ($($name:ident = $number:literal),* $(,)?) => {
        impl Errno {
            $(
                #[doc = concat!("`", stringify!($name), "`")]
                pub const $name: Self = Self($number);
            )*

            /// Its symbolic name, if it is a common one.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

// Linux's generic numbers, the same on x86 and arm64.
errnos! {
    EPERM = 1, ENOENT = 2, EINTR = 4, EIO = 5, ENXIO = 6, EBADF = 9, EAGAIN = 11, ENOMEM = 12,
    EACCES = 13, EBUSY = 16, ENODEV = 19, ENOTDIR = 20, EISDIR = 21, EINVAL = 22, ENFILE = 23,
    EMFILE = 24, EFBIG = 27, EROFS = 30, ERANGE = 34, ENAMETOOLONG = 36, ENOSYS = 38, ELOOP = 40,
    EPROTO = 71, EOVERFLOW = 75, EOPNOTSUPP = 95, ENOTCONN = 107, ETIMEDOUT = 110, ESTALE = 116, ECANCELED = 125,
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "error {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A violation of the protocol by the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Violation {
    /// The used ring refers to a descriptor chain that is not in flight.
    UsedId,
    /// The length in the used ring, the length in the reply and the bounds of the operation
    /// contradict each other.
    ReplyLength,
    /// A reply has the number of another request.
    ReplyUnique,
    /// The error in a reply is not a negative error number.
    ErrorRange,
    /// A reply has node ID 0 or 1 for a file.
    NodeId,
    /// A reply's attributes are impossible: an unknown type, a size or a time out of range.
    Attributes,
    /// A directory entry reaches beyond its reply, or its name is empty, too long, or contains a
    /// `/` or NUL.
    DirectoryEntry,
    /// A directory listing makes no progress, or never ends.
    EndlessDirectory,
    /// The target of a symbolic link is empty or contains a NUL.
    LinkTarget,
    /// The server does not support a version of FUSE 7 that this client supports.
    Version {
        /// Major version.
        major: u32,
        /// Minor version.
        minor: u32,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UsedId => "a completion for a request that is not in flight",
            Self::ReplyLength => "a reply of a wrong length",
            Self::ReplyUnique => "a reply to another request",
            Self::ErrorRange => "an error outside the range of error numbers",
            Self::NodeId => "a file without a valid node ID",
            Self::Attributes => "impossible attributes",
            Self::DirectoryEntry => "a malformed directory entry",
            Self::EndlessDirectory => "a directory that never ends",
            Self::LinkTarget => "a malformed symbolic link",
            Self::Version { major, minor } => {
                return write!(
                    f,
                    "FUSE {major}.{minor}, where 7.{} or newer is needed",
                    init::OLDEST_MINOR
                );
            }
        })
    }
}

/// Why a reply has no result: the server's error, or a malformed reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyError {
    /// The server's error.
    Server(Errno),
    /// The reply is malformed.
    Malformed(Violation),
}

impl From<Violation> for ReplyError {
    fn from(violation: Violation) -> Self {
        Self::Malformed(violation)
    }
}

/// One kind of request: how it is encoded, and how its reply is decoded.
///
/// A [`Session`](crate::session::Session) has 320 bytes for a request, header and name included. It
/// refuses a larger one, with [`Error::InvalidName`](crate::Error::InvalidName). A larger
/// [`REPLY_SIZE`](Operation::REPLY_SIZE) than 176 does not compile:
///
/// ```compile_fail,E0080
/// use bootshare::fuse::{Operation, Violation, fuse_opcode};
/// use bootshare::{hal::IdentityHal, session::Session, transport::MmioTransport};
///
/// struct Greedy;
///
/// impl Operation for Greedy {
///     type Body = [u8; 0];
///     type Reply = ();
///     const REPLY_SIZE: usize = 177;
///     fn opcode(&self) -> fuse_opcode {
///         fuse_opcode::FUSE_STATFS
///     }
///     fn body(&self) -> [u8; 0] {
///         []
///     }
///     fn decode(&self, _: &[u8], _: usize) -> Result<(), Violation> {
///         Ok(())
///     }
/// }
///
/// let submit: fn(&mut Session<MmioTransport<'_>, IdentityHal>) = |session| {
///     _ = session.submit(session.epoch(), &Greedy);
/// };
/// ```
pub trait Operation {
    /// The fixed structure after the request header; operations without one use `[u8; 0]`.
    type Body: IntoBytes + Immutable;

    /// The result of a successful reply.
    type Reply;

    /// Bytes after the reply header that the device writes into the client's own memory. Operations
    /// whose reply is written to another buffer (READ, READDIR, READLINK) have 0 here. At most 176.
    const REPLY_SIZE: usize = 0;

    /// The operation's opcode.
    fn opcode(&self) -> fuse_opcode;

    /// The node that the request is about; the root if it is about the whole share.
    fn node(&self) -> NodeId {
        NodeId::ROOT
    }

    /// The fixed structure.
    fn body(&self) -> Self::Body;

    /// The name after the fixed structure, without its NUL. [`encode`] checks it.
    fn name(&self) -> Option<&[u8]> {
        None
    }

    /// Decodes a reply whose header has no error. `fixed` is the part after the header in the
    /// client's own memory; `data` is how many bytes of the caller's buffer the server filled.
    ///
    /// # Errors
    ///
    /// The rule that the reply breaks.
    fn decode(&self, fixed: &[u8], data: usize) -> Result<Self::Reply, Violation>;
}

/// Why a request is not sent: real servers exit on such requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncodeError {
    /// The name is empty, longer than 255 bytes, or contains a `/` or NUL.
    Name,
    /// The request does not fit into the buffer.
    Space,
}

/// Whether `name` may be the name of a directory entry.
#[must_use]
pub fn is_valid_name(name: &[u8]) -> bool {
    name.len() <= NAME_MAX && is_component(name)
}

/// Whether `name` is not empty and contains neither `/` nor NUL.
fn is_component(name: &[u8]) -> bool {
    !name.is_empty() && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}

/// Writes the request for `operation` to the start of `out`, and returns that part of it.
///
/// # Errors
///
/// [`EncodeError`]; `out` is undefined then.
pub fn encode<'o, O: Operation>(
    operation: &O,
    unique: Unique,
    out: &'o mut [u8],
) -> Result<&'o [u8], EncodeError> {
    let body = operation.body();
    let name = operation.name();
    if name.is_some_and(|name| !is_valid_name(name)) {
        return Err(EncodeError::Name);
    }
    let name_size = name.map_or(0, |name| name.len().saturating_add(1));
    let size = REQUEST_HEADER
        .saturating_add(size_of::<O::Body>())
        .saturating_add(name_size);
    let request = out.get_mut(..size).ok_or(EncodeError::Space)?;
    let header = fuse_in_header {
        len: u32::try_from(size).map_err(|_| EncodeError::Space)?,
        opcode: operation.opcode() as u32,
        unique: unique.0,
        nodeid: operation.node().get(),
        // User and group 0: firmware has no other. A server may map them to other IDs.
        ..fuse_in_header::default()
    };
    let space = |()| EncodeError::Space;
    let rest = write_prefix(&header, &mut *request)
        .ok_or(())
        .map_err(space)?;
    let rest = write_prefix(&body, rest).ok_or(()).map_err(space)?;
    if let Some(name) = name {
        let (text, nul) = rest
            .split_at_mut_checked(name.len())
            .ok_or(EncodeError::Space)?;
        text.copy_from_slice(name);
        nul.fill(0);
    }
    Ok(request)
}

/// Writes `value` to the start of `out` and returns the rest.
fn write_prefix<'a>(
    value: &(impl IntoBytes + Immutable),
    out: &'a mut [u8],
) -> Option<&'a mut [u8]> {
    let bytes = value.as_bytes();
    let (head, rest) = out.split_at_mut_checked(bytes.len())?;
    head.copy_from_slice(bytes);
    Some(rest)
}

/// Checks the reply to `operation` and decodes it.
///
/// `reply` is the client's own reply buffer (header and fixed part), `data_size` the size of the
/// caller's buffer after it, and `used` the length that the device reports in the used ring.
///
/// # Errors
///
/// The server's error, or the rule that the reply breaks.
pub fn decode<O: Operation>(
    operation: &O,
    unique: Unique,
    reply: &[u8],
    data_size: usize,
    used: u32,
) -> Result<O::Reply, ReplyError> {
    let (header, fixed) =
        fuse_out_header::read_from_prefix(reply).map_err(|_| Violation::ReplyLength)?;
    // The length stands in the used ring and in the header, and both must agree (virtio 1.2,
    // section 2.7.8). libkrun up to 1.9 leaves 0 in the ring. Then only the header's length is
    // used; the header must belong to this request, and the bounds below are checked in any case.
    if used != 0 && header.len != used {
        return Err(Violation::ReplyLength.into());
    }
    let length = usize::try_from(header.len)
        .ok()
        .and_then(|length| length.checked_sub(REPLY_HEADER))
        .ok_or(Violation::ReplyLength)?;
    if header.unique != unique.0 {
        return Err(Violation::ReplyUnique.into());
    }
    match header.error {
        0 => {}
        error if error < 0 && error >= Errno::MAX.wrapping_neg() && length == 0 => {
            let number = u16::try_from(error.unsigned_abs()).map_err(|_| Violation::ErrorRange)?;
            return Err(ReplyError::Server(Errno(number)));
        }
        error if error < 0 && error >= Errno::MAX.wrapping_neg() => {
            return Err(Violation::ReplyLength.into());
        }
        _ => return Err(Violation::ErrorRange.into()),
    }
    let fixed_size = length.min(O::REPLY_SIZE);
    let data = length.saturating_sub(fixed_size);
    let fixed = fixed.get(..fixed_size).ok_or(Violation::ReplyLength)?;
    if data > data_size {
        return Err(Violation::ReplyLength.into());
    }
    Ok(operation.decode(fixed, data)?)
}

/// The structure at the start of a reply. Newer servers may send more bytes after it.
fn structure<T: FromBytes + KnownLayout + Immutable>(fixed: &[u8]) -> Result<T, Violation> {
    match T::read_from_prefix(fixed) {
        Ok((value, _)) => Ok(value),
        Err(_) => Err(Violation::ReplyLength),
    }
}

#[cfg(test)]
mod tests;
