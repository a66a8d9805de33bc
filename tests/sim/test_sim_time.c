/* Time-outs, caps and the order of checks, by a clock the test sets. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#include "test.h"
#include "fake.h"
#include "peers.h"

#define MS 1000u
#define SECOND 1000000u

static uint8_t big[1500000];

/* ---- strangers: bare connections, and a bare TLS client ---- */

static intptr_t dial(fake_host *h, const sim_peer *to) {
    opcomms_address a;
    intptr_t sock = OPCOMMS_NO_HANDLE;
    int os = 0;
    CHECK_EQ(opc__id_address_parse(to->address, strlen(to->address), &a), OPCOMMS_OK);
    CHECK_EQ(h->plat.tcp_connect(h, &a, &sock, &os), OPCOMMS_OK);
    return sock;
}

static fake_conn *conn_of(fake_host *h, intptr_t sock) {
    return h->world->conn[h->world->handle[sock - 10].index];
}

/* Has the other side neither ended nor reset? */
static int alive(fake_host *h, intptr_t sock) {
    uint8_t b[512];
    size_t got = 0;
    int os = 0;
    for (;;) {
        opcomms_err rc = h->plat.sock_recv(h, sock, b, sizeof b, &got, &os);
        if (rc == OPCOMMS_E_AGAIN) return 1;
        if (rc != OPCOMMS_OK || got == 0) return 0;
    }
}

static void hang_up(fake_host *h, intptr_t sock) { h->plat.sock_close(h, sock); }

typedef struct raw {
    fake_host *host;
    intptr_t sock;
    opc__key key;
    opc__tls_ctx ctx;
    opc__tls tls;
} raw;

static int raw_may(void *user, const uint8_t hash[32]) {
    (void)user;
    (void)hash;
    return 1;
}

/* Moves what can be moved; 0 at the end. */
static int raw_pump(sim *s, raw *r) {
    int turn, os = 0;
    for (turn = 0; turn < 20; turn++) {
        size_t n = 0, k = 0;
        const uint8_t *out = opc__tls_out(&r->tls, &n);
        uint8_t *in;
        if (out != NULL && n > 0 &&
            r->host->plat.sock_send(r->host, r->sock, out, n, &k, &os) == OPCOMMS_OK) {
            opc__tls_out_done(&r->tls, k);
        }
        sim_run(s, 1000);
        in = opc__tls_in(&r->tls, &n);
        if (in != NULL && n > 0) {
            opcomms_err rc = r->host->plat.sock_recv(r->host, r->sock, in, n, &k, &os);
            if (rc == OPCOMMS_OK && k == 0) return 0;
            if (rc == OPCOMMS_OK) opc__tls_in_done(&r->tls, k);
            if (rc != OPCOMMS_OK && rc != OPCOMMS_E_AGAIN) return 0;
        }
        if (opc__tls_closed(&r->tls)) return 0;
    }
    return 1;
}

/* A TLS client with peer `as`'s key. */
static void raw_begin(raw *r, fake_host *h, const sim_peer *as, const sim_peer *to) {
    opc__key ca;
    uint8_t want[32], entropy[32];
    fake_file *f = fake_named(as->host, "key.pem");
    memset(entropy, 7, sizeof entropy);
    r->host = h;
    r->sock = dial(h, to);
    opc__key_builtin_ca(&ca);
    CHECK_EQ(opc__key_from_pem(&r->key, (const char *)f->cache, f->size, NULL), OPCOMMS_OK);
    CHECK_EQ(opc__tls_ctx_init(&r->ctx, &r->key, &ca, 0, NULL), OPCOMMS_OK);
    CHECK(opc__str_hash_parse(to->hash, 64, want));
    opc__tls_client(&r->tls, &r->ctx, want, raw_may, NULL, entropy, 0, 0);
}

static int raw_open(sim *s, raw *r, fake_host *h, const sim_peer *as, const sim_peer *to) {
    int i;
    raw_begin(r, h, as, to);
    for (i = 0; i < 50 && !opc__tls_ready(&r->tls); i++) {
        if (!raw_pump(s, r)) return 0;
    }
    return opc__tls_ready(&r->tls);
}

static int raw_say(sim *s, raw *r, const void *data, size_t len) {
    size_t room = 0;
    uint8_t *dst = opc__tls_write(&r->tls, &room);
    if (dst == NULL || room < len) return 0;
    memcpy(dst, data, len);
    opc__tls_write_done(&r->tls, len);
    opc__tls_flush(&r->tls);
    return raw_pump(s, r);
}

/* A server b with peer a; what is not set here is default. */
static void serve(sim *s, sim_peer **a, sim_peer **b) {
    opcomms_error err;
    CHECK_EQ(sim_start(*a, &err), OPCOMMS_OK);
    CHECK_EQ(sim_start(*b, &err), OPCOMMS_OK);
    (void)s;
}
static void before(sim *s, sim_peer **a, sim_peer **b) {
    sim_init(s, 3);
    *a = sim_add(s, 0);
    *b = sim_add(s, 1);
    sim_befriend(s);
}

/* ---- strangers at the door ---- */

TEST(a_silent_stranger_is_sent_away_when_the_handshake_time_is_up) {
    sim s;
    sim_peer *a, *b;
    fake_host *x;
    intptr_t sock;
    before(&s, &a, &b);
    b->cfg.handshake_timeout_ms = 4000;
    serve(&s, &a, &b);
    x = fake_host_new(&s.w, 200);
    sock = dial(x, b);
    sim_run(&s, 3900 * MS);
    CHECK(alive(x, sock));
    sim_run(&s, 400 * MS);
    CHECK(!alive(x, sock));
    CHECK_EQ(sim_stats(b).connections, 0);
    CHECK_EQ(sim_stats(b).handshakes_failed, 1);
    hang_up(x, sock);
    sim_end(&s);
}

TEST(a_stranger_that_drips_bytes_is_sent_away_all_the_same) {
    sim s;
    sim_peer *a, *b;
    fake_host *x;
    raw r;
    size_t len = 0, at = 0, put = 0;
    const uint8_t *hello;
    int os = 0, seconds = 0;
    before(&s, &a, &b);
    serve(&s, &a, &b);
    x = fake_host_new(&s.w, 200);
    raw_begin(&r, x, a, b);
    hello = opc__tls_out(&r.tls, &len);
    CHECK(len > 60);
    while (alive(x, r.sock) && seconds < 40) { /* a byte of the ClientHello every half second */
        (void)x->plat.sock_send(x, r.sock, hello + at++, 1, &put, &os);
        sim_run(&s, 500 * MS);
        seconds++;
    }
    CHECK(seconds >= 19 && seconds <= 22);
    hang_up(x, r.sock);
    sim_end(&s);
}

TEST(an_admitted_peer_that_drips_a_frame_is_idle) {
    sim s;
    sim_peer *a, *b;
    fake_host *x;
    raw r;
    int seconds = 0;
    before(&s, &a, &b);
    b->cfg.idle_timeout_ms = 20000;
    serve(&s, &a, &b);
    x = fake_host_new(&s.w, 200);
    CHECK(raw_open(&s, &r, x, a, b));
    CHECK_EQ(sim_stats(b).handshakes, 1);
    CHECK(raw_say(&s, &r, "\0\0\1\0{", 5));
    while (raw_say(&s, &r, " ", 1) && seconds < 100) {
        sim_run(&s, SECOND);
        seconds++;
    }
    CHECK(seconds >= 15 && seconds <= 31); /* looks at idle connections at least every 10 s */
    CHECK_EQ(sim_stats(b).connections, 0);
    hang_up(x, r.sock);
    sim_end(&s);
}

TEST(idle_connections_end_on_both_sides_and_the_next_send_works) {
    sim s;
    sim_peer *a, *b;
    opcomms_error err;
    before(&s, &a, &b);
    a->cfg.idle_timeout_ms = 30000;
    serve(&s, &a, &b);
    CHECK_EQ(sim_send(a, b, "x", 1, 0, &err), OPCOMMS_OK);
    sim_run(&s, 25 * SECOND);
    CHECK_EQ(sim_stats(a).connections, 1);
    sim_run(&s, 16 * SECOND);
    CHECK_EQ(sim_stats(a).connections, 0);
    CHECK_EQ(sim_stats(b).connections, 0);
    CHECK_EQ(sim_send(a, b, "x", 1, 0, &err), OPCOMMS_OK);
    CHECK_EQ(sim_stats(b).accepted, 2);
    sim_stop(a); /* b is the one that loses patience */
    a->cfg.idle_timeout_ms = 0;
    CHECK_EQ(sim_start(a, &err), OPCOMMS_OK);
    sim_stop(b);
    b->cfg.idle_timeout_ms = 20000;
    CHECK_EQ(sim_start(b, &err), OPCOMMS_OK);
    CHECK_EQ(sim_send(a, b, "x", 1, 0, &err), OPCOMMS_OK);
    sim_run(&s, 31 * SECOND);
    CHECK_EQ(sim_stats(b).connections, 0);
    CHECK_EQ(sim_send(a, b, "x", 1, 0, &err), OPCOMMS_OK); /* reconnects, and loses nothing */
    CHECK_EQ(sim_stats(b).messages_in, 2);
    sim_end(&s);
}

TEST(an_address_no_entry_names_is_closed_at_accept_and_costs_nothing) {
    sim s;
    sim_peer *a, *b;
    fake_host *x;
    opcomms_error err;
    intptr_t sock[20];
    uint64_t randoms, allocs;
    int i;
    before(&s, &a, &b);
    CHECK_EQ(opcomms_allow_list_remove(b->allow, a->hash), OPCOMMS_OK);
    CHECK_EQ(opcomms_allow_list_add(b->allow, a->hash, "10.0.0.1"), OPCOMMS_OK);
    serve(&s, &a, &b);
    x = fake_host_new(&s.w, 200);
    fake_arm(b->host, 1u << FAKE_RANDOM, 0, 0, FAKE_ERROR);
    randoms = b->host->fail_calls;
    allocs = b->memory.calls;
    for (i = 0; i < 20; i++) sock[i] = dial(x, b);
    sim_run(&s, 10 * MS);
    for (i = 0; i < 20; i++) {
        CHECK(!alive(x, sock[i]));
        CHECK_EQ(conn_of(x, sock[i])->pipe[1].sent, 0);
        hang_up(x, sock[i]);
    }
    CHECK_EQ(b->host->fail_calls, randoms);
    CHECK_EQ(b->memory.calls, allocs);
    CHECK_EQ(sim_stats(b).refused_address, 20);
    CHECK_EQ(sim_stats(b).accepted, 0);
    CHECK_EQ(sim_send(a, b, "x", 1, 0, &err), OPCOMMS_OK);
    sim_end(&s);
}

TEST(one_address_has_its_share_of_connections_and_no_more) {
    sim s;
    sim_peer *a, *b;
    fake_host *x;
    opcomms_error err;
    raw r[3];
    intptr_t sock;
    int i;
    before(&s, &a, &b);
    b->cfg.connections_per_address = 3;
    serve(&s, &a, &b);
    x = fake_host_new(&s.w, 200);
    for (i = 0; i < 3; i++) CHECK(raw_open(&s, &r[i], x, a, b));
    sock = dial(x, b);
    sim_run(&s, 10 * MS);
    CHECK(!alive(x, sock));
    hang_up(x, sock);
    CHECK_EQ(sim_stats(b).refused_limit, 1);
    CHECK_EQ(sim_send(a, b, "x", 1, 0, &err), OPCOMMS_OK); /* from another address */
    hang_up(x, r[0].sock);
    sim_run(&s, 10 * MS);
    CHECK(raw_open(&s, &r[0], x, a, b));
    for (i = 0; i < 3; i++) hang_up(x, r[i].sock);
    sim_end(&s);
}

TEST(a_quarter_of_the_connections_is_kept_for_our_own_and_one_of_the_rest_for_named_addresses) {
    sim s;
    sim_peer *a, *b;
    fake_host *x[5];
    opcomms_error err;
    raw r[5];
    int i;
    before(&s, &a, &b);
    b->cfg.connections_max = 8; /* 2 our own, 1 named addresses, 5 anybody */
    serve(&s, &a, &b);
    for (i = 0; i < 5; i++) {
        x[i] = fake_host_new(&s.w, 200 + (unsigned)i);
        CHECK(raw_open(&s, &r[i], x[i], a, b));
    }
    CHECK(sim_send(a, b, "x", 1, 1000, &err) != OPCOMMS_OK);
    CHECK_EQ(sim_stats(b).refused_limit, 1);
    CHECK_EQ(opcomms_allow_list_add(b->allow, b->hash, "10.0.0.1"), OPCOMMS_OK);
    CHECK_EQ(sim_send(a, b, "x", 1, 1000, &err), OPCOMMS_OK); /* its address is named now */
    CHECK_EQ(sim_send(b, a, "x", 1, 1000, &err), OPCOMMS_OK);
    for (i = 0; i < 5; i++) hang_up(x[i], r[i].sock);
    sim_end(&s);
}

TEST(silent_strangers_of_one_address_do_not_keep_others_out) {
    sim s;
    sim_peer *a, *b;
    fake_host *x, *y;
    opcomms_error err;
    intptr_t sock[8];
    int i, left = 0;
    before(&s, &a, &b);
    b->cfg.handshakes_max = 5; /* one of them for addresses that an entry names */
    serve(&s, &a, &b);
    x = fake_host_new(&s.w, 200);
    y = fake_host_new(&s.w, 201);
    for (i = 0; i < 4; i++) sock[i] = dial(x, b);
    sim_run(&s, 10 * MS);
    for (i = 0; i < 4; i++) CHECK(alive(x, sock[i])); /* all handshake places */
    sock[4] = dial(y, b);
    sim_run(&s, 10 * MS);
    CHECK(alive(y, sock[4])); /* the oldest of the crowded address gave way */
    CHECK(!alive(x, sock[0]));
    CHECK_EQ(sim_send(a, b, "x", 1, 1000, &err), OPCOMMS_OK);
    for (i = 1; i < 4; i++) left += alive(x, sock[i]);
    CHECK_EQ(left, 2);
    sock[5] = dial(x, b); /* a crowded address itself gains nothing by knocking again */
    sock[6] = dial(x, b);
    sim_run(&s, 10 * MS);
    CHECK(alive(y, sock[4]));
    sim_run(&s, 11 * SECOND);
    CHECK_EQ(sim_stats(b).connections, 1);
    for (i = 0; i < 7; i++) hang_up(i == 4 ? y : x, sock[i]);
    sim_end(&s);
}

TEST(the_handshake_rate_is_limited_in_all_and_for_one_address) {
    sim s;
    sim_peer *a, *b;
    fake_host *x[4];
    intptr_t sock[16];
    int i, k, open = 0;
    before(&s, &a, &b);
    b->cfg.handshakes_per_second = 6;
    serve(&s, &a, &b);
    for (i = 0; i < 4; i++) x[i] = fake_host_new(&s.w, 200 + (unsigned)i);
    for (i = 0; i < 5; i++) sock[i] = dial(x[0], b);
    sim_run(&s, 10 * MS);
    for (i = 0; i < 5; i++) open += alive(x[0], sock[i]);
    CHECK_EQ(open, 3); /* half of the rate */
    for (i = 0; i < 5; i++) hang_up(x[0], sock[i]);
    open = 0;
    for (k = 1; k < 4; k++) {
        for (i = 0; i < 2; i++) sock[k * 2 + i] = dial(x[k], b);
    }
    sim_run(&s, 10 * MS);
    for (k = 1; k < 4; k++) {
        for (i = 0; i < 2; i++) open += alive(x[k], sock[k * 2 + i]);
    }
    CHECK_EQ(open, 3); /* the rest of the rate */
    for (k = 1; k < 4; k++) {
        for (i = 0; i < 2; i++) hang_up(x[k], sock[k * 2 + i]);
    }
    sim_run(&s, SECOND);
    open = 0;
    for (i = 0; i < 5; i++) sock[i] = dial(x[0], b);
    sim_run(&s, 10 * MS);
    for (i = 0; i < 5; i++) open += alive(x[0], sock[i]);
    CHECK_EQ(open, 3);
    for (i = 0; i < 5; i++) hang_up(x[0], sock[i]);
    sim_end(&s);
}

TEST(one_step_makes_one_signature_and_serves_known_peers_first) {
    sim s;
    sim_peer *a, *b;
    fake_host *x[5];
    opcomms_error err;
    raw r[5];
    size_t n = 0, put = 0;
    int i, os = 0, spoken, steps;
    before(&s, &a, &b);
    serve(&s, &a, &b);
    CHECK_EQ(sim_send(a, b, "x", 1, 0, &err), OPCOMMS_OK);
    for (i = 0; i < 5; i++) {
        x[i] = fake_host_new(&s.w, 200 + (unsigned)i);
        raw_begin(&r[i], x[i], a, b);
    }
    sim_run(&s, 10 * MS);
    s.w.turn = NULL; /* from here on b steps when the test says so */
    for (i = 0; i < 5; i++) {
        const uint8_t *hello = opc__tls_out(&r[i].tls, &n);
        CHECK_EQ(x[i]->plat.sock_send(x[i], r[i].sock, hello, n, &put, &os), OPCOMMS_OK);
        CHECK_EQ(put, n);
    }
    s.w.now_us += SECOND;
    for (steps = 1; steps <= 5; steps++) {
        CHECK_EQ(opcomms_poll(b->peer, 0), OPCOMMS_OK);
        spoken = 0;
        for (i = 0; i < 5; i++) spoken += conn_of(x[i], r[i].sock)->pipe[1].sent > 0;
        CHECK_EQ(spoken, steps);
    }
    for (i = 0; i < 5; i++) hang_up(x[i], r[i].sock);
    s.w.turn = sim_turn;
    sim_end(&s);
}

/* ---- senders ---- */

/* A send with this timeout, to b; its duration must fit. */
static void times_out(sim *s, sim_peer *a, sim_peer *b, size_t size, uint32_t ms,
                      opcomms_err want) {
    opcomms_error err;
    uint64_t start = s->w.now_us, took;
    CHECK_EQ(sim_send(a, b, big, size, ms, &err), want);
    took = s->w.now_us - start;
    if (took < ms * 1000u || took > ms * 1000u + 20000u) {
        printf("a time-out of %u ms took %u us\n", (unsigned)ms, (unsigned)took);
        CHECK(0);
    }
}

TEST(a_server_that_cannot_be_reached_or_never_accepts_costs_the_timeout_and_no_more) {
    sim s;
    sim_peer *a, *b;
    opcomms_error err;
    uint64_t start;
    before(&s, &a, &b);
    serve(&s, &a, &b);
    b->host->blackhole = 1;
    times_out(&s, a, b, 10, 700, OPCOMMS_E_TIMEOUT);
    times_out(&s, a, b, 10, 3000, OPCOMMS_E_TIMEOUT);
    b->host->blackhole = 0;
    CHECK_EQ(sim_send(a, b, "x", 1, 0, &err), OPCOMMS_OK);
    sim_run(&s, 400 * SECOND);
    b->host->mute = 1;
    times_out(&s, a, b, 10, 2500, OPCOMMS_E_TIMEOUT);
    b->host->mute = 0;
    CHECK_EQ(sim_send(a, b, "x", 1, 0, &err), OPCOMMS_OK);
    sim_stop(b);
    sim_run(&s, SECOND);
    start = s.w.now_us;
    CHECK_EQ(sim_send(a, b, "x", 1, 0, &err), OPCOMMS_E_CONNECT); /* nobody listens: at once */
    CHECK(s.w.now_us - start < 20000);
    CHECK_EQ(err.os_code, ECONNREFUSED);
    sim_end(&s);
}

TEST(a_lost_answer_is_an_unknown_outcome_and_a_lost_request_is_a_timeout) {
    sim s;
    sim_peer *a, *b;
    opcomms_error err;
    uint64_t sent[2];
    before(&s, &a, &b);
    serve(&s, &a, &b);
    CHECK_EQ(opcomms_ping(a->peer, b->hash, b->address, 0, &err), OPCOMMS_OK);
    sent[0] = s.w.conn[0]->pipe[0].sent;
    sent[1] = s.w.conn[0]->pipe[1].sent;
    s.w.conn[0]->wire.cut[1].at = sent[1]; /* answers get lost from here on */
    s.w.conn[0]->wire.cut[1].how = FAKE_STALL;
    times_out(&s, a, b, 100, 2500, OPCOMMS_E_UNKNOWN_OUTCOME);
    CHECK_EQ(sim_stats(b).messages_in, 1);
    CHECK_EQ(sim_send(a, b, "x", 1, 0, &err), OPCOMMS_OK); /* over a new connection */
    CHECK_EQ(sim_stats(b).messages_in, 2);
    s.w.conn[1]->wire.cut[0].at = s.w.conn[1]->pipe[0].sent + 100000; /* the request gets stuck */
    s.w.conn[1]->wire.cut[0].how = FAKE_STALL;
    times_out(&s, a, b, sizeof big, 4000, OPCOMMS_E_TIMEOUT);
    sim_run(&s, 700 * SECOND);
    CHECK_EQ(sim_stats(b).messages_in, 2);
    CHECK_EQ(sim_send(a, b, "x", 1, 0, &err), OPCOMMS_OK);
    CHECK_EQ(sim_stats(b).connections, 1);
    sim_end(&s);
}

TEST(short_timeouts_do_not_start_the_handshake_over_and_over) {
    sim s;
    sim_peer *a, *b;
    opcomms_error err;
    int tries = 0;
    before(&s, &a, &b);
    serve(&s, &a, &b);
    s.w.wire.delay_min_us = s.w.wire.delay_max_us = 100 * MS; /* a round trip of 200 ms */
    while (sim_send(a, b, "x", 1, 150, &err) != OPCOMMS_OK && tries < 50) {
        CHECK(err.code == OPCOMMS_E_TIMEOUT || err.code == OPCOMMS_E_UNKNOWN_OUTCOME);
        tries++;
        if (err.code == OPCOMMS_E_UNKNOWN_OUTCOME) break;
    }
    CHECK(tries < 12);
    CHECK_EQ(sim_stats(b).accepted, 1);
    sim_end(&s);
}

TEST(waiting_for_a_message_takes_as_long_as_it_was_told_and_ends_when_one_comes) {
    sim s;
    sim_peer *a, *b;
    opcomms_error err;
    opcomms_message *msg = NULL;
    uint64_t start;
    before(&s, &a, &b);
    serve(&s, &a, &b);
    start = s.w.now_us;
    CHECK_EQ(opcomms_receive(b->peer, 1500, &msg, &err), OPCOMMS_E_EMPTY);
    CHECK(s.w.now_us - start >= 1500 * MS && s.w.now_us - start < 1520 * MS);
    start = s.w.now_us;
    CHECK_EQ(opcomms_wait(b->peer, 250), OPCOMMS_E_EMPTY);
    CHECK(s.w.now_us - start >= 250 * MS && s.w.now_us - start < 270 * MS);
    CHECK_EQ(sim_send(a, b, "x", 1, 0, &err), OPCOMMS_OK);
    start = s.w.now_us;
    CHECK_EQ(opcomms_wait(b->peer, OPCOMMS_FOREVER), OPCOMMS_OK);
    CHECK(s.w.now_us - start < 20 * MS);
    sim_end(&s);
}

TEST(durability_interval_syncs_within_its_interval_and_answers_before) {
    sim s;
    sim_peer *a, *b;
    opcomms_error err;
    before(&s, &a, &b);
    b->cfg.durability = OPCOMMS_DURABLE_INTERVAL;
    b->cfg.sync_interval_ms = 5000;
    serve(&s, &a, &b);
    sim_run(&s, 6 * SECOND);
    CHECK_EQ(sim_send(a, b, "the first", 9, 0, &err), OPCOMMS_OK);
    sim_run(&s, 6 * SECOND);
    CHECK_EQ(sim_send(a, b, "the second", 10, 0, &err), OPCOMMS_OK);
    CHECK_EQ(sim_send(a, b, "the third", 9, 0, &err), OPCOMMS_OK);
    CHECK(!fake_on_platter(b->host, SIM_LOG, "the third", 9));
    sim_run(&s, 5100 * MS);
    CHECK(fake_on_platter(b->host, SIM_LOG, "the second", 10));
    CHECK(fake_on_platter(b->host, SIM_LOG, "the third", 9));
    CHECK(sim_stats(b).syncs <= 4);
    sim_end(&s);
}

TEST(a_stop_with_a_stalled_peer_takes_two_seconds_at_most) {
    sim s;
    sim_peer *a, *b;
    opcomms_error err;
    raw r;
    fake_host *x;
    uint64_t start;
    before(&s, &a, &b);
    b->cfg.mailboxes_max = 1;
    serve(&s, &a, &b);
    CHECK_EQ(sim_send(a, b, "kept", 4, 0, &err), OPCOMMS_OK);
    x = fake_host_new(&s.w, 200);
    CHECK(raw_open(&s, &r, x, a, b));
    conn_of(x, r.sock)->wire.window = 1; /* takes nothing any more */
    CHECK(raw_say(&s, &r, "\0\0\0\12garbage", 8));
    start = s.w.now_us;
    CHECK_EQ(opcomms_stop(b->peer), OPCOMMS_OK);
    CHECK(s.w.now_us - start <= 2100 * MS);
    sim_stop(b);
    CHECK_EQ(sim_start(b, &err), OPCOMMS_OK);
    CHECK_EQ(sim_stats(b).unread, 1);
    hang_up(x, r.sock);
    sim_end(&s);
}

TEST(a_removed_key_is_cut_off_within_a_step_and_stores_nothing) {
    sim s;
    sim_peer *a, *b;
    opcomms_error err;
    before(&s, &a, &b);
    /* so that all addresses may try */
    CHECK_EQ(opcomms_allow_list_add(b->allow, b->hash, NULL), OPCOMMS_OK);
    serve(&s, &a, &b);
    CHECK_EQ(sim_send(a, b, "x", 1, 0, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_allow_list_remove(b->allow, a->hash), OPCOMMS_OK);
    CHECK_EQ(opcomms_poll(b->peer, 0), OPCOMMS_OK);
    CHECK_EQ(sim_stats(b).connections, 0);
    CHECK(sim_send(a, b, "x", 1, 2000, &err) != OPCOMMS_OK);
    CHECK_EQ(sim_send(a, b, "x", 1, 2000, &err), OPCOMMS_E_NOT_ALLOWED);
    CHECK_EQ(sim_stats(b).messages_in, 1);
    /* another address than its own */
    CHECK_EQ(opcomms_allow_list_add(b->allow, a->hash, "10.0.0.77"), OPCOMMS_OK);
    CHECK(sim_send(a, b, "x", 1, 2000, &err) != OPCOMMS_OK);
    CHECK_EQ(opcomms_allow_list_add(b->allow, a->hash, "10.0.0.1"), OPCOMMS_OK);
    CHECK_EQ(sim_send(a, b, "x", 1, 2000, &err), OPCOMMS_OK);
    sim_end(&s);
}

int main(void) {
    RUN(a_silent_stranger_is_sent_away_when_the_handshake_time_is_up);
    RUN(a_stranger_that_drips_bytes_is_sent_away_all_the_same);
    RUN(an_admitted_peer_that_drips_a_frame_is_idle);
    RUN(idle_connections_end_on_both_sides_and_the_next_send_works);
    RUN(an_address_no_entry_names_is_closed_at_accept_and_costs_nothing);
    RUN(one_address_has_its_share_of_connections_and_no_more);
    RUN(a_quarter_of_the_connections_is_kept_for_our_own_and_one_of_the_rest_for_named_addresses);
    RUN(silent_strangers_of_one_address_do_not_keep_others_out);
    RUN(the_handshake_rate_is_limited_in_all_and_for_one_address);
    RUN(one_step_makes_one_signature_and_serves_known_peers_first);
    RUN(a_server_that_cannot_be_reached_or_never_accepts_costs_the_timeout_and_no_more);
    RUN(a_lost_answer_is_an_unknown_outcome_and_a_lost_request_is_a_timeout);
    RUN(short_timeouts_do_not_start_the_handshake_over_and_over);
    RUN(waiting_for_a_message_takes_as_long_as_it_was_told_and_ends_when_one_comes);
    RUN(durability_interval_syncs_within_its_interval_and_answers_before);
    RUN(a_stop_with_a_stalled_peer_takes_two_seconds_at_most);
    RUN(a_removed_key_is_cut_off_within_a_step_and_stores_nothing);
    return test_end();
}
