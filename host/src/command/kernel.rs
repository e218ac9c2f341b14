//! Which kernel a command runs under, and where its modules are.

use std::cmp::Ordering;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use object::read::ReadCache;
use object::read::pe::PeFile64;
use object::{Object, ObjectSection};

use crate::board::{Arch, Board};
use crate::explain::Explain;
use crate::modules::Modules;
use crate::prepare::compression;
use crate::qemu::{Share, readable};

/// Prefixes of kernels' names that are followed by a version, in `/boot` or the tree itself.
const WITH_VERSION: [&str; 4] = ["vmlinuz-", "Image-", "vmlinux-", "kernel-"];

/// Kernels' names without a version: in trees, and in a kernel's build directory.
const WITHOUT_VERSION: [&str; 9] = [
    "boot/vmlinuz",
    "boot/Image",
    "vmlinuz",
    "Image",
    "bzImage",
    "arch/x86/boot/bzImage",
    "arch/arm64/boot/Image",
    "arch/arm64/boot/Image.gz",
    "arch/arm64/boot/vmlinuz.efi",
];

/// The directories of a tree that hold the modules of its kernels.
const MODULES: [&str; 2] = ["usr/lib/modules", "lib/modules"];

/// A kernel to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The file.
    pub path: PathBuf,
    /// The kernel's place in a unified kernel image: offset and size in bytes.
    pub part: Option<(u64, u64)>,
    /// Its version, as `uname -r` prints it, if it is known.
    pub version: Option<String>,
    /// The directory of its modules, if there is one.
    pub modules: Option<PathBuf>,
    /// Its architecture, if it is known.
    pub arch: Option<Arch>,
}

impl Kernel {
    /// The kernel at the given path (a file, a tree with kernels, an unpacked package, or a
    /// kernel's build directory), or else the newest of `trees`. Its modules are in the given
    /// directory, or are searched beside the kernel and in `trees`. Of a unified kernel image only
    /// the kernel is used.
    ///
    /// # Errors
    /// There is no kernel, or it cannot be read.
    pub fn find(named: Option<&Path>, modules: Option<&Path>, trees: &[PathBuf]) -> Result<Self> {
        for tree in trees {
            readable(tree)?;
        }
        let (path, name) = match named {
            Some(file) if !file.is_dir() => {
                // It is read several times, and opening a FIFO would wait for its other end.
                ensure!(
                    fs::metadata(file).map_or(true, |found| found.is_file()),
                    "cannot read the kernel {}: it is neither a file nor a directory: copy it to a \
                     file",
                    file.display()
                );
                let head = head(file, 0)?;
                ensure!(
                    arch_of(&head).is_some() || compression(&head).is_some(),
                    "{} is no kernel: name a bzImage, an arm64 Image (also compressed), a zboot \
                     image, a vmlinux or a unified kernel image",
                    file.display()
                );
                (file.to_owned(), version_of_name(file))
            }
            Some(dir) => newest(std::slice::from_ref(&dir.to_owned())).with_context(|| {
                format!(
                    "there is no kernel in {}: name a kernel, a directory of kernels, or a \
                     kernel's build directory",
                    dir.display()
                )
            })?,
            None => newest(trees).with_context(|| {
                let trees: Vec<_> = trees
                    .iter()
                    .map(|tree| tree.display().to_string())
                    .collect();
                format!(
                    "there is no kernel in {}: install one there, or name one with --kernel",
                    trees.join(" or ")
                )
            })?,
        };
        let unified = unified(&path).explain(
            format_args!("cannot read the kernel {}", path.display()),
            "name one that you can read with --kernel",
        )?;
        let part = unified.as_ref().map(|unified| unified.linux);
        let version = match &unified {
            Some(unified) => version_in(&head(&path, unified.linux.0)?).or(unified.version.clone()),
            None => version_in(&head(&path, 0)?),
        };
        let version = version.or(name);
        let modules = match (modules, &version) {
            (Some(dir), _) => {
                ensure!(
                    dir.join("modules.builtin").is_file(),
                    "there is no modules.builtin in {}: name the directory that `make \
                     modules_install` makes, lib/modules/VERSION",
                    dir.display()
                );
                Some(dir.to_owned())
            }
            (None, Some(version)) => modules_of(&path, named, trees, version),
            (None, None) => None,
        };
        Ok(Self {
            arch: arch_of(&head(&path, 0)?),
            path,
            part,
            version,
            modules,
        })
    }

    /// Copies the kernel to the file `to`.
    ///
    /// # Errors
    /// It cannot be read, or the file cannot be written.
    pub fn copy(&self, to: &Path) -> io::Result<()> {
        match self.part {
            None => fs::copy(&self.path, to)?,
            Some((at, size)) => io::copy(&mut part(&self.path, at, size)?, &mut File::create(to)?)?,
        };
        Ok(())
    }

    /// Its modules as a share, and the path where programs expect them; `None` if they are in one
    /// of `trees` at that path.
    pub fn share(&self, trees: &[PathBuf]) -> Option<(Share, String)> {
        let (dir, version) = (self.modules.as_ref()?, self.version.as_ref()?);
        let real = |path: &Path| fs::canonicalize(path).ok();
        let is_in_tree = |tree: &PathBuf| {
            let mut places = MODULES.iter().map(|dir| tree.join(dir).join(version));
            places.any(|place| real(&place).is_some_and(|place| real(dir) == Some(place)))
        };
        let share = Share::new("bootshare-modules", dir);
        (!trees.iter().any(is_in_tree)).then(|| (share, format!("/lib/modules/{version}")))
    }

    /// The default board for this kernel: of its architecture, and with a bus that it has a driver
    /// for.
    pub fn board(&self, modules: Option<&Modules>) -> Board {
        let of_this_machine = if cfg!(target_arch = "aarch64") {
            Arch::Aarch64
        } else {
            Arch::X86_64
        };
        let has_mmio = modules.is_none_or(|modules| modules.has("virtio_mmio"));
        match (self.arch.unwrap_or(of_this_machine), has_mmio) {
            (Arch::X86_64, true) => Board::X86_64Microvm,
            (Arch::X86_64, false) => Board::X86_64Q35,
            (Arch::Aarch64, true) => Board::Aarch64Virt,
            (Arch::Aarch64, false) => Board::Aarch64VirtPci,
        }
    }
}

/// The newest kernel of the trees, and the version in its name.
fn newest(trees: &[PathBuf]) -> Option<(PathBuf, Option<String>)> {
    let mut found = Vec::new();
    for tree in trees {
        for dir in [tree.join("boot"), tree.clone()] {
            for path in entries(&dir) {
                if path.is_file()
                    && let Some(version) = version_of_name(&path)
                    && !is_leftover(&version)
                {
                    found.push((version, path));
                }
            }
        }
        // Debian since 14, Fedora.
        for dir in MODULES.iter().flat_map(|dir| entries(&tree.join(dir))) {
            let path = dir.join("vmlinuz");
            if let Some(version) = dir.file_name().filter(|_| path.is_file()) {
                found.push((version.to_string_lossy().into_owned(), path));
            }
        }
    }
    // Of equal versions the first is taken: an earlier tree covers a later one.
    let newest = found
        .into_iter()
        .reduce(|best, next| match compare(&next.0, &best.0) {
            Ordering::Greater => next,
            _ => best,
        });
    if let Some((version, path)) = newest {
        return Some((path, Some(version)));
    }
    let mut paths = trees
        .iter()
        .flat_map(|tree| WITHOUT_VERSION.iter().map(|name| tree.join(name)));
    let path = paths.find(|path| path.is_file())?;
    let real = fs::canonicalize(&path).ok();
    let version = real.as_deref().and_then(version_of_name);
    Some((path, version))
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    // A directory that does not exist has none.
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn version_of_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let version = WITH_VERSION
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix));
    if let Some(version) = version {
        return Some(version.to_owned());
    }
    // lib/modules/VERSION/vmlinuz
    let dir = path.parent()?;
    let is_modules = dir.parent()?.file_name()? == "modules";
    Some(dir.file_name()?.to_str()?.to_owned()).filter(|_| is_modules)
}

/// Whether a file of this version was left over by a package manager or an editor, is a rescue image, or
/// belongs to another file, as a signature does. The firmware leaves out the same names.
fn is_leftover(version: &str) -> bool {
    const ENDINGS: [&str; 10] = [
        "~",
        ".old",
        ".bak",
        ".orig",
        ".sig",
        ".sha256",
        ".hmac",
        ".dpkg-bak",
        ".dpkg-new",
        ".dpkg-tmp",
    ];
    let is_spare = version.contains("-rescue") || version.contains("fallback");
    is_spare || ENDINGS.iter().any(|ending| version.ends_with(ending))
}

/// Compares versions: numbers by value, and a version with a suffix `~` or `-rc` is older than the
/// same one without.
fn compare(one: &str, other: &str) -> Ordering {
    let rank = |c: char| match c {
        '~' => 0,
        '0'..='9' => 3,
        _ => 2,
    };
    let parts = |version: &str| {
        let text = version.replace("-rc", "~rc");
        let mut rest = text.as_str();
        let mut parts: Vec<(u8, u64, String)> = Vec::new();
        while let Some(first) = rest.chars().next() {
            let end = rest.find(|c| rank(c) != rank(first));
            let (part, behind) = rest.split_at(end.unwrap_or(rest.len()));
            parts.push((rank(first), part.parse().unwrap_or(0), part.to_owned()));
            rest = behind;
        }
        // The end of a version is newer than `~` and older than anything else.
        parts.push((1, 0, String::new()));
        parts
    };
    parts(one).cmp(&parts(other))
}

/// A part of a file.
fn part(path: &Path, at: u64, size: u64) -> io::Result<impl Read> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(at))?;
    Ok(file.take(size))
}

/// The sections of a unified kernel image that are used here (UAPI.5).
struct Unified {
    /// Offset and size in bytes of `.linux`.
    linux: (u64, u64),
    /// `.uname`
    version: Option<String>,
}

/// Reads a unified kernel image; `None` if the file is not one. Of several profiles the first, the
/// base profile, is used.
fn unified(path: &Path) -> io::Result<Option<Unified>> {
    let cache = ReadCache::new(File::open(path)?);
    let Ok(image) = PeFile64::parse(&cache) else {
        return Ok(None);
    };
    let section = |name: &str| image.sections().find(|section| section.name() == Ok(name));
    let Some(linux) = section(".linux").and_then(|section| section.file_range()) else {
        return Ok(None);
    };
    let version = section(".uname").and_then(|section| section.data().ok());
    let version = version.and_then(|bytes| std::str::from_utf8(bytes).ok());
    let version = version.map(|text| text.trim_end_matches(['\0', '\n']).to_owned());
    Ok(Some(Unified { linux, version }))
}

/// The first bytes of a kernel at the offset `at` of a file, enough to recognise it.
fn head(path: &Path, at: u64) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    part(path, at, 64 << 10)
        .and_then(|mut part| part.read_to_end(&mut head))
        .explain(
            format_args!("cannot read the kernel {}", path.display()),
            "name a file that you can read",
        )?;
    Ok(head)
}

/// A bzImage has its version in its header (Documentation/arch/x86/boot.rst, `kernel_version`).
fn version_in(head: &[u8]) -> Option<String> {
    if head.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let at = usize::from(u16::from_le_bytes(head.get(0x20e..0x210)?.try_into().ok()?));
    let text = head.get(at.checked_add(0x200).filter(|_| at != 0)?..)?;
    let end = text.iter().position(|&byte| byte == 0 || byte == b' ')?;
    let text = std::str::from_utf8(text.get(..end)?).ok()?;
    Some(text.to_owned()).filter(|text| !text.is_empty())
}

fn arch_of(head: &[u8]) -> Option<Arch> {
    let word = |at: usize| Some(u16::from_le_bytes(head.get(at..at + 2)?.try_into().ok()?));
    if head.get(56..60) == Some(b"ARM\x64") {
        return Some(Arch::Aarch64);
    }
    if head.get(0x202..0x206) == Some(b"HdrS") {
        return Some(Arch::X86_64);
    }
    if head.starts_with(b"\x7fELF") {
        return match word(18)? {
            62 => Some(Arch::X86_64),
            183 => Some(Arch::Aarch64),
            _ => None,
        };
    }
    if head.starts_with(b"MZ") {
        let at = usize::from(word(0x3c)?);
        return match word(at + 4)? {
            0x8664 => Some(Arch::X86_64),
            0xaa64 => Some(Arch::Aarch64),
            _ => None,
        };
    }
    None
}

/// The directory of this version's modules: beside the kernel, or in a tree.
fn modules_of(
    path: &Path,
    named: Option<&Path>,
    trees: &[PathBuf],
    version: &str,
) -> Option<PathBuf> {
    let beside = path.parent().map(Path::to_owned);
    // boot/vmlinuz-VERSION in an unpacked package.
    let around = beside.iter().filter_map(|dir| dir.parent());
    let roots = around
        .chain(named.filter(|named| named.is_dir()))
        .chain(trees.iter().map(PathBuf::as_path));
    let below = roots.flat_map(|root| MODULES.iter().map(move |dir| root.join(dir).join(version)));
    beside
        .iter()
        .cloned()
        .chain(below)
        .find(|dir| dir.join("modules.builtin").is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_people_do() {
        let ordered = [
            "5.10.0-9-amd64",
            "5.10.0-10-amd64",
            "6.1.0-rc2",
            "6.1.0",
            "6.1.0-56-cloud-amd64",
            "6.12.117+deb13-cloud-amd64",
            "7.2~rc1",
            "7.2",
        ];
        for (index, one) in ordered.iter().enumerate() {
            for (other_index, other) in ordered.iter().enumerate() {
                assert_eq!(
                    compare(one, other),
                    index.cmp(&other_index),
                    "{one} {other}"
                );
            }
        }
    }

    #[test]
    fn an_architecture_is_found_in_each_kind_of_kernel() {
        let head = |parts: &[(usize, &[u8])]| {
            let mut head = vec![0; 0x400];
            for (at, bytes) in parts {
                head[*at..at + bytes.len()].copy_from_slice(bytes);
            }
            arch_of(&head)
        };
        let elf = (0, &b"\x7fELF"[..]);
        // The PE header is where the word at 0x3c says.
        let pe = [(0, &b"MZ"[..]), (0x3c, &[0x80, 0]), (0x80, b"PE\0\0")];
        let pe = |machine: &'static [u8]| head(&[&pe[..], &[(0x84, machine)]].concat());
        let (x86, arm) = (Some(Arch::X86_64), Some(Arch::Aarch64));
        assert_eq!(head(&[(56, b"ARM\x64")]), arm);
        assert_eq!(head(&[(0x202, b"HdrS")]), x86);
        for (machine, arch) in [(62, x86), (183, arm), (243, None)] {
            assert_eq!(head(&[elf, (18, &[machine, 0])]), arch, "{machine}");
        }
        assert_eq!(pe(&[0x64, 0x86]), x86);
        assert_eq!(pe(&[0x64, 0xaa]), arm);
        assert_eq!(pe(&[0x64, 0x50]), None);
        assert_eq!(head(&[]), None);
    }

    fn put(dir: &Path, name: &str, bytes: &[u8]) {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn bzimage(version: &str) -> Vec<u8> {
        let mut bytes = vec![0; 0x400];
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        bytes[0x300..0x300 + version.len()].copy_from_slice(version.as_bytes());
        bytes
    }

    #[test]
    fn the_newest_kernel_of_a_tree_is_found_with_its_modules() {
        let dir = tempfile::tempdir().unwrap();
        let trees = [dir.path().to_owned()];
        let find = |named: Option<&str>| {
            let named = named.map(|name| dir.path().join(name));
            Kernel::find(named.as_deref(), None, &trees)
        };
        let error = find(None).unwrap_err().to_string();
        assert!(error.contains("--kernel"), "{error}");
        put(dir.path(), "vmlinuz", &bzimage("6.9 (me@here)"));
        let kernel = find(None).unwrap();
        assert_eq!(kernel.version.as_deref(), Some("6.9"));
        assert_eq!(kernel.arch, Some(Arch::X86_64));
        put(dir.path(), "boot/vmlinuz-6.9.1", &bzimage("6.9.1"));
        put(dir.path(), "boot/vmlinuz-6.10", &bzimage("6.10"));
        // What `make install` and package managers leave there.
        for left in ["6.10.old", "6.10.sig", "6.10.dpkg-bak", "6.12~", "9-rescue"] {
            put(dir.path(), &format!("boot/vmlinuz-{left}"), b"no kernel");
        }
        put(dir.path(), "lib/modules/6.10/modules.builtin", b"");
        let kernel = find(None).unwrap();
        assert_eq!(kernel.path, dir.path().join("boot/vmlinuz-6.10"));
        assert_eq!(kernel.modules, Some(dir.path().join("lib/modules/6.10")));
        // A newer kernel, in the directory of its modules.
        put(dir.path(), "usr/lib/modules/7.0/vmlinuz", &bzimage("7.0"));
        put(dir.path(), "usr/lib/modules/7.0/modules.builtin", b"");
        let kernel = find(None).unwrap();
        assert_eq!(kernel.modules, Some(dir.path().join("usr/lib/modules/7.0")));
        // A kernel that is given by its path, then one in a build directory.
        let kernel = find(Some("boot/vmlinuz-6.9.1")).unwrap();
        assert_eq!(kernel.version.as_deref(), Some("6.9.1"));
        assert_eq!(kernel.modules, None);
        put(dir.path(), "linux/arch/x86/boot/bzImage", &bzimage("6.10"));
        let kernel = find(Some("linux")).unwrap();
        assert_eq!(kernel.modules, Some(dir.path().join("lib/modules/6.10")));
        // A directory's name is a version only below `modules`.
        put(dir.path(), "lib/modules/6.11/vmlinuz", b"\x1f\x8bpacked");
        put(dir.path(), "kernels/6.12/vmlinuz", b"\x1f\x8bpacked");
        let version = |named| find(Some(named)).unwrap().version;
        assert_eq!(version("lib/modules/6.11/vmlinuz").as_deref(), Some("6.11"));
        assert_eq!(version("kernels/6.12/vmlinuz"), None);
        let error = find(Some("missing")).unwrap_err();
        assert!(format!("{error:#}").contains("missing"), "{error:#}");
    }
}
