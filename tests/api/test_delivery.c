/* What the outbox and everything around it promise: real sockets and threads, each claim through
   the public functions alone. Nothing sleeps: every wait is for an event or a condition. */
#define OPCOMMS_MAX_FRAME 33554432u /* messages of more than the default 8 MiB */
#include "party.h"

#define LONG 20000u /* milliseconds: more than anything here takes */

static opcomms_config ca, cb; /* of a and b; up() fills in what is the party's */

static void prepare(void) {
    make(&a, "a", OPCOMMS_KEY_P256);
    make(&b, "b", OPCOMMS_KEY_P256);
    CHECK_EQ(opcomms_allow_list_add(a.allow, b.hash, NULL), OPCOMMS_OK);
    CHECK_EQ(opcomms_allow_list_add(b.allow, a.hash, NULL), OPCOMMS_OK);
    opcomms_config_init(&ca);
    ca.retry_min_ms = 5;
    ca.retry_max_ms = 40;
    cb = ca;
}

static opcomms_err up(party *p) {
    opcomms_config *cfg = p == &a ? &ca : &cb;
    opcomms_error err;
    opcomms_err rc;
    cfg->address = p->address;
    cfg->key_pem = p->pem;
    cfg->key_pem_bytes = p->pem_len;
    cfg->allow = p->allow;
    cfg->routes = p->routes;
    cfg->log_path = p->log;
    rc = opcomms_new(cfg, &p->peer, &err);
    if (rc == OPCOMMS_OK && !(cfg->flags & OPCOMMS_NO_LISTEN)) {
        CHECK_EQ(opcomms_get_address(p->peer, p->address, 64), OPCOMMS_OK);
    }
    if (rc != OPCOMMS_OK) printf("%s: %s\n", p->log, err.text);
    return rc;
}

static void down(party *p) {
    CHECK_EQ(opcomms_stop(p->peer), OPCOMMS_OK);
    opcomms_free(p->peer);
    p->peer = NULL;
}

static void restart(party *p) {
    down(p);
    CHECK_EQ(up(p), OPCOMMS_OK);
}

static void begin(void) {
    prepare();
    CHECK_EQ(up(&a), OPCOMMS_OK);
    CHECK_EQ(up(&b), OPCOMMS_OK);
}

/* b has an address, and nobody listens there. */
static void begin_without_b(void) {
    begin();
    down(&b);
}

static void finish(void) {
    end(&a);
    end(&b);
}

static opcomms_identifier mailbox(const party *p, int id) {
    opcomms_identifier to;
    memset(&to, 0, sizeof to);
    memcpy(to.hash, p->hash, sizeof p->hash);
    to.id = (int16_t)id;
    return to;
}

static opcomms_enqueue_options no_options(void) {
    opcomms_enqueue_options o;
    memset(&o, 0, sizeof o);
    o.size = sizeof o;
    return o;
}

/* From a to mailbox 0 of b; its number, 0: refused. */
static uint64_t queue_with(const char *text, const opcomms_enqueue_options *o) {
    opcomms_identifier to = mailbox(&b, 0);
    opcomms_error err;
    uint64_t number = 0;
    CHECK_EQ(opcomms_enqueue(a.peer, &to, b.address, NULL, 0, text, strlen(text), o, &number, &err),
             OPCOMMS_OK);
    return number;
}

static uint64_t queue(const char *text) { return queue_with(text, NULL); }

/* Waits for the next event, which is this one. */
static int event_is(party *p, uint64_t number, uint32_t state) {
    opcomms_event e;
    memset(&e, 0, sizeof e);
    if (opcomms_next_event(p->peer, LONG, &e) != OPCOMMS_OK) return 0;
    if (e.number == number && e.state == state) return 1;
    printf("event of number %llu, state %u, code %d\n", (unsigned long long)e.number, e.state,
           (int)e.code);
    return 0;
}

/* Waits for this event and leaves out what comes before. */
static int event_comes(party *p, uint64_t number, uint32_t state) {
    opcomms_event e;
    while (opcomms_next_event(p->peer, LONG, &e) == OPCOMMS_OK) {
        if (e.number == number && e.state == state) return 1;
    }
    return 0;
}

/* Waits until the outbox of p is empty. */
static int drained(party *p) {
    opcomms_event e;
    int i;
    for (i = 0; i < 2000; i++) {
        if (opcomms_queued_count(p->peer, NULL) == 0) return 1;
        (void)opcomms_next_event(p->peer, 10, &e);
    }
    return 0;
}

/* The oldest message of mailbox `id` of p is this text; it is acknowledged. */
static int gets(party *p, uint8_t id, const char *text) {
    opcomms_message *m = NULL;
    opcomms_error err;
    char got[256];
    size_t n = 0;
    opcomms_err rc = opcomms_receive_id(p->peer, id, LONG, &m, &err);
    if (rc != OPCOMMS_OK) {
        printf("no \"%s\": %s\n", text, opcomms_err_text(rc));
        return 0;
    }
    (void)opcomms_message_read(m, 0, got, sizeof got - 1, &n);
    got[n] = 0;
    if (strcmp(got, text) != 0) printf("\"%s\" instead of \"%s\"\n", got, text);
    return opcomms_ack(m, &err) == OPCOMMS_OK && strcmp(got, text) == 0;
}

static int empty(party *p, uint8_t id) {
    opcomms_message *m = NULL;
    opcomms_error err;
    return opcomms_receive_id(p->peer, id, 0, &m, &err) == OPCOMMS_E_EMPTY;
}

static opcomms_stats stats_of(party *p) {
    opcomms_stats s;
    s.size = sizeof s;
    CHECK_EQ(opcomms_get_stats(p->peer, &s), OPCOMMS_OK);
    return s;
}

/* ---- a disk that waits ---- */

typedef struct gate {
    opcomms_platform platform;
    const opcomms_platform *posix;
    pthread_mutex_t lock;
    pthread_cond_t opened;
    int shut;
    int broken; /* fails instead */
} gate;

static gate disk;

static opcomms_err gate_sync(void *user, intptr_t file, int *os) {
    int broken;
    (void)user;
    pthread_mutex_lock(&disk.lock);
    while (disk.shut) pthread_cond_wait(&disk.opened, &disk.lock);
    broken = disk.broken;
    pthread_mutex_unlock(&disk.lock);
    *os = EIO;
    return broken ? OPCOMMS_E_IO : disk.posix->file_sync(disk.posix->user, file, os);
}

/* b syncs through a gate, which is open at first. */
static void gate_for_b(void) {
    disk.posix = opcomms_platform_default();
    disk.platform = *disk.posix;
    disk.platform.file_sync = gate_sync;
    disk.shut = disk.broken = 0;
    cb.platform = &disk.platform;
}

static void gate_set(int shut) {
    pthread_mutex_lock(&disk.lock);
    disk.shut = shut;
    pthread_cond_broadcast(&disk.opened);
    pthread_mutex_unlock(&disk.lock);
}

/* ---- enqueue ---- */

TEST(a_queued_message_arrives_once_and_its_sender_learns_it) {
    opcomms_identifier to, from;
    opcomms_message *m = NULL;
    opcomms_event e;
    opcomms_error err;
    uint64_t number = 0;
    begin();
    to = mailbox(&b, 7);
    CHECK_EQ(opcomms_enqueue(a.peer, &to, b.address, "ctx", 3, "hello", 5, NULL, &number, &err),
             OPCOMMS_OK);
    CHECK(number > 0);
    memset(&e, 0, sizeof e);
    CHECK_EQ(opcomms_next_event(a.peer, LONG, &e), OPCOMMS_OK);
    CHECK_EQ(e.number, number);
    CHECK_EQ(e.state, OPCOMMS_STATE_DURABLE);
    CHECK_EQ(e.code, OPCOMMS_OK);
    CHECK_STR(e.to, b.hash);
    CHECK_EQ(opcomms_queued_count(a.peer, NULL), 0);
    CHECK_EQ(opcomms_next_event(a.peer, 0, &e), OPCOMMS_E_EMPTY);
    CHECK_EQ(opcomms_next_event(a.peer, 20, &e), OPCOMMS_E_EMPTY); /* whatever e held before */
    CHECK_EQ(opcomms_receive_id(b.peer, 7, LONG, &m, &err), OPCOMMS_OK);
    opcomms_message_from(m, &from);
    CHECK_STR(from.hash, a.hash);
    CHECK_EQ(from.id, 0);
    CHECK_EQ(opcomms_message_flags(m), 0);
    CHECK_EQ(opcomms_message_size(m), 5);
    CHECK_EQ(opcomms_ack(m, &err), OPCOMMS_OK);
    CHECK(empty(&b, 0) && empty(&b, 7));
    CHECK_EQ(stats_of(&a).delivered, 1);
    CHECK_EQ(stats_of(&a).native_connections, 1);
    CHECK_EQ(stats_of(&b).messages_in, 1);
    finish();
}

TEST(enqueue_names_what_is_wrong_and_stores_nothing_then) {
    opcomms_identifier to, odd;
    opcomms_enqueue_options o;
    opcomms_error err;
    char big[300];
    uint64_t number = 9;
    prepare();
    ca.message_bytes_max = 200;
    CHECK_EQ(up(&a), OPCOMMS_OK);
    strcpy(b.address, "127.0.0.1:1");
    to = mailbox(&b, 0);
    memset(big, 'x', sizeof big);
#define ENQUEUE(to, address, context, n, data, len, options) \
    opcomms_enqueue(a.peer, to, address, context, n, data, len, options, &number, &err)
    CHECK_EQ(opcomms_enqueue(NULL, &to, b.address, NULL, 0, "x", 1, NULL, NULL, NULL),
             OPCOMMS_E_INVAL);
    CHECK_EQ(ENQUEUE(NULL, b.address, NULL, 0, "x", 1, NULL), OPCOMMS_E_INVAL);
    odd = to;
    odd.id = 256;
    CHECK_EQ(ENQUEUE(&odd, b.address, NULL, 0, "x", 1, NULL), OPCOMMS_E_INVAL);
    odd.id = OPCOMMS_ANY_ID;
    CHECK_EQ(ENQUEUE(&odd, b.address, NULL, 0, "x", 1, NULL), OPCOMMS_E_INVAL);
    odd = to;
    odd.hash[3] = 'G';
    CHECK_EQ(ENQUEUE(&odd, b.address, NULL, 0, "x", 1, NULL), OPCOMMS_E_INVAL);
    CHECK_EQ(ENQUEUE(&to, b.address, NULL, 1, "x", 1, NULL), OPCOMMS_E_INVAL);
    CHECK_EQ(ENQUEUE(&to, b.address, big, 257, "x", 1, NULL), OPCOMMS_E_INVAL);
    CHECK_EQ(ENQUEUE(&to, b.address, NULL, 0, NULL, 1, NULL), OPCOMMS_E_INVAL);
    o = no_options();
    o.size = 3;
    CHECK_EQ(ENQUEUE(&to, b.address, NULL, 0, "x", 1, &o), OPCOMMS_E_INVAL);
    o = no_options();
    o.level = OPCOMMS_LEVEL_CONSUMED + 1;
    CHECK_EQ(ENQUEUE(&to, b.address, NULL, 0, "x", 1, &o), OPCOMMS_E_INVAL);
    o = no_options();
    o.flags = 0x80;
    CHECK_EQ(ENQUEUE(&to, b.address, NULL, 0, "x", 1, &o), OPCOMMS_E_INVAL);
    o.flags = OPCOMMS_ENQUEUE_TEXT;
    CHECK_EQ(ENQUEUE(&to, b.address, NULL, 0, "\xff", 1, &o), OPCOMMS_E_INVAL);
    CHECK_EQ(ENQUEUE(&to, "localhost", NULL, 0, "x", 1, NULL), OPCOMMS_E_ADDRESS);
    CHECK_EQ(ENQUEUE(&to, "127.0.0.1:0", NULL, 0, "x", 1, NULL), OPCOMMS_E_ADDRESS);
    CHECK_EQ(ENQUEUE(&to, b.address, NULL, 0, big, 201, NULL), OPCOMMS_E_LIMIT);
    odd = mailbox(&a, 0); /* not in its own list */
    CHECK_EQ(ENQUEUE(&odd, b.address, NULL, 0, "x", 1, NULL), OPCOMMS_E_NOT_ALLOWED);
    CHECK_EQ(err.code, OPCOMMS_E_NOT_ALLOWED);
    CHECK_EQ(opcomms_queued_count(a.peer, NULL), 0);
    CHECK_EQ(number, 9);
    CHECK_EQ(ENQUEUE(&to, b.address, big, 256, big, 200, NULL), OPCOMMS_OK);
    CHECK_EQ(opcomms_queued_count(a.peer, NULL), 1);
    CHECK_EQ(opcomms_stop(a.peer), OPCOMMS_OK);
    CHECK_EQ(ENQUEUE(&to, b.address, NULL, 0, "x", 1, NULL), OPCOMMS_E_CLOSED);
#undef ENQUEUE
    finish();
}

TEST(options_travel_with_the_message) {
    opcomms_enqueue_options o = no_options();
    opcomms_identifier from;
    opcomms_message *m = NULL;
    opcomms_error err;
    begin();
    o.flags = OPCOMMS_ENQUEUE_TEXT;
    o.from_id = 200;
    (void)queue_with("text", &o);
    CHECK_EQ(opcomms_receive(b.peer, LONG, &m, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_message_flags(m), OPCOMMS_MESSAGE_TEXT);
    opcomms_message_from(m, &from);
    CHECK_EQ(from.id, 200);
    CHECK_EQ(opcomms_ack(m, &err), OPCOMMS_OK);
    finish();
}

TEST(a_limit_of_the_outbox_refuses_and_stores_nothing_of_it) {
    opcomms_identifier to, other;
    opcomms_error err;
    uint64_t first;
    prepare();
    ca.queued_max = 5;
    ca.queued_per_destination_max = 3;
    ca.queued_bytes_max = 100;
    ca.destinations_max = 2;
    CHECK_EQ(up(&a), OPCOMMS_OK);
    strcpy(b.address, "127.0.0.1:1");
    to = mailbox(&b, 0);
    other = mailbox(&b, 1);
    first = queue("1");
    (void)queue("2");
    (void)queue("3");
#define ENQUEUE(to, text, n) \
    opcomms_enqueue(a.peer, to, b.address, NULL, 0, text, n, NULL, NULL, &err)
    CHECK_EQ(ENQUEUE(&to, "4", 1), OPCOMMS_E_FULL); /* for this destination */
    CHECK_EQ(ENQUEUE(&other, "a", 1), OPCOMMS_OK);
    other.id = 2;
    CHECK_EQ(ENQUEUE(&other, "a", 1), OPCOMMS_E_FULL); /* destinations */
    CHECK_EQ(err.code, OPCOMMS_E_FULL);
    other.id = 1;
    {
        char most[97];
        memset(most, 'm', sizeof most);
        CHECK_EQ(ENQUEUE(&other, most, 97), OPCOMMS_E_FULL); /* bytes */
        CHECK_EQ(ENQUEUE(&other, most, 96), OPCOMMS_OK);
    }
    CHECK_EQ(ENQUEUE(&other, "", 0), OPCOMMS_E_FULL); /* messages in all */
    CHECK_EQ(opcomms_queued_count(a.peer, NULL), 5);
    CHECK_EQ(stats_of(&a).queued_bytes, 100);
    CHECK(stats_of(&a).queue_full >= 4);
    CHECK_EQ(opcomms_cancel(a.peer, first, &err), OPCOMMS_OK);
    CHECK_EQ(ENQUEUE(&to, "4", 1), OPCOMMS_OK);
    CHECK_EQ(ENQUEUE(&to, "5", 1), OPCOMMS_E_FULL);
#undef ENQUEUE
    restart(&a);
    CHECK_EQ(opcomms_queued_count(a.peer, NULL), 5);
    finish();
}

TEST(queued_messages_can_be_looked_at) {
    opcomms_enqueue_options o = no_options();
    opcomms_identifier to;
    opcomms_queued q;
    opcomms_error err;
    opcomms_event e;
    uint64_t n[3];
    char text[16];
    size_t got = 0;
    int round, i;
    begin_without_b();
    to = mailbox(&b, 9);
    n[0] = queue("zero");
    o.level = OPCOMMS_LEVEL_CONSUMED;
    o.expiry_s = 3600;
    o.from_id = 3;
    CHECK_EQ(opcomms_enqueue(a.peer, &to, b.address, "context", 7, "payload", 7, &o, &n[1], &err),
             OPCOMMS_OK);
    n[2] = queue("two");
    for (i = 0; i < 2000; i++) { /* until it was tried in vain */
        CHECK_EQ(opcomms_queued_get(a.peer, n[1], &q), OPCOMMS_OK);
        if (q.attempts > 0) break;
        (void)opcomms_next_event(a.peer, 10, &e);
    }
    CHECK(q.attempts > 0);
    CHECK_EQ(q.code, OPCOMMS_E_CONNECT);
    for (round = 0; round < 2; round++) {
        memset(&q, 0xee, sizeof q);
        CHECK_EQ(opcomms_queued_next(a.peer, n[0], &q), OPCOMMS_OK);
        CHECK_EQ(q.number, n[1]);
        CHECK_EQ(q.bytes, 7);
        CHECK_EQ(q.state, OPCOMMS_STATE_QUEUED);
        CHECK_EQ(q.uncertain, 0);
        CHECK_STR(q.to.hash, b.hash);
        CHECK_EQ(q.to.id, 9);
        CHECK_EQ(q.from_id, 3);
        CHECK_EQ(q.level, OPCOMMS_LEVEL_CONSUMED);
        CHECK(q.context_len == 7 && memcmp(q.context, "context", 7) == 0);
        CHECK(q.time_s > 0);
        CHECK(q.expires_s >= q.time_s + 3599 && q.expires_s <= q.time_s + 3601);
        CHECK_EQ(q.dead_s, 0);
        CHECK_EQ(opcomms_queued_next(a.peer, 0, &q), OPCOMMS_OK);
        CHECK_EQ(q.number, n[0]);
        CHECK_EQ(q.level, OPCOMMS_LEVEL_DURABLE);
        CHECK_EQ(q.expires_s, 0);
        CHECK_EQ(opcomms_queued_next(a.peer, n[1], &q), OPCOMMS_OK);
        CHECK_EQ(q.number, n[2]);
        CHECK_EQ(opcomms_queued_next(a.peer, n[2], &q), OPCOMMS_E_NOT_FOUND);
        CHECK_EQ(opcomms_queued_get(a.peer, n[2] + 1, &q), OPCOMMS_E_NOT_FOUND);
        CHECK_EQ(opcomms_queued_count(a.peer, NULL), 3);
        CHECK_EQ(opcomms_queued_count(a.peer, b.hash), 3);
        CHECK_EQ(opcomms_queued_count(a.peer, a.hash), 0);
        CHECK_EQ(opcomms_queued_count(a.peer, "no hash"), 0);
        CHECK_EQ(opcomms_queued_read(a.peer, n[1], 3, text, sizeof text, &got), OPCOMMS_OK);
        CHECK(got == 4 && memcmp(text, "load", 4) == 0);
        CHECK_EQ(opcomms_queued_read(a.peer, n[1], 7, text, sizeof text, &got), OPCOMMS_OK);
        CHECK_EQ(got, 0);
        CHECK_EQ(opcomms_queued_read(a.peer, n[2] + 1, 0, text, sizeof text, &got),
                 OPCOMMS_E_NOT_FOUND);
        CHECK_EQ(opcomms_dead_count(a.peer), 0);
        restart(&a);
    }
    CHECK_EQ(opcomms_queued_get(NULL, 1, &q), OPCOMMS_E_INVAL);
    CHECK_EQ(opcomms_queued_get(a.peer, 1, NULL), OPCOMMS_E_INVAL);
    CHECK_EQ(opcomms_queued_next(a.peer, 1, NULL), OPCOMMS_E_INVAL);
    CHECK_EQ(opcomms_queued_read(a.peer, n[0], 0, NULL, 1, &got), OPCOMMS_E_INVAL);
    finish();
}

/* ---- order, restarts ---- */

TEST(an_unreachable_peer_gets_everything_in_order_once_it_is_there) {
    char text[16];
    int i;
    begin_without_b();
    for (i = 0; i < 60; i++) {
        snprintf(text, sizeof text, "%d", i);
        (void)queue(text);
        if (i % 20 == 19) restart(&a); /* three openings of the log */
    }
    CHECK_EQ(opcomms_queued_count(a.peer, b.hash), 60);
    CHECK_EQ(up(&b), OPCOMMS_OK);
    for (i = 0; i < 60; i++) {
        snprintf(text, sizeof text, "%d", i);
        CHECK(gets(&b, 0, text));
    }
    CHECK(drained(&a));
    CHECK(empty(&b, 0));
    CHECK_EQ(stats_of(&b).duplicates, 0);
    finish();
}

TEST(a_receiver_that_restarts_again_and_again_misses_nothing) {
    char text[16];
    int i;
    begin();
    for (i = 0; i < 40; i++) {
        snprintf(text, sizeof text, "%d", i);
        (void)queue(text);
        if (i % 10 == 5) restart(&b);
        if (i % 10 == 8) restart(&a);
    }
    CHECK(drained(&a));
    for (i = 0; i < 40; i++) {
        snprintf(text, sizeof text, "%d", i);
        CHECK(gets(&b, 0, text));
    }
    CHECK(empty(&b, 0));
    finish();
}

TEST(without_an_address_it_waits_for_the_other_to_connect) {
    opcomms_identifier to;
    opcomms_error err;
    opcomms_event e;
    uint64_t number = 0, direct = 0;
    begin();
    to = mailbox(&a, 0);
    CHECK_EQ(opcomms_enqueue(b.peer, &to, NULL, NULL, 0, "back", 4, NULL, &number, &err),
             OPCOMMS_OK);
    CHECK_EQ(opcomms_send_numbered(b.peer, a.hash, NULL, "now", 3, &direct, 0, &err),
             OPCOMMS_E_CONNECT);
    CHECK_EQ(opcomms_next_event(b.peer, 50, &e), OPCOMMS_E_EMPTY);
    CHECK_EQ(opcomms_queued_count(b.peer, a.hash), 1);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "knock", 5, 0, &err), OPCOMMS_OK);
    CHECK(event_is(&b, number, OPCOMMS_STATE_DURABLE));
    CHECK(gets(&a, 0, "back"));
    direct = 0;
    CHECK_EQ(opcomms_send_numbered(b.peer, a.hash, NULL, "now", 3, &direct, 0, &err), OPCOMMS_OK);
    CHECK(gets(&a, 0, "now"));
    CHECK_EQ(stats_of(&b).native_connections, 1); /* the one that a made */
    CHECK_EQ(stats_of(&a).accepted, 0);
    finish();
}

/* ---- levels and events ---- */

TEST(a_consumed_message_is_done_when_the_receivers_program_has_acknowledged_it) {
    opcomms_enqueue_options o = no_options();
    opcomms_queued q;
    uint64_t first, second;
    begin();
    o.level = OPCOMMS_LEVEL_CONSUMED;
    first = queue_with("1", &o);
    CHECK(event_is(&a, first, OPCOMMS_STATE_DURABLE));
    CHECK_EQ(opcomms_queued_get(a.peer, first, &q), OPCOMMS_OK);
    CHECK_EQ(q.state, OPCOMMS_STATE_DURABLE);
    CHECK(gets(&b, 0, "1"));
    CHECK(event_is(&a, first, OPCOMMS_STATE_CONSUMED));
    CHECK_EQ(opcomms_queued_get(a.peer, first, &q), OPCOMMS_E_NOT_FOUND);
    /* The same when it is consumed while there is no connection. */
    second = queue_with("2", &o);
    CHECK(event_is(&a, second, OPCOMMS_STATE_DURABLE));
    down(&a);
    CHECK(gets(&b, 0, "2"));
    CHECK_EQ(up(&a), OPCOMMS_OK);
    CHECK(event_comes(&a, second, OPCOMMS_STATE_CONSUMED));
    CHECK_EQ(opcomms_queued_count(a.peer, NULL), 0);
    /* And when the receiver was opened anew since. */
    second = queue_with("3", &o);
    CHECK(event_is(&a, second, OPCOMMS_STATE_DURABLE));
    down(&a);
    CHECK(gets(&b, 0, "3"));
    restart(&b);
    CHECK_EQ(up(&a), OPCOMMS_OK);
    CHECK(event_comes(&a, second, OPCOMMS_STATE_CONSUMED));
    CHECK(empty(&b, 0));
    finish();
}

/* 64 messages of one byte travel in one record, so that one sync covers them. */
TEST(received_is_told_before_the_receivers_disk_has_it) {
    opcomms_enqueue_options o = no_options();
    opcomms_outgoing out[64];
    opcomms_error err;
    uint64_t first;
    size_t i;
    prepare();
    gate_for_b();
    CHECK_EQ(up(&a), OPCOMMS_OK);
    CHECK_EQ(up(&b), OPCOMMS_OK);
    o.level = OPCOMMS_LEVEL_RECEIVED;
    first = queue_with("0", &o); /* opens the connection and the channel */
    CHECK(event_comes(&a, first, OPCOMMS_STATE_DURABLE));
    gate_set(1);
    memset(out, 0, sizeof out);
    for (i = 0; i < 64; i++) {
        out[i].to = mailbox(&b, 0);
        out[i].data = "r";
        out[i].len = 1;
        out[i].options = &o;
    }
    CHECK_EQ(opcomms_commit(a.peer, NULL, 0, out, 64, NULL, 0, &err), OPCOMMS_OK);
    for (i = 0; i < 64; i++) {
        CHECK(event_is(&a, out[i].number, OPCOMMS_STATE_RECEIVED));
        if (test_bad) break;
    }
    CHECK_EQ(opcomms_queued_count(a.peer, NULL), 64);
    gate_set(0);
    for (i = 0; i < 64 && !test_bad; i++) {
        CHECK(event_is(&a, out[i].number, OPCOMMS_STATE_DURABLE));
    }
    CHECK_EQ(opcomms_queued_count(a.peer, NULL), 0);
    finish();
}

typedef struct heard {
    pthread_mutex_t lock;
    pthread_cond_t more;
    opcomms_event last;
    int count;
    int nested;
} heard;

static heard ears = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, {0, 0, OPCOMMS_OK, ""},
                     0, 0};

static void hear(void *user, const opcomms_event *e) {
    heard *h = (heard *)user;
    opcomms_identifier to = mailbox(&b, 0);
    opcomms_event other;
    opcomms_error err;
    opcomms_err queued = opcomms_enqueue(a.peer, &to, NULL, NULL, 0, "x", 1, NULL, NULL, &err);
    opcomms_err cancelled = opcomms_cancel(a.peer, e->number, &err);
    opcomms_err waited = opcomms_next_event(a.peer, LONG, &other);
    pthread_mutex_lock(&h->lock);
    h->last = *e;
    h->count++;
    h->nested = queued == OPCOMMS_E_BUSY && cancelled == OPCOMMS_E_BUSY &&
                waited == OPCOMMS_E_BUSY && opcomms_stop(a.peer) == OPCOMMS_E_BUSY;
    pthread_cond_broadcast(&h->more);
    pthread_mutex_unlock(&h->lock);
}

TEST(the_callback_is_told_of_events_and_may_not_block) {
    opcomms_event e;
    uint64_t number;
    prepare();
    ca.event = hear;
    ca.event_user = &ears;
    ears.count = 0;
    CHECK_EQ(up(&a), OPCOMMS_OK);
    CHECK_EQ(up(&b), OPCOMMS_OK);
    number = queue("x");
    pthread_mutex_lock(&ears.lock);
    while (ears.count < 1) pthread_cond_wait(&ears.more, &ears.lock);
    CHECK_EQ(ears.last.number, number);
    CHECK_EQ(ears.last.state, OPCOMMS_STATE_DURABLE);
    CHECK_STR(ears.last.to, b.hash);
    CHECK(ears.nested);
    pthread_mutex_unlock(&ears.lock);
    CHECK_EQ(opcomms_next_event(a.peer, 0, &e), OPCOMMS_E_EMPTY); /* none are kept */
    CHECK_EQ(opcomms_queued_count(a.peer, NULL), 0);
    finish();
}

TEST(events_that_nobody_takes_are_counted) {
    opcomms_error err;
    opcomms_event e;
    uint64_t n[300];
    int i;
    begin_without_b();
    for (i = 0; i < 300; i++) n[i] = queue("x");
    for (i = 0; i < 300; i++) CHECK_EQ(opcomms_cancel(a.peer, n[i], &err), OPCOMMS_OK);
    for (i = 0; i < 256; i++) {
        CHECK(event_is(&a, n[i], OPCOMMS_STATE_CANCELLED));
        if (test_bad) break;
    }
    CHECK_EQ(opcomms_next_event(a.peer, 0, &e), OPCOMMS_OK);
    CHECK_EQ(e.state, OPCOMMS_STATE_MISSED);
    CHECK_EQ(e.number, 44);
    CHECK_EQ(opcomms_next_event(a.peer, 0, &e), OPCOMMS_E_EMPTY);
    CHECK_EQ(opcomms_next_event(NULL, 0, &e), OPCOMMS_E_INVAL);
    CHECK_EQ(opcomms_stop(a.peer), OPCOMMS_OK);
    CHECK_EQ(opcomms_next_event(a.peer, LONG, &e), OPCOMMS_E_CLOSED);
    finish();
}

/* ---- cancelling ---- */

TEST(what_is_cancelled_in_time_never_arrives) {
    opcomms_error err;
    opcomms_queued q;
    uint64_t n[3];
    begin_without_b();
    n[0] = queue("0");
    n[1] = queue("1");
    n[2] = queue("2");
    CHECK_EQ(opcomms_cancel(a.peer, n[1], &err), OPCOMMS_OK);
    CHECK(event_comes(&a, n[1], OPCOMMS_STATE_CANCELLED));
    CHECK_EQ(opcomms_queued_get(a.peer, n[1], &q), OPCOMMS_E_NOT_FOUND);
    CHECK_EQ(opcomms_cancel(a.peer, n[1], &err), OPCOMMS_E_NOT_FOUND);
    CHECK_EQ(opcomms_cancel(a.peer, 12345, &err), OPCOMMS_E_NOT_FOUND);
    CHECK_EQ(err.code, OPCOMMS_E_NOT_FOUND);
    CHECK_EQ(opcomms_cancel(NULL, 1, &err), OPCOMMS_E_INVAL);
    restart(&a);
    CHECK_EQ(opcomms_cancel(a.peer, n[0], &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_queued_count(a.peer, NULL), 1);
    CHECK_EQ(up(&b), OPCOMMS_OK);
    CHECK(gets(&b, 0, "2"));
    CHECK(drained(&a));
    CHECK(empty(&b, 0));
    finish();
}

TEST(what_is_cancelled_when_it_was_sent_may_have_arrived) {
    opcomms_error err;
    opcomms_queued q;
    opcomms_event e;
    uint64_t number;
    int i;
    prepare();
    gate_for_b();
    CHECK_EQ(up(&a), OPCOMMS_OK);
    CHECK_EQ(up(&b), OPCOMMS_OK);
    number = queue("0"); /* its channel is open now */
    CHECK(event_is(&a, number, OPCOMMS_STATE_DURABLE));
    CHECK(gets(&b, 0, "0"));
    gate_set(1); /* the receiver cannot acknowledge */
    number = queue("1");
    for (i = 0; i < 2000; i++) {
        CHECK_EQ(opcomms_queued_get(a.peer, number, &q), OPCOMMS_OK);
        if (q.state == OPCOMMS_STATE_SENT) break;
        (void)opcomms_next_event(a.peer, 10, &e);
    }
    CHECK_EQ(q.state, OPCOMMS_STATE_SENT);
    CHECK_EQ(opcomms_cancel(a.peer, number, &err), OPCOMMS_E_UNKNOWN_OUTCOME);
    CHECK_EQ(opcomms_queued_count(a.peer, NULL), 0);
    gate_set(0);
    CHECK(gets(&b, 0, "1")); /* too late here */
    (void)queue("2");
    CHECK(gets(&b, 0, "2"));
    CHECK(empty(&b, 0));
    finish();
}

/* Pumps b, which has no thread, until a message is there. */
static int pump_until_message(void) {
    int i;
    for (i = 0; i < 2000; i++) {
        if (opcomms_wait(b.peer, 0) == OPCOMMS_OK) return 1;
        CHECK_EQ(opcomms_poll(b.peer, 10), OPCOMMS_OK);
    }
    return 0;
}

/* b reads nothing while it is not pumped, so that a large message sticks half-way. */
TEST(a_message_cancelled_half_way_does_not_mix_with_the_next) {
    const size_t size = 24u << 20;
    uint8_t *data = (uint8_t *)malloc(size), *back = (uint8_t *)malloc(size);
    opcomms_identifier to;
    opcomms_error err;
    opcomms_event e;
    uint64_t first = 0, second = 0;
    size_t len = 0, i, wrong = 0;
    prepare();
    ca.message_bytes_max = cb.message_bytes_max = size;
    cb.flags = OPCOMMS_NO_BACKGROUND;
    CHECK_EQ(up(&a), OPCOMMS_OK);
    CHECK_EQ(up(&b), OPCOMMS_OK);
    to = mailbox(&b, 0);
    memset(data, 'A', size);
    CHECK_EQ(opcomms_enqueue(a.peer, &to, b.address, NULL, 0, data, size, NULL, &first, &err),
             OPCOMMS_OK);
    for (i = 0; i < 2000 && stats_of(&b).native_connections == 0; i++) {
        CHECK_EQ(opcomms_poll(b.peer, 10), OPCOMMS_OK);
    }
    for (i = 0; i < 20; i++) CHECK_EQ(opcomms_poll(b.peer, 10), OPCOMMS_OK);
    CHECK_EQ(opcomms_wait(b.peer, 0), OPCOMMS_E_EMPTY);
    CHECK_EQ(opcomms_cancel(a.peer, first, &err), OPCOMMS_OK);
    memset(data, 'B', size);
    CHECK_EQ(opcomms_enqueue(a.peer, &to, b.address, NULL, 0, data, size, NULL, &second, &err),
             OPCOMMS_OK);
    CHECK(pump_until_message());
    CHECK_EQ(opcomms_check_receive(b.peer, NULL, back, size, &len, &err), OPCOMMS_OK);
    CHECK_EQ(len, size);
    for (i = 0; i < len; i++) wrong += back[i] != 'B';
    CHECK_EQ(wrong, 0);
    for (i = 0; i < 2000 && opcomms_queued_count(a.peer, NULL) > 0; i++) {
        CHECK_EQ(opcomms_poll(b.peer, 10), OPCOMMS_OK);
    }
    CHECK(event_is(&a, first, OPCOMMS_STATE_CANCELLED));
    CHECK(event_is(&a, second, OPCOMMS_STATE_DURABLE));
    CHECK_EQ(opcomms_next_event(a.peer, 0, &e), OPCOMMS_E_EMPTY);
    CHECK_EQ(opcomms_wait(b.peer, 0), OPCOMMS_E_EMPTY);
    finish();
    free(data);
    free(back);
}

/* Places for messages are made 256 at once: here the last is taken while one is half in. */
TEST(a_large_message_finds_its_place_when_others_came_before_its_end) {
    const size_t size = 16u << 20;
    uint8_t *data = (uint8_t *)calloc(1, size);
    opcomms_identifier to, own;
    opcomms_error err;
    size_t i, len = 0;
    prepare();
    ca.flags = cb.flags = OPCOMMS_MEMORY_STORE;
    ca.message_bytes_max = cb.message_bytes_max = size;
    cb.flags |= OPCOMMS_NO_BACKGROUND;
    CHECK_EQ(up(&a), OPCOMMS_OK);
    CHECK_EQ(up(&b), OPCOMMS_OK);
    to = mailbox(&b, 0);
    own = mailbox(&b, 1);
    CHECK_EQ(opcomms_enqueue(a.peer, &to, b.address, NULL, 0, data, size, NULL, NULL, &err),
             OPCOMMS_OK);
    for (i = 0; i < 2000 && stats_of(&b).native_connections == 0; i++) {
        CHECK_EQ(opcomms_poll(b.peer, 10), OPCOMMS_OK);
    }
    for (i = 0; i < 20; i++) CHECK_EQ(opcomms_poll(b.peer, 10), OPCOMMS_OK);
    CHECK_EQ(opcomms_wait(b.peer, 0), OPCOMMS_E_EMPTY);
    for (i = 0; i < 256; i++) {
        CHECK_EQ(opcomms_local_send(b.peer, 0, &own, "x", 1, 0, &err), OPCOMMS_OK);
    }
    CHECK(pump_until_message());
    CHECK_EQ(opcomms_check_receive(b.peer, NULL, data, size, &len, &err), OPCOMMS_OK);
    CHECK_EQ(len, size);
    finish();
    free(data);
}

/* ---- several in one operation ---- */

static opcomms_outgoing outgoing(int id, const char *text, const opcomms_enqueue_options *o) {
    opcomms_outgoing out;
    memset(&out, 0, sizeof out);
    out.to = mailbox(&b, id);
    out.address = b.address;
    out.data = text;
    out.len = strlen(text);
    out.options = o;
    return out;
}

TEST(a_commit_is_done_whole_and_survives_restarts) {
    opcomms_message *in[3];
    opcomms_outgoing out[2];
    opcomms_identifier own;
    opcomms_error err;
    char state[16];
    size_t len = 0, i;
    begin();
    CHECK_EQ(opcomms_get_state(a.peer, state, sizeof state, &len), OPCOMMS_E_EMPTY);
    own = mailbox(&a, 4);
    for (i = 0; i < 3; i++) {
        CHECK_EQ(opcomms_local_send(a.peer, 0, &own, "job", 3, 0, &err), OPCOMMS_OK);
        CHECK_EQ(opcomms_receive_id(a.peer, 4, LONG, &in[i], &err), OPCOMMS_OK);
    }
    out[0] = outgoing(0, "first", NULL);
    out[1] = outgoing(1, "second", NULL);
    CHECK_EQ(opcomms_commit(a.peer, in, 2, out, 2, "state 1", 7, &err), OPCOMMS_OK);
    CHECK(out[0].number > 0 && out[1].number > out[0].number);
    CHECK(gets(&b, 0, "first") && gets(&b, 1, "second"));
    CHECK_EQ(opcomms_get_state(a.peer, state, 6, &len), OPCOMMS_E_BUFFER);
    CHECK_EQ(len, 7);
    restart(&a);
    CHECK_EQ(opcomms_get_state(a.peer, state, sizeof state, &len), OPCOMMS_OK);
    CHECK(len == 7 && memcmp(state, "state 1", 7) == 0);
    CHECK(gets(&a, 4, "job")); /* the third, which was not in it */
    CHECK(empty(&a, 4));
    CHECK_EQ(opcomms_commit(a.peer, NULL, 0, NULL, 0, NULL, 0, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_get_state(a.peer, state, sizeof state, &len), OPCOMMS_OK);
    CHECK_EQ(len, 7);
    CHECK_EQ(opcomms_commit(a.peer, NULL, 0, NULL, 0, "", 0, &err), OPCOMMS_OK);
    restart(&a);
    CHECK_EQ(opcomms_get_state(a.peer, state, sizeof state, &len), OPCOMMS_OK);
    CHECK_EQ(len, 0);
    finish();
}

static opcomms_err refused(opcomms_message **in, size_t in_count, opcomms_outgoing *out,
                           size_t out_count, const char *state, size_t n) {
    opcomms_error err;
    opcomms_err rc = opcomms_commit(a.peer, in, in_count, out, out_count, state, n, &err);
    CHECK_EQ(err.code, rc);
    CHECK_EQ(opcomms_queued_count(a.peer, NULL), 0);
    return rc;
}

TEST(a_commit_that_is_refused_has_done_nothing) {
    static const char big[4097];
    opcomms_enqueue_options o = no_options();
    opcomms_message *m = NULL, *twice[2];
    opcomms_outgoing out[65];
    opcomms_identifier own;
    opcomms_error err;
    char state[16];
    size_t len = 0, i;
    prepare();
    ca.queued_max = 10;
    ca.queued_per_destination_max = 6;
    ca.queued_bytes_max = 40;
    ca.destinations_max = 2;
    CHECK_EQ(up(&a), OPCOMMS_OK);
    strcpy(b.address, "127.0.0.1:1");
    own = mailbox(&a, 0);
    CHECK_EQ(opcomms_local_send(a.peer, 0, &own, "job", 3, 0, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_receive(a.peer, LONG, &m, &err), OPCOMMS_OK);
    twice[0] = twice[1] = m;
    for (i = 0; i < 65; i++) out[i] = outgoing(0, "x", NULL);
    CHECK_EQ(refused(&m, 1, out, 65, NULL, 0), OPCOMMS_E_LIMIT);
    CHECK_EQ(refused(&m, 1, out, 0, big, 4097), OPCOMMS_E_LIMIT);
    CHECK_EQ(refused(twice, 2, out, 0, "s", 1), OPCOMMS_E_INVAL);
    CHECK_EQ(refused(&m, 1, out, 7, "s", 1), OPCOMMS_E_FULL); /* for one destination */
    for (i = 0; i < 11; i++) out[i] = outgoing((int)i % 2, "x", NULL);
    CHECK_EQ(refused(&m, 1, out, 11, "s", 1), OPCOMMS_E_FULL); /* in all */
    for (i = 0; i < 3; i++) out[i] = outgoing((int)i, "x", NULL);
    CHECK_EQ(refused(&m, 1, out, 3, "s", 1), OPCOMMS_E_FULL); /* destinations */
    for (i = 0; i < 3; i++) out[i] = outgoing(0, "fifteen letters", NULL);
    CHECK_EQ(refused(&m, 1, out, 3, "s", 1), OPCOMMS_E_FULL); /* bytes */
    out[1].address = "nowhere";
    CHECK_EQ(refused(&m, 1, out, 2, "s", 1), OPCOMMS_E_ADDRESS);
    CHECK_EQ(opcomms_get_state(a.peer, state, sizeof state, &len), OPCOMMS_E_EMPTY);
    for (i = 0; i < 6; i++) { /* and within the limits it goes, with an end to trying as well */
        o.expiry_s = 3600;
        out[i] = outgoing((int)i % 2, "x", &o);
    }
    CHECK_EQ(opcomms_commit(a.peer, &m, 1, out, 6, "s", 1, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_queued_count(a.peer, NULL), 6);
    CHECK(empty(&a, 0));
    finish();
}

/* Whether it was done is seen at the next opening: here the file is whole. */
TEST(a_commit_that_the_disk_refuses_is_no_success_and_leaves_the_handles_to_the_caller) {
    opcomms_message *m = NULL;
    opcomms_outgoing out;
    opcomms_identifier own;
    opcomms_error err;
    char state[16];
    size_t len = 0;
    prepare();
    gate_for_b();
    ca.platform = cb.platform;
    CHECK_EQ(up(&a), OPCOMMS_OK);
    strcpy(b.address, "127.0.0.1:1");
    own = mailbox(&a, 0);
    CHECK_EQ(opcomms_local_send(a.peer, 0, &own, "job", 3, 0, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_receive(a.peer, LONG, &m, &err), OPCOMMS_OK);
    out = outgoing(0, "x", NULL);
    pthread_mutex_lock(&disk.lock);
    disk.broken = 1;
    pthread_mutex_unlock(&disk.lock);
    CHECK_EQ(opcomms_commit(a.peer, &m, 1, &out, 1, "s", 1, &err), OPCOMMS_E_POISONED);
    CHECK_EQ(opcomms_message_read(m, 0, state, 1, &len), OPCOMMS_E_NOT_FOUND);
    CHECK_EQ(opcomms_commit(a.peer, NULL, 0, &out, 1, NULL, 0, &err), OPCOMMS_E_POISONED);
    opcomms_release(m);
    CHECK(opcomms_stop(a.peer) != OPCOMMS_OK);
    opcomms_free(a.peer);
    disk.broken = 0;
    CHECK_EQ(up(&a), OPCOMMS_OK);
    CHECK_EQ(opcomms_get_state(a.peer, state, sizeof state, &len), OPCOMMS_OK);
    CHECK_EQ(opcomms_queued_count(a.peer, NULL), 1);
    CHECK(empty(&a, 0));
    finish();
}

/* What gives messages an end to trying is made 256 at once. */
TEST(a_commit_finds_room_for_all_its_expiries) {
    opcomms_enqueue_options o = no_options();
    opcomms_outgoing out[64];
    opcomms_error err;
    int round;
    size_t i;
    begin_without_b();
    o.expiry_s = 3600;
    for (round = 0; round < 9; round++) {
        for (i = 0; i < 60; i++) out[i] = outgoing(0, "x", &o);
        CHECK_EQ(opcomms_commit(a.peer, NULL, 0, out, 60, NULL, 0, &err), OPCOMMS_OK);
    }
    CHECK_EQ(opcomms_queued_count(a.peer, b.hash), 540);
    finish();
}

TEST(a_batch_is_handed_out_in_order_and_acknowledged_as_one) {
    opcomms_message *m[8], *none = NULL;
    opcomms_error err;
    char text[8];
    size_t count = 9, i, got = 0;
    begin();
    for (i = 0; i < 6; i++) {
        snprintf(text, sizeof text, "%u", (unsigned)i);
        (void)queue(text);
    }
    CHECK(drained(&a));
    CHECK_EQ(opcomms_receive_batch(b.peer, 1, 0, m, 8, &count, &err), OPCOMMS_E_EMPTY);
    CHECK_EQ(count, 0);
    CHECK_EQ(opcomms_receive_batch(b.peer, 0, LONG, m, 4, &count, &err), OPCOMMS_OK);
    CHECK_EQ(count, 4);
    for (i = 0; i < count; i++) {
        CHECK_EQ(opcomms_message_read(m[i], 0, text, 8, &got), OPCOMMS_OK);
        CHECK(got == 1 && text[0] == (char)('0' + i));
    }
    opcomms_release(m[1]);
    m[1] = m[0];
    CHECK_EQ(opcomms_ack_batch(m, 4, &err), OPCOMMS_E_INVAL); /* one of them twice */
    /* The handles are gone, the messages are there. */
    CHECK_EQ(opcomms_receive_batch(b.peer, 0, 0, m, 8, &count, &err), OPCOMMS_OK);
    CHECK_EQ(count, 6);
    CHECK_EQ(opcomms_message_read(m[0], 0, text, 8, &got), OPCOMMS_OK);
    CHECK_EQ(text[0], '0');
    restart(&b); /* none of it was acknowledged */
    CHECK_EQ(opcomms_receive_batch(b.peer, 0, 0, m, 8, &count, &err), OPCOMMS_OK);
    CHECK_EQ(count, 6);
    CHECK_EQ(opcomms_ack_batch(m, 5, &err), OPCOMMS_OK);
    opcomms_release(m[5]);
    CHECK_EQ(opcomms_ack_batch(m, 4097, &err), OPCOMMS_E_INVAL);
    CHECK_EQ(opcomms_ack_batch(NULL, 1, &err), OPCOMMS_E_INVAL);
    CHECK_EQ(opcomms_ack_batch(&none, 1, &err), OPCOMMS_E_INVAL);
    CHECK_EQ(opcomms_ack_batch(NULL, 0, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_receive_batch(b.peer, 0, 0, m, 0, &count, &err), OPCOMMS_E_INVAL);
    restart(&b);
    CHECK(gets(&b, 0, "5"));
    CHECK(empty(&b, 0));
    finish();
}

/* ---- dead letters ---- */

static void is_dead(uint64_t number, opcomms_err code, uint32_t attempts) {
    opcomms_queued q;
    char text[8];
    size_t got = 0;
    memset(&q, 0xee, sizeof q);
    CHECK_EQ(opcomms_dead_next(a.peer, number - 1, &q), OPCOMMS_OK);
    CHECK_EQ(q.number, number);
    CHECK_EQ(q.state, OPCOMMS_STATE_DEAD);
    CHECK_EQ(q.code, code);
    CHECK_EQ(q.attempts, attempts);
    CHECK(q.context_len == 3 && memcmp(q.context, "ctx", 3) == 0);
    CHECK_STR(q.to.hash, b.hash);
    CHECK(q.dead_s >= q.time_s && q.time_s > 0);
    CHECK_EQ(opcomms_queued_get(a.peer, number, &q), OPCOMMS_OK);
    CHECK_EQ(q.state, OPCOMMS_STATE_DEAD);
    CHECK_EQ(opcomms_queued_read(a.peer, number, 1, text, sizeof text, &got), OPCOMMS_OK);
    CHECK(got == 3 && memcmp(text, "ead", 3) == 0);
}

static uint64_t queue_dying(int id, uint32_t attempts, uint32_t expiry_s) {
    opcomms_enqueue_options o = no_options();
    opcomms_identifier to = mailbox(&b, id);
    opcomms_error err;
    uint64_t number = 0;
    o.attempts_max = attempts;
    o.expiry_s = expiry_s;
    CHECK_EQ(opcomms_enqueue(a.peer, &to, b.address, "ctx", 3, "dead", 4, &o, &number, &err),
             OPCOMMS_OK);
    return number;
}

TEST(a_message_that_ran_out_of_attempts_waits_as_a_dead_letter) {
    opcomms_error err;
    opcomms_queued q;
    uint64_t first, second, fresh = 0;
    int round;
    begin_without_b();
    first = queue_dying(0, 3, 0);
    CHECK(event_is(&a, first, OPCOMMS_STATE_DEAD));
    ca.attempts_max = 2;
    restart(&a);
    second = queue_dying(0, 0, 0);
    CHECK(event_is(&a, second, OPCOMMS_STATE_DEAD));
    for (round = 0; round < 2; round++) {
        is_dead(first, OPCOMMS_E_CONNECT, 3);
        is_dead(second, OPCOMMS_E_CONNECT, 2);
        CHECK_EQ(opcomms_dead_count(a.peer), 2);
        CHECK_EQ(opcomms_queued_count(a.peer, NULL), 0);
        CHECK_EQ(opcomms_queued_next(a.peer, 0, &q), OPCOMMS_E_NOT_FOUND);
        CHECK_EQ(opcomms_dead_next(a.peer, second, &q), OPCOMMS_E_NOT_FOUND);
        CHECK_EQ(opcomms_cancel(a.peer, first, &err), OPCOMMS_E_NOT_FOUND);
        restart(&a);
    }
    ca.attempts_max = 0;
    restart(&a);
    CHECK_EQ(opcomms_dead_drop(a.peer, second, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_dead_drop(a.peer, second, &err), OPCOMMS_E_NOT_FOUND);
    CHECK_EQ(opcomms_dead_requeue(a.peer, second, &fresh, &err), OPCOMMS_E_NOT_FOUND);
    CHECK_EQ(opcomms_dead_requeue(a.peer, first, &fresh, &err), OPCOMMS_OK);
    CHECK(fresh > second);
    CHECK_EQ(opcomms_dead_count(a.peer), 0);
    CHECK_EQ(opcomms_dead_drop(a.peer, fresh, &err), OPCOMMS_E_NOT_FOUND);
    restart(&a);
    CHECK_EQ(opcomms_dead_count(a.peer), 0);
    CHECK_EQ(opcomms_queued_get(a.peer, fresh, &q), OPCOMMS_OK);
    CHECK(q.context_len == 3 && q.expires_s == 0);
    CHECK_EQ(up(&b), OPCOMMS_OK);
    CHECK(gets(&b, 0, "dead"));
    CHECK(drained(&a));
    CHECK(empty(&b, 0));
    finish();
}

TEST(a_message_whose_time_has_passed_waits_as_a_dead_letter) {
    opcomms_queued q;
    uint64_t number;
    prepare();
    ca.retry_min_ms = ca.retry_max_ms = 60000; /* nothing wakes it but its end */
    CHECK_EQ(up(&a), OPCOMMS_OK);
    strcpy(b.address, "127.0.0.1:1");
    number = queue_dying(0, 0, 1);
    CHECK(event_is(&a, number, OPCOMMS_STATE_DEAD));
    CHECK_EQ(opcomms_queued_get(a.peer, number, &q), OPCOMMS_OK);
    CHECK(q.dead_s >= q.expires_s);
    is_dead(number, OPCOMMS_E_TIMEOUT, q.attempts);
    restart(&a);
    is_dead(number, OPCOMMS_E_TIMEOUT, q.attempts);
    finish();
}

TEST(what_the_receivers_routes_refuse_is_dead_and_the_rest_goes_on) {
    char from[70], to[70];
    uint64_t first, second, third;
    opcomms_queued q;
    begin();
    CHECK_EQ(opcomms_routing_table_allow_all(b.routes, 0), OPCOMMS_OK);
    snprintf(from, sizeof from, "%s:~", a.hash);
    snprintf(to, sizeof to, "%s:0", b.hash);
    CHECK_EQ(opcomms_routing_table_add(b.routes, from, to), OPCOMMS_OK);
    first = queue_dying(1, 0, 0);
    second = queue_dying(1, 0, 0);
    third = queue("fine");
    CHECK(gets(&b, 0, "fine"));
    while (opcomms_dead_count(a.peer) < 2) {
        opcomms_event e;
        CHECK_EQ(opcomms_next_event(a.peer, LONG, &e), OPCOMMS_OK);
        if (test_bad) break;
        CHECK(e.state == OPCOMMS_STATE_DURABLE ? e.number == third : e.code == OPCOMMS_E_ROUTE);
    }
    CHECK_EQ(opcomms_queued_get(a.peer, first, &q), OPCOMMS_OK);
    is_dead(first, OPCOMMS_E_ROUTE, q.attempts);
    CHECK_EQ(opcomms_queued_get(a.peer, second, &q), OPCOMMS_OK);
    is_dead(second, OPCOMMS_E_ROUTE, q.attempts);
    CHECK(drained(&a));
    finish();
}

/* ---- numbers ---- */

TEST(a_send_repeated_under_its_number_is_stored_once) {
    opcomms_error err;
    uint64_t first = 0, second = 0, old;
    begin();
    CHECK_EQ(opcomms_send_numbered(a.peer, b.hash, b.address, "1", 1, &first, 0, &err), OPCOMMS_OK);
    CHECK(first > 0);
    CHECK_EQ(opcomms_send_numbered(a.peer, b.hash, b.address, "2", 1, &second, 0, &err),
             OPCOMMS_OK);
    CHECK(second > first);
    old = first;
    CHECK_EQ(opcomms_send_numbered(a.peer, b.hash, b.address, "1", 1, &first, 0, &err), OPCOMMS_OK);
    CHECK_EQ(first, old);
    CHECK_EQ(stats_of(&b).duplicates, 1);
    CHECK(gets(&b, 0, "1") && gets(&b, 0, "2"));
    CHECK(empty(&b, 0));
    restart(&b); /* its log remembers */
    CHECK_EQ(opcomms_send_numbered(a.peer, b.hash, b.address, "2", 1, &second, 0, &err),
             OPCOMMS_OK);
    CHECK(empty(&b, 0));
    restart(&a); /* numbers of another opening */
    CHECK_EQ(opcomms_send_numbered(a.peer, b.hash, b.address, "2", 1, &second, 0, &err),
             OPCOMMS_E_UNKNOWN_OUTCOME);
    first = 0;
    CHECK_EQ(opcomms_send_numbered(a.peer, b.hash, b.address, "3", 1, &first, 0, &err), OPCOMMS_OK);
    CHECK(gets(&b, 0, "3"));
    CHECK(empty(&b, 0));
    CHECK_EQ(opcomms_send_numbered(a.peer, b.hash, b.address, "3", 1, NULL, 0, &err),
             OPCOMMS_E_INVAL);
    finish();
}

/* ---- logs that went back ---- */

static void copy_file(const char *from, const char *to) {
    static char piece[65536];
    FILE *in = fopen(from, "rb"), *out = fopen(to, "wb");
    size_t n;
    CHECK(in != NULL && out != NULL);
    while (in != NULL && out != NULL && (n = fread(piece, 1, sizeof piece, in)) > 0) {
        CHECK_EQ(fwrite(piece, 1, n, out), n);
    }
    if (in != NULL) fclose(in);
    if (out != NULL) CHECK_EQ(fclose(out), 0);
}

/* Waits until something stands against `other` at p, and accepts it. */
static int accepts(party *p, const party *other) {
    opcomms_event e;
    opcomms_error err;
    int i;
    for (i = 0; i < 2000; i++) {
        opcomms_err rc = opcomms_accept_rollback(p->peer, other->hash, &err);
        if (rc != OPCOMMS_E_NOT_FOUND) return rc == OPCOMMS_OK;
        (void)opcomms_next_event(p->peer, 10, &e);
    }
    return 0;
}

TEST(an_older_log_of_the_sender_stops_everything_until_it_is_accepted) {
    char copy[160];
    opcomms_message *m = NULL;
    opcomms_error err;
    uint64_t number;
    begin();
    snprintf(copy, sizeof copy, "%s/copy", dir);
    CHECK_EQ(opcomms_accept_rollback(b.peer, a.hash, &err), OPCOMMS_E_NOT_FOUND);
    CHECK_EQ(opcomms_accept_rollback(b.peer, "x", &err), OPCOMMS_E_INVAL);
    (void)queue("1");
    CHECK(gets(&b, 0, "1"));
    CHECK(drained(&a));
    down(&a);
    copy_file(a.log, copy);
    CHECK_EQ(up(&a), OPCOMMS_OK);
    (void)queue("2");
    CHECK(gets(&b, 0, "2"));
    CHECK(drained(&a));
    down(&a);
    copy_file(copy, a.log); /* as if a backup had been put back */
    CHECK_EQ(up(&a), OPCOMMS_OK);
    number = queue("3");
    CHECK(event_comes(&b, 0, OPCOMMS_STATE_ROLLBACK));
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "x", 1, 0, &err), OPCOMMS_E_ROLLBACK);
    CHECK_EQ(opcomms_queued_count(a.peer, b.hash), 1);
    CHECK(empty(&b, 0));
    CHECK(stats_of(&b).rollbacks > 0);
    restart(&b); /* it is not forgotten by a restart */
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "x", 1, 0, &err), OPCOMMS_E_ROLLBACK);
    CHECK(accepts(&b, &a));
    CHECK(accepts(&a, &b)); /* whose own log it is */
    CHECK(event_comes(&a, number, OPCOMMS_STATE_DURABLE));
    CHECK_EQ(opcomms_receive(b.peer, LONG, &m, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_message_flags(m), OPCOMMS_MESSAGE_UNCERTAIN);
    CHECK_EQ(opcomms_ack(m, &err), OPCOMMS_OK);
    CHECK(empty(&b, 0));
    restart(&a); /* a new opening is beyond doubt */
    number = queue("4");
    CHECK(event_comes(&a, number, OPCOMMS_STATE_DURABLE));
    CHECK_EQ(opcomms_receive(b.peer, LONG, &m, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_message_flags(m), 0);
    CHECK_EQ(opcomms_ack(m, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_accept_rollback(b.peer, a.hash, &err), OPCOMMS_E_NOT_FOUND);
    finish();
}

TEST(an_older_log_of_the_receiver_stops_everything_until_it_is_accepted) {
    char copy[160];
    opcomms_error err;
    uint64_t number;
    begin();
    snprintf(copy, sizeof copy, "%s/copy", dir);
    (void)queue("1");
    CHECK(drained(&a));
    down(&b);
    copy_file(b.log, copy);
    CHECK_EQ(up(&b), OPCOMMS_OK);
    (void)queue("2");
    CHECK(drained(&a));
    down(&b);
    copy_file(copy, b.log);
    CHECK_EQ(up(&b), OPCOMMS_OK);
    number = queue("3");
    CHECK(event_comes(&a, 0, OPCOMMS_STATE_ROLLBACK));
    CHECK_EQ(opcomms_queued_count(a.peer, b.hash), 1);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "x", 1, 0, &err), OPCOMMS_E_ROLLBACK);
    CHECK(accepts(&a, &b));
    CHECK(accepts(&b, &a));
    CHECK(event_comes(&a, number, OPCOMMS_STATE_DURABLE));
    CHECK(gets(&b, 0, "1")); /* 2 was lost with the newer log, which is what was accepted */
    CHECK(gets(&b, 0, "3"));
    CHECK(empty(&b, 0));
    finish();
}

/* ---- peers of the other protocol ---- */

TEST(a_tarpc_peer_gets_everything_in_order) {
    opcomms_enqueue_options o = no_options();
    opcomms_error err;
    char text[16];
    uint64_t number;
    int i;
    prepare();
    cb.flags = OPCOMMS_TARPC_ONLY;
    CHECK_EQ(up(&a), OPCOMMS_OK);
    CHECK_EQ(up(&b), OPCOMMS_OK);
    o.level = OPCOMMS_LEVEL_CONSUMED; /* stored is all that is told there */
    for (i = 0; i < 30; i++) {
        snprintf(text, sizeof text, "%d", i);
        (void)queue_with(text, i % 3 == 0 ? &o : NULL);
        if (i == 15) restart(&b);
        if (i == 20) restart(&a);
    }
    CHECK(drained(&a));
    for (i = 0; i < 30; i++) {
        snprintf(text, sizeof text, "%d", i);
        if (!gets(&b, 0, text)) break; /* one by one: a repetition would show here */
    }
    CHECK_EQ(i, 30);
    o = no_options();
    o.flags = OPCOMMS_ENQUEUE_NATIVE_ONLY;
    o.attempts_max = 2;
    number = queue_with("never", &o);
    CHECK(event_comes(&a, number, OPCOMMS_STATE_DEAD));
    {
        opcomms_queued q;
        CHECK_EQ(opcomms_queued_get(a.peer, number, &q), OPCOMMS_OK);
        CHECK_EQ(q.code, OPCOMMS_E_UNSUPPORTED);
        CHECK_EQ(q.uncertain, 0);
    }
    ca.flags = OPCOMMS_NATIVE_ONLY;
    restart(&a);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "x", 1, 0, &err), OPCOMMS_E_UNSUPPORTED);
    CHECK(empty(&b, 0));
    finish();
}

TEST(what_was_tried_by_tarpc_and_comes_natively_is_uncertain) {
    opcomms_message *m = NULL;
    opcomms_error err;
    opcomms_queued q;
    opcomms_event e;
    uint64_t number;
    int i;
    prepare();
    gate_for_b();
    cb.flags = OPCOMMS_TARPC_ONLY;
    ca.send_timeout_ms = 100;
    CHECK_EQ(up(&a), OPCOMMS_OK);
    CHECK_EQ(up(&b), OPCOMMS_OK);
    number = queue("0");
    CHECK(event_comes(&a, number, OPCOMMS_STATE_DURABLE));
    gate_set(1); /* stored some day, and not answered in time */
    number = queue("1");
    for (i = 0; i < 2000; i++) {
        CHECK_EQ(opcomms_queued_get(a.peer, number, &q), OPCOMMS_OK);
        if (q.attempts > 0) break;
        (void)opcomms_next_event(a.peer, 10, &e);
    }
    CHECK(q.attempts > 0);
    CHECK_EQ(q.uncertain, 1);
    down(&a);
    gate_set(0);
    CHECK(gets(&b, 0, "0") && gets(&b, 0, "1"));
    while (!empty(&b, 0)) CHECK(gets(&b, 0, "1")); /* a second attempt may have come as well */
    cb.flags = 0;
    restart(&b);
    ca.send_timeout_ms = 0;
    CHECK_EQ(up(&a), OPCOMMS_OK);
    CHECK(event_comes(&a, number, OPCOMMS_STATE_DURABLE));
    CHECK_EQ(opcomms_receive(b.peer, LONG, &m, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_message_flags(m), OPCOMMS_MESSAGE_UNCERTAIN);
    CHECK_EQ(opcomms_ack(m, &err), OPCOMMS_OK);
    CHECK(empty(&b, 0));
    finish();
}

/* ---- many, large, without threads or disk ---- */

static void *queue_thread(void *arg) {
    int id = *(int *)arg, i;
    opcomms_identifier to = mailbox(&b, id);
    opcomms_error err;
    char text[16];
    for (i = 0; i < 50; i++) {
        snprintf(text, sizeof text, "%d:%d", id, i);
        if (opcomms_enqueue(a.peer, &to, b.address, NULL, 0, text, strlen(text), NULL, NULL,
                            &err) != OPCOMMS_OK) {
            return arg;
        }
    }
    return NULL;
}

TEST(eight_threads_queue_at_once_and_each_keeps_its_order) {
    pthread_t t[8];
    int id[8], i, k, good = 0;
    char text[16];
    begin();
    for (i = 0; i < 8; i++) {
        id[i] = i;
        CHECK_EQ(pthread_create(&t[i], NULL, queue_thread, &id[i]), 0);
    }
    for (i = 0; i < 8; i++) {
        void *failed = NULL;
        CHECK_EQ(pthread_join(t[i], &failed), 0);
        CHECK(failed == NULL);
    }
    for (i = 0; i < 8; i++) {
        for (k = 0; k < 50; k++) {
            snprintf(text, sizeof text, "%d:%d", i, k);
            good += gets(&b, (uint8_t)i, text);
        }
    }
    CHECK_EQ(good, 400);
    CHECK(drained(&a));
    CHECK_EQ(stats_of(&b).messages_in, 400);
    finish();
}

TEST(peers_without_threads_or_disk_deliver_while_they_are_pumped) {
    opcomms_enqueue_options o = no_options();
    opcomms_event e;
    opcomms_error err;
    char text[8];
    uint64_t number, then = 0;
    size_t len = 0;
    int i, got = 0;
    prepare();
    ca.flags = cb.flags = OPCOMMS_NO_BACKGROUND | OPCOMMS_MEMORY_STORE;
    CHECK_EQ(up(&a), OPCOMMS_OK);
    CHECK_EQ(up(&b), OPCOMMS_OK);
    o.level = OPCOMMS_LEVEL_CONSUMED;
    number = queue_with("pump", &o);
    for (i = 0; i < 20000 && then == 0; i++) {
        CHECK_EQ(opcomms_poll(a.peer, 0), OPCOMMS_OK);
        CHECK_EQ(opcomms_poll(b.peer, 1), OPCOMMS_OK);
        if (opcomms_check_receive(b.peer, NULL, text, sizeof text, &len, &err) == OPCOMMS_OK) got++;
        if (opcomms_next_event(a.peer, 0, &e) == OPCOMMS_OK && e.state == OPCOMMS_STATE_CONSUMED) {
            then = e.number;
        }
    }
    CHECK_EQ(then, number);
    CHECK_EQ(got, 1);
    CHECK(len == 4 && memcmp(text, "pump", 4) == 0);
    CHECK_EQ(opcomms_queued_count(a.peer, NULL), 0);
    finish();
}

TEST(a_message_of_20_mb_and_small_ones_beside_it_arrive) {
    const size_t size = 20000000;
    uint8_t *data = (uint8_t *)malloc(size), *back = (uint8_t *)malloc(size);
    opcomms_identifier to;
    opcomms_message *m = NULL;
    opcomms_error err;
    char text[16];
    size_t i, at = 0, got = 0;
    prepare();
    ca.message_bytes_max = cb.message_bytes_max = size;
    CHECK_EQ(up(&a), OPCOMMS_OK);
    CHECK_EQ(up(&b), OPCOMMS_OK);
    for (i = 0; i < size; i++) data[i] = (uint8_t)(i * 7 + i / 253);
    to = mailbox(&b, 1);
    CHECK_EQ(opcomms_enqueue(a.peer, &to, b.address, NULL, 0, data, size, NULL, NULL, &err),
             OPCOMMS_OK);
    for (i = 0; i < 50; i++) {
        snprintf(text, sizeof text, "%u", (unsigned)i);
        (void)queue(text);
    }
    CHECK_EQ(opcomms_enqueue(a.peer, &to, b.address, NULL, 0, "after", 5, NULL, NULL, &err),
             OPCOMMS_OK);
    for (i = 0; i < 50; i++) {
        snprintf(text, sizeof text, "%u", (unsigned)i);
        CHECK(gets(&b, 0, text));
    }
    CHECK_EQ(opcomms_receive_id(b.peer, 1, LONG, &m, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_message_size(m), size);
    while (opcomms_message_read(m, at, back + at, size - at, &got) == OPCOMMS_OK && got > 0) {
        at += got;
    }
    CHECK(at == size && memcmp(data, back, size) == 0);
    CHECK_EQ(opcomms_ack(m, &err), OPCOMMS_OK);
    CHECK(gets(&b, 1, "after"));
    CHECK(drained(&a));
    finish();
    free(data);
    free(back);
}

TEST(a_backup_of_a_running_peer_opens_as_its_log) {
    char path[128], lock[140], log[128];
    opcomms_identifier to;
    opcomms_error err;
    uint64_t number = 0;
    begin();
    to = mailbox(&a, 0);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "kept", 4, 0, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_enqueue(b.peer, &to, "127.0.0.1:1", NULL, 0, "q", 1, NULL, &number, &err),
             OPCOMMS_OK);
    snprintf(path, sizeof path, "%s/copy.log", dir);
    CHECK_EQ(opcomms_backup(b.peer, path, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_backup(b.peer, path, &err), OPCOMMS_E_IN_USE);
    CHECK(gets(&b, 0, "kept")); /* it is still in the copy */
    down(&b);
    memcpy(log, b.log, sizeof log);
    memcpy(b.log, path, sizeof log);
    CHECK_EQ(up(&b), OPCOMMS_OK);
    CHECK(gets(&b, 0, "kept"));
    CHECK_EQ(opcomms_queued_count(b.peer, NULL), 1);
    CHECK_EQ(opcomms_cancel(b.peer, number, &err), OPCOMMS_OK);
    down(&b);
    memcpy(b.log, log, sizeof log);
    unlink(path);
    snprintf(lock, sizeof lock, "%s.lock", path);
    unlink(lock);
    CHECK_EQ(up(&b), OPCOMMS_OK);
    finish();
}

int main(void) {
    if (!party_begin()) return 1;
    pthread_mutex_init(&disk.lock, NULL);
    pthread_cond_init(&disk.opened, NULL);
    RUN(a_queued_message_arrives_once_and_its_sender_learns_it);
    RUN(enqueue_names_what_is_wrong_and_stores_nothing_then);
    RUN(options_travel_with_the_message);
    RUN(a_limit_of_the_outbox_refuses_and_stores_nothing_of_it);
    RUN(queued_messages_can_be_looked_at);
    RUN(an_unreachable_peer_gets_everything_in_order_once_it_is_there);
    RUN(a_receiver_that_restarts_again_and_again_misses_nothing);
    RUN(without_an_address_it_waits_for_the_other_to_connect);
    RUN(a_consumed_message_is_done_when_the_receivers_program_has_acknowledged_it);
    RUN(received_is_told_before_the_receivers_disk_has_it);
    RUN(the_callback_is_told_of_events_and_may_not_block);
    RUN(events_that_nobody_takes_are_counted);
    RUN(what_is_cancelled_in_time_never_arrives);
    RUN(what_is_cancelled_when_it_was_sent_may_have_arrived);
    RUN(a_message_cancelled_half_way_does_not_mix_with_the_next);
    RUN(a_large_message_finds_its_place_when_others_came_before_its_end);
    RUN(a_commit_is_done_whole_and_survives_restarts);
    RUN(a_commit_that_is_refused_has_done_nothing);
    RUN(a_commit_that_the_disk_refuses_is_no_success_and_leaves_the_handles_to_the_caller);
    RUN(a_commit_finds_room_for_all_its_expiries);
    RUN(a_batch_is_handed_out_in_order_and_acknowledged_as_one);
    RUN(a_message_that_ran_out_of_attempts_waits_as_a_dead_letter);
    RUN(a_message_whose_time_has_passed_waits_as_a_dead_letter);
    RUN(what_the_receivers_routes_refuse_is_dead_and_the_rest_goes_on);
    RUN(a_send_repeated_under_its_number_is_stored_once);
    RUN(an_older_log_of_the_sender_stops_everything_until_it_is_accepted);
    RUN(an_older_log_of_the_receiver_stops_everything_until_it_is_accepted);
    RUN(a_tarpc_peer_gets_everything_in_order);
    RUN(what_was_tried_by_tarpc_and_comes_natively_is_uncertain);
    RUN(eight_threads_queue_at_once_and_each_keeps_its_order);
    RUN(peers_without_threads_or_disk_deliver_while_they_are_pumped);
    RUN(a_message_of_20_mb_and_small_ones_beside_it_arrive);
    RUN(a_backup_of_a_running_peer_opens_as_its_log);
    return party_end();
}
