/* tarpc requests: the same verdict and content however the document is cut; what was accepted,
   written anew by our own client's writers, is accepted again with the same content. */
#include "fuzz.h"

typedef struct fuzz_request_result {
    opcomms_err rc;
    opc__request_parser parser;
    const opc__request *request;
    fuzz_buf msg;
} fuzz_request_result;

static opcomms_err fuzz_request_msg(void *user, const uint8_t *p, size_t n) {
    fuzz_put((fuzz_buf *)user, p, n);
    return OPCOMMS_OK;
}

static void fuzz_request_parse(fuzz_request_result *r, const uint8_t *p, size_t n, int way) {
    fuzz_slices s;
    size_t at = 0;
    memset(&r->msg, 0, sizeof r->msg);
    r->request = NULL;
    r->rc = OPCOMMS_OK;
    fuzz_slices_init(&s, way, p, n);
    opc__request_begin(&r->parser, fuzz_request_msg, &r->msg);
    while (at < n && r->rc == OPCOMMS_OK) {
        size_t some = fuzz_slice(&s, n - at);
        uint8_t *piece = fuzz_exact(p + at, some);
        r->rc = opc__request_feed(&r->parser, piece, some);
        free(piece);
        at += some;
    }
    if (r->rc == OPCOMMS_OK) r->rc = opc__request_end(&r->parser, &r->request);
    FUZZ_CHECK(r->rc == OPCOMMS_OK || r->rc == OPCOMMS_E_PROTOCOL);
    FUZZ_CHECK((r->rc == OPCOMMS_OK) == (r->request != NULL));
    if (r->rc != OPCOMMS_OK) { /* an error stays */
        FUZZ_CHECK(opc__request_feed(&r->parser, (const uint8_t *)" ", 1) == r->rc);
        FUZZ_CHECK(opc__request_end(&r->parser, &r->request) == r->rc);
    }
}

static void fuzz_request_equal(const fuzz_request_result *a, const fuzz_request_result *b) {
    const opc__request *x = a->request, *y = b->request;
    FUZZ_CHECK(a->rc == b->rc);
    if (a->rc != OPCOMMS_OK) return;
    FUZZ_CHECK(x->kind == y->kind && x->id == y->id && x->deadline_ms == y->deadline_ms);
    FUZZ_CHECK(x->from_id == y->from_id && x->dest_id == y->dest_id && x->uid == y->uid);
    FUZZ_CHECK(x->dest_len == y->dest_len && memcmp(x->dest, y->dest, x->dest_len) == 0);
    FUZZ_CHECK(x->dest_cut == y->dest_cut && x->msg_bytes == y->msg_bytes);
    FUZZ_CHECK(fuzz_same(&a->msg, &b->msg));
}

static void fuzz_request_emit(const fuzz_request_result *r, fuzz_buf *out) {
    const opc__request *q = r->request;
    uint64_t us = q->deadline_ms * 1000u;
    size_t cap = 1024 + 6u * OPC__DEST_MAX + 6u * r->msg.len, n = 0;
    uint8_t *text = (uint8_t *)malloc(cap);
    switch (q->kind) {
    case OPC__REQ_SEND:
        n = opc__tarpc_send_head(text, cap, q->id, us, 1, q->from_id, q->dest, q->dest_len,
                                 q->dest_id);
        break;
    case OPC__REQ_GET: n = opc__tarpc_get(text, cap, q->id, us, 1, q->dest_id); break;
    case OPC__REQ_ACK: n = opc__tarpc_ack(text, cap, q->id, us, 1, q->dest_id, q->uid); break;
    case OPC__REQ_PING: n = opc__tarpc_ping(text, cap, q->id, us, 1); break;
    default: n = opc__tarpc_cancel(text, cap, q->id, 1); break;
    }
    FUZZ_CHECK(n > 0 && n <= cap);
    fuzz_put(out, text, n);
    if (q->kind == OPC__REQ_SEND) {
        opc__wr w;
        opc__wr_init(&w, text, cap);
        opc__tarpc_escaped(&w, r->msg.p, r->msg.len);
        FUZZ_CHECK(!w.full);
        fuzz_put(out, text, opc__wr_len(&w));
        fuzz_str(out, OPC__TARPC_SEND_TAIL);
    }
    free(text);
}

static void fuzz_request(const uint8_t *data, size_t size) {
    static fuzz_request_result whole, other;
    fuzz_buf text;
    int way;
    fuzz_request_parse(&whole, data, size, FUZZ_WHOLE);
    for (way = FUZZ_BYTES; way < FUZZ_WAYS; way++) {
        fuzz_request_parse(&other, data, size, way);
        fuzz_request_equal(&whole, &other);
        fuzz_free(&other.msg);
    }
    if (whole.rc == OPCOMMS_OK) {
        const opc__request *q = whole.request;
        FUZZ_CHECK(q->kind >= OPC__REQ_SEND && q->kind <= OPC__REQ_CANCEL);
        FUZZ_CHECK(q->dest_len <= OPC__DEST_MAX && q->deadline_ms <= OPC__DEADLINE_MAX);
        FUZZ_CHECK(q->msg_bytes == whole.msg.len);
        FUZZ_CHECK(opc__str_utf8_valid(whole.msg.p, whole.msg.len));
        FUZZ_CHECK(q->dest_cut || opc__str_utf8_valid(q->dest, q->dest_len));
        if (!q->dest_cut) {
            memset(&text, 0, sizeof text);
            fuzz_request_emit(&whole, &text);
            fuzz_request_parse(&other, text.p, text.len, FUZZ_CUT);
            if (q->kind == OPC__REQ_CANCEL)
                whole.parser.request.deadline_ms = other.request->deadline_ms;
            fuzz_request_equal(&whole, &other);
            fuzz_free(&other.msg);
            fuzz_free(&text);
        }
    }
    fuzz_free(&whole.msg);
}

FUZZ_TARGET(fuzz_request)
