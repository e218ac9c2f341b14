//! A node is a file, not a name: it stays valid when names change on the host.

use crate::requests::{
    ENOENT, ESTALE, GETATTR, LOOKUP, OPENDIR, ROOT, ask, init, list, long, lookup, open, read,
    request, server,
};
use bootshare_tests::Embedded;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Longer than the server trusts what it has looked up.
const A_SECOND: Duration = Duration::from_millis(1100);

fn write(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[test]
fn all_names_of_a_file_are_one_node() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a/file", "text");
    fs::create_dir(dir.path().join("b")).unwrap();
    fs::hard_link(dir.path().join("a/file"), dir.path().join("b/link")).unwrap();
    let server = server(&dir);
    let [a, b] = ["a", "b"].map(|name| lookup(&server, ROOT, name).unwrap());
    let file = lookup(&server, a, "file").unwrap();
    assert_eq!(lookup(&server, b, "link"), Ok(file));
    assert_eq!(lookup(&server, b, "link"), Ok(file));
    // The node is known until FORGET has returned every LOOKUP.
    let forget = |node, count: u64| drop(server.ask(&request(2, node, &count.to_le_bytes()), 16));
    forget(file, 2);
    assert!(ask(&server, GETATTR, file, &[0; 16]).is_ok());
    forget(file, 1);
    assert_eq!(ask(&server, GETATTR, file, &[0; 16]), Err(ESTALE));
    assert_ne!(
        lookup(&server, a, "file"),
        Ok(file),
        "no number is used again"
    );
    // The root cannot be forgotten.
    forget(ROOT, u64::MAX);
    assert!(lookup(&server, ROOT, "a").is_ok());
}

#[test]
fn a_node_stays_the_same_file_after_renames_and_replacements() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    write(dir.path(), "dir/below/file", "old");
    let server = server(&dir);
    let node = |parent, name| lookup(&server, parent, name).unwrap();
    let outer = node(ROOT, "dir");
    let below = node(outer, "below");
    let file = node(below, "file");
    let (handle, _) = open(&server, OPENDIR, below).unwrap();
    // A directory above is renamed, and a new directory gets its name.
    fs::rename(path("dir"), path("moved")).unwrap();
    write(dir.path(), "dir/below/file", "new");
    sleep(A_SECOND);
    assert_eq!(lookup(&server, below, "file"), Ok(file));
    assert_eq!(read(&server, file).unwrap(), "old");
    assert_eq!(node(ROOT, "moved"), outer);
    let other = node(node(ROOT, "dir"), "below");
    assert_ne!(other, below);
    assert_eq!(read(&server, node(other, "file")).unwrap(), "new");
    let body = crate::requests::read_in(handle, 0, 4096);
    let names = crate::requests::entries(&ask(&server, 28, below, &body).unwrap());
    assert_eq!(names.len(), 3, "its handle lists it");
    // A directory is replaced by a link; nodes below it stay valid.
    fs::rename(path("moved"), path("real")).unwrap();
    symlink("real", path("moved")).unwrap();
    assert_eq!(lookup(&server, below, "file"), Ok(file));
    // The file is replaced by a rename, as package managers do it, then removed.
    write(dir.path(), "next", "newer");
    fs::rename(path("next"), path("real/below/file")).unwrap();
    assert_eq!(read(&server, file).unwrap(), "old");
    let newer = node(below, "file");
    assert_ne!(newer, file);
    assert_eq!(read(&server, newer).unwrap(), "newer");
    fs::remove_file(path("real/below/file")).unwrap();
    sleep(A_SECOND);
    assert_eq!(read(&server, newer).unwrap(), "newer");
    assert_eq!(lookup(&server, below, "file"), Err(ENOENT));
}

#[test]
fn merged_directories_become_stale_when_their_layers_change() {
    let dir = tempfile::tempdir().unwrap();
    let [top, bottom] = ["top", "bottom"].map(|name| dir.path().join(name));
    write(&top, "dir/a", "top");
    write(&bottom, "dir/a", "bottom");
    write(&bottom, "dir/b", "bottom");
    write(&bottom, "late/b", "bottom");
    fs::create_dir(top.join("other")).unwrap();
    let server = Embedded::of(vec![top.clone(), bottom]);
    init(&server);
    let node = |name| lookup(&server, ROOT, name).unwrap();
    let getattr = |node| ask(&server, GETATTR, node, &[0; 16]).map(drop);
    let (merged, late) = (node("dir"), node("late"));
    assert_eq!(
        read(&server, lookup(&server, merged, "a").unwrap()).unwrap(),
        "top"
    );
    // One layer no longer has the directory, another one has it now.
    fs::remove_dir_all(top.join("dir")).unwrap();
    write(&top, "late/a", "top");
    sleep(A_SECOND);
    for node in [merged, late] {
        assert_eq!(getattr(node), Err(ESTALE));
        assert_eq!(open(&server, OPENDIR, node), Err(ESTALE));
        assert_eq!(lookup(&server, node, "b"), Err(ESTALE));
    }
    let (now, late) = (node("dir"), node("late"));
    assert_ne!(now, merged);
    assert_eq!(
        read(&server, lookup(&server, now, "a").unwrap()).unwrap(),
        "bottom"
    );
    assert!(lookup(&server, late, "a").is_ok() && lookup(&server, late, "b").is_ok());
    let names: Vec<_> = list(&server, late)
        .into_iter()
        .map(|(name, ..)| name)
        .collect();
    assert_eq!(names, [".", "..", "a", "b"]);
}

#[test]
fn nothing_is_answered_before_init() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "file", "");
    let server = Embedded::of(vec![dir.path().into()]);
    assert_eq!(lookup(&server, ROOT, "file"), Err(5), "EIO");
    for major in [6_u32, 8] {
        let body = [major.to_le_bytes(), [0; 4], [0; 4], [0; 4]].concat();
        let _refused = ask(&server, 26, 0, &body);
        assert_eq!(lookup(&server, ROOT, "file"), Err(5), "EIO");
    }
    init(&server);
    assert!(lookup(&server, ROOT, "file").is_ok());
    // DESTROY.
    drop(server.ask(&request(38, 0, &[]), 16));
    assert_eq!(lookup(&server, ROOT, "file"), Err(5), "EIO");
}

#[test]
fn inode_numbers_are_the_hosts_own() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "dir/file", "");
    let server = server(&dir);
    let parent = lookup(&server, ROOT, "dir").unwrap();
    let entry = ask(&server, LOOKUP, parent, b"file\0").unwrap();
    let number = |path: &str| fs::metadata(dir.path().join(path)).unwrap().ino();
    assert_eq!(long(&entry, 40), number("dir/file"));
    let of = |node, wanted: &str| {
        let all = list(&server, node);
        all.iter().find(|(name, ..)| name == wanted).unwrap().1
    };
    assert_eq!(of(parent, "file"), number("dir/file"));
    assert_eq!(of(parent, "."), number("dir"));
    assert_eq!(of(parent, ".."), number(""));
    // The root's parent is the root: nothing above the share is visible.
    assert_eq!(of(ROOT, ".."), number(""));
}

#[test]
fn an_entry_that_did_not_fit_is_not_counted_as_looked_up() {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..40 {
        write(dir.path(), &format!("file-{number}"), "");
    }
    let server = server(&dir);
    let (handle, _) = open(&server, OPENDIR, ROOT).unwrap();
    // READDIRPLUS: each entry has 152 bytes before its name.
    let (mut offset, mut known) = (0, Vec::new());
    loop {
        let body = crate::requests::read_in(handle, offset, 1024);
        let bytes = ask(&server, 44, ROOT, &body).unwrap();
        let mut rest = &bytes[..];
        if rest.is_empty() {
            break;
        }
        while !rest.is_empty() {
            if long(rest, 0) != 0 {
                known.push(long(rest, 0));
            }
            offset = long(rest, 128 + 8);
            let name = crate::requests::word(rest, 128 + 16) as usize;
            rest = &rest[(152 + name).next_multiple_of(8)..];
        }
    }
    assert_eq!(known.len(), 40);
    // Each entry counts as one LOOKUP.
    for node in known {
        assert!(ask(&server, GETATTR, node, &[0; 16]).is_ok());
        drop(server.ask(&request(2, node, &1_u64.to_le_bytes()), 16));
        assert_eq!(ask(&server, GETATTR, node, &[0; 16]), Err(ESTALE));
    }
}

#[test]
fn a_rename_during_a_lookup_gives_no_error_other_than_enoent() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a/file", "");
    write(dir.path(), "b/other", "");
    let server = server(&dir);
    let [a, b] = ["a", "b"].map(|name| lookup(&server, ROOT, name).unwrap());
    let ends = std::sync::atomic::AtomicBool::new(false);
    let order = std::sync::atomic::Ordering::Relaxed;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let [from, to] = ["a/file", "b/file"].map(|name| dir.path().join(name));
            while !ends.load(order) {
                fs::rename(&from, &to).unwrap();
                fs::rename(&to, &from).unwrap();
            }
        });
        let mut seen = [0; 2];
        let mut errors = BTreeSet::new();
        let start = Instant::now();
        let mut left = 20_000_u32;
        // Until the file was seen in both directories, and some time after that.
        while left > 0 || (seen.contains(&0) && start.elapsed() < Duration::from_secs(60)) {
            left = left.saturating_sub(1);
            for (parent, count) in [a, b].into_iter().zip(&mut seen) {
                match lookup(&server, parent, "file") {
                    Ok(_) => *count += 1,
                    Err(error) => drop(errors.insert(error)),
                }
            }
        }
        ends.store(true, order);
        assert!(seen.iter().all(|&count| count > 0), "{seen:?}");
        assert_eq!(errors, [ENOENT].into());
    });
}
