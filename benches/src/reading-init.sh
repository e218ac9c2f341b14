#!/bin/busybox sh
# shellcheck shell=dash
# Reads a file of the share as Linux does, past the page cache and through it.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
# shellcheck disable=SC2013 # words are wanted
for word in $(cat /proc/cmdline); do
    case $word in
    file=*) file=/share${word#*=} ;;
    esac
done
while read -r module; do
    insmod "/modules/$module.ko"
done </modules/order
mount -t virtiofs bootshare /share

now() { sed -n 's/^now at \([0-9]*\) nsecs.*/\1/p' /proc/timer_list; }

# Says how many nanoseconds a read took: `timed NAME WORDS-FOR-DD...`.
timed() {
    name=$1
    shift
    start=$(now)
    dd if="$file" of=/dev/null bs=1M "$@" 2>/dev/null || echo "dd failed"
    end=$(now)
    echo "$name: $(stat -c %s "$file") bytes in $((end - start)) ns"
}

timed direct iflag=direct
timed direct iflag=direct
echo 3 >/proc/sys/vm/drop_caches
timed buffered
umount /share
stty sane </dev/console
poweroff -f
