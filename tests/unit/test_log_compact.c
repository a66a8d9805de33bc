/* Compaction of the log: what is over goes, all else stays, whatever happens meanwhile. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#include "test.h"
#include "logworld.h"
#include "logread.h"

static fdisk disk, copy;
static world w;
static lr seen;
static found f;
static opcomms_error err;

/* ---- helpers ---- */

static fd_file *log_file(fdisk *d) { return fd_find(d, "peer.log"); }

static void begin(uint64_t seed, int durability, uint32_t slice) {
    fd_clear(&disk);
    world_init(&w, &disk, seed, durability);
    w.o.slice_bytes = slice;
    CHECK_EQ(world_open(&w), OPCOMMS_OK);
}

static void end(void) { world_close(&w); }

static void put(int what, uint64_t len) { CHECK_EQ(world_put_as(&w, what, len), OPCOMMS_OK); }

static void over(int i) {
    CHECK_EQ(world_end(&w, &w.m[i]), OPCOMMS_OK);
    w.m[i].acked = 1;
}

/* One step; 1: it was the last, and what it began is done. */
static int step(int force) {
    int flush = 0;
    uint64_t was = w.compactions + w.gave_up;
    opcomms_err rc = w.s->c->compact(w.s, force, &flush);
    CHECK(rc == OPCOMMS_OK || rc == OPCOMMS_E_AGAIN);
    if (rc == OPCOMMS_E_AGAIN) return -1;
    if (flush) CHECK_EQ(w.s->c->flush_end(w.s, w.s->c->flush_run(w.s)), OPCOMMS_OK);
    return w.compactions + w.gave_up > was;
}

static int compact(void) { /* all of it; how many steps it took */
    int n = 1, rc;
    while ((rc = step(1)) == 0) n++;
    CHECK_EQ(rc, 1);
    return n;
}

/* The log as the manual reads it: no message that is over is left. */
static void read_file(void) {
    int i;
    lr_read(&seen, log_file(&disk)->cache, log_file(&disk)->size);
    CHECK(seen.wrong == NULL);
    if (seen.wrong != NULL) printf("%s\n", seen.wrong);
    for (i = 0; i < seen.msgs; i++) CHECK(!seen.msg[i].bad);
}

/* Crash or close; then the model decides. */
static void check_kept(void) {
    CHECK_EQ(flush_rc(w.s), OPCOMMS_OK);
    world_note(&w);
    CHECK_EQ(world_reopen(&w, 0), OPCOMMS_OK);
    CHECK_EQ(w.bad, 0);
}

/* ---- tests ---- */

TEST(what_is_over_goes_and_the_rest_stays_as_it_was) {
    uint64_t size;
    int i, live = 0;
    begin(1, 0, 0);
    for (i = 0; i < 80; i++) put(i % MSG_KINDS, i % 16 == 5 ? 40000 : (uint64_t)i * 7);
    for (i = 0; i < 80; i++) {
        CHECK_EQ(world_try(&w), OPCOMMS_OK);
        if (i % 3) over(i); else live++;
        if (i % 20 == 0) CHECK_EQ(flush_rc(w.s), OPCOMMS_OK);
    }
    CHECK_EQ(world_abandoned_put(&w), OPCOMMS_OK);
    CHECK_EQ(flush_rc(w.s), OPCOMMS_OK);
    world_note(&w);
    size = w.s->c->bytes(w.s);
    (void)compact();
    CHECK(w.s->c->bytes(w.s) < size / 2);
    read_file();
    CHECK_EQ(seen.msgs, live);
    CHECK_EQ(seen.acks, 0);
    CHECK_EQ(seen.opened, 1);
    CHECK_EQ(seen.synced, seen.end);
    CHECK_EQ(seen.floor, w.m[79].uid);
    CHECK_EQ(seen.checkpoint, w.m[79].uid);
    CHECK_EQ(seen.end, log_file(&disk)->size);
    for (i = 0; i < seen.msgs; i++) {
        const wmsg *m = world_of(&w, seen.msg[i].uid);
        CHECK(m != NULL && !m->acked && m->attempts == seen.msg[i].attempts);
        CHECK(m != NULL && opc__log_at(m->ref) == seen.msg[i].at);
    }
    for (i = 0; i < 80; i += 3) {
        int right = 0;
        CHECK_EQ(msg_read(w.s, w.m[i].ref, w.m[i].tag, w.m[i].len, &right), OPCOMMS_OK);
        CHECK(right);
    }
    size = w.s->c->bytes(w.s);
    (void)compact();
    CHECK_EQ(w.s->c->bytes(w.s), size); /* nothing more to gain */
    check_kept();
    put(MSG_PLAIN, 10);
    CHECK(w.m[80].uid > w.m[79].uid);
    check_kept();
    end();
}

TEST(a_log_of_which_all_is_over_becomes_nearly_empty_and_forgets_no_number) {
    int i;
    begin(1, 0, 0);
    for (i = 0; i < 50; i++) put(MSG_PLAIN, 1000);
    for (i = 0; i < 50; i++) over(i);
    (void)compact();
    CHECK(w.s->c->bytes(w.s) < 4096 + 300);
    check_kept();
    CHECK_EQ(w.f.count, 0);
    put(MSG_PLAIN, 10);
    CHECK_EQ(w.m[50].uid, w.m[49].uid + 1);
    CHECK_EQ(flush_rc(w.s), OPCOMMS_OK);
    (void)compact();
    check_kept();
    CHECK_EQ(w.f.count, 1);
    end();
}

/* Small steps with everything else between them, some hundred worlds. */
TEST(whatever_is_done_between_its_steps_is_kept) {
    uint64_t seed, done = 0, over_meanwhile = 0, halves = 0;
    for (seed = 1; seed <= 150 && test_bad == 0; seed++) {
        int i;
        begin(seed, (int)(seed % 3), 200 + (uint32_t)seed * 37);
        for (i = 0; i < 400 && w.n < WORLD_MSGS - 2; i++) {
            uint64_t what = fd_below(&w.rng, 100);
            opcomms_err rc = OPCOMMS_OK;
            if (what < 22) rc = world_put(&w, world_size(&w.rng));
            else if (what < 34) rc = world_ack(&w);
            else if (what < 42) rc = world_try(&w);
            else if (what < 46) rc = world_group(&w);
            else if (what < 52) rc = flush_rc(w.s);
            else if (what < 57) rc = w.s->c->write(w.s);
            else if (what < 66) rc = world_half(&w);
            else rc = world_compact(&w, 1);
            CHECK_EQ(rc, OPCOMMS_OK);
            world_note(&w);
            over_meanwhile += what >= 22 && what < 34 && opc__log_of(w.s)->copy != NULL;
            halves += w.half && opc__log_of(w.s)->copy != NULL;
        }
        done += w.compactions;
        CHECK_EQ(w.gave_up, 0);
        CHECK_EQ(world_reopen(&w, (int)(seed % 2)), OPCOMMS_OK);
        if (w.bad) printf("seed %d\n", (int)seed);
        end();
    }
    CHECK(done > 500);
    CHECK(over_meanwhile > 1000);
    CHECK(halves > 1000);
}

TEST(a_step_moves_no_more_than_its_slice_also_of_large_messages) {
    uint64_t most = 0;
    int i, steps, flush;
    begin(1, 0, 65536);
    for (i = 0; i < 6; i++) put(MSG_QUEUED, 2000000);
    for (i = 0; i < 200; i++) put(MSG_PLAIN, 3000);
    CHECK_EQ(flush_rc(w.s), OPCOMMS_OK);
    for (steps = 0; w.compactions == 0; steps++) {
        uint64_t read = disk.bytes_read, written = disk.bytes_written, syncs = disk.syncs;
        opcomms_err rc = w.s->c->compact(w.s, w.compactions == 0, &flush);
        CHECK_EQ(rc, OPCOMMS_OK);
        if (disk.bytes_read - read > most) most = disk.bytes_read - read;
        if (disk.bytes_written - written > most) most = disk.bytes_written - written;
        CHECK_EQ(disk.syncs, syncs); /* none under the lock */
        if (flush) CHECK_EQ(w.s->c->flush_end(w.s, w.s->c->flush_run(w.s)), OPCOMMS_OK);
        if (steps > 1000) break;
    }
    CHECK(steps > 150);
    CHECK(most < 5 * 65536);
    world_note(&w);
    check_kept();
    end();
}

TEST(large_copies_are_synced_piece_by_piece) {
    opc__log *l;
    uint64_t syncs;
    int i;
    begin(1, 0, 0);
    for (i = 0; i < 9; i++) put(MSG_QUEUED, 4000000);
    CHECK_EQ(flush_rc(w.s), OPCOMMS_OK);
    l = opc__log_of(w.s);
    syncs = disk.syncs;
    while (w.compactions == 0) {
        CHECK(step(1) >= 0);
        if (l->copy != NULL) CHECK(l->copy->out.at - l->copy->synced < 9000000);
    }
    CHECK(disk.syncs > syncs + 4);
    world_note(&w);
    check_kept();
    end();
}

/* Parts of a copy are synced with the log's own flushes. What such a sync did not write is lost,
   and the next sync would not tell; nor may a copy go while a flush is busy with it. */
TEST(a_copy_whose_part_was_not_synced_is_given_up_and_so_is_one_that_fails_during_a_flush) {
    int how;
    for (how = 0; how < 3; how++) {
        opc__log *l;
        uint64_t rng = 1;
        int i, flush = 0;
        begin(1, 0, 0);
        for (i = 0; i < 5; i++) put(MSG_QUEUED, 4000000);
        CHECK_EQ(flush_rc(w.s), OPCOMMS_OK);
        world_note(&w);
        l = opc__log_of(w.s);
        while (!flush) CHECK_EQ(w.s->c->compact(w.s, 1, &flush), OPCOMMS_OK);
        CHECK(l->copy_sync == 1 && !l->switching);
        if (how == 0) disk.fail_at = disk.calls + 2; /* the log's own sync, the copy's */
        if (how == 1) {
            int unused = 0;
            disk.fail_at = disk.calls + 1;
            CHECK_EQ(w.s->c->compact(w.s, 1, &unused), OPCOMMS_E_IO);
            CHECK(l->copy != NULL && l->copy->dead);
            CHECK_EQ(w.s->c->compact(w.s, 1, &unused), OPCOMMS_E_AGAIN);
        }
        if (how == 2) disk.fail_at = disk.calls + 1; /* the log's own: that is worse */
        CHECK_EQ(w.s->c->flush_end(w.s, w.s->c->flush_run(w.s)),
                 how == 2 ? OPCOMMS_E_IO : OPCOMMS_OK);
        disk.fail_at = 0;
        CHECK_EQ(w.gave_up, how < 2);
        CHECK(how == 2 || fd_find(&disk, "peer.log.new") == NULL);
        if (how < 2) {
            while (w.compactions == 0) CHECK(step(1) >= 0);
            fd_cut(&disk, &copy, 512, FD_CUT_NOTHING, &rng);
        } else {
            CHECK(w.s->c->close(w.s) != OPCOMMS_OK);
            CHECK(fd_find(&disk, "peer.log.new") == NULL);
            fd_cut(&disk, &copy, 512, FD_CUT_ALL, &rng);
            CHECK_EQ(world_open(&w), OPCOMMS_OK);
        }
        world_note(&w);
        {
            opc__log_options o = w.o;
            opc__store *s = NULL;
            o.plat = &copy.plat;
            CHECK_EQ(log_open_with(&o, &s, &f, &err), OPCOMMS_OK);
            world_check(&w, s, &f);
            if (s != NULL) log_abandon(s);
        }
        check_kept();
        end();
    }
}

TEST(it_begins_by_itself_when_more_than_half_is_dead_and_not_before) {
    opc__space room;
    int i, k, begun = -1;
    begin(1, 0, 0);
    w.o.dead_bytes_min = 20000;
    CHECK_EQ(world_reopen(&w, 1), OPCOMMS_OK);
    for (i = 0; i < 100; i++) put(MSG_PLAIN, 1000);
    CHECK_EQ(step(0), -1);
    for (i = 0; i < 100; i++) {
        over(i);
        if (step(0) < 0) continue;
        begun = i;
        break;
    }
    CHECK(begun > 46 && begun < 60);
    while (step(0) == 0) {}
    w.s->c->space(w.s, &room);
    CHECK(room.live > 40 * 1090 && room.live < 60 * 1120);
    CHECK(room.used > room.live && room.used < room.live + 4096 + 300);
    CHECK_EQ(room.limit, w.o.log_bytes_max);
    for (k = 0; k < 20; k++) CHECK_EQ(step(0), -1);
    for (i = begun + 1; i < 98; i++) over(i);
    w.s->c->space(w.s, &room);
    CHECK(room.live > 2000 && room.live < 2400);
    while (step(0) == 0) {} /* what is left is dead now */
    CHECK_EQ(w.compactions, 2);
    world_note(&w);
    check_kept();
    w.s->c->space(w.s, &room);
    CHECK(room.live > 2000 && room.live < 2400); /* opening counts the same */
    end();
}

TEST(less_than_the_minimum_is_left_alone) {
    int i;
    begin(1, 0, 0);
    for (i = 0; i < 100; i++) put(MSG_PLAIN, 1000);
    for (i = 0; i < 100; i++) over(i);
    CHECK_EQ(step(0), -1); /* 110 KB of 1 MiB */
    end();
}

TEST(notes_that_compaction_cannot_do_without_do_not_start_it_again_and_again) {
    int i, k;
    begin(1, 0, 0);
    w.o.dead_bytes_min = 100;
    CHECK_EQ(world_reopen(&w, 1), OPCOMMS_OK);
    put(MSG_STREAM, 10);
    w.state = 1;
    over(0);
    for (i = 0; i < 10; i++) {
        for (k = 0; step(0) >= 0 && k < 100;) k++;
        CHECK(k < 100);
    }
    CHECK(w.compactions <= 2);
    end();
}

TEST(a_full_log_takes_messages_again_when_there_is_something_to_gain) {
    uint64_t uid, ref, position;
    int i, round, n = 0;
    begin(1, 0, 0);
    w.o.log_bytes_max = 120000;
    CHECK_EQ(world_reopen(&w, 1), OPCOMMS_OK);
    for (round = 0; round < 4; round++) {
        while (msg_put(w.s, 1, 1000, &uid, &ref, &position) == OPCOMMS_OK) {
            world_add(&w, MSG_PLAIN, 1000, uid, ref, position);
            w.m[w.n - 1].tag = 1;
        }
        CHECK_EQ(step(0), -1); /* nothing is over */
        CHECK_EQ(msg_put(w.s, 1, 1000, &uid, &ref, &position), OPCOMMS_E_FULL);
        for (i = n; i < w.n - 5; i++) over(i);
        n = i;
        while (step(0) == 0) {}
    }
    CHECK_EQ(w.compactions, 4);
    CHECK(w.n > 300);
    world_note(&w);
    check_kept();
    CHECK_EQ(w.f.count, 5);
    end();
}

static void ten_of_twenty(uint32_t slice) {
    int i;
    begin(3, 0, slice);
    for (i = 0; i < 20; i++) put(i % MSG_KINDS, i % 5 == 1 ? 20000 : 300);
    for (i = 0; i < 20; i += 2) over(i);
    CHECK_EQ(world_half(&w), OPCOMMS_OK);
    CHECK_EQ(world_half(&w), OPCOMMS_OK);
    CHECK_EQ(world_half(&w), OPCOMMS_OK);
    CHECK_EQ(flush_rc(w.s), OPCOMMS_OK);
    world_note(&w);
}

/* At any call the disk fails once; renaming in both ways. */
TEST(a_compaction_that_fails_is_given_up_and_the_log_goes_on) {
    static const uint32_t slices[] = {100, 300, 700, 2000, 4000, 0};
    uint64_t n, kinds[FD_KINDS] = {0}, poisoned = 0, went_on = 0, calls = 0;
    int k = 0;
    for (n = 1; n < 400; n++) {
        uint64_t rng = n;
        opcomms_err rc = OPCOMMS_OK;
        int i, how;
        ten_of_twenty(slices[k]);
        disk.fail_at = disk.calls + n;
        disk.failed_call = -1;
        disk.fail_partly = (int)(n % 2);
        disk.rename_lies = (int)(n / 2 % 2);
        for (i = 0; i < 60 && w.compactions + w.gave_up == 0; i++) {
            int flush = 0;
            rc = w.s->c->compact(w.s, 1, &flush);
            if (rc == OPCOMMS_OK && flush) rc = w.s->c->flush_end(w.s, w.s->c->flush_run(w.s));
            if (rc == OPCOMMS_E_POISONED || opc__log_of(w.s)->failed != OPCOMMS_OK) break;
            if (i == 5) over(1);
            if (i == 7) CHECK_EQ(world_half(&w), OPCOMMS_OK);
        }
        if (disk.failed_call >= 0) kinds[disk.failed_call]++;
        for (how = 0; how <= FD_CUTS; how++) { /* wherever the power goes then */
            opc__log_options o = w.o;
            opc__store *s = NULL;
            if (how == FD_CUTS) {
                fd_kill(&disk, &copy);
            } else {
                fd_cut(&disk, &copy, 512, how, &rng);
            }
            o.plat = &copy.plat;
            CHECK_EQ(log_open_with(&o, &s, &f, &err), OPCOMMS_OK);
            if (s == NULL) break;
            world_check(&w, s, &f);
            CHECK(fd_find(&copy, "peer.log.new") == NULL);
            log_abandon(s);
        }
        if (opc__log_of(w.s)->failed != OPCOMMS_OK) {
            poisoned++;
            CHECK(disk.failed_call == FD_DIR_SYNC || disk.failed_call == FD_WRITE ||
                  disk.failed_call == FD_SYNC);
            log_abandon(w.s);
            w.s = NULL;
        } else {
            if (disk.failed_call == FD_RENAME) CHECK_EQ(w.compactions, disk.rename_lies);
            went_on += w.gave_up > 0;
            disk.fail_at = 0;
            put(MSG_PLAIN, 10);
            CHECK_EQ(flush_rc(w.s), OPCOMMS_OK);
            world_note(&w);
            while (w.compactions == 0) CHECK(step(1) >= 0);
            for (i = 0; w.half && i < 3; i++) CHECK_EQ(world_half(&w), OPCOMMS_OK);
            CHECK(!w.half);
            CHECK_EQ(flush_rc(w.s), OPCOMMS_OK);
            world_note(&w);
            check_kept();
        }
        CHECK_EQ(w.bad, 0);
        if (w.bad) printf("call %d of kind %d\n", (int)n, disk.failed_call);
        end();
        CHECK_EQ(disk.handles, 0);
        if (disk.failed_call >= 0) continue;
        CHECK(n > 10);
        calls += n - 1;
        if (++k == sizeof slices / sizeof slices[0]) break;
        n = 0;
    }
    CHECK(calls > 80);
    CHECK(kinds[FD_OPEN] > 0 && kinds[FD_WRITE] > 9 && kinds[FD_SYNC] > 0 && kinds[FD_READ] > 30);
    CHECK(kinds[FD_RENAME] > 0 && kinds[FD_DIR_SYNC] > 0 && kinds[FD_RANDOM] > 0);
    CHECK(poisoned > 0 && went_on > 60);
    printf("calls of a compaction that failed: %llu\n", (unsigned long long)calls);
}

TEST(space_that_ends_at_any_byte_of_a_copy_gives_it_up_and_no_more) {
    uint64_t space, bytes = 0, done = 0;
    int all = getenv("LOG_IMAGES") != NULL;
    for (space = 1; done < 3; space += all ? 1 : space < 4200 ? 371 : 97) {
        opc__log_options o;
        opc__store *s = NULL;
        uint64_t was;
        int i, rc = 0;
        ten_of_twenty(bytes % 2 ? 3000 : 0);
        was = w.s->c->bytes(w.s);
        disk.space = space;
        for (i = 0; i < 100 && w.compactions + w.gave_up == 0; i++) {
            int flush = 0;
            rc = w.s->c->compact(w.s, 1, &flush);
            if (flush) CHECK_EQ(w.s->c->flush_end(w.s, w.s->c->flush_run(w.s)), OPCOMMS_OK);
        }
        disk.space = 0;
        CHECK_EQ(w.compactions, rc == OPCOMMS_OK);
        CHECK(rc == OPCOMMS_OK || rc == OPCOMMS_E_IO);
        done += w.compactions;
        bytes++;
        CHECK(space < was);
        fd_kill(&disk, &copy);
        o = w.o;
        o.plat = &copy.plat;
        CHECK_EQ(log_open_with(&o, &s, &f, &err), OPCOMMS_OK);
        world_check(&w, s, &f);
        if (s != NULL) log_abandon(s);
        put(MSG_PLAIN, 10);
        world_note(&w);
        check_kept();
        end();
        if (space >= was) break;
    }
    CHECK_EQ(done, 3);
    CHECK(bytes > 100);
    printf("space ended at bytes of a copy: %llu\n", (unsigned long long)bytes);
}

/* A rename that fails, and a name that cannot be read to see whose it is: nothing more is said to
   be durable. */
TEST(a_name_of_which_nobody_knows_whose_it_is_ends_the_log_with_both_files_complete) {
    int lies;
    for (lies = 0; lies < 2; lies++) {
        opc__store *s = NULL;
        opcomms_err rc;
        int flush = 0;
        ten_of_twenty(0);
        CHECK_EQ(w.s->c->compact(w.s, 1, &flush), OPCOMMS_OK);
        while (!flush) CHECK_EQ(w.s->c->compact(w.s, 1, &flush), OPCOMMS_OK);
        disk.rename_lies = lies;
        disk.fail_at = disk.calls + 3; /* slot, sync, rename */
        disk.fail_on = 1;
        rc = w.s->c->flush_end(w.s, w.s->c->flush_run(w.s));
        CHECK_EQ(rc, OPCOMMS_E_IO);
        CHECK_EQ(disk.failed_call, FD_OPEN); /* the last one that failed */
        CHECK_EQ(w.s->c->write(w.s), OPCOMMS_E_POISONED);
        disk.fail_at = 0;
        disk.fail_on = 0;
        fd_kill(&disk, &copy);
        w.o.plat = &copy.plat;
        CHECK_EQ(log_open_with(&w.o, &s, &f, &err), OPCOMMS_OK);
        world_check(&w, s, &f);
        log_abandon(s);
        w.o.plat = &disk.plat;
        (void)w.s->c->close(w.s);
        CHECK_EQ(world_open(&w), OPCOMMS_OK);
        end();
    }
}

TEST(damage_anywhere_in_a_compacted_log_is_refused_with_its_place) {
    size_t at, end_at;
    opc__store *s = NULL;
    ten_of_twenty(0);
    (void)compact();
    log_abandon(w.s);
    w.s = NULL;
    read_file();
    end_at = seen.end;
    for (at = 4096; at < end_at; at += at % 97 + 1) {
        int i;
        fd_kill(&disk, &copy);
        log_file(&copy)->cache[at] ^= 0x10;
        CHECK_EQ(log_open(&copy, &s, &f, &err), OPCOMMS_E_LOG_DAMAGED);
        for (i = 0; i + 1 < seen.batches && seen.batch[i + 1].at <= at;) i++;
        CHECK_EQ(err.position, seen.batch[i].at);
    }
    end();
}

TEST(operations_of_a_newer_version_are_kept_and_a_file_left_behind_is_removed) {
    static uint8_t all[300000], body[100];
    fd_file *file;
    size_t at;
    uint8_t *b;
    int i, found_it = 0;
    ten_of_twenty(0);
    CHECK_EQ(w.s->c->close(w.s), OPCOMMS_OK);
    read_file();
    file = log_file(&disk);
    CHECK(seen.end + 200 < sizeof all);
    memcpy(all, file->cache, seen.end);
    memset(body, 0xa7, sizeof body);
    at = seen.end;
    b = all + at;
    memset(b, 0, 56);
    memcpy(b, "OPCB", 4);
    opc__buf_put32(b + 4, 48 + 8 + sizeof body);
    opc__buf_put32(b + 12, 1);
    opc__buf_put64(b + 16, at);
    opc__buf_put64(b + 24, seen.slot_counter);
    opc__buf_put64(b + 32, at);
    b[48] = 100;
    opc__buf_put32(b + 52, sizeof body);
    memcpy(b + 56, body, sizeof body);
    opc__buf_put32(b + 44, lr_crc_hole(seen.seed, b, 44, 8));
    opc__buf_put32(b + 8, lr_crc_hole(seen.seed, b, 56 + sizeof body, 8));
    (void)fd_put(&disk, "peer.log", all, at + 56 + sizeof body);
    (void)fd_put(&disk, "peer.log.new", all, 5000);
    CHECK_EQ(world_open(&w), OPCOMMS_OK);
    CHECK(fd_find(&disk, "peer.log.new") == NULL);
    (void)compact();
    file = log_file(&disk);
    for (at = 4096; at + sizeof body < file->size; at++) {
        found_it += memcmp(file->cache + at, body, sizeof body) == 0 && file->cache[at - 8] == 100;
    }
    CHECK_EQ(found_it, 1);
    for (i = 0; i < 3; i++) CHECK(step(1) >= 0); /* one that is under way when the log closes */
    CHECK_EQ(w.s->c->close(w.s), OPCOMMS_OK);
    w.s = NULL;
    CHECK(fd_find(&disk, "peer.log.new") == NULL);
    end();
}

TEST(without_an_owner_that_says_what_lives_nothing_is_compacted_and_without_notes_all_stay) {
    opc__log_options o = log_options(&disk);
    opc__store *s = NULL;
    uint64_t position = 0;
    int flush = 0, i;
    fd_clear(&disk);
    memset(&f, 0, sizeof f);
    CHECK_EQ(log_open_with(&o, &s, &f, &err), OPCOMMS_OK);
    CHECK_EQ(s->c->compact(s, 1, &flush), OPCOMMS_E_AGAIN);
    CHECK_EQ(s->c->close(s), OPCOMMS_OK);
    f.live = world_live;
    f.w = &w;
    w.n = 0;
    CHECK_EQ(log_open_with(&o, &s, &f, &err), OPCOMMS_OK);
    for (i = 0; i < 5; i++) {
        uint8_t body[20];
        memset(body, 0, sizeof body);
        body[7] = (uint8_t)(i + 1);
        CHECK_EQ(s->c->note(s, OPC__NOTE_STATE, body, 20, &position), OPCOMMS_OK);
    }
    for (i = 0; i < 9 && !flush; i++) CHECK_EQ(s->c->compact(s, 1, &flush), OPCOMMS_OK);
    CHECK_EQ(s->c->flush_end(s, s->c->flush_run(s)), OPCOMMS_OK);
    CHECK_EQ(s->c->close(s), OPCOMMS_OK);
    CHECK_EQ(log_open_with(&o, &s, &f, &err), OPCOMMS_OK);
    CHECK_EQ(f.notes, 2 + 5 + 1);
    CHECK_EQ(f.state, 5);
    CHECK_EQ(f.wrong, 0);
    CHECK_EQ(s->c->close(s), OPCOMMS_OK);
    memset(&f, 0, sizeof f);
}

/* ---- backups ---- */

static opcomms_err backup(void) { /* the whole of one; steps and flushes in between */
    int i;
    opcomms_err rc = w.s->c->backup(w.s, "dir/copy.log");
    if (rc != OPCOMMS_OK) return rc;
    for (i = 0; i < 5000; i++) {
        int flush = 0;
        rc = w.s->c->compact(w.s, 0, &flush);
        if (rc != OPCOMMS_OK && rc != OPCOMMS_E_AGAIN) break;
        if (flush) {
            uint64_t at = w.s->c->end(w.s), now = 0;
            CHECK_EQ(w.s->c->note(w.s, OPC__NOTE_SEEN, (const uint8_t *)"", 0, &now), OPCOMMS_OK);
            CHECK(now > at); /* nobody has to wait for a backup */
            rc = w.s->c->flush_end(w.s, w.s->c->flush_run(w.s));
        }
        if (rc == OPCOMMS_E_IO || w.s->c->backup(w.s, NULL) != OPCOMMS_E_AGAIN) break;
    }
    return w.s->c->backup(w.s, NULL);
}

TEST(a_backup_holds_what_was_live_and_opens_as_a_log_while_the_log_goes_on) {
    uint64_t seed;
    for (seed = 1; seed <= 30; seed++) {
        opc__log_options o;
        opc__store *s = NULL;
        int i, live = 0;
        begin(seed, 0, seed % 2 ? 0 : 3000);
        w.o.dead_bytes_min = (uint64_t)1 << 40;
        for (i = 0; i < 60; i++) {
            if (i % 3 == 0) CHECK_EQ(world_group(&w), OPCOMMS_OK);
            CHECK_EQ(world_put(&w, world_size(&w.rng)), OPCOMMS_OK);
            CHECK_EQ(world_try(&w), OPCOMMS_OK);
            if (i % 2 == 0) CHECK_EQ(flush_rc(w.s), OPCOMMS_OK);
            if (i % 20 == 0) CHECK_EQ(world_half(&w), OPCOMMS_OK);
            world_note(&w);
            CHECK_EQ(world_ack(&w), OPCOMMS_OK);
        }
        CHECK_EQ(w.s->c->backup(w.s, NULL), OPCOMMS_E_NOT_FOUND);
        CHECK_EQ(backup(), OPCOMMS_OK);
        CHECK_EQ(w.s->c->backup(w.s, "dir/copy.log"), OPCOMMS_E_IN_USE);
        CHECK_EQ(w.compactions + w.gave_up, 0);
        o = w.o;
        o.path = "dir/copy.log";
        CHECK(fd_find(&disk, "copy.log.part") == NULL);
        fd_cut(&disk, &copy, 512, FD_CUT_NOTHING, &w.rng); /* it is on the medium */
        o.plat = &copy.plat;
        CHECK_EQ(log_open_with(&o, &s, &f, &err), OPCOMMS_OK);
        world_note(&w);
        world_check(&w, s, &f);
        for (i = 0; i < w.n; i++) live += !w.m[i].acked && !w.m[i].gone;
        CHECK_EQ(f.count, live);
        CHECK_EQ(f.state, w.state);
        if (s != NULL) CHECK_EQ(s->c->close(s), OPCOMMS_OK);
        lr_read(&seen, fd_find(&copy, "copy.log")->cache, fd_find(&copy, "copy.log")->size);
        CHECK(seen.wrong == NULL);
        CHECK_EQ(seen.msgs, live);
        put(MSG_PLAIN, 100);
        world_note(&w);
        check_kept();
        end();
    }
}

TEST(a_backup_that_fails_anywhere_leaves_no_file_and_the_log_as_it_was) {
    uint64_t n, failed = 0;
    int i;
    for (n = 1; n < 300; n++) {
        opcomms_err rc;
        ten_of_twenty(3000);
        for (i = 0; i < 8; i++) put(MSG_PLAIN, 20000); /* more than is read at once */
        CHECK_EQ(flush_rc(w.s), OPCOMMS_OK);
        disk.fail_at = disk.calls + n;
        disk.failed_call = -1;
        rc = backup();
        disk.fail_at = 0;
        failed += rc != OPCOMMS_OK;
        CHECK((fd_find(&disk, "copy.log") != NULL) == (rc == OPCOMMS_OK));
        CHECK(fd_find(&disk, "copy.log.part") == NULL || opc__log_of(w.s)->failed != OPCOMMS_OK);
        if (opc__log_of(w.s)->failed != OPCOMMS_OK) { /* its own sync, or write */
            CHECK(disk.failed_call == FD_SYNC || disk.failed_call == FD_WRITE);
            CHECK_EQ(rc, OPCOMMS_E_POISONED);
            CHECK(w.s->c->close(w.s) != OPCOMMS_OK);
            CHECK(fd_find(&disk, "copy.log.part") == NULL);
            CHECK_EQ(world_open(&w), OPCOMMS_OK);
        }
        world_note(&w);
        check_kept();
        end();
        CHECK_EQ(disk.handles, 0);
        if (disk.failed_call < 0) break;
    }
    CHECK(n > 20 && n < 300);
    CHECK(failed > 15);
}

TEST(a_reference_tells_how_much_room_a_message_takes) {
    uint64_t n;
    for (n = 1; n < (uint64_t)1 << 36; n += n / 97 + 1) {
        uint64_t ref = opc__log_ref(0x123456789abcu, n), size = opc__log_size_of(ref);
        CHECK_EQ(opc__log_at(ref), 0x123456789abcu);
        CHECK(size >= n && size - n <= 8 + n / 1000);
    }
}

TEST(want_of_memory_gives_a_compaction_up_and_leaves_nothing_behind) {
    size_t limit;
    int done = 0;
    for (limit = 0; !done && limit < 300000; limit += 5000) {
        int flush = 0;
        opcomms_err rc = OPCOMMS_OK;
        ten_of_twenty(0);
        mem.limit = mem.used + limit;
        while (rc == OPCOMMS_OK && !flush) rc = w.s->c->compact(w.s, 1, &flush);
        mem.limit = 0;
        CHECK(flush ? rc == OPCOMMS_OK : rc == OPCOMMS_E_NOMEM);
        if (flush) {
            CHECK_EQ(w.s->c->flush_end(w.s, w.s->c->flush_run(w.s)), OPCOMMS_OK);
            done = 1;
        }
        CHECK_EQ(w.compactions, (uint64_t)flush);
        CHECK(fd_find(&disk, "peer.log.new") == NULL);
        check_kept();
        end();
    }
    CHECK(done && limit > 5000);
}

int main(void) {
    pool_init();
    fd_init(&disk, 1);
    fd_init(&copy, 2);
    RUN(what_is_over_goes_and_the_rest_stays_as_it_was);
    RUN(a_log_of_which_all_is_over_becomes_nearly_empty_and_forgets_no_number);
    RUN(whatever_is_done_between_its_steps_is_kept);
    RUN(a_step_moves_no_more_than_its_slice_also_of_large_messages);
    RUN(large_copies_are_synced_piece_by_piece);
    RUN(a_copy_whose_part_was_not_synced_is_given_up_and_so_is_one_that_fails_during_a_flush);
    RUN(it_begins_by_itself_when_more_than_half_is_dead_and_not_before);
    RUN(less_than_the_minimum_is_left_alone);
    RUN(notes_that_compaction_cannot_do_without_do_not_start_it_again_and_again);
    RUN(a_full_log_takes_messages_again_when_there_is_something_to_gain);
    RUN(a_compaction_that_fails_is_given_up_and_the_log_goes_on);
    RUN(space_that_ends_at_any_byte_of_a_copy_gives_it_up_and_no_more);
    RUN(a_name_of_which_nobody_knows_whose_it_is_ends_the_log_with_both_files_complete);
    RUN(damage_anywhere_in_a_compacted_log_is_refused_with_its_place);
    RUN(operations_of_a_newer_version_are_kept_and_a_file_left_behind_is_removed);
    RUN(without_an_owner_that_says_what_lives_nothing_is_compacted_and_without_notes_all_stay);
    RUN(a_backup_holds_what_was_live_and_opens_as_a_log_while_the_log_goes_on);
    RUN(a_backup_that_fails_anywhere_leaves_no_file_and_the_log_as_it_was);
    RUN(a_reference_tells_how_much_room_a_message_takes);
    RUN(want_of_memory_gives_a_compaction_up_and_leaves_nothing_behind);
    fd_free(&disk);
    fd_free(&copy);
    pool_end();
    return test_end();
}
