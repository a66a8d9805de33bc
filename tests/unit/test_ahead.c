/* TLS takes wire bytes in any pieces: one by one, or many records in one read. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#include "test.h"

static opc__key key[2];
static opc__tls_ctx ctx[2];
static uint8_t hash[2][32];
static opc__tls tls[2]; /* 0 the client, 1 the server */

/* The wire towards each end: everything that was sent and not yet taken. */
static uint8_t wire[2][262144];
static size_t wire_len[2];

static int anybody(void *user, const uint8_t h[32]) {
    (void)user;
    (void)h;
    return 1;
}

static void start(void) {
    static const uint8_t entropy[2][32] = {{1}, {2}};
    opc__key ca;
    opcomms_error err;
    int i;
    opc__key_builtin_ca(&ca);
    for (i = 0; i < 2; i++) {
        char pem[4096];
        size_t len = 0;
        CHECK_EQ(opcomms_generate_key_pem(OPCOMMS_KEY_P256, pem, sizeof pem, &len, &err),
                 OPCOMMS_OK);
        CHECK_EQ(opc__key_from_pem(&key[i], pem, len, &err), OPCOMMS_OK);
        opc__key_hash(&key[i], hash[i]);
        CHECK_EQ(opc__tls_ctx_init(&ctx[i], &key[i], &ca, 0, &err), OPCOMMS_OK);
        wire_len[i] = 0;
    }
    opc__tls_client(&tls[0], &ctx[0], hash[1], anybody, NULL, entropy[0], 0, 0);
    opc__tls_server(&tls[1], &ctx[1], anybody, NULL, entropy[1], 0);
}

/* What end i wants to send goes onto the wire. */
static int emit(int i) {
    size_t len = 0;
    const uint8_t *p;
    int any = 0;
    while ((p = opc__tls_out(&tls[i], &len)) != NULL && len > 0) {
        CHECK(len <= sizeof wire[0] - wire_len[1 - i]);
        memcpy(wire[1 - i] + wire_len[1 - i], p, len);
        wire_len[1 - i] += len;
        opc__tls_out_done(&tls[i], len);
        any = 1;
    }
    return any;
}

/* End i reads once, `most` bytes; as a socket would give them. */
static int absorb(int i, size_t most) {
    size_t room = 0;
    uint8_t *p = opc__tls_in(&tls[i], &room);
    size_t n = wire_len[i] < most ? wire_len[i] : most;
    if (p == NULL || room == 0 || n == 0) return 0;
    if (n > room) n = room;
    memcpy(p, wire[i], n);
    memmove(wire[i], wire[i] + n, wire_len[i] - n);
    wire_len[i] -= n;
    opc__tls_in_done(&tls[i], n);
    return 1;
}

static void shake(size_t most) {
    int moved = 1;
    while (moved) {
        moved = emit(0);
        moved = absorb(1, most) || moved;
        moved = emit(1) || moved;
        moved = absorb(0, most) || moved;
    }
    CHECK(opc__tls_ready(&tls[0]));
    CHECK(opc__tls_ready(&tls[1]));
}

/* One record of n bytes, numbered from *next on. */
static void say(int i, size_t n, uint8_t *next) {
    size_t room = 0, k;
    uint8_t *p = opc__tls_write(&tls[i], &room);
    CHECK(p != NULL && room >= n);
    for (k = 0; k < n; k++) p[k] = (*next)++;
    opc__tls_write_done(&tls[i], n);
    opc__tls_flush(&tls[i]);
    (void)emit(i);
}

/* Everything that has arrived, in pieces of at most `piece`; counts what is out of order. */
static size_t hear(int i, size_t piece, uint8_t *next, size_t *wrong) {
    size_t len = 0, all = 0;
    const uint8_t *p;
    while ((p = opc__tls_read(&tls[i], &len)) != NULL && len > 0) {
        size_t n = len < piece ? len : piece, k;
        for (k = 0; k < n; k++) *wrong += p[k] != (*next)++;
        opc__tls_read_done(&tls[i], n);
        all += n;
    }
    return all;
}

static void conversation(size_t most, size_t piece) {
    static const size_t sizes[] = {1, 5, 64, 600, 990, 1000, 1019, 1020, 1100, 4000, 2, 3, 4, 4096};
    uint8_t said = 0, heard = 0;
    size_t i, all = 0, got = 0, wrong = 0;
    start();
    shake(most);
    for (i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        say(0, sizes[i], &said);
        all += sizes[i];
    }
    while (absorb(1, most)) got += hear(1, piece, &heard, &wrong);
    CHECK_EQ(got, all);
    CHECK_EQ(wrong, 0);
    CHECK_EQ(wire_len[1], 0);
}

TEST(records_arrive_in_order_however_the_wire_cuts_them) {
    conversation(1, 100000);
    conversation(3, 1);
    conversation(7, 100000);
    conversation(1023, 500);
    conversation(1024, 100000);
    conversation(100000, 7);
    conversation(100000, 100000);
}

/* Nothing more is read from the socket while data waits, so that the peer feels it. */
TEST(unread_data_stops_reading) {
    uint8_t said = 0, heard = 0;
    size_t room = 0, wrong = 0, before;
    start();
    shake(100000);
    say(0, 10, &said);
    say(0, 20, &said);
    say(0, 3000, &said);
    while (absorb(1, 100000)) {
    }
    before = wire_len[1];
    CHECK(before > 2000);
    CHECK(opc__tls_in(&tls[1], &room) == NULL || room == 0);
    CHECK_EQ(hear(1, 100000, &heard, &wrong), 30); /* both small records had been read ahead */
    while (absorb(1, 100000)) (void)hear(1, 100000, &heard, &wrong);
    CHECK_EQ(heard, (uint8_t)3030);
    CHECK_EQ(wrong, 0);
}

/* close_notify behind data that nobody wants any more is still seen. */
TEST(an_end_that_was_read_ahead_is_seen_while_closing) {
    uint8_t said = 0;
    start();
    shake(100000);
    say(0, 10, &said);
    say(0, 20, &said);
    opc__tls_close(&tls[0]);
    (void)emit(0);
    CHECK(absorb(1, 100000)); /* all of it in one read */
    CHECK_EQ(wire_len[1], 0);
    opc__tls_close(&tls[1]);
    (void)emit(1);
    CHECK(opc__tls_closed(&tls[1]));
}

int main(void) {
    RUN(records_arrive_in_order_however_the_wire_cuts_them);
    RUN(unread_data_stops_reading);
    RUN(an_end_that_was_read_ahead_is_seen_while_closing);
    return test_end();
}
