//! Properties of a device, and deviations from a correct one.

/// The order of the replies of one batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// In the order of the requests.
    #[default]
    Asked,
    /// The last one first.
    Reversed,
    /// In a pseudo-random order, from a seed.
    Shuffled(u64),
}

impl Order {
    /// Sorts `items` in this order; for `Shuffled`, each `now` gives another order.
    pub(crate) fn arrange<T>(self, items: &mut [T], now: u64) {
        match self {
            Self::Asked => {}
            Self::Reversed => items.reverse(),
            Self::Shuffled(seed) => shuffle(items, seed.wrapping_add(now)),
        }
    }
}

/// Fisher-Yates with a linear congruential generator, which is good enough for a queue.
fn shuffle<T>(items: &mut [T], mut seed: u64) {
    for last in (1..items.len()).rev() {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        items.swap(last, (seed >> 33) as usize % (last + 1));
    }
}

/// How the device reacts to a reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reset {
    /// It is confirmed after the status was read this many times.
    After(u32),
    /// It is confirmed at once.
    #[default]
    AtOnce,
    /// It is never confirmed.
    Never,
    /// This number of resets is confirmed at once, later ones never.
    NeverAfter(u32),
}

/// An area of a virtqueue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// The used ring.
    Used,
    /// The descriptor table.
    Descriptors,
    /// The available ring.
    Available,
}

/// Bytes that the device writes where it must not write. Afterwards it ignores its queues until it is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scribble {
    /// The number of ticks and notifications before it.
    pub event: u64,
    /// The queue.
    pub queue: u16,
    /// The area of the queue.
    pub area: Area,
    /// The offset from the area's start, modulo the area's size.
    pub offset: u16,
    /// The bytes.
    pub bytes: [u8; 4],
}

/// The properties of a device.
#[derive(Clone, Debug)]
pub struct Quirks {
    /// The features that it offers.
    pub features: u64,
    /// Whether `FEATURES_OK` stays set.
    pub accepts_features: bool,
    /// The largest size of each queue; the hiprio queue is the first.
    pub queues: Vec<u32>,
    /// The configuration space: a tag of 36 bytes and the number of request queues.
    pub config: Vec<u8>,
    /// Changes the configuration at each read if it is not 0.
    pub config_noise: u8,
    /// The number of reads after which the configuration's generation changes; 0 means never.
    pub generation_lasts: u32,
    /// Status bits that are set without a reason.
    pub status_noise: u32,
    /// How the device reacts to a reset.
    pub reset: Reset,
    /// Whether the queues are already in use when the driver starts.
    pub queues_in_use: bool,
    /// The order of replies.
    pub order: Order,
    /// Whether the device suppresses notifications and polls its queues at each tick.
    pub polls: bool,
    /// What it writes to its queues.
    pub scribbles: Vec<Scribble>,
    /// The number of ticks and notifications after which the client counts as waiting for ever.
    pub patience: u64,
    /// Whether requests are recorded and checked; benchmarks switch this off.
    pub records: bool,
}

impl Default for Quirks {
    fn default() -> Self {
        Self {
            features: 1 << 32,
            accepts_features: true,
            queues: vec![128, 128],
            config: Self::config_of(b"test", 1),
            config_noise: 0,
            generation_lasts: 0,
            status_noise: 0,
            reset: Reset::AtOnce,
            queues_in_use: false,
            order: Order::Asked,
            polls: false,
            scribbles: Vec::new(),
            patience: u64::MAX,
            records: true,
        }
    }
}

impl Quirks {
    /// The configuration space of a device with this tag of at most 36 bytes.
    #[must_use]
    pub fn config_of(tag: &[u8], request_queues: u32) -> Vec<u8> {
        let mut config = tag.to_vec();
        config.resize(36, 0);
        config.extend_from_slice(&request_queues.to_le_bytes());
        config
    }
}
