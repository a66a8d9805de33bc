/* A peer that hangs up while we write has often said why: what it said is read before the
   connection is given up. A rustls server ends the TCP connection right after its alert. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#include "test.h"

static opcomms_platform platform;
static int sends; /* left until sending fails, as after a reset */
static int words; /* 1: fails only when the peer's last words have arrived, which is the race */

static opcomms_err send_hook(void *user, intptr_t sock, const void *buf, size_t len, size_t *put,
                             int *os_code) {
    const opcomms_platform *real = opc__plat_default();
    if (sends == 0) {
        struct pollfd fd;
        fd.fd = (int)sock;
        fd.events = POLLIN;
        if (words) CHECK_EQ(poll(&fd, 1, 5000), 1);
        *os_code = EPIPE;
        return OPCOMMS_E_CLOSED;
    }
    sends--;
    return real->sock_send(user, sock, buf, len, put, os_code);
}

typedef struct operator_ {
    opcomms_peer *peer;
    opcomms_allow_list *allow;
    opcomms_routing_table *routes;
    char hash[65];
    char address[64];
} operator_;

static void start(operator_ *o, const char *key_file, const opcomms_platform *plat) {
    opcomms_config cfg;
    memset(o, 0, sizeof *o);
    CHECK_EQ(opcomms_allow_list_new(NULL, &o->allow), OPCOMMS_OK);
    CHECK_EQ(opcomms_routing_table_new(NULL, &o->routes), OPCOMMS_OK);
    (void)opcomms_routing_table_allow_all(o->routes, 1);
    opcomms_config_init(&cfg);
    cfg.address = "127.0.0.1:0";
    cfg.key_file = key_file;
    cfg.allow = o->allow;
    cfg.routes = o->routes;
    cfg.flags = OPCOMMS_MEMORY_STORE;
    cfg.platform = plat;
    CHECK_EQ(opcomms_new(&cfg, &o->peer, NULL), OPCOMMS_OK);
    (void)opcomms_get_pubk_hash(o->peer, o->hash);
    (void)opcomms_get_address(o->peer, o->address, sizeof o->address);
}

static void stop(operator_ *o) {
    opcomms_free(o->peer);
    opcomms_allow_list_release(o->allow);
    opcomms_routing_table_release(o->routes);
}

static void refused(int sends_before, int has_words, opcomms_err right, int tls_code) {
    operator_ a, b;
    opcomms_error err;
    memset(&err, 0, sizeof err);
    platform = *opc__plat_default();
    platform.sock_send = send_hook;
    start(&a, "certs/rsa_1.key", &platform);
    start(&b, "certs/rsa_2.key", NULL);
    (void)opcomms_allow_list_allow_all(a.allow, 1);
    (void)opcomms_allow_list_add(b.allow, b.hash, NULL); /* somebody is admitted from here */
    sends = sends_before;
    words = has_words;
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "x", 1, 0, &err), right);
    CHECK_EQ(err.tls_code, tls_code);
    stop(&a);
    stop(&b);
}

TEST(the_alert_is_heard_although_the_next_write_fails) {
    /* ClientHello, then certificate, key exchange and its signature; ChangeCipherSpec fails. */
    refused(2, 1, OPCOMMS_E_NOT_ALLOWED, 256 + 46);
}

TEST(a_peer_that_hangs_up_without_a_word_is_an_error_at_once) {
    refused(1, 0, OPCOMMS_E_TLS, 0);
}

int main(void) {
    RUN(the_alert_is_heard_although_the_next_write_fails);
    RUN(a_peer_that_hangs_up_without_a_word_is_an_error_at_once);
    return test_end();
}
