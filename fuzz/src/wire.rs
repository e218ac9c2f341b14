//! The wire format: replies with any bytes, requests with any name.

use crate::source::Source;
use bootshare::fuse::{
    Attr, Destroy, Dirents, Entry, Forget, GetAttr, Handle, Init, LISTED_NAME_MAX, Lookup,
    NAME_MAX, NodeId, OFFSET_MAX, Open, Operation, REPLY_HEADER, REQUEST_HEADER, Read, ReadLink,
    Release, ReplyError, StatFs, TARGET_MAX, Unique, decode, encode,
};
use std::fmt::Debug;

/// Decodes a reply, a listing, or encodes a request.
pub fn wire(input: &[u8]) {
    let mut source = Source::new(input);
    match source.below(14) {
        0 => reply(source, &Init, |session, _| {
            assert!((31..=99).contains(&session.minor), "{session:?}");
        }),
        1 => reply(source, &lookup(b"name"), |entry, _| {
            if let Some(entry) = entry {
                assert_ne!(entry.node, NodeId::ROOT);
                _ = entry.attr.inspect(check_attr);
            }
        }),
        2 => reply(source, &GetAttr { node: NodeId::ROOT }, |attr, _| {
            check_attr(attr);
        }),
        kind @ (3 | 4) => {
            let (node, is_dir) = (NodeId::ROOT, kind == 4);
            reply(source, &Open { node, is_dir }, |_, _| ());
        }
        5 => reply(source, &StatFs { node: NodeId::ROOT }, |_, _| ()),
        kind @ (6 | 7) => {
            let read = Read {
                node: NodeId::ROOT,
                handle: handle(7),
                offset: 0,
                size: 4096,
                is_dir: kind == 7,
            };
            reply(source, &read, |&size, length| assert_eq!(size, length));
        }
        8 => reply(source, &ReadLink { node: NodeId::ROOT }, |&size, length| {
            assert_eq!(size, length);
            assert!((1..=TARGET_MAX).contains(&size));
        }),
        9 => {
            let (node, handle) = (NodeId::ROOT, handle(7));
            let release = Release {
                node,
                handle,
                is_dir: source.clone().flag(),
            };
            reply(source, &release, |_, _| ());
        }
        10 => {
            let node = NodeId::ROOT;
            reply(source.clone(), &Destroy, |_, _| ());
            reply(source, &Forget { node, nlookup: 1 }, |_, _| ());
        }
        11 => listing(source.rest()),
        12 => lookup_request(source),
        _ => requests(source),
    }
}

fn lookup(name: &[u8]) -> Lookup<'_> {
    Lookup {
        parent: NodeId::ROOT,
        name,
    }
}

/// Decodes the rest of the input as the reply to `operation`. `check` gets a good reply, and the number of bytes
/// after the header that it claims.
fn reply<O: Operation>(mut source: Source<'_>, operation: &O, check: impl Fn(&O::Reply, usize))
where
    O::Reply: PartialEq + Debug,
{
    let repairs = source.u8();
    let data_size = usize::from(source.u16());
    let mut used = source.u32();
    let unique = Unique::FIRST.next();
    let mut bytes = source.rest().to_vec();
    if bytes.len() >= REPLY_HEADER {
        repair::<O>(repairs, data_size, &mut bytes);
        if repairs & 8 != 0 {
            used = u32_at(&bytes, 0);
        }
    }

    let result = decode(operation, unique, &bytes, data_size, used);
    let Some((header, _)) = bytes.split_at_checked(REPLY_HEADER) else {
        assert!(matches!(result, Err(ReplyError::Malformed(_))));
        return;
    };
    let length = u32_at(header, 0);
    let error = u32_at(header, 4).cast_signed();
    let claimed = (length as usize).wrapping_sub(REPLY_HEADER);
    if let Ok(_) | Err(ReplyError::Server(_)) = result {
        assert!(used == 0 || used == length);
        assert!(length as usize >= REPLY_HEADER);
        assert_eq!(u64_at(header, 8), 4);
    }
    match &result {
        Ok(good) => {
            assert_eq!(error, 0);
            assert!(claimed <= O::REPLY_SIZE + data_size);
            assert!(claimed.min(O::REPLY_SIZE) <= bytes.len() - REPLY_HEADER);
            check(good, claimed);
        }
        Err(ReplyError::Server(errno)) => {
            assert_eq!(claimed, 0);
            assert_eq!(i32::from(errno.get()), -error);
            assert!((1..=4095).contains(&errno.get()));
            shown(errno);
        }
        Err(ReplyError::Malformed(violation)) => shown(violation),
    }
    // Bytes after the reply in its buffer, for example from an earlier reply, do not belong to it.
    if let Some(behind) = bytes.get_mut(REPLY_HEADER.max(length as usize)..) {
        for byte in behind {
            *byte = !*byte;
        }
        assert_eq!(decode(operation, unique, &bytes, data_size, used), result);
    }
}

/// Sets fields of the header to valid values, so that the later checks are also reached.
fn repair<O: Operation>(repairs: u8, data_size: usize, bytes: &mut [u8]) {
    if repairs & 1 != 0 {
        bytes[8..16].copy_from_slice(&4u64.to_le_bytes());
    }
    if repairs & 2 != 0 {
        bytes[4..8].fill(0);
    }
    if repairs & 4 != 0 {
        let fixed = O::REPLY_SIZE.min(bytes.len() - REPLY_HEADER);
        let length = REPLY_HEADER + fixed + data_size * usize::from(O::REPLY_SIZE == 0);
        bytes[..4].copy_from_slice(&(length as u32).to_le_bytes());
    }
}

fn check_attr(attr: &Attr) {
    assert!(attr.size <= OFFSET_MAX);
    assert!(attr.permissions <= 0o7777);
    assert!(attr.mtime_nsec < 1_000_000_000);
}

/// Parses `bytes` as the content of a READDIR reply.
fn listing(bytes: &[u8]) {
    let mut entries = Dirents::new(bytes);
    let mut at = 0;
    let mut left = bytes.len() / 24 + 1;
    while let Some(entry) = entries.next() {
        left = left.checked_sub(1).expect("more entries than fit");
        let now = bytes.len() - entries.rest().len();
        let Ok(entry) = entry else {
            assert!(entries.rest().is_empty());
            assert!(entries.next().is_none());
            return;
        };
        assert!(is_name(entry.name, LISTED_NAME_MAX));
        assert_eq!(entry.offset, u64_at(bytes, at + 8));
        assert_eq!(entry.name.len(), u32_at(bytes, at + 16) as usize);
        assert_eq!(entry.name, &bytes[at + 24..][..entry.name.len()]);
        assert_eq!(now, at + (24 + entry.name.len()).next_multiple_of(8));
        at = now;
    }
    assert_eq!(at, bytes.len());
}

fn is_name(name: &[u8], most: usize) -> bool {
    (1..=most).contains(&name.len()) && !name.contains(&0) && !name.contains(&b'/')
}

/// A LOOKUP of any name.
fn lookup_request(mut source: Source<'_>) {
    let room = usize::from(source.u16()) % 512;
    let name = source.rest();
    let sent = request(&lookup(name), room);
    match sent {
        Some(bytes) => {
            assert!(is_name(name, NAME_MAX));
            assert_eq!(bytes[REQUEST_HEADER..].split_last(), Some((&0, name)));
        }
        None => assert!(!is_name(name, NAME_MAX) || room < REQUEST_HEADER + name.len() + 1),
    }
}

/// Encodes the other requests, with numbers that came from the host.
fn requests(mut source: Source<'_>) {
    let Some(node) = node(source.u64()) else {
        return;
    };
    let handle = handle(source.u64());
    let (offset, size) = (source.u64(), source.u32());
    let room = usize::from(source.u8());
    let forget = Forget {
        node,
        nlookup: offset,
    };
    let read = |is_dir| Read {
        node,
        handle,
        offset,
        size,
        is_dir,
    };
    let release = |is_dir| Release {
        node,
        handle,
        is_dir,
    };
    let open = |is_dir| Open { node, is_dir };
    let sizes = [
        (request(&Init, room), 64),
        (request(&GetAttr { node }, room), 16),
        (request(&open(false), room), 8),
        (request(&open(true), room), 8),
        (request(&StatFs { node }, room), 0),
        (request(&ReadLink { node }, room), 0),
        (request(&release(false), room), 24),
        (request(&release(true), room), 24),
        (request(&forget, room), 8),
        (request(&Destroy, room), 0),
        (request(&read(false), room), 40),
        (request(&read(true), room), 40),
    ];
    for (sent, body) in sizes {
        let size = REQUEST_HEADER + body;
        assert_eq!(
            sent.map(|bytes| bytes.len()),
            (size <= room).then_some(size)
        );
    }
}

/// Encodes a request into `room` bytes. Checks the header, and that nothing was written after them.
fn request<O: Operation>(operation: &O, room: usize) -> Option<Vec<u8>> {
    const UNTOUCHED: u8 = 0xa5;
    let mut out = vec![UNTOUCHED; room + 64];
    let size = encode(operation, Unique::FIRST, &mut out[..room])
        .ok()?
        .len();
    assert!(size <= room);
    assert!(out[size..].iter().all(|&byte| byte == UNTOUCHED));
    out.truncate(size);
    assert_eq!(u32_at(&out, 0) as usize, size);
    assert_eq!(u32_at(&out, 4), operation.opcode() as u32);
    assert_eq!(u64_at(&out, 8), 2);
    assert_ne!(u64_at(&out, 16), 0);
    Some(out)
}

/// A good reply with `body`.
fn good_reply(body: &[u8]) -> Vec<u8> {
    let length = (REPLY_HEADER + body.len()) as u32;
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&2u64.to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// A handle. Only a reply can make one.
fn handle(number: u64) -> Handle {
    let mut body = [0; 16];
    body[..8].copy_from_slice(&number.to_le_bytes());
    let reply = good_reply(&body);
    let (node, is_dir) = (NodeId::ROOT, false);
    let open = Open { node, is_dir };
    let handle = decode(&open, Unique::FIRST, &reply, 0, reply.len() as u32);
    handle.expect("a good reply")
}

/// A node. Only a reply can make one.
fn node(number: u64) -> Option<NodeId> {
    let mut body = [0; 128];
    body[..8].copy_from_slice(&number.to_le_bytes());
    // A regular file.
    body[40 + 60..40 + 64].copy_from_slice(&0o100_644u32.to_le_bytes());
    let reply = good_reply(&body);
    let entry = decode(&lookup(b"x"), Unique::FIRST, &reply, 0, reply.len() as u32);
    let entry: Option<Entry> = entry.ok().flatten();
    assert_eq!(entry.is_some(), number > 1);
    entry.map(|entry| entry.node)
}

fn shown(value: &(impl std::fmt::Display + Debug)) {
    assert!(!value.to_string().is_empty());
    assert!(!format!("{value:?}").is_empty());
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
