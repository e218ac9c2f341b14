//! The tag: the name of a share in the configuration space of its device (virtio 1.2, section
//! 5.11.4).

use crate::error::DeviceError;
use core::fmt;
use virtio_drivers::transport::Transport;

/// Longest tag in bytes.
const TAG_MAX: usize = 36;
/// Offset of `num_request_queues` in the configuration.
const NUM_REQUEST_QUEUES: usize = TAG_MAX;
/// How often the configuration is read if its generation changes during the read.
const ATTEMPTS: usize = 16;

/// The name of a share: up to 36 bytes, in UTF-8 if the host follows the specification.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    bytes: [u8; TAG_MAX],
}

impl Tag {
    /// The bytes of the tag, without padding.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes
            .split(|&byte| byte == 0)
            .next()
            .unwrap_or_default()
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.as_bytes().escape_ascii(), f)
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// The configuration of a file system device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// The share's name.
    pub tag: Tag,
    /// Number of request queues that the device offers.
    pub request_queues: u32,
}

impl DeviceConfig {
    /// Reads the configuration. This works before the device is set up and does not change it.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Configuration`] if it can't be read or keeps changing.
    pub fn read(transport: &impl Transport) -> Result<Self, DeviceError> {
        let unreadable = |_| DeviceError::Configuration;
        for _ in 0..ATTEMPTS {
            // A read of more than 32 bits may be torn, so the generation must be the same before
            // and after it (section 2.5.1).
            let before = transport.read_config_generation();
            let mut bytes = [0; TAG_MAX];
            for (offset, byte) in bytes.iter_mut().enumerate() {
                *byte = transport.read_config_space(offset).map_err(unreadable)?;
            }
            let request_queues = transport
                .read_config_space(NUM_REQUEST_QUEUES)
                .map_err(unreadable)?;
            if transport.read_config_generation() == before {
                return Ok(Self {
                    tag: Tag { bytes },
                    request_queues: u32::from_le(request_queues),
                });
            }
        }
        Err(DeviceError::Configuration)
    }
}
