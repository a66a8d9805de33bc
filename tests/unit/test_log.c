/* The log: what was synced is found again, whatever happened to the rest of the file. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#include "test.h"
#include "logworld.h"
#include "logread.h"

static fdisk disk, copy, second;
static lr seen;
static found f;
static opcomms_error err;

/* ---- helpers ---- */

static void flush(opc__store *s) { CHECK_EQ(flush_rc(s), OPCOMMS_OK); }

/* Message `tag`, stored; its number in *uid (may be NULL). */
static uint64_t put(opc__store *s, uint8_t tag, uint64_t len, uint64_t *uid) {
    uint64_t u = 0, ref = 0, position = 0;
    CHECK_EQ(msg_put(s, tag, len, &u, &ref, &position), OPCOMMS_OK);
    if (uid != NULL) *uid = u;
    return ref;
}

static inline int holds(opc__store *s, uint64_t ref, uint8_t tag, uint64_t len) {
    int right = 0;
    return msg_read(s, ref, tag, len, &right) == OPCOMMS_OK && right;
}

static fd_file *log_file(fdisk *d) { return fd_find(d, "peer.log"); }

/* A new log on an empty disk. */
static opc__store *fresh(fdisk *d) {
    opc__store *s = NULL;
    fd_clear(d);
    CHECK_EQ(log_open(d, &s, &f, &err), OPCOMMS_OK);
    return s;
}

static void shut(opc__store *s) { CHECK_EQ(s->c->close(s), OPCOMMS_OK); }

TEST(a_disk_that_cannot_be_read_is_not_a_torn_log_and_is_not_changed) {
    uint64_t n, reads = 0;
    opc__store *s = fresh(&disk);
    int i;
    for (i = 1; i <= 3; i++) {
        (void)put(s, (uint8_t)i, 40, NULL);
        flush(s);
    }
    (void)put(s, 4, 30000, NULL);
    CHECK_EQ(s->c->write(s), OPCOMMS_OK);
    log_abandon(s);
    for (n = 1;; n++) {
        opcomms_err rc;
        fd_kill(&disk, &copy);
        copy.fail_at = n;
        copy.write_most = 4000; /* many reads */
        copy.failed_call = -1;
        rc = log_open(&copy, &s, &f, &err);
        if (copy.calls < n) {
            copy.fail_at = 0;
            shut(s);
            break;
        }
        if (copy.failed_call == FD_READ) {
            fd_file *a = log_file(&disk), *b = log_file(&copy);
            reads++;
            CHECK_EQ(rc, OPCOMMS_E_IO);
            CHECK(b->size >= a->size && memcmp(a->cache + OPC__LOG_HEADER,
                                               b->cache + OPC__LOG_HEADER,
                                               a->size - OPC__LOG_HEADER) == 0);
        }
        if (rc == OPCOMMS_OK) shut(s);
        CHECK_EQ(rc == OPCOMMS_OK, copy.failed_call == FD_REMOVE);
        CHECK_EQ(mem.used, 0);
        CHECK_EQ(copy.handles, 0);
        copy.fail_at = 0;
        CHECK_EQ(log_open(&copy, &s, &f, &err), OPCOMMS_OK);
        CHECK_EQ(f.count, 4);
        shut(s);
    }
    CHECK(reads > 5);
}

/* ---- the header ---- */

/* Four sessions, a message in each: both slots are valid, the one at 2 048 is newer. */
static void sessions(fdisk *d) {
    opc__store *s = fresh(d);
    int i;
    for (i = 1; i <= 4; i++) {
        (void)put(s, (uint8_t)i, 40, NULL);
        shut(s);
        if (i < 4) CHECK_EQ(log_open(d, &s, &f, &err), OPCOMMS_OK);
    }
}

static void seal_slot(uint8_t *slot) {
    uint32_t n = opc__buf_be32(slot + 12);
    opc__buf_put32(slot + n - 4, opc__crc32c(0, slot, n - 4));
}

/* Opens what `d` holds and is refused: says so, changes nothing, leaves nothing behind. */
static void refused(fdisk *d, opcomms_err why) {
    opc__store *s = NULL;
    fd_file *file = log_file(d);
    size_t size = file->size;
    uint8_t *before = (uint8_t *)malloc(size + 1);
    uint64_t written = d->bytes_written;
    size_t ops = file->ops;
    if (size > 0) memcpy(before, file->cache, size);
    CHECK_EQ(log_open(d, &s, &f, &err), why);
    CHECK_EQ(err.code, why);
    CHECK_EQ(f.count, 0);
    CHECK(file->size == size && memcmp(before, file->cache, size) == 0);
    CHECK_EQ(file->ops, ops);
    CHECK_EQ(d->bytes_written, written);
    CHECK_EQ(mem.used, 0);
    CHECK_EQ(d->handles, 0);
    free(before);
}

static uint64_t counter_now(fdisk *d) { /* the highest in a valid slot */
    const uint8_t *h = log_file(d)->cache;
    uint64_t a = opc__log_slot_valid(h) ? opc__buf_be64(h + 24) : 0;
    uint64_t b = opc__log_slot_valid(h + 2048) ? opc__buf_be64(h + 2048 + 24) : 0;
    return a > b ? a : b;
}

TEST(either_slot_of_the_header_may_be_damaged_in_any_bit_but_not_both) {
    opc__store *s = NULL;
    uint64_t bit;
    sessions(&disk);
    CHECK_EQ(counter_now(&disk), 4);
    for (bit = 0; bit < 2 * 512 * 8; bit++) {
        size_t at = (size_t)(bit / 8 < 512 ? bit / 8 : 2048 + bit / 8 - 512);
        fd_kill(&disk, &copy);
        log_file(&copy)->cache[at] ^= (uint8_t)(1u << (bit % 8));
        CHECK_EQ(log_open(&copy, &s, &f, &err), OPCOMMS_OK);
        if (s == NULL) break;
        CHECK_EQ(f.count, 4);
        CHECK(counter_now(&copy) >= 5); /* no counter is used twice */
        log_abandon(s);
        s = NULL;
    }
    for (bit = 0; bit < 512 * 8; bit += 13) {
        fd_kill(&disk, &copy);
        log_file(&copy)->cache[bit / 8] ^= (uint8_t)(1u << (bit % 8));
        log_file(&copy)->cache[2048 + 511 - bit / 8] ^= (uint8_t)(1u << (bit % 8));
        refused(&copy, OPCOMMS_E_LOG_DAMAGED);
        CHECK_EQ(err.position, 0);
    }
}

TEST(the_open_counter_rises_although_the_newer_slot_is_lost_each_time) {
    opc__store *s = NULL;
    uint64_t last = 0;
    int i;
    sessions(&disk);
    for (i = 0; i < 6; i++) {
        uint64_t was = counter_now(&disk);
        uint8_t *h = log_file(&disk)->cache;
        size_t newer = opc__buf_be64(h + 16) > opc__buf_be64(h + 2048 + 16) ? 0 : 2048;
        CHECK(was > last);
        last = was;
        memset(h + newer, 0xee, 512);
        CHECK_EQ(log_open(&disk, &s, &f, &err), OPCOMMS_OK);
        CHECK_EQ(f.count, 4);
        log_abandon(s); /* this session writes no batch that would show its counter */
    }
}

TEST(another_key_a_newer_major_version_and_an_encrypted_log_are_refused) {
    opc__log_options o = log_options(&copy);
    opc__store *s = NULL;
    uint8_t *h;
    int i;
    sessions(&disk);
    fd_kill(&disk, &copy);
    o.key_hash[31] = 9;
    CHECK_EQ(log_open_with(&o, &s, &f, &err), OPCOMMS_E_LOG_KEY);
    CHECK(memcmp(log_file(&disk)->cache, log_file(&copy)->cache, log_file(&disk)->size) == 0);
    for (i = 0; i < 2; i++) {
        h = log_file(&copy)->cache + 2048 * i;
        opc__buf_put16(h + 8, 2);
        seal_slot(h);
    }
    refused(&copy, OPCOMMS_E_LOG_VERSION);
    fd_kill(&disk, &copy);
    h = log_file(&copy)->cache + 2048; /* a larger slot, of a newer version */
    opc__buf_put16(h + 8, 2);
    opc__buf_put32(h + 12, 2048);
    seal_slot(h);
    refused(&copy, OPCOMMS_E_LOG_VERSION);
    fd_kill(&disk, &copy);
    h = log_file(&copy)->cache + 2048;
    opc__buf_put32(h + 128, 1); /* key epoch */
    seal_slot(h);
    refused(&copy, OPCOMMS_E_LOG_VERSION);
}

TEST(a_newer_minor_version_is_opened_and_what_it_put_into_the_header_stays) {
    opc__store *s = NULL;
    uint8_t *h;
    int i;
    sessions(&disk);
    h = log_file(&disk)->cache + 2048;
    opc__buf_put16(h + 10, 7);
    opc__buf_put32(h + 12, 600);
    memset(h + 396, 0x5a, 200);
    seal_slot(h);
    for (i = 0; i < 3; i++) {
        CHECK_EQ(log_open(&disk, &s, &f, &err), OPCOMMS_OK);
        CHECK_EQ(f.count, 4);
        shut(s);
        h = log_file(&disk)->cache + 2048 * (i % 2);
        CHECK_EQ(opc__log_slot_valid(h), 600);
        CHECK_EQ(opc__buf_be64(h + 24), 5 + i);
        CHECK_EQ(opc__buf_be16(h + 10), 7);
        CHECK(h[396] == 0x5a && h[595] == 0x5a);
    }
}

TEST(a_creation_that_was_cut_short_is_made_again_and_nothing_else_is_overwritten) {
    opc__store *s = fresh(&disk);
    uint8_t slot[512], h[5000];
    size_t n;
    log_abandon(s);
    memcpy(slot, log_file(&disk)->cache, 512);
    for (n = 0; n <= 512; n++) { /* bytes of the slot that came through */
        memset(h, 0, sizeof h);
        memcpy(h, slot, n);
        fd_clear(&copy);
        (void)fd_put(&copy, "peer.log", h, 4096);
        CHECK_EQ(log_open(&copy, &s, &f, &err), OPCOMMS_OK);
        log_abandon(s);
        fd_clear(&copy); /* bytes of the zeros below it */
        memset(h, 0, sizeof h);
        (void)fd_put(&copy, "peer.log", h, n * 8);
        CHECK_EQ(log_open(&copy, &s, &f, &err), OPCOMMS_OK);
        log_abandon(s);
    }
    for (n = 1; n < 4096; n++) { /* a header that lost its end held a log */
        fd_clear(&copy);
        (void)fd_put(&copy, "peer.log", log_file(&disk)->cache, n);
        refused(&copy, OPCOMMS_E_LOG_DAMAGED);
    }
    for (n = 1; n <= sizeof h; n = n < 20 ? n + 1 : n * 2) { /* foreign files */
        memset(h, n % 2 ? 'O' : 'x', sizeof h);
        fd_clear(&copy);
        (void)fd_put(&copy, "peer.log", h, n);
        refused(&copy, OPCOMMS_E_LOG_DAMAGED);
    }
    memset(h, 0, sizeof h); /* zeros of more than a header */
    fd_clear(&copy);
    (void)fd_put(&copy, "peer.log", h, 4097);
    refused(&copy, OPCOMMS_E_LOG_DAMAGED);
    memset(h, 0, sizeof h); /* another major version's */
    memcpy(h, slot, 400);
    h[9] = 2;
    fd_clear(&copy);
    (void)fd_put(&copy, "peer.log", h, 4096);
    refused(&copy, OPCOMMS_E_LOG_DAMAGED);
}

TEST(weaker_modes_never_use_a_number_twice_whatever_was_lost) {
    opc__log_options o = log_options(&disk);
    opc__store *s = NULL;
    uint64_t uid = 0, last = 0;
    int i;
    fd_clear(&disk);
    o.durability = OPCOMMS_DURABLE_NEVER;
    for (i = 0; i < 5; i++) {
        uint64_t seed = 1;
        CHECK_EQ(log_open_with(&o, &s, &f, &err), OPCOMMS_OK);
        (void)put(s, 1, 10, &uid);
        CHECK_EQ(s->c->write(s), OPCOMMS_OK);
        CHECK(uid > last);
        CHECK(i == 0 || uid - last >= ((uint64_t)1 << 20) - 1);
        last = uid;
        (void)put(s, 2, 10, &last);
        log_abandon(s);
        fd_cut(&disk, &copy, 512, FD_CUT_NOTHING, &seed); /* every message is lost */
        fd_kill(&copy, &disk);
    }
    CHECK_EQ(log_open(&disk, &s, &f, &err), OPCOMMS_OK); /* the strict mode knows it too */
    (void)put(s, 1, 10, &uid);
    CHECK(uid > last);
    shut(s);
}

TEST(the_directory_is_synced_again_when_the_creation_may_not_have_come_so_far) {
    opc__store *s = NULL;
    uint64_t n, seed = 1;
    for (n = 1; n < 20; n++) {
        fd_clear(&disk);
        disk.fail_at = n;
        if (log_open(&disk, &s, &f, &err) == OPCOMMS_OK) log_abandon(s);
        disk.fail_at = 0;
        CHECK_EQ(log_open(&disk, &s, &f, &err), OPCOMMS_OK);
        (void)put(s, 1, 10, NULL);
        flush(s);
        log_abandon(s);
        fd_cut(&disk, &copy, 512, FD_CUT_NOTHING, &seed);
        CHECK_EQ(log_open(&copy, &s, &f, &err), OPCOMMS_OK);
        CHECK_EQ(f.count, 1);
        log_abandon(s);
    }
}

/* ---- the format ---- */

#define OPENED_BYTES 96u /* the batch that each opening writes */

static void attempt(opc__store *s, uint64_t uid, uint32_t attempts) {
    opc__try t;
    uint64_t position = 0;
    memset(&t, 0, sizeof t);
    t.uid = uid;
    t.attempts = attempts;
    t.code = -(int32_t)attempts;
    t.tried = attempts % 4;
    t.dead = try_dead(attempts);
    t.time_s = 77 + (int64_t)attempts;
    CHECK_EQ(s->c->tried(s, &t, &position), OPCOMMS_OK);
}

static uint64_t put_as(opc__store *s, int what, uint8_t tag, uint64_t number, uint64_t len,
                       uint64_t *uid) {
    uint64_t u = 0, ref = 0, position = 0;
    CHECK_EQ(msg_put_as(s, what, tag, number, len, &u, &ref, &position), OPCOMMS_OK);
    if (uid != NULL) *uid = u;
    return ref;
}

static void note(opc__store *s, unsigned type, uint64_t value, size_t n) {
    uint8_t body[OPC__NOTE_MAX];
    uint64_t position = 0;
    memset(body, 9, sizeof body);
    opc__buf_put64(body, value);
    CHECK_EQ(s->c->note(s, type, body, n, &position), OPCOMMS_OK);
    CHECK_EQ(position, s->c->end(s));
}

/* A log that holds every operation: messages of all kinds, fragments that belong to nothing,
   what became of messages, notes, several sessions, one of them not closed. The last batches are
   not synced. */
static void full_log(fdisk *d) {
    opc__log_options o = log_options(d);
    opc__store *s = fresh(d);
    uint64_t uid[5], ref[5], position = 0;
    uint32_t p = 0;
    static uint8_t zero[16384];
    ref[0] = put(s, 1, 0, &uid[0]);
    ref[1] = put(s, 2, 1, &uid[1]);
    flush(s);
    ref[2] = put(s, 3, 100, &uid[2]);
    CHECK_EQ(s->c->ack(s, ref[1], uid[1], &position), OPCOMMS_OK);
    (void)put_as(s, MSG_QUEUED, 9, 0, 50, &uid[3]);
    attempt(s, uid[3], 1);
    flush(s);
    ref[4] = put_as(s, MSG_QUEUED, 10, 0, 0, &uid[4]);
    CHECK_EQ(s->c->done(s, ref[4], uid[4], OPC__DONE_DELIVERED, &position), OPCOMMS_OK);
    (void)put_as(s, MSG_QUEUED, 11, 0, 20000, &uid[4]);
    attempt(s, uid[4], 3);
    attempt(s, uid[3], 2);
    note(s, OPC__NOTE_SEEN, 1, 0);
    note(s, OPC__NOTE_STATE, 1, 8);
    note(s, OPC__NOTE_PEER, 1, 300);
    flush(s);
    shut(s);
    CHECK_EQ(log_open(d, &s, &f, &err), OPCOMMS_OK);
    (void)put(s, 4, 40000, NULL);
    CHECK_EQ(s->c->begin(s, &p), OPCOMMS_OK);
    CHECK_EQ(s->c->data(s, p, zero, sizeof zero), OPCOMMS_OK);
    CHECK_EQ(s->c->data(s, p, zero, 1), OPCOMMS_OK);
    s->c->abort(s, p);
    (void)put(s, 5, 16384, NULL);
    flush(s);
    ref[4] = put_as(s, MSG_QUEUED, 12, 0, 10, &uid[4]);
    attempt(s, uid[4], 3);
    CHECK_EQ(s->c->done(s, ref[4], uid[4], OPC__DONE_TAKEN, &position), OPCOMMS_OK);
    (void)put(s, 6, 16385, NULL);
    flush(s);
    log_abandon(s);
    o.durability = OPCOMMS_DURABLE_NEVER;
    CHECK_EQ(log_open_with(&o, &s, &f, &err), OPCOMMS_OK);
    (void)put_as(s, MSG_STREAM, 13, 1, 200, NULL);
    CHECK_EQ(s->c->ack(s, ref[0], uid[0], &position), OPCOMMS_OK);
    CHECK_EQ(s->c->write(s), OPCOMMS_OK);
    (void)put_as(s, MSG_OWN, 14, 2, 200, NULL);
    note(s, OPC__NOTE_STATE, 2, 20);
    CHECK_EQ(s->c->write(s), OPCOMMS_OK);
    log_abandon(s);
}

static int live_found(void *user, uint64_t uid) { /* what was told at opening, or is newer */
    const found *all = (const found *)user;
    int i;
    for (i = 0; i < all->count && all->uid[i] != uid; i++) {}
    return i < all->count || all->count == 0 || uid > all->uid[all->count - 1];
}

/* Opens it, compacts it, and goes on with every operation; the last ones are not synced. */
static void compact_and_go_on(fdisk *d) {
    opc__store *s = NULL;
    uint64_t uid[3], position = 0;
    int flush = 0, i;
    f.live = live_found;
    CHECK_EQ(log_open(d, &s, &f, &err), OPCOMMS_OK);
    for (i = 0; i < 1000 && !flush; i++) CHECK_EQ(s->c->compact(s, 1, &flush), OPCOMMS_OK);
    CHECK_EQ(s->c->flush_end(s, s->c->flush_run(s)), OPCOMMS_OK);
    f.live = NULL;
    (void)put_as(s, MSG_QUEUED, 15, 0, 30, &uid[0]);
    (void)put_as(s, MSG_QUEUED, 16, 0, 30, &uid[1]);
    (void)put_as(s, MSG_STREAM, 17, 3, 30, &uid[2]);
    flush_rc(s);
    attempt(s, uid[0], 3);
    CHECK_EQ(s->c->ack(s, 0, uid[2], &position), OPCOMMS_OK);
    CHECK_EQ(s->c->done(s, 0, uid[1], OPC__DONE_CANCELLED, &position), OPCOMMS_OK);
    note(s, OPC__NOTE_STATE, 3, 30);
    flush_rc(s);
    for (i = 18; i < 22; i++) {
        (void)put_as(s, i % MSG_KINDS, (uint8_t)i, (uint64_t)i, 40, NULL);
        if (i == 19) attempt(s, uid[0], 5);
        CHECK_EQ(s->c->write(s), OPCOMMS_OK);
    }
    CHECK_EQ(s->c->done(s, 0, uid[0], OPC__DONE_TAKEN, &position), OPCOMMS_OK);
    CHECK_EQ(s->c->write(s), OPCOMMS_OK);
    log_abandon(s);
    lr_read(&seen, log_file(d)->cache, log_file(d)->size);
    CHECK(seen.wrong == NULL);
    CHECK(seen.checkpoint > 0);
}

/* Every operation in some 24 KiB, of which one fragment is 16. */
static void small_log(fdisk *d) {
    opc__store *s = fresh(d);
    uint64_t uid = 0, position = 0;
    int i;
    for (i = 1; i <= 8; i++) {
        uint64_t ref = put_as(s, i % MSG_KINDS, (uint8_t)i, (uint64_t)i, i == 5 ? 16400 : 20, &uid);
        if (i == 2 || i == 4) CHECK_EQ(s->c->ack(s, ref, uid, &position), OPCOMMS_OK);
        if (i == 5) attempt(s, uid, 2);
    }
    note(s, OPC__NOTE_SEEN, 1, 10);
    note(s, OPC__NOTE_PEER, 1, 10);
    note(s, OPC__NOTE_STATE, 1, 10);
    shut(s);
    compact_and_go_on(d);
}

#define FULL 8
static const uint8_t full_tags[FULL] = {3, 9, 11, 4, 5, 6, 13, 14};
static const size_t full_sizes[FULL] = {100, 50, 20000, 40000, 16384, 16385, 200, 200};

/* How the file reads without the library, checked against what was put in. */
static void check_read(const fdisk *d, const uint8_t *tags, const size_t *sizes, int n) {
    const fd_file *file = log_file((fdisk *)(uintptr_t)d);
    int i, k = 0;
    size_t j;
    lr_read(&seen, file->cache, file->size);
    CHECK(seen.wrong == NULL);
    for (i = 0; i < seen.msgs; i++) {
        const lr_msg *m = &seen.msg[i];
        CHECK(!m->bad);
        if (m->acked || m->bad || k >= n) continue;
        CHECK_EQ(m->from[0], tags[k]);
        CHECK_EQ(m->from[31], tags[k]);
        CHECK_EQ(m->from[32], tags[k]);
        CHECK_EQ(m->bytes, sizes[k]);
        CHECK_EQ(m->wire_bytes, sizes[k] * 3);
        CHECK_EQ(m->time, 1700000000 + tags[k]);
        CHECK_EQ(m->flags & 127, tags[k] & 1);
        if (m->flags & 128) {
            CHECK(m->type == 12 && m->dest_len == 0);
        } else {
            CHECK(m->dest_len == tags[k] % 12u);
            CHECK(memcmp(m->dest, "destination", m->dest_len) == 0);
        }
        for (j = 0; j < sizes[k] && lr_byte(&seen, m, j) == msg_byte(tags[k], j);) j++;
        CHECK_EQ(j, sizes[k]);
        k++;
    }
    CHECK_EQ(k, n);
}

TEST(the_file_can_be_read_from_the_manual_alone) {
    full_log(&disk);
    check_read(&disk, full_tags, full_sizes, FULL);
    CHECK_EQ(seen.msgs, 12);
    CHECK_EQ(seen.acks, 4);
    CHECK_EQ(seen.tries, 4);
    CHECK_EQ(seen.fragments, 2 + 3 + 1 + 2);
    CHECK_EQ(seen.unknown, 0);
    CHECK_EQ(seen.slot_counter, 3);
    CHECK_EQ(seen.floor, 10 + ((uint64_t)1 << 20));
    CHECK_EQ(seen.end, log_file(&disk)->size);
    CHECK(seen.synced == seen.slot_synced + OPENED_BYTES && seen.synced < seen.end);
    CHECK(seen.batch[4].flags == 1 && seen.batch[4].ops == 0 && seen.batch[4].len == 48);
    CHECK_EQ(seen.batch[1].flags, 0);
    CHECK_EQ(seen.batch[2].flags, 0x10000);
    CHECK_EQ(seen.notes, 3 + 4);
    CHECK_EQ(seen.state, 2);
    CHECK_EQ(seen.opened, 3);
    CHECK_EQ(seen.seen, 2);
    CHECK(seen.msg[3].attempts == 2 && !seen.msg[3].dead);
    CHECK(seen.msg[5].attempts == 3 && seen.msg[5].dead);
    CHECK(seen.msg[3].context_len == 9 && memcmp(seen.msg[3].context, "what the ", 9) == 0);
    CHECK_EQ(lr_int(seen.msg[3].body + 112, 8), (uint64_t)-9);
    CHECK_EQ(lr_int(seen.msg[10].body + 92, 8), ~(uint64_t)1);
    CHECK_EQ(lr_int(log_file(&disk)->cache + 10, 2), 1);
}

TEST(what_the_library_finds_is_what_the_manual_says_is_there) {
    static world w;
    uint64_t seed;
    for (seed = 1; seed <= 60; seed++) {
        int i, k = 0;
        fd_clear(&disk);
        world_init(&w, &disk, seed, (int)(seed % 3));
        CHECK_EQ(world_open(&w), OPCOMMS_OK);
        for (i = 0; i < 60; i++) CHECK_EQ(world_step(&w), OPCOMMS_OK);
        CHECK_EQ(world_reopen(&w, 1), OPCOMMS_OK);
        CHECK_EQ(w.bad, 0);
        lr_read(&seen, log_file(&disk)->cache, log_file(&disk)->size);
        CHECK(seen.wrong == NULL);
        for (i = 0; i < seen.msgs; i++) {
            if (seen.msg[i].acked) continue;
            CHECK(k < w.f.count && w.f.uid[k] == seen.msg[i].uid);
            CHECK_EQ(opc__log_at(w.f.ref[k]), seen.msg[i].at);
            CHECK(!seen.msg[i].bad);
            CHECK_EQ(w.f.attempts[k], seen.msg[i].attempts);
            CHECK_EQ(w.f.kind[k] == OPC__KIND_DEAD, seen.msg[i].dead);
            CHECK_EQ(w.f.kind[k] == OPC__KIND_IN, seen.msg[i].type != 4);
            k++;
        }
        CHECK_EQ(k, w.f.count);
        CHECK_EQ(seen.end, w.s->c->end(w.s));
        CHECK_EQ(seen.state, w.f.state);
        CHECK_EQ(seen.seen, w.f.seen);
        CHECK_EQ(seen.opened, w.f.opened.counter);
        CHECK_EQ(seen.opened_random, w.f.opened.random);
        CHECK_EQ(seen.notes, w.f.notes);
        log_abandon(w.s);
    }
}

static size_t fixture(const char *name, uint8_t *p, size_t cap) {
    FILE *in = fopen(name, "rb");
    size_t n = 0;
    CHECK(in != NULL);
    if (in == NULL) return 0;
    n = fread(p, 1, cap, in);
    fclose(in);
    CHECK(n > 0 && n < cap);
    return n;
}

TEST(a_log_of_format_1_0_is_still_read_and_is_of_1_1_from_then_on) {
    static const uint8_t tags[] = {3, 4, 5, 6, 7, 8};
    static const size_t sizes[] = {100, 40000, 16384, 16385, 200, 200};
    static uint8_t old[200000];
    size_t n = fixture(TEST_DATA "/log/1.0.log", old, sizeof old);
    opc__store *s = NULL;
    uint64_t uid = 0;
    int i;
    fd_clear(&copy);
    (void)fd_put(&copy, "peer.log", old, n);
    check_read(&copy, tags, sizes, 6);
    CHECK_EQ(log_open(&copy, &s, &f, &err), OPCOMMS_OK);
    if (s == NULL) return;
    CHECK_EQ(f.count, 6);
    for (i = 0; i < 6 && i < f.count; i++) CHECK(holds(s, f.ref[i], tags[i], sizes[i]));
    (void)put_as(s, MSG_QUEUED, 9, 0, 70, &uid);
    CHECK(uid > f.uid[5]);
    shut(s);
    CHECK(memcmp(log_file(&copy)->cache + 4096, old + 4096, n - 4096) == 0);
    CHECK_EQ(log_open(&copy, &s, &f, &err), OPCOMMS_OK);
    CHECK_EQ(f.count, 7);
    CHECK(holds(s, f.ref[6], 9, 70));
    CHECK_EQ(opc__buf_be16(log_file(&copy)->cache + 10), 1);
    CHECK_EQ(opc__buf_be16(log_file(&copy)->cache + 2048 + 10), 1);
    log_abandon(s);
}

/* The format is fixed: tests/data/log/1.1.log was written by the first version that had it.
   LOG_FIXTURE=path writes the file anew. */
TEST(a_log_of_format_1_1_is_still_written_byte_for_byte_and_read) {
    const char *to = getenv("LOG_FIXTURE");
    static uint8_t want[200000];
    fd_file *file;
    opc__store *s = NULL;
    size_t n = 0;
    int i;
    disk.rng = 1;
    full_log(&disk);
    file = log_file(&disk);
    if (to != NULL) {
        FILE *out = fopen(to, "wb");
        CHECK(out != NULL && fwrite(file->cache, 1, file->size, out) == file->size);
        if (out != NULL) fclose(out);
    }
    n = fixture(TEST_DATA "/log/1.1.log", want, sizeof want);
    CHECK(n == file->size && memcmp(want, file->cache, n) == 0);
    fd_clear(&copy);
    (void)fd_put(&copy, "peer.log", want, n);
    CHECK_EQ(log_open(&copy, &s, &f, &err), OPCOMMS_OK);
    CHECK_EQ(f.count, FULL);
    CHECK_EQ(f.wrong, 0);
    for (i = 0; i < FULL && i < f.count; i++) {
        CHECK(holds(s, f.ref[i], full_tags[i], full_sizes[i]));
    }
    shut(s);
}

/* Puts the CRCs of the batch at `at` right, as a later version of the library would. */
static void seal_batch(uint8_t *p, size_t at, uint32_t seed) {
    uint8_t *b = p + at;
    opc__buf_put32(b + 44, lr_crc_hole(seed, b, 44, 8));
    opc__buf_put32(b + 8, lr_crc_hole(seed, b, opc__buf_be32(b + 4), 8));
}

/* Appends a batch with one operation, as a newer version would; messages go on behind it. */
static void append_op(fdisk *d, unsigned type, unsigned flags, uint64_t value, size_t body) {
    fd_file *file = log_file(d);
    static uint8_t b[1024];
    size_t len = 48 + 8 + body;
    static uint8_t all[300000];
    lr_read(&seen, file->cache, file->size);
    memset(b, 0, sizeof b);
    memcpy(b, "OPCB", 4);
    opc__buf_put32(b + 4, (uint32_t)len);
    opc__buf_put32(b + 12, 1);
    opc__buf_put64(b + 16, seen.end);
    opc__buf_put64(b + 24, seen.slot_counter);
    opc__buf_put64(b + 32, seen.end);
    opc__buf_put32(b + 40, flags);
    b[48] = (uint8_t)type;
    opc__buf_put32(b + 52, (uint32_t)body);
    if (body >= 8) opc__buf_put64(b + 56, value);
    seal_batch(b, 0, seen.seed);
    memcpy(all, file->cache, file->size);
    memcpy(all + seen.end, b, len);
    (void)fd_put(d, "peer.log", all, seen.end + len);
}

TEST(operations_of_a_newer_minor_are_skipped_and_kept_or_refused_when_they_must_be_known) {
    unsigned type;
    opc__store *s = NULL;
    size_t at;
    for (type = 0; type < 256; type++) {
        uint8_t before[64];
        if (type >= 1 && type <= 14) continue;
        sessions(&disk);
        append_op(&disk, type, 0x8000, 5, 8);
        at = seen.end;
        if (type >= 128) {
            refused(&disk, OPCOMMS_E_LOG_VERSION);
            CHECK_EQ(err.position, at);
            continue;
        }
        memcpy(before, log_file(&disk)->cache + at, 64);
        CHECK_EQ(log_open(&disk, &s, &f, &err), OPCOMMS_OK);
        (void)put(s, 5, 10, NULL);
        shut(s);
        CHECK_EQ(log_open(&disk, &s, &f, &err), OPCOMMS_OK);
        CHECK_EQ(f.count, 5);
        shut(s);
        CHECK(memcmp(before, log_file(&disk)->cache + at, 64) == 0);
    }
    sessions(&disk);
    append_op(&disk, 100, 0x20000, 5, 8);
    refused(&disk, OPCOMMS_E_LOG_VERSION);
    sessions(&disk);
    append_op(&disk, 100, 0x10000, 5, 8);
    CHECK_EQ(log_open(&disk, &s, &f, &err), OPCOMMS_OK);
    log_abandon(s);
}

/* What a reader of 1.0 would skip, and so lose, is in batches that it refuses; all else is not. */
TEST(a_reader_of_format_1_0_refuses_a_log_when_and_only_when_it_holds_what_it_cannot_keep) {
    opc__store *s;
    uint64_t uid = 0, ref, position = 0;
    int i, k;
    for (i = 0; i < 6; i++) {
        uint32_t flags = 0;
        s = fresh(&disk);
        ref = put(s, 1, 10, &uid);
        flush(s);
        if (i == 0) (void)put_as(s, MSG_QUEUED, 2, 0, 10, NULL);
        if (i == 1) (void)put_as(s, MSG_STREAM, 2, 1, 10, NULL);
        if (i == 2) attempt(s, uid, 1);
        if (i == 3) CHECK_EQ(s->c->done(s, ref, uid, OPC__DONE_TAKEN, &position), OPCOMMS_OK);
        if (i == 4) CHECK_EQ(s->c->ack(s, ref, uid, &position), OPCOMMS_OK);
        if (i == 5) note(s, OPC__NOTE_STATE, 1, 10);
        flush(s);
        (void)put(s, 3, 10, NULL);
        shut(s);
        lr_read(&seen, log_file(&disk)->cache, log_file(&disk)->size);
        CHECK(seen.wrong == NULL);
        for (k = 0; k < seen.batches; k++) flags |= seen.batch[k].flags & 0xffff0000u;
        CHECK_EQ(flags != 0, i < 4);
        CHECK_EQ(seen.batch[seen.batches - 2].flags, 0); /* not what comes later */
    }
}

static int bytes_of(uint64_t a, uint64_t b) { return (int)(b - a); }

TEST(what_operations_need_is_what_they_take_at_most) {
    static const uint64_t sizes[] = {0, 1, 16383, 16384, 16385, 32768, 32769, 100000};
    opc__store *s = fresh(&disk);
    size_t i;
    int what;
    for (what = 0; what < MSG_KINDS; what++) {
        for (i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            opc__msg_meta m;
            uint32_t p = 0;
            uint64_t uid = 0, ref = 0, position = 0, from;
            int need, took;
            CHECK_EQ(msg_data(s, 9, sizes[i], &p), OPCOMMS_OK);
            flush(s);
            from = s->c->end(s) + OPC__LOG_BATCH;
            msg_meta(&m, what, 9, i + 1, sizes[i]);
            need = (int)opc__store_need(&m);
            CHECK_EQ(s->c->hold(s, opc__store_need(&m)), OPCOMMS_OK);
            CHECK_EQ(s->c->commit(s, p, &m, &uid, &ref, &position), OPCOMMS_OK);
            took = bytes_of(from, position);
            CHECK(took <= need);
            CHECK(what != MSG_QUEUED || took == need);
            from = position;
            attempt(s, uid, 1);
            CHECK_EQ(bytes_of(from, s->c->end(s)), OPC__STORE_TRIED);
            from = s->c->end(s);
            CHECK_EQ(s->c->done(s, ref, uid, OPC__DONE_CANCELLED, &position), OPCOMMS_OK);
            CHECK_EQ(bytes_of(from, position), OPC__STORE_DONE);
            from = position;
            CHECK_EQ(s->c->ack(s, ref, uid, &position), OPCOMMS_OK);
            CHECK_EQ(bytes_of(from, position), OPC__STORE_ACK);
            from = position;
            note(s, OPC__NOTE_SEEN, 0, 77);
            CHECK_EQ(bytes_of(from, s->c->end(s)), OPC__STORE_OP + 77);
        }
    }
    shut(s);
}

/* Groups of a message, an end and a note, with other operations between, until the disk dies at
   any write, in the middle of it too: each group is there whole or not at all. */
TEST(what_is_held_together_is_all_there_or_none_after_any_crash) {
    opc__log_options o = log_options(&disk);
    uint64_t n, whole = 0, none = 0;
    for (n = 1;; n++) {
        opc__store *s = NULL;
        uint64_t uid[64], rng = n;
        int i, how, groups = 0;
        opcomms_err rc;
        fd_clear(&disk);
        rc = log_open_with(&o, &s, &f, &err);
        CHECK_EQ(rc, OPCOMMS_OK);
        if (s == NULL) return;
        disk.fail_at = disk.calls + n;
        disk.fail_partly = 1;
        disk.failed_call = -1;
        disk.write_most = n % 3 == 0 ? 1000 : 0;
        for (i = 0; rc == OPCOMMS_OK && i < 50; i++) {
            uint64_t ref = 0, position = 0, len = fd_below(&rng, 30000);
            uint8_t body[8];
            opc__msg_meta m;
            uint32_t p = 0;
            rc = msg_data(s, (uint8_t)i, len, &p);
            if (rc != OPCOMMS_OK) break;
            msg_meta(&m, MSG_QUEUED, (uint8_t)i, 0, len);
            do {
                rc = s->c->hold(s, opc__store_need(&m) + 16 + OPC__STORE_DONE);
                if (rc == OPCOMMS_E_AGAIN) rc = flush_rc(s) == OPCOMMS_OK ? rc : OPCOMMS_E_IO;
            } while (rc == OPCOMMS_E_AGAIN);
            if (rc != OPCOMMS_OK) {
                s->c->abort(s, p);
                break;
            }
            CHECK_EQ(s->c->commit(s, p, &m, &uid[i], &ref, &position), OPCOMMS_OK);
            if (i > 0) {
                CHECK_EQ(s->c->done(s, 0, uid[i - 1], OPC__DONE_DELIVERED, &position), OPCOMMS_OK);
            }
            opc__buf_put64(body, (uint64_t)i + 1);
            CHECK_EQ(s->c->note(s, OPC__NOTE_STATE, body, 8, &position), OPCOMMS_OK);
            groups++;
            if (i % 4 == 3) rc = i % 8 == 3 ? flush_rc(s) : s->c->write(s);
        }
        log_abandon(s);
        for (how = 0; how <= FD_CUTS; how++) {
            if (how == FD_CUTS) {
                fd_kill(&disk, &copy);
            } else {
                fd_cut(&disk, &copy, how % 2 ? 4096 : 512, how, &rng);
            }
            o.plat = &copy.plat;
            CHECK_EQ(log_open_with(&o, &s, &f, &err), OPCOMMS_OK);
            CHECK_EQ(f.count, f.state > 0);
            if (f.state > 0) CHECK_EQ(f.uid[0], uid[f.state - 1]);
            whole += f.state;
            none += (uint64_t)groups - f.state;
            log_abandon(s);
            o.plat = &disk.plat;
        }
        if (disk.failed_call < 0) break;
    }
    CHECK(n > 20);
    CHECK(whole > 300 && none > 100);
}

TEST(a_hold_is_refused_for_what_can_never_be_one_and_is_full_before_anything_is_stored) {
    opc__log_options o = log_options(&disk);
    opc__store *s = NULL;
    opc__msg_meta m;
    uint64_t uid = 0, ref = 0, position = 0, end;
    uint32_t p = 0;
    fd_clear(&disk);
    o.log_bytes_max = 9000;
    CHECK_EQ(log_open_with(&o, &s, &f, &err), OPCOMMS_OK);
    CHECK_EQ(s->c->hold(s, 65536 - 48 + 1), OPCOMMS_E_LIMIT);
    CHECK_EQ(s->c->hold(s, 65536 - 48), OPCOMMS_OK);
    CHECK_EQ(msg_data(s, 1, 3000, &p), OPCOMMS_OK);
    msg_meta(&m, MSG_QUEUED, 1, 0, 3000);
    CHECK_EQ(s->c->hold(s, opc__store_need(&m) + 3000), OPCOMMS_OK);
    end = s->c->end(s);
    CHECK_EQ(s->c->commit(s, p, &m, &uid, &ref, &position), OPCOMMS_E_FULL);
    CHECK_EQ(s->c->end(s), end);
    CHECK_EQ(s->c->hold(s, opc__store_need(&m) + 1000), OPCOMMS_OK);
    CHECK_EQ(s->c->commit(s, p, &m, &uid, &ref, &position), OPCOMMS_OK);
    note(s, OPC__NOTE_STATE, 1, 900);
    CHECK_EQ(s->c->note(s, OPC__NOTE_STATE, o.key_hash, 0, &position), OPCOMMS_OK);
    flush(s);
    for (p = 0; p < 3; p++) { /* the last note alone is refused, behind an end it is not */
        uint8_t body[900];
        memset(body, 0, sizeof body);
        CHECK_EQ(s->c->note(s, OPC__NOTE_STATE, body, 900, &position), OPCOMMS_E_FULL);
        CHECK_EQ(s->c->hold(s, OPC__STORE_ACK + OPC__STORE_OP + 900), OPCOMMS_OK);
        CHECK_EQ(s->c->ack(s, ref, uid, &position), OPCOMMS_OK);
        CHECK_EQ(s->c->note(s, OPC__NOTE_STATE, body, 900, &position), OPCOMMS_OK);
    }
    CHECK_EQ(s->c->note(s, 11, (const uint8_t *)"", 0, &position), OPCOMMS_E_INVAL);
    CHECK_EQ(s->c->note(s, OPC__NOTE_OPENED, o.key_hash, 32, &position), OPCOMMS_E_INVAL);
    CHECK_EQ(s->c->note(s, OPC__NOTE_SEEN, log_file(&disk)->cache, OPC__NOTE_MAX + 1, &position),
             OPCOMMS_E_INVAL);
    shut(s);
}

TEST(a_checkpoint_says_which_numbers_are_used) {
    opc__store *s = NULL;
    uint64_t uid = 0;
    sessions(&disk);
    append_op(&disk, 11, 0, 1000, 50);
    CHECK_EQ(log_open(&disk, &s, &f, &err), OPCOMMS_OK);
    CHECK_EQ(f.count, 4);
    (void)put(s, 5, 10, &uid);
    CHECK_EQ(uid, 1001);
    shut(s);
    append_op(&disk, 11, 0, 1000, 7);
    refused(&disk, OPCOMMS_E_LOG_DAMAGED);
}

TEST(a_valid_batch_that_makes_no_sense_is_refused_not_cut) {
    static const struct { unsigned type; uint64_t value; size_t body; } bad[] = {
        {1, 0, 0}, {1, 0, 83}, {1, 0, 84}, {3, 1, 7}, {3, 1, 9}, {11, UINT64_MAX, 8}, {11, 0, 0},
        {4, 0, 84}, {4, 0, 135}, {4, 0, 136}, {5, 1, 8}, {5, 1, 17}, {6, 1, 31}, {7, 1, 33},
        {8, 1, 15}, {12, 0, 84}, {12, 0, 107}, {12, 0, 108}, {14, 1, 39},
    };
    size_t i;
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        sessions(&disk);
        append_op(&disk, bad[i].type, 0, bad[i].value, bad[i].body);
        refused(&disk, OPCOMMS_E_LOG_DAMAGED);
        CHECK_EQ(err.position, seen.end);
    }
    for (i = 0; i < 3; i++) { /* operations that are more, or less, than the batch */
        uint8_t *p;
        sessions(&disk);
        append_op(&disk, 100, 0, 0, 8);
        p = log_file(&disk)->cache + seen.end;
        if (i == 0) opc__buf_put32(p + 12, 2);
        if (i == 1) opc__buf_put32(p + 12, 0);
        if (i == 2) opc__buf_put32(p + 52, 9);
        seal_batch(log_file(&disk)->cache, seen.end, seen.seed);
        refused(&disk, OPCOMMS_E_LOG_DAMAGED);
    }
}

/* The batch's checksum is right, the message's own is not: known before anything is changed. */
TEST(a_message_whose_head_is_wrong_is_refused_and_nothing_is_changed) {
    size_t i;
    static const size_t place[] = {0, 33, 39, 47, 55, 75, 83};
    for (i = 0; i < sizeof place / sizeof place[0]; i++) {
        uint8_t *p;
        sessions(&disk);
        append_op(&disk, 1, 0, 0, 120);
        p = log_file(&disk)->cache + seen.end + 56;
        opc__buf_put64(p + 40, 1000);
        opc__buf_put64(p + 48, 36);
        opc__buf_put32(p + 80, opc__crc32c(seen.seed, p, 84));
        p[place[i]] ^= 1u;
        seal_batch(log_file(&disk)->cache, seen.end, seen.seed);
        refused(&disk, OPCOMMS_E_LOG_DAMAGED);
        CHECK_EQ(err.position, seen.end);
    }
}

/* ---- torn or damaged ---- */

/* Opens a damaged copy of the log of full_log. `bad`: the batch that is damaged, or -1; the library
   has to say what the reader of the manual would. */
static uint64_t cuts, refusals;
static void judge(fdisk *d, int bad) {
    opc__store *s = NULL;
    uint64_t synced = seen.slot_synced;
    int i, whole = 0;
    for (i = 0; i < seen.batches; i++) {
        if (i != bad && seen.batch[i].synced > synced) synced = seen.batch[i].synced;
    }
    if (bad >= 0 && seen.batch[bad].at < synced) {
        refused(d, OPCOMMS_E_LOG_DAMAGED);
        CHECK_EQ(err.position, seen.batch[bad].at);
        refusals++;
        return;
    }
    CHECK_EQ(log_open(d, &s, &f, &err), OPCOMMS_OK);
    if (s == NULL) return;
    for (i = 0; i < seen.msgs; i++) {
        size_t end = bad >= 0 ? seen.batch[bad].at : seen.end;
        if (seen.msg[i].at < end && !(seen.msg[i].acked && seen.msg[i].acked_at < end)) whole++;
    }
    CHECK_EQ(f.count, whole);
    if (bad >= 0) {
        CHECK_EQ(s->c->end(s), seen.batch[bad].at + OPENED_BYTES);
        cuts++;
    }
    log_abandon(s);
}

static void begin_judging(void) {
    full_log(&disk);
    lr_read(&seen, log_file(&disk)->cache, log_file(&disk)->size);
    CHECK(seen.wrong == NULL);
    cuts = refusals = 0;
}

static int batch_of(size_t at) {
    int i;
    for (i = 0; i < seen.batches; i++) {
        if (at >= seen.batch[i].at && at < seen.batch[i].at + seen.batch[i].len) return i;
    }
    return -1;
}

/* LOG_IMAGES set: at every byte; else at some in its middle. */
static void cut_everywhere(size_t every) {
    size_t cut;
    int i;
    for (cut = 1; cut <= seen.size; cut++) {
        opc__store *s = NULL;
        opcomms_err rc, want = OPCOMMS_OK;
        int whole = 0;
        size_t end = 4096;
        if (cut > 8192 && cut < seen.size - 3000 && cut % every != 0) continue;
        fd_clear(&copy);
        (void)fd_put(&copy, "peer.log", log_file(&disk)->cache, cut);
        for (i = 0; i < seen.batches && seen.batch[i].at + seen.batch[i].len <= cut; i++) {
            end = seen.batch[i].at + seen.batch[i].len;
        }
        if (cut < 4096 || end < seen.slot_synced) want = OPCOMMS_E_LOG_DAMAGED;
        if (want != OPCOMMS_OK) {
            if (every > 1 && cut % 5 != 0 && cut <= seen.slot_synced - 300) continue;
            refused(&copy, want);
            refusals++;
            continue;
        }
        rc = log_open(&copy, &s, &f, &err);
        CHECK_EQ(rc, OPCOMMS_OK);
        if (rc != OPCOMMS_OK) break;
        CHECK_EQ(s->c->end(s), end + OPENED_BYTES);
        for (i = 0; i < seen.msgs; i++) {
            const lr_msg *m = &seen.msg[i];
            whole += m->at < end && !(m->acked && m->acked_at < end);
        }
        CHECK_EQ(f.count, whole);
        cuts++;
        log_abandon(s);
    }
}

TEST(a_log_cut_at_any_byte_opens_with_every_whole_batch_or_is_refused_below_the_last_sync) {
    int all = getenv("LOG_IMAGES") != NULL;
    begin_judging();
    cut_everywhere(all ? 1 : 61);
    small_log(&disk);
    cut_everywhere(all ? 1 : 7);
    CHECK(refusals > 1000);
    CHECK(cuts > 500);
    printf("cut at bytes: %llu refused, %llu opened\n", (unsigned long long)refusals,
           (unsigned long long)cuts);
}

/* One session that syncs now and then: what is synced stands only in the batches. 16 KiB. */
static void one_session(fdisk *d) {
    opc__store *s = fresh(d);
    uint64_t uid = 0, ref = 0, position = 0;
    int i;
    for (i = 1; i <= 16; i++) {
        ref = put(s, (uint8_t)i, i == 9 ? 8400 : (uint64_t)(i * 3), &uid);
        if (i % 5 == 0) CHECK_EQ(s->c->ack(s, ref, uid, &position), OPCOMMS_OK);
        if (i % 3 == 0) {
            flush(s);
        } else {
            CHECK_EQ(s->c->write(s), OPCOMMS_OK);
        }
    }
    log_abandon(s);
}

static void flip_bits(uint64_t every) {
    uint64_t bit, end, dense; /* every single bit around and behind the last sync */
    lr_read(&seen, log_file(&disk)->cache, log_file(&disk)->size);
    CHECK(seen.wrong == NULL);
    end = seen.end * 8;
    dense = seen.synced * 8 - 1000;
    for (bit = 4096 * 8; bit < end; bit += bit < dense ? every : 1) {
        uint8_t *p;
        fd_clear(&copy);
        p = fd_put(&copy, "peer.log", log_file(&disk)->cache, seen.size)->cache;
        p[bit / 8] ^= (uint8_t)(1u << (bit % 8));
        judge(&copy, batch_of((size_t)(bit / 8)));
    }
}

/* LOG_IMAGES set: every bit; else every single one where it matters and some of the others. */
TEST(any_flipped_bit_is_found_below_the_last_sync_refused_with_its_place_above_it_cut) {
    int all = getenv("LOG_IMAGES") != NULL;
    cuts = refusals = 0;
    one_session(&disk);
    flip_bits(all ? 1 : 7);
    CHECK(refusals > 5000);
    CHECK(cuts > 1000);
    full_log(&disk);
    flip_bits(all ? 1 : 307);
    small_log(&disk);
    CHECK(seen.end < 26000);
    flip_bits(all ? 1 : 61);
    CHECK(refusals > 5000);
    CHECK(cuts > 4000);
    printf("bits flipped: %llu refused, %llu cut\n", (unsigned long long)refusals,
           (unsigned long long)cuts);
}

/* The first batch that differs from the original, or -1. */
static int first_damaged(const uint8_t *now) {
    int i;
    for (i = 0; i < seen.batches; i++) {
        if (memcmp(now + seen.batch[i].at, seen.p + seen.batch[i].at, seen.batch[i].len)) return i;
    }
    return -1;
}

/* Whatever was done to the blocks behind the header, the reader of the manual knows the verdict:
   batches that stayed whole say what was synced. */
static void judge_blocks(fdisk *d) {
    opc__store *s = NULL;
    const uint8_t *now = log_file(d)->cache;
    uint64_t synced = seen.slot_synced;
    int i, bad = first_damaged(now);
    for (i = 0; i < seen.batches; i++) {
        if (memcmp(now + seen.batch[i].at, seen.p + seen.batch[i].at, seen.batch[i].len) == 0 &&
            seen.batch[i].synced > synced) {
            synced = seen.batch[i].synced;
        }
    }
    if (bad >= 0 && seen.batch[bad].at < synced) {
        refused(d, OPCOMMS_E_LOG_DAMAGED);
        CHECK_EQ(err.position, seen.batch[bad].at);
        refusals++;
        return;
    }
    CHECK_EQ(log_open(d, &s, &f, &err), OPCOMMS_OK);
    if (s == NULL) return;
    CHECK_EQ(s->c->end(s), (bad >= 0 ? seen.batch[bad].at : seen.end) + OPENED_BYTES);
    cuts++;
    log_abandon(s);
}

TEST(blocks_swapped_doubled_or_zeroed_are_never_taken_for_a_log) {
    static const size_t sizes[] = {512, 4096};
    size_t k, a, b;
    int log, all = getenv("LOG_IMAGES") != NULL;
    cuts = refusals = 0;
    for (log = 0; log < 3; log++) {
        if (log == 0) full_log(&disk);
        if (log == 1) one_session(&disk);
        if (log == 2) small_log(&disk);
        lr_read(&seen, log_file(&disk)->cache, log_file(&disk)->size);
        for (k = 0; k < 2; k++) {
            size_t n = sizes[k], blocks = seen.size / n, first = 4096 / n;
            for (a = first; a < blocks; a++) {
                for (b = first; b < blocks; b += a % 8 && !all ? 5 : 1) { /* b == a: zeroed */
                    uint8_t *p, saved[4096];
                    int how;
                    for (how = 0; how < 2; how++) {
                        fd_clear(&copy);
                        p = fd_put(&copy, "peer.log", seen.p, seen.size)->cache;
                        memcpy(saved, p + a * n, n);
                        if (a == b) {
                            memset(p + a * n, 0, n);
                        } else {
                            memcpy(p + a * n, p + b * n, n);
                            if (how == 1) memcpy(p + b * n, saved, n);
                        }
                        judge_blocks(&copy);
                    }
                }
            }
        }
    }
    CHECK(refusals > 2000);
    CHECK(cuts > 100);
    printf("blocks swapped, doubled or zeroed: %llu refused, %llu cut\n",
           (unsigned long long)refusals, (unsigned long long)cuts);
}

TEST(a_header_of_zeros_in_front_of_a_log_is_damage) {
    one_session(&disk);
    fd_kill(&disk, &copy);
    memset(log_file(&copy)->cache, 0, 4096);
    refused(&copy, OPCOMMS_E_LOG_DAMAGED);
}

TEST(a_log_whose_content_is_gone_is_not_opened_as_empty_once_it_was_opened_with_it) {
    opc__store *s = NULL;
    one_session(&disk);
    CHECK_EQ(log_open(&disk, &s, &f, &err), OPCOMMS_OK);
    CHECK(f.count > 0);
    log_abandon(s);
    fd_kill(&disk, &copy);
    memset(log_file(&copy)->cache + 4096, 0, log_file(&copy)->size - 4096);
    refused(&copy, OPCOMMS_E_LOG_DAMAGED);
    CHECK_EQ(err.position, 4096);
    fd_clear(&copy);
    (void)fd_put(&copy, "peer.log", log_file(&disk)->cache, 4096);
    refused(&copy, OPCOMMS_E_LOG_DAMAGED);
}

TEST(a_batch_forged_inside_a_payload_never_counts) {
    static uint8_t data[16384];
    opc__msg_meta m;
    opc__store *s = fresh(&disk);
    uint64_t uid = 0, ref = 0, position = 0;
    uint32_t p = 0;
    size_t at, k;
    (void)put(s, 1, 10, NULL);
    flush(s);
    /* The sender knows everything but the salt: its payload claims, at the right offsets and with
       CRCs of every seed it can think of, that far more was synced. */
    at = (size_t)s->c->end(s) + 48 + 8 + 84 + 11;
    for (k = 0; k + 48 <= 16000; k += 48) {
        uint8_t *b = data + k;
        uint32_t seed = k == 0 ? 0 : k == 48 ? 0xffffffffu : (uint32_t)k;
        memcpy(b, "OPCB", 4);
        opc__buf_put32(b + 4, k % 96 ? 48 : 4096);
        opc__buf_put64(b + 16, at + k);
        opc__buf_put64(b + 24, 1);
        opc__buf_put64(b + 32, at + k);
        if (k % 96)
            seal_batch(data, k, seed);
        else
            opc__buf_put32(b + 44, lr_crc_hole(seed, b, 44, 8));
    }
    memset(&m, 0, sizeof m);
    m.dest = (const uint8_t *)"destination";
    m.dest_len = 11;
    m.bytes = 16000;
    CHECK_EQ(s->c->begin(s, &p), OPCOMMS_OK);
    CHECK_EQ(s->c->data(s, p, data, 16000), OPCOMMS_OK);
    CHECK_EQ(s->c->commit(s, p, &m, &uid, &ref, &position), OPCOMMS_OK);
    CHECK_EQ(s->c->write(s), OPCOMMS_OK);
    log_abandon(s);
    lr_read(&seen, log_file(&disk)->cache, log_file(&disk)->size);
    CHECK_EQ(seen.msgs, 2);
    CHECK(memcmp(seen.p + at, data, 16000) == 0);
    fd_kill(&disk, &copy);
    log_file(&copy)->cache[seen.batch[2].at + 9] ^= 1; /* a torn batch around it */
    copy.bytes_read = 0;
    CHECK_EQ(log_open(&copy, &s, &f, &err), OPCOMMS_OK);
    CHECK_EQ(f.count, 1);
    CHECK_EQ(s->c->end(s), seen.batch[2].at + OPENED_BYTES);
    CHECK(copy.bytes_read < 3 * seen.size); /* forged lengths cost nothing */
    log_abandon(s);
}

TEST(opening_reads_each_byte_about_once) {
    int kind, i;
    for (kind = 0; kind < 3; kind++) {
        opc__store *s = fresh(&disk);
        fd_file *file;
        size_t k;
        for (i = 0; i < 300; i++) {
            (void)put(s, (uint8_t)i, kind == 0 ? 10 : 16000, NULL);
            if (i % 7 == 0) flush(s);
        }
        CHECK_EQ(s->c->write(s), OPCOMMS_OK);
        log_abandon(s);
        file = log_file(&disk);
        if (kind == 2) { /* a torn tail full of beginnings of batches */
            static uint8_t tail[3000000];
            size_t size = file->size;
            for (k = 0; k + 48 <= sizeof tail; k += 48) {
                memcpy(tail + k, "OPCB", 4);
                opc__buf_put32(tail + k + 4, 1000000);
                opc__buf_put64(tail + k + 16, size + k);
            }
            fd_apply(&file->cache, &file->size, &file->cap, tail, size, sizeof tail);
            fd_even(file);
        }
        disk.bytes_read = 0;
        k = file->size;
        CHECK_EQ(log_open(&disk, &s, &f, &err), OPCOMMS_OK);
        CHECK_EQ(f.count, 300);
        CHECK(disk.bytes_read < k * 9 / 4 + 300 * 200 + 8192);
        log_abandon(s);
    }
}

/* ---- space ---- */

static int ahead(opc__store *s) { /* 1: space was made */
    opcomms_err rc = s->c->ahead_begin(s);
    if (rc != OPCOMMS_OK) {
        CHECK_EQ(rc, OPCOMMS_E_AGAIN);
        return 0;
    }
    CHECK_EQ(s->c->flush_end(s, s->c->flush_run(s)), OPCOMMS_OK);
    return 1;
}

TEST(space_is_written_ahead_so_that_syncs_find_a_file_of_full_size) {
    opc__log_options o = log_options(&disk);
    opc__store *s = NULL;
    size_t size;
    int i, made = 0, grown = 0;
    fd_clear(&disk);
    o.ahead_bytes = OPC__LOG_AHEAD;
    CHECK_EQ(log_open_with(&o, &s, &f, &err), OPCOMMS_OK);
    CHECK(!ahead(s)); /* a peer that stores nothing has a small file */
    for (i = 0; i < 3000; i++) {
        (void)put(s, (uint8_t)i, 200, NULL);
        size = log_file(&disk)->size;
        flush(s);
        grown += log_file(&disk)->size > size;
        made += ahead(s);
        CHECK(!ahead(s));
    }
    CHECK_EQ(grown, 1); /* the first */
    CHECK(made > 2 && made < 12);
    size = log_file(&disk)->size;
    CHECK(size >= s->c->end(s) + 300000 && size <= 2 * s->c->end(s) + 4096);
    shut(s);
    CHECK_EQ(log_open_with(&o, &s, &f, &err), OPCOMMS_OK);
    CHECK_EQ(f.count, 3000);
    CHECK_EQ(opc__log_of(s)->cut, 0); /* zeros are no tail */
    CHECK_EQ(log_file(&disk)->size, size);
    (void)put(s, 1, 200, NULL);
    flush(s);
    CHECK(!ahead(s));
    CHECK_EQ(log_file(&disk)->size, size);
    for (i = 0; i < 3000 && log_file(&disk)->size == size; i++) { /* nobody has time: in a flush */
        (void)put(s, 1, 200, NULL);
        flush(s);
    }
    CHECK(i > 1000 && i < 3000);
    CHECK(log_file(&disk)->size > size + 500000);
    log_abandon(s);
}

TEST(no_room_for_space_ahead_is_no_error_and_the_limit_holds) {
    opc__log_options o = log_options(&disk);
    opc__store *s = NULL;
    int i;
    fd_clear(&disk);
    o.ahead_bytes = 1 << 16;
    o.log_bytes_max = 20000;
    CHECK_EQ(log_open_with(&o, &s, &f, &err), OPCOMMS_OK);
    (void)put(s, 1, 10, NULL);
    flush(s);
    CHECK_EQ(log_file(&disk)->size, 20000);
    CHECK(!ahead(s));
    shut(s);
    fd_clear(&disk);
    disk.space = 9000;
    o.log_bytes_max = 1 << 26;
    CHECK_EQ(log_open_with(&o, &s, &f, &err), OPCOMMS_OK);
    for (i = 1; i < 10; i++) {
        (void)put(s, (uint8_t)i, 10, NULL);
        flush(s);
        CHECK(!ahead(s));
    }
    shut(s);
    CHECK_EQ(log_open_with(&o, &s, &f, &err), OPCOMMS_OK);
    CHECK_EQ(f.count, 9);
    shut(s);
}

TEST(what_was_cut_is_counted) {
    opc__store *s = NULL;
    size_t n, k;
    one_session(&disk);
    lr_read(&seen, log_file(&disk)->cache, log_file(&disk)->size);
    for (n = 1; n < 60; n++) {
        for (k = 0; k < 3; k++) { /* cut short, with zeros behind, with rubbish behind zeros */
            size_t last = seen.end - n, more = k == 0 ? 0 : 5000;
            static uint8_t all[40000];
            memset(all, 0, sizeof all);
            memcpy(all, seen.p, last);
            if (k == 2) all[last + 4000] = 1;
            fd_clear(&copy);
            (void)fd_put(&copy, "peer.log", all, last + more);
            CHECK_EQ(log_open(&copy, &s, &f, &err), OPCOMMS_OK);
            while (all[last - 1] == 0) last--; /* zeros at the end of what is left are none */
            if (k == 2) last = seen.end - n + 4001;
            CHECK_EQ(opc__log_of(s)->cut, last - seen.batch[seen.batches - 1].at);
            CHECK_EQ(log_file(&copy)->size, s->c->end(s));
            log_abandon(s);
        }
    }
}

TEST(a_full_log_refuses_messages_and_takes_acknowledgements) {
    opc__log_options o = log_options(&disk);
    opc__store *s = NULL;
    uint64_t uid[64], ref[64], position = 0;
    int i, n = 0;
    opcomms_err rc = OPCOMMS_OK;
    fd_clear(&disk);
    o.log_bytes_max = 10000;
    CHECK_EQ(log_open_with(&o, &s, &f, &err), OPCOMMS_OK);
    while (rc == OPCOMMS_OK && n < 64) {
        rc = msg_put(s, (uint8_t)n, 100, &uid[n], &ref[n], &position);
        if (rc == OPCOMMS_OK) n++;
        flush(s);
    }
    CHECK_EQ(rc, OPCOMMS_E_FULL);
    CHECK(n > 10);
    CHECK(s->c->end(s) <= 10000);
    CHECK_EQ(msg_put(s, 1, 20000, &uid[60], &ref[60], &position), OPCOMMS_E_FULL);
    for (i = 0; i < n; i++) CHECK_EQ(s->c->ack(s, ref[i], uid[i], &position), OPCOMMS_OK);
    shut(s);
    CHECK_EQ(log_open_with(&o, &s, &f, &err), OPCOMMS_OK);
    CHECK_EQ(f.count, 0);
    shut(s);
}

/* ---- a disk that fails ---- */

/* A fixed piece of a program's life; stops at the first error, which it returns. */
static opcomms_err life(world *w) {
    int i;
    opcomms_err rc = world_open(w);
    for (i = 0; rc == OPCOMMS_OK && i < 22; i++) {
        rc = world_step(w);
        if (rc == OPCOMMS_OK && i % 9 == 8) rc = world_reopen(w, i % 2);
    }
    if (rc == OPCOMMS_OK) {
        rc = w->s->c->close(w->s);
        w->s = NULL;
    }
    return rc;
}

/* After a failed write or sync the store takes and promises nothing more, and asks the disk nothing
   more. */
static void check_poisoned(world *w) {
    opc__store *s = w->s;
    uint64_t durable = s->c->durable(s), position = 0, written = disk.bytes_written;
    uint64_t syncs = disk.syncs;
    uint32_t p = 0;
    uint8_t big[16384];
    opc__msg_meta m;
    uint64_t uid, ref;
    memset(&m, 0, sizeof m);
    memset(big, 0, sizeof big);
    CHECK_EQ(s->c->ack(s, 4096, 1, &position), OPCOMMS_E_POISONED);
    CHECK_EQ(s->c->write(s), OPCOMMS_E_POISONED);
    CHECK_EQ(s->c->flush_begin(s), OPCOMMS_E_POISONED);
    CHECK_EQ(s->c->ahead_begin(s), OPCOMMS_E_POISONED);
    if (s->c->begin(s, &p) == OPCOMMS_OK) {
        CHECK_EQ(s->c->data(s, p, big, sizeof big), OPCOMMS_E_POISONED);
        CHECK_EQ(s->c->commit(s, p, &m, &uid, &ref, &position), OPCOMMS_E_POISONED);
        s->c->abort(s, p);
    }
    CHECK_EQ(s->c->durable(s), durable);
    CHECK(s->c->close(s) != OPCOMMS_OK);
    w->s = NULL;
    CHECK_EQ(disk.bytes_written, written);
    CHECK_EQ(disk.syncs, syncs);
}

/* What the disk holds after a failure: all that was durable, in the cache and after any cut. */
static void check_after_failure(world *w) {
    opc__log_options o = w->o;
    opc__store *s = NULL;
    uint64_t rng = 5;
    int how, was;
    o.plat = &copy.plat;
    for (how = 0; how <= FD_CUTS; how++) {
        if (how == FD_CUTS) {
            fd_kill(&disk, &copy);
        } else {
            fd_cut(&disk, &copy, 512, how, &rng);
        }
        CHECK_EQ(log_open_with(&o, &s, &f, &err), OPCOMMS_OK);
        if (s == NULL) return;
        world_check(w, s, &f);
        CHECK_EQ(w->bad, 0);
        log_abandon(s);
        s = NULL;
        /* What was shown must be on the medium, also where a failed sync had left it in the cache
           only: there a sync alone would have nothing to write. */
        was = f.count;
        fd_cut(&copy, &second, 512, FD_CUT_NOTHING, &rng);
        o.plat = &second.plat;
        CHECK_EQ(log_open_with(&o, &s, &f, &err), OPCOMMS_OK);
        CHECK_EQ(f.count, was);
        if (s != NULL) log_abandon(s);
        s = NULL;
        o.plat = &copy.plat;
    }
}

TEST(a_disk_that_fails_at_any_call_poisons_the_log_for_good_and_loses_nothing_durable) {
    static world w;
    uint64_t seed, n, gave_up = 0;
    uint64_t kinds[FD_KINDS] = {0};
    for (seed = 1; seed <= (getenv("LOG_IMAGES") ? 24 : 6); seed++) {
        for (n = 1;; n++) {
            opcomms_err rc;
            fd_clear(&disk);
            disk.rng = seed;
            disk.fail_at = n;
            disk.fail_partly = (int)(n % 2);
            disk.failed_call = -1;
            world_init(&w, &disk, seed, (int)(seed % 3));
            w.o.ahead_bytes = seed > 3 ? 3000 : 0;
            rc = life(&w);
            if (disk.failed_call < 0) {
                CHECK_EQ(rc, OPCOMMS_OK);
                break;
            }
            kinds[disk.failed_call]++;
            if (rc == OPCOMMS_OK) { /* zeros written ahead, a read of the model's, a compaction */
                CHECK(disk.failed_call == FD_READ || w.gave_up > 0 ||
                      disk.failed_call == FD_REMOVE ||
                      (disk.failed_call == FD_WRITE && w.o.ahead_bytes > 0));
                gave_up += w.gave_up > 0;
            }
            if (w.s != NULL && disk.failed_call != FD_READ) check_poisoned(&w);
            if (w.s != NULL) log_abandon(w.s);
            CHECK_EQ(mem.used, 0);
            CHECK_EQ(disk.handles, 0);
            if (w.bad) printf("seed %d, call %d\n", (int)seed, (int)n);
            check_after_failure(&w);
        }
        CHECK(n > 40);
    }
    CHECK(kinds[FD_OPEN] > 0 && kinds[FD_LOCK] > 0 && kinds[FD_SIZE] > 0 && kinds[FD_READ] > 0);
    CHECK(kinds[FD_WRITE] > 50 && kinds[FD_SYNC] > 50 && kinds[FD_DIR_OPEN] > 0);
    CHECK(kinds[FD_DIR_SYNC] > 0 && kinds[FD_RANDOM] > 0);
    CHECK(kinds[FD_RENAME] > 0 && kinds[FD_REMOVE] > 0 && gave_up > 20);
    printf("calls that failed: %llu writes, %llu syncs, %llu reads, %llu renamings, %llu others\n",
           (unsigned long long)kinds[FD_WRITE], (unsigned long long)kinds[FD_SYNC],
           (unsigned long long)kinds[FD_READ], (unsigned long long)kinds[FD_RENAME],
           (unsigned long long)(kinds[FD_OPEN] + kinds[FD_LOCK] + kinds[FD_SIZE] +
                                kinds[FD_TRUNCATE] + kinds[FD_DIR_OPEN] + kinds[FD_DIR_SYNC] +
                                kinds[FD_RANDOM] + kinds[FD_REMOVE]));
}

TEST(a_truncation_that_fails_while_a_tail_is_cut_refuses_to_open) {
    opc__store *s = NULL;
    uint64_t n;
    int truncated = 0;
    for (n = 1; n < 60; n++) {
        one_session(&disk);
        fd_kill(&disk, &copy);
        log_file(&copy)->cache[log_file(&copy)->size - 1] ^= 1;
        copy.fail_at = copy.calls + n;
        copy.failed_call = -1;
        if (log_open(&copy, &s, &f, &err) == OPCOMMS_OK) log_abandon(s);
        truncated += copy.failed_call == FD_TRUNCATE;
        CHECK_EQ(mem.used, 0);
        copy.fail_at = 0;
        CHECK_EQ(log_open(&copy, &s, &f, &err), OPCOMMS_OK);
        CHECK_EQ(f.count, 12);
        log_abandon(s);
    }
    CHECK_EQ(truncated, 1);
}

TEST(space_that_ends_at_any_byte_loses_nothing_durable) {
    static world w;
    uint64_t space, step, bytes = 0, lived = 0, gave_up = 0;
    int all = getenv("LOG_IMAGES") != NULL;
    for (space = 1; space < (all ? 40000 : 9000); space += step) {
        opcomms_err rc;
        step = all ? (space < 9000 ? 1 : 11) : space < 4200 ? 97 : 5;
        fd_clear(&disk);
        disk.rng = 3;
        disk.space = space;
        world_init(&w, &disk, 3, OPCOMMS_DURABLE_ALWAYS);
        w.o.ahead_bytes = space % 2 ? 700 : 0;
        rc = life(&w);
        bytes++;
        gave_up += w.gave_up > 0;
        if (rc == OPCOMMS_OK) { /* it was enough, or only a compaction found too little */
            lived++;
            CHECK(space > 9000);
        }
        if (w.s != NULL) check_poisoned(&w);
        disk.space = 0;
        check_after_failure(&w);
    }
    CHECK(bytes > lived);
    printf("space ended at bytes: %llu, %llu of them enough, a compaction given up in %llu\n",
           (unsigned long long)bytes, (unsigned long long)lived, (unsigned long long)gave_up);
}

TEST(short_reads_and_writes_change_nothing) {
    static world w;
    static uint8_t want[400000];
    size_t most, size;
    fd_clear(&disk);
    disk.rng = 4;
    world_init(&w, &disk, 4, 0);
    CHECK_EQ(life(&w), OPCOMMS_OK);
    size = log_file(&disk)->size;
    CHECK(size < sizeof want);
    memcpy(want, log_file(&disk)->cache, size);
    for (most = 1; most < 4000; most = most * 3 + 1) {
        fd_clear(&disk);
        disk.rng = 4;
        disk.write_most = most;
        world_init(&w, &disk, 4, 0);
        CHECK_EQ(life(&w), OPCOMMS_OK);
        CHECK_EQ(w.bad, 0);
        CHECK(log_file(&disk)->size == size && memcmp(log_file(&disk)->cache, want, size) == 0);
    }
}

TEST(a_clean_close_records_that_all_is_synced) {
    opc__store *s = fresh(&disk);
    uint64_t rng = 1;
    (void)put(s, 1, 10, NULL);
    shut(s);
    fd_cut(&disk, &copy, 512, FD_CUT_NOTHING, &rng);
    lr_read(&seen, log_file(&copy)->cache, log_file(&copy)->size);
    CHECK_EQ(seen.batches, 3);
    CHECK_EQ(seen.batch[2].flags, 1);
    CHECK_EQ(seen.synced, seen.batch[2].at);
}

/* ---- messages ---- */

TEST(messages_of_any_size_are_streamed_through_fixed_memory) {
    static const uint64_t sizes[] = {0, 1, 16383, 16384, 16385, 65536, 4000000};
    enum { N = sizeof sizes / sizeof sizes[0] };
    uint64_t ref[N], uid[N];
    opc__store *s = fresh(&disk);
    size_t used = mem.used;
    int i;
    for (i = 0; i < N; i++) {
        ref[i] = put(s, (uint8_t)(i + 1), sizes[i], &uid[i]);
        CHECK(holds(s, ref[i], (uint8_t)(i + 1), sizes[i])); /* partly still in memory */
    }
    flush(s);
    for (i = 0; i < N; i++) CHECK(holds(s, ref[i], (uint8_t)(i + 1), sizes[i]));
    CHECK(mem.used <= used + 2 * sizeof(opc__log_put) + OPC__LOG_READ); /* payloads are not kept */
    shut(s);
    CHECK_EQ(log_open(&disk, &s, &f, &err), OPCOMMS_OK);
    CHECK_EQ(f.count, N);
    for (i = 0; i < N; i++) {
        CHECK_EQ(f.uid[i], uid[i]);
        CHECK(holds(s, f.ref[i], (uint8_t)(i + 1), sizes[i]));
    }
    shut(s);
    CHECK_EQ(mem.used, 0);
}

TEST(memory_does_not_grow_with_what_is_pending) {
    opc__store *s = fresh(&disk);
    size_t used = mem.used;
    int i;
    shut(s);
    CHECK_EQ(log_open(&disk, &s, &f, &err), OPCOMMS_OK);
    for (i = 0; i < 4000; i++) {
        (void)put(s, (uint8_t)i, 300, NULL);
        if (i % 50 == 0) flush(s);
    }
    shut(s);
    CHECK_EQ(log_open(&disk, &s, &f, &err), OPCOMMS_OK);
    CHECK_EQ(f.count, 4000);
    CHECK(mem.used <= used);
    CHECK(sizeof(opc__entry) <= 64); /* the index of a pending message lies in the mailbox */
    log_abandon(s);
}

static size_t now_used, most_used;

static void *count_alloc(void *user, size_t n) {
    (void)user;
    now_used += n;
    if (now_used > most_used) most_used = now_used;
    return malloc(n);
}

static void count_release(void *user, void *p, size_t n) {
    (void)user;
    now_used -= n;
    free(p);
}

static uint64_t told;
static opcomms_err count_found(void *user, uint64_t uid, uint64_t ref, const opc__msg_meta *m) {
    (void)user;
    (void)ref;
    told += m->uid == uid;
    return OPCOMMS_OK;
}

/* Messages that are over, before, between and behind those that are not. */
TEST(opening_needs_24_bytes_for_a_message_that_is_not_over_and_none_for_the_others) {
    static const unsigned live_of_16[] = {16, 8, 1, 0};
    opc__mem old = mem;
    size_t k;
    for (k = 0; k < sizeof live_of_16 / sizeof live_of_16[0]; k++) {
        opc__log_options o = log_options(&disk);
        opc__store_owner owner;
        opc__store *s;
        uint64_t uid = 0, live = 0;
        size_t fixed;
        int i;
        mem = old;
        s = fresh(&disk);
        for (i = 0; i < 40000; i++) {
            uint64_t ref = put(s, (uint8_t)i, 10, &uid), position = 0;
            if ((unsigned)i * 7u % 16 < live_of_16[k]) {
                live++;
            } else {
                CHECK_EQ(s->c->ack(s, ref, uid, &position), OPCOMMS_OK);
            }
            if (i % 100 == 99) flush(s);
        }
        shut(s);
        memset(&mem, 0, sizeof mem);
        mem.alloc = count_alloc;
        mem.release = count_release;
        memset(&owner, 0, sizeof owner);
        owner.found = count_found;
        o.owner = &owner;
        now_used = most_used = 0;
        told = 0;
        CHECK_EQ(opc__log_open(&o, &s, &err), OPCOMMS_OK);
        fixed = now_used + OPC__LOG_BATCH_MAX + 2 * OPC__LOG_CHUNK * OPC__LOG_ENTRY;
        CHECK_EQ(told, live);
        CHECK(most_used <= fixed + 24 * live);
        CHECK(most_used >= now_used + OPC__LOG_ENTRY * live);
        shut(s);
        CHECK_EQ(now_used, 0);
    }
    mem = old;
}

TEST(every_read_of_a_payload_checks_it_again) {
    opc__store *s = fresh(&disk);
    uint64_t ref[3];
    uint8_t *p;
    int right = 0, i;
    ref[0] = put(s, 1, 100, NULL);
    ref[1] = put(s, 2, 50000, NULL);
    ref[2] = put(s, 3, 100, NULL);
    flush(s);
    lr_read(&seen, log_file(&disk)->cache, log_file(&disk)->size);
    p = log_file(&disk)->cache;
    p[lr_int(seen.msg[1].body + 84 + 8, 8) + 16 + 3000] ^= 4; /* the second fragment */
    p[opc__log_at(ref[0]) + 8 + 84 + 1 + 50] ^= 4;            /* a payload in its message */
    for (i = 0; i < 2; i++) {
        CHECK_EQ(msg_read(s, ref[i], (uint8_t)(i + 1), i ? 50000 : 100, &right),
                 OPCOMMS_E_LOG_DAMAGED);
    }
    CHECK(holds(s, ref[2], 3, 100));
    p[opc__log_at(ref[0]) + 8 + 40] ^= 4; /* its description */
    opc__log_of(s)->read_len = 0;         /* so that the file is read again */
    CHECK(holds(s, ref[2], 3, 100));
    CHECK_EQ(msg_read(s, ref[0], 1, 100, &right), OPCOMMS_E_LOG_DAMAGED);
    log_abandon(s);
}

TEST(many_messages_share_a_sync_and_later_ones_wait_for_the_next) {
    opc__store *s = fresh(&disk);
    uint64_t uid, ref, first = 0, second = 0, syncs = disk.syncs;
    int i;
    for (i = 0; i < 100; i++) {
        CHECK_EQ(msg_put(s, (uint8_t)i, 100, &uid, &ref, &first), OPCOMMS_OK);
    }
    CHECK(s->c->durable(s) < first);
    CHECK_EQ(s->c->flush_begin(s), OPCOMMS_OK);
    CHECK_EQ(msg_put(s, 100, 100, &uid, &ref, &second), OPCOMMS_OK); /* while the disk works */
    CHECK_EQ(s->c->flush_begin(s), OPCOMMS_E_AGAIN);
    CHECK_EQ(s->c->flush_end(s, s->c->flush_run(s)), OPCOMMS_OK);
    CHECK_EQ(disk.syncs, syncs + 1);
    CHECK(s->c->durable(s) >= first && s->c->durable(s) < second);
    flush(s);
    CHECK_EQ(disk.syncs, syncs + 2);
    CHECK(s->c->durable(s) >= second);
    flush(s);
    CHECK_EQ(disk.syncs, syncs + 2); /* nothing to do */
    CHECK(s->c->durable(s) == s->c->end(s) && s->c->written(s) == s->c->end(s));
    shut(s);
}

TEST(a_second_opener_is_refused_until_the_first_is_gone) {
    opc__store *s = fresh(&disk), *t = NULL;
    CHECK_EQ(log_open(&disk, &t, &f, &err), OPCOMMS_E_IN_USE);
    CHECK_EQ(err.code, OPCOMMS_E_IN_USE);
    (void)put(s, 1, 10, NULL);
    shut(s);
    CHECK_EQ(log_open(&disk, &t, &f, &err), OPCOMMS_OK);
    CHECK_EQ(f.count, 1);
    shut(t);
}

TEST(an_open_that_fails_for_want_of_memory_leaves_nothing_behind) {
    opc__store *s = NULL;
    size_t limit;
    one_session(&disk);
    for (limit = 1000; limit < 400000; limit += 1000) {
        opcomms_err rc;
        mem.limit = limit;
        rc = log_open(&disk, &s, &f, &err);
        mem.limit = 0;
        if (rc == OPCOMMS_OK) break;
        CHECK_EQ(rc, OPCOMMS_E_NOMEM);
        CHECK_EQ(mem.used, 0);
        CHECK_EQ(disk.handles, 0);
    }
    CHECK(limit > 100000 && limit < 400000);
    CHECK_EQ(f.count, 13);
    log_abandon(s);
}

int main(void) {
    pool_init();
    fd_init(&disk, 1);
    fd_init(&copy, 2);
    fd_init(&second, 3);
    RUN(a_disk_that_cannot_be_read_is_not_a_torn_log_and_is_not_changed);
    RUN(either_slot_of_the_header_may_be_damaged_in_any_bit_but_not_both);
    RUN(the_open_counter_rises_although_the_newer_slot_is_lost_each_time);
    RUN(another_key_a_newer_major_version_and_an_encrypted_log_are_refused);
    RUN(a_newer_minor_version_is_opened_and_what_it_put_into_the_header_stays);
    RUN(a_creation_that_was_cut_short_is_made_again_and_nothing_else_is_overwritten);
    RUN(weaker_modes_never_use_a_number_twice_whatever_was_lost);
    RUN(the_directory_is_synced_again_when_the_creation_may_not_have_come_so_far);
    RUN(the_file_can_be_read_from_the_manual_alone);
    RUN(what_the_library_finds_is_what_the_manual_says_is_there);
    RUN(a_log_of_format_1_0_is_still_read_and_is_of_1_1_from_then_on);
    RUN(a_log_of_format_1_1_is_still_written_byte_for_byte_and_read);
    RUN(operations_of_a_newer_minor_are_skipped_and_kept_or_refused_when_they_must_be_known);
    RUN(a_reader_of_format_1_0_refuses_a_log_when_and_only_when_it_holds_what_it_cannot_keep);
    RUN(what_operations_need_is_what_they_take_at_most);
    RUN(what_is_held_together_is_all_there_or_none_after_any_crash);
    RUN(a_hold_is_refused_for_what_can_never_be_one_and_is_full_before_anything_is_stored);
    RUN(a_checkpoint_says_which_numbers_are_used);
    RUN(a_valid_batch_that_makes_no_sense_is_refused_not_cut);
    RUN(a_message_whose_head_is_wrong_is_refused_and_nothing_is_changed);
    RUN(a_log_cut_at_any_byte_opens_with_every_whole_batch_or_is_refused_below_the_last_sync);
    RUN(any_flipped_bit_is_found_below_the_last_sync_refused_with_its_place_above_it_cut);
    RUN(blocks_swapped_doubled_or_zeroed_are_never_taken_for_a_log);
    RUN(a_header_of_zeros_in_front_of_a_log_is_damage);
    RUN(a_log_whose_content_is_gone_is_not_opened_as_empty_once_it_was_opened_with_it);
    RUN(a_batch_forged_inside_a_payload_never_counts);
    RUN(opening_reads_each_byte_about_once);
    RUN(space_is_written_ahead_so_that_syncs_find_a_file_of_full_size);
    RUN(no_room_for_space_ahead_is_no_error_and_the_limit_holds);
    RUN(what_was_cut_is_counted);
    RUN(a_full_log_refuses_messages_and_takes_acknowledgements);
    RUN(a_disk_that_fails_at_any_call_poisons_the_log_for_good_and_loses_nothing_durable);
    RUN(a_truncation_that_fails_while_a_tail_is_cut_refuses_to_open);
    RUN(space_that_ends_at_any_byte_loses_nothing_durable);
    RUN(short_reads_and_writes_change_nothing);
    RUN(a_clean_close_records_that_all_is_synced);
    RUN(messages_of_any_size_are_streamed_through_fixed_memory);
    RUN(memory_does_not_grow_with_what_is_pending);
    RUN(opening_needs_24_bytes_for_a_message_that_is_not_over_and_none_for_the_others);
    RUN(every_read_of_a_payload_checks_it_again);
    RUN(many_messages_share_a_sync_and_later_ones_wait_for_the_next);
    RUN(a_second_opener_is_refused_until_the_first_is_gone);
    RUN(an_open_that_fails_for_want_of_memory_leaves_nothing_behind);
    fd_free(&disk);
    fd_free(&copy);
    fd_free(&second);
    pool_end();
    return test_end();
}
