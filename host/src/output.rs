//! Files that the tool writes for its user. Each is written under a temporary name in the same
//! directory and then renamed: nobody sees a partial file, and a link is replaced, never followed.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use tempfile::NamedTempFile;

use crate::explain::Explain;
use crate::fd::write_all;

/// The remedy for an output that cannot be written.
const WRITABLE: &str = "name a place with room that can be written to";

/// Creates a directory for output files.
///
/// # Errors
/// It cannot be created.
pub fn directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).explain(
        format_args!("cannot make the directory {}", path.display()),
        WRITABLE,
    )
}

/// An empty temporary file in the directory of `path`. It is deleted unless [`put`] renames it.
///
/// # Errors
/// The directory cannot be written to.
pub(crate) fn beside(path: &Path) -> Result<NamedTempFile> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    tempfile::Builder::new()
        .prefix(".bootshare-")
        // The usual mode of a new file; the umask applies.
        .permissions(fs::Permissions::from_mode(0o666))
        .tempfile_in(dir)
        .explain(format_args!("cannot write {}", path.display()), WRITABLE)
}

/// Renames the file to its final name and replaces what had that name.
///
/// # Errors
/// The file system refuses it, for example because the name is a directory's.
pub(crate) fn put(file: NamedTempFile, path: &Path) -> Result<fs::File> {
    let put = file.persist(path).map_err(|error| error.error);
    put.explain(format_args!("cannot write {}", path.display()), WRITABLE)
}

/// Replaces the file at `path` by one with these bytes.
///
/// # Errors
/// It cannot be written.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = beside(path)?;
    file.write_all(bytes)
        .explain(format_args!("cannot write {}", path.display()), WRITABLE)?;
    put(file, path).map(drop)
}

/// Prints to standard error, and gives up after `limit`: it may be a pipe that nobody reads.
pub fn say(text: Vec<u8>, limit: Option<Duration>) {
    // If standard error is closed, there is nowhere to report it.
    let write = move || drop(write_all(rustix::stdio::stderr(), &text, drop));
    let Some(limit) = limit else {
        return write();
    };
    let (done, is_done) = mpsc::channel();
    thread::spawn(move || {
        write();
        // The caller may have given up.
        let _ = done.send(());
    });
    let _ = is_done.recv_timeout(limit);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_replaced_and_its_target_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "theirs").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        replace(&link, b"ours").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"theirs");
        assert!(!fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&link).unwrap(), b"ours");
    }

    #[test]
    fn a_failed_write_leaves_no_file_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("directory");
        fs::create_dir(&path).unwrap();
        let error = replace(&path, b"ours").unwrap_err().to_string();
        assert!(error.contains("directory"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
