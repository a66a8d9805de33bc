/* Private keys, as DER or as PEM: a key that is taken can sign, has a public key hash, and survives
   being written and read; one that is refused leaves nothing behind. */
#include "fuzz.h"

static void fuzz_key_signs(const opc__key *k) {
    static const uint8_t digest[32] = {7};
    if (k->kind == OPC__KEY_EC) {
        uint8_t sig[160];
        br_ec_public_key pub;
        uint8_t q[97];
        size_t n = br_ecdsa_sign_asn1_get_default()(br_ec_get_default(), &br_sha256_vtable, digest,
                                                    &k->ec, sig);
        FUZZ_CHECK(n > 0);
        memcpy(q, k->q, k->q_len);
        pub.curve = k->ec.curve;
        pub.q = q;
        pub.qlen = k->q_len;
        FUZZ_CHECK(br_ecdsa_vrfy_asn1_get_default()(br_ec_get_default(), digest, 32, &pub, sig, n));
    } else {
        FUZZ_CHECK(k->kind == OPC__KEY_RSA);
        FUZZ_CHECK(k->bits >= 2048 && k->bits <= 4096 && k->n_len == (k->bits + 7) / 8);
        FUZZ_CHECK(opc__key_rsa_works(k));
    }
}

static void fuzz_key_rewrite(const opc__key *k) {
    static opc__key back;
    uint8_t der[OPC__KEY_DER_MAX], hash[32], again[32];
    size_t len = 0;
    opc__key_hash(k, hash);
    if (k->kind == OPC__KEY_RSA) { /* d is written, not used */
        len = opc__key_write_rsa(k, k->e, k->e_len, der, sizeof der);
        FUZZ_CHECK(len > 0);
    } else if (k->ec.curve == BR_EC_secp256r1) {
        len = opc__key_write_p256(k, der, sizeof der);
        FUZZ_CHECK(len > 0);
    }
    if (len == 0) return; /* P-384 is read only */
    memset(&back, 0, sizeof back);
    FUZZ_CHECK(opc__key_from_der(&back, der, len) == OPCOMMS_OK);
    opc__key_hash(&back, again);
    FUZZ_CHECK(memcmp(hash, again, 32) == 0);
    opc__key_wipe(&back);
}

static int fuzz_key_is_wiped(const opc__key *k) {
    const uint8_t *p = (const uint8_t *)k;
    size_t i;
    for (i = 0; i < sizeof *k; i++) {
        if (p[i] != 0) return 0;
    }
    return 1;
}

static void fuzz_key(const uint8_t *data, size_t size) {
    static opc__key k;
    opcomms_error err;
    uint8_t *text = fuzz_exact(data, size);
    opcomms_err rc;
    if (size > 0 && data[0] == OPC__DER_SEQ) {
        memset(&k, 0, sizeof k);
        rc = opc__key_from_der(&k, text, size);
    } else {
        memset(&k, 0xa5, sizeof k);
        rc = opc__key_from_pem(&k, (const char *)text, size, &err);
        if (rc != OPCOMMS_OK) {
            FUZZ_CHECK(fuzz_key_is_wiped(&k));
            FUZZ_CHECK(err.code == rc && err.text[0] != 0);
        }
    }
    FUZZ_CHECK(rc == OPCOMMS_OK || rc == OPCOMMS_E_NO_PEM || rc == OPCOMMS_E_ENCRYPTED ||
               rc == OPCOMMS_E_KEY_DAMAGED || rc == OPCOMMS_E_KEY_TYPE);
    if (rc == OPCOMMS_OK) {
        fuzz_key_signs(&k);
        fuzz_key_rewrite(&k);
    }
    opc__key_wipe(&k);
    free(text);
}

FUZZ_TARGET(fuzz_key)
