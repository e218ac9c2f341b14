#!/bin/busybox sh
# Reads a file of the share as Linux does, past the page cache and through it.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for word in $(cat /proc/cmdline); do
    case $word in
    file=*) file=/share${word#*=} ;;
    esac
done
while read -r module; do
    insmod "/modules/$module.ko"
done </modules/order
mount -t virtiofs bootshare /share
for _ in 1 2; do
    echo "direct: $(dd if="$file" of=/dev/null bs=1M iflag=direct 2>&1 | tail -n 1)"
done
echo 3 >/proc/sys/vm/drop_caches
echo "buffered: $(dd if="$file" of=/dev/null bs=1M 2>&1 | tail -n 1)"
umount /share
poweroff -f
