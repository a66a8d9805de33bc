/* Opcomms peers on fake hosts, all in one thread: whoever waits lets the others go on, by way of
   the fake platform's `wait`. Include after fake.h. */
#ifndef OPCOMMS_SIM_PEERS_H
#define OPCOMMS_SIM_PEERS_H

#define SIM_PEERS 8
#define SIM_LOG "peer.log"

/* What peers speak unless a test says otherwise: 0 is whatever two of them agree on. */
#ifndef SIM_PROTOCOL
#define SIM_PROTOCOL OPCOMMS_TARPC_ONLY
#endif

typedef struct sim_peer {
    fake_host *host;
    fake_memory memory;
    opcomms_peer *peer;
    opcomms_allow_list *allow;
    opcomms_routing_table *routes;
    opcomms_config cfg; /* as the next start uses it */
    char hash[65];
    char address[32];
    int busy;        /* inside a public function */
    uint64_t due_us; /* when it wants its next turn; 0: not asked yet */
    uint64_t rest_us; /* no turn before this time */
    int inside;      /* in its turn */
} sim_peer;

typedef struct sim {
    fake w;
    sim_peer peer[SIM_PEERS];
    int peers;
    void (*idle)(struct sim *s); /* asked at every turn, for things that happen meanwhile */
} sim;

static const char *const sim_keys[SIM_PEERS] = {
    TEST_DATA "/keys/p256_1.pem", TEST_DATA "/keys/p256_2.pem", TEST_DATA "/keys/p256_3.pem",
    TEST_DATA "/keys/p256_4.pem", TEST_DATA "/keys/p256_5.pem", TEST_DATA "/keys/p256_6.pem",
    TEST_DATA "/keys/p256_7.pem", TEST_DATA "/keys/rsa2048_1.pem",
};

/* A peer without background thread does its turn when its own opcomms_pollfds says so, as an event
   loop of a program would: a timer it forgets to ask for does not fire. */
FAKE_FN int sim_turn(void *user, uint64_t *next_us) {
    sim *s = (sim *)user;
    int i, any = 0;
    for (i = 0; i < s->peers; i++) {
        sim_peer *p = &s->peer[i];
        opcomms_pollfd fds[80];
        size_t n = 0;
        int32_t ms = 0;
        if (p->peer == NULL || p->host->dead || p->inside) continue;
        if (p->rest_us > s->w.now_us) {
            if (p->rest_us < *next_us) *next_us = p->rest_us;
            continue;
        }
        if (opcomms_pollfds(p->peer, fds, 80, &n, &ms) != OPCOMMS_OK) continue;
        if (p->due_us == 0) p->due_us = FAKE_NEVER;
        if (ms >= 0 && s->w.now_us + (uint64_t)ms * 1000u < p->due_us) {
            p->due_us = s->w.now_us + (uint64_t)ms * 1000u; /* a call may have begun something */
        }
        if (fake_ready(p->host, fds, n) || s->w.now_us >= p->due_us || ms == 0) {
            p->due_us = 0;
            p->inside = 1;
            if (opcomms_poll(p->peer, 0) == OPCOMMS_OK) {
                any = 1;
            } else { /* a wait that was made to fail: a program would rest a little */
                p->rest_us = s->w.now_us + 10000;
                if (p->rest_us < *next_us) *next_us = p->rest_us;
            }
            p->inside = 0;
        } else if (p->due_us < *next_us) {
            *next_us = p->due_us;
        }
    }
    if (s->idle != NULL) s->idle(s);
    return any;
}

FAKE_FN void sim_init(sim *s, uint64_t seed) {
    memset(s, 0, sizeof *s);
    fake_init(&s->w, seed);
    s->w.turn = sim_turn;
    s->w.user = s;
}

/* One more peer with key `key` and its file on its own disk; it is not started. */
FAKE_FN sim_peer *sim_add(sim *s, int key) {
    sim_peer *p = &s->peer[s->peers];
    char pem[4096];
    size_t len = 0;
    opcomms_error err;
    FILE *f = fopen(sim_keys[key], "rb");
    if (f != NULL) len = fread(pem, 1, sizeof pem, f);
    if (f != NULL) fclose(f);
    memset(p, 0, sizeof *p);
    p->host = fake_host_new(&s->w, (unsigned)s->peers + 1);
    fake_put_file(p->host, "key.pem", pem, len);
    fake_memory_init(&p->memory);
    CHECK_EQ(opcomms_pubk_hash_from_pem(pem, len, p->hash, &err), OPCOMMS_OK);
    snprintf(p->address, sizeof p->address, "10.0.0.%d:9000", s->peers + 1);
    CHECK_EQ(opcomms_allow_list_new(NULL, &p->allow), OPCOMMS_OK);
    CHECK_EQ(opcomms_routing_table_new(NULL, &p->routes), OPCOMMS_OK);
    CHECK_EQ(opcomms_routing_table_allow_all(p->routes, 1), OPCOMMS_OK);
    opcomms_config_init(&p->cfg);
    p->cfg.flags = OPCOMMS_NO_BACKGROUND | SIM_PROTOCOL;
    p->cfg.address = p->address;
    p->cfg.key_file = "key.pem";
    p->cfg.log_path = SIM_LOG;
    p->cfg.allow = p->allow;
    p->cfg.routes = p->routes;
    p->cfg.platform = &p->host->plat;
    p->cfg.allocator = &p->memory.allocator;
    p->cfg.connections_max = 16;
    s->peers++;
    return p;
}

FAKE_FN opcomms_err sim_start(sim_peer *p, opcomms_error *err) {
    p->due_us = 0;
    return opcomms_new(&p->cfg, &p->peer, err);
}

/* Ends the peer and looks at what it leaves behind. */
FAKE_FN void sim_stop(sim_peer *p) {
    opcomms_free(p->peer);
    p->peer = NULL;
    CHECK_EQ(p->memory.used, 0);
    CHECK_EQ(p->memory.wrong_size, 0);
    CHECK_EQ(p->host->open_handles, 0);
}

FAKE_FN opcomms_err sim_send(sim_peer *from, const sim_peer *to, const void *data, size_t len,
                            uint32_t timeout_ms, opcomms_error *err) {
    opcomms_err rc;
    memset(err, 0, sizeof *err);
    from->busy++;
    rc = opcomms_send(from->peer, to->hash, to->address, data, len, timeout_ms, err);
    from->busy--;
    CHECK(rc == OPCOMMS_OK || (err->code == rc && err->text[0] != 0));
    return rc;
}

/* Lets everybody work for `us` microseconds. */
FAKE_FN void sim_run(sim *s, uint64_t us) { fake_go(&s->w, NULL, NULL, 0, s->w.now_us + us); }

FAKE_FN void sim_end(sim *s) {
    int i;
    for (i = 0; i < s->peers; i++) {
        sim_peer *p = &s->peer[i];
        if (p->peer != NULL) sim_stop(p);
        opcomms_allow_list_release(p->allow);
        opcomms_routing_table_release(p->routes);
    }
    CHECK_EQ(s->w.misused, 0);
    CHECK_EQ(s->w.spins, 0);
    fake_end(&s->w);
}

/* Everybody may reach everybody. */
FAKE_FN void sim_befriend(sim *s) {
    int i, k;
    for (i = 0; i < s->peers; i++) {
        for (k = 0; k < s->peers; k++) {
            if (i == k) continue;
            CHECK_EQ(opcomms_allow_list_add(s->peer[i].allow, s->peer[k].hash, NULL), OPCOMMS_OK);
        }
    }
}

FAKE_FN opcomms_stats sim_stats(sim_peer *p) {
    opcomms_stats st;
    memset(&st, 0, sizeof st);
    st.size = (uint32_t)sizeof st;
    CHECK_EQ(opcomms_get_stats(p->peer, &st), OPCOMMS_OK);
    return st;
}

/* Two started peers that know each other. */
FAKE_FN void sim_pair(sim *s, uint64_t seed, sim_peer **a, sim_peer **b) {
    opcomms_error err;
    sim_init(s, seed);
    *a = sim_add(s, 0);
    *b = sim_add(s, 1);
    sim_befriend(s);
    CHECK_EQ(sim_start(*a, &err), OPCOMMS_OK);
    CHECK_EQ(sim_start(*b, &err), OPCOMMS_OK);
}

#endif
