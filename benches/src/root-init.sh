#!/bin/bash
# The first process of a guest that measures shares: runs each program with each share as its root directory, one
# share after the other in random order, and prints `root: PROGRAM@SHARE: N us`.
export PATH=/usr/sbin:/usr/bin HOME=/tmp
mountpoint -q /proc || mount -t proc proc /proc
mount -t tmpfs tmp /tmp
cd /tmp || exit
read -r words </proc/cmdline
for word in $words; do case $word in shares=*) IFS=, read -ra shares <<<"${word#shares=}" ;; esac; done

for share in "${shares[@]}"; do
    mkdir "$share"
    mount -t virtiofs -o ro "$share" "$share" || echo "root: mount of $share failed: $?"
    for dir in proc dev tmp; do mount --bind "/$dir" "$share/$dir"; done
done

# The microseconds of `timed PROGRAM COMMAND...` in each share.
timed() {
    local program=$1 share start status
    shift
    for share in $(shuf -e "${shares[@]}"); do
        start=${EPOCHREALTIME/./} status=0
        chroot "$share" "$@" >/dev/null 2>/tmp/errors || status=$?
        echo "root: $program@$share: $((${EPOCHREALTIME/./} - start)) us"
        [ $status = 0 ] || { echo "root: $program failed: $status" && cat /tmp/errors; }
    done
}
git=(git -c 'safe.directory=*' -C /root/bench/clone status)

timed "find" find /usr
timed "find again" find /usr
timed "ls -lR" ls -lR /usr
timed "tar" bash -c 'tar -C /usr/share -cf - doc perl zoneinfo | cat'
timed "git status" "${git[@]}"
timed "git status again" "${git[@]}"
timed "200 processes" bash -c 'for _ in {1..200}; do /usr/bin/true; done'
timed "10 compilations" bash -c 'for _ in {1..10}; do gcc -O1 -c /root/bench/source.c -o /tmp/source.o; done'
timed "dd of 256 MiB" dd if=/root/bench/large of=/dev/null bs=1M
timed "dd again" dd if=/root/bench/large of=/dev/null bs=1M
# Wait until the console has sent everything.
stty sane </dev/console
echo o >/proc/sysrq-trigger
read -rt 60 </dev/console
