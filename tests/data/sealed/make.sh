#!/bin/sh
# How the files in this folder were made, once, with OpenSSL 3.0, from the keys beside it. All have
# the password "secret"; p256.pem has few iterations, because tests open it thousands of times.
set -e
cd "$(dirname "$0")"
seal() { # from, to, more options
    from=$1
    to=$2
    shift 2
    openssl pkcs8 -topk8 -in "../keys/$from" -passout pass:secret -out "$to" "$@"
}
aes="-v2 aes-256-cbc"
seal p256.key p256.pem $aes -iter 16
seal p384.key p384.pem $aes
seal rsa2048.key rsa2048.pem $aes
seal rsa4096.key rsa4096.pem $aes
seal p521.key p521.pem $aes
# Forms that are refused.
seal p256.key aes128.pem -v2 aes-128-cbc
seal p256.key des3.pem -v2 des3
seal p256.key ofb.pem -v2 aes-256-ofb
seal p256.key sha1.pem $aes -v2prf hmacWithSHA1
seal p256.key sha512.pem $aes -v2prf hmacWithSHA512
seal p256.key scrypt.pem -scrypt
seal p256.key pbes1.pem -v1 PBE-MD5-DES -provider legacy -provider default
seal p256.key pkcs12.pem -v1 PBE-SHA1-3DES
