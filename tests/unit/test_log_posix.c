/* The log on the real file system. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#include "test.h"

static char dir[64];
static char path[128];
static opc__mem mem;

typedef struct found {
    uint64_t uid[64];
    uint64_t ref[64];
    int count;
} found;

static opcomms_err on_found(void *user, uint64_t uid, uint64_t ref, const opc__msg_meta *m) {
    found *f = (found *)user;
    (void)m;
    if (f->count < 64) {
        f->uid[f->count] = uid;
        f->ref[f->count] = ref;
    }
    f->count++;
    return OPCOMMS_OK;
}

static opcomms_err open_log(opc__store **out, found *f, uint8_t key, opcomms_error *err) {
    opc__log_options o;
    memset(&o, 0, sizeof o);
    memset(f, 0, sizeof *f);
    memset(err, 0, sizeof *err);
    o.plat = opc__plat_default();
    o.mem = &mem;
    o.path = path;
    o.key_hash[0] = key;
    o.buffer_bytes = 65536;
    o.puts_max = 4;
    o.log_bytes_max = 1 << 26;
    return opc__log_open(&o, on_found, f, out, err);
}

static void flush(opc__store *s) {
    opcomms_err rc = s->c->flush_begin(s);
    if (rc == OPCOMMS_E_AGAIN) return;
    CHECK_EQ(rc, OPCOMMS_OK);
    CHECK_EQ(s->c->flush_end(s, s->c->flush_run(s)), OPCOMMS_OK);
}

/* Message n: its bytes are all (uint8_t)n. */
static uint64_t put(opc__store *s, int n, size_t len, uint64_t *uid) {
    opc__msg_meta m;
    uint8_t data[1024];
    uint32_t p = 0;
    uint64_t ref = 0, position = 0;
    size_t left = len;
    memset(&m, 0, sizeof m);
    memset(data, n, sizeof data);
    CHECK_EQ(s->c->begin(s, &p), OPCOMMS_OK);
    while (left > 0) {
        size_t some = left < sizeof data ? left : sizeof data;
        opcomms_err rc = s->c->data(s, p, data, some);
        if (rc == OPCOMMS_E_AGAIN) {
            flush(s);
            continue;
        }
        CHECK_EQ(rc, OPCOMMS_OK);
        if (rc != OPCOMMS_OK) return 0;
        left -= some;
    }
    m.from[0] = (uint8_t)n;
    m.dest = (const uint8_t *)"dest";
    m.dest_len = 4;
    m.bytes = len;
    CHECK_EQ(s->c->commit(s, p, &m, uid, &ref, &position), OPCOMMS_OK);
    return ref;
}

static int holds(opc__store *s, uint64_t ref, int n, size_t len) {
    uint8_t buf[4096];
    uint64_t at = 0;
    while (at < len) {
        size_t got = 0, i;
        if (s->c->read(s, ref, at, buf, sizeof buf, &got) != OPCOMMS_OK || got == 0) return 0;
        for (i = 0; i < got; i++) {
            if (buf[i] != (uint8_t)n) return 0;
        }
        at += got;
    }
    return 1;
}

static uint8_t *load(size_t *len) {
    FILE *f = fopen(path, "rb");
    uint8_t *p = (uint8_t *)malloc(1 << 22);
    *len = fread(p, 1, 1 << 22, f);
    fclose(f);
    return p;
}

static void store(const uint8_t *p, size_t len) {
    FILE *f = fopen(path, "wb");
    fwrite(p, 1, len, f);
    fclose(f);
}

TEST(messages_are_found_again_oldest_first_without_the_acknowledged) {
    opc__store *s = NULL;
    opcomms_error err;
    found f;
    uint64_t uid[4], ref[4], position = 0;
    unlink(path);
    CHECK_EQ(open_log(&s, &f, 1, &err), OPCOMMS_OK);
    ref[0] = put(s, 1, 10, &uid[0]);
    ref[1] = put(s, 2, 0, &uid[1]);
    ref[2] = put(s, 3, 300000, &uid[2]);
    ref[3] = put(s, 4, 16384, &uid[3]);
    CHECK(holds(s, ref[2], 3, 300000)); /* partly still in memory */
    CHECK_EQ(s->c->ack(s, ref[1], uid[1], &position), OPCOMMS_OK);
    CHECK_EQ(s->c->close(s), OPCOMMS_OK);
    CHECK_EQ(open_log(&s, &f, 1, &err), OPCOMMS_OK);
    CHECK_EQ(f.count, 3);
    CHECK_EQ(f.uid[0], uid[0]);
    CHECK_EQ(f.uid[1], uid[2]);
    CHECK_EQ(f.uid[2], uid[3]);
    CHECK(holds(s, f.ref[0], 1, 10));
    CHECK(holds(s, f.ref[1], 3, 300000));
    CHECK(holds(s, f.ref[2], 4, 16384));
    (void)put(s, 5, 5, &uid[0]);
    CHECK_EQ(uid[0], uid[3] + 1);
    CHECK_EQ(s->c->close(s), OPCOMMS_OK);
    CHECK_EQ(mem.used, 0);
}

TEST(another_key_and_a_second_opener_are_refused) {
    opc__store *s = NULL, *t = NULL;
    opcomms_error err;
    found f;
    unlink(path);
    CHECK_EQ(open_log(&s, &f, 1, &err), OPCOMMS_OK);
    CHECK_EQ(open_log(&t, &f, 1, &err), OPCOMMS_E_IN_USE);
    CHECK_EQ(s->c->close(s), OPCOMMS_OK);
    CHECK_EQ(open_log(&t, &f, 2, &err), OPCOMMS_E_LOG_KEY);
    CHECK_EQ(mem.used, 0);
}

/* Messages 1 and 2 each synced in a batch of their own, 3 written and synced too. */
static uint8_t *sample(size_t *len, uint64_t uid[3]) {
    opc__store *s = NULL;
    opcomms_error err;
    found f;
    int i;
    unlink(path);
    CHECK_EQ(open_log(&s, &f, 1, &err), OPCOMMS_OK);
    for (i = 0; i < 3; i++) {
        (void)put(s, i + 1, 20 + (size_t)i, &uid[i]);
        flush(s);
    }
    CHECK_EQ(s->c->close(s), OPCOMMS_OK);
    return load(len);
}

TEST(a_log_cut_at_any_byte_opens_with_every_whole_batch_and_nothing_else) {
    size_t len = 0, cut;
    uint64_t uid[3];
    uint8_t *all = sample(&len, uid);
    int last = 0;
    for (cut = OPC__LOG_HEADER; cut <= len; cut++) {
        opc__store *s = NULL;
        opcomms_error err;
        found f;
        opcomms_err rc;
        int i;
        store(all, cut);
        rc = open_log(&s, &f, 1, &err);
        CHECK_EQ(rc, OPCOMMS_OK);
        if (rc != OPCOMMS_OK) break;
        CHECK(f.count >= last && f.count <= 3);
        for (i = 0; i < f.count && i < 3; i++) {
            CHECK_EQ(f.uid[i], uid[i]);
            CHECK(holds(s, f.ref[i], i + 1, 20 + (size_t)i));
        }
        last = f.count;
        CHECK_EQ(s->c->close(s), OPCOMMS_OK);
    }
    CHECK_EQ(last, 3);
    free(all);
}

TEST(a_flipped_bit_below_the_last_sync_is_damage_and_changes_nothing) {
    size_t len = 0, bit, now = 0;
    uint64_t uid[3];
    uint8_t *all = sample(&len, uid);
    size_t first = OPC__LOG_HEADER + opc__buf_be32(all + OPC__LOG_HEADER + 4);
    for (bit = OPC__LOG_HEADER * 8; bit < first * 8; bit++) {
        opc__store *s = NULL;
        opcomms_error err;
        found f;
        uint8_t *back;
        all[bit / 8] = (uint8_t)(all[bit / 8] ^ (1u << (bit % 8)));
        store(all, len);
        CHECK_EQ(open_log(&s, &f, 1, &err), OPCOMMS_E_LOG_DAMAGED);
        CHECK_EQ(err.position, OPC__LOG_HEADER);
        back = load(&now);
        CHECK(now == len && memcmp(back, all, len) == 0);
        free(back);
        all[bit / 8] = (uint8_t)(all[bit / 8] ^ (1u << (bit % 8)));
    }
    free(all);
}

TEST(a_payload_that_is_a_batch_is_not_taken_for_one) {
    opc__store *s = NULL;
    opcomms_error err;
    found f;
    size_t len = 0;
    uint64_t uid[3];
    uint8_t *all = sample(&len, uid), *more;
    /* the torn tail holds a copy of the first batch, at another offset */
    more = (uint8_t *)malloc(len + 200);
    memcpy(more, all, len);
    memcpy(more + len, all + OPC__LOG_HEADER, 200);
    store(more, len + 200);
    CHECK_EQ(open_log(&s, &f, 1, &err), OPCOMMS_OK);
    CHECK_EQ(f.count, 3);
    CHECK_EQ(s->c->close(s), OPCOMMS_OK);
    free(all);
    free(more);
}

TEST(a_foreign_file_is_not_overwritten) {
    opc__store *s = NULL;
    opcomms_error err;
    found f;
    store((const uint8_t *)"my notes, not a log", 19);
    CHECK_EQ(open_log(&s, &f, 1, &err), OPCOMMS_E_LOG_DAMAGED);
    CHECK_EQ(mem.used, 0);
}

int main(void) {
    strcpy(dir, "/tmp/opcomms-test-XXXXXX");
    if (mkdtemp(dir) == NULL) return 1;
    snprintf(path, sizeof path, "%s/peer.log", dir);
    opc__key_default_mem(&mem);
    RUN(messages_are_found_again_oldest_first_without_the_acknowledged);
    RUN(another_key_and_a_second_opener_are_refused);
    RUN(a_log_cut_at_any_byte_opens_with_every_whole_batch_and_nothing_else);
    RUN(a_flipped_bit_below_the_last_sync_is_damage_and_changes_nothing);
    RUN(a_payload_that_is_a_batch_is_not_taken_for_one);
    RUN(a_foreign_file_is_not_overwritten);
    unlink(path);
    strcat(path, ".lock");
    unlink(path);
    rmdir(dir);
    return test_end();
}
