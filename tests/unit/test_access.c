/* Allow list, routing table, identifiers: the reference's verdicts on its own files. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#include "test.h"

/* A Rust debug string after its opening quote; returns the text behind the closing quote. */
static const char *unescape(const char *s, char *out, size_t *len) {
    size_t n = 0;
    while (*s != 0 && *s != '"') {
        if (*s != '\\') {
            out[n++] = *s++;
            continue;
        }
        s++;
        if (*s == 'u') { /* \u{..} in Rust; the capture writes \uXXXX, bytes below 0x100 */
            unsigned v = 0;
            s++;
            sscanf(s, "%4x", &v);
            s += 4;
            if (v < 0x80) {
                out[n++] = (char)v;
            } else if (v < 0x100) {
                out[n++] = (char)v; /* a byte of the file; see below for text */
            } else {
                out[n++] = (char)(0xe0 | (v >> 12));
                out[n++] = (char)(0x80 | ((v >> 6) & 63));
                out[n++] = (char)(0x80 | (v & 63));
            }
            continue;
        }
        out[n++] = *s == 'n' ? '\n' : (*s == 'r' ? '\r' : (*s == 't' ? '\t' : *s));
        s++;
    }
    if (*s != '"') return NULL; /* the capture cut the line */
    *len = n;
    out[n] = 0;
    return s + 1;
}

static int excepted(const char *kind, const char *name) {
    char line[256], want[128];
    int found = 0;
    FILE *f = fopen(TEST_DATA "/access/exceptions.txt", "r");
    snprintf(want, sizeof want, "%s|%s|", kind, name);
    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        if (strncmp(line, want, strlen(want)) == 0) found = 1;
    }
    if (f != NULL) fclose(f);
    return found;
}

TEST(yaml_files_get_the_verdicts_of_the_reference) {
    char line[4096];
    int seen = 0;
    FILE *f = fopen(TEST_DATA "/access/yaml_parse.txt", "r");
    CHECK(f != NULL);
    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        char kind[8] = "", name[64], text[4096];
        const char *quote, *rest;
        size_t len = 0, n;
        int want, got;
        sscanf(line, "%7s", kind);
        if (strcmp(kind, "allow") != 0 && strcmp(kind, "routes") != 0) continue;
        snprintf(name, sizeof name, "%.34s", line + 8);
        for (n = strlen(name); n > 0 && name[n - 1] == ' '; n--) name[n - 1] = 0;
        quote = line + 8 + 35;
        if (*quote != '"') quote = strchr(line + 30, '"');
        rest = unescape(quote + 1, text, &len);
        if (rest == NULL) continue;
        if (strcmp(name, "nonascii hash") == 0) { /* a character, not a byte */
            strcpy(text, "\"\xc3\xa9:1\": [\"h:1\"]\n");
            len = strlen(text);
        }
        want = strstr(rest, "=> OK") != NULL;
        if (excepted(kind, name)) want = !want;
        if (strcmp(kind, "allow") == 0) {
            opcomms_allow_list *l = NULL;
            opcomms_error err;
            memset(&err, 0, sizeof err);
            CHECK_EQ(opcomms_allow_list_new(NULL, &l), OPCOMMS_OK);
            got = opcomms_allow_list_load_text(l, text, len, &err) == OPCOMMS_OK;
            if (!got) CHECK(err.line > 0 && err.text[0] != 0);
            if (!got) CHECK_EQ(opcomms_allow_list_count(l), 0);
            opcomms_allow_list_release(l);
        } else {
            opcomms_routing_table *t = NULL;
            opcomms_error err;
            memset(&err, 0, sizeof err);
            CHECK_EQ(opcomms_routing_table_new(NULL, &t), OPCOMMS_OK);
            got = opcomms_routing_table_load_text(t, text, len, &err) == OPCOMMS_OK;
            if (!got) CHECK(err.line > 0 && err.text[0] != 0);
            opcomms_routing_table_release(t);
        }
        if (got != want) printf("%s: %s: got %d\n", kind, name, got);
        CHECK_EQ(got, want);
        seen++;
    }
    if (f != NULL) fclose(f);
    CHECK(seen > 95);
}

/* YAML 1.2.2 6.6: a comment on a line of its own, whatever the indentation. */
TEST(comments_may_be_indented) {
    static const char *const allow[] = {"  # first\na: ~\n   # between\nb: 1.2.3.4\n  # last",
                                        "--- # document\na: ~\nb:\n # before the value\n 1.2.3.4\n",
                                        "a: ~ # end\r\n  # between\r\n\r\nb: 1.2.3.4 # end\r\n"};
    static const char routes[] = "\"a:1\":\n  # the list\n  - \"b:1\"\n    # more\n  - \"b:2\"\n";
    opcomms_allow_list *l = NULL;
    opcomms_routing_table *t = NULL;
    opcomms_error err;
    size_t i;
    CHECK_EQ(opcomms_allow_list_new(NULL, &l), OPCOMMS_OK);
    CHECK_EQ(opcomms_routing_table_new(NULL, &t), OPCOMMS_OK);
    for (i = 0; i < sizeof allow / sizeof allow[0]; i++) {
        CHECK_EQ(opcomms_allow_list_clear(l), OPCOMMS_OK);
        CHECK_EQ(opcomms_allow_list_load_text(l, allow[i], strlen(allow[i]), &err), OPCOMMS_OK);
        CHECK_EQ(opcomms_allow_list_count(l), 2);
        CHECK(!opcomms_allow_list_is_allowed(l, "b", "1.2.3.5"));
    }
    CHECK_EQ(opcomms_routing_table_load_text(t, routes, strlen(routes), &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_routing_table_count(t), 2);
    CHECK_EQ(opcomms_allow_list_load_text(l, "a: ~\nb: #c\nx#c: 1.2.3.4\n", 24, &err), OPCOMMS_OK);
    CHECK(opcomms_allow_list_is_allowed(l, "x#c", "1.2.3.4")); /* no space before it: no comment */
    opcomms_allow_list_release(l);
    opcomms_routing_table_release(t);
}

TEST(identifiers_follow_both_grammars) {
    static const struct {
        const char *text;
        int ident, route;
    } cases[] = {{"abc:1", 1, 1},   {"abc: 1 ", 1, 0}, {" abc :1", 1, 1}, {":1", 0, 1},
                 {"abc:", 0, 0},    {"abc", 0, 0},     {"a:b:c", 0, 0},   {"abc:256", 0, 0},
                 {"abc:+5", 1, 1},  {"abc:-0", 0, 0},  {"abc:~", 0, 1},   {"abc:00000001", 1, 1},
                 {" :1", 0, 1},     {"abc:255", 1, 1}, {"", 0, 0},        {":", 0, 0}};
    size_t i;
    for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        opcomms_identifier id;
        CHECK_EQ(opcomms_identifier_parse(cases[i].text, &id) == OPCOMMS_OK, cases[i].ident);
        CHECK_EQ(opcomms_route_identifier_parse(cases[i].text, &id) == OPCOMMS_OK, cases[i].route);
    }
}

TEST(a_list_saved_and_loaded_is_the_same) {
    const char *h1 = "6a3bdd7f625c39fcca1c74c225a8073b3510ebc82803aa972070995c7296445f";
    opcomms_allow_list *l = NULL, *m = NULL;
    opcomms_routing_table *t = NULL, *u = NULL;
    opcomms_identifier from, to;
    opcomms_error err;
    char path[] = "/tmp/opcomms-test-XXXXXX";
    int fd = mkstemp(path);
    CHECK(fd >= 0);
    close(fd);
    CHECK_EQ(opcomms_allow_list_new(NULL, &l), OPCOMMS_OK);
    CHECK_EQ(opcomms_allow_list_new(NULL, &m), OPCOMMS_OK);
    CHECK_EQ(opcomms_allow_list_add(l, h1, "::ffff:127.0.0.1"), OPCOMMS_OK);
    CHECK_EQ(opcomms_allow_list_save(l, path, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_allow_list_load(m, path, &err), OPCOMMS_OK);
    CHECK(opcomms_allow_list_is_allowed(m, h1, "127.0.0.1"));
    CHECK(!opcomms_allow_list_is_allowed(m, h1, "127.0.0.2"));
    CHECK_EQ(opcomms_allow_list_remove(m, h1), OPCOMMS_OK);
    CHECK(!opcomms_allow_list_is_allowed(m, h1, NULL));
    CHECK_EQ(opcomms_allow_list_reload(m, &err), OPCOMMS_OK);
    CHECK(opcomms_allow_list_is_allowed(m, h1, NULL));
    CHECK_EQ(opcomms_allow_list_load_text(m, "a: 1.2.3.4\nb: nonsense\n", 23, &err),
             OPCOMMS_E_SYNTAX);
    CHECK_EQ(err.line, 2);
    CHECK(opcomms_allow_list_is_allowed(m, h1, NULL)); /* nothing has changed */
    CHECK_EQ(opcomms_allow_list_allow_all(l, 1), OPCOMMS_OK);
    CHECK_EQ(opcomms_allow_list_save(l, path, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_allow_list_load(m, path, &err), OPCOMMS_OK);
    CHECK(opcomms_allow_list_is_allowed(m, "anybody", "1.2.3.4"));

    CHECK_EQ(opcomms_routing_table_new(NULL, &t), OPCOMMS_OK);
    CHECK_EQ(opcomms_routing_table_new(NULL, &u), OPCOMMS_OK);
    CHECK_EQ(opcomms_routing_table_add(t, "a:1", "b:~"), OPCOMMS_OK);
    CHECK_EQ(opcomms_routing_table_add(t, "a:1", "c:3"), OPCOMMS_OK);
    CHECK_EQ(opcomms_routing_table_add(t, "x:~", "b:7"), OPCOMMS_OK);
    CHECK_EQ(opcomms_routing_table_save(t, path, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_routing_table_load(u, path, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_route_identifier_parse("a:1", &from), OPCOMMS_OK);
    CHECK_EQ(opcomms_route_identifier_parse("b:200", &to), OPCOMMS_OK);
    CHECK(opcomms_routing_table_can_route(u, &from, &to));
    CHECK(!opcomms_routing_table_can_route(u, &to, &from));
    CHECK_EQ(opcomms_routing_table_remove_all_to(u, "b:~"), OPCOMMS_OK);
    CHECK(!opcomms_routing_table_can_route(u, &from, &to));
    CHECK_EQ(opcomms_routing_table_remove_all_from(u, "a:1"), OPCOMMS_OK);
    CHECK_EQ(opcomms_routing_table_count(u), 1);
    CHECK_EQ(opcomms_routing_table_load(u, path, &err), OPCOMMS_OK); /* loaded, saved, loaded */
    CHECK_EQ(opcomms_routing_table_save(u, path, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_routing_table_load(u, path, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_routing_table_count(u), 3);
    CHECK(opcomms_routing_table_can_route(u, &from, &to));
    unlink(path);
    opcomms_allow_list_release(l);
    opcomms_allow_list_release(m);
    opcomms_routing_table_release(t);
    opcomms_routing_table_release(u);
}

TEST(an_address_that_ends_in_colons_survives_saving) {
    static const char *const ip[] = {"::", "1::", "fe80:1::", "::1", "1.2.3.4"};
    const char *h1 = "6a3bdd7f625c39fcca1c74c225a8073b3510ebc82803aa972070995c7296445f";
    char path[] = "/tmp/opcomms-test-XXXXXX";
    int fd = mkstemp(path);
    size_t i;
    CHECK(fd >= 0);
    close(fd);
    for (i = 0; i < sizeof ip / sizeof ip[0]; i++) {
        opcomms_allow_list *l = NULL, *m = NULL;
        opcomms_error err;
        CHECK_EQ(opcomms_allow_list_new(NULL, &l), OPCOMMS_OK);
        CHECK_EQ(opcomms_allow_list_new(NULL, &m), OPCOMMS_OK);
        CHECK_EQ(opcomms_allow_list_add(l, h1, ip[i]), OPCOMMS_OK);
        CHECK_EQ(opcomms_allow_list_save(l, path, &err), OPCOMMS_OK);
        CHECK_EQ(opcomms_allow_list_load(m, path, &err), OPCOMMS_OK);
        CHECK(opcomms_allow_list_is_allowed(m, h1, ip[i]));
        CHECK(!opcomms_allow_list_is_allowed(m, h1, "9.9.9.9"));
        opcomms_allow_list_release(l);
        opcomms_allow_list_release(m);
    }
    unlink(path);
}

/* YAML 1.1 ends a line, and a comment, at U+0085, U+2028 and U+2029; control characters are in no
   YAML at all. Such a file must not be read in another way than the reference reads it. */
TEST(characters_that_yaml_forbids_or_takes_for_line_ends_are_refused) {
    static const char *const bad[] = {"\x01", "\x7f", "\xc2\x85", "\xc2\x9f", "\xe2\x80\xa8",
                                      "\xe2\x80\xa9", "\xef\xbb\xbf", "\xef\xbf\xbf"};
    static const char *const form[] = {"a: null\n#%sb: null\n", "a: null\n\"b%s\": null\n",
                                       "a: null\nb%s: null\n"};
    size_t i, k;
    opcomms_allow_list *l = NULL;
    opcomms_error err;
    CHECK_EQ(opcomms_allow_list_new(NULL, &l), OPCOMMS_OK);
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        for (k = 0; k < sizeof form / sizeof form[0]; k++) {
            char text[64];
            snprintf(text, sizeof text, form[k], bad[i]);
            CHECK_EQ(opcomms_allow_list_load_text(l, text, strlen(text), &err), OPCOMMS_E_SYNTAX);
            CHECK_EQ(err.line, 2);
        }
    }
    opcomms_allow_list_release(l);
}

/* Verdicts of libyaml, on which the reference's reader is built. */
TEST(a_colon_without_its_space_is_refused_as_the_reference_does) {
    static const char *const bad[] = {"\"h\":1.2.3.4\n", "\"h\":null\n", "{a: ::1}", "{:,}",
                                      "{a: null, c:,}", "{a: null, c:}", "{c:[, a: null}",
                                      "{a\n:1.2.3.4: null}", "{a\n: null}", "{\"a\"\n: null}",
                                      "{?a: null}"};
    static const char *const good[] = {"{\"h\":1.2.3.4}", "{\"h\" : 1.2.3.4,\n a: \n null\n}",
                                       "{a: 1.2.3.4, c}", "a: ::1\n",
                                       "{a:b: null}", "a:b: null\n"};
    size_t i;
    opcomms_allow_list *l = NULL;
    opcomms_error err;
    CHECK_EQ(opcomms_allow_list_new(NULL, &l), OPCOMMS_OK);
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        CHECK_EQ(opcomms_allow_list_load_text(l, bad[i], strlen(bad[i]), &err), OPCOMMS_E_SYNTAX);
    }
    for (i = 0; i < sizeof good / sizeof good[0]; i++) {
        CHECK_EQ(opcomms_allow_list_load_text(l, good[i], strlen(good[i]), &err), OPCOMMS_OK);
    }
    opcomms_allow_list_release(l);
}

TEST(identities_with_any_character_survive_saving) {
    /* written as escapes, which are allowed where the character is not */
    const char *text =
        "\"\\x01\\t\\n\\x7f\\x85\\u2028\\ufeff\\uffff\\\\\\\"\\u00e9\\U0001f600:1\": []\n";
    opcomms_routing_table *t = NULL, *u = NULL;
    opcomms_error err;
    char path[] = "/tmp/opcomms-test-XXXXXX";
    int fd = mkstemp(path);
    CHECK(fd >= 0);
    close(fd);
    CHECK_EQ(opcomms_routing_table_new(NULL, &t), OPCOMMS_OK);
    CHECK_EQ(opcomms_routing_table_new(NULL, &u), OPCOMMS_OK);
    CHECK_EQ(opcomms_routing_table_load_text(t, text, strlen(text), &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_routing_table_save(t, path, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_routing_table_load(u, path, &err), OPCOMMS_OK);
    CHECK_EQ(t->l.now.count, 1);
    CHECK_EQ(u->l.now.count, 1);
    CHECK_STR(u->l.now.rule[0].a, t->l.now.rule[0].a);
    CHECK_EQ(opcomms_routing_table_add(t, "\xff:1", "b:1"), OPCOMMS_E_SYNTAX);
    unlink(path);
    opcomms_routing_table_release(t);
    opcomms_routing_table_release(u);
}

int main(void) {
    RUN(yaml_files_get_the_verdicts_of_the_reference);
    RUN(comments_may_be_indented);
    RUN(identifiers_follow_both_grammars);
    RUN(a_list_saved_and_loaded_is_the_same);
    RUN(an_address_that_ends_in_colons_survives_saving);
    RUN(characters_that_yaml_forbids_or_takes_for_line_ends_are_refused);
    RUN(a_colon_without_its_space_is_refused_as_the_reference_does);
    RUN(identities_with_any_character_survive_saving);
    return test_end();
}
