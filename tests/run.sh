#!/bin/sh
# The whole test suite. Each part is a program or a script that ends with "N passed, N failed";
# a part that does not build, crashes, hangs or prints no count is one failure. Ends with the sum.
# SAN: the sanitizers of the test programs. PARTS: a pattern of part names, to run a few only.
cd "$(dirname "$0")/.." || exit 1
out=build/tests
san=${SAN-address,undefined}
mkdir -p "$out"
passed=0
failed=0

count() { # name, exit code: reads the last line of the part's log
    line=$(tail -1 "$out/log")
    p=$(echo "$line" | sed -n 's/^\([0-9]*\) passed, [0-9]* failed$/\1/p')
    f=$(echo "$line" | sed -n 's/^[0-9]* passed, \([0-9]*\) failed$/\1/p')
    if [ -z "$p" ] || { [ "$2" -ne 0 ] && [ "$f" = 0 ]; }; then
        failed=$((failed + 1))
        echo "FAILED $1: exit $2"
        tail -30 "$out/log"
        return
    fi
    passed=$((passed + p))
    failed=$((failed + f))
    echo "$1: $line"
    [ "$f" = 0 ] || cat "$out/log"
}

wanted() {
    case "$1" in
    ${PARTS:-*}) return 0 ;;
    esac
    return 1
}

for src in tests/unit/test_*.c tests/api/test_*.c tests/sim/test_*.c; do
    [ -e "$src" ] || continue
    name=$(basename "$src" .c)
    wanted "$name" || continue
    if ${CC:-cc} -std=gnu11 -g -O1 -Wall -Wextra ${san:+-fsanitize=$san -fno-sanitize-recover=all} \
        -I. -Itests -Itests/unit -Itests/api -Itests/sim "$src" -lbearssl -lpthread -o "$out/$name" \
        >"$out/log" 2>&1; then
        timeout 200 "$out/$name" >"$out/log" 2>&1
        count "$name" $?
    else
        failed=$((failed + 1))
        echo "FAILED $name: does not build"
        head -20 "$out/log"
    fi
done
for script in tests/*/run.sh; do # but the benchmark, which is no test
    name=$(basename "$(dirname "$script")")
    [ "$name" != bench ] && wanted "$name" || continue
    timeout 280 sh "$script" >"$out/log" 2>&1
    count "$name" $?
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
