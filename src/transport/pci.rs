//! Virtio over PCI, modern devices (virtio 1.2, section 4.1).

mod configuration;
mod ecam;
#[cfg(test)]
mod fake;
mod set_up;
mod transport;

use super::{Address, Device, DeviceFunction, DeviceList, FILE_SYSTEM_DEVICE_ID, TransportError};
use crate::hal::Hal;
use configuration::{
    BUS_NUMBERS, Bars, Functions, command, has_more_roots, is_bridge, set_command,
};
pub use ecam::Ecam;
pub use set_up::set_up;
pub use transport::PciTransport;
use transport::Places;
use virtio_drivers::transport::pci::VIRTIO_VENDOR_ID;
use virtio_drivers::transport::pci::bus::Command;
pub use virtio_drivers::transport::pci::bus::{Cam, ConfigurationAccess, MmioCam};

/// The first PCI device ID of modern devices (section 4.1.2.1).
const MODERN_DEVICE_ID_BASE: u16 = 0x1040;
/// The first configuration word (vendor and device ID) of a modern file system device.
const FILE_SYSTEM_DEVICE: u32 =
    ((MODERN_DEVICE_ID_BASE + FILE_SYSTEM_DEVICE_ID) as u32) << 16 | VIRTIO_VENDOR_ID as u32;
/// Whether the platform accepts device memory at that address and of that size in bytes: it must be
/// mapped, and neither RAM nor another device. A hostile host may place a BAR anywhere.
pub type Accept<'a> = &'a dyn Fn(u64, u64) -> bool;

/// Looks for file system devices on bus 0 and on every bus behind a bridge that has bus numbers. If
/// bus 0 has a second host bridge, all other buses are searched too, because some may be root buses.
///
/// The devices are appended to `found` until it is full, in the order of their bus, device and
/// function numbers, each with the result of [`probe`]. Nothing is written to other functions. On a
/// machine whose firmware has not numbered buses and placed BARs, call [`set_up`] before.
///
/// # Safety
///
/// `configuration` must access the configuration space of a PCI bus that nothing else uses at the
/// same time.
///
/// Memory that `accept` accepts must be mapped as device memory for the rest of the program, at the
/// address that `H::mmio_phys_to_virt` returns, and must have no other user.
///
/// The methods of a transport are safe, but they let the device access any address. So the caller
/// vouches for all that the transports, or wrappers of them, are used with: addresses of queues and
/// buffers must come from a [`Hal`] that fits the device, and the status must be the device's own.
pub unsafe fn scan<H: Hal, C: ConfigurationAccess>(
    configuration: &mut C,
    accept: Accept<'_>,
    found: &mut DeviceList<impl From<PciTransport>>,
) {
    // A secondary bus must have a greater number than its bridge's bus, so one pass in ascending order
    // is enough, and circles are impossible.
    let mut reached = [false; 256];
    for bus in 0..=u8::MAX {
        if bus != 0
            && !reached
                .get(usize::from(bus))
                .is_some_and(|reached| *reached)
        {
            continue;
        }
        let mut functions = Functions::on(bus);
        while let Some(at) = functions.next(configuration) {
            if is_bridge(configuration, at) {
                let behind = (configuration.read_word(at, BUS_NUMBERS) >> 8) as u8;
                match reached.get_mut(usize::from(behind)) {
                    Some(reached) if behind > bus => *reached = true,
                    _ => log::warn!(
                        "nothing is looked for behind the PCI bridge at {at}: its bus has the \
                         number {behind:#04x}"
                    ),
                }
            } else if has_more_roots(configuration, at) {
                reached.fill(true);
            }
            // SAFETY: the caller promises the same, and each function is probed once. Whether functions
            // have different addresses is the host's choice: see `probe`.
            let Some(transport) = (unsafe { probe::<H, C>(configuration, at, accept) }) else {
                continue;
            };
            let device = Device {
                address: Address::Pci(at),
                transport: transport.map(Into::into),
            };
            if found.push(device).is_err() {
                log::warn!("too many file system devices: the one at {at} is not used");
                return;
            }
        }
    }
}

/// Probes one function for a file system device, for platforms that know where it is.
///
/// `None` means that there is no function, or that it is another device. If the device can be used,
/// its address decoding and bus mastering are enabled, and its interrupt pin is disabled.
///
/// # Errors
///
/// For a file system device that cannot be used: [`TransportError::Capability`] or
/// [`TransportError::Bar`].
///
/// # Safety
///
/// As for [`scan`]; and no other transport may use this function.
pub unsafe fn probe<H: Hal, C: ConfigurationAccess>(
    configuration: &mut C,
    function: DeviceFunction,
    accept: Accept<'_>,
) -> Option<Result<PciTransport, TransportError>> {
    if configuration.read_word(function, 0) != FILE_SYSTEM_DEVICE {
        return None;
    }
    let before = command(configuration, function);
    set_command(configuration, function, before & !Command::MEMORY_SPACE);
    let bars = Bars::read(configuration, function);
    let places = Places::find(configuration, function, &bars, accept);
    let enabled = Command::MEMORY_SPACE | Command::BUS_MASTER | Command::INTERRUPT_DISABLE;
    let after = match places {
        Ok(_) => before | enabled,
        Err(_) => before,
    };
    set_command(configuration, function, after);
    // SAFETY: `Places` are in device memory that the caller promised to be mapped, without other users
    // than functions to which a hostile host gives the same addresses. Their transports then have
    // pointers to the same registers, but access these by single volatile loads and stores only, and
    // the registers are the host's own. Address decoding is enabled.
    Some(places.and_then(|places| unsafe { PciTransport::new::<H>(places) }))
}

#[cfg(test)]
mod tests {
    use super::{
        configuration::{Bar, CAPABILITIES, COMMAND, MAX_CAPABILITIES, capabilities},
        fake::{Bus, Function, Machine},
        *,
    };
    use crate::transport::{DeviceStatus, FsTransport, InterruptStatus, Transport};
    use core::iter;
    use core::sync::atomic::{AtomicU16, Ordering::Relaxed};
    use std::vec::Vec;
    use virtio_drivers::transport::pci::{
        VIRTIO_PCI_CAP_COMMON_CFG, VIRTIO_PCI_CAP_DEVICE_CFG, VIRTIO_PCI_CAP_ISR_CFG,
        VIRTIO_PCI_CAP_NOTIFY_CFG,
    };

    fn at(bus: u8, device: u8, function: u8) -> DeviceFunction {
        DeviceFunction {
            bus,
            device,
            function,
        }
    }

    #[test]
    fn functions_are_probed_only_where_they_can_exist() {
        let mut machine = Machine::default();
        for (device, function, what) in [
            (0, 0, Function::device()),
            (0, 1, Function::device()), // not where there is one function
            (2, 3, Function::device()), // not where there is no first one
            (31, 0, Function::bridge().with_others()),
            (31, 2, Function::device()),
            (31, 7, Function::device()),
        ] {
            machine.add(Bus::Root(0), device, function, what);
        }
        let mut functions = Functions::on(0);
        let found: Vec<_> = iter::from_fn(|| functions.next(&machine)).collect();
        assert_eq!(
            found,
            [at(0, 0, 0), at(0, 31, 0), at(0, 31, 2), at(0, 31, 7)]
        );
        let read = machine.read.borrow();
        let can_be_there =
            |at: &DeviceFunction| at.device < 31 && at.function == 0 || at.device == 31;
        assert!(read.iter().all(can_be_there));
    }

    /// Finds all file system devices and refuses them: no memory is accepted.
    fn scan_all(machine: &mut Machine) -> Vec<DeviceFunction> {
        let mut found = DeviceList::<PciTransport>::new();
        // SAFETY: only this test uses the machine, and no memory is accepted.
        unsafe { scan::<crate::hal::IdentityHal, _>(machine, &|_, _| false, &mut found) };
        let address = |device: &Device<_>| match device.address {
            Address::Pci(at) => at,
            other => panic!("{other}"),
        };
        found.iter().map(address).collect()
    }

    fn number(machine: &mut Machine, bridge: usize, numbers: [u8; 3]) {
        let [own, behind, last] = numbers;
        let numbers = u32::from_le_bytes([own, behind, last, 0]);
        machine.functions[bridge].words.insert(BUS_NUMBERS, numbers);
    }

    #[test]
    fn numbered_buses_are_searched_and_nothing_is_written_but_to_the_devices() {
        let mut machine = Machine::default();
        let bridge = machine.add(Bus::Root(0), 1, 0, Function::bridge());
        let inner = machine.add(Bus::Behind(bridge), 0, 0, Function::bridge());
        machine.add(
            Bus::Behind(inner),
            5,
            0,
            Function::device().with_bar(4, 0x4000, 0b1100),
        );
        machine.add(Bus::Root(0), 9, 0, Function::device());
        number(&mut machine, bridge, [0, 4, 7]);
        number(&mut machine, inner, [4, 6, 6]);
        let before = machine.functions.clone();
        assert_eq!(scan_all(&mut machine), [at(0, 9, 0), at(6, 5, 0)]);
        // Two of them have no address, so the attempt was undone.
        for (after, before) in machine.functions.iter().zip(&before) {
            for (register, word) in &after.words {
                assert_eq!(*word, before.word(*register));
            }
        }
    }

    #[test]
    fn bridges_to_earlier_or_missing_buses_are_skipped() {
        for behind in [0, 1, 2] {
            let mut machine = Machine::default();
            let first = machine.add(Bus::Root(0), 1, 0, Function::bridge());
            let second = machine.add(Bus::Behind(first), 1, 0, Function::bridge());
            let third = machine.add(Bus::Behind(second), 1, 0, Function::bridge());
            machine.add(Bus::Behind(third), 1, 0, Function::device());
            number(&mut machine, first, [0, 1, 255]);
            number(&mut machine, second, [1, 2, 255]);
            number(&mut machine, third, [2, behind, 255]);
            assert_eq!(scan_all(&mut machine), []);
            assert!(machine.read.borrow().len() < 3 * 64);
        }
    }

    #[test]
    fn other_root_buses_are_searched_if_there_is_a_second_host_bridge() {
        let mut machine = Machine::default();
        let host_bridge = machine.add(Bus::Root(0), 0, 0, Function::host_bridge());
        machine.add(Bus::Root(0x40), 3, 0, Function::device());
        assert_eq!(scan_all(&mut machine), []);
        // Nor for a function below a bridge, where the same bits mean something else.
        let second = machine.functions[host_bridge].clone();
        let bridge = machine.add(Bus::Root(0), 1, 0, Function::bridge());
        number(&mut machine, bridge, [0, 1, 1]);
        machine.add(Bus::Behind(bridge), 1, 0, second.clone());
        assert_eq!(scan_all(&mut machine), []);
        machine.add(Bus::Root(0), 7, 0, second);
        assert_eq!(scan_all(&mut machine), [at(0x40, 3, 0)]);
    }

    /// All structures in a BAR of memory.
    fn device() -> Function {
        Function::device()
            .with_bar(4, 0x4000, 0b1100)
            .with_capability(VIRTIO_PCI_CAP_COMMON_CFG, 4, [0, 0x1000, 0])
            .with_capability(VIRTIO_PCI_CAP_ISR_CFG, 4, [0x1000, 0x1000, 0])
            .with_capability(VIRTIO_PCI_CAP_DEVICE_CFG, 4, [0x2000, 0x1000, 0])
            .with_capability(VIRTIO_PCI_CAP_NOTIFY_CFG, 4, [0x3000, 0x1000, 4])
    }

    /// The places of the structures of a device whose BAR 4 is at 4 GiB.
    fn places(mut device: Function) -> Result<Places, TransportError> {
        device.words.insert(Bar::register(5), 1);
        let mut machine = Machine::default();
        machine.add(Bus::Root(0), 1, 0, device);
        let bars = Bars::read(&mut machine, at(0, 1, 0));
        Places::find(&machine, at(0, 1, 0), &bars, &|address, size| {
            (address, size) == (1 << 32, 0x4000)
        })
    }

    #[test]
    fn the_first_capability_of_a_kind_that_can_be_used_counts() {
        let place = places(device()).unwrap().notify;
        assert_eq!(
            (place.address, place.length, place.multiplier),
            ((1 << 32) + 0x3000, 0x1000, 4)
        );
        // Before it: notifications through an I/O BAR, in a BAR that does not exist, outside of the
        // BAR, too few, at an odd offset.
        let device = device()
            .with_bar(2, 0x20, 1)
            .with_capability(VIRTIO_PCI_CAP_NOTIFY_CFG, 2, [0, 4, 0])
            .with_capability(VIRTIO_PCI_CAP_NOTIFY_CFG, 6, [0, 0x1000, 4])
            .with_capability(VIRTIO_PCI_CAP_NOTIFY_CFG, 4, [0x3004, 0x1000, 4])
            .with_capability(VIRTIO_PCI_CAP_NOTIFY_CFG, 4, [0, 1, 4])
            .with_capability(VIRTIO_PCI_CAP_NOTIFY_CFG, 4, [0, 0x1000, 3]);
        assert_eq!(places(device).unwrap().notify.address, (1 << 32) + 0x3000);
        // Nor is a capability of another vendor used, or one without a multiplier.
        for (at, byte) in [(0, 0x0a), (2, 16)] {
            let mut device =
                self::device().with_capability(VIRTIO_PCI_CAP_NOTIFY_CFG, 4, [0x3800, 0x100, 8]);
            let first = device.word(CAPABILITIES) as u8;
            let mut header = device.word(first).to_le_bytes();
            header[at] = byte;
            device.words.insert(first, u32::from_le_bytes(header));
            assert_eq!(places(device).unwrap().notify.address, (1 << 32) + 0x3000);
        }
        // Before all of them, a usable one.
        let better =
            self::device().with_capability(VIRTIO_PCI_CAP_NOTIFY_CFG, 4, [0x3800, 0x100, 8]);
        let place = places(better).unwrap().notify;
        assert_eq!((place.address, place.multiplier), ((1 << 32) + 0x3800, 8));
    }

    #[test]
    fn a_device_without_a_usable_structure_is_reported_with_its_first_fault() {
        let none = Function::device().with_bar(4, 0x4000, 0b1100);
        let fault = places(none.clone()).err();
        assert_eq!(
            fault,
            Some(TransportError::Capability("common configuration"))
        );
        let wrong = none
            .with_capability(VIRTIO_PCI_CAP_COMMON_CFG, 1, [0, 0x1000, 0])
            .with_capability(VIRTIO_PCI_CAP_COMMON_CFG, 4, [0x3001, 0x800, 0]);
        let address = 1 << 32;
        assert_eq!(
            places(wrong).err(),
            Some(TransportError::Bar { bar: 4, address })
        );
    }

    #[test]
    fn structures_with_the_same_registers_are_refused() {
        // In front of the others, so it is the one that counts.
        let overlapping = |kind, offset| {
            let place = [offset, 0x1000, 0];
            let device = device().with_capability(kind, 4, place);
            places(device).err() == Some(TransportError::Overlap)
        };
        for (kind, own) in [
            (VIRTIO_PCI_CAP_COMMON_CFG, 0),
            (VIRTIO_PCI_CAP_ISR_CFG, 0x1000),
            (VIRTIO_PCI_CAP_DEVICE_CFG, 0x2000),
            (VIRTIO_PCI_CAP_NOTIFY_CFG, 0x3000),
        ] {
            for offset in [0, 0x1000, 0x2000, 0x3000] {
                assert_eq!(
                    overlapping(kind, offset),
                    offset != own,
                    "{kind} {offset:#x}"
                );
            }
        }
        assert!(overlapping(VIRTIO_PCI_CAP_ISR_CFG, 0xffc));
    }

    #[test]
    fn memory_that_the_platform_does_not_accept_is_not_used() {
        let device = device().with_bar(4, 0x8000, 0b1100);
        let fault = places(device).err();
        let address = 1 << 32;
        assert_eq!(fault, Some(TransportError::Bar { bar: 4, address }));
    }

    #[test]
    fn circular_capability_lists_end() {
        let mut device = device();
        let first = device.word(CAPABILITIES);
        device.words.insert(0x40, 0x09 | first << 8);
        let mut machine = Machine::default();
        machine.add(Bus::Root(0), 1, 0, device);
        assert_eq!(
            capabilities(&machine, at(0, 1, 0)).count(),
            MAX_CAPABILITIES
        );
    }

    #[test]
    fn reading_bars_does_not_change_them() {
        let device = Function::device()
            .with_bar(0, 0x1000, 0)
            .with_bar(1, 0x20, 1)
            .with_bar(2, 1 << 33, 0b1100)
            .with_bar(5, 0x1000, 0b100); // its upper half would be beyond the last one
        let mut machine = Machine::default();
        let index = machine.add(Bus::Root(0), 1, 0, device);
        machine.functions[index].words.insert(Bar::register(3), 6);
        let before = machine.functions[index].clone();
        let Bars(bars) = Bars::read(&mut machine, at(0, 1, 0));
        let bars = bars.map(|bar| bar.map(|bar| (bar.address, bar.size)));
        assert_eq!(
            bars,
            [
                Some((0, 0x1000)),
                None,
                Some((6 << 32, 1 << 33)),
                None,
                None,
                None
            ]
        );
        for (register, word) in &machine.functions[index].words {
            assert_eq!(*word, before.word(*register), "{register:#x}");
        }
        // Both halves of an address are written.
        let address = 10 << 32;
        let moved = Bar::read(&mut machine, at(0, 1, 0), 2).unwrap();
        Bar { address, ..moved }.write(&mut machine, at(0, 1, 0), 2);
        let moved = Bar::read(&mut machine, at(0, 1, 0), 2).unwrap();
        assert_eq!(moved.address, address);
    }

    /// Device memory of 16 KiB: ordinary memory, aligned as a BAR must be.
    #[repr(align(0x4000))]
    struct Memory([AtomicU16; 0x2000]);

    impl Memory {
        fn new() -> Self {
            Self([const { AtomicU16::new(0) }; 0x2000])
        }

        fn get(&self, offset: usize) -> u16 {
            self.0[offset / 2].load(Relaxed)
        }

        fn set(&self, offset: usize, value: u16) {
            self.0[offset / 2].store(value, Relaxed);
        }
    }

    /// Probes [`device`] with its structures in `memory`. Also returns the command register before and
    /// after.
    fn probe_in(memory: &Memory) -> (Result<PciTransport, TransportError>, [u32; 2]) {
        let address = core::ptr::from_ref(memory).expose_provenance() as u64;
        let mut device = device();
        let bars = [address as u32 | 0b1100, (address >> 32) as u32];
        device
            .words
            .extend([4, 5].map(Bar::register).into_iter().zip(bars));
        *device.words.entry(COMMAND).or_default() |= 0b1;
        let mut machine = Machine::default();
        machine.add(Bus::Root(0), 1, 0, device);
        let before = machine.functions[0].word(COMMAND);
        let accept = |start, size| (start, size) == (address, 0x4000);
        // SAFETY: the registers are atomics in ordinary memory, which outlive the transport.
        let transport =
            unsafe { probe::<crate::hal::IdentityHal, _>(&mut machine, at(0, 1, 0), &accept) };
        let after = machine.functions[0].word(COMMAND);
        let transport = transport.expect("a file system device");
        (transport, [before, after].map(|word| word & 0xffff))
    }

    #[test]
    fn each_call_reaches_its_registers() {
        let memory = Memory::new();
        let get = |offset| memory.get(offset);
        let set = |offset, value| memory.set(offset, value);
        set(18, 9); // queues, of which 8 can be used
        set(30, 5); // the place of a queue's notifications, in units of the multiplier
        let (transport, command) = probe_in(&memory);
        let mut transport = FsTransport::from(transport.unwrap());
        assert_eq!(command, [0b1, 0b100_0000_0111]);
        assert_eq!(get(22), 7);
        for offset in [4, 6] {
            set(offset, 0x8003); // the same for both halves of the features
        }
        assert_eq!(transport.read_device_features(), 0x8003_8003_8003_8003);
        assert_eq!(get(0), 1);
        transport.write_driver_features(0x3456 << 32 | 0x789a);
        assert_eq!([8, 12, 14].map(get), [1, 0x3456, 0]);
        set(24, 1024);
        assert_eq!(transport.max_queue_size(7), 1024);
        assert_eq!(get(22), 7);
        assert_eq!(transport.max_queue_size(8), 0);
        transport.queue_set(2, 64, 1 << 32 | 0x1000, 2 << 32 | 0x2000, 3 << 32 | 0x3000);
        assert_eq!([22, 24, 28].map(get), [2, 64, 1]);
        let addresses = [32, 36, 40, 44, 48, 52].map(get);
        assert_eq!(addresses, [0x1000, 1, 0x2000, 2, 0x3000, 3]);
        assert!(transport.queue_used(1));
        assert_eq!(get(22), 1);
        set(28, 0);
        assert!(!transport.queue_used(1));
        transport.notify(7);
        assert_eq!(get(0x3000 + 5 * 4), 7);
        transport.notify(8);
        assert_eq!(get(0x3000 + 5 * 4), 7);
        transport.set_status(DeviceStatus::DRIVER);
        assert_eq!(get(20), 2);
        set(20, 9 << 8 | 0x40);
        assert_eq!(transport.get_status(), DeviceStatus::DEVICE_NEEDS_RESET);
        assert_eq!(transport.read_config_generation(), 9);
        set(0x1000, 1);
        assert!(transport.ack_interrupt() == InterruptStatus::QUEUE_INTERRUPT);
        assert_eq!(transport.write_config_space(0xffe, 0xabcd_u16), Ok(()));
        assert_eq!(get(0x2ffe), 0xabcd);
        assert_eq!(transport.read_config_space(0xffe), Ok(0xabcd_u16));
        assert!(!transport.requires_legacy_layout());
    }

    #[test]
    fn a_notification_outside_of_its_structure_is_refused() {
        for (place, usable) in [(0x3ff, true), (0x400, false), (0xffff, false)] {
            let memory = Memory::new();
            memory.set(18, 1);
            memory.set(30, place);
            let fault = probe_in(&memory).0.err();
            let refused = TransportError::Capability("notifications");
            assert_eq!(fault, (!usable).then_some(refused), "{place:#x}");
        }
    }
}
