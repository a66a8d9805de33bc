/* Two peers in one process and one thread, on a fake clock, disk and wire: messages arrive whole
   and under the right name however the wire cuts them up, and a connection that ends at any byte
   leaves an honest answer and nothing behind. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#include "test.h"
#include "fake.h"
#include "peers.h"

static uint8_t sample[70000], back[70000];

static size_t receive(sim_peer *p, char hash[65]) {
    opcomms_identifier from;
    opcomms_error err;
    size_t len = 0;
    opcomms_err rc = opcomms_check_receive(p->peer, &from, back, sizeof back, &len, &err);
    CHECK_EQ(rc, OPCOMMS_OK);
    if (rc != OPCOMMS_OK) return 0;
    CHECK_EQ(from.id, 0);
    memcpy(hash, from.hash, 65);
    return len;
}

static int nothing_waits(sim_peer *p) {
    opcomms_error err;
    size_t len = 0;
    return opcomms_check_receive(p->peer, NULL, back, sizeof back, &len, &err) == OPCOMMS_E_EMPTY;
}

/* Sizes around the fragment and the record, both ways, with restarts of the receiver between. */
static void exchange(sim *s, sim_peer *a, sim_peer *b, const size_t *sizes, size_t count) {
    opcomms_error err;
    char hash[65];
    size_t i;
    for (i = 0; i < count; i++) {
        sim_peer *from = i % 2 == 0 ? a : b, *to = i % 2 == 0 ? b : a;
        CHECK_EQ(sim_send(from, to, sample + i, sizes[i], 600000, &err), OPCOMMS_OK);
        if (i % 3 == 2) {
            sim_stop(to);
            CHECK_EQ(sim_start(to, &err), OPCOMMS_OK);
        }
        CHECK_EQ(receive(to, hash), sizes[i]);
        CHECK(memcmp(back, sample + i, sizes[i]) == 0);
        CHECK_STR(hash, from->hash);
        CHECK(nothing_waits(to));
        CHECK(nothing_waits(from));
    }
    (void)s;
}

static void exchange_over(size_t piece, int random, uint64_t delay_us, uint32_t sector,
                          size_t window, int key, const size_t *sizes, size_t count) {
    sim s;
    sim_peer *a, *b;
    opcomms_error err;
    sim_init(&s, 1 + piece);
    a = sim_add(&s, key);
    b = sim_add(&s, 1);
    sim_befriend(&s);
    s.w.wire.piece_max = piece;
    s.w.wire.random = random;
    s.w.wire.delay_max_us = delay_us;
    s.w.wire.window = window;
    a->host->sector = b->host->sector = sector;
    CHECK_EQ(sim_start(a, &err), OPCOMMS_OK);
    CHECK_EQ(sim_start(b, &err), OPCOMMS_OK);
    exchange(&s, a, b, sizes, count);
    sim_end(&s);
}

TEST(messages_arrive_whole_over_a_wire_of_single_bytes) {
    static const size_t sizes[] = {5, 0, 1, 300, 5000, 64};
    exchange_over(1, 0, 20, 512, 65536, 0, sizes, 6);
    exchange_over(1, 0, 20, 4096, 1, 0, sizes, 4);
}

TEST(messages_arrive_whole_over_a_wire_of_random_pieces) {
    static const size_t sizes[] = {16383, 16384, 16385, 0, 60000, 1, 1, 1, 4096};
    exchange_over(1000, 1, 30000, 4096, 20000, 0, sizes, 9);
    exchange_over(0, 0, 20, 512, 65536, 7, sizes, 9);
}

TEST(two_peers_send_to_each_other_at_the_same_time) {
    sim s;
    sim_peer *a, *b;
    opcomms_error err;
    char hash[65];
    int i;
    sim_pair(&s, 5, &a, &b);
    s.w.wire.piece_max = 100;
    for (i = 0; i < 20; i++) {
        CHECK_EQ(sim_send(a, b, sample, 100, 0, &err), OPCOMMS_OK);
        CHECK_EQ(sim_send(b, a, sample + 1, 100, 0, &err), OPCOMMS_OK);
    }
    for (i = 0; i < 20; i++) {
        CHECK_EQ(receive(a, hash), 100);
        CHECK_STR(hash, b->hash);
        CHECK_EQ(receive(b, hash), 100);
        CHECK_STR(hash, a->hash);
    }
    CHECK_EQ(sim_stats(a).connections, 2); /* one each way, kept */
    CHECK_EQ(sim_stats(a).accepted, 1);
    sim_end(&s);
}

/* ---- cut at every byte ---- */

static uint64_t cut_total[2];   /* bytes of a whole connection with one message */

/* How long an undisturbed connection with one message is, in both directions. */
static void cut_measure(void) {
    sim s;
    sim_peer *a, *b;
    opcomms_error err;
    sim_pair(&s, 11, &a, &b);
    CHECK_EQ(sim_send(a, b, "payload", 7, 0, &err), OPCOMMS_OK);
    cut_total[0] = s.w.conn[0]->pipe[0].sent;
    cut_total[1] = s.w.conn[0]->pipe[1].sent;
    sim_end(&s);
}

static int acceptable(opcomms_err rc, int how) {
    switch (rc) {
    case OPCOMMS_OK:
    case OPCOMMS_E_UNKNOWN_OUTCOME:
    case OPCOMMS_E_CONNECT:
    case OPCOMMS_E_TLS:
    case OPCOMMS_E_CLOSED: return 1;
    case OPCOMMS_E_TIMEOUT: return how == FAKE_STALL;
    default: return 0;
    }
}

/* Cuts that were not reached are called off. */
static void wire_heals(fake *w) {
    size_t i;
    int d;
    for (i = 0; i < w->conns; i++) {
        for (d = 0; d < 2; d++) {
            if (!w->conn[i]->pipe[d].swallow) w->conn[i]->wire.cut[d].at = FAKE_NEVER;
        }
    }
}

/* The connection ends after `at` bytes of direction d; then the wire is whole again. */
static void cut_at(sim *s, sim_peer *a, sim_peer *b, int d, uint64_t at, int how) {
    opcomms_error err;
    char hash[65];
    int stored;
    opcomms_err rc;
    s->w.wire.cut[d].at = at;
    s->w.wire.cut[d].how = how;
    rc = sim_send(a, b, &at, sizeof at, 3000, &err);
    if (!acceptable(rc, how)) {
        printf("cut of direction %d at %d, kind %d: %s\n", d, (int)at, how, err.text);
        CHECK(0);
    }
    s->w.wire.cut[d].at = FAKE_NEVER;
    wire_heals(&s->w);
    sim_run(s, 20000000); /* time-outs of both sides pass */
    stored = opcomms_wait(b->peer, 0) == OPCOMMS_OK;
    if (rc == OPCOMMS_OK) CHECK(stored);
    if (rc != OPCOMMS_OK && rc != OPCOMMS_E_UNKNOWN_OUTCOME) CHECK(!stored);
    if (stored) {
        CHECK_EQ(receive(b, hash), sizeof at);
        CHECK(memcmp(back, &at, sizeof at) == 0);
        CHECK_STR(hash, a->hash);
    }
    CHECK(nothing_waits(b));
    /* The network is whole again: the next message goes through at once. */
    rc = sim_send(a, b, "after", 5, 3000, &err);
    if (rc != OPCOMMS_OK)
        printf("after a cut of %d at %d, kind %d: %s\n", d, (int)at, how, err.text);
    CHECK_EQ(rc, OPCOMMS_OK);
    CHECK_EQ(receive(b, hash), 5);
    /* And both forget the connection as a whole. */
    CHECK_EQ(opcomms_allow_list_remove(a->allow, b->hash), OPCOMMS_OK);
    sim_run(s, 1000000);
    CHECK_EQ(opcomms_allow_list_add(a->allow, b->hash, NULL), OPCOMMS_OK);
    CHECK_EQ(sim_stats(a).connections, 0);
    CHECK_EQ(sim_stats(b).connections, 0);
}

static void cut_everywhere(int how, uint64_t step) {
    sim s;
    sim_peer *a, *b;
    uint64_t at;
    size_t blocks[2], handles[2];
    int d;
    opcomms_error err;
    sim_init(&s, 11 + (uint64_t)how);
    a = sim_add(&s, 0);
    b = sim_add(&s, 1);
    sim_befriend(&s);
    b->cfg.handshake_timeout_ms = 2000;
    b->cfg.idle_timeout_ms = 5000;
    CHECK_EQ(sim_start(a, &err), OPCOMMS_OK);
    CHECK_EQ(sim_start(b, &err), OPCOMMS_OK);
    cut_at(&s, a, b, 0, FAKE_NEVER, how);
    blocks[0] = a->memory.blocks;
    blocks[1] = b->memory.blocks;
    handles[0] = a->host->open_handles;
    handles[1] = b->host->open_handles;
    for (d = 0; d < 2; d++) {
        for (at = (uint64_t)how % step; at <= cut_total[d] + 40; at += step) {
            cut_at(&s, a, b, d, at, how);
            CHECK_EQ(a->memory.blocks, blocks[0]);
            CHECK_EQ(b->memory.blocks, blocks[1]);
            CHECK_EQ(a->host->open_handles, handles[0]);
            CHECK_EQ(b->host->open_handles, handles[1]);
            if (test_bad > 0) {
                printf("direction %d byte %d kind %d\n", d, (int)at, how);
                goto done;
            }
        }
    }
done:
    sim_end(&s);
}

static uint64_t cut_step;

TEST(a_connection_reset_at_any_byte_leaves_an_honest_answer_and_nothing_else) {
    cut_everywhere(FAKE_RESET, cut_step);
}
TEST(a_connection_half_closed_at_any_byte_leaves_an_honest_answer_and_nothing_else) {
    cut_everywhere(FAKE_FIN, cut_step);
}
TEST(a_connection_stalled_at_any_byte_leaves_an_honest_answer_and_nothing_else) {
    cut_everywhere(FAKE_STALL, cut_step);
}

int main(void) {
    size_t i;
    const char *runs = getenv("SIM_RUNS");
    for (i = 0; i < sizeof sample; i++) sample[i] = (uint8_t)(i * 7 + i / 256);
    cut_step = runs != NULL ? 1 : 19;
    cut_measure();
    RUN(messages_arrive_whole_over_a_wire_of_single_bytes);
    RUN(messages_arrive_whole_over_a_wire_of_random_pieces);
    RUN(two_peers_send_to_each_other_at_the_same_time);
    RUN(a_connection_reset_at_any_byte_leaves_an_honest_answer_and_nothing_else);
    RUN(a_connection_half_closed_at_any_byte_leaves_an_honest_answer_and_nothing_else);
    RUN(a_connection_stalled_at_any_byte_leaves_an_honest_answer_and_nothing_else);
    return test_end();
}
