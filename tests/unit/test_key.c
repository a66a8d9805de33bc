/* Private keys: every form and every refusal, damage at every byte, wiping, generation. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#include "test.h"

#include <dirent.h>

#define KEYS TEST_DATA "/keys/"

static char dir_path[] = "build/tests/key.XXXXXX";

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

/* Value of the line that begins with `name` and a space; rest of the line behind the first word. */
static int look_up(const char *file, const char *name, char *out, size_t cap) {
    char line[512];
    int found = 0;
    FILE *f = fopen(file, "r");
    CHECK(f != NULL);
    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        size_t n = strcspn(line, " ");
        if (line[0] == '#' || n != strlen(name) || memcmp(line, name, n) != 0) continue;
        snprintf(out, cap, "%s", line + n + strspn(line + n, " "));
        out[strcspn(out, "\n")] = 0;
        found = 1;
    }
    if (f != NULL) fclose(f);
    return found;
}

static opcomms_err code_of(const char *word) {
    static const struct {
        const char *word;
        opcomms_err code;
    } t[] = {{"OK", OPCOMMS_OK},
             {"NO_PEM", OPCOMMS_E_NO_PEM},
             {"ENCRYPTED", OPCOMMS_E_ENCRYPTED},
             {"KEY_TYPE", OPCOMMS_E_KEY_TYPE},
             {"KEY_DAMAGED", OPCOMMS_E_KEY_DAMAGED},
             {"NOT_FOUND", OPCOMMS_E_NOT_FOUND}};
    size_t i, n = strcspn(word, " \n");
    for (i = 0; i < sizeof t / sizeof t[0]; i++) {
        if (n == strlen(t[i].word) && memcmp(word, t[i].word, n) == 0) return t[i].code;
    }
    CHECK(!"a known word");
    return OPCOMMS_E_LAST_;
}

TEST(every_key_file_gets_its_verdict_and_the_hash_openssl_gives_it) {
    FILE *f = fopen(KEYS "verdicts.txt", "r");
    char line[512];
    int seen = 0, taken = 0;
    CHECK(f != NULL);
    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        char name[64], path[256], want[80] = "", hash[65] = "";
        opcomms_error err;
        opcomms_err rc, code;
        if (line[0] == '#') continue;
        CHECK_EQ(sscanf(line, "%63s", name), 1);
        code = code_of(line + strlen(name) + 1);
        snprintf(path, sizeof path, KEYS "%s", name);
        memset(&err, 0, sizeof err);
        rc = opcomms_get_pubk_hash_from_privk(path, hash, &err);
        if (rc != code) printf("%s: %s\n", name, opcomms_err_text(rc));
        CHECK_EQ(rc, code);
        CHECK_EQ(err.code, rc);
        seen++;
        if (rc != OPCOMMS_OK) {
            CHECK_STR(hash, "");
            CHECK(err.text[0] != 0);
            continue;
        }
        taken++;
        CHECK(look_up(KEYS "hashes.txt", name, want, sizeof want));
        CHECK_STR(hash, want);
    }
    if (f != NULL) fclose(f);
    CHECK(seen > 40);
    CHECK(taken > 20);
}

TEST(the_reference_s_verdicts_are_ours_but_for_the_listed_exceptions) {
    FILE *f = fopen(KEYS "reference.txt", "r");
    char line[512];
    int seen = 0, exceptions = 0;
    CHECK(f != NULL);
    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        char name[64], verdict[128], ours[256] = "";
        uint8_t hash[32];
        int accepted, differs;
        CHECK_EQ(sscanf(line, "%63s %127s", name, verdict), 2);
        accepted = opc__str_hash_parse(verdict, strlen(verdict), hash);
        CHECK(look_up(KEYS "verdicts.txt", name, ours, sizeof ours));
        differs = strstr(ours, " differs: ") != NULL;
        if ((code_of(ours) == OPCOMMS_OK) == (accepted != differs)) {
            seen++;
        } else {
            test_bad++;
            printf("%s: the reference says %s, we %s\n", name, verdict, ours);
        }
        exceptions += differs;
        if (differs) CHECK(code_of(ours) == OPCOMMS_OK); /* we only ever accept more */
    }
    if (f != NULL) fclose(f);
    CHECK_EQ(seen, 28);
    CHECK_EQ(exceptions, 4);
}

TEST(no_key_file_is_left_without_a_verdict) {
    DIR *d = opendir(KEYS);
    struct dirent *e;
    char out[256];
    CHECK(d != NULL);
    while (d != NULL && (e = readdir(d)) != NULL) {
        if (strstr(e->d_name, ".key") == NULL) continue;
        if (!look_up(KEYS "verdicts.txt", e->d_name, out, sizeof out)) {
            test_bad++;
            printf("%s has no verdict\n", e->d_name);
        }
    }
    if (d != NULL) closedir(d);
}

/* The test keys of certs/ are what their README says. */
TEST(the_hashes_in_certs_readme_are_right) {
    FILE *f = fopen("certs/README.md", "r");
    char line[512];
    int seen = 0;
    CHECK(f != NULL);
    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        char name[64], path[128], hash[65] = "", want[65];
        const char *tick = strrchr(line, '|');
        if (sscanf(line, "| `%63[^`]` |", name) != 1 || tick == NULL) continue;
        CHECK(tick - line > 67);
        snprintf(want, sizeof want, "%.64s", tick - 66);
        snprintf(path, sizeof path, "certs/%s", name);
        CHECK_EQ(opcomms_get_pubk_hash_from_privk(path, hash, NULL), OPCOMMS_OK);
        CHECK_STR(hash, want);
        seen++;
    }
    if (f != NULL) fclose(f);
    CHECK_EQ(seen, 6);
}

/* ---- forms ---- */

static opcomms_err try_pem(const char *text, size_t len, char hash[65]) {
    char *exact = (char *)malloc(len + 1); /* exactly this long, for the sanitizer; no NUL behind */
    opcomms_err rc;
    memcpy(exact, text, len);
    exact = (char *)realloc(exact, len > 0 ? len : 1);
    rc = opcomms_pubk_hash_from_pem(exact, len, hash, NULL);
    free(exact);
    return rc;
}

TEST(the_python_wrapper_with_literal_line_ends_is_read_in_all_its_spellings) {
    static const char *const wraps[] = {"b'%s'", "b\"%s\"",   "%s",
                                        "'%s'",  "  b'%s'\n", "b'\\n%s\\n'\n"};
    static const char *const ends[] = {"\\n", "\\r\\n", "\n", "\r\n", "\r", " \\n ", "\\n\n"};
    size_t len, w, e;
    char *pem = load(KEYS "base.key", &len);
    char want[65] = "";
    CHECK_EQ(try_pem(pem, len, want), OPCOMMS_OK);
    for (w = 0; w < sizeof wraps / sizeof wraps[0]; w++) {
        for (e = 0; e < sizeof ends / sizeof ends[0]; e++) {
            char body[4096], text[4200], hash[65] = "";
            size_t i, n = 0;
            for (i = 0; i < len; i++) {
                if (pem[i] != '\n') {
                    body[n++] = pem[i];
                } else {
                    memcpy(body + n, ends[e], strlen(ends[e]));
                    n += strlen(ends[e]);
                }
            }
            body[n] = 0;
            snprintf(text, sizeof text, wraps[w], body);
            CHECK_EQ(try_pem(text, strlen(text), hash), OPCOMMS_OK);
            CHECK_STR(hash, want);
        }
    }
    free(pem);
}

TEST(what_is_no_pem_says_so) {
    static const char *const texts[] = {
        "",
        "x",
        "-----",
        "-----BEGIN ",
        "-----BEGIN PRIVATE KEY",
        "-----BEGIN PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nMIIE\n",
        "-----END PRIVATE KEY-----",
        "BEGIN PRIVATE KEY",
        "-----BEGINPRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----\n",
        "{\"key\":1}"};
    size_t i;
    char hash[65];
    for (i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        CHECK_EQ(try_pem(texts[i], strlen(texts[i]), hash), OPCOMMS_E_NO_PEM);
    }
}

/* ---- DER, crafted ---- */

/* The DER of a PEM file. */
static size_t der_of(const char *path, uint8_t *der, size_t cap) {
    size_t len, n = 0;
    char *pem = load(path, &len);
    CHECK_EQ(opc__pem_decode(pem, len, der, cap, &n), OPCOMMS_OK);
    free(pem);
    return n;
}

/* A copy in memory of exactly this size, so that reading beyond it is seen. */
static opcomms_err try_der(const uint8_t *der, size_t len) {
    static opc__key k;
    uint8_t *exact = (uint8_t *)malloc(len > 0 ? len : 1);
    opcomms_err rc;
    memcpy(exact, der, len);
    memset(&k, 0, sizeof k);
    rc = opc__key_from_der(&k, exact, len);
    free(exact);
    return rc;
}

static int key_error(opcomms_err rc) {
    return rc == OPCOMMS_E_KEY_TYPE || rc == OPCOMMS_E_KEY_DAMAGED || rc == OPCOMMS_E_ENCRYPTED;
}

TEST(a_key_cut_off_at_any_byte_is_damaged) {
    static const char *const files[] = {KEYS "p256.key", KEYS "sec1_p256.key", KEYS "sec1_p384.key",
                                        KEYS "base.key", KEYS "pkcs1.key",     KEYS "rsa4096.key"};
    size_t i, n;
    for (i = 0; i < sizeof files / sizeof files[0]; i++) {
        uint8_t der[OPC__KEY_DER_MAX];
        size_t len = der_of(files[i], der, sizeof der);
        int bad = 0;
        for (n = 0; n < len; n++) bad += try_der(der, n) != OPCOMMS_E_KEY_DAMAGED;
        CHECK_EQ(bad, 0);
        CHECK_EQ(try_der(der, len), OPCOMMS_OK);
    }
}

/* A flipped bit is refused, except where the byte says nothing: then the key is the same. */
TEST(a_p256_key_with_any_bit_flipped_is_refused_or_is_the_same_key) {
    static const char *const files[] = {KEYS "p256.key", KEYS "sec1_p256.key"};
    size_t f, i;
    for (f = 0; f < 2; f++) {
        uint8_t der[OPC__KEY_DER_MAX], want[32];
        size_t len = der_of(files[f], der, sizeof der);
        int taken = 0, refused = 0;
        static opc__key k;
        memset(&k, 0, sizeof k);
        CHECK_EQ(opc__key_from_der(&k, der, len), OPCOMMS_OK);
        opc__key_hash(&k, want);
        for (i = 0; i < len * 8; i++) {
            opcomms_err rc;
            der[i / 8] = (uint8_t)(der[i / 8] ^ (1u << (i % 8)));
            memset(&k, 0, sizeof k);
            rc = opc__key_from_der(&k, der, len);
            if (rc == OPCOMMS_OK) {
                uint8_t hash[32];
                opc__key_hash(&k, hash);
                CHECK(memcmp(hash, want, 32) == 0);
                taken++;
            } else {
                CHECK(key_error(rc));
                refused++;
            }
            der[i / 8] = (uint8_t)(der[i / 8] ^ (1u << (i % 8)));
        }
        CHECK(taken <= 16); /* the version numbers */
        CHECK(refused > 700);
    }
}

/* One RSA key costs a signature, so here one bit of every byte. */
TEST(an_rsa_key_with_any_byte_changed_is_refused_or_is_the_same_key) {
    uint8_t der[OPC__KEY_DER_MAX], want[32];
    size_t len = der_of(KEYS "base.key", der, sizeof der), i, d_from = 0, d_to = 0;
    static opc__key k;
    int elsewhere = 0;
    memset(&k, 0, sizeof k);
    CHECK_EQ(opc__key_from_der(&k, der, len), OPCOMMS_OK);
    opc__key_hash(&k, want);
    { /* the private exponent is not used: n, e, p, q, dp, dq and iq are. Find where it lies. */
        opc__rd r, seq, alg, key, el;
        unsigned tag;
        opc__rd_init(&r, der, len);
        CHECK(opc__der_expect(&r, OPC__DER_SEQ, &seq) && opc__der_next(&seq, &tag, &el) &&
              opc__der_expect(&seq, OPC__DER_SEQ, &alg) &&
              opc__der_expect(&seq, OPC__DER_OCTETS, &key) &&
              opc__der_expect(&key, OPC__DER_SEQ, &el));
        for (i = 0; i < 4; i++) CHECK(opc__der_next(&el, &tag, &r));
        d_from = (size_t)(r.p - der);
        d_to = (size_t)(r.end - der);
        CHECK(d_to - d_from >= 250);
    }
    for (i = 0; i < len; i++) {
        uint8_t hash[32];
        opcomms_err rc;
        if (i > d_from && i + 1 < d_to) continue;
        der[i] = (uint8_t)(der[i] ^ (1u << (i % 8)));
        memset(&k, 0, sizeof k);
        rc = opc__key_from_der(&k, der, len);
        if (rc == OPCOMMS_OK) {
            opc__key_hash(&k, hash);
            CHECK(memcmp(hash, want, 32) == 0);
            if (i < d_from || i >= d_to) elsewhere++;
        } else {
            CHECK(key_error(rc));
        }
        der[i] = (uint8_t)(der[i] ^ (1u << (i % 8)));
    }
    CHECK(elsewhere < 8); /* versions, the algorithm's parameters */
}

/* Writes a PKCS#1 key with the eight numbers given; each at most 512 bytes. */
static size_t craft(uint8_t *out, size_t cap, const uint8_t *const part[8], const size_t len[8]) {
    opc__derw w;
    const uint8_t *end;
    static const uint8_t zero[1] = {0};
    int i;
    opc__derw_init(&w, out, cap);
    end = w.p;
    for (i = 7; i >= 0; i--) opc__derw_uint(&w, part[i], len[i]);
    opc__derw_uint(&w, zero, 1);
    opc__derw_wrap(&w, OPC__DER_SEQ, end);
    CHECK(!w.full);
    memmove(out, w.p, (size_t)(end - w.p));
    return (size_t)(end - w.p);
}

/* The defect of the library's own decoder: an element longer than its buffer. */
TEST(oversized_and_senseless_rsa_numbers_are_refused_before_they_are_used) {
    static uint8_t big[2048], out[OPC__KEY_DER_MAX * 4];
    static opc__key k;
    uint8_t der[OPC__KEY_DER_MAX];
    static const uint8_t one[1] = {1}, zero[1] = {0}, e[3] = {1, 0, 1};
    size_t n = der_of(KEYS "rsa2048.key", der, sizeof der), i, j;
    static const size_t sizes[] = {257, 260, 261, 300, 512, 513, 600, 2048};
    memset(big, 0xff, sizeof big);
    memset(&k, 0, sizeof k);
    CHECK_EQ(opc__key_from_der(&k, der, n), OPCOMMS_OK);
    for (i = 0; i < 8; i++) {
        const uint8_t *part[8];
        size_t len[8];
        part[0] = k.n;
        len[0] = k.n_len;
        part[1] = e;
        len[1] = 3;
        part[2] = one;
        len[2] = 1;
        part[3] = k.rsa.p;
        len[3] = k.rsa.plen;
        part[4] = k.rsa.q;
        len[4] = k.rsa.qlen;
        part[5] = k.rsa.dp;
        len[5] = k.rsa.dplen;
        part[6] = k.rsa.dq;
        len[6] = k.rsa.dqlen;
        part[7] = k.rsa.iq;
        len[7] = k.rsa.iqlen;
        CHECK_EQ(try_der(out, craft(out, sizeof out, part, len)), OPCOMMS_OK);
        if (i == 2) continue; /* d is not used */
        for (j = 0; j < sizeof sizes / sizeof sizes[0]; j++) {
            part[i] = big;
            len[i] = sizes[j];
            CHECK(key_error(try_der(out, craft(out, sizeof out, part, len))));
        }
        part[i] = zero;
        len[i] = 1;
        CHECK(key_error(try_der(out, craft(out, sizeof out, part, len))));
        part[i] = one;
        CHECK(key_error(try_der(out, craft(out, sizeof out, part, len))));
        part[i] = big;
        len[i] = 128;
        CHECK(key_error(try_der(out, craft(out, sizeof out, part, len))));
    }
    { /* p = 1, q = n: a product that is right and a key that is none */
        const uint8_t *part[8];
        size_t len[8];
        part[0] = k.n;
        len[0] = k.n_len;
        part[1] = e;
        len[1] = 3;
        part[2] = one;
        len[2] = 1;
        part[3] = one;
        len[3] = 1;
        part[4] = k.n;
        len[4] = k.n_len;
        part[5] = one;
        len[5] = 1;
        part[6] = one;
        len[6] = 1;
        part[7] = one;
        len[7] = 1;
        CHECK_EQ(try_der(out, craft(out, sizeof out, part, len)), OPCOMMS_E_KEY_DAMAGED);
        part[3] = k.n;
        len[3] = k.n_len;
        part[4] = one;
        len[4] = 1;
        CHECK_EQ(try_der(out, craft(out, sizeof out, part, len)), OPCOMMS_E_KEY_DAMAGED);
    }
}

static size_t craft_sec1(uint8_t *out, const uint8_t *x, size_t len) {
    opc__derw w;
    uint8_t buf[256];
    const uint8_t *end, *mark;
    static const uint8_t one[1] = {1};
    opc__derw_init(&w, buf, sizeof buf);
    end = w.p;
    opc__derw_bytes(&w, OPC__OID_P256, sizeof OPC__OID_P256);
    opc__derw_wrap(&w, OPC__DER_OID, end);
    opc__derw_wrap(&w, 0xa0, end);
    mark = w.p;
    opc__derw_bytes(&w, x, len);
    opc__derw_wrap(&w, OPC__DER_OCTETS, mark);
    opc__derw_uint(&w, one, 1);
    opc__derw_wrap(&w, OPC__DER_SEQ, end);
    memcpy(out, w.p, (size_t)(end - w.p));
    return (size_t)(end - w.p);
}

TEST(a_p256_number_lies_between_1_and_the_order) {
    uint8_t order[34], out[256];
    size_t len = 0;
    const unsigned char *n = br_ec_get_default()->order(BR_EC_secp256r1, &len);
    CHECK_EQ(len, 32);
    memset(order, 0, sizeof order);
    CHECK_EQ(try_der(out, craft_sec1(out, order, 32)), OPCOMMS_E_KEY_DAMAGED); /* 0 */
    CHECK_EQ(try_der(out, craft_sec1(out, order, 0)), OPCOMMS_E_KEY_DAMAGED);
    order[31] = 1;
    CHECK_EQ(try_der(out, craft_sec1(out, order, 32)), OPCOMMS_OK);     /* 1 */
    CHECK_EQ(try_der(out, craft_sec1(out, order + 31, 1)), OPCOMMS_OK); /* written short */
    memcpy(order, n, 32);
    CHECK_EQ(try_der(out, craft_sec1(out, order, 32)), OPCOMMS_E_KEY_DAMAGED);
    order[31]--;
    CHECK_EQ(try_der(out, craft_sec1(out, order, 32)), OPCOMMS_OK);
    memset(order, 0xff, sizeof order);
    CHECK_EQ(try_der(out, craft_sec1(out, order, 32)), OPCOMMS_E_KEY_DAMAGED);
    CHECK_EQ(try_der(out, craft_sec1(out, order, 34)), OPCOMMS_E_KEY_DAMAGED);
}

/* Files of arbitrary bytes: what they say is of no interest, only that they are refused quietly. */
TEST(pem_of_any_content_never_crashes) {
    size_t len, i;
    char *pem = load(KEYS "sec1_p256.key", &len);
    char hash[65], want[65] = "";
    unsigned seed = 7;
    CHECK_EQ(try_pem(pem, len, want), OPCOMMS_OK);
    for (i = 0; i < len; i++) (void)try_pem(pem, i, hash);
    for (i = 0; i < 4000; i++) {
        char *copy = (char *)malloc(len);
        opcomms_err rc;
        unsigned k, changes = 1 + i % 4;
        memcpy(copy, pem, len);
        for (k = 0; k < changes; k++) {
            seed = seed * 1103515245u + 12345u;
            copy[(seed >> 8) % len] = (char)(seed >> 24);
        }
        rc = try_pem(copy, len, hash);
        CHECK(rc == OPCOMMS_OK || rc == OPCOMMS_E_NO_PEM || key_error(rc));
        free(copy);
    }
    free(pem);
}

/* ---- secrets ---- */

static uint8_t secret[5][256]; /* p q dp dq iq, or x */
static size_t secret_len[5];
static size_t secrets;
static int released_dirty, released_blocks;

static int holds_secret(const uint8_t *p, size_t n) {
    size_t i, s;
    for (s = 0; s < secrets; s++) {
        for (i = 0; i + 8 <= n; i++) { /* any eight bytes in the middle of it */
            if (memcmp(p + i, secret[s] + secret_len[s] / 2, 8) == 0) return 1;
        }
    }
    return 0;
}

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

TEST(a_freed_key_and_the_file_it_came_from_leave_nothing_in_memory) {
    static const char *const files[] = {KEYS "rsa2048.key", KEYS "p256.key"};
    size_t f, i;
    for (f = 0; f < 2; f++) {
        static opc__key k;
        opc__mem m;
        uint8_t dirt = 0;
        memset(&m, 0, sizeof m);
        m.alloc = plain_alloc;
        m.release = watching_release;
        released_dirty = released_blocks = 0;
        memset(&k, 0, sizeof k);
        CHECK_EQ(opc__key_load_file(opc__plat_default(), &m, files[f], &k, NULL), OPCOMMS_OK);
        CHECK(released_blocks > 0);
        CHECK_EQ(released_dirty, 0);
        CHECK_EQ(m.used, 0);
        secrets = k.kind == OPC__KEY_RSA ? 5 : 1;
        for (i = 0; i < secrets; i++) {
            const uint8_t *from = k.kind == OPC__KEY_RSA ? k.store + 256 * i : k.ec.x;
            secret_len[i] = k.kind == OPC__KEY_RSA ? 128 : 32;
            memcpy(secret[i], from, secret_len[i]);
        }
        CHECK(holds_secret((uint8_t *)&k, sizeof k)); /* so the check below can fail */
        opc__key_wipe(&k);
        for (i = 0; i < sizeof k; i++) dirt |= ((uint8_t *)&k)[i];
        CHECK_EQ(dirt, 0);
    }
}

TEST(a_refused_key_leaves_nothing_either) {
    static opc__key k;
    size_t len, i;
    char *pem = load(KEYS "rsa2048.key", &len);
    uint8_t der[OPC__KEY_DER_MAX], dirt = 0;
    char text[4096];
    opc__text t;
    size_t n = der_of(KEYS "rsa2048.key", der, sizeof der);
    der[n - 1] ^= 1; /* of iq: everything was taken over before the signature does not verify */
    opc__text_init(&t, text, sizeof text);
    opc__pem_encode(&t, "PRIVATE KEY", der, n);
    CHECK_EQ(opc__key_from_pem(&k, text, t.len, NULL), OPCOMMS_E_KEY_DAMAGED);
    for (i = 0; i < sizeof k; i++) dirt |= ((uint8_t *)&k)[i];
    CHECK_EQ(dirt, 0);
    free(pem);
}

/* ---- generation ---- */

TEST(every_type_is_generated_private_loads_again_and_openssl_accepts_it) {
    static const struct {
        opcomms_key_type type;
        const char *bits;
    } t[] = {{OPCOMMS_KEY_P256, "(256 bit"},
             {OPCOMMS_KEY_RSA_2048, "(2048 bit"},
             {OPCOMMS_KEY_RSA_3072, "(3072 bit"},
             {OPCOMMS_KEY_RSA_4096, "(4096 bit"}};
    size_t i;
    mode_t old = umask(0);
    for (i = 0; i < sizeof t / sizeof t[0]; i++) {
        char path[128], command[512], out[256], hash[65] = "", want[80];
        struct stat st;
        opcomms_error err;
        snprintf(path, sizeof path, "%s/%d.key", dir_path, (int)i);
        CHECK_EQ(opcomms_generate_key_file(path, t[i].type, &err), OPCOMMS_OK);
        CHECK_EQ(stat(path, &st), 0);
        CHECK_EQ(st.st_mode & 07777, 0600);
        CHECK_EQ(opcomms_get_pubk_hash_from_privk(path, hash, &err), OPCOMMS_OK);
        snprintf(command, sizeof command, "openssl pkey -in %s -check -noout 2>&1", path);
        CHECK(ask(command, out, sizeof out));
        CHECK_STR(out, "Key is valid");
        snprintf(command, sizeof command, "openssl pkey -in %s -text -noout 2>&1", path);
        CHECK(ask(command, out, sizeof out));
        CHECK(strstr(out, t[i].bits) != NULL);
        snprintf(command, sizeof command,
                 "openssl pkey -in %s -pubout -outform DER | openssl sha256 | sed 's/.*= //'",
                 path);
        CHECK(ask(command, want, sizeof want));
        CHECK_STR(hash, want);
        snprintf(command, sizeof command, "head -1 %s", path);
        CHECK(ask(command, out, sizeof out));
        CHECK_STR(out, "-----BEGIN PRIVATE KEY-----");
        { /* never overwritten, not even by itself */
            char again[65] = "";
            CHECK_EQ(opcomms_generate_key_file(path, OPCOMMS_KEY_P256, &err), OPCOMMS_E_IN_USE);
            CHECK_EQ(opcomms_get_pubk_hash_from_privk(path, again, &err), OPCOMMS_OK);
            CHECK_STR(again, hash);
        }
    }
    umask(old);
    {
        opcomms_error err;
        CHECK_EQ(opcomms_generate_key_file("build/no/such/folder/x.key", OPCOMMS_KEY_P256, &err),
                 OPCOMMS_E_NOT_FOUND);
        CHECK_EQ(opcomms_generate_key_file("build/x.key", (opcomms_key_type)99, &err),
                 OPCOMMS_E_KEY_TYPE);
        CHECK_EQ(opcomms_generate_key_file(NULL, OPCOMMS_KEY_P256, &err), OPCOMMS_E_INVAL);
        CHECK(access("build/x.key", F_OK) != 0);
    }
}

TEST(openssl_reads_our_pem_line_by_line) {
    char pem[4096], line[128];
    size_t len = 0, i, at = 0;
    CHECK_EQ(opcomms_generate_key_pem(OPCOMMS_KEY_RSA_2048, pem, sizeof pem, &len, NULL),
             OPCOMMS_OK);
    CHECK_EQ(strlen(pem), len);
    for (i = 0; i < len; i++) {
        CHECK(at < sizeof line - 1);
        if (pem[i] == '\n') {
            CHECK(at <= 64); /* RFC 7468 2 */
            at = 0;
        } else {
            at++;
        }
    }
    CHECK_EQ(at, 0);
    {
        char small[100];
        memset(small, 'x', sizeof small);
        CHECK_EQ(opcomms_generate_key_pem(OPCOMMS_KEY_P256, small, sizeof small, &len, NULL),
                 OPCOMMS_E_BUFFER);
        for (i = 0; i < sizeof small; i++)
            CHECK_EQ(small[i], 0); /* no half of a key stays behind */
    }
}

static int random_fails, random_calls;
static opcomms_err counted_random(void *user, void *out, size_t len) {
    (void)user;
    random_calls++;
    if (random_fails) return OPCOMMS_E_RANDOM;
    memset(out, 0x42, len);
    return OPCOMMS_OK;
}

TEST(keys_come_from_the_platform_s_randomness_and_from_nothing_else) {
    opcomms_platform p = *opc__plat_default();
    char a[1024], b[1024];
    size_t len = 0;
    p.random = counted_random;
    CHECK_EQ(opc__key_generate(&p, 0, a, sizeof a, &len, NULL), OPCOMMS_OK);
    CHECK_EQ(opc__key_generate(&p, 0, b, sizeof b, &len, NULL), OPCOMMS_OK);
    CHECK_STR(a, b); /* the same seed, the same key: no other source is mixed in */
    CHECK_EQ(random_calls, 2);
    CHECK_EQ(opcomms_generate_key_pem(OPCOMMS_KEY_P256, b, sizeof b, &len, NULL), OPCOMMS_OK);
    CHECK(strcmp(a, b) != 0);
    random_fails = 1;
    CHECK_EQ(opc__key_generate(&p, 0, a, sizeof a, &len, NULL), OPCOMMS_E_RANDOM);
}

int main(void) {
    char command[128];
    if (mkdtemp(dir_path) == NULL) {
        printf("no directory\n0 passed, 1 failed\n");
        return 1;
    }
    RUN(every_key_file_gets_its_verdict_and_the_hash_openssl_gives_it);
    RUN(the_reference_s_verdicts_are_ours_but_for_the_listed_exceptions);
    RUN(no_key_file_is_left_without_a_verdict);
    RUN(the_hashes_in_certs_readme_are_right);
    RUN(the_python_wrapper_with_literal_line_ends_is_read_in_all_its_spellings);
    RUN(what_is_no_pem_says_so);
    RUN(a_key_cut_off_at_any_byte_is_damaged);
    RUN(a_p256_key_with_any_bit_flipped_is_refused_or_is_the_same_key);
    RUN(an_rsa_key_with_any_byte_changed_is_refused_or_is_the_same_key);
    RUN(oversized_and_senseless_rsa_numbers_are_refused_before_they_are_used);
    RUN(a_p256_number_lies_between_1_and_the_order);
    RUN(pem_of_any_content_never_crashes);
    RUN(a_freed_key_and_the_file_it_came_from_leave_nothing_in_memory);
    RUN(a_refused_key_leaves_nothing_either);
    RUN(every_type_is_generated_private_loads_again_and_openssl_accepts_it);
    RUN(openssl_reads_our_pem_line_by_line);
    RUN(keys_come_from_the_platform_s_randomness_and_from_nothing_else);
    snprintf(command, sizeof command, "rm -rf '%s'", dir_path);
    if (system(command) != 0) printf("could not clean up\n");
    return test_end();
}
