//! The shell's commands, from `bootshare.cmd` for now.

use super::{
    Board, Failed,
    arena::Memory,
    choose,
    console::{Text, failure},
    entry::Path,
    names::{ListError, Names},
    output::{Date, Output, type_name},
    shares::{BoardShare, Shares},
    walk::walk,
};
use crate::boot::{commands::Commands, options::Options};
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
    shares: &'a Shares<B>,
    /// What `bootshare.entry` says.
    wanted: Option<&'a [u8]>,
    names: Names<'a>,
    output: Output<'a, B>,
}

/// Runs the commands in `line`. All are run; it fails if one of them does.
#[inline(never)] // So that the large frames of the boot flow do not add up.
pub(super) fn run<B: Board>(
    line: &[u8],
    options: &Options<'_>,
    shares: &mut Shares<B>,
    memory: &mut Memory,
) -> Result<(), Failed> {
    let mut arena = memory.arena();
    let scratch = arena.take_largest(MAX_SCRATCH).map_err(|error| {
        log::error!("{error}");
        Failed
    })?;
    let middle = FILE_BUFFER.min(scratch.bytes.len() / 2);
    let (buffer, names) = scratch.bytes.split_at_mut(middle);
    let share = mount(shares);
    let mut shell = Shell {
        shares,
        wanted: options.entry,
        names: Names::new(names),
        output: Output::new(buffer),
    };
    let mut ok = true;
    let mut commands = Commands::new(line);
    let mut words_buffer = [0; MAX_COMMAND];
    while let Some(words) = commands.next(&mut words_buffer) {
        ok &= match words {
            Ok(words) => shell.command(share.as_ref(), &words),
            Err(error) => {
                log::error!("bootshare.cmd: {error}");
                false
            }
        };
    }
    if let Some(share) = share {
        let tag = share.tag();
        if let Err(error) = share.unmount() {
            log::error!("share {tag}: {error}");
            ok = false;
        }
    }
    if ok { Ok(()) } else { Err(Failed) }
}

/// The first share that can be mounted.
fn mount<B: Board>(shares: &mut Shares<B>) -> Option<BoardShare<B>> {
    while let Some(mounted) = shares.mount_next() {
        if let Ok(share) = mounted {
            return Some(share);
        }
    }
    None
}

impl<B: Board> Shell<'_, B> {
    /// Runs a command; whether it succeeded.
    fn command(&mut self, share: Option<&BoardShare<B>>, words: &[&[u8]]) -> bool {
        match (words, share) {
            ([b"help"], _) => self.output.text(HELP),
            ([b"devices"], _) => self.devices(),
            ([b"mounts"], _) => {
                if let Some(share) = share {
                    let (major, minor) = share.protocol();
                    let tag = share.tag();
                    self.output
                        .line(format_args!("{tag} on / (FUSE {major}.{minor})"));
                }
            }
            (_, Some(share)) => return self.share_command(share, words),
            (_, None) => {
                log::error!("{}: no share is mounted", Text(words[0]));
                return false;
            }
        }
        true
    }

    /// Runs a command that is about files.
    fn share_command(&mut self, share: &BoardShare<B>, words: &[&[u8]]) -> bool {
        // What a command before has lost is tried again.
        if let Err(error) = share.resume() {
            log::error!("share {}: {error}", share.tag());
            return false;
        }
        match words {
            [b"entries"] => self.entries(share),
            [b"ls"] => self.ls(share, b"/", false),
            [b"ls", b"-l"] => self.ls(share, b"/", true),
            [b"ls", b"-l", path] => self.ls(share, path, true),
            [b"ls", path] => self.ls(share, path, false),
            [b"stat", path] => self.stat(share, path),
            [b"cat", path] => self.cat(share, path),
            [b"sha256", path] => self.sha256(share, path),
            [b"walk"] => walk(share, &mut self.names, &mut self.output, b"/"),
            [b"walk", path] => walk(share, &mut self.names, &mut self.output, path),
            _ => {
                let name = Text(words[0]);
                if HELP.lines().any(|line| is_help_of(line, words[0])) {
                    log::error!("{name}: wrong arguments; help shows what it takes");
                } else {
                    log::error!("{name}: there is no such command; help lists those there are");
                }
                false
            }
        }
    }

    /// Prints each device's address, tag and queues, or why it can't be used.
    fn devices(&mut self) {
        let output = &mut self.output;
        for found in &self.shares.found {
            let address = &found.address;
            match &found.state {
                Ok(config) => output.line(format_args!(
                    "{address}: tag {}, request queues: {}",
                    config.tag, config.request_queues
                )),
                Err(problem) => output.line(format_args!("{address}: not usable: {problem}")),
            }
        }
        if self.shares.found.is_empty() {
            output.line(format_args!("no virtio-fs device"));
        }
    }

    /// Prints the boot entries in their order: id, title and kernel, or why one is passed over.
    fn entries(&mut self, share: &BoardShare<B>) -> bool {
        let (console, scratch) = self.output.parts();
        let Ok(choices) = choose::gather::<B>(share, scratch, self.wanted) else {
            return false;
        };
        let mut first = true;
        for choice in &choices {
            let (id, title) = (Text(choice.id()), Text(choice.title()));
            _ = match choice.entry(B::ARCHITECTURE) {
                Ok(entry) => {
                    let mark = if core::mem::take(&mut first) {
                        '*'
                    } else {
                        ' '
                    };
                    let kernel = Path::join(entry.directory, entry.kernel);
                    let space = if choice.title().is_empty() { "" } else { " " };
                    writeln!(console, "{mark} {id}: {title}{space}({kernel})")
                }
                Err(error) if error.is_hidden() => {
                    writeln!(console, "- {id}: passed over: {error}")
                }
                Err(error) => writeln!(console, "- {id}: {error}"),
            };
        }
        if choices.is_empty() {
            _ = writeln!(console, "no boot entry");
        }
        true
    }

    fn ls(&mut self, share: &BoardShare<B>, path: &[u8], long: bool) -> bool {
        match self.try_ls(share, path, long) {
            Ok(ok) => ok,
            Err(error) => failure(path, error),
        }
    }

    fn try_ls(
        &mut self,
        share: &BoardShare<B>,
        path: &[u8],
        long: bool,
    ) -> Result<bool, ListError> {
        let metadata = share.metadata(path)?;
        if !metadata.is_dir() {
            self.output.entry(path, &metadata, None, long);
            return Ok(true);
        }
        let directory = share.open_dir(path)?;
        let mut list = self.names.read::<B>(share, path)?;
        let mut ok = true;
        while let Some(name) = self.names.next(&mut list) {
            if !long {
                self.output.line(format_args!("{}", Text(name)));
                continue;
            }
            let metadata = match directory.symlink_metadata(name) {
                Ok(metadata) => metadata,
                Err(error) => {
                    ok = failure(name, error);
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

    fn stat(&mut self, share: &BoardShare<B>, path: &[u8]) -> bool {
        let metadata = match share.symlink_metadata(path) {
            Ok(metadata) => metadata,
            Err(error) => return failure(path, error),
        };
        let mut target = [0; 4096];
        let target = share.read_link(path, &mut target).ok();
        let attr = metadata.attr();
        let output = &mut self.output;
        output.line(format_args!("path   {}", Text(path)));
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

    fn cat(&mut self, share: &BoardShare<B>, path: &[u8]) -> bool {
        let printed = share.open(path).and_then(|file| {
            self.output
                .for_each_piece(&file, |piece| B::write_console(piece))
        });
        printed.map_or_else(|error| failure(path, error), |_| true)
    }

    fn sha256(&mut self, share: &BoardShare<B>, path: &[u8]) -> bool {
        let digest = share.open(path).and_then(|file| self.output.digest(&file));
        match digest {
            Ok((_, digest)) => {
                self.output.line(format_args!("{digest}  {}", Text(path)));
                true
            }
            Err(error) => failure(path, error),
        }
    }
}

/// Whether a line of [`HELP`] is about `command`.
fn is_help_of(line: &str, command: &[u8]) -> bool {
    line.split(' ').next().map(str::as_bytes) == Some(command)
}
