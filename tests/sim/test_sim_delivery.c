/* Durable delivery between native peers on a fake clock, disk and wire: what opcomms_enqueue has
   taken arrives exactly once and in order, whatever ends the connection, the process or the power
   on either side. A model knows what was promised. SEED=n replays one random life, SIM_RUNS=n does
   that many and cuts at every byte, SIM_TRACE=1 prints every call of the platform. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#define SIM_PROTOCOL OPCOMMS_NATIVE_ONLY
#include "test.h"
#include "fake.h"
#include "peers.h"

#define MS 1000u
#define SECOND 1000000u
#define BIG 400000u

static uint8_t sample[BIG], back[BIG];
static uint64_t cut_step, crash_step;

/* ---- messages that tell their number ---- */

static size_t body(uint8_t *out, uint32_t n, size_t size) {
    uint64_t x = n * 77u + 5u;
    char head[40];
    size_t i;
    if (size < 16) size = 16;
    for (i = 0; i + 8 <= size; i += 8) {
        uint64_t v = fake_rand64(&x);
        memcpy(out + i, &v, 8);
    }
    for (; i < size; i++) out[i] = (uint8_t)(n + i);
    snprintf(head, sizeof head, "message %08u", (unsigned)n);
    memcpy(out, head, 16);
    return size;
}

/* Which message these bytes are; UINT32_MAX: none. */
static uint32_t which(const uint8_t *p, size_t size) {
    static uint8_t want[BIG];
    char digits[9];
    uint32_t n;
    if (size < 16) return UINT32_MAX;
    memcpy(digits, p + 8, 8);
    digits[8] = 0;
    n = (uint32_t)strtoul(digits, NULL, 10);
    body(want, n, size);
    return memcmp(want, p, size) == 0 ? n : UINT32_MAX;
}

static opcomms_identifier mailbox(const sim_peer *p, int id) {
    opcomms_identifier to;
    memset(&to, 0, sizeof to);
    memcpy(to.hash, p->hash, 65);
    to.id = (int16_t)id;
    return to;
}

static opcomms_enqueue_options options(void) {
    opcomms_enqueue_options o;
    memset(&o, 0, sizeof o);
    o.size = (uint32_t)sizeof o;
    return o;
}

/* Queues message n; the result of opcomms_enqueue. */
static opcomms_err put(sim_peer *from, const sim_peer *to, uint32_t n, size_t size,
                       const opcomms_enqueue_options *opt, uint64_t *number) {
    static uint8_t text[BIG];
    opcomms_identifier dest = mailbox(to, 0);
    opcomms_error err;
    opcomms_err rc;
    size = body(text, n, size);
    memset(&err, 0, sizeof err);
    rc = opcomms_enqueue(from->peer, &dest, to->address, "context", 7, text, size, opt, number,
                         &err);
    CHECK(rc == OPCOMMS_OK || (err.code == rc && err.text[0] != 0));
    return rc;
}

/* Takes the oldest message of p, from mailbox `id`, and consumes it: its number, or UINT32_MAX. */
static uint32_t take(sim_peer *p, const sim_peer *from, int id, uint32_t *flags) {
    opcomms_message *msg = NULL;
    opcomms_identifier who;
    opcomms_error err;
    size_t at = 0, got = 0, size;
    uint32_t n;
    if (opcomms_receive_id(p->peer, (uint8_t)id, 0, &msg, &err) != OPCOMMS_OK) return UINT32_MAX;
    size = opcomms_message_size(msg);
    while (at < size && opcomms_message_read(msg, at, back + at, size - at, &got) == OPCOMMS_OK) {
        if (got == 0) break;
        at += got;
    }
    CHECK_EQ(at, size);
    opcomms_message_from(msg, &who);
    CHECK_STR(who.hash, from->hash);
    if (flags != NULL) *flags = opcomms_message_flags(msg);
    n = which(back, size);
    CHECK(n != UINT32_MAX);
    CHECK_EQ(opcomms_ack(msg, &err), OPCOMMS_OK);
    return n;
}

/* Messages first to last, in this order and nothing else. */
static void expect(sim_peer *p, const sim_peer *from, uint32_t first, uint32_t last) {
    uint32_t n, got;
    for (n = first; n <= last && test_bad == 0; n++) {
        got = take(p, from, 0, NULL);
        CHECK_EQ(got, n);
    }
    CHECK_EQ(take(p, from, 0, NULL), UINT32_MAX);
}

/* Runs until p's outbox is empty; 0: not within `us`. */
static int until_sent(sim *s, sim_peer *p, uint64_t us) {
    uint64_t end = s->w.now_us + us;
    while (opcomms_queued_count(p->peer, NULL) > 0 && s->w.now_us < end) sim_run(s, 10 * MS);
    return opcomms_queued_count(p->peer, NULL) == 0;
}

static void begin(sim *s, uint64_t seed, sim_peer **a, sim_peer **b, sim_peer **c) {
    sim_init(s, seed);
    *a = sim_add(s, 0);
    *b = sim_add(s, 1);
    if (c != NULL) *c = sim_add(s, 2);
    sim_befriend(s);
}

static void start(sim_peer *p) {
    opcomms_error err;
    opcomms_err rc;
    memset(&err, 0, sizeof err);
    rc = sim_start(p, &err);
    if (rc != OPCOMMS_OK) printf("start: %s\n", err.text);
    CHECK_EQ(rc, OPCOMMS_OK);
}

/* The power goes, or the process ends, and it comes back. */
static void crash(sim_peer *p, int kill, int silent) {
    if (!p->host->dead) {
        if (kill) {
            fake_kill(p->host);
        } else {
            fake_power_cut(p->host, silent);
        }
    }
    opcomms_free(p->peer);
    p->peer = NULL;
    CHECK_EQ(p->memory.used, 0);
    fake_boot(p->host);
    fake_arm(p->host, 0, 0, 0, FAKE_ERROR);
}

/* From now on whatever is written on this connection vanishes, in both directions. */
static void lose(fake_conn *c) {
    int way;
    for (way = 0; way < 2; way++) {
        c->wire.cut[way].at = c->pipe[way].sent;
        c->wire.cut[way].how = FAKE_STALL;
    }
}

static void wire_heals(fake *w) {
    size_t i;
    int d;
    w->wire.cut[0].at = w->wire.cut[1].at = FAKE_NEVER;
    for (i = 0; i < w->conns; i++) {
        for (d = 0; d < 2; d++) {
            if (!w->conn[i]->pipe[d].swallow) w->conn[i]->wire.cut[d].at = FAKE_NEVER;
        }
    }
}

/* ---- the wire ---- */

TEST(messages_of_all_sizes_arrive_in_order_over_a_wire_of_pieces) {
    static const size_t sizes[] = {16, 100, 4079, 4080, 4081, 8000, 16384, 16385, 100000, 20, 50000};
    sim s;
    sim_peer *a, *b;
    uint32_t i, n = (uint32_t)(sizeof sizes / sizeof sizes[0]);
    int wire;
    for (wire = 0; wire < 3; wire++) {
        begin(&s, 21 + (uint64_t)wire, &a, &b, NULL);
        s.w.wire.piece_max = wire == 0 ? 0 : wire == 1 ? 700 : 3000;
        s.w.wire.random = wire == 2;
        s.w.wire.window = wire == 1 ? 900 : 65536;
        s.w.wire.delay_max_us = wire == 2 ? 20000 : 20;
        start(a);
        start(b);
        for (i = 0; i < n; i++) CHECK_EQ(put(a, b, i, sizes[i], NULL, NULL), OPCOMMS_OK);
        CHECK(until_sent(&s, a, 60 * SECOND));
        expect(b, a, 0, n - 1);
        CHECK_EQ(sim_stats(a).attempts_failed, 0);
        CHECK_EQ(sim_stats(b).protocol_errors, 0);
        sim_end(&s);
    }
}

static uint64_t cut_total[2];

static void cut_queue(sim_peer *a, sim_peer *b, uint32_t *n) {
    CHECK_EQ(put(a, b, (*n)++, 60, NULL, NULL), OPCOMMS_OK);
    CHECK_EQ(put(a, b, (*n)++, 6000, NULL, NULL), OPCOMMS_OK);
    CHECK_EQ(put(a, b, (*n)++, 20, NULL, NULL), OPCOMMS_OK);
}

/* The conversation ends after `at` bytes of direction d; then the wire is whole again. */
static void cut_at(sim *s, sim_peer *a, sim_peer *b, int d, uint64_t at, int how, uint32_t *n) {
    uint32_t first = *n;
    s->w.wire.cut[d].at = at;
    s->w.wire.cut[d].how = how;
    cut_queue(a, b, n);
    sim_run(s, 300 * MS);
    wire_heals(&s->w);
    CHECK(until_sent(s, a, 60 * SECOND));
    expect(b, a, first, *n - 1);
    CHECK_EQ(opcomms_allow_list_remove(a->allow, b->hash), OPCOMMS_OK); /* forget the connection */
    sim_run(s, 100 * MS);
    CHECK_EQ(opcomms_allow_list_add(a->allow, b->hash, NULL), OPCOMMS_OK);
}

static void cut_everywhere(int how) {
    sim s;
    sim_peer *a, *b;
    uint32_t n = 0;
    uint64_t at;
    size_t blocks[2];
    int d;
    begin(&s, 31 + (uint64_t)how, &a, &b, NULL);
    a->cfg.send_timeout_ms = 2000;
    a->cfg.handshake_timeout_ms = b->cfg.handshake_timeout_ms = 2000;
    b->cfg.idle_timeout_ms = 5000;
    start(a);
    start(b);
    cut_at(&s, a, b, 0, FAKE_NEVER, how, &n);
    cut_total[0] = s.w.conn[0]->pipe[0].sent;
    cut_total[1] = s.w.conn[0]->pipe[1].sent;
    sim_run(&s, 10 * SECOND);
    blocks[0] = a->memory.blocks;
    blocks[1] = b->memory.blocks;
    for (d = 0; d < 2 && test_bad == 0; d++) {
        for (at = (uint64_t)how % cut_step; at <= cut_total[d] + 40; at += cut_step) {
            cut_at(&s, a, b, d, at, how, &n);
            if (test_bad > 0) printf("direction %d byte %d kind %d\n", d, (int)at, how);
            if (test_bad > 0) break;
        }
    }
    sim_run(&s, 10 * SECOND);
    CHECK_EQ(a->memory.blocks, blocks[0]);
    CHECK_EQ(b->memory.blocks, blocks[1]);
    CHECK(sim_stats(a).attempts_failed > 10);
    CHECK_EQ(sim_stats(b).messages_in, n);
    if (getenv("DBG")) printf("spins %d\n", (int)s.w.spins);
    sim_end(&s);
}

TEST(a_reset_at_any_byte_loses_and_repeats_nothing) { cut_everywhere(FAKE_RESET); }
TEST(a_half_close_at_any_byte_loses_and_repeats_nothing) { cut_everywhere(FAKE_FIN); }
TEST(a_stall_at_any_byte_loses_and_repeats_nothing) { cut_everywhere(FAKE_STALL); }

/* ---- levels ---- */

TEST(a_message_that_is_to_be_consumed_is_done_when_it_was) {
    sim s;
    sim_peer *a, *b;
    opcomms_enqueue_options opt = options();
    opcomms_queued q;
    uint64_t number = 0;
    begin(&s, 41, &a, &b, NULL);
    start(a);
    start(b);
    opt.level = OPCOMMS_LEVEL_CONSUMED;
    CHECK_EQ(put(a, b, 0, 100, &opt, &number), OPCOMMS_OK);
    sim_run(&s, SECOND);
    CHECK_EQ(opcomms_queued_get(a->peer, number, &q), OPCOMMS_OK);
    CHECK_EQ(q.state, OPCOMMS_STATE_DURABLE);
    expect(b, a, 0, 0);
    sim_run(&s, SECOND);
    CHECK_EQ(opcomms_queued_get(a->peer, number, &q), OPCOMMS_E_NOT_FOUND);
    sim_end(&s);
}

int main(void) {
    size_t i;
    int every = getenv("SIM_RUNS") != NULL;
    for (i = 0; i < sizeof sample; i++) sample[i] = (uint8_t)(i * 7 + i / 256);
    cut_step = every ? 1 : 61;
    crash_step = every ? 1 : 3;
    RUN(messages_of_all_sizes_arrive_in_order_over_a_wire_of_pieces);
    RUN(a_reset_at_any_byte_loses_and_repeats_nothing);
    RUN(a_half_close_at_any_byte_loses_and_repeats_nothing);
    RUN(a_stall_at_any_byte_loses_and_repeats_nothing);
    RUN(a_message_that_is_to_be_consumed_is_done_when_it_was);
    return test_end();
}
