//! A transport by reference.

use super::{DeviceStatus, DeviceType, InterruptStatus, PhysAddr, Transport, VirtioError};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A borrowed transport: after the share was unmounted, or could not be mounted, the owner can use
/// the transport again.
///
/// ```no_run
/// # use bootshare::{Error, Options, Share, hal::Clock, transport::{ByRef, Transport}};
/// /// Mounts a share whose server may not be there yet, and tells what version it speaks.
/// fn version<T: Transport>(transport: &mut T, clock: &impl Clock) -> (u32, u32) {
///     loop {
///         match Share::mount(ByRef(transport), clock, Options::default()) {
///             Ok(share) => return share.protocol(),
///             Err(error) => log::warn!("{error}; trying again"),
///         }
///     }
/// }
/// ```
#[derive(Debug)]
pub struct ByRef<'t, T>(pub &'t mut T);

impl<T: Transport> Transport for ByRef<'_, T> {
    fn device_type(&self) -> DeviceType {
        self.0.device_type()
    }

    fn read_device_features(&mut self) -> u64 {
        self.0.read_device_features()
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        self.0.write_driver_features(driver_features);
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.0.max_queue_size(queue)
    }

    fn notify(&mut self, queue: u16) {
        self.0.notify(queue);
    }

    fn get_status(&self) -> DeviceStatus {
        self.0.get_status()
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.0.set_status(status);
    }

    fn set_guest_page_size(&mut self, guest_page_size: u32) {
        self.0.set_guest_page_size(guest_page_size);
    }

    fn requires_legacy_layout(&self) -> bool {
        self.0.requires_legacy_layout()
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        self.0
            .queue_set(queue, size, descriptors, driver_area, device_area);
    }

    fn queue_unset(&mut self, queue: u16) {
        self.0.queue_unset(queue);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.0.queue_used(queue)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        self.0.ack_interrupt()
    }

    fn read_config_generation(&self) -> u32 {
        self.0.read_config_generation()
    }

    fn read_config_space<V: FromBytes + IntoBytes>(&self, offset: usize) -> Result<V, VirtioError> {
        self.0.read_config_space(offset)
    }

    fn write_config_space<V: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: V,
    ) -> Result<(), VirtioError> {
        self.0.write_config_space(offset, value)
    }
}
