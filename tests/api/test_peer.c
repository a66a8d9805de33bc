/* What the public functions promise, each: refusals, ownership, stopping, callbacks, limits. */
#include "party.h"

#include <signal.h>
#include <sys/wait.h>

/* ---- configuration ---- */

typedef struct counter {
    size_t held;
    size_t calls;
    size_t fail_at; /* the n-th call fails; 0: none does */
} counter;

static void *count_alloc(void *user, size_t bytes) {
    counter *c = (counter *)user;
    if (++c->calls == c->fail_at) return NULL;
    c->held += bytes;
    return malloc(bytes);
}

static void count_release(void *user, void *p, size_t bytes) {
    ((counter *)user)->held -= bytes;
    free(p);
}

static void fill(opcomms_config *cfg, const party *p) {
    opcomms_config_init(cfg);
    cfg->address = "127.0.0.1:0";
    cfg->key_pem = p->pem;
    cfg->key_pem_bytes = p->pem_len;
    cfg->allow = p->allow;
    cfg->routes = p->routes;
    cfg->log_path = p->log;
}

TEST(new_refuses_a_config_that_makes_no_sense) {
    opcomms_config cfg, good;
    opcomms_peer *peer = NULL;
    opcomms_error err;
    make(&a, "a", OPCOMMS_KEY_P256);
    fill(&good, &a);
    CHECK_EQ(opcomms_new(NULL, &peer, &err), OPCOMMS_E_INVAL);
    CHECK_EQ(opcomms_new(&good, NULL, &err), OPCOMMS_E_INVAL);
#define REFUSED(change)                                          \
    cfg = good;                                                  \
    change;                                                      \
    CHECK_EQ(opcomms_new(&cfg, &peer, &err), OPCOMMS_E_INVAL);   \
    CHECK(err.code == OPCOMMS_E_INVAL && strlen(err.text) > 10); \
    CHECK(peer == NULL)
    REFUSED(cfg.size = 0);
    REFUSED(cfg.size = 100000);
    REFUSED(cfg.flags = 0x8000);
    REFUSED(cfg.allow = NULL);
    REFUSED(cfg.routes = NULL);
    REFUSED(cfg.key_pem = NULL);
    REFUSED(cfg.key_file = "both.key");
    REFUSED(cfg.durability = (opcomms_durability)7);
    REFUSED(cfg.connections_max = 1025);
    REFUSED(cfg.frame_bytes_max = 100);
    REFUSED(cfg.frame_bytes_max = OPCOMMS_MAX_FRAME + 1u);
#undef REFUSED
    cfg = good;
    cfg.key_pem = NULL;
    cfg.key_file = "/nowhere/no.key";
    CHECK_EQ(opcomms_new(&cfg, &peer, &err), OPCOMMS_E_NOT_FOUND);
    cfg = good;
    cfg.log_path = "/nowhere/no.log";
    CHECK_EQ(opcomms_new(&cfg, &peer, &err), OPCOMMS_E_NOT_FOUND);
    cfg = good;
    cfg.size = (uint32_t)offsetof(opcomms_config, allocator); /* an older, shorter struct */
    CHECK_EQ(opcomms_new(&cfg, &peer, &err), OPCOMMS_OK);
    opcomms_free(peer);
    end(&a);
}

TEST(new_fails_cleanly_at_every_allocation_and_gives_everything_back) {
    opcomms_config cfg;
    opcomms_error err;
    opcomms_allocator hooks;
    counter c;
    opcomms_err rc = OPCOMMS_E_NOMEM;
    size_t n;
    make(&a, "a", OPCOMMS_KEY_P256);
    fill(&cfg, &a);
    hooks.alloc = count_alloc;
    hooks.release = count_release;
    hooks.user = &c;
    cfg.allocator = &hooks;
    for (n = 1; n < 200 && rc != OPCOMMS_OK; n++) {
        opcomms_peer *peer = NULL;
        memset(&c, 0, sizeof c);
        c.fail_at = n;
        rc = opcomms_new(&cfg, &peer, &err);
        CHECK(rc == OPCOMMS_OK || rc == OPCOMMS_E_NOMEM);
        CHECK((peer != NULL) == (rc == OPCOMMS_OK));
        opcomms_free(peer);
        CHECK_EQ(c.held, 0);
    }
    CHECK_EQ(rc, OPCOMMS_OK);
    CHECK(n > 5);
    cfg.memory_bytes_max = 10000; /* too little for any peer */
    {
        opcomms_peer *peer = NULL;
        memset(&c, 0, sizeof c);
        CHECK_EQ(opcomms_new(&cfg, &peer, &err), OPCOMMS_E_NOMEM);
        CHECK_EQ(c.held, 0);
    }
    end(&a);
}

TEST(a_log_serves_one_peer_and_one_key) {
    opcomms_config cfg;
    opcomms_peer *peer = NULL;
    opcomms_error err;
    party c;
    both(OPCOMMS_KEY_P256);
    fill(&cfg, &b);
    CHECK_EQ(opcomms_new(&cfg, &peer, &err), OPCOMMS_E_IN_USE);
    make(&c, "c", OPCOMMS_KEY_P256);
    opcomms_free(b.peer);
    b.peer = NULL;
    strcpy(c.log, b.log);
    CHECK_EQ(start(&c, &err), OPCOMMS_E_LOG_KEY);
    CHECK_EQ(start(&b, &err), OPCOMMS_OK); /* and it is as good as before */
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "x", 1, 0, &err), OPCOMMS_OK);
    end(&a);
    end(&b);
    end(&c);
}

/* ---- connections ---- */

TEST(one_connection_serves_many_messages_and_is_made_anew_after_a_restart) {
    opcomms_error err;
    opcomms_stats stats;
    int i;
    both(OPCOMMS_KEY_P256);
    stats.size = sizeof stats;
    for (i = 0; i < 20; i++) {
        CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "x", 1, 0, &err), OPCOMMS_OK);
    }
    CHECK_EQ(opcomms_get_stats(b.peer, &stats), OPCOMMS_OK);
    CHECK_EQ(stats.accepted, 1);
    CHECK_EQ(stats.messages_in, 20);
    opcomms_free(b.peer);
    CHECK_EQ(start(&b, &err), OPCOMMS_OK); /* on the same port */
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "x", 1, 0, &err), OPCOMMS_OK);
    stats.size = sizeof stats;
    CHECK_EQ(opcomms_get_stats(b.peer, &stats), OPCOMMS_OK);
    CHECK_EQ(stats.accepted, 1);
    CHECK_EQ(stats.unread, 21);
    end(&a);
    end(&b);
}

TEST(a_peer_that_is_not_there_is_reported) {
    opcomms_error err;
    both(OPCOMMS_KEY_P256);
    CHECK_EQ(opcomms_send(a.peer, b.hash, "127.0.0.1", "x", 1, 0, &err), OPCOMMS_E_ADDRESS);
    CHECK_EQ(opcomms_send(a.peer, b.hash, "127.0.0.1:0", "x", 1, 0, &err), OPCOMMS_E_ADDRESS);
    CHECK_EQ(opcomms_send(a.peer, "abc", b.address, "x", 1, 0, &err), OPCOMMS_E_INVAL);
    CHECK_EQ(opcomms_send(a.peer, NULL, b.address, "x", 1, 0, &err), OPCOMMS_E_INVAL);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, NULL, 1, 0, &err), OPCOMMS_E_INVAL);
    CHECK_EQ(opcomms_stop(b.peer), OPCOMMS_OK); /* its port is free from now on */
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "x", 1, 0, &err), OPCOMMS_E_CONNECT);
    CHECK_EQ(err.code, OPCOMMS_E_CONNECT);
    CHECK(err.os_code != 0);
    end(&a);
    end(&b);
}

/* A listener that accepts and never says a word. */
TEST(a_mute_server_costs_no_more_than_the_time_given) {
    opcomms_error err;
    opcomms_address at, bound;
    intptr_t sock = OPCOMMS_NO_HANDLE;
    const opcomms_platform *posix = opc__plat_default();
    char address[64];
    int os = 0;
    both(OPCOMMS_KEY_P256);
    memset(&at, 0, sizeof at);
    at.family = 4;
    at.ip[0] = 127;
    at.ip[3] = 1;
    CHECK_EQ(posix->tcp_listen(NULL, &at, &sock, &bound, &os), OPCOMMS_OK);
    opc__id_address_format(&bound, 1, address);
    CHECK_EQ(opcomms_send(a.peer, b.hash, address, "x", 1, 50, &err), OPCOMMS_E_TIMEOUT);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "x", 1, 0, &err), OPCOMMS_OK);
    posix->sock_close(NULL, sock);
    end(&a);
    end(&b);
}

TEST(a_dual_stack_listener_knows_its_ipv4_peers) {
    opcomms_error err;
    char port[80];
    make(&a, "a", OPCOMMS_KEY_P256);
    make(&b, "b", OPCOMMS_KEY_P256);
    strcpy(b.address, "[::]:0");
    CHECK_EQ(opcomms_allow_list_add(a.allow, b.hash, "127.0.0.1"), OPCOMMS_OK);
    CHECK_EQ(opcomms_allow_list_add(b.allow, a.hash, "127.0.0.1"), OPCOMMS_OK);
    CHECK_EQ(start(&a, &err), OPCOMMS_OK);
    CHECK_EQ(start(&b, &err), OPCOMMS_OK);
    snprintf(port, sizeof port, "127.0.0.1%s", strrchr(b.address, ':'));
    CHECK_EQ(opcomms_send(a.peer, b.hash, port, "x", 1, 0, &err), OPCOMMS_OK);
    end(&a);
    end(&b);
}

TEST(a_listed_hash_from_another_address_is_turned_away) {
    opcomms_error err;
    both(OPCOMMS_KEY_P256);
    CHECK_EQ(opcomms_allow_list_add(b.allow, a.hash, "127.0.0.2"), OPCOMMS_OK);
    CHECK_EQ(opcomms_allow_list_add(b.allow, b.hash, NULL), OPCOMMS_OK);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "x", 1, 0, &err), OPCOMMS_E_NOT_ALLOWED);
    CHECK_EQ(opcomms_allow_list_add(a.allow, b.hash, "127.0.0.2"), OPCOMMS_OK);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "x", 1, 0, &err), OPCOMMS_E_NOT_ALLOWED);
    CHECK_EQ(err.tls_code, 0); /* our own list this time: nothing was sent */
    end(&a);
    end(&b);
}

TEST(lists_are_shared_and_changed_while_peers_run) {
    opcomms_error err;
    char from[70], to[70];
    both(OPCOMMS_KEY_P256);
    opcomms_routing_table_release(b.routes); /* b's peer keeps its own reference */
    CHECK_EQ(opcomms_routing_table_new(NULL, &b.routes), OPCOMMS_OK);
    CHECK_EQ(opcomms_stop(b.peer), OPCOMMS_OK);
    opcomms_free(b.peer);
    CHECK_EQ(start(&b, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "1", 1, 0, &err), OPCOMMS_E_ROUTE);
    snprintf(from, sizeof from, "%s:~", a.hash);
    snprintf(to, sizeof to, "%s:0", b.hash);
    CHECK_EQ(opcomms_routing_table_add(b.routes, from, to), OPCOMMS_OK);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "2", 1, 0, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_routing_table_remove_all_to(b.routes, to), OPCOMMS_OK);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "3", 1, 0, &err), OPCOMMS_E_ROUTE);
    CHECK_EQ(opcomms_allow_list_remove(a.allow, b.hash), OPCOMMS_OK);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "4", 1, 0, &err), OPCOMMS_E_NOT_ALLOWED);
    CHECK_EQ(opcomms_allow_list_allow_all(a.allow, 1), OPCOMMS_OK);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "5", 1, 0, &err), OPCOMMS_E_ROUTE);
    end(&a);
    end(&b);
}

typedef struct storm {
    size_t sent;
    size_t other;
    int quit;
    pthread_mutex_t lock;
} storm;

static void *storm_sender(void *arg) {
    storm *s = (storm *)arg;
    opcomms_error err;
    for (;;) {
        opcomms_err rc = opcomms_send(a.peer, b.hash, b.address, "s", 1, 0, &err);
        int quit;
        pthread_mutex_lock(&s->lock);
        quit = s->quit;
        if (rc == OPCOMMS_OK) s->sent++;
        if (rc != OPCOMMS_OK && rc != OPCOMMS_E_NOT_ALLOWED && rc != OPCOMMS_E_TLS &&
            rc != OPCOMMS_E_UNKNOWN_OUTCOME) {
            s->other++;
        }
        pthread_mutex_unlock(&s->lock);
        if (quit) return NULL;
    }
}

/* Removal and re-admission under load, on both sides: nothing is stored after a removal of the
   sender has returned, and what was acknowledged is there. */
TEST(nothing_is_stored_once_a_removal_has_returned) {
    opcomms_error err;
    opcomms_stats before, after;
    pthread_t t[3];
    storm s;
    size_t i, count = 0, len = 0;
    int enough = 0;
    char text[8];
    both(OPCOMMS_KEY_P256);
    CHECK_EQ(opcomms_allow_list_add(b.allow, b.hash, NULL), OPCOMMS_OK);
    memset(&s, 0, sizeof s);
    pthread_mutex_init(&s.lock, NULL);
    for (i = 0; i < 3; i++) CHECK_EQ(pthread_create(&t[i], NULL, storm_sender, &s), 0);
    before.size = after.size = sizeof before;
    for (i = 0; i < 40; i++) {
        (void)opcomms_wait(b.peer, 20);
        CHECK_EQ(opcomms_allow_list_remove(b.allow, a.hash), OPCOMMS_OK);
        CHECK_EQ(opcomms_get_stats(b.peer, &before), OPCOMMS_OK);
        CHECK_EQ(opcomms_ping(b.peer, b.hash, b.address, 0, &err), OPCOMMS_OK); /* some work */
        CHECK_EQ(opcomms_get_stats(b.peer, &after), OPCOMMS_OK);
        CHECK_EQ(before.messages_in, after.messages_in);
        CHECK_EQ(opcomms_allow_list_add(b.allow, a.hash, NULL), OPCOMMS_OK);
        if (i % 4 == 0) {
            CHECK_EQ(opcomms_allow_list_remove(a.allow, b.hash), OPCOMMS_OK);
            CHECK_EQ(opcomms_allow_list_add(a.allow, b.hash, NULL), OPCOMMS_OK);
        }
        while (opcomms_check_receive(b.peer, NULL, text, 8, &len, &err) == OPCOMMS_OK) count++;
    }
    for (i = 0; i < 2000 && !enough; i++) { /* admitted again, they get through */
        if (opcomms_wait(b.peer, 20) == OPCOMMS_OK &&
            opcomms_check_receive(b.peer, NULL, text, 8, &len, &err) == OPCOMMS_OK) {
            count++;
        }
        pthread_mutex_lock(&s.lock);
        enough = s.sent >= 10;
        pthread_mutex_unlock(&s.lock);
    }
    CHECK(enough);
    pthread_mutex_lock(&s.lock);
    s.quit = 1;
    pthread_mutex_unlock(&s.lock);
    for (i = 0; i < 3; i++) CHECK_EQ(pthread_join(t[i], NULL), 0);
    while (opcomms_check_receive(b.peer, NULL, text, 8, &len, &err) == OPCOMMS_OK) count++;
    CHECK_EQ(s.other, 0);
    CHECK(count >= s.sent); /* more only where the outcome was unknown */
    pthread_mutex_destroy(&s.lock);
    end(&a);
    end(&b);
}

/* The platform of POSIX, with a removal that falls exactly between the look-up and what follows. */
typedef struct trap {
    const opcomms_platform *posix;
    opcomms_allow_list *list;
    const char *hash; /* removed at the call that is trapped; NULL: nothing is */
    size_t bytes_sent;
} trap;

static void spring(trap *t) {
    const char *hash = __atomic_exchange_n(&t->hash, (const char *)NULL, __ATOMIC_SEQ_CST);
    if (hash != NULL) CHECK_EQ(opcomms_allow_list_remove(t->list, hash), OPCOMMS_OK);
}

static int64_t trap_wall(void *user) { /* asked for each message, before it is stored */
    trap *t = (trap *)user;
    spring(t);
    return t->posix->wall_s(t->posix->user);
}

static opcomms_err trap_connected(void *user, intptr_t sock, int *os) {
    trap *t = (trap *)user;
    spring(t); /* the connection stands, nothing has been said */
    return t->posix->tcp_connected(t->posix->user, sock, os);
}

static opcomms_err trap_send(void *user, intptr_t sock, const void *buf, size_t len, size_t *put,
                             int *os) {
    trap *t = (trap *)user;
    t->bytes_sent += len;
    return t->posix->sock_send(t->posix->user, sock, buf, len, put, os);
}

/* All other calls go straight through: their `user` is not looked at. */
static void trapped(party *p, trap *t, opcomms_platform *plat, int server) {
    opcomms_config cfg;
    opcomms_error err;
    memset(t, 0, sizeof *t);
    t->posix = opcomms_platform_default();
    t->list = p->allow;
    *plat = *t->posix;
    plat->user = t;
    if (server) plat->wall_s = trap_wall;
    if (!server) plat->tcp_connected = trap_connected;
    if (!server) plat->sock_send = trap_send;
    opcomms_free(p->peer);
    fill(&cfg, p);
    cfg.platform = plat;
    CHECK_EQ(opcomms_new(&cfg, &p->peer, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_get_address(p->peer, p->address, sizeof p->address), OPCOMMS_OK);
}

TEST(a_removal_in_the_middle_of_storing_stores_nothing) {
    opcomms_platform plat;
    opcomms_stats stats;
    opcomms_error err;
    trap t;
    both(OPCOMMS_KEY_P256);
    trapped(&b, &t, &plat, 1);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "1", 1, 0, &err), OPCOMMS_OK);
    __atomic_store_n(&t.hash, (const char *)a.hash, __ATOMIC_SEQ_CST);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "2", 1, 0, &err), OPCOMMS_E_UNKNOWN_OUTCOME);
    CHECK(__atomic_load_n(&t.hash, __ATOMIC_SEQ_CST) == NULL);
    stats.size = sizeof stats;
    CHECK_EQ(opcomms_get_stats(b.peer, &stats), OPCOMMS_OK);
    CHECK_EQ(stats.messages_in, 1);
    end(&a);
    end(&b);
}

TEST(a_removal_in_the_middle_of_sending_sends_nothing) {
    opcomms_platform plat;
    opcomms_error err;
    trap t;
    both(OPCOMMS_KEY_P256);
    trapped(&a, &t, &plat, 0);
    t.hash = b.hash;
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "1", 1, 0, &err), OPCOMMS_E_NOT_ALLOWED);
    CHECK(t.hash == NULL);
    CHECK_EQ(t.bytes_sent, 0); /* not even a ClientHello */
    end(&a);
    end(&b);
}

/* The server ends idle connections after a moment; each message of a makes a new one. */
static uint64_t resumed_after(opcomms_peer *server, opcomms_stats *stats, uint64_t handshakes) {
    int i;
    for (i = 0; i < 2000; i++) {
        stats->size = sizeof *stats;
        CHECK_EQ(opcomms_get_stats(server, stats), OPCOMMS_OK);
        if (stats->handshakes >= handshakes && stats->connections == 0) break;
        (void)opcomms_wait(a.peer, 10); /* nothing comes: a pause of 10 ms */
    }
    CHECK_EQ(stats->handshakes, handshakes);
    CHECK_EQ(stats->connections, 0);
    return stats->resumed;
}

TEST(sessions_are_resumed_until_the_list_changes) {
    opcomms_config cfg;
    opcomms_error err;
    opcomms_stats stats;
    both(OPCOMMS_KEY_RSA_2048);
    opcomms_free(b.peer);
    fill(&cfg, &b);
    cfg.idle_timeout_ms = 30;
    CHECK_EQ(opcomms_new(&cfg, &b.peer, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_get_address(b.peer, b.address, sizeof b.address), OPCOMMS_OK);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "1", 1, 0, &err), OPCOMMS_OK);
    CHECK_EQ(resumed_after(b.peer, &stats, 1), 0);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "2", 1, 0, &err), OPCOMMS_OK);
    CHECK_EQ(resumed_after(b.peer, &stats, 2), 1);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "3", 1, 0, &err), OPCOMMS_OK);
    CHECK_EQ(resumed_after(b.peer, &stats, 3), 2);
    CHECK_EQ(opcomms_allow_list_remove(b.allow, a.hash), OPCOMMS_OK);
    CHECK_EQ(opcomms_allow_list_add(b.allow, b.hash, NULL), OPCOMMS_OK);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "4", 1, 0, &err), OPCOMMS_E_NOT_ALLOWED);
    CHECK_EQ(opcomms_allow_list_add(b.allow, a.hash, NULL), OPCOMMS_OK);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "5", 1, 0, &err), OPCOMMS_OK);
    CHECK_EQ(resumed_after(b.peer, &stats, 4), 2); /* a full handshake again */
    CHECK_EQ(opcomms_allow_list_add(a.allow, a.hash, NULL), OPCOMMS_OK);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "6", 1, 0, &err), OPCOMMS_OK);
    CHECK_EQ(resumed_after(b.peer, &stats, 5), 2); /* our own list counts as well */
    opcomms_free(b.peer);
    cfg.address = b.address;
    cfg.flags = OPCOMMS_NO_RESUMPTION;
    CHECK_EQ(opcomms_new(&cfg, &b.peer, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "7", 1, 0, &err), OPCOMMS_OK);
    CHECK_EQ(resumed_after(b.peer, &stats, 1), 0); /* the server forgot: falls back by itself */
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "8", 1, 0, &err), OPCOMMS_OK);
    CHECK_EQ(resumed_after(b.peer, &stats, 2), 0);
    end(&a);
    end(&b);
}

TEST(a_senders_idle_connection_is_closed_by_itself) {
    opcomms_config cfg;
    opcomms_error err;
    opcomms_stats stats;
    int i;
    both(OPCOMMS_KEY_P256);
    opcomms_free(a.peer);
    fill(&cfg, &a);
    cfg.idle_timeout_ms = 20;
    CHECK_EQ(opcomms_new(&cfg, &a.peer, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "1", 1, 0, &err), OPCOMMS_OK);
    stats.size = sizeof stats;
    for (i = 0; i < 2000; i++) {
        CHECK_EQ(opcomms_get_stats(a.peer, &stats), OPCOMMS_OK);
        if (stats.connections == 0) break;
        (void)opcomms_wait(a.peer, 10); /* nothing comes: a pause of 10 ms */
    }
    CHECK_EQ(stats.connections, 0);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "2", 1, 0, &err), OPCOMMS_OK);
    end(&a);
    end(&b);
}

/* ---- messages ---- */

TEST(a_message_handed_out_is_the_callers_until_it_is_acknowledged_or_released) {
    opcomms_message *m[65], *again = NULL;
    opcomms_error err;
    size_t i, got = 0;
    char text[16];
    both(OPCOMMS_KEY_P256);
    b.flags = 0;
    for (i = 0; i < 65; i++) {
        char c = (char)i;
        CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, &c, 1, 0, &err), OPCOMMS_OK);
        m[i] = NULL;
    }
    for (i = 0; i < 64; i++) CHECK_EQ(opcomms_receive(b.peer, 0, &m[i], &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_message_size(m[3]), 1);
    CHECK_EQ(opcomms_message_number(m[3]), 4);
    CHECK_EQ(opcomms_message_flags(m[3]), 0);
    opcomms_release(m[3]); /* back to its place in the order */
    CHECK_EQ(opcomms_receive(b.peer, 0, &again, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_message_read(again, 0, text, sizeof text, &got), OPCOMMS_OK);
    CHECK(got == 1 && text[0] == 3);
    CHECK_EQ(opcomms_message_read(again, 1, text, sizeof text, &got), OPCOMMS_OK);
    CHECK_EQ(got, 0);
    CHECK_EQ(opcomms_ack(again, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_receive(b.peer, 0, &m[64], &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_message_number(m[64]), 65);
    CHECK_EQ(opcomms_stop(b.peer), OPCOMMS_OK);
    CHECK_EQ(opcomms_message_read(m[5], 0, text, sizeof text, &got), OPCOMMS_E_CLOSED);
    CHECK_EQ(opcomms_ack(m[5], &err), OPCOMMS_E_CLOSED);
    opcomms_release(m[6]);
    opcomms_release(NULL);
    opcomms_free(b.peer);
    CHECK_EQ(start(&b, &err), OPCOMMS_OK);
    for (i = 0; i < 64; i++) { /* all but the acknowledged one, in order */
        CHECK_EQ(opcomms_check_receive(b.peer, NULL, text, 8, &got, &err), OPCOMMS_OK);
        CHECK_EQ(text[0], (char)(i < 3 ? i : i + 1));
    }
    CHECK_EQ(opcomms_check_receive(b.peer, NULL, text, 8, &got, &err), OPCOMMS_E_EMPTY);
    end(&a);
    end(&b);
}

TEST(at_most_16384_messages_are_handed_out_at_once) {
    const size_t most = 256 * 64;
    opcomms_message **m = (opcomms_message **)calloc(most + 1, sizeof *m);
    opcomms_identifier to;
    opcomms_config cfg;
    opcomms_error err;
    size_t i, count = 0;
    make(&b, "b", OPCOMMS_KEY_P256);
    fill(&cfg, &b);
    cfg.flags = OPCOMMS_MEMORY_STORE;
    cfg.queue_depth_max = (uint32_t)most + 1;
    CHECK_EQ(opcomms_new(&cfg, &b.peer, &err), OPCOMMS_OK);
    memset(&to, 0, sizeof to);
    memcpy(to.hash, b.hash, sizeof b.hash);
    for (i = 0; i <= most; i++) {
        if (opcomms_local_send(b.peer, 0, &to, "m", 1, 0, &err) != OPCOMMS_OK) break;
    }
    CHECK_EQ(i, most + 1);
    CHECK_EQ(opcomms_receive_batch(b.peer, 0, 0, m, most + 1, &count, &err), OPCOMMS_OK);
    CHECK_EQ(count, most);
    CHECK_EQ(opcomms_receive(b.peer, 0, &m[most], &err), OPCOMMS_E_LIMIT);
    CHECK_EQ(opcomms_ack(m[0], &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_receive(b.peer, 0, &m[most], &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_message_number(m[most]), most + 1);
    end(&b);
    free(m);
}

TEST(a_large_message_is_read_in_pieces) {
    const size_t len = 300000;
    uint8_t *data = (uint8_t *)malloc(len);
    opcomms_message *m = NULL;
    opcomms_error err;
    uint8_t piece[1000];
    size_t i, at = 0, got = 0, wrong = 0;
    both(OPCOMMS_KEY_P256);
    for (i = 0; i < len; i++) data[i] = (uint8_t)(i * 31 + i / 1000);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, data, len, 0, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_receive(b.peer, OPCOMMS_FOREVER, &m, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_message_size(m), len);
    while (opcomms_message_read(m, at, piece, 1 + at % sizeof piece, &got) == OPCOMMS_OK &&
           got > 0) {
        if (memcmp(piece, data + at, got) != 0) wrong++;
        at += got;
    }
    CHECK_EQ(at, len);
    CHECK_EQ(wrong, 0);
    CHECK_EQ(opcomms_ack(m, &err), OPCOMMS_OK);
    free(data);
    end(&a);
    end(&b);
}

TEST(queues_refuse_a_tarpc_sender_when_full_and_drop_nothing) {
    opcomms_config cfg;
    opcomms_error err;
    char text[8];
    size_t len = 0;
    both(OPCOMMS_KEY_P256);
    opcomms_free(b.peer);
    opcomms_free(a.peer);
    a.flags = OPCOMMS_TARPC_ONLY;
    CHECK_EQ(start(&a, &err), OPCOMMS_OK);
    fill(&cfg, &b);
    cfg.queue_depth_max = 3;
    CHECK_EQ(opcomms_new(&cfg, &b.peer, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_get_address(b.peer, b.address, sizeof b.address), OPCOMMS_OK);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "1", 1, 0, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "2", 1, 0, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "3", 1, 0, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "4", 1, 0, &err), OPCOMMS_E_REMOTE);
    CHECK(strstr(err.text, "full") != NULL);
    CHECK_EQ(opcomms_check_receive(b.peer, NULL, text, 8, &len, &err), OPCOMMS_OK);
    CHECK_EQ(text[0], '1');
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "5", 1, 0, &err), OPCOMMS_OK);
    opcomms_free(b.peer); /* a restart with a smaller limit keeps what was accepted */
    cfg.queue_depth_max = 1;
    CHECK_EQ(opcomms_new(&cfg, &b.peer, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_check_receive(b.peer, NULL, text, 8, &len, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_check_receive(b.peer, NULL, text, 8, &len, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_check_receive(b.peer, NULL, text, 8, &len, &err), OPCOMMS_OK);
    CHECK_EQ(text[0], '5');
    CHECK_EQ(opcomms_check_receive(b.peer, NULL, text, 8, &len, &err), OPCOMMS_E_EMPTY);
    end(&a);
    end(&b);
}

typedef struct late {
    opcomms_err rc;
    opcomms_error err;
} late;

static void *late_sender(void *arg) {
    late *l = (late *)arg;
    l->rc = opcomms_send(a.peer, b.hash, b.address, "5", 1, 60000, &l->err);
    return NULL;
}

TEST(a_full_queue_makes_a_native_sender_wait_and_drops_nothing) {
    opcomms_config cfg;
    opcomms_error err;
    opcomms_identifier to;
    opcomms_event event;
    pthread_t t;
    late l;
    char text[8];
    size_t len = 0, i;
    uint64_t number = 0;
    both(OPCOMMS_KEY_P256);
    opcomms_free(b.peer);
    fill(&cfg, &b);
    cfg.queue_depth_max = 3;
    CHECK_EQ(opcomms_new(&cfg, &b.peer, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_get_address(b.peer, b.address, sizeof b.address), OPCOMMS_OK);
    for (i = 1; i <= 3; i++) {
        text[0] = (char)('0' + i);
        CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, text, 1, 0, &err), OPCOMMS_OK);
    }
    /* Without room at the receiver it does not leave, and the time passes. */
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "4", 1, 200, &err), OPCOMMS_E_TIMEOUT);
    CHECK_EQ(pthread_create(&t, NULL, late_sender, &l), 0);
    memset(&to, 0, sizeof to);
    memcpy(to.hash, b.hash, sizeof b.hash);
    CHECK_EQ(opcomms_enqueue(a.peer, &to, b.address, NULL, 0, "6", 1, NULL, &number, &err),
             OPCOMMS_OK);
    CHECK_EQ(opcomms_next_event(a.peer, 200, &event), OPCOMMS_E_EMPTY);
    CHECK_EQ(opcomms_queued_count(a.peer, b.hash), 1);
    for (i = 1; i <= 3; i++) { /* what was stored, in order; now there is room */
        CHECK_EQ(opcomms_check_receive(b.peer, NULL, text, 8, &len, &err), OPCOMMS_OK);
        CHECK_EQ(text[0], '0' + (char)i);
    }
    CHECK_EQ(pthread_join(t, NULL), 0);
    CHECK_EQ(l.rc, OPCOMMS_OK);
    CHECK_EQ(opcomms_next_event(a.peer, 60000, &event), OPCOMMS_OK);
    CHECK_EQ(event.number, number);
    CHECK_EQ(event.state, OPCOMMS_STATE_DURABLE);
    CHECK_EQ(opcomms_queued_count(a.peer, NULL), 0);
    CHECK_EQ(opcomms_check_receive(b.peer, NULL, text, 8, &len, &err), OPCOMMS_OK);
    CHECK(text[0] == '5' || text[0] == '6');
    i = (size_t)('5' + '6' - text[0]);
    CHECK_EQ(opcomms_check_receive(b.peer, NULL, text, 8, &len, &err), OPCOMMS_OK);
    CHECK_EQ(text[0], i);
    CHECK_EQ(opcomms_check_receive(b.peer, NULL, text, 8, &len, &err), OPCOMMS_E_EMPTY);
    end(&a);
    end(&b);
}

TEST(every_durability_and_the_memory_store_deliver) {
    int i;
    for (i = 0; i < 4; i++) {
        opcomms_error err;
        char text[8];
        size_t len = 0;
        make(&a, "a", OPCOMMS_KEY_P256);
        make(&b, "b", OPCOMMS_KEY_P256);
        CHECK_EQ(opcomms_allow_list_add(a.allow, b.hash, NULL), OPCOMMS_OK);
        CHECK_EQ(opcomms_allow_list_add(b.allow, a.hash, NULL), OPCOMMS_OK);
        b.durability = i < 3 ? (opcomms_durability)i : OPCOMMS_DURABLE_ALWAYS;
        if (i == 3) b.flags = OPCOMMS_MEMORY_STORE;
        CHECK_EQ(start(&a, &err), OPCOMMS_OK);
        CHECK_EQ(start(&b, &err), OPCOMMS_OK);
        CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "1", 1, 0, &err), OPCOMMS_OK);
        CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "2", 1, 0, &err), OPCOMMS_OK);
        CHECK_EQ(opcomms_check_receive(b.peer, NULL, text, 8, &len, &err), OPCOMMS_OK);
        CHECK_EQ(text[0], '1');
        CHECK_EQ(opcomms_stop(b.peer), OPCOMMS_OK);
        opcomms_free(b.peer);
        CHECK_EQ(start(&b, &err), OPCOMMS_OK);
        CHECK_EQ(opcomms_check_receive(b.peer, NULL, text, 8, &len, &err),
                 i < 3 ? OPCOMMS_OK : OPCOMMS_E_EMPTY);
        if (i < 3) CHECK_EQ(text[0], '2');
        end(&a);
        end(&b);
    }
}

/* ---- stopping, callbacks, threads ---- */

static void *wait_for_ever(void *arg) {
    opcomms_message *m = NULL;
    (void)arg;
    return opcomms_receive(b.peer, OPCOMMS_FOREVER, &m, NULL) == OPCOMMS_E_CLOSED ? arg : NULL;
}

static void *stop_b(void *arg) {
    return opcomms_stop(b.peer) == OPCOMMS_OK ? arg : NULL;
}

TEST(stop_wakes_who_waits_and_may_be_called_by_several) {
    pthread_t t[4];
    void *ok = NULL;
    size_t i;
    both(OPCOMMS_KEY_P256);
    for (i = 0; i < 2; i++) CHECK_EQ(pthread_create(&t[i], NULL, wait_for_ever, &a), 0);
    for (i = 2; i < 4; i++) CHECK_EQ(pthread_create(&t[i], NULL, stop_b, &a), 0);
    for (i = 0; i < 4; i++) {
        CHECK_EQ(pthread_join(t[i], &ok), 0);
        CHECK(ok == &a);
    }
    CHECK_EQ(opcomms_stop(b.peer), OPCOMMS_OK);
    CHECK_EQ(opcomms_wait(b.peer, 0), OPCOMMS_E_CLOSED);
    end(&a);
    end(&b);
}

typedef struct inside {
    opcomms_peer **peer;
    opcomms_err send, stop, receive, receive_now;
    int calls;
    int done[2]; /* a pipe: one byte when the callback has tried everything */
} inside;

static void log_inside(void *user, int level, const char *text) {
    inside *in = (inside *)user;
    opcomms_message *m = NULL;
    CHECK(level >= OPCOMMS_LOG_ERROR && level <= OPCOMMS_LOG_INFO);
    CHECK(text != NULL && text[0] != 0);
    if (*in->peer == NULL || in->calls++ > 0) return;
    in->send = opcomms_send(*in->peer, a.hash, a.address, "x", 1, 0, NULL);
    in->stop = opcomms_stop(*in->peer);
    in->receive = opcomms_receive(*in->peer, 10, &m, NULL);
    in->receive_now = opcomms_receive(*in->peer, 0, &m, NULL);
    CHECK_EQ(write(in->done[1], "x", 1), 1);
}

TEST(blocking_calls_are_refused_inside_a_callback) {
    opcomms_config cfg;
    opcomms_error err;
    inside in;
    char byte;
    both(OPCOMMS_KEY_P256);
    opcomms_free(b.peer);
    b.peer = NULL;
    memset(&in, 0, sizeof in);
    in.peer = &b.peer;
    CHECK_EQ(pipe(in.done), 0);
    fill(&cfg, &b);
    cfg.log = log_inside;
    cfg.log_user = &in;
    CHECK_EQ(opcomms_allow_list_add(b.allow, a.hash, NULL), OPCOMMS_OK);
    CHECK_EQ(opcomms_routing_table_allow_all(b.routes, 0), OPCOMMS_OK);
    CHECK_EQ(opcomms_new(&cfg, &b.peer, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_get_address(b.peer, b.address, sizeof b.address), OPCOMMS_OK);
    /* This one is logged. */
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "x", 1, 0, &err), OPCOMMS_E_ROUTE);
    CHECK_EQ(read(in.done[0], &byte, 1), 1);
    CHECK_EQ(opcomms_stop(b.peer), OPCOMMS_OK);
    CHECK(in.calls > 0);
    CHECK_EQ(in.send, OPCOMMS_E_BUSY);
    CHECK_EQ(in.stop, OPCOMMS_E_BUSY);
    CHECK_EQ(in.receive, OPCOMMS_E_BUSY);
    CHECK_EQ(in.receive_now, OPCOMMS_E_EMPTY);
    close(in.done[0]);
    close(in.done[1]);
    end(&a);
    end(&b);
}

static void *send_twenty(void *arg) {
    party *from = (party *)arg, *to = from == &a ? &b : &a;
    opcomms_error err;
    int i;
    for (i = 0; i < 20; i++) {
        if (opcomms_send(from->peer, to->hash, to->address, "x", 1, 0, &err) != OPCOMMS_OK) {
            return NULL;
        }
    }
    return arg;
}

/* Two peers without background threads, each with a thread that sends and one that polls. */
static void *poll_until_closed(void *arg) {
    party *p = (party *)arg;
    for (;;) {
        opcomms_err rc = opcomms_poll(p->peer, 5);
        if (rc != OPCOMMS_OK && rc != OPCOMMS_E_BUSY) return rc == OPCOMMS_E_CLOSED ? arg : NULL;
    }
}

TEST(peers_without_a_thread_of_their_own_are_pumped_by_their_callers) {
    pthread_t t[4];
    void *ok = NULL;
    opcomms_error err;
    size_t len = 0, count = 0;
    char text[8];
    make(&a, "a", OPCOMMS_KEY_P256);
    make(&b, "b", OPCOMMS_KEY_P256);
    a.flags = b.flags = OPCOMMS_NO_BACKGROUND;
    CHECK_EQ(opcomms_allow_list_add(a.allow, b.hash, NULL), OPCOMMS_OK);
    CHECK_EQ(opcomms_allow_list_add(b.allow, a.hash, NULL), OPCOMMS_OK);
    CHECK_EQ(start(&a, &err), OPCOMMS_OK);
    CHECK_EQ(start(&b, &err), OPCOMMS_OK);
    CHECK_EQ(pthread_create(&t[0], NULL, send_twenty, &a), 0);
    CHECK_EQ(pthread_create(&t[1], NULL, send_twenty, &b), 0);
    CHECK_EQ(pthread_create(&t[2], NULL, poll_until_closed, &a), 0);
    CHECK_EQ(pthread_create(&t[3], NULL, poll_until_closed, &b), 0);
    CHECK(pthread_join(t[0], &ok) == 0 && ok == &a);
    CHECK(pthread_join(t[1], &ok) == 0 && ok == &b);
    while (opcomms_check_receive(b.peer, NULL, text, 8, &len, &err) == OPCOMMS_OK) count++;
    CHECK_EQ(count, 20);
    CHECK_EQ(opcomms_stop(a.peer), OPCOMMS_OK); /* while another thread is in opcomms_poll */
    CHECK_EQ(opcomms_stop(b.peer), OPCOMMS_OK);
    CHECK(pthread_join(t[2], &ok) == 0 && ok == &a);
    CHECK(pthread_join(t[3], &ok) == 0 && ok == &b);
    CHECK_EQ(opcomms_poll(a.peer, 0), OPCOMMS_E_CLOSED);
    end(&a);
    end(&b);
}

TEST(poll_is_for_peers_without_a_thread) {
    opcomms_pollfd fds[4];
    size_t count = 0;
    int32_t timeout_ms = 0;
    opcomms_error err;
    both(OPCOMMS_KEY_P256);
    CHECK_EQ(opcomms_poll(a.peer, 0), OPCOMMS_E_BUSY);
    CHECK_EQ(opcomms_pollfds(a.peer, fds, 4, &count, &timeout_ms), OPCOMMS_E_BUSY);
    opcomms_free(a.peer);
    a.flags = OPCOMMS_NO_BACKGROUND;
    CHECK_EQ(start(&a, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_pollfds(a.peer, fds, 1, &count, &timeout_ms), OPCOMMS_E_BUFFER);
    CHECK_EQ(count, 2);
    CHECK_EQ(opcomms_poll(a.peer, 0), OPCOMMS_OK);
    CHECK_EQ(opcomms_pollfds(a.peer, fds, 4, &count, &timeout_ms), OPCOMMS_OK);
    CHECK_EQ(timeout_ms, -1); /* nothing to do until somebody calls */
    end(&a);
    end(&b);
}

TEST(no_descriptor_leaks_into_a_child_and_no_signal_is_raised) {
    opcomms_error err;
    pid_t child;
    int status = 1, fd, opened = 0;
    char before[200];
    for (fd = 3; fd < 200; fd++) before[fd] = (char)(fcntl(fd, F_GETFD) >= 0);
    both(OPCOMMS_KEY_P256);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "x", 1, 0, &err), OPCOMMS_OK);
    for (fd = 3; fd < 200; fd++) {
        int flags = fcntl(fd, F_GETFD);
        if (flags < 0 || before[fd]) continue;
        CHECK(flags & FD_CLOEXEC);
        opened++;
    }
    CHECK(opened >= 10); /* of each: two wake handles, listener, log, lock, directory... */
    child = fork();      /* the kept connection breaks under a's hands, SIGPIPE at its default */
    if (child == 0) {
        signal(SIGPIPE, SIG_DFL);
        _exit(0);
    }
    CHECK_EQ(waitpid(child, &status, 0), child);
    signal(SIGPIPE, SIG_DFL);
    opcomms_free(b.peer);
    b.peer = NULL;
    CHECK(opcomms_send(a.peer, b.hash, b.address, "x", 1, 0, &err) != OPCOMMS_OK);
    end(&a);
    end(&b);
}

TEST(texts_and_severities_exist_for_every_error) {
    int i;
    for (i = 0; i > (int)OPCOMMS_E_LAST_; i--) {
        CHECK(strcmp(opcomms_err_text((opcomms_err)i), "unknown error") != 0);
        CHECK(opcomms_err_severity((opcomms_err)i) >= 0);
        CHECK(opcomms_err_severity((opcomms_err)i) <= 3);
    }
    CHECK_STR(opcomms_err_text((opcomms_err)1), "unknown error");
    CHECK_STR(opcomms_version(), OPCOMMS_VERSION_STRING);
}

int main(void) {
    if (!party_begin()) return 1;
    RUN(new_refuses_a_config_that_makes_no_sense);
    RUN(new_fails_cleanly_at_every_allocation_and_gives_everything_back);
    RUN(a_log_serves_one_peer_and_one_key);
    RUN(one_connection_serves_many_messages_and_is_made_anew_after_a_restart);
    RUN(a_peer_that_is_not_there_is_reported);
    RUN(a_mute_server_costs_no_more_than_the_time_given);
    RUN(a_dual_stack_listener_knows_its_ipv4_peers);
    RUN(a_listed_hash_from_another_address_is_turned_away);
    RUN(lists_are_shared_and_changed_while_peers_run);
    RUN(nothing_is_stored_once_a_removal_has_returned);
    RUN(a_removal_in_the_middle_of_storing_stores_nothing);
    RUN(a_removal_in_the_middle_of_sending_sends_nothing);
    RUN(sessions_are_resumed_until_the_list_changes);
    RUN(a_senders_idle_connection_is_closed_by_itself);
    RUN(a_message_handed_out_is_the_callers_until_it_is_acknowledged_or_released);
    RUN(at_most_16384_messages_are_handed_out_at_once);
    RUN(a_large_message_is_read_in_pieces);
    RUN(queues_refuse_a_tarpc_sender_when_full_and_drop_nothing);
    RUN(a_full_queue_makes_a_native_sender_wait_and_drops_nothing);
    RUN(every_durability_and_the_memory_store_deliver);
    RUN(stop_wakes_who_waits_and_may_be_called_by_several);
    RUN(blocking_calls_are_refused_inside_a_callback);
    RUN(peers_without_a_thread_of_their_own_are_pumped_by_their_callers);
    RUN(poll_is_for_peers_without_a_thread);
    RUN(no_descriptor_leaks_into_a_child_and_no_signal_is_raised);
    RUN(texts_and_severities_exist_for_every_error);
    return party_end();
}
