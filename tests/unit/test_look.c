/* A log read without its peer: the verdict is that of opening, a salvage loses nothing valid. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#include "test.h"
#include "logworld.h"
#include "logread.h"

static fdisk disk, spoilt;
static lr seen;
static world w;
static found f;
static opcomms_error err;

/* ---- helpers ---- */

static void disks(void) {
    fd_init(&disk, 1);
    fd_init(&spoilt, 2);
}

static fd_file *log_of(fdisk *d) { return fd_find(d, "peer.log"); }

/* A log with everything in it, by `seed`; synced, and read by the manual into `seen`. */
static void some_log(uint64_t seed) {
    int i;
    fd_clear(&disk);
    world_init(&w, &disk, seed, (int)(seed % 3));
    w.calm = seed % 2 == 0;
    CHECK_EQ(world_open(&w), OPCOMMS_OK);
    for (i = 0; i < 50; i++) CHECK_EQ(world_step(&w), OPCOMMS_OK);
    if (w.s != NULL) CHECK_EQ(w.s->c->close(w.s), OPCOMMS_OK);
    w.s = NULL;
    lr_read(&seen, log_of(&disk)->cache, log_of(&disk)->size);
    CHECK(seen.wrong == NULL);
}

/* A copy of it to be spoilt. */
static uint8_t *copy(size_t *size) {
    fd_clear(&spoilt);
    *size = log_of(&disk)->size;
    return fd_put(&spoilt, "peer.log", log_of(&disk)->cache, *size)->cache;
}

static int same(const uint8_t *p, size_t size, size_t at, size_t len) {
    return at + len <= size && memcmp(p + at, log_of(&disk)->cache + at, len) == 0;
}

/* Are the bytes of message i, and of all its fragments, still there? */
static int intact(int i, const uint8_t *p, size_t size) {
    const lr_msg *m = &seen.msg[i];
    const uint8_t *old = log_of(&disk)->cache;
    uint32_t k;
    if (!same(p, size, m->at, 8 + (size_t)lr_int(old + m->at + 4, 4))) return 0;
    for (k = 0; k < m->frags; k++) {
        size_t at = (size_t)lr_int(m->body + m->fixed + 8 * k, 8);
        if (!same(p, size, at, 8 + (size_t)lr_int(old + at + 4, 4))) return 0;
    }
    return 1;
}

static opcomms_err salvage(fdisk *d, opcomms_log_report *r) {
    opc__look k;
    opcomms_err rc = opc__look_open(&k, &d->plat, &mem, "dir/peer.log", 1, &err);
    if (rc == OPCOMMS_OK) rc = opc__look_run(&k, 1, &err);
    if (rc == OPCOMMS_OK || (rc == OPCOMMS_E_LOG_DAMAGED && k.c.buf != NULL)) {
        rc = opc__look_salvage(&k, "dir/new.log", &err);
    }
    *r = k.r;
    opc__look_close(&k);
    return rc;
}

/* What `rc` a look at the log gives. */
static opcomms_err verdict(fdisk *d, opcomms_log_report *r) {
    opc__look k;
    opcomms_err rc = opc__look_read(&k, &d->plat, &mem, "dir/peer.log", 0, &err);
    *r = k.r;
    opc__look_close(&k);
    return rc;
}

static uint64_t spoil(uint8_t *p, size_t *size, uint64_t *rng) {
    size_t at = OPC__LOG_HEADER + (size_t)fd_below(rng, *size - OPC__LOG_HEADER), n = 1, i;
    uint64_t how = fd_below(rng, 6);
    switch (how) {
    case 0: p[at] ^= (uint8_t)(1u << fd_below(rng, 8)); return how;
    case 1: at &= ~(size_t)511; n = 512; break;
    case 2: at &= ~(size_t)4095; n = 4096; break;
    case 3: n = 1 + (size_t)fd_below(rng, 20000); break;
    case 4: /* a block lands at a wrong place */
        at &= ~(size_t)511;
        i = OPC__LOG_HEADER + (size_t)fd_below(rng, *size - OPC__LOG_HEADER) / 512 * 512;
        n = 4096;
        if (n > *size - at) n = *size - at;
        if (n > *size - i) n = *size - i;
        memmove(p + at, p + i, n);
        return how;
    default: *size = at; return how;
    }
    if (n > *size - at) n = *size - at;
    for (i = 0; i < n; i++) p[at + i] = how == 3 ? (uint8_t)fd_next(rng) : 0;
    return how;
}

/* Does the new log hold every intact message that was not acknowledged, and nothing that is not
   right? */
static void judge(const uint8_t *p, size_t size, int whole) {
    opc__log_options o = log_options(&spoilt);
    opc__store *s = NULL;
    uint64_t next = 0, unused = 0;
    int i, k = 0;
    o.path = "dir/new.log";
    CHECK_EQ(log_open_with(&o, &s, &f, &err), OPCOMMS_OK);
    if (s == NULL) return;
    for (i = 0; i < seen.msgs; i++) {
        const lr_msg *m = &seen.msg[i];
        int right = 0;
        if (k < f.count && f.uid[k] == m->uid) {
            if (whole) {
                CHECK_EQ(f.attempts[k], m->attempts);
                CHECK_EQ(f.kind[k], m->type != 4 ? OPC__KIND_IN : m->dead ? OPC__KIND_DEAD
                                                                         : OPC__KIND_OUT);
            }
            CHECK_EQ(msg_read(s, f.ref[k], m->from[0], m->bytes, &right), OPCOMMS_OK);
            CHECK(right);
            CHECK(!(whole && m->acked));
            k++;
        } else {
            CHECK(m->acked || !intact(i, p, size));
        }
    }
    CHECK_EQ(k, f.count);
    if (whole) {
        CHECK_EQ(f.state, seen.state);
        CHECK_EQ(f.seen, seen.seen);
        CHECK(f.notes == (uint64_t)seen.notes + 2); /* and two openings */
    }
    CHECK_EQ(msg_put(s, 1, 3, &next, &unused, &unused), OPCOMMS_OK);
    for (i = 0; i < seen.msgs; i++) CHECK(next > seen.msg[i].uid);
    CHECK(opc__log_of(s)->open_counter > seen.slot_counter);
    CHECK_EQ(s->c->close(s), OPCOMMS_OK);
}

/* ---- tests ---- */

TEST(the_verdict_is_that_of_opening) {
    uint64_t seed, rng = 7, bad = 0, good = 0;
    for (seed = 1; seed <= 12; seed++) {
        int i;
        some_log(seed);
        for (i = 0; i < 25; i++) {
            opcomms_log_report r;
            opc__store *s = NULL;
            size_t size = 0;
            uint8_t *p = copy(&size);
            opcomms_err rc, rc2;
            if (i > 0) (void)spoil(p, &size, &rng);
            log_of(&spoilt)->size = size;
            rc = verdict(&spoilt, &r);
            CHECK_EQ(log_of(&spoilt)->size, size);
            CHECK(spoilt.bytes_written == 0);
            if (rc == OPCOMMS_E_LOG_DAMAGED) CHECK(r.broken > 0 || err.position == r.bad_at);
            rc2 = log_open(&spoilt, &s, &f, &err);
            CHECK_EQ(rc, rc2);
            if (rc == OPCOMMS_OK) {
                CHECK_EQ(r.unread + r.queued + r.dead_letters, (uint64_t)f.count);
                CHECK(r.tail_bytes == opc__log_of(s)->cut);
                good++;
            } else {
                CHECK_EQ(err.position, r.bad_at);
                bad++;
            }
            if (s != NULL) log_abandon(s);
            spoilt.bytes_written = 0;
        }
    }
    CHECK(bad > 20);
    CHECK(good > 20);
}

TEST(a_report_counts_what_the_manual_says_is_there) {
    uint64_t seed, all_queued = 0, all_dead = 0;
    for (seed = 1; seed <= 12; seed++) {
        opcomms_log_report r;
        uint64_t acked = 0, bytes = 0, dead = 0, queued = 0;
        size_t size = 0;
        int i;
        some_log(seed);
        (void)copy(&size);
        for (i = 0; i < seen.msgs; i++) {
            const lr_msg *m = &seen.msg[i];
            acked += (uint64_t)m->acked;
            if (m->acked) continue;
            bytes += m->bytes;
            dead += m->type == 4 && m->dead;
            queued += m->type == 4 && !m->dead;
        }
        CHECK_EQ(verdict(&spoilt, &r), OPCOMMS_OK);
        CHECK_EQ(r.messages, (uint64_t)seen.msgs);
        CHECK_EQ(r.acknowledged, acked);
        CHECK_EQ(r.unread + queued + dead, (uint64_t)seen.msgs - acked);
        CHECK_EQ(r.unread_bytes + r.queued_bytes + r.dead_letter_bytes, bytes);
        CHECK_EQ(r.queued, queued);
        CHECK_EQ(r.dead_letters, dead);
        CHECK_EQ(r.notes, (uint64_t)seen.notes);
        all_queued += queued;
        all_dead += dead;
        CHECK_EQ(r.batches, (uint64_t)seen.batches);
        CHECK_EQ(r.bad_parts + r.bad_bytes + r.tail_bytes + r.broken + r.salvaged, 0);
        CHECK(r.flags == OPCOMMS_REPORT_CLOSED);
        CHECK_EQ(r.major, 1);
        CHECK_EQ(r.opened, seen.slot_counter);
        CHECK_EQ(r.created_s, 1700000000);
    }
    CHECK(all_queued > 10);
    CHECK(all_dead > 0);
}

TEST(a_listing_says_of_each_message_what_the_manual_says) {
    uint64_t seed, queued = 0, over = 0;
    for (seed = 20; seed <= 30; seed++) {
        opc__look k;
        size_t size = 0, i;
        some_log(seed);
        (void)copy(&size);
        CHECK_EQ(opc__look_read(&k, &spoilt.plat, &mem, "dir/peer.log", 1, &err), OPCOMMS_OK);
        CHECK_EQ(k.m.count, (size_t)seen.msgs);
        for (i = 0; i < k.m.count && i < (size_t)seen.msgs; i++) {
            const lr_msg *m = &seen.msg[i];
            opcomms_log_entry e;
            char key[65];
            CHECK_EQ(opc__look_entry(&k, i, &e), OPCOMMS_OK);
            CHECK_EQ(e.number, m->uid);
            CHECK_EQ(e.offset, m->at);
            CHECK_EQ(e.bytes, m->bytes);
            CHECK_EQ(e.kind, m->type != 4 ? OPCOMMS_ENTRY_RECEIVED
                             : m->dead    ? OPCOMMS_ENTRY_DEAD_LETTER
                                          : OPCOMMS_ENTRY_QUEUED);
            CHECK_EQ(e.attempts, m->attempts);
            CHECK_EQ(e.code, -(int32_t)m->attempts);
            CHECK_EQ(e.dead_s, m->dead ? 77 + (int64_t)m->attempts : 0);
            CHECK_EQ(e.state == OPCOMMS_ENTRY_ACKNOWLEDGED, m->acked);
            opc__str_hash_write(m->from, key);
            CHECK(strcmp(m->type == 4 ? e.server : e.from.hash, key) == 0);
            CHECK_EQ(e.context_len, m->context_len);
            CHECK(m->context_len == 0 || memcmp(e.context, m->context, m->context_len) == 0);
            queued += m->type == 4;
            over += (uint64_t)m->acked;
        }
        opc__look_close(&k);
    }
    CHECK(queued > 20);
    CHECK(over > 20);
}

TEST(a_salvage_loses_nothing_valid_and_takes_nothing_else) {
    uint64_t seed, rng = 11, salvaged = 0, broken = 0, logs = 0;
    for (seed = 1; seed <= (getenv("LOG_IMAGES") ? 400 : 20); seed++) {
        int i;
        some_log(seed);
        for (i = 0; i < 15; i++) {
            opcomms_log_report r;
            size_t size = 0;
            uint8_t *p = copy(&size), *before;
            int n;
            for (n = i % 4; n > 0 && size > OPC__LOG_HEADER; n--) (void)spoil(p, &size, &rng);
            log_of(&spoilt)->size = size;
            before = (uint8_t *)malloc(size);
            CHECK(before != NULL);
            if (before == NULL) return;
            memcpy(before, p, size);
            CHECK_EQ(salvage(&spoilt, &r), OPCOMMS_OK);
            CHECK_EQ(log_of(&spoilt)->size, size);
            CHECK(memcmp(log_of(&spoilt)->cache, before, size) == 0);
            judge(before, size, i % 4 == 0);
            CHECK(fd_find(&spoilt, "new.log.part") == NULL);
            CHECK_EQ(r.unread + r.queued + r.dead_letters, (uint64_t)f.count);
            salvaged += r.salvaged;
            broken += r.broken;
            logs++;
            free(before);
            CHECK_EQ(spoilt.handles, 0);
        }
    }
    CHECK(salvaged > 100);
    CHECK(broken > 10);
    printf("spoilt logs salvaged: %llu\n", (unsigned long long)logs);
}

/* LOG_IMAGES set: every bit; else some of them. Whatever opening says, nothing valid is lost. */
TEST(a_salvage_after_any_flipped_bit_loses_at_most_what_that_bit_was_in) {
    static uint8_t before[60000];
    uint64_t seed, bit, logs = 0;
    for (seed = 3; seed < 100 && logs == 0; seed++) { /* a log of about 16 KiB */
        some_log(seed);
        if (seen.end < 14000 || seen.end > 26000 || seen.fragments == 0) continue;
        for (bit = 4096 * 8; bit < seen.end * 8; bit += getenv("LOG_IMAGES") ? 1 : 397) {
            opcomms_log_report r;
            size_t size = 0;
            uint8_t *p = copy(&size);
            p[bit / 8] ^= (uint8_t)(1u << (bit % 8));
            memcpy(before, p, size);
            CHECK_EQ(salvage(&spoilt, &r), OPCOMMS_OK);
            judge(before, size, 0);
            logs++;
        }
    }
    CHECK(logs > 200);
    printf("bits flipped and salvaged: %llu\n", (unsigned long long)logs);
}

TEST(messages_are_had_from_a_batch_of_many_of_which_one_bit_is_wrong) {
    opcomms_log_report r;
    opc__store *s = NULL;
    uint64_t uid = 0, ref = 0, position = 0;
    size_t size = 0;
    int i;
    fd_clear(&disk);
    CHECK_EQ(log_open(&disk, &s, &f, &err), OPCOMMS_OK);
    for (i = 0; i < 100; i++) CHECK_EQ(msg_put(s, 5, 200, &uid, &ref, &position), OPCOMMS_OK);
    CHECK_EQ(flush_rc(s), OPCOMMS_OK);
    CHECK_EQ(s->c->close(s), OPCOMMS_OK);
    lr_read(&seen, log_of(&disk)->cache, log_of(&disk)->size);
    CHECK_EQ(seen.batches, 3);
    copy(&size)[seen.msg[40].at + 200] ^= 4;
    CHECK_EQ(verdict(&spoilt, &r), OPCOMMS_E_LOG_DAMAGED);
    CHECK_EQ(r.bad_at, seen.batch[1].at);
    CHECK_EQ(salvage(&spoilt, &r), OPCOMMS_OK);
    CHECK_EQ(r.unread, 99);
    CHECK_EQ(r.salvaged, 99);
    CHECK_EQ(r.broken, 1);
    CHECK_EQ(r.bad_parts, 1);
}

TEST(what_a_payload_contains_is_never_taken_for_a_message) {
    opcomms_log_report r;
    opc__store *s = NULL;
    opc__msg_meta m;
    static uint8_t evil[16000];
    uint64_t uid = 0, ref = 0, position = 0;
    size_t size = 0, at;
    uint32_t put = 0;
    for (at = 0; at + 200 <= sizeof evil; at += 200) { /* as many forged ones as fit */
        evil[at] = 1;
        opc__buf_put32(evil + at + 4, 84 + 100);
        opc__buf_put64(evil + at + 8 + 40, 500 + at);
        opc__buf_put64(evil + at + 8 + 48, 100);
        opc__buf_put32(evil + at + 8 + 80, opc__crc32c(0, evil + at + 8, 84));
    }
    fd_clear(&disk);
    CHECK_EQ(log_open(&disk, &s, &f, &err), OPCOMMS_OK);
    CHECK_EQ(s->c->begin(s, &put), OPCOMMS_OK);
    CHECK_EQ(s->c->data(s, put, evil, sizeof evil), OPCOMMS_OK);
    memset(&m, 0, sizeof m);
    m.bytes = sizeof evil;
    CHECK_EQ(s->c->commit(s, put, &m, &uid, &ref, &position), OPCOMMS_OK);
    CHECK_EQ(s->c->close(s), OPCOMMS_OK);
    copy(&size)[OPC__LOG_HEADER + 96 + 12] ^= 1; /* behind the note of the opening */
    CHECK_EQ(salvage(&spoilt, &r), OPCOMMS_OK);
    CHECK_EQ(r.unread, 1);
    CHECK_EQ(r.salvaged, 1);
    CHECK_EQ(r.unread_bytes, sizeof evil);
}

TEST(a_salvage_that_fails_at_any_call_leaves_the_old_log_and_no_new_one) {
    uint64_t call, done = 0;
    some_log(5);
    for (call = 1; done < 3; call++) {
        opcomms_log_report r;
        size_t size = 0;
        opcomms_err rc;
        copy(&size)[seen.batch[2].at + 20] ^= 1;
        spoilt.calls = 0;
        spoilt.fail_at = call;
        rc = salvage(&spoilt, &r);
        spoilt.fail_at = 0;
        if (rc == OPCOMMS_OK) done++; /* or the call is one of those that may fail */
        CHECK((fd_find(&spoilt, "new.log") != NULL) == (rc == OPCOMMS_OK));
        CHECK(fd_find(&spoilt, "new.log.part") == NULL);
        CHECK(memcmp(log_of(&spoilt)->cache, log_of(&disk)->cache, seen.batch[2].at) == 0);
        CHECK_EQ(spoilt.handles, 0);
        CHECK(call < 4000);
        if (call >= 4000) break;
    }
}

TEST(what_exists_is_in_use_or_is_newer_is_refused) {
    opcomms_log_report r;
    opc__store *s = NULL;
    size_t size = 0;
    some_log(3);
    (void)copy(&size);
    (void)fd_put(&spoilt, "new.log", NULL, 0);
    CHECK_EQ(salvage(&spoilt, &r), OPCOMMS_E_IN_USE);
    CHECK_EQ(fd_find(&spoilt, "new.log")->size, 0);
    (void)copy(&size);
    CHECK_EQ(log_open(&spoilt, &s, &f, &err), OPCOMMS_OK);
    CHECK_EQ(salvage(&spoilt, &r), OPCOMMS_E_IN_USE);
    log_abandon(s);
    {
        uint8_t *p = copy(&size), *slot = p;
        if (lr_int(p + 2048 + 16, 8) > lr_int(p + 16, 8)) slot = p + 2048;
        slot[11] = 2; /* minor version */
        opc__buf_put32(slot + 508, opc__crc32c(0, slot, 508));
        CHECK_EQ(verdict(&spoilt, &r), OPCOMMS_OK);
        CHECK_EQ(r.minor, 2);
        CHECK_EQ(salvage(&spoilt, &r), OPCOMMS_E_LOG_VERSION);
        memset(p, 0xff, 4096);
        CHECK_EQ(salvage(&spoilt, &r), OPCOMMS_E_LOG_DAMAGED);
        memset(p, 0, 4096);
        log_of(&spoilt)->size = 4096;
        CHECK_EQ(verdict(&spoilt, &r), OPCOMMS_OK);
        CHECK_EQ(r.flags, OPCOMMS_REPORT_NEW);
        CHECK_EQ(salvage(&spoilt, &r), OPCOMMS_E_EMPTY);
    }
    CHECK(fd_find(&spoilt, "new.log") == NULL);
    fd_clear(&spoilt);
    CHECK_EQ(verdict(&spoilt, &r), OPCOMMS_E_NOT_FOUND);
    CHECK_EQ(spoilt.handles, 0);
}

TEST(memory_is_returned_and_its_lack_is_told) {
    opcomms_log_report r;
    size_t size = 0, limit;
    int done = 0;
    some_log(4);
    CHECK_EQ(mem.used, 0);
    for (limit = 1000; !done; limit += 20000) {
        opcomms_err rc;
        (void)copy(&size);
        mem.limit = limit;
        rc = salvage(&spoilt, &r);
        CHECK(rc == OPCOMMS_OK || rc == OPCOMMS_E_NOMEM);
        CHECK_EQ(mem.used, 0);
        done = rc == OPCOMMS_OK;
        CHECK((fd_find(&spoilt, "new.log") != NULL) == done);
    }
    mem.limit = 0;
    CHECK(limit > 21000);
}

int main(void) {
    pool_init();
    disks();
    RUN(the_verdict_is_that_of_opening);
    RUN(a_report_counts_what_the_manual_says_is_there);
    RUN(a_listing_says_of_each_message_what_the_manual_says);
    RUN(a_salvage_loses_nothing_valid_and_takes_nothing_else);
    RUN(a_salvage_after_any_flipped_bit_loses_at_most_what_that_bit_was_in);
    RUN(messages_are_had_from_a_batch_of_many_of_which_one_bit_is_wrong);
    RUN(what_a_payload_contains_is_never_taken_for_a_message);
    RUN(a_salvage_that_fails_at_any_call_leaves_the_old_log_and_no_new_one);
    RUN(what_exists_is_in_use_or_is_newer_is_refused);
    RUN(memory_is_returned_and_its_lack_is_told);
    fd_free(&disk);
    fd_free(&spoilt);
    pool_end();
    return test_end();
}
