/* The log: what was synced is found again, whatever happened to the rest of the file. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#include "test.h"
#include "logworld.h"

static fdisk disk, copy;
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
        CHECK_EQ(rc == OPCOMMS_OK, 0);
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
    if (size > 0) memcpy(before, file->cache, size);
    CHECK_EQ(log_open(d, &s, &f, &err), why);
    CHECK_EQ(err.code, why);
    CHECK_EQ(f.count, 0);
    CHECK(file->size == size && memcmp(before, file->cache, size) == 0);
    CHECK_EQ(file->ops, 0);
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

int main(void) {
    pool_init();
    fd_init(&disk, 1);
    fd_init(&copy, 2);
    RUN(a_disk_that_cannot_be_read_is_not_a_torn_log_and_is_not_changed);
    RUN(either_slot_of_the_header_may_be_damaged_in_any_bit_but_not_both);
    RUN(the_open_counter_rises_although_the_newer_slot_is_lost_each_time);
    RUN(another_key_a_newer_major_version_and_an_encrypted_log_are_refused);
    RUN(a_newer_minor_version_is_opened_and_what_it_put_into_the_header_stays);
    RUN(a_creation_that_was_cut_short_is_made_again_and_nothing_else_is_overwritten);
    RUN(weaker_modes_never_use_a_number_twice_whatever_was_lost);
    RUN(the_directory_is_synced_again_when_the_creation_may_not_have_come_so_far);
    fd_free(&disk);
    fd_free(&copy);
    pool_end();
    return test_end();
}
