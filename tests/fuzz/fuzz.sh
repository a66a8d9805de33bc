#!/bin/sh
# fuzz.sh SECONDS [TARGET...]: every target (or those named) under libFuzzer for that long, two at
# a time, beginning with the corpus. What it finds stands in build/fuzz: found/TARGET is the corpus
# it grew, crash/TARGET what failed. Ends with the count; needs clang.
cd "$(dirname "$0")/../.." || exit 1
seconds=${1:?usage: fuzz.sh SECONDS [TARGET...]}
shift
out=build/fuzz
all=$(ls tests/fuzz/fuzz_*.c | sed 's/.*fuzz_\(.*\)\.c/\1/')
targets=${*:-$all}
mkdir -p "$out"
cc=${FUZZ_CC:-clang}
flags="-g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined -I."
probe() { $cc $flags tests/fuzz/fuzz_frame.c -lbearssl -lpthread -o "$out/probe" >"$out/probe.log" 2>&1; }
if ! probe && { ! sh tests/deps.sh clang:clang libclang-rt-dev:/no/file/tells || ! probe; }; then
    echo "fuzzing needs clang with -fsanitize=fuzzer (Debian: clang, libclang-rt-dev)"
    exit 1
fi

run() { # target: builds and runs it, leaves its verdict in $out/TARGET.status
    mkdir -p "$out/found/$1" "$out/crash/$1" "tests/data/fuzz/$1"
    echo "does not build" >"$out/$1.status"
    $cc $flags "tests/fuzz/fuzz_$1.c" -lbearssl -lpthread -o "$out/$1" >"$out/$1.log" 2>&1 || return
    "$out/$1" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=1024 -print_final_stats=1 \
        -max_len="$(max_len "$1")" -artifact_prefix="$out/crash/$1/" "$out/found/$1" \
        "tests/data/fuzz/$1" >"$out/$1.log" 2>&1
    echo "exit $?" >"$out/$1.status"
}

max_len() {
    case "$1" in
    conn | log) echo 20000 ;;
    frame | id | array) echo 600 ;;
    *) echo 4096 ;;
    esac
}

passed=0
failed=0
first=
collect() { # waits for nothing: reads what run left
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$out/$1.log")
    rate=$(sed -n 's/^stat::average_exec_per_sec: *//p' "$out/$1.log")
    if [ "$(cat "$out/$1.status")" = "exit 0" ] && [ -n "$runs" ]; then
        passed=$((passed + 1))
        echo "$1: $runs runs, $rate a second"
    else
        failed=$((failed + 1))
        echo "FAILED $1: $(cat "$out/$1.status"), see $out/$1.log and $out/crash/$1"
        grep -E "failed:|ERROR|runtime error" "$out/$1.log" | head -5
    fi
}
for t in $targets; do
    run "$t" &
    if [ -z "$first" ]; then
        first=$t
        continue
    fi
    wait
    collect "$first"
    collect "$t"
    first=
done
wait
[ -z "$first" ] || collect "$first"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
