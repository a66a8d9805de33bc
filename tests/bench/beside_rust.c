/* A C peer to be measured beside the Rust one: in memory, as the Rust one is.
   beside_rust serve KEY            prints "I am HASH@ADDR", ends with its input
   beside_rust send KEY HASH ADDR N  64 B each; prints messages a second, p50 in us, resident KB */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"

#include <stdio.h>
#include <stdlib.h>

static uint32_t took[200000];

static int by_size(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static unsigned long resident_kb(void) { /* the most there ever was */
    char line[256];
    unsigned long kb = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        if (strncmp(line, "VmHWM:", 6) == 0) kb = strtoul(line + 6, NULL, 10);
    }
    if (f != NULL) fclose(f);
    return kb;
}

static uint64_t now_us(void) { return opcomms_platform_default()->now_us(NULL); }

static int send_all(opcomms_peer *peer, char **argv) {
    static const char text[64] = "sixty-four bytes";
    size_t n = (size_t)strtoul(argv[5], NULL, 10), i;
    opcomms_error err;
    uint64_t begin;
    if (n < 1 || n > sizeof took / sizeof took[0]) return 2;
    if (opcomms_ping(peer, argv[3], argv[4], 0, &err) != OPCOMMS_OK) goto failed;
    begin = now_us();
    for (i = 0; i < n; i++) {
        uint64_t at = now_us();
        if (opcomms_send(peer, argv[3], argv[4], text, sizeof text, 0, &err)) goto failed;
        took[i] = (uint32_t)(now_us() - at);
    }
    begin = now_us() - begin;
    qsort(took, n, sizeof took[0], by_size);
    printf("%.0f %u %lu\n", (double)n * 1e6 / (double)begin, took[n / 2], resident_kb());
    return 0;
failed:
    fprintf(stderr, "%s\n", err.text);
    return 1;
}

int main(int argc, char **argv) {
    opcomms_config cfg;
    opcomms_peer *peer = NULL;
    opcomms_error err;
    char hash[65], address[64];
    int rc = 0;
    opcomms_config_init(&cfg);
    cfg.flags = OPCOMMS_MEMORY_STORE;
    cfg.address = "127.0.0.1:0";
    cfg.rate_capacity = OPCOMMS_UNLIMITED;
    cfg.queue_depth_max = cfg.messages_max = 1000000;
    if (argc < 3) return 2;
    cfg.key_file = argv[2];
    if (opcomms_allow_list_new(NULL, &cfg.allow) || opcomms_routing_table_new(NULL, &cfg.routes)) {
        return 1;
    }
    (void)opcomms_allow_list_allow_all(cfg.allow, 1);
    (void)opcomms_routing_table_allow_all(cfg.routes, 1);
    if (opcomms_new(&cfg, &peer, &err) != OPCOMMS_OK) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    if (argc > 5) {
        rc = send_all(peer, argv);
    } else {
        (void)opcomms_get_pubk_hash(peer, hash);
        (void)opcomms_get_address(peer, address, sizeof address);
        printf("I am %s@%s\n", hash, address);
        fflush(stdout);
        while (getchar() != EOF) {
        }
        fprintf(stderr, "%lu\n", resident_kb());
    }
    opcomms_free(peer);
    return rc;
}
