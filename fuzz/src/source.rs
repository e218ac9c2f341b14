//! Takes values from an input.

/// Reads values from the front of an input. After its end, all bytes are zero.
#[derive(Clone, Debug)]
pub struct Source<'a>(&'a [u8]);

impl<'a> Source<'a> {
    pub fn new(input: &'a [u8]) -> Self {
        Self(input)
    }

    /// The number of bytes that are left.
    pub fn left(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let bytes = self.bytes(N);
        out[..bytes.len()].copy_from_slice(bytes);
        out
    }

    pub fn u8(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// True half of the time.
    pub fn flag(&mut self) -> bool {
        self.u8() & 1 != 0
    }

    /// A number below `end`, which is at most 256.
    pub fn below(&mut self, end: usize) -> usize {
        usize::from(self.u8()) % end
    }

    /// A number that is often near a limit.
    pub fn edge(&mut self) -> u64 {
        let shape = self.u8();
        let power = 1u64 << (shape & 63);
        match shape >> 6 {
            0 => self.u8().into(),
            1 => power.wrapping_add(u64::from(self.u8())).wrapping_sub(128),
            2 => u64::from(self.u16()).wrapping_mul(power),
            _ => self.u64(),
        }
    }

    /// `size` bytes, or what is left.
    pub fn bytes(&mut self, size: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(size.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// Up to 255 bytes; the first byte is their number.
    pub fn short_bytes(&mut self) -> &'a [u8] {
        let size = self.u8().into();
        self.bytes(size)
    }

    /// The rest of the input.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}
