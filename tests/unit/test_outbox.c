/* Messages on their way: order, fairness, retries, limits, acknowledgements, dead letters. Nothing
   here connects, stores or has a clock; time is a number. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#include "test.h"
#include "model.h"

#define NONE OPC__ITEMS_NONE

static opc__items items;
static opc__outbox box;
static opc__outbox_limits limits;
static uint64_t last_uid;
static opc__epoch epoch;

static void usual(void) {
    limits.messages_max = 100000;
    limits.depth_max = 10000;
    limits.dests_max = 4096;
    limits.retry_min_ms = 100;
    limits.retry_max_ms = 10000;
    limits.bytes_max = 1u << 30;
}

static void begin(void) {
    mem_begin();
    last_uid = 0;
    epoch.counter = 5;
    epoch.random = 55;
    opc__items_init(&items, &mem);
    opc__outbox_init(&box, &mem, &items, &limits);
}

static void end(void) {
    opc__outbox_free(&box);
    opc__items_free(&items);
    CHECK_EQ(mem.used, 0);
    usual();
}

static opc__entry *at(uint32_t i) { return opc__items_at(&items, i); }
static uint64_t uid_of(uint32_t i) { return i == NONE ? 0 : at(i)->uid; }

static void hash_of(uint32_t server, uint8_t hash[32]) {
    memset(hash, 0, 32);
    opc__buf_put32(hash, server * 2654435761u);
    hash[31] = (uint8_t)server;
}

static opcomms_err try_open(uint32_t server, uint8_t id, uint32_t *d) {
    uint8_t hash[32];
    hash_of(server, hash);
    return opc__outbox_open(&box, hash, 0, (const uint8_t *)"destination", 11, id, d);
}

static uint32_t open_dest(uint32_t server, uint8_t id) {
    uint32_t d = NONE;
    CHECK_EQ(try_open(server, id, &d), OPCOMMS_OK);
    return d;
}

static void meta(opc__msg_meta *m, uint64_t bytes) {
    memset(m, 0, sizeof *m);
    m->kind = OPC__KIND_OUT;
    m->epoch = epoch;
    m->bytes = bytes;
    m->level = OPC__LEVEL_DURABLE;
}

static opcomms_err add_meta(uint32_t d, const opc__msg_meta *m, uint64_t position) {
    opcomms_err rc = opc__outbox_reserve(&box, d, m);
    if (rc == OPCOMMS_OK) {
        last_uid++;
        (void)opc__outbox_add(&box, d, m, last_uid, last_uid * 100, position);
    }
    return rc;
}

/* A message that is durable at once; its number. */
static uint64_t add(uint32_t d) {
    opc__msg_meta m;
    meta(&m, 10);
    CHECK_EQ(add_meta(d, &m, 0), OPCOMMS_OK);
    return last_uid;
}

static uint64_t add_level(uint32_t d, uint8_t level) {
    opc__msg_meta m;
    meta(&m, 10);
    m.level = level;
    CHECK_EQ(add_meta(d, &m, 0), OPCOMMS_OK);
    return last_uid;
}

static uint64_t add_term(uint32_t d, uint32_t attempts, int64_t expires_s) {
    opc__msg_meta m;
    meta(&m, 10);
    m.attempts_max = attempts;
    m.expires_s = expires_s;
    CHECK_EQ(add_meta(d, &m, 0), OPCOMMS_OK);
    return last_uid;
}

/* Sends what is next; its number, or 0. */
static uint64_t send_one(uint32_t d) {
    uint32_t i = opc__outbox_next(&box, d);
    if (i == NONE) return 0;
    opc__outbox_sent(&box, i, OPC__TRIED_NATIVE);
    return at(i)->uid;
}

static void acked(uint32_t d, int level, uint64_t uid) {
    opc__outbox_acked(&box, opc__outbox_era_find(&box, d, &epoch), level, uid);
}

/* Takes one step of progress; OVER leaves the queue. Its number, or 0. */
static uint64_t progress(uint32_t d, int *what) {
    uint32_t i = opc__outbox_progress(&box, d, what);
    uint64_t uid = uid_of(i);
    if (i != NONE && *what == OPC__OUTBOX_OVER) opc__outbox_remove(&box, i);
    return uid;
}

static uint64_t delivered(uint32_t d, uint64_t uid) { /* how many were over */
    int what = 0;
    uint64_t n = 0;
    acked(d, OPC__LEVEL_DURABLE, uid);
    while (progress(d, &what) != 0) n++;
    return n;
}

static int state_of(uint64_t uid) {
    uint32_t i = opc__items_find(&items, uid);
    return i == NONE ? OPC__OUTBOX_OVER : opc__outbox_state(&box, i);
}

/* ---- order and acknowledgements ---- */

TEST(messages_leave_oldest_first_and_each_once_a_connection) {
    uint32_t d, k;
    begin();
    d = open_dest(1, 0);
    CHECK_EQ(open_dest(1, 0), d);
    CHECK_EQ(send_one(d), 0);
    for (k = 0; k < 5; k++) (void)add(d);
    for (k = 1; k <= 5; k++) {
        CHECK_EQ(state_of(k), OPC__OUTBOX_QUEUED);
        CHECK_EQ(uid_of(opc__outbox_next(&box, d)), k);
        CHECK_EQ(send_one(d), k);
        CHECK_EQ(state_of(k), OPC__OUTBOX_SENT);
    }
    CHECK_EQ(send_one(d), 0);
    CHECK_EQ(add(d), 6);
    CHECK_EQ(send_one(d), 6);
    CHECK_EQ(box.dests[d].under_way, 6);
    CHECK_EQ(delivered(d, 4), 4);
    CHECK_EQ(box.dests[d].count, 2);
    CHECK_EQ(box.queued, 2);
    CHECK_EQ(box.bytes, 20);
    CHECK_EQ(state_of(4), OPC__OUTBOX_OVER);
    opc__outbox_rewind(&box, d);
    CHECK_EQ(state_of(5), OPC__OUTBOX_QUEUED);
    CHECK_EQ(at(opc__items_find(&items, 5))->tried, OPC__TRIED_NATIVE);
    CHECK_EQ(send_one(d), 5);
    CHECK_EQ(send_one(d), 6);
    CHECK_EQ(send_one(d), 0);
    CHECK_EQ(delivered(d, 6), 2);
    CHECK_EQ(box.queued, 0);
    CHECK_EQ(box.dests[d].under_way, 0);
    CHECK_EQ(items.count, 0);
    end();
}

TEST(the_levels_of_acknowledgement_come_one_after_the_other) {
    uint32_t d;
    int what = 0;
    begin();
    d = open_dest(1, 0);
    CHECK_EQ(add_level(d, OPC__LEVEL_RECEIVED), 1);
    CHECK_EQ(add_level(d, OPC__LEVEL_DURABLE), 2);
    CHECK_EQ(add_level(d, OPC__LEVEL_CONSUMED), 3);
    CHECK_EQ(add_level(d, OPC__LEVEL_CONSUMED), 4);
    while (send_one(d) != 0) {}
    acked(d, OPC__LEVEL_RECEIVED, 3);
    CHECK_EQ(state_of(1), OPC__OUTBOX_RECEIVED);
    CHECK_EQ(state_of(3), OPC__OUTBOX_RECEIVED);
    CHECK_EQ(state_of(4), OPC__OUTBOX_SENT);
    CHECK_EQ(progress(d, &what), 1); /* this one asked */
    CHECK_EQ(what, OPC__OUTBOX_RECEIVED);
    CHECK_EQ(progress(d, &what), 0); /* and is told once; it stays */
    CHECK_EQ(box.queued, 4);
    acked(d, OPC__LEVEL_DURABLE, 4);
    CHECK_EQ(uid_of(opc__outbox_progress(&box, d, &what)), 1);
    CHECK_EQ(what, OPC__OUTBOX_OVER);
    CHECK_EQ(progress(d, &what), 1); /* the store was busy: it comes again */
    CHECK_EQ(progress(d, &what), 2);
    CHECK_EQ(what, OPC__OUTBOX_OVER);
    CHECK_EQ(progress(d, &what), 3);
    CHECK_EQ(what, OPC__OUTBOX_DURABLE);
    CHECK_EQ(progress(d, &what), 4);
    CHECK_EQ(what, OPC__OUTBOX_DURABLE);
    CHECK_EQ(progress(d, &what), 0);
    CHECK_EQ(box.queued, 2);
    CHECK_EQ(state_of(3), OPC__OUTBOX_DURABLE);
    CHECK_EQ(box.dests[d].under_way, 0);
    opc__outbox_rewind(&box, d);
    CHECK_EQ(send_one(d), 0); /* not again */
    CHECK_EQ(add(d), 5);
    CHECK_EQ(send_one(d), 5);
    acked(d, OPC__LEVEL_CONSUMED, 3);
    CHECK_EQ(progress(d, &what), 3);
    CHECK_EQ(what, OPC__OUTBOX_OVER);
    CHECK_EQ(progress(d, &what), 0);
    acked(d, OPC__LEVEL_CONSUMED, 5); /* consumed is durable too */
    CHECK_EQ(progress(d, &what), 4);
    CHECK_EQ(progress(d, &what), 5);
    CHECK_EQ(box.queued, 0);
    end();
}

TEST(what_waits_to_be_consumed_wants_a_connection_and_no_end_but_that) {
    uint32_t d;
    int what = 0;
    int32_t code = 0;
    opc__msg_meta m;
    begin();
    d = open_dest(1, 0);
    meta(&m, 1);
    m.level = OPC__LEVEL_CONSUMED;
    m.expires_s = 10;
    m.attempts_max = 1;
    CHECK_EQ(add_meta(d, &m, 77), OPCOMMS_OK);
    (void)opc__outbox_tick(&box, 0, 77);
    CHECK_EQ(send_one(d), 1);
    acked(d, OPC__LEVEL_DURABLE, 1);
    CHECK_EQ(progress(d, &what), 1);
    CHECK_EQ(what, OPC__OUTBOX_DURABLE);
    CHECK_EQ(opc__outbox_giveup(&box, 1000, &code), NONE);
    CHECK_EQ(at(0)->term, 0);
    CHECK_EQ(at(0)->position, 77);
    CHECK_EQ(opc__outbox_due(&box), NONE);
    opc__outbox_failed(&box, d, OPCOMMS_E_CONNECT, 0, 0);
    CHECK_EQ(opc__outbox_giveup(&box, 1000, &code), NONE);
    CHECK_EQ(opc__outbox_attempts(at(0)), 0);
    CHECK_EQ(opc__outbox_tick(&box, 100000, 77), 1);
    CHECK_EQ(opc__outbox_due(&box), d);
    CHECK_EQ(box.dests[d].ask, 1);
    CHECK_EQ(opc__outbox_next(&box, d), NONE);
    opc__outbox_ok(&box, d);
    CHECK_EQ(opc__outbox_due(&box), NONE);
    CHECK_EQ(state_of(1), OPC__OUTBOX_DURABLE);
    end();
}

TEST(what_the_receiver_had_before_the_connection_is_not_sent_again) {
    uint32_t d;
    begin();
    d = open_dest(1, 0);
    while (add(d) < 6) {}
    while (send_one(d) != 0) {}
    opc__outbox_rewind(&box, d);
    CHECK_EQ(delivered(d, 4), 4); /* STATE.seen on the next connection */
    CHECK_EQ(send_one(d), 5);
    CHECK_EQ(box.dests[d].under_way, 1);
    CHECK_EQ(delivered(d, 6), 2); /* 6 came to light as well, before it was sent again */
    CHECK_EQ(box.dests[d].under_way, 0);
    CHECK_EQ(send_one(d), 0);
    end();
}

TEST(an_acknowledgement_of_what_was_never_sent_takes_nothing) {
    uint32_t d;
    int what;
    begin();
    d = open_dest(1, 0);
    (void)add_level(d, OPC__LEVEL_CONSUMED);
    (void)add(d);
    CHECK_EQ(send_one(d), 1);
    acked(d, OPC__LEVEL_CONSUMED, UINT64_MAX);
    CHECK_EQ(progress(d, &what), 1);
    CHECK_EQ(progress(d, &what), 0);
    CHECK_EQ(box.queued, 1);
    CHECK_EQ(add(d), 3);
    CHECK_EQ(send_one(d), 2);
    CHECK_EQ(send_one(d), 3);
    CHECK_EQ(progress(d, &what), 0);
    end();
}

TEST(a_message_is_not_sent_before_it_is_durable_here) {
    uint32_t d, f;
    opc__msg_meta m;
    begin();
    d = open_dest(1, 0);
    f = open_dest(2, 0);
    meta(&m, 1);
    CHECK_EQ(add_meta(d, &m, 10), OPCOMMS_OK);
    m.expires_s = 1000; /* where its position is kept elsewhere */
    CHECK_EQ(add_meta(f, &m, 20), OPCOMMS_OK);
    CHECK_EQ(add_meta(d, &m, 30), OPCOMMS_OK);
    CHECK_EQ(opc__outbox_tick(&box, 0, 9), 0);
    CHECK_EQ(opc__outbox_due(&box), NONE);
    CHECK_EQ(opc__outbox_deadline(&box), UINT64_MAX);
    CHECK_EQ(opc__outbox_next(&box, d), NONE);
    CHECK_EQ(opc__outbox_tick(&box, 0, 10), 1);
    CHECK_EQ(opc__outbox_due(&box), d);
    CHECK_EQ(opc__outbox_deadline(&box), 0);
    CHECK_EQ(send_one(d), 1);
    CHECK_EQ(send_one(d), 0);
    CHECK_EQ(opc__outbox_due(&box), NONE);
    CHECK_EQ(opc__outbox_tick(&box, 0, 29), 1);
    CHECK_EQ(opc__outbox_due(&box), f);
    CHECK_EQ(opc__outbox_tick(&box, 0, 30), 2);
    CHECK_EQ(send_one(d), 3);
    end();
}

TEST(a_later_opening_waits_until_all_of_the_earlier_is_durable) {
    uint32_t d;
    opc__epoch was;
    int what = 0;
    begin();
    d = open_dest(1, 0);
    (void)add(d);
    (void)add_level(d, OPC__LEVEL_CONSUMED);
    was = epoch;
    epoch.counter++;
    (void)add(d);
    CHECK_EQ(send_one(d), 1);
    CHECK_EQ(send_one(d), 2);
    CHECK_EQ(send_one(d), 0);
    CHECK_EQ(box.ready.count, 0);
    acked(d, OPC__LEVEL_CONSUMED, 2); /* of the later one: says nothing about these */
    CHECK_EQ(progress(d, &what), 0);
    opc__outbox_acked(&box, opc__outbox_era_find(&box, d, &was), OPC__LEVEL_DURABLE, 2);
    CHECK_EQ(progress(d, &what), 1);
    CHECK_EQ(send_one(d), 0);
    CHECK_EQ(progress(d, &what), 2);
    CHECK_EQ(what, OPC__OUTBOX_DURABLE);
    CHECK_EQ(box.ready.count, 1);
    CHECK_EQ(send_one(d), 3); /* does not wait for 2 to be consumed */
    acked(d, OPC__LEVEL_CONSUMED, 3);
    CHECK_EQ(progress(d, &what), 3);
    CHECK_EQ(state_of(2), OPC__OUTBOX_DURABLE);
    opc__outbox_acked(&box, opc__outbox_era_find(&box, d, &was), OPC__LEVEL_CONSUMED, 2);
    CHECK_EQ(progress(d, &what), 2);
    CHECK_EQ(opc__outbox_era_find(&box, d, &was), NONE); /* nothing is left of it */
    CHECK(opc__outbox_era_find(&box, d, &epoch) != NONE);
    end();
}

TEST(cancelling_any_message_leaves_the_others_in_order) {
    uint32_t d;
    begin();
    d = open_dest(1, 0);
    while (add(d) < 7) {}
    CHECK_EQ(send_one(d), 1);
    CHECK_EQ(send_one(d), 2);
    CHECK_EQ(send_one(d), 3);
    opc__outbox_remove(&box, opc__items_find(&items, 2)); /* under way */
    opc__outbox_remove(&box, opc__items_find(&items, 4)); /* the next */
    opc__outbox_remove(&box, opc__items_find(&items, 6));
    CHECK_EQ(box.dests[d].under_way, 2);
    CHECK_EQ(send_one(d), 5);
    CHECK_EQ(send_one(d), 7);
    CHECK_EQ(send_one(d), 0);
    opc__outbox_remove(&box, opc__items_find(&items, 1)); /* the oldest */
    opc__outbox_remove(&box, opc__items_find(&items, 7)); /* the newest */
    opc__outbox_rewind(&box, d);
    CHECK_EQ(send_one(d), 3);
    CHECK_EQ(send_one(d), 5);
    CHECK_EQ(send_one(d), 0);
    CHECK_EQ(add(d), 8);
    CHECK_EQ(send_one(d), 8);
    CHECK_EQ(delivered(d, 8), 3);
    CHECK_EQ(mem.used > 0, 1);
    end();
}

/* ---- fairness and backoff ---- */

TEST(destinations_take_turns_and_a_dead_one_holds_up_nobody) {
    uint32_t d[4], k, n, turns[4] = {0, 0, 0, 0};
    begin();
    for (k = 0; k < 4; k++) {
        d[k] = open_dest(k, 0);
        for (n = 0; n < 100; n++) (void)add(d[k]);
    }
    opc__outbox_failed(&box, d[1], OPCOMMS_E_CONNECT, 0, 0); /* dead */
    opc__outbox_park(&box, d[2]);                            /* slow: its window is closed */
    for (n = 0; n < 100; n++) {
        uint32_t ready = opc__outbox_tick(&box, 0, 0);
        while (ready-- > 0) {
            uint32_t x = opc__outbox_due(&box);
            CHECK(send_one(x) != 0);
            for (k = 0; k < 4; k++) turns[k] += x == d[k];
        }
        CHECK_EQ(turns[0], n + 1);
        CHECK_EQ(turns[3], n + 1);
    }
    CHECK_EQ(turns[1] + turns[2], 0);
    CHECK_EQ(opc__outbox_due(&box), NONE); /* all of 0 and 3 is under way */
    CHECK_EQ(opc__outbox_deadline(&box), 100000);
    (void)add(d[2]);
    CHECK_EQ(opc__outbox_due(&box), NONE); /* still parked */
    opc__outbox_wake(&box, d[2]);
    CHECK_EQ(opc__outbox_due(&box), d[2]);
    CHECK_EQ(opc__outbox_tick(&box, 99999, 0), 1);
    CHECK_EQ(opc__outbox_tick(&box, 100000, 0), 2);
    end();
}

TEST(a_parked_destination_is_free_when_its_connection_is_gone_or_its_messages_are) {
    uint32_t d;
    begin();
    d = open_dest(1, 0);
    (void)add(d);
    (void)add(d);
    opc__outbox_park(&box, d);
    opc__outbox_rewind(&box, d);
    CHECK_EQ(opc__outbox_due(&box), d);
    opc__outbox_park(&box, d);
    opc__outbox_remove(&box, opc__items_find(&items, 1));
    CHECK_EQ(opc__outbox_due(&box), NONE);
    opc__outbox_remove(&box, opc__items_find(&items, 2));
    CHECK_EQ(box.dests[d].at, OPC__OUTBOX_AT_EMPTY);
    opc__outbox_park(&box, d); /* nothing to park */
    (void)add(d);
    CHECK_EQ(opc__outbox_due(&box), d);
    end();
}

TEST(the_backoff_doubles_to_its_bound_with_jitter_and_success_resets_it) {
    static const uint32_t randoms[3] = {0, 0x80000000u, 0xffffffffu};
    uint64_t now = 1000000, whole = 100000, delay;
    uint32_t d, k, n;
    begin();
    d = open_dest(1, 0);
    (void)add(d);
    for (n = 0; n < 50; n++) {
        opc__outbox_failed(&box, d, OPCOMMS_E_CONNECT, now, randoms[n % 3]);
        delay = opc__outbox_deadline(&box) - now;
        if (n % 3 == 0) CHECK_EQ(delay, whole);
        if (n % 3 == 1) CHECK_EQ(delay, whole - whole / 4);
        if (n % 3 == 2) CHECK(delay >= whole / 2 && delay <= whole / 2 + 1);
        CHECK_EQ(opc__outbox_tick(&box, now + delay - 1, 0), 0);
        (void)add(d); /* does not shorten it */
        CHECK_EQ(opc__outbox_due(&box), NONE);
        now += delay;
        CHECK_EQ(opc__outbox_tick(&box, now, 0), 1);
        whole = whole * 2 > 10000000 ? 10000000 : whole * 2;
    }
    opc__outbox_ok(&box, d);
    opc__outbox_failed(&box, d, OPCOMMS_E_CONNECT, now, 0);
    CHECK_EQ(opc__outbox_deadline(&box) - now, 100000);
    opc__outbox_wake(&box, d); /* the peer connected to us */
    CHECK_EQ(opc__outbox_due(&box), d);
    opc__outbox_failed(&box, d, OPCOMMS_E_CONNECT, now, 0);
    CHECK_EQ(opc__outbox_deadline(&box) - now, 200000); /* that was no success yet */
    for (k = 0; k < 51; k++) opc__outbox_remove(&box, opc__items_find(&items, k + 1));
    CHECK_EQ(box.queued, 0);
    CHECK_EQ(add(d), 52);
    CHECK_EQ(opc__outbox_due(&box), NONE); /* emptying it does not either */
    now += 200000;
    CHECK_EQ(opc__outbox_tick(&box, now, 0), 1);
    end();
}

TEST(jitter_spreads_over_the_whole_half) {
    uint32_t d, n, part[10];
    begin();
    limits.retry_max_ms = 0xffffffffu;
    opc__outbox_free(&box);
    opc__outbox_init(&box, &mem, &items, &limits);
    d = open_dest(1, 0);
    (void)add(d);
    memset(part, 0, sizeof part);
    for (n = 0; n < 10000; n++) {
        uint64_t delay, whole = n % 2 ? 100000 : (uint64_t)0xffffffffu * 1000u;
        box.dests[d].doublings = n % 2 ? 0 : 32;
        opc__outbox_failed(&box, d, OPCOMMS_E_CONNECT, 5, rnd(0x7fffffffu) * 2u + rnd(2));
        delay = box.dests[d].retry_us - 5;
        CHECK(delay >= whole / 2 && delay <= whole);
        if (delay == whole) delay--;
        if (delay >= whole / 2) part[(delay - whole / 2) / (whole / 20 + 1)]++;
    }
    for (n = 0; n < 10; n++) CHECK(part[n] > 850 && part[n] < 1150);
    end();
}

/* ---- attempts, expiry, dead letters ---- */

TEST(attempts_count_for_those_under_way_else_for_the_oldest) {
    uint32_t d;
    int32_t code = 0;
    begin();
    d = open_dest(1, 0);
    CHECK_EQ(add_term(d, 3, 0), 1);
    CHECK_EQ(add_term(d, 1, 0), 2);
    CHECK_EQ(add(d), 3);
    CHECK_EQ(uid_of(opc__outbox_trying(&box, d, NONE)), 1);
    CHECK_EQ(opc__outbox_trying(&box, d, 0), NONE);
    opc__outbox_failed(&box, d, OPCOMMS_E_CONNECT, 0, 0); /* no connection */
    CHECK_EQ(opc__outbox_attempts(at(0)), 1);
    CHECK_EQ(opc__outbox_attempts(at(1)), 0);
    CHECK_EQ(opc__outbox_giveup(&box, 0, &code), NONE);
    CHECK_EQ(send_one(d), 1);
    CHECK_EQ(send_one(d), 2);
    opc__outbox_rewind(&box, d); /* nobody's fault */
    CHECK_EQ(opc__outbox_attempts(at(0)), 1);
    CHECK_EQ(send_one(d), 1);
    CHECK_EQ(send_one(d), 2);
    CHECK_EQ(uid_of(opc__outbox_trying(&box, d, NONE)), 1);
    CHECK_EQ(uid_of(opc__outbox_trying(&box, d, 0)), 2);
    CHECK_EQ(opc__outbox_trying(&box, d, 1), NONE);
    opc__outbox_failed(&box, d, OPCOMMS_E_CLOSED, 0, 0);
    CHECK_EQ(opc__outbox_attempts(at(0)), 2);
    CHECK_EQ(opc__outbox_attempts(at(2)), 0);
    CHECK_EQ(opc__outbox_giveup(&box, -5, &code), 1); /* 2 has none left; the time is no matter */
    CHECK_EQ(code, OPCOMMS_E_CLOSED);
    CHECK_EQ(opc__outbox_giveup(&box, 0, &code), 1);
    CHECK_EQ(opc__outbox_giveup_s(&box), INT64_MIN);
    opc__outbox_kill(&box, 1, code, 1234);
    CHECK_EQ(opc__outbox_giveup(&box, 0, &code), NONE);
    CHECK_EQ(box.queued, 2);
    CHECK_EQ(box.dead, 1);
    CHECK_EQ(opc__outbox_state(&box, 1), OPC__OUTBOX_DEAD);
    CHECK_EQ(opc__outbox_dead_code(at(1)), OPCOMMS_E_CLOSED);
    CHECK_EQ(opc__outbox_dead_s(at(1)), 1234);
    CHECK_EQ(opc__outbox_attempts(at(1)), 1);
    CHECK_EQ(at(1)->tried, OPC__TRIED_NATIVE);
    CHECK_EQ(opc__outbox_tick(&box, UINT64_MAX / 4, 0), 1);
    CHECK_EQ(send_one(d), 1);
    CHECK_EQ(send_one(d), 3);
    opc__outbox_failed(&box, d, OPCOMMS_E_CLOSED, 0, 0);
    CHECK_EQ(opc__outbox_giveup(&box, 0, &code), 0);
    end();
}

TEST(attempts_without_a_limit_go_on_for_ever) {
    uint32_t d, k;
    int32_t code = 0;
    begin();
    d = open_dest(1, 0);
    (void)add(d);
    for (k = 0; k < 70000; k++) opc__outbox_failed(&box, d, OPCOMMS_E_CONNECT, k, k);
    CHECK_EQ(opc__outbox_attempts(at(0)), 0xffff);
    CHECK_EQ(at(0)->who & 0xffffu, opc__outbox_era_find(&box, d, &epoch));
    CHECK_EQ(opc__outbox_giveup(&box, INT64_MAX, &code), NONE);
    CHECK_EQ(opc__outbox_giveup_s(&box), INT64_MAX);
    CHECK_EQ(box.dests[d].code, OPCOMMS_E_CONNECT);
    end();
}

TEST(messages_expire_in_the_order_of_their_times_and_not_while_under_way) {
    uint32_t d, f, i, k;
    int32_t code = 0;
    int64_t last = 0;
    begin();
    d = open_dest(1, 0);
    f = open_dest(2, 0);
    for (k = 1; k <= 1000; k++) (void)add_term(k % 2 ? d : f, 0, 100 + (k * 7919) % 1000);
    CHECK_EQ(opc__outbox_giveup_s(&box), 100);
    CHECK_EQ(opc__outbox_giveup(&box, 99, &code), NONE);
    for (k = 1; k <= 20; k++) CHECK(send_one(d) != 0); /* odd numbers up to 39 */
    for (k = 41; k <= 60; k++) opc__outbox_remove(&box, opc__items_find(&items, k));
    k = 0;
    while ((i = opc__outbox_giveup(&box, 1099, &code)) != NONE) {
        int64_t expires = opc__outbox_term(&box, at(i))->expires_s;
        CHECK(expires >= last);
        CHECK(at(i)->uid % 2 == 0 || at(i)->uid > 39);
        CHECK_EQ(code, OPCOMMS_E_TIMEOUT);
        last = expires;
        opc__outbox_kill(&box, i, code, last);
        k++;
    }
    CHECK_EQ(k, 960);
    CHECK_EQ(box.dead, 960);
    CHECK_EQ(box.queued, 20);
    opc__outbox_rewind(&box, d); /* now they may, all at once */
    for (k = 0; (i = opc__outbox_giveup(&box, 1099, &code)) != NONE; k++) {
        opc__outbox_kill(&box, i, code, last);
    }
    CHECK_EQ(k, 20);
    CHECK_EQ(box.dests[d].terms, 0);
    CHECK_EQ(box.dests[f].terms, 0);
    for (k = 0, i = box.dead_first; i != NONE; i = at(i)->next) k++;
    CHECK_EQ(k, 980);
    while (box.dead_first != NONE) opc__outbox_dead_remove(&box, box.dead_first);
    CHECK_EQ(box.bytes, 0);
    CHECK_EQ(items.count, 0);
    end();
}

TEST(a_message_refused_for_good_is_dead_and_the_others_go_on) {
    uint32_t d;
    begin();
    d = open_dest(1, 0);
    while (add(d) < 3) {}
    while (send_one(d) != 0) {}
    opc__outbox_kill(&box, opc__items_find(&items, 1), OPCOMMS_E_ROUTE, 7);
    CHECK_EQ(box.dests[d].count, 2);
    CHECK_EQ(box.dests[d].under_way, 2);
    CHECK_EQ(delivered(d, 3), 2);
    CHECK_EQ(box.dests[d].at, OPC__OUTBOX_AT_EMPTY);
    CHECK_EQ(uid_of(box.dead_first), 1);
    CHECK_EQ(opc__outbox_dead_code(at(box.dead_first)), OPCOMMS_E_ROUTE);
    CHECK(opc__items_live(&items, 1));
    opc__outbox_dead_remove(&box, box.dead_first);
    CHECK_EQ(box.dead_first, NONE);
    end();
}

/* ---- limits ---- */

TEST(limits_refuse_and_drop_nothing) {
    uint32_t d, f, i;
    opc__msg_meta m;
    begin();
    limits.messages_max = 5;
    limits.depth_max = 3;
    limits.bytes_max = 100;
    opc__outbox_free(&box);
    opc__outbox_init(&box, &mem, &items, &limits);
    d = open_dest(1, 0);
    f = open_dest(2, 0);
    meta(&m, 101);
    CHECK_EQ(add_meta(d, &m, 0), OPCOMMS_E_LIMIT); /* never fits */
    m.bytes = 70;
    CHECK_EQ(add_meta(d, &m, 0), OPCOMMS_OK);
    m.bytes = 31;
    CHECK_EQ(add_meta(d, &m, 0), OPCOMMS_E_FULL); /* bytes */
    m.bytes = 30;
    CHECK_EQ(add_meta(d, &m, 0), OPCOMMS_OK);
    m.bytes = 0;
    CHECK_EQ(add_meta(d, &m, 0), OPCOMMS_OK);
    CHECK_EQ(add_meta(d, &m, 0), OPCOMMS_E_FULL); /* depth */
    CHECK_EQ(add_meta(f, &m, 0), OPCOMMS_OK);
    opc__outbox_kill(&box, opc__items_find(&items, 4), OPCOMMS_E_ROUTE, 0);
    CHECK_EQ(add_meta(f, &m, 0), OPCOMMS_OK);
    CHECK_EQ(add_meta(f, &m, 0), OPCOMMS_E_FULL); /* in all, dead letters too */
    CHECK_EQ(box.queued, 4);
    CHECK_EQ(box.dead, 1);
    for (i = 1; i <= 5; i++) CHECK(opc__items_live(&items, i));
    opc__outbox_dead_remove(&box, opc__items_find(&items, 4));
    CHECK_EQ(add_meta(f, &m, 0), OPCOMMS_OK);
    m.bytes = OPC__ITEMS_BYTES_MAX;
    box.limits.bytes_max = UINT64_MAX;
    CHECK_EQ(opc__outbox_reserve(&box, f, &m), OPCOMMS_E_LIMIT);
    end();
}

TEST(destinations_are_limited_and_the_longest_empty_one_serves_another) {
    uint32_t d, k, e;
    begin();
    limits.dests_max = 300;
    opc__outbox_free(&box);
    opc__outbox_init(&box, &mem, &items, &limits);
    for (k = 0; k < 300; k++) {
        CHECK_EQ(open_dest(k, (uint8_t)k), k);
        (void)add(k);
    }
    CHECK_EQ(try_open(300, 0, &d), OPCOMMS_E_LIMIT);
    CHECK_EQ(open_dest(299, 299 % 256), 299); /* it exists */
    opc__outbox_remove(&box, opc__items_find(&items, 21));
    opc__outbox_remove(&box, opc__items_find(&items, 11));
    opc__outbox_remove(&box, opc__items_find(&items, 31));
    box.dests[20].held = 1; /* there is a connection for it */
    CHECK_EQ(open_dest(20, 20), 20);
    CHECK_EQ(open_dest(300, 0), 10);
    CHECK_EQ(open_dest(300, 0), 10);
    (void)add(10);
    CHECK_EQ(open_dest(301, 0), 30);
    (void)add(30);
    CHECK_EQ(try_open(302, 0, &d), OPCOMMS_E_LIMIT);
    box.dests[20].held = 0;
    allocs_left = 0;
    CHECK_EQ(try_open(302, 0, &d), OPCOMMS_E_NOMEM); /* and 20 is still what it was */
    CHECK_EQ(open_dest(20, 20), 20);
    allocs_left = -1;
    CHECK_EQ(open_dest(302, 0), 20);
    e = box.eras_cap;
    for (k = 1000; k < 3000; k++) { /* and nothing is used up by that */
        CHECK_EQ(open_dest(k, 0), 20);
        opc__outbox_remove(&box, opc__items_find(&items, add(20)));
    }
    CHECK_EQ(box.eras_cap, e);
    CHECK_EQ(box.dests_count, 300);
    end();
}

TEST(a_key_is_all_of_its_parts_and_the_latest_address_counts) {
    uint8_t a[32], b[32];
    uint32_t d = 0, e = 0;
    opc__msg_meta m;
    begin();
    hash_of(1, a);
    hash_of(2, b);
    CHECK_EQ(opc__outbox_open(&box, a, 1, (const uint8_t *)"ab", 2, 2, &d), OPCOMMS_OK);
    CHECK_EQ(opc__outbox_find(&box, a, 1, (const uint8_t *)"ab", 2, 2), d);
    CHECK_EQ(opc__outbox_find(&box, b, 1, (const uint8_t *)"ab", 2, 2), NONE);
    CHECK_EQ(opc__outbox_find(&box, a, 2, (const uint8_t *)"ab", 2, 2), NONE);
    CHECK_EQ(opc__outbox_find(&box, a, 1, (const uint8_t *)"aa", 2, 2), NONE);
    CHECK_EQ(opc__outbox_find(&box, a, 1, (const uint8_t *)"a", 1, 2), NONE);
    CHECK_EQ(opc__outbox_find(&box, a, 1, (const uint8_t *)"ab", 2, 1), NONE);
    CHECK_EQ(opc__outbox_open(&box, a, 1, NULL, 0, 2, &e), OPCOMMS_OK);
    CHECK(d != e);
    CHECK_EQ(opc__outbox_open(&box, a, 1, NULL, 1025, 2, &e), OPCOMMS_E_INVAL);
    meta(&m, 1);
    CHECK_EQ(add_meta(d, &m, 0), OPCOMMS_OK);
    CHECK_EQ(box.dests[d].address.family, 0);
    m.address.family = 4;
    m.address.port = 1;
    CHECK_EQ(add_meta(d, &m, 0), OPCOMMS_OK);
    m.address.port = 2;
    CHECK_EQ(add_meta(d, &m, 0), OPCOMMS_OK);
    CHECK_EQ(box.dests[d].address.port, 2);
    m.address.family = 0; /* whichever is known */
    CHECK_EQ(add_meta(d, &m, 0), OPCOMMS_OK);
    CHECK_EQ(box.dests[d].address.family, 4);
    end();
}

TEST(out_of_memory_at_any_allocation_changes_nothing) {
    long n;
    for (n = 0; n < 200; n++) {
        uint32_t d = NONE;
        opc__msg_meta m;
        opcomms_err rc;
        begin();
        meta(&m, 1);
        m.expires_s = 5;
        allocs_left = n;
        rc = try_open(1, 0, &d);
        if (rc == OPCOMMS_OK) rc = add_meta(d, &m, 0);
        allocs_left = -1;
        if (rc == OPCOMMS_OK) {
            end();
            break;
        }
        CHECK_EQ(rc, OPCOMMS_E_NOMEM);
        CHECK_EQ(box.queued, 0);
        d = open_dest(1, 0);
        CHECK_EQ(add_meta(d, &m, 0), OPCOMMS_OK);
        CHECK_EQ(send_one(d), 1);
        end();
    }
    CHECK(n > 5 && n < 200);
}

TEST(a_queued_message_costs_at_most_64_bytes) {
    uint32_t d, k;
    size_t before;
    begin();
    limits.depth_max = 50000;
    opc__outbox_free(&box);
    opc__outbox_init(&box, &mem, &items, &limits);
    d = open_dest(1, 0);
    before = mem.used;
    for (k = 0; k < 50000; k++) (void)add(d);
    CHECK((mem.used - before) / 50000 < 64);
    end();
}

/* ---- epochs ---- */

TEST(a_server_is_told_each_epoch_once_ascending_and_at_most_250) {
    opc__epoch out[OPC__OUTBOX_EPOCHS_MAX];
    uint8_t hash[32];
    uint32_t k, n;
    opc__msg_meta m;
    begin();
    hash_of(1, hash);
    CHECK_EQ(opc__outbox_epochs(&box, hash, out, 250), 0);
    for (k = 0; k < 250; k++) {
        epoch.counter = 10 + k / 2;
        epoch.random = 1000 - 10 * (k % 2);
        (void)add(open_dest(1, (uint8_t)(k % 3)));
        (void)add(open_dest(1, (uint8_t)(k % 5)));
        (void)add(open_dest(2, 0));
    }
    n = opc__outbox_epochs(&box, hash, out, 250);
    CHECK_EQ(n, 250);
    for (k = 0; k < n; k++) {
        CHECK_EQ(out[k].counter, 10 + k / 2);
        CHECK_EQ(out[k].random, 990 + 10 * (k % 2));
    }
    CHECK_EQ(opc__outbox_epochs(&box, hash, out, 249), 250);
    CHECK_EQ(opc__outbox_server_count(&box, hash), 500);
    epoch.counter = 500;
    meta(&m, 1);
    CHECK_EQ(add_meta(open_dest(1, 0), &m, 0), OPCOMMS_E_FULL); /* no room in a HELLO */
    CHECK_EQ(add_meta(open_dest(3, 0), &m, 0), OPCOMMS_OK);     /* another server */
    for (k = 1; k <= 3; k++) {
        uint32_t i = opc__items_find(&items, k);
        if (k != 3) opc__outbox_remove(&box, i);
    }
    CHECK_EQ(opc__outbox_epochs(&box, hash, out, 250), 249);
    CHECK_EQ(add_meta(open_dest(1, 0), &m, 0), OPCOMMS_OK);
    CHECK_EQ(opc__outbox_epochs(&box, hash, out, 250), 250);
    CHECK_EQ(out[249].counter, 500);
    CHECK_EQ(add_meta(open_dest(1, 1), &m, 0), OPCOMMS_OK); /* the same epoch again */
    end();
}

/* ---- opening ---- */

static opcomms_err found(uint32_t server, uint64_t uid, opc__msg_meta *m) {
    hash_of(server, m->server);
    m->dest = (const uint8_t *)"destination";
    m->dest_len = 11;
    return opc__outbox_found(&box, m, uid, uid + 1000000);
}

TEST(what_is_found_at_opening_is_kept_whatever_the_limits_say) {
    uint32_t d, k;
    int32_t code = 0;
    int what = 0;
    opc__msg_meta m;
    begin();
    memset(&box.limits, 0, sizeof box.limits);
    for (k = 1; k <= 600; k++) {
        meta(&m, k == 600 ? UINT64_MAX : 10);
        m.epoch.counter = k < 300 ? 1 : 2;
        m.attempts = 3;
        m.tried = OPC__TRIED_TARPC;
        m.code = OPCOMMS_E_TLS;
        m.level = k == 5 ? 200 : OPC__LEVEL_DURABLE;
        if (k == 7) m.attempts_max = 3;
        if (k == 8) m.expires_s = 50;
        if (k % 10 == 0) {
            m.kind = OPC__KIND_DEAD;
            m.dead_s = k;
            m.code = k == 10 ? INT32_MIN : OPCOMMS_E_ROUTE;
            m.attempts = 100000;
        }
        CHECK_EQ(found(k % 2, k, &m), OPCOMMS_OK);
    }
    CHECK_EQ(box.queued, 540);
    CHECK_EQ(box.dead, 60);
    CHECK_EQ(found(1, 600, &m), OPCOMMS_E_LOG_DAMAGED); /* twice */
    meta(&m, 1);
    CHECK_EQ(found(1, 0, &m), OPCOMMS_E_LOG_DAMAGED);
    m.epoch.counter = 2;
    CHECK_EQ(found(1, 310, &m), OPCOMMS_E_LOG_DAMAGED);
    CHECK_EQ(opc__outbox_dead_code(at(opc__items_find(&items, 10))), OPCOMMS_E_UNKNOWN_OUTCOME);
    CHECK_EQ(opc__outbox_dead_code(at(opc__items_find(&items, 20))), OPCOMMS_E_ROUTE);
    CHECK_EQ(opc__outbox_dead_s(at(opc__items_find(&items, 20))), 20);
    CHECK_EQ(opc__outbox_attempts(at(opc__items_find(&items, 20))), 0xffff);
    CHECK_EQ(at(opc__items_find(&items, 5))->level, OPC__LEVEL_DURABLE);
    CHECK_EQ(at(opc__items_find(&items, 5))->tried, OPC__TRIED_TARPC);
    k = opc__outbox_giveup(&box, 0, &code);
    CHECK_EQ(uid_of(k), 7);
    CHECK_EQ(code, OPCOMMS_E_TLS);
    opc__outbox_kill(&box, k, code, 0);
    k = opc__outbox_giveup(&box, 50, &code);
    CHECK_EQ(uid_of(k), 8);
    opc__outbox_kill(&box, k, code, 0);
    d = at(opc__items_find(&items, 1))->box;
    CHECK_EQ(opc__outbox_tick(&box, 0, 0), 2); /* they are durable */
    epoch.counter = 1;
    acked(d, OPC__LEVEL_DURABLE, 1000); /* the receiver had all of the first epoch */
    for (k = 0; progress(d, &what) != 0; k++) {}
    CHECK_EQ(k, 149); /* odd numbers up to 299, without 7 */
    CHECK_EQ(send_one(d), 301);
    end();
}

TEST(all_queued_messages_can_be_listed) {
    uint32_t i, n = 0;
    uint64_t sum = 0;
    begin();
    CHECK_EQ(opc__outbox_each(&box, NONE), NONE);
    (void)open_dest(9, 9); /* an empty one */
    (void)add(open_dest(1, 0));
    (void)add(open_dest(2, 0));
    (void)add(open_dest(1, 0));
    epoch.counter++;
    (void)open_dest(8, 9);
    (void)add(open_dest(1, 0));
    (void)add(open_dest(3, 0));
    opc__outbox_kill(&box, opc__items_find(&items, 2), OPCOMMS_E_ROUTE, 0);
    for (i = opc__outbox_each(&box, NONE); i != NONE; i = opc__outbox_each(&box, i)) {
        sum = sum * 10 + at(i)->uid;
        n++;
    }
    CHECK_EQ(n, 4);
    CHECK_EQ(sum, 1345);
    end();
}

TEST(compaction_moves_what_is_queued_and_dead) {
    uint32_t d, k;
    begin();
    d = open_dest(1, 0);
    for (k = 0; k < 3; k++) (void)add(d);
    opc__outbox_kill(&box, opc__items_find(&items, 1), OPCOMMS_E_ROUTE, 0);
    for (k = 1; k <= 3; k++) {
        CHECK(opc__items_live(&items, k));
        opc__items_moved(&items, k, k + 50);
    }
    opc__outbox_remove(&box, opc__items_find(&items, 3));
    opc__items_switched(&items, 1);
    CHECK_EQ(opc__items_ref(&items, opc__items_find(&items, 1)), 51);
    CHECK_EQ(opc__items_ref(&items, opc__items_find(&items, 2)), 52);
    CHECK(!opc__items_live(&items, 3));
    end();
}

/* ---- against a model: a plain array that is searched ---- */

enum { DESTS = 6, MOST = 120, STEPS = 100000 };

typedef struct model_message {
    uint64_t uid, position;
    uint32_t d, attempts, attempts_max;
    int64_t expires_s;
    uint64_t epoch, received;
    int level, sent, durable, dead, reported;
} model_message;

static model_message m[MOST];
static uint32_t count;
static struct {
    int parked, backoff, ask;
    uint64_t retry_us;
} md[DESTS];
static uint64_t now_us, visible;
static int64_t now_s;

static int m_find(uint64_t uid) {
    uint32_t k;
    for (k = 0; k < count; k++) {
        if (m[k].uid == uid) return (int)k;
    }
    return -1;
}

static void m_remove(int k) {
    memmove(&m[k], &m[k + 1], (size_t)(count - (uint32_t)k - 1) * sizeof m[0]);
    count--;
}

static int m_live(uint32_t d) {
    uint32_t k, n = 0;
    for (k = 0; k < count; k++) n += m[k].d == d && !m[k].dead;
    return (int)n;
}

/* Which is the next to send, durable here or not; -1. */
static int m_cursor(uint32_t d) {
    uint32_t k;
    uint64_t e = 0;
    for (k = 0; k < count; k++) { /* the oldest epoch that is not all durable */
        if (m[k].d == d && !m[k].dead && !m[k].durable && e == 0) e = m[k].epoch;
        if (m[k].d == d && !m[k].dead && !m[k].durable && !m[k].sent && m[k].epoch == e) {
            return (int)k;
        }
    }
    return -1;
}

static int m_ready(uint32_t d) {
    int k = m_cursor(d);
    if (md[d].parked || md[d].backoff || m_live(d) == 0) return 0;
    return k >= 0 ? m[k].position <= visible : md[d].ask;
}

static int m_ends(const model_message *x) {
    if (x->dead || x->sent || x->durable) return 0;
    return (x->attempts_max != 0 && x->attempts >= x->attempts_max) ||
           (x->expires_s != 0 && x->expires_s <= now_s);
}

/* What a change may have undone. */
static void m_settle(uint32_t d) {
    if (m_live(d) == 0) {
        md[d].ask = 0;
        md[d].parked = 0;
    }
    if (m_cursor(d) < 0 && !md[d].ask) md[d].parked = 0;
}

static void m_rewind(uint32_t d) {
    uint32_t k;
    for (k = 0; k < count; k++) {
        if (m[k].d != d || m[k].dead) continue;
        if (m[k].durable) {
            md[d].ask = 1;
        } else {
            m[k].sent = 0;
            m[k].reported = 0;
            if (m[k].received == 1) m[k].received = 0; /* it may have forgotten */
        }
    }
    md[d].parked = 0;
}

static void compare(void) {
    uint32_t k, d, queued = 0, dead = 0, ready = 0, i, any = 0;
    int32_t code = 0;
    for (k = 0; k < count; k++) {
        int want = m[k].dead      ? OPC__OUTBOX_DEAD
                   : m[k].durable ? OPC__OUTBOX_DURABLE
                   : m[k].sent    ? OPC__OUTBOX_SENT
                                  : OPC__OUTBOX_QUEUED;
        int got = state_of(m[k].uid);
        CHECK(got == want || (want == OPC__OUTBOX_SENT && got == OPC__OUTBOX_RECEIVED));
        CHECK_EQ(opc__outbox_attempts(at(opc__items_find(&items, m[k].uid))), m[k].attempts);
        if (m[k].dead) dead++;
        if (!m[k].dead) queued++;
        any |= (uint32_t)m_ends(&m[k]);
    }
    CHECK_EQ(box.queued, queued);
    CHECK_EQ(box.dead, dead);
    CHECK_EQ(box.bytes, (queued + dead) * 10);
    CHECK_EQ(items.count, count);
    for (d = 0; d < DESTS; d++) {
        int c = m_cursor(d);
        CHECK_EQ(box.dests[d].count, m_live(d));
        CHECK_EQ(uid_of(opc__outbox_next(&box, d)),
                 c >= 0 && m[c].position <= visible ? m[c].uid : 0);
        CHECK_EQ(box.dests[d].at == OPC__OUTBOX_AT_READY, m_ready(d));
        CHECK_EQ(box.dests[d].at == OPC__OUTBOX_AT_BACKOFF, md[d].backoff);
        CHECK_EQ(box.dests[d].at == OPC__OUTBOX_AT_PARKED, md[d].parked && !md[d].backoff);
        ready += (uint32_t)m_ready(d);
    }
    CHECK_EQ(box.ready.count, ready);
    i = opc__outbox_giveup(&box, now_s, &code);
    CHECK_EQ(i != NONE, any != 0);
    if (i != NONE) CHECK(m_find(uid_of(i)) >= 0 && m_ends(&m[m_find(uid_of(i))]));
}

static void step_add(uint32_t d) {
    opc__msg_meta x;
    model_message *y = &m[count];
    if (count == MOST) return;
    if (rnd(200) == 0) epoch.counter++;
    meta(&x, 10);
    x.level = (uint8_t)(1 + rnd(3));
    x.attempts_max = rnd(4) == 0 ? 1 + rnd(3) : 0;
    x.expires_s = rnd(4) == 0 ? now_s + 1 + rnd(50) : 0;
    memset(y, 0, sizeof *y);
    y->position = rnd(3) == 0 ? visible + rnd(5) : 0;
    CHECK_EQ(add_meta(d, &x, y->position), OPCOMMS_OK);
    y->uid = last_uid;
    y->d = d;
    y->attempts_max = x.attempts_max;
    y->expires_s = x.expires_s;
    y->level = x.level;
    y->epoch = epoch.counter;
    count++;
}

static void step_send(uint32_t d) {
    int k = m_cursor(d);
    if (k < 0 || m[k].position > visible) return;
    CHECK_EQ(send_one(d), m[k].uid);
    m[k].sent = 1;
    m_settle(d);
}

/* Acknowledges up to a random message of the destination that is under way or waits. */
static void step_ack(uint32_t d) {
    int k, what = 0, level = 1 + (int)rnd(3);
    uint32_t n, i;
    uint64_t e, uid;
    opc__epoch which = epoch;
    for (n = 0, k = -1; n < count; n++) {
        if (m[n].d == d && !m[n].dead && (m[n].sent || m[n].durable) && rnd(2)) k = (int)n;
    }
    if (k < 0) return;
    which.counter = e = m[k].epoch;
    opc__outbox_acked(&box, opc__outbox_era_find(&box, d, &which), level, m[k].uid);
    for (n = 0, uid = m[k].uid; n < count; n++) {
        if (m[n].d == d && m[n].epoch == e && m[n].uid <= uid && m[n].received < (uint64_t)level) {
            m[n].received = (uint64_t)level;
        }
    }
    for (;;) {
        i = opc__outbox_progress(&box, d, &what);
        if (i == NONE) break;
        k = m_find(uid_of(i));
        CHECK(k >= 0 && m[k].d == d);
        if (what == OPC__OUTBOX_OVER) {
            CHECK(m[k].received >= (m[k].level == 3 ? 3u : 2u));
            if (rnd(20) == 0) break; /* the store is busy; later */
            opc__outbox_remove(&box, i);
            m_remove(k);
        } else if (what == OPC__OUTBOX_DURABLE) {
            CHECK(m[k].received == 2 && m[k].level == 3 && !m[k].durable);
            m[k].durable = 1;
            m[k].sent = 0;
        } else {
            CHECK(m[k].received == 1 && m[k].level == 1 && !m[k].reported && m[k].sent);
            m[k].reported = 1;
        }
    }
    m_settle(d);
    for (n = 0; i == NONE && n < count; n++) { /* none was forgotten */
        if (m[n].d != d || m[n].dead || m[n].epoch != e) continue;
        CHECK(m[n].received < (m[n].level == 3 ? 3u : 2u));
        CHECK(m[n].received < 2 || m[n].durable);
        CHECK(m[n].received < 1 || m[n].level != 1 || m[n].reported || !m[n].sent);
    }
}

static void step_fail(uint32_t d) {
    uint32_t k, under = 0, first = NONE;
    for (k = 0; k < count; k++) {
        if (m[k].d != d || m[k].dead || m[k].durable) continue;
        if (m[k].sent) under++;
        if (first == NONE) first = k;
    }
    for (k = 0; k < count; k++) {
        if (m[k].d != d || m[k].dead || m[k].durable) continue;
        if (under > 0 ? m[k].sent : k == first) m[k].attempts++;
    }
    opc__outbox_failed(&box, d, OPCOMMS_E_CLOSED, now_us, rnd(0x7fffffffu));
    if (m_live(d) == 0) return;
    m_rewind(d);
    md[d].backoff = 1;
    md[d].retry_us = box.dests[d].retry_us;
    CHECK(md[d].retry_us >= now_us + 50000 && md[d].retry_us <= now_us + 10000000);
}

static void step_time(void) {
    uint32_t d;
    if (rnd(2)) now_us += rnd(2000000);
    if (rnd(2)) visible += rnd(4);
    if (rnd(4) == 0) now_s++;
    (void)opc__outbox_tick(&box, now_us, visible);
    for (d = 0; d < DESTS; d++) {
        if (md[d].backoff && md[d].retry_us <= now_us) md[d].backoff = 0;
        m_settle(d);
    }
}

static void step_connection(uint32_t d) {
    switch (rnd(4)) {
    case 0:
        opc__outbox_rewind(&box, d);
        m_rewind(d);
        m_settle(d);
        break;
    case 1:
        if (box.dests[d].at == OPC__OUTBOX_AT_READY || box.dests[d].at == OPC__OUTBOX_AT_FRESH) {
            md[d].parked = 1;
        }
        opc__outbox_park(&box, d);
        break;
    case 2:
        opc__outbox_wake(&box, d);
        md[d].parked = 0;
        md[d].backoff = 0;
        break;
    default:
        opc__outbox_ok(&box, d);
        md[d].backoff = 0;
        md[d].ask = 0;
        m_settle(d);
    }
}

static void step_leave(void) {
    int32_t code = 0;
    uint32_t i = opc__outbox_giveup(&box, now_s, &code), d;
    int k;
    if (rnd(2) && i != NONE) {
        k = m_find(uid_of(i));
        d = m[k].d;
        CHECK(code == OPCOMMS_E_TIMEOUT || code == OPCOMMS_E_CLOSED);
        opc__outbox_kill(&box, i, code, now_s);
        m[k].dead = 1;
        m_settle(d);
    } else if (box.dead > 0 && rnd(2)) {
        m_remove(m_find(uid_of(box.dead_first)));
        opc__outbox_dead_remove(&box, box.dead_first);
    } else if (count > 0) {
        k = (int)rnd(count);
        if (m[k].dead) return;
        d = m[k].d;
        i = opc__items_find(&items, m[k].uid);
        if (rnd(3)) {
            opc__outbox_remove(&box, i);
            m_remove(k);
        } else {
            opc__outbox_kill(&box, i, OPCOMMS_E_CLOSED, now_s);
            m[k].dead = 1;
        }
        m_settle(d);
    }
}

TEST(random_operations_agree_with_a_simple_model) {
    uint32_t step, d;
    begin();
    count = 0;
    now_us = 1;
    now_s = 1;
    visible = 0;
    memset(md, 0, sizeof md);
    for (d = 0; d < DESTS; d++) CHECK_EQ(open_dest(d / 2, (uint8_t)d), d);
    for (step = 0; step < STEPS && test_bad == 0; step++) {
        uint32_t what = rnd(100);
        d = rnd(DESTS);
        if (what < 30) {
            step_add(d);
        } else if (what < 60) {
            step_send(d);
        } else if (what < 75) {
            step_ack(d);
        } else if (what < 78) {
            step_fail(d);
        } else if (what < 83) {
            step_connection(d);
        } else if (what < 90) {
            step_time();
        } else {
            step_leave();
        }
        if (step % 3 == 0 || step > STEPS - 1000) compare();
        if (test_bad) printf("step %u, %u\n", step, what);
    }
    CHECK_EQ(step, STEPS);
    end();
}

int main(void) {
    usual();
    RUN(messages_leave_oldest_first_and_each_once_a_connection);
    RUN(the_levels_of_acknowledgement_come_one_after_the_other);
    RUN(what_waits_to_be_consumed_wants_a_connection_and_no_end_but_that);
    RUN(what_the_receiver_had_before_the_connection_is_not_sent_again);
    RUN(an_acknowledgement_of_what_was_never_sent_takes_nothing);
    RUN(a_message_is_not_sent_before_it_is_durable_here);
    RUN(a_later_opening_waits_until_all_of_the_earlier_is_durable);
    RUN(cancelling_any_message_leaves_the_others_in_order);
    RUN(destinations_take_turns_and_a_dead_one_holds_up_nobody);
    RUN(a_parked_destination_is_free_when_its_connection_is_gone_or_its_messages_are);
    RUN(the_backoff_doubles_to_its_bound_with_jitter_and_success_resets_it);
    RUN(jitter_spreads_over_the_whole_half);
    RUN(attempts_count_for_those_under_way_else_for_the_oldest);
    RUN(attempts_without_a_limit_go_on_for_ever);
    RUN(messages_expire_in_the_order_of_their_times_and_not_while_under_way);
    RUN(a_message_refused_for_good_is_dead_and_the_others_go_on);
    RUN(limits_refuse_and_drop_nothing);
    RUN(destinations_are_limited_and_the_longest_empty_one_serves_another);
    RUN(a_key_is_all_of_its_parts_and_the_latest_address_counts);
    RUN(out_of_memory_at_any_allocation_changes_nothing);
    RUN(a_queued_message_costs_at_most_64_bytes);
    RUN(a_server_is_told_each_epoch_once_ascending_and_at_most_250);
    RUN(what_is_found_at_opening_is_kept_whatever_the_limits_say);
    RUN(all_queued_messages_can_be_listed);
    RUN(compaction_moves_what_is_queued_and_dead);
    RUN(random_operations_agree_with_a_simple_model);
    return test_end();
}
