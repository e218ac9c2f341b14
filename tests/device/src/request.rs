//! Requests as a server sees them, parsed without the client's own code.

use crate::chain::Chain;

/// The length of a request's header.
pub const HEADER: usize = 40;
/// The length of a reply's header.
pub const REPLY_HEADER: usize = 16;

macro_rules! opcodes {
    ($($name:ident $fuse:ident = $number:literal),* $(,)?) => {
        /// The requests that a read-only client uses.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Opcode {
            $(#[doc = concat!("`FUSE_", stringify!($fuse), "`.")] $name = $number,)*
        }

        impl Opcode {
            fn from_number(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

opcodes! {
    Lookup LOOKUP = 1, Forget FORGET = 2, GetAttr GETATTR = 3, ReadLink READLINK = 5,
    Open OPEN = 14, Read READ = 15, StatFs STATFS = 17, Release RELEASE = 18, Init INIT = 26,
    OpenDir OPENDIR = 27, ReadDir READDIR = 28, ReleaseDir RELEASEDIR = 29,
    Destroy DESTROY = 38,
}

/// Whether a rule is kept, and its text.
type Rule = (bool, &'static str);

/// A parsed request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub(crate) opcode: Opcode,
    /// The client's unique number.
    pub(crate) unique: u64,
    /// The node.
    pub(crate) node: u64,
    /// The body after the header.
    body: Vec<u8>,
    /// The queue that the request was in.
    queue: u16,
    /// The space for the reply in bytes.
    writable: u64,
    /// The path in the tree, for a script.
    path: Vec<u8>,
}

impl Request {
    /// The opcode.
    #[must_use]
    pub fn opcode(&self) -> Opcode {
        self.opcode
    }

    /// The path that the request is about, from the tree's root: `/dir/file`. For [`Opcode::Lookup`] it is the path
    /// of the name, even if there is no such file; for requests about the whole share it is `/`.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// The offset of a READ (in bytes) or READDIR.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.u64_at(8)
    }

    /// The size of a READ or READDIR in bytes.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.u32_at(16)
    }
}

#[cfg(feature = "raw")]
impl Request {
    /// The client's unique number.
    #[must_use]
    pub fn unique(&self) -> u64 {
        self.unique
    }

    /// The node that the request is about.
    #[must_use]
    pub fn node(&self) -> u64 {
        self.node
    }

    /// The queue that the request was in.
    #[must_use]
    pub fn queue(&self) -> u16 {
        self.queue
    }

    /// The name in a LOOKUP.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        self.looked_up()
    }

    /// The same request about another node.
    #[must_use]
    pub fn about(&self, node: u64) -> Self {
        Self {
            node,
            ..self.clone()
        }
    }
}

impl Request {
    /// Reads the request in `chain`.
    ///
    /// # Errors
    ///
    /// What a server could not parse.
    pub(crate) fn parse(chain: &Chain) -> Result<Self, String> {
        let mut bytes = chain.request();
        let Some(header) = bytes.first_chunk::<HEADER>().copied() else {
            return Err(format!("a request of {} bytes", bytes.len()));
        };
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap());
        if word(0) as usize != bytes.len() {
            return Err(format!("length {} of {} bytes", word(0), bytes.len()));
        }
        let opcode = Opcode::from_number(word(4))
            .ok_or_else(|| format!("a read-only client must not send opcode {}", word(4)))?;
        if header[24..].iter().any(|&byte| byte != 0) {
            return Err("user, group, process and extension are not all 0".into());
        }
        bytes.drain(..HEADER);
        Ok(Self {
            opcode,
            unique: long(8),
            node: long(16),
            body: bytes,
            queue: chain.queue(),
            writable: chain.writable_bytes(),
            path: Vec::new(),
        })
    }

    /// The bytes that this READ returns from a file with this content.
    pub(crate) fn part_of<'c>(&self, content: &'c [u8]) -> &'c [u8] {
        let length = content.len();
        let start = usize::try_from(self.offset()).map_or(length, |start| start.min(length));
        let rest = &content[start..];
        &rest[..rest.len().min(self.size() as usize)]
    }

    pub(crate) fn with_path(&self, path: Vec<u8>) -> Self {
        Self {
            path,
            ..self.clone()
        }
    }

    /// A number in the body; 0 if the body is too short.
    pub(crate) fn u32_at(&self, at: usize) -> u32 {
        let bytes = self.body.get(at..at + 4);
        bytes.map_or(0, |bytes| u32::from_le_bytes(bytes.try_into().unwrap()))
    }

    /// A number in the body; 0 if the body is too short.
    pub(crate) fn u64_at(&self, at: usize) -> u64 {
        let bytes = self.body.get(at..at + 8);
        bytes.map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
    }

    /// The name in a LOOKUP.
    pub(crate) fn looked_up(&self) -> &[u8] {
        self.body.strip_suffix(b"\0").unwrap_or(&self.body)
    }

    /// The handle in a READ, READDIR, RELEASE or RELEASEDIR.
    pub(crate) fn handle(&self) -> u64 {
        self.u64_at(0)
    }

    /// Violations that could harm a real server, and requests that a read-only client must not send.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut check = |rules: &[Rule]| {
            let broken = rules.iter().filter(|(kept, _)| !kept);
            faults.extend(broken.map(|(_, rule)| format!("{rule}: {self:?}")));
        };
        check(&[
            (self.unique != 0 && self.unique.is_multiple_of(2), "unique"),
            (self.node != 0, "node 0"),
        ]);
        if self.opcode == Opcode::Forget {
            check(&[
                (self.queue == 0, "FORGET outside of the hiprio queue"),
                (self.writable == 0, "FORGET with space for a reply"),
                (self.node != 1, "FORGET of the root"),
            ]);
        } else {
            let room = self.writable;
            check(&[
                (self.queue > 0, "a request in the hiprio queue"),
                (room >= REPLY_HEADER as u64, "no space for a reply's header"),
                (
                    room <= u64::from(u32::MAX),
                    "space for a reply of 2^32 bytes or more",
                ),
            ]);
        }
        self.check_body(&mut check);
        faults
    }

    /// Gives the rules for the body and the space for the reply to `check`.
    fn check_body(&self, check: &mut dyn FnMut(&[Rule])) {
        let body = self.body.len();
        let room = |fixed: usize| self.writable == (REPLY_HEADER + fixed) as u64;
        let zero_from = |at: usize| self.body.iter().skip(at).all(|&byte| byte == 0);
        match self.opcode {
            Opcode::Lookup => {
                let name = self.looked_up();
                let ends = self.body.ends_with(b"\0");
                let plain = !name.iter().any(|byte| matches!(byte, 0 | b'/'));
                let resolved = matches!(name, b"." | b"..");
                check(&[
                    (ends, "a name without NUL"),
                    ((1..=255).contains(&name.len()), "a name's length"),
                    (plain, "a name with / or NUL"),
                    (!resolved, "a name . or .., which servers resolve"),
                    (room(128), "LOOKUP's reply"),
                ]);
            }
            Opcode::Forget => check(&[(body == 8 && self.u64_at(0) > 0, "FORGET's body")]),
            Opcode::GetAttr => check(&[
                (body == 16 && self.u32_at(0) == 0, "GETATTR's body"),
                (room(104), "GETATTR's reply"),
            ]),
            Opcode::ReadLink => check(&[
                (body == 0, "READLINK's body"),
                (
                    room(4096),
                    "space for READLINK's reply that is not PATH_MAX",
                ),
            ]),
            Opcode::Open | Opcode::OpenDir => check(&[
                (
                    body == 8 && self.u32_at(0) == 0,
                    "flags other than O_RDONLY",
                ),
                (self.u32_at(4) == 0, "open flags"),
                (room(16), "OPEN's reply"),
            ]),
            Opcode::Read | Opcode::ReadDir => {
                let end = self.offset().checked_add(self.size().into());
                let fits = end.is_some_and(|end| end <= i64::MAX as u64);
                check(&[
                    (body == 40, "READ's body"),
                    (self.size() > 0, "a READ of nothing"),
                    (room(self.size() as usize), "buffer and size differ"),
                    (fits || self.opcode == Opcode::ReadDir, "offset"),
                    (zero_from(20), "READ's flags"),
                ]);
            }
            Opcode::StatFs => check(&[(body == 0, "STATFS's body"), (room(80), "STATFS's reply")]),
            Opcode::Release | Opcode::ReleaseDir => check(&[
                (body == 24, "RELEASE's body"),
                (zero_from(8), "RELEASE's flags"),
            ]),
            Opcode::Init => {
                let known = self.u32_at(0) == 7 && self.u32_at(4) >= 31;
                check(&[
                    (
                        body == 64,
                        "INIT's body, on which virtiofsd ends if it is short",
                    ),
                    (known, "INIT's version"),
                    (zero_from(8), "INIT's flags"),
                    (room(64), "INIT's reply"),
                ]);
            }
            Opcode::Destroy => check(&[(body == 0, "DESTROY's body")]),
        }
    }
}
