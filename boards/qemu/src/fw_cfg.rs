//! QEMU's fw_cfg device: named files that the machine and its user hand to the firmware (QEMU,
//! docs/specs/fw_cfg.rst).
//!
//! Only its DMA interface is used, which QEMU's PCs have since 2.9 and `virt` since 2.5. Each file
//! size that the device gives is checked against the buffer to fill.

use bootshare::hal::Clock;
use core::{
    sync::atomic::{AtomicU32, Ordering, fence},
    time::Duration,
};
use heapless::Vec;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout,
    big_endian::{U16, U32},
};

/// The file with the firmware's options for a start without `-kernel`, where QEMU takes no `-append`.
pub const COMMAND_LINE: &str = "opt/org.bootshare/cmdline";

/// What the DMA register reads as: "QEMU CFG".
const SIGNATURE: [u32; 2] = [0x5145_4d55, 0x2043_4647];
/// Selector of the directory.
const DIRECTORY: u16 = 0x19;
/// Selectors have 14 bits, so a directory cannot have more files.
const MAX_FILES: u32 = 1 << 14;
/// The longest time for a transfer. QEMU finishes it before the CPU continues.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bits of `FWCfgDmaAccess.control`; the selector is in the upper half.
const ERROR: u32 = 1 << 0;
const READ: u32 = 1 << 1;
const SKIP: u32 = 1 << 2;
const SELECT: u32 = 1 << 3;
const WRITE: u32 = 1 << 4;

/// The DMA address register, as its two halves, the upper one first. Values are in the processor's
/// byte order; an implementation converts them to and from the register's big-endian order.
pub trait Register {
    /// Reads both halves.
    fn read(&self) -> [u32; 2];

    /// Writes the upper half, then the lower one, which starts the transfer.
    fn write(&mut self, halves: [u32; 2]);
}

/// A file of the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct File {
    selector: u16,
    /// Its size in bytes.
    pub size: u32,
}

/// The device reported that a transfer failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed;

/// `FWCfgDmaAccess`.
#[repr(C, align(16))]
struct Access {
    control: AtomicU32,
    length: U32,
    address: [U32; 2],
}

/// `FWCfgFile`.
#[derive(FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
struct Entry {
    size: U32,
    selector: U16,
    reserved: U16,
    name: [u8; 56],
}

const _: () = assert!(size_of::<Entry>() == 64);

impl Entry {
    const EMPTY: Self = Self {
        size: U32::ZERO,
        selector: U16::ZERO,
        reserved: U16::ZERO,
        name: [0; 56],
    };
}

/// The device.
pub struct FwCfg<R, C> {
    register: R,
    clock: C,
}

impl<R: Register, C: Clock> FwCfg<R, C> {
    /// The device behind `register`; `None` if none with DMA answers.
    ///
    /// # Safety
    ///
    /// `register` must be fw_cfg's, or one that can be read without effect, and nothing else may
    /// use it. Memory must be mapped to its physical addresses, and coherent with DMA.
    pub unsafe fn find(register: R, clock: C) -> Option<Self> {
        (register.read() == SIGNATURE).then_some(Self { register, clock })
    }

    /// The file of that name.
    pub fn file(&mut self, name: &[u8]) -> Option<File> {
        let mut count = U32::new(0);
        let select = SELECT | u32::from(DIRECTORY) << 16;
        self.fill(select | READ, count.as_mut_bytes()).ok()?;
        let mut left = count.get().min(MAX_FILES) as usize;
        while left > 0 {
            // Each transfer is an exit from the virtual machine, so several entries are read at once.
            let mut entries = [const { Entry::EMPTY }; 16];
            let (entries, _) = entries.split_at_mut(left.min(16));
            left -= entries.len();
            self.fill(READ, entries.as_mut_bytes()).ok()?;
            if let Some(found) = entries.iter().find(|entry| trimmed(&entry.name) == name) {
                return Some(File {
                    selector: found.selector.get(),
                    size: found.size.get(),
                });
            }
        }
        None
    }

    /// Reads the start of `file` into `buffer`; bytes after the file's end are zero.
    ///
    /// # Errors
    ///
    /// The device failed.
    pub fn read(&mut self, file: File, buffer: &mut [u8]) -> Result<(), Failed> {
        self.fill(READ | file.select(), buffer)
    }

    /// Writes `bytes` to `file`, `offset` bytes from its start.
    ///
    /// # Errors
    ///
    /// The device failed: the file is smaller, or is read-only.
    pub fn write(&mut self, file: File, offset: u32, bytes: &[u8]) -> Result<(), Failed> {
        let length = u32::try_from(bytes.len()).map_err(|_| Failed)?;
        self.transfer(SKIP | file.select(), offset, 0)?;
        self.transfer(WRITE, length, bytes.as_ptr().expose_provenance())
    }

    /// The firmware's options, from [`COMMAND_LINE`]: any bytes up to the first NUL. Empty if there
    /// is no such file.
    ///
    /// # Errors
    ///
    /// A message for the console: the file is larger than `N` bytes, or can't be read.
    pub fn command_line<const N: usize>(&mut self) -> Result<Vec<u8, N>, &'static str> {
        let mut line = Vec::new();
        let Some(file) = self.file(COMMAND_LINE.as_bytes()) else {
            return Ok(line);
        };
        line.resize_default(file.size as usize)
            .map_err(|_| "the fw_cfg file opt/org.bootshare/cmdline is too long; shorten it")?;
        self.read(file, &mut line)
            .map_err(|Failed| "the fw_cfg file opt/org.bootshare/cmdline can't be read")?;
        line.truncate(trimmed(&line).len());
        Ok(line)
    }

    fn fill(&mut self, control: u32, buffer: &mut [u8]) -> Result<(), Failed> {
        let length = u32::try_from(buffer.len()).map_err(|_| Failed)?;
        self.transfer(control, length, buffer.as_mut_ptr().expose_provenance())
    }

    /// Starts the transfer that `control` describes, of `length` bytes at `address`, and waits for its
    /// end. The caller lends this memory to the device.
    fn transfer(&mut self, control: u32, length: u32, address: usize) -> Result<(), Failed> {
        let mut access = Access {
            control: AtomicU32::new(control.to_be()),
            length: length.into(),
            address: halves(address).map(U32::new),
        };
        let address = (&raw mut access).expose_provenance();
        // The device must see all writes from before; the fence in the loop makes its own visible.
        fence(Ordering::SeqCst);
        self.register.write(halves(address));
        let start = self.clock.now();
        loop {
            let control = u32::from_be(access.control.load(Ordering::SeqCst));
            fence(Ordering::SeqCst);
            if control & ERROR != 0 {
                return Err(Failed);
            }
            if control == 0 {
                return Ok(());
            }
            if self.clock.now().saturating_sub(start) > PATIENCE {
                self.clock
                    .stop("QEMU's fw_cfg device does not answer; start the machine again");
            }
            self.clock.relax();
        }
    }
}

impl File {
    fn select(self) -> u32 {
        SELECT | u32::from(self.selector) << 16
    }
}

fn halves(address: usize) -> [u32; 2] {
    let address = address as u64;
    [(address >> 32) as u32, address as u32]
}

/// Up to the first NUL.
fn trimmed(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::{cell::Cell, ptr};
    use std::{boxed::Box, vec::Vec};

    /// QEMU's side of the register, with these files in the order of their selectors.
    struct Device {
        files: Vec<(Vec<u8>, Vec<u8>)>,
        selected: Vec<u8>,
        offset: usize,
        /// Control after a transfer, instead of QEMU's.
        answer: Option<u32>,
    }

    impl Device {
        fn new(files: &[(&[u8], &[u8])]) -> Self {
            Self {
                files: files
                    .iter()
                    .map(|(name, content)| (name.to_vec(), content.to_vec()))
                    .collect(),
                selected: Vec::new(),
                offset: 0,
                answer: None,
            }
        }

        fn directory(&self) -> Vec<u8> {
            let mut bytes = (self.files.len() as u32).to_be_bytes().to_vec();
            for ((name, content), selector) in self.files.iter().zip(0x20u16..) {
                bytes.extend((content.len() as u32).to_be_bytes());
                bytes.extend(selector.to_be_bytes());
                bytes.extend([0; 2]);
                bytes.extend_from_slice(name);
                bytes.resize(bytes.len().next_multiple_of(64) + 4, 0);
            }
            bytes
        }
    }

    impl Register for Device {
        fn read(&self) -> [u32; 2] {
            [u32::from_be_bytes(*b"QEMU"), u32::from_be_bytes(*b" CFG")]
        }

        fn write(&mut self, [high, low]: [u32; 2]) {
            let address = (u64::from(high) << 32 | u64::from(low)) as usize;
            let access = ptr::with_exposed_provenance::<Access>(address);
            // SAFETY: the client passes the address of its request.
            let access = unsafe { &*access };
            let control = u32::from_be(access.control.load(Ordering::SeqCst));
            if control & SELECT != 0 {
                self.selected = match (control >> 16) as u16 {
                    DIRECTORY => self.directory(),
                    selector => self.files[usize::from(selector) - 0x20].1.clone(),
                };
                self.offset = 0;
            }
            let length = access.length.get() as usize;
            let [high, low] = access.address.map(|half| u64::from(half.get()));
            let memory = ptr::with_exposed_provenance_mut::<u8>((high << 32 | low) as usize);
            let left = self.selected.get(self.offset..).unwrap_or_default();
            if control & READ != 0 {
                let mut bytes = left[..left.len().min(length)].to_vec();
                bytes.resize(length, 0);
                // SAFETY: the client lends this memory for the transfer.
                unsafe { memory.copy_from(bytes.as_ptr(), length) };
            }
            self.offset += length;
            access
                .control
                .store(self.answer.unwrap_or(0).to_be(), Ordering::SeqCst);
        }
    }

    /// A clock that advances by a second at each read.
    struct Seconds(Cell<u64>);

    impl Clock for Seconds {
        fn now(&self) -> Duration {
            self.0.set(self.0.get() + 1);
            Duration::from_secs(self.0.get())
        }

        fn stop(&self, why: &str) -> ! {
            panic!("{why}")
        }
    }

    fn open(device: Device) -> FwCfg<Device, Seconds> {
        // SAFETY: `Device` follows the interface, in the memory of this process.
        unsafe { FwCfg::find(device, Seconds(Cell::new(0))) }.unwrap()
    }

    #[test]
    fn a_file_is_found_by_its_whole_name_and_read() {
        let mut device = open(Device::new(&[
            (b"etc/e8200", b"no"),
            (b"etc/e820", b"yes!"),
            (b"etc/e82", b"no"),
        ]));
        let file = device.file(b"etc/e820").unwrap();
        assert_eq!(file.size, 4);
        let mut content = [0xff; 6];
        device.read(file, &mut content).unwrap();
        assert_eq!(&content, b"yes!\0\0");
        assert_eq!(device.file(b"etc/e8"), None);

        let names: Vec<_> = (0..40).map(|n| std::format!("opt/{n}")).collect();
        let files = names.iter().map(|name| (name.as_bytes(), name.as_bytes()));
        let mut device = open(Device::new(&files.collect::<Vec<_>>()));
        for name in &names {
            let file = device.file(name.as_bytes()).unwrap();
            let mut content = std::vec![0; file.size as usize];
            device.read(file, &mut content).unwrap();
            assert_eq!(content, name.as_bytes());
        }
        assert_eq!(device.file(b"opt/40"), None);
    }

    #[test]
    fn the_command_line_ends_at_its_nul_and_has_a_limit() {
        let line = |content: &[u8]| {
            let name = COMMAND_LINE.as_bytes();
            let mut device = open(Device::new(&[(name, content)]));
            device.command_line::<8>().map(|line| line.to_vec())
        };
        assert_eq!(line(b"a b\xff"), Ok(b"a b\xff".to_vec()));
        assert_eq!(line(b"a\0b"), Ok(b"a".to_vec()));
        assert_eq!(line(b""), Ok(Vec::new()));
        assert_eq!(line(b"12345678"), Ok(b"12345678".to_vec()));
        assert!(line(b"123456789").unwrap_err().contains(COMMAND_LINE));
        assert!(
            open(Device::new(&[]))
                .command_line::<8>()
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn a_device_that_fails_is_an_error() {
        let mut device = open(Device::new(&[(b"a", b"1")]));
        let file = device.file(b"a").unwrap();
        device.register.answer = Some(ERROR);
        assert_eq!(device.read(file, &mut [0; 1]), Err(Failed));
        assert_eq!(device.file(b"a"), None);
    }

    #[test]
    #[should_panic(expected = "does not answer")]
    fn a_device_that_stays_silent_stops_the_machine() {
        let mut device = open(Device::new(&[(b"a", b"1")]));
        let file = device.file(b"a").unwrap();
        device.register.answer = Some(READ);
        let mut buffer = Box::new([0; 1]);
        _ = device.read(file, &mut *buffer);
    }
}
