//! FUSE operations: their numbers (`linux/fuse.h`), names, and how a read-only server treats them.

use rustix::io::Errno;

/// How a read-only server treats an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// It reads; the file system answers it.
    Read,
    /// It modifies the file system: refused with EROFS before it is decoded.
    Write,
    /// Its flags decide whether it modifies something.
    Mixed,
    /// It has no reply.
    Silent,
}

use Class::{Mixed, Read, Silent, Write};

/// Number, name and class. An operation that is not listed is answered with ENOSYS.
const OPCODES: [(u32, &str, Class); 50] = [
    (1, "LOOKUP", Read),
    (2, "FORGET", Silent),
    (3, "GETATTR", Read),
    (4, "SETATTR", Write),
    (5, "READLINK", Read),
    (6, "SYMLINK", Write),
    (8, "MKNOD", Write),
    (9, "MKDIR", Write),
    (10, "UNLINK", Write),
    (11, "RMDIR", Write),
    (12, "RENAME", Write),
    (13, "LINK", Write),
    (14, "OPEN", Mixed),
    (15, "READ", Read),
    (16, "WRITE", Write),
    (17, "STATFS", Read),
    (18, "RELEASE", Read),
    (20, "FSYNC", Read),
    (21, "SETXATTR", Write),
    (22, "GETXATTR", Read),
    (23, "LISTXATTR", Read),
    (24, "REMOVEXATTR", Write),
    (25, "FLUSH", Read),
    (26, "INIT", Read),
    (27, "OPENDIR", Read),
    (28, "READDIR", Read),
    (29, "RELEASEDIR", Read),
    (30, "FSYNCDIR", Read),
    (31, "GETLK", Read),
    (32, "SETLK", Read),
    (33, "SETLKW", Read),
    (34, "ACCESS", Mixed),
    (35, "CREATE", Write),
    (36, "INTERRUPT", Silent),
    (37, "BMAP", Read),
    (38, "DESTROY", Silent),
    (39, "IOCTL", Mixed),
    (40, "POLL", Read),
    (42, "BATCH_FORGET", Silent),
    (43, "FALLOCATE", Write),
    (44, "READDIRPLUS", Read),
    (45, "RENAME2", Write),
    (46, "LSEEK", Read),
    (47, "COPY_FILE_RANGE", Write),
    (48, "SETUPMAPPING", Write),
    (49, "REMOVEMAPPING", Write),
    (50, "SYNCFS", Read),
    (51, "TMPFILE", Write),
    (52, "STATX", Read),
    (53, "COPY_FILE_RANGE_64", Write),
];

fn find(opcode: u32) -> Option<&'static (u32, &'static str, Class)> {
    OPCODES.iter().find(|(number, ..)| *number == opcode)
}

/// The operation's name, as in `linux/fuse.h` without its prefix.
pub(super) fn name(opcode: u32) -> Option<&'static str> {
    find(opcode).map(|(_, name, _)| *name)
}

/// The operation of that name; upper and lower case are equal.
pub(super) fn by_name(name: &str) -> Option<u32> {
    let mut all = OPCODES.iter();
    all.find(|(_, known, _)| known.eq_ignore_ascii_case(name))
        .map(|(number, ..)| *number)
}

/// Whether an operation has no reply.
pub(super) fn is_silent(opcode: u32) -> bool {
    find(opcode).is_some_and(|(.., class)| *class == Silent)
}

/// Whether an operation is INIT, which comes before all others.
pub(super) fn is_init(opcode: u32) -> bool {
    opcode == 26
}

pub(super) fn is_lookup(opcode: u32) -> bool {
    opcode == 1
}

pub(super) fn is_read(opcode: u32) -> bool {
    opcode == 15
}

/// Whether an operation closes a handle: RELEASE, FLUSH, RELEASEDIR.
pub(super) fn is_closing(opcode: u32) -> bool {
    matches!(opcode, 18 | 25 | 29)
}

/// The error for a request that a read-only server refuses; `None` if the file system is to answer
/// it. `body` is what follows the request's header.
pub(super) fn refusal(opcode: u32, body: &[u8]) -> Option<Errno> {
    let Some((_, name, class)) = find(opcode) else {
        return Some(Errno::NOSYS);
    };
    match class {
        Read | Silent => None,
        Write => Some(Errno::ROFS),
        Mixed => match (*name, word(body, 0)) {
            ("OPEN", Some(flags)) => writes(flags).then_some(Errno::ROFS),
            // access(2): W_OK is 2.
            ("ACCESS", Some(mask)) => (mask & 2 != 0).then_some(Errno::ROFS),
            // The command follows the handle and the flags. Every command that sets something has
            // the direction `write` (asm-generic/ioctl.h).
            ("IOCTL", _) => Some(match word(body, 12) {
                Some(command) if command >> 30 & 1 == 0 => Errno::NOTTY,
                _ => Errno::ROFS,
            }),
            _ => Some(Errno::INVAL),
        },
    }
}

/// The 32-bit number at an offset in a request or reply.
pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The 64-bit number at an offset in a request or reply.
pub(super) fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// Whether open(2) with these flags may change something. The values are the same on all
/// architectures that we serve: O_ACCMODE 3, O_CREAT 100, O_TRUNC 1000.
fn writes(flags: u32) -> bool {
    flags & 0o1103 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_agree() {
        for (index, (number, known, _)) in OPCODES.iter().enumerate() {
            assert_eq!(by_name(&known.to_lowercase()), Some(*number));
            assert_eq!(name(*number), Some(*known));
            assert!(
                OPCODES[index + 1..]
                    .iter()
                    .all(|(other, ..)| other > number)
            );
        }
        assert_eq!(by_name("NOSUCH"), None);
    }

    #[test]
    fn modifying_requests_are_refused() {
        for opcode in [
            4, 6, 8, 9, 10, 11, 12, 13, 16, 21, 24, 35, 43, 45, 47, 48, 51, 53,
        ] {
            assert_eq!(refusal(opcode, &[0; 64]), Some(Errno::ROFS), "{opcode}");
        }
        for flags in [1_u32, 2, 3, 0o100, 0o1000, 0o1002] {
            let body = [flags.to_le_bytes(), [0; 4]].concat();
            assert_eq!(refusal(14, &body), Some(Errno::ROFS), "{flags:o}");
        }
        assert_eq!(refusal(14, &[0; 8]), None);
        assert_eq!(refusal(14, &[]), Some(Errno::INVAL));
        assert_eq!(refusal(7, &[]), Some(Errno::NOSYS));
        assert_eq!(refusal(4096, &[]), Some(Errno::NOSYS));
        assert_eq!(refusal(1, &[]), None);
    }

    #[test]
    fn operations_with_a_treatment_of_their_own_are_known() {
        let known = |is: fn(u32) -> bool| -> Vec<_> { (0..60).filter(|&op| is(op)).collect() };
        let named =
            |names: &[&str]| -> Vec<_> { names.iter().filter_map(|name| by_name(name)).collect() };
        let silent = ["FORGET", "INTERRUPT", "DESTROY", "BATCH_FORGET"];
        assert_eq!(known(is_silent), named(&silent));
        assert_eq!(known(is_init), named(&["INIT"]));
        assert_eq!(known(is_lookup), named(&["LOOKUP"]));
        assert_eq!(known(is_read), named(&["READ"]));
        assert_eq!(
            known(is_closing),
            named(&["RELEASE", "FLUSH", "RELEASEDIR"])
        );
    }

    #[test]
    fn access_is_refused_for_writing_only() {
        for (mask, errno) in [
            (0_u32, None),
            (1, None),
            (4, None),
            (5, None),
            (2, Some(Errno::ROFS)),
            (7, Some(Errno::ROFS)),
        ] {
            assert_eq!(refusal(34, &mask.to_le_bytes()), errno, "{mask}");
        }
        assert_eq!(refusal(34, &[]), Some(Errno::INVAL));
    }

    #[test]
    fn numbers_are_little_endian_and_end_with_the_bytes() {
        let bytes: Vec<u8> = (1..=12).collect();
        assert_eq!(word(&bytes, 1), Some(0x0504_0302));
        assert_eq!(word(&bytes, 8), Some(0x0c0b_0a09));
        assert_eq!(word(&bytes, 9), None);
        assert_eq!(long(&bytes, 1), Some(0x0908_0706_0504_0302));
        assert_eq!(long(&bytes, 4), Some(0x0c0b_0a09_0807_0605));
        assert_eq!(long(&bytes, 5), None);
    }

    #[test]
    fn an_ioctl_that_sets_is_refused_as_a_write() {
        // FS_IOC_SETFLAGS and FS_IOC_GETFLAGS, linux/fs.h.
        for (command, errno) in [(0x4008_6602_u32, Errno::ROFS), (0x8008_6601, Errno::NOTTY)] {
            let mut body = [0; 32];
            body[12..16].copy_from_slice(&command.to_le_bytes());
            assert_eq!(refusal(39, &body), Some(errno));
        }
    }
}
