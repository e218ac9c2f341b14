#!/bin/bash
# Runs commands with `bootshare-host run` in the kernels of Debian 12, 13 and sid, cloud and generic, on x86-64
# and arm64, as root and as an ordinary user, with a tree of Debian and with `/`. `tests/run.sh PROGRAM`:
# PROGRAM is bootshare-host. Prints the table of docs/testing.md, and fails if a command behaves differently
# than expected.
#
# mmdebstrap makes the trees once, in target/trees. It does not run the packages' scripts, so that trees of the
# other architecture need no emulator. host/archive.sh prints where the packages come from.
set -euo pipefail
cd "$(dirname "$0")/.."
program=$(realpath "${1:?"usage: tests/run.sh PROGRAM"}")

mirror=$(host/archive.sh)
trees=$PWD/target/trees
size=$((100 << 20))
jobs=${JOBS:-$(nproc)}

# Makes the tree of a release and an architecture, with both kernels and a static busybox. The commands run in
# the trees of Debian 12, which have a shell and its programs. The x86-64 tree also has the kernel's headers,
# because of their large number of files.
make_tree() {
    local release=$1 arch=$2 packages=busybox-static,linux-image-$2,linux-image-cloud-$2
    local tree=$trees/$release-$arch
    [ ! -d "$tree" ] || return 0
    [ "$release" != bookworm ] || packages+=,dash,coreutils,findutils
    [ "$release-$arch" != bookworm-amd64 ] || packages+=,linux-headers-$arch
    rm -rf "$tree.new"
    mmdebstrap --quiet --variant=extract --arch="$arch" --include="$packages" \
        --aptopt='Acquire::Check-Valid-Until "false"' "$release" "$tree.new" ${mirror:+"$mirror"} >&2
    # A script of the package dash would make this link.
    [ "$release" != bookworm ] || ln -sf dash "$tree.new/bin/sh"
    # The ordinary user must be able to read it.
    chmod 755 "$tree.new"
    mv "$tree.new" "$tree"
}

# The state of a tree: numbers and times of each inode, and the digest of each file.
state() {
    find "$1" -printf '%P %y %i %m %U %G %n %s %T@ %C@ %l\n' | sort
    find "$1" -type f -print0 | sort -z | xargs -0 sha256sum
}

# Runs bootshare-host as the user `$1` (root or an ordinary user); the other words are its arguments.
run() {
    local as=()
    case $1-$(id -u) in
    root-0) ;;
    root-*) as=(sudo -n) ;;
    user-0) as=(setpriv --reuid=65534 --regid=65534 --clear-groups) ;;
    esac
    shift
    "${as[@]}" "$program" run --timeout 5m "$@"
}

# check NAME STATUS WORDS...: runs the words and compares the status. The command inherits the three standard
# streams.
check() {
    local name=$1 expected=$2 status=0
    shift 2
    "$@" || status=$?
    [ "$status" = "$expected" ] || echo "$name: status $status instead of $expected" >>"$work/why"
}

# Tests one cell of the table: ARCH KERNEL USER PLACE. Its result is written to a file.
cell() {
    local arch=$1 kernel=$2 user=$3 place=$4
    local work=$results/$arch-$kernel-$user-$place
    mkdir "$work"
    local dirs=(/) words=()
    if [ "$place" = tree ]; then
        dirs=("$trees/bookworm-$arch")
    elif [ "$arch" != "$(dpkg --print-architecture)" ]; then
        # The programs in `/` are of the other architecture.
        dirs=("$trees/busybox-$arch" /)
        words=(/busybox)
    fi
    local start=(run "$user" --kernel "${kernels[$arch/$kernel]}" --console "$work/console" "${dirs[@]}" -- "${words[@]}")
    touch "$work/why" "$work/console"
    chmod 666 "$work/console"
    chmod 777 "$work"
    check true 0 "${start[@]}" true </dev/null >"$work/out" 2>"$work/errors"
    check false 1 "${start[@]}" false </dev/null >>"$work/out" 2>>"$work/errors"
    # shellcheck disable=SC2016 # the shell in the machine expands it
    check kill 137 "${start[@]}" sh -c 'kill -9 $$' </dev/null >>"$work/out" 2>>"$work/errors"
    for code in 7 255; do
        check "exit $code" $code "${start[@]}" sh -c "exit $code" </dev/null >>"$work/out" 2>>"$work/errors"
    done
    [ ! -s "$work/out" ] || echo "output where there should be none: $(head -c 200 "$work/out")" >>"$work/why"
    # A line names a file that the ordinary user may not read.
    [ "$user" = user ] && sed -i '/^bootshare-host: warning: the guest could not read /d' "$work/errors"
    [ ! -s "$work/errors" ] || echo "errors: $(head -c 500 "$work/errors")" >>"$work/why"
    # shellcheck disable=SC2094 # it reads one file and makes another
    check stream 0 "${start[@]}" sh -c 'cat; echo apart >&2' <"$results/random" 2>"$work/errors" |
        sha256sum >"$work/sum"
    cmp -s "$results/sum" "$work/sum" || echo "100 MiB came back as others" >>"$work/why"
    [ "$(grep -v '^bootshare-host: warning: the guest could not read ' "$work/errors")" = apart ] ||
        echo "error output: $(head -c 500 "$work/errors")" >>"$work/why"
    sed "s/^/$arch $kernel, $user, $place: /" "$work/why" >&2
}

# Runs at most `jobs` at a time.
started=0
pool() {
    if [ "$started" -ge "$jobs" ]; then
        wait -n || true
    else
        started=$((started + 1))
    fi
    "$@" &
}

# Tests each status from 0 to 255 with one kernel, each in a machine of its own.
status_of() {
    local status=0
    run root --kernel "${kernels[$1]}" "$trees/bookworm-amd64" -- sh -c "exit $2" </dev/null || status=$?
    [ "$status" = "$2" ] && echo "$2" >>"$results/statuses" || echo "exit $2: status $status" >&2
}

mkdir -p "$trees"
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
chmod 755 "$results"
declare -A kernels
names=()
for arch in amd64 arm64; do
    for release in bookworm trixie sid; do
        make_tree $release $arch
        tree=$trees/$release-$arch
        for modules in "$tree"/usr/lib/modules/* "$tree"/lib/modules/*; do
            version=${modules##*/}
            for kernel in "$tree/boot/vmlinuz-$version" "$modules/vmlinuz"; do
                if [ -f "$kernel" ] && [ -z "${kernels[$arch/$version]-}" ]; then
                    kernels[$arch/$version]=$kernel
                    names+=("$arch/$version")
                fi
            done
        done
    done
    mkdir -p "$trees/busybox-$arch"
    cp -L "$trees/bookworm-$arch/bin/busybox" "$trees/busybox-$arch"
done
[ "${#names[@]}" = 12 ] || { echo "12 kernels were expected: ${names[*]}" >&2 && exit 1; }

tree=$trees/bookworm-amd64
state "$tree" >"$results/before"
entries=$(find "$tree" | wc -l)
[ "$entries" -ge 20000 ] || { echo "$tree has only $entries entries" >&2 && exit 1; }
head -c "$size" /dev/urandom >"$results/random"
sha256sum <"$results/random" >"$results/sum"

for name in "${names[@]}"; do
    for user in root user; do
        for place in tree slash; do
            pool cell "${name%%/*}" "${name#*/}" $user $place
        done
    done
done
if [ -z "${CODES+set}" ]; then CODES=$(seq 0 255); fi
touch "$results/statuses"
for code in $CODES; do
    pool status_of "${names[0]}" "$code"
done
wait

# A command that truncates every file except itself, makes a file in every directory, and then removes
# everything.
# shellcheck disable=SC2016 # the shell in the machine expands it
run root --kernel "${kernels[${names[0]}]}" --memory 2G "$tree" -- /bin/busybox sh -c '
    box=/bin/busybox
    files() { $box find / -xdev -type f ! -path $box "$@"; }
    $box find / -xdev -type d -exec $box sh -c '\''for dir; do : >"$dir/new"; done'\'' sh {} + 2>/dev/null
    files -exec $box sh -c '\''for file; do : >"$file"; done'\'' sh {} +
    echo "$(files | $box wc -l) files are written, $(files -size +0 | $box wc -l) are not"
    $box find / -xdev -depth -mindepth 1 ! -path $box -delete 2>/dev/null
    exit 0' </dev/null >"$results/written"
state "$tree" >"$results/after"

# shellcheck disable=SC2016 # no expansion is meant
echo '| kernel | root, tree | root, `/` | user, tree | user, `/` |'
echo '|---|---|---|---|---|'
failed=0
for name in "${names[@]}"; do
    row="| ${name%%/*} \`${name#*/}\` |"
    for column in root-tree root-slash user-tree user-slash; do
        if [ -s "$results/${name%%/*}-${name#*/}-$column/why" ]; then
            row+=' fails |' failed=$((failed + 1))
        else
            row+=' passes |'
        fi
    done
    echo "$row"
done
echo
echo "$(wc -l <"$results/statuses") of $(wc -w <<<"$CODES") exit statuses by ${names[0]}."
echo "$(cat "$results/written"); of $entries entries of the tree $(diff "$results/before" "$results/after" | grep -c '^<' || true) have changed."
[ "$failed" = 0 ]
[ "$(wc -l <"$results/statuses")" = "$(wc -w <<<"$CODES")" ]
grep -q ' are written, 0 are not' "$results/written"
cmp "$results/before" "$results/after"
