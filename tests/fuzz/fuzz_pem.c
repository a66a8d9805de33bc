/* PEM: what is decoded, encoded by our writer, decodes to the same; the room given is kept to
   exactly; text around the block changes nothing. */
#include "fuzz.h"

static void fuzz_pem(const uint8_t *data, size_t size) {
    static uint8_t der[OPC__KEY_DER_MAX], again[OPC__KEY_DER_MAX];
    uint8_t *text = fuzz_exact(data, size);
    size_t len = 0, again_len = 0;
    opcomms_err rc = opc__pem_decode((const char *)text, size, der, sizeof der, &len);
    FUZZ_CHECK(rc == OPCOMMS_OK || rc == OPCOMMS_E_NO_PEM || rc == OPCOMMS_E_ENCRYPTED ||
               rc == OPCOMMS_E_KEY_DAMAGED || rc == OPCOMMS_E_KEY_TYPE);
    { /* the same for who has a password: only what is said of encryption differs */
        int form = 9;
        opcomms_err block =
            opc__pem_block((const char *)text, size, again, sizeof again, &again_len, &form);
        FUZZ_CHECK(form >= OPC__PEM_PLAIN && form <= OPC__PEM_OLD);
        FUZZ_CHECK(rc == (form == OPC__PEM_PLAIN ? block : OPCOMMS_E_ENCRYPTED));
        FUZZ_CHECK(form == OPC__PEM_OLD ? block == OPCOMMS_E_ENCRYPTED
                                        : block != OPCOMMS_E_ENCRYPTED);
        if (rc == OPCOMMS_OK) FUZZ_CHECK(again_len == len && memcmp(again, der, len) == 0);
    }
    if (rc == OPCOMMS_OK) {
        uint8_t *tight = (uint8_t *)malloc(len);
        fuzz_buf around;
        char *out = (char *)malloc(2 * len + 256);
        opc__text t;
        FUZZ_CHECK(len > 0 && len <= sizeof der);
        FUZZ_CHECK(opc__pem_decode((const char *)text, size, tight, len, &again_len) == OPCOMMS_OK);
        FUZZ_CHECK(again_len == len && memcmp(tight, der, len) == 0);
        FUZZ_CHECK(opc__pem_decode((const char *)text, size, tight, len - 1, &again_len) ==
                   OPCOMMS_E_KEY_TYPE);
        opc__text_init(&t, out, 2 * len + 256);
        opc__pem_encode(&t, "PRIVATE KEY", der, len);
        FUZZ_CHECK(!t.cut);
        memset(&around, 0, sizeof around);
        fuzz_str(&around, "text before\r\n");
        fuzz_put(&around, out, t.len);
        fuzz_str(&around, "-----BEGIN another-----\nAAAA\n");
        FUZZ_CHECK(opc__pem_decode((const char *)around.p, around.len, again, sizeof again,
                                   &again_len) == OPCOMMS_OK);
        FUZZ_CHECK(again_len == len && memcmp(again, der, len) == 0);
        fuzz_free(&around);
        free(out);
        free(tight);
    }
    free(text);
}

FUZZ_TARGET(fuzz_pem)
