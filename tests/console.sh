#!/bin/bash
# Sends 100 MiB of a guest's console output through a reader that stops ten times for ten seconds. All must
# arrive in order, in bounded memory, with and without standard input, on x86-64 and arm64, and `--fail` must
# match a panic's line at any position. `tests/console.sh PROGRAM`: PROGRAM is bootshare-host. Prints the table
# of docs/testing.md.
set -euo pipefail
cd "$(dirname "$0")/.."
program=$(realpath "${1:?"usage: tests/console.sh PROGRAM"}")

mib=${MIB:-100}
pause=${PAUSE:-10}
# The most memory of bootshare-host in MiB; unread output is spooled to a file.
limit=64
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/share"
mkfifo "$work/pipe"
# Lines of 64 characters after the firmware's `cat` has converted the line ends for a terminal.
head -c "$(((mib << 20) * 3 / 4))" /dev/urandom | base64 -w 63 >"$work/share/text"
truncate -s "$((mib << 20))" "$work/share/text"
sum=$(sha256sum <"$work/share/text")
lines=$(wc -l <"$work/share/text")

boot() {
    exec "$program" boot "$work/share" --board "$1" --timeout 1h --append "bootshare.cmd=\"cat /$2\"" "${@:3}"
}

# Stops ten times, after each tenth of the text.
reader() {
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        head -c "$(((mib << 20) / 10))"
        sleep "$pause"
    done
    cat
}

# The firmware's own messages come before and after the text.
text_of() {
    tr -d '\r' <"$1" | grep -E '^[A-Za-z0-9+/=]{1,64}$' | head -c "$((mib << 20))"
}

row() {
    local board=$1 input=$2 most=0 now pid reader status=0
    reader <"$work/pipe" >"$work/out" &
    reader=$!
    if [ "$input" = none ]; then
        boot "$board" text </dev/null >"$work/pipe" 2>"$work/errors" &
    else
        boot "$board" text < <(exec sleep 3600) >"$work/pipe" 2>"$work/errors" &
    fi
    pid=$!
    while now=$(awk '/^RssAnon:/ { print int($2 / 1024) }' "/proc/$pid/status" 2>/dev/null) && [ -n "$now" ]; do
        [ "$now" -le "$most" ] || most=$now
        sleep 0.2
    done
    wait "$pid" || status=$?
    wait "$reader"
    local same=no
    [ "$(text_of "$work/out" | sha256sum)" != "$sum" ] || same=yes
    echo "| \`$board\` | $input | $status | $same | $most MiB |"
    [ "$status" = 0 ] && [ "$same" = yes ] && [ "$most" -lt "$limit" ] || failed=1
}

failed=0
echo '| board | standard input | status | the text is the same | memory |'
echo '|---|---|---|---|---|'
for board in x86_64-microvm aarch64-virt; do
    for input in none open; do
        row $board $input
    done
done

echo
for board in x86_64-microvm aarch64-virt; do
    for place in 1 $((lines / 2)) $lines; do
        sed "${place}i Kernel panic - not syncing" "$work/share/text" >"$work/share/panic"
        status=0
        (boot $board panic --fail 'Kernel panic' </dev/null 2>"$work/errors") > >(reader >/dev/null) || status=$?
        echo "\`$board\`: a panic in line $place of $lines: status $status"
        [ "$status" = 1 ] || failed=1
    done
done
exit $failed
