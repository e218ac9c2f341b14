#!/bin/bash
# Programs in a guest read a tree that the host changes 1,000 times a second. The tree is on ext4 (or the file
# system of this directory), tmpfs, overlayfs and a FUSE file system. Files are replaced by renaming,
# directories are exchanged with each other and with links, files are truncated. `tests/changing.sh PROGRAM
# CHANGES [SERVER]`: PROGRAM is bootshare-host, CHANGES the example host/examples/changes.rs, SERVER a virtiofsd
# to compare with. Prints the table of docs/testing.md, and fails if the guest's programs get ESTALE, ENOENT or
# EIO but with SERVER do not. Needs root, for mounts, and fuse-overlayfs.
# shellcheck disable=SC2317 # clean_up and boot are called indirectly
set -euo pipefail
cd "$(dirname "$0")/.."
usage="usage: tests/changing.sh PROGRAM CHANGES [SERVER]"
program=$(realpath "${1:?"$usage"}")
changes=$(realpath "${2:?"$usage"}")
server=${3:+$(realpath "$3")}
# The duration for each kind of programs in seconds, and the number of changes in a second.
seconds=${SECONDS_EACH:-15}
rate=${RATE:-1000}

[ "$(id -u)" = 0 ] || { echo "changing: error: run it as root: it mounts file systems" >&2 && exit 1; }
mkdir -p target/changing
work=$(mktemp -d "$PWD/target/changing/XXXXXX")
clean_up() {
    local place
    # The program that changes the tree ends with its standard input.
    exec 9>&-
    wait
    for place in tmpfs overlay fuse; do
        ! mountpoint -q "$work/$place" || umount "$work/$place"
    done
    rm -rf "$work"
}
trap clean_up EXIT

"$program" demo --release trixie --parts target/guest --force "$work/boot" </dev/null >&2
cat >"$work/boot/run.sh" <<END
mkdir /tmp /tree && mount -t virtiofs tree /tree || exit
sh /share/programs.sh /tree $seconds
END

# The programs of the guest, which for comparison also run on the host. They print one line for each kind, with
# the number of rounds and of messages. Each round reads hundreds of files, all of which exist at any time.
cat >"$work/boot/programs.sh" <<'END'
cd "$1"
errors=$(mktemp)
# A version consists of 500 equal lines.
versions() { uniq -c | awk '$1 % 500 { print "two versions in one file" }' >&2; }
packages() {
    cat pkg/p*/* | versions
    md5sum pkg/p0*/* >/dev/null
    ls -lR pkg >/dev/null
    pkg/busybox true
}
build() {
    cat build/obj/* | versions
    cat src/*/* >/dev/null
    tar cf - src build/obj | cat >/dev/null
    [ "$(find src build/obj -type f | wc -l)" = 300 ] || echo "files are missing" >&2
    echo build/tmp/* >/dev/null
}
directories() {
    cat dirs/a/file dirs/b/sub/file dirs/swap/file dirs/other/sub/file dirs/current/file dirs/*/sub/file >/dev/null
    (cd dirs/swap && cat file sub/file ../current/file ../a/sub/file) >/dev/null
    (cd dirs/a/sub && cat file ../file ../../real/file) >/dev/null
    ls -lL dirs dirs/a dirs/swap/sub >/dev/null
}
cut() {
    cat cut/* >/dev/null
    md5sum cut/* >/dev/null
    wc -c cut/* >/dev/null
    tail -c 1000 cut/* >/dev/null
}
for kind in packages build directories cut; do
    : >"$errors"
    rounds=0
    end=$(($(date +%s) + $2))
    while [ "$(date +%s)" -lt $end ]; do
        $kind 2>>"$errors"
        rounds=$((rounds + 1))
    done
    stale=$(grep -c 'Stale file handle' "$errors")
    missing=$(grep -c -e 'No such file' -e 'not found' "$errors")
    io=$(grep -c -e 'I/O error' -e 'Input/output error' "$errors")
    other=$(($(wc -l <"$errors") - stale - missing - io))
    echo "changing: $kind $rounds $stale $missing $io $other"
    sort "$errors" | uniq -c | sort -rn | head -n 4 | sed "s/^/changing-message: $kind:/"
done
END

busybox=$(find target/guest/amd64*/usr/bin target/guest/amd64*/bin -name busybox | head -n 1)
mkdir "$work/bin"
"$busybox" --install -s "$work/bin"

place() {
    mkdir -p "$work/$1"
    case $1 in
    tmpfs) mount -t tmpfs changing "$work/tmpfs" ;;
    overlay | fuse)
        mkdir "$work/$1-lower" "$work/$1-upper" "$work/$1-work"
        local layers="lowerdir=$work/$1-lower,upperdir=$work/$1-upper,workdir=$work/$1-work"
        if [ "$1" = overlay ]; then
            mount -t overlay -o "$layers,redirect_dir=on" changing "$work/overlay"
        else
            fuse-overlayfs -o "$layers" "$work/fuse"
        fi
        ;;
    esac
    "$changes" make "$work/$1" "$busybox"
}

# Runs the words while the tree of a place is changed. Their output contains the programs' lines.
during() {
    local place=$1 changer status=0
    shift
    mkfifo "$work/end"
    "$changes" run "$work/$place" "$rate" <"$work/end" >"$work/count" &
    changer=$!
    exec 9>"$work/end"
    "$@" </dev/null >"$work/out" 2>&1 || status=$?
    exec 9>&-
    wait $changer || status=$?
    rm "$work/end"
    if [ $status != 0 ] || [ "$(grep -c 'changing: ' "$work/out")" != 4 ]; then
        tail -n 20 "$work/out" >&2
        echo "changing: error: $place: status $status: $*" >&2
        exit 1
    fi
    tr -d '\r' <"$work/out" | sed -n "s/^.*changing-message: /$place: /p" >&2
    echo "changing: $place: $(cat "$work/count") changes" >&2
}

# cell KIND: prints the number of messages of the last run, and of rounds, and sets `bad` to the numbers of
# ESTALE, ENOENT and EIO.
cell() {
    local kind rounds stale missing io other
    read -r kind rounds stale missing io other < <(tr -d '\r' <"$work/out" | sed -n "s/^.*changing: \($1 .*\)/\1/p")
    bad=$((stale + missing + io))
    text="none in $rounds"
    [ $((bad + other)) = 0 ] || text="$stale, $missing, $io, $other in $rounds"
    [ "$kind" = "$1" ]
}

boot() { "$program" boot "$work/boot" --share "tree=$work/$1/tree" --cmdline demo.run=/run.sh --timeout 30m "${@:2}"; }

failed=0
kinds="packages build directories cut"
declare -A cells bads
echo "| file system | programs | on the host itself | from this server |${server:+ from virtiofsd |}"
echo "|---|---|---|---|${server:+---|}"
for place in ${PLACES:-disk tmpfs overlay fuse}; do
    place "$place"
    for who in host ours ${server:+theirs}; do
        case $who in
        host) during "$place" env -i PATH="$work/bin" "$work/bin/sh" "$work/boot/programs.sh" "$work/$place/tree" "$seconds" ;;
        ours) during "$place" boot "$place" ;;
        theirs) during "$place" boot "$place" --server "$server" ;;
        esac
        for kind in $kinds; do
            cell "$kind"
            cells[$kind-$who]=$text
            bads[$kind-$who]=$bad
        done
    done
    for kind in $kinds; do
        echo "| $place | $kind | ${cells[$kind-host]} | ${cells[$kind-ours]} |${server:+ ${cells[$kind-theirs]} |}"
        other=host
        [ -z "$server" ] || other=theirs
        [ "${bads[$kind-ours]}" = 0 ] || [ "${bads[$kind-$other]}" != 0 ] || failed=1
    done
done
exit $failed
