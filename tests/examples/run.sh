#!/bin/sh
# Every example compiles by the cc line in its first comment, and runs; the demo does what it shows.
cd "$(dirname "$0")/../.." || exit 1
. tests/count.sh

for f in examples/*.c; do
    line=$(sed -n "s/^ *\(cc .*-lpthread -o [a-z_]*\).*/\1/p" "$f" | head -1)
    step "$f compiles by its cc line" sh -c "[ -n '$line' ] && cd examples && $line && rm -f $(basename "$f" .c)"
done
step "demo" make -s demo
total
