#!/bin/sh
# Two operators in processes of their own exchange messages; a third, unlisted, is turned away.
# Exit 0 only if all of that really happened.
cd "$(dirname "$0")/.." || exit 1
chat=build/chat
work=$(mktemp -d) || exit 1
pids=
trap 'kill $pids 2>/dev/null; rm -rf "$work"' EXIT

await() { # file pattern: waits until the file shows it, 20 s at most
    n=0
    until grep -q "$2" "$1" 2>/dev/null; do
        n=$((n + 1))
        [ $n -lt 200 ] || { echo "demo: no '$2' in $1"; cat "$1"; exit 1; }
        sleep 0.1
    done
}

start() { # name, then the peers it talks to; its input is the fifo $work/name.in
    name=$1
    shift
    "$chat" "$work/$name.key" 127.0.0.1:0 "$work/allow.yaml" "$work/routes.yaml" "$@" \
        <"$work/$name.in" >"$work/$name.out" 2>&1 3>&- 4>&- &
    pids="$pids $!"
    await "$work/$name.out" "I am"
}

# Keys first: the lists name their hashes.
printf '{}\n' >"$work/allow.yaml"
printf '{}\n' >"$work/routes.yaml"
for name in alice bob mallory; do
    "$chat" "$work/$name.key" 127.0.0.1:0 "$work/allow.yaml" "$work/routes.yaml" \
        </dev/null >"$work/$name.out" || exit 1
done
hash() { sed -n 's/^I am \(.*\)@.*/\1/p' "$work/$1.out"; }
alice=$(hash alice)
bob=$(hash bob)
mallory=$(hash mallory)
printf '%s: 127.0.0.1\n%s: null\n' "$alice" "$bob" >"$work/allow.yaml"
printf '"%s:0": ["%s:0"]\n"%s:0": ["%s:0"]\n' "$alice" "$bob" "$bob" "$alice" >"$work/routes.yaml"
echo "alice   is $alice"
echo "bob     is $bob"
echo "mallory is $mallory, on nobody's list"

mkfifo "$work/bob.in" "$work/alice.in"
exec 3<>"$work/bob.in" 4<>"$work/alice.in"
start bob
start alice "$(sed -n 's/^I am //p' "$work/bob.out")"
alice_at=$(sed -n 's/^I am //p' "$work/alice.out")

echo "alice -> bob: hello bob, this is alice"
echo "hello bob, this is alice" >&4
await "$work/bob.out" "hello bob, this is alice"
grep "says" "$work/bob.out" | sed 's/^/bob reads:   /'

echo "bob -> alice: and hello alice"
printf '/peer %s\nand hello alice\n' "$alice_at" >&3
await "$work/alice.out" "and hello alice"
grep "says" "$work/alice.out" | sed 's/^/alice reads: /'

echo "mallory -> alice: let me in"
printf '%s: null\n' "$alice" >"$work/mallory.yaml"
if echo "let me in" | "$chat" "$work/mallory.key" 127.0.0.1:0 "$work/mallory.yaml" \
    "$work/routes.yaml" "$alice_at" >"$work/mallory.out" 2>&1; then
    echo "demo: mallory was let in"
    exit 1
fi
grep "not sent" "$work/mallory.out" | sed 's/^/mallory is told: /'
grep -q "not sent" "$work/mallory.out" || exit 1
if grep -q "let me in" "$work/alice.out"; then exit 1; fi
echo "demo: two operators exchanged messages, the third was turned away"
