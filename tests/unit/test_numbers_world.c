/* A sender and a receiver with logs, over the structures that tell duplicates and rollback: copies
   of logs put back in every combination; and both crashing, losing acknowledgements, compacting and
   sending again at random. The logs here are lists, of which a crash leaves what was synced. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#include "test.h"

#include <stddef.h>

static void *take(void *user, size_t n) {
    (void)user;
    return malloc(n);
}
static void drop(void *user, void *p, size_t n) {
    (void)user;
    (void)n;
    free(p);
}
static opc__mem mem = {take, drop, NULL, 0, 0};

static uint64_t seed;
static uint32_t roll(uint32_t n) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33) % n;
}
static uint64_t bits(void) { return ((uint64_t)roll(1u << 30) << 30 | roll(1u << 30)) + 1; }

/* ---- logs ---- */

enum { NOTE = 1, QUEUED, OVER, IN };
#define BODY 640

typedef struct op {
    int type;
    unsigned note;
    size_t len;
    uint8_t body[BODY];
    uint64_t uid; /* QUEUED, OVER, IN */
    opc__epoch epoch;
    uint64_t number; /* IN */
    int stream;
    uint64_t what; /* which message it is */
    int uncertain;
} op;

#define OPS 6000
typedef struct disk {
    op *ops;
    int count;
    int durable; /* of them */
    uint64_t counter;
    uint64_t uid; /* highest given out */
} disk;

typedef struct node {
    uint8_t key[32];
    opc__numbers numbers;
    disk d;
    opc__epoch now;
    uint64_t direct; /* numbers given to blocking sends of this epoch */
} node;

static op *append(disk *d, int type) {
    op *o;
    CHECK(d->count < OPS);
    if (d->count == OPS) exit(1);
    o = &d->ops[d->count++];
    memset(o, 0, offsetof(op, body));
    o->type = type;
    o->uid = 0;
    o->uncertain = 0;
    return o;
}
static opcomms_err note(void *user, unsigned type, const uint8_t *body, size_t n) {
    op *o = append((disk *)user, NOTE);
    CHECK(n <= BODY);
    if (n > BODY) exit(1);
    o->note = type;
    o->len = n;
    memcpy(o->body, body, n);
    return OPCOMMS_OK;
}

static opc__msg_meta meta(const uint8_t *from, const op *o) {
    opc__msg_meta m;
    memset(&m, 0, sizeof m);
    memcpy(m.from, from, 32);
    m.uid = o->uid;
    m.epoch = o->epoch;
    m.number = o->number;
    m.stream = (uint8_t)o->stream;
    return m;
}

/* Opens what a crash has left. */
static void start(node *x, const node *from) {
    uint8_t body[OPC__NUMBERS_OPENED];
    int i;
    opc__numbers_free(&x->numbers);
    opc__numbers_init(&x->numbers, &mem, x->key, 16, 16, 1);
    x->d.count = x->d.durable;
    for (i = 0; i < x->d.count; i++) {
        const op *o = &x->d.ops[i];
        opcomms_err rc = OPCOMMS_OK;
        if (o->type == NOTE) {
            rc = opc__numbers_recover_note(&x->numbers, o->note, o->body, o->len);
        }
        if (o->type == IN) {
            opc__msg_meta m = meta(from->key, o);
            rc = opc__numbers_recover_seen(&x->numbers, &m);
        }
        if (o->type != NOTE && o->type != OVER && o->uid > x->d.uid) x->d.uid = o->uid;
        CHECK_EQ(rc, OPCOMMS_OK);
    }
    x->now.counter = ++x->d.counter;
    x->now.random = bits();
    x->direct = 0;
    memset(body, 0, sizeof body);
    opc__native_put_epoch(body, &x->now);
    (void)note(&x->d, OPC__NOTE_OPENED, body, sizeof body);
    x->d.durable = x->d.count;
    CHECK_EQ(opc__numbers_recover_note(&x->numbers, OPC__NOTE_OPENED, body, sizeof body),
             OPCOMMS_OK);
}

static void born(node *x, int id) {
    memset(x, 0, sizeof *x);
    x->key[0] = (uint8_t)id;
    x->d.ops = (op *)malloc(OPS * sizeof(op));
}
static void dead(node *x) {
    opc__numbers_free(&x->numbers);
    free(x->d.ops);
}

static void copy_disk(disk *to, const disk *from) {
    op *ops = to->ops;
    *to = *from;
    to->ops = ops != NULL ? ops : (op *)malloc(OPS * sizeof(op));
    memcpy(to->ops, from->ops, (size_t)from->count * sizeof(op));
    to->count = to->durable;
}

static int is_over(const disk *d, uint64_t uid) {
    int i;
    for (i = d->count - 1; i >= 0; i--) {
        if (d->ops[i].type == OVER && d->ops[i].uid == uid) return 1;
    }
    return 0;
}

static void enqueue(node *s, uint64_t what) {
    op *o = append(&s->d, QUEUED);
    o->uid = ++s->d.uid;
    o->epoch = s->now;
    o->what = what;
}

/* ---- a connection ---- */

typedef struct wire {
    int up;
    uint32_t queue; /* the receiver's streams */
    uint32_t direct;
    uint64_t sent; /* highest uid that has left on it */
} wire;

static opc__hello greeting(const node *x, const node *to) {
    opc__hello h;
    int i;
    uint32_t k;
    memset(&h, 0, sizeof h);
    h.now = x->now;
    opc__numbers_known(&x->numbers, to->key, &h.known);
    for (i = 0; i < x->d.count; i++) {
        const op *o = &x->d.ops[i];
        if (o->type != QUEUED || o->epoch.counter == x->now.counter || is_over(&x->d, o->uid)) {
            continue;
        }
        for (k = 0; k < h.count && h.pending[k].counter != o->epoch.counter;) k++;
        if (k < h.count) continue;
        CHECK(h.count < OPC__NATIVE_EPOCHS);
        h.pending[h.count++] = o->epoch;
    }
    return h;
}

static int judge(node *x, const node *peer, const opc__hello *h) {
    uint8_t body[OPC__NOTE_MAX];
    int changed = 0, whose = 0;
    opcomms_err rc = opc__numbers_judge(&x->numbers, peer->key, h, &changed, &whose);
    CHECK_EQ(rc, whose == 0 ? OPCOMMS_OK : OPCOMMS_E_ROLLBACK);
    if (changed) {
        size_t n = opc__numbers_peer_note(&x->numbers, peer->key, body);
        (void)note(&x->d, OPC__NOTE_PEER, body, n);
    }
    return whose;
}

static void over(node *s, uint64_t uid) {
    op *o = append(&s->d, OVER);
    o->uid = uid;
}
static void delivered(node *s, const opc__epoch *e, uint64_t up_to) {
    int i, n = s->d.count;
    for (i = 0; i < n; i++) {
        const op *o = &s->d.ops[i];
        if (o->type != QUEUED || o->uid > up_to || o->epoch.counter != e->counter) continue;
        CHECK_EQ(o->epoch.random, e->random);
        if (!is_over(&s->d, o->uid)) over(s, o->uid);
    }
}

static opc__numbers_key key_of(const node *s, int kind) {
    opc__numbers_key k;
    memset(&k, 0, sizeof k);
    memcpy(k.sender, s->key, 32);
    k.kind = (uint8_t)kind;
    k.epoch = s->now;
    return k;
}

/* 16 * what the sender found + what the receiver did; 0: they are connected. */
static int join(node *s, node *r, wire *l) {
    opc__hello from_s = greeting(s, r), from_r = greeting(r, s);
    int at_s = judge(s, r, &from_r), at_r = judge(r, s, &from_s);
    opc__numbers_key q = key_of(s, OPC__STREAM_QUEUE), d = key_of(s, OPC__STREAM_DIRECT);
    uint32_t k;
    memset(l, 0, sizeof *l);
    if (at_s != 0 || at_r != 0) return 16 * at_s + at_r;
    CHECK_EQ(opc__numbers_open(&r->numbers, &q, &l->queue), OPCOMMS_OK);
    CHECK_EQ(opc__numbers_open(&r->numbers, &d, &l->direct), OPCOMMS_OK);
    l->up = 1;
    for (k = 0; k <= from_s.count; k++) { /* STATE of each epoch; only what the disk has counts */
        const opc__epoch *e = k < from_s.count ? &from_s.pending[k] : &from_s.now;
        r->d.durable = r->d.count;
        delivered(s, e, opc__numbers_seen(&r->numbers, l->queue, e));
        CHECK(opc__numbers_announced(&r->numbers, s->key, e));
    }
    return 0;
}
static void part(node *r, wire *l) {
    if (!l->up) return;
    opc__numbers_close(&r->numbers, l->queue);
    opc__numbers_close(&r->numbers, l->direct);
    l->up = 0;
}

/* One message comes to the receiver: what it does with it. */
static int arrive(node *r, uint32_t stream, int kind, const opc__epoch *e, uint64_t number,
                  uint64_t what) {
    int verdict = opc__numbers_check(&r->numbers, stream, e, number);
    op *o;
    if (verdict != OPC__NUMBERS_NEW) return verdict;
    o = append(&r->d, IN);
    o->uid = ++r->d.uid;
    o->epoch = *e;
    o->number = number;
    o->stream = kind;
    o->what = what;
    o->uncertain = opc__numbers_uncertain(&r->numbers, stream, e);
    opc__numbers_take(&r->numbers, stream, e, number, o->uid);
    return verdict;
}

/* The next queued message that has not left on this connection: its place, or -1. Only what is on
   the disk leaves. */
static int next_out(const node *s, const wire *l) {
    int i;
    for (i = 0; i < s->d.durable; i++) {
        const op *o = &s->d.ops[i];
        if (o->type == QUEUED && o->uid > l->sent && !is_over(&s->d, o->uid)) return i;
    }
    return -1;
}

/* All that is pending, to the end, with every acknowledgement. */
static void flow(node *s, node *r, wire *l) {
    int i;
    s->d.durable = s->d.count;
    while ((i = next_out(s, l)) >= 0) {
        op *o = &s->d.ops[i];
        int verdict = arrive(r, l->queue, OPC__STREAM_QUEUE, &o->epoch, o->uid, o->what);
        CHECK(verdict == OPC__NUMBERS_NEW || verdict == OPC__NUMBERS_DUPLICATE);
        l->sent = o->uid;
        r->d.durable = r->d.count;
        over(s, o->uid);
    }
    s->d.durable = s->d.count;
}

/* How often this message is in the log; *uncertain: its last copy says so. */
static int copies(const node *r, uint64_t what, int *uncertain) {
    int i, n = 0;
    *uncertain = 0;
    for (i = 0; i < r->d.count; i++) {
        if (r->d.ops[i].type != IN || r->d.ops[i].what != what) continue;
        n++;
        *uncertain = r->d.ops[i].uncertain;
    }
    return n;
}

static void accepted(node *x, const node *peer) {
    uint8_t body[OPC__NOTE_MAX];
    size_t n;
    CHECK_EQ(opc__numbers_accept(&x->numbers, peer->key), OPCOMMS_OK);
    n = opc__numbers_peer_note(&x->numbers, peer->key, body);
    (void)note(&x->d, OPC__NOTE_PEER, body, n);
    x->d.durable = x->d.count;
}

static void queue(node *s, uint64_t what) {
    enqueue(s, what);
    s->d.durable = s->d.count;
}

/* A pair with some history: messages 1 and 2 delivered in the first openings, of which `saved` of
   each is a copy; 3 delivered after it, 4 queued. */
typedef struct world {
    node s;
    node r;
    disk saved_s;
    disk saved_r;
    wire l;
} world;

static void world_begin(world *w) {
    memset(w, 0, sizeof *w);
    seed = 1;
    born(&w->s, 1);
    born(&w->r, 2);
    start(&w->s, &w->r);
    start(&w->r, &w->s);
    queue(&w->s, 1);
    queue(&w->s, 2);
    CHECK_EQ(join(&w->s, &w->r, &w->l), 0);
    flow(&w->s, &w->r, &w->l);
    w->s.d.durable = w->s.d.count;
    copy_disk(&w->saved_s, &w->s.d);
    copy_disk(&w->saved_r, &w->r.d);
    part(&w->r, &w->l);
    start(&w->s, &w->r);
    start(&w->r, &w->s);
    queue(&w->s, 3);
    CHECK_EQ(join(&w->s, &w->r, &w->l), 0);
    flow(&w->s, &w->r, &w->l);
    part(&w->r, &w->l);
    w->s.d.durable = w->s.d.count;
}
static void restore(node *x, const disk *saved, const node *peer) {
    copy_disk(&x->d, saved);
    start(x, peer);
}
static void world_end(world *w) {
    dead(&w->s);
    dead(&w->r);
    free(w->saved_s.ops);
    free(w->saved_r.ops);
}

/* ---- copies put back ---- */

#define THEIRS OPC__NUMBERS_THEIRS
#define OURS OPC__NUMBERS_OURS

TEST(nothing_is_found_where_nothing_was_put_back) {
    world w;
    int i, u;
    world_begin(&w);
    for (i = 0; i < 5; i++) {
        if (i & 1) start(&w.s, &w.r);
        if (i & 2) start(&w.r, &w.s);
        queue(&w.s, 10u + (unsigned)i);
        CHECK_EQ(join(&w.s, &w.r, &w.l), 0);
        flow(&w.s, &w.r, &w.l);
        part(&w.r, &w.l);
    }
    for (i = 0; i < 5; i++) CHECK(copies(&w.r, 10u + (unsigned)i, &u) == 1 && !u);
    for (i = 1; i < 4; i++) CHECK(copies(&w.r, (unsigned)i, &u) == 1 && !u);
    world_end(&w);
}

TEST(a_copy_of_the_senders_log_is_found_by_both_and_goes_on_when_both_accept) {
    world w;
    int u;
    world_begin(&w);
    restore(&w.s, &w.saved_s, &w.r);
    queue(&w.s, 4);
    CHECK_EQ(join(&w.s, &w.r, &w.l), 16 * OURS + THEIRS);
    start(&w.r, &w.s); /* and again, after a restart of each */
    start(&w.s, &w.r);
    CHECK((join(&w.s, &w.r, &w.l) & 16 * OURS) != 0);
    CHECK(!w.l.up);
    CHECK(copies(&w.r, 4, &u) == 0);
    accepted(&w.s, &w.r);
    CHECK_EQ(join(&w.s, &w.r, &w.l) & 16 * OURS, 0); /* one has accepted, the other not yet */
    if (!w.l.up) accepted(&w.r, &w.s);
    CHECK_EQ(join(&w.s, &w.r, &w.l), 0);
    flow(&w.s, &w.r, &w.l);
    CHECK(copies(&w.r, 4, &u) == 1); /* neither lost nor twice */
    CHECK(copies(&w.r, 2, &u) == 1);
    world_end(&w);
}

TEST(accepting_on_the_senders_side_alone_is_not_enough) {
    world w;
    int u;
    world_begin(&w);
    restore(&w.s, &w.saved_s, &w.r);
    queue(&w.s, 4);
    CHECK_EQ(join(&w.s, &w.r, &w.l), 16 * OURS + THEIRS);
    accepted(&w.s, &w.r);
    CHECK_EQ(join(&w.s, &w.r, &w.l), THEIRS);
    start(&w.s, &w.r); /* also when it is opened until its counter is ahead: 4 tells */
    start(&w.s, &w.r);
    CHECK_EQ(join(&w.s, &w.r, &w.l), THEIRS);
    accepted(&w.r, &w.s);
    CHECK_EQ(join(&w.s, &w.r, &w.l), 0);
    flow(&w.s, &w.r, &w.l);
    CHECK(copies(&w.r, 4, &u) == 1 && u); /* of an epoch that may have come: uncertain */
    queue(&w.s, 5);
    flow(&w.s, &w.r, &w.l);
    CHECK(copies(&w.r, 5, &u) == 1 && !u); /* of a later one: not */
    world_end(&w);
}

TEST(accepting_on_the_receivers_side_alone_is_not_enough) {
    world w;
    int u;
    world_begin(&w);
    restore(&w.s, &w.saved_s, &w.r);
    queue(&w.s, 4);
    CHECK_EQ(join(&w.s, &w.r, &w.l), 16 * OURS + THEIRS);
    accepted(&w.r, &w.s);
    CHECK_EQ(join(&w.s, &w.r, &w.l), 16 * OURS);
    w.s.d.durable = w.s.d.count;
    start(&w.s, &w.r);
    start(&w.r, &w.s);
    CHECK_EQ(join(&w.s, &w.r, &w.l), 16 * OURS);
    accepted(&w.s, &w.r);
    CHECK_EQ(join(&w.s, &w.r, &w.l), 0);
    flow(&w.s, &w.r, &w.l);
    CHECK(copies(&w.r, 4, &u) == 1 && u);
    world_end(&w);
}

TEST(a_copy_opened_until_its_counter_is_ahead_is_found_by_its_own_side) {
    world w;
    int u, i;
    for (i = 0; i < 6; i++) {
        world_begin(&w);
        restore(&w.s, &w.saved_s, &w.r);
        for (u = 0; u < i; u++) start(&w.s, &w.r);
        queue(&w.s, 4);
        CHECK_EQ(join(&w.s, &w.r, &w.l), i == 0 ? 16 * OURS + THEIRS : 16 * OURS);
        w.s.d.durable = w.s.d.count;
        start(&w.s, &w.r); /* the receiver knows the copy now; that it is one is not forgotten */
        CHECK((join(&w.s, &w.r, &w.l) & 16 * OURS) != 0);
        CHECK(copies(&w.r, 4, &u) == 0);
        accepted(&w.s, &w.r);
        if (i == 0) accepted(&w.r, &w.s);
        CHECK_EQ(join(&w.s, &w.r, &w.l), 0);
        flow(&w.s, &w.r, &w.l);
        CHECK(copies(&w.r, 4, &u) == 1);
        world_end(&w);
    }
}

TEST(a_copy_of_the_receivers_log_is_found_by_both) {
    world w;
    int u;
    world_begin(&w);
    restore(&w.r, &w.saved_r, &w.s);
    queue(&w.s, 4);
    CHECK_EQ(join(&w.s, &w.r, &w.l), 16 * THEIRS + OURS);
    accepted(&w.r, &w.s);
    CHECK_EQ(join(&w.s, &w.r, &w.l), 16 * THEIRS);
    accepted(&w.s, &w.r);
    CHECK_EQ(join(&w.s, &w.r, &w.l), 0);
    flow(&w.s, &w.r, &w.l);
    CHECK(copies(&w.r, 4, &u) == 1);
    CHECK(copies(&w.r, 3, &u) == 0); /* what the copy has lost is lost; that is what was reported */
    CHECK(copies(&w.r, 2, &u) == 1);
    world_end(&w);
}

TEST(copies_of_both_logs_of_the_same_time_go_on_together) {
    world w;
    int u;
    world_begin(&w);
    restore(&w.s, &w.saved_s, &w.r);
    restore(&w.r, &w.saved_r, &w.s);
    queue(&w.s, 4);
    CHECK_EQ(join(&w.s, &w.r, &w.l), 0); /* nobody knows of the time in between */
    flow(&w.s, &w.r, &w.l);
    CHECK(copies(&w.r, 4, &u) == 1 && !u);
    world_end(&w);
}

TEST(a_right_log_put_back_in_place_of_the_copy_heals_without_being_accepted) {
    world w;
    disk right;
    int u;
    world_begin(&w);
    memset(&right, 0, sizeof right);
    copy_disk(&right, &w.s.d);
    restore(&w.s, &w.saved_s, &w.r);
    queue(&w.s, 4);
    CHECK_EQ(join(&w.s, &w.r, &w.l), 16 * OURS + THEIRS);
    restore(&w.s, &right, &w.r);
    queue(&w.s, 5);
    CHECK_EQ(join(&w.s, &w.r, &w.l), 0);
    flow(&w.s, &w.r, &w.l);
    CHECK(copies(&w.r, 5, &u) == 1 && !u);
    free(right.ops);
    world_end(&w);
}

TEST(one_peer_that_is_stopped_stops_no_other) {
    world w;
    node other;
    wire l;
    int u;
    world_begin(&w);
    born(&other, 3);
    start(&other, &w.r);
    restore(&w.s, &w.saved_s, &w.r);
    CHECK_EQ(join(&w.s, &w.r, &w.l), 16 * OURS + THEIRS);
    queue(&other, 70);
    CHECK_EQ(join(&other, &w.r, &l), 0);
    flow(&other, &w.r, &l);
    CHECK(copies(&w.r, 70, &u) == 1 && !u);
    dead(&other);
    world_end(&w);
}

/* ---- at random ---- */

#define MESSAGES 4000
typedef struct model {
    node s;
    node r;
    wire l;
    uint64_t queued;         /* messages given to the outbox: their names are 1 to queued */
    uint8_t lost[MESSAGES];  /* a crash of the sender took it before it was on the disk */
    uint64_t journal[MESSAGES]; /* what the receiver has stored, in order, and never forgets */
    int stored;
    int stored_durable;
    uint64_t asked; /* blocking sends */
    uint8_t acked[MESSAGES];
    uint64_t direct_journal[MESSAGES];
    int direct_stored;
    int direct_durable;
    struct {
        uint64_t number;
        uint64_t what;
    } waiting[8]; /* blocking sends without an answer */
    int count;
    int crashes;
    int duplicates;
    int compactions;
} model;

static void model_sync_r(model *m) {
    m->r.d.durable = m->r.d.count;
    m->stored_durable = m->stored;
    m->direct_durable = m->direct_stored;
}

static void crash_s(model *m) {
    int i;
    for (i = m->s.d.durable; i < m->s.d.count; i++) {
        if (m->s.d.ops[i].type == QUEUED) m->lost[m->s.d.ops[i].what] = 1;
    }
    part(&m->r, &m->l);
    m->count = 0; /* nobody waits any more */
    start(&m->s, &m->r);
    m->crashes++;
}
static void crash_r(model *m) {
    m->l.up = 0;
    m->stored = m->stored_durable;
    m->direct_stored = m->direct_durable;
    start(&m->r, &m->s);
    m->crashes++;
}

/* A new log: all notes, before or behind, and what is not over; of received ones some. */
static void compact(model *m, node *x) {
    op *old = x->d.ops;
    int n = x->d.count, i, behind = (int)roll(2);
    disk fresh = x->d;
    fresh.ops = (op *)malloc(OPS * sizeof(op));
    fresh.count = 0;
    if (!behind) CHECK_EQ(opc__numbers_notes(&x->numbers, note, &fresh), OPCOMMS_OK);
    for (i = 0; i < n; i++) {
        if (old[i].type == QUEUED && !is_over(&x->d, old[i].uid)) fresh.ops[fresh.count++] = old[i];
        if (old[i].type == IN && roll(3) == 0) fresh.ops[fresh.count++] = old[i];
    }
    if (behind) CHECK_EQ(opc__numbers_notes(&x->numbers, note, &fresh), OPCOMMS_OK);
    fresh.durable = fresh.count;
    x->d = fresh;
    free(old);
    if (x == &m->r) model_sync_r(m);
    m->compactions++;
}

static void send_one(model *m) {
    int i = next_out(&m->s, &m->l), verdict;
    op *o;
    if (i < 0) return;
    o = &m->s.d.ops[i];
    m->l.sent = o->uid;
    verdict = arrive(&m->r, m->l.queue, OPC__STREAM_QUEUE, &o->epoch, o->uid, o->what);
    CHECK(verdict == OPC__NUMBERS_NEW || verdict == OPC__NUMBERS_DUPLICATE);
    if (verdict == OPC__NUMBERS_NEW) m->journal[m->stored++] = o->what;
    if (verdict == OPC__NUMBERS_DUPLICATE) m->duplicates++;
}

static void send_direct(model *m) {
    int i, verdict;
    if (m->count < 8 && roll(3) == 0 && m->asked + 1 < MESSAGES) {
        m->waiting[m->count].number = ++m->s.direct;
        m->waiting[m->count].what = ++m->asked;
        m->count++;
    }
    if (m->count == 0) return;
    i = (int)roll((uint32_t)m->count);
    verdict = arrive(&m->r, m->l.direct, OPC__STREAM_DIRECT, &m->s.now, m->waiting[i].number,
                     m->waiting[i].what);
    CHECK(verdict == OPC__NUMBERS_NEW || verdict == OPC__NUMBERS_DUPLICATE);
    if (verdict == OPC__NUMBERS_NEW) m->direct_journal[m->direct_stored++] = m->waiting[i].what;
    if (verdict == OPC__NUMBERS_DUPLICATE) m->duplicates++;
    if (roll(2)) return; /* the answer is lost */
    model_sync_r(m);
    m->acked[m->waiting[i].what] = 1;
    m->waiting[i] = m->waiting[--m->count];
}

static void model_step(model *m) {
    switch (roll(16)) {
    case 0:
    case 1:
    case 2:
        if (m->queued + 1 < MESSAGES) enqueue(&m->s, ++m->queued);
        break;
    case 3: m->s.d.durable = m->s.d.count; break;
    case 4: model_sync_r(m); break;
    case 5:
    case 6:
    case 7:
    case 8:
        if (m->l.up) send_one(m);
        break;
    case 9:
    case 10:
        if (m->l.up) send_direct(m);
        break;
    case 11: /* acknowledged up to what left last, once it is on the disk */
        if (!m->l.up || m->l.sent == 0) break;
        model_sync_r(m);
        {
            int i, n = m->s.d.count;
            for (i = 0; i < n; i++) {
                const op *o = &m->s.d.ops[i];
                if (o->type == QUEUED && o->uid <= m->l.sent && !is_over(&m->s.d, o->uid)) {
                    over(&m->s, o->uid);
                }
            }
        }
        break;
    case 12: part(&m->r, &m->l); break;
    case 13:
        if (m->l.up) break;
        CHECK_EQ(join(&m->s, &m->r, &m->l), 0);
        model_sync_r(m);
        break;
    case 14:
        if (roll(3) != 0) break;
        if (roll(2)) {
            crash_s(m);
        } else {
            crash_r(m);
        }
        break;
    default:
        if (roll(4) == 0) compact(m, roll(2) ? &m->s : &m->r);
        break;
    }
}

/* Every message that reached the sender's disk once and in order; every answer true. */
static void model_verdict(model *m) {
    static uint8_t seen[MESSAGES];
    uint64_t want = 1, i;
    int k;
    for (k = 0; k < m->stored; k++, want++) {
        while (want <= m->queued && m->lost[want]) want++;
        CHECK_EQ(m->journal[k], want);
    }
    while (want <= m->queued && m->lost[want]) want++;
    CHECK_EQ(want, m->queued + 1);
    memset(seen, 0, sizeof seen);
    for (k = 0; k < m->direct_stored; k++) {
        CHECK(!seen[m->direct_journal[k]]);
        seen[m->direct_journal[k]] = 1;
    }
    for (i = 1; i <= m->asked; i++) CHECK(!m->acked[i] || seen[i]);
}

TEST(crashes_lost_answers_and_resends_make_no_duplicate_gap_or_swap) {
    static model m;
    int crashes = 0, duplicates = 0, compactions = 0, k, i;
    uint64_t total = 0;
    for (k = 1; k <= 60 && !test_bad; k++) {
        memset(&m, 0, sizeof m);
        seed = (uint64_t)k * 7919u;
        born(&m.s, 1);
        born(&m.r, 2);
        start(&m.s, &m.r);
        start(&m.r, &m.s);
        for (i = 0; i < 1500 && !test_bad; i++) model_step(&m);
        part(&m.r, &m.l);
        m.s.d.durable = m.s.d.count;
        CHECK_EQ(join(&m.s, &m.r, &m.l), 0);
        if (m.l.up) while (next_out(&m.s, &m.l) >= 0) send_one(&m);
        model_verdict(&m);
        if (test_bad) printf("seed %d\n", k);
        crashes += m.crashes;
        duplicates += m.duplicates;
        compactions += m.compactions;
        total += (uint64_t)m.stored + (uint64_t)m.direct_stored;
        dead(&m.s);
        dead(&m.r);
    }
    CHECK(crashes > 500 && duplicates > 500 && compactions > 300 && total > 10000);
    CHECK_EQ(mem.used, 0);
}

int main(void) {
    RUN(nothing_is_found_where_nothing_was_put_back);
    RUN(a_copy_of_the_senders_log_is_found_by_both_and_goes_on_when_both_accept);
    RUN(accepting_on_the_senders_side_alone_is_not_enough);
    RUN(accepting_on_the_receivers_side_alone_is_not_enough);
    RUN(a_copy_opened_until_its_counter_is_ahead_is_found_by_its_own_side);
    RUN(a_copy_of_the_receivers_log_is_found_by_both);
    RUN(copies_of_both_logs_of_the_same_time_go_on_together);
    RUN(a_right_log_put_back_in_place_of_the_copy_heals_without_being_accepted);
    RUN(one_peer_that_is_stopped_stops_no_other);
    RUN(crashes_lost_answers_and_resends_make_no_duplicate_gap_or_swap);
    return test_end();
}
