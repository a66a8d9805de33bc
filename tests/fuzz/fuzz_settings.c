/* Settings files: a bad one names a line that exists and leaves nothing behind; a good one makes a
   config whose limits opcomms_new accepts, whether it is read from memory or from a file. */
#include "fuzz.h"

static void fuzz_settings_disk(const uint8_t *data, size_t size) {
    fuzz_disk_clear();
    fuzz_put(&fuzz_create("allow.yaml")->data, "a: 1.2.3.4\nb: ~\n", 16);
    fuzz_put(&fuzz_create("routes.yaml")->data, "\"a:~\": [\"b:0\"]\n", 15);
    fuzz_put(&fuzz_create("broken.yaml")->data, "a: ~\n- b\n", 9);
    fuzz_put(&fuzz_create("operator.yaml")->data, data, size);
}

static int fuzz_settings_text(const char *a, const char *b) {
    if (a == NULL || b == NULL) return a == b;
    FUZZ_CHECK(strlen(a) < OPC__PATH_MAX);
    return strcmp(a, b) == 0;
}

/* Both texts and files give the same config; what differs are the lists, which are not shared. */
static void fuzz_settings_same(const opcomms_config *x, const opcomms_config *y) {
    opcomms_config a = *x, b = *y;
    FUZZ_CHECK(fuzz_settings_text(a.address, b.address));
    FUZZ_CHECK(fuzz_settings_text(a.key_file, b.key_file));
    FUZZ_CHECK(fuzz_settings_text(a.ca_key_file, b.ca_key_file));
    FUZZ_CHECK(fuzz_settings_text(a.log_path, b.log_path));
    FUZZ_CHECK((a.allow == NULL) == (b.allow == NULL));
    FUZZ_CHECK((a.routes == NULL) == (b.routes == NULL));
    if (a.allow != NULL) {
        FUZZ_CHECK(a.allow != b.allow);
        FUZZ_CHECK(opcomms_allow_list_count(a.allow) == opcomms_allow_list_count(b.allow));
        FUZZ_CHECK(a.allow->l.now.all == b.allow->l.now.all);
    }
    if (a.routes != NULL) {
        FUZZ_CHECK(opcomms_routing_table_count(a.routes) ==
                   opcomms_routing_table_count(b.routes));
        FUZZ_CHECK(a.routes->l.now.all == b.routes->l.now.all);
    }
    a.address = b.address = a.key_file = b.key_file = a.ca_key_file = b.ca_key_file = NULL;
    a.log_path = b.log_path = NULL;
    a.allow = b.allow = NULL;
    a.routes = b.routes = NULL;
    FUZZ_CHECK(memcmp(&a, &b, sizeof a) == 0);
}

/* What opcomms_new asks for beside what the file says, and its own check of the rest. */
static void fuzz_settings_accepted(opcomms_config cfg) {
    opcomms_config full;
    opcomms_allow_list *allow = NULL;
    opcomms_routing_table *routes = NULL;
    FUZZ_CHECK(opcomms_allow_list_new(NULL, &allow) == OPCOMMS_OK);
    FUZZ_CHECK(opcomms_routing_table_new(NULL, &routes) == OPCOMMS_OK);
    if (cfg.allow == NULL) cfg.allow = allow;
    if (cfg.routes == NULL) cfg.routes = routes;
    if (cfg.key_file == NULL) cfg.key_file = "operator.key";
    FUZZ_CHECK(opc__pub_config(&cfg, &full, NULL) == OPCOMMS_OK);
    opcomms_allow_list_release(allow);
    opcomms_routing_table_release(routes);
}

static void fuzz_settings_error(const opcomms_error *err, opcomms_err rc, const uint8_t *p,
                                size_t n) {
    size_t lines = 1, i;
    for (i = 0; i < n; i++) lines += p[i] == '\n' || p[i] == '\r';
    FUZZ_CHECK(rc == OPCOMMS_E_SYNTAX || rc == OPCOMMS_E_NOT_FOUND);
    FUZZ_CHECK(err->code == rc && err->line >= 1 && err->line <= lines);
    FUZZ_CHECK(strstr(err->text, "line ") != NULL);
}

static void fuzz_settings(const uint8_t *data, size_t size) {
    opcomms_settings *s = NULL, *t = NULL;
    opcomms_config cfg, again;
    fuzz_memory memory;
    opcomms_allocator alloc;
    opcomms_error err, err2;
    uint8_t *text = fuzz_exact(data, size);
    opcomms_err rc;
    memset(&memory, 0, sizeof memory);
    alloc.alloc = fuzz_alloc;
    alloc.release = fuzz_release;
    alloc.user = &memory;
    fuzz_settings_disk(data, size);
    rc = opcomms_settings_load_text(&alloc, (const char *)text, size, "d", &s, &err);
    FUZZ_CHECK(memory.peak <= 65536 + 4 * size * sizeof(opc__rule));
    FUZZ_CHECK(opcomms_settings_load(&alloc, "d/operator.yaml", &t, &err2) == rc);
    if (rc != OPCOMMS_OK) {
        fuzz_settings_error(&err, rc, data, size);
        FUZZ_CHECK(err2.line == err.line && strcmp(err2.text, err.text) == 0);
        FUZZ_CHECK(s == NULL && t == NULL);
    } else {
        opcomms_config_init(&cfg);
        opcomms_config_init(&again);
        FUZZ_CHECK(opcomms_settings_config(s, &cfg) == OPCOMMS_OK);
        FUZZ_CHECK(opcomms_settings_config(t, &again) == OPCOMMS_OK);
        fuzz_settings_same(&cfg, &again);
        fuzz_settings_accepted(cfg);
        opcomms_settings_free(s);
        opcomms_settings_free(t);
    }
    FUZZ_CHECK(memory.now == 0);
    fuzz_disk_clear();
    free(text);
}

FUZZ_TARGET(fuzz_settings)
