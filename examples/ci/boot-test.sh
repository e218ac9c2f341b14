#!/bin/sh
# A boot test: boot-test.sh BOOTSHARE KERNEL INITRD PATTERN. It succeeds if PATTERN appears on the console.
# BOOTSHARE is a clone of Bootshare's repository; QEMU must be installed.
set -eu
make -C "$1" host
guest=$(mktemp -d)
trap 'rm -rf "$guest"' EXIT
cp "$2" "$guest/vmlinuz"
cp "$3" "$guest/initrd.img"
echo "console=ttyS0 panic=-1" >"$guest/cmdline"
"$1/target/release/bootshare-host" boot "$guest" --timeout 2m --expect "$4" --fail "Kernel panic"
