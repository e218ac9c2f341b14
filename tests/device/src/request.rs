//! Requests as a server sees them, read without the client's own code.

use crate::chain::Chain;

/// Bytes of a request's header.
pub const HEADER: usize = 40;
/// Bytes of a reply's header.
pub const REPLY_HEADER: usize = 16;

macro_rules! opcodes {
    ($($name:ident $fuse:ident = $number:literal),* $(,)?) => {
        /// The requests that a read-only client has a use for.
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

/// A request, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub(crate) opcode: Opcode,
    /// The client's number.
    pub(crate) unique: u64,
    /// The node it is about.
    pub(crate) node: u64,
    /// What follows the header.
    body: Vec<u8>,
    /// The queue that it came through.
    queue: u16,
    /// Bytes that the reply may have.
    writable: u64,
    /// What a script is told of the tree.
    path: Vec<u8>,
}

impl Request {
    /// What is asked for.
    #[must_use]
    pub fn opcode(&self) -> Opcode {
        self.opcode
    }

    /// The path that it is about, from the tree's root on: `/dir/file`. For [`Opcode::Lookup`] that
    /// of the name that is looked up, whether it is there or not; `/` where a request is about
    /// the share as a whole.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// The offset in a READ or READDIR: for the former in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.u64_at(8)
    }

    /// The size in a READ or READDIR, in bytes.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.u32_at(16)
    }
}

#[cfg(feature = "raw")]
impl Request {
    /// The client's number for it.
    #[must_use]
    pub fn unique(&self) -> u64 {
        self.unique
    }

    /// The node that it is about.
    #[must_use]
    pub fn node(&self) -> u64 {
        self.node
    }

    /// The queue that it came through.
    #[must_use]
    pub fn queue(&self) -> u16 {
        self.queue
    }

    /// The name in a LOOKUP.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        self.looked_up()
    }

    /// The same, about another node.
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
    /// What no server could make sense of.
    pub(crate) fn parse(chain: &Chain) -> Result<Self, String> {
        let bytes = chain.request();
        let Some((header, body)) = bytes.split_at_checked(HEADER) else {
            return Err(format!("a request of {} bytes", bytes.len()));
        };
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap());
        if word(0) as usize != bytes.len() {
            return Err(format!("length {} of {} bytes", word(0), bytes.len()));
        }
        let opcode = Opcode::from_number(word(4))
            .ok_or_else(|| format!("opcode {} is none for a read-only client", word(4)))?;
        if header[24..].iter().any(|&byte| byte != 0) {
            return Err("user, group, process and extension are not all 0".into());
        }
        Ok(Self {
            opcode,
            unique: long(8),
            node: long(16),
            body: body.to_vec(),
            queue: chain.queue(),
            writable: chain.writable_bytes(),
            path: Vec::new(),
        })
    }

    /// What a READ of a file with this content gives.
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

    /// A number in the body; 0 where the body is too short.
    pub(crate) fn u32_at(&self, at: usize) -> u32 {
        let bytes = self.body.get(at..at + 4);
        bytes.map_or(0, |bytes| u32::from_le_bytes(bytes.try_into().unwrap()))
    }

    /// A number in the body; 0 where the body is too short.
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

    /// What a real server would choke on, or what a read-only client has no business to ask.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut rules = vec![
            (self.unique != 0 && self.unique.is_multiple_of(2), "unique"),
            (self.node != 0, "node 0"),
        ];
        if self.opcode == Opcode::Forget {
            rules.extend([
                (self.queue == 0, "FORGET behind reads"),
                (self.writable == 0, "FORGET has no reply"),
                (self.node != 1, "the root is not ours to forget"),
            ]);
        } else {
            let room = self.writable;
            rules.extend([
                (self.queue > 0, "a request in the hiprio queue"),
                (room >= REPLY_HEADER as u64, "no room for a reply's header"),
                (room <= u64::from(u32::MAX), "a reply beyond 32 bits"),
            ]);
        }
        rules.extend(self.body_rules());
        let broken = rules.into_iter().filter(|(kept, _)| !kept);
        broken
            .map(|(_, rule)| format!("{rule}: {self:?}"))
            .collect()
    }

    /// Of body and room for the reply: whether each rule is kept, and what it is about.
    fn body_rules(&self) -> Vec<(bool, &'static str)> {
        let body = self.body.len();
        let room = |fixed: usize| self.writable == (REPLY_HEADER + fixed) as u64;
        let zero_from = |at: usize| self.body.iter().skip(at).all(|&byte| byte == 0);
        match self.opcode {
            Opcode::Lookup => {
                let name = self.looked_up();
                let ends = self.body.ends_with(b"\0");
                let plain = !name.iter().any(|byte| matches!(byte, 0 | b'/'));
                let resolved = matches!(name, b"." | b"..");
                vec![
                    (ends, "a name without NUL"),
                    ((1..=255).contains(&name.len()), "a name's length"),
                    (plain, "a name"),
                    (!resolved, "a name that servers resolve"),
                    (room(128), "LOOKUP's reply"),
                ]
            }
            Opcode::Forget => vec![(body == 8 && self.u64_at(0) > 0, "FORGET's body")],
            Opcode::GetAttr => vec![
                (body == 16 && self.u32_at(0) == 0, "GETATTR's body"),
                (room(104), "GETATTR's reply"),
            ],
            Opcode::ReadLink => vec![
                (body == 0, "READLINK's body"),
                (room(4096), "READLINK's reply: a target or PATH_MAX"),
            ],
            Opcode::Open | Opcode::OpenDir => vec![
                (body == 8 && self.u32_at(0) == 0, "flags: O_RDONLY alone"),
                (self.u32_at(4) == 0, "open flags"),
                (room(16), "OPEN's reply"),
            ],
            Opcode::Read | Opcode::ReadDir => {
                let end = self.offset().checked_add(self.size().into());
                let fits = end.is_some_and(|end| end <= i64::MAX as u64);
                vec![
                    (body == 40, "READ's body"),
                    (self.size() > 0, "a READ of nothing"),
                    (room(self.size() as usize), "buffer and size differ"),
                    (fits || self.opcode == Opcode::ReadDir, "offset"),
                    (zero_from(20), "READ's flags"),
                ]
            }
            Opcode::StatFs => vec![(body == 0, "STATFS's body"), (room(80), "STATFS's reply")],
            Opcode::Release | Opcode::ReleaseDir => vec![
                (body == 24, "RELEASE's body"),
                (zero_from(8), "RELEASE's flags"),
            ],
            Opcode::Init => {
                let known = self.u32_at(0) == 7 && self.u32_at(4) >= 31;
                vec![
                    (body == 64, "INIT's body: virtiofsd ends on a short one"),
                    (known, "INIT's version"),
                    (zero_from(8), "INIT's flags"),
                    (room(64), "INIT's reply"),
                ]
            }
            Opcode::Destroy => vec![(body == 0, "DESTROY's body")],
        }
    }
}
