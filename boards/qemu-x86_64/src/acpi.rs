//! How ACPI powers the machine off: by one register, which its tables name (ACPI 6.5, chapters 5.2,
//! 4.8.3.2 and 4.8.3.7).
//!
//! Pure: physical memory is read through a closure.
#![forbid(unsafe_code)]

use core::mem::size_of;

/// The offset in bytes of the first entry of the RSDT (4 bytes) or XSDT (8 bytes); also the size of the
/// header of every table.
const HEADER_BYTES: u64 = 36;
/// The offset of the table's length in its header.
const LENGTH: u64 = 4;
/// The greatest number of tables that are read, and the greatest size of the DSDT in bytes.
const MAX_TABLES: usize = 64;
const MAX_DSDT: u32 = 1 << 20;

/// Offsets in the FADT (section 5.2.9).
const DSDT: u64 = 40;
const PM1A_CONTROL: u64 = 64;
const FLAGS: u64 = 112;
const X_DSDT: u64 = 140;
const SLEEP_CONTROL: u64 = 244;
/// HW_REDUCED_ACPI: a sleep control register replaces the PM1a control register.
const REDUCED: u32 = 1 << 20;

/// `Name (_S5_, Package () {`: NameOp, the name, PackageOp (section 20.2.5). PkgLength (one
/// byte, whose two highest bits are clear) and NumElements (one byte) follow.
const S5: [u8; 6] = *b"\x08_S5_\x12";

/// The write that powers the machine off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SoftOff {
    /// This value in the 16-bit PM1a control register at this port.
    Port(u16, u16),
    /// This value in the 8-bit sleep control register at this physical address.
    Memory(u64, u8),
}

/// Physical memory. A read fails if the memory does not exist.
struct Memory<'a>(&'a dyn Fn(u64, &mut [u8]) -> bool);

impl Memory<'_> {
    /// The bytes at this offset from the start of a table.
    fn bytes<const N: usize>(&self, table: u64, offset: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        (self.0)(table.checked_add(offset)?, &mut bytes).then_some(bytes)
    }

    fn u32(&self, table: u64, offset: u64) -> Option<u32> {
        self.bytes(table, offset).map(u32::from_le_bytes)
    }

    fn u64(&self, table: u64, offset: u64) -> Option<u64> {
        self.bytes(table, offset).map(u64::from_le_bytes)
    }

    /// The table with this signature, found from the root pointer.
    fn table(&self, rsdp: u64, signature: &[u8; 4]) -> Option<u64> {
        // Revision 0 ends before the 64-bit address.
        let [revision] = self.bytes(rsdp, 15)?;
        let (root, size) = match revision {
            0 => (self.u32(rsdp, 16)?.into(), size_of::<u32>()),
            _ => (self.u64(rsdp, 24)?, size_of::<u64>()),
        };
        let end = u64::from(self.u32(root, LENGTH)?);
        let entries = (HEADER_BYTES..end).step_by(size).take(MAX_TABLES);
        let mut tables = entries.filter_map(|offset| match revision {
            0 => self.u32(root, offset).map(u64::from),
            _ => self.u64(root, offset),
        });
        tables.find(|table| self.bytes(*table, 0) == Some(*signature))
    }

    /// The sleep type for "off": the first element of the package `_S5_`.
    fn s5(&self, dsdt: u64) -> Option<u8> {
        let length = self.u32(dsdt, LENGTH)?.min(MAX_DSDT).into();
        let is_s5 = |offset: &u64| self.bytes(dsdt, *offset) == Some(S5);
        let start = (HEADER_BYTES..length).find(is_s5)?;
        // ZeroOp and OneOp are values themselves; BytePrefix is 0x0a.
        match self.bytes(dsdt, start + S5.len() as u64 + 2)? {
            [0x0a, value] | [value @ 0..=1, _] => Some(value),
            _ => None,
        }
    }
}

/// The write that powers off the machine whose root pointer is at `rsdp`, if the tables contain it.
/// `read` copies from physical memory, or returns `false` if not all of it can be read.
pub fn soft_off(rsdp: u64, read: &dyn Fn(u64, &mut [u8]) -> bool) -> Option<SoftOff> {
    let memory = Memory(read);
    let fadt = memory.table(rsdp, b"FACP")?;
    let length = u64::from(memory.u32(fadt, LENGTH)?);
    let long = memory
        .u64(fadt, X_DSDT)
        .filter(|dsdt| length >= X_DSDT + 8 && *dsdt != 0);
    let dsdt = match long {
        Some(dsdt) => dsdt,
        None => memory.u32(fadt, DSDT)?.into(),
    };
    let kind = memory.s5(dsdt)? & 0b111;
    if memory.u32(fadt, FLAGS)? & REDUCED == 0 {
        // SLP_TYP and SLP_EN (section 4.8.3.2.1).
        let port = memory.u32(fadt, PM1A_CONTROL)?.try_into().ok()?;
        let value = u16::from(kind) << 10 | 1 << 13;
        return (port != 0).then_some(SoftOff::Port(port, value));
    }
    if length < SLEEP_CONTROL + 12 {
        return None;
    }
    // A generic address starts with its address space: 0 is memory (section 5.2.3.2).
    let space: [u8; 1] = memory.bytes(fadt, SLEEP_CONTROL)?;
    let address = memory.u64(fadt, SLEEP_CONTROL + 4)?;
    // SLP_TYPx and SLP_EN (section 4.8.3.7).
    (space == [0]).then_some(SoftOff::Memory(address, kind << 2 | 1 << 5))
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: u64 = 0x1000;

    /// A machine's tables.
    struct Tables {
        bytes: Vec<u8>,
    }

    impl Tables {
        fn add(&mut self, bytes: &[u8]) -> u64 {
            let address = AT + self.bytes.len() as u64;
            self.bytes.extend(bytes);
            address
        }

        fn table(&mut self, signature: &[u8; 4], content: &[u8]) -> u64 {
            let length = HEADER_BYTES as u32 + content.len() as u32;
            let mut header = [0; HEADER_BYTES as usize];
            header[..4].copy_from_slice(signature);
            header[4..8].copy_from_slice(&length.to_le_bytes());
            self.add(&[&header, content].concat())
        }

        fn soft_off(&self, rsdp: u64) -> Option<SoftOff> {
            soft_off(rsdp, &|address, buffer| {
                let start = address.checked_sub(AT).map(|start| start as usize);
                let bytes = start.and_then(|start| self.bytes.get(start..start + buffer.len()));
                bytes.is_some_and(|bytes| {
                    buffer.copy_from_slice(bytes);
                    true
                })
            })
        }
    }

    /// A FADT of so many bytes with these values at these offsets, and a DSDT.
    fn machine(xsdt: bool, length: u64, fields: &[(u64, &[u8])], aml: &[u8]) -> Option<SoftOff> {
        let mut tables = Tables { bytes: Vec::new() };
        let dsdt = tables.table(b"DSDT", aml);
        let mut fadt = vec![0; (length - HEADER_BYTES) as usize];
        let dsdt = (dsdt as u32).to_le_bytes();
        for (offset, bytes) in fields.iter().copied().chain([(DSDT, &dsdt[..])]) {
            fadt[(offset - HEADER_BYTES) as usize..][..bytes.len()].copy_from_slice(bytes);
        }
        let other = tables.table(b"APIC", &[]);
        let fadt = tables.table(b"FACP", &fadt);
        let mut rsdp = [0; 36];
        if xsdt {
            let root = tables.table(b"XSDT", &[other, fadt].map(u64::to_le_bytes).concat());
            rsdp[15] = 2;
            rsdp[24..32].copy_from_slice(&root.to_le_bytes());
        } else {
            let entries = [other, fadt].map(|table| (table as u32).to_le_bytes());
            let root = tables.table(b"RSDT", &entries.concat());
            rsdp[16..20].copy_from_slice(&(root as u32).to_le_bytes());
        }
        let rsdp = tables.add(&rsdp);
        tables.soft_off(rsdp)
    }

    const PORT: [u8; 4] = 0x604_u32.to_le_bytes();
    const ZEROS: &[u8] = b"\x10\x01\x08_S5_\x12\x06\x04\0\0\0\0";

    #[test]
    fn pm1a_control_is_where_the_fadt_says() {
        let off = machine(false, 116, &[(PM1A_CONTROL, &PORT)], ZEROS);
        assert_eq!(off, Some(SoftOff::Port(0x604, 1 << 13)));
        let five = b"\x08_S5_\x12\x07\x04\x0a\x05\0\0\0";
        let off = machine(true, 244, &[(PM1A_CONTROL, &PORT)], five);
        assert_eq!(off, Some(SoftOff::Port(0x604, 5 << 10 | 1 << 13)));
        assert_eq!(machine(false, 116, &[], ZEROS), None, "there is no port");
    }

    #[test]
    fn hardware_reduced_acpi_has_a_sleep_control_register() {
        let five = b"\x08_S5_\x12\x07\x04\x0a\x05\0\0\0";
        let flags = REDUCED.to_le_bytes();
        let register = |space, address: u64| {
            let generic = [&[space, 8, 0, 1][..], &address.to_le_bytes()].concat();
            let fields: [(u64, &[u8]); 2] = [(FLAGS, &flags), (SLEEP_CONTROL, &generic)];
            machine(true, 268, &fields, five)
        };
        let value = 5 << 2 | 1 << 5;
        let memory = SoftOff::Memory(0xfea0_0200, value);
        assert_eq!(register(0, 0xfea0_0200), Some(memory));
        assert_eq!(register(1, 0x604), None);
        assert_eq!(machine(true, 244, &[(FLAGS, &flags)], five), None);
    }

    #[test]
    fn missing_values_are_not_invented() {
        let fields: [(u64, &[u8]); 1] = [(PM1A_CONTROL, &PORT)];
        assert_eq!(
            machine(false, 116, &fields, b"\x08_S4_\x12\x06\x04\0"),
            None
        );
        assert_eq!(
            machine(false, 116, &fields, b"\x08_S5_\x12\x06\x04\x0c\0"),
            None
        );
        let nothing = Tables { bytes: Vec::new() };
        assert_eq!(nothing.soft_off(AT), None);
    }
}
