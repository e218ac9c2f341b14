//! The shell's commands, typed or from `bootshare.cmd`.

use super::{
    Board, End, Failed, HandOff,
    arena::Arena,
    console::{Console, Speed, Text, failure},
    digest::DigestText,
    flow::Flow,
    names::{ListError, Names},
    output::{Date, Output, type_name},
    shares::{Mount, for_each_piece},
    walk::walk,
};
use crate::{
    boot::{commands::Commands, text::as_str},
    hal::Clock,
};
use core::{fmt::Write, ops::ControlFlow};
use heapless::Vec;

/// Longest command in bytes.
pub(super) const MAX_COMMAND: usize = 4096;
/// Longest text that `linux` and `initrd` can build, in bytes.
const MAX_TYPED: usize = 16 << 10;
/// Most memory for names and file data, in bytes.
const MAX_SCRATCH: u64 = 256 << 20;
/// Size in bytes of the buffer through which files are read.
const FILE_BUFFER: usize = 4 << 20;

const HELP: &str = "\
boot [ENTRY]       start an entry, or what linux names
cat PATH           print a file
devices            the virtio-fs devices of this machine
entries            the boot entries; * is the one to be booted
exit               leave the shell
help               these lines
initrd PATH        add an initrd to what linux names
linux PATH [ARGS]  name a kernel and its command line, for boot
ls [-l] [PATH]     list a directory
mounts             the shares that are mounted
poweroff           turn the machine off
read-bench PATH    how fast a file is read
reboot             reset the machine
sha256 PATH        SHA-256 of a file
stat PATH          what a file is
walk [PATH]        every file below a directory: TYPE SIZE SHA256 PATH
";

/// The names of the commands.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    HELP.lines().filter_map(|line| line.split(' ').next())
}

/// The boot entry that `linux` and `initrd` build.
pub(super) struct Typed {
    /// The index of the mounted share with its files.
    share: usize,
    /// The entry, in the syntax of the Boot Loader Specification.
    text: Vec<u8, MAX_TYPED>,
}

impl Typed {
    pub const fn new() -> Self {
        Self {
            share: 0,
            text: Vec::new(),
        }
    }

    /// Adds a line. Fails if it does not fit, or if a word contains a line end.
    fn push(&mut self, key: &str, words: &[&[u8]]) -> Result<(), Failed> {
        let before = self.text.len();
        let mut add = |part: &[u8]| {
            let is_line = !part.contains(&b'\n');
            is_line && self.text.extend_from_slice(part).is_ok()
        };
        let mut ok = add(key.as_bytes());
        for word in words {
            // The kernel needs quotes around a word with a space.
            let quote: &[u8] = if word.contains(&b' ') && key == "options" {
                b"\""
            } else {
                b""
            };
            ok = ok && add(b" ") && add(quote) && add(word) && add(quote);
        }
        if ok && self.text.push(b'\n').is_ok() {
            return Ok(());
        }
        self.text.truncate(before);
        log::error!(
            "{key}: it is too long or contains a line end; shorten it or remove the line end"
        );
        Err(Failed)
    }
}

/// Runs all commands in `line`; returns whether all succeeded. Breaks with the end of the firmware, or with
/// `None` for the command `exit`.
#[inline(never)] // Keeps large stack frames from adding up; so do the others in this file.
pub(super) fn run<B: Board>(
    flow: &Flow<'_, B>,
    line: &[u8],
    typed: &mut Typed,
    arena: &mut Arena<'_>,
) -> ControlFlow<Option<End>, bool> {
    let mut ok = true;
    let mut commands = Commands::new(line);
    let mut buffer = [0; MAX_COMMAND];
    while let Some(words) = commands.next(&mut buffer) {
        let words = match words {
            Ok(words) => words,
            Err(error) => {
                log::error!("{error}");
                ok = false;
                continue;
            }
        };
        let arena = &mut arena.rest();
        let (name, arguments) = words.split_at(1);
        ok &= match (as_str(name[0]), arguments) {
            ("boot", []) if !typed.text.is_empty() => {
                start(flow.typed(typed.share, &typed.text, arena))?
            }
            ("boot", []) => start(flow.chosen(None, arena))?,
            ("boot", [entry]) => start(flow.chosen(Some(entry), arena))?,
            ("linux", [path, arguments @ ..]) => linux(flow, typed, path, arguments),
            ("initrd", [path]) => initrd(flow, typed, path),
            ("reboot", []) => return ControlFlow::Break(Some(End::Reset)),
            ("poweroff", []) => return ControlFlow::Break(Some(End::PowerOff)),
            ("exit", []) => return ControlFlow::Break(None),
            ("entries", []) => entries(flow, arena),
            ("read-bench", [word]) => read_bench(flow, word, arena),
            _ => with_files(flow, &words, arena),
        };
    }
    ControlFlow::Continue(ok)
}

/// Ends the commands if a payload was loaded.
fn start(loaded: Result<HandOff, Failed>) -> ControlFlow<Option<End>, bool> {
    match loaded {
        Ok(hand_off) => ControlFlow::Break(Some(End::Start(hand_off))),
        Err(Failed) => ControlFlow::Continue(false),
    }
}

/// `linux`: begins a new entry.
fn linux<B: Board>(
    flow: &Flow<'_, B>,
    typed: &mut Typed,
    word: &[u8],
    arguments: &[&[u8]],
) -> bool {
    let (share, path) = flow.shares.locate_index(word);
    typed.share = share;
    typed.text.clear();
    let lines = typed
        .push("linux", &[path])
        .and_then(|()| typed.push("options", arguments));
    lines.is_ok()
}

/// `initrd`: adds an initrd to the entry.
fn initrd<B: Board>(flow: &Flow<'_, B>, typed: &mut Typed, word: &[u8]) -> bool {
    let (share, path) = flow.shares.locate_index(word);
    if typed.text.is_empty() {
        return failure(&Text(word), &"name a kernel before it, with linux PATH");
    }
    if share != typed.share {
        return failure(
            &Text(word),
            &"the kernel is on another share; take kernel and initrd from the same share",
        );
    }
    typed.push("initrd", &[path]).is_ok()
}

fn no_share(word: &[u8]) -> bool {
    failure(&Text(word), &"no share is mounted")
}

/// `read-bench`: reads a file twice, with requests as large as the free memory allows, and prints the speed.
#[inline(never)]
fn read_bench<B: Board>(flow: &Flow<'_, B>, word: &[u8], arena: &mut Arena<'_>) -> bool {
    let Some((mount, path)) = flow.shares.locate(word) else {
        return no_share(word);
    };
    let file = match mount.renew().then(|| mount.open(path)) {
        Some(Ok(file)) => file,
        Some(Err(error)) => return failure(&mount.shown(path), &error),
        None => return false,
    };
    let memory = match arena.take_largest(file.metadata().len().saturating_add(1 << 20)) {
        Ok(memory) => memory,
        Err(error) => return failure(&mount.shown(path), &error),
    };
    let clock = flow.board.clock();
    // In the first pass, the host may have to allocate the memory, and to read the file from its disk.
    for pass in ["first", "again"] {
        let start = clock.now();
        let read = for_each_piece::<B>(&file, memory.bytes, |_| {});
        let took = clock.now().saturating_sub(start);
        match read {
            Ok(bytes) => {
                let micros = took.as_micros() as u64;
                let speed = Speed { bytes, took };
                _ = writeln!(Console::<B>::new(), "{pass}: {speed}, {micros} us");
            }
            Err(error) => return failure(&mount.shown(path), &error),
        }
    }
    true
}

/// The context of commands about files.
struct Shell<'a, B: Board> {
    flow: &'a Flow<'a, B>,
    names: Names<'a>,
    output: Output<'a, B>,
}

/// Runs one of the other commands; returns whether it succeeded.
#[inline(never)]
fn with_files<B: Board>(flow: &Flow<'_, B>, words: &[&[u8]], arena: &mut Arena<'_>) -> bool {
    let scratch = match arena.take_largest(MAX_SCRATCH) {
        Ok(scratch) => scratch,
        Err(error) => return failure(&Text(words[0]), &error),
    };
    let middle = FILE_BUFFER.min(scratch.bytes.len() / 2);
    let (buffer, names) = scratch.bytes.split_at_mut(middle);
    let mut shell = Shell {
        flow,
        names: Names::new(names),
        output: Output::new(buffer),
    };
    shell.command(words)
}

impl<B: Board> Shell<'_, B> {
    fn command(&mut self, words: &[&[u8]]) -> bool {
        let (name, arguments) = words.split_at(1);
        match (as_str(name[0]), arguments) {
            ("help", []) => self.output.text(HELP),
            ("devices", []) => self.devices(),
            ("mounts", []) => self.mounts(),
            ("ls", []) => return self.at(b"/", Self::ls),
            ("ls", [b"-l"]) => return self.at(b"/", Self::ls_long),
            ("ls", [b"-l", word]) => return self.at(word, Self::ls_long),
            ("ls", [word]) => return self.at(word, Self::ls),
            ("stat", [word]) => return self.at(word, Self::stat),
            ("cat", [word]) => return self.at(word, Self::cat),
            ("sha256", [word]) => return self.at(word, Self::sha256),
            ("walk", []) => return self.at(b"/", Self::walk),
            ("walk", [word]) => return self.at(word, Self::walk),
            _ => {
                let is_known = names().any(|name| name.as_bytes() == words[0]);
                let why = if is_known {
                    "wrong arguments; help shows the right ones"
                } else {
                    "unknown command; help lists the commands"
                };
                return failure(&Text(words[0]), &why);
            }
        }
        true
    }

    /// Calls `act` with the share and the path that `word` refers to.
    fn at(&mut self, word: &[u8], act: impl FnOnce(&mut Self, &Mount<B>, &[u8]) -> bool) -> bool {
        let Some((mount, path)) = self.flow.shares.locate(word) else {
            return no_share(word);
        };
        // Resume the share if it was lost by an earlier command.
        mount.renew() && act(self, mount, path)
    }

    /// `mounts`: prints the prefix of the paths on each share.
    fn mounts(&mut self) {
        let mounted = &self.flow.shares.mounted;
        for (index, mount) in mounted.iter().enumerate() {
            let tag = mount.tag();
            let (major, minor) = mount.protocol();
            let root = if index == 0 { "/ and " } else { "" };
            self.output.line(format_args!(
                "{tag} on {root}{tag}:/ (FUSE {major}.{minor})"
            ));
        }
    }

    fn walk(&mut self, mount: &Mount<B>, path: &[u8]) -> bool {
        walk(mount, &mut self.names, &mut self.output, path)
    }

    /// `devices`: prints each device's address, tag and queues, or why it cannot be used.
    fn devices(&mut self) {
        let output = &mut self.output;
        for found in &self.flow.shares.found {
            let address = &found.address;
            match &found.state {
                Ok(config) => output.line(format_args!(
                    "{address}: tag {}, request queues: {}",
                    config.tag, config.request_queues
                )),
                Err(problem) => output.line(format_args!("{address}: not usable: {problem}")),
            }
        }
        if self.flow.shares.found.is_empty() {
            output.line(format_args!("no virtio-fs device"));
        }
    }

    fn ls(&mut self, mount: &Mount<B>, path: &[u8]) -> bool {
        self.list(mount, path, false)
    }

    fn ls_long(&mut self, mount: &Mount<B>, path: &[u8]) -> bool {
        self.list(mount, path, true)
    }

    fn list(&mut self, mount: &Mount<B>, path: &[u8], long: bool) -> bool {
        match self.try_list(mount, path, long) {
            Ok(ok) => ok,
            Err(error) => failure(&mount.shown(path), &error),
        }
    }

    fn try_list(&mut self, mount: &Mount<B>, path: &[u8], long: bool) -> Result<bool, ListError> {
        let metadata = mount.metadata(path)?;
        if !metadata.is_dir() {
            self.output.entry(path, &metadata, None, long);
            return Ok(true);
        }
        let directory = mount.open_dir(path)?;
        let mut list = self.names.read::<B>(&mut directory.read_dir()?)?;
        let mut ok = true;
        while let Some(name) = self.names.next(&mut list) {
            if !long {
                self.output.line(format_args!("{}", Text(name)));
                continue;
            }
            let metadata = match directory.symlink_metadata(name) {
                Ok(metadata) => metadata,
                Err(error) => {
                    ok = failure(&Text(name), &error);
                    continue;
                }
            };
            let mut target = [0; 4096];
            let target = match metadata.is_symlink() {
                true => directory.read_link(name, &mut target).ok(),
                false => None,
            };
            self.output.entry(name, &metadata, target, long);
        }
        self.names.drop_list(&list);
        Ok(ok)
    }

    fn stat(&mut self, mount: &Mount<B>, path: &[u8]) -> bool {
        let metadata = match mount.symlink_metadata(path) {
            Ok(metadata) => metadata,
            Err(error) => return failure(&mount.shown(path), &error),
        };
        let mut target = [0; 4096];
        let target = mount.read_link(path, &mut target).ok();
        let attr = metadata.attr();
        let output = &mut self.output;
        output.line(format_args!("path   {}", mount.shown(path)));
        output.line(format_args!("type   {}", type_name(metadata.file_type())));
        if let Some(target) = target {
            output.line(format_args!("target {}", Text(target)));
        }
        output.line(format_args!("size   {}", metadata.len()));
        output.line(format_args!("mode   {:04o}", metadata.permissions()));
        output.line(format_args!("owner  {}:{}", attr.uid, attr.gid));
        output.line(format_args!("links  {}", attr.nlink));
        output.line(format_args!("inode  {}", attr.ino));
        output.line(format_args!("mtime  {}", Date(attr.mtime)));
        true
    }

    fn cat(&mut self, mount: &Mount<B>, path: &[u8]) -> bool {
        let printed = mount.open(path).and_then(|file| {
            for_each_piece::<B>(&file, self.output.buffer, |piece| B::write_console(piece))
        });
        printed.map_or_else(|error| failure(&mount.shown(path), &error), |_| true)
    }

    fn sha256(&mut self, mount: &Mount<B>, path: &[u8]) -> bool {
        let digest = mount
            .open(path)
            .and_then(|file| DigestText::of_file::<B>(&file, self.output.buffer));
        match digest {
            Ok((_, digest)) => {
                self.output
                    .line(format_args!("{digest}  {}", mount.shown(path)));
                true
            }
            Err(error) => failure(&mount.shown(path), &error),
        }
    }
}

/// `entries`: prints the boot entries in their order, or why one is passed over.
#[inline(never)]
fn entries<B: Board>(flow: &Flow<'_, B>, arena: &mut Arena<'_>) -> bool {
    let arena = &mut arena.rest();
    let Ok(choices) = flow.entries(arena) else {
        return false;
    };
    let console = &mut Console::<B>::new();
    let mut mark = '*';
    for listed in &choices.list {
        let mark = match listed.choice.entry(B::ARCHITECTURE, false) {
            Ok(_) => core::mem::replace(&mut mark, ' '),
            Err(_) => '-',
        };
        _ = writeln!(console, "{mark} {}", listed.described());
    }
    if choices.list.is_empty() {
        _ = writeln!(console, "no boot entry");
    }
    true
}
