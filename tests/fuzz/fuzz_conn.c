/* A connection after its handshake, in both roles, fed with plaintext through real TLS. As server:
   closes exactly when a plain reading of the frames finds a fault, answers only with well-formed
   frames, and stores each message as the text it was. As client: every call ends as a plain reading
   of the answers says. The same however the bytes are cut.

   Input: byte 0: 1 client, 2 documents separated by zero bytes are framed here (else: raw frames),
   4 little room in the store; then the plaintext. */
#include "fuzz_peers.h"

#define FUZZ_CONN_MAX 20000u
#define FUZZ_CONN_KEPT 64
#define FUZZ_CONN_CALLS 3

typedef struct fuzz_conn_world {
    int made;
    opc__conn server, client;             /* under test */
    opc__tls far_client, far_server;      /* who speaks to them */
    opc__conn server_image, client_image; /* as they are right after the handshake */
    opc__tls far_client_image, far_server_image;
} fuzz_conn_world;

static fuzz_conn_world fuzz_conn_the;

/* The owner of a server connection: stores, hands out, forgets. */
typedef struct fuzz_conn_owner {
    struct {
        uint64_t ref, uid, bytes, wire_bytes;
        int mode, used;
        uint8_t dest_id;
    } kept[FUZZ_CONN_KEPT];
    size_t count;
    int refused; /* a store was full */
} fuzz_conn_owner;

static opcomms_err fuzz_conn_store(fuzz_conn_owner *o, opc__conn *c, const opc__request *r,
                                   opc__reply *reply) {
    opc__msg_meta meta;
    uint64_t uid = 0, ref = 0;
    opcomms_err rc;
    reply->kind = OPC__RES_SEND;
    if (r->dest_cut || o->count == FUZZ_CONN_KEPT) return OPCOMMS_OK;
    if (c->put_error != OPCOMMS_OK) {
        o->refused = 1;
        reply->kind = OPC__RES_ERROR;
        reply->call = OPC__RES_SEND;
        reply->error = "{\"MutexError\":\"storage\"}";
        return OPCOMMS_OK;
    }
    memset(&meta, 0, sizeof meta);
    memcpy(meta.from, opc__tls_peer(&c->tls), 32);
    meta.from_id = r->from_id;
    meta.dest_id = r->dest_id;
    meta.dest = r->dest;
    meta.dest_len = r->dest_len;
    meta.bytes = c->put_bytes;
    meta.wire_bytes = opc__render_total(c->put_mode, c->put_wire, c->put_bytes);
    meta.flags = c->put_mode == OPC__RENDER_TEXT ? OPC__MSG_TEXT : 0;
    rc = c->store->c->commit(c->store, c->put, &meta, &uid, &ref, &reply->position);
    FUZZ_CHECK(rc == OPCOMMS_OK);
    c->put_open = 0;
    o->kept[o->count].ref = ref;
    o->kept[o->count].uid = uid;
    o->kept[o->count].bytes = meta.bytes;
    o->kept[o->count].wire_bytes = meta.wire_bytes;
    o->kept[o->count].mode = c->put_mode;
    o->kept[o->count].dest_id = r->dest_id;
    o->kept[o->count++].used = 0;
    reply->flag = 1;
    return OPCOMMS_OK;
}

static opcomms_err fuzz_conn_request(void *user, opc__conn *c, const opc__request *r,
                                     opc__reply *reply) {
    fuzz_conn_owner *o = (fuzz_conn_owner *)user;
    size_t i;
    if (r->kind == OPC__REQ_SEND) return fuzz_conn_store(o, c, r, reply);
    if (r->kind == OPC__REQ_PING) {
        reply->kind = OPC__RES_PING;
        reply->flag = 1;
        return OPCOMMS_OK;
    }
    reply->kind = r->kind == OPC__REQ_GET ? OPC__RES_GET : OPC__RES_ACK;
    for (i = 0; i < o->count; i++) {
        if (o->kept[i].used || o->kept[i].dest_id != r->dest_id) continue;
        if (r->kind == OPC__REQ_ACK && o->kept[i].uid != r->uid) continue;
        reply->flag = 1;
        if (r->kind == OPC__REQ_ACK) { /* kept in the store, to be compared at the end */
            o->kept[i].used = 1;
            break;
        }
        reply->ref = o->kept[i].ref;
        reply->uid = o->kept[i].uid;
        reply->bytes = o->kept[i].bytes;
        reply->wire_bytes = o->kept[i].wire_bytes;
        reply->mode = (uint8_t)o->kept[i].mode;
        memcpy(reply->from, opc__tls_peer(&c->tls), 32);
        break;
    }
    return OPCOMMS_OK;
}

static uint64_t fuzz_conn_visible(void *user) {
    (void)user;
    return UINT64_MAX;
}

static const opc__conn_ops fuzz_conn_ops = {fuzz_conn_request, fuzz_conn_visible};

/* ---- the wire ---- */

static void fuzz_conn_handshake(opc__tls *a, opc__tls *b) {
    int round;
    for (round = 0; round < 10; round++) {
        fuzz_buf w;
        size_t at;
        opc__tls *from = round % 2 ? b : a, *to = round % 2 ? a : b;
        memset(&w, 0, sizeof w);
        fuzz_drain(from, &w);
        for (at = 0; at < w.len;) at += fuzz_push(to, w.p + at, w.len - at);
        fuzz_free(&w);
    }
    FUZZ_CHECK(opc__tls_ready(a) && opc__tls_ready(b));
}

static void fuzz_conn_make(void) {
    fuzz_conn_world *w = &fuzz_conn_the;
    opc__store *s = NULL;
    static fuzz_memory memory;
    static opc__mem mem;
    if (w->made) return;
    fuzz_peers_make();
    fuzz_mem(&mem, &memory);
    FUZZ_CHECK(opc__ram_open(&mem, 4, 1000, &s) == OPCOMMS_OK);
    opc__conn_init(&w->server, 1, s, OPCOMMS_MAX_FRAME, &fuzz_conn_ops, NULL);
    opc__conn_init(&w->client, 0, NULL, OPCOMMS_MAX_FRAME, NULL, NULL);
    fuzz_start(&w->server.tls, 1);
    fuzz_start(&w->far_client, 0);
    fuzz_start(&w->far_server, 1);
    fuzz_start(&w->client.tls, 0);
    fuzz_conn_handshake(&w->far_client, &w->server.tls);
    fuzz_conn_handshake(&w->client.tls, &w->far_server);
    opc__conn_step(&w->server, 0);
    opc__conn_step(&w->client, 0);
    FUZZ_CHECK(w->server.state == OPC__CONN_OPEN && w->client.state == OPC__CONN_OPEN);
    w->server.store = NULL;
    (void)s->c->close(s);
    w->server_image = w->server;
    w->client_image = w->client;
    w->far_client_image = w->far_client;
    w->far_server_image = w->far_server;
    w->made = 1;
}

/* What the far end can read goes to `heard`. */
static void fuzz_conn_back(opc__conn *c, opc__tls *far, fuzz_buf *heard) {
    for (;;) {
        fuzz_buf wire;
        size_t at = 0;
        memset(&wire, 0, sizeof wire);
        fuzz_drain(&c->tls, &wire);
        if (wire.len == 0) return;
        while (at < wire.len) {
            size_t n = fuzz_push(far, wire.p + at, wire.len - at), len = 0;
            const uint8_t *p;
            at += n;
            while ((p = opc__tls_read(far, &len)) != NULL && len > 0) {
                fuzz_put(heard, p, len);
                opc__tls_read_done(far, len);
                n += len;
            }
            FUZZ_CHECK(n > 0);
        }
        fuzz_free(&wire);
        opc__conn_step(c, 0); /* the record is out: the next may follow */
    }
}

static void fuzz_conn_talk(opc__conn *c, opc__tls *far, const uint8_t *p, size_t n, int way,
                           fuzz_buf *heard) {
    fuzz_slices s;
    size_t at = 0;
    fuzz_slices_init(&s, way, p, n);
    while (at < n && c->state == OPC__CONN_OPEN) {
        size_t room = 0, some = fuzz_slice(&s, n - at), sent = 0;
        uint8_t *dst = opc__tls_write(far, &room);
        fuzz_buf wire;
        FUZZ_CHECK(dst != NULL && room > 0);
        if (some > room) some = room;
        memcpy(dst, p + at, some);
        opc__tls_write_done(far, some);
        opc__tls_flush(far);
        at += some;
        memset(&wire, 0, sizeof wire);
        fuzz_drain(far, &wire);
        while (sent < wire.len && c->state == OPC__CONN_OPEN) {
            size_t part = way == FUZZ_CUT ? fuzz_slice(&s, wire.len - sent) : wire.len - sent, took;
            uint64_t before = c->activity;
            size_t heard_before = heard->len;
            took = fuzz_push(&c->tls, wire.p + sent, part);
            sent += took;
            opc__conn_step(c, 0);
            fuzz_conn_back(c, far, heard);
            FUZZ_CHECK(took > 0 || c->activity != before || heard->len > heard_before || c->more ||
                       c->state != OPC__CONN_OPEN);
        }
        fuzz_free(&wire);
    }
    while (c->more && c->state == OPC__CONN_OPEN) {
        opc__conn_step(c, 0);
        fuzz_conn_back(c, far, heard);
    }
}

/* Documents to frames. */
static void fuzz_conn_frames(const uint8_t *p, size_t n, fuzz_buf *out) {
    while (n > 0) {
        const uint8_t *zero = (const uint8_t *)memchr(p, 0, n);
        size_t len = zero != NULL ? (size_t)(zero - p) : n;
        uint8_t head[4];
        opc__buf_put32(head, (uint32_t)len);
        fuzz_put(out, head, 4);
        fuzz_put(out, p, len);
        if (zero != NULL) len++;
        p += len;
        n -= len;
    }
}

/* The next frame of a stream: 1 whole, 0 none or unfinished, -1 faulty. */
static int fuzz_conn_next(const fuzz_buf *b, size_t *at, const uint8_t **p, size_t *n) {
    uint32_t len;
    if (b->len - *at < 4) return 0;
    len = opc__buf_be32(b->p + *at);
    if (len == 0 || len > OPCOMMS_MAX_FRAME) return -1;
    *p = b->p + *at + 4;
    *n = b->len - *at - 4;
    if (*n < len) return 0;
    *n = len;
    *at += 4 + len;
    return 1;
}

/* ---- as server ---- */

typedef struct fuzz_conn_reading {
    int faulty;
    int repeats; /* an id twice, or a cancellation: timing decides what is answered */
    size_t sends, requests;
    uint64_t id[FUZZ_CONN_MAX / 16];
    fuzz_buf text[FUZZ_CONN_KEPT];
} fuzz_conn_reading;

static opcomms_err fuzz_conn_text(void *user, const uint8_t *p, size_t n) {
    fuzz_put((fuzz_buf *)user, p, n);
    return OPCOMMS_OK;
}

static void fuzz_conn_read(const fuzz_buf *b, fuzz_conn_reading *r) {
    static opc__request_parser q;
    size_t at = 0, n = 0, i;
    const uint8_t *p = NULL;
    int more;
    memset(r, 0, sizeof *r);
    while ((more = fuzz_conn_next(b, &at, &p, &n)) > 0) {
        const opc__request *req = NULL;
        fuzz_buf text;
        opcomms_err rc;
        memset(&text, 0, sizeof text);
        opc__request_begin(&q, fuzz_conn_text, &text);
        rc = opc__request_feed(&q, p, n);
        if (rc == OPCOMMS_OK) rc = opc__request_end(&q, &req);
        if (rc != OPCOMMS_OK) {
            r->faulty = 1;
            fuzz_free(&text);
            return;
        }
        for (i = 0; i < r->requests; i++) r->repeats |= r->id[i] == req->id;
        if (req->kind == OPC__REQ_CANCEL) r->repeats = 1;
        r->id[r->requests++] = req->id;
        if (req->kind == OPC__REQ_SEND && !req->dest_cut && r->sends < FUZZ_CONN_KEPT) {
            r->text[r->sends++] = text;
        } else {
            fuzz_free(&text);
        }
    }
    if (more < 0) r->faulty = 1;
    if (more == 0 && b->len - at > 4) { /* a beginning can be faulty already */
        opc__request_begin(&q, NULL, NULL);
        if (opc__request_feed(&q, p, n) != OPCOMMS_OK) r->faulty = 1;
    }
}

static void fuzz_conn_stored(opc__store *s, const fuzz_conn_owner *o, const fuzz_conn_reading *r) {
    size_t i;
    FUZZ_CHECK(o->count == r->sends);
    for (i = 0; i < o->count; i++) {
        uint8_t bytes[700], text[4300];
        fuzz_buf back;
        opc__render render;
        uint64_t at = 0;
        size_t used = 0, put = 0, got = 0;
        memset(&back, 0, sizeof back);
        opc__render_init(&render, OPC__RENDER_BYTES);
        while (at < o->kept[i].bytes) {
            FUZZ_CHECK(s->c->read(s, o->kept[i].ref, at, bytes, sizeof bytes, &got) == OPCOMMS_OK);
            FUZZ_CHECK(got > 0);
            at += got;
            if (o->kept[i].mode == OPC__RENDER_TEXT) {
                fuzz_put(&back, bytes, got);
                continue;
            }
            opc__render_feed(&render, bytes, got, &used, text, sizeof text, &put);
            FUZZ_CHECK(used == got);
            fuzz_put(&back, text, put);
        }
        if (o->kept[i].mode == OPC__RENDER_BYTES) {
            FUZZ_CHECK(opc__render_finish(&render, text, sizeof text, &put));
            fuzz_put(&back, text, put);
        }
        FUZZ_CHECK(fuzz_same(&back, &r->text[i]));
        fuzz_free(&back);
    }
}

static void fuzz_conn_replies(const fuzz_buf *heard, const fuzz_conn_reading *r, int closed) {
    static opc__response_parser q;
    size_t at = 0, n = 0, count = 0, i;
    const uint8_t *p = NULL;
    int more;
    while ((more = fuzz_conn_next(heard, &at, &p, &n)) > 0) {
        const opc__response *res = NULL;
        opc__response_begin(&q, NULL, NULL);
        FUZZ_CHECK(opc__response_feed(&q, p, n) == OPCOMMS_OK);
        FUZZ_CHECK(opc__response_end(&q, &res) == OPCOMMS_OK);
        FUZZ_CHECK(res->kind != OPC__RES_SERVER_ERROR);
        for (i = 0; i < r->requests && r->id[i] != res->request_id; i++) {}
        FUZZ_CHECK(i < r->requests);
        count++;
    }
    FUZZ_CHECK(more == 0);
    FUZZ_CHECK(count <= r->requests);
    if (!closed) FUZZ_CHECK(at == heard->len);
    if (!closed && !r->repeats) FUZZ_CHECK(count == r->requests);
}

static void fuzz_conn_server(const fuzz_buf *b, int small, int way, const fuzz_conn_reading *r,
                             fuzz_buf *heard) {
    fuzz_conn_world *w = &fuzz_conn_the;
    static fuzz_conn_owner o;
    opc__conn *c = &w->server;
    opc__store *s = NULL;
    fuzz_memory memory;
    opc__mem mem;
    memset(&o, 0, sizeof o);
    fuzz_mem(&mem, &memory);
    FUZZ_CHECK(opc__ram_open(&mem, 4, small ? 300 : 1u << 22, &s) == OPCOMMS_OK);
    *c = w->server_image;
    w->far_client = w->far_client_image;
    c->store = s;
    c->user = &o;
    fuzz_conn_talk(c, &w->far_client, b->p, b->len, way, heard);
    FUZZ_CHECK((c->state == OPC__CONN_DEAD) == r->faulty);
    if (r->faulty) FUZZ_CHECK(c->error == OPCOMMS_E_PROTOCOL);
    fuzz_conn_replies(heard, r, r->faulty);
    FUZZ_CHECK(small || !o.refused);
    if (!small && !r->repeats) fuzz_conn_stored(s, &o, r);
    opc__conn_wipe(c);
    FUZZ_CHECK(!c->put_open && !c->converting);
    (void)s->c->close(s);
    FUZZ_CHECK(memory.now == 0);
}

/* ---- as client ---- */

typedef struct fuzz_conn_calls {
    opc__call call[FUZZ_CONN_CALLS];
} fuzz_conn_calls;

static void fuzz_conn_calls_make(fuzz_conn_calls *k) {
    size_t i;
    memset(k, 0, sizeof *k);
    for (i = 0; i < FUZZ_CONN_CALLS; i++) {
        opc__call *call = &k->call[i];
        call->kind = i == 1 ? OPC__REQ_PING : OPC__REQ_SEND;
        call->deadline_us = 5000000;
        call->span_id = 1;
        call->data = (const uint8_t *)"abc";
        call->len = i == 0 ? 3 : 0;
        call->wire_bytes = opc__render_total(
            OPC__RENDER_BYTES, opc__render_size(OPC__RENDER_BYTES, call->data, call->len),
            call->len);
        strcpy(call->dest, "00");
        if (i + 1 < FUZZ_CONN_CALLS) call->next = &k->call[i + 1];
    }
}

/* What each call ends with, by a plain reading; 1 when the stream is faulty. */
static int fuzz_conn_client_read(const fuzz_buf *b, uint64_t first_id, fuzz_conn_calls *want) {
    static opc__response_parser q;
    size_t at = 0, n = 0;
    const uint8_t *p = NULL;
    int more;
    while ((more = fuzz_conn_next(b, &at, &p, &n)) > 0) {
        const opc__response *r = NULL;
        opc__call *call = NULL;
        int kind;
        opc__response_begin(&q, NULL, NULL);
        if (opc__response_feed(&q, p, n) != OPCOMMS_OK || opc__response_end(&q, &r) != OPCOMMS_OK) {
            return 1;
        }
        if (r->request_id - first_id < FUZZ_CONN_CALLS) {
            call = &want->call[r->request_id - first_id];
        }
        if (call == NULL || call->done) continue;
        kind = call->kind == OPC__REQ_SEND ? OPC__RES_SEND : OPC__RES_PING;
        call->result = OPCOMMS_OK;
        if (r->kind == OPC__RES_SERVER_ERROR || (r->kind == OPC__RES_ERROR && r->call == kind)) {
            call->result = OPCOMMS_E_REMOTE;
        } else if (r->kind != kind) {
            return 1;
        } else if (kind == OPC__RES_SEND && !r->flag) {
            call->result = OPCOMMS_E_ROUTE;
        }
        call->done = 1;
    }
    if (more == 0 && b->len - at > 4) {
        opc__response_begin(&q, NULL, NULL);
        if (opc__response_feed(&q, p, n) != OPCOMMS_OK) return 1;
    }
    return more < 0;
}

static void fuzz_conn_client(const fuzz_buf *b, int way) {
    fuzz_conn_world *w = &fuzz_conn_the;
    static fuzz_conn_calls calls, want;
    opc__conn *c = &w->client;
    fuzz_buf heard;
    size_t i, at = 0, n = 0, count = 0;
    const uint8_t *p = NULL;
    int faulty;
    memset(&heard, 0, sizeof heard);
    *c = w->client_image;
    w->far_server = w->far_server_image;
    fuzz_conn_calls_make(&calls);
    fuzz_conn_calls_make(&want);
    faulty = fuzz_conn_client_read(b, c->next_id, &want);
    c->calls = &calls.call[0];
    opc__conn_step(c, 0);
    fuzz_conn_back(c, &w->far_server, &heard);
    while (fuzz_conn_next(&heard, &at, &p, &n) > 0) {
        static opc__request_parser q;
        const opc__request *r = NULL;
        opc__request_begin(&q, NULL, NULL);
        FUZZ_CHECK(opc__request_feed(&q, p, n) == OPCOMMS_OK);
        FUZZ_CHECK(opc__request_end(&q, &r) == OPCOMMS_OK);
        count++;
    }
    FUZZ_CHECK(count == FUZZ_CONN_CALLS && at == heard.len && c->calls == NULL);
    fuzz_conn_talk(c, &w->far_server, b->p, b->len, way, &heard);
    FUZZ_CHECK(at == heard.len); /* an answer is not answered */
    FUZZ_CHECK((c->state == OPC__CONN_DEAD) == faulty);
    if (faulty) FUZZ_CHECK(c->error == OPCOMMS_E_PROTOCOL);
    for (i = 0; i < FUZZ_CONN_CALLS; i++) {
        FUZZ_CHECK(calls.call[i].done == want.call[i].done);
        if (want.call[i].done) FUZZ_CHECK(calls.call[i].result == want.call[i].result);
    }
    opc__conn_wipe(c);
    fuzz_free(&heard);
}

static void fuzz_conn(const uint8_t *data, size_t size) {
    static fuzz_conn_reading reading;
    fuzz_buf stream, first;
    size_t i;
    int way;
    if (size == 0 || size > FUZZ_CONN_MAX) return;
    fuzz_conn_make();
    memset(&stream, 0, sizeof stream);
    memset(&first, 0, sizeof first);
    if (data[0] & 2) {
        fuzz_conn_frames(data + 1, size - 1, &stream);
    } else {
        fuzz_put(&stream, data + 1, size - 1);
    }
    if (!(data[0] & 1)) fuzz_conn_read(&stream, &reading);
    for (way = 0; way < FUZZ_WAYS; way++) {
        fuzz_buf heard;
        if (way == FUZZ_BYTES && stream.len > 400) continue; /* a record for each byte is slow */
        memset(&heard, 0, sizeof heard);
        if (data[0] & 1) {
            fuzz_conn_client(&stream, way);
        } else {
            fuzz_conn_server(&stream, data[0] & 4, way, &reading, &heard);
            if (way == FUZZ_WHOLE) fuzz_put(&first, heard.p, heard.len);
            if (!reading.repeats && !reading.faulty) FUZZ_CHECK(fuzz_same(&first, &heard));
        }
        fuzz_free(&heard);
    }
    if (!(data[0] & 1)) {
        for (i = 0; i < reading.sends; i++) fuzz_free(&reading.text[i]);
    }
    fuzz_free(&stream);
    fuzz_free(&first);
}

FUZZ_TARGET(fuzz_conn)
