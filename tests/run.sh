#!/bin/sh
# The whole test suite. Each part is a program or a script that ends with "N passed, N failed";
# a part that does not build, crashes, hangs or prints no count is one failure. Ends with the sum.
# SAN: the sanitizers of the test programs. PARTS: a pattern of part names, to run a few only.
# JOBS: parts at once. PART_SECONDS: how long one may take.
cd "$(dirname "$0")/.." || exit 1
out=build/tests
mkdir -p "$out"
passed=0
failed=0

list() { # NAME FILE of every part; the long ones first
    for file in tests/sim/test_*.c tests/compile/run.sh tests/lint/run.sh tests/fuzz/run.sh \
        tests/tool/run.sh tests/crash/run.sh tests/examples/run.sh tests/unit/test_*.c tests/api/test_*.c; do
        [ -e "$file" ] || continue
        case "$file" in
        *.c) name=$(basename "$file" .c) ;;
        *) name=$(basename "$(dirname "$file")") ;;
        esac
        case "$name" in
        ${PARTS:-*}) echo "$name $file" ;;
        esac
    done
}

jobs=${JOBS:-$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)}
list=$out/list.$$
list >"$list"
xargs -P "$jobs" -L 1 sh tests/part.sh <"$list"
while read -r name file; do
    rc=$(cat "$out/$name.rc")
    line=$(tail -1 "$out/$name.log")
    p=$(echo "$line" | sed -n 's/^\([0-9]*\) passed, [0-9]* failed$/\1/p')
    f=$(echo "$line" | sed -n 's/^[0-9]* passed, \([0-9]*\) failed$/\1/p')
    if [ -z "$p" ] || { [ "$rc" -ne 0 ] && [ "$f" = 0 ]; }; then
        failed=$((failed + 1))
        echo "FAILED $name: exit $rc"
        tail -30 "$out/$name.log"
        continue
    fi
    passed=$((passed + p))
    failed=$((failed + f))
    echo "$name: $line"
    [ "$f" = 0 ] || cat "$out/$name.log"
done <"$list"
echo "$passed passed, $failed failed"
rm -f "$list"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
