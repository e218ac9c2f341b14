//! The editor of device trees, compared with a separate reader.

use crate::source::Source;
use bootshare::boot::{
    device_tree::{
        Chosen, DeviceTreeError, MAX_BYTES, Machine, Matching, Seeds, reservations, update,
        updated_bytes,
    },
    memory::{MemoryKind, MemoryRegion, Range},
};
use std::ffi::CString;

pub fn update_tree(mut source: Source<'_>) {
    let room = usize::from(source.u16());
    let command_line: Vec<u8> = source.short_bytes().to_vec();
    let command_line: Vec<u8> = command_line.into_iter().filter(|&byte| byte != 0).collect();
    let command_line = CString::new(command_line).expect("it has no NUL");
    let initrd = source.flag().then(|| Range {
        start: source.edge(),
        end: source.edge(),
    });
    let blob = source.rest();
    let chosen = Chosen {
        command_line: &command_line,
        initrd,
        machine: None,
    };
    _ = reservations(blob);
    from_elsewhere(blob, &chosen);
    let bytes = match updated_bytes(blob, &chosen) {
        Ok(bytes) => bytes,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert_eq!(update(blob, &chosen, &mut [0; 64]), Err(error));
            return;
        }
    };
    assert!(bytes <= MAX_BYTES);

    let mut small = vec![0; room];
    let expected = if room < bytes {
        Err(DeviceTreeError::NoRoom { bytes, room })
    } else {
        Ok(bytes)
    };
    assert_eq!(update(blob, &chosen, &mut small), expected);

    let mut out = vec![0xa5; bytes + 8];
    assert_eq!(update(blob, &chosen, &mut out), Ok(bytes));
    assert!(out[bytes..].iter().all(|&byte| byte == 0xa5));
    out.truncate(bytes);

    expect_matching(blob, &Tree::read(blob).events);

    // Everything that was in the tree is still in it, and /chosen has each expected property once.
    let (old, new) = (Tree::read(blob), Tree::read(&out));
    assert_eq!(number(&out, 4), bytes);
    assert_eq!(new.reservations, old.reservations);
    assert_eq!(new.boot_cpu, old.boot_cpu);
    let mut expected = old.events;
    expect_chosen(&mut expected, &chosen);
    assert_eq!(new.events, expected);

    // The result can be updated again, with the same result.
    let mut again = vec![0; bytes + 128];
    if let Ok(size) = update(&out, &chosen, &mut again) {
        assert_eq!(Tree::read(&again[..size]).events, expected);
    } else {
        assert!(bytes + 128 > MAX_BYTES);
    }
}

/// Whether the head of the device tree in this part of a file matches the machine.
pub fn is_tree_for(file: &[u8], tree: Range, machine: &[u8]) -> bool {
    let mut matching = Matching::new(machine, tree.size());
    let answer = (0..64).find_map(|_| {
        let start = tree.start.saturating_add(matching.next_offset());
        let start = usize::try_from(start).unwrap().min(file.len());
        let end = file.len().min(start + Matching::PIECE_BYTES);
        matching.take(&file[start..end])
    });
    answer.expect("it ends")
}

/// The head of a tree gives the same result as the whole tree.
fn expect_matching(blob: &[u8], events: &[Event]) {
    let is_for = |machine| is_tree_for(blob, Range::with_size(0, blob.len() as u64), machine);
    let mut names = events.iter().skip(1).map_while(|event| match event {
        Event::Property(name, value) => Some((name, value)),
        _ => None,
    });
    let compatible = names.find(|(name, _)| *name == b"compatible");
    let first = compatible.and_then(|(_, value)| value.split_inclusive(|&byte| byte == 0).next());
    let first = first.and_then(|first| first.strip_suffix(b"\0"));
    match first {
        // The first piece contains the whole list and the property's name.
        Some(first) if events[0] == Event::Begin(Vec::new()) && number(blob, 36) < 200 => {
            assert!(is_for(first));
        }
        Some(_) => {}
        None => assert!(!is_for(b"acme,other")),
    }
}

/// A tree with the memory and seeds of the running machine can be read, and has both.
fn from_elsewhere(blob: &[u8], chosen: &Chosen<'_>) {
    let seeds = match Seeds::of(blob) {
        Ok(seeds) => seeds,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let memory = [MemoryRegion {
        range: Range::with_size(0x4000_0000, 0x1000_0000),
        kind: MemoryKind::Usable,
    }];
    let memory = &memory;
    let machine = Some(Machine { memory, seeds });
    let chosen = Chosen { machine, ..*chosen };
    let mut out = vec![0; blob.len() + 1024];
    let Ok(size) = update(blob, &chosen, &mut out) else {
        return;
    };
    let events = Tree::read(&out[..size]).events;
    let node = Event::Begin(b"memory@40000000".to_vec());
    assert!(events.contains(&node));
    assert_eq!(Seeds::of(&out[..size]), Ok(seeds));
}

#[derive(Clone, Debug, PartialEq)]
enum Event {
    Begin(Vec<u8>),
    End,
    Property(Vec<u8>, Vec<u8>),
}

/// A well-formed tree, read without the library's code.
struct Tree {
    reservations: Vec<u8>,
    events: Vec<Event>,
    boot_cpu: usize,
}

fn number(blob: &[u8], at: usize) -> usize {
    u32::from_be_bytes(blob[at..at + 4].try_into().expect("four bytes")) as usize
}

fn string(bytes: &[u8]) -> Vec<u8> {
    let end = bytes.iter().position(|&byte| byte == 0);
    bytes[..end.expect("a NUL")].to_vec()
}

impl Tree {
    fn read(blob: &[u8]) -> Self {
        assert_eq!(number(blob, 0), 0xd00d_feed);
        let blob = &blob[..number(blob, 4)];
        let structure = &blob[number(blob, 8)..][..number(blob, 36)];
        let strings = &blob[number(blob, 12)..][..number(blob, 32)];
        let reservations = &blob[number(blob, 16)..];
        let count = reservations
            .chunks(16)
            .take_while(|entry| **entry != [0; 16]);
        let reservations = reservations[..16 * (count.count() + 1)].to_vec();
        let mut events = Vec::new();
        let (mut at, mut depth) = (0, 0);
        loop {
            let token = number(structure, at);
            at += 4;
            match token {
                1 => {
                    let name = string(&structure[at..]);
                    at = (at + name.len() + 1).next_multiple_of(4);
                    events.push(Event::Begin(name));
                    depth += 1;
                }
                2 => {
                    events.push(Event::End);
                    depth -= 1;
                }
                3 => {
                    let (size, name) = (number(structure, at), number(structure, at + 4));
                    let value = structure[at + 8..][..size].to_vec();
                    at = (at + 8 + size).next_multiple_of(4);
                    events.push(Event::Property(string(&strings[name..]), value));
                }
                4 => {}
                9 => break,
                _ => panic!("token {token}"),
            }
            assert!(depth >= 0);
        }
        assert_eq!(depth, 0);
        Self {
            reservations,
            events,
            boot_cpu: number(blob, 28),
        }
    }
}

/// Changes `events` to the expected result of the update.
fn expect_chosen(events: &mut Vec<Event>, chosen: &Chosen<'_>) {
    const OURS: [&[u8]; 3] = [b"bootargs", b"linux,initrd-start", b"linux,initrd-end"];
    let mut ours = vec![Event::Property(
        OURS[0].to_vec(),
        chosen.command_line.to_bytes_with_nul().to_vec(),
    )];
    if let Some(initrd) = chosen.initrd {
        let property =
            |name: &[u8], value: u64| Event::Property(name.to_vec(), value.to_be_bytes().to_vec());
        ours.push(property(OURS[1], initrd.start));
        ours.push(property(OURS[2], initrd.end));
    }
    let is_chosen = |name: &[u8]| {
        name.strip_prefix(b"chosen")
            .is_some_and(|rest| rest.is_empty() || rest[0] == b'@')
    };
    let mut depth = 0;
    let mut start = None;
    for (at, event) in events.iter().enumerate() {
        match event {
            Event::Begin(name) => {
                depth += 1;
                if depth == 2 && is_chosen(name) {
                    start = Some(at + 1);
                    break;
                }
            }
            Event::End => depth -= 1,
            Event::Property(..) => {}
        }
    }
    let Some(start) = start else {
        let root_end = events.len() - 1;
        ours.insert(0, Event::Begin(b"chosen".to_vec()));
        ours.push(Event::End);
        events.splice(root_end..root_end, ours);
        return;
    };
    let mut depth = 1;
    let mut at = start;
    while depth > 0 {
        match &events[at] {
            Event::Begin(_) => depth += 1,
            Event::End => depth -= 1,
            Event::Property(name, _) if depth == 1 && OURS.contains(&name.as_slice()) => {
                events.remove(at);
                continue;
            }
            Event::Property(..) => {}
        }
        at += 1;
    }
    events.splice(start..start, ours);
}
