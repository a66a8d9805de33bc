/* The native protocol: a stream of frames is the same events and the same end however it is cut,
   and what was read, written again, is the bytes it was read from. First byte: whether a HELLO came
   before, and the chunk. */
#include "fuzz.h"

/* Writes a control frame again as the event says it was; a DATA or CHUNK up to its payload. */
static size_t fuzz_native_write(const opc__native_event *e, uint8_t *out, size_t cap) {
    static opc__hello hello;
    char text[OPC__NATIVE_BYE_TEXT + 1];
    switch (e->type) {
    case OPC__NATIVE_HELLO:
        FUZZ_CHECK(opc__native_hello_read(e->p, e->n, &hello) == OPCOMMS_OK);
        return opc__native_hello(out, cap, &hello);
    case OPC__NATIVE_OPEN: return opc__native_open(out, cap, e);
    case OPC__NATIVE_STATE:
        return opc__native_state(out, cap, e->channel, e->code, e->number, e->credit_messages,
                                 e->credit_bytes);
    case OPC__NATIVE_DATA:
        return opc__native_data_head(out, cap, e->channel, e->flags, e->number, e->total, e->bytes);
    case OPC__NATIVE_CHUNK:
        return opc__native_chunk_head(out, cap, e->channel, e->flags, e->bytes);
    case OPC__NATIVE_ACK:
        return opc__native_ack(out, cap, e->channel, e->flags, e->number, e->credit_messages,
                               e->credit_bytes);
    case OPC__NATIVE_REFUSE: return opc__native_refuse(out, cap, e->channel, e->number, e->code);
    case OPC__NATIVE_CLOSE: return opc__native_close(out, cap, e->channel);
    case OPC__NATIVE_PING:
    case OPC__NATIVE_PONG: return opc__native_ping(out, cap, e->type, e->p);
    case OPC__NATIVE_BYE:
        FUZZ_CHECK(e->n <= OPC__NATIVE_BYE_TEXT);
        memcpy(text, e->p, e->n);
        text[e->n] = 0;
        if (strlen(text) != e->n) return 0; /* the writer takes no NUL */
        return opc__native_bye(out, cap, e->code, text);
    default: FUZZ_CHECK(!"an event there is not"); return 0;
    }
}

/* Reads the whole stream. To `out`: every frame as it is written again, with its payload, and the
   verdict. */
static void fuzz_native_read(const uint8_t *p, size_t n, uint8_t mode, int way, fuzz_buf *out) {
    static opc__native_in in;
    static uint8_t frame[OPC__NATIVE_HEAD + OPC__NATIVE_HELLO_MAX];
    static const uint32_t chunk[4] = {1024, 1500, 16383, 16384};
    opc__native_event e;
    fuzz_slices s;
    size_t at = 0;
    uint32_t left = 0;
    uint8_t verdict = 0;
    fuzz_slices_init(&s, way, p, n);
    opc__native_begin(&in, chunk[mode >> 1 & 3u]);
    in.greeted = mode & 1u;
    while (at < n) {
        size_t some = fuzz_slice(&s, n - at), used = 0;
        opcomms_err rc = opc__native_next(&in, p + at, some, &used, &e);
        if (rc != OPCOMMS_OK) {
            FUZZ_CHECK(rc == OPCOMMS_E_PROTOCOL);
            FUZZ_CHECK(opc__native_next(&in, p + at, some, &used, &e) == OPCOMMS_E_PROTOCOL);
            verdict = 1;
            break;
        }
        FUZZ_CHECK(used <= some && used > 0);
        FUZZ_CHECK(e.type != OPC__NATIVE_NONE || used == some);
        at += used;
        if (e.type == OPC__NATIVE_NONE) continue;
        FUZZ_CHECK((e.type == OPC__NATIVE_PIECE) == (left > 0));
        if (left == 0) {
            size_t len = fuzz_native_write(&e, frame, sizeof frame);
            if (way == FUZZ_WHOLE && len > 0) {
                size_t body = e.type == OPC__NATIVE_DATA || e.type == OPC__NATIVE_CHUNK ? e.n : 0;
                FUZZ_CHECK(len + body <= at && memcmp(p + at - body - len, frame, len) == 0);
            }
            fuzz_put(out, frame, len);
        }
        if (e.type == OPC__NATIVE_DATA || e.type == OPC__NATIVE_CHUNK) left = e.bytes;
        if (e.type == OPC__NATIVE_DATA || e.type == OPC__NATIVE_CHUNK ||
            e.type == OPC__NATIVE_PIECE) {
            FUZZ_CHECK(e.n <= left && e.left == left - e.n && e.p >= p && e.p + e.n <= p + at);
            fuzz_put(out, e.p, e.n);
            left = e.left;
        }
    }
    fuzz_put(out, &verdict, 1);
}

static void fuzz_native(const uint8_t *data, size_t size) {
    fuzz_buf want, got;
    int way;
    if (size == 0) return;
    memset(&want, 0, sizeof want);
    fuzz_native_read(data + 1, size - 1, data[0], FUZZ_WHOLE, &want);
    for (way = FUZZ_BYTES; way < FUZZ_WAYS; way++) {
        memset(&got, 0, sizeof got);
        fuzz_native_read(data + 1, size - 1, data[0], way, &got);
        FUZZ_CHECK(fuzz_same(&want, &got));
        fuzz_free(&got);
    }
    fuzz_free(&want);
}

FUZZ_TARGET(fuzz_native)
