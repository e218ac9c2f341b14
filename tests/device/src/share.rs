//! Shares of the device.

use crate::{clock::VirtualClock, device::Device, hal::TestHal, transport::TestTransport};
use bootshare::{Error, Options, Share, hal::Hal};

/// A share that was mounted in virtual time.
pub type TestShare = Share<TestTransport, VirtualClock, TestHal>;

impl Device {
    /// Mounts the device in virtual time, which also drives the device.
    ///
    /// # Errors
    ///
    /// Those of [`Share::mount`].
    pub fn mount(&self, options: Options) -> Result<TestShare, Error> {
        self.mount_with(options)
    }

    /// As [`Device::mount`], with the platform `H`.
    ///
    /// # Errors
    ///
    /// Those of [`Share::mount`].
    pub fn mount_with<H: Hal>(
        &self,
        options: Options,
    ) -> Result<Share<TestTransport, VirtualClock, H>, Error> {
        Share::mount_with(self.transport(), VirtualClock::new(self), options)
    }

    /// A transport for a driver. The device outlives it, and can have another one later.
    #[must_use]
    pub fn transport(&self) -> TestTransport {
        TestTransport(self.clone())
    }
}
