/* The certificate reader: a hash is found only in exactly the bytes of one certificate, and is the
   hash of what BearSSL decodes where that key is written the usual way; PEM and DER agree. */
#include "fuzz.h"

static void fuzz_cert_decoded(const uint8_t *der, size_t len, const uint8_t hash[32]) {
    br_x509_decoder_context dc;
    br_x509_pkey *pk;
    uint8_t spki[OPC__KEY_SPKI_MAX], same[32];
    size_t n = 0, i;
    br_x509_decoder_init(&dc, NULL, NULL);
    br_x509_decoder_push(&dc, der, len);
    pk = br_x509_decoder_get_pkey(&dc);
    if (pk == NULL || opc__key_spki_hash_x509(pk, same) != OPCOMMS_OK) return;
    if (pk->key_type == BR_KEYTYPE_RSA) {
        n = opc__key_spki_write(spki, sizeof spki, pk->key.rsa.n, pk->key.rsa.nlen, pk->key.rsa.e,
                                pk->key.rsa.elen, 0, NULL, 0);
    } else {
        n = opc__key_spki_write(spki, sizeof spki, NULL, 0, NULL, 0, pk->key.ec.curve,
                                pk->key.ec.q, pk->key.ec.qlen);
    }
    FUZZ_CHECK(n > 0);
    for (i = 0; i + n <= len; i++) { /* the usual encoding stands in it: then it is that one */
        if (memcmp(der + i, spki, n) == 0) {
            FUZZ_CHECK(memcmp(hash, same, 32) == 0);
            return;
        }
    }
}

static void fuzz_cert(const uint8_t *data, size_t size) {
    uint8_t *der = fuzz_exact(data, size);
    uint8_t hash[32], again[32];
    opcomms_err rc = opc__cert_hash(der, size, hash);
    FUZZ_CHECK(rc == OPCOMMS_OK || rc == OPCOMMS_E_CERT);
    if (rc == OPCOMMS_OK) {
        uint8_t *more = (uint8_t *)malloc(size + 1);
        memcpy(more, der, size);
        more[size] = 0;
        FUZZ_CHECK(opc__cert_hash(more, size + 1, again) == OPCOMMS_E_CERT);
        FUZZ_CHECK(opc__cert_hash(der, size - 1, again) == OPCOMMS_E_CERT);
        free(more);
        fuzz_cert_decoded(der, size, hash);
        if (size <= OPC__KEY_DER_MAX) {
            char *pem = (char *)malloc(2 * size + 256);
            fuzz_file *f;
            opc__text t;
            opcomms_error err;
            opc__text_init(&t, pem, 2 * size + 256);
            opc__pem_encode(&t, "CERTIFICATE", der, size);
            fuzz_disk_clear();
            f = fuzz_create("cert.pem");
            fuzz_put(&f->data, pem, t.len);
            FUZZ_CHECK(opc__cert_file_hash(fuzz_platform(), "cert.pem", again, &err) == OPCOMMS_OK);
            FUZZ_CHECK(memcmp(hash, again, 32) == 0);
            fuzz_disk_clear();
            free(pem);
        }
    }
    free(der);
}

FUZZ_TARGET(fuzz_cert)
