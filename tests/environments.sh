#!/bin/bash
# Boots the demo, and runs a command in a kernel, in the environments in which people, terminals and services
# start programs. `tests/environments.sh PROGRAM`: PROGRAM is bootshare-host. Prints the table of
# docs/testing.md. Needs script, tmux, and root or user namespaces.
set -euo pipefail
cd "$(dirname "$0")/.."
program=$(realpath "${1:?"usage: tests/environments.sh PROGRAM"}")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$program" demo --parts target/guest "$work/demo" </dev/null >&2
kernel=$(find target/guest/amd64/boot -name 'vmlinuz-*' | head -n 1)

# The two command lines. `umask 077` and an inaccessible directory must not matter.
cat >"$work/boot" <<END
#!/bin/sh
"$program" boot "$work/demo" --timeout 5m --expect 'Hello from a directory' --fail 'Kernel panic'
echo \$? >"$work/status"
END
cat >"$work/run" <<END
#!/bin/sh
"$program" run --timeout 5m --kernel "$PWD/$kernel" / -- uname -s
echo \$? >"$work/status"
END
chmod 755 "$work" "$work/boot" "$work/run"

# start ENVIRONMENT COMMAND
start() {
    case $1 in
    terminal) script -qec "$2" /dev/null </dev/null ;;
    tmux)
        tmux -L bootshare -f /dev/null new-session -d -x 80 -y 24 "$2" \; pipe-pane "cat >'$work/pane'"
        while tmux -L bootshare has-session 2>/dev/null; do sleep 0.2; done
        cat "$work/pane"
        ;;
    nohup)
        script -qec "nohup '$2' >'$work/file' 2>&1" /dev/null </dev/null
        cat "$work/file"
        ;;
    background)
        script -qec "sh -ic '\"$2\" >\"$work/file\" 2>&1 & wait'" /dev/null </dev/null
        cat "$work/file"
        ;;
    cron) (umask 077 && cd / && env -i PATH=/usr/bin:/bin SHELL=/bin/sh setsid --wait "$2" </dev/null) ;;
    closed) "$2" <&- ;;
    pipe) "$2" < <(exec sleep 1000) ;;
    shm)
        unshare --map-root-user --mount \
            sh -c "mount -t tmpfs -o size=64m tmpfs /dev/shm && exec '$2'" </dev/null
        ;;
    first) unshare --map-root-user --pid --fork --mount-proc "$2" </dev/null ;;
    esac
}

failed=0
# row DESCRIPTION ENVIRONMENT
row() {
    local cells='' command status wanted
    for command in boot run; do
        rm -f "$work/status"
        start "$2" "$work/$command" >"$work/out" 2>&1 || true
        status=$(cat "$work/status" 2>/dev/null || echo none)
        wanted='Hello from a directory'
        [ $command = boot ] || wanted=Linux
        if [ "$status" = 0 ] && grep -q "$wanted" "$work/out"; then
            cells+=' passes |'
        else
            cells+=" fails: status $status |" failed=1
            sed "s/^/$2 $command: /" "$work/out" >&2
        fi
    done
    echo "| $1 |$cells"
}

# shellcheck disable=SC2016 # no expansion is meant
echo '| environment | `boot` of the demo | `run / -- uname -s` |'
echo '|---|---|---|'
row 'a terminal, by script(1)' terminal
row 'a pane of tmux' tmux
row 'nohup(1) on a terminal' nohup
row "in the background of a terminal's shell" background
row 'as cron does: no terminal, no HOME, umask 077' cron
row 'standard input closed' closed
row 'standard input a pipe that stays open' pipe
row 'a namespace with a /dev/shm of 64 MiB' shm
row 'process 1 of a PID namespace' first
exit $failed
