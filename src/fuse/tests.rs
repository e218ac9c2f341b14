//! Requests to the byte, and replies good and bad.

use super::*;
use fuse_abi::linux::{fuse_attr, fuse_entry_out, fuse_init_out, fuse_statfs_out};
use std::{format, vec::Vec};

const UNIQUE: Unique = Unique(6);

/// A reply: header and body, with the length it has.
fn reply(error: i32, body: &[u8]) -> Vec<u8> {
    let header = fuse_out_header {
        len: (REPLY_HEADER + body.len()) as u32,
        error,
        unique: UNIQUE.0,
    };
    [header.as_bytes(), body].concat()
}

fn decode_all<O: Operation>(operation: &O, reply: &[u8]) -> Result<O::Reply, ReplyError> {
    decode(operation, UNIQUE, reply, 0, reply.len() as u32)
}

fn lookup() -> Lookup<'static> {
    Lookup {
        parent: NodeId::ROOT,
        name: b"a",
    }
}

fn entry() -> fuse_entry_out {
    fuse_entry_out {
        nodeid: 2,
        attr: fuse_attr {
            ino: 7,
            size: 42,
            mode: 0o100_644,
            nlink: 1,
            mtime: u64::MAX,
            ..fuse_attr::default()
        },
        ..fuse_entry_out::default()
    }
}

#[test]
fn a_lookup_is_header_and_terminated_name() {
    let mut out = [0xff; 64];
    let out = encode(&lookup(), UNIQUE, &mut out).unwrap();
    assert_eq!(out.len(), 42);
    assert_eq!(out[..4], 42u32.to_le_bytes());
    assert_eq!(out[4..8], 1u32.to_le_bytes());
    assert_eq!(out[8..16], 6u64.to_le_bytes());
    assert_eq!(out[16..24], 1u64.to_le_bytes());
    assert_eq!(&out[40..42], b"a\0");
}

#[test]
fn names_that_make_servers_exit_are_not_sent() {
    let long = [b'x'; 256];
    for name in [&b""[..], b"a/b", b"a\0", &long] {
        let lookup = Lookup {
            parent: NodeId::ROOT,
            name,
        };
        assert_eq!(
            encode(&lookup, UNIQUE, &mut [0; 512]),
            Err(EncodeError::Name)
        );
    }
    let longest = Lookup {
        parent: NodeId::ROOT,
        name: &long[..255],
    };
    let mut out = [0; 512];
    let longest_request = encode(&longest, UNIQUE, &mut out).unwrap();
    assert_eq!(longest_request.len(), 40 + 256);
    assert_eq!(
        encode(&longest, UNIQUE, &mut [0; 295]),
        Err(EncodeError::Space)
    );
}

#[test]
fn a_good_entry_is_read() {
    let found = decode_all(&lookup(), &reply(0, entry().as_bytes()))
        .unwrap()
        .unwrap();
    assert_eq!(found.node.get(), 2);
    let attr = found.attr.unwrap();
    assert_eq!(attr.size, 42);
    assert_eq!(attr.file_type, FileType::File);
    assert_eq!(attr.permissions, 0o644);
    assert_eq!(attr.mtime, -1);
}

#[test]
fn node_zero_means_not_found_and_node_one_is_refused() {
    let negative = fuse_entry_out::default();
    assert_eq!(
        decode_all(&lookup(), &reply(0, negative.as_bytes())),
        Ok(None)
    );
    let root = fuse_entry_out {
        nodeid: 1,
        ..entry()
    };
    assert_eq!(
        decode_all(&lookup(), &reply(0, root.as_bytes())),
        Err(ReplyError::Malformed(Violation::NodeId))
    );
}

#[test]
fn impossible_attributes_are_refused() {
    let spoil: [fn(&mut fuse_attr); 3] = [
        |attr| attr.size = 1 << 63,
        |attr| attr.mode = 0o644,
        |attr| attr.mtimensec = 1_000_000_000,
    ];
    for spoil in spoil {
        let mut entry = entry();
        spoil(&mut entry.attr);
        let found = decode_all(&lookup(), &reply(0, entry.as_bytes()));
        // It was looked up all the same, and has to be forgotten.
        let found = found.unwrap().unwrap();
        assert_eq!(found.node.get(), 2);
        assert_eq!(found.attr, Err(Violation::Attributes));
    }
}

#[test]
fn errors_must_be_error_numbers_without_a_body() {
    let server = |number| Err(ReplyError::Server(Errno(number)));
    let malformed = |violation| Err(ReplyError::Malformed(violation));
    assert_eq!(decode_all(&lookup(), &reply(-2, &[])), server(2));
    assert_eq!(decode_all(&lookup(), &reply(-4095, &[])), server(4095));
    for error in [-4096, i32::MIN, 1, i32::MAX] {
        assert_eq!(
            decode_all(&lookup(), &reply(error, &[])),
            malformed(Violation::ErrorRange)
        );
    }
    assert_eq!(
        decode_all(&lookup(), &reply(-2, &[0; 8])),
        malformed(Violation::ReplyLength)
    );
}

#[test]
fn lengths_that_do_not_agree_are_refused() {
    let good = reply(0, entry().as_bytes());
    let length = good.len() as u32;
    let wrong = |reply: &[u8], used| decode(&lookup(), UNIQUE, reply, 0, used);
    let error = Err(ReplyError::Malformed(Violation::ReplyLength));
    assert_eq!(wrong(&good, length - 1), error);
    assert_eq!(wrong(&good, length + 1), error);
    assert_eq!(wrong(&good[..8], 8), error);
    assert_eq!(wrong(&[0; 160], 0), error, "nothing was written");
    let short = reply(0, &entry().as_bytes()[..127]);
    assert_eq!(decode_all(&lookup(), &short), error);
    assert!(wrong(&good, 0).is_ok(), "libkrun leaves 0 in the ring");
}

#[test]
fn another_requests_reply_is_refused() {
    let good = reply(0, entry().as_bytes());
    assert_eq!(
        decode(&lookup(), Unique(8), &good, 0, good.len() as u32),
        Err(ReplyError::Malformed(Violation::ReplyUnique))
    );
}

#[test]
fn a_read_never_gives_more_than_its_buffer() {
    let read = Read {
        node: NodeId::ROOT,
        handle: Handle(3),
        offset: 0,
        size: 100,
        is_dir: false,
    };
    let header = |data: u32| {
        fuse_out_header {
            len: 16 + data,
            error: 0,
            unique: UNIQUE.0,
        }
        .as_bytes()
        .to_vec()
    };
    let bytes = |data: u32| decode(&read, UNIQUE, &header(data), 100, 16 + data);
    assert_eq!(bytes(0), Ok(0));
    assert_eq!(bytes(100), Ok(100));
    assert_eq!(
        bytes(101),
        Err(ReplyError::Malformed(Violation::ReplyLength))
    );
    assert_eq!(
        bytes(u32::MAX - 16),
        Err(ReplyError::Malformed(Violation::ReplyLength))
    );
}

#[test]
fn versions_are_negotiated_down_and_old_ones_refused() {
    let answer = |major, minor| {
        let body = fuse_init_out {
            major,
            minor,
            ..fuse_init_out::default()
        };
        decode_all(&Init, &reply(0, body.as_bytes()))
    };
    assert_eq!(answer(7, 31), Ok(Negotiated { minor: 31 }));
    assert_eq!(answer(7, 1000), Ok(Negotiated { minor: 40 }));
    for (major, minor) in [(7, 30), (6, 40), (8, 0), (u32::MAX, u32::MAX)] {
        assert_eq!(
            answer(major, minor),
            Err(ReplyError::Malformed(Violation::Version { major, minor }))
        );
    }
}

#[test]
fn link_targets_have_a_valid_length() {
    let link = ReadLink { node: NodeId::ROOT };
    assert_eq!(link.decode(&[], 4095), Ok(4095));
    assert_eq!(link.decode(&[], 0), Err(Violation::LinkTarget));
    assert_eq!(link.decode(&[], 4096), Err(Violation::LinkTarget));
}

/// A directory entry as it stands in a reply.
fn dirent(name: &[u8], namelen: u32) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(&1u64.to_le_bytes());
    out.extend_from_slice(&9u64.to_le_bytes());
    out.extend_from_slice(&namelen.to_le_bytes());
    out.extend_from_slice(&8u32.to_le_bytes());
    out.extend_from_slice(name);
    out.resize(out.len().next_multiple_of(8), 0);
    out
}

#[test]
fn directory_entries_are_read_in_turn() {
    let reply = [
        dirent(b".", 1),
        dirent(b"a\xff b", 4),
        dirent(&[b'n'; 255], 255),
    ]
    .concat();
    let names: Vec<_> = Dirents::new(&reply)
        .map(|entry| entry.unwrap().name)
        .collect();
    assert_eq!(names, [&b"."[..], b"a\xff b", &[b'n'; 255]]);
    let first = Dirents::new(&reply).next().unwrap().unwrap();
    assert_eq!((first.offset, first.file_type), (9, Some(FileType::File)));
}

#[test]
fn malformed_directory_entries_end_the_listing() {
    let cases = [
        dirent(b"", 0),
        dirent(b"a/b", 3),
        dirent(b"a\0b", 3),
        dirent(&[b'n'; 1025], 1025),
        dirent(b"abc", 9),
        dirent(b"abc", u32::MAX),
        dirent(b"abc", 3)[..27].to_vec(),
        dirent(b"abc", 3)[..20].to_vec(),
    ];
    for bad in cases {
        let reply = [dirent(b"good", 4), bad].concat();
        let mut entries = Dirents::new(&reply);
        assert_eq!(entries.next().unwrap().unwrap().name, b"good");
        assert_eq!(entries.next(), Some(Err(Violation::DirectoryEntry)));
        assert_eq!(entries.next(), None);
    }
}

#[test]
fn request_numbers_are_even_and_never_zero() {
    assert_eq!(Unique::FIRST.next(), Unique(4));
    assert_eq!(Unique(u64::MAX - 1).next(), Unique(2));
}

fn attr(change: impl Fn(&mut fuse_attr)) -> Result<Attr, Violation> {
    let mut attr = entry().attr;
    change(&mut attr);
    attr.try_into()
}

#[test]
fn each_file_type_is_recognised() {
    for (mode, file_type) in [
        (0o010_000, FileType::Fifo),
        (0o020_000, FileType::CharDevice),
        (0o040_000, FileType::Directory),
        (0o060_000, FileType::BlockDevice),
        (0o100_000, FileType::File),
        (0o120_000, FileType::Symlink),
        (0o140_000, FileType::Socket),
    ] {
        let attr = attr(|attr| attr.mode = mode | 0o7777).unwrap();
        assert_eq!((attr.file_type, attr.permissions), (file_type, 0o7777));
    }
    for mode in [0, 0o030_000, 0o150_000, 0o170_000, u32::MAX] {
        assert_eq!(attr(|attr| attr.mode = mode), Err(Violation::Attributes));
    }
}

#[test]
fn the_largest_file_has_2_63_minus_1_bytes() {
    let size = |size| attr(move |attr| attr.size = size).map(|attr| attr.size);
    assert_eq!(size(i64::MAX as u64), Ok(i64::MAX as u64));
    assert_eq!(size(1 << 63), Err(Violation::Attributes));
}

#[test]
fn blocks_have_the_fragment_size_if_there_is_one() {
    let block_size = |bsize, frsize| {
        let mut out = fuse_statfs_out::default();
        (out.st.bsize, out.st.frsize) = (bsize, frsize);
        let statistics = decode_all(&StatFs { node: NodeId::ROOT }, &reply(0, out.as_bytes()));
        statistics.unwrap().block_size
    };
    assert_eq!(block_size(4096, 1024), 1024);
    assert_eq!(block_size(4096, 0), 4096);
}

#[test]
fn errors_say_what_they_are() {
    assert_eq!(format!("{}, {}", Errno::EIO, Errno(999)), "EIO, error 999");
    let texts = [
        Violation::ReplyLength,
        Violation::ReplyUnique,
        Violation::ErrorRange,
        Violation::UsedId,
        Violation::Attributes,
    ]
    .map(|violation| format!("{violation}"));
    for (index, text) in texts.iter().enumerate() {
        assert!(
            !text.is_empty() && !texts[..index].contains(text),
            "{texts:?}"
        );
    }
}
