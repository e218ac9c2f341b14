//! Start-up as a ROM: the machine resets into the firmware, so nothing provides the PVH start info,
//! and the firmware finds out the same facts itself.

use crate::{
    chipset,
    clock::Clock,
    e820::{self, EBDA, Entry},
    fw_cfg::{self, Ports},
    paging,
    pci::{self, Configuration},
    placement, slots,
    start_info::StartInfo,
    table_loader::{self, Files},
};
use bootshare::{
    boot::memory::{MAX_REGIONS, MemoryMap, Range},
    transport::pci::set_up,
};
use bootshare_qemu::fw_cfg::FwCfg;
use core::{fmt, ptr, slice};
use zerocopy::{FromZeros, IntoBytes};

/// The greatest size of the memory for ACPI tables. QEMU's tables take about 200 KiB.
const TABLES: u64 = 4 << 20;

/// Why the machine cannot be used.
#[derive(Clone, Copy, Debug)]
pub enum Error {
    /// The ACPI tables cannot be loaded, for this reason.
    Tables(&'static str),
    /// A complete sentence.
    Other(&'static str),
}

impl From<&'static str> for Error {
    fn from(sentence: &'static str) -> Self {
        Self::Other(sentence)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tables(why) => write!(
                f,
                "QEMU's ACPI tables (fw_cfg file etc/table-loader) can't be used: {why}; \
                 try -M ...,acpi=off"
            ),
            Self::Other(sentence) => f.write_str(sentence),
        }
    }
}

type Device = FwCfg<Ports, Clock>;

/// Sets up the chipset as a firmware has to, and reads all other facts from fw_cfg.
///
/// # Errors
///
/// What is missing, as a message for the console.
///
/// # Safety
///
/// Must be called once, while nothing but the image uses memory; the first 4 GiB must be mapped.
pub unsafe fn read(clock: Clock) -> Result<StartInfo, Error> {
    // SAFETY: this is called once, and nothing else uses the device.
    let device = unsafe { fw_cfg::open(clock) };
    let mut device = device.ok_or("there is no fw_cfg device; this ROM is for QEMU")?;
    let mut memory_map = read_memory_map(&mut device)?;
    // This comes before the tables, because QEMU creates the tables when they are read, from the
    // state of the chipset.
    let pci = pci::Ports::find();
    let has_pci = pci.is_some();
    if let Some(mut pci) = pci {
        e820::reserve(&mut memory_map, chipset::set_up(&mut pci)?)?;
        let window = placement::pci_window(&memory_map);
        set_up(&mut Configuration::Ports(pci), window, u8::MAX);
    }
    // SAFETY: the memory map is QEMU's, and only the image uses memory; the caller promises it.
    let rsdp = unsafe { load_tables(&mut device, &mut memory_map) }?;
    if rsdp != 0 {
        // SAFETY: the EBDA is reserved in the memory map, and page 0 is mapped; nobody uses either.
        unsafe { show_rsdp(rsdp) };
    }
    let mut command_line = device.command_line()?;
    if !has_pci && rsdp == 0 {
        // SAFETY: without PCI this is `microvm`; the first 4 GiB are mapped.
        unsafe { slots::name(&mut command_line) }
            .map_err(|_| "the command line is too long; shorten it")?;
    }
    Ok(StartInfo {
        command_line,
        memory_map,
        rsdp,
    })
}

fn read_memory_map(device: &mut Device) -> Result<MemoryMap, Error> {
    let file = device
        .file(b"etc/e820")
        .ok_or("QEMU provides no memory map (fw_cfg file etc/e820); use QEMU 4.0 or later")?;
    let mut entries = [Entry::new_zeroed(); MAX_REGIONS];
    let count = file.size as usize / size_of::<Entry>();
    let entries = entries.get_mut(..count).ok_or(e820::TOO_LONG)?;
    device
        .read(file, entries.as_mut_bytes())
        .map_err(|_| "the fw_cfg file etc/e820 can't be read")?;
    Ok(e820::memory_map(entries)?)
}

/// Loads the ACPI tables to the end of the memory below 4 GiB. Returns the address of their root
/// pointer, or 0 if there are none.
///
/// # Safety
///
/// Usable memory must be RAM that nothing but the image uses, mapped at its physical address.
unsafe fn load_tables(device: &mut Device, memory_map: &mut MemoryMap) -> Result<u64, Error> {
    let range = e820::top(memory_map, paging::image().end, TABLES)
        .ok_or("there is no memory above the firmware; give the machine more")?;
    let start = ptr::with_exposed_provenance_mut(range.start as usize);
    // SAFETY: this is usable memory below 4 GiB and above the image, so it is mapped and unused.
    // RAM holds valid bytes. The memory of the tables is no longer usable when this returns, and
    // the slice is gone.
    let memory = unsafe { slice::from_raw_parts_mut(start, range.size() as usize) };
    match table_loader::load(device, range.start, memory).map_err(Error::Tables)? {
        Some(tables) => {
            let start = tables.memory.start & !(crate::tables::PAGE - 1);
            let taken = Range {
                start,
                ..tables.memory
            };
            e820::reserve(memory_map, taken)?;
            Ok(tables.rsdp)
        }
        None => Ok(0),
    }
}

/// Copies the ACPI root pointer to the extended BIOS data area, where kernels before Linux 5.0, and
/// others that do not get its address, search for it.
///
/// # Safety
///
/// [`EBDA`] and page 0 must be mapped, unused RAM, and the root pointer must be at `rsdp`.
unsafe fn show_rsdp(rsdp: u64) {
    /// The words of the BIOS data area for the EBDA's segment and for the KiB of memory below it.
    const EBDA_SEGMENT: usize = 0x40e;
    const BASE_MEMORY: usize = 0x413;
    /// The size of later revisions; the first revision has 20 bytes.
    const RSDP_BYTES: usize = 36;
    /// The address of the copy, after the byte with the EBDA's size in KiB.
    const COPY: usize = EBDA.start as usize + 16;

    let write = |address: usize, bytes: &[u8]| {
        let target = ptr::with_exposed_provenance_mut::<u8>(address);
        // SAFETY: the caller promises that this RAM is mapped and unused.
        unsafe { target.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    };
    let source = ptr::with_exposed_provenance::<[u8; RSDP_BYTES]>(rsdp as usize);
    // SAFETY: the caller promises the structure; the bytes after a short structure are memory, too.
    write(COPY, &unsafe { source.read_unaligned() });
    write(EBDA.start as usize, &[(EBDA.size() >> 10) as u8]);
    write(EBDA_SEGMENT, &((EBDA.start >> 4) as u16).to_le_bytes());
    write(BASE_MEMORY, &((EBDA.start >> 10) as u16).to_le_bytes());
}

impl Files for Device {
    fn size(&mut self, name: &[u8]) -> Option<usize> {
        Some(self.file(name)?.size as usize)
    }

    fn read(&mut self, name: &[u8], buffer: &mut [u8]) -> bool {
        self.file(name)
            .is_some_and(|file| FwCfg::read(self, file, buffer).is_ok())
    }

    fn write(&mut self, name: &[u8], offset: u32, bytes: &[u8]) -> bool {
        self.file(name)
            .is_some_and(|file| FwCfg::write(self, file, offset, bytes).is_ok())
    }
}
