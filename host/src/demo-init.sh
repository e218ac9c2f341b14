#!/bin/busybox sh
# shellcheck shell=dash
# Init of the demo's initramfs: mounts the share that the kernel itself was read from.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev

# For the host tool, a reset is a failure and a power-off is a success.
fail() {
    echo "demo: error: $*"
    reboot -f
}

tag=bootshare
shell=
run=
files=
# shellcheck disable=SC2013 # words are wanted
for word in $(cat /proc/cmdline); do
    case $word in
    demo.tag=*) tag=${word#*=} ;;
    demo.sha256=*) files="$files ${word#*=}" ;;
    demo.run=*) run=${word#*=} ;;
    demo.shell) shell=yes ;;
    esac
done

while read -r module; do
    insmod "/modules/$module.ko" || fail "cannot load the module $module"
done </modules/order
mount -t virtiofs "$tag" /share || fail "cannot mount the share $tag"

echo "demo: Linux $(uname -r) mounted the share $tag at /share"
cat /share/greeting.txt
for file in $files; do
    sum=$(sha256sum "/share$file") || fail "cannot read $file"
    echo "SHA256 ${sum%% *} $file"
done

[ -z "$run" ] || sh "/share$run"

if [ -n "$shell" ]; then
    echo "demo: the shell's end powers the machine off"
    cd /share && setsid cttyhack sh -i
fi
umount /share 2>/dev/null
# Returns after all output was sent, because the kernel's own messages do not wait for it.
stty sane </dev/console
poweroff -f
