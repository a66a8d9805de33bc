/* Opening a log: whatever bytes a file holds, it is refused unchanged, or it opens with exactly the
   unacknowledged messages of its unbroken row of batches, as an independent reading finds them;
   opening it again, after a close or a crash, finds the same; and it can be written to.

   Input: 8 bytes of settings, then the file behind its header. Checksums are put right first, for
   batches whose flags do not forbid it, or mutation would never get past them:
       0  header: 1 slot A, 2 slot B, 4 A damaged, 8 B damaged, 16 another key, 32 major version 2,
          64 the header is what follows, not made
       1  sequence of A   2  sequence of B   3  open counter, floor, how much was synced
       4  durability (mod 3)   5  checksums: 1 of batches, 2 of operations   6  size of the file is
          that of its content; 128: cut 1 to 127 bytes   7  bytes of zeros behind it, times 16 */
#include "fuzz.h"

#define FUZZ_LOG_SETTINGS 8u
#define FUZZ_LOG_MAX 64
#define FUZZ_LOG_LEFT_ALONE 0x8000u /* batch flag: this one's checksum stays as it is */

typedef struct fuzz_log_message {
    uint64_t uid;
    uint64_t ref;
    uint64_t bytes;
    uint32_t readable; /* CRC-32C of the payload, when it could be read */
    int damaged;
    int kind;
    uint32_t attempts;
} fuzz_log_message;

typedef struct fuzz_log_content {
    fuzz_log_message m[FUZZ_LOG_MAX];
    size_t count;
} fuzz_log_content;

/* ---- making the file ---- */

static size_t fuzz_log_fixed(unsigned type) { /* of a message; 0: it is none */
    return type == OPC__OP_MESSAGE ? 84 : type == OPC__OP_STREAM ? 108
                                      : type == OPC__OP_QUEUED ? 136
                                                               : 0;
}

static void fuzz_log_op_crc(uint8_t *body, uint32_t n, unsigned type, uint32_t seed) {
    uint32_t frags, dest, context;
    size_t head = fuzz_log_fixed(type);
    if (type == OPC__OP_FRAGMENT && n >= 8)
        opc__buf_put32(body, opc__crc32c(seed, body + 8, n - 8));
    if (head == 0 || n < head) return;
    dest = opc__buf_be32(body + 36);
    frags = opc__buf_be32(body + 72);
    context = type == OPC__OP_QUEUED ? opc__buf_be16(body + 106) : 0;
    if (dest > 1024 || frags > OPC__LOG_FRAGS || context > 256) return;
    head += 8u * frags + dest + context;
    if (head > n) return;
    if (frags == 0) {
        opc__buf_put64(body + 48, n - head);
        opc__buf_put32(body + 76, opc__crc32c(seed, body + head, n - head));
    }
    opc__buf_put32(body + 80, 0);
    opc__buf_put32(body + 80, opc__crc32c(seed, body, head));
}

static void fuzz_log_repair(uint8_t *p, size_t size, uint32_t seed, int what) {
    size_t at = OPC__LOG_HEADER;
    while (at + OPC__LOG_BATCH <= size) {
        uint8_t *b = p + at;
        uint32_t len = opc__buf_be32(b + 4), op = OPC__LOG_BATCH;
        if (len < OPC__LOG_BATCH || len > size - at) return;
        while ((what & 2) && len - op >= 8) {
            uint32_t n = opc__buf_be32(b + op + 4);
            if (n > len - op - 8) break;
            if (b[op + 1] == 0) fuzz_log_op_crc(b + op + 8, n, b[op], seed);
            op += 8 + n;
        }
        if ((what & 1) && !(opc__buf_be32(b + 40) & FUZZ_LOG_LEFT_ALONE)) {
            opc__buf_put32(b, OPC__LOG_MAGIC);
            opc__buf_put64(b + 16, at);
            opc__buf_put32(b + 8, 0);
            opc__buf_put32(b + 44, opc__crc32c(seed, b, 44));
            opc__buf_put32(b + 8, opc__crc32c(seed, b, len));
        }
        at += len;
    }
}

static void fuzz_log_make(fuzz_buf *f, const uint8_t *set, const uint8_t *rest, size_t n,
                          const uint8_t key[32]) {
    uint8_t salt[32], owner[32], slot[OPC__LOG_SLOT], zero[16];
    size_t i;
    f->len = 0;
    memset(salt, 3, sizeof salt);
    memset(zero, 0, sizeof zero);
    memcpy(owner, key, 32);
    if (set[0] & 16) owner[31] ^= 1u;
    if (!(set[0] & 64)) {
        for (i = 0; i < OPC__LOG_HEADER / 16; i++) fuzz_put(f, zero, 16);
        for (i = 0; i < 2; i++) {
            uint64_t sequence = set[1 + i] == 255 ? UINT64_MAX : set[1 + i];
            if (!(set[0] & (1u << i))) continue;
            memset(slot, 0, sizeof slot);
            memcpy(slot, "OPCLOG\r\n", 8);
            slot[9] = set[0] & 32 ? 2 : 1;
            opc__buf_put32(slot + 12, OPC__LOG_SLOT);
            opc__buf_put64(slot + 16, sequence);
            opc__buf_put64(slot + 24, set[3]);
            memcpy(slot + 48, owner, 32);
            memcpy(slot + 80, salt, 32);
            opc__buf_put64(slot + 112, set[3] >> 4);
            opc__buf_put64(slot + 120, set[3] & 8 ? OPC__LOG_HEADER + set[3] * 4u : 0);
            opc__buf_put32(slot + OPC__LOG_SLOT - 4, opc__crc32c(0, slot, OPC__LOG_SLOT - 4));
            if (set[0] & (4u << i)) slot[100] ^= 1u;
            memcpy(f->p + i * 2048, slot, sizeof slot);
        }
    }
    fuzz_put(f, rest, n);
    fuzz_log_repair(f->p, f->len, opc__crc32c(0, salt, 32), set[5]);
    if ((set[6] & 128) && f->len > (set[6] & 127u)) f->len -= set[6] & 127u;
    for (i = 0; i < set[7]; i++) fuzz_put(f, zero, 16);
}

/* ---- the independent reading ---- */

typedef struct fuzz_log_view {
    const uint8_t *p;
    size_t size;
    uint32_t seed;
} fuzz_log_view;

static size_t fuzz_log_batch(const fuzz_log_view *v, size_t at) {
    static uint8_t copy[OPC__LOG_BATCH_MAX];
    uint32_t len, want, head;
    if (v->size < OPC__LOG_BATCH || at > v->size - OPC__LOG_BATCH) return 0;
    if (opc__buf_be32(v->p + at) != OPC__LOG_MAGIC) return 0;
    len = opc__buf_be32(v->p + at + 4);
    if (len < OPC__LOG_BATCH || len > OPC__LOG_BATCH_MAX || len > v->size - at) return 0;
    if (opc__buf_be64(v->p + at + 16) != at || opc__buf_be64(v->p + at + 32) > at) return 0;
    memcpy(copy, v->p + at, len);
    want = opc__buf_be32(copy + 8);
    head = opc__buf_be32(copy + 44);
    memset(copy + 8, 0, 4);
    if (opc__crc32c(v->seed, copy, 44) != head) return 0;
    return opc__crc32c(v->seed, copy, len) == want ? len : 0;
}

static int fuzz_log_head_good(const fuzz_log_view *v, size_t ref) {
    unsigned type = v->p[ref];
    uint32_t n = opc__buf_be32(v->p + ref + 4), dest, frags, context = 0;
    const uint8_t *b = v->p + ref + 8;
    uint8_t *head;
    uint64_t len = fuzz_log_fixed(type);
    int good;
    if (n < len) return 0;
    dest = opc__buf_be32(b + 36);
    frags = opc__buf_be32(b + 72);
    if (type == OPC__OP_QUEUED) context = opc__buf_be16(b + 106);
    len += 8ull * frags + dest + context;
    if (dest > 1024 || context > 256 || len > n) return 0;
    if (frags == 0 && opc__buf_be64(b + 48) != n - len) return 0;
    if (type == OPC__OP_STREAM && (b[35] < 1 || b[35] > 2)) return 0;
    if (type == OPC__OP_STREAM && (b[34] & 128) && dest != 0) return 0;
    if (type == OPC__OP_QUEUED && b[84] != 0 && b[84] != 4 && b[84] != 6) return 0;
    head = fuzz_exact(b, (size_t)len);
    memset(head + 80, 0, 4);
    good = opc__crc32c(v->seed, head, (size_t)len) == opc__buf_be32(b + 80);
    free(head);
    return good;
}

typedef struct fuzz_log_walk {
    uint64_t last;  /* highest number of a message */
    uint64_t floor; /* numbers up to here are used */
    int overflow;   /* more messages than the list has room for */
} fuzz_log_walk;

static opcomms_err fuzz_log_op(const fuzz_log_view *v, size_t p, uint32_t n, fuzz_log_content *c,
                               fuzz_log_walk *w) {
    const uint8_t *body = v->p + p + 8;
    unsigned type = v->p[p];
    uint64_t number = n >= 48 ? opc__buf_be64(body + 40) : 0;
    size_t j;
    switch (type) {
    case OPC__OP_MESSAGE:
    case OPC__OP_QUEUED:
    case OPC__OP_STREAM:
        if (number <= w->last || number > (uint64_t)1 << 62) return OPCOMMS_E_LOG_DAMAGED;
        if (!fuzz_log_head_good(v, p)) return OPCOMMS_E_LOG_DAMAGED;
        w->last = number;
        if (number > w->floor) w->floor = number;
        if (c->count == FUZZ_LOG_MAX) {
            w->overflow = 1;
            return OPCOMMS_OK;
        }
        c->m[c->count].uid = number;
        c->m[c->count].kind = type == OPC__OP_QUEUED ? OPC__KIND_OUT : OPC__KIND_IN;
        c->m[c->count].attempts = 0;
        c->m[c->count++].ref = p;
        return OPCOMMS_OK;
    case OPC__OP_FAILED:
    case OPC__OP_DEAD:
        if (n != 32) return OPCOMMS_E_LOG_DAMAGED;
        for (j = 0; j < c->count; j++) {
            if (c->m[j].uid != opc__buf_be64(body) || c->m[j].kind == OPC__KIND_IN) continue;
            c->m[j].kind = type == OPC__OP_DEAD ? OPC__KIND_DEAD : OPC__KIND_OUT;
            c->m[j].attempts = opc__buf_be32(body + 8);
        }
        return OPCOMMS_OK;
    case OPC__OP_ACK:
    case OPC__OP_OVER:
    case OPC__OP_TAKEN:
        if (n != (type == OPC__OP_ACK ? 8u : 16u)) return OPCOMMS_E_LOG_DAMAGED;
        for (j = 0; j < c->count && c->m[j].uid != opc__buf_be64(body); j++) {}
        if (j == c->count) return OPCOMMS_OK;
        memmove(&c->m[j], &c->m[j + 1], (c->count - j - 1) * sizeof c->m[0]);
        c->count--;
        return OPCOMMS_OK;
    case OPC__OP_CHECKPOINT:
        if (n < 8 || opc__buf_be64(body) > (uint64_t)1 << 62) return OPCOMMS_E_LOG_DAMAGED;
        if (opc__buf_be64(body) > w->floor) w->floor = opc__buf_be64(body);
        return OPCOMMS_OK;
    case OPC__NOTE_OPENED: return n < 40 ? OPCOMMS_E_LOG_DAMAGED : OPCOMMS_OK;
    default: return type < 128 ? OPCOMMS_OK : OPCOMMS_E_LOG_VERSION;
    }
}

/* One batch's operations into `c`. */
static opcomms_err fuzz_log_apply(const fuzz_log_view *v, size_t at, size_t len,
                                  fuzz_log_content *c, fuzz_log_walk *w) {
    uint32_t ops = opc__buf_be32(v->p + at + 12), i;
    size_t p = at + OPC__LOG_BATCH, end = at + len;
    if (opc__buf_be32(v->p + at + 40) > 0x1ffffu) return OPCOMMS_E_LOG_VERSION;
    for (i = 0; i < ops; i++) {
        uint32_t n;
        opcomms_err rc;
        if (end - p < 8) return OPCOMMS_E_LOG_DAMAGED;
        n = opc__buf_be32(v->p + p + 4);
        if (n > end - p - 8) return OPCOMMS_E_LOG_DAMAGED;
        rc = fuzz_log_op(v, p, n, c, w);
        if (rc != OPCOMMS_OK) return rc;
        p += 8u + n;
    }
    return p == end ? OPCOMMS_OK : OPCOMMS_E_LOG_DAMAGED;
}

static int fuzz_log_slot_good(const uint8_t *s) {
    uint32_t n = opc__buf_be32(s + 12);
    if (memcmp(s, "OPCLOG\r\n", 8) != 0 || n < 512 || n > 2048) return 0;
    return opc__crc32c(0, s, n - 4) == opc__buf_be32(s + n - 4);
}

/* A creation that was cut short: nothing, or zeros, or those and the beginning of a first slot. */
static int fuzz_log_begun(const uint8_t *header, size_t size) {
    static const uint8_t start[11] = {'O', 'P', 'C', 'L', 'O', 'G', '\r', '\n', 0, 1, 0};
    size_t last = 0, i;
    if (size > OPC__LOG_HEADER) return 0;
    for (i = 0; i < OPC__LOG_HEADER; i++) {
        if (header[i] != 0) last = i + 1;
    }
    if (last == 0) return 1;
    return size == OPC__LOG_HEADER && last < 512 &&
           memcmp(header, start, last < sizeof start ? last : sizeof start) == 0;
}

/* What opening has to answer, and the messages. */
static opcomms_err fuzz_log_expect(const fuzz_buf *f, const uint8_t key[32], fuzz_log_content *c,
                                   int *overflow) {
    const uint8_t *slot = NULL;
    fuzz_log_view v;
    fuzz_log_walk w;
    uint64_t synced, counter = 0;
    size_t at = OPC__LOG_HEADER, len, i;
    uint8_t header[OPC__LOG_HEADER];
    c->count = 0;
    *overflow = 0;
    memset(&w, 0, sizeof w);
    memset(header, 0, sizeof header);
    if (f->len > 0) memcpy(header, f->p, f->len < sizeof header ? f->len : sizeof header);
    for (i = 0; i < 2; i++) {
        const uint8_t *s = header + i * 2048;
        if (!fuzz_log_slot_good(s)) continue;
        if (slot == NULL || opc__buf_be64(s + 16) > opc__buf_be64(slot + 16)) slot = s;
    }
    if (slot == NULL && fuzz_log_begun(header, f->len)) return OPCOMMS_OK;
    if (slot == NULL || f->len < OPC__LOG_HEADER) return OPCOMMS_E_LOG_DAMAGED;
    if (slot[8] != 0 || slot[9] != 1) return OPCOMMS_E_LOG_VERSION;
    if (memcmp(slot + 48, key, 32) != 0) return OPCOMMS_E_LOG_KEY;
    for (i = 128; i < 140; i++) {
        if (slot[i] != 0) return OPCOMMS_E_LOG_VERSION;
    }
    w.floor = opc__buf_be64(slot + 112);
    if (w.floor > (uint64_t)1 << 62) return OPCOMMS_E_LOG_DAMAGED;
    synced = opc__buf_be64(slot + 120);
    v.p = f->p;
    v.size = f->len;
    v.seed = opc__crc32c(0, slot + 80, 32);
    while ((len = fuzz_log_batch(&v, at)) != 0 && opc__buf_be64(f->p + at + 24) >= counter) {
        uint64_t s = opc__buf_be64(f->p + at + 32);
        opcomms_err rc = fuzz_log_apply(&v, at, len, c, &w);
        if (rc != OPCOMMS_OK) return rc;
        if (s > synced) synced = s;
        counter = opc__buf_be64(f->p + at + 24);
        at += len;
    }
    *overflow = w.overflow;
    for (i = at; i < f->len; i++) {
        len = fuzz_log_batch(&v, i);
        if (len == 0) continue;
        if (opc__buf_be64(f->p + i + 32) > synced) synced = opc__buf_be64(f->p + i + 32);
        i += len - 1;
    }
    if (at < synced) return OPCOMMS_E_LOG_DAMAGED;
    for (i = 0; i < c->count; i++) { /* a program with a larger frame limit stored it */
        if (opc__buf_be32(f->p + c->m[i].ref + 8 + 72) > OPC__LOG_FRAGS) return OPCOMMS_E_LIMIT;
    }
    return OPCOMMS_OK;
}

/* ---- the library's reading ---- */

static opcomms_err fuzz_log_found(void *user, uint64_t uid, uint64_t ref, const opc__msg_meta *m) {
    fuzz_log_content *c = (fuzz_log_content *)user;
    FUZZ_CHECK(m->uid == uid && m->dest_len <= 1024);
    if (c->count < FUZZ_LOG_MAX) {
        c->m[c->count].uid = uid;
        c->m[c->count].ref = opc__log_at(ref);
        c->m[c->count].bytes = m->bytes;
        c->m[c->count].kind = m->kind;
        c->m[c->count].attempts = m->attempts;
        c->m[c->count++].damaged = 0;
    }
    return OPCOMMS_OK;
}

static opcomms_err fuzz_log_seen(void *user, const opc__msg_meta *m) {
    (void)user;
    FUZZ_CHECK(m->stream == OPC__STREAM_QUEUE || m->stream == OPC__STREAM_DIRECT);
    FUZZ_CHECK(m->dest_len <= 1024 && m->kind == OPC__KIND_IN);
    return OPCOMMS_OK;
}

static opcomms_err fuzz_log_note(void *user, unsigned type, const uint8_t *body, size_t n) {
    (void)user;
    (void)opc__crc32c(0, body, n); /* reads it all */
    FUZZ_CHECK(type == 9 || type == 10 || type == 13 || (type == 14 && n >= 40));
    return OPCOMMS_OK;
}

static opcomms_err fuzz_log_open(opc__mem *mem, const uint8_t key[32], int durability,
                                 fuzz_log_content *c, opc__store **s, opcomms_error *err) {
    opc__log_options o;
    opc__store_owner owner;
    memset(&o, 0, sizeof o);
    memset(err, 0, sizeof *err);
    c->count = 0;
    o.plat = fuzz_platform();
    o.mem = mem;
    o.path = "d/log";
    memcpy(o.key_hash, key, 32);
    o.durability = durability;
    o.buffer_bytes = 65536;
    o.puts_max = 2;
    o.log_bytes_max = 1u << 24;
    memset(&owner, 0, sizeof owner);
    owner.user = c;
    owner.found = fuzz_log_found;
    owner.seen = fuzz_log_seen;
    owner.note = fuzz_log_note;
    o.owner = &owner;
    return opc__log_open(&o, s, err);
}

/* Reads every payload: whole and equal to its announced size, or damaged. */
static void fuzz_log_read(opc__store *s, fuzz_log_content *c) {
    size_t i;
    for (i = 0; i < c->count; i++) {
        fuzz_log_message *m = &c->m[i];
        opc__msg_meta meta;
        uint8_t dest[1024], context[OPC__CONTEXT_MAX], buf[5000];
        uint64_t at = 0;
        FUZZ_CHECK(s->c->meta(s, m->ref, &meta, dest, context) == OPCOMMS_OK);
        FUZZ_CHECK(meta.uid == m->uid && meta.bytes == m->bytes);
        m->readable = 0;
        while (!m->damaged) {
            size_t got = 0;
            opcomms_err rc = s->c->read(s, m->ref, at, buf, sizeof buf, &got);
            FUZZ_CHECK(rc == OPCOMMS_OK || rc == OPCOMMS_E_LOG_DAMAGED || rc == OPCOMMS_E_IO);
            if (rc != OPCOMMS_OK) m->damaged = 1;
            if (rc != OPCOMMS_OK || got == 0) break;
            FUZZ_CHECK(got <= sizeof buf && got <= m->bytes - at);
            m->readable = opc__crc32c(m->readable, buf, got);
            at += got;
        }
        FUZZ_CHECK(m->damaged || at == m->bytes);
    }
}

static void fuzz_log_equal(const fuzz_log_content *a, const fuzz_log_content *b, int payload) {
    size_t i;
    FUZZ_CHECK(a->count == b->count);
    for (i = 0; i < a->count; i++) {
        FUZZ_CHECK(a->m[i].uid == b->m[i].uid && a->m[i].ref == b->m[i].ref);
        FUZZ_CHECK(a->m[i].kind == b->m[i].kind && a->m[i].attempts == b->m[i].attempts);
        if (!payload) continue;
        FUZZ_CHECK(a->m[i].damaged == b->m[i].damaged && a->m[i].bytes == b->m[i].bytes);
        if (!a->m[i].damaged) FUZZ_CHECK(a->m[i].readable == b->m[i].readable);
    }
}

/* One message more, and the oldest acknowledged. */
static void fuzz_log_use(opc__store *s, fuzz_log_content *c) {
    opc__msg_meta m;
    uint32_t put = 0;
    uint64_t position = 0, last = c->count > 0 ? c->m[c->count - 1].uid : 0;
    fuzz_log_message *fresh;
    if (c->count > 0) {
        FUZZ_CHECK(s->c->ack(s, c->m[0].ref, c->m[0].uid, &position) == OPCOMMS_OK);
        memmove(&c->m[0], &c->m[1], (c->count - 1) * sizeof c->m[0]);
        c->count--;
    }
    fresh = &c->m[c->count++];
    memset(&m, 0, sizeof m);
    memset(fresh, 0, sizeof *fresh);
    m.dest = (const uint8_t *)"to";
    m.dest_len = 2;
    m.bytes = 5;
    FUZZ_CHECK(s->c->begin(s, &put) == OPCOMMS_OK);
    FUZZ_CHECK(s->c->data(s, put, (const uint8_t *)"fresh", 5) == OPCOMMS_OK);
    FUZZ_CHECK(s->c->commit(s, put, &m, &fresh->uid, &fresh->ref, &position) == OPCOMMS_OK);
    FUZZ_CHECK(fresh->uid > last);
    fresh->ref = opc__log_at(fresh->ref);
    fresh->bytes = 5;
    fresh->readable = opc__crc32c(0, "fresh", 5);
    FUZZ_CHECK(s->c->flush_begin(s) == OPCOMMS_OK);
    FUZZ_CHECK(s->c->flush_end(s, s->c->flush_run(s)) == OPCOMMS_OK);
    FUZZ_CHECK(s->c->durable(s) >= position);
}

/* The log was opened with `was` in it; `crash` is the file as it was then. */
static void fuzz_log_again(opc__mem *mem, opc__store *s, const uint8_t key[32], int durability,
                           fuzz_log_content *was) {
    static fuzz_log_content now;
    fuzz_file *f = fuzz_find("log");
    opc__store *t = NULL;
    opcomms_error err;
    fuzz_buf crash;
    uint64_t counter = ((opc__log *)(void *)s)->open_counter;
    memset(&crash, 0, sizeof crash);
    fuzz_put(&crash, f->data.p, f->data.len);
    FUZZ_CHECK(s->c->close(s) == OPCOMMS_OK);
    FUZZ_CHECK(fuzz_log_open(mem, key, durability, &now, &t, &err) == OPCOMMS_OK);
    fuzz_log_read(t, &now);
    fuzz_log_equal(was, &now, 1);
    FUZZ_CHECK(((opc__log *)(void *)t)->open_counter > counter);
    FUZZ_CHECK(t->c->close(t) == OPCOMMS_OK);

    f->data.len = 0;
    fuzz_put(&f->data, crash.p, crash.len);
    fuzz_free(&crash);
    FUZZ_CHECK(fuzz_log_open(mem, key, durability, &now, &t, &err) == OPCOMMS_OK);
    fuzz_log_read(t, &now);
    fuzz_log_equal(was, &now, 1);
    if (now.count < FUZZ_LOG_MAX) fuzz_log_use(t, &now);
    *was = now;
    FUZZ_CHECK(t->c->close(t) == OPCOMMS_OK);
    FUZZ_CHECK(fuzz_log_open(mem, key, durability, &now, &t, &err) == OPCOMMS_OK);
    fuzz_log_read(t, &now);
    fuzz_log_equal(was, &now, 1);
    FUZZ_CHECK(t->c->close(t) == OPCOMMS_OK);
}

static int fuzz_log_live(void *user, uint64_t uid) {
    const fuzz_log_content *c = (const fuzz_log_content *)user;
    size_t i;
    for (i = 0; i < c->count; i++) {
        if (c->m[i].uid == uid) return 1;
    }
    return 0;
}

/* Compacted: the same messages, or given up and the same messages. */
static void fuzz_log_compact(opc__mem *mem, const uint8_t key[32], int durability,
                             const fuzz_log_content *was) {
    static fuzz_log_content now;
    opc__store *s = NULL;
    opcomms_error err;
    opcomms_err rc = OPCOMMS_OK;
    int flush = 0;
    size_t i;
    FUZZ_CHECK(fuzz_log_open(mem, key, durability, &now, &s, &err) == OPCOMMS_OK);
    opc__log_of(s)->owner.live = fuzz_log_live; /* its user is &now */
    for (i = 0; rc == OPCOMMS_OK && !flush && i < 60; i++) rc = s->c->compact(s, 1, &flush);
    FUZZ_CHECK(rc == OPCOMMS_OK || rc == OPCOMMS_E_LOG_DAMAGED || rc == OPCOMMS_E_LIMIT);
    if (flush) FUZZ_CHECK(s->c->flush_end(s, s->c->flush_run(s)) == OPCOMMS_OK);
    FUZZ_CHECK(s->c->close(s) == OPCOMMS_OK);
    FUZZ_CHECK(fuzz_find("log.new") == NULL);
    FUZZ_CHECK(fuzz_log_open(mem, key, durability, &now, &s, &err) == OPCOMMS_OK);
    fuzz_log_read(s, &now);
    FUZZ_CHECK(now.count == was->count);
    for (i = 0; i < now.count; i++) {
        const fuzz_log_message *a = &was->m[i], *b = &now.m[i];
        FUZZ_CHECK(a->uid == b->uid && a->bytes == b->bytes && a->kind == b->kind);
        FUZZ_CHECK(a->attempts == b->attempts && a->damaged == b->damaged);
        if (!a->damaged) FUZZ_CHECK(a->readable == b->readable);
    }
    FUZZ_CHECK(s->c->close(s) == OPCOMMS_OK);
}

/* Without its peer: changes nothing, says what opening will, finds as many messages; and what a
   salvage saves is all that is unread. */
static void fuzz_log_look(opc__mem *mem, const fuzz_buf *before, opcomms_err expected,
                          const fuzz_log_content *want, int overflow) {
    static fuzz_log_content got;
    opc__look k;
    opc__store *s = NULL;
    opcomms_error err;
    uint64_t unread;
    uint8_t key[32];
    opcomms_err rc = opc__look_open(&k, fuzz_platform(), mem, "d/log", 0, &err);
    FUZZ_CHECK(rc == OPCOMMS_OK);
    rc = opc__look_run(&k, 0, &err);
    FUZZ_CHECK(fuzz_the_disk.changes == 0);
    if (expected == OPCOMMS_E_LOG_KEY) {
        FUZZ_CHECK(k.r.hash[0] != 0);
    } else if (!overflow && expected != OPCOMMS_OK) {
        FUZZ_CHECK(rc == expected);
    } else if (!overflow) {
        FUZZ_CHECK(rc == (k.r.broken > 0 ? OPCOMMS_E_LOG_DAMAGED : OPCOMMS_OK));
        FUZZ_CHECK(k.r.unread + k.r.queued + k.r.dead_letters + k.r.broken == want->count);
    }
    opc__look_close(&k);
    rc = opc__look_open(&k, fuzz_platform(), mem, "d/log", 1, &err);
    FUZZ_CHECK(rc == OPCOMMS_OK);
    rc = opc__look_run(&k, 1, &err);
    if (rc == OPCOMMS_OK || (rc == OPCOMMS_E_LOG_DAMAGED && k.c.buf != NULL)) {
        rc = opc__look_salvage(&k, "d/new", &err);
        FUZZ_CHECK((fuzz_find("new") != NULL) == (rc == OPCOMMS_OK));
    }
    FUZZ_CHECK(fuzz_same(before, &fuzz_find("log")->data));
    if (fuzz_find("new") != NULL) {
        opc__log_options o;
        opc__store_owner owner;
        memset(&o, 0, sizeof o);
        memset(&owner, 0, sizeof owner);
        owner.user = &got;
        owner.found = fuzz_log_found;
        o.owner = &owner;
        memcpy(key, k.c.slot + 48, 32);
        o.plat = fuzz_platform();
        o.mem = mem;
        o.path = "d/new";
        memcpy(o.key_hash, key, 32);
        o.puts_max = 1;
        o.log_bytes_max = 1u << 24;
        got.count = 0;
        FUZZ_CHECK(opc__log_open(&o, &s, &err) == OPCOMMS_OK);
        unread = k.r.unread + k.r.queued + k.r.dead_letters;
        if (unread <= FUZZ_LOG_MAX) FUZZ_CHECK(got.count == unread);
        FUZZ_CHECK(s->c->close(s) == OPCOMMS_OK);
        fuzz_find("new")->exists = 0;
        if (fuzz_find("new.lock") != NULL) fuzz_find("new.lock")->exists = 0;
    }
    opc__look_close(&k);
    fuzz_find("log.lock")->exists = 0;
    FUZZ_CHECK(mem->used == 0);
}

static void fuzz_log(const uint8_t *data, size_t size) {
    static fuzz_log_content want, got;
    uint8_t key[32];
    fuzz_memory memory;
    opc__mem mem;
    opcomms_error err;
    opc__store *s = NULL;
    fuzz_buf before;
    opcomms_err rc, expected;
    int overflow = 0;
    if (size < FUZZ_LOG_SETTINGS || size > 200000) return;
    memset(key, 9, sizeof key);
    memset(&before, 0, sizeof before);
    fuzz_mem(&mem, &memory);
    fuzz_disk_clear();
    fuzz_log_make(&fuzz_create("log")->data, data, data + FUZZ_LOG_SETTINGS,
                  size - FUZZ_LOG_SETTINGS, key);
    fuzz_put(&before, fuzz_find("log")->data.p, fuzz_find("log")->data.len);
    expected = fuzz_log_expect(&before, key, &want, &overflow);
    fuzz_the_disk.changes = 0;
    fuzz_log_look(&mem, &before, expected, &want, overflow);
    memory.peak = 0;
    fuzz_the_disk.changes = 0;
    rc = fuzz_log_open(&mem, key, data[4] % 3, &got, &s, &err);
    /* two buffers, the batch, a piece, one head; the index holds 16 bytes for an operation of 8 */
    FUZZ_CHECK(memory.peak <= OPC__LOG_BATCH_MAX + 3u * 65536u + 65536u + 6u * size);
    if (!overflow) {
        FUZZ_CHECK(rc == expected);
        if (rc != OPCOMMS_OK) {
            FUZZ_CHECK(err.code == rc && err.text[0] != 0);
            FUZZ_CHECK(mem.used == 0 && memory.now == 0);
            if (rc != OPCOMMS_E_LIMIT) FUZZ_CHECK(fuzz_same(&before, &fuzz_find("log")->data));
        } else {
            fuzz_log_equal(&want, &got, 0);
            fuzz_log_read(s, &got);
            fuzz_log_again(&mem, s, key, data[4] % 3, &got);
            fuzz_log_compact(&mem, key, data[4] % 3, &got);
            s = NULL;
        }
    }
    if (overflow && rc == OPCOMMS_OK) (void)s->c->close(s);
    FUZZ_CHECK(mem.used == 0 && memory.now == 0);
    fuzz_free(&before);
    fuzz_disk_clear();
}

FUZZ_TARGET(fuzz_log)
