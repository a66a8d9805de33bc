#!/bin/sh
# The header compiles without a warning in every promised way, links in every promised way, shows
# no name without its prefix, and reaches for nothing of the system that it says it does without.
cd "$(dirname "$0")/../.." || exit 1
. tests/count.sh
out=build/tests/compile
mkdir -p "$out"

warn="-Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Wcast-qual -Wundef -Wvla
    -Wwrite-strings -Wpointer-arith -Werror"
warn_c="$warn -Wstrict-prototypes -Wmissing-prototypes -Wold-style-definition
    -Wdeclaration-after-statement -Wc++-compat"
implement=-DOPCOMMS_IMPLEMENTATION

have() { # compiler, package: a compiler that is missing is a failed step, never a skipped one
    command -v "$1" >/dev/null 2>&1 && return
    echo "$1 is missing: install the package $2"
    return 1
}

# musl-gcc finds bearssl.h only beside the headers of the other libc, hence last.
c() { # compiler, arguments
    c_cc=$1
    shift
    if [ "$c_cc" = musl-gcc ]; then set -- -idirafter /usr/include "$@"; fi
    "$c_cc" "$@"
}

check_c() { c "$@" $warn_c -fsyntax-only -x c opcomms.h; }
check_cpp() { c "$@" $warn -fsyntax-only -x c++ opcomms.h; }
fails() { ! "$@"; }

# ---- every compiler, every standard: declarations and implementation ----------------------------

for pair in gcc:gcc clang:clang musl-gcc:musl-tools; do
    cc=${pair%%:*}
    step "$cc is there" have "$cc" "${pair#*:}"
    stds="c99 c11 c2x gnu11 gnu2x"
    [ $cc != musl-gcc ] || stds="c99 c11 gnu11"
    for std in $stds; do
        step "$cc $std: declarations" check_c $cc -std=$std
        step "$cc $std: implementation" check_c $cc -std=$std $implement
    done
done
for pair in g++:g++ clang++:clang; do
    cc=${pair%%:*}
    step "$cc is there" have "$cc" "${pair#*:}"
    for std in c++11 c++14 c++17 c++20; do
        step "$cc $std: declarations" check_cpp $cc -std=$std
        step "$cc $std: implementation" check_cpp $cc -std=$std $implement
    done
done
# Some warnings exist only where the compiler follows values.
step "gcc c99, optimised" gcc -std=c99 $warn_c -O1 $implement -x c -c opcomms.h -o "$out/o1.o"
step "the manual's line for an object file" \
    ${CC:-cc} -x c $implement -c opcomms.h -o "$out/default.o"
step "a warning is an error here" fails check_c gcc -std=c99 $implement -Wunused-macros

# ---- options ------------------------------------------------------------------------------------

options() { # name, options: by a C and a C++ compiler
    o_name=$1
    shift
    step "$o_name: gcc" check_c gcc -std=c99 $implement "$@"
    step "$o_name: clang++" check_cpp clang++ -std=c++11 $implement "$@"
}
options NDEBUG -DNDEBUG
options OPCOMMS_ASSERT "-DOPCOMMS_ASSERT(c)=((void)0)"
options OPCOMMS_STATIC -DOPCOMMS_STATIC
options OPCOMMS_NO_THREADS -DOPCOMMS_NO_THREADS
options OPCOMMS_NO_LINUX -DOPCOMMS_NO_LINUX -D_POSIX_C_SOURCE=200809L
options OPCOMMS_NO_POSIX -DOPCOMMS_NO_POSIX
options "OPCOMMS_NO_POSIX and OPCOMMS_NO_THREADS" -DOPCOMMS_NO_POSIX -DOPCOMMS_NO_THREADS
options OPCOMMS_NO_CRC_HARDWARE -DOPCOMMS_NO_CRC_HARDWARE
options "smallest OPCOMMS_MAX_FRAME" -DOPCOMMS_MAX_FRAME=1024u
options "largest OPCOMMS_MAX_FRAME" -DOPCOMMS_MAX_FRAME=0x6400000u
step "plain POSIX: musl-gcc" check_c musl-gcc -std=c99 $implement \
    -DOPCOMMS_NO_LINUX -DOPCOMMS_NO_THREADS -D_POSIX_C_SOURCE=200809L
step "OPCOMMS_MAX_FRAME too small" fails check_c gcc -std=c99 $implement -DOPCOMMS_MAX_FRAME=1023u
step "OPCOMMS_MAX_FRAME too large" \
    fails check_c gcc -std=c99 $implement -DOPCOMMS_MAX_FRAME=0x6400001u

public() { # options: what the compiler sees of the public part
    echo '#include "opcomms.h"' | gcc -E -P -I. "$@" -x c - 2>&1
}
public >"$out/public"
same_public() { public "$@" | cmp - "$out/public"; }
step "the public part is not empty" grep -q 'opcomms_err opcomms_new(' "$out/public"
for o in NO_THREADS NO_LINUX NO_POSIX NO_CRC_HARDWARE MAX_FRAME=1024; do
    step "OPCOMMS_$o changes nothing in the public part" same_public -DOPCOMMS_$o
done
step "same_public notices" fails same_public -DOPCOMMS_STATIC

# ---- names --------------------------------------------------------------------------------------

object() { # name, options: position-dependent, so that constant tables are in read-only data
    o_file=$out/$1.o
    shift
    gcc -std=c99 -O0 -fno-pie -fno-pic $implement "$@" -x c -c opcomms.h -o "$o_file"
}
only_ours() {
    ! nm -g --defined-only "$1" | grep -v ' T opcomms_' && nm "$1" | grep -q ' T opcomms_new$'
}
no_data() { ! nm "$1" | grep ' [BbCDdGgSsVv] '; }
refers_to() { # object, extended pattern of whole names
    nm -u "$1" | awk '{ print $2 }' | grep -E "^_*($2)(64)?(_chk)?$"
}
lacks() { ! refers_to "$@"; }

step "object: all" object all
step "object: no threads" object no_threads -DOPCOMMS_NO_THREADS
step "object: no posix" object no_posix -DOPCOMMS_NO_POSIX
step "object: neither, no assert" object bare -DOPCOMMS_NO_POSIX -DOPCOMMS_NO_THREADS -DNDEBUG
step "object: static" object static -DOPCOMMS_STATIC
step "only opcomms_ functions are visible" only_ours "$out/all.o"
step "no mutable variable" no_data "$out/all.o"
exports() { nm -g --defined-only "$out/$1.o" | sed 's/.* //' | sort; }
same_exports() { exports all >"$out/all.txt" && exports "$1" | cmp - "$out/all.txt"; }
for o in no_threads no_posix bare; do
    step "$o: the same functions as ever" same_exports $o
done
nothing_visible() { [ -z "$(exports "$1")" ]; }
step "static: nothing is visible" nothing_visible static
step "nothing_visible notices" fails nothing_visible all
step "same_exports notices" fails same_exports static

forbidden='v?f?printf|v?sn?printf|puts|fputs|putchar|putc|fputc|fwrite|fopen|fdopen|fclose'
forbidden="$forbidden|fflush|perror|std(in|out|err)|syslog|openlog|setlocale|newlocale|uselocale"
forbidden="$forbidden|localeconv|strerror(_r)?|strto(l|ul|ll|ull|d)|strtok|ctype_b_loc|toupper"
forbidden="$forbidden|tolower|isoc99_.*|isoc23_.*|scanf|getenv|secure_getenv|setenv|sigaction"
forbidden="$forbidden|signal|raise|kill|pthread_sigmask|sigprocmask|exit|_Exit|quick_exit|abort"
forbidden="$forbidden|atexit|fork|vfork|system|exec[vlpe]+|getaddrinfo|freeaddrinfo|getnameinfo"
forbidden="$forbidden|gethostby.*|getservby.*|res_.*|inet_.*|sleep|usleep|nanosleep|time"
forbidden="$forbidden|gettimeofday|rand|random|srand|setjmp|longjmp|strcpy|strcat|strncpy|gets"
forbidden="$forbidden|alloca|realloc|calloc|dlopen|select"
sockets='socket|bind|listen|accept4?|connect|send|recv|sendto|recvfrom|sendmsg|recvmsg|shutdown'
sockets="$sockets|[gs]etsockopt|getsockname|getpeername|poll|select|pipe2?|eventfd|htons|ntohs"
files='open|openat|read|pread|write|pwrite|close|fstat|stat|lstat|fcntl|fsync|fdatasync|ftruncate'
files="$files|renameat|rename|unlink|unlinkat|lseek|mmap|getrandom|geteuid|getuid|errno_location"
step "no printf, locale, environment, signal, exit or resolver" lacks "$out/all.o" "$forbidden"
step "no threads: no pthread" lacks "$out/no_threads.o" 'pthread_.*'
step "no posix: no socket and no file" lacks "$out/no_posix.o" "$sockets|$files"
step "neither: memory and strings alone" \
    lacks "$out/bare.o" "$sockets|$files|$forbidden|pthread_.*|clock_.*|assert_fail"
# The patterns find what they are for.
step "pthread is found where it is" refers_to "$out/no_posix.o" 'pthread_.*'
step "sockets are found where they are" refers_to "$out/no_threads.o" "$sockets"
step "files are found where they are" refers_to "$out/no_threads.o" "$files"
bad_object() {
    printf '#include <stdio.h>\nint opc_count;\nint opc_bad(void);\n%s\n' \
        'int opc_bad(void) { static int n = 1; return printf("%d", n++); }' |
        gcc -fno-builtin -fno-pie -fno-pic -x c -c - -o "$out/bad.o"
}
step "object: a bad one" bad_object
step "a forbidden name is found" refers_to "$out/bad.o" "$forbidden"
step "only_ours notices" fails only_ours "$out/bad.o"
step "no_data notices" fails no_data "$out/bad.o"

# The macros of the header are those of the file less those of the headers it includes itself.
macros() { # options: names of macros defined at the end of standard input
    gcc -std=c99 -dM -E -I. "$@" -x c - | sed 's/^#define \([A-Za-z0-9_]*\).*/\1/' | sort -u
}
system_includes() { # pattern of the part: its #include <...> lines
    sed -n "$1" opcomms.h | grep '^#include <'
}
foreign_macros() { # text of the header: macros of ours without a prefix, implementation included
    {
        printf '#define %s\n' '_GNU_SOURCE 1' '_FILE_OFFSET_BITS 64'
        system_includes '1,$p'
    } | macros >"$out/theirs"
    macros $implement <"$1" >"$out/both"
    grep -q '^OPC__FN$' "$out/both" || { echo "the macros were not read"; return 1; }
    ! comm -13 "$out/theirs" "$out/both" | grep -vE '^OPCOMMS_|^OPC__'
}
public_macros() { # the same of the public part: OPCOMMS_ and the include guard alone
    system_includes '1,/Stop here if you only use/p' | macros >"$out/theirs"
    macros <"$1" >"$out/both"
    grep -q '^OPCOMMS_ERRORS$' "$out/both" || { echo "not read"; return 1; }
    ! comm -13 "$out/theirs" "$out/both" | grep -v '^OPCOMMS_'
}
step "macros of the implementation have the prefix" foreign_macros opcomms.h
step "macros of the public part have the prefix" public_macros opcomms.h
sed 's/^#define OPCOMMS_FOREVER/#define FOREVER 1\n&/' opcomms.h >"$out/macro.h"
step "foreign_macros notices" fails foreign_macros "$out/macro.h"
step "public_macros notices" fails public_macros "$out/macro.h"
includes() { [ "$(system_includes "$1" | sort | tr '\n' ' ')" = "$2" ]; }
step "the public part includes stddef.h and stdint.h alone" \
    includes '1,/Stop here if you only use/p' '#include <stddef.h> #include <stdint.h> '

# ---- programs -----------------------------------------------------------------------------------

build() { # program, compiler and options of unit a, of unit b, of main; then runs it
    b_out=$out/$1
    set -- "$2 -DUNIT=unit_a tests/compile/unit.c" "$3 -DUNIT=unit_b tests/compile/unit.c" \
        "$4 tests/compile/main.c"
    b_objects=
    for b_args in "$@"; do
        b_object=$out/unit$(echo "$b_args" | tr -c '[:alnum:]\n' _).o
        b_objects="$b_objects $b_object"
        [ -e "$b_object" ] && continue # built for another program of this run
        $b_args -Wall -Wextra -Werror -I. -Itests/compile -c -o "$b_object" || return 1
    done
    g++ $b_objects -lbearssl -lpthread -o "$b_out" || return 1
    timeout 20 "$b_out"
}
fails_with() { # pattern, command
    f_pattern=$1
    shift
    f_out=$("$@" 2>&1) && return 1
    echo "$f_out" | grep -q "$f_pattern"
}
rm -f "$out"/unit*.o
i=-DUNIT_IMPLEMENTS
step "two units: one implements, one includes" build two "gcc $i" gcc gcc
step "two units, both static" build statics "gcc $i -DOPCOMMS_STATIC" \
    "clang $i -DOPCOMMS_STATIC" gcc
step "static beside plain" build mixed "gcc $i -DOPCOMMS_STATIC" "gcc $i" gcc
step "C++ calls an implementation in C" build cpp "gcc $i" "clang++ -x c++" "g++ -x c++"
step "C calls an implementation in C++" build c "g++ -x c++ $i" "clang" "gcc"
step "a unit that includes only does not link alone" \
    fails_with "undefined reference to .opcomms_new" build alone gcc gcc gcc
step "two plain implementations do not link" \
    fails_with "multiple definition of .opcomms_new" build double "gcc $i" "gcc $i" gcc

late() { # compiler and options: declarations first, implementation later in the same file
    "$@" -Wall -Wextra -Werror -I. tests/compile/late.c -lbearssl -lpthread -o "$out/late" &&
        timeout 20 "$out/late"
}
late_musl() { c musl-gcc "$@" -Wall -Wextra -Werror -I. -fsyntax-only tests/compile/late.c; }
late_refused() { # the first error is ours and tells what to do
    "$@" -I. -fsyntax-only tests/compile/late.c 2>&1 | grep 'error:' | head -1 |
        grep -q 'error:.*opcomms.h: .*Include opcomms.h first'
}
step "implemented late: gcc gnu11" late gcc -std=gnu11
step "implemented late: clang gnu11" late clang -std=gnu11
step "implemented late: g++" late g++ -x c++
step "implemented late: musl-gcc gnu11" late_musl -std=gnu11
step "implemented late: gcc gnu11, no posix" late gcc -std=gnu11 -DOPCOMMS_NO_POSIX
step "implemented late: c99 with the remedy of the error" \
    late gcc -std=c99 -D_POSIX_C_SOURCE=200809L
step "implemented late: c99 is refused in words by gcc" late_refused gcc -std=c99
step "implemented late: c99 is refused in words by clang" late_refused clang -std=c99
step "implemented late: c99, no posix, is refused in words" \
    late_refused gcc -std=c99 -DOPCOMMS_NO_POSIX
step "implemented late: c99, neither posix nor threads" \
    late gcc -std=c99 -DOPCOMMS_NO_POSIX -DOPCOMMS_NO_THREADS
total
