/* Frame headers: a stream of frames has the same lengths and the same end however it is cut, and
   no payload is opened whose length is zero or above the limit. First byte: the limit. */
#include "fuzz.h"

/* Reads the whole stream; the lengths go to `out`, then the verdict. */
static void fuzz_frame_read(const uint8_t *p, size_t n, uint32_t max, int way, fuzz_buf *out) {
    opc__frame f;
    fuzz_slices s;
    size_t at = 0;
    uint8_t verdict = 0;
    fuzz_slices_init(&s, way, p, n);
    opc__frame_reset(&f);
    while (at < n) {
        size_t some = fuzz_slice(&s, n - at), used = 0;
        if (!f.open) {
            opcomms_err rc = opc__frame_head(&f, max, p + at, some, &used);
            if (rc != OPCOMMS_OK) {
                FUZZ_CHECK(rc == OPCOMMS_E_PROTOCOL);
                FUZZ_CHECK(!f.open);
                verdict = 1;
                break;
            }
            FUZZ_CHECK(used <= some && used <= 4);
            FUZZ_CHECK(f.open || used == some);
            if (f.open) {
                FUZZ_CHECK(f.left >= 1 && f.left <= max);
                fuzz_put(out, &f.left, sizeof f.left);
            }
        } else {
            used = some < f.left ? some : f.left;
            f.left -= (uint32_t)used;
        }
        at += used;
        if (f.open && f.left == 0) opc__frame_reset(&f);
    }
    fuzz_put(out, &verdict, 1);
}

/* The same by plain arithmetic. */
static void fuzz_frame_expect(const uint8_t *p, size_t n, uint32_t max, fuzz_buf *out) {
    uint8_t verdict = 0;
    while (n >= 4) {
        uint32_t len = (uint32_t)p[0] * 16777216u + (uint32_t)p[1] * 65536u + p[2] * 256u + p[3];
        if (len == 0 || len > max) {
            verdict = 1;
            break;
        }
        fuzz_put(out, &len, sizeof len);
        n -= 4;
        p += 4;
        if (len > n) break;
        n -= len;
        p += len;
    }
    fuzz_put(out, &verdict, 1);
}

static void fuzz_frame(const uint8_t *data, size_t size) {
    static const uint32_t limit[4] = {1, 16, 300, OPCOMMS_MAX_FRAME};
    fuzz_buf want, got;
    int way;
    if (size == 0) return;
    memset(&want, 0, sizeof want);
    fuzz_frame_expect(data + 1, size - 1, limit[data[0] % 4], &want);
    for (way = 0; way < FUZZ_WAYS; way++) {
        memset(&got, 0, sizeof got);
        fuzz_frame_read(data + 1, size - 1, limit[data[0] % 4], way, &got);
        FUZZ_CHECK(fuzz_same(&want, &got));
        fuzz_free(&got);
    }
    fuzz_free(&want);
}

FUZZ_TARGET(fuzz_frame)
