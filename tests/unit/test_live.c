/* A live peer under raw clients: every captured client stream of the Rust system gets the same
   verdict, and a stranger's connection ends when it should. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#include "test.h"

#include <arpa/inet.h>
#include <dirent.h>

typedef struct raw {
    int sock;
    opc__key key;
    opc__tls_ctx ctx;
    opc__tls tls;
} raw;

static char server_hash[65];

static int raw_may(void *user, const uint8_t hash[32]) {
    (void)user;
    (void)hash;
    return 1;
}

/* Moves bytes until something changed for the application; 0 at the end of the connection. */
static int raw_turn(raw *r, int timeout_ms) {
    struct pollfd fd;
    size_t len = 0;
    const uint8_t *out;
    uint8_t *in;
    ssize_t n;
    while ((out = opc__tls_out(&r->tls, &len)) != NULL && len > 0) {
        n = send(r->sock, out, len, MSG_NOSIGNAL);
        if (n <= 0) return 0;
        opc__tls_out_done(&r->tls, (size_t)n);
    }
    if (opc__tls_closed(&r->tls)) return 0;
    fd.fd = r->sock;
    fd.events = POLLIN;
    if (poll(&fd, 1, timeout_ms) <= 0) return timeout_ms == 0;
    in = opc__tls_in(&r->tls, &len);
    if (in == NULL || len == 0) return 1;
    n = recv(r->sock, in, len, 0);
    if (n <= 0) return 0;
    opc__tls_in_done(&r->tls, (size_t)n);
    return 1;
}

static int raw_open(raw *r, const char *pem, const char *address) {
    struct sockaddr_in a;
    uint8_t entropy[32], want[32];
    opc__key ca;
    memset(r, 0, sizeof *r);
    memset(&a, 0, sizeof a);
    a.sin_family = AF_INET;
    a.sin_port = htons((uint16_t)atoi(strchr(address, ':') + 1));
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    r->sock = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(r->sock, (struct sockaddr *)&a, sizeof a) != 0) return 0;
    opc__key_builtin_ca(&ca);
    if (opc__key_from_pem(&r->key, pem, strlen(pem), NULL) != OPCOMMS_OK) return 0;
    if (opc__tls_ctx_init(&r->ctx, &r->key, &ca, 0, NULL) != OPCOMMS_OK) return 0;
    if (opc__posix_random(NULL, entropy, 32) != OPCOMMS_OK) return 0;
    if (!opc__str_hash_parse(server_hash, 64, want)) return 0;
    opc__tls_client(&r->tls, &r->ctx, want, raw_may, NULL, entropy, 0, 0);
    while (!opc__tls_ready(&r->tls)) {
        if (!raw_turn(r, 10000)) return 0;
    }
    return 1;
}

static void raw_close(raw *r) {
    close(r->sock);
    opc__tls_wipe(&r->tls);
}

/* Sends a stream and collects the answer until `until` appears or the connection ends. */
static size_t raw_talk(raw *r, const uint8_t *data, size_t len, char *answer, size_t cap,
                       const char *until, int *ended) {
    size_t at = 0, have = 0;
    *ended = 0;
    for (;;) {
        size_t n = 0;
        uint8_t *dst;
        const uint8_t *src;
        while (at < len && (dst = opc__tls_write(&r->tls, &n)) != NULL && n > 0) {
            if (n > len - at) n = len - at;
            memcpy(dst, data + at, n);
            opc__tls_write_done(&r->tls, n);
            at += n;
            opc__tls_flush(&r->tls);
        }
        while ((src = opc__tls_read(&r->tls, &n)) != NULL && n > 0) {
            size_t keep = n < cap - 1 - have ? n : cap - 1 - have;
            memcpy(answer + have, src, keep);
            have += keep;
            opc__tls_read_done(&r->tls, n);
        }
        answer[have] = 0;
        if (until != NULL && have > 0) {
            size_t i, m = strlen(until);
            for (i = 0; i + m <= have; i++) {
                if (memcmp(answer + i, until, m) == 0) return have;
            }
        }
        if (!raw_turn(r, at < len ? 0 : 5000)) { /* no wait while there is more to send */
            *ended = 1;
            return have;
        }
    }
}

static opcomms_peer *server;
static opcomms_allow_list *allow;
static opcomms_routing_table *routes;
static char client_pem[2048];
static char address[64];

static uint8_t *load(const char *path, size_t *len) {
    FILE *f = fopen(path, "rb");
    uint8_t *p = (uint8_t *)malloc(1 << 20);
    *len = 0;
    if (f != NULL) {
        *len = fread(p, 1, 1 << 20, f);
        fclose(f);
    }
    return p;
}

static int contains(const uint8_t *p, size_t n, const char *text) {
    size_t i, m = strlen(text);
    for (i = 0; i + m <= n; i++) {
        if (memcmp(p + i, text, m) == 0) return 1;
    }
    return 0;
}

/* Is `name` (without number and ending) in the file of exceptions? First word of each line. */
static int excepted(const char *name) {
    char line[512];
    int found = 0;
    FILE *f = fopen(TEST_DATA "/wire/exceptions.txt", "r");
    if (f == NULL) return 0;
    while (fgets(line, sizeof line, f) != NULL) {
        size_t n = strcspn(line, " \t\r\n:");
        if (line[0] != '#' && n == strlen(name) && memcmp(line, name, n) == 0) found = 1;
    }
    fclose(f);
    return found;
}

TEST(every_captured_client_stream_gets_the_verdict_of_the_reference) {
    DIR *dir = opendir(TEST_DATA "/wire/server");
    struct dirent *e;
    int seen = 0;
    CHECK(dir != NULL);
    while (dir != NULL && (e = readdir(dir)) != NULL) {
        char path[512], name[128], answer[65536];
        size_t c2s_len = 0, s2c_len = 0, len = strlen(e->d_name), got;
        uint8_t *c2s, *s2c;
        int alive, ended = 0;
        raw r;
        if (len < 8 || strcmp(e->d_name + len - 8, ".c2s.bin") != 0) continue;
        snprintf(name, sizeof name, "%.*s", (int)(len - 8), e->d_name);
        snprintf(path, sizeof path, TEST_DATA "/wire/server/%s.c2s.bin", name);
        c2s = load(path, &c2s_len);
        snprintf(path, sizeof path, TEST_DATA "/wire/server/%s.s2c.bin", name);
        s2c = load(path, &s2c_len);
        alive = contains(s2c, s2c_len, "\"request_id\":999");
        if (excepted(strchr(name, '_') + 1) || excepted(name)) alive = !alive;
        (void)opcomms_routing_table_allow_all(routes, strstr(name, "routing_denied") == NULL);
        CHECK(raw_open(&r, client_pem, address));
        got = raw_talk(&r, c2s, c2s_len, answer, sizeof answer,
                       alive && contains(c2s, c2s_len, "\"id\":999")
                           ? "\"request_id\":999,\"message\":{\"Ok\":{\"Ping\":true}}}"
                           : NULL,
                       &ended);
        if (!alive && !ended) printf("%s: still open\n", name);
        if (alive && contains(c2s, c2s_len, "\"id\":999")) {
            if (ended) printf("%s: closed\n", name);
            CHECK(!ended);
        }
        if (!alive) {
            CHECK(ended);
            CHECK(!contains((const uint8_t *)answer, got, "\"request_id\":999"));
        }
        /* Where no earlier mail and no race decides the content, the bytes are the same. */
        if (alive && s2c_len > 0 && !contains(s2c, s2c_len, "Get") &&
            !contains(s2c, s2c_len, "Ack") && strstr(name, "pipelined") == NULL &&
            strstr(name, "cancel") == NULL && !excepted(strchr(name, '_') + 1)) {
            int same = got == s2c_len && memcmp(answer, s2c, got) == 0;
            if (!same) printf("%s: another answer\n", name);
            CHECK(same);
        }
        raw_close(&r);
        free(c2s);
        free(s2c);
        seen++;
    }
    if (dir != NULL) closedir(dir);
    CHECK(seen > 60);
}

TEST(a_frame_of_exactly_8_mib_is_stored_and_one_byte_more_closes) {
    static const char head[] =
        "{\"Request\":{\"context\":{\"deadline\":{\"secs\":9,\"nanos\":0},\"trace_context\":{"
        "\"trace_id\":[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0],\"span_id\":1,"
        "\"sampling_decision\":\"Unsampled\"}},\"id\":0,"
        "\"message\":{\"Send\":{\"from_id\":0,\"dest\":{\"pubkey_hash\":\"big\",\"id\":0},"
        "\"msg\":\"";
    size_t total = OPCOMMS_MAX_FRAME, tail_len = strlen("\"}}}}");
    uint8_t *p = (uint8_t *)malloc(total + 8);
    uint8_t over[5] = {0x00, 0x80, 0x00, 0x01, '{'};
    char answer[512];
    int ended = 0;
    raw r;
    (void)opcomms_routing_table_allow_all(routes, 1);
    opc__buf_put32(p, (uint32_t)total);
    memset(p + 4, 'x', total);
    memcpy(p + 4, head, strlen(head));
    memcpy(p + 4 + total - tail_len, "\"}}}}", tail_len);
    CHECK(raw_open(&r, client_pem, address));
    (void)raw_talk(&r, p, total + 4, answer, sizeof answer, "{\"Send\":{\"Ok\":true}}}}", &ended);
    CHECK(!ended);
    (void)raw_talk(&r, over, 5, answer, sizeof answer, NULL, &ended);
    CHECK(ended);
    raw_close(&r);
    free(p);
}

/* A text that looks like a byte array for a long time, and then is none, must come back as the
   very text it was. */
TEST(a_text_that_only_begins_like_an_array_is_kept_as_text) {
    static const char *ends[] = {"[1,2", "[1,2,", "[]x", "[1,256]", "[1, 2]", "[01]", "", "[", "x"};
    char hash[65];
    raw r;
    size_t i;
    CHECK(raw_open(&r, client_pem, address));
    opc__str_hash_write(opc__tls_peer(&r.tls), hash);
    for (i = 0; i < sizeof ends / sizeof ends[0] + 1; i++) {
        size_t long_len = 400000, n, k;
        char *text = (char *)malloc(long_len + 64), *frame, *answer;
        opcomms_identifier from;
        opcomms_error err;
        size_t len = 0;
        int ended = 0;
        if (i < sizeof ends / sizeof ends[0]) {
            strcpy(text, ends[i]);
        } else {
            text[0] = '[';
            for (k = 1; k + 8 < long_len; k += 4) memcpy(text + k, "123,", 4);
            strcpy(text + k, "no]");
        }
        n = strlen(text);
        frame = (char *)malloc(n + 1024);
        answer = (char *)malloc(1024);
        snprintf(frame + 4, n + 1000,
                 "{\"Request\":{\"context\":{\"deadline\":{\"secs\":9,\"nanos\":0},"
                 "\"trace_context\":{\"trace_id\":[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0],"
                 "\"span_id\":1,\"sampling_decision\":\"Unsampled\"}},\"id\":0,"
                 "\"message\":{\"Send\":{\"from_id\":3,\"dest\":{"
                 "\"pubkey_hash\":\"%s\",\"id\":0},\"msg\":\"%s\"}}}}",
                 hash, text);
        opc__buf_put32((uint8_t *)frame, (uint32_t)strlen(frame + 4));
        (void)raw_talk(&r, (uint8_t *)frame, strlen(frame + 4) + 4, answer, 1024,
                       "{\"Send\":{\"Ok\":true}}}}", &ended);
        CHECK(!ended);
        {
            char *back = (char *)malloc(n + 1);
            CHECK_EQ(opcomms_check_receive(server, &from, back, n + 1, &len, &err), OPCOMMS_OK);
            CHECK_EQ(len, n);
            CHECK(len == n && memcmp(back, text, n) == 0);
            CHECK_EQ(from.id, 3);
            free(back);
        }
        free(text);
        free(frame);
        free(answer);
    }
    raw_close(&r);
}

int main(void) {
    opcomms_config cfg;
    opcomms_error err;
    char pem[4096];
    size_t len = 0;
    memset(&err, 0, sizeof err);
    CHECK(opcomms_generate_key_pem(OPCOMMS_KEY_P256, client_pem, sizeof client_pem, &len, &err) ==
          OPCOMMS_OK);
    CHECK(opcomms_generate_key_pem(OPCOMMS_KEY_P256, pem, sizeof pem, &len, &err) == OPCOMMS_OK);
    CHECK(opcomms_allow_list_new(NULL, &allow) == OPCOMMS_OK);
    CHECK(opcomms_routing_table_new(NULL, &routes) == OPCOMMS_OK);
    (void)opcomms_allow_list_allow_all(allow, 1);
    opcomms_config_init(&cfg);
    cfg.address = "127.0.0.1:0";
    cfg.key_pem = pem;
    cfg.key_pem_bytes = len;
    cfg.allow = allow;
    cfg.routes = routes;
    cfg.flags = OPCOMMS_MEMORY_STORE;
    cfg.mailboxes_max = 1000;
    cfg.handshakes_per_second = 10000;
    if (opcomms_new(&cfg, &server, &err) != OPCOMMS_OK) {
        printf("%s\n0 passed, 1 failed\n", err.text);
        return 1;
    }
    (void)opcomms_get_pubk_hash(server, server_hash);
    (void)opcomms_get_address(server, address, sizeof address);
    RUN(every_captured_client_stream_gets_the_verdict_of_the_reference);
    RUN(a_frame_of_exactly_8_mib_is_stored_and_one_byte_more_closes);
    RUN(a_text_that_only_begins_like_an_array_is_kept_as_text);
    opcomms_free(server);
    opcomms_allow_list_release(allow);
    opcomms_routing_table_release(routes);
    return test_end();
}
