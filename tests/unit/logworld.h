/* A log on a fake disk and a model of what it must hold: messages that were reported durable are
   found, acknowledged ones whose acknowledgement was durable are not, nothing else is, and every
   byte is right. Used by test_log.c and test_log_crash.c. */
#ifndef OPCOMMS_LOGWORLD_H
#define OPCOMMS_LOGWORLD_H

#include "fakedisk.h"

/* ---- memory: blocks of a size are used again, so that an open costs no system call ---- */

static opc__mem mem;
static struct { void *p; size_t n; } pool[64];

static inline void *pool_alloc(void *user, size_t bytes) {
    int i;
    (void)user;
    for (i = 0; i < 64; i++) {
        if (pool[i].p != NULL && pool[i].n == bytes) {
            void *p = pool[i].p;
            pool[i].p = NULL;
            return p;
        }
    }
    return malloc(bytes);
}

static inline void pool_release(void *user, void *p, size_t bytes) {
    int i;
    (void)user;
    for (i = 0; i < 64; i++) {
        if (pool[i].p == NULL) {
            pool[i].p = p;
            pool[i].n = bytes;
            return;
        }
    }
    free(p);
}

static inline void pool_init(void) {
    memset(&mem, 0, sizeof mem);
    mem.alloc = pool_alloc;
    mem.release = pool_release;
}

static inline void pool_end(void) {
    int i;
    for (i = 0; i < 64; i++) free(pool[i].p);
    memset(pool, 0, sizeof pool);
}

/* ---- opening ---- */

#define FOUND_MAX 4096
typedef struct found {
    uint64_t uid[FOUND_MAX];
    uint64_t ref[FOUND_MAX];
    uint64_t bytes[FOUND_MAX];
    uint8_t tag[FOUND_MAX]; /* first byte of the sender */
    int count;
} found;

static inline opcomms_err on_found(void *user, uint64_t uid, uint64_t ref, const opc__msg_meta *m) {
    found *f = (found *)user;
    if (f->count == FOUND_MAX) return OPCOMMS_E_LIMIT;
    f->uid[f->count] = uid;
    f->ref[f->count] = ref;
    f->bytes[f->count] = m->bytes;
    f->tag[f->count] = m->from[0];
    f->count++;
    return OPCOMMS_OK;
}

static inline opc__log_options log_options(fdisk *d) {
    opc__log_options o;
    memset(&o, 0, sizeof o);
    o.plat = &d->plat;
    o.mem = &mem;
    o.path = "dir/peer.log";
    o.key_hash[0] = 1;
    o.buffer_bytes = 65536;
    o.puts_max = 4;
    o.log_bytes_max = 1 << 26;
    return o;
}

static inline opcomms_err log_open_with(const opc__log_options *o, opc__store **out, found *f,
                                 opcomms_error *err) {
    f->count = 0;
    memset(err, 0, sizeof *err);
    return opc__log_open(o, on_found, f, out, err);
}

static inline opcomms_err log_open(fdisk *d, opc__store **out, found *f, opcomms_error *err) {
    opc__log_options o = log_options(d);
    return log_open_with(&o, out, f, err);
}

/* The process is gone: nothing is written any more. */
static void log_abandon(opc__store *s) { opc__log_free(opc__log_of(s)); }

static inline opcomms_err flush_rc(opc__store *s) {
    opcomms_err rc = s->c->flush_begin(s);
    if (rc == OPCOMMS_E_AGAIN) return OPCOMMS_OK;
    if (rc != OPCOMMS_OK) return rc;
    return s->c->flush_end(s, s->c->flush_run(s));
}

/* ---- messages ---- */

static inline uint8_t msg_byte(uint8_t tag, uint64_t i) {
    return (uint8_t)(tag * 37u + i * 11u + (i >> 8) * 3u + (i >> 14));
}

static inline void msg_fill(uint8_t *p, uint8_t tag, uint64_t from, size_t n) {
    size_t i;
    for (i = 0; i < n; i++) p[i] = msg_byte(tag, from + i);
}

/* Stores message `tag` of len bytes in pieces; flushes when the store asks for it. */
static inline opcomms_err msg_put(opc__store *s, uint8_t tag, uint64_t len, uint64_t *uid,
                                  uint64_t *ref, uint64_t *position) {
    uint8_t data[4096];
    opc__msg_meta m;
    uint32_t put = 0;
    uint64_t at = 0;
    opcomms_err rc = s->c->begin(s, &put);
    if (rc != OPCOMMS_OK) return rc;
    while (rc == OPCOMMS_OK && at < len) {
        size_t n = len - at < sizeof data ? (size_t)(len - at) : sizeof data;
        msg_fill(data, tag, at, n);
        rc = s->c->data(s, put, data, n);
        if (rc == OPCOMMS_E_AGAIN) {
            rc = flush_rc(s);
            continue;
        }
        at += n;
    }
    memset(&m, 0, sizeof m);
    memset(m.from, tag, sizeof m.from);
    m.from_id = tag;
    m.dest = (const uint8_t *)"destination";
    m.dest_len = tag % 12u;
    m.dest_id = (uint8_t)(tag + 1);
    m.flags = tag & 1u;
    m.bytes = len;
    m.wire_bytes = len * 3;
    m.time_s = 1700000000 + tag;
    while (rc == OPCOMMS_OK) {
        rc = s->c->commit(s, put, &m, uid, ref, position);
        if (rc != OPCOMMS_E_AGAIN) break;
        rc = flush_rc(s);
    }
    if (rc != OPCOMMS_OK) s->c->abort(s, put);
    return rc;
}

static inline opcomms_err msg_read(opc__store *s, uint64_t ref, uint8_t tag, uint64_t len,
                                   int *right) {
    uint8_t buf[4096], dest[1024];
    opc__msg_meta m;
    uint64_t at = 0;
    size_t more = 1;
    opcomms_err rc = s->c->meta(s, ref, &m, dest, NULL);
    *right = 0;
    if (rc != OPCOMMS_OK) return rc;
    if (m.from[31] != tag || m.from_id != tag || m.dest_len != tag % 12u || m.bytes != len ||
        memcmp(dest, "destination", m.dest_len) != 0 || m.flags != (tag & 1u) ||
        m.wire_bytes != len * 3 || m.time_s != 1700000000 + tag ||
        m.dest_id != (uint8_t)(tag + 1)) {
        return OPCOMMS_OK;
    }
    while (at < len) {
        size_t got = 0, i;
        rc = s->c->read(s, ref, at, buf, sizeof buf, &got);
        if (rc != OPCOMMS_OK || got == 0) return rc;
        for (i = 0; i < got; i++) {
            if (buf[i] != msg_byte(tag, at + i)) return OPCOMMS_OK;
        }
        at += got;
    }
    rc = s->c->read(s, ref, len, buf, sizeof buf, &more);
    *right = at == len && more == 0;
    return rc;
}

/* ---- the model ---- */

typedef struct wmsg {
    uint64_t uid, ref, position, ack_position, len;
    uint8_t tag, durable, written, acked, ack_durable, gone;
} wmsg;

#define WORLD_MSGS 512
typedef struct world {
    fdisk *d;
    opc__store *s;
    opc__log_options o;
    uint64_t rng;
    wmsg m[WORLD_MSGS];
    int n;
    uint64_t uid_max;      /* of all messages that may have been seen */
    int bad;               /* wrong answers so far */
    found f;
    opcomms_error err;
} world;

static inline void world_bad(world *w, const char *why, uint64_t number) {
    if (w->bad++ < 5) printf("model: %s (%llu)\n", why, (unsigned long long)number);
}

/* What the store has reported so far. */
static inline void world_note(world *w) {
    uint64_t durable = w->s->c->durable(w->s);
    int i;
    for (i = 0; i < w->n; i++) {
        wmsg *m = &w->m[i];
        if (!m->durable && !m->gone && m->position <= durable) m->durable = 1;
        if (m->acked && !m->ack_durable && m->ack_position <= durable) m->ack_durable = 1;
    }
}

/* Is what an opened store shows something the model permits? */
static inline void world_check(world *w, opc__store *s, const found *f) {
    int i, k = 0;
    for (i = 0; i < w->n; i++) {
        const wmsg *m = &w->m[i];
        int right = 0;
        int here = k < f->count && f->uid[k] == m->uid && f->tag[k] == m->tag && !m->gone;
        if (here) {
            if (m->ack_durable) world_bad(w, "an acknowledged message came back", m->uid);
            if (s != NULL) {
                opcomms_err rc = msg_read(s, f->ref[k], m->tag, m->len, &right);
                if (rc != OPCOMMS_OK && rc != OPCOMMS_E_IO) { /* that one only when made to fail */
                    world_bad(w, "a message cannot be read", m->uid);
                } else if (rc == OPCOMMS_OK && !right) {
                    world_bad(w, "a message has other content", m->uid);
                }
            }
            k++;
        } else if (m->durable && !m->acked) {
            world_bad(w, "a durable message is lost", m->uid);
        }
    }
    if (k != f->count) world_bad(w, "a message nobody stored, or in another order", f->uid[k]);
}

/* The store was opened again: what it shows is the truth from now on. */
static inline void world_settle(world *w) {
    int i, k = 0;
    world_check(w, w->s, &w->f);
    for (i = 0; i < w->n; i++) {
        wmsg *m = &w->m[i];
        m->position = 0;
        if (m->gone) continue;
        if (k < w->f.count && w->f.uid[k] == m->uid && w->f.tag[k] == m->tag) {
            m->durable = 1;
            m->acked = 0;
            m->ref = w->f.ref[k++];
        } else if (m->acked) {
            m->ack_durable = 1;
        } else {
            if (m->written) world_bad(w, "a written message died with the process", m->uid);
            m->gone = 1;
        }
        m->written = 0;
    }
}

static inline opcomms_err world_open(world *w) {
    opcomms_err rc = log_open_with(&w->o, &w->s, &w->f, &w->err);
    if (rc != OPCOMMS_OK) {
        w->s = NULL;
        return rc;
    }
    world_settle(w);
    return rc;
}

static inline void world_init(world *w, fdisk *d, uint64_t seed, int durability) {
    memset(w, 0, sizeof *w);
    w->d = d;
    w->rng = seed;
    w->o = log_options(d);
    w->o.durability = durability;
}

static inline opcomms_err world_put(world *w, uint64_t len) {
    wmsg *m = &w->m[w->n];
    uint64_t uid = 0, ref = 0, position = 0;
    uint8_t tag = (uint8_t)(w->n + 1);
    opcomms_err rc;
    int i;
    if (w->n == WORLD_MSGS) return OPCOMMS_OK;
    rc = msg_put(w->s, tag, len, &uid, &ref, &position);
    if (rc != OPCOMMS_OK) return rc;
    memset(m, 0, sizeof *m);
    m->uid = uid;
    m->ref = ref;
    m->position = position;
    m->len = len;
    m->tag = tag;
    for (i = 0; i < w->n; i++) {
        if (w->m[i].gone && w->o.durability == 0) continue; /* nobody saw it */
        if (w->m[i].uid >= uid) world_bad(w, "a number is used twice", uid);
    }
    w->n++;
    return rc;
}

static inline opcomms_err world_ack(world *w) {
    int i, k, from = (int)fd_below(&w->rng, (uint64_t)w->n + 1);
    for (k = 0; k < w->n; k++) {
        wmsg *m = &w->m[i = (from + k) % w->n];
        opcomms_err rc;
        if (m->acked || m->gone || m->ack_durable) continue;
        if (w->o.durability == 0 && !m->durable) continue;
        rc = w->s->c->ack(w->s, m->ref, m->uid, &m->ack_position);
        if (rc == OPCOMMS_E_AGAIN) return flush_rc(w->s);
        if (rc == OPCOMMS_OK) m->acked = 1;
        return rc;
    }
    return OPCOMMS_OK;
}

/* A large message that is given up again: its fragments stay in the log. */
static inline opcomms_err world_abandoned_put(world *w) {
    static const uint8_t zero[16384];
    uint32_t put = 0;
    opcomms_err rc = w->s->c->begin(w->s, &put);
    if (rc != OPCOMMS_OK) return rc;
    rc = w->s->c->data(w->s, put, zero, sizeof zero);
    if (rc == OPCOMMS_OK) rc = w->s->c->data(w->s, put, zero, 100);
    w->s->c->abort(w->s, put);
    return rc == OPCOMMS_E_AGAIN ? flush_rc(w->s) : rc;
}

static inline opcomms_err world_reopen(world *w, int clean) {
    uint64_t written = w->s->c->written(w->s);
    opcomms_err rc = OPCOMMS_OK;
    int i;
    if (clean) {
        rc = w->s->c->close(w->s);
        w->s = NULL;
        if (rc != OPCOMMS_OK) return rc;
    } else {
        log_abandon(w->s);
        w->s = NULL;
    }
    for (i = 0; i < w->n; i++) { /* what was written survives the death of the process */
        wmsg *m = &w->m[i];
        m->written = !m->gone && m->position <= written;
        if (!m->gone && clean) m->durable = 1;
    }
    return world_open(w);
}

static inline uint64_t world_size(uint64_t *rng) {
    switch (fd_below(rng, 16)) {
    case 0: return 0;
    case 1: return 1;
    case 2: return 500 + fd_below(rng, 3000);
    case 3: return 16380 + fd_below(rng, 8);
    case 4: return 16384 + fd_below(rng, 24000);
    default: return fd_below(rng, 120);
    }
}

/* One random step of a program's life with its log. */
static inline opcomms_err world_step(world *w) {
    opcomms_err rc = OPCOMMS_OK;
    uint64_t what = fd_below(&w->rng, 100);
    if (what < 45) {
        rc = world_put(w, world_size(&w->rng));
    } else if (what < 60) {
        rc = world_ack(w);
    } else if (what < 82) {
        rc = flush_rc(w->s);
    } else if (what < 90) {
        rc = w->s->c->write(w->s);
    } else if (what < 91) {
        if (w->s->c->ahead_begin(w->s) == OPCOMMS_OK) {
            rc = w->s->c->flush_end(w->s, w->s->c->flush_run(w->s));
        }
    } else if (what < 93) {
        rc = world_abandoned_put(w);
    } else if (what < 97) {
        return world_reopen(w, 1);
    } else {
        return world_reopen(w, 0);
    }
    if (rc == OPCOMMS_OK) world_note(w);
    return rc;
}

#endif
