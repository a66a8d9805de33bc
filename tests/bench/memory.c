/* Resident memory: `memory in|out DIR N` starts a peer with a log and default limits, reads what
   the kernel says, opens N connections (in: from N other peers, out: to them), sends one message
   over each, and reads again. The other peers live in another process. Prints
   "before-rss before-pss idle-rss idle-pss rss-per-connection pss-per-connection" in KB. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"

#include <stdio.h>
#include <sys/wait.h>

#define OTHERS_MAX 48

static opcomms_allow_list *allow;
static opcomms_routing_table *routes;

static long kb_of(const char *path, const char *field) {
    char text[4096];
    const char *at;
    int fd = open(path, O_RDONLY);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0) close(fd);
    text[n > 0 ? n : 0] = 0;
    at = strstr(text, field);
    return at == NULL ? -1 : strtol(at + strlen(field), NULL, 10);
}

static long rss(void) { return kb_of("/proc/self/status", "VmRSS:"); }
static long pss(void) { return kb_of("/proc/self/smaps_rollup", "\nPss:"); }

static void fail(const char *text) {
    fprintf(stderr, "memory: %s\n", text);
    _exit(1);
}

static opcomms_peer *make(const char *key_file, const char *pem, size_t len, const char *log) {
    opcomms_peer *peer = NULL;
    opcomms_config cfg;
    opcomms_error err;
    opcomms_config_init(&cfg);
    cfg.address = "127.0.0.1:0";
    cfg.key_file = key_file;
    cfg.key_pem = pem;
    cfg.key_pem_bytes = len;
    cfg.allow = allow;
    cfg.routes = routes;
    cfg.log_path = log;
    cfg.connections_per_address = OTHERS_MAX;
    if (log == NULL) cfg.flags = OPCOMMS_MEMORY_STORE;
    if (opcomms_new(&cfg, &peer, &err) != OPCOMMS_OK) fail(err.text);
    return peer;
}

static void send_one(opcomms_peer *from, const char *hash, const char *address) {
    static const char data[64] = "m";
    opcomms_error err;
    if (opcomms_send(from, hash, address, data, sizeof data, 0, &err) != OPCOMMS_OK) fail(err.text);
}

static void get(int fd, void *p, size_t n) {
    char *c = (char *)p;
    while (n > 0) {
        ssize_t r = read(fd, c, n);
        if (r <= 0) fail("the other process has ended");
        c += r;
        n -= (size_t)r;
    }
}

static void put(int fd, const void *p, size_t n) {
    if (write(fd, p, n) != (ssize_t)n) fail("write");
}

typedef struct place {
    char hash[65];
    char address[64];
} place;

static void others(int fd, const char *key_file, int n, int send) {
    static char pem[4096];
    opcomms_peer *peer[OTHERS_MAX];
    opcomms_error err;
    place at;
    size_t len = 0;
    char c = 0;
    int i;
    if (opcomms_generate_key_file(key_file, OPCOMMS_KEY_RSA_2048, &err) != OPCOMMS_OK) {
        fail(err.text);
    }
    put(fd, &c, 1);
    get(fd, &at, sizeof at);
    for (i = 0; i < n; i++) {
        place own;
        if (opcomms_generate_key_pem(OPCOMMS_KEY_P256, pem, sizeof pem, &len, &err) != OPCOMMS_OK) {
            fail(err.text);
        }
        peer[i] = make(NULL, pem, len, NULL);
        (void)opcomms_get_pubk_hash(peer[i], own.hash);
        (void)opcomms_get_address(peer[i], own.address, sizeof own.address);
        if (send) send_one(peer[i], at.hash, at.address);
        put(fd, &own, sizeof own);
    }
    (void)!read(fd, &c, 1); /* until the other end has measured */
    for (i = 0; i < n; i++) opcomms_free(peer[i]);
    _exit(0);
}

int main(int argc, char **argv) {
    static char key[512], log[512];
    int fds[2], n, i, out;
    long before_rss, before_pss, idle_rss, idle_pss;
    opcomms_peer *peer;
    place at;
    char c = 0;
    pid_t child;
    if (argc != 4 || strlen(argv[2]) > 400) fail("usage: memory in|out DIRECTORY N");
    out = argv[1][0] == 'o';
    n = (int)strtol(argv[3], NULL, 10);
    if (n < 1 || n > OTHERS_MAX) fail("N");
    snprintf(key, sizeof key, "%s/memory.key", argv[2]);
    snprintf(log, sizeof log, "%s/memory.log", argv[2]);
    (void)unlink(key);
    (void)unlink(log);
    if (opcomms_allow_list_new(NULL, &allow) || opcomms_routing_table_new(NULL, &routes) ||
        opcomms_allow_list_allow_all(allow, 1) || opcomms_routing_table_allow_all(routes, 1) ||
        socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0) {
        fail("start");
    }
    child = fork();
    if (child == 0) {
        close(fds[0]);
        others(fds[1], key, n, !out);
    }
    close(fds[1]);
    get(fds[0], &c, 1);
    before_rss = rss();
    before_pss = pss();
    peer = make(key, NULL, 0, log);
    (void)opcomms_get_pubk_hash(peer, at.hash);
    (void)opcomms_get_address(peer, at.address, sizeof at.address);
    idle_rss = rss();
    idle_pss = pss();
    put(fds[0], &at, sizeof at);
    for (i = 0; i < n; i++) {
        place other;
        get(fds[0], &other, sizeof other);
        if (out) send_one(peer, other.hash, other.address);
    }
    printf("%ld %ld %ld %ld %.1f %.1f\n", before_rss, before_pss, idle_rss, idle_pss,
           (double)(rss() - idle_rss) / n, (double)(pss() - idle_pss) / n);
    fflush(stdout);
    close(fds[0]);
    waitpid(child, NULL, 0);
    opcomms_free(peer);
    opcomms_allow_list_release(allow);
    opcomms_routing_table_release(routes);
    return 0;
}
