#!/bin/sh
# Processes that are killed at random instants: see crash.c. CRASHES, SEED: passed on. The default is
# for every run of the suite; a long one is CRASHES=500 PARTS=crash sh tests/run.sh
cd "$(dirname "$0")/../.." || exit 1
san=${SAN-address,undefined}
out=build/tests
mkdir -p "$out"
if ! ${CC:-cc} -std=gnu11 -g1 -O1 -Wall -Wextra \
    ${san:+-fsanitize=$san -fno-sanitize-recover=all} -I. -Itests tests/crash/crash.c \
    -lbearssl -lpthread -o "$out/crash"; then
    echo "does not build"
    exit 1
fi
exec timeout "${PART_SECONDS:-240}" "$out/crash"
