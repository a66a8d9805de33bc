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

int main(void) {
    pool_init();
    fd_init(&disk, 1);
    fd_init(&copy, 2);
    RUN(a_disk_that_cannot_be_read_is_not_a_torn_log_and_is_not_changed);
    fd_free(&disk);
    fd_free(&copy);
    pool_end();
    return test_end();
}
