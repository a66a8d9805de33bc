/* The TLS engine without sockets: identity, refusal, alerts, closing; then openssl at the other
 * end. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#include "test.h"

#include <signal.h>
#include <sys/wait.h>

#define CERTS TEST_DATA "/certs/"
#define KEYS TEST_DATA "/keys/"

/* Stands before the library's own: with it off, the engine has no randomness but what we inject. */
static int os_random = 1;
static int seed_from_os(const br_prng_class **ctx) {
    uint8_t seed[32];
    if (opc__posix_random(NULL, seed, sizeof seed) != OPCOMMS_OK) return 0;
    (*ctx)->update(ctx, seed, sizeof seed);
    return 1;
}
br_prng_seeder br_prng_seeder_system(const char **name) {
    if (name != NULL) *name = "test";
    return os_random ? seed_from_os : NULL;
}

/* ---- keys and contexts ---- */

enum { RSA1, RSA2, P256A, P256B, P384A, NO_KEY };
static const char *const key_files[] = {"certs/rsa_1.key", "certs/rsa_2.key", "certs/p256_1.key",
                                        "certs/p256_2.key", "certs/p384_1.key"};
static opc__key keys[5], ca_key, own_ca_key;
static uint8_t hashes[5][32];
static opc__tls_ctx contexts[5];

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

static int set_up(void) {
    opc__mem m;
    int i;
    opc__key_default_mem(&m);
    opc__key_builtin_ca(&ca_key);
    if (opc__key_load_file(opc__plat_default(), &m, "certs/own_ca.key", &own_ca_key, NULL) !=
        OPCOMMS_OK) {
        return 0;
    }
    for (i = 0; i < NO_KEY; i++) {
        if (opc__key_load_file(opc__plat_default(), &m, key_files[i], &keys[i], NULL) != OPCOMMS_OK)
            return 0;
        if (opc__tls_ctx_init(&contexts[i], &keys[i], &ca_key, 0, NULL) != OPCOMMS_OK) return 0;
        opc__key_hash(&keys[i], hashes[i]);
    }
    return 1;
}

/* ---- a pair in memory ---- */

typedef struct side {
    opc__tls t;
    int refuse; /* the allow list's answer */
    int asked;
    uint8_t hash[32];     /* whom it was asked about */
    int ready_when_asked; /* possession was taken for proved too early */
    size_t sent;          /* bytes put on the wire */
    size_t told;          /* bytes of the last word, the alert, sent */
} side;

static side client, server;

static int may(void *user, const uint8_t hash[32]) {
    side *s = (side *)user;
    s->asked++;
    memcpy(s->hash, hash, 32);
    s->ready_when_asked |= opc__tls_ready(&s->t) || opc__tls_peer(&s->t) != NULL;
    return !s->refuse;
}

static void fresh_entropy(uint8_t e[32]) {
    CHECK_EQ(opc__posix_random(NULL, e, 32), OPCOMMS_OK);
}

static void open_client(const opc__tls_ctx *c, const uint8_t expected[32], int64_t wall) {
    uint8_t e[32];
    fresh_entropy(e);
    memset(&client, 0, sizeof client);
    opc__tls_client(&client.t, c, expected, may, &client, e, wall, 0);
}

static void open_server(const opc__tls_ctx *c, int64_t wall) {
    uint8_t e[32];
    fresh_entropy(e);
    memset(&server, 0, sizeof server);
    opc__tls_server(&server.t, c, may, &server, e, wall);
}

static void open_pair(const opc__tls_ctx *c, const opc__tls_ctx *s, const uint8_t expected[32]) {
    open_client(c, expected, 0);
    open_server(s, 0);
}

static size_t flip_at = SIZE_MAX; /* damages that byte of what the client sends */

/* What is to be sent next: the engine's, then the alert, as the owner of a connection does it. */
static const uint8_t *pending(side *s, uint8_t alert[OPC__TLS_ALERT], size_t *n) {
    const uint8_t *out = opc__tls_out(&s->t, n);
    if (out != NULL && *n > 0) return out;
    *n = opc__tls_closed(&s->t) ? opc__tls_alert(&s->t, alert) : 0;
    if (*n > 0) *n -= s->told;
    return *n > 0 ? alert + s->told : NULL;
}

static void pending_done(side *s, const uint8_t *out, const uint8_t *alert, size_t n) {
    if (out == alert + s->told) {
        s->told += n;
    } else {
        opc__tls_out_done(&s->t, n);
    }
}

/* Moves at most `step` bytes from a to b; how many. What b has no room for is lost with its end. */
static size_t move(side *a, side *b, size_t step) {
    uint8_t alert[OPC__TLS_ALERT];
    size_t n = 0, room = 0;
    const uint8_t *out = pending(a, alert, &n);
    uint8_t *in;
    if (out == NULL) return 0;
    if (n > step) n = step;
    in = opc__tls_in(&b->t, &room);
    if (in != NULL && room > 0) {
        if (n > room) n = room;
        memcpy(in, out, n);
        if (a == &client && flip_at >= a->sent && flip_at < a->sent + n)
            in[flip_at - a->sent] ^= 0x10;
        opc__tls_in_done(&b->t, n);
    } else if (!opc__tls_closed(&b->t)) {
        return 0;
    }
    a->sent += n;
    pending_done(a, out, alert, n);
    return n;
}

static void settle(size_t step) {
    while (move(&client, &server, step) + move(&server, &client, step) > 0) continue;
}

static opcomms_err verdict(side *s, int *code) {
    int ignored = 0;
    return opc__tls_error(&s->t, code != NULL ? code : &ignored);
}

static size_t put(side *s, const void *p, size_t n) {
    size_t room = 0;
    uint8_t *dst = opc__tls_write(&s->t, &room);
    if (dst == NULL || room == 0) return 0;
    if (n > room) n = room;
    memcpy(dst, p, n);
    opc__tls_write_done(&s->t, n);
    return n;
}

static int got(side *s, const char *text) {
    size_t n = 0;
    const uint8_t *p = opc__tls_read(&s->t, &n);
    int same = p != NULL && n == strlen(text) && memcmp(p, text, n) == 0;
    if (p != NULL) opc__tls_read_done(&s->t, n);
    return same;
}

/* Neither side takes the other for proved, and nothing can be said or heard. */
static void check_nothing(side *s) {
    size_t n = 0;
    CHECK(!opc__tls_ready(&s->t));
    CHECK(opc__tls_peer(&s->t) == NULL);
    CHECK(opc__tls_read(&s->t, &n) == NULL);
    CHECK(opc__tls_write(&s->t, &n) == NULL);
}

TEST(every_kind_of_key_meets_every_other_in_both_roles) {
    int c, s;
    for (c = 0; c < NO_KEY; c++) {
        for (s = 0; s < NO_KEY; s++) {
            open_pair(&contexts[c], &contexts[s], hashes[s]);
            check_nothing(&client);
            check_nothing(&server);
            settle(SIZE_MAX);
            CHECK(opc__tls_ready(&client.t) && opc__tls_ready(&server.t));
            if (!opc__tls_ready(&client.t) || !opc__tls_ready(&server.t)) continue;
            CHECK(memcmp(opc__tls_peer(&client.t), hashes[s], 32) == 0);
            CHECK(memcmp(opc__tls_peer(&server.t), hashes[c], 32) == 0);
            CHECK_EQ(client.asked, 1);
            CHECK_EQ(server.asked, 1);
            CHECK(!client.ready_when_asked);
            CHECK(!server.ready_when_asked); /* the key is not proved yet when the list is asked */
            CHECK_EQ(verdict(&client, NULL), OPCOMMS_OK);
            CHECK_EQ(verdict(&server, NULL), OPCOMMS_OK);
            CHECK_EQ(br_ssl_engine_get_ecdhe_curve(client.t.eng), BR_EC_curve25519);
            CHECK_EQ(client.t.eng->session.version, BR_TLS12);
            CHECK_EQ(put(&client, "ping", 4), 4);
            opc__tls_flush(&client.t);
            CHECK_EQ(put(&server, "pong", 4), 4);
            opc__tls_flush(&server.t);
            settle(SIZE_MAX);
            CHECK(got(&server, "ping"));
            CHECK(got(&client, "pong"));
        }
    }
}

TEST(the_wire_may_be_cut_anywhere) {
    static const size_t steps[] = {1, 2, 3, 5, 6, 7, 100, 1000};
    size_t i;
    for (i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        open_pair(&contexts[P256A], &contexts[P256B], hashes[P256B]);
        settle(steps[i]);
        CHECK(opc__tls_ready(&client.t) && opc__tls_ready(&server.t));
        CHECK_EQ(put(&client, "hello", 5), 5);
        opc__tls_flush(&client.t);
        settle(steps[i]);
        CHECK(got(&server, "hello"));
    }
}

TEST(suites_are_ordered_by_what_the_hardware_can) {
    int aes = br_aes_x86ni_ctr_get_vtable() != NULL, i;
    uint16_t first = aes ? BR_TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
                         : BR_TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256;
    uint16_t want = aes ? BR_TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
                        : BR_TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256;
    opc__tls_ctx other = contexts[RSA1];
    CHECK_EQ(contexts[RSA1].suites[0], first);
    CHECK_EQ(contexts[RSA1].suites[1], want);
    open_pair(&contexts[P256A], &contexts[RSA1], hashes[RSA1]);
    settle(SIZE_MAX);
    CHECK_EQ(client.t.eng->session.cipher_suite, want);
    for (i = 0; i < 4; i++) other.suites[i] = contexts[RSA1].suites[3 - i];
    other.chain.data = other.leaf;
    other.anchor.dn.data = other.dn;
    other.anchor.pkey.key.rsa.n = other.ca_n;
    other.anchor.pkey.key.rsa.e = other.ca_e;
    open_pair(&other, &contexts[RSA1], hashes[RSA1]); /* the server's order counts */
    settle(SIZE_MAX);
    CHECK_EQ(client.t.eng->session.cipher_suite, want);
}

/* ---- identity and the allow list ---- */

TEST(a_server_with_another_key_than_the_pinned_one_is_refused_and_told) {
    int code = 0;
    open_pair(&contexts[RSA1], &contexts[RSA2], hashes[P256A]);
    settle(SIZE_MAX);
    CHECK_EQ(verdict(&client, NULL), OPCOMMS_E_IDENTITY);
    CHECK_EQ(client.asked, 0); /* the list is not even asked about the wrong key */
    CHECK_EQ(server.asked, 0); /* our own certificate was never shown to it */
    CHECK(opc__tls_closed(&client.t) && opc__tls_closed(&server.t));
    CHECK_EQ(verdict(&server, &code), OPCOMMS_E_NOT_ALLOWED);
    CHECK_EQ(code, BR_ERR_RECV_FATAL_ALERT + 46);
    check_nothing(&client);
    check_nothing(&server);
}

TEST(one_wrong_bit_in_the_pinned_hash_is_a_wrong_hash) {
    int bit;
    for (bit = 0; bit < 256; bit += 37) {
        uint8_t want[32];
        memcpy(want, hashes[P256B], 32);
        want[bit / 8] = (uint8_t)(want[bit / 8] ^ (1u << (bit % 8)));
        open_pair(&contexts[P256A], &contexts[P256B], want);
        settle(SIZE_MAX);
        CHECK_EQ(verdict(&client, NULL), OPCOMMS_E_IDENTITY);
    }
}

TEST(a_client_that_is_not_listed_is_refused_and_told_so_by_the_alert) {
    static const int who[] = {RSA1, P256A};
    size_t i, step;
    for (i = 0; i < 2; i++) {
        for (step = 1; step < 3; step++) {
            int code = 0;
            open_pair(&contexts[who[i]], &contexts[RSA2], hashes[RSA2]);
            server.refuse = 1;
            settle(step == 1 ? 1 : SIZE_MAX);
            CHECK_EQ(verdict(&server, NULL), OPCOMMS_E_NOT_ALLOWED);
            CHECK_EQ(server.asked, 1);
            CHECK(memcmp(server.hash, hashes[who[i]], 32) == 0);
            CHECK_EQ(verdict(&client, &code), OPCOMMS_E_NOT_ALLOWED);
            CHECK_EQ(code,
                     BR_ERR_RECV_FATAL_ALERT + 46); /* certificate_unknown, as the reference */
            CHECK(opc__tls_closed(&client.t) && opc__tls_closed(&server.t));
            check_nothing(&client);
            check_nothing(&server);
        }
    }
}

TEST(a_server_that_is_not_listed_is_refused_before_our_key_is_shown) {
    int code = 0;
    open_pair(&contexts[RSA1], &contexts[RSA2], hashes[RSA2]);
    client.refuse = 1;
    settle(SIZE_MAX);
    CHECK_EQ(verdict(&client, NULL), OPCOMMS_E_NOT_ALLOWED);
    CHECK_EQ(server.asked, 0);
    CHECK_EQ(verdict(&server, &code), OPCOMMS_E_NOT_ALLOWED);
    CHECK_EQ(code, BR_ERR_RECV_FATAL_ALERT + 46);
}

/* A copy of a context that shows the given certificate. */
static void disguise(opc__tls_ctx *c, const opc__tls_ctx *from, const uint8_t *der, size_t len) {
    *c = *from;
    CHECK(len <= sizeof c->leaf);
    memcpy(c->leaf, der, len);
    c->chain.data = c->leaf;
    c->chain.data_len = len;
    c->anchor.dn.data = c->dn;
    c->anchor.pkey.key.rsa.n = c->ca_n;
    c->anchor.pkey.key.rsa.e = c->ca_e;
}

TEST(a_certificate_without_its_key_proves_nothing) {
    static const int kinds[][2] = {{RSA1, RSA2}, {P256A, P256B}}; /* thief, victim */
    size_t i;
    for (i = 0; i < 2; i++) {
        opc__tls_ctx thief;
        int t = kinds[i][0], v = kinds[i][1];
        disguise(&thief, &contexts[t], contexts[v].leaf, contexts[v].chain.data_len);
        open_pair(&thief, &contexts[P384A], hashes[P384A]);
        settle(SIZE_MAX);
        CHECK_EQ(server.asked, 1); /* the list admits the victim's hash... */
        CHECK(memcmp(server.hash, hashes[v], 32) == 0);
        CHECK(!opc__tls_ready(&client.t));
        check_nothing(&server); /* ...but the signature is not the victim's */
        CHECK(opc__tls_closed(&server.t));
        CHECK_EQ(verdict(&server, NULL), OPCOMMS_E_TLS);
        open_pair(&contexts[P384A], &thief, hashes[v]);
        settle(SIZE_MAX);
        CHECK_EQ(server.asked, 0);
        check_nothing(&client);
        check_nothing(&server);
        CHECK(opc__tls_closed(&client.t));
        CHECK_EQ(verdict(&client, NULL), OPCOMMS_E_TLS);
    }
}

TEST(a_client_without_a_certificate_is_refused) {
    int code = 0;
    open_pair(&contexts[RSA1], &contexts[RSA2], hashes[RSA2]);
    client.t.u.client.client_auth_vtable = NULL;
    settle(SIZE_MAX);
    CHECK_EQ(verdict(&server, &code), OPCOMMS_E_TLS);
    CHECK_EQ(code, BR_ERR_NO_CLIENT_AUTH);
    CHECK_EQ(server.asked, 0);
    check_nothing(&server);
    check_nothing(&client);
    CHECK_EQ(verdict(&client, &code), OPCOMMS_E_TLS);
    CHECK_EQ(code, BR_ERR_RECV_FATAL_ALERT + 40);
}

/* ---- certification authorities ---- */

#define NOW 1790000000 /* 2026 */

TEST(with_a_ca_of_its_own_a_peer_admits_only_that_ca_s_leaves) {
    opc__tls_ctx a, b;
    const opc__key *const cas[] = {&own_ca_key, &keys[P256B], &keys[P384A]};
    size_t i;
    for (i = 0; i < 3; i++) {
        int code = 0;
        CHECK_EQ(opc__tls_ctx_init(&a, &keys[RSA1], cas[i], 1, NULL), OPCOMMS_OK);
        CHECK_EQ(opc__tls_ctx_init(&b, &keys[P256A], cas[i], 1, NULL), OPCOMMS_OK);
        open_client(&a, hashes[P256A], NOW);
        open_server(&b, NOW);
        settle(SIZE_MAX);
        CHECK(opc__tls_ready(&client.t) && opc__tls_ready(&server.t));
        open_client(&b, hashes[RSA1], NOW);
        open_server(&a, NOW);
        settle(SIZE_MAX);
        CHECK(opc__tls_ready(&client.t) && opc__tls_ready(&server.t));
        /* The other side with the well-known CA: refused on whichever side looks first. */
        open_client(&a, hashes[RSA2], NOW);
        open_server(&contexts[RSA2], NOW);
        settle(SIZE_MAX);
        CHECK_EQ(verdict(&client, NULL), OPCOMMS_E_CERT);
        CHECK_EQ(client.asked + server.asked, 0);
        CHECK_EQ(verdict(&server, &code), OPCOMMS_E_TLS);
        CHECK(code > BR_ERR_RECV_FATAL_ALERT && code < BR_ERR_SEND_FATAL_ALERT);
        open_client(&contexts[RSA2], hashes[P256A], NOW);
        open_server(&b, NOW);
        settle(SIZE_MAX);
        CHECK_EQ(verdict(&client, NULL), OPCOMMS_E_CERT);
        CHECK_EQ(client.asked + server.asked, 0);
    }
}

TEST(the_well_known_ca_needs_no_clock_and_a_ca_of_one_s_own_does) {
    opc__tls_ctx a, b;
    static const int64_t clocks[] = {0, 1, NOW, 99999999999};
    size_t i;
    for (i = 0; i < 4; i++) {
        open_client(&contexts[P256A], hashes[P256B], clocks[i]);
        open_server(&contexts[P256B], clocks[i]);
        settle(SIZE_MAX);
        CHECK(opc__tls_ready(&client.t) && opc__tls_ready(&server.t));
    }
    CHECK_EQ(opc__tls_ctx_init(&a, &keys[P256A], &own_ca_key, 1, NULL), OPCOMMS_OK);
    CHECK_EQ(opc__tls_ctx_init(&b, &keys[P256B], &own_ca_key, 1, NULL), OPCOMMS_OK);
    open_client(&a, hashes[P256B], 0);
    open_server(&b, NOW);
    settle(SIZE_MAX);
    CHECK_EQ(verdict(&client, NULL), OPCOMMS_E_CERT);
}

/* ---- variants of the certificate ---- */

/* What our verifier alone says of a chain, in one call per certificate. */
static opcomms_err judge(side *s, const uint8_t *der, size_t len, size_t step) {
    const br_x509_class **x = &s->t.x509.vtable;
    size_t at;
    unsigned rc;
    (*x)->start_chain(x, "localhost");
    (*x)->start_cert(x, (uint32_t)len);
    for (at = 0; at < len; at += step) (*x)->append(x, der + at, len - at < step ? len - at : step);
    (*x)->end_cert(x);
    rc = (*x)->end_chain(x);
    if (rc == 0) return OPCOMMS_OK;
    return s->t.refusal != OPCOMMS_OK ? s->t.refusal : OPCOMMS_E_CERT;
}

static int next_variant(FILE *f, char name[64], char as_client[8], char as_server[8], char *rest,
                        size_t cap) {
    char line[512];
    while (fgets(line, sizeof line, f) != NULL) {
        if (line[0] == '#') continue;
        rest[0] = 0;
        CHECK_EQ(sscanf(line, "%63s %7s %7s", name, as_client, as_server), 3);
        if (strstr(line, "differs:") != NULL) snprintf(rest, cap, "%s", strstr(line, "differs:"));
        return 1;
    }
    return 0;
}

static void check_verdict(const char *name, const char *role, const char *want, opcomms_err rc,
                          const uint8_t hash[32], const side *s) {
    int fits = strcmp(want, "OK") == 0 ? rc == OPCOMMS_OK : rc == OPCOMMS_E_CERT;
    if (!fits) printf("%s as %s: %s\n", name, role, opcomms_err_text(rc));
    CHECK(fits);
    CHECK_EQ(s->asked, rc == OPCOMMS_OK);
    if (rc == OPCOMMS_OK) CHECK(memcmp(s->hash, hash, 32) == 0);
}

TEST(every_variant_of_the_leaf_gets_its_verdict_in_both_roles) {
    FILE *f = fopen(CERTS "verdicts.txt", "r");
    char name[64], as_client[8], as_server[8], rest[256];
    int seen = 0;
    CHECK(f != NULL);
    while (f != NULL && next_variant(f, name, as_client, as_server, rest, sizeof rest)) {
        char path[256];
        uint8_t der[2048], hash[32];
        size_t len, step;
        snprintf(path, sizeof path, CERTS "%s.der", name);
        len = load(path, der, sizeof der);
        CHECK_EQ(opc__cert_hash(der, len, hash), OPCOMMS_OK);
        for (step = 1; step < 4000; step = step * 40) {
            open_server(&contexts[RSA2], 0);
            check_verdict(name, "client", as_client, judge(&server, der, len, step), hash, &server);
            open_client(&contexts[RSA2], hash, 0);
            check_verdict(name, "server", as_server, judge(&client, der, len, step), hash, &client);
        }
        seen++;
    }
    if (f != NULL) fclose(f);
    CHECK(seen > 35);
}

TEST(variants_get_the_same_verdict_in_a_whole_handshake) {
    FILE *f = fopen(CERTS "verdicts.txt", "r");
    char name[64], as_client[8], as_server[8], rest[256];
    int seen = 0;
    CHECK(f != NULL);
    while (f != NULL && next_variant(f, name, as_client, as_server, rest, sizeof rest)) {
        char path[256];
        uint8_t der[2048], hash[32];
        size_t len;
        opc__tls_ctx c;
        int code = 0, k, ready;
        snprintf(path, sizeof path, CERTS "%s.der", name);
        len = load(path, der, sizeof der);
        CHECK_EQ(opc__cert_hash(der, len, hash), OPCOMMS_OK);
        for (k = 0; k < NO_KEY && memcmp(hash, hashes[k], 32) != 0; k++) continue;
        if (k == NO_KEY) continue; /* we have not its key; judged above */
        disguise(&c, &contexts[k], der, len);
        open_pair(&c, &contexts[P256B], hashes[P256B]);
        settle(SIZE_MAX);
        ready = opc__tls_ready(&server.t) && opc__tls_ready(&client.t);
        if (ready != (strcmp(as_client, "OK") == 0)) printf("%s as client: %d\n", name, ready);
        CHECK_EQ(ready, strcmp(as_client, "OK") == 0);
        if (strcmp(as_client, "OK") != 0) {
            CHECK_EQ(verdict(&server, NULL), OPCOMMS_E_CERT);
            (void)verdict(&client, &code);
            CHECK(code > BR_ERR_RECV_FATAL_ALERT && code < BR_ERR_SEND_FATAL_ALERT);
        }
        open_pair(&contexts[P256B], &c, hash);
        settle(SIZE_MAX);
        ready = opc__tls_ready(&server.t) && opc__tls_ready(&client.t);
        if (ready != (strcmp(as_server, "OK") == 0)) printf("%s as server: %d\n", name, ready);
        CHECK_EQ(ready, strcmp(as_server, "OK") == 0);
        if (strcmp(as_server, "OK") != 0) {
            CHECK_EQ(verdict(&client, NULL), OPCOMMS_E_CERT);
            (void)verdict(&server, &code);
            CHECK(code > BR_ERR_RECV_FATAL_ALERT && code < BR_ERR_SEND_FATAL_ALERT);
        }
        seen++;
    }
    if (f != NULL) fclose(f);
    CHECK(seen > 20);
}

static int reference_accepts(const char *file, const char *name) {
    char line[1024];
    int verdict = -1;
    FILE *f = fopen(file, "r");
    CHECK(f != NULL);
    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        size_t n = strcspn(line, " ");
        if (n == strlen(name) && memcmp(line, name, n) == 0)
            verdict = strstr(line, " ACCEPTED | ") != NULL;
    }
    if (f != NULL) fclose(f);
    return verdict;
}

TEST(the_reference_s_verdicts_are_ours_but_for_the_listed_exceptions) {
    FILE *f = fopen(CERTS "verdicts.txt", "r");
    char name[64], as_client[8], as_server[8], rest[256];
    int seen = 0, differing = 0;
    CHECK(f != NULL);
    while (f != NULL && next_variant(f, name, as_client, as_server, rest, sizeof rest)) {
        int c = reference_accepts(CERTS "leaf_as_client.txt", name);
        int s = reference_accepts(CERTS "leaf_as_server.txt", name);
        int same;
        if (c < 0 && s < 0) continue; /* ours */
        same = c == (strcmp(as_client, "OK") == 0) && s == (strcmp(as_server, "OK") == 0);
        if (same != (rest[0] == 0)) printf("%s: listed as %s\n", name, rest[0] ? rest : "the same");
        CHECK(same == (rest[0] == 0));
        differing += !same;
        seen++;
    }
    if (f != NULL) fclose(f);
    CHECK_EQ(seen, 31); /* all but "(no certificate)" and chain2, which have tests of their own */
    CHECK_EQ(differing, 4);
}

/* A chain of two: the CA's certificate behind the leaf is no harm. */
TEST(a_leaf_with_the_ca_behind_it_is_accepted) {
    static uint8_t ca_der[2048];
    br_x509_certificate chain[2];
    chain[0] = contexts[P256A].chain;
    chain[1].data = ca_der;
    chain[1].data_len = load(CERTS "reference_ca.der", ca_der, sizeof ca_der);
    open_pair(&contexts[P256A], &contexts[P256B], hashes[P256B]);
    br_ssl_client_set_single_ec(&client.t.u.client, chain, 2, &keys[P256A].ec, BR_KEYTYPE_SIGN,
                                BR_KEYTYPE_RSA, br_ec_get_default(),
                                br_ecdsa_sign_asn1_get_default());
    settle(SIZE_MAX);
    CHECK(opc__tls_ready(&client.t) && opc__tls_ready(&server.t));
    CHECK(memcmp(opc__tls_peer(&server.t), hashes[P256A], 32) == 0);
}

TEST(a_damaged_certificate_is_never_accepted_under_another_hash) {
    uint8_t der[2048];
    size_t len = load(CERTS "p256.der", der, sizeof der), i;
    int unsigned_bytes = 0;
    for (i = 0; i < len; i++) {
        opcomms_err rc;
        der[i] ^= 0x04;
        open_server(&contexts[RSA2], 0);
        rc = judge(&server, der, len, 4000);
        if (rc == OPCOMMS_OK) { /* all is signed but the name of the signature's algorithm */
            unsigned_bytes++;
            CHECK(memcmp(server.hash, hashes[P256A], 32) == 0);
        } else {
            CHECK_EQ(server.asked, 0);
        }
        der[i] ^= 0x04;
        open_server(&contexts[RSA2], 0);
        CHECK(judge(&server, der, i, 4000) != OPCOMMS_OK); /* cut off */
        CHECK_EQ(server.asked, 0);
    }
    CHECK(unsigned_bytes <= 15);
}

/* ---- a hostile wire ---- */

TEST(a_handshake_with_any_changed_byte_ends_on_both_sides_unproved) {
    size_t total, i;
    open_pair(&contexts[P256A], &contexts[P256B], hashes[P256B]);
    settle(SIZE_MAX);
    total = client.sent;
    CHECK(total > 700);
    for (i = 0; i < total; i += 23) {
        flip_at = i;
        open_pair(&contexts[P256A], &contexts[P256B], hashes[P256B]);
        settle(SIZE_MAX);
        if (opc__tls_ready(&server.t)) printf("byte %d\n", (int)i);
        CHECK(!opc__tls_ready(&server.t));
        CHECK(!opc__tls_ready(&client.t));
        flip_at = SIZE_MAX;
    }
    flip_at = SIZE_MAX;
}

static void throw_at_server(const void *p, size_t n) {
    size_t at = 0, room = 0;
    uint8_t *in;
    open_server(&contexts[P256A], 0);
    while (at < n && (in = opc__tls_in(&server.t, &room)) != NULL && room > 0) {
        size_t some = n - at < room ? n - at : room;
        memcpy(in, (const uint8_t *)p + at, some);
        opc__tls_in_done(&server.t, some);
        at += some;
    }
}

TEST(what_is_no_tls_is_ended_and_says_nothing_of_us) {
    static const char http[] = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    uint8_t noise[600];
    unsigned seed = 99;
    size_t i, round;
    throw_at_server(http, sizeof http - 1);
    CHECK(opc__tls_closed(&server.t));
    CHECK_EQ(verdict(&server, NULL), OPCOMMS_E_TLS);
    for (round = 0; round < 300; round++) {
        for (i = 0; i < sizeof noise; i++) {
            seed = seed * 1103515245u + 12345u;
            noise[i] = (uint8_t)(seed >> 20);
        }
        if (round % 2) { /* a well-formed record header, and a hello that begins well */
            static const uint8_t head[] = {22, 3, 1, 2, 0x53, 1, 0, 2, 0x4f, 3, 3};
            memcpy(noise, head, round % 4 == 1 ? 5 : sizeof head);
        }
        throw_at_server(noise, sizeof noise);
        CHECK(!opc__tls_ready(&server.t));
        CHECK_EQ(server.asked, 0);
    }
}

/* ---- closing ---- */

TEST(close_notify_ends_both_sides_after_all_that_was_sent_has_arrived) {
    open_pair(&contexts[P256A], &contexts[P256B], hashes[P256B]);
    settle(SIZE_MAX);
    CHECK_EQ(put(&client, "last words", 10), 10);
    opc__tls_flush(&client.t);
    while (move(&client, &server, SIZE_MAX) > 0) continue;
    opc__tls_close(&client.t);
    CHECK(got(&server, "last words")); /* BearSSL's close would lose it if it were left */
    settle(SIZE_MAX);
    CHECK(opc__tls_closed(&client.t));
    CHECK(opc__tls_closed(&server.t));
    CHECK_EQ(verdict(&server, NULL), OPCOMMS_E_CLOSED);
    CHECK_EQ(verdict(&client, NULL), OPCOMMS_E_CLOSED);
    opc__tls_close(&client.t); /* again: nothing */
    opc__tls_close(&server.t);
}

/* The trap: unread data at the moment of closing leaves the engine in a state of nothing for ever.
 */
TEST(closing_with_unread_data_and_more_on_its_way_still_ends) {
    size_t n = 0, i;
    static uint8_t block[4096];
    open_pair(&contexts[P256A], &contexts[P256B], hashes[P256B]);
    settle(SIZE_MAX);
    for (i = 0; i < 3; i++) { /* the first is read, the others wait behind it */
        CHECK(put(&client, block, sizeof block) > 0 || i > 1);
        opc__tls_flush(&client.t);
        while (move(&client, &server, SIZE_MAX) > 0) continue;
    }
    CHECK(opc__tls_read(&server.t, &n) != NULL && n > 0);
    opc__tls_close(&server.t);
    CHECK(opc__tls_read(&server.t, &n) == NULL);
    settle(SIZE_MAX);
    CHECK(opc__tls_closed(&server.t));
    CHECK(opc__tls_closed(&client.t));
}

TEST(both_sides_may_write_at_once_without_end_and_nothing_locks_up) {
    static uint8_t block[20000];
    size_t sent[2] = {0, 0}, have[2] = {0, 0}, want = 300000, k, stuck = 0;
    side *side_of[2];
    side_of[0] = &client;
    side_of[1] = &server;
    for (k = 0; k < sizeof block; k++) block[k] = (uint8_t)(k * 31u + k / 256u);
    open_pair(&contexts[P256A], &contexts[P256B], hashes[P256B]);
    settle(SIZE_MAX);
    while ((have[0] < want || have[1] < want) && stuck < 1000) {
        stuck++;
        for (k = 0; k < 2; k++) {
            size_t at = sent[k] % sizeof block, n = sizeof block - at;
            const uint8_t *p;
            if (n > want - sent[k]) n = want - sent[k];
            if (n > 0) n = put(side_of[k], block + at, n);
            sent[k] += n;
            if (n > 0) opc__tls_flush(&side_of[k]->t);
            if (move(side_of[k], side_of[1 - k], 1500) > 0) stuck = 0;
            n = 0;
            p = opc__tls_read(&side_of[k]->t, &n);
            if (p == NULL || n == 0) continue;
            if (n > sizeof block - have[k] % sizeof block)
                n = sizeof block - have[k] % sizeof block;
            CHECK(memcmp(p, block + have[k] % sizeof block, n) == 0);
            have[k] += n;
            opc__tls_read_done(&side_of[k]->t, n);
            stuck = 0;
        }
    }
    CHECK_EQ(have[0], want);
    CHECK_EQ(have[1], want);
}

TEST(renegotiation_is_refused_on_both_sides) {
    open_pair(&contexts[P256A], &contexts[P256B], hashes[P256B]);
    settle(SIZE_MAX);
    CHECK(!br_ssl_engine_renegotiate(client.t.eng));
    CHECK(!br_ssl_engine_renegotiate(server.t.eng));
    /* A client that insists: its flag is taken away, the server's is not. */
    br_ssl_engine_remove_flags(client.t.eng, BR_OPT_NO_RENEGOTIATION);
    CHECK(br_ssl_engine_renegotiate(client.t.eng));
    settle(SIZE_MAX);
    CHECK_EQ(server.asked, 1); /* no second handshake */
    CHECK_EQ(client.asked, 1);
}

TEST(a_wiped_connection_holds_no_bit_of_its_secrets) {
    size_t i;
    uint8_t any = 0;
    open_pair(&contexts[P256A], &contexts[P256B], hashes[P256B]);
    settle(SIZE_MAX);
    for (i = 0; i < 48; i++) any |= client.t.eng->session.master_secret[i];
    CHECK(any != 0);
    opc__tls_wipe(&client.t);
    any = 0;
    for (i = 0; i < sizeof client.t; i++) any |= ((uint8_t *)&client.t)[i];
    CHECK_EQ(any, 0);
    {
        int code = 0;
        size_t n = 0;
        CHECK(opc__tls_closed(&client.t)); /* and every question is still answered */
        CHECK(opc__tls_out(&client.t, &n) == NULL);
        CHECK(opc__tls_in(&client.t, &n) == NULL);
        CHECK_EQ(opc__tls_error(&client.t, &code), OPCOMMS_E_CLOSED);
    }
}

/* ---- entropy ---- */

static void hello_with(uint8_t fill, uint8_t random[32]) {
    uint8_t e[32];
    size_t n = 0;
    const uint8_t *out;
    memset(e, fill, sizeof e);
    memset(&client, 0, sizeof client);
    opc__tls_client(&client.t, &contexts[P256A], hashes[P256B], may, &client, e, 0, 0);
    out = opc__tls_out(&client.t, &n);
    CHECK(out != NULL && n > 5 + 4 + 2 + 32);
    if (out == NULL) return;
    memcpy(random, out + 5 + 4 + 2 + 4, 28); /* behind the time of day */
}

TEST(the_injected_entropy_is_what_the_engine_runs_on) {
    uint8_t a[32], b[32], c[32];
    memset(a, 0, sizeof a);
    memset(b, 0, sizeof b);
    memset(c, 0, sizeof c);
    os_random = 0;
    hello_with(1, a); /* works without any randomness of the library's own */
    hello_with(1, b);
    hello_with(2, c);
    CHECK(memcmp(a, b, 28) == 0);
    CHECK(memcmp(a, c, 28) != 0);
    open_pair(&contexts[P256A], &contexts[P256B], hashes[P256B]);
    settle(SIZE_MAX);
    CHECK(opc__tls_ready(&client.t) && opc__tls_ready(&server.t));
    os_random = 1;
    hello_with(1, a); /* with the library's own it is mixed in */
    hello_with(1, b);
    CHECK(memcmp(a, b, 28) != 0);
}

/* ---- openssl at the other end ---- */

static char dir_path[] = "build/tests/tls.XXXXXX";

static void write_cert(int key, char path[128]) {
    char pem[4096];
    size_t len = 0;
    FILE *f;
    CHECK_EQ(opcomms_make_cert(key_files[key], NULL, pem, sizeof pem, &len, NULL), OPCOMMS_OK);
    snprintf(path, 128, "%s/%d.pem", dir_path, key);
    f = fopen(path, "wb");
    CHECK(f != NULL);
    if (f == NULL) return;
    fwrite(pem, 1, len, f);
    fclose(f);
}

/* Pumps one engine over a socket until it is ready, ended, or what was asked for has come. */
static int drive(side *s, intptr_t sock, const char *until) {
    const opcomms_platform *p = opc__plat_default();
    char seen[512];
    size_t have = 0;
    uint64_t give_up = p->now_us(NULL) + 20000000u;
    while (p->now_us(NULL) < give_up) {
        size_t n = 0, put_n = 0;
        int os = 0;
        const uint8_t *out;
        uint8_t *in, alert[OPC__TLS_ALERT];
        const uint8_t *data;
        opcomms_pollfd fd;
        opcomms_err rc;
        while ((out = pending(s, alert, &n)) != NULL) {
            if (p->sock_send(NULL, sock, out, n, &put_n, &os) != OPCOMMS_OK) return 0;
            pending_done(s, out, alert, put_n);
        }
        if (opc__tls_ready(&s->t) && until == NULL) return 1;
        while ((data = opc__tls_read(&s->t, &n)) != NULL && n > 0) {
            size_t keep = n < sizeof seen - 1 - have ? n : sizeof seen - 1 - have;
            memcpy(seen + have, data, keep);
            have += keep;
            seen[have] = 0;
            opc__tls_read_done(&s->t, n);
            if (until != NULL && strstr(seen, until) != NULL) return 1;
        }
        if (opc__tls_closed(&s->t)) return 0;
        memset(&fd, 0, sizeof fd);
        fd.handle = sock;
        fd.events = OPCOMMS_POLL_IN;
        (void)p->wait(NULL, &fd, 1, 20000, &os);
        in = opc__tls_in(&s->t, &n);
        if (in == NULL || n == 0) continue;
        rc = p->sock_recv(NULL, sock, in, n, &put_n, &os);
        if (rc == OPCOMMS_OK && put_n == 0) return 0;
        if (rc == OPCOMMS_OK) opc__tls_in_done(&s->t, put_n);
        if (rc != OPCOMMS_OK && rc != OPCOMMS_E_AGAIN) return 0;
    }
    printf("time is up\n");
    return 0;
}

typedef struct run {
    char text[16384]; /* what openssl said */
    int established;
} run;

/* openssl s_client against our server with key `key`; `say` goes into its input after the
 * handshake. */
static void against_s_client(int key, int client_key, const char *options, const char *say,
                             const char *until, run *r) {
    const opcomms_platform *p = opc__plat_default();
    intptr_t listener = OPCOMMS_NO_HANDLE, sock = OPCOMMS_NO_HANDLE;
    opcomms_address a, bound, from;
    opcomms_pollfd fd;
    char command[1024], cert[128] = "", identity[256] = "", out_path[128];
    int os = 0;
    FILE *f;
    memset(r, 0, sizeof *r);
    memset(&a, 0, sizeof a);
    memset(&fd, 0, sizeof fd);
    a.family = 4;
    a.ip[0] = 127;
    a.ip[3] = 1;
    CHECK_EQ(p->tcp_listen(NULL, &a, &listener, &bound, &os), OPCOMMS_OK);
    if (client_key != NO_KEY) {
        write_cert(client_key, cert);
        snprintf(identity, sizeof identity, "-cert %s -key %s", cert, key_files[client_key]);
    }
    snprintf(out_path, sizeof out_path, "%s/out", dir_path);
    snprintf(command, sizeof command,
             "timeout 30 openssl s_client -connect 127.0.0.1:%d -servername other.example "
             "-CAfile %s/ca.pem -verify_return_error -verify_hostname localhost %s %s >%s 2>&1",
             bound.port, dir_path, identity, options, out_path);
    f = popen(command, "w");
    CHECK(f != NULL);
    fd.handle = listener;
    fd.events = OPCOMMS_POLL_IN;
    CHECK_EQ(p->wait(NULL, &fd, 1, 20000, &os), OPCOMMS_OK);
    if (p->tcp_accept(NULL, listener, &sock, &from, &os) == OPCOMMS_OK) {
        open_server(&contexts[key], 0);
        r->established = drive(&server, sock, NULL);
        if (r->established && say != NULL && f != NULL) {
            fputs(say, f);
            fflush(f);
            r->established = drive(&server, sock, until);
        }
        if (r->established) {
            CHECK_EQ(put(&server, "good bye", 8), 8);
            opc__tls_flush(&server.t);
            opc__tls_close(&server.t);
            (void)drive(&server, sock, "\n\n\n"); /* no such text comes: until the end */
        }
        p->sock_shutdown(NULL, sock, 0);
    } else {
        CHECK(!"accepted");
    }
    if (f != NULL) (void)pclose(f);
    if (sock != OPCOMMS_NO_HANDLE) p->sock_close(NULL, sock);
    p->sock_close(NULL, listener);
    (void)load(out_path, (uint8_t *)r->text, sizeof r->text - 1);
}

static int says(const run *r, const char *text) {
    if (strstr(r->text, text) != NULL) return 1;
    printf("openssl does not say \"%s\" but:\n%s\n", text, r->text);
    return 0;
}

TEST(openssl_s_client_gets_each_suite_with_each_group_from_either_kind_of_key) {
    static const char *const suites[2][2] = {
        {"ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-CHACHA20-POLY1305"},
        {"ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"}};
    static const struct {
        const char *name, *shown;
    } groups[] = {{"X25519", "X25519, 253 bits"}, {"P-256", "prime256v1"}, {"P-384", "secp384r1"}};
    int kind, suite, group;
    for (kind = 0; kind < 2; kind++) {
        for (suite = 0; suite < 2; suite++) {
            for (group = 0; group < 3; group++) {
                char options[256], cipher[128];
                int key = kind == 0 ? RSA1 : P256A;
                static run r;
                /* An EC certificate's own curve must be among the groups for openssl to take it. */
                snprintf(options, sizeof options, "-tls1_2 -cipher %s -groups %s%s",
                         suites[kind][suite], groups[group].name,
                         kind == 1 && group != 1 ? ":P-256" : "");
                against_s_client(key, (group + suite) % 2 ? P256B : RSA2, options, "hello\n",
                                 "hello", &r);
                CHECK(r.established);
                snprintf(cipher, sizeof cipher, "New, TLSv1.2, Cipher is %s", suites[kind][suite]);
                CHECK(says(&r, cipher));
                if (kind == 0 || group < 2) CHECK(says(&r, groups[group].shown));
                CHECK(says(&r, "Verify return code: 0 (ok)"));
                CHECK(says(&r, "good bye"));
            }
        }
    }
}

TEST(openssl_s_client_with_its_own_preferences_gets_x25519_and_our_first_suite) {
    static run r;
    against_s_client(RSA1, RSA2, "-tls1_2", "hello\n", "hello", &r);
    CHECK(r.established);
    CHECK(says(&r, "X25519, 253 bits"));
    CHECK(says(&r, br_aes_x86ni_ctr_get_vtable() != NULL
                       ? "Cipher is ECDHE-RSA-AES128-GCM-SHA256"
                       : "Cipher is ECDHE-RSA-CHACHA20-POLY1305"));
    CHECK(says(&r, "CN = rcgen self signed cert")); /* whose leaves we ask for */
    CHECK(says(&r, "Secure Renegotiation IS supported"));
    against_s_client(RSA1, RSA2, "", "hello\n", "hello",
                     &r); /* offers 1.3 too: falls back to 1.2 */
    CHECK(r.established);
    CHECK(says(&r, "New, TLSv1.2"));
    /* The group we would not choose comes first: the better one is taken all the same. */
    against_s_client(RSA1, RSA2, "-tls1_2 -groups P-384:P-256:X25519", "hello\n", "hello", &r);
    CHECK(r.established);
    CHECK(says(&r, "X25519, 253 bits"));
}

TEST(openssl_s_client_is_refused_other_versions_and_suites_and_no_certificate) {
    static const struct {
        const char *options, *alert;
    } t[] = {{"-tls1 -cipher DEFAULT:@SECLEVEL=0", "wrong version number"},
             {"-tls1_1 -cipher DEFAULT:@SECLEVEL=0", "wrong version number"},
             {"-tls1_3", "alert handshake failure"},
             {"-tls1_2 -cipher ECDHE-RSA-AES256-GCM-SHA384", "alert handshake failure"},
             {"-tls1_2 -cipher AES128-SHA:AES128-GCM-SHA256", "alert handshake failure"},
             {"-tls1_2 -cipher ECDHE-RSA-AES128-SHA256", "alert handshake failure"},
             {"-tls1_2 -cipher DHE-RSA-AES128-GCM-SHA256", "alert handshake failure"}};
    size_t i;
    static run r;
    for (i = 0; i < sizeof t / sizeof t[0]; i++) {
        against_s_client(RSA1, RSA2, t[i].options, NULL, NULL, &r);
        CHECK(!r.established);
        CHECK(says(&r, t[i].alert));
        CHECK_EQ(server.asked, 0);
    }
    against_s_client(RSA1, NO_KEY, "-tls1_2", NULL, NULL, &r);
    CHECK(!r.established);
    CHECK_EQ(server.asked, 0);
    CHECK(says(&r, "alert handshake failure"));
}

TEST(openssl_s_client_cannot_renegotiate) {
    static run r;
    against_s_client(RSA1, RSA2, "-tls1_2", "hello\n", "hello", &r);
    CHECK(r.established);
    CHECK_EQ(server.asked, 1);
    against_s_client(RSA1, RSA2, "-tls1_2", "R\n", "hello", &r);
    CHECK(says(&r, "RENEGOTIATING"));
    CHECK(says(&r, "no renegotiation"));
    CHECK_EQ(server.asked, 1);
}

/* openssl s_server against our client, which writes a line and reads it back reversed. */
static void against_s_server(int key, int client_key, const char *options, run *r) {
    const opcomms_platform *p = opc__plat_default();
    intptr_t sock = OPCOMMS_NO_HANDLE;
    opcomms_address a;
    char command[1024], line[256], cert[128];
    unsigned port = 0;
    int os = 0;
    size_t have = 0;
    FILE *f;
    memset(r, 0, sizeof *r);
    memset(&a, 0, sizeof a);
    a.family = 4;
    a.ip[0] = 127;
    a.ip[3] = 1;
    write_cert(key, cert);
    snprintf(
        command, sizeof command,
        "exec timeout 30 openssl s_server -accept 127.0.0.1:0 -naccept 1 -cert %s -key %s -CAfile "
        "%s/ca.pem -Verify 1 -verify_return_error -rev %s </dev/null 2>&1",
        cert, key_files[key], dir_path, options);
    f = popen(command, "r");
    CHECK(f != NULL);
    if (f == NULL) return;
    while (port == 0 && fgets(line, sizeof line, f) != NULL) {
        const char *at = strstr(line, "ACCEPT 127.0.0.1:");
        if (at != NULL) port = (unsigned)atoi(at + 17);
    }
    CHECK(port > 0);
    a.port = (uint16_t)port;
    if (port > 0 && p->tcp_connect(NULL, &a, &sock, &os) == OPCOMMS_OK) {
        opcomms_pollfd fd;
        memset(&fd, 0, sizeof fd);
        fd.handle = sock;
        fd.events = OPCOMMS_POLL_OUT;
        CHECK_EQ(p->wait(NULL, &fd, 1, 20000, &os), OPCOMMS_OK);
        open_client(&contexts[client_key], hashes[key], 0);
        r->established = drive(&client, sock, NULL);
        if (r->established) {
            CHECK_EQ(put(&client, "hello\n", 6), 6);
            opc__tls_flush(&client.t);
            r->established = drive(&client, sock, "olleh");
            CHECK(r->established);
            CHECK_EQ(put(&client, "CLOSE\n", 6), 6); /* s_server -rev ends on it */
            opc__tls_flush(&client.t);
            (void)drive(&client, sock, "\n\n\n");
        }
        p->sock_shutdown(NULL, sock, 0);
        p->sock_close(NULL, sock);
    }
    while (have < sizeof r->text - 1) {
        size_t n = fread(r->text + have, 1, sizeof r->text - 1 - have, f);
        if (n == 0) break;
        have += n;
    }
    (void)pclose(f);
}

TEST(openssl_s_server_gets_each_suite_with_x25519_from_us) {
    static const struct {
        int key, client_key;
        const char *suite;
    } t[] = {{RSA1, RSA2, "ECDHE-RSA-AES128-GCM-SHA256"},
             {RSA2, RSA1, "ECDHE-RSA-CHACHA20-POLY1305"}};
    size_t i;
    static run r;
    for (i = 0; i < sizeof t / sizeof t[0]; i++) {
        char options[128], shown[128];
        snprintf(options, sizeof options, "-tls1_2 -cipher %s", t[i].suite);
        against_s_server(t[i].key, t[i].client_key, options, &r);
        CHECK(r.established);
        snprintf(shown, sizeof shown, "Ciphersuite: %s", t[i].suite);
        CHECK(says(&r, shown));
        CHECK_EQ(br_ssl_engine_get_ecdhe_curve(client.t.eng), BR_EC_curve25519);
        CHECK(memcmp(client.hash, hashes[t[i].key], 32) == 0);
    }
    against_s_server(RSA1, RSA2, "", &r); /* with its own preferences, up to 1.3 */
    CHECK(r.established);
    CHECK(says(&r, "Protocol version: TLSv1.2"));
}

TEST(openssl_s_server_is_refused_other_versions_and_suites) {
    static const char *const options[] = {
        "-tls1_1 -cipher DEFAULT:@SECLEVEL=0", "-tls1_3",
        "-tls1_2 -cipher ECDHE-RSA-AES256-GCM-SHA384", "-tls1_2 -cipher AES128-SHA",
        /* We offer X25519 alone: every peer of the protocol has it. */
        "-tls1_2 -groups P-256:P-384"};
    size_t i;
    static run r;
    for (i = 0; i < sizeof options / sizeof options[0]; i++) {
        against_s_server(RSA1, RSA2, options[i], &r);
        CHECK(!r.established);
        CHECK_EQ(client.asked, 0);
        check_nothing(&client);
    }
}

TEST(openssl_s_server_with_another_key_gets_our_alert) {
    static run r;
    uint8_t keep[32];
    memcpy(keep, hashes[RSA1], 32);
    memcpy(hashes[RSA1], hashes[P256A], 32); /* whom we ask for */
    against_s_server(RSA1, RSA2, "-tls1_2", &r);
    memcpy(hashes[RSA1], keep, 32);
    CHECK(!r.established);
    CHECK_EQ(verdict(&client, NULL), OPCOMMS_E_IDENTITY);
    CHECK(says(&r, "alert certificate unknown"));
}

int main(void) {
    char command[256], ca[4096];
    size_t len = 0;
    FILE *f;
    signal(SIGPIPE, SIG_IGN); /* of the pipes to openssl */
    if (mkdtemp(dir_path) == NULL || !set_up() ||
        opcomms_make_ca_cert(NULL, ca, sizeof ca, &len, NULL) != OPCOMMS_OK) {
        printf("no directory or keys\n0 passed, 1 failed\n");
        return 1;
    }
    snprintf(command, sizeof command, "%s/ca.pem", dir_path);
    f = fopen(command, "wb");
    if (f != NULL) {
        fwrite(ca, 1, len, f);
        fclose(f);
    }
    RUN(every_kind_of_key_meets_every_other_in_both_roles);
    RUN(the_wire_may_be_cut_anywhere);
    RUN(suites_are_ordered_by_what_the_hardware_can);
    RUN(a_server_with_another_key_than_the_pinned_one_is_refused_and_told);
    RUN(one_wrong_bit_in_the_pinned_hash_is_a_wrong_hash);
    RUN(a_client_that_is_not_listed_is_refused_and_told_so_by_the_alert);
    RUN(a_server_that_is_not_listed_is_refused_before_our_key_is_shown);
    RUN(a_certificate_without_its_key_proves_nothing);
    RUN(a_client_without_a_certificate_is_refused);
    RUN(with_a_ca_of_its_own_a_peer_admits_only_that_ca_s_leaves);
    RUN(the_well_known_ca_needs_no_clock_and_a_ca_of_one_s_own_does);
    RUN(every_variant_of_the_leaf_gets_its_verdict_in_both_roles);
    RUN(variants_get_the_same_verdict_in_a_whole_handshake);
    RUN(the_reference_s_verdicts_are_ours_but_for_the_listed_exceptions);
    RUN(a_leaf_with_the_ca_behind_it_is_accepted);
    RUN(a_damaged_certificate_is_never_accepted_under_another_hash);
    RUN(a_handshake_with_any_changed_byte_ends_on_both_sides_unproved);
    RUN(what_is_no_tls_is_ended_and_says_nothing_of_us);
    RUN(close_notify_ends_both_sides_after_all_that_was_sent_has_arrived);
    RUN(closing_with_unread_data_and_more_on_its_way_still_ends);
    RUN(both_sides_may_write_at_once_without_end_and_nothing_locks_up);
    RUN(renegotiation_is_refused_on_both_sides);
    RUN(a_wiped_connection_holds_no_bit_of_its_secrets);
    RUN(the_injected_entropy_is_what_the_engine_runs_on);
    RUN(openssl_s_client_gets_each_suite_with_each_group_from_either_kind_of_key);
    RUN(openssl_s_client_with_its_own_preferences_gets_x25519_and_our_first_suite);
    RUN(openssl_s_client_is_refused_other_versions_and_suites_and_no_certificate);
    RUN(openssl_s_client_cannot_renegotiate);
    RUN(openssl_s_server_gets_each_suite_with_x25519_from_us);
    RUN(openssl_s_server_is_refused_other_versions_and_suites);
    RUN(openssl_s_server_with_another_key_gets_our_alert);
    snprintf(command, sizeof command, "rm -rf '%s'", dir_path);
    if (system(command) != 0) printf("could not clean up\n");
    return test_end();
}
