#!/bin/sh
# Every example compiles by the cc line in its first comment, and does what it says; so do the
# programs in the README.
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

# The README's programs, by the README's own commands.
readme_program() { # number name: into $work, with two keys
    awk -v n="$1" '/^```c$/ { k++; on = 1; next } /^```$/ { on = 0 } on && k == n' README.md \
        >"$work/$2.c"
    [ -s "$work/$2.c" ] || exit 1
    cp opcomms.h "$work"
    line=$(sed -n "s/^ *\\(cc $2\\.c .*\\)\$/\\1/p" README.md | head -1)
    (cd "$work" && $line) || exit 1
    for name in a b; do
        openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$work/$name.key" 2>&1 || exit 1
    done
}
readme_works() (
    . tests/operators.sh
    readme_program 1 operator
    echo allow_all >"$work/allow.yaml"
    echo allow_all >"$work/routes.yaml"
    (cd "$work" && exec ./operator b.key 127.0.0.1:0 >b.out 2>&1) &
    pids="$pids $!"
    await "$work/b.out" "^I am"
    (cd "$work" && ./operator a.key 127.0.0.1:0 $(sed -n 's/^I am //p' b.out) "hello b") || exit 1
    await "$work/b.out" "hello b"
)
step "the README's program works as shown" readme_works

courier() ( # OUT ARGUMENT...: becomes the program
    cd "$work" && courier_out=$1 && shift && exec ./courier "$@" >"$courier_out" 2>&1
)
readme_delivers() (
    . tests/operators.sh
    readme_program 2 courier
    port=$(python3 -c 'import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])')
    printf 'address: 127.0.0.1:0\nkey_file: a.key\nlog_path: a.log\n' >"$work/a.yaml"
    printf 'address: 127.0.0.1:%s\nkey_file: b.key\nlog_path: b.log\n' "$port" >"$work/b.yaml"
    printf 'allow: allow_all\nroutes: allow_all\n' | tee -a "$work/a.yaml" >>"$work/b.yaml"
    b=$(openssl pkey -in "$work/b.key" -pubout -outform DER | sha256sum | cut -c1-64)
    courier a.out a.yaml "$b:0" "127.0.0.1:$port" "hello b" &
    a=$!
    await "$work/a.out" "^queued: "
    kill -9 $a # nobody listened yet
    courier b.out b.yaml &
    pids="$pids $!"
    courier a2.out a.yaml &
    pids="$pids $!"
    await "$work/b.out" "hello b"
)
step "the README's second program delivers what it queued before it was killed" readme_delivers
total
