/* Two BearSSL engines and nothing else: the floor for handshake time and for program size. Suites,
   curves and buffers are those of opcomms.h; the keys are pinned, so no chain is verified. */
#ifndef BENCH_BARE_H
#define BENCH_BARE_H

#include <bearssl.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

typedef struct bare_id {
    int is_rsa;
    br_rsa_private_key rsa;
    br_ec_private_key ec;
    br_x509_certificate chain;
    br_x509_pkey known; /* its public half, which the other end pins */
} bare_id;

typedef struct bare_end {
    br_ssl_engine_context *eng;
    br_x509_knownkey_context known;
    unsigned char in[BR_SSL_BUFSIZE_INPUT];
    unsigned char out[4181];
    int fd; /* -1: bytes go straight into the other engine */
} bare_end;

static uint32_t bare_vrfy(const br_ec_impl *impl, const void *hash, size_t hash_len,
                          const br_ec_public_key *pk, const void *sig, size_t sig_len) {
    (void)impl;
    return br_ecdsa_vrfy_asn1_get_default()(br_ec_get_default(), hash, hash_len, pk, sig, sig_len);
}

static void bare_engine(bare_end *e, const bare_id *other) {
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

/* Moves what is ready out of `e`, and what its socket holds into it. 0: nothing moved. */
static int bare_move(bare_end *e, bare_end *other) {
    size_t n = 0, room = 0;
    const unsigned char *p = br_ssl_engine_sendrec_buf(e->eng, &n);
    unsigned char *to;
    int moved = 0;
    if (p != NULL && n > 0) {
        if (e->fd < 0) {
            to = br_ssl_engine_recvrec_buf(other->eng, &room);
            if (n > room) n = room;
            if (to != NULL && n > 0) {
                memcpy(to, p, n);
                br_ssl_engine_recvrec_ack(other->eng, n);
            } else {
                n = 0;
            }
        } else {
            ssize_t put = send(e->fd, p, n, MSG_NOSIGNAL);
            n = put > 0 ? (size_t)put : 0;
        }
        if (n > 0) br_ssl_engine_sendrec_ack(e->eng, n);
        moved = n > 0;
    }
    to = e->fd < 0 ? NULL : br_ssl_engine_recvrec_buf(e->eng, &room);
    if (to != NULL && room > 0) {
        ssize_t got = recv(e->fd, to, room, MSG_DONTWAIT);
        if (got > 0) br_ssl_engine_recvrec_ack(e->eng, (size_t)got);
        moved = moved || got > 0;
    }
    return moved;
}

/* 64 bytes from one engine to the other. */
static int bare_message(bare_end *from, bare_end *to) {
    size_t n = 0;
    unsigned char *p = br_ssl_engine_sendapp_buf(from->eng, &n);
    if (p == NULL || n < 64) return 0;
    memset(p, 'm', 64);
    br_ssl_engine_sendapp_ack(from->eng, 64);
    br_ssl_engine_flush(from->eng, 0);
    while (br_ssl_engine_recvapp_buf(to->eng, &n) == NULL) {
        int moved = bare_move(from, to);
        moved = bare_move(to, from) || moved;
        if (!moved && from->fd < 0) return 0;
        if (br_ssl_engine_current_state(to->eng) == BR_SSL_CLOSED) return 0;
    }
    br_ssl_engine_recvapp_ack(to->eng, n);
    return n == 64;
}

/* A full mutual handshake, then 64 bytes there and 64 back. fd -1: in memory, without sockets.
   1: all of it happened. */
static int bare_pair(const bare_id *server, const bare_id *client, const void *dn, size_t dn_len,
                     int server_fd, int client_fd) {
    static br_ssl_server_context sc;
    static br_ssl_client_context cc;
    static bare_end s, c;
    br_x500_name name;
    unsigned ready = BR_SSL_SENDAPP;
    name.data = (unsigned char *)dn;
    name.len = dn_len;
    br_ssl_server_zero(&sc);
    br_ssl_client_zero(&cc);
    s.eng = &sc.eng;
    c.eng = &cc.eng;
    s.fd = server_fd;
    c.fd = client_fd;
    bare_engine(&s, client);
    bare_engine(&c, server);
    br_ssl_engine_set_ec(&sc.eng, br_ec_get_default());
    br_ssl_engine_set_ec(&cc.eng, &br_ec_c25519_m31);
    br_ssl_client_set_rsapub(&cc, br_rsa_public_get_default());
    if (server->is_rsa) {
        br_ssl_server_set_single_rsa(&sc, &server->chain, 1, &server->rsa, BR_KEYTYPE_SIGN,
                                     br_rsa_private_get_default(), br_rsa_pkcs1_sign_get_default());
    } else {
        br_ssl_server_set_single_ec(&sc, &server->chain, 1, &server->ec, BR_KEYTYPE_SIGN,
                                    BR_KEYTYPE_RSA, br_ec_get_default(),
                                    br_ecdsa_sign_asn1_get_default());
    }
    if (client->is_rsa) {
        br_ssl_client_set_single_rsa(&cc, &client->chain, 1, &client->rsa,
                                     br_rsa_pkcs1_sign_get_default());
    } else {
        br_ssl_client_set_single_ec(&cc, &client->chain, 1, &client->ec, BR_KEYTYPE_SIGN,
                                    BR_KEYTYPE_RSA, br_ec_get_default(),
                                    br_ecdsa_sign_asn1_get_default());
    }
    br_ssl_server_set_trust_anchor_names(&sc, &name, 1); /* asks for the client's certificate */
    br_ssl_engine_add_flags(&sc.eng, BR_OPT_ENFORCE_SERVER_PREFERENCES);
    if (!br_ssl_server_reset(&sc) || !br_ssl_client_reset(&cc, "localhost", 0)) return 0;
    while (!(br_ssl_engine_current_state(&sc.eng) & ready) ||
           !(br_ssl_engine_current_state(&cc.eng) & ready)) {
        int moved = bare_move(&c, &s);
        moved = bare_move(&s, &c) || moved;
        if (!moved && client_fd < 0) return 0;
        if (br_ssl_engine_current_state(&sc.eng) == BR_SSL_CLOSED ||
            br_ssl_engine_current_state(&cc.eng) == BR_SSL_CLOSED) {
            return 0;
        }
    }
    return bare_message(&c, &s) && bare_message(&s, &c);
}

#ifdef BENCH_BARE_MAIN
/* Linked only for its size. */
int main(void) {
    static bare_id id;
    return bare_pair(&id, &id, "", 0, -1, -1);
}
#endif

#endif
