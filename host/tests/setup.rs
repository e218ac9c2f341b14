//! Tests of the messages of `host/setup.sh` on machines where it cannot install anything, or may not. Such a
//! machine has only the programs that the test provides and those that the script itself runs.

#[path = "run/install.rs"]
mod install;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use install::install;

/// The programs that the script runs to find out what is missing.
const TOOLS: [&str; 10] = [
    "cut", "dirname", "grep", "id", "printf", "sed", "sh", "sort", "tr", "uname",
];

struct Host {
    dir: TempDir,
}

impl Host {
    /// A machine with `stubs`: the names of programs, and a script for each.
    fn new(stubs: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        for (name, script) in stubs {
            let path = bin.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let draft = dir.path().join("draft");
            fs::write(&draft, format!("#!/bin/sh\n{script}\n")).unwrap();
            install(&draft, &path);
        }
        for name in TOOLS {
            let real = ["/usr/bin", "/bin"].map(|dir| Path::new(dir).join(name));
            let real = real.iter().find(|path| path.exists()).unwrap();
            // A stub of the same name is kept.
            if !bin.join(name).exists() {
                symlink(real, bin.join(name)).unwrap();
            }
        }
        Self { dir }
    }

    /// Asserts that the set-up for `purpose` fails with one line that contains all of `parts`.
    fn refuses(&self, purpose: &str, parts: &[&str]) {
        let output = Command::new("/bin/sh")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("setup.sh"))
            .arg(purpose)
            .env_clear()
            .env("PATH", self.dir.path().join("bin"))
            .env("HOME", self.dir.path())
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
        for part in parts {
            assert!(errors.contains(part), "no {part:?} in {errors}");
        }
    }
}

const USER: (&str, &str) = ("id", "echo 1000");
const CC: (&str, &str) = ("cc", "");
const CARGO: (&str, &str) = ("cargo", "");

#[test]
fn without_apt_it_names_the_distributions_own_packages() {
    for (manager, line, libraries) in [
        (
            "dnf",
            "dnf install gcc glibc-devel rustup qemu-system-x86-core qemu-system-aarch64-core xz \
             zstd lz4",
            ["libcap-ng-devel", "libseccomp-devel"],
        ),
        (
            "pacman",
            "pacman -S gcc glibc rustup qemu-system-x86 qemu-system-aarch64 xz zstd lz4",
            ["libcap-ng", "libseccomp"],
        ),
        (
            "zypper",
            "zypper install gcc glibc-devel rustup qemu-x86 qemu-arm xz zstd lz4",
            ["libcap-ng-devel", "libseccomp-devel"],
        ),
    ] {
        // On the test machine itself the headers may be installed; then the libraries are not listed.
        let headers = ["/usr/include/cap-ng.h", "/usr/include/seccomp.h"];
        let libraries = headers.into_iter().zip(libraries);
        let missing = libraries.filter(|(header, _)| !Path::new(header).exists());
        let parts = ["as root run: ", line].into_iter();
        let parts: Vec<_> = parts.chain(missing.map(|(_, library)| library)).collect();
        Host::new(&[(manager, "exit 9")]).refuses("test", &parts);
    }
    let parts = ["there is no apt-get here", " qemu-system-x86 "];
    Host::new(&[]).refuses("run", &parts);
}

#[test]
fn without_root_and_sudo_it_prints_what_to_run_as_root() {
    let apt = ("apt-get", "exit 9");
    let line = "as root run: apt-get update && apt-get install --no-install-recommends gcc";
    Host::new(&[USER, apt]).refuses("build", &["there is no sudo; ", line]);
    // Nobody can type a password.
    let sudo = ("sudo", "[ \"$1\" = -n ] && exit 1; exit 9");
    Host::new(&[USER, apt, sudo]).refuses("build", &["could not install them", line]);
}

#[test]
fn an_old_rust_is_reported_with_the_needed_version() {
    // The firmware needs a newer Rust than the library.
    let manifest = include_str!("../../boards/qemu-x86_64/Cargo.toml");
    let mut lines = manifest.lines();
    let oldest = lines.find_map(|line| line.strip_prefix("rust-version = "));
    let oldest = oldest.unwrap().trim_matches('"');
    let rustc = ("rustc", "echo 'rustc 1.63.0 (4b91a6ea7 2022-08-08)'");
    let apt = ("apt-get", "exit 9");
    Host::new(&[CC, CARGO, rustc, apt]).refuses(
        "build",
        &[
            "this rustc is 1.63.0",
            &format!("Rust {oldest} or newer is needed"),
            "(apt-get install --no-install-recommends rust",
        ],
    );
    // A recent one; the other programs are missing.
    let version =
        format!("case $1 in --version) echo 'rustc {oldest}.0' ;; *) echo /nowhere ;; esac");
    let host = Host::new(&[CC, ("rustc", &version), ("dnf", "exit 9")]);
    host.refuses("build", &["dnf install rust-src cargo lld"]);
}

#[test]
fn a_rustup_without_the_toolchain_is_reported() {
    let host = Host::new(&[CC, ("../.cargo/bin/rustup", "")]);
    let home = host.dir.path().display();
    host.refuses(
        "build",
        &[
            &format!("{home}/.cargo/bin/rustup is not in PATH"),
            &format!("run . {home}/.cargo/env"),
        ],
    );
    let host = Host::new(&[CC, ("rustup-init", "")]);
    host.refuses("build", &["run rustup-init"]);
}

#[test]
fn a_toolchain_file_with_lists_on_several_lines_is_read() {
    let rustup = (
        "rustup",
        "[ \"$2\" != install ] || { echo \"got $*\"; exit 9; }",
    );
    let host = Host::new(&[CC, CARGO, rustup]);
    let tree = host.dir.path();
    fs::create_dir(tree.join("host")).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("setup.sh");
    fs::copy(script, tree.join("host/setup.sh")).unwrap();
    for (lists, status) in [
        (
            "components = [\n  \"clippy\",\n]\ntargets = [\n  \"a\",\n  \"b\",\n]\n",
            "got",
        ),
        (
            "components = [\"clippy\"]\ntargets = [\"a\", \"b\"]\n",
            "got",
        ),
        (
            "components = [\"clippy\"]\n",
            "lacks channel, components or targets",
        ),
    ] {
        let text = format!("[toolchain]\nchannel = \"1.95.0\"\nprofile = \"minimal\"\n{lists}");
        fs::write(tree.join("rust-toolchain.toml"), text).unwrap();
        let mut command = Command::new("/bin/sh");
        command
            .arg(tree.join("host/setup.sh"))
            .arg("build")
            .env_clear();
        let output = command.env("PATH", tree.join("bin")).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(status), "{said}");
        let wanted = "--component clippy --target a --target b\n";
        assert_eq!(said.contains(wanted), status == "got", "{said}");
    }
}

#[test]
fn the_example_of_a_boot_test_ends_when_the_build_fails() {
    let host = Host::new(&[("make", "exit 2"), ("mktemp", "echo guest"), ("cp", "")]);
    let tree = host.dir.path();
    fs::create_dir_all(tree.join("target/release")).unwrap();
    let old = tree.join("target/release/bootshare-host");
    fs::write(&old, "#!/bin/sh\nexit 0\n").unwrap();
    fs::set_permissions(&old, fs::Permissions::from_mode(0o755)).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/ci/boot-test.sh");
    let mut command = Command::new("/bin/sh");
    command
        .arg(script)
        .arg(tree)
        .args(["kernel", "initrd", "pattern"]);
    command.env_clear().env("guest", tree.join("guest"));
    let status = command.env("PATH", tree.join("bin")).status().unwrap();
    assert_eq!(status.code(), Some(2));
}
