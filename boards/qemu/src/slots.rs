//! Virtio-mmio slots: register blocks that may hold a device.

use bootshare::transport::{Address, Device, DeviceList, mmio};
use core::ptr::{NonNull, with_exposed_provenance_mut};

/// Adds the file system device of the slot at `address`, if it holds one, to `found`. Returns
/// `false`, after a warning, if there is no room for it: the search is over then.
///
/// # Safety
///
/// `address` must be a multiple of 4 and not 0. `size` bytes there must be mapped to their physical
/// address for ever, and be a virtio-mmio register block or memory that can be read without effect.
/// A slot must be probed once only.
pub unsafe fn probe(address: u64, size: usize, found: &mut DeviceList) -> bool {
    let Some(base) = NonNull::new(with_exposed_provenance_mut(address as usize)) else {
        return true;
    };
    // SAFETY: the caller promises all of it.
    let Some(transport) = (unsafe { mmio::probe(base, size) }) else {
        return true;
    };
    let device = Device {
        address: Address::Mmio(address),
        transport: transport.map(Into::into),
    };
    let has_room = found.push(device).is_ok();
    if !has_room {
        log::warn!("too many file system devices: the one at {address:#x} is not used");
    }
    has_room
}
