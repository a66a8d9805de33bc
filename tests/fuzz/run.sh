#!/bin/sh
# Every fuzz target replays its corpus, without a fuzzer: one test for each target.
cd "$(dirname "$0")/../.." || exit 1
. tests/count.sh
out=build/tests/fuzz
san=${SAN-address,undefined}
mkdir -p "$out"

build() {
    ${CC:-cc} -std=gnu11 -g -O1 -Wall -Wextra ${san:+-fsanitize=$san -fno-sanitize-recover=all} \
        -I. tests/fuzz/replay.c -lbearssl -lpthread -o "$out/replay"
}

# Again with the names of the files when it fails: the last one is it.
replay() {
    timeout 60 "$out/replay" "$1" "tests/data/fuzz/$1" && return
    timeout 60 "$out/replay" "$1" "tests/data/fuzz/$1" -v 2>&1 | tail -40
    return 1
}

# No target without a file of its own, and none that replay.c forgot.
complete() {
    ls tests/fuzz/fuzz_*.c | sed 's/.*fuzz_\(.*\)\.c/\1/' | sort >"$out/files"
    "$out/replay" | sort >"$out/names"
    diff "$out/files" "$out/names"
}

rm -f "$out/replay"
step "build" build
step "every target is replayed" complete
for t in $(ls tests/fuzz/fuzz_*.c | sed 's/.*fuzz_\(.*\)\.c/\1/'); do
    step "corpus $t" replay "$t"
done
total
