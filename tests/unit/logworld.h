/* A log on a fake disk and a model of what it must hold: messages that were reported durable are
   found, those whose end was durable are not, nothing else is, every byte is right, what became of
   queued ones is known, and what belongs together is there together. For the tests of the log. */
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
    uint8_t tag[FOUND_MAX]; /* first byte of the sender, or of the server */
    uint8_t kind[FOUND_MAX];
    uint32_t attempts[FOUND_MAX];
    int count;
    uint64_t state;    /* the last note of that kind, as a number */
    uint64_t seen;     /* the highest number of a stream */
    uint64_t notes;
    opc__epoch opened; /* the last one noted */
    int wrong;         /* what cannot be right */
    /* for compaction, or NULL */
    int (*live)(void *user, uint64_t uid);
    void (*moved)(void *user, uint64_t uid, uint64_t ref);
    opcomms_err (*all_notes)(void *user);
    void (*switched)(void *user, int done);
    void *w;
} found;

/* What becomes of a queued message follows from how often it was tried. */
static inline int try_dead(uint32_t attempts) { return attempts % 4 == 3; }

static inline opcomms_err on_found(void *user, uint64_t uid, uint64_t ref, const opc__msg_meta *m) {
    found *f = (found *)user;
    if (f->count == FOUND_MAX) return OPCOMMS_E_LIMIT;
    f->uid[f->count] = uid;
    f->ref[f->count] = ref;
    f->bytes[f->count] = m->bytes;
    f->tag[f->count] = m->kind == OPC__KIND_IN ? m->from[0] : m->server[0];
    f->kind[f->count] = m->kind;
    f->attempts[f->count] = m->attempts;
    f->wrong += f->count > 0 && f->uid[f->count - 1] >= uid;
    f->wrong += m->uid != uid;
    if (m->kind == OPC__KIND_IN) {
        f->wrong += m->attempts != 0;
    } else {
        f->wrong += (m->kind == OPC__KIND_DEAD) != try_dead(m->attempts);
        f->wrong += m->code != -(int32_t)m->attempts || m->tried != m->attempts % 4;
        f->wrong += m->dead_s != (try_dead(m->attempts) ? 77 + (int64_t)m->attempts : 0);
    }
    f->count++;
    return OPCOMMS_OK;
}

static inline opcomms_err on_seen(void *user, const opc__msg_meta *m) {
    found *f = (found *)user;
    f->wrong += m->stream == OPC__STREAM_NONE || m->number <= f->seen || m->kind != OPC__KIND_IN;
    f->wrong += m->epoch.counter != 7 || m->epoch.random != ~m->number;
    if (m->number > f->seen) f->seen = m->number;
    return OPCOMMS_OK;
}

static inline opcomms_err on_note(void *user, unsigned type, const uint8_t *body, size_t n) {
    found *f = (found *)user;
    f->notes++;
    if (type == OPC__NOTE_OPENED) {
        f->wrong += n != 40 || opc__buf_be64(body) <= f->opened.counter;
        f->opened.counter = opc__buf_be64(body);
        f->opened.random = opc__buf_be64(body + 8);
    } else if (type == OPC__NOTE_STATE) {
        f->wrong += n < 8 || opc__buf_be64(body) <= f->state;
        f->state = opc__buf_be64(body);
    } else if (type == OPC__NOTE_SEEN && n == 16) { /* of a compaction */
        f->wrong += opc__buf_be64(body) < f->seen;
        f->seen = opc__buf_be64(body);
    }
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
    opc__log_options with = *o;
    opc__store_owner owner;
    memset(&owner, 0, sizeof owner);
    owner.user = f;
    owner.found = on_found;
    owner.seen = on_seen;
    owner.note = on_note;
    owner.live = f->live;
    owner.moved = f->moved;
    owner.notes = f->all_notes;
    owner.switched = f->switched;
    with.owner = &owner;
    f->count = f->wrong = 0;
    f->state = f->seen = f->notes = 0;
    memset(&f->opened, 0, sizeof f->opened);
    memset(err, 0, sizeof *err);
    return opc__log_open(&with, out, err);
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

enum { MSG_PLAIN, MSG_QUEUED, MSG_STREAM, MSG_OWN, MSG_KINDS };

/* The description of message `tag`; `number` of those of a stream. */
static inline void msg_meta(opc__msg_meta *m, int what, uint8_t tag, uint64_t number,
                            uint64_t len) {
    static const char own[] = "0100000000000000000000000000000000000000000000000000000000000000";
    memset(m, 0, sizeof *m);
    m->from_id = tag;
    m->dest = (const uint8_t *)"destination";
    m->dest_len = tag % 12u;
    m->dest_id = (uint8_t)(tag + 1);
    m->flags = tag & 1u;
    m->bytes = len;
    m->wire_bytes = len * 3;
    m->time_s = 1700000000 + tag;
    if (what == MSG_QUEUED) {
        m->kind = OPC__KIND_OUT;
        memset(m->server, tag, sizeof m->server);
        m->address.family = tag % 2 ? 4 : 6;
        m->address.port = (uint16_t)(tag * 100u);
        memset(m->address.ip, tag + 1, tag % 2 ? 4 : 16);
        m->level = tag % 4;
        m->options = (uint8_t)(tag ^ 0x5a);
        m->attempts_max = tag * 1000u;
        m->expires_s = -(int64_t)tag;
        m->context = (const uint8_t *)"what the caller knows it by";
        m->context_len = tag % 20u;
        m->epoch.counter = tag * 3u;
        m->epoch.random = tag * 5u;
    } else {
        memset(m->from, tag, sizeof m->from);
    }
    if (what == MSG_STREAM || what == MSG_OWN) {
        m->stream = what == MSG_STREAM ? OPC__STREAM_DIRECT : OPC__STREAM_QUEUE;
        m->epoch.counter = 7;
        m->epoch.random = ~number;
        m->number = number;
    }
    if (what == MSG_OWN) {
        m->dest = (const uint8_t *)own;
        m->dest_len = 64;
    }
}

/* The data of message `tag`, of len bytes, in pieces; flushes when the store asks for it. */
static inline opcomms_err msg_data(opc__store *s, uint8_t tag, uint64_t len, uint32_t *put) {
    uint8_t data[4096];
    uint64_t at = 0;
    opcomms_err rc = s->c->begin(s, put);
    if (rc != OPCOMMS_OK) return rc;
    while (rc == OPCOMMS_OK && at < len) {
        size_t n = len - at < sizeof data ? (size_t)(len - at) : sizeof data;
        msg_fill(data, tag, at, n);
        rc = s->c->data(s, *put, data, n);
        if (rc == OPCOMMS_E_AGAIN) {
            rc = flush_rc(s);
            continue;
        }
        at += n;
    }
    if (rc != OPCOMMS_OK) s->c->abort(s, *put);
    return rc;
}

/* Stores message `tag`. */
static inline opcomms_err msg_put_as(opc__store *s, int what, uint8_t tag, uint64_t number,
                                     uint64_t len, uint64_t *uid, uint64_t *ref,
                                     uint64_t *position) {
    opc__msg_meta m;
    uint32_t put = 0;
    opcomms_err rc = msg_data(s, tag, len, &put);
    if (rc != OPCOMMS_OK) return rc;
    msg_meta(&m, what, tag, number, len);
    while (rc == OPCOMMS_OK) {
        rc = s->c->commit(s, put, &m, uid, ref, position);
        if (rc != OPCOMMS_E_AGAIN) break;
        rc = flush_rc(s);
    }
    if (rc != OPCOMMS_OK) s->c->abort(s, put);
    return rc;
}

static inline opcomms_err msg_put(opc__store *s, uint8_t tag, uint64_t len, uint64_t *uid,
                                  uint64_t *ref, uint64_t *position) {
    return msg_put_as(s, MSG_PLAIN, tag, 0, len, uid, ref, position);
}

static inline int msg_same(const opc__msg_meta *a, const opc__msg_meta *b) {
    return a->kind == b->kind && memcmp(a->from, b->from, 32) == 0 && a->from_id == b->from_id &&
           a->dest_id == b->dest_id && a->flags == b->flags && a->dest_len == b->dest_len &&
           memcmp(a->dest, b->dest, a->dest_len) == 0 && a->bytes == b->bytes &&
           a->wire_bytes == b->wire_bytes && a->time_s == b->time_s && a->stream == b->stream &&
           a->epoch.counter == b->epoch.counter && a->epoch.random == b->epoch.random &&
           a->number == b->number && memcmp(a->server, b->server, 32) == 0 &&
           a->address.family == b->address.family && a->address.port == b->address.port &&
           memcmp(a->address.ip, b->address.ip, 16) == 0 && a->level == b->level &&
           a->options == b->options && a->attempts_max == b->attempts_max &&
           a->expires_s == b->expires_s && a->context_len == b->context_len &&
           (a->context_len == 0 || memcmp(a->context, b->context, a->context_len) == 0);
}

static inline opcomms_err msg_read(opc__store *s, uint64_t ref, uint8_t tag, uint64_t len,
                                   int *right) {
    uint8_t buf[4096], dest[1024], context[OPC__CONTEXT_MAX], fill = tag;
    opc__msg_meta m, want;
    uint64_t at = 0;
    size_t more = 1;
    opcomms_err rc = s->c->meta(s, ref, &m, dest, context);
    *right = 0;
    if (rc != OPCOMMS_OK) return rc;
    msg_meta(&want,
             m.kind == OPC__KIND_OUT             ? MSG_QUEUED
             : m.stream == OPC__STREAM_NONE   ? MSG_PLAIN
             : m.stream == OPC__STREAM_DIRECT ? MSG_STREAM
                                              : MSG_OWN,
             tag, m.number, len);
    if (m.kind == OPC__KIND_OUT) want.number = m.uid;
    if (m.kind == OPC__KIND_OUT && m.attempts_max == 0) {
        want.attempts_max = 0;
        fill = 0;
    }
    if (!msg_same(&m, &want)) return OPCOMMS_OK;
    while (at < len) {
        size_t got = 0, i;
        rc = s->c->read(s, ref, at, buf, sizeof buf, &got);
        if (rc != OPCOMMS_OK || got == 0) return rc;
        for (i = 0; i < got; i++) {
            if (buf[i] != msg_byte(fill, at + i)) return OPCOMMS_OK;
        }
        at += got;
    }
    rc = s->c->read(s, ref, len, buf, sizeof buf, &more);
    *right = at == len && more == 0;
    return rc;
}

/* ---- the model ---- */

typedef struct wmsg {
    uint64_t uid, ref, to, position, ack_position, len;
    uint8_t tag, durable, written, acked, ack_durable, gone;
    uint8_t what;
    uint64_t number;                  /* of its stream */
    uint64_t group;                   /* the note that was stored with it, or 0 */
    uint32_t attempts, attempts_sure, attempts_written; /* appended, durable, as `written` */
    uint64_t try_position;
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
    uint64_t state, state_sure, state_written, state_position; /* notes, as of a message */
    uint64_t number;       /* of the stream */
    uint64_t opened;       /* the last open counter */
    uint64_t compactions, gave_up;
    int calm;              /* no compactions */
    int half;              /* a message is being received */
    uint32_t half_put;
    uint64_t half_len;
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
        if (m->try_position <= durable) m->attempts_sure = m->attempts;
    }
    if (w->state_position <= durable) w->state_sure = w->state;
}

/* What an opened store shows of queued messages, notes and streams. */
static inline void world_check_rest(world *w, const wmsg *m, const found *f, int k) {
    if (f->kind[k] == OPC__KIND_IN ? m->what == MSG_QUEUED : m->what != MSG_QUEUED) {
        world_bad(w, "a message of another kind", m->uid);
    }
    if (f->attempts[k] < m->attempts_sure || f->attempts[k] > m->attempts) {
        world_bad(w, "a message was tried more or less often", m->uid);
    }
    if (m->group > f->state) world_bad(w, "a message without the note it belongs to", m->uid);
    if (m->number > f->seen) world_bad(w, "a message whose number was not seen", m->uid);
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
            world_check_rest(w, m, f, k);
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
        } else if (!m->gone && m->group != 0 && m->group <= f->state && !m->acked) {
            world_bad(w, "a note without the message it belongs to", m->uid);
        }
        if (m->durable && m->number > f->seen) world_bad(w, "a number is not seen", m->number);
    }
    if (f->state < w->state_sure || f->state > w->state) world_bad(w, "the last note", f->state);
    if (f->seen > w->number) world_bad(w, "a number of nothing", f->seen);
    if (f->wrong) world_bad(w, "what was told contradicts itself", (uint64_t)f->wrong);
    if (k != f->count) world_bad(w, "a message nobody stored, or in another order", f->uid[k]);
}

/* The store was opened again: what it shows is the truth from now on. */
static inline void world_settle(world *w) {
    int i, k = 0;
    opc__epoch now;
    world_check(w, w->s, &w->f);
    w->s->c->epoch(w->s, &now);
    if (now.counter <= w->opened || now.counter != w->f.opened.counter ||
        now.random != w->f.opened.random || w->s->c->durable(w->s) != w->s->c->end(w->s)) {
        world_bad(w, "the note of this opening", now.counter);
    }
    w->opened = now.counter;
    if (w->f.state < w->state_written) world_bad(w, "a written note died", w->f.state);
    w->state = w->state_sure = w->f.state;
    w->state_written = 0;
    for (i = 0; i < w->n; i++) {
        wmsg *m = &w->m[i];
        m->position = 0;
        if (m->gone) continue;
        if (k < w->f.count && w->f.uid[k] == m->uid && w->f.tag[k] == m->tag) {
            m->durable = 1;
            m->acked = 0;
            if (w->f.attempts[k] < m->attempts_written) world_bad(w, "a written try died", m->uid);
            m->attempts_written = 0;
            m->attempts = m->attempts_sure = w->f.attempts[k];
            m->ref = w->f.ref[k++];
        } else if (m->acked) { /* or lost, together with its end */
            m->ack_durable = 1;
            if (!m->durable) m->number = 0;
        } else {
            if (m->written) world_bad(w, "a written message died with the process", m->uid);
            m->gone = 1;
        }
        m->written = 0;
    }
}

static inline opcomms_err world_open(world *w) {
    opcomms_err rc = log_open_with(&w->o, &w->s, &w->f, &w->err);
    w->half = 0;
    if (rc != OPCOMMS_OK) {
        w->s = NULL;
        return rc;
    }
    world_settle(w);
    return rc;
}

/* ---- what a compaction asks ---- */

static inline wmsg *world_of(world *w, uint64_t uid) {
    int i;
    for (i = w->n - 1; i >= 0; i--) {
        if (w->m[i].uid == uid && !w->m[i].gone) return &w->m[i];
    }
    return NULL;
}

static inline int world_live(void *user, uint64_t uid) {
    wmsg *m = world_of((world *)((found *)user)->w, uid);
    return m == NULL || m->acked || m->ack_durable ? 0 : 1 + (int)m->attempts;
}

static inline void world_moved(void *user, uint64_t uid, uint64_t ref) {
    wmsg *m = world_of((world *)((found *)user)->w, uid);
    if (m != NULL) m->to = ref;
}

static inline opcomms_err world_notes(void *user) {
    world *w = (world *)((found *)user)->w;
    uint8_t body[16];
    uint64_t position = 0;
    opcomms_err rc = OPCOMMS_OK;
    memset(body, 0, sizeof body);
    opc__buf_put64(body, w->number);
    if (w->number > 0) rc = w->s->c->note(w->s, OPC__NOTE_SEEN, body, 16, &position);
    opc__buf_put64(body, w->state);
    if (rc == OPCOMMS_OK && w->state > 0) {
        rc = w->s->c->note(w->s, OPC__NOTE_STATE, body, 9, &position);
    }
    return rc;
}

static inline void world_switched(void *user, int done) {
    world *w = (world *)((found *)user)->w;
    int i;
    for (i = 0; i < w->n; i++) {
        wmsg *m = &w->m[i];
        if (done && !m->gone && !m->acked && !m->ack_durable) {
            if (m->to == 0) world_bad(w, "a message was not moved", m->uid);
            m->ref = m->to;
        }
        m->to = 0;
    }
    if (done) {
        w->compactions++;
    } else {
        w->gave_up++;
    }
}

/* One step of a compaction. Whatever happens to it, the log goes on. */
static inline opcomms_err world_compact(world *w, int force) {
    opc__store *s = w->s;
    uint64_t switched = w->compactions;
    uint64_t end = s->c->end(s), durable = s->c->durable(s), position = 0;
    int flush = 0, last, i, steps = 1 + (int)fd_below(&w->rng, 12);
    opcomms_err rc = OPCOMMS_OK;
    for (i = 0; rc == OPCOMMS_OK && !flush && i < steps && !w->calm; i++) {
        rc = s->c->compact(s, force, &flush);
    }
    if (rc == OPCOMMS_E_POISONED) return rc;
    if (rc != OPCOMMS_OK && flush) world_bad(w, "a flush of what failed", 0);
    if (!flush) return OPCOMMS_OK;
    last = s->c->room(s) == 0;
    if (last && s->c->ack(s, 0, 1, &position) != OPCOMMS_E_AGAIN) world_bad(w, "no room", 1);
    if (s->c->flush_begin(s) != OPCOMMS_E_AGAIN) world_bad(w, "two flushes", 1);
    rc = s->c->flush_end(s, s->c->flush_run(s));
    if (s->c->end(s) != end || s->c->durable(s) < durable) world_bad(w, "a position fell", end);
    if (rc == OPCOMMS_OK && w->compactions != switched && s->c->durable(s) != end) {
        world_bad(w, "a compacted log is not durable", end);
    }
    return rc;
}

static inline void world_init(world *w, fdisk *d, uint64_t seed, int durability) {
    memset(w, 0, sizeof *w);
    w->d = d;
    w->rng = seed;
    w->o = log_options(d);
    w->o.durability = durability;
    w->o.slice_bytes = seed % 4 == 0 ? 0 : seed % 4 == 1 ? 20000 : 300 * (seed % 4);
    w->f.w = w;
    w->f.live = world_live;
    w->f.moved = world_moved;
    w->f.all_notes = world_notes;
    w->f.switched = world_switched;
}

static inline void world_add(world *w, int what, uint64_t len, uint64_t uid, uint64_t ref,
                             uint64_t position) {
    wmsg *m = &w->m[w->n];
    uint8_t tag = (uint8_t)(w->n + 1);
    int i;
    memset(m, 0, sizeof *m);
    m->what = (uint8_t)what;
    m->number = what == MSG_STREAM || what == MSG_OWN ? w->number : 0;
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
}

/* The next message of the world. */
static inline opcomms_err world_put_as(world *w, int what, uint64_t len) {
    uint64_t uid = 0, ref = 0, position = 0;
    opcomms_err rc;
    if (what == MSG_STREAM || what == MSG_OWN) w->number++;
    rc = msg_put_as(w->s, what, (uint8_t)(w->n + 1), w->number, len, &uid, &ref, &position);
    if (rc == OPCOMMS_OK) world_add(w, what, len, uid, ref, position);
    return rc;
}

static inline opcomms_err world_put(world *w, uint64_t len) {
    int what = (int)fd_below(&w->rng, MSG_KINDS);
    return w->n == WORLD_MSGS ? OPCOMMS_OK : world_put_as(w, what, len);
}

/* Its log closes in order, and nothing was wrong. */
static inline void world_close(world *w) {
    if (w->s != NULL) CHECK_EQ(w->s->c->close(w->s), OPCOMMS_OK);
    w->s = NULL;
    CHECK_EQ(w->bad, 0);
    CHECK_EQ(mem.used, 0);
}

static inline opcomms_err world_end(world *w, wmsg *m) {
    opc__store *s = w->s;
    if (m->what != MSG_QUEUED) return s->c->ack(s, m->ref, m->uid, &m->ack_position);
    return s->c->done(s, m->ref, m->uid,
                      try_dead(m->attempts) ? OPC__DONE_TAKEN : OPC__DONE_DELIVERED,
                      &m->ack_position);
}

static inline opcomms_err world_try(world *w) {
    wmsg *m = &w->m[fd_below(&w->rng, (uint64_t)w->n + 1) % WORLD_MSGS];
    opc__try t;
    opcomms_err rc;
    if (m->uid == 0 || m->what != MSG_QUEUED || m->acked || m->gone || m->ack_durable) {
        return OPCOMMS_OK;
    }
    do {
        memset(&t, 0, sizeof t);
        t.uid = m->uid;
        t.attempts = m->attempts + 1;
        t.code = -(int32_t)t.attempts;
        t.tried = t.attempts % 4;
        t.dead = try_dead(t.attempts);
        t.time_s = 77 + (int64_t)t.attempts;
        rc = w->s->c->tried(w->s, &t, &m->try_position);
        if (rc == OPCOMMS_E_AGAIN) return flush_rc(w->s);
        if (rc == OPCOMMS_OK) m->attempts = t.attempts;
    } while (rc == OPCOMMS_OK && fd_below(&w->rng, 3) > 0);
    return rc;
}

/* A message consumed, an answer queued, and the state between: all or none. */
static inline opcomms_err world_group(world *w) {
    wmsg *old = &w->m[fd_below(&w->rng, (uint64_t)w->n + 1) % WORLD_MSGS];
    uint64_t uid = 0, ref = 0, position = 0, len = fd_below(&w->rng, 20000);
    uint8_t note[900], tag = (uint8_t)(w->n + 1);
    uint32_t put = 0;
    size_t n = 8 + (size_t)fd_below(&w->rng, 890), need;
    int over = old->uid != 0 && !old->acked && !old->gone && !old->ack_durable &&
               (old->durable || w->o.durability != 0);
    opc__msg_meta m;
    opcomms_err rc;
    if (w->n == WORLD_MSGS) return OPCOMMS_OK;
    rc = msg_data(w->s, tag, len, &put);
    if (rc != OPCOMMS_OK) return rc;
    msg_meta(&m, MSG_QUEUED, tag, 0, len);
    need = opc__store_need(&m) + OPC__STORE_OP + n + (over ? OPC__STORE_DONE : 0);
    rc = w->s->c->hold(w->s, need);
    if (rc == OPCOMMS_E_AGAIN) rc = flush_rc(w->s);
    if (rc == OPCOMMS_OK) rc = w->s->c->hold(w->s, need);
    if (rc == OPCOMMS_OK) rc = w->s->c->commit(w->s, put, &m, &uid, &ref, &position);
    if (rc != OPCOMMS_OK) {
        w->s->c->abort(w->s, put);
        return rc;
    }
    world_add(w, MSG_QUEUED, len, uid, ref, position);
    w->m[w->n - 1].group = ++w->state;
    memset(note, 3, sizeof note);
    opc__buf_put64(note, w->state);
    if (over) rc = world_end(w, old);
    if (over && rc == OPCOMMS_OK) old->acked = 1;
    if (rc == OPCOMMS_OK) rc = w->s->c->note(w->s, OPC__NOTE_STATE, note, n, &w->state_position);
    return rc;
}

static inline opcomms_err world_ack(world *w) {
    int i, k, from = (int)fd_below(&w->rng, (uint64_t)w->n + 1);
    for (k = 0; k < w->n; k++) {
        wmsg *m = &w->m[i = (from + k) % w->n];
        opcomms_err rc;
        if (m->acked || m->gone || m->ack_durable) continue;
        if (w->o.durability == 0 && !m->durable) continue;
        rc = world_end(w, m);
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

/* A large message that takes several steps to come. */
static inline opcomms_err world_half(world *w) {
    uint8_t data[16384], tag = (uint8_t)(w->n + 1);
    opc__msg_meta m;
    uint64_t uid = 0, ref = 0, position = 0;
    opcomms_err rc = OPCOMMS_OK;
    if (w->n == WORLD_MSGS) return OPCOMMS_OK;
    if (!w->half) {
        rc = w->s->c->begin(w->s, &w->half_put);
        w->half = rc == OPCOMMS_OK;
        w->half_len = 0;
        return rc;
    }
    if (w->half_len < 40000) { /* the tag is known at the end only: all bytes are as of tag 0 */
        msg_fill(data, 0, w->half_len, sizeof data);
        rc = w->s->c->data(w->s, w->half_put, data, sizeof data);
        if (rc == OPCOMMS_OK) w->half_len += sizeof data;
        return rc == OPCOMMS_E_AGAIN ? flush_rc(w->s) : rc;
    }
    msg_meta(&m, MSG_QUEUED, tag, 0, w->half_len);
    m.attempts_max = 0; /* that says so */
    rc = w->s->c->commit(w->s, w->half_put, &m, &uid, &ref, &position);
    if (rc == OPCOMMS_E_AGAIN) return flush_rc(w->s);
    if (rc != OPCOMMS_OK) return rc;
    w->half = 0;
    world_add(w, MSG_QUEUED, w->half_len, uid, ref, position);
    return rc;
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
        if (clean) m->attempts_sure = m->attempts;
        m->attempts_written = m->try_position <= written ? m->attempts : 0;
    }
    if (clean) w->state_sure = w->state;
    w->state_written = w->state_position <= written ? w->state : 0;
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
    if (what < 34) {
        rc = world_put(w, world_size(&w->rng));
    } else if (what < 42) {
        rc = world_try(w);
    } else if (what < 46) {
        rc = world_group(w);
    } else if (what < 58) {
        rc = world_ack(w);
    } else if (what < 72) {
        rc = flush_rc(w->s);
    } else if (what < 79) {
        rc = w->s->c->write(w->s);
    } else if (what < 87) {
        rc = world_compact(w, 1);
    } else if (what < 90) {
        rc = world_half(w);
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
