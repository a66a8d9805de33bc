/* An operator of a test: key, lists, log and peer, through the public functions alone. */
#ifndef OPCOMMS_TEST_PARTY_H
#define OPCOMMS_TEST_PARTY_H

#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#include "test.h"

typedef struct party {
    char pem[4096];
    size_t pem_len;
    char hash[65];
    char address[64];
    char log[128];
    opcomms_allow_list *allow;
    opcomms_routing_table *routes;
    opcomms_peer *peer;
    uint32_t flags;
    opcomms_durability durability;
} party;

static char dir[64];
static party a, b;

static void make(party *p, const char *name, opcomms_key_type type) {
    opcomms_error err;
    memset(p, 0, sizeof *p);
    CHECK_EQ(opcomms_generate_key_pem(type, p->pem, sizeof p->pem, &p->pem_len, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_pubk_hash_from_pem(p->pem, p->pem_len, p->hash, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_allow_list_new(NULL, &p->allow), OPCOMMS_OK);
    CHECK_EQ(opcomms_routing_table_new(NULL, &p->routes), OPCOMMS_OK);
    CHECK_EQ(opcomms_routing_table_allow_all(p->routes, 1), OPCOMMS_OK);
    snprintf(p->log, sizeof p->log, "%s/%s.log", dir, name);
    strcpy(p->address, "127.0.0.1:0");
}

static opcomms_err start(party *p, opcomms_error *err) {
    opcomms_config cfg;
    opcomms_err rc;
    opcomms_config_init(&cfg);
    cfg.address = p->address;
    cfg.key_pem = p->pem;
    cfg.key_pem_bytes = p->pem_len;
    cfg.allow = p->allow;
    cfg.routes = p->routes;
    cfg.log_path = p->log;
    cfg.flags = p->flags;
    cfg.durability = p->durability;
    rc = opcomms_new(&cfg, &p->peer, err);
    if (rc == OPCOMMS_OK && !(p->flags & OPCOMMS_NO_LISTEN)) {
        CHECK_EQ(opcomms_get_address(p->peer, p->address, 64), OPCOMMS_OK);
    }
    if (rc != OPCOMMS_OK) printf("%s\n", err->text);
    return rc;
}

static inline void both(opcomms_key_type type) {
    opcomms_error err;
    make(&a, "a", type);
    make(&b, "b", type);
    CHECK_EQ(opcomms_allow_list_add(a.allow, b.hash, NULL), OPCOMMS_OK);
    CHECK_EQ(opcomms_allow_list_add(b.allow, a.hash, "127.0.0.1"), OPCOMMS_OK);
    CHECK_EQ(start(&a, &err), OPCOMMS_OK);
    CHECK_EQ(start(&b, &err), OPCOMMS_OK);
}

static void end(party *p) {
    char lock[160];
    opcomms_free(p->peer);
    p->peer = NULL;
    opcomms_allow_list_release(p->allow);
    opcomms_routing_table_release(p->routes);
    unlink(p->log);
    snprintf(lock, sizeof lock, "%s.lock", p->log);
    unlink(lock);
}

/* Before and after all tests of a program. */
static int party_begin(void) {
    strcpy(dir, "/tmp/opcomms-test-XXXXXX");
    return mkdtemp(dir) != NULL;
}

static int party_end(void) {
    char command[160];
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return system(command) == 0 ? test_end() : 1;
}

#endif
