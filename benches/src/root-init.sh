#!/bin/bash
# The first process of a guest whose root file system is the share: times programs that use its files, and
# prints `root: NAME: N us` for each.
export PATH=/usr/sbin:/usr/bin HOME=/tmp
mountpoint -q /proc || mount -t proc proc /proc
mount -t tmpfs tmp /tmp
cd /tmp || exit

# The microseconds of `timed NAME COMMAND...`.
timed() {
    local name=$1 start=${EPOCHREALTIME/./} status=0
    shift
    "$@" >/dev/null 2>/tmp/errors || status=$?
    echo "root: $name: $((${EPOCHREALTIME/./} - start)) us"
    [ $status = 0 ] || { echo "root: $name failed: $status" && cat /tmp/errors; }
}
archive() { tar -C /usr/share -cf - doc perl zoneinfo | cat; }
processes() { for _ in {1..200}; do /usr/bin/true; done; }
compilations() { for _ in {1..10}; do gcc -O1 -c /root/bench/source.c -o source.o; done; }
large() { dd if=/root/bench/large of=/dev/null bs=1M; }

timed "find" find /usr
timed "find again" find /usr
timed "ls -lR" ls -lR /usr
timed "tar" archive
timed "git status" git -C /root/bench/clone status
timed "git status again" git -C /root/bench/clone status
timed "200 processes" processes
timed "10 compilations" compilations
timed "dd of 256 MiB" large
timed "dd again" large
# Wait until the console has sent everything.
stty sane </dev/console
echo o >/proc/sysrq-trigger
read -rt 60 </dev/console
