#!/bin/sh
# How the certificates in this folder were made, once, with OpenSSL 3.0: each is one variation of the
# reference's leaf. The names are those of leaf_as_client.txt and leaf_as_server.txt, which hold the
# reference's verdicts. builtin_ca.key is the CA key that every copy of the Rust system carries in its
# source; it is public and proves nothing. reference_*.der are the reference's own certificates.
set -e
cd "$(dirname "$0")"
out=$PWD
keys=$out/../keys
certs=$out/../../../certs
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cn='/CN=rcgen self signed cert'
san='subjectAltName=DNS:localhost,IP:127.0.0.1'
long='-startdate 19750101000000Z -enddate 40960101000000Z'

openssl x509 -inform DER -in reference_ca.der -out "$work/ca.pem"
openssl req -x509 -key "$certs/own_ca.key" -subj "$cn" -days 1 -out "$work/otherca.pem"
openssl req -x509 -key builtin_ca.key -subj '/CN=another name' -days 1 -out "$work/otherdn.pem"

cat >"$work/ca.cnf" <<EOF
[ca]
default_ca = one
[one]
dir = $work
database = $work/index
serial = $work/serial
new_certs_dir = $work
policy = any
unique_subject = no
default_md = sha256
[any]
commonName = supplied
EOF

# leaf NAME KEY EXTENSIONS [more options of openssl ca]; SERIAL, SUBJECT, DATES, CA, CAKEY override
leaf() {
    name=$1 key=$2 ext=$3
    shift 3
    : >"$work/index"
    echo "${SERIAL:-0123456789abcdef}" >"$work/serial"
    openssl req -new -key "$key" -subj "${SUBJECT:-$cn}" -out "$work/req.pem"
    printf '[x]\n%s\n' "$ext" >"$work/ext"
    set -- "$@" -extfile "$work/ext" -extensions x
    [ -n "$ext" ] || set -- -md sha256
    openssl ca -batch -notext -preserveDN -config "$work/ca.cnf" -in "$work/req.pem" \
        -cert "${CA:-$work/ca.pem}" -keyfile "${CAKEY:-builtin_ca.key}" ${DATES:-$long} \
        "$@" -out "$work/leaf.pem" 2>"$work/log" || { cat "$work/log"; exit 1; }
    openssl x509 -in "$work/leaf.pem" -outform DER -out "$out/$name.der"
}

k=$certs/rsa_1.key
leaf base "$k" "$san"
leaf ca_false "$k" "$san
basicConstraints=critical,CA:FALSE"
leaf ca_true "$k" "$san
basicConstraints=critical,CA:TRUE"
leaf cakey builtin_ca.key "$san"
leaf crit_unknown "$k" "$san
1.2.3.4.5=critical,DER:0500"
leaf noncrit_unknown "$k" "$san
1.2.3.4.5=DER:0500"
leaf ed25519 "$keys/ed.key" "$san"
leaf eku_client "$k" "$san
extendedKeyUsage=clientAuth"
leaf eku_server "$k" "$san
extendedKeyUsage=serverAuth"
DATES='-startdate 20000101000000Z -enddate 20200101000000Z' leaf expired2 "$k" "$san"
leaf ku_keyenc "$k" "$san
keyUsage=critical,keyEncipherment"
leaf nosan "$k" 'basicConstraints=CA:FALSE'
leaf san_iponly "$k" 'subjectAltName=IP:127.0.0.1'
leaf san_other "$k" 'subjectAltName=DNS:example.com'
CA=$work/otherca.pem CAKEY=$certs/own_ca.key leaf otherca_leaf "$k" "$san"
CA=$work/otherdn.pem leaf otherdn_leaf "$k" "$san"
leaf p256 "$certs/p256_1.key" "$san"
leaf p384 "$certs/p384_1.key" "$san"
leaf pss "$k" "$san" -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:32
leaf rsa1024 "$keys/rsa1024.key" "$san"
leaf rsa3072 "$keys/rsa3072.key" "$san"
leaf rsa4096 "$keys/rsa4096.key" "$san"
openssl req -x509 -key "$k" -subj "$cn" -days 1 -out "$work/self.pem"
CA=$work/self.pem CAKEY=$k leaf selfsigned "$k" "$san"
SERIAL=00 leaf serial0 "$k" "$san"
SERIAL=7f02030405060708090a0b0c0d0e0f1011121314 leaf serial20 "$k" "$san"
SERIAL=7f02030405060708090a0b0c0d0e0f101112131415 leaf serial_long "$k" "$san"
leaf sha1 "$k" "$san" -md sha1
leaf sha384 "$k" "$san" -md sha384
leaf sha512 "$k" "$san" -md sha512
SUBJECT='/CN=somebody' leaf subj_other "$k" "$san"
leaf v1 "$k" ''
# Ours: keys the reference refuses in key files, as they would come from a peer.
leaf rsa2047 "$keys/rsa2047.key" "$san"
leaf rsa_e3 "$keys/rsa_e3.key" "$san"
leaf p521 "$keys/p521.key" "$san"

hash() { openssl pkey -pubin -outform DER 2>/dev/null | openssl sha256 | sed 's/.*= //'; }
: >hashes.txt
for f in *.der; do
    echo "$f $(openssl x509 -inform DER -in "$f" -noout -pubkey | hash)" >>hashes.txt
done
