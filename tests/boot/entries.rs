//! Boot entries: which entry the firmware boots, with which files and command line.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use bootshare_host::{Board, Machine, Outcome, Share, demo};

use crate::kernels::filtered;
use crate::lab::{Run, Server, demo_share, empty_dir, machine, run};

/// A share with the demo's kernel and initrd in the directory `files`, for entries to name.
pub(crate) fn share(name: &str, board: Board, files: &str) -> PathBuf {
    let share = empty_dir(&format!("entries-{name}-{board:?}"));
    fs::create_dir_all(share.join(files)).unwrap();
    let demo = demo_share(board.arch());
    for (from, to) in [
        (board.arch().kernel_name(), "linux"),
        ("initrd.img", "initrd"),
    ] {
        fs::copy(demo.join(from), share.join(files).join(to)).unwrap();
    }
    fs::copy(demo.join("greeting.txt"), share.join("greeting.txt")).unwrap();
    share
}

pub(crate) fn write(share: &Path, path: &str, text: &str) {
    let path = share.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// The demo's command line with a word that identifies the entry.
pub(crate) fn words(board: Board, entry: &str) -> String {
    let cmdline = fs::read_to_string(demo_share(board.arch()).join("cmdline")).unwrap();
    format!("{} demo.entry={entry}", cmdline.trim())
}

/// A share with two entries. The initrd of the first one does not exist.
fn two_entries(name: &str, board: Board) -> PathBuf {
    let share = share(name, board, "6.1");
    let words = words(board, "good");
    let (first, rest) = words.split_once(' ').unwrap();
    write(
        &share,
        "loader/entries/good-6.1.conf",
        &format!(
            "# Windows line ends\r\ntitle Good\r\nsort-key demo\r\nversion 6.1\r\n\
             linux 6.1/linux\r\ninitrd /6.1/initrd\r\noptions {first}\r\noptions {rest}\r\n"
        ),
    );
    write(
        &share,
        "loader/entries/broken-6.10+3.conf",
        &format!(
            "title Broken\nsort-key demo\nversion 6.10\nlinux /6.1/linux\n\
             initrd /6.10/initrd\noptions {words}\n"
        ),
    );
    let foreign = match board.arch() {
        bootshare_host::Arch::X86_64 => "aa64",
        bootshare_host::Arch::Aarch64 => "x64",
    };
    write(
        &share,
        "loader/entries/foreign.conf",
        &format!("sort-key a\nlinux /nosuch\narchitecture {foreign}\n"),
    );
    share
}

const BROKEN: [&str; 2] = [
    "bootshare: error: /loader/entries/broken-6.10+3.conf: /6.10/initrd: ",
    "no such file",
];

/// Runs the machine and checks that it boots `kernel` to user space.
pub(crate) fn expect_boot(machine: &Machine, kernel: &str) -> Run {
    let run = run(machine);
    assert_eq!(run.outcome, Outcome::PowerOff);
    run.line(&[&format!("bootshare: starting {kernel}")]);
    run.line(&["demo: Linux ", &format!("mounted the share {}", demo::TAG)]);
    run.line(&[demo::GREETING.trim()]);
    run
}

pub(crate) fn broken_then_good(board: Board) {
    let share = two_entries("broken", board);
    let options = "bootshare.log=debug";
    let run = expect_boot(&machine(board, Server::Rust, &share, options), "/6.1/linux");
    run.line(&BROKEN);
    run.line(&["bootshare: /loader/entries/foreign.conf: passed over: "]);
    run.line(&["bootshare: debug: command line: ", &words(board, "good")]);
}

/// Two shares with one entry each. The first share's entry is broken, so the firmware boots the second
/// share's entry with files of the second share, which Linux then mounts.
pub(crate) fn of_two_shares(board: Board) {
    let first = empty_dir(&format!("entries-first-{board:?}"));
    let entry = "title First\nlinux /linux\ninitrd /initrd\n";
    write(&first, "loader/entries/both.conf", entry);
    write(&first, "linux", "not a kernel");
    let second = share("second", board, "");
    let entry = format!(
        "title Second\nlinux /linux\ninitrd /initrd\noptions {}\n",
        words(board, "second")
    );
    write(&second, "loader/entries/both.conf", &entry);
    let mut machine = machine(board, Server::Rust, &second, "");
    machine.shares.insert(0, Share::new("first", first));
    let booted = expect_boot(&machine, &format!("{}:/linux", demo::TAG));
    booted.line(&["bootshare: error: first:/loader/entries/both.conf: /linux: "]);
    booted.line(&[&format!("bootshare: loaded {}:/initrd, ", demo::TAG)]);

    machine.append = format!("bootshare.cmd=entries bootshare.entry={}:b*", demo::TAG);
    assert_eq!(
        list(&machine),
        [format!(
            "* both: Second ({0}:/linux) from {0}:/loader/entries/both.conf",
            demo::TAG
        )]
    );
    machine.append = "bootshare.cmd=entries".into();
    let first = "* both: First (first:/linux) from first:/loader/entries/both.conf".to_owned();
    let second_both = format!(
        "  both: Second ({0}:/linux) from {0}:/loader/entries/both.conf",
        demo::TAG
    );
    assert_eq!(list(&machine), [first.clone(), second_both.clone()]);
    // The default of a share's loader.conf precedes the entries of that share only.
    write(&second, "loader/entries/a.conf", "linux /a\n");
    write(&second, "loader/loader.conf", "default a\n");
    let default = format!("  a: {0}:/a from {0}:/loader/entries/a.conf", demo::TAG);
    assert_eq!(list(&machine), [first, default, second_both]);
}

/// Before the kernel starts, the firmware ends its session with each share (DESTROY).
pub(crate) fn leave_no_trace(board: Board) {
    let shares = ["one", "two"].map(|name| share(&format!("trace-{name}"), board, ""));
    let entry = format!(
        "linux /linux\ninitrd /initrd\noptions {}\n",
        words(board, "trace")
    );
    write(&shares[0], "loader/entries/one.conf", &entry);
    let trace = empty_dir(&format!("entries-trace-{board:?}")).join("trace");
    let mut machine = machine(board, Server::Embedded, &shares[0], "");
    machine.shares.push(Share::new("two", &shares[1]));
    machine.trace = Some(trace.clone());
    expect_boot(&machine, &format!("{}:/linux", demo::TAG));
    let mut table = Vec::new();
    bootshare_host::serve::print(&trace, &mut table).unwrap();
    let table = String::from_utf8(table).unwrap();
    println!("{table}");
    // Linux mounts one of the shares, and ends that session as well.
    for (tag, sessions) in [(demo::TAG, 2), ("two", 1)] {
        let of_share = table
            .lines()
            .filter(|line| line.contains(&format!(" {tag}:")));
        let ends = of_share.filter_map(|line| {
            ["INIT", "DESTROY"]
                .into_iter()
                .find(|word| line.contains(word))
        });
        assert_eq!(
            ends.collect::<Vec<_>>(),
            ["INIT", "DESTROY"].repeat(sessions),
            "{tag}"
        );
    }
}

/// The output of the command `entries`.
fn list(machine: &Machine) -> Vec<String> {
    let run = run(machine);
    assert_eq!(run.outcome, Outcome::FirmwareExit(0));
    run.output().iter().map(|&line| line.to_owned()).collect()
}

/// The layout of Debian's packages: files in `/boot` and links to them in `/`, one of them absolute.
/// Then the same without the links: the firmware takes the newest version.
pub(crate) fn debian(board: Board) {
    let share = share("debian", board, "boot");
    let boot = share.join("boot");
    let version = "6.1.0-56-cloud";
    let names = [("linux", "vmlinuz-"), ("initrd", "initrd.img-")];
    for (from, to) in names {
        fs::rename(boot.join(from), boot.join(format!("{to}{version}"))).unwrap();
        // An older version, with a file that is no kernel.
        fs::write(boot.join(format!("{to}6.1.0-9-cloud")), "old").unwrap();
    }
    fs::write(boot.join(format!("config-{version}")), "").unwrap();
    fs::write(boot.join(format!("System.map-{version}")), "").unwrap();
    for (link, target) in [
        ("vmlinuz", format!("boot/vmlinuz-{version}")),
        ("initrd.img", format!("/boot/initrd.img-{version}")),
        ("vmlinuz.old", "boot/vmlinuz-6.1.0-9-cloud".into()),
        ("initrd.img.old", "boot/initrd.img-6.1.0-9-cloud".into()),
    ] {
        symlink(target, share.join(link)).unwrap();
    }
    let options = format!("-- {}", words(board, "debian"));
    let machine = machine(board, Server::Rust, &share, &options);
    let linked = expect_boot(&machine, "/vmlinuz");
    linked.line(&["bootshare: loaded /initrd.img, "]);
    for link in ["vmlinuz", "initrd.img", "vmlinuz.old", "initrd.img.old"] {
        fs::remove_file(share.join(link)).unwrap();
    }
    let newest = expect_boot(&machine, &format!("/boot/vmlinuz-{version}"));
    newest.line(&[&format!("bootshare: loaded /boot/initrd.img-{version}, ")]);
}

/// The firmware reports each wrong entry on one line, with its file and the reason, and tries the next.
pub(crate) fn wrong_ones(board: Board) {
    let share = share("wrong", board, "files");
    let outside = demo_share(board.arch()).join(board.arch().kernel_name());
    // On the host this link points to a kernel. Inside the share its target does not exist.
    symlink(&outside, share.join("files/absolute")).unwrap();
    let up = format!("{}{}", "../".repeat(30), outside.display());
    symlink(&up, share.join("files/up")).unwrap();
    symlink("files/round", share.join("round")).unwrap();
    symlink("../round", share.join("files/round")).unwrap();
    let long = "x".repeat(5000);
    let wrong = [
        ("linux /nosuch", "/nosuch: no such file or directory"),
        ("linux /files", "/files: "),
        (
            "linux /files/absolute",
            "/files/absolute: no such file or directory",
        ),
        ("linux files/up", "/files/up: no such file or directory"),
        ("linux /round", "/round: "),
        (&format!("linux {up}"), ": no such file or directory"),
        ("linux /files/linux/", "/files/linux/: "),
        (
            "title no kernel",
            "it names no kernel; add a line `linux PATH`",
        ),
        ("linux /files/linux\ninitrd /files", "/files: "),
        (
            &format!("linux /files/linux\noptions {long}"),
            "the command line has ",
        ),
        (
            "linux /files/linux\ndevicetree-overlay /o",
            "overlays are not supported",
        ),
    ];
    for (number, (text, _)) in wrong.iter().enumerate() {
        let text = format!("sort-key {number:02}\n{text}\n");
        write(
            &share,
            &format!("loader/entries/wrong-{number}.conf"),
            &text,
        );
    }
    symlink("/nowhere", share.join("loader/entries/dangling.conf")).unwrap();
    let good = format!(
        "sort-key z\nlinux /files/linux\ninitrd /files/initrd\noptions {}\n",
        words(board, "good")
    );
    write(&share, "loader/entries/good.conf", &good);
    let run = expect_boot(&machine(board, Server::Rust, &share, ""), "/files/linux");
    for (number, (_, why)) in wrong.iter().enumerate() {
        let name = format!("bootshare: error: /loader/entries/wrong-{number}.conf: ");
        let lines = run.lines.iter().filter(|line| line.starts_with(&name));
        let lines: Vec<_> = lines.collect();
        assert_eq!(lines.len(), 1, "{name} {lines:?}");
        assert!(lines[0].contains(why), "{:?} lacks {why:?}", lines[0]);
    }
    run.line(&["bootshare: error: /loader/entries/dangling.conf: no such file"]);
}

/// The root tree of a Fedora system whose /boot is a separate file system, with GRUB's environment block.
/// There is also an older kernel with a conventional name, which must not be booted.
pub(crate) fn fedora(board: Board) {
    let share = share("fedora", board, "boot");
    for (from, to) in [
        ("linux", "vmlinuz-6.11.5"),
        ("initrd", "initramfs-6.11.5.img"),
    ] {
        fs::rename(share.join("boot").join(from), share.join("boot").join(to)).unwrap();
    }
    write(&share, "boot/vmlinuz-6.10.0", "not a kernel");
    let entry = "title Fedora Linux\nversion 6.11.5\nlinux /vmlinuz-6.11.5\n\
        initrd /initramfs-6.11.5.img $tuned_initrd\noptions $kernelopts $tuned_params\n\
        grub_users $grub_users\ngrub_arg --unrestricted\ngrub_class fedora\n";
    write(&share, "boot/loader/entries/6a98-6.11.5.conf", entry);
    let block = format!(
        "# GRUB Environment Block\nkernelopts={} \n{}",
        words(board, "fedora"),
        "#".repeat(800)
    );
    write(&share, "boot/grub2/grubenv", &block);
    let options = "bootshare.log=debug";
    let machine = machine(board, Server::Rust, &share, options);
    let run = expect_boot(&machine, "/boot/vmlinuz-6.11.5");
    run.line(&["bootshare: entry 6a98-6.11.5 of /boot/loader/entries/6a98-6.11.5.conf"]);
    run.line(&["bootshare: debug: command line: ", &words(board, "fedora")]);
}

/// The layout of Armbian: an initrd with U-Boot's header, an included file, overlays and a board's device
/// tree.
pub(crate) fn armbian(board: Board) {
    let share = share("armbian", board, "boot");
    let data = fs::read(share.join("boot/initrd")).unwrap();
    let crc = |bytes: &[u8]| {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        crc.sum()
    };
    let mut header = [0x2705_1956, 0, 0, data.len() as u32, 0, 0, crc(&data)]
        .map(u32::to_be_bytes)
        .concat();
    header.extend([5, 22, 3, 0]);
    header.resize(64, 0);
    let checksum = crc(&header).to_be_bytes();
    header[4..8].copy_from_slice(&checksum);
    fs::write(share.join("boot/uInitrd"), [header, data].concat()).unwrap();
    fs::remove_file(share.join("boot/initrd")).unwrap();
    write(
        &share,
        "boot/extlinux/extlinux.conf",
        "DEFAULT Armbian\nINCLUDE /boot/labels.conf\n",
    );
    let label = format!(
        "LABEL Armbian\n  LINUX /boot/linux\n  INITRD /boot/uInitrd\n  FDTDIR /boot/dtb\n  \
         FDTOVERLAYS /boot/dtb/overlay/uart7.dtbo\n  APPEND {}${{extraargs}}\n",
        words(board, "armbian")
    );
    write(&share, "boot/labels.conf", &label);
    let options = "bootshare.log=debug";
    let run = expect_boot(
        &machine(board, Server::Rust, &share, options),
        "/boot/linux",
    );
    run.line(&["bootshare: entry Armbian of /boot/extlinux/extlinux.conf"]);
    run.line(&["bootshare: debug: command line: ", &words(board, "armbian")]);
    for what in [
        "fdtdir has no effect",
        "fdtoverlays has no effect",
        "${extraargs}",
    ] {
        run.line(&["bootshare: warning: ", what]);
    }
}

/// If no entry can be loaded, the firmware boots no other kernel, unless `bootshare.fallback=yes`.
pub(crate) fn never_another_kernel(board: Board) {
    let share = share("never", board, "");
    fs::rename(share.join("linux"), share.join("vmlinuz")).unwrap();
    fs::rename(share.join("initrd"), share.join("initrd.img")).unwrap();
    write(&share, "cmdline", &words(board, "never"));
    write(&share, "boot/loader/entries/a.conf", "linux /vmlinuz-6.1\n");
    let failed = run(&machine(board, Server::Rust, &share, ""));
    assert!(matches!(failed.outcome, Outcome::FirmwareExit(1)));
    failed.line(&[
        "bootshare: error: /boot/loader/entries/a.conf: /boot/vmlinuz-6.1: no such file or directory, \
         nor is there /vmlinuz-6.1",
    ]);
    failed.line(&["bootshare: error: ", "bootshare.fallback=yes"]);
    let options = "bootshare.fallback=yes";
    let booted = expect_boot(&machine(board, Server::Rust, &share, options), "/vmlinuz");
    booted.line(&["bootshare: entry vmlinuz, by its conventional name"]);
}

pub(crate) fn chosen_by_glob(board: Board) {
    let share = two_entries("glob", board);
    let with = |options: &str| machine(board, Server::C, &share, options);
    let chosen = expect_boot(&with("bootshare.entry=g??d-*"), "/6.1/linux");
    assert_eq!(chosen.find(&BROKEN), None);

    // No other entry is booted instead.
    let only = run(&with("bootshare.entry=broken-6.10"));
    assert!(matches!(only.outcome, Outcome::FirmwareExit(1)));
    only.line(&BROKEN);
    let none = run(&with("bootshare.entry=nosuch"));
    assert!(matches!(none.outcome, Outcome::FirmwareExit(1)));
    none.line(&[
        "bootshare: error: bootshare.entry=nosuch: ",
        "there is foreign, broken-6.10, good-6.1",
    ]);
}

pub(crate) fn listed(board: Board) {
    let share = two_entries("listed", board);
    write(
        &share,
        "extlinux/extlinux.conf",
        "default b\nlabel a\nkernel /a\nlabel b\nmenu label Bee\nkernel b\n",
    );
    fs::write(share.join("vmlinuz-6.1"), "").unwrap();
    let list = |options: &str| {
        let options = format!("{options} bootshare.cmd=entries");
        list(&machine(board, Server::Rust, &share, &options))
    };
    let broken = "broken-6.10: Broken (/6.1/linux) from /loader/entries/broken-6.10+3.conf";
    let good = "good-6.1: Good (/6.1/linux) from /loader/entries/good-6.1.conf";
    let label = "b: Bee (/extlinux/b) from /extlinux/extlinux.conf";
    let foreign = "- foreign: passed over: it is for aa64 and this machine is x86-64";
    let expected = [foreign, &format!("* {broken}"), &format!("  {good}")];
    assert_eq!(list(""), expected);

    // loader.conf moves its default to the front; bootshare.entry removes the other entries.
    write(&share, "loader/loader.conf", "timeout 3\ndefault good*\n");
    let expected = [&format!("* {good}"), foreign, &format!("  {broken}")];
    assert_eq!(list(""), expected);
    assert_eq!(list("bootshare.entry=b"), [format!("* {label}")]);
    // Entries of other kinds are tried, and listed, only with `bootshare.fallback=yes`.
    let rest = [
        &format!("  {label}"),
        "  a: /a from /extlinux/extlinux.conf",
        "  vmlinuz-6.1: /vmlinuz-6.1",
    ];
    let all = [&expected[..], &rest].concat();
    assert_eq!(list("bootshare.fallback=yes"), all);
}

/// The firmware keeps the first 64 entries in its order, and names a file that is too large for an entry.
pub(crate) fn too_many(board: Board) {
    let share = empty_dir("entries-too-many");
    for number in 1..=100 {
        let text = format!("title Number {number}\nlinux /{number}\n");
        write(&share, &format!("loader/entries/x-{number}.conf"), &text);
    }
    write(
        &share,
        "loader/entries/long.conf",
        &"# a comment\n".repeat(2000),
    );
    let options = "bootshare.cmd=entries";
    let run = run(&machine(board, Server::Rust, &share, options));
    assert_eq!(run.outcome, Outcome::FirmwareExit(0));
    let mut expected: Vec<_> = (37..=100)
        .rev()
        .map(|number| {
            let file = format!("/loader/entries/x-{number}.conf");
            format!("  x-{number}: Number {number} (/{number}) from {file}")
        })
        .collect();
    expected[0].replace_range(..1, "*");
    assert_eq!(run.output(), expected);
    run.line(&[
        "bootshare: warning: /loader/entries has more than 64 entries",
        "36",
    ]);
    run.line(&["bootshare: error: /loader/entries/long.conf: "]);
}

pub(crate) fn extlinux(board: Board) {
    let share = share("extlinux", board, "boot");
    let config = format!(
        "DEFAULT second\nTIMEOUT 50\nPROMPT 0\n\nLABEL first\n  KERNEL /nosuch\n\n\
         label second\n  menu label The second\n  linux ../linux\n  Initrd ../initrd\n  \
         append {}\n",
        words(board, "second")
    );
    write(&share, "boot/extlinux/extlinux.conf", &config);
    let options = "bootshare.log=debug";
    let kernel = "/boot/extlinux/../linux";
    let run = expect_boot(&machine(board, Server::Rust, &share, options), kernel);
    run.line(&["bootshare: debug: command line: ", &words(board, "second")]);
    assert_eq!(run.find(&["bootshare: error: "]), None);
}

/// The demo's initramfs in five archives, two of them compressed and of odd sizes. Linux needs all five.
pub(crate) fn five_initrds(board: Board) {
    let share = share("five", board, "five");
    let packed = fs::read(share.join("five/initrd")).unwrap();
    fs::remove_file(share.join("five/initrd")).unwrap();
    let archive = gzip(&["-dc"], &packed);
    let mut entry = format!("linux /five/linux\noptions {}\n", words(board, "five"));
    let mut odd = 0;
    for (number, part) in split(&archive, 5).into_iter().enumerate() {
        let part = if number % 2 == 1 {
            gzip(&["-c"], &part)
        } else {
            part
        };
        odd += usize::from(part.len() % 4 != 0);
        fs::write(share.join(format!("five/{number}")), &part).unwrap();
        entry += &format!("initrd /five/{number}\n");
    }
    assert!(odd > 0, "no padding is needed");
    write(&share, "loader/entries/five.conf", &entry);
    let run = expect_boot(&machine(board, Server::Rust, &share, ""), "/five/linux");
    for number in 0..5 {
        run.line(&[&format!("bootshare: loaded /five/{number}, ")]);
    }
}

pub(crate) fn gzip(arguments: &[&str], bytes: &[u8]) -> Vec<u8> {
    filtered("gzip", arguments, bytes)
}

/// Splits a newc archive (buffer-format.rst) into `count` archives with a part of its entries each.
fn split(archive: &[u8], count: usize) -> Vec<Vec<u8>> {
    const HEADER: usize = 110;
    let mut entries = Vec::new();
    let mut rest = archive;
    let trailer = loop {
        let number = |at: usize| {
            let digits = std::str::from_utf8(&rest[at..at + 8]).unwrap();
            usize::from_str_radix(digits, 16).unwrap()
        };
        let (file, name) = (number(54), number(94));
        let size = (HEADER + name).next_multiple_of(4) + file.next_multiple_of(4);
        if &rest[HEADER..HEADER + name - 1] == b"TRAILER!!!" {
            break &rest[..(HEADER + name).next_multiple_of(4)];
        }
        let (entry, after) = rest.split_at(size);
        entries.push(entry);
        rest = after;
    };
    assert!(entries.len() >= count);
    let each = entries.len() / count;
    (0..count)
        .map(|part| {
            let end = if part + 1 == count {
                entries.len()
            } else {
                (part + 1) * each
            };
            let mut part = entries[part * each..end].concat();
            part.extend(trailer);
            part
        })
        .collect()
}

/// Writes the machine's own device tree, with another model, to a file of the share.
pub(crate) fn other_model(board: Board, share: &Path) -> PathBuf {
    let tree = share.join("boot/machine.dtb");
    let mut machine = machine(board, Server::Rust, share, "");
    // QEMU writes the machine's device tree and exits.
    machine.qemu_args = vec![
        "-machine".into(),
        format!("dumpdtb={}", tree.display()).into(),
    ];
    run(&machine);
    let mut bytes = fs::read(&tree).unwrap();
    // Change the root's `model` and keep its `compatible`: the firmware refuses the tree of another machine.
    // The property starts with FDT_PROP, the value's size and the offset of its name (Devicetree
    // Specification, 5.4.1).
    let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    let names = &bytes[word(12) as usize..];
    let name = names
        .windows(6)
        .position(|name| name == b"model\0")
        .unwrap() as u32;
    let (model, other) = (b"linux,dummy-virt\0", b"linux,other-virt\0");
    let header = [3, model.len() as u32, name].map(u32::to_be_bytes).concat();
    let property = [&header[..], model].concat();
    let at = bytes
        .windows(property.len())
        .position(|window| window == property)
        .expect("the tree has another model");
    bytes[at + header.len()..][..other.len()].copy_from_slice(other);
    fs::write(&tree, bytes).unwrap();
    tree
}

/// Linux prints the model of the entry's device tree, not that of the machine's own.
pub(crate) fn device_tree(board: Board) {
    let share = share("tree", board, "boot");
    other_model(board, &share);
    let machine = machine(board, Server::Rust, &share, "-- loglevel=7");
    let entry = format!(
        "linux /boot/linux\ninitrd /boot/initrd\ndevicetree /boot/machine.dtb\noptions {}\n",
        words(board, "tree")
    );
    write(&share, "loader/entries/tree.conf", &entry);
    let run = expect_boot(&machine, "/boot/linux");
    run.line(&["Machine model: linux,other-virt"]);
}
