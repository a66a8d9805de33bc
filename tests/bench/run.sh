#!/bin/sh
# Figures next to the raw limit of the same minute. Other work on the machine moves both, so only
# ratios mean something. A missed target does not fail it; a figure that cannot be had does.
# BENCH_DIR: where the files lie (default build/bench/data); a memory file system is refused for the
# durable figures.
cd "$(dirname "$0")/../.." || exit 1
out=build/bench
data=${BENCH_DIR:-$out/data}
targets=9
broken=0
rm -rf "$out"
mkdir -p "$out" "$data" || exit 1
: >"$out/rows"

problem() { # name, log of what went wrong
    broken=$((broken + 1))
    echo "FAILED $1"
    tail -5 "$2"
}

row() { # name, ours, raw, ratio (or nothing), target, value to compare, limit
    verdict=
    [ -z "$7" ] || verdict=$(awk -v a="$6" -v b="$7" 'BEGIN { print a <= b ? "yes" : "NO" }')
    echo "$1|$2|$3|$4|$5|$verdict" >>"$out/rows"
}

ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f", a / b }'; }

static() { # source, program, further options: static with musl, as small as it gets
    source=$1
    program=$2
    shift 2
    musl-gcc -Os -s -static -I. "$@" -idirafter /usr/include "$source" -x none \
        "$(${CC:-cc} -print-file-name=libbearssl.a)" -Wl,--defsym=__memcpy_chk=memcpy \
        -Wl,--defsym=__memset_chk=memset -Wl,--defsym=__memmove_chk=memmove -o "$program"
}

# Times.
if ${CC:-cc} -std=gnu11 ${CFLAGS:--O2} -Wall -Wextra -I. -Itests/bench tests/bench/bench.c \
    -lbearssl -lpthread -o "$out/bench" >"$out/log" 2>&1 &&
    timeout 100 "$out/bench" "$data" >>"$out/rows" 2>"$out/log"; then :; else
    problem "times" "$out/log"
fi

# Memory.
if static tests/bench/memory.c "$out/memory" >"$out/log" 2>&1 &&
    timeout 20 "$out/memory" in "$data" 32 >"$out/in" 2>"$out/log" &&
    timeout 20 "$out/memory" out "$data" 32 >"$out/out" 2>"$out/log"; then
    read -r rss0 pss0 rss pss in_rss in_pss <"$out/in"
    read -r _ _ _ _ out_rss out_pss <"$out/out"
    row "idle peer, static musl: RSS / PSS KB; raw: before it" "$rss / $pss" "$rss0 / $pss0" \
        "" "<= 1024" "$rss" 1024
    row "  per connection accepted: RSS / PSS KB" "$in_rss / $in_pss" "" "" "<= 40" "$in_rss" 40
    row "  per connection opened: RSS / PSS KB" "$out_rss / $out_pss" "" "" "<= 40" "$out_rss" 40
else
    problem "memory" "$out/log"
fi

# Size.
if static examples/hello.c "$out/hello-static" >"$out/log" 2>&1 &&
    static tests/bench/bare.h "$out/bare-static" -x c -DBENCH_BARE_MAIN >"$out/log" 2>&1 &&
    ${CC:-cc} -Os -s -I. examples/hello.c -lbearssl -lpthread -o "$out/hello" >"$out/log" 2>&1 &&
    ${CC:-cc} -Os -s -x c -DBENCH_BARE_MAIN tests/bench/bare.h -x none -lbearssl -o "$out/bare" \
        >"$out/log" 2>&1; then
    size() { # name, program, bare program
        a=$(wc -c <"$2" | tr -d ' ')
        b=$(wc -c <"$3" | tr -d ' ')
        row "$1, stripped; raw: bare pair: bytes" "$a" "$b" "$(ratio "$a" "$b")"
    }
    size "hello.c, static musl" "$out/hello-static" "$out/bare-static"
    size "hello.c, dynamic" "$out/hello" "$out/bare"
else
    problem "size" "$out/log"
fi

# The Rust system's way, on the independent peer of the interoperation tests.
. tests/bench/rust.sh

awk -F'|' 'BEGIN {
    f = "%-56s %15s %15s %7s %9s %8s\n"
    printf f, "", "ours", "raw", "ratio", "target", "reached"
}
{ printf f, $1, $2, $3, $4, $5, $6 }' "$out/rows"
rm -rf "$data"
reached=$(grep -c '|yes$' "$out/rows")
[ "$broken" = 0 ] || echo "$broken parts could not be measured"
echo "$reached of $targets targets reached"
[ "$broken" = 0 ]
