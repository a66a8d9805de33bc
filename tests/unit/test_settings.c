/* Settings files: every key, every refusal with its line, and that opcomms_new agrees. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#include "test.h"

#include <sys/stat.h>
#include <unistd.h>

/* ---- helpers --------------------------------------------------------------------------------- */

typedef struct heap {
    size_t now;
    size_t calls;
    size_t fail_at; /* this call gets nothing; 0: none */
} heap;

static void *heap_alloc(void *user, size_t n) {
    heap *h = (heap *)user;
    if (++h->calls == h->fail_at) return NULL;
    h->now += n;
    return malloc(n);
}

static void heap_release(void *user, void *p, size_t n) {
    heap *h = (heap *)user;
    CHECK(h->now >= n);
    h->now -= n;
    free(p);
}

static opcomms_err load_in(const char *text, size_t len, const char *dir, opcomms_settings **out,
                           opcomms_error *err) {
    char *exact = (char *)malloc(len > 0 ? len : 1); /* no byte behind it may be read */
    opcomms_err rc;
    if (len > 0) memcpy(exact, text, len);
    memset(err, 0, sizeof *err);
    rc = opcomms_settings_load_text(NULL, exact, len, dir, out, err);
    free(exact);
    return rc;
}

/* The config that a text makes; the settings stay for its strings. */
static opcomms_settings *config_of(const char *text, opcomms_config *cfg) {
    opcomms_settings *s = NULL;
    opcomms_error err;
    opcomms_config_init(cfg);
    if (load_in(text, strlen(text), NULL, &s, &err) != OPCOMMS_OK) {
        printf("%s\nin:\n%s\n", err.text, text);
    }
    CHECK(s != NULL);
    CHECK_EQ(opcomms_settings_config(s, cfg), OPCOMMS_OK);
    return s;
}

/* The text is refused in that line, with those words. */
static void refused(const char *text, uint32_t line, const char *words) {
    opcomms_settings *s = NULL;
    opcomms_error err;
    int before = test_bad;
    char where[24];
    snprintf(where, sizeof where, "line %u: ", (unsigned)line);
    CHECK_EQ(load_in(text, strlen(text), NULL, &s, &err), OPCOMMS_E_SYNTAX);
    CHECK_EQ(err.code, OPCOMMS_E_SYNTAX);
    CHECK_EQ(err.line, line);
    CHECK(strstr(err.text, where) != NULL);
    CHECK(strstr(err.text, words) != NULL);
    CHECK(s == NULL);
    if (test_bad != before) printf("%s\nin:\n%s\n", err.text, text);
    opcomms_settings_free(s);
}

static const opc__settings_key *key_named(const char *name) {
    uint32_t i;
    for (i = 0; i < OPC__SETTINGS_KEYS; i++) {
        if (strcmp(opc__settings_keys[i].name, name) == 0) return &opc__settings_keys[i];
    }
    return NULL;
}

static int is_number(const opc__settings_key *k) {
    return k->kind == OPC__SETTINGS_U32 || k->kind == OPC__SETTINGS_U64 ||
           k->kind == OPC__SETTINGS_RATE || k->kind == OPC__SETTINGS_KB;
}

/* "key: value", in its group if it has one. The value stands in line 1 or 2. */
static uint32_t line_for(const opc__settings_key *k, const char *value, char *out, size_t cap) {
    if (k->group == 0) {
        snprintf(out, cap, "%s: %s\n", k->name, value);
        return 1;
    }
    snprintf(out, cap, "%s:\n  %s: %s\n", opc__settings_groups[k->group - 1], k->name, value);
    return 2;
}

static uint64_t field(const opcomms_config *cfg, const opc__settings_key *k) {
    uint64_t v64 = 0;
    uint32_t v32 = 0;
    if (k->kind == OPC__SETTINGS_U64) {
        memcpy(&v64, (const uint8_t *)cfg + k->at, sizeof v64);
        return v64;
    }
    memcpy(&v32, (const uint8_t *)cfg + k->at, sizeof v32);
    return k->kind == OPC__SETTINGS_KB ? v32 / 1024u : v32;
}

/* What opcomms_new says of the limits in cfg. */
static opcomms_err checked(opcomms_config cfg, opcomms_config *full) {
    opcomms_allow_list *allow = NULL;
    opcomms_routing_table *routes = NULL;
    opcomms_config sink;
    opcomms_err rc;
    CHECK_EQ(opcomms_allow_list_new(NULL, &allow), OPCOMMS_OK);
    CHECK_EQ(opcomms_routing_table_new(NULL, &routes), OPCOMMS_OK);
    cfg.allow = allow;
    cfg.routes = routes;
    cfg.key_file = "key";
    rc = opc__pub_config(&cfg, full != NULL ? full : &sink, NULL);
    opcomms_allow_list_release(allow);
    opcomms_routing_table_release(routes);
    return rc;
}

static void join(char *out, size_t cap, const char *dir, const char *name) {
    snprintf(out, cap, "%s/%s", dir, name);
}

static void write_file(const char *dir, const char *name, const char *text) {
    char path[512];
    FILE *f;
    join(path, sizeof path, dir, name);
    f = fopen(path, "wb");
    CHECK(f != NULL);
    if (f == NULL) return;
    CHECK_EQ(fwrite(text, 1, strlen(text), f), strlen(text));
    fclose(f);
}

static void remove_file(const char *dir, const char *name) {
    char path[512];
    join(path, sizeof path, dir, name);
    remove(path);
}

/* ---- keys ------------------------------------------------------------------------------------ */

TEST(an_empty_file_sets_nothing) {
    static const char *const texts[] = {"", "\n", "# nothing\n", "---\n...\n", "{}", "{ }\n",
                                        "\xef\xbb\xbf# byte order mark\n", "queue_config:\n",
                                        "queue_config: {}", "{msg_size_config: ~}",
                                        "broker_node_config:\n  # all commented out\n"};
    size_t i;
    for (i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        opcomms_config cfg, fresh;
        opcomms_settings *s = config_of(texts[i], &cfg);
        opcomms_config_init(&fresh);
        CHECK(memcmp(&cfg, &fresh, sizeof cfg) == 0);
        opcomms_settings_free(s);
    }
}

TEST(texts_are_taken) {
    opcomms_config cfg;
    opcomms_settings *s = config_of("address: 127.0.0.1:9001\n"
                                    "key_file: keys/a b.key # with a space\n"
                                    "ca_key_file: '/etc/ca''s.key'\n"
                                    "log_path: \"l\\u00f6g\"\n",
                                    &cfg);
    CHECK_STR(cfg.address, "127.0.0.1:9001");
    CHECK_STR(cfg.key_file, "keys/a b.key");
    CHECK_STR(cfg.ca_key_file, "/etc/ca's.key");
    CHECK_STR(cfg.log_path, "l\xc3\xb6g");
    CHECK(cfg.allow == NULL && cfg.routes == NULL && cfg.flags == 0);
    opcomms_settings_free(s);
    s = config_of("address: \"[::1]:0\"", &cfg);
    CHECK_STR(cfg.address, "[::1]:0");
    opcomms_settings_free(s);
}

TEST(words_are_taken) {
    opcomms_config cfg;
    opcomms_settings *s = config_of("durability: interval\nprotocol: newer\n", &cfg);
    CHECK_EQ(cfg.durability, OPCOMMS_DURABLE_INTERVAL);
    CHECK_EQ(cfg.protocol, OPCOMMS_PROTOCOL_NEWER);
    opcomms_settings_free(s);
    s = config_of("durability: \"never\"\nprotocol: 'v0.5.0'\n", &cfg);
    CHECK_EQ(cfg.durability, OPCOMMS_DURABLE_NEVER);
    CHECK_EQ(cfg.protocol, OPCOMMS_PROTOCOL_V050);
    opcomms_settings_free(s);
    s = config_of("durability: always", &cfg);
    CHECK_EQ(cfg.durability, OPCOMMS_DURABLE_ALWAYS);
    opcomms_settings_free(s);
    refused("durability: sometimes", 1, "durability: always, interval or never is expected");
    refused("durability: Always", 1, "durability");
    refused("durability: 0", 1, "durability");
    refused("durability: \"\"", 1, "durability");
    refused("protocol: v0.6.0", 1, "protocol: v0.5.0 or newer is expected");
    refused("protocol: 0.5.0", 1, "protocol");
}

TEST(flags_set_and_clear_their_bit_alone) {
    static const struct {
        const char *key;
        uint32_t bit;
    } flags[] = {{"memory_store", OPCOMMS_MEMORY_STORE},
                 {"no_listen", OPCOMMS_NO_LISTEN},
                 {"no_resumption", OPCOMMS_NO_RESUMPTION},
                 {"tarpc_only", OPCOMMS_TARPC_ONLY},
                 {"native_only", OPCOMMS_NATIVE_ONLY},
                 {"encrypt_log", OPCOMMS_ENCRYPT_LOG}};
    size_t i;
    for (i = 0; i < sizeof flags / sizeof flags[0]; i++) {
        uint32_t all = OPCOMMS_NO_BACKGROUND | OPCOMMS_MEMORY_STORE | OPCOMMS_NO_LISTEN |
                       OPCOMMS_NO_RESUMPTION | OPCOMMS_TARPC_ONLY | OPCOMMS_NATIVE_ONLY |
                       OPCOMMS_ENCRYPT_LOG;
        opcomms_config cfg;
        opcomms_settings *s;
        char text[64];
        snprintf(text, sizeof text, "%s: true", flags[i].key);
        s = config_of(text, &cfg);
        CHECK_EQ(cfg.flags, flags[i].bit);
        opcomms_settings_free(s);
        snprintf(text, sizeof text, "%s: false", flags[i].key);
        s = config_of(text, &cfg);
        CHECK_EQ(cfg.flags, 0);
        cfg.flags = all;
        CHECK_EQ(opcomms_settings_config(s, &cfg), OPCOMMS_OK);
        CHECK_EQ(cfg.flags, all & ~flags[i].bit);
        opcomms_settings_free(s);
        snprintf(text, sizeof text, "%s: yes", flags[i].key);
        refused(text, 1, "true or false is expected");
        snprintf(text, sizeof text, "%s: \"true\"", flags[i].key);
        refused(text, 1, "true or false is expected");
        snprintf(text, sizeof text, "%s: 1", flags[i].key);
        refused(text, 1, "true or false is expected");
    }
}

TEST(every_number_is_taken_within_its_range_and_refused_outside) {
    uint32_t i, numbers = 0;
    for (i = 0; i < OPC__SETTINGS_KEYS; i++) {
        const opc__settings_key *k = &opc__settings_keys[i];
        static const char *const never[] = {"-1",  "+1", "1.0", "1e3", "0x10", "010",  "1_000",
                                            "ten", "''", "\"10\"", "10 ms", "[10]",
                                            "99999999999999999999", "18446744073709551616"};
        uint64_t tried[4];
        size_t j;
        CHECK(k->name != NULL && k->group <= OPC__SETTINGS_GROUPS);
        if (!is_number(k)) continue;
        numbers++;
        tried[0] = k->min;
        tried[1] = k->max;
        tried[2] = k->max / 2 + 1;
        tried[3] = k->min + 1;
        for (j = 0; j < 4; j++) {
            char text[128], value[32];
            opcomms_config cfg;
            opcomms_settings *s;
            snprintf(value, sizeof value, "%llu", (unsigned long long)tried[j]);
            (void)line_for(k, value, text, sizeof text);
            /* what else must be so for the key to have this value */
            if (strcmp(k->name, "rate_cost") == 0) strcat(text, "rate_capacity: unlimited\n");
            if (strcmp(k->name, "tokens_per_message") == 0) {
                strcat(text, "  rate_limit_capacity: unlimited\n");
            }
            if (strcmp(k->name, "retry_min_delay_msecs") == 0) {
                strcat(text, "  retry_max_delay_msecs: 86400000\n");
            }
            if (strcmp(k->name, "retry_max_delay_msecs") == 0) {
                strcat(text, "  retry_min_delay_msecs: 1\n");
            }
            if (strcmp(k->name, "retry_min_ms") == 0) strcat(text, "retry_max_ms: 86400000\n");
            if (strcmp(k->name, "retry_max_ms") == 0) strcat(text, "retry_min_ms: 1\n");
            s = config_of(text, &cfg);
            if (k->at < sizeof cfg) CHECK_EQ(field(&cfg, k), tried[j]);
            CHECK_EQ(checked(cfg, NULL), OPCOMMS_OK);
            opcomms_settings_free(s);
        }
        for (j = 0; j < sizeof never / sizeof never[0]; j++) {
            char text[128];
            uint32_t line = line_for(k, never[j], text, sizeof text);
            refused(text, line, k->name);
        }
        for (j = 0; j < 2; j++) {
            char text[128], value[32];
            uint32_t line;
            if (j == 0 ? k->min == 0 : k->max == UINT64_MAX) continue;
            snprintf(value, sizeof value, "%llu",
                     (unsigned long long)(j == 0 ? k->min - 1 : k->max + 1));
            line = line_for(k, value, text, sizeof text);
            refused(text, line, "a whole number from ");
        }
    }
    CHECK_EQ(numbers, 36);
}

TEST(opcomms_new_refuses_what_the_ranges_exclude) { /* so they are not narrower than needed */
    static const char *const limited[] = {
        "sync_interval_ms", "connections_max", "messages_max", "mailboxes_max", "frame_bytes_max",
        "rate_capacity", "queued_max", "queued_per_destination_max", "destinations_max",
        "attempts_max", "retry_min_ms", "retry_max_ms", "window_messages", "streams_max",
        "window_bytes", "message_bytes_max"};
    size_t i;
    for (i = 0; i < sizeof limited / sizeof limited[0]; i++) {
        const opc__settings_key *k = key_named(limited[i]);
        int j;
        for (j = 0; j < 2; j++) { /* the most, and one more */
            opcomms_config cfg;
            uint64_t v64 = k->max + (uint64_t)j;
            uint32_t v = (uint32_t)v64;
            opcomms_config_init(&cfg);
            cfg.retry_max_ms = 86400000; /* for retry_min_ms */
            memcpy((uint8_t *)&cfg + k->at, k->kind == OPC__SETTINGS_U64 ? (void *)&v64 : &v,
                   opc__settings_bytes(k));
            CHECK_EQ(checked(cfg, NULL), j == 0 ? OPCOMMS_OK : OPCOMMS_E_INVAL);
        }
    }
    for (i = 0; i < OPC__SETTINGS_KEYS; i++) { /* the others have none but that of their type */
        const opc__settings_key *k = &opc__settings_keys[i];
        size_t j;
        int known = !is_number(k) || k->group != 0 || k->max == UINT32_MAX || k->max == UINT64_MAX;
        for (j = 0; j < sizeof limited / sizeof limited[0]; j++) {
            known = known || strcmp(k->name, limited[j]) == 0;
        }
        CHECK(known);
    }
}

static void mark(uint8_t *map, size_t at, size_t bytes) { memset(map + at, 1, bytes); }

#define MARK(field) mark(map, offsetof(opcomms_config, field), sizeof(((opcomms_config *)0)->field))

TEST(every_field_of_the_config_has_a_key_or_is_the_programs_own) { /* also those still to come */
    uint8_t map[sizeof(opcomms_config)];
    size_t i, unknown = 0;
    memset(map, 0, sizeof map);
    for (i = 0; i < OPC__SETTINGS_KEYS; i++) {
        const opc__settings_key *k = &opc__settings_keys[i];
        if (k->at < sizeof map) mark(map, k->at, opc__settings_bytes(k));
    }
    MARK(size);
    MARK(key_pem);
    MARK(key_pem_bytes);
    MARK(reserved);
    MARK(allocator);
    MARK(platform);
    MARK(log);
    MARK(log_user);
    MARK(password);
    MARK(password_user);
    MARK(event);
    MARK(event_user);
    MARK(log_password);
    MARK(log_password_user);
    MARK(log_password_new);
    MARK(log_password_new_user);
    for (i = 0; i < sizeof map; i++) {
        if (!map[i]) printf("byte %u of opcomms_config\n", (unsigned)i);
        unknown += !map[i];
    }
    CHECK_EQ(unknown, 0);
}

TEST(the_rate_can_be_unlimited) {
    opcomms_config cfg;
    opcomms_settings *s = config_of("rate_capacity: unlimited\nrate_cost: 4294967295", &cfg);
    CHECK_EQ(cfg.rate_capacity, OPCOMMS_UNLIMITED);
    CHECK_EQ(checked(cfg, NULL), OPCOMMS_OK);
    opcomms_settings_free(s);
    s = config_of("rate_limiter_config: {rate_limit_capacity: unlimited}", &cfg);
    CHECK_EQ(cfg.rate_capacity, OPCOMMS_UNLIMITED);
    opcomms_settings_free(s);
    refused("rate_capacity: 4294967295", 1, "rate_capacity");
    refused("rate_per_second: unlimited", 1, "rate_per_second");
}

TEST(keys_that_contradict_each_other_are_refused_at_the_later_one) {
    refused("rate_cost: 10001", 1, "rate_cost: a request costs more");
    refused("rate_cost: 5\n# x\nrate_capacity: 4\n", 3, "rate_capacity: a request costs more");
    refused("rate_capacity: 4\nrate_cost: 5\n", 2, "rate_cost: a request costs more");
    refused("{rate_limiter_config: {tokens_per_message: 5,\n rate_limit_capacity: 4}}", 2,
            "rate_limit_capacity: a request costs more");
    refused("broker_node_config:\n  retry_max_delay_msecs: 10\n", 2, "retry_max_delay_msecs: ");
    refused("broker_node_config:\n  retry_min_delay_msecs: 10001\n", 2, "retry_min_delay_msecs: ");
    refused("broker_node_config:\n  retry_max_delay_msecs: 10\n  retry_min_delay_msecs: 11\n", 3,
            "retry_min_delay_msecs: the shortest wait is above the longest");
    refused("retry_max_ms: 99\n", 1, "retry_max_ms: the shortest wait");
    refused("retry_min_ms: 10001\n", 1, "retry_min_ms: the shortest wait");
    refused("retry_min_ms: 11\nbroker_node_config:\n  retry_max_delay_msecs: 10\n", 3,
            "retry_max_delay_msecs: the shortest wait");
    refused("no_listen: true\ntarpc_only: true\nnative_only: true\nno_resumption: true\n", 3,
            "native_only: tarpc_only and native_only exclude each other");
    refused("native_only: true\n\ntarpc_only: true\n", 3, "tarpc_only: ");
}

TEST(keys_that_agree_are_taken) {
    opcomms_config cfg;
    opcomms_settings *s = config_of("retry_min_ms: 5\nretry_max_ms: 5\ntarpc_only: true\n"
                                    "native_only: false\n",
                                    &cfg);
    CHECK_EQ(cfg.flags, OPCOMMS_TARPC_ONLY);
    CHECK_EQ(checked(cfg, NULL), OPCOMMS_OK);
    opcomms_settings_free(s);
    s = config_of("broker_node_config: {max_send_attempts: 5, retry_min_delay_msecs: 7,\n"
                  "  retry_max_delay_msecs: 8}",
                  &cfg);
    CHECK_EQ(cfg.attempts_max, 5);
    CHECK_EQ(cfg.retry_min_ms, 7);
    CHECK_EQ(cfg.retry_max_ms, 8);
    opcomms_settings_free(s);
    opcomms_config_init(&cfg);
    cfg.attempts_max = 3;
    s = NULL;
    CHECK_EQ(opcomms_settings_load_text(NULL, "attempts_max: 0", 15, NULL, &s, NULL), OPCOMMS_OK);
    CHECK_EQ(opcomms_settings_config(s, &cfg), OPCOMMS_OK);
    CHECK_EQ(cfg.attempts_max, 0); /* for ever, which the program had limited */
    opcomms_settings_free(s);
}

/* ---- groups ---------------------------------------------------------------------------------- */

static void check_groups(const char *text) {
    opcomms_config cfg;
    opcomms_settings *s = config_of(text, &cfg);
    CHECK_EQ(cfg.rate_capacity, 20);
    CHECK_EQ(cfg.rate_per_second, 3);
    CHECK_EQ(cfg.rate_cost, 2);
    CHECK_EQ(cfg.frame_bytes_max, 1024 * 1024);
    CHECK_EQ(cfg.queue_depth_max, 77);
    CHECK_EQ(cfg.messages_max, 500);
    CHECK_EQ(cfg.send_timeout_ms, 9);
    opcomms_settings_free(s);
}

TEST(the_groups_of_the_reference_are_understood_in_every_form) {
    check_groups("messages_max: 500\n"
                 "rate_limiter_config:\n"
                 "  rate_limit_capacity: 20\n"
                 "  rate_limit_refill_rate: 3\n"
                 "\n"
                 "  # between\n"
                 "  tokens_per_message: 2\n"
                 "broker_node_config:\n"
                 "    max_msgs_per_tick_utilization: 0.5\n"
                 "    max_send_attempts: 5\n"
                 "    retry_min_delay_msecs: 100\n"
                 "    retry_max_delay_msecs: 10000\n"
                 "msg_size_config:\n"
                 " max_frame_size_kb: 1024\n"
                 "# at the margin\n"
                 "queue_config:\n"
                 "\n"
                 "  max_queue_depth: 77\n"
                 "send_timeout_ms: 9\n");
    check_groups("rate_limiter_config: {rate_limit_capacity: 20, rate_limit_refill_rate: 3,\n"
                 "   tokens_per_message: 2} # one\n"
                 "msg_size_config: { max_frame_size_kb: 1024, }\n"
                 "queue_config: {\"max_queue_depth\": 77}\n"
                 "messages_max: 500\nsend_timeout_ms: 9\n");
    check_groups("{\"rate_limiter_config\": {\"rate_limit_capacity\": 20,\n"
                 "  \"rate_limit_refill_rate\": 3, \"tokens_per_message\": 2},\n"
                 "  \"messages_max\": 500,\n"
                 "  \"msg_size_config\":{\"max_frame_size_kb\": 1024}, # comment\n"
                 "  \"queue_config\":{\"max_queue_depth\":77}, \"send_timeout_ms\":9}\n");
    check_groups("messages_max: 500\r\nsend_timeout_ms:\r\n  9\r\n"
                 "rate_limiter_config:\r\n  rate_limit_capacity: 20\r\n"
                 "  rate_limit_refill_rate: 3 # three\r\n  tokens_per_message: 2\r\n"
                 "\r\nmsg_size_config:\r\n  max_frame_size_kb: 1024\r\n"
                 "queue_config:\r\n  max_queue_depth: 77");
    check_groups("---\nqueue_config:\n  'max_queue_depth' : 77\nsend_timeout_ms: 9\n"
                 "msg_size_config:\n  max_frame_size_kb: 1024\nmessages_max: 500\n"
                 "rate_limiter_config:\n  tokens_per_message: 2\n  rate_limit_refill_rate: 3\n"
                 "  rate_limit_capacity: 20\n...\n");
}

TEST(groups_are_refused_where_they_do_not_belong) {
    refused("queue_config: 5", 1, "queue_config: a group of keys is expected");
    refused("queue_config: [max_queue_depth]", 1, "queue_config: a group of keys is expected");
    refused("queue_config:\n- max_queue_depth\n", 1, "queue_config: a group of keys is expected");
    refused("\nqueue_config:\n  max_depth: 5\n", 3, "max_depth: there is no such key");
    refused("queue_config:\n  rate_limit_capacity: 5\n", 2, "rate_limit_capacity: there is no");
    refused("queue_config:\n  queue_depth_max: 5\n", 2, "queue_depth_max: there is no such key");
    refused("queue_config: {max_queue_depth: 5,\n x: 6}", 2, "x: there is no such key");
    refused("{queue_config: {\n\nx: 6}}", 3, "x: there is no such key");
    refused("max_queue_depth: 5", 1, "max_queue_depth: there is no such key");
    refused("queue_config:\n  queue_config:\n    max_queue_depth: 5\n", 2, "there is no such key");
    refused("queue_config:\n  max_queue_depth:\n    x: 5\n", 3, "a mapping cannot stand here");
    refused("queue_config: {max_queue_depth: {x: 5}}", 1, "a mapping cannot stand here");
    refused("{queue_config: {max_queue_depth:\n {x: 5}}}", 2, "a mapping cannot stand here");
    refused("address: {a: b}", 1, "address: one value is expected");
    refused("address:\n  a: b\n", 1, "address: one value is expected");
    refused("queue_config: max_queue_depth: 5", 1, "a mapping cannot stand here");
    refused("queue_config:\n    max_queue_depth: 5\n  messages_max: 5\n", 3, "the indentation");
    refused("queue_config:\n  max_queue_depth: 5\n    x: 5\n", 3, "the indentation");
    refused("queue_config:\n\tmax_queue_depth: 5\n", 2, "a tab cannot indent");
    refused("  messages_max: 5\nqueue_config:\n", 2, "the indentation");
    refused("queue_config: {max_queue_depth: 5", 1, "a bracket is not closed");
    refused("{queue_config: {max_queue_depth: 5}", 1, "a bracket is not closed");
    refused("queue_config: {max_queue_depth: 5}}", 1, "something stands behind the value");
    refused("queue_config: {max_queue_depth: 5} x", 1, "something stands behind the value");
    refused("{queue_config: {max_queue_depth: 5} messages_max: 5}", 1, "a comma or } is expected");
}

/* ---- refusals -------------------------------------------------------------------------------- */

TEST(unknown_keys_are_refused) {
    refused("adress: 127.0.0.1:1", 1, "adress: there is no such key");
    refused("# one\n\nmessages_max: 5\nmessagesmax: 6\n", 4, "messagesmax: there is no such key");
    refused("Address: 127.0.0.1:1", 1, "Address: there is no such key");
    refused("address : 127.0.0.1:1\n\"\": x", 2, ": there is no such key");
    refused("null: x", 1, "null: there is no such key");
    refused("key_pem: x", 1, "there is no such key");
    refused("size: 4", 1, "there is no such key");
    refused("flags: 4", 1, "there is no such key");
    refused("no_background: true", 1, "there is no such key");
    refused("allocator: x\n", 1, "there is no such key");
    refused("\"a\\e[2J\\n\\0\": x", 1, "line 1: a?[2J??: there is no such key"); /* as in a log */
    refused("a234567890123456789012345678901234567890: x", 1,
            "a2345678901234567890123456789012...: there is no such key");
}

TEST(missing_values_are_refused_at_their_key) {
    uint32_t i;
    for (i = 0; i < OPC__SETTINGS_KEYS; i++) {
        const opc__settings_key *k = &opc__settings_keys[i];
        static const char *const none[] = {"", "~", "null", "# 5", "\n\n# later", "\n\n~"};
        size_t j;
        for (j = 0; j < sizeof none / sizeof none[0]; j++) {
            char text[128];
            uint32_t line = line_for(k, none[j], text, sizeof text);
            strcat(text, "\n\nmessages_max: x\n");
            refused(text, line, "a value is missing");
        }
    }
    refused("{address, messages_max: 5}", 1, "address: a value is missing");
    refused("{\n\"address\" :\n\n,messages_max: 5}", 2, "address: a value is missing");
}

TEST(what_is_set_twice_is_refused) {
    refused("messages_max: 5\nsend_timeout_ms: 1\nmessages_max: 5\n", 3,
            "messages_max: line 1 has set this already");
    refused("{no_listen: true,\nno_listen: true}", 2, "no_listen: line 1 has set this already");
    refused("queue_config: {max_queue_depth: 5}\n\nqueue_config:\n  max_queue_depth: 5\n", 3,
            "queue_config: line 1 has set this already");
    refused("queue_config:\nqueue_config:\n", 2, "queue_config: line 1 has set this already");
    refused("queue_config: {max_queue_depth: 5,\n max_queue_depth: 5}", 2,
            "max_queue_depth: line 1 has set this already");
    refused("queue_depth_max: 5\nqueue_config: {max_queue_depth: 5}\n", 2,
            "max_queue_depth: line 1 has set this already");
    refused("msg_size_config: {max_frame_size_kb: 5}\nframe_bytes_max: 5120\n", 2,
            "frame_bytes_max: line 1 has set this already");
    refused("rate_cost: 1\nrate_limiter_config:\n  tokens_per_message: 1\n", 3,
            "tokens_per_message: line 1 has set this already");
    refused("allow: {a: null}\nallow: {b: null}\n", 2, "allow: line 1 has set this already");
    refused("routes: allow_all\nroutes: allow_all\n", 2, "routes: line 1 has set this already");
}

TEST(values_of_the_wrong_form_are_refused) {
    refused("messages_max: [5]\n", 1, "messages_max: one value is expected");
    refused("key_file:\n  - a\n  - b\n", 1, "key_file: one value is expected");
    refused("address: localhost:80", 1, "address: a numeric ip:port is expected");
    refused("address: 127.0.0.1", 1, "address");
    refused("\naddress:\n  127.0.0.1:65536\n", 3, "address");
    refused("address: \"::1:80\"", 1, "address");
    refused("address: \"127.0.0.1:80\\0\"", 1, "address");
    refused("address: [::1]:80", 1, "address: one value is expected"); /* a list, without quotes */
    refused("key_file: ''", 1, "key_file: not a usable path");
    refused("key_file: \"a\\0b\"", 1, "key_file: not a usable path");
    refused("log_path: logs/", 1, "log_path: not a usable path");
    refused("allow: ''", 1, "allow: not a usable path");
    refused("routes: dir/", 1, "routes: not a usable path");
    refused("broker_node_config: {max_msgs_per_tick_utilization: 1.5}", 1, "from 0 to 1");
    refused("broker_node_config: {max_msgs_per_tick_utilization: 1.}", 1, "from 0 to 1");
    refused("broker_node_config: {max_msgs_per_tick_utilization: .5}", 1, "from 0 to 1");
    refused("broker_node_config: {max_msgs_per_tick_utilization: '0.5'}", 1, "from 0 to 1");
    refused("broker_node_config: {max_msgs_per_tick_utilization: -0.5}", 1, "from 0 to 1");
    refused("broker_node_config: {max_msgs_per_tick_utilization: 0.5.5}", 1, "from 0 to 1");
    refused("broker_node_config: {max_msgs_per_tick_utilization: half}", 1, "from 0 to 1");
}

TEST(a_part_is_taken_from_0_to_1) {
    static const char *const good[] = {"0", "1", "0.5", "0.000", "1.0", "0.123456789"};
    size_t i;
    for (i = 0; i < sizeof good / sizeof good[0]; i++) {
        char text[128];
        opcomms_config cfg;
        (void)line_for(key_named("max_msgs_per_tick_utilization"), good[i], text, sizeof text);
        opcomms_settings_free(config_of(text, &cfg));
    }
}

TEST(what_is_no_mapping_is_refused) {
    refused("allow_all", 1, "");
    refused("\n- address\n", 2, "");
    refused("address: 127.0.0.1:1\n---\naddress: 127.0.0.1:2\n", 2, "only one document");
    refused("a: 1\n\x01", 2, "a character YAML forbids");
    refused("messages_max: 5\naddress: \"127.0.0.1:1\n", 2, "the quote is not closed");
    refused("messages_max: 5\n\"\xff\": 1\n", 1, "not UTF-8");
    refused("&a messages_max: 5", 1, "cannot begin a plain text");
}

/* ---- lists ----------------------------------------------------------------------------------- */

#define H1 "6a3bdd7f625c39fcca1c74c225a8073b3510ebc82803aa972070995c7296445f"
#define H2 "0b5f1c7e93a24d68f0e1b2c3d4a5968778695a4b3c2d1e0f1a2b3c4d5e6f7081"

static void check_lists(const opcomms_config *cfg) {
    opcomms_identifier a, b;
    CHECK_EQ(opcomms_identifier_parse(H1 ":3", &a), OPCOMMS_OK);
    CHECK_EQ(opcomms_identifier_parse(H2 ":0", &b), OPCOMMS_OK);
    CHECK(opcomms_allow_list_is_allowed(cfg->allow, H1, "10.0.0.1"));
    CHECK(!opcomms_allow_list_is_allowed(cfg->allow, H1, "10.0.0.2"));
    CHECK(opcomms_allow_list_is_allowed(cfg->allow, H2, "10.0.0.2"));
    CHECK_EQ(opcomms_allow_list_count(cfg->allow), 2);
    CHECK(opcomms_routing_table_can_route(cfg->routes, &a, &b));
    CHECK(!opcomms_routing_table_can_route(cfg->routes, &b, &a));
    b.id = 1;
    CHECK(opcomms_routing_table_can_route(cfg->routes, &a, &b));
    b.id = 2;
    CHECK(!opcomms_routing_table_can_route(cfg->routes, &a, &b));
    CHECK_EQ(opcomms_routing_table_count(cfg->routes), 2);
}

TEST(lists_can_stand_in_the_file_itself) {
    opcomms_config cfg;
    opcomms_settings *s = config_of("allow:\n"
                                    "  " H1 ": 10.0.0.1\n"
                                    "  " H2 ": null\n"
                                    "routes:\n"
                                    "  \"" H1 ":~\":\n"
                                    "  - \"" H2 ":0\"\n"
                                    "  - " H2 ":1\n"
                                    "messages_max: 5\n",
                                    &cfg);
    check_lists(&cfg);
    CHECK_EQ(cfg.messages_max, 5);
    opcomms_settings_free(s);
    s = config_of("{routes: {\"" H1 ":~\": [\"" H2 ":0\", \"" H2 ":1\"]}, allow: {" H1
                  ": 10.0.0.1, " H2 "}}",
                  &cfg);
    check_lists(&cfg);
    opcomms_settings_free(s);
    s = config_of("allow: {" H1 ": 10.0.0.1, " H2 ": ~}\n" /* the list that ends with the file */
                  "routes:\n   # indented\n   " H1 ":~:\n     - " H2 ":0\n     - " H2 ":1",
                  &cfg);
    check_lists(&cfg);
    opcomms_settings_free(s);
    s = config_of("allow: {}\nroutes: {}\n", &cfg);
    CHECK(!opcomms_allow_list_is_allowed(cfg.allow, H1, NULL));
    CHECK_EQ(opcomms_routing_table_count(cfg.routes), 0);
    opcomms_settings_free(s);
    refused("messages_max: 5\nallow:\n  a: 1.2.3.4\n  b: 1.2.3\n", 4, "allow: not an IP address");
    refused("allow:\n  a:\n    - 1.2.3.4\n", 2, "allow: an IP address or null is expected");
    refused("allow: {a: {b: c}}", 1, "a mapping cannot stand here");
    refused("routes:\n  \"a:1\": [\"b:2\",\n    \"b\"]\n", 3, "routes: not of the form hash:id");
    refused("routes:\n  a: []\n", 2, "routes: not of the form hash:id");
    refused("allow:\n  - a\n", 1, "allow: one value is expected");
    refused("routes: [a]\n", 1, "routes: one value is expected");
}

TEST(the_word_allow_all_stands_for_a_list) {
    opcomms_config cfg;
    opcomms_settings *s = NULL;
    opcomms_error err;
    opcomms_identifier a, b;
    CHECK_EQ(load_in("allow: allow_all\nroutes: allow_all\n", 35, "/nonexistent", &s, &err),
             OPCOMMS_OK);
    opcomms_config_init(&cfg);
    CHECK_EQ(opcomms_settings_config(s, &cfg), OPCOMMS_OK);
    CHECK_EQ(opcomms_identifier_parse("x:3", &a), OPCOMMS_OK);
    CHECK_EQ(opcomms_identifier_parse("y:0", &b), OPCOMMS_OK);
    CHECK(opcomms_allow_list_is_allowed(cfg.allow, "x", "1.2.3.4"));
    CHECK(opcomms_routing_table_can_route(cfg.routes, &a, &b));
    opcomms_settings_free(s);
}

TEST(lists_outlive_the_settings_where_others_hold_them) {
    opcomms_config cfg;
    opcomms_settings *s = config_of("allow: {" H1 ": null}\nroutes: {}\n", &cfg);
    opcomms_allow_list_retain(cfg.allow);
    opcomms_settings_free(s);
    CHECK(opcomms_allow_list_is_allowed(cfg.allow, H1, NULL));
    opcomms_allow_list_release(cfg.allow);
}

/* ---- files ----------------------------------------------------------------------------------- */

TEST(paths_are_relative_to_the_file) {
    char dir[] = "/tmp/opcomms-test-XXXXXX", path[512], want[512];
    opcomms_settings *s = NULL;
    opcomms_config cfg;
    opcomms_error err;
    CHECK(mkdtemp(dir) != NULL);
    join(path, sizeof path, dir, "lists");
    CHECK_EQ(mkdir(path, 0700), 0);
    write_file(dir, "lists/allow.yaml", H1 ": 10.0.0.1\n" H2 ": ~\n");
    write_file(dir, "routes.yaml", "\"" H1 ":~\": [\"" H2 ":0\", \"" H2 ":1\"]\n");
    write_file(dir, "operator.yaml", "allow: lists/allow.yaml\nroutes: routes.yaml\n"
                                     "key_file: a.key\nca_key_file: ../ca.key\n"
                                     "log_path: /var/lib/a.log\n");
    join(path, sizeof path, dir, "operator.yaml");
    CHECK_EQ(opcomms_settings_load(NULL, path, &s, &err), OPCOMMS_OK);
    opcomms_config_init(&cfg);
    CHECK_EQ(opcomms_settings_config(s, &cfg), OPCOMMS_OK);
    check_lists(&cfg);
    join(want, sizeof want, dir, "a.key");
    CHECK_STR(cfg.key_file, want);
    join(want, sizeof want, dir, "../ca.key");
    CHECK_STR(cfg.ca_key_file, want);
    CHECK_STR(cfg.log_path, "/var/lib/a.log");
    write_file(dir, "lists/allow.yaml", H1 ": 10.0.0.9\n"); /* the list knows where it came from */
    CHECK_EQ(opcomms_allow_list_reload(cfg.allow, &err), OPCOMMS_OK);
    CHECK(opcomms_allow_list_is_allowed(cfg.allow, H1, "10.0.0.9"));
    CHECK_EQ(opcomms_allow_list_count(cfg.allow), 1);
    opcomms_settings_free(s);
    remove_file(dir, "operator.yaml");
    remove_file(dir, "routes.yaml");
    remove_file(dir, "lists/allow.yaml");
    remove_file(dir, "lists");
    CHECK_EQ(rmdir(dir), 0);
}

TEST(the_directory_of_a_text_may_end_with_a_slash_or_not) {
    static const struct {
        const char *dir, *want;
    } cases[] = {{NULL, "k"}, {"", "k"}, {"conf", "conf/k"}, {"conf/", "conf/k"}, {"/", "/k"}};
    size_t i;
    for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        opcomms_settings *s = NULL;
        opcomms_config cfg;
        opcomms_error err;
        CHECK_EQ(load_in("key_file: k", 11, cases[i].dir, &s, &err), OPCOMMS_OK);
        opcomms_config_init(&cfg);
        CHECK_EQ(opcomms_settings_config(s, &cfg), OPCOMMS_OK);
        CHECK_STR(cfg.key_file, cases[i].want);
        opcomms_settings_free(s);
    }
}

TEST(paths_have_room_for_all_but_not_for_more) {
    static const char *const keys[] = {"key_file", "ca_key_file", "log_path"};
    static char text[8192], name[1100];
    size_t len = 0, k;
    opcomms_settings *s;
    opcomms_config cfg;
    memset(name, 'x', sizeof name);
    len += (size_t)sprintf(text + len, "address: 255.255.255.255:65535\n");
    for (k = 0; k < 3; k++) {
        len += (size_t)sprintf(text + len, "%s: %.*s\n", keys[k], (int)OPC__PATH_MAX - 1, name);
    }
    s = config_of(text, &cfg);
    CHECK_EQ(strlen(cfg.key_file), OPC__PATH_MAX - 1);
    CHECK_EQ(strlen(cfg.log_path), OPC__PATH_MAX - 1);
    CHECK_STR(cfg.address, "255.255.255.255:65535");
    opcomms_settings_free(s);
    len += (size_t)sprintf(text + len, "routes: %.*s\n", (int)OPC__PATH_MAX, name);
    refused(text, 5, "routes: not a usable path");
}

TEST(a_list_that_cannot_be_loaded_is_refused_at_its_key) {
    char dir[] = "/tmp/opcomms-test-XXXXXX", path[512];
    opcomms_settings *s = NULL;
    opcomms_error err;
    CHECK(mkdtemp(dir) != NULL);
    join(path, sizeof path, dir, "operator.yaml");
    write_file(dir, "operator.yaml", "messages_max: 5\n\nallow: allow.yaml\n");
    CHECK_EQ(opcomms_settings_load(NULL, path, &s, &err), OPCOMMS_E_NOT_FOUND);
    CHECK_EQ(err.line, 3);
    CHECK(err.os_code != 0);
    CHECK(strstr(err.text, "line 3: allow: /tmp/opcomms-test-") != NULL);
    CHECK(strstr(err.text, "/allow.yaml") != NULL);
    write_file(dir, "allow.yaml", "a: ~\nb: 1.2.3.4.5\n");
    CHECK_EQ(opcomms_settings_load(NULL, path, &s, &err), OPCOMMS_E_SYNTAX);
    CHECK_EQ(err.line, 3);
    CHECK(strstr(err.text, "line 3: allow file: line 2: not an IP address") != NULL);
    write_file(dir, "operator.yaml", "routes: routes.yaml\nallow: {a: ~}\n");
    write_file(dir, "routes.yaml", "a: b\n");
    CHECK_EQ(opcomms_settings_load(NULL, path, &s, &err), OPCOMMS_E_SYNTAX);
    CHECK_EQ(err.line, 1);
    CHECK(strstr(err.text, "line 1: routes file: line 1: ") != NULL);
    CHECK_EQ(opcomms_settings_load(NULL, path, &s, NULL), OPCOMMS_E_SYNTAX);
    /* a mistake in the settings comes first: no file was looked for */
    write_file(dir, "operator.yaml", "routes: nowhere.yaml\nmessages_max: x\n");
    CHECK_EQ(opcomms_settings_load(NULL, path, &s, &err), OPCOMMS_E_SYNTAX);
    CHECK_EQ(err.line, 2);
    CHECK(s == NULL);
    remove_file(dir, "operator.yaml");
    CHECK_EQ(opcomms_settings_load(NULL, path, &s, &err), OPCOMMS_E_NOT_FOUND);
    CHECK_EQ(err.line, 0);
    remove_file(dir, "allow.yaml");
    remove_file(dir, "routes.yaml");
    CHECK_EQ(rmdir(dir), 0);
}

/* ---- the config ------------------------------------------------------------------------------ */

TEST(what_the_file_does_not_name_stays) {
    opcomms_config cfg, before;
    opcomms_settings *s = NULL;
    opcomms_error err;
    memset(&cfg, 0x5a, sizeof cfg);
    cfg.size = (uint32_t)sizeof cfg;
    before = cfg;
    CHECK_EQ(load_in("queue_depth_max: 7\nmailboxes_max: 0\n", 36, NULL, &s, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_settings_config(s, &cfg), OPCOMMS_OK);
    CHECK_EQ(cfg.queue_depth_max, 7);
    CHECK_EQ(cfg.mailboxes_max, 0); /* named, and 0 is its value */
    cfg.queue_depth_max = before.queue_depth_max;
    cfg.mailboxes_max = before.mailboxes_max;
    CHECK(memcmp(&cfg, &before, sizeof cfg) == 0);
    opcomms_settings_free(s);
}

TEST(a_config_of_an_older_version_is_not_written_behind_its_end) {
    opcomms_config cfg, before;
    opcomms_settings *s = NULL;
    opcomms_error err;
    memset(&cfg, 0, sizeof cfg);
    cfg.size = (uint32_t)offsetof(opcomms_config, rate_per_second);
    CHECK_EQ(load_in("rate_capacity: 7\nmessages_max: 3", 32, NULL, &s, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_settings_config(s, &cfg), OPCOMMS_OK);
    CHECK_EQ(cfg.rate_capacity, 7);
    CHECK_EQ(cfg.messages_max, 3);
    memset(&cfg, 0, sizeof cfg);
    cfg.size = (uint32_t)offsetof(opcomms_config, rate_per_second) - 1;
    before = cfg;
    CHECK_EQ(opcomms_settings_config(s, &cfg), OPCOMMS_E_INVAL);
    CHECK(memcmp(&cfg, &before, sizeof cfg) == 0);
    opcomms_settings_free(s);
}

TEST(bad_arguments_are_refused) {
    opcomms_settings *s = NULL;
    opcomms_config cfg;
    opcomms_error err;
    opcomms_allocator half;
    memset(&half, 0, sizeof half);
    half.alloc = heap_alloc;
    opcomms_config_init(&cfg);
    CHECK_EQ(opcomms_settings_load(NULL, NULL, &s, &err), OPCOMMS_E_INVAL);
    CHECK_EQ(opcomms_settings_load(NULL, "x", NULL, &err), OPCOMMS_E_INVAL);
    CHECK_EQ(opcomms_settings_load(&half, "x", &s, &err), OPCOMMS_E_INVAL);
    CHECK_EQ(opcomms_settings_load(NULL, "", &s, &err), OPCOMMS_E_INVAL);
    CHECK_EQ(opcomms_settings_load_text(NULL, NULL, 0, NULL, &s, &err), OPCOMMS_E_INVAL);
    CHECK_EQ(opcomms_settings_load_text(NULL, "", 0, NULL, NULL, &err), OPCOMMS_E_INVAL);
    CHECK_EQ(opcomms_settings_load_text(&half, "", 0, NULL, &s, &err), OPCOMMS_E_INVAL);
    CHECK_EQ(opcomms_settings_config(NULL, &cfg), OPCOMMS_E_INVAL);
    CHECK_EQ(opcomms_settings_load_text(NULL, "", 0, NULL, &s, NULL), OPCOMMS_OK);
    CHECK_EQ(opcomms_settings_config(s, NULL), OPCOMMS_E_INVAL);
    opcomms_settings_free(s);
    opcomms_settings_free(NULL);
}

TEST(memory_comes_from_the_caller_and_may_end_anywhere) {
    static const char text[] = "allow: {a: 1.2.3.4, b: ~}\nroutes:\n  \"a:1\": [\"b:1\", \"b:~\"]\n"
                               "messages_max: 5\n";
    static const char words[] = "allow: allow_all\nroutes: allow_all\n";
    heap h;
    opcomms_allocator alloc;
    size_t fail, with = 0;
    alloc.alloc = heap_alloc;
    alloc.release = heap_release;
    alloc.user = &h;
    for (fail = 1; fail < 60; fail++) {
        opcomms_settings *s = NULL;
        opcomms_error err;
        opcomms_err rc;
        const char *t = fail % 2 != 0 ? text : words;
        memset(&h, 0, sizeof h);
        h.fail_at = (fail + 1) / 2;
        rc = opcomms_settings_load_text(&alloc, t, strlen(t), NULL, &s, &err);
        if (rc == OPCOMMS_OK) {
            CHECK(h.calls < h.fail_at && h.now > 0);
            with++;
        } else {
            CHECK_EQ(rc, OPCOMMS_E_NOMEM);
            CHECK_EQ(err.code, OPCOMMS_E_NOMEM);
            CHECK(s == NULL);
        }
        opcomms_settings_free(s);
        CHECK_EQ(h.now, 0);
    }
    CHECK(with > 10 && with < 55); /* both outcomes were seen */
}

TEST(a_peer_opens_from_settings_that_are_freed_then) {
    static const char text[] = "address: 127.0.0.1:0\nkey_file: base.key\nmemory_store: true\n"
                               "allow: allow_all\nroutes: allow_all\nmessages_max: 2\n";
    opcomms_settings *s = NULL;
    opcomms_config cfg;
    opcomms_peer *peer = NULL;
    opcomms_identifier self;
    opcomms_error err;
    char hash[65];
    CHECK_EQ(load_in(text, strlen(text), TEST_DATA "/keys", &s, &err), OPCOMMS_OK);
    opcomms_config_init(&cfg);
    cfg.flags = OPCOMMS_NO_BACKGROUND;
    CHECK_EQ(opcomms_settings_config(s, &cfg), OPCOMMS_OK);
    CHECK_EQ(opcomms_new(&cfg, &peer, &err), OPCOMMS_OK);
    opcomms_settings_free(s);
    if (peer == NULL) return;
    CHECK_EQ(opcomms_get_pubk_hash(peer, hash), OPCOMMS_OK);
    memset(&self, 0, sizeof self);
    memcpy(self.hash, hash, 65);
    CHECK_EQ(opcomms_local_send(peer, 0, &self, "1", 1, 0, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_local_send(peer, 0, &self, "2", 1, 0, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_local_send(peer, 0, &self, "3", 1, 0, &err), OPCOMMS_E_FULL);
    opcomms_free(peer);
}

/* ---- the example ----------------------------------------------------------------------------- */

TEST(the_example_has_every_key_with_its_default) {
    opcomms_settings *s = NULL;
    opcomms_config cfg, full, fresh, defaults;
    opcomms_error err;
    char text[8192];
    size_t len;
    uint32_t i;
    FILE *f = fopen("examples/operator.yaml", "rb");
    CHECK(f != NULL);
    if (f == NULL) return;
    len = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[len] = 0;
    memset(&err, 0, sizeof err);
    CHECK_EQ(opcomms_settings_load(NULL, "examples/operator.yaml", &s, &err), OPCOMMS_OK);
    if (s == NULL) printf("%s\n", err.text);
    if (s == NULL) return;
    for (i = 0; i < OPC__SETTINGS_KEYS; i++) {
        const char *name = opc__settings_keys[i].name;
        const char *at = strstr(text, name);
        CHECK(at != NULL && at[strlen(name)] == ':');
        /* what is commented out: the other names of the same, and the key without a default */
        if (s->line[i] == 0 && opc__settings_keys[i].group == 0) CHECK_STR(name, "ca_key_file");
    }
    for (i = 0; i < OPC__SETTINGS_GROUPS; i++) {
        CHECK(strstr(text, opc__settings_groups[i]) != NULL);
    }
    opcomms_config_init(&cfg);
    CHECK_EQ(opcomms_settings_config(s, &cfg), OPCOMMS_OK);
    CHECK_STR(cfg.address, "0.0.0.0:9001");
    CHECK_STR(cfg.key_file, "examples/operator.key");
    CHECK_STR(cfg.log_path, "examples/operator.log");
    CHECK_EQ(opcomms_allow_list_count(cfg.allow), 2);
    CHECK(opcomms_allow_list_is_allowed(cfg.allow, H1, "192.0.2.7"));
    CHECK(opcomms_allow_list_is_allowed(cfg.allow, H2, NULL));
    CHECK_EQ(opcomms_routing_table_count(cfg.routes), 2);
    CHECK_EQ(strlen(H1), 64);
    CHECK_EQ(strlen(H2), 64);
    CHECK_EQ(checked(cfg, &full), OPCOMMS_OK);
    opcomms_config_init(&fresh);
    CHECK_EQ(checked(fresh, &defaults), OPCOMMS_OK);
    for (i = 0; i < OPC__SETTINGS_KEYS; i++) {
        const opc__settings_key *k = &opc__settings_keys[i];
        if (k->at < sizeof cfg && is_number(k)) CHECK_EQ(field(&full, k), field(&defaults, k));
    }
    CHECK_EQ(full.flags, defaults.flags);
    CHECK_EQ(full.durability, defaults.durability);
    CHECK_EQ(full.protocol, defaults.protocol);
    opcomms_settings_free(s);
}

int main(void) {
    RUN(an_empty_file_sets_nothing);
    RUN(texts_are_taken);
    RUN(words_are_taken);
    RUN(flags_set_and_clear_their_bit_alone);
    RUN(every_number_is_taken_within_its_range_and_refused_outside);
    RUN(opcomms_new_refuses_what_the_ranges_exclude);
    RUN(every_field_of_the_config_has_a_key_or_is_the_programs_own);
    RUN(the_rate_can_be_unlimited);
    RUN(keys_that_contradict_each_other_are_refused_at_the_later_one);
    RUN(keys_that_agree_are_taken);
    RUN(the_groups_of_the_reference_are_understood_in_every_form);
    RUN(groups_are_refused_where_they_do_not_belong);
    RUN(unknown_keys_are_refused);
    RUN(missing_values_are_refused_at_their_key);
    RUN(what_is_set_twice_is_refused);
    RUN(values_of_the_wrong_form_are_refused);
    RUN(a_part_is_taken_from_0_to_1);
    RUN(what_is_no_mapping_is_refused);
    RUN(lists_can_stand_in_the_file_itself);
    RUN(the_word_allow_all_stands_for_a_list);
    RUN(lists_outlive_the_settings_where_others_hold_them);
    RUN(paths_are_relative_to_the_file);
    RUN(the_directory_of_a_text_may_end_with_a_slash_or_not);
    RUN(paths_have_room_for_all_but_not_for_more);
    RUN(a_list_that_cannot_be_loaded_is_refused_at_its_key);
    RUN(what_the_file_does_not_name_stays);
    RUN(a_config_of_an_older_version_is_not_written_behind_its_end);
    RUN(bad_arguments_are_refused);
    RUN(memory_comes_from_the_caller_and_may_end_anywhere);
    RUN(a_peer_opens_from_settings_that_are_freed_then);
    RUN(the_example_has_every_key_with_its_default);
    return test_end();
}
