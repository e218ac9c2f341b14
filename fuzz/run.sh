#!/bin/sh
# Runs the fuzz targets one after the other: `fuzz/run.sh SECONDS [TARGET...]`.
#
# SANITIZER=none in the environment disables AddressSanitizer. This makes about five times as many executions
# possible, but invalid memory accesses are not detected.
#
# With CASES in the environment, so many inputs are made by random changes of those that are known, without a limit of
# time: two to three times as many in the same time, because coverage is not measured, but no input is kept. SEED makes
# a sequence of its own (default: the time).
#
# New inputs that a run of the fuzzer finds are kept in target/fuzz and used by the next run; the committed corpus is
# not changed. `host/setup.sh fuzz` installs the requirements.
set -eu
cd "$(dirname "$0")/.."
seconds=${1:?"usage: fuzz/run.sh SECONDS [TARGET...]"}
shift
[ $# -gt 0 ] || set -- wire boot client zstd serve
case $seconds in
'' | *[!0-9]*)
    echo "fuzz: error: $seconds is no whole number of seconds" >&2
    exit 1
    ;;
esac
# For libFuzzer, 0 means no limit.
[ "$seconds" -gt 0 ] || {
    echo "fuzz: error: 0 is not a time limit: use 1 or more" >&2
    exit 1
}
PATH=$PWD/target/cargo-fuzz/bin:$PATH
out=target/fuzz
sanitizer=${SANITIZER:-address}
# The target `serve` compares the memory of the process, so AddressSanitizer keeps less freed memory.
export ASAN_OPTIONS="quarantine_size_mb=16${ASAN_OPTIONS:+:$ASAN_OPTIONS}"
set_up="--sanitizer $sanitizer --target-dir $out/$sanitizer"

if [ -n "${CASES:-}" ]; then
    seed=${SEED:-$(date +%s)}
    case $CASES$seed in
    *[!0-9]*)
        echo "fuzz: error: CASES=$CASES SEED=$seed: use whole numbers" >&2
        exit 1
        ;;
    esac
    triple=$(rustc -vV | sed -n 's/^host: //p')
    flags='-Cdebug-assertions'
    [ "$sanitizer" = none ] || flags="$flags -Zsanitizer=$sanitizer"
    RUSTFLAGS=$flags cargo +nightly build --release -p bootshare-fuzz --bins \
        --target "$triple" --target-dir "$out/random-$sanitizer"
    for target in "$@"; do
        mkdir -p "$out/corpus/$target"
        echo "fuzz: $target, $CASES random cases of seed $seed"
        "$out/random-$sanitizer/$triple/release/$target" --random "$CASES" "$seed" \
            "$out/corpus/$target" "fuzz/corpus/$target" || {
            echo "fuzz: error: $target failed: CASES=$CASES SEED=$seed with the same inputs in $out/corpus/$target" \
                "shows it again; put the input that a panic prints in fuzz/regressions/$target" >&2
            exit 1
        }
    done
    exit
fi

# shellcheck disable=SC2086 # a list of words
cargo +nightly fuzz build $set_up
figures=
status=0
# Function names are not resolved: the program that does so would be connected by pipes, and `serve` counts
# descriptors.
for target in "$@"; do
    mkdir -p "$out/corpus/$target" "$out/artifacts/$target"
    log=$out/$target.log
    echo "fuzz: $target for $seconds s; its log is in $log"
    result='no findings'
    # shellcheck disable=SC2086 # a list of words
    cargo +nightly fuzz run $set_up "$target" \
        "$out/corpus/$target" "fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -max_len=4096 -timeout=20 -print_final_stats=1 -print_funcs=0 \
        -artifact_prefix="$out/artifacts/$target/" >"$log" 2>&1 || result=FINDINGS
    if [ "$result" = FINDINGS ]; then
        status=1
        tail -n 40 "$log" >&2
        [ -n "$(ls "$out/artifacts/$target")" ] || exit 1
        echo "fuzz: the input is in $out/artifacts/$target: repair what it shows and move it to" \
            "fuzz/regressions/$target under a name that says what it was" >&2
    fi
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    coverage=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
    figures="$figures$(printf '%-8s %12s executions, coverage %s, %s' \
        "$target" "${executions:-?}" "${coverage:-?}" "$result")
"
done
printf '%s' "$figures"
exit $status
