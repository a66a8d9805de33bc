/* Who is turned away hears why, and so does who turns away: through the public functions only. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#include "test.h"

typedef struct operator_ {
    opcomms_peer *peer;
    opcomms_allow_list *allow;
    opcomms_routing_table *routes;
    char hash[65];
    char address[64];
} operator_;

static void start(operator_ *o, const char *key_file) {
    opcomms_config cfg;
    opcomms_error err;
    memset(o, 0, sizeof *o);
    memset(&err, 0, sizeof err);
    CHECK_EQ(opcomms_allow_list_new(NULL, &o->allow), OPCOMMS_OK);
    CHECK_EQ(opcomms_routing_table_new(NULL, &o->routes), OPCOMMS_OK);
    (void)opcomms_routing_table_allow_all(o->routes, 1);
    opcomms_config_init(&cfg);
    cfg.address = "127.0.0.1:0";
    cfg.key_file = key_file;
    cfg.allow = o->allow;
    cfg.routes = o->routes;
    cfg.flags = OPCOMMS_MEMORY_STORE;
    CHECK_EQ(opcomms_new(&cfg, &o->peer, &err), OPCOMMS_OK);
    if (o->peer == NULL) {
        printf("%s\n", err.text);
        exit(1);
    }
    (void)opcomms_get_pubk_hash(o->peer, o->hash);
    (void)opcomms_get_address(o->peer, o->address, sizeof o->address);
}

static void stop(operator_ *o) {
    opcomms_free(o->peer);
    opcomms_allow_list_release(o->allow);
    opcomms_routing_table_release(o->routes);
}

static void unlisted(const char *a_key, const char *b_key) {
    operator_ a, b;
    int i;
    start(&a, a_key);
    start(&b, b_key);
    (void)opcomms_allow_list_add(a.allow, b.hash, NULL);
    (void)opcomms_allow_list_add(b.allow, a.hash, "127.0.0.2"); /* its address is not this one */
    (void)opcomms_allow_list_add(b.allow, b.hash,
                                 NULL); /* so that somebody is admitted from here */
    for (i = 0; i < 5; i++) {           /* every time, not only when the reset loses the race */
        opcomms_error err;
        memset(&err, 0, sizeof err);
        CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "x", 1, 0, &err), OPCOMMS_E_NOT_ALLOWED);
        CHECK_EQ(err.tls_code, 256 + 46);
    }
    (void)opcomms_allow_list_add(b.allow, a.hash, NULL);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "x", 1, 0, NULL), OPCOMMS_OK);
    stop(&a);
    stop(&b);
}

TEST(whom_the_receiver_s_list_does_not_name_is_told_so_each_time) {
    unlisted("certs/rsa_1.key", "certs/rsa_2.key");
    unlisted("certs/p256_1.key", "certs/rsa_2.key");
}

TEST(a_peer_with_another_ca_is_told_that_its_certificate_is_not_acceptable) {
    operator_ a, b;
    opcomms_config cfg;
    opcomms_error err;
    start(&a, "certs/rsa_1.key");
    start(&b, "certs/rsa_2.key");
    (void)opcomms_allow_list_add(a.allow, b.hash, NULL);
    (void)opcomms_allow_list_add(b.allow, a.hash, NULL);
    opcomms_free(b.peer);
    b.peer = NULL;
    opcomms_config_init(&cfg);
    cfg.address = "127.0.0.1:0";
    cfg.key_file = "certs/rsa_2.key";
    cfg.ca_key_file = "certs/own_ca.key";
    cfg.allow = b.allow;
    cfg.routes = b.routes;
    cfg.flags = OPCOMMS_MEMORY_STORE;
    CHECK_EQ(opcomms_new(&cfg, &b.peer, &err), OPCOMMS_OK);
    (void)opcomms_get_address(b.peer, b.address, sizeof b.address);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "x", 1, 0, &err), OPCOMMS_E_CERT);
    CHECK(err.tls_code > 32 && err.tls_code < 64);
    stop(&a);
    stop(&b);
}

TEST(refused_strangers_do_not_use_up_the_places_for_others) {
    operator_ a, b, c;
    opcomms_stats stats;
    int i;
    start(&a, "certs/p256_1.key");
    start(&b, "certs/p256_2.key");
    start(&c, "certs/p384_1.key");
    (void)opcomms_allow_list_allow_all(a.allow, 1);
    (void)opcomms_allow_list_allow_all(c.allow, 1);
    (void)opcomms_allow_list_add(b.allow, c.hash, NULL);
    for (i = 0; i < 40; i++) { /* more than handshakes_max and connections_per_address */
        CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "x", 1, 0, NULL), OPCOMMS_E_NOT_ALLOWED);
    }
    CHECK_EQ(opcomms_send(c.peer, b.hash, b.address, "x", 1, 0, NULL), OPCOMMS_OK);
    memset(&stats, 0, sizeof stats);
    stats.size = (uint32_t)sizeof stats;
    CHECK_EQ(opcomms_get_stats(b.peer, &stats), OPCOMMS_OK);
    CHECK_EQ(stats.handshakes_failed, 40);
    CHECK_EQ(stats.messages_in, 1);
    stop(&a);
    stop(&b);
    stop(&c);
}

int main(void) {
    RUN(whom_the_receiver_s_list_does_not_name_is_told_so_each_time);
    RUN(a_peer_with_another_ca_is_told_that_its_certificate_is_not_acceptable);
    RUN(refused_strangers_do_not_use_up_the_places_for_others);
    return test_end();
}
