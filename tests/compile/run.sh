#!/bin/sh
# The header compiles cleanly in every promised way, and shows no name without its prefix.
cd "$(dirname "$0")/../.." || exit 1
. tests/count.sh
out=build/tests/compile
mkdir -p "$out"
strict="-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror"

for std in c99 c11 gnu11; do
    step "compile $std" ${CC:-cc} -std=$std $strict -O1 -x c -DOPCOMMS_IMPLEMENTATION -c opcomms.h -o "$out/$std.o"
done
step "compile public part" ${CC:-cc} -std=c99 $strict -fsyntax-only -x c opcomms.h
if command -v g++ >/dev/null 2>&1; then
    step "compile c++11" g++ -std=c++11 $strict -O1 -x c++ -DOPCOMMS_IMPLEMENTATION -c opcomms.h -o "$out/cpp.o"
fi
step "only opcomms_ symbols" sh -c "! nm -g --defined-only '$out/c99.o' | grep -v ' T opcomms_'"
total
