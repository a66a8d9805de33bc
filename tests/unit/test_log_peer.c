/* What the peer does with its log: when it writes, when it makes space, what it tells. The disk is
   in memory, the rest of the platform is the system's; messages are put into the store directly. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#include "test.h"
#include "logworld.h"

static fdisk disk;
static opcomms_platform plat;
static opcomms_config cfg;
static opcomms_allow_list *allow;
static opcomms_routing_table *routes;
static char told[1000];

static void tell(void *user, int level, const char *text) {
    (void)user;
    (void)level;
    strncat(told, text, sizeof told - strlen(told) - 2);
    strcat(told, "\n");
}

static opcomms_peer *open_peer(void) {
    opcomms_peer *p = NULL;
    opcomms_error err;
    memset(&err, 0, sizeof err);
    told[0] = 0;
    CHECK_EQ(opcomms_new(&cfg, &p, &err), OPCOMMS_OK);
    if (p == NULL) printf("%s\n", err.text);
    return p;
}

/* A message as a connection would store it, seen by the next step. */
static void store(opcomms_peer *p, uint8_t tag, size_t len) {
    static uint8_t data[16384];
    opc__msg_meta m;
    uint32_t put = 0;
    uint64_t uid = 0, ref = 0, position = 0;
    memset(&m, 0, sizeof m);
    memset(m.from, tag, 32);
    m.dest = (const uint8_t *)p->hash_text;
    m.dest_len = 64;
    m.bytes = len;
    CHECK_EQ(opc__mailbox_reserve(&p->mailbox, p->own_box, m.from), OPCOMMS_OK);
    CHECK_EQ(p->store->c->begin(p->store, &put), OPCOMMS_OK);
    CHECK_EQ(p->store->c->data(p->store, put, data, len), OPCOMMS_OK);
    CHECK_EQ(p->store->c->commit(p->store, put, &m, &uid, &ref, &position), OPCOMMS_OK);
    opc__mailbox_add(&p->mailbox, p->own_box, m.from, uid, ref, position, len);
    p->unflushed++;
}

static int received(opcomms_peer *p, size_t *len) {
    char buf[16384];
    return opcomms_check_receive(p, NULL, buf, sizeof buf, len, NULL) == OPCOMMS_OK;
}

TEST(an_acknowledgement_made_while_the_disk_works_is_written_by_the_next_step) {
    opcomms_peer *p = open_peer();
    size_t len = 0;
    store(p, 1, 10);
    CHECK(!received(p, &len)); /* not before it is durable */
    CHECK_EQ(opcomms_poll(p, 0), OPCOMMS_OK);
    store(p, 2, 20);
    CHECK_EQ(p->store->c->flush_begin(p->store), OPCOMMS_OK); /* a flush thread takes over */
    p->flushing = 1;
    CHECK(received(p, &len));
    CHECK_EQ(len, 10);
    CHECK_EQ(p->store->c->flush_end(p->store, p->store->c->flush_run(p->store)), OPCOMMS_OK);
    p->flushing = 0;
    p->unflushed = 0;
    CHECK_EQ(opcomms_poll(p, 0), OPCOMMS_OK);
    CHECK_EQ(p->store->c->written(p->store), p->store->c->end(p->store));
    log_abandon(p->store); /* kill -9 */
    p->store = NULL;
    opcomms_free(p);
    p = open_peer();
    CHECK(received(p, &len));
    CHECK_EQ(len, 20);
    CHECK(!received(p, &len));
    opcomms_free(p);
}

TEST(a_step_with_nothing_else_to_do_makes_space_in_the_log) {
    opcomms_peer *p = open_peer();
    size_t size;
    int i;
    for (i = 0; i < 3; i++) CHECK_EQ(opcomms_poll(p, 0), OPCOMMS_OK);
    CHECK_EQ(fd_find(&disk, "peer.log")->size, 4096 + 96); /* nothing was stored */
    store(p, 1, 10);
    for (i = 0; i < 3; i++) CHECK_EQ(opcomms_poll(p, 0), OPCOMMS_OK);
    size = fd_find(&disk, "peer.log")->size;
    CHECK(size >= 65536);
    store(p, 1, 10);
    for (i = 0; i < 3; i++) CHECK_EQ(opcomms_poll(p, 0), OPCOMMS_OK);
    CHECK_EQ(fd_find(&disk, "peer.log")->size, size);
    for (i = 0; i < 60; i++) {
        store(p, 1, 1000);
        CHECK_EQ(opcomms_poll(p, 0), OPCOMMS_OK);
        CHECK_EQ(opcomms_poll(p, 0), OPCOMMS_OK);
        size = fd_find(&disk, "peer.log")->size;
        CHECK(size >= p->store->c->end(p->store) + 30000);
    }
    opcomms_free(p);
}

TEST(the_peer_tells_what_opening_cut_off) {
    opcomms_peer *p = open_peer();
    fd_file *f;
    store(p, 1, 10);
    CHECK_EQ(p->store->c->write(p->store), OPCOMMS_OK);
    store(p, 2, 10);
    CHECK_EQ(p->store->c->write(p->store), OPCOMMS_OK);
    log_abandon(p->store);
    p->store = NULL;
    opcomms_free(p);
    f = fd_find(&disk, "peer.log");
    f->cache[f->size - 1] ^= 1;
    p = open_peer();
    CHECK_EQ(opcomms_poll(p, 0), OPCOMMS_OK);
    CHECK(strstr(told, "cut off: 214") != NULL); /* 48 + 8 + 84 + 64 + 10 */
    CHECK_EQ(p->mailbox.count, 1);
    opcomms_free(p);
    p = open_peer();
    CHECK_EQ(opcomms_poll(p, 0), OPCOMMS_OK);
    CHECK(strstr(told, "cut off") == NULL);
    opcomms_free(p);
}

TEST(a_log_found_damaged_is_told_with_its_place) {
    opcomms_peer *p = open_peer();
    opcomms_error err;
    fd_file *f;
    store(p, 1, 10);
    opcomms_free(p);
    f = fd_find(&disk, "peer.log");
    f->cache[4096 + 60] ^= 1;
    p = NULL;
    memset(&err, 0, sizeof err);
    CHECK_EQ(opcomms_new(&cfg, &p, &err), OPCOMMS_E_LOG_DAMAGED);
    CHECK_EQ(err.position, 4096);
    CHECK(p == NULL);
}

static void begin(void) { fd_clear(&disk); }

int main(void) {
    char pem[4096];
    size_t len = 0;
    fd_init(&disk, 1);
    plat = fd_platform(&disk);
    CHECK(opcomms_generate_key_pem(OPCOMMS_KEY_P256, pem, sizeof pem, &len, NULL) == OPCOMMS_OK);
    CHECK(opcomms_allow_list_new(NULL, &allow) == OPCOMMS_OK);
    CHECK(opcomms_routing_table_new(NULL, &routes) == OPCOMMS_OK);
    opcomms_config_init(&cfg);
    cfg.flags = OPCOMMS_NO_BACKGROUND | OPCOMMS_NO_LISTEN;
    cfg.key_pem = pem;
    cfg.key_pem_bytes = len;
    cfg.allow = allow;
    cfg.routes = routes;
    cfg.log_path = "dir/peer.log";
    cfg.platform = &plat;
    cfg.log = tell;
    begin();
    RUN(an_acknowledgement_made_while_the_disk_works_is_written_by_the_next_step);
    begin();
    RUN(a_step_with_nothing_else_to_do_makes_space_in_the_log);
    begin();
    RUN(the_peer_tells_what_opening_cut_off);
    begin();
    RUN(a_log_found_damaged_is_told_with_its_place);
    opcomms_allow_list_release(allow);
    opcomms_routing_table_release(routes);
    fd_free(&disk);
    return test_end();
}
