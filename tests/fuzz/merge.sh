#!/bin/sh
# merge.sh [TARGET...]: after fuzz.sh, makes tests/data/fuzz the smallest set of files that reaches
# what the old one and the findings in build/fuzz/found reach together. Files above 4 096 bytes are
# left out unless they were in the old one.
cd "$(dirname "$0")/../.." || exit 1
out=build/fuzz
for t in ${*:-$(ls tests/fuzz/fuzz_*.c | sed 's/.*fuzz_\(.*\)\.c/\1/')}; do
    from=$out/merge-from
    to=$out/merge-to
    rm -rf "$from" "$to"
    mkdir -p "$from" "$to"
    find "$out/found/$t" -type f -size -9 -exec cp {} "$from" \;
    if "$out/$t" -merge=1 -use_counters=0 -timeout=20 "$to" "tests/data/fuzz/$t" "$from" >"$out/$t.merge.log" 2>&1 &&
        [ -n "$(ls "$to")" ]; then
        rm -rf "tests/data/fuzz/$t"
        mv "$to" "tests/data/fuzz/$t"
        echo "$t: $(ls "tests/data/fuzz/$t" | wc -l) files"
    else
        echo "FAILED $t: see $out/$t.merge.log"
    fi
done
