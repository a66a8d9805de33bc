/* Moving a mailbox between servers, and reading lists entry by entry. */
#include "party.h"

static opcomms_mail letter(const char *from, int16_t id, const char *data) {
    opcomms_mail m;
    memset(&m, 0, sizeof m);
    snprintf(m.from.hash, sizeof m.from.hash, "%s", from);
    m.from.id = id;
    m.bytes = strlen(data);
    m.uid = 77; /* of no meaning here */
    return m;
}

TEST(what_is_imported_keeps_its_sender_and_needs_no_route) {
    opcomms_mail m, got;
    opcomms_error err;
    char text[16];
    both(OPCOMMS_KEY_P256);
    CHECK_EQ(opcomms_routing_table_allow_all(a.routes, 0), OPCOMMS_OK);
    m = letter(b.hash, 9, "one");
    CHECK_EQ(opcomms_local_import(a.peer, 0, &m, "one", &err), OPCOMMS_OK);
    m = letter(b.hash, 8, "t\xc3\xa4xt");
    m.flags = OPCOMMS_MESSAGE_TEXT;
    CHECK_EQ(opcomms_local_import(a.peer, 3, &m, "t\xc3\xa4xt", &err), OPCOMMS_OK);
    m = letter(b.hash, 7, "");
    CHECK_EQ(opcomms_local_import(a.peer, 0, &m, NULL, &err), OPCOMMS_OK);
    opcomms_free(a.peer); /* it is in the log */
    CHECK_EQ(start(&a, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_local_recv(a.peer, 0, &got, text, 16, &err), OPCOMMS_OK);
    CHECK(got.bytes == 3 && memcmp(text, "one", 3) == 0 && got.from.id == 9 && got.flags == 0);
    CHECK_STR(got.from.hash, b.hash);
    CHECK_EQ(opcomms_local_recv(a.peer, 0, &got, text, 16, &err), OPCOMMS_OK);
    CHECK(got.bytes == 0 && got.from.id == 7);
    CHECK_EQ(opcomms_local_recv(a.peer, 0, &got, text, 16, &err), OPCOMMS_E_EMPTY);
    CHECK_EQ(opcomms_local_recv(a.peer, 3, &got, text, 16, &err), OPCOMMS_OK);
    CHECK(got.bytes == 5 && got.flags == OPCOMMS_MESSAGE_TEXT && got.from.id == 8);
    end(&a);
    end(&b);
}

TEST(an_import_that_makes_no_sense_is_refused) {
    opcomms_mail m;
    opcomms_error err;
    both(OPCOMMS_KEY_P256);
    m = letter("not a hash", 0, "x");
    CHECK_EQ(opcomms_local_import(a.peer, 0, &m, "x", &err), OPCOMMS_E_INVAL);
    m = letter(b.hash, 256, "x");
    CHECK_EQ(opcomms_local_import(a.peer, 0, &m, "x", &err), OPCOMMS_E_INVAL);
    m = letter(b.hash, -1, "x");
    CHECK_EQ(opcomms_local_import(a.peer, 0, &m, "x", &err), OPCOMMS_E_INVAL);
    m = letter(b.hash, 0, "\xff");
    m.flags = OPCOMMS_MESSAGE_TEXT;
    CHECK_EQ(opcomms_local_import(a.peer, 0, &m, "\xff", &err), OPCOMMS_E_INVAL);
    m = letter(b.hash, 0, "x");
    m.flags = 2;
    CHECK_EQ(opcomms_local_import(a.peer, 0, &m, "x", &err), OPCOMMS_E_INVAL);
    m = letter(b.hash, 0, "x");
    CHECK_EQ(opcomms_local_import(a.peer, 0, &m, NULL, &err), OPCOMMS_E_INVAL);
    CHECK_EQ(opcomms_local_import(a.peer, 0, NULL, "x", &err), OPCOMMS_E_INVAL);
    CHECK_EQ(opcomms_local_import(NULL, 0, &m, "x", &err), OPCOMMS_E_INVAL);
    m.bytes = (uint64_t)OPCOMMS_MAX_FRAME + 1;
    CHECK_EQ(opcomms_local_import(a.peer, 0, &m, "x", &err), OPCOMMS_E_LIMIT);
    CHECK_EQ(opcomms_stop(a.peer), OPCOMMS_OK);
    m.bytes = 1;
    CHECK_EQ(opcomms_local_import(a.peer, 0, &m, "x", &err), OPCOMMS_E_CLOSED);
    end(&a);
    end(&b);
}

TEST(lists_are_read_entry_by_entry) {
    static char x[2048], y[2048];
    make(&a, "a", OPCOMMS_KEY_P256);
    make(&b, "b", OPCOMMS_KEY_P256);
    CHECK_EQ(opcomms_allow_list_is_all(a.allow), 0);
    CHECK_EQ(opcomms_allow_list_entry(a.allow, 0, x, y, 2048), OPCOMMS_E_NOT_FOUND);
    CHECK_EQ(opcomms_allow_list_add(a.allow, a.hash, NULL), OPCOMMS_OK);
    CHECK_EQ(opcomms_allow_list_entry(a.allow, 0, x, y, 2048), OPCOMMS_OK);
    CHECK(strcmp(x, a.hash) == 0 && y[0] == 0);
    CHECK_EQ(opcomms_allow_list_add(a.allow, a.hash, "::1"), OPCOMMS_OK);
    CHECK_EQ(opcomms_allow_list_entry(a.allow, 0, x, y, 2048), OPCOMMS_OK);
    CHECK_STR(y, "::1");
    CHECK_EQ(opcomms_allow_list_entry(a.allow, 0, x, y, 64), OPCOMMS_E_BUFFER);
    CHECK_EQ(opcomms_allow_list_entry(a.allow, 0, x, y, 65), OPCOMMS_OK);
    CHECK_EQ(opcomms_allow_list_entry(a.allow, 1, x, y, 2048), OPCOMMS_E_NOT_FOUND);
    CHECK_EQ(opcomms_allow_list_entry(a.allow, 0, x, y, 0), OPCOMMS_E_INVAL);
    CHECK_EQ(opcomms_allow_list_entry(NULL, 0, x, y, 2048), OPCOMMS_E_INVAL);
    CHECK_EQ(opcomms_allow_list_allow_all(a.allow, 1), OPCOMMS_OK);
    CHECK_EQ(opcomms_allow_list_is_all(a.allow), 1);
    CHECK_EQ(opcomms_routing_table_is_all(a.routes), 1);
    CHECK_EQ(opcomms_routing_table_allow_all(a.routes, 0), OPCOMMS_OK);
    CHECK_EQ(opcomms_routing_table_is_all(a.routes), 0);
    CHECK_EQ(opcomms_routing_table_load_text(a.routes, "h:1: [x:~, y:2]\ng:~: []\n", 24, NULL),
             OPCOMMS_OK);
    CHECK_EQ(opcomms_routing_table_count(a.routes), 2);
    CHECK_EQ(opcomms_routing_table_entry(a.routes, 0, x, y, 2048), OPCOMMS_OK);
    CHECK(strcmp(x, "g:~") == 0 && y[0] == 0);
    CHECK_EQ(opcomms_routing_table_entry(a.routes, 1, x, y, 2048), OPCOMMS_OK);
    CHECK(strcmp(x, "h:1") == 0 && y[0] == 0);
    CHECK_EQ(opcomms_routing_table_entry(a.routes, 2, x, y, 2048), OPCOMMS_OK);
    CHECK(strcmp(x, "h:1") == 0 && strcmp(y, "x:~") == 0);
    CHECK_EQ(opcomms_routing_table_entry(a.routes, 3, x, y, 2048), OPCOMMS_OK);
    CHECK_STR(y, "y:2");
    CHECK_EQ(opcomms_routing_table_entry(a.routes, 4, x, y, 2048), OPCOMMS_E_NOT_FOUND);
    end(&a);
    end(&b);
}

int main(void) {
    if (!party_begin()) return 1;
    RUN(what_is_imported_keeps_its_sender_and_needs_no_route);
    RUN(an_import_that_makes_no_sense_is_refused);
    RUN(lists_are_read_entry_by_entry);
    return party_end();
}
