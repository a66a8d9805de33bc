/* The C side of interop.sh, on the public functions of opcomms.h alone. Prints one JSON object a
   line. The peer's log is the file given by --log; without it messages live in memory.

     driver hash  --key K [--ca K]
     driver serve --key K --addr A [--allow F] [--routes F] [--mailboxes N] [--messages N]
                  [--leave] [--protocol newer] [--frame BYTES] [--rate N]
                                   first line: I am HASH@ADDR; then what it receives, one a line
     driver send  --key K --to HASH --addr A [--data T | --file F] [--count N] [--threads N]
                  [--fresh] [--timeout MS] [--retry MS] [--pings: a ping in place of each message]
     driver get | ack --uid N | recv | ping | post --to HASH [--from-id N] [--to-id N] [--text]
                  --key K --server HASH --addr A [--id N] [--out F]      the broker channel */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* After SIGUSR1 the process ends as soon as a batch has reached the disk: what it stored is
   durable, and whoever sent it gets no answer. */
static volatile sig_atomic_t die_after_sync;

static void arm(int signal_number) {
    (void)signal_number;
    die_after_sync = 1;
}

int fdatasync(int fd) {
    int rc = (int)syscall(SYS_fdatasync, fd);
    if (die_after_sync) _exit(9);
    return rc;
}

static const char *option(char **argv, const char *name, const char *otherwise) {
    for (; *argv != NULL; argv++) {
        if (strcmp(*argv, name) == 0) return argv[1] != NULL ? argv[1] : "";
    }
    return otherwise;
}

static unsigned long number(char **argv, const char *name, unsigned long otherwise) {
    const char *text = option(argv, name, NULL);
    return text != NULL ? strtoul(text, NULL, 10) : otherwise;
}

static int has(char **argv, const char *name) { return option(argv, name, NULL) != NULL; }

static void print_text(const char *text, size_t len) {
    size_t i;
    putchar('"');
    for (i = 0; i < len; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c == '"' || c == '\\') putchar('\\');
        if (c < 0x20 || c == 0x7f) {
            printf("\\u%04x", c);
        } else {
            putchar(c);
        }
    }
    putchar('"');
}

static const char *code_name(opcomms_err code) {
    switch (code) {
#define NAME(name, value, severity, text) \
    case name:                            \
        return #name;
        OPCOMMS_ERRORS(NAME)
#undef NAME
    default:
        return "OPCOMMS_E_LAST_";
    }
}

static int report(int ok, const char *what, opcomms_err code, const opcomms_error *err) {
    printf("{\"ok\":%s,%s\"code\":\"%s\",\"tls\":%d,\"text\":", ok ? "true" : "false", what,
           code_name(code), code != OPCOMMS_OK ? (int)err->tls_code : 0);
    print_text(code != OPCOMMS_OK ? err->text : "", code != OPCOMMS_OK ? strlen(err->text) : 0);
    printf("}\n");
    fflush(stdout);
    return ok ? 0 : 1;
}

static opcomms_err lists(char **argv, opcomms_config *cfg, opcomms_error *err) {
    const char *allow = option(argv, "--allow", "allow_all");
    const char *routes = option(argv, "--routes", NULL);
    opcomms_err rc = opcomms_allow_list_new(NULL, &cfg->allow);
    if (rc == OPCOMMS_OK) rc = opcomms_routing_table_new(NULL, &cfg->routes);
    if (rc != OPCOMMS_OK) return rc;
    if (strcmp(allow, "allow_all") == 0) {
        rc = opcomms_allow_list_allow_all(cfg->allow, 1);
    } else {
        rc = opcomms_allow_list_load(cfg->allow, allow, err);
    }
    if (rc != OPCOMMS_OK || routes == NULL) return rc;
    if (strcmp(routes, "allow_all") == 0) return opcomms_routing_table_allow_all(cfg->routes, 1);
    return opcomms_routing_table_load(cfg->routes, routes, err);
}

static opcomms_err open_peer(char **argv, int listens, opcomms_peer **peer, opcomms_error *err) {
    opcomms_config cfg;
    opcomms_err rc;
    opcomms_config_init(&cfg);
    memset(err, 0, sizeof *err);
    rc = lists(argv, &cfg, err);
    if (rc != OPCOMMS_OK) return rc;
    cfg.key_file = option(argv, "--key", NULL);
    cfg.ca_key_file = option(argv, "--ca", NULL);
    cfg.log_path = option(argv, "--log", NULL);
    if (cfg.log_path == NULL) cfg.flags |= OPCOMMS_MEMORY_STORE;
    /* Connections are counted: none is made to ask whether a server speaks the native protocol. */
    cfg.flags |= OPCOMMS_TARPC_ONLY;
    cfg.mailboxes_max = (uint32_t)number(argv, "--mailboxes", 0);
    cfg.frame_bytes_max = (uint32_t)number(argv, "--frame", 0);
    if (strcmp(option(argv, "--protocol", ""), "newer") == 0) cfg.protocol = OPCOMMS_PROTOCOL_NEWER;
    cfg.rate_capacity = (uint32_t)number(argv, "--rate", OPCOMMS_UNLIMITED);
    if (has(argv, "--rate")) cfg.rate_per_second = 1;
    if (listens) {
        cfg.address = option(argv, "--addr", "127.0.0.1:0");
        /* A connection for each message is what the Rust client does. */
        cfg.handshakes_per_second = 100000;
    } else {
        cfg.flags |= OPCOMMS_NO_LISTEN;
    }
    rc = opcomms_new(&cfg, peer, err);
    opcomms_allow_list_release(cfg.allow);
    opcomms_routing_table_release(cfg.routes);
    return rc;
}

/* FIPS 180-4 is the business of sha256sum: received contents go to files that it reads. */
static int keep_content(char **argv, unsigned long n, const unsigned char *data, size_t len) {
    const char *dir = option(argv, "--dir", NULL);
    char path[512];
    FILE *f;
    int ok;
    if (dir == NULL) return 1;
    snprintf(path, sizeof path, "%s/%lu", dir, n);
    f = fopen(path, "wb");
    if (f == NULL) return 0;
    ok = fwrite(data, 1, len, f) == len;
    return fclose(f) == 0 && ok;
}

static int show(char **argv, unsigned long n, opcomms_message *message, opcomms_error *err) {
    opcomms_identifier from;
    size_t len = opcomms_message_size(message), got = 0, at = 0;
    unsigned char *data = (unsigned char *)malloc(len + 1);
    if (data == NULL) return 0;
    while (at < len && opcomms_message_read(message, at, data + at, len - at, &got) == OPCOMMS_OK &&
           got > 0) {
        at += got;
    }
    opcomms_message_from(message, &from);
    if (at != len || !keep_content(argv, n, data, len)) {
        free(data);
        return 0;
    }
    if (!has(argv, "--quiet")) {
        printf("{\"n\":%lu,\"uid\":%llu,\"from\":\"%s\",\"from_id\":%u,\"len\":%lu,\"coded\":%s,"
               "\"text\":", n, (unsigned long long)opcomms_message_number(message), from.hash,
               (unsigned)from.id, (unsigned long)len,
               opcomms_message_flags(message) & OPCOMMS_MESSAGE_TEXT ? "false" : "true");
        print_text((const char *)data, len < 60 ? len : 60);
        printf("}\n");
        fflush(stdout);
    }
    free(data);
    return opcomms_ack(message, err) == OPCOMMS_OK;
}

static int serve(char **argv) {
    opcomms_peer *peer = NULL;
    opcomms_error err;
    char hash[65], address[64];
    unsigned long n, count = number(argv, "--messages", 0);
    opcomms_err rc = open_peer(argv, 1, &peer, &err);
    if (rc != OPCOMMS_OK) return report(0, "", rc, &err);
    if (opcomms_get_pubk_hash(peer, hash) != OPCOMMS_OK ||
        opcomms_get_address(peer, address, sizeof address) != OPCOMMS_OK) return 1;
    signal(SIGUSR1, arm);
    printf("I am %s@%s\n", hash, address);
    fflush(stdout);
    while (has(argv, "--leave")) pause(); /* a mailbox server only; ended by a signal */
    for (n = 0; count == 0 || n < count; n++) {
        opcomms_message *message = NULL;
        rc = opcomms_receive(peer, OPCOMMS_FOREVER, &message, &err);
        if (rc != OPCOMMS_OK) return report(0, "", rc, &err);
        if (!show(argv, n, message, &err)) return report(0, "\"lost\":true,", OPCOMMS_E_IO, &err);
    }
    opcomms_free(peer);
    return 0;
}

static unsigned char *content(char **argv, size_t *len) {
    const char *path = option(argv, "--file", NULL), *data = option(argv, "--data", "");
    unsigned char *out = NULL;
    FILE *f;
    *len = strlen(data);
    if (path == NULL) {
        out = (unsigned char *)malloc(*len + 32);
        if (out != NULL) memcpy(out, data, *len);
        return out;
    }
    out = (unsigned char *)malloc(8u << 20);
    f = fopen(path, "rb");
    if (f == NULL || out == NULL) {
        free(out);
        if (f != NULL) fclose(f);
        return NULL;
    }
    *len = fread(out, 1, (8u << 20) - 32, f);
    fclose(f);
    return out;
}

typedef struct sender {
    char **argv;
    opcomms_peer *peer;
    unsigned long index;
    unsigned long stored, attempts;
    opcomms_err first; /* the first error, also when a further attempt succeeded */
    opcomms_error err;
    opcomms_err last;
    opcomms_error last_err;
} sender;

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)(t.tv_nsec / 1000);
}

static opcomms_err attempt(sender *s, const void *data, size_t len) {
    const char *to = option(s->argv, "--to", ""), *addr = option(s->argv, "--addr", "");
    uint32_t timeout_ms = (uint32_t)number(s->argv, "--timeout", 0);
    opcomms_err rc;
    if (has(s->argv, "--fresh")) {
        if (s->peer != NULL) opcomms_free(s->peer);
        s->peer = NULL;
        rc = open_peer(s->argv, 0, &s->peer, &s->last_err);
        if (rc != OPCOMMS_OK) return rc;
    }
    if (has(s->argv, "--pings")) {
        return opcomms_ping(s->peer, to, addr, timeout_ms, &s->last_err);
    }
    return opcomms_send(s->peer, to, addr, data, len, timeout_ms, &s->last_err);
}

static void *send_all(void *user) {
    sender *s = (sender *)user;
    unsigned long i, count = number(s->argv, "--count", 1);
    uint64_t until = now_us() + (uint64_t)number(s->argv, "--retry", 0) * 1000u;
    int threads = has(s->argv, "--threads");
    size_t len = 0, extra;
    unsigned char *data = content(s->argv, &len);
    for (i = 0; i < count && data != NULL; i++) {
        extra = 0;
        if (count > 1) {
            extra = (size_t)(threads ? snprintf((char *)data + len, 32, " %lu %lu", s->index, i)
                                     : snprintf((char *)data + len, 32, " %lu", i));
        }
        do {
            s->attempts++;
            s->last = attempt(s, data, len + extra);
            if (s->last != OPCOMMS_OK && s->first == OPCOMMS_OK) {
                s->first = s->last;
                s->err = s->last_err;
            }
            /* Nothing comes to a peer that does not listen: this waits 20 ms. */
            if (s->last != OPCOMMS_OK && now_us() < until) (void)opcomms_wait(s->peer, 20);
        } while (s->last != OPCOMMS_OK && now_us() < until);
        if (s->last != OPCOMMS_OK) break;
        s->stored++;
    }
    free(data);
    return NULL;
}

static int send_messages(char **argv) {
    sender s[64];
    pthread_t thread[64];
    opcomms_peer *peer = NULL;
    opcomms_error err;
    char what[128];
    unsigned long i, count = number(argv, "--count", 1), threads = number(argv, "--threads", 1);
    unsigned long stored = 0, attempts = 0;
    opcomms_err rc = open_peer(argv, 0, &peer, &err), first = OPCOMMS_OK;
    if (rc != OPCOMMS_OK) return report(0, "", rc, &err);
    if (threads > 64) threads = 64;
    for (i = 0; i < threads; i++) {
        memset(&s[i], 0, sizeof s[i]);
        s[i].argv = argv;
        s[i].peer = peer;
        s[i].index = i;
        if (pthread_create(&thread[i], NULL, send_all, &s[i]) != 0) return 1;
    }
    for (i = 0; i < threads; i++) {
        pthread_join(thread[i], NULL);
        stored += s[i].stored;
        attempts += s[i].attempts;
        if (s[i].first != OPCOMMS_OK && first == OPCOMMS_OK) {
            first = s[i].first;
            err = s[i].err;
        }
    }
    opcomms_free(s[0].peer);
    snprintf(what, sizeof what, "\"stored\":%lu,\"attempts\":%lu,", stored, attempts);
    return report(stored == count * threads, what, first, &err);
}

static int broker_get(char **argv, opcomms_client *client) {
    static unsigned char buf[8u << 20];
    const char *path = option(argv, "--out", NULL);
    uint8_t id = (uint8_t)number(argv, "--id", 0);
    opcomms_mail mail;
    opcomms_error err;
    FILE *f;
    int taken = strcmp(argv[0], "recv") == 0;
    opcomms_err rc = taken ? opcomms_client_recv(client, id, &mail, buf, sizeof buf, 0, &err)
                           : opcomms_client_get(client, id, &mail, buf, sizeof buf, 0, &err);
    if (rc == OPCOMMS_E_EMPTY) return report(1, "\"message\":null,", OPCOMMS_OK, &err);
    if (rc != OPCOMMS_OK) return report(0, "", rc, &err);
    if (path != NULL) {
        f = fopen(path, "wb");
        if (f == NULL || fwrite(buf, 1, (size_t)mail.bytes, f) != mail.bytes || fclose(f) != 0) {
            return 1;
        }
    }
    printf("{\"ok\":true,\"uid\":%llu,\"from\":\"%s\",\"from_id\":%u,\"len\":%llu,\"coded\":%s,"
           "\"acked\":%s}\n", (unsigned long long)mail.uid, mail.from.hash, (unsigned)mail.from.id,
           (unsigned long long)mail.bytes, mail.flags & OPCOMMS_MESSAGE_TEXT ? "false" : "true",
           taken ? "true" : "false");
    return 0;
}

static int broker_post(char **argv, opcomms_client *client) {
    opcomms_identifier to;
    opcomms_error err;
    char text[80];
    size_t len = 0;
    opcomms_err rc;
    unsigned char *data = content(argv, &len);
    if (data == NULL) return 1;
    snprintf(text, sizeof text, "%s:%s", option(argv, "--to", ""), option(argv, "--to-id", "0"));
    rc = opcomms_identifier_parse(text, &to);
    if (rc == OPCOMMS_OK) {
        rc = opcomms_client_send(client, (uint8_t)number(argv, "--from-id", 0), &to, data, len,
                                 has(argv, "--text") ? OPCOMMS_MESSAGE_TEXT : 0, 0, &err);
    }
    free(data);
    return report(rc == OPCOMMS_OK, "", rc, &err);
}

static int broker(char **argv) {
    opcomms_peer *peer = NULL;
    opcomms_client *client = NULL;
    opcomms_error err;
    int status = 2;
    opcomms_err rc = open_peer(argv, 0, &peer, &err);
    if (rc != OPCOMMS_OK) return report(0, "", rc, &err);
    rc = opcomms_client_open(peer, option(argv, "--server", ""), option(argv, "--addr", ""),
                             &client, &err);
    if (rc != OPCOMMS_OK) {
        status = report(0, "", rc, &err);
    } else if (strcmp(argv[0], "post") == 0) {
        status = broker_post(argv, client);
    } else if (strcmp(argv[0], "ping") == 0) {
        rc = opcomms_client_ping(client, 0, &err);
        status = report(rc == OPCOMMS_OK, rc == OPCOMMS_OK ? "\"pong\":true," : "", rc, &err);
    } else if (strcmp(argv[0], "ack") == 0) {
        rc = opcomms_client_ack(client, (uint8_t)number(argv, "--id", 0),
                                number(argv, "--uid", 0), 0, &err);
        status = rc == OPCOMMS_E_NOT_FOUND
                     ? report(1, "\"acked\":false,", OPCOMMS_OK, &err)
                     : report(rc == OPCOMMS_OK, "\"acked\":true,", rc, &err);
    } else {
        status = broker_get(argv, client);
    }
    opcomms_client_close(client);
    opcomms_free(peer);
    return status;
}

/* The base64 text of one PEM block: without first and last line, without line ends. */
static void print_body(const char *pem, size_t len) {
    size_t i;
    int dashes = 0;
    for (i = 0; i < len; i++) {
        if (pem[i] == '-' && (i == 0 || pem[i - 1] == '\n')) dashes = 1;
        if (!dashes && pem[i] != '\n') putchar(pem[i]);
        if (pem[i] == '\n') dashes = 0;
    }
}

/* What the Rust side must make of the same key, byte for byte. */
static int hash(char **argv) {
    opcomms_error err;
    char own[65], leaf[4096], ca[4096];
    size_t leaf_len = 0, ca_len = 0;
    const char *key = option(argv, "--key", ""), *ca_key = option(argv, "--ca", NULL);
    opcomms_err rc = opcomms_get_pubk_hash_from_privk(key, own, &err);
    if (rc == OPCOMMS_OK) rc = opcomms_make_cert(key, ca_key, leaf, sizeof leaf, &leaf_len, &err);
    if (rc == OPCOMMS_OK) rc = opcomms_make_ca_cert(ca_key, ca, sizeof ca, &ca_len, &err);
    if (rc != OPCOMMS_OK) return report(0, "", rc, &err);
    printf("{\"ca\":\"");
    print_body(ca, ca_len);
    printf("\",\"hash\":\"%s\",\"leaf\":\"", own);
    print_body(leaf, leaf_len);
    printf("\",\"ok\":true}\n");
    return 0;
}

int main(int argc, char **argv) {
    const char *command = argc > 1 ? argv[1] : "";
    if (strcmp(command, "serve") == 0) return serve(argv + 1);
    if (strcmp(command, "send") == 0) return send_messages(argv + 1);
    if (strcmp(command, "hash") == 0) return hash(argv + 1);
    if (strcmp(command, "get") == 0 || strcmp(command, "ack") == 0 ||
        strcmp(command, "recv") == 0 || strcmp(command, "ping") == 0 ||
        strcmp(command, "post") == 0) {
        return broker(argv + 1);
    }
    fprintf(stderr, "driver hash|serve|send|post|get|ack|recv|ping\n");
    return 2;
}
