/* Notes of a log, and messages: whatever is taken is written as notes that make the same state
   again. Input: records of kind 1, length 2 and body; kinds 9, 13 and 14 are notes, the others
   messages of a stream. */
#include "fuzz.h"

typedef struct fuzz_notes {
    fuzz_buf buf;
    opc__numbers *again;
} fuzz_notes;

static opcomms_err fuzz_numbers_emit(void *user, unsigned type, const uint8_t *body, size_t n) {
    fuzz_notes *f = (fuzz_notes *)user;
    FUZZ_CHECK(n > 0 && n <= OPC__NOTE_MAX);
    fuzz_put(&f->buf, &type, sizeof type);
    fuzz_put(&f->buf, body, n);
    if (f->again != NULL) {
        uint8_t *exact = fuzz_exact(body, n);
        FUZZ_CHECK(opc__numbers_recover_note(f->again, type, exact, n) == OPCOMMS_OK);
        free(exact);
    }
    return OPCOMMS_OK;
}

static opcomms_err fuzz_numbers_message(opc__numbers *n, unsigned kind, const uint8_t *p,
                                        size_t len) {
    opc__msg_meta m;
    memset(&m, 0, sizeof m);
    if (len < 40) return OPCOMMS_OK;
    m.stream = (uint8_t)(kind & 3u);
    m.from[0] = p[0];
    m.from_id = p[1];
    m.dest_id = p[2];
    m.uid = opc__buf_be64(p + 8);
    m.epoch.counter = opc__buf_be64(p + 16);
    m.epoch.random = opc__buf_be64(p + 24);
    m.number = opc__buf_be64(p + 32);
    m.dest = p + 40;
    m.dest_len = (uint32_t)(len - 40);
    return opc__numbers_recover_seen(n, &m);
}

static void fuzz_numbers(const uint8_t *data, size_t size) {
    static const uint8_t own[32] = {1};
    static opc__numbers first, second;
    fuzz_memory memory;
    fuzz_notes a, b;
    opc__mem mem;
    size_t at = 0, k;
    fuzz_mem(&mem, &memory);
    opc__numbers_init(&first, &mem, own, 8, 8, 1);
    while (size - at >= 3) {
        unsigned kind = data[at];
        size_t n = opc__buf_be16(data + at + 1);
        uint8_t *exact;
        opcomms_err rc;
        at += 3;
        if (n > size - at) n = size - at;
        exact = fuzz_exact(data + at, n);
        if (kind == OPC__NOTE_SEEN || kind == OPC__NOTE_PEER || kind == OPC__NOTE_OPENED) {
            rc = opc__numbers_recover_note(&first, kind, exact, n);
        } else {
            rc = fuzz_numbers_message(&first, kind, exact, n);
        }
        free(exact);
        FUZZ_CHECK(rc == OPCOMMS_OK || rc == OPCOMMS_E_LOG_DAMAGED);
        at += n;
    }
    FUZZ_CHECK(first.streams_count <= 8 + size / 40 && memory.now < 65536 + 1024 * size);
    for (k = 0; k < first.streams_top; k++) { /* every number that was taken is known */
        opc__numbers_stream *s = &first.streams[k];
        if (s->kind == 0) continue;
        FUZZ_CHECK(opc__numbers_check(&first, (uint32_t)k, &s->epoch, s->number) ==
                   OPC__NUMBERS_DUPLICATE);
    }
    memset(&a, 0, sizeof a);
    memset(&b, 0, sizeof b);
    opc__numbers_init(&second, &mem, own, 8, 8, 1);
    a.again = &second;
    FUZZ_CHECK(opc__numbers_notes(&first, fuzz_numbers_emit, &a) == OPCOMMS_OK);
    FUZZ_CHECK(first.streams_count >= second.streams_count);
    if (first.streams_count == second.streams_count && first.streams_count == first.streams_top) {
        FUZZ_CHECK(opc__numbers_notes(&second, fuzz_numbers_emit, &b) == OPCOMMS_OK);
        FUZZ_CHECK(fuzz_same(&a.buf, &b.buf));
    }
    fuzz_free(&a.buf);
    fuzz_free(&b.buf);
    opc__numbers_free(&first);
    opc__numbers_free(&second);
    FUZZ_CHECK(memory.now == 0);
}

FUZZ_TARGET(fuzz_numbers)
