#!/bin/bash
# Makes complete trees of Debian releases, and boots each of them to its login prompt with the share as its root
# file system:
#
#   host/distributions.sh make [NAME...]          makes the trees in target/distributions, unless they exist
#   host/distributions.sh boot PROGRAM [NAME...]  makes them, and boots them with PROGRAM, a bootshare-host
#
# NAME is a name in the list below; by default all are used. mmdebstrap installs the packages and runs their
# scripts, so each initrd is made by the distribution's own tool. host/archive.sh prints where the packages come
# from.
set -euo pipefail
cd "$(dirname "$0")/.."

# Each name is RELEASE-INITRD-LAYOUT.
all=(
    bookworm-initramfs-links trixie-initramfs-links sid-initramfs-links
    trixie-dracut-links bookworm-dracut-links sid-dracut-links
    trixie-initramfs-bls trixie-initramfs-uki
)
# Made only if it is named: a tree with the programs that `make bench ONLY=root` measures.
bench=trixie-initramfs-bench
trees=target/distributions
architecture=$(dpkg --print-architecture)
failed=()

usage() {
    echo "usage: host/distributions.sh make [NAME...] | boot PROGRAM [NAME...]" >&2
    exit 2
}

make_tree() {
    local name=$1 release initrd layout
    IFS=- read -r release initrd layout <<<"$name"
    local packages=systemd-sysv,udev,login,passwd,linux-image-$architecture
    local hooks=()
    case $initrd in
    initramfs)
        packages+=,initramfs-tools
        # Debian 12's initramfs-tools does not include the module virtiofs by default.
        # shellcheck disable=SC2016 # mmdebstrap's shell expands $1.
        [ "$release" != bookworm ] ||
            hooks+=(--extract-hook='mkdir -p "$1/etc/initramfs-tools" && echo virtiofs > "$1/etc/initramfs-tools/modules"')
        ;;
    dracut) packages+=,dracut ;;
    esac
    case $layout in
    bench) packages+=,git,gcc,libc6-dev ;;
    bls | uki)
        packages+=,systemd-boot,systemd-boot-efi,systemd-ukify
        # The configuration of kernel-install(8) on a machine without an EFI system partition.
        # shellcheck disable=SC2016
        hooks+=(--essential-hook='
            mkdir -p "$1/etc/kernel" "$1/efi/EFI/Linux" "$1/efi/loader/entries"
            echo "root=bootshare rootfstype=virtiofs console=ttyS0" > "$1/etc/kernel/cmdline"
            printf "layout='"$layout"'\nBOOT_ROOT=/efi\nuki_generator=ukify\n" > "$1/etc/kernel/install.conf"
            echo debian > "$1/etc/kernel/entry-token"')
        # shellcheck disable=SC2016
        hooks+=(--customize-hook='
            version=$(ls "$1/lib/modules")
            SYSTEMD_RELAX_ESP_CHECKS=1 chroot "$1" kernel-install add "$version" \
                "/boot/vmlinuz-$version" "/boot/initrd.img-$version"
            rm "$1/vmlinuz" "$1/initrd.img"')
        ;;
    esac
    # If the system does not let ordinary users be root in a user namespace, mmdebstrap needs sudo.
    local as_root=()
    [ "$(id -u)" = 0 ] || unshare --user --map-root-user true 2>/dev/null || as_root=(sudo -n)
    local mirror
    mirror=$(host/archive.sh)
    # If an ordinary user unpacks the tar archive, that user owns all files and can serve and delete them; root
    # keeps the owners. The lists of a mirror may be older than their expiry date allows. A mirror may fail for a
    # moment.
    local attempts=3
    while
        rm -rf "$trees/$name.new"
        mkdir -p "$trees/$name.new"
        ! "${as_root[@]}" mmdebstrap --quiet --variant=minbase --format=tar --include="$packages" "${hooks[@]}" \
            --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Retries "3"' \
            "$release" - ${mirror:+"$mirror"} </dev/null |
            tar -C "$trees/$name.new" --numeric-owner --exclude='./dev/*' -x
    do
        attempts=$((attempts - 1))
        [ "$attempts" -gt 0 ] || return 1
    done
    chmod u+rwx "$trees/$name.new"
    mv "$trees/$name.new" "$trees/$name"
}

case ${1-} in
make) shift ;;
boot)
    program=${2:?"PROGRAM is missing: host/distributions.sh boot PROGRAM [NAME...]"}
    shift 2
    ;;
*) usage ;;
esac
[ $# -gt 0 ] || set -- "${all[@]}"
mkdir -p "$trees"
board=x86_64-q35
[ "$architecture" != arm64 ] || board=aarch64-virt
for name; do
    case " ${all[*]} $bench " in
    *" $name "*) ;;
    *) echo "$name is none of: ${all[*]}" >&2 && exit 1 ;;
    esac
    [ -d "$trees/$name" ] || make_tree "$name"
    [ -n "${program-}" ] || continue
    console=$trees/$name.log
    # On the prompt's line, kernel messages may follow.
    if "$program" boot "$trees/$name" --board "$board" --timeout 4m --expect 'login: ' \
        --fail 'Kernel panic' </dev/null >"$console" 2>&1; then
        echo "$name: $(grep -ao 'bootshare: entry .*' "$console" | tr -d '\r')"
    else
        failed+=("$name")
        echo "$name: no login prompt; see $console" >&2
    fi
done
[ -n "${program-}" ] || exit 0
echo "$(($# - ${#failed[@]})) passed, ${#failed[@]} failed"
[ ${#failed[@]} -eq 0 ]
