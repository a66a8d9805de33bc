/* Who sent which numbers: each rule of duplicates and of rollback; copies of logs put back in every
   combination; and two peers that crash, lose acknowledgements and send again at random. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#include "test.h"

/* ---- memory ---- */

static size_t blocks;
static size_t fail_at; /* the allocation that fails, counted from 1; 0: none */
static size_t allocations;

static void *take(void *user, size_t n) {
    (void)user;
    allocations++;
    if (fail_at != 0 && allocations == fail_at) return NULL;
    blocks++;
    return malloc(n);
}
static void drop(void *user, void *p, size_t n) {
    (void)user;
    (void)n;
    blocks--;
    free(p);
}
static opc__mem mem = {take, drop, NULL, 0, 0};

static const uint8_t own[32] = {0x0f, 1};
static const uint8_t peer_a[32] = {0xaa, 2};
static const uint8_t peer_b[32] = {0xbb, 3};

static int alive;
static opc__numbers *fresh(uint32_t streams, uint32_t peers) {
    opc__numbers *n = (opc__numbers *)malloc(sizeof *n);
    alive++;
    opc__numbers_init(n, &mem, own, streams, peers, 0x123456789abcdefu);
    return n;
}
static void gone(opc__numbers *n) {
    opc__numbers_free(n);
    free(n);
    if (--alive == 0) CHECK_EQ(mem.used, 0);
}

static opc__epoch ep(uint64_t counter, uint64_t random) {
    opc__epoch e;
    e.counter = counter;
    e.random = random;
    return e;
}

static opc__numbers_key stream(const uint8_t *sender, int kind, uint8_t to, opc__epoch e) {
    opc__numbers_key k;
    memset(&k, 0, sizeof k);
    memcpy(k.sender, sender, 32);
    k.kind = (uint8_t)kind;
    k.dest_id = to;
    k.epoch = e;
    return k;
}
static uint32_t opened(opc__numbers *n, opc__numbers_key k) {
    uint32_t i = 0;
    CHECK_EQ(opc__numbers_open(n, &k, &i), OPCOMMS_OK);
    return i;
}
static int check(opc__numbers *n, uint32_t i, opc__epoch e, uint64_t number) {
    return opc__numbers_check(n, i, &e, number);
}
static void took(opc__numbers *n, uint32_t i, opc__epoch e, uint64_t number) {
    opc__numbers_take(n, i, &e, number, n->uid + 1);
}

/* ---- numbers ---- */

TEST(queued_numbers_rise_and_gaps_are_legal) {
    opc__numbers *n = fresh(8, 8);
    opc__epoch e = ep(3, 33), later = ep(4, 44), older = ep(2, 22), copy = ep(3, 34);
    uint32_t i = opened(n, stream(peer_a, OPC__STREAM_QUEUE, 0, e));
    CHECK_EQ(check(n, i, e, 1), OPC__NUMBERS_NEW);
    CHECK_EQ(check(n, i, older, 1), OPC__NUMBERS_NEW); /* nothing is known yet */
    CHECK_EQ(opc__numbers_seen(n, i, &e), 0);
    took(n, i, e, 10);
    CHECK_EQ(opc__numbers_seen(n, i, &e), 10);
    CHECK_EQ(opc__numbers_seen(n, i, &later), 0);
    CHECK_EQ(opc__numbers_seen(n, i, &copy), 0);
    CHECK_EQ(check(n, i, e, 10), OPC__NUMBERS_DUPLICATE);
    CHECK_EQ(check(n, i, e, 1), OPC__NUMBERS_DUPLICATE);
    CHECK_EQ(check(n, i, e, 11), OPC__NUMBERS_NEW);
    CHECK_EQ(check(n, i, e, UINT64_MAX), OPC__NUMBERS_NEW);
    CHECK_EQ(check(n, i, older, 99), OPC__NUMBERS_DUPLICATE);
    CHECK_EQ(check(n, i, copy, 99), OPC__NUMBERS_ROLLBACK);
    CHECK_EQ(check(n, i, later, 1), OPC__NUMBERS_NEW); /* whatever its number */
    took(n, i, later, 20);
    CHECK_EQ(check(n, i, e, 21), OPC__NUMBERS_DUPLICATE);
    CHECK_EQ(check(n, i, later, 20), OPC__NUMBERS_DUPLICATE);
    CHECK_EQ(opc__numbers_seen(n, i, &e), 0);
    CHECK_EQ(opc__numbers_seen(n, i, &later), 20);
    took(n, i, e, 30); /* what was not new changes nothing */
    took(n, i, later, 5);
    CHECK_EQ(opc__numbers_seen(n, i, &later), 20);
    gone(n);
}

TEST(direct_numbers_come_in_any_order_within_the_window) {
    opc__numbers *n = fresh(8, 8);
    opc__epoch e = ep(3, 33), later = ep(4, 44), older = ep(2, 22), copy = ep(3, 34);
    uint32_t i = opened(n, stream(peer_a, OPC__STREAM_DIRECT, 0, e));
    uint64_t k;
    took(n, i, e, 5);
    took(n, i, e, 2);
    for (k = 1; k <= 6; k++) {
        CHECK_EQ(check(n, i, e, k), k == 5 || k == 2 ? OPC__NUMBERS_DUPLICATE : OPC__NUMBERS_NEW);
    }
    CHECK_EQ(opc__numbers_seen(n, i, &e), 0);
    CHECK_EQ(check(n, i, older, 9), OPC__NUMBERS_TOO_OLD);
    CHECK_EQ(check(n, i, copy, 9), OPC__NUMBERS_ROLLBACK);
    took(n, i, e, 1025); /* 2 is the oldest that can be told */
    CHECK_EQ(check(n, i, e, 2), OPC__NUMBERS_DUPLICATE);
    CHECK_EQ(check(n, i, e, 1), OPC__NUMBERS_TOO_OLD);
    CHECK_EQ(check(n, i, e, 3), OPC__NUMBERS_NEW);
    took(n, i, e, 1026);
    CHECK_EQ(check(n, i, e, 2), OPC__NUMBERS_TOO_OLD);
    CHECK_EQ(check(n, i, e, 5), OPC__NUMBERS_DUPLICATE);
    CHECK_EQ(check(n, i, e, 1026), OPC__NUMBERS_DUPLICATE);
    took(n, i, e, 5000); /* a leap leaves nothing behind */
    CHECK_EQ(check(n, i, e, 3976), OPC__NUMBERS_TOO_OLD);
    for (k = 3977; k < 5000; k++) CHECK_EQ(check(n, i, e, k), OPC__NUMBERS_NEW);
    took(n, i, later, 1); /* and so does a newer epoch */
    CHECK_EQ(check(n, i, later, 2), OPC__NUMBERS_NEW);
    CHECK_EQ(check(n, i, later, 1), OPC__NUMBERS_DUPLICATE);
    CHECK_EQ(check(n, i, e, 6000), OPC__NUMBERS_TOO_OLD);
    gone(n);
}

TEST(the_highest_numbers_there_are_do_no_harm) {
    opc__numbers *n = fresh(8, 8);
    opc__epoch e = ep(3, 33);
    uint32_t i = opened(n, stream(peer_a, OPC__STREAM_DIRECT, 0, e));
    took(n, i, e, UINT64_MAX);
    CHECK_EQ(check(n, i, e, UINT64_MAX), OPC__NUMBERS_DUPLICATE);
    CHECK_EQ(check(n, i, e, UINT64_MAX - 1), OPC__NUMBERS_NEW);
    took(n, i, e, UINT64_MAX - 1);
    CHECK_EQ(check(n, i, e, UINT64_MAX - 1), OPC__NUMBERS_DUPLICATE);
    CHECK_EQ(check(n, i, e, UINT64_MAX - 1024), OPC__NUMBERS_TOO_OLD);
    CHECK_EQ(check(n, i, e, 1), OPC__NUMBERS_TOO_OLD);
    i = opened(n, stream(peer_a, OPC__STREAM_QUEUE, 0, e));
    took(n, i, e, UINT64_MAX);
    CHECK_EQ(check(n, i, e, UINT64_MAX), OPC__NUMBERS_DUPLICATE);
    gone(n);
}

TEST(a_window_agrees_with_a_list_of_all_numbers) {
    static uint8_t came[20000];
    opc__numbers *n = fresh(8, 8);
    opc__epoch e = ep(1, 1);
    uint32_t i = opened(n, stream(peer_a, OPC__STREAM_DIRECT, 0, e)), r = 1;
    uint64_t top = 0, k;
    int round;
    memset(came, 0, sizeof came);
    for (round = 0; round < 6000; round++) {
        int want;
        r = r * 1664525u + 1013904223u;
        k = top > 1300 ? top - 1300 + (r >> 8) % 1302 : 1 + (r >> 8) % (top + 2);
        if ((r & 255) == 0) k = top + 1 + (r >> 8) % 1500;
        if (k >= sizeof came) break;
        want = k > top ? OPC__NUMBERS_NEW
                       : top - k >= 1024 ? OPC__NUMBERS_TOO_OLD
                                         : came[k] ? OPC__NUMBERS_DUPLICATE : OPC__NUMBERS_NEW;
        CHECK_EQ(check(n, i, e, k), want);
        if (want == OPC__NUMBERS_NEW) {
            took(n, i, e, k);
            came[k] = 1;
        }
        if (k > top) top = k;
    }
    CHECK(round > 500 && top > 3000);
    gone(n);
}

/* ---- the table of streams ---- */

TEST(streams_differ_by_every_part_of_their_key) {
    opc__numbers *n = fresh(100, 8);
    opc__numbers_key k[9];
    char text[65];
    uint32_t i, j, at[9], again;
    opc__str_hash_write(own, text);
    for (i = 0; i < 9; i++) {
        k[i] = stream(i == 1 ? peer_b : peer_a, i == 2 ? OPC__STREAM_DIRECT : OPC__STREAM_QUEUE,
                      i == 3, i == 4 ? ep(0, 7) : i == 5 ? ep(0, 8) : ep(9, 9));
        k[i].from_id = i == 6;
        k[i].dest = (const uint8_t *)(i == 7 ? "x" : "xy");
        k[i].dest_len = i == 7 ? 1 : i == 8 ? 2 : 0;
    }
    for (i = 0; i < 9; i++) at[i] = opened(n, k[i]);
    for (i = 0; i < 9; i++) {
        for (j = 0; j < i; j++) CHECK(at[i] != at[j]);
        k[i].epoch.counter = k[i].epoch.counter == 0 ? 0 : 10; /* which is no part of it */
        CHECK_EQ(opened(n, k[i]), at[i]);
    }
    k[0].dest = (const uint8_t *)text; /* our own identity, written out */
    k[0].dest_len = 64;
    again = opened(n, k[0]);
    CHECK_EQ(again, at[0]);
    gone(n);
}

TEST(handles_stay_valid_while_the_table_grows_and_all_is_found_again) {
    opc__numbers *n = fresh(5000, 8);
    uint32_t i, at[3000];
    uint8_t dest[4];
    for (i = 0; i < 3000; i++) {
        opc__numbers_key k = stream(peer_a, OPC__STREAM_QUEUE, 0, ep(1, 1));
        opc__buf_put32(dest, i);
        k.dest = dest;
        k.dest_len = 4;
        at[i] = opened(n, k);
        took(n, at[i], ep(1, 1), i + 1);
    }
    for (i = 0; i < 3000; i++) {
        opc__numbers_key k = stream(peer_a, OPC__STREAM_QUEUE, 0, ep(1, 1));
        opc__epoch e = ep(1, 1);
        opc__buf_put32(dest, i);
        k.dest = dest;
        k.dest_len = 4;
        CHECK_EQ(opened(n, k), at[i]);
        CHECK_EQ(opc__numbers_seen(n, at[i], &e), i + 1);
    }
    gone(n);
}

TEST(only_volatile_streams_without_users_make_room_the_longest_unused_first) {
    opc__numbers *n = fresh(4, 8);
    opc__numbers_key k;
    uint32_t kept, a, b, c, x = 0;
    kept = opened(n, stream(peer_a, OPC__STREAM_QUEUE, 0, ep(1, 1)));
    took(n, kept, ep(1, 1), 5);
    opc__numbers_close(n, kept);
    a = opened(n, stream(peer_a, OPC__STREAM_QUEUE, 0, ep(0, 1)));
    b = opened(n, stream(peer_a, OPC__STREAM_QUEUE, 0, ep(0, 2)));
    c = opened(n, stream(peer_a, OPC__STREAM_QUEUE, 0, ep(0, 3)));
    took(n, a, ep(0, 1), 1);
    took(n, b, ep(0, 2), 2);
    took(n, c, ep(0, 3), 3);
    k = stream(peer_a, OPC__STREAM_QUEUE, 0, ep(0, 4));
    CHECK_EQ(opc__numbers_open(n, &k, &x), OPCOMMS_E_LIMIT); /* all are in use */
    opc__numbers_close(n, b);
    opc__numbers_close(n, a);
    (void)opened(n, stream(peer_a, OPC__STREAM_QUEUE, 0, ep(0, 2))); /* b is used again, */
    opc__numbers_close(n, b);                                        /* a is the oldest now */
    CHECK_EQ(opened(n, stream(peer_a, OPC__STREAM_QUEUE, 0, ep(0, 2))), b);
    CHECK_EQ(opened(n, k), a);
    k.epoch.random = 5; /* b was idle, and is in use */
    CHECK_EQ(opc__numbers_open(n, &k, &x), OPCOMMS_E_LIMIT);
    opc__numbers_close(n, b);
    CHECK_EQ(check(n, b, ep(0, 2), 2), OPC__NUMBERS_DUPLICATE);
    CHECK_EQ(check(n, c, ep(0, 3), 3), OPC__NUMBERS_DUPLICATE);
    k = stream(peer_a, OPC__STREAM_QUEUE, 0, ep(2, 2)); /* the stream of the log is there */
    CHECK_EQ(opened(n, k), kept);
    CHECK_EQ(check(n, kept, ep(1, 1), 5), OPC__NUMBERS_DUPLICATE);
    k.dest_id = 1;
    CHECK_EQ(opened(n, k), b); /* b was idle */
    k.dest_id = 2;
    CHECK_EQ(opc__numbers_open(n, &k, &x), OPCOMMS_E_LIMIT);
    opc__numbers_close(n, b); /* nothing came: nothing to remember */
    CHECK_EQ(opened(n, k), b);
    gone(n);
}

/* ---- rollback ---- */

static opc__hello hello(opc__epoch now, opc__epoch known, int count, opc__epoch a, opc__epoch b) {
    opc__hello h;
    memset(&h, 0, sizeof h);
    h.now = now;
    h.known = known;
    h.count = (uint32_t)count;
    h.pending[0] = a;
    h.pending[1] = b;
    return h;
}
static const opc__epoch none = {0, 0};

/* *whose by a HELLO: 0 when it is taken. */
static int judge(opc__numbers *n, const uint8_t *key, opc__hello h, int *changed) {
    int whose = -1;
    opcomms_err rc = opc__numbers_judge(n, key, &h, changed, &whose);
    CHECK_EQ(rc, whose == 0 ? OPCOMMS_OK : OPCOMMS_E_ROLLBACK);
    return whose;
}
static void opening(opc__numbers *n, uint64_t counter, uint64_t random) {
    uint8_t body[OPC__NUMBERS_OPENED];
    memset(body, 0x5a, sizeof body);
    opc__buf_put64(body, counter);
    opc__buf_put64(body + 8, random);
    CHECK_EQ(opc__numbers_recover_note(n, OPC__NOTE_OPENED, body, sizeof body), OPCOMMS_OK);
}

TEST(an_epoch_that_we_were_not_told_of_shows_that_their_log_is_a_copy) {
    opc__numbers *n = fresh(8, 8);
    opc__epoch known;
    int c;
    opc__numbers_known(n, peer_a, &known);
    CHECK(known.counter == 0 && known.random == 0);
    CHECK_EQ(judge(n, peer_a, hello(ep(5, 55), none, 2, ep(2, 22), ep(4, 44)), &c), 0);
    CHECK(c);
    opc__numbers_known(n, peer_a, &known);
    CHECK(known.counter == 5 && known.random == 55);
    CHECK_EQ(judge(n, peer_a, hello(ep(5, 55), none, 2, ep(2, 22), ep(4, 44)), &c), 0);
    CHECK(!c); /* nothing new */
    CHECK_EQ(judge(n, peer_a, hello(ep(5, 56), none, 0, none, none), &c), OPC__NUMBERS_THEIRS);
    CHECK(c); /* that it is stopped */
    CHECK_EQ(judge(n, peer_a, hello(ep(4, 44), none, 0, none, none), &c), OPC__NUMBERS_THEIRS);
    CHECK_EQ(judge(n, peer_a, hello(ep(3, 33), none, 0, none, none), &c), OPC__NUMBERS_THEIRS);
    CHECK_EQ(judge(n, peer_a, hello(ep(6, 66), none, 1, ep(3, 33), none), &c),
             OPC__NUMBERS_THEIRS);
    CHECK_EQ(judge(n, peer_a, hello(ep(6, 66), none, 1, ep(4, 45), none), &c),
             OPC__NUMBERS_THEIRS);
    CHECK_EQ(judge(n, peer_a, hello(ep(6, 66), none, 2, ep(1, 11), ep(4, 44)), &c),
             OPC__NUMBERS_THEIRS);
    CHECK_EQ(judge(n, peer_a, hello(ep(6, 66), none, 1, ep(5, 55), none), &c), 0);
    CHECK(c);
    CHECK_EQ(judge(n, peer_b, hello(ep(1, 1), none, 0, none, none), &c), 0); /* each its own */
    /* a store in memory is not judged */
    CHECK_EQ(judge(n, peer_a, hello(ep(0, 1), none, 0, none, none), &c), 0);
    CHECK(!c);
    opc__numbers_known(n, peer_a, &known);
    CHECK_EQ(known.counter, 6);
    gone(n);
}

TEST(what_was_announced_counts_until_the_log_is_opened_anew) {
    opc__numbers *n = fresh(8, 8);
    int c;
    CHECK_EQ(judge(n, peer_a, hello(ep(5, 55), none, 1, ep(2, 22), none), &c), 0);
    /* those of 2 are delivered, which is not on their disk yet; then they crash */
    CHECK_EQ(judge(n, peer_a, hello(ep(5, 55), none, 0, none, none), &c), 0);
    CHECK(!c);
    CHECK_EQ(judge(n, peer_a, hello(ep(6, 66), none, 2, ep(2, 22), ep(5, 55)), &c), 0);
    CHECK(c);
    /* opened anew without them: what is over stays over */
    CHECK_EQ(judge(n, peer_a, hello(ep(7, 77), none, 0, none, none), &c), 0);
    CHECK(c);
    CHECK_EQ(judge(n, peer_a, hello(ep(8, 88), none, 1, ep(2, 22), none), &c),
             OPC__NUMBERS_THEIRS);
    gone(n);
}

TEST(an_opening_that_we_never_had_shows_that_our_log_is_a_copy) {
    opc__numbers *n = fresh(8, 8);
    uint64_t i;
    int c;
    CHECK_EQ(judge(n, peer_a, hello(ep(1, 1), ep(9, 9), 0, none, none), &c), 0); /* in memory */
    opening(n, 3, 33);
    opening(n, 5, 55);
    CHECK_EQ(judge(n, peer_a, hello(ep(1, 1), none, 0, none, none), &c), 0);
    CHECK_EQ(judge(n, peer_a, hello(ep(1, 1), ep(3, 33), 0, none, none), &c), 0);
    CHECK_EQ(judge(n, peer_a, hello(ep(1, 1), ep(5, 55), 0, none, none), &c), 0);
    CHECK(!c);
    CHECK_EQ(judge(n, peer_b, hello(ep(0, 1), ep(5, 56), 0, none, none), &c), OPC__NUMBERS_OURS);
    CHECK(c);
    CHECK_EQ(judge(n, peer_b, hello(ep(0, 1), ep(5, 56), 0, none, none), &c), OPC__NUMBERS_OURS);
    CHECK(!c);
    /* until it is accepted, also when the peer has forgotten us meanwhile */
    CHECK_EQ(judge(n, peer_b, hello(ep(1, 1), none, 0, none, none), &c), OPC__NUMBERS_OURS);
    CHECK_EQ(opc__numbers_accept(n, peer_b), OPCOMMS_OK);
    CHECK_EQ(opc__numbers_accept(n, peer_b), OPCOMMS_E_NOT_FOUND);
    CHECK_EQ(judge(n, peer_b, hello(ep(1, 1), ep(5, 56), 0, none, none), &c), 0);
    CHECK_EQ(judge(n, peer_b, hello(ep(1, 1), ep(6, 66), 0, none, none), &c), OPC__NUMBERS_OURS);
    CHECK_EQ(judge(n, peer_a, hello(ep(1, 1), ep(4, 44), 0, none, none), &c), OPC__NUMBERS_OURS);
    CHECK_EQ(judge(n, peer_a, hello(ep(1, 2), ep(2, 22), 0, none, none), &c),
             OPC__NUMBERS_OURS | OPC__NUMBERS_THEIRS);
    gone(n);
    /* older than all the openings that are remembered: nobody can tell */
    n = fresh(8, 8);
    for (i = 10; i < 10 + OPC__NUMBERS_HISTORY; i++) opening(n, i, i);
    CHECK_EQ(judge(n, peer_a, hello(ep(1, 1), ep(9, 1), 0, none, none), &c), 0);
    CHECK_EQ(judge(n, peer_b, hello(ep(1, 1), ep(10, 1), 0, none, none), &c), OPC__NUMBERS_OURS);
    opening(n, i, i);
    CHECK_EQ(judge(n, peer_a, hello(ep(1, 1), ep(10, 10), 0, none, none), &c), 0);
    CHECK_EQ(judge(n, peer_a, hello(ep(1, 1), ep(11, 11), 0, none, none), &c), 0);
    CHECK_EQ(judge(n, peer_a, hello(ep(1, 1), ep(i, i), 0, none, none), &c), 0);
    gone(n);
}

TEST(accepting_forgets_numbers_and_marks_what_may_come_again) {
    opc__numbers *n = fresh(8, 8);
    opc__epoch e5 = ep(5, 55), copy = ep(4, 99), e6 = ep(6, 66);
    uint32_t i = opened(n, stream(peer_a, OPC__STREAM_QUEUE, 0, e5));
    uint32_t d = opened(n, stream(peer_a, OPC__STREAM_DIRECT, 0, e5));
    uint32_t v = opened(n, stream(peer_a, OPC__STREAM_QUEUE, 0, ep(0, 7)));
    uint32_t b = opened(n, stream(peer_b, OPC__STREAM_QUEUE, 0, e5)), at = 0, later;
    const uint8_t *key;
    int c, whose = 0;
    CHECK_EQ(judge(n, peer_a, hello(e5, none, 0, none, none), &c), 0);
    CHECK_EQ(opc__numbers_accept(n, peer_a), OPCOMMS_E_NOT_FOUND);
    CHECK_EQ(opc__numbers_accept(n, peer_b), OPCOMMS_E_NOT_FOUND);
    took(n, i, e5, 100);
    took(n, d, e5, 100);
    took(n, v, ep(0, 7), 100);
    took(n, b, e5, 100);
    CHECK(opc__numbers_stopped(n, &at, &whose) == NULL);
    CHECK_EQ(judge(n, peer_a, hello(copy, none, 0, none, none), &c), OPC__NUMBERS_THEIRS);
    at = 0;
    key = opc__numbers_stopped(n, &at, &whose);
    CHECK(key != NULL && memcmp(key, peer_a, 32) == 0);
    CHECK_EQ(whose, OPC__NUMBERS_THEIRS);
    CHECK(opc__numbers_stopped(n, &at, &whose) == NULL);
    CHECK(!opc__numbers_uncertain(n, i, &e5));
    CHECK_EQ(opc__numbers_accept(n, peer_a), OPCOMMS_OK);
    at = 0;
    CHECK(opc__numbers_stopped(n, &at, &whose) == NULL);
    CHECK_EQ(judge(n, peer_a, hello(copy, none, 0, none, none), &c), 0);
    CHECK_EQ(check(n, i, copy, 50), OPC__NUMBERS_NEW);
    CHECK_EQ(check(n, d, copy, 50), OPC__NUMBERS_NEW);
    CHECK_EQ(check(n, v, ep(0, 7), 100), OPC__NUMBERS_DUPLICATE);
    CHECK_EQ(check(n, b, e5, 100), OPC__NUMBERS_DUPLICATE);
    CHECK(opc__numbers_uncertain(n, i, &copy) && opc__numbers_uncertain(n, d, &e5));
    CHECK(!opc__numbers_uncertain(n, i, &e6));
    CHECK(!opc__numbers_uncertain(n, b, &e5));
    later = opened(n, stream(peer_a, OPC__STREAM_QUEUE, 9, e5)); /* also one that is opened then */
    CHECK(opc__numbers_uncertain(n, later, &e5) && !opc__numbers_uncertain(n, later, &e6));
    gone(n);
}

TEST(only_what_was_announced_is_announced) {
    opc__numbers *n = fresh(8, 8);
    opc__epoch yes[3] = {{2, 22}, {5, 55}, {0, 77}}, no[3] = {{2, 23}, {3, 33}, {6, 66}};
    int c, i;
    for (i = 0; i < 2; i++) CHECK(!opc__numbers_announced(n, peer_a, &yes[i]));
    CHECK_EQ(judge(n, peer_a, hello(ep(5, 55), none, 1, ep(2, 22), none), &c), 0);
    for (i = 0; i < 3; i++) {
        CHECK(opc__numbers_announced(n, peer_a, &yes[i]));
        CHECK(!opc__numbers_announced(n, peer_a, &no[i]));
    }
    gone(n);
}

TEST(lists_of_epochs_and_tables_are_bounded) {
    opc__numbers *n = fresh(8, 2);
    opc__hello h;
    uint8_t note[OPC__NOTE_MAX];
    int c, whose;
    uint64_t k;
    memset(&h, 0, sizeof h);
    h.now = ep(1000, 1);
    h.count = OPC__NATIVE_EPOCHS;
    for (k = 0; k < h.count; k++) h.pending[k] = ep(k + 1, k);
    CHECK_EQ(judge(n, peer_a, h, &c), 0);
    CHECK_EQ(opc__numbers_peer_note(n, peer_a, note), 88 + 16 * 251);
    for (k = 0; k < h.count; k++) h.pending[k] = ep(k + 500, k); /* which was not announced */
    CHECK_EQ(judge(n, peer_a, h, &c), OPC__NUMBERS_THEIRS);
    h.now = ep(1001, 1);
    for (k = 0; k < h.count; k++) h.pending[k] = ep(k + 1, k);
    CHECK_EQ(judge(n, peer_a, h, &c), 0);
    CHECK_EQ(judge(n, peer_b, hello(ep(1, 1), none, 0, none, none), &c), 0);
    h = hello(ep(1, 1), none, 0, none, none);
    CHECK_EQ(opc__numbers_judge(n, own, &h, &c, &whose), OPCOMMS_E_LIMIT);
    CHECK_EQ(opc__numbers_peer_note(n, own, note), 0);
    gone(n);
}

TEST(every_allocation_may_fail) {
    size_t k;
    int done = 0;
    for (k = 1; !done; k++) {
        opc__numbers *n = fresh(100, 100);
        opc__numbers_key key;
        opc__hello h = hello(ep(5, 5), none, 2, ep(1, 1), ep(2, 2));
        uint32_t i = 0, j;
        int c, whose;
        opcomms_err rc = OPCOMMS_OK;
        allocations = 0;
        fail_at = k;
        for (j = 0; j < 70 && rc == OPCOMMS_OK; j++) {
            key = stream(peer_a, 1 + (int)(j % 2), (uint8_t)j, ep(1, 1));
            key.dest = (const uint8_t *)"dest";
            key.dest_len = 4;
            rc = opc__numbers_open(n, &key, &i);
        }
        if (rc == OPCOMMS_OK) rc = opc__numbers_judge(n, peer_a, &h, &c, &whose);
        h.now.counter++;
        if (rc == OPCOMMS_OK) rc = opc__numbers_judge(n, peer_a, &h, &c, &whose);
        CHECK(rc == OPCOMMS_OK || rc == OPCOMMS_E_NOMEM);
        done = allocations < k;
        CHECK(!done || rc == OPCOMMS_OK);
        fail_at = 0;
        gone(n);
        CHECK_EQ(blocks, 0);
    }
    CHECK(k > 70);
}

/* ---- notes ---- */

typedef struct notes {
    struct {
        unsigned type;
        size_t n;
        uint8_t body[OPC__NOTE_MAX];
    } note[600];
    int count;
    int most; /* emit fails then */
} notes;

static opcomms_err keep(void *user, unsigned type, const uint8_t *body, size_t n) {
    notes *all = (notes *)user;
    if (all->count == all->most) return OPCOMMS_E_FULL;
    CHECK(n <= OPC__NOTE_MAX);
    all->note[all->count].type = type;
    all->note[all->count].n = n;
    memcpy(all->note[all->count].body, body, n);
    all->count++;
    return OPCOMMS_OK;
}
static void written(const opc__numbers *n, notes *all) {
    all->count = 0;
    all->most = 600;
    CHECK_EQ(opc__numbers_notes(n, keep, all), OPCOMMS_OK);
}
static void recover(opc__numbers *n, const notes *all) {
    int i;
    for (i = 0; i < all->count; i++) {
        CHECK_EQ(opc__numbers_recover_note(n, all->note[i].type, all->note[i].body,
                                           all->note[i].n),
                 OPCOMMS_OK);
    }
}
/* The same notes, whatever their order. */
static int same_notes(const notes *a, const notes *b) {
    int i, k;
    for (i = 0; i < a->count; i++) {
        for (k = 0; k < b->count; k++) {
            if (a->note[i].type == b->note[k].type && a->note[i].n == b->note[k].n &&
                memcmp(a->note[i].body, b->note[k].body, a->note[i].n) == 0) {
                break;
            }
        }
        if (k == b->count) return 0;
    }
    return a->count == b->count;
}

/* Something of everything. */
static void fill(opc__numbers *n) {
    opc__numbers_key k;
    uint32_t i;
    uint64_t m;
    int c;
    for (m = 1; m <= 300; m++) opening(n, m, m * 7);
    CHECK_EQ(judge(n, peer_a, hello(ep(5, 55), none, 2, ep(2, 22), ep(4, 44)), &c), 0);
    CHECK_EQ(judge(n, peer_b, hello(ep(9, 99), none, 0, none, none), &c), 0);
    CHECK_EQ(judge(n, peer_b, hello(ep(8, 88), ep(1000, 1), 0, none, none), &c), 3);
    i = opened(n, stream(peer_b, OPC__STREAM_QUEUE, 0, ep(9, 99)));
    took(n, i, ep(9, 99), 5);
    CHECK_EQ(opc__numbers_accept(n, peer_b), OPCOMMS_OK);
    CHECK_EQ(judge(n, peer_b, hello(ep(8, 88), ep(1000, 1), 0, none, none), &c), 0);
    CHECK_EQ(judge(n, peer_b, hello(ep(8, 88), ep(1000, 2), 0, none, none), &c), 2);
    k = stream(peer_a, OPC__STREAM_QUEUE, 3, ep(5, 55));
    i = opened(n, k);
    took(n, i, ep(5, 55), 0x123456789au);
    k = stream(peer_a, OPC__STREAM_DIRECT, 4, ep(5, 55));
    k.dest = (const uint8_t *)"third party";
    k.dest_len = 11;
    i = opened(n, k);
    for (m = 1; m < 3000; m += 1 + m % 5) took(n, i, ep(5, 55), m);
    k = stream(peer_a, OPC__STREAM_DIRECT, 5, ep(0, 5));
    i = opened(n, k);
    took(n, i, ep(0, 5), 3);
    took(n, i, ep(0, 5), 1);
}

TEST(all_notes_make_the_same_state_again) {
    static notes a, b;
    opc__numbers *n = fresh(100, 100), *m = fresh(100, 100);
    uint8_t body[OPC__NOTE_MAX];
    size_t len;
    int i;
    fill(n);
    written(n, &a);
    CHECK_EQ(a.count, 256 + 2 + 3);
    recover(m, &a);
    written(m, &b);
    CHECK(same_notes(&a, &b));
    recover(m, &a); /* twice is the same */
    written(m, &b);
    CHECK(same_notes(&a, &b));
    len = opc__numbers_peer_note(n, peer_b, body);
    for (i = 0; i < a.count; i++) {
        if (a.note[i].type != OPC__NOTE_PEER || memcmp(a.note[i].body, peer_b, 32) != 0) continue;
        CHECK(len == a.note[i].n && memcmp(body, a.note[i].body, len) == 0);
    }
    for (a.most = 0; a.most < 261; a.most++) {
        a.count = 0;
        CHECK_EQ(opc__numbers_notes(n, keep, &a), OPCOMMS_E_FULL);
        CHECK_EQ(a.count, a.most);
    }
    CHECK_EQ(opc__numbers_recover_note(m, OPC__NOTE_STATE, body, 0), OPCOMMS_OK); /* not ours */
    gone(n);
    gone(m);
}

TEST(what_is_to_be_accepted_is_remembered_and_a_store_in_memory_does_not_change_it) {
    static notes a;
    opc__numbers *n = fresh(8, 8), *m = fresh(8, 8);
    int c;
    CHECK_EQ(judge(n, peer_a, hello(ep(9, 99), none, 0, none, none), &c), 0);
    CHECK_EQ(judge(n, peer_a, hello(ep(8, 88), none, 0, none, none), &c), OPC__NUMBERS_THEIRS);
    CHECK(c);
    CHECK_EQ(judge(n, peer_a, hello(ep(8, 89), none, 0, none, none), &c), OPC__NUMBERS_THEIRS);
    CHECK(!c);
    CHECK_EQ(judge(n, peer_a, hello(ep(0, 1), none, 0, none, none), &c), 0);
    CHECK(!c);
    written(n, &a);
    recover(m, &a);
    CHECK_EQ(opc__numbers_accept(m, peer_a), OPCOMMS_OK);
    CHECK_EQ(opc__numbers_accept(m, peer_a), OPCOMMS_E_NOT_FOUND);
    CHECK_EQ(judge(m, peer_a, hello(ep(8, 88), none, 0, none, none), &c), 0);
    /* the right log is back */
    CHECK_EQ(judge(n, peer_a, hello(ep(9, 99), none, 0, none, none), &c), 0);
    CHECK(c);
    CHECK_EQ(opc__numbers_accept(n, peer_a), OPCOMMS_E_NOT_FOUND);
    written(n, &a);
    recover(m, &a);
    CHECK_EQ(opc__numbers_accept(m, peer_a), OPCOMMS_E_NOT_FOUND);
    gone(n);
    gone(m);
}

TEST(openings_are_taken_in_any_order_as_a_salvaged_log_has_them) {
    opc__numbers *n = fresh(8, 8);
    uint64_t i;
    int c;
    opening(n, 1000, 7); /* the salvaged log's own */
    for (i = 1; i < 5; i++) opening(n, i * 100, i);
    opening(n, 200, 2);
    CHECK_EQ(n->opened_count, 5);
    for (i = 1; i < 5; i++) {
        CHECK_EQ(opc__buf_be64(opc__numbers_opened(n, (uint32_t)i - 1)), i * 100);
        CHECK_EQ(judge(n, peer_a, hello(ep(1, 1), ep(i * 100, i), 0, none, none), &c), 0);
    }
    CHECK_EQ(judge(n, peer_b, hello(ep(1, 1), ep(200, 3), 0, none, none), &c), OPC__NUMBERS_OURS);
    gone(n);
    n = fresh(8, 8); /* only the newest are kept */
    opening(n, 1000, 7);
    for (i = 1; i < 400; i++) opening(n, i, i);
    CHECK_EQ(n->opened_count, OPC__NUMBERS_HISTORY);
    for (i = 0; i < OPC__NUMBERS_HISTORY - 1u; i++) {
        CHECK_EQ(opc__buf_be64(opc__numbers_opened(n, (uint32_t)i)),
                 i + 400 - (OPC__NUMBERS_HISTORY - 1u));
    }
    CHECK_EQ(opc__buf_be64(opc__numbers_opened(n, OPC__NUMBERS_HISTORY - 1u)), 1000);
    opening(n, 3, 3);
    CHECK_EQ(opc__buf_be64(opc__numbers_opened(n, 0)), 400 - (OPC__NUMBERS_HISTORY - 1u));
    gone(n);
}

static void put(uint8_t *p, size_t *n, const char *hex) {
    for (; hex[0] != 0; hex++) {
        if (hex[0] == ' ') continue;
        p[(*n)++] = (uint8_t)(opc__str_hex_value(hex[0]) * 16 + opc__str_hex_value(hex[1]));
        hex++;
    }
}
#define KEY_A "aa02000000000000000000000000000000000000000000000000000000000000"

TEST(notes_have_the_bytes_that_are_described) {
    static notes a;
    opc__numbers *n = fresh(100, 100);
    uint8_t want[512];
    size_t len = 0;
    opc__numbers_key k = stream(peer_a, OPC__STREAM_DIRECT, 9, ep(5, 0x55));
    uint32_t i;
    int c;
    k.from_id = 8;
    k.dest = (const uint8_t *)"xy";
    k.dest_len = 2;
    i = opened(n, k);
    took(n, i, ep(5, 0x55), 2);
    took(n, i, ep(5, 0x55), 12);
    k = stream(peer_a, OPC__STREAM_QUEUE, 0, ep(5, 0x55));
    took(n, opened(n, k), ep(5, 0x55), 258);
    CHECK_EQ(judge(n, peer_a, hello(ep(6, 0x66), none, 1, ep(5, 0x55), none), &c), 0);
    written(n, &a);
    CHECK_EQ(a.count, 3);
    put(want, &len, KEY_A "0000000000000000 0000000000000000"
                    "0000000000000000 0000000000000000 0000000000000000 0000000000000000"
                    "0002 000000000000"
                    "0000000000000005 0000000000000055 0000000000000006 0000000000000066");
    CHECK_EQ(a.note[0].type, OPC__NOTE_PEER);
    CHECK(a.note[0].n == len && memcmp(a.note[0].body, want, len) == 0);
    len = 0;
    put(want, &len, KEY_A "08 09 02 00 0002 0000 0000000000000005 0000000000000055"
                    "000000000000000c 0104");
    memset(want + len, 0, 126);
    len += 126;
    put(want, &len, "7879");
    CHECK_EQ(a.note[1].type, OPC__NOTE_SEEN);
    CHECK(a.note[1].n == len && memcmp(a.note[1].body, want, len) == 0);
    len = 0;
    put(want, &len, KEY_A "00 00 01 00 0000 0000 0000000000000005 0000000000000055"
                    "0000000000000102");
    CHECK(a.note[2].n == len && memcmp(a.note[2].body, want, len) == 0);
    gone(n);
}

TEST(malformed_notes_are_damage) {
    static notes a;
    opc__numbers *n = fresh(100, 100), *m;
    uint8_t body[OPC__NOTE_MAX + 1];
    static const struct {
        unsigned type;
        size_t at;
        uint8_t value;
    } bad[] = {
        {OPC__NOTE_PEER, 80, 1},  {OPC__NOTE_PEER, 81, 0},  {OPC__NOTE_PEER, 81, 2},
        {OPC__NOTE_PEER, 82, 2},  {OPC__NOTE_PEER, 83, 1},  {OPC__NOTE_PEER, 87, 1},
        {OPC__NOTE_PEER, 63, 1},
        {OPC__NOTE_PEER, 79, 1},  {OPC__NOTE_PEER, 95, 0},  {OPC__NOTE_PEER, 95, 4},
        {OPC__NOTE_SEEN, 34, 0},  {OPC__NOTE_SEEN, 34, 3},  {OPC__NOTE_SEEN, 34, 2},
        {OPC__NOTE_SEEN, 35, 1},  {OPC__NOTE_SEEN, 36, 5},  {OPC__NOTE_SEEN, 37, 1},
        {OPC__NOTE_SEEN, 38, 1},  {OPC__NOTE_SEEN, 39, 1},  {OPC__NOTE_OPENED, 7, 0},
    };
    int i, k, found = 0;
    size_t len;
    CHECK_EQ(judge(n, peer_a, hello(ep(5, 55), none, 2, ep(2, 22), ep(4, 44)), &k), 0);
    took(n, opened(n, stream(peer_a, OPC__STREAM_QUEUE, 3, ep(5, 55))), ep(5, 55), 7);
    opening(n, 1, 1);
    written(n, &a);
    CHECK_EQ(a.count, 3);
    for (i = 0; i < a.count; i++) { /* every length but the right one */
        for (len = 0; len <= a.note[i].n + 1; len++) {
            uint8_t *exact = (uint8_t *)malloc(len + 1);
            opcomms_err rc;
            m = fresh(100, 100);
            memset(exact, 0, len + 1);
            memcpy(exact, a.note[i].body, len < a.note[i].n ? len : a.note[i].n);
            rc = opc__numbers_recover_note(m, a.note[i].type, exact, len);
            CHECK_EQ(rc, len == a.note[i].n ? OPCOMMS_OK : OPCOMMS_E_LOG_DAMAGED);
            free(exact);
            gone(m);
        }
    }
    for (k = 0; k < (int)(sizeof bad / sizeof bad[0]); k++) {
        for (i = 0; i < a.count; i++) {
            if (a.note[i].type != bad[k].type) continue;
            m = fresh(100, 100);
            memcpy(body, a.note[i].body, a.note[i].n);
            CHECK(body[bad[k].at] != bad[k].value);
            body[bad[k].at] = bad[k].value;
            CHECK_EQ(opc__numbers_recover_note(m, a.note[i].type, body, a.note[i].n),
                     OPCOMMS_E_LOG_DAMAGED);
            gone(m);
            found++;
        }
    }
    CHECK_EQ(found, sizeof bad / sizeof bad[0]);
    gone(n);
}

TEST(malformed_bitmaps_numbers_and_openings_are_damage) {
    static notes a;
    opc__numbers *n = fresh(100, 100);
    uint8_t body[OPC__NOTE_MAX];
    took(n, opened(n, stream(peer_a, OPC__STREAM_DIRECT, 3, ep(5, 55))), ep(5, 55), 7);
    written(n, &a);
    memcpy(body, a.note[0].body, a.note[0].n);
    body[64] = 0; /* not even the highest has come */
    CHECK_EQ(opc__numbers_recover_note(n, OPC__NOTE_SEEN, body, a.note[0].n),
             OPCOMMS_E_LOG_DAMAGED);
    body[64] = 0x41; /* 1 has come, */
    CHECK_EQ(opc__numbers_recover_note(n, OPC__NOTE_SEEN, body, a.note[0].n), OPCOMMS_OK);
    CHECK_EQ(check(n, 0, ep(5, 55), 1), OPC__NUMBERS_DUPLICATE);
    CHECK_EQ(check(n, 0, ep(5, 55), 2), OPC__NUMBERS_NEW);
    body[64] = 0x81; /* and 0 */
    CHECK_EQ(opc__numbers_recover_note(n, OPC__NOTE_SEEN, body, a.note[0].n),
             OPCOMMS_E_LOG_DAMAGED);
    body[64] = 1;
    body[191] = 0x80;
    CHECK_EQ(opc__numbers_recover_note(n, OPC__NOTE_SEEN, body, a.note[0].n),
             OPCOMMS_E_LOG_DAMAGED);
    memcpy(body, a.note[0].body, a.note[0].n);
    memset(body + 56, 0, 8);
    CHECK_EQ(opc__numbers_recover_note(n, OPC__NOTE_SEEN, body, a.note[0].n),
             OPCOMMS_E_LOG_DAMAGED);
    memcpy(body, a.note[0].body, a.note[0].n);
    memset(body + 40, 0, 16);
    CHECK_EQ(opc__numbers_recover_note(n, OPC__NOTE_SEEN, body, a.note[0].n),
             OPCOMMS_E_LOG_DAMAGED);
    opening(n, 5, 55);
    opening(n, 6, 66);
    opening(n, 5, 55); /* compaction may write one again */
    memset(body, 0, sizeof body);
    opc__buf_put64(body, 6);
    CHECK_EQ(opc__numbers_recover_note(n, OPC__NOTE_OPENED, body, 40), OPCOMMS_E_LOG_DAMAGED);
    opc__buf_put64(body, 5);
    CHECK_EQ(opc__numbers_recover_note(n, OPC__NOTE_OPENED, body, 40), OPCOMMS_E_LOG_DAMAGED);
    gone(n);
}

static opc__msg_meta message(const uint8_t *from, int kind, opc__epoch e, uint64_t number,
                             uint64_t uid) {
    opc__msg_meta m;
    memset(&m, 0, sizeof m);
    memcpy(m.from, from, 32);
    m.stream = (uint8_t)kind;
    m.epoch = e;
    m.number = number;
    m.uid = uid;
    return m;
}

TEST(messages_in_the_log_count_as_taken) {
    opc__numbers *n = fresh(1, 100);
    opc__epoch e = ep(5, 55);
    opc__msg_meta m;
    uint32_t i, d;
    int k;
    m = message(peer_a, OPC__STREAM_QUEUE, e, 7, 1);
    CHECK_EQ(opc__numbers_recover_seen(n, &m), OPCOMMS_OK);
    m = message(peer_a, OPC__STREAM_DIRECT, e, 7, 2); /* the limit is for what is to come */
    CHECK_EQ(opc__numbers_recover_seen(n, &m), OPCOMMS_OK);
    m = message(peer_a, OPC__STREAM_DIRECT, e, 4, 3);
    CHECK_EQ(opc__numbers_recover_seen(n, &m), OPCOMMS_OK);
    m = message(peer_a, OPC__STREAM_NONE, none, 0, 4);
    CHECK_EQ(opc__numbers_recover_seen(n, &m), OPCOMMS_OK);
    i = opened(n, stream(peer_a, OPC__STREAM_QUEUE, 0, e));
    d = opened(n, stream(peer_a, OPC__STREAM_DIRECT, 0, e));
    CHECK_EQ(opc__numbers_seen(n, i, &e), 7);
    for (k = 1; k <= 8; k++) {
        CHECK_EQ(check(n, d, e, (uint64_t)k),
                 k == 4 || k == 7 ? OPC__NUMBERS_DUPLICATE : OPC__NUMBERS_NEW);
    }
    m = message(peer_a, 3, e, 1, 5);
    CHECK_EQ(opc__numbers_recover_seen(n, &m), OPCOMMS_E_LOG_DAMAGED);
    m = message(peer_a, OPC__STREAM_QUEUE, e, 0, 5);
    CHECK_EQ(opc__numbers_recover_seen(n, &m), OPCOMMS_E_LOG_DAMAGED);
    m = message(peer_a, OPC__STREAM_QUEUE, none, 1, 5);
    CHECK_EQ(opc__numbers_recover_seen(n, &m), OPCOMMS_E_LOG_DAMAGED);
    m = message(peer_a, OPC__STREAM_QUEUE, e, 1, 5);
    m.dest_len = 1025;
    CHECK_EQ(opc__numbers_recover_seen(n, &m), OPCOMMS_E_LOG_DAMAGED);
    gone(n);
}

TEST(volatile_streams_are_recovered_too_the_newest_of_them) {
    opc__numbers *n = fresh(3, 100);
    opc__msg_meta m;
    uint64_t k;
    for (k = 1; k <= 10; k++) {
        m = message(peer_a, OPC__STREAM_QUEUE, ep(0, k + 1), 100 + k, k);
        CHECK_EQ(opc__numbers_recover_seen(n, &m), OPCOMMS_OK);
        m = message(peer_a, OPC__STREAM_DIRECT, ep(0, 1), 100 + k, k); /* this one goes on */
        CHECK_EQ(opc__numbers_recover_seen(n, &m), OPCOMMS_OK);
    }
    CHECK_EQ(n->streams_count, 3);
    for (k = 1; k <= 10; k++) {
        CHECK_EQ(check(n, opened(n, stream(peer_a, 2, 0, ep(0, 1))), ep(0, 1), 100 + k),
                 OPC__NUMBERS_DUPLICATE);
    }
    CHECK_EQ(check(n, opened(n, stream(peer_a, 1, 0, ep(0, 10))), ep(0, 10), 109),
             OPC__NUMBERS_DUPLICATE);
    CHECK_EQ(check(n, opened(n, stream(peer_a, 1, 0, ep(0, 11))), ep(0, 11), 110),
             OPC__NUMBERS_DUPLICATE);
    gone(n);
}

TEST(accepting_forgets_what_was_recovered_too) {
    opc__numbers *n = fresh(8, 100);
    opc__msg_meta m = message(peer_a, OPC__STREAM_QUEUE, ep(5, 55), 7, 50);
    uint8_t note[OPC__NOTE_MAX];
    int c;
    CHECK_EQ(opc__numbers_recover_seen(n, &m), OPCOMMS_OK);
    CHECK_EQ(judge(n, peer_a, hello(ep(5, 55), none, 0, none, none), &c), 0);
    CHECK_EQ(judge(n, peer_a, hello(ep(5, 56), none, 0, none, none), &c), OPC__NUMBERS_THEIRS);
    CHECK_EQ(opc__numbers_accept(n, peer_a), OPCOMMS_OK);
    CHECK_EQ(opc__numbers_peer_note(n, peer_a, note), 88);
    CHECK_EQ(opc__buf_be64(note + 32), 50);
    CHECK_EQ(opc__buf_be64(note + 40), 5);
    CHECK_EQ(n->streams_count, 0);
    gone(n);
}

/* A log as compaction leaves it, in either order: messages from before the peer was accepted, of
   another history of its log, must not count again. */
TEST(what_was_forgotten_stays_forgotten_when_compaction_copies_it) {
    static notes a;
    opc__epoch old5 = ep(5, 55), copy = ep(4, 99);
    opc__numbers *n = fresh(100, 100), *m;
    opc__msg_meta before = message(peer_a, OPC__STREAM_QUEUE, old5, 300, 0), after;
    uint32_t i = opened(n, stream(peer_a, OPC__STREAM_QUEUE, 0, old5));
    int c, order;
    CHECK_EQ(judge(n, peer_a, hello(old5, none, 0, none, none), &c), 0);
    took(n, i, old5, 300);
    before.uid = n->uid;
    CHECK_EQ(judge(n, peer_a, hello(copy, none, 0, none, none), &c), OPC__NUMBERS_THEIRS);
    CHECK_EQ(opc__numbers_accept(n, peer_a), OPCOMMS_OK);
    CHECK_EQ(judge(n, peer_a, hello(copy, none, 0, none, none), &c), 0);
    took(n, i, copy, 250);
    after = message(peer_a, OPC__STREAM_QUEUE, copy, 250, n->uid);
    written(n, &a);
    for (order = 0; order < 3; order++) {
        m = fresh(100, 100);
        if (order != 0) CHECK_EQ(opc__numbers_recover_seen(m, &before), OPCOMMS_OK);
        if (order == 1) CHECK_EQ(opc__numbers_recover_seen(m, &after), OPCOMMS_OK);
        recover(m, &a);
        if (order == 0) CHECK_EQ(opc__numbers_recover_seen(m, &before), OPCOMMS_OK);
        if (order != 1) CHECK_EQ(opc__numbers_recover_seen(m, &after), OPCOMMS_OK);
        i = opened(m, stream(peer_a, OPC__STREAM_QUEUE, 0, copy));
        CHECK_EQ(check(m, i, copy, 250), OPC__NUMBERS_DUPLICATE);
        CHECK_EQ(check(m, i, copy, 251), OPC__NUMBERS_NEW);
        CHECK(opc__numbers_uncertain(m, i, &copy));
        gone(m);
    }
    gone(n);
}

int main(void) {
    RUN(queued_numbers_rise_and_gaps_are_legal);
    RUN(direct_numbers_come_in_any_order_within_the_window);
    RUN(the_highest_numbers_there_are_do_no_harm);
    RUN(a_window_agrees_with_a_list_of_all_numbers);
    RUN(streams_differ_by_every_part_of_their_key);
    RUN(handles_stay_valid_while_the_table_grows_and_all_is_found_again);
    RUN(only_volatile_streams_without_users_make_room_the_longest_unused_first);
    RUN(an_epoch_that_we_were_not_told_of_shows_that_their_log_is_a_copy);
    RUN(what_was_announced_counts_until_the_log_is_opened_anew);
    RUN(an_opening_that_we_never_had_shows_that_our_log_is_a_copy);
    RUN(accepting_forgets_numbers_and_marks_what_may_come_again);
    RUN(only_what_was_announced_is_announced);
    RUN(lists_of_epochs_and_tables_are_bounded);
    RUN(every_allocation_may_fail);
    RUN(what_is_to_be_accepted_is_remembered_and_a_store_in_memory_does_not_change_it);
    RUN(openings_are_taken_in_any_order_as_a_salvaged_log_has_them);
    RUN(all_notes_make_the_same_state_again);
    RUN(notes_have_the_bytes_that_are_described);
    RUN(malformed_notes_are_damage);
    RUN(malformed_bitmaps_numbers_and_openings_are_damage);
    RUN(messages_in_the_log_count_as_taken);
    RUN(volatile_streams_are_recovered_too_the_newest_of_them);
    RUN(accepting_forgets_what_was_recovered_too);
    RUN(what_was_forgotten_stays_forgotten_when_compaction_copies_it);
    return test_end();
}
