#!/bin/sh
# Every example compiles by the cc line in its first comment, and does what it says; so does the
# program in the README.
cd "$(dirname "$0")/../.." || exit 1
. tests/count.sh
out=build/tests/examples
mkdir -p "$out"

compiles() { # file: by its own line, from its own directory
    line=$(sed -n 's/^ *\(cc .*-lpthread -o [a-z_]*\).*/\1/p' "$1" | head -1)
    [ -n "$line" ] && (cd "$(dirname "$1")" && $line) && mv "${1%.c}" "$out"
}
for f in examples/*.c; do
    step "$f compiles by its cc line" compiles "$f"
done
step "hello sends and receives" sh -c "'$out/hello' | grep -q 'says: hello'"
step "demo" make -s demo

event_loop_prints() (
    . tests/operators.sh
    make_key "$out/event_loop" loop
    make_key "$out/chat" friend
    printf '%s: null\n%s: null\n' "$(hash_of loop)" "$(hash_of friend)" >"$work/allow.yaml"
    echo allow_all >"$work/routes.yaml"
    mkfifo "$work/loop.in"
    exec 3<>"$work/loop.in"
    start "$out/event_loop" loop
    echo "hello loop" | "$out/chat" "$work/friend.key" 127.0.0.1:0 "$work/allow.yaml" \
        "$work/routes.yaml" "$(whole_of loop)" || exit 1
    await "$work/loop.out" "says: hello loop"
)
step "event_loop prints what it is sent" event_loop_prints

# The README's program, by the README's own commands.
readme_works() (
    . tests/operators.sh
    sed -n '/^```c$/,/^```$/p' README.md | sed '/^```/d' >"$work/operator.c"
    [ -s "$work/operator.c" ] || exit 1
    cp opcomms.h "$work"
    line=$(sed -n 's/^ *\(cc operator\.c .*\)$/\1/p' README.md | head -1)
    (cd "$work" && $line) || exit 1
    for name in a b; do
        openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$work/$name.key" 2>&1 || exit 1
    done
    echo allow_all >"$work/allow.yaml"
    echo allow_all >"$work/routes.yaml"
    (cd "$work" && exec ./operator b.key 127.0.0.1:0 >b.out 2>&1) &
    pids="$pids $!"
    await "$work/b.out" "^I am"
    (cd "$work" && ./operator a.key 127.0.0.1:0 $(sed -n 's/^I am //p' b.out) "hello b") || exit 1
    await "$work/b.out" "hello b"
)
step "the README's program works as shown" readme_works
total
