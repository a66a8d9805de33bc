#!/bin/sh
# deps.sh package:what ...  installs each package whose `what` is missing: a file, or a command.
want=
for pair in "$@"; do
    what=${pair#*:}
    case "$what" in
    /*) [ -e "$what" ] || want="$want ${pair%%:*}" ;;
    *) command -v "$what" >/dev/null 2>&1 || want="$want ${pair%%:*}" ;;
    esac
done
[ -z "$want" ] && exit 0
sudo=
[ "$(id -u)" = 0 ] || sudo=sudo
if ! command -v apt-get >/dev/null 2>&1; then
    echo "missing:$want (Debian's names); install them with your package manager" >&2
    exit 1
fi
echo "installing:$want"
$sudo apt-get update -qq >/dev/null &&
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends $want >/dev/null ||
    { echo "could not install:$want" >&2; exit 1; }
