//! The shell's commands, from `bootshare.cmd` for now.

use super::{
    Board, Failed,
    arena::Arena,
    boot::Flow,
    console::{Console, Text, failure},
    entry::Path,
    names::{ListError, Names},
    output::{Date, Output, type_name},
    shares::Mount,
    walk::walk,
};
use crate::boot::commands::Commands;
use core::fmt::Write;

/// Longest command in bytes.
const MAX_COMMAND: usize = 4096;
/// The most scratch memory that is used, in bytes.
const MAX_SCRATCH: u64 = 256 << 20;
/// Bytes of a file that are read at a time.
const FILE_BUFFER: usize = 4 << 20;

const HELP: &str = "\
cat PATH        print a file
devices         the virtio-fs devices of this machine
entries         the share's boot entries; * is the one to be booted
help            these lines
ls [-l] [PATH]  list a directory
mounts          the shares that are mounted
sha256 PATH     SHA-256 of a file
stat PATH       what a file is
walk [PATH]     every file below a directory: TYPE SIZE SHA256 PATH
";

/// What the commands work with.
struct Shell<'a, B: Board> {
    flow: &'a Flow<'a, B>,
    names: Names<'a>,
    output: Output<'a, B>,
}

/// Runs the commands in `line`. All are run; it fails if one of them does.
#[inline(never)] // So that the large frames of the boot flow do not add up.
pub(super) fn run<B: Board>(
    flow: &Flow<'_, B>,
    line: &[u8],
    arena: &mut Arena<'_>,
) -> Result<(), Failed> {
    let mut ok = true;
    let mut commands = Commands::new(line);
    let mut words_buffer = [0; MAX_COMMAND];
    while let Some(words) = commands.next(&mut words_buffer) {
        ok &= match words {
            Ok(words) => command(flow, &words, arena.rest()),
            Err(error) => {
                log::error!("bootshare.cmd: {error}");
                false
            }
        };
    }
    if ok { Ok(()) } else { Err(Failed) }
}

/// Runs a command; whether it succeeded.
fn command<B: Board>(flow: &Flow<'_, B>, words: &[&[u8]], mut arena: Arena<'_>) -> bool {
    if let [b"entries"] = words {
        return entries(flow, &mut arena);
    }
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
        match words {
            [b"help"] => self.output.text(HELP),
            [b"devices"] => self.devices(),
            [b"mounts"] => self.mounts(),
            [b"ls"] => return self.at(b"/", |shell, at, path| shell.ls(at, path, false)),
            [b"ls", b"-l"] => return self.at(b"/", |shell, at, path| shell.ls(at, path, true)),
            [b"ls", b"-l", word] => {
                return self.at(word, |shell, at, path| shell.ls(at, path, true));
            }
            [b"ls", word] => return self.at(word, |shell, at, path| shell.ls(at, path, false)),
            [b"stat", word] => return self.at(word, Self::stat),
            [b"cat", word] => return self.at(word, Self::cat),
            [b"sha256", word] => return self.at(word, Self::sha256),
            [b"walk"] => return self.at(b"/", Self::walk),
            [b"walk", word] => return self.at(word, Self::walk),
            _ => {
                let is_known = HELP.lines().any(|line| is_help_of(line, words[0]));
                let why = if is_known {
                    "wrong arguments; help shows what it takes"
                } else {
                    "there is no such command; help lists those there are"
                };
                return failure(&Text(words[0]), &why);
            }
        }
        true
    }

    /// Does something with the path that `word` names, on its share.
    fn at(&mut self, word: &[u8], act: impl FnOnce(&mut Self, &Mount<B>, &[u8]) -> bool) -> bool {
        let Some((mount, path)) = self.flow.shares.locate(word) else {
            return failure(&Text(word), &"no share is mounted");
        };
        // What a command before has lost is tried again.
        mount.renew() && act(self, mount, path)
    }

    /// Prints where each share is.
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

    /// Prints each device's address, tag and queues, or why it can't be used.
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

    fn ls(&mut self, mount: &Mount<B>, path: &[u8], long: bool) -> bool {
        match self.try_ls(mount, path, long) {
            Ok(ok) => ok,
            Err(error) => failure(&mount.shown(path), &error),
        }
    }

    fn try_ls(&mut self, mount: &Mount<B>, path: &[u8], long: bool) -> Result<bool, ListError> {
        let metadata = mount.metadata(path)?;
        if !metadata.is_dir() {
            self.output.entry(path, &metadata, None, long);
            return Ok(true);
        }
        let directory = mount.open_dir(path)?;
        let mut list = self.names.read::<B>(mount, path)?;
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
            self.output
                .for_each_piece(&file, |piece| B::write_console(piece))
        });
        printed.map_or_else(|error| failure(&mount.shown(path), &error), |_| true)
    }

    fn sha256(&mut self, mount: &Mount<B>, path: &[u8]) -> bool {
        let digest = mount.open(path).and_then(|file| self.output.digest(&file));
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

/// Prints the boot entries in their order: id, title and kernel, or why one is passed over.
#[inline(never)] // As above.
fn entries<B: Board>(flow: &Flow<'_, B>, arena: &mut Arena<'_>) -> bool {
    for mount in &flow.shares.mounted {
        mount.renew();
    }
    let Ok(choices) = flow.entries(&mut arena.rest()) else {
        return false;
    };
    let console = &mut Console::<B>::new();
    let mut mark = '*';
    for listed in &choices.list {
        let (id, title) = (Text(listed.choice.id()), Text(listed.choice.title()));
        _ = match listed.choice.entry(B::ARCHITECTURE) {
            Ok(entry) => {
                let kernel = Path::join(entry.directory, entry.kernel);
                let kernel = listed.mount.shown(&kernel);
                let space = if title.0.is_empty() { "" } else { " " };
                let mark = core::mem::replace(&mut mark, ' ');
                writeln!(console, "{mark} {id}: {title}{space}({kernel})")
            }
            Err(error) if error.is_hidden() => {
                writeln!(console, "- {id}: passed over: {error}")
            }
            Err(error) => writeln!(console, "- {id}: {error}"),
        };
    }
    if choices.list.is_empty() {
        _ = writeln!(console, "no boot entry");
    }
    true
}

/// Whether a line of [`HELP`] is about `command`.
fn is_help_of(line: &str, command: &[u8]) -> bool {
    line.split(' ').next().map(str::as_bytes) == Some(command)
}
