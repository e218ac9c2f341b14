//! PCI configuration space in memory (ECAM), of any size.

use super::configuration::ABSENT;
use crate::transport::DeviceFunction;
use core::ptr::NonNull;
use safe_mmio::{UniqueMmioPointer, fields::ReadPureWrite};
use virtio_drivers::transport::pci::bus::ConfigurationAccess;

/// Enhanced configuration access (PCI Express 5.0, section 7.2.2). Each bus takes 1 MiB; there may be
/// fewer than 256. `virtio-drivers`' own `MmioCam` assumes 256 MiB.
#[derive(Debug)]
pub struct Ecam {
    words: UniqueMmioPointer<'static, [ReadPureWrite<u32>]>,
}

impl Ecam {
    /// Access to `size` bytes of configuration space from bus 0.
    ///
    /// # Safety
    ///
    /// `base` must point to that much configuration space, 4-byte aligned and mapped as device
    /// memory for ever; nothing else may use it while this lives.
    ///
    /// Its methods are safe, but they can place a device's memory anywhere and let it access all
    /// memory. So the caller vouches for all that is written.
    pub unsafe fn new(base: NonNull<u8>, size: usize) -> Self {
        let words = NonNull::slice_from_raw_parts(base.cast(), size / 4);
        Self {
            // SAFETY: the caller promises it.
            words: unsafe { UniqueMmioPointer::new(words) },
        }
    }
}

/// Index of the word that contains the register.
fn word(function: DeviceFunction, register_offset: u8) -> usize {
    let byte = usize::from(function.bus) << 20
        | usize::from(function.device & 0x1f) << 15
        | usize::from(function.function & 0b111) << 12
        | usize::from(register_offset);
    byte / 4
}

impl ConfigurationAccess for Ecam {
    fn read_word(&self, function: DeviceFunction, register_offset: u8) -> u32 {
        let register = (*self.words).get(word(function, register_offset));
        register.map_or(ABSENT, |register| register.read())
    }

    fn write_word(&mut self, function: DeviceFunction, register_offset: u8, data: u32) {
        if let Some(mut register) = self.words.get(word(function, register_offset)) {
            register.write(data);
        }
    }

    unsafe fn unsafe_clone(&self) -> Self {
        let words = NonNull::new(self.words.ptr().cast_mut());
        let none = NonNull::slice_from_raw_parts(NonNull::dangling(), 0);
        let words = words.unwrap_or(none);
        Self {
            // SAFETY: the same registers for ever, as for `self`, or none; the caller promises that
            // the clone only reads what nobody writes.
            words: unsafe { UniqueMmioPointer::new(words) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    #[test]
    fn a_function_beyond_the_last_bus_is_absent() {
        // One bus, and the first word of the next.
        let mut space = vec![0u32; (1 << 20) / 4 + 1];
        space[(1 << 20) / 4] = 7;
        space[(3 << 15 | 2 << 12 | 0x10) / 4] = 42;
        let base = NonNull::from(&mut space[..]).cast();
        // SAFETY: one MiB of the array, which nothing else uses while `ecam` lives.
        let mut ecam = unsafe { Ecam::new(base, 1 << 20) };
        let function = |bus, device, function| DeviceFunction {
            bus,
            device,
            function,
        };
        assert_eq!(ecam.read_word(function(0, 3, 2), 0x10), 42);
        ecam.write_word(function(0, 3, 2), 0x10, 43);
        assert_eq!(ecam.read_word(function(0, 3, 2), 0x10), 43);
        assert_eq!(ecam.read_word(function(1, 0, 0), 0), ABSENT);
        ecam.write_word(function(1, 0, 0), 0, 1);
        assert_eq!(space[(1 << 20) / 4], 7);
    }
}
