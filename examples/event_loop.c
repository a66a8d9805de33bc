/* A peer in the program's own poll loop: no thread, no blocking call. Prints what it receives.
   cc event_loop.c -I.. -lbearssl -lpthread -o event_loop

   usage: event_loop KEY LISTEN ALLOW.yaml ROUTES.yaml
   KEY is made when it does not exist. The log lies beside it as KEY.log. Ends with its input. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"

#include <stdio.h>

#define FDS_MAX 80 /* 64 connections, the listener, the wake-up handle, standard input */

static int failed(const char *what, const opcomms_error *err) {
    fprintf(stderr, "%s: %s\n", what, err->text);
    return 1;
}

/* Everything that waits, without waiting. */
static void print_messages(opcomms_peer *peer) {
    opcomms_message *message = NULL;
    opcomms_error err;
    while (opcomms_receive(peer, 0, &message, &err) == OPCOMMS_OK) {
        opcomms_identifier from;
        char text[256];
        size_t got = 0;
        opcomms_message_from(message, &from);
        if (opcomms_message_read(message, 0, text, sizeof text, &got) != OPCOMMS_OK) got = 0;
        printf("%.16s... says: %.*s\n", from.hash, (int)got, text);
        fflush(stdout);
        if (opcomms_ack(message, &err) != OPCOMMS_OK) return;
    }
}

/* Waits for the peer's descriptors and for standard input at once; 0: standard input has ended. */
static int wait_once(opcomms_peer *peer) {
    opcomms_pollfd want[FDS_MAX];
    struct pollfd fds[FDS_MAX + 1];
    size_t count = 0, i;
    int32_t timeout_ms = 0;
    if (opcomms_pollfds(peer, want, FDS_MAX, &count, &timeout_ms) != OPCOMMS_OK) return 0;
    for (i = 0; i < count; i++) {
        fds[i].fd = (int)want[i].handle;
        fds[i].events = 0;
        if (want[i].events & OPCOMMS_POLL_IN) fds[i].events |= POLLIN;
        if (want[i].events & OPCOMMS_POLL_OUT) fds[i].events |= POLLOUT;
    }
    fds[count].fd = 0;
    fds[count].events = POLLIN;
    fds[count].revents = 0;
    if (poll(fds, (nfds_t)count + 1, timeout_ms) < 0) return errno == EINTR;
    if (fds[count].revents != 0) {
        char sink[256];
        if (read(0, sink, sizeof sink) <= 0) return 0;
    }
    return 1;
}

int main(int argc, char **argv) {
    opcomms_allow_list *allow = NULL;
    opcomms_routing_table *routes = NULL;
    opcomms_peer *peer = NULL;
    opcomms_config cfg;
    opcomms_error err;
    char hash[65], address[64], log[1024];
    if (argc != 5) {
        fprintf(stderr, "usage: event_loop KEY LISTEN ALLOW.yaml ROUTES.yaml\n");
        return 2;
    }
    if (opcomms_get_pubk_hash_from_privk(argv[1], hash, &err) == OPCOMMS_E_NOT_FOUND &&
        opcomms_generate_key_file(argv[1], OPCOMMS_KEY_P256, &err) != OPCOMMS_OK) {
        return failed(argv[1], &err);
    }
    snprintf(log, sizeof log, "%s.log", argv[1]);
    opcomms_config_init(&cfg);
    cfg.flags = OPCOMMS_NO_BACKGROUND;
    cfg.key_file = argv[1];
    cfg.address = argv[2];
    cfg.log_path = log;
    if (opcomms_allow_list_new(NULL, &allow) || opcomms_routing_table_new(NULL, &routes)) return 1;
    cfg.allow = allow;
    cfg.routes = routes;
    if (opcomms_allow_list_load(allow, argv[3], &err)) return failed(argv[3], &err);
    if (opcomms_routing_table_load(routes, argv[4], &err)) return failed(argv[4], &err);
    if (opcomms_new(&cfg, &peer, &err)) return failed("opcomms_new", &err);
    (void)opcomms_get_pubk_hash(peer, hash);
    (void)opcomms_get_address(peer, address, sizeof address);
    printf("I am %s@%s\n", hash, address);
    fflush(stdout);
    while (wait_once(peer)) {
        if (opcomms_poll(peer, 0) != OPCOMMS_OK) break;
        print_messages(peer);
    }
    opcomms_free(peer);
    opcomms_allow_list_release(allow);
    opcomms_routing_table_release(routes);
    return 0;
}
