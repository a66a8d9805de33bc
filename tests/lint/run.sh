#!/bin/sh
# What the style guide asks for and a tool can tell. Every rule is one test on the header, and is
# then tried on a doctored copy that breaks it: a rule that finds nothing there has failed.
cd "$(dirname "$0")/../.." || exit 1
. tests/count.sh
out=build/tests/lint
rm -rf "$out"
mkdir -p "$out/header" "$out/doctored" "$out/other"
LC_ALL=C
export LC_ALL

# ---- how a rule is run --------------------------------------------------------------------------

# Of a file DIR/h: the banners, the code without comments and strings, the facts about it.
prepare() {
    awk 'match($0, /^\/\* >>[a-z-]+ ==== L[0-9] ==== /) { print FNR, substr($2, 3), $4 }' "$1/h" \
        >"$1/banners"
    awk -f tests/lint/code.awk "$1/h" >"$1/code"
    awk -v banners="$1/banners" -f tests/lint/facts.awk "$1/code" >"$1/facts"
}

# A rule prints what breaks it.
obeys() { # rule, directory
    o_found=$("rule_$1" "$2" 2>&1)
    [ -z "$o_found" ] && return
    echo "$o_found" | head -20
    return 1
}

check() { # rule, what it says
    step "$1: $2" obeys "$1" "$out/header"
}

breaks() { # rule: the doctored copy, which must be another text, must break it
    if cmp -s "$out/header/h" "$out/doctored/h"; then
        echo "nothing was doctored"
        return 1
    fi
    prepare "$out/doctored"
    ! obeys "$1" "$out/doctored" >/dev/null || { echo "it found nothing"; return 1; }
}

finds() { # rule, section (or manual, or public), text that goes to its end
    f_line=$(awk -v tag="$2" '
        NR == FNR { if (tag == seen) at = $1; seen = $2; next }
        tag == "manual" && /^1  USE/ { at = FNR + 1 }
        tag == "public" && /^#endif \/\* OPCOMMS_H \*\// { at = FNR }
        tag == seen && /^#endif \/\* OPCOMMS_IMPLEMENTATION \*\// { at = FNR }
        at { print at; exit }' "$out/header/banners" "$out/header/h")
    {
        head -n "$((f_line - 1))" "$out/header/h"
        printf '%b\n' "$3"
        tail -n "+$f_line" "$out/header/h"
    } >"$out/doctored/h"
    step "$1 can fail" breaks "$1"
}

finds_edit() { # rule, sed script
    sed "$2" "$out/header/h" >"$out/doctored/h"
    step "$1 can fail" breaks "$1"
}

facts() { awk -F '\t' "$2" "$1/facts"; } # directory, program

cp opcomms.h "$out/header/h"
prepare "$out/header"

# ---- the text -----------------------------------------------------------------------------------

rule_columns() { awk 'length($0) > 100 { print FNR ": " length($0) " columns" }' "$1/h"; }
rule_tabs() { awk '/\t/ { print FNR ": tab" }' "$1/h"; }
rule_trailing() { awk '/[ \t\r]$/ { print FNR ": white space at the end" }' "$1/h"; }
rule_ascii() { awk '/[^\t -~]/ { print FNR ": not ASCII" }' "$1/h"; }
rule_last_line() { [ "$(tail -c 1 "$1/h" | wc -l)" -eq 1 ] || echo "no newline at the end"; }
rule_comments() { awk '/\/\// { print FNR ": //" }' "$1/code"; }

check columns "at most 100"
finds columns log "/* $(printf '%0100d' 0) */"
check tabs "none"
finds tabs log '\tint x;'
check trailing "no white space at the end of a line"
finds trailing log '/* */ '
check ascii "nothing else"
finds ascii log '/* caf\0303\0251 */'
check last_line "it ends"
printf x | cat opcomms.h - >"$out/doctored/h"
step "last_line can fail" breaks last_line
check comments "no //"
finds comments log 'int x; // no'

# ---- sections -----------------------------------------------------------------------------------

rule_banners() {
    awk '/^\/\* *>>/ || / ==== L/ {
        if ($0 !~ /^\/\* >>[a-z-]+ ==== L[0-4] ==== [^ ].*[^ ] \*\/$/) print FNR ": " $0
        else if (seen[$2]++) print FNR ": a second " $2
        else if (FNR > 1 && before != "") print FNR ": no empty line before it"
    }
    { before = $0 }' "$1/h"
}
rule_layers() {
    awk '{ if (NR > 1 && $3 < layer) print $1 ": " $2 " of " $3 " below " layer; layer = $3 }' \
        "$1/banners"
}
rule_contents() { # the list in the manual is the list of the banners
    awk '/^SECTIONS OF THE IMPLEMENTATION/ { on = 1; next }
        on && /^$/ { exit }
        on {
            sub(/^ +/, "")
            if (match($0, /^L[0-9]  /)) {
                layer = substr($0, 1, 2)
                $0 = substr($0, RLENGTH + 1)
            }
            sub(/  .*/, "")
            for (i = 1; i <= NF; i++) print layer, $i
        }' "$1/h" >"$1/list"
    awk '{ print $3, $2 }' "$1/banners" | diff "$1/list" - | grep '^[<>]'
}

check banners "/* >>tag ==== Ln ==== one sentence */, one line, after an empty one, no tag twice"
finds banners log '\n/* >>more ==== L2 ==== a sentence\n   and another line */'
finds banners log '\n/* >>log ==== L2 ==== again */'
check layers "they never decrease"
finds layers log '\n/* >>low ==== L1 ==== too low */'
check contents "the manual lists the sections in their order"
finds contents log '\n/* >>more ==== L2 ==== not listed */'

# The first word of a helper's name is its section, or one of the nouns that the section owns beside
# its tag. A noun belongs to one section only, and is listed only while it is in use.
nouns="cfg:OPC__STATIC cfg:OPC__FN str:opc__text
    buf:opc__rd buf:opc__wr crc:opc__crc32c plat:OPC__PATH thread:opc__mutex thread:opc__cond
    shape:opc__walk shape:OPC__WALK shape:OPC__SLOT
    tarpc:opc__request tarpc:opc__response tarpc:OPC__REQ tarpc:OPC__RES tarpc:OPC__RERR
    tarpc:opc__data tarpc:OPC__DEST tarpc:OPC__DEADLINE
    der:opc__derw tls:opc__session tls:opc__sessions key:opc__pem key:OPC__PEM key:opc__base64 key:OPC__OID
    native:opc__hello
    store:opc__msg store:OPC__MSG store:OPC__FRAG store:opc__epoch store:opc__try store:OPC__TRIED
    store:OPC__STREAM store:OPC__CONTEXT store:OPC__DONE store:OPC__NOTE store:OPC__KIND store:opc__space
    log:OPC__OP
    allow:opc__list allow:OPC__LIST allow:opc__rules allow:opc__rule limit:opc__bucket limit:opc__rates
    conn:opc__call conn:opc__reply conn:OPC__OUT items:opc__entry items:opc__pieces
    mailbox:opc__box mailbox:opc__sender
    outbox:opc__dest outbox:opc__era outbox:opc__term outbox:opc__heap store:OPC__LEVEL
    peer:opc__slot peer:opc__link node:opc__link peer:OPC__LINK node:opc__crowd node:opc__end
    peer:opc__sleeper peer:opc__mail peer:opc__known peer:OPC__STATE peer:opc__flow peer:OPC__FLOW
    peer:opc__mark peer:opc__refusal flow:opc__pen flow:OPC__PEN pub:opc__order pub:opc__deal
    pub-access:opc__pub pub-key:opc__pub"
rule_prefixes() {
    echo "$nouns" | tr -s ' \n' '\n\n' | awk -F '\t' '
        NR == FNR {
            if (split($1, f, ":") != 2) next
            if (f[2] in owner && f[2] !~ /^(opc__(pub|link|flow))$/) print f[2] " is listed for two sections"
            owner[f[2]] = f[1]
            ok[f[1], f[2]] = 1
            listed[f[1] ":" f[2]] = 1
            next
        }
        $1 !~ /^(function|type|macro|constant|variable)$/ { next }
        $4 == "public" {
            if ($2 !~ /^(opcomms_[a-z]|OPCOMMS_)/ && !feature($2)) print $3 ": public " $1 " " $2
            next
        }
        $2 ~ /^(opcomms_[a-z]|OPCOMMS_)/ { next } # what the public part declares or lets override
        !match($2, /^(opc__[a-z0-9]+|OPC__[A-Z0-9]+)/) { print $3 ": " $1 " " $2; next }
        {
            word = substr($2, 1, RLENGTH)
            delete listed[$4 ":" word]
            if (ok[$4, word] || tolower(word) == "opc__" $4) next
            print $3 ": " $2 " in section " $4
        }
        END { for (l in listed) print l " is listed and not in use" }
        # Feature macros of the system, set before its headers.
        function feature(name) {
            return name ~ /^_((GNU|DARWIN_C|POSIX_C)_SOURCE|FILE_OFFSET_BITS)$/
        }
    ' - "$1/facts"
}
# The compiler refuses most upward calls, because helpers are not declared before they are defined.
# What it lets pass are the public functions, which a lower section could call, and macros.
rule_upward() {
    awk -F '\t' '
        FILENAME != ARGV[2] { split($0, f, " "); layer[f[2]] = FNR; next }
        $4 == "public" { next }
        $1 ~ /^(function|type|macro|constant|variable)$/ && !($2 in home) { home[$2] = $4 }
        $1 == "use" { n++; used[n] = $2; line[n] = $3; section[n] = $4 }
        END {
            for (i = 1; i <= n; i++) {
                if ((used[i] in home) && layer[section[i]] < layer[home[used[i]]]) {
                    print line[i] ": " section[i] " uses " used[i] " of " home[used[i]]
                }
            }
        }' "$1/banners" "$1/facts"
}
rule_declarations() { # nothing is declared ahead, except a type within its own section
    facts "$1" '
        $1 == "unknown" { print $3 ": not understood: " $5 }
        $4 == "public" { next }
        # Linux has it, but the header that tells may have come too early: see there.
        $1 == "proto" && $2 != "accept4" { print $3 ": " $2 " is declared ahead" }
        $1 == "forward" { ahead[$2] = $4; line[$2] = $3 }
        $1 == "type" && ahead[$2] == $4 { delete ahead[$2] }
        END {
            for (name in ahead) {
                if (ahead[name] != "") print line[name] ": " name " is of another section"
            }
        }'
}

check prefixes "every name says its section"
finds prefixes log 'OPC__FN int opc__json_x(void) { return 0; }'
finds prefixes log '#define LOG_MAX 3'
finds prefixes log 'typedef struct opc__thing { int x; } opc__thing;'
finds prefixes log 'enum { OPC__THING_A };'
finds prefixes public 'typedef struct peer { int x; } peer;'
check upward "a section uses only what stands above"
finds upward log 'OPC__FN int opc__log_x(opcomms_peer *p) { return opcomms_stop(p) == 0; }'
finds upward log '#define OPC__LOG_X OPC__PEER_ROUNDS'
check declarations "no helper is declared ahead"
finds declarations log 'OPC__FN int opc__log_x(void);'
finds declarations log 'typedef struct opc__node opc__node;'

# ---- functions and variables --------------------------------------------------------------------

longest=70
rule_length() { # of a function, from its first line to its last
    facts "$1" '$1 == "function" && $5 + 0 > '"$longest"' { print $3 ": " $2 ": " $5 + 0 " lines" }'
}
rule_helpers() {
    facts "$1" '$1 == "function" && $4 != "public" &&
        $5 !~ /^[0-9]+ (__attribute__ .* )?OPC__FN / && $5 !~ /^[0-9]+ OPCOMMS_API / {
            print $3 ": " $2 " is neither OPC__FN nor OPCOMMS_API"
        }'
}
rule_recursion() {
    facts "$1" '$1 == "use" && $2 == $7 && $6 == "(" { print $3 ": " $2 " calls itself" }'
}
rule_variables() { # constant, and so is a pointer itself
    facts "$1" '$1 == "variable" || $1 == "local" {
        what = $5
        sub(/ (=|\[).*/, "", what)
        if (what !~ /(^| )const / || what ~ /\* [A-Za-z_0-9]+( ;)?$/) {
            print $3 ": " $2 " can change"
        }
    }'
}
rule_asserts() { # the line that fails says which condition
    awk '/^ +OPCOMMS_ASSERT\(/ { on = 1 }
        on && /&&/ { print FNR ": two conditions" }
        /;/ { on = 0 }' "$1/code"
}
rule_casts() { # integers are read byte by byte
    awk '/\*\((const )?(uint(16|32|64)_t|unsigned|size_t) \*\)/ { print FNR ": wide read" }' \
        "$1/code"
}
rule_unused() { # every helper has a user, in the header or in a test
    cat tests/*/*.[ch] tests/*/*/*.[ch] 2>/dev/null | awk -f tests/lint/code.awk |
        awk -v banners=/dev/null -f tests/lint/facts.awk >"$out/tests.facts"
    awk -F '\t' '
        $1 == "use" { uses[$2]++; next }
        FILENAME == ARGV[1] { next }
        $2 !~ /^(opc__|OPC__)/ { next }
        $1 == "function" || $1 == "type" || $1 == "variable" { line[$2] = $3; uses[$2]-- }
        $1 == "macro" { line[$2] = $3 }
        END { for (n in line) if (uses[n] <= 0) print line[n] ": " n " is never used" }
    ' "$out/tests.facts" "$1/facts"
}

check length "at most 70 lines"
finds length log "OPC__FN int opc__log_x(void) {\n$(yes '    ;' | head -69)\n}"
check helpers "OPC__FN or OPCOMMS_API"
finds helpers log 'static int opc__log_x(void) { return 0; }'
check recursion "none"
finds recursion log 'OPC__FN int opc__log_x(int n) { return n ? opc__log_x(n - 1) : 0; }'
check variables "nothing at file scope, and no static, can change"
finds variables log 'static int opc__log_n;'
finds variables log 'static const char *opc__log_names[] = {"a"};'
finds variables log 'OPC__FN int opc__log_x(void) { static int n; return n++; }'
check asserts "one condition each"
finds asserts log 'OPC__FN void opc__log_x(int n) {\n    OPCOMMS_ASSERT(n > 0 && n < 3);\n}'
check casts "no byte pointer becomes a wider one to be read"
finds casts log 'OPC__FN uint32_t opc__log_x(const void *p) { return *(const uint32_t *)p; }'
check unused "every helper has a user"
finds unused log 'OPC__FN int opc__log_x(void) { return 0; }'
finds unused log '#define OPC__LOG_X 1'

# ---- who may do what ----------------------------------------------------------------------------

rule_bearssl() {
    facts "$1" '
        $4 ~ /^(key|cert|seal|tls)$/ { next }
        $1 == "use" && $2 ~ /^(br_|BR_)/ { print $3 ": " $2 " in section " $4 }
        $1 == "include" && $2 ~ /bearssl/ { print $3 ": bearssl.h in section " $4 }'
}
system_names='socket|bind|listen|accept4?|connect|send|recv|sendto|recvfrom|sendmsg|recvmsg|shutdown
    |[gs]etsockopt|getsockname|getpeername|poll|select|pipe2?|socketpair|eventfd|ioctl
    |open|openat|creat|read|pread|write|pwrite|readv|writev|close|fcntl|dup2?|lseek|mmap|munmap
    |fstat|stat|lstat|chmod|fchmod|fsync|fdatasync|ftruncate|fallocate|posix_fallocate
    |rename|renameat|unlink|unlinkat|remove|mkdir|rmdir|opendir|readdir|link|symlink
    |time|clock|clock_gettime|clock_nanosleep|gettimeofday|nanosleep|usleep|sleep|alarm|gmtime
    |localtime|getrandom|getentropy|arc4random|rand|random|srand|getpid|geteuid|getuid|sysconf
    |fork|vfork|system|kill|raise|signal|sigaction|exit|abort|getenv|setlocale|getaddrinfo
    |pthread_[a-z_]+|sched_yield|ntohs|ntohl|htons|htonl|inet_[a-z]+'
system_names=$(echo "$system_names" | tr -d ' \n')
rule_system() { # calls, names and headers of the operating system
    facts "$1" '
        $4 == "posix" || $4 == "thread" { next }
        $1 == "include" && $2 !~ /^<(stddef|stdint|string|stdlib|assert|bearssl)\.h>/ {
            print $3 ": " $2 " in section " $4
        }
        $1 != "use" || $5 == "->" || $5 == "." { next }
        ($6 == "(" && $2 ~ /^('"$system_names"')$/) ||
        $2 ~ /^(errno|sockaddr(_[a-z0-9]+)?|timespec|timeval|pollfd|flock)$/ ||
        $2 ~ /^(socklen|ssize|off|mode)_t$/ ||
        $2 ~ /^(pthread_|CLOCK_|O_[A-Z]|SOCK_[A-Z]|AF_[A-Z]|SO_[A-Z]|MSG_[A-Z]|POLL(IN|OUT|ERR))/ ||
        $2 ~ /^E(INTR|AGAIN|WOULDBLOCK|INVAL|NOENT|EXIST|NOMEM|PIPE|IO|PERM|ACCES|INPROGRESS)$/ {
            print $3 ": " $2 " in section " $4
        }'
}
rule_sans_io() { # conn and tls: bytes in, bytes out, the time as an argument
    facts "$1" '
        $1 != "use" || ($4 != "conn" && $4 != "tls") { next }
        $2 ~ /^(opc__plat_|opc__posix_|opcomms_platform$|br_sslio_|br_prng_seeder_system)/ ||
        (($5 == "->" || $5 == ".") && $6 == "(" &&
         $2 ~ /^(now_us|wall_s|sock_[a-z]+|tcp_[a-z]+|wake_[a-z]+|file_[a-z]+|dir_[a-z]+)$/) {
            print $3 ": " $2 " in section " $4
        }'
}
unsafe_names='str(cpy|cat|ncpy|ncat|tok|dup|toul?l?|tod|error|coll)|[fv]?s?n?printf|vfprintf
    |f?puts|f?putc|putchar|perror|f?gets|[fs]?scanf|ato[ilf]|alloca
    |is(digit|space|alpha|alnum|print)|to(upper|lower)|setjmp|longjmp|qsort|bsearch'
unsafe_names=$(echo "$unsafe_names" | tr -d ' \n')
rule_unsafe() { # functions that know no limit, depend on a locale, or print
    facts "$1" '$1 == "use" && $6 == "(" && $5 != "->" && $5 != "." &&
        $2 ~ /^('"$unsafe_names"')$/ {
            print $3 ": " $2
        }'
}
rule_heap() { # one place takes memory from the heap: the default allocator
    facts "$1" '$1 == "use" && $2 ~ /^(malloc|calloc|realloc|free|aligned_alloc)$/ &&
        $6 == "(" && $5 != "->" && $7 !~ /^opc__plat_(malloc|free)$/ { print $3 ": " $2 " in " $4 }
        $1 == "function" && $2 ~ /^opc__plat_(malloc|free)$/ && $4 != "plat" { print $3 ": " $2 }'
}
rule_systems() { # other systems are a platform of their own, not an #if among the code
    awk '/^ *#/ && /_WIN32|_MSC_VER|__CYGWIN__|__APPLE__|__linux__|__FreeBSD__/ {
            if (section != "public" && section != "posix" && section != "thread") {
                print FNR ": " $0
            }
        }
        BEGIN { section = "public" }
        /^\/\* >>/ { section = substr($2, 3) }' "$1/h"
}

check bearssl "its names are in key, cert, seal and tls alone"
finds bearssl conn 'OPC__FN int opc__conn_x(br_ssl_engine_context *e) { return e != NULL; }'
check system "calls are in posix and thread alone"
finds system log 'OPC__FN int opc__log_x(int fd) { return fsync(fd); }'
finds system node 'OPC__FN int opc__node_x(void) { return errno; }'
finds system node '#include <time.h>'
check sans_io "conn and tls touch no socket and no clock"
finds sans_io conn 'OPC__FN uint64_t opc__conn_x(opc__conn *c) { return c->plat->now_us(NULL); }'
finds sans_io tls 'OPC__FN int opc__tls_x(br_sslio_context *c) { return br_sslio_flush(c); }'
check unsafe "no function without a limit, with a locale, or that prints"
finds unsafe log 'OPC__FN void opc__log_x(char *a, const char *b) { strcpy(a, b); }'
check heap "only the default allocator uses it"
finds heap log 'OPC__FN void *opc__log_x(void) { return malloc(3); }'
check systems "the system is asked for in posix and thread alone"
finds systems log '#ifdef _WIN32\n#endif'

# ---- the manual and the public part -------------------------------------------------------------

rule_public_comments() { # a comment above, or above the declarations it stands directly with
    awk 'NR == FNR { code[FNR] = $0; next }
        /^#define OPCOMMS_H$/ { on = 1 }
        /^#endif \/\* OPCOMMS_H \*\// { exit }
        !on { next }
        /^\/\* ---- / { next }
        /^$/ { covered = 0 }
        /\*\/$/ && code[FNR] ~ /^ *$/ { covered = 1 }
        /^OPCOMMS_API / && !covered { print FNR ": " $0 }' "$1/code" "$1/h"
}
rule_options() { # every option is in chapter 4, and chapter 4 has no other
    awk '/^ *# *(if|ifdef|ifndef|elif)/ {
            while (match($0, /OPCOMMS_[A-Z_]+/)) {
                print substr($0, RSTART, RLENGTH)
                $0 = substr($0, RSTART + RLENGTH)
            }
        }' "$1/code" | grep -vxE 'OPCOMMS_(H|IMPLEMENTED)' | sort -u >"$1/options"
    awk '/^4  COMPILE-TIME OPTIONS/ { on = 1; next } on && /^$/ { exit }
        on && match($0, /^    OPCOMMS_[A-Z_]+/) { print substr($0, 5, RLENGTH - 4) }' "$1/h" |
        sort -u | diff "$1/options" - | grep '^[<>]'
}
rule_version() { # the first line, the numbers and the text agree
    awk '/^opcomms\.h [0-9.]+ - / && !title { title = $2 }
        /^#define OPCOMMS_VERSION_(MAJOR|MINOR|PATCH) / { n = n (n == "" ? "" : ".") $3 }
        /^#define OPCOMMS_VERSION_STRING / { text = $3; gsub(/"/, "", text) }
        END { if (n == "" || title != n || text != n) print title ", " n ", " text }' "$1/h"
}
named_tests() { # from the text on input: files and directories of tests, and tests of a file
    awk 'BEGIN {
        part = "(tests/)?(unit|api|sim|crash|fuzz|interop|bench|compile|lint|examples|data)/"
        part = part "[A-Za-z0-9_./-]*"
    }
    {
        line = $0
        while (match(line, part)) {
            file = substr(line, RSTART, RLENGTH)
            line = substr(line, RSTART + RLENGTH)
            sub(/[.]$/, "", file)
            if (file !~ /^(tests|examples)\//) file = "tests/" file
            print file
            # README: `tests/api/test_x.c`: name_of_a_test, another
            rest = line
            if (sub(/^`: /, "", rest)) {
                while (match(rest, /^[a-z0-9_]+/)) {
                    print file, substr(rest, 1, RLENGTH)
                    rest = substr(rest, RLENGTH + 1)
                    if (!sub(/^, /, "", rest)) break
                }
            }
        }
    }' | sort -u | while read -r file test; do
        if [ ! -e "$file" ]; then
            echo "there is no $file"
        elif [ -n "$test" ] && ! grep -q "^TEST($test)" "$file"; then
            echo "there is no $test in $file"
        fi
    done
}
rule_named_tests() { sed '/^\*\/$/q' "$1/h" | named_tests; }
rule_readme() { named_tests <"$1/readme"; }

check public_comments "every public function has one"
finds public_comments public '\nOPCOMMS_API void opcomms_x(void);'
check options "the manual lists those there are"
finds options log '#if defined(OPCOMMS_NO_LOG)\n#endif'
finds_edit options '/^    OPCOMMS_NO_LINUX /d'
check version "title, numbers and text agree"
finds_edit version '/^#define OPCOMMS_VERSION_PATCH/s/[0-9]*$/99/'
check named_tests "the tests that the manual names are there"
finds named_tests manual '    See unit/test_nothing.c.'
cp README.md "$out/header/readme"
check readme "the tests that the README names are there"
echo 'a | `tests/api/test_basics.c`: no_such_test |' >"$out/doctored/readme"
finds readme log 'x'

# ---- examples and tests -------------------------------------------------------------------------

others() { # rule, files: the rule on each
    r_rule=$1
    shift
    r_bad=0
    for r_file in "$@"; do
        cp "$r_file" "$out/other/h"
        prepare "$out/other"
        r_found=$(obeys "$r_rule" "$out/other") && continue
        r_bad=1
        echo "$r_file:"
        echo "$r_found"
    done
    return $r_bad
}
rule_run() { # a test that is never run
    awk 'match($0, /^TEST\([a-z0-9_A-Z]+\)/) { line[substr($0, 6, RLENGTH - 6)] = FNR }
        match($0, /RUN\([a-z0-9_A-Z]+\)/) { delete line[substr($0, RSTART + 4, RLENGTH - 5)] }
        END { for (name in line) print line[name] ": " name " is never run" }' "$1/code"
}
# What a user of the library can do. The two exceptions make a bare listening socket by the built-in
# platform, for which there is no public function.
rule_public_only() {
    facts "$1" '$1 == "use" && $2 ~ /^(opc__|OPC__)/ &&
        $2 !~ /^opc__(plat_default|id_address_format)$/ { print $3 ": " $2 }'
}
rule_patience() { # no test sleeps for luck
    facts "$1" '$1 == "use" && $6 == "(" && $2 ~ /^(u|nano)?sleep$/ { print $3 ": " $2 }'
}
rule_places() { # no path of the machine it was written on
    awk '/\/(home|root|work|Users)\// { print FNR ": " $0 }' "$1/h"
}
longest=100 # a test is one long story, and nobody calls it
sources=$(ls examples/*.c tests/*.h tests/*/*.[ch])
scripts=$(ls tests/*.sh tests/*/*.sh tests/*/*.awk)
for rule in columns tabs trailing ascii last_line comments length places; do
    step "examples and tests: $rule" others $rule $sources
done
for rule in tabs trailing ascii last_line; do
    step "scripts: $rule" others $rule $scripts
done
step "tests: each is run" others run tests/*/test_*.c
finds run log 'TEST(nobody_runs_me) {}'
step "examples and tests/api: public functions alone" \
    others public_only examples/*.c tests/api/*.[ch]
echo 'int x = opc__log_x;' >"$out/doctored/h"
step "public_only can fail" breaks public_only
# tests/crash kills at random instants: its waits are what it is about.
step "tests: none sleeps" others patience tests/[abdefilsu]*/*.[ch] tests/compile/*.[ch]
finds patience log 'int x(void) { sleep(1); }'
finds places log "/* /$(echo home)/me */"
total
