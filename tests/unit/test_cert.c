/* Certificates: our leaf by the rules of PROTOCOL 3.1, openssl's opinion of it, hashes of others.
 */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#include "test.h"

#define CERTS TEST_DATA "/certs/"
#define KEYS TEST_DATA "/keys/"

static char dir_path[] = "build/tests/cert.XXXXXX";

static size_t load(const char *path, uint8_t *out, size_t cap) {
    size_t n = 0;
    FILE *f = fopen(path, "rb");
    CHECK(f != NULL);
    if (f != NULL) {
        n = fread(out, 1, cap, f);
        fclose(f);
    }
    return n;
}

static void save(const char *name, const void *p, size_t n, char path[128]) {
    FILE *f;
    snprintf(path, 128, "%s/%s", dir_path, name);
    f = fopen(path, "wb");
    CHECK(f != NULL);
    if (f == NULL) return;
    CHECK_EQ(fwrite(p, 1, n, f), n);
    fclose(f);
}

static int ask(const char *command, char *out, size_t cap) {
    size_t n;
    FILE *f = popen(command, "r");
    if (f == NULL) return 0;
    n = fread(out, 1, cap - 1, f);
    out[n] = 0;
    return pclose(f) == 0;
}

typedef struct pair {
    const char *key;
    const char *ca; /* NULL: the well-known one */
} pair;

static const pair pairs[] = {
    {"certs/rsa_1.key", NULL},
    {"certs/p256_1.key", NULL},
    {"certs/p384_1.key", NULL},
    {KEYS "rsa3072.key", NULL},
    {KEYS "rsa4096.key", NULL},
    {"certs/rsa_1.key", "certs/own_ca.key"},
    {"certs/p256_1.key", "certs/own_ca.key"},
    {"certs/p384_1.key", "certs/own_ca.key"},
    {"certs/rsa_1.key", "certs/p256_2.key"},
    {"certs/p256_1.key", "certs/p256_2.key"},
    {"certs/p256_1.key", "certs/p384_1.key"},
    {KEYS "rsa4096.key", KEYS "rsa4096.key"},
};
#define PAIRS (sizeof pairs / sizeof pairs[0])

static void load_key(const char *path, opc__key *k) {
    opc__mem m;
    opc__key_default_mem(&m);
    if (path == NULL) {
        opc__key_builtin_ca(k);
    } else {
        CHECK_EQ(opc__key_load_file(opc__plat_default(), &m, path, k, NULL), OPCOMMS_OK);
    }
}

/* ---- the leaf, field by field ---- */

static void check_signature_algorithm(const opc__rd *el, int rsa) {
    static const uint8_t rsa_alg[] = {0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7,
                                      0x0d, 0x01, 0x01, 0x0b, 0x05, 0x00};
    static const uint8_t ec_alg[] = {0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02};
    CHECK(rsa ? opc__der_is(el, rsa_alg, sizeof rsa_alg) : opc__der_is(el, ec_alg, sizeof ec_alg));
}

static void check_serial(const opc__rd *el, const uint8_t raw[32]) {
    uint8_t want[20];
    size_t n = opc__rd_left(el), skip;
    memcpy(want, raw, 20);
    want[0] &= 0x7f;
    CHECK(n >= 1 && n <= 20);  /* RFC 5280 4.1.2.2: at most 20 octets */
    CHECK(!(el->p[0] & 0x80)); /* and positive */
    for (skip = 0; skip < 19 && want[skip] == 0 && !(want[skip + 1] & 0x80); skip++) continue;
    CHECK(opc__der_is(el, want + skip, 20 - skip)); /* of the public key, as the reference does */
}

static void check_leaf(const uint8_t *der, size_t len, const opc__key *k, int rsa_ca) {
    static const uint8_t dates[] = {0x17, 0x0d, '7', '5', '0',  '1',  '0', '1', '0', '0', '0',
                                    '0',  '0',  '0', 'Z', 0x18, 0x0f, '4', '0', '9', '6', '0',
                                    '1',  '0',  '1', '0', '0',  '0',  '0', '0', '0', 'Z'};
    static const uint8_t san_oid[] = {0x55, 0x1d, 0x11};
    static const uint8_t san[] = {0x30, 0x11, 0x82, 0x09, 'l',  'o', 'c', 'a', 'l', 'h',
                                  'o',  's',  't',  0x87, 0x04, 127, 0,   0,   1};
    opc__rd r, cert, tbs, el, in;
    unsigned tag = 0;
    uint8_t spki[OPC__KEY_SPKI_MAX], raw[32];
    size_t spki_len = opc__key_spki(k, spki, sizeof spki);
    const uint8_t *at;
    opc__cert_raw_hash(k, raw);
    opc__rd_init(&r, der, len);
    CHECK(opc__der_expect(&r, OPC__DER_SEQ, &cert) && opc__rd_left(&r) == 0);
    CHECK(opc__der_expect(&cert, OPC__DER_SEQ, &tbs));
    CHECK(opc__der_expect(&tbs, 0xa0, &el)); /* version 3: v1 is refused */
    CHECK(opc__rd_left(&el) == 3 && el.p[2] == 2);
    CHECK(opc__der_expect(&tbs, OPC__DER_INT, &el));
    check_serial(&el, raw);
    CHECK(opc__der_expect(&tbs, OPC__DER_SEQ, &el));
    check_signature_algorithm(&el, rsa_ca);
    at = tbs.p; /* the issuer, byte for byte the CA's name */
    CHECK(opc__der_expect(&tbs, OPC__DER_SEQ, &el));
    CHECK((size_t)(tbs.p - at) == sizeof OPC__CERT_CA_DN && memcmp(at, OPC__CERT_CA_DN, 35) == 0);
    CHECK(opc__der_expect(&tbs, OPC__DER_SEQ, &el));
    CHECK(opc__der_is(&el, dates, sizeof dates)); /* valid at any time a clock could show */
    at = tbs.p;
    CHECK(opc__der_expect(&tbs, OPC__DER_SEQ, &el));
    CHECK(opc__rd_left(&el) > 0);
    CHECK((size_t)(tbs.p - at) != 35 || memcmp(at, OPC__CERT_CA_DN, 35) != 0);
    at = tbs.p;
    CHECK(opc__der_expect(&tbs, OPC__DER_SEQ, &el));
    CHECK((size_t)(tbs.p - at) == spki_len && memcmp(at, spki, spki_len) == 0);
    CHECK(opc__der_expect(&tbs, 0xa3, &el) && opc__rd_left(&tbs) == 0);
    CHECK(opc__der_expect(&el, OPC__DER_SEQ, &in) && opc__rd_left(&el) == 0);
    CHECK(opc__der_expect(&in, OPC__DER_SEQ, &el) && opc__rd_left(&in) == 0); /* one extension */
    CHECK(opc__der_expect(&el, OPC__DER_OID, &in) && opc__der_is(&in, san_oid, sizeof san_oid));
    CHECK(opc__der_expect(&el, OPC__DER_OCTETS, &in) && opc__rd_left(&el) == 0); /* not critical */
    CHECK(opc__der_is(&in, san, sizeof san)); /* localhost and 127.0.0.1 */
    CHECK(opc__der_expect(&cert, OPC__DER_SEQ, &el));
    check_signature_algorithm(&el, rsa_ca);
    CHECK(opc__der_next(&cert, &tag, &el) && tag == OPC__DER_BITS && el.p[0] == 0);
    CHECK_EQ(opc__rd_left(&cert), 0);
}

TEST(the_leaf_has_every_field_the_reference_s_verifier_wants) {
    size_t i;
    for (i = 0; i < PAIRS; i++) {
        static opc__key k, ca;
        uint8_t der[OPC__CERT_MAX], again[OPC__CERT_MAX];
        size_t len = 0, len2 = 0;
        load_key(pairs[i].key, &k);
        load_key(pairs[i].ca, &ca);
        CHECK_EQ(opc__cert_leaf(&k, &ca, der, sizeof der, &len, NULL), OPCOMMS_OK);
        check_leaf(der, len, &k, ca.kind == OPC__KEY_RSA);
        CHECK_EQ(opc__cert_leaf(&k, &ca, again, sizeof again, &len2, NULL), OPCOMMS_OK);
        CHECK(len == len2 && memcmp(der, again, len) == 0); /* the same at every start */
        CHECK_EQ(opc__cert_leaf(&k, &ca, again, len - 1, &len2, NULL), OPCOMMS_E_BUFFER);
    }
}

/* check_serial is right about the reference's own leaves, of which one begins with a zero byte. */
TEST(the_serial_comes_from_the_public_key_as_in_the_reference_s_leaf) {
    static const char *const files[] = {CERTS "reference_rsa.der", CERTS "reference_p256.der"};
    size_t i;
    for (i = 0; i < 2; i++) {
        uint8_t der[2048];
        size_t len = load(files[i], der, sizeof der);
        opc__rd r, cert, tbs, el, spki, bits;
        int f;
        uint8_t raw[32];
        opc__rd_init(&r, der, len);
        CHECK(opc__der_expect(&r, OPC__DER_SEQ, &cert) &&
              opc__der_expect(&cert, OPC__DER_SEQ, &tbs));
        CHECK(opc__der_expect(&tbs, 0xa0, &el));
        CHECK(opc__der_expect(&tbs, OPC__DER_INT, &el));
        {
            opc__rd serial = el;
            for (f = 0; f < 4; f++) CHECK(opc__der_expect(&tbs, OPC__DER_SEQ, &el));
            CHECK(opc__der_expect(&tbs, OPC__DER_SEQ, &spki) &&
                  opc__der_expect(&spki, OPC__DER_SEQ, &el));
            CHECK(opc__der_expect(&spki, OPC__DER_BITS, &bits));
            opc__key_sha256(bits.p + 1, opc__rd_left(&bits) - 1, raw);
            check_serial(&serial, raw);
        }
    }
}

/* The CA's certificate has no field of ours: it must be the reference's to the byte. */
TEST(the_well_known_ca_s_certificate_is_the_reference_s_byte_for_byte) {
    static opc__key ca;
    uint8_t der[OPC__CERT_MAX], want[2048];
    size_t len = 0, want_len = load(CERTS "reference_ca.der", want, sizeof want);
    opc__key_builtin_ca(&ca);
    CHECK_EQ(opc__cert_ca(&ca, der, sizeof der, &len, NULL), OPCOMMS_OK);
    CHECK_EQ(len, want_len);
    CHECK(len == want_len && memcmp(der, want, len) == 0);
    {
        char hash[65], from_file[65];
        uint8_t bin[32];
        opc__key_hash(&ca, bin);
        opc__str_hash_write(bin, hash);
        CHECK_EQ(opcomms_get_pubk_hash_from_privk(CERTS "builtin_ca.key", from_file, NULL),
                 OPCOMMS_OK);
        CHECK_STR(hash, from_file);
    }
}

/* ---- openssl ---- */

TEST(openssl_verifies_every_leaf_under_its_ca) {
    size_t i;
    for (i = 0; i < PAIRS; i++) {
        char leaf[4096], ca[4096], leaf_path[128], ca_path[128], command[512], out[1024];
        size_t leaf_len = 0, ca_len = 0;
        CHECK_EQ(opcomms_make_cert(pairs[i].key, pairs[i].ca, leaf, sizeof leaf, &leaf_len, NULL),
                 OPCOMMS_OK);
        CHECK_EQ(opcomms_make_ca_cert(pairs[i].ca, ca, sizeof ca, &ca_len, NULL), OPCOMMS_OK);
        save("leaf.pem", leaf, leaf_len, leaf_path);
        save("ca.pem", ca, ca_len, ca_path);
        snprintf(
            command, sizeof command,
            "openssl verify -check_ss_sig -no-CApath -no-CAstore -CAfile %s -purpose sslserver "
            "-verify_hostname localhost %s 2>&1 && openssl verify -no-CApath -no-CAstore "
            "-CAfile %s -purpose sslclient -verify_ip 127.0.0.1 %s 2>&1",
            ca_path, leaf_path, ca_path, leaf_path);
        if (!ask(command, out, sizeof out))
            printf("%s under %s: %s\n", pairs[i].key, pairs[i].ca, out);
        CHECK(ask(command, out, sizeof out));
        /* A CA with the same name and another key is not the issuer. */
        CHECK_EQ(opcomms_make_ca_cert("certs/rsa_2.key", ca, sizeof ca, &ca_len, NULL), OPCOMMS_OK);
        save("ca.pem", ca, ca_len, ca_path);
        CHECK(!ask(command, out, sizeof out));
    }
}

TEST(openssl_and_we_agree_on_the_hash_in_our_own_certificates) {
    size_t i;
    for (i = 0; i < PAIRS; i++) {
        char leaf[4096], path[128], command[512], out[256], hash[65] = "", key_hash[65] = "";
        size_t len = 0;
        CHECK_EQ(opcomms_make_cert(pairs[i].key, pairs[i].ca, leaf, sizeof leaf, &len, NULL),
                 OPCOMMS_OK);
        save("leaf.pem", leaf, len, path);
        CHECK_EQ(opcomms_pubk_hash_from_cert_file(path, hash, NULL), OPCOMMS_OK);
        CHECK_EQ(opcomms_get_pubk_hash_from_privk(pairs[i].key, key_hash, NULL), OPCOMMS_OK);
        CHECK_STR(hash, key_hash);
        snprintf(command, sizeof command,
                 "openssl x509 -in %s -noout -pubkey | openssl pkey -pubin -outform DER | "
                 "openssl sha256 | sed 's/.*= //'",
                 path);
        CHECK(ask(command, out, sizeof out));
        CHECK(strncmp(out, hash, 64) == 0);
    }
}

/* ---- other people's certificates ---- */

TEST(the_hash_in_a_foreign_certificate_is_openssl_s_in_der_and_in_pem) {
    FILE *f = fopen(CERTS "hashes.txt", "r");
    char name[64], want[80];
    int seen = 0;
    CHECK(f != NULL);
    while (f != NULL && fscanf(f, "%63s %79s", name, want) == 2) {
        char path[256], pem_path[128], hash[65] = "", text[8192];
        uint8_t der[4096];
        size_t len;
        opc__text t;
        snprintf(path, sizeof path, CERTS "%s", name);
        CHECK_EQ(opcomms_pubk_hash_from_cert_file(path, hash, NULL), OPCOMMS_OK);
        CHECK_STR(hash, want);
        len = load(path, der, sizeof der);
        opc__text_init(&t, text, sizeof text);
        opc__text_str(&t, "text before\n");
        opc__pem_encode(&t, "CERTIFICATE", der, len);
        save("foreign.pem", text, t.len, pem_path);
        hash[0] = 0;
        CHECK_EQ(opcomms_pubk_hash_from_cert_file(pem_path, hash, NULL), OPCOMMS_OK);
        CHECK_STR(hash, want);
        seen++;
    }
    if (f != NULL) fclose(f);
    CHECK(seen > 30);
}

TEST(what_is_no_certificate_file_says_why) {
    char hash[65], path[128];
    opcomms_error err;
    CHECK_EQ(opcomms_pubk_hash_from_cert_file("build/absent.pem", hash, &err), OPCOMMS_E_NOT_FOUND);
    CHECK_EQ(opcomms_pubk_hash_from_cert_file("certs/README.md", hash, &err), OPCOMMS_E_NO_PEM);
    CHECK_EQ(opcomms_pubk_hash_from_cert_file("certs/rsa_1.key", hash, &err), OPCOMMS_E_CERT);
    CHECK_EQ(opcomms_pubk_hash_from_cert_file(KEYS "der.key", hash, &err), OPCOMMS_E_CERT);
    CHECK_EQ(opcomms_pubk_hash_from_cert_file(KEYS "public.key", hash, &err), OPCOMMS_E_CERT);
    save("empty", "", 0, path);
    CHECK_EQ(opcomms_pubk_hash_from_cert_file(path, hash, &err), OPCOMMS_E_NO_PEM);
    CHECK_EQ(opcomms_pubk_hash_from_cert_file(NULL, hash, &err), OPCOMMS_E_INVAL);
}

TEST(a_certificate_cut_off_at_any_byte_is_refused_and_a_changed_one_never_crashes) {
    static const char *const files[] = {CERTS "reference_rsa.der", CERTS "p256.der",
                                        CERTS "v1.der"};
    size_t i, n, bit;
    for (i = 0; i < 3; i++) {
        uint8_t der[2048], hash[32];
        size_t len = load(files[i], der, sizeof der);
        int cut_taken = 0;
        CHECK_EQ(opc__cert_hash(der, len, hash), OPCOMMS_OK);
        for (n = 0; n < len; n++) {
            uint8_t *exact = (uint8_t *)malloc(n > 0 ? n : 1);
            memcpy(exact, der, n);
            cut_taken += opc__cert_hash(exact, n, hash) != OPCOMMS_E_CERT;
            free(exact);
        }
        CHECK_EQ(cut_taken, 0);
        for (n = 0; n < len; n++) {
            for (bit = 0; bit < 8; bit++) {
                uint8_t *exact = (uint8_t *)malloc(len);
                opcomms_err rc;
                memcpy(exact, der, len);
                exact[n] = (uint8_t)(exact[n] ^ (1u << bit));
                rc = opc__cert_hash(exact, len, hash);
                CHECK(rc == OPCOMMS_OK || rc == OPCOMMS_E_CERT);
                free(exact);
            }
        }
    }
}

/* ---- der ---- */

TEST(der_lengths_are_definite_and_minimal) {
    static const struct {
        const char *bytes;
        size_t n;
        int ok;
    } t[] = {{"\x04\x00", 2, 1},
             {"\x04\x01x", 3, 1},
             {"\x04\x01", 2, 0},
             {"\x04", 1, 0},
             {"", 0, 0},
             {"\x04\x80", 2, 0},      /* indefinite */
             {"\x04\x81\x01x", 4, 0}, /* long form of a short length */
             {"\x04\x81\x7f", 3, 0},
             {"\x04\x82\x00\x80", 4, 0}, /* leading zero */
             {"\x04\x83\x00\x01\x00", 5, 0},
             {"\x04\x84\x00\x00\x01\x00", 6, 0},
             {"\x04\xff", 2, 0},
             {"\x04\x83\xff\xff\xff", 5, 0}, /* longer than what is there */
             {"\x1f\x01x", 3, 0}};           /* a tag of more than one byte */
    size_t i;
    for (i = 0; i < sizeof t / sizeof t[0]; i++) {
        uint8_t *exact = (uint8_t *)malloc(t[i].n > 0 ? t[i].n : 1);
        opc__rd r, c;
        unsigned tag = 0;
        memcpy(exact, t[i].bytes, t[i].n);
        opc__rd_init(&r, exact, t[i].n);
        CHECK_EQ(opc__der_next(&r, &tag, &c), t[i].ok);
        free(exact);
    }
}

TEST(der_written_is_der_read_at_every_length) {
    static uint8_t buf[70000], data[66000];
    static const size_t sizes[] = {0, 1, 127, 128, 129, 255, 256, 257, 65535, 65536};
    size_t i;
    memset(data, 0x5a, sizeof data);
    for (i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        opc__derw w;
        opc__rd r, c;
        unsigned tag = 0;
        const uint8_t *end;
        opc__derw_init(&w, buf, sizeof buf);
        end = w.p;
        opc__derw_bytes(&w, data, sizes[i]);
        opc__derw_wrap(&w, OPC__DER_OCTETS, end);
        CHECK(!w.full);
        opc__rd_init(&r, w.p, (size_t)(end - w.p));
        CHECK(opc__der_next(&r, &tag, &c) && tag == OPC__DER_OCTETS);
        CHECK_EQ(opc__rd_left(&c), sizes[i]);
        CHECK_EQ(opc__rd_left(&r), 0);
        opc__derw_init(&w, buf, sizes[i] + 1);
        end = w.p;
        opc__derw_bytes(&w, data, sizes[i]);
        opc__derw_wrap(&w, OPC__DER_OCTETS, end);
        CHECK(w.full);
    }
}

TEST(der_integers_are_minimal_and_never_negative) {
    static const struct {
        const char *in;
        size_t n;
        const char *out;
        size_t m;
    } t[] = {{"", 0, "\x02\x01\x00", 3},
             {"\x00", 1, "\x02\x01\x00", 3},
             {"\x7f", 1, "\x02\x01\x7f", 3},
             {"\x80", 1, "\x02\x02\x00\x80", 4},
             {"\x00\x00\x80", 3, "\x02\x02\x00\x80", 4},
             {"\x01\x00", 2, "\x02\x02\x01\x00", 4}};
    size_t i;
    for (i = 0; i < sizeof t / sizeof t[0]; i++) {
        uint8_t buf[16];
        opc__derw w;
        opc__rd r;
        const uint8_t *p = NULL;
        size_t n = 0;
        opc__derw_init(&w, buf, sizeof buf);
        opc__derw_uint(&w, (const uint8_t *)t[i].in, t[i].n);
        CHECK((size_t)(buf + sizeof buf - w.p) == t[i].m && memcmp(w.p, t[i].out, t[i].m) == 0);
        opc__rd_init(&r, w.p, t[i].m);
        CHECK(opc__der_uint(&r, &p, &n));
    }
    {
        opc__rd r;
        const uint8_t *p = NULL;
        size_t n = 0;
        opc__rd_init(&r, "\x02\x01\x80", 3);
        CHECK(!opc__der_uint(&r, &p, &n)); /* negative */
        opc__rd_init(&r, "\x02\x00", 2);
        CHECK(!opc__der_uint(&r, &p, &n));
    }
}

int main(void) {
    char command[128];
    if (mkdtemp(dir_path) == NULL) {
        printf("no directory\n0 passed, 1 failed\n");
        return 1;
    }
    RUN(the_leaf_has_every_field_the_reference_s_verifier_wants);
    RUN(the_serial_comes_from_the_public_key_as_in_the_reference_s_leaf);
    RUN(the_well_known_ca_s_certificate_is_the_reference_s_byte_for_byte);
    RUN(openssl_verifies_every_leaf_under_its_ca);
    RUN(openssl_and_we_agree_on_the_hash_in_our_own_certificates);
    RUN(the_hash_in_a_foreign_certificate_is_openssl_s_in_der_and_in_pem);
    RUN(what_is_no_certificate_file_says_why);
    RUN(a_certificate_cut_off_at_any_byte_is_refused_and_a_changed_one_never_crashes);
    RUN(der_lengths_are_definite_and_minimal);
    RUN(der_written_is_der_read_at_every_length);
    RUN(der_integers_are_minimal_and_never_negative);
    snprintf(command, sizeof command, "rm -rf '%s'", dir_path);
    if (system(command) != 0) printf("could not clean up\n");
    return test_end();
}
