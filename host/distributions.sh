#!/bin/bash
# Makes whole trees of Debian releases and boots each, as it is, to its login prompt, with the share as its root
# file system. `host/distributions.sh PROGRAM [NAME...]`: PROGRAM is bootshare-host, NAME one of the list below.
#
# mmdebstrap makes the trees, as root or in a user namespace, and runs all that the packages bring: their initrds
# are what their own tools make. They are kept in target/distributions. MIRROR names another one than Debian's own.
set -euo pipefail
cd "$(dirname "$0")/.."
program=${1:?"usage: host/distributions.sh PROGRAM [NAME...]"}
shift

# Each is RELEASE-INITRD-LAYOUT.
all=(
    bookworm-initramfs-links trixie-initramfs-links sid-initramfs-links
    trixie-dracut-links bookworm-dracut-links sid-dracut-links
    trixie-initramfs-bls trixie-initramfs-uki
)
trees=target/distributions
failed=()

make_tree() {
    local name=$1 release initrd layout
    IFS=- read -r release initrd layout <<<"$name"
    local packages=systemd-sysv,udev,login,passwd,linux-image-amd64
    local hooks=()
    case $initrd in
    initramfs)
        packages+=,initramfs-tools
        # Debian 12's initramfs-tools leaves virtiofs out by itself.
        # shellcheck disable=SC2016 # mmdebstrap's shell expands $1.
        [ "$release" != bookworm ] ||
            hooks+=(--extract-hook='mkdir -p "$1/etc/initramfs-tools" && echo virtiofs > "$1/etc/initramfs-tools/modules"')
        ;;
    dracut) packages+=,dracut ;;
    esac
    case $layout in
    bls | uki)
        packages+=,systemd-boot,systemd-boot-efi,systemd-ukify
        # As an administrator sets up kernel-install(8) for a machine without an EFI system partition of its own.
        export LAYOUT=$layout
        # shellcheck disable=SC2016
        hooks+=(--essential-hook='
            mkdir -p "$1/etc/kernel" "$1/efi/EFI/Linux" "$1/efi/loader/entries"
            echo "root=bootshare rootfstype=virtiofs console=ttyS0" > "$1/etc/kernel/cmdline"
            printf "layout=%s\nBOOT_ROOT=/efi\nuki_generator=ukify\n" "$LAYOUT" > "$1/etc/kernel/install.conf"
            echo debian > "$1/etc/kernel/entry-token"')
        # shellcheck disable=SC2016
        hooks+=(--customize-hook='
            version=$(ls "$1/lib/modules")
            SYSTEMD_RELAX_ESP_CHECKS=1 chroot "$1" kernel-install add "$version" \
                "/boot/vmlinuz-$version" "/boot/initrd.img-$version"
            rm "$1/vmlinuz" "$1/initrd.img"')
        ;;
    esac
    rm -rf "$trees/$name.new"
    # A mirror's lists may be older than their date allows.
    mmdebstrap --quiet --variant=minbase --include="$packages" "${hooks[@]}" \
        --aptopt='Acquire::Check-Valid-Until "false"' "$release" "$trees/$name.new" ${MIRROR:+"$MIRROR"} >&2
    mv "$trees/$name.new" "$trees/$name"
}

[ $# -gt 0 ] || set -- "${all[@]}"
mkdir -p "$trees"
for name; do
    case " ${all[*]} " in
    *" $name "*) ;;
    *) echo "$name is none of: ${all[*]}" >&2 && exit 1 ;;
    esac
    [ -d "$trees/$name" ] || make_tree "$name"
    console=$trees/$name.log
    # A message of the kernel's may come right behind the prompt.
    if "$program" boot "$trees/$name" --board x86_64-q35 --timeout 4m --expect 'login: ' \
        --fail 'Kernel panic' </dev/null >"$console" 2>&1; then
        echo "$name: $(grep -ao 'bootshare: entry .*' "$console" | tr -d '\r')"
    else
        failed+=("$name")
        echo "$name: no login prompt; see $console" >&2
    fi
done
echo "$(($# - ${#failed[@]})) passed, ${#failed[@]} failed"
[ ${#failed[@]} -eq 0 ]
