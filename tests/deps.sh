#!/bin/sh
# deps.sh package:file ...  installs each package whose file is missing.
want=
for pair in "$@"; do
    [ -e "${pair#*:}" ] || want="$want ${pair%%:*}"
done
[ -z "$want" ] && exit 0
sudo=
[ "$(id -u)" = 0 ] || sudo=sudo
if ! command -v apt-get >/dev/null 2>&1; then
    echo "missing:$want; install them with your package manager" >&2
    exit 1
fi
$sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq $want ||
    { echo "could not install:$want" >&2; exit 1; }
