//! Downloads of Debian packages, with stubs instead of apt and dpkg.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::parts::{LIMIT, install};
use crate::tool::{Ran, Tool};

/// The program, and its call, that sleeps.
const SLEEP: &str = r#"
if [ "$(cat "$LAB/slow" 2> /dev/null)" = "${0##*/}" ]; then
    : > "$LAB/begun"
    sleep 1000
fi
"#;

/// `apt-get`. Its packages are the archives in `debs`. A download fails while `broken` has lines; each attempt
/// removes one.
const APT_GET: &str = r#"#!/bin/sh
cp "$2" "$LAB/apt.conf"
shift 4
echo "$*" >> "$LAB/log"
case $* in
"update --print-uris") cat "$LAB/uris" ;;
"-q update") echo "W: no network" >&2 ;;
"install "*) cat "$LAB/plan" ;;
"-q download "*)
    cp "$LAB"/*/*/sources/release.sources "$LAB/sources" 2> /dev/null
    if [ -s "$LAB/broken" ]; then
        sed -i 1d "$LAB/broken"
        printf 'E: one\n\n  E: two\n' >&2
        exit 100
    fi
    shift 2
    echo 'dlstatus:1:50.0:Retrieving'
    for name; do cp "$LAB/debs/$name" "$name.deb" || exit 100; done
    ;;
esac
"#;

/// `apt-cache`, asked to show a package.
const APT_CACHE: &str = r#"#!/bin/sh
shift 6
cat "$LAB/shown/$1" 2> /dev/null || echo "E: No packages found" >&2
"#;

/// `dpkg-deb --fsys-tarfile`: the packages of this test are archives without anything around them.
const DPKG_DEB: &str = "#!/bin/sh\ncat \"$2\"\n";

const DEMO: [&str; 5] = ["demo", "--board=x86_64-q35", "--parts", "lab/parts", "out"];

/// A directory with the stubs, and what they answer.
struct Lab {
    tool: Tool,
    dir: PathBuf,
}

impl Lab {
    fn new() -> Self {
        let tool = Tool::new(&[]);
        let dir = tool.dir.path().join("lab");
        for sub in ["bin", "debs", "shown"] {
            fs::create_dir_all(dir.join(sub)).unwrap();
        }
        let lab = Self { tool, dir };
        for (name, script) in [
            ("apt-get", APT_GET),
            ("apt-cache", APT_CACHE),
            ("dpkg-deb", DPKG_DEB),
        ] {
            let script = script.replacen('\n', SLEEP, 1);
            lab.write("draft", &script);
            install(&lab.dir.join("draft"), &lab.dir.join("bin").join(name));
        }
        lab
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.join(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join(name)).unwrap_or_default()
    }

    /// A package with these files.
    fn package(&self, name: &str, files: &[(&str, &str)]) {
        let tree = self.dir.join("tree");
        fs::create_dir(&tree).unwrap();
        for (path, text) in files {
            let path = tree.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let mut tar = Command::new("tar");
        let deb = self.dir.join("debs").join(name);
        tar.arg("--create").arg("--file").arg(deb);
        let made = tar.args(["--directory", tree.to_str().unwrap(), "."]);
        assert!(made.status().unwrap().success());
        fs::remove_dir_all(tree).unwrap();
    }

    /// A kernel that has built in all drivers of the demo, and its initramfs's shell.
    fn kernel(&self, name: &str) {
        let modules = format!("usr/lib/modules/{name}");
        self.package(
            name,
            &[
                ("boot/vmlinuz-1", "kernel"),
                (&format!("{modules}/modules.dep"), ""),
                (
                    &format!("{modules}/modules.builtin"),
                    "kernel/virtio_mmio.ko\nkernel/virtio_pci.ko\nkernel/virtiofs.ko\n",
                ),
            ],
        );
        self.package("busybox-static", &[("usr/bin/busybox", "shell")]);
    }

    fn command(&self, args: &[&str]) -> Command {
        let path = std::env::var("PATH").unwrap();
        let path = format!("{}:{path}", self.dir.join("bin").display());
        let mut command = self.tool.command(&[], args);
        command.env("PATH", path).env("LAB", &self.dir);
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        self.tool.run(&mut self.command(args))
    }

    fn demo(&self) -> Ran {
        self.run(&DEMO)
    }

    /// The packages of each attempt to download.
    fn downloads(&self) -> Vec<String> {
        let log = self.read("log");
        let lines = log
            .lines()
            .filter_map(|line| line.strip_prefix("-q download "));
        lines.map(str::to_owned).collect()
    }
}

#[test]
fn the_demos_packages_are_found_by_their_dependencies() {
    /// A meta-package, its `Depends`, the kernel, its `Depends`, and the packages with its parts.
    type Case = [&'static str; 5];
    const CASES: [Case; 3] = [
        [
            "linux-image-cloud-amd64",
            "linux-image-6.12-cloud-amd64 (= 6.12.1)",
            "linux-image-6.12-cloud-amd64",
            "kmod, linux-base (>= 4.3~), initramfs-tools | linux-initramfs-tool",
            "",
        ],
        [
            "linux-image-cloud-amd64",
            "linux-image-6.19+deb14-cloud-amd64 (= 6.19)",
            "linux-image-6.19+deb14-cloud-amd64",
            "linux-binary-6.19 (= 1),linux-modules-6.19, linux-base-6.19",
            "linux-base-6.19 linux-binary-6.19 linux-modules-6.19 ",
        ],
        // Ubuntu.
        [
            "linux-image-virtual",
            "linux-firmware, linux-image-6.8-generic",
            "linux-image-6.8-generic",
            "kmod, linux-modules-6.8-generic",
            "linux-modules-6.8-generic ",
        ],
    ];
    for [meta, of_meta, kernel, of_kernel, parts] in CASES {
        let lab = Lab::new();
        let shown = |name: &str, depends: &str| {
            let text = format!("Package: {name}\nDepends: {depends}\nDescription: d\n");
            lab.write(&format!("shown/{name}"), &text);
        };
        shown(meta, of_meta);
        shown(kernel, of_kernel);
        lab.kernel(kernel);
        for part in parts.split_whitespace() {
            lab.package(part, &[]);
        }
        lab.demo()
            .expect(0, &["fetching Debian's amd64 cloud kernel and busybox"]);
        assert_eq!(lab.downloads(), [format!("{parts}{kernel} busybox-static")]);
        let conf = lab.read("apt.conf");
        assert!(conf.contains("APT::Architecture \"amd64\";"), "{conf}");
        assert!(!conf.contains("Dir::Etc"), "{conf}");
        let out = lab.tool.dir.path().join("out");
        assert_eq!(fs::read(out.join("vmlinuz")).unwrap(), b"kernel");
        // The merged directories stay links, and no archive is left.
        assert!(lab.dir.join("parts/amd64/lib").is_symlink());
        assert!(lab.dir.join("parts/amd64/usr/bin/busybox").is_file());
        let mut left = fs::read_dir(lab.dir.join("parts/amd64")).unwrap();
        assert!(left.all(|entry| !entry.unwrap().path().to_str().unwrap().ends_with(".deb")));
        assert_eq!(fs::read_dir(lab.dir.join("parts")).unwrap().count(), 1);

        // The second time nothing is downloaded.
        let ran = lab.demo();
        ran.expect(0, &[]);
        assert_eq!(
            (ran.errors.contains("fetching"), lab.downloads().len()),
            (false, 1)
        );
    }
}

#[test]
fn the_machines_own_release_comes_from_its_own_sources() {
    let os = fs::read_to_string("/etc/os-release").unwrap();
    for release in ["bookworm", "trixie", "sid"] {
        let lab = Lab::new();
        lab.write(
            "uris",
            "'http://one.example/debian/dists/trixie/InRelease' one 0\n",
        );
        lab.write("shown/linux-image-cloud-amd64", "Depends: linux-image-1");
        lab.kernel("linux-image-1");
        let args = ["demo", "--board=x86_64-q35", "--release", release];
        let ran = lab.run(&[&args[..], &["--parts=lab/parts", "out"]].concat());
        ran.expect(0, &[]);
        let is_own = os
            .lines()
            .any(|line| line == format!("VERSION_CODENAME={release}"));
        let (dir, source) = match is_own {
            true => ("amd64".to_owned(), String::new()),
            false => (format!("amd64-{release}"), format!("\nSuites: {release}\n")),
        };
        assert!(lab.dir.join("parts").join(dir).is_dir(), "{release}");
        let sources = lab.read("sources");
        assert!(sources.contains(&source), "{release}: {sources}");
        assert_eq!(sources.is_empty(), is_own, "{release}");
    }
}

#[test]
fn a_download_is_tried_three_times() {
    let lab = Lab::new();
    let meta = "shown/linux-image-cloud-amd64";
    lab.write(meta, "Depends: linux-image-1");
    lab.kernel("linux-image-1");
    lab.write("broken", "1\n2\n");
    lab.demo().expect(0, &[]);
    assert_eq!(lab.downloads().len(), 3);

    fs::remove_dir_all(lab.dir.join("parts")).unwrap();
    lab.write("log", "");
    lab.write("broken", "1\n2\n3\n4\n");
    let ran = lab.demo();
    ran.expect(
        123,
        &[
            "cannot download Debian's amd64 packages, tried 3 times: E: one; E: two",
            "does `apt-get update` work?",
        ],
    );
    assert_eq!(ran.errors.lines().count(), 2, "{ran:?}");
    assert_eq!(lab.downloads().len(), 3);
    assert_eq!(fs::read_dir(lab.dir.join("parts")).unwrap().count(), 0);

    // A kernel that apt does not know: what its update complained of is the cause.
    fs::remove_file(lab.dir.join(meta)).unwrap();
    let ran = lab.demo();
    ran.expect(
        123,
        &["tried 3 times: W: no network: apt does not know linux-image-cloud-amd64"],
    );

    // A damaged package.
    lab.write(meta, "Depends: linux-image-1");
    lab.write("broken", "");
    lab.write("debs/linux-image-1", "no archive");
    let ran = lab.demo();
    ran.expect(123, &["cannot unpack ", "/linux-image-1.deb: tar: "]);

    // A full disk: tar ends before it has read all of a package.
    for name in ["linux-image-1", "busybox-static"] {
        lab.write(&format!("debs/{name}"), &"x".repeat(1 << 20));
    }
    lab.write("draft", "#!/bin/sh\necho 'tar: full' >&2\nexit 2\n");
    install(&lab.dir.join("draft"), &lab.dir.join("bin/tar"));
    let ran = lab.demo();
    ran.expect(123, &["cannot unpack ", ".deb: tar: full"]);
    assert_eq!(fs::read_dir(lab.dir.join("parts")).unwrap().count(), 0);
}

#[test]
fn qemu_of_a_release_is_unpacked_with_what_it_needs() {
    let lab = Lab::new();
    let fetch = |release: &str| lab.run(&["qemu", release, "--cache", "lab/qemu"]);
    lab.write(
        "uris",
        "'http://one.example/debian-security/dists/trixie-security/InRelease' one 0\n",
    );
    fetch("trixie").expect(123, &["apt has no source of Debian trixie: "]);

    lab.write(
        "uris",
        "'http://one.example/debian/dists/trixie/InRelease' one 0\n",
    );
    lab.write(
        "plan",
        "NOTE: a simulation\nInst libone (1 trixie)\nInst two [1] (2)\nConf two (2)\n",
    );
    lab.package("libone", &[("usr/lib/qemu/virtiofsd", "server")]);
    lab.package("two", &[("usr/bin/qemu-system-x86_64", "qemu")]);
    let ran = fetch("trixie");
    ran.expect(
        0,
        &["fetching Debian trixie's ", " QEMU into lab/qemu/trixie"],
    );
    let tree = fs::canonicalize(lab.dir.join("qemu/trixie")).unwrap();
    assert_eq!(ran.console, format!("{}\n", tree.display()));
    let log = lab.read("log");
    assert!(
        log.contains(
            "install --simulate --no-install-recommends qemu-system-x86 qemu-system-arm\n"
        ),
        "{log}"
    );
    assert_eq!(lab.downloads(), ["libone two"]);
    let conf = lab.read("apt.conf");
    for line in [
        "Dir::Etc::SourceList \"/dev/null\";",
        "Dir::Etc::Preferences \"/dev/null\";",
        "#clear APT::Default-Release;",
    ] {
        assert!(conf.contains(line), "no {line} in {conf}");
    }
    let sources = lab.read("sources");
    for line in [
        "URIs: http://one.example/debian\n",
        "Suites: trixie\n",
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.",
        "Check-Valid-Until: yes\n",
    ] {
        assert!(sources.contains(line), "no {line} in {sources}");
    }

    // Of Debian 12 there is a virtiofsd, too. An earlier script is replaced, and no file of somebody else.
    let script = |name: &str| fs::read_to_string(tree.join(name)).unwrap();
    let start = script("qemu-system-x86_64");
    assert_eq!(script("virtiofsd"), start);
    fs::remove_file(tree.join("virtiofsd")).unwrap();
    fs::remove_file(tree.join("usr/lib/qemu/virtiofsd")).unwrap();
    fs::write(
        tree.join("qemu-system-aarch64"),
        "# of the unpacked packages\n",
    )
    .unwrap();
    fetch("trixie").expect(0, &[]);
    assert_eq!(script("qemu-system-aarch64"), start);
    assert!(!tree.join("virtiofsd").exists());
    fs::write(tree.join("qemu-system-aarch64"), "theirs").unwrap();
    let ran = fetch("trixie");
    ran.expect(
        123,
        &["/qemu-system-aarch64 exists and is not from this program: name another"],
    );
    assert_eq!(script("qemu-system-aarch64"), "theirs");
    assert_eq!(lab.downloads().len(), 1);
}

#[test]
fn a_download_that_is_interrupted_leaves_nothing_behind() {
    // In a program, or between two attempts.
    for slow in ["apt-get", "apt-cache", "dpkg-deb", ""] {
        let lab = Lab::new();
        lab.write("shown/linux-image-cloud-amd64", "Depends: linux-image-1");
        lab.kernel("linux-image-1");
        lab.write("slow", slow);
        if slow.is_empty() {
            // Each attempt takes one line.
            lab.write("broken", "1\n1\n1\n1\n");
        }
        let mut command = lab.command(&DEMO);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let deadline = Instant::now() + LIMIT;
        let has_begun = || match slow {
            "" => lab.dir.join("broken").metadata().unwrap().len() < 8,
            _ => lab.dir.join("begun").exists(),
        };
        while !has_begun() {
            assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none());
            thread::sleep(Duration::from_millis(20));
        }
        if slow.is_empty() {
            // The failure is noticed a moment later; the next attempt begins after 2 s.
            thread::sleep(Duration::from_millis(500));
        }
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(130), "{slow}: {errors}");
        assert!(errors.ends_with("error: interrupted\n"), "{slow}: {errors}");
        lab.tool.assert_nothing_is_left();
        assert_eq!(fs::read_dir(lab.dir.join("parts")).unwrap().count(), 0);
        // A late signal comes in a later attempt.
        let attempts = lab.read("log").matches("-q update\n").count();
        assert!(attempts < 2 || slow.is_empty(), "{slow}");
    }
}
