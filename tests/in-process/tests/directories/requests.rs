//! The number of requests of a boot, by the layout of the directory: any superfluous request makes a test fail.

use crate::{
    machine::{End, boot, kernel, uki},
    trees::{Files, tree},
};
use bootshare::loader::Architecture::Aarch64;
use bootshare_test_device::Tree;

/// A boot takes this number of requests, without INIT and DESTROY.
#[track_caller]
fn takes(tree: Tree, expected: usize) {
    let boot = boot(Aarch64, &[tree], "");
    assert!(matches!(boot.end, End::Started { .. }), "{:#?}", boot.lines);
    let count: usize = boot.requests.values().sum();
    assert_eq!(count, expected, "{:?}", boot.requests);
}

#[track_caller]
fn files_take(files: Files, expected: usize) {
    takes(tree(Aarch64, files), expected);
}

#[test]
fn of_conventional_names() {
    files_take(
        &[
            ("vmlinuz", "KERNEL"),
            ("initrd.img", "x"),
            ("cmdline", "quiet"),
        ],
        27,
    );
    // /boot is listed once, for entries and kernels.
    files_take(
        &[
            ("boot/vmlinuz-6.1", "KERNEL"),
            ("boot/initrd.img-6.1", "x"),
            ("etc/os-release", ""),
        ],
        31,
    );
    // The root of a Debian system: /boot is listed as well, because it might have entries.
    files_take(
        &[
            ("boot/vmlinuz-6.1", "KERNEL"),
            ("boot/initrd.img-6.1", "x"),
            ("vmlinuz", "-> boot/vmlinuz-6.1"),
            ("initrd.img", "-> boot/initrd.img-6.1"),
            ("etc/os-release", ""),
        ],
        37,
    );
}

#[test]
fn of_boot_loader_specification_entries() {
    let entry = "linux /vmlinuz\ninitrd /initrd.img\n";
    let files = [
        ("vmlinuz", "KERNEL"),
        ("initrd.img", "x"),
        ("loader/entries/a.conf", entry),
    ];
    files_take(&files, 29);
    // Other files are not requested.
    let rest = [
        ("EFI/BOOT/BOOTAA64.EFI", "x"),
        ("loader/loader.conf", "default a\n"),
        ("boot/vmlinuz-6.1", "x"),
        ("extlinux/extlinux.conf", "x"),
    ];
    files_take(&[&files[..], &rest].concat(), 35);
}

#[test]
fn of_labels_of_extlinux_conf() {
    let root = "label a\nlinux /vmlinuz\ninitrd /initrd.img\n";
    for (path, expected) in [("extlinux/extlinux.conf", 22), ("extlinux.conf", 22)] {
        let kernel = [("vmlinuz", "KERNEL"), ("initrd.img", "x")];
        files_take(&[&[(path, root)][..], &kernel].concat(), expected);
    }
    let label = "label a\nlinux /boot/vmlinuz\ninitrd /boot/initrd.img\n";
    files_take(
        &[
            ("boot/extlinux/extlinux.conf", label),
            ("boot/vmlinuz", "KERNEL"),
            ("boot/initrd.img", "x"),
        ],
        29,
    );
}

#[test]
fn of_a_unified_kernel_image() {
    // One of these looks for `/loader`, which may have addons for all images. That none are beside the image is seen
    // in the listing.
    let image = || uki(Aarch64, &[(".linux", kernel(Aarch64))]);
    takes(Tree::new().file("EFI/Linux/a.efi", image()), 27);
    // Otherwise they are looked up in as many steps as the image; in `/loader`, so are addons, credentials and
    // extensions.
    let entry = "uki /EFI/a.efi\n";
    let named = Tree::new().file("loader/entries/a.conf", entry);
    takes(named.file("EFI/a.efi", image()), 36);
}

#[test]
fn a_path_takes_more_if_the_first_place_has_no_file() {
    let entry = "linux /boot/vmlinuz\n";
    let at_root = [("loader/entries/a.conf", entry), ("vmlinuz", "KERNEL")];
    let in_boot = [("loader/entries/a.conf", entry), ("boot/vmlinuz", "KERNEL")];
    let count = |files: Files| {
        let boot = boot(Aarch64, &[tree(Aarch64, files)], "");
        boot.requests.values().sum::<usize>()
    };
    // In /boot it is looked up in two steps, each with a FORGET.
    assert_eq!(count(&at_root), count(&in_boot) - 1);
}
