/* Every call of the operating system fails once, at every place; memory runs out at every place.
   The answer is a clear error, nothing that was acknowledged is lost, and nothing stays behind. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#include "test.h"
#include "fake.h"
#include "peers.h"

static uint8_t back[200000], big[100000];
static uint64_t step = 1, disk_step = 1; /* of the n-th calls, how many are passed over */

/* Is this message among those `p` hands out? Takes everything. */
static int holds(sim_peer *p, const sim_peer *from, const void *data, size_t size) {
    opcomms_identifier who;
    opcomms_error err;
    size_t len = 0;
    int found = 0, rounds = 0;
    while (opcomms_check_receive(p->peer, &who, back, sizeof back, &len, &err) == OPCOMMS_OK) {
        CHECK_STR(who.hash, from->hash);
        if (len == size && memcmp(back, data, size) == 0) found++;
        if (++rounds > 100) return -1;
    }
    return found;
}

static void arm_none(sim *s) {
    int i;
    for (i = 0; i < s->peers; i++) {
        fake_arm(s->peer[i].host, 0, 0, 0, FAKE_ERROR);
        s->peer[i].memory.fail_at = 0;
    }
}

static const char *const op_name[FAKE_OPS] = {
    "random", "dir_open", "dir_sync", "open", "lock", "size", "read", "write", "truncate", "sync",
    "rename", "remove", "listen", "accept", "connect", "connected", "recv", "send", "wait", "wake",
};

/* ---- opening ---- */

/* A log with one message in it, and a torn tail. */
static void prepare(sim *s, sim_peer *a, sim_peer *b, int fresh) {
    opcomms_error err;
    fake_file *f;
    if (fresh) return;
    CHECK_EQ(sim_start(a, &err), OPCOMMS_OK);
    CHECK_EQ(sim_start(b, &err), OPCOMMS_OK);
    CHECK_EQ(sim_send(a, b, "kept", 4, 0, &err), OPCOMMS_OK);
    sim_stop(b);
    f = fake_named(b->host, SIM_LOG);
    CHECK(f != NULL);
    if (f != NULL) {
        fake_grow(&f->cache, &f->cap, f->size + 100);
        memset(f->cache + f->size, 0x5a, 100);
        f->size += 100;
    }
    sim_run(s, 1000000); /* its goodbye arrives */
}

/* Opens b while its `at`-th call of the kind fails: an error and nothing left open, or it does not
   matter. Afterwards it opens. Answers 1 while there are such calls. */
static int open_failing(uint32_t ops, uint64_t at, int how, int fresh, int on) {
    sim s;
    sim_peer *a, *b;
    opcomms_error err;
    opcomms_err rc;
    int more;
    sim_init(&s, at);
    a = sim_add(&s, 0);
    b = sim_add(&s, 1);
    sim_befriend(&s);
    prepare(&s, a, b, fresh);
    fake_arm(b->host, ops, at, on, how);
    memset(&err, 0, sizeof err);
    rc = sim_start(b, &err);
    more = b->host->failed > 0;
    arm_none(&s);
    if (rc != OPCOMMS_OK) {
        CHECK(how != FAKE_SHORT);
        CHECK(b->peer == NULL);
        CHECK_EQ(err.code, rc);
        CHECK(err.text[0] != 0);
        CHECK_EQ(b->memory.used, 0);
        CHECK_EQ(b->host->open_handles, 0);
        CHECK_EQ(opcomms_err_severity(rc), 2);
        CHECK_EQ(sim_start(b, &err), OPCOMMS_OK);
    }
    if (!fresh && b->peer != NULL) CHECK_EQ(holds(b, a, "kept", 4), 1);
    if (fresh) CHECK_EQ(sim_start(a, &err), OPCOMMS_OK);
    if (b->peer != NULL) CHECK_EQ(sim_send(a, b, "new", 3, 0, &err), OPCOMMS_OK);
    sim_end(&s);
    return more;
}

static void open_every(int how, int fresh, int on) {
    int op;
    for (op = 0; op < FAKE_OPS; op++) {
        uint64_t at = 1;
        if (how == FAKE_SHORT && op != FAKE_READ && op != FAKE_WRITE) continue;
        if (how == FAKE_NO_SPACE && op != FAKE_WRITE) continue;
        while (open_failing(1u << op, at, how, fresh, on) && test_bad == 0) at++;
        if (test_bad > 0) {
            printf("%s call %d of opening failed, kind %d, fresh %d\n", op_name[op], (int)at, how,
                   fresh);
            return;
        }
    }
}

TEST(opening_with_any_call_failing_reports_it_and_leaves_nothing) {
    open_every(FAKE_ERROR, 1, 0);
    open_every(FAKE_ERROR, 0, 0);
    open_every(FAKE_ERROR, 0, 1);
}
TEST(opening_with_short_reads_and_writes_works) {
    open_every(FAKE_SHORT, 1, 0);
    open_every(FAKE_SHORT, 0, 0);
    open_every(FAKE_SHORT, 0, 1);
}
TEST(opening_on_a_full_disk_reports_it_and_loses_nothing) {
    open_every(FAKE_NO_SPACE, 1, 0);
    open_every(FAKE_NO_SPACE, 0, 0);
}

/* Power goes at every call of opening: the message that was there is still there. */
TEST(a_power_cut_at_any_call_of_opening_loses_nothing) {
    uint64_t at, seed, last = 0;
    for (at = 1; last == 0; at++) {
        for (seed = 0; seed < (step == 1 ? 6u : 1u); seed++) {
            sim s;
            sim_peer *a, *b;
            opcomms_error err;
            opcomms_err rc;
            sim_init(&s, at * 7 + seed);
            a = sim_add(&s, 0);
            b = sim_add(&s, 1);
            b->host->sector = (at + seed) % 2 ? 4096 : 512;
            sim_befriend(&s);
            prepare(&s, a, b, 0);
            b->host->crash_at = b->host->calls + at;
            rc = sim_start(b, &err);
            if (rc == OPCOMMS_OK && !b->host->dead) last = 1;
            if (rc == OPCOMMS_OK) opcomms_free(b->peer);
            b->peer = NULL;
            CHECK_EQ(b->memory.used, 0);
            fake_boot(b->host);
            CHECK_EQ(sim_start(b, &err), OPCOMMS_OK);
            if (b->peer != NULL) CHECK_EQ(holds(b, a, "kept", 4), 1);
            sim_end(&s);
            if (test_bad > 0) {
                printf("power cut at call %d of opening: %s\n", (int)at, err.text);
                return;
            }
        }
    }
}

/* ---- a whole life with one failing call ---- */

typedef struct life {
    uint64_t calls[2];
    uint64_t allocs[2];
    int failed;
} life;

/* a sends to b (short, long, again), b receives and acknowledges one, answers, restarts. One call
   of host `who` fails. What was acknowledged to the sender is there in the end, exactly once unless
   it was handed out already; what was refused is not. */
static void live(life *l, int who, uint32_t ops, uint64_t at, int how, int on, uint64_t alloc_at) {
    static const size_t sizes[4] = {10, 50000, 0, 3};
    sim s;
    sim_peer *a, *b, *f;
    opcomms_error err;
    opcomms_identifier from;
    opcomms_err rc[4], back_rc, taken;
    opcomms_message *m = NULL;
    size_t len = 0;
    int i, found[4];
    sim_pair(&s, 7 + at, &a, &b);
    f = who == 0 ? a : b;
    l->calls[0] = a->host->calls;
    l->calls[1] = b->host->calls;
    fake_arm(f->host, ops, at, on, how);
    if (alloc_at != 0) f->memory.fail_at = f->memory.calls + alloc_at;
    l->allocs[0] = a->memory.calls;
    l->allocs[1] = b->memory.calls;
    for (i = 0; i < 2; i++) rc[i] = sim_send(a, b, big + i, sizes[i], 5000, &err);
    /* b takes the first, whichever that is */
    taken = opcomms_receive(b->peer, 0, &m, &err);
    memset(found, 0, sizeof found);
    if (taken == OPCOMMS_OK) {
        size_t got = 0, at_byte = 0, size = opcomms_message_size(m);
        opcomms_err read_rc = OPCOMMS_OK;
        while (at_byte < size && read_rc == OPCOMMS_OK) {
            read_rc = opcomms_message_read(m, at_byte, back + at_byte, size - at_byte, &got);
            if (read_rc == OPCOMMS_OK) at_byte += got;
        }
        opcomms_message_from(m, &from);
        CHECK_STR(from.hash, a->hash);
        taken = OPCOMMS_E_NOT_FOUND;
        for (i = 0; i < 2; i++) {
            if (size == sizes[i] && read_rc == OPCOMMS_OK && memcmp(back, big + i, size) == 0) {
                taken = opcomms_ack(m, &err);
                if (taken == OPCOMMS_OK) found[i]++;
                break;
            }
        }
        if (i == 2) {
            CHECK(read_rc != OPCOMMS_OK);
            opcomms_release(m);
        }
    }
    back_rc = sim_send(b, a, "answer", 6, 5000, &err);
    for (i = 2; i < 4; i++) rc[i] = sim_send(a, b, big + i, sizes[i], 5000, &err);
    (void)opcomms_stop(f->peer); /* reports the fault, if the store met it */
    l->failed = (int)f->host->failed || (alloc_at != 0 && f->memory.calls >= f->memory.fail_at);
    l->calls[0] = a->host->calls - l->calls[0];
    l->calls[1] = b->host->calls - l->calls[1];
    l->allocs[0] = a->memory.calls - l->allocs[0];
    l->allocs[1] = b->memory.calls - l->allocs[1];
    arm_none(&s);
    sim_stop(a);
    sim_stop(b);
    CHECK_EQ(sim_start(a, &err), OPCOMMS_OK);
    CHECK_EQ(sim_start(b, &err), OPCOMMS_OK);
    if (a->peer == NULL || b->peer == NULL) {
        sim_end(&s);
        return;
    }
    while (opcomms_check_receive(b->peer, &from, back, sizeof back, &len, &err) == OPCOMMS_OK) {
        CHECK_STR(from.hash, a->hash);
        for (i = 0; i < 4; i++) {
            if (len == sizes[i] && memcmp(back, big + i, len) == 0) break;
        }
        CHECK(i < 4);
        if (i < 4) found[i]++;
    }
    for (i = 0; i < 4; i++) {
        if (rc[i] == OPCOMMS_OK) CHECK_EQ(found[i], 1);
        if (rc[i] == OPCOMMS_E_UNKNOWN_OUTCOME) CHECK(found[i] <= 1);
        if (rc[i] != OPCOMMS_OK && rc[i] != OPCOMMS_E_UNKNOWN_OUTCOME) CHECK_EQ(found[i], 0);
    }
    i = holds(a, b, "answer", 6);
    if (back_rc == OPCOMMS_OK) CHECK_EQ(i, 1);
    if (back_rc != OPCOMMS_OK && back_rc != OPCOMMS_E_UNKNOWN_OUTCOME) CHECK_EQ(i, 0);
    CHECK_EQ(sim_send(a, b, "well", 4, 0, &err), OPCOMMS_OK);
    CHECK_EQ(sim_send(b, a, "well", 4, 0, &err), OPCOMMS_OK);
    sim_end(&s);
}

static void live_every(int who, int op, int how, int on) {
    life l;
    uint64_t at;
    uint64_t stride = (FAKE_DISK_OPS >> op) & 1u ? disk_step : step;
    if (op == FAKE_SYNC && !on) stride = 1; /* a few, and the ones that matter most */
    for (at = 1;; at += stride) {
        live(&l, who, 1u << op, at, how, on, 0);
        if (test_bad > 0) {
            printf("host %d, %s call %d, kind %d, on %d\n", who, op_name[op], (int)at, how, on);
            return;
        }
        if (!l.failed) return;
    }
}

TEST(any_call_failing_once_costs_no_acknowledged_message_and_leaks_nothing) {
    int op, who;
    for (who = 0; who < 2; who++) {
        for (op = 0; op < FAKE_OPS; op++) live_every(who, op, FAKE_ERROR, 0);
    }
}
TEST(any_call_failing_from_then_on_costs_no_acknowledged_message_and_leaks_nothing) {
    int op, who;
    for (who = 0; who < 2; who++) {
        for (op = 0; op < FAKE_OPS; op++) live_every(who, op, FAKE_ERROR, 1);
    }
}
TEST(a_disk_that_fills_up_costs_no_acknowledged_message) {
    live_every(0, FAKE_WRITE, FAKE_NO_SPACE, 0);
    live_every(1, FAKE_WRITE, FAKE_NO_SPACE, 0);
}
TEST(short_reads_and_writes_change_nothing) {
    live_every(1, FAKE_WRITE, FAKE_SHORT, 0);
    live_every(1, FAKE_READ, FAKE_SHORT, 0);
}
TEST(memory_running_out_at_any_place_costs_no_acknowledged_message_and_leaks_nothing) {
    life l;
    uint64_t at;
    int who;
    for (who = 0; who < 2; who++) {
        for (at = 1;; at++) {
            live(&l, who, 0, 0, FAKE_ERROR, 0, at);
            if (test_bad > 0) {
                printf("host %d, allocation %d\n", who, (int)at);
                return;
            }
            if (!l.failed) break;
        }
    }
}

TEST(opening_without_memory_at_any_place_reports_it_and_leaves_nothing) {
    uint64_t at;
    int done = 0;
    for (at = 1; !done; at++) {
        sim s;
        sim_peer *a, *b;
        opcomms_error err;
        sim_init(&s, at);
        a = sim_add(&s, 0);
        b = sim_add(&s, 1);
        sim_befriend(&s);
        prepare(&s, a, b, 0);
        b->memory.fail_at = b->memory.calls + at;
        if (sim_start(b, &err) == OPCOMMS_OK) {
            done = 1;
        } else {
            CHECK_EQ(err.code, OPCOMMS_E_NOMEM);
            CHECK_EQ(b->memory.used, 0);
            CHECK_EQ(b->host->open_handles, 0);
            b->memory.fail_at = 0;
            CHECK_EQ(sim_start(b, &err), OPCOMMS_OK);
        }
        b->memory.fail_at = 0;
        if (b->peer != NULL) CHECK_EQ(holds(b, a, "kept", 4), 1);
        sim_end(&s);
        if (test_bad > 0) {
            printf("allocation %d\n", (int)at);
            return;
        }
    }
    CHECK(at > 10);
}

/* ---- a failing sync ---- */

TEST(a_failed_sync_poisons_and_a_restart_recovers_what_was_acknowledged) {
    sim s;
    sim_peer *a, *b;
    opcomms_error err;
    opcomms_message *m = NULL;
    opcomms_err rc;
    int i;
    sim_pair(&s, 77, &a, &b);
    CHECK_EQ(sim_send(a, b, "first", 5, 0, &err), OPCOMMS_OK);
    fake_arm(b->host, 1u << FAKE_SYNC, 1, 0, FAKE_ERROR);
    rc = sim_send(a, b, "second", 6, 60000, &err);
    CHECK_EQ(rc, OPCOMMS_E_UNKNOWN_OUTCOME);
    CHECK_EQ(b->host->failed, 1);
    CHECK(s.w.now_us < 1000000000u + 10000000u); /* told at once, not by a time-out */
    for (i = 0; i < 5; i++) { /* the disk is well again, but what it holds is not known */
        rc = sim_send(a, b, "third", 5, 3000, &err);
        CHECK_EQ(rc, OPCOMMS_E_REMOTE);
    }
    CHECK_EQ(opcomms_receive(b->peer, 0, &m, &err), OPCOMMS_OK); /* was durable before */
    CHECK_EQ(opcomms_message_size(m), 5);
    CHECK_EQ(opcomms_ack(m, &err), OPCOMMS_E_POISONED);
    CHECK_EQ(opcomms_receive(b->peer, 0, &m, &err), OPCOMMS_OK); /* not consumed: there again */
    opcomms_release(m);
    CHECK(opcomms_stop(b->peer) != OPCOMMS_OK);
    sim_stop(b);
    CHECK_EQ(sim_start(b, &err), OPCOMMS_OK);
    CHECK_EQ(holds(b, a, "first", 5), 1);
    sim_run(&s, 1000000);
    CHECK_EQ(sim_send(a, b, "fourth", 6, 0, &err), OPCOMMS_OK);
    CHECK_EQ(holds(b, a, "fourth", 6), 1);
    sim_end(&s);
}

/* The kernel forgets what a failed sync did not write; a later sync's success proves nothing. */
TEST(what_a_failed_sync_left_in_the_cache_is_written_again_before_it_is_shown) {
    uint64_t seed;
    for (seed = 0; seed < 20 && test_bad == 0; seed++) {
        sim s;
        sim_peer *a, *b;
        opcomms_error err;
        int seen;
        sim_pair(&s, seed, &a, &b);
        CHECK_EQ(sim_send(a, b, "first", 5, 0, &err), OPCOMMS_OK);
        fake_arm(b->host, 1u << FAKE_SYNC, 1, 0, FAKE_ERROR);
        (void)sim_send(a, b, big, 5000, 2000, &err);
        sim_stop(b);
        arm_none(&s);
        CHECK_EQ(sim_start(b, &err), OPCOMMS_OK); /* from the cache */
        seen = opcomms_get_stats(b->peer, NULL) != OPCOMMS_OK && sim_stats(b).unread == 2;
        fake_power_cut(b->host, 0);
        opcomms_free(b->peer);
        b->peer = NULL;
        fake_boot(b->host);
        CHECK_EQ(sim_start(b, &err), OPCOMMS_OK);
        if (b->peer != NULL) CHECK_EQ(sim_stats(b).unread, seen ? 2 : 1);
        sim_end(&s);
    }
}

TEST(a_memory_store_without_memory_refuses_one_message_and_goes_on) {
    sim s;
    sim_peer *a, *b;
    opcomms_error err;
    uint64_t at;
    sim_init(&s, 3);
    a = sim_add(&s, 0);
    b = sim_add(&s, 1);
    b->cfg.flags |= OPCOMMS_MEMORY_STORE;
    sim_befriend(&s);
    CHECK_EQ(sim_start(a, &err), OPCOMMS_OK);
    CHECK_EQ(sim_start(b, &err), OPCOMMS_OK);
    CHECK_EQ(sim_send(a, b, "first", 5, 0, &err), OPCOMMS_OK);
    for (at = 1; at < 4; at++) {
        opcomms_err rc;
        b->memory.fail_at = b->memory.calls + at;
        rc = sim_send(a, b, "second", 6, 2000, &err);
        b->memory.fail_at = 0;
        CHECK(rc == OPCOMMS_OK || rc == OPCOMMS_E_REMOTE);
        CHECK_EQ(sim_send(a, b, "third", 5, 2000, &err), OPCOMMS_OK);
    }
    CHECK(holds(b, a, "third", 5) == 3);
    sim_end(&s);
}

int main(void) {
    size_t i;
    for (i = 0; i < sizeof big; i++) big[i] = (uint8_t)(i * 11 + i / 256);
    step = getenv("SIM_RUNS") != NULL ? 1 : 29;
    disk_step = step == 1 ? 1 : 4;
    RUN(opening_with_any_call_failing_reports_it_and_leaves_nothing);
    RUN(opening_with_short_reads_and_writes_works);
    RUN(opening_on_a_full_disk_reports_it_and_loses_nothing);
    RUN(a_power_cut_at_any_call_of_opening_loses_nothing);
    RUN(opening_without_memory_at_any_place_reports_it_and_leaves_nothing);
    RUN(any_call_failing_once_costs_no_acknowledged_message_and_leaks_nothing);
    RUN(any_call_failing_from_then_on_costs_no_acknowledged_message_and_leaks_nothing);
    RUN(a_disk_that_fills_up_costs_no_acknowledged_message);
    RUN(short_reads_and_writes_change_nothing);
    RUN(memory_running_out_at_any_place_costs_no_acknowledged_message_and_leaks_nothing);
    RUN(a_failed_sync_poisons_and_a_restart_recovers_what_was_acknowledged);
    RUN(what_a_failed_sync_left_in_the_cache_is_written_again_before_it_is_shown);
    RUN(a_memory_store_without_memory_refuses_one_message_and_goes_on);
    return test_end();
}
