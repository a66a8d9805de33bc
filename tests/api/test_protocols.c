/* Which protocol two peers speak, and what a peer that only sends is spared. */
#include "party.h"

static opcomms_identifier mailbox_of(const party *p) {
    opcomms_identifier id;
    memset(&id, 0, sizeof id);
    strcpy(id.hash, p->hash);
    return id;
}

static opcomms_stats stats_of(const party *p) {
    opcomms_stats s;
    memset(&s, 0, sizeof s);
    s.size = sizeof s;
    CHECK_EQ(opcomms_get_stats(p->peer, &s), OPCOMMS_OK);
    return s;
}

/* The event that ends message `number`. */
static uint32_t end_of(const party *p, uint64_t number) {
    opcomms_event e;
    memset(&e, 0, sizeof e);
    do {
        if (opcomms_next_event(p->peer, 10000, &e) != OPCOMMS_OK) return 0;
    } while (e.number != number || e.state < OPCOMMS_STATE_DURABLE);
    return e.state;
}

static void begin(uint32_t flags_a, uint32_t flags_b) {
    opcomms_error err;
    make(&a, "a", OPCOMMS_KEY_P256);
    make(&b, "b", OPCOMMS_KEY_P256);
    a.flags = flags_a;
    b.flags = flags_b;
    CHECK_EQ(opcomms_allow_list_allow_all(a.allow, 1), OPCOMMS_OK);
    CHECK_EQ(opcomms_allow_list_allow_all(b.allow, 1), OPCOMMS_OK);
    CHECK_EQ(start(&a, &err), OPCOMMS_OK);
    CHECK_EQ(start(&b, &err), OPCOMMS_OK);
}

static void finish(void) {
    end(&a);
    end(&b);
}

static void queued_from_a(uint64_t native) {
    opcomms_identifier to = mailbox_of(&b);
    opcomms_error err;
    uint64_t number = 0;
    CHECK_EQ(opcomms_enqueue(a.peer, &to, b.address, NULL, 0, "x", 1, NULL, &number, &err),
             OPCOMMS_OK);
    CHECK_EQ(end_of(&a, number), OPCOMMS_STATE_DURABLE);
    CHECK_EQ(stats_of(&b).native_connections, native);
    CHECK_EQ(stats_of(&b).messages_in, 1);
    finish();
}

TEST(the_outbox_speaks_native_where_both_do) {
    begin(0, 0);
    queued_from_a(1);
}

TEST(the_outbox_speaks_tarpc_where_either_side_wants_nothing_else) {
    begin(0, OPCOMMS_TARPC_ONLY);
    queued_from_a(0);
    begin(OPCOMMS_TARPC_ONLY, 0);
    queued_from_a(0);
}

TEST(a_peer_that_only_sends_takes_no_messages_over_its_own_connections) {
    opcomms_identifier to;
    opcomms_error err;
    opcomms_event e;
    uint64_t number = 0;
    begin(OPCOMMS_NO_LISTEN | OPCOMMS_MEMORY_STORE, 0);
    to = mailbox_of(&a);
    CHECK_EQ(opcomms_enqueue(b.peer, &to, NULL, NULL, 0, "x", 1, NULL, &number, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_ping(a.peer, b.hash, b.address, 0, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "y", 1, 0, &err), OPCOMMS_OK);
    CHECK_EQ(stats_of(&b).native_connections, 1);
    memset(&e, 0, sizeof e);
    CHECK_EQ(opcomms_next_event(b.peer, 100, &e), OPCOMMS_E_EMPTY);
    CHECK_EQ(opcomms_queued_count(b.peer, NULL), 1); /* waits for one that keeps it */
    CHECK_EQ(stats_of(&a).messages_in, 0);
    finish();
}

int main(void) {
    if (!party_begin()) return 1;
    RUN(the_outbox_speaks_native_where_both_do);
    RUN(the_outbox_speaks_tarpc_where_either_side_wants_nothing_else);
    RUN(a_peer_that_only_sends_takes_no_messages_over_its_own_connections);
    return party_end();
}
