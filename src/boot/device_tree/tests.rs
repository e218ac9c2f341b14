use super::{
    blob::{BEGIN_NODE, END, END_NODE, HEADER_BYTES, MAGIC, NOP, PROP},
    *,
};
use crate::boot::{
    memory::MemoryKind,
    testing::{Random, STRIDE, seeds},
};
use dtoolkit::{Node, Property, fdt::Fdt};
use std::{string::ToString, vec, vec::Vec};

const CHOSEN: Chosen<'static> = Chosen {
    command_line: c"root=/dev/vda quiet",
    initrd: Some(Range {
        start: 0x1_4800_0000,
        end: 0x1_4900_0123,
    }),
    machine: None,
};

/// A blob put together token by token.
struct Builder {
    structure: Vec<u8>,
    strings: Vec<u8>,
    reservations: Vec<u8>,
}

impl Builder {
    fn new() -> Self {
        Self {
            structure: vec![],
            strings: vec![],
            reservations: vec![],
        }
    }

    fn token(mut self, token: u32) -> Self {
        self.structure.extend(token.to_be_bytes());
        self
    }

    fn text(mut self, text: &[u8]) -> Self {
        self.structure.extend(text);
        while !self.structure.len().is_multiple_of(4) {
            self.structure.push(0);
        }
        self
    }

    fn begin(self, name: &str) -> Self {
        let name = std::format!("{name}\0");
        self.token(BEGIN_NODE).text(name.as_bytes())
    }

    fn prop(mut self, name: &str, value: &[u8]) -> Self {
        let offset = self.strings.len() as u32;
        self.strings.extend(name.as_bytes());
        self.strings.push(0);
        self.token(PROP)
            .token(value.len() as u32)
            .token(offset)
            .text(value)
    }

    fn end(self) -> Self {
        self.token(END_NODE)
    }

    fn reserve(mut self, start: u64, size: u64) -> Self {
        self.reservations.extend(start.to_be_bytes());
        self.reservations.extend(size.to_be_bytes());
        self
    }

    /// The blob, with `gap` free bytes at its end.
    fn build(self, gap: usize) -> Vec<u8> {
        let mut this = self.token(END);
        this.reservations.extend([0; 16]);
        let structure = HEADER_BYTES + this.reservations.len();
        let strings = structure + this.structure.len();
        let total = strings + this.strings.len() + gap;
        let mut blob = vec![];
        for number in [
            MAGIC as usize,
            total,
            structure,
            strings,
            HEADER_BYTES,
            17,
            16,
            3,
            this.strings.len(),
            this.structure.len(),
        ] {
            blob.extend((number as u32).to_be_bytes());
        }
        blob.extend(this.reservations);
        blob.extend(this.structure);
        blob.extend(this.strings);
        blob.resize(total, 0);
        blob
    }
}

/// A tree much like that of QEMU's virt machine.
fn sample() -> Builder {
    Builder::new()
        .reserve(0x4000_0000, 0x1000)
        .begin("")
        .prop("#address-cells", &[0, 0, 0, 2])
        .token(NOP)
        .begin("chosen")
        .prop("linux,initrd-end", &[1, 2, 3, 4])
        .prop("kaslr-seed", &[7; 8])
        .prop("bootargs", b"old\0")
        .token(NOP)
        .prop("rng-seed", &[9; 32])
        .prop("linux,initrd-start", &[1, 2, 3, 4])
        .prop("stdout-path", b"/pl011@9000000\0")
        .begin("bootargs")
        .prop("bootargs", b"not this\0")
        .end()
        .end()
        .begin("memory@40000000")
        .prop("device_type", b"memory\0")
        .end()
        .end()
}

fn updated(blob: &[u8], chosen: &Chosen<'_>) -> Vec<u8> {
    let size = updated_bytes(blob, chosen).unwrap();
    let mut out = vec![0xa5; size + 8];
    assert_eq!(update(blob, chosen, &mut out), Ok(size));
    assert_eq!(out[size..], [0xa5; 8]);
    out.truncate(size);
    out
}

fn value(blob: &[u8], path: &str, name: &str) -> Option<Vec<u8>> {
    let node = Fdt::new(blob).unwrap().find_node(path)?;
    let property = node.property(name)?;
    Some(property.value().to_vec())
}

#[test]
fn chosen_is_filled_in() {
    let out = updated(&sample().build(0), &CHOSEN);
    let chosen = |name| value(&out, "/chosen", name);
    assert_eq!(chosen("bootargs").unwrap(), b"root=/dev/vda quiet\0");
    assert_eq!(
        chosen("linux,initrd-start").unwrap(),
        0x1_4800_0000_u64.to_be_bytes()
    );
    assert_eq!(
        chosen("linux,initrd-end").unwrap(),
        0x1_4900_0123_u64.to_be_bytes()
    );
}

#[test]
fn everything_else_is_unchanged() {
    let out = updated(&sample().build(0), &CHOSEN);
    let fdt = Fdt::new(&out).unwrap();
    assert_eq!(value(&out, "/chosen", "kaslr-seed").unwrap(), [7; 8]);
    assert_eq!(value(&out, "/chosen", "rng-seed").unwrap(), [9; 32]);
    assert_eq!(
        value(&out, "/chosen", "stdout-path").unwrap(),
        b"/pl011@9000000\0"
    );
    assert_eq!(
        value(&out, "/chosen/bootargs", "bootargs").unwrap(),
        b"not this\0"
    );
    assert_eq!(
        value(&out, "/memory@40000000", "device_type").unwrap(),
        b"memory\0"
    );
    assert_eq!(value(&out, "/", "#address-cells").unwrap(), [0, 0, 0, 2]);
    assert_eq!(fdt.find_node("/chosen").unwrap().properties().count(), 6);
    assert_eq!(fdt.root().children().count(), 2);
    assert_eq!(fdt.boot_cpuid_phys(), 3);
    let reserved: Vec<_> = fdt
        .memory_reservations()
        .map(|r| (r.address(), r.size()))
        .collect();
    assert_eq!(reserved, [(0x4000_0000, 0x1000)]);
}

#[test]
fn without_an_initrd_an_old_one_is_forgotten() {
    let chosen = Chosen {
        initrd: None,
        ..CHOSEN
    };
    let out = updated(&sample().build(0), &chosen);
    assert_eq!(value(&out, "/chosen", "linux,initrd-start"), None);
    assert_eq!(value(&out, "/chosen", "linux,initrd-end"), None);
}

#[test]
fn a_tree_without_chosen_gets_one() {
    let blob = Builder::new()
        .begin("")
        .begin("soc")
        .begin("chosen")
        .end()
        .end()
        .end()
        .build(0);
    let out = updated(&blob, &CHOSEN);
    assert_eq!(
        value(&out, "/chosen", "bootargs").unwrap(),
        b"root=/dev/vda quiet\0"
    );
    assert_eq!(value(&out, "/soc/chosen", "bootargs"), None);
}

#[test]
fn the_node_that_linux_would_use_is_found() {
    let blob = Builder::new()
        .begin("")
        .begin("chosen-not")
        .end()
        .begin("chosen@0")
        .end()
        .end()
        .build(0);
    let out = updated(&blob, &CHOSEN);
    assert!(value(&out, "/chosen@0", "bootargs").is_some());
    assert_eq!(value(&out, "/chosen-not", "bootargs"), None);
    assert_eq!(Fdt::new(&out).unwrap().root().children().count(), 2);
}

fn region(start: u64, size: u64, kind: MemoryKind) -> MemoryRegion {
    MemoryRegion {
        range: Range::with_size(start, size),
        kind,
    }
}

#[test]
fn a_tree_from_a_share_gets_the_machines_memory_and_seeds() {
    let own = sample().build(0);
    let other = Builder::new()
        .begin("")
        .prop("#address-cells", &[0, 0, 0, 2])
        .prop("#size-cells", &[0, 0, 0, 2])
        .begin("memory")
        .prop("reg", &[0; 16])
        .begin("inside")
        .prop("x", b"")
        .end()
        .end()
        .begin("chosen")
        .prop("rng-seed", b"stale")
        .prop("stdout-path", b"/uart\0")
        .end()
        .begin("memory@1234")
        .end()
        .begin("memory-controller")
        .prop("rng-seed", b"no seed")
        .end()
        .end()
        .build(0);
    let memory = [
        region(0x4000_0000, 0x1000_0000, MemoryKind::Usable),
        region(0x5000_0000, 0x1000, MemoryKind::Reserved),
        region(0x1_0000_0000, 0x2_0000_0000, MemoryKind::Usable),
    ];
    let seeds = Seeds::of(&own).unwrap();
    assert_eq!(seeds.rng, Some(&[9; 32][..]));
    assert_eq!(seeds.kaslr, Some(&[7; 8][..]));
    let machine = Some(Machine {
        memory: &memory,
        seeds,
    });
    let out = updated(&other, &Chosen { machine, ..CHOSEN });
    let names: Vec<_> = Fdt::new(&out)
        .unwrap()
        .root()
        .children()
        .map(|node| node.name().to_string())
        .collect();
    assert_eq!(
        names,
        [
            "chosen",
            "memory-controller",
            "memory@40000000",
            "memory@100000000"
        ]
    );
    let reg = |node| value(&out, node, "reg").unwrap();
    let expected = [0x1_0000_0000_u64, 0x2_0000_0000].map(u64::to_be_bytes);
    assert_eq!(reg("/memory@100000000"), expected.concat());
    assert_eq!(
        value(&out, "/memory@40000000", "device_type").unwrap(),
        b"memory\0"
    );
    let chosen = |name| value(&out, "/chosen", name);
    assert_eq!(chosen("rng-seed").unwrap(), [9; 32]);
    assert_eq!(chosen("kaslr-seed").unwrap(), [7; 8]);
    assert_eq!(chosen("stdout-path").unwrap(), b"/uart\0");
    assert_eq!(
        value(&out, "/memory-controller", "rng-seed").unwrap(),
        b"no seed"
    );

    // If the machine has no seeds, those of the file are removed, because they are not secret.
    let machine = Some(Machine {
        memory: &[],
        seeds: Seeds::default(),
    });
    let out = updated(&other, &Chosen { machine, ..CHOSEN });
    assert_eq!(value(&out, "/chosen", "rng-seed"), None);
}

#[test]
fn memory_is_described_in_the_cells_of_the_tree() {
    let with_cells = |address, size| {
        Builder::new()
            .begin("")
            .prop("#address-cells", &[0, 0, 0, address])
            .prop("#size-cells", &[0, 0, 0, size])
            .end()
            .build(0)
    };
    let memory = [region(0x4000_0000, 0x1000, MemoryKind::Usable)];
    let describe = |address, size, memory: &[MemoryRegion]| {
        let machine = Some(Machine {
            memory,
            seeds: Seeds::default(),
        });
        let chosen = Chosen { machine, ..CHOSEN };
        let blob = with_cells(address, size);
        updated_bytes(&blob, &chosen)?;
        Ok(value(&updated(&blob, &chosen), "/memory@40000000", "reg").unwrap())
    };
    assert_eq!(
        describe(1, 1, &memory),
        Ok(std::vec![0x40, 0, 0, 0, 0, 0, 0x10, 0])
    );
    assert_eq!(describe(2, 1, &memory).unwrap().len(), 12);
    for (address, size) in [(0, 1), (3, 1), (2, 0)] {
        assert_eq!(
            describe(address, size, &memory),
            Err(DeviceTreeError::Memory(memory[0].range))
        );
    }
    let high = [region(1 << 32, 0x1000, MemoryKind::Usable)];
    describe(1, 1, &high).unwrap_err();
}

#[test]
fn reservations_are_found_in_both_places() {
    let blob = sample().reserve(0x5000_0000, 0).build(0);
    assert_eq!(
        *reservations(&blob).unwrap(),
        [Range::with_size(0x4000_0000, 0x1000)]
    );
    let blob = |size_cells| {
        Builder::new()
            .reserve(0x4100_0000, 0x2000)
            .begin("")
            .begin("reserved-memory")
            .prop("#address-cells", &[0, 0, 0, 2])
            .prop("#size-cells", &[0, 0, 0, size_cells])
            .prop("ranges", b"")
            .begin("two@48000000")
            .prop(
                "reg",
                &[
                    0, 0, 0, 0, 0x48, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x10, 0,
                ],
            )
            .begin("reg")
            .prop("reg", &[1; 12])
            .end()
            .end()
            .begin("anywhere")
            .prop("size", &[0, 1, 0, 0])
            .end()
            .end()
            .begin("other")
            .begin("node")
            .prop("reg", &[1; 12])
            .end()
            .end()
            .end()
            .build(0)
    };
    assert_eq!(
        *reservations(&blob(1)).unwrap(),
        [
            Range::with_size(0x4100_0000, 0x2000),
            Range::with_size(0x4800_0000, 0x1_0000),
            Range::with_size(0x1_0000_0000, 0x1000),
        ]
    );
    assert!(reservations(&blob(3)).is_err());
    let many = (0..65).fold(sample(), |tree, index| tree.reserve(index << 12, 0x1000));
    assert_eq!(
        reservations(&many.build(0)),
        Err(DeviceTreeError::TooManyReservations)
    );
}

#[test]
fn free_space_is_not_copied() {
    let tight = updated(&sample().build(0), &CHOSEN);
    // QEMU's is as large; Miri would take minutes.
    let gap = if cfg!(miri) { 1 << 12 } else { 1 << 20 };
    assert_eq!(updated(&sample().build(gap), &CHOSEN), tight);
}

#[test]
fn bytes_after_the_tree_do_not_matter() {
    let mut blob = sample().build(0);
    let tight = updated(&blob, &CHOSEN);
    blob.extend([0xff; 100]);
    assert_eq!(updated(&blob, &CHOSEN), tight);
}

#[test]
fn a_second_update_replaces_the_first() {
    let first = updated(&sample().build(0), &CHOSEN);
    let other = Chosen {
        command_line: c"",
        initrd: Some(Range { start: 1, end: 2 }),
        machine: None,
    };
    let second = updated(&first, &other);
    assert_eq!(value(&second, "/chosen", "bootargs").unwrap(), b"\0");
    let chosen = Fdt::new(&second).unwrap().find_node("/chosen").unwrap();
    assert_eq!(chosen.properties().count(), 6);
}

#[test]
fn too_little_room_is_an_error() {
    let blob = sample().build(0);
    let bytes = updated_bytes(&blob, &CHOSEN).unwrap();
    for room in (0..bytes).step_by(STRIDE) {
        assert_eq!(
            update(&blob, &CHOSEN, &mut vec![0; room]),
            Err(DeviceTreeError::NoRoom { bytes, room })
        );
    }
}

#[test]
fn a_tree_larger_than_linux_accepts_is_refused() {
    let big = vec![0; 2 << 20];
    let blob = Builder::new().begin("").prop("x", &big).end().build(0);
    let error = updated_bytes(&blob, &CHOSEN).unwrap_err();
    assert!(matches!(error, DeviceTreeError::TooLarge { .. }));
    assert!(error.to_string().contains("Linux takes 2097152 at most"));
}

#[test]
fn malformed_trees_are_refused() {
    let refusal = |blob: &[u8]| updated_bytes(blob, &CHOSEN).unwrap_err().to_string();
    assert_eq!(
        refusal(b""),
        "it is not a device tree blob; use what dtc makes of its source"
    );
    let mut old = sample().build(0);
    old[23] = 16;
    assert!(refusal(&old).starts_with("its format is of version 16 and 17 is needed"));
    for (builder, what) in [
        (Builder::new(), "an unknown token"),
        (Builder::new().end(), "an end without a node"),
        (Builder::new().prop("x", b""), "a property without a node"),
        (Builder::new().begin(""), "an unknown token"),
        (
            Builder::new().begin("").end().begin("").end(),
            "a second root",
        ),
        (Builder::new().begin("").token(5), "an unknown token"),
        (
            Builder::new().begin("").token(PROP).token(0).token(1),
            "a property without a name",
        ),
        (
            Builder::new().begin("").token(PROP).token(9).token(0),
            "a value without an end",
        ),
    ] {
        let text = refusal(&builder.build(0));
        assert!(text.contains(what), "{text}");
    }
    // Cut off at any byte.
    let whole = sample().build(0);
    for length in 0..whole.len() {
        updated_bytes(&whole[..length], &CHOSEN).unwrap_err();
    }
}

#[test]
fn a_damaged_tree_gives_an_error_or_a_tree() {
    let whole = sample().build(64);
    let mut out = vec![0; 4096];
    for seed in seeds(30_000) {
        let random = &mut Random::new(seed);
        let mut blob = whole.clone();
        random.damage(&mut blob);
        _ = reservations(&blob);
        _ = Seeds::of(&blob);
        if let Ok(size) = update(&blob, &CHOSEN, &mut out) {
            // The output of a successful update is well-formed.
            updated_bytes(&out[..size], &CHOSEN).unwrap();
        }
    }
}

#[test]
fn a_tree_of_another_machine_is_detected_by_its_compatible() {
    let tree = |compatible: &[u8]| {
        let tree = Builder::new().begin("").prop("model", b"any\0");
        let tree = tree.prop("compatible", compatible).begin("soc");
        let tree = tree
            .prop("compatible", b"of,another-node\0")
            .token(END_NODE);
        tree.token(END_NODE).build(0)
    };
    let virt = tree(b"linux,dummy-virt\0");
    let board = tree(b"radxa,rock-5b\0rockchip,rk3588\0");
    let other = Other::of(&board, &virt).unwrap();
    assert_eq!(
        other.to_string(),
        "it is for radxa,rock-5b and this machine is linux,dummy-virt, whose own device tree is used"
    );
    assert_eq!(Other::of(&virt, &virt), None);
    assert_eq!(
        Other::of(&tree(b"our,board\0linux,dummy-virt\0"), &virt),
        None
    );
    // Without one it is unknown.
    let none = Builder::new().begin("").begin("soc");
    let none = none.prop("compatible", b"x\0").token(END_NODE);
    let none = none.token(END_NODE).build(0);
    assert_eq!(Other::of(&none, &virt), None);
    assert_eq!(Other::of(b"", &virt), None);
}
