#!/bin/sh
# Builds and runs every test program under sanitizers, adds up their counts, and ends with
# "N passed, N failed" alone on a line. A program that does not build, crashes or prints no count
# is one failure.
cd "$(dirname "$0")/.." || exit 1
out=build/tests
mkdir -p "$out"
passed=0
failed=0
strict="-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror"

step() { # name, command...: one pass or one failure
    name=$1
    shift
    if "$@" >"$out/log" 2>&1; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED $name"
        cat "$out/log"
    fi
}

for std in c99 c11 gnu11; do
    step "compile $std" ${CC:-cc} -std=$std $strict -O1 -x c -DOPCOMMS_IMPLEMENTATION -c opcomms.h -o "$out/$std.o"
done
step "compile public part" ${CC:-cc} -std=c99 $strict -fsyntax-only -x c opcomms.h
if command -v g++ >/dev/null 2>&1; then
    step "compile c++11" g++ -std=c++11 $strict -O1 -x c++ -DOPCOMMS_IMPLEMENTATION -c opcomms.h -o "$out/cpp.o"
fi
step "only opcomms_ symbols" sh -c "! nm -g --defined-only '$out/c99.o' | grep -v ' T opcomms_'"

step "examples by the cc line in their first comment" sh -c 'for f in examples/*.c; do
    line=$(sed -n "s/^ *\(cc .*-lpthread -o [a-z_]*\).*/\1/p" "$f" | head -1)
    [ -n "$line" ] || exit 1
    (cd examples && $line && rm -f "$(basename "$f" .c)") || exit 1
done'
step "demo" make -s demo
for src in tests/unit/test_*.c tests/api/test_*.c tests/sim/test_*.c; do
    [ -e "$src" ] || continue
    name=$(basename "$src" .c)
    if ! ${CC:-cc} -std=gnu11 -g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -I. -Itests \
        -Itests/unit -Itests/sim "$src" -lbearssl -lpthread -o "$out/$name" 2>"$out/log"; then
        failed=$((failed + 1))
        echo "FAILED $name: does not build"
        head -20 "$out/log"
        continue
    fi
    timeout 120 "$out/$name" >"$out/log" 2>&1
    rc=$?
    line=$(tail -1 "$out/log")
    p=$(echo "$line" | sed -n 's/^\([0-9]*\) passed, [0-9]* failed$/\1/p')
    f=$(echo "$line" | sed -n 's/^[0-9]* passed, \([0-9]*\) failed$/\1/p')
    if [ -z "$p" ] || { [ $rc -ne 0 ] && [ "$f" = 0 ]; }; then
        failed=$((failed + 1))
        echo "FAILED $name: exit $rc"
        tail -30 "$out/log"
        continue
    fi
    passed=$((passed + p))
    failed=$((failed + f))
    echo "$name: $line"
    [ "$f" = 0 ] || cat "$out/log"
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
