//! Several directories as one share, compared entry by entry with the kernel's overlayfs.

use crate::{TestDir, share};
use bootshare::{Error, FileType};
use bootshare_test_device::TestShare;
use rustix::fs::{CWD, FileType as HostType, Mode, XattrFlags, mknodat, setxattr};
use std::{
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};
use tempfile::TempDir;

/// Three directories that become layers; the first one is on top.
struct Stack {
    dir: TempDir,
}

const LAYERS: [&str; 3] = ["top", "middle", "bottom"];

impl Stack {
    fn new() -> Self {
        let stack = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        for name in LAYERS.iter().chain(&["merged"]) {
            fs::create_dir(stack.dir.path().join(name)).unwrap();
        }
        stack
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn layers(&self) -> Vec<PathBuf> {
        LAYERS.iter().map(|name| self.path(name)).collect()
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn link(&self, path: &str, target: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    /// Since Linux 5.8, any user may make the device 0/0, which is a whiteout.
    fn whiteout(&self, path: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mode = Mode::from_raw_mode(0o600);
        mknodat(CWD, &path, HostType::CharacterDevice, mode, 0).unwrap();
    }

    fn attribute(&self, path: &str, name: &str, value: &str) {
        let path = self.path(path);
        fs::create_dir_all(&path).unwrap();
        setxattr(&path, name, value.as_bytes(), XattrFlags::empty())
            .unwrap_or_else(|error| panic!("cannot set {name} on {}: {error}", path.display()));
    }

    /// The cases of the table in docs/host-tool.md. Opaque directories have the attribute `opaque`.
    fn fill(&self, opaque: &str) {
        self.fill_with_covered();
        self.fill_with_whiteouts();
        self.fill_with_opaque(opaque);
        self.fill_with_links();

        // Odd names. Those that AUFS gives a meaning are plain files for overlayfs.
        self.write("top/.wh.only-bottom", "");
        self.write("middle/new\nline", "n");
        let name = OsStr::from_bytes(b"not \xff utf-8");
        fs::write(self.path("bottom").join(name), "o").unwrap();
        fs::write(self.path("middle").join(name), "covers").unwrap();
    }

    fn fill_with_covered(&self) {
        // Directories are merged, and an upper file covers a lower one.
        self.write("top/merge/a", "top a");
        self.write("middle/merge/a", "middle a");
        self.write("middle/merge/b", "middle b");
        self.write("bottom/merge/b", "bottom b, longer");
        self.write("bottom/merge/c", "bottom c");
        self.write("bottom/merge/below/deep/er", "deeper");
        self.write("top/merge/below/deep/top", "on top");
        fs::set_permissions(
            self.path("top/merge/below"),
            fs::Permissions::from_mode(0o750),
        )
        .unwrap();
        self.write("bottom/only-bottom", "b");
        self.write("middle/only-middle/file", "m");

        // A directory covers a file, and a file covers a directory with everything below it.
        self.write("top/file-over-dir", "a file");
        self.write("bottom/file-over-dir/hidden", "hidden");
        self.write("top/dir-over-file/seen", "seen");
        self.write("middle/dir-over-file", "a file");
        self.write("bottom/dir-over-file/hidden", "hidden by the file between");
        self.link("top/link-over-dir", "merge");
        self.write("bottom/link-over-dir/hidden", "hidden");
    }

    fn fill_with_whiteouts(&self) {
        self.write("bottom/gone", "gone");
        self.whiteout("top/gone");
        self.write("middle/gone-below/a", "a");
        self.whiteout("middle/gone-below/b");
        self.write("bottom/gone-below/b", "b");
        self.whiteout("top/gone-dir");
        self.write("middle/gone-dir/x", "x");
        self.write("bottom/gone-dir/y", "y");
        self.write("top/made-again", "again");
        self.whiteout("middle/made-again");
        self.write("bottom/made-again", "first");
        self.write("top/dir-again/new", "new");
        self.whiteout("middle/dir-again");
        self.write("bottom/dir-again/old", "old");
        self.whiteout("bottom/of-nothing");
        self.whiteout("middle/merge/c");
    }

    fn fill_with_opaque(&self, opaque: &str) {
        self.attribute("top/opaque", opaque, "y");
        self.write("top/opaque/new", "new");
        self.write("middle/opaque/old", "old");
        self.write("bottom/opaque/older", "older");
        self.attribute("middle/half-opaque", opaque, "y");
        self.write("top/half-opaque/a", "a");
        self.write("middle/half-opaque/b", "b");
        self.write("bottom/half-opaque/c", "c");
        self.attribute("top/not-opaque", opaque, "n");
        self.write("bottom/not-opaque/seen", "seen");
    }

    /// Links to other layers, and to covered files.
    fn fill_with_links(&self) {
        self.link("top/link-down", "merge/b");
        self.link("middle/link-up", "merge/below/deep/top");
        self.link("bottom/link-absolute", "/merge/a");
        self.link("bottom/link-out", "../../../../etc/hostname");
        self.link("top/link-dangling", "gone");
        self.link("bottom/merge/linked-dir", "../dir-again");
        fs::hard_link(self.path("bottom/only-bottom"), self.path("bottom/hard")).unwrap();
    }

    /// Mounts the layers with the kernel's overlayfs, in a new mount namespace.
    fn mount(&self, privileged: bool) -> Mounted {
        // An ordinary user may mount in a user namespace.
        let namespace = if is_root() { "-m" } else { "-rm" };
        let userxattr = if privileged { "" } else { "userxattr," };
        let lower: Vec<_> = self
            .layers()
            .iter()
            .map(|l| l.display().to_string())
            .collect();
        let merged = self.path("merged");
        let script = format!(
            "mount -t overlay overlay -o {userxattr}lowerdir={} {} && echo mounted && read end",
            lower.join(":"),
            merged.display()
        );
        let mut child = Command::new("unshare")
            .args([namespace, "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("unshare, of util-linux");
        let mut line = String::new();
        let output = child.stdout.as_mut().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        if line.trim() != "mounted" {
            let mut errors = String::new();
            child
                .stderr
                .take()
                .unwrap()
                .read_to_string(&mut errors)
                .unwrap();
            panic!(
                "the kernel's overlayfs cannot be mounted, and is needed here; run this as root, or \
                 allow user namespaces (sysctl kernel.apparmor_restrict_unprivileged_userns=0): {errors}"
            );
        }
        let root = PathBuf::from(format!("/proc/{}/root", child.id()));
        Mounted {
            root: root.join(merged.strip_prefix("/").unwrap()),
            child,
        }
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A mount in the namespace of a process. It is accessed through that process and disappears with it.
struct Mounted {
    root: PathBuf,
    child: Child,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}

/// The entries below a directory of the host, in order, one on a line.
fn of_host(dir: &Path) -> Vec<String> {
    fn below(dir: &Path, path: &str, lines: &mut Vec<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{path}/{}", entry.file_name().as_bytes().escape_ascii());
            let meta = entry.path().symlink_metadata().unwrap();
            let kind = meta.file_type();
            let (letter, content) = if kind.is_dir() {
                below(&entry.path(), &path, lines);
                ('d', Vec::new())
            } else if kind.is_symlink() {
                let target = fs::read_link(entry.path()).unwrap();
                ('l', target.as_os_str().as_bytes().to_vec())
            } else if kind.is_char_device() {
                ('c', Vec::new())
            } else {
                ('f', fs::read(entry.path()).unwrap())
            };
            lines.push(format!(
                "{path} {letter} {:o} {}:{} {} {}.{} {}",
                meta.mode() & 0o7777,
                meta.uid(),
                meta.gid(),
                if kind.is_dir() { 0 } else { meta.len() },
                meta.mtime(),
                meta.mtime_nsec(),
                content.escape_ascii()
            ));
        }
    }
    let mut lines = Vec::new();
    below(dir, "", &mut lines);
    lines.sort();
    lines
}

/// The same for a share.
fn of_share(share: &TestShare) -> Vec<String> {
    fn below(dir: &TestDir<'_>, path: &str, lines: &mut Vec<String>) {
        for entry in dir.read_dir().unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name();
            let path = format!("{path}/{}", name.escape_ascii());
            let meta = dir.symlink_metadata(name).unwrap();
            let mut buf = [0; 4096];
            let (letter, content) = match meta.file_type() {
                FileType::Directory => {
                    below(&dir.open_dir(name).unwrap(), &path, lines);
                    ('d', &[][..])
                }
                FileType::Symlink => ('l', dir.read_link(name, &mut buf).unwrap()),
                FileType::CharDevice => ('c', &[][..]),
                _ => {
                    let size = dir.open_file(name).unwrap().read_at(0, &mut buf).unwrap();
                    ('f', &buf[..size])
                }
            };
            assert_eq!(entry.file_type(), Some(meta.file_type()), "{path}");
            let (seconds, nanoseconds) = meta.modified();
            lines.push(format!(
                "{path} {letter} {:o} {}:{} {} {seconds}.{nanoseconds} {}",
                meta.permissions(),
                meta.attr().uid,
                meta.attr().gid,
                if letter == 'd' { 0 } else { meta.len() },
                content.escape_ascii()
            ));
        }
    }
    let mut lines = Vec::new();
    below(&share.open_dir("/").unwrap(), "", &mut lines);
    lines.sort();
    lines
}

fn compare(stack: &Stack, privileged: bool) -> Vec<String> {
    let mounted = stack.mount(privileged);
    let mut expected = of_host(&mounted.root);
    if !is_root() {
        // In the user namespace, files of root belong to the test's user.
        let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
        let ours = format!(" {}:{} ", user.as_raw(), group.as_raw());
        for line in &mut expected {
            assert!(line.contains(" 0:0 ") || line.contains(&ours), "{line}");
            *line = line.replacen(" 0:0 ", &ours, 1);
        }
    }
    let share = share(stack.layers());
    let ours = of_share(&share);
    for (ours, expected) in ours.iter().zip(&expected) {
        assert_eq!(ours, expected);
    }
    assert_eq!(ours.len(), expected.len());
    share.unmount().unwrap();
    ours
}

#[test]
fn three_layers_look_like_a_mount_of_overlayfs() {
    let stack = Stack::new();
    stack.fill("user.overlay.opaque");
    let lines = compare(&stack, false);
    // Asserts that the cases exist, independently of overlayfs.
    for (path, seen) in [
        ("/merge/below/deep/er ", true),
        ("/file-over-dir/hidden ", false),
        ("/dir-over-file/seen ", true),
        ("/dir-over-file/hidden ", false),
        ("/gone ", false),
        ("/gone-below/b ", false),
        ("/gone-dir ", false),
        ("/made-again ", true),
        ("/dir-again/old ", false),
        ("/opaque/new ", true),
        ("/opaque/old ", false),
        ("/half-opaque/b ", true),
        ("/half-opaque/c ", false),
        ("/not-opaque/seen ", true),
        ("/.wh.only-bottom ", true),
        ("/not \\xff utf-8 ", true),
    ] {
        let found = lines.iter().any(|line| line.starts_with(path));
        assert_eq!(found, seen, "{path}");
    }
}

/// Only root can read and write `trusted` attributes. `make test` runs this test as root.
#[test]
#[ignore = "it needs root"]
fn trusted_attributes_count_for_root() {
    let stack = Stack::new();
    stack.fill("trusted.overlay.opaque");
    compare(&stack, true);
}

#[test]
fn ten_thousand_entries_in_three_layers() {
    let stack = Stack::new();
    for number in 0..10_000 {
        for (index, layer) in LAYERS.iter().enumerate() {
            // A third of the names is in all layers; some are whiteouts.
            if number % 3 == index || number % 3 == 0 {
                if index < 2 && number % 100 == 3 {
                    stack.whiteout(&format!("{layer}/many/{number}"));
                } else {
                    stack.write(&format!("{layer}/many/{number}"), layer);
                }
            }
        }
    }
    let lines = compare(&stack, false);
    assert!(lines.len() > 9_000, "{}", lines.len());
}

/// Supported by Linux 6.7 and newer. Older kernels know only devices as whiteouts.
#[test]
fn an_empty_file_with_an_attribute_is_a_whiteout() {
    let stack = Stack::new();
    stack.write("top/gone", "");
    stack.attribute("top", "user.overlay.opaque", "x");
    setxattr(
        stack.path("top/gone"),
        "user.overlay.whiteout",
        b"",
        XattrFlags::empty(),
    )
    .unwrap();
    stack.write("middle/gone", "gone");
    stack.write("bottom/kept", "kept");
    stack.write("top/empty", "");
    let several = share(stack.layers());
    let names = |share: &TestShare| {
        let entries = share.read_dir("/").unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().to_vec())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(&several), [&b"empty"[..], b"kept"]);
    assert_eq!(several.metadata("gone").err(), Some(Error::NotFound));
    several.unmount().unwrap();
    // A single directory is shown unchanged.
    let single = share(vec![stack.path("top")]);
    assert_eq!(names(&single), [&b"empty"[..], b"gone"]);
    single.unmount().unwrap();
}

#[test]
fn a_single_directory_shows_its_whiteouts() {
    let stack = Stack::new();
    stack.fill("user.overlay.opaque");
    for layer in stack.layers() {
        let share = share(vec![layer.clone()]);
        assert_eq!(of_share(&share), of_host(&layer));
        share.unmount().unwrap();
    }
}

#[test]
fn a_share_may_be_a_mount_of_overlayfs_itself() {
    let stack = Stack::new();
    stack.fill("user.overlay.opaque");
    let mounted = stack.mount(false);
    let share = share(vec![mounted.root.clone()]);
    assert_eq!(of_share(&share), of_host(&mounted.root));
    share.unmount().unwrap();
}

#[test]
fn links_are_followed_across_layers() {
    let stack = Stack::new();
    stack.fill("user.overlay.opaque");
    let share = share(stack.layers());
    for (path, text) in [
        ("link-down", "middle b"),
        ("link-up", "on top"),
        ("link-absolute", "top a"),
        ("link-over-dir/a", "top a"),
        ("merge/linked-dir/new", "new"),
    ] {
        let mut buf = [0; 64];
        let size = share.open(path).unwrap().read_at(0, &mut buf).unwrap();
        assert_eq!(&buf[..size], text.as_bytes(), "{path}");
    }
    for path in ["link-dangling", "link-out", "merge/linked-dir/old"] {
        assert_eq!(share.open(path).err(), Some(Error::NotFound), "{path}");
    }
    share.unmount().unwrap();
}
