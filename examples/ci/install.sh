#!/bin/sh
# Installs bootshare-host from a release. Also installs QEMU if it is missing and apt-get exists:
#
#     install.sh VERSION SHA256 FROM [DIR]
#
# FROM/bootshare-host-VERSION-ARCH-linux is installed in DIR (default: /usr/local/bin) if it has that SHA-256.
# FROM has the files of the release: a URL such as https://.../releases/download/v0.1.0, or a directory.
set -eu
version=${1:?"usage: install.sh VERSION SHA256 FROM [DIR]"} sha256=${2:?} from=${3:?} dir=${4:-/usr/local/bin}

die() {
    echo "install: error: $*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

arch=$(uname -m)
case $arch in
x86_64 | aarch64) ;;
*) die "there is no program for $arch: x86_64 and aarch64 have one" ;;
esac
name=bootshare-host-$version-$arch-linux
file=$(mktemp)
trap 'rm -f "$file"' EXIT
if [ -d "$from" ]; then
    cp "$from/$name" "$file"
elif command -v curl >/dev/null; then
    curl --proto '=https' -fsSL --retry 3 -o "$file" "$from/$name" || die "$from/$name cannot be downloaded"
else
    wget -qO "$file" "$from/$name" || die "$from/$name cannot be downloaded"
fi
found=$(sha256sum "$file" | cut -d ' ' -f 1)
[ "$found" = "$sha256" ] || die "$name has the SHA-256 $found instead of $sha256: nothing is installed"
# busybox has all the programs that are used here.
put() {
    "$@" mkdir -p "$dir" && "$@" cp "$file" "$dir/bootshare-host" && "$@" chmod 755 "$dir/bootshare-host"
}
if mkdir -p "$dir" 2>/dev/null && [ -w "$dir" ]; then put env; else put as_root; fi

if ! command -v qemu-system-x86_64 >/dev/null || ! command -v qemu-system-aarch64 >/dev/null; then
    if command -v apt-get >/dev/null; then
        as_root apt-get -q update
        as_root env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends \
            qemu-system-x86 qemu-system-arm
    else
        echo "install: QEMU is missing, and there is no apt-get: see bootshare-host doctor" >&2
    fi
fi
