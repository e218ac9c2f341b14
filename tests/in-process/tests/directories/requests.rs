//! How many requests a boot takes, by how the directory is laid out.

use crate::machine::{boot, kernel};
use bootshare::loader::Architecture;
use bootshare_test_device::Tree;

#[test]
fn p() {
    let k = || kernel(Architecture::Aarch64);
    let kx = || kernel(Architecture::X86_64);
    let _ = kx;
    let trees: [(&str, Tree); 9] = [
        ("flat", Tree::new().file("vmlinuz", k()).file("initrd.img", "i").file("cmdline", "quiet")),
        ("boot", Tree::new().file("boot/vmlinuz-6.1", k()).file("boot/initrd.img-6.1", "i").file("etc/x", "")),
        ("debian", Tree::new().file("boot/vmlinuz-6.1", k()).file("boot/initrd.img-6.1", "i").link("vmlinuz", "boot/vmlinuz-6.1").link("initrd.img", "boot/initrd.img-6.1").file("etc/x", "").dir("boot/efi")),
        ("bls", Tree::new().file("vmlinuz", k()).file("initrd.img", "i").file("loader/entries/a.conf", "linux /vmlinuz\ninitrd /initrd.img\n")),
        ("bls-conf-esp", Tree::new().file("EFI/BOOT/BOOTX64.EFI", "x").file("1/vmlinuz", k()).file("1/initrd.img", "i").file("loader/entries/a.conf", "linux /1/vmlinuz\ninitrd /1/initrd.img\n").file("loader/loader.conf", "default a\n")),
        ("extlinux", Tree::new().file("vmlinuz", k()).file("initrd.img", "i").file("extlinux/extlinux.conf", "label a\nlinux /vmlinuz\ninitrd /initrd.img\n")),
        ("boot-extlinux", Tree::new().file("boot/vmlinuz", k()).file("boot/initrd.img", "i").file("boot/extlinux/extlinux.conf", "label a\nlinux /boot/vmlinuz\ninitrd /boot/initrd.img\n")),
        ("root extlinux.conf", Tree::new().file("vmlinuz", k()).file("initrd.img", "i").file("extlinux.conf", "label a\nlinux /vmlinuz\ninitrd /initrd.img\n")),
        ("uki", Tree::new().file("EFI/Linux/a.efi", uki(&k()))),
    ];
    for (name, tree) in trees {
        let boot = boot(Architecture::Aarch64, &[tree], "");
        println!("{name}: {} {:?} {:?}", boot.requests.values().sum::<usize>(), boot.requests, boot.end);
        println!("{:?}", boot.lines);
    }
    let tree = Tree::new().file("vmlinuz", kx()).file("initrd.img", "i").file("cmdline", "quiet");
    let boot = boot(Architecture::X86_64, &[tree], "");
    println!("x86: {} {:?} {:?}", boot.requests.values().sum::<usize>(), boot.requests, boot.end);
        println!("{:?}", boot.lines);
}

fn uki(kernel: &[u8]) -> Vec<u8> {
    let mut pe = vec![0; 0x200];
    let mut put = |at: usize, bytes: &[u8]| pe[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x3c, &[0x80]);
    put(0x80, b"PE\0\0");
    put(0x84, &0xaa64_u16.to_le_bytes());
    put(0x86, &1_u16.to_le_bytes());
    put(0x94, &0xf0_u16.to_le_bytes());
    put(0x98, &0x20b_u16.to_le_bytes());
    let s = 0x98 + 0xf0;
    put(s, b".linux\0\0");
    put(s + 8, &(kernel.len() as u32).to_le_bytes());
    put(s + 16, &(kernel.len() as u32).to_le_bytes());
    put(s + 20, &0x200_u32.to_le_bytes());
    pe.extend(kernel);
    pe
}
