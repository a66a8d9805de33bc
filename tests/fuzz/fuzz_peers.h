/* Two ends that are made once, with fixed keys and fixed randomness, so that every run of a target
   sees the same handshake byte for byte. */
#ifndef OPCOMMS_FUZZ_PEERS_H
#define OPCOMMS_FUZZ_PEERS_H
#include "fuzz.h"

/* Takes the place of BearSSL's own source, which cannot be repeated: none, so that only what is
   injected counts. */
br_prng_seeder br_prng_seeder_system(const char **name) {
    if (name != NULL) *name = NULL;
    return 0;
}

typedef struct fuzz_peer {
    opc__key key;
    opc__tls_ctx ctx;
    uint8_t hash[32];
} fuzz_peer;

typedef struct fuzz_peers {
    int made;
    opc__key ca;
    fuzz_peer server;
    fuzz_peer client;
} fuzz_peers;

static fuzz_peers fuzz_the_peers;

FUZZ_FN void fuzz_peer_make(fuzz_peer *p, const opc__key *ca) {
    char pem[4096];
    size_t len = 0;
    FUZZ_CHECK(opc__key_generate(fuzz_platform(), 0, pem, sizeof pem, &len, NULL) == OPCOMMS_OK);
    FUZZ_CHECK(opc__key_from_pem(&p->key, pem, len, NULL) == OPCOMMS_OK);
    FUZZ_CHECK(opc__tls_ctx_init(&p->ctx, &p->key, ca, 0, NULL) == OPCOMMS_OK);
    opc__key_hash(&p->key, p->hash);
}

FUZZ_FN void fuzz_peers_make(void) {
    fuzz_peers *p = &fuzz_the_peers;
    if (p->made) return;
    fuzz_the_disk.random = 1;
    opc__key_builtin_ca(&p->ca);
    fuzz_peer_make(&p->server, &p->ca);
    fuzz_peer_make(&p->client, &p->ca);
    p->made = 1;
}

/* Nobody but the two exists: a key that gets this far is one of theirs. */
FUZZ_FN int fuzz_may_server(void *user, const uint8_t hash[32]) {
    (void)user;
    FUZZ_CHECK(memcmp(hash, fuzz_the_peers.server.hash, 32) == 0);
    return 1;
}
FUZZ_FN int fuzz_may_client(void *user, const uint8_t hash[32]) {
    (void)user;
    FUZZ_CHECK(memcmp(hash, fuzz_the_peers.client.hash, 32) == 0);
    return 1;
}

FUZZ_FN void fuzz_start(opc__tls *t, int server) {
    uint8_t entropy[32];
    memset(entropy, server ? 0x11 : 0x22, sizeof entropy);
    if (server) {
        opc__tls_server(t, &fuzz_the_peers.server.ctx, fuzz_may_client, NULL, entropy, 0);
    } else {
        opc__tls_client(t, &fuzz_the_peers.client.ctx, fuzz_the_peers.server.hash, fuzz_may_server,
                        NULL, entropy, 0, 0);
    }
    FUZZ_CHECK(!opc__tls_closed(t));
}

/* Everything the engine wants to send goes to `out` (may be NULL). */
FUZZ_FN void fuzz_drain(opc__tls *t, fuzz_buf *out) {
    size_t len = 0;
    const uint8_t *p;
    while ((p = opc__tls_out(t, &len)) != NULL && len > 0) {
        if (out != NULL) fuzz_put(out, p, len);
        opc__tls_out_done(t, len);
    }
}

/* As much of p as the engine takes. */
FUZZ_FN size_t fuzz_push(opc__tls *t, const uint8_t *p, size_t n) {
    size_t room = 0;
    uint8_t *dst = opc__tls_in(t, &room);
    if (dst == NULL) return 0;
    if (n > room) n = room;
    memcpy(dst, p, n);
    opc__tls_in_done(t, n);
    return n;
}

#endif
