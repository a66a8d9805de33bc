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
    static const size_t sizes[] = {16,    100,   4079,   4080, 4081, 8000,
                                   16384, 16385, 100000, 20,   50000};
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

/* An older opening's messages wait to be consumed while those of a newer one are sent. */
TEST(consumption_is_told_for_every_opening_of_the_senders_log) {
    sim s;
    sim_peer *a, *b;
    opcomms_enqueue_options opt = options();
    uint32_t n;
    begin(&s, 42, &a, &b, NULL);
    start(b);
    opt.level = OPCOMMS_LEVEL_CONSUMED;
    for (n = 0; n < 6; n++) { /* two in each of three openings */
        if (n % 2 == 0) start(a);
        CHECK_EQ(put(a, b, n, 100, &opt, NULL), OPCOMMS_OK);
        sim_run(&s, SECOND);
        if (n % 2 == 1 && n < 5) sim_stop(a);
    }
    CHECK_EQ(opcomms_queued_count(a->peer, NULL), 6);
    expect(b, a, 0, 5);
    CHECK(until_sent(&s, a, 5 * SECOND));
    CHECK_EQ(sim_stats(b).messages_in, 6);
    sim_end(&s);
}

TEST(events_are_told_once_and_their_absence_is_said) {
    sim s;
    sim_peer *a, *b;
    opcomms_event e;
    uint64_t number = 0;
    int durable = 0, rounds = 0;
    begin(&s, 43, &a, &b, NULL);
    start(a);
    start(b);
    CHECK_EQ(put(a, b, 0, 100, NULL, &number), OPCOMMS_OK);
    CHECK(until_sent(&s, a, SECOND));
    while (opcomms_next_event(a->peer, 0, &e) == OPCOMMS_OK && ++rounds < 10) {
        CHECK_EQ(e.number, number);
        durable += e.state == OPCOMMS_STATE_DURABLE;
    }
    CHECK_EQ(durable, 1);
    CHECK(rounds < 10);
    sim_end(&s);
}

/* ---- windows ---- */

TEST(a_receiver_that_is_full_closes_the_window_and_nothing_is_dropped) {
    sim s;
    sim_peer *a, *b;
    opcomms_stats st;
    uint32_t n, got;
    begin(&s, 51, &a, &b, NULL);
    b->cfg.queue_depth_max = 5;
    start(a);
    start(b);
    for (n = 0; n < 60; n++) CHECK_EQ(put(a, b, n, n % 7 == 3 ? 9000 : 40, NULL, NULL), OPCOMMS_OK);
    sim_run(&s, 60 * SECOND);
    CHECK_EQ(sim_stats(b).unread, 5);
    CHECK_EQ(opcomms_queued_count(a->peer, NULL), 55);
    for (n = 0; n < 60 && test_bad == 0; n++) {
        uint64_t end = s.w.now_us + SECOND;
        while ((got = take(b, a, 0, NULL)) == UINT32_MAX && s.w.now_us < end) sim_run(&s, MS);
        CHECK_EQ(got, n);
        CHECK(sim_stats(b).unread <= 5);
    }
    CHECK(until_sent(&s, a, SECOND));
    st = sim_stats(a);
    CHECK_EQ(st.attempts_failed, 0);
    CHECK_EQ(st.dead_letters, 0);
    CHECK_EQ(sim_stats(b).accepted, 1);
    CHECK_EQ(sim_stats(b).messages_in, 60);
    sim_end(&s);
}

TEST(a_mailbox_that_several_senders_fill_takes_all_of_it_later) {
    sim s;
    sim_peer *a, *b, *c;
    uint32_t n, from_a = 0, from_c = 0, rounds = 0;
    begin(&s, 52, &a, &b, &c);
    b->cfg.messages_max = 6;
    start(a);
    start(b);
    start(c);
    for (n = 0; n < 20; n++) {
        CHECK_EQ(put(a, b, n, 40, NULL, NULL), OPCOMMS_OK);
        CHECK_EQ(put(c, b, n, 40, NULL, NULL), OPCOMMS_OK);
    }
    while (from_a + from_c < 40 && rounds++ < 2000 && test_bad == 0) {
        opcomms_identifier who;
        opcomms_error err;
        size_t len = 0;
        sim_run(&s, 100 * MS);
        CHECK(sim_stats(b).unread <= 6);
        while (opcomms_check_receive(b->peer, &who, back, sizeof back, &len, &err) == OPCOMMS_OK) {
            uint32_t *at = strcmp(who.hash, a->hash) == 0 ? &from_a : &from_c;
            CHECK_EQ(which(back, len), *at);
            ++*at;
            if (rounds % 3 != 0) break;
        }
    }
    CHECK_EQ(from_a, 20);
    CHECK_EQ(from_c, 20);
    sim_end(&s);
}

/* Half of a large message has gone out when it is cancelled: the rest of the window stays right. */
TEST(a_large_message_cancelled_half_way_costs_nothing) {
    sim s;
    sim_peer *a, *b;
    opcomms_error err;
    uint64_t number = 0;
    uint32_t n, round;
    begin(&s, 53, &a, &b, NULL);
    b->cfg.queue_depth_max = 4;
    start(a);
    start(b);
    CHECK_EQ(put(a, b, 0, 16, NULL, NULL), OPCOMMS_OK);
    CHECK(until_sent(&s, a, SECOND));
    expect(b, a, 0, 0);
    s.w.conn[0]->wire.window = 3000;
    for (round = 0; round < 6; round++) {
        uint64_t sent = s.w.conn[0]->pipe[0].sent;
        opcomms_err rc;
        CHECK_EQ(put(a, b, 1 + round, 90000, NULL, &number), OPCOMMS_OK);
        while (s.w.conn[0]->pipe[0].sent < sent + 20000 && s.w.conns == 1) sim_run(&s, 10);
        rc = opcomms_cancel(a->peer, number, &err);
        CHECK(rc == OPCOMMS_OK || rc == OPCOMMS_E_UNKNOWN_OUTCOME);
    }
    for (n = 10; n < 30; n++) CHECK_EQ(put(a, b, n, 16, NULL, NULL), OPCOMMS_OK);
    for (n = 10; n < 30 && test_bad == 0; n += 2) {
        sim_run(&s, SECOND);
        CHECK_EQ(take(b, a, 0, NULL), n);
        CHECK_EQ(take(b, a, 0, NULL), n + 1);
    }
    CHECK(until_sent(&s, a, SECOND));
    CHECK_EQ(sim_stats(b).protocol_errors, 0);
    CHECK_EQ(sim_stats(a).attempts_failed, 0);
    CHECK_EQ(sim_stats(b).accepted, 1);
    sim_end(&s);
}

TEST(more_destinations_at_one_peer_than_channels_are_all_served) {
    sim s;
    sim_peer *a, *b;
    opcomms_error err;
    opcomms_enqueue_options opt = options();
    int i, round;
    begin(&s, 54, &a, &b, NULL);
    start(a);
    start(b);
    for (round = 0; round < 2; round++) {
        for (i = 0; i < 300; i++) {
            opcomms_identifier to = mailbox(b, i / 2);
            opt.from_id = (uint8_t)(i % 2);
            CHECK_EQ(opcomms_enqueue(a->peer, &to, b->address, NULL, 0, &i, sizeof i, &opt, NULL,
                                     &err), OPCOMMS_OK);
        }
        CHECK(until_sent(&s, a, 20 * SECOND));
        CHECK_EQ(sim_stats(b).unread, 300 * (round + 1));
    }
    CHECK_EQ(sim_stats(b).accepted, 1);
    CHECK_EQ(sim_stats(a).attempts_failed, 0);
    sim_end(&s);
}

/* ---- destinations that cannot be reached; retries; ends of trying ---- */

TEST(an_unreachable_destination_delays_no_other) {
    sim s;
    sim_peer *a, *b, *c;
    uint32_t n;
    begin(&s, 61, &a, &b, &c);
    start(a);
    start(b);
    start(c);
    b->host->blackhole = 1;
    for (n = 0; n < 10; n++) {
        CHECK_EQ(put(a, b, n, 5000, NULL, NULL), OPCOMMS_OK);
        CHECK_EQ(put(a, c, n, 5000, NULL, NULL), OPCOMMS_OK);
    }
    sim_run(&s, SECOND);
    CHECK_EQ(opcomms_queued_count(a->peer, c->hash), 0);
    CHECK_EQ(opcomms_queued_count(a->peer, b->hash), 10);
    expect(c, a, 0, 9);
    sim_run(&s, 100 * SECOND);
    b->host->blackhole = 0;
    CHECK(until_sent(&s, a, 25 * SECOND));
    expect(b, a, 0, 9);
    sim_end(&s);
}

static uint64_t dialed[400];
static size_t dialed_count;

static void note_dial(void *user, fake_conn *c) {
    sim *s = (sim *)user;
    (void)c;
    if (dialed_count < 400) dialed[dialed_count++] = s->w.now_us;
}

/* Waits between attempts: between half of and the whole of what doubles from 100 ms to 10 s. */
static void check_backoff(uint64_t seed, uint64_t first[4]) {
    sim s;
    sim_peer *a, *b;
    size_t i;
    uint64_t whole = 100 * MS;
    begin(&s, seed, &a, &b, NULL);
    start(a);
    dialed_count = 0;
    s.w.on_connect = note_dial;
    CHECK_EQ(put(a, b, 0, 50, NULL, NULL), OPCOMMS_OK);
    sim_run(&s, 300 * SECOND);
    CHECK(dialed_count >= 30 && dialed_count < 80);
    for (i = 1; i < dialed_count; i++) {
        uint64_t gap = dialed[i] - dialed[i - 1];
        CHECK(gap >= whole / 2);
        CHECK(gap <= whole + 10 * MS);
        if (i <= 4) first[i - 1] = gap;
        whole = whole * 2 < 10 * SECOND ? whole * 2 : 10 * SECOND;
    }
    start(b);
    CHECK(until_sent(&s, a, 11 * SECOND));
    expect(b, a, 0, 0);
    sim_end(&s);
}

TEST(attempts_are_repeated_with_bounded_jittered_waits) {
    uint64_t one[4] = {0, 0, 0, 0}, two[4] = {0, 0, 0, 0};
    check_backoff(62, one);
    check_backoff(63, two);
    CHECK(memcmp(one, two, sizeof one) != 0);
}

TEST(attempts_and_time_run_out_and_leave_dead_letters_that_can_be_queued_again) {
    sim s;
    sim_peer *a, *b;
    opcomms_error err;
    opcomms_enqueue_options opt = options();
    opcomms_queued q;
    uint64_t three = 0, late = 0, stays = 0, fresh = 0, start_us;
    begin(&s, 64, &a, &b, NULL);
    start(a);
    opt.attempts_max = 3;
    CHECK_EQ(put(a, b, 0, 6000, &opt, &three), OPCOMMS_OK);
    opt.attempts_max = 0;
    opt.expiry_s = 60;
    start_us = s.w.now_us;
    CHECK_EQ(put(a, b, 1, 50, &opt, &late), OPCOMMS_OK);
    CHECK_EQ(put(a, b, 2, 50, NULL, &stays), OPCOMMS_OK);
    sim_run(&s, 2 * SECOND);
    CHECK_EQ(opcomms_dead_next(a->peer, 0, &q), OPCOMMS_OK);
    CHECK_EQ(q.number, three);
    CHECK_EQ(q.attempts, 3);
    CHECK_EQ(q.code, OPCOMMS_E_CONNECT);
    CHECK(q.context_len == 7 && memcmp(q.context, "context", 7) == 0);
    while (opcomms_dead_count(a->peer) < 2 && s.w.now_us < start_us + 100 * SECOND) {
        sim_run(&s, 100 * MS);
    }
    CHECK(s.w.now_us - start_us >= 59 * SECOND);
    CHECK(s.w.now_us - start_us <= 62 * SECOND);
    crash(a, 0, 0);
    start(a);
    CHECK_EQ(opcomms_dead_count(a->peer), 2);
    CHECK_EQ(opcomms_dead_next(a->peer, three, &q), OPCOMMS_OK);
    CHECK_EQ(q.number, late);
    CHECK_EQ(q.code, OPCOMMS_E_TIMEOUT);
    CHECK_EQ(opcomms_queued_get(a->peer, stays, &q), OPCOMMS_OK);
    CHECK_EQ(opcomms_dead_requeue(a->peer, three, &fresh, &err), OPCOMMS_OK);
    CHECK(fresh > stays);
    start(b);
    CHECK(until_sent(&s, a, 30 * SECOND));
    CHECK_EQ(take(b, a, 0, NULL), 2);
    CHECK_EQ(take(b, a, 0, NULL), 0);
    CHECK_EQ(take(b, a, 0, NULL), UINT32_MAX);
    CHECK_EQ(opcomms_dead_drop(a->peer, late, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_dead_count(a->peer), 0);
    sim_end(&s);
}

/* ---- connections ---- */

TEST(a_peer_without_power_is_found_out_within_the_send_timeout) {
    sim s;
    sim_peer *a, *b;
    uint64_t start_us;
    begin(&s, 71, &a, &b, NULL);
    start(a);
    start(b);
    CHECK_EQ(put(a, b, 0, 50, NULL, NULL), OPCOMMS_OK);
    CHECK(until_sent(&s, a, SECOND));
    CHECK_EQ(sim_stats(a).connections, 1);
    sim_run(&s, 3 * SECOND);
    lose(s.w.conn[0]);
    start_us = s.w.now_us;
    CHECK_EQ(put(a, b, 1, 50, NULL, NULL), OPCOMMS_OK);
    while (sim_stats(a).attempts_failed == 0 && s.w.now_us < start_us + 60 * SECOND) {
        sim_run(&s, 100 * MS);
    }
    CHECK(s.w.now_us - start_us <= 10 * SECOND + 200 * MS);
    CHECK(s.w.now_us - start_us >= 2 * SECOND);
    CHECK(until_sent(&s, a, 3 * SECOND)); /* by a new connection */
    expect(b, a, 0, 1);
    sim_end(&s);
}

TEST(a_send_over_a_connection_that_went_away_in_silence_arrives_once) {
    sim s;
    sim_peer *a, *b;
    opcomms_error err;
    uint64_t start_us;
    uint64_t number;
    int i;
    begin(&s, 72, &a, &b, NULL);
    start(a);
    start(b);
    for (i = 0; i < 3; i++) {
        CHECK_EQ(sim_send(a, b, sample, 100, 0, &err), OPCOMMS_OK);
        sim_run(&s, 31 * SECOND);
        lose(s.w.conn[s.w.conns - 1]);
        start_us = s.w.now_us;
        if (i == 2) CHECK_EQ(sim_send(a, b, sample, 100, 300, &err), OPCOMMS_E_UNKNOWN_OUTCOME);
        CHECK_EQ(sim_send(a, b, sample, 100, 0, &err), OPCOMMS_OK);
        CHECK(s.w.now_us - start_us < 3 * SECOND);
    }
    number = sim_stats(b).messages_in;
    CHECK_EQ(number, 6);
    sim_end(&s);
}

TEST(a_server_that_comes_back_is_reached_by_the_next_call) {
    sim s;
    sim_peer *a, *b;
    opcomms_error err;
    begin(&s, 73, &a, &b, NULL);
    start(a);
    start(b);
    b->host->blackhole = 1;
    CHECK_EQ(sim_send(a, b, "x", 1, 3000, &err), OPCOMMS_E_TIMEOUT);
    b->host->blackhole = 0;
    CHECK_EQ(sim_send(a, b, "x", 1, 3000, &err), OPCOMMS_OK);
    sim_run(&s, 400 * SECOND);
    b->host->mute = 1;
    CHECK_EQ(sim_send(a, b, "x", 1, 3000, &err), OPCOMMS_E_TIMEOUT);
    b->host->mute = 0;
    CHECK_EQ(sim_send(a, b, "x", 1, 3000, &err), OPCOMMS_OK);
    CHECK_EQ(sim_stats(b).messages_in, 2);
    sim_end(&s);
}

TEST(idle_connections_end_and_the_next_message_makes_a_new_one) {
    sim s;
    sim_peer *a, *b;
    opcomms_enqueue_options opt = options();
    uint32_t n;
    begin(&s, 74, &a, &b, NULL);
    a->cfg.idle_timeout_ms = 20000;
    start(a);
    start(b);
    for (n = 0; n < 4; n++) {
        CHECK_EQ(put(a, b, n, 50, NULL, NULL), OPCOMMS_OK);
        CHECK(until_sent(&s, a, SECOND));
        CHECK_EQ(sim_stats(a).connections, 1);
        sim_run(&s, 32 * SECOND);
        CHECK_EQ(sim_stats(a).connections, 0);
        CHECK_EQ(sim_stats(b).connections, 0);
    }
    expect(b, a, 0, 3);
    CHECK_EQ(sim_stats(b).accepted, 4);
    CHECK_EQ(sim_stats(a).attempts_failed, 0);
    opt.level = OPCOMMS_LEVEL_CONSUMED; /* who waits for consumption asks again */
    CHECK_EQ(put(a, b, 4, 50, &opt, NULL), OPCOMMS_OK);
    sim_run(&s, 70 * SECOND);
    CHECK(sim_stats(b).accepted <= 10);
    expect(b, a, 4, 4);
    CHECK(until_sent(&s, a, 2 * SECOND));
    sim_end(&s);
}

TEST(messages_without_an_address_wait_for_a_connection_of_that_peer) {
    sim s;
    sim_peer *a, *b;
    opcomms_error err;
    opcomms_identifier to;
    uint32_t n;
    begin(&s, 75, &a, &b, NULL);
    a->cfg.flags |= OPCOMMS_NO_LISTEN;
    start(a);
    start(b);
    to = mailbox(a, 0);
    for (n = 0; n < 5; n++) {
        size_t size = body(back, n, 5000);
        CHECK_EQ(opcomms_enqueue(b->peer, &to, NULL, NULL, 0, back, size, NULL, NULL, &err),
                 OPCOMMS_OK);
    }
    sim_run(&s, 30 * SECOND);
    CHECK_EQ(opcomms_queued_count(b->peer, NULL), 5);
    CHECK_EQ(put(a, b, 9, 50, NULL, NULL), OPCOMMS_OK);
    CHECK(until_sent(&s, b, SECOND));
    expect(a, b, 0, 4);
    expect(b, a, 9, 9);
    sim_end(&s);
}

/* A slow old connection and its successor carry the same message: it is stored once. */
TEST(a_message_that_comes_over_two_connections_at_once_is_stored_once) {
    sim s;
    sim_peer *a, *b;
    uint32_t n;
    begin(&s, 76, &a, &b, NULL);
    a->cfg.send_timeout_ms = 3000;
    start(a);
    start(b);
    CHECK_EQ(put(a, b, 0, 50, NULL, NULL), OPCOMMS_OK);
    CHECK(until_sent(&s, a, SECOND));
    s.w.conn[0]->wire.window = 5000;
    CHECK_EQ(put(a, b, 1, 30000, NULL, NULL), OPCOMMS_OK);
    while (s.w.conn[0]->pipe[0].given < 12000 && test_bad == 0) sim_run(&s, 1);
    s.w.conn[0]->wire.window = 65536;
    s.w.conn[0]->wire.delay_min_us = s.w.conn[0]->wire.delay_max_us = 5 * SECOND;
    while (s.w.conns < 2 && test_bad == 0) sim_run(&s, 100);
    s.w.conn[1]->wire.window = 5000;
    while (s.w.conn[1]->pipe[0].given < 12000 && test_bad == 0) sim_run(&s, 1);
    s.w.conn[1]->wire.window = 65536;
    s.w.conn[1]->wire.delay_min_us = s.w.conn[1]->wire.delay_max_us = 4 * SECOND;
    for (n = 2; n < 5; n++) CHECK_EQ(put(a, b, n, 50, NULL, NULL), OPCOMMS_OK);
    sim_run(&s, 5 * SECOND);
    wire_heals(&s.w);
    CHECK(until_sent(&s, a, 60 * SECOND));
    expect(b, a, 0, 4);
    CHECK_EQ(sim_stats(b).messages_in, 5);
    sim_end(&s);
}

/* ---- access ---- */

TEST(a_key_that_is_removed_is_served_no_more_and_all_goes_on_when_it_is_back) {
    sim s;
    sim_peer *a, *b;
    uint32_t n;
    uint64_t in;
    int side;
    for (side = 0; side < 2; side++) {
        opcomms_allow_list *list;
        const char *key;
        begin(&s, 81, &a, &b, NULL);
        s.w.wire.piece_max = 400;
        s.w.wire.window = 2000;
        start(a);
        start(b);
        list = side == 0 ? b->allow : a->allow;
        key = side == 0 ? a->hash : b->hash;
        for (n = 0; n < 100; n++) CHECK_EQ(put(a, b, n, 900, NULL, NULL), OPCOMMS_OK);
        while (sim_stats(b).messages_in < 20 && test_bad == 0) sim_run(&s, 10);
        CHECK_EQ(opcomms_allow_list_remove(list, key), OPCOMMS_OK);
        in = sim_stats(b).messages_in;
        CHECK(in < 100);
        if (side == 1) { /* what had left may still arrive; nothing new leaves */
            uint64_t sent = s.w.conn[0]->pipe[0].sent;
            sim_run(&s, 100 * SECOND);
            CHECK(s.w.conn[0]->pipe[0].sent <= sent + 100);
            CHECK_EQ(s.w.conns, 1);
        } else {
            sim_run(&s, 100 * SECOND);
            CHECK_EQ(sim_stats(b).messages_in, in);
        }
        CHECK_EQ(sim_stats(b).connections, 0);
        CHECK_EQ(opcomms_allow_list_add(list, key, NULL), OPCOMMS_OK);
        CHECK(until_sent(&s, a, 30 * SECOND));
        expect(b, a, 0, 99);
        sim_end(&s);
    }
}

/* ---- logs that go back ---- */

typedef struct copy {
    uint8_t *p;
    size_t len;
} copy;

static copy log_copy(const sim_peer *p) {
    fake_file *f = fake_named(p->host, SIM_LOG);
    copy c;
    c.len = (size_t)f->size;
    c.p = (uint8_t *)malloc(c.len);
    if (c.p == NULL) abort();
    memcpy(c.p, f->cache, c.len);
    return c;
}

static void log_back(sim_peer *p, copy c) {
    fake_put_file(p->host, SIM_LOG, c.p, c.len);
    free(c.p);
}

static int rollbacks(sim_peer *p, const sim_peer *of) {
    opcomms_event e;
    int n = 0;
    while (opcomms_next_event(p->peer, 0, &e) == OPCOMMS_OK) {
        n += e.state == OPCOMMS_STATE_ROLLBACK && strcmp(e.to, of->hash) == 0;
    }
    return n;
}

/* b's disk is replaced by an older copy: a and b notice, a and c go on. who: who queues. */
static void roll_back(int who, int crashed) {
    sim s;
    sim_peer *a, *b, *c, *from, *to;
    opcomms_error err;
    opcomms_err rc;
    copy old;
    uint32_t n, flags = 0;
    uint64_t dials;
    begin(&s, 91, &a, &b, &c);
    start(a);
    start(b);
    start(c);
    from = who == 0 ? a : b;
    to = who == 0 ? b : a;
    for (n = 0; n < 3; n++) CHECK_EQ(put(from, to, n, 50, NULL, NULL), OPCOMMS_OK);
    CHECK(until_sent(&s, from, SECOND));
    expect(to, from, 0, 2);
    sim_stop(b);
    old = log_copy(b);
    start(b);
    for (n = 3; n < 6; n++) CHECK_EQ(put(from, to, n, 50, NULL, NULL), OPCOMMS_OK);
    CHECK(until_sent(&s, from, 20 * SECOND));
    expect(to, from, 3, 5);
    if (crashed) {
        crash(b, 0, 0);
    } else {
        sim_stop(b);
    }
    log_back(b, old);
    start(b);
    sim_run(&s, SECOND);
    (void)rollbacks(a, b);
    CHECK_EQ(put(from, to, 6, 50, NULL, NULL), OPCOMMS_OK);
    CHECK_EQ(put(a, c, 0, 50, NULL, NULL), OPCOMMS_OK);
    dials = s.w.conns;
    sim_run(&s, 120 * SECOND);
    CHECK_EQ(opcomms_queued_count(from->peer, to->hash), 1); /* this pair stops */
    CHECK_EQ(take(to, from, 0, NULL), UINT32_MAX);
    expect(c, a, 0, 0); /* others go on */
    CHECK(s.w.conns - dials < 60); /* and does not try without rest */
    CHECK(rollbacks(a, b) > 0);
    CHECK(rollbacks(b, a) > 0);
    CHECK_EQ(sim_send(a, b, "x", 1, 3000, &err), OPCOMMS_E_ROLLBACK);
    CHECK_EQ(opcomms_accept_rollback(a->peer, c->hash, &err), OPCOMMS_E_NOT_FOUND);
    rc = opcomms_accept_rollback(a->peer, b->hash, &err);
    CHECK(rc == OPCOMMS_OK || rc == OPCOMMS_E_NOT_FOUND);
    if (rc != OPCOMMS_OK) CHECK_EQ(opcomms_accept_rollback(b->peer, a->hash, &err), OPCOMMS_OK);
    if (rc == OPCOMMS_OK) (void)opcomms_accept_rollback(b->peer, a->hash, &err);
    CHECK(until_sent(&s, from, 30 * SECOND));
    n = take(to, from, 0, &flags);
    CHECK_EQ(n, 6);
    CHECK_EQ(take(to, from, 0, NULL), UINT32_MAX);
    for (n = 7; n < 9; n++) { /* for good, also after a restart of both */
        sim_stop(a);
        sim_stop(b);
        start(a);
        start(b);
        CHECK_EQ(put(from, to, n, 50, NULL, NULL), OPCOMMS_OK);
        CHECK(until_sent(&s, from, 30 * SECOND));
        CHECK_EQ(take(to, from, 0, NULL), n);
    }
    sim_end(&s);
}

TEST(a_receivers_log_that_went_back_stops_the_pair_until_it_is_accepted) {
    roll_back(0, 0);
    roll_back(0, 1);
}
TEST(a_senders_log_that_went_back_stops_the_pair_until_it_is_accepted) {
    roll_back(1, 0);
    roll_back(1, 1);
}

/* ---- calls with numbers ---- */

/* Repeats a call until it is known what became of it: its message is there once. */
TEST(a_numbered_call_repeated_after_any_cut_stores_once) {
    sim s;
    sim_peer *a, *b;
    opcomms_error err;
    uint64_t at, total[2] = {0, 0}, in = 0;
    uint32_t n = 0;
    int d, how, unknown = 0;
    begin(&s, 95, &a, &b, NULL);
    a->cfg.handshake_timeout_ms = b->cfg.handshake_timeout_ms = 2000;
    a->cfg.send_timeout_ms = 2000;
    b->cfg.idle_timeout_ms = 5000;
    start(a);
    start(b);
    for (how = 0; how < 3; how++) {
        for (d = 0; d < 2; d++) {
            for (at = 0; at <= total[d] && test_bad == 0; at += cut_step * 2) {
                static uint8_t text[6000];
                uint64_t number = 0;
                opcomms_err rc;
                int tries = 0;
                size_t size = body(text, n, 5000);
                s.w.wire.cut[d].at = total[1] == 0 ? FAKE_NEVER : at;
                s.w.wire.cut[d].how = how;
                do {
                    rc = opcomms_send_numbered(a->peer, b->hash, b->address, text, size, &number,
                                               700, &err);
                    if (rc == OPCOMMS_E_UNKNOWN_OUTCOME) unknown++;
                    if (total[1] == 0) {
                        total[0] = s.w.conn[0]->pipe[0].sent;
                        total[1] = s.w.conn[0]->pipe[1].sent;
                    }
                    wire_heals(&s.w);
                } while (rc != OPCOMMS_OK && ++tries < 20);
                CHECK_EQ(rc, OPCOMMS_OK);
                CHECK(number != 0);
                CHECK_EQ(sim_stats(b).messages_in, ++in);
                CHECK_EQ(take(b, a, 0, NULL), n);
                n++;
                if (test_bad > 0) printf("direction %d byte %d kind %d\n", d, (int)at, how);
                CHECK_EQ(opcomms_allow_list_remove(a->allow, b->hash), OPCOMMS_OK);
                sim_run(&s, 100 * MS);
                CHECK_EQ(opcomms_allow_list_add(a->allow, b->hash, NULL), OPCOMMS_OK);
            }
        }
    }
    CHECK(unknown > 5);
    sim_end(&s);
}

/* ---- a relay: what b has from a goes to c, in one operation with its acknowledgement ---- */

static opcomms_err relay(sim_peer *b, const sim_peer *to, uint32_t *n) {
    opcomms_message *msg = NULL;
    opcomms_outgoing out;
    opcomms_error err;
    size_t got = 0, size;
    uint8_t state[4];
    opcomms_err rc = opcomms_receive(b->peer, 0, &msg, &err);
    if (rc != OPCOMMS_OK) return rc;
    size = opcomms_message_size(msg);
    CHECK(size < 4000);
    rc = opcomms_message_read(msg, 0, back, sizeof back, &got);
    if (rc != OPCOMMS_OK || got != size) {
        opcomms_release(msg);
        return OPCOMMS_E_IO;
    }
    *n = which(back, size);
    memset(&out, 0, sizeof out);
    out.to = mailbox(to, 0);
    out.address = to->address;
    out.data = back;
    out.len = size;
    memcpy(state, back + 12, 4); /* the last four digits */
    rc = opcomms_commit(b->peer, &msg, 1, &out, 1, state, 4, &err);
    if (rc != OPCOMMS_OK) opcomms_release(msg);
    return rc;
}

static void relay_crash(uint64_t at, int kill, int *reached) {
    sim s;
    sim_peer *a, *b, *c;
    opcomms_error err;
    opcomms_err rc = OPCOMMS_OK;
    uint32_t n, done = UINT32_MAX, seen = UINT32_MAX;
    uint32_t direct = 0, k;
    int rounds;
    memset(&err, 0, sizeof err);
    begin(&s, 100 + at * 2 + (uint64_t)kill, &a, &b, &c);
    b->host->sector = at % 2 ? 512 : 4096;
    start(a);
    start(b);
    start(c);
    b->host->crash_at = b->host->calls + at;
    b->host->crash_kills = kill;
    for (n = 0; n < 6; n++) CHECK_EQ(put(a, c, n, 10, NULL, NULL), OPCOMMS_OK); /* a direct flow */
    for (n = 10; n < 16; n++) CHECK_EQ(put(a, b, n, 100, NULL, NULL), OPCOMMS_OK);
    for (rounds = 0; rounds < 400; rounds++) {
        uint8_t state[16];
        size_t len = 0;
        if (b->host->dead) {
            *reached = 1;
            crash(b, 0, 0);
            start(b);
            if (b->peer == NULL) break;
            rc = opcomms_get_state(b->peer, state, sizeof state, &len);
            if (rc == OPCOMMS_OK) {
                state[4] = 0;
                seen = (uint32_t)strtoul((char *)state, NULL, 10);
                CHECK_EQ(len, 4);
            }
            CHECK(rc == OPCOMMS_OK || rc == OPCOMMS_E_EMPTY);
            if (done != UINT32_MAX) CHECK(rc == OPCOMMS_OK && (seen == done || seen == done + 1));
        }
        rc = relay(b, c, &n);
        if (rc == OPCOMMS_OK) {
            if (seen != UINT32_MAX) CHECK(n > seen); /* what was committed does not come again */
            if (done != UINT32_MAX) CHECK(n == done + 1 || n == seen + 1);
            done = n;
        }
        sim_run(&s, 30 * MS);
        if (!b->host->dead && rc == OPCOMMS_E_EMPTY && opcomms_queued_count(a->peer, NULL) == 0 &&
            opcomms_queued_count(b->peer, NULL) == 0 && sim_stats(b).unread == 0) {
            break;
        }
    }
    b->host->crash_at = 0;
    CHECK(rounds < 400);
    for (k = 0; k < 12 && test_bad == 0; k++) { /* c has a's and b's, each in order */
        opcomms_identifier who;
        size_t len = 0;
        rc = opcomms_check_receive(c->peer, &who, back, sizeof back, &len, &err);
        CHECK_EQ(rc, OPCOMMS_OK);
        if (rc != OPCOMMS_OK) break;
        CHECK_EQ(which(back, len), strcmp(who.hash, a->hash) == 0 ? direct++ : 10 + k - direct);
    }
    CHECK_EQ(sim_stats(c).unread, 0);
    CHECK_EQ(sim_stats(c).messages_in, 12);
    if (test_bad > 0) printf("relay: call %d, kill %d: %s\n", (int)at, kill, err.text);
    sim_end(&s);
}

TEST(a_relay_is_exactly_once_across_a_crash_at_any_call) {
    uint64_t at = 1;
    int kill, reached;
    for (kill = 0; kill < 2; kill++) {
        for (at = 1 + (uint64_t)kill, reached = 1; reached && test_bad == 0; at += crash_step) {
            reached = 0;
            relay_crash(at, kill, &reached);
        }
        CHECK(at > 100);
    }
}

/* ---- random lives ---- */

#define PARTIES 4
#define LETTERS 3000u

typedef enum { OPEN, STORED, MAYBE, REFUSED } outcome;

/* One message, queued or sent. */
typedef struct letter {
    int from, to, from_id, dest_id;
    int direct;       /* by opcomms_send_numbered: no order is promised */
    size_t size;
    outcome out;
    int child;        /* the letter that was committed with its acknowledgement; -1 */
    int handed;       /* how often */
    uint64_t number;  /* in the receiver's log; 0: not known */
    int acked, sure;  /* acknowledged; durably so */
    uint64_t syncs;
} letter;

typedef struct world {
    sim s;
    letter letter[LETTERS];
    uint32_t letters;
    int64_t state[PARTIES]; /* last committed; -1: none */
    uint32_t deal[PARTIES][2]; /* commit of unknown outcome: letter taken, letter queued */
    int dealing[PARTIES];
    int quiet;
    unsigned faults;
    uint64_t crashes, maybe, relayed, full;
} world;

static world w;
static uint64_t seed;

static void bad(const char *what, uint32_t n) {
    test_bad++;
    printf("SEED=%llu at %llu: %s", (unsigned long long)seed,
           (unsigned long long)w.s.w.now_us, what);
    if (n < w.letters) {
        const letter *l = &w.letter[n];
        printf(" (letter %u from %d:%d to %d:%d, %d bytes, out %d, handed %d, acked %d, direct %d)",
               (unsigned)n, l->from, l->from_id, l->to, l->dest_id, (int)l->size, (int)l->out,
               l->handed, l->acked, l->direct);
    }
    printf("\n");
}

static uint64_t roll(uint64_t n) { return fake_below(&w.s.w, n); }
static int percent(unsigned p) { return fake_chance(&w.s.w, p); }
static int up(int who) { return w.s.peer[who].peer != NULL && !w.s.peer[who].host->dead; }

static uint32_t letter_new(int from, int to) {
    letter *l = &w.letter[w.letters];
    memset(l, 0, sizeof *l);
    l->from = from;
    l->to = to;
    l->from_id = percent(70) ? 0 : 3;
    l->dest_id = percent(70) ? 0 : 5;
    l->size = 16 + (size_t)roll(percent(80) ? 200 : percent(80) ? 20000 : 150000);
    l->child = -1;
    return w.letters++;
}

static void letter_out(uint32_t n, opcomms_err rc) {
    letter *l = &w.letter[n];
    fake_note(&w.s.w, "put", n, (uint64_t)(int64_t)rc);
    l->out = rc == OPCOMMS_OK ? STORED : up(l->from) ? REFUSED : MAYBE;
    if (rc == OPCOMMS_E_UNKNOWN_OUTCOME) l->out = MAYBE;
    if (l->out == MAYBE) w.maybe++;
    if (rc == OPCOMMS_E_FULL) w.full++;
    if (l->out == REFUSED && rc != OPCOMMS_E_FULL && !l->direct) bad("refused", n);
    if (l->out == STORED && !l->direct) {
        char head[40];
        snprintf(head, sizeof head, "message %08u", (unsigned)n);
        if (!fake_on_platter(w.s.peer[l->from].host, SIM_LOG, head, 16)) {
            bad("enqueued before it was durable", n);
        }
    }
}

static void act_put(int from, int to) {
    sim_peer *p = &w.s.peer[from], *q = &w.s.peer[to];
    opcomms_enqueue_options opt = options();
    opcomms_identifier dest;
    opcomms_error err;
    uint32_t n;
    opcomms_err rc;
    static uint8_t text[BIG];
    if (to == from || w.letters >= LETTERS) return;
    n = letter_new(from, to);
    body(text, n, w.letter[n].size);
    opt.from_id = (uint8_t)w.letter[n].from_id;
    opt.level = (uint8_t)roll(4);
    dest = mailbox(q, w.letter[n].dest_id);
    memset(&err, 0, sizeof err);
    rc = opcomms_enqueue(p->peer, &dest, w.quiet || percent(90) ? q->address : NULL, NULL, 0, text,
                         w.letter[n].size, &opt, NULL, &err);
    letter_out(n, rc);
}

static void act_send(int from) {
    int to = (int)roll(PARTIES), tries;
    sim_peer *p = &w.s.peer[from], *q = &w.s.peer[to];
    opcomms_error err;
    uint64_t number = 0;
    uint32_t n;
    opcomms_err rc = OPCOMMS_OK;
    int unknown = 0;
    static uint8_t text[BIG];
    if (to == from || w.letters >= LETTERS) return;
    n = letter_new(from, to);
    w.letter[n].direct = 1;
    w.letter[n].from_id = w.letter[n].dest_id = 0;
    body(text, n, w.letter[n].size);
    for (tries = 0; tries < 4 && up(from); tries++) {
        rc = opcomms_send_numbered(p->peer, q->hash, q->address, text, w.letter[n].size, &number,
                                   (uint32_t)(200 + roll(4000)), &err);
        if (rc == OPCOMMS_OK) break;
        if (rc == OPCOMMS_E_UNKNOWN_OUTCOME) unknown = 1;
    }
    if (rc != OPCOMMS_OK && unknown) rc = OPCOMMS_E_UNKNOWN_OUTCOME;
    letter_out(n, rc);
}

/* Letter n is handed out by `who`. */
static void handed(int who, int id, uint32_t n, opcomms_message *msg) {
    letter *l = &w.letter[n];
    opcomms_identifier from;
    uint64_t number = opcomms_message_number(msg);
    char head[40];
    uint32_t i;
    fake_note(&w.s.w, "handed", (uint64_t)who, n);
    opcomms_message_from(msg, &from);
    snprintf(head, sizeof head, "message %08u", (unsigned)n);
    if (l->to != who || l->dest_id != id) bad("in a wrong mailbox", n);
    if (strcmp(from.hash, w.s.peer[l->from].hash) != 0 || from.id != l->from_id) {
        bad("under a wrong name", n);
    }
    if (opcomms_message_flags(msg) != 0) bad("marked", n);
    if (l->out == REFUSED) bad("handed out although it was refused", n);
    if (l->number != 0 && l->number != number) bad("stored twice", n);
    if (l->acked && l->sure) bad("handed out after it was consumed for good", n);
    if (!fake_on_platter(w.s.peer[who].host, SIM_LOG, head, 16)) bad("before it was durable", n);
    for (i = 0; i < w.letters && !l->direct; i++) {
        const letter *o = &w.letter[i];
        if (o->from != l->from || o->to != who || o->from_id != l->from_id ||
            o->dest_id != id || o->direct) {
            continue;
        }
        if (i < n && o->out == STORED && o->handed == 0) bad("before an older one", n);
        if (i > n && o->handed > 0 && l->handed == 0) bad("behind a newer one", n);
    }
    l->handed++;
    l->number = number;
}

/* Takes the oldest of a mailbox: 1: there was one. */
static int act_take(int who, int id) {
    sim_peer *p = &w.s.peer[who];
    opcomms_message *msg = NULL;
    opcomms_error err;
    size_t at = 0, size, got = 0;
    uint32_t n, child;
    letter *l;
    opcomms_err rc;
    if (opcomms_receive_id(p->peer, (uint8_t)id, 0, &msg, &err) != OPCOMMS_OK) return 0;
    size = opcomms_message_size(msg);
    while (at < size && size <= BIG &&
           opcomms_message_read(msg, at, back + at, size - at, &got) == OPCOMMS_OK && got > 0) {
        at += got;
    }
    if (at < size) {
        if (up(who)) bad("cannot be read", UINT32_MAX);
        opcomms_release(msg);
        return 0;
    }
    n = which(back, size);
    if (n >= w.letters) {
        bad("nobody wrote it", UINT32_MAX);
        opcomms_release(msg);
        return 0;
    }
    l = &w.letter[n];
    handed(who, id, n, msg);
    if (!w.quiet && percent(10)) {
        opcomms_release(msg);
    } else if (!w.quiet && w.letters < LETTERS && percent(40)) { /* pass it on */
        int to = (who + 1 + (int)roll(PARTIES - 1)) % PARTIES;
        opcomms_outgoing out;
        opcomms_enqueue_options opt = options();
        static uint8_t text[BIG];
        memset(&out, 0, sizeof out);
        child = letter_new(who, to);
        body(text, child, w.letter[child].size);
        opt.from_id = (uint8_t)w.letter[child].from_id;
        out.to = mailbox(&w.s.peer[to], w.letter[child].dest_id);
        out.address = w.s.peer[to].address;
        out.data = text;
        out.len = w.letter[child].size;
        out.options = &opt;
        rc = opcomms_commit(p->peer, &msg, 1, &out, 1, &child, sizeof child, &err);
        letter_out(child, rc);
        if (rc == OPCOMMS_OK) {
            l->acked = l->sure = 1;
            l->child = (int)child;
            w.state[who] = child;
            w.relayed++;
        } else {
            opcomms_release(msg);
            w.dealing[who] = w.letter[child].out == MAYBE;
            w.deal[who][0] = n;
            w.deal[who][1] = child;
        }
    } else {
        l->syncs = p->host->syncs;
        l->acked = opcomms_ack(msg, &err) == OPCOMMS_OK;
    }
    return 1;
}

static void settle_acks(int who, int lost) {
    uint32_t i;
    for (i = 0; i < w.letters; i++) {
        letter *l = &w.letter[i];
        if (l->to != who || !l->acked) continue;
        if (w.s.peer[who].host->syncs > l->syncs) l->sure = 1;
        if (lost && !l->sure) l->acked = 0;
    }
}

static void reap(int who) {
    sim_peer *p = &w.s.peer[who];
    settle_acks(who, 1);
    opcomms_free(p->peer);
    p->peer = NULL;
    if (p->memory.used != 0) bad("memory leaked", UINT32_MAX);
}

static void act_start(int who) {
    sim_peer *p = &w.s.peer[who];
    opcomms_error err;
    uint32_t state = 0;
    size_t len = 0;
    opcomms_err rc;
    fake_boot(p->host);
    if (!w.quiet && percent(10)) p->host->crash_at = p->host->calls + 1 + roll(60);
    rc = sim_start(p, &err);
    if (rc != OPCOMMS_OK) {
        p->peer = NULL;
        if (!p->host->dead) bad("does not start again", UINT32_MAX);
        if (!p->host->dead) printf("    %s\n", err.text);
        return;
    }
    p->host->crash_at = 0;
    rc = opcomms_get_state(p->peer, &state, sizeof state, &len);
    if (rc != OPCOMMS_OK && rc != OPCOMMS_E_EMPTY) bad("state", UINT32_MAX);
    if (w.dealing[who]) { /* all of it or nothing */
        int yes = rc == OPCOMMS_OK && state == w.deal[who][1];
        letter *l = &w.letter[w.deal[who][0]];
        w.letter[w.deal[who][1]].out = yes ? STORED : REFUSED;
        if (yes) {
            l->acked = l->sure = 1;
            l->child = (int)state;
            w.state[who] = state;
        }
        w.dealing[who] = 0;
    }
    if (w.state[who] < 0 ? rc != OPCOMMS_E_EMPTY
                         : rc != OPCOMMS_OK || (int64_t)state != w.state[who]) {
        bad("another state than was committed", UINT32_MAX);
    }
}

static void on_connect(void *user, fake_conn *c) {
    fake_wire *v = &c->wire;
    int d;
    (void)user;
    fake_wire_plain(v);
    if (w.quiet) return;
    if (percent(50)) {
        v->random = 1;
        v->piece_max = 1 + (size_t)roll(5000);
    }
    if (percent(50)) v->delay_max_us = roll(50000) + v->delay_min_us;
    if (percent(20)) v->window = 1 + (size_t)roll(70000);
    for (d = 0; d < 2; d++) {
        if (percent(w.faults)) {
            v->cut[d].at = roll(percent(50) ? 4000 : 100000);
            v->cut[d].how = (int)roll(3);
        }
    }
}

static void act(void) {
    int who = (int)roll(PARTIES);
    sim_peer *p = &w.s.peer[who];
    if (p->peer != NULL && p->host->dead) reap(who);
    if (p->peer == NULL) {
        if (percent(40)) act_start(who);
    } else {
        switch (roll(12)) {
        case 0:
        case 1:
        case 2:
        case 3: act_put(who, (int)roll(PARTIES)); break;
        case 4: act_send(who); break;
        case 5:
        case 6:
        case 7: (void)act_take(who, 0); break;
        case 8: (void)act_take(who, 5); break;
        case 9:
            if (!percent(w.faults)) break;
            p->host->crash_at = p->host->calls + 1 + roll(percent(50) ? 6 : 200);
            p->host->crash_kills = percent(40);
            w.crashes++;
            if (percent(50)) { /* in the middle of a call */
                act_put(who, (int)roll(PARTIES));
            } else {
                (void)act_take(who, 0);
            }
            break;
        case 10:
            if (!percent(w.faults)) break;
            w.crashes++;
            if (percent(40)) {
                fake_kill(p->host);
            } else {
                fake_power_cut(p->host, percent(50));
            }
            break;
        default:
            if (percent(20)) {
                (void)opcomms_stop(p->peer);
                reap(who);
            }
        }
    }
    if (percent(60)) sim_run(&w.s, roll(percent(80) ? 20000 : 2000000));
}

static void conclude(void) {
    uint32_t n;
    int i, rounds, left = 1;
    w.quiet = 1;
    wire_heals(&w.s.w);
    for (i = 0; i < PARTIES; i++) {
        sim_peer *p = &w.s.peer[i];
        p->host->crash_at = 0;
        if (p->peer != NULL && p->host->dead) reap(i);
        if (p->peer == NULL) act_start(i);
        if (p->peer == NULL) bad("not started", UINT32_MAX);
    }
    for (i = 0; i < PARTIES * PARTIES && test_bad == 0; i++) {
        act_put(i / PARTIES, i % PARTIES); /* a connection for those without an address */
    }
    for (rounds = 0; rounds < 2000 && left && test_bad == 0; rounds++) {
        sim_run(&w.s, 1000000);
        left = 0;
        for (i = 0; i < PARTIES; i++) {
            int k;
            for (k = 0; k < 200 && test_bad == 0 && (act_take(i, 0) | act_take(i, 5)); k++) {
            }
            settle_acks(i, 0);
            if (opcomms_queued_count(w.s.peer[i].peer, NULL) > 0) left = 1;
        }
    }
    if (left) bad("the outbox does not empty", UINT32_MAX);
    for (n = 0; n < w.letters && test_bad == 0; n++) {
        if (w.letter[n].out == STORED && w.letter[n].handed == 0) bad("lost", n);
    }
    for (i = 0; i < PARTIES && test_bad == 0; i++) {
        if (sim_stats(&w.s.peer[i]).protocol_errors > 0) bad("broke the protocol", UINT32_MAX);
        if (sim_stats(&w.s.peer[i]).rollbacks > 0) bad("took a crash for a rollback", UINT32_MAX);
        if (opcomms_dead_count(w.s.peer[i].peer) > 0) bad("dead letters", UINT32_MAX);
    }
}

static uint64_t run(uint64_t number, int steps) {
    uint64_t hash;
    int i;
    memset(&w, 0, sizeof w);
    seed = number;
    sim_init(&w.s, seed * 1000003u + 29);
    for (i = 0; i < PARTIES; i++) {
        sim_peer *p = sim_add(&w.s, i);
        p->host->sector = percent(50) ? 512 : 4096;
        p->cfg.idle_timeout_ms = (uint32_t)(percent(50) ? 300000 : 2000 + roll(20000));
        if (percent(30)) p->cfg.queue_depth_max = (uint32_t)(2 + roll(10));
        if (percent(30)) p->cfg.window_messages = (uint32_t)(1 + roll(8));
        if (percent(30)) p->cfg.window_bytes = 1000 + roll(50000);
        w.state[i] = -1;
    }
    sim_befriend(&w.s);
    w.faults = roll(4) == 0 ? 0 : (unsigned)roll(50);
    w.s.w.on_connect = on_connect;
    for (i = 0; i < PARTIES; i++) start(&w.s.peer[i]);
    for (i = 0; i < steps && test_bad == 0; i++) act();
    if (test_bad == 0) conclude();
    hash = w.s.w.hash;
    if (w.s.w.spins > 0) bad("busy with nothing", UINT32_MAX);
    sim_end(&w.s);
    return hash;
}

static uint64_t first = 1, runs = 12;

TEST(random_lives_deliver_everything_once_and_in_order) {
    uint64_t i, letters = 0, crashes = 0, maybe = 0, relayed = 0;
    for (i = 0; i < runs && test_bad == 0; i++) {
        run(first + i, 250);
        if (test_bad > 0) printf("FAILED SEED=%llu\n", (unsigned long long)(first + i));
        letters += w.letters;
        crashes += w.crashes;
        maybe += w.maybe;
        relayed += w.relayed;
    }
    printf("%llu runs from seed %llu: %llu messages, %llu relayed, %llu of unknown outcome, "
           "%llu crashes\n", (unsigned long long)i, (unsigned long long)first,
           (unsigned long long)letters, (unsigned long long)relayed, (unsigned long long)maybe,
           (unsigned long long)crashes);
    CHECK(runs < 12 || (letters > 500 && relayed > 50 && maybe > 2 && crashes > 20));
}

TEST(a_seed_replays_exactly) {
    uint64_t a = run(first + 2, 60), b = run(first + 2, 60), c = run(first + 3, 60);
    CHECK(a == b);
    CHECK(a != c);
}

int main(void) {
    size_t i;
    int every = getenv("SIM_RUNS") != NULL;
    for (i = 0; i < sizeof sample; i++) sample[i] = (uint8_t)(i * 7 + i / 256);
    cut_step = every ? 1 : 61;
    crash_step = every ? 1 : 3;
    if (every) runs = strtoull(getenv("SIM_RUNS"), NULL, 10);
    if (getenv("SEED") != NULL) {
        first = strtoull(getenv("SEED"), NULL, 10);
        if (!every) runs = 1;
    }
    RUN(messages_of_all_sizes_arrive_in_order_over_a_wire_of_pieces);
    RUN(a_reset_at_any_byte_loses_and_repeats_nothing);
    RUN(a_half_close_at_any_byte_loses_and_repeats_nothing);
    RUN(a_stall_at_any_byte_loses_and_repeats_nothing);
    RUN(a_message_that_is_to_be_consumed_is_done_when_it_was);
    RUN(consumption_is_told_for_every_opening_of_the_senders_log);
    RUN(events_are_told_once_and_their_absence_is_said);
    RUN(a_receiver_that_is_full_closes_the_window_and_nothing_is_dropped);
    RUN(a_mailbox_that_several_senders_fill_takes_all_of_it_later);
    RUN(a_large_message_cancelled_half_way_costs_nothing);
    RUN(more_destinations_at_one_peer_than_channels_are_all_served);
    RUN(an_unreachable_destination_delays_no_other);
    RUN(attempts_are_repeated_with_bounded_jittered_waits);
    RUN(attempts_and_time_run_out_and_leave_dead_letters_that_can_be_queued_again);
    RUN(a_peer_without_power_is_found_out_within_the_send_timeout);
    RUN(a_send_over_a_connection_that_went_away_in_silence_arrives_once);
    RUN(a_server_that_comes_back_is_reached_by_the_next_call);
    RUN(idle_connections_end_and_the_next_message_makes_a_new_one);
    RUN(messages_without_an_address_wait_for_a_connection_of_that_peer);
    RUN(a_message_that_comes_over_two_connections_at_once_is_stored_once);
    RUN(a_key_that_is_removed_is_served_no_more_and_all_goes_on_when_it_is_back);
    RUN(a_receivers_log_that_went_back_stops_the_pair_until_it_is_accepted);
    RUN(a_senders_log_that_went_back_stops_the_pair_until_it_is_accepted);
    RUN(a_numbered_call_repeated_after_any_cut_stores_once);
    RUN(a_relay_is_exactly_once_across_a_crash_at_any_call);
    RUN(random_lives_deliver_everything_once_and_in_order);
    RUN(a_seed_replays_exactly);
    return test_end();
}
