#!/bin/sh
# The operators' tool, by running it: every command, its text and its JSON, its exit codes, bad
# input, standard input and files, the outbox, a mailbox moved between two servers, a damaged log.
cd "$(dirname "$0")/../.." || exit 1
. tests/count.sh
. tests/operators.sh
mkdir -p build/tests/tool
tool=$PWD/build/tests/tool/opcomms
cc_out=$(cc -g -O1 -Wall -Wextra -fsanitize=address,undefined -fno-sanitize-recover=all \
    examples/opcomms.c -I. -lbearssl -lpthread -o "$tool" 2>&1) || { echo "$cc_out"; exit 1; }
[ -z "$cc_out" ] || { echo "$cc_out"; exit 1; }
cd "$work" || exit 1
unset OPCOMMS_PASSWORD_FILE OPCOMMS_NEW_PASSWORD_FILE

# A test is a function; what it started ends with it.
scene() ( # name function
    pids=
    trap 'kill $pids 2>/dev/null' EXIT
    "$1"
)
claim() { step "$1" scene "$2"; }

# run CODE ARGUMENT...: the tool ends with that code; its output is in ./out and ./err.
run() {
    want=$1
    shift
    timeout 60 "$tool" "$@" >out 2>err
    code=$?
    [ "$code" = "$want" ] || { echo "opcomms $*: exit $code, not $want"; cat out err; return 1; }
}
run_pw() ( # FILE CODE ARGUMENT...: with the password in FILE
    OPCOMMS_PASSWORD_FILE=$1
    export OPCOMMS_PASSWORD_FILE
    shift
    run "$@"
)
shows() { # PATTERN...: each is in the output
    for pattern; do
        grep -qaE -e "$pattern" out || { echo "no '$pattern' in:"; cat out err; return 1; }
    done
}
says() { grep -qaE -e "$1" err || { echo "no '$1' on standard error:"; cat out err; return 1; }; }
json() { # CONDITION: every line of the output is one object: `all`, the last one `j`
    python3 - "$1" out <<'P' || { cat out err; return 1; }
import json, sys
lines = open(sys.argv[2], encoding="utf-8").read().splitlines()
all_ = [json.loads(l) for l in lines]
if not all_ or not isinstance(all_[-1], dict):
    sys.exit("no object")
if not eval(sys.argv[1].replace("\n", " "), {"j": all_[-1], "all": all_}):
    sys.exit("not true: " + sys.argv[1])
P
}
free_port() { # nobody listens there: it was ours a moment ago
    python3 -c 'import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])'
}
serve() { # name option...: in the background, until it listens; sets $server and $at
    s_name=$1
    shift
    rm -f "$s_name.out"
    "$tool" serve --key "$s_name.key" --listen 127.0.0.1:0 --allow allow.yaml \
        --routes routes.yaml --log "$s_name.log" "$@" >"$s_name.out" 2>"$s_name.err" &
    server=$!
    pids="$pids $server"
    await "$s_name.out" "I am\|listening"
    at=$(sed -n 's/^I am //p; s/.*"hash":"\([^"]*\)","address":"\([^"]*\)".*/\1@\2/p' \
        "$s_name.out")
}
ends() { kill -TERM "$1" && wait "$1"; } # a server, with success

# ---- help and wrong use -------------------------------------------------------------------------

each() { # COMMAND...: runs it with every command of the tool as last argument
    for c in keygen passwd hash cert serve send recv ping "allow list" "allow add" "allow remove" \
        "allow check" "route list" "route add" "route remove" "route check" "log verify" \
        "log dump" "log stats" "log repair" drain enqueue deliver outbox cancel dead requeue drop \
        accept-rollback; do
        "$@" "$c" || { echo "$c"; return 1; }
    done
}
listed() { grep -qE "^  $1 " out; }
explained() {
    run 0 $1 --help && shows "^usage: opcomms $1" "^Example:" "^  opcomms $1 " "Exit codes" "--json"
}
help_lists() {
    run 0 --help && shows "Exit codes" "OPCOMMS_PASSWORD_FILE" && each listed &&
        run 0 --version && shows "^opcomms [0-9]"
}
help_explains() { each explained; }
wrong_use() {
    run 2 && says "--help explains" && run 2 nothing && says "no such command" &&
        run 2 allow && run 2 log nothing &&
        run 2 keygen && says "missing" && run 2 keygen a b && says "too many" &&
        run 2 keygen a --nothing && says "no such option" &&
        run 2 keygen a --key x && says "no such option of this command" &&
        run 2 keygen a --type && says "value is missing" &&
        run 2 keygen a --json=1 && says "takes no value" &&
        run 2 keygen a --type dsa && run 2 cert && run 2 cert a --ca-cert &&
        run 2 send hello && run 2 send --key a --to "$nobody" hello &&
        run 2 send --key a --to "$nobody@" hello && run 2 send --key a --to "x@127.0.0.1:1" x &&
        run 2 send --key a --to "$nobody:256@127.0.0.1:1" hello &&
        run 2 send --key a --to "$nobody@127.0.0.1:1" --lines hello &&
        run 2 send --key a --server "$nobody@127.0.0.1:1" --to "$nobody@127.0.0.1:1" hello &&
        run 2 recv --key a && run 2 recv --key a --log b --server "$nobody@127.0.0.1:1" &&
        run 2 recv --key a --log b --id 256 && says "not a number in range" &&
        run 2 recv --key a --log b --id 1x && run 2 recv --key a --log b --id "" &&
        run 2 ping "$nobody@127.0.0.1:1" && run 2 ping --key a "$nobody" &&
        run 2 serve --key a && run 2 drain --key a && run 2 drain --key a --from x &&
        run 2 allow add f && run 2 allow add f x --all && run 2 allow check f x &&
        run 2 route add f && run 2 route add f "$nobody:0" &&
        run 2 route add f "$nobody" "$nobody:0" && run 2 route add f xyz:0 "$nobody:0" &&
        run 2 route remove f && run 2 route check f x y && run 2 log repair f &&
        run 2 passwd && run 2 enqueue --key a hi && run 2 enqueue --key a --to x hi &&
        run 2 enqueue --key a --to "$nobody@" hi && run 2 enqueue --key a --to "$nobody" hi --lines &&
        run 2 deliver --key a --log b && says "allow" && run 2 outbox --key a && says "log" &&
        run 2 cancel --key a --log b && run 2 cancel --key a --log b 1x && says "not a number" &&
        run 2 drop --key a --log b "" && run 2 requeue --key a --log b -- -1 &&
        run 2 accept-rollback --key a --log b x &&
        [ ! -e f ] && [ ! -e a ] && [ ! -e b ]
}

# ---- keys ---------------------------------------------------------------------------------------

keygen() {
    run 0 keygen alice.key && shows '^[0-9a-f]{64}$' && [ "$(stat -c %a alice.key)" = 600 ] &&
        cp alice.key before && run 10 keygen alice.key && cmp alice.key before &&
        run 10 keygen alice.key --json && json 'j["ok"] is False and j["exit"] == 10' &&
        run 0 keygen bob.key --type rsa2048 --json && json 'j["ok"] and len(j["hash"]) == 64' &&
        run 0 keygen carol.key && run 13 keygen nowhere/x.key
}
hash_is_right() {
    right=$(openssl pkey -in alice.key -pubout -outform DER | sha256sum | cut -c1-64)
    run 0 hash alice.key && [ "$(cat out)" = "$right" ] &&
        run 0 cert alice.key && cp out alice.pem && run 0 hash alice.pem --json &&
        json "j['hash'] == '$right' and j['of'] == 'certificate'" &&
        run 0 hash alice.key bob.key && [ "$(wc -l <out)" = 2 ] && shows "^$right  alice.key" &&
        run 13 hash missing.key && echo junk >junk && run 11 hash junk && says "PEM" &&
        run 11 hash junk --json && json 'j["error"] == "OPCOMMS_E_NO_PEM"'
}
cert_is_one() {
    run 0 cert bob.key --out bob.pem && openssl x509 -in bob.pem -noout &&
        run 10 cert bob.key --out bob.pem && run 0 cert --ca-cert && cp out ca.pem &&
        openssl x509 -in ca.pem -noout && run 0 cert bob.key --json &&
        json '"BEGIN CERTIFICATE" in j["pem"]' && run 0 cert bob.key --ca bob.key &&
        run 11 cert junk
}
password_from_a_file() {
    echo secret >pw
    echo wrong >pw2
    run_pw pw 0 keygen locked.key --password && cp out locked.hash &&
        grep -q "BEGIN ENCRYPTED" locked.key && run_pw pw 0 hash locked.key &&
        cmp out locked.hash && run_pw pw2 11 hash locked.key && run_pw none 11 hash locked.key &&
        run_pw none 11 keygen other.key --password && [ ! -e other.key ] &&
        openssl pkey -in locked.key -passin file:pw -noout
}
passwd_changes_it() {
    cp locked.key other.key
    echo better >pw3
    OPCOMMS_NEW_PASSWORD_FILE=$PWD/pw3
    export OPCOMMS_NEW_PASSWORD_FILE
    cp other.key before && run_pw pw2 11 passwd other.key && cmp other.key before &&
        run_pw pw 0 passwd other.key --json && json 'j["ok"] and j["encrypted"]' &&
        run_pw pw 11 hash other.key && run_pw pw3 0 hash other.key && cmp out locked.hash &&
        run_pw pw3 0 passwd other.key --none && run 0 hash other.key && cmp out locked.hash &&
        run 0 passwd other.key && run_pw pw3 0 hash other.key && cmp out locked.hash &&
        OPCOMMS_NEW_PASSWORD_FILE=none run_pw pw3 11 passwd other.key &&
        run_pw pw3 0 hash other.key && run 13 passwd missing.key && [ ! -e missing.key ] &&
        openssl pkey -in other.key -passin file:pw3 -noout
}
no_terminal_no_password() {
    setsid -w timeout 60 "$tool" hash locked.key </dev/null >out 2>err
    [ $? = 11 ]
}
password_is_typed() {
    python3 - "$tool" locked.key "$(cat locked.hash)" <<'P'
import os, pty, select, sys, time
pid, fd = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], [sys.argv[1], "hash", sys.argv[2]])
seen = b""
def until(what):
    global seen
    end = time.time() + 30
    while what not in seen and time.time() < end:
        if select.select([fd], [], [], 1)[0]:
            try:
                more = os.read(fd, 4096)
            except OSError:
                return
            seen += more
until(b"Password of the key: ")
time.sleep(0)
while True: # it reads once echo is off, and forgets what was typed before
    import termios
    if not termios.tcgetattr(fd)[3] & termios.ECHO:
        break
os.write(fd, b"secreX\x7ft\r")
until(sys.argv[3].encode())
code = os.waitpid(pid, 0)[1]
assert sys.argv[3].encode() in seen and b"secre" not in seen and code == 0, (seen, code)
P
}

# ---- lists --------------------------------------------------------------------------------------

allow_list_is_kept() {
    run 0 allow add allow.yaml "$alice" --ip 127.0.0.1 && run 0 allow add allow.yaml bob.key &&
        run 0 allow add allow.yaml alice.pem "$carol" --json &&
        json 'j["entries"] == 3 and not j["allow_all"]' && run 0 allow list allow.yaml &&
        shows "^$alice  any" "^$bob  any" "^$carol  any" &&
        run 0 allow add allow.yaml "$alice" --ip 127.0.0.1 && run 0 allow list allow.yaml --json &&
        json 'len(all) == 3' && shows "\"$alice\",\"ip\":\"127.0.0.1\"" && cp allow.yaml before &&
        run 11 allow add allow.yaml junk && run 13 allow add allow.yaml missing &&
        run 2 allow add allow.yaml "$alice" --ip somewhere && cmp allow.yaml before &&
        run 13 allow remove allow.yaml "$alice" "$nobody" && cmp allow.yaml before &&
        run 0 allow remove allow.yaml "$carol" && run 0 allow list allow.yaml &&
        [ "$(wc -l <out)" = 2 ] && run 13 allow list missing.yaml
}
allow_check_says_why() {
    run 0 allow check allow.yaml "$alice" && shows "^yes: .*from 127.0.0.1 only" &&
        run 0 allow check allow.yaml "$alice" --ip 127.0.0.1 && shows "^yes" &&
        run 4 allow check allow.yaml "$alice" --ip 127.0.0.2 && shows "^no: .*not from 127.0.0.2" &&
        run 0 allow check allow.yaml "$bob" --ip ::1 && shows "any address" &&
        run 4 allow check allow.yaml "$carol" && shows "^no: .*does not name" &&
        run 4 allow check allow.yaml "$carol" --json &&
        json 'j["ok"] is False and j["exit"] == 4' && run 2 allow check allow.yaml "$bob" --ip here
}
allow_all_hides_nothing() {
    run 0 allow add all.yaml --all && [ "$(cat all.yaml)" = allow_all ] &&
        run 0 allow check all.yaml "$carol" && shows "allow_all" && run 0 allow list all.yaml &&
        shows "^allow_all" && run 11 allow add all.yaml "$bob" &&
        run 11 allow remove all.yaml "$bob" && run 0 allow remove all.yaml --all &&
        run 4 allow check all.yaml "$carol"
}
bad_lists_name_the_line() {
    printf '# list\n%s: here\n' "$alice" >bad.yaml
    run 11 allow list bad.yaml && says "line 2" && run 11 allow list bad.yaml --json &&
        json 'j["line"] == 2 and j["error"] == "OPCOMMS_E_SYNTAX"' &&
        run 11 allow add bad.yaml "$bob" && run 11 route list bad.yaml && grep -q "# list" bad.yaml
}
routes_are_kept() {
    run 0 route add routes.yaml "$alice:0" "$bob:~" "$carol:1" &&
        run 0 route add routes.yaml "$bob:~" "$alice:0" --json && json 'j["entries"] == 3' &&
        run 0 route list routes.yaml && shows "^$alice:0 -> $bob:~" "^$alice:0 -> $carol:1" &&
        run 0 route list routes.yaml --json && json 'len(all) == 3' &&
        run 13 route remove routes.yaml "$alice:0" "$carol:2" &&
        run 0 route remove routes.yaml "$alice:0" "$carol:1" &&
        run 0 route add routes.yaml "$carol:1" "$carol:1" "$bob:0" &&
        run 0 route remove routes.yaml --to "$carol:1" &&
        run 0 route remove routes.yaml "$carol:1" && run 13 route remove routes.yaml "$carol:1" &&
        run 0 route list routes.yaml && [ "$(wc -l <out)" = 2 ]
}
route_check_says_why() {
    run 0 route check routes.yaml "$alice" "$bob:7" && shows "^yes: the rule $alice:0 -> $bob:~" &&
        run 5 route check routes.yaml "$alice:1" "$bob" && shows "^no: no rule begins" &&
        run 5 route check routes.yaml "$alice" "$carol" && shows "none leads there" &&
        run 0 route check routes.yaml "$alice" "$bob" --allow allow.yaml --ip 127.0.0.1 &&
        shows "yes: .*allow list admits it from 127" &&
        run 4 route check routes.yaml "$alice" "$bob" --allow allow.yaml --ip 127.0.0.2 &&
        shows "cannot connect" &&
        run 4 route check routes.yaml "$carol" "$bob" --allow allow.yaml --json &&
        json 'j["exit"] == 4' && run 0 route add all.routes --all &&
        run 0 route check all.routes "$carol" "$bob" && shows "allow_all" &&
        run 11 route add all.routes "$bob:0" "$bob:0" && run 11 route remove all.routes "$bob:0" &&
        run 0 route remove all.routes --all && run 5 route check all.routes "$carol" "$bob"
}

# ---- messages -----------------------------------------------------------------------------------

messages_arrive() {
    serve bob --count 6
    run 0 ping --key alice.key "$at" && shows "answers in" &&
        run 0 ping --key alice.key "$at" --count 2 --json && json 'len(all) == 2 and j["us"] > 0' &&
        run 0 send --key alice.key --to "$at" "hello bob" "second" && shows "^sent 2" &&
        printf 'from \000 a pipe\n' | run 0 send --key alice.key --to "$at" --json &&
        json 'j["ok"] and j["bytes"] == 14' &&
        printf '\033[31mred\377' >file && run 0 send --key alice.key --to "$at" --file file &&
        printf 'one\ntwo' | run 0 send --key alice.key --to "$at" --lines --text &&
        shows "^sent 2" && wait "$server" && cp bob.out out &&
        shows "^1 from $alice:0, 9 bytes: hello bob$" "14 bytes: from .x00 a pipe.n$" \
            "9 bytes: .x1b\[31mred.xff$" "3 bytes: two$"
}
refusals_have_their_codes() {
    serve bob
    run 4 send --key carol.key --to "$at" hi && says "allow list" &&
        run 5 send --key alice.key --from-id 3 --to "$at" hi && says "routing table" &&
        run 5 send --key alice.key --from-id 3 --to "$at" hi --json &&
        json 'j["error"] == "OPCOMMS_E_ROUTE" and j["exit"] == 5 and j["what"] == "message 1"' &&
        run 6 send --key alice.key --to "$carol@${at#*@}" hi &&
        run 6 ping --key alice.key "$carol@${at#*@}" &&
        run 3 ping --key alice.key "$bob@127.0.0.1:$(free_port)" &&
        run 3 send --key alice.key --to "$bob@127.0.0.1:$(free_port)" hi --json &&
        json 'j["error"] == "OPCOMMS_E_CONNECT"' &&
        run 11 send --key alice.key --to "$bob@localhost:1" hi &&
        run 11 send --key junk --to "$at" hi && run 13 send --key missing --to "$at" hi &&
        run 13 send --key alice.key --to "$at" --file missing &&
        printf '\377' | run 11 send --key alice.key --to "$at" --text && says "UTF-8" &&
        head -c 9000000 /dev/zero | run 12 send --key alice.key --to "$at" &&
        head -c 3000000 /dev/urandom | run 12 send --key alice.key --to "$at" &&
        says "fit a frame" &&
        run 10 serve --key bob.key --allow allow.yaml --routes routes.yaml --log bob.log &&
        run 10 serve --key alice.key --allow allow.yaml --routes routes.yaml --log x.log \
            --listen "${at#*@}" &&
        run 11 serve --key bob.key --allow bad.yaml --routes routes.yaml --log x.log &&
        run 2 serve --key bob.key --allow allow.yaml --routes routes.yaml --durability some &&
        run 10 recv --key bob.key --log bob.log && ends "$server" &&
        ! grep -v "warning: route refused" bob.err
}
recv_from_the_own_log() {
    serve bob --keep --json
    for m in one two three; do
        run 0 send --key alice.key --to "$at" $m || return 1
    done
    run 0 send --key alice.key --to "$bob:9@${at#*@}" nine && ends "$server" &&
        run 0 recv --key bob.key --log bob.log --keep --max 0 && [ "$(wc -l <out)" = 3 ] &&
        run 0 recv --key bob.key --log bob.log --json && json 'j["text"] == "one"' &&
        json "j['from'] == '$alice' and j['from_id'] == 0 and j['kind'] == 'bytes'" &&
        run 0 recv --key bob.key --log bob.log --raw --max 0 && [ "$(cat out)" = twothree ] &&
        run 7 recv --key bob.key --log bob.log && run 0 recv --key bob.key --log bob.log --id 9 &&
        shows "nine" && run 7 recv --key bob.key --log bob.log --id 9 --json &&
        json 'j["exit"] == 7' && run 9 recv --key alice.key --log bob.log &&
        run 13 recv --key bob.key --log none.log && [ ! -e none.log ]
}
unprinted_is_not_taken() {
    [ -e /dev/full ] || return 1
    serve bob --keep
    run 0 send --key alice.key --to "$at" precious && ends "$server" || return 1
    "$tool" recv --key bob.key --log bob.log >/dev/full 2>err
    [ $? = 1 ] && run 0 recv --key bob.key --log bob.log && shows precious
}
recv_from_a_server() {
    serve bob --keep --mailboxes 5
    run 0 route add routes.yaml "$alice:0" "$alice:3" && kill -HUP "$server" &&
        await bob.err "read again" &&
        run 7 recv --key alice.key --server "$at" --id 3 &&
        run 0 send --key alice.key --server "$at" --to "$alice:3" "to myself" "again" &&
        run 0 recv --key alice.key --server "$at" --id 3 --keep && shows "to myself" &&
        run 0 recv --key alice.key --server "$at" --id 3 --max 0 --json && json 'len(all) == 2' &&
        run 7 recv --key alice.key --server "$at" --id 3 --wait 1 &&
        cp allow.yaml good && cp bad.yaml allow.yaml && kill -HUP "$server" &&
        await bob.err "stays as before" && cp good allow.yaml &&
        run 0 ping --key alice.key "$at" && ends "$server"
}
recv_waits() {
    serve bob --keep --mailboxes 5
    "$tool" recv --key alice.key --server "$at" --id 3 --wait 30 >wait.out 2>&1 &
    waiter=$!
    pids="$pids $waiter"
    run 0 send --key alice.key --server "$at" --to "$alice:3" later && wait $waiter &&
        grep -q later wait.out && ends "$server"
}

settings_are_read() {
    mkdir -p etc && cp alice.key bob.key allow.yaml etc && cp bad.yaml etc/bad.yaml
    printf 'key_file: bob.key\nallow: allow.yaml\nroutes: allow_all\nlog_path: b.log\n' \
        >etc/bob.yaml
    printf 'key_file: alice.key\n' >etc/alice.yaml
    printf 'key_file: alice.key\nlogs: x\n' >etc/wrong.yaml
    rm -f bob.out
    "$tool" serve --config etc/bob.yaml --listen 127.0.0.1:0 --keep >bob.out 2>bob.err &
    server=$!
    pids="$pids $server"
    await bob.out "I am"
    at=$(sed -n 's/^I am //p' bob.out)
    run 0 send --config etc/alice.yaml --to "$at" "by settings" &&
        run 4 send --config etc/alice.yaml --key carol.key --to "$at" no &&
        kill -HUP "$server" && await bob.err "routes stay as before" && ends "$server" &&
        run 0 recv --config etc/bob.yaml && shows "by settings" && [ -e etc/b.log ] &&
        run 2 recv --config etc/alice.yaml && run 2 serve --config etc/alice.yaml &&
        run 11 ping --config etc/wrong.yaml "$at" && says "line 2" &&
        run 11 ping --config etc/wrong.yaml "$at" --json && json 'j["line"] == 2' &&
        run 13 ping --config etc/none.yaml "$at" && sed -i 's/allow.yaml/bad.yaml/' etc/bob.yaml &&
        run 11 recv --config etc/bob.yaml
}

# ---- the outbox ---------------------------------------------------------------------------------

box() { # CODE COMMAND ARGUMENT...: of alice's outbox
    b_code=$1
    b_command=$2
    shift 2
    run "$b_code" "$b_command" --key alice.key --log out.log "$@"
}
deliver() { # CODE ARGUMENT...
    d_code=$1
    shift
    box "$d_code" deliver --allow allow.yaml --routes routes.yaml "$@"
}
queued_is_delivered_in_order() {
    nowhere=$bob@127.0.0.1:$(free_port)
    box 0 enqueue --to "$nowhere" one two --context "job 7" && first=$(sed -n 1p out) &&
        [ "$(wc -l <out)" = 2 ] && printf 'three\nf\303\274nf' |
        box 0 enqueue --to "$nowhere" --lines --text --json --expiry 1000 &&
        json 'len(all) == 2 and j["ok"] and j["bytes"] == 5' &&
        box 0 outbox && [ "$(wc -l <out)" = 4 ] &&
        shows "^$first queued .*Z -> $bob:0 3 bytes, 0 attempts, context job 7$" &&
        box 0 outbox --payload --json && json 'len(all) == 4 and j["number"] > all[0]["number"]' &&
        json "all[1]['context'] == 'job 7' and all[1]['text'] == 'two' and j['to'] == '$bob'" &&
        json 'j["expires"] > j["queued"] and "expires" not in all[0] and "context" not in j' &&
        deliver 3 --within 1 && says "4 messages wait: the time is up" &&
        box 0 outbox --json && json 'len(all) == 4 and all[0]["attempts"] > 0' &&
        json 'all[0]["error"] == "OPCOMMS_E_CONNECT" and not all[0]["uncertain"]' &&
        box 0 cancel "$first" && box 13 cancel "$first" || return 1
    serve bob --count 4
    box 0 enqueue --to "$at" last && deliver 0 && [ "$(wc -l <out)" = 4 ] &&
        shows "^[0-9]+ delivered to $bob$" && wait "$server" && cp bob.out out &&
        [ "$(sed -n 's/.* bytes: //p' out | tr '\n' ' ')" = "two three f$(printf '\303\274')nf last " ] &&
        box 0 outbox && [ ! -s out ] && deliver 0 && [ ! -s out ] && box 0 dead && [ ! -s out ]
}
what_is_refused_is_a_dead_letter() {
    serve bob --keep
    box 0 enqueue --to "$at" --from-id 3 --context c refused && deliver 5 &&
        shows "^[0-9]+ dead to $bob: the routing table" && box 0 dead --payload --json &&
        json 'len(all) == 1 and j["error"] == "OPCOMMS_E_ROUTE" and j["from_id"] == 3' &&
        json 'j["context"] == "c" and j["text"] == "refused" and j["dead"] >= j["queued"]' &&
        box 0 dead && dead=$(cut -d' ' -f1 out) && shows "^$dead dead .*1 attempts|, 0 attempts" &&
        box 13 cancel "$dead" && box 0 requeue "$dead" --json && json "j['fresh'] > $dead" &&
        box 13 requeue "$dead" && box 0 dead && [ ! -s out ] && deliver 5 --json &&
        json 'j["event"] == "dead" and j["error"] == "OPCOMMS_E_ROUTE" and not j["ok"]' &&
        box 0 dead && dead=$(cut -d' ' -f1 out) && box 0 drop "$dead" && box 13 drop "$dead" &&
        box 0 dead && [ ! -s out ] && ends "$server" || return 1
    box 0 enqueue --to "$bob@127.0.0.1:$(free_port)" --attempts 1 gone && deliver 3 &&
        shows "dead to $bob: the peer cannot be reached" && box 0 dead &&
        dead=$(cut -d' ' -f1 out) && box 0 drop "$dead" --json && json 'j["ok"]'
}
serve_delivers_too() {
    serve bob --count 1
    box 0 enqueue --to "$at" "while serving" || return 1
    waiting=$server
    serve alice --keep --log out.log
    box 10 outbox && wait "$waiting" && grep -q "while serving" bob.out && ends "$server" &&
        box 0 outbox && [ ! -s out ]
}
looking_leaves_the_outbox_alone() { # also to an address where somebody listens
    serve bob --keep
    box 0 enqueue --to "$at" --attempts 1 still && number=$(cat out) && box 7 recv &&
        run 0 drain --key alice.key --log out.log --from "$at" && box 0 outbox --json &&
        json "len(all) == 1 and j['number'] == $number and j['attempts'] == 0" &&
        run 9 outbox --key bob.key --log out.log && run 13 outbox --key bob.key --log none.log &&
        [ ! -e none.log ] && run 13 cancel --key bob.key --log none.log 1 && [ ! -e none.log ] &&
        box 0 cancel "$number" && ends "$server" &&
        run 0 log verify bob.log --json && json 'j["unread"] == 0'
}
rollbacks_wait_to_be_accepted() { # by both sides, on logs that nobody has open
    rm -f out.log* bob.log*
    serve bob --keep
    box 0 enqueue --to "$at" first && deliver 0 && cp out.log old.log &&
        box 0 enqueue --to "$at" second && deliver 0 && cp old.log out.log &&
        box 0 enqueue --to "$at" third && deliver 9 --within 1 && shows "^stopped to $bob: a log" &&
        box 0 outbox --json && json 'len(all) == 1 and 1 < j["attempts"] < 10' && # not in a frenzy
        box 0 accept-rollback "$bob" && box 13 accept-rollback "$bob" &&
        box 13 accept-rollback "$carol" && ends "$server" && grep -q "older log.* $alice" bob.err &&
        run 0 accept-rollback --key bob.key --log bob.log "$alice" --json &&
        json "j['ok'] and j['hash'] == '$alice'" || return 1
    serve bob --keep --listen "${at#*@}"
    deliver 0 && ends "$server" && run 0 recv --key bob.key --log bob.log --raw --max 0 &&
        [ "$(cat out)" = firstsecondthird ]
}

# ---- a mailbox moves ----------------------------------------------------------------------------

drain_moves_everything() {
    run 0 route add routes.yaml "$bob:2" "$alice:0" "$alice:8" &&
        run 0 route add routes.yaml "$alice:~" "$alice:0" || return 1
    serve bob --keep --mailboxes 5
    seq -f 'letter %g' 30 | run 0 send --key bob.key --server "$at" --from-id 2 --to "$alice:0" \
        --lines && head -c 300000 /dev/urandom >big &&
        run 0 send --key bob.key --server "$at" --from-id 2 --to "$alice:0" --file big &&
        run 0 send --key alice.key --server "$at" --from-id 5 --to "$alice:0" --text "$greeting" &&
        run 0 send --key bob.key --server "$at" --from-id 2 --to "$alice:8" eight &&
        run 0 drain --key alice.key --log alice.log --from "$at" --json &&
        json 'j["ok"] and j["drained"] == 32 and j["empty"]' &&
        run 0 drain --key alice.key --log alice.log --from "$at" && shows "drained 0 messages" &&
        run 7 recv --key alice.key --server "$at" &&
        run 0 drain --key alice.key --log alice.log --from "$at" --all-ids &&
        shows "drained 1 mess" && ends "$server" &&
        run 0 log verify bob.log --json && json 'j["unread"] == 0' &&
        run 0 log verify alice.log --json && json 'j["unread"] == 33 and j["closed"]' || return 1
    serve alice --count 32 --json
    wait "$server" && cp alice.out out &&
        json 'len(all) == 33 and [m["text"] for m in all[1:31]] ==
            ["letter %d" % i for i in range(1, 31)]' &&
        json "all[1]['from'] == '$bob' and all[1]['from_id'] == 2" &&
        json "j['text'] == 'gr\\u00fc\\u00dfe' and j['kind'] == 'text' and j['from'] == '$alice'" &&
        json 'j["from_id"] == 5 and all[31]["bytes"] == 300000 and
            bytes.fromhex(all[31]["hex"]) == open("big", "rb").read()' &&
        run 0 recv --key alice.key --log alice.log --id 8 && shows eight
}
drain_loses_nothing_when_it_fails() {
    serve bob --keep --mailboxes 5
    from=$at
    run 0 send --key bob.key --server "$from" --from-id 2 --to "$alice:0" kept || return 1
    serve alice # has the log open
    cp bob.log other.log
    run 10 drain --key alice.key --log alice.log --from "$from" && ends "$server" &&
        run 9 drain --key alice.key --log other.log --from "$from" && says "another key" &&
        run 6 drain --key alice.key --log alice.log --from "$carol@${from#*@}" &&
        run 3 drain --key alice.key --log alice.log --from "$bob@127.0.0.1:$(free_port)" --json &&
        json 'j["ok"] is False and j["drained"] == 0 and all[0]["exit"] == 3' &&
        run 0 recv --key alice.key --server "$from" --keep && shows kept &&
        run 0 drain --key alice.key --log alice.log --from "$from" && shows "drained 1" &&
        run 0 recv --key alice.key --log alice.log && shows "from $bob:2.*kept"
}

# ---- logs ---------------------------------------------------------------------------------------

some_log() { # hurt.log: ten messages of which three are taken
    rm -f hurt.log*
    serve bob --keep --log hurt.log
    for i in 1 2 3 4 5 6 7 8 9 10; do
        run 0 send --key alice.key --to "$at" "message $i" || return 1
    done
    ends "$server" && run 0 recv --key bob.key --log hurt.log --max 3
}
log_says_what_is_in_it() {
    some_log && run 0 log verify hurt.log && shows "^good" "closed" " 7    unread" &&
        run 0 log verify hurt.log --json && json 'j["messages"] == 10 and j["acknowledged"] == 3' &&
        json "j['hash'] == '$bob' and j['bad_at'] == 0 and not j['in_use']" &&
        run 0 log dump hurt.log && [ "$(wc -l <out)" = 10 ] &&
        shows "^3 acknowledged " "^4 unread" && ! grep -q "message 4" out &&
        run 0 log dump hurt.log --unread --payload --json &&
        json 'len(all) == 7 and all[0]["text"] == "message 4" and j["number"] == 10' &&
        json "j['to'] == '$bob' and j['from'] == '$alice' and j['stored'].endswith('Z')" &&
        run 0 log dump hurt.log --payload && shows "message 4" &&
        run 0 log stats hurt.log && shows "mailbox $bob:0  7 unread, 64 bytes" &&
        run 0 log stats hurt.log --json && json 'j["unread"] == 7 and j["bytes"] == 64' &&
        run 13 log verify none.log && run 13 log dump none.log && run 13 log stats none.log &&
        run 13 log repair none.log new.log && [ ! -e none.log ] && [ ! -e new.log ] &&
        run 9 log verify junk && run 9 log repair junk new.log && [ ! -e new.log ]
}
log_of_a_running_peer() {
    serve bob --keep --log hurt.log
    run 0 log verify hurt.log --json && json 'j["in_use"] and j["unread"] == 7' &&
        run 0 log verify hurt.log && shows "a peer has it open" &&
        run 10 log repair hurt.log new.log && [ ! -e new.log ] &&
        run 0 send --key alice.key --to "$at" "still served" && ends "$server" &&
        run 0 log verify hurt.log --json && json 'not j["in_use"] and j["unread"] == 8'
}
damage_is_found_and_repaired() {
    python3 - <<'P'
data = bytearray(open("hurt.log", "rb").read())
data[data.index(b"message 5") + 4] ^= 1 # this one is broken
at = data.rindex(b"OPCB", 0, data.index(b"message 7"))
data[at + 13] ^= 1                      # of this one only its batch
open("hurt.log", "wb").write(data)
P
    cp hurt.log before
    run 9 log verify hurt.log && says "at byte [0-9]+" && shows "damaged parts" " 1 +in damaged" &&
        run 9 log verify hurt.log --json && json 'j["error"] == "OPCOMMS_E_LOG_DAMAGED"' &&
        json 'all[0]["bad_at"] == j["position"] and all[0]["broken"] == 1' &&
        json 'all[0]["unread"] == 7 and all[0]["salvaged"] == 1' &&
        run 9 recv --key bob.key --log hurt.log && cmp hurt.log before &&
        run 9 log dump hurt.log --json &&
        json 'len([m for m in all if m.get("state") == "broken"]) == 1' &&
        run 9 log stats hurt.log && run 9 log repair hurt.log new.log --json &&
        json 'j["saved"] == 7 and j["salvaged"] == 1 and j["broken"] == 1 and not j["ok"]' &&
        cmp hurt.log before && [ ! -e new.log.part ] && [ ! -e new.log.part.lock ] &&
        run 10 log repair hurt.log new.log && run 0 log verify new.log &&
        [ "$(stat -c %a new.log)" = 600 ] && mv hurt.log hurt.old && mv new.log hurt.log &&
        run 0 recv --key bob.key --log hurt.log --raw --max 0 && [ "$(cat out)" = \
            "message 4message 6message 7message 8message 9message 10still served" ]
}
torn_is_not_damaged() {
    some_log && truncate -s $(($(python3 -c '
print(open("hurt.log", "rb").read().rindex(b"OPCB"))') + 10)) hurt.log &&
        run 0 log verify hurt.log --json && json 'j["ok"] and j["tail_bytes"] > 0' &&
        run 0 log repair hurt.log whole.log && shows "^7 unread" && run 0 log verify whole.log
}

nobody=$(printf %064d 1)
greeting=$(printf 'gr\303\274\303\237e')
claim "help lists every command" help_lists
claim "every command has help with an example" help_explains
claim "wrong use is told" wrong_use
claim "keygen makes a key and never overwrites" keygen
alice=$("$tool" hash alice.key) && bob=$("$tool" hash bob.key) && carol=$("$tool" hash carol.key) ||
    exit 1
claim "hash is that of openssl" hash_is_right
claim "cert is one" cert_is_one
claim "a key under a password is opened by the one in a file" password_from_a_file
claim "passwd changes a password, or takes it away" passwd_changes_it
claim "without a terminal no password is asked" no_terminal_no_password
claim "a password is typed without echo" password_is_typed
claim "allow list, add, remove" allow_list_is_kept
claim "allow check says why" allow_check_says_why
claim "allow_all hides no entry" allow_all_hides_nothing
claim "bad lists name the line" bad_lists_name_the_line
claim "route list, add, remove" routes_are_kept
claim "route check says why" route_check_says_why
claim "messages arrive from arguments, files and standard input" messages_arrive
claim "what is refused has its own exit code" refusals_have_their_codes
claim "recv takes from the own log" recv_from_the_own_log
claim "what cannot be printed is not taken" unprinted_is_not_taken
claim "recv takes from a server, which reads its lists again" recv_from_a_server
claim "recv waits" recv_waits
claim "settings come from a file, options before them" settings_are_read
claim "what is queued is delivered in order" queued_is_delivered_in_order
claim "what is refused is a dead letter" what_is_refused_is_a_dead_letter
claim "serve delivers too" serve_delivers_too
claim "looking leaves the outbox alone" looking_leaves_the_outbox_alone
claim "rollbacks wait to be accepted" rollbacks_wait_to_be_accepted
claim "drain moves everything with its senders" drain_moves_everything
claim "drain loses nothing when it fails" drain_loses_nothing_when_it_fails
claim "log verify, dump, stats" log_says_what_is_in_it
claim "log verify while a peer has it open" log_of_a_running_peer
claim "a damaged log is found and repaired" damage_is_found_and_repaired
claim "a torn log is not damaged" torn_is_not_damaged
total
