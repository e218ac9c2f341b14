//! The transport: the device's registers as a driver sees them.

use crate::{
    device::{Device, State},
    hal::TestHal,
    quirks::Reset,
    ring::Ring,
};
use std::{mem, sync::MutexGuard};
use virtio_drivers::{
    Error, PhysAddr,
    transport::{DeviceStatus, DeviceType, InterruptStatus, Transport},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A `Transport` to the [`Device`].
#[derive(Debug)]
pub struct TestTransport(pub(crate) Device);

impl TestTransport {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    fn reset(&self) {
        let mut state = self.state();
        let mut rings = state.rings.iter().flatten();
        if rings.any(|ring| ring.is_counted && !TestHal::holds(ring.descriptors)) {
            state.log.broken("a ring freed before the reset");
        }
        // Requests in progress must not access memory after the reset is confirmed.
        state = self.0.idle(state);
        match state.quirks.reset {
            Reset::AtOnce => state.confirm_reset(),
            Reset::After(reads) => {
                state.reset_left = Some(reads.into());
                state.status |= DeviceStatus::DEVICE_NEEDS_RESET;
            }
            Reset::NeverAfter(left @ 1..) => {
                state.quirks.reset = Reset::NeverAfter(left - 1);
                state.confirm_reset();
            }
            Reset::Never | Reset::NeverAfter(0) => {
                state.reset_left = Some(u64::MAX);
                state.status |= DeviceStatus::DEVICE_NEEDS_RESET;
            }
        }
    }
}

impl Transport for TestTransport {
    fn device_type(&self) -> DeviceType {
        DeviceType::_9P
    }

    fn read_device_features(&mut self) -> u64 {
        self.state().quirks.features
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        let mut state = self.state();
        if driver_features & !state.quirks.features != 0 {
            state.log.broken("features that were not offered");
        }
        if state.status.contains(DeviceStatus::FEATURES_OK) {
            state.log.broken("features after FEATURES_OK");
        }
        state.features = driver_features;
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        let state = self.state();
        let size = state.quirks.queues.get(usize::from(queue));
        size.copied().unwrap_or(0)
    }

    // Benchmarks exclude this function by its name.
    #[inline(never)]
    fn notify(&mut self, queue: u16) {
        self.0.notified(queue);
    }

    fn get_status(&self) -> DeviceStatus {
        let mut state = self.state();
        match state.reset_left {
            Some(0) => state.confirm_reset(),
            Some(left) => state.reset_left = Some(left - 1),
            None => {}
        }
        if state.status.is_empty() {
            // Confirming a reset and accepting features have quirks of their own.
            return state.status;
        }
        let noise = DeviceStatus::from_bits_retain(state.quirks.status_noise);
        state.status | (noise - DeviceStatus::FEATURES_OK)
    }

    fn set_status(&mut self, status: DeviceStatus) {
        if status.is_empty() {
            return self.reset();
        }
        let mut state = self.state();
        let order = [
            DeviceStatus::empty(),
            DeviceStatus::ACKNOWLEDGE,
            DeviceStatus::DRIVER,
            DeviceStatus::FEATURES_OK,
            DeviceStatus::DRIVER_OK,
        ];
        if state.reset_left.is_some() || !status.contains(state.status) {
            state.log.broken(format!("status {status:?} out of order"));
        }
        // VIRTIO_F_VERSION_1 and VIRTIO_F_ACCESS_PLATFORM (virtio 1.2, section 6.1).
        let demanded = state.quirks.features & 3 << 32;
        if status.contains(DeviceStatus::FEATURES_OK) && demanded & !state.features != 0 {
            state
                .log
                .broken("a feature that the device depends on was not accepted");
        }
        for pair in order.windows(2) {
            if status.contains(pair[1]) && !status.contains(pair[0]) {
                state.log.broken(format!("status {status:?} misses a step"));
            }
        }
        state.status = status;
        if !state.quirks.accepts_features {
            state.status.remove(DeviceStatus::FEATURES_OK);
        }
    }

    fn set_guest_page_size(&mut self, _guest_page_size: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        let mut state = self.state();
        if !state.status.contains(DeviceStatus::FEATURES_OK)
            || state.status.contains(DeviceStatus::DRIVER_OK)
        {
            state.log.broken("a queue set up at the wrong time");
        }
        let most = state.quirks.queues.get(usize::from(queue)).copied();
        if !size.is_power_of_two() || most.is_none_or(|most| size > most) {
            state.log.broken(format!("queue {queue} of {size} entries"));
            return;
        }
        let aligned = [(descriptors, 16), (driver_area, 2), (device_area, 4)];
        if !aligned
            .iter()
            .all(|(address, to)| address.is_multiple_of(*to))
        {
            state.log.broken("an unaligned queue");
        }
        let mut ring = Ring::new(size as u16, descriptors, driver_area, device_area);
        ring.is_counted = TestHal::holds(descriptors);
        ring.set_no_notify(state.quirks.polls);
        let index = usize::from(queue);
        let rings = state.rings.len().max(index + 1);
        state.rings.resize(rings, None);
        state.rings[index] = Some(ring);
    }

    fn queue_unset(&mut self, queue: u16) {
        if let Some(ring) = self.state().rings.get_mut(usize::from(queue)) {
            *ring = None;
        }
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        let state = self.state();
        let ring = state.rings.get(usize::from(queue));
        state.quirks.queues_in_use || ring.is_some_and(Option::is_some)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        match mem::take(&mut self.state().is_interrupting) {
            true => InterruptStatus::QUEUE_INTERRUPT,
            false => InterruptStatus::empty(),
        }
    }

    fn read_config_generation(&self) -> u32 {
        let mut state = self.state();
        state.generation_reads += 1;
        let lasts = state.quirks.generation_lasts;
        if lasts != 0 && state.generation_reads.is_multiple_of(lasts) {
            state.generation += 1;
        }
        state.generation
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        let mut state = self.state();
        let bytes = state.quirks.config.get(offset..offset + size_of::<T>());
        let mut bytes = bytes.ok_or(Error::ConfigSpaceTooSmall)?.to_vec();
        state.config_reads = state.config_reads.wrapping_add(state.quirks.config_noise);
        bytes
            .iter_mut()
            .for_each(|byte| *byte ^= state.config_reads);
        T::read_from_bytes(&bytes).map_err(|_| Error::InvalidParam)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        _offset: usize,
        _value: T,
    ) -> Result<(), Error> {
        self.state()
            .log
            .broken("the configuration space is not writable");
        Err(Error::InvalidParam)
    }
}
