#!/bin/sh
# Two operators in processes of their own exchange messages; a third, unlisted, is turned away.
# Exit 0 only if all of that really happened.
cd "$(dirname "$0")/.." || exit 1
. tests/operators.sh
chat=build/chat

for name in alice bob mallory; do make_key $chat $name; done
alice=$(hash_of alice)
bob=$(hash_of bob)
mallory=$(hash_of mallory)
printf '%s: 127.0.0.1\n%s: null\n' "$alice" "$bob" >"$work/allow.yaml"
printf '"%s:0": ["%s:0"]\n"%s:0": ["%s:0"]\n' "$alice" "$bob" "$bob" "$alice" >"$work/routes.yaml"
echo "alice   is $alice"
echo "bob     is $bob"
echo "mallory is $mallory, on nobody's list"

mkfifo "$work/bob.in" "$work/alice.in"
exec 3<>"$work/bob.in" 4<>"$work/alice.in"
start $chat bob
start $chat alice "$(whole_of bob)"

echo "alice -> bob: hello bob, this is alice"
echo "hello bob, this is alice" >&4
await "$work/bob.out" "hello bob, this is alice"
grep "says" "$work/bob.out" | sed 's/^/bob reads:   /'

echo "bob -> alice: and hello alice"
printf '/peer %s\nand hello alice\n' "$(whole_of alice)" >&3
await "$work/alice.out" "and hello alice"
grep "says" "$work/alice.out" | sed 's/^/alice reads: /'

echo "mallory -> alice: let me in"
printf '%s: null\n' "$alice" >"$work/mallory.yaml"
if echo "let me in" | $chat "$work/mallory.key" 127.0.0.1:0 "$work/mallory.yaml" \
    "$work/routes.yaml" "$(whole_of alice)" >"$work/mallory.out" 2>&1; then
    echo "demo: mallory was let in"
    exit 1
fi
grep "not sent" "$work/mallory.out" | sed 's/^/mallory is told: /'
grep -q "the allow list does not admit the peer" "$work/mallory.out" || exit 1
if grep -q "let me in" "$work/alice.out"; then exit 1; fi
echo "demo: two operators exchanged messages, the third was turned away"
