/* Private keys, as DER or as PEM, under the password "secret" or none: a key that is taken can
   sign, has a public key hash, and survives being written and read, and being put under a password;
   one that is refused leaves nothing behind. */
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

static int fuzz_key_asked;

static int fuzz_key_tell(void *user, char *buf, size_t cap) {
    const char *password = (const char *)user;
    FUZZ_CHECK(cap == OPC__SEAL_PASSWORD_MAX);
    fuzz_key_asked++;
    memcpy(buf, password, strlen(password));
    return (int)strlen(password);
}

/* Few iterations: the time goes into the rest. */
static void fuzz_key_ask(opc__seal_ask *ask, const char *password) {
    static char text[16];
    strcpy(text, password);
    opc__seal_ask_init(ask, fuzz_key_tell, text);
    ask->iterations_max = 200;
    fuzz_key_asked = 0;
}

static int fuzz_key_refused(opcomms_err rc) {
    return rc == OPCOMMS_E_NO_PEM || rc == OPCOMMS_E_KEY_DAMAGED || rc == OPCOMMS_E_KEY_TYPE ||
           rc == OPCOMMS_E_PASSWORD;
}

/* An EncryptedPrivateKeyInfo: nobody is asked unless it is in order, noise is not handed out. */
static void fuzz_key_open(const uint8_t *der, size_t size) {
    static uint8_t out[OPC__KEY_DER_MAX];
    static opc__key k;
    opc__seal_ask ask;
    opc__seal_form f;
    const char *why = "", *again = "";
    size_t len = 0, i;
    opcomms_err rc, form;
    if (size > sizeof out) return; /* larger than any that is read from PEM */
    fuzz_key_ask(&ask, "secret");
    memset(&f, 0, sizeof f);
    memset(out, 0, sizeof out);
    rc = opc__seal_open(der, size, &ask, out, &len, &why);
    form = opc__seal_parse(der, size, ask.iterations_max, &f, &again);
    FUZZ_CHECK(fuzz_key_asked == (form == OPCOMMS_OK));
    FUZZ_CHECK(form == OPCOMMS_OK || form == rc);
    if (rc == OPCOMMS_OK) {
        FUZZ_CHECK(len > 0 && len < f.data_len && len + OPC__SEAL_BLOCK >= f.data_len);
        memset(&k, 0, sizeof k);
        FUZZ_CHECK(opc__key_from_der(&k, out, len) != OPCOMMS_E_ENCRYPTED);
        opc__key_wipe(&k);
    } else {
        FUZZ_CHECK(fuzz_key_refused(rc));
        for (i = 0; i < sizeof out; i++) FUZZ_CHECK(out[i] == 0);
    }
    if (form == OPCOMMS_OK) { /* what is in order is what we would write, but for a key length */
        size_t n = opc__seal_write(&f, out, sizeof out);
        FUZZ_CHECK(n > 0 && n <= size);
        FUZZ_CHECK(opc__seal_parse(out, n, ask.iterations_max, &f, &again) == OPCOMMS_OK);
    }
}

/* Whole blocks, as if they were what comes out of the cipher. */
static void fuzz_key_check(const uint8_t *p, size_t size) {
    size_t len = 0;
    opcomms_err rc = opc__seal_check(p, size, &len);
    if (rc == OPCOMMS_OK) {
        FUZZ_CHECK(len < size && len + OPC__SEAL_BLOCK >= size && p[0] == OPC__DER_SEQ);
    } else {
        FUZZ_CHECK(rc == OPCOMMS_E_PASSWORD || rc == OPCOMMS_E_KEY_DAMAGED);
    }
}

/* A file with a key in it: whatever was around it, under a password it is the same key. */
static void fuzz_key_change(const opc__key *k, const char *text, size_t size) {
    static char out[OPC__KEY_PEM_MAX];
    static opc__key back;
    opc__seal_ask was, now;
    uint8_t hash[32], again[32];
    size_t len = 0;
    opcomms_err rc;
    fuzz_key_ask(&was, "secret");
    now = was;
    rc = opc__seal_change(fuzz_platform(), text, size, &was, &now, 3, out, sizeof out, &len, NULL);
    /* attributes, or a sealed one of the largest size, may not fit */
    FUZZ_CHECK(rc == OPCOMMS_OK || rc == OPCOMMS_E_INVAL || rc == OPCOMMS_E_KEY_TYPE);
    if (rc != OPCOMMS_OK) return;
    FUZZ_CHECK(opc__key_from_pem(&back, out, len, NULL) == OPCOMMS_E_ENCRYPTED);
    FUZZ_CHECK(opc__seal_from_pem(&back, out, len, &now, NULL) == OPCOMMS_OK);
    opc__key_hash(k, hash);
    opc__key_hash(&back, again);
    FUZZ_CHECK(memcmp(hash, again, 32) == 0);
    fuzz_key_ask(&now, "another");
    FUZZ_CHECK(opc__seal_from_pem(&back, out, len, &now, NULL) == OPCOMMS_E_PASSWORD);
    FUZZ_CHECK(fuzz_key_is_wiped(&back));
}

/* The same text with somebody to ask. */
static void fuzz_key_with_password(const char *text, size_t size, opcomms_err without) {
    static opc__key k;
    opc__seal_ask ask;
    opcomms_error err;
    opcomms_err rc;
    fuzz_key_ask(&ask, "secret");
    memset(&k, 0xa5, sizeof k);
    rc = opc__seal_from_pem(&k, text, size, &ask, &err);
    if (rc != OPCOMMS_OK) {
        FUZZ_CHECK(fuzz_key_refused(rc));
        FUZZ_CHECK(fuzz_key_is_wiped(&k));
        FUZZ_CHECK(err.code == rc && err.text[0] != 0);
    }
    FUZZ_CHECK(without == OPCOMMS_E_ENCRYPTED || (rc == without && fuzz_key_asked == 0));
    FUZZ_CHECK(fuzz_key_asked <= 1);
    if (rc == OPCOMMS_OK) {
        if (without != OPCOMMS_OK) fuzz_key_signs(&k);
        fuzz_key_change(&k, text, size);
    }
    opc__key_wipe(&k);
}

static void fuzz_key(const uint8_t *data, size_t size) {
    static opc__key k;
    opcomms_error err;
    uint8_t *text = fuzz_exact(data, size);
    opcomms_err rc;
    if (size > 0 && size % OPC__SEAL_BLOCK == 0) fuzz_key_check(text, size);
    if (size > 0 && data[0] == OPC__DER_SEQ) {
        fuzz_key_open(text, size);
        memset(&k, 0, sizeof k);
        rc = opc__key_from_der(&k, text, size);
    } else {
        memset(&k, 0xa5, sizeof k);
        rc = opc__key_from_pem(&k, (const char *)text, size, &err);
        if (rc != OPCOMMS_OK) {
            FUZZ_CHECK(fuzz_key_is_wiped(&k));
            FUZZ_CHECK(err.code == rc && err.text[0] != 0);
        }
        fuzz_key_with_password((const char *)text, size, rc);
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
