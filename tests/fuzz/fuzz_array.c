/* The text of a byte array. As text: what was consumed can be rebuilt at any moment from the bytes
   delivered and what is pending, and a complete array renders to exactly its text. As bytes: what
   is rendered, into any room, is recognised again. */
#include "fuzz.h"

/* Renders with little room at a time. */
static void fuzz_array_render(int mode, const uint8_t *p, size_t n, int way, int finish,
                              fuzz_buf *out) {
    opc__render r;
    fuzz_slices s;
    size_t at = 0;
    fuzz_slices_init(&s, way, p, n);
    opc__render_init(&r, mode);
    while (at < n || (r.held_at < r.held_len)) {
        uint8_t dst[64];
        size_t used = 0, put = 0;
        size_t room = way == FUZZ_WHOLE ? sizeof dst : fuzz_slice(&s, sizeof dst);
        opc__render_feed(&r, p + at, n - at, &used, dst, room, &put);
        FUZZ_CHECK(used <= n - at && put <= room);
        FUZZ_CHECK(used > 0 || put > 0);
        at += used;
        fuzz_put(out, dst, put);
    }
    while (finish) {
        uint8_t dst[64];
        size_t put = 0;
        int done = opc__render_finish(&r, dst, way == FUZZ_WHOLE ? sizeof dst : 1, &put);
        fuzz_put(out, dst, put);
        if (done) {
            FUZZ_CHECK(opc__render_finish(&r, dst, sizeof dst, &put) == 1 && put == 0);
            break;
        }
        FUZZ_CHECK(put > 0);
    }
}

/* Returns 1 for a complete array; checks the rebuilding rule after every piece. */
static int fuzz_array_feed(const uint8_t *p, size_t n, int way, fuzz_buf *bytes, size_t *consumed) {
    opc__bytes_in b;
    fuzz_slices s;
    size_t at = 0;
    fuzz_slices_init(&s, way, p, n);
    opc__bytes_in_init(&b);
    while (at < n && !b.broken) {
        size_t some = fuzz_slice(&s, n - at), made = 0, used;
        uint8_t *piece = fuzz_exact(p + at, some), *out = (uint8_t *)malloc(some);
        used = opc__bytes_in_feed(&b, piece, some, out, &made);
        FUZZ_CHECK(used <= some && made <= used);
        FUZZ_CHECK(b.broken || used == some);
        fuzz_put(bytes, out, made);
        at += used;
        free(piece);
        free(out);
        if (way != FUZZ_BYTES || n < 40 || at % 97 == 0) {
            fuzz_buf text;
            uint8_t pending[8];
            size_t held;
            memset(&text, 0, sizeof text);
            fuzz_array_render(OPC__RENDER_BYTES, bytes->p, bytes->len, FUZZ_WHOLE, 0, &text);
            held = opc__bytes_in_pending(&b, pending);
            fuzz_put(&text, pending, held);
            FUZZ_CHECK(text.len == at && (at == 0 || memcmp(text.p, p, at) == 0));
            fuzz_free(&text);
        }
    }
    *consumed = at;
    return opc__bytes_in_done(&b);
}

static void fuzz_array_text(const uint8_t *p, size_t n) {
    fuzz_buf want, got, text;
    size_t consumed = 0, again = 0;
    int done, way;
    memset(&want, 0, sizeof want);
    done = fuzz_array_feed(p, n, FUZZ_WHOLE, &want, &consumed);
    for (way = FUZZ_BYTES; way < FUZZ_WAYS; way++) {
        memset(&got, 0, sizeof got);
        FUZZ_CHECK(fuzz_array_feed(p, n, way, &got, &again) == done);
        FUZZ_CHECK(again == consumed && fuzz_same(&want, &got));
        fuzz_free(&got);
    }
    if (done) {
        memset(&text, 0, sizeof text);
        fuzz_array_render(OPC__RENDER_BYTES, want.p, want.len, FUZZ_CUT, 1, &text);
        FUZZ_CHECK(text.len == n && memcmp(text.p, p, n) == 0);
        fuzz_free(&text);
    }
    fuzz_free(&want);
}

static void fuzz_array_bytes(const uint8_t *p, size_t n) {
    fuzz_buf text, back;
    size_t consumed = 0;
    int mode, way;
    for (mode = OPC__RENDER_BYTES; mode <= OPC__RENDER_TEXT; mode++) {
        for (way = 0; way < FUZZ_WAYS; way++) {
            uint64_t total = opc__render_total(mode, opc__render_size(mode, p, n), n);
            memset(&text, 0, sizeof text);
            memset(&back, 0, sizeof back);
            if (mode == OPC__RENDER_TEXT) fuzz_str(&text, "\"");
            fuzz_array_render(mode, p, n, way, 1, &text);
            if (mode == OPC__RENDER_BYTES) {
                FUZZ_CHECK(text.len == total);
                FUZZ_CHECK(fuzz_array_feed(text.p, text.len, FUZZ_CUT, &back, &consumed));
                FUZZ_CHECK(back.len == n && (n == 0 || memcmp(back.p, p, n) == 0));
            } else if (opc__str_utf8_valid(p, n)) {
                opc__json j;
                opc__json_token t;
                const uint8_t *at = text.p;
                FUZZ_CHECK(text.len == total + 1);
                fuzz_str(&text, "\"");
                at = text.p;
                opc__json_init(&j);
                do {
                    FUZZ_CHECK(opc__json_step(&j, &at, text.p + text.len, &t) == OPCOMMS_OK);
                    if (t.kind == OPC__JSON_PIECE) fuzz_put(&back, t.p, t.n);
                } while (t.kind != OPC__JSON_MORE);
                FUZZ_CHECK(opc__json_done(&j));
                FUZZ_CHECK(back.len == n && (n == 0 || memcmp(back.p, p, n) == 0));
            }
            fuzz_free(&text);
            fuzz_free(&back);
        }
    }
}

static void fuzz_array(const uint8_t *data, size_t size) {
    fuzz_array_text(data, size);
    fuzz_array_bytes(data, size);
}

FUZZ_TARGET(fuzz_array)
