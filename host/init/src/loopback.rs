//! The loopback interface (netdevice(7)), which many tests of programs use.

use std::ffi::c_void;

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};
use rustix::net::{AddressFamily, SocketType, socket};

/// `struct ifreq` with flags in its union.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

const SIOCSIFFLAGS: Opcode = 0x8914;
const IFF_UP: u16 = 1;

/// Brings the interface up; the kernel assigns its addresses.
pub fn start() -> Result<(), Errno> {
    let mut name = [0; 16];
    name[..2].copy_from_slice(b"lo");
    let request = Request {
        name,
        flags: IFF_UP,
        rest: [0; 22],
    };
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: the request is a `struct ifreq`, as SIOCSIFFLAGS expects.
    unsafe { ioctl(&socket, request) }
}

// SAFETY: the opcode takes a pointer to a `struct ifreq` and only reads it.
unsafe impl Ioctl for Request {
    type Output = ();
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        SIOCSIFFLAGS
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut *self).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> Result<(), Errno> {
        Ok(())
    }
}
