#!/bin/sh
# How the files in this folder were made, once, with OpenSSL 3.0. Running it again gives other keys
# and therefore other hashes in expected.txt. The names are those of reference.txt, which holds the
# verdicts of the reference on such files; those below the second mark are ours.
set -e
cd "$(dirname "$0")"
rsa() { openssl genpkey -algorithm RSA -pkeyopt "rsa_keygen_bits:$1" -out "$2" 2>/dev/null; }
ec() { openssl genpkey -algorithm EC -pkeyopt "ec_paramgen_curve:$1" \
        -pkeyopt ec_param_enc:named_curve -out "$2"; }

rsa 2048 base.key
rsa 1024 rsa1024.key
rsa 2047 rsa2047.key
rsa 2048 rsa2048.key
rsa 3072 rsa3072.key
rsa 4096 rsa4096.key
rsa 4104 rsa4104.key
rsa 8192 rsa8192.key
openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -pkeyopt rsa_keygen_pubexp:3 \
    -out rsa_e3.key 2>/dev/null
ec P-256 p256.key
openssl genpkey -algorithm ED25519 -out ed.key
openssl pkey -in base.key -traditional -out pkcs1.key
openssl pkcs8 -topk8 -in base.key -v2 aes-128-cbc -passout pass:secret -out enc.key
openssl pkey -in base.key -outform DER -out der.key
openssl req -x509 -key base.key -subj /CN=x -days 1 -out cert.key
: >empty.key
{ printf '\377\376\n'; cat base.key; } >badutf8.key
sed 's/$/\r/' base.key >crlf.key
sed 's/^/    /' base.key >indent.key
{ echo 'some text'; cat base.key; echo 'more text'; } >junk.key
{ sed -n 1p base.key; sed '1d;$d' base.key | tr -d '\n'; echo; sed -n '$p' base.key; } >longline.key
tr -d '\n' <base.key >oneline.key
printf %s "$(cat base.key)" >nonewline.key
{ sed -n 1p base.key; printf 'Comment: a header\nX-Other: 1\n\n'; sed 1d base.key; } >headers.key
sed 's/PRIVATE KEY/FOO BAR/' base.key >wronglabel.key
{ printf "b'"; awk '{printf "%s\\n", $0}' base.key; printf "'"; } >bytesrepr.key
cat p256.key base.key >two_ec_first.key
cat base.key p256.key >two_rsa_first.key

# Ours: forms and refusals the reference's list does not have.
openssl pkey -in rsa3072.key -traditional -out pkcs1_3072.key
openssl pkey -in rsa4096.key -traditional -out pkcs1_4096.key
openssl pkey -in p256.key -traditional -out sec1_p256.key
ec P-384 p384.key
openssl pkey -in p384.key -traditional -out sec1_p384.key
ec P-521 p521.key
openssl pkey -in p521.key -traditional -out sec1_p521.key
ec secp256k1 k256.key
openssl ecparam -name prime256v1 -param_enc explicit -genkey -noout -out explicit.key
{ openssl ecparam -name prime256v1; openssl pkey -in p256.key -traditional; } >params_first.key
openssl rsa -in base.key -traditional -aes128 -passout pass:secret -out enc_pkcs1.key 2>/dev/null
openssl genpkey -algorithm RSA-PSS -pkeyopt rsa_keygen_bits:2048 -out pss.key 2>/dev/null
openssl genpkey -algorithm X25519 -out x25519.key
openssl pkey -in base.key -pubout -out public.key
{ sed -n 1p base.key; sed '1d;$d' base.key; } >noend.key
{ sed -n 1p base.key; echo; sed -n '$p' base.key; } >nobody.key
sed '5s/./*/' base.key >badchar.key
{ printf "b'"; awk '{printf "%s\\n", $0}' sec1_p256.key; printf "'"; } >bytesrepr_ec.key

hash() { openssl pkey -in "$1" -pubout -outform DER 2>/dev/null | openssl sha256 | sed 's/.*= //'; }
for f in base crlf indent junk longline nonewline oneline headers wronglabel bytesrepr badutf8 pkcs1 \
    two_rsa_first; do echo "$f.key $(hash base.key)"; done >hashes.txt
for f in rsa2048 rsa3072 rsa4096 p384; do echo "$f.key $(hash $f.key)"; done >>hashes.txt
for f in p256 sec1_p256 two_ec_first bytesrepr_ec params_first; do echo "$f.key $(hash p256.key)"; done >>hashes.txt
echo "pkcs1_3072.key $(hash rsa3072.key)" >>hashes.txt
echo "pkcs1_4096.key $(hash rsa4096.key)" >>hashes.txt
echo "sec1_p384.key $(hash p384.key)" >>hashes.txt
