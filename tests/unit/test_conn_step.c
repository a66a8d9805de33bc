/* A step of a server connection leaves no answer behind that nothing would send. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#include "test.h"

static opc__key ca, key;
static opc__tls_ctx ctx;
static uint8_t hash[32];
static opc__conn server;
static opc__tls client;
static uint64_t visible;
static uint64_t stored;

static int may(void *user, const uint8_t h[32]) {
    (void)user;
    (void)h;
    return 1;
}

static opcomms_err request(void *user, opc__conn *c, const opc__request *r, opc__reply *reply) {
    (void)user;
    (void)c;
    if (r->kind == OPC__REQ_PING) {
        reply->kind = OPC__RES_PING;
        reply->flag = 1;
        return OPCOMMS_OK;
    }
    reply->kind = OPC__RES_SEND; /* a message that is durable once `visible` says so */
    reply->position = ++stored;
    return OPCOMMS_OK;
}

static uint64_t ops_visible(void *user) {
    (void)user;
    return visible;
}

/* Moves all that one side has to say; 1 when there was something. */
static int move(opc__tls *from, opc__tls *to) {
    size_t len = 0, room = 0;
    int moved = 0;
    const uint8_t *p;
    while ((p = opc__tls_out(from, &len)) != NULL && len > 0) {
        uint8_t *dst = opc__tls_in(to, &room);
        if (dst == NULL) return moved;
        if (len > room) len = room;
        memcpy(dst, p, len);
        opc__tls_in_done(to, len);
        opc__tls_out_done(from, len);
        moved = 1;
    }
    return moved;
}

static void start(opc__store *store) {
    static const opc__conn_ops ops = {request, ops_visible};
    uint8_t entropy[32];
    int round;
    memset(entropy, 7, sizeof entropy);
    visible = 0;
    stored = 0;
    opc__conn_init(&server, 1, store, OPCOMMS_MAX_FRAME, &ops, NULL);
    opc__tls_server(&server.tls, &ctx, may, NULL, entropy, 0);
    opc__tls_client(&client, &ctx, hash, may, NULL, entropy, 0, 0);
    for (round = 0; round < 5; round++) {
        (void)move(&client, &server.tls);
        (void)move(&server.tls, &client);
    }
    opc__conn_step(&server, 0);
    CHECK_EQ(server.state, OPC__CONN_OPEN);
}

static void say(const char *json) {
    uint8_t frame[1024];
    size_t n = strlen(json), room = 0;
    uint8_t *dst = opc__tls_write(&client, &room);
    opc__buf_put32(frame, (uint32_t)n);
    memcpy(frame + 4, json, n);
    CHECK(dst != NULL && room >= n + 4);
    if (dst == NULL || room < n + 4) return;
    memcpy(dst, frame, n + 4);
    opc__tls_write_done(&client, n + 4);
}

#define CONTEXT                                                                                    \
    "{\"Request\":{\"context\":{\"trace_context\":{\"trace_id\":[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]" \
    ","                                                                                            \
    "\"span_id\":1,\"sampling_decision\":\"Sampled\"}},\"id\":%d,\"message\":%s}}"

static void ask(int id, const char *message) {
    char json[900];
    snprintf(json, sizeof json, CONTEXT, id, message);
    say(json);
}

/* Answers the client has got; `server` is stepped only while bytes move or it asks for it. */
static int answers(void) {
    char text[8192];
    size_t n = 0, len = 0;
    int count = 0;
    const uint8_t *p;
    const char *at = text;
    do {
        opc__conn_step(&server, 0);
        (void)move(&server.tls, &client);
        while ((p = opc__tls_read(&client, &len)) != NULL && len > 0) {
            CHECK(len < sizeof text - n);
            memcpy(text + n, p, len);
            n += len;
            opc__tls_read_done(&client, len);
        }
    } while (server.more);
    for (at = text; at + 10 < text + n; at++) count += memcmp(at, "request_id", 10) == 0;
    return count;
}

TEST(requests_behind_a_full_row_of_answers_are_answered_without_another_event) {
    opc__mem mem;
    opc__store *store = NULL;
    int i;
    opc__key_default_mem(&mem);
    CHECK_EQ(opc__ram_open(&mem, 4, 100000, &store), OPCOMMS_OK);
    start(store);
    for (i = 0; i < 16; i++) {
        ask(i,
            "{\"Send\":{\"from_id\":0,\"dest\":{\"pubkey_hash\":\"h\",\"id\":0},\"msg\":\"[1]\"}}");
        if (i % 8 == 7) opc__tls_flush(&client);
        if (i % 8 == 7) (void)move(&client, &server.tls);
        if (i % 8 == 7) opc__conn_step(&server, 0);
    }
    for (i = 16; i < 24; i++) ask(i, "{\"Ping\":{}}");
    opc__tls_flush(&client);
    (void)move(&client, &server.tls);
    CHECK_EQ(answers(), 0); /* nothing is durable yet, and the row is full */
    visible = 16;
    CHECK_EQ(answers(), 24);
    opc__conn_wipe(&server);
    CHECK_EQ(store->c->close(store), OPCOMMS_OK);
    CHECK_EQ(mem.used, 0);
}

TEST(a_text_that_only_begins_like_an_array_is_answered_without_another_event) {
    opc__mem mem;
    opc__store *store = NULL;
    opc__key_default_mem(&mem);
    CHECK_EQ(opc__ram_open(&mem, 4, 100000, &store), OPCOMMS_OK);
    start(store);
    visible = 100;
    ask(1, "{\"Send\":{\"from_id\":0,\"dest\":{\"pubkey_hash\":\"h\",\"id\":0},\"msg\":\"[1,2\"}}");
    opc__tls_flush(&client);
    (void)move(&client, &server.tls);
    CHECK_EQ(answers(), 1);
    opc__conn_wipe(&server);
    CHECK_EQ(store->c->close(store), OPCOMMS_OK);
    CHECK_EQ(mem.used, 0);
}

int main(void) {
    char pem[4096];
    size_t len = 0;
    CHECK(opc__key_generate(opc__plat_default(), 0, pem, sizeof pem, &len, NULL) == OPCOMMS_OK);
    CHECK(opc__key_from_pem(&key, pem, len, NULL) == OPCOMMS_OK);
    opc__key_builtin_ca(&ca);
    CHECK(opc__tls_ctx_init(&ctx, &key, &ca, 0, NULL) == OPCOMMS_OK);
    opc__key_hash(&key, hash);
    RUN(requests_behind_a_full_row_of_answers_are_answered_without_another_event);
    RUN(a_text_that_only_begins_like_an_array_is_answered_without_another_event);
    return test_end();
}
