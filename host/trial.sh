#!/bin/bash
# Installs the files of `make release` in clean trees, as a new user would, and prints the seconds that each
# step took: `host/trial.sh [NAME...]`. It must run as root, because it uses chroot(2). It tests the
# architecture of the machine.
#
# mmdebstrap makes the trees, with packages from the archive that host/archive.sh prints. They are removed
# afterwards.
set -euo pipefail
cd "$(dirname "$0")/.."

# Debian releases in which root installs the package, Debian 13 with an ordinary user, and a tree with only
# busybox.
all=(bookworm trixie sid user busybox)
[ $# -gt 0 ] || set -- "${all[@]}"
[ "$(id -u)" = 0 ] || { echo 'trial: error: root is needed to enter a tree: run it by sudo' >&2 && exit 1; }

version=$(sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"/\1/p' Cargo.toml)
release=target/release-$version
deb=$(echo "$release"/bootshare_*_"$(dpkg --print-architecture)".deb)
program=$release/bootshare-host-$version-$(uname -m)-linux
if [ ! -f "$deb" ] || [ ! -f "$program" ]; then
    echo "trial: error: $deb or $program is missing: run make release" >&2
    exit 1
fi

mirror=$(host/archive.sh)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Runs a command in the tree as described by `as`. Its mounts and processes end with it.
as=root
inside() {
    # shellcheck disable=SC2016 # the inner shell expands them
    unshare --mount --pid --fork --kill-child bash -c '
        tree=$1 as=$2 && shift 2
        mount -t proc proc "$tree/proc"
        mkdir -p "$tree/dev/shm" && mount -t tmpfs -o mode=1777 shm "$tree/dev/shm"
        for device in null zero full random urandom tty; do
            touch "$tree/dev/$device" && mount --bind "/dev/$device" "$tree/dev/$device"
        done
        home=/root
        [ "$as" = root ] || home=/home/$as
        exec chroot --userspec="$as" "$tree" /usr/bin/env -i HOME="$home" TERM=dumb \
            PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive "$@"
    ' bash "$tree" "$as" "$@" </dev/null
}

# Runs a command in the tree and checks that it prints TEXT: `step LABEL TEXT COMMAND...`.
step() {
    local label=$1 text=$2 start end
    shift 2
    start=$(date +%s%N)
    if ! inside "$@" >"$work/log" 2>&1 || ! grep -aq -- "$text" "$work/log"; then
        tail -n 30 "$work/log" >&2
        echo "trial: error: $name: $label failed: it has to end with status 0 and print '$text'" >&2
        exit 1
    fi
    end=$(date +%s%N)
    printf '%s: %s: %d.%d s\n' "$name" "$label" $(((end - start) / 1000000000)) $(((end - start) / 100000000 % 10))
}

make_tree() {
    tree=$work/$name
    mmdebstrap --quiet --variant=minbase --include=ca-certificates --aptopt='Acquire::Check-Valid-Until "false"' \
        "$1" "$tree" ${mirror:+"$mirror"} >&2
    # The host's names and certificates are also used in the tree.
    cp -L /etc/resolv.conf "$tree/etc/resolv.conf"
    cp -L /etc/ssl/certs/ca-certificates.crt "$tree/etc/ssl/certs/ca-certificates.crt"
}

# What a new user does after the installation.
use() {
    step doctor 'QEMU' bootshare-host doctor
    step 'demo, with its downloads' 'is made' bootshare-host demo /tmp/demo
    step 'boot of the demo' 'Hello from a directory' bootshare-host boot --demo /tmp/demo
    # The demo's kernel and its modules are unpacked in this directory.
    # shellcheck disable=SC2016 # the tree's shell expands it
    step 'run' '^Linux' sh -c 'bootshare-host run --kernel "$HOME"/.cache/bootshare/guest/* / -- uname'
}

for name; do
    as=root
    case $name in
    bookworm | trixie | sid | user)
        make_tree "${name/user/trixie}"
        cp "$deb" "$tree/tmp/bootshare.deb"
        step 'package lists' '' apt-get -q update
        step 'QEMU' '' apt-get -q install -y --no-install-recommends qemu-system-x86 qemu-system-arm
        step 'the package' '' apt-get -q install -y --no-install-recommends /tmp/bootshare.deb
        if [ "$name" = user ]; then
            inside useradd --create-home tester
            as=tester
        fi
        use
        as=root
        step 'removal' '' apt-get -q purge -y bootshare
        left=$(find "$tree" -xdev -name '*bootshare*' ! -path "$tree/tmp/*" ! -path '*/.cache/*' ! -path "$tree/var/log/*")
        [ -z "$left" ] || { echo "trial: error: $name: left after removal: $left" >&2 && exit 1; }
        ;;
    busybox)
        tree=$work/busybox
        mkdir -p "$tree"/{bin,proc,dev,tmp,usr/bin,root,release}
        "$program" demo --parts target/guest "$work/demo" >&2
        cp "target/guest/$(dpkg --print-architecture)/usr/bin/busybox" "$tree/bin/busybox"
        chroot "$tree" /bin/busybox --install -s /bin
        ln -s /bin/env "$tree/usr/bin/env"
        cp "$program" "$tree/release"
        cp examples/ci/install.sh "$tree/release"
        digest=$(sha256sum "$program" | cut -d ' ' -f 1)
        step 'the program' 'QEMU is missing' sh /release/install.sh "$version" "$digest" /release
        if inside bootshare-host doctor >"$work/log" 2>&1 || ! grep -q 'QEMU' "$work/log"; then
            cat "$work/log" >&2
            echo 'trial: error: busybox: doctor has to fail and to name QEMU' >&2
            exit 1
        fi
        echo 'busybox: doctor names QEMU as missing'
        ;;
    *) echo "trial: error: $name is none of: ${all[*]}" >&2 && exit 1 ;;
    esac
    rm -rf "$tree"
done
echo "$# passed"
