//! A tree with all kinds of names and entries, and the lines that the command `walk` must print for it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::lab::{random, sha256_of};

/// Makes the tree in the empty directory `root`.
pub(crate) fn make(root: &Path) {
    let file = |name: &[u8], bytes: &[u8]| {
        fs::write(root.join(OsStr::from_bytes(name)), bytes).unwrap();
    };
    for dir in ["empty dir", "deep/er/and/deeper", "many"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    file(b"empty", b"");
    file(b"one", b"1");
    file(b"a name with  spaces ", b"spaces\n");
    file("gr\u{fc}\u{df}e \u{4e16}\u{754c}".as_bytes(), b"UTF-8\n");
    file(b"latin-1 \xe9\xff", b"not UTF-8\n");
    file(b"new\nline and \\ backslash", b"controls\n");
    file(&[b'n'; 255], b"the longest name\n");
    file(b"deep/er/and/deeper/file", b"deep\n");
    // In byte order `deep-` and `deep.` stand before and after what is in `deep/`.
    file(b"deep-", b"-");
    file(b"deep.", b".");
    // Around the size of one request, and not a multiple of anything.
    file(b"large", &random(3 * (1 << 20) + 4321));
    file(b"page", &random(4096));
    symlink("one", root.join("relative link")).unwrap();
    symlink("../one", root.join("deep/up")).unwrap();
    symlink("/deep/er", root.join("absolute link")).unwrap();
    symlink("nosuch/file", root.join("dangling link")).unwrap();
    symlink(OsStr::from_bytes(b"t\xfcr"), root.join("odd target")).unwrap();
    for number in 0..2000 {
        fs::write(root.join(format!("many/file {number}")), number.to_string()).unwrap();
    }
}

/// The lines that `walk /` has to print for `root`.
pub(crate) fn walk(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    below(root, "", &mut lines);
    lines
}

fn below(dir: &Path, path: &str, lines: &mut Vec<String>) {
    let mut entries: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    // By the bytes of the names: `Path` compares by components.
    entries.sort_by_key(|path| path.file_name().unwrap().to_owned());
    for entry in entries {
        let path = format!("{path}/{}", escape(entry.file_name().unwrap()));
        let metadata = entry.symlink_metadata().unwrap();
        if metadata.is_dir() {
            lines.push(format!("d - - {path}"));
            below(&entry, &path, lines);
        } else if metadata.is_symlink() {
            let target = fs::read_link(&entry).unwrap();
            let target = escape(target.as_os_str());
            lines.push(format!("l - - {path} -> {target}"));
        } else {
            let digest = sha256_of(&entry);
            lines.push(format!("f {} {digest} {path}", metadata.len()));
        }
    }
}

/// Bytes outside printable ASCII as `\xNN`.
fn escape(name: &OsStr) -> String {
    name.as_bytes()
        .iter()
        .map(|&byte| match byte {
            b' '..=b'~' => char::from(byte).to_string(),
            _ => format!("\\x{byte:02x}"),
        })
        .collect()
}
