/* tarpc responses: the same verdict and content however the document is cut; what was accepted,
   written anew by our own server's writers, is accepted again with the same content. */
#include "fuzz.h"

typedef struct fuzz_response_result {
    opcomms_err rc;
    opc__response_parser parser;
    const opc__response *response;
    fuzz_buf msg;
} fuzz_response_result;

static opcomms_err fuzz_response_msg(void *user, const uint8_t *p, size_t n) {
    fuzz_put((fuzz_buf *)user, p, n);
    return OPCOMMS_OK;
}

static void fuzz_response_parse(fuzz_response_result *r, const uint8_t *p, size_t n, int way) {
    fuzz_slices s;
    size_t at = 0;
    memset(&r->msg, 0, sizeof r->msg);
    r->response = NULL;
    r->rc = OPCOMMS_OK;
    fuzz_slices_init(&s, way, p, n);
    opc__response_begin(&r->parser, fuzz_response_msg, &r->msg);
    while (at < n && r->rc == OPCOMMS_OK) {
        size_t some = fuzz_slice(&s, n - at);
        uint8_t *piece = fuzz_exact(p + at, some);
        r->rc = opc__response_feed(&r->parser, piece, some);
        free(piece);
        at += some;
    }
    if (r->rc == OPCOMMS_OK) r->rc = opc__response_end(&r->parser, &r->response);
    FUZZ_CHECK(r->rc == OPCOMMS_OK || r->rc == OPCOMMS_E_PROTOCOL);
    FUZZ_CHECK((r->rc == OPCOMMS_OK) == (r->response != NULL));
}

static void fuzz_response_equal(const fuzz_response_result *a, const fuzz_response_result *b) {
    const opc__response *x = a->response, *y = b->response;
    FUZZ_CHECK(a->rc == b->rc);
    if (a->rc != OPCOMMS_OK) return;
    FUZZ_CHECK(x->kind == y->kind && x->call == y->call && x->request_id == y->request_id);
    FUZZ_CHECK(x->flag == y->flag && x->error == y->error && x->server_kind == y->server_kind);
    FUZZ_CHECK(x->limit_kb == y->limit_kb && x->got_kb == y->got_kb);
    FUZZ_CHECK(strcmp(x->detail, y->detail) == 0);
    FUZZ_CHECK(x->uid == y->uid && x->from_id == y->from_id && x->msg_bytes == y->msg_bytes);
    FUZZ_CHECK(x->from_len == y->from_len && memcmp(x->from, y->from, x->from_len) == 0);
    FUZZ_CHECK(x->from_cut == y->from_cut);
    FUZZ_CHECK(fuzz_same(&a->msg, &b->msg));
}

/* {"MutexError":"..."} and its relatives, in the newer form with both numbers. */
static void fuzz_response_variant(const opc__response *q, char *out, size_t cap) {
    uint8_t text[6 * sizeof q->detail];
    opc__wr w;
    opc__wr_init(&w, text, sizeof text);
    opc__tarpc_escaped(&w, (const uint8_t *)q->detail, strlen(q->detail));
    FUZZ_CHECK(!w.full);
    if (q->error == OPC__RERR_RATE) {
        snprintf(out, cap, "\"RateLimitExceeded\"");
    } else if (q->error == OPC__RERR_TOO_LARGE) {
        snprintf(out, cap, "{\"MessageTooLarge\":[%llu,%llu]}", (unsigned long long)q->limit_kb,
                 (unsigned long long)q->got_kb);
    } else {
        snprintf(out, cap, "{\"%s\":\"%.*s\"}",
                 q->error == OPC__RERR_MUTEX ? "MutexError" : "ParseError", (int)opc__wr_len(&w),
                 (const char *)text);
    }
}

static void fuzz_response_emit(const fuzz_response_result *r, fuzz_buf *out) {
    const opc__response *q = r->response;
    size_t cap = 2048 + 6u * sizeof q->from + 6u * r->msg.len, n = 0;
    uint8_t *text = (uint8_t *)malloc(cap);
    char variant[6 * sizeof q->detail + 64];
    switch (q->kind) {
    case OPC__RES_SEND: n = opc__tarpc_reply_send(text, cap, q->request_id, q->flag); break;
    case OPC__RES_ACK: n = opc__tarpc_reply_ack(text, cap, q->request_id, q->flag); break;
    case OPC__RES_PING:
        n = opc__tarpc_reply_ping(text, cap, q->request_id, q->flag, q->flag);
        break;
    case OPC__RES_GET:
        n = q->flag ? opc__tarpc_reply_get_head(text, cap, q->request_id, q->uid, q->from,
                                                q->from_len, q->from_id)
                    : opc__tarpc_reply_get_null(text, cap, q->request_id);
        break;
    case OPC__RES_ERROR:
        fuzz_response_variant(q, variant, sizeof variant);
        n = opc__tarpc_reply_error(text, cap, q->request_id, q->call, variant);
        break;
    default:
        n = opc__tarpc_reply_server_error(text, cap, q->request_id, q->server_kind, q->detail);
        break;
    }
    FUZZ_CHECK(n > 0 && n <= cap);
    fuzz_put(out, text, n);
    if (q->kind == OPC__RES_GET && q->flag) {
        opc__wr w;
        opc__wr_init(&w, text, cap);
        opc__tarpc_escaped(&w, r->msg.p, r->msg.len);
        FUZZ_CHECK(!w.full);
        fuzz_put(out, text, opc__wr_len(&w));
        fuzz_str(out, OPC__TARPC_GET_TAIL);
    }
    free(text);
}

static void fuzz_response_valid(const fuzz_response_result *r) {
    const opc__response *q = r->response;
    size_t len = strlen(q->detail), i;
    FUZZ_CHECK(q->kind >= OPC__RES_SEND && q->kind <= OPC__RES_SERVER_ERROR);
    FUZZ_CHECK(q->from_len <= sizeof q->from && q->server_kind <= 17);
    FUZZ_CHECK(memchr(q->detail, 0, sizeof q->detail) != NULL);
    FUZZ_CHECK(opc__str_utf8_valid((const uint8_t *)q->detail, len));
    for (i = 0; i < len; i++) FUZZ_CHECK((uint8_t)q->detail[i] >= 0x20 && q->detail[i] != 0x7f);
    FUZZ_CHECK(q->flag == 0 || q->flag == 1);
    if (q->kind == OPC__RES_GET && q->flag) {
        FUZZ_CHECK(q->msg_bytes == r->msg.len);
        FUZZ_CHECK(opc__str_utf8_valid(r->msg.p, r->msg.len));
        FUZZ_CHECK(q->from_cut || opc__str_utf8_valid(q->from, q->from_len));
    }
}

static void fuzz_response(const uint8_t *data, size_t size) {
    static fuzz_response_result whole, other;
    fuzz_buf text;
    int way;
    fuzz_response_parse(&whole, data, size, FUZZ_WHOLE);
    for (way = FUZZ_BYTES; way < FUZZ_WAYS; way++) {
        fuzz_response_parse(&other, data, size, way);
        fuzz_response_equal(&whole, &other);
        fuzz_free(&other.msg);
    }
    if (whole.rc == OPCOMMS_OK) {
        fuzz_response_valid(&whole);
        if (!whole.response->from_cut) {
            memset(&text, 0, sizeof text);
            fuzz_response_emit(&whole, &text);
            fuzz_response_parse(&other, text.p, text.len, FUZZ_CUT);
            fuzz_response_equal(&whole, &other);
            fuzz_free(&other.msg);
            fuzz_free(&text);
        }
    }
    fuzz_free(&whole.msg);
}

FUZZ_TARGET(fuzz_response)
