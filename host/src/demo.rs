//! The demo share: Debian's kernel, a busybox initramfs, a command line, a greeting.
//!
//! Words on the kernel's command line steer its init: `demo.tag=TAG` (which share to mount),
//! `demo.sha256=/PATH` (print the SHA-256 of a file of the share; repeatable), `demo.run=/PATH` (run a
//! shell script of the share), `demo.shell` (give a shell on the console).

use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::board::Arch;
use crate::guest::Parts;
use crate::modules::Modules;
use crate::output;

/// The tag that the demo's init mounts by default.
pub const TAG: &str = "bootshare";

/// The kernel parameter that makes the demo's init start a shell.
pub const SHELL_WORD: &str = "demo.shell";

/// Where a build of this tree keeps the downloaded packages.
pub const PARTS: &str = "target/guest";

/// The text of the share's greeting.
pub const GREETING: &str = "Hello from a directory on the host, read over virtio-fs.\n";

/// The files of the demo, besides the kernel.
const INITRD_FILE: &str = "initrd.img";
const CMDLINE_FILE: &str = "cmdline";
const GREETING_FILE: &str = "greeting.txt";

/// The modules that mount a share on any board; a kernel may have some of them built in.
const MODULES: [&str; 3] = ["virtio_mmio", "virtio_pci", "virtiofs"];

const INIT: &str = include_str!("demo-init.sh");

/// Checks that `out` has no files that [`make`] would replace, other than those of an earlier demo.
///
/// # Errors
/// There is such a file.
pub fn check(arch: Arch, out: &Path) -> Result<()> {
    ensure!(
        out.is_dir() || fs::symlink_metadata(out).is_err(),
        "{} exists and is not a directory: name another path",
        out.display()
    );
    let is_demo = content(&out.join(GREETING_FILE)).is_some_and(|text| text == GREETING.as_bytes());
    let names = [arch.kernel_name(), INITRD_FILE, CMDLINE_FILE, GREETING_FILE];
    let mut paths = names.iter().map(|name| out.join(name));
    match paths.find(|path| !is_demo && fs::symlink_metadata(path).is_ok()) {
        Some(path) => bail!(
            "{} exists and was not made by demo: name an empty directory, or use --force",
            path.display()
        ),
        None => Ok(()),
    }
}

/// The content of a regular file. Another one, such as a FIFO, could be waited for without end.
fn content(path: &Path) -> Option<Vec<u8>> {
    let is_file = fs::metadata(path).is_ok_and(|found| found.is_file());
    is_file.then(|| fs::read(path).ok())?
}

/// Makes the demo share in `out`. Existing files of other content are replaced with `force` only.
///
/// # Errors
/// A part is missing or has an unknown format, there is such a file, or `out` cannot be written.
pub fn make(parts: &Parts, out: &Path, force: bool) -> Result<()> {
    let arch = parts.arch;
    let path = parts.kernel()?;
    let kernel = read(&path)?;
    let kernel = match arch {
        Arch::X86_64 => kernel,
        Arch::Aarch64 => raw_arm64_image(kernel).with_context(|| path.display().to_string())?,
    };
    let reset = match arch {
        // microvm has none of the hardware that Linux resets a PC with, and its search for it
        // hangs now and then: reset by a triple fault.
        Arch::X86_64 => " reboot=t",
        Arch::Aarch64 => "",
    };
    let cmdline = format!("console={} panic=-1{reset} loglevel=3\n", arch.serial());
    let mut files = vec![
        (arch.kernel_name(), kernel),
        (INITRD_FILE, initramfs(parts)?),
        (CMDLINE_FILE, cmdline.into_bytes()),
        (GREETING_FILE, GREETING.into()),
    ];
    files.retain(|(name, bytes)| content(&out.join(name)).as_ref() != Some(bytes));
    for (name, _) in &files {
        let path = out.join(name);
        ensure!(
            force || fs::symlink_metadata(&path).is_err(),
            "{} was changed, or another kernel was downloaded: keep it and name another \
             directory, or replace it with --force",
            path.display()
        );
    }
    output::directory(out)?;
    for (name, bytes) in files {
        output::replace(&out.join(name), &bytes)?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The initramfs of the demo, compressed.
fn initramfs(parts: &Parts) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for dir in ["bin", "dev", "modules", "proc", "share", "sys"] {
        archive.directory(dir)?;
    }
    archive.character_device("dev/console", 5, 1)?;
    archive.file("init", 0o755, INIT.as_bytes())?;
    archive.file("bin/busybox", 0o755, &read(&parts.busybox())?)?;
    let mut order = String::new();
    for (name, bytes) in Modules::read(&parts.modules()?)?.load(&MODULES)? {
        archive.file(&format!("modules/{name}.ko"), 0o644, &bytes)?;
        order.push_str(&name);
        order.push('\n');
    }
    archive.file("modules/order", 0o644, order.as_bytes())?;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&archive.finish()?)?;
    Ok(gzip.finish()?)
}

/// A cpio archive in the "newc" form that Linux unpacks as an initramfs.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn entry(&mut self, builder: cpio::newc::Builder, data: &[u8]) -> Result<()> {
        let size = u32::try_from(data.len()).context("a cpio archive holds files below 4 GiB")?;
        self.entries += 1;
        let builder = builder.ino(self.entries).nlink(1);
        let mut writer = builder.write(&mut self.bytes, size);
        writer.write_all(data)?;
        writer.finish()?;
        Ok(())
    }

    /// Adds a directory.
    ///
    /// # Errors
    /// None in practice: the archive is in memory.
    pub fn directory(&mut self, name: &str) -> Result<()> {
        self.entry(cpio::newc::Builder::new(name).mode(0o040_755), &[])
    }

    /// Adds a regular file.
    ///
    /// # Errors
    /// The file is too large for the format.
    pub fn file(&mut self, name: &str, permissions: u32, data: &[u8]) -> Result<()> {
        self.entry(
            cpio::newc::Builder::new(name).mode(0o100_000 | permissions),
            data,
        )
    }

    /// Adds a character device.
    ///
    /// # Errors
    /// None in practice: the archive is in memory.
    pub(crate) fn character_device(&mut self, name: &str, major: u32, minor: u32) -> Result<()> {
        let builder = cpio::newc::Builder::new(name).mode(0o020_600);
        self.entry(builder.rdev_major(major).rdev_minor(minor), &[])
    }

    /// The archive's bytes.
    ///
    /// # Errors
    /// None in practice: the archive is in memory.
    pub fn finish(self) -> Result<Vec<u8>> {
        Ok(cpio::newc::trailer(self.bytes)?)
    }
}

/// An arm64 kernel as a raw `Image`, unpacked when it is gzip or an EFI zboot image of it.
fn raw_arm64_image(kernel: Vec<u8>) -> Result<Vec<u8>> {
    // Documentation/arch/arm64/booting.rst: the magic is at offset 56.
    if kernel.get(56..60) == Some(b"ARM\x64") {
        return Ok(kernel);
    }
    let packed = if kernel.starts_with(b"MZ") && kernel.get(4..8) == Some(b"zimg") {
        let word = |at: usize| -> Option<usize> {
            let bytes = kernel.get(at..at + 4)?.try_into().ok()?;
            usize::try_from(u32::from_le_bytes(bytes)).ok()
        };
        let (offset, size) = word(8)
            .zip(word(12))
            .context("the zboot header is cut short")?;
        let name = kernel.get(24..28).unwrap_or_default();
        ensure!(
            name == b"gzip",
            "its zboot compression is not gzip: unpack it to a raw Image"
        );
        offset
            .checked_add(size)
            .and_then(|end| kernel.get(offset..end))
            .context("its zboot payload lies outside the file")?
    } else if kernel.starts_with(&[0x1f, 0x8b]) {
        &kernel
    } else {
        bail!("it is neither a raw arm64 Image, nor gzip, nor EFI zboot");
    };
    let mut image = Vec::new();
    flate2::read::GzDecoder::new(packed)
        .read_to_end(&mut image)
        .context("cannot gunzip it")?;
    ensure!(
        image.get(56..60) == Some(b"ARM\x64"),
        "the compressed data is not an arm64 Image"
    );
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Vec<u8> {
        let mut image = vec![0; 4096];
        image[56..60].copy_from_slice(b"ARM\x64");
        image
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(bytes).unwrap();
        gzip.finish().unwrap()
    }

    #[test]
    fn an_arm64_kernel_is_unpacked_from_each_form() {
        assert_eq!(raw_arm64_image(image()).unwrap(), image());
        let packed = gzip(&image());
        assert_eq!(raw_arm64_image(packed.clone()).unwrap(), image());
        let mut zboot = b"MZ\0\0zimg".to_vec();
        zboot.extend(64_u32.to_le_bytes());
        zboot.extend(u32::try_from(packed.len()).unwrap().to_le_bytes());
        zboot.extend([0; 8]);
        zboot.extend(b"gzip");
        zboot.resize(64, 0);
        zboot.extend(packed);
        assert_eq!(raw_arm64_image(zboot.clone()).unwrap(), image());
        zboot.truncate(80);
        assert!(raw_arm64_image(zboot).is_err());
        assert!(raw_arm64_image(vec![0; 100]).is_err());
    }

    #[test]
    fn an_archive_holds_what_was_added() {
        let mut archive = Archive::default();
        archive.directory("a").unwrap();
        archive.file("a/b", 0o644, b"text").unwrap();
        let bytes = archive.finish().unwrap();
        let mut reader = cpio::newc::Reader::new(&*bytes).unwrap();
        assert_eq!(reader.entry().name(), "a");
        reader = cpio::newc::Reader::new(reader.finish().unwrap()).unwrap();
        assert_eq!(reader.entry().name(), "a/b");
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "text");
    }
}
