/* One operator: listens, prints who says what, sends what is typed to everybody it knows.
   cc chat.c -I.. -lbearssl -lpthread -o chat

   usage: chat KEY LISTEN ALLOW.yaml ROUTES.yaml [HASH@IP:PORT ...]
   KEY is made when it does not exist. The log lies beside it as KEY.log. Ends with its input.
   The line "/peer HASH@IP:PORT" adds one to those who are spoken to. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"

#include <stdio.h>

static void *listen_to_others(void *arg) {
    opcomms_peer *peer = (opcomms_peer *)arg;
    opcomms_message *message = NULL;
    opcomms_error err;
    while (opcomms_receive(peer, OPCOMMS_FOREVER, &message, &err) == OPCOMMS_OK) {
        opcomms_identifier from;
        char text[4096];
        size_t got = 0;
        uint64_t at = 0;
        opcomms_message_from(message, &from);
        printf("%.16s... says: ", from.hash);
        while (opcomms_message_read(message, at, text, sizeof text, &got) == OPCOMMS_OK &&
               got > 0) {
            fwrite(text, 1, got, stdout);
            at += got;
        }
        printf("\n");
        fflush(stdout);
        (void)opcomms_ack(message, &err);
    }
    return NULL;
}

#define WHO_MAX 64
static char who[WHO_MAX][128];
static int count;

static void add(const char *one) {
    if (count < WHO_MAX && strlen(one) < sizeof who[0]) strcpy(who[count++], one);
}

/* To every HASH@IP:PORT; says for each what became of it. 0: all were reached. */
static int tell(opcomms_peer *peer, const char *text) {
    int i, bad = 0;
    for (i = 0; i < count; i++) {
        char hash[65] = "";
        opcomms_error err;
        const char *at = strchr(who[i], '@');
        if (at == NULL || at - who[i] != 64) {
            fprintf(stderr, "%s: not of the form HASH@IP:PORT\n", who[i]);
            return 1;
        }
        memcpy(hash, who[i], 64);
        if (opcomms_send(peer, hash, at + 1, text, strlen(text), 0, &err) == OPCOMMS_OK) {
            printf("sent to %.16s...\n", hash);
        } else {
            printf("not sent to %.16s...: %s\n", hash, err.text);
            bad = 1;
        }
        fflush(stdout);
    }
    return bad;
}

int main(int argc, char **argv) {
    opcomms_allow_list *allow = NULL;
    opcomms_routing_table *routes = NULL;
    opcomms_peer *peer = NULL;
    opcomms_config cfg;
    opcomms_error err;
    char hash[65], address[64], log[1024], line[4096];
    pthread_t thread;
    int i, bad = 0;
    if (argc < 5) {
        fprintf(stderr, "usage: chat KEY LISTEN ALLOW.yaml ROUTES.yaml [HASH@IP:PORT ...]\n");
        return 2;
    }
    for (i = 5; i < argc; i++) add(argv[i]);
    if (opcomms_get_pubk_hash_from_privk(argv[1], hash, &err) == OPCOMMS_E_NOT_FOUND &&
        opcomms_generate_key_file(argv[1], OPCOMMS_KEY_RSA_2048, &err) != OPCOMMS_OK) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    snprintf(log, sizeof log, "%s.log", argv[1]);
    opcomms_config_init(&cfg);
    cfg.address = argv[2];
    cfg.key_file = argv[1];
    cfg.log_path = log;
    if (opcomms_allow_list_new(NULL, &allow) || opcomms_routing_table_new(NULL, &routes)) return 1;
    cfg.allow = allow;
    cfg.routes = routes;
    if (opcomms_allow_list_load(allow, argv[3], &err) ||
        opcomms_routing_table_load(routes, argv[4], &err) || opcomms_new(&cfg, &peer, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    (void)opcomms_get_pubk_hash(peer, hash);
    (void)opcomms_get_address(peer, address, sizeof address);
    printf("I am %s@%s\n", hash, address);
    fflush(stdout);
    if (pthread_create(&thread, NULL, listen_to_others, peer) != 0) return 1;
    while (fgets(line, sizeof line, stdin) != NULL) {
        line[strcspn(line, "\r\n")] = 0;
        if (strncmp(line, "/peer ", 6) == 0) {
            add(line + 6);
        } else if (line[0] != 0) {
            bad |= tell(peer, line);
        }
    }
    (void)opcomms_stop(peer);
    (void)pthread_join(thread, NULL);
    opcomms_free(peer);
    opcomms_allow_list_release(allow);
    opcomms_routing_table_release(routes);
    return bad;
}
