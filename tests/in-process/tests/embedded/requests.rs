//! Builds requests as bytes, so that tests can also send malformed ones.

use bootshare_tests::Embedded;
use tempfile::TempDir;

pub const ROOT: u64 = 1;

/// A request with a valid header.
pub fn request(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = (40 + body.len() as u32).to_le_bytes().to_vec();
    bytes.extend(opcode.to_le_bytes());
    bytes.extend(7_u64.to_le_bytes());
    bytes.extend(node.to_le_bytes());
    bytes.extend([0; 16]);
    bytes.extend(body);
    bytes
}

/// The error number of a reply, positive, or 0.
pub fn errno(reply: &[u8]) -> i32 {
    assert_eq!(reply[8..16], 7_u64.to_le_bytes(), "the request's number");
    -i32::from_le_bytes(reply[4..8].try_into().unwrap())
}

pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub const EROFS: i32 = 30;
pub const ENOENT: i32 = 2;
pub const EINVAL: i32 = 22;
pub const ESTALE: i32 = 116;
pub const INIT: u32 = 26;
pub const LOOKUP: u32 = 1;
pub const GETATTR: u32 = 3;
pub const OPEN: u32 = 14;
pub const READ: u32 = 15;
pub const STATFS: u32 = 17;
pub const RELEASE: u32 = 18;
pub const GETXATTR: u32 = 22;
pub const LISTXATTR: u32 = 23;
pub const OPENDIR: u32 = 27;
pub const READDIR: u32 = 28;
pub const LSEEK: u32 = 46;

/// A server of a directory, after INIT.
pub fn server(dir: &TempDir) -> Embedded {
    let server = Embedded::of(vec![dir.path().into()]);
    init(&server);
    server
}

/// Sends INIT without flags.
pub fn init(server: &Embedded) {
    let reply = server.ask(&request(INIT, 0, &words(&[7, 36, 1 << 20, 0])), 4096);
    assert_eq!(errno(&reply.unwrap()), 0);
}

/// Sends a LOOKUP. Returns the node, or the error.
pub fn lookup(server: &Embedded, parent: u64, name: &str) -> Result<u64, i32> {
    let body = [name.as_bytes(), b"\0"].concat();
    let reply = server.ask(&request(LOOKUP, parent, &body), 4096).unwrap();
    match errno(&reply) {
        0 => Ok(u64::from_le_bytes(reply[16..24].try_into().unwrap())),
        errno => Err(errno),
    }
}

/// Sends a request. Returns the reply's body, or the error.
pub fn ask(server: &Embedded, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
    let room = 16 + (1 << 16);
    let reply = server.ask(&request(opcode, node, body), room).unwrap();
    match errno(&reply) {
        0 => Ok(reply[16..].to_vec()),
        errno => Err(errno),
    }
}

/// The 8-byte number at an offset.
pub fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The 4-byte number at an offset.
pub fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Sends OPEN or OPENDIR. Returns the handle and the flags.
pub fn open(server: &Embedded, opcode: u32, node: u64) -> Result<(u64, u32), i32> {
    let body = ask(server, opcode, node, &[0; 8])?;
    Ok((long(&body, 0), word(&body, 8)))
}

/// `fuse_read_in`, for READ and READDIR.
pub fn read_in(handle: u64, offset: u64, size: u32) -> Vec<u8> {
    let numbers = [handle.to_le_bytes(), offset.to_le_bytes()].concat();
    [&numbers[..], &words(&[size, 0, 0, 0, 0, 0])].concat()
}

/// Opens a file and reads its first 4096 bytes.
pub fn read(server: &Embedded, node: u64) -> Result<String, i32> {
    let (handle, _) = open(server, OPEN, node)?;
    let bytes = ask(server, READ, node, &read_in(handle, 0, 4096))?;
    ask(
        server,
        RELEASE,
        node,
        &words(&[handle as u32, 0, 0, 0, 0, 0]),
    )?;
    Ok(String::from_utf8(bytes).unwrap())
}

/// A directory entry of READDIR: name, inode number and cookie.
pub fn entries(mut bytes: &[u8]) -> Vec<(String, u64, u64)> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let size = word(bytes, 16) as usize;
        let name = String::from_utf8(bytes[24..24 + size].to_vec()).unwrap();
        found.push((name, long(bytes, 0), long(bytes, 8)));
        bytes = &bytes[(24 + size).next_multiple_of(8)..];
    }
    found
}

/// All entries of a directory.
pub fn list(server: &Embedded, node: u64) -> Vec<(String, u64, u64)> {
    let (handle, _) = open(server, OPENDIR, node).unwrap();
    let mut all: Vec<(String, u64, u64)> = Vec::new();
    loop {
        let offset = all.last().map_or(0, |(.., next)| *next);
        let some = ask(server, READDIR, node, &read_in(handle, offset, 4096)).unwrap();
        if some.is_empty() {
            return all;
        }
        all.extend(entries(&some));
    }
}
