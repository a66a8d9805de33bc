/* Two peers in one process: one sends, the other checks once.
   cc hello.c -I.. -lbearssl -lpthread -o hello */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"

#include <stdio.h>

static opcomms_peer *start(opcomms_key_type type, opcomms_allow_list *allow,
                           opcomms_routing_table *routes) {
    static char pem[4096];
    opcomms_peer *peer = NULL;
    opcomms_config cfg;
    opcomms_error err;
    size_t len = 0;
    opcomms_config_init(&cfg);
    cfg.address = "127.0.0.1:0";
    cfg.flags = OPCOMMS_MEMORY_STORE; /* a real operator keeps a log */
    cfg.allow = allow;
    cfg.routes = routes;
    if (opcomms_generate_key_pem(type, pem, sizeof pem, &len, &err) == OPCOMMS_OK) {
        cfg.key_pem = pem;
        cfg.key_pem_bytes = len;
        if (opcomms_new(&cfg, &peer, &err) == OPCOMMS_OK) return peer;
    }
    fprintf(stderr, "%s\n", err.text);
    return NULL;
}

int main(void) {
    opcomms_allow_list *allow = NULL;
    opcomms_routing_table *routes = NULL;
    opcomms_peer *one, *two;
    opcomms_identifier from;
    opcomms_error err;
    char hash1[65], hash2[65], address[64], text[64], a[136], b[136];
    size_t len = 0;
    int bad = 1;
    if (opcomms_allow_list_new(NULL, &allow) || opcomms_routing_table_new(NULL, &routes)) return 1;
    one = start(OPCOMMS_KEY_RSA_2048, allow, routes);
    two = start(OPCOMMS_KEY_P256, allow, routes);
    if (one != NULL && two != NULL) {
        (void)opcomms_get_pubk_hash(one, hash1);
        (void)opcomms_get_pubk_hash(two, hash2);
        (void)opcomms_get_address(two, address, sizeof address);
        (void)opcomms_allow_list_add(allow, hash1, "127.0.0.1");
        (void)opcomms_allow_list_add(allow, hash2, NULL);
        snprintf(a, sizeof a, "%s:0", hash1);
        snprintf(b, sizeof b, "%s:0", hash2);
        (void)opcomms_routing_table_add(routes, a, b);
        if (opcomms_send(one, hash2, address, "hello", 5, 0, &err) == OPCOMMS_OK &&
            opcomms_check_receive(two, &from, text, sizeof text, &len, &err) == OPCOMMS_OK) {
            printf("%.16s... says: %.*s\n", from.hash, (int)len, text);
            bad = 0;
        } else {
            fprintf(stderr, "%s\n", err.text);
        }
    }
    opcomms_free(one);
    opcomms_free(two);
    opcomms_allow_list_release(allow);
    opcomms_routing_table_release(routes);
    return bad;
}
