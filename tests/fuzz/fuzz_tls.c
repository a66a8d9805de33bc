/* The TLS engine fed with raw bytes, in both roles and at several stages of a handshake: it is
   never satisfied by anything but the genuine peer's own messages, never delivers application data
   other than that peer's, and always either takes bytes, sends some, or is closed.

   Input: byte 0 chooses the stage (mod 6: server at its start and after the ClientHello, client at
   its start and after the ServerHello, server or client under an edited genuine conversation), then
   the bytes to feed; or, for the last two, edits of four bytes: offset 2, operation 1, value 1. */
#include "fuzz_peers.h"

#define FUZZ_TLS_STAGES 4
static const char fuzz_tls_said[] = "genuine application data";

typedef struct fuzz_tls_world {
    int made;
    opc__tls server;
    opc__tls client;
    opc__tls stage[FUZZ_TLS_STAGES]; /* images of the two at that stage */
    fuzz_buf to_server;              /* a whole conversation, with data */
    fuzz_buf to_client;
} fuzz_tls_world;

static fuzz_tls_world fuzz_tls_the;

/* Moves what one has to say to the other. */
static void fuzz_tls_move(opc__tls *from, opc__tls *to, fuzz_buf *all) {
    size_t start = all->len;
    fuzz_drain(from, all);
    while (start < all->len) {
        size_t n = fuzz_push(to, all->p + start, all->len - start);
        FUZZ_CHECK(n > 0);
        start += n;
    }
}

static void fuzz_tls_say(opc__tls *t) {
    size_t room = 0, n = sizeof fuzz_tls_said - 1;
    uint8_t *p = opc__tls_write(t, &room);
    FUZZ_CHECK(p != NULL && room >= n);
    memcpy(p, fuzz_tls_said, n);
    opc__tls_write_done(t, n);
    opc__tls_flush(t);
}

static void fuzz_tls_make(void) {
    fuzz_tls_world *w = &fuzz_tls_the;
    if (w->made) return;
    fuzz_peers_make();
    fuzz_start(&w->server, 1);
    fuzz_start(&w->client, 0);
    w->stage[0] = w->server;
    fuzz_tls_move(&w->client, &w->server, &w->to_server);
    w->stage[2] = w->client;
    w->stage[1] = w->server;
    fuzz_tls_move(&w->server, &w->client, &w->to_client);
    w->stage[3] = w->client;
    fuzz_tls_move(&w->client, &w->server, &w->to_server);
    fuzz_tls_move(&w->server, &w->client, &w->to_client);
    FUZZ_CHECK(opc__tls_ready(&w->server) && opc__tls_ready(&w->client));
    fuzz_tls_say(&w->client);
    fuzz_tls_say(&w->server);
    fuzz_drain(&w->client, &w->to_server);
    fuzz_drain(&w->server, &w->to_client);
    /* The images of a server are used where a server was, so that pointers into it stay right; the
       one after the ClientHello has its answer still to send, as a client's has its hello. */
    w->made = 1;
}

static void fuzz_tls_edit(fuzz_buf *b, const uint8_t *p, size_t n) {
    while (n >= 4) {
        size_t at = (size_t)opc__buf_be16(p);
        if (at < b->len) {
            size_t left = b->len - at, some = p[3] < left ? p[3] : left;
            switch (p[2] % 5) {
            case 0: b->p[at] = p[3]; break;
            case 1: b->p[at] = (uint8_t)(b->p[at] ^ p[3]); break;
            case 2: /* some bytes are missing */
                memmove(b->p + at, b->p + at + some, left - some);
                b->len -= some;
                break;
            case 3: /* some bytes come twice */
                fuzz_put(b, b->p + b->len - some, some);
                memmove(b->p + at + some, b->p + at, left);
                break;
            default: b->len = at; break;
            }
        }
        p += 4;
        n -= 4;
    }
}

/* Sends what is to be sent and reads what can be read, which also lets the engine have what was
   received ahead of it. Application data is the beginning of what the genuine peer said. */
static void fuzz_tls_turn(opc__tls *t, size_t *said) {
    uint32_t ahead;
    do {
        const uint8_t *data;
        size_t len = 0;
        ahead = t->ahead_at;
        fuzz_drain(t, NULL);
        while ((data = opc__tls_read(t, &len)) != NULL && len > 0) {
            FUZZ_CHECK(len <= sizeof fuzz_tls_said - 1 - *said);
            FUZZ_CHECK(memcmp(data, fuzz_tls_said + *said, len) == 0);
            *said += len;
            opc__tls_read_done(t, len);
        }
    } while (t->ahead_at != ahead);
}

static void fuzz_tls_feed(opc__tls *t, const uint8_t *p, size_t n, fuzz_slices *s) {
    size_t at = 0, said = 0, record = 0; /* bytes left of the record under way */
    fuzz_tls_turn(t, &said);
    while (at < n && !opc__tls_closed(t)) {
        size_t some, took;
        uint8_t *piece;
        if (record == 0) record = n - at > 5 ? 5 + opc__buf_be16(p + at + 3) : n - at;
        /* one record at a time: no peer sends data before it has seen the other's Finished */
        some = fuzz_slice(s, record < n - at ? record : n - at);
        piece = fuzz_exact(p + at, some);
        took = fuzz_push(t, piece, some);
        free(piece);
        at += took;
        record -= took;
        fuzz_tls_turn(t, &said);
        FUZZ_CHECK(took > 0 || opc__tls_closed(t));
    }
}

static void fuzz_tls(const uint8_t *data, size_t size) {
    fuzz_tls_world *w = &fuzz_tls_the;
    fuzz_slices s;
    opc__tls *t;
    unsigned stage;
    int code = 0;
    opcomms_err rc;
    if (size == 0) return;
    fuzz_tls_make();
    stage = data[0] % 6u;
    fuzz_slices_init(&s, data[0] & 128 ? FUZZ_CUT : FUZZ_WHOLE, data, size);
    if (stage < FUZZ_TLS_STAGES) {
        t = stage < 2 ? &w->server : &w->client;
        *t = w->stage[stage];
        fuzz_tls_feed(t, data + 1, size - 1, &s);
    } else {
        fuzz_buf b;
        const fuzz_buf *genuine = stage == 4 ? &w->to_server : &w->to_client;
        memset(&b, 0, sizeof b);
        fuzz_put(&b, genuine->p, genuine->len);
        fuzz_tls_edit(&b, data + 1, size - 1);
        t = stage == 4 ? &w->server : &w->client;
        *t = w->stage[stage == 4 ? 0 : 2];
        fuzz_tls_feed(t, b.p, b.len, &s);
        if (fuzz_same(&b, genuine)) FUZZ_CHECK(opc__tls_ready(t)); /* the yardstick works */
        fuzz_free(&b);
    }
    rc = opc__tls_error(t, &code);
    FUZZ_CHECK(rc == OPCOMMS_OK || rc == OPCOMMS_E_CLOSED || rc == OPCOMMS_E_TLS ||
               rc == OPCOMMS_E_CERT || rc == OPCOMMS_E_NOT_ALLOWED || rc == OPCOMMS_E_IDENTITY);
    if (opc__tls_ready(t)) {
        const uint8_t *want =
            t->is_server ? fuzz_the_peers.client.hash : fuzz_the_peers.server.hash;
        FUZZ_CHECK(opc__tls_peer(t) != NULL && memcmp(opc__tls_peer(t), want, 32) == 0);
    } else {
        FUZZ_CHECK(opc__tls_peer(t) == NULL);
    }
    opc__tls_close(t);
    fuzz_drain(t, NULL);
    opc__tls_wipe(t);
}

FUZZ_TARGET(fuzz_tls)
