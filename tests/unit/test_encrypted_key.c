/* Private keys under a password: OpenSSL's files are read, ours are read by OpenSSL, all else is
   refused by name, damage never yields a key, and no secret stays behind. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#include "test.h"

#include <sys/mman.h>

#define KEYS TEST_DATA "/keys/"
#define SEALED TEST_DATA "/sealed/"

static char dir_path[] = "build/tests/sealed.XXXXXX";

static char *load(const char *path, size_t *len) {
    FILE *f = fopen(path, "rb");
    char *p = (char *)malloc(65536);
    *len = 0;
    CHECK(f != NULL);
    if (f != NULL) {
        *len = fread(p, 1, 65536, f);
        fclose(f);
    }
    return p;
}

/* First line of a command's output, without its end; 0 when the command failed. */
static int ask(const char *command, char *out, size_t cap) {
    FILE *f = popen(command, "r");
    if (f == NULL) return 0;
    if (fgets(out, (int)cap, f) == NULL) out[0] = 0;
    out[strcspn(out, "\n")] = 0;
    while (fgetc(f) != EOF) continue;
    return pclose(f) == 0;
}

static int run(const char *command) {
    char out[256];
    int ok = ask(command, out, sizeof out);
    if (!ok) printf("%s: %s\n", command, out);
    return ok;
}

/* The public key hash as OpenSSL sees it. */
static void openssl_hash(const char *path, const char *password, char hash[80]) {
    char command[512];
    snprintf(command, sizeof command,
             "openssl pkey -in %s -passin 'pass:%s' -pubout -outform DER 2>/dev/null |"
             " openssl sha256 | sed 's/.*= //'",
             path, password);
    CHECK(ask(command, hash, 80));
    CHECK_EQ(strlen(hash), 64);
}

/* ---- who is asked ---- */

typedef struct person {
    const char *says;
    int returns; /* with says NULL */
    int asked;
    size_t cap;
} person;

static int tell(void *user, char *buf, size_t cap) {
    person *p = (person *)user;
    p->asked++;
    p->cap = cap;
    if (p->says == NULL) return p->returns;
    memcpy(buf, p->says, strlen(p->says));
    return (int)strlen(p->says);
}

static person someone(const char *says) {
    person p;
    memset(&p, 0, sizeof p);
    p.says = says;
    return p;
}

static opcomms_err hash_of(const char *path, const char *password, char hash[65],
                           opcomms_error *err) {
    person p = someone(password);
    hash[0] = 0;
    return opcomms_get_pubk_hash_from_privk_with_password(path, tell, &p, hash, err);
}

/* A copy in memory of exactly this size, opened with at most `iterations`. */
static opcomms_err try_der(const uint8_t *der, size_t len, person *p, uint32_t iterations,
                           const char **why) {
    static uint8_t out[OPC__KEY_DER_MAX];
    static opc__key k;
    uint8_t *exact = (uint8_t *)malloc(len > 0 ? len : 1);
    opc__seal_ask a;
    const char *reason = "";
    size_t n = 0;
    opcomms_err rc;
    opc__seal_ask_init(&a, tell, p);
    a.iterations_max = iterations;
    memcpy(exact, der, len);
    memset(&k, 0, sizeof k);
    memset(out, 0, sizeof out);
    rc = opc__seal_open(exact, len, &a, out, &n, &reason);
    if (rc == OPCOMMS_OK) {
        rc = opc__key_from_der(&k, out, n);
    } else { /* and nothing of what came out */
        uint8_t dirt = 0;
        size_t i;
        for (i = 0; i < sizeof out; i++) dirt |= out[i];
        CHECK_EQ(dirt, 0);
    }
    if (why != NULL) *why = reason;
    opc__mem_wipe(&k, sizeof k);
    free(exact);
    return rc;
}

/* The DER of a PEM file, decrypted or not. */
static size_t der_of(const char *path, uint8_t *der, size_t cap) {
    size_t len, n = 0;
    int form = 0;
    char *pem = load(path, &len);
    CHECK_EQ(opc__pem_block(pem, len, der, cap, &n, &form), OPCOMMS_OK);
    free(pem);
    return n;
}

/* ---- the key derivation ---- */

/* RFC 7914 11, the first 32 of 64 bytes, which are the first block. */
TEST(pbkdf2_gives_what_the_rfc_says) {
    static const uint8_t one[32] = {0x55, 0xac, 0x04, 0x6e, 0x56, 0xe3, 0x08, 0x9f,
                                    0xec, 0x16, 0x91, 0xc2, 0x25, 0x44, 0xb6, 0x05,
                                    0xf9, 0x41, 0x85, 0x21, 0x6d, 0xde, 0x04, 0x65,
                                    0xe6, 0x8b, 0x9d, 0x57, 0xc2, 0x0d, 0xac, 0xbc};
    static const uint8_t many[32] = {0x4d, 0xdc, 0xd8, 0xf6, 0x0b, 0x98, 0xbe, 0x21,
                                     0x83, 0x0c, 0xee, 0x5e, 0xf2, 0x27, 0x01, 0xf9,
                                     0x64, 0x1a, 0x44, 0x18, 0xd0, 0x4c, 0x04, 0x14,
                                     0xae, 0xff, 0x08, 0x87, 0x6b, 0x34, 0xab, 0x56};
    uint8_t key[32];
    opc__seal_derive("passwd", 6, (const uint8_t *)"salt", 4, 1, key);
    CHECK(memcmp(key, one, 32) == 0);
    opc__seal_derive("Password", 8, (const uint8_t *)"NaCl", 4, 80000, key);
    CHECK(memcmp(key, many, 32) == 0);
}

/* ---- OpenSSL writes, we read ---- */

TEST(openssl_writes_and_we_read) {
    static const struct {
        const char *key, *more, *password;
    } t[] = {{"p256.key", "", "secret"},
             {"p384.key", "", "secret"},
             {"rsa2048.key", "", "secret"},
             {"rsa3072.key", "", "secret"},
             {"rsa4096.key", "", "secret"},
             {"sec1_p256.key", "", "secret"},
             {"pkcs1.key", "", "secret"},
             {"p256.key", "-iter 1", "secret"},
             {"p256.key", "-iter 127", "secret"},
             {"p256.key", "-iter 128", "secret"},
             {"p256.key", "-iter 65536", "secret"},
             {"p256.key", "-iter 100000", "secret"},
             {"p256.key", "", ""},
             {"p256.key", "", "x"},
             {"p256.key", "", "two words, \"quoted\" \\ and \t"},
             {"p256.key", "", "\303\244\342\202\254\360\237\224\221"},
             {"p256.key", "", "a password that is longer than the 64 bytes of a SHA-256 block, so "
                              "that HMAC hashes it first"}};
    size_t i;
    for (i = 0; i < sizeof t / sizeof t[0]; i++) {
        char path[128], command[512], want[80] = "", hash[65];
        opcomms_error err;
        snprintf(path, sizeof path, "%s/from_openssl.%d", dir_path, (int)i);
        snprintf(command, sizeof command,
                 "openssl pkcs8 -topk8 -v2 aes-256-cbc %s -in " KEYS "%s -out %s -passout "
                 "'pass:%s' 2>&1",
                 t[i].more, t[i].key, path, t[i].password);
        CHECK(run(command));
        snprintf(command, sizeof command, KEYS "%s", t[i].key);
        openssl_hash(command, "", want);
        CHECK_EQ(hash_of(path, t[i].password, hash, &err), OPCOMMS_OK);
        CHECK_STR(hash, want);
        CHECK_EQ(hash_of(path, "another", hash, &err), OPCOMMS_E_PASSWORD);
        CHECK_STR(hash, "");
        CHECK_EQ(opcomms_get_pubk_hash_from_privk(path, hash, &err), OPCOMMS_E_ENCRYPTED);
    }
}

TEST(the_files_of_another_day_are_read_too) {
    static const char *const names[] = {"p256", "p384", "rsa2048", "rsa4096"};
    size_t i;
    for (i = 0; i < 4; i++) {
        char path[128], want[65] = "", hash[65] = "", *pem;
        size_t len;
        person p = someone("secret");
        snprintf(path, sizeof path, KEYS "%s.key", names[i]);
        CHECK_EQ(opcomms_get_pubk_hash_from_privk(path, want, NULL), OPCOMMS_OK);
        snprintf(path, sizeof path, SEALED "%s.pem", names[i]);
        CHECK_EQ(hash_of(path, "secret", hash, NULL), OPCOMMS_OK);
        CHECK_STR(hash, want);
        pem = load(path, &len);
        hash[0] = 0;
        CHECK_EQ(opcomms_pubk_hash_from_pem_with_password(pem, len, tell, &p, hash, NULL),
                 OPCOMMS_OK);
        CHECK_STR(hash, want);
        CHECK_EQ(p.asked, 1);
        CHECK_EQ(opcomms_pubk_hash_from_pem(pem, len, hash, NULL), OPCOMMS_E_ENCRYPTED);
        free(pem);
    }
}

TEST(what_is_not_our_form_is_refused_by_name_and_without_asking) {
    static const struct {
        const char *path, *says;
    } t[] = {{SEALED "aes128.pem", "not AES-256-CBC"},
             {SEALED "des3.pem", "not AES-256-CBC"},
             {SEALED "ofb.pem", "not AES-256-CBC"},
             {SEALED "sha1.pem", "HMAC-SHA-1, not"},
             {SEALED "sha512.pem", "PRF is not HMAC-SHA-256"},
             {SEALED "scrypt.pem", "not PBKDF2"},
             {SEALED "pbes1.pem", "not PBES2"},
             {SEALED "pkcs12.pem", "not PBES2"},
             {KEYS "enc.key", "not AES-256-CBC"},
             {KEYS "enc_pkcs1.key", "old one of PEM"}};
    size_t i;
    char hash[65] = "";
    opcomms_error err;
    for (i = 0; i < sizeof t / sizeof t[0]; i++) {
        person p = someone("secret");
        CHECK_EQ(opcomms_get_pubk_hash_from_privk_with_password(t[i].path, tell, &p, hash, &err),
                 OPCOMMS_E_KEY_TYPE);
        CHECK_EQ(err.code, OPCOMMS_E_KEY_TYPE);
        CHECK(strstr(err.text, t[i].says) != NULL);
        CHECK_EQ(p.asked, 0);
        CHECK_EQ(opcomms_get_pubk_hash_from_privk(t[i].path, hash, &err), OPCOMMS_E_ENCRYPTED);
    }
    { /* our form around a key that is not ours */
        CHECK_EQ(hash_of(SEALED "p521.pem", "secret", hash, &err), OPCOMMS_E_KEY_TYPE);
        CHECK_EQ(hash_of(SEALED "p521.pem", "wrong", hash, &err), OPCOMMS_E_PASSWORD);
    }
}

TEST(a_key_that_is_not_encrypted_needs_no_password) {
    char hash[65], want[65] = "";
    person p = someone("secret");
    CHECK_EQ(opcomms_get_pubk_hash_from_privk(KEYS "p256.key", want, NULL), OPCOMMS_OK);
    CHECK_EQ(opcomms_get_pubk_hash_from_privk_with_password(KEYS "p256.key", tell, &p, hash, NULL),
             OPCOMMS_OK);
    CHECK_STR(hash, want);
    CHECK_EQ(p.asked, 0);
    CHECK_EQ(hash_of("build/no/such.key", "x", hash, NULL), OPCOMMS_E_NOT_FOUND);
    CHECK_EQ(hash_of(KEYS "empty.key", "x", hash, NULL), OPCOMMS_E_NO_PEM);
    CHECK_EQ(hash_of(KEYS "cert.key", "x", hash, NULL), OPCOMMS_E_KEY_TYPE);
    CHECK_EQ(hash_of(NULL, "x", hash, NULL), OPCOMMS_E_INVAL);
}

/* ---- wrong passwords ---- */

/* One in 256 wrong passwords gives right padding; the outline of what it pads has to be wrong. */
TEST(no_wrong_password_is_taken_for_anything_else) {
    uint8_t der[OPC__KEY_DER_MAX];
    size_t len = der_of(SEALED "p256.pem", der, sizeof der);
    int i, wrong = 0;
    person p = someone("secret");
    CHECK_EQ(try_der(der, len, &p, 100, NULL), OPCOMMS_OK);
    for (i = 0; i < 5000; i++) {
        char text[16];
        snprintf(text, sizeof text, "%d", i);
        p.says = text;
        wrong += try_der(der, len, &p, 100, NULL) == OPCOMMS_E_PASSWORD;
    }
    CHECK_EQ(wrong, 5000);
    p.says = "secret ";
    CHECK_EQ(try_der(der, len, &p, 100, NULL), OPCOMMS_E_PASSWORD);
    p.says = "secre";
    CHECK_EQ(try_der(der, len, &p, 100, NULL), OPCOMMS_E_PASSWORD);
    p.says = "Secret";
    CHECK_EQ(try_der(der, len, &p, 100, NULL), OPCOMMS_E_PASSWORD);
    p.says = "";
    CHECK_EQ(try_der(der, len, &p, 100, NULL), OPCOMMS_E_PASSWORD);
}

static opcomms_err check(const uint8_t *p, size_t n, unsigned pad) {
    uint8_t *exact = (uint8_t *)malloc(n);
    size_t len = 77, i;
    opcomms_err rc;
    memcpy(exact, p, n);
    for (i = 0; i < pad; i++) exact[n - 1 - i] = (uint8_t)pad;
    rc = opc__seal_check(exact, n, &len);
    CHECK(rc != OPCOMMS_OK || len == n - pad);
    CHECK(rc == OPCOMMS_OK || len == 77);
    free(exact);
    return rc;
}

TEST(padding_and_outline_must_both_be_right) {
    /* SEQUENCE { INTEGER 0, SEQUENCE { OID 1.2.3 }, OCTET STRING 7 }, 14 bytes */
    static const uint8_t small[14] = {0x30, 0x0c, 2, 1, 0, 0x30, 4, 6, 2, 0x2a, 3, 4, 1, 7};
    uint8_t b[64];
    size_t i;
    memset(b, 0, sizeof b);
    memcpy(b, small, 14);
    CHECK_EQ(check(b, 16, 2), OPCOMMS_OK);
    CHECK_EQ(check(b, 16, 1), OPCOMMS_E_PASSWORD); /* one byte is left over */
    CHECK_EQ(check(b, 16, 3), OPCOMMS_E_PASSWORD); /* one is missing */
    CHECK_EQ(check(b, 16, 0), OPCOMMS_E_PASSWORD);
    CHECK_EQ(check(b, 16, 16), OPCOMMS_E_PASSWORD);
    CHECK_EQ(check(b, 32, 16), OPCOMMS_E_PASSWORD);
    memset(b + 14, 17, 18);
    CHECK_EQ(check(b, 32, 0), OPCOMMS_E_PASSWORD); /* a block and one more */
    for (i = 0; i < 2; i++) {
        memset(b + 14, 2, 2);
        b[14 + i] ^= 1;
        CHECK_EQ(check(b, 16, 0), OPCOMMS_E_PASSWORD);
    }
    for (i = 0; i < 14; i++) { /* tags and lengths; the OID's and the key's content are free */
        if (i == 4 || (i >= 9 && i <= 10) || i == 13) continue;
        b[i] ^= 1;
        CHECK_EQ(check(b, 16, 2), OPCOMMS_E_PASSWORD);
        b[i] ^= 1;
    }
    b[4] = 2; /* there are versions 0 and 1 */
    CHECK_EQ(check(b, 16, 2), OPCOMMS_E_PASSWORD);
    b[4] = 1; /* and 1 is with the public key */
    CHECK_EQ(check(b, 16, 2), OPCOMMS_E_KEY_DAMAGED);
    memcpy(b + 14, "\x81\x02\x00\x05", 4);
    b[1] = 0x10;
    CHECK_EQ(check(b, 32, 14), OPCOMMS_OK);
    b[14] = 0xa0;
    CHECK_EQ(check(b, 32, 14), OPCOMMS_E_KEY_DAMAGED);
    b[4] = 0;
    CHECK_EQ(check(b, 32, 14), OPCOMMS_OK);
    b[15] = 3;
    CHECK_EQ(check(b, 32, 14), OPCOMMS_E_PASSWORD);
}

/* ---- damage ---- */

TEST(an_encrypted_key_cut_off_at_any_byte_is_damaged_and_nobody_is_asked) {
    static const char *const files[] = {SEALED "p256.pem", SEALED "rsa2048.pem"};
    size_t f, n;
    for (f = 0; f < 2; f++) {
        uint8_t der[OPC__KEY_DER_MAX];
        size_t len = der_of(files[f], der, sizeof der), pem_len;
        char *pem = load(files[f], &pem_len);
        person p = someone("secret");
        int bad = 0, taken = 0;
        for (n = 0; n < len; n++) {
            bad += try_der(der, n, &p, 5000, NULL) != OPCOMMS_E_KEY_DAMAGED;
        }
        CHECK_EQ(bad, 0);
        CHECK_EQ(p.asked, 0);
        CHECK_EQ(try_der(der, len, &p, 5000, NULL), OPCOMMS_OK);
        der[len] = 0; /* and one byte more is too many */
        CHECK_EQ(try_der(der, len + 1, &p, 5000, NULL), OPCOMMS_E_KEY_DAMAGED);
        CHECK_EQ(p.asked, 1);
        for (n = 0; n + 27 < pem_len; n++) { /* before the "-----END " is whole */
            char *exact = (char *)malloc(n > 0 ? n : 1), hash[65];
            memcpy(exact, pem, n);
            taken += opcomms_pubk_hash_from_pem_with_password(exact, n, tell, &p, hash, NULL) !=
                     OPCOMMS_E_NO_PEM;
            free(exact);
        }
        CHECK_EQ(taken, 0);
        free(pem);
    }
}

TEST(an_encrypted_key_with_any_bit_flipped_is_refused) {
    uint8_t der[OPC__KEY_DER_MAX];
    size_t len = der_of(SEALED "p256.pem", der, sizeof der), i;
    int seen[64];
    opc__seal_form f;
    const char *why = "";
    person p = someone("secret");
    memset(seen, 0, sizeof seen);
    memset(&f, 0, sizeof f);
    CHECK_EQ(opc__seal_parse(der, len, 100, &f, &why), OPCOMMS_OK);
    for (i = 0; i < len * 8; i++) {
        opcomms_err rc;
        der[i / 8] = (uint8_t)(der[i / 8] ^ (1u << (i % 8)));
        rc = try_der(der, len, &p, 100000, NULL);
        CHECK(rc == OPCOMMS_E_PASSWORD || rc == OPCOMMS_E_KEY_DAMAGED || rc == OPCOMMS_E_KEY_TYPE);
        seen[-(int)rc & 63]++;
        if (der + i / 8 >= f.salt && der + i / 8 < f.salt + f.salt_len) {
            CHECK_EQ(rc, OPCOMMS_E_PASSWORD);
        }
        der[i / 8] = (uint8_t)(der[i / 8] ^ (1u << (i % 8)));
    }
    CHECK(seen[-OPCOMMS_E_PASSWORD] > 100);
    CHECK(seen[-OPCOMMS_E_KEY_DAMAGED] > 100);
    CHECK(seen[-OPCOMMS_E_KEY_TYPE] > 100);
    CHECK_EQ(try_der(der, len, &p, 100, NULL), OPCOMMS_OK);
}

TEST(an_encrypted_key_of_any_content_never_crashes) {
    uint8_t der[OPC__KEY_DER_MAX], was[OPC__KEY_DER_MAX];
    size_t len = der_of(SEALED "p256.pem", der, sizeof der), i;
    unsigned seed = 11;
    person p = someone("secret");
    memcpy(was, der, len);
    for (i = 0; i < 20000; i++) {
        unsigned k, changes = 2 + i % 6;
        opcomms_err rc;
        for (k = 0; k < changes; k++) {
            seed = seed * 1103515245u + 12345u; /* mostly in front, where the outline is */
            der[(seed >> 8) % (i % 3 ? 100 : len)] = (uint8_t)(seed >> 24);
        }
        rc = try_der(der, len, &p, 200, NULL);
        CHECK(rc == OPCOMMS_E_PASSWORD || rc == OPCOMMS_E_KEY_DAMAGED ||
              rc == OPCOMMS_E_KEY_TYPE || memcmp(was, der, len) == 0);
        memcpy(der, was, len);
    }
}

/* ---- bounds ---- */

typedef struct recipe {
    const char *scheme, *kdf, *prf, *cipher; /* OIDs as hex */
    size_t salt, iv, data;
    const char *iterations; /* content of the INTEGER as hex */
    const char *key_length; /* the same; NULL: absent */
    const char *prf_after;  /* what follows the PRF's OID */
} recipe;

static void put_hex(opc__derw *w, const char *hex) {
    uint8_t b[64];
    size_t i, n = strlen(hex) / 2;
    for (i = 0; i < n; i++) {
        unsigned v = 0;
        CHECK_EQ(sscanf(hex + 2 * i, "%2x", &v), 1);
        b[i] = (uint8_t)v;
    }
    opc__derw_bytes(w, b, n);
}

static void put_element(opc__derw *w, unsigned tag, const char *hex) {
    const uint8_t *end = w->p;
    put_hex(w, hex);
    opc__derw_wrap(w, tag, end);
}

static void put_zeros(opc__derw *w, size_t n) {
    static const uint8_t zeros[512] = {0};
    const uint8_t *end = w->p;
    opc__derw_bytes(w, zeros, n);
    opc__derw_wrap(w, OPC__DER_OCTETS, end);
}

static recipe usual(void) {
    recipe r;
    r.scheme = "2a864886f70d01050d";
    r.kdf = "2a864886f70d01050c";
    r.prf = "2a864886f70d0209";
    r.cipher = "60864801650304012a";
    r.salt = 8;
    r.iv = 16;
    r.data = 32;
    r.iterations = "01";
    r.key_length = NULL;
    r.prf_after = "0500";
    return r;
}

static size_t cook(const recipe *r, uint8_t *out, size_t cap) {
    opc__derw w;
    const uint8_t *end, *alg, *mark;
    opc__derw_init(&w, out, cap);
    end = w.p;
    put_zeros(&w, r->data);
    alg = mark = w.p;
    put_zeros(&w, r->iv);
    put_element(&w, OPC__DER_OID, r->cipher);
    opc__derw_wrap(&w, OPC__DER_SEQ, mark);
    mark = w.p;
    if (r->prf != NULL) {
        put_hex(&w, r->prf_after);
        put_element(&w, OPC__DER_OID, r->prf);
        opc__derw_wrap(&w, OPC__DER_SEQ, mark);
    }
    if (r->key_length != NULL) put_element(&w, OPC__DER_INT, r->key_length);
    put_element(&w, OPC__DER_INT, r->iterations);
    put_zeros(&w, r->salt);
    opc__derw_wrap(&w, OPC__DER_SEQ, mark);
    put_element(&w, OPC__DER_OID, r->kdf);
    opc__derw_wrap(&w, OPC__DER_SEQ, mark);
    opc__derw_wrap(&w, OPC__DER_SEQ, alg);
    put_element(&w, OPC__DER_OID, r->scheme);
    opc__derw_wrap(&w, OPC__DER_SEQ, alg);
    opc__derw_wrap(&w, OPC__DER_SEQ, end);
    CHECK(!w.full);
    memmove(out, w.p, (size_t)(end - w.p));
    return (size_t)(end - w.p);
}

/* Zeros are no key: what is well formed ends with a wrong password, the rest earlier. */
static opcomms_err taste(const recipe *r) {
    uint8_t der[1024];
    size_t len = cook(r, der, sizeof der);
    person p = someone("secret");
    const char *why = "";
    opcomms_err rc = try_der(der, len, &p, 1000, &why);
    CHECK_EQ(p.asked, rc == OPCOMMS_E_PASSWORD);
    CHECK(rc != OPCOMMS_E_KEY_TYPE || strstr(why, "its ") == why || strstr(why, "it ") == why);
    return rc;
}

#define TASTE(field, value, want)       \
    do {                                \
        recipe taste_r = usual();       \
        taste_r.field = value;          \
        CHECK_EQ(taste(&taste_r), want); \
    } while (0)

TEST(every_part_of_the_form_is_bounded) {
    TASTE(salt, 8, OPCOMMS_E_PASSWORD);
    TASTE(salt, 64, OPCOMMS_E_PASSWORD);
    TASTE(salt, 0, OPCOMMS_E_KEY_TYPE);
    TASTE(salt, 7, OPCOMMS_E_KEY_TYPE);
    TASTE(salt, 65, OPCOMMS_E_KEY_TYPE);
    TASTE(iv, 0, OPCOMMS_E_KEY_TYPE);
    TASTE(iv, 15, OPCOMMS_E_KEY_TYPE);
    TASTE(iv, 17, OPCOMMS_E_KEY_TYPE);
    TASTE(data, 16, OPCOMMS_E_PASSWORD);
    TASTE(data, 0, OPCOMMS_E_KEY_DAMAGED);
    TASTE(data, 15, OPCOMMS_E_KEY_DAMAGED);
    TASTE(data, 17, OPCOMMS_E_KEY_DAMAGED);
    TASTE(key_length, "20", OPCOMMS_E_PASSWORD);
    TASTE(key_length, "10", OPCOMMS_E_KEY_TYPE);
    TASTE(key_length, "21", OPCOMMS_E_KEY_TYPE);
    TASTE(key_length, "0120", OPCOMMS_E_KEY_TYPE);
    TASTE(key_length, "00", OPCOMMS_E_KEY_TYPE);
    TASTE(key_length, "a0", OPCOMMS_E_KEY_DAMAGED); /* negative */
    TASTE(prf, NULL, OPCOMMS_E_KEY_TYPE);
    TASTE(prf, "2a864886f70d0207", OPCOMMS_E_KEY_TYPE); /* SHA-1, said */
    TASTE(prf_after, "", OPCOMMS_E_KEY_DAMAGED);
    TASTE(prf_after, "0501aa", OPCOMMS_E_KEY_DAMAGED);
    TASTE(prf_after, "05000500", OPCOMMS_E_KEY_DAMAGED);
    TASTE(prf_after, "0400", OPCOMMS_E_KEY_DAMAGED);
    TASTE(cipher, "608648016503040102", OPCOMMS_E_KEY_TYPE); /* aes128-CBC */
    TASTE(kdf, "2a864886f70d01050a", OPCOMMS_E_KEY_TYPE);
    TASTE(scheme, "2a864886f70d010503", OPCOMMS_E_KEY_TYPE);
}

TEST(a_file_cannot_ask_for_more_work_than_ten_million_iterations) {
    static const struct {
        const char *hex;
        opcomms_err want; /* of the parser alone: nobody waits for them here */
        uint32_t count;
    } t[] = {{"00", OPCOMMS_E_KEY_DAMAGED, 0},
             {"", OPCOMMS_E_KEY_DAMAGED, 0},
             {"80", OPCOMMS_E_KEY_DAMAGED, 0}, /* negative */
             {"ffffffff", OPCOMMS_E_KEY_DAMAGED, 0},
             {"01", OPCOMMS_OK, 1},
             {"0927c0", OPCOMMS_OK, 600000},
             {"00989680", OPCOMMS_OK, 10000000},
             {"00989681", OPCOMMS_E_KEY_TYPE, 0},
             {"7fffffff", OPCOMMS_E_KEY_TYPE, 0},
             {"00ffffffff", OPCOMMS_E_KEY_TYPE, 0},
             {"0100000001", OPCOMMS_E_KEY_TYPE, 0}, /* 1 in 32 bits */
             {"010000000000000001", OPCOMMS_E_KEY_TYPE, 0},
             {"010000000000000000000000000000000001", OPCOMMS_E_KEY_TYPE, 0}};
    size_t i;
    opc__seal_ask a;
    opc__seal_ask_init(&a, tell, NULL);
    CHECK_EQ(a.iterations_max, 10000000);
    for (i = 0; i < sizeof t / sizeof t[0]; i++) {
        uint8_t der[1024];
        opc__seal_form f;
        const char *why = "";
        recipe r = usual();
        size_t len;
        r.iterations = t[i].hex;
        len = cook(&r, der, sizeof der);
        memset(&f, 0, sizeof f);
        CHECK_EQ(opc__seal_parse(der, len, a.iterations_max, &f, &why), t[i].want);
        if (t[i].want == OPCOMMS_OK) CHECK_EQ(f.iterations, t[i].count);
    }
}

/* ---- the callback ---- */

TEST(the_callback_is_called_once_and_what_it_returns_is_checked) {
    char hash[65] = "";
    opcomms_error err;
    person p = someone("secret");
    CHECK_EQ(opcomms_get_pubk_hash_from_privk_with_password(SEALED "p256.pem", tell, &p, hash,
                                                            &err),
             OPCOMMS_OK);
    CHECK_EQ(p.asked, 1);
    CHECK_EQ(p.cap, 1024);
    p = someone(NULL);
    p.returns = -1;
    hash[0] = 0;
    CHECK_EQ(opcomms_get_pubk_hash_from_privk_with_password(SEALED "p256.pem", tell, &p, hash,
                                                            &err),
             OPCOMMS_E_ENCRYPTED);
    CHECK(strstr(err.text, "no password was given") != NULL);
    p.returns = -2147483647 - 1;
    CHECK_EQ(opcomms_get_pubk_hash_from_privk_with_password(SEALED "p256.pem", tell, &p, hash,
                                                            &err),
             OPCOMMS_E_ENCRYPTED);
    p.returns = 1025;
    CHECK_EQ(opcomms_get_pubk_hash_from_privk_with_password(SEALED "p256.pem", tell, &p, hash,
                                                            &err),
             OPCOMMS_E_INVAL);
    p.returns = 2147483647;
    CHECK_EQ(opcomms_get_pubk_hash_from_privk_with_password(SEALED "p256.pem", tell, &p, hash,
                                                            &err),
             OPCOMMS_E_INVAL);
    p.returns = 1024; /* it may use the whole buffer; here it wrote nothing: 1 024 zeros */
    CHECK_EQ(opcomms_get_pubk_hash_from_privk_with_password(SEALED "p256.pem", tell, &p, hash,
                                                            &err),
             OPCOMMS_E_PASSWORD);
    CHECK_EQ(p.asked, 5);
    CHECK_STR(hash, "");
    CHECK_EQ(opcomms_get_pubk_hash_from_privk_with_password(SEALED "p256.pem", NULL, NULL, hash,
                                                            &err),
             OPCOMMS_E_ENCRYPTED);
}

/* ---- a peer, a list, a certificate ---- */

static opcomms_err open_peer(const char *key_file, const char *ca_key_file, person *p,
                             opcomms_peer **out, opcomms_error *err) {
    opcomms_config cfg;
    opcomms_allow_list *allow = NULL;
    opcomms_routing_table *routes = NULL;
    opcomms_err rc;
    CHECK_EQ(opcomms_allow_list_new(NULL, &allow), OPCOMMS_OK);
    CHECK_EQ(opcomms_routing_table_new(NULL, &routes), OPCOMMS_OK);
    opcomms_config_init(&cfg);
    cfg.flags = OPCOMMS_MEMORY_STORE | OPCOMMS_NO_LISTEN | OPCOMMS_NO_BACKGROUND;
    cfg.key_file = key_file;
    cfg.ca_key_file = ca_key_file;
    cfg.allow = allow;
    cfg.routes = routes;
    if (p != NULL) {
        cfg.password = tell;
        cfg.password_user = p;
    }
    rc = opcomms_new(&cfg, out, err);
    opcomms_allow_list_release(allow);
    opcomms_routing_table_release(routes);
    return rc;
}

TEST(a_peer_opens_with_encrypted_keys) {
    char want[65] = "", hash[65] = "";
    opcomms_error err;
    opcomms_peer *peer = NULL;
    person p = someone("secret");
    CHECK_EQ(opcomms_get_pubk_hash_from_privk(KEYS "p256.key", want, NULL), OPCOMMS_OK);
    CHECK_EQ(open_peer(SEALED "p256.pem", NULL, &p, &peer, &err), OPCOMMS_OK);
    CHECK_EQ(p.asked, 1);
    CHECK_EQ(opcomms_get_pubk_hash(peer, hash), OPCOMMS_OK);
    CHECK_STR(hash, want);
    opcomms_free(peer);
    CHECK_EQ(p.asked, 1);
    peer = NULL;
    CHECK_EQ(open_peer(SEALED "p256.pem", SEALED "rsa2048.pem", &p, &peer, &err), OPCOMMS_OK);
    CHECK_EQ(p.asked, 3); /* for each of the two */
    opcomms_free(peer);
    peer = NULL;
    CHECK_EQ(open_peer(KEYS "p256.key", SEALED "rsa2048.pem", &p, &peer, &err), OPCOMMS_OK);
    CHECK_EQ(p.asked, 4);
    opcomms_free(peer);
    peer = NULL;
    CHECK_EQ(open_peer(SEALED "p256.pem", NULL, NULL, &peer, &err), OPCOMMS_E_ENCRYPTED);
    CHECK_EQ(open_peer(KEYS "p256.key", SEALED "rsa2048.pem", NULL, &peer, &err),
             OPCOMMS_E_ENCRYPTED);
    p.says = "wrong";
    CHECK_EQ(open_peer(SEALED "p256.pem", NULL, &p, &peer, &err), OPCOMMS_E_PASSWORD);
    CHECK_EQ(err.code, OPCOMMS_E_PASSWORD);
    CHECK_EQ(open_peer(KEYS "p256.key", SEALED "rsa2048.pem", &p, &peer, &err),
             OPCOMMS_E_PASSWORD);
    CHECK(peer == NULL);
}

TEST(a_config_without_the_new_fields_is_still_taken) {
    opcomms_config cfg;
    opcomms_config full;
    memset(&cfg, 0xa5, sizeof cfg); /* beyond its size there is something else */
    memset(&cfg, 0, offsetof(opcomms_config, password));
    cfg.size = (uint32_t)offsetof(opcomms_config, password);
    cfg.key_file = "x";
    cfg.allow = (opcomms_allow_list *)&cfg;
    cfg.routes = (opcomms_routing_table *)&cfg;
    CHECK_EQ(opc__pub_config(&cfg, &full, NULL), OPCOMMS_OK);
    CHECK(full.password == NULL);
    CHECK(full.password_user == NULL);
}

TEST(a_list_takes_an_encrypted_key_file) {
    opcomms_allow_list *list = NULL;
    char want[65] = "";
    opcomms_error err;
    person p = someone("wrong");
    CHECK_EQ(opcomms_get_pubk_hash_from_privk(KEYS "p256.key", want, NULL), OPCOMMS_OK);
    CHECK_EQ(opcomms_allow_list_new(NULL, &list), OPCOMMS_OK);
    CHECK_EQ(opcomms_allow_list_add_key_file(list, SEALED "p256.pem", NULL, &err),
             OPCOMMS_E_ENCRYPTED);
    CHECK_EQ(opcomms_allow_list_add_key_file_with_password(list, SEALED "p256.pem", NULL, tell, &p,
                                                           &err),
             OPCOMMS_E_PASSWORD);
    CHECK_EQ(opcomms_allow_list_count(list), 0);
    p.says = "secret";
    CHECK_EQ(opcomms_allow_list_add_key_file_with_password(list, SEALED "p256.pem", "10.0.0.1",
                                                           tell, &p, &err),
             OPCOMMS_OK);
    CHECK_EQ(opcomms_allow_list_is_allowed(list, want, "10.0.0.1"), 1);
    CHECK_EQ(opcomms_allow_list_is_allowed(list, want, "10.0.0.2"), 0);
    opcomms_allow_list_release(list);
}

TEST(certificates_are_made_with_encrypted_keys) {
    static char a[4096], b[4096];
    size_t a_len = 0, b_len = 0;
    opcomms_error err;
    person p = someone("secret");
    CHECK_EQ(opcomms_make_ca_cert(KEYS "rsa2048.key", a, sizeof a, &a_len, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_make_ca_cert_with_password(SEALED "rsa2048.pem", tell, &p, b, sizeof b, &b_len,
                                                &err),
             OPCOMMS_OK);
    CHECK_EQ(p.asked, 1);
    CHECK(a_len == b_len && memcmp(a, b, a_len) == 0);
    CHECK_EQ(opcomms_make_cert_with_password(SEALED "p256.pem", SEALED "rsa2048.pem", tell, &p, a,
                                             sizeof a, &a_len, &err),
             OPCOMMS_OK);
    CHECK_EQ(p.asked, 3);
    CHECK_EQ(opcomms_make_cert(KEYS "p256.key", SEALED "rsa2048.pem", a, sizeof a, &a_len, &err),
             OPCOMMS_E_ENCRYPTED);
    p.says = "wrong";
    CHECK_EQ(opcomms_make_cert_with_password(KEYS "p256.key", SEALED "rsa2048.pem", tell, &p, a,
                                             sizeof a, &a_len, &err),
             OPCOMMS_E_PASSWORD);
    CHECK_EQ(opcomms_make_cert_with_password(NULL, NULL, tell, &p, a, sizeof a, &a_len, &err),
             OPCOMMS_E_INVAL);
}

/* ---- we write, OpenSSL reads ---- */

TEST(we_write_and_openssl_reads) {
    static const struct {
        opcomms_key_type type;
        uint32_t iterations;
        const char *said; /* as openssl asn1parse prints the count */
    } t[] = {{OPCOMMS_KEY_P256, 0, ":0927C0"},
             {OPCOMMS_KEY_P256, 1000, ":03E8"},
             {OPCOMMS_KEY_P256, 40000, ":9C40"},
             {OPCOMMS_KEY_RSA_2048, 1000, ":03E8"}}; /* larger ones take long to make; see below */
    static const char *const password = "corr\303\251ct horse";
    size_t i;
    mode_t old = umask(0);
    for (i = 0; i < sizeof t / sizeof t[0]; i++) {
        char path[128], command[512], out[256], hash[65] = "", want[80] = "";
        struct stat st;
        opcomms_error err;
        person p = someone(password);
        snprintf(path, sizeof path, "%s/ours.%d", dir_path, (int)i);
        CHECK_EQ(opcomms_generate_key_file_with_password(path, t[i].type, tell, &p, t[i].iterations,
                                                         &err),
                 OPCOMMS_OK);
        CHECK_EQ(p.asked, 1);
        CHECK_EQ(stat(path, &st), 0);
        CHECK_EQ(st.st_mode & 07777, 0600);
        CHECK_EQ(hash_of(path, password, hash, &err), OPCOMMS_OK);
        openssl_hash(path, password, want);
        CHECK_STR(hash, want);
        snprintf(command, sizeof command,
                 "openssl pkey -in %s -passin 'pass:%s' -check -noout 2>&1", path, password);
        CHECK(ask(command, out, sizeof out));
        CHECK_STR(out, "Key is valid");
        snprintf(command, sizeof command,
                 "openssl pkey -in %s -passin pass:wrong -noout 2>/dev/null", path);
        CHECK(!ask(command, out, sizeof out));
        snprintf(command, sizeof command,
                 "openssl asn1parse -in %s | sed -n 's/.*\\(PBES2\\|PBKDF2\\|INTEGER *:.*\\|"
                 "hmacWith.*\\|aes-.*\\)$/\\1/p' | tr -s '\\n ' ' '",
                 path);
        CHECK(ask(command, out, sizeof out));
        {
            char said[128];
            snprintf(said, sizeof said, "PBES2 PBKDF2 INTEGER %s hmacWithSHA256 aes-256-cbc ",
                     t[i].said);
            CHECK_STR(out, said);
        }
        snprintf(command, sizeof command, "head -1 %s", path);
        CHECK(ask(command, out, sizeof out));
        CHECK_STR(out, "-----BEGIN ENCRYPTED PRIVATE KEY-----");
        CHECK_EQ(opcomms_generate_key_file_with_password(path, t[i].type, tell, &p, 1000, &err),
                 OPCOMMS_E_IN_USE);
        CHECK_EQ(hash_of(path, password, hash, &err), OPCOMMS_OK);
        CHECK_STR(hash, want);
    }
    umask(old);
}

TEST(a_key_to_be_written_needs_a_password_and_a_sensible_count) {
    char pem[4096], path[128];
    size_t len = 77, i;
    opcomms_error err;
    person p = someone("");
    CHECK_EQ(opcomms_generate_key_pem_with_password(OPCOMMS_KEY_P256, tell, &p, 1000, pem,
                                                    sizeof pem, &len, &err),
             OPCOMMS_E_PASSWORD);
    p = someone(NULL);
    p.returns = -1;
    CHECK_EQ(opcomms_generate_key_pem_with_password(OPCOMMS_KEY_P256, tell, &p, 1000, pem,
                                                    sizeof pem, &len, &err),
             OPCOMMS_E_PASSWORD);
    p.returns = 1025;
    CHECK_EQ(opcomms_generate_key_pem_with_password(OPCOMMS_KEY_P256, tell, &p, 1000, pem,
                                                    sizeof pem, &len, &err),
             OPCOMMS_E_INVAL);
    p = someone("secret");
    CHECK_EQ(opcomms_generate_key_pem_with_password(OPCOMMS_KEY_P256, tell, &p, 999, pem,
                                                    sizeof pem, &len, &err),
             OPCOMMS_E_INVAL);
    CHECK_EQ(opcomms_generate_key_pem_with_password(OPCOMMS_KEY_P256, tell, &p, 10000001, pem,
                                                    sizeof pem, &len, &err),
             OPCOMMS_E_INVAL);
    CHECK_EQ(opcomms_generate_key_pem_with_password((opcomms_key_type)9, tell, &p, 1000, pem,
                                                    sizeof pem, &len, &err),
             OPCOMMS_E_KEY_TYPE);
    CHECK_EQ(opcomms_generate_key_pem_with_password(OPCOMMS_KEY_P256, NULL, NULL, 1000, pem,
                                                    sizeof pem, &len, &err),
             OPCOMMS_E_INVAL);
    CHECK_EQ(p.asked, 0);
    snprintf(path, sizeof path, "%s/none", dir_path);
    p.says = "";
    CHECK_EQ(opcomms_generate_key_file_with_password(path, OPCOMMS_KEY_P256, tell, &p, 1000, &err),
             OPCOMMS_E_PASSWORD);
    CHECK(access(path, F_OK) != 0);
    p.says = "secret";
    memset(pem, 'x', 100);
    CHECK_EQ(opcomms_generate_key_pem_with_password(OPCOMMS_KEY_P256, tell, &p, 1000, pem, 100,
                                                    &len, &err),
             OPCOMMS_E_BUFFER);
    for (i = 0; i < 100; i++) CHECK_EQ(pem[i], 0);
    CHECK_EQ(len, 77);
}

static int random_fails;
static uint8_t random_byte;
static opcomms_err known_random(void *user, void *out, size_t len) {
    (void)user;
    if (random_fails) return OPCOMMS_E_RANDOM;
    memset(out, random_byte++, len);
    return OPCOMMS_OK;
}

TEST(salt_and_iv_come_from_the_platform_s_randomness) {
    opcomms_platform plat = *opc__plat_default();
    uint8_t der[OPC__KEY_DER_MAX], out[OPC__KEY_DER_MAX];
    size_t len = der_of(KEYS "p256.key", der, sizeof der), n = 0, i;
    opc__seal_form f;
    const char *why = "";
    plat.random = known_random;
    random_byte = 0x42;
    CHECK_EQ(opc__seal_close(&plat, "x", 1, 1, der, len, out, sizeof out, &n), OPCOMMS_OK);
    CHECK_EQ(opc__seal_parse(out, n, 1, &f, &why), OPCOMMS_OK);
    CHECK_EQ(f.salt_len, 16);
    for (i = 0; i < 16; i++) CHECK(f.salt[i] == 0x42 && f.iv[i] == 0x42);
    random_fails = 1;
    CHECK_EQ(opc__seal_close(&plat, "x", 1, 1, der, len, out, sizeof out, &n), OPCOMMS_E_RANDOM);
    random_fails = 0;
}

/* Every length of content around the blocks' edges, there and back. */
TEST(what_is_closed_opens_again_at_every_length) {
    size_t n;
    uint8_t der[128], out[OPC__KEY_DER_MAX], back[OPC__KEY_DER_MAX];
    for (n = 14; n < 100; n++) {
        size_t len = 0, back_len = 0;
        const char *why = "";
        person p = someone("secret");
        opc__seal_ask a;
        opc__seal_ask_init(&a, tell, &p);
        memset(der, (int)n, sizeof der);
        memcpy(der, "\x30\x00\x02\x01\x00\x30\x04\x06\x02\x2a\x03\x04\x00", 13);
        der[1] = (uint8_t)(n - 2);
        der[12] = (uint8_t)(n - 13);
        CHECK_EQ(opc__seal_close(opc__plat_default(), "secret", 6, 3, der, n, out, sizeof out,
                                 &len),
                 OPCOMMS_OK);
        CHECK_EQ(opc__seal_open(out, len, &a, back, &back_len, &why), OPCOMMS_OK);
        CHECK(back_len == n && memcmp(back, der, n) == 0);
    }
}

/* ---- changing the password ---- */

static void copy_key(const char *from, const char *name, char path[128], mode_t mode) {
    size_t len;
    char *p = load(from, &len);
    FILE *f;
    snprintf(path, 128, "%s/%s", dir_path, name);
    f = fopen(path, "wb");
    CHECK(f != NULL);
    if (f != NULL) {
        CHECK_EQ(fwrite(p, 1, len, f), len);
        CHECK_EQ(fclose(f), 0);
    }
    CHECK_EQ(chmod(path, mode), 0);
    free(p);
}

static int same_file(const char *a, const char *b) {
    size_t a_len, b_len;
    char *pa = load(a, &a_len), *pb = load(b, &b_len);
    int same = a_len == b_len && memcmp(pa, pb, a_len) == 0;
    free(pa);
    free(pb);
    return same;
}

TEST(every_form_of_key_is_put_under_a_password_changed_and_taken_out_again) {
    static const char *const names[] = {
        "p256.key",      "p384.key",      "rsa2048.key",  "rsa4096.key",      "pkcs1.key",
        "sec1_p256.key", "sec1_p384.key", "bytesrepr.key", "params_first.key", "junk.key",
        "pkcs1_4096.key"};
    size_t i;
    for (i = 0; i < sizeof names / sizeof names[0]; i++) {
        char from[128], path[128], want[65] = "", hash[65], other[80], command[512], out[256];
        struct stat st;
        opcomms_error err;
        person one = someone("one"), two = someone("two");
        snprintf(from, sizeof from, KEYS "%s", names[i]);
        CHECK_EQ(opcomms_get_pubk_hash_from_privk(from, want, &err), OPCOMMS_OK);
        copy_key(from, "changed", path, 0644);
        CHECK_EQ(opcomms_change_key_password(path, tell, &two, tell, &one, 1000, &err), OPCOMMS_OK);
        CHECK_EQ(one.asked, 1);
        CHECK_EQ(two.asked, 0); /* it was not encrypted */
        CHECK_EQ(stat(path, &st), 0);
        CHECK_EQ(st.st_mode & 07777, 0600);
        CHECK_EQ(hash_of(path, "one", hash, &err), OPCOMMS_OK);
        CHECK_STR(hash, want);
        openssl_hash(path, "one", other);
        CHECK_STR(other, want);
        CHECK_EQ(opcomms_change_key_password(path, tell, &one, tell, &two, 1000, &err), OPCOMMS_OK);
        CHECK_EQ(hash_of(path, "one", hash, &err), OPCOMMS_E_PASSWORD);
        CHECK_EQ(hash_of(path, "two", hash, &err), OPCOMMS_OK);
        CHECK_STR(hash, want);
        CHECK_EQ(opcomms_change_key_password(path, tell, &two, NULL, NULL, 0, &err), OPCOMMS_OK);
        CHECK_EQ(opcomms_get_pubk_hash_from_privk(path, hash, &err), OPCOMMS_OK);
        CHECK_STR(hash, want);
        CHECK_EQ(stat(path, &st), 0);
        CHECK_EQ(st.st_mode & 07777, 0600);
        snprintf(command, sizeof command, "openssl pkey -in %s -check -noout 2>&1", path);
        CHECK(ask(command, out, sizeof out));
        CHECK_STR(out, "Key is valid");
        CHECK_EQ(unlink(path), 0);
    }
    { /* what was PKCS#8 comes out as it went in */
        char path[128];
        person p = someone("one");
        copy_key(KEYS "rsa2048.key", "same", path, 0600);
        CHECK_EQ(opcomms_change_key_password(path, NULL, NULL, tell, &p, 1000, NULL), OPCOMMS_OK);
        CHECK(!same_file(path, KEYS "rsa2048.key"));
        CHECK_EQ(opcomms_change_key_password(path, tell, &p, NULL, NULL, 0, NULL), OPCOMMS_OK);
        CHECK(same_file(path, KEYS "rsa2048.key"));
    }
}

static int fail_rename, fail_sync;
static opcomms_err no_rename(void *user, intptr_t dir, const char *from, const char *to, int *os) {
    if (fail_rename) {
        *os = EACCES;
        return OPCOMMS_E_IO;
    }
    return opc__plat_default()->file_rename(user, dir, from, to, os);
}
static opcomms_err no_sync(void *user, intptr_t file, int *os) {
    if (fail_sync) {
        *os = EIO;
        return OPCOMMS_E_IO;
    }
    return opc__plat_default()->file_sync(user, file, os);
}

TEST(a_change_that_fails_leaves_the_file_as_it_was_and_nothing_beside_it) {
    opcomms_platform plat = *opc__plat_default();
    char path[128], tmp[160], link_path[128];
    opcomms_error err;
    person good = someone("secret"), bad = someone("wrong"), none = someone(NULL);
    opc__seal_ask was, now;
    none.returns = -1;
    copy_key(SEALED "p256.pem", "kept", path, 0600);
    snprintf(tmp, sizeof tmp, "%s.tmp", path);
    CHECK_EQ(opcomms_change_key_password(path, tell, &bad, tell, &good, 1000, &err),
             OPCOMMS_E_PASSWORD);
    CHECK_EQ(good.asked, 0); /* the new one only once the old one is right */
    CHECK_EQ(opcomms_change_key_password(path, NULL, NULL, tell, &good, 1000, &err),
             OPCOMMS_E_ENCRYPTED);
    CHECK_EQ(opcomms_change_key_password(path, tell, &none, tell, &good, 1000, &err),
             OPCOMMS_E_ENCRYPTED);
    CHECK_EQ(opcomms_change_key_password(path, tell, &good, tell, &none, 1000, &err),
             OPCOMMS_E_PASSWORD);
    CHECK_EQ(opcomms_change_key_password(path, tell, &good, tell, &good, 999, &err),
             OPCOMMS_E_INVAL);
    CHECK_EQ(opcomms_change_key_password(NULL, tell, &good, tell, &good, 1000, &err),
             OPCOMMS_E_INVAL);
    snprintf(link_path, sizeof link_path, "%s/absent", dir_path);
    CHECK_EQ(opcomms_change_key_password(link_path, tell, &good, tell, &good, 1000, &err),
             OPCOMMS_E_NOT_FOUND);
    snprintf(link_path, sizeof link_path, "%s/link", dir_path);
    CHECK_EQ(symlink("kept", link_path), 0);
    CHECK_EQ(opcomms_change_key_password(link_path, tell, &good, NULL, NULL, 0, &err),
             OPCOMMS_E_IO);
    plat.file_rename = no_rename;
    plat.file_sync = no_sync;
    opc__seal_ask_init(&was, tell, &good);
    opc__seal_ask_init(&now, NULL, NULL); /* what must not stay behind is not even encrypted */
    fail_rename = 1;
    CHECK_EQ(opc__pub_change_password(&plat, path, &was, &now, 1000, &err), OPCOMMS_E_IO);
    fail_rename = 0;
    CHECK(access(tmp, F_OK) != 0);
    fail_sync = 1;
    CHECK_EQ(opc__pub_change_password(&plat, path, &was, &now, 1000, &err), OPCOMMS_E_IO);
    fail_sync = 0;
    CHECK(access(tmp, F_OK) != 0);
    CHECK(same_file(path, SEALED "p256.pem"));
    CHECK_EQ(opc__pub_change_password(&plat, path, &was, &now, 1000, &err), OPCOMMS_OK);
    CHECK(!same_file(path, SEALED "p256.pem"));
}

TEST(a_file_with_more_than_a_key_is_not_rewritten) {
    static const char *const names[] = {"two_ec_first.key", "two_rsa_first.key"};
    static const char *const no_keys[] = {"cert.key", "public.key", "empty.key", "p521.key",
                                          "enc.key"};
    size_t i;
    char path[128], from[128];
    opcomms_error err;
    person p = someone("secret");
    for (i = 0; i < 2; i++) {
        snprintf(from, sizeof from, KEYS "%s", names[i]);
        copy_key(from, "more", path, 0600);
        CHECK_EQ(opcomms_change_key_password(path, tell, &p, tell, &p, 1000, &err),
                 OPCOMMS_E_INVAL);
        CHECK(strstr(err.text, "more in the file") != NULL);
        CHECK(same_file(path, from));
    }
    for (i = 0; i < sizeof no_keys / sizeof no_keys[0]; i++) {
        opcomms_err rc;
        snprintf(from, sizeof from, KEYS "%s", no_keys[i]);
        copy_key(from, "more", path, 0600);
        rc = opcomms_change_key_password(path, tell, &p, tell, &p, 1000, &err);
        CHECK(rc == OPCOMMS_E_KEY_TYPE || rc == OPCOMMS_E_NO_PEM);
        CHECK(same_file(path, from));
    }
    CHECK_EQ(p.asked, 0);
}

/* ---- secrets ---- */

static int released_dirty, released_blocks;

static void *plain_alloc(void *user, size_t n) {
    (void)user;
    return malloc(n);
}
static void watching_release(void *user, void *p, size_t n) {
    size_t i;
    (void)user;
    released_blocks++;
    for (i = 0; i < n; i++) {
        if (((uint8_t *)p)[i] != 0) {
            released_dirty++;
            break;
        }
    }
    free(p);
}

TEST(the_file_s_text_is_wiped_and_so_is_a_key_that_was_refused) {
    static opc__key k;
    static const char *const says[] = {"secret", "wrong"};
    size_t i, n;
    for (i = 0; i < 2; i++) {
        person p = someone(says[i]);
        opc__seal_ask a;
        opc__mem m;
        uint8_t dirt = 0;
        memset(&m, 0, sizeof m);
        m.alloc = plain_alloc;
        m.release = watching_release;
        released_dirty = released_blocks = 0;
        memset(&k, 0xa5, sizeof k);
        opc__seal_ask_init(&a, tell, &p);
        CHECK_EQ(opc__seal_load_file(opc__plat_default(), &m, SEALED "p256.pem", &a, &k, NULL),
                 i == 0 ? OPCOMMS_OK : OPCOMMS_E_PASSWORD);
        CHECK(released_blocks > 0);
        CHECK_EQ(released_dirty, 0);
        CHECK_EQ(m.used, 0);
        for (n = 0; n < sizeof k; n++) dirt |= ((uint8_t *)&k)[n];
        CHECK_EQ(dirt != 0, i == 0);
        opc__key_wipe(&k);
    }
}

/* The dead stack of a thread that did one thing. Its memory is ours, so it can be searched. */
#define STACK_BYTES (1u << 20)

typedef struct errand {
    int what;
    char path[128];
    person p, q;
    opcomms_err rc;
} errand;

enum { OPEN, OPEN_WRONG, CHANGE, CHANGE_PLAIN, CHANGE_SEC1, CHANGE_NOT, GENERATE, LEAVE, ERRANDS };

static void *do_errand(void *user) {
    errand *e = (errand *)user;
    char hash[65];
    switch (e->what) {
    case OPEN:
    case OPEN_WRONG:
        e->rc = opcomms_get_pubk_hash_from_privk_with_password(e->path, tell, &e->p, hash, NULL);
        break;
    case CHANGE:
    case CHANGE_PLAIN:
    case CHANGE_SEC1:
    case CHANGE_NOT:
        e->rc = opcomms_change_key_password(e->path, tell, &e->p, tell, &e->q, 1000, NULL);
        break;
    case GENERATE: {
        char pem[1024];
        size_t len;
        e->rc = opcomms_generate_key_pem_with_password(OPCOMMS_KEY_P256, tell, &e->p, 1000, pem,
                                                       sizeof pem, &len, NULL);
        break;
    }
    default: { /* LEAVE: so that the search is known to find something */
        char buf[OPC__SEAL_PASSWORD_MAX];
        e->rc = OPCOMMS_OK;
        opc__mem_wipe(buf, sizeof buf);
        (void)tell(&e->p, buf, sizeof buf);
        break;
    }
    }
    return NULL;
}

#if defined(__GNUC__)
__attribute__((no_sanitize_address))
#endif
static int on_stack(const volatile uint8_t *stack, const uint8_t *what, size_t len) {
    size_t i, k;
    for (i = 0; i + len <= STACK_BYTES; i++) {
        for (k = 0; k < len && stack[i + k] == what[k]; k++) continue;
        if (k == len) return 1;
    }
    return 0;
}

TEST(neither_password_nor_key_stays_on_the_stack) {
    static const char *const password = "a password to be searched for";
    static const char *const second = "and the one that follows it";
    static uint8_t key_der[OPC__KEY_DER_MAX];
    static opc__key k;
    uint8_t x[32];
    size_t len = der_of(KEYS "p256.key", key_der, sizeof key_der);
    int what;
    memset(&k, 0, sizeof k);
    CHECK_EQ(opc__key_from_der(&k, key_der, len), OPCOMMS_OK);
    memcpy(x, k.ec.x, 32);
    for (what = 0; what < ERRANDS; what++) {
        static errand e;
        pthread_attr_t attr;
        pthread_t t;
        char command[512];
        uint8_t *stack = (uint8_t *)mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(stack != (uint8_t *)MAP_FAILED);
        memset(&e, 0, sizeof e);
        e.what = what;
        e.p = someone(password);
        e.q = someone(second);
        snprintf(e.path, sizeof e.path, "%s/stack.%d", dir_path, what);
        if (what == CHANGE_NOT) { /* nothing runs after it that would cover what it left */
            e.q = someone(NULL);
            e.q.returns = -1;
        }
        if (what == CHANGE_PLAIN || what == CHANGE_SEC1 || what == CHANGE_NOT) {
            snprintf(command, sizeof command, "cp " KEYS "%sp256.key %s 2>&1",
                     what == CHANGE_SEC1 ? "sec1_" : "", e.path);
        } else {
            snprintf(command, sizeof command,
                     "openssl pkcs8 -topk8 -v2 aes-256-cbc -in " KEYS "p256.key -out %s -passout "
                     "'pass:%s' 2>&1",
                     e.path, what == OPEN_WRONG ? "x" : password);
        }
        CHECK(run(command));
        CHECK_EQ(pthread_attr_init(&attr), 0);
        CHECK_EQ(pthread_attr_setstack(&attr, stack, STACK_BYTES), 0);
        CHECK_EQ(pthread_create(&t, &attr, do_errand, &e), 0);
        CHECK_EQ(pthread_join(t, NULL), 0);
        CHECK_EQ(e.rc, what == OPEN_WRONG || what == CHANGE_NOT ? OPCOMMS_E_PASSWORD : OPCOMMS_OK);
        CHECK_EQ(on_stack(stack, (const uint8_t *)password, 16), what == LEAVE);
        CHECK_EQ(on_stack(stack, (const uint8_t *)second, 16), 0);
        CHECK_EQ(on_stack(stack, x + 8, 16), 0);
        pthread_attr_destroy(&attr);
        munmap(stack, STACK_BYTES);
    }
}

int main(void) {
    char command[128];
    if (mkdtemp(dir_path) == NULL) {
        printf("no directory\n0 passed, 1 failed\n");
        return 1;
    }
    RUN(pbkdf2_gives_what_the_rfc_says);
    RUN(openssl_writes_and_we_read);
    RUN(the_files_of_another_day_are_read_too);
    RUN(what_is_not_our_form_is_refused_by_name_and_without_asking);
    RUN(a_key_that_is_not_encrypted_needs_no_password);
    RUN(no_wrong_password_is_taken_for_anything_else);
    RUN(padding_and_outline_must_both_be_right);
    RUN(an_encrypted_key_cut_off_at_any_byte_is_damaged_and_nobody_is_asked);
    RUN(an_encrypted_key_with_any_bit_flipped_is_refused);
    RUN(an_encrypted_key_of_any_content_never_crashes);
    RUN(every_part_of_the_form_is_bounded);
    RUN(a_file_cannot_ask_for_more_work_than_ten_million_iterations);
    RUN(the_callback_is_called_once_and_what_it_returns_is_checked);
    RUN(a_peer_opens_with_encrypted_keys);
    RUN(a_config_without_the_new_fields_is_still_taken);
    RUN(a_list_takes_an_encrypted_key_file);
    RUN(certificates_are_made_with_encrypted_keys);
    RUN(we_write_and_openssl_reads);
    RUN(a_key_to_be_written_needs_a_password_and_a_sensible_count);
    RUN(salt_and_iv_come_from_the_platform_s_randomness);
    RUN(what_is_closed_opens_again_at_every_length);
    RUN(every_form_of_key_is_put_under_a_password_changed_and_taken_out_again);
    RUN(a_change_that_fails_leaves_the_file_as_it_was_and_nothing_beside_it);
    RUN(a_file_with_more_than_a_key_is_not_rewritten);
    RUN(the_file_s_text_is_wiped_and_so_is_a_key_that_was_refused);
    RUN(neither_password_nor_key_stays_on_the_stack);
    snprintf(command, sizeof command, "rm -rf '%s'", dir_path);
    if (system(command) != 0) printf("could not clean up\n");
    return test_end();
}
