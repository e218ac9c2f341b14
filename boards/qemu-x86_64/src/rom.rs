//! What PVH would have told, found out by ourselves: the machine reset into our ROM, and nothing
//! ran before.

use crate::{
    chipset,
    clock::Clock,
    e820::{self, Entry},
    fw_cfg::{self, Ports},
    paging, pci,
    start_info::StartInfo,
    table_loader::{self, Files},
};
use bootshare::boot::memory::{MemoryMap, Range};
use bootshare_qemu_fw_cfg::FwCfg;
use core::{ptr, slice};
use zerocopy::IntoBytes;

/// The most memory that ACPI's tables get. QEMU's take some 200 KiB.
const TABLES: u64 = 4 << 20;

type Device = FwCfg<Ports, Clock>;

/// Sets up what a firmware has to, and reads the rest from fw_cfg.
///
/// # Errors
///
/// What is missing, for the person at the console.
///
/// # Safety
///
/// To be called once, when nothing but the image uses memory; the first 4 GiB must be mapped.
pub unsafe fn read(clock: Clock) -> Result<StartInfo, &'static str> {
    // SAFETY: this is called once, and nothing else uses the device.
    let device = unsafe { fw_cfg::open(clock) };
    let mut device = device.ok_or("there is no fw_cfg device; this ROM is for QEMU")?;
    let mut memory_map = read_memory_map(&mut device)?;
    // Before the tables: QEMU makes them when they are read, of what is set up by then.
    if let Some(mut pci) = pci::Ports::find() {
        e820::reserve(&mut memory_map, chipset::set_up(&mut pci)?)?;
    }
    // SAFETY: the map is QEMU's, and only the image uses memory, as the caller says.
    let rsdp = unsafe { load_tables(&mut device, &mut memory_map) }?;
    Ok(StartInfo {
        command_line: device.command_line()?,
        memory_map,
        rsdp,
    })
}

fn read_memory_map(device: &mut Device) -> Result<MemoryMap, &'static str> {
    let file = device
        .file(e820::FILE)
        .ok_or("QEMU tells no memory map (fw_cfg file etc/e820)")?;
    let mut entries = e820::empty();
    let count = file.size as usize / size_of::<Entry>();
    let entries = entries.get_mut(..count).ok_or(e820::TOO_LONG)?;
    device
        .read(file, entries.as_mut_bytes())
        .map_err(|_| "the fw_cfg file etc/e820 can't be read")?;
    e820::memory_map(entries)
}

/// Puts ACPI's tables to the end of the memory below 4 GiB, and answers with the address of their
/// root pointer, or 0 if there are none.
///
/// # Safety
///
/// Usable memory must be RAM that nothing but the image uses, mapped to its addresses.
unsafe fn load_tables(
    device: &mut Device,
    memory_map: &mut MemoryMap,
) -> Result<u64, &'static str> {
    let range = e820::top(memory_map, paging::image().end, TABLES)
        .ok_or("there is no memory for ACPI's tables; give the machine more")?;
    let start = ptr::with_exposed_provenance_mut(range.start as usize);
    // SAFETY: usable memory below 4 GiB and above the image, so mapped and used by nobody. RAM
    // holds bytes, whatever they are. What the tables take is usable no more when this returns,
    // and the slice is gone.
    let memory = unsafe { slice::from_raw_parts_mut(start, range.size() as usize) };
    match table_loader::load(device, range.start, memory)? {
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
