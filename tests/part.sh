#!/bin/sh
# part.sh NAME FILE: builds and runs one part of the suite; leaves its output in build/tests/NAME.log
# and its exit code in build/tests/NAME.rc. Called by run.sh. By clang when it is there, which builds
# with sanitizers in half of gcc's time.
out=build/tests
name=$1
san=${SAN-address,undefined}
log=$out/$name.log
opt=-O0 # compiling takes longer than running
case "$2" in
tests/sim/*) opt=-O1 ;;
tests/unit/*) opt="-O0 -DOPCOMMS_STATIC" ;; # what a test does not use is checked, and not translated
esac
case "$2" in
*.c)
    if ${CC:-$(command -v clang || echo cc)} -std=gnu11 -g1 $opt -Wall -Wextra ${san:+-fsanitize=$san -fno-sanitize-recover=all} \
        -I. -Itests -Itests/unit -Itests/api -Itests/sim "$2" -lbearssl -lpthread -o "$out/$name" \
        >"$log" 2>&1; then
        timeout "${PART_SECONDS:-250}" "$out/$name" >"$log" 2>&1
    else
        echo "does not build" >>"$log"
        false
    fi
    ;;
*) timeout "${PART_SECONDS:-250}" sh "$2" >"$log" 2>&1 ;;
esac
echo $? >"$out/$name.rc"
exit 0
