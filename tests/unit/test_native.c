/* The native protocol: golden frames written by hand, each written and read the same however it is
   cut; every field that is out of its range is refused. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#include "test.h"

typedef struct bytes {
    uint8_t p[8192];
    size_t n;
} bytes;

static int digit(int c) {
    if (c >= '0' && c <= '9') return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The bytes of a golden file: hex digits, white space, comments to the end of the line. */
static void golden(const char *name, bytes *b) {
    char path[256];
    FILE *f;
    int c, half = -1;
    snprintf(path, sizeof path, "%s/native/%s.hex", TEST_DATA, name);
    b->n = 0;
    f = fopen(path, "rb");
    CHECK(f != NULL);
    if (f == NULL) return;
    while ((c = fgetc(f)) != EOF) {
        int d = digit(c);
        if (c == '#') {
            while ((c = fgetc(f)) != EOF && c != '\n') continue;
            continue;
        }
        if (d < 0) continue;
        if (half < 0) {
            half = d;
        } else {
            b->p[b->n++] = (uint8_t)(half * 16 + d);
            half = -1;
        }
    }
    CHECK_EQ(half, -1);
    CHECK(b->n >= OPC__NATIVE_HEAD);
    fclose(f);
}

static int same(const bytes *b, const uint8_t *p, size_t n) {
    return b->n == n && memcmp(b->p, p, n) == 0;
}

/* A reader that is behind its HELLO. */
static void ready(opc__native_in *in) {
    opc__native_begin(in, OPC__NATIVE_CHUNK_MAX);
    in->greeted = 1;
}

/* Everything that can be seen of one frame, its payload or text joined. */
typedef struct view {
    opc__native_event e;
    uint8_t data[8192];
    size_t n;
    int events;
} view;

/* Feeds a frame in two parts, the second byte by byte if step is 1; one event and its pieces. */
static opcomms_err read_cut(const bytes *b, size_t cut, size_t step, int hello, view *v) {
    static opc__native_in in;
    size_t at = 0;
    memset(v, 0, sizeof *v);
    ready(&in);
    if (hello) in.greeted = 0;
    while (at < b->n) {
        size_t n = at < cut ? cut - at : step, used = 0;
        uint8_t *exact;
        opc__native_event e;
        opcomms_err rc;
        if (n > b->n - at) n = b->n - at;
        exact = (uint8_t *)malloc(n);
        memcpy(exact, b->p + at, n);
        memset(&e, 0, sizeof e);
        rc = opc__native_next(&in, exact, n, &used, &e);
        if (rc == OPCOMMS_OK && e.type != OPC__NATIVE_NONE) {
            v->events++;
            CHECK(v->events == 1 || e.type == OPC__NATIVE_PIECE);
            if (v->events == 1) v->e = e;
            if (e.n > 0) memcpy(v->data + v->n, e.p, e.n);
            v->n += e.n;
        } else if (rc == OPCOMMS_OK) {
            CHECK_EQ(used, n); /* nothing is left when more is needed */
        }
        free(exact);
        if (rc != OPCOMMS_OK) return rc;
        CHECK(used > 0);
        at += used;
    }
    return OPCOMMS_OK;
}

static int same_view(const view *a, const view *b) {
    return a->e.type == b->e.type && a->e.flags == b->e.flags && a->e.channel == b->e.channel &&
           a->e.number == b->e.number && a->e.total == b->e.total && a->e.bytes == b->e.bytes &&
           a->e.code == b->e.code && a->e.credit_messages == b->e.credit_messages &&
           a->e.credit_bytes == b->e.credit_bytes && a->e.stream == b->e.stream &&
           a->e.from_id == b->e.from_id && a->e.dest_id == b->e.dest_id &&
           a->e.wants == b->e.wants && a->e.epoch.counter == b->e.epoch.counter &&
           a->e.epoch.random == b->e.epoch.random && a->n == b->n &&
           memcmp(a->data, b->data, a->n) == 0;
}

/* The frame, read whole and with every cut: always the same. */
static void frame(const char *name, int type, bytes *b, view *v) {
    static view w;
    size_t cut, step;
    int hello = type == OPC__NATIVE_HELLO;
    golden(name, b);
    CHECK_EQ(read_cut(b, b->n, b->n, hello, v), OPCOMMS_OK);
    CHECK_EQ(v->events, 1);
    CHECK_EQ(v->e.type, type);
    CHECK_EQ(v->e.left, 0);
    for (cut = 1; cut < b->n; cut++) {
        for (step = 1; step <= b->n; step += b->n - 1) {
            CHECK_EQ(read_cut(b, cut, step, hello, &w), OPCOMMS_OK);
            CHECK(same_view(v, &w));
        }
    }
}

static const opc__epoch epoch_7 = {7, 0x1122334455667788u};

TEST(hello_is_written_and_read_as_in_the_golden_frames) {
    static bytes b;
    static view v;
    static opc__hello h;
    static uint8_t out[OPC__NATIVE_HEAD + OPC__NATIVE_HELLO_MAX];
    frame("hello", OPC__NATIVE_HELLO, &b, &v);
    memset(&h, 0xee, sizeof h);
    CHECK_EQ(opc__native_hello_read(v.data, v.n, &h), OPCOMMS_OK);
    CHECK_EQ(h.version, 1);
    CHECK_EQ(h.flags, OPC__NATIVE_TAKES_OPEN);
    CHECK_EQ(h.chunk, 16384);
    CHECK_EQ(h.message_max, 8388608);
    CHECK(h.now.counter == 7 && h.now.random == epoch_7.random);
    CHECK(h.known.counter == 3 && h.known.random == 0x99aabbccddeeff00u);
    CHECK_EQ(h.count, 2);
    CHECK(h.pending[0].counter == 2 && h.pending[0].random == 0x0102030405060708u);
    CHECK(h.pending[1].counter == 5 && h.pending[1].random == 0xf1f2f3f4f5f6f7f8u);
    CHECK(same(&b, out, opc__native_hello(out, sizeof out, &h)));
    CHECK_EQ(opc__native_hello(out, b.n - 1, &h), 0);
    frame("hello_short", OPC__NATIVE_HELLO, &b, &v);
    CHECK_EQ(opc__native_hello_read(v.data, v.n, &h), OPCOMMS_OK);
    CHECK_EQ(h.flags, 0);
    CHECK_EQ(h.chunk, 1024);
    CHECK_EQ(h.message_max, 4096);
    CHECK(h.now.counter == 0 && h.now.random == 1);
    CHECK(h.known.counter == 0 && h.known.random == 0);
    CHECK_EQ(h.count, 0);
    CHECK(same(&b, out, opc__native_hello(out, sizeof out, &h)));
}

TEST(open_state_and_close_are_written_and_read_as_in_the_golden_frames) {
    static bytes b;
    static view v;
    uint8_t out[64];
    frame("open", OPC__NATIVE_OPEN, &b, &v);
    CHECK_EQ(v.e.channel, 258);
    CHECK_EQ(v.e.stream, OPC__STREAM_QUEUE);
    CHECK(v.e.from_id == 3 && v.e.dest_id == 255 && v.e.wants == 3);
    CHECK(v.e.epoch.counter == 7 && v.e.epoch.random == epoch_7.random);
    CHECK(v.n == 4 && memcmp(v.data, "ab:c", 4) == 0);
    v.e.p = v.data;
    CHECK(same(&b, out, opc__native_open(out, sizeof out, &v.e)));
    CHECK_EQ(opc__native_open(out, b.n - 1, &v.e), 0);
    frame("state", OPC__NATIVE_STATE, &b, &v);
    CHECK(v.e.channel == 258 && v.e.code == 0 && v.e.number == 4294967297u);
    CHECK(v.e.credit_messages == 1024 && v.e.credit_bytes == 1048576);
    CHECK(same(&b, out, opc__native_state(out, sizeof out, 258, 0, 4294967297u, 1024, 1048576)));
    CHECK_EQ(opc__native_state(out, b.n - 1, 258, 0, 1, 1, 1), 0);
    frame("state_closed", OPC__NATIVE_STATE, &b, &v);
    CHECK(v.e.channel == 1 && v.e.code == OPCOMMS_E_ROLLBACK && v.e.number == 0);
    CHECK(same(&b, out, opc__native_state(out, sizeof out, 1, OPCOMMS_E_ROLLBACK, 0, 0, 0)));
    frame("close", OPC__NATIVE_CLOSE, &b, &v);
    CHECK_EQ(v.e.channel, 258);
    CHECK(same(&b, out, opc__native_close(out, sizeof out, 258)));
    CHECK_EQ(opc__native_close(out, 7, 258), 0);
}

/* Head by the writer, then what the file has behind it. */
static void payload(const bytes *b, const uint8_t *head, size_t n, const char *data, size_t len) {
    CHECK(n + len == b->n && memcmp(b->p, head, n) == 0 && memcmp(b->p + n, data, len) == 0);
}

TEST(data_and_chunks_are_written_and_read_as_in_the_golden_frames) {
    static bytes b;
    static view v;
    uint8_t out[OPC__NATIVE_DATA_HEAD];
    frame("data", OPC__NATIVE_DATA, &b, &v);
    CHECK(v.e.channel == 1 && v.e.flags == OPC__NATIVE_TEXT && v.e.number == 9);
    CHECK(v.e.total == 5 && v.e.bytes == 5 && v.n == 5 && memcmp(v.data, "hello", 5) == 0);
    payload(&b, out, opc__native_data_head(out, sizeof out, 1, OPC__NATIVE_TEXT, 9, 0, 5), "hello",
            5);
    CHECK_EQ(opc__native_data_head(out, 15, 1, 0, 9, 0, 5), 0);
    frame("data_empty", OPC__NATIVE_DATA, &b, &v);
    CHECK(v.e.channel == 65535 && v.e.flags == 0 && v.e.number == 10);
    CHECK(v.e.total == 0 && v.e.bytes == 0 && v.n == 0);
    payload(&b, out, opc__native_data_head(out, sizeof out, 65535, 0, 10, 0, 0), "", 0);
    frame("data_more", OPC__NATIVE_DATA, &b, &v);
    CHECK(v.e.channel == 2 && v.e.flags == OPC__NATIVE_MORE && v.e.number == 11);
    CHECK(v.e.total == 70000 && v.e.bytes == 4 && v.n == 4);
    payload(&b, out, opc__native_data_head(out, sizeof out, 2, OPC__NATIVE_MORE, 11, 70000, 4),
            "\x00\xff\x7f\x80", 4);
    CHECK_EQ(opc__native_data_head(out, 23, 2, OPC__NATIVE_MORE, 11, 70000, 4), 0);
    frame("chunk", OPC__NATIVE_CHUNK, &b, &v);
    CHECK(v.e.channel == 2 && v.e.flags == OPC__NATIVE_MORE && v.e.bytes == 3 && v.n == 3);
    payload(&b, out, opc__native_chunk_head(out, sizeof out, 2, OPC__NATIVE_MORE, 3),
            "\x01\x02\x03", 3);
    CHECK_EQ(opc__native_chunk_head(out, 7, 2, 0, 3), 0);
    frame("chunk_last", OPC__NATIVE_CHUNK, &b, &v);
    CHECK(v.e.flags == 0 && v.n == 1 && v.data[0] == 0xee);
    payload(&b, out, opc__native_chunk_head(out, sizeof out, 2, 0, 1), "\xee", 1);
    frame("chunk_abort", OPC__NATIVE_CHUNK, &b, &v);
    CHECK(v.e.flags == OPC__NATIVE_ABORT && v.n == 0);
    payload(&b, out, opc__native_chunk_head(out, sizeof out, 2, OPC__NATIVE_ABORT, 0), "", 0);
}

TEST(ack_refuse_ping_and_bye_are_written_and_read_as_in_the_golden_frames) {
    static const uint8_t echo[8] = {0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef};
    static bytes b;
    static view v;
    uint8_t out[32];
    frame("ack", OPC__NATIVE_ACK, &b, &v);
    CHECK(v.e.channel == 1 && v.e.flags == OPC__LEVEL_DURABLE && v.e.number == 9);
    CHECK(v.e.credit_messages == 2048 && v.e.credit_bytes == 2097152);
    CHECK(same(&b, out,
               opc__native_ack(out, sizeof out, 1, OPC__LEVEL_DURABLE, 9, 2048, 2097152)));
    CHECK_EQ(opc__native_ack(out, b.n - 1, 1, OPC__LEVEL_CONSUMED, 9, 1, 1), 0);
    frame("refuse", OPC__NATIVE_REFUSE, &b, &v);
    CHECK(v.e.channel == 1 && v.e.number == 10 && v.e.code == -2);
    CHECK(same(&b, out, opc__native_refuse(out, sizeof out, 1, 10, -2)));
    CHECK_EQ(opc__native_refuse(out, b.n - 1, 1, 10, -2), 0);
    frame("ping", OPC__NATIVE_PING, &b, &v);
    CHECK(v.n == 8 && memcmp(v.data, echo, 8) == 0);
    CHECK(same(&b, out, opc__native_ping(out, sizeof out, OPC__NATIVE_PING, echo)));
    CHECK_EQ(opc__native_ping(out, b.n - 1, OPC__NATIVE_PING, echo), 0);
    frame("pong", OPC__NATIVE_PONG, &b, &v);
    CHECK(same(&b, out, opc__native_ping(out, sizeof out, OPC__NATIVE_PONG, echo)));
    frame("bye", OPC__NATIVE_BYE, &b, &v);
    CHECK(v.e.code == OPCOMMS_E_ROLLBACK && v.n == 10);
    CHECK(same(&b, out, opc__native_bye(out, sizeof out, OPCOMMS_E_ROLLBACK, "log of 2\xc3\x9f")));
    CHECK_EQ(opc__native_bye(out, b.n - 1, OPCOMMS_E_ROLLBACK, "log of 2\xc3\x9f"), 0);
}

TEST(a_long_bye_is_cut_between_characters) {
    static bytes b;
    static view v;
    char text[300];
    size_t i;
    for (i = 0; i < 150; i++) memcpy(text + 2 * i, "\xc3\x9f", 2);
    memcpy(text, "x", 1);
    memcpy(text + 1, "\xc3\x9f", 2);
    for (i = 0; i < 148; i++) memcpy(text + 3 + 2 * i, "\xc3\x9f", 2);
    text[299] = 0;
    b.n = opc__native_bye(b.p, sizeof b.p, 0, text);
    CHECK_EQ(b.n, 8 + 4 + 199);
    CHECK_EQ(read_cut(&b, b.n, 1, 0, &v), OPCOMMS_OK);
    CHECK(v.e.code == 0 && v.n == 199);
}

/* ---- refusals ---- */

/* The golden frame with byte `at` set to `value` is refused, whole and byte by byte. */
static void bad(const char *name, size_t at, int value) {
    static bytes b;
    static view v;
    int hello = strncmp(name, "hello", 5) == 0;
    golden(name, &b);
    CHECK(at < b.n && b.p[at] != value);
    b.p[at] = (uint8_t)value;
    if (read_cut(&b, b.n, 1, hello, &v) != OPCOMMS_E_PROTOCOL ||
        read_cut(&b, 1, 1, hello, &v) != OPCOMMS_E_PROTOCOL) {
        printf("%s: byte %zu as %d is taken\n", name, at, value);
        CHECK(!"refused");
    }
    CHECK_EQ(v.events, 0);
}
/* It is taken. */
static void good(const char *name, size_t at, int value) {
    static bytes b;
    static view v;
    golden(name, &b);
    CHECK(at < b.n && b.p[at] != value);
    b.p[at] = (uint8_t)value;
    CHECK_EQ(read_cut(&b, b.n, 1, strncmp(name, "hello", 5) == 0, &v), OPCOMMS_OK);
    CHECK_EQ(v.events, 1);
}

TEST(every_head_that_is_not_described_is_refused) {
    static const char *const name[] = {"hello",     "hello_short", "open",  "state", "state_closed",
                                       "data",      "data_empty",  "chunk", "ack",   "refuse",
                                       "close",     "ping",        "pong",  "bye",   "data_more",
                                       "chunk_last", "chunk_abort"};
    size_t i, bit;
    for (i = 0; i < sizeof name / sizeof name[0]; i++) {
        static bytes b;
        golden(name[i], &b);
        bad(name[i], 0, 128);
        bad(name[i], 0, 255);
        bad(name[i], 4, 1);         /* 16 MB */
        bad(name[i], 6, 0x41);      /* more than 16 448, or than it may have */
        if (strchr("dcho", name[i][0]) == NULL) { /* those of one length, or of a small one */
            bad(name[i], 7, 3);
            bad(name[i], 7, 205);
        }
        for (bit = 3; bit < 8; bit++) {
            if (bit == 3 && strncmp(name[i], "data", 4) == 0) continue; /* UNCERTAIN */
            bad(name[i], 1, b.p[1] | 1 << bit);
        }
        if (b.p[2] == 0 && b.p[3] == 0) {
            bad(name[i], 3, 1); /* a channel where none belongs */
            bad(name[i], 2, 1);
        } else if (b.p[2] == 0) {
            bad(name[i], 3, 0); /* none where one belongs */
        }
    }
    good("data", 1, OPC__NATIVE_UNCERTAIN);
    bad("data", 7, 7);
    bad("data_more", 7, 16);
    bad("data", 1, 4);
    bad("chunk", 1, 2);
    bad("chunk", 1, 4);
    bad("chunk", 1, 5);
    bad("chunk", 7, 0);
    bad("chunk_last", 7, 0);
    bad("chunk_abort", 1, 0);
    bad("chunk_abort", 1, 1);
    bad("chunk_abort", 1, 5);
    bad("close", 7, 1);
    bad("ack", 1, 0);
    bad("ack", 1, 4);
    bad("bye", 7, 3);
    bad("open", 7, 24);
    bad("open", 7, 27);
}

TEST(every_value_out_of_its_range_is_refused) {
    size_t i;
    bad("hello", 9, 0);      /* version */
    good("hello", 9, 2);
    good("hello", 10, 0x80); /* a flag of a newer version */
    bad("hello", 14, 0x41);  /* chunk */
    bad("hello", 13, 1);
    bad("hello_short", 14, 3);
    bad("hello_short", 39, 0); /* now: none at all */
    bad("hello_short", 55, 1); /* known: a store in memory has no history */
    bad("hello", 57, 1);       /* count */
    bad("hello", 57, 3);
    bad("hello", 56, 1);
    bad("hello", 58, 1);       /* zero */
    bad("hello", 59, 1);
    bad("hello", 67, 0);       /* pending: 0, 5 */
    bad("hello", 67, 5);       /* 5, 5 */
    bad("hello", 67, 6);       /* 6, 5 */
    bad("hello", 83, 7);       /* not before now */
    bad("hello", 83, 8);
    bad("hello", 31, 5);       /* now is no later than 5 */
    bad("open", 8, 0);
    bad("open", 8, 3);
    bad("open", 11, 4);
    bad("open", 29, 3);
    bad("open", 29, 5);
    bad("open", 28, 1);
    bad("open", 30, 1);
    bad("open", 31, 1);
    bad("state", 8, 0x7f);     /* a code above 0 */
    bad("state", 11, 1);
    for (i = 12; i < 16; i++) bad("state", i, 1);
    bad("data", 15, 0);        /* number 0 */
    bad("data_empty", 15, 0);
    for (i = 0; i < 2; i++) {  /* total: no more than what is here */
        static bytes b;
        static view v;
        golden("data_more", &b);
        opc__buf_put64(b.p + 16, 3 + i);
        CHECK_EQ(read_cut(&b, b.n, 1, 0, &v), OPCOMMS_E_PROTOCOL);
    }
    bad("refuse", 15, 0);
    bad("refuse", 16, 0x7f);
    for (i = 20; i < 24; i++) bad("refuse", i, 1);
    bad("bye", 8, 0x7f);
    bad("bye", 20, 0x41);      /* not UTF-8 */
}

TEST(an_epoch_of_nothing_and_a_refusal_without_a_code_are_refused) {
    static bytes b;
    static view v;
    golden("open", &b);
    memset(b.p + 12, 0, 16);
    CHECK_EQ(read_cut(&b, b.n, 1, 0, &v), OPCOMMS_E_PROTOCOL);
    golden("refuse", &b);
    memset(b.p + 16, 0, 4);
    CHECK_EQ(read_cut(&b, b.n, 1, 0, &v), OPCOMMS_E_PROTOCOL);
}

TEST(codes_of_all_versions_come_through) {
    static const int32_t code[] = {0, -1, -36, -37, -1000000, -2147483647, -2147483647 - 1};
    static bytes b;
    static view v;
    size_t i;
    for (i = 0; i < sizeof code / sizeof code[0]; i++) {
        b.n = opc__native_state(b.p, sizeof b.p, 1, code[i], 0, 0, 0);
        CHECK_EQ(read_cut(&b, b.n, 1, 0, &v), OPCOMMS_OK);
        CHECK_EQ(v.e.code, code[i]);
    }
}

TEST(hello_comes_first_and_once) {
    static const char *const other[] = {"open",  "state", "data", "chunk", "ack", "refuse",
                                        "close", "ping",  "pong", "bye",   "unknown"};
    static opc__native_in in;
    static bytes b;
    static view v;
    opc__native_event e;
    size_t i, used = 0;
    for (i = 0; i < sizeof other / sizeof other[0]; i++) {
        golden(other[i], &b);
        CHECK_EQ(read_cut(&b, b.n, 1, 1, &v), OPCOMMS_E_PROTOCOL);
    }
    golden("hello", &b);
    CHECK_EQ(read_cut(&b, b.n, 1, 0, &v), OPCOMMS_E_PROTOCOL);
    opc__native_begin(&in, OPC__NATIVE_CHUNK_MAX);
    CHECK_EQ(opc__native_next(&in, b.p, b.n, &used, &e), OPCOMMS_OK);
    golden("ping", &b);
    CHECK_EQ(opc__native_next(&in, b.p, b.n, &used, &e), OPCOMMS_OK);
    CHECK_EQ(e.type, OPC__NATIVE_PING);
    golden("hello", &b);
    CHECK_EQ(opc__native_next(&in, b.p, b.n, &used, &e), OPCOMMS_E_PROTOCOL);
}

TEST(the_largest_hello_passes_and_no_larger_one) {
    static bytes b;
    static view v;
    static opc__hello h;
    uint32_t i;
    memset(&h, 0, sizeof h);
    h.version = OPC__NATIVE_VERSION;
    h.chunk = 1024;
    h.now.counter = 1000;
    h.count = OPC__NATIVE_EPOCHS;
    for (i = 0; i < h.count; i++) h.pending[i].counter = i + 1;
    b.n = opc__native_hello(b.p, sizeof b.p, &h);
    CHECK_EQ(b.n, 8 + 4052);
    CHECK_EQ(read_cut(&b, b.n, 1, 1, &v), OPCOMMS_OK);
    CHECK_EQ(v.n, 4052);
    CHECK_EQ(read_cut(&b, 4000, 1, 1, &v), OPCOMMS_OK);
    opc__buf_put32(b.p + 4, 4052 + 16);
    opc__buf_put16(b.p + 8 + 48, 251);
    b.n += 16;
    CHECK_EQ(read_cut(&b, b.n, 1, 1, &v), OPCOMMS_E_PROTOCOL);
}

TEST(unknown_frames_below_128_are_skipped_whatever_they_hold) {
    static bytes b, all;
    static view v;
    static const int types[] = {0, 12, 127};
    size_t i, cut;
    for (i = 0; i < 3; i++) {
        golden("unknown", &b);
        b.p[0] = (uint8_t)types[i];
        all = b;
        golden("ping", &b);
        memcpy(all.p + all.n, b.p, b.n);
        all.n += b.n;
        for (cut = 1; cut <= all.n; cut++) {
            CHECK_EQ(read_cut(&all, cut, 1, 0, &v), OPCOMMS_OK);
            CHECK_EQ(v.events, 1);
            CHECK_EQ(v.e.type, OPC__NATIVE_PING);
        }
    }
    /* up to the largest body, and one more not */
    golden("unknown", &b);
    opc__buf_put32(b.p + 4, OPC__NATIVE_BODY_MAX);
    CHECK_EQ(read_cut(&b, b.n, 1, 0, &v), OPCOMMS_OK);
    opc__buf_put32(b.p + 4, OPC__NATIVE_BODY_MAX + 1);
    CHECK_EQ(read_cut(&b, b.n, 1, 0, &v), OPCOMMS_E_PROTOCOL);
    golden("unknown", &b);
    opc__buf_put32(b.p + 4, 0);
    b.n = 8;
    CHECK_EQ(read_cut(&b, b.n, 1, 0, &v), OPCOMMS_OK);
}

TEST(a_payload_is_at_most_what_our_hello_said) {
    static opc__native_in in;
    uint8_t out[OPC__NATIVE_DATA_HEAD];
    opc__native_event e;
    uint32_t chunk, over, kind;
    for (chunk = 1024; chunk <= 16384; chunk += 15360) {
        for (over = 0; over < 2; over++) {
            for (kind = 0; kind < 3; kind++) {
                opcomms_err want = over ? OPCOMMS_E_PROTOCOL : OPCOMMS_OK, rc;
                size_t n, used = 0;
                if (kind == 0) n = opc__native_data_head(out, sizeof out, 1, 0, 1, 0, chunk);
                if (kind == 1) n = opc__native_data_head(out, sizeof out, 1, 1, 1, 99999, chunk);
                if (kind == 2) n = opc__native_chunk_head(out, sizeof out, 1, 0, chunk);
                opc__buf_put32(out + 4, opc__buf_be32(out + 4) + over);
                opc__native_begin(&in, chunk);
                in.greeted = 1;
                rc = opc__native_next(&in, out, n, &used, &e);
                CHECK_EQ(rc, want);
                if (over) continue;
                CHECK(e.n == 0 && e.left == chunk && e.bytes == chunk);
            }
        }
    }
}

TEST(a_broken_stream_stays_broken) {
    static opc__native_in in;
    static bytes b;
    opc__native_event e;
    size_t used = 0;
    ready(&in);
    golden("ping", &b);
    b.p[0] = 200;
    CHECK_EQ(opc__native_next(&in, b.p, b.n, &used, &e), OPCOMMS_E_PROTOCOL);
    golden("ping", &b);
    CHECK_EQ(opc__native_next(&in, b.p, b.n, &used, &e), OPCOMMS_E_PROTOCOL);
    ready(&in);
    golden("state", &b);
    b.p[15] = 1; /* a body that is wrong */
    CHECK_EQ(opc__native_next(&in, b.p, b.n, &used, &e), OPCOMMS_E_PROTOCOL);
    golden("ping", &b);
    CHECK_EQ(opc__native_next(&in, b.p, b.n, &used, &e), OPCOMMS_E_PROTOCOL);
}

TEST(messages_in_one_piece_are_one_event_each_and_not_copied) {
    static opc__native_in in;
    static uint8_t all[64 * 100];
    opc__native_event e;
    size_t n = 0, at = 0, used = 0, i;
    ready(&in);
    for (i = 0; i < 64; i++) {
        n += opc__native_data_head(all + n, sizeof all - n, 5, 0, i + 1, 0, (uint32_t)i);
        memset(all + n, (int)i, i);
        n += i;
    }
    for (i = 0; i < 64; i++) {
        CHECK_EQ(opc__native_next(&in, all + at, n - at, &used, &e), OPCOMMS_OK);
        CHECK_EQ(e.type, OPC__NATIVE_DATA);
        CHECK(e.number == i + 1 && e.n == i && e.bytes == i && e.total == i && e.left == 0);
        CHECK(e.p == all + at + 16);
        at += used;
    }
    CHECK_EQ(at, n);
    CHECK_EQ(opc__native_next(&in, all + at, 0, &used, &e), OPCOMMS_OK);
    CHECK(e.type == OPC__NATIVE_NONE && used == 0);
}

TEST(a_payload_in_pieces_points_into_what_was_fed) {
    static opc__native_in in;
    static uint8_t all[16 + 4096];
    opc__native_event e;
    size_t n, used = 0, at = 0, got = 0;
    ready(&in);
    n = opc__native_data_head(all, sizeof all, 5, 0, 1, 0, 4096) + 4096;
    while (at < n) {
        size_t some = n - at < 100 ? n - at : 100;
        CHECK_EQ(opc__native_next(&in, all + at, some, &used, &e), OPCOMMS_OK);
        CHECK_EQ(used, some);
        CHECK_EQ(e.type, at == 0 ? OPC__NATIVE_DATA : OPC__NATIVE_PIECE);
        CHECK(e.p == all + at + (at == 0 ? 16 : 0) && e.channel == 5 && e.bytes == 4096);
        got += e.n;
        CHECK_EQ(e.left, 4096 - got);
        at += used;
    }
    CHECK_EQ(got, 4096);
}

int main(void) {
    RUN(hello_is_written_and_read_as_in_the_golden_frames);
    RUN(open_state_and_close_are_written_and_read_as_in_the_golden_frames);
    RUN(data_and_chunks_are_written_and_read_as_in_the_golden_frames);
    RUN(ack_refuse_ping_and_bye_are_written_and_read_as_in_the_golden_frames);
    RUN(a_long_bye_is_cut_between_characters);
    RUN(every_head_that_is_not_described_is_refused);
    RUN(every_value_out_of_its_range_is_refused);
    RUN(an_epoch_of_nothing_and_a_refusal_without_a_code_are_refused);
    RUN(codes_of_all_versions_come_through);
    RUN(hello_comes_first_and_once);
    RUN(the_largest_hello_passes_and_no_larger_one);
    RUN(unknown_frames_below_128_are_skipped_whatever_they_hold);
    RUN(a_payload_is_at_most_what_our_hello_said);
    RUN(a_broken_stream_stays_broken);
    RUN(messages_in_one_piece_are_one_event_each_and_not_copied);
    RUN(a_payload_in_pieces_points_into_what_was_fed);
    return test_end();
}
