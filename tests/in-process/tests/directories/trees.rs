//! Directories as distributions and users make them, based on public reports of boots that failed.
//!
//! Each is a table of files. The right entry has `good` on its command line, entries that must not be
//! started have `wrong`.

use sha2::{Digest, Sha256};

use crate::machine::{Boot, End, boot, boot_from, device_tree, kernel, uki};
use bootshare::fuse::Errno;
use bootshare::loader::Architecture::{self, Aarch64, X86_64};
use bootshare_test_device::{Device, Opcode, Reply, Tree, raw::Reset};
use std::slice::from_ref;

/// Paths and contents: `KERNEL` stands for a kernel, `-> PATH` for a link.
pub type Files<'a> = &'a [(&'a str, &'a str)];

pub fn tree(architecture: Architecture, files: Files) -> Tree {
    files.iter().fold(Tree::new(), |tree, (path, content)| {
        match (*content, content.strip_prefix("-> ")) {
            (_, Some(target)) => tree.link(path, target),
            ("KERNEL", _) => tree.file(path, kernel(architecture)),
            (content, _) => tree.file(path, content),
        }
    })
}

fn run(files: Files, options: &str) -> Boot {
    boot(Aarch64, &[tree(Aarch64, files)], options)
}

/// Boots the directory; returns the kernel's command line, and the messages about what is started.
#[track_caller]
fn boots(files: Files, told: &str, entry: &str, starting: &str) -> Boot {
    let boot = run(files, "");
    assert_eq!(boot.told(), told);
    let lines = &boot.lines[boot.lines.len() - 2..];
    assert_eq!(lines[0], format!("bootshare: entry {entry}"));
    assert_eq!(lines[1], format!("bootshare: starting {starting}"));
    boot
}

/// The output of the command `entries`.
#[track_caller]
fn list(files: Files) -> Vec<String> {
    let boot = run(files, "bootshare.cmd=entries");
    assert_eq!(boot.end, End::Done);
    boot.output().into_iter().map(str::to_owned).collect()
}

const FEDORA: &str = "vmlinuz-6.11.5-300.fc41.x86_64";

// Where the tree starts.

#[test]
fn entries_of_a_root_tree_whose_boot_is_a_file_system_of_its_own() {
    let files = [
        ("etc/os-release", "ID=fedora\n"),
        ("boot/vmlinuz-6.11.5-300.fc41.x86_64", "KERNEL"),
        ("boot/initramfs-6.11.5-300.fc41.x86_64.img", "initrd"),
        ("boot/loader/entries.srel", "type1\n"),
        (
            "boot/loader/entries/6a98-6.11.5-300.fc41.x86_64.conf",
            "title Fedora Linux\nversion 6.11.5-300.fc41.x86_64\n\
             linux /vmlinuz-6.11.5-300.fc41.x86_64\ninitrd /initramfs-6.11.5-300.fc41.x86_64.img\n\
             options root=UUID=2ab8 ro good\ngrub_users $grub_users\ngrub_arg --unrestricted\n\
             grub_class fedora\n",
        ),
    ];
    let boot = boots(
        &files,
        "root=UUID=2ab8 ro good",
        "6a98-6.11.5-300.fc41.x86_64 of /boot/loader/entries/6a98-6.11.5-300.fc41.x86_64.conf",
        &format!("/boot/{FEDORA}"),
    );
    assert_eq!(boot.initrd(), b"initrd");
    assert_eq!(
        list(&files),
        [format!(
            "* 6a98-6.11.5-300.fc41.x86_64: Fedora Linux (/boot/{FEDORA}) from \
             /boot/loader/entries/6a98-6.11.5-300.fc41.x86_64.conf"
        )]
    );
}

#[test]
fn entries_of_a_root_tree_whose_boot_is_part_of_it() {
    let files = [
        ("boot/vmlinuz-6.11.5", "KERNEL"),
        ("boot/initramfs-6.11.5.img", "initrd"),
        (
            "boot/loader/entries/a.conf",
            "linux /boot/vmlinuz-6.11.5\ninitrd /boot/initramfs-6.11.5.img\noptions good\n",
        ),
    ];
    let (entry, kernel) = ("a of /boot/loader/entries/a.conf", "/boot/vmlinuz-6.11.5");
    boots(&files, "good", entry, kernel);
    assert_eq!(
        list(&files),
        ["* a: /boot/vmlinuz-6.11.5 from /boot/loader/entries/a.conf"]
    );
}

#[test]
fn entries_for_a_root_tree_where_the_share_is_its_boot() {
    let entry = "linux /boot/vmlinuz-6\ninitrd /boot/initramfs-6.img\noptions good\n";
    let files = [
        ("vmlinuz-6", "KERNEL"),
        ("initramfs-6.img", "initrd"),
        ("loader/entries/fedora-6.conf", entry),
    ];
    let boot = boots(
        &files,
        "good",
        "fedora-6 of /loader/entries/fedora-6.conf",
        "/vmlinuz-6",
    );
    assert_eq!(boot.initrd(), b"initrd");
    // Debian's u-boot-menu.
    let conf = "default l0\nmenu title U-Boot menu\nprompt 0\ntimeout 50\n\nlabel l0\n\
        \tmenu label Debian\n\tlinux /boot/vmlinuz-6\n\tinitrd /boot/initramfs-6.img\n\
        \tfdtdir /usr/lib/linux-image-6/\n\tappend good\n";
    let files = [
        ("vmlinuz-6", "KERNEL"),
        ("initramfs-6.img", "initrd"),
        ("extlinux/extlinux.conf", conf),
    ];
    boots(
        &files,
        "good",
        "l0 of /extlinux/extlinux.conf",
        "/vmlinuz-6",
    );
}

#[test]
fn entries_of_both_file_systems_of_a_boot_loader() {
    // XBOOTLDR at /boot, the ESP at /efi, which has the configuration and a unified kernel image.
    let image = uki(
        Aarch64,
        &[
            (".osrel", b"ID=x\n".to_vec()),
            (".cmdline", b"good".to_vec()),
            (".linux", kernel(Aarch64)),
        ],
    );
    let tree = tree(
        Aarch64,
        &[
            ("boot/6/linux", "KERNEL"),
            (
                "boot/loader/entries/a.conf",
                "linux /6/linux\noptions wrong\n",
            ),
            ("efi/loader/loader.conf", "default b.efi\n"),
        ],
    )
    .file("efi/EFI/Linux/b.efi", image);
    let booted = boot(Aarch64, from_ref(&tree), "");
    assert_eq!(booted.told(), "good");
    booted.line("bootshare: entry b of /efi/EFI/Linux/b.efi");
    let listed = boot(Aarch64, &[tree], "bootshare.cmd=entries");
    assert_eq!(
        listed.output(),
        [
            "* b: x (/efi/EFI/Linux/b.efi)",
            "  a: /boot/6/linux from /boot/loader/entries/a.conf"
        ]
    );
    // Fedora's ESP.
    let files = [
        ("boot/efi/6/linux", "KERNEL"),
        (
            "boot/efi/loader/entries/a.conf",
            "linux /6/linux\noptions good\n",
        ),
    ];
    let (entry, kernel) = ("a of /boot/efi/loader/entries/a.conf", "/boot/efi/6/linux");
    boots(&files, "good", entry, kernel);
}

#[test]
fn an_extlinux_conf_is_found_in_every_usual_directory() {
    for directory in [
        "extlinux",
        "boot/extlinux",
        "boot",
        "boot/syslinux",
        "syslinux",
        "",
    ] {
        let path = format!("{directory}/extlinux.conf");
        let files = [
            (path.as_str(), "label a\nlinux /6/linux\nappend good\n"),
            ("6/linux", "KERNEL"),
            ("vmlinuz", "KERNEL"),
            ("boot/vmlinuz", "KERNEL"),
        ];
        let entry = format!("a of /{}", path.trim_start_matches('/'));
        boots(&files, "good", &entry, "/6/linux");
    }
    let cfg = "LABEL a\nKERNEL linux\nAPPEND good\n";
    for (path, linux) in [
        ("syslinux/syslinux.cfg", "syslinux/linux"),
        ("SYSLINUX/SYSLINUX.CFG", "SYSLINUX/linux"),
        ("syslinux.cfg", "linux"),
    ] {
        boots(
            &[(path, cfg), (linux, "KERNEL")],
            "good",
            &format!("a of /{path}"),
            &format!("/{linux}"),
        );
    }
}

#[test]
fn alpines_extlinux_conf_in_boot() {
    let conf = "# Generated by update-extlinux 6.04_pre1-r15\nDEFAULT menu.c32\nPROMPT 0\n\
        MENU TITLE Alpine/Linux Boot Menu\nMENU HIDDEN\n\
        MENU AUTOBOOT Alpine will be booted automatically in # seconds.\nTIMEOUT 10\n\
        LABEL virt\n  MENU DEFAULT\n  MENU LABEL Linux virt\n  LINUX vmlinuz-virt\n\
        \x20 INITRD initramfs-virt\n  APPEND root=UUID=1f3f quiet good\n\nMENU SEPARATOR\n";
    let files = [
        ("boot/extlinux.conf", conf),
        ("boot/vmlinuz-virt", "KERNEL"),
        ("boot/initramfs-virt", "initrd"),
    ];
    let (entry, kernel) = ("virt of /boot/extlinux.conf", "/boot/vmlinuz-virt");
    let boot = boots(&files, "root=UUID=1f3f quiet good", entry, kernel);
    assert_eq!(boot.initrd(), b"initrd");
    boot.lacks("bootshare: menu: ");
    assert_eq!(
        list(&files),
        ["* virt: Linux virt (/boot/vmlinuz-virt) from /boot/extlinux.conf"]
    );
}

// GRUB's dialect.

#[test]
fn grubs_variables_that_are_not_set_are_empty() {
    let entry = |name: &str, initrd: &str, options: &str| {
        format!(
            "title {name}\nversion {name}\nlinux /vmlinuz-{name}\ninitrd /initramfs-{name}.img{initrd}\n\
             options {options}\ngrub_users $grub_users\ngrub_class fedora\n"
        )
    };
    let six = entry("6", " $tuned_initrd", "ro good $tuned_params");
    let rescue = entry("0-rescue", "", "wrong");
    let mut files = vec![
        ("vmlinuz-6", "KERNEL"),
        ("vmlinuz-0-rescue", "KERNEL"),
        ("initramfs-6.img", "one "),
        ("initramfs-0-rescue.img", "initrd"),
        ("tuned.img", "two"),
        ("loader/entries/x-6.conf", six.as_str()),
        ("loader/entries/x-0-rescue.conf", rescue.as_str()),
    ];
    let boot = boots(
        &files,
        "ro good",
        "x-6 of /loader/entries/x-6.conf",
        "/vmlinuz-6",
    );
    assert_eq!(boot.initrd(), b"one ");
    files.push((
        "grub2/grubenv",
        "# GRUB Environment Block\ntuned_params=isolcpus=1\ntuned_initrd=/tuned.img\n####",
    ));
    let boot = boots(
        &files,
        "ro good isolcpus=1",
        "x-6 of /loader/entries/x-6.conf",
        "/vmlinuz-6",
    );
    assert_eq!(boot.initrd(), b"one two");
}

#[test]
fn the_command_line_in_grubs_environment() {
    let env = format!(
        "# GRUB Environment Block\nsaved_entry=x\nkernelopts=root=/dev/mapper/cl-root ro good \n\
         boot_success=0\n{}",
        "#".repeat(900)
    );
    let entry = "title CentOS Linux\nversion 4.18\nlinux /vmlinuz-4.18\ninitrd /i.img\n\
        options $kernelopts\nid centos-4.18\ngrub_arg --unrestricted\n";
    for (root, place) in [("", "grub2"), ("", "grub"), ("boot/", "grub2")] {
        let paths =
            ["vmlinuz-4.18", "i.img", "loader/entries/a.conf"].map(|p| format!("{root}{p}"));
        let env_path = format!("{root}{place}/grubenv");
        let files = [
            (paths[0].as_str(), "KERNEL"),
            (&paths[1], "initrd"),
            (&paths[2], entry),
            (&env_path, &env),
        ];
        boots(
            &files,
            "root=/dev/mapper/cl-root ro good",
            &format!("a of /{}", paths[2]),
            &format!("/{}", paths[0]),
        );
    }
}

// extlinux.

#[test]
fn files_that_are_included() {
    let label =
        "LABEL ROOT-A\n  KERNEL ROOT-A/vmlinuz\n  INITRD ROOT-A/initramfs.xz\n  APPEND good\n";
    let mut files = vec![
        (
            "extlinux/extlinux.conf",
            "DEFAULT ROOT-A\n  SAY Talos\nINCLUDE ROOT-A/include.conf\n",
        ),
        ("extlinux/ROOT-A/include.conf", label),
        ("extlinux/ROOT-A/vmlinuz", "KERNEL"),
        ("extlinux/ROOT-A/initramfs.xz", "initrd"),
    ];
    let entry = "ROOT-A of /extlinux/extlinux.conf";
    let boot = boots(&files, "good", entry, "/extlinux/ROOT-A/vmlinuz");
    assert_eq!(boot.initrd(), b"initrd");
    assert_eq!(
        list(&files),
        ["* ROOT-A: /extlinux/ROOT-A/vmlinuz from /extlinux/extlinux.conf"]
    );

    // In the order of the lines, also with absolute paths; a missing file is skipped.
    files[0].1 = "LABEL first\nLINUX ROOT-A/vmlinuz\nMENU INCLUDE /more.conf tag\n\
        include missing.conf\nLABEL last\nLINUX ROOT-A/vmlinuz\n";
    files.push((
        "more.conf",
        "\u{feff}LABEL second\nLINUX ROOT-A/vmlinuz\nINCLUDE third.conf",
    ));
    files.push(("extlinux/third.conf", "LABEL third\nLINUX ROOT-A/vmlinuz"));
    let listed = run(&files, "bootshare.cmd=entries");
    let ids: Vec<_> = listed.output().iter().map(|line| &line[2..8]).collect();
    assert_eq!(ids, ["first:", "second", "third:", "last: "]);
    listed.line("error: /extlinux/extlinux.conf: INCLUDE missing.conf: no such file");
}

#[test]
fn files_that_include_themselves_end() {
    let text = "LABEL a\nLINUX /linux\nAPPEND good\nINCLUDE extlinux.conf\nINCLUDE extlinux.conf\n";
    let files = [("extlinux/extlinux.conf", text), ("linux", "KERNEL")];
    let boot = boots(&files, "good", "a of /extlinux/extlinux.conf", "/linux");
    boot.line("error: /extlinux/extlinux.conf: it includes too many files");
    // The same depth as SYSLINUX and U-Boot, and not one level more.
    for (deep, works) in [(15, true), (16, false)] {
        let mut files = vec![("linux".to_owned(), "KERNEL".to_owned())];
        for level in 0..=deep {
            let path = match level {
                0 => "extlinux/extlinux.conf".to_owned(),
                level => format!("extlinux/{level}"),
            };
            let text = match level {
                level if level == deep => "label a\nlinux /linux\nappend good\n".to_owned(),
                level => format!("include {}\n", level + 1),
            };
            files.push((path, text));
        }
        let files: Vec<_> = files
            .iter()
            .map(|(p, t)| (p.as_str(), t.as_str()))
            .collect();
        let boot = run(&files, "");
        assert_eq!(boot.end != End::Failed, works, "{:#?}", boot.lines);
    }
}

#[test]
fn a_negative_timeout_as_in_nixos_waits_for_no_menu() {
    let conf = "DEFAULT nixos-default\n\nMENU TITLE ------\nTIMEOUT -10\n\nLABEL nixos-default\n\
        \x20 MENU LABEL NixOS - Default\n  LINUX ../nixos/Image\n  INITRD ../nixos/initrd\n\
        \x20 APPEND init=/nix/store/x/init good\n  FDTDIR ../nixos/dtbs\n";
    let files = [
        ("extlinux/extlinux.conf", conf),
        ("nixos/Image", "KERNEL"),
        ("nixos/initrd", "initrd"),
    ];
    let boot = boots(
        &files,
        "init=/nix/store/x/init good",
        "nixos-default of /extlinux/extlinux.conf",
        "/extlinux/../nixos/Image",
    );
    boot.lacks("bootshare: menu: ");
    boot.line("fdtdir has no effect");
}

#[test]
fn any_number_of_labels() {
    let labels: String = (0..1000)
        .map(|n| {
            let filler = "x".repeat(800);
            format!("LABEL n{n}\n  LINUX /linux\n  APPEND good={n} {filler}\n")
        })
        .collect();
    let conf = format!("DEFAULT n777\n{labels}");
    assert!(conf.len() > 800_000);
    let files = [
        ("extlinux/extlinux.conf", conf.as_str()),
        ("linux", "KERNEL"),
    ];
    let default = run(&files, "");
    assert!(default.told().starts_with("good=777 "));
    let chosen = run(&files, "bootshare.entry=n998");
    assert!(chosen.told().starts_with("good=998 "));
    let listed = run(&files, "bootshare.cmd=entries");
    let lines = listed.output();
    assert_eq!(lines.len(), 64);
    assert!(lines[0].starts_with("* n777: ") && lines[1].starts_with("  n0: "));
    listed.line(
        "warning: /extlinux/extlinux.conf has more than 64 entries: 936 of them are left out",
    );

    // A file larger than the limit is refused.
    let conf = conf + &"#".repeat(1 << 20);
    let files = [
        ("extlinux/extlinux.conf", conf.as_str()),
        ("vmlinuz", "KERNEL"),
    ];
    let long = run(&files, "");
    assert_eq!(long.end, End::Failed);
    long.line("error: /extlinux/extlinux.conf: it has 1048577 bytes or more; make it shorter");
}

#[test]
fn armbians_initrd_has_u_boots_header() {
    // The output of mkimage -A arm64 -T ramdisk -C none for "PLACEHOLDER INITRD\n".
    let mut image = vec![0; 64];
    image[..4].copy_from_slice(&[0x27, 5, 0x19, 0x56]);
    image[4..8].copy_from_slice(&0xf885_5f8b_u32.to_be_bytes());
    image[12..16].copy_from_slice(&19_u32.to_be_bytes());
    image[28..32].copy_from_slice(&[5, 22, 3, 0]);
    image[32..39].copy_from_slice(b"uInitrd");
    let data = b"PLACEHOLDER INITRD\n";
    image.extend(data);
    let (header, content) = checksums(&image);
    image[24..28].copy_from_slice(&content.to_be_bytes());
    image[4..8].copy_from_slice(&header.to_be_bytes());
    let tree = |image: Vec<u8>| {
        let conf = "label Armbian\n kernel /Image\n initrd /first,/uInitrd\n append good\n";
        tree(
            Aarch64,
            &[
                ("extlinux/extlinux.conf", conf),
                ("Image", "KERNEL"),
                ("first", "1234"),
            ],
        )
        .file("uInitrd", image)
    };
    let booted = boot(Aarch64, &[tree(image.clone())], "");
    assert_eq!(booted.told(), "good");
    // The kernel skips zeros between archives.
    let expected = [&b"1234"[..], &[0; 64], data].concat();
    assert_eq!(booted.initrd(), expected);

    *image.last_mut().unwrap() ^= 1;
    let damaged = boot(Aarch64, &[tree(image)], "");
    assert_eq!(damaged.end, End::Failed);
    damaged.line("label Armbian: /uInitrd: it is damaged: the checksum of its content is wrong");
}

/// The CRC-32 of a legacy image's header, which includes that of its content, and of its content.
fn checksums(image: &[u8]) -> (u32, u32) {
    let crc = |bytes: &[u8]| {
        !bytes.iter().fold(!0_u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
            })
        })
    };
    let content = crc(&image[64..]);
    let mut header = image[..64].to_vec();
    header[4..8].fill(0);
    header[24..28].copy_from_slice(&content.to_be_bytes());
    (crc(&header), content)
}

#[test]
fn a_device_tree_of_another_machine_is_not_used() {
    let conf = "label a\n kernel /Image\n fdt /board.dtb\n append good\n";
    let files = [("extlinux/extlinux.conf", conf), ("Image", "KERNEL")];
    let with = |compatible: &[&str]| {
        let tree = tree(Aarch64, &files).file("board.dtb", device_tree(compatible));
        boot(Aarch64, &[tree], "")
    };
    let other = with(&["radxa,rock-5b", "rockchip,rk3588"]);
    assert_eq!(other.told(), "good");
    assert_eq!(other.compatible(), "linux,dummy-virt\0");
    other.line(
        "warning: /extlinux/extlinux.conf: label a: /board.dtb: it is for radxa,rock-5b and this \
         machine is linux,dummy-virt, whose own device tree is used",
    );
    let same = with(&["our,board", "linux,dummy-virt"]);
    assert_eq!(same.told(), "good");
    assert_eq!(same.compatible(), "our,board\0linux,dummy-virt\0");
    same.lacks("warning: ");
}

#[test]
fn what_u_boot_ignores_is_ignored_with_a_warning() {
    let conf = "default l0\nlabel l0\n linux /Image\n initrd /initrd.img\n fdtdir /dtbs\n\
        \x20fdtoverlays /dtbo/rk3588-uart7-m2.dtbo /dtbo/x.dtbo\n append good root=${rootdev} ${x}\n";
    let files = [
        ("extlinux/extlinux.conf", conf),
        ("Image", "KERNEL"),
        ("initrd.img", "initrd"),
    ];
    let entry = "l0 of /extlinux/extlinux.conf";
    let boot = boots(&files, "good root=", entry, "/Image");
    boot.line("warning: /extlinux/extlinux.conf: label l0: fdtoverlays has no effect");
    boot.line("label l0: its command line has ${x}, a variable of U-Boot: it is empty here");
}

#[test]
fn labels_that_start_no_kernel_are_passed_over() {
    let conf = "label local\n localboot 0\nlabel tool\n kernel hdt.c32\nlabel linux\n linux /linux\n\
        append good\n";
    let files = [("extlinux/extlinux.conf", conf), ("linux", "KERNEL")];
    let boot = boots(&files, "good", "linux of /extlinux/extlinux.conf", "/linux");
    boot.lacks("error: ");
    assert_eq!(
        list(&files),
        [
            "- local: passed over: it starts no Linux kernel (localboot)",
            "- tool: passed over: it starts no Linux kernel (hdt.c32)",
            "* linux: /linux from /extlinux/extlinux.conf",
        ]
    );
}

#[test]
fn a_fit_image_is_refused_by_name() {
    let tree = tree(
        Aarch64,
        &[
            (
                "extlinux/extlinux.conf",
                "label l0\n kernel /fitImage#conf-1\n append wrong\n",
            ),
            ("Image", "KERNEL"),
        ],
    )
    .file("fitImage", device_tree(&["x"]));
    let boot = boot(Aarch64, &[tree], "");
    assert_eq!(boot.end, End::Failed);
    boot.line("label l0: /fitImage: it is a FIT image");
}

// The Boot Loader Specification and loader.conf.

#[test]
fn each_of_a_thousand_entries_is_found() {
    let entries: Vec<_> = (1..=1000)
        .map(|n| {
            (
                format!("loader/entries/nixos-generation-{n}.conf"),
                format!(
                    "title NixOS\nsort-key nixos\nversion Generation {n}\nlinux /linux\noptions good={n}\n"
                ),
            )
        })
        .collect();
    let mut files: Vec<_> = entries
        .iter()
        .map(|(p, t)| (p.as_str(), t.as_str()))
        .collect();
    files.push(("linux", "KERNEL"));
    files.push(("loader/loader.conf", "default nixos-generation-5.conf\n"));
    let boot = run(&files, "bootshare.log=warn");
    assert_eq!(boot.told(), "good=5");
    let listed = run(&files, "bootshare.cmd=entries");
    let lines = listed.output();
    assert!(lines[0].starts_with("* nixos-generation-5: "));
    assert!(lines[1].starts_with("  nixos-generation-1000: "));
    assert_eq!(lines.len(), 65);
    listed.line("/loader/entries has more than 64 entries: 935 of them are left out");
    for name in ["nixos-generation-77", "share1:NIXOS-generation-77.conf"] {
        let chosen = run(&files, &format!("bootshare.entry={name}"));
        assert_eq!(chosen.told(), "good=77");
    }
    files.pop();
    assert_eq!(run(&files, "").told(), "good=1000");
}

#[test]
fn names_match_in_any_case_unless_one_matches_exactly() {
    let mut files = vec![
        ("linux", "KERNEL"),
        (
            "loader/entries/Arch-LTS.conf",
            "linux /linux\noptions good\n",
        ),
        ("loader/entries/arch.conf", "linux /linux\noptions wrong\n"),
        ("loader/loader.conf", "default arch-lts.conf\ntimeout 0\n"),
    ];
    let entry = "Arch-LTS of /loader/entries/Arch-LTS.conf";
    boots(&files, "good", entry, "/linux");
    assert_eq!(run(&files, "bootshare.entry=ARCH-lts").told(), "good");
    assert_eq!(run(&files, "bootshare.entry=arch.CONF").told(), "wrong");
    files.push((
        "loader/entries/arch-lts.conf",
        "linux /linux\noptions exact\n",
    ));
    assert_eq!(run(&files, "").told(), "exact");
    assert_eq!(run(&files, "bootshare.entry=arch-lts").told(), "exact");
    assert_eq!(run(&files, "bootshare.entry=Arch-LTS").told(), "good");
}

#[test]
fn names_as_fat_shows_them() {
    let image = uki(
        X86_64,
        &[
            (".osrel", b"ID=demo\n".to_vec()),
            (".cmdline", b"good".to_vec()),
            (".linux", kernel(X86_64)),
        ],
    );
    let with = |files: Files, path: &str| tree(X86_64, files).file(path, image.clone());
    let arch = "title Arch\nlinux /vmlinuz-linux\noptions good\n";
    for (files, path) in [
        (
            &[
                ("vmlinuz-linux", "KERNEL"),
                ("loader/entries/ARCH.CONF", arch),
            ],
            "EFI/LINUX/demo.EFI",
        ),
        (
            &[
                ("vmlinuz-linux", "KERNEL"),
                ("LOADER/ENTRIES/ARCH.CONF", arch),
            ],
            "efi/EFI/LINUX/DEMO.EFI",
        ),
    ] {
        let tree = with(files, path);
        let listed = boot(X86_64, from_ref(&tree), "bootshare.cmd=entries");
        let lines = listed.output();
        assert_eq!(lines.len(), 2, "{lines:?}");
        let has = |part: &str| lines.iter().any(|l| l.to_lowercase().contains(part));
        assert!(
            has("arch: arch (/vmlinuz-linux)") && has("demo: "),
            "{lines:?}"
        );
        for name in ["arch", "demo"] {
            let boot = boot(X86_64, from_ref(&tree), &format!("bootshare.entry={name}"));
            assert_eq!(boot.told(), "good");
        }
    }
    let upper = with(
        &[
            ("LINUX", "KERNEL"),
            ("LOADER/ENTRIES/A.CONF", "linux /LINUX\noptions wrong\n"),
            ("LOADER/ENTRIES/B.CONF", "linux /LINUX\noptions good\n"),
            ("LOADER/LOADER.CONF", "default b\n"),
        ],
        "x",
    );
    assert_eq!(boot(X86_64, &[upper], "").told(), "good");
}

#[test]
fn files_of_other_editors() {
    let files = [
        ("vmlinuz", "KERNEL"),
        (
            "loader/entries/good.conf",
            "\u{feff}linux /vmlinuz\r\noptions good\r\n",
        ),
        (
            "loader/entries/other.conf",
            "linux /vmlinuz\noptions wrong\n",
        ),
        (
            "loader/loader.conf",
            "\u{feff}default good.conf\r\ntimeout 0\r\n",
        ),
    ];
    boots(
        &files,
        "good",
        "good of /loader/entries/good.conf",
        "/vmlinuz",
    );
    let quoted = [
        ("vmlinuz", "KERNEL"),
        (
            "loader/entries/good.conf",
            "title \"Good\"\nlinux \"/vmlinuz\"\noptions \"console=ttyS0 good\"\n",
        ),
        ("loader/entries/zz.conf", "linux /vmlinuz\noptions wrong\n"),
        (
            "loader/loader.conf",
            "default \"good.conf\"\ntimeout \"0\"\n",
        ),
    ];
    let entry = "good of /loader/entries/good.conf";
    boots(&quoted, "console=ttyS0 good", entry, "/vmlinuz");
    let comments = "# the disk of the old machine: root=/dev/sda1\nconsole=ttyS0 root=/dev/vda good\n\
        # panic=-1 init=/bin/false\n";
    boots(
        &[("vmlinuz", "KERNEL"), ("cmdline", comments)],
        "console=ttyS0 root=/dev/vda good",
        "vmlinuz, by its conventional name",
        "/vmlinuz",
    );
}

#[test]
fn efi_programs_are_hidden_unless_they_are_asked_for() {
    let memtest = uki(X86_64, &[(".text", vec![0xc3])]);
    let image = uki(
        X86_64,
        &[(".cmdline", b"image".to_vec()), (".linux", kernel(X86_64))],
    );
    let tree = tree(
        X86_64,
        &[
            ("vmlinuz-linux", "KERNEL"),
            (
                "loader/entries/arch.conf",
                "title Arch\nlinux /vmlinuz-linux\noptions good\n",
            ),
            (
                "loader/entries/memtest86-efi.conf",
                "title MemTest86\nefi /EFI/memtest.efi\n",
            ),
            ("loader/entries/image.conf", "efi /EFI/image.efi\n"),
        ],
    )
    .file("EFI/memtest.efi", memtest)
    .file("EFI/image.efi", image);
    let run = |options: &str| boot(X86_64, from_ref(&tree), options);
    let booted = run("");
    assert_eq!(booted.told(), "good");
    booted.lacks("error: ");
    let listed = run("bootshare.cmd=entries");
    let lines = listed.output();
    assert!(lines[0].starts_with("- memtest86-efi: passed over: it is an EFI program"));
    assert!(lines[1].starts_with("- image: passed over: "));
    assert_eq!(
        lines[2],
        "* arch: Arch (/vmlinuz-linux) from /loader/entries/arch.conf"
    );
    assert_eq!(run("bootshare.entry=image").told(), "image");
    let tool = run("bootshare.entry=memtest86-efi");
    assert_eq!(tool.end, End::Failed);
    tool.line("/EFI/memtest.efi: it is an EFI program without a kernel in it");
}

#[test]
fn entries_with_unsupported_keys_are_refused() {
    for (line, shown) in [
        ("profile one", "profile one"),
        ("extra /x.cred", "extra /x.cred"),
    ] {
        let entry = format!("uki /EFI/a.efi\n{line}\n");
        let image = uki(Aarch64, &[(".linux", kernel(Aarch64))]);
        let tree = Tree::new()
            .file("loader/entries/a.conf", entry)
            .file("EFI/a.efi", image)
            .file("x.cred", "x");
        let boot = boot(Aarch64, &[tree], "");
        assert_eq!(boot.end, End::Failed);
        boot.line(&format!(
            "a.conf: its line `{shown}` asks for what is not done here"
        ));
    }
}

#[test]
fn an_image_with_a_thousand_device_trees() {
    let image = |ours: Option<usize>| {
        let mut sections = vec![
            (".osrel", b"PRETTY_NAME=Many\n".to_vec()),
            (".dtb", device_tree(&["acme,any", "linux,dummy-virt"])),
        ];
        sections.extend((0..1456).map(|index| {
            let mut names = vec!["acme,board", "linux,dummy-virt"];
            if ours.is_some_and(|ours| index >= ours) {
                names = vec!["linux,dummy-virt", "acme,ours"];
            }
            (".dtbauto", device_tree(&names))
        }));
        sections.push((".cmdline", b"good".to_vec()));
        sections.push((".linux", kernel(Aarch64)));
        Tree::new().file("EFI/Linux/many.efi", uki(Aarch64, &sections))
    };
    let none = boot(Aarch64, &[image(None)], "");
    assert_eq!(none.told(), "good");
    assert_eq!(none.compatible(), "acme,any\0linux,dummy-virt\0");
    none.line(
        "bootshare: /EFI/Linux/many.efi: its 1456 device trees for other machines (.dtbauto) are \
         not used",
    );
    // One request for each tree that does not match, and three for the one that does.
    let ours = boot(Aarch64, &[image(Some(1000))], "");
    assert_eq!(ours.compatible(), "linux,dummy-virt\0acme,ours\0");
    ours.line("its 1000 device trees for other machines");
    assert!(ours.requests[&Opcode::Read] < 1100, "{:?}", ours.requests);
    // No request for device trees on a machine that uses none.
    let sections = [
        (".linux", kernel(X86_64)),
        (".dtbauto", device_tree(&["linux,dummy-virt"])),
    ];
    let image = Tree::new().file("EFI/Linux/a.efi", uki(X86_64, &sections));
    let boot = boot(X86_64, &[image], "");
    boot.line("its 1 device trees for other machines (.dtbauto) are not used");
}

#[test]
fn the_profiles_of_an_image() {
    let image = uki(
        Aarch64,
        &[
            (".osrel", b"PRETTY_NAME=Demo\nVERSION_ID=1\n".to_vec()),
            (".linux", kernel(Aarch64)),
            (".cmdline", b"base".to_vec()),
            (".profile", b"ID=main\nTITLE=Main\n".to_vec()),
            (".cmdline", b"main".to_vec()),
            (".profile", b"ID=reset\nTITLE='Factory reset'\n".to_vec()),
            (".cmdline", b"reset=1".to_vec()),
            (".profile", b"ID=debug\n".to_vec()),
        ],
    );
    let tree = || Tree::new().file("EFI/Linux/demo.efi", image.clone());
    let told = |tree: Tree, options: &str| boot(Aarch64, &[tree], options).told().to_owned();
    assert_eq!(told(tree(), ""), "main");
    assert_eq!(told(tree(), "bootshare.entry=demo.efi@1"), "reset=1");
    // Sections missing in the profile are taken from the base profile.
    assert_eq!(told(tree(), "bootshare.entry=demo.efi@2"), "base");
    let default = tree().file("loader/loader.conf", "default demo.efi@1\n");
    assert_eq!(told(default, ""), "reset=1");
    let entry = |profile| {
        let text = format!("uki /EFI/Linux/demo.efi\nprofile {profile}\noptions more\n");
        tree().file("loader/entries/reset.conf", text)
    };
    assert_eq!(told(entry(1), "bootshare.entry=reset"), "more");
    let none = boot(Aarch64, &[entry(3)], "bootshare.entry=reset");
    assert_eq!(none.end, End::Failed);
    none.line(
        "/EFI/Linux/demo.efi: it has no profile 3; choose one of its 3, which are counted from 0",
    );
    let listed = boot(Aarch64, &[tree()], "bootshare.cmd=entries");
    listed.line("* demo: Demo (Main) (/EFI/Linux/demo.efi)");
    listed.line(
        "  demo.efi@1: Demo (Factory reset) (/EFI/Linux/demo.efi) from /EFI/Linux/demo.efi@1",
    );
    listed.line("  demo.efi@2: Demo (debug) (/EFI/Linux/demo.efi) from /EFI/Linux/demo.efi@2");
}

#[test]
fn an_image_in_another_one() {
    let inner = |cmdline: &str| {
        let sections = [
            (".cmdline", cmdline.as_bytes().to_vec()),
            (".linux", kernel(X86_64)),
            (".initrd", b"in  ".to_vec()),
            (".ucode", b"in-u".to_vec()),
        ];
        uki(X86_64, &sections)
    };
    let outer = |linux: Vec<u8>, cmdline: &str| {
        let sections = [
            (".osrel", b"PRETTY_NAME=Ubuntu Core\n".to_vec()),
            (".linux", linux),
            (".cmdline", cmdline.as_bytes().to_vec()),
            (".initrd", b"out ".to_vec()),
            (".ucode", b"outu".to_vec()),
        ];
        uki(X86_64, &sections)
    };
    let run = |image: Vec<u8>| {
        let entry = "uki /EFI/kernel.efi\ninitrd /own\n";
        let tree = Tree::new()
            .file("loader/entries/a.conf", entry)
            .file("own", "own ")
            .file("EFI/kernel.efi", image);
        boot(X86_64, &[tree], "")
    };
    // The initrds of the outer image come before that of the inner one, after all microcode.
    let told = |outer_line: &str, inner_line: &str| {
        let boot = run(outer(inner(inner_line), outer_line));
        assert_eq!(boot.initrd(), b"in-uoutuown out in  ");
        boot.told().to_owned()
    };
    assert_eq!(told("", "inner"), "inner");
    assert_eq!(told("outer", "inner"), "outer");
    let deeper = run(outer(outer(inner("inner"), ""), ""));
    assert_eq!(deeper.end, End::Failed);
    deeper.line(
        "/EFI/kernel.efi: more than 2 EFI programs are nested; extract the inner one with objcopy",
    );
    let program = uki(X86_64, &[(".text", vec![0xc3])]);
    let none = run(outer(program, ""));
    assert_eq!(none.end, End::Failed);
    none.line(
        "/EFI/kernel.efi: the image in its section .linux: it is an EFI program without a kernel",
    );
    let mut cut_off = inner("x");
    cut_off.pop();
    run(outer(cut_off, "")).line("the image in its section .linux: it is cut off: ");
}

/// An addon with this command line.
fn addon(words: &str) -> Vec<u8> {
    uki(Aarch64, &[(".cmdline", words.as_bytes().to_vec())])
}

/// An image never starts without the addons that a host has but does not give.
#[test]
fn addons_that_cannot_be_looked_up_fail_the_entry() {
    let image = uki(
        Aarch64,
        &[(".linux", kernel(Aarch64)), (".cmdline", b"good".to_vec())],
    );
    let tree = Tree::new()
        .file("EFI/Linux/demo.efi", image)
        .file("loader/addons/one.addon.efi", addon("one"));
    let device = Device::with_script(tree, |request, good| match request.name() {
        b"addons" => Reply::error(request, Errno::EIO),
        _ => good,
    });
    let booted = boot_from(Aarch64, vec![device], "");
    booted.line("bootshare: error: /loader/addons: ");
    booted.lacks("starting");
}

/// Such a device may write to the memory that the payload gets.
#[test]
fn nothing_is_started_if_a_device_does_not_confirm_its_reset() {
    let device = || Device::new(tree(Aarch64, &[("vmlinuz", "KERNEL")]));
    for queues in [None, Some(vec![128, 3])] {
        let stuck = device();
        let fails_to_mount = queues.is_some();
        stuck.quirk(|quirks| {
            quirks.queues = queues.unwrap_or(std::mem::take(&mut quirks.queues));
            quirks.reset = Reset::NeverAfter(1);
        });
        let booted = boot_from(Aarch64, vec![device(), stuck], "");
        booted.line("vmlinuz, by its conventional name");
        booted.line(
            "bootshare: error: nothing is started, because a device may still write to memory",
        );
        assert_eq!(booted.end, End::Failed);
        if fails_to_mount {
            booted.line("a virtqueue has 3 entries");
        }
    }
}

#[test]
fn addons_of_an_image() {
    let image = uki(
        Aarch64,
        &[
            (".linux", kernel(Aarch64)),
            (".cmdline", b"base good\n".to_vec()),
            (".initrd", b"init".to_vec()),
            (".ucode", b"uc  ".to_vec()),
            (".dtb", device_tree(&["linux,dummy-virt", "image"])),
            (".uname", b"6.12".to_vec()),
        ],
    );
    let two = [
        (".cmdline", b" two\n".to_vec()),
        (".initrd", b"ini2".to_vec()),
        (".ucode", b"uc2 ".to_vec()),
        (".dtb", device_tree(&["linux,dummy-virt", "dtb"])),
        (".dtbauto", device_tree(&["linux,dummy-virt", "auto"])),
        (".uname", b"6.12".to_vec()),
    ];
    let uc3 = [(".ucode", b"uc3 ".to_vec()), (".cmdline", b"10".to_vec())];
    let foreign = uki(X86_64, &[(".cmdline", b"wrong".to_vec())]);
    let other = [(".uname", b"6.11".to_vec()), two[0].clone()];
    let tree = |esp: &str| {
        let own = |name: &str| format!("{esp}EFI/Linux/demo.efi.extra.d/{name}");
        Tree::new()
            .file(format!("{esp}EFI/Linux/demo+3-1.efi"), image.clone())
            // In the order of bytes, as systemd-stub sorts them: 10 before 9.
            .file(own("10-three.ADDON.EFI"), uki(Aarch64, &uc3))
            .file(own("9-two.addon.efi"), uki(Aarch64, &two))
            .file(own("20-foreign.addon.efi"), foreign.clone())
            .file(own("30-kernel.addon.efi"), image.clone())
            .file(own("40-other.addon.efi"), uki(Aarch64, &other))
            .file(own("50-text.addon.efi"), "text")
            .file(own(".hidden.addon.efi"), addon("wrong"))
            .file(own("60-directory.addon.efi/file"), "text")
            .file(own("ssh.cred"), "secret")
            .file(own("a.sysext.RAW"), "squashfs")
            .file(format!("{esp}loader/credentials/b.cred"), "secret")
            .file(format!("{esp}loader/extensions/c.confext.raw"), "squashfs")
            .file(format!("{esp}loader/addons/one.addon.efi"), addon("one"))
            .file(format!("{esp}loader/addons/README"), "")
    };
    for esp in ["", "boot/", "boot/efi/"] {
        let booted = boot(Aarch64, &[tree(esp)], "-- last");
        assert_eq!(booted.told(), "base good one 10 two last");
        assert_eq!(booted.initrd(), b"uc2 uc3 uc  initini2");
        assert_eq!(booted.compatible(), "linux,dummy-virt\0auto\0");
        let extra = format!("/{esp}EFI/Linux/demo.efi.extra.d/");
        for (name, what) in [
            ("9-two", ""),
            ("20-foreign", "the addon is left out: it is for x64"),
            (
                "30-kernel",
                "the addon is left out: it is an image with a kernel",
            ),
            (
                "40-other",
                "the addon is left out: its .uname is not that of",
            ),
            ("50-text", "the addon is left out: it is no EFI program"),
            (
                "60-directory",
                "the addon is left out: it is a directory, a file is needed",
            ),
        ] {
            let line = match what {
                "" => format!("bootshare: addon {extra}{name}.addon.efi"),
                _ => format!("bootshare: warning: {extra}{name}.addon.efi: {what}"),
            };
            booted.line(&line);
        }
        for path in [
            format!("{extra}ssh.cred"),
            format!("{extra}a.sysext.RAW"),
            format!("/{esp}loader/credentials"),
            format!("/{esp}loader/extensions"),
        ] {
            booted.line(&format!(
                "bootshare: warning: {path}: credentials and extensions are not used"
            ));
        }
        booted.line(&format!(
            "bootshare: addon /{esp}loader/addons/one.addon.efi"
        ));
        booted.lacks("hidden");
        booted.lacks("README");
    }
    // Addons named by an entry come after the others; the entry's options replace the image's command line.
    let entry = "uki /EFI/Linux/demo+3-1.efi\nextra /EFI/b.addon.efi\nextra /EFI/a.addon.efi\n";
    let named = |options: &str| {
        let tree = tree("")
            .file(
                "loader/entries/n.conf",
                format!("{entry}options {options}\n"),
            )
            .file("EFI/a.addon.efi", addon("a"))
            .file("EFI/b.addon.efi", addon("b"));
        boot(Aarch64, &[tree], "bootshare.entry=n")
    };
    assert_eq!(named("").told(), "base good one 10 two b a");
    assert_eq!(named("own").told(), "own one 10 two b a");
}

#[test]
fn addons_are_for_the_outer_image_and_for_no_plain_kernel() {
    let inner = uki(
        Aarch64,
        &[(".linux", kernel(Aarch64)), (".cmdline", b"inner".to_vec())],
    );
    let outer = uki(Aarch64, &[(".linux", inner.clone())]);
    let with = |image: Vec<u8>, entry: &str| {
        let tree = Tree::new()
            .file("loader/entries/a.conf", format!("uki /EFI/a.efi\n{entry}"))
            .file("EFI/a.efi", image)
            .file("EFI/one.addon.efi", addon("one"));
        boot(Aarch64, &[tree], "")
    };
    let extra = "extra /EFI/one.addon.efi\n";
    assert_eq!(with(inner, extra).told(), "inner one");
    assert_eq!(with(outer.clone(), "").told(), "inner");
    // The command line of an addon replaces that of the inner image.
    assert_eq!(with(outer, extra).told(), "one");
    let plain = with(kernel(Aarch64), extra);
    assert_eq!(plain.end, End::Failed);
    plain.line("/EFI/a.efi: it takes no addons, and its entry has `extra /EFI/one.addon.efi`");
}

#[test]
fn more_initrds_than_there_is_room_for_are_refused() {
    let image = uki(Aarch64, &[(".linux", kernel(Aarch64))]);
    let part = uki(Aarch64, &[(".initrd", b"init".to_vec())]);
    let boot = |count: usize| {
        let tree = Tree::new().file("EFI/Linux/demo.efi", image.clone());
        let tree = (0..count).fold(tree, |tree, number| {
            let name = format!("loader/addons/{number}.addon.efi");
            tree.file(name, part.clone())
        });
        boot(Aarch64, &[tree], "")
    };
    assert_eq!(boot(33).initrd().len(), 33 * 4);
    let more = boot(34);
    assert_eq!(more.end, End::Failed);
    more.line("/EFI/Linux/demo.efi: there are more than 34 initrds with those of its image");
}

#[test]
fn an_image_of_lanzaboote_names_kernel_and_initrd() {
    let files = |esp: &str, initrd: &str| {
        let sections = [
            (".osrel", b"PRETTY_NAME=NixOS\n".to_vec()),
            (".cmdline", b"init=/nix/store/x/init good".to_vec()),
            (".linux", b"\\EFI\\nixos\\kernel-6.6.efi".to_vec()),
            (".linuxh", Sha256::digest(kernel(X86_64)).to_vec()),
            (".initrd", b"\\EFI\\nixos\\initrd-6.6.efi".to_vec()),
            (".initrdh", Sha256::digest("initrd").to_vec()),
        ];
        Tree::new()
            .file(
                format!("{esp}EFI/Linux/nixos-42.efi"),
                uki(X86_64, &sections),
            )
            .file(format!("{esp}EFI/nixos/kernel-6.6.efi"), kernel(X86_64))
            .file(format!("{esp}EFI/nixos/initrd-6.6.efi"), initrd)
    };
    for esp in ["", "boot/", "boot/efi/"] {
        let boot = boot(X86_64, &[files(esp, "initrd")], "");
        assert_eq!(boot.told(), "init=/nix/store/x/init good");
        assert_eq!(boot.initrd(), b"initrd");
        boot.line(&format!(
            "bootshare: starting /{esp}EFI/nixos/kernel-6.6.efi"
        ));
    }
    let boot = boot(X86_64, &[files("", "another")], "");
    assert_eq!(boot.end, End::Failed);
    boot.line(
        "/EFI/nixos/initrd-6.6.efi: its SHA-256 is \
         ae448ac86c4e8e4dec645729708ef41873ae79c6dff84eff73360989487f08e5, but \
         /EFI/Linux/nixos-42.efi has ",
    );
}

// Kernels by conventional names.

#[test]
fn kernels_by_the_names_that_systems_give_them() {
    for (kernel, initrd) in [
        ("boot/vmlinux-6.19.0-edge", "boot/initrd.img-6.19.0-edge"),
        ("Image-6.4.0-default", "initrd-6.4.0-default"),
        ("bzImage", "initrd"),
        ("Image.gz", "initramfs.cpio.gz"),
        ("vmlinux", "initrd.img"),
        ("vmlinuz.efi", "initrd.gz"),
        ("kernel", "uInitrd"),
        (
            "usr/lib/modules/6.19-1/vmlinuz",
            "boot/initramfs-6.19-1.img",
        ),
        (
            "usr/lib/modules/6.19-1/vmlinuz",
            "usr/lib/modules/6.19-1/initramfs.img",
        ),
        ("lib/modules/6.19-1/vmlinuz", "boot/initrd.img-6.19-1"),
    ] {
        let files = [(kernel, "KERNEL"), (initrd, "initrd"), ("etc/fstab", "")];
        let boot = run(&files, "-- good");
        assert_eq!(boot.told(), "good");
        assert_eq!(boot.initrd(), b"initrd", "{kernel}");
        boot.line(&format!("bootshare: starting /{kernel}"));
    }
}

#[test]
fn the_newest_kernel_among_the_modules_is_taken() {
    let files = [
        ("usr/lib/modules/6.9.1/vmlinuz", "KERNEL"),
        ("usr/lib/modules/6.10.2/vmlinuz", "KERNEL"),
        // Left over from a removed package.
        ("usr/lib/modules/6.11.0/modules.dep", ""),
        ("boot/initrd.img-6.9.1", "wrong"),
        ("boot/initrd.img-6.10.2", "initrd"),
        ("lib", "-> usr/lib"),
    ];
    let boot = run(&files, "");
    assert_eq!(boot.initrd(), b"initrd");
    boot.line("bootshare: entry 6.10.2, by its conventional name");
    boot.line("bootshare: starting /usr/lib/modules/6.10.2/vmlinuz");
    assert_eq!(list(&files), ["* 6.10.2: /usr/lib/modules/6.10.2/vmlinuz"]);
}

// Never another kernel than was asked for.

#[test]
fn no_kernel_by_its_name_where_there_are_entries() {
    let cases: [(&str, &str, &str); 7] = [
        (
            "loader/entries/a.conf",
            "linux /missing\n",
            "error: /loader/entries/a.conf: /missing: no such file or directory, nor is there \
             /boot/missing",
        ),
        (
            "boot/loader/entries/a.conf",
            "linux /missing\n",
            "error: /boot/loader/entries/a.conf: /boot/missing: no such file or directory, nor is \
             there /missing",
        ),
        (
            "loader/entries/a.conf",
            "linux /linux\narchitecture x64\n",
            "/loader/entries/a.conf: passed over: it is for x64",
        ),
        (
            "extlinux/extlinux.conf",
            "label a\nlinux /missing\n",
            "error: /extlinux/extlinux.conf: label a: /missing: no such file",
        ),
        (
            "boot/extlinux.conf",
            "timeout 5\n",
            "error: /boot/extlinux.conf: it has no label",
        ),
        (
            "EFI/Linux/a.efi",
            "MZ",
            "error: /EFI/Linux/a.efi: it is an EFI program without a kernel in it",
        ),
        (
            "loader/entries/a.conf",
            "-> /nowhere",
            "error: /loader/entries/a.conf: no such file",
        ),
    ];
    for (path, text, why) in cases {
        let files = [
            (path, text),
            ("vmlinuz", "KERNEL"),
            ("boot/vmlinuz-6.1", "KERNEL"),
            ("usr/lib/modules/6.1/vmlinuz", "KERNEL"),
        ];
        let boot = run(&files, "-- wrong");
        assert_eq!(boot.end, End::Failed, "{path} {text}");
        boot.line(why);
        boot.line("bootshare.fallback=yes");
        // Unless it is allowed by an option, or chosen by name.
        let boot = run(&files, "bootshare.fallback=yes -- fallback");
        assert_eq!(boot.told(), "fallback");
        boot.line("bootshare: starting /vmlinuz");
        assert_eq!(run(&files, "bootshare.entry=vmlinuz -- x").told(), "x");
        assert_eq!(run(&files, "bootshare.entry=vmlinuz-6.1 -- x").told(), "x");
    }
    // A directory of entries without an entry file does not count.
    let files = [("loader/entries/README", ""), ("vmlinuz", "KERNEL")];
    assert!(matches!(run(&files, "").end, End::Started { .. }));
}

#[test]
fn an_entry_is_followed_by_one_of_its_own_kind() {
    let files = [
        ("linux", "KERNEL"),
        ("loader/entries/b.conf", "linux /missing\n"),
        ("loader/entries/a.conf", "linux /linux\noptions good\n"),
        (
            "extlinux/extlinux.conf",
            "label x\nlinux /linux\nappend wrong\n",
        ),
    ];
    boots(&files, "good", "a of /loader/entries/a.conf", "/linux");
    let labels = [files[0], files[1], files[3]];
    assert_eq!(run(&labels, "").end, End::Failed);
    assert_eq!(run(&labels, "bootshare.fallback=yes").told(), "wrong");
    assert_eq!(run(&labels, "bootshare.entry=x").told(), "wrong");
    // The same holds for the next share.
    let shares = |second: Files| {
        let first = tree(Aarch64, &[("loader/entries/b.conf", "linux /missing\n")]);
        boot(Aarch64, &[first, tree(Aarch64, second)], "-- more")
    };
    let same = shares(&[files[0], files[2]]);
    assert_eq!(same.told(), "good more");
    same.line("bootshare: entry a of share2:/loader/entries/a.conf");
    assert_eq!(shares(&[("vmlinuz", "KERNEL")]).end, End::Failed);
}

#[test]
fn a_menu_waits_as_long_as_the_file_says_that_its_entries_are_from() {
    // The timeout of a configuration without entries does not apply to entries of another file.
    let mut files = vec![
        ("linux", "KERNEL"),
        ("loader/loader.conf", "timeout 2\n"),
        (
            "extlinux/extlinux.conf",
            "label x\nlinux /linux\nappend good\n",
        ),
    ];
    let boot = run(&files, "");
    assert_eq!(boot.told(), "good");
    boot.lacks("bootshare: menu: ");
    files.push(("loader/entries/a.conf", "linux /linux\noptions entry\n"));
    files[1].1 = "timeout 1\n";
    let boot = run(&files, "");
    boot.line("bootshare: menu: ");
    boot.line("  1 a: /linux from /loader/entries/a.conf");
    assert_eq!(boot.told(), "entry");
}

#[test]
fn words_are_added_to_a_command_line_that_has_none_like_them() {
    let options = "bootshare.cmdline-default=console=ttyS0 \
        bootshare.cmdline-default=\"root=share1 rootfstype=virtiofs\"";
    let told = |cmdline: &str, options: &str| {
        let files = [("vmlinuz", "KERNEL"), ("cmdline", cmdline)];
        let boot = run(&files, options);
        let added = boot.lines.iter().filter_map(|line| {
            let word = line.strip_prefix("bootshare: added ")?;
            word.strip_suffix(" to the command line").map(str::to_owned)
        });
        (boot.told().to_owned(), added.collect::<Vec<_>>())
    };
    let all = ["console=ttyS0", "root=share1", "rootfstype=virtiofs"];
    let (line, added) = told("good\n", options);
    assert_eq!(line, format!("{} good", all.join(" ")));
    assert_eq!(added, all);
    // A group is omitted as a whole, also if its key is on the firmware's own command line.
    assert_eq!(
        told("console=tty0 root=/dev/vda good\n", options),
        ("console=tty0 root=/dev/vda good".to_owned(), vec![])
    );
    let (line, added) = told("good\n", &format!("{options} -- root=/dev/vda"));
    assert_eq!(line, "console=ttyS0 good root=/dev/vda");
    assert_eq!(added, ["console=ttyS0"]);
    // Words after -- are for init.
    let (line, _) = told("good -- console=x root=y\n", options);
    assert_eq!(line, format!("{} good -- console=x root=y", all.join(" ")));
}
