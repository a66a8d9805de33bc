# Sourced by scripts that run operators as processes of their own. Sets $work, a directory that is
# removed at the end together with every process started here.
work=$(mktemp -d) || exit 1
pids=
trap 'kill $pids 2>/dev/null; rm -rf "$work"' EXIT

await() { # file pattern: waits until the file shows it, 20 s at most
    n=0
    until grep -q "$2" "$1" 2>/dev/null; do
        n=$((n + 1))
        [ $n -lt 200 ] || { echo "no '$2' in $1; all there is:"; cat "$work"/*.out; exit 1; }
        sleep 0.1
    done
}

make_key() { # program name: the program makes the operator's key when it is started the first time
    printf '{}\n' >"$work/empty.yaml"
    "$1" "$work/$2.key" 127.0.0.1:0 "$work/empty.yaml" "$work/empty.yaml" \
        </dev/null >"$work/$2.out" 2>&1 || { cat "$work/$2.out"; exit 1; }
}

hash_of() { sed -n 's/^I am \(.*\)@.*/\1/p' "$work/$1.out"; }
whole_of() { sed -n 's/^I am //p' "$work/$1.out"; }

start() { # program name [peers]: its input is the fifo $work/NAME.in, its output $work/NAME.out
    program=$1
    name=$2
    shift 2
    : >"$work/$name.out" # what it said when its key was made must not be taken for what it says now
    "$program" "$work/$name.key" 127.0.0.1:0 "$work/allow.yaml" "$work/routes.yaml" "$@" \
        <"$work/$name.in" >"$work/$name.out" 2>&1 3>&- 4>&- &
    pids="$pids $!"
    await "$work/$name.out" "I am"
}
