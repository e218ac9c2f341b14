//! The device-specific configuration space, the same on both transports.

use core::{mem::size_of, ptr::NonNull};
use safe_mmio::{SharedMmioPointer, UniqueMmioPointer, fields::ReadPureWrite};
use virtio_drivers::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The configuration space of a device.
#[derive(Debug)]
pub struct ConfigSpace<'a>(UniqueMmioPointer<'a, [ReadPureWrite<u8>]>);

impl<'a> ConfigSpace<'a> {
    pub fn new(bytes: UniqueMmioPointer<'a, [ReadPureWrite<u8>]>) -> Self {
        Self(bytes)
    }

    /// A pointer to the `T` at `offset`, checked to be inside the space and aligned.
    fn field<T>(&self, offset: usize) -> Result<NonNull<T>, Error> {
        let shared: &SharedMmioPointer<'_, _> = &self.0;
        let end = offset
            .checked_add(size_of::<T>())
            .ok_or(Error::ConfigSpaceTooSmall)?;
        if end > shared.len() {
            return Err(Error::ConfigSpaceTooSmall);
        }
        let field = shared
            .get(offset)
            .and_then(|first| NonNull::new(first.ptr().cast_mut()))
            .ok_or(Error::ConfigSpaceTooSmall)?
            .cast::<T>();
        if field.is_aligned() {
            Ok(field)
        } else {
            Err(Error::InvalidParam)
        }
    }

    /// Reads the `T` at `offset`, in one access if the machine can (virtio 1.2, section 2.5.1).
    pub fn read<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        let field = self.field::<T>(offset)?;
        // SAFETY: the field is inside the region and aligned, and reading configuration space has
        // no side effect; the pointer is used for this one read only.
        let mut field = unsafe { UniqueMmioPointer::new(field) };
        // SAFETY: as above.
        Ok(unsafe { field.read_unsafe() })
    }

    /// Writes `value` at `offset`.
    pub fn write<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> Result<(), Error> {
        let field = self.field::<T>(offset)?;
        // SAFETY: the field is inside the region and aligned, and `&mut self` excludes other accesses.
        let mut field = unsafe { UniqueMmioPointer::new(field) };
        // SAFETY: a driver may write any value to configuration space; it cannot violate memory
        // safety.
        unsafe { field.write_unsafe(value) };
        Ok(())
    }
}
