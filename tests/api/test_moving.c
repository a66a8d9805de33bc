/* Moving a mailbox between servers, lists entry by entry, and a log without its peer. */
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

static int told, texts, others;
static int tell(void *user, const opcomms_log_entry *e) {
    char text[8] = "";
    size_t got = 0;
    told++;
    CHECK_EQ(opcomms_log_entry_read(e, 0, text, sizeof text, &got), OPCOMMS_OK);
    CHECK(got == e->bytes && got == 3 && memcmp(text, "one", 3) == 0);
    CHECK_EQ(opcomms_log_entry_read(e, 3, text, sizeof text, &got), OPCOMMS_OK);
    CHECK_EQ(got, 0);
    CHECK(e->to_len == 64 && memcmp(e->to, a.hash, 64) == 0);
    CHECK_EQ(e->to_id, 5);
    CHECK_STR(e->from.hash, b.hash);
    CHECK_EQ(e->from.id, told);
    texts += e->flags == OPCOMMS_MESSAGE_TEXT;
    others += e->state != (told == 1 ? OPCOMMS_ENTRY_ACKNOWLEDGED : OPCOMMS_ENTRY_UNREAD);
    return user != NULL;
}

TEST(a_log_is_looked_at_while_its_peer_runs_and_repaired_when_not) {
    opcomms_log_report r;
    opcomms_error err;
    opcomms_mail m, got;
    char text[8], out[128], cut[1];
    int i;
    FILE *file;
    both(OPCOMMS_KEY_P256);
    for (i = 1; i <= 3; i++) {
        m = letter(b.hash, (int16_t)i, "one");
        if (i == 3) m.flags = OPCOMMS_MESSAGE_TEXT;
        CHECK_EQ(opcomms_local_import(a.peer, 5, &m, "one", &err), OPCOMMS_OK);
    }
    CHECK_EQ(opcomms_local_recv(a.peer, 5, &got, text, 8, &err), OPCOMMS_OK);
    r.size = sizeof r;
    CHECK_EQ(opcomms_log_verify(a.log, &r, &err), OPCOMMS_OK);
    CHECK(r.flags == OPCOMMS_REPORT_IN_USE && r.unread == 2 && r.messages == 3);
    CHECK_STR(r.hash, a.hash);
    snprintf(out, sizeof out, "%s/repaired.log", dir);
    CHECK_EQ(opcomms_log_repair(a.log, out, &r, &err), OPCOMMS_E_IN_USE);
    CHECK(access(out, F_OK) != 0);
    opcomms_free(a.peer);
    a.peer = NULL;
    r.unread = 99;
    r.size = offsetof(opcomms_log_report, unread); /* a caller of an older version */
    CHECK_EQ(opcomms_log_verify(a.log, &r, &err), OPCOMMS_OK);
    CHECK(r.flags == OPCOMMS_REPORT_CLOSED && r.unread == 99 && r.messages == 3);
    CHECK_EQ(opcomms_log_verify(a.log, NULL, NULL), OPCOMMS_OK);
    CHECK_EQ(opcomms_log_dump(a.log, tell, NULL, &err), OPCOMMS_OK);
    CHECK(told == 3 && texts == 1 && others == 0);
    told = 0;
    CHECK_EQ(opcomms_log_dump(a.log, tell, &err, &err), OPCOMMS_OK);
    CHECK_EQ(told, 1);
    file = fopen(a.log, "r+b");
    CHECK(file != NULL);
    if (file == NULL) return;
    CHECK(fseek(file, 4096 + 20, SEEK_SET) == 0 && fread(cut, 1, 1, file) == 1);
    cut[0] ^= 1;
    CHECK(fseek(file, 4096 + 20, SEEK_SET) == 0 && fwrite(cut, 1, 1, file) == 1);
    fclose(file);
    r.size = sizeof r;
    CHECK_EQ(opcomms_log_verify(a.log, &r, &err), OPCOMMS_E_LOG_DAMAGED);
    CHECK(err.position == 4096 && r.bad_at == 4096 && r.bad_parts == 1 && r.unread == 2);
    told = 0;
    CHECK_EQ(opcomms_log_dump(a.log, tell, NULL, &err), OPCOMMS_E_LOG_DAMAGED);
    CHECK_EQ(told, 3);
    CHECK_EQ(opcomms_log_repair(a.log, out, &r, &err), OPCOMMS_OK);
    CHECK_EQ(r.unread, 2);
    CHECK_EQ(opcomms_log_repair(a.log, out, &r, &err), OPCOMMS_E_IN_USE);
    CHECK_EQ(opcomms_log_repair(a.log, a.log, &r, &err), OPCOMMS_E_IN_USE);
    CHECK_EQ(opcomms_log_verify(out, &r, &err), OPCOMMS_OK);
    CHECK(r.unread == 2 && r.messages == 2);
    CHECK(rename(out, a.log) == 0);
    CHECK_EQ(start(&a, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_local_recv(a.peer, 5, &got, text, 8, &err), OPCOMMS_OK);
    CHECK(got.uid == 2 && got.from.id == 2 && memcmp(text, "one", 3) == 0);
    CHECK_EQ(opcomms_log_verify("", &r, &err), OPCOMMS_E_INVAL);
    CHECK_EQ(opcomms_log_verify(NULL, &r, &err), OPCOMMS_E_INVAL);
    r.size = 0;
    CHECK_EQ(opcomms_log_verify(a.log, &r, &err), OPCOMMS_E_INVAL);
    CHECK_EQ(opcomms_log_dump(a.log, NULL, NULL, &err), OPCOMMS_E_INVAL);
    CHECK_EQ(opcomms_log_repair(a.log, NULL, NULL, &err), OPCOMMS_E_INVAL);
    end(&a);
    end(&b);
}

int main(void) {
    if (!party_begin()) return 1;
    RUN(what_is_imported_keeps_its_sender_and_needs_no_route);
    RUN(an_import_that_makes_no_sense_is_refused);
    RUN(lists_are_read_entry_by_entry);
    RUN(a_log_is_looked_at_while_its_peer_runs_and_repaired_when_not);
    return party_end();
}
