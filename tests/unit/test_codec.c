/* Frames, JSON, payloads, and the reference's requests and answers: what is taken, what is refused,
   and that what we write is byte for byte what the reference writes. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#include "test.h"

#include <dirent.h>

/* ---- frame ---- */

static opcomms_err head(uint32_t len, uint32_t *left, size_t step) {
    uint8_t b[8];
    opc__frame f;
    size_t at = 0, used = 0;
    opcomms_err rc = OPCOMMS_OK;
    opc__buf_put32(b, len);
    memset(b + 4, 0xee, 4);
    opc__frame_reset(&f);
    while (at < sizeof b && !f.open && rc == OPCOMMS_OK) {
        size_t n = sizeof b - at < step ? sizeof b - at : step;
        rc = opc__frame_head(&f, OPCOMMS_MAX_FRAME, b + at, n, &used);
        if (rc == OPCOMMS_OK) at += used;
    }
    if (rc == OPCOMMS_OK) {
        CHECK_EQ(at, 4); /* the payload is left alone */
        *left = f.left;
    }
    return rc;
}

TEST(frame_lengths_from_1_to_8_mib_pass_and_no_other) {
    static const struct {
        uint32_t len;
        int ok;
    } t[] = {{0, 0},           {1, 1},           {2, 1},           {255, 1},
             {256, 1},         {65536, 1},       {8388607u, 1},    {8388608u, 1},
             {8388609u, 0},    {0x01000000u, 0}, {0x7fffffffu, 0}, {0x80000000u, 0},
             {0xffffffffu, 0}, {0x7b22526eu, 0} /* {"Rn */};
    size_t i, step;
    CHECK_EQ(OPCOMMS_MAX_FRAME, 8388608);
    for (i = 0; i < sizeof t / sizeof t[0]; i++) {
        for (step = 1; step <= 8; step++) {
            uint32_t left = 0;
            opcomms_err rc = head(t[i].len, &left, step);
            CHECK_EQ(rc, t[i].ok ? OPCOMMS_OK : OPCOMMS_E_PROTOCOL);
            if (t[i].ok) CHECK_EQ(left, t[i].len);
        }
    }
}

/* A store that nobody may touch: its functions are not there. */
TEST(a_long_frame_ends_the_connection_at_its_fourth_byte_before_anything_is_allocated) {
    static const uint32_t bad[] = {0, 8388609u, 0xffffffffu};
    static opc__conn c;
    static const opc__conn_ops ops = {NULL, NULL};
    opc__store store;
    size_t i, side;
    memset(&store, 0, sizeof store);
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        for (side = 0; side < 2; side++) {
            uint8_t b[4];
            size_t k, used = 0;
            opc__conn_init(&c, (int)side, side ? &store : NULL, OPCOMMS_MAX_FRAME, &ops, NULL);
            opc__buf_put32(b, bad[i]);
            for (k = 0; k < 3; k++) CHECK_EQ(opc__conn_consume(&c, b + k, 1, &used), OPCOMMS_OK);
            CHECK_EQ(opc__conn_consume(&c, b + 3, 1, &used), OPCOMMS_E_PROTOCOL);
            CHECK(!c.in_frame);
            CHECK(!c.put_open);
        }
    }
}

/* ---- json ---- */

/* The tokens of a document as text; pieces of one string are joined, so that cuts do not show. */
static int trace(const uint8_t *p, size_t n, const size_t *cuts, size_t cut_count, char *out,
                 size_t cap) {
    static const char names[] = "?{}[]\"p\"ntfz"; /* by kind; OPC__JSON_MORE first */
    opc__json j;
    size_t have = 0, i, at = 0;
    opc__json_init(&j);
    for (i = 0; i <= cut_count; i++) {
        size_t end = i < cut_count ? cuts[i] : n;
        /* each chunk in memory of its own, so that reading beyond it is seen by the sanitizer */
        uint8_t *chunk = (uint8_t *)malloc(end - at + 1);
        const uint8_t *q = chunk;
        memcpy(chunk, p + at, end - at);
        for (;;) {
            opc__json_token t;
            if (opc__json_step(&j, &q, chunk + (end - at), &t) != OPCOMMS_OK) {
                free(chunk);
                return 0;
            }
            if (t.kind == OPC__JSON_MORE) break;
            if (have + t.n + 32 > cap) abort();
            if (t.kind == OPC__JSON_PIECE) {
                memcpy(out + have, t.p, t.n);
                have += t.n;
            } else {
                out[have++] = names[t.kind];
                if (t.key) out[have++] = 'k';
                if (t.kind == OPC__JSON_NUMBER) {
                    have += (size_t)snprintf(out + have, 30, "%d:%llu", t.is_u64,
                                             (unsigned long long)t.u64);
                }
            }
        }
        free(chunk);
        at = end;
    }
    out[have] = 0;
    return opc__json_done(&j) ? (int)have + 1 : 0;
}

static const char *const documents[] = {
    "{}",
    "[]",
    "\"\"",
    "null",
    "[true,false,null]",
    " [ 1 , 2 ] ",
    "{\"a\":{\"b\":[{},[],\"\"]}}",
    "[0,-0,1,10,1.5,-1.5e10,1E+2,1e-2,0.0,18446744073709551615,18446744073709551616]",
    "[\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0041\\u00e9\\u20ac\\uD83D\\uDE00\\u0000\"]",
    "{\"k\\u0065y\":\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\x7f\",\"k\":1}",
    "\t{\r\n\"a\" : [ ] }\n",
};
static const char *const broken[] = {
    "",
    " ",
    "{",
    "[",
    "\"",
    "tru",
    "nul",
    "{\"a\"}",
    "{\"a\":}",
    "{a:1}",
    "{\"a\":1,}",
    "[1,]",
    "[,1]",
    "[1 2]",
    "{\"a\" 1}",
    "{1:2}",
    "]",
    "}",
    "[}",
    "{]",
    "[1]]",
    "[] []",
    "[],",
    "trux",
    "True",
    "nan",
    "[01]",
    "[-]",
    "[1.]",
    "[.5]",
    "[1e]",
    "[1e+]",
    "[+1]",
    "[-01]",
    "[0x1]",
    "[1.e1]",
    "[00]",
    "[--1]",
    "[\"\\x\"]",
    "[\"\\u12g4\"]",
    "[\"\\uD800\"]",
    "[\"\\uDC00\"]",
    "[\"\\uD800\\uD800\"]",
    "[\"\\uD800x\"]",
    "[\"\\uD800\\n\"]",
    "[\"\\uDE00\\uD83D\"]",
    "[\"\x01\"]",
    "[\"\n\"]",
    "[\"\t\"]",
    "[\"\x1f\"]",
    "[\"\x80\"]",
    "[\"\xc3\"]",
    "[\"\xc0\xaf\"]",
    "[\"\xe0\x80\xaf\"]",
    "[\"\xed\xa0\x80\"]",
    "[\"\xf4\x90\x80\x80\"]",
    "[\"\xf8\x88\x80\x80\x80\"]",
    "[\"\xff\"]",
    "[\"\xe2\x82\"]",
    "['a']",
    "\xef\xbb\xbf[]",
    "[]\f",
    "\v[]",
    "[1]//x",
    "[\"a\" \"b\"]",
    "{\"a\":1 \"b\":2}",
    "\"\\ud83d\\u\"",
    "{\"\xff\":1}",
    "{\"\\ud800\":1}",
};

TEST(json_gives_the_same_tokens_however_the_input_is_cut) {
    size_t i, a, b;
    for (i = 0; i < sizeof documents / sizeof documents[0]; i++) {
        const uint8_t *p = (const uint8_t *)documents[i];
        size_t n = strlen(documents[i]), cuts[256];
        char want[512], got[512];
        int bad = 0;
        CHECK(trace(p, n, NULL, 0, want, sizeof want) > 0);
        for (a = 0; a <= n; a++) {
            for (b = a; b <= n; b++) {
                cuts[0] = a;
                cuts[1] = b;
                got[0] = 0;
                bad += trace(p, n, cuts, 2, got, sizeof got) == 0 || strcmp(want, got) != 0;
            }
            cuts[a] = a;
        }
        for (a = 0; a < n; a++) cuts[a] = a;
        bad += trace(p, n, cuts, n, got, sizeof got) == 0 || strcmp(want, got) != 0;
        if (bad) printf("document %s\n", documents[i]);
        CHECK_EQ(bad, 0);
    }
}

TEST(json_that_is_wrong_is_refused_however_the_input_is_cut) {
    size_t i, a;
    for (i = 0; i < sizeof broken / sizeof broken[0]; i++) {
        const uint8_t *p = (const uint8_t *)broken[i];
        size_t n = strlen(broken[i]);
        char got[512];
        int bad = trace(p, n, NULL, 0, got, sizeof got) != 0;
        for (a = 0; a <= n; a++) bad += trace(p, n, &a, 1, got, sizeof got) != 0;
        if (bad) printf("taken: %s\n", broken[i]);
        CHECK_EQ(bad, 0);
    }
}

TEST(json_cut_off_anywhere_is_not_a_document) {
    size_t i, n;
    for (i = 0; i < sizeof documents / sizeof documents[0]; i++) {
        char got[512];
        const char *end = documents[i] + strlen(documents[i]);
        while (end[-1] == ' ' || end[-1] == '\n') end--; /* white space behind may be missing */
        for (n = 0; documents[i] + n < end; n++) {
            CHECK(!trace((const uint8_t *)documents[i], n, NULL, 0, got, sizeof got));
        }
    }
}

TEST(json_numbers_are_u64_only_when_they_are_plain_digits_in_range) {
    char got[128];
    static const struct {
        const char *text, *tokens;
    } t[] = {{"[0]", "[n1:0]"},
             {"[18446744073709551615]", "[n1:18446744073709551615]"},
             {"[18446744073709551616]", "[n0:0]"},
             {"[184467440737095516150]", "[n0:0]"},
             {"[99999999999999999999999999]", "[n0:0]"},
             {"[-0]", "[n0:0]"},
             {"[-1]", "[n0:0]"},
             {"[1.0]", "[n0:0]"},
             {"[1e0]", "[n0:0]"}};
    size_t i;
    for (i = 0; i < sizeof t / sizeof t[0]; i++) {
        CHECK(trace((const uint8_t *)t[i].text, strlen(t[i].text), NULL, 0, got, sizeof got) > 0);
        CHECK_STR(got, t[i].tokens);
    }
}

TEST(json_nests_512_deep_and_not_one_deeper) {
    char doc[1100], got[1200];
    memset(doc, '[', 512);
    memset(doc + 512, ']', 512);
    CHECK(trace((uint8_t *)doc, 1024, NULL, 0, got, sizeof got) > 0);
    memset(doc, '[', 513);
    memset(doc + 513, ']', 513);
    CHECK(!trace((uint8_t *)doc, 1026, NULL, 0, got, sizeof got));
}

/* ---- payload: byte arrays and text ---- */

/* Feeds in pieces of `step`; rebuilds the characters consumed from what came out and is pending. */
static size_t rebuild(const char *text, size_t n, size_t step, char *back, int *done) {
    opc__bytes_in b;
    opc__render r;
    uint8_t bytes[64], out[64], pending[8];
    size_t at = 0, have = 0, made, used, put, k;
    opc__bytes_in_init(&b);
    opc__render_init(&r, OPC__RENDER_BYTES);
    while (at < n && !b.broken) {
        size_t some = n - at < step ? n - at : step;
        at += opc__bytes_in_feed(&b, (const uint8_t *)text + at, some, out, &made);
        memcpy(bytes + have, out, made);
        have += made;
    }
    *done = opc__bytes_in_done(&b);
    opc__render_feed(&r, bytes, have, &used, (uint8_t *)back, 200, &put);
    k = opc__bytes_in_pending(&b, pending);
    memcpy(back + put, pending, k);
    back[put + k] = 0;
    return at;
}

TEST(a_byte_array_is_canonical_or_it_is_text_and_nothing_of_it_is_lost) {
    static const struct {
        const char *text;
        int canonical;
    } t[] = {{"[]", 1},         {"[0]", 1},   {"[255]", 1},   {"[65,122,195]", 1},
             {"[0,0,0]", 1},    {"[256]", 0}, {"[00]", 0},    {"[01]", 0},
             {"[1,]", 0},       {"[,1]", 0},  {"[1 ]", 0},    {"[ 1]", 0},
             {" [1]", 0},       {"[1] ", 0},  {"[1]]", 0},    {"[1,2", 0},
             {"[1,2,", 0},      {"[1,25", 0}, {"[", 0},       {"", 0},
             {"]", 0},          {"x", 0},     {"[1,2,x]", 0}, {"[1,2,-3]", 0},
             {"[1.0]", 0},      {"[999]", 0}, {"[2555]", 0},  {"[25,256]", 0},
             {"{}", 0},         {"[[1]]", 0}, {"[1,02]", 0},  {"[1,\t2]", 0},
             {"[100,10,1", 0},  {"[12,", 0},  {"[]x", 0},     {"[1]x", 0},
             {"[65,122,195", 0}};
    size_t i, step;
    for (i = 0; i < sizeof t / sizeof t[0]; i++) {
        size_t n = strlen(t[i].text);
        for (step = 1; step <= n + 1; step++) {
            char back[256];
            int done = -1;
            size_t used = rebuild(t[i].text, n, step, back, &done);
            CHECK_EQ(done, t[i].canonical);
            if (t[i].canonical) CHECK_EQ(used, n);
            CHECK(used <= n && strlen(back) == used && memcmp(back, t[i].text, used) == 0);
        }
    }
}

TEST(every_byte_value_goes_there_and_back_through_an_array_with_any_room) {
    uint8_t all[256], text[1024], back[1024];
    size_t i, cap, len, at;
    uint64_t size;
    for (i = 0; i < 256; i++) all[i] = (uint8_t)(i * 7);
    size = opc__render_total(OPC__RENDER_BYTES, opc__render_size(OPC__RENDER_BYTES, all, 256), 256);
    CHECK_EQ(size, 10 + 180 + 468 + 255 + 2);
    for (cap = 1; cap < 12; cap++) {
        opc__render r;
        opc__bytes_in b;
        size_t used, put = 0, made = 0;
        int end = 0;
        opc__render_init(&r, OPC__RENDER_BYTES);
        len = at = 0;
        while (at < 256) {
            opc__render_feed(&r, all + at, 256 - at, &used, text + len, cap, &put);
            CHECK(used > 0 || put > 0);
            at += used;
            len += put;
        }
        while (!end) {
            end = opc__render_finish(&r, text + len, cap, &put);
            len += put;
        }
        CHECK_EQ(len, size);
        CHECK(opc__render_finish(&r, text + len, cap, &put) && put == 0); /* again: nothing more */
        opc__bytes_in_init(&b);
        CHECK_EQ(opc__bytes_in_feed(&b, text, len, back, &made), len);
        CHECK(opc__bytes_in_done(&b));
        CHECK(made == 256 && memcmp(back, all, 256) == 0);
    }
}

TEST(the_empty_payload_is_two_brackets) {
    opc__render r;
    uint8_t out[4];
    size_t put = 0;
    opc__render_init(&r, OPC__RENDER_BYTES);
    CHECK_EQ(opc__render_total(OPC__RENDER_BYTES, 0, 0), 2);
    CHECK(!opc__render_finish(&r, out, 0, &put));
    CHECK(!opc__render_finish(&r, out, 1, &put));
    CHECK(put == 1 && out[0] == '[');
    CHECK(opc__render_finish(&r, out, 1, &put));
    CHECK(put == 1 && out[0] == ']');
    opc__render_init(&r, OPC__RENDER_TEXT);
    CHECK(opc__render_finish(&r, out, 4, &put) && put == 0);
}

/* PROTOCOL 6.1: escape only " \ \b \f \n \r \t and the other bytes below 0x20. */
TEST(text_is_escaped_exactly_as_serde_json_does_with_any_room) {
    static const char in[] = "\"\\\b\f\n\r\t\x01\x1f\x00/\x7f \xc3\xa9\xe2\x80\xa8z";
    static const char want[] =
        "\\\"\\\\\\b\\f\\n\\r\\t\\u0001\\u001f\\u0000/\x7f \xc3\xa9\xe2\x80\xa8z";
    size_t n = sizeof in - 1, cap;
    CHECK_EQ(opc__render_size(OPC__RENDER_TEXT, (const uint8_t *)in, n), strlen(want));
    for (cap = 1; cap < 20; cap++) {
        opc__render r;
        char out[128];
        size_t at = 0, len = 0, used, put = 0;
        int end = 0;
        opc__render_init(&r, OPC__RENDER_TEXT);
        while (at < n) {
            opc__render_feed(&r, (const uint8_t *)in + at, n - at, &used, (uint8_t *)out + len, cap,
                             &put);
            at += used;
            len += put;
        }
        while (!end) {
            end = opc__render_finish(&r, (uint8_t *)out + len, cap, &put);
            len += put;
        }
        out[len] = 0;
        CHECK_STR(out, want);
    }
}

/* ---- requests: the rules of PROTOCOL 6.1 ---- */

#define Z16 "[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]"
#define TRACE "{\"trace_id\":" Z16 ",\"span_id\":1,\"sampling_decision\":\"Unsampled\"}"
#define DEADLINE(d) "{\"deadline\":" d ",\"trace_context\":" TRACE "}"
#define CONTEXT DEADLINE("{\"secs\":9,\"nanos\":5}")
#define IN_CONTEXT(c) "{\"Request\":{\"context\":" c ",\"id\":0,\"message\":{\"Ping\":{}}}}"
#define IN_TRACE(t) IN_CONTEXT("{\"deadline\":{\"secs\":9,\"nanos\":5},\"trace_context\":" t "}")
#define WITH_ID(i) "{\"Request\":{\"context\":" CONTEXT ",\"id\":" i ",\"message\":{\"Ping\":{}}}}"
#define CALL(m) "{\"Request\":{\"context\":" CONTEXT ",\"id\":0,\"message\":" m "}}"
#define SEND(s) CALL("{\"Send\":" s "}")
#define DEST "{\"pubkey_hash\":\"ab\",\"id\":0}"
#define MSG(m) SEND("{\"from_id\":0,\"dest\":" DEST ",\"msg\":\"" m "\"}")

typedef struct msg_sink {
    char text[4096];
    size_t len;
    opcomms_err fail;
} msg_sink;

static opcomms_err sink_take(void *user, const uint8_t *p, size_t n) {
    msg_sink *s = (msg_sink *)user;
    if (s->fail != OPCOMMS_OK) return s->fail;
    if (n > sizeof s->text - s->len) return OPCOMMS_E_FULL;
    memcpy(s->text + s->len, p, n);
    s->len += n;
    return OPCOMMS_OK;
}

/* `step` bytes at a time, each in memory of its own. */
static opcomms_err parse(const char *doc, size_t n, size_t step, opc__request *out,
                         msg_sink *sink) {
    static opc__request_parser q;
    const opc__request *r = NULL;
    opcomms_err rc = OPCOMMS_OK;
    size_t at;
    memset(sink, 0, sizeof *sink);
    memset(&q, 0xa5, sizeof q); /* whatever an earlier frame left */
    opc__request_begin(&q, sink_take, sink);
    for (at = 0; at < n && rc == OPCOMMS_OK; at += step) {
        size_t some = n - at < step ? n - at : step;
        uint8_t *chunk = (uint8_t *)malloc(some);
        memcpy(chunk, doc + at, some);
        rc = opc__request_feed(&q, chunk, some);
        free(chunk);
    }
    if (rc != OPCOMMS_OK) {
        CHECK_EQ(opc__request_feed(&q, (const uint8_t *)" ", 1), rc); /* an error stays */
        return rc;
    }
    rc = opc__request_end(&q, &r);
    if (rc == OPCOMMS_OK) *out = *r;
    return rc;
}

static int same_request(const opc__request *a, const opc__request *b) {
    return a->kind == b->kind && a->id == b->id && a->deadline_ms == b->deadline_ms &&
           a->from_id == b->from_id && a->dest_id == b->dest_id && a->uid == b->uid &&
           a->dest_len == b->dest_len && a->dest_cut == b->dest_cut &&
           a->msg_bytes == b->msg_bytes && memcmp(a->dest, b->dest, a->dest_len) == 0;
}

static int accepts(const char *doc) {
    opc__request r, again;
    static msg_sink s, t;
    size_t n = strlen(doc), step;
    opcomms_err rc = parse(doc, n, n, &r, &s);
    if (rc != OPCOMMS_OK) CHECK_EQ(rc, OPCOMMS_E_PROTOCOL);
    for (step = 1; step < 5; step++) { /* however it is cut */
        CHECK_EQ(parse(doc, n, step, &again, &t), rc);
        if (rc == OPCOMMS_OK) CHECK(same_request(&r, &again));
        if (rc == OPCOMMS_OK) CHECK(s.len == t.len && memcmp(s.text, t.text, s.len) == 0);
    }
    return rc == OPCOMMS_OK;
}

#define TAKEN(doc)                                                   \
    do {                                                             \
        if (!accepts(doc)) {                                         \
            test_bad++;                                              \
            printf("%s:%d: refused: %s\n", __FILE__, __LINE__, doc); \
        }                                                            \
    } while (0)
#define REFUSED(doc)                                               \
    do {                                                           \
        if (accepts(doc)) {                                        \
            test_bad++;                                            \
            printf("%s:%d: taken: %s\n", __FILE__, __LINE__, doc); \
        }                                                          \
    } while (0)

TEST(unknown_fields_are_ignored_at_every_level_but_two) {
    TAKEN(IN_CONTEXT(CONTEXT));
    TAKEN("{\"Request\":{\"x\":{\"y\":[1,{}]},\"context\":" CONTEXT
          ",\"id\":0,\"message\":{\"Ping\":{}}}}");
    TAKEN("{\"Request\":{\"x\":1,\"x\":2,\"context\":" CONTEXT
          ",\"id\":0,\"message\":{\"Ping\":{}}}}");
    TAKEN(IN_CONTEXT("{\"x\":\"y\",\"deadline\":{\"secs\":9,\"nanos\":5},\"trace_context\":" TRACE
                     "}"));
    TAKEN(IN_TRACE("{\"x\":null,\"trace_id\":" Z16
                   ",\"span_id\":1,\"sampling_decision\":\"Sampled\"}"));
    TAKEN(SEND("{\"x\":-1.5e3,\"from_id\":0,\"dest\":" DEST ",\"msg\":\"\"}"));
    TAKEN(SEND("{\"from_id\":0,\"dest\":{\"x\":1,\"pubkey_hash\":\"ab\",\"id\":0},\"msg\":\"\"}"));
    TAKEN(CALL("{\"Get\":{\"dest_id\":0,\"x\":{}}}"));
    TAKEN(CALL("{\"Ack\":{\"dest_id\":0,\"uid\":1,\"x\":[]}}"));
    TAKEN(CALL("{\"Ping\":{\"x\":1}}"));
    TAKEN("{\"Cancel\":{\"request_id\":0,\"trace_context\":" TRACE ",\"x\":1}}");
    REFUSED(IN_CONTEXT(DEADLINE("{\"secs\":9,\"nanos\":5,\"x\":1}")));
    REFUSED("{\"Request\":{\"context\":" CONTEXT ",\"id\":0,\"message\":{\"Ping\":{}}},\"x\":1}");
    REFUSED("{\"x\":1,\"Request\":{\"context\":" CONTEXT ",\"id\":0,\"message\":{\"Ping\":{}}}}");
}

TEST(an_enum_has_exactly_one_key) {
    REFUSED("{}");
    REFUSED("{\"Cancel\":{\"request_id\":0},\"Cancel\":{\"request_id\":0}}");
    REFUSED(CALL("{}"));
    REFUSED(CALL("{\"Ping\":{},\"Ping\":{}}"));
    REFUSED(CALL("{\"Ping\":{},\"x\":{}}"));
    REFUSED(CALL("[\"Ping\",{}]"));
    REFUSED(CALL("\"Ping\""));
    REFUSED(CALL("{\"Ping\":null}"));
    REFUSED(CALL("null"));
    REFUSED("\"Request\"");
    REFUSED("[]");
    REFUSED("null");
    REFUSED("0");
    TAKEN(CALL("{\"Ping\":[]}"));
    REFUSED(CALL("{\"Ping\":[1]}"));
    REFUSED(CALL("{\"Ping\":true}"));
    REFUSED(CALL("{\"ping\":{}}"));
    REFUSED(CALL("{\"PING\":{}}"));
    REFUSED(CALL("{\"Pings\":{}}"));
    REFUSED(CALL("{\"Pin\":{}}"));
    REFUSED(CALL("{\"Delete\":{}}"));
    REFUSED("{\"request\":{}}");
    REFUSED("{\"Answer\":{\"context\":" CONTEXT ",\"id\":0,\"message\":{\"Ping\":{}}}}");
    REFUSED("{\"Requestxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\":{}}");
}

TEST(a_unit_variant_is_a_name_or_a_name_with_null) {
    TAKEN(IN_TRACE("{\"trace_id\":" Z16 ",\"span_id\":1,\"sampling_decision\":\"Sampled\"}"));
    TAKEN(
        IN_TRACE("{\"trace_id\":" Z16 ",\"span_id\":1,\"sampling_decision\":{\"Sampled\":null}}"));
    TAKEN(IN_TRACE("{\"trace_id\":" Z16
                   ",\"span_id\":1,\"sampling_decision\":{\"Unsampled\":null}}"));
    REFUSED(
        IN_TRACE("{\"trace_id\":" Z16 ",\"span_id\":1,\"sampling_decision\":{\"Sampled\":{}}}"));
    REFUSED(
        IN_TRACE("{\"trace_id\":" Z16 ",\"span_id\":1,\"sampling_decision\":{\"Sampled\":[]}}"));
    REFUSED(IN_TRACE("{\"trace_id\":" Z16 ",\"span_id\":1,\"sampling_decision\":\"sampled\"}"));
    REFUSED(IN_TRACE("{\"trace_id\":" Z16 ",\"span_id\":1,\"sampling_decision\":\"Maybe\"}"));
    REFUSED(IN_TRACE("{\"trace_id\":" Z16 ",\"span_id\":1,\"sampling_decision\":null}"));
    REFUSED(IN_TRACE("{\"trace_id\":" Z16 ",\"span_id\":1,\"sampling_decision\":0}"));
    REFUSED(IN_TRACE("{\"trace_id\":" Z16 ",\"span_id\":1,\"sampling_decision\":{}}"));
}

TEST(every_field_but_two_is_required_once) {
    REFUSED("{\"Request\":{\"id\":0,\"message\":{\"Ping\":{}}}}");
    REFUSED("{\"Request\":{\"context\":" CONTEXT ",\"message\":{\"Ping\":{}}}}");
    REFUSED("{\"Request\":{\"context\":" CONTEXT ",\"id\":0}}");
    TAKEN(IN_CONTEXT("{\"trace_context\":" TRACE "}"));
    REFUSED(IN_CONTEXT("{\"deadline\":{\"secs\":9,\"nanos\":5}}"));
    REFUSED(IN_CONTEXT(DEADLINE("{\"secs\":9}")));
    REFUSED(IN_CONTEXT(DEADLINE("{\"nanos\":5}")));
    REFUSED(IN_CONTEXT(DEADLINE("{}")));
    REFUSED(IN_TRACE("{\"span_id\":1,\"sampling_decision\":\"Sampled\"}"));
    REFUSED(IN_TRACE("{\"trace_id\":" Z16 ",\"sampling_decision\":\"Sampled\"}"));
    REFUSED(IN_TRACE("{\"trace_id\":" Z16 ",\"span_id\":1}"));
    REFUSED(SEND("{\"dest\":" DEST ",\"msg\":\"\"}"));
    REFUSED(SEND("{\"from_id\":0,\"msg\":\"\"}"));
    REFUSED(SEND("{\"from_id\":0,\"dest\":" DEST "}"));
    REFUSED(SEND("{\"from_id\":0,\"dest\":{\"id\":0},\"msg\":\"\"}"));
    REFUSED(SEND("{\"from_id\":0,\"dest\":{\"pubkey_hash\":\"ab\"},\"msg\":\"\"}"));
    REFUSED(CALL("{\"Get\":{}}"));
    REFUSED(CALL("{\"Ack\":{\"dest_id\":0}}"));
    REFUSED(CALL("{\"Ack\":{\"uid\":0}}"));
    REFUSED("{\"Cancel\":{}}");
    TAKEN("{\"Cancel\":{\"request_id\":0}}");
    REFUSED("{\"Cancel\":{\"request_id\":0,\"trace_context\":null}}");
    REFUSED("{\"Cancel\":{\"request_id\":0,\"trace_context\":{}}}");
    REFUSED("{\"Request\":{\"id\":0,\"context\":" CONTEXT ",\"id\":0,\"message\":{\"Ping\":{}}}}");
    REFUSED(SEND("{\"from_id\":0,\"dest\":" DEST ",\"msg\":\"a\",\"msg\":\"a\"}"));
    REFUSED(IN_CONTEXT(DEADLINE("{\"secs\":9,\"secs\":9,\"nanos\":5}")));
    REFUSED(IN_TRACE("{\"span_id\":1,\"trace_id\":" Z16
                     ",\"span_id\":1,\"sampling_decision\":\"Sampled\"}"));
    REFUSED("{\"Request\":null}");
    REFUSED(IN_CONTEXT("null"));
    REFUSED(IN_TRACE("null"));
    REFUSED(IN_CONTEXT(DEADLINE("null")));
    REFUSED(SEND("{\"from_id\":null,\"dest\":" DEST ",\"msg\":\"\"}"));
    REFUSED(SEND("{\"from_id\":0,\"dest\":null,\"msg\":\"\"}"));
    REFUSED(SEND("{\"from_id\":0,\"dest\":" DEST ",\"msg\":null}"));
}

TEST(numbers_are_whole_not_negative_and_in_range) {
    TAKEN(WITH_ID("0"));
    TAKEN(WITH_ID("18446744073709551615"));
    REFUSED(WITH_ID("18446744073709551616"));
    REFUSED(WITH_ID("-1"));
    REFUSED(WITH_ID("-0"));
    REFUSED(WITH_ID("1.0"));
    REFUSED(WITH_ID("1e0"));
    REFUSED(WITH_ID("\"1\""));
    REFUSED(WITH_ID("null"));
    REFUSED(WITH_ID("true"));
    REFUSED(WITH_ID("01"));
    REFUSED(WITH_ID("[0]"));
    TAKEN(SEND("{\"from_id\":255,\"dest\":{\"pubkey_hash\":\"ab\",\"id\":255},\"msg\":\"\"}"));
    REFUSED(SEND("{\"from_id\":256,\"dest\":" DEST ",\"msg\":\"\"}"));
    REFUSED(SEND("{\"from_id\":-1,\"dest\":" DEST ",\"msg\":\"\"}"));
    REFUSED(SEND("{\"from_id\":0,\"dest\":{\"pubkey_hash\":\"ab\",\"id\":256},\"msg\":\"\"}"));
    REFUSED(SEND("{\"from_id\":0,\"dest\":\"ab:0\",\"msg\":\"\"}"));
    REFUSED(SEND("{\"from_id\":0,\"dest\":" DEST ",\"msg\":1}"));
    REFUSED(SEND("{\"from_id\":0,\"dest\":" DEST ",\"msg\":[1,2]}"));
    REFUSED(SEND("{\"from_id\":0,\"dest\":{\"pubkey_hash\":1,\"id\":0},\"msg\":\"\"}"));
    TAKEN(CALL("{\"Get\":{\"dest_id\":255}}"));
    REFUSED(CALL("{\"Get\":{\"dest_id\":256}}"));
    TAKEN(CALL("{\"Ack\":{\"dest_id\":0,\"uid\":18446744073709551615}}"));
    REFUSED(CALL("{\"Ack\":{\"dest_id\":0,\"uid\":-1}}"));
    REFUSED("{\"Cancel\":{\"request_id\":-1}}");
    TAKEN(IN_TRACE(
        "{\"trace_id\":[255,0,0,0,0,0,0,0,0,0,0,0,0,0,0,1],\"span_id\":18446744073709551615,"
        "\"sampling_decision\":\"Sampled\"}"));
    REFUSED(
        IN_TRACE("{\"trace_id\":[256,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0],\"span_id\":1,"
                 "\"sampling_decision\":\"Sampled\"}"));
    REFUSED(
        IN_TRACE("{\"trace_id\":[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0],\"span_id\":1,"
                 "\"sampling_decision\":\"Sampled\"}"));
    REFUSED(
        IN_TRACE("{\"trace_id\":[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0],\"span_id\":1,"
                 "\"sampling_decision\":\"Sampled\"}"));
    REFUSED(IN_TRACE("{\"trace_id\":0,\"span_id\":1,\"sampling_decision\":\"Sampled\"}"));
    REFUSED(IN_TRACE("{\"trace_id\":{},\"span_id\":1,\"sampling_decision\":\"Sampled\"}"));
    REFUSED(IN_TRACE("{\"trace_id\":" Z16 ",\"span_id\":-1,\"sampling_decision\":\"Sampled\"}"));
}

TEST(structs_may_be_arrays_of_all_their_fields_in_order) {
#define ARRAY_CONTEXT "[[9,5],[" Z16 ",1,\"Unsampled\"]]"
    TAKEN("{\"Request\":[" ARRAY_CONTEXT ",7,{\"Ping\":[]}]}");
    TAKEN("{\"Request\":[" ARRAY_CONTEXT ",7,{\"Send\":[1,[\"ab\",2],\"text\"]}]}");
    TAKEN("{\"Request\":[" ARRAY_CONTEXT ",7,{\"Get\":[3]}]}");
    TAKEN("{\"Request\":[" ARRAY_CONTEXT ",7,{\"Ack\":[3,4]}]}");
    TAKEN("{\"Cancel\":[[" Z16 ",1,\"Unsampled\"],7]}");
    REFUSED("{\"Request\":[" ARRAY_CONTEXT ",7]}");
    REFUSED("{\"Request\":[" ARRAY_CONTEXT ",7,{\"Ping\":[]},1]}");
    REFUSED("{\"Request\":[[[9],[" Z16 ",1,\"Unsampled\"]],7,{\"Ping\":[]}]}");
    REFUSED("{\"Request\":[[[9,5,1],[" Z16 ",1,\"Unsampled\"]],7,{\"Ping\":[]}]}");
    REFUSED("{\"Request\":[[[" Z16 ",1,\"Unsampled\"]],7,{\"Ping\":[]}]}");
    REFUSED("{\"Request\":[" ARRAY_CONTEXT ",7,{\"Send\":[1,[\"ab\"],\"text\"]}]}");
    REFUSED("{\"Request\":[" ARRAY_CONTEXT ",7,{\"Send\":[1,[\"ab\",2]]}]}");
    REFUSED("{\"Request\":[" ARRAY_CONTEXT ",7,{\"Ack\":[3]}]}");
    REFUSED("{\"Cancel\":[7]}");
    REFUSED("{\"Request\":[]}");
}

TEST(fields_come_in_any_order_with_any_white_space_and_escaped_names) {
    TAKEN(
        "{\"Request\":{\"message\":{\"Send\":{\"msg\":\"m\",\"dest\":{\"id\":0,\"pubkey_hash\":"
        "\"ab\"},"
        "\"from_id\":0}},\"id\":0,\"context\":{\"trace_context\":" TRACE
        ",\"deadline\":{\"nanos\":5,\"secs\":9}}}}");
    TAKEN(" \t\r\n{ \"Cancel\" :\n{ \"request_id\" : 0 } } \n");
    TAKEN("{\"Cancel\":{\"request\\u005fid\":0}}");
    TAKEN("{\"\\u0043ancel\":{\"request_id\":0}}");
    REFUSED("\xef\xbb\xbf{\"Cancel\":{\"request_id\":0}}");
    REFUSED("{\"Cancel\":{\"request_id\":0}}x");
    REFUSED("{\"Cancel\":{\"request_id\":0}}{}");
    REFUSED("{\"Cancel\":{\"request_id\":0}}\f");
    REFUSED("not json");
    REFUSED("");
    REFUSED("   ");
}

TEST(ignored_values_may_nest_deeply) {
    char doc[2400];
    static const unsigned depth[] = {200, 510};
    size_t i;
    for (i = 0; i < 2; i++) {
        char *p = doc + sprintf(doc, "{\"Cancel\":{\"request_id\":0,\"x\":");
        memset(p, '[', depth[i]);
        memset(p + depth[i], ']', depth[i]);
        strcpy(p + 2 * depth[i], "}}");
        TAKEN(doc);
    }
    {
        char *p = doc + sprintf(doc, "{\"Cancel\":{\"request_id\":0,\"x\":");
        memset(p, '[', 511);
        memset(p + 511, ']', 511);
        strcpy(p + 1022, "}}");
        REFUSED(doc);
    }
}

static uint64_t deadline_of(const char *doc) {
    opc__request r;
    static msg_sink s;
    memset(&r, 0, sizeof r);
    CHECK_EQ(parse(doc, strlen(doc), 7, &r, &s), OPCOMMS_OK);
    return r.deadline_ms;
}

TEST(any_deadline_is_taken_carried_and_clamped) {
    CHECK_EQ(deadline_of(IN_CONTEXT(CONTEXT)), 9000);
    CHECK_EQ(deadline_of(IN_CONTEXT(DEADLINE("{\"secs\":9,\"nanos\":999647663}"))), 9999);
    CHECK_EQ(deadline_of(IN_CONTEXT("{\"trace_context\":" TRACE "}")), 10000);
    CHECK_EQ(deadline_of(IN_CONTEXT(DEADLINE("{\"secs\":0,\"nanos\":0}"))), 0);
    CHECK_EQ(deadline_of(IN_CONTEXT(DEADLINE("{\"secs\":1,\"nanos\":1000000000}"))), 2000);
    CHECK_EQ(deadline_of(IN_CONTEXT(DEADLINE("{\"secs\":0,\"nanos\":4294967295}"))), 4294);
    CHECK_EQ(deadline_of(IN_CONTEXT(DEADLINE("[3,0]"))), 3000);
    CHECK_EQ(deadline_of(IN_CONTEXT(DEADLINE("{\"secs\":66225600,\"nanos\":0}"))), 66225600000);
    CHECK_EQ(deadline_of(IN_CONTEXT(DEADLINE("{\"secs\":94608000,\"nanos\":0}"))), 94608000000);
    CHECK(deadline_of(IN_CONTEXT(DEADLINE("{\"secs\":9223372036854775807,\"nanos\":0}"))) ==
          OPC__DEADLINE_MAX);
    CHECK(deadline_of(IN_CONTEXT(DEADLINE(
              "{\"secs\":18446744073709551615,\"nanos\":4294967295}"))) == OPC__DEADLINE_MAX);
    REFUSED(IN_CONTEXT(DEADLINE("{\"secs\":18446744073709551616,\"nanos\":0}")));
    REFUSED(IN_CONTEXT(DEADLINE("{\"secs\":1,\"nanos\":4294967296}")));
    REFUSED(IN_CONTEXT(DEADLINE("{\"secs\":-1,\"nanos\":0}")));
    REFUSED(IN_CONTEXT(DEADLINE("{\"secs\":1.5,\"nanos\":0}")));
    REFUSED(IN_CONTEXT(DEADLINE("9.5")));
    REFUSED(IN_CONTEXT(DEADLINE("9")));
    REFUSED(IN_CONTEXT(DEADLINE("\"9s\"")));
}

static void message_is(const char *doc, const char *want, size_t len) {
    opc__request r;
    static msg_sink s;
    size_t step;
    for (step = 1; step <= strlen(doc); step = step * 2 + 1) {
        CHECK_EQ(parse(doc, strlen(doc), step, &r, &s), OPCOMMS_OK);
        CHECK(s.len == len && memcmp(s.text, want, len) == 0);
        CHECK_EQ(r.msg_bytes, len);
        CHECK_EQ(r.kind, OPC__REQ_SEND);
    }
}

TEST(strings_are_decoded_strictly) {
    message_is(MSG(""), "", 0);
    message_is(MSG("plain"), "plain", 5);
    message_is(MSG("\\\"\\\\\\/\\b\\f\\n\\r\\t"), "\"\\/\b\f\n\r\t", 8);
    message_is(MSG("a\\u0000b"), "a\0b", 3);
    message_is(MSG("\\u0041\\u00e9\\u00E9\\u20ac\\uFFFF"),
               "A\xc3\xa9\xc3\xa9\xe2\x82\xac\xef\xbf\xbf", 11);
    message_is(MSG("\\ud83d\\ude00\\uD800\\uDC00\\udbff\\udfff"),
               "\xf0\x9f\x98\x80\xf0\x90\x80\x80\xf4\x8f\xbf\xbf", 12);
    message_is(MSG("\x7f/\xc2\x80\xe2\x80\xa8\xf4\x8f\xbf\xbf"),
               "\x7f/\xc2\x80\xe2\x80\xa8\xf4\x8f\xbf\xbf", 11);
    REFUSED(MSG("\\ud83d"));
    REFUSED(MSG("\\ud83d\\ud83d"));
    REFUSED(MSG("\\ud83d\\u0041"));
    REFUSED(MSG("\\ud83dx"));
    REFUSED(MSG("\\ud83d\\n"));
    REFUSED(MSG("\\ude00"));
    REFUSED(MSG("\\ude00\\ud83d"));
    REFUSED(MSG("\\u12"));
    REFUSED(MSG("\\u 123"));
    REFUSED(MSG("\\U0041"));
    REFUSED(MSG("\\x41"));
    REFUSED(MSG("\\'"));
    REFUSED(MSG("\x01"));
    REFUSED(MSG("\n"));
    REFUSED(MSG("\x1f"));
    REFUSED(MSG("\x80"));
    REFUSED(MSG("\xc0\xaf"));
    REFUSED(MSG("\xc1\xbf"));
    REFUSED(MSG("\xe0\x9f\xbf"));
    REFUSED(MSG("\xed\xa0\x80"));
    REFUSED(MSG("\xf0\x8f\xbf\xbf"));
    REFUSED(MSG("\xf4\x90\x80\x80"));
    REFUSED(MSG("\xf5\x80\x80\x80"));
    REFUSED(MSG("\xff"));
    REFUSED(MSG("\xc3"));
    REFUSED(MSG("\xe2\x82"));
}

TEST(the_destination_is_any_text_and_a_long_one_is_marked_as_cut) {
    static char doc[8000], longest[2048];
    opc__request r;
    static msg_sink s;
    size_t k;
    static const size_t lengths[] = {0, 1, 64, 1000, 1024, 1025, 2000};
    memset(longest, 'h', sizeof longest);
    for (k = 0; k < sizeof lengths / sizeof lengths[0]; k++) {
        sprintf(doc,
                SEND("{\"from_id\":9,\"dest\":{\"pubkey_hash\":\"%.*s\",\"id\":8},\"msg\":\"m\"}"),
                (int)lengths[k], longest);
        CHECK_EQ(parse(doc, strlen(doc), 100, &r, &s), OPCOMMS_OK);
        CHECK_EQ(r.dest_len, lengths[k] < OPC__DEST_MAX ? lengths[k] : OPC__DEST_MAX);
        CHECK_EQ(r.dest_cut, lengths[k] > OPC__DEST_MAX);
        CHECK_EQ(r.from_id, 9);
        CHECK_EQ(r.dest_id, 8);
    }
    sprintf(
        doc, "%s",
        SEND("{\"from_id\":0,\"dest\":{\"pubkey_hash\":\"a_\\u0000\\\"\",\"id\":0},\"msg\":\"\"}"));
    CHECK_EQ(parse(doc, strlen(doc), 3, &r, &s), OPCOMMS_OK);
    CHECK(r.dest_len == 4 && memcmp(r.dest, "a_\0\"", 4) == 0);
}

TEST(a_request_cut_off_anywhere_is_refused) {
    static const char *docs[] = {MSG("te\\u00e9xt"), CALL("{\"Ack\":{\"dest_id\":1,\"uid\":22}}"),
                                 "{\"Cancel\":{\"request_id\":0}}"};
    size_t i, n;
    for (i = 0; i < 3; i++) {
        for (n = 0; n < strlen(docs[i]); n++) {
            opc__request r;
            static msg_sink s;
            CHECK_EQ(parse(docs[i], n, 64, &r, &s), OPCOMMS_E_PROTOCOL);
        }
    }
}

TEST(a_sink_that_fails_ends_the_parse_with_its_error) {
    static opc__request_parser q;
    static msg_sink s;
    const char *doc = MSG("text");
    memset(&s, 0, sizeof s);
    s.fail = OPCOMMS_E_FULL;
    opc__request_begin(&q, sink_take, &s);
    CHECK_EQ(opc__request_feed(&q, (const uint8_t *)doc, strlen(doc)), OPCOMMS_E_FULL);
    CHECK_EQ(opc__request_feed(&q, (const uint8_t *)" ", 1), OPCOMMS_E_FULL);
}

/* ---- golden frames: what we write is what the reference writes ---- */

typedef struct bytes {
    uint8_t *p;
    size_t n;
} bytes;

static bytes load(const char *path) {
    bytes b;
    FILE *f = fopen(path, "rb");
    b.p = (uint8_t *)malloc(1 << 20);
    b.n = 0;
    CHECK(f != NULL);
    if (f != NULL) {
        b.n = fread(b.p, 1, 1 << 20, f);
        fclose(f);
    }
    return b;
}

/* The next frame of a stream; 0 at the end. A cut one counts as the end. */
static int next_frame(const bytes *b, size_t *at, const uint8_t **p, size_t *n) {
    if (b->n - *at < 4) return 0;
    *n = opc__buf_be32(b->p + *at);
    if (*n > b->n - *at - 4) return 0;
    *p = b->p + *at + 4;
    *at += 4 + *n;
    return 1;
}

static uint64_t number_behind(const uint8_t *p, size_t n, const char *word) {
    size_t i, m = strlen(word);
    for (i = 0; i + m < n; i++) {
        if (memcmp(p + i, word, m) == 0) return strtoull((const char *)p + i + m, NULL, 10);
    }
    return UINT64_MAX;
}

/* The captured frame with its nanoseconds rounded down to ours, which are whole microseconds. */
static size_t round_nanos(const uint8_t *p, size_t n, char *out) {
    static const char word[] = "\"nanos\":";
    size_t i, m = strlen(word);
    for (i = 0; i + m < n; i++) {
        if (memcmp(p + i, word, m) == 0) {
            size_t k = i + m, len;
            while (k < n && p[k] >= '0' && p[k] <= '9') k++;
            memcpy(out, p, i + m);
            len = i + m +
                  (size_t)sprintf(out + i + m, "%llu",
                                  (unsigned long long)(number_behind(p, n, word) / 1000 * 1000));
            memcpy(out + len, p + k, n - k);
            return len + n - k;
        }
    }
    memcpy(out, p, n);
    return n;
}

static size_t write_text(uint8_t *out, size_t at, size_t cap, const char *p, size_t n, int mode) {
    opc__render r;
    size_t used = 0, put = 0;
    opc__render_init(&r, mode);
    opc__render_feed(&r, (const uint8_t *)p, n, &used, out + at, cap - at, &put);
    CHECK_EQ(used, n);
    at += put;
    CHECK(opc__render_finish(&r, out + at, cap - at, &put));
    return at + put;
}

/* The request of a captured frame, written by us; 0 when it is none we could write. */
static size_t write_again(const opc__request *r, const msg_sink *s, const uint8_t *p, size_t n,
                          uint8_t *out, size_t cap) {
    uint64_t span = number_behind(p, n, "\"span_id\":");
    uint64_t us =
        number_behind(p, n, "\"secs\":") * 1000000u + number_behind(p, n, "\"nanos\":") / 1000u;
    size_t len;
    switch (r->kind) {
        case OPC__REQ_PING:
            return opc__tarpc_ping(out, cap, r->id, us, span);
        case OPC__REQ_GET:
            return opc__tarpc_get(out, cap, r->id, us, span, r->dest_id);
        case OPC__REQ_ACK:
            return opc__tarpc_ack(out, cap, r->id, us, span, r->dest_id, r->uid);
        case OPC__REQ_CANCEL:
            return opc__tarpc_cancel(out, cap, r->id, span);
        default:
            break;
    }
    len = opc__tarpc_send_head(out, cap, r->id, us, span, r->from_id, r->dest, r->dest_len,
                               r->dest_id);
    if (s->len > 0 && s->text[0] == '[') { /* a byte array: from its bytes, as opcomms_send does */
        opc__bytes_in b;
        static uint8_t raw[4096];
        size_t made = 0;
        opc__bytes_in_init(&b);
        CHECK_EQ(opc__bytes_in_feed(&b, (const uint8_t *)s->text, s->len, raw, &made), s->len);
        CHECK(opc__bytes_in_done(&b));
        len = write_text(out, len, cap, (char *)raw, made, OPC__RENDER_BYTES);
    } else {
        len = write_text(out, len, cap, s->text, s->len, OPC__RENDER_TEXT);
    }
    memcpy(out + len, OPC__TARPC_SEND_TAIL, strlen(OPC__TARPC_SEND_TAIL));
    return len + strlen(OPC__TARPC_SEND_TAIL);
}

TEST(our_requests_are_byte_for_byte_those_of_the_reference_s_client) {
    DIR *dir = opendir(TEST_DATA "/wire/client");
    struct dirent *e;
    int kinds[6] = {0, 0, 0, 0, 0, 0};
    CHECK(dir != NULL);
    while (dir != NULL && (e = readdir(dir)) != NULL) {
        char path[512];
        bytes b;
        size_t at = 0, n = 0;
        const uint8_t *p = NULL;
        if (strstr(e->d_name, ".c2s.bin") == NULL) continue;
        snprintf(path, sizeof path, TEST_DATA "/wire/client/%s", e->d_name);
        b = load(path);
        while (next_frame(&b, &at, &p, &n)) {
            static char want[8192];
            static uint8_t out[8192];
            static msg_sink s;
            opc__request r;
            size_t want_len = round_nanos(p, n, want), len;
            CHECK_EQ(parse((const char *)p, n, n, &r, &s), OPCOMMS_OK);
            len = write_again(&r, &s, p, n, out, sizeof out);
            if (len != want_len || memcmp(out, want, len) != 0) {
                test_bad++;
                printf("%s: wrote %.*s\n", e->d_name, (int)len, (char *)out);
            }
            kinds[r.kind]++;
        }
        CHECK_EQ(at, b.n); /* whole frames only: the length in front is right too */
        free(b.p);
    }
    if (dir != NULL) closedir(dir);
    CHECK(kinds[OPC__REQ_SEND] > 10);
    CHECK(kinds[OPC__REQ_PING] > 2);
    CHECK(kinds[OPC__REQ_GET] > 1);
    CHECK(kinds[OPC__REQ_ACK] > 1);
    CHECK(kinds[OPC__REQ_CANCEL] > 0);
}

static opcomms_err parse_answer(const uint8_t *p, size_t n, size_t step, opc__response *out,
                                msg_sink *s) {
    static opc__response_parser q;
    const opc__response *r = NULL;
    opcomms_err rc = OPCOMMS_OK;
    size_t at;
    memset(s, 0, sizeof *s);
    opc__response_begin(&q, sink_take, s);
    for (at = 0; at < n && rc == OPCOMMS_OK; at += step) {
        size_t some = n - at < step ? n - at : step;
        uint8_t *chunk = (uint8_t *)malloc(some);
        memcpy(chunk, p + at, some);
        rc = opc__response_feed(&q, chunk, some);
        free(chunk);
    }
    if (rc == OPCOMMS_OK) rc = opc__response_end(&q, &r);
    if (rc == OPCOMMS_OK) *out = *r;
    return rc;
}

static size_t answer_again(const opc__response *r, const msg_sink *s, uint8_t *out, size_t cap) {
    char variant[400];
    size_t len;
    switch (r->kind) {
        case OPC__RES_SEND:
            return opc__tarpc_reply_send(out, cap, r->request_id, r->flag);
        case OPC__RES_ACK:
            return opc__tarpc_reply_ack(out, cap, r->request_id, r->flag);
        case OPC__RES_PING:
            return opc__tarpc_reply_ping(out, cap, r->request_id, r->flag, 0);
        case OPC__RES_SERVER_ERROR:
            return opc__tarpc_reply_server_error(out, cap, r->request_id, r->server_kind,
                                                 r->detail);
        case OPC__RES_ERROR:
            snprintf(variant, sizeof variant,
                     r->error == OPC__RERR_RATE ? "\"RateLimitExceeded\"" : "{\"%s\":\"%s\"}",
                     r->error == OPC__RERR_MUTEX ? "MutexError" : "ParseError", r->detail);
            return opc__tarpc_reply_error(out, cap, r->request_id, r->call, variant);
        default:
            break;
    }
    if (!r->flag) return opc__tarpc_reply_get_null(out, cap, r->request_id);
    len = opc__tarpc_reply_get_head(out, cap, r->request_id, r->uid, r->from, r->from_len,
                                    r->from_id);
    len = write_text(out, len, cap, s->text, s->len, OPC__RENDER_TEXT);
    memcpy(out + len, OPC__TARPC_GET_TAIL, strlen(OPC__TARPC_GET_TAIL));
    return len + strlen(OPC__TARPC_GET_TAIL);
}

TEST(our_answers_are_byte_for_byte_those_of_the_reference_s_server) {
    DIR *dir = opendir(TEST_DATA "/wire/server");
    struct dirent *e;
    int kinds[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    CHECK(dir != NULL);
    while (dir != NULL && (e = readdir(dir)) != NULL) {
        char path[512];
        bytes b;
        size_t at = 0, n = 0;
        const uint8_t *p = NULL;
        if (strstr(e->d_name, ".s2c.bin") == NULL) continue;
        snprintf(path, sizeof path, TEST_DATA "/wire/server/%s", e->d_name);
        b = load(path);
        while (next_frame(&b, &at, &p, &n)) {
            static uint8_t out[8192];
            static msg_sink s;
            opc__response r;
            size_t step, len;
            for (step = 1; step < n + 8; step += 7) {
                CHECK_EQ(parse_answer(p, n, step, &r, &s), OPCOMMS_OK);
                len = answer_again(&r, &s, out, sizeof out);
                if (len != n || memcmp(out, p, len) != 0) {
                    test_bad++;
                    printf("%s: wrote %.*s\n", e->d_name, (int)len, (char *)out);
                }
            }
            kinds[r.kind] += r.kind == OPC__RES_GET ? 1 + r.flag : 1;
        }
        CHECK_EQ(at, b.n);
        free(b.p);
    }
    if (dir != NULL) closedir(dir);
    CHECK(kinds[OPC__RES_SEND] > 10);
    CHECK(kinds[OPC__RES_PING] > 10);
    CHECK(kinds[OPC__RES_ACK] > 2);
    CHECK(kinds[OPC__RES_GET] > 5);
}

TEST(a_writer_without_room_writes_nothing_it_would_have_to_take_back) {
    uint8_t out[512];
    size_t cap, full[12], k;
    memset(full, 0, sizeof full);
    for (cap = 0; cap <= sizeof out; cap++) {
        size_t n[12];
        const uint8_t *h = (const uint8_t *)"a\"b";
        n[0] = opc__tarpc_ping(out, cap, 1, 9999999, 2);
        n[1] = opc__tarpc_get(out, cap, 1, 9999999, 2, 3);
        n[2] = opc__tarpc_ack(out, cap, 1, 9999999, 2, 3, 4);
        n[3] = opc__tarpc_cancel(out, cap, 1, 2);
        n[4] = opc__tarpc_send_head(out, cap, 1, 9999999, 2, 3, h, 3, 4);
        n[5] = opc__tarpc_reply_send(out, cap, 1, 1);
        n[6] = opc__tarpc_reply_ack(out, cap, 1, 0);
        n[7] = opc__tarpc_reply_ping(out, cap, 1, 1, 0);
        n[8] = opc__tarpc_reply_get_null(out, cap, 1);
        n[9] = opc__tarpc_reply_get_head(out, cap, 1, 2, h, 3, 4);
        n[10] = opc__tarpc_reply_error(out, cap, 1, OPC__RES_SEND, "{\"MutexError\":\"storage\"}");
        n[11] = opc__tarpc_reply_server_error(out, cap, 1, 16, "de\ntail");
        for (k = 0; k < 12; k++) {
            if (full[k] == 0 && n[k] > 0) {
                full[k] = n[k];
                CHECK_EQ(n[k], cap); /* exactly when it fits */
            }
            CHECK_EQ(n[k], cap < full[k] || full[k] == 0 ? 0 : full[k]);
        }
    }
    for (k = 0; k < 12; k++) CHECK(full[k] > 0);
}

/* ---- the client's side: PROTOCOL 6.2 ---- */

static int takes_answer(const char *doc, opc__response *r) {
    static msg_sink s;
    size_t step;
    opcomms_err rc = parse_answer((const uint8_t *)doc, strlen(doc), strlen(doc) + 1, r, &s);
    for (step = 1; step < 4; step++) {
        opc__response again;
        CHECK_EQ(parse_answer((const uint8_t *)doc, strlen(doc), step, &again, &s), rc);
    }
    if (rc != OPCOMMS_OK) CHECK_EQ(rc, OPCOMMS_E_PROTOCOL);
    return rc == OPCOMMS_OK;
}

#define OK_(r) "{\"request_id\":5,\"message\":{\"Ok\":" r "}}"

TEST(answers_are_read_by_the_same_rules) {
    opc__response r;
    CHECK(takes_answer(OK_("{\"Send\":{\"Ok\":true}}"), &r));
    CHECK(r.kind == OPC__RES_SEND && r.flag == 1 && r.request_id == 5);
    CHECK(takes_answer("{\"message\":{\"Ok\":{\"Send\":{\"Ok\":false}}},\"x\":1,\"request_id\":5}",
                       &r));
    CHECK(r.kind == OPC__RES_SEND && r.flag == 0);
    CHECK(takes_answer("[5,{\"Ok\":{\"Ack\":{\"Ok\":true}}}]", &r));
    CHECK(r.kind == OPC__RES_ACK && r.flag == 1);
    CHECK(takes_answer(OK_("{\"Get\":{\"Ok\":null}}"), &r));
    CHECK(r.kind == OPC__RES_GET && r.flag == 0);
    CHECK(takes_answer(OK_("{\"Get\":{\"Ok\":{\"uid\":2,\"from\":{\"pubkey_hash\":\"ab\",\"id\":7},"
                           "\"msg\":\"m\"}}}"),
                       &r));
    CHECK(r.kind == OPC__RES_GET && r.flag == 1 && r.uid == 2 && r.from_id == 7 &&
          r.msg_bytes == 1);
    CHECK(r.from_len == 2 && memcmp(r.from, "ab", 2) == 0);
    CHECK(takes_answer(OK_("{\"Ping\":true}"), &r));
    CHECK(r.kind == OPC__RES_PING && r.flag == 1);
    CHECK(takes_answer(OK_("{\"Send\":{\"Err\":{\"ParseError\":\"bad\\u0007\\nuid\"}}}"), &r));
    CHECK(r.kind == OPC__RES_ERROR && r.call == OPC__RES_SEND && r.error == OPC__RERR_PARSE);
    CHECK_STR(r.detail, "bad??uid"); /* a peer's text goes to logs: no control characters */
    CHECK(takes_answer(OK_("{\"Get\":{\"Err\":{\"MutexError\":\"storage\"}}}"), &r));
    CHECK(r.kind == OPC__RES_ERROR && r.call == OPC__RES_GET && r.error == OPC__RERR_MUTEX);
    CHECK(!takes_answer("{\"message\":{\"Ok\":{\"Ping\":true}}}", &r));
    CHECK(!takes_answer("{\"request_id\":5}", &r));
    CHECK(!takes_answer("{\"request_id\":-5,\"message\":{\"Ok\":{\"Ping\":true}}}", &r));
    CHECK(!takes_answer(OK_("{\"Ping\":null}"), &r));
    CHECK(!takes_answer(OK_("{\"Ping\":1}"), &r));
    CHECK(!takes_answer(OK_("{\"Send\":true}"), &r));
    CHECK(!takes_answer(OK_("{\"Send\":{\"Ok\":null}}"), &r));
    CHECK(!takes_answer(OK_("{\"Send\":{}}"), &r));
    CHECK(!takes_answer(OK_("{\"Send\":{\"Err\":{\"Unheard\":\"x\"}}}"), &r));
    CHECK(!takes_answer(OK_("{\"Send\":{\"Err\":\"MutexError\"}}"), &r));
    CHECK(
        !takes_answer(OK_("{\"Send\":{\"Err\":{\"MutexError\":\"a\",\"ParseError\":\"b\"}}}"), &r));
    CHECK(!takes_answer(OK_("{\"Get\":{\"Ok\":{\"uid\":2,\"msg\":\"m\"}}}"), &r));
    CHECK(!takes_answer(OK_("{\"Get\":{\"Ok\":true}}"), &r));
    CHECK(!takes_answer(OK_("{\"Send\":{\"Ok\":true}}") "x", &r));
    CHECK(!takes_answer("{\"request_id\":5,\"message\":{\"Okay\":{\"Ping\":true}}}", &r));
    CHECK(!takes_answer("{\"request_id\":5,\"message\":{}}", &r));
    CHECK(!takes_answer("garbage", &r));
}

TEST(every_kind_of_server_error_is_read_and_unknown_ones_are_other) {
    unsigned kind;
    for (kind = 0; kind < 40; kind++) {
        char doc[128];
        opc__response r;
        sprintf(doc, "{\"request_id\":5,\"message\":{\"Err\":{\"kind\":%u,\"detail\":\"text\"}}}",
                kind);
        CHECK(takes_answer(doc, &r));
        CHECK_EQ(r.kind, OPC__RES_SERVER_ERROR);
        CHECK_EQ(r.server_kind, kind <= 17 ? kind : 16);
        CHECK_STR(r.detail, "text");
    }
    {
        opc__response r;
        CHECK(takes_answer(
            "{\"request_id\":5,\"message\":{\"Err\":{\"kind\":4294967295,\"detail\":\"\"}}}", &r));
        CHECK_EQ(r.server_kind, 16);
        CHECK(!takes_answer(
            "{\"request_id\":5,\"message\":{\"Err\":{\"kind\":4294967296,\"detail\":\"\"}}}", &r));
        CHECK(!takes_answer("{\"request_id\":5,\"message\":{\"Err\":{\"kind\":1}}}", &r));
    }
}

TEST(a_long_error_text_is_cut_between_characters) {
    char doc[1200], *p = doc;
    opc__response r;
    int i;
    p += sprintf(p, "{\"request_id\":5,\"message\":{\"Err\":{\"kind\":1,\"detail\":\"");
    for (i = 0; i < 200; i++) p += sprintf(p, "\xe2\x82\xac");
    sprintf(p, "\"}}}");
    CHECK(takes_answer(doc, &r));
    CHECK_EQ(strlen(r.detail), 159); /* 53 whole ones */
    CHECK(opc__str_utf8_valid((const uint8_t *)r.detail, strlen(r.detail)));
    memmove(strstr(doc, "\xe2"), "x", 1);
    memmove(strchr(doc, 'x') + 1, strchr(doc, 'x') + 3, strlen(strchr(doc, 'x') + 3) + 1);
    CHECK(takes_answer(doc, &r));
    CHECK_EQ(strlen(r.detail), 157);
    CHECK(opc__str_utf8_valid((const uint8_t *)r.detail, strlen(r.detail)));
}

/* What becomes of one captured exchange: the calls in flight are those of the captured requests
   that our client makes too, Send and Ping; the answers arrive on one connection. */
static opcomms_err replay(const char *name, opc__call *calls, size_t max, size_t *count) {
    static opc__conn c;
    char path[256];
    bytes req, ans;
    size_t at = 0, n = 0;
    const uint8_t *p = NULL;
    opcomms_err rc = OPCOMMS_OK;
    static msg_sink s;
    opc__conn_init(&c, 0, NULL, OPCOMMS_MAX_FRAME, NULL, NULL);
    snprintf(path, sizeof path, TEST_DATA "/wire/client/%s.c2s.bin", name);
    req = load(path);
    snprintf(path, sizeof path, TEST_DATA "/wire/client/%s.s2c.bin", name);
    ans = load(path);
    *count = 0;
    while (next_frame(&req, &at, &p, &n) && *count < max) {
        opc__request r;
        opc__call *call = &calls[*count], **end = &c.waiting;
        CHECK_EQ(parse((const char *)p, n, n, &r, &s), OPCOMMS_OK);
        memset(call, 0, sizeof *call);
        call->kind = r.kind;
        call->id = r.id;
        while (*end != NULL) end = &(*end)->next;
        *end = call;
        ++*count;
    }
    at = 0;
    while (rc == OPCOMMS_OK && next_frame(&ans, &at, &p, &n)) {
        opc__response r;
        rc = parse_answer(p, n, 11, &r, &s);
        if (rc == OPCOMMS_OK) rc = opc__conn_answer(&c, &r);
    }
    free(req.p);
    free(ans.p);
    return rc;
}

TEST(every_captured_answer_of_a_server_gets_the_reference_client_s_verdict) {
    static const struct {
        const char *name;
        opcomms_err fatal;  /* the connection ends */
        int done;           /* calls answered; the others wait on */
        opcomms_err result; /* of the first call, when answered */
        const char *text;   /* in its detail */
    } t[] = {
        {"01_send_ok", OPCOMMS_OK, 1, OPCOMMS_OK, NULL},
        {"02_send_3_persistent", OPCOMMS_OK, 5, OPCOMMS_OK, NULL},
        {"03_send_ids", OPCOMMS_OK, 1, OPCOMMS_OK, NULL},
        {"08_ping", OPCOMMS_OK, 1, OPCOMMS_OK, NULL},
        {"09_send_false", OPCOMMS_OK, 1, OPCOMMS_E_ROUTE, NULL}, /* 14: not success */
        {"10_mutex_error", OPCOMMS_OK, 1, OPCOMMS_E_REMOTE, "Mutex poisoned: storage"},
        {"12_unknown_rpc_error", OPCOMMS_OK, 1, OPCOMMS_E_REMOTE, "rate limit"}, /* excepted */
        {"13_server_error", OPCOMMS_OK, 1, OPCOMMS_E_REMOTE, "server throttled the request"},
        {"15_unknown_request_id_first", OPCOMMS_OK, 1, OPCOMMS_OK, NULL},
        {"17_response_extra_fields", OPCOMMS_OK, 1, OPCOMMS_OK, NULL},
        {"19_response_wrong_variant", OPCOMMS_E_PROTOCOL, 0, OPCOMMS_OK, NULL}, /* excepted */
        {"21_response_missing_id", OPCOMMS_E_PROTOCOL, 0, OPCOMMS_OK, NULL},
        {"22_response_garbage", OPCOMMS_E_PROTOCOL, 0, OPCOMMS_OK, NULL},
        {"24_server_closes", OPCOMMS_OK, 0, OPCOMMS_OK, NULL},
        {"25_no_answer", OPCOMMS_OK, 0, OPCOMMS_OK, NULL},
        {"27_reconnect", OPCOMMS_OK, 2, OPCOMMS_OK, NULL},
        {"29_server_not_allowed", OPCOMMS_OK, 0, OPCOMMS_OK, NULL},
        {"30_server_other_ip", OPCOMMS_OK, 0, OPCOMMS_OK, NULL},
        {"31_send_bytes", OPCOMMS_OK, 1, OPCOMMS_OK, NULL},
        {"32_cancel", OPCOMMS_OK, 0, OPCOMMS_OK, NULL},
    };
    size_t i, k;
    for (i = 0; i < sizeof t / sizeof t[0]; i++) {
        static opc__call calls[16];
        size_t count = 0;
        int done = 0;
        opcomms_err rc = replay(t[i].name, calls, 16, &count);
        for (k = 0; k < count; k++) done += calls[k].done;
        if (rc != t[i].fatal || done != t[i].done) printf("%s:\n", t[i].name);
        CHECK_EQ(rc, t[i].fatal);
        CHECK_EQ(done, t[i].done);
        if (t[i].done > 0) CHECK_EQ(calls[0].result, t[i].result);
        if (t[i].text != NULL) CHECK(strstr(calls[0].detail.text, t[i].text) != NULL);
    }
}

/* The files above are all there are, but for the three whose calls our client does not make; those
   are read as answers. */
TEST(no_captured_answer_is_left_out) {
    DIR *dir = opendir(TEST_DATA "/wire/client");
    struct dirent *e;
    int count = 0;
    opc__response r;
    static msg_sink s;
    size_t at = 0, n = 0;
    const uint8_t *p = NULL;
    bytes b;
    CHECK(dir != NULL);
    while (dir != NULL && (e = readdir(dir)) != NULL)
        count += strstr(e->d_name, ".s2c.bin") != NULL;
    if (dir != NULL) closedir(dir);
    CHECK_EQ(count, 20 + 3);
    b = load(TEST_DATA "/wire/client/05_recv.s2c.bin");
    CHECK(next_frame(&b, &at, &p, &n));
    CHECK_EQ(parse_answer(p, n, 1, &r, &s), OPCOMMS_OK);
    CHECK(r.flag == 1 && r.uid == 7 && r.from_id == 3 && r.from_len == 3);
    CHECK(s.len == 5 && memcmp(s.text, "hi \xc3\xa9", 5) == 0);
    free(b.p);
    at = 0;
    b = load(TEST_DATA "/wire/client/06_recv_none.s2c.bin");
    CHECK(next_frame(&b, &at, &p, &n));
    CHECK_EQ(parse_answer(p, n, 1, &r, &s), OPCOMMS_OK);
    CHECK(r.kind == OPC__RES_GET && r.flag == 0);
    free(b.p);
    at = 0;
    b = load(TEST_DATA "/wire/client/07_ack_false.s2c.bin");
    CHECK(next_frame(&b, &at, &p, &n));
    CHECK_EQ(parse_answer(p, n, 1, &r, &s), OPCOMMS_OK);
    CHECK(r.kind == OPC__RES_ACK && r.flag == 0);
    free(b.p);
}

TEST(late_second_and_foreign_answers_are_ignored) {
    static opc__conn c;
    opc__call call;
    opc__response r;
    memset(&call, 0, sizeof call);
    memset(&r, 0, sizeof r);
    opc__conn_init(&c, 0, NULL, OPCOMMS_MAX_FRAME, NULL, NULL);
    call.kind = OPC__REQ_SEND;
    call.id = 3;
    c.waiting = &call;
    r.kind = r.call = OPC__RES_SEND;
    r.flag = 1;
    r.request_id = 99;
    CHECK_EQ(opc__conn_answer(&c, &r), OPCOMMS_OK);
    CHECK(!call.done);
    r.request_id = 3;
    CHECK_EQ(opc__conn_answer(&c, &r), OPCOMMS_OK);
    CHECK(call.done);
    CHECK(c.waiting == NULL);
    r.kind = r.call = OPC__RES_PING; /* even of another kind: nobody waits for it */
    CHECK_EQ(opc__conn_answer(&c, &r), OPCOMMS_OK);
}

int main(void) {
    RUN(frame_lengths_from_1_to_8_mib_pass_and_no_other);
    RUN(a_long_frame_ends_the_connection_at_its_fourth_byte_before_anything_is_allocated);
    RUN(json_gives_the_same_tokens_however_the_input_is_cut);
    RUN(json_that_is_wrong_is_refused_however_the_input_is_cut);
    RUN(json_cut_off_anywhere_is_not_a_document);
    RUN(json_numbers_are_u64_only_when_they_are_plain_digits_in_range);
    RUN(json_nests_512_deep_and_not_one_deeper);
    RUN(a_byte_array_is_canonical_or_it_is_text_and_nothing_of_it_is_lost);
    RUN(every_byte_value_goes_there_and_back_through_an_array_with_any_room);
    RUN(the_empty_payload_is_two_brackets);
    RUN(text_is_escaped_exactly_as_serde_json_does_with_any_room);
    RUN(unknown_fields_are_ignored_at_every_level_but_two);
    RUN(an_enum_has_exactly_one_key);
    RUN(a_unit_variant_is_a_name_or_a_name_with_null);
    RUN(every_field_but_two_is_required_once);
    RUN(numbers_are_whole_not_negative_and_in_range);
    RUN(structs_may_be_arrays_of_all_their_fields_in_order);
    RUN(fields_come_in_any_order_with_any_white_space_and_escaped_names);
    RUN(ignored_values_may_nest_deeply);
    RUN(any_deadline_is_taken_carried_and_clamped);
    RUN(strings_are_decoded_strictly);
    RUN(the_destination_is_any_text_and_a_long_one_is_marked_as_cut);
    RUN(a_request_cut_off_anywhere_is_refused);
    RUN(a_sink_that_fails_ends_the_parse_with_its_error);
    RUN(our_requests_are_byte_for_byte_those_of_the_reference_s_client);
    RUN(our_answers_are_byte_for_byte_those_of_the_reference_s_server);
    RUN(a_writer_without_room_writes_nothing_it_would_have_to_take_back);
    RUN(answers_are_read_by_the_same_rules);
    RUN(every_kind_of_server_error_is_read_and_unknown_ones_are_other);
    RUN(a_long_error_text_is_cut_between_characters);
    RUN(every_captured_answer_of_a_server_gets_the_reference_client_s_verdict);
    RUN(no_captured_answer_is_left_out);
    RUN(late_second_and_foreign_answers_are_ignored);
    return test_end();
}
