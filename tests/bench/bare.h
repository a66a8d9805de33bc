/* Two BearSSL engines and nothing else: the floor for handshake time and for program size. Suites,
   curves and buffers are those of opcomms.h; the keys are pinned, so no chain is verified. */
#ifndef BENCH_BARE_H
#define BENCH_BARE_H

#include <bearssl.h>
#include <string.h>
#include <sys/socket.h>

#define BARE_FN static __attribute__((unused))

#ifndef BARE_OUT
#define BARE_OUT 4181 /* records of 4 KiB, as a peer's */
#endif

typedef struct bare_id {
    int is_rsa;
    br_rsa_private_key rsa;
    br_ec_private_key ec;
    br_x509_certificate chain;
    br_x509_pkey known; /* its public half, which the other end pins */
} bare_id;

typedef struct bare_end {
    union {
        br_ssl_server_context server;
        br_ssl_client_context client;
    } u;
    br_ssl_engine_context *eng;
    br_x500_name name; /* server: who signs the certificates it asks for */
    br_x509_knownkey_context known;
    unsigned char in[BR_SSL_BUFSIZE_INPUT];
    unsigned char out[BARE_OUT];
} bare_end;

BARE_FN uint32_t bare_vrfy(const br_ec_impl *impl, const void *hash, size_t hash_len,
                          const br_ec_public_key *pk, const void *sig, size_t sig_len) {
    (void)impl;
    return br_ecdsa_vrfy_asn1_get_default()(br_ec_get_default(), hash, hash_len, pk, sig, sig_len);
}

BARE_FN void bare_engine(bare_end *e, const bare_id *other) {
    static const uint16_t aes[] = {
        BR_TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, BR_TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        BR_TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        BR_TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256};
    static const uint16_t chacha[] = {
        BR_TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        BR_TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, BR_TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        BR_TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256};
    const unsigned usages = BR_KEYTYPE_SIGN | BR_KEYTYPE_KEYX;
    br_ssl_engine_set_versions(e->eng, BR_TLS12, BR_TLS12);
    br_ssl_engine_set_suites(e->eng, br_aes_x86ni_ctr_get_vtable() != NULL ? aes : chacha, 4);
    br_ssl_engine_set_hash(e->eng, br_sha256_ID, &br_sha256_vtable);
    br_ssl_engine_set_hash(e->eng, br_sha384_ID, &br_sha384_vtable);
    br_ssl_engine_set_hash(e->eng, br_sha512_ID, &br_sha512_vtable);
    br_ssl_engine_set_prf_sha256(e->eng, &br_tls12_sha256_prf);
    br_ssl_engine_set_default_aes_gcm(e->eng);
    br_ssl_engine_set_default_chapol(e->eng);
    br_ssl_engine_set_rsavrfy(e->eng, br_rsa_pkcs1_vrfy_get_default());
    br_ssl_engine_set_ecdsa(e->eng, bare_vrfy);
    if (other->is_rsa) {
        br_x509_knownkey_init_rsa(&e->known, &other->known.key.rsa, usages);
    } else {
        br_x509_knownkey_init_ec(&e->known, &other->known.key.ec, usages);
    }
    br_ssl_engine_set_x509(e->eng, &e->known.vtable);
    br_ssl_engine_set_buffers_bidi(e->eng, e->in, sizeof e->in, e->out, sizeof e->out);
    br_ssl_engine_add_flags(e->eng, BR_OPT_NO_RENEGOTIATION);
}

/* 1: ready to begin. */
BARE_FN int bare_server(bare_end *e, const bare_id *own, const bare_id *other, const void *dn,
                       size_t dn_len) {
    br_ssl_server_context *sc = &e->u.server;
    e->name.data = (unsigned char *)dn;
    e->name.len = dn_len;
    br_ssl_server_zero(sc);
    e->eng = &sc->eng;
    bare_engine(e, other);
    br_ssl_engine_set_ec(e->eng, br_ec_get_default());
    if (own->is_rsa) {
        br_ssl_server_set_single_rsa(sc, &own->chain, 1, &own->rsa, BR_KEYTYPE_SIGN,
                                     br_rsa_private_get_default(), br_rsa_pkcs1_sign_get_default());
    } else {
        br_ssl_server_set_single_ec(sc, &own->chain, 1, &own->ec, BR_KEYTYPE_SIGN, BR_KEYTYPE_RSA,
                                    br_ec_get_default(), br_ecdsa_sign_asn1_get_default());
    }
    br_ssl_server_set_trust_anchor_names(sc, &e->name, 1); /* asks for the client's certificate */
    br_ssl_engine_add_flags(e->eng, BR_OPT_ENFORCE_SERVER_PREFERENCES);
    return br_ssl_server_reset(sc);
}

BARE_FN int bare_client(bare_end *e, const bare_id *own, const bare_id *other) {
    br_ssl_client_context *cc = &e->u.client;
    br_ssl_client_zero(cc);
    e->eng = &cc->eng;
    bare_engine(e, other);
    br_ssl_engine_set_ec(e->eng, &br_ec_c25519_m31);
    br_ssl_client_set_rsapub(cc, br_rsa_public_get_default());
    if (own->is_rsa) {
        br_ssl_client_set_single_rsa(cc, &own->chain, 1, &own->rsa,
                                     br_rsa_pkcs1_sign_get_default());
    } else {
        br_ssl_client_set_single_ec(cc, &own->chain, 1, &own->ec, BR_KEYTYPE_SIGN, BR_KEYTYPE_RSA,
                                    br_ec_get_default(), br_ecdsa_sign_asn1_get_default());
    }
    return br_ssl_client_reset(cc, "localhost", 0);
}

BARE_FN int bare_say(bare_end *e) {
    size_t n = 0;
    unsigned char *p = br_ssl_engine_sendapp_buf(e->eng, &n);
    if (p == NULL || n < 64) return 0;
    memset(p, 'm', 64);
    br_ssl_engine_sendapp_ack(e->eng, 64);
    br_ssl_engine_flush(e->eng, 0);
    return 1;
}

BARE_FN int bare_heard(bare_end *e) {
    size_t n = 0;
    if (br_ssl_engine_recvapp_buf(e->eng, &n) == NULL || n != 64) return 0;
    br_ssl_engine_recvapp_ack(e->eng, n);
    return 1;
}

/* What `from` has to send goes into `to`. 0: nothing moved. */
BARE_FN int bare_move(bare_end *from, bare_end *to) {
    size_t n = 0, room = 0;
    const unsigned char *p = br_ssl_engine_sendrec_buf(from->eng, &n);
    unsigned char *q = br_ssl_engine_recvrec_buf(to->eng, &room);
    if (p == NULL || q == NULL) return 0;
    if (n > room) n = room;
    memcpy(q, p, n);
    br_ssl_engine_recvrec_ack(to->eng, n);
    br_ssl_engine_sendrec_ack(from->eng, n);
    return n > 0;
}

BARE_FN void bare_run(bare_end *a, bare_end *b) {
    int moved = 1;
    while (moved) {
        moved = bare_move(a, b);
        moved = bare_move(b, a) || moved;
    }
}

/* A full mutual handshake in memory, then 64 bytes there and 64 back. 1: all of it happened. */
BARE_FN int bare_pair(const bare_id *server, const bare_id *client, const void *dn, size_t dn_len) {
    static bare_end s, c;
    if (!bare_server(&s, server, client, dn, dn_len) || !bare_client(&c, client, server)) return 0;
    bare_run(&c, &s);
    if (!bare_say(&c)) return 0;
    bare_run(&c, &s);
    if (!bare_heard(&s) || !bare_say(&s)) return 0;
    bare_run(&c, &s);
    return bare_heard(&c);
}

/* Runs one end over a blocking socket until its engine reaches one of these states. */
BARE_FN int bare_until(bare_end *e, int fd, unsigned states) {
    for (;;) {
        unsigned now = br_ssl_engine_current_state(e->eng);
        size_t n = 0;
        unsigned char *p;
        ssize_t moved;
        if (now == BR_SSL_CLOSED) return 0;
        p = br_ssl_engine_sendrec_buf(e->eng, &n);
        if (p != NULL) {
            moved = send(fd, p, n, MSG_NOSIGNAL);
            if (moved <= 0) return 0;
            br_ssl_engine_sendrec_ack(e->eng, (size_t)moved);
            continue;
        }
        if (now & states) return 1;
        p = br_ssl_engine_recvrec_buf(e->eng, &n);
        moved = p != NULL ? recv(fd, p, n, 0) : -1;
        if (moved <= 0) return 0;
        br_ssl_engine_recvrec_ack(e->eng, (size_t)moved);
    }
}

/* The same over a connected socket, one end each. */
BARE_FN int bare_accept(const bare_id *own, const bare_id *other, const void *dn, size_t dn_len,
                       int fd) {
    static bare_end e;
    return bare_server(&e, own, other, dn, dn_len) && bare_until(&e, fd, BR_SSL_RECVAPP) &&
           bare_heard(&e) && bare_say(&e) && bare_until(&e, fd, BR_SSL_SENDAPP);
}

BARE_FN int bare_connect(const bare_id *own, const bare_id *other, int fd) {
    static bare_end e;
    return bare_client(&e, own, other) && bare_until(&e, fd, BR_SSL_SENDAPP) && bare_say(&e) &&
           bare_until(&e, fd, BR_SSL_RECVAPP) && bare_heard(&e);
}

#ifdef BENCH_BARE_MAIN
/* Linked only for its size. */
int main(void) {
    static bare_id id;
    return bare_pair(&id, &id, "", 0) + bare_accept(&id, &id, "", 0, 0) + bare_connect(&id, &id, 0);
}
#endif

#endif
