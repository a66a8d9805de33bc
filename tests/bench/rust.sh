# Sourced by run.sh: the same work from C to C and from Rust to Rust, every process on one processor,
# 64 B, in memory on both sides, three rounds by turns, medians.
rust=build/interop/target/release/interop-peer
on="taskset -c 0"

beside_rust() {
    if [ ! -x "$rust" ]; then # builds it, runs no case
        CASES=none sh tests/interop/interop.sh >"$out/log" 2>&1
    fi
    [ -x "$rust" ] || return 1
    static tests/bench/beside_rust.c "$out/beside" >"$out/log" 2>&1 || return 1
    : >"$out/beside.c"
    : >"$out/beside.each"
    : >"$out/beside.kept"
    for round in 1 2 3; do
        rm -f "$out/fifo"
        mkfifo "$out/fifo"
        $on "$out/beside" serve certs/rsa_1.key <"$out/fifo" >"$out/server" 2>"$out/server.kb" &
        c_server=$!
        exec 5>"$out/fifo"
        $on "$rust" serve --key certs/rsa_1.key --addr 127.0.0.1:0 --allow allow_all \
            --routes allow_all >"$out/rust.server" 2>&1 5>&- &
        r_server=$!
        n=0
        until grep -q "^I am" "$out/server" && grep -q "^I am" "$out/rust.server"; do
            n=$((n + 1))
            [ $n -lt 100 ] || break
            sleep 0.1
        done
        hash=$(sed -n 's/^I am \(.*\)@.*/\1/p' "$out/server")
        c_at=$(sed -n 's/^I am .*@//p' "$out/server")
        r_at=$(sed -n 's/^I am .*@//p' "$out/rust.server")
        $on "$out/beside" send certs/rsa_2.key "$hash" "$c_at" 20000 >>"$out/beside.c" 2>"$out/log"
        $on "$rust" bench --key certs/rsa_2.key --allow allow_all --addr "$r_at" --to "$hash" \
            --count 300 >>"$out/beside.each" 2>"$out/log"
        $on "$rust" bench --key certs/rsa_2.key --allow allow_all --addr "$r_at" --to "$hash" \
            --count 20000 --keep >>"$out/beside.kept" 2>"$out/log"
        rust_server_kb=$(sed -n 's/^VmHWM:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$r_server/status")
        exec 5>&-
        wait "$c_server"
        kill "$r_server"
        wait "$r_server" 2>/dev/null
    done
    [ "$(wc -l <"$out/beside.c")" = 3 ] && [ "$(grep -c per_second "$out/beside.each")" = 3 ] &&
        [ "$(grep -c per_second "$out/beside.kept")" = 3 ]
}

middle() { sort -n | sed -n 2p; }
field() { sed -n "s/.*\"$1\":\([0-9.]*\).*/\1/p" "$2" | middle; }

if beside_rust; then
    targets=$((targets + 4))
    rate=$(cut -d' ' -f1 "$out/beside.c" | middle)
    p50=$(cut -d' ' -f2 "$out/beside.c" | middle)
    kb=$(cut -d' ' -f3 "$out/beside.c" | middle)
    each=$(field per_second "$out/beside.each")
    kept=$(field per_second "$out/beside.kept")
    kept_p50=$(field p50_us "$out/beside.kept")
    rust_kb=$(field memory_kb "$out/beside.kept")
    server_kb=$(cat "$out/server.kb")
    row "send beside Rust, a connection each: messages/s" "$rate" "$each" \
        "$(ratio "$rate" "$each")" ">= 20" "$(awk -v a="$rate" -v b="$each" 'BEGIN { print b / a }')" 0.05
    row "send beside Rust, kept connection: messages/s" "$rate" "$kept" "$(ratio "$rate" "$kept")"
    row "  p50 us" "$p50" "$kept_p50" "$(ratio "$p50" "$kept_p50")" "<= 1" "$p50" "$kept_p50"
    row "  resident, sender: KB" "$kb" "$rust_kb" "$(ratio "$kb" "$rust_kb")" "<= 0.1" \
        "$(ratio "$kb" "$rust_kb")" 0.1
    row "  resident, receiver of 20 000 messages: KB" "$server_kb" "$rust_server_kb" \
        "$(ratio "$server_kb" "$rust_server_kb")"
    strip -o "$out/rust-stripped" "$rust"
    a=$(wc -c <"$out/beside" | tr -d ' ')
    b=$(wc -c <"$out/rust-stripped" | tr -d ' ')
    row "  size of the stripped program: bytes" "$a" "$b" "$(ratio "$a" "$b")" "<= 0.1" \
        "$(ratio "$a" "$b")" 0.1
else
    problem "beside Rust" "$out/log"
fi
