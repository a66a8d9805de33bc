#!/bin/sh
# delivery.sh [SVG [TABLE]]: peers of this library, one process a side, beside libzmq with CURVE and
# the raw limits of the same minute, in interleaved rounds. A missed target does not fail it; a run
# that breaks does. Writes a chart and a table in Markdown.
# BENCH_DIR: where the files lie; a memory file system is refused for durable figures.
# BENCH_ROUNDS, BENCH_SECONDS: how many rounds (5), how long a rate is counted (0.4).
cd "$(dirname "$0")/../.." || exit 1
out=build/bench/delivery
data=${BENCH_DIR:-$out}/files
svg=${1:-$out/delivery.svg}
table=${2:-$out/delivery.md}
rounds=${BENCH_ROUNDS:-5}
seconds=${BENCH_SECONDS:-0.4}
cc="${CC:-cc} -std=gnu11 ${CFLAGS:--O2} -Wall -Wextra -I. -Itests/bench"
passed=0
failed=0
rm -rf "$out"
mkdir -p "$out" "$data" || exit 1
: >"$out/values"

built() { # name, options
    b_name=$1
    shift
    if $cc tests/bench/"$b_name".c "$@" -o "$out/$b_name" >"$out/log" 2>&1; then return 0; fi
    echo "FAILED to build $b_name"
    tail -5 "$out/log"
    failed=$((failed + 1))
    return 1
}

run() { # program, arguments: its figures are those of this round
    [ -x "$out/$1" ] || return 1
    r_name="$*"
    r_program=$1
    shift
    if timeout 60 "$out/$r_program" "$@" >"$out/log" 2>"$out/log.err"; then
        sed "s/^/$round /" "$out/log" >>"$out/values"
        passed=$((passed + 1))
        return 0
    fi
    echo "FAILED round $round: $r_name"
    tail -3 "$out/log.err"
    failed=$((failed + 1))
    return 1
}

sh tests/deps.sh libbearssl-dev:/usr/include/bearssl.h libzmq3-dev:/usr/include/zmq.h || exit 1
there=-DDELIVERY # declared and defined
for name in enqueue receive_batch ack_batch commit; do
    [ "$(grep -c "^OPCOMMS_API opcomms_err opcomms_$name(" opcomms.h)" = 2 ] || there=
done
built raw -lbearssl -lpthread
built zmq -lzmq
built delivery $there -lbearssl -lpthread
fs=$(df -PT "$data" | awk 'NR == 2 { print $2 }')
case "$fs" in
tmpfs | ramfs) durable= ;;
*) durable=yes ;;
esac

round=0
[ -n "$durable" ] && run delivery make "$data" 1000
while [ "$round" -lt "$rounds" ]; do
    round=$((round + 1))
    for size in 64 1024 65536; do
        run raw tls "$size" "$seconds"
        run zmq flow "$size" "$seconds"
        [ -z "$there" ] || run delivery flow memory "$size" "$seconds" 16384 "$data"
        run zmq trip "$size" 500
        run delivery trip pump "$size" "$data"
        run delivery trip thread "$size" "$data"
        [ -n "$durable" ] || continue
        for window in 16384 1024; do
            [ "$size.$window" != 65536.16384 ] || continue # 1 GiB under way
            run raw durable "$size" "$seconds" "$window" "$data"
            run zmq durable "$size" "$seconds" "$window" "$data"
            [ -z "$there" ] || run delivery flow receiver "$size" "$seconds" "$window" "$data"
        done
        window=16384
        [ "$size" != 65536 ] || window=1024
        [ -z "$there" ] || run delivery flow both "$size" "$seconds" "$window" "$data"
        run raw append "$size" 0.1 "$data" 1
    done
    for size in 64 1024 16384; do run raw aead "$size" 0.1; done
    [ -n "$durable" ] || continue
    run raw append 64 0.2 "$data" 1024
    run raw append 64 0.2 "$data" 16384
    run raw append 1024 0.2 "$data" 1024
    for size in 64 1024; do
        run delivery trip durable "$size" "$data"
        run delivery trip durable_pump "$size" "$data"
    done
    [ -z "$there" ] || run delivery enqueue 64 "$data"
    run delivery open "$data"
done
rm -rf "$data"

cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)
about="${cpu:-unknown processor}, $fs"
[ -n "$durable" ] || about="$about: no durable figures"
awk -f tests/bench/figures.awk -f tests/bench/table.awk "$out/values" >"$out/rows"
awk -v about="$about." -f tests/bench/figures.awk -f tests/bench/chart.awk "$out/values" >"$svg"
{
    echo "Medians of $rounds interleaved rounds, one process a side, on $about."
    echo
    echo "| | opcomms | libzmq CURVE | raw limit | ratio | target | |"
    echo "|---|--:|--:|--:|--:|---|---|"
    sed 's/^  /\&nbsp; /; s/|/ | /g; s/^/| /; s/$/ |/' "$out/rows"
} >"$table"
echo "medians of $rounds rounds, $about"
awk -F'|' 'BEGIN {
    f = "%-58s %18s %18s %18s %6s %15s %s\n"
    printf f, "", "opcomms", "libzmq CURVE", "raw", "ratio", "target", ""
}
{ printf f, $1, $2, $3, $4, $5, $6, $7 }' "$out/rows"
[ -n "$there" ] || echo "opcomms_enqueue is not there yet: its figures are not measured"
reached=$(grep -c '|reached$' "$out/rows")
echo "$reached of $(grep -c -E '\|(NOT reached|reached|not measured)$' "$out/rows") targets reached"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
