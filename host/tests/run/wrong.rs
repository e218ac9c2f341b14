//! Tests of the error messages for wrong command lines and inputs: each is one line that names the thing, the cause
//! and the remedy. `UPDATE=1` rewrites the file with the expected lines.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;

use crate::parts::target;
use crate::tool::Tool;

/// Each command line after `$ `, and on the next line the exit status and the message.
const SAID: &str = include_str!("wrong.txt");

/// Files of others that look a little like outputs.
const THEIRS: [(&str, &str); 2] = [
    ("report.json", "{\"stage\":\"production\",\"status\":1}"),
    ("notes", "On bootshare: version 0.1.0 is out.\n"),
];

/// Makes the files that the command lines use.
fn prepare(tool: &Tool) {
    let path = |name: &str| tool.dir.path().join(name);
    for dir in ["empty", "bin", "full", "vmlinuz-dir/vmlinuz"] {
        fs::create_dir_all(path(dir)).unwrap();
    }
    fs::write(path("text"), "a text\n").unwrap();
    for (name, text) in THEIRS {
        fs::write(path(name), text).unwrap();
    }
    fs::write(path("cut.elf"), b"\x7fELF\x02\x01\x01").unwrap();
    fs::write(path("full/vmlinuz"), "somebody's").unwrap();
    symlink(path("tool"), path("bin/bootshare-host")).unwrap();
    symlink("nowhere", path("dangling")).unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, path("pipe"), mode).unwrap();
    let built = target().canonicalize().unwrap().join("firmware");
    symlink(built, path("firmware")).unwrap();
}

#[test]
fn each_wrong_command_line_gives_one_line_with_the_remedy() {
    let tool = Tool::new(&[]);
    prepare(&tool);
    let dir = tool.dir.path().display().to_string();
    let mut said = String::new();
    let lines: Vec<_> = SAID.lines().filter(|line| line.starts_with("$ ")).collect();
    assert!(lines.len() >= 40, "{} are left", lines.len());
    for line in lines {
        let script = format!("PATH={dir}/bin:$PATH; {}", &line[2..]);
        let mut command = tool.command(&["sh", "-c", &script], &[]);
        command.env_remove("XDG_CACHE_HOME").env("HOME", "relative");
        let ran = tool.run(command.stdin(Stdio::null()));
        let mut errors = ran.errors.replace(&dir, "$DIR");
        for (at, start) in ran.errors.replace(&dir, "$DIR").match_indices("bootshare-") {
            let name = at + start.len();
            let rest = errors[name..].find(|c: char| !c.is_ascii_alphanumeric());
            if rest == Some(6) {
                // The random part of a temporary file's name.
                errors.replace_range(name..name + 6, "XXXXXX");
            }
        }
        assert!(ran.console.is_empty(), "{line}: {ran:?}");
        assert_eq!(errors.lines().count(), 1, "{line}: {errors}");
        assert!(errors.starts_with("bootshare-host: error: "), "{errors}");
        said.push_str(&format!("{line}\n{}: {errors}", ran.status.unwrap()));
    }
    for (name, text) in THEIRS {
        assert_eq!(fs::read_to_string(tool.path(name)).unwrap(), text);
    }
    if std::env::var_os("UPDATE").is_some() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/run/wrong.txt");
        fs::write(file, &said).unwrap();
    } else {
        let pairs = said.lines().zip(SAID.lines());
        pairs.for_each(|(said, written)| assert_eq!(said, written));
        assert_eq!(said.len(), SAID.len());
    }
}
