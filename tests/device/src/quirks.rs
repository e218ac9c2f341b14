//! What a device is like, and how it differs from a good one.

/// How the answers of one batch are given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// As they were asked.
    #[default]
    Asked,
    /// The last one first.
    Reversed,
    /// In an order that a seed decides.
    Shuffled(u64),
}

impl Order {
    /// Brings `items` into this order; `now` makes it another each time.
    pub(crate) fn arrange<T>(self, items: &mut [T], now: u64) {
        match self {
            Self::Asked => {}
            Self::Reversed => items.reverse(),
            Self::Shuffled(seed) => shuffle(items, seed.wrapping_add(now)),
        }
    }
}

/// Fisher-Yates over a linear congruential generator: good enough to disorder a queue.
fn shuffle<T>(items: &mut [T], mut seed: u64) {
    for last in (1..items.len()).rev() {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        items.swap(last, (seed >> 33) as usize % (last + 1));
    }
}

/// What the device makes of a reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reset {
    /// It is confirmed when the status is read that many times.
    After(u32),
    /// It is confirmed at once.
    #[default]
    AtOnce,
    /// It is never confirmed.
    Never,
    /// So many are confirmed at once, the next ones never.
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

/// Bytes that the device writes where it has no business to write any. From then on it does not
/// look at its queues, until it is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scribble {
    /// After so many ticks and notifications.
    pub event: u64,
    /// Which queue.
    pub queue: u16,
    /// Where in it.
    pub area: Area,
    /// From the area's start; beyond its end it starts again.
    pub offset: u16,
    /// What.
    pub bytes: [u8; 4],
}

/// What a device is like.
#[derive(Clone, Debug)]
pub struct Quirks {
    /// Features that it offers.
    pub features: u64,
    /// Whether `FEATURES_OK` stays set.
    pub accepts_features: bool,
    /// Largest size of each queue; the hiprio queue is the first.
    pub queues: Vec<u32>,
    /// The configuration space: a tag of 36 bytes and the number of request queues.
    pub config: Vec<u8>,
    /// What makes the configuration another each time it is read; 0: nothing.
    pub config_noise: u8,
    /// How often the configuration's generation changes, in reads of it; 0: never.
    pub generation_lasts: u32,
    /// Bits of the status that are set for no reason.
    pub status_noise: u32,
    /// What becomes of a reset.
    pub reset: Reset,
    /// Queues are in use when the driver comes.
    pub queues_in_use: bool,
    /// In which order answers come.
    pub order: Order,
    /// The device asks not to be notified and looks at its queues with each tick.
    pub polls: bool,
    /// What it does to its queues.
    pub scribbles: Vec<Scribble>,
    /// How many ticks and notifications there may be before the client is said to wait for ever.
    pub patience: u64,
    /// Whether requests are recorded and checked. A benchmark does without.
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
    /// The configuration space of a device with that tag, 36 bytes at most.
    #[must_use]
    pub fn config_of(tag: &[u8], request_queues: u32) -> Vec<u8> {
        let mut config = tag.to_vec();
        config.resize(36, 0);
        config.extend_from_slice(&request_queues.to_le_bytes());
        config
    }
}
